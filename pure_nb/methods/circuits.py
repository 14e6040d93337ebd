"""Circuits: which lower channels drove a channel, image by image (PURE, section 3.2).

Start at the target layer L with relevance in one channel c and none in the others, and propagate it back to a
lower layer L'. Summed over positions, the relevance of the lower channels is a vector that says through which
*circuit* the channel was reached in that image.

Only the part of the network between the two layers is ever run backward, and each image is run forward once
however many channels it is a reference for: the pairs (channel, image) are grouped by image, and each round
takes one pair of every image of a batch through the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from zennit.core import Composite

from pure_nb.compute.blocks import by_blocks, grouped
from pure_nb.compute.store import New, Store
from pure_nb.errors import ArgumentError, NonFiniteError
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.network.layers import by_position, channel_axis, cut, get_layer, placed, resting
from pure_nb.network.lrp import default_composite, ruled
from pure_nb.parameters import Rule, Seed

if TYPE_CHECKING:
    from pure_nb.compute.cluster import Cluster


def seeded(activation: Tensor, channel: Tensor, seed: Seed = "activation") -> Tensor:
    """The relevance at the target layer to start from.

    Parameters
    ----------
    activation
        Output of the target layer for b images, channels on any axis.
    channel
        int64 ``[b]``: the channel to start from in each image.
    seed
        ``"activation"``: max(A, 0) at every position (the paper's); ``"peak"``: the same at the position of the
        maximum only; ``"unit"``: 1 at every position.

    Returns
    -------
    Tensor
        Of the activation's shape; zero outside the channels.
    """
    axis = channel_axis(activation)
    start = torch.zeros_like(activation, memory_format=torch.preserve_format)
    rows = torch.arange(len(channel), device=activation.device)
    first = activation.detach().movedim(axis, 1)[rows, channel]
    if seed == "unit":
        value = torch.ones_like(first)
    else:
        value = first.clamp(min=0)
        if seed == "peak":
            flat = value.reshape(len(value), -1)
            at = flat.argmax(dim=1, keepdim=True)
            value = torch.zeros_like(flat).scatter(1, at, flat.gather(1, at)).view_as(value)
    start.movedim(axis, 1)[rows, channel] = value
    return start


def propagate(
    model: nn.Module,
    images: Images,
    channel: NDArray[np.int64],
    sample: NDArray[np.int64],
    *,
    target: str,
    lower: str | None,
    rule: Rule | Composite = "gradient",
    seed: Seed = "activation",
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
) -> Generator[tuple[NDArray[np.int64], Tensor, Tensor, Tensor], None, None]:
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
    seed
        See :func:`seeded`.
    batch_size, device, workers
        As for :func:`pure_nb.compute.sweep.sweep`.

    Yields
    ------
    tuple
        int64 ``[b]``, which of the pairs these are; their relevance, of the lower layer's shape with b rows; and
        the activations of the lower and of the target layer behind it.

    Raises
    ------
    IndexError
        If a channel or an image does not exist.
    LayerError
        If a layer can't be used, or the rules of LRP do not fit the network.
    NonFiniteError
        If the relevance is NaN or infinite.
    """
    channel, sample = np.asarray(channel, dtype=np.int64), np.asarray(sample, dtype=np.int64)
    if channel.shape != sample.shape or channel.ndim != 1:
        raise ArgumentError(f"channel and sample must be vectors of one length, got {channel.shape} and {sample.shape}")
    if len(sample) and not 0 <= sample.min() <= sample.max() < len(images):
        raise ArgumentError(f"image {sample.max()} (lowest {sample.min()}) of {len(images)} images of {images.name!r}")
    composite = None if rule == "gradient" else default_composite(model) if rule == "lrp" else rule
    for name in filter(None, (lower, target)):
        get_layer(model, name)
    # Images with similarly many pairs share a batch, so that few rows of a round are idle.
    unique, pairs_of = grouped(sample)
    order = np.argsort([-len(pairs) for pairs in pairs_of], kind="stable")
    context: Any = nullcontext()
    if composite is not None:
        context = ruled(model, images.example[None].to(device), lower, target, composite, every=rule == "lrp")
    # At rest within the rules, or what they put in would ask for gradients.
    with placed(model, device), context, resting(model):
        start = 0
        for batch in readable(images, unique[order].tolist(), batch_size=batch_size, workers=workers):
            members = [pairs_of[i] for i in order[start : start + len(batch.samples)]]
            start += len(members)
            leaf, top = cut(model, batch.images.to(device), lower, target)
            if channel.max() >= top.shape[channel_axis(top)] or channel.min() < 0:
                raise ArgumentError(
                    f"channel {channel.max()} (lowest {channel.min()}): layer {target!r} has channels 0 to "
                    f"{top.shape[channel_axis(top)] - 1}"
                )
            for turn in range(len(members[0])):
                rows = np.array([pairs[turn] for pairs in members if len(pairs) > turn])
                width = len(rows)
                chosen = torch.from_numpy(channel[rows]).to(device)
                relevance = torch.zeros_like(top)
                relevance[:width] = seeded(top[:width], chosen, seed)
                last = turn == len(members[0]) - 1
                (flow,) = torch.autograd.grad(top, leaf, relevance, retain_graph=not last)
                found = flow if composite is not None else leaf.detach() * flow
                if not torch.isfinite(found[:width].float().sum()):
                    raise NonFiniteError(
                        f"the relevance of layer {target!r} at {lower or 'the input'!r} is NaN or infinite for one of "
                        f"the pairs (channel, image) {list(zip(channel[rows].tolist(), sample[rows].tolist()))[:5]} ..."
                    )
                yield rows, found[:width], leaf.detach()[:width], top.detach()[:width]


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide relevance vectors by their L1 norm over the last axis, plus 1e-10 (PURE's reference implementation)."""
    return vectors / (np.abs(vectors).sum(axis=-1, keepdims=True) + np.float32(1e-10))


def circuits(
    model: nn.Module,
    images: Images,
    channel: NDArray[np.int64],
    sample: NDArray[np.int64],
    *,
    target: str,
    lower: str,
    rule: Rule | Composite = "gradient",
    seed: Seed = "activation",
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
    store: Store | None = None,
    progress: bool = False,
    client: Cluster | None = None,
    new: New = np.empty,
) -> NDArray[np.float32]:
    """Relevance vectors of pairs of a channel and an image: PURE's description of the circuit.

    The chapter :doc:`Circuits </book/circuits>` builds it from scratch.

    ``r_i = sum_uv R_i(u, v) / (sum_j |sum_uv R_j(u, v)| + 1e-10)`` over the channels i of the lower layer, where R
    is what :func:`propagate` gives. The chapter *Circuits* builds it from scratch.

    Parameters
    ----------
    model, images, channel, sample, target, lower, rule, seed, batch_size, device, workers
        As for :func:`propagate`. ``channel`` and ``sample`` may have any one shape, such as the ``[C, n]`` of
        :class:`~pure_nb.methods.references.References`.
    store
        Where to keep finished blocks of images, a folder for these pairs alone. A run that finds blocks there goes on
        from them; clear it when the result is safe.
    progress
        Show a progress bar.
    client, new
        Where to compute, and what to put the result into: as for :func:`pure_nb.compute.blocks.by_blocks`.

    Returns
    -------
    ndarray
        float32 ``[*channel.shape, lower channels]``; the absolute values of each vector sum to 1, or to 0 where no
        relevance flows (a dead channel).
    """
    shape = np.shape(channel)
    channel, sample = np.ravel(channel), np.ravel(sample)

    def compute(block: NDArray[np.int64], done: Callable[[int], Any]) -> NDArray[np.float32]:
        flows = propagate(
            model,
            images,
            channel[block],
            sample[block],
            target=target,
            lower=lower,
            rule=rule,
            seed=seed,
            batch_size=batch_size,
            device=device,
            workers=workers,
        )
        with closing(flows):  # whatever happens here, the model gets its state back at once
            return normalised(_pooled(flows, len(block), done))

    how: dict[str, Any] = {"store": store, "progress": progress, "client": client, "new": new}
    with placed(model, "cpu" if client else device):  # a cluster may have a device that this process has not
        return by_blocks(sample, compute, batch_size=batch_size, name="circuits", **how).reshape(*shape, -1)


def _pooled(
    flows: Iterable[tuple[NDArray[np.int64], Tensor, Tensor, Tensor]], count: int, done: Callable[[int], Any]
) -> Any:
    """Sum the relevance of each pair over the positions: float32 ``[count, lower channels]``."""
    vectors: Any = None
    for rows, relevance, _, _ in flows:
        pooled = by_position(relevance).float().sum(dim=2).cpu().numpy()
        if vectors is None:
            vectors = np.empty((count, pooled.shape[1]), dtype=np.float32)
        vectors[rows] = pooled
        done(len(rows))
    return vectors
