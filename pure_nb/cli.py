"""The command line, ``pure-nb``: ``run``, ``neurons``, ``plot``, ``atlas``, ``arv``, ``pairs``, ``split`` and more.

What takes long to import, as torch and whatever needs it, is imported by the commands, so that help comes at once.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option, echo, secho

from pure_nb._options import (
    Asked,
    Folder,
    Neurons,
    Rows,
    Ways,
    app,
    command,
    numbers,
    print_table,
    require_place,
    write_table,
)
from pure_nb.errors import StoreError, StudyError, WordNetError
from pure_nb.parameters import file_word

if TYPE_CHECKING:
    from pure_nb.compute.store import Result
    from pure_nb.methods.splitting import Split

__all__ = ["app"]


@command("neurons")
def run(
    asked: Asked,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Run nothing but ten images and a few channels, and tell what all will take.")
    ] = False,
) -> None:
    """Run all steps of a study. Ctrl-C stops it; the same command goes on from there."""
    from pure_nb.estimating import RUN_STEPS, TimeLeft, in_words

    where = str(asked.changes.pop("client", "")) if dry_run else ""
    found = asked.load()
    top, below = found.shapes
    echo(
        f"{found.name}: {top.name} ({top.channels} channels) through {below.name} ({below.channels} channels), "
        f"{len(found.images)} images, {found.parameters.n_references} references a neuron, rule {found.parameters.rule}"
    )
    if found.parameters.n_references > len(found.images):
        echo(f"There are fewer images than references asked for: each neuron gets all {len(found.images)}.")
    elif 20 * found.parameters.n_references > len(found.images):
        echo("The references are more than a twentieth of the images, so the weaker ones mean little: lower --n.")
    if dry_run:
        table = found.estimate(cluster=where)
        print_table(table.reset_index(names="step"))
        echo(f"pure-nb run takes about {in_words(table['seconds']['run'])}{where and f' by {where}'}.")
        return
    expected: dict[str, float] = {}
    if found.run.progress and not os.environ.get("TQDM_DISABLE"):  # the bars tell what is left
        seconds = found.estimate(steps=RUN_STEPS)["seconds"]
        echo(f"all steps: about {in_words(seconds['run'])}")
        expected = {step: seconds[step] for step in RUN_STEPS}
    left = TimeLeft(expected)
    for step in RUN_STEPS:
        start = perf_counter()
        with left.step(step):
            getattr(found, step)
        echo(f"{step}: {perf_counter() - start:.1f} s")
    for lost in found.skipped:
        echo(f"left out: image {lost.sample} ({lost.path}): {lost.reason}")
    table, same = found.neurons, asked.again()
    some = ",".join(str(channel) for channel in table["channel"].head(3))
    count = int((table["q"] <= 0.05).sum())
    echo(f"{count} of {len(table)} neurons are polysemantic by the test (false-discovery rate 5 %). Next:")
    echo(f"  pure-nb neurons {same}\n  pure-nb plot {same} --neurons {some}")


@command("neurons")
def neurons(
    asked: Asked,
    rows: Rows = 20,
    out: Annotated[Path | None, Option(help="Write the whole table to this .csv or .parquet file.")] = None,
) -> None:
    """Print the neurons of a study, the most polysemantic first."""
    require_place(out, ".csv", ".parquet")
    found = asked.load()
    table = found.notes.beside(found.neurons)
    if out is not None:
        write_table(table, out)
    print_table(table, rows)
    if found.combined:
        echo(f"Parts are clusters of: {found.combined}")


@command("neurons", "crops")
def plot(
    asked: Asked,
    neurons: Neurons = None,
    count: Annotated[int, Option(min=1, help="Images in each row.")] = 6,
    out: Annotated[Path, Option(help="Folder for the figures.")] = Path("figures"),
) -> None:
    """Draw neurons split into parts, one PNG each: the three most polysemantic ones, or those named."""
    import matplotlib

    matplotlib.use("agg")
    from pure_nb.figures.plots import save

    require_place(out)
    found = asked.load()
    chosen = found.neurons["channel"].head(3).tolist() if neurons is None else numbers(neurons)
    out.mkdir(parents=True, exist_ok=True)
    for neuron in [found.neuron(channel) for channel in chosen]:  # all of them are looked up before the first is drawn
        path = out / f"{file_word(f'{found.name}-{found.parameters.target}')}-{neuron.channel}.png"
        save(neuron.plot(count), path)
        echo(str(path))


@command("classes")
def arv(
    asked: Asked,
    channel: Annotated[int | None, Option(help="Only this channel.")] = None,
    out: Annotated[Path | None, Option(help="Write the vectors to this .safetensors file.")] = None,
) -> None:
    """One pass over the labelled images: the classes each channel is relevant to; --out keeps the vectors too."""
    from safetensors.numpy import save_file

    from pure_nb.compute.store import write_atomically

    require_place(out, ".safetensors")
    found = asked.load()
    chosen = range(found.shapes[0].channels) if channel is None else [found.neuron(channel).channel]
    statistics, names = found.classes.statistics, found.classes.names
    arrays, some = {}, 0
    for number in chosen:
        classes = statistics.relevant_classes(number, found.parameters.min_frequency)
        if len(classes) or channel is not None:
            echo(f"{number}: {', '.join(names[label] for label in classes) or '-'}")
        some += len(classes) > 0
        if out is not None:
            arrays[f"{number}.classes"] = classes
            arrays[f"{number}.arv"] = statistics.arv(found.model, number, classes)
    if channel is None:
        echo(f"{some} of {len(chosen)} channels are relevant to a class")
    if out is not None:
        write_atomically(out, lambda path: save_file(arrays, path))
        echo(f"{out}: the classes and vectors [classes, sources] of {len(chosen)} channels")


@command("classes")
def pairs(
    asked: Asked,
    gamma: Annotated[float, Option(help="Show pairs whose cosine is below this.")] = 0.5,
    rows: Rows = 20,
    out: Annotated[Path | None, Option(help="Write all pairs to this .csv or .parquet file.")] = None,
) -> None:
    """Print the gamma-polysemantic pairs: channels relevant to two classes through different sources."""
    from pure_nb.methods.pairs import gamma_polysemantic

    require_place(out, ".csv", ".parquet")
    if not -1 <= gamma <= 1:
        raise StudyError(f"--gamma must be a cosine, from -1 to 1, got {gamma}")
    found = asked.load()
    try:
        table = found.classes.wordnet_pairs()
    except WordNetError as problem:
        secho(f"Without WordNet similarities: {problem}", err=True)
        table = found.classes.pairs
    if out is not None:
        write_table(table, out)
    below = gamma_polysemantic(table, gamma)
    echo(f"{len(table)} pairs of a channel and two classes it is relevant to, {len(below)} with a cosine < {gamma}")
    print_table(below, rows)


@command("neurons", "classes")
def split(
    asked: Asked,
    *,
    channel: Annotated[int, Option(help="The channel to split.")],
    classes: Annotated[
        str | None,
        Option(help="Split it between these: cat,house or cat house. None takes its virtual neurons.", metavar="A B"),
    ] = None,
    more: Annotated[list[str] | None, Argument(hidden=True)] = None,
    how: Ways,
    validation: Annotated[
        Path | None, Option(help="Images for validation, read as the study's; by default every second of those.")
    ] = None,
    out: Annotated[Path | None, Option(help="Write the weights of the split network (.safetensors).")] = None,
) -> None:
    """Split a channel between classes or its virtual neurons; the network computes the same."""
    from pure_nb.methods.rewiring import save_split

    if more and classes is None:
        raise StudyError(f"what is {more[0]!r}? Classes come after --classes")
    names = None if classes is None else [classes, *more] if more else [name.strip() for name in classes.split(",")]
    require_place(out, ".safetensors")
    found = asked.load()
    if validation is not None and found.images.drawn:
        raise StudyError("--validation needs a study of pictures; glyph scenes are drawn, and not read from a folder")
    judged = None if validation is None else replace(asked, data=validation, changes={}).load().images
    made = found.classes.split(channel, names, **asdict(how), validation=judged)
    kept = made.scores["retained"][made.scores["best"]].item()
    echo(f"rho = {made.rho:g}; sources: {_owned(made)}; a part keeps {kept:.0%} of the channel on its own images")
    print_table(made.table())
    if out is not None:
        save_split(found.model, made, out)
        echo(f"{out}: pure_nb.methods.rewiring.load_split(model, {str(out)!r}) puts it into the network")


def _owned(made: Split) -> str:
    counts = [f"{int((made.owner == number).sum())} {name}" for number, name in enumerate(made.concepts)]
    return ", ".join([*counts, f"{int((made.owner < 0).sum())} shared"])


@command()
def info(
    asked: Asked,
    study: Annotated[str | None, Argument(help="A study; none lists those that ship.", metavar="STUDY")] = None,
) -> None:
    """Say what a study is made of, which layers its network has, and which results it has stored."""
    from pure_nb.loading import shipped_studies

    if study is None:
        echo("Studies that ship: " + ", ".join(shipped_studies()))
        return
    found = asked.load()
    echo(f"{found.name}: {type(found.model).__name__}, {len(found.images)} images ({found.images.name})")
    for name, value in vars(found.parameters).items():
        echo(f"  {name} = {value}")
    echo("Layers that can be studied:")
    for shape in found.survey():
        grid = " x ".join(str(size) for size in shape.grid) or "no positions"
        echo(f"  {shape.name:<28} {shape.kind:<18} {shape.channels:>5} channels, {grid}; {shape.how}")
    manifests = found.results.manifests()
    echo(f"Known: {', '.join(found.known()) or 'nothing yet'}")
    echo(f"Results in {found.store.folder if found.store else 'memory'}: {len(manifests) or 'none'}")
    for manifest in manifests:
        echo(f"  {manifest['file']}  sha256 {manifest['sha256'][:12]}")


@command(name="store")
def stored(
    study: Annotated[str | None, Argument(help="Name of a study; all by default.", metavar="STUDY")] = None,
    store: Folder = None,
    prune: Annotated[
        bool, Option("--prune", help="Remove what no study finds any more, and what killed runs have left.")
    ] = False,
    days: Annotated[float | None, Option(help="With --prune: also remove all results older than so many days.")] = None,
    yes: Annotated[bool, Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """List what studies have stored: how much, how old, of which network, images and layers. --prune tidies it."""
    import pandas as pd

    from pure_nb.compute.results import Results, unwanted
    from pure_nb.compute.store import Store, store_folder

    if days is not None and not (prune and days >= 0):
        raise StudyError(f"--days is a number from 0 and goes with --prune, got {days:g}")
    root = store_folder(store)
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    kept = {path.name: Results(Store(path)) for path in folders if study in (None, path.name)}
    every = [(name, one, unwanted(one, days)) for name, results in kept.items() for one in results.stored()]
    rows = [_row(*one) for one in every]
    if not rows:
        echo(f"nothing is stored in {str(root)!r}{'' if study is None else f' of a study {study!r}'}")
        return
    table = (
        pd.DataFrame(rows)
        .groupby(list(rows[0])[:5], as_index=False)
        .agg({"results": "sum", "MB": "sum", "days": "min"})
    )
    print_table(table)
    echo(f"{str(root)!r}: {len(rows)} results, {table['MB'].sum():.1f} MB; days since the last one")
    if not prune:
        return
    chosen = [result for _, result, useless in every if useless]
    size = sum(result.size for result in chosen) / 1e6
    if not yes and not typer.confirm(f"Remove {len(chosen)} results, {size:.1f} MB, and what killed runs have left?"):
        return
    for name, results in kept.items():
        try:
            gone = results.prune(days)
        except StoreError as problem:  # the others can be tidied all the same
            secho(f"Warning: {problem}", err=True)
        else:
            echo(f"{name}: {len(gone)} results removed, {sum(one.size for one in gone) / 1e6:.1f} MB")


def _row(study: str, result: Result, unwanted: bool) -> dict[str, Any]:
    """What a stored result is of, its size and its age."""
    key = result.key or {}
    return {
        "study": study,
        "network": str(key.get("weights", "")),
        "images": str(key.get("images", "")),
        "layers": " < ".join(str(key[name]) for name in ("target", "lower") if name in key),
        "state": "unfinished" if result.key is None else "unwanted" if unwanted else "",
        "results": 1,
        "MB": result.size / 1e6,
        "days": (time() - result.written) / 86400,
    }


import pure_nb._atlas_commands  # noqa: E402, F401  down here, since help lists commands as they come
import pure_nb._judging_commands  # noqa: E402, F401
import pure_nb._reason_commands  # noqa: E402, F401

if __name__ == "__main__":
    app()
