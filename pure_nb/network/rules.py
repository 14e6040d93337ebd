"""zennit's rules for layer-wise relevance propagation, for one forward pass and many backward passes.

zennit's hooks run each layer again with modified weights in *every* backward pass, although the outcome depends on the
layer's input alone. Here it is kept until the next forward pass. Nor is the unmodified layer run backward, as zennit's
hooks do before they put in the relevance.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from zennit import core
from zennit.core import BasicHook, Hook, RemovableHandle, RemovableHandleList, stabilize
from zennit.rules import Flat, Pass, ZPlus
from zennit.types import ConvolutionStandard

from pure_nb.errors import LayerError

EPSILON = 1e-6
"""What zennit's rules add to what they divide by, unless they were made with another stabiliser."""

Modified = tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]
"""A layer's modified inputs, what it puts out for each, the factors of relevance, and which of them carry any."""


def fitting(rule: Pass | BasicHook, module: nn.Module) -> Hook:
    """A hook that does as a rule of zennit, by what is known of the rule and the module it is for.

    Parameters
    ----------
    rule
        Any rule.
    module
        What it is for.
    """
    if type(rule) is Pass:
        return Passing()
    if type(rule) in (Flat, ZPlus) and _stabilises_as_usual(rule):
        if type(rule) is Flat and isinstance(module, ConvolutionStandard) and module.groups == 1:
            return _Even(rule)
        if type(rule) is ZPlus and isinstance(module, ConvolutionStandard):
            return _Positive(rule)
    return Reusing(rule)


def _stabilises_as_usual(rule: BasicHook) -> bool:
    """Whether a rule divides by what zennit's do of themselves; as of 0.5 they can be told otherwise."""
    outputs = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    factors = rule.gradient_mapper(torch.ones_like(outputs), [outputs])
    return torch.equal(factors if isinstance(factors, Tensor) else factors[0], 1 / stabilize(outputs, EPSILON))


class _Detour(torch.autograd.Function):
    """Hands a layer's output on as if it came from its inputs by a rule: backwards the rule is run, not the layer."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, rule: Callable[[Tensor], Any], *entries: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        below = ctx.rule(relevance[0])
        return None, None, *(below if isinstance(below, tuple) else (below,))


def _with_modified(rule: BasicHook, modify: Any, module: nn.Module) -> AbstractContextManager[nn.Module]:
    """A layer with the parameters that one of a rule's modifiers makes of its own.

    As of 0.5 zennit's modifiers know which parameters they are for; before, the rule does.
    """
    if hasattr(core, "ParamMod"):
        return core.ParamMod.ensure(modify)(module)
    return core.mod_params(module, modify, param_keys=rule.param_keys, require_params=rule.require_params)


class Passing(Hook):  # type: ignore[misc]
    """The rule that passes relevance on as it is; zennit's own runs the layer backward and drops the outcome."""

    entries = 1
    """Inputs that relevance goes to."""

    def copy(self) -> Passing:
        """One for another module."""
        return type(self)()

    def register(self, module: nn.Module) -> Any:
        """Have it called; the handle takes it back."""
        # As plain hooks of torch, since what zennit hands to its own is not the same in all its versions.
        hooks = (module.register_forward_pre_hook(self.pre_forward), module.register_forward_hook(self.post_forward))
        return RemovableHandleList([RemovableHandle(self), *hooks])

    def pre_forward(self, module: nn.Module, input: tuple[Any, ...]) -> tuple[Any, ...]:
        """The module is given something: it runs outside of the graph."""
        self.stored_tensors.clear()
        entries = input[: self.entries]
        if not any(entry.requires_grad for entry in entries):
            return input
        self.stored_tensors["entries"] = entries
        hidden = [entry.detach() for entry in entries]
        if getattr(module, "inplace", False):
            hidden[0] = hidden[0].clone()
        return (*hidden, *input[self.entries :])

    def post_forward(self, module: nn.Module, input: tuple[Any, ...], output: Tensor) -> Tensor:
        """The module puts something out: the graph goes on there."""
        entries = self.stored_tensors.pop("entries", None)
        if not isinstance(output, Tensor):
            raise LayerError(f"{type(module).__name__} puts out a {type(output).__name__}, not one tensor")
        if entries is None:
            return output
        if output._is_view():  # as of AvgPool1d, which is pooling in two dimensions: no graph could start there
            output = output.clone()
        # Each run has inputs of its own, as the same layer may run several times. They are detached, since that of a
        # layer that works in place becomes the output, and what holds its own graph is never freed.
        kept = {"inputs": tuple(entry.detach() for entry in input[: self.entries])}
        detoured: Tensor = _Detour.apply(output, partial(self.relevance, module, kept), *entries)
        return detoured

    def relevance(self, module: nn.Module, kept: dict[str, Any], above: Tensor) -> Any:
        """The relevance of the layer's inputs, given its output's, and what is kept of this run of the layer."""
        return above


def merged(norm: Any) -> bool:
    """Whether a batch norm was merged into the layer before it: what is left of it is a number, all but 1."""
    if norm.running_var is None or norm.weight is None:
        return False
    ones, zeros = (norm.weight, norm.running_var), (norm.bias, norm.running_mean)
    return all((one == 1).all() for one in ones) and not any(zero.any() for zero in zeros)


class Scaled(Passing):
    """What zennit leaves of a batch norm that it merges: a number, for its ``eps``.

    Where the layer before it has factors for relevance, these take it up, and relevance passes the norm as it is.
    """

    def post_forward(self, module: Any, input: tuple[Any, ...], output: Tensor) -> Tensor:
        """The norm puts something out: who takes its number up is known."""
        entries = self.stored_tensors.get("entries")
        output = super().post_forward(module, input, output)
        if entries is not None:
            rules: list[Any] = [getattr(tensor.grad_fn, "rule", None) for tensor in (*entries, output)]
            before = rules[0] and isinstance(rules[0].func.__self__, Reusing)
            rules[not before].args[1]["scale"] = (1 + module.eps) ** -0.5
        return output

    def relevance(self, module: nn.Module, kept: dict[str, Any], above: Tensor) -> Tensor:
        """As it is, or times the number."""
        return above * kept["scale"] if "scale" in kept else above


class Reusing(Passing):
    """A rule that keeps what it computed from a layer's input until the layer gets another.

    That includes the factors that relevance is multiplied by before it goes back through the layer: rules are linear
    in the relevance, so they are what the rule makes of ones.
    """

    def __init__(self, rule: BasicHook) -> None:
        super().__init__()
        self.rule = rule

    def copy(self) -> Reusing:
        """One for another module."""
        return type(self)(self.rule)

    def relevance(self, module: nn.Module, kept: dict[str, Any], above: Tensor) -> Tensor:
        """Once through the layer, as it was modified for this run."""
        if "modified" not in kept:
            inputs, outputs, factors, live = self.modified(module, *kept.pop("inputs"))
            factors = [factors[i] * kept["scale"] if "scale" in kept else factors[i] for i in live]
            kept["modified"] = inputs, [outputs[i] for i in live], factors, live
        inputs, outputs, factors, live = kept["modified"]
        flows = torch.autograd.grad(
            outputs, [inputs[i] for i in live], grad_outputs=[above * factor for factor in factors], retain_graph=True
        )
        return self.reduced(inputs, flows, live, above)

    def reduced(self, inputs: list[Tensor], flows: tuple[Tensor, ...], live: list[int], above: Tensor) -> Tensor:
        """The relevance of the input, by what came back to each of the modified ones that are live."""
        nothing = above.new_zeros(())
        gradients = [flows[live.index(i)] if i in live else nothing for i in range(len(inputs))]
        relevance: Tensor = self.rule.reducer(
            [x.detach() if i in live else nothing for i, x in enumerate(inputs)], gradients
        )
        return relevance

    def modified(self, module: nn.Module, original: Tensor) -> Modified:
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
                outputs.append(output if alive else output.expand(len(input), *output.shape[1:]))
            inputs.append(input)
            live += [i] if alive else []
        with torch.no_grad():
            factors = self.rule.gradient_mapper(torch.ones_like(outputs[0]), outputs)
        if isinstance(factors, Tensor):  # zennit's rules with one pair of modifiers return it bare
            factors = (factors,) * len(outputs)
        # In half precision the inverse of what is next to nothing is infinite, and times no relevance no number.
        return inputs, outputs, [torch.nan_to_num(one) for one in factors], live or [0]


class _Positive(Reusing):
    """zennit's ``ZPlus`` for convolutions, in steps that work in place and without those for a half that is empty."""

    def modified(self, module: nn.Module, original: Tensor) -> Modified:
        live = [0, 1] if original.min() < 0 else [0]
        inputs, outputs = [], []
        for i in live:
            input = (self.rule.input_modifiers[i](original) if len(live) > 1 else original).requires_grad_()
            with _with_modified(self.rule, self.rule.param_modifiers[i], module) as modified, torch.enable_grad():
                outputs.append(modified.forward(input))
            inputs.append(input)
        # Nothing of it is below zero, so that zennit's stabiliser is the same number everywhere.
        factor = torch.stack(outputs).detach().sum(dim=0) if len(live) > 1 else outputs[0].detach()
        return inputs, outputs, [(factor + EPSILON).reciprocal_()] * len(live), live

    def reduced(self, inputs: list[Tensor], flows: tuple[Tensor, ...], live: list[int], above: Tensor) -> Tensor:
        halves = [flow.mul_(inputs[i].detach()) for i, flow in zip(live, flows)]
        return halves[0].add_(halves[1]) if len(halves) > 1 else halves[0]


class _Even(Reusing):
    """zennit's ``Flat`` for convolutions: all weights are alike, so one channel stands for each of them."""

    def modified(self, module: nn.Module, original: Tensor) -> Modified:
        def one(weights: Tensor, name: str) -> Tensor:
            return weights.new_zeros(1) if name == "bias" else torch.ones_like(weights[:1, :1])

        ones = torch.ones_like(original[:, :1]).requires_grad_()
        with _with_modified(self.rule, one, module) as modified, torch.enable_grad():
            seen = modified.forward(ones)
        return [ones], [seen], [1 / stabilize(seen.detach() * original.shape[1])], [0]

    def relevance(self, module: nn.Module, kept: dict[str, Any], above: Tensor) -> Tensor:
        if "channels" not in kept:
            kept["channels"] = kept["inputs"][0].shape[1]
        found = super().relevance(module, kept, above.sum(dim=1, keepdim=True))
        return found.expand(-1, kept["channels"], *found.shape[2:])
