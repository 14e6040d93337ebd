"""Figures of reasons: a picture explained by parts, a class by its parts, and circuits through several layers."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pure_nb._imports import needed
from pure_nb.figures.colours import AGAINST, FOR, REST
from pure_nb.figures.plots import TILE, image_grid, literal, show
from pure_nb.figures.render import resized

if TYPE_CHECKING:
    from pure_nb.reasons.class_parts import ClassParts
    from pure_nb.reasons.explaining import Explanation
    from pure_nb.reasons.graph import Graph
    from pure_nb.reasons.outliers import Outliers


@literal
def explanation_figure(found: Explanation) -> Figure:
    """A picture explained: shares of the parts and of the rest, where each part is, and references of its own.

    Parameters
    ----------
    found
        From :meth:`pure_nb.study.Study.explain`.
    """
    rows, count = found.table, len(found.shown)
    figure = plt.figure(figsize=(7.4, 1.6 + 0.95 * max(count, 2) + 0.3 * (len(rows) - count)), layout="constrained")
    both: Any = figure.subfigures(2, 1, height_ratios=[0.9 * max(count, 2) + 0.5, 0.3 * (len(rows) - count) + 0.7])
    upper, lower = both
    grid = upper.add_gridspec(max(count, 1), 3, width_ratios=[2.7, 1, 4.1])
    for number, one in enumerate(found.shown):
        axes = upper.add_subplot(grid[number, 0])
        share = one.row["share"]
        axes.barh([0], [share], color=FOR if share >= 0 else AGAINST)
        axes.set_xlim(min(0, rows["share"].min()), max(0, rows["share"].max()))
        told = textwrap.shorten(f"{one.row['part']}  {one.row['name']}", 36, placeholder=" …")
        axes.set_title(f"{told}\n{share:+.1%}", fontsize=9, loc="left", pad=2)
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_axis_off()
        show(upper.add_subplot(grid[number, 1]), one.view.highlighted(TILE, crop=False))
        pictures = [resized(picture, TILE) for picture in one.references]
        show(upper.add_subplot(grid[number, 2]), image_grid(pictures, max(1, len(pictures))))
    left, right = lower.subplots(1, 2, gridspec_kw={"width_ratios": [1, 3.4]})
    show(left, found.pixels)
    rest = rows[rows["part"] == ""][::-1]
    right.barh([f"{kind}: {name}" for kind, name in zip(rest["kind"], rest["name"])], rest["share"], color=REST)
    right.axvline(0, color="0.6", linewidth=0.8)
    right.tick_params(labelsize=9)
    right.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    right.spines[["top", "right", "left"]].set_visible(False)
    told = f"Why {found.title}"
    if "faithfulness" in vars(found):
        areas = found.faithfulness.areas.set_index(["ablation", "order"])["between"]["zero"]
        told += f"\narea between insertion and deletion: {areas['parts']:.0%} (random {areas['random channels']:.0%})"
    figure.suptitle(told, fontsize=11)
    return figure


@literal
def class_figure(found: ClassParts, count: int = 12) -> Figure:
    """The parts that carry a class, with 95 % intervals over its images, and what is left; with references of each.

    Parameters
    ----------
    found
        From :meth:`pure_nb.classes.Classes.parts`.
    count
        How many parts.
    """
    table = found.table
    parts = table[table["part"] != ""].head(count)
    rows = [*parts.to_dict("records"), *table[table["part"] == ""].to_dict("records")]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(7.4, 1.1 + 0.42 * len(rows)), layout="constrained", sharey=True, width_ratios=[3, 1.6]
    )
    for place, row in enumerate(rows):
        colour = REST if not row["part"] else FOR if row["share"] >= 0 else AGAINST
        left.barh(place, row["share"], color=colour)
        left.plot([row["low"], row["high"]], [place, place], color="0.2", linewidth=1.2)
    told = [
        textwrap.shorten(f"{row['part']}  {row['name']}".strip() or row["kind"], 34, placeholder=" …") for row in rows
    ]
    left.set_yticks(range(len(rows)), told, fontsize=9)
    left.invert_yaxis()
    left.axvline(0, color="0.6", linewidth=0.8)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.set_xlabel(f"share of the output, {len(found.sample)} images", fontsize=9)
    for place, pictures in enumerate(found.references(len(parts))):
        for number, picture in enumerate(pictures):
            right.imshow(
                resized(picture, TILE), extent=(number, number + 0.95, place + 0.46, place - 0.46), aspect="auto"
            )
    right.set(xlim=(0, 4), ylim=(len(rows) - 0.5, -0.5))
    right.axis("off")
    left.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"What carries {found.name}", fontsize=11)
    return figure


@literal
def outliers_figure(found: Outliers) -> Figure:
    """Outliers, each with the parts by which it differs: their shares, where they are, and references of their own.

    Parameters
    ----------
    found
        From :meth:`pure_nb.classes.Classes.outliers`.
    """
    rows = [(one.name, image) for one, _, images in found.shown for image in images]
    figure = plt.figure(figsize=(7.4, 0.3 + 2.4 * len(rows)), layout="constrained")
    panels: Any = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for panel, (name, image) in zip(panels, rows):
        grid = panel.add_gridspec(max(1, len(image.odd)), 4, width_ratios=[2.6, 2.7, 1, 4])
        whole = panel.add_subplot(grid[:, 0])
        show(whole, image.pixels)
        title = (
            f"{name}: image {image.row['sample']}\nunusual {image.row['unusual']:.2g}, usually {image.row['usual']:.2g}"
        )
        whole.set_title(title, fontsize=9, loc="left")
        ends = [share for part in image.odd for share in (part.share, part.usual, 0)]
        for number, part in enumerate(image.odd):
            axes = panel.add_subplot(grid[number, 1])
            axes.barh([1], [part.share], color=FOR if part.share >= 0 else AGAINST)
            axes.barh([0], [part.usual], 0.4, color=REST)
            axes.set_xlim(min(ends), max(ends))
            told = textwrap.shorten(f"{part.part}  {part.name}", 26, placeholder=" …")
            usual = round(part.usual, 2) + 0.0  # and not "-0%"
            axes.set_title(f"{told}\n{part.share:+.0%}, usually {usual:+.0%}", fontsize=9, loc="left", pad=1)
            axes.set_axis_off()
            show(panel.add_subplot(grid[number, 2]), part.view.highlighted(TILE, crop=False))
            pictures = [resized(picture, TILE) for picture in part.references]
            show(panel.add_subplot(grid[number, 3]), image_grid(pictures, max(1, len(pictures))))
    return figure


@literal
def graph_figure(found: Graph) -> Figure:
    """Parts of several layers and what flows between them, laid out by networkx: the outputs left, layers in columns.

    Parameters
    ----------
    found
        From :meth:`pure_nb.study.Study.graph`.
    """
    with needed("show", "graphs need"):
        import networkx

    network, order, places = found.network, ["", *found.layers], found.laid_out()
    columns = {key: order.index(layer) for key, layer in network.nodes(data="layer")}
    most = max(Counter(columns.values()).values())
    figure, axes = plt.subplots(figsize=(min(7.4, 2.6 * len(order)), 1.2 + 0.62 * most), layout="constrained")
    sizes = [60 + 1200 * min(1, abs(node["share"])) for _, node in network.nodes(data=True)]
    signs = [FOR if node["share"] >= 0 else AGAINST for _, node in network.nodes(data=True)]
    shares = [share for _, _, share in network.edges(data="share")]
    widths = [0.4 + 5 * abs(share) / max(map(abs, shares), default=1) for share in shares]
    how = {"edge_color": [FOR if share >= 0 else AGAINST for share in shares], "width": widths, "alpha": 0.5}
    networkx.draw_networkx_edges(network, places, ax=axes, arrows=False, **how)
    networkx.draw_networkx_nodes(network, places, ax=axes, node_size=sizes, node_color=signs)
    for (key, node), size in zip(network.nodes(data=True), sizes):
        told = node["part"] if node["name"] == node["part"] else f"{node['part']} {node['name']}"
        told = f"{textwrap.shorten(told, 18, placeholder=' …')} {node['share']:+.0%}"
        above = (0, 4 + size**0.5 / 2)  # the size of a dot is the square of its diameter
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}  # lines pass behind it
        axes.annotate(told, places[key], above, textcoords="offset points", ha="center", fontsize=9, bbox=box)
    for column, name in enumerate(order[1:], 1):
        own = [place[0] for key, place in places.items() if columns[key] == column]
        axes.text(own[0] if own else 0, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
    axes.margins(0.15, 0.08)
    axes.axis("off")
    figure.suptitle(f"What carries {', '.join(found.outputs)}", fontsize=11)
    return figure
