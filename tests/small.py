"""What several tests share: networks small enough to check by hand, data sets that misbehave on demand, real data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from pure_nb.judges.vectors import Embedder
from pure_nb.network.cut import Cut

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("PURE_NB_SHARED") or ROOT.parent / "shared")


def shared(*parts: str) -> Path:
    """A file or folder of real data beside the project; the test is skipped where it is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} in ../shared, or in the folder that PURE_NB_SHARED names")
    return path


def posix(why: str) -> pytest.MarkDecorator:
    """Skip a test on Windows, and say why."""
    return pytest.mark.skipif(os.name != "posix", reason=why)


def link(place: Path, target: Path) -> None:
    """Make a link; the test is skipped where that is not permitted, as to most users of Windows."""
    try:
        place.symlink_to(target, target_is_directory=target.is_dir())
    except OSError as problem:
        if os.name == "posix":
            raise
        pytest.skip(f"links are not permitted: {problem}")


def crp(module: str) -> Any:
    """A module of zennit-crp; the test is skipped where it is not there, as beside a newer zennit than it takes."""
    return pytest.importorskip(f"crp.{module}", reason="needs zennit-crp")


def plain(seed: int = 0, channels: int = 6) -> nn.Sequential:
    """Convolutions and in-place ReLUs: [B, 3, 12, 12] to the logits [B, 4]."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 7, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(7, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 4),
    ).eval()


class Attention(nn.Module):
    """Tokens [B, T, C] that look at each other, and a residual perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        return x + self.mlp(x)


class Tokens(nn.Module):
    """A tiny vision transformer: [B, 3, 12, 12] to tokens [B, 9, 8], twice through attention, then [B, 4]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.first, self.second = Attention(8), Attention(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.second(self.first(x)).mean(dim=1))


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random batch-norm statistics and weights, so that nothing cancels by chance."""
    generator = torch.Generator().manual_seed(seed)

    def between(like: Tensor, low: float, high: float) -> Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(between(module.running_mean, -0.2, 0.2))
                module.running_var.copy_(between(module.running_var, 0.5, 1.5))
                module.weight.copy_(between(module.weight, 0.5, 1.5))
                module.bias.copy_(between(module.bias, -0.2, 0.4))
    return model.eval()


def noise(count: int, size: int = 12, seed: int = 0, channels: int = 3) -> Tensor:
    """Random images [count, channels, size, size]."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def cut(model: nn.Module, images: Tensor, lower: str | None, target: str) -> tuple[Tensor, Tensor]:
    """The lower activations, and the target's as a function of them."""
    found = Cut.at(model, images, lower, target)
    return found.leaf, found.top


class Items(Dataset[Any]):
    """Tensors as a data set that counts what is loaded, and raises where it is told to."""

    def __init__(self, images: Tensor | list[Tensor], broken: dict[int, BaseException] | None = None) -> None:
        self.images, self.broken, self.loaded = images, broken or {}, []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded.append(index)
        if index in self.broken:
            raise self.broken[index]
        return self.images[index], index % 3


def picture_folder(root: Path, count: int = 8, classes: int = 2, size: int = 16, seed: int = 0) -> Path:
    """A folder of random PNGs, one subfolder a class, as ``ImageFolder`` wants it."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return root


def colours(pictures: Sequence[Any]) -> NDArray[np.float32]:
    """The mean colour of pictures: an embedder whose vectors are plain."""
    return np.stack([picture.reshape(-1, 3).mean(axis=0) for picture in pictures]).astype(np.float32)


def words(texts: list[str]) -> NDArray[np.float32]:
    """Of a word for a colour, that colour."""
    known = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    return np.array([known.get(text, (90, 100, 110)) for text in texts], dtype=np.float32)


MUTE = Embedder.of("colours", colours)
JUDGE = replace(MUTE, encode_text=words, encode_joint=colours)
WORDS, CHANNELS = ("red", "green", "blue", "blueish grey"), [3, 8, 22]
"""What is looked for in small atlases, and their neurons."""


class Here:
    """A cluster that is this process, and knows what it was asked for."""

    sweep_on_cluster = None

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def run(self, *_: Any) -> None:
        """Do nothing, on any worker."""

    def each(self, work: Any, given: Any, numbers: Sequence[int]) -> Any:
        self.asked.add(getattr(work, "func", work).__name__)
        return ((number, work(*given(number))) for number in numbers)
