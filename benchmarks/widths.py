"""How do meanings, scores and methods change with the width of the layer?

    python benchmarks/widths.py --out benchmarks/results/widths.csv

Not a timing. The shipped world's network with last stages of 16, 32, 64 and 128 channels over the same stages below,
trained alike (``tools/train_widths.py``): how many of the objects of new scenes it names; by means over the channels
with 95 % intervals how many objects make up a twentieth of a channel's references or more, in how many parts it is
split, how alike its pictures are to a judge (clarity, by mini-DINO); the share of channels called polysemantic, p at
most 0.05; the rank correlation of each score with the number of objects; and the mean adjusted Rand index of methods,
of natural neurons against the objects under their maxima and of planted channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import arguments, start
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from pure_nb import Study, load_study
from pure_nb.benchmark.leaderboards import run_benchmark
from pure_nb.benchmark.tasks import Task, objects_task, planted_task
from pure_nb.benchmark.trial import board, trial
from pure_nb.glyphs import GlyphScenes
from pure_nb.judges.embedders import load_embedder
from pure_nb.loading import load_model
from pure_nb.methods.statistics import interval
from pure_nb.scores import scores

WIDTHS = (16, 32, 64, 128)
METHODS = ("PURE", "PURE at maximum", "activation", "activation at maximum", "random", "oracle: PURE")
TWENTIETH = 0.05
"""The share of a channel's references from which an object counts as one of its meanings."""

Row = dict[str, Any]


def mean_of(measure: str, values: NDArray[Any] | pd.Series[Any]) -> Row:
    """A mean over channels with its 95 % interval."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    low, high = interval(known)
    return {"measure": measure, "value": known.mean(), "low": low, "high": high, "n": len(known)}


@torch.inference_mode()
def named(model: nn.Module, count: int) -> Row:
    """The share of objects of new scenes that are among the top k logits, k being the scene's number of objects."""
    found = there = 0
    for images, present in DataLoader(GlyphScenes(count, "val"), batch_size=200):
        ranks = model(images).argsort(descending=True).argsort()
        found += int(((ranks < present.sum(1, keepdim=True)) & present.bool()).sum())
        there += int(present.sum())
    return {"measure": "objects named", "value": found / there, "n": there}


def meanings(study: Study) -> Iterator[Row]:
    """What the natural neurons mean, and how that is scored."""
    judge = load_embedder("mini-dino")
    assert study.objects is not None
    alive = np.flatnonzero(study.references.alive)
    counts = [np.unique(own[own >= 0], return_counts=True)[1] for own in study.objects[alive]]
    yield mean_of("objects", [(own >= TWENTIETH * study.parameters.n_references).sum() for own in counts])
    table = scores(study, judge, parts=False).set_index("channel").loc[alive]
    yield mean_of("clarity", table["clarity"])
    yield mean_of("polysemantic", np.array([study.virtual[channel].p <= 0.05 for channel in alive.tolist()]))
    yield mean_of("parts", [study.virtual[channel].k for channel in alive.tolist()])
    tried = board(trial(objects_task(study), [judge]))
    for row in tried.dropna(subset="rho").to_dict("records"):
        about = {"measure": f"rank correlation, {row['score']} by {row['judge']}", "value": row["rho"]}
        yield about | {"low": row["rho_low"], "high": row["rho_high"], "n": row["several"] + row["single"]}


def agreement(task: Task) -> Iterator[Row]:
    """How well methods find the truth."""
    found = run_benchmark(task, only=METHODS, choose=False)
    for row in found.board.to_dict("records"):
        neurons = int((found.table["method"] == row["method"]).sum())
        about = {"measure": f"ARI, {task.name}: {row['method']}", "value": row["ari"]}
        yield about | {"low": row["low"], "high": row["high"], "n": neurons}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=40, help="channels to plant")
    parser.add_argument("--n", type=int, default=100, help="references of each neuron")
    args = start(parser)
    rows: list[Row] = []
    for width in WIDTHS:
        shipped = load_study("glyphs", progress=False, n_references=args.n, crop="activation")
        study = shipped.replace(model=load_model(f"glyphnet-{width}"))
        steps = ([named(study.model, 1000)], meanings(study), agreement(objects_task(study)))
        for step in (*steps, agreement(planted_task(study, args.count))):
            for row in step:
                rows.append({"width": width} | row)
                print(rows[-1], flush=True)
        if args.out:
            pd.DataFrame(rows).to_csv(args.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
