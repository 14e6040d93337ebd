"""Rewiring: a channel that means k things becomes k channels and a residual, and the network computes the same.

Hesse et al. (2025, arXiv 2504.12939) do it for two classes; here it is done for any k concepts, be they classes
or the virtual neurons of PURE. A channel c of a convolution or linear layer is a sum over *sources*, of which each is
owned by one concept or shared (:mod:`pure_nb.methods.ownership`). Then

- ``d_v``, the part of concept v, is c without the sources that *other* concepts own,
- ``r``, the residual, is c with the shared sources only,

each with c's bias, and ``c = d_1 + ... + d_k - (k - 1) r`` whatever the assignment: every owned source is in one part,
every shared one in all k, of which the residual takes back k - 1. So the split explains the channel without changing
what the network does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pure_nb.compute.store import write_atomically
from pure_nb.errors import ArgumentError, LayerError, ModelError
from pure_nb.methods._shapes import Bool, Int
from pure_nb.methods.ownership import SHARED
from pure_nb.methods.windows import Weighted
from pure_nb.network.layers import computes_plainly, get_layer, near

if TYPE_CHECKING:
    from pure_nb.methods.splitting import Split


def channels_from_end(module: nn.Module) -> int:
    """Where a layer's channels are, counted from the end, since a convolution also takes a single picture."""
    return -1 if isinstance(module, nn.Linear) else -3


class SplitChannel(nn.Module):
    """A convolution or linear layer, one of whose channels is put together from its parts.

    Made by :func:`split_channel`, which checks the arguments. The parts are a layer of their own, so they can be
    studied under the name ``"<layer>.parts"`` like any other: k channels for the concepts, then the residual.
    Gradients through a split layer are those of the original. The rules of layer-wise relevance propagation are not
    made for the sum that joins the parts; with them, start at the parts and not above.

    Parameters
    ----------
    whole
        The layer to split; it is kept as it is, as ``whole``.
    channel
        The channel of it.
    owner
        int64 ``[sources]``: see :func:`pure_nb.methods.ownership.assign_sources`.
    k
        Number of concepts.

    Attributes
    ----------
    whole
        The original layer. All channels but one are its.
    parts
        A layer of the same geometry with k + 1 channels: ``d_1 ... d_k, r``.
    k
        Number of concepts.
    channel, owner
        Buffers, int64 ``[1]`` and ``[sources]``, so that a saved state holds the split and not its weights only.
    """

    if TYPE_CHECKING:  # TorchScript does not read annotations that are kept as text
        channel: Tensor
        owner: Tensor

    def __init__(self, whole: Weighted, channel: int, owner: NDArray[np.int64], k: int) -> None:
        super().__init__()
        self.whole: nn.Module = whole
        self.parts: nn.Module = masked_copies(whole, channel, part_masks(owner, k))
        # zennit's canonizers merge a batch norm into the convolution right before it, which must not be the parts.
        self.join = nn.Identity()
        # Plain numbers, kept here since the whole, or the parts, may be split in turn; and for TorchScript.
        self.k = k
        self.axis = channels_from_end(whole)
        self.sources = len(owner)
        self.group = len(whole.weight) // getattr(whole, "groups", 1)
        device = whole.weight.device
        self.register_buffer("channel", torch.tensor([channel], device=device))
        self.register_buffer("owner", torch.tensor(owner, device=device))
        self.train(whole.training)

    def forward(self, input: Tensor) -> Tensor:
        """What the whole layer puts out, its channel computed as ``sum_v d_v - (k - 1) r``."""
        entering = input
        if input.shape[self.axis] != self.sources:
            first = self.channel // self.group * self.sources
            entering = input.index_select(self.axis, first + torch.arange(self.sources, device=input.device))
        parts = self.parts(entering)
        concepts = parts.narrow(self.axis, 0, self.k)
        residual = parts.narrow(self.axis, self.k, 1)
        joined = concepts.sum(dim=self.axis, keepdim=True) - (self.k - 1) * residual
        output: Tensor = self.whole(input)
        # Not in place, as hooks may hold the output.
        joint: Tensor = self.join(output.index_copy(self.axis, self.channel, joined))
        return joint


def split_channel(model: nn.Module, layer: str, channel: int, owner: ArrayLike, k: int = 2) -> nn.Module:
    """A copy of a network in which one channel of a layer is split; it computes the same (Hesse et al., disentangling).

    The chapter :doc:`Splitting a channel </book/splitting>` builds it from scratch.

    :func:`save_split` and :func:`load_split` keep it in a file.

    Parameters
    ----------
    model
        Any network; it is left as it is.
    layer
        Name of a ``Conv2d`` or ``Linear`` in it. If a channel of it is split already, another one is split beside it.
    channel
        A channel of it.
    owner
        int64 ``[sources]``: which concept each source belongs to, -1 for shared ones; see
        :func:`pure_nb.methods.ownership.assign_sources`. The sources are the layer's input channels; with groups, those
        of the channel's group.
    k
        Number of concepts, at least 2; some may own nothing.

    Returns
    -------
    Module
        With a :class:`SplitChannel` under the layer's name.

    Raises
    ------
    LayerError
        If the layer is missing or neither a ``Conv2d`` nor a ``Linear``.
    ArgumentError
        If it has no such channel.
    ArgumentError
        If the owners do not fit the layer or k.
    """
    name = layer
    while isinstance(outer := get_layer(model, layer), SplitChannel):
        if int(outer.channel) == channel:
            raise ArgumentError(f"channel {channel} of layer {name!r} is split already; merge_back undoes that")
        layer += ".whole"
    module = splittable(model, layer, channel)
    owner = np.asarray(owner)
    sources = module.weight.shape[1]
    if k < 2:
        raise ArgumentError(f"a channel is split between at least two concepts, got k={k}")
    if owner.shape != (sources,) or owner.dtype.kind not in "iu":
        raise ArgumentError(
            f"channel {channel} of layer {layer!r} has {sources} sources, so owner must be {sources} integers, got "
            f"{owner.dtype} {list(owner.shape)}"
        )
    if not SHARED <= owner.min() <= owner.max() < k:
        raise ArgumentError(
            f"an owner must be a concept from 0 to {k - 1}, or -1 for a shared source, got {owner.min()} to "
            f"{owner.max()}; pass k, the number of concepts, if there are more"
        )
    split = copy.deepcopy(model)
    inside: Any = get_layer(split, layer)
    split.set_submodule(layer, SplitChannel(inside, channel, owner.astype(np.int64), k))
    return split


def save_split(model: nn.Module, split: Split, path: Path | str) -> None:
    """Write the weights of a network with a split channel, and what was split, to a ``.safetensors`` file.

    Parameters
    ----------
    model
        The network that the split was made for, as it was before.
    split
        From :meth:`pure_nb.classes.Classes.split`.
    path
        The file; written as a whole or not at all.
    """
    state = {name: value.contiguous().clone() for name, value in _tensors(split.model(model)).items()}
    note = {name: getattr(split.assignment, name) for name in ("layer", "channel")}
    note |= {"concepts": split.concepts, "rho": split.rho, "owner": split.owner.tolist()}
    metadata = {name: json.dumps(value) for name, value in note.items()}
    write_atomically(Path(path), lambda temporary: save_file(state, temporary, metadata))


def load_split(model: nn.Module, path: Path | str) -> nn.Module:
    """A copy of a network with the split of a file of :func:`save_split`.

    Parameters
    ----------
    model
        The network that was split, with the same weights and without the split.
    path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ModelError
        If it was not written by :func:`save_split`, or holds a split of another network: of another architecture, or
        with other weights.
    """
    try:
        with safe_open(path, "pt") as file:
            note = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        layer, channel, concepts, owner = (note[name] for name in ("layer", "channel", "concepts", "owner"))
    except (SafetensorError, OSError, KeyError, ValueError) as problem:
        if not Path(path).is_file():
            raise
        raise ModelError(
            f"{path} is not a file of save_split; expected its tensors and notes: {problem!r}"
        ) from problem
    try:
        split = split_channel(model, layer, channel, np.array(owner), len(concepts))
        difference = _difference(state, _tensors(split))
    except (LayerError, ArgumentError) as problem:
        difference = str(problem)
    if difference:
        raise ModelError(
            f"{path} holds a split of another network than this {type(model).__name__}: {difference}. Give load_split "
            "the network that was split, with its weights"
        )
    return split


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """A network's state, without what modules add to it: that may be anything."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _difference(saved: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> str:
    """How a network's state differs from a saved one, in words; "" if it does not."""
    for names, where in ((saved.keys() - here.keys(), "in the file"), (here.keys() - saved.keys(), "in the network")):
        if names:
            return f"{min(names)!r} is only {where}"
    for name, value in here.items():
        there = saved[name]
        if (value.shape, value.dtype) != (there.shape, there.dtype):
            first, second = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (there, value))
            return f"{name!r} is {first} in the file and {second} in the network"
    for name, value in here.items():
        if not torch.equal(value.cpu(), saved[name]):
            apart = (value.cpu().double() - saved[name].double()).abs().max().item()
            return f"the weights {name!r} differ by up to {apart:.2g}"
    return ""


def merge_back(model: nn.Module, layer: str) -> nn.Module:
    """A copy of a network in which a split layer is one plain layer again; it computes the same.

    The channel's weights are put together from those of its parts, ``sum_v d_v - (k - 1) r``. So what was changed in
    the parts stays changed.

    Parameters
    ----------
    model
        Any network; it is left as it is.
    layer
        Name of a layer that :func:`split_channel` has split. All splits of it are undone.

    Raises
    ------
    LayerError
        If the layer is missing or not split.
    """
    module = get_layer(model, layer)
    if not isinstance(module, SplitChannel):
        split = [name for name, candidate in model.named_modules() if isinstance(candidate, SplitChannel)]
        raise LayerError(
            f"layer {layer!r} is a {type(module).__name__} that is not split; split are: "
            f"{', '.join(map(repr, split)) or 'none'}"
        )
    merged = copy.deepcopy(model)
    merged.set_submodule(layer, _merged(get_layer(merged, layer)))
    return merged


def _merged(module: nn.Module) -> Weighted:
    """A layer, whether split or not, as a plain one."""
    if not isinstance(module, SplitChannel):
        return module  # type: ignore[return-value]
    whole, parts = _merged(module.whole), _merged(module.parts)
    with torch.no_grad():
        for name, joint in whole.named_parameters():
            part = parts.get_parameter(name).cpu().double()  # where k equal weights minus k - 1 of them are exactly one
            joint[int(module.channel)] = (part[: module.k].sum(dim=0) - (module.k - 1) * part[module.k]).to(joint.dtype)
    return whole


def splittable(model: nn.Module, layer: str, channel: int) -> Weighted:
    """The layer of that name, if its channel can be split."""
    module: Any = get_layer(model, layer)
    if not computes_plainly(module):
        names = [name for name, candidate in model.named_modules() if computes_plainly(candidate) and name]
        raise LayerError(
            f"layer {layer!r} is a {type(module).__name__}; only a Conv2d or a Linear without hooks or a forward of "
            "its own can be split, for instance: "
            f"{near(layer, names) or 'none, this network has none'}"
        )
    if not 0 <= channel < len(module.weight):
        raise ArgumentError(f"channel {channel}: layer {layer!r} has channels 0 to {len(module.weight) - 1}")
    return module


def part_masks(owner: Int[NDArray[np.int64], " sources"], k: int) -> Bool[NDArray[np.bool_], "parts sources"]:
    """The sources of each part, bool ``[k + 1, sources]``: a concept's own and the shared ones; last the residual's."""
    concept = np.array([*range(k), SHARED])[:, None]
    return (owner == concept) | (owner == SHARED)


def masked_copies(whole: Weighted, channel: int, masks: Bool[NDArray[np.bool_], "outputs sources"]) -> Weighted:
    """A layer with a copy of one channel for each row of ``masks [outputs, sources]``, with those sources only."""
    weight = whole.weight.detach()[channel]
    mask = torch.from_numpy(masks).to(weight.device).reshape(*masks.shape, *[1] * (weight.ndim - 1))
    masked = empty_like(whole, masks.shape[1], masks.shape[0])
    with torch.no_grad():
        masked.weight.copy_(torch.where(mask, weight, weight.new_zeros(())))
        if whole.bias is not None:
            masked.bias.fill_(whole.bias[channel])
    masked.requires_grad_(whole.weight.requires_grad).train(whole.training)
    return masked


def empty_like(whole: Weighted, inputs: int, outputs: int) -> Any:
    """A layer of the same geometry, without groups and with other widths; its weights are not initialised.

    Drawing random ones would disturb the global state.
    """
    common: Any = {"bias": whole.bias is not None, "device": "meta", "dtype": whole.weight.dtype}
    if isinstance(whole, nn.Linear):
        like: nn.Module = nn.Linear(inputs, outputs, **common)
    else:
        geometry = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        common |= {name: getattr(whole, name) for name in geometry}
        like = nn.Conv2d(inputs, outputs, **common)
    return like.to_empty(device=whole.weight.device)
