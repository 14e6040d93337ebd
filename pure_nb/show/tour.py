"""A tour: one neuron in five steps, told with its own pictures and numbers, in a page without a kernel.

The steps are its reference images together, two of them with their routes, all of them sorted into parts, the parts
beside the labels, and five lines of code. A script, ``tour.js``, shows one step at a time; without it they stand below
each other.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pure_nb._imports import needed
from pure_nb.compute.store import write_atomically, write_text
from pure_nb.errors import ArgumentError
from pure_nb.figures.colours import part_colour
from pure_nb.figures.diagrams import CHANNEL, HEAD, IMAGE, LOWER, Drawing
from pure_nb.figures.render import resized
from pure_nb.methods.virtual import part_name
from pure_nb.show.sheets import WEBP
from pure_nb.show.widgets import BOOK, SITE

with needed("show", "a tour needs"):
    from IPython.display import HTML

if TYPE_CHECKING:
    from pure_nb.neuron import Neuron
    from pure_nb.study import Study

STATIC = Path(__file__).parent / "static" / "tour"

SIDE = 144
"""Of a picture, in pixels: twice what a page shows."""

BRINGING = 3
"""Lower channels that are drawn for each of two images: those that contribute most."""

LINES = """\
import pure_nb

study = pure_nb.Study.from_model(
    model, images, target="{target}", lower="{lower}")
study.neuron({channel}).plot()
pure_nb.explore(study)"""
"""The last step."""


def tour(study: Study, channel: int, words: Sequence[tuple[str, str]], *, caption: str = "") -> HTML:
    """One neuron in five steps: back and forth by buttons, arrow keys or swipes.

    Parameters
    ----------
    study
        Any study in which the neuron has two parts or more.
    channel
        The neuron.
    words
        For each of the five steps its title and its text.
    caption
        What is shown.

    Returns
    -------
    HTML
        To be shown as the last line of a cell. In the built book its pictures are files beside the pages.

    Raises
    ------
    ArgumentError
        If there are not five steps, or the neuron has one part only.

    Examples
    --------
    >>> steps = [("Together", "All its images."), ("Two routes", ""), ("Apart", ""), ("Right?", ""), ("You", "")]
    >>> shown = tour(study, 3, steps)  # the last line of a cell shows it
    """
    neuron = study.neuron(channel)
    if len(words) != 5:
        raise ArgumentError(f"a tour has five steps, and there are words for {len(words)}")
    if neuron.virtual.k < 2:
        raise ArgumentError(f"neuron {channel} has one part, so there are no two routes to show")
    folder = os.environ.get(BOOK)
    pictures = _Pictures(neuron, Path(folder) if folder else None)
    every, asked = range(len(neuron.sample)), study.parameters
    code = LINES.format(target=asked.target, lower=asked.lower, channel=channel)
    parts = [pictures.row(neuron.members(part), part) for part in range(neuron.virtual.k)]
    lines = f'<pre tabindex="0"><code>{html.escape(code)}</code></pre>'
    shown = [pictures.row(every), routes(neuron, pictures.address), "".join(parts), table(neuron), lines]
    steps = "".join(
        f'<li class="tour-step"><h3>{number}. {html.escape(title)}</h3><p>{html.escape(text)}</p>{own}</li>'
        for number, ((title, text), own) in enumerate(zip(words, shown), 1)
    )
    told = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    figure = f'<figure class="tour" data-lm-suppress-shortcuts="true"><ol>{steps}</ol>{told}</figure>'
    code, style = ((STATIC / f"tour.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    if not folder:
        return HTML(f"<style>{style}</style>{figure}<script>{code}</script>")  # type: ignore[no-untyped-call]
    for kind, text in (("js", code), ("css", style)):
        write_text(Path(folder) / "tour" / f"tour.{kind}", text)
    link, script = f'<link rel="stylesheet" href="{SITE}/tour/tour.css">', f"{SITE}/tour/tour.js"
    return HTML(f'{link}{figure}<script src="{script}" defer></script>')  # type: ignore[no-untyped-call]


class _Pictures:
    """The reference images of a neuron, each stored once: as a file beside the pages, or in the page."""

    def __init__(self, neuron: Neuron, folder: Path | None) -> None:
        self.neuron, self.folder = neuron, folder
        self.known: dict[int, str] = {}

    def address(self, rank: int) -> str:
        if rank not in self.known:
            self.known[rank] = self._stored(int(self.neuron.sample[rank]))
        return self.known[rank]

    def _stored(self, sample: int) -> str:
        buffer = BytesIO()
        Image.fromarray(resized(self.neuron.study.images.picture(sample), SIDE)).save(buffer, "webp", **WEBP)
        content = buffer.getvalue()
        if self.folder is None:
            return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        file = f"{sample}-{hashlib.sha256(content).hexdigest()[:8]}.webp"
        write_atomically(self.folder / "tour" / file, partial(Path.write_bytes, data=content))
        return f"{SITE}/tour/{file}"

    def row(self, ranks: Iterable[int], part: int | None = None) -> str:
        """Images in a row that breaks, in the colour of a part."""
        tiles = "".join(map(self._tile, ranks))
        if part is None:
            return f'<div class="tour-row">{tiles}</div>'
        name = f'<b class="tour-name">{part_name(part)}</b>'
        return f'<div class="tour-row" style="--part: {part_colour(part)}">{name}{tiles}</div>'

    def _tile(self, rank: int) -> str:
        sample = int(self.neuron.sample[rank])
        label, credit = self.neuron.names[rank] or f"image {sample}", self.neuron.study.images.credit(sample)
        title = f"{label}, by {credit}" if credit else label
        size = f'width="{SIDE}" height="{SIDE}" loading="lazy"'
        return f'<img src="{self.address(rank)}" {size} alt="{html.escape(label)}" title="{html.escape(title)}">'


def alike(neuron: Neuron) -> tuple[int, int]:
    """The ranks of two reference images, of the first two parts, that activate a neuron as equally as any two."""
    first, second = neuron.members(0), neuron.members(1)
    apart = np.abs(neuron.score[first][:, None] - neuron.score[second])
    row, column = np.unravel_index(apart.argmin(), apart.shape)
    return int(first[row]), int(second[column])


def routes(neuron: Neuron, address: Callable[[int], str]) -> str:
    """Two images, the lower channels that contribute most in either, and the channel: a drawing, and what it tells.

    Parameters
    ----------
    neuron
        With two parts or more.
    address
        Where the picture of a rank is.
    """
    ranks, p = alike(neuron), neuron.study.parameters
    vectors = neuron.vectors[list(ranks)]
    found = np.unique(np.argsort(-np.abs(vectors), axis=1)[:, :BRINGING])
    found = found[np.argsort(vectors[1, found] - vectors[0, found])]  # those of the first image above
    half = 18 * (len(found) - 1)
    middle, largest = max(100, 46 + half), np.abs(vectors[:, found]).max()  # there is room for two pictures at least
    places = np.linspace(middle - half, middle + half, len(found)).round(1).tolist()
    names = [neuron.names[rank] or "an image" for rank in ranks]
    scores = [f"{score:.1f}" if score >= 1 else f"{score:.2g}" for score in neuron.score[list(ranks)].tolist()]
    told = (
        f"The first image activates the channel by {scores[0]}, the second by {scores[1]}. Shown are {len(found)} of "
        f"the {vectors.shape[1]} channels of {p.lower}: those that contribute most in either. The thicker a line, the "
        "more; a dashed line holds the channel down."
    )
    lists = [", ".join(str(lower) for lower in found[np.argsort(-np.abs(own[found]))][:BRINGING]) for own in vectors]
    text = (
        f"The lower channels that contribute most: {lists[0]} in the first image ({names[0]}), {lists[1]} in the "
        f"second ({names[1]})."
    )
    drawing = Drawing(f"tour-{neuron.channel}", 2 * middle - 20, "Two images, one channel, two routes", text)
    drawing.heads("images", "lower layer", "channel")
    for part, (rank, own, y) in enumerate(zip(ranks, vectors, (middle - 48, middle + 48))):
        for lower, place in zip(found, places):
            share, held = float(abs(own[lower]) / largest), bool(own[lower] < 0)
            drawing.route((IMAGE, y), (LOWER, place), share, part=part, held=held)
            drawing.route((LOWER, place + (4 if part else -4)), (CHANNEL, middle), share, part=part, held=held)
        drawing.picture(IMAGE, y, href=address(rank), part=part, side=64)
        drawing.text(HEAD, middle + 48 * (2 * part - 1), scores[part], bold=True)
        drawing.route((CHANNEL, middle), (HEAD - 18, middle + 48 * (2 * part - 1) - 5), 0.4, part=part)
    for lower, place in zip(found.tolist(), places):
        drawing.channel(LOWER, place, str(lower), radius=16)
    drawing.channel(CHANNEL, middle, str(neuron.channel), radius=22)
    return f'{drawing.svg()}<p class="tour-note">{html.escape(told)}</p>'


def table(neuron: Neuron) -> str:
    """How many images of each label each part has."""
    labels, parts = [name for name, _ in Counter(neuron.names).most_common()], range(neuron.virtual.k)
    count = Counter(zip(neuron.names, neuron.virtual.labels.tolist()))  # what does not activate it is in no part
    heads = "".join(f'<th scope="col" style="--part: {part_colour(part)}">{part_name(part)}</th>' for part in parts)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(label) or "not known"}</th>'
        + "".join(f"<td>{count[label, part] or ''}</td>" for part in parts)
        + "</tr>"
        for label in labels
    )
    return f'<table class="tour-table"><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>'
