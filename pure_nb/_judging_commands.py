"""The commands that judge parts, methods and scores: ``evaluate``, ``ablate``, ``scores``, ``bench``, ``trial``.

They are part of the command line, :mod:`pure_nb.cli`.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option, echo, secho

from pure_nb._options import (
    Asked,
    AskedOrNone,
    Contestants,
    Judging,
    Planting,
    Rows,
    Submitting,
    asked_command,
    command,
    decimals,
    numbers,
    print_table,
    require_place,
    write_table,
)
from pure_nb.errors import EmbedderError, StudyError
from pure_nb.parameters import Parameters

if TYPE_CHECKING:
    from pure_nb.judges.vectors import Embedder
    from pure_nb.study import Study


@command("neurons", "crops")
def evaluate(
    asked: Asked,
    *,
    by: Judging,
    k: Annotated[str | None, Option(help="Numbers of parts: 2 3 4 5 or 2-5, the default.", metavar="K ...")] = None,
    more: Annotated[list[str] | None, Argument(hidden=True)] = None,
    words: Annotated[
        str | None, Option(help="What parts may be called: classes, wordnet, a .txt file, or none.")
    ] = None,
    clear: Annotated[float | None, Option(help="Show neurons with the judge's own gap above this as well.")] = None,
    out: Annotated[Path, Option(help="Folder for the report, its tables and figures.")] = Path("evaluation"),
) -> None:
    """Judge the parts by CLIP or another embedder: are they purer than the whole? Writes a report with figures."""
    import matplotlib

    matplotlib.use("agg")
    from pure_nb.methods.virtual import CHOICES
    from pure_nb.show import report

    if more and k is None:
        raise StudyError(f"what is {more[0]!r}? Numbers of parts come after --k")
    ks = numbers(",".join([k, *(more or [])]), "--k") if k else CHOICES
    if min(ks) < 2:
        raise StudyError(f"--k must be 2 or more, got {min(ks)}")
    require_place(out)
    found = asked.load()
    judge, *others = _judges(found, by.embedder, features=by.features)
    vocabulary = None
    if judge.encode_text is None and words not in (None, "none"):
        raise EmbedderError(f"--words needs a judge with a text tower, such as clip; {judge.name} has none")
    if judge.encode_text is not None and words != "none":
        try:
            vocabulary = report.vocabulary(found, words)
            judge.text(vocabulary[:2])
        except StudyError as problem:
            if words is not None:
                raise
            secho(f"Without names: {problem} (--words FILE, or --words wordnet)", err=True)
    made = report.evaluate(found, judge, others, ks=ks, metric=by.metric, subsets=by.subsets)
    said = None if vocabulary is None else report.part_names(found, judge, vocabulary)
    paths = report.write(made, out, names=said, clear=clear, command=asked_command())
    columns = ["k", "method", "neurons", "intra", "inter", "gap", "gap_se", "p"]
    print_table(made.summary()[columns])
    echo(f"{paths[0]}: the report, with {len(paths) - 1} tables and figures beside it")


@command("neurons", "crops")
def scores(
    asked: Asked,
    *,
    embedder: Annotated[list[str] | None, Option(help="The judge, as for pure-nb evaluate. Once for each.")] = None,
    rows: Rows = 20,
    out: Annotated[Path | None, Option(help="Write all scores to this .csv or .parquet file.")] = None,
) -> None:
    """Print the field's scores of polysemanticity, of neurons and of their parts, beside random parts."""
    import pandas as pd

    from pure_nb.methods.virtual import WHOLE
    from pure_nb.scores import after_splitting

    require_place(out, ".csv", ".parquet")
    found = asked.load()
    judges = _judges(found, embedder)
    table = pd.concat([found.scores(judge).assign(judge=judge.name) for judge in judges], ignore_index=True)
    print_table(table, rows)
    for judge in judges if (table["part"] != WHOLE).any() else ():
        echo(f"The parts beside random parts of the same sizes, judged by {judge.name}:")
        print_table(after_splitting(found, judge))
    if out is not None:
        write_table(table, out)


@command("neurons")
def ablate(
    asked: Asked,
    *,
    channel: Annotated[int, Option(help="The neuron.")],
    part: Annotated[str, Option(help="The part of it to switch off.")] = "A",
    rows: Annotated[int, Option(min=0, help="Outputs to print, those first that move most; 0 prints all.")] = 8,
    out: Annotated[Path | None, Option(help="Write a figure to this .png file.")] = None,
) -> None:
    """Switch a part of a neuron off, and tell how selectively that hits it and how the outputs move."""
    import matplotlib

    matplotlib.use("agg")
    from pure_nb.figures.plots import save

    require_place(out, ".png")
    found = asked.load().ablate(channel, part)
    print_table(found.table())
    print_table(found.outputs(), rows)
    if out is not None:
        save(found.plot(rows or 8), out)


@command("n_references")
def trial(
    asked: Asked,
    *,
    planting: Planting,
    embedder: Annotated[list[str] | None, Option(help="A judge, as for pure-nb evaluate. Once for each.")] = None,
    out: Annotated[Path | None, Option(help="Write the scores of all channels to this .csv or .parquet file.")] = None,
) -> None:
    """Put scores of polysemanticity on trial: how well each tells channels of several meanings from channels of one."""
    from pure_nb.benchmark import leaderboards
    from pure_nb.benchmark.trial import board
    from pure_nb.benchmark.trial import trial as tried

    require_place(out, ".csv", ".parquet")
    found = asked.load().replace(seed=planting.seed)
    weighed = None if planting.strengths is None else decimals(planting.strengths, "--strengths")
    (task,) = leaderboards.tasks_of(found, "planted", **asdict(planting) | {"strengths": weighed})
    echo(leaderboards.words(task))
    table = tried(task, _judges(found, embedder))
    print_table(board(table))
    if out is not None:
        write_table(table, out)


def _judges(study: Study, specifications: list[str] | None, **how: Any) -> list[Embedder]:
    """The judges that were named, or those that fit a study's images."""
    from pure_nb.judges.embedders import load_embedder

    specs = specifications or (["mini-clip", "mini-dino", "pixels"] if study.images.drawn else ["clip", "dinov2"])
    return [load_embedder(spec, run=study.run, **how) for spec in specs]


@command("n_references")
def bench(
    asked: AskedOrNone,
    *,
    truth: Annotated[str | None, Option(help="planted, objects, wired or either; by default the first two.")] = None,
    planting: Planting,
    field: Contestants,
    submitting: Submitting,
    out: Annotated[Path, Option(help="Folder for the tables and figures, or for submissions.")] = Path("bench"),
) -> None:
    """Let methods split neurons where the right answer is known. Ctrl-C stops it; the same command goes on."""
    import matplotlib

    matplotlib.use("agg")
    from pure_nb.benchmark import leaderboards
    from pure_nb.benchmark.contestants import load_contestant
    from pure_nb.judges.embedders import load_embedder

    require_place(out)
    if submitting != Submitting():
        if truth is not None or planting != Planting() or field != Contestants(add=field.add, only=field.only):
            raise StudyError("an edition says what is planted and compared; leave out those options")
        return _submit(asked, [*(field.add or ()), *(field.only or ())], submitting, out)
    if asked.study is None:
        raise StudyError("name a STUDY, or an edition: --edition 2027.1")
    own = [load_contestant(specification) for specification in field.add or ()]
    found = asked.load().replace(seed=planting.seed)
    judges = [load_embedder(specification, run=found.run) for specification in field.embedder or ()]
    how: dict[str, Any] = {"only": field.only or (), "baseline": field.baseline, "choose": field.choose}
    weighed = None if planting.strengths is None else decimals(planting.strengths, "--strengths")
    for task in leaderboards.tasks_of(found, truth, **asdict(planting) | {"strengths": weighed}):
        made = leaderboards.run_benchmark(task, judges, own, **how, seed=planting.seed)
        echo(leaderboards.words(task))
        print_table(made.board.drop(columns=["low", "high", "auc_low", "auc_high"]))
        paths = leaderboards.write(made, out / task.study.name, command=asked_command())
        echo(f"{paths[0]}: the leaderboard, with {len(paths) - 1} files beside it")


def _submit(asked: AskedOrNone, named: list[str], submitting: Submitting, out: Path) -> None:
    """Make a submission to an edition, or verify one and put it on the leaderboard of a folder."""
    from pure_nb.benchmark import edition as editions
    from pure_nb.benchmark import submissions

    fixed = [asked.study, asked.data, asked.weights, *({one.name for one in fields(Parameters)} & asked.changes.keys())]
    if any(fixed):
        raise StudyError("an edition says which study, data and parameters; leave them out, see --help")
    path = submitting.verify
    record = None if path is None else submissions.read_submission(path)
    if record is None and (len(named) != 1 or submitting.secret is not None):
        raise StudyError("submit one function: --add FILE.py:FUNCTION, or --only NAME; --secret is for --verify")
    if record is not None and (len(named) > 1 or submitting.edition not in (None, record["edition"])):
        raise StudyError(f"{str(path)!r} is one submission, to edition {record['edition']}")
    chosen = editions.load_edition(record["edition"] if record else str(submitting.edition))
    worlds = editions.Worlds(chosen, lambda name: replace(asked, study=name).load(), echo)
    entered = editions.entry(named[0]) if named else None
    if record is None:
        assert entered is not None
        paths = submissions.keep(editions.submit(worlds, entered), out, board=False)
    else:
        secret = None if submitting.secret is None else chosen.opened(submitting.secret)
        paths = submissions.keep(editions.verify(record, worlds, entered, secret), out)
    echo("\n".join(map(str, paths)))
