"""The grammar of targets: the name of a layer, and before it which view of its activation is meant.

A bare name out of ``model.named_modules()`` is what that module puts out, and :data:`OUTPUT` what the network does.
Before a name may stand

- ``"input:NAME"``, the (first) input of a module;
- ``"patches:NAME"``, tokens as the grid of patches that they stand for: from ``[B, T, C]`` to ``[B, C, h, w]``, without
  class token, distillation token and registers, wherever these are. :mod:`pure_nb.network.places` finds out which token
  stands for which patch;
- ``"class:NAME"``, the first token that stands for no patch, alone: ``[B, C]``;
- ``"heads:NAME"``, the heads of attention as channels, ``[B, T, heads]``: a value is the Euclidean norm of what a head
  puts out at a token, before the output's linear layer. See :mod:`pure_nb.network.attention`;
- ``"queries:NAME"``, ``"keys:NAME"``, ``"values:NAME"``, these as they go into attention's products (after norms and
  turned positions of their own), ``[B, T, C]`` with the channels of one head after those of the other;
- ``"tokens:NAME"``, tokens before images: from ``[T, B, C]`` to ``[B, T, C]``;
- ``"folded:NAME"``, windows, tiles or frames of an image that are folded into the first axis: from ``[B * w, ...]`` to
  ``[B, T, C]`` with the positions of all w for tokens. ``"patches:folded:NAME"`` puts windows, also shifted ones, to
  where they are in the picture;
- ``"last:NAME"``, an output with the channels last as any other: from ``[B, H, W, C]`` to ``[B, C, H, W]``. Linear
  layers and layer norms need no prefix for that, as they tell by themselves where their channels are;
- ``"first:NAME"``, channels before positions: from ``[B, C, L]`` to ``[B, L, C]``. One-dimensional convolutions, batch
  norms and pooling need none.

Prefixes may follow each other in that order: one of the first three, one of the next four, one of the next two, one of
the last two, such as ``"patches:tokens:NAME"`` or ``"class:heads:NAME"``. What is inside attention has its own form, so
neither ``"input:"``, ``"tokens:"``, ``"first:"`` nor ``"last:"`` goes with it.
:func:`pure_nb.network.shapes.survey` finds out which a layer needs. :func:`view` does what they say; what replaces a
view is put back in its place: among the other tokens, with the channels last.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pure_nb.errors import LayerError

OUTPUT = ""
"""Name of the network's own output among the layers: the one that ``named_modules`` gives to the network."""

INPUT, PATCHES, CLASS = "input:", "patches:", "class:"
HEADS, QUERIES, KEYS, VALUES = "heads:", "queries:", "keys:", "values:"
TOKENS, FOLDED = "tokens:", "folded:"
FIRST, LAST = "first:", "last:"

KINDS = {
    "part": (INPUT, PATCHES, CLASS),
    "inside": (HEADS, QUERIES, KEYS, VALUES),
    "batch": (TOKENS, FOLDED),
    "axis": (FIRST, LAST),
}
"""All that may stand before a name, by the attribute of :class:`Target` that holds it: one of each, in this order."""


@dataclass(frozen=True)
class Target:
    """A layer by name, and which view of its activation is meant.

    Attributes
    ----------
    name
        Of the module; :data:`OUTPUT` for the network itself.
    part
        What of it: a prefix, or "" for all that the module puts out.
    inside
        What inside its attention: a prefix, or "" for what it puts out.
    batch
        Where the images are: a prefix, or "" for the first axis.
    axis
        Where the channels are: a prefix, or "" for where such a module has them.

    Examples
    --------
    >>> Target.parse("patches:tokens:encoder.1")
    Target(name='encoder.1', part='patches:', inside='', batch='tokens:', axis='')
    >>> str(Target("layer4", INPUT))
    'input:layer4'
    """

    name: str
    part: str = ""
    inside: str = ""
    batch: str = ""
    axis: str = ""

    @classmethod
    def parse(cls, layer: str) -> Target:
        """Read a name with its prefixes.

        Raises
        ------
        LayerError
            If two prefixes of a kind stand there, or in another order, or two that do not go together.
        """
        found, name = dict[str, str](), layer
        for kind, prefixes in KINDS.items():
            found[kind] = next(filter(name.startswith, prefixes), "")
            name = name.removeprefix(found[kind])
        if name.startswith(sum(KINDS.values(), ())):
            raise misspelt(layer)
        others = [prefix for prefix in found.values() if prefix in (INPUT, TOKENS, FIRST, LAST)]
        if found["inside"] and others:
            raise LayerError(
                f"layer {layer!r}: {found['inside']!r} is [B, T, C] in every module; name it without {others[0]!r}"
            )
        return cls(name, **found)

    @property
    def prefix(self) -> str:
        """All that stands before the name."""
        return self.part + self.inside + self.batch + self.axis

    def __str__(self) -> str:
        return self.prefix + self.name


def misspelt(layer: str) -> LayerError:
    """The error that says what may stand before the name of a layer."""
    told = ", then ".join(f"one of {', '.join(map(repr, prefixes))}" for prefixes in KINDS.values())
    return LayerError(f"layer {layer!r}: before a name may stand {told}, and no others")


SECOND = ("batchnorm", "conv", "fold", "instancenorm", "padding", "pooling", "upsampling")
"""Where torch defines modules that have their channels on the second axis, in ``torch.nn.modules``."""

View = tuple[Tensor, Callable[[Tensor], Any]]
"""What a target means of an activation, and how what replaces that is put back in its place."""


def main_tensor(value: Any) -> View | None:
    """The tensor that a module puts out, also with other things around it, and how what replaces it is put back there.

    That is the only tensor of a tuple or list, as blocks of Hugging Face return it, and the first of a dictionary, such
    as the ``last_hidden_state`` or ``logits`` of a ``ModelOutput``. None if there is none, or one of several.
    """
    if isinstance(value, Tensor):
        return value, lambda new: new
    if isinstance(value, Mapping):
        key = next((key for key, one in value.items() if isinstance(one, Tensor)), None)
        return None if key is None else (value[key], partial(_with_item, value, key))
    if isinstance(value, (tuple, list)):
        places = [place for place, one in enumerate(value) if isinstance(one, Tensor)]
        return (value[places[0]], partial(_with_item, value, places[0])) if len(places) == 1 else None
    return None


def described(value: Any) -> str:
    """A type, and the shapes of the tensors in it: what a module puts out that is not one tensor."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    shapes = [str(list(one.shape)) for one in inner if isinstance(one, Tensor)]
    return type(value).__name__ + (f" of tensors {' and '.join(shapes)}" if shapes else "")


def _with_item(whole: Any, key: Any, new: Tensor) -> Any:
    """A copy of a tuple, list or dictionary with something else in one place."""
    if isinstance(whole, tuple):
        parts = [new if place == key else one for place, one in enumerate(whole)]
        return whole._make(parts) if hasattr(whole, "_make") else tuple(parts)
    changed = copy.copy(whole)
    changed[key] = new
    return changed


def channel_axis(activation: Tensor) -> int:
    """Axis of the channels: 1 in ``[B, C]`` and ``[B, C, H, W]``, 2 in ``[B, T, C]`` (tokens).

    Raises
    ------
    LayerError
        For any other number of axes.
    """
    if activation.ndim in (2, 4):
        return 1
    if activation.ndim == 3:
        return 2
    raise LayerError(
        f"expected an output of shape [B, C], [B, T, C] or [B, C, H, W], got {list(activation.shape)}; choose a layer "
        "whose output is one of these"
    )


def flatten_positions(activation: Tensor) -> Tensor:
    """An activation of any supported shape as ``[B, C, P]``: P positions (H x W, tokens, or one)."""
    if channel_axis(activation) == 2:
        return activation.transpose(1, 2)
    return activation.flatten(2) if activation.ndim == 4 else activation[..., None]


class ChannelsLast(nn.Module):
    """A module of this package that mixes channels as a linear layer does: on the last axis, of input and output."""


def channels_last(module: nn.Module) -> bool:
    """Whether a module is known to have its channels on the last axis, of its input and of its output alike.

    Linear layers do, and norms over that axis alone, but for those made for ``[B, C, H, W]``, which are classes of
    their own.
    """
    timm = sys.modules.get("timm.layers.norm")  # there is none of its norms where it is not loaded
    if type(module) in (nn.LayerNorm, getattr(timm, "LayerNorm", None), nn.RMSNorm):
        return len(module.normalized_shape) == 1  # type: ignore[arg-type]
    return isinstance(module, (nn.Linear, ChannelsLast))


def channels_second(module: nn.Module) -> bool:
    """Whether a module is known to have its channels on the second axis: ``[B, C, L]`` where there are three."""
    homes = {one.__module__ for one in type(module).__mro__}
    return isinstance(module, nn.GroupNorm) or any(f"torch.nn.modules.{home}" in homes for home in SECOND)


def is_last(module: nn.Module, axes: int) -> bool:
    """Whether the channels are on the last axis where no prefix says so."""
    return channels_last(module) if axes == 4 else not channels_second(module)


@dataclass(frozen=True, eq=False)
class Layout:
    """Which of an image's tokens stand for which patch.

    Attributes
    ----------
    tokens
        How many there are, those of all windows together.
    grid
        Rows and columns of patches.
    places
        int64 ``[rows * columns]``: the token of each patch, row by row.
    how
        How that is known, in short.
    """

    tokens: int
    grid: tuple[int, int]
    places: Tensor
    how: str

    @property
    def others(self) -> list[int]:
        """The tokens that stand for no patch."""
        return sorted({*range(self.tokens)} - {*self.places.tolist()})


@dataclass(frozen=True, eq=False)
class Pass:
    """What a forward pass is given, and how the tokens lie of the layers where that is asked for."""

    images: Tensor
    layouts: Mapping[Target, Layout] = field(default_factory=dict)


def view(target: Target, module: nn.Module, whole: Tensor, run: Pass) -> View:
    """What a target means of an activation, and how what replaces that is put back in its place.

    Parameters
    ----------
    target
        The layer, with its prefixes.
    module
        Its module, which may tell where the channels are.
    whole
        What goes into the module or comes out of it.
    run
        The forward pass.

    Raises
    ------
    LayerError
        If the activation's shape does not fit the prefixes.
    """
    images, images_back = _images_first(target, whole, len(run.images))
    channels, channels_back = _channels_in_place(target, module, images)
    part, part_back = _part(target, channels, run)
    return part, lambda new: images_back(channels_back(part_back(new)))


def _moved(whole: Tensor, source: int, destination: int) -> View:
    return whole.movedim(source, destination), lambda new: new.movedim(destination, source)


def _images_first(target: Target, whole: Tensor, count: int) -> View:
    """The images' axis, or that of their windows, moved to the front."""
    if target.batch == TOKENS:
        if whole.ndim != 3 or whole.shape[1] != count:
            raise LayerError(
                f"layer {str(target)!r}: {list(whole.shape)} is not [T, B, C], for a batch of {count} images"
            )
        return _moved(whole, 1, 0)
    if not whole.ndim or (len(whole) % count if target.batch == FOLDED else len(whole) != count):
        raise LayerError(
            f"layer {str(target)!r}: the first axis of {list(whole.shape)} is not that of the {count} images; before "
            f"its name may stand {TOKENS!r} for [T, B, C], and {FOLDED!r} for windows of each image in that axis"
        )
    return whole, lambda new: new


def _channels_in_place(target: Target, module: nn.Module, whole: Tensor) -> View:
    """The channels' axis moved to where it is in ``[B, C, H, W]`` and ``[B, T, C]``."""
    if target.inside:
        return whole, lambda new: new
    if target.axis and whole.ndim not in (3, 4):
        form = {LAST: "[B, H, W, C]", FIRST: "[B, C, L]"}[target.axis]
        raise LayerError(f"layer {str(target)!r}: {list(whole.shape)} is not {form}; name it without {target.axis!r}")
    last = target.axis == LAST if target.axis else is_last(module, whole.ndim)
    if whole.ndim == 4 and last:
        return _moved(whole, 3, 1)
    if whole.ndim == 3 and not last:
        return _moved(whole, 1, 2)
    return whole, lambda new: new


def _part(target: Target, whole: Tensor, run: Pass) -> View:
    """The patches or the class token alone; the positions of all windows of an image."""
    if target.batch == FOLDED:
        each = flatten_positions(whole)  # [B * w, C, P]
        split = each.reshape(len(run.images), -1, *each.shape[1:]).transpose(2, 3)

        def folded(new: Tensor) -> Tensor:
            back = new.reshape(-1, each.shape[2], each.shape[1])
            return (back if channel_axis(whole) == 2 else back.transpose(1, 2)).reshape(whole.shape)

        tokens, tokens_back = split.flatten(1, 2), folded
    else:
        tokens, tokens_back = whole, lambda new: new
    if target.part not in (PATCHES, CLASS):
        return tokens, tokens_back
    if tokens.ndim != 3:
        raise _no_tokens(target, whole)
    layout = run.layouts[target]
    if tokens.shape[1] != layout.tokens:
        raise LayerError(
            f"layer {str(target)!r} has {tokens.shape[1]} tokens in one pass and {layout.tokens} in another, so which "
            f"of them are patches can't be told; name it without {target.part!r}"
        )
    if target.part == CLASS:
        chosen = layout.others[0]
        rest = [tokens[:, :chosen], tokens[:, chosen + 1 :]]
        return tokens[:, chosen], lambda new: tokens_back(torch.cat([rest[0], new[:, None], rest[1]], dim=1))
    places = layout.places.to(tokens.device)
    grid = tokens.index_select(1, places).transpose(1, 2).reshape(len(tokens), -1, *layout.grid)
    return grid, lambda new: tokens_back(tokens.index_copy(1, places, new.flatten(2).transpose(1, 2)))


def _no_tokens(target: Target, whole: Tensor) -> LayerError:
    return LayerError(
        f"layer {str(target)!r}: {list(whole.shape)} are no tokens [B, T, C]; name it without {target.part!r}, or "
        "choose another"
    )
