"""Which recipe of PURE splits planted channels best? One change at a time, then the winners together.

    python benchmarks/recipes.py --shared path/to/shared --out benchmarks/results/recipes.csv

Not a timing but a search: the mean adjusted Rand index of each recipe in several tasks with a known truth, of the
shipped network and of the CIFAR-10 ResNet-20. Without --shared only the shipped network takes part. The paper's recipe
is: circuits from all positions, over the stage below, summed over the positions, divided by their L1 norm, k-means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import arguments, start
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering

from pure_nb import Study, load_study
from pure_nb.benchmark import bench
from pure_nb.benchmark.contestants import (
    CLOSE,
    LAYERS,
    ORACLE,
    PEAK,
    PURE,
    Contestant,
    circuits_of,
    gaussian_mixture,
    hdbscan,
    oracle_of,
    several_layers,
    spectral,
)
from pure_nb.benchmark.tasks import Task, objects_task, planted_task
from pure_nb.methods.circuits import propagate
from pure_nb.network.layers import flatten_positions
from pure_nb.parameters import NEAREST

Vectors = NDArray[np.float32]

PAPERS: dict[str, Any] = {"rule": "gradient", "start": "activation"}
CLOSES: dict[str, Any] = {"rule": "gradient", "start": "peak", "lower": NEAREST}

TRANSFORMS: dict[str, Callable[[Vectors], Vectors]] = {
    "L2 norm": lambda v: v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12),
    "square root": lambda v: np.sign(v) * np.sqrt(np.abs(v)),
    "ranks over images": lambda v: v.argsort(axis=1).argsort(axis=1).astype(np.float32) / v.shape[1],
    "ranks over channels": lambda v: v.argsort(axis=2).argsort(axis=2).astype(np.float32) / v.shape[2],
    "standardised": lambda v: (v - v.mean(axis=1, keepdims=True)) / np.maximum(v.std(axis=1, keepdims=True), 1e-6),
}


def ward(vectors: Vectors, k: int, seed: int) -> NDArray[np.int64]:
    """Ward's hierarchical clustering."""
    return np.asarray(AgglomerativeClustering(k).fit_predict(vectors), dtype=np.int64)


def absolute(task: Task, recipe: dict[str, Any]) -> Vectors:
    """Circuits whose relevance is taken without its sign before it is summed over the positions."""
    study = task.replace(**recipe)
    p, sample = study.parameters, study.references.sample
    channel = np.broadcast_to(np.arange(len(sample))[:, None], sample.shape).ravel()
    found: Any = None
    flows = propagate(
        study.model,
        study.images,
        channel,
        sample.ravel(),
        target=p.target,
        lower=p.lower,
        rule=p.rule,
        start=p.start,
        run=study.run,
    )
    for rows, relevance, _, _ in flows:
        values = flatten_positions(relevance).abs().sum(dim=2).numpy()
        found = np.empty((sample.size, values.shape[1]), np.float32) if found is None else found
        found[rows] = values
    found /= found.sum(axis=1, keepdims=True) + np.float32(1e-10)
    return task.hidden(np.asarray(found.reshape(*sample.shape, -1)), p.lower)


def transformed(recipe: dict[str, Any], change: Callable[[Vectors], Vectors]) -> Callable[[Task], Vectors]:
    """Circuits, and something done to them."""
    return lambda task: change(task.circuits(**recipe))


def more_references(recipe: dict[str, Any], n: int) -> Callable[[Task], NDArray[np.int64]]:
    """Parts found in the n strongest images, of which the task's own are the first."""

    def answer(task: Task) -> NDArray[np.int64]:
        own = task.truth.shape[1]
        vectors = task.circuits(**recipe, n_references=n)
        return np.stack([bench.kmeans(v, int(k), 0)[:own] for v, k in zip(vectors, task.k)])

    return answer


def recipes() -> list[Contestant]:
    """All that is tried."""
    paper, close = circuits_of(**PAPERS), circuits_of(**CLOSES)
    found = [
        Contestant(PURE, paper),
        Contestant("start: one at every position", circuits_of(rule="gradient", start="unit")),
        Contestant(f"start: maximum only ({PEAK})", circuits_of(rule="gradient", start="peak")),
        Contestant("rule: LRP", circuits_of(rule="lrp", start="activation")),
        Contestant("layer: nearest", circuits_of(**{**PAPERS, "lower": NEAREST})),
        Contestant(f"layers: several ({LAYERS})", several_layers),
        Contestant("without signs", lambda task: absolute(task, PAPERS)),
        *(Contestant(name, transformed(PAPERS, change)) for name, change in TRANSFORMS.items()),
        Contestant("clusterer: Ward", paper, ward),
        Contestant("clusterer: spectral", paper, spectral),
        Contestant("clusterer: Gaussian mixture", paper, gaussian_mixture),
        Contestant("clusterer: HDBSCAN", paper, hdbscan),
        Contestant("references: 300", more_references(PAPERS, 300)),
        Contestant(f"maximum, nearest ({CLOSE})", close),
        Contestant(f"{CLOSE}, shortcuts open", lambda task: task.replace(**CLOSES).circuits),
        Contestant(f"{CLOSE}, LRP", circuits_of(**{**CLOSES, "rule": "lrp"})),
        Contestant(f"{CLOSE}, without signs", lambda task: absolute(task, CLOSES)),
        *(Contestant(f"{CLOSE}, {name}", transformed(CLOSES, change)) for name, change in TRANSFORMS.items()),
        Contestant(f"{CLOSE}, Ward", close, ward),
        Contestant(f"{CLOSE}, Gaussian mixture", close, gaussian_mixture),
        Contestant(f"{CLOSE}, references: 300", more_references(CLOSES, 300)),
        Contestant(f"{ORACLE}: {PURE}", oracle_of(paper), oracle=True),
        Contestant(f"{ORACLE}: {CLOSE}", oracle_of(close), oracle=True),
    ]
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()  # what is changed here is computed again
    return [replace(one, fingerprint=f"{digest} {one.name}") for one in found]


def tasks(shared: Path | None, count: int) -> dict[str, Task]:
    """What they are to solve."""
    glyphs = load_study("glyphs", progress=False)
    found = {"glyphs, objects": objects_task(glyphs), "glyphs, planted": planted_task(glyphs, count)}
    if shared is None:
        return found
    cifar: Study = load_study(
        "cifar10-resnet20",
        data=shared / "data" / "cifar10-test",
        weights=shared / "models" / "cifar10-resnet20.safetensors",
        progress=False,
    )
    return found | {
        "CIFAR layer3": planted_task(cifar, count),
        "CIFAR layer3, similar": planted_task(cifar, count, how="similar"),
        "CIFAR layer3, k = 3": planted_task(cifar, count, 3),
        "CIFAR layer2": planted_task(cifar.replace(target="layer2", lower="layer1"), count),
        "CIFAR layer3.0": planted_task(cifar.replace(target="layer3.0", lower="layer2"), count),
        "CIFAR layer3.2.conv2": planted_task(cifar.replace(target="layer3.2.conv2"), count),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shared", type=Path, help="folder with data/cifar10-test and models/")
    parser.add_argument("--count", type=int, default=60, help="planted channels in each task")
    args = start(parser)
    rows: dict[str, dict[str, float]] = {}
    for name, task in tasks(args.shared, args.count).items():
        table = bench.run(task, recipes(), choose=False)
        means = table[table["k"] > 1].groupby("method", sort=False)["ari"].mean()
        for method, value in means.items():
            rows.setdefault(str(method), {})[name] = float(value)
        print(name, len(task.k[task.k > 1]), "channels", flush=True)
    found = pd.DataFrame(rows).T.rename_axis("recipe")
    found["mean"] = found.mean(axis=1)
    print(found.round(2).to_string())
    if args.out:
        found.reset_index().to_csv(args.out, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
