"""Layer-wise relevance propagation through zennit, once it is known to fit a network.

The rules are zennit's and unchanged; :mod:`pure_nb.network.rules` has them fit for many backward passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from zennit.canonizers import NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.composites import EpsilonPlusFlat
from zennit.core import BasicHook, Composite, Hook
from zennit.rules import Pass
from zennit.types import BatchNorm, Linear

from pure_nb._resting import frozen_eval, placed
from pure_nb.errors import LayerError, ModelError
from pure_nb.network.coverage import ADVICE, Weights, become, require_rules
from pure_nb.network.cut import Cut
from pure_nb.network.functions import Functions, is_activation
from pure_nb.network.layers import activations
from pure_nb.network.rules import Scaled, fitting, merged
from pure_nb.network.targets import INPUT


def default_composite(model: nn.Module) -> Composite:
    """The rules of PURE and CRP: epsilon for linear layers, z-plus for convolutions, flat for the first layer.

    Batch norms are merged into the layers before them. Sums, products, attention and norms have the rules of
    :mod:`pure_nb.network.functions`.

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
    composite = EpsilonPlusFlat(canonizers=[SequentialMergeBatchNorm(), Functions()])
    composite.module_map = partial(_rule_of, composite.module_map)
    return composite


def _rule_of(usual: Callable[..., Hook | None], context: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
    """The rule of zennit for a module; none for what it would pass relevance through and is no activation by itself."""
    rule = usual(context, name, module)
    if isinstance(module, (nn.MultiheadAttention, nn.Sigmoid, nn.Hardsigmoid)):
        return None
    return Pass() if rule is None and is_activation(module) else rule


_FITS: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()
"""Networks whose rules were found to fit: between which layers, and what they were made of then."""


def _state(model: nn.Module) -> list[Any]:
    """What changes as soon as a network does: its modules, their settings, forward and hooks, its weights."""
    tensors = [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers())]
    hooks = [
        [*map(id, part._forward_hooks.values()), 0, *map(id, part._forward_pre_hooks.values())]
        for part in model.modules()
    ]
    kinds = (bool, int, float, str, tuple, type(None))
    plain = [
        (name, repr(value))
        for part in model.modules()
        for name, value in vars(part).items()
        if isinstance(value, kinds) and name != "training"
    ]
    # By id, or what is known of a network would keep it alive.
    return [*tensors, *hooks, *plain, *((id(module), id(vars(module).get("forward"))) for module in model.modules())]


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
    # Looked at once: that takes as long as seven images, and most calls are for a few.
    asked = (lower, target, images.shape[1:], images.device, *map(type, composite.canonizers))
    usual = every and type(composite) is EpsilonPlusFlat  # another composite's rules are its own
    state = _state(model) if usual else []
    before, norms = _FITS.get(model, {}).get(asked, ([], {}))
    known = usual and before == state
    plain: dict[nn.Module, nn.Module] = {}
    if not known:
        with frozen_eval(model, images.device), Weights.over(model) as weights, weights:
            expected = Cut.at(model, images, lower, target).top.detach()
        plain, norms = weights.plain, _norms(model, images, target) if usual else {}
    if usual:
        merging = Merging([((layer,), norm) for norm, layer in norms.items()])
        composite = Composite(module_map=composite.module_map, canonizers=[merging, Functions()])
    with placed(model, images.device), become(plain):
        if not known:
            require_fit(model, images, target, composite, expected)
            if every:
                require_rules(model, images, lower, target, composite)
        with reusing(composite, lower, target).context(model):
            if not known and every:
                _require_same(model, images, lower, target, expected)
                if usual and not plain:
                    _FITS.setdefault(model, {})[asked] = state, norms
            yield


def _require_same(model: nn.Module, images: Tensor, lower: str | None, target: str, expected: Tensor) -> None:
    """Check that a network computes the same while relevance is kept, as its functions are others then."""
    with frozen_eval(model):
        found = Cut.at(model, images, lower, target).top.detach()
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        raise LayerError(
            f"with the rules of relevance {type(model).__name__} computes something else at {target!r}: a function may "
            f"work in place and what it returns not be used; {ADVICE}"
        )


MUCH = 1e-4
"""What is more than the ``eps`` of torch's batch norms, and changes a number noticeably."""


class Merging(NamedMergeBatchNorm):  # type: ignore[misc]
    """Merges batch norms into layers. zennit leaves a number of each, for its ``eps``.

    That is all but 1 with torch's own; with that of EfficientNets, 1e-3, many of them would change what is computed.
    """

    def register(self, linears: list[Any], batch_norm: Any) -> None:
        """Merge one."""
        super().register(linears, batch_norm)
        self.eps = batch_norm.eps
        batch_norm.eps = 0.0 if self.eps > MUCH else self.eps

    def remove(self) -> None:
        """Take it apart."""
        super().remove()
        self.batch_norm.eps = self.eps


def _norms(model: nn.Module, images: Tensor, target: str) -> dict[str, str]:
    """The batch norms of a network that take in what a layer puts out, and alone do so, with its name.

    By the order in which modules are registered, as zennit has it, those of a DenseNet stand behind the wrong layers.
    """
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors too, or another would have the same id
    found: dict[str, int] = {}
    uses = _Uses()

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        made[id(output)] = name, output
        uses.count[id(output)] = 0  # of another tensor, that is no more

    def enter(name: str, module: Any, inputs: Any) -> None:
        if inputs and id(inputs[0]) in made and module.weight is not None and module.running_var is not None:
            found[name] = id(inputs[0])

    with ExitStack() as stack, frozen_eval(model, images.device), torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Linear):
                stack.enter_context(module.register_forward_hook(partial(leave, name)))
            elif isinstance(module, BatchNorm):
                stack.enter_context(module.register_forward_pre_hook(partial(enter, name)))
        stack.enter_context(uses)
        activations(model, images, [target])
    runs = Counter(name for name, _ in made.values())  # a layer that runs twice can't be merged with both norms
    return {
        norm: made[tensor][0]
        for norm, tensor in found.items()
        if uses.count[tensor] == 1 and runs[made[tensor][0]] == 1
    }


class _Uses(TorchFunctionMode):
    """Counts how many functions a tensor is given to."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        made = any(isinstance(one, Tensor) for one in tree_leaves(found))
        if made and getattr(function, "__name__", "") != "__get__":
            self.count.update(id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        return found


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


def reusing(composite: Composite, *layers: str | None) -> Composite:
    """The same rules and canonizers, for one forward pass and many backward passes.

    Parameters
    ----------
    composite
        Any composite of zennit. Rules that are not a ``BasicHook`` are taken over as they are.
    layers
        Names of layers that relevance starts or stops at. What is left of a merged batch norm is passed by as one, but
        for those that hold such a layer, as timm's hold an activation: there its functions carry relevance.

    Returns
    -------
    Composite
        Gives the same relevance as the one it is made from.
    """
    asked = [layer.removeprefix(INPUT) for layer in layers if layer]

    def module_map(context: dict[str, Any], name: str, module: nn.Module) -> Any:
        rule = composite.module_map(context, name, module)
        if rule is None and isinstance(module, BatchNorm) and merged(module):
            return None if any(layer.startswith(f"{name}.") for layer in asked) else Scaled()
        return fitting(rule, module) if isinstance(rule, (Pass, BasicHook)) else rule

    return Composite(module_map=module_map, canonizers=composite.canonizers)
