"""What can be checked of the documentation without running it: links, names, length."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from config import Config

NAMES = ("README.md", "CHANGELOG.md", "evaluation/README.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
LONGEST = 35  # words in a sentence
ids = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def without_code(page: Path) -> str:
    """Return the text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as forges make them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", without_code(page), flags=re.M):
        kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.append(kept.replace(" ", "-"))
    assert len(found) == len(set(found)), page
    return set(found)


def sentences(page: Path) -> list[str]:
    """Return the sentences of a page's prose: no code, tables or headings; a `span` is a word."""
    lines = without_code(page).splitlines()
    lines = ["" if re.match(r"\s*(\||#|!\[|---)", line) else line for line in lines]
    text = "\n".join(re.sub(r"^\s*([-*]|\d+\.) ", "\n", line) for line in lines)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "")
    parts = (re.split(r"(?<=[.!?])\s+", " ".join(part.split())) for part in text.split("\n\n"))
    return [sentence for part in parts for sentence in part if sentence]


@ids
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {target}"


@ids
def test_sentences_are_short(page: Path):
    long = [text for text in sentences(page) if len(text.split()) > LONGEST]
    assert not long, "\n".join(long)


def test_the_readme_is_short_and_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 220
    blocks = re.findall(r"^```sh\n(.*?)\n```$", text, flags=re.DOTALL | re.M)
    assert blocks[0] == "pip install -r requirements.txt && python train.py"
    assert blocks[1] == "pip install -r requirements-dev.txt && pytest"


def test_every_setting_is_explained_and_every_page_is_listed():
    told = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert [name for name in (f.name for f in fields(Config)) if f"`{name}`" not in told] == []
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", index))
