"""Figures of the benchmark: the leaderboard, and planted channels with the truth above each method's parts."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pure_nb.benchmark.scoring import matched
from pure_nb.benchmark.tasks import Task
from pure_nb.figures.colours import FOUND, NOBODY, REST, named_colours, part_colour
from pure_nb.figures.plots import image_grid, literal, show, tiles


@literal
def leaderboard_figure(board: pd.DataFrame, table: pd.DataFrame, score: str = "ari") -> Figure:
    """The leaderboard: every neuron a dot, means with their 95 % intervals, and the time each method took.

    Parameters
    ----------
    board, table
        From :func:`pure_nb.benchmark.bench.leaderboard` and :func:`pure_nb.benchmark.bench.run`.
    score
        A column of the table; the mean's interval is shown for ``"ari"``.
    """
    order = board["method"].tolist()
    figure, axes = plt.subplots(figsize=(7.4, 0.9 + 0.36 * len(order)), layout="constrained")
    shown = table[table["k"] > 1]
    sns.stripplot(data=shown, x=score, y="method", order=order, ax=axes, color=REST, size=3.5, jitter=0.22, alpha=0.7)
    for row, (value, low, high, seconds) in enumerate(board[[score, "low", "high", "seconds"]].to_numpy(dtype=float)):
        if score == "ari":
            axes.plot([low, high], [row, row], color=FOUND, linewidth=3, zorder=3)
        axes.plot(value, row, "o", color=FOUND, markersize=7, zorder=4)
        for place, text in ((1.02, f"{value:.2f}".replace("-0.00", "0.00")), (1.12, f"{seconds:.1f} s")):
            axes.annotate(text, (place, row), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    for place, title in ((1.02, "mean"), (1.12, "time")):
        axes.annotate(title, (place, -0.85), xycoords=("axes fraction", "data"), fontsize=9, color="0.35")
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    names = {"ari": "adjusted Rand index", "ami": "adjusted mutual information", "accuracy": "share in the right part"}
    axes.set(xlabel=f"agreement with the truth ({names.get(score, score)})", ylabel="")
    axes.set_ylim(len(order) - 0.5, -0.6)
    axes.tick_params(labelsize=9)
    sns.despine(ax=axes)
    return figure


@literal
def scores_figure(board: pd.DataFrame) -> Figure:
    """The leaderboard of scores: how well each tells channels of several meanings from others, a colour a judge.

    Parameters
    ----------
    board
        ``score, judge, auc, low, high`` from :func:`pure_nb.benchmark.trial.board`. Rows without an area are left out.
    """
    shown = board.dropna(subset="auc").sort_values("auc", ascending=False, kind="stable")
    colours = named_colours(shown["judge"])
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.28 * len(shown)), layout="constrained")
    for row, (judge, auc, low, high) in enumerate(shown[["judge", "auc", "low", "high"]].itertuples(index=False)):
        axes.plot([low, high], [row, row], color=colours[judge], linewidth=2.5)
        axes.plot(auc, row, "o", color=colours[judge], markersize=6)
        axes.annotate(f"{auc:.2f}", (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.axvline(0.5, color="0.6", linewidth=1, linestyle="--", zorder=0)
    names = [f"{score}, {judge}" for score, judge in zip(shown["score"], shown["judge"])]
    axes.set_yticks(range(len(shown)), names, fontsize=9)
    axes.set(xlim=(0, 1), xlabel="area under the ROC curve (0.5 is chance)")
    axes.set_ylim(len(shown) - 0.5, -0.6)
    sns.despine(ax=axes)
    return figure


@literal
def parts_figure(task: Task, table: pd.DataFrame, channel: int, methods: Sequence[str], *, count: int = 12) -> Figure:
    """One neuron: its references in the order of the truth, and below it the parts that each method sees in them.

    Parameters
    ----------
    task
        Where the truth is known.
    table
        From :func:`pure_nb.benchmark.bench.run`.
    channel
        Of the task's target layer.
    methods
        Names of contestants, from top to bottom.
    count
        Pictures above the stripes.
    """
    truth, share = task.truth[channel], task.share[channel]
    order = np.lexsort((-share, truth))
    order = np.concatenate([order[truth[order] >= 0], order[truth[order] < 0]])
    things = [int(thing) for thing in np.unique(truth[truth >= 0])]
    colours = {thing: part_colour(number) for number, thing in enumerate(things)}
    own = table[table["channel"] == channel].set_index("method")
    heights, size = [3, 1, *[0.6] * len(methods)], (7.4, 2.1 + 0.34 * len(methods))
    figure, axes = plt.subplots(len(heights), figsize=size, height_ratios=heights, layout="constrained")
    picked = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    show(axes[0], image_grid(tiles(task.study.neuron(channel).views(picked)), len(picked)))
    axes[0].set_title(_title(task, channel), fontsize=10, loc="left")
    axes[1].bar(np.arange(len(order)), share[order], 1.0, color=[colours.get(int(truth[i]), NOBODY) for i in order])
    axes[1].set(xlim=(-0.5, len(order) - 0.5), ylim=(0, 1), xticks=[], yticks=[0, 1])
    axes[1].tick_params(labelsize=9)
    axes[1].set_ylabel("truth", rotation=0, ha="right", va="center", fontsize=9)
    for row, method in zip(axes[2:], methods):
        labels = np.asarray(own["labels"][method])
        _stripe(row, labels[order], matched(truth, labels), colours)
        score = float(own["ari"][method])
        row.set_ylabel(method, rotation=0, ha="right", va="center", fontsize=9)
        row.annotate(f"{score:.2f}", (1.005, 0.5), xycoords="axes fraction", va="center", fontsize=9)
    axes[-1].set_xlabel(
        "its reference images, those of each source together; at the right the adjusted Rand index", fontsize=9
    )
    return figure


def _stripe(axes: Axes, labels: NDArray[np.int64], part_of: dict[int, int], colours: dict[int, str]) -> None:
    """A cell for each image, in the colour of the true thing that its part stands for."""
    thing_of = {part: thing for thing, part in part_of.items()}
    palette = [
        colours[thing_of[part]] if part in thing_of else NOBODY for part in range(int(labels.max(initial=0)) + 1)
    ]
    rows = np.where(labels >= 0, labels, len(palette))[None]
    axes.imshow(rows, aspect="auto", cmap=ListedColormap([*palette, NOBODY]), vmin=-0.5, vmax=len(palette) + 0.5)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _title(task: Task, channel: int) -> str:
    if task.planting is None:
        return f"Neuron {channel}"
    group = task.planting.groups[channel]
    if len(set(group)) == 1:
        return f"Merged channel {channel}: channel {group[0]} with itself"
    return f"Merged channel {channel}: channels {', '.join(map(str, group[:-1]))} and {group[-1]}"
