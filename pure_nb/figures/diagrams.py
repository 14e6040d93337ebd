"""Drawings of routes in one style: images, the lower channels, a channel, and what it leads to, from left to right.

SVG that follows the colours of the page it stands in, with text that is text. The same things stand at the same places:
:data:`IMAGE`, :data:`LOWER`, :data:`CHANNEL`, :data:`HEAD`. The colours of routes are those of virtual neurons.
"""

from __future__ import annotations

import html

from pure_nb.figures.colours import part_colour

WIDTH = 340
"""Of a drawing, in units that are about a pixel on a phone: so text of 14 units can be read there."""

IMAGE, LOWER, CHANNEL, HEAD = 34, 128, 222, 302
"""Where images, lower channels, the channel, and what it leads to stand."""

PAPER = "var(--pst-color-background, var(--jp-layout-color0, Canvas))"

THICKEST = 9
"""The width of a line for a share of 1."""

Point = tuple[float, float]


class Drawing:
    """A drawing that is added to, and read as a whole in the end.

    Parameters
    ----------
    name
        A word that is unique in a page.
    height
        In the units of :data:`WIDTH`.
    title, text
        What it is called, and what it shows, for those who can't see it.

    Examples
    --------
    >>> drawing = Drawing("way", 60, "A way", "An image and a channel.")
    >>> drawing.route((50, 30), (200, 30), 0.5, part=0)
    >>> drawing.channel(CHANNEL, 30, "7")
    >>> drawing.svg()[:28]
    '<svg xmlns="http://www.w3.or'
    """

    def __init__(self, name: str, height: float, title: str, text: str) -> None:
        self.name, self.height, self.title, self.alt = name, height, title, text
        self.lines: list[str] = []
        self.marks: list[str] = []

    def text(self, x: float, y: float, words: str, *, bold: bool = False) -> None:
        """Words at a place, in as many lines as they have."""
        weight = ' font-weight="600"' if bold else ""
        rows = words.split("\n")
        inner = "".join(
            f'<tspan x="{x:g}" dy="{16 if row else 0}">{html.escape(own)}</tspan>' for row, own in enumerate(rows)
        )
        self.marks.append(f'<text x="{x:g}" y="{y:g}" text-anchor="middle"{weight}>{inner}</text>')

    def heads(self, *words: str) -> None:
        """What stands below, from left to right; "" is nothing."""
        for x, own in zip((IMAGE, LOWER, CHANNEL, HEAD), words):
            if own:
                self.text(x, 14, own)

    def route(
        self, start: Point, end: Point, share: float = 0.2, *, part: int | None = None, held: bool = False
    ) -> None:
        """A line as thick as a share from 0 to 1, in the colour of a part; dashed where it holds the channel down."""
        (x, y), (right, bottom) = start, end
        middle = (x + right) / 2
        path = f"M{x:g} {y:g}C{middle:g} {y:g} {middle:g} {bottom:g} {right:g} {bottom:g}"
        colour = "currentColor" if part is None else paint(part)
        faint = ' opacity="0.35"' if part is None else ""
        dashes = ' stroke-dasharray="6 4"' if held else ""
        width = max(1.0, THICKEST * share)
        self.lines.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:.1f}"{faint}{dashes}/>')

    def channel(self, x: float, y: float, words: str = "", *, part: int | None = None, radius: float = 13) -> None:
        """A channel: a disc with a few words in it, its edge in the colour of a part."""
        edge = 'stroke="currentColor" stroke-width="1.5"'
        if part is not None:
            edge = f'stroke="{paint(part)}" stroke-width="4"'
        self.marks.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{PAPER}" {edge}/>')
        if words:
            self.text(x, y + 5, words)

    def picture(
        self, x: float, y: float, path: str = "", *, href: str = "", part: int | None = None, side: float = 44
    ) -> None:
        """An image: a frame around the outline of a glyph, whose longer side is 1, or around a picture."""
        left, top = x - side / 2, y - side / 2
        colour, width = ("currentColor", 1.5) if part is None else (paint(part), 3)
        box = f'x="{left:g}" y="{top:g}" width="{side:g}" height="{side:g}"'
        if href:
            self.marks.append(f'<image {box} href="{html.escape(href)}"/>')
        inside = "none" if href else PAPER
        self.marks.append(f'<rect {box} rx="4" fill="{inside}" stroke="{colour}" stroke-width="{width}"/>')
        if path:
            place = f'transform="translate({x:g} {y:g}) scale({0.62 * side:g})"'
            self.marks.append(f'<path d="{path}" fill="currentColor" {place}/>')

    def mark(self, element: str) -> None:
        """Any other element."""
        self.marks.append(element)

    def svg(self) -> str:
        """All of it."""
        label = f'aria-labelledby="{self.name}-title {self.name}-text"'
        inner = "\n".join([*self.lines, *self.marks])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="diagram" viewBox="0 0 {WIDTH} {self.height:g}" '
            f'role="img" {label} fill="currentColor" font-family="system-ui, sans-serif" font-size="14">\n'
            f'<title id="{self.name}-title">{html.escape(self.title)}</title>\n'
            f'<desc id="{self.name}-text">{html.escape(self.alt)}</desc>\n'
            "<style>svg:root { color-scheme: light dark; color: CanvasText }</style>\n"
            f"{inner}\n</svg>\n"
        )


def paint(part: int) -> str:
    """The colour of a part, which a page may set by ``--part-0``, ``--part-1`` and so on."""
    return f"var(--part-{part}, {part_colour(part)})"
