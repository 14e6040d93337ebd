"""Explorers: alive with a kernel, and linked in the browser without one."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from ipywidgets.widgets.widget_link import Link
from matplotlib.figure import Figure
from PIL import Image

from pure_nb.study import Study
from pure_nb.widgets import BOOK, URL, explore, explorer

drawings: list[int] = []


def draw(value: int) -> Figure:
    drawings.append(value)
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.bar([0], [value])
    return figure


def nasty(value: int) -> str:
    return f"<script>\"{value}\" & 'more'</script>"


@pytest.fixture(autouse=True)
def fresh() -> None:
    drawings.clear()


def recorded_links(monkeypatch: pytest.MonkeyPatch) -> list[Link]:
    """The links that will be made, as they are."""
    made: list[Link] = []
    init = Link.__init__

    def recording(self: Link, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Link, "__init__", recording)
    return made


class Images(HTMLParser):
    """The attributes of every image, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.others: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append(dict(attrs))
        else:
            self.others.append(tag)


def test_live_slider_changes_the_picture() -> None:
    box = explorer(draw, [3, 7, 5], name="numbers", describe=nasty)
    slider, shown, words = box.children
    assert isinstance(shown, ipywidgets.Image)
    assert slider.options == ("3", "7", "5")
    assert drawings == [3]  # the others only when they are asked for
    pictures = [shown.value]
    for index, value in ((1, 7), (2, 5)):
        slider.index = index
        assert drawings[-1] == value
        pictures.append(shown.value)
        assert words.value == f"<small>&lt;script&gt;&quot;{value}&quot; &amp; &#x27;more&#x27;&lt;/script&gt;</small>"
    slider.index = 0
    assert shown.value == pictures[0]
    assert drawings == [3, 7, 5]  # what was drawn once is kept
    assert len(set(pictures)) == 3
    for picture in pictures:
        opened = Image.open(io.BytesIO(picture))
        assert opened.format == "WEBP"
        assert np.asarray(opened).std() > 5
    assert plt.get_fignums() == []


def test_the_label() -> None:
    assert explorer(draw, [1], name="numbers", label="channel").children[0].description == "channel"


def test_no_values() -> None:
    with pytest.raises(ValueError, match="an explorer needs at least one value"):
        explorer(draw, [], name="numbers")


def test_static_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    box = explorer(draw, [3, 7, 5], name="numbers", describe=nasty)
    slider, stack = box.children
    assert drawings == [3, 7, 5]
    assert isinstance(stack, ipywidgets.Stack)
    assert stack.selected_index == 0 == slider.index
    assert len(stack.children) == 3
    assert URL == "../explorers"  # relative, so that the book can lie anywhere, and be opened from a disk
    files = []
    for value, page in zip((3, 7, 5), stack.children):
        parsed = Images(page.value)
        (image,) = parsed.found
        assert parsed.others == []  # nothing of the description became markup
        assert image["alt"] == nasty(value)
        source = image["src"]
        assert source is not None
        assert re.fullmatch(rf"\.\./explorers/numbers/{value}-[0-9a-f]{{8}}\.webp", source)
        files.append(tmp_path / source.removeprefix(f"{URL}/"))
        assert Image.open(files[-1]).format == "WEBP"
        assert np.asarray(Image.open(files[-1])).std() > 5
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(files)
    assert plt.get_fignums() == []


def test_static_slider_and_stack_are_linked_in_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    made = recorded_links(monkeypatch)
    slider, stack = explorer(draw, [3, 7], name="numbers").children
    (link,) = made
    assert link._model_name == "LinkModel"
    assert link.source == (slider, "index")
    assert link.target == (stack, "selected_index")


def test_static_pictures_are_named_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    explorer(draw, [3], name="numbers")
    explorer(draw, [3], name="numbers")
    assert len(list(tmp_path.rglob("*.webp"))) == 1

    def other(value: int) -> Figure:
        return draw(value + 1)

    explorer(other, [3], name="numbers")
    assert len(list(tmp_path.rglob("*.webp"))) == 2


def test_explore_a_study(glyph_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    chosen = glyph_study.neurons["channel"].tolist()[:2]
    slider, stack = explore(glyph_study, chosen, 2).children
    assert slider.options == tuple(str(channel) for channel in chosen)
    for channel, page in zip(chosen, stack.children):
        (image,) = Images(page.value).found
        neuron = glyph_study.neuron(channel)
        assert f"Neuron {channel} taken apart into 2: " in str(image["alt"])
        assert neuron.meanings(0) in str(image["alt"])
        assert str(image["src"]).startswith("../explorers/glyphs-neurons/")
    assert len(list(tmp_path.rglob("*.webp"))) == 2


def test_explore_leaves_out_dead_neurons(glyph_study: Study) -> None:
    slider, *_ = explore(glyph_study, count=2).children
    alive = np.flatnonzero(glyph_study.references.alive)
    assert slider.options == tuple(str(channel) for channel in alive)


@pytest.mark.parametrize("static", [False, True])
def test_where_the_slider_starts(static: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if static:
        monkeypatch.setenv(BOOK, str(tmp_path))
    box = explorer(draw, [0.1, 0.5, 0.9], name="starts", start=0.5)
    slider, shown = box.children[:2]
    assert slider.value == "0.5"
    if static:
        assert shown.selected_index == 1
    else:
        assert drawings == [0.5]
    with pytest.raises(ValueError, match=r"0\.7"):
        explorer(draw, [0.1, 0.5], name="starts", start=0.7)


def draw_pair(value: int, other: int) -> Figure:
    drawings.append(10 * value + other)
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.bar([0, 1], [value, other])
    return figure


def test_two_live_sliders() -> None:
    box = explorer(draw_pair, [3, 7], name="pairs", others=[2, 4, 5], other="parts", start=7)
    first, second, shown, words = box.children
    assert (first.description, second.description) == ("neuron", "parts")
    assert second.options == ("2", "4", "5")
    assert drawings == [72]
    before = shown.value
    second.index = 2
    first.index = 0
    assert drawings == [72, 75, 35]
    assert words.value == "<small>3 5</small>"
    first.index, second.index = 1, 0
    assert shown.value == before


def test_two_static_sliders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    made = recorded_links(monkeypatch)
    first, second, outer = explorer(draw_pair, [3, 7], name="pairs", others=[2, 4, 5], start=7).children
    assert (outer.selected_index, len(outer.children)) == (0, 3)
    for other, inner in zip((2, 4, 5), outer.children):
        assert inner.selected_index == 1 == first.index
        for value, page in zip((3, 7), inner.children):
            (image,) = Images(page.value).found
            assert image["alt"] == f"{value} {other}"
            assert re.fullmatch(rf"\.\./explorers/pairs/{value}-{other}-[0-9a-f]{{8}}\.webp", image["src"] or "")
    assert {(link.source[0], link.target[0]) for link in made} == {
        (second, outer),
        *((first, inner) for inner in outer.children),
    }
    with pytest.raises(ValueError, match="at least one value"):
        explorer(draw_pair, [3], name="pairs", others=[])
