"""Tables of scores, a row a picture: how they are read, summed up and compared. Knows no torch."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

Table = dict[str, np.ndarray]  # a score of each picture, by the name of the score
Values = TypeVar("Values", float, np.ndarray)


def read_scores(path: Path) -> tuple[list[str], Table]:
    """Return the names of the pictures in a table of ``evaluate.py``, and their scores.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: It is not one that ``evaluate.py`` has written.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; score each run first: python evaluate.py "
            "checkpoints/NAME/generator.pt"
        )
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        names = [row.pop("picture") for row in rows]
        return names, {score: np.array([float(row[score]) for row in rows]) for score in rows[0]}
    except (csv.Error, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a table that evaluate.py has written ({error!r}; did another program "
            "save it?); score the run again"
        ) from error


def over_targets(scores: Mapping[str, Values]) -> dict[str, Values]:
    """Return scores, each that has a ``target_`` beside it as the ratio to that.

    So ``sharpness`` 1 is as sharp as real, and below is blurred.

    Args:
        scores: Of one picture, of many in an array each, or means.
    """
    return {
        name: value / np.maximum(scores[f"target_{name}"], 1e-12)
        if f"target_{name}" in scores
        else value
        for name, value in scores.items()
        if not name.startswith("target_")
    }


def drawn_again(n: int, times: int) -> np.ndarray:
    """Return how often each of ``n`` pictures is drawn, with replacement, in each of many draws.

    A bootstrap: what a score would have been on other pictures of the same kind shows in its
    values over these draws.

    Returns:
        Counts (times + 1, n); the first row has each picture once.
    """
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), times)
    return np.vstack([np.ones(n, drawn.dtype), drawn])
