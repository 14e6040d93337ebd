"""Several descriptions of a neuron's reference images side by side, each weighed by how stable its clusters are.

A circuit, the circuit of the maximum alone, and the activations at the maximum each tell something that the others do
not. Side by side they tell more than any of them, as long as one that is worthless in a layer counts for nothing there.
Which one that is can be seen without knowing the truth: cut the references in two halves, and cluster each by itself.
Clusters that are there are found in both. How clear they look says little: the silhouette is large wherever the vectors
have few dimensions that count, or some images that are unlike the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.errors import ArgumentError
from pure_nb.methods._shapes import Float, Int
from pure_nb.methods.null import _centred, _gram, _partitions
from pure_nb.methods.virtual import Vectors, VirtualNeurons, _centroids, on_one_thread
from pure_nb.network.layers import flatten_positions

T = TypeVar("T")

COMBINED = "combined"
"""What several descriptions side by side are called."""

CUTS = 5
"""Times that references are cut in two halves."""

STARTS = 10
"""Starts of k-means on a half."""

NEURONS = 64
"""Neurons of a layer by which its descriptions are weighed, at most."""


@on_one_thread
def stability(vectors: Float[Vectors, "n d"], k: int = 2, *, cuts: int = CUTS, seed: int = 0) -> float:
    """How far two halves of a neuron's reference images agree on what its clusters are.

    Parameters
    ----------
    vectors
        float ``[n, d]``: what describes the images.
    k
        Number of clusters.
    cuts
        The images are cut in two halves at random so many times. k-means of each half labels all images, by the
        nearest centre.
    seed
        Of the cuts and of k-means.

    Returns
    -------
    float
        Mean adjusted Rand index of the two labelings: 1 for the same clusters, 0 for those that agree by chance. 0
        where a half has fewer than ``k`` images.

    Examples
    --------
    >>> heaps = np.repeat(np.eye(2, 5), 10, axis=0) + np.random.default_rng(0).normal(0, 0.1, (20, 5))
    >>> stability(heaps)
    1.0
    """
    from sklearn.metrics import adjusted_rand_score  # late, see pure_nb._imports

    generator, middle = np.random.default_rng(seed), len(vectors) // 2
    if middle < k:
        return 0.0
    products = _gram(_centred(np.asarray(vectors, dtype=np.float64))[None].astype(np.float32))[0]
    found = []
    for _ in range(cuts):
        order = generator.permutation(len(vectors))
        labels = [_by_half(products, half, k, generator) for half in (order[:middle], order[middle:])]
        found.append(adjusted_rand_score(*labels))
    return float(np.mean(found))


def _by_half(
    products: NDArray[np.floating], half: NDArray[np.int64], k: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """All points labelled by the clusters of some of them, by the points' scalar products ``[n, n]``."""
    own = products[np.ix_(half, half)]
    labels = _partitions(np.broadcast_to(own, (STARTS, *own.shape)), [k], generator)  # [k, starts, half]
    size = np.maximum(labels.sum(axis=2), 1)
    within = np.einsum("ksn,ksn->ks", labels, labels @ own)
    best = (within / size).sum(axis=0).argmax()  # the narrowest clusters
    labels, size = labels[:, best], size[:, best]
    # The squared distance to a centre, but for the point's own square, which is the same for all.
    distance = (within[:, best] / size**2)[:, None] - 2 * (labels @ products[half]) / size[:, None]
    distance[labels.sum(axis=1) == 0] = np.inf
    return np.asarray(distance.argmin(axis=0), dtype=np.int64)


def weights(stable: Float[NDArray[np.floating], "neurons m"]) -> Float[NDArray[np.float64], " m"]:
    """What each description of a layer's neurons counts: the square of its mean stability.

    Parameters
    ----------
    stable
        float ``[neurons, m]``: the :func:`stability` of each description of each neuron.

    Returns
    -------
    ndarray
        float64 ``[m]``, 1 in sum; a description with a negative mean counts 0. If all do, the first counts alone.

    Examples
    --------
    >>> weights(np.array([[0.6, 0.3, -0.1], [0.6, 0.3, 0.1]])).tolist()
    [0.8, 0.2, 0.0]
    """
    squares = np.asarray(stable, dtype=np.float64).mean(axis=0).clip(min=0) ** 2
    return squares / squares.sum() if squares.any() else np.eye(len(squares))[0]


def chosen_neurons(alive: Int[NDArray[np.int64], " alive"]) -> Int[NDArray[np.int64], " chosen"]:
    """The neurons of a layer by which its descriptions are weighed: at most :data:`NEURONS`, spread evenly."""
    places = np.linspace(0, len(alive) - 1, min(len(alive), NEURONS)).round().astype(np.int64)
    return np.asarray(alive)[places]


def scales(
    vectors: Float[Vectors, "n d"], sizes: Sequence[int], weight: Sequence[float]
) -> Float[NDArray[np.float32], " d"]:
    """What to multiply descriptions side by side with, so that each counts as much as it is to.

    The squared distances of a neuron's references from their mean are then the weight of the description, on average.

    Parameters
    ----------
    vectors
        float ``[n, d]``: all descriptions of the references, side by side.
    sizes, weight
        Length and weight of each.

    Returns
    -------
    ndarray
        float32 ``[d]``: the same for all of a description; 0 where it does not vary.
    """
    if sum(sizes) != np.shape(vectors)[1] or len(sizes) != len(weight):
        raise ArgumentError(
            f"expected {len(weight)} descriptions side by side, of lengths {list(sizes)}, got vectors of "
            f"{np.shape(vectors)[1]}"
        )
    spread = np.asarray(vectors, dtype=np.float64).var(axis=0)
    total = np.array([own.sum() for own in np.split(spread, np.cumsum(sizes)[:-1])])
    factor = np.sqrt(np.divide(weight, total, out=np.zeros(len(total)), where=total > 0))
    return np.repeat(factor, sizes).astype(np.float32)


def side_by_side(
    vectors: Float[Vectors, "n d"], sizes: Sequence[int], weight: Sequence[float]
) -> Float[NDArray[np.float32], "n d"]:
    """Descriptions of a neuron's references side by side, centred and weighed: what is clustered.

    Parameters
    ----------
    vectors, sizes, weight
        As for :func:`scales`. Vectors of zeros, of images that do not activate the neuron, stay so.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    active = vectors.any(axis=1)
    found = np.zeros(vectors.shape, dtype=np.float32)
    if active.any():
        own = vectors[active]
        found[active] = (own - own.mean(axis=0)) * scales(own, sizes, weight)
    return found


def weighed(
    function: Callable[..., T],
    vectors: Float[Vectors, "n d"],
    *given: Any,
    sizes: Sequence[int],
    weight: Sequence[float],
    **how: Any,
) -> T:
    """Split a neuron into parts, or lay out its references, by several descriptions.

    Parameters
    ----------
    function
        :func:`pure_nb.methods.virtual.virtual_neurons`, or :func:`pure_nb.methods.virtual.embed`.
    vectors, sizes, weight
        As for :func:`side_by_side`; the first description are the circuits.
    given, how
        What else the function is given.

    Returns
    -------
    Any
        What the function returns. Of :class:`~pure_nb.methods.virtual.VirtualNeurons` the ``centroids`` are mean
        circuits as ever; ``means`` has those of all descriptions side by side, ``[k, d]``, and ``scale`` the
        :func:`scales` by which new images are compared with them.
    """
    vectors = np.asarray(vectors)
    found: Any = function(side_by_side(vectors, sizes, weight), *given, **how)
    if isinstance(found, VirtualNeurons):
        means = _centroids(vectors, found.labels)
        active = found.labels >= 0
        scale = scales(vectors[active], sizes, weight) if active.any() else np.zeros(means.shape[1], dtype=np.float32)
        found = replace(found, centroids=means[:, : sizes[0]], means=means, scale=scale)
    return found


def cells_under(grid: tuple[int, ...], lower: tuple[int, ...]) -> list[Any]:
    """For each position of a grid those of a lower one that are under it, and their neighbours: int64 lists.

    All of them where one of the two grids has no height and width.
    """
    found: list[Any] = [slice(None)] * max(1, int(np.prod(grid)))
    for position in range(len(found) if len(grid) == len(lower) == 2 else 0):
        centre = (np.array(divmod(position, grid[1])) + 0.5) * lower / np.array(grid)
        first, last = np.floor(centre - 1.001), np.floor(centre + 1.001)
        rows, columns = (
            np.arange(max(0, first[axis]), min(lower[axis], last[axis] + 1), dtype=np.int64) for axis in (0, 1)
        )
        found[position] = (rows[:, None] * lower[1] + columns).ravel()
    return found


def at_maximum(
    top: Float[Tensor, "b ..."],
    low: Float[Tensor, "b ..."],
    channels: Iterable[Int[NDArray[np.int64], " _"]],
) -> Iterator[Float[Tensor, "pairs d"]]:
    """The activations of images where channels are largest: of the target layer, and of the lower layer under it.

    Parameters
    ----------
    top, low
        What the target and the lower layer put out for b images.
    channels
        For each image, int64 ``[pairs]``: channels of the target layer.

    Yields
    ------
    Tensor
        For each image ``[pairs, channels + lower channels]``. Of the lower layer it is the mean over the cell under the
        maximum and its neighbours.
    """
    flat = flatten_positions(top)
    grid = tuple(top.shape[2:]) if top.ndim == 4 else tuple(flat.shape[2:])
    under = cells_under(grid, tuple(low.shape[2:]) if low.ndim == 4 else ())
    for high, below, own in zip(flat, flatten_positions(low), channels):
        places = high[torch.as_tensor(own, device=high.device)].argmax(dim=1).tolist()
        yield torch.stack([torch.cat([high[:, at], below[:, under[at]].mean(dim=1)]) for at in places]).float()
