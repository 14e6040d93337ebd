"""A small world that is true: scenes of glyphs whose every object is known.

Each scene is 96 x 96 pixels and holds one to four objects on a patterned ground. The objects are glyphs
of DejaVu Sans, the font that ships inside matplotlib: a sun, a chess knight, a cat. For each of them the
class, the WordNet synset, the bounding box, the visible pixels and the colour are known, so that one can
ask of any reference image which object the neuron looked at, and compare the answer with what a method
says.

Nothing is downloaded and nothing is stored. A scene is a pure function of ``(seed, split, index)``: its
random numbers are uniform doubles of a PCG64 generator seeded by the three, and the glyphs are rasterised
from the font's outlines (:mod:`pure_nb.glyphs.font`), so neither hinting nor a system font enters.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pure_nb.errors import ArgumentError
from pure_nb.glyphs.font import CLASSES, inked
from pure_nb.images.data import MEAN, STD, Images

Split = Literal["train", "val"]

SIZE = 96
"""Side of a scene in pixels."""

CELL = SIZE // 2
"""Side in pixels of one of the four cells of a scene; each object lives in one of them."""

GROUNDS = ("plain", "gradient", "stripes", "checks", "dots", "grain")
"""The patterns a scene's ground can have."""

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene.

    Attributes
    ----------
    label
        Index into :data:`CLASSES`.
    box
        ``(left, top, right, bottom)`` in pixels, right and bottom exclusive; it bounds ``mask``.
    colour
        Red, green and blue in 0..255.
    mask
        Boolean ``[SIZE, SIZE]``: the pixels where this object is what one sees.

    Examples
    --------
    >>> one = draw_scene(7).objects[0]
    >>> one.name, one.box
    ('wheelchair', (57, 50, 84, 84))
    """

    label: int
    box: tuple[int, int, int, int]
    colour: tuple[int, int, int]
    mask: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The name of the object's class."""
        return CLASSES[self.label].name


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and everything that is in it: ``image`` is uint8 ``[SIZE, SIZE, 3]``.

    Examples
    --------
    >>> [one.name for one in draw_scene(7).objects]
    ['wheelchair', 'spade']
    """

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    ground: str

    @property
    def caption(self) -> str:
        """What the scene shows, in words: ``"a red cat and an orange anchor on a dots ground"``."""
        coloured = [f"{colour_name(o.colour)} {o.name}" for o in self.objects]
        names = [("an " if phrase[0] in "aeiou" else "a ") + phrase for phrase in coloured]
        listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        return f"{listed} on a {self.ground} ground"

    def object_at(self, x: float, y: float) -> int:
        """Index into ``objects`` of the object nearest to a point of the picture.

        Parameters
        ----------
        x, y
            The point in pixels, from the left and from the top.
        """
        distances = [
            np.hypot(max(o.box[0] - x, 0, x - o.box[2]), max(o.box[1] - y, 0, y - o.box[3])) for o in self.objects
        ]
        return int(np.argmin(distances))


def colour_name(colour: tuple[int, int, int]) -> str:
    """The plainest English name of a colour, by its hue, or by its lightness where it has little hue.

    Examples
    --------
    >>> colour_name((255, 0, 0))
    'red'
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    if saturation < 0.25:
        return "white" if value > 0.7 else "grey" if value > 0.3 else "black"
    edges = (0.03, 0.11, 0.19, 0.45, 0.54, 0.71, 0.82, 0.95)
    return COLOURS[int(np.searchsorted(edges, hue)) % len(COLOURS)]


class Dice:
    """Uniform doubles of one seeded generator: the one kind of draw whose stream NumPy has never changed."""

    def __init__(self, *entropy: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def below(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self._generator.random() * count)

    def sample(self, count: int, size: int) -> list[int]:
        """``size`` different whole numbers in [0, count), in random order."""
        return [int(i) for i in np.argsort(self._generator.random(count), kind="stable")[:size]]

    def field(self, *shape: int) -> NDArray[np.float64]:
        """An array of numbers in [0, 1)."""
        return self._generator.random(shape)


def _colour(dice: Dice, low: float, high: float) -> NDArray[np.float64]:
    """A random colour, as three numbers in 0..1, whose luma lies in [low, high)."""
    weights = np.array([0.299, 0.587, 0.114])
    rgb = np.array(colorsys.hsv_to_rgb(dice.between(0, 1), dice.between(0.2, 1), 1.0))
    luma = dice.between(low, high)
    bright = float(weights @ rgb)
    # Towards black where the hue is too light, towards white where it is too dark.
    return rgb * luma / bright if luma < bright else 1 - (1 - rgb) * (1 - luma) / (1 - bright + 1e-9)


@cache
def _positions() -> NDArray[np.float64]:
    """Rows and columns of a scene's pixels, in 0..1."""
    return np.mgrid[0:SIZE, 0:SIZE] / SIZE


def _ground(dice: Dice, kind: str, dark: bool) -> NDArray[np.float64]:
    """A patterned ground, ``[SIZE, SIZE, 3]`` in 0..1."""
    low, high = (0.05, 0.35) if dark else (0.65, 0.95)
    first, second = _colour(dice, low, high), _colour(dice, low, high)
    y, x = _positions()
    angle, phase, pitch = dice.between(0, np.pi), dice.between(0, 1), dice.between(6, 14)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if kind == "plain":
        weight: NDArray[Any] = np.zeros((SIZE, SIZE))
    elif kind == "gradient":
        weight = (along - along.min()) / (along.max() - along.min())
    elif kind == "stripes":
        weight = (along * pitch + phase) % 1 < 0.5
    elif kind == "checks":
        weight = ((along * pitch + phase) % 1 < 0.5) ^ ((across * pitch + phase) % 1 < 0.5)
    elif kind == "dots":
        weight = np.hypot((along * pitch + phase) % 1 - 0.5, (across * pitch + phase) % 1 - 0.5) < 0.28
    else:
        coarse = dice.field(SIZE // 4, SIZE // 4)
        weight = np.kron(coarse, np.ones((4, 4)))
    return first + weight[..., None] * (second - first)


def _coverage(dice: Dice, label: int) -> NDArray[np.float64]:
    """An object's glyph, turned and scaled at random: coverage in 0..1, ``[CELL, CELL]``."""
    source = inked(label)
    drawn = 2 * CELL  # twice the final size, so that thin strokes survive the last halving
    scale = source.width / (drawn * dice.between(0.68, 0.92))
    angle = dice.between(-0.35, 0.35)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    centre, middle = source.width / 2, drawn / 2
    matrix = (cos, sin, centre - middle * (cos + sin), -sin, cos, centre - middle * (cos - sin))
    turned = source.transform((drawn, drawn), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    fine = np.asarray(turned, dtype=np.uint16)  # sums of four are exact, and quicker than a mean over two axes
    halved = (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4 / 255
    return np.minimum(1.5 * halved, 1.0)


def draw_scene(
    index: int,
    seed: int = 0,
    split: Split = "val",
    *,
    labels: Sequence[int] | None = None,
) -> Scene:
    """Draw one scene.

    Parameters
    ----------
    index
        Number of the scene, from 0; there is no last one.
    seed
        Seed of the whole world; 0 is the world of the shipped network.
    split
        ``"train"`` and ``"val"`` never share a scene.
    labels
        Classes of the objects, one to four. Drawn at random (as many as one to four different ones) if None.

    Returns
    -------
    Scene
        Equal to the bit for equal arguments.

    Raises
    ------
    ArgumentError
        If the index is negative, or the labels are none, more than four or not classes.

    Examples
    --------
    >>> scene = draw_scene(7)
    >>> scene.image.shape, len(scene.objects)
    ((96, 96, 3), 2)
    """
    if index < 0:
        raise ArgumentError(f"a scene's index counts from 0, got {index}")
    dice = Dice(seed, ("train", "val").index(split), index)
    count = 1 + dice.below(4)
    drawn = dice.sample(len(CLASSES), count)
    chosen = drawn if labels is None else list(labels)
    if not 1 <= len(chosen) <= 4 or not all(0 <= label < len(CLASSES) for label in chosen):
        raise ArgumentError(f"labels must be one to four numbers in 0..{len(CLASSES) - 1}, got {chosen}")
    dark = dice.below(2) == 1
    ground = GROUNDS[dice.below(len(GROUNDS))]
    canvas = _ground(dice, ground, dark)
    owner = np.full((SIZE, SIZE), -1)
    colours = []
    for number, (label, cell) in enumerate(zip(chosen, dice.sample(4, len(chosen)))):
        coverage = _coverage(dice, label)
        colour = _colour(dice, *((0.6, 1.0) if dark else (0.0, 0.4)))
        top, left = (
            int(np.clip(CELL * place + round(dice.between(-5, 5)), 0, SIZE - CELL)) for place in (cell // 2, cell % 2)
        )
        window = (slice(top, top + CELL), slice(left, left + CELL))
        canvas[window] += coverage[..., None] * (colour - canvas[window])
        owner[window][coverage > 0.5] = number
        colours.append(colour)
    canvas *= 255
    pixels = np.clip(np.rint(canvas, out=canvas), 0, 255, out=canvas).astype(np.uint8)
    masks = [owner == number for number in range(len(chosen))]
    objects = tuple(
        SceneObject(label, _box(mask), _rgb(colour), mask) for label, colour, mask in zip(chosen, colours, masks)
    )
    return Scene(pixels, objects, ground)


def _rgb(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * float(channel)) for channel in colour)
    return red, green, blue


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def normalise(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels ``[H, W, 3]`` in 0..255 to the float tensor ``[3, H, W]`` that the shipped network expects.

    Examples
    --------
    >>> normalise(draw_scene(7).image).shape
    torch.Size([3, 96, 96])
    """
    image = torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1).float() / 255
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@lru_cache(maxsize=8192)  # 220 MB of pixels: a study looks at its scenes a dozen times
def _remembered(
    index: int, seed: int, split: Split, labels: tuple[int, ...] | None
) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """The pixels of a scene and the labels of its objects."""
    scene = draw_scene(index, seed, split, labels=labels)
    return scene.image, tuple(o.label for o in scene.objects)


_last_scene = lru_cache(maxsize=1)(draw_scene)
"""One at a time, as pairs come image by image."""


class GlyphScenes(Dataset[tuple[Tensor, Tensor]]):
    """Scenes with one to four objects, as a torch data set.

    An item is ``(image, present)``: the normalised image, float ``[3, SIZE, SIZE]``, and a float vector over
    the classes that is 1 where the class is in the scene. :meth:`scene` gives the scene with all that is known.

    Parameters
    ----------
    length
        Number of scenes.
    split, seed
        As for :func:`draw_scene`.
    transform
        From pixels (uint8 ``[SIZE, SIZE, 3]``) to a tensor; :func:`normalise` by default.

    Examples
    --------
    >>> scenes = GlyphScenes(10)
    >>> image, label = scenes[0]
    >>> tuple(image.shape)
    (3, 96, 96)
    """

    classes = tuple(c.name for c in CLASSES)
    synsets = {c.name: c.synset for c in CLASSES}  # noqa: RUF012, as of torchvision's data sets
    drawn = True

    def __init__(
        self,
        length: int = 4000,
        split: Split = "val",
        seed: int = 0,
        transform: Callable[[NDArray[np.uint8]], Tensor] = normalise,
    ) -> None:
        if length < 1:
            raise ArgumentError(f"a data set of scenes needs at least one, got length={length}")
        self.length, self.split, self.seed, self.transform = length, split, seed, transform

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, labels = self._seen(index)
        present = torch.zeros(len(CLASSES))
        present[list(labels)] = 1
        return self.transform(pixels), present

    def scene(self, index: int) -> Scene:
        """The scene behind an item: pixels and objects."""
        drawn, seed, split, labels = self._drawn(index)
        return draw_scene(drawn, seed, split, labels=labels)

    def object_at(self, index: int, x: float, y: float) -> int:
        """The class of the object at a place, or of the nearest one."""
        drawn, seed, split, labels = self._drawn(index)
        scene = _last_scene(drawn, seed, split, labels=labels)
        return scene.objects[scene.object_at(x, y)].label

    def masks(self, index: int) -> dict[int, NDArray[np.bool_]]:
        """The visible pixels of each class in a scene, by its label: bool ``[SIZE, SIZE]``."""
        return {one.label: one.mask for one in self.scene(index).objects}

    @property
    def labelled(self) -> Images:
        """Pictures of a single object each, for what needs images of one known class."""
        own = (MEAN, STD) if self.transform is normalise else ()
        return Images(GlyphObjects(transform=self.transform), "glyph objects", *own)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """The pixels behind an item, uint8 ``[SIZE, SIZE, 3]``."""
        return self._seen(index)[0]

    def _drawn(self, index: int) -> tuple[int, int, Split, tuple[int, ...] | None]:
        """What :func:`draw_scene` is to draw: index, seed, split and labels."""
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of a data set of {self.length}")
        return index, self.seed, self.split, None

    def _seen(self, index: int) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        """The pixels of a scene, the caller's own, and the labels of its objects."""
        pixels, labels = _remembered(*self._drawn(index))
        return pixels.copy(), labels


class GlyphObjects(GlyphScenes):
    """Pictures of a single object each, ``per_class`` of every class, in the order of the classes.

    An item is ``(image, label)``. Made for statistics per class, where a scene with four objects would blur
    what belongs to which.

    Examples
    --------
    >>> len(GlyphObjects(per_class=2))
    96
    """

    def __init__(
        self,
        per_class: int = 50,
        split: Split = "val",
        seed: int = 0,
        transform: Callable[[NDArray[np.uint8]], Tensor] = normalise,
    ) -> None:
        super().__init__(per_class * len(CLASSES), split, seed, transform)
        self.per_class = per_class
        self.targets = [label for label in range(len(CLASSES)) for _ in range(per_class)]

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.transform(self.picture(index)), index // self.per_class

    def _drawn(self, index: int) -> tuple[int, int, Split, tuple[int, ...] | None]:
        """What :func:`draw_scene` is to draw: one object, of class ``index // per_class``."""
        if not 0 <= index < self.length:
            raise IndexError(f"picture {index} of a data set of {self.length}")
        # The offset keeps single objects and scenes of one seed apart.
        return 1_000_000_000 + index, self.seed, self.split, (index // self.per_class,)


def glyph_images(length: int = 4000, seed: int = 0) -> Images:
    """Validation scenes of the glyph world.

    Examples
    --------
    >>> len(glyph_images(100))
    100
    """
    return Images(GlyphScenes(length, "val", seed), "glyphs", MEAN, STD)
