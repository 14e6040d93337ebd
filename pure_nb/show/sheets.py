"""Sheets: small pictures of one size, many to a file, and what a page cuts out of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from contourpy import contour_generator
from matplotlib.path import Path as Line
from numpy.typing import NDArray
from PIL import Image

from pure_nb.compute.store import write_atomically
from pure_nb.figures.plots import image_grid
from pure_nb.figures.render import Picture, square_around
from pure_nb.show.facts import digest

WEBP = {"quality": 82, "method": 2}
"""How figures are saved; Pillow's own method, 4, makes them 4 % smaller in twice the time."""

SMALL = {"quality": 75, "method": 4}
"""How sheets are saved: once, and looked at often."""

UNITS = 240
"""Of places in a picture, to its longer side."""

GRID, SMOOTH = 16, 3.0
"""Cells a side in which an outline is looked for, and the units by which it may be off to be shorter."""


class Place(NamedTuple):
    """Where a picture is: in which file, and how many are before it."""

    file: str
    cell: int


class Sheets:
    """Which pictures are in which files of a folder; a table beside it tells: ``images.json`` of ``images``.

    A file is called after what is in it and is not written again. So what refers to it stays true whatever is added, by
    a later run or by another one at the same time.

    Parameters
    ----------
    folder
        Holds both.
    kind
        The name of the folder.
    key
        Stands for all that the pictures depend on but their numbers; files of another key are removed.
    """

    def __init__(self, folder: Path, kind: str, key: str) -> None:
        self.folder, self.kind, self.key = folder, kind, key
        self.table = folder / f"{kind}.json"
        told = json.loads(self.table.read_text(encoding="utf-8")) if self.table.is_file() else {"key": None}
        if told["key"] != key:
            for old in (folder / kind).glob("*.webp"):
                old.unlink()
            told["files"] = {}
        self.files: dict[str, list[int]] = {}
        self.places: dict[int, Place] = {}
        for file, numbers in told["files"].items():
            if (folder / file).is_file():
                self._enter(file, numbers)

    def _enter(self, file: str, numbers: list[int]) -> None:
        self.files[file] = numbers
        self.places |= {number: Place(file, cell) for cell, number in enumerate(numbers)}

    def add(self, numbers: Sequence[int], most: int) -> dict[str, list[int]]:
        """Find places for pictures that have none; what is in the new files, ``most`` in each."""
        new = [number for number in numbers if number not in self.places]
        parts = [new[first : first + most] for first in range(0, len(new), most)]
        added = {f"{self.kind}/{digest([self.key, part])}.webp": part for part in parts}
        for file, part in added.items():
            self._enter(file, part)
        return added

    def write(self, file: str, pictures: Sequence[Picture], wide: int) -> None:
        """Write a file of pictures in rows."""
        content = as_webp(pictures, wide)
        write_atomically(self.folder / file, lambda temporary: temporary.write_bytes(content))

    def save(self) -> None:
        """Write the table, when the files are there."""
        text = json.dumps({"key": self.key, "files": self.files})
        write_atomically(self.table, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def columns(count: int) -> int:
    """Pictures in a row of a file that holds so many."""
    return math.ceil(math.sqrt(count))


def as_webp(pictures: Sequence[Picture], wide: int) -> bytes:
    """A file of pictures in rows."""
    buffer = BytesIO()
    Image.fromarray(image_grid(pictures, wide, gap=0)).save(buffer, "webp", **SMALL)
    return buffer.getvalue()


def cut(mask: NDArray[np.bool_]) -> tuple[int, int, int, str]:
    """What is shown of a picture, of which a mask says what a neuron looks at, on a sheet.

    Parameters
    ----------
    mask
        bool ``[H, W]``.

    Returns
    -------
    tuple
        Left, top and side of the square around the mask, and the mask's outline as a path of SVG. All in
        :data:`UNITS` of the square that the whole picture stands in the middle of, as on a sheet.
    """
    height, width = mask.shape
    left, top, right, bottom = box = square_around(mask)
    # How much of each cell the neuron looks at; where the picture ends, the outline goes on beyond it.
    image = Image.fromarray(255 * mask.astype(np.uint8))
    share = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX, box=box), dtype=np.float32)
    ends = (int(top == 0), int(bottom == height)), (int(left == 0), int(right == width))
    share = np.pad(np.pad(share, ends, mode="edge"), 1)
    scale, margin = UNITS / max(height, width), (max(height, width) - np.array([width, height])) / 2
    step, start = np.array([right - left, bottom - top]) / GRID, np.array([left, top]) + margin
    path = ""
    for line in contour_generator(z=share).lines(127.5):
        points = (line - 0.5 - (ends[1][0], ends[0][0])) * step + start
        path += _path(scale * points)
    side = max(right - left, bottom - top)
    middle = np.array([left + right, top + bottom]) / 2 + margin
    first = np.floor(scale * (middle - side / 2)).astype(int).tolist()
    return first[0], first[1], min(UNITS, math.ceil(scale * side)), path


def _path(points: NDArray[np.float64]) -> str:
    """A closed line as a path of SVG, in whole numbers."""
    line = Line(points)
    line.should_simplify, line.simplify_threshold = True, SMOOTH
    whole = np.round(line.cleaned(simplify=True).vertices[:-1]).astype(int)
    steps = [step for step in np.diff(whole, axis=0).tolist() if any(step)]
    if len(steps) < 3:
        return ""
    return f"M{whole[0, 0]} {whole[0, 1]}l" + " ".join(f"{x} {y}" for x, y in steps[:-1]).replace(" -", "-") + "z"
