"""The pages of an atlas: its index, one for each neuron, one for each lower channel that carries some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pure_nb._imports import needed
from pure_nb.compute.bars import progress_bar
from pure_nb.show.facts import Atlas, Part
from pure_nb.show.pictures import draw_lower, strips, write_text

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
    study, templates = made.study, _templates(made, home)
    table = study.neurons[study.neurons["channel"].isin(channels)]
    rows = {int(row["channel"]): row for row in table.to_dict("records")}
    parts = {channel: made.parts(channel) for channel in channels if study.references.alive[channel]}
    carried = _carried(parts)
    pictured, thumbs = draw_lower(made, folder, sorted(carried)), strips(made, folder)
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
            thumb=thumbs.get(channel),
            without_classes=made.without_classes,
            classes=made.classes(channel) if known else [],
            pairs=made.pairs(channel) if known else [],
        )
        write_text(folder / f"{channel}.html", text)
    for channel, users in carried.items():
        text = lower.render(root="../", channel=channel, users=users, pictured=pictured, thumbs=thumbs)
        write_text(folder / f"lower/{channel}.html", text)
    text = templates.get_template("index.html").render(root="", rows=rows, alive=set(parts), parts=parts, thumbs=thumbs)
    for asset in ("explorer/explorer.js", "explorer/explorer.css", "atlas/atlas.js", "atlas/atlas.css"):
        write_text(folder / Path(asset).name, (STATIC / asset).read_text(encoding="utf-8"))
    write_text(folder / "index.html", text)


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
        "said": made.embedder.name if made.embedder else "",
        "unsteady": study.unsteady,
    }
    return pages
