"""Figures of faithfulness: how outputs fall as units are switched off, and what is there of them by these alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pure_nb.figures.colours import named_colours
from pure_nb.figures.plots import literal

if TYPE_CHECKING:
    from pure_nb.reasons.curves import Curves
    from pure_nb.reasons.faithfulness import Faithfulness


@literal
def curves_figure(found: Curves) -> Figure:
    """What is left of the output, by each ablation: units off one after another above, on alone below.

    Parameters
    ----------
    found
        From :attr:`pure_nb.reasons.explaining.Explanation.faithfulness`.
    """
    table = found.table
    ablations, orders = (table[name].unique().tolist() for name in ("ablation", "order"))
    figure, axes = _grid(ablations, ["off one after another", "on alone"])
    colours = named_colours(orders)
    for column, ablation in enumerate(ablations):
        for row, way in enumerate(["off", "alone"]):
            for order in orders:
                own = table[(table["ablation"] == ablation) & (table["order"] == order)]
                axes[row][column].plot(own["units"], own[way], color=colours[order], marker=".", label=order)
    return _finished(figure, axes, f"{found.title}: the output, as units are switched")


@literal
def faithfulness_figure(found: Faithfulness) -> Figure:
    """What the images of a class lose of their outputs, and those of others, the means over classes.

    Parameters
    ----------
    found
        From :meth:`pure_nb.classes.Classes.faithfulness`.
    """
    curves = found.curves
    ablations, units = (curves[name].unique().tolist() for name in ("ablation", "unit"))
    figure, axes = _grid(ablations, ["lost, units off", "there, units alone"])
    colours = named_colours(units)
    means = curves.groupby(["ablation", "way", "unit", "units"])[["own", "others"]].mean()
    for column, ablation in enumerate(ablations):
        for row, way in enumerate(["off", "alone"]):
            for unit in units:
                own, colour = means.xs((ablation, way, unit)), colours[unit]
                axes[row][column].plot(own.index, own["own"], color=colour, marker=".", label=unit)
                axes[row][column].plot(own.index, own["others"], color=colour, linestyle=":", marker=".")
    title = f"{len(found.images)} classes: their own images (lines) and those of others (dots), share of the output"
    return _finished(figure, axes, title)


def _grid(columns: Sequence[str], rows: Sequence[str]) -> tuple[Figure, Any]:
    size = (min(7.4, 2.4 * len(columns) + 0.8), 2.3 * len(rows) + 0.9)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for place, name in enumerate(columns):
        axes[0][place].set_title(f"{name} ablation", fontsize=9)
        axes[-1][place].set_xlabel("units", fontsize=9)
    for place, name in enumerate(rows):
        axes[place][0].set_ylabel(name, fontsize=9)
    return figure, axes


def _finished(figure: Figure, axes: Any, title: str) -> Figure:
    for one in axes.ravel():
        one.axhline(0, color="0.6", linewidth=0.8)
        one.tick_params(labelsize=9)
        one.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        one.spines[["top", "right"]].set_visible(False)
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure
