"""Several descriptions of one neuron, weighed: against slow twins, where one is worthless, and in a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, silhouette_score
from small import Items, Tokens, noise, plain
from torch import nn

from pure_nb.errors import ArgumentError
from pure_nb.methods.combined import (
    COMBINED,
    chosen_neurons,
    scales,
    side_by_side,
    weighed,
    weights,
)
from pure_nb.methods.descriptions import LOW, OWN, PEAK, TOP, describe_pairs, descriptions, stabilities
from pure_nb.methods.stability import split_half
from pure_nb.methods.virtual import VirtualNeurons, embed, kmeans, packed, unpacked, virtual_neurons
from pure_nb.methods.virtual_layer import VirtualLayer
from pure_nb.study import Study


def heaps(generator: np.random.Generator, apart: float = 4.0, n: int = 60, d: int = 6) -> NDArray[np.float64]:
    """Two heaps, the first half of the points and the second."""
    found = generator.normal(size=(n, d))
    found[n // 2 :, 0] += apart
    return found


def mine(folder: Path | None, model: nn.Module | None = None, target: str = "4", lower: str = "2", **how: Any) -> Study:
    images = Items(noise(40))
    how = {"n_references": 12, "n_clusters": 2, "described_by": COMBINED, **how}
    return Study.from_model(model or plain(), images, target, lower, store=folder, **how)


def test_of_few_references_nothing_is_stable() -> None:
    vectors = heaps(np.random.default_rng(1), 6.0, d=12)
    assert stabilities([vectors[:3]]) == [0]
    known = stabilities([vectors, vectors * 1e-6 + 3])  # of a description's units it does not depend
    assert known == [split_half(vectors, 2, cuts=5)] * 2


def test_what_counts_and_what_does_not() -> None:
    stable = np.array([[0.6, 0.4, -0.2], [0.2, 0.0, 0.1]])
    squares = [max(0, sum(own) / 2) ** 2 for own in stable.T]
    np.testing.assert_allclose(weights(stable), np.array(squares) / sum(squares))
    assert weights(-np.ones((2, 3))).tolist() == [1, 0, 0]
    assert chosen_neurons(np.arange(10, 13)).tolist() == [10, 11, 12]
    many = chosen_neurons(np.arange(1000))
    assert (len(many), many[0], many[-1]) == (64, 0, 999)


def test_a_description_of_outliers_is_worthless_though_it_looks_clear() -> None:
    """The silhouette is fooled by a few odd images, and the stability is not."""
    generator, stable, clear = np.random.default_rng(2), [], []
    for _ in range(12):
        right, odd = heaps(generator, 3.0), generator.standard_t(1.5, size=(60, 3))
        stable.append(stabilities([right, odd]))
        clear.append([silhouette_score(own, kmeans(own, 2)) for own in (right, odd)])
    assert np.mean(clear, axis=0)[1] > np.mean(clear, axis=0)[0]
    assert weights(np.array(stable))[1] < 0.1


def test_side_by_side_against_a_slow_twin() -> None:
    generator = np.random.default_rng(3)
    vectors = np.concatenate(
        [generator.normal(5, 2, (9, 4)), generator.normal(0, 1e-3, (9, 3)), np.ones((9, 2))], axis=1
    )
    vectors[4] = 0
    active = [row for row in range(9) if row != 4]
    found = side_by_side(vectors, [4, 3, 2], [0.7, 0.2, 0.1])
    assert not found[4].any()
    begin = 0
    for size, weight in zip([4, 3, 2], [0.7, 0.2, 0.0]):  # what does not vary says nothing
        own = vectors[active, begin : begin + size]
        mean = [sum(column) / len(column) for column in own.T]
        square = sum((value - mean[place]) ** 2 for row in own for place, value in enumerate(row)) / len(own)
        expected = (own - mean) * np.sqrt(weight / square) if weight else 0 * own
        np.testing.assert_allclose(found[active, begin : begin + size], expected, rtol=1e-5, atol=1e-6)
        begin += size
    with pytest.raises(ArgumentError, match=r"of lengths \[4, 3\], got vectors of 9"):
        scales(vectors, [4, 3], [0.5, 0.5])


def test_parts_have_mean_circuits_and_know_their_images() -> None:
    generator = np.random.default_rng(4)
    vectors = np.concatenate([generator.normal(size=(60, 5)), heaps(generator, 9.0)], axis=1).astype(np.float32)
    vectors[7] = 0
    told: dict[str, Any] = {"sizes": [5, 6], "weight": [0.1, 0.9]}
    found = weighed(virtual_neurons, vectors, k=2, draws=0, **told)
    assert adjusted_rand_score(np.arange(60) // 30, found.labels) > 0.9
    assert found.labels[7] == -1
    for part in range(2):
        np.testing.assert_allclose(found.centroids[part], vectors[found.labels == part, :5].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(found.predict(vectors), found.labels)
    (again,) = unpacked(*packed([found]))
    np.testing.assert_array_equal(again.predict(vectors), found.labels)
    with pytest.raises(ArgumentError, match=r"\[m, 11\]"):
        found.predict(vectors[:, :5])
    assert weighed(embed, vectors, "pca", **told).shape == (60, 2)
    dead = weighed(virtual_neurons, 0 * vectors, k=2, **told)
    assert (dead.labels == -1).all()
    assert dead.predict(vectors[:3]).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("target", "lower", "model"), [("4", "2", plain()), ("second", "first", Tokens().eval())])
def test_a_study_describes_as_it_says(tmp_path: Path, target: str, lower: str, model: nn.Module) -> None:
    study = mine(tmp_path, model, target, lower)
    combined = study.combined
    assert combined is not None
    assert [*combined.sizes] == [OWN, PEAK, TOP, LOW]
    assert sum(combined.weights.values()) == pytest.approx(1)
    alone = combined[1]  # before the others are known
    peak = study.replace(start="peak", described_by=OWN)
    simple = study.activation_vectors
    expected = np.concatenate([study.circuits, peak.circuits, simple[TOP], simple[LOW]], axis=2)
    combined.prepared()
    np.testing.assert_allclose(alone, expected[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(combined[1], expected[1], rtol=1e-4, atol=1e-6)
    found = descriptions(study)[COMBINED]
    np.testing.assert_array_equal(found.vectors()[1], found.of(1))
    assert [*mine(tmp_path, model, target, lower, start="peak").combined.sizes] == [OWN, TOP, LOW]  # type: ignore[union-attr]
    plainly = descriptions(study.replace(described_by=OWN))[COMBINED].of(1)
    np.testing.assert_array_equal(plainly, found.of(1))


def test_its_parts_are_those_of_all_descriptions(tmp_path: Path) -> None:
    study = mine(tmp_path)
    alone = [study.virtual_of(channel) for channel in range(6)]
    assert study.combined is not None
    told = study.combined.told()
    for channel, one in enumerate(study.virtual):
        active = study.references.active[channel, :, None]
        vectors = np.where(active, study.combined[channel], 0)
        own: VirtualNeurons = weighed(virtual_neurons, vectors, k=2, **told)
        np.testing.assert_array_equal(one.labels, own.labels)
        np.testing.assert_array_equal(one.labels, alone[channel].labels)
        for part in range(one.k):
            mean = study.circuits[channel][one.labels == part].mean(axis=0)
            np.testing.assert_allclose(one.centroids[part], mean, atol=1e-6)
        sample = study.references.sample[channel]
        near = study.neuron(channel).predict(study.images, sample)
        np.testing.assert_array_equal(near, one.predict(vectors))
    again = mine(tmp_path)
    assert again.known() == ["references", "circuits", "virtual"]
    np.testing.assert_array_equal(again.virtual[2].means, study.virtual[2].means)
    assert "parts are clusters of: " in repr(again)
    assert " %" in repr(again)
    assert study.layouts.shape == (6, 12, 2)
    assert study.neurons.attrs["described_by"] == study.combined.weights
    assert mine(tmp_path).neurons.attrs["described_by"] == study.combined.weights
    assert study.estimate(steps=["circuits", "virtual"]).loc["run", "seconds"] == 0  # all is known


def test_new_images_in_the_network(tmp_path: Path) -> None:
    study, images = mine(tmp_path, target="5", lower="3"), noise(12, seed=9)
    layer = VirtualLayer.of(study)
    found = layer(images)
    for channel in range(6):
        for image, label in enumerate(study.neuron(channel).predict(Items(images))):
            members = [layer.names.index(f"{channel}{letter}") for letter in "AB"]
            strength = [float(found[image, own].max()) for own in members]
            assert label == -1 or strength[1 - label] == 0 < strength[label]
    kept = layer.state_dict()
    assert {"means", "scale"} <= set(kept)
    torch.testing.assert_close(VirtualLayer.of(study, assign="mixture")(images).sum(dim=1), found.sum(dim=1))
    default = study.replace(described_by=OWN)
    assert set(VirtualLayer.of(default).state_dict()) == set(kept) - {"means", "scale"}
    with pytest.raises(ArgumentError, match="1 of 2 channels with several"):
        VirtualLayer(study.model, "5", "3", {0: study.virtual_of(0), 1: default.virtual_of(1)})


def test_pairs_that_do_not_activate_a_channel_are_zeros(tmp_path: Path) -> None:
    study = mine(tmp_path, target="5", lower="3")
    channel, sample = np.repeat(np.arange(6), 40), np.tile(np.arange(40), 6)
    found, circuits = describe_pairs(study, channel, sample), study.run_circuits(channel, sample)
    np.testing.assert_array_equal(found.any(axis=1), circuits.any(axis=1))
    np.testing.assert_array_equal(describe_pairs(study.replace(described_by=OWN), channel, sample), circuits)


def test_the_default_is_found_by_the_keys_of_before(tmp_path: Path) -> None:
    study = mine(tmp_path, described_by=OWN)
    assert study.combined is None
    assert set(study.key("virtual")) == {
        *("step", "format", "weights", "images", "target", "lower", "ranked_by", "rule", "start"),
        *("n_clusters", "seed", "n_references", "references"),
    }
    other = study.replace(described_by=COMBINED)
    assert other.key("virtual")["described_by"] == COMBINED
    assert other.key("circuits") == study.key("circuits")
