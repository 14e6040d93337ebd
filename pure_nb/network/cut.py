"""The network cut at two layers: relevance of channels at a lower layer, by one forward pass and as many backward.

The output of a lower layer becomes the start of a new computational graph, so what the upper layer puts out is a
function of the lower activations *only*, and a backward pass runs through the part between the two and through nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.errors import ArgumentError, LayerError, NonFiniteError
from pure_nb.network.layers import activations, as_weights, channel_axis
from pure_nb.network.running import forward_pass
from pure_nb.network.targets import INPUT, Target
from pure_nb.parameters import Start


@dataclass(frozen=True, eq=False)
class Cut:
    """The part of a network between two layers, after one forward pass of a batch of images.

    Each further question costs a backward pass through that part and nothing else.

    Attributes
    ----------
    leaf
        The lower activations, a leaf that requires gradients.
    top
        The target's activations, as a function of them.
    lower, target
        Names of the two layers.
    times_input
        Whether relevance is input times gradient, as it is without rules for the gradient.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
    >>> cut = Cut.at(model, torch.rand(2, 3, 12, 12), lower="1", target="2")
    >>> cut.relevance(torch.tensor([3, 0])).shape
    torch.Size([2, 5, 10, 10])
    """

    leaf: Tensor
    top: Tensor
    lower: str
    target: str
    times_input: bool = True

    @classmethod
    def at(cls, model: nn.Module, images: Tensor, lower: str | None, target: str, *, times_input: bool = True) -> Cut:
        """Run the network to two layers, and keep the graph between them only.

        Parameters
        ----------
        model
            Any network, best within :func:`pure_nb._resting.frozen_eval`.
        images
            A batch of its inputs; they are brought to the precision of its weights.
        lower
            The lower layer L'; None for the images themselves.
        target
            The target layer L, above it.
        times_input
            See :class:`Cut`.

        Raises
        ------
        LayerError
            If a layer is missing, or the target does not depend on the lower layer.
        """
        below = INPUT if lower is None else lower  # what goes into the network as a whole
        if below == target:
            raise LayerError(f"the lower layer must be below the target layer; both are {target!r}")
        found = activations(model, images, [target, below], leaf=below)
        if next(iter(found)) != below or not found[target].requires_grad:
            start = lower or "the images"
            if blocked := _without_gradients(model, images, lower, target):
                raise LayerError(
                    f"layer {target!r} can't be traced back to {start!r}: gradients are switched off where {blocked} "
                    "runs, by no_grad() or inference_mode() in the network's own code; take that out of forward()"
                )
            raise LayerError(
                f"layer {target!r} does not depend on {start!r}: the lower layer must run before it and feed it, with "
                "no detach() between them"
            )
        return cls(found[below], found[target], lower or "the input", target, times_input)

    def relevance(
        self,
        channel: Tensor | NDArray[np.int64],
        start: Start = "activation",
        *,
        last: bool = False,
        index: Sequence[int] | None = None,
    ) -> Tensor:
        """What each value of the lower layer contributed to a channel, image by image.

        Parameters
        ----------
        channel
            int64 ``[b]``: the channel to start from in each of the first b images; as an array a GPU is not waited for.
        start
            Where relevance starts, see :func:`initial_relevance`.
        last
            Whether the graph may be freed on the way, as nothing more will be asked of it.
        index
            int ``[b]``: what to call the images in an error, if not by their place in the batch.

        Returns
        -------
        Tensor
            Of the lower layer's shape, with b rows.

        Raises
        ------
        ArgumentError
            If there is no such channel.
        NonFiniteError
            If the relevance is NaN or infinite.
        """
        self.require_channels(channel)
        width = len(channel)
        above = torch.zeros_like(self.top)
        chosen = torch.as_tensor(channel, device=self.top.device)
        above[:width] = initial_relevance(self.top[:width], chosen, start)
        (flow,) = torch.autograd.grad(self.top, self.leaf, above, retain_graph=not last)
        found = (self.leaf.detach() * flow if self.times_input else flow)[:width]
        return self.finite(found, channel, range(width) if index is None else index)

    def finite(self, found: Tensor, channel: Tensor | NDArray[np.int64], index: Sequence[int]) -> Tensor:
        """Relevance as it is; raises if it is NaN or infinite, and names some of the channels and images."""
        if not torch.isfinite(found.float().sum()):
            raise NonFiniteError(
                f"the relevance of layer {self.target!r} at {self.lower!r} is NaN or infinite for one of the pairs "
                f"(channel, image) {list(zip(channel.tolist(), index))[:5]} ..."
            )
        return found

    def require_channels(self, channel: Tensor | NDArray[np.int64]) -> None:
        """Raise if the target has no such channels."""
        channels = self.top.shape[channel_axis(self.top)]
        if not 0 <= channel.min() <= channel.max() < channels:
            raise ArgumentError(
                f"channel {channel.max()} (lowest {channel.min()}): layer {self.target!r} has channels 0 to "
                f"{channels - 1}"
            )


def initial_relevance(activation: Tensor, channel: Tensor, start: Start = "activation") -> Tensor:
    """The relevance at the target layer to start from.

    Parameters
    ----------
    activation
        Output of the target layer for b images, channels on any axis.
    channel
        int64 ``[b]``: the channel to start from in each image.
    start
        ``"activation"``: max(A, 0) at every position (the paper's); ``"peak"``: the same at the position of the
        maximum only; ``"unit"``: 1 at every position.

    Returns
    -------
    Tensor
        Of the activation's shape; zero outside the channels.
    """
    relevance = torch.zeros_like(activation, memory_format=torch.preserve_format)
    rows = torch.arange(len(channel), device=activation.device)
    relevance.movedim(channel_axis(activation), 1)[rows, channel] = start_values(activation, channel, start)
    return relevance


def start_values(activation: Tensor, channel: Tensor, start: Start) -> Tensor:
    """The relevance to start from, at the positions of the channels alone: ``[b, ...]``; see the above."""
    rows = torch.arange(len(channel), device=activation.device)
    first = activation.detach().movedim(channel_axis(activation), 1)[rows, channel]
    if start == "unit":
        return torch.ones_like(first)
    value = first.clamp(min=0)
    if start == "peak":
        flat = value.reshape(len(value), -1)
        at = flat.argmax(dim=1, keepdim=True)
        value = torch.zeros_like(flat).scatter(1, at, flat.gather(1, at)).view_as(value)
    return value


def _without_gradients(model: nn.Module, images: Tensor, lower: str | None, target: str) -> str:
    """The first module from the lower layer to the target that runs without gradients; "" if none does."""
    order: list[tuple[str, str]] = []  # of the modules as they end, and what to say of those without gradients

    def note(name: str, module: nn.Module, *_: Any) -> None:
        order.append((name, "" if torch.is_grad_enabled() else f"{name!r} ({type(module).__name__})"))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.enter_context(module.register_forward_hook(partial(note, name)))
        with torch.enable_grad():
            forward_pass(model, as_weights(model, images))
    names = [name for name, _ in order]
    first = 0 if lower is None else names.index(Target.parse(lower).name)
    return next((told for _, told in order[first : names.index(Target.parse(target).name) + 1] if told), "")
