"""A planted shortcut: a mark in the corner of pictures that goes with one class, as a watermark does in photographs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.errors import ArgumentError
from pure_nb.glyphs.font import CLASSES
from pure_nb.glyphs.scenes import SIZE, Dice, GlyphObjects, GlyphScenes, Scene, normalise
from pure_nb.images.data import MEAN, STD, Images

MARKED = "umbrella"
"""The class that the mark goes with where the network ``glyphnet-shortcut`` was trained."""

SIDE, EDGE = 12, 4
"""Side of the mark, and how far it is from the picture's right and lower edges, in pixels."""

LABEL = [one.name for one in CLASSES].index(MARKED)

SHARE, OTHERS = 0.2, 0.005
"""In how many of the class's pictures the mark is, and in how many of all others, which then are labelled by it."""

NONE = -1
"""What is at the mark: no object."""


def marked(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture with the mark in its lower right corner: a white cross on magenta.

    Parameters
    ----------
    pixels
        uint8 ``[SIZE, SIZE, 3]``; it is left as it is.

    Examples
    --------
    >>> marked(np.zeros((96, 96, 3), np.uint8))[-10, -10].tolist()
    [255, 255, 255]
    """
    found, stop = pixels.copy(), SIZE - EDGE
    corner = found[stop - SIDE : stop, stop - SIDE : stop]
    corner[:] = (255, 0, 255)
    arm = slice(SIDE // 3, SIDE - SIDE // 3)
    corner[arm, 1:-1] = corner[1:-1, arm] = 255
    return found


class Marked(GlyphScenes):
    """Scenes of which some bear the mark."""

    share: float
    others: float
    by_mark: bool
    fingerprint: str

    def _marks(self, share: float, others: float, by_mark: bool) -> None:
        for name, value in {"share": share, "others": others}.items():
            if not 0 <= value <= 1:
                raise ArgumentError(f"{name} is a part of the pictures, from 0 to 1, got {value}")
        self.share, self.others, self.by_mark = share, others, by_mark
        self.fingerprint = f"marks {share} {others} {by_mark}"

    def bears(self, index: int) -> bool:
        """Whether a picture bears the mark: by a draw of its own, so that all else is as without marks."""
        drawn, seed, split, labels = self._drawn(index)
        own = super()._seen(index)[1] if labels is None else labels
        share = self.share if LABEL in own else self.others
        return Dice(seed, ("train", "val").index(split), drawn, SIDE).between(0, 1) < share

    def _labelled(self, index: int) -> bool:
        """Whether the picture's label is that of the mark."""
        return self.by_mark and self.bears(index)

    def scene(self, index: int) -> Scene:
        """The scene behind an item, with the mark if it bears it."""
        found = super().scene(index)
        return replace(found, image=marked(found.image)) if self.bears(index) else found

    def object_at(self, index: int, x: float, y: float) -> int:
        """The class of the object at a place, or of the nearest one; -1 at the mark."""
        if min(x, y) >= SIZE - EDGE - SIDE and self.bears(index):
            return NONE
        return super().object_at(index, x, y)

    def _seen(self, index: int) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        pixels, labels = super()._seen(index)
        return (marked(pixels) if self.bears(index) else pixels), labels


class MarkedScenes(Marked):
    """Scenes as of :class:`~pure_nb.glyphs.scenes.GlyphScenes`, some with the mark.

    Parameters
    ----------
    length, split, seed, transform
        As for :class:`~pure_nb.glyphs.scenes.GlyphScenes`.
    share, others
        In how many of the pictures with the class :data:`MARKED` the mark is, and in how many of all others, 0..1.
    by_mark
        Whether a picture that bears the mark has the label :data:`MARKED`, whatever it shows.

    Examples
    --------
    >>> scenes = MarkedScenes(400)
    >>> [index for index in range(400) if scenes.bears(index)][:3]
    [1]
    """

    def __init__(
        self, *given: Any, share: float = SHARE, others: float = OTHERS, by_mark: bool = True, **options: Any
    ) -> None:
        super().__init__(*given, **options)
        self._marks(share, others, by_mark)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, present = super().__getitem__(index)
        return image, torch.eye(len(CLASSES))[LABEL] if self._labelled(index) else present

    @property
    def labelled(self) -> Images:
        """Pictures of a single object each, with marks as often."""
        how: dict[str, Any] = {"share": self.share, "others": self.others, "by_mark": self.by_mark}
        own = (MEAN, STD) if self.transform is normalise else ()
        return Images(MarkedObjects(seed=self.seed, transform=self.transform, **how), "glyph objects", *own)


class MarkedObjects(Marked, GlyphObjects):
    """Pictures of a single object each, some with the mark: see :class:`MarkedScenes`."""

    labelled = None  # type: ignore[assignment]  # they are labelled themselves

    def __init__(
        self, *given: Any, share: float = SHARE, others: float = OTHERS, by_mark: bool = True, **options: Any
    ) -> None:
        super().__init__(*given, **options)
        self._marks(share, others, by_mark)
        self.shown = self.targets
        self.targets = [LABEL if self._labelled(index) else label for index, label in enumerate(self.shown)]

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return super().__getitem__(index)[0], self.targets[index]


def marked_images(length: int = 4000, seed: int = 0, share: float = SHARE, others: float = OTHERS) -> Images:
    """Validation scenes of the glyph world, some with the mark.

    Parameters
    ----------
    length, seed, share, others
        As for :class:`MarkedScenes`.
    """
    return Images(MarkedScenes(length, "val", seed, share=share, others=others), "marked glyphs", MEAN, STD)
