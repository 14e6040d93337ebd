"""Layers by name, what they put out, and the network cut at them.

Two tools that everything else stands on. :func:`activations` runs a network up to the layers one asks for and
stops there. :func:`cut` does the same, but makes the output of a lower layer the start of a new computational
graph: what is returned for the upper layer is then a function of the lower activations *only*, and a backward
pass runs through the part between the two and through nothing else. Both work by forward hooks, so they ask
nothing of the network but that the layers are modules that run once.

Besides names of modules, whose outputs are meant, both take

- ``"input:NAME"``, the (first) input of a module;
- ``"patches:NAME"``, tokens as the grid of patches that they stand for: from ``[B, T, C]`` to ``[B, C, h, w]``, without
  the class token and registers before them, in rows from the top;
- ``"class:NAME"``, the first of the tokens alone, ``[B, C]``;
- ``"tokens:NAME"``, tokens before images: from ``[T, B, C]`` to ``[B, T, C]``;
- ``"folded:NAME"``, windows, tiles or frames of an image that are folded into the first axis: from ``[B * w, ...]`` to
  ``[B, T, C]`` with the positions of all w for tokens;
- ``"last:NAME"``, an output with the channels last as any other: from ``[B, H, W, C]`` to ``[B, C, H, W]``. Linear
  layers and layer norms need no prefix for that, as they tell by themselves where their channels are;
- ``"first:NAME"``, channels before positions: from ``[B, C, L]`` to ``[B, L, C]``. One-dimensional convolutions, batch
  norms and pooling need none;
- and :data:`OUTPUT`, the output of the whole network.

Prefixes may follow each other: one of the first three, one of the next two, one of the last two, such as
``"patches:tokens:NAME"``. :func:`survey` finds out which a layer needs, by running one image alone and beside another.

Whatever replaces what is shown of an activation is put back in its place: among the other tokens, with the channels
last.
"""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from pure_nb.errors import LayerError, ModelError, PureError, StudyWarning
from pure_nb.network.models import require_weights

OUTPUT = ""
"""Name of the network's own output among the layers: the one that ``named_modules`` gives to the network."""

INPUT = "input:"
"""Before the name of a layer: what goes into it, instead of what comes out."""

PATCHES = "patches:"
"""Before the name of a layer that puts out tokens: those that stand for patches, as a grid."""

CLASS = "class:"
"""Before the name of a layer that puts out tokens: the first one alone."""

TOKENS = "tokens:"
"""Before the name of a layer that puts out ``[T, B, C]``: the same as ``[B, T, C]``."""

FOLDED = "folded:"
"""Before the name of a layer that puts out ``[B * w, ...]``: the positions of an image's w windows, as its tokens."""

LAST = "last:"
"""Before the name of a layer that puts out ``[B, H, W, C]``: the same as ``[B, C, H, W]``."""

FIRST = "first:"
"""Before the name of a layer that puts out ``[B, C, L]``: the same as ``[B, L, C]``."""

PREFIXES = ((INPUT, PATCHES, CLASS), (TOKENS, FOLDED), (FIRST, LAST))
"""All that may stand before the name of a layer: at most one of each, in this order."""

PREFIX_TOKENS = 16
"""Tokens that may stand before those of the patches: a class token, a distillation token, registers."""

CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")
"""Attributes by which modules of timm and Hugging Face are told to checkpoint activations."""

SAMPLE = 4096
"""Values of an activation, about, by which it is compared with that of another pass."""


class _Reached(Exception):  # noqa: N818, it is no error
    """Raised inside a hook: all that was asked for is known, the rest of the network need not run."""


def parsed(layer: str) -> tuple[str, str]:
    """What stands before the name of a layer, of :data:`PREFIXES`, or ""; and the name of the module.

    Raises
    ------
    LayerError
        If two of a kind stand there, or in another order.
    """
    name = layer
    for kind in PREFIXES:
        name = next((name.removeprefix(prefix) for prefix in kind if name.startswith(prefix)), name)
    if name.startswith(sum(PREFIXES, ())):
        told = ", then ".join(f"one of {', '.join(map(repr, kind))}" for kind in PREFIXES)
        raise LayerError(f"layer {layer!r}: before a name may stand {told}, and no others")
    return layer.removesuffix(name), name


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """The module of a given name.

    Parameters
    ----------
    model
        Any network.
    name
        A name out of ``model.named_modules()``, for instance ``"layer4.1.conv2"``, or one of :data:`PREFIXES` and such
        a name.

    Raises
    ------
    LayerError
        If there is no such module; the message lists the nearest names.
    """
    modules = dict(model.named_modules())
    name = parsed(name)[1]
    if name and name in modules:
        return modules[name]
    names = [candidate for candidate in modules if candidate]
    raise LayerError(
        f"{type(model).__name__} has no layer {name!r}. Near it: {_near(name, names)}. "
        f"All {len(names)} names are those of model.named_modules()"
    )


def _near(name: str, names: Sequence[str]) -> str:
    """The names that are most like one, or the first if none is."""
    return ", ".join(map(repr, difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:8]))


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


def by_position(activation: Tensor) -> Tensor:
    """An activation of any supported shape as ``[B, C, P]``: P positions (H x W, tokens, or one)."""
    if channel_axis(activation) == 2:
        return activation.transpose(1, 2)
    return activation.flatten(2) if activation.ndim == 4 else activation[..., None]


def nearest_below(model: nn.Module, target: str) -> str:
    """The layer right below a target, by name: the input of its last block.

    A stage that is an ``nn.Sequential`` of blocks is entered at its last one that mixes channels, and any other module
    is a block. So the layer below a stage of a residual network is what its last block adds to, and below a convolution
    and the non-linearity after it, it is the convolution's input.

    Parameters
    ----------
    model
        Any network.
    target
        Name of a layer.

    Returns
    -------
    str
        ``"input:NAME"``, with the target's own prefix for where images and channels are.

    Raises
    ------
    LayerError
        If the target is missing, or mixes no channels: what goes into a ReLU tells nothing about where it came from.
    """
    (prefix, name), module = parsed(target), get_layer(model, target)
    if not _mixes(module):
        raise LayerError(
            f"layer {target!r} is a {type(module).__name__} that mixes no channels, so the layer right below it tells "
            "nothing; name a lower layer, or choose a target with a convolution or linear layer in it"
        )
    while isinstance(module, nn.Sequential):
        last, module = [(name, child) for name, child in module.named_children() if _mixes(child)][-1]
        name = f"{name}.{last}"
    layout = prefix.removeprefix(next((part for part in PREFIXES[0] if part in prefix), ""))
    return INPUT + layout + name


def _mixes(module: nn.Module) -> bool:
    """Whether a module has weights from channels to channels, not only factors and biases."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def stage_before(model: nn.Module, layer: str) -> str | None:
    """The module of the same class that stands before a layer among its neighbours; None for the first of them."""
    layer = parsed(layer)[1]
    outer, _, own = layer.rpartition(".")
    module = get_layer(model, layer)
    before = None
    for name, neighbour in (get_layer(model, outer) if outer else model).named_children():
        if name == own:
            return before
        if type(neighbour) is type(module):
            before = f"{outer}.{name}" if outer else name
    return before


@contextmanager
def placed(
    model: nn.Module, device: str | torch.device | None = None, layout: torch.memory_format | None = None
) -> Iterator[nn.Module]:
    """The model on another device or in another memory layout; its own weights are put back afterwards.

    Parameters
    ----------
    model
        Any network.
    device, layout
        Where to, and how its weights lie in memory; None leaves that as it is.
    """
    modules = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    tensors = [(tensor, tensor.data) for tensor in (*gradients, *gradients.values()) if tensor is not None]
    try:
        if device is not None or layout is not None:
            model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        yield model
    finally:
        for module, parameters, buffers in modules:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        for tensor, data in tensors:
            tensor.data = data
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


@contextmanager
def resting(model: nn.Module, device: str | torch.device | None = None) -> Iterator[nn.Module]:
    """The model in evaluation mode with frozen weights, on a device if one is given; all is put back afterwards.

    So are buffers that the network itself changes, such as the statistics of a norm that it puts in training mode.
    Nothing runs compiled.
    """
    training = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with placed(model, device):
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        # What torch.compile made calls no hooks that were added later, in which case torch has loaded its compiler.
        plainly = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        try:
            model.eval().requires_grad_(False)
            with plainly:
                yield model
        finally:
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
            for module, was in training.items():
                module.training = was
            for parameter, required in trainable.items():
                parameter.requires_grad_(required)


def computes_plainly(module: nn.Module) -> bool:
    """Whether a module is a Conv2d or Linear that does with its weights what torch's does: no subclass, no hooks."""
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) in (nn.Conv2d, nn.Linear) and not changed


def channels_last(module: nn.Module) -> bool:
    """Whether a module is known to have its channels on the last axis, of its input and of its output alike.

    Linear layers do, and norms over that axis alone, but for those made for ``[B, C, H, W]``, which are classes of
    their own.
    """
    timm = sys.modules.get("timm.layers.norm")  # there is none of its norms where it is not loaded
    if type(module) in (nn.LayerNorm, getattr(timm, "LayerNorm", None), nn.RMSNorm):
        return len(module.normalized_shape) == 1  # type: ignore[arg-type]
    return isinstance(module, nn.Linear)


SECOND = ("batchnorm", "conv", "fold", "instancenorm", "padding", "pooling", "upsampling")
"""Where torch defines modules that have their channels on the second axis, in ``torch.nn.modules``."""


def channels_second(module: nn.Module) -> bool:
    """Whether a module is known to have its channels on the second axis: ``[B, C, L]`` where there are three."""
    homes = {one.__module__ for one in type(module).__mro__}
    return isinstance(module, nn.GroupNorm) or any(f"torch.nn.modules.{home}" in homes for home in SECOND)


@dataclass(frozen=True, eq=False)
class _Run:
    """What a forward pass is given, and the grids of the feature maps that were seen in it so far."""

    images: Tensor
    grids: list[tuple[int, int]] = field(default_factory=list)


def _grid(layer: str, tokens: Tensor, run: _Run) -> tuple[int, int]:
    """The grid of patches of tokens ``[B, T, C]``: that of a feature map, or of the pictures' proportions."""
    if tokens.ndim != 3:
        raise LayerError(
            f"layer {layer!r}: {list(tokens.shape)} are no tokens [B, T, C]; name it without {PATCHES!r}, or choose "
            "another"
        )
    count, size = tokens.shape[1], tuple(run.images.shape[2:])

    def fitting(grids: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        return [grid for grid in grids if min(grid) > 1 and 0 <= count - math.prod(grid) <= PREFIX_TOKENS]

    found = fitting(dict.fromkeys(run.grids))
    if not found and len(size) == 2:  # cut without a convolution: squares that fill the picture, the smallest that fit
        sides = (side for side in range(1, min(size) + 1) if not any(length % side for length in size))
        found = fitting((size[0] // side, size[1] // side) for side in sides)[:1]
    elif not found:
        found = fitting((side, side) for side in range(math.isqrt(count), 0, -1))[:1]
    if len(found) != 1:
        told = " or ".join(f"{height} x {width}" for height, width in found)
        raise LayerError(
            f"layer {layer!r}: {count} tokens are "
            + (f"a grid of {told} patches, which can't be told; " if told else "")
            + ("" if told else f"no grid of patches with at most {PREFIX_TOKENS} tokens before it; ")
            + f"name the layer without {PATCHES!r}"
        )
    return found[0]


Shown = tuple[Tensor, Callable[[Tensor], Tensor]]
"""What a layer's name means of an activation, and how what replaces that is put back in its place."""


def _per_image(layer: str, prefix: str, whole: Tensor, count: int) -> Shown:
    """The images' axis, or that of their windows, moved to the front."""
    if TOKENS in prefix:
        if whole.ndim != 3 or whole.shape[1] != count:
            raise LayerError(f"layer {layer!r}: {list(whole.shape)} is not [T, B, C], for a batch of {count} images")
        return whole.transpose(0, 1), lambda new: new.transpose(0, 1)
    if not whole.ndim or (len(whole) % count if FOLDED in prefix else len(whole) != count):
        raise LayerError(
            f"layer {layer!r}: the first axis of {list(whole.shape)} is not that of the {count} images; before its "
            f"name may stand {TOKENS!r} for [T, B, C], and {FOLDED!r} for windows of each image in that axis"
        )
    return whole, lambda new: new


def _per_channel(layer: str, prefix: str, module: nn.Module, whole: Tensor) -> Shown:
    """The channels' axis moved to where it is in ``[B, C, H, W]`` and ``[B, T, C]``."""
    for asked, form in ((LAST, "[B, H, W, C]"), (FIRST, "[B, C, L]")):
        if asked in prefix and whole.ndim not in (3, 4):
            raise LayerError(f"layer {layer!r}: {list(whole.shape)} is not {form}; name it without {asked!r}")
    last = LAST in prefix or (FIRST not in prefix and _is_last(module, whole.ndim))
    if whole.ndim == 4 and last:
        return whole.permute(0, 3, 1, 2), lambda new: new.permute(0, 2, 3, 1)
    if whole.ndim == 3 and not last:
        return whole.transpose(1, 2), lambda new: new.transpose(1, 2)
    return whole, lambda new: new


def _is_last(module: nn.Module, axes: int) -> bool:
    """Whether the channels are on the last axis where no prefix says so."""
    return channels_last(module) if axes == 4 else not channels_second(module)


def _part(layer: str, prefix: str, whole: Tensor, run: _Run) -> Shown:
    """The patches or the class token alone; the positions of all windows of an image."""
    if FOLDED in prefix:
        if PATCHES in prefix or CLASS in prefix:
            raise LayerError(f"layer {layer!r}: the tokens of windows are in no order; name it without {prefix!r}")
        each = by_position(whole)  # [B * w, C, P]
        split = each.reshape(len(run.images), -1, *each.shape[1:]).transpose(2, 3)

        def folded(new: Tensor) -> Tensor:
            back = new.reshape(-1, each.shape[2], each.shape[1])
            return (back if channel_axis(whole) == 2 else back.transpose(1, 2)).reshape(whole.shape)

        return split.flatten(1, 2), folded
    if PATCHES in prefix:
        height, width = _grid(layer, whole, run)
        before = whole.shape[1] - height * width
        grid = whole[:, before:].transpose(1, 2).reshape(len(whole), -1, height, width)
        return grid, lambda new: torch.cat([whole[:, :before], new.flatten(2).transpose(1, 2)], dim=1)
    if CLASS in prefix:
        if whole.ndim != 3:
            raise LayerError(f"layer {layer!r}: {list(whole.shape)} are no tokens [B, T, C]; name it without {CLASS!r}")
        return whole[:, 0], lambda new: torch.cat([new[:, None], whole[:, 1:]], dim=1)
    return whole, lambda new: new


def _shown(layer: str, module: nn.Module, whole: Tensor, run: _Run) -> Shown:
    """What a layer's name means of an activation, and how what replaces that is put back in its place."""
    prefix = parsed(layer)[0]
    images, images_back = _per_image(layer, prefix, whole, len(run.images))
    channels, channels_back = _per_channel(layer, prefix, module, images)
    part, part_back = _part(layer, prefix, channels, run)
    return part, lambda new: images_back(channels_back(part_back(new)))


@contextmanager
def _unchecked(model: nn.Module) -> Iterator[None]:
    """Within it, blocks under activation checkpointing run once, as any other, and keep their graph.

    A checkpointed block is run again in the backward pass, without our hooks, and may not be left half-way, as we leave
    the network at the last layer asked for. timm and Hugging Face also call the blocks of a stage and not the stage.
    """
    flags = [(module, name) for module in model.modules() for name in CHECKPOINTING if getattr(module, name, 0) is True]

    class Kept:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *inputs: Any) -> Any:
            return function(*inputs)

    module = torch.utils.checkpoint
    with (
        mock.patch.object(module, "CheckpointFunction", Kept),  # use_reentrant=True
        mock.patch.object(module, "_checkpoint_hook", return_value=nullcontext()),  # use_reentrant=False
    ):
        for owner, name in flags:
            setattr(owner, name, False)
        try:
            yield
        finally:
            for owner, name in flags:
                setattr(owner, name, True)


@contextmanager
def _hooked(
    model: nn.Module, images: Tensor, hooks: dict[str, Callable[[Tensor], Tensor | None]], leaf: str | None = None
) -> Iterator[None]:
    """Call a function on the activation at each named layer; what it returns, if anything, replaces it.

    At the leaf the graph ends, also that of the tokens which are not shown; and it starts there even where the network
    itself runs that layer without gradients.
    """
    run, gradients = _Run(images), torch.is_grad_enabled()

    def replaced(name: str, module: nn.Module, whole: Tensor) -> Tensor | None:
        if name == leaf and whole.is_inference() and gradients:
            raise LayerError(
                f"layer {name!r} runs under torch.inference_mode() in the network's own code, from which no gradients "
                "can start; take that out of its forward()"
            )
        with torch.set_grad_enabled(gradients and (name == leaf or torch.is_grad_enabled())):
            shown, put_back = _shown(name, module, whole.detach() if name == leaf else whole, run)
            found = hooks[name](shown)
            return None if found is None else put_back(found)

    def before(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not inputs or not isinstance(inputs[0], Tensor):
                raise LayerError(f"{name!r}: {type(module).__name__} is not called with a tensor as its first argument")
            found = replaced(name, module, inputs[0])
            return None if found is None else (found, *inputs[1:])

        return hook

    def after(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                raise LayerError(
                    f"layer {name!r} ({type(module).__name__}) puts out a {type(output).__name__}, not one tensor; "
                    "choose a layer inside it"
                )
            return replaced(name, module, output)

        return hook

    with ExitStack() as stack:
        if any(PATCHES in parsed(name)[0] for name in hooks):
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    stack.callback(module.register_forward_hook(partial(_note_grid, run)).remove)
        for name in hooks:
            module = model if name == OUTPUT else get_layer(model, name)
            if INPUT in parsed(name)[0]:
                # Before hooks that are there already: the rules of LRP must see the new graph's start, not go past it.
                handle = module.register_forward_pre_hook(before(name), prepend=True)
            else:
                handle = module.register_forward_hook(after(name))
            stack.callback(handle.remove)
        stack.enter_context(_unchecked(model))
        yield


def _note_grid(run: _Run, module: nn.Module, inputs: Any, output: Tensor) -> None:
    run.grids.append((output.shape[-2], output.shape[-1]))


def as_weights(model: nn.Module, images: Tensor) -> Tensor:
    """Images in the precision of a network's weights: half for a network in half precision."""
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return images.to(next(dtypes, images.dtype)) if images.is_floating_point() else images


def _run(model: nn.Module, images: Tensor) -> None:
    """A forward pass; what goes wrong in it is the network's own fault, or the images'."""
    try:
        model(images)
    except (PureError, _Reached):
        raise
    except torch.OutOfMemoryError as problem:
        raise ModelError(
            f"{type(model).__name__} does not fit into memory with {len(images)} images {list(images.shape)} at once "
            f"({problem}); choose a smaller batch_size"
        ) from problem
    except Exception as problem:
        raise ModelError(
            f"{type(model).__name__} can't be run on a batch of {len(images)} images {list(images.shape)} "
            f"({type(problem).__name__}: {problem}); bring a torch.nn.Module whose forward() takes batches of any "
            "number of such images and nothing else, and check the images' transform (for a network of grey "
            "pictures say grey=True)"
        ) from problem


def activations(model: nn.Module, images: Tensor, layers: Sequence[str], leaf: str | None = None) -> dict[str, Tensor]:
    """Outputs of the named layers; the network is run no further than the last of them.

    Parameters
    ----------
    model
        Any network.
    images
        A batch of its inputs; they are brought to the precision of its weights.
    layers
        Names of modules, with one of :data:`PREFIXES` or none, or :data:`OUTPUT`.
    leaf
        One of the layers, from which to keep a new graph: what is returned for it is a leaf that requires gradients,
        and what is returned for the layers above is a function of it.

    Returns
    -------
    dict
        From name to output.

    Raises
    ------
    LayerError
        If a layer is missing, does not run, or does not put out one tensor.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], Tensor | None]:
        def function(output: Tensor) -> Tensor | None:
            if name in found:
                raise LayerError(f"layer {name!r} runs more than once in a forward pass; choose one that runs once")
            last = len(found) == len(set(layers)) - 1
            found[name] = output.requires_grad_() if name == leaf else output
            if last:
                raise _Reached
            # A later in-place ReLU would change what we hold, and a leaf does not allow it.
            return found[name].clone()

        return function

    hooks = {name: keep(name) for name in layers}
    images = as_weights(model, images)
    with nullcontext() if leaf is None else torch.enable_grad(), _hooked(model, images, hooks, leaf):
        try:
            _run(model, images)
        except _Reached:
            return found
    if len(found) == len(set(layers)):
        return found
    missing = [name for name in layers if name not in found]
    raise LayerError(f"layers {missing} did not run in the forward pass of {type(model).__name__}")


def cut(model: nn.Module, images: Tensor, lower: str | None, target: str) -> tuple[Tensor, Tensor]:
    """Run the network to two layers, and keep the graph between them only.

    Parameters
    ----------
    model
        Any network, best within :func:`resting`.
    images
        A batch of its inputs; they are brought to the precision of its weights.
    lower
        The lower layer L'; None for the images themselves.
    target
        The target layer L, above it.

    Returns
    -------
    tuple
        The lower activations ``a``, a leaf that requires gradients, and the target's activations ``A`` as a
        function of ``a``.

    Raises
    ------
    LayerError
        If a layer is missing, or the target does not depend on the lower layer.
    """
    leaf: list[Tensor] = []
    top: list[Tensor] = []

    def start(output: Tensor) -> Tensor:
        if leaf:
            raise LayerError(f"layer {lower!r} runs more than once below {target!r}; choose one that runs once")
        leaf.append(output.detach().requires_grad_())
        return leaf[0].clone()  # the layer above may work in place, which a leaf would not allow

    def stop(output: Tensor) -> None:
        top.append(output)
        raise _Reached

    get_layer(model, target)
    images = as_weights(model, images)
    hooks: dict[str, Callable[[Tensor], Tensor | None]] = {target: stop}
    if lower is None:
        inputs = start(images)
    else:
        if lower == target:
            raise LayerError(f"the lower layer must be below the target layer; both are {target!r}")
        inputs, hooks = images, {lower: start, target: stop}
    with torch.enable_grad(), _hooked(model, images, hooks, lower), suppress(_Reached):
        _run(model, inputs)
    if not top:
        raise LayerError(f"layer {target!r} did not run in the forward pass of {type(model).__name__}")
    if not leaf or not top[0].requires_grad:
        blocked = _without_gradients(model, images, lower, target)
        raise LayerError(
            f"layer {target!r} can't be traced back to {lower or 'the images'!r}: gradients are switched off where "
            f"{blocked} runs, by no_grad() or inference_mode() in the network's own code; take that out of forward()"
            if blocked
            else f"layer {target!r} does not depend on {lower or 'the images'!r}: the lower layer must run before it "
            "and feed it, with no detach() between them"
        )
    return leaf[0], top[0]


def _without_gradients(model: nn.Module, images: Tensor, lower: str | None, target: str) -> str:
    """The first module from the lower layer to the target that runs without gradients; "" if none does."""
    found: list[str] = []
    started, ended = [lower is None], [False]

    def note(name: str, module: nn.Module, *_: Any) -> None:
        started[0] |= lower is not None and name == parsed(lower)[1]
        if started[0] and not ended[0] and not torch.is_grad_enabled():
            found.append(f"{name!r} ({type(module).__name__})")
        ended[0] |= name == parsed(target)[1]

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(partial(note, name)).remove)
        with torch.enable_grad():
            _run(model, images)
    return found[0] if found else ""


@dataclass(frozen=True)
class LayerShape:
    """What a layer puts out for one image: its channels, and its grid of positions (() if it has none).

    ``unsteady`` says why that depends on chance or on the batch, where this is allowed; it is "" where it does not.
    """

    name: str
    kind: str
    channels: int
    grid: tuple[int, ...]
    unsteady: str = ""


def _shape(name: str, kind: str, output: Tensor) -> LayerShape:
    axis = channel_axis(output)
    grid = tuple(size for i, size in enumerate(output.shape) if i not in (0, axis))
    return LayerShape(name, kind, output.shape[axis], grid)


@dataclass(eq=False)
class _Event:
    """A tensor that goes into a module, or comes out of it, in a forward pass of one image.

    Attributes
    ----------
    layer
        The module's name, after ``"input:"`` for what goes in.
    module
        The module.
    maker
        The module whose code made the tensor, in words.
    kind
        Type of what was given or put out, if it was no tensor.
    tensor, values
        The tensor, the first of several; and some of its values as they were then.
    drawn
        Whether random numbers had been drawn before.
    batch
        Which of its axes the images are on, as a prefix; None if there is none, or it can't be used.
    steady
        Whether the image had the same values beside another one.
    last
        Whether the channels are last, and not on the axis after the images'; None if nothing tells.
    grids
        The grids of feature maps that were seen before.
    """

    layer: str
    module: nn.Module
    maker: str
    kind: str
    tensor: Tensor | None
    values: Tensor | None
    drawn: bool
    grids: list[tuple[int, int]]
    batch: str | None = None
    steady: bool = True
    last: bool | None = None

    @property
    def unsteady(self) -> bool:
        """Whether it depends on chance or on the batch."""
        return self.drawn or not self.steady

    @property
    def rest(self) -> tuple[int, ...]:
        """The axes of one image, or of one of its windows."""
        assert self.tensor is not None
        shape = tuple(self.tensor.shape)
        return (shape[0], *shape[2:]) if self.batch == TOKENS else shape[1:]


def _values(tensor: Tensor) -> Tensor:
    """Some of the values of a tensor, in float32; a copy, since the layer after it may work in place."""
    flat = tensor.detach().flatten()
    flat = flat[:: max(1, len(flat) // SAMPLE) | 1]
    return (torch.view_as_real(flat) if flat.is_complex() else flat).float().flatten().clone()


def _random(device: torch.device) -> list[Tensor]:
    """The state of the random numbers."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _pass(model: nn.Module, images: Tensor, alone: Sequence[_Event] = ()) -> list[_Event]:
    """All that goes into and comes out of modules in one forward pass, in order.

    In the second pass, with the first's events, these are told of what became of the first image.
    """
    events: list[_Event] = []
    run, start = _Run(images), _random(images.device)
    inside = [f"the network's own forward() ({type(model).__name__})"]

    def note(layer: str, module: nn.Module, value: Any) -> None:
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        tensor = first if isinstance(first, Tensor) else None
        drawn = not all(map(torch.equal, start, _random(images.device)))
        kind = "" if isinstance(value, Tensor) else type(value).__name__
        values = None if tensor is None or alone else _values(tensor)
        event = _Event(layer, module, inside[-1], kind, tensor, values, drawn, list(dict.fromkeys(run.grids)))
        if len(events) < len(alone):
            if alone[len(events)].layer == layer:
                _compare(alone[len(events)], event)
            else:
                alone[len(events)].steady = False  # another way through the network
            event.tensor = None
        events.append(event)

    def enter(layer: str, module: nn.Module, inputs: Any) -> None:
        note(INPUT + layer, module, inputs[0] if inputs else None)
        mode = ", in training mode" if module.training else ""
        inside.append(f"{layer!r} ({type(module).__name__}{mode})")

    def leave(layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if layer != OUTPUT and module.training and "training" not in inside[-1]:
            inside[-1] = f"{layer!r} ({type(module).__name__}, in training mode)"
        note(layer, module, output)
        if isinstance(module, nn.Conv2d):
            _note_grid(run, module, inputs, output)
        if layer != OUTPUT:
            inside.pop()

    with ExitStack() as stack:
        stack.enter_context(_unchecked(model))
        for name, module in model.named_modules():
            if name != OUTPUT:
                stack.callback(module.register_forward_pre_hook(partial(enter, name)).remove)
            stack.callback(module.register_forward_hook(partial(leave, name)).remove)
        _run(model, images)
    return events


def _compare(alone: _Event, both: _Event) -> None:
    """Find the images' axis of a tensor, and whether the first image has the same values in both passes."""
    alone.drawn |= both.drawn
    if alone.tensor is None or both.tensor is None or alone.values is None:
        return
    one, two = alone.tensor.shape, both.tensor.shape
    changed = [axis for axis, (size, large) in enumerate(zip(one, two)) if size != large]
    if len(one) != len(two) or len(changed) != 1 or two[changed[0]] != 2 * one[changed[0]]:
        return
    axis, each = changed[0], one[changed[0]]
    scale = alone.values[alone.values.isfinite()].abs().max().item() if alone.values.isfinite().any() else 0.0
    # Sums of other lengths and in another order, as in batches of other sizes, differ by the last digits.
    precision = torch.finfo(both.tensor.dtype).eps if both.tensor.is_floating_point() else 0.0
    if both.tensor.is_cuda:
        precision = max(precision, 2**-10)  # of TF32, to which a GPU may round
    close = partial(torch.allclose, alone.values, rtol=0, atol=max(1e-3, 8 * precision) * scale, equal_nan=True)
    outer = close(_values(both.tensor.narrow(axis, 0, each)))
    inner = each > 1 and close(_values(both.tensor[(slice(None),) * axis + (slice(None, None, 2),)]))
    alone.steady = outer or inner
    if axis == 0 and (outer or not inner):
        alone.batch = FOLDED if each > 1 else ""
    elif axis == 1 and len(one) == 3 and each == 1:
        alone.batch = TOKENS


def _find_channels(events: Sequence[_Event], images: Tensor) -> None:
    """Find where the channels are: by the module, by its input, by what takes it in, or by the last feature map.

    An output is known by what made it or goes on with it, if that is the very same tensor.
    """
    known: dict[int, bool] = {}
    for _ in range(2):  # what is known of a tensor by what takes it in, is known of what came out below in the second
        feature_map: tuple[int, ...] = ()
        given: list[_Event] = []
        for event in events:
            entering = event.layer.startswith(INPUT)
            source = None if entering or event.layer == OUTPUT else given.pop()
            if entering:
                given.append(event)
            if event.tensor is None or event.kind or event.batch is None or not 2 <= len(event.rest) <= 3:
                continue
            found = _by_kind(event, images)
            found = known.get(id(event.tensor)) if found is None else found
            if found is None and source is not None and source.tensor is not None and not source.kind:
                same = event.tensor.shape == source.tensor.shape
                if same and (_elementwise(event.module) or event.rest[0] != event.rest[-1]):
                    found = known.get(id(source.tensor))
            if found is None and len(event.rest) == 2 and feature_map:
                fits = [_is_map(shape, feature_map) for shape in (event.rest, event.rest[::-1])]
                found = fits[0] if fits[0] != fits[1] else None
            if found is not None:
                known.setdefault(id(event.tensor), found)
                event.last = found
            if isinstance(event.module, nn.Conv2d) and not entering and len(event.rest) == 3:
                feature_map = event.rest


def _by_kind(event: _Event, images: Tensor) -> bool | None:
    """Whether the channels are last, as the module and the pictures' proportions tell."""
    if channels_last(event.module):
        return True
    if channels_second(event.module) and not (isinstance(event.module, nn.Unfold) and event.layer.startswith(INPUT)):
        return False
    if len(event.rest) == 2 or images.ndim != 4 or event.batch:
        return None
    height, width = images.shape[2:]

    def fits(rows: int, columns: int) -> bool:
        return abs(rows * width - columns * height) <= max(height, width)  # up to one row or column, from rounding

    last, first = fits(*event.rest[:2]), fits(*event.rest[1:])
    return last if last != first else None


def _elementwise(module: nn.Module) -> bool:
    """Whether a module of torch leaves each value where it is."""
    home = type(module).__module__
    return home in ("torch.nn.modules.activation", "torch.nn.modules.dropout") or isinstance(module, nn.Identity)


def _is_map(tokens: Sequence[int], feature_map: Sequence[int]) -> bool:
    """Whether ``(T, C)`` are the positions and channels of a feature map ``(C, h, w)``."""
    channels, *grid = feature_map
    return tokens[1] == channels and 0 <= tokens[0] - math.prod(grid) <= PREFIX_TOKENS


@dataclass(frozen=True, eq=False)
class _Looks:
    """What goes into and comes out of all modules, for one image.

    Attributes
    ----------
    run
        A pass of that image.
    events
        In the order of the pass.
    allowed
        Whether what depends on chance or on the batch can be studied.
    """

    run: _Run
    events: list[_Event]
    allowed: bool = False

    @classmethod
    def at(cls, model: nn.Module, images: Tensor, allowed: bool = False) -> _Looks:
        """From running the first image alone, and beside another one."""
        require_weights(model)
        image = as_weights(model, images[:1])
        low, high = image.aminmax()
        spread = high - low + (high == low)
        noise = torch.rand(2, *image.shape[1:], generator=torch.Generator().manual_seed(0)).to(image.device)
        if high == low:  # in some norms nothing but rounding errors comes of a constant picture
            image = (low + noise[:1] * spread).to(image.dtype)
        other = (low + noise[1:] * spread / 4).to(image.dtype)  # darker and of less contrast, or of another class
        with torch.random.fork_rng([image.device] if image.is_cuda else []), resting(model), torch.no_grad():
            events = _pass(model, image)
            _pass(model, torch.cat([image, other]), events)
        _find_channels(events, image)
        return cls(_Run(image), events, allowed)

    @cached_property
    def by_layer(self) -> dict[str, list[_Event]]:
        """The events of each layer, with ``"input:"`` before it for what goes into it; in the order of the pass."""
        found: dict[str, list[_Event]] = {}
        for event in self.events:
            found.setdefault(event.layer, []).append(event)
        return found

    @cached_property
    def first_unsteady(self) -> _Event | None:
        """The first tensor that depends on chance or on the batch."""
        return next((event for event in self.events if event.unsteady), None)

    @cached_property
    def shapes(self) -> list[LayerShape]:
        """All outputs of layers that can be studied."""
        outputs = [layer for layer in self.by_layer if layer != OUTPUT and not layer.startswith(INPUT)]
        usable = [(layer, self.by_layer[layer][0]) for layer in outputs if not self.trouble(layer)]
        prefixed = [(_prefix(event), layer, event) for layer, event in usable]
        return [self.shape(prefix + layer, event) for prefix, layer, event in prefixed if prefix is not None]

    def shape(self, layer: str, event: _Event, kind: str = "") -> LayerShape:
        """How a tensor looks under a layer's name."""
        assert event.tensor is not None
        empty = torch.empty(event.tensor.shape, device="meta")
        shown = _shown(layer, event.module, empty, replace(self.run, grids=event.grids))[0]
        found = _shape(layer, kind or type(event.module).__name__, shown)
        return replace(found, unsteady=self.unsteady if event.unsteady else "")

    def trouble(self, layer: str) -> str:
        """Why what a layer puts out, or is given, can't be studied; "" if it can."""
        own = self.by_layer.get(layer, [])
        if not own:
            return "it does not run in a forward pass, though modules inside it may; take the last of these"
        if len(own) > 1:
            return (
                f"it does not run exactly once in a forward pass, but {len(own)} times. A module that is used several "
                "times, as many ReLUs are, is no one layer: take the block that it is in"
            )
        event = own[0]
        if event.tensor is None or event.kind:
            return f"it is a {event.kind}, not one tensor; take the block that it is in, or a layer inside it"
        if event.unsteady and not self.allowed:
            return f"{self.unsteady}; or go on all the same with allow_nondeterministic"
        shape = list(event.tensor.shape)
        if event.batch is None:
            return (
                f"it is {shape} for one image, and neither the first of these axes is that of the images, nor, as in "
                "[T, B, C], the second; take a layer before or after it"
            )
        if not 1 <= len(event.rest) <= 3:
            return f"it is {shape} for one image, and should be [B, C], [B, T, C], [B, C, L] or [B, C, H, W]"
        return ""

    @property
    def unsteady(self) -> str:
        """What makes results depend on chance or on the batch, in words; "" if nothing does."""
        first = self.first_unsteady
        if first is None:
            return ""
        if first.drawn:
            return (
                f"it depends on chance, as {first.maker} draws random numbers in evaluation too; switch that off, such "
                "as dropout by training=self.training, and take train() out of forward()"
            )
        return (
            f"it depends on which images are in a batch, or on chance, as {first.maker} makes other numbers of an "
            "image alone than of the same beside another one; let norms use running statistics, and take train() out "
            "of forward()"
        )

    def usable(self, layer: str) -> LayerShape:
        """How a layer looks; raises if it can't be studied, or not under that name."""
        prefix, name = parsed(layer)
        part, batch, axis = (next((one for one in kind if one in prefix), "") for kind in PREFIXES)
        key = INPUT + name if part == INPUT else name
        names = [shape.name for shape in self.shapes]
        if reason := self.trouble(key):
            raise LayerError(
                f"layer {layer!r} can't be studied: {reason}. {len(names)} layers can; near it: {_near(layer, names)}"
            )
        event = self.by_layer[key][0]
        assert event.tensor is not None
        needed = _prefix(event)
        what = f"layer {layer!r} {'is' if part == INPUT else 'puts out'}"
        if needed is None and not axis:
            both = [repr(part + (event.batch or "") + one + name) for one in (FIRST, LAST)]
            raise LayerError(
                f"{what} {list(event.tensor.shape)} for one image, and it can't be told whether the channels are "
                f"first, [B, C, L], or last, [B, T, C]; name it {both[0]} or {both[1]}"
            )
        misread = (needed or "").replace(event.batch or "", "") if not axis else ""
        opposed = (axis == LAST and event.last is False) or (axis == FIRST and event.last and len(event.rest) == 3)
        if batch != event.batch or misread or opposed:
            form = MEANT[event.batch or ""] if batch != event.batch else MEANT[misread or "usual"]
            raise LayerError(f"{what} {form}; name it {part + (needed or '') + name!r}")
        return self.shape(layer, event, part.removesuffix(":"))


MEANT = {
    "": "[B, ...], with the images first",
    TOKENS: "[T, B, C], with the images on the second axis",
    FOLDED: "[B * w, ...], with w windows, tiles or frames of each image in the first axis",
    LAST: "[B, H, W, C], with the channels last, and would be misread as [B, C, H, W]",
    FIRST: "[B, C, L], with the channels first, and would be misread as [B, T, C]",
    "usual": "the channels elsewhere",
}
"""What layers put out that need the prefixes."""


def _prefix(event: _Event) -> str | None:
    """What has to stand before a layer's name, besides what part of it is wanted; None if that can't be told."""
    axes = len(event.rest) + 1
    if event.last is None and axes == 3:
        return None
    misread = axes > 2 and event.last is not None and event.last != _is_last(event.module, axes)
    return (event.batch or "") + ((LAST if event.last else FIRST) if misread else "")


def survey(model: nn.Module, images: Tensor, allow_nondeterministic: bool = False) -> list[LayerShape]:
    """All layers of a network that can be studied, in the order in which they run.

    Layers that run more than once in a forward pass (a shared ReLU) are left out, as are those whose output is not one
    tensor of a supported shape, has no axis for the images, or, unless that is allowed, depends on chance or on the
    batch (with a warning).
    Where a layer's shape has to be told by a prefix, it stands before the name: where the images are, as running one
    image alone and beside another tells; and where the channels are. The latter is known by the module, by what goes
    into it or takes in what it puts out, and by the pictures' proportions; where none of these tells, a layer
    ``[B, T, C]`` is left out.

    Parameters
    ----------
    model, images
        Any network, and a batch of its inputs; one image is enough.
    allow_nondeterministic
        List layers that depend on chance or on the batch, too.
    """
    looks = _Looks.at(model, images, allow_nondeterministic)
    if looks.first_unsteady is not None and not allow_nondeterministic:
        warnings.warn(f"layers are left out: from {looks.unsteady}", StudyWarning, stacklevel=2)
    return looks.shapes


def require(
    model: nn.Module, images: Tensor, target: str, lower: str, allow_nondeterministic: bool = False
) -> tuple[LayerShape, LayerShape]:
    """Check that two layers can be studied together, and say how they look.

    Parameters
    ----------
    model, images
        Any network, and a batch of its inputs; one image is enough.
    target, lower
        Names of the two layers.
    allow_nondeterministic
        Let them depend on chance or on the batch; their :attr:`LayerShape.unsteady` says why they do.

    Raises
    ------
    LayerError
        If one is missing, runs more than once, puts out something unsupported, depends on chance or on the batch
        (unless that is allowed), or wants another prefix; or if they are in the wrong order.
    ModelError
        If the network can't be run on the images.
    """
    for name in (target, lower):
        get_layer(model, name)
    looks = _Looks.at(model, images, allow_nondeterministic)
    found = looks.usable(target), looks.usable(lower)
    with resting(model):
        cut(model, images, lower, target)
    return found


def require_output(model: nn.Module, images: Tensor, allow_nondeterministic: bool = False) -> LayerShape:
    """Check that a network puts out one steady tensor, and say how it looks; raises as :func:`require`."""
    looks = _Looks.at(model, images, allow_nondeterministic)
    if reason := looks.trouble(OUTPUT):
        raise LayerError(f"what {type(model).__name__} puts out can't be used: {reason}")
    return looks.shape(OUTPUT, looks.by_layer[OUTPUT][0])
