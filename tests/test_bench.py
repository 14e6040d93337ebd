"""The benchmark's scores, worked out on paper and by slow loops; and what is kept of a run."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from math import comb, log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wilcoxon
from sklearn.utils.parallel import Parallel
from small import Items, noise, plain
from torch import nn

from pure_nb.benchmark.bench import DRAWS, calibration, detection, downstream, leaderboard, run, true_sources
from pure_nb.benchmark.contestants import Contestant, Parts, circuits_of, gaussian_mixture, random_parts
from pure_nb.benchmark.scoring import (
    FEW,
    SCORES,
    accuracy,
    agreements,
    matched,
    part_correlation,
    pearson,
    source_f1,
)
from pure_nb.benchmark.tasks import Task, objects_task, planted_task
from pure_nb.errors import ArgumentError, ImageError, StudyError, StudyWarning
from pure_nb.images.data import Images
from pure_nb.methods.statistics import interval
from pure_nb.methods.virtual import kmeans, virtual_neurons
from pure_nb.methods.virtual_layer import Assign, VirtualLayer
from pure_nb.study import Study

PAIRS = st.integers(1, 14).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-1, 3), min_size=n, max_size=n), *[st.lists(st.integers(-1, 3), min_size=n, max_size=n)]
    )
)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


@pytest.fixture
def alone_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """To start others takes seconds."""
    monkeypatch.setattr("sklearn.utils.parallel.Parallel", lambda n_jobs: Parallel(n_jobs=1))


def task_of(folder: Path, target: str = "4", lower: str = "input:4", self_merged: int = 2, **how: Any) -> Task:
    """Four merged channels and some nulls in the random network, over thirty images."""
    model = how.pop("model", None) or plain()
    study = Study.from_model(model, Items(noise(30)), target, lower, n_references=24, n_clusters=2, store=folder, **how)
    return planted_task(study.replace(progress=False), 4, self_merged=self_merged, seed=1)


# ------------------------------------------------------------------------------------------------- parts and things


def right_by_brute_force(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> int:
    """The most references that can be right, over all ways to give each thing a part of its own or none."""
    things = sorted(set(truth[truth >= 0].tolist()))
    parts: list[int | None] = [*sorted(set(labels[labels >= 0].tolist())), *[None] * len(things)]
    return max(
        sum(int(((truth == thing) & (labels == part)).sum()) for thing, part in zip(things, chosen) if part is not None)
        for chosen in permutations(parts, len(things))
    )


@given(PAIRS)
def test_no_other_match_is_better(pair: tuple[list[int], list[int]]) -> None:
    truth, labels = ints(*pair[0]), ints(*pair[1])
    found = matched(truth, labels)
    assert len(set(found.values())) == len(found)
    assert set(found) <= set(truth[truth >= 0].tolist())
    assert set(found.values()) <= set(labels[labels >= 0].tolist())
    assert all(type(key) is int and type(value) is int for key, value in found.items())
    best = right_by_brute_force(truth, labels)
    right = sum(int(((truth == thing) & (labels == part)).sum()) for thing, part in found.items())
    assert right == best
    if (truth >= 0).any():
        assert accuracy(truth, labels) == pytest.approx(best / (truth >= 0).sum())
    else:
        assert np.isnan(accuracy(truth, labels))


@given(PAIRS, st.permutations([0, 1, 2, 3]))
def test_what_parts_are_called_does_not_matter(pair: tuple[list[int], list[int]], names: list[int]) -> None:
    truth, labels = ints(*pair[0]), ints(*pair[1])
    other = np.where(labels >= 0, 5 * np.array(names)[labels], -1)
    assert accuracy(truth, other) == accuracy(truth, labels) or not (truth >= 0).any()
    if (truth >= 0).any():
        clear = np.ones(len(truth), dtype=bool)
        first, second = agreements(truth, labels, clear), agreements(truth, other, clear)
        for name in ("ari", "ami", "accuracy"):
            assert second[name] == pytest.approx(first[name], abs=1e-9)


def test_matched_on_paper() -> None:
    # Thing 0 is mostly in part 5; thing 2 too, but that is taken, so part 3 stands for it.
    truth, labels = ints(0, 0, 0, 2, 2, 2, -1), ints(5, 5, 3, 5, 5, 3, 5)
    assert matched(truth, labels) in ({0: 5, 2: 3}, {0: 3, 2: 5})
    assert accuracy(truth, labels) == 3 / 6
    assert matched(ints(0, 0, 2, 2), ints(5, 5, 3, 5)) == {0: 5, 2: 3}
    assert accuracy(ints(0, 0, 2, 2), ints(5, 5, 3, 5)) == 3 / 4
    # More things than parts, and the other way round.
    assert matched(ints(0, 1, 1, 2), ints(0, 0, 0, 0)) == {1: 0}
    assert accuracy(ints(0, 1, 1, 2), ints(0, 0, 0, 0)) == 2 / 4
    assert matched(ints(4, 4, 4), ints(0, 1, 1)) == {4: 1}
    # What belongs to no part is wrong; what is not known does not count.
    assert accuracy(ints(0, 0, 1, -1), ints(0, -1, 1, 1)) == 2 / 3
    assert matched(ints(-1, -1), ints(0, 1)) == {}
    assert matched(ints(0, 1), ints(-1, -1)) == {}
    assert accuracy(ints(0, 1), ints(-1, -1)) == 0
    assert np.isnan(accuracy(ints(-1, -1), ints(0, 1)))


def rand_slowly(truth: list[int], labels: list[int]) -> float:
    """The adjusted Rand index by pairs."""
    n = len(truth)
    both = first = second = 0
    for i in range(n):
        for j in range(i):
            both += truth[i] == truth[j] and labels[i] == labels[j]
            first += truth[i] == truth[j]
            second += labels[i] == labels[j]
    expected = first * second / comb(n, 2)
    return (both - expected) / ((first + second) / 2 - expected)


def mutual_information(first: Any, second: Any) -> float:
    n, total = len(first), 0.0
    for i, j in product(set(first), set(second)):
        both = sum(a == i and b == j for a, b in zip(first, second)) / n
        if both:
            total += both * log(both / (sum(a == i for a in first) * sum(b == j for b in second) / n**2))
    return total


def adjusted_slowly(truth: list[int], labels: list[int]) -> float:
    """Mutual information adjusted by its mean over *all* orders of the labels."""
    own = mutual_information(truth, labels)
    orders = list(permutations(labels))
    expected = sum(mutual_information(truth, order) for order in orders) / len(orders)
    entropy = (mutual_information(truth, truth) + mutual_information(labels, labels)) / 2
    return (own - expected) / (entropy - expected)


def test_agreement_on_paper() -> None:
    truth, labels = ints(0, 0, 0, 1, 1, 1), ints(0, 0, 1, 1, 1, 1)
    found = agreements(truth, labels, np.ones(6, dtype=bool))
    # Four pairs agree of 6 and 7 together, 6 * 7 / 15 = 2.8 of them by chance: (4 - 2.8) / (6.5 - 2.8).
    assert found["ari"] == pytest.approx(1.2 / 3.7)
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["ami"] == pytest.approx(adjusted_slowly(truth.tolist(), labels.tolist()))
    assert np.isnan(found["ari_dominant"])  # six are too few
    assert list(found) == ["ari", "ami", "accuracy", "ari_dominant"]
    # An unknown reference changes nothing; a stray one is a part like any other.
    again = agreements(ints(*truth, -1), ints(*labels, 0), np.ones(7, dtype=bool))
    assert again == pytest.approx(found, nan_ok=True)
    stray = agreements(ints(*truth, 1), ints(*labels, -1), np.ones(7, dtype=bool))
    assert stray["ari"] == pytest.approx(rand_slowly([0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 2]))
    assert stray["accuracy"] == pytest.approx(5 / 7)


@given(st.integers(0, 200))
def test_agreement_is_that_of_slow_loops(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth, labels = (ints(0, 1, *generator.integers(0, 3, 4)) for _ in range(2))
    labels[0] = 2  # so that neither is all of one
    found = agreements(truth, labels, np.ones(6, dtype=bool))
    assert found["ari"] == pytest.approx(rand_slowly(truth.tolist(), labels.tolist()), abs=1e-9)
    if seed < 6:  # all 720 orders take long
        assert found["ami"] == pytest.approx(adjusted_slowly(truth.tolist(), labels.tolist()), abs=1e-9)


def test_clearly_dominant_sources_alone() -> None:
    generator = np.random.default_rng(0)
    truth, labels = generator.integers(0, 2, 40), generator.integers(0, 2, 40)
    clear = np.arange(40) < FEW
    labels[clear] = 1 - truth[clear]
    found = agreements(truth, labels, clear)
    assert found["ari_dominant"] == 1
    assert found["ari"] < 0.9
    # One fewer is too few, as are those without a truth, or of a single thing.
    assert np.isnan(agreements(truth, labels, np.arange(40) < FEW - 1)["ari_dominant"])
    lost = truth.copy()
    lost[0] = -1
    assert np.isnan(agreements(lost, labels, clear)["ari_dominant"])
    same = np.where(clear, 1, truth)
    assert np.isnan(agreements(same, labels, clear)["ari_dominant"])
    assert np.isfinite(agreements(same, labels, clear)["ari"])


# ------------------------------------------------------------------------------------- virtual neurons and sources


def test_correlation_on_paper() -> None:
    contributions = np.array([[2, 0], [0, 2], [1, 0], [0, 1]], dtype=np.float32)
    # Each part is its source: 2, 0, 1, 0 and 0, 2, 0, 1.
    assert part_correlation(contributions, ints(0, 1, 0, 1), [0, 1]) == pytest.approx(1)
    assert part_correlation(contributions, ints(7, 3, 7, 3), [0, 1]) == pytest.approx(1)
    # One part for both: the whole channel 2, 2, 1, 1 against 2, 0, 1, 0; and nothing against the other.
    # With means 1.5 and 0.75: 0.5 / sqrt(1 * 2.75), halved.
    assert part_correlation(contributions, ints(0, 0, 0, 0), [0, 1]) == pytest.approx(0.5 / 2.75**0.5 / 2)
    # Nobody's: nothing correlates.
    assert part_correlation(contributions, ints(-1, -1, -1, -1), [0, 1]) == 0
    # A part that is never silent, of images that all activate it alike, does not vary.
    assert part_correlation(np.ones((3, 1)), ints(0, 0, 0), [0]) == 0


def test_correlation_is_that_of_a_slow_loop() -> None:
    generator = np.random.default_rng(0)
    contributions = generator.normal(0.5, 1, (30, 3))
    labels = generator.integers(-1, 4, 30)
    labels[:20] = contributions[:20].argmax(axis=1)
    driver = [int(row.argmax()) if row.max() > 0 else -1 for row in contributions]
    part_of = matched(ints(*driver), labels)
    values = []
    for source in range(3):
        own = [sum(row) if label == part_of[source] else 0.0 for row, label in zip(contributions.tolist(), labels)]
        first, second = np.array(own) - np.mean(own), contributions[:, source] - contributions[:, source].mean()
        values.append(float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())))
    assert part_correlation(contributions, labels, [0, 1, 2]) == pytest.approx(np.mean(values))


def test_columns_beyond_the_sources_do_not_count() -> None:
    """Where groups differ in size the last columns are nothing's."""
    contributions = np.array([[2, 0, 0], [0, 2, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32)
    assert part_correlation(contributions, ints(0, 1, 0, 1), [0, 1]) == pytest.approx(1)


def test_pearson() -> None:
    assert pearson(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1)
    assert pearson(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert pearson(np.array([1.0, 1, 1]), np.array([3.0, 2, 1])) == 0
    assert pearson(np.array([3.0, 2, 1]), np.zeros(3)) == 0


def test_source_f1_on_paper() -> None:
    true, found = ints(0, 0, 1, -1), ints(0, 1, 1, 0)
    # Concept 0 owns two and is given two, one of them rightly: 2 / 4. Concept 1 owns one and is given two: 2 / 3.
    assert source_f1(true, found, {0: 0, 1: 1}) == pytest.approx((1 / 2 + 2 / 3) / 2)
    # The parts the other way round: 2 * 1 / 4 for concept 0, and nothing for concept 1.
    assert source_f1(true, found, {0: 1, 1: 0}) == pytest.approx((1 / 2 + 0) / 2)
    assert source_f1(true, found, {0: 0}) == pytest.approx((1 / 2 + 0) / 2)
    assert source_f1(true, true, {0: 0, 1: 1}) == 1
    assert source_f1(true, ints(-1, -1, -1, -1), {0: 0, 1: 1}) == 0
    assert np.isnan(source_f1(ints(-1, -1), ints(0, 1), {0: 0, 1: 1}))


def grouped_convolution() -> nn.Sequential:
    torch.manual_seed(1)
    middle = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, padding_mode="circular")
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


@pytest.mark.parametrize(
    ("make", "target"), [(plain, "4"), (grouped_convolution, "2"), (plain, "8")], ids=["plain", "groups", "linear"]
)
def test_true_sources_are_those_of_a_slow_loop(tmp_path: Path, make: Any, target: str) -> None:
    task = task_of(tmp_path, target, f"input:{target}", model=make())
    found = true_sources(task)
    assert set(found) == set(np.flatnonzero(task.k > 1).tolist())
    assert found
    assert task.planting is not None
    layer = make()[int(target)].double()
    with torch.no_grad():
        below = make()[: int(target)](noise(30)).double()
    seen = set()
    for channel, owner in found.items():
        evidence = []
        for source, number in enumerate(task.planting.groups[channel]):
            images = task.study.references.sample[channel][task.truth[channel] == source]
            relevance = []
            for i in range(below.shape[1]):
                # What this input alone makes of the source: the layer without its bias, the other inputs at 0.
                alone = torch.zeros_like(below[images])
                alone[:, i] = below[images][:, i]
                with torch.no_grad():
                    out = (layer(alone) - layer(torch.zeros_like(alone)))[:, number]
                relevance.append(float(out.sum()) / len(images) * task.planting.weight[channel, number])
            evidence.append(relevance)
        for i, (first, second) in enumerate(zip(*np.maximum(evidence, 0).tolist())):
            expected = 0 if 0.5 * first > second else 1 if 0.5 * second > first else -1
            assert owner[i] == expected
            seen.add(expected)
    assert seen == ({0, 1} if target == "8" else {-1, 0, 1})


def test_only_what_reads_the_layers_input_has_true_sources(tmp_path: Path) -> None:
    task = task_of(tmp_path, "5", "3")
    assert (task.k > 1).any()
    assert true_sources(task) == {}
    assert true_sources(Task("w", task.base, task.truth, task.share, task.base)) == {}


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    image = int(task.study.references.sample[0, 0])
    study = replace(task.study, images=Images(Items(noise(30), {image: OSError("gone")})))
    study.__dict__["_swept"] = study.__dict__["_found"] = task.study.references, []
    with pytest.raises(ImageError, match=f"image {image} .*gone"):
        true_sources(replace(task, study=study))


# --------------------------------------------------------------------------------------------------------- a run


def told(task: Task) -> Parts:
    """One that knows the truth, to see what a perfect answer scores."""
    return Parts(task.truth.copy(), owner=true_sources(task))


COLUMNS = ["channel", "method", "oracle", "k", "self_merged", *SCORES, "silhouette_gain", "chosen", "labels", "seconds"]


def test_a_run(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    entries = [Contestant("told", told), Contestant("random", random_parts), Contestant("PURE", circuits_of())]
    table = run(task, entries, choose=False)
    assert list(table) == COLUMNS
    assert table["method"].tolist() == ["told"] * 6 + ["random"] * 6 + ["PURE"] * 6
    assert table["channel"].tolist() == list(range(6)) * 3
    assert table["k"].tolist() == task.k.tolist() * 3
    assert (
        table["self_merged"].tolist() == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2
    )
    assert table["silhouette_gain"].isna().all()
    assert table["chosen"].isna().all()
    assert (table["seconds"] >= 0).all()
    assert table.groupby("method")["seconds"].nunique().tolist() == [1, 1, 1]
    several = table["k"] > 1
    assert table.loc[~several, list(SCORES)].isna().all(axis=None)
    assert several.sum() >= 6
    perfect = table[several & (table["method"] == "told")]
    for name in ("ari", "ami", "accuracy", "f1"):
        assert (perfect[name] == 1).all()
    assert perfect["correlation"].min() > 0.5
    assert table.loc[several & (table["method"] != "told"), "f1"].isna().all()
    assert task.contributions is not None
    for row in table[several].itertuples():
        assert all(type(label) is int for label in row.labels)
        labels, truth = ints(*row.labels), task.truth[row.channel]
        expected = agreements(truth, labels, task.dominant[row.channel])
        for name, value in expected.items():
            assert getattr(row, name) == pytest.approx(value, nan_ok=True)
        assert row.correlation == part_correlation(task.contributions[row.channel], labels, [0, 1])
        if row.method == "PURE":
            assert row.labels == circuits_and_means(task, row.channel)


def circuits_and_means(task: Task, channel: int) -> list[int]:
    return kmeans(task.study.circuits[channel], int(task.k[channel])).tolist()


def test_natural_neurons_have_no_sources(glyph_study: Study) -> None:
    task = objects_task(glyph_study)
    table = run(task, [Contestant("told", lambda it: it.truth)], choose=False)
    assert table["correlation"].isna().all()
    assert table["f1"].isna().all()
    assert table["self_merged"].tolist() == (task.k == 1).tolist()
    several = table["k"] > 1
    assert (table.loc[several, "ari"] == 1).all()
    assert (table.loc[several, "accuracy"] == 1).all()


def test_a_dead_neuron_is_no_null(glyph_study: Study) -> None:
    """It means nothing, and its silhouette gain of exactly 0 makes the detection of the others look good."""
    study = glyph_study.replace()
    score = study.references.score.copy()
    score[3] = 0
    study.__dict__["_swept"] = study.__dict__["_found"] = replace(study.references, score=score), []
    table = run(objects_task(study), [Contestant("random", random_parts)], choose=False)
    assert not table["self_merged"][3]


def test_two_of_one_name(tmp_path: Path) -> None:
    task = task_of(tmp_path, self_merged=0)
    entries = [Contestant(name, random_parts) for name in ("b", "a", "b", "a")]
    with pytest.raises(StudyError, match="two contestants are called 'a'; name one of them otherwise"):
        run(task, entries, choose=False)


def test_a_contestant_of_the_wrong_shape(tmp_path: Path) -> None:
    task = task_of(tmp_path, self_merged=0)
    with pytest.raises(StudyError, match=r"contestant 'odd' returned an array of shape \[4, 7\]"):
        run(task, [Contestant("odd", lambda _: np.zeros((4, 7)))], choose=False)


def test_the_number_of_parts_is_chosen(tmp_path: Path, alone_in_one_process: None) -> None:
    task = task_of(tmp_path)
    vectors = circuits_of()(task)
    entries = [
        Contestant("PURE", circuits_of()),
        Contestant("mixture", circuits_of(), gaussian_mixture),
        Contestant("random", random_parts),
        Contestant("own", lambda it: Parts(it.truth, vectors)),
    ]
    table = run(task, entries)
    assert table["silhouette_gain"].notna().tolist() == [True] * 6 + [False] * 12 + [True] * 6
    for channel in range(6):
        expected = virtual_neurons(vectors[channel], draws=DRAWS)
        assert table["chosen"][channel] == table["chosen"][18 + channel] == expected.k
        assert table["silhouette_gain"][channel] == expected.silhouette_gain
    pd.testing.assert_series_equal(table["ari"][:6], run(task, entries[:1], choose=False)["ari"])


@pytest.mark.nightly
def test_all_cores_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(tmp_path, self_merged=0)
    many = run(task, [Contestant("PURE", circuits_of())])
    monkeypatch.setattr("sklearn.utils.parallel.Parallel", lambda n_jobs: Parallel(n_jobs=1))
    one = run(task, [Contestant("PURE", circuits_of())])
    pd.testing.assert_frame_equal(many.drop(columns="seconds"), one.drop(columns="seconds"))


# ------------------------------------------------------------------------------------------------------ what is kept


class Counting:
    """An answer that counts how often it is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, 0

    def __call__(self, task: Task) -> Any:
        self.calls += 1
        return self.answer(task)


def test_answers_are_found_again(tmp_path: Path, alone_in_one_process: None) -> None:
    vectors, labels, owned = Counting(circuits_of()), Counting(random_parts), Counting(told)
    entries = [
        Contestant("v", vectors, fingerprint="v"),
        Contestant("l", labels, fingerprint="l"),
        Contestant("o", owned, fingerprint="o"),
        Contestant("no fingerprint", Counting(random_parts)),
    ]
    first = run(task_of(tmp_path), entries)
    second = run(task_of(tmp_path), entries)
    assert (vectors.calls, labels.calls, owned.calls) == (1, 1, 1)
    assert entries[3].describe.calls == 2  # type: ignore[attr-defined]
    kept = first["method"] != "no fingerprint"
    pd.testing.assert_frame_equal(second[kept], first[kept])  # with the seconds it took when it was computed
    pd.testing.assert_frame_equal(second.drop(columns="seconds"), first.drop(columns="seconds"))
    assert list(second) == COLUMNS
    assert (second["f1"] == 1).any()  # owners come back from the store too


def test_two_runs_are_the_same_to_the_byte(tmp_path: Path) -> None:
    entries = [Contestant("PURE", circuits_of(), fingerprint="p"), Contestant("told", told, fingerprint="t")]
    tables = [run(task_of(tmp_path / name), entries, choose=False) for name in ("one", "other")]
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables), check_exact=True)


def test_what_changes_the_answers_is_asked_again(tmp_path: Path) -> None:
    answer = Counting(random_parts)
    one = Contestant("l", answer, fingerprint="1")
    task = task_of(tmp_path)
    others: list[tuple[Task, Contestant, dict[str, Any]]] = [
        (task, one, {"seed": 1}),
        (task, replace(one, fingerprint="2"), {}),
        (task, replace(one, name="m"), {}),
        (replace(task, truth=np.roll(task.truth, 1, axis=1)), one, {}),
        (task_of(tmp_path, lower="2"), one, {}),
        (task_of(tmp_path, seed=3), one, {}),
        (task_of(tmp_path, model=plain(seed=1)), one, {}),
        (task_of(tmp_path, self_merged=3), one, {}),
    ]
    run(task, [one], choose=False)
    for asked, (other, contestant, how) in enumerate(others, 2):
        run(other, [contestant], choose=False, **how)
        assert answer.calls == asked
    run(task, [one], choose=False)
    assert answer.calls == len(others) + 1


def test_another_clusterer_is_asked_again(tmp_path: Path) -> None:
    """``replace(contestant, clusterer=...)`` is how one tries another on the same vectors."""
    task, one = task_of(tmp_path), Contestant("v", circuits_of(), fingerprint="v")
    run(task, [one], choose=False)
    whole = replace(one, clusterer=lambda vectors, k, seed: np.zeros(len(vectors), np.int64))
    assert not np.array(run(task, [whole], choose=False)["labels"].tolist()).any()


def test_a_task_without_a_store(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    answer = Counting(random_parts)
    nowhere = replace(task, study=replace(task.study, store=None))
    for _ in range(2):
        run(nowhere, [Contestant("l", answer, fingerprint="l")], choose=False)
    assert answer.calls == 2


def test_a_stop_keeps_what_is_finished(tmp_path: Path) -> None:
    def stop(_: Task) -> Any:
        raise KeyboardInterrupt

    first, third = Counting(circuits_of()), Counting(random_parts)
    entries = [
        Contestant("first", first, fingerprint="1"),
        Contestant("second", stop, fingerprint="2"),
        Contestant("third", third, fingerprint="3"),
    ]
    task = task_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(task, entries, choose=False)
    assert (first.calls, third.calls) == (1, 0)
    table = run(task, [entries[0], replace(entries[1], describe=random_parts), entries[2]], choose=False)
    assert (first.calls, third.calls) == (1, 1)
    assert len(table) == 18
    assert task.study.store is not None
    assert not [path for path in task.study.store.folder.iterdir() if path.is_dir()]  # nothing is left half done


# ------------------------------------------------------------------------------------------------------- new images


def test_virtual_neurons_follow_their_sources_on_paper(tmp_path: Path) -> None:
    """Even images activate a by 1 to 6, odd ones b: of the merged channel each virtual neuron is one of the two."""
    strength = torch.arange(1.0, 7).repeat_interleave(2)
    images = torch.zeros(12, 2, 1, 1)
    images[range(12), [number % 2 for number in range(12)], 0, 0] = strength
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    study = Study.from_model(model, Items(images), "0", "input:0", n_references=12, n_clusters=2, store=tmp_path)
    task = planted_task(study.replace(progress=False), groups=((0, 1),))
    found = downstream(task, task.study, [0], [5, *range(4), *range(6, 12)])  # all but one, in any order
    assert found[["channel", "source"]].to_numpy().tolist() == [[0, 0], [0, 1]]
    assert found["virtual"].tolist() == pytest.approx([1, 1])
    # The scales are 21 / 12 for both, so the merged channel is as strong as the image, whichever source it shows.
    used = np.array([1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6])
    for source, own in enumerate(
        (np.array([1, 0, 2, 0, 0, 4, 0, 5, 0, 6, 0]), np.array([0, 1, 0, 2, 3, 0, 4, 0, 5, 0, 6]))
    ):
        first, second = used - used.mean(), own - own.mean()
        expected = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
        assert found["whole"][source] == pytest.approx(expected)
        assert found["whole"][source] < 0.6


def test_natural_neurons_have_nothing_to_follow(glyph_study: Study) -> None:
    task = objects_task(glyph_study)
    with pytest.raises(StudyError, match="the task 'objects' has no sources; plant some"):
        downstream(task, glyph_study, [0], [0])


@pytest.mark.parametrize("assign", ["nearest", "mixture"])
def test_downstream_equals_a_slow_loop(tmp_path: Path, assign: Assign) -> None:
    study = Study.from_model(plain(), Items(noise(40)), "5", "3", n_references=10, store=tmp_path).replace(
        progress=False
    )
    task = planted_task(study, groups=((0, 1), (2, 3, 4), (5, 5)))
    recipe, samples = task.replace(start="peak", n_clusters=2), [3, 7, 8, 20, 21, 39]
    found = downstream(task, recipe, [1, 0], samples, assign)
    assert found[["channel", "source"]].to_numpy().tolist() == [[1, 2], [1, 3], [1, 4], [0, 0], [0, 1]]
    images = torch.stack([study.images.tensor(sample) for sample in samples])
    with torch.no_grad():
        sources = study.model[:6](images)  # type: ignore[index]
    for channel, source, virtual, whole in found.itertuples(index=False):
        layer = VirtualLayer.of(recipe, [channel], assign)
        own = layer(images)
        merged, truth, parts = [], [], []
        part_of = matched(task.truth[channel], recipe.virtual_of(channel).labels)
        place = task.planting.groups[channel].index(source)  # type: ignore[union-attr]
        for image in range(len(samples)):
            total = own[image].sum(dim=0)
            row, column = divmod(int(total.argmax()), total.shape[1])
            merged.append(float(total[row, column]))
            truth.append(float(sources[image, source, row, column]))
            parts.append(float(own[image, part_of[place], row, column]) if place in part_of else 0.0)
        assert whole == pytest.approx(pearson(np.array(merged), np.array(truth)), abs=1e-4)
        assert virtual == pytest.approx(pearson(np.array(parts), np.array(truth)), abs=1e-4)


# -------------------------------------------------------------------------------------------------- what is made of it


def rows(method: str, k: list[int], null: list[bool], **columns: Any) -> pd.DataFrame:
    table = pd.DataFrame({"channel": range(len(k)), "method": method, "oracle": False, "k": k, "self_merged": null})
    return table.assign(**(dict.fromkeys((*SCORES, "silhouette_gain", "chosen", "seconds"), np.nan) | columns))


K, NULL = [2, 2, 3, 1, 1, 1], [False, False, False, True, True, False]


def test_detection_on_paper() -> None:
    table = pd.concat(
        [
            # Of 3 x 2 pairs the null with 0.4 is above one, and even with another. The last neuron is neither.
            rows("a", K, NULL, silhouette_gain=[0.5, 0.3, 0.4, 0.1, 0.4, 9]),
            rows("b", K, NULL, silhouette_gain=[0.5, 0.6, 0.7, 0.1, 0.2, 9]),
            rows("c", K, NULL),
            rows("d", [2] * 6, [False] * 6, silhouette_gain=1.0),
            rows("e", [1] * 6, [True] * 6, silhouette_gain=1.0),
            rows("f", K, NULL, silhouette_gain=[np.nan, 0.2, 0.3, 0.3, np.nan, 9]),
        ]
    )
    found = detection(table)
    assert list(found) == list("abcdef")
    assert found["a"][0] == pytest.approx((3 + 1 + 0.5) / 6)
    assert 0 <= found["a"][1] < found["a"][0] < found["a"][2] <= 1
    assert found["b"] == (1, 1, 1)
    for method in "cde":
        assert np.isnan(found[method]).all()
    assert found["f"][0] == pytest.approx(0.25)  # below one and even with another
    assert all(type(value) is float for values in found.values() for value in values)


def test_the_interval_of_detection_is_as_wide_as_theory_says() -> None:
    """The standard error of an area under the curve by Hanley and McNeil (1982), for as many neurons of both kinds."""
    generator = np.random.default_rng(0)
    silhouette_gain = np.concatenate([generator.normal(1, 1, 60), generator.normal(0, 1, 60)])
    area, low, high = detection(
        rows("a", [2] * 60 + [1] * 60, [False] * 60 + [True] * 60, silhouette_gain=silhouette_gain)
    )["a"]
    assert area == pytest.approx(np.mean(silhouette_gain[:60, None] > silhouette_gain[60:]))
    two, one = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt((area * (1 - area) + 59 * (two - area**2) + 59 * (one - area**2)) / 60**2)
    assert low < area < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_calibration_on_paper() -> None:
    table = pd.concat(
        [
            rows("a", [2, 2, 2, 2, 3, 1, 1], [False] * 5 + [True, False], chosen=[2, 2, 3, 1, 3, 1, 4]),
            rows("b", K, NULL),
        ]
    )
    found = calibration(table)
    assert found.index.names == ["method", "k"]
    assert found.columns.name == "chosen"
    # The last neuron was merged of two, of which one is always dominant: neither.
    assert found.columns.tolist() == [1, 2, 3]
    assert found.index.tolist() == [("a", 1), ("a", 2), ("a", 3)]
    assert found.to_numpy().tolist() == [[1, 0, 0], [0.25, 0.5, 0.25], [0, 0, 1]]


def test_calibration_of_nothing_chosen() -> None:
    assert calibration(rows("a", K, NULL)).empty


def test_the_leaderboard_on_paper() -> None:
    generator = np.random.default_rng(0)
    ari = {"PURE": generator.random(8), "better": generator.random(8) + 1, "worse": generator.random(8) - 1}
    k, null = [2, 3] * 4 + [1, 1], [False] * 8 + [True, True]
    silhouette_gain = [*np.arange(8.0), 0.5, 2.5]
    tables = []
    for number, (method, values) in enumerate(ari.items()):
        tables.append(
            rows(
                method,
                k,
                null,
                ari=[*values, 99, 99],  # of neurons that mean one thing nothing counts
                ami=number,
                accuracy=[0.5, 1] * 4 + [0, 0],
                ari_dominant=[0.25] + [np.nan] * 9,
                correlation=np.nan,
                f1=[1, 0] + [np.nan] * 8,
                silhouette_gain=silhouette_gain if method != "worse" else np.nan,
                chosen=[2, 2, 2, 3, 2, 4, 1, 1, 5, 5] if method != "worse" else np.nan,
                seconds=float(number),
            )
        )
    found = leaderboard(pd.concat(tables, ignore_index=True))
    assert list(found) == [
        *("method", "ari", "low", "high", "difference", "difference_low", "difference_high", "p"),
        *("ami", "accuracy", "ari_dominant", "correlation", "f1", "dominant_neurons"),
        *("k_right", "k_bias", "auc", "auc_low", "auc_high", "seconds"),
    ]
    assert found["method"].tolist() == ["better", "PURE", "worse"]
    for row in found.itertuples():
        values = ari[row.method]
        assert row.ari == pytest.approx(values.mean())
        assert (row.low, row.high) == pytest.approx(interval(values))
        apart = values - ari["PURE"]
        assert row.difference == pytest.approx(apart.mean())
        drawn = apart[np.random.default_rng(0).integers(0, 8, (2000, 8))].mean(axis=1)  # the same neurons for both
        limits = (row.difference_low, row.difference_high)
        if row.method == "PURE":
            assert np.isnan(limits).all()
        else:
            assert limits == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
        assert row.dominant_neurons == 1
        assert row.ami == list(ari).index(row.method) == row.seconds
        assert row.accuracy == 0.75
        assert row.ari_dominant == 0.25
        assert np.isnan(row.correlation)
        assert row.f1 == 0.5
    by_method = found.set_index("method")
    # Both others are apart in all eight neurons: twice the same p, which the correction leaves.
    assert wilcoxon(np.arange(1, 9)).pvalue == 2 / 2**8
    assert by_method.loc["better", "p"] == pytest.approx(2 / 2**8)
    assert by_method.loc["worse", "p"] == pytest.approx(2 / 2**8)
    assert np.isnan(by_method.loc["PURE", "p"])
    # Chosen 2 2 2 3 2 4 1 1 for 2 3 2 3 2 3 2 3.
    for method in ("PURE", "better"):
        assert by_method.loc[method, "k_right"] == 4 / 8
        assert by_method.loc[method, "k_bias"] == (0 - 1 + 0 + 0 + 0 + 1 - 1 - 2) / 8
        # Of 16 pairs three are the wrong way round: 0.5 above one neuron, 2.5 above three.
        assert by_method.loc[method, "auc"] == pytest.approx(12 / 16)
        assert by_method.loc[method, "auc_low"] < 0.75 < by_method.loc[method, "auc_high"]
    assert by_method.loc["worse", ["k_right", "k_bias", "auc", "auc_low", "auc_high"]].isna().all()


def test_too_few_clearly_dominant_sources_are_told(tmp_path: Path, alone_in_one_process: None) -> None:
    task = task_of(tmp_path)
    with pytest.warns(
        StudyWarning,
        match=f"ari_dominant is not known: it takes {FEW} references .* its 24 .*--n",
    ):
        table = run(replace(task, share=np.zeros(task.share.shape)), [Contestant("told", told)], choose=False)
    assert table["ari_dominant"].isna().all()


def test_answers_belong_to_an_order_of_references(tmp_path: Path, alone_in_one_process: None) -> None:
    """In another order, which the last digit may decide, they are asked for again, though the truth is the same."""
    task, asked = task_of(tmp_path), []

    def answers(it: Task) -> NDArray[np.int64]:
        asked.append(it.study.references.sample[0, 0])
        return told(it)

    entry = Contestant("told", answers, fingerprint="told")
    run(task, [entry], choose=False)
    run(task, [entry], choose=False)
    assert len(asked) == 1
    other = replace(task.study)
    references, note = task.study._found
    other.__dict__["_found"] = replace(references, sample=references.sample[:, ::-1].copy()), note
    run(replace(task, study=other), [entry], choose=False)
    assert len(asked) == 2


def test_the_seed_is_the_studys(tmp_path: Path, alone_in_one_process: None) -> None:
    task, seeds = task_of(tmp_path, seed=7), []

    def clusterer(vectors: NDArray[np.float32], k: int, seed: int) -> NDArray[np.int64]:
        seeds.append(seed)
        return np.arange(len(vectors)) % k

    run(task, [Contestant("own", circuits_of(), clusterer)], choose=False)
    assert set(seeds) == {7}
    study = task.base
    assert planted_task(study, 3).planting.groups == planted_task(study, 3, seed=7).planting.groups  # type: ignore[union-attr]


def test_another_baseline() -> None:
    table = pd.concat([rows("a", K, NULL, ari=0.5), rows("b", K, NULL, ari=[0.1, 0.2, 0.3, 0, 0, 0])])
    found = leaderboard(table, "b").set_index("method")
    assert found.loc["b", "difference"] == 0
    assert found.loc["a", "difference"] == pytest.approx(0.3)
    with pytest.raises(ArgumentError, match=r"there is no method 'PURE' to compare with; there are \['a', 'b'\]"):
        leaderboard(table)


def test_an_oracle_says_so_itself(tmp_path: Path, alone_in_one_process: None) -> None:
    """Whatever it is called: it takes no part in the correction for many tests, and has no p of its own."""
    entries = [
        Contestant("PURE", circuits_of()),
        Contestant("random", random_parts),
        Contestant("oracle of Delphi", random_parts),
        Contestant("told", told, oracle=True),
    ]
    table = run(task_of(tmp_path), entries, choose=False)
    assert table.groupby("method")["oracle"].first().to_dict() == {one.name: one.oracle for one in entries}
    found = leaderboard(table).set_index("method")
    assert np.isnan(found.loc["told", "p"])
    assert np.isfinite(found.loc["told", "difference"])
    without = leaderboard(table[table["method"] != "told"]).set_index("method")
    assert np.isfinite(without.loc["oracle of Delphi", "p"])
    pd.testing.assert_series_equal(found["p"].drop("told"), without["p"])


def test_nothing_to_compare() -> None:
    with pytest.raises(ArgumentError, match="no neuron means more than one thing, so there is nothing to compare"):
        leaderboard(rows("PURE", [1, 1], [True, False]))


def test_a_leaderboard_of_a_run(tmp_path: Path, alone_in_one_process: None) -> None:
    task = task_of(tmp_path)
    entries = [Contestant("told", told), Contestant("PURE", circuits_of()), Contestant("random", random_parts)]
    table = run(task, entries)
    found = leaderboard(table)
    assert found["method"][0] == "told"
    assert found["ari"][0] == 1
    assert set(found["method"]) == {"told", "PURE", "random"}
    shares = calibration(table)
    assert shares.loc["PURE"].sum(axis=1).tolist() == pytest.approx([1] * len(shares.loc["PURE"]))
    assert np.isfinite(detection(table)["PURE"]).all()
