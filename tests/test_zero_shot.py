"""CLIP as the network that is studied: words are its outputs, for all that is asked of outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pure_nb import Study, load_model, load_study
from pure_nb.errors import ArgumentError, ModelError
from pure_nb.glyphs import CLASSES, GlyphScenes
from pure_nb.images.data import Images
from pure_nb.images.labels import class_labels
from pure_nb.images.sources import as_images
from pure_nb.judges.embedders import mini_clip_parts, open_clip_model
from pure_nb.judges.zero_shot import ZeroShot

WORDS = [one.name for one in CLASSES]


@pytest.fixture(scope="module")
def scenes() -> Images:
    """Scenes as mini-CLIP wants them."""
    _, prepare, _ = open_clip_model(*mini_clip_parts()[:1], None, mini_clip_parts()[1])
    found = GlyphScenes(60, transform=lambda pixels: prepare(Image.fromarray(pixels)))
    return Images(found, "scenes", (0.5,) * 3, (0.5,) * 3)


def test_logits_are_those_of_clip(scenes: Images) -> None:
    model = load_model("open_clip:mini-clip", outputs=WORDS, prompts=["a {}", "a red {}"])
    (name, tokenizer) = mini_clip_parts()
    clip, _, _ = open_clip_model(name, None, tokenizer)
    clip, batch = clip.double(), torch.stack([scenes.tensor(number) for number in range(4)])
    with torch.no_grad():
        found = model(batch)
        pictures = clip.encode_image(batch.double()).numpy()
        for place, word in enumerate(WORDS):
            texts = clip.encode_text(tokenizer([f"a {word}", f"a red {word}"])).numpy()
            vector = sum(text / np.linalg.norm(text) for text in texts)
            for row, picture in enumerate(pictures):
                cosine = picture @ vector / np.linalg.norm(picture) / np.linalg.norm(vector)
                assert found[row, place] == pytest.approx(float(clip.logit_scale.exp()) * cosine, abs=1e-3)


def test_words_are_outputs_wherever_outputs_are_asked_for(scenes: Images, tmp_path: Path) -> None:
    model = load_model("open_clip:mini-clip", outputs=WORDS)
    how: dict[str, Any] = {"n_references": 12, "n_clusters": 2, "store": tmp_path, "progress": False}
    study = Study.from_model(model, scenes, "visual.layer4", "visual.layer3", **how)
    assert not study.classes.without_labels
    told = study.explain(3, "anchor", against="cat")
    assert (told.output, told.against) == ("anchor", "cat")
    assert told.answer in WORDS
    with torch.no_grad():
        logits = model(scenes.tensor(3)[None])[0]
    assert told.value == pytest.approx(float(logits[WORDS.index("anchor")] - logits[WORDS.index("cat")]), abs=1e-3)


def test_a_part_moves_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    visual = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    words = ["rain", "snow", "hail"]
    model = ZeroShot(visual, torch.randn(3, 8), words).eval()
    study = Study.from_model(
        model, torch.rand(40, 3, 12, 12), "visual.3", "visual.1", n_references=8, n_clusters=2, store=tmp_path
    )
    channel = int(np.flatnonzero(study.references.alive)[0])
    moved = study.ablate(channel, "A").outputs()
    assert sorted(moved["name"]) == sorted(words)


def test_classes_are_matched_by_their_names() -> None:
    class Some:
        classes = ("snow", "hail_storm")
        targets = (0, 1, 1)

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(3, 4, 4), self.targets[index]

    labels, names = class_labels(as_images(Some()), 3, ["rain", "hail storm", "snow"])
    assert (labels.tolist(), names) == ([2, 1, 1], ("rain", "hail storm", "snow"))


def checkpoint(folder: Path) -> Path:
    """A small vision transformer with random weights, as the hub has them."""
    import open_clip

    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    folder.mkdir()
    told = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(told), encoding="utf-8")
    save_file(
        {name: one.contiguous() for name, one in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def test_a_study_of_a_vision_transformer_in_a_file(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "clip")
    folder = tmp_path / "pictures"
    for number in range(12):
        (folder / str(number % 2)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(number % 2) / f"{number}.png")
    (tmp_path / "mine.toml").write_text(
        f"""[model]
source = "open_clip:local-dir:{place.as_posix()}"
outputs = ["a cat", "a dog"]
[images]
source = "folder"
root = "{folder.as_posix()}"
resize = 32
crop = 32
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[parameters]
target = "patches:visual.transformer.resblocks.1"
lower = "patches:visual.transformer.resblocks.0"
n_references = 4
n_clusters = 2
""",
        encoding="utf-8",
    )
    study = load_study(tmp_path / "mine.toml", store=tmp_path / "store", progress=False)
    assert study.shapes[0].channels == 32
    assert study.shapes[0].grid == (4, 4)
    assert study.circuits.shape == (32, 4, 32)


@pytest.mark.parametrize("outputs", [[], ["cat", "cat"]])
def test_words_that_are_no_outputs(outputs: list[str]) -> None:
    with pytest.raises(ArgumentError, match="outputs are words, each of them once"):
        load_model("open_clip:mini-clip", outputs=outputs)


def test_what_is_no_clip() -> None:
    with pytest.raises(ModelError, match="expected a model of open_clip, with visual and encode_text, got a Linear"):
        ZeroShot.of(nn.Linear(2, 2), ["cat"], tokenizer=lambda texts: torch.zeros(len(texts), 4))
    with pytest.raises(ModelError, match="open_clip:local-dir:nowhere"):
        load_model("open_clip:local-dir:nowhere", outputs=["cat"])
    with pytest.raises(ArgumentError, match="expected a vector for each of 2 words"):
        ZeroShot(nn.Flatten(), torch.rand(3, 4), ["cat", "dog"])
