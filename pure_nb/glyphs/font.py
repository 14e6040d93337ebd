"""The classes of the glyph world, and their glyphs, drawn from the outlines of a font that ships inside matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pure_nb.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.textpath import TextPath


@dataclass(frozen=True)
class GlyphClass:
    """A class of the glyph world: its name, its character in DejaVu Sans, and its WordNet 3.0 synset."""

    name: str
    character: str
    synset: str


CLASSES = tuple(
    GlyphClass(*row.split()) for row in Path(__file__).with_name("classes.txt").read_text(encoding="utf-8").splitlines()
)
"""The 48 classes of the glyph world, in the order of the shipped network's outputs."""


def outline(character: str) -> TextPath:
    """The outline of a glyph of DejaVu Sans.

    Parameters
    ----------
    character
        One character that DejaVu Sans has.

    Raises
    ------
    ArgumentError
        If it has no such character.
    """
    from matplotlib import font_manager  # late: only for the first glyph that is drawn
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    file = font_manager.findfont("DejaVu Sans", fallback_to_default=False)
    font = FontProperties(fname=file)
    if not font_manager.get_font(file).get_char_index(ord(character)):
        raise ArgumentError(
            f"DejaVu Sans has no glyph for {character!r} (U+{ord(character):04X}); choose another character"
        )
    return TextPath((0, 0), character, size=100, prop=font)


def svg_path(character: str) -> str:
    """The outline of a glyph as an SVG path: its longer side is 1, and the middle at 0.

    Parameters
    ----------
    character
        As for :func:`outline`.
    """
    from matplotlib.path import Path as Outline  # as in outline

    shape = outline(character)
    every = np.concatenate(shape.to_polygons(closed_only=True)) * (1, -1)
    low, high = every.min(axis=0), every.max(axis=0)
    middle, extent = (low + high) / 2, (high - low).max()
    letters = dict(zip((Outline.MOVETO, Outline.LINETO, Outline.CURVE3, Outline.CURVE4, Outline.CLOSEPOLY), "MLQCZ"))
    written = []
    for values, code in shape.iter_segments():
        numbers = (values.reshape(-1, 2) * (1, -1) - middle) / extent
        told = "" if code == Outline.CLOSEPOLY else " ".join(f"{number:.3f}" for number in numbers.ravel())
        written.append(letters[code] + told)
    return "".join(written)


@cache
def glyph(character: str, size: int = 144) -> NDArray[np.float32]:
    """Rasterise a glyph of DejaVu Sans from its outline.

    Parameters
    ----------
    character
        One character that DejaVu Sans has.
    size
        Side of the square result in pixels; three times that of an object's cell by default.

    Returns
    -------
    ndarray
        Coverage in 0..1, ``[size, size]``; the ink is centred and its longer side spans the square.

    Raises
    ------
    ArgumentError
        If DejaVu Sans has no such character.
    """
    contours = outline(character).to_polygons(closed_only=True)
    every = np.concatenate(contours)
    (left, bottom), (right, top) = every.min(axis=0), every.max(axis=0)
    extent = max(right - left, top - bottom)
    oversampled = 2 * size
    steps = (np.arange(oversampled) + 0.5) / oversampled - 0.5
    xs = (left + right) / 2 + steps * extent
    ys = (bottom + top) / 2 - steps * extent
    winding = np.zeros((oversampled, oversampled), dtype=int)  # holes run the other way round, and cancel
    for contour in contours:
        (ax, ay), (bx, by) = np.transpose(contour), np.transpose(np.roll(contour, -1, axis=0))
        turn = np.int64(np.sign((ax * by - bx * ay).sum()))
        winding += turn * _inside(np.asarray(contour), xs, ys)
    return (winding != 0).reshape(size, 2, size, 2).mean(axis=(1, 3), dtype=np.float32)


def _inside(contour: NDArray[np.float64], xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points of a grid a closed contour goes around, ``[y, x]``: those with an odd number of edges beside them.

    What ``matplotlib.path.Path.contains_points`` says, to the bit; but of an edge only the rows that it crosses are
    looked at, which takes a tenth of the time.
    """
    inside = np.zeros((len(ys), len(xs)), dtype=bool)
    (ax, ay), (bx, by) = contour[:-1].T, contour[1:].T
    above = ys[:, None] <= by
    row, edge = np.nonzero(above != (ys[:, None] <= ay))  # which edges cross which rows
    beside = ((by[edge] - ys[row]) * (ax - bx)[edge])[:, None] >= (bx[edge, None] - xs) * (ay - by)[edge, None]
    crossed, first = np.unique(row, return_index=True)
    inside[crossed] = np.bitwise_xor.reduceat(beside == above[row, edge, None], first)
    return inside


@cache
def inked(label: int) -> Image.Image:
    """A class's glyph as a picture in 0..255."""
    return Image.fromarray(np.uint8(255 * glyph(CLASSES[label].character)))
