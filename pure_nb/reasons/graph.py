"""Circuits through several layers: virtual neurons as nodes, the relevance that flows from part to part as edges."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pure_nb._imports import needed
from pure_nb.compute.store import Arrays, Store, write_atomically, write_text
from pure_nb.errors import ArgumentError
from pure_nb.methods.statistics import correlation
from pure_nb.parameters import NEAREST
from pure_nb.reasons.class_parts import class_images, in_blocks, traced_key
from pure_nb.reasons.explaining import LOST, NONE, OTHER, REST
from pure_nb.reasons.looking import spread
from pure_nb.reasons.parts import UNLIKE, Parts
from pure_nb.reasons.together import rank
from pure_nb.reasons.tracing import Start, Trace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pure_nb.study import Study

FEW = 128
"""Channels up to which a layer is taken apart as a whole, which is kept; of larger ones each channel by need."""

Node = tuple[int, int, int]
"""Number of the layer from the uppermost, 0; a channel; and a part of it, -1 for none."""


@dataclass(frozen=True, eq=False)
class Traced:
    """What the images of an output are made of at several layers.

    Attributes
    ----------
    value
        float64 ``[images]``: the output.
    layers
        Of each layer the relevance of all its channels, float64 ``[images]``; the channels that carry most, the part of
        each and its relevance, ``[images, K]``; and what flows from each down to those of the next layer and to all its
        others together, ``[images, K, K' + 1]``.
    """

    value: NDArray[np.float64]
    layers: list[tuple[NDArray[Any], ...]]

    def some(self, rows: slice) -> Traced:
        """Of some of the images."""
        return Traced(self.value[rows], [tuple(own[rows] for own in layer) for layer in self.layers])


@dataclass(frozen=True, eq=False)
class Graph:
    """Parts of several layers and what flows between them: :meth:`pure_nb.study.Study.graph`.

    Attributes
    ----------
    layers
        Names of the layers, from the uppermost down.
    outputs
        Names of the outputs.
    keep
        The share of what flows that nodes, and then edges, are kept for.
    """

    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    keep: float
    _parts: tuple[Parts, ...]
    _traced: tuple[Traced, ...]

    @cached_property
    def _means(self) -> tuple[dict[Node, float], list[dict[Node, float]], dict[tuple[Node, Node], float]]:
        return _means(self._traced)

    @cached_property
    def nodes(self) -> pd.DataFrame:
        """The parts that carry most of each layer's relevance: ``layer``, ``channel``, ``part``, ``name``, ``share``.

        Shares are of the outputs' sizes, the mean over outputs. Of each layer the strongest parts are here that carry
        :attr:`keep` of the shares of all its parts, by size.
        """
        import pandas as pd  # late, see pure_nb._imports

        rows = []
        for place, name in enumerate(self.layers):
            own = {node: share for node, share in self._means[0].items() if node[0] == place and node[2] != UNLIKE}
            for node in _strongest(own, self.keep):
                label, said = self._parts[place].label(*node[1:]), self._parts[place].name(*node[1:])
                rows.append((name, *node[1:], label, said, own[node]))
        return pd.DataFrame(rows, columns=["layer", "channel", "number", "part", "name", "share"])

    @cached_property
    def edges(self) -> pd.DataFrame:
        """What flows between the nodes: ``from_layer``, ``from``, ``to_layer``, ``to``, ``share``.

        From an output, whose layer is "", to the uppermost layer, and from there on. Of two layers the
        strongest edges between nodes are here that carry :attr:`keep` of all between these, by size.
        """
        import pandas as pd  # late, see pure_nb._imports

        label = {
            (self.layers.index(layer), channel, number): (layer, part)
            for layer, channel, number, part in self.nodes[["layer", "channel", "number", "part"]].itertuples(
                index=False
            )
        }
        every: dict[str, dict[Any, float]] = {layer: {} for layer in ("", *self.layers)}
        for name, own in zip(self.outputs, self._means[1]):
            every[""] |= {(("", name), label[node]): share for node, share in own.items() if node in label}
        for (one, other), share in self._means[2].items():
            if one in label and other in label:
                every[label[one][0]][label[one], label[other]] = share
        pairs = [(pair, own[pair]) for own in every.values() for pair in _strongest(own, self.keep)]
        rows = [(*one, *other, share) for (one, other), share in pairs]
        return pd.DataFrame(rows, columns=["from_layer", "from", "to_layer", "to", "share"])

    @cached_property
    def left_out(self) -> pd.DataFrame:
        """What is not in the graph, of each layer: a row with the share of its nodes, ``shown``, and of all else.

        The columns are those of :attr:`pure_nb.reasons.explaining.Explanation.table`: parts that were pruned, channels
        that are unlike any part, channels that were not taken apart, and what is not relevance of the layer. A row
        adds up to 1 (or to -1); ``edges`` is the part that edges show of what flows, by size, from the channels that
        were taken apart to those of the next layer that were; what flows to its other channels is not counted.
        """
        import pandas as pd  # late, see pure_nb._imports

        rows = []
        for place, name in enumerate(self.layers):
            own = {node: share for node, share in self._means[0].items() if node[0] == place}
            shown = self.nodes.loc[self.nodes["layer"] == name, "share"].sum()
            unlike = sum(share for node, share in own.items() if node[2] == UNLIKE)
            total = np.mean([one.layers[place][0].sum() / abs(one.value.sum()) for one in self._traced])
            whole = np.mean([np.sign(one.value.sum()) for one in self._traced])
            down = [abs(share) for (upper, _), share in self._means[2].items() if upper[0] == place]
            edges = self.edges.loc[self.edges["from_layer"] == name, "share"].abs().sum()
            told = {"layer": name, "shown": shown, OTHER: sum(own.values()) - unlike - shown, NONE: unlike}
            told |= {REST: total - sum(own.values()), LOST: whole - total}
            rows.append(told | {"edges": edges / sum(down) if down else np.nan})
        return pd.DataFrame(rows)

    def study_of(self, layer: str) -> Study:
        """The study whose virtual neurons the nodes of a layer are."""
        return self._parts[self.layers.index(layer)].study

    def only(self, output: str) -> Graph:
        """The same of one of the outputs."""
        return replace(self, outputs=(output,), _traced=(self._traced[self.outputs.index(output)],))

    @property
    def agreement(self) -> float:
        """Pearson correlation of what flows along all edges in every second image with the same in the others."""
        one, other = (_means([own.some(slice(first, None, 2)) for own in self._traced]) for first in (0, 1))
        edges = sorted({*one[2], *other[2]})
        return correlation([one[2].get(e, 0) for e in edges], [other[2].get(e, 0) for e in edges], "pearson")

    @cached_property
    def network(self) -> Any:
        """A ``networkx.DiGraph``: nodes such as ``"layer4/22.B"``, with ``layer``, ``part``, ``name`` and ``share``."""
        made = _networkx().DiGraph(outputs=", ".join(self.outputs), layers=", ".join(self.layers), keep=self.keep)
        for name in self.outputs:
            made.add_node(f"/{name}", layer="", part=name, name=name, share=1.0)
        for node in self.nodes.to_dict("records"):
            own = {key: node[key] for key in ("layer", "part", "name", "share")}
            made.add_node(f"{node['layer']}/{node['part']}", **own)
        for edge in self.edges.to_dict("records"):
            ends = f"{edge['from_layer']}/{edge['from']}", f"{edge['to_layer']}/{edge['to']}"
            made.add_edge(*ends, share=edge["share"])
        return made

    def laid_out(self) -> dict[str, tuple[float, float]]:
        """Where nodes are, x and y, by networkx: outputs left, a column for each layer, the strongest above."""
        layers = self.network.nodes(data="layer")
        columns = [[key for key, layer in layers if layer == name][::-1] for name in ("", *self.layers)]
        found = _networkx().multipartite_layout(self.network, dict(enumerate(filter(None, columns))))
        return {key: (float(x), float(y)) for key, (x, y) in found.items()}

    def write(self, path: Path | str) -> Path:
        """Write it as ``.html``, to look at; ``.graphml``, for programs such as Gephi; or ``.json``, node-link data."""
        place, library = Path(path), _networkx()
        if place.suffix == ".graphml":
            write_atomically(place, lambda temporary: library.write_graphml(self.network, temporary))
        elif place.suffix == ".json":
            write_text(place, json.dumps(library.node_link_data(self.network, edges="edges"), indent=1))
        elif place.suffix == ".html":
            from pure_nb.reasons.graph_page import whole_page  # late: it needs an extra

            write_text(place, whole_page(self))
        else:
            raise ArgumentError(f"a graph is written to a .html, .graphml or .json file, got {str(path)!r}")
        return place

    def figure(self) -> Figure:
        """The layers side by side, the outputs left, with what flows between their parts."""
        from pure_nb.figures.reason_plots import graph_figure  # late, as in pure_nb.neuron

        return graph_figure(self)

    def __repr__(self) -> str:
        return f"<Graph of {', '.join(self.outputs)}: {len(self.nodes)} parts, {len(self.edges)} edges>"


def graph(
    study: Study,
    outputs: str | int | Sequence[str | int],
    layers: Sequence[str],
    *,
    images: int = 64,
    channels: int = 16,
    keep: float = 0.8,
) -> Graph:
    """The circuits of outputs through several layers, over their labelled images; traces are kept in the study's store.

    Each layer is a study of its own, of the layer and the next one, of which only those channels are taken apart that
    carry the outputs. An edge is the relevance of the output that reaches a part by way of the part above it.

    Parameters
    ----------
    study
        Whose images have labels.
    outputs
        Names or numbers of outputs.
    layers
        Two or more, from the uppermost down. The last is taken apart by the layer right below it.
    images
        How many of each output, evenly spread.
    channels
        How many of each layer are taken apart in each image, those that carry most.
    keep
        How much of what flows nodes and edges are kept for, 0..1; what was pruned is told in :attr:`Graph.left_out`.

    Raises
    ------
    ArgumentError
        If there are fewer than two layers, or no such output.
    StudyError
        If the images have no labels, an output has no images, or a layer has no parts.
    LayerError
        If one layer does not feed the one before it.
    """
    if len(layers) < 2 or len(set(layers)) < len(layers):
        raise ArgumentError(f"a graph has two layers or more, from the uppermost down, got {list(layers)}")
    if not 0 < keep <= 1:
        raise ArgumentError(f"keep is a share above 0 and at most 1, got {keep}")
    asked = [outputs] if isinstance(outputs, (str, int)) else list(outputs)
    found = [class_images(study, one) for one in asked]
    studies = layer_studies(study, layers)
    rank(studies)
    for one in studies:
        if one.shapes[0].channels <= FEW:
            one.virtual  # noqa: B018
    parts = tuple(map(Parts, studies))
    traced = []
    for number, _, sample in found:
        traced.append(_traced(study, parts, number, spread(sample, images), channels))
    return Graph(tuple(layers), tuple(name for _, name, _ in found), keep, parts, tuple(traced))


def _networkx() -> Any:
    """The library, which takes its time to import."""
    with needed("show", "graphs need"):
        import networkx
    return networkx


def layer_studies(study: Study, layers: Sequence[str]) -> list[Study]:
    """A study of each layer and the next one, and of the last and the layer right below it."""
    p = study.parameters
    last = p.lower if layers[-1] == p.target else NEAREST
    quiet = replace(study.run, progress=False)
    return [study.replace(target=one, lower=below, run=quiet) for one, below in zip(layers, [*layers[1:], last])]


def _traced(study: Study, parts: Sequence[Parts], number: int, sample: NDArray[np.int64], channels: int) -> Traced:
    """Images of an output, traced through all layers."""
    widths = [min(channels, one.study.shapes[0].channels) for one in parts]
    images, start = study.classes.labelled, Start(number)
    key = traced_key("graph", parts, images, sample, start) | {"channels": channels}

    def compute(blocks: Store | None) -> tuple[Arrays, None]:
        return {"rows": in_blocks(study, images, sample, list(parts), start, channels, _packed, blocks)}, None

    return _unpacked(study.results.arrays("graph", key, compute)[0]["rows"], widths)


def _packed(trace: Trace) -> NDArray[np.float64]:
    """What is kept of each image, in a row."""
    rows: list[NDArray[Any]] = [trace.value[:, None]]
    for one in trace.layers:
        rows += [one.total[:, None], one.channel, one.part, one.relevance, one.down.reshape(len(one.down), -1)]
    return np.concatenate(rows, axis=1)


def _unpacked(rows: NDArray[np.float64], widths: Sequence[int]) -> Traced:
    """The inverse of :func:`_packed`."""
    layers: list[tuple[NDArray[Any], ...]] = []
    at = 1

    def take(count: int) -> NDArray[np.float64]:
        nonlocal at
        at += count
        return rows[:, at - count : at]

    for width, below in zip(widths, [*(width + 1 for width in widths[1:]), 0]):
        total, channel, part, relevance = take(1)[:, 0], take(width), take(width), take(width)
        down = take(width * below).reshape(len(rows), width, below)
        layers.append((total, channel.astype(np.int64), part.astype(np.int64), relevance, down))
    return Traced(rows[:, 0], layers)


def _means(
    traced: Sequence[Traced],
) -> tuple[dict[Node, float], list[dict[Node, float]], dict[tuple[Node, Node], float]]:
    """Shares of nodes, the mean over outputs; of the uppermost, output by output; and of what flows between nodes."""
    nodes: defaultdict[Node, float] = defaultdict(float)
    edges: defaultdict[tuple[Node, Node], float] = defaultdict(float)
    first: list[dict[Node, float]] = []
    for one in traced:
        weight = 1 / abs(one.value.sum()) / len(traced)
        top: defaultdict[Node, float] = defaultdict(float)
        for row in range(len(one.value)):
            own = [
                [(place, int(channel), int(part)) for channel, part in zip(layer[1][row], layer[2][row])]
                for place, layer in enumerate(one.layers)
            ]
            for place, layer in enumerate(one.layers):
                for node, relevance in zip(own[place], layer[3][row]):
                    nodes[node] += weight * relevance
                    if place == 0:
                        top[node] += weight * len(traced) * relevance
                for upper, flows in zip(own[place], layer[4][row]):
                    for lower, flow in zip(own[place + 1] if place + 1 < len(own) else [], flows):
                        edges[upper, lower] += weight * flow
        first.append(dict(top))
    return dict(nodes), first, dict(edges)


def _strongest(shares: dict[Any, float], keep: float) -> list[Any]:
    """The keys of the largest shares by size, as few as carry a part of all, the largest first."""
    order = sorted(shares, key=lambda key: -abs(shares[key]))
    size = np.abs([shares[key] for key in order])
    before = np.concatenate([[0], np.cumsum(size)[:-1]]) if len(size) else size
    return [key for key, less in zip(order, before) if less < keep * size.sum() * (1 - 1e-9)]
