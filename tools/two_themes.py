"""Figures of the book for screens of any density and for both themes, from one drawing.

A chapter's kernel calls :func:`keep_both`. Every figure is then put out with twice as many pixels as it is shown with,
and once more for the dark theme: without its ground, and with all that is grey, text and axes above all, from light to
dark. Pictures in it, and what lies on them, stay as they are. The second goes to a folder, under the name that
MyST-NB gives the first; ``book/_ext/bookext/lighter.py`` puts both on the page. A slider's pictures have both, too.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from IPython.core import pylabtools
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection, QuadMesh
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from numpy.typing import NDArray

from pure_nb.compute.store import write_atomically
from pure_nb.figures.colours import luminance

GROUND, INK = np.array(to_rgba("#121212")), np.array(to_rgba("#ced6dd"))
"""Of the dark theme: what white becomes, and black."""

TEXT, MARK = 4.5, 3.0
"""Least contrast of coloured text and marks with the dark ground, as WCAG 2.2 asks (success criteria 1.4.3, 1.4.11)."""

COLOURS = {Text: ["color"], Line2D: ["color", "markerfacecolor", "markeredgecolor"], Patch: ["facecolor", "edgecolor"]}
COLOURS |= {Collection: ["facecolor", "edgecolor"]}


def keep_both(folder: Path) -> None:
    """Let the figures of this kernel be put out in both variants, the dark ones to a folder."""
    from pure_nb.show import widgets  # which kernels have imported, and who starts them need not

    widgets.THEMES["dark"] = darkened
    plain = pylabtools.retina_figure

    def both(figure: Figure, base64: bool = False, **how: Any) -> Any:
        found = plain(figure, base64=base64, **how)
        if found is not None:
            shown = b64decode(found[0]) if base64 else found[0]
            path = folder / f"{hashlib.sha256(shown).hexdigest()}.png"
            with darkened(figure):
                dark = plain(figure, **how)[0]
            write_atomically(path, partial(Path.write_bytes, data=dark))
        return found

    pylabtools.retina_figure = both  # the formats of a figure are fixed only once a chapter imports pyplot


@contextmanager
def darkened(figure: Figure) -> Iterator[None]:
    """Switch a figure to the colours of the dark theme, and back."""
    with ExitStack() as undo:
        for image in figure.findobj(AxesImage):
            _switch(undo, image.get_array, image.set_data, without_gaps)
        kept = {artist for axes in figure.findobj(Axes) for artist in _on_pictures(axes)}
        for artist in figure.findobj(lambda artist: not isinstance(artist, AxesImage) and artist not in kept):
            _darken(undo, artist)
        for panel in figure.findobj(lambda artist: isinstance(artist, (FigureBase, Axes))):
            _switch(undo, panel.patch.get_visible, panel.patch.set_visible, lambda shown: False)
        yield


def on_dark(colours: Any, contrast: float) -> Any:
    """Colours for the dark ground: greys from light to dark, others lighter where they would not be seen."""
    if isinstance(colours, str) and colours in ("none", "auto"):
        return colours
    if np.ndim(colours) == 2:
        return [on_dark(colour, contrast) for colour in colours]
    colour = np.array(to_rgba(colours))
    if np.ptp(colour[:3]) < 0.05:
        own = INK + colour[:3].mean() * (GROUND - INK)
        return (*own[:3].tolist(), colour[3])
    while (luminance(to_hex(colour)) + 0.05) / (luminance(to_hex(GROUND)) + 0.05) < contrast:
        colour[:3] += 0.03 * (1 - colour[:3])
    return tuple(colour.tolist())


def without_gaps(picture: NDArray[Any]) -> NDArray[Any]:
    """A sheet of pictures, white between them, with nothing between them instead."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        return picture
    white = (picture == 255).all(axis=2)
    gaps = white.all(axis=1)[:, None] & np.ones_like(white)
    rows = np.flatnonzero(np.diff(np.r_[True, gaps[:, 0], True].astype(int)))
    for start, stop in zip(rows[::2], rows[1::2]):
        gaps[start:stop] = white[start:stop].all(axis=0)
    return np.dstack([picture, np.where(gaps, 0, 255).astype(np.uint8)])


def _darken(undo: ExitStack, artist: Artist) -> None:
    if isinstance(artist, Collection) and artist.get_array() is not None and getattr(artist, "colors", None) is None:
        return  # its colours say numbers, unless they are those given to lines of a density
    box = artist.get_bbox_patch() if isinstance(artist, Text) else None  # which is no child of it
    if box is not None:
        _darken(undo, box)
    alpha = artist.get_alpha()
    if alpha is not None and not isinstance(artist, Text):  # on the dark ground less would be seen of it
        _switch(undo, artist.get_alpha, artist.set_alpha, np.sqrt)
    contrast = TEXT if isinstance(artist, Text) else MARK
    names = [name for kind, names in COLOURS.items() if isinstance(artist, kind) for name in names]
    before = {name: getattr(artist, f"get_{name}")() for name in names}  # all first: markers follow their line
    for name, colours in before.items():
        if not _clear(colours):  # which an alpha of the whole would make visible
            put = getattr(artist, f"set_{name}")
            undo.callback(put, colours)
            put(on_dark(colours, contrast))


def _clear(colours: Any) -> bool:
    return np.shape(colours)[-1:] == (4,) and not np.atleast_2d(colours)[:, 3].any()


def _switch(undo: ExitStack, get: Callable[[], Any], put: Callable[[Any], Any], change: Callable[[Any], Any]) -> None:
    before = get()
    undo.callback(put, before)
    put(change(before))


def _on_pictures(axes: Axes) -> list[Artist]:
    """What is drawn on the pictures or the heatmap that axes hold."""
    if not axes.images and not any(isinstance(one, QuadMesh) for one in axes.collections):
        return []
    drawn = [*axes.texts, *axes.lines, *axes.patches, *axes.collections, *axes.get_xgridlines(), *axes.get_ygridlines()]
    with np.errstate(invalid="ignore"):  # what is empty has no middle
        middles = [np.mean(one.get_window_extent().get_points(), axis=0) for one in drawn]
    inside = [(one, middle) for one, middle in zip(drawn, middles) if axes.bbox.contains(*middle)]
    return [one for one, middle in inside if not _in_gap(axes, one, middle)]


def _in_gap(axes: Axes, artist: Artist, middle: NDArray[Any]) -> bool:
    """Whether words stand beside the pictures of axes, or between those of a sheet :func:`without_gaps`."""
    if not isinstance(artist, Text) or not axes.images or luminance(to_hex(artist.get_color())) > 0.5:
        return False  # light words stand on a colour, or could not be read on white
    x, y = axes.transData.inverted().transform(middle)
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        across, down = (x - left) / (right - left), (y - top) / (bottom - top)
        if 0 <= across < 1 and 0 <= down < 1:
            sheet = np.asarray(image.get_array())
            return bool(sheet.shape[2:] == (4,) and not sheet[int(down * len(sheet)), int(across * len(sheet[0])), 3])
    return True
