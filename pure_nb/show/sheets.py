"""Sheets: small pictures of one size, many to a file, and what a page cuts out of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.path import Path as Line
from numpy.typing import NDArray
from PIL import Image, features

from pure_nb._imports import needed
from pure_nb.compute.store import write_atomically, write_text
from pure_nb.figures.plots import image_grid
from pure_nb.figures.render import Picture, square_around
from pure_nb.show.facts import digest

with needed("show", "an atlas needs"):
    from contourpy import contour_generator

WEBP = {"quality": 82, "method": 2}
"""How figures are saved; Pillow's own method, 4, makes them 4 % smaller in twice the time."""

AVIF = features.check("avif")
"""Whether Pillow writes AVIF: two thirds of the bytes, and no colours run. Else sheets are WebP."""

KIND, SMALL = (
    ("avif", {"quality": 55, "subsampling": "4:4:4", "speed": 8, "max_threads": 1}) if AVIF else ("webp", WEBP)
)
"""How sheets are saved, and how their files' names end."""

QUICK: dict[str, Any] = SMALL | ({"speed": 9} if AVIF else {"method": 0})
"""The same for whoever waits: a fifth of the time for a fifth more bytes."""

UNITS, STEPS = 1000, 64
"""Of places on a sheet, to the side of an image and its margin; and of an outline, to the side of its square."""

MARGIN = 1
"""Pixels around an image, as its own at the edge: or enlarged what stands beside it would shine through."""

GRID = 16
"""Cells a side in which an outline is looked for."""


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
        told = self._told()
        if told is None:
            for old in [*(folder / kind).glob("*.webp"), *(folder / kind).glob("*.avif")]:
                old.unlink()
        self.files: dict[str, list[int]] = {}
        self.places: dict[int, Place] = {}
        for file, numbers in (told or {}).items():
            if (folder / file).is_file():
                self._enter(file, numbers)

    def _told(self) -> dict[str, list[int]] | None:
        """What the table tells; None if there is none of this key."""
        told: dict[str, Any] = json.loads(self.table.read_text(encoding="utf-8")) if self.table.is_file() else {}
        return told["files"] if told.get("key") == self.key else None

    def _enter(self, file: str, numbers: list[int]) -> None:
        self.files[file] = numbers
        self.places |= {number: Place(file, cell) for cell, number in enumerate(numbers)}

    def add(self, numbers: Sequence[int], most: int) -> dict[str, list[int]]:
        """Find places for pictures that have none; what is in the new files, ``most`` in each."""
        new = [number for number in numbers if number not in self.places]
        parts = [new[first : first + most] for first in range(0, len(new), most)]
        added = {f"{self.kind}/{digest([self.key, part])}.{KIND}": part for part in parts}
        for file, part in added.items():
            self._enter(file, part)
        return added

    def write(self, file: str, content: bytes) -> None:
        """Write a file, from :func:`as_file`."""
        write_atomically(self.folder / file, lambda temporary: temporary.write_bytes(content))

    def save(self) -> None:
        """Write the table, with what another run has added to it meanwhile; files in it may still be missing."""
        text = json.dumps({"key": self.key, "files": (self._told() or {}) | self.files})
        write_text(self.table, text)


def columns(count: int) -> int:
    """Pictures in a row of a file that holds so many."""
    return math.ceil(math.sqrt(count))


def as_file(pictures: Sequence[Picture], wide: int, how: Mapping[str, Any] = SMALL) -> bytes:
    """A file of pictures in rows."""
    buffer = BytesIO()
    Image.fromarray(image_grid(pictures, wide, gap=0)).save(buffer, KIND, **how)
    return buffer.getvalue()


def bordered(picture: Picture) -> Picture:
    """An image with its margin."""
    return np.pad(picture, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")


def whole(pixels: int) -> tuple[int, int, int]:
    """Left, top and side of an image of so many pixels a side within its margin, in :data:`UNITS`."""
    edge = round(UNITS * MARGIN / (pixels + 2 * MARGIN))
    return edge, edge, UNITS - 2 * edge


def cut(mask: NDArray[np.bool_], pixels: int) -> tuple[int, int, int, str]:
    """What is shown of an image on a sheet, of which a mask says what a neuron looks at.

    Parameters
    ----------
    mask
        bool ``[H, W]``.
    pixels
        The side of the square that the image stands in the middle of, without its margin.

    Returns
    -------
    tuple
        Left, top and side of the square around the mask, in :data:`UNITS`; and the outline of the mask, a path of SVG
        in :data:`STEPS` of that square.
    """
    height, width = mask.shape
    left, top, right, bottom = box = square_around(mask)
    fine = pixels / max(height, width)
    scale = UNITS / (pixels + 2 * MARGIN)
    first = MARGIN + (pixels - fine * np.array([width, height])) / 2  # of the image, in pixels of the sheet
    side = round(scale * fine * max(right - left, bottom - top))
    middle = scale * (first + fine * np.array([left + right, top + bottom]) / 2)
    corner = np.round(middle - side / 2).astype(int)
    # How much of each cell the neuron looks at; where the image ends, the outline goes on beyond it.
    image = Image.fromarray(255 * mask.astype(np.uint8))
    share = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX, box=box), dtype=np.float32)
    ends = (int(top == 0), int(bottom == height)), (int(left == 0), int(right == width))
    share = np.pad(np.pad(share, ends, mode="edge"), 1)
    cells = np.array([right - left, bottom - top]) / GRID
    path = ""
    lines: Any = contour_generator(z=share).lines(127.5)
    for line in lines:
        points = first + fine * ((line - 0.5 - (ends[1][0], ends[0][0])) * cells + (left, top))
        path += _path((scale * points - corner) * (STEPS / side))
    return int(corner[0]), int(corner[1]), side, path


def _path(points: NDArray[np.float64]) -> str:
    """A closed line as a path of SVG, in whole numbers, and off by one at most for fewer of them."""
    line: Any = Line(points)
    line.should_simplify, line.simplify_threshold = True, 1.0
    whole = np.round(line.cleaned(simplify=True).vertices[:-1]).astype(int)
    steps = [step for step in np.diff(whole, axis=0).tolist() if any(step)]
    if len(steps) < 3:
        return ""
    return f"M{whole[0, 0]} {whole[0, 1]}l" + " ".join(f"{x} {y}" for x, y in steps[:-1]).replace(" -", "-") + "z"
