"""Draw the diagrams of the chapters, one each, into ``book/diagrams``.

    python tools/draw_diagrams.py [FOLDER]

All in the style of :mod:`pure_nb.figures.diagrams`: images, lower channels, a channel and what it leads to, from left
to right, and two routes in two colours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from pure_nb.figures.diagrams import CHANNEL, HEAD, IMAGE, LOWER, PAPER, Drawing, Point, paint
from pure_nb.glyphs.font import CLASSES, svg_path

FOLDER = Path(__file__).parents[1] / "book" / "diagrams"
GLYPHS = {one.name: one.character for one in CLASSES}

ROUTES = ((0.85, 0.5, 0.12, 0.06, 0.1), (0.1, 0.06, 0.12, 0.55, 0.8))
"""How much each of five lower channels brings, by two routes."""


def glyph(name: str) -> str:
    """The outline of a class of the small world."""
    return svg_path(GLYPHS[name])


def spread(count: int, first: float, last: float) -> list[float]:
    """Places at equal distances."""
    return [first + (last - first) * step / (count - 1) for step in range(count)]


def two_routes(drawing: Drawing, starts: Iterable[Point], lower: list[float], end: Point) -> None:
    """The routes of two images, or classes, through five lower channels to one channel."""
    for part, (start, shares) in enumerate(zip(starts, ROUTES)):
        for y, share in zip(lower, shares):
            drawing.route(start, (LOWER, y), share, part=part)
            drawing.route((LOWER, y + (3 if part else -3)), end, share, part=part)
    for y in lower:
        drawing.channel(LOWER, y)


def head() -> Drawing:
    """Fewer channels than meanings."""
    text = (
        "An image leads through lower channels to six of the 32 channels of the last stage. These lead to nine of the "
        "48 outputs. One channel is marked, and leads to three outputs: umbrella, telephone and cloud."
    )
    drawing = Drawing("head", 258, "Fewer channels than meanings", text)
    drawing.heads("image", "lower layer", "channels", "outputs")
    drawing.text(CHANNEL, 250, "6 of 32")
    drawing.text(HEAD, 250, "9 of 48")
    lower, own, outputs = spread(4, 60, 200), spread(6, 45, 215), spread(9, 38, 222)
    names = ["umbrella", "cat", "telephone", "anchor", "star", "cloud", "heart", "flag", "snowman"]
    for y in lower:
        drawing.route((IMAGE, 130), (LOWER, y))
        for below in own:
            drawing.route((LOWER, y), (CHANNEL, below), 0.1)
    for place, y in enumerate(own):
        for at, output in enumerate(outputs):
            if place != 2 and (at + place) % 3 == 0:
                drawing.route((CHANNEL, y), (HEAD - 12, output), 0.1)
    for at in (0, 2, 5):
        drawing.route((CHANNEL, own[2]), (HEAD - 12, outputs[at]), 0.5, part=0)
    drawing.picture(IMAGE, 130, glyph("umbrella"))
    for y in lower:
        drawing.channel(LOWER, y, radius=10)
    for place, y in enumerate(own):
        drawing.channel(CHANNEL, y, part=0 if place == 2 else None, radius=11)
    for name, y in zip(names, outputs):
        drawing.picture(HEAD, y, glyph(name), side=22, part=0 if names.index(name) in (0, 2, 5) else None)
    return drawing


def references() -> Drawing:
    """One channel over all images."""
    text = (
        "Six images lead to one channel, by lines as thick as they activate it. On the right the three that activate "
        "it most, in order: umbrella, telephone, heart."
    )
    drawing = Drawing("references", 246, "One channel over all images", text)
    drawing.heads("images", "", "channel", "top 3")
    every = spread(6, 45, 220)
    names = ["cat", "umbrella", "star", "heart", "flag", "telephone"]
    scores = [0.08, 0.95, 0.05, 0.5, 0.12, 0.75]
    best = sorted(range(6), key=lambda place: -scores[place])[:3]
    for place, y in enumerate(every):
        drawing.route((IMAGE, y), (CHANNEL, 132), scores[place], part=0 if place in best else None)
    for rank, (place, y) in enumerate(zip(best, spread(3, 76, 188))):
        drawing.route((CHANNEL, 132), (HEAD, y), scores[place], part=0)
        drawing.picture(HEAD, y, glyph(names[place]), part=0)
        drawing.text(HEAD + 31, y + 5, f"{rank + 1}", bold=True)
    for name, y in zip(names, every):
        drawing.picture(IMAGE, y, glyph(name), side=30)
    drawing.channel(CHANNEL, 132, radius=15)
    return drawing


def circuits() -> Drawing:
    """Two images, one channel, two routes."""
    text = (
        "Two images, an umbrella and a telephone, lead to the same channel through five lower channels. The thick "
        "lines of the umbrella pass through the upper ones, those of the telephone through the lower ones."
    )
    drawing = Drawing("circuits", 236, "Two images, one channel, two routes", text)
    drawing.heads("images", "lower layer", "channel")
    starts: list[Point] = [(IMAGE, 80), (IMAGE, 180)]
    two_routes(drawing, starts, spread(5, 45, 215), (CHANNEL, 130))
    for part, (name, (x, y)) in enumerate(zip(("umbrella", "telephone"), starts)):
        drawing.picture(x, y, glyph(name), part=part)
    drawing.channel(CHANNEL, 130, radius=15)
    drawing.text(HEAD, 118, "equally\nactive\nboth times")
    return drawing


def clusters() -> Drawing:
    """Circuits, clusters, virtual neurons."""
    text = (
        "Four images of one channel, and beside each the bars of its circuit: two are high on the left, two on the "
        "right. As points in a plane the circuits lie in two heaps, and each heap is a virtual neuron, A or B."
    )
    drawing = Drawing("clusters", 246, "Circuits, clusters, virtual neurons", text)
    drawing.heads("images", "circuits", "clusters", "parts")
    names, parts, rows = ["umbrella", "telephone", "umbrella", "telephone"], [0, 1, 0, 1], spread(4, 55, 211)
    points: list[Point] = [(205, 80), (238, 176), (216, 95), (226, 190)]
    for name, part, y, point in zip(names, parts, rows, points):
        for at, share in enumerate(ROUTES[part]):
            high = 32 * share
            place = f'x="{LOWER - 29 + 12 * at}" y="{y + 14 - high:g}" width="9" height="{high:g}"'
            drawing.mark(f'<rect {place} fill="{paint(part)}"/>')
        drawing.mark(f'<path d="M{LOWER - 32} {y + 14:g}h64" stroke="currentColor"/>')
        drawing.route((LOWER + 36, y), point, 0.1)
        drawing.picture(IMAGE, y, glyph(name), side=36)
    frame = f'x="{CHANNEL - 36}" y="60" width="72" height="146"'
    drawing.mark(f'<rect {frame} rx="4" fill="none" stroke="currentColor" opacity="0.5"/>')
    around = [(212, 70), (222, 84), (200, 94), (228, 166), (244, 190), (214, 178)]
    for part, some in ((0, [points[0], points[2], *around[:3]]), (1, [points[1], points[3], *around[3:]])):
        for x, y in some:
            drawing.mark(f'<circle cx="{x}" cy="{y}" r="5" fill="{paint(part)}"/>')
    for part, (letter, y) in enumerate((("A", 84), ("B", 180))):
        drawing.route((CHANNEL + 36, y), (HEAD, y), 0.4, part=part)
        drawing.channel(HEAD, y, letter, part=part, radius=16)
    return drawing


def averages() -> Drawing:
    """The mean route of each class."""
    text = (
        "Two classes, clouds and atoms, each a stack of images, lead to the same channel through five sources. The "
        "lines are the means over the images of a class: those of clouds are thick above, those of atoms below."
    )
    drawing = Drawing("averages", 246, "The mean route of each class", text)
    drawing.heads("classes", "sources", "channel")
    starts: list[Point] = [(IMAGE + 8, 80), (IMAGE + 8, 180)]
    two_routes(drawing, starts, spread(5, 45, 215), (CHANNEL, 130))
    for part, (name, (_, y)) in enumerate(zip(("cloud", "atom"), starts)):
        for step in (2, 1, 0):
            drawing.picture(IMAGE + 4 * step - 2, y - 5 * step, glyph(name) if step == 0 else "", part=part, side=40)
        drawing.text(IMAGE, y + 38, name)
    drawing.channel(CHANNEL, 130, radius=15)
    drawing.text(HEAD, 118, "one mean\nfor each\nclass")
    return drawing


def splitting() -> Drawing:
    """One channel becomes two, and the sum stays."""
    text = (
        "Above, five sources lead to one channel, and this to the head. Below, the same sources: the upper two lead to "
        "channel A, the lower two to channel B, the middle one to a residual r. A plus B minus r leads to the head as "
        "much as the one channel did."
    )
    drawing = Drawing("splitting", 330, "One channel becomes two, and the sum stays", text)
    drawing.heads("", "sources", "channel", "head")
    before, after = spread(5, 40, 120), spread(5, 180, 310)
    for y in before:
        drawing.route((LOWER, y), (CHANNEL, 80))
        drawing.channel(LOWER, y, radius=8)
    drawing.route((CHANNEL, 80), (HEAD, 80), 0.6)
    drawing.channel(CHANNEL, 80, radius=15)
    drawing.text(IMAGE + 4, 85, "before", bold=True)
    owned = [(0, 200), (0, 200), (None, 245), (1, 290), (1, 290)]
    for (part, end), y in zip(owned, after):
        drawing.route((LOWER, y), (CHANNEL, end), 0.4, part=part)
        drawing.channel(LOWER, y, part=part, radius=8)
    for words, part, y in (("A", 0, 200), ("r", None, 245), ("B", 1, 290)):
        drawing.route((CHANNEL, y), (HEAD, 245), 0.4, part=part, held=part is None)
        drawing.channel(CHANNEL, y, words, part=part)
    for y in (80, 245):
        drawing.channel(HEAD, y, "\u03a3", radius=15)
    drawing.text(HEAD, 112, "= \u03a3 below")
    drawing.text(HEAD, 278, "A + B \u2212 r")
    drawing.text(IMAGE + 4, 250, "after", bold=True)
    return drawing


def reasons() -> Drawing:
    """An output, and the parts behind it."""
    text = (
        "Read from right to left: an output, and the channels that speak for it. Of one of them it is part B alone, by "
        "a thick line, and part A brings little. This part is reached from one corner of the image."
    )
    drawing = Drawing("reasons", 236, "An output, and the parts behind it", text)
    drawing.heads("image", "lower layer", "parts", "output")
    lower, parts = spread(4, 50, 205), [(70, "A", 0, 0.12), (130, "B", 1, 0.85), (196, "", None, 0.2)]
    for y, strong in zip(lower, (0.1, 0.6, 0.7, 0.1)):
        drawing.route((IMAGE + 16, 112), (LOWER, y), strong, part=1 if strong > 0.5 else None)
        drawing.route((LOWER, y), (CHANNEL, 130), strong, part=1 if strong > 0.5 else None)
        drawing.route((LOWER, y), (CHANNEL, 70), 0.1)
        drawing.route((LOWER, y), (CHANNEL, 196), 0.1)
        drawing.channel(LOWER, y, radius=10)
    drawing.mark(
        f'<rect x="{CHANNEL - 22}" y="46" width="44" height="108" rx="20" fill="none" stroke="currentColor" '
        'stroke-dasharray="3 3"/>'
    )
    for y, words, part, share in parts:
        drawing.route((CHANNEL, y), (HEAD - 22, 130), share, part=part)
        drawing.channel(CHANNEL, y, words, part=part)
    drawing.picture(IMAGE, 130, glyph("cat"), side=54)
    drawing.mark(f'<rect x="{IMAGE + 13}" y="106" width="11" height="11" fill="{paint(1)}"/>')
    drawing.picture(HEAD, 130, glyph("umbrella"), part=1)
    drawing.text(HEAD, 170, "why?", bold=True)
    return drawing


def tokens() -> Drawing:
    """Tokens, heads, and a neuron of the MLP."""
    text = (
        "An image of three by three patches becomes tokens, of which five are drawn below the class token. Two "
        "attention heads, in two colours, carry what tokens know to the class token. A neuron has a value at each "
        "token; the output is read from the class token."
    )
    drawing = Drawing("tokens", 246, "Tokens, heads, and a neuron", text)
    drawing.heads("patches", "tokens", "neuron", "output")
    drawing.picture(IMAGE, 140, glyph("umbrella"), side=60)
    for step in (-10, 10):
        drawing.mark(
            f'<path d="M{IMAGE - 30} {140 + step}h60M{IMAGE + step} 110v60" stroke="currentColor" opacity="0.5"/>'
        )
    rows = spread(6, 42, 222)
    for place, y in enumerate(rows):
        if place:
            drawing.route((IMAGE + 30, 140), (LOWER - 22, y))
        drawing.route((LOWER + 22, y), (CHANNEL, 132), 0.6 if place == 2 else 0.12)
    for part, (start, share) in enumerate(((2, 0.6), (5, 0.45))):
        left, out, colour = LOWER - 20, LOWER - 58 - 10 * part, f'stroke="{paint(part)}" stroke-width="{9 * share:g}"'
        way = f"M{left} {rows[start]:g}C{out} {rows[start]:g} {out} {rows[0]:g} {left} {rows[0]:g}"
        drawing.mark(f'<path d="{way}" fill="none" {colour}/>')
    for place, y in enumerate(rows):
        box = f'x="{LOWER - 22}" y="{y - 11:g}" width="44" height="22"'
        drawing.mark(f'<rect {box} rx="3" fill="{PAPER}" stroke="currentColor" stroke-width="1.5"/>')
        drawing.text(LOWER, y + 5, "class" if place == 0 else str(place))
    drawing.route((LOWER + 22, rows[0]), (HEAD, rows[0]), 0.4)
    drawing.channel(CHANNEL, 132, radius=15)
    drawing.picture(HEAD, rows[0], glyph("umbrella"), side=34)
    return drawing


def planted() -> Drawing:
    """Two channels are merged, so the truth is known."""
    text = (
        "Images of two channels, umbrellas of A and telephones of B. The two channels are merged to one, so that each "
        "of its images is known to be of A or of B. A method sorts the images of the merged channel, and is "
        "compared with that."
    )
    drawing = Drawing("planted", 236, "Two channels are merged, so the truth is known", text)
    drawing.heads("images", "two channels", "merged", "a method")
    for part, (name, y) in enumerate((("umbrella", 80), ("telephone", 180))):
        for step in (-22, 22):
            drawing.route((IMAGE, y + step), (LOWER, y), 0.3, part=part)
            drawing.picture(IMAGE, y + step, glyph(name), side=36)
        drawing.route((LOWER, y), (CHANNEL, 130), 0.6, part=part)
        drawing.channel(LOWER, y, "AB"[part], part=part, radius=15)
        drawing.route((CHANNEL, 130), (HEAD, y), 0.3)
        drawing.channel(HEAD, y, "?", radius=15)
    drawing.channel(CHANNEL, 130, radius=17)
    drawing.text(LOWER, 228, "the truth", bold=True)
    drawing.text(HEAD, 228, "as true?", bold=True)
    return drawing


def judge() -> Drawing:
    """Crops, and a judge."""
    text = (
        "Images of one neuron are cropped to where it looks, and the crops go to a judge, a separate network. It "
        "lays them out: crops of umbrellas lie near each other, crops of telephones elsewhere."
    )
    drawing = Drawing("judge", 246, "Crops, and a judge", text)
    drawing.heads("images", "crops", "judge", "alike?")
    names, parts, rows = ["umbrella", "telephone", "umbrella", "telephone"], [0, 1, 0, 1], spread(4, 55, 211)
    for name, part, y in zip(names, parts, rows):
        drawing.route((IMAGE + 20, y), (LOWER, y))
        drawing.route((LOWER, y), (CHANNEL, 132), 0.3, part=part)
        drawing.picture(IMAGE, y, side=40)
        small = f"translate({IMAGE + 5} {y + 4:g}) scale(15)"
        drawing.mark(f'<path d="{glyph(name)}" fill="currentColor" transform="{small}"/>')
        frame = f'x="{IMAGE - 6}" y="{y - 7:g}" width="22" height="22"'
        drawing.mark(f'<rect {frame} fill="none" stroke="{paint(part)}" stroke-width="2.5"/>')
        drawing.picture(LOWER, y, glyph(name), part=part, side=32)
    for part, y in enumerate((84, 180)):
        for x, down in ((-9, 0), (8, -9), (5, 11), (-4, 14)):
            drawing.route((CHANNEL, 132), (HEAD + x, y + down), 0.1)
            drawing.mark(f'<circle cx="{HEAD + x}" cy="{y + down}" r="5" fill="{paint(part)}"/>')
    drawing.channel(CHANNEL, 132, "CLIP", radius=22)
    return drawing


DIAGRAMS: dict[str, Callable[[], Drawing]] = {
    "head": head,
    "references": references,
    "circuits": circuits,
    "clusters": clusters,
    "averages": averages,
    "splitting": splitting,
    "reasons": reasons,
    "tokens": tokens,
    "planted": planted,
    "judge": judge,
}


def main(folder: Path) -> None:
    """Write all of them."""
    for name, draw in DIAGRAMS.items():
        (folder / f"{name}.svg").write_text(draw().svg(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
