"""Patch swaps: does the part follow what the channel sees? A second causal test, with four controls.

What the channel looks at in an image of one part is pasted where it looks in an image of another. If the parts are of
what is seen there, the channel is then reached through the donor's circuit. Ours, after the idea of PSI (Gupta and
Kumar, arXiv 2508.16950), whose own controls were not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pure_nb.ablating import held_out, place_of
from pure_nb.errors import StudyError

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.study import Study

PATCHES = ("other part", "same part", "random place", "random image", "another channel")
"""Where the patch comes from: what the channel sees in an image of the other part; and the four controls."""

Box = tuple[int, int, int, int]


def _pasted(image: Tensor, box: Box, donor: Tensor, patch: Box) -> Tensor:
    """An image ``[C, H, W]`` with a square of a donor in place of one of its own, scaled to its size."""
    (left, top, right, bottom), (x, y, end, floor) = box, patch
    found, size = image.clone(), (bottom - top, right - left)
    piece = donor[None, :, y:floor, x:end]
    found[:, top:bottom, left:right] = interpolate(piece, size, mode="bilinear", align_corners=False)[0]
    return found


def swap_patches(study: Study, channel: int, part: str = "A", other: str = "B", *, swaps: int = 50) -> pd.DataFrame:
    """Paste patches into images of one part, and see whether the channel is reached through the other part's circuit.

    Images that made no cluster are taken, see :func:`pure_nb.ablating.held_out`, and squares around what the channel
    sees in them, by the study's parameter ``crop``.

    Parameters
    ----------
    study
        Any study of pictures.
    channel, part, other
        A channel, the part whose images get patches, and the part whose images give them.
    swaps
        Pairs of images, drawn at random with the study's seed; the same for each kind of patch.

    Returns
    -------
    DataFrame
        ``patch``: where it comes from. ``"other part"``: what the channel sees in an image of the other part. The
        controls: ``"same part"``: in another image of the same; ``"random place"``: a square of that size anywhere in
        the image of the other part; ``"random image"``: the square in the same place of any image of the study;
        ``"another channel"``: what another channel sees in the image of the other part. ``active``, the share of swaps
        after which the channel is active; ``follows``, the share after which it is in the other part, with the 95 %
        interval of Wilson ``low`` to ``high``; ``swaps``.

    Raises
    ------
    StudyError
        If one of the parts has fewer than two held-out images.

    Examples
    --------
    >>> table = swap_patches(study, 3, swaps=2)
    >>> table["patch"].tolist()[:2]
    ['other part', 'same part']
    """
    import pandas as pd  # late, see pure_nb._imports
    from scipy.stats import binomtest

    virtual = study.virtual_of(channel)
    place, wanted = (place_of(virtual, channel, letter) for letter in (part, other))
    held = held_out(study, channel)
    labels = study.predict(channel, study.images, held.tolist())
    mine, others = held[labels == place], held[labels == wanted]
    if min(len(mine), len(others)) < 2:
        raise StudyError(
            f"channel {channel}: parts {part} and {other} have {len(mine)} and {len(others)} images beyond the "
            "references, and two of each are needed; take more images, or larger parts"
        )
    generator = np.random.default_rng([study.parameters.seed, channel])
    made = _swapped(study, channel, generator.choice(mine, swaps), mine, generator.choice(others, swaps), generator)
    found = study.predict(channel, torch.stack(made))
    rows = []
    for kind, told in zip(PATCHES, np.split(found, len(PATCHES))):
        follows = binomtest(int((told == wanted).sum()), swaps)
        low, high = follows.proportion_ci(method="wilson")
        row: dict[str, Any] = {"patch": kind, "active": float((told >= 0).mean()), "follows": follows.statistic}
        rows.append(row | {"low": low, "high": high, "swaps": swaps})
    return pd.DataFrame(rows)


def _swapped(
    study: Study,
    channel: int,
    into: NDArray[np.int64],
    mine: NDArray[np.int64],
    donors: NDArray[np.int64],
    generator: np.random.Generator,
) -> list[Tensor]:
    """The images with their patches, one kind after the other."""
    same = np.array([generator.choice(mine[mine != image]) for image in into])
    anywhere = generator.integers(0, len(study.images), len(into))
    alive = np.flatnonzero(study.references.alive)
    another = generator.choice(alive[alive != channel], len(into))
    boxes = {}
    for name, who, where in (
        ("into", np.full_like(into, channel), into),
        ("other part", np.full_like(into, channel), donors),
        ("same part", np.full_like(into, channel), same),
        ("another channel", another, donors),
    ):
        boxes[name] = [view.box for view in study.crops.views(who, where)]
    height, width = study.images.example.shape[-2:]
    boxes["random place"] = [_moved(box, width, height, generator) for box in boxes["other part"]]
    boxes["random image"] = boxes["into"]
    from_ = dict.fromkeys(PATCHES, donors) | {"same part": same, "random image": anywhere}
    load = study.images.tensor
    return [
        _pasted(load(int(image)), box, load(int(donor)), patch)
        for kind in PATCHES
        for image, box, donor, patch in zip(into, boxes["into"], from_[kind], boxes[kind])
    ]


def _moved(box: Box, width: int, height: int, generator: np.random.Generator) -> Box:
    """A box of the same size anywhere in the picture."""
    wide, high = box[2] - box[0], box[3] - box[1]
    left, top = int(generator.integers(0, width - wide + 1)), int(generator.integers(0, height - high + 1))
    return left, top, left + wide, top + high
