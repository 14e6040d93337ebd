"""How far channels stand for known concepts, over all images: the feature monosemanticity score and masks' overlap.

A concept is a class of objects where it is known what is where in the images, else the images' own label. The formulas
are in :mod:`pure_nb.methods.measures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.compute.sweep import accepted
from pure_nb.images.data import Images
from pure_nb.images.reading import batches
from pure_nb.methods.measures import fms_of_best
from pure_nb.network.layers import activations, flatten_positions
from pure_nb.parameters import Run

MOST = 1000
"""Images that are looked at, evenly spaced; their first if there are fewer."""

SHARE = 0.005
"""Of all positions in all images, that which counts as active; see :func:`pure_nb.methods.measures.iou`."""

LEAST = 4
"""Images that a concept is in, and that it is not in."""


@runtime_checkable
class Masks(Protocol):
    """A data set that knows each pixel's object, as glyph scenes do."""

    classes: Sequence[str]
    """Names of the kinds of objects."""

    def masks(self, index: int) -> Mapping[int, NDArray[np.bool_]]:
        """Where in an image each class is that is in it: bool ``[H, W]``, as large as the network's input."""


def concept_scores(
    model: nn.Module, images: Images, layer: str, *, run: Run = Run(), seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """The best FMS and IoU of each channel of a layer, over the concepts.

    Parameters
    ----------
    model, images, layer
        The network, what it looks at, and the layer.
    run, seed
        How it is run, and the seed of the halves of :func:`pure_nb.methods.measures.fms`.

    Returns
    -------
    dict
        ``fms``, float64 ``[channels]``: of the concepts that this channel tells better than any other does, the largest
        score; NaN where there is none. ``iou``: the largest overlap with the masks of a concept; NaN without masks or
        without a grid. Both of at most :data:`MOST` images.

    Examples
    --------
    >>> found = concept_scores(model, images, "layer4")
    >>> found["iou"].shape
    (32,)
    """
    masks = images.dataset if isinstance(images.dataset, Masks) else None
    targets = images.targets if images.targets is not None and (images.targets >= 0).any() else None
    known = np.arange(len(images)) if targets is None else np.flatnonzero(targets >= 0)
    samples = known[np.linspace(0, len(known) - 1, min(MOST, len(known))).round().astype(np.int64)]
    if masks is None and targets is None:
        samples = samples[:1]  # for the number of channels
    peaks, maps, seen = _looked(model, images, layer, samples, run, keep=masks is not None)
    found = {"fms": np.full(peaks.shape[1], np.nan), "iou": np.full(peaks.shape[1], np.nan)}
    if masks is not None:
        where = [masks.masks(int(sample)) for sample in seen]
        present = np.array([[label in own for label in range(len(masks.classes))] for own in where])
        if maps is not None:
            found["iou"] = _overlap(maps, where, len(masks.classes))
    elif targets is not None:
        present = targets[seen][:, None] == np.unique(targets[seen])
    else:
        return found
    counts = present.sum(axis=0)
    for concept in present.T[(counts >= LEAST) & (len(present) - counts >= LEAST)]:
        score, channel = fms_of_best(peaks, concept, seed=seed)
        found["fms"][channel] = np.fmax(found["fms"][channel], score)
    return found


def _looked(
    model: nn.Module, images: Images, layer: str, samples: NDArray[np.int64], run: Run, *, keep: bool
) -> tuple[NDArray[np.float32], Tensor | None, NDArray[np.int64]]:
    """The largest activation of each channel in each image, the maps where asked and there, and the images read."""
    peaks, maps, seen = [], [], []
    with run.prepared(model), torch.inference_mode():
        for batch in batches(images, samples.tolist(), run=run):
            accepted([*batch.unreadable], run)
            if len(batch.samples):
                output = activations(model, batch.images.to(run.local_device), [layer])[layer]
                peaks.append(flatten_positions(output).amax(dim=2).float().cpu().numpy())
                seen.append(batch.samples)
                if keep and output.ndim == 4:
                    maps.append(output.float().cpu())
    return np.concatenate(peaks), torch.cat(maps) if maps else None, np.concatenate(seen)


def _overlap(maps: Tensor, where: list[Any], classes: int) -> NDArray[np.float64]:
    """The largest intersection over union of each channel's active area with the masks of a class."""
    flat = maps.movedim(1, 0).flatten(1).numpy()
    threshold = torch.from_numpy(np.quantile(flat, 1 - SHARE, axis=1).astype(np.float32))[:, None]
    both, active, area = np.zeros((len(flat), classes)), np.zeros(len(flat)), np.zeros(classes)
    for one, masks in zip(maps, where):
        size = next((mask.shape for own in where for mask in own.values()), one.shape[1:])
        up = nn.functional.interpolate(one[None], size=size, mode="bilinear", align_corners=False)[0].flatten(1)
        on = (up > threshold).numpy()
        active += on.sum(axis=1)
        for label, mask in masks.items():
            both[:, label] += on[:, mask.ravel()].sum(axis=1)
            area[label] += mask.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = np.nanmax(both / (active[:, None] + area - both), axis=1)
    return found
