"""Inside attention: queries, keys, values and what each head makes of them, in whichever way a library computes it.

No module puts these out. But all attention ends in the same few functions of torch: ``scaled_dot_product_attention``,
or a product of queries and keys, a softmax, and a product with the values. So they are read, and replaced, where these
functions are called (as :mod:`pure_nb.network.functions` does for relevance), in fused and in plain attention, with one
linear layer for all three or three of them, in timm, torchvision, open_clip, Hugging Face and torch itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pure_nb.errors import LayerError
from pure_nb.network.targets import HEADS, KEYS, QUERIES, VALUES, Target, View, main_tensor

PRODUCTS = {"matmul": (0, 1), "__matmul__": (0, 1), "bmm": (0, 1), "baddbmm": (1, 2)}
"""Products of matrices of activations, and which of their arguments are the factors."""

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
"""Attributes by which modules say how many heads they have."""


class Reached(Exception):  # noqa: N818, it is no error
    """Raised inside a hook: all that was asked for is known, the rest of the network need not run."""


class Inside(TorchFunctionMode):
    """Has a function called on queries, keys, values or heads while a module runs; what it returns replaces them.

    Parameters
    ----------
    target
        The module by name, and which of them.
    function
        Takes and returns a tensor ``[B, T, C]``: for heads C is their number, and a value the length of what the head
        puts out at a position; for the others it is all heads' channels, one head after the other.
    leaf
        Whether the graph ends there.
    """

    def __init__(
        self, target: Target, module: nn.Module, function: Callable[[Tensor], Tensor], *, leaf: bool = False
    ) -> None:
        super().__init__()
        self.target, self.module, self.function, self.leaf = target, module, function, leaf
        self.calls, self.asking, self.split, self.weighed, self.inside = 0, (0, 0), 0, False, False
        self.scores: torch.Size | None = None
        self.reached: Reached | None = None

    @contextmanager
    def register(self) -> Iterator[None]:
        """Within it, it is called."""
        with ExitStack() as stack:
            for hook in (
                self.module.register_forward_pre_hook(self.enter),
                self.module.register_forward_hook(self.check),
                self.module.register_forward_hook(self.leave, always_call=True),
            ):
                stack.enter_context(hook)
            try:
                yield
            finally:  # torch calls no hooks after a KeyboardInterrupt
                self.leave()

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """The module starts."""
        self.calls, self.scores, self.reached, self.asking, self.weighed = 0, None, None, (0, 0), False
        self.__enter__()  # type: ignore[no-untyped-call]
        self.inside = True

    def check(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The module has put something out: see that there was attention in it, and no more than once."""
        if self.calls != 1 or self.scores is not None:
            raise LayerError(
                f"layer {str(self.target)!r}: {type(module).__name__} calls torch's attention, or the two products "
                f"and the softmax that it consists of, {f'{self.calls} times' if self.calls else 'never'}, expected "
                "once and no other products; name the module that is the attention of one block"
            )
        found = main_tensor(output)
        around = [one for one in (*inputs[:1], found and found[0]) if isinstance(one, Tensor) and one.ndim > 1]
        positions = {one.numel() // one.shape[axis] for one in around for axis in ((-1, 1) if one.ndim == 4 else (-1,))}
        asking, rows = self.asking
        # Windows of a padded picture: more than there are, and not all of them several times, as with heads among them.
        padded = around and rows > len(around[0]) and any(n < asking < 4 * n and asking % n for n in positions)
        if around and asking not in positions and not padded:
            raise LayerError(
                f"layer {str(self.target)!r}: {type(module).__name__} asks for {asking} positions where it has "
                f"{max(positions)}, so it is channels that look at each other there, or part of the tokens; name it "
                f"without {self.target.inside!r}"
            )
        if self.reached:
            raise self.reached

    def leave(self, *_: Any) -> None:
        """The module ends, also by an error."""
        if self.inside:
            self.inside = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, on what is made of its arguments."""
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name == "multi_head_attention_forward":  # look into it: it would call what follows without any mode
            with self:
                return _looked_into(function)(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            return self.attention(function, *args, **kwargs)
        self.weighed |= name == "softmax"
        if name in PRODUCTS and not kwargs.keys() & {"out", "mat2", "other"}:
            return self.product(function, args, kwargs, *PRODUCTS[name])
        return function(*args, **kwargs)

    def attention(self, function: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """All of it in one function."""
        self.ask(query)
        parts = (self.replaced(part, one) for part, one in zip((QUERIES, KEYS, VALUES), (query, key, value)))
        return self.ended(function(*parts, *args, **kwargs))

    def product(self, function: Any, args: Any, kwargs: Any, left: int, right: int) -> Tensor:
        """The product of queries and keys, that of its softmax and the values, or another."""
        factors = args[left], args[right]
        if any(isinstance(one, nn.Parameter) or one.ndim < 3 for one in factors):
            return cast(Tensor, function(*args, **kwargs))
        new, given = list(args), self.scores
        if given is None:
            self.ask(factors[0])
            new[left] = self.replaced(QUERIES, factors[0])
            new[right] = self.replaced(KEYS, factors[1].transpose(-2, -1)).transpose(-2, -1)
            found: Tensor = function(*new, **kwargs)
            self.scores, self.weighed = found.shape, False
            return found
        if factors[0].shape[-2:] != given[-2:] or not self.weighed:  # no values that a softmax weighs: no attention
            return cast(Tensor, function(*args, **kwargs))
        self.scores, new[right] = None, self.replaced(VALUES, factors[1])
        return self.ended(function(*new, **kwargs))

    def ask(self, query: Tensor) -> None:
        """Count for how many positions of all images, or windows, there are queries; and these."""
        self.split = query.shape[1] if query.ndim == 4 else self.told
        count = math.prod(query.shape[:-1]) // (self.split or 1)
        self.asking = count, count // query.shape[-2]

    def ended(self, found: Tensor) -> Tensor:
        """What the heads have put out."""
        found = self.replaced(HEADS, found)
        self.calls += 1
        return found

    def replaced(self, part: str, values: Tensor) -> Tensor:
        """What replaces queries, keys, values or heads ``[N, heads, T, d]``; the first two axes may be one."""
        if part != self.target.inside or self.calls:
            return values
        split, told = values.detach() if self.leaf else values, self.told
        if split.ndim == 3:
            if not told or len(split) % told:
                raise LayerError(
                    f"layer {str(self.target)!r}: attention is called with {list(values.shape)}, and it can't be told "
                    f"how many heads there are on its first axis; let {type(self.module).__name__} say so by an "
                    f"attribute {COUNTS[0]!r} that divides it, or name it without {self.target.inside!r}"
                )
            split = split.reshape(-1, told, *split.shape[1:])
        elif split.ndim == 5 and split.shape[1] != told == split.shape[2]:  # windows on an axis of their own
            split = split.flatten(0, 1)
        if split.ndim != 4 or told not in (0, self.split):
            heads = f"and {type(self.module).__name__} has {told} heads; " if told else ""
            raise LayerError(
                f"layer {str(self.target)!r}: attention is called with {list(values.shape)}, {heads}expected "
                f"[B, heads, T, channels]; name it without {self.target.inside!r}"
            )
        shown, back = (lengths if part == HEADS else side_by_side)(split)
        try:
            new = self.function(shown)
        except Reached as reached:  # only once it is known that attention runs once
            self.reached = reached
            return values
        if new is shown:  # and not through a product, which is where rules of relevance share it out
            return values
        with torch.set_grad_enabled(torch.is_grad_enabled() or new.requires_grad):
            found: Tensor = back(new)
            return found.reshape(values.shape)

    @property
    def told(self) -> int:
        """How many heads the module says it has, the innermost part of it that does; 0 if none does."""
        parts = reversed([*self.module.modules()])
        told = (getattr(part, name, None) for part in parts for name in COUNTS)
        return next((count for count in told if isinstance(count, int) and count > 0), 0)


def _looked_into(function: Any) -> Any:
    """A function of torch that goes on by itself, and does not ask modes first."""
    scope = {**function.__globals__, "has_torch_function": lambda given: False}
    found = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    found.__kwdefaults__ = function.__kwdefaults__
    return found


def side_by_side(split: Tensor) -> View:
    """The channels ``[N, T, heads * d]`` of all heads ``[N, heads, T, d]``."""
    return split.transpose(1, 2).flatten(2), lambda new: new.unflatten(2, (split.shape[1], -1)).transpose(1, 2)


def lengths(split: Tensor) -> View:
    """The Euclidean norm ``[N, T, heads]`` of what heads put out, ``[N, heads, T, d]``; another scales all d channels.

    The norm does not depend on the basis within a head, which is arbitrary, as the matrix of the values and that of the
    output may be turned against each other; the mean of absolute values does. It is as long as a head is active, and of
    degree one: what flows to a norm by input times gradient is the sum of what flows to the head's channels.
    """
    norm = split.norm(dim=-1)

    def back(new: Tensor) -> Tensor:
        return split * (new.transpose(1, 2) / (norm + (norm == 0)))[..., None]

    return norm.transpose(1, 2), back
