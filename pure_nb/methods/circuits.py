"""Circuits: through which lower channels a channel was reached, image by image (PURE, section 3.2).

Start at the target layer L with relevance in one channel c and none in the others, and propagate it back to a
lower layer L'. Summed over positions, the relevance of the lower channels is a vector that says through which
*circuit* the channel was reached in that image.

Only the part of the network between the two layers is ever run backward, and each image is run forward once
however many channels it is a reference for: the pairs (channel, image) are grouped by image, and each round
takes one pair of every image of a batch through the same graph. An image that has far more pairs than others is run
again, in several rows of a batch, lest these idle.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from zennit.core import Composite

from pure_nb._resting import frozen_eval
from pure_nb.compute.blocks import grouped, map_in_blocks
from pure_nb.compute.store import New, Store
from pure_nb.errors import ArgumentError
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.methods._shapes import Float, Int
from pure_nb.methods.windows import KernelWindows, closed_form, in_single
from pure_nb.network.cut import Cut, start_values
from pure_nb.network.layers import activations, channel_axis, flatten_positions, get_layer
from pure_nb.network.lrp import default_composite, ruled
from pure_nb.parameters import Rule, Run, Start

FORWARD = 6
"""What a forward pass of an image takes, in rounds of circuits: for a ResNet's last stage."""

PIXELS = 2
"""The same in rounds down to the pixels, which are as long as a forward pass, of which the rules need two."""


@contextmanager
def cuts(
    model: nn.Module, example: Float[Tensor, "1 ..."], target: str, lower: str | None, rule: Rule | Composite
) -> Iterator[Callable[[Tensor], Cut]]:
    """A network made ready for relevance: on the device, at rest, with the rules in place where there are any.

    Parameters
    ----------
    model, target, lower, rule
        As for :func:`propagate`.
    example
        ``[1, ...]``: one image, on the device to compute on, to try the rules on.

    Yields
    ------
    callable
        From a batch of images to its :class:`~pure_nb.network.cut.Cut`.
    """
    composite = None if rule == "gradient" else default_composite(model) if rule == "lrp" else rule
    for name in filter(None, (lower, target)):
        get_layer(model, name)
    context: Any = nullcontext()
    if composite is not None:
        context = ruled(model, example, lower, target, composite, every=rule == "lrp")
    # At rest within the rules, or what they put in would ask for gradients.
    with frozen_eval(model, example.device), context, frozen_eval(model):
        yield lambda images: Cut.at(model, images, lower, target, times_input=composite is None)


# Pairs, the cut's two ends, where relevance starts and how it flows: each a question of its own, as below.
def propagate(  # noqa: PLR0913
    model: nn.Module,
    images: Images,
    channel: Int[NDArray[np.int64], " pairs"],
    sample: Int[NDArray[np.int64], " pairs"],
    *,
    target: str,
    lower: str | None,
    rule: Rule | Composite = "gradient",
    start: Start = "activation",
    run: Run = Run(),
) -> Generator[
    tuple[Int[NDArray[np.int64], " b"], Float[Tensor, "b ..."], Float[Tensor, "b ..."], Float[Tensor, "b ..."]],
    None,
    None,
]:
    """Relevance of single channels at a lower layer, for many pairs of a channel and an image.

    Parameters
    ----------
    model, images
        What to run over what.
    channel, sample
        int64 ``[P]`` each: the pairs.
    target, lower
        The layers L and L'; ``lower=None`` goes back to the images.
    rule
        ``"gradient"``: input times gradient, as PURE's reference implementation; ``"lrp"``: layer-wise relevance
        propagation with :func:`pure_nb.network.lrp.default_composite`; or a composite of zennit.
    start
        Where relevance starts, see :func:`pure_nb.network.cut.initial_relevance`.
    run
        How it is run.

    Yields
    ------
    tuple
        int64 ``[b]``, which of the pairs these are; their relevance, of the lower layer's shape with b rows; and
        the activations of the lower and of the target layer behind it.

    Raises
    ------
    ArgumentError
        If a channel or an image does not exist.
    LayerError
        If a layer can't be used, or the rules of LRP do not fit the network.
    NonFiniteError
        If the relevance is NaN or infinite.
    """
    channel, sample = np.asarray(channel, dtype=np.int64), np.asarray(sample, dtype=np.int64)
    if channel.shape != sample.shape or channel.ndim != 1:
        raise ArgumentError(f"channel and sample must be vectors of one length, got {channel.shape} and {sample.shape}")
    images.require(sample)
    rows_of = filled(grouped(sample)[1], run.batch_size, PIXELS if lower is None else FORWARD)
    example = images.example[None].to(run.local_device)
    with run.prepared(model), cuts(model, example, target, lower, rule) as cut_at:
        begin = 0
        for batch in readable(images, [int(sample[pairs[0]]) for pairs in rows_of], run=run):
            members = rows_of[begin : begin + len(batch.samples)]
            begin += len(members)
            cut = cut_at(batch.images.to(example.device))
            cut.require_channels(channel)  # of all pairs, and not when it is their turn
            for turn in range(len(members[0])):
                rows = np.array([pairs[turn] for pairs in members if len(pairs) > turn])
                last = turn == len(members[0]) - 1
                relevance = cut.relevance(channel[rows], start, last=last, index=sample[rows].tolist())
                yield rows, relevance, cut.leaf.detach()[: len(rows)], cut.top.detach()[: len(rows)]


def filled(
    pairs_of: list[Int[NDArray[np.int64], " _"]], batch_size: int, forward: float
) -> list[Int[NDArray[np.int64], " _"]]:
    """Rows for batches, longest first, such that few idle while others have pairs left.

    Images with similarly many pairs share a batch. One with more than is best is in several rows.

    Parameters
    ----------
    pairs_of
        Of each image its pairs.
    batch_size
        Rows of a batch.
    forward
        What it costs to have one more row, in rounds of it.

    Returns
    -------
    list of ndarray
        The pairs of each row, all of one image.
    """
    counts = np.sort([len(pairs) for pairs in pairs_of])[::-1]

    def cost(most: int) -> float:
        parts = -(-counts // most)
        lengths = np.sort(np.repeat(-(-counts // parts), parts))[::-1]
        return float((np.repeat(lengths[::batch_size], batch_size)[: len(lengths)] + forward).sum())

    longest = counts.max(initial=1)
    most = min(np.unique(-(-longest // np.arange(1, longest + 1)))[::-1].tolist(), key=cost)
    rows = [row for pairs in pairs_of for row in np.array_split(pairs, -(-len(pairs) // most))]
    return sorted(rows, key=len, reverse=True)


def summed(relevance: Float[Tensor, "b ..."]) -> Float[NDArray[np.float32], "b channels"]:
    """Relevance vectors out of the relevance of every position, summed over positions."""
    return flatten_positions(relevance).float().sum(dim=2).cpu().numpy()


def _propagate_closed(
    model: nn.Module,
    images: Images,
    channel: NDArray[np.int64],
    sample: NDArray[np.int64],
    module: nn.Module,
    how: dict[str, Any],
) -> Generator[tuple[NDArray[np.int64], Tensor], None, None]:
    """As :func:`propagate` by gradient, from a convolution or linear layer to its own input, summed over positions.

    A channel's own weights are all that is used, where a backward pass multiplies by those of every channel.
    """
    target, lower, run = how["target"], how["lower"], how["run"]
    windows = KernelWindows.from_module(module)
    images.require(sample)
    unique, pairs_of = grouped(sample)
    members = iter(pairs_of)
    with run.prepared(model):
        for batch in readable(images, unique.tolist(), run=run):
            with torch.no_grad():  # never across a yield, where it would reach the caller
                found = activations(model, batch.images.to(run.local_device), [lower, target])
            cut = Cut(found[lower], found[target], lower, target)
            cut.require_channels(channel)
            for image, rows in zip(range(len(batch.samples)), members):
                chosen = torch.from_numpy(channel[rows]).to(cut.top.device)
                above = start_values(cut.top[image].expand(len(rows), *cut.top.shape[1:]), chosen, how["start"])
                above = in_single(above).reshape(len(rows), -1)
                weight = in_single(cast(Tensor, module.weight).detach())[chosen]
                weight = weight.reshape(len(rows), cut.leaf.shape[channel_axis(cut.leaf)], -1)
                vectors = torch.zeros_like(weight[:, :, 0])
                for number, seen in enumerate(windows.seen(cut.leaf[image : image + 1])):
                    vectors += above @ in_single(seen)[0].flatten(1).T * weight[:, :, number]
                yield rows, cut.finite(vectors, channel[rows], sample[rows].tolist())


def normalised(vectors: Float[NDArray[np.float32], "*shape"]) -> Float[NDArray[np.float32], "*shape"]:
    """Divide relevance vectors by their L1 norm over the last axis, plus 1e-10 (PURE's reference implementation)."""
    return vectors / (np.abs(vectors).sum(axis=-1, keepdims=True) + np.float32(1e-10))


# The questions of `propagate`, and where what is finished is kept.
def circuits(  # noqa: PLR0913
    model: nn.Module,
    images: Images,
    channel: Int[NDArray[np.int64], "*pairs"],
    sample: Int[NDArray[np.int64], "*pairs"],
    *,
    target: str,
    lower: str,
    rule: Rule | Composite = "gradient",
    start: Start = "activation",
    store: Store | None = None,
    new: New = np.empty,
    run: Run = Run(),
) -> Float[NDArray[np.float32], "*pairs lower"]:
    """Relevance vectors of pairs of a channel and an image: PURE's description of the circuit.

    ``r_i = sum_uv R_i(u, v) / (sum_j |sum_uv R_j(u, v)| + 1e-10)`` over the channels i of the lower layer, where R
    is what :func:`propagate` gives. The chapter :doc:`Circuits </book/circuits>` builds it from scratch.

    Parameters
    ----------
    model, images, channel, sample, target, lower, rule, start, run
        As for :func:`propagate`. ``channel`` and ``sample`` may have any one shape, such as the ``[C, n]`` of
        :class:`~pure_nb.methods.references.References`.
    store
        Where to keep finished blocks of images, a folder for these pairs alone. A run that finds blocks there goes on
        from them; clear it when the result is safe.
    new
        What to put the result into: as for :func:`pure_nb.compute.blocks.map_in_blocks`.

    Returns
    -------
    ndarray
        float32 ``[*channel.shape, lower channels]``; the absolute values of each vector sum to 1, or to 0 where no
        relevance flows (a dead channel).
    """
    shape, channel, sample = np.shape(channel), np.ravel(channel), np.ravel(sample)
    how: dict[str, Any] = {"target": target, "lower": lower, "rule": rule, "start": start, "run": run}
    compute = partial(_of_block, model, images, channel, sample, how)
    with run.prepared(model):
        return map_in_blocks(sample, compute, name="circuits", store=store, new=new, run=run).reshape(*shape, -1)


def _of_block(
    model: nn.Module,
    images: Images,
    channel: NDArray[np.int64],
    sample: NDArray[np.int64],
    how: dict[str, Any],
    block: NDArray[np.int64],
    done: Callable[[int], Any],
) -> NDArray[np.float32]:
    """The relevance vectors of some of the pairs; not within :func:`circuits`, since it is sent to clusters."""
    what = model, images, channel[block], sample[block]
    module = closed_form(model, how["target"], how["lower"]) if how["rule"] == "gradient" else None
    flows: Any = propagate(*what, **how)
    if module is not None and getattr(module, "groups", 1) == 1:
        flows = _propagate_closed(*what, module, how)
    vectors: Any = None
    with closing(flows):  # whatever happens here, the model gets its state back at once
        for rows, relevance, *_ in flows:
            own = summed(relevance)
            vectors = np.empty((len(block), own.shape[1]), dtype=np.float32) if vectors is None else vectors
            vectors[rows] = own
            done(len(rows))
    return normalised(vectors)
