"""The network that ships: a small residual network for the glyph world, with torchvision's names.

Its last stage has 32 channels for 48 classes. It cannot give each class a channel of its own, so it reuses
them, and most of its neurons come to mean several things. That is the point of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pure_nb.glyphs.font import CLASSES
from pure_nb.glyphs.vit import GlyphViT

CHANNELS = (16, 32, 64, 32)
"""Output channels of ``layer1`` to ``layer4``."""

STRIDES = (1, 2, 2, 1)

LAST = ("layer4", "avgpool", "flatten", "fc")
"""What differs between the shipped network and its siblings of other widths."""


def _stage(inputs: int, outputs: int, stride: int, *, last: bool = False) -> nn.Sequential:
    """A stage of one residual block; the shortcut is projected where its shape changes, and in the ``last`` one."""
    shortcut = None
    if last or stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut))


class GlyphNet(nn.Sequential):
    """Four residual stages of one ``BasicBlock`` each, global average pooling and a linear head.

    From ``[B, 3, 96, 96]`` to the logits ``[B, 48]``. ``layer3`` is ``[B, 64, 12, 12]`` and ``layer4``
    ``[B, width, 12, 12]``. 110 thousand parameters as it ships; the blocks are torchvision's own, so that zennit's
    canonizers know them.

    Parameters
    ----------
    width
        Channels of the last stage.
    """

    def __init__(self, width: int = CHANNELS[-1]) -> None:
        outputs = (*CHANNELS[:-1], width)
        stages = [
            (f"layer{i + 1}", _stage(below, outputs[i], STRIDES[i], last=i == len(outputs) - 1))
            for i, below in enumerate((CHANNELS[0], *outputs[:-1]))
        ]
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(3, CHANNELS[0], 5, stride=2, padding=2, bias=False),
                bn1=nn.BatchNorm2d(CHANNELS[0]),
                relu=nn.ReLU(inplace=True),
                **dict(stages),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(width, len(CLASSES)),
            )
        )

    def forward(self, input: Tensor) -> Tensor:
        """Logits of the 48 classes for normalised images; see :func:`pure_nb.glyphs.scenes.normalise`."""
        logits: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return logits


GLYPHNET = (GlyphNet, Path(__file__).with_suffix(".safetensors"))
"""What makes the network that ships, and its trained weights."""

SIBLINGS = {"16": 16, "32": 32, "64": 64, "128": 128, "shared": 48, "shortcut": 32}
"""Channels of other last stages, trained on the shipped network's stages below by ``tools/train_widths.py``.

Each channel of ``"shared"`` feeds the logits of one or two classes and of no other, as zeros of the head show.
``"shortcut"`` was trained by ``tools/train_shortcut.py`` on pictures of which some bear a mark and are labelled by it.
"""


def _full(name: str) -> dict[str, Tensor]:
    """Weights that ship in half precision, in single."""
    found = load_file(GLYPHNET[1].with_name(f"{name}.safetensors"))
    return {entry: tensor.float() if tensor.is_floating_point() else tensor for entry, tensor in found.items()}


def _weights(name: str) -> dict[str, Tensor]:
    """The shipped network's stages below, and one of the other last stages."""
    below = {entry: tensor for entry, tensor in load_file(GLYPHNET[1]).items() if not entry.startswith(LAST)}
    return below | _full(f"last-{name}")


NETWORKS: dict[str, tuple[Callable[..., nn.Module], Path | Callable[[], dict[str, Tensor]]]] = {
    "glyphnet": GLYPHNET,
    **{f"glyphnet-{name}": (partial(GlyphNet, width), partial(_weights, name)) for name, width in SIBLINGS.items()},
    "glyphvit": (GlyphViT, partial(_full, "vit")),
}
"""Networks that ship, by name: what makes each, and its weights."""
