"""A whole competition: worlds with a known truth, all contestants, the leaderboard, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from pure_nb.benchmark import bench
from pure_nb.benchmark.contestants import PAPER, Contestant, contestants
from pure_nb.benchmark.planting import How
from pure_nb.benchmark.worlds import World, objects_world, planted_world
from pure_nb.errors import PlantingError, StudyError

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study


@dataclass(frozen=True, eq=False)
class Competition:
    """What came of it.

    Attributes
    ----------
    world
        Where it took place.
    table
        From :func:`pure_nb.benchmark.bench.run`.
    board
        From :func:`pure_nb.benchmark.bench.leaderboard`.
    """

    world: World
    table: pd.DataFrame
    board: pd.DataFrame


def worlds_of(study: Study, truth: str | None = None, **planting: Any) -> list[World]:
    """The worlds of a study: planted channels, and objects where they are known.

    Parameters
    ----------
    study
        Any study.
    truth
        ``"planted"`` or ``"objects"``; both by default, where both are known.
    planting
        As for :func:`pure_nb.benchmark.worlds.planted_world`.
    """
    if truth not in (None, "planted", "objects"):
        raise StudyError(f"truth must be planted or objects, got {truth!r}")
    if planting.get("how", "random") not in get_args(How):
        raise PlantingError(f"how must be one of {', '.join(get_args(How))}, got {planting['how']!r}")
    found = []
    if truth == "objects" or (truth is None and study.objects is not None):
        found.append(objects_world(study))
    if truth != "objects":
        found.append(planted_world(study, **planting))
    return found


def compete(
    world: World,
    embedders: Sequence[Embedder] = (),
    own: Sequence[Contestant] = (),
    *,
    only: Sequence[str] = (),
    baseline: str = PAPER,
    choose: bool = True,
    seed: int | None = None,
) -> Competition:
    """Let all contestants that fit a world take its neurons apart.

    Parameters
    ----------
    world
        See :func:`worlds_of`.
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
    """
    if not (world.k > 1).any():
        raise StudyError(
            f"none of the {len(world.k)} neurons of the world {world.name!r} means more than one thing, so there is "
            "nothing to compare; take more or other channels, strengths nearer to 1, or more references"
        )
    wanted = (*only, baseline) if only else ()
    chosen = [*contestants(world, embedders, wanted), *(one for one in own if not only or one.name in wanted)]
    names = {contestant.name for contestant in chosen}
    if unknown := [name for name in (*only, baseline) if name not in names]:
        everyone = [one.name for one in (*contestants(world, embedders), *own)]
        raise StudyError(f"there is no contestant {unknown[0]!r}; there are {', '.join(everyone)}")
    table = bench.run(world, chosen, choose=choose, seed=seed)
    return Competition(world, table, bench.leaderboard(table, baseline))


def words(world: World) -> str:
    """A world in one sentence."""
    p, several = world.study.parameters, int((world.k > 1).sum())
    text = f"{world.study.name}, {world.name}: {several} neurons of {p.target} through {p.lower}"
    if world.planting is None:
        return text
    idle = int(((world.k == 1) & ~world.planting.null).sum())
    text += f", {int(world.planting.null.sum())} channels merged with themselves"
    text += f", {world.clear[world.k > 1].mean():.0%} of the references clear"
    return text + (f"; {idle} planted channels are left out, one source drives nearly all of each" if idle else "")


def write(made: Competition, out: Path, *, command: str = "") -> list[Path]:
    """Write the tables and figures of a competition to a folder, and what they were made from.

    Parameters
    ----------
    made
        From :func:`compete`.
    out
        The folder; what an earlier competition with the same kind of truth has left there is replaced.
    command
        What was typed, if anything.

    Returns
    -------
    list of Path
        ``WORLD.csv`` (the leaderboard), ``WORLD-neurons.parquet`` (all scores and labels), ``WORLD-k.csv`` (the
        calibration, if anyone chose), ``WORLD.png`` and ``WORLD.json`` (the groups and parameters).
    """
    from pure_nb.benchmark.bench_plots import leaderboard_figure  # plotting libraries take a second to import
    from pure_nb.figures.evaluation_plots import write_all

    world = made.world
    stem = "objects" if world.planting is None else "planted"
    groups = None if world.planting is None else world.planting.groups
    note = {"world": words(world), "command": command, "parameters": asdict(world.study.parameters)}
    note |= {"groups": groups, "k": world.k.tolist()} | world.study.identity
    files: dict[str, Any] = {f"{stem}.csv": made.board, f"{stem}-neurons.parquet": made.table}
    files[f"{stem}.png"] = leaderboard_figure(made.board, made.table)
    files[f"{stem}.json"] = json.dumps(note, indent=1)
    if made.table["chosen"].notna().any():
        files[f"{stem}-k.csv"] = bench.calibration(made.table).reset_index()
    return write_all(out, files)
