"""Explorers: sliders over pictures and neurons, alive in Jupyter and in a static page alike.

In Jupyter what is shown is computed when the reader first asks for it. In the built book there is no kernel: pictures
and the data of neurons are files beside the page, and a script of the book, ``explorer.js``, shows them.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from pure_nb._imports import needed
from pure_nb.compute.store import write_atomically
from pure_nb.errors import ArgumentError, PureError, sentence
from pure_nb.parameters import file_word
from pure_nb.show import ranking
from pure_nb.show.atlas import identity_of
from pure_nb.show.facts import Atlas
from pure_nb.show.pictures import draw as draw_atlas
from pure_nb.show.sheets import WEBP

with needed("show", "explorers need"):
    import ipywidgets
    from IPython.display import HTML

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pure_nb.study import Study

Value = TypeVar("Value", bound=Hashable)

BOOK = "PURE_NB_BOOK"
"""Environment variable: set while the book is built, to the folder of files that are copied beside its pages."""

SITE = ".."
"""Where that folder is found from a page of the book."""

THEMES: dict[str, Callable[[Figure], AbstractContextManager[Any]]] = {"": nullcontext}
"""What switches a figure to a theme of the book, by the folder of its pictures; the book's tools add the dark one."""


class _Axis(NamedTuple):
    """What is written beside a slider, what it runs over, and the place where it starts."""

    label: str
    values: list[Any]
    start: int = 0


# What is drawn, and the words around it: most are left as they are.
def explorer(  # noqa: PLR0913
    draw: Callable[..., Figure],
    values: Sequence[Value],
    *,
    name: str,
    label: str = "neuron",
    describe: Callable[..., str] = lambda *shown: " ".join(map(str, shown)),
    caption: str = "",
    start: Value | None = None,
    others: Sequence[Value] | None = None,
    other: str = "k",
) -> ipywidgets.Widget | HTML:
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
    caption
        What is shown, and what to see in it.
    start
        The value to start at; the first by default.
    others, other
        What a second slider runs over, and what is written beside it. In the built book there is a picture for every
        pair.

    Returns
    -------
    Widget or HTML
        To be shown as the last line of a cell.

    Examples
    --------
    >>> def bars(channel):
    ...     figure, axes = plt.subplots()
    ...     axes.bar(range(6), study.neuron(channel).score)
    ...     return figure
    >>> slider = explorer(bars, [0, 1, 2], name="scores")
    """
    if not values or (others is not None and not others):
        raise ArgumentError("an explorer needs at least one value to show")
    if start is not None and start not in values:
        raise ArgumentError(f"an explorer starts at one of its values, and {start!r} is not among {_few(values)}")
    axes = [_Axis(label, list(values), 0 if start is None else list(values).index(start))]
    if others is not None:
        axes.append(_Axis(other, list(others)))
    folder = os.environ.get(BOOK)
    if folder:
        return _static(draw, axes, Path(folder), name, describe, caption)
    return _live(draw, axes, describe, caption)


def explore(
    study: Study, start: int | None = None, *, parts: bool = True, whole: bool = False, caption: str = ""
) -> ipywidgets.Widget | HTML:
    """The neurons of a study and their parts: sliders for the neuron and the number of its parts, and the method.

    In Jupyter also the layer: what is not known of it yet is computed when it is chosen, which takes a pass over the
    images. So do the references of a study that was never run, and no more is waited for: the neurons come in the order
    of their activations, while a thread finds out which are the most polysemantic. In the built book the neurons are
    those of an atlas beside the pages, see :mod:`pure_nb.show.atlas`: the first of
    :meth:`~pure_nb.study.Study.most_polysemantic`.

    Parameters
    ----------
    study
        Any study.
    start
        The neuron to start at, of a list by number. By default the most polysemantic one, or the strongest one as long
        as that is not known, of a list in this order.
    parts
        Split the neurons into parts; otherwise only their reference images are shown.
    whole
        Show whole pictures, dimmed where the neuron does not look, instead of crops.
    caption
        What is shown, and what to see in it.

    Returns
    -------
    Widget or HTML
        To be shown as the last line of a cell.

    Raises
    ------
    ArgumentError
        If there is no such neuron, or no image activates it.

    Examples
    --------
    >>> sliders = explore(study, 3)      # the last line of a cell shows it
    """
    folder = os.environ.get(BOOK)
    channels = ranking.living(study) if start is not None else ranking.ordered(study, wait=bool(folder))
    if start is None and not channels:
        raise ArgumentError(
            f"no image activates any channel of {study.parameters.target!r}, so there is nothing to show"
        )
    first = channels[0] if start is None else study.neuron(start).channel
    if first not in channels:
        some = _few(channels)
        raise ArgumentError(f"no image activates channel {first}, so there is nothing to show; start at {some}")
    if folder:
        return _static_neurons(study, first, Path(folder), parts, whole, caption)
    from pure_nb.show.live import LiveExplorer  # needs anywidget, which nobody needs who builds a book

    rank = start is None and parts and not ranking.is_known(study)
    return LiveExplorer(study, channels, first, rank=rank, split=parts, whole=whole, caption=caption)


def _pictures(figure: Figure, themes: Iterable[str]) -> dict[str, bytes]:
    """A figure as WebP for each theme, and closed."""
    buffers = {theme: BytesIO() for theme in themes}
    try:
        for theme, buffer in buffers.items():
            with THEMES[theme](figure):
                figure.savefig(buffer, format="webp", dpi=110, pil_kwargs=WEBP)
    finally:
        plt.close(figure)
    return {theme: buffer.getvalue() for theme, buffer in buffers.items()}


def _slider(label: str, values: Sequence[object], index: int = 0) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(
        options=[str(value) for value in values],
        index=index,
        description=label,
        continuous_update=False,
        layout=ipywidgets.Layout(width="100%", max_width="34rem"),
    )


def _few(values: Sequence[object]) -> str:
    """Some of the values, in words."""
    return ", ".join([*map(str, values[:8]), *(["..."] if len(values) > 8 else [])]) or "none"


def _small(text: str) -> str:
    return f"<small>{html.escape(text)}</small>" if text else ""


def _live(
    draw: Callable[..., Figure], axes: Sequence[_Axis], describe: Callable[..., str], caption: str
) -> ipywidgets.Widget:
    sliders = [_slider(*axis) for axis in axes]

    shown = ipywidgets.Image(format="webp", layout=ipywidgets.Layout(max_width="100%"))
    words = ipywidgets.HTML()

    @lru_cache(maxsize=64)
    def drawn(*chosen: int) -> tuple[bytes, str]:
        values = [axis.values[index] for axis, index in zip(axes, chosen)]
        return _pictures(draw(*values), [""])[""], describe(*values)

    def show(_: object = None) -> None:
        words.value = _small("computing ...")
        try:
            shown.value, text = drawn(*(slider.index for slider in sliders))
            words.value = _small(text)
        except Exception as problem:  # said there, and not only in a hidden log
            shown.value = b""  # rather than the picture of something else
            words.value = _small(sentence(problem))
            if not isinstance(problem, PureError):
                raise

    for slider in sliders:
        slider.observe(show, names="index")
    show()
    return ipywidgets.VBox([*sliders, shown, words, ipywidgets.HTML(_small(caption))])


def _static(
    draw: Callable[..., Figure],
    axes: Sequence[_Axis],
    folder: Path,
    name: str,
    describe: Callable[..., str],
    caption: str,
) -> HTML:
    root, pictures = f"{SITE}/explorers/{name}/", []
    for shown in product(*(axis.values for axis in axes)):
        contents = _pictures(draw(*shown), THEMES)
        # The content names the file, so that a browser never shows a picture of an earlier build.
        named = hashlib.sha256(b"".join(contents.values())).hexdigest()[:8]
        file = f"{file_word('-'.join(map(str, shown)))}-{named}.webp"
        for theme, content in contents.items():
            write_atomically(folder / "explorers" / name / theme / file, partial(Path.write_bytes, data=content))
        pictures.append((file, describe(*shown)))
    sliders = [{"label": axis.label, "values": list(map(str, axis.values)), "start": axis.start} for axis in axes]
    told = json.dumps({"root": root, "axes": sliders, "pictures": pictures})
    told = told.replace("<", "\\u003c")  # or it could end the element
    place = np.ravel_multi_index([axis.start for axis in axes], [len(axis.values) for axis in axes])
    file, text = pictures[int(place)]
    with Image.open(folder / "explorers" / name / file) as picture:
        width, height = picture.size
    image = f'<img src="{root}{file}" width="{width}" height="{height}" loading="lazy" alt="{html.escape(text)}">'
    for theme in filter(None, THEMES):  # of two variants the style sheet shows one, and a browser loads no other
        other = image.replace(root, f"{root}{theme}/", 1)
        image = image.replace("<img", '<img class="on-light"') + other.replace("<img", f'<img class="on-{theme}"')
    label = html.escape(axes[0].label)
    return _figure(
        'data-kind="pictures"',
        f'<div class="explorer-view" tabindex="0" role="group" aria-label="{label}">{image}</div>',
        f'<p class="explorer-words" aria-live="polite">{html.escape(text)}</p>',
        f'<script type="application/json">{told}</script>',
        caption=caption,
    )


def _static_neurons(study: Study, start: int, site: Path, parts: bool, whole: bool, caption: str) -> HTML:
    made = Atlas(study)
    # The book's own study has an atlas there, with more methods; any other study gets what its explorer needs.
    name = "neurons" if identity_of(site / "neurons") == made.identity else f"neurons-{study.name}"
    channels = sorted({start, *study.most_polysemantic()})  # of thousands of neurons the pictures would take hours
    if name != "neurons":
        draw_atlas(made, site / name, channels)
    kind = f'data-kind="neuron" data-root="{SITE}/{name}/" data-neurons="{" ".join(map(str, channels))}"'
    kind += f' data-of="{study.references.channels}"'
    kind += ' data-pages="true"' if name == "neurons" else ""  # the others have no pages to link to
    kind += f' data-start="{start}" data-parts="{str(parts).lower()}" data-whole="{str(whole).lower()}"'
    still = f'<a href="{SITE}/{name}/{start}.html">Neuron {start}</a>' if name == "neurons" else f"Neuron {start}"
    words = '<p class="explorer-words" aria-live="polite"></p>'
    return _figure(kind, f"<noscript>{still}</noscript>", words, caption=caption)


def _figure(attributes: str, *content: str, caption: str) -> HTML:
    told = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    text = f'<figure class="explorer" {attributes}>{"".join(content)}{told}</figure>'
    return HTML(text)  # type: ignore[no-untyped-call]
