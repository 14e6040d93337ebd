"""What a study was expected to take, and what it then took, step by step.

    python benchmarks/estimate.py --threads 1 --shared path/to/shared

Each study is estimated in one fresh process, and run in another one with an empty store; *factor* is what it took over
what was expected, by the clock of ``--clock``. The peak is that of the process from the first step on.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import arguments, fresh, network, peak, report, start

from pure_nb.estimating import STEPS
from pure_nb.loading import load_study
from pure_nb.study import Study


def glyphs(store: str, shared: Path, images: int) -> Study:
    """The study that ships, of fewer scenes."""
    study = load_study("glyphs", store=store, progress=False)
    return study.replace(
        images=study.images.__class__(study.images.dataset.__class__(images), "glyphs"), n_references=20
    )


def resnet18(store: str, shared: Path, images: int) -> Study:
    """Random weights, noise of 64 x 64 pixels in memory."""
    torch.manual_seed(0)
    model, noise = network("torchvision:resnet18"), torch.randn(images, 3, 64, 64)
    how: dict[str, Any] = {"n_references": 20, "progress": False, "store": store, "name": "resnet18"}
    return Study.from_model(model, noise, "layer1.1.conv2", "input:layer1.1.conv2", **how)


def resnet50(store: str, shared: Path, images: int) -> Study:
    """Photographs."""
    model = network("torchvision:resnet50")
    files = sorted((shared / "data" / "photographs" / "pictures").rglob("*.jpg"))
    some = files[:: max(1, len(files) // images)][:images]
    how: dict[str, Any] = {"n_references": 4, "progress": False, "store": store, "name": "resnet50"}
    return Study.from_model(model, some, "layer1.2.conv2", "input:layer1.2.conv2", **how)


STUDIES: dict[str, tuple[Callable[..., Study], int]] = {
    "glyphs": (glyphs, 300),
    "resnet18": (resnet18, 200),
    "resnet50": (resnet50, 30),
}


def expected(make: Callable[[str], Study], steps: list[str]) -> pd.DataFrame:
    """The estimate."""
    warnings.simplefilter("ignore")
    return make(tempfile.mkdtemp()).estimate(steps=steps)


def taken(make: Callable[[str], Study], steps: list[str]) -> pd.DataFrame:
    """What each step then takes."""
    warnings.simplefilter("ignore")
    study = make(tempfile.mkdtemp())
    study.shapes, study.images.fingerprint, study._weights  # noqa: B018  no steps of their own
    compute: dict[str, Callable[[], object]] = {
        "boxes": lambda: study.crops.boxes,
        "classes": lambda: study.classes.statistics,
    }
    rows = {}
    for step in steps:
        before = sum(result.size for result in study.results.stored())
        clock, processor = time.perf_counter(), time.process_time()
        compute.get(step, partial(getattr, study, step))()
        rows[step] = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
        rows[step]["memory_mb"] = peak() * 2**20 / 1e6
        rows[step]["disk_mb"] = (sum(result.size for result in study.results.stored()) - before) / 1e6
    return pd.DataFrame.from_dict(rows, orient="index")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--images", type=int, help="images of each study")
    parser.add_argument("--steps", nargs="+", default=[step for step in STEPS if step != "embeddings"])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("PURE_NB_SHARED", "../shared")))
    args = start(parser)
    rows: list[dict[str, Any]] = []
    for name in args.studies:
        make, count = STUDIES[name]
        study = partial(make, shared=args.shared.resolve(), images=args.images or count)
        told = fresh(expected, study, args.steps, threads=args.threads)
        steps = [step for step in args.steps if step in told.index]
        took = fresh(taken, study, steps, threads=args.threads)
        took.loc["total"] = {**took[["seconds", "processor", "disk_mb"]].sum(), "memory_mb": took["memory_mb"].max()}
        for step in [*steps, "total"]:
            row: dict[str, Any] = {"study": name, "step": step}
            for column in ("seconds", "processor", "memory_mb", "disk_mb"):
                row |= {f"{column} expected": told[column][step], column: took[column][step]}
            clock = "seconds" if args.clock == "wall" else "processor"
            rows.append(row | {"factor": took[clock][step] / told[clock][step]})
    report(rows, args)


if __name__ == "__main__":
    main()
