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
from typing import TYPE_CHECKING, Any, TypeVar

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
    draw: Callable[..., Figure],
    values: Sequence[Value],
    *,
    name: str,
    label: str = "neuron",
    describe: Callable[..., str] = lambda *shown: " ".join(map(str, shown)),
    start: Value | None = None,
    others: Sequence[Value] | None = None,
    other: str = "k",
) -> ipywidgets.Widget:
    """One slider over figures, or two.

    Parameters
    ----------
    draw
        Draws the figure of a value; of a value and another one, if there are ``others``.
    values
        What the slider runs over.
    name
        A word that is unique in the book; names the folder of the pictures.
    label
        What is written beside the slider.
    describe
        The picture in words, for those who cannot see it; takes what ``draw`` takes.
    start
        The value to start at; the first by default.
    others, other
        What a second slider runs over, and what is written beside it. In the built book there is a picture for every
        pair.

    Returns
    -------
    Widget
        To be shown as the last line of a cell.
    """
    if not values or (others is not None and not others):
        raise ValueError("an explorer needs at least one value to show")
    sliders = [_slider(values, label, 0 if start is None else list(values).index(start))]
    if others is not None:
        sliders.append(_slider(others, other, 0))
    axes = [list(values)] if others is None else [list(values), list(others)]
    folder = os.environ.get(BOOK)
    if folder:
        return _static(draw, axes, sliders, Path(folder), name, describe)
    return _live(draw, axes, sliders, describe)


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


def _slider(values: Sequence[object], label: str, index: int) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(
        options=[str(value) for value in values],
        index=index,
        description=label,
        continuous_update=False,
        layout=ipywidgets.Layout(width="100%", max_width="34rem"),
    )


def _live(
    draw: Callable[..., Figure],
    axes: list[list[Any]],
    sliders: list[ipywidgets.SelectionSlider],
    describe: Callable[..., str],
) -> ipywidgets.Widget:
    @lru_cache(maxsize=64)
    def picture(*chosen: int) -> bytes:
        return _picture(draw(*(values[index] for values, index in zip(axes, chosen))))

    shown = ipywidgets.Image(format="webp", layout=ipywidgets.Layout(max_width="100%"))
    words = ipywidgets.HTML()

    def show(_: object = None) -> None:
        chosen = [slider.index for slider in sliders]
        shown.value = picture(*chosen)
        text = describe(*(values[index] for values, index in zip(axes, chosen)))
        words.value = f"<small>{html.escape(text)}</small>"

    for slider in sliders:
        slider.observe(show, names="index")
    show()
    return ipywidgets.VBox([*sliders, shown, words])


def _static(
    draw: Callable[..., Figure],
    axes: list[list[Any]],
    sliders: list[ipywidgets.SelectionSlider],
    folder: Path,
    name: str,
    describe: Callable[..., str],
) -> ipywidgets.Widget:
    def page(*shown: object) -> ipywidgets.Widget:
        content = _picture(draw(*shown))
        # The content names the file, so that a browser never shows a picture of an earlier build.
        file = f"{name}/{'-'.join(map(str, shown))}-{hashlib.sha256(content).hexdigest()[:8]}.webp"
        write_atomically(folder / file, lambda path: path.write_bytes(content))
        words = html.escape(describe(*shown), quote=True)
        return ipywidgets.HTML(f'<img src="{URL}/{file}" alt="{words}" loading="lazy" style="width: 100%">')

    def stack(pages: list[ipywidgets.Widget], slider: ipywidgets.SelectionSlider) -> ipywidgets.Widget:
        found = ipywidgets.Stack(pages, selected_index=slider.index)
        ipywidgets.jslink((slider, "index"), (found, "selected_index"))
        return found

    def within(*fixed: object) -> ipywidgets.Widget:
        """The pictures of all values of the first slider, with those of the second fixed."""
        return stack([page(value, *fixed) for value in axes[0]], sliders[0])

    content = within() if len(axes) == 1 else stack([within(other) for other in axes[1]], sliders[1])
    return ipywidgets.VBox([*sliders, content])
