"""Explorers: alive with a kernel, and files beside a script without one (which tests/test_browser.py moves)."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, ImageError
from pure_nb.images.sources import as_images
from pure_nb.methods import circuits
from pure_nb.parameters import Parameters, Run
from pure_nb.show import ranking
from pure_nb.show.facts import Atlas
from pure_nb.show.widgets import BOOK, explore, explorer
from pure_nb.study import Study
from tests.small import noise, plain

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


def finish() -> None:
    """Wait for what runs in the background."""
    for thread in threading.enumerate():
        if thread.name.startswith("ranking"):
            thread.join(60)
            assert not thread.is_alive()


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
    slider, shown, words, _ = box.children
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
    with pytest.raises(ArgumentError, match="an explorer needs at least one value"):
        explorer(draw, [], name="numbers")


def test_the_caption_is_shown() -> None:
    assert explorer(draw, [1], name="numbers", caption="1 < 2").children[-1].value == "<small>1 &lt; 2</small>"


def told(found: HTML) -> dict[str, Any]:
    """What the script of a static explorer reads."""
    script = re.search(r'<script type="application/json">(.*?)</script>', found.data, re.S)
    assert script
    loaded: dict[str, Any] = json.loads(script[1])
    return loaded


def test_static_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    found = explorer(draw, [3, 7, 5], name="numbers", describe=nasty, start=7, caption="what & why")
    assert isinstance(found, HTML)
    assert drawings == [3, 7, 5]
    read = told(found)
    assert read["axes"] == [{"label": "neuron", "values": ["3", "7", "5"], "start": 1}]
    assert read["root"] == "../explorers/numbers/"  # relative, so that the book can lie anywhere, and on a disk
    for value, (file, text) in zip((3, 7, 5), read["pictures"]):
        assert text == nasty(value)
        assert re.fullmatch(rf"{value}-[0-9a-f]{{8}}\.webp", file)
        picture = Image.open(tmp_path / "explorers/numbers" / file)
        assert picture.format == "WEBP"
        assert np.asarray(picture).std() > 5
    assert len(list(tmp_path.rglob("*.webp"))) == 3
    parsed = Images(found.data)
    (image,) = parsed.found  # the first picture is there without a script
    assert image["src"] == read["root"] + read["pictures"][1][0]
    assert image["alt"] == nasty(7)
    assert sorted(parsed.others) == ["div", "figcaption", "figure", "p", "script"]  # no description became markup
    assert "<figcaption>what &amp; why</figcaption>" in found.data
    assert plt.get_fignums() == []


def test_static_pictures_are_named_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    explorer(draw, [3], name="numbers")
    explorer(draw, [3], name="numbers")
    assert len(list(tmp_path.rglob("*.webp"))) == 1

    def other(value: int) -> Figure:
        return draw(value + 1)

    explorer(other, [3], name="numbers")
    assert len(list(tmp_path.rglob("*.webp"))) == 2


def draw_pair(value: int, other: int) -> Figure:
    drawings.append(10 * value + other)
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.bar([0, 1], [value, other])
    return figure


def test_two_live_sliders() -> None:
    box = explorer(draw_pair, [3, 7], name="pairs", others=[2, 4, 5], other="parts", start=7)
    first, second, shown, words, _ = box.children
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
    found = explorer(draw_pair, [3, 7], name="pairs", others=[2, 4, 5], other="parts", start=7)
    read = told(found)
    assert [(axis["label"], axis["values"], axis["start"]) for axis in read["axes"]] == [
        ("neuron", ["3", "7"], 1),
        ("parts", ["2", "4", "5"], 0),
    ]
    # The script finds the picture of places (i, j) at i * 3 + j.
    assert [text for _, text in read["pictures"]] == ["3 2", "3 4", "3 5", "7 2", "7 4", "7 5"]
    assert Images(found.data).found[0]["alt"] == "7 2"
    with pytest.raises(ArgumentError, match="at least one value"):
        explorer(draw_pair, [3], name="pairs", others=[])


def test_where_the_slider_starts() -> None:
    box = explorer(draw, [0.1, 0.5, 0.9], name="starts", start=0.5)
    assert box.children[0].value == "0.5"
    assert drawings == [0.5]
    with pytest.raises(ArgumentError, match=r"0\.7"):
        explorer(draw, [0.1, 0.5], name="starts", start=0.7)


@pytest.mark.slow
def test_explore_alive(glyph_study: Study) -> None:
    layer, neuron, count, method, shown, words, caption = explore(glyph_study, 22, caption="look").children
    alive = np.flatnonzero(glyph_study.references.alive)
    assert neuron.options == tuple(str(channel) for channel in alive)
    assert (layer.value, neuron.value, method.value) == ("layer4", "22", "circuits")
    assert "Neuron 22 of layer4 in 2 parts by circuits: " in words.value
    assert glyph_study.neuron(22).meanings(0).split(",")[0] in words.value
    seen = {shown.value}
    count.index = 2
    assert "in 3 parts by circuits" in words.value
    method.value = "activations"
    assert "in 3 parts by activations" in words.value
    made = glyph_study.neuron(22).with_clusters(glyph_study.activation_vectors["activation"][22], 3)
    assert made.meanings(2) in words.value
    seen |= {shown.value}
    neuron.value = "3"
    seen |= {shown.value}
    assert len(seen) == 3
    layer.value = "layer3"
    assert len(neuron.options) == int(glyph_study.replace(target="layer3", lower="nearest").references.alive.sum())
    assert f"Neuron {neuron.value} of layer3 in 3 parts" in words.value
    assert caption.value == "<small>look</small>"


def never_run(store: Path | None, **how: Any) -> Study:
    """A study of six neurons, each its own strength, of which nothing is known."""
    study = Study.from_model(plain(), noise(40), "4", "2", n_references=12, progress=False, **how)
    return replace(study, store=None if store is None else Store(store))


@pytest.mark.parametrize("stored", [True, False])
def test_explore_what_was_never_run(
    stored: bool, pairs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a strong neuron alone; then all are ranked, and the one that is looked at stays."""
    study = never_run(tmp_path if stored else None)
    with monkeypatch.context() as patch:
        patch.setattr(ranking.Progress, "_run", lambda self: None)
        *_, progress, shown, words, _ = explore(study).children
    strong = np.argsort(-study.references.score.mean(axis=1)).tolist()
    assert progress.children[1].description == "Stop"
    assert f"Neuron {strong[0]} of 4 in " in words.value
    assert pairs == 12 * [strong[0]]
    _, neuron, count, _, progress, shown, words, _ = explore(study).children
    before, drawn = words.value, shown.value
    finish()
    ranked = study.neurons["channel"].tolist()
    assert ranked != strong
    assert [int(option) for option in neuron.options] == ranked
    assert (neuron.value, words.value, shown.value) == (str(strong[0]), before, drawn)
    assert progress.layout.display == "none"
    assert study.known()[:3] == ["references", "circuits", "virtual"]
    del pairs[:]
    count.index = 2  # of what is there
    assert "in 3 parts" in words.value
    assert pairs == []
    expected = study.replace(store=None).neurons
    assert study.neurons["channel"].tolist() == expected["channel"].tolist()
    assert explore(study).children[1].value == str(ranked[0])


def test_the_ranking_can_be_stopped_and_goes_on(
    pairs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pure_nb.compute.blocks.BLOCK", 20)
    study = never_run(tmp_path, batch_size=4)
    look = ranking.Progress._look
    with monkeypatch.context() as patch:

        def clicked(self: ranking.Progress, bar: Any = None) -> None:
            if bar is not None and bar.done > 40:
                self.button.click()
            look(self, bar)

        patch.setattr(ranking.Progress, "_look", clicked)
        _, neuron, *_, progress, _, words, _ = explore(study).children
        finish()
    assert "stopped" in progress.children[2].value
    assert 0.5 < progress.children[0].value < 1
    assert not study._is_there("circuits")
    neuron.index = 3  # the explorer goes on
    assert f"Neuron {neuron.value} of 4" in words.value
    del pairs[:]
    explore(study)
    finish()
    assert study._is_there("virtual")
    assert len(pairs) < 12 + 72 - 20  # a neuron to look at, and what was not finished


def test_who_draws_comes_between() -> None:
    turns, done, stop = ranking.Turns(), [0], threading.Event()

    def work() -> None:
        with turns.turn:
            while not stop.is_set():
                done[0] += 1
                turns.give_way()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    for _ in range(20):
        with turns.drawing():
            before = done[0]
            time.sleep(0.003)
            assert done[0] == before
    stop.set()
    worker.join(30)
    assert not worker.is_alive()
    assert done[0] > 5


def test_the_ranking_runs_a_copy_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever draws meanwhile puts the rules of LRP into the other."""
    study, models = never_run(tmp_path), []
    propagate = circuits.propagate

    def noted(model: Any, *rest: Any, **how: Any) -> Any:
        models.append((threading.current_thread() is threading.main_thread(), model))
        return propagate(model, *rest, **how)

    monkeypatch.setattr(circuits, "propagate", noted)
    explore(study)
    finish()
    assert {main for main, _ in models} == {True, False}
    assert all((model is study.model) == main for main, model in models)


def test_a_network_that_cannot_be_copied_is_not_ranked(tmp_path: Path) -> None:
    study = never_run(tmp_path)
    study.model[4].weight = torch.nn.Parameter(study.model[4].weight.data)
    study.model.mine = torch.ones(2, requires_grad=True) * 2  # of which torch makes no copy
    *_, progress, shown, _, _ = explore(study).children
    assert "can&#x27;t be copied" in progress.children[2].value
    assert shown.value


def test_explore_only_the_references(glyph_study: Study) -> None:
    first = str(glyph_study.neurons["channel"].iloc[0])
    box = explore(glyph_study, parts=False)
    assert [child.description for child in box.children[:2]] == ["layer", "neuron"]
    assert box.children[1].value == first
    with pytest.raises(ArgumentError, match="channel 99"):
        explore(glyph_study, 99)


def test_explore_in_the_book(glyph_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    (tmp_path / "neurons").mkdir()  # where the atlas of the book's own study is being written
    (tmp_path / "neurons/study.txt").write_text(Atlas(glyph_study).identity)
    found = explore(glyph_study, 22, whole=True)
    assert 'data-root="../neurons/"' in found.data
    assert 'data-start="22"' in found.data
    assert 'data-whole="true"' in found.data
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["study.txt"]


def test_explore_another_study_in_the_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    study = Study.from_model(
        plain(), noise(30), "4", "2", n_references=12, n_clusters=2, progress=False, store=tmp_path / "store"
    )
    found = explore(study)
    assert 'data-root="../neurons-mine/"' in found.data
    channels = re.search(r'data-neurons="([\d ]+)"', found.data)
    assert channels
    assert channels[1].split() == [str(c) for c in np.flatnonzero(study.references.alive)]
    assert all((tmp_path / f"neurons-mine/data/{channel}.js").is_file() for channel in channels[1].split())


@pytest.mark.parametrize("problem", [ArgumentError("the sentence"), KeyError("boom")])
def test_what_goes_wrong_in_a_live_explorer_is_said(problem: Exception) -> None:
    """ipywidgets puts what a callback raises into a log: whoever looks at the page would see the old picture."""

    def failing(value: int) -> Figure:
        if value == 7:
            raise problem
        return draw(value)

    box = explorer(failing, [3, 7, 5], name="numbers")
    slider, shown, words, _ = box.children
    if isinstance(problem, ArgumentError):
        slider.index = 1
        assert words.value == "<small>the sentence</small>"
    else:
        with pytest.raises(KeyError):  # a fault of someone's function stays in the log as well
            slider.index = 1
        assert words.value == "<small>KeyError: &#x27;boom&#x27;</small>"
    assert shown.value == b""
    slider.index = 2
    assert words.value == "<small>5</small>"
    assert shown.value


def test_what_goes_wrong_at_another_layer_is_said(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, neuron, _, _, shown, words, _ = explore(glyph_study, 22).children

    def failing(self: Study) -> Any:
        raise ImageError("picture 3 can't be read")

    with monkeypatch.context() as patch:
        patch.setattr(Study, "references", property(failing))
        layer.value = "layer3"
        assert words.value == "<small>picture 3 can&#x27;t be read</small>"
        assert shown.value == b""
    with monkeypatch.context() as patch:
        dead = replace(glyph_study.references, peak=np.zeros_like(glyph_study.references.peak))
        patch.setattr(Study, "references", property(lambda self: dead))
        layer.value = "layer2"
        assert "no image activates any channel of &#x27;layer2&#x27;" in words.value
    layer.value = "layer4"
    neuron.value = "22"
    assert "Neuron 22 of layer4" in words.value


def test_explore_starts_at_a_channel_that_is_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    with torch.no_grad():
        model[4].weight[2] = 0
        model[4].bias[2] = -1
    study = Study.from_model(
        model, noise(30), "4", "2", n_references=12, n_clusters=2, progress=False, store=tmp_path / "store"
    )
    for folder in (None, str(tmp_path / "site")):
        if folder:
            monkeypatch.setenv(BOOK, folder)
        with pytest.raises(ArgumentError, match=r"no image activates channel 2, .* start at 0, 1, 3, 4, 5"):
            explore(study, 2)


class Elsewhere(torch.nn.Module):
    """A network that runs only where it was moved to, as one whose weights are still in main memory does not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.moved = plain(), False

    def to(self, *args: Any, **how: Any) -> Any:
        self.moved = True
        return super().to(*args, **how)

    def forward(self, x: Any) -> Any:
        if not self.moved:
            raise RuntimeError("Expected all tensors to be on the same device")
        return self.inner(x)


def test_explore_in_a_second_session_moves_the_network(tmp_path: Path) -> None:
    """All results are in the store, so that no step has moved it yet."""
    for session in range(2):
        study = Study(
            "mine",
            Elsewhere(),
            as_images(noise(30)),
            Parameters(target="inner.4", lower="inner.2", n_references=12, n_clusters=2),
            Store(tmp_path),
            Run(progress=False),
        )
        assert session == 0 or (study.neurons is not None and not study.model.moved)
        assert "of inner.4" in explore(study).children[-2].value
        finish()


def test_any_value_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOOK, str(tmp_path))
    values = ["a/b", "../c", "CON:?#%", "x" * 300, "A", "a", "é"]
    found = explorer(lambda value: draw(values.index(value) + 1), values, name="words")
    files = [file for file, _ in told(found)["pictures"]]
    assert len({file.lower() for file in files}) == len(values)
    for file in files:
        assert re.fullmatch(r"[\w.-]{1,120}\.webp", file, re.ASCII)
        assert (tmp_path / "explorers" / "words" / file).is_file()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(values)
