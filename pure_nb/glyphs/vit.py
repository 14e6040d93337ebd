"""A small vision transformer for the glyph world: torchvision's own class, trained as the small ResNet was."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from pure_nb.glyphs.font import CLASSES
from pure_nb.glyphs.scenes import SIZE

PATCH = 12
"""Side of a patch in pixels; a scene has 8 x 8."""

NEURONS = 128
"""Neurons of each block's MLP."""


class GlyphViT(VisionTransformer):  # type: ignore[misc]  # torchvision has no types
    """Four blocks over 8 x 8 patches and a class token, from ``[B, 3, 96, 96]`` to the logits ``[B, 48]``.

    The patches are embedded by three convolutions, which small data needs (Xiao et al. 2021, *Early convolutions help
    transformers see better*). Tokens have 96 channels, attention 4 heads, each MLP 128 neurons; 0.28 million
    parameters. The class token alone is read out, so what the last block does to the patches reaches no logit.
    """

    def __init__(self) -> None:
        stem = [ConvStemConfig(width, 3, stride) for width, stride in ((16, 2), (32, 2), (64, 3))]
        super().__init__(
            image_size=SIZE,
            patch_size=PATCH,
            num_layers=4,
            num_heads=4,
            hidden_dim=96,
            mlp_dim=NEURONS,
            num_classes=len(CLASSES),
            conv_stem_configs=stem,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
