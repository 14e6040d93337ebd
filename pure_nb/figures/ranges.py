"""Figures of what holds beyond the strongest images: parts over the range of activation, and numbers of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pure_nb.figures.colours import AGAINST, FOUND, REST, part_colour
from pure_nb.figures.plots import literal

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.ranges import Range


@literal
def range_figure(found: Range, title: str) -> Figure:
    """The share of each part in each band of a neuron's activation, and whether clusters found there are the parts.

    Left, bars are bands, the strongest images first, and colours are parts; lines are 95 % intervals. Right, for each
    band the agreement of its own clusters with the parts, and how stable these clusters are: where they are not, there
    is nothing to agree with.

    Parameters
    ----------
    found
        Of one neuron.
    title
        Above the figure.
    """
    figure, (bars, lines) = plt.subplots(1, 2, figsize=(7.4, 3.2), layout="constrained")
    bands, place = found.bands, np.arange(len(found.bands))
    below = np.zeros(len(bands))
    for number, (name, own) in enumerate(found.shares.groupby("part", sort=False)):
        share = own["share"].to_numpy()
        bars.bar(place, share, bottom=below, color=part_colour(number), label=name, width=0.8)
        below += share
        # Within its own bar, where neighbouring parts' lines do not hide each other.
        between = np.abs(own[["low", "high"]].to_numpy().T - share)
        if number + 1 < found.shares["part"].nunique():
            bars.errorbar(place + 0.1 * number - 0.1, below, between, fmt="none", ecolor="black", elinewidth=1)
    bars.set(ylabel="share of the images", ylim=(0, 1))
    bars.legend(title="part", frameon=False, bbox_to_anchor=(1, 1), loc="upper left", fontsize=9)
    lines.plot(place, bands["stability"], "o--", color=REST, label="stability of the band's own clusters")
    agreement, between = bands["agreement"], np.abs(bands[["low", "high"]].to_numpy().T - bands["agreement"].to_numpy())
    lines.errorbar(place, agreement, between, fmt="o-", color=FOUND, label="agreement with the parts")
    lines.plot(place, bands["unlike"], "s:", color=AGAINST, label="share unlike any part")
    lines.axhline(0, color="black", linewidth=0.5)
    lines.set(ylim=(-0.1, 1.05))
    lines.legend(frameon=False, fontsize=9)
    for axes in (bars, lines):
        axes.set_xticks(place, bands["band"], rotation=20)
        axes.set_xlabel("band of activation, from the strongest image")
    figure.suptitle(f"{title}: its parts over the range", fontsize=11)
    return figure


@literal
def enough_figure(table: pd.DataFrame) -> Figure:
    """How stability and agreement grow with the number of reference images, and with the share of the images.

    Parameters
    ----------
    table
        From :func:`pure_nb.ranges.enough`.
    """
    figure, both = plt.subplots(1, 2, figsize=(7.4, 3), layout="constrained", sharey=True)
    own = table.loc[table["images"] < 1, "references"]
    shares = table[table["references"] == own.iloc[0]] if len(own) else table.iloc[:0]
    drawn = (table[table["images"] == 1], "references", "reference images"), (shares, "images", "share of the images")
    for axes, (rows, name, label) in zip(both, drawn):
        for measure, colour in (("stability", REST), ("agreement", FOUND)):
            between = np.abs(rows[[f"{measure}_low", f"{measure}_high"]].to_numpy().T - rows[measure].to_numpy())
            axes.errorbar(rows[name], rows[measure], between, fmt="o-", color=colour, label=measure)
        axes.set(xlabel=label, ylim=(0, 1.02))
    both[0].legend(frameon=False, fontsize=9)
    return figure
