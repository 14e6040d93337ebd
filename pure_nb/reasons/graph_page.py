"""A graph as HTML: its nodes are links, and what flows to and from one stands out when it is pointed at or focused."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pure_nb.reasons.explaining import part_references
from pure_nb.reasons.page import TILE, environment, percent, uri

if TYPE_CHECKING:
    from pure_nb.reasons.graph import Graph

ACROSS, DOWN, WIDE, HIGH = 232, 76, 168, 62
"""Pixels from column to column and from row to row, and the size of a node."""

THICK = 9
"""Pixels of the thickest edge."""

Node = dict[Any, Any]
"""A row of :attr:`pure_nb.reasons.graph.Graph.nodes`; of an output the ``layer`` is ""."""


def whole_page(found: Graph) -> str:
    """A graph as a page of its own, in which a node leads to pictures of its part, further down."""
    references = {}
    for node in found.nodes.to_dict("records"):
        study = found.study_of(node["layer"])
        every = part_references(study, node["channel"], node["number"])
        references[_anchor(node)] = [uri(picture, TILE // 2) for picture in every]

    def picture(node: Node) -> str:
        side = HIGH - 14
        return f'<img src="{references[_anchor(node)][0]}" width="{side}" height="{side}" alt="">'

    inner = section(
        found, lambda node: f"#{_anchor(node)}", lambda node: picture(node) if references[_anchor(node)] else ""
    )
    how = {"graph": inner, "references": references, "nodes": found.nodes.to_dict("records"), "anchor": _anchor}
    title = f"What carries {', '.join(found.outputs)}?"
    return environment().get_template("page.html").render(inner="graph_page.html", title=title, found=found, **how)


def section(found: Graph, link: Callable[[Node], str], picture: Callable[[Node], str]) -> str:
    """A graph as a part of a page, with its own style and script.

    Parameters
    ----------
    found
        The graph.
    link, picture
        From a node that is a part to where it leads, and to its picture as HTML; "" is none.
    """
    nodes, edges = laid_out(found)
    for node in nodes:
        node |= {"link": link(node), "picture": picture(node)} if node["layer"] else {"link": "", "picture": ""}
    size = [max(node[side] for node in nodes) + own for side, own in (("left", WIDE), ("top", HIGH))]
    told = found.left_out.set_index("layer")
    kinds = [column for column in told if column not in ("shown", "edges")]
    how = {"kinds": kinds, "left_out": told.to_dict("index"), "size": size, "across": ACROSS, "node": (WIDE, HIGH)}
    return environment().get_template("graph.html").render(found=found, nodes=nodes, edges=edges, **how)


def laid_out(found: Graph) -> tuple[list[Node], list[dict[str, Any]]]:
    """Nodes and edges, with where they are in pixels, by networkx: outputs left, and a column for each layer.

    Returns
    -------
    tuple
        Of each node also ``left`` and ``top``, and ``told``, what flows to and from it in words; of each edge its
        ``ends``, numbers of nodes, its ``share``, and ``path`` and ``thick``, how it is drawn.
    """
    network, columns, places = found.network, ["", *found.layers], found.laid_out()
    highest = max(y for _, y in places.values())
    step = min((high - low for (_, low), (_, high) in pairwise(sorted(places.values())) if high > low), default=1.0)
    own = found.nodes.assign(key=found.nodes["layer"] + "/" + found.nodes["part"]).set_index("key").to_dict("index")
    nodes, number = [], {key: place for place, key in enumerate(network.nodes)}
    for key, node in network.nodes(data=True):
        left, top = ACROSS * columns.index(node["layer"]), round(DOWN * (highest - places[key][1]) / step)
        nodes.append(own.get(key, {}) | node | {"left": left, "top": top, "told": ""})
    most = max((abs(share) for _, _, share in network.edges(data="share")), default=1)
    edges = []
    for one, other, share in network.edges(data="share"):
        ends = number[one], number[other]
        (x, y), (right, low) = ((nodes[end]["left"], nodes[end]["top"] + HIGH // 2) for end in ends)
        middle = (x + WIDE + right) // 2
        path = f"M{x + WIDE} {y}C{middle} {y} {middle} {low} {right} {low}"
        edges.append({"ends": ends, "share": share, "path": path, "thick": max(1, round(THICK * abs(share) / most, 1))})
    for place, node in enumerate(nodes):
        for side, word in ((1, "from"), (0, "to")):
            flows = [(nodes[edge["ends"][1 - side]], edge["share"]) for edge in edges if edge["ends"][side] == place]
            if flows:
                node["told"] += f"; {word} " + ", ".join(f"{end['part']} {percent(share)}" for end, share in flows)
        node["short"] = textwrap.shorten(node["name"], 30, placeholder=" …")
    return nodes, edges


def _anchor(node: Node) -> str:
    """What a node's pictures are found by in the page."""
    return f"{node['layer']}-{node['part']}"
