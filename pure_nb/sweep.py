"""One streaming pass over all images feeds every accumulator.

Whatever needs all the images is an *accumulator*: it takes in batches, it can be merged with another of its
kind, and in the end it has a result. Merging is associative and does not depend on the order, so a pass may be
cut into shards, stopped, resumed, and run in several processes, and the result is the same to the bit. For that
the batches are fixed: batch b holds the images from ``b * batch_size`` on, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from pure_nb.data import Images, Unreadable, batches
from pure_nb.layers import activations, resting
from pure_nb.store import Store

Self = TypeVar("Self", bound="Accumulator")

SHARD = 1024
"""Images in a shard, rounded to whole batches: what is lost at most when a sweep is stopped."""


class Accumulator(Protocol):
    """Something that is known after all images have been seen once."""

    layers: tuple[str, ...]
    """The layers whose outputs are wanted; see :func:`pure_nb.layers.activations`."""

    leaf: str | None
    """The one of them from which the graph is to be kept, for an accumulator that needs gradients."""

    def update(self, samples: NDArray[np.int64], outputs: Mapping[str, Tensor]) -> None:
        """Take in the layers' outputs for a batch; ``samples`` are the numbers of its images."""

    def merge(self: Self, other: Self) -> None:
        """Take in all that another accumulator has taken in."""

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that was taken in, as arrays."""

    def restored(self: Self, state: Mapping[str, NDArray[np.generic]]) -> Self:
        """A new accumulator of the same settings with a given state."""


def shards(count: int, batch_size: int, size: int = SHARD) -> list[range]:
    """Cut ``count`` images into ranges of whole batches."""
    step = max(1, size // batch_size) * batch_size
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def run_shard(
    model: nn.Module,
    images: Images,
    accumulators: Sequence[Accumulator],
    samples: range,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
) -> Generator[int | Unreadable, None, None]:
    """Feed one shard to the accumulators; yields the number of images of each batch, and what was unreadable."""
    layers = list(dict.fromkeys(layer for accumulator in accumulators for layer in accumulator.layers))
    leaves = {accumulator.leaf for accumulator in accumulators} - {None}
    if len(leaves) > 1:
        raise ValueError(f"one pass can keep the graph from one layer, not from each of {sorted(map(str, leaves))}")
    leaf = next(iter(leaves), None)
    with resting(model):
        for batch in batches(images, samples, batch_size=batch_size, workers=workers):
            yield from batch.unreadable
            if not len(batch.samples):
                continue
            with torch.no_grad() if leaf else torch.inference_mode():
                outputs = activations(model, batch.images.to(device), layers, leaf)
                for accumulator in accumulators:
                    accumulator.update(batch.samples, outputs)
            yield len(batch.samples)


def sweep(
    model: nn.Module,
    images: Images,
    accumulators: Sequence[Accumulator],
    *,
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
    skip_unreadable: bool = False,
    store: Store | None = None,
    progress: bool = True,
) -> list[Unreadable]:
    """Run the network once over all images, no further than the last layer asked for.

    Parameters
    ----------
    model, images
        What to run over what.
    accumulators
        What to feed; they hold the result afterwards.
    batch_size, device, workers
        Images in a batch; where the network runs; processes that load images (0: this one).
    skip_unreadable
        Leave out images that can't be read, instead of stopping at the first.
    store
        Where to keep finished shards, a folder for this sweep alone. A sweep that finds shards there goes on from
        them; clear it when the result is safe.
    progress
        Show a progress bar with images per second.

    Returns
    -------
    list of Unreadable
        The images that were left out.

    Raises
    ------
    ImageError
        At the first unreadable image, unless they are to be skipped. Finished shards stay in the store.
    LayerError, NonFiniteError
        From the layers and the accumulators.
    """
    model.to(device)
    skipped: list[Unreadable] = []
    with tqdm(total=len(images), desc="sweep", unit="img", disable=not progress) as bar:
        for shard in shards(len(images), batch_size):
            key = {"images": [shard.start, shard.stop], "batch_size": batch_size}
            saved = store.load_arrays("shard", key) if store else None
            if saved is not None:
                arrays, note = saved
                fresh = [accumulator.restored(_own(arrays, i)) for i, accumulator in enumerate(accumulators)]
                lost = [Unreadable(*entry) for entry in note]
                bar.update(len(shard))
            else:
                fresh = [accumulator.restored({}) for accumulator in accumulators]
                lost = []
                events = run_shard(model, images, fresh, shard, batch_size=batch_size, device=device, workers=workers)
                with closing(events):  # whatever happens here, the model gets its state back at once
                    for event in events:
                        if isinstance(event, Unreadable):
                            if not skip_unreadable:
                                raise event.error()
                            lost.append(event)
                        bar.update(1 if isinstance(event, Unreadable) else event)
                if store:
                    arrays = {f"{i}.{name}": array for i, a in enumerate(fresh) for name, array in a.state().items()}
                    store.save_arrays("shard", key, arrays, [[u.sample, u.path, u.reason] for u in lost])
            if lost and not skip_unreadable:
                raise lost[0].error()
            skipped += lost
            for accumulator, other in zip(accumulators, fresh):
                accumulator.merge(other)
    if len(skipped) == len(images):
        raise skipped[0].error()
    return skipped


def _own(saved: Mapping[str, NDArray[np.generic]], number: int) -> dict[str, NDArray[np.generic]]:
    """The arrays of one accumulator out of a shard's."""
    prefix = f"{number}."
    return {name[len(prefix) :]: array for name, array in saved.items() if name.startswith(prefix)}
