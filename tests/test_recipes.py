"""The recipes: each is run after the first one, which all need, on a small network that has ResNet's layers."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import pytest
import timm
import torch
import torchvision
from small import ROOT, picture_folder, stirred
from torch import nn
from torchvision.models.resnet import BasicBlock

from pure_nb.judges import embedders

PAGE = ROOT / "book" / "recipes.md"
CLASSES = ["n01440764", "n01443537", "n01484850", "n01491361"]
RECIPES = {
    name: (title, code)
    for name, title, code in re.findall(
        r"\((recipe-[a-z]+)\)=\n### (.+?)\n.*?```python\n(.*?)```", PAGE.read_text(), re.S
    )
}


def small_resnet(weights: str | None = None) -> nn.Module:
    """A tiny network with ResNet's layers, that takes and answers what ResNet-18 does."""
    torch.manual_seed(0)
    widen = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 6, 7, 8)),
        ("layer3", nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 6))),
        ("layer4", nn.Sequential(BasicBlock(6, 8, 2, widen), BasicBlock(8, 8))),
        ("avgpool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(8, 1000)),
    ]
    return stirred(nn.Sequential(OrderedDict(layers)))


def small_vit(weights: str | None = None) -> nn.Module:
    return torchvision.models.VisionTransformer(224, 56, 2, 2, 12, 24)


def small_timm(name: str, pretrained: bool = False, known: Any = timm.create_model, **how: Any) -> nn.Module:
    """A small network of the same kind, without weights from a hub."""
    small = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    if "swin" in name:
        small = {"depths": (2,), "embed_dim": 24, "num_heads": (2,), "patch_size": 16}
    elif "_r_" not in name:
        small |= {"patch_size": 28, "img_size": 224}
    model: nn.Module = known(name, **small | how)
    return model


def small_clip(model: str, *how: Any, known: Any = embedders.open_clip_model) -> tuple[Any, Any, Any]:
    """A small model in place of the ones on the hubs."""
    import open_clip

    if model.startswith("local-dir:"):
        return known(model, *how)
    vision = {"image_size": 224, "layers": 12, "width": 24, "head_width": 12, "patch_size": 56}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1}
    small = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    return small, None, lambda texts: torch.tensor([[len(one) % 60, 63, *[0] * 6] for one in texts])


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A folder with what the recipes name, and the names that they share."""
    folder = tmp_path_factory.mktemp("recipes")
    picture_folder(folder / "photographs", 24, classes=4, size=64)
    for number, wnid in enumerate(CLASSES):
        (folder / "photographs" / f"class{number}").rename(folder / "photographs" / wnid)
    picture_folder(folder / "street", 12, size=64)
    files = sorted((folder / "street").rglob("*.png"))
    boxes = {
        "images": [
            {"id": n, "file_name": str(p.relative_to(folder / "street").as_posix())} for n, p in enumerate(files)
        ],
        "annotations": [
            {"image_id": n, "category_id": 1 + (n + half) % 2, "bbox": [32 * half, 0, 32, 64]}
            for n in range(len(files))
            for half in (0, 1)
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "tree"}],
    }
    (folder / "street" / "boxes.json").write_text(json.dumps(boxes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PURE_NB_STORE", str(folder / "store"))
        patch.setattr(torchvision.models, "resnet18", small_resnet)
        patch.setattr(torchvision.models, "vit_b_16", small_vit)
        patch.setattr(timm, "create_model", small_timm)
        patch.setattr(embedders, "open_clip_model", small_clip)
        names: dict[str, Any] = {}
        exec(RECIPES["recipe-own"][1], names)
        yield names


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.filterwarnings("ignore")
def test_recipe(name: str, kitchen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    load = embedders.load_embedder
    monkeypatch.setattr(
        "pure_nb.load_embedder", lambda spec: load("mini-clip" if spec == "clip" else spec), raising=False
    )
    code = RECIPES[name][1].replace('"cuda"', '"cpu"')
    exec(compile(code, name, "exec"), dict(kitchen))
    plt.close("all")


def test_every_recipe_is_routed() -> None:
    text = PAGE.read_text()
    routed = re.findall(r"\(#(recipe-[a-z]+)\)", text)
    assert sorted(routed) == sorted(RECIPES) == sorted(set(routed))
    assert len(RECIPES) >= 20
    assert text.count("```python") == len(RECIPES)
