"""The colours of all figures: one for each part of a neuron, and one for whatever else comes again in other figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from numpy.typing import NDArray

_COLOURBLIND = "#0173b2 #de8f05 #029e73 #d55e00 #cc78bc #ca9161 #fbafe4 #949494 #ece133 #56b4e9"
PALETTE: tuple[Any, ...] = tuple(map(to_rgb, _COLOURBLIND.split()))
"""Colours of virtual neurons A, B, C ..., which the colour-blind can tell apart: seaborn's, which is slow to import."""

FOUND, REST = PALETTE[0], PALETTE[7]
"""What a figure is about, and all else: other neurons, random draws, what is left."""

FOR, AGAINST = PALETTE[0], PALETTE[3]
"""What speaks for something or pushes it up, and what speaks against it or holds it down."""

SIGNED = LinearSegmentedColormap.from_list("signed", [AGAINST, (0.97, 0.97, 0.97), FOR])
"""From all against, at the least value, over nothing to all for."""

WITHIN, ACROSS = PALETTE[9], PALETTE[5]
"""Pairs of images of one part, and of two."""

NAMED = {
    "random": REST,
    "pixels": PALETTE[9],
    "dino": PALETTE[4],
    "clip": PALETTE[2],
    "combined": PALETTE[6],
    "activation": PALETTE[1],
    "channel": PALETTE[5],
    "circuit": PALETTE[0],
    "pure": PALETTE[0],
    "part": PALETTE[0],
    "label": PALETTE[3],
}
"""What describes images, judges parts or is switched off: the first word that a name holds says its colour."""

NOBODY = "#d9d9d9"
"""What belongs to no part, or to one that stands for nothing."""

TRUTH, MARKED = to_rgb("0.2"), to_rgb("red")
"""What is known, and a frame around what is pointed out in a picture."""

SHADES = ((0, 0.0), (0, 0.5), (1, 0.55), (0, 0.75))
"""What each ten more parts are mixed with, black (0) or white (1), and how much of it."""

CONTRAST = 4.5
"""Least contrast of text with what is behind it, as WCAG 2.2 asks (success criterion 1.4.3)."""


def part_colour(part: int) -> str:
    """The colour of a part, as ``"#0173b2"``; forty parts have one of their own."""
    ten, own = divmod(part, len(PALETTE))
    other, share = SHADES[ten % len(SHADES)]
    return _hex((1 - share) * np.array(PALETTE[own]) + share * other)


def named_colour(name: str) -> Any:
    """The colour of a method, a judge or a kind of unit in all figures; near black for the truth, and for the unknown.

    Examples
    --------
    >>> named_colour("PURE at maximum") == named_colour("parts")
    True
    """
    return next((colour for word, colour in NAMED.items() if word in name.lower()), TRUTH)


def named_colours(names: Iterable[str]) -> dict[str, Any]:
    """As :func:`named_colour`, for one figure: of names of one colour the first has it, the others some of the palette.

    Examples
    --------
    >>> len({*named_colours(["parts", "nearest parts", "channels"]).values()})
    3
    """
    found = {name: named_colour(name) for name in names}
    free, used = [colour for colour in PALETTE if colour not in found.values()], []
    for name, colour in found.items():
        found[name] = free.pop(0) if colour in used and free else colour
        used.append(colour)
    return found


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
