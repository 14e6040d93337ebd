"""Figures: reference images in rows, a neuron split into parts, circuits, and how well methods agree with the truth."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from pure_nb.compute.store import write_atomically
from pure_nb.figures.circuit_plane import circuit_plane
from pure_nb.figures.colours import AGAINST, FOUND, REST, SIGNED, part_colour, readable
from pure_nb.figures.render import Picture, View, resized
from pure_nb.methods.agreement import MantelResult
from pure_nb.methods.pairs import cosine
from pure_nb.methods.splitting import Split
from pure_nb.methods.virtual import part_name

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.neuron import Neuron
    from pure_nb.study import Study

TILE = 96
"""Side in pixels of a reference image in a figure."""

P = ParamSpec("P")


def literal(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate what draws a figure: names of layers, classes and parts stand in it as they are, and are no formulas."""
    plain: Any = dict.fromkeys(("text.parse_math", "text.usetex", "axes.formatter.use_mathtext"), False)

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        # No rc_context: it would undo that Jupyter's backend, which the first figure loads, shows figures by itself.
        before = {name: plt.rcParams[name] for name in plain}
        plt.rcParams.update(plain)  # texts remember under which settings they were made
        try:
            figure = draw(*args, **kwargs)
            figure.findobj()  # and those of ticks are made when first asked for
        finally:
            plt.rcParams.update(before)
        return figure

    return drawn


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file in one step, and close it: pyplot would keep it otherwise.

    Examples
    --------
    >>> save(study.neuron(3).plot(), folder / "neuron-3.png")
    """
    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))
    finally:
        plt.close(figure)


def image_grid(pictures: Sequence[Picture], columns: int, *, gap: int = 6) -> Picture:
    """Square pictures of one size, side by side in rows of ``columns``, on white.

    Examples
    --------
    >>> image_grid([draw_scene(number).image for number in range(6)], columns=3).shape
    (198, 300, 3)
    """
    size = pictures[0].shape[0] if pictures else TILE
    rows = max(1, -(-len(pictures) // columns))
    sheet = np.full((rows * (size + gap) - gap, columns * (size + gap) - gap, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (size + gap) * (number // columns), (size + gap) * (number % columns)
        sheet[top : top + size, left : left + size] = picture
    return sheet


def tiles(views: Sequence[View], *, crop: bool = True) -> list[Picture]:
    """The pictures of some views, all of one size: what the neuron looks at, the rest dimmed."""
    return [view.highlighted(TILE, crop=crop) for view in views]


@literal
def references_figure(neuron: Neuron, count: int = 24, columns: int = 8, *, whole: bool = False) -> Figure:
    """The strongest reference images of a neuron, cropped to where it looks.

    Parameters
    ----------
    neuron
        Of a study.
    count, columns
        How many, and how many in a row.
    whole
        Show the whole pictures, dimmed where the neuron does not look.
    """
    ranks = neuron.members(count=count)
    sheet = image_grid(tiles(neuron.views(ranks), crop=not whole), columns)
    figure, axes = plt.subplots(figsize=(7.4, 7.4 * sheet.shape[0] / sheet.shape[1] + 0.5), layout="constrained")
    show(axes, sheet)
    axes.set_title(f"{neuron.name}: the {len(ranks)} top-activating images, strongest first", fontsize=11)
    return figure


@literal
def neuron_figure(neuron: Neuron, count: int = 6) -> Figure:
    """A neuron split into parts (as figure 1 of the PURE paper): its circuits in the plane, and images of each part.

    Left, every reference image is a point, placed by UMAP so that similar circuits are near each other; colours are
    virtual neurons, contours the density of all. Right, the strongest images of the whole neuron, and of each part.

    Parameters
    ----------
    neuron
        Of a study.
    count
        Images in each row.

    Examples
    --------
    >>> figure = neuron_figure(study.neuron(3), count=4)
    """
    parts = neuron.virtual
    rows: list[int | None] = [None, *range(parts.k)] if parts.k > 1 else [None]
    ranks = [neuron.members(part, count) for part in rows]
    shown = np.unique(np.concatenate(ranks))
    pictures = dict(zip(shown.tolist(), tiles(neuron.views(shown))))
    height = max(3.2, 0.5 + 1.05 * len(rows))
    figure = plt.figure(figsize=(7.4, height), layout="constrained")
    grid = figure.add_gridspec(len(rows), 2, width_ratios=[2.8, 0.95 * count])
    circuit_plane(figure.add_subplot(grid[:, 0]), neuron, pictures)
    for number, (part, own) in enumerate(zip(rows, ranks)):
        axes = figure.add_subplot(grid[number, 1])
        show(axes, image_grid([pictures[rank] for rank in own.tolist()], count))
        colour = "black" if part is None else readable(part_colour(part))
        label = "all" if part is None else part_name(part)
        size = len(neuron.members(part))
        words = textwrap.shorten(f"{label} ({size} images) {neuron.meanings(part)}", 58, placeholder=" ...")
        axes.set_title(words, fontsize=9.5, loc="left", color=colour)
    how_many = "one meaning" if parts.k == 1 else f"{parts.k} virtual neurons"
    figure.suptitle(f"{neuron.name}: {how_many}", fontsize=13)
    return figure


@literal
def circuits_figure(neuron: Neuron, strongest: int = 12) -> Figure:
    """The circuits themselves: relevance of the lower channels, image by image, sorted by virtual neuron.

    Parameters
    ----------
    neuron
        Of a study.
    strongest
        How many lower channels to show; those with the largest mean absolute relevance.
    """
    import seaborn as sns  # late, see pure_nb._imports

    vectors, labels = neuron.vectors, neuron.virtual.labels
    chosen = np.sort(np.argsort(-np.abs(vectors).mean(axis=0), kind="stable")[:strongest])
    order = np.argsort(labels, kind="stable")[(labels < 0).sum() :]
    figure, axes = plt.subplots(figsize=(7.4, 4), layout="constrained")
    limit = float(np.abs(vectors[:, chosen]).max()) or 1.0
    lower = neuron.study.parameters.lower
    how: dict[str, Any] = {"vmin": -limit, "vmax": limit, "cmap": SIGNED, "cbar_kws": {"label": "share of relevance"}}
    sns.heatmap(vectors[order][:, chosen].T, ax=axes, xticklabels=False, yticklabels=[*map(str, chosen)], **how)
    start = 0
    for part, size in enumerate(neuron.virtual.sizes):
        colour = part_colour(part)
        axes.add_patch(Rectangle((start, -0.5), size, 0.5, color=colour, clip_on=False))
        axes.text(
            start + size / 2, -0.7, part_name(part), color=readable(colour), ha="center", va="bottom", fontsize=10
        )
        start += size
    axes.set_xlabel(f"reference images of {neuron.name}, by virtual neuron")
    axes.set_ylabel(f"channel of {lower}")
    axes.tick_params(axis="y", rotation=0)
    return figure


@literal
def agreement_figure(summary: pd.DataFrame, table: pd.DataFrame, measure: str = "ami") -> Figure:
    """How well each method agrees with the known objects: every neuron a dot, means with their 95 % intervals.

    Parameters
    ----------
    summary, table
        From :func:`pure_nb.methods.statistics.summary` and :func:`pure_nb.judges.truth.agreement`.
    measure
        ``"ami"`` or ``"ari"``.
    """
    import seaborn as sns  # late, see pure_nb._imports

    names = {"ami": "adjusted mutual information", "ari": "adjusted Rand index"}
    figure, axes = plt.subplots(figsize=(7.4, 0.6 + 0.48 * len(summary)), layout="constrained")
    order = summary["method"].tolist()
    sns.stripplot(data=table, x=measure, y="method", order=order, ax=axes, color=REST, size=4, jitter=0.2, alpha=0.7)
    for row, (_, entry) in enumerate(summary.iterrows()):
        axes.plot([entry["low"], entry["high"]], [row, row], color=FOUND, linewidth=3, zorder=3)
        axes.plot(entry["mean"], row, "o", color=FOUND, markersize=8, zorder=4)
        axes.annotate(
            f"{entry['mean']:.2f}", (entry["mean"], row), (0, 9), textcoords="offset points", ha="center", fontsize=9
        )
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.set(xlabel=f"agreement with the object under the maximum ({names[measure]})", ylabel="")
    sns.despine(ax=axes)
    return figure


@literal
def arvs_figure(study: Study, channel: int, most: int = 12) -> Figure:
    """Average relevance vectors of a channel, for the classes it is relevant to, and their cosines.

    Parameters
    ----------
    study
        With labelled images.
    channel
        Of its target layer.
    most
        Classes to show: those in whose images the channel carries most.
    """
    import seaborn  # noqa: F401  late, see pure_nb._imports; it brings the colours

    statistics = study.classes.statistics
    relevant, _ = statistics.strongest_classes(channel, study.parameters.min_frequency)
    classes = np.sort(relevant[:most])
    names = [study.classes.names[label] for label in classes]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(7.4, 1.9 + 0.3 * max(4, len(names))), width_ratios=[1.6, 1], layout="constrained"
    )
    count = f"{len(names)} of {len(relevant)} classes" if len(names) < len(relevant) else f"{len(names)} classes"
    figure.suptitle(f"{study.parameters.target} / {channel}: average relevance vectors, {count}", fontsize=12)
    if not len(classes):
        for axes in (left, right):
            axes.axis("off")
        left.text(0.5, 0.5, "relevant to no class", ha="center")
        return figure
    vectors = statistics.arv(study.model, channel, classes)
    cosines = cosine(vectors[:, None], vectors[None])
    limit, lowest = float(np.abs(vectors).max()) or 1.0, min(0.0, float(np.nanmin(cosines, initial=0)))
    for axes, values, title, colours, range_ in (
        (left, vectors, "relevance of the sources", SIGNED, (-limit, limit)),
        (right, cosines, "cosine", plt.get_cmap("mako"), (lowest, 1)),
    ):
        shown = axes.imshow(values, cmap=colours, vmin=range_[0], vmax=range_[1], aspect="auto", interpolation="none")
        figure.colorbar(shown, ax=axes, shrink=0.8)
        axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
        axes.set_title(title, fontsize=10)
        axes.spines[:].set_visible(False)
    left.set_xlabel("source channel")
    right.set_xticks(range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor")
    return figure


@literal
def mantel_figure(
    pairs: pd.DataFrame,
    measure: str = "wup",
    gamma: float = 0.5,
    found: MantelResult | None = None,
    marked: int | None = None,
    axes: Axes | None = None,
) -> Figure:
    """WordNet similarity of two classes over the cosine of a channel's two ARVs (Hesse et al. 2025, fig. 3).

    Parameters
    ----------
    pairs
        From :meth:`pure_nb.classes.Classes.wordnet_pairs`; a point for each row.
    measure
        Its column with the similarity.
    gamma
        Points left of it are gamma-polysemantic.
    found
        From :meth:`pure_nb.classes.Classes.agreement`, to write above the points.
    marked
        A row to point out.
    axes
        Where to draw; a new figure by default.
    """
    labels = {"wup": "Wu-Palmer", "path": "path", "lch": "Leacock-Chodorow", "res": "Resnik", "lin": "Lin"}
    if axes is None:
        _, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    below = pairs["cosine"] < gamma
    for chosen, colour in ((~below, FOUND), (below, AGAINST)):
        axes.scatter(pairs["cosine"][chosen], pairs[measure][chosen], s=8, color=colour, alpha=0.45, linewidth=0)
    axes.axvline(gamma, color="0.4", linewidth=1, linestyle="--")
    axes.annotate(f"gamma = {gamma:g}", (gamma, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=9)
    if marked is not None:
        row = pairs.iloc[marked]
        axes.plot(row["cosine"], row[measure], "o", markersize=13, mfc="none", mec="black", mew=2)
    if found is not None:
        interval = f"{found.low:.2f} to {found.high:.2f}"
        axes.set_title(f"rank correlation {found.rho:.2f} ({interval}), p = {found.p:.2g}", fontsize=10, pad=18)
    axes.set(xlabel="cosine of the two ARVs", ylabel=f"WordNet similarity ({labels.get(measure, measure)})")
    axes.spines[["right", "top"]].set_visible(False)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


@literal
def pair_figure(
    study: Study, pairs: pd.DataFrame, row: int, measure: str = "wup", gamma: float = 0.5, count: int = 5
) -> Figure:
    """One point of :func:`mantel_figure`, with pictures of its two classes.

    Parameters
    ----------
    study
        With labelled images.
    pairs, measure, gamma
        As there.
    row
        Of the pairs, from 0.
    count
        Pictures of each class.
    """
    entry = pairs.iloc[row]
    figure = plt.figure(figsize=(7.4, 3.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.25])
    mantel_figure(pairs, measure, gamma, marked=row, axes=figure.add_subplot(grid[:, 0]))
    for place in (0, 1):
        name, synset = entry[f"class_{place + 1}"], entry[f"synset_{place + 1}"]
        axes = figure.add_subplot(grid[place, 1])
        show(axes, image_grid([resized(picture, TILE) for picture in study.classes.pictures(name, count)], count))
        meant = synset if isinstance(synset, str) else "not in WordNet"  # NaN after a round trip through a file
        axes.set_title(f"{name}, {meant}", fontsize=10, loc="left")
    figure.suptitle(
        f"{study.parameters.target} / {entry['channel']}: {entry['class_1']} and {entry['class_2']}, "
        f"cosine {entry['cosine']:.2f}, similarity {entry[measure]:.2f}",
        fontsize=11,
    )
    return figure


@literal
def densities_figure(split: Split, rho: float | None = None) -> Figure:
    """How strongly a channel and its parts are activated by the images of each concept (Hesse et al. 2025, fig. 2).

    Every curve is drawn to the same height; the ticks are the images.

    Parameters
    ----------
    split
        From :meth:`pure_nb.classes.Classes.split`.
    rho
        The threshold; the chosen one by default.
    """
    from scipy.stats import gaussian_kde  # late, see pure_nb._imports

    rho = split.rho if rho is None else rho
    parts = split.activations.at(rho)
    columns = {"whole channel": split.activations.original}
    columns |= {f"part of {name}": parts[:, number] for number, name in enumerate(split.concepts)}
    columns |= {"residual": parts[:, -1]}
    reach = 1.05 * max(float(values.max()) for values in columns.values()) or 1.0
    figure, all_axes = plt.subplots(
        len(columns), 1, figsize=(7.4, 1.05 * len(columns) + 0.9), sharex=True, layout="constrained"
    )
    for axes, (title, values) in zip(all_axes, columns.items()):
        for number in range(len(split.concepts)):
            own, colour = values[split.labels == number], part_colour(number)
            # Each to its own height: next to a part that is hardly activated, the others would be flat.
            if np.ptp(own) > 0:
                grid = np.linspace(0, reach, 400)
                kernel = gaussian_kde(own)
                spread = max(0.7 * kernel.factor, 0.004 * reach / own.std(ddof=1))
                height = gaussian_kde(own, spread)(grid)
                axes.fill_between(grid, height / height.max(), color=colour, alpha=0.35, linewidth=0)
                axes.plot(grid, height / height.max(), color=colour, linewidth=1.2)
            axes.plot(own, np.zeros(len(own)), "|", color=colour, markersize=9)
        axes.set(ylabel="", yticks=[], ylim=(-0.06, 1.12))
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["left", "right", "top"]].set_visible(False)
    keys = [Patch(color=part_colour(n), alpha=0.35, linewidth=0) for n in range(len(split.concepts))]
    # Given with its name each, or Matplotlib would leave out a class whose name starts with "_".
    all_axes[0].legend(
        keys, split.concepts, title="images of", fontsize=9, title_fontsize=9, loc="upper left", frameon=False
    )
    all_axes[-1].set_xlabel("activation, positive part summed over positions")
    figure.suptitle(f"{split.assignment.layer} / {split.assignment.channel}, rho = {rho:g}", fontsize=11)
    return figure


def show(axes: Axes, picture: NDArray[np.uint8]) -> None:
    """A picture without axes.

    Examples
    --------
    >>> figure, axes = plt.subplots()
    >>> show(axes, study.crops.of(3, [0])[0])
    """
    axes.imshow(picture)
    axes.axis("off")
