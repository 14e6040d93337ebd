"""Which layers of a network can be studied, and how they look: found out by running one image alone and beside another.

The first pass tells what goes into and comes out of each module; the second on which axis the images are, and whether
an image has the same values beside another one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from pure_nb._resting import frozen_eval
from pure_nb.errors import LayerError, StudyWarning
from pure_nb.network.cut import Cut
from pure_nb.network.layers import as_weights, forward_pass, get_layer, near, without_checkpoints
from pure_nb.network.models import require_weights
from pure_nb.network.targets import (
    FIRST,
    FOLDED,
    INPUT,
    LAST,
    OUTPUT,
    PREFIX_TOKENS,
    TOKENS,
    Pass,
    Target,
    channel_axis,
    channels_last,
    channels_second,
    is_last,
    main_tensor,
    view,
)

SAMPLE = 4096
"""Values of an activation, about, by which it is compared with that of another pass."""

MEANT = {
    "": "[B, ...], with the images first",
    TOKENS: "[T, B, C], with the images on the second axis",
    FOLDED: "[B * w, ...], with w windows, tiles or frames of each image in the first axis",
    LAST: "[B, H, W, C], with the channels last, and would be misread as [B, C, H, W]",
    FIRST: "[B, C, L], with the channels first, and would be misread as [B, T, C]",
    "usual": "the channels elsewhere",
}
"""What layers put out that need the prefixes."""


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


@dataclass(eq=False)
class _Event:
    """A tensor that goes into a module, or comes out of it, in a forward pass of one image.

    Attributes
    ----------
    name, module
        The module.
    entering
        Whether the tensor goes in.
    maker
        The module whose code made the tensor, in words.
    kind
        Type of what was given or put out, if it was no tensor.
    tensor, values
        The tensor, the first of several, or an empty one; and some of its values as they were then.
    drawn
        Whether random numbers had been drawn before.
    run
        The pass up to there.
    source
        What went into the module, if this came out of it.
    batch
        Which of its axes the images are on, as a prefix; None if there is none, or it can't be used.
    steady
        Whether the image had the same values beside another one.
    last
        Whether the channels are last, and not on the axis after the images'; None if nothing tells.
    """

    name: str
    module: nn.Module
    entering: bool
    maker: str
    kind: str
    tensor: Tensor
    drawn: bool
    run: Pass
    source: _Event | None = None
    values: Tensor = field(init=False)
    batch: str | None = None
    steady: bool = True
    last: bool | None = None

    @property
    def unsteady(self) -> str:
        """Why it depends on chance or on the batch; "" if it does not."""
        if self.drawn:
            return (
                f"it depends on chance, as {self.maker} draws random numbers in evaluation too; switch that off, such "
                "as dropout by training=self.training, and take train() out of forward()"
            )
        if not self.steady:
            return (
                f"it depends on which images are in a batch, or on chance, as {self.maker} makes other numbers of an "
                "image alone than of the same beside another one; let norms use running statistics, and take train() "
                "out of forward()"
            )
        return ""

    @property
    def rest(self) -> tuple[int, ...]:
        """The axes of one image, or of one of its windows."""
        shape = tuple(self.tensor.shape)
        return (shape[0], *shape[2:]) if self.batch == TOKENS else shape[1:]

    @property
    def axis(self) -> str | None:
        """The prefix that says where the channels are; "" if none is needed, None if that can't be told."""
        axes = len(self.rest) + 1
        if self.last is None:
            return None if axes == 3 else ""
        return "" if axes == 2 or self.last == is_last(self.module, axes) else LAST if self.last else FIRST

    def compare(self, both: _Event) -> None:
        """Find the images' axis, and whether the image has the same values in a pass beside another one."""
        if (self.name, self.entering) != (both.name, both.entering):
            self.steady = False  # another way through the network
            return
        self.drawn |= both.drawn
        one, two = self.tensor.shape, both.tensor.shape
        changed = [axis for axis, (size, large) in enumerate(zip(one, two)) if size != large]
        if len(one) != len(two) or len(changed) != 1 or two[changed[0]] != 2 * one[changed[0]]:
            return
        axis, each = changed[0], one[changed[0]]
        scale = self.values[self.values.isfinite()].abs().amax().item() if self.values.isfinite().any() else 0.0
        # Sums of other lengths and in another order, as in batches of other sizes, differ by the last digits.
        precision = torch.finfo(both.tensor.dtype).eps if both.tensor.is_floating_point() else 0.0
        if both.tensor.is_cuda:
            precision = max(precision, 2**-10)  # of TF32, to which a GPU may round
        close = partial(torch.allclose, self.values, rtol=0, atol=max(1e-3, 8 * precision) * scale, equal_nan=True)
        outer = close(_values(both.tensor.narrow(axis, 0, each)))
        inner = each > 1 and close(_values(both.tensor[(slice(None),) * axis + (slice(None, None, 2),)]))
        self.steady = outer or inner
        if axis == 0 and (outer or not inner):
            self.batch = FOLDED if each > 1 else ""
        elif axis == 1 and len(one) == 3 and each == 1:
            self.batch = TOKENS


def _values(tensor: Tensor) -> Tensor:
    """Some of the values of a tensor, in float32; a copy, since the layer after it may work in place."""
    flat = tensor.detach().flatten()
    flat = flat[:: max(1, len(flat) // SAMPLE) | 1]
    return (torch.view_as_real(flat) if flat.is_complex() else flat).float().flatten().clone()


def _random(device: torch.device) -> list[Tensor]:
    """The state of the random numbers."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


class _Recorder:
    """Notes all that goes into and comes out of modules in one forward pass, in order.

    In the second pass, with the first's events, these are told of what became of the first image.
    """

    def __init__(self, model: nn.Module, images: Tensor, alone: Iterator[_Event] | None = None) -> None:
        self.run, self.alone, self.before = Pass(images), alone, _random(images.device)
        self.events: list[_Event] = []
        self.inside: list[tuple[str, _Event | None]] = [(f"the network's own forward() ({type(model).__name__})", None)]
        with ExitStack() as stack:
            stack.enter_context(without_checkpoints(model))
            for name, module in model.named_modules():
                if name != OUTPUT:
                    stack.enter_context(module.register_forward_pre_hook(partial(self.enter, name)))
                stack.enter_context(module.register_forward_hook(partial(self.leave, name)))
            forward_pass(model, images)

    def enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        """A module starts."""
        event = self.note(name, module, inputs[0] if inputs else None, entering=True)
        self.inside.append((_words(name, module), event))

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module ends."""
        if name != OUTPUT and module.training:
            self.inside[-1] = _words(name, module), self.inside[-1][1]
        self.note(name, module, output, entering=False)
        if isinstance(module, nn.Conv2d):
            self.run.note(module, inputs, output)
        if name != OUTPUT:
            self.inside.pop()

    def note(self, name: str, module: nn.Module, value: Any, *, entering: bool) -> _Event:
        """Something goes into a module, or comes out of it."""
        maker, source = self.inside[-1]
        found = main_tensor(value)
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        tensor = found[0] if found else first if isinstance(first, Tensor) else torch.empty(0)
        kind = "" if found else type(value).__name__
        drawn = not all(map(torch.equal, self.before, _random(self.run.images.device)))
        run = replace(self.run, maps=[*self.run.maps])
        event = _Event(name, module, entering, maker, kind, tensor, drawn, run, None if entering else source)
        if self.alone is None:
            event.values = _values(tensor)
            self.events.append(event)
        elif known := next(self.alone, None):
            known.compare(event)
        return event


def _words(name: str, module: nn.Module) -> str:
    return f"{name!r} ({type(module).__name__}{', in training mode' if module.training else ''})"


def _find_channels(events: Sequence[_Event]) -> None:
    """Find where the channels are.

    An output is known by what made it or goes on with it, if that is the very same tensor: so what is known of a tensor
    by what takes it in, is known of what came out below in the second round.
    """
    known: dict[int, bool] = {}
    for event in [*events, *events]:
        if not event.kind and event.batch is not None and 2 <= len(event.rest) <= 3:
            event.last = next((last for last in _told(event, known) if last is not None), event.last)
            if event.last is not None:
                known.setdefault(id(event.tensor), event.last)


def _told(event: _Event, known: Mapping[int, bool]) -> Iterator[bool | None]:
    """Whether the channels are last, by one sign after the other; None where it does not tell."""
    module, rest, images, source = event.module, event.rest, event.run.images, event.source
    if channels_last(module):
        yield True
    elif channels_second(module) and not (isinstance(module, nn.Unfold) and event.entering):
        yield False
    elif len(rest) == 3 and images.ndim == 4 and not event.batch:  # the pictures' proportions
        height, width = images.shape[2:]
        # Up to one row or column, from rounding.
        fits = [abs(r * width - c * height) <= max(height, width) for r, c in (rest[:2], rest[1:])]
        yield fits[0] if fits[0] != fits[1] else None
    yield known.get(id(event.tensor))
    like = source is not None and not source.kind and source.tensor.shape == event.tensor.shape
    if source and like and (_elementwise(module) or rest[0] != rest[-1]):
        yield known.get(id(source.tensor))
    if len(rest) == 2 and event.run.maps:  # the positions and channels of the last feature map
        channels, *grid = event.run.maps[-1]
        fits = [c == channels and 0 <= t - math.prod(grid) <= PREFIX_TOKENS for t, c in (rest, rest[::-1])]
        yield fits[0] if fits[0] != fits[1] else None


def _elementwise(module: nn.Module) -> bool:
    """Whether a module of torch leaves each value where it is."""
    home = type(module).__module__
    return home in ("torch.nn.modules.activation", "torch.nn.modules.dropout") or isinstance(module, nn.Identity)


class _Looks:
    """What goes into and comes out of all modules, for the first of some images.

    Attributes
    ----------
    allowed
        Whether what depends on chance or on the batch can be studied.
    by_layer
        The events by the module's name, and whether they go in; in the order of the pass.
    unsteady
        What makes results depend on chance or on the batch, in words; "" if nothing does.
    """

    def __init__(self, model: nn.Module, images: Tensor, allowed: bool = False) -> None:
        require_weights(model)
        image = as_weights(model, images[:1])
        low, high = image.aminmax()
        spread = high - low + (high == low)
        noise = torch.rand(2, *image.shape[1:], generator=torch.Generator().manual_seed(0)).to(image.device)
        if high == low:  # in some norms nothing but rounding errors comes of a constant picture
            image = (low + noise[:1] * spread).to(image.dtype)
        other = (low + noise[1:] * spread / 4).to(image.dtype)  # darker and of less contrast, or of another class
        with torch.random.fork_rng([image.device] if image.is_cuda else []), frozen_eval(model), torch.no_grad():
            events = _Recorder(model, image).events
            _Recorder(model, torch.cat([image, other]), iter(events))
        _find_channels(events)
        self.allowed, self.unsteady = allowed, next(filter(None, (event.unsteady for event in events)), "")
        self.by_layer: dict[tuple[str, bool], list[_Event]] = {}
        for event in events:
            self.by_layer.setdefault((event.name, event.entering), []).append(event)

    @cached_property
    def shapes(self) -> list[LayerShape]:
        """All outputs of layers that can be studied."""
        outputs = [name for name, entering in self.by_layer if name != OUTPUT and not entering]
        usable = [self.by_layer[name, False][0] for name in outputs if not self.trouble(name)]
        return [
            self.shape(Target(event.name, "", event.batch or "", event.axis), event)
            for event in usable
            if event.axis is not None
        ]

    def shape(self, target: Target, event: _Event) -> LayerShape:
        """How a tensor looks as a target."""
        empty = torch.empty(event.tensor.shape, device="meta")
        shown = view(target, event.module, empty, event.run)[0]
        axis = channel_axis(shown)
        grid = tuple(size for i, size in enumerate(shown.shape) if i not in (0, axis))
        kind = target.part.removesuffix(":") or type(event.module).__name__
        return LayerShape(str(target), kind, shown.shape[axis], grid, self.unsteady if event.unsteady else "")

    def trouble(self, name: str, entering: bool = False) -> str:
        """Why what a module puts out, or is given, can't be studied; "" if it can."""
        own = self.by_layer.get((name, entering), [])
        if not own:
            return "it does not run in a forward pass, though modules inside it may; take the last of these"
        if len(own) > 1:
            return (
                f"it does not run exactly once in a forward pass, but {len(own)} times. A module that is used several "
                "times, as many ReLUs are, is no one layer: take the block that it is in"
            )
        event = own[0]
        if event.kind:
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

    def usable(self, layer: str) -> LayerShape:
        """How a layer looks; raises if it can't be studied, or not under that name."""
        target = Target.parse(layer)
        own = target.name, target.part == INPUT
        names = [shape.name for shape in self.shapes]
        if reason := self.trouble(*own):
            raise LayerError(
                f"layer {layer!r} can't be studied: {reason}. {len(names)} layers can; near it: {near(layer, names)}"
            )
        event = self.by_layer[own][0]
        what = f"layer {layer!r} {'is' if event.entering else 'puts out'}"
        needed = replace(target, batch=event.batch or "", axis=event.axis or "")
        if event.axis is None and not target.axis:
            both = [repr(str(replace(needed, axis=axis))) for axis in (FIRST, LAST)]
            raise LayerError(
                f"{what} {list(event.tensor.shape)} for one image, and it can't be told whether the channels are "
                f"first, [B, C, L], or last, [B, T, C]; name it {both[0]} or {both[1]}"
            )
        if target.batch != needed.batch:
            raise LayerError(f"{what} {MEANT[needed.batch]}; name it {str(needed)!r}")
        opposed = event.last is False if target.axis == LAST else event.last is True and len(event.rest) == 3
        if opposed if target.axis else needed.axis:
            form = MEANT["usual" if target.axis else needed.axis]
            raise LayerError(f"{what} {form}; name it {str(needed)!r}")
        return self.shape(target, event)


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

    Examples
    --------
    >>> [layer.name for layer in survey(model, torch.rand(1, 3, 96, 96))][:3]
    ['conv1', 'bn1', 'relu']
    """
    looks = _Looks(model, images, allow_nondeterministic)
    if looks.unsteady and not allow_nondeterministic:
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
    looks = _Looks(model, images, allow_nondeterministic)
    found = looks.usable(target), looks.usable(lower)
    with frozen_eval(model):
        Cut.at(model, images, lower, target)
    return found


def require_output(model: nn.Module, images: Tensor, allow_nondeterministic: bool = False) -> LayerShape:
    """Check that a network puts out one steady tensor, and say how it looks; raises as :func:`require`."""
    looks = _Looks(model, images, allow_nondeterministic)
    if reason := looks.trouble(OUTPUT):
        raise LayerError(f"what {type(model).__name__} puts out can't be used: {reason}")
    return looks.shape(Target(OUTPUT), looks.by_layer[OUTPUT, False][0])
