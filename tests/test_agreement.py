"""Cosines against similarities of classes: the correlation, its interval and its test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from pure_nb.errors import ArgumentError
from pure_nb.methods.agreement import agreement, similarity_matrix, with_similarities
from pure_nb.methods.wordnet import shipped_wordnet

NAMES = [f"class{i}" for i in range(9)]


def likeness(seed: int = 0) -> pd.DataFrame:
    """A symmetric table of the classes, without ties."""
    values = np.random.default_rng(seed).random((len(NAMES), len(NAMES)))
    return pd.DataFrame((values + values.T) / 2, index=NAMES, columns=NAMES)


def points(similarity: pd.DataFrame, noise: float, seed: int = 0, channels: int = 12) -> pd.DataFrame:
    """Pairs of classes in several channels, whose cosines follow the similarity up to noise."""
    generator = np.random.default_rng(seed)
    rows = []
    for channel in range(channels):
        chosen = generator.choice(len(NAMES), size=5, replace=False)
        for i in range(5):
            for j in range(i):
                first, second = NAMES[chosen[i]], NAMES[chosen[j]]
                rows.append((channel, first, second, similarity.loc[first, second] + noise * generator.normal()))
    return pd.DataFrame(rows, columns=["channel", "class_1", "class_2", "cosine"])


def test_the_correlation_is_scipys() -> None:
    similarity = likeness()
    pairs = points(similarity, 0.3)
    values = [similarity.loc[row.class_1, row.class_2] for row in pairs.itertuples()]
    found = agreement(pairs, similarity, permutations=19, replicates=20)
    assert found.rho == pytest.approx(spearmanr(pairs["cosine"], values).statistic)
    assert found.n == len(pairs) == 120
    assert found.low <= found.rho <= found.high


def test_the_test_permutes_classes_one_by_one() -> None:
    """The same p as a loop that renames the classes of every point."""
    similarity = likeness()
    pairs = points(similarity, 1.0, seed=4)
    found = agreement(pairs, similarity, permutations=50, replicates=2, seed=3)
    generator, above = np.random.default_rng(3), 1
    for _ in range(50):
        renamed = dict(zip(NAMES, np.array(NAMES)[generator.permutation(len(NAMES))]))
        values = [similarity.loc[renamed[row.class_1], renamed[row.class_2]] for row in pairs.itertuples()]
        above += bool(spearmanr(pairs["cosine"], values).statistic >= found.rho)
    assert found.p == pytest.approx(above / 51)


def test_a_real_trend_is_seen_and_a_false_one_is_not() -> None:
    """With points that repeat each pair of classes, the permuted classes keep false alarms rare."""
    similarity = likeness()
    strong = agreement(points(similarity, 0.05), similarity, permutations=199, replicates=200)
    assert strong.p == 1 / 200
    assert strong.low > 0.5
    alarms, naive = [], []
    for seed in range(60):
        other = likeness(seed + 1)  # the cosines follow a likeness that has nothing to do with the one compared with
        pairs = points(other, 0.05, seed)
        alarms.append(agreement(pairs, similarity, permutations=39, replicates=2).p <= 0.05)
        values = [similarity.loc[row.class_1, row.class_2] for row in pairs.itertuples()]
        naive.append(spearmanr(pairs["cosine"], values, alternative="greater").pvalue <= 0.05)
    assert np.mean(alarms) <= 0.12
    assert np.mean(naive) > np.mean(alarms)  # taken as independent, the points say too much


def test_pairs_without_a_value_are_left_out() -> None:
    similarity = likeness()
    pairs = points(similarity, 0.3)
    unknown = similarity.copy()
    unknown.loc["class0", :] = unknown.loc[:, "class0"] = np.nan
    found = agreement(pairs, unknown, permutations=9, replicates=5)
    without = pairs[(pairs["class_1"] != "class0") & (pairs["class_2"] != "class0")]
    assert found == agreement(without, similarity.drop(index="class0", columns="class0"), permutations=9, replicates=5)
    pairs.loc[3:, "cosine"] = np.nan
    assert agreement(pairs, similarity, permutations=9, replicates=5).n == 3
    pairs.loc[2:, "cosine"] = np.nan
    with pytest.raises(ArgumentError, match="at least three pairs of classes with a similarity, got 2"):
        agreement(pairs, similarity)


def test_a_single_pair_without_a_value_is_left_out() -> None:
    """NLTK has no similarity for a noun and a verb; the two classes stay in, with others."""
    similarity = likeness()
    pairs = points(similarity, 0.3)
    row = pairs.iloc[0]
    similarity.loc[row["class_1"], row["class_2"]] = similarity.loc[row["class_2"], row["class_1"]] = np.nan
    found = agreement(pairs, similarity, permutations=19, replicates=10)
    values = np.array([similarity.loc[row.class_1, row.class_2] for row in pairs.itertuples()])
    known = ~np.isnan(values)
    assert found.n == known.sum() < len(pairs)
    assert found.rho == pytest.approx(spearmanr(pairs["cosine"][known], values[known]).statistic)
    assert np.isfinite([found.low, found.high, found.p]).all()


def test_points_of_one_channel_have_no_interval() -> None:
    similarity = likeness()
    found = agreement(points(similarity, 0.3, channels=1), similarity, permutations=9, replicates=5)
    assert np.isfinite([found.rho, found.p]).all()
    assert np.isnan([found.low, found.high]).all()


def test_without_any_spread_there_is_no_correlation() -> None:
    similarity = likeness()
    pairs = points(similarity, 0.3).assign(cosine=0.5)
    found = agreement(pairs, similarity, permutations=9, replicates=5)
    assert np.isnan([found.rho, found.low, found.high, found.p]).all()


def test_the_same_twice() -> None:
    similarity = likeness()
    how: dict[str, Any] = {"permutations": 19, "replicates": 20}
    pairs = points(similarity, 0.5)
    assert agreement(pairs, similarity, seed=1, **how) == agreement(pairs, similarity, seed=1, **how)
    assert agreement(pairs, similarity, seed=1, **how) != agreement(pairs, similarity, seed=2, **how)


def test_similarities_beside_the_pairs() -> None:
    pairs = pd.DataFrame(
        {"channel": [3, 5], "class_1": ["cat", "unknown thing"], "class_2": ["cow", "cat"], "cosine": [0.2, 0.4]},
        index=[7, 9],
    )
    synsets = {"cat": "cat.n.01", "cow": "cow.n.01"}
    found = with_similarities(pairs, shipped_wordnet(), synsets, ("wup", "path"))
    assert found.columns.tolist() == [*pairs.columns, "synset_1", "synset_2", "wup", "path"]
    assert found["synset_1"][0] == "cat.n.01"
    assert found["synset_1"].isna().tolist() == [False, True]
    assert found["synset_2"].tolist() == ["cow.n.01", "cat.n.01"]
    assert found["channel"].tolist() == [3, 5]
    assert found["wup"][0] == pytest.approx(0.6875)
    assert np.isnan(found["wup"][1])
    table = similarity_matrix(shipped_wordnet(), ["cat", "cow", "unknown thing"], synsets)
    assert table.loc["cat", "cow"] == table.loc["cow", "cat"] == found["wup"][0]
    assert table.loc["cat", "cat"] == 1
    assert table["unknown thing"].isna().all()
