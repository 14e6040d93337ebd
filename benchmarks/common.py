"""What the benchmarks share: arguments, noise to look at, fair timing, one tidy table."""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from pure_nb.models import load_model
from pure_nb.references import grouped

PACKAGES = ("torch", "torchvision", "numpy", "zennit", "zennit-crp")


class Noise(Dataset[tuple[Tensor, int]]):
    """Images of Gaussian noise with random labels, made once and kept in memory."""

    def __init__(self, length: int, size: int = 224, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(length, 3, size, size, generator=generator)
        self.targets = torch.randint(1000, (length,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        return self.images[sample], self.targets[sample]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what all benchmarks understand."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; in each every contestant runs once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time, for a machine that is shared; use it with --threads 1, since threads wait busily",
    )
    parser.add_argument("--out", type=Path, help="write the table here as CSV, with the versions of the packages")
    return parser


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the arguments and set up torch."""
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    return args


def network(source: str) -> nn.Module:
    """The shipped network with its weights, any other with seeded random ones: time does not depend on them."""
    torch.manual_seed(0)
    return load_model(source, None if source == "glyphnet" else "random")


def composite() -> EpsilonPlusFlat:
    """The rules that both sides use, as the peers' users write them down."""
    return EpsilonPlusFlat([ResNetCanonizer()])


def interleaved(contestants: Mapping[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each contestant: the median over rounds in which each runs once, so that noise hits all of them."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.repeats):
        for name, run in contestants.items():
            gc.collect()
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def draw_references(
    channels: int, n: int, population: int, images: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """A slice of "all channels x n references" with as many pairs per image as the whole has.

    Every channel draws n of the ``population`` images at random; of the images that were drawn at all, ``images``
    are taken with all their pairs. (References of a trained network gather on fewer images, which favours whoever
    shares them.)

    Returns
    -------
    tuple
        Channel and image (0 to ``images - 1``) of each pair; pairs per drawn image in the whole.
    """
    generator = np.random.default_rng(seed)
    sample = np.stack([generator.choice(population, n, replace=False) for _ in range(channels)])
    return take_slice(sample, images, seed)[:3]


def take_slice(
    sample: NDArray[np.int64], images: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], float, NDArray[np.int64]]:
    """Random images out of references ``[channels, n]``, with all their pairs; and which images they are."""
    unique, pairs_of = grouped(sample)
    chosen = np.random.default_rng(seed).choice(len(unique), min(images, len(unique)), replace=False)
    pairs = np.concatenate([pairs_of[i] for i in chosen])
    local = np.repeat(np.arange(len(chosen)), [len(pairs_of[i]) for i in chosen])
    return pairs // sample.shape[1], local, sample.size / len(unique), unique[chosen]


def report(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the table, and write it where asked."""
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    if args.out is None:
        return
    table = table.assign(threads=args.threads, clock=args.clock, python=platform.python_version())
    for package in PACKAGES:
        table[package] = version(package)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out, index=False, float_format="%.4g")
