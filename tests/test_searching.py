"""Search by meaning: parts by words, pictures and each other, against loops over crops; and the map of an atlas."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm
from typer.testing import CliRunner

from pure_nb import Study
from pure_nb.cli import app
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, EmbedderError, ImageError
from pure_nb.figures.render import square_around
from pure_nb.judges.alike import FEWEST, RELIABLE, USUAL, Parts
from pure_nb.methods.virtual import part_name
from pure_nb.show import atlas
from pure_nb.show import map as maps
from pure_nb.show.facts import Atlas
from tests.small import CHANNELS, JUDGE, MUTE, WORDS, colours


def made_up(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors of the crops of six neurons, and their parts; one has none, and some crops belong to none."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(-1, 3, (6, 40))
    labels[4] = -1
    labels[5] = np.where(labels[5] > 0, 0, labels[5])
    centres = draw.normal(size=(6, 3, 8))
    centres[3, 1] = centres[0, 2]  # these show the same
    vectors = centres[np.arange(6)[:, None], labels] + 0.7 * draw.normal(size=(6, 40, 8)) + 2
    return vectors.astype(np.float32), labels


class Slow:
    """The same as :class:`Parts`, by loops."""

    def __init__(self, vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        long = vectors.astype(np.float64)
        crops = {
            (channel, part): [one / np.sqrt(one @ one) for one in long[channel][labels[channel] == part]]
            for channel in range(len(labels))
            for part in range(labels[channel].max() + 1)
        }
        every = [one for own in crops.values() for one in own]
        self.middle = sum(every) / len(every)
        self.crops = {name: [one - self.middle for one in own] for name, own in crops.items()}

    def score(self, name: tuple[int, int], query: NDArray[Any]) -> float:
        long = query.astype(np.float64) / np.sqrt((query.astype(np.float64) ** 2).sum())
        return float(np.mean([one @ long for one in self.crops[name]]))

    def cosine(self, one: tuple[int, int], other: tuple[int, int]) -> float:
        a, b = (np.mean(self.crops[name], axis=0) for name in (one, other))
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def across(self, one: Sequence[Any], other: Sequence[Any]) -> float:
        return float(np.mean([a @ b for a in one for b in other]))

    def within(self, name: tuple[int, int]) -> float:
        own = self.crops[name]
        return float(np.mean([own[i] @ own[j] for i in range(len(own)) for j in range(len(own)) if i != j]))

    def reliable(self, name: tuple[int, int]) -> bool:
        centre = np.mean(self.crops[name], axis=0)
        return len(self.crops[name]) >= FEWEST and self.within(name) >= RELIABLE * float(centre @ centre)

    def redundant(self, one: tuple[int, int], other: tuple[int, int]) -> bool:
        halves = [
            self.across(own[::2], own[1::2]) / self.within(name)
            for name, own in self.crops.items()
            if len(own) >= 2 * FEWEST and self.reliable(name)
        ]
        least = min(1.0, float(np.quantile(halves, USUAL)))
        alike = self.across(self.crops[one], self.crops[other])
        both = self.reliable(one) and self.reliable(other)
        return both and alike >= least * (self.within(one) + self.within(other)) / 2


def names_of(parts: Parts) -> list[tuple[int, int]]:
    return list(zip(parts.channel.tolist(), parts.part.tolist()))


def test_parts_are_those_of_loops_over_crops() -> None:
    vectors, labels = made_up()
    parts, slow = Parts.of(vectors, labels), Slow(vectors, labels)
    names = names_of(parts)
    assert names == list(slow.crops)
    assert parts.size.tolist() == [len(own) for own in slow.crops.values()]
    queries = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    expected = [[slow.score(name, query) for name in names] for query in queries]
    assert parts.scores(queries) == pytest.approx(np.array(expected), abs=1e-6)
    assert parts.within == pytest.approx([slow.within(name) for name in names], abs=1e-6)
    kept = parts.only(parts.channel < 2)
    assert names_of(kept) == names[: len(kept.channel)]
    assert kept.scores(queries) == pytest.approx(np.array(expected)[:, : len(kept.channel)], abs=1e-6)


def test_the_false_discovery_rate_is_that_of_the_empirical_null() -> None:
    parts = Parts.of(*made_up())
    query = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
    scores = parts.scores(query)[0].tolist()
    middle = float(np.median(scores))
    usual = 1.482602218505602 * float(np.median([abs(score - middle) for score in scores]))
    p = [float(norm.sf((score - middle) / usual)) for score in scores]
    expected = [
        min(1.0, *(other * len(p) / sum(one <= other for one in p) for other in p if other >= own)) for own in p
    ]
    assert parts.q_values(query)[0] == pytest.approx(expected)


@pytest.mark.parametrize("at_once", [2, 512])
def test_nearest_and_redundant_parts_are_those_of_loops(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pure_nb.judges.alike.AT_ONCE", at_once)
    vectors, labels = made_up()
    parts, slow = Parts.of(vectors, labels), Slow(vectors, labels)
    names = names_of(parts)
    place, cosine = parts.nearest(4)
    redundant = parts.redundant(np.arange(len(names))[:, None], place)
    for one, own in enumerate(names):
        others = sorted((name for name in names if name[0] != own[0]), key=lambda name: -slow.cosine(own, name))[:4]
        assert [names[other] for other in place[one]] == others
        assert cosine[one] == pytest.approx([slow.cosine(own, other) for other in others], abs=1e-6)
        assert redundant[one].tolist() == [slow.redundant(own, other) for other in others]
    found = {
        frozenset([names[one], names[other]])
        for one, other in zip(*np.nonzero(redundant))
        for other in [place[one][other]]
    }
    assert found == {frozenset([(3, 1), (0, 2)])}


def test_what_the_embedder_does_not_see_is_never_redundant() -> None:
    draw = np.random.default_rng(0)
    noise = Parts.of(draw.normal(size=(30, 20, 8)).astype(np.float32), np.zeros((30, 20), dtype=np.int64))
    place, _ = noise.nearest(29)
    assert not noise.redundant(np.arange(30)[:, None], place).any()


def test_small_parts_are_never_redundant_and_few_neurons_have_few_neighbours() -> None:
    vectors = np.ones((2, 4, 3), dtype=np.float32) + 0.01 * np.random.default_rng(0).random((2, 4, 3), dtype=np.float32)
    parts = Parts.of(vectors, np.zeros((2, 4), dtype=np.int64))
    place, cosine = parts.nearest(6)
    assert np.isfinite(cosine).sum(axis=1).tolist() == [1, 1]
    assert not parts.redundant(np.array([0]), place[0, :1]).any()
    alone = Parts.of(vectors[:1], np.zeros((1, 4), dtype=np.int64))
    assert not np.isfinite(alone.nearest(3)[1]).any()


# ---- a study ---------------------------------------------------------------------------------------------------------


def test_a_word_finds_the_parts_that_show_it(seen: Study) -> None:
    found = seen.search("red", JUDGE)
    assert found.columns.tolist() == ["channel", "part", "size", "score", "q"]
    assert (found["score"].diff().dropna() <= 0).all()
    assert (found["q"].diff().dropna() >= -1e-12).all()
    share: dict[tuple[int, str], float] = {}
    for channel in range(32):
        active = seen.references.active[channel]
        crops = colours(seen.crops.of(channel, np.flatnonzero(active))).astype(np.float64)
        red = crops[:, 0] / np.linalg.norm(crops, axis=1)
        for part in range(2):
            own = red[seen.virtual[channel].labels[active] == part]
            if len(own):
                share[channel, part_name(part)] = own.mean()
    rows = [(channel, part) for channel, part in zip(found["channel"], found["part"])]
    assert rows == sorted(share, key=lambda name: -share[name])
    difference = [share[row] - score for row, score in zip(rows, found["score"])]
    assert np.ptp(difference) < 1e-5  # all less the same baseline


def test_a_picture_is_one_however_it_is_given(seen: Study, tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), dtype=np.uint8)
    picture[..., 2] = 200
    Image.fromarray(picture).save(tmp_path / "blue.png")
    expected = seen.search("blue", JUDGE)
    normalisation = seen.images.normalisation
    assert normalisation is not None
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation)
    tensor = (torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std
    same = [tmp_path / "blue.png", str(tmp_path / "blue.png"), Image.fromarray(picture), picture]
    for query in (*same, torch.from_numpy(picture).permute(2, 0, 1), tensor, tensor.numpy()):
        found = seen.search(query, JUDGE)
        assert found[["channel", "part"]].equals(expected[["channel", "part"]])
        assert found["score"].tolist() == pytest.approx(expected["score"].tolist(), abs=1e-6)
    assert seen.search(picture, MUTE)["channel"].tolist() == expected["channel"].tolist()


def test_what_can_not_be_looked_for_is_said(seen: Study, tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="colours has no text tower and can't look for the word 'red'"):
        seen.search("red", MUTE)
    with pytest.raises(EmbedderError, match="no word to look for"):
        seen.search(" ", JUDGE)
    with pytest.raises(EmbedderError, match="does not know the word 'fish'"):
        seen.search("fish")
    with pytest.raises(ImageError, match=r"none\.png' can't be read as a picture"):
        seen.search(str(tmp_path / "none.png"), JUDGE)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match="can't be read as a picture"):
        seen.search(tmp_path / "text.png", JUDGE)
    with pytest.raises(ImageError, match=r"shape \[2, 3, 8, 8\]"):
        seen.search(torch.zeros(2, 3, 8, 8), JUDGE)
    with pytest.raises(ImageError, match="got int"):
        seen.search(3, JUDGE)
    with pytest.raises(ArgumentError, match="count=0"):
        seen.alike(JUDGE, count=0)


def test_alike_parts_are_of_other_neurons(seen: Study) -> None:
    found = seen.alike(JUDGE, count=3)
    assert (found["channel"] != found["channel_2"]).all()
    assert (found.groupby(["channel", "part"])["cosine"].diff().dropna() <= 0).all()
    assert found.groupby(["channel", "part"]).size().eq(3).all()


def test_from_the_command_line(tmp_path: Path) -> None:
    toml = tmp_path / "small.toml"
    toml.write_text(
        '[model]\nsource = "glyphnet"\n[images]\nsource = "glyphs"\nlength = 40\n'
        '[parameters]\ntarget = "layer4"\nlower = "layer3"\nn_references = 8\n[run]\nprogress = false\n'
    )
    how = ["--store", str(tmp_path / "store"), "--crop", "activation"]
    said = CliRunner().invoke(
        app, ["search", str(toml), "cat", *how, "--rows", "3", "--out", str(tmp_path / "cat.csv")]
    )
    assert said.exit_code == 0, said.output
    assert "more (--rows 0 prints all)" in said.output
    assert "beyond that of all crops" in said.output
    assert (tmp_path / "cat.csv").read_text().startswith("channel,part,size,score,q\n")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    said = CliRunner().invoke(app, ["search", str(toml), str(tmp_path / "red.png"), *how, "--embedder", "pixels"])
    assert said.exit_code == 0, said.output
    said = CliRunner().invoke(app, ["search", str(toml), "cat", *how, "--embedder", "pixels"])
    assert said.exit_code == 1
    assert "no text tower" in said.output


# ---- the map's files -------------------------------------------------------------------------------------------------


def told(folder: Path, name: str) -> Any:
    """What a script of data tells."""
    text = (folder / f"data/{name}.js").read_text(encoding="utf-8")
    found = re.fullmatch(rf'// [0-9a-f ]+\npureNbParts\.take\("{name}",(.*)\);\n', text, re.S)
    assert found
    return json.loads(found[1])


def test_words_find_on_the_page_what_they_find_in_python(seen: Study, map_site: Path) -> None:
    parts, found = told(map_site, "parts"), told(map_site, "words")
    assert found["words"] == list(WORDS)
    for number, word in enumerate(WORDS):
        table = seen.search(word, JUDGE)
        table = table[table["channel"].isin(CHANNELS)]
        near = found["near"][number]
        named = [(parts["channel"][place], part_name(parts["part"][place])) for place in near[::2]]
        assert named == list(zip(table["channel"], table["part"]))
        assert near[1::2] == [round(1000 * score) for score in table["score"]]


def test_the_map_tells_what_the_study_found(seen: Study, map_site: Path) -> None:
    parts, found = told(map_site, "parts"), told(map_site, "map")
    rows = list(zip(parts["channel"], parts["part"]))
    assert rows == [(channel, part) for channel in CHANNELS for part in range(2)]
    scores = seen.neurons.set_index("channel")["score"]
    for place, (channel, part) in enumerate(rows):
        members = seen.neuron(channel).members(part)
        assert parts["size"][place] == len(members)
        sheet, *own = found["cuts"][place]
        assert [(*found["sheets"][sheet], *own)] == maps.cuts(map_site, channel, [members[0]])
        assert found["score"][place] == pytest.approx(scores[channel], abs=1e-4)
    table = seen.alike(JUDGE, count=200)
    for place, (channel, part) in enumerate(rows):
        own = table[
            (table["channel"] == channel) & (table["part"] == part_name(part)) & table["channel_2"].isin(CHANNELS)
        ]
        others = found["alike"][place]
        assert [rows[other] for other in others[::3]] == [
            (c, "AB".index(p)) for c, p in zip(own["channel_2"], own["part_2"])
        ]
        assert others[1::3] == [round(100 * cosine) for cosine in own["cosine"]]
        assert others[2::3] == own["redundant"].astype(int).tolist()
    assert [one["name"] for one in found["layouts"]] == ["pictures (colours)", "circuits"]
    for one in found["layouts"]:
        places = np.array(one["places"]).reshape(-1, 2)
        assert places.min() >= 0
        assert places.max() == found["reach"]


def test_the_sheet_holds_a_picture_of_each_part_twice_the_same(seen: Study, map_site: Path) -> None:
    parts, found = told(map_site, "parts"), told(map_site, "map")
    ranks = [seen.neuron(channel).members(part)[0] for channel, part in zip(parts["channel"], parts["part"])]
    raw = (map_site / "parts.webp").read_bytes()
    assert parts["sheet"].startswith("parts.webp?")
    assert base64.b64decode(found["sheet"].removeprefix("data:image/webp;base64,")) == raw
    with Image.open(BytesIO(raw)) as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    side = sheet.shape[1] // parts["columns"]
    for place, (channel, rank) in enumerate(zip(parts["channel"], ranks)):
        top, left = side * (place // parts["columns"]), side * (place % parts["columns"])
        shown = sheet[top : top + side, left : left + side]
        (view,) = seen.neuron(channel).views([rank])
        own = Image.fromarray(view.picture).crop(square_around(view.mask)).resize((side, side))
        assert np.abs(shown - np.asarray(own)).mean() < 15


def test_pages_name_the_parts_that_are_alike(seen: Study, map_site: Path) -> None:
    page = (map_site / "22.html").read_text(encoding="utf-8")
    table = seen.alike(JUDGE, count=200)
    own = table[(table["channel"] == 22) & table["channel_2"].isin(CHANNELS)]
    named = re.findall(r"<b>(\d+) ([A-Z]+)</b> (-?[\d.]+)(?: <em>(redundant)</em>)?", page)
    expected = own[["channel_2", "part_2", "cosine", "redundant"]].itertuples(index=False, name=None)
    assert named == [(str(c), p, f"{cosine:.2f}", "redundant" * redundant) for c, p, cosine, redundant in expected]
    assert 'href="map.html#part=22A"' in page


def test_a_map_is_written_once(seen: Study, map_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = maps.write_text
    monkeypatch.setattr(maps, "write_text", lambda path, text: (written.append(path.name), write(path, text)))
    monkeypatch.setattr(maps, "embed", lambda *_, **__: pytest.fail("laid out again"))
    before = (map_site / "data/map.js").read_bytes()
    how: dict[str, Any] = {"channels": CHANNELS, "count": 20, "embedder": JUDGE}
    atlas.write(seen, map_site, **how, words=WORDS)
    assert written == ["map.html"]
    monkeypatch.setattr(maps, "embed", lambda vectors, seed: np.zeros((len(vectors), 2), dtype=np.float32))
    atlas.write(seen, map_site, **how, words=WORDS[:2])
    assert told(map_site, "words")["words"] == list(WORDS[:2])
    atlas.write(seen, map_site, **how, words=WORDS)
    assert (map_site / "data/map.js").read_bytes() == before


def test_a_map_knows_names_by_hand_and_classes_that_came_later(
    seen: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = seen.replace(store=Store(tmp_path / "store"))
    with monkeypatch.context() as patch:
        patch.setattr(Atlas, "without_classes", "they did not run yet")
        atlas.write(study, tmp_path / "atlas", channels=CHANNELS, count=2)
    assert told(tmp_path / "atlas", "map")["classes"] == []
    study.notes.write("22.B", "umbrella")
    atlas.write(study, tmp_path / "atlas", channels=CHANNELS, count=2)
    parts = told(tmp_path / "atlas", "parts")
    named = dict(zip(zip(parts["channel"], parts["part"]), parts["label"]))
    assert named.pop((22, 1)) == "umbrella"
    assert not any(named.values())
    assert told(tmp_path / "atlas", "map")["classes"]


def test_without_an_embedder_there_is_a_map_by_circuits_alone(seen: Study, tmp_path: Path) -> None:
    atlas.write(seen, tmp_path, channels=CHANNELS, count=2)
    assert [one["name"] for one in told(tmp_path, "map")["layouts"]] == ["circuits"]
    parts = told(tmp_path, "parts")
    first = [seen.neuron(channel).members(part)[0] for channel, part in zip(parts["channel"], parts["part"])]
    without = [cut is None for cut in told(tmp_path, "map")["cuts"]]
    assert without == [rank >= 2 for rank in first]
    assert any(without)
    assert maps.cuts(tmp_path, 22, [15]) == [None]
    assert np.ptp(maps.small_pictures(tmp_path, [None], 8)[0]) == 0  # grey
    assert not (tmp_path / "data/words.js").exists()
    assert "Search by meaning" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "More like this" not in (tmp_path / "22.html").read_text(encoding="utf-8")


def test_many_parts_keep_their_places_and_few_are_pushed_apart() -> None:
    draw = np.random.default_rng(0)
    points = draw.normal(size=(maps.SMALL + 1, 2)).astype(np.float32)
    found = np.array(maps._places(points)["places"]).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    expected = (points - low) / (high - low) * maps.REACH
    expected[:, 1] = maps.REACH - expected[:, 1]
    assert np.abs(found - expected).max() <= 0.51
    same = np.array(maps._places(np.zeros((9, 2), dtype=np.float32))["places"]).reshape(-1, 2)
    assert len(np.unique(same, axis=0)) == 9
