"""A device that is not the CPU, on any machine: what must not touch it does not, and what waits for it is counted.

Its tensors lie in the CPU's memory and are computed there, but torch takes them for those of another device: they are
no arrays, and meet no tensor of the CPU. So what would fail on a GPU fails here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
"""The only device of torch's that every machine has and that computes nothing by itself."""

aten = torch.ops.aten

ASKS = {  # what tells the CPU something of a tensor's values, or makes a tensor whose size depends on them
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
}
BY_MASK = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class AwayTensor(Tensor):
    """A tensor on the device; ``own`` holds its numbers."""

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor) -> AwayTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            device=DEVICE,
        )
        made.own = own
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of away()")


@contextmanager
def away() -> Iterator[Device]:
    """Within it, there is the device."""
    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **how: Any) -> Tensor:  # torch fills it where no mode is asked
        return made(data, **how).to(device)

    with mock.patch.object(torch, "tensor", tensor), Device() as device:
        yield device


class Device(TorchDispatchMode):
    """Computes what is on the device; ``waits`` counts what had to wait for it, ``sent`` what was brought to it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with self:  # under inference_mode torch leaves it to us to take operators apart
            if (found := func.decompose(*args, **kwargs)) is not NotImplemented:
                return found
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = {id(tensor.own): tensor for tensor in tensors if isinstance(tensor, AwayTensor)}
        asked = kwargs.get("device")
        going = asked is not None and torch.device(asked).type == DEVICE
        if not there and not going:
            return func(*args, **kwargs)
        coming = asked is not None and not going
        copied = func is aten.copy_.default and not isinstance(args[0], AwayTensor)
        if func in ASKS or coming or copied or (func in BY_MASK and _masked(args[1])):
            self.waits[str(func.overloadpacket)] += 1
        elif len(there) < len(tensors):
            foreign = [one for one in tensors if not isinstance(one, AwayTensor) and one.ndim]
            if func in (aten._to_copy.default, aten.copy_.default):
                self.sent += len(foreign)
            elif foreign:
                raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda one: one.own if isinstance(one, AwayTensor) else one, (args, kwargs))
        found = func(*args, **kwargs)
        if coming or copied:
            return found

        def back(one: Any) -> Any:
            return (there[id(one)] if id(one) in there else AwayTensor(one)) if isinstance(one, Tensor) else one

        return tree_map(back, found)


def _masked(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)
