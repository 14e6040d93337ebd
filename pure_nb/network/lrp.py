"""Layer-wise relevance propagation through zennit, made fit for many backward passes of one forward pass.

The rules are zennit's and unchanged. What is added is bookkeeping: zennit's hooks run each layer again with
modified weights in *every* backward pass, although the outcome depends on the layer's input alone. Here it is
kept until the next forward pass, so that the second and every further channel of an image costs a backward pass
and nothing else. Nor is the unmodified layer run backward, as zennit's hooks do before they put in the relevance.

A rule sees a layer's parameters, and runs the layer again with others in their place. That is wrong where the layer
computes its weights from something else, as with weight norm, so such layers become plain ones first (:func:`ruled`).
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from zennit import core
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer
from zennit.composites import EpsilonPlusFlat
from zennit.core import BasicHook, Composite, Hook, RemovableHandle, RemovableHandleList
from zennit.layer import Sum
from zennit.rules import Pass
from zennit.torchvision import ResNetCanonizer
from zennit.types import BatchNorm, Linear

from pure_nb.errors import LayerError, ModelError
from pure_nb.network.layers import activations, cut, placed, resting

ADVICE = "for circuits use rule='gradient', or bring a composite of zennit that is made for it as rule"

# fmt: off
MOVES = frozenset((
    "cat", "chunk", "clone", "concat", "concatenate", "contiguous", "expand", "flatten", "flip", "movedim",
    "moveaxis", "narrow", "pad", "permute", "ravel", "requires_grad_", "reshape", "roll", "select", "split",
    "squeeze", "stack", "swapaxes", "tensor_split", "tile", "to", "transpose", "type_as", "unbind",
    "unflatten", "unsqueeze", "view", "view_as", "__get__", "__getitem__",
))
# fmt: on
"""Functions that only move numbers about, so that a gradient takes relevance to where it belongs."""

SHARES = frozenset(
    ("adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "dropout", "max_pool2d", "mean", "relu", "relu_")
)
"""Functions whose gradient hands relevance on without adding to it: to the largest, to all alike, or as it is."""

LINEAR = frozenset(("linear", *(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))))
"""Functions that rules cover where they are called with the very parameters of the module."""


def default_composite(model: nn.Module) -> Composite:
    """The rules of PURE and CRP: epsilon for linear layers, z-plus for convolutions, flat for the first layer.

    Batch norms are merged into the layers before them, and the sums of residual blocks (torchvision's and timm's)
    become modules that share relevance out in proportion to what each side brought.

    Parameters
    ----------
    model
        The network the rules are for.

    Returns
    -------
    Composite
        zennit's ``EpsilonPlusFlat`` with the canonizers.
    """
    return EpsilonPlusFlat(canonizers=[CompositeCanonizer((ResNetCanonizer(), TimmResNetCanonizer()))])


@contextmanager
def ruled(
    model: nn.Module, images: Tensor, lower: str | None, target: str, composite: Composite, *, every: bool = True
) -> Iterator[None]:
    """A network with the rules in place, once it is known that they fit.

    Parameters
    ----------
    model
        Any network. Within the context, layers that compute their weights (weight norm, spectral norm and other
        parametrisations, pruning, weight standardisation) are plain layers with the weights so computed.
    images
        A batch of its inputs, on the device to compute on; one is enough.
    lower, target
        The layers L' and L; ``lower=None`` for the images themselves.
    composite
        The rules and canonizers.
    every
        Whether all that lies between the two layers must be covered; see :func:`require_rules`. A composite that was
        made for a network is best taken at its word.

    Raises
    ------
    LayerError
        See :func:`require_fit` and :func:`require_rules`.
    """
    with resting(model, images.device), _Weights.over(model) as weights, weights:
        expected = cut(model, images, lower, target)[1].detach()
    with placed(model, images.device), _become(weights.plain):
        require_fit(model, images, target, composite, expected)
        if every:
            require_rules(model, images, lower, target, composite)
        with reusing(composite).context(model):
            yield


def require_fit(model: nn.Module, images: Tensor, target: str, composite: Composite, expected: Tensor) -> None:
    """Check that a network computes the same with its rules and canonizers in place.

    Parameters
    ----------
    model, images
        Any network, and a batch of its inputs.
    target
        Name of the layer at which the outputs are compared.
    composite
        The rules and canonizers.
    expected
        What the layer puts out without them.

    Raises
    ------
    LayerError
        If it does not, or not at all: the canonizers were made for networks of another kind.
    """
    with resting(model, images.device), torch.no_grad():
        try:
            with _put_back(model), reusing(composite).context(model):
                found = activations(model, images, [target])[target]
        except (RuntimeError, TypeError, AttributeError, LayerError, ModelError) as problem:
            raise LayerError(
                f"the rules of layer-wise relevance propagation do not fit {type(model).__name__} ({problem}); {ADVICE}"
            ) from problem
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        raise LayerError(
            f"merging batch norms, as layer-wise relevance propagation needs it, changes what {type(model).__name__} "
            f"computes at {target!r}, in {str(found.dtype).removeprefix('torch.')}. If a batch norm follows the layer, "
            f"choose the batch norm; otherwise {ADVICE}"
        )


def _weights(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The weight and the bias among the arguments of one of :data:`LINEAR`."""
    weight, bias = (*args[1:3], None, None)[:2]
    return kwargs.get("weight", weight), kwargs.get("bias", bias)


def _own(module: nn.Module, weight: Any, bias: Any) -> bool:
    """Whether these are the module's parameters, which is what a rule changes."""
    return all(value is module._parameters.get(name) for name, value in (("weight", weight), ("bias", bias)))


class _Weights(TorchFunctionMode):
    """Sees with which weights convolutions and linear layers really run.

    Attributes
    ----------
    plain
        For each layer that runs with others than its parameters, one that does the same with its own. Layers that do
        more than that, or whose weights depend on the image, are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plain: dict[nn.Module, nn.Module] = {}
        self._inside: list[tuple[Any, list[tuple[Any, Any]]]] = []

    @classmethod
    @contextmanager
    def over(cls, model: nn.Module) -> Iterator[_Weights]:
        """One that is told by each layer of a network when it runs."""
        weights = cls()
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, Linear):
                    stack.callback(module.register_forward_pre_hook(weights.enter, prepend=True).remove)
                    stack.callback(module.register_forward_hook(weights.leave).remove)
            yield weights

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """A layer starts, before any hook of its own."""
        self._inside.append((inputs, []))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A layer ends, after any hook of its own."""
        inputs, called = self._inside[-1]
        weight, bias = called[0] if len(called) == 1 else (None, None)
        if weight is not None and not weight.requires_grad and not _own(module, weight, bias):
            plain = _plain(module, weight, bias)
            try:
                found = plain.forward(*inputs)
            except (RuntimeError, TypeError):
                found = None
            if found is not None and found.shape == output.shape and torch.allclose(found, output, rtol=1e-3):
                self.plain[module] = plain
        self._inside.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and keep the weights."""
        if self._inside and getattr(function, "__name__", "") in LINEAR:
            self._inside[-1][1].append(_weights(args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def _plain(module: nn.Module, weight: Tensor, bias: Tensor | None) -> Any:
    """A layer that does with these weights what torch's own class of it does, and has no hooks and no parts.

    It is still an instance of the module's class, for composites that have a rule for that.
    """
    own = next(kind for kind in type(module).__mro__ if not hasattr(kind, "weight"))  # not torch.nn.utils.parametrize's
    torchs = next(kind for kind in own.__mro__ if kind.__module__.startswith("torch.nn.modules."))
    plain: Any = object.__new__(type(own.__name__, (own,), dict(inspect.getmembers(torchs, inspect.isfunction))))
    plain.__dict__ = {name: value for name, value in vars(module).items() if name not in ("weight", "bias", "forward")}
    kept = {"weight": weight, "bias": bias}
    plain.__dict__ |= {
        "_parameters": {
            name: None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
            for name, value in kept.items()
        },
        "_modules": {},
        "_forward_hooks": OrderedDict(),
        "_forward_pre_hooks": OrderedDict(),
    }
    return plain


@contextmanager
def _become(others: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
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


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Undo what canonizers did to the weights if they fail half-way, which they then do not themselves."""
    modules = [(module, dict(module._parameters)) for module in model.modules()]
    tensors = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    except Exception:
        for module, parameters in modules:
            module._parameters.update(parameters)
        for tensor, data in tensors:
            tensor.data = data
        raise


def require_rules(model: nn.Module, images: Tensor, lower: str | None, target: str, composite: Composite) -> None:
    """Check that all that a network does between two layers is covered by rules, or needs none.

    A composite has rules for modules. Whatever a network does besides is left to the gradient, which is right for
    moving numbers about (:data:`MOVES`) and passable for a few other functions (:data:`SHARES`). It is wrong for the
    sum at the end of a residual block, which would count all relevance twice, for a product (squeeze and excitation,
    attention, layer scale), for layer norms, and for a batch norm that could not be merged.

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
    canonized = Composite(canonizers=composite.canonizers)
    # At rest within the context, as canonizers bring weights of their own.
    with canonized.context(model), resting(model), _Watch.over(model, composite) as watch, watch:
        cut(model, images, lower, target)


@dataclass
class _Place:
    """A module that runs at the moment, or its hooks.

    Attributes
    ----------
    name, kind
        Of the module.
    module
        The module, if there is a rule for it.
    called
        Whether its rule has been used up: one stands for a single function of :data:`LINEAR`.
    """

    name: str
    kind: str
    module: nn.Module | None = None
    called: bool = False

    @property
    def whole(self) -> bool:
        """Whether the rule stands for all that the module does."""
        return self.module is not None and not isinstance(self.module, (Linear, BatchNorm))

    def covers(self, function: str, args: Any, kwargs: Any) -> bool:
        """Whether the module's rule stands for a function that it calls."""
        if isinstance(self.module, BatchNorm):
            return function == "batch_norm"
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
                if isinstance(module, BatchNorm):  # merged into the layer before it, or not
                    covered = _is_identity(module)
                kind = type(module).__name__
                # What the module's own hooks do is not what its rule is for, so there are two places.
                for first, place in enumerate(((name, kind, module if covered else None), (name, f"hooks of {kind}"))):
                    enter = partial(watch.enter, place)
                    stack.callback(module.register_forward_pre_hook(enter, prepend=bool(first)).remove)
                    stack.callback(module.register_forward_hook(watch.leave, prepend=not first).remove)
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
        found = function(*args, **kwargs)
        if not covered and any(tensor.requires_grad for tensor in _tensors(found)):
            self.refuse(name)
        self.see(found)
        return found


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors among the arguments of a function, or in what it returned."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors([*values.values()])


def _is_identity(norm: Any) -> bool:
    """Whether a batch norm changes nothing in evaluation, as one does that was merged into the layer before it."""
    if norm.running_var is None:
        return False
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    ones = torch.ones_like(scale)
    return torch.allclose(scale, ones, atol=1e-2) and torch.allclose(shift, ones - 1, atol=1e-2)


class TimmResNetCanonizer(AttributeCanonizer):  # type: ignore[misc]
    """Makes the sum at the end of timm's residual blocks a module, as zennit does for torchvision's."""

    def __init__(self) -> None:
        super().__init__(self._attributes)

    @classmethod
    def _attributes(cls, name: str, module: nn.Module) -> dict[str, Any] | None:
        timm: Any = sys.modules.get("timm.models.resnet")  # there is none of its blocks where it is not loaded
        if timm and isinstance(module, timm.BasicBlock):
            return {"forward": _basic_forward.__get__(module), "canonizer_sum": Sum()}
        if timm and isinstance(module, timm.Bottleneck):
            return {"forward": _bottleneck_forward.__get__(module), "canonizer_sum": Sum()}
        return None


def _joined(block: Any, inputs: Tensor, out: Tensor) -> Tensor:
    """The end of a residual block of timm: attention, drop path, shortcut, sum, activation."""
    for optional in (block.se, block.drop_path):
        if optional is not None:
            out = optional(out)
    shortcut = inputs if block.downsample is None else block.downsample(inputs)
    joined: Tensor = block.canonizer_sum(torch.stack([shortcut, out], dim=-1))
    return block.act3(joined) if hasattr(block, "act3") else block.act2(joined)


def _basic_forward(self: Any, x: Tensor) -> Tensor:
    out = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
    return _joined(self, x, self.bn2(self.conv2(out)))


def _bottleneck_forward(self: Any, x: Tensor) -> Tensor:
    out = self.act1(self.bn1(self.conv1(x)))
    out = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(out)))))
    return _joined(self, x, self.bn3(self.conv3(out)))


def reusing(composite: Composite) -> Composite:
    """The same rules and canonizers, for one forward pass and many backward passes.

    Parameters
    ----------
    composite
        Any composite of zennit. Rules that are not a ``BasicHook`` are taken over as they are.

    Returns
    -------
    Composite
        Gives the same relevance as the one it is made from.
    """

    def module_map(context: dict[str, Any], name: str, module: nn.Module) -> Any:
        rule = composite.module_map(context, name, module)
        return _Passing() if type(rule) is Pass else _Reusing(rule) if isinstance(rule, BasicHook) else rule

    return Composite(module_map=module_map, canonizers=composite.canonizers)


class _Detour(torch.autograd.Function):
    """Hands a layer's output on as if it came from its input by a rule: backwards the rule is run, not the layer."""

    @staticmethod
    def forward(ctx: Any, entry: Tensor, output: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.rule = rule
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rule(relevance[0]), None, None


def _with_modified(rule: BasicHook, modify: Any, module: nn.Module) -> AbstractContextManager[nn.Module]:
    """A layer with the parameters that one of a rule's modifiers makes of its own.

    As of 0.5 zennit's modifiers know which parameters they are for; before, the rule does.
    """
    if hasattr(core, "ParamMod"):
        return core.ParamMod.ensure(modify)(module)
    return core.mod_params(module, modify, param_keys=rule.param_keys, require_params=rule.require_params)


class _Passing(Hook):  # type: ignore[misc]
    """The rule that passes relevance on as it is; zennit's own runs the layer backward and drops the outcome."""

    def copy(self) -> _Passing:
        return type(self)()

    def register(self, module: nn.Module) -> Any:
        # As plain hooks of torch, since what zennit hands to its own is not the same in all its versions.
        hooks = (module.register_forward_pre_hook(self.pre_forward), module.register_forward_hook(self.post_forward))
        return RemovableHandleList([RemovableHandle(self), *hooks])

    def pre_forward(self, module: nn.Module, input: tuple[Any, ...]) -> tuple[Any, ...]:
        self.stored_tensors.clear()
        if input[0].requires_grad:
            self.stored_tensors["entry"] = input[0]
        hidden = input[0].detach()
        return (hidden.clone() if getattr(module, "inplace", False) else hidden, *input[1:])

    def post_forward(self, module: nn.Module, input: tuple[Any, ...], output: Tensor) -> Tensor:
        entry = self.stored_tensors.pop("entry", None)
        if not isinstance(output, Tensor):
            raise LayerError(f"{type(module).__name__} puts out a {type(output).__name__}, not one tensor")
        if entry is None:
            return output
        if output._is_view():  # as of AvgPool1d, which is pooling in two dimensions: no graph could start there
            output = output.clone()
        # Each run has an input of its own, as the same layer may run several times. It is detached, since that of a
        # layer that works in place becomes the output, and what holds its own graph is never freed.
        kept = {"input": input[0].detach()}
        detoured: Tensor = _Detour.apply(entry, output, partial(self.relevance, module, kept))
        return detoured

    def relevance(self, module: nn.Module, kept: dict[str, Any], above: Tensor) -> Tensor:
        """The relevance of the layer's input, given its output's, and what is kept of this run of the layer."""
        return above


class _Reusing(_Passing):
    """A rule that keeps what it computed from a layer's input until the layer gets another.

    That includes the factors that relevance is multiplied by before it goes back through the layer: rules are linear
    in the relevance, so they are what the rule makes of ones.
    """

    def __init__(self, rule: BasicHook) -> None:
        super().__init__()
        self.rule = rule

    def copy(self) -> _Reusing:
        return _Reusing(self.rule)

    def relevance(self, module: nn.Module, kept: dict[str, Any], above: Tensor) -> Tensor:
        if "modified" not in kept:
            kept["modified"] = self._modified(module, kept.pop("input"))
        inputs, outputs, factors, live = kept["modified"]
        flows = torch.autograd.grad(
            [outputs[i] for i in live],
            [inputs[i] for i in live],
            grad_outputs=[above * factors[i] for i in live],
            retain_graph=True,
        )
        nothing = above.new_zeros(())
        gradients = [flows[live.index(i)] if i in live else nothing for i in range(len(inputs))]
        relevance: Tensor = self.rule.reducer(
            [x.detach() if i in live else nothing for i, x in enumerate(inputs)], gradients
        )
        return relevance

    def _modified(
        self, module: nn.Module, original: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]:
        """The layer run with each pair of modified inputs and weights, the factors, and which pairs carry relevance.

        An input that is zero everywhere carries none: after a ReLU that is the negative half of the z-plus rule,
        which would cost as much as the positive one. All its rows are the same, so one is run for all.
        """
        inputs, outputs, live = [], [], []
        modifiers = zip(self.rule.input_modifiers, self.rule.param_modifiers, self.rule.output_modifiers)
        for i, (modify_input, modify_params, modify_output) in enumerate(modifiers):
            input = modify_input(original).requires_grad_()
            alive = bool(input.detach().any())
            with _with_modified(self.rule, modify_params, module) as modified, torch.enable_grad():
                output = modify_output(modified.forward(input if alive else input[:1]))
            inputs.append(input)
            outputs.append(output if alive else output.expand(len(input), *output.shape[1:]))
            live += [i] if alive else []
        with torch.no_grad():
            factors = self.rule.gradient_mapper(torch.ones_like(outputs[0]), outputs)
        if isinstance(factors, Tensor):  # zennit's rules with one pair of modifiers return it bare
            factors = (factors,)
        return inputs, outputs, list(factors), live or [0]
