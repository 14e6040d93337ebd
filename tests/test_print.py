"""The book as PDF: every picture of it is there before it is printed, those of explorers too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from built import SITE, chromium

pytest.importorskip("playwright.sync_api")
print_book = pytest.importorskip("print_book")

pytestmark = pytest.mark.book

BESIDE = ("_static", "_images", "mathjax", "neurons", "explorers")


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium() as browser:
        yield browser.new_page()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A book of one chapter, as Sphinx puts it on one page: its addresses start at the root, an explorer's do not."""
    text = (SITE / "book" / "clip.html").read_text(encoding="utf-8")
    index = (SITE / "book" / "index.html").read_text(encoding="utf-8")
    neuron = re.search(r'<figure class="explorer" data-kind="neuron".*?</figure>', index, re.DOTALL)
    assert neuron is not None
    text = text.replace('"../_', '"_').replace("</article>", f"{neuron[0]}</article>")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.html").write_text(text, encoding="utf-8")
    for name in BESIDE:
        (tmp_path / name).symlink_to(SITE / name)
    return tmp_path


def test_the_book_is_printed_with_its_explorers(site: Path, page: Any) -> None:
    source = print_book.at_the_root(site)
    print_book.print_page(page, source, site / "print" / "book.pdf")
    assert page.locator(".tile").count() >= 6
    assert (site / "print" / "book.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("missing", "told"),
    [("neurons", "The data of neuron 22 can't be loaded"), ("explorers", "/explorers/glyphs-words/")],
)
def test_a_book_without_its_pictures_is_not_printed(site: Path, page: Any, missing: str, told: str) -> None:
    (site / missing).unlink()
    with pytest.raises(SystemExit, match=f"does not load: .*{told}"):
        print_book.print_page(page, print_book.at_the_root(site), site / "book.pdf")
    assert not (site / "book.pdf").exists()


def test_a_folder_that_is_no_book(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"should hold one page with the book, but holds 0\. Make it by"):
        print_book.at_the_root(tmp_path)
