"""The commands that write and search sites of whole studies: ``atlas``.

They are part of the command line, :mod:`pure_nb.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option, echo

from pure_nb._options import Asked, Neurons, command, numbers, require_place


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
    count: Annotated[int, Option(help="Reference images of each neuron that get a picture.")] = 100,
    side: Annotated[int, Option(help="Pixels a side of an image at most.")] = 144,
    home: Annotated[str, Option(help="Address of a page to link back to.")] = "",
) -> None:
    """Write a static site with a page for every neuron, to read, search and share. Ctrl-C stops it; it goes on."""
    from pure_nb.judges.embedders import load_embedder
    from pure_nb.show import atlas as site
    from pure_nb.show.facts import METHODS

    require_place(out)
    found = asked.load()
    index = site.write(
        found,
        out,
        channels=None if neurons is None else numbers(neurons),
        methods=method or METHODS[:1],
        count=count,
        embedder=None if embedder is None else load_embedder(embedder, run=found.run),
        side=side,
        home=home,
    )
    pages = len(list(out.glob("[0-9]*.html")))
    echo(f"{index}: {pages} neurons; open it in a browser, or put the folder {str(out)!r} on any web server")
