"""Networks at rest: on a device, in evaluation mode, with frozen weights, and put back as they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from pure_nb._memory import keep_memory


@contextmanager
def placed(
    model: nn.Module, device: str | torch.device | None = None, layout: torch.memory_format | None = None
) -> Iterator[nn.Module]:
    """The model on another device or in another memory layout; its own weights are put back afterwards.

    Parameters
    ----------
    model
        Any network.
    device, layout
        Where to, and how its weights lie in memory; None leaves that as it is.
    """
    modules = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    kept = (*gradients, *gradients.values(), *model.buffers())
    tensors = [(tensor, tensor.data) for tensor in kept if tensor is not None]
    try:
        if device is not None or layout is not None:
            model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        yield model
    finally:
        for module, parameters, buffers in modules:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        for tensor, data in tensors:
            tensor.data = data
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


@contextmanager
def frozen_eval(
    model: nn.Module, device: str | torch.device | None = None, layout: torch.memory_format | None = None
) -> Iterator[nn.Module]:
    """The model in evaluation mode with frozen weights, :func:`placed` as asked for; all is put back afterwards.

    So are buffers that the network itself changes, such as the statistics of a norm that it puts in training mode.
    Nothing runs compiled.
    """
    keep_memory()
    training = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with placed(model, device, layout):
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        # What torch.compile made calls no hooks that were added later, in which case torch has loaded its compiler.
        plainly = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        try:
            model.eval().requires_grad_(False)
            with plainly:
                yield model
        finally:
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
            for module, was in training.items():
                module.training = was
            for parameter, required in trainable.items():
                parameter.requires_grad_(required)
