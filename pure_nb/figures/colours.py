"""The colours of virtual neurons: no two of a neuron's parts share one, and text in one can be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray

PALETTE = tuple(sns.color_palette("colorblind", 10))
"""Colours of virtual neurons A, B, C ...; they can be told apart by the colour-blind."""

SHADES = ((0, 0.0), (0, 0.5), (1, 0.55), (0, 0.75))
"""What each ten more parts are mixed with, black (0) or white (1), and how much of it."""

CONTRAST = 4.5
"""Least contrast of text with what is behind it, as WCAG 2.2 asks (success criterion 1.4.3)."""


def part_colour(part: int) -> str:
    """The colour of a part, as ``"#0173b2"``; forty parts have one of their own."""
    ten, own = divmod(part, len(PALETTE))
    other, share = SHADES[ten % len(SHADES)]
    return _hex((1 - share) * np.array(PALETTE[own]) + share * other)


def readable(colour: str) -> str:
    """A colour, darker where text in it could not be read on white."""
    rgb = np.array(to_rgb(colour))
    while (1 + 0.05) / (luminance(_hex(rgb)) + 0.05) < CONTRAST:
        rgb *= 0.97
    return _hex(rgb)


def luminance(colour: str) -> float:
    """Relative luminance, 0..1, as WCAG 2.2 defines it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _hex(rgb: NDArray[np.floating[Any]]) -> str:
    return to_hex(tuple(rgb.tolist()))
