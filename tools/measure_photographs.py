"""Measure what the chapters say of photographs and takes the network: tables in `book/photographs/measured`.

    python tools/measure_photographs.py imagenet-mobilenetv2.safetensors imagenet-resnet50.safetensors \\
        path/to/photographs imagenet_classes.csv

Of the study that `tools/make_photographs.py` publishes, which has to be there: its crops and parts are those of the
chapters. The judge is another network trained on ImageNet, torchvision's ``resnet50``; the last file has the columns
``index`` and ``name`` of ImageNet's classes. Takes a few minutes of one core, since the layers below the lower layer
run once: what is measured is of those above it, on what these put out.

``methods.json``
    One neuron by seven methods, for *What is known, and what is open*.
``judge.json``
    Distances of crops by the judge, and parts by several descriptions, for *What CLIP says*.
``planted.json``
    Planted channels, for *How would we know?*.
``reasons.json``
    Answers explained by parts, for *Why did it say so?*.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch looks: sums in another order end in other digits

import numpy as np
import torch
from make_photographs import FOLDER, study_of
from torch import Tensor, nn

from pure_nb import Study, load_study
from pure_nb.benchmark.leaderboards import run_benchmark
from pure_nb.benchmark.side_by_side import activations_of, seven_ways
from pure_nb.benchmark.tasks import planted_task
from pure_nb.images.reading import readable
from pure_nb.judges.embedders import Embedder, from_network, pixels
from pure_nb.judges.evaluation import pair_distances
from pure_nb.methods.descriptions import PURE
from pure_nb.methods.virtual import kmeans
from pure_nb.network.layers import activations
from pure_nb.network.models import load_model

PLANTED = 40
"""Pairs of channels that are merged."""

CONTESTANTS = ("PURE", "PURE at maximum", "activation", "activation at maximum", "lower activation", "random")
ORACLE = "oracle: PURE"

EXPLAINED = 23
"""Of the photographs each so-manieth is explained."""

CHANNELS, SHOWN = 12, 4
"""How many channels of an answer are taken apart, and how many parts are told of."""

AUTOENCODER = {"width": 1280, "k": 8, "steps": 200, "batch_size": 128}
"""One feature a channel, by few steps: these are 138 photographs, and four features a channel would take an hour."""


class Above(nn.Module):
    """The network from the output of its lower layer on; ``norm`` puts out what enters the ReLU6."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.below, norm = nn.Identity(), whole.get_submodule("bn2")
        self.conv_head = whole.get_submodule("conv_head")
        self.norm = nn.BatchNorm2d(norm.num_features, norm.eps)  # timm's is one module with the ReLU6
        self.norm.load_state_dict(norm.state_dict())
        self.act, self.pool = norm.get_submodule("act"), whole.get_submodule("global_pool")
        self.classifier = whole.get_submodule("classifier")

    def forward(self, given: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.act(self.norm(self.conv_head(self.below(given))))))
        return out


def above(study: Study) -> Study:
    """The study of the network above its lower layer, on what this puts out for the study's images."""
    lower, batches = study.parameters.lower, readable(study.images, range(len(study.images)), run=study.run)
    with study.run.prepared(study.model), torch.inference_mode():
        put_out = [activations(study.model, batch.images, [lower])[lower].clone() for batch in batches]
    how = {"target": "norm", "lower": "below", "n_references": 15, "n_clusters": 3}
    none = [0.0] * put_out[0].shape[1], [1.0] * put_out[0].shape[1]
    given = torch.cat(put_out)
    return Study.from_model(Above(study.model), given, mean=none[0], std=none[1], name="above", **how)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is measured, and by whom."""

    study: Study
    published: Study
    other: nn.Module
    names: list[str]

    @cached_property
    def judge(self) -> Embedder:
        """The features of the other network."""
        return from_network(self.other, name="features of a ResNet-50")

    def crops(self, channel: int) -> list[Any]:
        """What a neuron looks at in its references, as published."""
        return self.published.crops.of(channel, range(self.published.references.n))

    @property
    def channels(self) -> list[int]:
        """The published neurons, in the order of the table."""
        return [int(channel) for channel in self.published.neurons["channel"]]


def methods(asked: Asked) -> dict[str, Any]:
    """The published neuron of the largest score by seven methods."""
    channel, study = asked.channels[0], asked.study
    folders = asked.published.neuron(channel).names
    labels = np.unique(folders, return_inverse=True)[1]
    words = asked.other.get_submodule("fc").weight.detach().numpy()
    k = asked.published.virtual[channel].k
    how = {"crops": asked.crops(channel), "judge": asked.judge, "words": words, "labels": labels}
    found = seven_ways(study, channel, k, **how, convolution="conv_head", autoencoder=AUTOENCODER)
    return {"channel": channel, "k": k, "labels": {name: own.tolist() for name, own in found.items()}}


def judged(asked: Asked) -> dict[str, Any]:
    """Distances of the crops of each neuron, pair by pair, and its parts by several descriptions."""
    rows, raw, vectors = [], pixels(), activations_of(asked.study, asked.channels)
    for place, channel in enumerate(asked.channels):
        crops, k = asked.crops(channel), asked.published.virtual[channel].k
        seen = asked.judge.images(crops)
        own = {name: vectors[name][place] for name in ("activation", "activation at maximum")}
        own |= {"pixels": raw.images(crops), "the judge's own": seen}
        parts = {name: kmeans(each, k, seed=asked.study.parameters.seed).tolist() for name, each in own.items()}
        distances = [round(float(one), 3) for one in pair_distances(seen, "cosine")]
        rows.append({"channel": channel, "distances": distances, "parts": parts})
    return {"judge": asked.judge.name, "metric": "cosine", "neurons": rows}


def planted(asked: Asked) -> dict[str, Any]:
    """Merged channels: how well parts agree with the sources, and the pair in which these are plainest."""
    task = planted_task(asked.study, count=PLANTED)
    made = run_benchmark(task, only=[*CONTESTANTS, ORACLE], choose=False)
    several = np.flatnonzero(task.k > 1)
    example = int(several[task.dominant[several].mean(axis=1).argmax()])
    own = made.table[(made.table["channel"] == example) & (made.table["method"] == PURE)].iloc[0]
    columns = ["method", "ari", "low", "high", "difference", "p"]
    board = made.board[[name for name in columns if name in made.board]].round(4)
    return {
        "pairs": PLANTED,
        "several": len(several),
        "dominant": round(float(task.dominant[several].mean()), 3),
        "board": json.loads(board.to_json(orient="records")),
        "example": {
            "sources": [int(one) for one in task.planting.groups[example]],
            "sample": task.study.references.sample[example].tolist(),
            "truth": task.truth[example].tolist(),
            "share": task.share[example].round(3).tolist(),
            "parts": list(map(int, own["labels"])),
            "ari": round(float(own["ari"]), 3),
            "of_sources": [asked.study.references.sample[one].tolist() for one in task.planting.groups[example]],
        },
    }


def reasons(asked: Asked) -> dict[str, Any]:
    """Answers for some photographs, what they are made of, and whether they fall with what explains them."""
    study, rows = asked.study, []
    for sample in range(0, len(study.images), EXPLAINED):
        found = study.explain(sample, channels=CHANNELS, count=SHOWN)
        table = found.table
        areas = found.faithfulness.areas
        between = areas[areas["ablation"] == "mean"].set_index("order")["between"]
        parts = []
        shown = found.channels[found.channels["part"] >= 0].head(SHOWN)
        for channel, part in shown[["channel", "part"]].itertuples(index=False):
            ranks = study.neuron(int(channel)).virtual.labels == part
            parts.append(study.references.sample[int(channel)][ranks].tolist())
        kinds = ["kind", "part", "name", "share"]
        rows.append({
            "sample": sample,
            "answer": asked.names[int(found.output)],
            "value": round(found.value, 3),
            "table": json.loads(table[kinds].round({"share": 4}).to_json(orient="records")),
            "references": parts,
            "between": {name: round(float(one), 4) for name, one in between.items()},
        })  # fmt: skip
    return {"channels": CHANNELS, "photographs": rows}


STEPS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "methods": methods,
    "planted": planted,
    "reasons": reasons,
    "judge": judged,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="of the network that is studied, a file of safetensors")
    parser.add_argument("judge", type=Path, help="weights of torchvision's resnet50")
    parser.add_argument("photographs", type=Path, help="the folder with ATTRIBUTION.csv and pictures/")
    parser.add_argument("names", type=Path, help="a CSV file with the index and the name of each of ImageNet's classes")
    parser.add_argument("--folder", type=Path, default=FOLDER / "measured", help="where to write the tables")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=[*STEPS], help="which tables")
    given = parser.parse_args()
    with given.names.open(encoding="utf-8", newline="") as file:
        names = [row["name"] for row in sorted(csv.DictReader(file), key=lambda row: int(row["index"]))]
    other = load_model("torchvision:resnet50", given.judge)
    published = load_study("photographs", progress=False)
    study = study_of(given.weights, given.photographs / "pictures").replace(progress=False)
    if study._weights != published._weights or study.images.fingerprint != published.images.fingerprint:
        raise SystemExit("these are not the network and the photographs of the published study")
    study, shown = above(study).replace(progress=False), [*published.neurons["channel"]]
    if not np.array_equal(study.references.sample[shown], published.references.sample[shown]):
        raise SystemExit("the layers above find other reference images than were published")
    given.folder.mkdir(exist_ok=True)
    for name in given.only:
        told = STEPS[name](Asked(study, published, other, names))
        (given.folder / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(name, "written", flush=True)


if __name__ == "__main__":
    main()
