"""Whether a neuron means one thing: its vectors against draws that have all that they have but separate heaps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import scipy
from numpy.typing import NDArray

from pure_nb.methods._shapes import Float

Vectors = NDArray[np.floating]

DRAWS = 499
"""Draws from a single heap, at most, that a neuron is compared with."""

HITS = 25
"""Draws at least as clear as the neuron, after which no more are needed."""

BATCH = 50
"""Draws made at once."""

ELEMENTS = 2_000_000
"""Entries of a batch's scalar products, at most."""

STARTS = 200
"""Starts of k-means for the vectors, at most; the mean of their results is compared with the draws', so that p hardly
depends on the seed."""

TRIALS = 4
"""Places tried for each centre that k-means starts from, of which the best is taken."""

ITERATIONS = 30
"""Steps of k-means; few need as many."""

STRAIGHT = 0.01
"""Least skewness of a draw's axis; as good as none."""


def one_heap(
    vectors: Float[Vectors, "n d"], numbers: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Test whether vectors lie in several heaps, against draws that have all that the vectors have but heaps.

    There are two kinds of draws, since a vector can be odd in two ways, and ``p`` is the larger one of theirs.

    * A single *heap* of the same shape: along each principal axis numbers of the same variance, and of the same
      skewness as far as that is not by chance, from a gamma distribution (Pearson's type III). It keeps what ties the
      entries together, such as a shared factor that most images have little of.
    * *Shuffles*: each entry by itself is shuffled between the images. They keep how each entry is distributed, such as
      rare large values or many zeros.

    Vectors and draws are clustered alike, and compared by their largest mean silhouette. How often that is wrong about
    which kind of vectors is in the chapter *Virtual neurons*; with few vectors of many entries it finds little.

    Draws end early where the answer is clear, once :data:`HITS` of a kind are as clear as the vectors (Besag and
    Clifford, 1991).

    Parameters
    ----------
    vectors
        float ``[n, d]``.
    numbers
        Numbers of clusters to try, 2 or more, below ``n``.
    draws
        Largest number of draws of each kind: ``p`` is at least ``1 / (1 + draws)``. Among m neurons, r of them at this
        least p, a false-discovery rate of 5 % needs ``20 m / r`` draws.
    seed
        Of the draws, and of the starts of k-means.

    Returns
    -------
    gain, p
        By how much the vectors' silhouette is larger than the mean of the first :data:`BATCH` draws, 0 without any, and
        the probability that a draw is at least as clear; by the kind of draws that are the clearer ones.
    """
    generator = np.random.default_rng(seed)
    centred = _centred(vectors)
    axes = _principal(centred)
    own = _clearest(_gram(axes[None]), numbers, generator, STARTS).mean()
    null, hits, made = np.zeros(2), np.zeros(2, dtype=np.int64), 0
    while made < draws:
        count = min(BATCH, draws - made, max(1, ELEMENTS // len(axes) ** 2))
        kinds = _heaps(axes, count, generator), _shuffles(centred, count, generator)
        values = np.stack([_clearest(gram, numbers, generator) for gram in kinds])
        null = null if made else values.mean(axis=1)
        reached = hits[:, None] + np.cumsum(values >= own, axis=1)
        if (ends := (reached >= HITS).any(axis=0)).any():
            return float(own - null.max()), HITS / (made + 1 + int(np.argmax(ends)))
        made, hits = made + count, reached[:, -1]
    return float(own - null.max()) if draws else 0.0, (1 + int(hits.max())) / (1 + made)


def _centred(vectors: Vectors) -> Vectors:
    """Vectors about their mean, ``[n, d]``; the largest of their numbers is 1 or -1."""
    centred = vectors - vectors.mean(axis=0)
    return centred / (np.abs(centred).max() or 1.0)


def _principal(centred: Vectors) -> Vectors:
    """Coordinates of vectors in their principal axes, float32 ``[n, axes]``; their mean square is 1."""
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    axes = (left * values)[:, values > 1e-5 * values[0]]
    return (axes / np.sqrt((axes**2).mean() if axes.size else 1.0)).astype(np.float32)


def _heaps(axes: Vectors, count: int, generator: np.random.Generator) -> Vectors:
    """Scalar products, ``[count, n, n]``, of points from one heap of the shape of ``axes``, ``[n, axes]``."""
    n, measured = len(axes), scipy.stats.skew(axes.astype(np.float64), axis=0)
    by_chance = np.sqrt(12 / (np.pi * n))  # mean absolute skewness of n normal numbers
    lean = np.copysign(np.maximum(np.abs(measured) - by_chance, STRAIGHT), measured)
    shape = (4 / lean**2).astype(np.float32)
    gamma = generator.standard_gamma(shape, (count, *axes.shape), dtype=np.float32)
    return _gram((gamma - shape) * (np.sign(lean) * axes.std(axis=0) / np.sqrt(shape)).astype(np.float32))


def _shuffles(centred: Vectors, count: int, generator: np.random.Generator) -> Vectors:
    """Scalar products, ``[count, n, n]``, of vectors ``[n, d]`` whose entries were shuffled, each by itself."""
    columns = np.ascontiguousarray(centred.T, dtype=np.float32)  # one draw at a time, since d may be large
    return np.concatenate([_gram(generator.permuted(columns, axis=1).T[None]) for _ in range(count)])


def _gram(points: Vectors) -> Vectors:
    """Scalar products of the points of each set: ``[sets, n, d]`` to ``[sets, n, n]``."""
    return points @ points.transpose(0, 2, 1)


def _clearest(gram: Vectors, numbers: Sequence[int], generator: np.random.Generator, starts: int = 1) -> Vectors:
    """The largest mean silhouette of each set of points over numbers of clusters: ``[sets, n, n]`` to ``[sets]``.

    Of a single set, from each of several starts: ``[starts]``.
    """
    square = np.einsum("sii->si", gram)
    distance = np.sqrt(np.maximum(square[:, :, None] + square[:, None] - 2 * gram, 0))
    distance[:, np.arange(gram.shape[1]), np.arange(gram.shape[1])] = 0
    gram = np.broadcast_to(gram, (max(starts, len(gram)), *gram.shape[1:]))
    return np.max([_silhouettes(distance, part) for part in _partitions(gram, numbers, generator)], axis=0)


def _partitions(gram: Vectors, numbers: Sequence[int], generator: np.random.Generator) -> list[Vectors]:
    """k-means of many sets of points at once, from one start (k-means++) each, by scalar products alone.

    Parameters
    ----------
    gram
        float ``[sets, n, n]``: the points' scalar products.
    numbers
        Numbers of clusters.
    generator
        Of the starts.

    Returns
    -------
    list of arrays
        For each number k, one-hot labels, float ``[sets, k, n]``. A cluster may end up empty.
    """
    ends = np.cumsum([0, *numbers])
    labels = np.concatenate([_started(gram, k, generator) for k in numbers], axis=1)
    moving = np.arange(len(gram))
    for _ in range(ITERATIONS):
        old = labels[moving]
        size = old.sum(axis=2, keepdims=True)
        towards = old @ (gram if len(moving) == len(gram) else gram[moving]) / np.maximum(size, 1)
        centre_square = np.einsum("skn,skn->sk", old, towards)[:, :, None] / np.maximum(size, 1)
        distance = np.where(size > 0, centre_square - 2 * towards, np.inf)
        new = np.concatenate([_one_hot(distance[:, a:b]) for a, b in pairwise(ends)], axis=1)
        labels[moving] = new
        moving = moving[(new != old).any(axis=(1, 2))]
        if not len(moving):
            break
    return [labels[:, a:b] for a, b in pairwise(ends)]


def _started(gram: Vectors, k: int, generator: np.random.Generator) -> Vectors:
    """One-hot labels ``[sets, k, n]`` by centres among the points, drawn as k-means++ does."""
    sets, n, _ = gram.shape
    every, square = np.arange(sets)[:, None], np.einsum("sii->si", gram)
    distance = np.empty((sets, k, n), dtype=gram.dtype)
    nearest = np.ones((sets, n), dtype=gram.dtype)
    for centre in range(k):
        reach = np.cumsum(nearest, axis=1)[:, None]
        chance = generator.random((sets, TRIALS if centre else 1, 1), dtype=np.float32) * reach[:, :, -1:]
        tried = np.minimum((reach <= chance).sum(axis=2), n - 1)
        away = np.maximum(square[:, None] + square[every, tried][..., None] - 2 * gram[every, tried], 0)
        nearer = np.minimum(nearest[:, None], away) if centre else away
        best = nearer.sum(axis=2).argmin(axis=1)
        distance[:, centre], nearest = away[every[:, 0], best], nearer[every[:, 0], best]
    return _one_hot(distance)


def _one_hot(distance: Vectors) -> Vectors:
    """1 for the nearest centre, the first of equals: ``[sets, k, n]``."""
    nearest = distance == distance.min(axis=1, keepdims=True)
    if np.count_nonzero(nearest) > nearest[:, 0].size:
        nearest &= nearest.cumsum(axis=1) == 1
    return nearest.astype(distance.dtype)


def _silhouettes(distance: Vectors, labels: Vectors) -> Vectors:
    """Mean silhouettes by distances ``[sets, n, n]`` and one-hot labels ``[sets, k, n]``; -1 where not defined."""
    total, size = labels @ distance, labels.sum(axis=2, keepdims=True)
    count = (labels * size).sum(axis=1)
    inner = (total * labels).sum(axis=1) / np.maximum(count - 1, 1)
    outer = np.where((labels > 0) | (size == 0), np.inf, total / np.maximum(size, 1)).min(axis=1)
    wider = np.maximum(np.maximum(inner, outer), 1e-30)
    value = np.where(count > 1, (np.minimum(outer, 1e30) - inner) / np.minimum(wider, 1e30), 0).mean(axis=1)
    return np.where((size > 0).sum(axis=(1, 2)) > 1, value, -1.0)
