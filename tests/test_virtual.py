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

from pure_nb.errors import ArgumentError
from pure_nb.methods._umap import neighbours
from pure_nb.methods.virtual import UMAP_NEIGHBOURS, VirtualNeurons, embed, kmeans, part_name, virtual_neurons


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
    found = kmeans(vectors, k)
    expected = KMeans(k, n_init=10, random_state=0).fit_predict(vectors)
    assert adjusted_rand_score(expected, found) == 1
    assert (found == kmeans(vectors, k)).all()


@given(seed=st.integers(0, 50), k=st.integers(1, 6), count=st.integers(1, 30))
def test_the_largest_cluster_comes_first(seed: int, k: int, count: int) -> None:
    vectors = np.random.default_rng(seed).integers(0, 4, (count, 2)).astype(np.float32)
    labels = kmeans(vectors, k, n_init=1)
    sizes = np.bincount(labels)
    assert labels.shape == (count,)
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()
    assert len(sizes) <= min(k, len(np.unique(vectors, axis=0)))
    first = [int(np.argmax(labels == part)) for part in range(len(sizes))]
    assert all(a < b for a, b, c, d in zip(first, first[1:], sizes, sizes[1:]) if c == d)


def test_equal_vectors_share_a_cluster() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), [4, 2, 3], axis=0)
    assert kmeans(vectors, 5).tolist() == [0, 0, 0, 0, 2, 2, 1, 1, 1]  # three different vectors, so three clusters
    assert kmeans(np.zeros((6, 2), np.float32), 3).tolist() == [0] * 6


def test_silhouette_is_scikit_learns() -> None:
    vectors, _ = blobs(3)
    found = virtual_neurons(vectors, 3)
    assert found.silhouette == pytest.approx(silhouette_score(vectors, found.labels))
    assert found.silhouette_gain > 0.1
    assert found.p == pytest.approx(0.002)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_auto_finds_separate_clouds(count: int) -> None:
    vectors, truth = blobs(count)
    found = virtual_neurons(vectors)
    assert found.k == count
    assert adjusted_rand_score(truth, found.labels) == 1
    assert found.p == pytest.approx(0.002)
    share = np.array(found.sizes) / len(vectors)
    effective = np.prod(share**-share)
    assert found.score == pytest.approx((effective - 1) * found.silhouette_gain)
    assert found.score > 0.1
    for part in range(count):
        np.testing.assert_allclose(found.centroids[part], vectors[found.labels == part].mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("apart", [2.0, 8.0])
def test_scikit_learn_is_asked_for_the_reported_number_alone(apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = blobs(3, apart=apart)
    asked: list[int] = []

    def fitted(self: KMeans, *arguments: Any, **how: Any) -> Any:
        asked.append(self.n_clusters)
        return fit(self, *arguments, **how)

    fit = KMeans.fit
    monkeypatch.setattr(KMeans, "fit", fitted)
    parts = [virtual_neurons(vectors, alpha=1), virtual_neurons(vectors, 4), virtual_neurons(vectors, alpha=0)]
    assert asked == [parts[0].k, 4]
    assert parts[2].silhouette == pytest.approx(parts[0].silhouette, abs=1e-3)
    monkeypatch.undo()
    for found in parts[:2]:
        assert (found.labels == kmeans(vectors, found.k)).all()
        assert found.silhouette == pytest.approx(silhouette_score(vectors, found.labels))


def test_auto_leaves_one_cloud_whole() -> None:
    parts = [virtual_neurons(blobs(1, 60, seed=seed)[0], draws=99).k for seed in range(10)]
    assert parts.count(1) >= 8


def test_images_that_do_not_activate_the_neuron_belong_to_no_part() -> None:
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


def test_p_may_be_alpha() -> None:
    found = virtual_neurons(blobs(2)[0], draws=19, alpha=0.05)
    assert (found.p, found.k) == (0.05, 2)


def test_alpha_zero_never_splits() -> None:
    assert virtual_neurons(blobs(2)[0], alpha=0.0, draws=9).k == 1


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
    assert (first.silhouette_gain, first.p) == (second.silhouette_gain, second.p)


def test_assign() -> None:
    vectors, _ = blobs(3)
    found = virtual_neurons(vectors, 3)
    assert (found.predict(vectors) == found.labels).all()
    assert found.predict(found.centroids).tolist() == [0, 1, 2]
    new = np.random.default_rng(1).standard_normal((20, 12)).astype(np.float32) * 4
    expected = [min(range(3), key=lambda part: np.linalg.norm(v.astype(float) - found.centroids[part])) for v in new]
    assert found.predict(new).tolist() == expected


@pytest.mark.unchecked
@pytest.mark.parametrize("shape", [(3,), (3, 11), (2, 3, 12)])
def test_assign_wants_vectors_of_the_same_length(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"expected vectors of shape \[m, 12\], got"):
        virtual_neurons(blobs(2)[0], 2).predict(np.zeros(shape, np.float32))


@pytest.mark.unchecked
@pytest.mark.parametrize("call", [lambda v: kmeans(v, 2), virtual_neurons, embed])
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
        kmeans(blobs(2)[0], 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["lambda self, vectors: _launch_threads()", pytest.param("UMAP.fit_transform", marks=pytest.mark.nightly)],
)
def test_embedding_leaves_the_number_of_threads_alone(method: str) -> None:
    """In a process of its own: numba sets the number once, when it first runs, which takes UMAP long to compile."""
    code = (
        "import numpy as np, torch; from numba.np.ufunc.parallel import _launch_threads; from umap import UMAP; "
        f"from pure_nb.methods.virtual import embed; UMAP.fit_transform = {method}; torch.set_num_threads(3); "
        "before = torch.get_num_threads(); embed(np.random.default_rng(0).random((40, 8))); "
        "print(before, torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "3"]


@pytest.mark.parametrize("size", [2, 64, 512])
def test_neighbours_are_those_of_all_differences(size: int) -> None:
    vectors = np.random.default_rng(size).standard_normal((60, size)) / size**0.5
    neighbour, distance = neighbours(vectors, UMAP_NEIGHBOURS)
    expected = np.sqrt(((vectors[:, None] - vectors) ** 2).sum(axis=-1))
    order = np.argsort(expected, axis=1, kind="stable")[:, : neighbour.shape[1]]
    np.testing.assert_array_equal(neighbour, order)
    np.testing.assert_allclose(distance, np.take_along_axis(expected, order, axis=1), rtol=1e-6)
    # UMAP takes the first distance that is not 0 for that to the nearest other vector.
    np.testing.assert_array_equal(distance[:, 0], 0)


@pytest.mark.slow
def test_what_is_compiled_for_a_layout_is_kept() -> None:
    """Or every process that lays out compiles for four seconds."""
    embed(blobs(2)[0])
    from umap import umap_  # late, as in embed

    for slow in (umap_.smooth_knn_dist, umap_.compute_membership_strengths):
        assert slow.signatures
        assert slow.stats.cache_path


@pytest.mark.slow
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
    found = VirtualNeurons(labels, np.zeros((len(sizes), 2), np.float32), 0.5, 0.3, 0.01)
    assert found.effective_clusters == pytest.approx(effective, abs=1e-3)
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


def test_images_that_do_not_activate_the_neuron_are_of_no_part() -> None:
    parts = virtual_neurons(np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), 2, draws=0)
    found = parts.predict(np.array([[0.0, 0], [1, 0], [0, 1]]))
    assert found.tolist() == [-1, parts.labels[0], parts.labels[2]]
