"""Distances, summaries and alignments against direct loops in float64, scipy, and by hand."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, pearsonr, sem, spearmanr, wilcoxon

from pure_nb.compute import blocks
from pure_nb.compute.store import Store
from pure_nb.errors import EvaluationError
from pure_nb.judges import evaluation
from pure_nb.judges.evaluation import (
    TRUE,
    alignment,
    distance_table,
    intra_inter,
    pair_distances,
    summary,
)
from pure_nb.methods.descriptions import RANDOM
from pure_nb.methods.statistics import mean_and_error
from pure_nb.methods.virtual import kmeans


def vectors(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slow_distances(points: NDArray[Any], metric: str) -> list[float]:
    """Pair by pair, in float64."""
    found = []
    for i in range(len(points)):
        for j in range(i + 1, len(points)):
            a, b = points[i].astype(np.float64), points[j].astype(np.float64)
            if metric == "euclidean":
                found.append(float(np.sqrt(((a - b) ** 2).sum())))
            elif metric == "cityblock":
                found.append(float(np.abs(a - b).sum()))
            else:
                found.append(float(1 - (a @ b) / np.sqrt((a @ a) * (b @ b))))
    return found


def slow_intra_inter(points: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float, float]:
    """A direct double loop over images."""
    inside, across = [], []
    for i in range(len(points)):
        for j in range(i):
            if labels[i] < 0 or labels[j] < 0:
                continue
            distance = np.sqrt(((points[i].astype(np.float64) - points[j].astype(np.float64)) ** 2).sum())
            (inside if labels[i] == labels[j] else across).append(distance)
    every = inside + across
    return tuple(float(np.mean(part)) if part else float("nan") for part in (inside, across, every))  # type: ignore[return-value]


@pytest.mark.parametrize("metric", ["euclidean", "cityblock", "cosine"])
def test_pair_distances(metric: str) -> None:
    points = vectors(9, 5)
    np.testing.assert_allclose(pair_distances(points, metric), slow_distances(points, metric), rtol=1e-6)


def test_own_metric() -> None:
    points = vectors(6, 3)
    found = pair_distances(points, lambda a, b: float(np.abs(a - b).max()))
    first, second = np.triu_indices(6, 1)
    np.testing.assert_allclose(found, np.abs(points[first] - points[second]).max(axis=1), rtol=1e-6)


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(-1, 4))
def test_intra_and_inter(seed: int, n: int, most: int) -> None:
    points = vectors(n, 4, seed=seed)
    labels = np.random.default_rng(seed).integers(-1, most + 1, n) if most >= 0 else np.full(n, -1)
    found = intra_inter(pair_distances(points), labels)
    np.testing.assert_allclose(found, slow_intra_inter(points, labels), rtol=1e-5)


def test_documented_values() -> None:
    distances = pair_distances(vectors(4, 3))
    intra, inter, overall = intra_inter(distances, np.zeros(4, dtype=int))
    assert intra == overall == pytest.approx(distances.mean())
    assert np.isnan(inter)  # all images in one part
    intra, inter, overall = intra_inter(distances, np.arange(4))
    assert np.isnan(intra)  # no part with two images
    assert inter == overall
    one_alone = intra_inter(distances, np.array([0, 0, 0, 1]))
    assert one_alone[0] == pytest.approx(distances[[0, 1, 3]].mean())  # the part of one image adds nothing
    same = pair_distances(np.ones((5, 3)))
    assert intra_inter(same, np.array([0, 0, 1, 1, 1])) == (0, 0, 0)  # identical images


def test_distances_that_are_none() -> None:
    with pytest.raises(EvaluationError, match="n >= 2"):
        pair_distances(vectors(1, 3))
    broken = vectors(4, 3)
    broken[2, 1] = np.nan
    with pytest.raises(EvaluationError, match="images 0 and 2 is nan"):
        pair_distances(broken)
    broken[2] = 0
    with pytest.raises(EvaluationError, match="none of zeros where the metric is the cosine"):
        pair_distances(broken, "cosine")
    with pytest.raises(EvaluationError, match="the metric 'nonsense' can't be used"):
        pair_distances(vectors(4, 3), "nonsense")
    with pytest.raises(EvaluationError, match="5 labels need 10 distances, got 6"):
        intra_inter(pair_distances(vectors(4, 3)), np.zeros(5, dtype=int))


def test_no_array_of_pairs_times_dimensions() -> None:
    points = vectors(100, 768)
    pair_distances(points[:3])
    tracemalloc.start()
    pair_distances(points)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * points.size * 8  # all pairs times all dimensions would be 50 times the vectors


def case(
    neurons: int = 5, n: int = 16
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    generator = np.random.default_rng(3)
    truth = generator.integers(0, 3, (neurons, n))
    judge = vectors(neurons, n, 6, seed=1) + 2 * np.eye(6, dtype=np.float32)[truth]
    good = vectors(neurons, n, 4, seed=2) + 3 * np.eye(4, dtype=np.float32)[truth]
    return judge, {"good": good, "bad": vectors(neurons, n, 4, seed=4), "judge": judge}, truth


def test_table_against_a_loop() -> None:
    judge, methods, truth = case()
    alive = np.array([True, True, False, True, True])
    table = distance_table(judge, methods | {TRUE: truth}, used=np.repeat(alive[:, None], 16, axis=1), ks=(2, 3))
    assert set(table["method"]) == {"good", "bad", "judge", RANDOM, TRUE}
    assert len(table) == 4 * 2 * 5
    assert table["channel"].unique().tolist() == [0, 1, 3, 4]
    for row in table.itertuples():
        if row.method == RANDOM:
            assert row.overall == pytest.approx(slow_intra_inter(judge[row.channel], truth[row.channel])[2], rel=1e-5)
            continue
        labels = truth[row.channel] if row.method == TRUE else kmeans(methods[row.method][row.channel], row.k)
        expected = slow_intra_inter(judge[row.channel], labels)
        np.testing.assert_allclose([row.intra, row.inter, row.overall], expected, rtol=1e-5)
        assert row.gap == pytest.approx(row.inter - row.intra)


def test_random_labels_do_not_depend_on_the_other_neurons() -> None:
    judge, methods, _ = case()
    every = distance_table(judge, methods, ks=(2,))
    some = distance_table(judge, methods, used=np.repeat(np.arange(5)[:, None] >= 3, 16, axis=1), ks=(2,))
    pd.testing.assert_frame_equal(every[every["channel"] >= 3].reset_index(drop=True), some)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_table_stopped_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    monkeypatch.setattr(blocks, "NEURONS", 2)
    judge, methods, truth = case()
    expected = distance_table(judge, methods | {TRUE: truth}, ks=(2,))
    calls: list[int] = []
    real = evaluation._neuron_rows

    def stopping(channel: int, *rest: Any) -> Any:
        if len(calls) == 2 * stop:
            raise KeyboardInterrupt
        calls.append(channel)
        return real(channel, *rest)

    store = Store(tmp_path)
    monkeypatch.setattr(evaluation, "_neuron_rows", stopping)
    with pytest.raises(KeyboardInterrupt):
        distance_table(judge, methods | {TRUE: truth}, ks=(2,), store=store)
    calls.clear()
    monkeypatch.setattr(evaluation, "_neuron_rows", lambda *rest: (calls.append(rest[0]), real(*rest))[1])
    found = distance_table(judge, methods | {TRUE: truth}, ks=(2,), store=store)
    assert calls == list(range(2 * stop, 5))
    pd.testing.assert_frame_equal(found, expected)


def test_table_errors() -> None:
    judge, methods, _ = case()
    with pytest.raises(EvaluationError, match=r"'short' has vectors \[4, 16, 6\] for a judge's \[5, 16, 6\]"):
        distance_table(judge, {"short": judge[:4]})
    with pytest.raises(EvaluationError, match=r"'short' has vectors \[5, 15\] for a judge's"):
        distance_table(judge, methods | {"short": np.zeros((5, 15), np.int64)})
    with pytest.raises(EvaluationError, match="1 or more, got"):
        distance_table(judge, methods, ks=(0,))
    with pytest.raises(EvaluationError, match="none is activated by two images"):
        distance_table(judge, methods, used=np.zeros((5, 16), dtype=bool))
    judge[1, 2, 3] = np.nan
    with pytest.raises(EvaluationError, match=r"neuron 1: .* is nan"):
        distance_table(judge, methods)


def test_summary() -> None:
    judge, methods, truth = case(neurons=12)
    table = distance_table(judge, methods | {TRUE: truth}, ks=(2, 3))
    found = summary(table, "bad")
    assert (found.groupby("k")["gap"].diff().dropna() <= 0).all()  # the largest gap first
    wide = table.pivot(index="channel", columns=["k", "method"], values="gap")
    tests = {}
    for row in found.itertuples():
        own = table[(table["method"] == row.method) & (table["k"] == row.k)]
        for name in ("intra", "inter", "gap", "overall"):
            assert getattr(row, name) == pytest.approx(own[name].mean())
            assert getattr(row, f"{name}_se") == pytest.approx(sem(own[name]))
        difference = wide[(row.k, row.method)] - wide[(row.k, "bad")]
        assert row.difference == pytest.approx(difference.mean())
        assert row.neurons == 12
        if row.method == "bad":
            assert np.isnan(row.p)
        else:
            tests[row.Index] = wilcoxon(difference).pvalue
    np.testing.assert_allclose(found.loc[list(tests), "p"], false_discovery_control(list(tests.values())))
    best = found[(found["k"] == 2) & (found["method"] == "judge")].iloc[0]
    assert best["p"] < 0.01
    assert best["difference"] > 0


def test_summary_of_clear_neurons() -> None:
    judge, methods, _ = case(neurons=12)
    table = distance_table(judge, methods, ks=(2, 4))
    own = table[table["method"] == "judge"]
    limit = float(own["gap"].median())
    found = summary(table, "good", clear=limit, judge="judge")
    for k in (2, 4):
        kept = own[(own["k"] == k) & (own["gap"] > limit)]["channel"]
        assert (found.loc[found["k"] == k, "neurons"] == len(kept)).all()
        expected = table[(table["k"] == k) & (table["method"] == "good") & table["channel"].isin(kept)]["gap"].mean()
        row = found[(found["k"] == k) & (found["method"] == "good")].iloc[0]
        assert row["gap"] == pytest.approx(expected)
    assert len(set(found["neurons"])) == 2
    with pytest.raises(EvaluationError, match="no neuron has a gap above 99"):
        summary(table, "good", clear=99, judge="judge")
    with pytest.raises(EvaluationError, match="no method 'other'; there are good, bad, judge, random"):
        summary(table, "other")


def test_images_that_do_not_count() -> None:
    """They are not clustered, and no pair of theirs is measured; whatever their vectors are."""
    judge, methods, truth = case(neurons=4)
    used = np.random.default_rng(0).random((4, 16)) < 0.7
    used[3] = False
    used[3, 5] = True
    spoilt = {name: np.where(used[..., None], vectors, 1e6).astype(np.float32) for name, vectors in methods.items()}
    table = distance_table(judge, spoilt | {TRUE: truth}, used=used, ks=(3,))
    assert table["channel"].unique().tolist() == [0, 1, 2]
    for row in table[table["method"] != RANDOM].itertuples():
        own = used[row.channel]
        labels = truth[row.channel][own] if row.method == TRUE else kmeans(methods[row.method][row.channel][own], 3)
        expected = slow_intra_inter(judge[row.channel][own], labels)
        np.testing.assert_allclose([row.intra, row.inter, row.overall], expected, rtol=1e-5)
    found = alignment(judge, {"good": spoilt["good"]}, used=used, draws=50)
    first = np.concatenate([slow_distances(judge[i][used[i]], "euclidean") for i in range(3)])
    second = np.concatenate([slow_distances(methods["good"][i][used[i]], "euclidean") for i in range(3)])
    assert found["pooled"].tolist() == pytest.approx(
        [pearsonr(first, second).statistic, spearmanr(first, second).statistic], abs=1e-5
    )


def test_summary_leaves_out_what_is_not_defined() -> None:
    rows = [(0, "a", 2, 9.0, np.nan, np.nan, 9.0), (1, "a", 2, 1.0, 2.0, 1.0, 1.5), (2, "a", 2, 1.0, 4.0, 3.0, 2.0)]
    rows += [(channel, "b", 2, 1.0, 1.5, 0.5, 1.2) for channel in range(3)]
    found = summary(pd.DataFrame(rows, columns=evaluation.COLUMNS), "b").set_index("method")
    assert found.loc["a", "neurons"] == 2
    assert found.loc["a", "gap"] == 2
    assert found.loc["a", "difference"] == pytest.approx(1.5)
    assert found.loc["a", "gap_se"] == pytest.approx(1)
    assert found.loc["a", "inter"] - found.loc["a", "intra"] == found.loc["a", "gap"]  # of the same neurons


def test_mean_and_error() -> None:
    assert mean_and_error(np.array([1.0, 3.0])) == (2, 1)
    mean, error = mean_and_error(np.array([5.0]))
    assert mean == 5
    assert np.isnan(error)
    assert np.isnan(mean_and_error(np.array([]))).all()


@pytest.mark.parametrize("measure", ["pearson", "spearman"])
def test_alignment_against_scipy(measure: str) -> None:
    judge, methods, _ = case(neurons=9, n=12)
    found = alignment(judge, {"good": methods["good"]}, subsets=3, draws=200)
    row = found[found["measure"] == measure].iloc[0]
    correlate = pearsonr if measure == "pearson" else spearmanr
    first = np.stack([slow_distances(own, "euclidean") for own in judge])
    second = np.stack([slow_distances(own, "euclidean") for own in methods["good"]])
    assert row["pooled"] == pytest.approx(correlate(first.ravel(), second.ravel()).statistic, abs=1e-5)
    inside = [correlate(a, b).statistic for a, b in zip(first, second)]
    assert row["within"] == pytest.approx(np.mean(inside), abs=1e-5)
    assert row["within_se"] == pytest.approx(sem(inside), abs=1e-5)
    groups = np.array_split(np.random.default_rng(0).permutation(9), 3)
    parts = [correlate(first[group].ravel(), second[group].ravel()).statistic for group in groups]
    assert row["mean"] == pytest.approx(np.mean(parts), abs=1e-5)
    assert row["standard_error"] == pytest.approx(sem(parts), abs=1e-5)
    assert row["subsets"] == 3


def test_naive_interval_is_scipys() -> None:
    judge, methods, _ = case(neurons=3, n=10)
    row = alignment(judge, {"good": methods["good"]}, draws=10).iloc[0]
    first, second = (np.concatenate([slow_distances(own, "euclidean") for own in x]) for x in (judge, methods["good"]))
    expected = pearsonr(first, second).confidence_interval()
    np.testing.assert_allclose([row["naive_low"], row["naive_high"]], [expected.low, expected.high], atol=1e-5)


def test_bootstrap_over_neurons() -> None:
    judge, methods, _ = case(neurons=6, n=10)
    row = alignment(judge, {"good": methods["good"]}, draws=300).iloc[0]
    generator = np.random.default_rng(0)
    generator.permutation(6)
    first, second = (np.stack([pair_distances(own) for own in x]) for x in (judge, methods["good"]))
    spread = [
        pearsonr(first[pick].ravel(), second[pick].ravel()).statistic for pick in generator.integers(0, 6, (300, 6))
    ]
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(spread, [0.025, 0.975]), atol=1e-5)


def test_pairs_are_not_independent() -> None:
    """Neurons that differ: the interval over neurons is far wider than the naive one."""
    judge = vectors(8, 40, 3)
    own = judge.copy()
    own[4:] = vectors(4, 40, 3, seed=9)  # half of the neurons follow the judge, half do not at all
    row = alignment(judge, {"half": own}).iloc[0]
    assert row["high"] - row["low"] > 4 * (row["naive_high"] - row["naive_low"])


def test_alignment_of_what_does_not_vary() -> None:
    judge = vectors(4, 6, 3)
    found = alignment(judge, {"flat": np.ones((4, 6, 2), np.float32)}, draws=20)
    assert found[["mean", "pooled", "low", "high", "naive_low", "within"]].isna().all().all()
    with pytest.raises(EvaluationError, match="at least one subset, got 0"):
        alignment(judge, {"flat": judge}, subsets=0)


def test_alignment_of_one_neuron() -> None:
    judge = vectors(4, 6, 3)
    used = np.repeat(np.arange(4)[:, None] == 1, 6, axis=1)
    found = alignment(judge, {"same": 2 * judge}, used=used)
    np.testing.assert_allclose(found[["mean", "pooled", "within"]], 1, atol=1e-5)
    assert found[["standard_error", "low", "high", "within_se"]].isna().all().all()


def test_errors_say_whose_vectors() -> None:
    judge = vectors(3, 6, 3)
    flat = judge.copy()
    flat[2, 4] = 0
    with pytest.raises(EvaluationError, match="neuron 2, vectors of flat: the cosine distance of images 0 and 4"):
        alignment(judge, {"flat": flat}, metric="cosine")


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 30))
def test_every_neuron_is_in_one_subset_of_two_or_more(seed: int, neurons: int, subsets: int) -> None:
    judge = vectors(neurons, 5, 3, seed=seed)
    found = alignment(judge, {"same": 2 * judge}, subsets=subsets, draws=5, seed=seed)
    assert (found["subsets"] == max(1, min(subsets, neurons // 2))).all()
    np.testing.assert_allclose(found[["mean", "pooled", "low", "within"]], 1, atol=1e-5)
