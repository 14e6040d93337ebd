"""What the benchmarks share: arguments, noise to look at, fair timing, one tidy table."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
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

from pure_nb.compute.blocks import grouped
from pure_nb.loading import load_model

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


def clock_of(args: argparse.Namespace) -> Callable[[], float]:
    """Tells seconds, as --clock asks."""
    return time.process_time if args.clock == "cpu" else time.perf_counter


def interleaved(contestants: Mapping[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each contestant: the median over rounds in which each runs once, so that noise hits all of them."""
    clock = clock_of(args)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.repeats):
        for name, run in contestants.items():
            gc.collect()
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def draw_references(
    channels: int, n: int, population: int, images: int, batch_size: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """A slice of "all channels x n references", each channel drawing n of the ``population`` images at random.

    References of a trained network gather on fewer images, which favours whoever shares them.

    Returns
    -------
    tuple
        Channel and image (0 to ``images - 1``) of each pair; pairs per image of the slice.
    """
    generator = np.random.default_rng(seed)
    sample = np.stack([generator.choice(population, n, replace=False) for _ in range(channels)])
    return take_slice(sample, images, batch_size)[:3]


def take_slice(
    sample: NDArray[np.int64], images: int, batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], float, NDArray[np.int64]]:
    """Some batches of images out of references ``[channels, n]``, with all their pairs; and which images they are.

    They are whole batches as the package makes them, of images with similarly many pairs, spread evenly from those with
    the most to those with the fewest. Single images, drawn anywhere, would make batches that no run has, whose rows
    idle until the image with the most pairs is done.
    """
    unique, pairs_of = grouped(sample)
    order = np.argsort([-len(pairs) for pairs in pairs_of], kind="stable")
    runs = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    count = min(max(1, images // batch_size), len(runs))
    chosen = np.concatenate([runs[int((i + 0.5) * len(runs) / count)] for i in range(count)])[:images]
    pairs = np.concatenate([pairs_of[i] for i in chosen])
    local = np.repeat(np.arange(len(chosen)), [len(pairs_of[i]) for i in chosen])
    return pairs // sample.shape[1], local, len(pairs) / len(chosen), unique[chosen]


def alone(run: Callable[..., Any], *arguments: Any, threads: int = 1) -> float:
    """MiB that a fresh process needs at most to call a function of a module."""
    return fresh(_peak_of, run, arguments, threads=threads)


def _peak_of(run: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    run(*arguments)
    return peak()


def fresh(run: Callable[..., Any], *arguments: Any, threads: int = 1) -> Any:
    """What a function of a module returns when a fresh process calls it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_quietly, run, arguments, threads).result()


def _quietly(run: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> Any:
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    return run(*arguments)


def peak() -> float:
    """MiB that this process took at most."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss counts what the parent held when it started this process
        return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / (1 << 10)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


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
