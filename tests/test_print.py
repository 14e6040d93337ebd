"""The book as PDF: every picture of it is there before it is printed, those of explorers too."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from built import SITE

pytest.importorskip("playwright.sync_api")
print_book = pytest.importorskip("print_book")
make_epub = pytest.importorskip("make_epub")

pytestmark = pytest.mark.book

BESIDE = ("_static", "_images", "mathjax", "neurons", "explorers")


@pytest.fixture(scope="module")
def page(browser: Any) -> Any:
    return browser.new_page()


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


def test_only_links_are_changed() -> None:
    code = (
        '<pre><span class="s1">\'&lt;a href="</span><span class="si">{where}</span>"&gt;&lt;img src="a.png"&gt;</pre>'
    )
    drawn = '<image xlink:title="in the page" href="src:data:image/webp;base64,AAAA"/>'
    kept = drawn.replace("src:", "")
    assert make_epub.addressed(code + drawn, "book/index.html", {}) == (code + kept, {})


def test_the_book_for_e_readers(tmp_path: Path, page: Any) -> None:
    """Each file is well-formed and listed, formulas are MathML, explorers pictures, and links lead somewhere."""
    made = tmp_path / "book.epub"
    make_epub.make(made, [("", ["book/index"]), ("A part", ["book/circuits", "book/clip"])], page)
    with zipfile.ZipFile(made) as epub:
        names = epub.namelist()
        trees = {name: list(fromstring(epub.read(name)).iter()) for name in names if name.endswith((".xhtml", ".opf"))}
    listed = [one.get("href") for one in trees["content.opf"] if one.tag.endswith("}item")]
    assert sorted(["mimetype", "META-INF/container.xml", "content.opf", *listed]) == sorted(names)
    assert names[0] == "mimetype"
    assert "images/index-0.jpg" in names
    assert any(one.tag.endswith("}math") for one in trees["circuits.xhtml"])
    ids = {name: {one.get("id") for one in tree} for name, tree in trees.items()}
    for name, tree in trees.items():
        assert not [one for one in tree if one.tag.endswith(("}script", "}button"))], name
        assert not [one for one in tree if "\\(" in (one.text or "") and "code" not in one.tag], name
        drawn = {one.get("href") for one in tree if one.tag.endswith("}image")}
        assert ({one.get("src") for one in tree} | drawn) - {None} <= set(names), name
        assert not [one for one in tree if "on-dark" in one.get("class", "")], name
        for link in filter(None, (one.get("href") for one in tree if one.tag.endswith("}a"))):
            where, _, anchor = link.partition("#")
            if not re.match("[a-z]+:", link):
                assert (where or name) in trees, link
                assert not anchor or anchor in ids[where or name], (name, link)


def test_on_paper_long_tables_break_code_is_gone_and_outputs_are_open(page: Any) -> None:
    page.goto((SITE / "book" / "scores.html").as_uri(), wait_until="load")
    page.emulate_media(media="print")
    seen = "selector => [...document.querySelectorAll(selector)].map(box => box.checkVisibility())"
    assert set(page.evaluate(seen, "details.above-input")) == {False}
    assert set(page.evaluate(seen, "details.below-input table")) == {True}
    wide = "selector => [...document.querySelectorAll(selector)].map(box => getComputedStyle(box).overflow)"
    assert set(page.evaluate(wide, ".pst-scrollable-table-container")) == {"visible"}
    page.emulate_media(media="screen")
