"""Draw the book's logo and its favicon: one disc, split into three.

    python tools/draw_logo.py [FOLDER]    # book/ by default

The name is set in DejaVu Sans, like the glyphs of the small world, and written as outlines, so that it looks the same
where that font is missing. Its grey stands out from white and from dark pages alike.
"""

from __future__ import annotations

import sys
from math import cos, pi, sin
from pathlib import Path

import matplotlib
from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.pens.transformPen import TransformPen
from fontTools.ttLib import TTFont

PARTS = ((0.42, "#0173b2"), (0.33, "#de8f05"), (0.25, "#029e73"))
"""Share and colour of each part; the colours are told apart by the colour-blind, too."""
GREY = "#76808c"
NAME = "pure_nb"
SIZE = 32
"""Side of the mark."""


def mark(gap: float) -> str:
    """The disc, its parts moved out from the centre by ``gap``."""
    radius = SIZE / 2 - gap - 0.25
    paths = []
    begin = -0.75 * pi
    for share, colour in PARTS:
        end = begin + 2 * pi * share
        middle = (begin + end) / 2
        x, y = SIZE / 2 + gap * cos(middle), SIZE / 2 + gap * sin(middle)
        start, stop = ((x + radius * cos(angle), y + radius * sin(angle)) for angle in (begin, end))
        arc = f"A{radius:.2f} {radius:.2f} 0 0 1 {stop[0]:.2f} {stop[1]:.2f}"
        paths.append(f'<path fill="{colour}" d="M{x:.2f} {y:.2f}L{start[0]:.2f} {start[1]:.2f}{arc}Z"/>')
        begin = end
    return "\n".join(paths)


def outlines(text: str, x: float, baseline: float, size: float) -> tuple[str, float]:
    """The outlines of a text as a path, and where it ends."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    with TTFont(fonts / "DejaVuSans-Bold.ttf") as font:
        glyphs, names, scale = font.getGlyphSet(), font.getBestCmap(), size / font["head"].unitsPerEm
        pen = SVGPathPen(glyphs, ntos=lambda value: f"{value:.2f}".rstrip("0").rstrip("."))
        for character in text:
            glyph = glyphs[names[ord(character)]]
            glyph.draw(TransformPen(pen, (scale, 0, 0, -scale, x, baseline)))
            x += glyph.width * scale
    return pen.getCommands(), x


def favicon() -> str:
    """The mark alone, with gaps that are seen at 16 pixels."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}">\n{mark(1.6)}\n</svg>\n'


def logo() -> str:
    """The mark and the name."""
    path, end = outlines(NAME, SIZE + 8, 22.5, 21)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {end + 1:.0f} {SIZE}" role="img" aria-label="{NAME}">\n'
        f'{mark(1.4)}\n<path fill="{GREY}" d="{path}"/>\n</svg>\n'
    )


def main(folder: Path) -> None:
    """Write both files."""
    for name, drawing in (("logo.svg", logo()), ("favicon.svg", favicon())):
        (folder / name).write_text(drawing, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "book")
