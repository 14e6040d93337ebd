"""Scores on trial: the number that best tells a neuron of several meanings from one of a single meaning.

The field's scores of polysemanticity have been judged by people, and never by neurons whose number of meanings is
known. A task of :mod:`pure_nb.benchmark.tasks` has such neurons: channels that were merged from several, and others
that were merged with themselves. A good score is larger for the first than for the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pure_nb.benchmark.paired import compared
from pure_nb.benchmark.tasks import Task
from pure_nb.errors import StudyError
from pure_nb.methods.statistics import corrected, correlation, percentiles, resampled
from pure_nb.scores import CONCEPTS, NAMED, SCORES, scores

if TYPE_CHECKING:
    from pure_nb.judges.vectors import Embedder

DIRECTION = {
    **{name: score.several for name, score in SCORES.items()},
    **CONCEPTS,
    **{"score": 1, "silhouette_gain": 1, "p": -1},
}
"""1 where more of a score means more meanings, -1 where it means fewer; judges with words also have ``NAMED``."""

OWN = "circuits"
"""The judge of the scores that ask none: what PURE says of the circuits."""

OwnScore = Callable[[Task], NDArray[np.float64]]
"""A score of one's own: of each channel of a task a number, the larger the more meanings; NaN is no answer."""


def trial(task: Task, judges: Sequence[Embedder], own: dict[str, OwnScore] | None = None) -> pd.DataFrame:
    """Every score of every neuron whose number of meanings is known.

    Parameters
    ----------
    task
        With channels that were merged with themselves, or with natural neurons and their objects.
    judges
        Each is asked for all of :data:`pure_nb.scores.SCORES`.
    own
        Scores of your own by name.

    Returns
    -------
    DataFrame
        ``channel, judge, score, value``, where the larger value means more meanings; ``k``, how many there are. What
        was merged from several channels, of which one is dominant in nearly all references, is left out.

    Examples
    --------
    >>> task = planted_task(study, count=3, self_merged=3)
    >>> table = trial(task, [load_embedder("pixels")])
    >>> board(table).columns[:3].tolist()
    ['score', 'judge', 'auc']
    """
    used = task.k > 1
    used |= task.planting.self_merged if task.planting else (task.k == 1) & (task.truth >= 0).any(axis=1)
    parts = []
    for judge in judges:
        table = scores(task.study, judge, parts=False)
        table = table[used[table["channel"]]]
        direction = DIRECTION | (NAMED if judge.encode_text is not None else {})
        long = table.melt("channel", list(direction), var_name="score", value_name="value")
        long["value"] = long["value"] * long["score"].map(direction)
        kinds = [long["score"].isin(["class_purity", *CONCEPTS]), long["score"].isin([*SCORES, *NAMED])]
        long["judge"] = np.select(kinds, ["labels", judge.name], OWN)
        parts.append(long)
    for name, function in (own or {}).items():
        values = np.asarray(function(task), dtype=np.float64)
        if values.shape != task.k.shape:
            raise StudyError(f"the score {name!r} gave {list(values.shape)} numbers for {len(task.k)} channels")
        chosen = np.flatnonzero(used)
        parts.append(pd.DataFrame({"channel": chosen, "judge": "own", "score": name, "value": values[chosen]}))
    found = pd.concat(parts, ignore_index=True).drop_duplicates(["channel", "judge", "score"], ignore_index=True)
    found["k"] = task.k[found["channel"]]
    return found[["channel", "judge", "score", "value", "k"]]


def board(
    table: pd.DataFrame, *, baseline: tuple[str, str] | None = None, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """The leaderboard of scores.

    Parameters
    ----------
    table
        From :func:`trial`; of several tasks one below the other, if channels have numbers of their own.
    baseline
        A score and its judge that the others are compared with, channel by channel; see
        :func:`pure_nb.benchmark.paired.compared`, whose columns are added.
    draws, seed
        Of the bootstrap over channels.

    Returns
    -------
    DataFrame
        The best first: ``score, judge``; ``auc``, the chance that a neuron of several meanings has the larger value
        than one of a single (0.5 is chance), with its 95 % interval ``low`` to ``high``; ``p`` of the Mann-Whitney
        test, corrected for the number of rows; ``several`` and ``single``, how many neurons of each kind have a value;
        ``rho``, the rank correlation with the number of meanings over all of them, with ``rho_low`` and ``rho_high``.
    """
    rows = []
    for (score, judge), own in table.groupby(["score", "judge"], sort=False):
        known = own[np.isfinite(own["value"])]
        value, k = known["value"].to_numpy(float), known["k"].to_numpy()
        several = k > 1
        row = {"score": score, "judge": judge, "several": int(several.sum()), "single": int((~several).sum())}
        row |= dict.fromkeys(("auc", "low", "high", "p", "rho", "rho_low", "rho_high"), np.nan)
        if 0 < several.sum() < len(several):
            picks = resampled(np.flatnonzero(several), np.flatnonzero(~several), draws=draws, seed=seed)
            row["auc"] = float(roc_auc_score(several, value))
            row["low"], row["high"] = percentiles(_areas(several[picks], value[picks]))
            row["p"] = float(scipy.stats.mannwhitneyu(value[several], value[~several]).pvalue)
        if len(known) > 2:
            picks = resampled(np.arange(len(known)), draws=draws, seed=seed)
            row["rho"] = correlation(value, k)
            row["rho_low"], row["rho_high"] = percentiles(_rank_correlations(value[picks], k[picks]))
        rows.append(row)
    found = pd.DataFrame(rows)
    found["p"] = corrected(found["p"])
    first = ["score", "judge", "auc", "low", "high", "p", "several", "single", "rho", "rho_low", "rho_high"]
    found = found[first].sort_values("auc", ascending=False, kind="stable", ignore_index=True)
    if baseline is None:
        return found
    return found.merge(compared(table, baseline).drop(columns=["auc", "error"]), on=["score", "judge"], how="left")


def _areas(several: NDArray[np.bool_], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area under the curve of each draw ``[draws, n]``, by the ranks (Mann and Whitney)."""
    ranks = scipy.stats.rankdata(value, axis=1)
    one = several.sum(axis=1)
    below = (ranks * several).sum(axis=1) - one * (one + 1) / 2
    return np.asarray(below / (one * (several.shape[1] - one)))


def _rank_correlations(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """The rank correlation of each draw ``[draws, n]``; NaN where one of the two does not vary."""
    one, other = (scipy.stats.rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1)))
