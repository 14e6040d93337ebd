"""What goes into and comes out of each module, in a pass of one image alone and in one beside another.

The first pass tells what there is; the second on which axis the images are, and whether an image has the same values
beside another one. What goes into a tensor, what takes it in and the pictures' proportions tell where its channels are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pure_nb.network.attention import Inside
from pure_nb.network.places import MOST_OTHERS
from pure_nb.network.running import forward_pass, without_checkpoints
from pure_nb.network.targets import (
    FIRST,
    FOLDED,
    INPUT,
    LAST,
    OUTPUT,
    TOKENS,
    Target,
    channels_last,
    channels_second,
    described,
    is_last,
    main_tensor,
)

SAMPLE = 4096
"""Values of an activation, about, by which it is compared with that of another pass."""


@dataclass(eq=False)
class Event:
    """A tensor that goes into a module, or comes out of it, in a forward pass of one image.

    Attributes
    ----------
    name, module
        The module.
    part
        Which tensor of the module's: what it puts out (""), or a prefix for what goes in or is inside its attention.
    maker
        The module whose code made the tensor, in words.
    kind
        Type of what was given or put out, if it was no tensor.
    tensor, values
        The tensor, the first of several, or an empty one; and some of its values as they were then.
    drawn
        Whether random numbers had been drawn before.
    images, maps
        What the pass was given, and the feature maps ``(C, h, w)`` of convolutions up to there.
    source
        What went into the module, if this came out of it.
    batch
        Which of its axes the images are on, as a prefix; None if there is none, or it can't be used.
    steady
        Whether the image had the same values beside another one.
    last, sign
        Whether the channels are last, and not on the axis after the images', and what tells that; None if nothing does.
    """

    name: str
    module: nn.Module
    part: str
    maker: str
    kind: str
    tensor: Tensor
    drawn: bool
    images: Tensor
    maps: list[tuple[int, ...]]
    source: Event | None = None
    values: Tensor = field(init=False)
    batch: str | None = None
    steady: bool = True
    last: bool | None = None
    sign: str = ""

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
    def entering(self) -> bool:
        """Whether the tensor goes into the module."""
        return self.part == INPUT

    @property
    def how(self) -> str:
        """How it is known where the images and the channels are, in short."""
        told = {TOKENS: "images second", FOLDED: "windows first"}.get(self.batch or "", "")
        where = f"{told} (an image beside another), " if told else ""
        if len(self.rest) == 1:
            return f"{where}channels alone (no other axis)"
        return f"{where}channels {'last' if self.last else 'second'} ({self.sign or 'as is usual: nothing tells'})"

    @property
    def axis(self) -> str | None:
        """The prefix that says where the channels are; "" if none is needed, None if that can't be told."""
        axes = len(self.rest) + 1
        if self.part not in ("", INPUT):
            return ""
        if self.last is None:
            return None if axes == 3 else ""
        return "" if axes == 2 or self.last == is_last(self.module, axes) else LAST if self.last else FIRST

    def compare(self, both: Event) -> None:
        """Find the images' axis, and whether the image has the same values in a pass beside another one."""
        if (self.name, self.part) != (both.name, both.part):
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


class Recorder:
    """Notes all that goes into and comes out of modules in one forward pass, in order.

    In the second pass, with the first's events, these are told of what became of the first image.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, inside: Sequence[Target], alone: Iterator[Event] | None = None
    ) -> None:
        self.images, self.alone, self.before = images, alone, _random(images.device)
        self.maps: list[tuple[int, ...]] = []
        self.events: list[Event] = []
        self.inside: list[tuple[str, Event | None]] = [(f"the network's own forward() ({type(model).__name__})", None)]
        with ExitStack() as stack:
            stack.enter_context(without_checkpoints(model))
            for name, module in model.named_modules():
                if name != OUTPUT:
                    stack.enter_context(module.register_forward_pre_hook(partial(self.enter, name)))
                stack.enter_context(module.register_forward_hook(partial(self.leave, name)))
            for target in inside:
                module = model.get_submodule(target.name)
                stack.enter_context(Inside(target, module, partial(self.within, target, module)).register())
            forward_pass(model, images)

    def enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        """A module starts."""
        event = self.note(name, module, inputs[0] if inputs else None, INPUT)
        self.inside.append((_words(name, module), event))

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module ends."""
        if name != OUTPUT and module.training:
            self.inside[-1] = _words(name, module), self.inside[-1][1]
        self.note(name, module, output)
        if isinstance(module, nn.Conv2d):
            self.maps.append(tuple(output.shape[-3:]))
        if name != OUTPUT:
            self.inside.pop()

    def within(self, target: Target, module: nn.Module, value: Tensor) -> Tensor:
        """Something inside the attention of a module."""
        event = self.note(target.name, module, value, target.inside)
        event.last, event.sign = True, f"{target.inside} of the attention"
        return value

    def note(self, name: str, module: nn.Module, value: Any, part: str = "") -> Event:
        """Something goes into a module, or comes out of it."""
        maker, source = self.inside[-1]
        found = main_tensor(value)
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        tensor = found[0] if found else first if isinstance(first, Tensor) else torch.empty(0)
        kind = "" if found else described(value)
        drawn = not all(map(torch.equal, self.before, _random(self.images.device)))
        given = [*self.maps]
        event = Event(name, module, part, maker, kind, tensor, drawn, self.images, given, None if part else source)
        if self.alone is None:
            event.values = _values(tensor)
            self.events.append(event)
        elif known := next(self.alone, None):
            known.compare(event)
        return event


def _words(name: str, module: nn.Module) -> str:
    return f"{name!r} ({type(module).__name__}{', in training mode' if module.training else ''})"


def find_channels(events: Sequence[Event]) -> None:
    """Find where the channels are.

    An output is known by what made it or goes on with it, if that is the very same tensor: so what is known of a tensor
    by what takes it in, is known of what came out below in the second round.
    """
    known: dict[int, tuple[bool, Event]] = {}
    for event in [*events, *events]:
        if not event.kind and event.batch is not None and 2 <= len(event.rest) <= 3 and event.part in ("", INPUT):
            event.last, event.sign = next(_told(event, known), (event.last, event.sign))
            if event.last is not None:
                known.setdefault(id(event.tensor), (event.last, event))


def _told(event: Event, known: Mapping[int, tuple[bool, Event]]) -> Iterator[tuple[bool, str]]:
    """Whether the channels are last, by one sign after the other, and what tells."""
    module, rest, source, kind = event.module, event.rest, event.source, type(event.module).__name__
    if channels_last(module):
        yield True, f"a {kind}"
    elif channels_second(module) and not (isinstance(module, nn.Unfold) and event.entering):
        yield False, f"a {kind}"
    elif len(rest) == 3 and event.images.ndim == 4 and not event.batch:
        height, width = event.images.shape[2:]
        # Up to one row or column, from rounding.
        fits = [abs(r * width - c * height) <= max(height, width) for r, c in (rest[:2], rest[1:])]
        if fits[0] != fits[1]:
            yield fits[0], "the picture's proportions"
    if (same := known.get(id(event.tensor))) is not None:
        yield same[0], event.sign if same[1] is event else f"as at {same[1].name!r}, the same tensor"
    like = source is not None and not source.kind and source.tensor.shape == event.tensor.shape
    if source and like and (_elementwise(module) or rest[0] != rest[-1]) and id(source.tensor) in known:
        yield known[id(source.tensor)][0], "as what goes in"
    if len(rest) == 2 and event.maps:
        channels, *grid = event.maps[-1]
        fits = [c == channels and 0 <= t - math.prod(grid) <= MOST_OTHERS for t, c in (rest, rest[::-1])]
        if fits[0] != fits[1]:
            yield fits[0], f"the last feature map, {' x '.join(map(str, event.maps[-1]))}"


def _elementwise(module: nn.Module) -> bool:
    """Whether a module of torch leaves each value where it is."""
    home = type(module).__module__
    return home in ("torch.nn.modules.activation", "torch.nn.modules.dropout") or isinstance(module, nn.Identity)
