"""Figures of the book in two variants: both are drawn, both are on the page, and one is shown."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from built import CHAPTERS, ROOT, SITE
from matplotlib.colors import to_hex
from PIL import Image

from pure_nb.figures.colours import luminance
from pure_nb.show import widgets

themes = pytest.importorskip("two_themes")
sys.path.insert(0, str(ROOT / "book" / "_ext"))
lighter = pytest.importorskip("bookext.lighter")


@pytest.fixture
def drawn() -> Any:
    """Axes with a curve and a title, and a sheet of pictures with a gap between them and a word on one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(4, 2))
    left.plot([0, 1], color="#0173b2")
    left.plot([1, 0], "o-", color="0.2")
    left.set_title("what is shown", color="#00004a")
    sheet = np.full((40, 90, 3), 90, np.uint8)
    sheet[:, 40:50] = 255
    right.imshow(sheet)
    right.text(20, 20, "on it", color="white")
    right.text(45, 20, "|", color="black", ha="center")
    right.axis("off")
    return figure


def colours(figure: Any) -> list[str]:
    left, right = figure.axes
    shown = (left.title, left.xaxis.label, left.spines["left"], left.lines[0], right.texts[0])
    return [to_hex(one.get_edgecolor() if one is shown[2] else one.get_color()) for one in shown]


def test_the_dark_variant_can_be_read_and_the_figure_stays_as_it_was(drawn: Any) -> None:
    before, sheet = colours(drawn), drawn.axes[1].images[0].get_array()
    with themes.darkened(drawn):
        title, label, spine, curve, word = colours(drawn)
        assert all(contrast(one) >= themes.TEXT for one in (title, label, spine))
        assert (curve, word) == ("#0173b2", "#ffffff")  # seen on either ground, and on a picture
        assert contrast(to_hex(drawn.axes[1].texts[1].get_color())) >= themes.TEXT  # between the pictures
        dots = drawn.axes[0].lines[1]
        assert to_hex(dots.get_markerfacecolor()) == to_hex(dots.get_color())
        assert contrast(to_hex(dots.get_color())) >= themes.TEXT
        buffer = BytesIO()
        drawn.savefig(buffer, facecolor="none")
        alpha = drawn.axes[1].images[0].get_array()[..., 3]
        assert (alpha[:, 40:50] == 0).all()
        assert (alpha[:, :40] == 255).all()
    assert colours(drawn) == before
    assert drawn.axes[1].images[0].get_array().shape == sheet.shape
    with Image.open(buffer) as image:
        assert image.getpixel((1, 1)) == (*image.getpixel((1, 1))[:3], 0)  # no card


def test_the_translucent_is_seen_and_a_box_behind_text_is_dark(drawn: Any) -> None:
    dots = drawn.axes[0].scatter([0, 1], [0, 1], color="#0173b2", alpha=0.36)
    boxed = drawn.axes[0].text(0.2, 0.2, "boxed", bbox={"facecolor": "white"})
    faint, ink = dots.get_facecolor()[0], to_hex(boxed.get_color())
    with themes.darkened(drawn):
        assert dots.get_facecolor()[0][3] == pytest.approx(0.6)
        assert contrast(to_hex(boxed.get_color())) >= themes.TEXT
        assert contrast(to_hex(boxed.get_bbox_patch().get_facecolor())) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(dots.get_facecolor()[0], faint)
    assert (to_hex(boxed.get_color()), to_hex(boxed.get_bbox_patch().get_facecolor())) == (ink, "#ffffff")


def contrast(colour: str) -> float:
    return (luminance(colour) + 0.05) / (luminance(to_hex(themes.GROUND)) + 0.05)


def test_a_kernel_keeps_both(drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(themes.pylabtools, "retina_figure", themes.pylabtools.retina_figure)
    monkeypatch.setattr(widgets, "THEMES", {**widgets.THEMES})
    themes.keep_both(tmp_path / "dark")
    shown, size = themes.pylabtools.retina_figure(drawn)
    (tmp_path / "_images").mkdir()
    name = hashlib.sha256(shown).hexdigest()  # as MyST-NB does
    (tmp_path / "_images" / f"{name}.png").write_bytes(shown)
    assert lighter.with_dark(tmp_path / "_images", tmp_path / "dark") == {name}
    light, dark = (Image.open(tmp_path / "_images" / f"{name}{end}.png") for end in ("", "-dark"))
    assert light.size == dark.size
    assert (size["width"], size["height"]) == (light.width // 2, light.height // 2)
    good = dark.tobytes()
    for old in (tmp_path / "dark" / f"{name}.png", tmp_path / "_images" / f"{name}-dark.png"):
        old.write_bytes(b"cut, or as it was drawn before")
    themes.pylabtools.retina_figure(drawn)
    lighter.with_dark(tmp_path / "_images", tmp_path / "dark")
    with Image.open(tmp_path / "_images" / f"{name}-dark.png") as again:
        assert again.tobytes() == good
    monkeypatch.setenv(widgets.BOOK, str(tmp_path))
    slider = widgets.explorer(lambda value: drawn, ["first"], name="both").data
    light, dark = re.findall(r'<img class="on-(light|dark)" src="\.\./(explorers/both/[^"]+)" width', slider)
    assert (light[0], dark[0]) == ("light", "dark")
    alpha = [np.asarray(Image.open(tmp_path / file).convert("RGBA"))[1, 1, 3] for _, file in (light, dark)]
    assert alpha == [255, 0]


@pytest.mark.parametrize("dark", [True, False])
def test_the_page_has_both_and_loads_them_late(tmp_path: Path, dark: bool) -> None:
    name = "0" * 64
    Image.new("RGB", (400, 200)).save(tmp_path / f"{name}.png")
    page = f'<img alt="width: 7" src="../_images/{name}.png" style="width: 200px; height: 100px;" />\n'
    known = {name} if dark else set()
    for _ in range(2):  # a page that is not written again stays as it is
        page = lighter.FIGURE.sub(lambda found: lighter.figure(found, tmp_path, known), page)
    assert page.count("<img") == page.count('loading="lazy"') == page.count('width="200" height="100"') == 1 + dark
    assert page.count(f"_images/{name}.png") == 1
    assert page.count(f'class="on-dark" alt="width: 7" src="../_images/{name}-dark.png"') == dark


@pytest.fixture
def visit(browser: Any) -> Callable[..., Any]:
    def opened(page: str, scheme: str) -> Any:
        shown = browser.new_page(color_scheme=scheme)
        shown.goto((SITE / page).as_uri(), wait_until="load")
        return shown

    return opened


@pytest.mark.book
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_of_the_two_is_shown_and_paper_has_the_light_one(visit: Callable[..., Any], scheme: str) -> None:
    page = visit("book/circuits.html", scheme)
    count = """theme => [...document.querySelectorAll(`.cell_output img.on-${theme}`)]
        .map(image => getComputedStyle(image).display !== 'none')"""
    other = {"light": "dark", "dark": "light"}[scheme]
    assert len(page.evaluate(count, scheme)) >= 3
    assert all(page.evaluate(count, scheme))
    assert not any(page.evaluate(count, other))
    page.emulate_media(media="print")
    assert all(page.evaluate(count, "light"))
    assert not any(page.evaluate(count, "dark"))


@pytest.mark.book
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_other_of_the_two_is_not_loaded(browser: Any, scheme: str) -> None:
    page, asked = browser.new_page(color_scheme=scheme), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((SITE / "book/virtual-neurons.html").as_uri(), wait_until="networkidle")
    sources = "theme => [...document.querySelectorAll(`.cell_output img.on-${theme}`)].map(image => image.src)"
    assert {*asked} & {*page.evaluate(sources, scheme)}
    assert not {*asked} & {*page.evaluate(sources, {"light": "dark", "dark": "light"}[scheme])}


@pytest.mark.book
@pytest.mark.parametrize("page", CHAPTERS)
def test_each_figure_of_the_book_has_both(page: str) -> None:
    """And a size, so that nothing jumps when it loads."""
    text = (SITE / page).read_text(encoding="utf-8")
    assert text.count('class="on-light"') == text.count('class="on-dark"')
    for found in re.findall(r"<img [^>]*_images/[0-9a-f]{64}[^>]*>", text):
        assert 'class="on-' in found
        assert 'loading="lazy"' in found
