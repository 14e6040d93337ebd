"""Rules of layer-wise relevance propagation for functions: sums, products, attention, norms, wherever they are called.

zennit has rules for modules. Attention, gates, layer scale and the sums of residual blocks are no modules, and each
library writes them in its own way, but all call the same few functions of torch. So a network runs with a mode in which
these carry relevance, and one table serves timm, torchvision, open_clip and any code of one's own; canonizers would be
needed for each class of each of them. Within a module that has a rule of zennit nothing depends on what came before
(its hook runs it outside of the graph), so there the mode does nothing, and the two do not get into each other's way.

The rules are those of AttnLRP (Achtibat et al. 2024, *AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
Transformers*, ICML), in the form that Arras et al. 2025 and the authors' ``lxt.efficient`` gave them: a function is
replaced by one of the same value whose input times gradient *is* the rule. zennit's hooks hand on relevance, and not
gradients; so what comes in is divided by the output first, and what goes out multiplied by the input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from zennit.canonizers import Canonizer
from zennit.core import stabilize

from pure_nb.network.rules import EPSILON

CONVOLUTIONS = tuple(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))

# fmt: off
PASSES = frozenset((
    "abs", "celu", "clamp", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "neg", "normalize", "pow",
    "prelu", "relu", "relu6", "rms_norm", "selu", "silu", "softsign", "sqrt", "square", "tanh", "tanhshrink",
))
"""Functions of single numbers, mostly 0 at 0, and norms that only scale: relevance passes as it is (their eq. 9)."""

PRODUCTS = frozenset((
    "bmm", "einsum", "linear", "matmul", "mm", "mul", "multiply", "tensordot", *CONVOLUTIONS,
))
"""Products: each factor that depends on the lower layer has the same share (their eq. 7 and 13)."""

DIVISORS = frozenset(("reciprocal", "rsqrt", "__rdiv__"))
"""What is divided by has no relevance, as in norms (their proposition 3.4)."""

PLAIN = frozenset((
    "adaptive_avg_pool2d", "add", "avg_pool2d", "batch_norm", "fold", "hardsigmoid", "interpolate", "mean", "norm",
    "__rsub__", "sigmoid", "softmax", "std", "sub", "sum",
))
"""Input times gradient, as it is: sums by what each brought, and the Taylor expansion of softmax (their eq. 8). A
sigmoid is the softmax of a number and 0, so gates have the same rule."""
# fmt: on


class _Divided(torch.autograd.Function):
    """A number as it is, of whose gradient a part goes on."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, parts: int) -> Tensor:
        ctx.parts = parts
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> Any:
        return above[0] / ctx.parts, None


def divided(value: Any, parts: int) -> Any:
    """What a function is given, with that part of its relevance."""
    return _Divided.apply(value, parts) if isinstance(value, Tensor) and parts > 1 else value


def _product(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    factors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor) and value.requires_grad]
    return divided(function(*args, **kwargs), len(factors))


def _added(function: Any, value: Any, one: Any, other: Any, **kwargs: Any) -> Any:
    """A sum with a product."""
    parts = sum(isinstance(factor, Tensor) and factor.requires_grad for factor in (one, other))
    return function(value, divided(one, parts), divided(other, parts), **kwargs)


def _gated(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    return divided(function(*args, **kwargs), 2)


def _quotient(function: Any, value: Any, by: Any, *args: Any, **kwargs: Any) -> Any:
    return function(value, by.detach() if isinstance(by, Tensor) else by, *args, **kwargs)


def _attention(function: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Two products, one in the other: half for the values, and half of the weights' half for queries and for keys.

    Of factors that do not depend on the lower layer, as a query that was learned, the others have the share. The
    softmax between them is its own gradient, and so are the linear layers around them, which divide by nothing.
    """
    scores = query.requires_grad + key.requires_grad
    both = (scores > 0) + value.requires_grad
    return function(divided(query, both * scores), divided(key, both * scores), divided(value, both), *args, **kwargs)


def _centred(value: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Values less their mean, by a deviation that is taken for a constant."""
    wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value  # or its squares are infinite
    centred = wide - wide.mean(axes, keepdim=True)
    return (centred * (centred.detach().square().mean(axes, keepdim=True) + eps).rsqrt()).to(value.dtype)


def _affine(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    value = value if weight is None else value * weight
    return value if bias is None else value + bias


def _layer_norm(
    _: Any, value: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    return _affine(_centred(value, tuple(range(-len(shape), 0)), eps), weight, bias)


def _group_norm(
    _: Any, value: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    flat = _centred(value.reshape(len(value), groups, -1), (2,), eps).reshape(value.shape)
    axes = (-1, *[1] * (value.ndim - 2))
    return _affine(flat, *(None if one is None else one.reshape(axes) for one in (weight, bias)))


SURROGATES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(PLAIN, lambda function, *args, **kwargs: function(*args, **kwargs)),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(("div", "divide", "true_divide"), _quotient),
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention_forward"), _attention),
    **dict.fromkeys(("addbmm", "addcmul", "addmm", "baddbmm"), _added),
    "glu": _gated,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
}
"""By a function's name one of the same value, whose input times gradient is the rule."""


def has_rule(function: str) -> bool:
    """Whether a function of that name carries relevance; one that works in place is run as the one that does not."""
    return _name(function) in SURROGATES.keys() | PASSES | DIVISORS


def _name(function: str) -> str:
    return function if function.startswith("__") else function.removesuffix("_")


class _Carried(torch.autograd.Function):
    """A value that was computed outside of the graph, with a rule by which relevance goes back to what it was of."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, below: Callable[[Tensor], Any], *entries: Tensor) -> Tensor:
        ctx.below = below
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> Any:
        return None, None, *ctx.below(above[0])


class _Mode(TorchFunctionMode):
    """Has functions carry relevance where they are called on what depends on the lower layer."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, _name(getattr(function, "__name__", ""))
        if not has_rule(name) or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        values, tree = tree_flatten((args, kwargs))
        places = [i for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
        if not places:
            return function(*args, **kwargs)
        if name != getattr(function, "__name__", ""):  # in place, which would change what rules have kept
            function = getattr(Tensor, name, None) or getattr(functional, name)
        entries = [values[i] for i in places]
        if name == "softmax":  # minus infinity stands for what is masked, and times its gradient, 0, would be no number
            entries[0] = entries[0].clamp(min=torch.finfo(entries[0].dtype).min)

        def run(surrogate: Callable[..., Any], *hidden: Tensor) -> Any:
            inner = values.copy()
            for i, value in zip(places, hidden):
                inner[i] = value
            args, kwargs = tree_unflatten(inner, tree)
            return surrogate(*args, **kwargs)

        inverse = name in ("div", "divide", "true_divide") and places[0] > 0
        inverse |= name == "pow" and isinstance(values[1], (int, float)) and values[1] < 0
        if name in DIVISORS or inverse:
            return run(function, *(entry.detach() for entry in entries))
        scales = name in ("mul", "div") and len(entries) == 1
        copied = any(value is True for value in values)  # in place
        if name in PASSES or scales:
            with torch.no_grad():
                output = run(function, *(entry.detach().clone() if copied else entry.detach() for entry in entries))
            if output.shape == entries[0].shape:
                return _Carried.apply(output, lambda above: (above,) + (None,) * (len(entries) - 1), *entries)
        hidden = [entry.detach().requires_grad_() for entry in entries]
        found = run(partial(SURROGATES[name], function), *(one.clone() if copied else one for one in hidden))
        made = tuple(
            None if one is None else _Carried.apply(one.detach(), _Share(hidden, one), *entries)
            for one in (found if isinstance(found, tuple) else (found,))
        )
        return made if isinstance(found, tuple) else made[0]


class _Share:
    """What each input of a function has of its output's relevance: its value times the gradient of that.

    It may be asked many times for one forward pass.
    """

    def __init__(self, inputs: list[Tensor], output: Tensor) -> None:
        self.inputs, self.output = inputs, output
        self.factor: Tensor | None = None

    def __call__(self, above: Tensor) -> tuple[Tensor | None, ...]:
        factor = self.factor
        if factor is None:
            output = self.output.detach()
            least = max(EPSILON, 2 / torch.finfo(output.dtype).max)  # of which half precision has an inverse
            factor = self.factor = stabilize(output, least).reciprocal_()
        flows = torch.autograd.grad(self.output, self.inputs, above * factor, retain_graph=True, allow_unused=True)
        return tuple(flow if flow is None else flow * one.detach() for flow, one in zip(flows, self.inputs))


class Functions(Canonizer):  # type: ignore[misc]
    """Has a network's functions carry relevance by the rules of this module, as long as it stands."""

    def apply(self, root_module: nn.Module) -> list[Functions]:
        """Put it in place, around the network's own forward."""
        instance = self.copy()
        instance.register(root_module)
        return [instance]

    def register(self, module: nn.Module) -> None:
        """Have a module run within the mode."""
        self.module, self.before = module, vars(module).get("forward")
        forward = module.forward

        def ruled(*args: Any, **kwargs: Any) -> Any:
            with _Mode():
                return forward(*args, **kwargs)

        module.forward = ruled

    def remove(self) -> None:
        """Take it away."""
        del self.module.forward
        if self.before is not None:
            self.module.forward = self.before

    def copy(self) -> Functions:
        """One for another network."""
        return type(self)()


def is_activation(module: nn.Module) -> bool:
    """Whether a module maps each number by itself, 0 to 0, and not all as they are: an activation of any library."""
    if any(True for has in (module.children(), module.parameters(), module.buffers()) for _ in has):
        return False
    one = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(2, 3, 2, 2)
    other = one.clone()
    other[0, 1, 1, 0] = 5.0
    try:
        with torch.no_grad():
            found, changed, turned = (module.forward(x.clone()) for x in (one, other, one.flip((0, 1, 2, 3))))
            nothing = module.forward(torch.zeros_like(one))
    except Exception:  # of the user's own code, whatever it may be: then it is none
        return False
    if not isinstance(found, Tensor) or found.shape != one.shape or torch.equal(found, one):
        return False
    differs = (found != changed).nonzero().tolist()
    return differs in ([], [[0, 1, 1, 0]]) and torch.equal(turned.flip((0, 1, 2, 3)), found) and not nothing.any()
