"""Virtual neurons inside a network: their activations for any new image, for whatever comes after.

A virtual neuron is a channel, as far as it was reached through one circuit. :class:`VirtualLayer` is a module that
computes that: it runs the network to the target layer, propagates each wanted channel back to the lower one, and gives
the channel's activation to the virtual neuron whose mean circuit is nearest; or shares it out among them, where the
circuit is a mixture of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.errors import ArgumentError, require_choice
from pure_nb.methods._shapes import Float, Int
from pure_nb.methods.circuits import cuts, normalised, summed
from pure_nb.methods.combined import at_maximum
from pure_nb.methods.virtual import VirtualNeurons, nearest, part_name
from pure_nb.network.cut import Cut
from pure_nb.network.layers import channel_axis
from pure_nb.parameters import Rule, Start

if TYPE_CHECKING:
    from pure_nb.study import Study

Assign = Literal["nearest", "mixture"]


class VirtualLayer(nn.Module):
    """The virtual neurons of a layer, as a module: from images to their activations.

    Parameters
    ----------
    model
        The network.
    target, lower
        The layers L and L'.
    parts
        Virtual neurons by channel of the target.
    rule, start
        How their circuits were computed; see :func:`pure_nb.methods.circuits.propagate`.
    assign
        ``"nearest"``: one virtual neuron of a channel has its activation, as in PURE; ``"mixture"``: each has its
        share, see :func:`mixture`, by circuits alone also where the parts are by several descriptions.

    Attributes
    ----------
    channel, part
        Buffers, int64 ``[V]``: the channel of each virtual neuron, and its number among the channel's.
    centroids
        Buffer, float32 ``[V, d]``: their mean circuits.
    means, scale
        Buffers, float32 ``[V, D]``: those of the virtual neurons by several descriptions; None for circuits alone.
    names
        ``"17A"`` for the largest virtual neuron of channel 17, then ``"17B"`` ...

    Raises
    ------
    ArgumentError
        If there are no virtual neurons, or their circuits are of different lengths.

    Examples
    --------
    >>> layer = VirtualLayer(model, "layer4", "layer3", {3: study.neuron(3).virtual})
    >>> out = layer(torch.rand(2, 3, 96, 96))
    """

    channel: Int[Tensor, " v"]
    part: Int[Tensor, " v"]
    centroids: Float[Tensor, "v lower"]
    means: Float[Tensor, "v d"] | None
    scale: Float[Tensor, "v d"] | None

    def __init__(
        self,
        model: nn.Module,
        target: str,
        lower: str,
        parts: Mapping[int, VirtualNeurons],
        rule: Rule = "gradient",
        start: Start = "activation",
        assign: Assign = "nearest",
    ) -> None:
        require_choice("assign", assign, Assign)
        super().__init__()
        widths = {one.centroids.shape[1] for one in parts.values()}
        if len(widths) != 1:
            raise ArgumentError(
                f"expected virtual neurons of one lower layer, got {len(parts)} channels with circuits of "
                f"{sorted(widths)} entries"
            )
        self.model, self.target, self.lower = model, target, lower
        self.rule, self.start, self.assign = rule, start, assign
        both = [(channel, part) for channel, one in parts.items() for part in range(one.k)]
        self.register_buffer("channel", torch.tensor([channel for channel, _ in both]))
        self.register_buffer("part", torch.tensor([part for _, part in both]))
        centroids = np.concatenate([one.centroids for one in parts.values()])
        self.register_buffer("centroids", torch.from_numpy(centroids))
        several = [one for one in parts.values() if one.means is not None and one.scale is not None]
        if several and len(several) < len(parts):
            raise ArgumentError(
                f"expected virtual neurons by the same descriptions, got {len(several)} of {len(parts)} channels with "
                "several; take all from studies with the same described_by"
            )
        means = [torch.from_numpy(np.asarray(one.means)) for one in several]
        scale = [torch.from_numpy(np.asarray(one.scale)).expand(one.k, -1) for one in several]
        self.register_buffer("means", torch.cat(means) if several else None)
        self.register_buffer("scale", torch.cat(scale) if several else None)
        self.names = tuple(f"{channel}{part_name(part)}" for channel, part in both)

    @classmethod
    def of(cls, study: Study, channels: Sequence[int] | None = None, assign: Assign = "nearest") -> VirtualLayer:
        """The virtual neurons of some of a study's channels; of all by default."""
        p = study.parameters
        wanted = range(study.references.channels) if channels is None else channels
        parts = {int(channel): study.virtual_of(int(channel)) for channel in wanted}
        return cls(study.model, p.target, p.lower, parts, p.rule, p.start, assign)

    def forward(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Activations of the virtual neurons.

        Parameters
        ----------
        images
            ``[B, ...]``: a batch of the network's inputs.

        Returns
        -------
        Tensor
            The target layer's shape, with the virtual neurons for its channels: ``[B, V, H, W]``, ``[B, T, V]`` or
            ``[B, V]``. For each image the virtual neurons of a channel add up to its activation.
        """
        shares, top = self._shared(images)
        axis = channel_axis(top)
        values = top.movedim(axis, 1).index_select(1, self.channel.to(images.device))
        share = torch.from_numpy(shares).to(values)
        return (share.reshape(*share.shape, *[1] * (values.ndim - 2)) * values).movedim(1, axis)

    def shares(self, images: Float[Tensor, "b ..."]) -> Float[NDArray[np.float64], "b v"]:
        """What each virtual neuron has of its channel's activation in each image: float64 ``[B, V]``.

        Not negative, and for each channel 1 in sum. See :class:`pure_nb.methods.ablation.Ablation`.
        """
        return self._shared(images)[0]

    def _shared(self, images: Tensor) -> tuple[NDArray[np.float64], Tensor]:
        """The shares, and the target's activations."""
        owner, centres, scale = self.channel.cpu().numpy(), self.centroids.cpu().numpy(), None
        if self.assign == "nearest" and self.means is not None and self.scale is not None:
            scale = self.scale.cpu().numpy()
            centres = self.means.cpu().numpy() * scale
        found, wanted = np.zeros((len(images), len(owner))), np.unique(owner)
        with cuts(self.model, images[:1].detach(), self.target, self.lower, self.rule) as cut_at:
            cut = cut_at(images.detach())
            for channel in wanted:
                vectors = self._vectors(cut, np.full(len(images), channel), last=channel == wanted[-1])
                members = np.flatnonzero(owner == channel)
                vectors = vectors if scale is None else vectors * scale[members[0]]
                found[:, members] = shares_of(vectors, centres[members], self.assign)
        return found, cut.top.detach()

    def _vectors(self, cut: Cut, channel: NDArray[np.int64], *, last: bool) -> NDArray[np.float32]:
        """What an image is assigned by: its circuit, or with several descriptions all of them, as they are."""
        several = self.means is not None and self.assign == "nearest"
        starts: tuple[Start, ...] = (self.start, "peak") if several and self.start != "peak" else (self.start,)
        found = []
        for number, start in enumerate(starts, 1):
            found.append(normalised(summed(cut.relevance(channel, start, last=last and number == len(starts)))))
        if several:
            found.append(
                torch.cat(list(at_maximum(cut.top.detach(), cut.leaf.detach(), channel[:, None]))).cpu().numpy()
            )
        return np.concatenate(found, axis=1)


def shares_of(
    vectors: Float[NDArray[np.float32], "b d"], centroids: Float[NDArray[np.float32], "k d"], assign: Assign
) -> Float[NDArray[np.float64], "b k"]:
    """What each virtual neuron of a channel gets of its activation in each image.

    Parameters
    ----------
    vectors, centroids
        float32 ``[b, d]`` and ``[k, d]``: the circuits of the images, and the virtual neurons' mean circuits.
    assign
        As for :class:`VirtualLayer`.

    Returns
    -------
    ndarray
        float64 ``[b, k]``; of each image 1 in sum.
    """
    if assign == "mixture":
        return np.stack([mixture(vector, centroids) for vector in vectors])
    return np.eye(len(centroids))[nearest(vectors, centroids)]


def mixture(
    vector: Float[NDArray[np.floating], " d"], centroids: Float[NDArray[np.floating], "k d"]
) -> Float[NDArray[np.float64], " k"]:
    """The shares of some mean circuits that together come nearest to a circuit: not negative, and 1 in sum.

    Relevance adds up, so the circuit of an image that activated a channel in two ways lies between the two.

    Parameters
    ----------
    vector
        float ``[d]``: the circuit.
    centroids
        float ``[k, d]``: the mean circuits.

    Returns
    -------
    ndarray
        float64 ``[k]``.
    """
    means = np.asarray(centroids, dtype=np.float64)
    # The last equation, that the shares sum to 1, weighs so much that it holds to the sixth digit.
    heavy = 1e3 * max(1.0, float(np.abs(means).max()))
    found, _ = scipy.optimize.nnls(np.vstack([means.T, np.full(len(means), heavy)]), np.append(vector, heavy))
    return np.asarray(found / found.sum())
