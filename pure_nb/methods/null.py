"""Whether a neuron means one thing: its vectors against draws that have all that they have but separate heaps.

All k-means of a neuron, from all starts and of all draws, are batches that need the vectors' scalar products alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pure_nb.methods._shapes import Float

Vectors = NDArray[np.floating]

DRAWS = 499
"""Draws from a single heap, at most, that a neuron is compared with."""

HITS = 25
"""Draws at least as clear as the neuron, after which no more are needed."""

BATCH = 50
"""Draws made at once, at most."""

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


class Clearest(NamedTuple):
    """Into how many clusters vectors fall most clearly, and how clearly beside one heap.

    Attributes
    ----------
    number
        The number of clusters with the largest mean silhouette, each by its best start; of equals the smallest.
    silhouette
        That silhouette.
    gain
        By how much it is larger, by the mean start, than the mean of the draws made first; 0 without any.
    p
        The probability that a draw is at least as clear.
    """

    number: int
    silhouette: float
    gain: float
    p: float


def clearest(vectors: Float[Vectors, "n d"], numbers: Sequence[int], *, draws: int = DRAWS, seed: int = 0) -> Clearest:
    """Choose a number of clusters, and test whether there are any, against draws of one heap.

    There are two kinds of draws, since a vector can be odd in two ways, and ``gain`` and ``p`` are by the kind of draws
    that are the clearer ones.

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
    """
    generator = np.random.default_rng(seed)
    centred = _centred(vectors)
    axes = _principal(centred)
    number, silhouette, own = _own(_gram(axes[None]), numbers, generator)
    null, hits, made = np.zeros(2), np.zeros(2, dtype=np.int64), 0
    while made < draws:
        count = min(BATCH, draws - made, max(1, ELEMENTS // len(axes) ** 2))
        kinds = _heaps(axes, count, generator), _shuffles(centred, count, generator)
        values = np.stack([_clearest(gram, numbers, generator) for gram in kinds])
        null = null if made else values.mean(axis=1)
        reached = hits[:, None] + np.cumsum(values >= own, axis=1)
        if (ends := (reached >= HITS).any(axis=0)).any():
            return Clearest(number, silhouette, float(own - null.max()), HITS / (made + 1 + int(np.argmax(ends))))
        made, hits = made + count, reached[:, -1]
    gain = float(own - null.max()) if draws else 0.0
    return Clearest(number, silhouette, gain, (1 + int(hits.max())) / (1 + made))


def one_heap(
    vectors: Float[Vectors, "n d"], numbers: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Test whether vectors lie in several heaps: ``gain`` and ``p`` of :func:`clearest`.

    Parameters
    ----------
    vectors, numbers, draws, seed
        As for :func:`clearest`.
    """
    return clearest(vectors, numbers, draws=draws, seed=seed)[2:]


def _centred(vectors: Vectors) -> Vectors:
    """Vectors about their mean, ``[n, d]``; the largest of their numbers is 1 or -1."""
    centred = vectors - vectors.mean(axis=0)
    return centred / (np.abs(centred).max() or 1.0)


def _principal(centred: Vectors) -> Vectors:
    """Coordinates of vectors in their principal axes, widest first, float32 ``[n, axes]``; their mean square is 1."""
    squares, axes = np.linalg.eigh(centred @ centred.T)  # a sixth of the time of singular values where d is large
    some = np.flatnonzero(squares > 1e-10 * squares[-1])[::-1]
    axes = axes[:, some] * np.sqrt(squares[some])
    return (axes / np.sqrt((axes**2).mean() if axes.size else 1.0)).astype(np.float32)


def _heaps(axes: Vectors, count: int, generator: np.random.Generator) -> Vectors:
    """Scalar products, ``[count, n, n]``, of points from one heap of the shape of ``axes``, ``[n, axes]``."""
    centred = axes - axes.mean(axis=0, dtype=np.float64)
    measured = (centred**3).mean(axis=0) / (centred**2).mean(axis=0) ** 1.5
    by_chance = np.sqrt(12 / (np.pi * len(axes)))  # mean absolute skewness of n normal numbers
    lean = np.copysign(np.maximum(np.abs(measured) - by_chance, STRAIGHT), measured)
    shape = (4 / lean**2).astype(np.float32)
    gamma = generator.standard_gamma(shape, (count, *axes.shape), dtype=np.float32)
    gamma -= shape
    gamma *= (np.sign(lean) * axes.std(axis=0) / np.sqrt(shape)).astype(np.float32)
    return _gram(gamma)


def _shuffles(centred: Vectors, count: int, generator: np.random.Generator) -> Vectors:
    """Scalar products, ``[count, n, n]``, of vectors ``[n, d]`` whose entries were shuffled, each by itself."""
    entries = np.ascontiguousarray(centred.T, dtype=np.float32).view(np.uint32).astype(np.uint64)

    def shuffled() -> Vectors:
        # Random numbers, each with an entry as its lower half, are sorted three times as fast as entries are permuted.
        mixed = _bits(generator, entries.size).astype(np.uint64).reshape(entries.shape)
        mixed <<= 32
        mixed |= entries
        mixed.sort(axis=1)
        return mixed.astype(np.uint32).view(np.float32).T

    return np.concatenate([_gram(shuffled()[None]) for _ in range(count)])  # one at a time, since d may be large


def _bits(generator: np.random.Generator, count: int) -> NDArray[np.uint32]:
    """What ``generator.integers(1 << 32, size=count, dtype=np.uint32)`` gives, in half the time.

    The halves of numbers of 64 bits, the lower first; a half that is left is for the next that asks for one.
    """
    bits = generator.bit_generator
    state = dict(bits.state)
    left = np.array([state["uinteger"]] * state["has_uint32"], dtype=np.uint32)
    whole = bits.random_raw((count - len(left) + 1) // 2).astype("<u8", copy=False).view("<u4")
    found = np.concatenate([left, whole]) if len(left) else whole
    state = dict(bits.state)
    state["has_uint32"] = len(found) - count
    state["uinteger"] = int(found[-1])
    bits.state = state
    return found[:count]


def _gram(points: Vectors) -> Vectors:
    """Scalar products of the points of each set: ``[sets, n, d]`` to ``[sets, n, n]``."""
    return points @ points.transpose(0, 2, 1)


def _own(gram: Vectors, numbers: Sequence[int], generator: np.random.Generator) -> tuple[int, float, float]:
    """The number of clusters with the largest silhouette, that silhouette, and its mean over starts, ``[1, n, n]``.

    For each number, the start counts whose clusters are the narrowest, as for scikit-learn's k-means; for the mean, the
    largest silhouette of each start.
    """
    labels = partitions(np.broadcast_to(gram, (STARTS, *gram.shape[1:])), numbers, generator)
    values = _silhouettes(_distances(gram), labels, numbers)
    # The sum of squares within clusters is that of all points without that of the clusters' means.
    squares = np.einsum("ksn,ksn->ks", labels, labels @ gram[0]) / np.maximum(labels.sum(axis=2), 1)
    means = np.add.reduceat(squares, _firsts(numbers))
    best = values[np.arange(len(numbers)), np.argmax(means, axis=1)]
    number, silhouette = max(zip(numbers, best.tolist()), key=lambda pair: (pair[1], -pair[0]))
    return number, silhouette, float(values.max(axis=0).mean())


def _clearest(gram: Vectors, numbers: Sequence[int], generator: np.random.Generator) -> Vectors:
    """The largest mean silhouette of each set of points over numbers of clusters: ``[sets, n, n]`` to ``[sets]``."""
    labels = partitions(gram, numbers, generator)
    return _silhouettes(_distances(gram), labels, numbers).max(axis=0)


def _distances(gram: Vectors) -> Vectors:
    """Distances between points by their scalar products, both ``[sets, n, n]``."""
    square, distance = np.einsum("sii->si", gram), -2 * gram
    distance += square[:, :, None]
    distance += square[:, None]
    np.einsum("sii->si", distance)[:] = 0
    return np.sqrt(np.maximum(distance, 0, out=distance), out=distance)


def _firsts(numbers: Sequence[int]) -> list[int]:
    """The first cluster of each number, where those of all numbers are in a row."""
    return [sum(numbers[:i]) for i in range(len(numbers))]


def _each(clusters: Vectors, numbers: Sequence[int]) -> Iterator[Vectors]:
    """What is said of the clusters of each number, where those of all numbers are in a row."""
    return (clusters[first : first + k] for first, k in zip(_firsts(numbers), numbers))


def partitions(
    gram: Float[Vectors, "sets n n"], numbers: Sequence[int], generator: np.random.Generator
) -> Float[Vectors, "clusters sets n"]:
    """k-means of many sets of points at once, from one start (k-means++) each, by scalar products alone.

    Parameters
    ----------
    gram
        float ``[sets, n, n]``: the points' scalar products; of many starts for one set, that set broadcast.
    numbers
        Numbers of clusters.
    generator
        Of the starts.

    Returns
    -------
    array
        One-hot labels, float ``[clusters, sets, n]``, the clusters of the first number first. One may end up empty.
    """
    labels = _one_hot(np.concatenate([_started(gram, k, generator) for k in numbers]), numbers)
    moving, old = np.arange(len(gram)), labels
    products = gram if gram.strides[0] else gram[:1]
    for _ in range(ITERATIONS):
        towards, size = _sums(old, products), np.einsum("ksn->ks", old)
        per = 1 / np.maximum(size, 1)
        half = np.where(size, np.einsum("ksn,ksn->ks", old, towards) * per**2 / 2, np.inf)
        # Half the squared distance to a mean, but for the point's own square, which is the same for all.
        towards *= -per[..., None]
        towards += half[..., None]
        new = _one_hot(towards, numbers)
        still = np.einsum("ksn,ksn->ks", old, new).sum(axis=0) < len(numbers) * gram.shape[1]
        old = new
        if still.sum() < 0.7 * len(still):  # to copy the products of those that still move costs as much as a step
            labels[:, moving] = new
            moving, old = moving[still], new[:, still]
            products = products[still] if len(products) > 1 else products
        if not still.any():
            break
    labels[:, moving] = old
    return labels


def _sums(labels: Vectors, products: Vectors) -> Vectors:
    """Sums over clusters, ``[clusters, sets, n]``, of products ``[sets, n, n]``, or ``[1, n, n]`` for all sets."""
    if len(products) == 1:
        return labels @ products[0]
    sums = np.empty_like(labels)
    np.matmul(labels.transpose(1, 0, 2), products, out=sums.transpose(1, 0, 2))
    return sums


def _started(gram: Vectors, k: int, generator: np.random.Generator) -> Vectors:
    """Squared distances, ``[k, sets, n]``, to centres among the points, drawn as k-means++ does."""
    sets, n, _ = gram.shape
    every, square = np.arange(sets)[:, None], np.einsum("sii->si", gram)
    distance = np.empty((k, sets, n), dtype=gram.dtype)
    nearest = np.ones((sets, n), dtype=gram.dtype)
    for centre in range(k):
        reach = np.cumsum(nearest, axis=1)[:, None]
        chance = generator.random((sets, TRIALS if centre else 1, 1), dtype=np.float32) * reach[:, :, -1:]
        reach[:, :, -1] = np.inf
        tried = (reach > chance).argmax(axis=2)
        away = square[:, None] + square[every, tried][..., None]
        away -= 2 * gram[every, tried]
        np.maximum(away, 0, out=away)
        nearer = np.minimum(nearest[:, None], away) if centre else away
        best = nearer.sum(axis=2).argmin(axis=1)
        distance[centre], nearest = away[every[:, 0], best], nearer[every[:, 0], best]
    return distance


def _one_hot(distance: Vectors, numbers: Sequence[int]) -> Vectors:
    """Which of each number's centres is nearest, the first of equals: ``[clusters, sets, n]``."""
    labels = np.empty_like(distance)
    for own, found in zip(_each(distance, numbers), _each(labels, numbers)):
        nearest = own == own.min(axis=0)
        if np.count_nonzero(nearest) > nearest[0].size:
            nearest &= nearest.cumsum(axis=0) == 1
        found[:] = nearest
    return labels


def _silhouettes(distance: Vectors, labels: Vectors, numbers: Sequence[int]) -> Vectors:
    """Mean silhouettes, ``[numbers, sets]``, by distances ``[sets, n, n]`` and labels; -1 where not defined."""
    sums, values = _sums(labels, distance), []
    for total, label in zip(_each(sums, numbers), _each(labels, numbers)):
        size = label.sum(axis=2, keepdims=True)
        count = (label * size).sum(axis=0)
        inner = (total * label).sum(axis=0) / np.maximum(count - 1, 1)
        total /= np.maximum(size, 1)
        total += np.where((label > 0) | (size == 0), np.inf, 0)
        outer = total.min(axis=0)
        wider = np.maximum(np.maximum(inner, outer), 1e-30)
        value = np.where(count > 1, (np.minimum(outer, 1e30) - inner) / np.minimum(wider, 1e30), 0).mean(axis=1)
        values.append(np.where((size > 0).sum(axis=(0, 2)) > 1, value, -1.0))
    return np.stack(values)
