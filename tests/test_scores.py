"""Scores of neurons and their parts, and the trial of scores by neurons whose number of meanings is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from small import Items, noise, plain
from typer.testing import CliRunner

from pure_nb.benchmark.tasks import Task, objects_task, planted_task
from pure_nb.benchmark.trial import DIRECTION, _areas, _rank_correlations, board, trial
from pure_nb.cli import app
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.judges.vectors import Embedder, pixels
from pure_nb.methods.measures import clarity, class_purity, monosemanticity, polysemanticity
from pure_nb.methods.statistics import correlation
from pure_nb.methods.virtual import WHOLE
from pure_nb.scores import SCORES, after_splitting
from pure_nb.study import Study


@pytest.fixture(scope="module")
def table(seen: Study) -> pd.DataFrame:
    return seen.scores(pixels())


def test_scores_are_those_of_each_unit(seen: Study, table: pd.DataFrame) -> None:
    vectors = seen.crops.embeddings(pixels())
    assert seen.objects is not None
    for row in table.iloc[:9].to_dict("records"):
        channel, active = row["channel"], seen.references.active[row["channel"]]
        labels = seen.virtual[channel].labels
        members = active if row["part"] == WHOLE else labels == "ABC".index(row["part"])
        own, objects = vectors[channel][members], seen.objects[channel][members]
        assert row["size"] == members.sum()
        assert row["ms"] == pytest.approx(monosemanticity(seen.references.score[channel][members], own))
        assert row["clarity"] == pytest.approx(float(clarity(own)))
        assert row["polysemanticity"] == pytest.approx(polysemanticity(own))
        assert row["class_purity"] == pytest.approx(class_purity(objects))  # what is under the maximum, where known
        if row["part"] == WHOLE:
            assert row["silhouette_gain"] == seen.virtual[channel].silhouette_gain


def test_redundancy_of_parts_is_towards_other_neurons(seen: Study, table: pd.DataFrame) -> None:
    vectors = seen.crops.embeddings(pixels())
    parts = table[table["part"] != WHOLE]
    means = {}
    for channel, part in zip(parts["channel"], parts["part"]):
        members = seen.virtual[channel].labels == "ABC".index(part)
        mean = vectors[channel][members].astype(np.float64).mean(axis=0)
        means[channel, part] = mean / np.linalg.norm(mean)
    for row in parts.iloc[:4].to_dict("records"):
        own = means[row["channel"], row["part"]]
        assert row["redundancy"] == pytest.approx(max(own @ m for (c, _), m in means.items() if c != row["channel"]))


def test_parts_beside_random_ones(seen: Study) -> None:
    """A judge that sees the objects finds parts purer than random ones; one that sees noise does not."""
    found = after_splitting(seen, pixels()).set_index("score")
    purity = found.loc["class_purity"]
    assert purity["neurons"] == seen.references.alive.sum()
    assert purity["parts"] > purity["whole"]
    assert purity["low"] > 0
    assert purity["p"] < 0.05
    assert purity["gain"] == pytest.approx(purity["parts"] - purity["random"])
    less = found.loc["polysemanticity"]
    assert less["gain"] == pytest.approx(less["random"] - less["parts"])
    rng = np.random.default_rng(0)
    noisy = Embedder("noise", "noise", lambda some: rng.normal(size=(len(some), 8)))
    nothing = after_splitting(seen, noisy).set_index("score").loc["clarity"]
    assert nothing["low"] < 0 < nothing["high"]


def test_nothing_is_split(tmp_path: Path) -> None:
    study = Study.from_model(plain(), Items(noise(12)), "5", "3", n_references=6, n_clusters=1, store=tmp_path)
    assert set(study.scores(pixels())["part"]) == {WHOLE}
    assert study.scores(pixels())["class_purity"].isna().all()  # no labels
    with pytest.raises(ArgumentError, match="none of the 6 living neurons of 'mine' is split"):
        after_splitting(study, pixels())


@pytest.mark.parametrize(("targets", "defined"), [(range(12), False), ([0, *range(11)], True), ([-1] * 12, False)])
def test_class_purity_needs_a_class_of_two_images(tmp_path: Path, targets: list[int], defined: bool) -> None:
    """With one image of each class every neuron has the same purity, whatever it means: that says nothing."""
    images = Items(noise(12))
    images.targets = list(targets)  # type: ignore[attr-defined]
    study = Study.from_model(plain(), images, "5", "3", n_references=6, n_clusters=1, store=tmp_path)
    assert study.scores(pixels())["class_purity"].notna().all() == defined


@pytest.fixture(scope="module")
def task(seen: Study) -> Task:
    return planted_task(seen, count=8, self_merged=6)


def known(task: Task) -> NDArray[np.float64]:
    return task.k.astype(float)


def test_trial(task: Task) -> None:
    def by_number(task: Task) -> NDArray[np.float64]:
        return np.where(np.arange(len(task.k)) % 2 == 0, np.nan, np.arange(len(task.k)))

    table = trial(task, [pixels()], {"truth": known, "by number": by_number})
    assert task.planting is not None
    used = np.flatnonzero((task.k > 1) | task.planting.self_merged)
    assert set(table["score"]) == {*DIRECTION, "truth", "by number"}
    assert table.groupby("score")["channel"].apply(lambda own: sorted(own) == used.tolist()).all()
    assert table.loc[table["score"] == "clarity", "judge"].unique() == ["pixels"]
    assert table.loc[table["score"] == "p", "judge"].unique() == ["circuits"]
    found = board(table, draws=50).set_index("score")
    assert found.loc["truth", ["auc", "low", "high"]].tolist() == [1, 1, 1]
    assert found.index[0] == "truth"
    own = table[table["score"] == "clarity"]
    whole = task.study.scores(pixels()).query("part == 'whole'").set_index("channel")["clarity"]
    assert own["value"].tolist() == (-whole[own["channel"]]).tolist()  # high is monosemantic
    assert found.loc["clarity", "auc"] == pytest.approx(roc_auc_score(own["k"] > 1, own["value"]))
    assert found.loc["by number", "several"] + found.loc["by number", "single"] == (used % 2 == 1).sum()
    assert (found["low"] <= found["auc"]).all()
    assert (found["auc"] <= found["high"]).all()
    with pytest.raises(StudyError, match="the score 'one' gave \\[1\\] numbers for 14 channels"):
        trial(task, [], {"one": lambda task: np.ones(1)})


def test_draws_of_a_board_are_those_of_libraries() -> None:
    """With ties, and where a draw has but one value."""
    draw = np.random.default_rng(0)
    value, k = draw.integers(0, 4, (40, 9)).astype(float), draw.integers(1, 4, (40, 9))
    value[0], k[:, :2] = 1, [1, 2]
    expected = [roc_auc_score(own > 1, values) for own, values in zip(k, value)]
    np.testing.assert_allclose(_areas(k > 1, value), expected, rtol=0, atol=1e-12)
    expected = [correlation(values, own) for own, values in zip(k, value)]
    np.testing.assert_allclose(_rank_correlations(value, k), expected, rtol=0, atol=1e-12)
    assert np.isnan(expected[0])


def test_trial_of_natural_neurons(seen: Study) -> None:
    natural = objects_task(seen)
    found = board(trial(natural, [pixels()], {"truth": known}), draws=20).set_index("score")
    assert found.loc["truth", "rho"] == pytest.approx(1)
    assert np.isfinite(found.loc["clarity", "rho"])


def test_a_trial_without_single_ones(seen: Study) -> None:
    """There is nothing to tell apart, and that is said by NaN."""
    alone = planted_task(seen, count=4, self_merged=0)
    alone = replace(alone, truth=np.tile([0, 1], (4, 10)))
    found = board(trial(alone, [pixels()]), draws=20)
    assert found["auc"].isna().all()
    assert found["p"].isna().all()


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pure_nb.benchmark.trial.board", partial(board, draws=20))
    toml = tmp_path / "small.toml"
    toml.write_text(
        '[model]\nsource = "glyphnet"\n[images]\nsource = "glyphs"\nlength = 60\n'
        '[parameters]\ntarget = "layer4"\nlower = "layer3"\nn_references = 8\ncrop = "activation"\n',
        encoding="utf-8",
    )
    more = ["--store", str(tmp_path / "store"), "--embedder", "pixels"]
    out = tmp_path / "scores.csv"
    found = CliRunner().invoke(app, ["scores", str(toml), *more, "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert "random parts" not in found.output  # where nothing is split
    assert {"judge", *SCORES} <= set(pd.read_csv(out).columns)
    toml.write_text(toml.read_text(encoding="utf-8") + "n_clusters = 2\n", encoding="utf-8")
    found = CliRunner().invoke(app, ["scores", str(toml), *more])
    assert "random parts of the same sizes, judged by pixels" in found.output
    found = CliRunner().invoke(app, ["trial", str(toml), *more, "--count", "6", "--self-merged", "4"])
    assert found.exit_code == 0, found.output
    assert "auc" in found.output
    found = CliRunner().invoke(app, ["scores", str(toml), *more, "--out", str(tmp_path / "scores.txt")])
    assert found.exit_code != 0
    assert ".csv" in found.output
