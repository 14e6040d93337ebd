"""Explorers: a slider over pictures, alive in Jupyter and in a static page alike.

In Jupyter a picture is drawn when the slider first reaches it. In the built book there is no kernel: every picture is
drawn beforehand into a file beside the page, and slider and pictures are linked in the browser.
"""

from __future__ import annotations

import hashlib
import html
import os
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import ipywidgets
import matplotlib.pyplot as plt

from pure_nb.neuron import Neuron
from pure_nb.plots import neuron_figure
from pure_nb.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pure_nb.study import Study

Value = TypeVar("Value", bound=Hashable)

BOOK = "PURE_NB_BOOK"
"""Environment variable: set while the book is built, to the folder for the explorers' pictures."""

URL = "../explorers"
"""Where that folder is found from a page of the book."""


def explorer(
    draw: Callable[[Value], Figure],
    values: Sequence[Value],
    *,
    name: str,
    label: str = "neuron",
    describe: Callable[[Value], str] = str,
    start: Value | None = None,
) -> ipywidgets.Widget:
    """A slider over figures.

    Parameters
    ----------
    draw
        Draws the figure of a value.
    values
        What the slider runs over.
    name
        A word that is unique in the book; names the folder of the pictures.
    label
        What is written beside the slider.
    describe
        The picture of a value in words, for those who cannot see it.
    start
        The value to start at; the first by default.

    Returns
    -------
    Widget
        To be shown as the last line of a cell.
    """
    if not values:
        raise ValueError("an explorer needs at least one value to show")
    slider = ipywidgets.SelectionSlider(
        options=[str(value) for value in values],
        index=0 if start is None else list(values).index(start),
        description=label,
        continuous_update=False,
        layout=ipywidgets.Layout(width="100%", max_width="34rem"),
    )
    folder = os.environ.get(BOOK)
    if folder:
        return _static(draw, values, slider, Path(folder), name, describe)
    return _live(draw, values, slider, describe)


def explore(study: Study, channels: Sequence[int] | None = None, count: int = 6) -> ipywidgets.Widget:
    """A slider over the neurons of a study, each taken apart.

    Parameters
    ----------
    study
        Any study.
    channels
        Which neurons, in this order; all that are not dead by default.
    count
        Images in each row.
    """
    if channels is None:
        channels = [channel for channel, alive in enumerate(study.references.alive) if alive]

    def describe(channel: int) -> str:
        neuron = Neuron(study, channel)
        sizes = [len(neuron.members(part)) for part in range(neuron.virtual.k)]
        parts = ", ".join(f"{size} images {neuron.meanings(part)}".strip() for part, size in enumerate(sizes))
        return f"Neuron {channel} taken apart into {len(sizes)}: {parts}"

    return explorer(
        lambda channel: neuron_figure(Neuron(study, channel), count),
        list(channels),
        name=f"{study.name}-neurons",
        describe=describe,
    )


def _picture(figure: Figure) -> bytes:
    """A figure as WebP, and closed."""
    buffer = BytesIO()
    figure.savefig(buffer, format="webp", dpi=110, pil_kwargs={"quality": 82})
    plt.close(figure)
    return buffer.getvalue()


def _live(
    draw: Callable[[Value], Figure],
    values: Sequence[Value],
    slider: ipywidgets.SelectionSlider,
    describe: Callable[[Value], str],
) -> ipywidgets.Widget:
    @lru_cache(maxsize=64)
    def picture(index: int) -> bytes:
        return _picture(draw(values[index]))

    shown = ipywidgets.Image(format="webp", layout=ipywidgets.Layout(max_width="100%"))
    words = ipywidgets.HTML()

    def show(_: object = None) -> None:
        shown.value = picture(slider.index)
        words.value = f"<small>{html.escape(describe(values[slider.index]))}</small>"

    slider.observe(show, names="index")
    show()
    return ipywidgets.VBox([slider, shown, words])


def _static(
    draw: Callable[[Value], Figure],
    values: Sequence[Value],
    slider: ipywidgets.SelectionSlider,
    folder: Path,
    name: str,
    describe: Callable[[Value], str],
) -> ipywidgets.Widget:
    pages = []
    for value in values:
        content = _picture(draw(value))
        # The content names the file, so that a browser never shows a picture of an earlier build.
        file = f"{name}/{value}-{hashlib.sha256(content).hexdigest()[:8]}.webp"
        write_atomically(folder / file, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
        words = html.escape(describe(value), quote=True)
        pages.append(ipywidgets.HTML(f'<img src="{URL}/{file}" alt="{words}" loading="lazy" style="width: 100%">'))
    stack = ipywidgets.Stack(pages, selected_index=slider.index)
    ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([slider, stack])
