"""Means with their errors, bootstraps and paired tests. What is sampled are neurons, never the images of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from pure_nb.errors import ArgumentError
from pure_nb.methods._shapes import Int

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["pearson", "spearman"]


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Mean and its standard error, ``std / sqrt(n)`` with n - 1 degrees of freedom; NaN for too few values."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    return mean, float(scipy.stats.sem(values)) if len(values) > 1 else float("nan")


def resampled(
    *groups: Int[NDArray[np.int64], " _"], draws: int, seed: int | np.random.Generator = 0
) -> Int[NDArray[np.int64], "draws n"]:
    """Bootstrap samples of units such as neurons.

    Parameters
    ----------
    groups
        Numbers of the units. From each group as many are drawn as it has.
    draws, seed
        Number of samples, and their seed or generator.

    Returns
    -------
    ndarray
        int64 ``[draws, n]``: the numbers that were drawn; no draws of fewer than two units.
    """
    # Not scipy.stats.bootstrap: it draws one group after the other, which gives other numbers than those that are kept,
    # and leaves no interval where one draw has no value.
    generator, units = np.random.default_rng(seed), sum(map(np.size, groups))
    draws = draws if units > 1 else 0
    picks = [np.concatenate([generator.choice(own, np.size(own)) for own in groups]) for _ in range(draws)]
    return np.array(picks, dtype=np.int64).reshape(draws, units)


def percentiles(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The limits that this part of the values lies between, in their middle; NaN does not count."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    values: ArrayLike, statistic: Callable[..., Any] = np.mean, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a statistic of independent values, by percentiles; NaN for fewer than two values.

    Parameters
    ----------
    values
        Float ``[n]``.
    statistic
        Takes values and ``axis``, as NumPy's do.
    level
        The part of the draws that lies within.
    draws, seed
        Number of bootstrap samples, and their seed.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float("nan"), float("nan")
    picks = resampled(np.arange(len(values)), draws=draws, seed=seed)
    return percentiles(statistic(values[picks], axis=1), level)


def correlation(first: ArrayLike, second: ArrayLike, measure: Measure = "spearman") -> float:
    """Correlation of two lists of values; NaN where one of them does not vary, or has fewer than two."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    correlate = scipy.stats.pearsonr if measure == "pearson" else scipy.stats.spearmanr
    return float(correlate(first, second).statistic)


def signed_rank(difference: ArrayLike) -> float:
    """The p of Wilcoxon's signed-rank test of paired differences; NaN where all are zero."""
    return float(scipy.stats.wilcoxon(difference).pvalue) if np.any(difference) else float("nan")


def corrected(p: pd.Series[float]) -> pd.Series[float]:
    """Values of p, corrected for their number by Benjamini and Hochberg; NaN stays and does not count."""
    found, known = p.copy(), p.notna()
    found[known] = scipy.stats.false_discovery_control(p[known])
    return found


def differences(table: pd.DataFrame, baseline: str, measure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each method measures neuron by neuron, and how far that is from the baseline's.

    Parameters
    ----------
    table
        A row for each ``channel`` and ``method``, with the ``measure``.
    baseline
        The method that the others are compared with.

    Returns
    -------
    tuple
        Two tables with a row for each channel and a column for each method.

    Raises
    ------
    ArgumentError
        If there is no such method.
    """
    wide = table.pivot(index="channel", columns="method", values=measure)
    if baseline not in wide:
        raise ArgumentError(f"there is no method {baseline!r} to compare with; there are {list(wide)}")
    return wide, wide.sub(wide[baseline], axis=0)


def summary(table: pd.DataFrame, baseline: str, measure: str = "ami", *, seed: int = 0) -> pd.DataFrame:
    """Mean agreement of each method over the neurons, and how it differs from one of them, neuron by neuron.

    Parameters
    ----------
    table
        From :func:`pure_nb.judges.truth.agreement`.
    baseline
        The method that the others are compared with.
    measure
        ``"ami"`` or ``"ari"``.
    seed
        Of the bootstrap.

    Returns
    -------
    DataFrame
        Best method first: ``method, mean, low, high`` (95 % interval over neurons); ``difference`` from the
        baseline, with ``difference_low`` and ``difference_high`` (95 % paired bootstrap over neurons, NaN for the
        baseline itself); and ``p``: Wilcoxon's signed-rank test over neurons, corrected for the number of methods
        (Benjamini and Hochberg).
    """
    import pandas as pd  # late, see pure_nb._imports

    wide, difference = differences(table, baseline, measure)
    found = pd.DataFrame({"mean": [mean_and_error(wide[method])[0] for method in wide]}, index=wide.columns)
    found[["low", "high"]] = [interval(wide[method], seed=seed) for method in wide]
    found["difference"] = [mean_and_error(difference[method])[0] for method in wide]
    apart = [interval(difference[method] if method != baseline else [], seed=seed) for method in wide]
    found[["difference_low", "difference_high"]] = apart
    found["p"] = corrected(difference.apply(signed_rank))
    return found.sort_values("mean", ascending=False).reset_index()
