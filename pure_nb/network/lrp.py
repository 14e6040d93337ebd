"""Layer-wise relevance propagation through zennit, made fit for many backward passes of one forward pass.

The rules are zennit's and unchanged. What is added is bookkeeping: zennit's hooks run each layer again with
modified weights in *every* backward pass, although the outcome depends on the layer's input alone. Here it is
kept until the next forward pass, so that the second and every further channel of an image costs a backward pass
and nothing else. Nor is the unmodified layer run backward, as zennit's hooks do before they put in the relevance.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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

from pure_nb._resting import frozen_eval, placed
from pure_nb.errors import LayerError, ModelError
from pure_nb.network.coverage import ADVICE, Weights, become, require_rules
from pure_nb.network.cut import Cut
from pure_nb.network.layers import activations


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

    Examples
    --------
    >>> type(default_composite(model)).__name__
    'EpsilonPlusFlat'
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
        Whether all that lies between the two layers must be covered; see
        :func:`pure_nb.network.coverage.require_rules`. A composite that was made for a network is best taken at its
        word.

    Raises
    ------
    LayerError
        See :func:`require_fit` and :func:`pure_nb.network.coverage.require_rules`.
    """
    with frozen_eval(model, images.device), Weights.over(model) as weights, weights:
        expected = Cut.at(model, images, lower, target).top.detach()
    with placed(model, images.device), become(weights.plain):
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
    with frozen_eval(model, images.device), torch.no_grad():
        try:
            with reusing(composite).context(model):
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


class TimmResNetCanonizer(AttributeCanonizer):  # type: ignore[misc]
    """Makes the sum at the end of timm's residual blocks a module, as zennit does for torchvision's."""

    def __init__(self) -> None:
        super().__init__(self._attributes)

    @classmethod
    def _attributes(cls, name: str, module: nn.Module) -> dict[str, Any] | None:
        timm: Any = sys.modules.get("timm.models.resnet")  # there is none of its blocks where it is not loaded
        if not timm or not isinstance(module, (timm.BasicBlock, timm.Bottleneck)):
            return None
        return {"forward": partial(_summed, module), "canonizer_sum": Sum()}


def _summed(block: Any, inputs: Tensor) -> Any:
    """A residual block's own forward, whose only sum, ``out += shortcut``, is the module that a rule is for."""
    with _Summed(block.canonizer_sum):
        return type(block).forward(block, inputs)


class _Summed(TorchFunctionMode):
    """Has sums in place computed by a module."""

    def __init__(self, total: nn.Module) -> None:
        super().__init__()
        self.total = total

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.add_:
            return self.total(torch.stack([args[1], args[0]], dim=-1))
        return function(*args, **(kwargs or {}))


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
