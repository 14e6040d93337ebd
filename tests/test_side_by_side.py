"""One neuron by seven methods: each where the right answer is plain, and the numbers that the chapters read."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import matplotlib.pyplot as plt
import measure_photographs
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn

from pure_nb import Study, load_study
from pure_nb.benchmark.side_by_side import (
    SEVEN,
    activations_of,
    clusters_of_psi,
    seven_figure,
    seven_ways,
    sorted_figure,
    split_of,
    told,
)
from pure_nb.errors import ArgumentError
from pure_nb.judges.embedders import pixels
from pure_nb.methods.virtual import kmeans
from pure_nb.published import Published


@pytest.fixture(scope="module")
def either(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, np.ndarray]:
    """Images in red or in green, and a neuron that answers to both, beside one for each."""
    layers = {"below": nn.Conv2d(3, 3, 1, bias=False), "top": nn.Conv2d(3, 4, 1, bias=False)}
    model = nn.Sequential(OrderedDict(**layers, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())).eval()
    with torch.no_grad():
        model.below.weight.copy_(torch.eye(3)[..., None, None])
        model.top.weight.copy_(torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])[..., None, None])
    truth = np.arange(12) % 2
    images = 0.01 * torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images[torch.arange(12), torch.from_numpy(truth), 2:4, 2:4] += torch.linspace(1, 0.5, 12)[:, None, None]
    how = {"n_references": 8, "n_clusters": 2, "name": "either", "progress": False, "crop": "activation"}
    how["store"] = tmp_path_factory.mktemp("either")
    study = Study.from_model(model, images, "top", "below", mean=[0.0] * 3, std=[1.0] * 3, **how)
    return study, truth[study.references.sample[0]]


def test_all_seven_find_two_plain_parts(either: tuple[Study, np.ndarray]) -> None:
    study, truth = either
    crops = [study.images.picture(int(sample)) for sample in study.references.sample[0]]
    how: dict[str, Any] = {"crops": crops, "judge": pixels(), "words": np.eye(2, 768), "labels": truth}
    how |= {"convolution": "top", "autoencoder": {"width": 4, "k": 1, "steps": 200, "batch_size": 64}}
    found = seven_ways(study, 0, 2, **how)
    assert tuple(found) == SEVEN
    for name, labels in found.items():
        assert labels.dtype == np.int64, name
        assert told(truth, labels) == "AMI 1.00, ARI 1.00", name


def test_some_channels_are_described_as_all_are(either: tuple[Study, np.ndarray]) -> None:
    study = either[0]
    for name, own in activations_of(study, [1]).items():
        np.testing.assert_allclose(own[0], study.activation_vectors[name][1], rtol=1e-6)


@pytest.mark.parametrize("channel", [-1, 4])
def test_a_channel_that_is_not_there(either: tuple[Study, np.ndarray], channel: int) -> None:
    how: dict[str, Any] = {"crops": [], "judge": pixels(), "words": np.eye(2), "labels": either[1]}
    with pytest.raises(ArgumentError, match=f"channel {channel}"):
        seven_ways(either[0], channel, 2, **how, convolution="top")
    with pytest.raises(ArgumentError, match=f"channel {channel}"):
        activations_of(either[0], [0, channel])


def test_a_split_follows_the_inputs_and_not_the_labels_that_it_is_told(either: tuple[Study, np.ndarray]) -> None:
    study, truth = either
    wrong = truth.copy()
    wrong[0] = 1 - wrong[0]
    np.testing.assert_array_equal(split_of(study, 0, wrong, "top"), truth)
    with pytest.raises(ArgumentError, match="channel 0 has a single part"):
        split_of(study, 0, np.zeros_like(truth), "top")


def test_the_index_chooses_how_many_clusters() -> None:
    generator, true = np.random.default_rng(0), np.repeat([0, 1, 2], 6)
    vectors = np.eye(3)[true] + 0.05 * generator.normal(size=(18, 3))
    assert told(true, clusters_of_psi(vectors, true, np.eye(3))) == "AMI 1.00, ARI 1.00"
    assert not clusters_of_psi(vectors, np.zeros(18, dtype=np.int64), np.eye(3)).any()  # labels that say nothing


def test_nothing_has_no_sign() -> None:
    found = told(np.array([0, 1] * 94), np.repeat([0, 1, 0, 1], 47))
    assert found == "AMI 0.00, ARI 0.00", found


def test_figures_say_what_is_in_which_part() -> None:
    crops, names = [np.full((9, 9, 3), 40 * shade, np.uint8) for shade in range(5)], ["b", "a", "b", "b", "a"]
    found = {"one": np.array([0, 1, 0, 0, 1]), "other": np.array([0, 0, 2, 1, 1])}
    figure = seven_figure(crops, names, found, title="seven", count=9)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in texts if len(text) > 1] == ["one", "other"]
    assert "".join(text for text in texts if text.isupper()) == "AAABB" + "ACBAB"  # b, b, b, a, a
    assert [text for text in texts if text in ("a", "b")] == ["b", "a"]
    none = {"one": np.array([-1, 0, 0, -1, 0])}
    texts = [text.get_text() for text in seven_figure(crops, names, none, title="").axes[0].texts]
    assert "".join(text for text in texts if text.isupper()) == "AAA"  # what a method leaves out has no letter
    assert [axes.get_title(loc="left") for axes in sorted_figure(crops, names, none["one"], title="").axes] == [
        "A (3): a 67%, b 33%"
    ]
    parts = sorted_figure(crops, names, found["other"], title="parts")
    assert [axes.get_title(loc="left") for axes in parts.axes] == [
        "A (2): a 50%, b 50%",
        "B (2): a 50%, b 50%",
        "C (1): b 100%",
    ]
    plt.close("all")


def read(study: Published, name: str) -> Any:
    path = study.found.folder / "measured" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def photographs() -> Published:
    found = load_study("photographs", progress=False)
    assert isinstance(found, Published)
    return found


def test_the_real_neuron_is_the_published_one(photographs: Published) -> None:
    told = read(photographs, "methods")
    channel = told["channel"]
    assert channel == photographs.neurons["channel"].iloc[0]
    assert tuple(told["labels"]) == SEVEN
    assert {len(own) for own in told["labels"].values()} == {photographs.references.n}
    np.testing.assert_array_equal(told["labels"]["PURE"], photographs.virtual[channel].labels)
    np.testing.assert_array_equal(told["labels"]["PURE"], kmeans(photographs.circuits_of(channel), told["k"]))


def test_the_planted_example_is_scored_as_it_says(photographs: Published) -> None:
    told = read(photographs, "planted")
    example, board = told["example"], {row["method"]: row for row in told["board"]}
    assert adjusted_rand_score(example["truth"], example["parts"]) == pytest.approx(example["ari"], abs=1e-3)
    assert len(example["sample"]) == len(example["truth"]) == photographs.references.n
    assert told["several"] <= told["pairs"] == measure_photographs.PLANTED
    for row in board.values():
        assert row["low"] <= row["ari"] <= row["high"], row
    assert board["random"]["low"] <= 0 <= board["random"]["high"]


def test_shares_of_an_answer_add_up(photographs: Published) -> None:
    told = read(photographs, "reasons")
    assert [one["sample"] for one in told["photographs"]] == [
        *range(0, len(photographs.images), measure_photographs.EXPLAINED)
    ]
    for one in told["photographs"]:
        assert sum(row["share"] for row in one["table"]) == pytest.approx(np.sign(one["value"]), abs=2e-3)
        assert len(one["references"]) == sum(row["kind"] == "part" for row in one["table"])
        assert all(0 <= sample < len(photographs.images) for own in one["references"] for sample in own)
