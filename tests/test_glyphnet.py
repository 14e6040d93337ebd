"""The network that ships: its shape, its weights, and whether it can do what its card says."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file
from small import ROOT
from torch import nn
from torchvision.models.resnet import BasicBlock

from pure_nb.glyphs import CLASSES, SIZE, GlyphObjects, GlyphScenes
from pure_nb.glyphs.network import CHANNELS, SIBLINGS, GlyphNet
from pure_nb.loading import load_model
from pure_nb.network.layers import activations
from pure_nb.network.shapes import survey

SHIPPED = ROOT / "pure_nb" / "glyphs"


def test_shapes() -> None:
    model = GlyphNet().eval()
    found = activations(model, torch.zeros(2, 3, SIZE, SIZE), ["layer1", "layer2", "layer3", "layer4", "fc"])
    assert tuple(found["layer1"].shape) == (2, 16, 48, 48)
    assert tuple(found["layer2"].shape) == (2, 32, 24, 24)
    assert tuple(found["layer3"].shape) == (2, 64, 12, 12)
    assert tuple(found["layer4"].shape) == (2, 32, 12, 12)
    assert tuple(found["fc"].shape) == (2, len(CLASSES))
    assert tuple(model(torch.zeros(2, 3, SIZE, SIZE)).shape) == (2, 48)


def test_fewer_channels_than_classes() -> None:
    assert CHANNELS[-1] < len(CLASSES)


def test_names_and_blocks_are_torchvisions() -> None:
    model = GlyphNet()
    names = [name for name, _ in model.named_children()]
    assert names == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool", "flatten", "fc"]
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        assert [type(block) for block in stage] == [BasicBlock]
    assert {"layer3.0.conv2", "layer4.0.downsample.0"} <= {
        shape.name for shape in survey(model, torch.zeros(1, 3, 96, 96))
    }


def test_weights_load_strictly() -> None:
    model = GlyphNet()
    model.load_state_dict(load_file(SHIPPED / "network.safetensors"), strict=True)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_asset_is_small() -> None:
    assert (SHIPPED / "network.safetensors").stat().st_size < 1_000_000


def test_knows_single_objects(glyphnet: nn.Module) -> None:
    dataset = GlyphObjects(10)
    assert len(dataset) == 480
    items = [dataset[index] for index in range(480)]
    with torch.inference_mode():
        logits = torch.cat(
            [glyphnet(torch.stack([image for image, _ in items[i : i + 96]])) for i in range(0, 480, 96)]
        )
    assert (logits.argmax(dim=1) == torch.tensor([label for _, label in items])).float().mean() >= 0.98


def test_knows_scenes(glyphnet: nn.Module) -> None:
    dataset = GlyphScenes(200)
    images, present = (torch.stack(list(column)) for column in zip(*[dataset[index] for index in range(200)]))
    with torch.inference_mode():
        logits = glyphnet(images)
    hits = sum(int(there[row.topk(int(there.sum())).indices].sum()) for row, there in zip(logits, present))
    assert hits / present.sum() >= 0.9


def test_model_card_states_numbers(glyphnet: nn.Module) -> None:
    card = (SHIPPED / "network.md").read_text(encoding="utf-8")
    count = sum(parameter.numel() for parameter in glyphnet.parameters())
    assert f"{count:,} parameters" in card
    shares = [float(share) for share in re.findall(r"\*\*(\d+\.\d+)%\*\*", card)]
    assert len(shares) >= 2
    assert all(90 < share <= 100 for share in shares)


def test_the_batch_does_not_matter(glyphnet: nn.Module) -> None:
    images = torch.stack([GlyphScenes(4)[i][0] for i in range(4)])
    with torch.inference_mode():
        together = glyphnet(images)
        alone = torch.cat([glyphnet(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [64, 128])
def test_other_sizes_run(glyphnet: nn.Module, size: int) -> None:
    with torch.inference_mode():
        assert tuple(glyphnet(torch.zeros(1, 3, size, size)).shape) == (1, 48)


@pytest.mark.parametrize(("width", "right"), [(16, 0.95), (32, 0.95), (64, 0.99), (128, 0.99)])
def test_siblings_of_other_widths(width: int, right: float) -> None:
    model, shipped = load_model(f"glyphnet-{width}"), load_file(SHIPPED / "network.safetensors")
    assert torch.equal(model.layer3[0].conv1.weight, shipped["layer3.0.conv1.weight"])
    assert model.layer4[0].conv1.out_channels == model.fc.in_features == width
    dataset = GlyphObjects(2)
    with torch.no_grad():
        logits = model(torch.stack([dataset[i][0] for i in range(len(dataset))]))
    assert (logits.argmax(dim=1).numpy() == dataset.targets).mean() > right


def test_siblings_are_small() -> None:
    assert sum((SHIPPED / f"last-{name}.safetensors").stat().st_size for name in SIBLINGS) < 1_000_000


def test_a_channel_of_the_sibling_feeds_one_or_two_classes() -> None:
    model = load_model("glyphnet-shared")
    feeds = model.fc.weight != 0
    assert feeds.sum(dim=0).tolist() == [1] * 24 + [2] * 24
    assert feeds.sum(dim=1).unique().tolist() == [1, 2]
    assert (model.fc.weight >= 0).all()
    shipped = load_file(SHIPPED / "network.safetensors")
    assert torch.equal(model.layer3[0].conv1.weight, shipped["layer3.0.conv1.weight"])
    dataset = GlyphObjects(2)
    with torch.no_grad():
        logits = model(torch.stack([dataset[i][0] for i in range(len(dataset))]))
    assert (logits.argmax(dim=1).numpy() == dataset.targets).mean() > 0.9
    assert not torch.equal(load_model("glyphnet-shared", "random").fc.weight, model.fc.weight)
