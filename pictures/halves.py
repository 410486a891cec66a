"""Notice single pictures among those that would be cut in half, by their names and pixels."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from pictures.decode import PictureError, read_picture
from pictures.folders import shortened
from pictures.layouts import Pair
from pictures.pairs import Preparation, check_pair

N_LOOKED_AT = 32  # pictures, spread over the set
# Of the pairs measured 0 to 6 % go on across the cut by these two, of single pictures 75 to 97 %.
LARGEST_STEP = 1.3  # at the cut, in mean steps between columns nearby
LEAST_CORRELATION = 0.5  # of the columns on either side of the cut
LARGEST_SHARE = 0.6  # of pictures that go on across the cut, above which they are single ones
# A gutter has one colour, from which JPEG leaves its pixels so far, as a share of the range of all,
GUTTER_SPREAD = 0.06
GUTTER_SHARE = 0.95  # and so many of them.


def check_halves(pairs: Sequence[Pair], preparation: Preparation) -> list[str]:
    """Refuse pictures that would be cut in half and look like single ones.

    Args:
        pairs: Side by side. Those that cannot be used are passed over.
        preparation: What is expected of them.

    Returns:
        Remarks for the user: on a gutter between the halves.

    Raises:
        ValueError: Names tell two sides apart; or most of the pictures looked at go on across the
            cut as no two pictures side by side do.
    """
    if ends := _endings(pairs):
        names = " and ".join(map(repr, ends))
        settings = " and ".join(repr(f"*{end}" * bool(end)) for end in ends)
        raise _single(f"names end in {names}", f"set a and b to {settings}")
    if folders := _twin_folders(pairs):
        names = " and ".join(folders)
        raise _single(f"{names} hold the same names", f"set a and b to {names}")
    going_on, n_judged, gutters = [], 0, []
    for name, pixels in _sample(pairs, preparation):
        goes_on = _goes_on(pixels)
        n_judged += goes_on is not None
        going_on += [name] * bool(goes_on)
        gutters.append(_gutter(pixels))
    if len(going_on) > max(1, LARGEST_SHARE * n_judged):
        raise _single(
            f"in {len(going_on)} of {n_judged} that were looked at, the right half goes on where "
            f"the left one ends: {', '.join(shortened(going_on, most=3))}",
            "put inputs and targets into two folders, A and B",
        )
    width = min(gutters, default=0)
    gutter = f"a gutter of {width} px lies between the halves and is learned; better cut it out"
    return [gutter] if width > 1 else []


def _single(why: str, advice: str) -> ValueError:
    return ValueError(
        f"The pictures look like single ones, not like two side by side ({why}). If they are the "
        f"sides of pairs, {advice}. To cut each in half all the same, set check_halves to False"
    )


def _endings(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return the two endings, such as _A and _B, that half of the names or more differ in."""
    endings = defaultdict(set)
    for pair in pairs:
        base, ending = re.fullmatch(r"(.*?)([_-][^\W\d_]+)?", pair.name, re.DOTALL).groups("")
        endings[base].add(ending)
    twos = Counter(tuple(sorted(ends)) for ends in endings.values() if len(ends) == 2)
    ends, count = max(twos.items(), key=lambda item: item[1], default=((), 0))
    return ends if 4 * count >= len(pairs) else ()


def _twin_folders(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return the two folders that all pictures lie in, if both hold the same names."""
    names = defaultdict(set)
    for pair in pairs:
        folder = pair.folder.split("/")[0]
        names[folder].add(pair.name.removeprefix(folder))
    first, *others = names.values()
    return tuple(names) if len(others) == 1 and others[0] == first else ()


def _sample(pairs: Sequence[Pair], preparation: Preparation) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and pixels (height, width, channels) of some pictures that can be used."""
    for pair in pairs[:: -(-len(pairs) // N_LOOKED_AT)]:
        try:
            check_pair(pair, preparation)
            pixels = read_picture(pair.a, preparation.reading("input")).pixels
        except PictureError:
            continue  # whoever opens all of them lists it with the others
        yield pair.name, pixels.astype(np.float32)


def _goes_on(pixels: np.ndarray) -> bool | None:
    """Tell whether the right half goes on where the left one ends; None if both are blank there."""
    middle, reach = pixels.shape[1] // 2, max(4, pixels.shape[1] // 64)
    left, right = pixels[:, middle - 1].ravel(), pixels[:, middle].ravel()
    if min(left.std(), right.std()) < 0.05 * pixels.std():
        return None
    near = pixels[:, middle - reach : middle + reach]
    steps = np.abs(np.diff(near, axis=1)).mean(axis=(0, 2))
    others = np.delete(steps, reach - 1).mean()
    is_small = steps[reach - 1] <= LARGEST_STEP * others
    return bool(is_small and np.corrcoef(left, right)[0, 1] > LEAST_CORRELATION)


def _gutter(pixels: np.ndarray) -> int:
    """Return how many columns of one colour lie about the cut; 0 where a margin has it, too."""
    middle = pixels.shape[1] // 2
    same = np.abs(pixels - pixels[0, middle]) <= GUTTER_SPREAD * np.ptp(pixels)
    even = same.mean(axis=(0, 2)) > GUTTER_SHARE
    if even[0] or even[-1] or not even[middle - 1 : middle + 1].all():
        return 0
    ends = np.flatnonzero(~even)
    return int(ends[ends > middle][0] - ends[ends < middle][-1] - 1)
