"""How pure parts are: distances between reference images within and across parts (PURE, section 4).

A judge that knows nothing of the network, such as CLIP, says how far apart two crops are. Where a neuron is split well,
the images within a part are near each other (*intra*), and those of different parts far apart (*inter*). And the
better the distances of circuits follow those of the judge, the better they are aligned with what people see.

Neurons are what is sampled: errors are standard errors over neurons, tests are paired by neuron, and bootstraps
resample whole neurons, since the 4,950 pairs of a hundred images hold far less than 4,950 independent facts. The
chapter *What CLIP says* builds both from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist
from scipy.stats import norm, rankdata

from pure_nb.compute.blocks import NOTHING, Kept, each_neuron
from pure_nb.compute.store import Store
from pure_nb.errors import EvaluationError
from pure_nb.methods.descriptions import parts_by
from pure_nb.methods.statistics import (
    Measure,
    corrected,
    correlation,
    differences,
    mean_and_error,
    percentiles,
    resampled,
    signed_rank,
)
from pure_nb.methods.virtual import CHOICES, on_one_thread
from pure_nb.parameters import Run

Metric = str | Callable[[NDArray[Any], NDArray[Any]], float]
"""A metric of :func:`scipy.spatial.distance.pdist`, by name or as a function of two vectors."""

TRUE = "true objects"
"""Name of the objects that are known, among the methods."""

COLUMNS = ["channel", "method", "k", "intra", "inter", "gap", "overall"]
ALIGNMENT = ["method", "measure", "mean", "standard_error", "subsets", "pooled", "low", "high"]
ALIGNMENT += ["naive_low", "naive_high", "within", "within_se", "neurons"]


def pair_distances(vectors: ArrayLike, metric: Metric = "euclidean") -> NDArray[np.float32]:
    """Distances of all pairs of one neuron's images.

    Parameters
    ----------
    vectors
        float ``[n, d]``, n at least 2.
    metric
        See :data:`Metric`.

    Returns
    -------
    ndarray
        float32 ``[n (n - 1) / 2]``, in the order of ``numpy.triu_indices(n, 1)``. No array larger than that or the
        vectors is ever made.

    Raises
    ------
    EvaluationError
        If there are fewer than two vectors, or a distance is not a number: for NaN, or the cosine of a vector of zeros.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise EvaluationError(f"distances need vectors [n, d] with n >= 2, got {list(vectors.shape)}")
    try:
        found = pdist(vectors, metric)
    except ValueError as problem:
        raise EvaluationError(f"the metric {metric!r} can't be used: {problem}") from problem
    if not np.isfinite(found).all():
        first, second = (axis[np.argmin(np.isfinite(found))] for axis in np.triu_indices(len(vectors), 1))
        raise EvaluationError(
            f"the {metric} distance of images {first} and {second} is {found[~np.isfinite(found)][0]}; expected finite "
            "vectors, and none of zeros where the metric is the cosine"
        )
    return found.astype(np.float32)


def intra_inter(distances: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> tuple[float, float, float]:
    """Mean distance over the pairs within a part, over those across parts, and over both.

    The chapter :doc:`What CLIP says </book/clip>` builds it from scratch.

    Parameters
    ----------
    distances
        ``[n (n - 1) / 2]``, from :func:`pair_distances`.
    labels
        int ``[n]``: the part of each image; images with a negative one belong to none and are left out.

    Returns
    -------
    tuple
        *intra*, *inter*, *overall*. A part of one image has no pair, and adds nothing to intra; if no part has two
        images intra is NaN, and if all images are in one part inter is NaN. Identical images have distance 0.
    """
    labels = np.asarray(labels)
    count = len(labels)
    if len(distances) != count * (count - 1) // 2:
        raise EvaluationError(f"{count} labels need {count * (count - 1) // 2} distances, got {len(distances)}")
    first, second = np.triu_indices(count, 1)
    used = (labels[first] >= 0) & (labels[second] >= 0)
    same = labels[first] == labels[second]
    intra, inter, overall = (
        float(distances[which].mean(dtype=np.float64)) if which.any() else float("nan")
        for which in (used & same, used & ~same, used)
    )
    return intra, inter, overall


def distance_table(
    judge: NDArray[np.float32],
    methods: Mapping[str, NDArray[Any]],
    *,
    used: NDArray[np.bool_] | None = None,
    ks: Sequence[int] = CHOICES,
    metric: Metric = "euclidean",
    seed: int = 0,
    store: Store | None = None,
    run: Run = Run(),
) -> pd.DataFrame:
    """Evaluation 1 of the paper: split every neuron into parts by each method, and let the judge measure the parts.

    Parameters
    ----------
    judge
        float ``[channels, n, d]``: the judge's vectors of the crops.
    methods
        Vectors ``[channels, n, d']`` by name; each is clustered by the same k-means
        (:func:`pure_nb.methods.virtual.kmeans`). Labels drawn at random are added as ``"random"``. Or labels
        ``[channels, n]``, such as the true object of each image: they have their own number of parts, and are repeated
        for every k.
    used
        bool ``[channels, n]``: which images count, such as those that activate the channel; all by default. Neurons
        with fewer than two are left out.
    ks
        Numbers of parts.
    metric
        See :data:`Metric`.
    seed
        Of k-means and of the random labels.
    store
        Where to keep finished blocks of neurons, a folder for this table alone.
    run
        Its ``client`` computes it, or else this process; and whether it shows how far it is.

    Returns
    -------
    DataFrame
        A row for each neuron, method and k: ``channel, method, k, intra, inter, gap, overall``; the gap is inter minus
        intra. See :func:`intra_inter` for when these are NaN.

    Examples
    --------
    >>> vectors = {"PURE": study.circuits}
    >>> table = distance_table(study.crops.embeddings(load_embedder("pixels")), vectors, ks=[2])
    """
    if not ks or min(ks) < 1:
        raise EvaluationError(f"the numbers of parts must be 1 or more, got {list(ks)}")
    for name, vectors in methods.items():
        if vectors.shape[:2] != judge.shape[:2]:
            raise EvaluationError(
                f"{name!r} has vectors {list(vectors.shape)} for a judge's {list(judge.shape)}; expected the same "
                "neurons and images"
            )
    used, chosen = _used(judge, used)

    def given(number: int) -> tuple[Any, ...]:
        channel = int(chosen[number])
        own = used[channel]
        some = {name: every[channel][own] for name, every in methods.items()}
        return channel, np.asarray(judge[channel][own]), some, tuple(ks), metric, seed

    kept = NOTHING if store is None else Kept(partial(_load_rows, store), partial(_save_rows, store))
    rows = each_neuron(_neuron_rows, given, len(chosen), name="distances", kept=kept, run=run)
    return pd.DataFrame(chain.from_iterable(rows), columns=COLUMNS)


def _load_rows(store: Store, first: int) -> list[list[tuple[Any, ...]]] | None:
    """The rows of each neuron of a block."""
    saved = store.load_table("distances", {"first": first})
    if saved is None:
        return None
    return [list(own.itertuples(index=False, name=None)) for _, own in saved[0].groupby("channel", sort=False)]


def _save_rows(store: Store, first: int, rows: list[list[tuple[Any, ...]]]) -> None:
    store.save_table("distances", {"first": first}, pd.DataFrame(chain.from_iterable(rows), columns=COLUMNS))


@on_one_thread
def _neuron_rows(
    channel: int,
    judge: NDArray[np.float32],
    methods: Mapping[str, NDArray[Any]],
    ks: tuple[int, ...],
    metric: Metric,
    seed: int,
) -> list[tuple[Any, ...]]:
    distances = _distances(judge, metric, f"neuron {channel}")
    vectors = {name: own for name, own in methods.items() if own.ndim > 1}
    generator = np.random.default_rng([seed, channel])  # the same whatever other neurons are looked at
    rows = []
    for k in ks:
        parts = parts_by(vectors, k, len(judge), generator=generator, seed=seed)
        for name, labels in (parts | {name: own for name, own in methods.items() if name not in vectors}).items():
            intra, inter, overall = intra_inter(distances, labels)
            rows.append((channel, name, k, intra, inter, inter - intra, overall))
    return rows


def summary(
    table: pd.DataFrame, baseline: str, *, clear: float | None = None, judge: str | None = None
) -> pd.DataFrame:
    """Means over the neurons with their standard errors, and paired tests against one method.

    Parameters
    ----------
    table
        From :func:`distance_table`.
    baseline
        The method that the others are compared with, at the same k and neuron by neuron.
    clear, judge
        Only neurons whose gap is above ``clear`` when the method ``judge`` splits them into parts, as the paper does
        for CLIP's own parts and 1.5. They are chosen by that gap, so that the judge's own row, and rows of methods that
        are like it, come out too large. A k without such neurons is not in the result.

    Returns
    -------
    DataFrame
        By k, and the largest gap first: ``k, method, neurons``; ``intra, inter, gap, overall``, each with its standard
        error (standard deviation over the root of the number of neurons) in ``intra_se`` ..., over the neurons that
        have both distances; ``difference`` of the gap
        from the baseline's with ``difference_se``; and ``p`` of Wilcoxon's signed-rank test over the neurons, corrected
        for the number of all tests in the table (Benjamini and Hochberg).

    Raises
    ------
    EvaluationError
        If there is no such method, or no neuron is left.
    """
    for name in filter(None, (baseline, judge)):
        if name not in set(table["method"]):
            raise EvaluationError(f"there is no method {name!r}; there are {', '.join(table['method'].unique())}")
    if clear is not None:
        own = table[table["method"] == (judge or baseline)]
        kept = own.loc[own["gap"] > clear, ["channel", "k"]]
        if kept.empty:
            raise EvaluationError(f"no neuron has a gap above {clear}; the largest is {own['gap'].max():.2f}")
        table = table.merge(kept)
    rows = []
    for k, every in table.groupby("k"):
        _, apart = differences(every, baseline, "gap")
        for method, own in every.groupby("method", sort=False):
            whole, difference = own.dropna(subset=["gap"]), apart[method].dropna()
            row: dict[str, Any] = {"k": k, "method": method, "neurons": len(whole)}
            for name in COLUMNS[3:]:  # all means are over the same neurons
                row[name], row[f"{name}_se"] = mean_and_error(whole[name])
            row["difference"], row["difference_se"] = mean_and_error(difference)
            rows.append(row | {"p": signed_rank(difference)})
    found = pd.DataFrame(rows).sort_values(["k", "gap"], ascending=[True, False], kind="stable", ignore_index=True)
    return found.assign(p=corrected(found["p"]))


# Who judges whom, by what, and how often it is drawn; and who computes it.
def alignment(  # noqa: PLR0913
    judge: NDArray[np.float32],
    methods: Mapping[str, NDArray[np.float32]],
    *,
    used: NDArray[np.bool_] | None = None,
    metric: Metric = "euclidean",
    subsets: int = 30,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    run: Run = Run(progress=False),
) -> pd.DataFrame:
    """Evaluation 2 of the paper: how well a method's distances follow the judge's.

    Parameters
    ----------
    judge, methods, used, metric
        As for :func:`distance_table`.
    subsets
        The neurons are split at random into so many, or fewer, if one would get less than two neurons.
    draws, level
        Of the bootstrap over neurons.
    seed
        Of the subsets and of the bootstrap.
    run
        Its ``client`` computes the distances, or else this process. What follows takes seconds, and runs here.

    Returns
    -------
    DataFrame
        A row for each method and ``measure`` (``pearson``, ``spearman``), in the order of the methods: ``mean``
        correlation over the subsets and its ``standard_error``, as in the paper; ``subsets``; ``pooled`` correlation
        over all pairs of all neurons, its interval ``low`` to ``high`` by a bootstrap over *neurons*, and
        ``naive_low`` to ``naive_high``, the one that wrongly takes the pairs as independent; ``within``, the mean of
        the correlations inside single neurons, and ``within_se``; ``neurons``. For Spearman the bootstrap keeps the
        ranks of the full sample. NaN where distances do not vary, and for errors and intervals of a single neuron.

    Examples
    --------
    >>> vectors = {"PURE": study.circuits}
    >>> table = alignment(study.crops.embeddings(load_embedder("pixels")), vectors, subsets=2, draws=10)
    >>> table.columns[0]
    'method'
    """
    if subsets < 1:
        raise EvaluationError(f"there must be at least one subset, got {subsets}")
    used, chosen = _used(judge, used)
    generator = np.random.default_rng(seed)
    count = max(1, min(subsets, len(chosen) // 2))
    groups = np.array_split(generator.permutation(len(chosen)), count)
    picks = resampled(np.arange(len(chosen)), draws=draws, seed=generator)
    judged = _all_distances(judge, used, chosen, metric, "the judge", run)
    ranked = _ranks(judged)
    rows = []
    for name, vectors in methods.items():
        own = _all_distances(vectors, used, chosen, metric, name, run)
        for measure in get_args(Measure):
            first, second = (judged, own) if measure == "pearson" else (ranked, _ranks(own))
            sums = _sums(first, second)
            pooled = float(_correlation(sums.sum(axis=0)))
            reach = percentiles(_correlation(sums[picks].sum(axis=1)), level)
            naive = _fisher(pooled, sum(map(len, first)), level)
            # Over the neurons of each subset, and of each neuron by itself.
            mean, within = (
                mean_and_error([value for some in sets if np.isfinite(value := _of_some(judged, own, some, measure))])
                for sets in (groups, np.arange(len(chosen))[:, None])
            )
            rows.append((name, measure, *mean, count, pooled, *reach, *naive, *within, len(chosen)))
    return pd.DataFrame(rows, columns=ALIGNMENT)


def _distances(vectors: NDArray[np.float32], metric: Metric, whose: str) -> NDArray[np.float32]:
    """:func:`pair_distances`, which says whose failed."""
    try:
        return pair_distances(vectors, metric)
    except EvaluationError as problem:
        raise EvaluationError(f"{whose}: {problem}") from problem


def _used(judge: NDArray[np.float32], used: NDArray[np.bool_] | None) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which images count, and the neurons with at least two of them."""
    used = np.ones(judge.shape[:2], dtype=np.bool_) if used is None else used
    chosen = np.flatnonzero(used.sum(axis=1) >= 2)
    if not len(chosen):
        raise EvaluationError("there is no neuron to evaluate: none is activated by two images")
    return used, chosen


Distances = list[NDArray[np.float32]]


def _all_distances(
    vectors: NDArray[np.float32],
    used: NDArray[np.bool_],
    chosen: NDArray[np.int64],
    metric: Metric,
    name: str,
    run: Run,
) -> Distances:
    def given(number: int) -> tuple[Any, ...]:
        channel = chosen[number]
        return vectors[channel][used[channel]], metric, f"neuron {channel}, vectors of {name}"

    return each_neuron(_distances, given, len(chosen), name=f"distances by {name}", run=run)


def _ranks(distances: Distances) -> Distances:
    """Ranks over all neurons' pairs together."""
    ranks = rankdata(np.concatenate(distances)).astype(np.float32)
    return np.split(ranks, np.cumsum([len(own) for own in distances])[:-1])


def _sums(first: Distances, second: Distances) -> NDArray[np.float64]:
    """For each neuron what a correlation is made of: ``[neurons, 6]``, of values that were centred for precision."""
    middles = [np.concatenate(side).mean(dtype=np.float64) for side in (first, second)]
    rows = []
    for one, other in zip(first, second):
        x, y = (side.astype(np.float64) - middle for side, middle in zip((one, other), middles))
        rows.append([len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])
    return np.array(rows)


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation from sums ``[..., 6]``; NaN where a side does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = (n * xx - x * x) * (n * yy - y * y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12 * (n * xx) * (n * yy), (n * xy - x * y) / np.sqrt(spread), np.nan)


def _fisher(correlation: float, pairs: int, level: float) -> tuple[float, float]:
    """The interval of a correlation of independent pairs, by Fisher's transformation."""
    reach = norm.ppf((1 + level) / 2) / np.sqrt(max(1, pairs - 3))
    middle = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(middle - reach)), float(np.tanh(middle + reach))


def _of_some(first: Distances, second: Distances, members: NDArray[np.int64], measure: Measure) -> float:
    """Correlation over the pairs of some neurons."""
    x, y = (np.concatenate([side[i] for i in members]) for side in (first, second))
    return correlation(x, y, measure)
