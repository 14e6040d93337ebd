"""Layers by name, what they put out, and the network cut at them.

Two tools that everything else stands on. :func:`activations` runs a network up to the layers one asks for and
stops there. :func:`cut` does the same, but makes the output of a lower layer the start of a new computational
graph: what is returned for the upper layer is then a function of the lower activations *only*, and a backward
pass runs through the part between the two and through nothing else. Both work by forward hooks, so they ask
nothing of the network but that the layers are modules that run once.

Besides names of modules, whose outputs are meant, both take

- ``"input:NAME"``, the (first) input of a module;
- ``"patches:NAME"``, tokens as the grid of patches that they stand for: from ``[B, T, C]`` to ``[B, C, h, w]``, without
  the class token and registers before them, in rows from the top, as many as columns;
- ``"class:NAME"``, the first of the tokens alone, ``[B, C]``;
- ``"last:NAME"``, an output with the channels last as any other: from ``[B, H, W, C]`` to ``[B, C, H, W]``. Linear
  layers and layer norms need no prefix for that, as they tell by themselves where their channels are;
- and :data:`OUTPUT`, the output of the whole network.

Whatever replaces what is shown of an activation is put back in its place: among the other tokens, with the channels
last.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm import LayerNorm as TimmLayerNorm
from torch import Tensor, nn

from pure_nb.errors import LayerError

OUTPUT = ""
"""Name of the network's own output among the layers: the one that ``named_modules`` gives to the network."""

INPUT = "input:"
"""Before the name of a layer: what goes into it, instead of what comes out."""

PATCHES = "patches:"
"""Before the name of a layer that puts out tokens: those that stand for patches, as a grid."""

CLASS = "class:"
"""Before the name of a layer that puts out tokens: the first one alone."""

LAST = "last:"
"""Before the name of a layer that puts out ``[B, H, W, C]``: the same as ``[B, C, H, W]``."""

PREFIXES = (INPUT, PATCHES, CLASS, LAST)
"""All that may stand before the name of a layer; one of them at most."""

PREFIX_TOKENS = 16
"""Tokens that may stand before those of the patches: a class token, a distillation token, registers."""


class _Reached(Exception):  # noqa: N818, it is no error
    """Raised inside a hook: all that was asked for is known, the rest of the network need not run."""


def parsed(layer: str) -> tuple[str, str]:
    """What stands before the name of a layer, one of :data:`PREFIXES` or ""; and the name of the module.

    Raises
    ------
    LayerError
        If two of them stand there.
    """
    prefix = next((prefix for prefix in PREFIXES if layer.startswith(prefix)), "")
    name = layer.removeprefix(prefix)
    if prefix and name.startswith(PREFIXES):
        raise LayerError(f"layer {layer!r}: one of {', '.join(map(repr, PREFIXES))} may stand before a name, not two")
    return prefix, name


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
        ``"input:NAME"``.

    Raises
    ------
    LayerError
        If the target is missing, or mixes no channels: what goes into a ReLU tells nothing about where it came from.
    """
    name, module = parsed(target)[1], get_layer(model, target)
    if not _mixes(module):
        raise LayerError(
            f"layer {target!r} is a {type(module).__name__} that mixes no channels, so the layer right below it tells "
            "nothing; name a lower layer, or choose a target with a convolution or linear layer in it"
        )
    while isinstance(module, nn.Sequential):
        last, module = [(name, child) for name, child in module.named_children() if _mixes(child)][-1]
        name = f"{name}.{last}"
    return INPUT + name


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
def resting(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode with frozen weights; both are put back afterwards. Nothing runs compiled."""
    training = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    # What torch.compile made calls no hooks that were added later, in which case torch has loaded its compiler.
    plainly = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with plainly:
            yield model
    finally:
        for module, was in training.items():
            module.training = was
        for parameter, required in trainable.items():
            parameter.requires_grad_(required)


def channels_last(module: nn.Module) -> bool:
    """Whether a module is known to have its channels on the last axis, of its input and of its output alike.

    Linear layers do, and layer norms, but for those made for ``[B, C, H, W]``, which are classes of their own.
    """
    return isinstance(module, nn.Linear) or type(module) in (nn.LayerNorm, TimmLayerNorm)


def _patches(layer: str, tokens: Tensor) -> tuple[int, int]:
    """Number of tokens before those of the patches, and side of the grid of these."""
    if tokens.ndim != 3:
        raise LayerError(
            f"layer {layer!r}: {list(tokens.shape)} are no tokens [B, T, C]; name it without {PATCHES!r}, or choose "
            "another"
        )
    side = math.isqrt(tokens.shape[1])
    before = tokens.shape[1] - side**2
    if side < 2 or before > PREFIX_TOKENS:
        raise LayerError(
            f"layer {layer!r}: {tokens.shape[1]} tokens are no square grid of patches with at most {PREFIX_TOKENS} "
            f"tokens before it; name the layer without {PATCHES!r}"
        )
    return before, side


def _shown(layer: str, module: nn.Module, whole: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What a layer's name means of an activation, and how what replaces that is put back in its place."""
    prefix = parsed(layer)[0]
    if prefix == PATCHES:
        before, side = _patches(layer, whole)
        grid = whole[:, before:].transpose(1, 2).reshape(len(whole), -1, side, side)
        return grid, lambda new: torch.cat([whole[:, :before], new.flatten(2).transpose(1, 2)], dim=1)
    if prefix == CLASS:
        if whole.ndim != 3:
            raise LayerError(f"layer {layer!r}: {list(whole.shape)} are no tokens [B, T, C]; name it without {CLASS!r}")
        return whole[:, 0], lambda new: torch.cat([new[:, None], whole[:, 1:]], dim=1)
    if prefix == LAST and whole.ndim != 4:
        raise LayerError(f"layer {layer!r}: {list(whole.shape)} is not [B, H, W, C]; name it without {LAST!r}")
    if whole.ndim == 4 and (prefix == LAST or channels_last(module)):
        return whole.permute(0, 3, 1, 2), lambda new: new.permute(0, 2, 3, 1)
    return whole, lambda new: new


@contextmanager
def _hooked(
    model: nn.Module, hooks: dict[str, Callable[[Tensor], Tensor | None]], leaf: str | None = None
) -> Iterator[None]:
    """Call a function on the activation at each named layer; what it returns, if anything, replaces it.

    At the leaf the graph ends, also that of the tokens which are not shown.
    """

    def replaced(name: str, module: nn.Module, whole: Tensor) -> Tensor | None:
        shown, put_back = _shown(name, module, whole.detach() if name == leaf else whole)
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
        for name in hooks:
            module = model if name == OUTPUT else get_layer(model, name)
            if parsed(name)[0] == INPUT:
                # Before hooks that are there already: the rules of LRP must see the new graph's start, not go past it.
                handle = module.register_forward_pre_hook(before(name), prepend=True)
            else:
                handle = module.register_forward_hook(after(name))
            stack.callback(handle.remove)
        yield


def as_weights(model: nn.Module, images: Tensor) -> Tensor:
    """Images in the precision of a network's weights: half for a network in half precision."""
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return images.to(next(dtypes, images.dtype)) if images.is_floating_point() else images


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
    with nullcontext() if leaf is None else torch.enable_grad(), _hooked(model, hooks, leaf):
        try:
            model(as_weights(model, images))
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
    with torch.enable_grad(), _hooked(model, hooks, lower), suppress(_Reached):
        model(inputs)
    if not top:
        raise LayerError(f"layer {target!r} did not run in the forward pass of {type(model).__name__}")
    if not leaf or not top[0].requires_grad:
        raise LayerError(
            f"layer {target!r} does not depend on {lower!r}: the lower layer must run before it and feed it"
        )
    return leaf[0], top[0]


@dataclass(frozen=True)
class LayerShape:
    """What a layer puts out for one image: its channels, and its grid of positions (() if it has none)."""

    name: str
    kind: str
    channels: int
    grid: tuple[int, ...]


def _shape(name: str, kind: str, output: Tensor) -> LayerShape:
    axis = channel_axis(output)
    grid = tuple(size for i, size in enumerate(output.shape) if i not in (0, axis))
    return LayerShape(name, kind, output.shape[axis], grid)


def _looks_last(output: Tensor, images: Tensor) -> bool:
    """Whether an output has a grid of the pictures' proportions only if its channels are last."""
    if output.ndim != 4 or images.ndim != 4:
        return False
    height, width = images.shape[2:]

    def fits(rows: int, columns: int) -> bool:
        return abs(rows * width - columns * height) <= max(height, width)  # up to one row or column, from rounding

    return fits(*output.shape[1:3]) and not fits(*output.shape[2:])


def survey(model: nn.Module, images: Tensor) -> list[LayerShape]:
    """All layers of a network that can be studied, in the order in which they run.

    Layers that run more than once in a forward pass (a shared ReLU) are left out, as are those whose output
    is not one tensor of a supported shape. Those that put their channels last have ``"last:"`` before their names,
    where the pictures' proportions tell; where the grid is as large as the channels are many, nothing does.

    Parameters
    ----------
    model, images
        Any network, and a batch of its inputs; one image is enough.
    """
    seen: dict[str, list[LayerShape | None]] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shape = None
            if isinstance(output, Tensor) and output.ndim in (2, 3, 4):
                last = not channels_last(module) and _looks_last(output, images)
                layer = LAST + name if last else name
                shape = _shape(layer, type(module).__name__, _shown(layer, module, output)[0])
            seen.setdefault(name, []).append(shape)

        return hook

    with ExitStack() as stack, resting(model), torch.no_grad():
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(hook_of(name)).remove)
        model(as_weights(model, images))
    return [shapes[0] for shapes in seen.values() if len(shapes) == 1 and shapes[0] is not None]


def require(model: nn.Module, images: Tensor, target: str, lower: str) -> tuple[LayerShape, LayerShape]:
    """Check that two layers can be studied together, and say how they look.

    Parameters
    ----------
    model, images
        Any network, and a batch of its inputs; one image is enough.
    target, lower
        Names of the two layers.

    Raises
    ------
    LayerError
        If one is missing, runs more than once, puts out something unsupported, or they are in the wrong order.
    """
    for name in (target, lower):
        get_layer(model, name)
    shapes = {shape.name: shape for shape in survey(model, images)}
    found = {name: _usable(model, images, name, shapes) for name in (target, lower)}
    with resting(model):
        cut(model, images, lower, target)
    return found[target], found[lower]


def _usable(model: nn.Module, images: Tensor, layer: str, shapes: dict[str, LayerShape]) -> LayerShape:
    """How a layer looks, out of a survey or by a look at it; raises if it can't be studied."""
    if layer in shapes:
        return shapes[layer]
    if LAST + layer in shapes:
        raise LayerError(
            f"layer {layer!r} puts out [B, H, W, C], with the channels last, and would be misread as [B, C, H, W]; "
            f"name it {LAST + layer!r}"
        )
    prefix, name = parsed(layer)
    if not prefix:
        raise LayerError(
            f"layer {layer!r} can't be studied: it does not run exactly once with one output of shape [B, C], "
            f"[B, T, C] or [B, C, H, W]. A module that is used several times, as many ReLUs are, is no one layer: take "
            f"the block that it is in. {len(shapes)} layers do; near it: {_near(layer, list(shapes))}"
        )
    with resting(model), torch.no_grad():
        found = activations(model, images, [layer])[layer]
    if prefix == INPUT and not channels_last(get_layer(model, name)) and _looks_last(found, images):
        raise LayerError(
            f"layer {layer!r} is [B, H, W, C], with the channels last, and would be misread as [B, C, H, W]; name the "
            f"layer that puts it out, with {LAST!r} before its name"
        )
    return _shape(layer, prefix.removesuffix(":"), found)
