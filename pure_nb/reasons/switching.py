"""Units of a layer switched off, many sets of them at once: what the network puts out for an image without each set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from torch import Tensor, nn

from pure_nb.errors import ModelError
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.network.layers import activations, channel_axis, flatten_positions, outputs_changed
from pure_nb.reasons.tracing import MOST_NUMBERS, require_outputs

if TYPE_CHECKING:
    from pure_nb.study import Study

Ablation = Literal["zero", "mean", "resample"]
ABLATIONS: tuple[Ablation, ...] = ("zero", "mean", "resample")
"""What stands in place of a channel that is off: nothing; its mean over images and positions, the same everywhere; or
all that it does in another image."""


def outputs_without(
    model: nn.Module, image: Tensor, target: str, off: NDArray[np.bool_], fill: Tensor
) -> NDArray[np.float64]:
    """What a network puts out for an image, once for each set of channels that are off.

    The layers below the target run once for many sets. Sets that are equal are run once.

    Parameters
    ----------
    model, image
        The network at rest, and one of its inputs, ``[1, ...]``.
    target
        The layer whose channels are switched.
    off
        bool ``[V, C]``: which channels are off in each set.
    fill
        ``[1, ...]``, of the layer's shape: what stands in their place.

    Returns
    -------
    ndarray
        float64 ``[V, outputs]``.
    """
    sets, back = np.unique(off, axis=0, return_inverse=True)
    size = max(1, MOST_NUMBERS // fill.numel())
    some = np.split(sets, range(size, len(sets), size))
    return np.concatenate([_run(model, image, target, own, fill) for own in some])[back.ravel()]


@torch.no_grad()
def _run(model: nn.Module, image: Tensor, target: str, off: NDArray[np.bool_], fill: Tensor) -> NDArray[np.float64]:
    """The outputs for sets that are run at once: from the target on, or where that can't be, from the image on."""
    switch = partial(_switched, off=torch.from_numpy(off), fill=fill)
    for images in (image, image.expand(len(off), *image.shape[1:])):
        try:
            out = outputs_changed(model, images, target, switch)
        except ModelError:  # as of tokens that are hidden from the target, and are as many as there are images
            if len(images) == len(off):
                raise
            continue
        if len(out) == len(off):
            break
    return np.asarray(require_outputs(out).double().cpu().numpy())


def _switched(top: Tensor, off: Tensor, fill: Tensor) -> Tensor:
    """Of an activation ``[1 or V, ...]`` one for each set, without its channels: ``[V, ...]``."""
    shape = [len(off)] + [1] * (top.ndim - 1)
    shape[channel_axis(top)] = -1
    gone = off.to(top.device).reshape(shape)
    return torch.where(gone, fill.to(top), top)


def layer_activations(study: Study, images: Images, sample: Sequence[int]) -> Iterator[Tensor]:
    """The target layer's activations ``[1, ...]`` in some images, one after the other; the network is at rest."""
    run, target = replace(study.run, client=None), study.parameters.target
    for batch in readable(images, list(sample), run=run):
        with torch.no_grad():
            top = activations(study.model, batch.images.to(run.local_device), [target])[target]
        yield from (top[row][None] for row in range(len(top)))


def mean_activation(tops: Iterable[Tensor]) -> Tensor:
    """The mean of each channel over images and positions, the same at all of these: ``[1, ...]`` as the layer's."""
    means = []
    for top in tops:
        means.append(flatten_positions(top).double().mean(dim=2)[0])
    shape = [1] * top.ndim
    shape[channel_axis(top)] = -1
    return torch.stack(means).mean(dim=0).reshape(shape).to(top).expand_as(top)


def prefixes(order: Sequence[int], counts: Sequence[int], channels: int) -> NDArray[np.bool_]:
    """Which channels are among the first of an order, for each count of these: bool ``[counts, channels]``."""
    found = np.zeros((len(counts), channels), dtype=np.bool_)
    for row, count in enumerate(counts):
        found[row, np.asarray(order, dtype=np.int64)[:count]] = True
    return found


def area(counts: Sequence[int], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean height of curves over counts, the last axis, by the trapezoidal rule."""
    return np.asarray(trapezoid(values, counts, axis=-1) / (counts[-1] - counts[0]))
