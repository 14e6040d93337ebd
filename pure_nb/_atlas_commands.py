"""The commands that write, search, compare and publish sites of whole studies, and note what stands there.

They are part of the command line, :mod:`pure_nb.cli`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, echo

from pure_nb._options import Asked, Neurons, Rows, command, numbers, print_table, require_place, write_table


# As of the function.
@command("neurons", "crops")
def atlas(  # noqa: PLR0913
    asked: Asked,
    other: Annotated[
        str | None, Argument(help="Another study, to show both side by side, in pairs of parts.", metavar="OTHER")
    ] = None,
    out: Annotated[Path, Option(help="Folder for the site.")] = Path("atlas"),
    neurons: Neurons = None,
    method: Annotated[
        list[str] | None, Option(help="What explorers compare: circuits, circuits (LRP), activations. Once for each.")
    ] = None,
    embedder: Annotated[
        str | None, Option(help="Names the virtual neurons: clip, mini-clip, open_clip:MODEL/TAG, with @FILE.")
    ] = None,
    words: Annotated[
        str | None, Option(help="What they may be called, and be found by: classes, wordnet, or a .txt file.")
    ] = None,
    count: Annotated[int, Option(help="Reference images of each neuron that get a picture.")] = 100,
    side: Annotated[int, Option(help="Pixels a side of an image at most.")] = 144,
    home: Annotated[str, Option(help="Address of a page to link back to.")] = "",
    layers: Annotated[
        str | None, Option(help="Several layers, linked from part to part: layer3,layer4.", metavar="LAYER,LAYER")
    ] = None,
    outputs: Annotated[
        str | None,
        Option(help="Pages of outputs, with the parts that carry them: all, or some: cat,dog,3."),
    ] = None,
    graph: Annotated[bool, Option("--graph", help="Show circuits through the layers on these pages.")] = False,
) -> None:
    """Write a static site with a page for every neuron, to read, search and share. Ctrl-C stops it; it goes on."""
    from pure_nb.judges.embedders import load_embedder
    from pure_nb.show import atlas as site
    from pure_nb.show.facts import METHODS
    from pure_nb.show.report import vocabulary

    require_place(out)
    found = asked.load()
    beside = None if other is None else replace(asked, study=other, weights=None).load()
    said = None if words is None else vocabulary(found, words)
    index = site.write(
        found,
        out,
        channels=None if neurons is None else numbers(neurons),
        methods=method or METHODS[:1],
        count=count,
        embedder=None if embedder is None else load_embedder(embedder, run=found.run),
        words=said,
        side=side,
        home=home,
        layers=[] if layers is None else [layer.strip() for layer in layers.split(",")],
        other=beside,
        outputs=outputs if outputs == "all" else [one.strip() for one in (outputs or "").split(",") if one.strip()],
        graph=graph,
    )
    pages = len(list(out.glob("[0-9]*.html" if layers is None and other is None else "*/[0-9]*.html")))
    echo(f"{index}: {pages} neurons; open it in a browser, or put the folder {str(out)!r} on any web server")


# What is published, of what, and what is said of it.
@command("neurons", "crops", "classes")
def publish(  # noqa: PLR0913
    asked: Asked,
    out: Annotated[Path, Argument(help="Folder for the published study.", metavar="OUT")],
    neurons: Neurons = None,
    pictures: Annotated[
        str | None, Option(help="Which pictures: none, crops (what neurons look at) or whole; none of your own images.")
    ] = None,
    names: Annotated[
        str | None, Option(help="Which names: none, labels or files (and labels); none of your own images.")
    ] = None,
    count: Annotated[int, Option(help="Reference images of each neuron that get a picture.")] = 100,
    side: Annotated[int | None, Option(help="Pixels of a picture's longer side at most.")] = None,
    attribution: Annotated[
        Path | None,
        Option(help="Table (.csv, .tsv) of whom pictures are by; by default the ATTRIBUTION.csv above them."),
    ] = None,
    embedder: Annotated[
        str | None, Option(help="Names the virtual neurons: clip, mini-clip, open_clip:MODEL/TAG, with @FILE.")
    ] = None,
    licence: Annotated[str, Option(help="Under which licence, in the hub's words: cc-by-4.0.")] = "",
    cite: Annotated[str, Option(help="How to cite it.")] = "",
    atlas: Annotated[bool, Option("--atlas", help="Also write a site of it, into OUT/atlas.")] = False,
    push: Annotated[str, Option(help="Put it on Hugging Face's hub: owner/name.")] = "",
) -> None:
    """Publish a study: a folder that load_study reads without network and images. Ctrl-C stops it; it goes on."""
    from pure_nb import publishing
    from pure_nb.judges.embedders import load_embedder

    found = asked.load()
    folder = publishing.publish(
        found,
        out,
        channels=None if neurons is None else numbers(neurons),
        shown=publishing.Shown(pictures, names, count, side, attribution),
        embedder=None if embedder is None else load_embedder(embedder, run=found.run),
        licence=licence,
        cite=cite,
        atlas=atlas,
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    echo(f"{out}: {size / 1e6:.1f} MB; load_study({str(folder)!r}) reads it. What is in it, its README.md says")
    if push:
        echo(f"{publishing.push(folder, push)}: load_study reads it from there")


@command("neurons")
def note(
    asked: Asked,
    place: Annotated[str | None, Argument(help="A neuron, or a part of one; none lists all.", metavar="22.B")] = None,
    name: Annotated[str, Argument(help="What you call it.", metavar="NAME")] = "",
    text: Annotated[str, Option(help="What you note on it.")] = "",
    remove: Annotated[bool, Option("--remove", help="Remove its name and note.")] = False,
) -> None:
    """Name a part by hand, or note something on it, in a small text file; without a part, list what is there."""
    notes = asked.load().notes
    if place is not None and remove:
        notes.remove(place)
    elif place is not None:
        notes.write(place, name, text)
    else:
        print_table(notes.table())
    echo(str(notes.path))


@command("neurons", "crops")
def search(
    asked: Asked,
    query: Annotated[str, Argument(help="A word, or the file of a picture.", metavar="WORD_OR_FILE")],
    embedder: Annotated[
        str | None, Option(help="Compares them: clip, the default, mini-clip, open_clip:MODEL/TAG, with @FILE.")
    ] = None,
    rows: Rows = 20,
    out: Annotated[Path | None, Option(help="Write the whole table to this .csv or .parquet file.")] = None,
) -> None:
    """Find the parts of neurons that show what a word or a picture shows, the nearest first."""
    require_place(out, ".csv", ".parquet")
    table = asked.load().search(query, embedder)
    if out is not None:
        write_table(table, out)
    print_table(table, rows)
    echo("score: mean cosine of a part's crops with it, beyond that of all crops; q: share expected there by chance")


@command("neurons", "crops")
def compare(
    asked: Asked,
    other: Annotated[str, Argument(help="Another study, of the same images.", metavar="OTHER")],
    by: Annotated[
        str, Option(help="What makes parts alike: images (shared), embedder, circuits (from the same lower)")
    ] = "images",
    embedder: Annotated[str | None, Option(help="Whose vectors: clip, mini-clip, pixels, as for evaluate.")] = None,
    least: Annotated[float, Option(help="How alike two parts are at least that have to do with each other.")] = 0.2,
    rows: Rows = 20,
    out: Annotated[Path | None, Option(help="Write the whole table to this .csv or .parquet file.")] = None,
) -> None:
    """Match the virtual neurons of two studies, such as two checkpoints: what appeared, vanished, split or merged."""
    from pure_nb.judges.embedders import load_embedder
    from pure_nb.show import comparing

    require_place(out, ".csv", ".parquet")
    studies = asked.load(), replace(asked, study=other, weights=None).load()
    judge = None if embedder is None else load_embedder(embedder, run=studies[0].run)
    found = comparing.compare(*studies, by, embedder=judge, least=least)  # type: ignore[arg-type]  # which it checks
    if out is not None:
        write_table(found, out)
    counts = found["what"].value_counts()
    echo(", ".join(f"{counts[what]} {what}" for what in counts.index))
    print_table(found, rows)
