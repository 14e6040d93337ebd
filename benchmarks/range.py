"""Do the parts of the strongest images hold over the whole range of activation, and how many images do they need?

    python benchmarks/range.py --out benchmarks/results
    python benchmarks/range.py --study cifar10-resnet20 --shared path/to/shared --channels 0-15 --out folder

Not a timing. ``range.csv`` has a row for each band of activation, means over the neurons that are split, each with its
95 % interval over neurons: what share of the band's images is unlike any part, how stable clusters found in it are, and
how far they agree with the parts. Where the object under each maximum is known, also the purity of the objects by the
parts, by clusters of the band's own and by the whole neuron, and in how many images the object is one that the part has
at the top. ``stability.csv`` is :func:`pure_nb.ranges.enough`. The first line printed says how much of what a neuron
does its reference images are.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from common import arguments, start
from numpy.typing import NDArray

from pure_nb import Run, Study, load_study
from pure_nb._options import numbers
from pure_nb.compute.sweep import sweep
from pure_nb.methods.quantiles import QuantileReferences
from pure_nb.methods.virtual import kmeans
from pure_nb.ranges import TOP, activation_range, band_name, enough, in_bands, means


def purity(labels: NDArray[np.int64], objects: NDArray[np.int64]) -> float:
    """Share of images with the commonest object of their part."""
    return sum(np.bincount(objects[labels == part]).max() for part in np.unique(labels)) / len(labels)


def objects(study: Study, channels: list[int], bands: int, n: int) -> pd.DataFrame:
    """How pure the objects are by the parts, in each band of each neuron."""
    spread, rows = study.replace(references="quantiles", n_references=bands * n), []
    assert study.objects is not None
    assert spread.objects is not None
    for channel in channels:
        parts = study.virtual[channel]
        top = parts.labels >= 0
        usual = [set(study.objects[channel][parts.labels == part]) - {-1} for part in range(parts.k)]
        band = in_bands(study, spread, channel, bands)
        given = {TOP: (study.circuits[channel][top], study.objects[channel][top])}
        for number in range(bands):
            chosen = band == number
            given[band_name(number, bands)] = spread.circuits[channel][chosen], spread.objects[channel][chosen]
        for name, (vectors, own) in given.items():
            known = own >= 0
            if known.sum() < 2 * parts.k:
                continue
            vectors, own = np.asarray(vectors)[known], own[known]
            labels = parts.labels[top][known] if name == TOP else parts.predict(vectors)
            row = {"channel": channel, "band": name, "known": float(known.mean()), "by_parts": purity(labels, own)}
            row["by_own_clusters"] = purity(kmeans(vectors, parts.k), own)
            row["whole"] = purity(np.zeros_like(own), own)
            rows.append(row | {"same_objects": np.mean([one in usual[part] for part, one in zip(labels, own)])})
    return pd.DataFrame(rows)


def small(study: Study) -> str:
    """How much of what its living neurons do their reference images are, in words."""
    count = len(study.images)
    every = QuantileReferences(study.parameters.target, max(2, count // 10))  # which keeps all images
    sweep(study.model, study.images, [every], run=Run(progress=False))
    peak = np.maximum(every.state()["peak"], 0).T[study.references.alive].astype(np.float64)
    own = np.maximum(study.references.peak[study.references.alive], 0).sum(axis=1) / peak.sum(axis=1)
    active = (peak > 0).sum(axis=1)
    n = study.references.n
    share = (n / np.maximum(active, n)).mean()
    return (
        f"{n} references of {count} images: an average neuron is active in {active.mean():.0f}, of which the "
        f"references are {share:.1%}; they carry {own.mean():.1%} of the activation"
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--study", default="glyphs")
    parser.add_argument("--shared", type=Path, help="folder with data and weights, for other studies than the shipped")
    parser.add_argument("--channels", help="which neurons, such as 0-15; all that are split by default")
    parser.add_argument("--bands", type=int, default=4)
    parser.add_argument("--n", type=int, default=50, help="images of each band")
    args = start(parser)
    if args.shared:
        os.environ["PURE_NB_CIFAR10"] = str(args.shared / "data" / "cifar10-test")
        os.environ["PURE_NB_CIFAR10_WEIGHTS"] = str(args.shared / "models" / "cifar10-resnet20.safetensors")
    study = load_study(args.study, progress=False)
    split = [channel for channel, parts in enumerate(study.virtual) if parts.k > 1]
    asked = set(numbers(args.channels)) if args.channels else set(split)
    channels = [channel for channel in split if channel in asked]
    print(small(study), flush=True)
    found = activation_range(study, None if len(channels) == len(split) else channels, bands=args.bands, n=args.n)
    table = means(found.bands, ["band"], ["unlike", "stability", "agreement"])
    if study.objects is not None:
        names = ["known", "by_parts", "by_own_clusters", "whole", "same_objects"]
        known = means(objects(study, channels, args.bands, args.n), ["band"], names)
        table = table.merge(known.drop(columns="neurons"), on="band", how="left")
    table.insert(0, "study", args.study)
    table.to_csv(args.out / "range.csv", index=False, float_format="%.3f")
    print(table.to_string(), flush=True)
    table = enough(study)
    table.insert(0, "study", args.study)
    table.to_csv(args.out / "stability.csv", index=False, float_format="%.3f")
    print(table.to_string(), flush=True)


if __name__ == "__main__":
    main()
