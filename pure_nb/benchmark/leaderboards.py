"""The whole benchmark: tasks with a known truth, all contestants, the leaderboard, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pure_nb.benchmark import bench
from pure_nb.benchmark.contestants import Contestant, contestants
from pure_nb.benchmark.planting import How
from pure_nb.benchmark.tasks import Task, objects_task, planted_task
from pure_nb.benchmark.trained import EITHER, either_task, wired_task
from pure_nb.errors import PlantingError, StudyError, require_choice
from pure_nb.methods.descriptions import PURE

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

TRAINED = {"wired": wired_task, EITHER: either_task}
"""Tasks of units that were trained, by name."""

TRUTHS = ("planted", "objects", *TRAINED)
"""Kinds of tasks."""


@dataclass(frozen=True, eq=False)
class BenchmarkResult:
    """A task, the scores of all contestants on it, and the leaderboard.

    Attributes
    ----------
    task
        What was to be solved.
    table
        From :func:`pure_nb.benchmark.bench.run`.
    board
        From :func:`pure_nb.benchmark.bench.leaderboard`.
    """

    task: Task
    table: pd.DataFrame
    board: pd.DataFrame


def tasks_of(study: Study, truth: str | None = None, **planting: Any) -> list[Task]:
    """The tasks of a study: planted channels, and objects where they are known.

    Parameters
    ----------
    study
        Any study.
    truth
        ``"planted"`` or ``"objects"``; both by default, where both are known. ``"wired"`` or ``"either"``: units that
        were trained, see :mod:`pure_nb.benchmark.trained`.
    planting
        As for :func:`pure_nb.benchmark.tasks.planted_task`.
    """
    if truth not in (None, *TRUTHS):
        raise StudyError(f"truth must be {', '.join(TRUTHS[:-1])} or {TRUTHS[-1]}, got {truth!r}")
    require_choice("how", planting.get("how", "random"), How, PlantingError)
    if truth in TRAINED:
        return [TRAINED[truth](study)]
    found = []
    if truth == "objects" or (truth is None and study.objects is not None):
        found.append(objects_task(study))
    if truth != "objects":
        found.append(planted_task(study, **planting))
    return found


def run_benchmark(
    task: Task,
    embedders: Sequence[Embedder] = (),
    own: Sequence[Contestant] = (),
    *,
    only: Sequence[str] = (),
    baseline: str = PURE,
    choose: bool = True,
    seed: int | None = None,
) -> BenchmarkResult:
    """Let all contestants that fit a task split its neurons into parts.

    Parameters
    ----------
    task
        See :func:`tasks_of`.
    embedders
        Each takes part by its vectors of the crops.
    own
        More contestants.
    only
        Names of those that take part; all by default. The baseline always does.
    baseline, choose, seed
        See :func:`pure_nb.benchmark.bench.leaderboard` and :func:`pure_nb.benchmark.bench.run`.

    Raises
    ------
    StudyError
        If there is no contestant of a name.

    Examples
    --------
    >>> board = run_benchmark(planted_task(study, count=2), only=["PURE", "random"]).board
    """
    if not (task.k > 1).any():
        raise StudyError(
            f"none of the {len(task.k)} neurons of the task {task.name!r} means more than one thing, so there is "
            "nothing to compare; take more or other channels, strengths nearer to 1, or more references"
        )
    wanted = (*only, baseline) if only else ()
    chosen = [*contestants(task, embedders, wanted), *(one for one in own if not only or one.name in wanted)]
    names = {contestant.name for contestant in chosen}
    if unknown := [name for name in (*only, baseline) if name not in names]:
        everyone = [one.name for one in (*contestants(task, embedders), *own)]
        raise StudyError(f"there is no contestant {unknown[0]!r}; there are {', '.join(everyone)}")
    table = bench.run(task, chosen, choose=choose, seed=seed)
    return BenchmarkResult(task, table, bench.leaderboard(table, baseline))


def words(task: Task) -> str:
    """A task in one sentence."""
    p, several = task.study.parameters, int((task.k > 1).sum())
    text = f"{task.study.name}, {task.name}: {several} neurons of {p.target} through {p.lower}"
    if task.planting is None:
        return text
    idle = int(((task.k == 1) & ~task.planting.self_merged).sum())
    text += f", {int(task.planting.self_merged.sum())} channels merged with themselves"
    text += f", {task.dominant[task.k > 1].mean():.0%} of the references have a clearly dominant source"
    if idle:
        text += f"; {idle} planted channels are left out, of which one source is dominant in nearly all references"
    return text


def write(made: BenchmarkResult, out: Path, *, command: str = "") -> list[Path]:
    """Write the tables and figures of a benchmark to a folder, and what they were made from.

    Parameters
    ----------
    made
        From :func:`run_benchmark`.
    out
        The folder; what an earlier benchmark with the same kind of truth has left there is replaced.
    command
        What was typed, if anything.

    Returns
    -------
    list of Path
        ``TRUTH.csv`` (the leaderboard), ``TRUTH-neurons.parquet`` (all scores and labels), ``TRUTH-k.csv`` (the
        calibration, if anyone chose), ``TRUTH.png`` and ``TRUTH.json`` (the groups and parameters), where TRUTH is
        one of :data:`TRUTHS`.
    """
    from pure_nb.benchmark.bench_plots import leaderboard_figure  # plotting libraries take a second to import
    from pure_nb.figures.evaluation_plots import write_all

    task = made.task
    stem = task.name if task.planting is None else "planted"
    groups = None if task.planting is None else task.planting.groups
    note = {"task": words(task), "command": command, "parameters": asdict(task.study.parameters)}
    note |= {"groups": groups, "k": task.k.tolist()} | task.study.identity
    files: dict[str, Any] = {f"{stem}.csv": made.board, f"{stem}-neurons.parquet": made.table}
    files[f"{stem}.png"] = leaderboard_figure(made.board, made.table)
    files[f"{stem}.json"] = json.dumps(note, indent=1)
    if made.table["chosen"].notna().any():
        files[f"{stem}-k.csv"] = bench.calibration(made.table).reset_index()
    return write_all(out, files)
