"""The small transformer that ships: its shape, its size, what its card says, and that its study finds its tokens."""

from __future__ import annotations

import re

import pytest
import torch
from small import ROOT

from pure_nb import load_model, load_study
from pure_nb.glyphs import CLASSES, SIZE, GlyphScenes
from pure_nb.glyphs.vit import NEURONS, PATCH, GlyphViT
from pure_nb.network.cut import Cut
from pure_nb.network.layers import activations

SHIPPED = ROOT / "pure_nb" / "glyphs"
BLOCK = "encoder.layers.encoder_layer_{}"


@pytest.fixture(scope="module")
def vit() -> GlyphViT:
    model = load_model("glyphvit").eval()
    assert isinstance(model, GlyphViT)
    return model


def test_weights_are_small_and_whole(vit: GlyphViT) -> None:
    assert (SHIPPED / "vit.safetensors").stat().st_size < 1_000_000
    assert all(one.dtype == torch.float32 and one.isfinite().all() for one in vit.parameters())
    card = (SHIPPED / "vit.md").read_text(encoding="utf-8")
    told = re.search(r"([\d,]+) parameters", card)
    assert told
    assert int(told[1].replace(",", "")) == sum(one.numel() for one in vit.parameters())


def test_it_finds_the_objects_of_new_scenes(vit: GlyphViT) -> None:
    scenes = GlyphScenes(120, "val", seed=3)
    with torch.inference_mode():
        logits = vit(torch.stack([scenes[number][0] for number in range(len(scenes))]))
    found, there = 0, 0
    for row, number in zip(logits, range(len(scenes))):
        labels = {one.label for one in scenes.scene(number).objects}
        found += len(labels & set(row.topk(len(labels)).indices.tolist()))
        there += len(labels)
    assert found / there > 0.97


def test_patches_are_laid_out_as_in_the_picture(vit: GlyphViT) -> None:
    layer, batch = f"{BLOCK.format(2)}.mlp.1", torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        found = activations(vit, batch, [layer, f"patches:{layer}"])
    side = SIZE // PATCH
    assert found[f"patches:{layer}"].shape == (2, NEURONS, side, side)
    for row in range(side):
        for column in range(side):
            token = found[layer][:, 1 + row * side + column]
            assert torch.equal(found[f"patches:{layer}"][:, :, row, column], token)


def test_patches_of_the_last_block_reach_no_output(vit: GlyphViT) -> None:
    batch = torch.randn(2, 3, SIZE, SIZE)
    for number, reached in ((2, True), (3, False)):
        cut = Cut.at(vit, batch, f"patches:{BLOCK.format(number)}", "heads.head")
        assert bool(cut.relevance(cut.top.argmax(dim=1)).any()) == reached


def test_its_study_loads() -> None:
    study = load_study("glyphs-vit", progress=False)
    target, lower = study.shapes
    assert (target.channels, target.grid, lower.channels, lower.grid) == (NEURONS, (8, 8), 96, (8, 8))
    assert len(study.images) == 4000
    assert len(CLASSES) == study.model.heads.head.out_features
