"""The pages of an atlas: its index, one for each neuron, one for each lower channel that carries some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pure_nb._imports import needed
from pure_nb.compute.bars import progress_bar
from pure_nb.show.facts import Atlas, Part
from pure_nb.show.index import index_script
from pure_nb.show.pictures import draw_lower, write_text

with needed("show", "an atlas needs"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

STATIC = Path(__file__).with_name("static")
"""The templates, styles and scripts of the pages."""


def write_pages(made: Atlas, folder: Path, channels: Sequence[int], home: str) -> None:
    """Write all pages of an atlas.

    Parameters
    ----------
    made
        What they tell.
    folder
        Holds the pictures.
    channels
        Which neurons get a page.
    home
        Address of a page to link back to; "" is none.
    """
    credits = _credits(made, channels)
    study, templates = made.study, _templates(made, home)
    templates.globals["credits"] = credits
    table = study.neurons[study.neurons["channel"].isin(channels)]
    rows = {int(row["channel"]): row for row in table.to_dict("records")}
    parts = {channel: made.parts(channel) for channel in channels if study.references.alive[channel]}
    carried = _carried(parts)
    pictured = draw_lower(made, folder, sorted(carried))
    order, known = list(rows), not made.without_classes
    neuron, lower = templates.get_template("neuron.html"), templates.get_template("lower.html")
    for place, channel in enumerate(progress_bar(order, "pages", unit="page", shown=study.run.progress)):
        text = neuron.render(
            root="",
            channel=channel,
            row=rows[channel],
            whole=study.virtual_of(channel),
            parts=parts.get(channel, []),
            before=order[place - 1] if place else None,
            after=order[place + 1] if place + 1 < len(order) else None,
            pictured=pictured,
            without_classes=made.without_classes,
            classes=made.classes(channel) if known else [],
            pairs=made.pairs(channel) if known else [],
        )
        write_text(folder / f"{channel}.html", text)
    for channel, users in carried.items():
        text = lower.render(root="../", channel=channel, users=users, pictured=pictured)
        write_text(folder / f"lower/{channel}.html", text)
    write_index(made, folder, rows, parts, home)


def write_index(
    made: Atlas, folder: Path, rows: Mapping[int, Mapping[Any, Any]], parts: Mapping[int, Sequence[Part]], home: str
) -> None:
    """Write the page with all neurons, and what pages have in common; the index last, as it says that all is there.

    Parameters
    ----------
    made, folder, home
        As for :func:`write_pages`.
    rows, parts
        As for :func:`pure_nb.show.index.index_script`.
    """
    write_text(folder / "data/index.js", index_script(made, rows, parts))
    for asset in ("explorer/explorer.js", "explorer/explorer.css", "atlas/atlas.js", "atlas/atlas.css"):
        write_text(folder / Path(asset).name, (STATIC / asset).read_text(encoding="utf-8"))
    text = _templates(made, home).get_template("index.html").render(root="", rows=rows)
    write_text(folder / "index.html", text)
    if credits:
        write_text(folder / "credits.html", templates.get_template("credits.html").render(root=""))


def _credits(made: Atlas, channels: Sequence[int]) -> dict[str, list[int]]:
    """Whom pictures are by that ask for it to be shown, and the numbers of these images."""
    found: dict[str, list[int]] = {}
    for sample in np.unique(made.study.references.sample[list(channels), : made.count]).tolist():
        found.setdefault(made.study.images.credit(sample), []).append(sample)
    found.pop("", None)
    return dict(sorted(found.items()))


def _carried(parts: Mapping[int, Sequence[Part]]) -> dict[int, list[tuple[int, float]]]:
    """For each lower channel that a page names: the neurons it carries and its share in each, the largest first."""
    found: dict[int, dict[int, float]] = {}
    for channel, every in parts.items():
        for lower, share in (carrier for part in every for carrier in part.carriers):
            own = found.setdefault(lower, {})
            own[channel] = max(own.get(channel, 0.0), share)
    return {lower: sorted(own.items(), key=lambda entry: (-entry[1], entry[0])) for lower, own in sorted(found.items())}


def _templates(made: Atlas, home: str) -> Environment:
    """The templates of an atlas's pages, with what they all tell."""
    loader = FileSystemLoader(STATIC / "atlas")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    study = made.study
    pages.globals |= {
        "study": study.name,
        "network": type(study.model).__name__,
        "p": study.parameters,
        "channels": study.references.channels,
        "images": len(study.images),
        "source": study.images.name,
        "home": home,
        "key": made.key.replace(" ", "-"),
        "said": made.embedder.name if made.embedder else "",
        "unsteady": study.unsteady,
    }
    return pages
