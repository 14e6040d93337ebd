"""The pages of a network's outputs in an atlas: which parts carry each over its images, and what is unusual among them.

They cost what :meth:`pure_nb.classes.Classes.parts` does, a backward pass for each image of a class and each channel
that carries it, and with graphs one for each layer; so they are written for those outputs that are asked for.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import write_text
from pure_nb.figures.render import Picture, resized
from pure_nb.reasons.class_parts import ClassParts, class_images
from pure_nb.reasons.graph import Graph
from pure_nb.show.facts import Atlas, digest
from pure_nb.show.map import part_strips
from pure_nb.show.pictures import STRIP, STRIPS, THUMB, Strip, draw_each, strip_of
from pure_nb.show.sheets import Sheets

if TYPE_CHECKING:
    from jinja2 import Environment

    from pure_nb.study import Study

SHOWN, OTHERS = 12, 8
"""Parts of an output that its page shows, and other outputs that share some of them."""

LEAST = 0.02
"""Of two outputs' shares of a part the smaller one, from which on they are said to share it."""

MOST = 100
"""Numbers that a channel's parts may have on the sheets."""


Pair = tuple[int, int]
"""A channel, and the number of a part of it."""


class Carried(NamedTuple):
    """An output that a part speaks for."""

    number: int
    name: str
    share: float


class Likeness(NamedTuple):
    """Another output, what of it and of this one the same parts carry at least, and these parts."""

    number: int
    name: str
    share: float
    parts: list[str]


class Outputs:
    """The outputs that an atlas has pages of.

    Attributes
    ----------
    parts
        By number of the output, what carries it.
    graphs
        Its graph through the layers of the site, or through the atlas's layer and the lower one; empty if not wanted.
    """

    def __init__(self, made: Atlas) -> None:
        study, self.made = made.study, made
        every = progress_bar(made.outputs, "outputs", unit="output", shown=study.run.progress)
        self.parts: dict[int, ClassParts] = {number: study.classes.parts(number) for number in every}
        self.graphs: dict[int, Graph] = {}
        if made.graph and made.outputs:
            found = study.graph(list(made.outputs), layers_of(made))
            self.graphs = {number: found.only(own.name) for number, own in self.parts.items()}
        self.rows = {number: own.strongest(SHOWN) for number, own in self.parts.items()}
        self._speak = {number: self._for(number) for number in self.parts}

    def carried(self, channel: int) -> dict[str, list[Carried]]:
        """The outputs that each part of a neuron speaks for, "" if it is whole, those it carries most of first."""
        found: dict[str, list[Carried]] = {}
        for number, rows in self.rows.items():
            for row in rows:
                if row["channel"] == channel and row["share"] > 0:
                    own = Carried(number, self.parts[number].name, row["share"])
                    found.setdefault(letter(row), []).append(own)
        return {part: sorted(own, key=lambda one: -one.share) for part, own in sorted(found.items())}

    def alike(self, number: int) -> list[Likeness]:
        """Other outputs that share most with one."""
        own = self._speak[number]
        found = []
        for other in self.parts:
            shares = self._speak[other]
            both = {part: min(share, shares[part]) for part, share in own.items() if part in shares}
            parts = sorted((part for part in both if both[part] >= LEAST), key=lambda part: -both[part])
            if other != number and parts:
                found.append(Likeness(other, self.parts[other].name, sum(both.values()), parts[:3]))
        return sorted(found, key=lambda one: -one.share)[:OTHERS]

    def _for(self, number: int) -> dict[str, float]:
        """The parts that speak for an output, with their shares."""
        table = self.parts[number].table
        some = table[(table["part"] != "") & (table["share"] > 0)]
        return dict(zip(some["part"], some["share"]))


def letter(row: Mapping[str, Any]) -> str:
    """The letter of a part, by its row; "" of a neuron that is left whole."""
    return str(row["part"]).partition(".")[2]


def layers_of(made: Atlas) -> list[str]:
    """The layers of a site, the uppermost first; of an atlas of one layer also the lower one."""
    names, one = [made.study.parameters.target], made.under
    while one is not None:
        names.append(one.study.parameters.target)
        one = one.under
    return names if len(names) > 1 else [*names, made.study.parameters.lower]


def asked(study: Study, outputs: Sequence[str | int] | str) -> tuple[int, ...]:
    """The numbers of the outputs that pages are wanted of: of all that have images for "all"."""
    if outputs == "all" and not study.classes.without_labels:
        labels = study.classes._labels[0]
        return tuple(np.unique(labels[labels >= 0]).tolist())
    return tuple(class_images(study, one)[0] for one in ([outputs] if isinstance(outputs, str) else outputs))


class _Place(NamedTuple):
    """Where the pages of a layer are, seen from those of outputs; the channels that have one, and strips of parts."""

    root: str
    channels: Container[int]
    strips: dict[Pair, Strip]


def write_outputs(
    found: Outputs,
    folder: Path,
    channels: Sequence[int],
    lower: Mapping[int, Sequence[Strip]],
    templates: Environment,
) -> None:
    """Write a page for each output, and one that leads to them.

    Parameters
    ----------
    found
        What they tell.
    folder, channels
        The atlas's, and which neurons have a page there.
    lower
        In an atlas of one layer, the lower channels that have a page, and strips of the parts of each.
    templates
        Of the atlas's pages.
    """
    places = _places(found, folder, channels, lower)
    strips = places[found.made.study.parameters.target].strips
    seen = _unusual(found, folder)
    order, page = list(found.parts), templates.get_template("output.html")
    for place, number in enumerate(order):
        own = found.parts[number]
        graph = found.graphs.get(number)
        text = page.render(
            root="../",
            number=number,
            own=own,
            rows=[row | {"letter": letter(row)} for row in found.rows[number]],
            rest=own.table[own.table["part"] == ""].to_dict("records"),
            more=int((own.table["part"] != "").sum()) - len(found.rows[number]),
            right=float((own.answer == number).mean()),
            strips=strips,
            there=set(channels),
            alike=found.alike(number),
            unusual=own.images.head(STRIP).to_dict("records"),
            pictures=seen[number],
            credit=own.study.classes.labelled.credit,
            graph=graph and _graph(graph, places),
            before=order[place - 1] if place else None,
            after=order[place + 1] if place + 1 < len(order) else None,
            names={other: one.name for other, one in found.parts.items()},
        )
        write_text(folder / f"outputs/{number}.html", text)
    start = templates.get_template("outputs.html").render(root="../", outputs=found, strips=strips)
    write_text(folder / "outputs/index.html", start)


def _unusual(found: Outputs, folder: Path) -> dict[int, Strip]:
    """Write strips of the images of each output that other parts carry than its others."""
    labelled = found.made.study.classes.labelled
    samples = {number: own.images["sample"].head(STRIP).tolist() for number, own in found.parts.items()}
    sheets = Sheets(folder, "unusual", digest([labelled.fingerprint, samples]))
    added = sheets.add(list(samples), STRIPS)

    def tiles(number: int) -> list[Picture]:
        return [resized(labelled.picture(one), THUMB) for one in samples[number]]

    draw_each(sheets, added, tiles, "unusual images", found.made.study.run.progress)
    return {number: strip_of(sheets, number) for number in samples}


def _places(
    found: Outputs, folder: Path, channels: Sequence[int], lower: Mapping[int, Sequence[Strip]]
) -> dict[str, _Place]:
    """Where the pages of each layer are, with strips of all parts that pages of outputs show."""
    made, shown = found.made, {(row["channel"], row["number"]) for rows in found.rows.values() for row in rows}
    top = made.study.parameters.target
    own = {pair for pair in shown | _nodes(found, top) if pair[0] in channels}
    places = {top: _Place("../", set(channels), _strips(made, folder, own))}
    if made.under is None:
        pairs = {(channel, part): at for channel, every in lower.items() for part, at in enumerate(every)}
        places[made.study.parameters.lower] = _Place("../lower/", lower, pairs)
    one = made.under
    while one is not None:
        layer, beside = one.study.parameters.target, folder.parent / one.place
        own = {pair for pair in _nodes(found, layer) if (beside / f"data/{pair[0]}.js").is_file()}
        pairs = {pair: at.beside(one.place) for pair, at in _strips(one, beside, own).items()}
        places[layer] = _Place(f"../../{one.place}/", {channel for channel, _ in own}, pairs)
        one = one.under
    return places


def _nodes(found: Outputs, layer: str) -> set[Pair]:
    """The parts of a layer that some graph shows."""
    tables = [graph.nodes[graph.nodes["layer"] == layer] for graph in found.graphs.values()]
    return {pair for table in tables for pair in zip(table["channel"].tolist(), table["number"].tolist())}


def _strips(made: Atlas, folder: Path, pairs: set[Pair]) -> dict[Pair, Strip]:
    """Write strips of parts of an atlas's neurons; where they are."""
    alive = {MOST * pair[0] + pair[1]: pair for pair in sorted(pairs) if made.study.references.alive[pair[0]]}
    ranks = {number: (channel, made.study.neuron(channel).members(part)) for number, (channel, part) in alive.items()}
    return {alive[number]: at for number, at in part_strips(made, folder, "carrying", ranks).items()}


def _graph(graph: Graph, places: Mapping[str, _Place]) -> str:
    """The graph of an output, in which a node opens its part's page in the atlas, where it has one."""
    from pure_nb.reasons.graph_page import section  # late: it needs an extra

    def link(node: dict[Any, Any]) -> str:
        place, anchor = places[node["layer"]], f"#{letter(node)}" if letter(node) else ""
        return f"{place.root}{node['channel']}.html{anchor}" if node["channel"] in place.channels else ""

    def picture(node: dict[Any, Any]) -> str:
        at = places[node["layer"]].strips.get((node["channel"], node["number"]))
        if at is None:
            return ""
        style = f"object-position: 0 {at.at}%"
        return f'<img src="../{at.file}" style="{style}" width="48" height="48" loading="lazy" alt="">'

    return section(graph, link, picture)
