"""Ablation: a network with virtual neurons switched off, and how selectively that hits what it was meant to hit.

A virtual neuron is a channel as far as it was reached through one circuit. So to switch it off is to take from the
channel, image by image, the share of its activation that :class:`~pure_nb.methods.virtual_layer.VirtualLayer` gives to
it. What stands in its place is nothing, or another activation of the channel: its mean over some images, or that in
another image (zero, mean and resample ablation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb._resting import frozen_eval
from pure_nb.errors import ArgumentError
from pure_nb.methods._shapes import Bool, Float, Int
from pure_nb.methods.statistics import percentiles, resampled
from pure_nb.methods.virtual_layer import VirtualLayer
from pure_nb.network.layers import OUTPUT, activations, channel_axis


def weakened(
    activation: Float[Tensor, "b ..."],
    channel: Int[NDArray[np.int64], " c"],
    share: Float[NDArray[np.float64], "b c"],
    fill: Float[Tensor, "_ ..."] | None = None,
) -> Float[Tensor, "b ..."]:
    """A layer's output without a share of some of its channels.

    Parameters
    ----------
    activation
        What the layer puts out: ``[B, C, H, W]``, ``[B, T, C]`` or ``[B, C]``.
    channel
        int64 ``[c]``: the channels.
    share
        float64 ``[B, c]``: what is taken from each in each image; 1 takes all.
    fill
        What stands in its place, ``[B or 1, c, ...]`` with the channels on the second axis; zero for None.

    Returns
    -------
    Tensor
        A new one of the same shape; ``(1 - share) * activation + share * fill`` in the channels.

    Examples
    --------
    >>> weakened(torch.ones(1, 3), np.array([2]), np.array([[0.25]])).tolist()
    [[1.0, 1.0, 0.75]]
    """
    axis = channel_axis(activation)
    values, chosen = activation.movedim(axis, 1), torch.from_numpy(channel).to(activation.device)
    own = values.index_select(1, chosen)
    lost = torch.from_numpy(share).to(own).reshape(*share.shape, *[1] * (own.ndim - 2))
    left = (1 - lost) * own if fill is None else (1 - lost) * own + lost * fill
    return values.index_copy(1, chosen, left).movedim(1, axis)


class Ablation(nn.Module):
    """A network with some virtual neurons switched off, as a module: from images to what the network puts out.

    Parameters
    ----------
    layer
        The virtual neurons, and the network that they are of.
    off
        Those to be switched off, by their names in ``layer.names``.
    fill
        What stands in their place: ``[B or 1, channels, ...]``, activations of ``layer``'s channels in ascending order,
        the channels on the second axis. None is zero. The mean over some images makes it mean ablation, the
        activations in other images resample ablation.

    Attributes
    ----------
    off
        Buffer, bool ``[V]``: which of the layer's virtual neurons are off.
    switched
        int64 ``[channels]``: the layer's channels.

    Raises
    ------
    ArgumentError
        If there is no virtual neuron of that name.

    Examples
    --------
    >>> from pure_nb.methods import VirtualLayer
    >>> layer = VirtualLayer.of(study, [3])
    >>> ablated = Ablation(layer, ["3A"])
    >>> ablated(torch.rand(2, 3, 96, 96)).shape
    torch.Size([2, 48])
    """

    off: Bool[Tensor, " v"]

    def __init__(self, layer: VirtualLayer, off: Sequence[str], fill: Float[Tensor, "_ ..."] | None = None) -> None:
        super().__init__()
        if unknown := [name for name in off if name not in layer.names]:
            raise ArgumentError(
                f"there is no virtual neuron {unknown[0]!r} to switch off; there are {', '.join(layer.names[:12])}"
                f"{' ...' if len(layer.names) > 12 else ''}"
            )
        self.layer, self.fill = layer, fill
        self.register_buffer("off", torch.tensor([name in off for name in layer.names]))
        self.switched = np.unique(layer.channel.cpu().numpy())

    @classmethod
    def but(cls, layer: VirtualLayer, on: Sequence[str], fill: Float[Tensor, "_ ..."] | None = None) -> Ablation:
        """Only these are left on: all other virtual neurons of the layer are switched off."""
        cls(layer, on)  # raises where one is not there
        return cls(layer, [name for name in layer.names if name not in on], fill)

    def taken(self, shares: Float[NDArray[np.float64], "b v"]) -> Float[NDArray[np.float64], "b c"]:
        """What is taken from each channel, ``[B, channels]``, given the shares of all virtual neurons."""
        owner = self.layer.channel.cpu().numpy()[:, None] == self.switched
        return np.asarray(shares * self.off.cpu().numpy() @ owner.astype(np.float64))

    def forward(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """What the network puts out for a batch of images."""
        return self.both(images)[0]

    def both(self, images: Float[Tensor, "b ..."]) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
        """The same, and the target layer's output with the virtual neurons off."""
        model, target = self.layer.model, self.layer.target
        change = partial(weakened, channel=self.switched, share=self.taken(self.layer.shares(images)), fill=self.fill)
        with frozen_eval(model, images.device), torch.no_grad():
            found = activations(model, images, [target, OUTPUT], changes={target: change})
        return found[OUTPUT], found[target]


@dataclass(frozen=True)
class Selectivity:
    """How much more an intervention hits what it was meant to hit than the rest.

    Attributes
    ----------
    own, others
        The mean relative fall of the channel in the images of the part, and in the others.
    selectivity
        Their difference, -1..1 where nothing rises: 1 takes all of the one and none of the other, 0 hits both alike.
    low, high
        Its 95 % bootstrap interval over images, of each kind as many as there are.
    p
        How probable as large a difference is where the images are shuffled between the two kinds.
    own_images, other_images
        How many there are.
    """

    own: float
    others: float
    selectivity: float
    low: float
    high: float
    p: float
    own_images: int
    other_images: int


def selectivity(
    fall: Float[NDArray[np.float64], " n"], own: Bool[NDArray[np.bool_], " n"], *, draws: int = 999, seed: int = 0
) -> Selectivity:
    """How selective an intervention is: the fall in the images that were meant, less the fall in the others.

    Parameters
    ----------
    fall
        float64 ``[n]``: of each image the relative fall of the channel, ``(before - after) / before``.
    own
        bool ``[n]``: which images were meant. Who says so decides what the number means: see
        :class:`pure_nb.ablating.PartAblation`.
    draws, seed
        Permutations and bootstrap samples, and their seed. All permutations where there are no more.

    Returns
    -------
    Selectivity
        NaN in all but the counts and the one mean where all images are of one kind.

    Examples
    --------
    >>> found = selectivity(np.array([1.0, 0.8, 0.2, 0.0]), np.array([True, True, False, False]))
    >>> round(found.selectivity, 3)
    0.8
    """
    mine, rest = fall[own], fall[~own]
    hit, beside = (float(values.mean()) if len(values) else float("nan") for values in (mine, rest))
    low, high, p = float("nan"), float("nan"), float("nan")
    if len(mine) and len(rest):
        picks = resampled(np.flatnonzero(own), np.flatnonzero(~own), draws=draws, seed=seed)
        low, high = percentiles(_difference(fall[picks[:, : len(mine)]], fall[picks[:, len(mine) :]], 1))
        shuffled: Any = {"vectorized": True, "n_resamples": draws, "random_state": np.random.default_rng(seed)}
        p = float(scipy.stats.permutation_test((mine, rest), _difference, alternative="greater", **shuffled).pvalue)
    return Selectivity(hit, beside, hit - beside, low, high, p, len(mine), len(rest))


def _difference(mine: NDArray[np.float64], rest: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(mine.mean(axis=axis) - rest.mean(axis=axis))
