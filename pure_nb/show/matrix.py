"""Which lower channels a neuron's page shows of its parts' mean circuits, so that what differs is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.methods.ownership import SHARED, assign_sources

CARRYING, ROWS = 6, 12
"""Lower channels that carry most of the whole neuron, and with those that differ most between its parts."""

RHO = 0.5
"""A lower channel belongs to the part in which it carries more than twice as much as in any other."""

LEAST = 0.005
"""Shares below are not told where neurons are compared."""


def differences(means: NDArray[np.float64], sizes: Sequence[int]) -> NDArray[np.float64]:
    """By how much each lower channel tells the parts of a neuron apart: the variance between the parts.

    Parameters
    ----------
    means
        float64 ``[1 + k, lower]``: mean circuits of the whole neuron and of its parts; of the whole alone if k is 1.
    sizes
        Number of images of each part.
    """
    if len(means) == 1:
        return np.zeros(means.shape[1])
    weight = np.array(sizes)[:, None] / sum(sizes)
    parts = means[1:]
    return np.asarray((weight * (parts - (weight * parts).sum(axis=0)) ** 2).sum(axis=0))


def chosen(means: NDArray[np.float64], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """The lower channels to show, in blocks.

    Parameters
    ----------
    means, sizes
        As for :func:`differences`.

    Returns
    -------
    list of tuple
        Owner and channel: first those that several parts share (-1), then those of each part, by what they carry.
    """
    carried, differ = np.abs(means[0]), differences(means, sizes)
    order = np.argsort(-carried, kind="stable")[:CARRYING].tolist()
    order += [lower for lower in np.argsort(-differ, kind="stable").tolist() if lower not in order]
    rows = [lower for place, lower in enumerate(order[:ROWS]) if (carried if place < CARRYING else differ)[lower] > 0]
    if len(means) == 1:
        return [(SHARED, lower) for lower in rows]
    owner = assign_sources(means[1:, rows], RHO).tolist()  # by -1 it is the whole neuron's mean that sorts
    return sorted(zip(owner, rows), key=lambda entry: (entry[0], -abs(means[1 + entry[0], entry[1]])))


def told(means: NDArray[np.float64], sizes: Sequence[int]) -> str:
    """How much of the difference between the parts the chosen channels make: ``"87%"``; "" for a whole neuron."""
    differ = differences(means, sizes)
    every = differ.sum()
    return f"{differ[[lower for _, lower in chosen(means, sizes)]].sum() / every:.0%}" if every else ""


def compact(means: NDArray[np.float64], sizes: Sequence[int]) -> dict[str, Any]:
    """What a page needs to compare neurons.

    Its ``rows`` are ``[lower, share of the whole, of A ...]``, in thousandths: first the ``shown`` channels of the
    neuron's own page, then others that carry :data:`LEAST` of any part.
    """
    shown = [lower for _, lower in chosen(means, sizes)]
    rest = np.flatnonzero((np.abs(means) >= LEAST).any(axis=0)).tolist()
    every = shown + [lower for lower in rest if lower not in shown]
    rows = [[lower, *np.round(1000 * means[:, lower]).astype(int).tolist()] for lower in every]
    return {"sizes": list(sizes), "shown": len(shown), "rows": rows}
