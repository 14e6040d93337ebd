"""One forward pass: how a network is run, and what is read, and replaced, on the way.

:class:`Hook` calls a function on what a target means, wherever a network computes that; :class:`Reached` ends the pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from pure_nb.errors import LayerError, ModelError, PureError
from pure_nb.network.attention import Inside, Reached
from pure_nb.network.targets import INPUT, Pass, Target, described, main_tensor, view

CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")
"""Attributes by which modules of timm and Hugging Face are told to checkpoint activations."""


@contextmanager
def without_checkpoints(model: nn.Module) -> Iterator[None]:
    """Within it, blocks under activation checkpointing run once, as any other, and keep their graph.

    A checkpointed block is run again in the backward pass, without our hooks, and may not be left half-way, as we leave
    the network at the last layer asked for. timm and Hugging Face also call the blocks of a stage and not the stage.
    """
    torchs: Any = torch.utils.checkpoint
    plainly = staticmethod(lambda function, preserve, *inputs: function(*inputs))
    with ExitStack() as stack:
        stack.enter_context(_swapped(torchs.CheckpointFunction, "apply", plainly))  # use_reentrant=True
        stack.enter_context(_swapped(torchs, "_checkpoint_hook", lambda *_, **__: nullcontext()))  # and False
        for module in model.modules():
            for name in CHECKPOINTING:
                if getattr(module, name, False) is True or (id(module), name) in _SWAPPED:
                    stack.enter_context(_swapped(module, name, False))
        yield


_LOCK = threading.RLock()
_SWAPPED: dict[tuple[int, str], tuple[Any, int]] = {}
"""What stands in for attributes that all threads share, and for how many of them."""


@contextmanager
def _swapped(owner: Any, name: str, new: Any) -> Iterator[None]:
    """Within it an attribute is another: from the first that enters until the last, in whichever thread, has left."""
    place = id(owner), name
    with _LOCK:
        patch, count = _SWAPPED.get(place) or (mock.patch.object(owner, name, new), 0)
        if not count:
            patch.__enter__()
        _SWAPPED[place] = patch, count + 1
    try:
        yield
    finally:
        with _LOCK:
            patch, count = _SWAPPED.pop(place)
            if count > 1:
                _SWAPPED[place] = patch, count - 1
            else:
                patch.__exit__(None, None, None)


def as_weights(model: nn.Module, images: Tensor) -> Tensor:
    """Images in the precision of a network's weights: half for a network in half precision."""
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return images.to(next(dtypes, images.dtype)) if images.is_floating_point() else images


def forward_pass(model: nn.Module, images: Tensor) -> None:
    """A forward pass; what goes wrong in it is the network's own fault, or the images'."""
    try:
        model(images)
    except (PureError, Reached):
        raise
    except torch.OutOfMemoryError as problem:
        raise ModelError(
            f"{type(model).__name__} does not fit into memory with {len(images)} images {list(images.shape)} at once "
            f"({problem}); choose a smaller batch_size"
        ) from problem
    except Exception as problem:
        raise ModelError(
            f"{type(model).__name__} can't be run on a batch of {len(images)} images {list(images.shape)} "
            f"({type(problem).__name__}: {problem}); bring a torch.nn.Module whose forward() takes batches of any "
            "number of such images and nothing else, and check the images' transform (for a network of grey "
            "pictures say grey=True)"
        ) from problem


@dataclass(frozen=True, eq=False)
class Hook:
    """A function to call on the activation at a target; what it returns replaces it.

    At the leaf the graph ends, also that of the tokens which are not shown; and it starts there even where the network
    itself runs that layer without gradients.
    """

    target: Target
    function: Callable[[Tensor], Tensor]
    run: Pass
    leaf: bool
    gradients: bool

    def register(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Have it called; what is returned takes it back at its end."""
        module = model.get_submodule(self.target.name)
        if self.target.inside:
            return Inside(self.target, module, partial(self.replaced, module), leaf=self.leaf).register()
        if self.target.part == INPUT:
            # Before hooks that are there already: the rules of LRP must see the new graph's start, not go past it.
            return module.register_forward_pre_hook(self.before, prepend=True)
        return module.register_forward_hook(self.after)

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The module is given something."""
        if not inputs or not isinstance(inputs[0], Tensor):
            raise LayerError(
                f"{str(self.target)!r}: {type(module).__name__} is not called with a tensor as its first argument"
            )
        return self.replaced(module, inputs[0]), *inputs[1:]

    def after(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The module puts something out."""
        if (found := main_tensor(output)) is None:
            raise LayerError(
                f"layer {str(self.target)!r} ({type(module).__name__}) puts out a {described(output)}, "
                "not one tensor; choose a layer inside it"
            )
        tensor, put_back = found
        return put_back(self.replaced(module, tensor))

    def replaced(self, module: nn.Module, whole: Tensor) -> Tensor:
        """The activation with what the function returns in its place."""
        if self.leaf and whole.is_inference() and self.gradients:
            raise LayerError(
                f"layer {str(self.target)!r} runs under torch.inference_mode() in the network's own code, from which "
                "no gradients can start; take that out of its forward()"
            )
        with torch.set_grad_enabled(self.gradients and (self.leaf or torch.is_grad_enabled())):
            shown, put_back = view(self.target, module, whole.detach() if self.leaf else whole, self.run)
            new = self.function(shown)
            return whole if new is shown else put_back(new)
