"""Feature visualisation: pictures made by gradient ascent on a channel's activation.

As in Olah, Mordvintsev and Schubert (2017), "Feature Visualization", Distill. A picture is not optimised pixel by
pixel, which gives noise, but as the coefficients of its Fourier transform, each divided by its frequency, in colours
that vary independently in natural images; and it is shifted at random before every step. The pictures of a channel
before and after it is split (:mod:`pure_nb.methods.rewiring`) say whether the parts mean one thing each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.compute.bars import progress_bar
from pure_nb.errors import ArgumentError, LayerError, NonFiniteError
from pure_nb.images.data import MEAN, STD
from pure_nb.methods._shapes import Int
from pure_nb.network.layers import activations, flatten_positions, get_layer
from pure_nb.parameters import Run

RATE = 0.05
"""Step size of Adam, the one of Olah et al.'s library lucid."""

START = 0.01
"""Standard deviation of the coefficients at the start: a nearly grey picture."""

CONTRAST = 0.25
"""Amplitude, before the sigmoid, of the longest wave whose coefficient is 1."""

COLOURS = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]).T / np.sqrt([3, 2, 6]) * [1, 0.28, 0.13]
"""Red, green and blue (rows) of the three colours (columns) that a picture is mixed from.

The axes are light to dark, red to blue and green to magenta, along which the colours of natural images are
uncorrelated (Ohta, Kanade and Sakai, 1980, "Color information for region segmentation"). Their spread, as parts of the
first one's, is that of ImageNet as published in lucid, the library of Olah et al.
"""


# What an optimisation is asked for is known by these names in every library of feature visualisation.
def feature_visualisation(  # noqa: PLR0913
    model: nn.Module,
    layer: str,
    channels: Sequence[int] | Int[NDArray[np.int64], " channels"],
    *,
    size: int | tuple[int, int],
    steps: int = 256,
    jitter: int | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    seed: int = 0,
    run: Run = Run(),
) -> Int[NDArray[np.uint8], "channels height width 3"]:
    """Pictures that activate channels strongly, one a channel, optimised together.

    Each maximises the mean of its channel over all positions. All start from the same noise and are shifted alike, so
    a picture does not depend on which other channels are asked for (but for rounding).

    Parameters
    ----------
    model
        A network for pictures of three colours; it is left as it was.
    layer
        A layer that puts out ``[B, C]``, ``[B, T, C]`` or ``[B, C, H, W]``.
    channels
        Channels of it.
    size
        Side of the pictures in pixels, or height and width: what the network takes.
    steps
        Steps of Adam.
    jitter
        Largest shift in pixels, in each direction; the picture wraps around. None for a sixteenth of its shorter side.
    mean, std
        Normalisation that the network expects; ImageNet's by default.
    seed
        Of the noise and the shifts. The same seed gives the same pictures on the same machine; random numbers drawn
        elsewhere are not affected.
    run
        How it is run.

    Returns
    -------
    ndarray
        uint8 ``[channels, H, W, 3]``. After a ReLU a channel may be 0 for the first picture, and without a gradient; it
        then gets other noise, of more and more contrast, until something activates it. If nothing does, its picture is
        grey.

    Raises
    ------
    LayerError
        If the layer is missing, its output has another shape, or no gradient leads from it to the picture.
    IndexError
        If it has no such channel.
    NonFiniteError
        If the activation is NaN or infinite.

    Examples
    --------
    >>> feature_visualisation(model, "layer4", [3], size=96, steps=2).shape
    (1, 96, 96, 3)
    """
    device = run.local_device
    chosen = torch.as_tensor(np.asarray(channels), device=device)
    height, width = (size, size) if isinstance(size, int) else size
    reach = min(height, width) // 16 if jitter is None else jitter
    if chosen.ndim != 1 or not len(chosen) or chosen.is_floating_point():
        raise ArgumentError(f"channels must be a list of at least one number, got {channels!r}")
    if min(height, width, steps) < 1 or reach < 0:
        raise ArgumentError(
            f"size and steps must be at least 1 and jitter at least 0, got {size}, {steps} and {jitter}"
        )
    if len(mean) != 3 or len(std) != 3:
        raise ArgumentError(f"mean and std must have an entry for each of three colours, got {mean} and {std}")
    get_layer(model, layer)
    generator = torch.Generator().manual_seed(seed)
    waves = torch.zeros(len(chosen), 3, height, width // 2 + 1, 2, device=device, requires_grad=True)
    asleep = torch.ones(len(chosen), dtype=torch.bool, device=device)  # no gradient so far
    centre, spread = (torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (mean, std))
    optimiser = torch.optim.Adam([waves], lr=RATE)
    with run.prepared(model), torch.enable_grad():
        for step in progress_bar(range(steps), "visualise", unit="step", shown=run.progress):
            # Drawn in every step, needed or not, lest a picture depend on the others.
            noise = torch.randn(waves.shape[1:], generator=generator).to(device)
            shifts = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
            waves.data[asleep] = START * (step + 1) * noise
            shifted = _pictures(waves, height, width).roll(shifts, dims=(2, 3))
            activation = _activation(model, layer, chosen, (shifted - centre) / spread)
            (gradient,) = torch.autograd.grad(-activation.sum(), waves)
            asleep &= ~gradient.flatten(1).any(dim=1)
            waves.grad = gradient
            optimiser.step()
        waves.data[asleep] = 0
    final = _pictures(waves.detach(), height, width)
    return np.asarray(final.mul(255).round().permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8))


def _pictures(waves: Tensor, height: int, width: int) -> Tensor:
    """Pictures ``[n, 3, H, W]`` within 0 and 1, from coefficients ``[n, 3, H, W // 2 + 1, 2]`` of their waves."""
    vertical = torch.fft.fftfreq(height, device=waves.device)[:, None]
    horizontal = torch.fft.rfftfreq(width, device=waves.device)
    longest = 1 / max(height, width)
    scale = CONTRAST * longest / torch.hypot(vertical, horizontal).clamp(min=longest)
    mixed = torch.fft.irfft2(torch.view_as_complex(waves) * scale, s=(height, width), norm="forward")
    colours = torch.tensor(COLOURS, dtype=mixed.dtype, device=mixed.device)
    return torch.einsum("rc,nchw->nrhw", colours, mixed).sigmoid()


def _activation(model: nn.Module, layer: str, channels: Tensor, images: Tensor) -> Tensor:
    """Mean over the positions of the i-th channel in the i-th image, ``[n]``."""
    output = flatten_positions(activations(model, images, [layer])[layer])
    if not 0 <= int(channels.min()) <= int(channels.max()) < output.shape[1]:
        raise ArgumentError(
            f"channel {int(channels.max())} (lowest {int(channels.min())}): layer {layer!r} has channels 0 to "
            f"{output.shape[1] - 1}"
        )
    activation = output[torch.arange(len(channels), device=output.device), channels].mean(dim=1)
    if not activation.requires_grad:
        raise LayerError(f"no gradient leads from layer {layer!r} to the picture; look for no_grad or detach below it")
    if not torch.isfinite(activation).all():
        channel = int(channels[~torch.isfinite(activation)][0])
        raise NonFiniteError(
            f"channel {channel} of layer {layer!r} is NaN or infinite for a picture made for it; check the weights"
        )
    return activation
