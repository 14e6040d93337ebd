"""What commands have in common: the study that they are asked for, how options are read, and how they tell.

The options of a study and of its run are those that :mod:`pure_nb.parameters` declares. What takes long to import, as
torch and whatever needs it, is imported by the functions that use it, so that help comes at once.
"""

from __future__ import annotations

import atexit
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, is_dataclass
from inspect import Parameter, Signature, getdoc, signature
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer
from typer import Argument, Option, echo, secho

from pure_nb.errors import LayerError, PureError, StoreWarning, StudyError, StudyWarning, require_choice
from pure_nb.parameters import KINDS, BatchSize, Parameters, Run

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.study import Study

app = typer.Typer(
    name="pure-nb",
    help="Split neurons that mean several things at once into virtual neurons.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

MOST = 1_000_000
"""Numbers in one range; no layer has as many channels."""

STUDY, RUN = "The study", "How it is run"
"""Headings of options in a command's help."""

Neurons = Annotated[str | None, Option(help="Which neurons: 3,17,21 or 0-31.")]
Rows = Annotated[int, Option(min=0, help="Rows to print; 0 prints all.")]
Folder = Annotated[
    Path | None,
    Option("--store", help="Folder of results; by default $PURE_NB_STORE, or the cache.", rich_help_panel=STUDY),
]
Threads = Annotated[
    int | None, Option(help="Threads of each process; results depend on them in the last digit.", rich_help_panel=RUN)
]


def _flag(one: Field[Any]) -> str:
    """The option that sets a field of :class:`Parameters` or :class:`Run`; "" if there is none."""
    flag: str = one.metadata.get("flag", f"--{one.name.replace('_', '-')}")
    return flag


def _declared(thing: type[Parameters] | type[Run], wanted: Collection[str], panel: str) -> dict[str, Parameter]:
    """Those fields as options of which some results are; what is not given stays as the study says."""
    entries = re.findall(r"^(\w+)\n((?:    .+\n?)+)", getdoc(thing) or "", re.MULTILINE)
    words = {name: re.sub(r'``"?(.*?)"?``', r"\1", " ".join(text.split())) for name, text in entries}
    found = {}
    for one in fields(thing):
        if _flag(one) and (one.metadata.get("of") in (None, *wanted) or one.name in wanted):
            kind: Any = KINDS[one.name] if KINDS[one.name] in (int, float, bool) else str
            read = {"parser": _size, "metavar": "SIZE"} if KINDS[one.name] == BatchSize else {}
            told = Annotated[kind | None, Option(_flag(one), help=words.get(one.name), rich_help_panel=panel, **read)]
            found[one.name] = Parameter(one.name, Parameter.KEYWORD_ONLY, default=None, annotation=told)
    return found


def _size(text: str) -> int | str:
    """A number or a word, as a study file has them."""
    return int(text) if text.isdecimal() else text


@dataclass(frozen=True)
class Asked:
    """The study that a command is asked for; ``changes`` are the other options of it that are given."""

    study: Annotated[str, Argument(help="A study that ships, or a .toml file.", metavar="STUDY")]
    data: Annotated[
        Path | None, Option(help="Folder of the images, if other than the study says.", rich_help_panel=STUDY)
    ] = None
    weights: Annotated[
        Path | None, Option(help="File of the weights, if other than the study says.", rich_help_panel=STUDY)
    ] = None
    store: Folder = None
    changes: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Study:
        """The study, with nothing computed yet."""
        import torch

        from pure_nb.loading import load_study

        changes = dict(self.changes)
        threads = changes.pop("threads", None)
        if threads is not None:
            if threads < 1:
                raise StudyError(f"--threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        if "client" in changes:
            changes["client"] = _client(changes["client"], changes.get("device", "cpu"), threads)
        return load_study(self.study, data=self.data, weights=self.weights, store=self.store, **changes)

    def again(self) -> str:
        """The study and its options as one types them, for the next command."""
        words = [self.study]
        for one in (*fields(self)[1:4], *fields(Parameters), *fields(Run)):
            value = vars(self).get(one.name, self.changes.get(one.name))
            if value is not None and one.name != "client":
                words += [_flag(one)] if value is True else [_flag(one), str(value)]
        return shlex.join(words)


@dataclass(frozen=True)
class AskedOrNone(Asked):
    """A study, or none where an edition says which."""

    study: Annotated[
        str | None,
        Argument(help="A study that ships, or a .toml file; none with --edition.", metavar="STUDY"),
    ] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Ways:
    """In which of several ways a channel is split."""

    score: Annotated[str, Option(help="What chooses the threshold: bounded, or the paper's ratio.")] = "bounded"
    ownership: Annotated[
        str, Option(help="How sources are owned: symmetric, or published (negative relevance compared as it is).")
    ] = "symmetric"
    clamp: Annotated[
        str, Option(help="Where the channel is relevant: negative channels, or as published positions, count as 0.")
    ] = "channels"

    def __post_init__(self) -> None:
        from pure_nb.methods.ownership import Ownership
        from pure_nb.methods.relevance import Clamp
        from pure_nb.methods.splitting import Score

        for name, choices in (("score", Score), ("ownership", Ownership), ("clamp", Clamp)):
            require_choice(f"--{name}", getattr(self, name), choices)


@dataclass(frozen=True)
class Judging:
    """By whom and how parts are judged."""

    embedder: Annotated[
        list[str] | None,
        Option(
            help="Measures distances (the first), and splits neurons as a contestant. Once for each: mini-clip, "
            "mini-dino, pixels, clip, dinov2, open_clip:MODEL/TAG, timm:NAME, torchvision:NAME or FILE.py:FUNCTION, "
            "with @FILE for local weights."
        ),
    ] = None
    metric: Annotated[str, Option(help="Of the distances: euclidean, cosine, cityblock ...")] = "euclidean"
    features: Annotated[str, Option(help="Of CLIP and timm: tokens, as the paper, or pooled.")] = "tokens"
    subsets: Annotated[int, Option(help="Random subsets of neurons for the alignment.")] = 30

    def __post_init__(self) -> None:
        from pure_nb.judges.embedders import Features

        require_choice("--features", self.features, Features)


@dataclass(frozen=True)
class Planting:
    """Which channels are planted, and how."""

    count: Annotated[int, Option(help="Channels to plant.")] = 60
    self_merged: Annotated[int, Option(help="Channels merged with themselves, to be told from those.")] = 30
    k: Annotated[int, Option(help="Sources of each planted channel, 2 or more.")] = 2
    how: Annotated[
        str, Option(help="How sources are drawn: random, similar (hard), dissimilar (easy), overlapping.")
    ] = "random"
    strengths: Annotated[
        str | None, Option(help="How strong the sources are: 1,0.5; all alike by default.", metavar="W,W")
    ] = None
    seed: Annotated[int, Option(help="Of the draw and the clustering.")] = 0


@dataclass(frozen=True)
class Contestants:
    """Who takes part, and how they are compared."""

    embedder: Annotated[
        list[str] | None, Option(help="Takes part as a contestant; once for each, as for pure-nb evaluate.")
    ] = None
    add: Annotated[list[str] | None, Option(help="A contestant of your own: FILE.py:FUNCTION. Once for each.")] = None
    only: Annotated[list[str] | None, Option(help="Only this contestant. Once for each.")] = None
    baseline: Annotated[str, Option(help="The contestant that the others are compared with.")] = "PURE"
    choose: Annotated[bool, Option(help="Also let each contestant choose k, for detection and calibration.")] = True


@dataclass(frozen=True)
class Submitting:
    """An edition of the benchmark, and what is submitted to it."""

    edition: Annotated[
        str | None, Option(help="Submit to this edition: 2027.1, with one --add or --only and no STUDY.")
    ] = None
    verify: Annotated[
        Path | None,
        Option(help="Verify this submission (and with --add or --only, what made it), for the leaderboard in --out."),
    ] = None
    secret: Annotated[Path | None, Option(help="Of the edition's maintainers: runs the hidden worlds, too.")] = None


def _client(where: str, device: str, threads: int | None) -> Any:
    """A client of a cluster, closed when the program ends."""
    import torch

    from pure_nb.compute import cluster  # which says what to install where Dask is missing

    client = cluster.connect(where, device=device)
    atexit.register(client.close)
    echo(f"dashboard: {client.dashboard_link}")
    client.wait_for_workers(1)
    count = len(client.scheduler_info()["workers"])
    if threads is None and where.startswith("local"):  # so that they do not fight for the cores
        torch.set_num_threads(max(1, cluster.CPU_COUNT // count))
    echo(f"{count} workers so far, {torch.get_num_threads()} threads each")
    return client


def command(*wanted: str, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function whose parameters are options, or dataclasses of them as :class:`Asked`.

    Parameters
    ----------
    wanted
        The parameters of its study that the command takes, or the results that these are of. Of whatever all results
        depend on, and of how it is run, a command takes all; without any it takes none.
    name
        If it is not called as the function.
    """
    declared: dict[str, Parameter] = {}
    if wanted:
        declared = _declared(Parameters, wanted, STUDY) | _declared(Run, wanted, RUN)
        declared["threads"] = Parameter("threads", Parameter.KEYWORD_ONLY, default=None, annotation=Threads)

    def made(function: Callable[..., None]) -> Callable[..., None]:
        asks = signature(function, eval_str=True).parameters
        own: dict[str, Parameter] = {}
        for one in asks.values():
            own |= _options(one.annotation) if is_dataclass(one.annotation) else {one.name: one}
        flags = {f"--{name.replace('_', '-')}" for name in own}
        shared = {name: option for name, option in declared.items() if _set_by(option) not in flags}

        def called(**given: Any) -> None:
            given["changes"] = {name: given[name] for name in shared if given[name] is not None}
            with _plainly():
                function(**{name: _given(name, one.annotation, given) for name, one in asks.items()})

        # Its own options come first, then those of the study, which have a heading.
        options = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in (own | shared).values()]
        options.sort(key=lambda option: option.annotation.__metadata__[0].rich_help_panel is not None)
        called.__signature__ = Signature(options)  # type: ignore[attr-defined]
        called.__annotations__ = {option.name: option.annotation for option in options}
        called.__name__, called.__doc__ = function.__name__, function.__doc__
        return app.command(name)(called)

    return made


def _set_by(option: Parameter) -> str:
    """The flag of an option, which typer calls its default where it stands in an annotation."""
    return str(option.annotation.__metadata__[0].default)


def _options(kind: Any) -> dict[str, Parameter]:
    """The options of a dataclass."""
    every = signature(kind, eval_str=True).parameters
    return {name: one for name, one in every.items() if get_origin(one.annotation) is Annotated}


def _given(name: str, kind: Any, given: dict[str, Any]) -> Any:
    """A parameter of a command: what was given, or a dataclass of it."""
    return kind(**{one: given[one] for one in signature(kind).parameters}) if isinstance(kind, type) else given[name]


@contextmanager
def _plainly() -> Iterator[None]:
    """Show expected errors, and the package's own warnings, as one line each; say what an interrupted run can do."""
    said: set[str] = set()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are no UTF-8, as they are

    def warn(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            secho(f"Warning: {message}", err=True)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for ours in (StoreWarning, StudyWarning):
                warnings.simplefilter("always", ours)
            warnings.showwarning = warn
            yield
    except PureError as problem:
        secho(f"Error: {problem}", fg=typer.colors.RED, err=True)
        if isinstance(problem, LayerError):
            secho("pure-nb info STUDY lists the layers that can be studied.", err=True)
        raise typer.Exit(1) from problem
    except KeyboardInterrupt as stop:
        secho("\nStopped. What is finished is kept; the same command goes on from there.", err=True)
        raise typer.Exit(130) from stop


def numbers(text: str, flag: str = "--neurons") -> list[int]:
    """Numbers as a user writes them: ``3,17,20-23``."""
    found: list[int] = []
    for entry in text.split(","):
        start, dash, end = entry.strip().partition("-")
        try:
            first, last = int(start), int(end if dash else start)
            if not first <= last < first + MOST:
                raise ValueError(f"from {first} to {last} are none, or more than {MOST}")
            found += range(first, last + 1)
        except ValueError as problem:
            raise StudyError(
                f"can't read {entry!r} in {flag} {text!r}; expected numbers such as 3,17,20-23"
            ) from problem
    return found


def decimals(text: str, flag: str) -> list[float]:
    """Numbers as a user writes them: ``1,0.5``."""
    try:
        return [float(entry) for entry in text.split(",")]
    except ValueError as problem:
        raise StudyError(f"can't read {flag} {text!r}; expected numbers such as 1,0.5") from problem


def require_place(out: Path | None, *suffixes: str) -> None:
    """Raise now, and not after hours of work, if results can't be written: to a folder, or a file with a suffix."""
    from pure_nb.compute.store import write_atomically

    if out is None:
        return
    if suffixes and out.suffix not in suffixes:
        raise StudyError(f"--out is written to a {' or '.join(suffixes)} file, got {str(out)!r}")
    if suffixes and out.is_dir():
        raise StudyError(f"--out must be a file, and {str(out)!r} is a folder")
    folder = out.parent if suffixes else out
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    write_atomically(folder / ".pure-nb", Path.touch)
    (folder / ".pure-nb").unlink()
    for one in made:  # a study that can't be read leaves no folder behind
        one.rmdir()


def print_table(table: pd.DataFrame, rows: int = 0) -> None:
    """Print the first rows of a table; all by default."""
    import pandas as pd

    shown = table.head(rows) if rows else table
    if table.empty:
        return
    with pd.option_context("display.max_colwidth", 70, "display.width", 180, "display.float_format", "{:.3f}".format):
        echo(shown.to_string(index=False))
    if len(shown) < len(table):
        echo(f"... {len(table) - len(shown)} more (--rows 0 prints all)")


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table to a .csv or .parquet file."""
    from pure_nb.compute.store import write_atomically

    write = table.to_csv if out.suffix == ".csv" else table.to_parquet
    write_atomically(out, lambda path: write(path, index=False))


def asked_command() -> str:
    """The command that is running."""
    from pure_nb.images.reading import printable

    return printable(f"pure-nb {shlex.join(sys.argv[1:])}")
