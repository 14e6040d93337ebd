"""The command that says why the network said so: ``explain``.

It is part of the command line, :mod:`pure_nb.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, echo

from pure_nb._options import Asked, command, print_table, require_place


@command("neurons", "crops")
def explain(
    asked: Asked,
    *,
    picture: Annotated[str, Argument(help="A file, or the number of one of the study's images.", metavar="PICTURE")],
    output: Annotated[str | None, Option(help="Name or number of the output; the largest by default.")] = None,
    against: Annotated[str | None, Option(help="Another output: what speaks for the one and not for it?")] = None,
    channels: Annotated[int, Option(min=1, help="Channels that are taken apart, those that carry most.")] = 50,
    count: Annotated[int, Option(min=1, help="Parts that are shown.")] = 8,
    faithfulness: Annotated[bool, Option(help="Switch the parts off one after another: does the output fall?")] = False,
    out: Annotated[Path, Option(help="The page to write, an .html file.")] = Path("explanation.html"),
) -> None:
    """Say by which parts the network came to its answer for a picture, as a page with pictures of each."""
    require_place(out, ".html")
    seen = int(picture) if picture.isdecimal() and not Path(picture).exists() else picture
    found = asked.load().explain(seen, output, against=against, channels=channels, count=count)
    echo(f"{found.picture.name}: {found.title}")
    print_table(found.table)
    if faithfulness:
        print_table(found.faithfulness.areas)
    echo(f"{found.write(out)}: the same with pictures")
