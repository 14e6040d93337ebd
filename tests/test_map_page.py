"""The map of an atlas and its search by meaning, in a browser: by mouse, by keyboard, with and without WebGL."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from built import DESK, PHONE, Visit
from PIL import Image
from small import CHANNELS, JUDGE, WORDS
from test_browser import AXE, OVERFLOWING, VIOLATIONS
from test_searching import told

from pure_nb import Study
from pure_nb.methods.virtual import part_name

WITHOUT = """const real = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
    return kind.startsWith('webgl') ? null : real.call(this, kind, ...rest);
};"""
"""A browser that has no WebGL."""


@pytest.fixture(params=[True, False], ids=["webgl", "canvas"])
def context(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(viewport=DESK)
    if not request.param:
        context.add_init_script(WITHOUT)
    yield context
    context.close()


class Shown:
    """A map that is open in a browser."""

    def __init__(self, visit: Visit, map_site: Path) -> None:
        self.page = visit.page
        self.canvas = visit.page.locator("#map canvas")
        visit.page.wait_for_function("location.hash.includes('at=')")
        self.box = self.canvas.bounding_box()
        self.places = told(map_site, "map")["layouts"][0]["places"]
        self.reach = told(map_site, "map")["reach"]

    @property
    def view(self) -> tuple[float, float, float]:
        """The middle of what is seen, and pixels for the width of the plane."""
        x, y, scale = map(float, parse_qs(urlsplit(self.page.url).fragment)["at"][0].split(","))
        return x, y, scale * min(self.box["width"], self.box["height"])

    def at(self, place: int) -> tuple[float, float]:
        """Where a part is on the screen."""
        x, y, scale = self.view
        left, top = (self.places[2 * place + axis] / self.reach for axis in (0, 1))
        middle = self.box["x"] + self.box["width"] / 2, self.box["y"] + self.box["height"] / 2
        return middle[0] + (left - x) * scale, middle[1] + (top - y) * scale

    def moved(self) -> None:
        """Wait until what was done is in the address."""
        self.page.wait_for_timeout(400)


def test_mouse(context: Any, map_site: Path) -> None:
    """Drawn where it says; dragged, zoomed under the pointer, a part chosen, some caught by a lasso and taken along."""
    parts = told(map_site, "parts")
    named = [f"{channel} {part_name(part)}" for channel, part in zip(parts["channel"], parts["part"])]
    with Visit(context, (map_site / "map.html").as_uri()) as visit:
        shown, page = Shown(visit, map_site), visit.page
        page.add_style_tag(content=".near { visibility: hidden }")  # or the larger pictures hide what is drawn
        own = min(200, shown.view[2] * told(map_site, "map")["layouts"][0]["side"])  # pixels of a picture
        for place in range(len(named)):
            seen = _colour(page, *shown.at(place), 0.3 * own)
            assert seen == pytest.approx(_expected(map_site, place), abs=15)
        x, y, scale = shown.view
        page.mouse.move(*(start := (shown.box["x"] + 300, shown.box["y"] + 200)))
        page.mouse.down()
        page.mouse.move(start[0] + 90, start[1] - 60, steps=5)
        page.mouse.up()
        shown.moved()
        # The first 3 pixels may be a tremble.
        assert shown.view == pytest.approx((x - 90 / scale, y + 60 / scale, scale), abs=20 / scale)
        before = shown.at(0)
        page.mouse.move(*before)
        page.mouse.wheel(0, -250)
        shown.moved()
        assert shown.view[2] == pytest.approx(2 * scale, rel=0.01)
        assert shown.at(0) == pytest.approx(before, abs=1.5)
        page.mouse.click(*shown.at(0))
        page.locator("#chosen").get_by_role("link", name=named[0]).first.wait_for()
        others = page.locator("#chosen ol").nth(1).locator("b").all_inner_texts()
        assert others == [named[other] for other in told(map_site, "map")["alike"][0][::3]]
        assert f"part={named[0].replace(' ', '')}" in page.url
        page.get_by_role("button", name="all").click()
        page.get_by_role("button", name="lasso").click()
        shown.moved()
        left, top = shown.at(1)
        page.mouse.move(left - 25, top - 25)
        page.mouse.down()
        for corner in ((25, -25), (25, 25), (-25, 25)):
            page.mouse.move(left + corner[0], top + corner[1], steps=2)
        page.mouse.up()
        near = [np.abs(np.subtract(shown.at(place), (left, top))).max() < 25 for place in range(len(named))]
        caught = np.flatnonzero(near).tolist()
        rows = page.locator("#chosen tbody tr")
        assert [" ".join(row.split("\t")[:2]) for row in rows.all_inner_texts()] == [named[place] for place in caught]
        with page.expect_download() as download:
            page.get_by_role("button", name="CSV").click()
        with open(download.value.path(), encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        assert [(row["neuron"], row["part"], row["images"]) for row in table] == [
            (*named[place].split(), str(parts["size"][place])) for place in caught
        ]
        assert not visit.troubles


def _colour(page: Any, left: float, top: float, side: float) -> Any:
    """The mean colour of what is seen around a place."""
    raw = page.screenshot(clip={"x": left - side / 2, "y": top - side / 2, "width": side, "height": side})
    with Image.open(BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB")).mean(axis=(0, 1))


def _expected(site: Path, place: int) -> Any:
    """The mean colour of the middle of a part's picture."""
    columns = told(site, "parts")["columns"]
    with Image.open(site / "parts.webp") as image:
        sheet = np.asarray(image.convert("RGB"))
    side = sheet.shape[1] // columns
    top, left = (side * number + round(0.35 * side) for number in divmod(place, columns))
    return sheet[top : top + round(0.3 * side), left : left + round(0.3 * side)].mean(axis=(0, 1))


def test_keyboard(context: Any, map_site: Path) -> None:
    with Visit(context, (map_site / "map.html").as_uri()) as visit:
        shown, page = Shown(visit, map_site), visit.page
        x, y, scale = shown.view
        shown.canvas.focus()
        page.keyboard.press("+")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        shown.moved()
        step = 60 / scale / 1.5
        assert shown.view == pytest.approx((x + step, y - step, 1.5 * scale), abs=0.01, rel=0.01)
        middle = shown.box["x"] + shown.box["width"] / 2, shown.box["y"] + shown.box["height"] / 2
        far = [sum((a - b) ** 2 for a, b in zip(shown.at(place), middle)) for place in range(6)]
        page.keyboard.press("Tab")
        first = min(range(6), key=far.__getitem__)
        assert page.evaluate("Number(document.activeElement.dataset.place)") == first
        assert page.locator("#mark").is_visible()
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/{told(map_site, 'parts')['channel'][first]}.html")


def test_a_link_leads_to_a_part(context: Any, map_site: Path) -> None:
    with Visit(context, f"{map_site.as_uri()}/map.html#part=22B&colour=score&by=circuits") as visit:
        visit.page.locator("#chosen b", has_text="22 B").first.wait_for()
        assert visit.page.locator("#layout").input_value() == "circuits"
        assert visit.page.locator("#colour").input_value() == "score"
        visit.page.locator(".near span").first.wait_for(state="attached")  # so near that there are larger pictures
        assert not visit.troubles


@pytest.mark.parametrize("size", [DESK, PHONE], ids=str)
def test_all_is_seen_whole(browser: Any, map_site: Path, size: dict[str, int]) -> None:
    """At first no picture is cut off at the edge of the map, and none is named after what all of its neuron is for."""
    context = browser.new_context(viewport=size)
    with Visit(context, (map_site / "map.html").as_uri()) as visit:
        shown = Shown(visit, map_site)
        own = min(200, shown.view[2] * told(map_site, "map")["layouts"][0]["side"])
        for place in range(len(told(map_site, "parts")["channel"])):
            for at, low, room in zip(shown.at(place), "xy", ("width", "height")):
                assert shown.box[low] - 1 <= at - own / 2
                assert at + own / 2 <= shown.box[low] + shown.box[room] + 1
        parts = told(map_site, "parts")
        labels = {f"{c} {part_name(p)}": word for c, p, word in zip(parts["channel"], parts["part"], parts["label"])}
        for line in visit.page.locator("#middle a").all():
            name = line.locator("b").inner_text()
            assert line.inner_text().strip() == f"{name} {labels[name]}".strip()
        assert not visit.troubles
    context.close()


@pytest.mark.parametrize("page", ["index.html", "map.html"])
def test_typing_finds_parts(browser: Any, seen: Study, map_site: Path, page: str) -> None:
    context = browser.new_context(viewport=DESK)
    with Visit(context, (map_site / page).as_uri()) as visit:
        box = visit.page.get_by_label("Search by meaning")
        box.fill("blu")
        visit.page.locator("#word-told", has_text="“blue”").wait_for()
        table = seen.search("blue", JUDGE)
        table = table[table["channel"].isin(CHANNELS)]
        expected = [f"{channel} {part}" for channel, part in zip(table["channel"], table["part"])]
        assert visit.page.locator(".meaning b").all_inner_texts() == expected
        assert visit.page.locator("#vocabulary option").count() == len(WORDS)
        box.fill("umbrella")
        visit.page.locator("#word-told", has_text="None of the 4 words").wait_for()
        assert not visit.page.locator(".meaning b").count()
        if page == "index.html":  # whose table shows all again
            assert visit.page.locator("#neurons tbody th").count() == len(CHANNELS)
            assert visit.page.locator("#only").is_hidden()
        assert not visit.troubles
    context.close()


@pytest.mark.parametrize(("theme", "size"), [("light", DESK), ("dark", DESK), ("light", PHONE)], ids=str)
def test_it_can_be_read_by_all(browser: Any, map_site: Path, theme: str, size: dict[str, int]) -> None:
    context = browser.new_context(viewport=size, color_scheme=theme)
    for name in ("map.html#part=22A", "index.html", "22.html"):
        with Visit(context, f"{map_site.as_uri()}/{name}") as visit:
            if name == "index.html":
                visit.page.get_by_label("Search by meaning").fill("red")
                visit.page.locator(".meaning b").first.wait_for()
            visit.page.add_script_tag(path=AXE)
            assert not visit.page.evaluate(VIOLATIONS, size is DESK)
            if name.startswith("map"):  # whose parts go on beyond its edges, and are cut off there
                assert visit.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            else:
                assert not visit.page.evaluate(OVERFLOWING)
            assert not visit.troubles
    context.close()


def test_fingers(browser: Any, map_site: Path) -> None:
    """Two of them, drawn apart, zoom by as much."""
    context = browser.new_context(viewport=PHONE, has_touch=True)
    with Visit(context, (map_site / "map.html").as_uri()) as visit:
        shown = Shown(visit, map_site)
        scale = shown.view[2]
        shown.canvas.scroll_into_view_if_needed()
        box = shown.canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = context.new_cdp_session(visit.page)
        for kind, apart in (("Start", 40), ("Move", 50), ("Move", 70), ("Move", 80), ("End", None)):
            fingers = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
            touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": fingers})
        shown.moved()
        assert shown.view[2] == pytest.approx(2 * scale, rel=0.1)
    context.close()
