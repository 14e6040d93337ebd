"""Scores compared with each other on the same channels: areas under correlated ROC curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError
from pure_nb.methods.statistics import corrected

ABOUT_TWO = float(scipy.stats.norm.ppf(0.975))
"""Standard errors to either side of a 95 % interval."""


def placements(value: NDArray[Any], several: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each neuron of several meanings the share of single ones below it, and of each single one of those above it.

    Both average to the area under the ROC curve; ties count half. They are what DeLong's error is made of (DeLong,
    DeLong and Clarke-Pearson 1988, Biometrics 44).

    Parameters
    ----------
    value
        Float ``[n]``, the larger the more meanings.
    several
        Bool ``[n]``: which of them have several.
    """
    above = np.sign(value[several][:, None] - value[~several][None]) / 2 + 0.5
    return above.mean(axis=1), above.mean(axis=0)


def _error(several: NDArray[np.float64], single: NDArray[np.float64]) -> float:
    """Standard error of an area, or of a difference of two, by its placements; NaN for too few neurons."""
    if min(len(several), len(single)) < 2:
        return float("nan")
    return float(np.sqrt(several.var(ddof=1) / len(several) + single.var(ddof=1) / len(single)))


def compared(table: pd.DataFrame, baseline: tuple[str, str]) -> pd.DataFrame:
    """The area under the ROC curve of each score beside that of one of them, on the channels that have both.

    Parameters
    ----------
    table
        From :func:`pure_nb.benchmark.trial.trial`.
    baseline
        A score and its judge, as ``("score", "circuits")``.

    Returns
    -------
    DataFrame
        A row for each score and judge: ``score, judge, auc`` with DeLong's ``error``; ``difference`` from the
        baseline's, ``difference_low`` to ``difference_high`` (95 %), and ``p_difference``, DeLong's test, corrected for
        the number of rows (Benjamini and Hochberg). NaN for the baseline itself.

    Raises
    ------
    ArgumentError
        If the baseline is not in the table.

    Examples
    --------
    >>> task = planted_task(study, count=3, self_merged=3)
    >>> found = compared(trial(task, [load_embedder("pixels")]), ("score", "circuits"))
    >>> found.columns[:3].tolist()
    ['score', 'judge', 'auc']
    """
    wide = table.pivot(index="channel", columns=["score", "judge"], values="value")
    if baseline not in wide:
        raise ArgumentError(f"there is no score {baseline!r} to compare with; there are {[*wide]}")
    several = (table.groupby("channel")["k"].first() > 1).reindex(wide.index).to_numpy()
    values, base = wide.to_numpy(dtype=float), wide[baseline].to_numpy(dtype=float)
    rows = []
    names = zip(*(wide.columns.get_level_values(level) for level in ("score", "judge")))
    for place, (score, judge) in enumerate(names):
        own = values[:, place]
        row: dict[str, Any] = {"score": score, "judge": judge}
        row |= dict(zip(("auc", "error"), _area(own, several)))
        both = np.isfinite(own) & np.isfinite(base)
        row |= _difference(own[both], base[both], several[both]) if (score, judge) != baseline else {}
        rows.append(row)
    found = pd.DataFrame(rows, columns=["score", "judge", "auc", "error", *DIFFERENCE])
    return found.assign(p_difference=corrected(found["p_difference"].astype(float)))


DIFFERENCE = ("difference", "difference_low", "difference_high", "p_difference")


def _area(value: NDArray[np.float64], several: NDArray[np.bool_]) -> tuple[float, float]:
    """The area under the ROC curve and its error; NaN without neurons of both kinds."""
    known = np.isfinite(value)
    if not 0 < several[known].sum() < known.sum():
        return float("nan"), float("nan")
    own = placements(value[known], several[known])
    return float(own[0].mean()), _error(*own)


def _difference(own: NDArray[np.float64], base: NDArray[np.float64], several: NDArray[np.bool_]) -> dict[str, float]:
    """How much larger one area is than another on the same neurons."""
    if not 0 < several.sum() < len(several):
        return {}
    first, second = (first - second for first, second in zip(placements(own, several), placements(base, several)))
    difference, error = float(first.mean()), _error(first, second)
    p = 2 * float(scipy.stats.norm.sf(abs(difference) / error)) if error > 0 else float(difference == 0)
    p = float("nan") if np.isnan(error) else p  # too few neurons of a kind
    far = ABOUT_TWO * error
    return dict(zip(DIFFERENCE, (difference, difference - far, difference + far, p)))
