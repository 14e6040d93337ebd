"""Layers by name, and what they put out.

:func:`activations` runs a network up to the layers one asks for and stops there, and :class:`pure_nb.network.cut.Cut`
keeps the part between two layers. Both work by forward hooks, so they ask nothing of the network but that the layers
are modules that run once. :mod:`pure_nb.network.targets` tells what may stand before a layer's name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pure_nb.errors import LayerError
from pure_nb.network.attention import Reached
from pure_nb.network.places import layouts
from pure_nb.network.running import Hook, forward_pass, without_checkpoints
from pure_nb.network.running import as_weights as as_weights
from pure_nb.network.targets import HEADS, ChannelsLast, Pass, Target, misspelt
from pure_nb.network.targets import INPUT as INPUT
from pure_nb.network.targets import OUTPUT as OUTPUT
from pure_nb.network.targets import channel_axis as channel_axis
from pure_nb.network.targets import flatten_positions as flatten_positions


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """The module of a given name.

    Parameters
    ----------
    model
        Any network.
    name
        A name out of ``model.named_modules()``, for instance ``"layer4.1.conv2"``, with or without what
        :mod:`pure_nb.network.targets` lets stand before it.

    Raises
    ------
    LayerError
        If there is no such module; the message lists the nearest names.
    """
    modules = dict(model.named_modules())
    own = Target.parse(name).name
    if own and own in modules:
        return modules[own]
    if ":" in own:
        raise misspelt(name)
    names = [candidate for candidate in modules if candidate]
    raise LayerError(
        f"{type(model).__name__} has no layer {own!r}. Near it: {near(own, names)}. "
        f"All {len(names)} names are those of model.named_modules()"
    )


def near(name: str, names: Sequence[str]) -> str:
    """The names that are most like one, or the first if none is."""
    return ", ".join(map(repr, difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:8]))


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
    found, module = Target.parse(target), get_layer(model, target)
    if not _mixes(module):
        raise LayerError(
            f"layer {target!r} is a {type(module).__name__} that mixes no channels, so the layer right below it tells "
            "nothing; name a lower layer, or choose a target with a convolution or linear layer in it"
        )
    while isinstance(module, nn.Sequential):
        last, module = [(name, child) for name, child in module.named_children() if _mixes(child)][-1]
        found = replace(found, name=f"{found.name}.{last}")
    return str(replace(found, part=INPUT, inside=""))


def _mixes(module: nn.Module) -> bool:
    """Whether a module has weights from channels to channels, not only factors and biases."""
    return isinstance(module, ChannelsLast) or any(parameter.ndim > 1 for parameter in module.parameters())


def stage_before(model: nn.Module, layer: str) -> str | None:
    """The module of the same class that stands before a layer among its neighbours; None for the first of them."""
    outer, _, own = Target.parse(layer).name.rpartition(".")
    module = get_layer(model, layer)
    before = None
    for name, neighbour in (get_layer(model, outer) if outer else model).named_children():
        if name == own:
            return before
        if type(neighbour) is type(module):
            before = f"{outer}.{name}" if outer else name
    return before


def computes_plainly(module: nn.Module) -> bool:
    """Whether a module is a Conv2d or Linear that does with its weights what torch's does: no subclass, no hooks."""
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) in (nn.Conv2d, nn.Linear) and not changed


def activations(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str],
    leaf: str | None = None,
    changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Outputs of the named layers; the network is run no further than the last of them.

    Parameters
    ----------
    model
        Any network.
    images
        A batch of its inputs; they are brought to the precision of its weights.
    layers
        Names of modules, or targets, see :mod:`pure_nb.network.targets`.
    leaf
        One of the layers, from which to keep a new graph: what is returned for it is a leaf that requires gradients,
        and what is returned for the layers above is a function of it.
    changes
        For some of the layers what to make of their outputs: the network goes on with that, and that is returned.

    Returns
    -------
    dict
        From name to output.

    Raises
    ------
    LayerError
        If a layer is missing, does not run, or does not put out one tensor.

    Examples
    --------
    >>> found = activations(model, torch.rand(2, 3, 96, 96), ["layer3", "layer4"])
    >>> found["layer4"].shape
    torch.Size([2, 32, 12, 12])
    """
    found: dict[str, Tensor] = {}
    changed = changes or {}

    def keep(name: str, output: Tensor) -> Tensor:
        if name in found:
            rest = " and ".join(repr(layer) for layer in layers if layer not in found)
            raise LayerError(f"layer {name!r} runs more than once below {rest}; choose one that runs once")
        output = changed[name](output) if name in changed else output
        found[name] = output.requires_grad_() if name == leaf else output
        if found.keys() == set(layers):
            raise Reached
        if targets[name].inside == HEADS and name not in changed and name != leaf:
            return output  # a norm, made for us: the network goes on as if nobody had looked
        # A later in-place ReLU would change what we hold, and a leaf does not allow it.
        return found[name].clone()

    images, targets = as_weights(model, images), {name: _present(model, name) for name in layers}
    run = Pass(images, layouts(model, images, targets.values()))
    with ExitStack() as stack:
        if leaf is not None:
            stack.enter_context(torch.enable_grad())
        for name, target in targets.items():
            hook = Hook(target, partial(keep, name), run, name == leaf, torch.is_grad_enabled())
            stack.enter_context(hook.register(model))
        stack.enter_context(without_checkpoints(model))
        stack.enter_context(suppress(Reached))
        forward_pass(model, images)
    if missing := [name for name in layers if name not in found]:
        raise LayerError(f"layer {missing[0]!r} did not run in the forward pass of {type(model).__name__}")
    return found


def _present(model: nn.Module, layer: str) -> Target:
    """A layer that the network has, or what goes into or comes out of the network itself."""
    target = Target.parse(layer)
    if target.name != OUTPUT:
        get_layer(model, layer)
    return target


def outputs_changed(model: nn.Module, images: Tensor, layer: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What the network puts out once the output of a layer is changed, which may make several rows of one image.

    Parameters
    ----------
    model, images
        Any network, and a batch of its inputs.
    layer
        Name of a module, or a target.
    change
        What to make of its output.

    Raises
    ------
    ModelError
        If the network does not run so: the layers above may know how many images there are.
    LayerError
        If the layer is missing or does not put out one tensor, or the network does not.
    """
    images, target, kept = as_weights(model, images), _present(model, layer), []
    run = Pass(images, layouts(model, images, [target]))
    with ExitStack() as stack:
        stack.enter_context(Hook(target, change, run, leaf=False, gradients=False).register(model))
        stack.enter_context(model.register_forward_hook(lambda module, inputs, output: kept.append(output)))
        stack.enter_context(without_checkpoints(model))
        forward_pass(model, images)
    if not isinstance(kept[0], Tensor):
        raise LayerError(f"{type(model).__name__} puts out a {type(kept[0]).__name__}, not one tensor")
    return kept[0]
