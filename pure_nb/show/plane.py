"""The plane of an explorer: where the points are, so that each can be seen, and which letter a part gets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pure_nb.benchmark.scoring import matched

ACROSS = 36.0
"""Least distance of two points of a hundred, where the plane is 1,000 wide: a point has a radius of 15 there, in
a plane that is drawn a little smaller."""

ROUNDS = 400
"""How often points are pushed apart at most; a hundred in two heaps need some fifty."""


def points_apart(layout: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Points of a layout, in whole numbers from 0 to 1000 with y downwards, pushed apart until none hides another.

    Parameters
    ----------
    layout
        float ``[n, 2]``: from :func:`pure_nb.methods.virtual.embed`.

    Returns
    -------
    ndarray
        int64 ``[n, 2]``. Points that were far enough apart stay where they were, but for those that others push.
    """
    reach = np.ptp(layout, axis=0)
    points: NDArray[np.floating[Any]] = (
        np.where(reach > 0, (layout - layout.min(axis=0)) / np.where(reach > 0, reach, 1), 0.5) * 1000.0
    )
    points[:, 1] = 1000 - points[:, 1]
    least = min(ACROSS, 700 / np.sqrt(len(points)))
    # Points at the same place need a direction to go to: each has its own.
    turn = np.arange(len(points)) * 2.4
    points += 0.01 * np.column_stack([np.cos(turn), np.sin(turn)])
    for _ in range(ROUNDS):
        pairs = KDTree(points).query_pairs(least, output_type="ndarray")
        if not len(pairs):
            break
        gap = points[pairs[:, 0]] - points[pairs[:, 1]]
        distance = np.linalg.norm(gap, axis=1, keepdims=True)
        push = 0.5 * (1.02 * least - distance) * gap / np.maximum(distance, 1e-9)
        moves = np.zeros_like(points)
        np.add.at(moves, pairs[:, 0], push)
        np.add.at(moves, pairs[:, 1], -push)
        # The sum of all pushes would throw a heap apart: of many neighbours each counts for less.
        points += moves / np.sqrt(np.bincount(pairs.ravel(), minlength=len(points)).clip(1))[:, None]
        points = _within(points)
    return np.round(_within(points)).astype(np.int64)


def _within(points: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Points, drawn together where they have left the plane."""
    low = np.minimum(points.min(axis=0), 0)
    return (points - low) * 1000 / np.maximum(points.max(axis=0) - low, 1000)


def relettered(labels: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same parts, numbered as those of another division that they share most images with.

    So that a part keeps its letter and its colour when a reader changes the method.

    Parameters
    ----------
    labels, own
        int64 ``[n]``: two divisions of the same images; -1 belongs to no part.

    Returns
    -------
    ndarray
        int64 ``[n]``. Parts that none of ``own`` is left for get the lowest numbers that are free, in their order.
    """
    taken = {part: thing for thing, part in matched(own, labels).items()}
    free = iter(sorted(set(range(len(labels))) - set(taken.values())))
    number = [taken[part] if part in taken else next(free) for part in range(int(labels.max(initial=-1)) + 1)]
    return np.array([*number, -1])[labels]
