"""The whole benchmark: which tasks a study has, who takes part, what is written and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from small import Items, noise, plain

from pure_nb.benchmark import bench
from pure_nb.benchmark.bench_plots import leaderboard_figure, parts_figure
from pure_nb.benchmark.contestants import Contestant
from pure_nb.benchmark.leaderboards import BenchmarkResult, run_benchmark, tasks_of, words, write
from pure_nb.benchmark.tasks import Task, objects_task, planted_task
from pure_nb.errors import StudyError
from pure_nb.figures.colours import NOBODY, PALETTE
from pure_nb.study import Study


@pytest.fixture(scope="module")
def made(glyph_study: Study) -> BenchmarkResult:
    task = planted_task(glyph_study, count=8, self_merged=4)
    return run_benchmark(task, only=("activation", "random"), choose=False)


def test_tasks_of(glyph_study: Study, tmp_path: Path) -> None:
    names = [task.name for task in tasks_of(glyph_study, count=3, self_merged=1)]
    assert names == ["objects", "planted, k = 2, random"]
    assert [task.name for task in tasks_of(glyph_study, "objects")] == ["objects"]
    own = Study.from_model(plain(), Items(noise(20)), "5", "3", n_references=6, store=tmp_path)
    (task,) = tasks_of(own, count=3, how="overlapping")
    assert task.name == "planted, k = 2, overlapping"
    with pytest.raises(StudyError, match="objects in 'mine' are not known"):
        tasks_of(own, "objects")


def test_only_some_take_part_and_the_baseline_always(made: BenchmarkResult) -> None:
    assert set(made.board["method"]) == {"PURE", "activation", "random"}
    assert made.board.loc[made.board["method"] == "PURE", "difference"].item() == 0
    expected = bench.leaderboard(made.table)
    pd.testing.assert_frame_equal(made.board, expected)


def test_another_baseline_and_an_own_contestant(glyph_study: Study) -> None:
    task = objects_task(glyph_study)
    own = Contestant("truth", lambda it: it.truth)
    board = run_benchmark(task, own=[own], only=("truth",), baseline="activation", choose=False).board
    assert board["method"].tolist()[0] == "truth"
    assert board["ari"][0] == 1
    assert set(board["method"]) == {"truth", "activation"}


def test_words(made: BenchmarkResult, glyph_study: Study) -> None:
    several = int((made.task.k > 1).sum())
    said = words(made.task)
    assert said.startswith(f"glyphs, planted, k = 2, random: {several} neurons of layer4.merged through layer3, 4 ")
    assert ("left out" in said) == (several < 8)
    assert words(objects_task(glyph_study)).startswith("glyphs, objects: ")


def test_write(made: BenchmarkResult, tmp_path: Path) -> None:
    paths = write(made, tmp_path, command="pure-nb bench glyphs")
    assert [path.name for path in paths] == ["planted.csv", "planted-neurons.parquet", "planted.png", "planted.json"]
    pd.testing.assert_frame_equal(pd.read_csv(paths[0]), made.board, check_dtype=False)
    table = pd.read_parquet(paths[1])
    assert [list(labels) for labels in table["labels"]] == made.table["labels"].tolist()
    note = json.loads(paths[3].read_text())
    assert note["command"] == "pure-nb bench glyphs"
    assert note["k"] == made.task.k.tolist()
    assert len(note["groups"]) == 12
    chose = replace(made, table=made.table.assign(chosen=2.0))
    assert pd.read_csv(write(chose, tmp_path)[-1]).columns.tolist() == ["method", "k", "2"]


def test_leaderboard_figure(made: BenchmarkResult) -> None:
    figure = leaderboard_figure(made.board, made.table)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == made.board["method"].tolist()
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]  # type: ignore[index]
    np.testing.assert_allclose(means, made.board["ari"])
    said = [text.get_text() for text in axes.texts]
    assert f"{made.board['ari'][0]:.2f}" in said
    assert "-0.00" not in said
    assert len(leaderboard_figure(made.board, made.table, "accuracy").axes) == 1


def test_parts_figure(made: BenchmarkResult) -> None:
    task: Task = made.task
    channel = int(np.flatnonzero(task.k > 1)[0])
    figure = parts_figure(task, made.table, channel, ["PURE", "random"], count=4)
    pictures, truth, first, _ = figure.axes
    sources = task.planting.groups[channel] if task.planting else ()
    assert pictures.get_title("left") == f"Merged channel {channel}: channels {sources[0]} and {sources[1]}"
    heights = [bar.get_height() for bar in truth.patches]  # type: ignore[attr-defined]
    assert sorted(heights) == pytest.approx(sorted(task.share[channel]))
    drawn = [to_rgb(bar.get_facecolor()) for bar in truth.patches]
    assert drawn.count(to_rgb(PALETTE[0])) == (task.truth[channel] == 0).sum()
    assert first.get_ylabel() == "PURE"
    labels = np.asarray(
        made.table[(made.table["channel"] == channel) & (made.table["method"] == "PURE")]["labels"].item()
    )
    part = bench.matched(task.truth[channel], labels)[0]
    colours = first.images[0].cmap(first.images[0].norm(np.asarray(first.images[0].get_array())[0]))[:, :3]
    assert (np.isclose(colours, to_rgb(PALETTE[0])).all(axis=1)).sum() == (labels == part).sum()
    plt.close(figure)


def test_parts_figure_of_a_natural_neuron_and_of_a_null(made: BenchmarkResult, glyph_study: Study) -> None:
    null = int(np.flatnonzero(made.task.planting.self_merged)[0]) if made.task.planting else 0
    assert "with itself" in parts_figure(made.task, made.table, null, ["PURE"]).axes[0].get_title("left")
    task = objects_task(glyph_study)
    table = bench.run(task, [Contestant("none", lambda it: np.full(it.truth.shape, -1))], choose=False)
    figure = parts_figure(task, table, 3, ["none"])
    assert figure.axes[0].get_title("left") == "Neuron 3"
    colours = figure.axes[2].images[0].cmap(figure.axes[2].images[0].norm([[0]]))
    assert tuple(colours[0, 0, :3]) == to_rgb(NOBODY)
