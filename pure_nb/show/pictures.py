"""The pictures of an atlas: reference images, and strips of the strongest ones of a neuron or of a lower channel.

Each image is stored once, on a sheet with others. The data of a neuron tell what a page cuts out of it and dims: so
crops, whole images and what the neuron looks at in them are all of one picture.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import write_text
from pure_nb.figures.render import Picture, View, resized
from pure_nb.show.facts import FORMAT, Atlas, digest
from pure_nb.show.sheets import KIND, QUICK, SMALL, Place, Sheets, as_file, bordered, columns, cut, whole

if TYPE_CHECKING:
    from pure_nb.images.data import Images
    from pure_nb.study import Study

Taken = TypeVar("Taken")

STRIP, THUMB = 6, 56
"""Reference images in a strip, and their side in pixels."""

STRIPS, SHEETS = 8, 0.6
"""Strips in a file, and about how many sheets there are for each neuron: few files, of which a page needs few."""

LEAST, MOST = 16, 64
"""Images on a sheet."""

PAIRS, SENT = 8192, 1024
"""Reference images that are looked at together, which then pass the network once for all neurons; and on a cluster."""


class Strip(NamedTuple):
    """A picture of the strongest reference images: the file that it is in, and how far down, from 0 to 100 %."""

    file: str
    at: float

    def beside(self, place: str) -> Strip:
        """The same, as a page of another layer's folder finds it."""
        return self._replace(file=f"../{place}/{self.file}")


def draw(made: Atlas, folder: Path, channels: Sequence[int]) -> None:
    """Write data and pictures of some neurons, without pages; finished ones are left alone."""
    study, count = made.study, min(made.count, made.study.references.n)
    alive = [channel for channel in channels if study.references.alive[channel]]
    if not alive:
        return
    images = _draw_images(made, folder, alive, count)
    thumbs = _strips(made, folder, "thumbs")
    missing = [channel for channel in alive if channel not in thumbs.places or not _is_drawn(made, folder, channel)]

    def take(sample: int, rank: int, mask: NDArray[np.bool_]) -> tuple[tuple[Any, ...], Picture | None]:
        return cut(mask, _pixels(made)), _thumb(study, sample, mask) if rank < STRIP else None

    done, added = len(alive) - len(missing), thumbs.add(missing, STRIPS)
    tiles: dict[int, list[Picture]] = {}
    for block in _seen(study, missing, count, max(1, PAIRS // count), take, "atlas", done):
        tiles |= {channel: [tile for _, tile in own if tile is not None] for channel, own in block}
        draw_strips(thumbs, added, tiles)
        for channel, own in block:
            places = [images.places[number] for number in study.references.sample[channel, :count].tolist()]
            told = made.data(channel) | _told(made, places, [one for one, _ in own], images.files)
            # Last, since it says that the neuron is finished.
            text = f"// {made.key_of(channel)}\npureNb.neuron({json.dumps(told, separators=(',', ':'))});\n"
            write_text(folder / f"data/{channel}.js", text)


def alone(made: Atlas, channel: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What an explorer needs to know of a neuron, and its pictures by the paths that this names: its own sheet."""
    study, file = made.study, f"images/{channel}.{KIND}"
    numbers = study.references.sample[channel, : made.count].tolist()
    masks: dict[int, NDArray[np.bool_]] = {}
    with progress_bar(total=len(numbers), shown=False) as bar:  # for whoever watches
        for _, row, mask in study.crops.seen([(np.full(len(numbers), channel), np.array(numbers))]):
            masks[row] = mask
            bar.update()
    places = [Place(file, cell) for cell in range(len(numbers))]
    cuts = [cut(masks[row], _pixels(made)) for row in range(len(numbers))]
    told = _told(made, places, cuts, {file: numbers})
    return made.data(channel) | told, {file: _sheet(study.images, _pixels(made), numbers, QUICK)}


def draw_lower(made: Atlas, folder: Path, lower: Sequence[int]) -> dict[int, Strip]:
    """Write strips of lower channels; where they are, of those that have one."""
    below = made.below
    if below is None or not lower:
        return {}
    alive = [channel for channel in lower if below.references.alive[channel]]
    drawn = _strips(made, folder, "lower")
    missing = [channel for channel in alive if channel not in drawn.places]

    def take(sample: int, _: int, mask: NDArray[np.bool_]) -> Picture:
        return _thumb(below, sample, mask)

    count, added = min(STRIP, below.references.n), drawn.add(missing, STRIPS)
    tiles: dict[int, list[Picture]] = {}
    for block in _seen(below, missing, count, 2 * STRIPS, take, "lower channels", len(alive) - len(missing)):
        tiles |= dict(block)
        draw_strips(drawn, added, tiles)
    return {channel: strip_of(drawn, channel) for channel in alive}


def strips(made: Atlas, folder: Path) -> dict[int, Strip]:
    """Where the strips of an atlas's neurons are."""
    found = _strips(made, folder, "thumbs")
    return {channel: strip_of(found, channel) for channel in found.places}


def _strips(made: Atlas, folder: Path, kind: str) -> Sheets:
    return Sheets(folder, kind, made.key)


def strip_of(drawn: Sheets, channel: int) -> Strip:
    """Where the strip of that number is."""
    file, cell = drawn.places[channel]
    return Strip(file, round(100 * cell / max(1, len(drawn.files[file]) - 1), 2))


def draw_strips(drawn: Sheets, added: dict[str, list[int]], tiles: dict[int, list[Picture]]) -> None:
    """Write the new files of which all tiles are there: the same, in whatever order these come."""
    for file in [file for file, some in added.items() if tiles.keys() >= set(some)]:
        drawn.write(file, as_file(_tiles([tiles.pop(channel) for channel in added.pop(file)]), STRIP))
    drawn.save()


def draw_each(
    drawn: Sheets, added: dict[str, list[int]], tiles: Callable[[int], list[Picture]], what: str, shown: bool
) -> None:
    """Write new files of strips, one after the other.

    Parameters
    ----------
    drawn, added
        The sheets, and the numbers of the strips in each new file.
    tiles
        From a number to the pictures of its strip.
    what, shown
        What a progress bar says, and whether there is one.
    """
    drawn.save()
    for file, some in progress_bar(list(added.items()), what, unit="sheet", shown=shown):
        drawn.write(file, as_file(_tiles([tiles(number) for number in some]), STRIP))


def _tiles(strips: Sequence[list[Picture]]) -> list[Picture]:
    """The tiles of some strips, white where there are too few."""
    empty = [np.full((THUMB, THUMB, 3), 255, dtype=np.uint8)] * STRIP
    return [tile for own in strips for tile in (own + empty)[:STRIP]]


def _draw_images(made: Atlas, folder: Path, channels: Sequence[int], count: int) -> Sheets:
    """Write the sheets of all images that some neurons have as references: where they are."""
    study, sample = made.study, made.study.references.sample[channels, :count]
    images = Sheets(folder, "images", digest([FORMAT, made.side, study.images.fingerprint]))
    # Those that are seen first stand together: the strongest of each neuron, and of each of its parts.
    first = []
    for channel, own in zip(channels, sample):
        labels = study.virtual_of(channel).labels[:count]
        ranks = [np.flatnonzero(labels == part)[:STRIP] for part in range(labels.max() + 1)]
        first += [own[:STRIP], *(own[some] for some in ranks)]
    numbers, place = np.unique(np.concatenate([*first, sample.ravel()]), return_index=True)
    wide = math.ceil(math.sqrt(len(numbers) / len(sample) / SHEETS))
    added = images.add(numbers[np.argsort(place)].tolist(), int(np.clip(wide**2, LEAST, MOST)))
    images.save()  # first, so that a run that was stopped finds again what it has finished
    files = [file for file in added if not (folder / file).is_file()]  # another run may have written some
    with progress_bar(None, "images", len(files), unit="sheet", shown=study.run.progress) as bar:
        for number, content in _sheets(made, [added[file] for file in files]):
            images.write(files[number], content)
            bar.update()
    return images


def _sheets(made: Atlas, parts: Sequence[list[int]]) -> Iterator[tuple[int, bytes]]:
    """The files of some sheets by number, made by a cluster, if the study has one, or else by all cores."""
    run, work = made.study.run, partial(_sheet, made.study.images, _pixels(made))
    if run.client is not None:
        yield from run.client.each(work, lambda number: (parts[number],), range(len(parts)))
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from enumerate(pool.map(work, parts))


def _told(
    made: Atlas, places: Sequence[Place], cuts: Sequence[tuple[Any, ...]], files: dict[str, list[int]]
) -> dict[str, Any]:
    """What data say of pictures: sheets with columns and rows; of each reference its sheet, place there and cut."""
    used = list(dict.fromkeys(place.file for place in places))
    wide = {file: columns(len(files[file])) for file in used}
    return {
        "sheets": [(file, wide[file], math.ceil(len(files[file]) / wide[file])) for file in used],
        "whole": whole(_pixels(made)),
        "cuts": [(used.index(place.file), place.cell, *one) for place, one in zip(places, cuts)],
    }


def _pixels(made: Atlas) -> int:
    """The side of an image on a sheet: none is larger there than it is."""
    return min(made.side, max(made.study.images.example.shape[-2:]))


def _sheet(images: Images, pixels: int, numbers: Sequence[int], how: Mapping[str, Any] = SMALL) -> bytes:
    """A file of images; not within :func:`_sheets`, as it is sent away."""
    every = [bordered(resized(images.picture(number), pixels)) for number in numbers]
    return as_file(every, columns(len(numbers)), how)


def _thumb(study: Study, sample: int, mask: NDArray[np.bool_]) -> Picture:
    return View(sample, study.images.picture(sample), mask).highlighted(THUMB)


def _seen(
    study: Study,
    channels: Sequence[int],
    count: int,
    together: int,
    take: Callable[[int, int, NDArray[np.bool_]], Taken],
    what: str,
    done: int,
) -> Iterator[list[tuple[int, list[Taken]]]]:
    """Some channels together, what is made of each one's strongest references: of image, rank and mask."""
    if study.run.client is not None:
        together = max(1, min(together, SENT // count))
    blocks = [channels[first : first + together] for first in range(0, len(channels), together)]
    pairs = [(np.repeat(block, count), study.references.sample[block, :count].ravel()) for block in blocks]
    total = count * (done + len(channels))
    with progress_bar(None, what, total, initial=count * done, unit="image", shown=study.run.progress) as bar:
        for number, found in groupby(study.crops.seen(pairs), itemgetter(0)):
            taken: dict[int, Taken] = {}
            for _, row, mask in found:
                taken[row] = take(int(pairs[number][1][row]), row % count, mask)
                bar.update()
            yield [
                (channel, [taken[row] for row in range(first, first + count)])
                for channel, first in zip(blocks[number], range(0, len(taken), count))
            ]


def told_of(folder: Path, channel: int) -> dict[str, Any]:
    """The data of a neuron of the atlas in a folder."""
    text = (folder / f"data/{channel}.js").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    return found


def _is_drawn(made: Atlas, folder: Path, channel: int) -> bool:
    """Whether a neuron's data are there, are of this atlas, and the pictures that they name are there, too."""
    path = folder / f"data/{channel}.js"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    named = re.findall(r"images/\w+\.\w+", text)
    return text.startswith(f"// {made.key_of(channel)}\n") and all((folder / file).is_file() for file in named)
