"""How the time of a study grows with images, channels and references, and that its memory does not with the images.

    python benchmarks/scaling.py --threads 1 --clock cpu --out benchmarks/results/scaling.csv
    python benchmarks/scaling.py --draw benchmarks/results/scaling.csv scaling.png

ResNet-18 with small pictures of noise that are made when asked for. In the middle of all lines are --images, --channels
and --references; from there each of the three is made four times less and more. *Sweep* finds the references of all
channels. *Circuits* are the vectors of the studied channels by gradient, *crops* their boxes by relevance, both for
references that are drawn at random. Memory is the peak of a fresh process that does nothing but the step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from common import alone, arguments, interleaved, network, report, start
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from sweep import Made

from pure_nb.compute.sweep import sweep
from pure_nb.figures.render import boxes
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.methods.references import TopReferences
from pure_nb.parameters import Run

SOURCE, TARGET, LOWER = "torchvision:resnet18", "layer4", "layer3"
VARIED = ("images", "channels", "references")
GREY = "#808080"
"""Readable on white and on dark pages."""


def drawn(images: int, channels: int, references: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Channel and image of each pair, the images of every channel drawn at random."""
    generator = np.random.default_rng(0)
    sample = np.concatenate([generator.choice(images, references, replace=False) for _ in range(channels)])
    return np.arange(channels).repeat(references), sample


def swept(images: int, channels: int, references: int, size: int) -> None:
    top = TopReferences(TARGET, references)
    sweep(network(SOURCE), Images(Made(images, size)), [top], run=Run(progress=False))
    top.result()


def circuited(images: int, channels: int, references: int, size: int) -> None:
    pairs = drawn(images, channels, references)
    circuits(network(SOURCE), Images(Made(images, size)), *pairs, target=TARGET, lower=LOWER)


def cropped(images: int, channels: int, references: int, size: int) -> None:
    boxes(network(SOURCE), Images(Made(images, size)), *drawn(images, channels, references), target=TARGET)


STEPS: dict[str, Callable[[int, int, int, int], None]] = {"sweep": swept, "circuits": circuited, "crops": cropped}


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    middle = {name: getattr(args, name) for name in VARIED}
    found = []
    for varied in VARIED:
        for factor in (1 / 4, 1, 4):
            here = middle | {varied: round(middle[varied] * factor)}
            how = (*here.values(), args.size)
            seconds = interleaved({name: partial(run, *how) for name, run in STEPS.items()}, args)
            for name, run in STEPS.items():
                most = round(alone(run, *how, threads=args.threads)) if varied == "images" else np.nan
                found.append({"varied": varied, **here, "step": name, "seconds": seconds[name], "peak MiB": most})
    return found


def figure(table: pd.DataFrame) -> Figure:
    """Time against images, channels and references, and peak memory against images, all axes logarithmic.

    Parameters
    ----------
    table
        ``benchmarks/results/scaling.csv``.
    """
    with plt.rc_context(dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), GREY)):
        drawing, every = plt.subplots(1, 4, figsize=(11, 3.1), layout="constrained")
        for axes, varied in zip(every, VARIED):
            axes.set(yscale="log", ylim=(table["seconds"].min() / 1.5, table["seconds"].max() * 1.5))
            _lines(axes, table[table["varied"] == varied], varied, "seconds")
        every[0].set_ylabel("processor seconds")
        peak = table["peak MiB"]
        every[3].set(yscale="log", ylim=(peak.min() / 4, peak.max() * 4), ylabel="peak memory, MiB")
        _lines(every[3], table[table["varied"] == "images"], "images", "peak MiB")
    drawing.patch.set_alpha(0)
    return drawing


def _lines(axes: Axes, table: pd.DataFrame, varied: str, value: str) -> None:
    """One line a step, named where it ends."""
    colors = dict(zip(STEPS, sns.color_palette("colorblind")))
    ticks = sorted(table[varied].unique())
    apart = np.divide(*axes.get_ylim()[::-1]) ** 0.08
    above = 0.0
    for step in table[table[varied] == ticks[-1]].sort_values(value)["step"]:
        own = table[table["step"] == step].sort_values(varied)
        axes.plot(own[varied], own[value], "o-", color=colors[step], markersize=4)
        above = max(own[value].iloc[-1], above * apart)
        axes.annotate(
            step, (ticks[-1], above), (6, 0), textcoords="offset points", va="center", color=colors[step], fontsize=10
        )
    axes.set(xscale="log", xlabel=varied, xlim=(ticks[0] * 0.8, ticks[-1] * 4), facecolor="none")
    plain = FuncFormatter(lambda tick, _: f"{tick:g}")
    axes.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator(), major_formatter=plain)
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 3)), minor_locator=NullLocator(), major_formatter=plain)
    for side in axes.spines.values():
        side.set_color(GREY)
    sns.despine(ax=axes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--references", type=int, default=8, help="of each channel")
    parser.add_argument("--size", type=int, default=64, help="side of the noise in pixels")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("TABLE", "PICTURE"), help="draw a table instead")
    args = start(parser)
    if args.draw:
        figure(pd.read_csv(args.draw[0])).savefig(args.draw[1], dpi=150)
        return
    swept(args.images // 16, args.channels, args.references, args.size)  # warms up
    report(rows(args), args)


if __name__ == "__main__":
    main()
