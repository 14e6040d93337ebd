"""The stability of parts, against k-means of scikit-learn and sets of Python."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from pure_nb.errors import ArgumentError
from pure_nb.methods import stability, virtual
from pure_nb.methods.stability import curve, halved, rand_index, split_half


def heaps(apart: float, sizes: tuple[int, ...] = (40, 25, 16), d: int = 6) -> tuple[NDArray[np.float64], NDArray]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    generator = np.random.default_rng(0)
    return apart * np.eye(len(sizes), d)[labels] + generator.normal(size=(len(labels), d)), labels


def slow(vectors: NDArray[np.float64], labels: NDArray, cuts: int, seed: int) -> tuple[float, list[float]]:
    """The same halves, by scikit-learn, distances and sets."""
    k, generator, found, alike = labels.max() + 1, np.random.default_rng(seed), [], []
    for order in [generator.permutation(len(vectors)) for _ in range(cuts)]:
        half, two = len(order) // 2, []
        for own in (order[:half], order[half : 2 * half]):
            fitted = KMeans(k, n_init=10, random_state=0).fit(vectors[own])
            two.append(fitted.predict(vectors))
        found.append(adjusted_rand_score(*two))
        for other in two:
            ours = [set(np.flatnonzero(labels == part)) for part in range(k)]
            theirs = [set(np.flatnonzero(other == part)) for part in range(k)]
            alike.append([max(len(a & b) / len(a | b) for b in theirs) for a in ours])
    return float(np.mean(found)), np.mean(alike, axis=0).tolist()


@pytest.mark.parametrize("apart", [4, 5, 30])
def test_stability_is_that_of_scikit_learn(apart: float) -> None:
    """Heaps that overlap, and those that do not."""
    vectors, _ = heaps(apart)
    labels = virtual.kmeans(vectors, 3)
    own = stability.stability(vectors, labels, cuts=8, seed=1)
    neuron, parts = slow(vectors, labels, cuts=8, seed=1)
    assert own.neuron == pytest.approx(neuron, abs=1e-12)
    np.testing.assert_allclose(own.parts, parts, atol=1e-12)
    assert split_half(vectors, 3, cuts=8, seed=1) == own.neuron


def test_each_half_is_clustered_by_itself() -> None:
    """On clear heaps, labels by scalar products are those of distances to the heaps' means."""
    vectors, labels = heaps(30)
    for cut in halved(vectors + 1e3, 3, cuts=4):
        assert [adjusted_rand_score(labels, one) for one in cut] == [1, 1]
    one = halved(vectors, 3, cuts=2, seed=5)
    assert (one == halved(vectors, 3, cuts=2, seed=5)).all()
    assert (halved(vectors, 1, cuts=1) == 0).all()


def test_a_part_that_is_not_there_is_less_stable() -> None:
    """Of three clusters of two heaps, the cut through one of them moves, and the other heap stays."""
    vectors, heap = heaps(12, sizes=(60, 20), d=40)
    labels = virtual.kmeans(vectors, 3)
    own = stability.stability(vectors, labels)
    there = np.array([(labels == part).sum() == 20 and (heap[labels == part] == 1).all() for part in range(3)])
    assert own.parts[there] == 1
    assert own.parts[~there].max() < 0.75
    assert own.neuron < 0.75


def test_images_of_no_part_do_not_count() -> None:
    vectors, labels = heaps(4)
    more = np.concatenate([vectors, np.zeros((7, 6))])
    own = stability.stability(more, np.concatenate([labels, np.full(7, -1)]))
    other = stability.stability(vectors, labels)
    assert own.neuron == other.neuron
    assert (own.parts == other.parts).all()


def test_one_part_has_no_stability() -> None:
    own = stability.stability(heaps(4)[0], np.zeros(81, dtype=np.int64))
    assert np.isnan(own.neuron)
    assert np.isnan(own.parts).all()
    with pytest.raises(ArgumentError, match="halves of 5 vectors can't make 3 clusters"):
        split_half(np.eye(5), 3)
    few = stability.stability(np.eye(5), np.array([0, 0, 1, 1, 2]))
    assert np.isnan([few.neuron, *few.parts]).tolist() == [True] * 4


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_rand_index_is_that_of_scikit_learn(k: int) -> None:
    generator = np.random.default_rng(k)
    first, second = generator.integers(k, size=(2, 6, 30))
    second[0] = first[0]
    tables = np.einsum("cnk,cnj->ckj", np.eye(k)[first], np.eye(k + 1)[second])
    expected = [adjusted_rand_score(one, other) for one, other in zip(first, second)]
    np.testing.assert_allclose(rand_index(tables), expected, atol=1e-12)
    assert rand_index(tables)[0] == 1


def test_the_curve_is_that_of_the_first_images() -> None:
    vectors, heap = heaps(4)
    order = np.random.default_rng(1).permutation(len(vectors))
    vectors, heap = vectors[order], heap[order]
    found = curve(vectors, heap, 3, sizes=(5, 20, 60, 100), cuts=4, seed=2)
    assert [step.references for step in found] == [20, 60]
    for step in found:
        some, own = vectors[: step.references], heap[: step.references]
        assert step.stability == split_half(some, 3, cuts=4, seed=2)
        assert step.agreement == pytest.approx(adjusted_rand_score(virtual.kmeans(some, 3, seed=2), own))
