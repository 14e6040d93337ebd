"""Embedders: what they take from a network, against hooks and by hand; weights from files and hubs; what goes wrong."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from numpy.typing import NDArray
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from small import noise, plain
from torch import Tensor, nn

from pure_nb.errors import EmbedderError, StudyWarning
from pure_nb.glyphs import CLASSES, GlyphObjects
from pure_nb.judges.embedders import (
    Embedder,
    WordTokenizer,
    _explained,
    clip,
    from_network,
    from_timm,
    load_embedder,
    mini_clip,
    mini_dino,
    pixels,
)
from pure_nb.parameters import Run
from pure_nb.study import Study

TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}


def pictures(count: int = 3, seed: int = 0) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (20 + 7 * i, 20 + 7 * i, 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture
def tiny_clip(tmp_path: Path) -> tuple[Path, CLIP]:
    """A folder with a tiny CLIP as open_clip keeps one, and the model in it."""
    torch.manual_seed(0)
    model = CLIP(**json.loads(json.dumps(TINY))).eval()
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder, model


@pytest.fixture
def tiny_vit(tmp_path: Path) -> tuple[Path, nn.Module]:
    """The same for a vision transformer as timm keeps one."""
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    folder = tmp_path / "tiny-vit"
    folder.mkdir()
    pretrained = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": VIT, "num_classes": 0, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder, model


def as_hub(root: Path, name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put files into a cache as the Hugging Face hub keeps one, for a machine without a network."""
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for file in files.iterdir():
        target = "open_clip_model.safetensors" if "clip" in files.name and file.suffix == ".safetensors" else file.name
        (snapshot / target).write_bytes(file.read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return name


def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def prepared(items: Sequence[NDArray[np.uint8]], size: int, how: Any = Image.Resampling.BICUBIC) -> Tensor:
    small = [Image.fromarray(item).resize((size, size), how) for item in items]
    return torch.stack([torch.from_numpy(np.array(item)).permute(2, 0, 1) / 127.5 - 1 for item in small])


@torch.no_grad()
def test_clip_takes_the_mean_of_all_tokens(tiny_clip: tuple[Path, CLIP]) -> None:
    folder, model = tiny_clip
    found = clip(f"local-dir:{folder}", None).images(pictures())
    seen: list[Tensor] = []
    model.visual.transformer.register_forward_hook(lambda *args: seen.append(args[-1]))
    pooled = model.encode_image(prepared(pictures(), 32))
    tokens = seen[0]  # [B, 1 + 4, 16]: the class token, and the four patches
    assert tokens.shape == (3, 5, 16)
    np.testing.assert_allclose(found, tokens.mean(dim=1).numpy(), atol=1e-5)
    own = clip(f"local-dir:{folder}", None, features="pooled")
    np.testing.assert_allclose(own.images(pictures()), pooled.numpy(), atol=1e-5)
    joint = clip(f"local-dir:{folder}", None).joint
    np.testing.assert_allclose(joint.images(pictures()), pooled.numpy(), atol=1e-5)


@torch.no_grad()
def test_clip_reads_words(tiny_clip: tuple[Path, CLIP]) -> None:
    folder, model = tiny_clip
    found = clip(f"local-dir:{folder}", None).text(["cat", "dog"])
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    total = 0
    for prompt in ("a photo of a {}.", "a cropped photo of a {}.", "a picture of a {}."):
        total = total + model.encode_text(tokenizer([prompt.format(word) for word in ("cat", "dog")]), normalize=True)
    np.testing.assert_allclose(found, nn.functional.normalize(total, dim=1).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_clip_from_the_hub(tiny_clip: tuple[Path, CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = tiny_clip
    name = as_hub(tmp_path / "hub", "someone/tiny-clip", folder, monkeypatch)
    found = load_embedder(f"open_clip:hf-hub:{name}")
    expected = clip(f"local-dir:{folder}", None)
    np.testing.assert_array_equal(found.images(pictures()), expected.images(pictures()))
    assert found.fingerprint == expected.fingerprint


def test_clip_by_name_with_weights_of_a_file(
    tiny_clip: tuple[Path, CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = tiny_clip
    (tmp_path / "Tiny-Test.json").write_text(json.dumps(TINY))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {"Tiny-Test": json.loads(json.dumps(TINY))})
    found = load_embedder("open_clip:Tiny-Test@model.safetensors", folder=folder)
    assert found.images(pictures()).shape == (3, 16)
    assert found.name == "Tiny-Test"
    torch.save(model.state_dict(), folder / "model.pt")
    again = load_embedder("open_clip:Tiny-Test@model.pt", folder=folder)
    np.testing.assert_array_equal(found.images(pictures()), again.images(pictures()))
    torch.save({"state_dict": nn.Linear(2, 2)}, folder / "program.pt")
    with pytest.raises(EmbedderError, match="can't be made"):
        load_embedder("open_clip:Tiny-Test@program.pt", folder=folder)
    (folder / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(EmbedderError, match=r"open_clip:Tiny-Test/.*broken.safetensors' can't be made"):
        load_embedder("open_clip:Tiny-Test@broken.safetensors", folder=folder)


@torch.no_grad()
def test_timm_takes_the_mean_of_all_tokens(tiny_vit: tuple[Path, nn.Module]) -> None:
    folder, model = tiny_vit
    found = from_timm(f"local-dir:{folder}").images(pictures())
    tokens = model.forward_features(prepared(pictures(), 32))
    assert tokens.shape == (3, 5, 16)
    np.testing.assert_allclose(found, tokens.mean(dim=1).numpy(), atol=1e-5)
    pooled = from_timm(f"local-dir:{folder}", features="pooled").images(pictures())
    np.testing.assert_allclose(pooled, tokens[:, 0].numpy(), atol=1e-5)


def test_timm_from_the_hub(tiny_vit: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = tiny_vit
    name = as_hub(tmp_path / "hub", "someone/tiny-vit", folder, monkeypatch)
    found = load_embedder(f"timm:hf-hub:{name}").images(pictures())
    np.testing.assert_array_equal(found, from_timm(f"local-dir:{folder}").images(pictures()))


@torch.no_grad()
def test_timm_with_weights_of_a_file(tiny_vit: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, model = tiny_vit
    shape = {name: value for name, value in VIT.items() if name != "num_classes"}
    images = prepared(pictures(), 32)
    expected = model.forward_features(images).mean(dim=1).numpy()
    found = from_timm("vit_tiny_patch16_224", folder / "model.safetensors", **shape)
    np.testing.assert_allclose(found.images(pictures()), expected, atol=1e-5)
    whole = timm.create_model("vit_tiny_patch16_224", **shape).eval()  # with its classifier
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    found = from_timm("vit_tiny_patch16_224", tmp_path / "whole.pth", **shape)
    expected = whole.forward_features(images).mean(dim=1).numpy()
    np.testing.assert_allclose(found.images(pictures()), expected, atol=1e-5)


def test_timm_with_weights_that_do_not_fit(tiny_vit: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, model = tiny_vit
    torch.save(model, tmp_path / "program.pth")
    with pytest.raises(EmbedderError, match="unpickling it could run code"):
        from_timm("vit_tiny_patch16_224", tmp_path / "program.pth", img_size=32)
    with pytest.raises(EmbedderError, match="can't be made"):  # of another size
        from_timm("vit_tiny_patch16_224", folder / "model.safetensors")
    save_file({"nothing.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    for name in ("test_resnet.r160_in1k", "test_vit.r160_in1k"):
        with pytest.raises(EmbedderError, match=r"(?s)can't be made: .*Missing key"):
            load_embedder(f"timm:{name}@other.safetensors", folder=tmp_path)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if "norm" not in key}
    save_file(state, tmp_path / "less.safetensors")
    shape = {name: value for name, value in VIT.items() if name != "num_classes"}
    with pytest.raises(EmbedderError, match=r"(?s)can't be made: .*Missing key"):
        from_timm("vit_tiny_patch16_224", tmp_path / "less.safetensors", **shape)


@torch.no_grad()
def test_timm_without_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=0).eval()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tmp_path / "w.safetensors")
    found = load_embedder("timm:test_resnet.r160_in1k@w.safetensors", folder=tmp_path)
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    images = (prepared(pictures(), config["input_size"][-1], Image.Resampling.BILINEAR) + 1) / 2
    images = (images - mean) / std
    np.testing.assert_allclose(found.images(pictures()), network(images).numpy(), atol=1e-4)


@torch.no_grad()
def test_any_network() -> None:
    model = plain()
    found = from_network(model, size=12, mean=(0.5,) * 3, std=(0.5,) * 3)
    small = [Image.fromarray(item).resize((12, 12), Image.Resampling.BILINEAR) for item in pictures()]
    images = torch.stack([torch.from_numpy(np.array(item)).permute(2, 0, 1) / 127.5 - 1 for item in small])
    np.testing.assert_allclose(found.images(pictures()), model[:8](images).numpy(), atol=1e-5)  # what enters the linear
    inner = from_network(model, "2", size=12, mean=(0.5,) * 3, std=(0.5,) * 3)
    np.testing.assert_allclose(inner.images(pictures()), model[:3](images).mean(dim=(2, 3)).numpy(), atol=1e-5)
    assert found.fingerprint != inner.fingerprint
    with pytest.raises(EmbedderError, match="has no linear layer"):
        from_network(model[:4])


def test_pixels() -> None:
    picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_allclose(pixels(4).images([picture])[0], picture.ravel() / 255, atol=1e-6)
    assert pixels().images(pictures()).shape == (3, 768)


def test_your_own() -> None:
    def mean(items: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        return np.stack([item.mean(axis=(0, 1)) for item in items])

    found = Embedder.of("mean colour", mean)
    expected = [item.mean(axis=(0, 1)) for item in pictures(7)]
    np.testing.assert_allclose(found.images(pictures(7), run=Run(batch_size=3)), expected, rtol=1e-6)
    assert found.fingerprint == Embedder.of("another name", mean).fingerprint
    scale = 1.0

    def scaled(items: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        return scale * mean(items)

    before = Embedder.of("scaled", scaled).fingerprint
    scale = 2.0
    assert Embedder.of("scaled", scaled).fingerprint != before  # the same source, other vectors


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda items: np.ones((len(items) - 1, 4)), r"returned an array \[2, 4\] for 3 pictures"),
        (lambda items: np.ones(4), r"returned an array \[4\] for 3 pictures"),
        (lambda items: np.full((len(items), 2), np.nan), "NaN or infinity for number 0 of the pictures"),
        (lambda items: np.full((len(items), 2), 1e300), "NaN or infinity"),
        (lambda items: torch.full((len(items), 2), torch.inf), "NaN or infinity"),
    ],
)
def test_your_own_is_wrong(returned: Any, message: str) -> None:
    with pytest.raises(EmbedderError, match=f"mine.*{message}"):
        Embedder.of("mine", returned)


def test_lengths_that_change() -> None:
    sizes = iter([3, 4])
    odd = Embedder("odd", "", lambda items: np.ones((len(items), next(sizes))))
    with pytest.raises(EmbedderError, match=r"odd returned vectors of several lengths, \[3, 4\]"):
        odd.images(pictures(4), run=Run(batch_size=2))
    with pytest.raises(EmbedderError, match="no pictures to embed with odd"):
        odd.images([])


def test_features_that_do_not_exist() -> None:
    for make in (mini_clip, mini_dino):
        with pytest.raises(EmbedderError, match="features must be one of tokens, pooled, got 'all'"):
            make("all")  # type: ignore[arg-type]
    assert mini_clip("pooled").fingerprint == mini_clip().joint.fingerprint  # the same vectors are kept once
    assert mini_dino("pooled").name == "mini-DINO pooled"


def test_no_words() -> None:
    for ask in (lambda: pixels().text(["cat"]), lambda: pixels().joint):
        with pytest.raises(EmbedderError, match="pixels has no text tower"):
            ask()


def test_one_batch_or_many() -> None:
    for embedder in (mini_clip(), mini_dino(), pixels()):
        every = embedder.images(pictures(5))
        np.testing.assert_allclose(embedder.images(pictures(5), run=Run(batch_size=2)), every, atol=1e-4)
        assert (
            embedder.fingerprint
            == {"mini-CLIP": mini_clip, "mini-DINO": mini_dino, "pixels": pixels}[embedder.name]().fingerprint
        )


def test_words_to_numbers() -> None:
    tokenizer = WordTokenizer(["cat", "red", "and", "dog"], 6)
    assert tokenizer(["A red cat, and a dog"]).tolist() == [[1, 3, 2, 4, 5, 6]]
    assert tokenizer(["cat", ""]).tolist() == [[1, 2, 6, 0, 0, 0], [1, 6, 0, 0, 0, 0]]
    with pytest.raises(EmbedderError, match="does not know the word 'horse'"):
        tokenizer(["a red horse"])
    with pytest.raises(EmbedderError, match="too long for mini-CLIP: 5 words, at most 4"):
        tokenizer(["red cat and red dog"])


def crops(each: int) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Objects of held-out pictures, so many of each class, each cut out with a margin."""
    objects, found = GlyphObjects(each), []
    for number in range(len(objects)):
        scene = objects.scene(number)
        left, top, right, bottom = scene.objects[0].box
        reach = max(right - left, bottom - top) // 2 + 4
        x, y = (left + right) // 2, (top + bottom) // 2
        found.append(scene.image[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach])
    return found, np.array(objects.targets)


def test_judges_that_know_glyphs_only_say_so_of_other_images(seen: Study, tmp_path: Path) -> None:
    assert [make().glyphs for make in (mini_clip, mini_dino, pixels)] == [True, True, False]
    judge = replace(pixels(4), glyphs=True)
    other = Study.from_model(plain(), noise(12), "4", "2", n_references=4, progress=False, store=tmp_path)
    with pytest.warns(StudyWarning, match="pixels knows nothing but the glyphs that the package draws, and 'mine' are"):
        other.crops.embeddings(judge)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StudyWarning)
        seen.crops.embeddings(judge)


def test_mini_clip_names_what_it_never_saw() -> None:
    embedder = mini_clip()
    shown, labels = crops(2)
    names = embedder.text([c.name for c in CLASSES])
    similar = embedder.joint.images(shown) @ names.T
    assert (similar.argmax(axis=1) == labels).mean() >= 0.95


def test_mini_dino_puts_like_to_like() -> None:
    shown, labels = crops(12)
    vectors = mini_dino().images(shown)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert (labels[near.argmax(axis=1)] == labels).mean() > 0.25  # chance is 11 in 575


def test_shipped_embedders_are_small_and_described() -> None:
    root = Path(__file__).parents[1] / "pure_nb" / "judges"
    files = [file for name in ("mini-clip", "mini-dino") for file in (root / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 10e6
    for name in ("mini-clip", "mini-dino"):
        card = (root / name / "README.md").read_text(encoding="utf-8")
        assert "Held out" in card
        assert "Data" in card


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "can't tell what embedder 'nonsense' is; expected mini-clip"),
        ("pixels@file", "no file of weights"),
        (f"open_clip:hf-hub:someone/clip@{__file__}", "names weights twice"),
        ("clip@nowhere.safetensors", "no file of weights 'nowhere.safetensors'"),
        ("open_clip:ViT-B-32", r"names no weights: add /TAG \(there are: openai"),
        ("open_clip:ViT-B-32/nonsense", "not a known tag"),
        ("open_clip:Nonsense/openai", "Model config for 'Nonsense' not found"),
        ("timm:nonsense", "Unknown model"),
        ("torchvision:nonsense", "Unknown model"),
        ("nowhere.py:embed", "no file 'nowhere.py'"),
    ],
)
def test_specs_that_are_wrong(spec: str, message: str) -> None:
    with pytest.raises(EmbedderError, match=message):
        load_embedder(spec)


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ("clip", "vit_base_patch32_clip_224.openai on the Hugging Face hub.*open_clip:ViT-B-32-quickgelu@FILE"),
        ("dinov2", "timm/vit_base_patch14_dinov2.lvd142m on the Hugging Face hub.*dinov2.lvd142m@FILE"),
        ("open_clip:hf-hub:someone/clip", "files of someone/clip on the Hugging Face hub.*open_clip:local-dir:FOLDER"),
        ("timm:hf-hub:someone/vit", "files of someone/vit on the Hugging Face hub.*timm:local-dir:FOLDER"),
    ],
)
def test_offline(spec: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(tmp_path, monkeypatch)
    with pytest.raises(
        EmbedderError, match=f"(?s)could not be fetched, and are not in the cache .*empty.*bring the .*{where}"
    ):
        load_embedder(spec)


def test_a_function_in_a_file(tmp_path: Path) -> None:
    folder = tmp_path / ("C:" if os.name == "posix" else "c")  # a path of Windows has a colon of its own
    folder.mkdir()
    (folder / "mine.py").write_text(
        "import numpy as np\n\ndef embed(pictures):\n    return np.stack([p.mean(axis=(0, 1)) for p in pictures])\n"
    )
    for found in (load_embedder("mine.py:embed", folder=folder), load_embedder(f"{folder / 'mine.py'}:embed")):
        assert found.name == "embed"
        np.testing.assert_allclose(found.images(pictures())[1], pictures()[1].mean(axis=(0, 1)), rtol=1e-6)


@torch.no_grad()
def test_torchvision_with_weights_of_a_file(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(weights=None)
    with pytest.raises(EmbedderError, match="has no linear layer"):
        from_network(model)
    model = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = load_embedder("torchvision:shufflenet_v2_x0_5@w.safetensors", folder=tmp_path)
    assert found.name == "features of shufflenet_v2_x0_5"
    assert found.images(pictures()).shape == (3, 1024)


def test_others_may_log_while_an_embedder_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only the libraries that make it are silent."""

    def function(name: str) -> Any:
        logging.getLogger("mine").error("something else")
        logging.error("by the root logger")
        logging.getLogger("timm.models").error("said twice")
        raise RuntimeError("no such network")

    before = logging.root.manager.disable, list(logging.root.filters), logging.getLogger("timm").level
    with pytest.raises(EmbedderError, match="no such network"), _explained("odd", "a file"):
        function("odd")
    assert caplog.messages == ["something else", "by the root logger"]
    assert (logging.root.manager.disable, list(logging.root.filters), logging.getLogger("timm").level) == before
    caplog.clear()
    with pytest.raises(EmbedderError):
        load_embedder("open_clip:ViT-B-32/nothing")
    assert caplog.messages == []
