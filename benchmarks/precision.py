"""What half precision and channels-last cost in results, and what they gain in time.

    python benchmarks/precision.py --folder IMAGES --weights WEIGHTS --out benchmarks/results/precision.csv

The references of ``layer4`` over the images, and the circuits and virtual neurons of some channels, in each precision
against float32. *References* is the share of the reference images that are the same, *circuits* the median cosine of
the relevance vectors of the same pairs, *parts* the mean adjusted Rand index of two virtual neurons of the same
references. *Sweep* and *circuits, time* are times as shares of float32's, in one run on the same images. Rounding is
the baseline: float32 in batches of another size, which changes the order of sums and nothing else. A study uses half
precision for the sweep alone; here circuits are computed in it too, to see what that would do. With --compile there are
rows of a sweep through a network made by torch.compile, which needs a C++ compiler, and *compile*, how many images the
sweep in float32 could go through in the time that this takes; give whole batches of 32 images, or it compiles twice.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, clock_of, report, start
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.utils.data import Subset
from torchvision.models.feature_extraction import create_feature_extractor

from pure_nb.compute.precision import autocast
from pure_nb.compute.sweep import sweep
from pure_nb.glyphs import glyph_images
from pure_nb.images.data import Images
from pure_nb.images.reading import batches
from pure_nb.images.sources import folder_images
from pure_nb.loading import load_model
from pure_nb.methods.circuits import circuits
from pure_nb.methods.references import References, TopReferences
from pure_nb.methods.virtual import kmeans
from pure_nb.parameters import Run

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, other batches": {"batch_size": 24},
    "float32, channels last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, channels last": {"precision": "bfloat16", "channels_last": True},
}


def compiled_sweep(model: nn.Module, images: Images, n: int, channels_last: bool) -> tuple[References, float, float]:
    """The references, and the processor seconds of the sweep and of compiling for it, in whichever process."""
    extract: Any = create_feature_extractor(copy.deepcopy(model), ["layer4"]).eval().requires_grad_(False)
    extract = torch.compile(extract.to(memory_format=torch.channels_last) if channels_last else extract)
    run, top = Run(progress=False), TopReferences("layer4", n)
    clocks = [sum(os.times()[:4])]
    with torch.no_grad():
        extract(torch.stack([images.tensor(i) for i in range(run.batch_size)]))
        clocks.append(sum(os.times()[:4]))
        for batch in batches(images, range(len(images)), run=run):
            top.update(batch.samples, extract(batch.images))
    clocks.append(sum(os.times()[:4]))
    return top.result(), clocks[2] - clocks[1], clocks[1] - clocks[0]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--weights", type=Path, help="of the network; the shipped network without it")
    parser.add_argument("--folder", type=Path, help="images: a subfolder of pictures for each class")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels", type=int, default=16, help="channels whose circuits are compared")
    parser.add_argument("--compile", action="store_true", help="also sweep through a compiled network, on the CPU")
    parser.add_argument("-n", type=int, default=100, help="references for each channel")
    args = start(parser)
    model = load_model(args.model, args.weights) if args.weights else load_model("glyphnet")
    if args.folder:
        whole = folder_images(args.folder)
        chosen = np.linspace(0, len(whole) - 1, min(args.images, len(whole))).astype(int).tolist()
        images = Images(Subset(whole.dataset, chosen), "sample")
    else:
        images = glyph_images(args.images)
    clock = clock_of(args)
    sweep(model, images, [TopReferences("layer4", args.n)], run=Run(progress=False))  # warms up
    rows: list[dict[str, Any]] = []
    exact: dict[str, Any] = {}
    faster = {"float16": {"precision": "float16"}} if args.device != "cpu" else {}  # CPUs emulate it, at a quarter
    for name, settings in (VARIANTS | faster).items():
        how: dict[str, Any] = {"device": args.device, "progress": False, **settings}
        precision = how.pop("precision", "float32")
        run = Run(**how)
        top = TopReferences("layer4", args.n)
        begin = clock()
        sweep(model, images, [top], precision=precision, run=run)
        swept = clock() - begin
        found = top.result()
        if not exact:
            best = np.linspace(0, found.channels - 1, args.channels).astype(int)
            channel = np.broadcast_to(best[:, None], (len(best), found.n))
            exact = {"references": found, "channel": channel, "sample": found.sample[best]}
        begin = clock()
        with autocast(args.device, precision):  # what a study does not do, for what is seen here
            vectors = circuits(
                model, images, exact["channel"], exact["sample"], target="layer4", lower="layer3", run=run
            )
        taken = clock() - begin
        labels = [kmeans(own, 2) for own in vectors]
        if "vectors" not in exact:
            exact |= {"vectors": vectors, "labels": labels, "sweep": swept, "circuits": taken}
        same = [len(np.intersect1d(*pair)) / found.n for pair in zip(found.sample, exact["references"].sample)]
        norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(exact["vectors"], axis=-1)
        with np.errstate(invalid="ignore"):
            cosine = (vectors * exact["vectors"]).sum(axis=-1) / norms
        rows.append(
            {
                "model": args.model if args.weights else "glyphnet",
                "device": args.device,
                "variant": name,
                "references": np.mean(same),
                "circuits": np.nanmedian(cosine),
                "parts": np.mean([adjusted_rand_score(*pair) for pair in zip(labels, exact["labels"])]),
                "sweep": swept / exact["sweep"],
                "circuits, time": taken / exact["circuits"],
                "images": len(images),
                "pairs": channel.size,
            }
        )
    for name, last in {"compiled": False, "compiled, channels last": True}.items() if args.compile else ():
        found, swept, compiling = compiled_sweep(model, images, args.n, last)
        same = [len(np.intersect1d(*pair)) / found.n for pair in zip(found.sample, exact["references"].sample)]
        entry = {"variant": f"float32, {name}", "references": np.mean(same), "sweep": swept / exact["sweep"]}
        rows.append(rows[0] | dict.fromkeys(("circuits", "parts", "circuits, time")) | entry)
        rows[-1]["compile"] = round(compiling / exact["sweep"] * len(images))
    report(rows, args)


if __name__ == "__main__":
    main()
