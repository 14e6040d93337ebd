"""Whether similar classes activate a channel alike: cosines of ARVs against WordNet (Hesse et al. 2025, figure 3).

A point is a channel and a pair of classes that it is relevant to. The points are not independent: a channel that is
relevant to ten classes gives 45 of them, and a pair of classes returns in every channel it shares. So the interval
resamples whole channels, and the test permutes the *classes*, all points at once, as Mantel (1967) did for distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError
from pure_nb.methods.statistics import correlation, percentiles, resampled

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.methods.wordnet import WordNet


@dataclass(frozen=True)
class MantelResult:
    """How well two similarities of pairs of classes agree.

    Attributes
    ----------
    rho
        Spearman's rank correlation over all points; NaN, like all that follows, where all points are equal.
    low, high
        Its bootstrap interval over channels; NaN where all points are of one channel.
    p
        Share of the permutations of the classes with a correlation at least as large, the real one counted in.
    n
        Number of points.
    """

    rho: float
    low: float
    high: float
    p: float
    n: int


def with_similarities(
    pairs: pd.DataFrame,
    wordnet: WordNet,
    synsets: Mapping[str, str] | None = None,
    measures: tuple[str, ...] = ("wup", "path", "lch"),
) -> pd.DataFrame:
    """Pairs of classes with a column for each WordNet similarity of the two.

    Parameters
    ----------
    pairs
        With the columns ``class_1`` and ``class_2``, from :func:`pure_nb.methods.pairs.class_pairs`.
    wordnet, measures
        See :func:`pure_nb.methods.wordnet.similarities`.
    synsets
        What WordNet calls each class: a synset, a wnid or a word; by default the class's own name.

    Returns
    -------
    DataFrame
        The pairs with ``synset_1`` and ``synset_2``, the meanings that were taken (None for a class without one), and
        a column for each measure, NaN where a class has no synset.
    """
    import pandas as pd  # late, see pure_nb._imports

    from pure_nb.methods.wordnet import similarities  # late: NLTK takes half a second, and not everyone has it
    from pure_nb.methods.wordnet import synsets as synsets_of

    meant = synsets or {}
    first, second = ([meant.get(name, name) for name in pairs[column]] for column in ("class_1", "class_2"))
    found = similarities(wordnet, first, second, measures)[list(measures)]
    chosen = {f"synset_{i}": synsets_of(wordnet, names)["synset"] for i, names in ((1, first), (2, second))}
    return pd.concat([pairs.reset_index(drop=True), pd.DataFrame(chosen), found], axis=1)


def agreement(
    pairs: pd.DataFrame,
    similarity: pd.DataFrame,
    *,
    permutations: int = 999,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> MantelResult:
    """Rank correlation of the cosines with a similarity of the classes, with its interval and test.

    The chapter :doc:`Does WordNet agree? </book/wordnet>` builds it from scratch.

    Parameters
    ----------
    pairs
        With the columns ``channel``, ``class_1``, ``class_2`` and ``cosine``; rows without a cosine are left out.
    similarity
        Square, with the classes as index and columns, from :func:`similarity_matrix`. Rows of pairs for which it is NaN
        are left out.
    permutations, replicates, level, seed
        Of the test, of the interval, and of both.

    Raises
    ------
    ArgumentError
        If fewer than three points are left.
    """
    names = [name for name in similarity.index if not similarity[name].drop(name).isna().all()]
    matrix = similarity.loc[names, names].to_numpy(dtype=float)
    place = {name: i for i, name in enumerate(names)}
    known = pairs["cosine"].notna() & pairs["class_1"].isin(names) & pairs["class_2"].isin(names)
    first, second = (pairs.loc[known, column].map(place).to_numpy(dtype=np.int64) for column in ("class_1", "class_2"))
    there = ~np.isnan(matrix[first, second])
    used, first, second = pairs[known][there], first[there], second[there]
    if len(used) < 3:
        raise ArgumentError(f"a correlation needs at least three pairs of classes with a similarity, got {len(used)}")
    cosines = used["cosine"].to_numpy()
    rho = _rank(cosines, matrix[first, second])
    if np.isnan(rho):
        return MantelResult(rho, rho, rho, rho, len(used))
    generator = np.random.default_rng(seed)
    # Not scipy.stats.permutation_test: it tries every order of a few classes, which gives other numbers than ours.
    orders = [generator.permutation(len(names)) for _ in range(permutations)]
    below = [_rank(cosines, matrix[order[first], order[second]]) < rho for order in orders]  # a NaN speaks for chance
    rows = [np.flatnonzero(used["channel"] == channel) for channel in used["channel"].unique()]
    picks = resampled(np.arange(len(rows)), draws=replicates, seed=generator)
    chosen = [np.concatenate([rows[i] for i in pick]) for pick in picks]
    spread = percentiles([_rank(cosines[some], matrix[first[some], second[some]]) for some in chosen], level)
    return MantelResult(rho, *spread, (1 + permutations - sum(below)) / (1 + permutations), len(used))


def similarity_matrix(
    wordnet: WordNet, classes: list[str], synsets: Mapping[str, str] | None = None, measure: str = "wup"
) -> pd.DataFrame:
    """The similarity of every two classes, as a square table with their names.

    Parameters
    ----------
    wordnet
        From :func:`pure_nb.methods.wordnet.find_wordnet`.
    classes
        Names of classes.
    synsets
        What WordNet calls some of them.
    measure
        A measure of :func:`pure_nb.methods.wordnet.similarities`.
    """
    import pandas as pd  # late, see pure_nb._imports

    from pure_nb.methods.wordnet import similarities  # late: NLTK takes half a second, and not everyone has it

    meant = synsets or {}
    first, second = np.indices((len(classes), len(classes))).reshape(2, -1)
    words = [meant.get(name, name) for name in classes]
    found = similarities(wordnet, [words[i] for i in first], [words[i] for i in second], (measure,))[measure]
    return pd.DataFrame(found.to_numpy().reshape(len(classes), -1), index=classes, columns=classes)


def _rank(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's correlation over the points that have both values; NaN where one of the two does not vary."""
    both = ~(np.isnan(first) | np.isnan(second))
    return correlation(first[both], second[both]) if both.sum() > 2 else float("nan")
