"""Classes and graphs of parts: by hand on a few weights, and what must add up does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from test_reasons import PICTURE, few, problem
from torch import nn

from pure_nb import Study, load_study
from pure_nb.benchmark.tasks import planted_task
from pure_nb.reasons.class_parts import ClassParts, traced_images, unusual
from pure_nb.reasons.graph import Graph, layer_studies
from pure_nb.reasons.parts import UNLIKE, Parts
from pure_nb.reasons.tracing import Start, trace


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Twelve images of two classes."""
    images = torch.rand(12, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {"n_references": 6, "n_clusters": 1, "progress": False, "crop": "activation"}
    how |= {"mean": (0.0,), "std": (1.0,), "store": tmp_path_factory.mktemp("few")}
    return Study.from_model(few(), (images, torch.arange(12) % 2), "2", "0", **how)


def by_hand(study: Study, sample: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Relevance of the three channels for output 1, and the output."""
    means = study.model[:4](torch.stack([study.images.tensor(int(one)) for one in sample]))[:, :, 0, 0]
    relevance = (means * torch.tensor([2.0, 1.0, 7.0])).detach().double().numpy()
    return relevance, relevance.sum(axis=1) - 0.5


def test_a_class_by_hand(labelled: Study) -> None:
    found = labelled.classes.parts(1)
    assert found.sample.tolist() == [1, 3, 5, 7, 9, 11]
    relevance, value = by_hand(labelled, found.sample)
    np.testing.assert_allclose(found.value, value, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(relevance, found.channel, axis=1), found.relevance, atol=1e-6)
    rows = found.table.set_index("part")
    for channel in (0, 1):
        here = (found.channel == channel) & (found.part != UNLIKE)
        assert rows.loc[str(channel), "share"] == pytest.approx(found.relevance[here].sum() / value.sum())
        assert rows.loc[str(channel), "images"] == here.sum()
        assert rows.loc[str(channel), "low"] <= rows.loc[str(channel), "share"] <= rows.loc[str(channel), "high"]
    kinds = found.table.set_index("kind")["share"]
    assert kinds["not by these channels"] == pytest.approx(-0.5 * 6 / value.sum())
    assert found.table["share"].sum() == pytest.approx(1)
    shared = found.shared(labelled.classes.parts(0))
    assert set(shared["part"]) <= {"0"}  # the other speaks against class 0


def test_a_class_is_found_again(labelled: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = labelled.classes.parts(1).table
    monkeypatch.setattr("pure_nb.reasons.class_parts.trace", None)
    assert labelled.classes.parts(1).table.equals(expected)


def test_unusual_vectors() -> None:
    vectors = np.abs(np.random.default_rng(0).normal(size=(9, 5)))
    vectors[:, 0] += 4
    vectors[3] = [0, 0, 0, 2, 1]
    found = unusual(vectors)
    for row, own in enumerate(vectors):
        others = [other / np.linalg.norm(other) for number, other in enumerate(vectors) if number != row]
        assert found[row] == pytest.approx(cosine(own, np.mean(others, axis=0)))
    assert found.argmax() == 3
    assert np.isnan(unusual(np.array([[0.0, 0], [1, 0], [1, 0]]))[0])
    assert np.isnan(unusual(np.ones((1, 3)))).all()


def test_images_of_another_class_are_unusual() -> None:
    """In the study that ships, one image of another class among the first one's: it comes first, whichever it is of."""
    study = load_study("glyphs", progress=False)
    labels, parts = study.classes._labels[0], Parts(study)
    own, others = np.flatnonzero(labels == 0), [np.flatnonzero(labels == other)[0] for other in range(1, 48, 6)]
    sample = np.append(own, others)
    found = traced_images(parts, study.classes.labelled, sample, Start(0), 32)
    for row in range(len(own), len(sample)):
        some = np.append(np.arange(len(own)), row)
        made = {name: values[some] for name, values in found.items()}
        mixed = ClassParts(study, "mixed", 0, sample[some], **made, _parts=parts)
        assert mixed.images["sample"][0] == sample[row]
    assert len(mixed.figure().axes) == 2


def test_flows_by_hand(labelled: Study) -> None:
    """What comes to the channels with 6 and 3 of output 1 from the layer below, whose channels are 1 and 3."""
    parts = [Parts(one) for one in layer_studies(labelled, ["2", "0"])]
    upper, lower = trace(labelled.model, PICTURE[None], Start(1), layers=parts, rule="gradient", most=3).layers
    assert upper.channel[0].tolist() == [1, 0, 2]
    assert lower.channel[0].tolist() == [1, 0]
    assert upper.down[0].tolist() == [[6, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert lower.relevance[0].tolist() == [6, 2]


@pytest.mark.timeout(120)  # all channels of two layers, taken apart by both rules
@pytest.mark.parametrize("rule", ["gradient", "lrp"])
def test_what_flows_adds_up(glyph_study: Study, rule: str) -> None:
    """Over all channels above, what flows to a channel is its relevance; and named and other flows are all there is."""
    study = glyph_study.replace(rule=rule)
    images = torch.stack([study.images.tensor(number) for number in (0, 1)])
    parts = [Parts(one) for one in layer_studies(study, ["layer4", "layer3"])]
    upper, lower = trace(study.model, images, Start(3), layers=parts, rule=study.parameters.rule, most=32).layers
    scale = np.abs(lower.relevance).max()
    np.testing.assert_allclose(upper.down[:, :, :-1].sum(axis=1) / scale, lower.relevance / scale, atol=1e-5)
    np.testing.assert_allclose(upper.down.sum(axis=(1, 2)) / scale, lower.total / scale, atol=1e-5)


def test_a_graph(labelled: Study, tmp_path: Path) -> None:
    import networkx

    found = labelled.graph([0, 1], ["2", "0"], keep=1)
    told = found.left_out.set_index("layer")
    signs = [np.sign(one.value.sum()) for one in found._traced]
    np.testing.assert_allclose(told.drop(columns="edges").sum(axis=1), np.mean(signs), atol=1e-9)
    assert set(found.edges["from_layer"]) <= {"", "2"}
    assert -1 <= found.agreement <= 1
    assert {tuple(pair) for pair in found.edges[["from_layer", "to_layer"]].to_numpy()} == {("", "2"), ("2", "0")}
    less = labelled.graph([0, 1], ["2", "0"], keep=0.3)
    assert len(less.nodes) < len(found.nodes)
    read = networkx.read_graphml(found.write(tmp_path / "graph.graphml"))
    assert set(read.nodes) == set(found.network.nodes)
    assert {*networkx.get_edge_attributes(read, "share")} == set(found.network.edges)
    told = json.loads(found.write(tmp_path / "graph.json").read_text("utf-8"))
    assert len(told["nodes"]) == len(found.nodes) + 2
    assert found.figure().axes


def test_what_can_not_be_a_class_or_a_graph(labelled: Study) -> None:
    bare = labelled.replace(seed=3)
    assert "there is no output 'dog'" in problem(lambda: bare.classes.parts("dog"))
    assert "two layers or more" in problem(lambda: bare.graph(0, ["2"]))
    assert "keep is a share" in problem(lambda: bare.graph(0, ["2", "0"], keep=0))
    assert ".graphml or .json" in problem(lambda: bare.graph(0, ["2", "0"]).write("graph.txt"))
    assert "0" in problem(lambda: bare.graph(0, ["0", "2"]))
    none = Study.from_model(few(), torch.rand(6, 2, 2, 2), "2", "0", n_references=2, n_clusters=1)
    assert "have no labels" in problem(lambda: none.classes.parts(0))
    assert "have no labels" in problem(lambda: none.graph(0, ["2", "0"]))


def two_sources() -> nn.Sequential:
    """Four lower channels; the two that follow are the sums of the first and of the last two; the output adds both."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU())
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)])
    weights = {0: torch.eye(4), 2: torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]), 6: torch.ones(2, 2)}
    with torch.no_grad():
        for place, weight in weights.items():
            module: Any = model[place]
            module.weight.copy_(weight.view_as(module.weight))
            if module.bias is not None:
                module.bias.zero_()
    return model.eval()


def test_circuits_of_planted_sources_separate_downward(tmp_path: Path) -> None:
    """Both sources, merged into one channel, are its parts, and to each flows what its own lower channels bring."""
    images = torch.rand(24, 4, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.2
    images[::2, 2:], images[1::2, :2] = 0, 0
    how: dict[str, Any] = {"n_references": 24, "n_clusters": 2, "progress": False, "crop": "activation"}
    how |= {"mean": (0.0,), "std": (1.0,), "store": tmp_path}
    study = Study.from_model(two_sources(), (images, torch.zeros(24, dtype=torch.int64)), "2", "0", **how)
    planted = planted_task(study, groups=((0, 1),)).study
    merged, lower = planted.parameters.target, planted.parameters.lower
    found = planted.graph(0, [merged, lower], keep=1)
    assert (found.nodes.loc[found.nodes["layer"] == merged, "share"] > 0.2).all()
    edges = found.edges[found.edges["from_layer"] == merged]
    edges = edges.assign(lower=edges["to"].str.partition(".")[0].astype(int))
    below = edges[edges["share"].abs() > 1e-6].groupby("from")["lower"].agg(lambda own: tuple(sorted(set(own))))
    assert sorted(below) == [(0, 1), (2, 3)]


@pytest.mark.timeout(120)  # two layers are taken apart
def test_paths_are_the_same_in_halves_of_the_images(glyph_study: Study) -> None:
    """What flows from a glyph's output down to its outline is alike in two halves of its images, and unlike others'."""
    found = glyph_study.graph(["umbrella", "anchor"], ["layer4", "layer3"])
    halves = [[half(found.only(name), first) for first in (0, 1)] for name in found.outputs]
    edges = sorted({edge for own in halves for one in own for edge in one._means[2]})
    flows = [[[one._means[2].get(edge, 0) for edge in edges] for one in own] for own in halves]
    for number, (one, other) in enumerate(flows):
        alike = np.corrcoef([one, other, *(own[0] for own in flows[:number] + flows[number + 1 :])])[0]
        assert alike[1] > 0.6
        assert (alike[2:] < 0.3).all()
        first, second = map(strongest_path, halves[number])
        assert len(first) == 3
        assert first == second


def half(found: Graph, first: int) -> Graph:
    """The same of every second image."""
    return replace(found, _traced=tuple(one.some(slice(first, None, 2)) for one in found._traced))


def strongest_path(found: Graph) -> list[str]:
    """From an output, at each layer, to the part that most of it flows to."""
    path, edges = [found.outputs[0]], found.edges
    while len(rows := edges[edges["from"] == path[-1]]):
        path.append(str(rows.loc[rows["share"].idxmax(), "to"]))
        edges = edges[edges["from_layer"] == rows["to_layer"].iloc[0]]
    return path
