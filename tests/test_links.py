"""Every link within the built book leads somewhere: pages, places in them, pictures, scripts, notebooks."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from built import SITE, explorer_pages

pytestmark = pytest.mark.book

# What Sphinx's themes bring along is not a page of the book.
PAGES = sorted(
    path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if path.relative_to(SITE).parts[0] != "_static"
)
NOTEBOOKS = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("notebooks/**/*.ipynb"))


class Marks(HTMLParser):
    """The places of a page that can be linked to, and all that it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if not value:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.places.add(value)
            elif name in ("href", "src", "poster") or (tag == "object" and name == "data"):
                self.links.add(value)
            elif name == "srcset":
                self.links.update(part.split()[0] for part in value.split(","))


@cache
def marks(path: Path) -> Marks:
    return Marks(path.read_text(encoding="utf-8"))


def broken(page: Path, link: str) -> str | None:
    """What is wrong with a link of a page, if anything."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None  # to another site, or data
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if parts.path.startswith("/"):
        return f"{link}: from the root of the server, which the book may not be at"
    if not target.is_relative_to(SITE.resolve()):
        return f"{link}: leads out of the book"
    if target.is_dir():
        return f"{link}: a folder, which a browser does not open from the disk as a page"
    if not target.is_file():
        return f"{link}: there is no such file"
    place = unquote(parts.fragment)
    if "=" in place:  # what a script of the page shows: of neurons whose data are there
        numbers = re.findall(r"(?:neuron|part)=(\d+)", place)
        there = numbers and all((target.parent / f"data/{number}.js").is_file() for number in numbers)
        return None if there else f"{link}: there are no data of what it shows"
    if place and target.suffix == ".html" and place not in marks(target).places:
        return f"{link}: there is no such place in the page"
    return None


def test_there_are_pages() -> None:
    assert len(PAGES) > 10


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page(page: str) -> None:
    path = (SITE / page).resolve()
    found = filter(None, (broken(path, link) for link in sorted(marks(path).links)))
    assert not (wrong := list(found)), "\n".join(wrong)


PICTURES = re.compile(
    r'<figure class="explorer"[^>]*data-kind="pictures".*?<script type="application/json">(.*?)</script>', re.DOTALL
)


@pytest.mark.parametrize("page", explorer_pages())
def test_pictures_of_explorers(page: str) -> None:
    """Every picture that a slider can reach is there for both themes, and told in words of its own."""
    path = (SITE / page).resolve()
    for told in map(json.loads, PICTURES.findall(path.read_text(encoding="utf-8"))):
        files = [told["root"] + theme + file for file, _ in told["pictures"] for theme in ("", "dark/")]
        wrong = [fault for file in files if (fault := broken(path, file))]
        assert not wrong, "\n".join(wrong)
        assert len(told["pictures"]) == math.prod(len(axis["values"]) for axis in told["axes"])
        words = Counter(text for _, text in told["pictures"])
        assert not (same := [text for text, count in words.items() if count > 1 or not text.strip()]), same


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_links_of_a_notebook(notebook: str) -> None:
    """Links and pictures of a notebook's text, in Markdown or HTML."""
    path = (SITE / notebook).resolve()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    links: set[str] = set()
    for cell in cells:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"```.*?```|`[^`\n]*`", "", "".join(cell["source"]), flags=re.DOTALL)
            links |= set(re.findall(r"\]\(<?([^)\s>]+)", text)) | Marks(text).links
    wrong = [fault for link in sorted(links) if not link.startswith("#") and (fault := broken(path, link))]
    assert not wrong, "\n".join(wrong)
