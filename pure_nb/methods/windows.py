"""What each weight of a layer sees of its input, by which average relevance vectors have a closed form.

If a layer is a convolution or a linear layer and the sources are its inputs, relevance is weights times activations.
Summed over the positions of the output, what a weight sees is all that has to be known of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pure_nb.errors import LayerError
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.methods._shapes import Float, Int
from pure_nb.network.layers import INPUT, activations, computes_plainly, flatten_positions, get_layer
from pure_nb.network.targets import FOLDED, Target
from pure_nb.parameters import Run

Weighted = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class KernelWindows:
    """Which positions of its input each weight of a convolution sees.

    For a linear layer, as for a 1x1 convolution of stride 1, each weight sees all of them.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    mode: str = "constant"

    @classmethod
    def from_module(cls, module: nn.Module) -> KernelWindows:
        """The windows of a ``Conv2d`` or ``Linear``.

        Raises
        ------
        LayerError
            For any other module.
        """
        if isinstance(module, nn.Linear):
            return cls()
        if not isinstance(module, nn.Conv2d):
            raise LayerError(f"expected a Conv2d or a Linear layer, got a {type(module).__name__}")
        kernel, dilation = _two(module.kernel_size), _two(module.dilation)
        if module.padding == "same":
            total = [step * (size - 1) for size, step in zip(kernel, dilation)]
            top, left = total[0] // 2, total[1] // 2
            padding = (left, total[1] - left, top, total[0] - top)
        else:
            height, width = (0, 0) if module.padding == "valid" else _two(module.padding)
            padding = (width, width, height, height)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return cls(kernel, _two(module.stride), dilation, padding, mode)

    def seen(self, activation: Float[Tensor, "b ..."]) -> Iterator[Float[Tensor, "b inputs ..."]]:
        """What each weight of the kernel sees, one after the other: ``[B, inputs, positions]``, of one or two axes."""
        if activation.ndim != 4:
            yield flatten_positions(activation)
            return
        padded = functional.pad(activation, self.padding, self.mode) if any(self.padding) else activation
        reach = [step * (size - 1) for size, step in zip(self.kernel, self.dilation)]
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                top, left = row * self.dilation[0], column * self.dilation[1]
                bottom = padded.shape[2] - reach[0] + top
                right = padded.shape[3] - reach[1] + left
                yield padded[:, :, top : bottom : self.stride[0], left : right : self.stride[1]]

    def pooled(self, activation: Float[Tensor, "b ..."]) -> Float[Tensor, "b inputs kernel"]:
        """Sum of what each weight sees over the positions of the output: ``[B, inputs, weights of the kernel]``."""
        return torch.stack([each.sum(dim=tuple(range(2, each.ndim))) for each in self.seen(activation)], dim=2)


def _two(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def channel_sources(module: nn.Module, channel: int) -> slice:
    """Which channels of a ``Conv2d``'s or ``Linear``'s input are sources of a channel: all, or those of its group."""
    assert isinstance(module, Weighted)
    outputs, sources = module.weight.shape[:2]
    first = channel // (outputs // getattr(module, "groups", 1)) * sources
    return slice(first, first + sources)


def dense_weight(module: nn.Module, channel: int) -> Float[NDArray[np.float64], "inputs kernel"]:
    """The weights of one channel of a ``Conv2d`` or ``Linear`` over *all* inputs: float64 ``[inputs, kernel weights]``.

    Zero for the inputs that belong to other groups.
    """
    assert isinstance(module, Weighted)
    weight = module.weight.detach().cpu().double()[channel].reshape(module.weight.shape[1], -1)
    found = np.zeros((len(weight) * getattr(module, "groups", 1), weight.shape[1]))
    found[channel_sources(module, channel)] = weight
    return found


def pooled_inputs(
    model: nn.Module,
    images: Images,
    samples: Sequence[int] | Int[NDArray[np.int64], " images"],
    layer: str,
    *,
    labels: Int[NDArray[np.int64], " images"] | None = None,
    run: Run = Run(),
) -> Float[NDArray[np.float64], "rows inputs kernel"]:
    """What each weight of a convolution or linear layer sees of each image, summed over the output's positions.

    Times the weights of a channel (:func:`dense_weight`) and summed over the kernel, it is the channel's relevance
    vector in that image.

    Parameters
    ----------
    model, images
        What to run over what, up to the layer.
    samples
        int ``[images]``: indices of the images wanted.
    layer
        Name of a ``Conv2d`` or ``Linear``.
    labels
        int ``[images]``: if given, the images of one label are averaged, which takes no more memory for more images.
    run
        How it is run.

    Returns
    -------
    ndarray
        float64 ``[images, inputs, kernel weights]``; or ``[labels, inputs, kernel weights]``, the least label first.
    """
    windows, entrance = KernelWindows.from_module(get_layer(model, layer)), INPUT + layer
    chosen = np.asarray(samples, dtype=np.int64).tolist()
    labels = np.arange(len(chosen)) if labels is None else labels
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found, seen = np.empty(0), 0
    with run.prepared(model), torch.inference_mode():
        for batch in readable(images, chosen, run=run):
            entering = activations(model, batch.images.to(run.local_device), [entrance])[entrance]
            pooled = windows.pooled(in_single(entering)).cpu().double().numpy()
            found = found if found.size else np.zeros((len(counts), *pooled.shape[1:]))
            for row, place in zip(pooled, places[seen : seen + len(pooled)]):
                found[place] += row
            seen += len(pooled)
    return found / np.reshape(counts, (-1, 1, 1))


def closed_form(model: nn.Module, layer: str, lower: str) -> nn.Module | None:
    """The layer's module if its ARVs are in closed form: a convolution or linear layer, and its own input below.

    Others may compute something else with their weights, so they are left to vector-Jacobian products.
    """
    module, target = get_layer(model, layer), Target.parse(layer)
    # Not of a part of it, and not of windows: what each weight sees in one can't be told from the tokens of all.
    whole = not target.part and target.batch != FOLDED and Target.parse(lower) == replace(target, part=INPUT)
    return module if whole and computes_plainly(module) else None


def in_single(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Values in float32 at least, to be multiplied and summed."""
    return values.float() if values.dtype.itemsize < 4 else values
