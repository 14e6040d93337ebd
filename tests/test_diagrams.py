"""The diagrams of the chapters: drawn by the tool, one each, told in words, and in a page part of the page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import draw_diagrams
import pytest
from built import DESK, PHONE, ROOT, SITE, Visit
from chapters import BOOK, NAMES, source

from pure_nb.figures.colours import part_colour
from pure_nb.figures.diagrams import WIDTH

sys.path.insert(0, str(ROOT / "book" / "_ext"))

SVG = "{http://www.w3.org/2000/svg}"
USED = re.compile(r"```\{figure\} diagrams/([\w-]+)\.svg\n:name: (\S+)\n:alt: (.+)\n\n(?s:(.+?))\n```")
PLACES = {name: found for name in NAMES if (BOOK / f"{name}.md").is_file() for found in USED.findall(source(name))}


@pytest.mark.parametrize("name", draw_diagrams.DIAGRAMS)
def test_a_diagram(name: str) -> None:
    """It is what the tool draws, can be read, and says what it shows; and a chapter shows it and says the same."""
    text = draw_diagrams.DIAGRAMS[name]().svg()
    assert (draw_diagrams.FOLDER / f"{name}.svg").read_text(encoding="utf-8") == text, "run tools/draw_diagrams.py"
    root = ElementTree.fromstring(text)
    title, told = (root.findtext(SVG + own) or "" for own in ("title", "desc"))
    labels = {own.get("id") for own in root.iter() if own.get("id")}
    assert set(root.get("aria-labelledby", "").split()) == labels
    assert title
    for words in root.iter(f"{SVG}text"):
        assert 0 < float(words.get("x", -1)) < WIDTH
        assert words.get("font-size") is None  # so all have the size of the whole
    assert float(root.get("font-size", 0)) * 300 / WIDTH >= 12  # as wide as a phone's column is
    assert part_colour(0) in text
    (shown,) = [found for found in PLACES.values() if found[0] == name]
    assert shown[2] == told
    assert shown[3].strip() not in ("", told)


def test_every_diagram_is_referred_to() -> None:
    for chapter, (_, label, *_) in PLACES.items():
        assert f"{{numref}}`{label}`" in source(chapter)
    assert len(PLACES) == len(draw_diagrams.DIAGRAMS)


def test_a_page_holds_the_drawing_itself() -> None:
    """So that it follows the page's colours; the file goes along, for notebooks."""
    nodes = pytest.importorskip("docutils.nodes")
    diagrams = pytest.importorskip("bookext.diagrams")
    page = nodes.section("", *(nodes.image(uri=uri) for uri in ("book/diagrams/circuits.svg", "book/logo.svg")))
    images: dict[str, str] = {}
    known = {"book/diagrams/circuits.svg": (set(), "circuits.svg")}
    app: Any = SimpleNamespace(
        srcdir=str(ROOT), env=SimpleNamespace(images=known), builder=SimpleNamespace(format="html", images=images)
    )
    diagrams.within(app, page, "book/circuits")
    drawing, logo = page.children
    assert isinstance(drawing, nodes.raw)
    assert drawing.astext() == (BOOK / "diagrams" / "circuits.svg").read_text(encoding="utf-8")
    assert isinstance(logo, nodes.image)
    assert images == {"book/diagrams/circuits.svg": "circuits.svg"}


@pytest.mark.book
@pytest.mark.parametrize("chapter", PLACES)
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_in_the_book(browser: Any, chapter: str, size: Any) -> None:
    """Its text is at least 12 pixels high, and its colour is the text's in both themes."""
    for theme in ("light", "dark"):
        context = browser.new_context(viewport=size, color_scheme=theme)
        with Visit(context, (SITE / f"book/{chapter}.html").as_uri()) as visit:
            drawing = visit.page.locator("svg.diagram").first
            assert drawing.evaluate("svg => 14 * svg.getScreenCTM().a") >= 12
            colours = "svg => [svg, svg.parentElement].map(one => getComputedStyle(one).color)"
            assert len(set(drawing.evaluate(colours))) == 1
            assert not visit.troubles, "\n".join(visit.troubles)
        context.close()
    assert Path(SITE / "_images" / f"{PLACES[chapter][0]}.svg").is_file()
