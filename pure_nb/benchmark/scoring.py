"""Scores of one neuron: how well the parts that it was split into agree with the known truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix

from pure_nb.benchmark.planting import dominant_source
from pure_nb.judges.truth import scores
from pure_nb.methods.ownership import SHARED

SCORES = ("ari", "ami", "accuracy", "ari_dominant", "correlation", "f1")
"""Columns that say how well a contestant did, neuron by neuron; the more the better."""

FEW = 20
"""References with a clearly dominant source that a neuron must have, to be scored by them alone."""


def matched(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[int, int]:
    """The part that stands for each true thing, so that as many references as possible are right.

    Parameters
    ----------
    truth, labels
        int64 ``[n]`` each; -1 belongs to nothing.

    Returns
    -------
    dict
        From true things to parts; those without a part are left out. Ties go to the lowest numbers.
    """
    known = (truth >= 0) & (labels >= 0)
    if not known.any():
        return {}
    things, parts = np.unique(truth[known]), np.unique(labels[known])
    table = contingency_matrix(truth[known], labels[known])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return {int(things[row]): int(parts[column]) for row, column in zip(rows, columns)}


def accuracy(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Share of the references with a known truth that are in the part that stands for it; see :func:`matched`."""
    known = truth >= 0
    right = sum(int(((truth == thing) & (labels == part)).sum()) for thing, part in matched(truth, labels).items())
    return right / int(known.sum()) if known.any() else float("nan")


def agreements(truth: NDArray[np.int64], labels: NDArray[np.int64], dominant: NDArray[np.bool_]) -> dict[str, float]:
    """How well the parts of one neuron agree with the truth.

    Parameters
    ----------
    truth, labels
        int64 ``[n]``. References without a truth (-1) are left out; label -1 is a part like any other.
    dominant
        bool ``[n]``: the references with a clearly dominant source.

    Returns
    -------
    dict
        ``ari``, ``ami``, ``accuracy``; and ``ari_dominant``, the ARI over the references with a clearly dominant
        source, NaN if there are fewer than :data:`FEW` of them or they are all of one thing.
    """
    plain = (truth >= 0) & dominant
    enough = plain.sum() >= FEW and len(np.unique(truth[plain])) > 1
    return {
        **scores(truth, labels),
        "accuracy": accuracy(truth, labels),
        "ari_dominant": scores(truth[plain], labels[plain])["ari"] if enough else float("nan"),
    }


def part_correlation(
    contributions: NDArray[np.floating[Any]], labels: NDArray[np.int64], sources: Sequence[int]
) -> float:
    """Correlation of each virtual neuron's activation with that of its source, averaged over the sources.

    A virtual neuron is as active as the channel where an image belongs to its part, and silent elsewhere.

    Parameters
    ----------
    contributions
        float ``[n, sources]``: what each source contributed to each image; see
        :func:`pure_nb.benchmark.planting.contributions`.
    labels
        int64 ``[n]``: the parts.
    sources
        Those that count, columns of ``contributions``.

    Returns
    -------
    float
        A source without a part counts as 0, as does one whose part is constant.
    """
    whole = np.asarray(contributions, dtype=np.float64).sum(axis=1)
    dominant = dominant_source(contributions)
    part_of = matched(np.where(np.isin(dominant, sources), dominant, -1), labels)
    values = []
    for source in sources:
        own = np.where(labels == part_of[source], whole, 0) if source in part_of else np.zeros(len(whole))
        values.append(pearson(own, np.asarray(contributions[:, source], dtype=np.float64)))
    return float(np.mean(values))


def pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def source_f1(true: NDArray[np.int64], found: NDArray[np.int64], part_of: dict[int, int]) -> float:
    """F1 of the recovered owners of a split's sources, averaged over the concepts.

    Parameters
    ----------
    true, found
        int64 ``[inputs]``: who owns each input, -1 for shared ones; see
        :func:`pure_nb.methods.ownership.assign_sources`.
    part_of
        The part that stands for each concept.

    Returns
    -------
    float
        NaN if no concept truly owns an input.
    """
    values = []
    for concept in np.unique(true[true != SHARED]).tolist():
        own = true == concept
        claimed = found == part_of[concept] if concept in part_of else np.zeros(len(found), dtype=np.bool_)
        values.append(2 * (own & claimed).sum() / (own.sum() + claimed.sum()))
    return float(np.mean(values)) if values else float("nan")
