"""The reference sweep: pure_nb against a bare forward loop and against zennit-crp's FeatureVisualization.

    python benchmarks/sweep.py --out benchmarks/results/sweep.csv
    python benchmarks/sweep.py --memory --out benchmarks/results/sweep-memory.csv

All three go over the same images in batches of one size and look at ``layer4``. *Bare* runs the network to its end
under ``inference_mode`` and keeps nothing. *zennit-crp* collects by relevance and by activation at once and cannot do
one alone, so it runs backward too; its time is measured over fewer images (--peer-images) and given per image.
``--memory`` runs the sweep in fresh processes over 1, 4 and 16 times --images images and prints their peaks.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Noise, alone, arguments, composite, interleaved, network, report, start
from crp.attribution import CondAttribution
from crp.concepts import ChannelConcept
from crp.visualization import FeatureVisualization
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from pure_nb.compute.sweep import sweep
from pure_nb.images.data import Images
from pure_nb.images.sources import folder_images
from pure_nb.methods.references import References, TopReferences
from pure_nb.parameters import Run

LAYER = "layer4"


class Made(Noise):
    """The same noise, but made when asked for: takes no memory however many there are."""

    def __init__(self, length: int, size: int) -> None:
        self.length, self.size = length, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        return torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(int(sample))), 0


def ours(model: nn.Module, images: Images, n: int, batch_size: int) -> References:
    top = TopReferences(LAYER, n=n)
    sweep(model, images, [top], run=Run(batch_size=batch_size, progress=False))
    return top.result()


def bare(model: nn.Module, dataset: Dataset[Any], batch_size: int) -> None:
    with torch.inference_mode():
        for images, _ in DataLoader(dataset, batch_size=batch_size):
            model(images)


def peer(model: nn.Module, dataset: Any, batch_size: int, n: int = 100) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images and scores of the references by activation, ``[n, channels]`` each."""
    silent = io.StringIO()  # it prints, and shows progress bars
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        layers = {LAYER: ChannelConcept()}
        study = FeatureVisualization(
            CondAttribution(model), dataset, layers, max_target="max", abs_norm=False, path=folder
        )
        study.RelMax.SAMPLE_SIZE = study.ActMax.SAMPLE_SIZE = n
        study.run(composite(), 0, len(dataset), batch_size=batch_size)
        sample, score = (np.load(study.ActMax.PATH / f"{LAYER}_{kind}.npy") for kind in ("data", "rel"))
        return sample, score


def alone_over(source: str, count: int, size: int, n: int, batch_size: int) -> None:
    """The sweep as a fresh process runs it, over images that take no memory."""
    ours(network(source), Images(Made(count, size)), n, batch_size)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet50"]
    )
    parser.add_argument("--images", type=int, default=256, help="how many")
    parser.add_argument("--folder", type=Path, help="take them from here: a subfolder of pictures for each class")
    parser.add_argument("--peer-images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="side of the noise in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("-n", type=int, default=100, help="references for each channel")
    parser.add_argument("--memory", action="store_true")
    args = start(parser)
    rows: list[dict[str, Any]] = []
    if args.memory:
        for source in args.models:
            for count in (args.images, 4 * args.images, 16 * args.images):
                most = alone(alone_over, source, count, args.size, args.n, args.batch_size, threads=args.threads)
                rows.append({"model": source, "images": count, "peak MiB": round(most)})
        report(rows, args)
        return
    whole: Any = folder_images(args.folder).dataset if args.folder else Noise(args.images, args.size)
    dataset = Subset(whole, range(min(args.images, len(whole))))
    few = Subset(dataset, range(min(args.peer_images, len(dataset))))
    for source in args.models:
        model = network(source)
        bare(model, few, args.batch_size)
        seconds = interleaved(
            {
                "bare": lambda model=model: bare(model, dataset, args.batch_size),
                "ours": lambda model=model: ours(model, Images(dataset), args.n, args.batch_size),
                "peer": lambda model=model: peer(model, few, args.batch_size, args.n),
            },
            args,
        )
        rate = {name: len(few if name == "peer" else dataset) / value for name, value in seconds.items()}
        rows.append(
            {
                "model": source,
                "ours img/s": rate["ours"],
                "bare img/s": rate["bare"],
                "zennit-crp img/s": rate["peer"],
                "ours/bare": rate["ours"] / rate["bare"],
                "ours/zennit-crp": rate["ours"] / rate["peer"],
            }
        )
    report(rows, args)


if __name__ == "__main__":
    main()
