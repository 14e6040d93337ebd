"""Which layers of a network can be studied, and how they look: found out by running one image alone and beside another.

See :mod:`pure_nb.network.looking` for what is seen in these passes, and how it tells where images and channels are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from pure_nb._resting import frozen_eval
from pure_nb.errors import LayerError, StudyWarning
from pure_nb.network.cut import Cut
from pure_nb.network.layers import as_weights, get_layer, near
from pure_nb.network.looking import Event, Recorder, find_channels
from pure_nb.network.models import require_weights
from pure_nb.network.places import layouts
from pure_nb.network.targets import (
    FIRST,
    FOLDED,
    INPUT,
    LAST,
    OUTPUT,
    TOKENS,
    Pass,
    Target,
    channel_axis,
    view,
)

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
    ``how`` says in short how it is known which axes these are.
    """

    name: str
    kind: str
    channels: int
    grid: tuple[int, ...]
    unsteady: str = ""
    how: str = field(default="", compare=False)


class _Looks:
    """What goes into and comes out of all modules, for the first of some images.

    Attributes
    ----------
    allowed
        Whether what depends on chance or on the batch can be studied.
    by_layer
        The events by the module's name and which part they are; in the order of the pass.
    unsteady
        What makes results depend on chance or on the batch, in words; "" if nothing does.
    """

    def __init__(self, model: nn.Module, images: Tensor, allowed: bool = False, layers: Sequence[str] = ()) -> None:
        require_weights(model)
        image = as_weights(model, images[:1])
        low, high = image.aminmax()
        spread = high - low + (high == low)
        noise = torch.rand(2, *image.shape[1:], generator=torch.Generator().manual_seed(0)).to(image.device)
        if high == low:  # in some norms nothing but rounding errors comes of a constant picture
            image = (low + noise[:1] * spread).to(image.dtype)
        other = (low + noise[1:] * spread / 4).to(image.dtype)  # darker and of less contrast, or of another class
        with torch.random.fork_rng([image.device] if image.is_cuda else []), frozen_eval(model), torch.no_grad():
            inside = [target for target in map(Target.parse, layers) if target.inside]
            events = Recorder(model, image, inside).events
            Recorder(model, torch.cat([image, other]), inside, iter(events))
        find_channels(events)
        self.model, self.allowed = model, allowed
        self.unsteady = next(filter(None, (event.unsteady for event in events)), "")
        self.by_layer: dict[tuple[str, str], list[Event]] = {}
        for event in events:
            self.by_layer.setdefault((event.name, event.part), []).append(event)

    @cached_property
    def shapes(self) -> list[LayerShape]:
        """All outputs of layers that can be studied."""
        outputs = [name for name, part in self.by_layer if name != OUTPUT and not part]
        usable = [self.by_layer[name, ""][0] for name in outputs if not self.trouble(name)]
        return [
            self.shape(Target(event.name, batch=event.batch or "", axis=event.axis), event)
            for event in usable
            if event.axis is not None
        ]

    def shape(self, target: Target, event: Event) -> LayerShape:
        """How a tensor looks as a target."""
        empty, images = torch.empty(event.tensor.shape, device="meta"), event.images
        run = Pass(images, layouts(self.model, images, [target]))
        shown = view(target, event.module, empty, run)[0]
        axis = channel_axis(shown)
        grid = tuple(size for i, size in enumerate(shown.shape) if i not in (0, axis))
        kind = (target.part or target.inside).removesuffix(":") or type(event.module).__name__
        how = run.layouts[target].how if target in run.layouts else event.how
        return LayerShape(str(target), kind, shown.shape[axis], grid, self.unsteady if event.unsteady else "", how)

    def trouble(self, name: str, part: str = "") -> str:
        """Why what a module puts out, or is given, can't be studied; "" if it can."""
        own = self.by_layer.get((name, part), [])
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
        own = target.name, INPUT if target.part == INPUT else target.inside
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
    looks = _Looks(model, images, allow_nondeterministic, [target, lower])
    found = looks.usable(target), looks.usable(lower)
    with frozen_eval(model):
        Cut.at(model, images, lower, target)
    return found


def require_output(model: nn.Module, images: Tensor, allow_nondeterministic: bool = False) -> LayerShape:
    """Check that a network puts out one steady tensor, and say how it looks; raises as :func:`require`."""
    looks = _Looks(model, images, allow_nondeterministic)
    if reason := looks.trouble(OUTPUT):
        raise LayerError(f"what {type(model).__name__} puts out can't be used: {reason}")
    return looks.shape(Target(OUTPUT), looks.by_layer[OUTPUT, ""][0])
