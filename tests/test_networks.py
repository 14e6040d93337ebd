"""Which networks can be studied, and how: each is run, and the table in ``benchmarks/results`` says what was found.

Columns of the table: "yes" stands for numbers that are those of plain hooks and autograd, but of LRP it says that every
operation has a rule and it runs (the numbers are compared with zennit-crp in ``test_lrp.py``); pictures show where the
neuron looks by relevance, by the activation map, or not at all (whole); "no" is followed by the reason in short.

Relevance is *conserved* if its sum at the lower layer is that at the target, to 1e-4 and in float64, in the network
without biases; "but for" names what takes some of it by the rules themselves, which then make up for the difference to
1e-4. The bright patches of *boxes* are where heatmaps say they are; pictures are larger there if that is said.

``PURE_NB_WRITE=1 pytest tests/test_networks.py`` writes the table anew; that needs ``pip install -e ".[hub-test]"``.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from families import FAMILIES, SIZES
from numpy.typing import NDArray
from small import ROOT, noise, plain, stirred
from test_functions import tight, without_biases
from timm.layers import StdConv2d
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import TensorDataset
from torchvision.models import SwinTransformer, VisionTransformer

from pure_nb._resting import frozen_eval
from pure_nb.benchmark.planting import plant
from pure_nb.errors import LayerError, ModelError, PlantingError
from pure_nb.images.data import Images
from pure_nb.network import functions, rules
from pure_nb.network.cut import Cut
from pure_nb.network.layers import activations, flatten_positions
from pure_nb.network.lrp import ruled
from pure_nb.study import Study

TABLE = ROOT / "benchmarks" / "results" / "networks.csv"
IMAGES, REFERENCES, CHANNELS = 8, 6, 2


def reparametrised(put: Callable[[nn.Conv2d], object]) -> nn.Module:
    """Convolutions that compute their weights; that LRP sees these, test_lrp.py shows."""
    model = plain()
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            put(layer)
    return model


def standardised() -> nn.Module:
    """Convolutions that standardise their weights in their forward pass."""
    model = plain()
    for place in (0, 2, 4):
        like = model[place]
        model[place] = StdConv2d(like.in_channels, like.out_channels, 3, stride=like.stride, padding=1, bias=True)
    return model


NETWORKS: dict[str, tuple[str, int | tuple[int, int], Callable[[], nn.Module]]] = {
    "nn.Sequential": ("torch", 12, plain),
    "weight_norm, old": ("torch", 12, lambda: reparametrised(nn.utils.weight_norm)),
    "weight_norm": ("torch", 12, lambda: reparametrised(nn.utils.parametrizations.weight_norm)),
    "spectral_norm": ("torch", 12, lambda: reparametrised(nn.utils.parametrizations.spectral_norm)),
    "pruned": ("torch", 12, lambda: reparametrised(lambda layer: prune.l1_unstructured(layer, "weight", 0.3))),
    "standardised": ("timm", 12, lambda: standardised()),
    "resnet18": ("torchvision", 32, lambda: torchvision.models.resnet18()),
    "vgg11_bn": ("torchvision", 32, lambda: torchvision.models.vgg11_bn(init_weights=False)),
    "densenet121": ("torchvision", 32, lambda: torchvision.models.densenet121()),
    "efficientnet_b0": ("torchvision", 32, lambda: torchvision.models.efficientnet_b0()),
    "mobilenet_v2": ("torchvision", 32, lambda: torchvision.models.mobilenet_v2()),
    "mobilenet_v3_small": ("torchvision", 64, lambda: torchvision.models.mobilenet_v3_small()),
    "convnext_tiny": ("torchvision", 32, lambda: torchvision.models.convnext_tiny()),
    "VisionTransformer": ("torchvision", 32, lambda: VisionTransformer(32, 8, 2, 2, 16, 32)),
    "SwinTransformer": ("torchvision", 32, lambda: SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4])),
    "timm resnet18": ("timm", 32, lambda: timm.create_model("resnet18")),
    "timm resnet26d": ("timm", 32, lambda: timm.create_model("resnet26d")),
    "timm vit_tiny_patch16_224": (
        "timm",
        32,
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, reg_tokens=2),
    ),
    "timm convnext_atto": ("timm", 32, lambda: timm.create_model("convnext_atto")),
    "timm test_convnext": ("timm", 32, lambda: timm.create_model("test_convnext", conv_mlp=False)),
    "timm efficientnet_lite0": ("timm", 32, lambda: timm.create_model("efficientnet_lite0")),
    "timm mobilenetv3_small_050": ("timm", 64, lambda: timm.create_model("mobilenetv3_small_050")),
    "timm densenet121": ("timm", 32, lambda: timm.create_model("densenet121")),
    "timm regnetx_002": ("timm", 32, lambda: timm.create_model("regnetx_002")),
    "tokens first": ("torch", 32, lambda: TokensFirst()),
    "Conv1d": ("torch", 16, lambda: Rows()),
    "frames": ("torch", 16, lambda: Tiles()),
    "timm vit_tiny_patch16_224 48 x 32": (
        "timm",
        (48, 32),
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=(48, 32), patch_size=8, depth=2),
    ),
    "timm vit_tiny_patch16_224 checkpointed": (
        "timm",
        32,
        lambda: checkpointed("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3),
    ),
    "timm resnet18 checkpointed": ("timm", 32, lambda: checkpointed("resnet18")),
    "timm swin_tiny_patch4_window7_224": (
        "timm",
        32,
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 2)
        ),
    ),
    "timm maxvit_pico_rw_256": ("timm", 64, lambda: timm.create_model("maxvit_pico_rw_256", img_size=64)),
    "timm MlpMixer": ("timm", 32, lambda: MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=24)),
}
"""Library, size of the pictures (or height and width), and how it is made."""


class TokensFirst(nn.Module):
    """Tokens [T, B, C] inside the transformer, as in OpenAI's CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(12))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(12, 2, 24, dropout=0) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, -1), x], dim=1)
        return self.blocks(x.transpose(0, 1))[0]


class Rows(nn.Module):
    """Convolutions over [B, C, L]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(3, 10, 4, 4), nn.Flatten(2))
        self.mix = nn.Sequential(nn.Conv1d(10, 7, 3, padding=1), nn.BatchNorm1d(7), nn.ReLU(), nn.AvgPool1d(2))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(x)).mean(dim=2))


class Tiles(nn.Module):
    """Four tiles of each image, as the frames of a video, in the first axis: [B * 4, C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.top, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tiles = x.unflatten(2, (2, 8)).unflatten(4, (2, 8)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        seen = self.top(self.stem(tiles).relu()).relu().mean(dim=(2, 3))
        return self.head(seen).unflatten(0, (len(x), 4)).mean(dim=1)


def checkpointed(name: str, **options: Any) -> nn.Module:
    """A network of timm that runs its blocks again in the backward pass."""
    model: Any = timm.create_model(name, **options)
    model.set_grad_checkpointing(True)
    return model


VIT, BLOCK = "encoder.layers.encoder_layer_", "features.1.1.block"
LAYERS: dict[str, list[tuple[str, str]]] = {
    "nn.Sequential": [("4", "2"), ("5", "input:4")],
    **{key: [("4", "2")] for key in ("weight_norm, old", "weight_norm", "spectral_norm", "pruned", "standardised")},
    "resnet18": [("layer2", "layer1"), ("layer2.1.conv2", "input:layer2.1.conv2")],
    "vgg11_bn": [("features.9", "features.5"), ("features.10", "input:features.8")],
    "densenet121": [("features.denseblock2", "features.denseblock1"), ("features.transition1.conv", "features.conv0")],
    "efficientnet_b0": [("features.3", "features.2"), ("features.2.0.block.3", "features.2.0.block.2")],
    "mobilenet_v2": [("features.3", "features.2"), ("features.3.conv.3", "features.3.conv.0")],
    "mobilenet_v3_small": [("features.2", "features.1"), ("features.2.block.2", "features.2.block.1")],
    "convnext_tiny": [
        ("features.1", "features.0"),
        (f"{BLOCK}.3", f"{BLOCK}.0"),
        (f"last:{BLOCK}.4", f"{BLOCK}.2"),
        (f"{BLOCK}.5", f"last:{BLOCK}.4"),
        (f"{BLOCK}.4", f"{BLOCK}.0"),
    ],
    "VisionTransformer": [
        (f"{VIT}1", f"{VIT}0"),
        (f"patches:{VIT}1", f"patches:{VIT}0"),
        (f"class:{VIT}1", f"patches:{VIT}0"),
        (f"{VIT}1.mlp.1", f"{VIT}0"),
        (f"patches:{VIT}1.mlp.1", f"{VIT}0.mlp.1"),
        (f"{VIT}1.mlp.3", f"{VIT}1.mlp.0"),
    ],
    "SwinTransformer": [
        ("last:features.3", "last:features.1"),
        ("features.3.1.mlp.0", "features.3.1.norm2"),
        ("last:features.3.1.mlp.1", "features.3.1.norm2"),
        ("features.3", "features.1"),
    ],
    "timm resnet18": [("layer2", "layer1")],
    "timm resnet26d": [("layer2", "layer1")],
    "timm vit_tiny_patch16_224": [
        ("blocks.1", "blocks.0"),
        ("patches:blocks.1", "patches:blocks.0"),
        ("patches:blocks.1.mlp.act", "input:blocks.1"),
        ("class:blocks.1.mlp.fc1", "patches:blocks.0"),
    ],
    "timm convnext_atto": [("stages.1", "stages.0"), ("stages.1.blocks.1.mlp.act", "stages.1.blocks.1.conv_dw")],
    "timm test_convnext": [
        ("stages.1", "stages.0"),
        ("stages.1.blocks.0.mlp.fc1", "stages.1.blocks.0.conv_dw"),
        ("last:stages.1.blocks.0.mlp.act", "stages.1.blocks.0.norm"),
    ],
    "timm efficientnet_lite0": [("blocks.1", "blocks.0"), ("blocks.1.0.bn3", "blocks.1.0.bn2")],
    "timm mobilenetv3_small_050": [("blocks.1", "blocks.0")],
    "timm densenet121": [("features.denseblock2", "features.denseblock1")],
    "timm regnetx_002": [("s2", "s1"), ("s2.b1.conv2.conv", "s2.b1.conv1.bn")],
    "tokens first": [
        ("tokens:blocks.1", "tokens:blocks.0"),
        ("patches:tokens:blocks.1", "patches:tokens:blocks.0"),
        ("tokens:blocks.1.linear1", "input:tokens:blocks.1"),
        ("blocks.1", "blocks.0"),
    ],
    "Conv1d": [
        ("mix.0", "embed.0"),
        ("mix.1", "first:embed"),
        ("patches:first:mix.2", "patches:first:embed"),
        ("mix.3", "first:embed"),
        ("mix.2", "mix.0"),
    ],
    "frames": [("folded:top", "folded:stem"), ("folded:top", "input:folded:top"), ("top", "stem")],
    "timm vit_tiny_patch16_224 48 x 32": [("patches:blocks.1", "patches:blocks.0"), ("blocks.1", "patch_embed")],
    "timm vit_tiny_patch16_224 checkpointed": [("blocks.2", "blocks.0"), ("blocks.2.mlp.fc1", "blocks.1.mlp.fc1")],
    "timm resnet18 checkpointed": [("layer3", "layer2"), ("layer3.1.bn2", "layer3.1.bn1")],
    "timm swin_tiny_patch4_window7_224": [
        ("last:layers.1", "last:layers.0"),
        ("folded:layers.0.blocks.1.attn", "last:layers.0.blocks.0"),
        ("last:layers.0.blocks.1", "folded:layers.0.blocks.1.attn.qkv"),
        ("layers.0.blocks.1.attn", "last:layers.0.blocks.0"),
    ],
    "timm maxvit_pico_rw_256": [("folded:last:stages.0.blocks.0.attn_block.attn", "stages.0.blocks.0.conv")],
    "timm MlpMixer": [
        ("blocks.1", "blocks.0"),
        ("patches:first:blocks.1.mlp_tokens.fc2", "patches:blocks.0"),
        ("blocks.1.mlp_tokens.act", "blocks.0"),
    ],
}
"""Targets and lower layers."""

for library, networks in FAMILIES.items():
    for name, (make, upper, below) in networks.items():
        NETWORKS[f"{library} {name}"] = library, SIZES.get(name, 64), make
        LAYERS[f"{library} {name}"] = [(upper, below)]

LAYERS["timm hiera_tiny_224"].append(("blocks.2", "blocks.1"))

LINEAR_OR_NORM = (
    *(f"{BLOCK}.{number}" for number in (2, 3, 5)),
    "features.3.1.mlp.0",
    "features.3.1.norm2",
    "stages.1.blocks.0.mlp.fc1",
    "stages.1.blocks.0.norm",
)
"""Those of them that put their channels last, without a prefix that says so."""

CONVOLVED = ("mix.0", "mix.1", "mix.3")
"""Those of three axes that put their channels first, without a prefix that says so."""

LIBRARIES = ("torch", "torchvision", "timm", "open-clip-torch", "transformers", "zennit")
NONE = "-"
ATTENTION = ("softmax", "scaled_dot_product_attention", "multi_head_attention_forward")
TAKES = {
    **dict.fromkeys(ATTENTION, "softmax"),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), "gates"),
    **dict.fromkeys(("add", "sub", "__rsub__"), "constants"),  # such as computed biases of positions
}
"""By a function's name what takes relevance up, as the rules have it."""

COLUMNS = (
    "network",
    "library",
    "target",
    "lower",
    "references",
    "circuits",
    "virtual neurons",
    "pictures",
    "LRP",
    "conserved",
    "boxes",
)

CASES = [(network, *pair) for network in NETWORKS for pair in LAYERS[network]]
DAILY = (
    "nn.Sequential",
    "resnet18",
    "VisionTransformer",
    "SwinTransformer",
    "timm test_convnext",
    "tokens first",
    "Conv1d",
    "frames",
)
"""One of each way to have images and channels; the other networks are looked at nightly."""


@lru_cache(maxsize=1)
def made(network: str) -> nn.Module:
    """The network with random weights, the same each time, under which nothing is dead or vanishes."""
    torch.manual_seed(0)
    model = stirred(NETWORKS[network][2]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() < 0.01 and not any(part in name for part in ("bias", "beta", "pos", "token")):
                parameter.uniform_(0.5, 1.5)  # what a block adds is scaled by 1e-6 or so where training begins
    return model


def kept_by_hooks(model: nn.Module, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """What the modules put out (or are given, with ``input:``), as it is, in the graph of the whole network."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any = None) -> Any:
            if isinstance(output, tuple):
                return (hook(_, inputs, output[0]), *output[1:])
            kept[name] = inputs[0] if output is None else output
            # A copy goes on, since the next layer may work in place.
            return (kept[name].clone(), *inputs[1:]) if output is None else output.clone()

        return hook

    handles = []
    for name in layers:
        module = model.get_submodule(name.rpartition(":")[2])
        register = module.register_forward_pre_hook if name.startswith("input:") else module.register_forward_hook
        handles.append(register(keep(name)))
    model(images.clone().requires_grad_())
    for handle in handles:
        handle.remove()
    return kept


def positions(model: nn.Module, name: str, whole: Tensor) -> Tensor:
    """What a layer's name means of what its module puts out: ``[B, P, C]``."""
    prefix, _, inner = name.rpartition(":")
    if "tokens" in prefix:
        whole, prefix = whole.transpose(0, 1), prefix.replace("tokens", "").strip(":")
    if "folded" in prefix:
        each = "last" if "last" in prefix else "input" if "input" in prefix else ""
        parts = [positions(model, f"{each}:{inner}", part) for part in whole.split(1)]
        return torch.cat(parts, dim=1).reshape(IMAGES, -1, parts[0].shape[-1])
    if whole.ndim == 3 and ("first" in prefix or inner in CONVOLVED):
        whole, prefix = whole.transpose(1, 2), prefix.replace("first", "").strip(":")
    if whole.ndim == 4:
        last = prefix == "last" or inner in LINEAR_OR_NORM
        return whole.flatten(1, 2) if last else whole.flatten(2).transpose(1, 2)
    if whole.ndim == 2:
        return whole[:, None]
    before = 1 if whole.shape[1] == 25 else whole.shape[1] % 16  # 4 x 4 or 6 x 4 patches, a class token, registers
    return {"patches": whole[:, before:], "class": whole[:, :1]}.get(prefix, whole)


def circuit(model: nn.Module, target: str, lower: str, channel: int, kept: dict[str, Tensor]) -> NDArray[np.float32]:
    """Input times gradient of a channel, summed over positions and divided by its sum: ``[B, lower channels]``."""
    own = positions(model, target, kept[target])[:, :, channel]
    (flow,) = torch.autograd.grad((own.detach().clamp(min=0) * own).sum(), kept[lower], retain_graph=True)
    relevance = positions(model, lower, (kept[lower] * flow).detach()).sum(dim=1)
    return (relevance / (relevance.abs().sum(dim=1, keepdim=True) + 1e-10)).numpy()


def in_short(problem: LayerError) -> str:
    """Why something is refused, in a few words; the whole says what to do."""
    for said, prefix in (
        ("channels last", "last:"),
        ("channels first", "first:"),
        ("images on the second axis", "tokens:"),
        ("windows, tiles or frames of each image in the first axis", "folded:"),
    ):
        if said in str(problem):
            assert f"name it '{prefix}" in str(problem)
            return f"no: {said}, name it {prefix}"
    if "tokens in another order" in str(problem):
        return "no: tokens in another order, name it without patches:"
    assert "use rule='gradient'" in str(problem)
    if found := re.search(r"no rule for the operation '[\w:]*?(\w+)' in '.*' \((\w+)\)", str(problem)):
        return f"no: {found[1]} in {found[2]}"
    if "work in place" in str(problem):
        return "no: drops what a function returns that works in place"
    if "merging batch norms" in str(problem):
        return "no: its batch norm is merged into it"
    assert "do not fit" in str(problem)
    return "no: rules do not fit"


def row(network: str, target: str, lower: str) -> dict[str, str]:
    """Study two layers of a network, check what is found, and say how far it went."""
    library, size, _ = NETWORKS[network]
    found = {"network": network.removeprefix(f"{library} "), "library": library, "target": target, "lower": lower}
    height, width = (size, size) if isinstance(size, int) else size
    model, images = made(network), noise(IMAGES, max(height, width))[:, :, :height, :width]
    try:
        study = Study.from_model(
            model, Images(TensorDataset(images)), target, lower, n_references=REFERENCES, n_clusters=2
        )
    except LayerError as problem:
        return found | dict.fromkeys(COLUMNS[4:], in_short(problem))
    study = study.replace(store=None, progress=False)
    references = study.references
    by_hand: Any = copy.deepcopy(model)
    if "checkpointed" in network:
        by_hand.set_grad_checkpointing(False)
    kept = kept_by_hooks(by_hand, images, (target, lower))
    score = positions(model, target, kept[target].detach()).amax(dim=1).T  # [C, B]
    best, sample = score.sort(dim=1, descending=True)
    np.testing.assert_array_equal(references.sample, sample[:, :REFERENCES])
    np.testing.assert_allclose(references.score, best[:, :REFERENCES], rtol=1e-4, atol=1e-5)
    channels = np.argsort(-references.score[:, -1])[:CHANNELS].tolist()
    assert references.score[channels].min() > 0
    for channel in channels:
        vectors = study.circuits_of(channel)
        own = circuit(model, target, lower, channel, kept)[references.sample[channel]]
        np.testing.assert_allclose(vectors, own, atol=1e-4)
        assert np.abs(vectors).sum() > 0.99 * REFERENCES
        parts = study.virtual_of(channel)
        assert parts.k == 2
        for part in range(2):
            np.testing.assert_allclose(parts.centroids[part], own[parts.labels == part].mean(axis=0), atol=1e-4)
    return found | {
        "references": "yes",
        "circuits": "yes",
        "virtual neurons": "yes",
        "pictures": pictures(study, channels[0]),
        "LRP": (rules := lrp(study, channels[0])),
        "conserved": conserved(model, images[:1], target, lower) if rules == "yes" else NONE,
        "boxes": found_where_planted(model, (height, width), target, lower),
    }


def conserved(model: nn.Module, image: Tensor, target: str, lower: str) -> str:
    """Whether relevance is conserved in float64 without biases, or what takes some of it; to 1e-4."""
    exact, taken, called = without_biases(copy.deepcopy(model)), Counter[str](), [""]
    whole = lower.removeprefix("patches:").removeprefix("class:")  # other tokens take their share of it

    def noted(name: str, surrogate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        called[0] = name
        return surrogate(*args, **kwargs)

    class Noting(functions._Share):
        def __init__(self, inputs: list[Tensor], output: Tensor) -> None:
            super().__init__(inputs, output)
            self.name = called[0]

        def __call__(self, above: Tensor) -> tuple[Tensor | None, ...]:
            below = super().__call__(above)
            taken[TAKES.get(self.name, self.name)] += float(above.sum() - sum(f.sum() for f in below if f is not None))
            return below

    class Detour(detour := rules._Detour):  # type: ignore[misc]
        @staticmethod
        def backward(ctx: Any, *above: Tensor) -> Any:
            below = detour.backward(ctx, *above)
            taken["z-plus"] += float(above[0].sum() - sum(f.sum() for f in below if f is not None))
            return below

    named = {name: partial(noted, name, surrogate) for name, surrogate in functions.SURROGATES.items()}
    with (
        mock.patch.multiple(functions, SURROGATES=named, _Share=Noting, EPSILON=1e-30),
        mock.patch.object(rules, "_Detour", Detour),
        frozen_eval(exact),
        ruled(exact, image.double(), whole, target, tight(exact)),
        frozen_eval(exact),
    ):
        cut = Cut.at(exact, image.double(), whole, target, times_input=False)
        top = flatten_positions(cut.top.detach())[0].clamp(min=0).sum(dim=-1)
        best = top.argmax()
        taken.clear()
        lost = float(1 - cut.relevance(best[None]).sum() / top[best])
    if abs(lost) < 1e-4:
        return "yes"
    if abs(lost - sum(taken.values()) / float(top[best])) > 1e-4:
        return f"no: {lost:.0%} lost"
    takes = sorted(name for name, much in taken.items() if abs(much) > 1e-5 * top[best])
    return f"but for {' and '.join(takes)}"


def found_where_planted(model: nn.Module, size: tuple[int, int], target: str, lower: str) -> str:
    """In larger pictures where a position sees all of these, if the network takes them."""
    found, larger = boxes(model, size, target, lower), (2 * size[0], 2 * size[1])
    if found != "yes" and max(larger) <= 128:
        with suppress(ModelError):
            found = boxes(model, larger, target, lower)
            return f"yes, {larger[0]} x {larger[1]}" if found == "yes" else found
    return found


def boxes(model: nn.Module, size: tuple[int, int], target: str, lower: str) -> str:
    """Whether heatmaps show a bright patch where it was planted."""
    side = min(size) // 4
    images = 0.05 + 0.01 * noise(5, max(size))[:, :, : size[0], : size[1]]
    corners = np.array([(0, size[1]), (size[0], 0), (3 * side, side), (size[0] - side, 3 * side), (side, side)])
    corners = np.minimum(corners, np.array(size) - side)
    for image, (top, left) in zip(images, corners):
        image[:, top : top + side, left : left + side] += torch.tensor([15.0, -10.0, 10.0])[:, None, None]
    study = Study.from_model(
        model, Images(TensorDataset(images)), target, lower, n_references=5, start="peak", rule="lrp"
    ).replace(store=None, progress=False)
    grid = study.references.grid
    if len(grid) < 2 or min(grid) < 4:
        return f"grid of {' x '.join(map(str, grid))}" if len(grid) > 1 else "no grid"
    place = np.stack(np.divmod(study.references.position, grid[1]), axis=-1)
    away = (place + 0.5) * np.array(size) / grid - corners[study.references.sample] - side / 2
    near = side / 2 + np.array(size) / grid  # or in the next cell
    right = (np.abs(away) < near).all(axis=(1, 2)) & (study.references.score[:, -1] > 0)
    if not right.any():
        return "no: no channel is largest there"
    with torch.no_grad():
        values = flatten_positions(activations(study.model, images, [target])[target]).clamp(min=0)
    contrast = (values.amax(dim=2) / (values.mean(dim=2) + 1e-6)).amin(dim=0).numpy()
    channel, wrong = int((contrast * right).argmax()), set[str]()
    cells = np.ceil(np.array(size) / grid).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for look in ("peak", "activation")[: 1 + (contrast[channel] > 3)]:  # or it is active everywhere
            for view in study.neuron(channel).views(range(5), look):
                first, last = np.maximum(corners[view.sample] - cells, 0), corners[view.sample] + side + cells
                at = np.zeros(view.mask.shape, dtype=np.bool_)
                at[first[0] : last[0], first[1] : last[1]] = True
                if view.mask[at].mean() <= (1.5 if look == "peak" else 1) * view.mask[~at].mean():
                    wrong.add("heatmap" if look == "peak" else "activation map")
    return f"no: the {' and the '.join(sorted(wrong))} is not denser there" if wrong else "yes"


def pictures(study: Study, channel: int) -> str:
    """How pictures of a neuron are made."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        views = study.neuron(channel).views([0, 1])
    said = " ".join(str(warning.message) for warning in caught)
    assert all(view.picture.shape == (*study.images.example.shape[1:], 3) for view in views)
    assert all(view.mask.any() for view in views)
    if "whole pictures are shown" in said:
        assert all(view.mask.all() for view in views)
        return "whole"
    return "activation map" if "the activation map is shown" in said else "relevance"


def lrp(study: Study, channel: int) -> str:
    """Whether circuits by LRP are to be had."""
    try:
        vectors = study.replace(rule="lrp").circuits_of(channel)
    except LayerError as problem:
        return in_short(problem)
    np.testing.assert_allclose(np.abs(vectors).sum(axis=1), 1, atol=1e-3)
    return "yes"


def write(rows: list[dict[str, str]]) -> None:
    """The table, and beside it when and with which versions it was made."""
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(TABLE, index=False)
    versions = {library: version(library) for library in LIBRARIES}
    text = json.dumps({"made": f"{date.today()}", "python": platform.python_version(), **versions}, indent=1)
    TABLE.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, ...], dict[str, str]]]:
    """The rows of the table as it is kept; as they were found now, if it is to be written."""
    if os.environ.get("PURE_NB_WRITE"):
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        yield rows
        write(list(rows.values()))
        return
    kept = pd.read_csv(TABLE, dtype=str).to_dict("records")
    yield {tuple(one[name] for name in COLUMNS[:4]): one for one in kept}


@pytest.mark.parametrize(
    ("network", "target", "lower"),
    [pytest.param(*case, marks=[] if case[0] in DAILY else pytest.mark.nightly) for case in CASES],
)
def test_network(network: str, target: str, lower: str, table: dict[tuple[str, ...], Any]) -> None:
    found = row(network, target, lower)
    key = tuple(found[name] for name in COLUMNS[:4])
    if os.environ.get("PURE_NB_WRITE"):
        table[key] = found
    assert found == table[key]


def test_the_table_has_no_other_rows(table: dict[tuple[str, ...], Any]) -> None:
    expected = [(n.removeprefix(f"{NETWORKS[n][0]} "), NETWORKS[n][0], target, lower) for n, target, lower in CASES]
    assert list(table) == expected


class Turned(nn.Module):
    """From [B, C, H, W] to [B, H, W, C], or back."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def twins() -> tuple[nn.Module, nn.Module]:
    """The same network twice: with linear layers over the channels last, and with 1x1 convolutions."""
    torch.manual_seed(0)
    stem, first, second = nn.Conv2d(3, 5, 3, stride=2), nn.Linear(5, 5), nn.Linear(5, 5)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
    last = nn.Sequential(stem, Turned(0, 2, 3, 1), first, nn.ReLU(), second, Turned(0, 3, 1, 2), *tail)
    same: list[nn.Module] = []
    for linear in (first, second):
        linear.bias.data += 0.5  # so that no channel is dead
        convolution = nn.Conv2d(5, 5, 1)
        convolution.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
        same.append(convolution)
    usual = nn.Sequential(stem, nn.Identity(), same[0], nn.ReLU(), same[1], nn.Identity(), *tail)
    return last.eval(), usual.eval()


def test_channels_last_give_the_same_study() -> None:
    """As many channels as rows and columns, so that nothing but the right axis would give these numbers."""
    images = noise(12, 11)
    labelled: Any = TensorDataset(images)
    labelled.targets, labelled.classes = [number % 3 for number in range(12)], ["a", "b", "c"]
    data, found = Images(labelled), []
    for model, lower in zip(twins(), ("last:3", "3")):
        for below in (lower, "input:4", "2"):
            study = Study.from_model(model, data, "4", below, n_references=6, n_clusters=2).replace(
                store=None, progress=False
            )
            found.append((study, below))
    for (mine, _), (other, below) in zip(found[:3], found[3:]):
        assert mine.shapes[0].grid == (5, 5)
        np.testing.assert_array_equal(mine.references.sample, other.references.sample)
        np.testing.assert_array_equal(mine.references.position, other.references.position)
        np.testing.assert_allclose(mine.circuits, other.circuits, atol=1e-5)
        np.testing.assert_allclose(mine.classes.statistics.relevant, other.classes.statistics.relevant)
        pair = mine.classes.pairs["cosine"], other.classes.pairs["cosine"]
        np.testing.assert_allclose(*pair, atol=1e-4)
        one, two = (study.neuron(1).views([0], "activation")[0] for study in (mine, other))
        np.testing.assert_array_equal(one.mask, two.mask)
        if below == "input:4":
            parts = [study.classes.split(1).activations.parts for study in (mine, other)]
            np.testing.assert_allclose(parts[0], parts[1], rtol=1e-4, atol=1e-5)
            assert np.abs(parts[0]).sum() > 0


@pytest.mark.parametrize("layer", ["4", "3"])
def test_channels_are_merged_where_they_are_last(layer: str) -> None:
    """In a linear layer, and (of its own input) in the norm before it."""
    model, images = twins()[0], noise(6, 11)
    if layer == "3":
        model[3] = nn.LayerNorm(5)
    study = Study.from_model(model, Images(TensorDataset(images)), layer, "2", n_references=3)
    planted, planting = plant(model, study.references, [(1, 2)])
    with torch.no_grad():
        torch.testing.assert_close(planted(images), model(images))
        found = activations(planted, images, [planting.target, layer + ".whole"])
    merged, whole = found[planting.target], found[layer + ".whole"]
    weight = torch.from_numpy(planting.weight[0]).float()
    torch.testing.assert_close(merged[:, 0], (weight[None, :, None, None] * whole).sum(dim=1))


def test_channels_of_some_tokens_are_not_merged() -> None:
    model = made("VisionTransformer")
    study = Study.from_model(model, Images(TensorDataset(noise(4, 32))), f"patches:{VIT}1", f"{VIT}0", n_references=3)
    with pytest.raises(PlantingError, match=f"name '{VIT}1' without 'patches:'"):
        plant(model, study.references, [(1, 2)])


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
@pytest.mark.parametrize("network", ["nn.Sequential", "VisionTransformer"])
def test_half_precision(dtype: torch.dtype, network: str) -> None:
    """The same as in single precision, up to rounding."""
    _, size, make = NETWORKS[network]
    target, lower = LAYERS[network][1]
    assert isinstance(size, int)
    studies = []
    for precision in (torch.float32, dtype):
        torch.manual_seed(0)
        model = make().eval().to(precision)
        data = Images(TensorDataset(noise(IMAGES, size)))
        study = Study.from_model(model, data, target, lower, n_references=REFERENCES, n_clusters=2)
        studies.append(study.replace(store=None, progress=False))
    exact, half = studies
    np.testing.assert_allclose(half.references.score, exact.references.score, rtol=0.1, atol=0.05)
    channel = int(exact.references.score[:, -1].argmax())
    sample = exact.references.sample[channel]
    found = [study.run_circuits(np.full_like(sample, channel), sample) for study in studies]
    for one, other in zip(*found):
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99
    assert half.virtual_of(channel).k == 2
    assert pictures(half, channel) == pictures(exact, channel)
    assert lrp(half, channel) == lrp(exact, channel)
