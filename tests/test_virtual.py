"""Virtual neurons: scikit-learn's clusters, in a fixed order, and one part where there is only one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from pure_nb import virtual
from pure_nb.errors import ArgumentError
from pure_nb.virtual import VirtualNeurons, _nearest, cluster, embed, heaps, part_name, virtual_neurons


def blobs(count: int, size: int = 25, apart: float = 8.0, dimensions: int = 12, seed: int = 0) -> tuple[Any, Any]:
    """Round clouds of points, far from each other, and which is which."""
    generator = np.random.default_rng(seed)
    centres = apart * np.eye(count, dimensions)
    labels = np.repeat(np.arange(count), size)
    points = centres[labels] + generator.standard_normal((len(labels), dimensions))
    order = generator.permutation(len(labels))
    return points[order].astype(np.float32), labels[order]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_clusters_are_scikit_learns(k: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 7)).astype(np.float32)
    found = cluster(vectors, k)
    expected = KMeans(k, n_init=10, random_state=0).fit_predict(vectors)
    assert adjusted_rand_score(expected, found) == 1
    assert (found == cluster(vectors, k)).all()


@given(seed=st.integers(0, 50), k=st.integers(1, 6), count=st.integers(1, 30))
def test_the_largest_cluster_comes_first(seed: int, k: int, count: int) -> None:
    vectors = np.random.default_rng(seed).integers(0, 4, (count, 2)).astype(np.float32)
    labels = cluster(vectors, k, n_init=1)
    sizes = np.bincount(labels)
    assert labels.shape == (count,)
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()
    assert len(sizes) <= min(k, len(np.unique(vectors, axis=0)))
    first = [int(np.argmax(labels == part)) for part in range(len(sizes))]
    assert all(a < b for a, b, c, d in zip(first, first[1:], sizes, sizes[1:]) if c == d)


def test_equal_vectors_share_a_cluster() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), [4, 2, 3], axis=0)
    assert cluster(vectors, 5).tolist() == [0, 0, 0, 0, 2, 2, 1, 1, 1]  # three different vectors, so three clusters
    assert cluster(np.zeros((6, 2), np.float32), 3).tolist() == [0] * 6


def test_silhouette_is_scikit_learns() -> None:
    vectors, _ = blobs(3)
    found = virtual_neurons(vectors, 3)
    assert found.silhouette == pytest.approx(silhouette_score(vectors, found.labels))
    assert found.null < found.silhouette
    assert found.p == pytest.approx(0.001)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_auto_finds_separate_clouds(count: int) -> None:
    vectors, truth = blobs(count)
    found = virtual_neurons(vectors)
    assert found.k == count
    assert adjusted_rand_score(truth, found.labels) == 1
    assert found.p == pytest.approx(0.001)
    share = np.array(found.sizes) / len(vectors)
    effective = np.prod(share**-share)
    assert found.score == pytest.approx((effective - 1) * (found.silhouette - found.null))
    assert found.score > 0.1
    for part in range(count):
        np.testing.assert_allclose(found.centroids[part], vectors[found.labels == part].mean(axis=0), atol=1e-5)


def skewed(seed: int, size: int = 100, entries: int = 64) -> NDArray[np.float64]:
    """One heap whose entries share a strong factor, which is larger than usual in a few vectors."""
    generator = np.random.default_rng(seed)
    shared = np.outer(generator.exponential(size=size), np.abs(generator.standard_normal(entries)))
    return np.asarray(generator.standard_normal((size, entries)) + shared)


def test_auto_leaves_one_cloud_whole() -> None:
    parts = [virtual_neurons(blobs(1, 60, seed=seed)[0], draws=99).k for seed in range(10)]
    assert parts.count(1) >= 8


@pytest.mark.parametrize("kind", ["independent", "shared factor", "skewed factor"])
def test_false_alarms_are_as_rare_as_alpha_says(kind: str) -> None:
    """More than 10 of 80 below 0.05 come once in a hundred times if the rate is 0.05; shuffled entries fail."""
    ps = []
    for seed in range(80):
        one = {
            "independent": lambda seed: blobs(1, 30, seed=seed)[0],
            "shared factor": lambda seed: blobs(1, 30, seed=seed)[0] @ (np.eye(12) + 0.5),
            "skewed factor": skewed,
        }[kind](seed)
        ps.append(heaps(one, draws=99, seed=seed)[1])
    assert np.sum(np.array(ps) <= 0.05) <= 10
    assert min(ps) >= 1 / 100


def test_images_that_do_not_drive_the_neuron_belong_to_no_part() -> None:
    one = blobs(1, 60, seed=3)[0]
    vectors = np.concatenate([one, np.zeros((25, one.shape[1]), np.float32)])
    found = virtual_neurons(vectors)
    assert found.k == 1
    assert found.sizes == [60]
    assert (found.labels[60:] == -1).all()
    assert virtual_neurons(np.zeros((9, 4), np.float32), 3).sizes == [0]


def test_a_given_number_is_kept_whatever_p_says() -> None:
    found = virtual_neurons(blobs(1, 60)[0], 3, draws=19)
    assert found.k == 3
    assert found.p > 0.05


def test_alpha_zero_never_splits() -> None:
    assert virtual_neurons(blobs(2)[0], alpha=0.0, draws=9).k == 1


def slow_k_means(points: NDArray[Any], labels: NDArray[Any], k: int) -> NDArray[Any]:
    """From given labels, with differences to centres, until nothing changes; an empty cluster stays so."""
    for _ in range(virtual.ITERATIONS):
        centres = [points[labels == part].mean(axis=0) if (labels == part).any() else np.inf for part in range(k)]
        new = np.array([np.argmin([((point - centre) ** 2).sum() for centre in centres]) for point in points])
        if (new == labels).all():
            break
        labels = new
    return labels


def slow_valley(points: NDArray[Any], parts: list[NDArray[Any]]) -> float:
    depths = []
    for labels in parts:
        for part in np.unique(labels)[int(labels.max() == 1) :]:
            along = []
            for point in range(len(points)):
                sides = [np.setdiff1d(np.flatnonzero(side), point) for side in (labels == part, labels != part)]
                here, there = (points[side].mean(axis=0) if len(side) else 0 * points[0] for side in sides)
                along.append(points[point] @ (here - there))
            along = np.array(along)
            bins = np.clip(np.rint((along - along.mean()) / along.std() / virtual.STEP), -virtual.REACH, virtual.REACH)
            places = np.arange(-virtual.REACH, virtual.REACH + 1)
            height = np.sqrt([np.exp(-((bins - place) ** 2) / 8).sum() for place in places])
            for place in range(len(places)):
                depths.append(min(height[: place + 1].max(), height[place:].max()) - height[place])
    return max(depths)


@pytest.mark.parametrize("apart", [0.0, 2.0, 8.0])
def test_batches_are_a_plain_k_means_with_scikit_learns_silhouettes(
    apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = np.stack([blobs(3, 12, apart, seed=seed)[0] for seed in range(4)]).astype(np.float64)
    sets -= sets.mean(axis=1, keepdims=True)
    with monkeypatch.context() as patched:
        patched.setattr(virtual, "ITERATIONS", 0)
        starts = virtual._partitions(sets, (2, 3, 5), np.random.default_rng(0))[1]
    gram, parts = virtual._partitions(sets, (2, 3, 5), np.random.default_rng(0))
    clearest, valley = virtual._clearest(gram, parts), virtual._valley(gram, parts)
    for number, points in enumerate(sets):
        found = [part[number].argmax(axis=0) for part in parts]
        for start, part, labels in zip(starts, parts, found):
            assert (part[number].sum(axis=0) == 1).all()
            assert (labels == slow_k_means(points, start[number].argmax(axis=0), part.shape[1])).all()
        assert clearest[number] == pytest.approx(max(silhouette_score(points, labels) for labels in found))
        assert valley[number] == pytest.approx(slow_valley(points, found), rel=1e-4)
    best = [KMeans(3, n_init=10, random_state=0).fit(points).inertia_ for points in sets]
    inertia = [
        sum(((own - own.mean(axis=0)) ** 2).sum() for own in (points[part.astype(bool)] for part in parts[1][number]))
        for number, points in enumerate(sets)
    ]
    assert np.all(np.array(inertia) <= 1.15 * np.array(best))


def test_draws_keep_the_covariance_and_fill_gaps() -> None:
    points = virtual._principal(blobs(2, 20)[0].astype(np.float64))
    original = blobs(2, 20)[0].astype(np.float64)
    distances = ((points[:, None] - points) ** 2).sum(axis=-1)
    expected = ((original[:, None] - original) ** 2).sum(axis=-1)
    np.testing.assert_allclose(distances / distances.mean(), expected / expected.mean(), atol=1e-4)
    drawn = virtual._from_one_heap(points, 0.0, 12, 3000, np.random.default_rng(0))
    assert not drawn[:, :, points.shape[1] :].any()
    drawn = drawn[:, :, : points.shape[1]].reshape(-1, points.shape[1])
    scale = points.std(axis=0)
    np.testing.assert_allclose(np.cov((drawn / scale).T), np.cov((points / scale).T, bias=True), atol=0.03)
    gap = [np.mean(np.abs(some[:, -1]) < scale[-1] / 2) for some in (points, drawn)]
    assert gap[0] == 0
    assert gap[1] > 0.2


@pytest.mark.parametrize("entries", [5, 60])
def test_chance_is_alike_in_all_directions(entries: int) -> None:
    """Distances of the draws are those of normal points of as many entries, with the points' variance."""
    points = virtual._principal(blobs(2, 10)[0].astype(np.float64))
    drawn = virtual._from_one_heap(points, 1.0, entries, 2000, np.random.default_rng(0))
    plain = np.random.default_rng(1).standard_normal((2000, 20, entries))
    plain *= np.sqrt(points.var(axis=0).sum() / entries)
    for quantile in (0.05, 0.5, 0.95):
        pairs = [np.linalg.norm(some[:, 3] - some[:, 17], axis=1) for some in (drawn, plain)]
        first, second = (np.quantile(own, quantile) for own in pairs)
        assert first == pytest.approx(second, rel=0.05)
    largest = [np.linalg.eigvalsh(some @ some.transpose(0, 2, 1))[:, -1].mean() for some in (drawn, plain)]
    assert largest[0] == pytest.approx(largest[1], rel=0.02)


def test_p_counts_draws_and_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    often = 0

    def valley(gram: NDArray[Any], parts: list[NDArray[Any]]) -> NDArray[Any]:
        calls.append(len(gram))
        return np.zeros(1) if len(calls) == 1 else np.where(np.arange(len(gram)) % 10 < often, 0.0, -1.0)

    monkeypatch.setattr(virtual, "_valley", valley)
    vectors = blobs(1, 20)[0]
    for share, expected, made in [(0, 1 / 121, 120), (1, 10 / 91, 100), (5, 10 / 15, 50), (10, 1, 50)]:
        often = share
        calls.clear()
        assert heaps(vectors, draws=120)[1] == pytest.approx(expected)
        assert sum(calls) == 1 + made
    assert heaps(vectors, draws=0) == (0.0, 1.0)


def test_several_heaps_have_the_least_p_whatever_their_number_and_scale() -> None:
    for count in (2, 3, 4):
        for scale in (1e-20, 1, 1e20):
            assert heaps(blobs(count)[0].astype(np.float64) * scale, draws=99)[1] == 0.01


@pytest.mark.parametrize("count", [1, 2, 10])
def test_identical_vectors_are_one_part(count: int) -> None:
    vectors = np.full((count, 3), 0.25, dtype=np.float32)
    for k in ("auto", 1, 3):
        found = virtual_neurons(vectors, k)  # type: ignore[arg-type]
        assert found.k == 1
        assert found.labels.tolist() == [0] * count
        np.testing.assert_allclose(found.centroids, vectors[:1])
    assert virtual_neurons(vectors).p == 1


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_vectors(count: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    assert 1 <= virtual_neurons(vectors, draws=5).k <= count
    assert virtual_neurons(vectors, 5).k == min(5, count)


def test_fewer_different_vectors_than_parts() -> None:
    vectors = np.repeat(np.eye(2, 4, dtype=np.float32), 6, axis=0)
    found = virtual_neurons(vectors, 4)
    assert found.k == 2
    assert found.silhouette == pytest.approx(1)


def test_the_same_twice() -> None:
    vectors, _ = blobs(3, 10, apart=2)
    first, second = virtual_neurons(vectors), virtual_neurons(vectors)
    assert first.labels.tobytes() == second.labels.tobytes()
    assert (first.silhouette, first.null, first.p) == (second.silhouette, second.null, second.p)


def test_assign() -> None:
    vectors, _ = blobs(3)
    found = virtual_neurons(vectors, 3)
    assert (found.assign(vectors) == found.labels).all()
    assert found.assign(found.centroids).tolist() == [0, 1, 2]
    new = np.random.default_rng(1).standard_normal((20, 12)).astype(np.float32) * 4
    expected = [min(range(3), key=lambda part: np.linalg.norm(v.astype(float) - found.centroids[part])) for v in new]
    assert found.assign(new).tolist() == expected


@pytest.mark.parametrize("shape", [(3,), (3, 11), (2, 3, 12)])
def test_assign_wants_vectors_of_the_same_length(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"expected vectors of shape \[m, 12\], got"):
        virtual_neurons(blobs(2)[0], 2).assign(np.zeros(shape, np.float32))


@pytest.mark.parametrize("call", [lambda v: cluster(v, 2), virtual_neurons, embed])
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros(3), r"expected vectors of shape \[n, d\] with n >= 1, got \[3\]"),
        (np.zeros((0, 3)), r"got \[0, 3\]"),
        (np.zeros((2, 2, 2)), r"got \[2, 2, 2\]"),
        (np.array([[0, np.nan], [1, 1]]), "hold NaN or infinity"),
        (np.array([[0, np.inf], [1, 1]]), "hold NaN or infinity"),
    ],
)
def test_wrong_vectors(call: Any, vectors: NDArray[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(vectors)


def test_wrong_number_of_clusters() -> None:
    with pytest.raises(ArgumentError, match="must be at least 1, got 0"):
        cluster(blobs(2)[0], 0)


def test_embedding_leaves_the_number_of_threads_alone() -> None:
    # In a process of its own: numba sets the number once, when it first runs.
    code = (
        "import numpy as np, torch; from pure_nb.virtual import embed; "
        "torch.set_num_threads(3); before = torch.get_num_threads(); "
        "embed(np.random.default_rng(0).random((40, 8))); print(before, torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "3"]


@pytest.mark.parametrize("size", [2, 64, 512])
def test_neighbours_are_those_of_all_differences(size: int) -> None:
    vectors = np.random.default_rng(size).standard_normal((60, size)) / size**0.5
    neighbour, distance = _nearest(vectors)
    expected = np.sqrt(((vectors[:, None] - vectors) ** 2).sum(axis=-1))
    order = np.argsort(expected, axis=1, kind="stable")[:, : neighbour.shape[1]]
    np.testing.assert_array_equal(neighbour, order)
    np.testing.assert_allclose(distance, np.take_along_axis(expected, order, axis=1), rtol=1e-6)
    # UMAP takes the first distance that is not 0 for that to the nearest other vector.
    np.testing.assert_array_equal(distance[:, 0], 0)


@pytest.mark.parametrize("layout", ["umap", "pca"])
def test_embedding_keeps_clouds_apart_and_is_the_same_twice(layout: Any) -> None:
    vectors, truth = blobs(2)
    found = embed(vectors, layout)
    assert found.shape == (50, 2)
    assert found.dtype == np.float32
    assert found.tobytes() == embed(vectors, layout).tobytes()
    assert silhouette_score(found, truth) > 0.5


def test_pca_keeps_distances_in_the_plane() -> None:
    flat = np.random.default_rng(0).standard_normal((20, 2))
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 2)))
    found = embed((flat @ turn.T).astype(np.float32), "pca")
    expected = np.linalg.norm(flat[:, None] - flat, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=-1), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (7, 3), (5, 1), (20, 1)])
def test_small_embeddings(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = embed(vectors, "umap" if shape[0] < 8 else "pca")
    assert found.shape == (shape[0], 2)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(("sizes", "effective"), [([3], 1), ([2, 2], 2), ([5, 5, 5], 3), ([24, 1], 1.182), ([0], 1)])
def test_score(sizes: list[int], effective: float) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes) if sum(sizes) else np.full(3, -1)
    found = VirtualNeurons(labels, np.zeros((len(sizes), 2), np.float32), 0.5, 0.2, 0.01)
    assert found.effective == pytest.approx(effective, abs=1e-3)
    assert found.score == pytest.approx((effective - 1) * 0.3, abs=1e-3)


def test_part_names() -> None:
    assert [part_name(part) for part in range(3)] == ["A", "B", "C"]


def test_names_of_many_parts() -> None:
    """Each its own, as columns of a spreadsheet; A to Z are followed by AA, not by A."""
    names = [part_name(part) for part in range(26 * 27 + 2)]
    assert names[:3] == ["A", "B", "C"]
    assert names[24:29] == ["Y", "Z", "AA", "AB", "AC"]
    assert names[51:53] == ["AZ", "BA"]
    assert names[-3:] == ["ZZ", "AAA", "AAB"]
    assert len(set(names)) == len(names)


def test_images_that_do_not_drive_the_neuron_are_assigned_to_no_part() -> None:
    parts = virtual_neurons(np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), 2, draws=0)
    found = parts.assign(np.array([[0.0, 0], [1, 0], [0, 1]]))
    assert found.tolist() == [-1, parts.labels[0], parts.labels[2]]
