"""Whether clusters come again from other images: each half of the vectors is clustered by itself, at random.

Stability says how far to trust which image is in which part. It does not say that there are several: a single long heap
is cut in two at the same place every time. For that there is ``p``, :func:`pure_nb.methods.null.clearest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError
from pure_nb.methods._shapes import Float, Int
from pure_nb.methods.null import partitions
from pure_nb.methods.virtual import kmeans, on_one_thread

Vectors = NDArray[np.floating[Any]]

CUTS = 10
"""Cuts in two halves: the standard error of a neuron's stability is then some 0.02."""

STARTS = 10
"""Starts of k-means for each half, as for the parts themselves."""


@dataclass(frozen=True, eq=False)
class Stability:
    """How well the parts of one neuron come again.

    Attributes
    ----------
    neuron
        Adjusted Rand index of the labels by two halves, mean over cuts: 0 by chance, 1 if all are the same; NaN for a
        neuron with one part, or with fewer than two images for each.
    parts
        float64 ``[k]``: Jaccard index of each part and the cluster of a half that is most like it, mean over halves:
        0..1, and never near 0, as any cluster shares some images. After Hennig, a part above 0.75 is there; one below
        0.6 should not be trusted; one below 0.5 is dissolved. NaN where that of the neuron is.
    """

    neuron: float
    parts: Float[NDArray[np.float64], " k"]


def halved(vectors: Float[Vectors, "n d"], k: int, *, cuts: int = CUTS, seed: int = 0) -> Int[NDArray[Any], "cuts 2 n"]:
    """What two halves of the vectors, each clustered by itself, say of all of them.

    Parameters
    ----------
    vectors
        float ``[n, d]``.
    k
        Number of clusters.
    cuts
        Number of cuts in two random halves of ``n // 2`` vectors each; of an odd number one vector is in neither.
    seed
        Of the cuts, and of the starts of k-means.

    Returns
    -------
    ndarray
        int64 ``[cuts, 2, n]``: for each half, the cluster whose mean is nearest to each vector. The best of
        :data:`STARTS` starts of k-means counts.

    Raises
    ------
    ArgumentError
        If a half has fewer vectors than there are clusters, or there is no cut.
    """
    half, generator = len(vectors) // 2, np.random.default_rng(seed)
    if k < 1 or cuts < 1 or half < k:
        raise ArgumentError(
            f"halves of {len(vectors)} vectors can't make {k} clusters in {cuts} cuts: "
            "ask for at least one of each, and two vectors for each cluster"
        )
    centred = np.asarray(vectors, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    gram = centred @ centred.T
    orders = [generator.permutation(len(vectors))[: 2 * half].reshape(2, half) for _ in range(cuts)]
    return np.stack([by_some(gram, own, k, generator) for own in orders])


def by_some(
    gram: Float[Vectors, "n n"], some: Int[NDArray[Any], "sets m"], k: int, generator: np.random.Generator
) -> Int[NDArray[np.int64], "sets n"]:
    """The clusters of some vectors, and the nearest of them for every vector; all by scalar products.

    Parameters
    ----------
    gram
        float ``[n, n]``: the scalar products of the vectors.
    some
        int ``[sets, m]``: the vectors of each set that is clustered by itself.
    k
        Number of clusters.
    generator
        Of the starts of k-means, of which the best counts.

    Returns
    -------
    ndarray
        int64 ``[sets, n]``.
    """
    inner = gram[some[:, :, None], some[:, None]]
    clusters = partitions(np.repeat(inner, STARTS, axis=0), [k], generator).reshape(k, len(some), STARTS, -1)
    size = np.maximum(clusters.sum(axis=3), 1)
    # What k-means makes small: the vectors' squares, which are those of all starts, less these.
    squares = (np.einsum("khsn,hnm,khsm->khs", clusters, inner, clusters, optimize=True) / size).sum(axis=0)
    each = zip(some, clusters.transpose(1, 2, 0, 3), squares.argmax(axis=1))
    return np.stack([_nearest(gram, order, mine[start]) for order, mine, start in each])


def _nearest(gram: Vectors, order: NDArray[np.int64], clusters: Vectors) -> NDArray[np.int64]:
    """The nearest mean for every vector, ``[n]``, by scalar products; the clusters are one-hot, ``[k, half]``."""
    size = clusters.sum(axis=1, keepdims=True)
    weight = clusters / np.maximum(size, 1)
    square = np.einsum("kn,nm,km->k", weight, gram[np.ix_(order, order)], weight, optimize=True)
    distance = square[:, None] - 2 * weight @ gram[order]
    return np.where(size, distance, np.inf).argmin(axis=0)


def split_half(vectors: Float[Vectors, "n d"], k: int, *, cuts: int = CUTS, seed: int = 0) -> float:
    """Adjusted Rand index of the labels that two random halves give to all vectors, mean over cuts.

    Parameters
    ----------
    vectors, k, cuts, seed
        As for :func:`halved`.

    Examples
    --------
    >>> heaps = np.repeat(np.eye(2, 5), 10, axis=0) + np.random.default_rng(0).normal(0, 0.1, (20, 5))
    >>> split_half(heaps, k=2)
    1.0
    """
    return _mean_index(np.eye(k)[halved(vectors, k, cuts=cuts, seed=seed)])


def _mean_index(found: Vectors) -> float:
    """Mean adjusted Rand index of two labelings each, which are one-hot: ``[cuts, 2, n, k]``."""
    return float(rand_index(np.einsum("cnk,cnj->ckj", found[:, 0], found[:, 1])).mean())


def rand_index(table: Float[Vectors, "*draws k j"]) -> Float[Vectors, "*draws"]:
    """Adjusted Rand index of two labelings, as scikit-learn's, of many at once and by their tables.

    Parameters
    ----------
    table
        float ``[..., k, j]``: how many images have one label and the other. Bootstrap samples of images are multinomial
        draws of it.

    Returns
    -------
    ndarray
        ``[...]``: 1 where all pairs of images are together, or apart, by both.
    """

    def pairs(counts: Vectors) -> Vectors:
        return (counts * (counts - 1) / 2).sum(axis=-1)

    both = pairs(table.reshape(*table.shape[:-2], -1))
    one, other = pairs(table.sum(axis=-1)), pairs(table.sum(axis=-2))
    chance = one * other / np.maximum(pairs(table.sum(axis=(-2, -1))[..., None]), 1)
    spread = (one + other) / 2 - chance
    return np.where(spread > 0, (both - chance) / np.where(spread > 0, spread, 1), 1.0)


def stability(
    vectors: Float[Vectors, "n d"], labels: Int[NDArray[np.int64], " n"], *, cuts: int = CUTS, seed: int = 0
) -> Stability:
    """How well parts come again from halves of the images: of the neuron as a whole, and of each part.

    Of each part this is the clusterwise stability of Hennig (2007, *Cluster-wise assessment of cluster stability*),
    with halves as samples (``clusterboot`` with ``bootmethod="subset"``), but that the images outside of a half count
    as well, by the mean that is nearest.

    Parameters
    ----------
    vectors
        float ``[n, d]``: relevance vectors of the reference images.
    labels
        int64 ``[n]``: their parts, as :attr:`pure_nb.methods.virtual.VirtualNeurons.labels`; -1 are left out.
    cuts, seed
        As for :func:`halved`.

    Examples
    --------
    >>> neuron = study.neuron(3)
    >>> stability(neuron.vectors, neuron.virtual.labels).parts.shape
    (2,)
    """
    known = labels >= 0
    vectors, labels = np.asarray(vectors)[known], labels[known]
    k = int(labels.max(initial=0)) + 1
    if k == 1 or len(labels) < 2 * k:
        return Stability(float("nan"), np.full(k, np.nan))
    found = halved(vectors, k, cuts=cuts, seed=seed)
    parts, others = (np.eye(k)[each] for each in (labels, found.reshape(-1, len(labels))))
    shared = np.einsum("nk,hnj->hkj", parts, others)
    union = parts.sum(axis=0)[:, None] + others.sum(axis=1)[:, None] - shared
    return Stability(_mean_index(others.reshape(cuts, 2, -1, k)), (shared / union).max(axis=2).mean(axis=0))


@dataclass(frozen=True, eq=False)
class Step:
    """How stable parts are by some of the images.

    Attributes
    ----------
    references
        How many images.
    stability
        :func:`split_half` of their vectors.
    agreement
        Adjusted Rand index of their clusters and the parts given.
    """

    references: int
    stability: float
    agreement: float


@on_one_thread
def step(
    vectors: Float[Vectors, "n d"], labels: Int[NDArray[np.int64], " n"], k: int, *, cuts: int = CUTS, seed: int = 0
) -> Step:
    """Whether clusters of some images are stable, and those that parts found elsewhere would put them in.

    Parameters
    ----------
    vectors
        float ``[n, d]``.
    labels
        int64 ``[n]``: the part that each belongs to, below ``k``, by :meth:`.VirtualNeurons.predict`.
    k
        Number of clusters.
    cuts, seed
        As for :func:`halved`.
    """
    table = np.zeros((k, k))
    np.add.at(table, (kmeans(vectors, k, seed=seed), labels), 1)
    return Step(len(vectors), split_half(vectors, k, cuts=cuts, seed=seed), float(rand_index(table)))


def curve(
    vectors: Float[Vectors, "n d"],
    labels: Int[NDArray[np.int64], " n"],
    k: int,
    sizes: Sequence[int],
    *,
    cuts: int = CUTS,
    seed: int = 0,
) -> list[Step]:
    """How stability and agreement grow with the number of images.

    Parameters
    ----------
    vectors
        float ``[n, d]``: relevance vectors of the reference images, strongest first.
    labels, k, cuts, seed
        As for :func:`step`.
    sizes
        How many of the first images to take: those that there are not are left out.

    Examples
    --------
    >>> neuron = study.neuron(3)
    >>> [step.references for step in curve(neuron.vectors, neuron.virtual.labels, 2, sizes=[4, 6, 100])]
    [4, 6]
    """
    some = [size for size in sizes if 2 * k <= size <= len(vectors)]
    return [step(vectors[:size], labels[:size], k, cuts=cuts, seed=seed) for size in some]
