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
from pure_nb.methods.virtual import Vectors, VirtualNeurons, _centroids
from pure_nb.network.layers import flatten_positions

T = TypeVar("T")

COMBINED = "combined"
"""What several descriptions side by side are called."""

CUTS = 5
"""Times that a neuron's references are cut in two halves, to see how stable the clusters of a description are."""

NEURONS = 64
"""Neurons of a layer by which its descriptions are weighed, at most."""


def weights(stable: Float[NDArray[np.floating], "neurons m"]) -> Float[NDArray[np.float64], " m"]:
    """What each description of a layer's neurons counts: the square of its mean stability.

    Parameters
    ----------
    stable
        float ``[neurons, m]``: how stable the clusters of each description of each neuron are,
        :func:`pure_nb.methods.stability.split_half`.

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
