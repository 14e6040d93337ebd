"""The tour: five steps of one neuron, by buttons, keys and swipes, and below each other where there is no script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from built import PHONE, Visit

from pure_nb import Study
from pure_nb.errors import ArgumentError
from pure_nb.show.tour import alike, routes, table, tour

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A tour</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width"></head>
<body><main><h1>A tour</h1>{}</main></body></html>"""

WORDS = [(f"Step <{number}>", f"Text {number}.") for number in range(1, 6)]
CHANNEL = 22


@pytest.fixture(scope="module")
def url(glyph_study: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of a book with the tour, on the disk."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PURE_NB_BOOK", str(folder))
        shown = tour(glyph_study, CHANNEL, WORDS, caption="A <neuron>.")
    (folder / "book").mkdir()
    (folder / "book/page.html").write_text(PAGE.format(shown.data), encoding="utf-8")
    return (folder / "book/page.html").as_uri()


@pytest.fixture
def phone(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport=PHONE, has_touch=True)
    yield context
    context.close()


def titles(page: Any) -> list[str]:
    """Of the steps that are seen."""
    found = page.locator(".tour h3")
    return [found.nth(place).inner_text() for place in range(found.count()) if found.nth(place).is_visible()]


def test_buttons_and_keys(context: Any, url: str) -> None:
    with Visit(context, url) as visit:
        back, forth = (visit.page.locator(".tour-bar button").nth(place) for place in (0, 1))
        seen = [titles(visit.page)]
        for press in (forth.click, forth.click, lambda: forth.press("ArrowRight"), lambda: forth.press("End")):
            press()
            seen.append(titles(visit.page))
        assert seen == [[f"{number}. Step <{number}>"] for number in range(1, 6)]
        assert forth.get_attribute("aria-disabled") == "true"
        forth.click(force=True)  # there is no sixth
        assert visit.page.locator(".tour-bar [aria-live]").inner_text() == "5 of 5"
        back.press("ArrowLeft")
        assert titles(visit.page) == ["4. Step <4>"]
        back.press("Home")
        assert titles(visit.page) == ["1. Step <1>"]
        assert not visit.troubles, "\n".join(visit.troubles)


SWIPE = """(tour, [by, down]) => {
    const at = (x, y) => new Touch({identifier: 1, target: tour, clientX: x, clientY: y});
    tour.dispatchEvent(new TouchEvent("touchstart", {touches: [at(200, 300)], bubbles: true}));
    tour.dispatchEvent(new TouchEvent("touchend", {changedTouches: [at(200 + by, 300 + down)], bubbles: true}));
}"""


def test_on_a_phone(phone: Any, url: str) -> None:
    with Visit(phone, url) as visit:
        box = visit.page.locator(".tour")
        for by, down, step in ((-90, 10, 2), (-90, 10, 3), (-20, 0, 3), (-60, 200, 3), (90, 0, 2)):
            box.evaluate(SWIPE, [by, down])
            assert titles(visit.page) == [f"{step}. Step <{step}>"], (by, down)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        text = visit.page.locator(".tour svg.diagram text").first
        assert text.evaluate("text => 14 * text.ownerSVGElement.getScreenCTM().a") >= 12
        assert not visit.troubles, "\n".join(visit.troubles)


def test_without_a_script(browser: Any, url: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    assert titles(page) == [f"{number}. Step <{number}>" for number in range(1, 6)]
    tops = [page.locator(".tour-step").nth(place).bounding_box()["y"] for place in range(5)]
    assert tops == sorted(set(tops))
    context.close()


def test_what_it_tells_is_the_studys(glyph_study: Study) -> None:
    neuron = glyph_study.neuron(CHANNEL)
    first, second = alike(neuron)
    labels = neuron.virtual.labels
    assert (labels[first], labels[second]) == (0, 1)
    apart = np.abs(neuron.score[labels == 0][:, None] - neuron.score[labels == 1])
    assert abs(neuron.score[first] - neuron.score[second]) == apart.min()
    text = table(neuron)
    assert text.count("<tr>") == 1 + len(set(neuron.names))
    cells = [int(cell.partition("<")[0] or 0) for cell in text.split("<td>")[2:]]
    assert sum(cells) == len(neuron.names)
    shown = tour(glyph_study, CHANNEL, WORDS).data
    assert shown.count("<img ") == 2 * len(neuron.names)
    assert shown.count("data:image/webp") == 2 * len(neuron.names) + 2  # it needs no files where there is no book
    for rank in (first, second):
        assert f">{neuron.score[rank]:.1f}</tspan>" in shown


def test_weak_images_of_unknown_labels_by_the_same_route(glyph_study: Study) -> None:
    neuron = glyph_study.neuron(CHANNEL)
    vectors, names = np.zeros_like(neuron.vectors), [""] * len(neuron.vectors)
    vectors[:, :3] = [0.5, 0.3, 0.2]
    known = {name: getattr(neuron, name) for name in ("study", "channel", "virtual", "members")}
    weak: Any = SimpleNamespace(**known, score=neuron.score / 1000, vectors=vectors, names=names)
    drawn = routes(weak, str)
    height = float(re.findall(r'viewBox="0 0 \d+ ([\d.]+)"', drawn)[0])
    frames = [(float(top), float(side)) for top, side in re.findall(r'<rect x=\S+ y="(\S+)" width="(\d+)"', drawn)]
    assert len(frames) == 2
    assert all(14 < top < top + side <= height for top, side in frames)  # below the words, and not cut off
    assert ">0.0<" not in drawn
    assert drawn.count(f">{weak.score[alike(weak)[0]]:.2g}<")
    assert '<th scope="row">not known</th>' in table(weak)


def test_what_no_tour_can_show(glyph_study: Study) -> None:
    with pytest.raises(ArgumentError, match="five steps, and there are words for 4"):
        tour(glyph_study, CHANNEL, WORDS[:4])
    with pytest.raises(ArgumentError, match="neuron 22 has one part"):
        tour(glyph_study.replace(n_clusters=1), CHANNEL, WORDS)


def test_the_front_page_has_it() -> None:
    text = (Path(__file__).parents[1] / "book" / "index.md").read_text(encoding="utf-8")
    section = text.partition("\n## Two minutes\n")[2].partition("\n## ")[0]
    assert "tour(\n" in section
    assert "(photographs.md)" in section
