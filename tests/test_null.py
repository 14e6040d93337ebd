"""The null of one heap: against plain k-means and scikit-learn, and by how often it is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import skew
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from pure_nb.methods import null
from pure_nb.methods.null import clearest, one_heap

CHOICES = (2, 3, 4, 5)
HEAPS = {
    "rare entries": lambda g: np.where(g.random((60, 12)) < 0.1, 1.0, 0.1 * g.standard_normal((60, 12))),
    "independent": lambda g: g.standard_normal((30, 12)),
    "shared factor": lambda g: g.standard_normal((30, 12)) @ (np.eye(12) + 0.5),
    "skewed factor": lambda g: g.standard_normal((60, 64)) + np.outer(g.exponential(size=60), np.ones(64)),
}


def blobs(count: int, size: int = 25, apart: float = 8.0, seed: int = 0) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    centres = apart * np.eye(12)[np.arange(count)]
    return np.asarray(np.repeat(centres, size, axis=0) + generator.standard_normal((count * size, 12)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEAPS)
def test_false_alarms_are_as_rare_as_p_says(kind: str) -> None:
    """More than 10 of 80 below 0.05 come once in a hundred times if the rate is 0.05."""
    ps = [one_heap(HEAPS[kind](np.random.default_rng(seed)), CHOICES, draws=99, seed=seed)[1] for seed in range(80)]
    assert np.sum(np.array(ps) <= 0.05) <= 10
    assert min(ps) >= 1 / 100


@pytest.mark.parametrize("scale", [1e-20, 1, 1e20])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_heaps_have_the_least_p(count: int, scale: float) -> None:
    assert one_heap(blobs(count) * scale, CHOICES, draws=99)[1] == 0.01


def test_p_hardly_depends_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null, "HITS", 1000)  # no early end
    vectors = blobs(3, 15, apart=3.0)
    ps = [one_heap(vectors, CHOICES, draws=499, seed=seed)[1] for seed in range(6)]
    assert np.ptp(ps) < 0.1


def test_p_counts_draws_and_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    frequent = [0, 0]

    def clearest(gram: NDArray[Any], *_: Any) -> NDArray[Any]:
        calls.append(len(gram))
        often = frequent[len(calls) % 2]  # of the two kinds of draws by turns
        return np.where(np.arange(len(gram)) % 10 < often, 0.0, -1.0)

    monkeypatch.setattr(null, "_own", lambda *_: (2, 0.0, 0.0))
    monkeypatch.setattr(null, "_clearest", clearest)
    for share, expected, made in [(0, 1 / 401, 400), (1, 25 / 241, 250), (5, 25 / 45, 50), (10, 1, 50)]:
        for both in ((share, 0), (0, share), (share, share)):
            frequent[:] = both
            calls.clear()
            assert one_heap(blobs(1), CHOICES, draws=400) == (pytest.approx(1 - share / 10), pytest.approx(expected))
            assert sum(calls) == 2 * made
    assert one_heap(blobs(1), CHOICES, draws=0) == (0.0, 1.0)


def test_heaps_have_the_variance_and_the_skewness_and_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    skewed = 3 * generator.exponential(size=(400, 2)) - 3
    points = null._principal(null._centred(np.concatenate([blobs(2, 200), skewed], axis=1)))
    monkeypatch.setattr(null, "_gram", lambda drawn: drawn)
    drawn = null._heaps(points, 500, generator).reshape(-1, points.shape[1])
    scale = points.std(axis=0)
    np.testing.assert_allclose(np.cov((drawn / scale).T), np.eye(len(scale)), atol=0.02)
    lean = skew(points, axis=0)
    expected = np.sign(lean) * np.maximum(np.abs(lean) - np.sqrt(2 / np.pi) * np.sqrt(6 / 400), 0)
    assert np.abs(lean).max() > 1
    np.testing.assert_allclose(skew(drawn, axis=0), expected, atol=0.05)
    gap = [np.mean(np.abs(some[:, 0]) < scale[0] / 2) for some in (points, drawn)]
    assert gap[0] < 0.02
    assert gap[1] > 0.3


def test_shuffles_keep_each_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null, "_gram", lambda drawn: drawn)
    entries = null._centred(blobs(2)).astype(np.float32)
    drawn = null._shuffles(entries, 3, np.random.default_rng(0))
    assert drawn.shape == (3, *entries.shape)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.repeat(np.sort(entries, axis=0)[None], 3, axis=0))
    assert (
        len({row.tobytes() for row in (drawn[..., 0].argsort(), drawn[..., 1].argsort(), drawn[..., 5].argsort())}) > 1
    )
    together = np.corrcoef(drawn.reshape(-1, entries.shape[1]).T)[0, 1]
    assert abs(together) < 0.3 < abs(np.corrcoef(entries.T)[0, 1])


def test_principal_axes_keep_all_distances() -> None:
    vectors = blobs(2, 20)
    for some in (vectors, vectors[:5], vectors * 1e-20):
        axes = null._principal(null._centred(some))
        found, expected = (((one[:, None] - one) ** 2).sum(axis=-1) for one in (axes, some))
        np.testing.assert_allclose(found / found.mean(), expected / expected.mean(), atol=1e-4)
        assert (axes**2).mean() == pytest.approx(1)


def slow_k_means(points: NDArray[Any], labels: NDArray[Any], k: int) -> NDArray[Any]:
    """From given labels, with differences to centres, until nothing changes; an empty cluster stays so."""
    for _ in range(null.ITERATIONS):
        centres = [points[labels == part].mean(axis=0) if (labels == part).any() else np.inf for part in range(k)]
        new = np.array([np.argmin([((point - centre) ** 2).sum() for centre in centres]) for point in points])
        if (new == labels).all():
            break
        labels = new
    return labels


def partitions(gram: NDArray[Any], numbers: tuple[int, ...]) -> list[NDArray[Any]]:
    """One-hot labels of each number, ``[sets, k, n]``."""
    labels = null.partitions(gram, numbers, np.random.default_rng(0))
    assert len(labels) == sum(numbers)
    return [part.transpose(1, 0, 2) for part in np.split(labels, np.cumsum(numbers)[:-1])]


@pytest.mark.parametrize("apart", [0.0, 2.0, 8.0])
def test_batches_are_a_plain_k_means_with_scikit_learns_silhouettes(
    apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = np.stack([blobs(3, 12, apart, seed) for seed in range(4)])
    sets -= sets.mean(axis=1, keepdims=True)
    gram, numbers = null._gram(sets), (2, 3, 5)
    np.testing.assert_allclose(gram, np.einsum("sid,sjd->sij", sets, sets))
    with monkeypatch.context() as patched:
        patched.setattr(null, "ITERATIONS", 0)
        starts = partitions(gram, numbers)
    parts = partitions(gram, numbers)
    clearest = null._clearest(gram, numbers, np.random.default_rng(0))
    for number, points in enumerate(sets):
        found = [part[number].argmax(axis=0) for part in parts]
        for start, part, labels in zip(starts, parts, found):
            assert (part[number].sum(axis=0) == 1).all()
            assert (labels == slow_k_means(points, start[number].argmax(axis=0), part.shape[1])).all()
        assert clearest[number] == pytest.approx(max(silhouette_score(points, labels) for labels in found))
    best = [KMeans(3, n_init=10, random_state=0).fit(points).inertia_ for points in sets]
    inertia = [
        sum(((own - own.mean(axis=0)) ** 2).sum() for own in (points[part.astype(bool)] for part in parts[1][number]))
        for number, points in enumerate(sets)
    ]
    assert np.all(np.array(inertia) <= 1.15 * np.array(best))


@pytest.mark.parametrize("apart", [0.0, 3.0, 8.0])
def test_the_number_is_that_of_the_clearest_of_the_narrowest_clusters(
    apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plain k-means, from the same starts, and scikit-learn's silhouettes."""
    monkeypatch.setattr(null, "STARTS", 6)
    points, numbers = blobs(3, 12, apart), (4, 2, 3, 5)
    with monkeypatch.context() as patched:
        patched.setattr(null, "ITERATIONS", 0)
        axes = null._principal(null._centred(points))
        gram = np.broadcast_to(null._gram(axes[None]), (6, 36, 36))
        starts = partitions(gram, numbers)
    silhouettes = []
    for k, own in zip(numbers, starts):
        parts = [slow_k_means(points, start.argmax(axis=0), k) for start in own]
        spread = [
            sum(points[part == one].var(axis=0).sum() * (part == one).sum() for one in set(part)) for part in parts
        ]
        silhouettes.append(silhouette_score(points, parts[int(np.argmin(spread))]))
    found = clearest(points, numbers, draws=0)
    assert found.number == numbers[int(np.argmax(silhouettes))]
    assert found.silhouette == pytest.approx(max(silhouettes), abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_number_of_clear_clusters_is_that_by_scikit_learn(count: int) -> None:
    vectors = blobs(count, 60 // count)
    parts = {k: KMeans(k, n_init=10, random_state=0).fit(vectors) for k in CHOICES}
    silhouettes = {k: silhouette_score(vectors, part.labels_) for k, part in parts.items()}
    found = clearest(vectors, CHOICES, draws=0)
    assert found.number == max(silhouettes, key=lambda k: silhouettes[k]) == count
    assert found.silhouette == pytest.approx(silhouettes[count], abs=1e-5)


def test_of_equally_clear_numbers_the_smallest_is_chosen() -> None:
    found = clearest(np.repeat(np.eye(2, 4), 6, axis=0), (5, 3, 2, 4), draws=0)
    assert (found.number, found.silhouette) == (2, pytest.approx(1))


@pytest.mark.parametrize("before", [0, 1])
def test_random_bits_are_those_of_numpys_integers(before: int) -> None:
    """And what is drawn after them, whether a half of a number was left before or is left then."""
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    for count in (3, 4, 1, 7, 2, 1000, 1):
        for generator in (one, other):
            generator.random(before, dtype=np.float32)
        expected = other.integers(1 << 32, size=count, dtype=np.uint32)
        np.testing.assert_array_equal(null._bits(one, count), expected)
    assert one.random(3, dtype=np.float32).tolist() == other.random(3, dtype=np.float32).tolist()
    assert one.random() == other.random()


def test_one_set_for_all_starts_is_clustered_as_many_alike() -> None:
    axes = null._principal(null._centred(blobs(2, 12, apart=1.0)))
    broadcast = np.broadcast_to(null._gram(axes[None]), (40, 24, 24))
    for one, other in zip(partitions(broadcast, (2, 3)), partitions(broadcast.copy(), (2, 3))):
        np.testing.assert_array_equal(one, other)


def test_shuffles_are_of_all_orders_alike() -> None:
    """Each of the six orders of three entries a sixth of the time, with a standard error of 0.002."""
    entries = np.tile([[0.5], [-1.0], [0.25]], 30_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(null, "_gram", lambda drawn: drawn)
        drawn = null._shuffles(entries, 1, np.random.default_rng(0))[0]
    orders, counts = np.unique(drawn, axis=1, return_counts=True)
    assert orders.shape == (3, 6)
    np.testing.assert_allclose(counts / 30_000, 1 / 6, atol=0.01)
