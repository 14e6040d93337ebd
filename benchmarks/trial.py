"""Scores on trial: which number tells a channel of several meanings from a channel of one?

    python benchmarks/trial.py --shared path/to/shared --out benchmarks/results/trial.csv

Not a timing. In each world channels are merged from two or three sources, and others with themselves, all in one copy
of the network; every kind of merged channels is held against the same single ones. Of each score the area under the ROC
curve with DeLong's interval, p of the Mann-Whitney test, and its difference from ours with DeLong's paired test, both
corrected for the number of scores of that kind; and the rank correlation with the number of objects of natural neurons.
Without --shared only the shipped network takes part, and no other network judges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from common import arguments, start
from torch.utils.data import Subset

from pure_nb import Study, load_study
from pure_nb.benchmark.paired import ABOUT_TWO, DIFFERENCE, compared
from pure_nb.benchmark.planting import draw
from pure_nb.benchmark.tasks import Task, likeness, objects_task, planted_task
from pure_nb.benchmark.trial import OWN, board, trial
from pure_nb.glyphs import glyph_images
from pure_nb.images.data import Images
from pure_nb.judges.embedders import load_embedder
from pure_nb.judges.vectors import Embedder, from_network
from pure_nb.loading import load_model
from pure_nb.methods.statistics import corrected

OURS = ("silhouette_gain", OWN)
SIZE = 96
"""Pixels of what the other network judges."""

COLUMNS = ["score", "judge", "auc", "low", "high", "p", "n", *DIFFERENCE, "rho", "rho_low", "rho_high"]

KINDS: dict[str, dict[str, Any]] = {
    "random": {"how": "random", "ratio": 1, "sources": 2},
    "random, 3 to 1": {"how": "random", "ratio": 3, "sources": 2},
    "similar": {"how": "similar", "ratio": 1, "sources": 2},
    "three sources": {"how": "random", "ratio": 1, "sources": 3},
}


def subset(study: Study, count: int) -> Study:
    """The study over some of its images, evenly spaced."""
    own = study.images
    if len(own) <= count:
        return study
    if own.drawn:
        return study.replace(images=glyph_images(count))
    chosen = np.linspace(0, len(own) - 1, count).round().astype(int).tolist()
    return study.replace(images=Images(Subset(own.dataset, chosen), own.name, own.mean, own.std))


def planted(study: Study, count: int, single: int) -> tuple[Task, dict[str, np.ndarray]]:
    """One network with merged channels of all kinds; and which of them are of each kind."""
    alike, groups, strengths, kinds = likeness(study), [], [], {}
    for number, (name, kind) in enumerate(KINDS.items()):
        how = {"how": kind["how"], "likeness": alike, "seed": number}
        own = draw(study.references, count, kind["sources"], **how)
        kinds[name] = np.arange(len(groups), len(groups) + len(own))
        groups += own
        strengths += [[float(kind["ratio"]), *[1.0] * (kind["sources"] - 1)]] * len(own)
    task = planted_task(study, groups=tuple(groups), strengths=strengths, self_merged=single)
    return task, kinds


def told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """How well each score tells the channels of several meanings, and how that differs from ours."""
    found = compared(table, OURS)
    far = ABOUT_TWO * found.pop("error")
    found = found.assign(low=(found["auc"] - far).clip(0, 1), high=(found["auc"] + far).clip(0, 1))
    known = table[np.isfinite(table["value"])]
    tested = {
        key: scipy.stats.mannwhitneyu(own["value"][own["k"] > 1], own["value"][own["k"] == 1]).pvalue
        for key, own in known.groupby(["score", "judge"])
        if own["k"].gt(1).nunique() == 2
    }
    keys = pd.Series([*zip(found["score"], found["judge"])])
    found["p"] = corrected(keys.map(tested).astype(float))
    found["n"] = keys.map(known.groupby(["score", "judge"]).size())
    return found.dropna(subset="auc").sort_values("auc", ascending=False)


def worlds(shared: Path | None, args: Any) -> dict[tuple[str, str], Study]:
    """Networks and layers."""
    how: dict[str, Any] = {"n_references": args.references, "crop": "activation", "progress": False}
    glyphs = load_study("glyphs", **how)
    found = {("glyphs", "layer4"): glyphs}
    if shared is not None:
        data, models = shared / "data", shared / "models"
        cifar = {"data": data / "cifar10-test", "weights": models / "cifar10-resnet20.safetensors"}
        found["CIFAR ResNet-20", "layer3"] = load_study("cifar10-resnet20", **cifar, **how)
        photographs = {"data": data / args.photographs, "weights": models / "imagenet-resnet50.safetensors"}
        found["ImageNet ResNet-50", "layer4"] = load_study("imagenet-resnet50", **photographs, **how)
    return {key: subset(study, args.images) for key, study in found.items() if key[0].startswith(tuple(args.worlds))}


def judges_of(shared: Path | None) -> list[Embedder]:
    """Those that ship, and features of a network that is not studied."""
    found = [load_embedder(name) for name in ("mini-clip", "mini-dino", "pixels")]
    if shared is not None:
        weights = shared / "models" / "imagenet-mobilenetv2.safetensors"
        other = load_model("timm:mobilenetv2_100", weights, pad_type="same")
        found.append(from_network(other, name="MobileNetV2", size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shared", type=Path, help="folder of the weights and pictures that do not ship")
    parser.add_argument("--worlds", nargs="+", default=["glyphs", "CIFAR", "ImageNet"], help="how their names begin")
    parser.add_argument("--photographs", default="imagenet-sample", help="their folder, one of each class")
    parser.add_argument("--scores", type=Path, help="folder for the scores of all channels")
    parser.add_argument("--count", type=int, default=40, help="merged channels of each kind")
    parser.add_argument("--single", type=int, default=24, help="channels merged with themselves")
    parser.add_argument("--references", type=int, default=50)
    parser.add_argument("--images", type=int, default=4000, help="at most so many")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap over channels")
    args = start(parser)
    judges, done, studies = judges_of(args.shared), [], worlds(args.shared, args)

    def write(world: tuple[str, str], kind: str, ratio: int, sources: int, table: pd.DataFrame) -> None:
        own = board(table, draws=args.draws).dropna(subset="rho") if kind == "natural" else told_apart(table)
        about = {"network": world[0], "layer": world[1], "kind": kind, "ratio": ratio, "sources": sources}
        done.append(own.assign(**about))
        print(own.head(12).to_string(), flush=True)
        if args.out is not None:
            size = {"references": args.references, "images": len(studies[world].images)}
            table = pd.concat(done).reindex(columns=[*about, *COLUMNS]).assign(**size)
            table.to_csv(args.out, index=False, float_format="%.4g")

    for world, study in studies.items():
        task, kinds = planted(study, args.count, args.single)
        assert task.planting is not None
        table, single = trial(task, judges), np.flatnonzero(task.planting.self_merged)
        for name, channels in kinds.items():
            kind = KINDS[name]
            own = table[table["channel"].isin([*channels, *single])]
            if args.scores is not None:
                own.to_parquet(args.scores / f"{world[0]}, {name}.parquet")
            write(world, kind["how"], kind["ratio"], kind["sources"], own)
        if study.images.truth is not None:
            write(world, "natural", 0, 0, trial(objects_task(study), judges))


if __name__ == "__main__":
    main()
