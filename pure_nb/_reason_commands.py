"""The commands that say why the network said so: ``explain``, ``outliers``.

They are part of the command line, :mod:`pure_nb.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, echo

from pure_nb._options import Asked, Rows, command, print_table, require_place


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
    echo(f"{found.write(out)}: the same with pictures")
    if faithfulness:  # after the page, since there may be no part to switch off
        print_table(found.faithfulness.areas)
        found.write(out)


@command("neurons", "crops")
def outliers(
    asked: Asked,
    *,
    names: Annotated[
        list[str] | None, Option("--class", help="Name or number of a class, also several times; all by default.")
    ] = None,
    count: Annotated[int, Option(min=1, help="Images of each class that are shown.")] = 3,
    channels: Annotated[int, Option(min=1, help="Channels that are taken apart, those that carry most.")] = 50,
    rows: Rows = 10,
    out: Annotated[
        Path, Option(help="An .html file with pictures, a .csv file with the table, or a folder for both.")
    ] = Path("outliers.html"),
) -> None:
    """Find the images of each class that other parts carry than the others: shortcuts, odd pictures."""
    require_place(out, *([".html", ".csv"] if out.suffix else []))
    found = asked.load().classes.outliers(names or None, count=count, channels=channels)
    print_table(found.table, rows)
    echo(f"{found.write(out)}: {'the table' if out.suffix == '.csv' else 'the same with pictures'}")
