"""Figures of ablation: how selectively each one hits its part, and which of the network's outputs move."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from pure_nb.figures.colours import FOUND, REST
from pure_nb.figures.plots import literal


@literal
def ablation_figure(table: pd.DataFrame, outputs: pd.DataFrame, channel: int, part: str) -> Figure:
    """What a part's ablation does, beside the controls.

    Parameters
    ----------
    table
        From :meth:`pure_nb.ablating.PartAblation.table`.
    outputs
        The first rows of :meth:`pure_nb.ablating.PartAblation.outputs`.
    channel, part
        The channel, and the part's letter.
    """
    heights = [1.2 + 0.3 * len(table), 1.2 + 0.34 * len(outputs)]
    size = (7.4, sum(heights))
    figure, (above, below) = plt.subplots(2, 1, figsize=size, layout="constrained", height_ratios=heights)
    rows = np.arange(len(table))
    above.hlines(rows, table["low"], table["high"], color=REST, linewidth=4)
    above.plot(table["selectivity"], rows, "o", color=FOUND)
    above.axvline(0, color="0.8", linewidth=1, zorder=0)
    above.set_yticks(rows, [f"{off} | {judge}" for off, judge in zip(table["off"], table["told_by"])])
    above.invert_yaxis()
    above.set(xlabel="fall in the part's images less that in the others", title=f"{channel}{part}: selectivity")
    rows = np.arange(len(outputs))
    below.barh(rows - 0.2, outputs[f"part {part}, own"], 0.4, color=FOUND, label="part off, its images")
    below.barh(rows + 0.2, outputs["whole channel, others"], 0.4, color=REST, label="channel off, other images")
    below.set_yticks(rows, outputs["name"])
    below.invert_yaxis()
    below.axvline(0, color="0.8", linewidth=1, zorder=0)
    below.set(xlabel="mean change of the output", title="outputs that move most")
    figure.legend(frameon=False, fontsize=9, loc="outside lower right", ncols=2)
    for axes in (above, below):
        axes.tick_params(labelsize=9)
        sns.despine(ax=axes)
    return figure
