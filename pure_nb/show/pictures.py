"""The pictures of an atlas: the reference images of its neurons, and of the lower channels that carry them.

Each neuron has one file of crops and one of whole pictures; finished ones are not drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import write_atomically
from pure_nb.figures.plots import image_grid
from pure_nb.figures.render import Picture, View
from pure_nb.show.facts import COLUMNS, Atlas

if TYPE_CHECKING:
    from pure_nb.study import Study

WEBP = {"quality": 82, "method": 2}
"""How pictures are saved; Pillow's own method, 4, makes them 4 % smaller in twice the time."""

CROP, WHOLE, THUMB = 72, 96, 48
"""Sides in pixels of a reference image: cropped, whole, and in the index."""

LOWER = 8
"""Reference images that are shown of a lower channel."""

PAIRS, TOGETHER = 1024, 16
"""Reference images that are drawn at once, and lower channels: few, so that the progress bar moves."""


def draw(made: Atlas, folder: Path, channels: Sequence[int]) -> None:
    """Write data and pictures of some neurons, without pages; finished ones are left alone."""
    alive = [channel for channel in channels if made.study.references.alive[channel]]
    missing = [channel for channel in alive if not _is_drawn(made, folder, channel)]
    count = min(made.count, made.study.references.n)
    done = len(alive) - len(missing)
    for channel, own in _pictured(made.study, missing, count, max(1, PAIRS // count), "atlas", done):
        _save(folder / f"crops/{channel}.webp", [view.highlighted(CROP) for view in own])
        _save(folder / f"whole/{channel}.webp", [view.highlighted(WHOLE, crop=False) for view in own])
        _save(folder / f"thumbs/{channel}.webp", [view.highlighted(THUMB) for view in own[:6]], 6)
        # Last, since it says that the neuron is finished.
        text = f"// {made.key_of(channel)}\npureNb.neuron({json.dumps(made.data(channel), separators=(',', ':'))});\n"
        write_text(folder / f"data/{channel}.js", text)


def draw_lower(made: Atlas, folder: Path, lower: Sequence[int]) -> set[int]:
    """Write reference images of lower channels; returns the channels that have some."""
    below = made.below
    if below is None or not lower:
        return set()
    alive = [channel for channel in lower if below.references.alive[channel]]
    # The key in the name tells whether the picture is of these images and this network.
    paths = {channel: folder / f"lower/{channel}-{made.key}.webp".replace(" ", "-") for channel in alive}
    missing = [channel for channel, path in paths.items() if not path.is_file()]
    done = len(alive) - len(missing)
    for channel, own in _pictured(below, missing, LOWER, TOGETHER, "lower channels", done):
        for old in (folder / "lower").glob(f"{channel}-*.webp"):
            old.unlink()
        _save(paths[channel], [view.highlighted(CROP) for view in own], LOWER)
    return set(alive)


def _pictured(
    study: Study, channels: Sequence[int], count: int, together: int, what: str, done: int
) -> Iterator[tuple[int, list[View]]]:
    """Each of some channels with its strongest reference images; they are drawn for some channels together."""
    with progress_bar(None, what, done + len(channels), initial=done, unit="channel", shown=study.run.progress) as bar:
        blocks = [list(channels[first : first + together]) for first in range(0, len(channels), together)]
        samples = [study.references.sample[block, :count] for block in blocks]
        pairs = [(np.repeat(block, own.shape[1]), own.ravel()) for block, own in zip(blocks, samples)]
        for number, views in study.crops.drawn(pairs):
            found = iter(views)
            for channel in blocks[number]:
                yield channel, list(islice(found, samples[number].shape[1]))
                bar.update()


def _is_drawn(made: Atlas, folder: Path, channel: int) -> bool:
    """Whether a neuron's data and pictures are there, and of this atlas."""
    data = folder / f"data/{channel}.js"
    files = [data, *(folder / f"{kind}/{channel}.webp" for kind in ("crops", "whole", "thumbs"))]
    return all(file.is_file() for file in files) and data.read_text(encoding="utf-8").startswith(
        f"// {made.key_of(channel)}\n"
    )


def _save(path: Path, pictures: Sequence[Picture], columns: int = COLUMNS) -> None:
    """Write pictures of one size as one, without gaps."""
    image = Image.fromarray(image_grid(pictures, columns, gap=0))
    write_atomically(path, lambda temporary: image.save(temporary, format="webp", **WEBP))


def write_text(path: Path, text: str) -> None:
    """Write a text at once or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
