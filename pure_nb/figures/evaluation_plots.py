"""Figures of the evaluation: distances within and across parts, gaps neuron by neuron, alignment, named parts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pure_nb.compute.store import write_atomically, write_text
from pure_nb.figures.colours import ACROSS, FOUND, REST, WITHIN, part_colour, readable
from pure_nb.figures.plots import TILE, image_grid, literal, save, show
from pure_nb.figures.render import resized
from pure_nb.judges.evaluation import TRUE
from pure_nb.methods.descriptions import RANDOM
from pure_nb.methods.virtual import part_name

if TYPE_CHECKING:
    from pure_nb.judges.naming import Namer
    from pure_nb.study import Study


def write_all(folder: Path, files: Mapping[str, Any]) -> list[Path]:
    """Write what was found to a folder, each file in one step.

    Parameters
    ----------
    folder
        Is made if it is not there; files in it are replaced.
    files
        By name: a figure (which is closed), a table as ``.parquet`` or ``.csv``, or a text.
    """
    for name, found in files.items():
        path = folder / name
        if isinstance(found, Figure):
            save(found, path)
        elif path.suffix == ".parquet":
            write_atomically(path, partial(found.to_parquet, index=False))
        elif path.suffix == ".csv":
            write_atomically(path, partial(found.to_csv, index=False))
        else:
            write_text(path, found)
    return [folder / name for name in files]


def _panels(summary: pd.DataFrame) -> tuple[Figure, dict[int, Axes], list[str]]:
    """A panel for each k, with room for a row for each method: the largest gap first, random labels and truth last."""
    ks = sorted(summary["k"].unique().tolist())
    order = list(dict.fromkeys(summary.sort_values("gap", ascending=False, kind="stable")["method"]))
    methods = sorted(order, key=[RANDOM, TRUE].__contains__)
    size = (min(7.4, 1.2 + 2.1 * len(ks)), 0.9 + 0.42 * len(methods))
    figure, all_axes = plt.subplots(1, len(ks), figsize=size, sharey=True, layout="constrained")
    panels = dict(zip(ks, np.atleast_1d(all_axes)))
    for k, axes in panels.items():
        axes.set_title(f"k = {k}", fontsize=10)
        axes.tick_params(labelsize=9)
        sns.despine(ax=axes)
    return figure, panels, methods


@literal
def distances_figure(summary: pd.DataFrame, judge: str) -> Figure:
    """Mean distances within and across parts for each method and number of parts, with standard errors over neurons.

    Parameters
    ----------
    summary
        From :func:`pure_nb.judges.evaluation.summary`.
    judge
        Whose distances they are.
    """
    figure, panels, methods = _panels(summary)
    rows = np.arange(len(methods))
    low, high = summary[["intra", "inter"]].min().min(), summary[["intra", "inter"]].max().max()
    for k, axes in panels.items():
        own = summary[summary["k"] == k].set_index("method").reindex(methods)
        for shift, name, colour in ((-0.19, "intra", WITHIN), (0.19, "inter", ACROSS)):
            error = own[f"{name}_se"].fillna(0)
            axes.barh(rows + shift, own[name], 0.36, xerr=error, color=colour, label=name, error_kw={"linewidth": 1})
        axes.axvline(own["overall"].mean(), color="0.3", linewidth=1, linestyle="--", label="all pairs")
        reach = (high - low) or 1.0  # small beside the whole
        axes.set_xlim(max(0.0, low - 0.35 * reach), high + 0.12 * reach)
    first = next(iter(panels.values()))
    first.set_yticks(rows, methods)
    first.invert_yaxis()
    figure.supxlabel(f"mean distance by {judge} (the axis does not start at 0)", fontsize=9)
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


@literal
def gaps_figure(table: pd.DataFrame, summary: pd.DataFrame, judge: str) -> Figure:
    """How much farther apart images of different parts are than those of one: each neuron a dot, means with errors.

    Parameters
    ----------
    table, summary
        From :func:`pure_nb.judges.evaluation.distance_table` and :func:`pure_nb.judges.evaluation.summary`.
    judge
        Whose distances they are.
    """
    figure, panels, methods = _panels(summary)
    for k, axes in panels.items():
        own = table[table["k"] == k]
        how: dict[str, Any] = {"color": REST, "size": 3, "jitter": 0.22, "alpha": 0.6}
        sns.stripplot(data=own, x="gap", y="method", order=methods, ax=axes, **how)
        means = summary[summary["k"] == k].set_index("method").reindex(methods)
        dots: dict[str, Any] = {"fmt": "o", "color": FOUND, "markersize": 6, "linewidth": 2, "zorder": 4}
        axes.errorbar(means["gap"], np.arange(len(methods)), xerr=2 * means["gap_se"].fillna(0), **dots)
        axes.axvline(0, color="0.7", linewidth=1, zorder=0)
        axes.set(xlabel="", ylabel="")
    figure.supxlabel(f"inter minus intra, by {judge}; blue: mean and two standard errors over neurons", fontsize=9)
    return figure


@literal
def alignment_figure(alignment: pd.DataFrame, judge: str) -> Figure:
    """Correlation of each method's distances with the judge's, with the honest interval and the naive one.

    Parameters
    ----------
    alignment
        From :func:`pure_nb.judges.evaluation.alignment`.
    judge
        Whose distances they are correlated with.
    """
    own = alignment[alignment["measure"] == "pearson"].sort_values("pooled", ascending=False, kind="stable")
    ranks = alignment[alignment["measure"] == "spearman"].set_index("method").reindex(own["method"])
    figure, axes = plt.subplots(figsize=(7.4, 1.1 + 0.5 * len(own)), layout="constrained")
    for shift, rows, name, colour in ((-0.12, own, "Pearson", FOUND), (0.12, ranks, "Spearman", ACROSS)):
        place = np.arange(len(rows)) + shift
        axes.hlines(
            place, rows["low"], rows["high"], color=colour, linewidth=2.5, label=f"{name}, interval over neurons"
        )
        axes.plot(rows["pooled"], place, "o", color=colour, markersize=6)
        naive = [rows["pooled"] - rows["naive_low"], rows["naive_high"] - rows["pooled"]]
        axes.errorbar(rows["pooled"], place, xerr=naive, fmt="none", color="black", capsize=4, linewidth=1)
    axes.plot([], [], "|", color="black", markersize=8, label="if pairs were independent")
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.set_yticks(np.arange(len(own)), own["method"])
    axes.invert_yaxis()
    axes.set_xlabel(f"correlation with the distances of {judge}")
    sns.despine(ax=axes)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


@literal
def named_parts_figure(
    study: Study, channel: int, labels: NDArray[np.int64], names: Namer, vectors: NDArray[np.float32], count: int = 6
) -> Figure:
    """The crops of a neuron's parts as the judge sees them, and what it calls them.

    Parameters
    ----------
    study, channel
        Which neuron.
    labels
        int ``[n]``: the part of each of its references.
    names, vectors
        What names them, and the vectors ``[n, d]`` of its crops.
    count
        Crops in each row.
    """
    parts: list[int] = [-1, *range(labels.max() + 1)]
    rows, texts = [], []
    for part in parts:
        members = np.arange(len(labels)) if part < 0 else np.flatnonzero(labels == part)
        crops = [resized(crop, TILE) for crop in study.crops.of(channel, members[:count])]
        rows.append(image_grid(crops + [np.full_like(crops[0], 255)] * (count - len(crops)), count))
        name = names.name(vectors[members], vectors)
        text = f"{'all' if part < 0 else part_name(part)} ({len(members)} images): {name.label()}"
        if name.label() == name.word:
            text += f", {name.score:.2f}; then {name.runner_up}, {name.score - name.margin:.2f}"
        else:
            text += f" (nearest: {name.word}, in {name.stability:.0%} of new draws)"
        texts.append(textwrap.shorten(text, 66, placeholder=" ..."))
    # One picture and no layout engine, which would take longer than all the rest: explorers draw many of these.
    head, label = 40, 38
    sheet = np.concatenate([np.pad(row, ((label, 0), (0, 0), (0, 0)), constant_values=255) for row in rows])
    sheet = np.pad(sheet, ((head, 8), (8, 8), (0, 0)), constant_values=255)
    figure = plt.figure(figsize=(6, 6 * sheet.shape[0] / sheet.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    show(axes, sheet)
    title = f"{study.parameters.target} / {channel} in {len(parts) - 1} parts"
    axes.text(sheet.shape[1] / 2, 14, title, ha="center", va="top", fontsize=12)
    for place, (part, text) in enumerate(zip(parts, texts)):
        colour = "black" if part < 0 else readable(part_colour(part))
        below = head + place * (label + TILE) + label - 7
        axes.text(8, below, text, va="baseline", fontsize=11, color=colour)
    return figure
