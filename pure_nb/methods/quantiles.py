"""Reference images from the whole range of activation, not from its top alone.

What a neuron does at its strongest is a small part of what it does (Oikarinen and Weng, *Linear explanations for
individual neurons*, ICML 2024). :class:`QuantileReferences` takes images evenly from the strongest to the weakest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.errors import ArgumentError
from pure_nb.methods._shapes import Bool, Float, Int
from pure_nb.methods.references import References, TopReferences
from pure_nb.parameters import Parameters, RankedBy

SAMPLE, TIMES = 1000, 10
"""Images kept of each channel: at least so many, and at least so many times as many as references."""


class QuantileReferences(TopReferences):
    """Accumulator of ``n`` images of every channel, spread evenly over the images that activate it.

    Let m images activate a channel, the strongest first, and images of equal scores in the order of their indices. Its
    references are those at the places ``floor((j + 1/2) m / n)``, j = 0 ... n - 1: the middle one of each n-th of them.
    A channel that fewer than ``n`` images activate has all of these, and others that do not.

    Memory does not grow with the number of images: of the images that activate a channel, only a random sample is kept,
    of 1,000 or of 10 n, whatever is more, and m counts the images in the sample. So all is exact up to that many.
    Beyond it, a place is off by the sampling error of a quantile: at most 1.6 % of the images (one standard error).

    Parameters
    ----------
    layer, n, ranked_by
        As for :class:`pure_nb.methods.references.TopReferences`.
    seed
        Of the sample. It is a random order of all images, of which each channel keeps the first that activate it, so
        that it depends neither on batches nor on the order of merges.

    Examples
    --------
    >>> some = QuantileReferences("layer4", n=5)
    >>> _ = sweep(model, study.images, [some], run=Run(progress=False))
    >>> some.result().sample.shape
    (32, 5)
    """

    def __init__(self, layer: str, n: int = 100, ranked_by: RankedBy = "max", seed: int = 0) -> None:
        super().__init__(layer, n, ranked_by)
        self.seed, self.size = seed, max(SAMPLE, TIMES * n)

    def update(self, samples: Int[NDArray[np.int64], " b"], outputs: Mapping[str, Tensor]) -> None:
        """Take in a batch: see :meth:`TopReferences.update`."""
        self._take(self._read(samples, outputs[self.layer]))

    def merge(self, other: TopReferences) -> None:
        """Take in what another accumulator of the same layer, and of the same seed, has taken in."""
        if getattr(other, "seed", None) != self.seed:
            raise ArgumentError("can't merge references by quantiles that are of other samples: give them one seed")
        super().merge(other)

    def _take(self, new: Mapping[str, Tensor]) -> None:
        self._best = {name: torch.cat([self._best[name], own]) if self._best else own for name, own in new.items()}
        if len(self._best["score"]) > 2 * self.size:  # not after every batch, as it takes a sort
            self._cut()

    def _cut(self) -> None:
        """Leave of each channel the first images in the random order, those that activate it before the others."""
        best = self._best
        order = torch.from_numpy(shuffled(best["sample"].numpy(), self.seed))
        order = torch.where(best["peak"] > 0, order - 2**62 - 2**62, order).argsort(dim=0)[: self.size]
        self._best = {name: own.gather(0, order) for name, own in best.items()}

    def result(self) -> References:
        """The reference images among those taken in so far, strongest first; raises as :meth:`TopReferences.result`."""
        made = TopReferences(self.layer, self.n, self.ranked_by).restored(self.state())
        kept, made._best = made._best, {}
        if kept:
            each = zip(kept["score"].T.numpy(), (kept["peak"] > 0).T.numpy(), kept["sample"].T.numpy())
            chosen = torch.from_numpy(np.stack([spread(*own, self.n) for own in each], axis=1))
            made._take({name: own.gather(0, chosen) for name, own in kept.items()})
        return made.result()

    def state(self) -> dict[str, NDArray[Any]]:
        """All that was taken in, as arrays; see :meth:`restored`."""
        if self._best:
            self._cut()
        return super().state()

    def restored(self, state: Mapping[str, NDArray[Any]]) -> QuantileReferences:
        """A new accumulator of the same settings, holding a saved state; empty if the state is."""
        other = QuantileReferences(self.layer, self.n, self.ranked_by, self.seed)
        held = super().restored(state)
        other._best, other.grid = held._best, held.grid
        return other


def spread(
    score: Float[NDArray[np.float32], " m"],
    active: Bool[NDArray[np.bool_], " m"],
    sample: Int[NDArray[np.int64], " m"],
    n: int,
) -> Int[NDArray[np.int64], " n"]:
    """Places of ``n`` images spread evenly over those that activate a channel; of fewer all, and then the first others.

    Parameters
    ----------
    score, active, sample
        Of each image the score, whether it activates the channel, and its index.
    n
        How many; fewer where there are fewer images.
    """
    some = np.flatnonzero(active)
    some = some[np.lexsort((sample[some], -score[some]))]
    if len(some) > n:
        return some[(2 * np.arange(n) + 1) * len(some) // (2 * n)]
    return np.concatenate([some, np.flatnonzero(~active)])[:n]


def shuffled(sample: Int[NDArray[np.int64], "*shape"], seed: int) -> Int[NDArray[np.int64], "*shape"]:
    """The place of each image in a random order of all that there could be: different numbers from 0 to 2**63 - 1.

    Parameters
    ----------
    sample
        Indices of images, of any shape.
    seed
        Each gives an order of its own.
    """
    low, place = np.uint64(2**63 - 1), sample.astype(np.uint64)
    keys = np.random.default_rng(seed).integers(1 << 62, size=4, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    for key in keys:  # each step can be undone, so that no two images come to one place
        place = (place * key) & low
        place ^= place >> np.uint64(32)
    return place.astype(np.int64)


def accumulator(p: Parameters) -> TopReferences:
    """What finds the references that a study asks for.

    Parameters
    ----------
    p
        Its ``references``, ``target``, ``n_references``, ``ranked_by`` and ``seed``.
    """
    if p.references == "quantiles":
        return QuantileReferences(p.target, p.n_references, p.ranked_by, p.seed)
    return TopReferences(p.target, p.n_references, p.ranked_by)
