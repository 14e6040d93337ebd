"""Networks of every family that people name, as small as their constructors let them be, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import pytest
import timm
from timm.models import crossvit, efficientformer, mlp_mixer
from torch import Tensor, nn
from torchvision import models
from torchvision.models import resnet, swin_transformer

SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 2}
WIDE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
TOWER = {"image_size": 64, "patch_size": 16, **WIDE}


class Put(nn.Module):
    """A network that puts out a dictionary, as one that puts out a tensor of it."""

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)[self.key]
        return found


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A network of timm."""
    return partial(timm.create_model, name, **options)


def of_transformers(kind: str, **options: Any) -> Callable[[], nn.Module]:
    """A network of Hugging Face's library, from its configuration."""

    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[hub-test]'")
        config = getattr(transformers, f"{kind}Config")(**options)
        return Put(getattr(transformers, f"{kind}Model")(config), "last_hidden_state")

    return make


def mixer(block: type[nn.Module], **options: Any) -> Callable[[], nn.Module]:
    """Relatives of the MLP-mixer."""
    return partial(
        mlp_mixer.MlpMixer, img_size=64, patch_size=16, num_blocks=2, embed_dim=48, block_layer=block, **options
    )


Make = Callable[[], nn.Module]
TORCHVISION: dict[str, tuple[Make, str, str]] = {
    "alexnet": (lambda: models.AlexNet(4), "features.3", "features.0"),
    "squeezenet1_1": (models.squeezenet1_1, "features.6", "features.3"),
    "shufflenet_v2_x0_5": (models.shufflenet_v2_x0_5, "stage2", "maxpool"),
    "mnasnet0_5": (models.mnasnet0_5, "layers.9", "layers.8"),
    "googlenet": (
        lambda: models.googlenet(init_weights=False, aux_logits=False),
        "inception3b",
        "inception3a",
    ),
    "inception_v3": (lambda: models.inception_v3(init_weights=False, aux_logits=False), "Mixed_5c", "Mixed_5b"),
    "resnext": (
        lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=4),
        "layer2",
        "layer1",
    ),
    "wide_resnet": (lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], width_per_group=128), "layer2", "layer1"),
    "efficientnet_v2_s": (models.efficientnet_v2_s, "features.3", "features.2"),
    "regnet_y_400mf": (models.regnet_y_400mf, "trunk_output.block2", "trunk_output.block1"),
    "Swin V2": (
        lambda: models.SwinTransformer(
            [4, 4],
            24,
            [2, 2],
            [2, 2],
            [4, 4],
            block=swin_transformer.SwinTransformerBlockV2,
            downsample_layer=swin_transformer.PatchMergingV2,
        ),
        "last:features.1.1",
        "last:features.1.0",
    ),
    "MaxVit": (
        lambda: models.MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.1),
        "blocks.1",
        "blocks.0",
    ),
    "fcn_resnet50": (
        lambda: Put(models.segmentation.fcn_resnet50(weights_backbone=None, num_classes=5), "out"),
        "model.backbone.layer2",
        "model.backbone.layer1",
    ),
    "lraspp_mobilenet_v3_large": (
        lambda: Put(models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=5), "out"),
        "model.backbone.6",
        "model.backbone.5",
    ),
}

TIMM: dict[str, tuple[Make, str, str]] = {
    "resnetv2_50": (of_timm("resnetv2_50", layers=(1, 1, 1, 1)), "stages.1", "stages.0"),
    "resnetv2_50x1_bit": (of_timm("resnetv2_50x1_bit"), "stages.1", "stages.0"),
    "resnest14d": (of_timm("resnest14d"), "layer2", "layer1"),
    "seresnet18": (of_timm("seresnet18"), "layer2", "layer1"),
    "ecaresnet26t": (of_timm("ecaresnet26t"), "layer2", "layer1"),
    "skresnet18": (of_timm("skresnet18"), "layer2", "layer1"),
    "cspresnet50": (of_timm("cspresnet50"), "stages.1", "stages.0"),
    "cs3darknet_s": (of_timm("cs3darknet_s"), "stages.1", "stages.0"),
    "dla46_c": (of_timm("dla46_c"), "level3", "level2"),
    "hrnet_w18_small": (of_timm("hrnet_w18_small"), "stage2.0.branches.1", "transition1.1"),
    "inception_v4": (of_timm("inception_v4"), "features.7", "features.6"),
    "xception41": (of_timm("xception41"), "blocks.1", "blocks.0"),
    "dm_nfnet_f0": (of_timm("dm_nfnet_f0"), "stages.1", "stages.0"),
    "nf_resnet26": (of_timm("nf_resnet26"), "stages.1", "stages.0"),
    "repvgg_a0": (of_timm("repvgg_a0"), "stages.1", "stages.0"),
    "ghostnet_050": (of_timm("ghostnet_050"), "blocks.3", "blocks.2"),
    "ghostnetv2_100": (of_timm("ghostnetv2_100"), "blocks.3", "blocks.2"),
    "mobilenetv4_conv_small_050": (of_timm("mobilenetv4_conv_small_050"), "blocks.1", "blocks.0"),
    "mobileone_s0": (of_timm("mobileone_s0"), "stages.1", "stages.0"),
    "fastvit_t8": (of_timm("fastvit_t8"), "stages.1", "stages.0"),
    "EfficientFormer": (
        lambda: efficientformer.EfficientFormer((1, 1, 1, 2), (16, 24, 32, 48), num_vit=1),
        "stages.1",
        "stages.0",
    ),
    "efficientformerv2_s0": (of_timm("efficientformerv2_s0", img_size=64), "stages.1", "stages.0"),
    "edgenext_xx_small": (of_timm("edgenext_xx_small"), "stages.1", "stages.0"),
    "levit_128s": (of_timm("levit_128s", img_size=64), "patches:stages.0.blocks.1", "patches:stages.0.blocks.0"),
    "coat_lite_tiny": (of_timm("coat_lite_tiny", img_size=64), "patches:serial_blocks2.1", "patches:serial_blocks2.0"),
    "coatnet_pico_rw_224": (of_timm("coatnet_pico_rw_224", img_size=64), "stages.2", "stages.1"),
    "pvt_v2_b0": (of_timm("pvt_v2_b0"), "patches:stages.1.blocks.1", "patches:stages.1.blocks.0"),
    "twins_svt_small": (of_timm("twins_svt_small", img_size=64), "patches:blocks.1.1", "patches:blocks.1.0"),
    "twins_pcpvt_small": (of_timm("twins_pcpvt_small", img_size=64), "patches:blocks.1.1", "patches:blocks.1.0"),
    "cait_xxs24_224": (of_timm("cait_xxs24_224", **SMALL), "patches:blocks.1", "patches:blocks.0"),
    "xcit_nano_12_p16_224": (of_timm("xcit_nano_12_p16_224", **SMALL), "patches:blocks.1", "patches:blocks.0"),
    "deit_tiny_distilled_patch16_224": (
        of_timm("deit_tiny_distilled_patch16_224", **SMALL),
        "patches:blocks.1",
        "patches:blocks.0",
    ),
    "deit3_small_patch16_224": (of_timm("deit3_small_patch16_224", **SMALL), "patches:blocks.1", "patches:blocks.0"),
    "beit_base_patch16_224": (of_timm("beit_base_patch16_224", **SMALL), "patches:blocks.1", "patches:blocks.0"),
    "vit_small_patch14_reg4_dinov2": (
        of_timm("vit_small_patch14_reg4_dinov2", **SMALL),
        "patches:blocks.1",
        "patches:blocks.0",
    ),
    "vit_small_patch16_dinov3": (of_timm("vit_small_patch16_dinov3", **SMALL), "patches:blocks.1", "patches:blocks.0"),
    "eva02_tiny_patch14_224": (of_timm("eva02_tiny_patch14_224", **SMALL), "patches:blocks.1", "patches:blocks.0"),
    "vit_base_patch16_siglip_224": (
        of_timm("vit_base_patch16_siglip_224", **SMALL),
        "patches:blocks.1",
        "patches:blocks.0",
    ),
    "vit_base_patch16_clip_224": (
        of_timm("vit_base_patch16_clip_224", **SMALL),
        "patches:blocks.1.mlp.act",
        "blocks.0",
    ),
    "vit_relpos_small_patch16_224": (
        of_timm("vit_relpos_small_patch16_224", **SMALL),
        "patches:blocks.1",
        "patches:blocks.0",
    ),
    "vit_small_patch16_rope_224": (
        of_timm("vit_small_patch16_rope_224", **SMALL),
        "patches:blocks.1",
        "patches:blocks.0",
    ),
    "samvit_base_patch16": (
        of_timm("samvit_base_patch16", img_size=64, embed_dim=48, depth=2, num_heads=2, window_size=0),
        "last:blocks.1",
        "last:blocks.0",
    ),
    "swinv2_tiny_window8_256": (
        of_timm("swinv2_tiny_window8_256", img_size=64, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 2)),
        "last:layers.0.blocks.1",
        "last:layers.0.blocks.0",
    ),
    "swin_s3_tiny_224": (of_timm("swin_s3_tiny_224", img_size=64), "last:layers.1", "last:layers.0"),
    "maxvit_nano_rw_256": (of_timm("maxvit_nano_rw_256", img_size=64), "stages.1", "stages.0"),
    "mvitv2_tiny": (of_timm("mvitv2_tiny", img_size=64), "patches:stages.1.blocks.1", "patches:stages.1.blocks.0"),
    "convnextv2_atto": (of_timm("convnextv2_atto"), "stages.1", "stages.0"),
    "hiera_tiny_224": (of_timm("hiera_tiny_224", img_size=64), "patches:blocks.2", "patches:blocks.1"),
    "gMLP": (
        mixer(mlp_mixer.SpatialGatingBlock, mlp_layer=mlp_mixer.GatedMlp, mlp_ratio=4),
        "patches:blocks.1",
        "patches:blocks.0",
    ),
    "ResMLP": (
        mixer(mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine, mlp_ratio=4),
        "patches:blocks.1",
        "patches:blocks.0",
    ),
    "poolformer_s12": (of_timm("poolformer_s12"), "stages.1", "stages.0"),
    "caformer_s18": (of_timm("caformer_s18"), "stages.2", "stages.1"),
    "volo_d1_224": (of_timm("volo_d1_224", img_size=64), "last:network.2.1", "last:network.2.0"),
    "tnt_s_legacy_patch16_224": (
        of_timm("tnt_s_legacy_patch16_224", img_size=64, depth=2),
        "patches:blocks.1.mlp",
        "patches:blocks.1.norm_mlp",
    ),
    "CrossViT": (
        lambda: crossvit.CrossVit(
            64, (1.0, 1.0), (8, 16), embed_dim=(32, 48), depth=((1, 1, 0),), num_heads=(2, 2), mlp_ratio=(2.0, 2.0, 1.0)
        ),
        "patches:blocks.0.blocks.0.0.mlp.act",
        "patches:blocks.0.blocks.0.0.norm2",
    ),
    "davit_tiny": (of_timm("davit_tiny", depths=(1, 1, 1, 1)), "stages.1", "stages.0"),
    "focalnet_tiny_srf": (of_timm("focalnet_tiny_srf"), "layers.1", "layers.0"),
    "gcvit_xxtiny": (of_timm("gcvit_xxtiny", img_size=64), "stages.1", "stages.0"),
    "nest_tiny": (of_timm("nest_tiny", img_size=64), "levels.1", "levels.0"),
    "visformer_tiny": (of_timm("visformer_tiny", img_size=64, depth=(1, 1, 1)), "stage2", "stage1"),
    "tiny_vit_5m_224": (of_timm("tiny_vit_5m_224"), "stages.1", "stages.0"),
    "rdnet_tiny": (of_timm("rdnet_tiny"), "dense_stages.1", "dense_stages.0"),
    "vitamin_small_224": (of_timm("vitamin_small_224", img_size=64, depth=2), "patches:blocks.1", "patches:blocks.0"),
    "vit_tiny_r_s16_p8_224": (
        of_timm("vit_tiny_r_s16_p8_224", img_size=128, patch_size=8, depth=2),
        "patches:blocks.1",
        "patches:blocks.0",
    ),
    "pit_ti_224": (
        of_timm("pit_ti_224", img_size=64),
        "patches:transformers.1.blocks.1",
        "patches:transformers.1.blocks.0",
    ),
    "mobilevit_xxs": (of_timm("mobilevit_xxs"), "stages.2.1", "stages.2.0"),
    "efficientvit_b0": (of_timm("efficientvit_b0"), "stages.2", "stages.1"),
    "repvit_m0_9": (of_timm("repvit_m0_9"), "stages.1", "stages.0"),
    "convit_tiny": (of_timm("convit_tiny", img_size=64, depth=2), "patches:blocks.1", "patches:blocks.0"),
    "mambaout_femto": (of_timm("mambaout_femto"), "last:stages.1", "last:stages.0"),
    "hgnetv2_b0": (of_timm("hgnetv2_b0"), "stages.1", "stages.0"),
    "res2net50_14w_8s": (of_timm("res2net50_14w_8s", layers=(1, 1, 1, 1)), "layer2", "layer1"),
}

OPEN_CLIP: dict[str, tuple[Make, str, str]] = {
    "ModifiedResNet": (
        lambda: open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 32, 4, 64, 16),
        "layer2",
        "layer1",
    ),
    "VisionTransformer": (
        lambda: open_clip.transformer.VisionTransformer(64, 16, 48, 2, 2, 2.0, output_dim=24),
        "patches:transformer.resblocks.1",
        "patches:transformer.resblocks.0",
    ),
    "TimmModel": (
        lambda: open_clip.timm_model.TimmModel("test_vit", 24, image_size=64),
        "patches:trunk.blocks.5",
        "patches:trunk.blocks.4",
    ),
}

TRANSFORMERS: dict[str, tuple[Make, str, str]] = {
    "ViT": (of_transformers("ViT", **TOWER), "patches:model.layers.1", "patches:model.layers.0"),
    "Dinov2": (of_transformers("Dinov2", **TOWER), "patches:model.encoder.layer.1", "patches:model.encoder.layer.0"),
    "CLIPVision": (
        of_transformers("CLIPVision", **TOWER),
        "patches:model.encoder.layers.1",
        "patches:model.encoder.layers.0",
    ),
    "SiglipVision": (
        of_transformers("SiglipVision", **TOWER),
        "patches:model.encoder.layers.1",
        "patches:model.encoder.layers.0",
    ),
    "ConvNext": (
        of_transformers("ConvNext", hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1]),
        "model.encoder.stages.1",
        "model.encoder.stages.0",
    ),
    "Swin": (
        of_transformers("Swin", image_size=64, embed_dim=24, depths=[2, 2], num_heads=[2, 2], window_size=4),
        "patches:model.encoder.layers.0.blocks.1",
        "patches:model.encoder.layers.0.blocks.0",
    ),
    "Beit": (of_transformers("Beit", **TOWER), "patches:model.layers.1", "patches:model.layers.0"),
}

FAMILIES = {
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "open_clip": OPEN_CLIP,
    "transformers": TRANSFORMERS,
}
"""By library each network: how it is made, target and lower layer. Their pictures have 64 pixels a side."""

SIZES = {"EfficientFormer": 224, "vit_tiny_r_s16_p8_224": 128, "inception_v3": 96, "inception_v4": 96}
"""Where that is too small."""
