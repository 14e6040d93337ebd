"""Classes and graphs of parts: by hand on a few weights, and what must add up does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from test_reasons import PICTURE, few, problem

from pure_nb import Study, load_study
from pure_nb.reasons.class_parts import ClassParts, traced_images, unusual
from pure_nb.reasons.graph import layer_studies
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
        mixed = ClassParts(study, "mixed", sample[some], **made, _parts=parts)
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
