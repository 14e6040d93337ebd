"""Layer-wise relevance propagation through zennit, made fit for many backward passes of one forward pass.

The rules are zennit's and unchanged. What is added is bookkeeping: zennit's hooks run each layer again with
modified weights in *every* backward pass, although the outcome depends on the layer's input alone. Here it is
kept until the next forward pass, so that the second and every further channel of an image costs a backward pass
and nothing else. Nor is the unmodified layer run backward, as zennit's hooks do before they put in the relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import timm.models.resnet as timm_resnet
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer
from zennit.composites import EpsilonPlusFlat
from zennit.core import BasicHook, Composite, Hook, mod_params
from zennit.layer import Sum
from zennit.rules import Pass
from zennit.torchvision import ResNetCanonizer
from zennit.types import BatchNorm

from pure_nb.errors import LayerError
from pure_nb.layers import activations, cut, placed, resting

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


def require_fit(model: nn.Module, images: Tensor, target: str, composite: Composite) -> None:
    """Check that a network computes the same with its rules and canonizers in place.

    Parameters
    ----------
    model, images
        Any network, and a batch of its inputs.
    target
        Name of the layer at which the outputs are compared.
    composite
        The rules and canonizers.

    Raises
    ------
    LayerError
        If it does not, or not at all: the canonizers were made for networks of another kind.
    """
    with resting(model, images.device), torch.no_grad():
        expected = activations(model, images, [target])[target]
        try:
            with _put_back(model), reusing(composite).context(model):
                found = activations(model, images, [target])[target]
        except (RuntimeError, TypeError, AttributeError, LayerError) as problem:
            raise LayerError(
                f"the rules of layer-wise relevance propagation do not fit {type(model).__name__} ({problem}); {ADVICE}"
            ) from problem
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        raise LayerError(
            f"merging batch norms, as layer-wise relevance propagation needs it, changes what {type(model).__name__} "
            f"computes at {target!r}, in {str(found.dtype).removeprefix('torch.')}. If a batch norm follows the layer, "
            f"choose the batch norm; otherwise {ADVICE}"
        )


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
    rest = placed(model, images.device), canonized.context(model), resting(model)
    with rest[0], rest[1], rest[2], _Watch.over(model, composite) as watch, watch:
        cut(model, images, lower, target)


class _Watch(TorchFunctionMode):
    """Looks at every function that a network calls on what depends on the lower layer, outside of modules with rules.

    Attributes
    ----------
    inside
        The modules that run at the moment, the innermost last: name, class, and whether it is covered by a rule.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[tuple[str, str, bool]] = []

    @classmethod
    @contextmanager
    def over(cls, model: nn.Module, composite: Composite) -> Iterator[_Watch]:
        """One that is told by each module of a network when it runs."""
        watch, context = cls(), dict[str, Any]()
        with ExitStack() as stack:
            for name, module in model.named_modules():
                covered = composite.module_map(context, name, module) is not None
                if isinstance(module, BatchNorm):  # merged into the layer before it, or not
                    covered = _is_identity(module)
                enter = partial(watch.enter, (name, type(module).__name__, covered))
                stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(watch.leave).remove)
            yield watch

    def enter(self, place: tuple[str, str, bool], module: nn.Module, inputs: Any) -> None:
        """A module starts."""
        self.inside.append(place)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module ends."""
        self.inside.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and raise if it has no rule where it needs one."""
        found = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", str(function))
        covered = any(place[2] for place in self.inside)
        if not covered and name not in MOVES | SHARES and _requires_grad(found):
            layer, kind, _ = self.inside[-1]
            raise LayerError(
                f"layer-wise relevance propagation has no rule for the operation {name!r} in {layer!r} ({kind}), so "
                f"relevance would be wrong below it; {ADVICE}"
            )
        return found


def _requires_grad(found: Any) -> bool:
    """Whether what a function returned depends on the lower layer: a tensor, or several."""
    if isinstance(found, (tuple, list)):
        return any(map(_requires_grad, found))
    return isinstance(found, Tensor) and found.requires_grad


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
        if isinstance(module, timm_resnet.BasicBlock):
            return {"forward": _basic_forward.__get__(module), "canonizer_sum": Sum()}
        if isinstance(module, timm_resnet.Bottleneck):
            return {"forward": _bottleneck_forward.__get__(module), "canonizer_sum": Sum()}
        return None


def _joined(block: Any, inputs: Tensor, out: Tensor) -> Tensor:
    """The end of a residual block of timm: attention, drop path, shortcut, sum, activation."""
    for optional in (block.se, block.drop_path):
        if optional is not None:
            out = optional(out)
    shortcut = inputs if block.downsample is None else block.downsample(inputs)
    joined: Tensor = block.canonizer_sum(torch.stack([shortcut, out], dim=-1))
    return block.act2(joined) if isinstance(block, timm_resnet.BasicBlock) else block.act3(joined)


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


class _Passing(Hook):  # type: ignore[misc]
    """The rule that passes relevance on as it is; zennit's own runs the layer backward and drops the outcome."""

    def copy(self) -> _Passing:
        return type(self)()

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
        self.stored_tensors["input"] = input[0]
        if output._is_view():  # as of AvgPool1d, which is pooling in two dimensions: no graph could start there
            output = output.clone()
        detoured: Tensor = _Detour.apply(entry, output, partial(self.relevance, module))
        return detoured

    def relevance(self, module: nn.Module, above: Tensor) -> Tensor:
        """The relevance of the layer's input, given its output's."""
        return above


class _Reusing(_Passing, BasicHook):  # type: ignore[misc]
    """A rule that keeps what it computed from a layer's input until the layer gets another.

    That includes the factors that relevance is multiplied by before it goes back through the layer: rules are linear
    in the relevance, so they are what the rule makes of ones.
    """

    def __init__(self, rule: BasicHook) -> None:
        BasicHook.__init__(
            self,
            input_modifiers=rule.input_modifiers,
            param_modifiers=rule.param_modifiers,
            output_modifiers=rule.output_modifiers,
            gradient_mapper=rule.gradient_mapper,
            reducer=rule.reducer,
            param_keys=rule.param_keys,
            require_params=rule.require_params,
        )

    def copy(self) -> _Reusing:
        return _Reusing(self)

    def forward(self, module: nn.Module, input: Any, output: Any) -> None:
        """Nothing is left to do."""

    def relevance(self, module: nn.Module, above: Tensor) -> Tensor:
        if "modified" not in self.stored_tensors:
            self.stored_tensors["modified"] = self._modified(module)
        inputs, outputs, factors, live = self.stored_tensors["modified"]
        flows = torch.autograd.grad(
            [outputs[i] for i in live],
            [inputs[i] for i in live],
            grad_outputs=[above * factors[i] for i in live],
            retain_graph=True,
        )
        nothing = above.new_zeros(())
        gradients = [flows[live.index(i)] if i in live else nothing for i in range(len(inputs))]
        relevance: Tensor = self.reducer(
            [x.detach() if i in live else nothing for i, x in enumerate(inputs)], gradients
        )
        return relevance

    def _modified(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]:
        """The layer run with each pair of modified inputs and weights, the factors, and which pairs carry relevance.

        An input that is zero everywhere carries none: after a ReLU that is the negative half of the z-plus rule,
        which would cost as much as the positive one. All its rows are the same, so one is run for all.
        """
        original = self.stored_tensors.pop("input")
        inputs, outputs, live = [], [], []
        modifiers = zip(self.input_modifiers, self.param_modifiers, self.output_modifiers)
        for i, (modify_input, modify_params, modify_output) in enumerate(modifiers):
            input = modify_input(original).requires_grad_()
            alive = bool(input.detach().any())
            params = mod_params(module, modify_params, param_keys=self.param_keys, require_params=self.require_params)
            with params as modified, torch.enable_grad():
                output = modify_output(modified.forward(input if alive else input[:1]))
            inputs.append(input)
            outputs.append(output if alive else output.expand(len(input), *output.shape[1:]))
            live += [i] if alive else []
        with torch.no_grad():
            factors = self.gradient_mapper(torch.ones_like(outputs[0]), outputs)
        if isinstance(factors, Tensor):  # zennit's rules with one pair of modifiers return it bare
            factors = (factors,)
        return inputs, outputs, list(factors), live or [0]
