"""The pages of an atlas: its index, one for each neuron, one for each lower channel that carries some, one for two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pure_nb._imports import needed
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import write_text
from pure_nb.figures.colours import part_colour
from pure_nb.show.beneath import draw_own_parts, own_parts
from pure_nb.show.facts import Atlas, Part
from pure_nb.show.index import index_script
from pure_nb.show.map import write_map
from pure_nb.show.matrix import compact, told
from pure_nb.show.outputs import Outputs, write_outputs
from pure_nb.show.passing import passed_through
from pure_nb.show.pictures import Strip, draw_lower, strips

with needed("show", "an atlas needs"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

STATIC = Path(__file__).with_name("static")
"""The templates, styles and scripts of the pages."""

ASSETS = (
    "explorer/explorer.js",
    "explorer/explorer.css",
    *(f"atlas/{name}.{kind}" for name in ("atlas", "neuron", "parts") for kind in ("js", "css")),
    "atlas/compare.js",
    "atlas/map.js",
)
"""Styles and scripts that go into the folder of a site."""


class User(NamedTuple):
    """A neuron that a lower channel carries, and the part of it, "all" or "B", of which it carries most."""

    channel: int
    part: str
    share: float


Users = dict[int, list[User]]
"""The users of each lower channel, the largest share first."""


def write_pages(
    made: Atlas,
    folder: Path,
    channels: Sequence[int],
    home: str,
    above: Atlas | None = None,
    users: Users | None = None,
) -> Users:
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
    above, users
        The atlas of the layer above in a site of several, and which neurons of it these neurons carry.

    Returns
    -------
    dict
        Which neurons the lower channels carry.
    """
    study = made.study
    outputs = Outputs(made) if made.outputs and above is None else None  # first: a graph finds what lower pages show
    templates = templates_of(made, home, above)
    templates.globals["outputs"] = bool(outputs)
    templates.globals["credits"] = credits = _credits(made, channels)
    table = study.neurons[study.neurons["channel"].isin(channels)]
    rows = {int(row["channel"]): row for row in table.to_dict("records")}
    alive = [channel for channel in rows if study.references.alive[channel]]
    parts = passed_through(made, {channel: made.parts(channel) for channel in alive})
    used = _carried(parts)
    thumbs, lower = strips(made, folder), made.under
    if lower:  # in a site of several layers lower channels have pages, and pictures, of their own
        beside = strips(lower, folder.parent / lower.place)
        pictured = {channel: beside[channel].beside(lower.place) for channel in used if channel in beside}
    else:
        pictured = draw_lower(made, folder, sorted(used))
    over = strips(above, folder.parent / above.place) if above else {}
    carrying = {channel: strip.beside(above.place) for channel, strip in over.items()} if above else {}
    templates.globals |= {"alive": alive, "pictured": pictured, "thumbs": thumbs, "carrying": carrying}
    alike = write_map(made, folder, channels, templates)
    order, known = list(rows), not made.without_classes
    neuron, circuits = templates.get_template("neuron.html"), []
    for place, channel in enumerate(progress_bar(order, "pages", unit="page", shown=study.run.progress)):
        whole, share = study.virtual_of(channel), ""
        if channel in parts:
            means = made.circuits(channel)
            share = told(means, whole.sizes)
            circuits.append(f"{channel}:{json.dumps(compact(means, whole.sizes), separators=(',', ':'))}")
        text = neuron.render(
            root="",
            channel=channel,
            row=rows[channel],
            whole=whole,
            parts=parts.get(channel, []),
            told=share,
            before=order[place - 1] if place else None,
            after=order[place + 1] if place + 1 < len(order) else None,
            users=(users or {}).get(channel, []),
            without_classes=made.without_classes,
            classes=made.classes(channel) if known else [],
            pairs=made.pairs(channel) if known else [],
            alike=alike.get(channel, {}),
            carries=outputs.carried(channel) if outputs else {},
        )
        write_text(folder / f"{channel}.html", text)
    write_text(folder / "circuits.js", "pureNb.circuits = {\n" + ",\n".join(circuits) + "\n};\n")
    below: dict[int, Sequence[Strip]] = {}
    if not made.under:
        drawn_parts = draw_own_parts(made, folder, sorted(used))
        for channel, own in used.items():
            parts_below = own_parts(made, channel)
            text = templates.get_template("lower.html").render(
                root="../", channel=channel, users=own, own=parts_below, strips=drawn_parts.get(channel, [])
            )
            write_text(folder / f"lower/{channel}.html", text)
            below[channel] = drawn_parts.get(channel, [pictured[channel]] if channel in pictured else [])
    if outputs:
        write_outputs(outputs, folder, channels, below, templates)
    if len(alive) > 1:
        write_text(folder / "compare.html", templates.get_template("compare.html").render(root=""))
    if credits:
        write_text(folder / "credits.html", templates.get_template("credits.html").render(root=""))
    write_index(made, folder, rows, parts, thumbs, templates)
    return used


def write_index(
    made: Atlas,
    folder: Path,
    rows: Mapping[int, Mapping[Any, Any]],
    parts: Mapping[int, Sequence[Part]],
    thumbs: Mapping[int, Strip],
    templates: Environment,
) -> None:
    """Write the page with all neurons, and what pages have in common; the index last, as it says that all is there.

    Parameters
    ----------
    made, folder
        As for :func:`write_pages`.
    rows, parts, thumbs
        As for :func:`pure_nb.show.index.index_script`.
    templates
        Of the atlas's pages.
    """
    write_text(folder / "data/index.js", index_script(made, rows, parts, thumbs))
    write_assets(folder)
    write_text(folder / "index.html", templates.get_template("index.html").render(root="", rows=rows, parts=parts))


def _credits(made: Atlas, channels: Sequence[int]) -> dict[str, list[int]]:
    """Whom pictures are by that ask for it to be shown, and the numbers of these images."""
    found: dict[str, list[int]] = {}
    for sample in np.unique(made.study.references.sample[list(channels), : made.count]).tolist():
        found.setdefault(made.study.images.credit(sample), []).append(sample)
    found.pop("", None)
    return dict(sorted(found.items()))


def write_start(every: Mapping[Atlas, Sequence[int] | None], folder: Path, home: str) -> None:
    """Write the page that leads to the layers of a site, the uppermost first, and the neurons of each, all for None."""
    templates = templates_of(next(iter(every)), home)
    layers = []
    for made, channels in every.items():
        table = made.study.neurons
        rows = (table if channels is None else table[table["channel"].isin(channels)]).to_dict("records")
        found = strips(made, folder / made.place)
        thumbs = {channel: at._replace(file=f"{made.place}/{at.file}") for channel, at in found.items()}
        layers.append((made, rows, thumbs))
    write_assets(folder)
    write_text(folder / "index.html", templates.get_template("start.html").render(root="", layers=layers))


def write_assets(folder: Path) -> None:
    """Write the styles and scripts that the pages of a folder share."""
    for name in ASSETS:
        write_text(folder / Path(name).name, (STATIC / name).read_text(encoding="utf-8"))


def carried(made: Atlas, channels: Sequence[int]) -> Users:
    """The lower channels that the pages of some neurons will name, and the users of each."""
    alive = made.study.references.alive
    return _carried({channel: made.parts(channel) for channel in channels if alive[channel]})


def _carried(parts: Mapping[int, Sequence[Part]]) -> Users:
    """For each lower channel that a page names: the neurons it carries and its share in each, the largest first."""
    found: dict[int, dict[int, User]] = {}
    for channel, every in parts.items():
        for part in every:
            for carrier in part.carriers:
                own = found.setdefault(carrier.channel, {})
                if channel not in own or abs(carrier.share) > abs(own[channel].share):
                    own[channel] = User(channel, part.name, carrier.share)
    order = sorted(found.items())
    return {lower: sorted(own.values(), key=lambda user: (-abs(user.share), user.channel)) for lower, own in order}


def templates_of(made: Atlas, home: str, above: Atlas | None = None) -> Environment:
    """The templates of an atlas's pages, with what they all tell."""
    loader = FileSystemLoader(STATIC / "atlas")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    study = made.study
    pages.globals |= {
        "study": f"{study.name} ({made.pair})" if made.pair else study.name,
        "network": type(study.model).__name__,
        "p": study.parameters,
        "channels": study.references.channels,
        "images": len(study.images),
        "source": study.images.name,
        "home": home,
        "below": f"../{made.under.place}/" if made.under else "lower/",  # where a lower channel's page is
        "lettered": made.below_split is not None,
        "top": "Both side by side" if made.pair else "All layers" if made.under or above else "",
        "above": above and (above.place, above.study.parameters.target),
        "part_colour": part_colour,
        "said": made.embedder.name if made.embedder else "",
        "unsteady": study.unsteady,
        "described": str(study.combined or ""),
        "credits": {},
        "outputs": False,
    }
    return pages
