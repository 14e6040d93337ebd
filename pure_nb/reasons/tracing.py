"""Relevance of an output at layers below it, channel by channel, and the part that each channel stands for in an image.

A batch of images goes through the network once. One backward pass brings the relevance of the outputs to all the
layers. The channels that carry most are then taken one by one, all at once for the machine: from each goes a backward
pass to the lower layer, which tells its part by its circuit, and one to the next layer, which tells where its
relevance comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.errors import ArgumentError, LayerError, NonFiniteError
from pure_nb.methods.circuits import cuts, normalised
from pure_nb.network.cut import initial_relevance
from pure_nb.network.layers import OUTPUT, activations, channel_axis, flatten_positions
from pure_nb.parameters import Parameters, Rule
from pure_nb.reasons.parts import UNLIKE, Parts

MOST_NUMBERS = 2**24
"""Numbers at a lower layer that are propagated at once: 64 MB, and a few times that on the way."""


class Start(NamedTuple):
    """The outputs to explain, in each image: a number, None is the largest; and one that is taken off, if any."""

    output: int | None = None
    against: int | None = None


class Layer(NamedTuple):
    """What a layer has to do with the outputs of b images.

    Attributes
    ----------
    flow
        Of the layer's shape: relevance of each of its values.
    total
        float64 ``[b]``: the relevance of all channels.
    channel, relevance
        int64 and float64 ``[b, K]``: the channels that carry most, by absolute value and from the largest on.
    part, distance, limit
        ``[b, K]``: as of :class:`pure_nb.reasons.parts.Fit`.
    down
        float64 ``[b, K, K' + 1]``: the relevance that flows from each of these channels to each of the next layer's,
        and to all others of it together; ``[b, K, 0]`` of the last layer.
    """

    flow: Tensor
    total: NDArray[np.float64]
    channel: NDArray[np.int64]
    relevance: NDArray[np.float64]
    part: NDArray[np.int64]
    distance: NDArray[np.float64]
    limit: NDArray[np.float64]
    down: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trace:
    """What b images' outputs are made of.

    Attributes
    ----------
    output
        int64 ``[b]``: which output was explained.
    value
        float64 ``[b]``: what it is; with another taken off, the difference.
    answer
        int64 ``[b]``: the largest output.
    layers
        From the uppermost down.
    """

    output: NDArray[np.int64]
    value: NDArray[np.float64]
    answer: NDArray[np.int64]
    layers: tuple[Layer, ...]


# What is run on what, what is asked of it, and how.
def trace(model: nn.Module, images: Tensor, start: Start, *, layers: Sequence[Parts], rule: Rule, most: int) -> Trace:
    """Trace the outputs of a batch of images down through some layers.

    Parameters
    ----------
    model, images
        A network that puts out ``[images, outputs]``, and b of its inputs, on the device to compute on.
    start
        What to explain.
    layers
        Parts of the layers, from the uppermost down.
    rule
        How relevance is propagated, ``"gradient"`` or ``"lrp"``; from an output by its value.
    most
        Channels of each layer that are looked at one by one, in each image.

    Raises
    ------
    LayerError
        If the network puts out something else, a layer does not feed the one before it, or the rules do not fit.
    NonFiniteError
        If relevance is NaN or infinite.
    """
    if most < 1:
        raise ArgumentError(f"at least one channel is taken apart, got channels={most}")
    asked = [one.study.parameters for one in layers]
    with cuts(model, images[:1], OUTPUT, asked[-1].lower, rule):
        output, value, answer, found = _passes(model, images, start, asked, rule == "gradient", most)
    # Now that the network is as it was: to take a channel apart may run it, by rules of its own.
    made = [one._replace(**fitted(parts, one.channel, vectors)) for parts, (one, vectors) in zip(layers, found)]
    return Trace(output, value, answer, tuple(made))


def _passes(
    model: nn.Module, images: Tensor, start: Start, asked: Sequence[Parameters], times_input: bool, most: int
) -> tuple[Any, Any, Any, list[tuple[Layer, NDArray[np.float32]]]]:
    """All that is run: output, value and answer of a :class:`Trace`, its layers without parts, and their circuits."""
    every = [*dict.fromkeys(name for p in asked for name in (p.target, p.lower)), OUTPUT]
    found = activations(model, images, every, leaf=asked[-1].lower)
    out = require_outputs(found[OUTPUT])
    values, rows = out.detach().double(), torch.arange(len(out), device=out.device)
    answer = values.argmax(dim=1)
    output = answer if start.output is None else torch.full_like(answer, start.output)
    above = torch.zeros_like(out)
    # By gradient an output is what it is made of times 1, by the rules its value is shared out.
    above[rows, output] = 1 if times_input else out.detach()[rows, output]
    value = values[rows, output]
    if start.against is not None:
        above[rows, start.against] -= 1 if times_input else out.detach()[rows, start.against]
        value = value - values[rows, start.against]
    tops = [found[p.target] for p in asked]
    try:
        flows = torch.autograd.grad(out, tops, above, retain_graph=True)
    except RuntimeError as problem:
        raise LayerError(
            f"the output does not depend on one of the layers {[p.target for p in asked]}, or not by way of the layers "
            f"between them; name layers that feed it, the uppermost first ({problem})"
        ) from problem
    made = [(top.detach() * flow if times_input else flow).detach() for top, flow in zip(tops, flows)]
    carried = [_by_channel(own) for own in made]
    for p, own in zip(asked, carried):
        if not torch.isfinite(own).all():
            raise NonFiniteError(f"the relevance of the output at {p.target!r} is NaN or infinite; check the picture")
    order = [own.abs().argsort(dim=1, descending=True, stable=True)[:, :most] for own in carried]
    layers = []
    for place, (p, top, chosen) in enumerate(zip(asked, tops, order)):
        begin = partial(initial_relevance, top.detach(), start=p.start)
        circuits = propagated(top, found[p.lower], begin, chosen, times_input).transpose(0, 1)
        down = np.zeros((*chosen.shape, 0))
        if place < len(asked) - 1:
            below = propagated(top, tops[place + 1], partial(only, flows[place]), chosen, times_input).transpose(0, 1)
            named = below.gather(2, order[place + 1][:, None].expand(-1, below.shape[1], -1))
            rest = below.sum(dim=2, keepdim=True) - named.sum(dim=2, keepdim=True)
            down = torch.cat([named, rest], dim=2).cpu().numpy()
        relevance = carried[place].gather(1, chosen).cpu().numpy()
        no = np.full(relevance.shape, np.nan)
        total = carried[place].sum(dim=1).cpu().numpy()
        layer = Layer(
            made[place], total, chosen.cpu().numpy(), relevance, np.full(relevance.shape, UNLIKE), no, no, down
        )
        layers.append((layer, normalised(circuits.float().cpu().numpy())))
    return output.cpu().numpy(), value.cpu().numpy(), answer.cpu().numpy(), layers


def require_outputs(out: Tensor) -> Tensor:
    """What the network puts out, if it is one number an output."""
    if out.ndim != 2:
        raise LayerError(
            "explanations need a network that puts out [images, outputs], one number an output; this one puts out "
            f"{list(out.shape)}"
        )
    return out


def _by_channel(relevance: Tensor) -> Tensor:
    """Relevance summed over positions, float64 ``[b, C]``."""
    return flatten_positions(relevance.detach()).double().sum(dim=2)


def only(flow: Tensor, channel: Tensor) -> Tensor:
    """What flows to one channel of each image, and nothing to the others."""
    kept, axis = torch.zeros_like(flow), channel_axis(flow)
    rows = torch.arange(len(channel), device=flow.device)
    kept.movedim(axis, 1)[rows, channel] = flow.movedim(axis, 1)[rows, channel]
    return kept


def propagated(
    top: Tensor, lower: Tensor, above: Callable[[Tensor], Tensor], chosen: Tensor, times_input: bool
) -> Tensor:
    """Relevance at a lower layer, summed over positions, of many starts at an upper one: float64 ``[K, b, C]``.

    Parameters
    ----------
    top, lower
        The upper layer's output as a function of the lower one's, b images.
    above
        From a channel of each image, int64 ``[b]``, to where relevance starts, or the gradient to go on with,
        ``[b, ...]``: so many are made at a time as :data:`MOST_NUMBERS` allows.
    chosen
        int64 ``[b, K]``: the channels.
    times_input
        Whether relevance is input times gradient.
    """
    found = []
    for some in torch.split(chosen.T, max(1, MOST_NUMBERS // max(lower.numel(), top.numel()))):
        flow = pulled(top, lower, torch.stack([above(own) for own in some]))
        own = lower.detach() * flow if times_input else flow
        found.append(_by_channel(own.flatten(0, 1)).reshape(*own.shape[:2], -1))
    return torch.cat(found)


def pulled(top: Tensor, lower: Tensor, above: Tensor) -> Tensor:
    """Vector-Jacobian products of many starts ``[K, b, ...]`` through one graph: ``[K, *lower.shape]``.

    All at once, which on a processor takes a third to nine tenths of the time; one after the other where the network
    has an operation that can't be run so.
    """
    how = {"retain_graph": True}
    try:
        (found,) = torch.autograd.grad(top, lower, above, is_grads_batched=True, **how)
    except RuntimeError:
        found = torch.stack([torch.autograd.grad(top, lower, one, **how)[0] for one in above])
    return found


def parts_at_work(parts: Parts, images: Tensor, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """The part that some channels of each image stand for, by their circuits in it; and the nearest, however far.

    Parameters
    ----------
    parts
        Of the layer.
    images, chosen
        b inputs of its network, and int64 ``[b, K]``: the channels.

    Returns
    -------
    ndarray
        int64 ``[2, b, K]``; :data:`pure_nb.reasons.parts.UNLIKE` for none.
    """
    p = parts.study.parameters
    with cuts(parts.study.model, images[:1], p.target, p.lower, p.rule) as cut_at:
        cut = cut_at(images)
        begin = partial(initial_relevance, cut.top.detach(), start=p.start)
        circuits = propagated(cut.top, cut.leaf, begin, torch.from_numpy(chosen).to(images.device), cut.times_input)
    vectors = normalised(circuits.transpose(0, 1).float().cpu().numpy())
    return np.stack([fitted(parts, chosen, vectors, like=like)["part"] for like in (True, False)])


def fitted(
    parts: Parts, channel: NDArray[np.int64], vectors: NDArray[np.float32], *, like: bool = True
) -> dict[str, Any]:
    """The part of each channel in each image, by its circuit there, with its distance and limit: ``[b, K]`` each.

    Parameters
    ----------
    parts
        Of the layer.
    channel, vectors
        int64 ``[b, K]`` and float32 ``[b, K, d]``: channels, and their circuits.
    like
        Whether a part must be near enough; else it is the nearest, however far.
    """
    found: dict[str, Any] = {"part": np.full(channel.shape, UNLIKE)} | {
        name: np.full(channel.shape, np.nan) for name in ("distance", "limit")
    }
    for one in np.unique(channel).tolist():
        places = channel == one
        for name, values in parts.fit(one, vectors[places], like=like)._asdict().items():
            found[name][places] = values
    return found
