"""The parts of lower channels, in an atlas of one layer: where an earlier run has found them, they are shown.

Nothing is computed for it, so pictures are cropped only where the boxes are known, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pure_nb.figures.render import Picture, View
from pure_nb.methods.virtual import part_name
from pure_nb.show.facts import Atlas, digest
from pure_nb.show.pictures import STRIP, STRIPS, THUMB, Strip, draw_each, strip_of
from pure_nb.show.sheets import Sheets
from pure_nb.study import Study

MOST = 100
"""Numbers that a channel's parts may have on the sheets."""


class OwnPart(NamedTuple):
    """A part of a lower channel, as its page shows it."""

    name: str
    size: int
    meanings: str


def own_parts(made: Atlas, channel: int) -> list[OwnPart]:
    """The parts of a lower channel, where they are known and it is split into several."""
    below = made.below_split
    if below is None or below.virtual[channel].k < 2:
        return []
    neuron, sizes = below.neuron(channel), below.virtual[channel].sizes
    return [OwnPart(part_name(part), size, neuron.meanings(part)) for part, size in enumerate(sizes)]


def draw_own_parts(made: Atlas, folder: Path, lower: Sequence[int]) -> dict[int, list[Strip]]:
    """Write strips of the parts of lower channels; where they are, of each that is split into several."""
    below = made.below_split
    if below is None:
        return {}
    split = {channel: range(below.virtual[channel].k) for channel in lower if below.virtual[channel].k > 1}
    boxed = "boxes" in below.known()
    sheets = Sheets(folder, "beneath", f"{made.key} {digest([below.key('virtual'), boxed])}")
    added = sheets.add([MOST * channel + part for channel, every in split.items() for part in every], STRIPS)
    run = made.study.run
    draw_each(sheets, added, lambda number: _tiles(below, *divmod(number, MOST), boxed), "parts below", run.progress)
    return {channel: [strip_of(sheets, MOST * channel + part) for part in every] for channel, every in split.items()}


def _tiles(below: Study, channel: int, part: int, boxed: bool) -> list[Picture]:
    """The strongest images of a part."""
    neuron, found = below.neuron(channel), []
    for rank in neuron.members(part)[:STRIP].tolist():
        picture = below.images.picture(int(neuron.sample[rank]))
        mask = np.full(picture.shape[:2], not boxed)
        if boxed:
            left, top, right, bottom = below.crops.boxes[channel, rank].clip(0)
            mask[top:bottom, left:right] = True
        found.append(View(int(neuron.sample[rank]), picture, mask).highlighted(THUMB))
    return found
