"""The field's measures of polysemanticity, against slow, obvious twins, and against SemanticLens if it is there."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pure_nb.compute.sweep import sweep
from pure_nb.errors import ArgumentError, EvaluationError
from pure_nb.images.sources import as_images
from pure_nb.methods import measures
from pure_nb.methods.measures import (
    Monosemanticity,
    clarity,
    class_purity,
    description_similarity,
    fms,
    iou,
    monosemanticity,
    polysemanticity,
    psi,
    redundancy,
)
from pure_nb.parameters import Run


def heap(n: int, d: int = 6, seed: int = 0, at: int = 0) -> NDArray[np.float32]:
    """Vectors around an axis."""
    found = 0.3 * np.random.default_rng(seed).normal(size=(n, d))
    found[:, at] += 1
    return found.astype(np.float32)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def slow_monosemanticity(activation: NDArray[np.float64], vectors: NDArray[np.float32]) -> float:
    a = (activation - activation.min()) / (activation.max() - activation.min())
    pairs = list(combinations(range(len(a)), 2))
    total = sum(a[i] * a[j] for i, j in pairs)
    return float(sum(a[i] * a[j] * cosine(vectors[i], vectors[j]) for i, j in pairs) / total)


@given(st.integers(0, 10**6), st.integers(3, 12))
def test_monosemanticity_is_the_double_sum(seed: int, n: int) -> None:
    activation = np.random.default_rng(seed).normal(2, 3, n)
    vectors = np.random.default_rng(seed + 1).normal(size=(n, 5)).astype(np.float32)
    assert monosemanticity(activation, vectors) == pytest.approx(slow_monosemanticity(activation, vectors), abs=1e-12)


def test_monosemanticity_of_one_and_of_two_meanings() -> None:
    one, two = np.tile(heap(1), (6, 1)), np.concatenate([np.eye(6)[[0] * 4], np.eye(6)[[1] * 4]])
    assert monosemanticity(np.arange(6.0), one) == pytest.approx(1)
    assert monosemanticity(np.array([0, *[1.0] * 7]), two) == pytest.approx((3 + 6) / 21)  # equal pairs of seven images
    assert np.isnan(monosemanticity(np.ones(6), one))  # the same for all images
    assert np.isnan(monosemanticity(np.eye(6)[0], one))  # one image makes no pair
    with pytest.raises(EvaluationError, match="6 vectors need as many activations"):
        monosemanticity(np.ones(5), one)
    with pytest.raises(EvaluationError, match="not all zeros"):
        monosemanticity(np.ones(6), np.zeros((6, 3)))


class Signs(torch.nn.Module):
    """Its channels' activations may be below 0, and one is the same for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            self.layer.weight[3], self.layer.bias[3] = 0, 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def test_monosemanticity_in_one_pass() -> None:
    """In batches and merged parts it is the double sum over all images."""
    torch.manual_seed(0)
    images = torch.rand(23, 3, 8, 8)
    vectors, model = heap(23, seed=2), Signs()
    found = Monosemanticity("layer", vectors)
    sweep(model, as_images(images), [found], run=Run(batch_size=4, progress=False))
    values = model(images).detach().double().amax(dim=(2, 3)).numpy()
    expected = [slow_monosemanticity(values[:, channel], vectors) for channel in range(3)]
    np.testing.assert_allclose(found.result()[:3], expected, atol=1e-10)
    assert np.isnan(found.result()[3])
    first, second = Monosemanticity("layer", vectors), Monosemanticity("layer", vectors)
    for part, rows in ((first, range(9)), (second, range(9, 23))):
        part.update(np.array(rows), {"layer": model(images[list(rows)])})
    whole = first.restored(first.state())
    whole.merge(second)
    whole.merge(Monosemanticity("layer", vectors))
    np.testing.assert_allclose(whole.result(), found.result(), atol=1e-12)
    with pytest.raises(ArgumentError, match="no image was seen"):
        Monosemanticity("layer", vectors).result()


def test_clarity_is_the_mean_cosine_of_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    slow = [np.mean([cosine(one[i], one[j]) for i, j in combinations(range(7), 2)]) for one in vectors]
    np.testing.assert_allclose(clarity(vectors), slow, atol=1e-12)
    np.testing.assert_allclose(description_similarity(vectors[0]), slow[0], atol=1e-12)
    assert np.isnan(clarity(vectors[0, :1]))
    apart = np.concatenate([np.eye(5)[:1], -np.eye(5)[:1]])
    assert clarity(apart) == pytest.approx(-1)


def test_polysemanticity() -> None:
    one, two = heap(20), np.concatenate([heap(10), heap(10, at=1)])
    assert polysemanticity(one) < 0.2 < 0.8 < polysemanticity(two)
    left, right = two[:10].mean(axis=0), two[10:].mean(axis=0)
    assert polysemanticity(two) == pytest.approx(1 - cosine(left, right), abs=1e-5)
    alone = np.concatenate([np.tile(heap(1), (11, 1)), 9 * heap(1, at=1)])  # a cluster of one
    middle = alone.mean(axis=0)
    assert polysemanticity(alone) == pytest.approx(1 - cosine(middle, alone[0]), abs=1e-5)
    assert np.isnan(polysemanticity(one[:1]))


def test_as_semantic_lens() -> None:
    """SemanticLens' own functions, on the same vectors."""
    scores = pytest.importorskip("semanticlens.scores", reason="semanticlens is not installed")
    rng = np.random.default_rng(3)
    vectors = np.stack([heap(12, seed=1), *rng.normal(size=(4, 12, 6)).astype(np.float32)])
    vectors[1, 1:] = vectors[1, 0] + 0.001 * vectors[1, 1:]
    vectors[1, 0] += 40  # a cluster of one
    given = torch.from_numpy(vectors)
    np.testing.assert_allclose(clarity(vectors), scores.clarity_score(given), atol=1e-5)
    np.testing.assert_allclose(
        [polysemanticity(one) for one in vectors], scores.polysemanticity_score(given), atol=1e-5
    )
    means = vectors.mean(axis=1)
    assert redundancy(means).mean() == pytest.approx(float(scores.redundancy_score(torch.from_numpy(means))), abs=1e-5)


def test_redundancy(monkeypatch: pytest.MonkeyPatch) -> None:
    means = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    means[5] = 2 * means[2]
    slow = [max(cosine(one, other) for j, other in enumerate(means) if j != i) for i, one in enumerate(means)]
    np.testing.assert_allclose(redundancy(means), slow, atol=1e-12)
    assert np.isnan(redundancy(means[:1])).all()
    owner = np.array([0, 0, 1, 2, 2, 2])  # of 2, one is twice another of 1
    slow = [max(cosine(one, means[j]) for j in np.flatnonzero(owner != owner[i])) for i, one in enumerate(means)]
    for at_once in (2, 512):
        monkeypatch.setattr(measures, "AT_ONCE", at_once)
        np.testing.assert_allclose(redundancy(means, owner), slow, atol=1e-12)
    assert np.isnan(redundancy(means, np.zeros(6, dtype=int))).all()


def test_class_purity() -> None:
    labels = np.array([3, 3, 1, -1])
    assert class_purity(labels) == 0.5
    assert class_purity(labels, np.array([1.0, 0, 3, 0])) == 0.75
    assert class_purity(np.array([-1, -1])) == 0  # of no class
    assert np.isnan(class_purity(np.array([], dtype=int)))
    with pytest.raises(EvaluationError, match="4 labels need as many activations of at least 0"):
        class_purity(labels, np.array([1.0, 1, 1, -1]))


def test_psi_needs_all_three() -> None:
    vectors = np.concatenate([heap(15), heap(15, at=1)])
    parts, words = np.repeat([0, 1], 15), np.eye(6)[:3]
    high = psi(vectors, parts, parts, words)
    assert 0.5 < high <= 1
    rng = np.random.default_rng(0)
    assert psi(vectors, parts, rng.permutation(parts), words) < 0.1  # labels that do not agree
    assert psi(vectors, parts, parts, np.eye(6)[:1]) == 0  # one word for both
    assert psi(np.concatenate([heap(15), heap(15, seed=1)]), parts, parts, words) < 0.1  # one heap
    assert psi(vectors, np.zeros(30, dtype=int), parts, words) == 0
    left_out = np.concatenate([parts, [-1]])
    again = psi(np.concatenate([vectors, heap(1, at=4)]), left_out, np.concatenate([parts, [7]]), words)
    assert again == pytest.approx(high)


def test_fms() -> None:
    rng = np.random.default_rng(0)
    concept = rng.random(400) < 0.4
    noise = rng.normal(size=(400, 8))
    alone = noise.copy()
    alone[:, 3] = concept + 0.01 * noise[:, 3]
    twice = alone.copy()
    twice[:, 5] = alone[:, 3]
    found = fms(alone, concept), fms(twice, concept), fms(noise, concept)
    assert found[0] > 0.9
    assert 0.4 < found[1] < 0.6  # nothing is lost without it
    assert found[2] < 0.35
    with pytest.raises(EvaluationError, match="at least four"):
        fms(noise, np.zeros(400, dtype=bool))


def test_iou() -> None:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((3, 10, 10)), rng.random((3, 10, 10)) < 0.1
    limit = np.quantile(maps, 0.98)
    both = sum(bool(a > limit and b) for a, b in zip(maps.ravel(), masks.ravel()))
    either = sum(bool(a > limit or b) for a, b in zip(maps.ravel(), masks.ravel()))
    assert iou(maps, masks, share=0.02) == pytest.approx(both / either)
    assert iou(masks.astype(float), masks, share=float(masks.mean()) + 0.01) == 1
    with pytest.raises(EvaluationError, match="must have the same shape"):
        iou(maps, masks[:2])
    with pytest.raises(ArgumentError, match="share must be above 0"):
        iou(maps, masks, share=0)
