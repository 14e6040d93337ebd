"""The commands that write and search sites of whole studies: ``atlas``, ``search``.

They are part of the command line, :mod:`pure_nb.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, echo

from pure_nb._options import Asked, Neurons, Rows, command, numbers, print_table, require_place, write_table


@command("neurons", "crops")
def atlas(
    asked: Asked,
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
    home: Annotated[str, Option(help="Address of a page to link back to.")] = "",
) -> None:
    """Write a static site with a page for every neuron, to read, search and share. Ctrl-C stops it; it goes on."""
    from pure_nb.judges.embedders import load_embedder
    from pure_nb.show import atlas as site
    from pure_nb.show.facts import METHODS
    from pure_nb.show.report import vocabulary

    require_place(out)
    found = asked.load()
    said = None if words is None else vocabulary(found, words)
    index = site.write(
        found,
        out,
        channels=None if neurons is None else numbers(neurons),
        methods=method or METHODS[:1],
        count=count,
        embedder=None if embedder is None else load_embedder(embedder, run=found.run),
        words=said,
        home=home,
    )
    pages = len(list(out.glob("[0-9]*.html")))
    echo(f"{index}: {pages} neurons; open it in a browser, or put the folder {str(out)!r} on any web server")


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
