"""The command line, ``pure-nb``: ``run``, ``neurons``, ``plot``, ``atlas``, ``arv``, ``pairs``, ``split`` and more.

What takes long to import, as torch and whatever needs it, is imported by the commands, so that help comes at once.
"""

from __future__ import annotations

import atexit
import shlex
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pure_nb.errors import (
    EmbedderError,
    LayerError,
    PureError,
    StoreError,
    StoreWarning,
    StudyError,
    StudyWarning,
    WordNetError,
)
from pure_nb.parameters import file_word

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.compute.store import Result
    from pure_nb.methods.splitting import Split
    from pure_nb.study import Study

app = typer.Typer(
    name="pure-nb",
    help="Take neurons apart that mean several things at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

StudyName = Annotated[str, typer.Argument(help="A study that ships, or a .toml file.", metavar="STUDY")]
Data = Annotated[Path | None, typer.Option(help="Folder of the images, if other than the study says.")]
Weights = Annotated[Path | None, typer.Option(help="File of the weights, if other than the study says.")]
Folder = Annotated[
    Path | None, typer.Option("--store", help="Folder of results; by default $PURE_NB_STORE, or the cache.")
]
Device = Annotated[str | None, typer.Option(help="Where the network runs: cpu, cuda, mps.")]
Rule = Annotated[str | None, typer.Option(help="How relevance is propagated: gradient or lrp.")]
Count = Annotated[int | None, typer.Option("--n", help="Reference images of each neuron.")]
BatchSize = Annotated[int | None, typer.Option(help="Images in a batch.")]
Workers = Annotated[int | None, typer.Option(help="Processes that load images.")]
Cluster = Annotated[
    str | None,
    typer.Option(help="Run on processes: local, local:4, slurm:8, or the address of a Dask scheduler."),
]
Threads = Annotated[int | None, typer.Option(help="Threads of each process; results depend on them in the last digit.")]
Precision = Annotated[str | None, typer.Option(help="What the network computes in: float32, bfloat16, float16.")]
ChannelsLast = Annotated[
    bool | None, typer.Option("--channels-last", help="Lay the weights out in memory as many GPUs like them.")
]
Skip = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out images that can't be read.")]
Target = Annotated[str | None, typer.Option(help="The layer, if other than the study says.")]
Lower = Annotated[str | None, typer.Option(help="The layer below: a name, input:LAYER, or nearest.")]
Unsteady = Annotated[
    bool,
    typer.Option("--allow-nondeterministic", help="Go on though the layers depend on chance or on the batch."),
]
Share = Annotated[float | None, typer.Option(help="Share of the attribution that makes a channel relevant.")]
Mass = Annotated[float | None, typer.Option(help="Instead: the strongest channels that carry this part together.")]
Start = Annotated[
    str | None, typer.Option("--start", help="Where relevance starts: activation (everywhere), peak, or unit.")
]
Crop = Annotated[
    str | None,
    typer.Option(help="What crops follow: peak (relevance from the maximum), crp (from all), activation (cheap)."),
]
Often = Annotated[float | None, typer.Option(help="Part of a class's images in which a relevant channel is so.")]
Neurons = Annotated[str | None, typer.Option(help="Which neurons: 3,17,21 or 0-31.")]


MOST = 1_000_000
"""Numbers in one range; no layer has as many channels."""


def _plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Show expected errors, and the package's own warnings, as one line each; say what an interrupted run can do."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        said: set[str] = set()
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are no UTF-8, as they are

        def mind(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in said:
                said.add(str(message))
                typer.secho(f"Mind: {message}", err=True)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for ours in (StoreWarning, StudyWarning):
                    warnings.simplefilter("always", ours)
                warnings.showwarning = mind
                command(*args, **kwargs)
        except PureError as problem:
            typer.secho(f"Error: {problem}", fg=typer.colors.RED, err=True)
            if isinstance(problem, LayerError):
                typer.secho("pure-nb info STUDY lists the layers that can be studied.", err=True)
            raise typer.Exit(1) from problem
        except KeyboardInterrupt as stop:
            typer.secho("\nStopped. What is finished is kept; the same command goes on from there.", err=True)
            raise typer.Exit(130) from stop

    return wrapped


FORWARDED = (
    "device",
    "batch_size",
    "workers",
    "skip_unreadable",
    "channels_last",
    "precision",
    "allow_nondeterministic",
    "target",
    "lower",
    "n",
    "rule",
    "seed",
    "crop",
    "share",
    "mass",
    "p",
)
"""Options that a command may have and that go to the study as they are."""


def _study(given: dict[str, Any]) -> Study:
    """The study that a command is asked for, by the command's own ``locals()``: its options, before anything else."""
    import torch

    from pure_nb.loading import load_study

    asked = {name: given[name] for name in FORWARDED if name in given}
    changes = {name: value for name, value in asked.items() if value is not None and value is not False}
    if given.get("threads") is not None:
        if given["threads"] < 1:
            raise StudyError(f"--threads must be at least 1, got {given['threads']}")
        torch.set_num_threads(given["threads"])
    if given.get("cluster") is not None:
        changes["client"] = _client(given["cluster"], given.get("device") or "cpu", given.get("threads"))
    return load_study(given["study"], data=given["data"], weights=given["weights"], store=given["store"], **changes)


def _client(where: str, device: str, threads: int | None) -> Any:
    """A client of a cluster, closed when the program ends."""
    import torch

    from pure_nb.compute import cluster  # which says what to install where Dask is missing

    client = cluster.connect(where, device=device)
    atexit.register(client.close)
    typer.echo(f"dashboard: {client.dashboard_link}")
    client.wait_for_workers(1)
    count = len(client.scheduler_info()["workers"])
    if threads is None and where.startswith("local"):  # so that they do not fight for the cores
        torch.set_num_threads(max(1, cluster.CPU_COUNT // count))
    typer.echo(f"{count} workers so far, {torch.get_num_threads()} threads each")
    return client


@app.command()
@_plainly
def run(
    study: StudyName,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    device: Device = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    rule: Rule = None,
    seed: Start = None,
    n: Count = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    cluster: Cluster = None,
    threads: Threads = None,
    precision: Precision = None,
    channels_last: ChannelsLast = None,
    skip_unreadable: Skip = False,
) -> None:
    """Run all steps of a study. Ctrl-C stops it; the same command goes on from there."""
    found = _study(locals())
    top, below = found.shapes
    typer.echo(
        f"{found.name}: {top.name} ({top.channels} channels) through {below.name} ({below.channels} channels), "
        f"{len(found.images)} images, {found.parameters.n} references a neuron, rule {found.parameters.rule}"
    )
    if found.parameters.n > len(found.images):
        typer.echo(f"There are fewer images than references asked for: each neuron gets all {len(found.images)}.")
    elif 20 * found.parameters.n > len(found.images):
        typer.echo("The references are more than a twentieth of the images, so the weaker ones mean little: lower --n.")
    for step in ("references", "circuits", "virtual", "neurons"):
        start = perf_counter()
        getattr(found, step)
        typer.echo(f"{step}: {perf_counter() - start:.1f} s")
    for lost in found.skipped:
        typer.echo(f"left out: image {lost.sample} ({lost.path}): {lost.reason}")
    table = found.neurons
    where = {"data": data, "weights": weights, "store": store, "target": target, "lower": lower}
    flags = {"--skip-unreadable": skip_unreadable, "--allow-nondeterministic": allow_nondeterministic}
    same = _again(study, flags, **where, rule=rule, start=seed, n=n)
    some = ",".join(str(channel) for channel in table["channel"].head(3))
    count = int((table["q"] <= 0.05).sum())
    typer.echo(f"{count} of {len(table)} neurons fall apart (false-discovery rate 5 %). Next:")
    typer.echo(f"  pure-nb neurons {same}\n  pure-nb plot {same} --neurons {some}")


@app.command()
@_plainly
def neurons(
    study: StudyName,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    rule: Rule = None,
    seed: Start = None,
    n: Count = None,
    skip_unreadable: Skip = False,
    rows: Annotated[int, typer.Option(min=0, help="Rows to print; 0 prints all.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write the whole table to this .csv or .parquet file.")] = None,
) -> None:
    """Print the neurons of a study, the most polysemantic first."""
    _place(out, ".csv", ".parquet")
    table = _study(locals()).neurons
    if out is not None:
        _write(table, out)
    _print(table, rows)


@app.command()
@_plainly
def plot(
    study: StudyName,
    neurons: Neurons = None,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    device: Device = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    rule: Rule = None,
    seed: Start = None,
    crop: Crop = None,
    n: Count = None,
    skip_unreadable: Skip = False,
    count: Annotated[int, typer.Option(min=1, help="Images in each row.")] = 6,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
) -> None:
    """Draw neurons taken apart, one PNG each: the three most polysemantic ones, or those named."""
    import matplotlib

    matplotlib.use("agg")
    from pure_nb.figures.plots import save

    _place(out)
    found = _study(locals())
    chosen = (
        _numbers(neurons) if neurons is not None else [int(channel) for channel in found.neurons["channel"].head(3)]
    )
    out.mkdir(parents=True, exist_ok=True)
    for neuron in [found.neuron(channel) for channel in chosen]:  # all of them are looked up before the first is drawn
        path = out / f"{file_word(f'{found.name}-{found.parameters.target}')}-{neuron.channel}.png"
        save(neuron.plot(count), path)
        typer.echo(str(path))


@app.command()
@_plainly
def atlas(
    study: StudyName,
    out: Annotated[Path, typer.Option(help="Folder for the site.")] = Path("atlas"),
    neurons: Neurons = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="What explorers compare: circuits, circuits (LRP), activations. Once for each."),
    ] = None,
    embedder: Annotated[
        str | None, typer.Option(help="Names the virtual neurons: clip, mini-clip, open_clip:MODEL/TAG, with @FILE.")
    ] = None,
    count: Annotated[int, typer.Option(help="Reference images of each neuron that get a picture.")] = 100,
    home: Annotated[str, typer.Option(help="Address of a page to link back to.")] = "",
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    device: Device = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    rule: Rule = None,
    seed: Start = None,
    crop: Crop = None,
    n: Count = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    skip_unreadable: Skip = False,
) -> None:
    """Write a static site with a page for every neuron, to read, search and share. Ctrl-C stops it; it goes on."""
    from pure_nb.show import atlas as site

    _place(out)
    found = _study(locals())
    judge = None
    if embedder is not None:
        from pure_nb.judges.embedders import load_embedder

        judge = load_embedder(embedder, run=found.run)
    index = site.write(
        found,
        out,
        channels=_numbers(neurons) if neurons is not None else None,
        methods=method or site.METHODS[:1],
        count=count,
        embedder=judge,
        home=home,
    )
    pages = len(list(out.glob("[0-9]*.html")))
    typer.echo(f"{index}: {pages} neurons; open it in a browser, or put the folder {str(out)!r} on any web server")


@app.command()
@_plainly
def arv(
    study: StudyName,
    channel: Annotated[int | None, typer.Option(help="Only this channel.")] = None,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    device: Device = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    share: Share = None,
    mass: Mass = None,
    p: Often = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    cluster: Cluster = None,
    threads: Threads = None,
    precision: Precision = None,
    channels_last: ChannelsLast = None,
    skip_unreadable: Skip = False,
    out: Annotated[Path | None, typer.Option(help="Write the vectors to this .safetensors file.")] = None,
) -> None:
    """One pass over the labelled images: the classes each channel is relevant to; --out keeps the vectors too."""
    from safetensors.numpy import save_file

    from pure_nb.compute.store import write_atomically

    _place(out, ".safetensors")
    found = _study(locals())
    chosen = range(found.shapes[0].channels) if channel is None else [found.neuron(channel).channel]
    statistics, names = found.classes.statistics, found.classes.names
    arrays, some = {}, 0
    for number in chosen:
        classes = statistics.relevant_classes(number, found.parameters.p)
        if len(classes) or channel is not None:
            typer.echo(f"{number}: {', '.join(names[label] for label in classes) or '-'}")
        some += len(classes) > 0
        if out is not None:
            arrays[f"{number}.classes"] = classes
            arrays[f"{number}.arv"] = statistics.arv(found.model, number, classes)
    if channel is None:
        typer.echo(f"{some} of {len(chosen)} channels are relevant to a class")
    if out is not None:
        write_atomically(out, lambda path: save_file(arrays, path))
        typer.echo(f"{out}: the classes and vectors [classes, sources] of {len(chosen)} channels")


@app.command()
@_plainly
def pairs(
    study: StudyName,
    gamma: Annotated[float, typer.Option(help="Show pairs whose cosine is below this.")] = 0.5,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    device: Device = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    share: Share = None,
    mass: Mass = None,
    p: Often = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    cluster: Cluster = None,
    threads: Threads = None,
    precision: Precision = None,
    channels_last: ChannelsLast = None,
    skip_unreadable: Skip = False,
    rows: Annotated[int, typer.Option(min=0, help="Rows to print; 0 prints all.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write all pairs to this .csv or .parquet file.")] = None,
) -> None:
    """Print the gamma-polysemantic pairs: channels relevant to two classes through different sources."""
    from pure_nb.methods.pairs import gamma_polysemantic

    _place(out, ".csv", ".parquet")
    if not -1 <= gamma <= 1:
        raise StudyError(f"--gamma must be a cosine, from -1 to 1, got {gamma}")
    found = _study(locals())
    try:
        table = found.classes.wordnet_pairs()
    except WordNetError as problem:
        typer.secho(f"Without WordNet similarities: {problem}", err=True)
        table = found.classes.pairs
    if out is not None:
        _write(table, out)
    below = gamma_polysemantic(table, gamma)
    typer.echo(
        f"{len(table)} pairs of a channel and two classes it is relevant to, {len(below)} with a cosine < {gamma}"
    )
    _print(below, rows)


@app.command()
@_plainly
def split(
    study: StudyName,
    channel: Annotated[int, typer.Option(help="The channel to split.")],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Split it between these: cat,house or cat house. None takes its virtual neurons.", metavar="A B"
        ),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    device: Device = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    share: Share = None,
    mass: Mass = None,
    rule: Rule = None,
    n: Count = None,
    skip_unreadable: Skip = False,
    score: Annotated[str, typer.Option(help="What chooses the threshold: bounded, or the paper's ratio.")] = "bounded",
    ownership: Annotated[
        str, typer.Option(help="How sources are owned: symmetric, or published (negative relevance compared as it is).")
    ] = "symmetric",
    clamp: Annotated[
        str,
        typer.Option(help="Where the channel is relevant: negative channels, or as published positions, count as 0."),
    ] = "channels",
    validation: Annotated[
        Path | None, typer.Option(help="Images for validation, read as the study's; by default every second of those.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the weights of the split network (.safetensors).")] = None,
) -> None:
    """Split a channel between classes or its virtual neurons; the network computes the same."""
    from pure_nb.loading import load_study
    from pure_nb.methods.ownership import Ownership
    from pure_nb.methods.relevance import Clamp
    from pure_nb.methods.rewiring import save_split
    from pure_nb.methods.splitting import Score

    for option, value, allowed in (
        ("score", score, Score),
        ("ownership", ownership, Ownership),
        ("clamp", clamp, Clamp),
    ):
        if value not in get_args(allowed):
            raise StudyError(f"--{option} must be one of {', '.join(get_args(allowed))}, got {value!r}")
    if more and classes is None:
        raise StudyError(f"what is {more[0]!r}? Classes come after --classes")
    names = None if classes is None else [classes, *more] if more else [name.strip() for name in classes.split(",")]
    _place(out, ".safetensors")
    found = _study(locals())
    how: dict[str, Any] = {"ownership": ownership, "clamp": clamp}
    if validation is not None:
        if found.images.drawn:
            raise StudyError(
                "--validation needs a study of pictures; glyph scenes are drawn, and not read from a folder"
            )
        how["validation"] = load_study(study, data=validation, weights=weights).images
    made = found.classes.split(channel, names, score, **how)  # type: ignore[arg-type]  # checked above
    kept = made.scores["kept"][made.scores["best"]].item()
    typer.echo(f"rho = {made.rho:g}; sources: {_owned(made)}; a part keeps {kept:.0%} of the channel on its own images")
    _print(made.table(), 0)
    if out is not None:
        save_split(found.model, made, out)
        typer.echo(f"{out}: pure_nb.methods.rewiring.load_split(model, {str(out)!r}) puts it into the network")


def _place(out: Path | None, *suffixes: str) -> None:
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


def _owned(made: Split) -> str:
    counts = [f"{int((made.owner == number).sum())} {name}" for number, name in enumerate(made.concepts)]
    return ", ".join([*counts, f"{int((made.owner < 0).sum())} shared"])


def _print(table: pd.DataFrame, rows: int) -> None:
    import pandas as pd

    shown = table.head(rows) if rows else table
    if table.empty:
        return
    with pd.option_context("display.max_colwidth", 70, "display.width", 180, "display.float_format", "{:.3f}".format):
        typer.echo(shown.to_string(index=False))
    if len(shown) < len(table):
        typer.echo(f"... {len(table) - len(shown)} more (--rows 0 prints all)")


def _write(table: pd.DataFrame, out: Path) -> None:
    from pure_nb.compute.store import write_atomically

    write = table.to_csv if out.suffix == ".csv" else table.to_parquet
    write_atomically(out, lambda path: write(path, index=False))


@app.command()
@_plainly
def evaluate(
    study: StudyName,
    embedder: Annotated[
        list[str] | None,
        typer.Option(
            help="Measures distances (the first), and takes neurons apart as a contestant. Once for each: mini-clip, "
            "mini-dino, pixels, clip, dinov2, open_clip:MODEL/TAG, timm:NAME, torchvision:NAME or FILE.py:FUNCTION, "
            "with @FILE for local weights."
        ),
    ] = None,
    k: Annotated[
        str | None, typer.Option(help="Numbers of parts: 2 3 4 5 or 2-5, the default.", metavar="K ...")
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    metric: Annotated[str, typer.Option(help="Of the distances: euclidean, cosine, cityblock ...")] = "euclidean",
    features: Annotated[str, typer.Option(help="Of CLIP and timm: tokens, as the paper, or pooled.")] = "tokens",
    words: Annotated[
        str | None, typer.Option(help="What parts may be called: classes, wordnet, a .txt file, or none.")
    ] = None,
    clear: Annotated[
        float | None, typer.Option(help="Show neurons with the judge's own gap above this as well.")
    ] = None,
    subsets: Annotated[int, typer.Option(help="Random subsets of neurons for the alignment.")] = 30,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    device: Device = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    rule: Rule = None,
    crop: Crop = None,
    n: Count = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    skip_unreadable: Skip = False,
    out: Annotated[Path, typer.Option(help="Folder for the report, its tables and figures.")] = Path("evaluation"),
) -> None:
    """Judge the parts by CLIP or another embedder: are they purer than the whole? Writes a report with figures."""
    import matplotlib

    matplotlib.use("agg")
    from pure_nb.judges.embedders import Features, load_embedder
    from pure_nb.methods.virtual import CHOICES
    from pure_nb.show import report

    if more and k is None:
        raise StudyError(f"what is {more[0]!r}? Numbers of parts come after --k")
    if features not in get_args(Features):
        raise StudyError(f"--features must be one of {', '.join(get_args(Features))}, got {features!r}")
    ks = _numbers(",".join([k, *(more or [])]), "--k") if k else CHOICES
    if min(ks) < 2:
        raise StudyError(f"--k must be 2 or more, got {min(ks)}")
    _place(out)
    found = _study(locals())
    specs = embedder or (["mini-clip", "mini-dino", "pixels"] if found.images.drawn else ["clip", "dinov2"])
    how: dict[str, Any] = {"features": features, "run": found.run}
    judge, *others = [load_embedder(spec, **how) for spec in specs]
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
            typer.secho(f"Without names: {problem} (--words FILE, or --words wordnet)", err=True)
    made = report.evaluate(found, judge, others, ks=ks, metric=metric, subsets=subsets)
    said = None if vocabulary is None else report.part_names(found, judge, vocabulary)
    paths = report.write(made, out, names=said, clear=clear, command=_asked())
    columns = ["k", "method", "neurons", "intra", "inter", "gap", "gap_se", "p"]
    _print(made.summary()[columns], 0)
    typer.echo(f"{paths[0]}: the report, with {len(paths) - 1} tables and figures beside it")


@app.command()
@_plainly
def bench(
    study: StudyName,
    truth: Annotated[
        str | None,
        typer.Option(help="planted, or objects; by default both, where objects are known."),
    ] = None,
    count: Annotated[int, typer.Option(help="Channels to plant.")] = 60,
    null: Annotated[int, typer.Option(help="Channels merged with themselves, to be told from those.")] = 30,
    k: Annotated[int, typer.Option(help="Sources of each planted channel, 2 or more.")] = 2,
    how: Annotated[
        str, typer.Option(help="How sources are drawn: random, similar (hard), dissimilar (easy), overlapping.")
    ] = "random",
    strengths: Annotated[
        str | None, typer.Option(help="How strong the sources are: 1,0.5; all alike by default.", metavar="W,W")
    ] = None,
    embedder: Annotated[
        list[str] | None, typer.Option(help="Takes part as a contestant; once for each, as for pure-nb evaluate.")
    ] = None,
    add: Annotated[
        list[str] | None, typer.Option(help="A contestant of your own: FILE.py:FUNCTION. Once for each.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this contestant. Once for each.")] = None,
    baseline: Annotated[str, typer.Option(help="The contestant that the others are compared with.")] = "PURE",
    choose: Annotated[
        bool, typer.Option(help="Also let each contestant choose k, for detection and calibration.")
    ] = True,
    number: Annotated[int, typer.Option("--seed", help="Of the draw and the clustering.")] = 0,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
    device: Device = None,
    target: Target = None,
    allow_nondeterministic: Unsteady = False,
    lower: Lower = None,
    n: Count = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    skip_unreadable: Skip = False,
    out: Annotated[Path, typer.Option(help="Folder for the tables and figures.")] = Path("bench"),
) -> None:
    """Let methods take neurons apart where the right answer is known. Ctrl-C stops it; the same command goes on."""
    import matplotlib

    matplotlib.use("agg")
    from pure_nb.benchmark import leaderboards
    from pure_nb.benchmark.contestants import load_contestant
    from pure_nb.judges.embedders import load_embedder

    _place(out)
    own = [load_contestant(specification) for specification in add or ()]
    found = _study(locals()).using(random=number)
    judges = [load_embedder(specification, run=found.run) for specification in embedder or ()]
    weighed = None if strengths is None else _decimals(strengths, "--strengths")
    planting: dict[str, Any] = {"count": count, "k": k, "how": how, "null": null, "strengths": weighed, "seed": number}
    for world in leaderboards.worlds_of(found, truth, **planting):
        made = leaderboards.compete(world, judges, own, only=only or (), baseline=baseline, choose=choose, seed=number)
        typer.echo(leaderboards.words(world))
        _print(made.board.drop(columns=["low", "high", "auc_low", "auc_high"]), 0)
        paths = leaderboards.write(made, out / world.study.name, command=_asked())
        typer.echo(f"{paths[0]}: the leaderboard, with {len(paths) - 1} files beside it")


@app.command()
@_plainly
def info(
    study: Annotated[str | None, typer.Argument(help="A study; none lists those that ship.", metavar="[STUDY]")] = None,
    data: Data = None,
    weights: Weights = None,
    store: Folder = None,
) -> None:
    """Say what a study is made of, which layers its network has, and which results it has stored."""
    from pure_nb.loading import shipped_studies

    if study is None:
        typer.echo("Studies that ship: " + ", ".join(shipped_studies()))
        return
    found = _study(locals())
    typer.echo(f"{found.name}: {type(found.model).__name__}, {len(found.images)} images ({found.images.name})")
    for name, value in vars(found.parameters).items():
        typer.echo(f"  {name} = {value}")
    typer.echo("Layers that can be studied:")
    for shape in found.survey():
        grid = " x ".join(str(size) for size in shape.grid) or "no positions"
        typer.echo(f"  {shape.name:<28} {shape.kind:<18} {shape.channels:>5} channels, {grid}")
    manifests = found.store.manifests() if found.store else []
    typer.echo(f"Results in {found.store.folder if found.store else 'memory'}: {len(manifests) or 'none yet'}")
    for manifest in manifests:
        typer.echo(f"  {manifest['file']}  sha256 {manifest['sha256'][:12]}")


@app.command("store")
@_plainly
def stored(
    study: Annotated[str | None, typer.Argument(help="Name of a study; all by default.", metavar="[STUDY]")] = None,
    store: Folder = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what no study finds any more, and what killed runs have left.")
    ] = False,
    days: Annotated[
        float | None, typer.Option(help="With --prune: also remove all results older than so many days.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """List what studies have stored: how much, how old, of which network, images and layers. --prune tidies it."""
    import pandas as pd

    from pure_nb.compute.results import outdated
    from pure_nb.compute.store import Store, store_folder

    if days is not None and not (prune and days >= 0):
        raise StudyError(f"--days is a number from 0 and goes with --prune, got {days:g}")
    root, now = store_folder(store), time()

    def unwanted(result: Result) -> bool:
        useless = result.key is not None and (not result.key or outdated(result.key))
        return useless or (days is not None and now - result.written > days * 86400)

    folders = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    stores = {path: Store(path).results() for path in folders if study in (None, path.name)}
    rows = []
    for path, results in stores.items():
        for result in results:
            key = result.key or {}
            row = {"study": path.name, "network": str(key.get("weights", "")), "images": str(key.get("images", ""))}
            row["layers"] = " < ".join(str(key[name]) for name in ("target", "lower") if name in key)
            row["state"] = "unfinished" if result.key is None else "unwanted" if unwanted(result) else ""
            rows.append(row | {"results": 1, "MB": result.size / 1e6, "days": (now - result.written) / 86400})
    if not rows:
        typer.echo(f"nothing is stored in {str(root)!r}{'' if study is None else f' of a study {study!r}'}")
        return
    by = ["study", "network", "images", "layers", "state"]
    table = pd.DataFrame(rows).groupby(by, as_index=False).agg({"results": "sum", "MB": "sum", "days": "min"})
    _print(table, 0)
    typer.echo(f"{str(root)!r}: {len(rows)} results, {table['MB'].sum():.1f} MB; days since the last one")
    if not prune:
        return
    chosen = [result for results in stores.values() for result in results if unwanted(result)]
    size = sum(result.size for result in chosen) / 1e6
    if not yes and not typer.confirm(f"Remove {len(chosen)} results, {size:.1f} MB, and what killed runs have left?"):
        return
    for path in stores:
        try:
            gone = Store(path).prune(unwanted)
        except StoreError as problem:  # the others can be tidied all the same
            typer.secho(f"Mind: {problem}", err=True)
        else:
            typer.echo(f"{path.name}: {len(gone)} results removed, {sum(one.size for one in gone) / 1e6:.1f} MB")


def _numbers(text: str, flag: str = "--neurons") -> list[int]:
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


def _decimals(text: str, flag: str) -> list[float]:
    """Numbers as a user writes them: ``1,0.5``."""
    try:
        return [float(entry) for entry in text.split(",")]
    except ValueError as problem:
        raise StudyError(f"can't read {flag} {text!r}; expected numbers such as 1,0.5") from problem


def _asked() -> str:
    """The command that is running."""
    from pure_nb.images.data import printable

    return printable(f"pure-nb {shlex.join(sys.argv[1:])}")


def _again(study: str, flags: dict[str, bool], **options: object) -> str:
    """The study and its options as one types them, for the next command."""
    words = [study]
    for name, value in options.items():
        words += [f"--{name}", str(value)] if value is not None else []
    return shlex.join([*words, *(flag for flag, given in flags.items() if given)])


if __name__ == "__main__":
    app()
