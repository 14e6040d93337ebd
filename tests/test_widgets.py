"""Explorers: alive with a kernel, and files beside a script without one (which tests/test_browser.py moves)."""

from __future__ import annotations

import io
import json
import re
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
from pure_nb.show import live
from pure_nb.show.facts import Atlas
from pure_nb.show.live import LiveExplorer
from pure_nb.show.pictures import alone
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


class Reader:
    """Somebody before a live explorer: what the widget tells, and what is wanted of it.

    tests/test_live_explorer.py has a browser for that.
    """

    def __init__(self, widget: Any) -> None:
        self.widget, self.known, self.problem, self.order = widget, {}, "", []
        widget.send = self.take

    def take(self, content: dict[str, Any], buffers: Any = ()) -> None:
        self.problem = content.get("problem", "")
        self.order.append(content["neuron"])
        own = self.known.setdefault((content["layer"], content["neuron"]), {"pictures": {}})
        for name, value in content.get("data", {}).items():
            own[name] = own.get(name, {}) | value if isinstance(value, dict) else value
        own["pictures"] |= dict(zip(content.get("files", ()), buffers))

    def ask(self, neuron: int | None = None, layer: str | None = None, methods: Any = ("circuits",)) -> None:
        """What the browser does when one of the widget's traits changes."""
        self.widget.neuron = self.widget.neuron if neuron is None else neuron
        self.widget.layer = layer or self.widget.layer
        known = self.known.get((self.widget.layer, self.widget.neuron), {}).get("done")
        asked = {"layer": self.widget.layer, "neuron": self.widget.neuron, "methods": list(methods)}
        self.widget._handle_custom_msg(asked | {"has": known or [], "pictures": known is not None}, [])

    def look(self, *which: Any, **how: Any) -> dict[str, Any]:
        """What is known of a neuron as soon as nothing is computed any more."""
        self.ask(*which, **how)
        thread = self.widget._thread
        if thread is not None:
            thread.join(60)
            assert not thread.is_alive()
        return self.known.get((self.widget.layer, self.widget.neuron), {})


def same_parts(labels: str, expected: Any) -> bool:
    """Whether two divisions are the same, whatever the parts are called."""
    pairs = set(zip(labels, np.asarray(expected).tolist()))
    return len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})


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
    widget = explore(glyph_study, 22, caption="look")
    reader = Reader(widget)
    alive = np.flatnonzero(glyph_study.references.alive)
    assert widget._listed == {"layer": "layer4", "neurons": alive.tolist(), "of": 32}
    assert (widget.layer, widget.neuron, widget.method, widget.parts) == ("layer4", 22, "circuits", 0)
    assert (widget._fixed["caption"], widget._fixed["split"]) == ("look", True)
    assert widget._fixed["layers"][0] == "layer4"
    assert "layer3" in widget._fixed["layers"]
    found = reader.look()
    neuron = glyph_study.neuron(22)
    assert same_parts(found["parts"]["circuits"][0], neuron.virtual.labels)
    assert [found["names"][label] for label in found["label"]] == neuron.names
    assert same_parts(found["parts"]["circuits"][2], neuron.with_clusters(neuron.vectors, 3).virtual.labels)
    assert set(found["points"]) == {"circuits"}  # the others only when they are asked for
    found = reader.look(methods=["activations"])
    made = neuron.with_clusters(glyph_study.activation_vectors["activation"][22], 3)
    assert same_parts(found["parts"]["activations"][2], made.virtual.labels)
    assert len(found["points"]["activations"]) == 20
    ((file, *_),) = found["sheets"]
    assert np.asarray(Image.open(io.BytesIO(found["pictures"][file]))).std() > 5
    assert len(found["cuts"]) == 20
    assert found["pictures"][file] not in reader.look(3)["pictures"].values()
    lower = glyph_study.replace(target="layer3", lower="nearest")
    found = reader.look(layer="layer3")
    alive = np.flatnonzero(lower.references.alive)
    assert widget._listed == {"layer": "layer3", "neurons": alive.tolist(), "of": 64}
    assert found["sample"] == lower.neuron(widget.neuron).sample.tolist()
    made = lower.neuron(3).with_clusters(lower.neuron(3).vectors, 3)
    assert same_parts(found["parts"]["circuits"][2], made.virtual.labels)


def test_few_pictures_come_first(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, tiles = Reader(explore(glyph_study, 22)), []
    take = reader.take

    def noted(content: dict[str, Any], buffers: Any = ()) -> None:
        tiles.append((content["neuron"], content["data"].get("tiles"), len(content["data"].get("cuts", []))))
        take(content, buffers)

    reader.widget.send = noted
    monkeypatch.setattr(live, "FIRST", 6)
    monkeypatch.setattr(live, "TOGETHER", 0)
    reader.look()
    assert [one for one in tiles if one[0] == 22 and one[1]] == [(22, 6, 6), (22, 20, 20)]


def test_who_is_beside_is_fetched_ahead_and_nothing_twice(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, drawn = Reader(explore(glyph_study, 22)), []

    def counted(made: Atlas, channel: int) -> Any:
        drawn.append(channel)
        return alone(made, channel)

    monkeypatch.setattr(live, "alone", counted)
    monkeypatch.setattr(live, "FIRST", 20)
    reader.look()
    assert [*dict.fromkeys(reader.order)] == [22, 23, 21]
    assert drawn == [22, 23, 21]
    del reader.order[:]
    reader.look(23)
    assert set(reader.order) == {24}
    assert drawn == [22, 23, 21, 24]
    assert reader.known["layer4", 24]["done"] == ["circuits"]


def never_run(store: Path | None, **how: Any) -> Study:
    """A study of six neurons, each its own strength, of which nothing is known."""
    study = Study.from_model(plain(), noise(40), "4", "2", n_references=12, progress=False, **how)
    return replace(study, store=None if store is None else Store(store))


@pytest.mark.parametrize("stored", [True, False])
def test_explore_what_was_never_run(
    stored: bool, pairs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a strong neuron alone and those beside it; then all are ranked, and the one that is looked at stays."""
    study = never_run(tmp_path if stored else None)
    widget = explore(study)
    strong = np.argsort(-study.references.score.mean(axis=1)).tolist()
    assert widget._listed["neurons"] == strong
    assert widget.neuron == strong[0]
    assert pairs == []  # before anybody looks
    reader = Reader(widget)
    found = reader.look()
    assert pairs[:12] == 12 * [strong[0]]
    assert set(pairs[12:24]) == {strong[1]}
    ranked = study.neurons["channel"].tolist()
    assert ranked != strong
    assert widget._listed["neurons"] == ranked
    assert widget.neuron == strong[0]
    assert [*dict.fromkeys(reader.order)] == strong[:2]
    assert widget._doing == {}
    assert study.known()[:3] == ["references", "circuits", "virtual"]
    assert same_parts(found["parts"]["circuits"][0], study.virtual[strong[0]].labels)
    del pairs[:]
    reader.look(strong[3])  # of what is there
    assert pairs == []
    expected = study.replace(store=None).neurons
    assert study.neurons["channel"].tolist() == expected["channel"].tolist()
    assert explore(study).neuron == ranked[0]


def test_the_ranking_can_be_stopped_and_goes_on(
    pairs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pure_nb.compute.blocks.BLOCK", 20)
    study = never_run(tmp_path, batch_size=4)
    widget = explore(study)
    reader, look, parts = Reader(widget), LiveExplorer._look, []
    with monkeypatch.context() as patch:

        def clicked(self: LiveExplorer, bar: Any = None) -> None:
            if bar is not None and "ranking" in self._what:
                parts.append(bar.part)
                if bar.done > 40:
                    widget._handle_custom_msg({"stop": True}, [])
            look(self, bar)

        patch.setattr(LiveExplorer, "_look", clicked)
        reader.look()
    assert "stopped" in widget._doing["what"]
    assert parts == sorted(parts)
    assert 0.5 < parts[-1] < 1
    assert not study._is_there("circuits")
    assert reader.look(widget._listed["neurons"][3])["parts"]  # the explorer goes on
    assert not reader.problem
    del pairs[:]
    Reader(explore(study)).look()
    assert study._is_there("virtual")
    assert len(pairs) < 24 + 72 - 20  # those to look at, and what was not finished


def test_who_looks_comes_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranking waits after a piece of its work."""
    monkeypatch.setattr("pure_nb.compute.blocks.BLOCK", 20)
    study = never_run(tmp_path, batch_size=4)
    widget = explore(study)
    reader, look, last = Reader(widget), LiveExplorer._look, widget._listed["neurons"][-1]

    def moved(self: LiveExplorer, bar: Any = None) -> None:
        if bar is not None and "ranking" in self._what and last not in reader.order and widget.neuron != last:
            reader.ask(last)
        elif bar is not None and "ranking" in self._what:
            assert last in reader.order
        look(self, bar)

    monkeypatch.setattr(LiveExplorer, "_look", moved)
    reader.look()
    assert widget.neuron == last
    assert reader.known["4", last]["done"] == ["circuits"]
    assert widget._doing == {}
    assert study._is_there("virtual")


def test_closed_while_somebody_looks_nothing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is looked at nor the ranking that waits for it."""
    monkeypatch.setattr("pure_nb.compute.blocks.BLOCK", 20)
    study = never_run(tmp_path, batch_size=4)
    widget = explore(study)
    reader, look, last = Reader(widget), LiveExplorer._look, widget._listed["neurons"][-1]

    def closed(self: LiveExplorer, bar: Any = None) -> None:
        if bar is not None and "ranking" in self._what and widget.neuron != last:
            reader.ask(last)
        elif widget.neuron == last and f"neuron {last}" in self._what:
            widget.close()
        look(self, bar)

    monkeypatch.setattr(LiveExplorer, "_look", closed)
    reader.look()
    assert "done" not in reader.known.get(("4", last), {})
    assert not study._is_there("circuits")


def test_who_looks_elsewhere_waits_for_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(explore(never_run(tmp_path), 0))
    look = LiveExplorer._look

    def moved(self: LiveExplorer, bar: Any = None) -> None:
        if reader.widget.neuron == 0:
            reader.ask(5)
        look(self, bar)

    monkeypatch.setattr(LiveExplorer, "_look", moved)
    reader.look()
    assert reader.known["4", 5]["done"] == ["circuits"]
    assert "done" not in reader.known.get(("4", 0), {})


def test_the_ranking_runs_a_copy_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at a neuron meanwhile, or runs a cell, puts the rules of LRP into another."""
    study, models = never_run(tmp_path), {}
    widget = explore(study)
    propagate = circuits.propagate

    def noted(model: Any, *rest: Any, **how: Any) -> Any:
        models.setdefault("ranking" in widget._what, set()).add(id(model))
        return propagate(model, *rest, **how)

    monkeypatch.setattr(circuits, "propagate", noted)
    Reader(widget).look()
    assert set(models) == {True, False}
    assert not models[True] & models[False]
    assert id(study.model) not in models[True] | models[False]


def test_a_network_that_cannot_be_copied_is_not_ranked(tmp_path: Path) -> None:
    study = never_run(tmp_path)
    study.model[4].weight = torch.nn.Parameter(study.model[4].weight.data)
    study.model.mine = torch.ones(2, requires_grad=True) * 2  # of which torch makes no copy
    widget = explore(study)
    assert "can't be copied" in widget._doing["what"]
    assert Reader(widget).look()["done"] == ["circuits"]
    assert not study._is_there("circuits")


def test_explore_only_the_references(glyph_study: Study) -> None:
    first = glyph_study.neurons["channel"].iloc[0]
    widget = explore(glyph_study, parts=False)
    assert widget.neuron == first
    assert not widget._fixed["split"]
    found = Reader(widget).look(methods=[])
    assert found["sample"] == glyph_study.neuron(widget.neuron).sample.tolist()
    assert "parts" not in found
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
    reader = Reader(explore(glyph_study, 22))

    def failing(self: Study) -> Any:
        raise ImageError("picture 3 can't be read")

    with monkeypatch.context() as patch:
        patch.setattr(Study, "references", property(failing))
        reader.look(layer="layer3")
        assert reader.problem == "picture 3 can't be read"
    with monkeypatch.context() as patch:
        dead = replace(glyph_study.references, peak=np.zeros_like(glyph_study.references.peak))
        patch.setattr(Study, "references", property(lambda self: dead))
        reader.look(layer="layer2")
        assert reader.problem == "no image activates any channel of 'layer2'"
    assert reader.look(22, "layer4")["done"] == ["circuits"]
    assert not reader.problem


def test_a_fault_is_said_with_its_kind(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise KeyError("boom")

    reader = Reader(explore(glyph_study, 22))
    monkeypatch.setattr(Atlas, "split", failing)
    reader.look()
    assert reader.problem == "KeyError: 'boom'"


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
        assert Reader(explore(study)).look()["done"] == ["circuits"]


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
