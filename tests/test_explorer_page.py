"""Explorers of an atlas in a browser: their address, their tools, their plane, and that the page stands still."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built import DESK, PHONE, Visit, served
from PIL import Image

from pure_nb import Study
from pure_nb.show import atlas
from pure_nb.show.plane import ACROSS, points_apart, relettered
from pure_nb.show.sheets import UNITS

CHANNELS = [3, 8, 22]

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Two explorers</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="atlas/explorer.css">
<link rel="stylesheet" href="atlas/atlas.css"><script src="atlas/explorer.js" defer></script></head><body><main>
<h1>Two explorers</h1>{}<p id="below">below</p>{}</main></body></html>"""

FIGURE = """<figure class="explorer" data-kind="neuron" data-root="atlas/" data-neurons="3 8 22" data-of="1280"
data-start="8" data-pages="true" data-parts="{}" data-whole="false">
<p class="explorer-words" aria-live="polite"></p></figure>"""


@pytest.fixture(scope="module")
def folder(glyph_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas, and beside it a page with two explorers of it, the second without parts."""
    folder = tmp_path_factory.mktemp("site")
    atlas.write(glyph_study, folder / "atlas", channels=CHANNELS, methods=("circuits", "activations"))
    (folder / "page.html").write_text(PAGE.format(FIGURE.format("true"), FIGURE.format("false")), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield f"{address}/page.html"


def known(folder: Path, channel: int) -> dict[str, Any]:
    """The data of a neuron."""
    text = (folder / f"atlas/data/{channel}.js").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    return loaded


def words(visit: Visit, place: int = 0) -> str:
    return str(visit.page.locator(".explorer-words").nth(place).inner_text())


def reads(visit: Visit, text: str, place: int = 0) -> None:
    """Wait until an explorer says something."""
    visit.page.locator(".explorer-words").nth(place).filter(has_text=text).wait_for()


def address(visit: Visit, ending: str) -> None:
    """Wait until the address ends so."""
    visit.page.wait_for_function("ending => location.href.endsWith(ending)", arg=ending)


def choose(visit: Visit, parts: str) -> None:
    visit.page.locator(f"fieldset input[value='{parts}']").first.click()


def test_a_link_leads_to_what_it_shows(context: Any, url: str) -> None:
    link = f"{url}#1.neuron=22&1.parts=3&1.method=activations&2.neuron=3"
    with Visit(context, link) as visit:
        reads(visit, "Neuron 22, split into 3 parts by activations")
        reads(visit, "Neuron 3", 1)
        choose(visit, "2")
        reads(visit, "split into 2 parts")
        address(visit, "#1.neuron=22&1.parts=2&1.method=activations&2.neuron=3")
        visit.page.go_back()
        reads(visit, "Neuron 22, split into 3 parts by activations")
        visit.page.go_forward()
        reads(visit, "split into 2 parts")
        assert not visit.troubles


def test_a_comparison_is_a_link_too(context: Any, url: str, folder: Path) -> None:
    data = known(folder, 22)
    one, other = (data["parts"][name][1] for name in ("circuits", "activations"))
    apart = sum(a != b for a, b in zip(one, other))
    with Visit(context, f"{url}#1.neuron=22&1.parts=2&1.beside=activations&1.plane=activations") as visit:
        reads(visit, f"; {apart} of 20 images, marked ≠, are in another part by activations")
        assert visit.page.locator(".rows-head").all_inner_texts() == ["by circuits", "by activations"]
        assert visit.page.locator("circle.changed").count() == apart
        with visit.page.expect_download() as download:
            visit.page.get_by_title("download a table").first.click()
        rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
        assert ["AB".index(row["part by activations"]) for row in rows] == [int(own) for own in other]
        assert [[int(row["x"]), int(row["y"])] for row in rows] == data["points"]["activations"]
        visit.page.get_by_label("beside").first.select_option(label="circuits")  # with itself
        reads(visit, "split into 2 parts by circuits; agreement")
        assert visit.page.locator(".rows-head").count() == 0
        assert not visit.troubles


def test_going_back_undoes_step_by_step_to_the_start(context: Any, url: str) -> None:
    with Visit(context, url) as visit:
        reads(visit, "Neuron 8")
        first = words(visit)
        visit.page.get_by_label("next neuron").first.click()
        reads(visit, "Neuron 22")
        address(visit, "#1.neuron=22")
        visit.page.locator(".explorer").nth(1).get_by_label("previous neuron").click()
        reads(visit, "Neuron 3", 1)
        address(visit, "#1.neuron=22&2.neuron=3")
        visit.page.go_back()
        reads(visit, "Neuron 8", 1)
        reads(visit, "Neuron 22")
        visit.page.go_back()
        reads(visit, "Neuron 8")
        assert words(visit) == first
        assert "#" not in visit.page.url


def test_links_to_headings_and_broken_links_harm_nothing(context: Any, url: str) -> None:
    with Visit(context, f"{url}#1.neuron=%E0%A4%A&2.neuron=3") as visit:
        reads(visit, "Neuron 8")
        reads(visit, "Neuron 3", 1)
        assert not visit.troubles
    with Visit(context, url) as visit:
        choose(visit, "2")
        reads(visit, "split into 2 parts")
        address(visit, "#1.parts=2")
        visit.page.evaluate("() => { location.hash = 'below'; }")
        visit.page.wait_for_timeout(200)
        reads(visit, "split into 2 parts")
        visit.page.go_back()
        visit.page.wait_for_timeout(200)
        reads(visit, "split into 2 parts")


def test_an_address_that_nothing_answers_to_is_the_start(context: Any, url: str) -> None:
    with Visit(context, f"{url}#1.neuron=999&1.parts=77&7.neuron=3") as visit:
        reads(visit, "Neuron 8")
        assert not visit.troubles
    with Visit(context, f"{url}#below") as visit:
        reads(visit, "Neuron 8")
        assert visit.page.url.endswith("#below")


def test_labels_say_what_is_given_and_how_many_there_are(context: Any, url: str) -> None:
    with Visit(context, url) as visit:
        reads(visit, "Neuron 8")
        assert "given (2)" in visit.page.locator(".explorer-keys").first.inner_text()  # by the study, of k = 2
        labels = [visit.page.locator(".explorer-picker label").nth(place).inner_text() for place in (0, 1)]
        assert labels == ["neuron, 3 of 1,280", "neuron, 3 of 1,280"]


def test_numbers_and_chance(context: Any, url: str) -> None:
    with Visit(context, url) as visit:
        typed = visit.page.get_by_label("number of the neuron").first
        typed.fill("22")
        typed.press("Enter")
        reads(visit, "Neuron 22")
        typed.fill("4")
        typed.press("Enter")
        assert "3, 8, 22" in typed.evaluate("input => input.validationMessage")
        reads(visit, "Neuron 22")
        seen = set()
        for _ in range(40):
            visit.page.get_by_label("a random neuron").first.click()
            visit.page.wait_for_timeout(20)
            seen.add(words(visit).split(",")[0])
        assert len(seen) == 3


@pytest.mark.parametrize("at", ["disk", "server"])
def test_a_link_is_copied_whole(context: Any, url: str, folder: Path, at: str) -> None:
    own = url if at == "server" else (folder / "page.html").as_uri()
    if at == "server":
        context.grant_permissions(["clipboard-read", "clipboard-write"])
    with Visit(context, own) as visit:
        choose(visit, "3")
        visit.page.get_by_title("copy a link").first.click()
        visit.page.get_by_text("copied").wait_for()
        field = visit.page.get_by_label("number of the neuron").first
        field.evaluate("input => { input.type = 'text'; input.value = ''; input.focus(); }")
        visit.page.keyboard.press("Control+V")
        others = "1.method=circuits&1.beside=none&1.plane=the%20same%20method&1.show=what%20it%20looks%20at"
        others += "&1.heatmap=on"
        assert field.input_value() == f"{own}#1.neuron=8&1.parts=3&{others}"


def test_the_table_is_what_is_known(context: Any, url: str, folder: Path, glyph_study: Study) -> None:
    with Visit(context, f"{url}#1.neuron=22&1.parts=3") as visit:
        reads(visit, "split into 3 parts")
        with visit.page.expect_download() as download:
            visit.page.get_by_title("download a table").first.click()
        text = Path(download.value.path()).read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    neuron = glyph_study.neuron(22)
    assert download.value.suggested_filename == "neuron-22.csv"
    assert [int(row["image"]) for row in rows] == neuron.sample.tolist()
    assert [float(row["activation"]) for row in rows] == pytest.approx(neuron.score, rel=1e-3)
    assert [row["name"] for row in rows] == neuron.names
    labels = known(folder, 22)["parts"]["circuits"][2]
    assert [row["part"] for row in rows] == ["ABC"[int(own)] for own in labels]


def downloaded(visit: Visit) -> Any:
    """The picture of what is shown, and its first image."""
    with visit.page.expect_download() as download:
        visit.page.get_by_title("download a picture").first.click()
    with Image.open(download.value.path()) as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    place = """() => {
        const view = document.querySelector('.explorer-view').getBoundingClientRect();
        const box = document.querySelector('.tiles .tile').getBoundingClientRect();
        return [box.top - view.top, box.left - view.left, box.width].map(at => Math.round(2 * at));
    }"""
    top, left, side = visit.page.evaluate(place)
    return picture, picture[top + 60 : top + 60 + side, left : left + side]


@pytest.mark.parametrize("show", ["what it looks at", "whole pictures"])
def test_the_picture_shows_the_images_in_true_colour(
    context: Any, url: str, folder: Path, glyph_study: Study, show: str
) -> None:
    with Visit(context, f"{url}#1.neuron=22&1.heatmap=off&1.show={show}") as visit:
        reads(visit, "Neuron 22")
        picture, shown = downloaded(visit)
        assert not visit.page.locator(".tiles .tile svg").first.is_visible()
        visit.page.locator("fieldset input[value='on']").first.click()
        visit.page.locator(".tiles .tile svg").first.wait_for()
        address(visit, f"#1.neuron=22{'&1.show=whole%20pictures' * (show != 'what it looks at')}")
        _, dimmed = downloaded(visit)
    told, side = known(folder, 22), len(shown)
    sheet, cell, *cut = told["cuts"][0]
    file, columns, _ = told["sheets"][sheet]
    left, top, width = told["whole"] if show == "whole pictures" else cut[:3]
    with Image.open(folder / "atlas" / file) as image:
        fine = image.width / columns / UNITS
        x, y = fine * (UNITS * (cell % columns) + left), fine * (UNITS * (cell // columns) + top)
        box = (x, y, x + fine * width, y + fine * width)
        expected = np.asarray(image.convert("RGB").resize((side, side), box=box)).astype(int)
    assert np.abs(shown - expected).mean() < 6
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    view = glyph_study.neuron(22).views([0])[0]
    assert np.abs(dimmed - view.highlighted(side, crop=show != "whole pictures")).mean() < 12


def test_a_picture_of_a_page_from_the_disk_is_refused_in_words(context: Any, folder: Path) -> None:
    with Visit(context, (folder / "page.html").as_uri()) as visit:
        reads(visit, "Neuron 8")
        visit.page.get_by_title("download a picture").first.click()
        reads(visit, "it does from a server")


def test_a_name_with_a_comma_is_one_name(context: Any, url: str, folder: Path) -> None:
    data = known(folder, 22)
    data["names"] = [f"{name}, a glyph" for name in data["names"]]
    script = f"pureNb.neuron({json.dumps(data)});"
    context.route("**/data/22.js", lambda route: route.fulfill(content_type="text/javascript", body=script))
    with Visit(context, f"{url}#1.neuron=22") as visit:
        reads(visit, "Neuron 22")
        whole = visit.page.locator(".row-text").first
        count = (whole.get_attribute("title") or "").count("%")
        assert count > 3
        assert whole.inner_text().endswith(f"%, {whole.get_attribute('title').split('%, ')[1]}% and {count - 2} more")


@pytest.mark.parametrize(("viewport", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_the_page_stands_still(browser: Any, url: str, viewport: dict[str, int], scheme: str) -> None:
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    top = "() => document.getElementById('below').getBoundingClientRect().top + scrollY"
    with Visit(context, url) as visit:
        tops = set()
        for channel in map(str, CHANNELS):
            typed = visit.page.get_by_label("number of the neuron").first
            typed.fill(channel)
            typed.press("Enter")
            for parts in ("auto", "2", "3", "4", "5"):
                choose(visit, parts)
                reads(visit, f"Neuron {channel}")
                tops.add(visit.page.evaluate(top))
        assert len(tops) == 1
        visit.page.evaluate("() => { document.querySelector('.explorer-words').scrollIntoView({block: 'center'}); }")
        assert visit.page.locator(".explorer-picker").first.bounding_box()["y"] == 0, "the picker does not stay"
        wide = visit.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, "the page scrolls sideways"
        if viewport is PHONE:
            small = """() => [...document.querySelectorAll(':is(.explorer-controls, .explorer-picker) *')]
                .filter(one => one.matches('button, select, input, span'))
                .filter(one => one.checkVisibility({opacityProperty: true}) && !one.matches('.explorer-value'))
                .map(one => one.getBoundingClientRect().height).filter(height => height < 44)"""
            assert visit.page.evaluate(small) == []
            # The button that shows all of a row answers to a finger beside it.
            more = visit.page.locator(".row-more").first
            more.scroll_into_view_if_needed()
            at = more.bounding_box()
            for up in (-21, 21):
                place = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2 + up
                assert visit.page.evaluate("([x, y]) => document.elementFromPoint(x, y).className", place) == "row-more"
    context.close()


def test_points_are_reached_by_keyboard_and_by_tap(browser: Any, url: str, folder: Path) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True)
    data = known(folder, 22)
    with Visit(context, f"{url}#1.neuron=22&1.parts=2") as visit:
        reads(visit, "split into 2 parts")
        plane = visit.page.locator(".plane")
        plane.focus()
        for key, rank in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowLeft", 19)):
            plane.press(key)
            told = plane.get_attribute("aria-valuetext")
            part = "AB"[int(data["parts"]["circuits"][1][rank])]
            assert told == (
                f"rank {rank + 1}, activation {data['activation'][rank]:g}, {data['names'][data['label'][rank]]}, "
                f"part {part}, image {data['sample'][rank]}"
            )
            assert visit.page.locator(".peek").inner_text() == told
            assert visit.page.locator("circle.marked").get_attribute("data-rank") == str(rank)
        visit.page.locator("circle[data-rank='7']").tap()
        assert visit.page.locator(".peek").inner_text().startswith("rank 8,")
    context.close()


def test_an_image_is_enlarged(context: Any, url: str) -> None:
    with Visit(context, f"{url}#1.neuron=22") as visit:
        reads(visit, "Neuron 22")
        first = visit.page.locator(".tiles .tile").first
        first.focus()
        first.press("ArrowRight")
        visit.page.keyboard.press("Enter")
        dialog = visit.page.locator("dialog[open]")
        assert dialog.inner_text().startswith("rank 2,")
        visit.page.keyboard.press("ArrowRight")
        assert dialog.inner_text().startswith("rank 3,")
        assert dialog.locator(".tile").first.bounding_box()["width"] > 250
        switch = dialog.get_by_title("show what the neuron looks at")
        for pressed in ("false", "true"):
            switch.click()
            assert switch.get_attribute("aria-pressed") == pressed
            assert dialog.locator(".tile svg").first.is_visible() == (pressed == "true")
        following = dialog.get_by_label("next image")
        following.focus()
        visit.page.keyboard.press("Enter")
        visit.page.keyboard.press("Enter")
        assert dialog.inner_text().startswith("rank 5,")
        visit.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
        assert not visit.troubles


def test_pictures_of_parts_hide_no_point(context: Any, url: str) -> None:
    inside = """() => [...document.querySelectorAll('circle')].filter(point => {
        const at = point.getBoundingClientRect(), x = at.left + at.width / 2, y = at.top + at.height / 2;
        return [...document.querySelectorAll('.thumb')].some(thumb => {
            const box = thumb.getBoundingClientRect();
            return x > box.left && x < box.right && y > box.top && y < box.bottom;
        });
    }).length"""
    with Visit(context, url) as visit:
        for parts, count in (("2", 2), ("5", 5)):
            choose(visit, parts)
            reads(visit, f"split into {parts} parts")
            assert visit.page.locator(".thumb").count() == count
            assert visit.page.evaluate(inside) == 0


def test_points_are_apart_and_near_where_they_were() -> None:
    draw = np.random.default_rng(0)
    heaps = np.concatenate([draw.normal(0, 0.1, (60, 2)), draw.normal(4, 0.1, (39, 2)), [[9, 9]]])
    apart = points_apart(heaps)
    assert apart.min() >= 0
    assert apart.max() <= 1000
    gap = np.linalg.norm(apart[:, None] - apart[None], axis=-1)[np.triu_indices(100, 1)]
    assert gap.min() > ACROSS - 2  # whole numbers
    # Heaps are still heaps, one lower left and one nearer the middle, and what stood alone has not moved.
    first, second = apart[:60].mean(axis=0), apart[60:99].mean(axis=0)
    far = np.linalg.norm(apart[:99, None] - np.stack([first, second]), axis=-1)
    assert (far.argmin(axis=1) == np.arange(99) // 60).all()
    assert first[0] < second[0] < 600
    assert first[1] > second[1] > 400
    assert apart[99].tolist() == [1000, 0]


@pytest.mark.parametrize("n", [1, 2, 30])
def test_points_at_one_place_are_spread(n: int) -> None:
    apart = points_apart(np.zeros((n, 2)))
    assert apart.shape == (n, 2)
    assert len(np.unique(apart, axis=0)) == n


@pytest.mark.parametrize(("k", "own_k"), [(2, 2), (4, 4), (3, 5), (5, 3)])
def test_parts_are_matched_as_well_as_they_can_be(k: int, own_k: int) -> None:
    draw = np.random.default_rng(k)
    labels, own = draw.integers(-1, k, 60), draw.integers(-1, own_k, 60)
    found = relettered(labels, own)
    assert ((found == -1) == (labels == -1)).all()
    for part in range(k):
        assert len(np.unique(found[labels == part])) == 1, "a part is still one part"
    assert len(np.unique(found[found >= 0])) == k
    both = (labels >= 0) & (own >= 0)
    most = max(int((np.array(order)[labels[both]] == own[both]).sum()) for order in permutations(range(max(k, own_k))))
    assert int((found[both] == own[both]).sum()) == most
