"""What of a network the rules of layer-wise relevance propagation stand for.

A rule sees a layer's parameters, and runs the layer again with others in their place. That is wrong where the layer
computes its weights from something else, as with weight norm, so such layers become plain ones first
(:class:`Weights`). Whatever a network does outside of modules with rules is left to the gradient, so all that it
calls is looked at (:func:`require_rules`).
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from zennit.core import Composite
from zennit.types import Linear

from pure_nb._resting import frozen_eval
from pure_nb.errors import LayerError
from pure_nb.network.cut import Cut
from pure_nb.network.functions import Functions, has_rule

ADVICE = "for circuits use rule='gradient', or bring a composite of zennit that is made for it as rule"

# fmt: off
MOVES = frozenset((
    "broadcast_to", "cat", "channel_shuffle", "chunk", "clone", "concat", "concatenate", "contiguous", "double",
    "expand", "expand_as", "flatten", "flip", "float", "gather", "half", "index_copy", "index_select", "masked_fill",
    "moveaxis", "movedim", "narrow", "pad", "permute", "pixel_shuffle", "pixel_unshuffle", "ravel", "repeat",
    "repeat_interleave", "requires_grad_", "reshape", "reshape_as", "roll", "select", "split", "squeeze", "stack",
    "swapaxes", "t", "tensor_split", "tile", "to", "transpose", "type_as", "unbind", "unflatten", "unfold",
    "unsqueeze", "view", "view_as", "where", "__get__", "__getitem__",
))
# fmt: on
"""Functions that only move numbers about, so that a gradient takes relevance to where it belongs."""

SHARES = frozenset(("adaptive_max_pool2d", "amax", "dropout", "max", "max_pool2d", "maximum"))
"""Functions whose gradient hands relevance on without adding to it: to the largest, or as it is."""

LINEAR = frozenset(("linear", *(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))))
"""Functions that rules cover where they are called with the very parameters of the module."""


def _weights(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The weight and the bias among the arguments of one of :data:`LINEAR`."""
    weight, bias = (*args[1:3], None, None)[:2]
    return kwargs.get("weight", weight), kwargs.get("bias", bias)


def _own(module: nn.Module, weight: Any, bias: Any) -> bool:
    """Whether these are the module's parameters, which is what a rule changes."""
    return all(value is module._parameters.get(name) for name, value in (("weight", weight), ("bias", bias)))


class Weights(TorchFunctionMode):
    """Sees with which weights convolutions and linear layers really run.

    Attributes
    ----------
    plain
        For each layer that runs with others than its parameters, one that does the same with its own. It may put zeros
        around its input first, as TensorFlow's convolutions do; layers that do more than that, or whose weights depend
        on the image, are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plain: dict[nn.Module, nn.Module] = {}
        self._inside: list[tuple[Any, list[tuple[Any, Any, Any]]]] = []

    @classmethod
    @contextmanager
    def over(cls, model: nn.Module) -> Iterator[Weights]:
        """One that is told by each layer of a network when it runs."""
        weights = cls()
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, Linear):
                    stack.enter_context(module.register_forward_pre_hook(weights.enter, prepend=True))
                    stack.enter_context(module.register_forward_hook(weights.leave))
            yield weights

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """A layer starts, before any hook of its own."""
        self._inside.append((inputs, []))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A layer ends, after any hook of its own."""
        inputs, called = self._inside[-1]
        weight, bias, given = called[0] if len(called) == 1 else (None, None, None)
        if weight is not None and not weight.requires_grad and not _own(module, weight, bias):
            try:
                plain = _plain(module, weight, bias, _margins(inputs, given))
                found = plain.forward(*inputs)
            except (AttributeError, RuntimeError, TypeError):  # one that takes a list of tensors, say
                found = None
            if found is not None and found.shape == output.shape and torch.allclose(found, output, rtol=1e-3):
                self.plain[module] = plain
        self._inside.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and keep the weights."""
        if self._inside and getattr(function, "__name__", "") in LINEAR:
            given = args[0] if args else (kwargs or {}).get("input")
            self._inside[-1][1].append((*_weights(args, kwargs or {}), given))
        return function(*args, **(kwargs or {}))


def _margins(inputs: Any, given: Any) -> list[int]:
    """How many zeros a layer puts around its input, from the last axis on: as many behind as before, or one more."""
    if not inputs or not isinstance(given, Tensor):
        return []
    extra = [much - few for few, much in zip(inputs[0].shape[2:], given.shape[2:])]
    return [margin for each in reversed(extra) for margin in (each // 2, each - each // 2)]


def _plain(module: nn.Module, weight: Tensor, bias: Tensor | None, margins: list[int]) -> Any:
    """A layer that does with these weights what torch's own class of it does, and has no hooks and no parts.

    It is still an instance of the module's class, for composites that have a rule for that.
    """
    own = next(kind for kind in type(module).__mro__ if not hasattr(kind, "weight"))  # not torch.nn.utils.parametrize's
    torchs = next(kind for kind in own.__mro__ if kind.__module__.startswith("torch.nn.modules."))
    functions: dict[str, Any] = dict(inspect.getmembers(torchs, inspect.isfunction))
    if any(margins):
        plainly = functions["forward"]
        functions["forward"] = lambda self, x: plainly(self, functional.pad(x, margins))
    plain: Any = object.__new__(type(own.__name__, (own,), functions))
    plain.__dict__ = {name: value for name, value in vars(module).items() if name not in ("weight", "bias", "forward")}
    kept = {
        name: None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
        for name, value in (("weight", weight), ("bias", bias))
    }
    nothing: dict[str, Any] = {"_modules": {}, "_forward_hooks": OrderedDict(), "_forward_pre_hooks": OrderedDict()}
    plain.__dict__ |= {"_parameters": kept, **nothing}
    return plain


@contextmanager
def become(others: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Modules that are others for a while; in place, as their names and all that refers to them must stay."""
    before = {module: (type(module), vars(module)) for module in others}

    def put(module: nn.Module, kind: type, state: dict[str, Any]) -> None:
        object.__setattr__(module, "__class__", kind)
        object.__setattr__(module, "__dict__", state)

    for module, other in others.items():
        put(module, type(other), vars(other))
    try:
        yield
    finally:
        for module, (kind, state) in before.items():
            put(module, kind, state)


def require_rules(model: nn.Module, images: Tensor, lower: str | None, target: str, composite: Composite) -> None:
    """Check that all that a network does between two layers is covered by rules, or needs none.

    A composite has rules for modules, and :mod:`pure_nb.network.functions` for functions. Whatever a network does
    besides is left to the gradient, which is right for moving numbers about (:data:`MOVES`) and passable for a few
    other functions (:data:`SHARES`). It is wrong for all else.

    Parameters
    ----------
    model
        The network.
    images
        A batch of its inputs; one is enough.
    lower, target
        The layers L' and L; ``lower=None`` for the images themselves.
    composite
        The rules and canonizers.

    Raises
    ------
    LayerError
        If there is an operation without a rule; the message names it and its module.
    """
    canonized = Composite(canonizers=[one for one in composite.canonizers if not isinstance(one, Functions)])
    # At rest within the context, as canonizers bring weights of their own.
    with canonized.context(model), frozen_eval(model), _Watch.over(model, composite) as watch, watch:
        Cut.at(model, images, lower, target)


@dataclass
class _Place:
    """A module that runs at the moment, or its hooks.

    Attributes
    ----------
    name, kind
        Of the module.
    module
        The module, if there is a rule for it.
    aside
        Whether there is a rule for the module, which has it run outside of the graph, where functions have none.
    called
        Whether its rule has been used up: one stands for a single function of :data:`LINEAR`.
    """

    name: str
    kind: str
    module: nn.Module | None = None
    aside: bool = False
    called: bool = False

    @property
    def whole(self) -> bool:
        """Whether the rule stands for all that the module does."""
        return self.module is not None and not isinstance(self.module, Linear)

    def covers(self, function: str, args: Any, kwargs: Any) -> bool:
        """Whether the module's rule stands for a function that it calls."""
        if self.module is None or self.called or function not in LINEAR:
            return False
        self.called = _own(self.module, *_weights(args, kwargs))
        return self.called


class _Watch(TorchFunctionMode):
    """Looks at every function that a network calls on what depends on the lower layer, outside of modules with rules.

    What it does not see (an ``autograd.Function``, a function of TorchScript or of an extension) it knows by its
    result: a tensor of which it has not seen where it came from.

    Attributes
    ----------
    inside
        The modules that run at the moment, the innermost last.
    seen
        The nodes of the graph that it has seen made.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside = [_Place("", type(model).__name__)]
        self.seen: set[Any] = set()

    @classmethod
    @contextmanager
    def over(cls, model: nn.Module, composite: Composite) -> Iterator[_Watch]:
        """One that is told by each module of a network when it runs."""
        watch, context = cls(model), dict[str, Any]()
        with ExitStack() as stack:
            for name, module in model.named_modules():
                covered = composite.module_map(context, name, module) is not None
                kind = type(module).__name__
                # What the module's own hooks do is not what its rule is for, so there are two places.
                places = (name, kind, module if covered else None, covered), (name, f"hooks of {kind}", None, covered)
                for first, place in enumerate(places):
                    enter = partial(watch.enter, place)
                    stack.enter_context(module.register_forward_pre_hook(enter, prepend=bool(first)))
                    stack.enter_context(module.register_forward_hook(watch.leave, prepend=not first))
            yield watch

    def enter(self, place: tuple[Any, ...], module: nn.Module, inputs: Any) -> None:
        """A module starts."""
        self.check(inputs)
        self.inside.append(_Place(*place))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module ends."""
        if not self.inside[-1].whole:
            self.check(output)
        self.inside.pop()
        self.see(output)

    def check(self, values: Any) -> None:
        """Raise if a tensor comes from what was not seen."""
        for tensor in _tensors(values):
            if tensor.grad_fn is not None and tensor.grad_fn not in self.seen:
                self.refuse(tensor.grad_fn.name())

    def see(self, values: Any) -> None:
        """Remember where tensors come from."""
        self.seen |= {tensor.grad_fn for tensor in _tensors(values) if tensor.grad_fn is not None}

    def refuse(self, operation: str) -> None:
        """Say that there is no rule for an operation."""
        layer, kind = self.inside[-1].name, self.inside[-1].kind
        raise LayerError(
            f"layer-wise relevance propagation has no rule for the operation {operation!r} in {layer!r} ({kind}), so "
            f"relevance would be wrong below it; {ADVICE}"
        )

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and raise if it has no rule where it needs one."""
        kwargs, name = kwargs or {}, getattr(function, "__name__", str(function))
        whole = any(place.whole for place in self.inside)
        if not whole and name != "__get__":
            self.check((args, kwargs))
        covered = whole or name in MOVES | SHARES or any(place.covers(name, args, kwargs) for place in self.inside)
        covered |= has_rule(name) and not any(place.aside for place in self.inside)
        # A batch's own statistics, the sixth argument, make relevance of one image depend on the others.
        covered &= not (name == "batch_norm" and (kwargs.get("training") or True in args[5:6]))
        found = function(*args, **kwargs)
        if not covered and any(tensor.requires_grad for tensor in _tensors(found)):
            self.refuse(name)
        self.see(found)
        return found


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors among the arguments of a function, or in what it returned."""
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))
