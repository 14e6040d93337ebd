"""Virtual neurons: the clusters of a neuron's circuits (PURE, section 3.3).

k-means over the relevance vectors of a neuron's reference images, as in Dreyer et al. (2024). Each cluster is one
virtual neuron: the same channel, reached through one circuit. Beyond the paper, the number of clusters can be
chosen, with one as a possible answer, and a score says into how many parts the neuron is split, and how clearly.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from string import ascii_uppercase
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pure_nb._memory import keep_memory
from pure_nb.errors import ArgumentError
from pure_nb.methods._shapes import Bool, Float, Int
from pure_nb.methods._umap import compiled_umap, neighbours
from pure_nb.methods.null import DRAWS, clearest

Vectors = NDArray[np.floating[Any]]
Layout = Literal["umap", "pca"]

P = ParamSpec("P")
T = TypeVar("T")

CHOICES = (2, 3, 4, 5)
"""Numbers of virtual neurons the paper looks at."""

UMAP_NEIGHBOURS = 6
"""Neighbours of a vector in its layout, as in the paper."""


@dataclass(frozen=True, eq=False)
class VirtualNeurons:
    """The virtual neurons that a neuron is split into; none, and NaN for its numbers, of one that was not published.

    Attributes
    ----------
    labels
        int64 ``[n]``: which virtual neuron each reference image belongs to; 0 has the most images. -1 for images that
        do not activate the neuron at all.
    centroids
        float32 ``[k, d]``: the mean circuit of each virtual neuron.
    silhouette
        How clearly the parts are apart, -1..1; of a neuron that is left whole, how clearly the best parts would be.
    silhouette_gain
        How much clearer k-means' parts are, by one start, than those it finds where there is nothing to find: in draws
        that have all that the vectors have but separate heaps, see :func:`pure_nb.methods.null.clearest`.
    p
        How probable it is that such a draw is as clear.
    means, scale
        By several descriptions: float32 ``[k, D]`` and ``[D]``, see :func:`pure_nb.methods.combined.weighed`; or None.

    Examples
    --------
    >>> parts = study.neuron(3).virtual
    >>> parts.labels.shape, parts.centroids.shape
    ((6,), (2, 64))
    """

    labels: Int[NDArray[np.int64], " n"]
    centroids: Float[NDArray[np.float32], "k d"]
    silhouette: float
    silhouette_gain: float
    p: float
    means: Float[NDArray[np.float32], "k D"] | None = None
    scale: Float[NDArray[np.float32], " D"] | None = None

    @property
    def k(self) -> int:
        """Number of virtual neurons."""
        return len(self.centroids)

    @property
    def sizes(self) -> list[int]:
        """Number of reference images of each virtual neuron."""
        return [int((self.labels == part).sum()) for part in range(self.k)]

    @property
    def effective_clusters(self) -> float:
        """How many equally large parts would be as spread out as these: the exponential of the entropy of the sizes."""
        share = np.array([size for size in self.sizes if size]) / max(1, sum(self.sizes))
        return float(np.exp(-(share * np.log(share)).sum()))

    @property
    def score(self) -> float:
        """How polysemantic the neuron is: into how many parts it is split beyond one, times how clearly.

        ``(effective_clusters - 1) * silhouette_gain``: 0 for a neuron that is left whole, little for one with a few
        images that are unlike the others.
        """
        return (self.effective_clusters - 1) * self.silhouette_gain

    def predict(self, vectors: Float[Vectors, "m d"]) -> Int[NDArray[np.int64], " m"]:
        """The virtual neuron of new images, by their circuits: the nearest centroid.

        Parameters
        ----------
        vectors
            float ``[m, d]``, from :func:`pure_nb.methods.descriptions.describe_pairs`; zeros belong to no part, -1.
        """
        vectors, d = np.asarray(vectors), self.centres.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != d:
            raise ArgumentError(f"expected vectors of shape [m, {d}], got {list(vectors.shape)}")
        return np.where(vectors.any(axis=1), nearest(self.scaled(vectors), self.centres), -1)

    @property
    def centres(self) -> Float[NDArray[np.float32], "k d"]:
        """What :meth:`scaled` vectors are nearest to: the mean circuits, or of several descriptions their means."""
        return self.centroids if self.means is None or self.scale is None else self.means * self.scale

    def scaled(self, vectors: Float[Vectors, "m d"]) -> Float[Vectors, "m d"]:
        """Vectors as they are compared: each of several descriptions counts what it weighs."""
        return vectors if self.scale is None else vectors * self.scale


def nearest(
    vectors: Float[NDArray[np.floating], "m d"], centroids: Float[NDArray[np.floating], "k d"]
) -> Int[NDArray[np.int64], " m"]:
    """The centroid that is nearest to each vector; of equally near ones the first.

    Parameters
    ----------
    vectors, centroids
        float ``[m, d]`` and ``[k, d]``.

    Returns
    -------
    ndarray
        int64 ``[m]``, below k.
    """
    return ((vectors[:, None] - centroids) ** 2).sum(axis=-1).argmin(axis=1)


@cache
def _threads() -> ThreadpoolController:
    # scikit-learn takes half as long to import as torch, so it waits until something is clustered. But not until
    # the threads are limited: that holds for the libraries that are loaded by then.
    import sklearn.cluster  # noqa: F401

    keep_memory()
    return ThreadpoolController()  # to look for the libraries takes 4 ms


def on_one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate what clusters: on a hundred vectors threads cost five times what they bring."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        with _threads().limit(limits=1):
            return function(*args, **kwargs)

    return limited


def kmeans(vectors: Float[Vectors, "n d"], k: int, seed: int = 0, *, n_init: int = 10) -> Int[NDArray[np.int64], " n"]:
    """k-means with the paper's settings; the largest cluster is number 0, equally large ones in order of appearance.

    The chapter :doc:`Virtual neurons </book/virtual-neurons>` builds it from scratch.

    Parameters
    ----------
    vectors
        float ``[n, d]``.
    k
        Number of clusters. If there are fewer different vectors than that, there are as many clusters as those.
    seed, n_init
        Random state and restarts of scikit-learn's ``KMeans``.

    Returns
    -------
    ndarray
        int64 ``[n]``, from 0.
    """
    from sklearn.cluster import KMeans  # late, see pure_nb._imports
    from sklearn.exceptions import ConvergenceWarning

    vectors = _checked(vectors)
    if k < 1:
        raise ArgumentError(f"the number of clusters must be at least 1, got {k}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than clusters
        found = KMeans(min(k, len(vectors)), n_init=n_init, random_state=seed).fit_predict(vectors)
    _, first, inverse, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    return rank[inverse]


def kmeans_some(
    vectors: Float[Vectors, "n d"], active: Bool[NDArray[np.bool_], " n"], k: int, *, seed: int = 0
) -> Int[NDArray[np.int64], " n"]:
    """:func:`kmeans` of those images that activate the neuron; -1 for the others.

    Parameters
    ----------
    vectors
        float ``[n, d]``.
    active
        Bool ``[n]``.
    k, seed
        As for :func:`kmeans`.
    """
    labels = np.full(len(active), -1)
    if active.any():
        labels[active] = kmeans(vectors[active], k, seed=seed)
    return labels


def refitted(
    vectors: Float[Vectors, "n d"],
    parts: Int[NDArray[np.int64], " n"],
    training: Bool[NDArray[np.bool_], " n"],
    *,
    seed: int = 0,
) -> Int[NDArray[np.int64], " n"]:
    """The same number of clusters from some of the vectors alone; each of the others belongs to the nearest.

    Parameters
    ----------
    vectors
        float ``[n, d]``.
    parts
        int64 ``[n]``, from 0: clusters of all of them. A new one is numbered as the one that it shares most with.
    training
        Bool ``[n]``: the vectors to cluster.
    seed
        As for :func:`kmeans`.

    Returns
    -------
    ndarray
        int64 ``[n]``.

    Raises
    ------
    ArgumentError
        If fewer different vectors are left than there are parts.
    """
    k = int(parts.max()) + 1
    own = kmeans(vectors[training], k, seed=seed)
    if own.max() + 1 < k:
        raise ArgumentError(
            f"every second image makes {own.max() + 1} clusters and not {k}: ask for fewer parts, or held_out=False"
        )
    shared = np.zeros((k, k), dtype=np.int64)
    np.add.at(shared, (own, parts[training]), 1)
    number = scipy.optimize.linear_sum_assignment(shared, maximize=True)[1]
    centroids = np.empty((k, vectors.shape[1]))
    for new, old in enumerate(number.tolist()):
        centroids[old] = vectors[training][own == new].mean(axis=0)
    found = nearest(vectors, centroids)
    found[training] = number[own]
    return found


@on_one_thread
def virtual_neurons(
    vectors: Float[Vectors, "n d"],
    k: int | Literal["auto"] = "auto",
    *,
    choices: Sequence[int] = CHOICES,
    draws: int = DRAWS,
    alpha: float = 0.05,
    seed: int = 0,
) -> VirtualNeurons:
    """Split a neuron into parts.

    The chapter :doc:`Virtual neurons </book/virtual-neurons>` builds its clustering from scratch.

    Parameters
    ----------
    vectors
        float ``[n, d]``: relevance vectors of its reference images. Vectors of zeros, of images that do not activate
        the neuron, belong to no part.
    k
        Number of virtual neurons; ``"auto"`` takes the one of ``choices`` with the largest mean silhouette, or one if
        the best clusters are no clearer than those of draws from a single heap, :func:`pure_nb.methods.null.clearest`.
        Only the number is chosen so; the parts are those of :func:`kmeans`.
    choices
        Numbers to choose from.
    draws
        Largest number of draws; see :func:`pure_nb.methods.null.clearest`. With 0, ``p`` is 1.
    alpha
        The neuron is left whole unless ``p`` is at most this. It holds for one neuron; how many of a layer have several
        meanings is to be counted by the false-discovery rate, ``q`` in :attr:`pure_nb.study.Study.neurons`.
    seed
        Of k-means and of the draws.

    Returns
    -------
    VirtualNeurons
        With ``k = 1`` also if all vectors are equal.

    Raises
    ------
    ArgumentError
        If the vectors are not ``[n, d]``, or hold NaN.

    Examples
    --------
    >>> heaps = np.repeat(np.eye(2, 5), 10, axis=0) + np.random.default_rng(0).normal(0, 0.1, (20, 5))
    >>> parts = virtual_neurons(heaps.astype(np.float32), k=2)
    >>> parts.sizes
    [10, 10]
    """
    from sklearn import config_context  # late, see pure_nb._imports

    vectors = _checked(vectors)
    active = vectors.any(axis=1)
    labels = np.where(active, 0, -1)
    own = vectors[active]
    silhouette, gain, p = 0.0, 0.0, 1.0
    if k == "auto":
        parts, numbers = 1, [number for number in choices if 1 < number < len(own)]
        if numbers and (own != own[0]).any():
            number, silhouette, gain, p = clearest(own, numbers, draws=draws, seed=seed)
            parts = number if p <= alpha else 1
    else:
        parts = min(k, len(own))
    if parts > 1:
        # To check arguments would take as long as the rest.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            labels[active] = kmeans(own, parts, seed=seed)
            silhouette = _silhouette(own, labels[active])
        if k != "auto" and draws and np.isfinite(silhouette):
            _, _, gain, p = clearest(own, [parts], draws=draws, seed=seed)
    return VirtualNeurons(labels, _centroids(vectors, labels), np.nan_to_num(silhouette), gain, p)


WHOLE = "whole"
"""What the whole neuron is called among its parts."""


def part_name(part: int) -> str:
    """A for the largest virtual neuron, then B, C ... Z, AA, AB ..."""
    earlier, letter = divmod(part, 26)
    return (part_name(earlier - 1) if earlier else "") + ascii_uppercase[letter]


def packed(parts: Sequence[VirtualNeurons]) -> tuple[dict[str, NDArray[Any]], list[list[int]]]:
    """The virtual neurons of several neurons, as arrays to keep and a note of where each one's centroids are."""
    sizes = [part.k for part in parts]
    arrays = {
        "labels": np.stack([part.labels for part in parts]),
        "centroids": np.concatenate([part.centroids for part in parts]),
        "scores": np.array([[part.silhouette, part.silhouette_gain, part.p] for part in parts]),
    }
    for name in ("means", "scale") if parts[0].means is not None else ():
        arrays[name] = np.concatenate([np.atleast_2d(getattr(part, name)) for part in parts])
    return arrays, [[int(end) - size, size] for end, size in zip(np.cumsum(sizes), sizes)]


def unpacked(arrays: dict[str, NDArray[Any]], note: list[list[int]]) -> list[VirtualNeurons]:
    """The inverse of :func:`packed`."""
    found, means = [], arrays.get("means")
    for row, (start, k) in enumerate(note):
        own = (arrays["labels"][row], arrays["centroids"][start : start + k], *arrays["scores"][row].tolist())
        found.append(VirtualNeurons(*own, *(() if means is None else (means[start : start + k], arrays["scale"][row]))))
    return found


def embed(
    vectors: Float[Vectors, "n d"], layout: Layout = "umap", *, seed: int = 0
) -> Float[NDArray[np.float32], "n 2"]:
    """Lay vectors out in the plane, to look at.

    Parameters
    ----------
    vectors
        float ``[n, d]``.
    layout
        ``"umap"`` with the paper's settings (6 neighbours, minimal distance 0.3), or ``"pca"``. Fewer than 8 vectors
        are always laid out by their principal components, since UMAP has nothing to go by.
    seed
        Of UMAP.

    Returns
    -------
    ndarray
        float32 ``[n, 2]``.
    """
    vectors = _checked(vectors)
    if len(vectors) == 1:
        return np.zeros((1, 2), dtype=np.float32)
    if layout == "pca" or len(vectors) < 8:
        from sklearn.decomposition import PCA  # late, see pure_nb._imports

        parts = min(2, *vectors.shape)
        flat = PCA(parts, svd_solver="full").fit_transform(vectors)
        return np.pad(flat, ((0, 0), (0, 2 - parts))).astype(np.float32)
    umap = compiled_umap()
    torch = sys.modules.get("torch")  # a process that lays out alone does without
    threads = torch.get_num_threads() if torch else 0
    try:
        reducer = umap(
            UMAP_NEIGHBOURS,
            min_dist=0.3,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(*neighbours(vectors, UMAP_NEIGHBOURS), None),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"precomputed_knn\[2\]")  # new points can't be laid out, and none are
            return np.asarray(reducer.fit_transform(vectors), dtype=np.float32)
    finally:  # numba, which UMAP runs on, gives torch as many as there are cores, whatever it had
        if torch:
            torch.set_num_threads(threads)


def _checked(vectors: Vectors) -> Vectors:
    vectors = np.asarray(vectors, dtype=np.float64)  # k-means on float32 takes half as long again: it is widened anew
    if vectors.ndim != 2 or not len(vectors):
        raise ArgumentError(f"expected vectors of shape [n, d] with n >= 1, got {list(vectors.shape)}")
    if not np.isfinite(vectors).all():
        raise ArgumentError("the vectors hold NaN or infinity")
    return vectors


def _centroids(vectors: Vectors, labels: NDArray[np.int64]) -> NDArray[np.float32]:
    if labels.max() < 0:  # nothing activates the neuron
        return np.zeros((1, vectors.shape[1]), dtype=np.float32)
    means = [vectors[labels == label].mean(axis=0, dtype=np.float64) for label in range(labels.max() + 1)]
    return np.stack(means).astype(np.float32)


def _silhouette(vectors: Vectors, labels: NDArray[np.int64]) -> float:
    """Mean silhouette; NaN where it is not defined (one cluster, or as many as vectors)."""
    from sklearn.metrics import silhouette_score  # late, see pure_nb._imports

    return float(silhouette_score(vectors, labels)) if 1 < labels.max() + 1 < len(vectors) else float("nan")
