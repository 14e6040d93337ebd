"""Networks of tokens, in every form: a bright patch planted in a picture is where the heatmap says it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
import torchvision
from open_clip.transformer import VisionTransformer as OpenClip
from small import noise, stirred
from test_networks import TokensFirst
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models import SwinTransformer, VisionTransformer

from pure_nb.errors import LayerError
from pure_nb.images.data import Images
from pure_nb.network.layers import activations, flatten_positions
from pure_nb.study import Study

SIDE = 8
"""Of the planted patch, in pixels."""


def vit(name: str, size: Any = 64, **options: Any) -> nn.Module:
    return timm.create_model(name, img_size=size, patch_size=SIDE, depth=2, embed_dim=48, num_heads=2, **options)


def of_hugging_face() -> nn.Module:
    """Its blocks return tuples in some versions, and the network a dictionary."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.ViTConfig(
        image_size=64, patch_size=SIDE, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96
    )
    model: nn.Module = transformers.ViTModel(config)
    return model


FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], str, str]] = {
    "class token": (lambda: vit("vit_tiny_patch16_224"), (64, 64), "patches:blocks.1", "patches:blocks.0"),
    "not square": (lambda: vit("vit_tiny_patch16_224", (64, 32)), (64, 32), "patches:blocks.1", "patches:blocks.0"),
    "registers": (lambda: vit("vit_small_patch14_reg4_dinov2"), (64, 64), "patches:blocks.1", "patches:blocks.0"),
    "turned positions": (lambda: vit("vit_small_patch16_dinov3"), (64, 64), "patches:blocks.1", "patches:blocks.0"),
    "distilled": (lambda: vit("deit_tiny_distilled_patch16_224"), (64, 64), "patches:blocks.1", "patches:blocks.0"),
    "no class token": (lambda: vit("vit_base_patch16_siglip_224"), (64, 64), "patches:blocks.1", "patches:blocks.0"),
    "torchvision": (
        lambda: VisionTransformer(64, SIDE, 2, 2, 48, 96),
        (64, 64),
        "patches:encoder.layers.encoder_layer_1",
        "patches:encoder.layers.encoder_layer_0",
    ),
    "open_clip": (
        lambda: OpenClip(64, SIDE, 48, 2, 2, 2.0, output_dim=24),
        (64, 64),
        "patches:transformer.resblocks.1",
        "patches:transformer.resblocks.0",
    ),
    "tokens first": (lambda: TokensFirst(), (64, 64), "patches:tokens:blocks.1", "patches:tokens:blocks.0"),
    "windows": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 2)
        ),
        (64, 64),
        "last:layers.0.blocks.1",
        "last:layers.0.blocks.0",
    ),
    "torchvision's windows": (
        lambda: SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4]),
        (64, 64),
        "last:features.1",
        "last:features.0",
    ),
    "inside shifted windows": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 2)
        ),
        (64, 64),
        "patches:folded:layers.0.blocks.1.attn.qkv",
        "last:layers.0.blocks.0",
    ),
    "values of shifted windows": (
        lambda: SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4]),
        (64, 64),
        "patches:values:folded:features.1.1.attn",
        "last:features.1.0",
    ),
    "hybrid": (lambda: torchvision.models.convnext_tiny(), (64, 64), "features.1", "features.0"),
    "Hugging Face": (of_hugging_face, (64, 64), "patches:encoder.layer.1", "patches:encoder.layer.0"),
}
"""How it is made, the size of its pictures, target and lower layer."""


def planted(size: tuple[int, int]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Even pictures with one bright patch each, and the patches' upper left corners."""
    height, width = size
    images = 0.5 + 0.01 * noise(5, max(size))[:, :, :height, :width]
    corners = [(0, width - SIDE), (height - SIDE, 0), (2 * SIDE, SIDE), (height - 2 * SIDE, 2 * SIDE), (SIDE, SIDE)]
    for image, (top, left) in zip(images, corners):
        image[:, top : top + SIDE, left : left + SIDE] += torch.tensor([3.0, -2.0, 2.0])[:, None, None]
    return images, corners


@pytest.mark.parametrize("look", ["peak", "activation"])
@pytest.mark.parametrize("form", FORMS)
def test_a_bright_patch_is_where_the_heatmap_says_it_is(form: str, look: Literal["peak", "activation"]) -> None:
    torch.manual_seed(0)
    make, size, target, lower = FORMS[form]
    images, corners = planted(size)
    study = Study.from_model(
        stirred(make()), Images(TensorDataset(images)), target, lower, n_references=5, start="peak", rule="lrp"
    ).replace(store=None, progress=False)
    height, width = study.references.grid
    rows, columns = np.divmod(study.references.position, width)
    middle = np.array(corners)[study.references.sample] + SIDE / 2  # [channels, n, 2]
    found = np.stack([(rows + 0.5) * size[0] / height, (columns + 0.5) * size[1] / width], axis=-1)
    right = (np.abs(found - middle) < SIDE / 2).all(axis=(1, 2)) & (study.references.score[:, -1] > 0)
    assert right.sum() > 2, "channels that are largest at the patch, in all the pictures"
    with torch.no_grad():
        values = flatten_positions(activations(study.model, images, [target])[target]).clamp(min=0)
    contrast = (values.amax(dim=2) / (values.mean(dim=2) + 1e-6)).amin(dim=0).numpy()
    channel = int((contrast * right).argmax())  # of those, one that is active at little else
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        views = study.neuron(channel).views(range(5), look)
    for view in views:
        top, left = corners[view.sample]
        inside = view.mask[top : top + SIDE, left : left + SIDE].mean()
        assert inside > 0.5
        assert view.mask.mean() < (0.3 if look == "peak" else inside)


def test_tokens_in_another_order_are_not_laid_out() -> None:
    """Of Hiera they would be in wrong places, and without a word."""
    model, images = timm.create_model("hiera_tiny_224", img_size=64), Images(TensorDataset(noise(2, 64)))
    with pytest.raises(LayerError, match="name the layer without 'patches:'"):
        Study.from_model(model, images, "patches:blocks.2", "blocks.1", n_references=2)
    assert Study.from_model(model, images, "blocks.2", "blocks.1", n_references=2).shapes[0].grid == (64,)
