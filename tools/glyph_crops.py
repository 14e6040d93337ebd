"""Crops of glyph scenes with captions, cut by the batch: what the small embedders are trained on."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align
from tqdm import tqdm

from pure_nb.glyphs import CLASSES, GROUNDS, SIZE, Split, colour_name, draw_scene

MOST = 4
"""Objects of a scene at most."""


@dataclass(frozen=True)
class Scenes:
    """Scenes as arrays.

    Attributes
    ----------
    pixels
        uint8 ``[N, 3, SIZE, SIZE]``.
    boxes
        float ``[N, MOST, 4]``; zeros where there is no object.
    labels
        int ``[N, MOST]``; -1 where there is no object.
    colours
        Their names.
    grounds
        Indices into ``GROUNDS``.
    """

    pixels: Tensor
    boxes: np.ndarray
    labels: np.ndarray
    colours: list[list[str]]
    grounds: np.ndarray


def _one(seed: int, split: Split, singles: bool, index: int) -> tuple:
    scene = draw_scene(index, seed, split, labels=[index % len(CLASSES)] if singles else None)
    objects = scene.objects
    boxes, labels = np.zeros((MOST, 4), np.float32), np.full(MOST, -1)
    boxes[: len(objects)] = [o.box for o in objects]
    labels[: len(objects)] = [o.label for o in objects]
    return (
        scene.image.transpose(2, 0, 1),
        boxes,
        labels,
        [colour_name(o.colour) for o in objects],
        GROUNDS.index(scene.ground),
    )


def draw(count: int, seed: int, split: Split = "train", *, singles: bool = False) -> Scenes:
    """Draw scenes; with ``singles`` of one object each, the classes in turn."""
    with ProcessPoolExecutor() as pool:
        items = pool.map(partial(_one, seed, split, singles), range(count), chunksize=64)
        pixels, boxes, labels, colours, grounds = zip(*tqdm(items, "draw", count, mininterval=10))
    return Scenes(
        torch.from_numpy(np.stack(pixels)), np.stack(boxes), np.stack(labels), list(colours), np.array(grounds)
    )


def windows(scenes: Scenes, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A square around an object of each chosen scene, wider or narrower than it; one in eight is the whole scene."""
    count = (scenes.labels[chosen] >= 0).sum(axis=1)
    which = (generator.random(len(chosen)) * count).astype(int)
    box = scenes.boxes[chosen, which]
    longer = np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])
    side = np.minimum(longer * np.exp(generator.uniform(np.log(0.9), np.log(2.2), len(chosen))), SIZE)
    middle = (box[:, :2] + box[:, 2:]) / 2 + generator.uniform(-0.22, 0.22, (len(chosen), 2)) * longer[:, None]
    corner = np.clip(middle - side[:, None] / 2, 0, SIZE - side[:, None])
    found = np.concatenate([corner, corner + side[:, None]], axis=1)
    found[generator.random(len(chosen)) < 1 / 8] = (0, 0, SIZE, SIZE)
    return found.astype(np.float32)


def cut(scenes: Scenes, chosen: np.ndarray, windows: np.ndarray, size: int) -> Tensor:
    """The windows of the chosen scenes, scaled: float ``[B, 3, size, size]`` in -1..1."""
    pixels = scenes.pixels[torch.from_numpy(chosen)].float() / 127.5 - 1
    rois = torch.cat([torch.arange(len(chosen))[:, None].float(), torch.from_numpy(windows)], dim=1)
    return roi_align(pixels, rois, size, sampling_ratio=2, aligned=True)


def inside(scenes: Scenes, chosen: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Which objects are in the windows, by at least 60 % of their boxes: bool ``[B, MOST]``."""
    boxes, window = scenes.boxes[chosen], windows[:, None]
    width = np.minimum(boxes[..., 2], window[..., 2]) - np.maximum(boxes[..., 0], window[..., 0])
    height = np.minimum(boxes[..., 3], window[..., 3]) - np.maximum(boxes[..., 1], window[..., 1])
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    share = np.clip(width, 0, None) * np.clip(height, 0, None) / np.maximum(area, 1)
    return (share >= 0.6) & (scenes.labels[chosen] >= 0)


def captions(scenes: Scenes, chosen: np.ndarray, present: np.ndarray, generator: np.random.Generator) -> list[str]:
    """What the windows show, sometimes without the colours, the ground or both."""
    found = []
    for number, seen in zip(chosen.tolist(), present):
        coloured, grounded = generator.random(2) < (0.5, 0.5)
        things = [
            (f"{scenes.colours[number][i]} " if coloured else "") + CLASSES[scenes.labels[number, i]].name
            for i in np.flatnonzero(seen)
        ]
        phrase = " and ".join(f"a {thing}" for thing in things) or "nothing"
        found.append(f"{phrase} on a {GROUNDS[scenes.grounds[number]]} ground" if grounded else phrase)
    return found
