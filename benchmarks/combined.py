"""How are several descriptions of a neuron to be weighed, that together split planted channels best?

    python benchmarks/combined.py --shared path/to/shared --out benchmarks/results/combined.csv

Not a timing but a choice, made on these worlds alone: the mean adjusted Rand index of each way of weighing, in tasks
with a known truth of the shipped network, the CIFAR-10 ResNet-20 and the ImageNet ResNet-50, with intervals over
neurons and a paired test against PURE. Without --shared only the shipped network takes part. What is known of the
sources is hidden in all descriptions, see `pure_nb.benchmark.tasks.Task.hidden`. The number of parts is told, but not
to what weighs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import arguments, start
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, silhouette_score

from pure_nb import Study, load_study
from pure_nb.benchmark.tasks import Task, objects_task, planted_task
from pure_nb.methods.combined import COMBINED, CUTS, weights
from pure_nb.methods.descriptions import LOW, PEAK, PURE, TOP
from pure_nb.methods.stability import by_some, split_half
from pure_nb.methods.statistics import interval, signed_rank

Vectors = NDArray[np.float32]
Weights = NDArray[np.float64]
Labels = NDArray[np.int64]
VIEWS = (PURE, PEAK, TOP, LOW)


def described(task: Task) -> dict[str, Vectors]:
    """The four descriptions of a task's references, ``[channels, n, d]`` each."""
    circuits = [task.circuits(rule="gradient", start=begin) for begin in ("activation", "peak")]
    return dict(zip(VIEWS, (*circuits, task.activations[TOP], task.activations[LOW])))


def tasks(shared: Path | None, count: int) -> Iterator[tuple[str, Task]]:
    """What is to be solved, one at a time; what takes longest comes last."""
    glyphs = load_study("glyphs", progress=False)
    yield "glyphs, objects", objects_task(glyphs)
    yield "glyphs, planted", planted_task(glyphs, count)
    if shared is None:
        return

    def study(name: str, data: str, **changes: Any) -> Study:
        weights = shared / "models" / f"{name}.safetensors"
        return load_study(name, data=shared / "data" / data, weights=weights, progress=False, **changes)

    for layer, lower in (("layer3", "layer2"), ("layer2", "layer1")):
        own = study("cifar10-resnet20", "cifar10-test", target=layer, lower=lower)
        yield f"CIFAR ResNet-20 {layer}, random", planted_task(own, count)
        yield f"CIFAR ResNet-20 {layer}, similar", planted_task(own, count, how="similar")
    resnet = study("imagenet-resnet50", "imagenet-sample", n_references=25)
    yield "ImageNet ResNet-50 layer4", planted_task(resnet, count)


def products(vectors: Vectors) -> Vectors:
    """Scalar products of a neuron's references, ``[n, n]``, centred and of mean square 1: those side by side add up."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    found = centred @ centred.T
    return np.asarray(found * len(found) / max(np.trace(found), 1e-30), dtype=np.float32)


def parts(gram: Vectors, k: int) -> Labels:
    """k-means by scalar products."""
    return by_some(gram, np.arange(len(gram))[None], k, np.random.default_rng(0))[0]


def by_channel_halves(vectors: Vectors) -> float:
    """How far two halves of the channels agree on the clusters of all references, instead of halves of references."""
    generator = np.random.default_rng(0)
    orders = [generator.permutation(vectors.shape[1]) for _ in range(3)]
    pairs = [[parts(products(vectors[:, half]), 2) for half in np.array_split(order, 2)] for order in orders]
    return float(np.mean([adjusted_rand_score(*pair) for pair in pairs]))


def silhouette(vectors: Vectors) -> float:
    """How clear the two clusters look."""
    labels = parts(products(vectors), 2)
    return float(silhouette_score(vectors, labels)) if labels.min() < labels.max() else 0.0


def weighings(views: Mapping[str, Vectors], neurons: Labels) -> dict[str, Weights]:
    """What each way of weighing gives to each description: ``[neurons, descriptions]``."""

    def of(measure: Callable[[Vectors], float]) -> Weights:
        return np.array([[measure(own[neuron]) for own in views.values()] for neuron in neurons])

    found, halves, clear = of(lambda own: split_half(own, 2, cuts=CUTS)), of(by_channel_halves), of(silhouette)
    stable = found.clip(min=0)
    layer = stable.mean(axis=0)
    every = {
        "plain sum": np.ones(len(views)),
        "stability": layer,
        COMBINED: weights(found),
        "stability, cubed": layer**3,
        "stability of each neuron, squared": stable**2,
        "halfway between neuron and layer, squared": ((stable + layer) / 2) ** 2,
        "agreement of channel halves, squared": weights(halves),
        "silhouette, squared": weights(clear),
    }
    alone = {name: np.eye(len(views))[place] for place, name in enumerate(views)}
    return {name: np.broadcast_to(own, stable.shape) for name, own in (alone | every).items()}


def scored(views: Mapping[str, Vectors], truth: Labels, k: Labels) -> pd.DataFrame:
    """A row for each way of weighing: its mean ARI over the neurons, beside PURE's, and its mean weights."""
    neurons = np.flatnonzero(k > 1)
    grams = np.stack([[products(own[neuron]) for own in views.values()] for neuron in neurons])
    known, rows = [truth[neuron] >= 0 for neuron in neurons], []
    for name, weight in weighings(views, neurons).items():
        sums = np.einsum("cv,cvij->cij", weight.astype(np.float32), grams)
        labels = [parts(gram, int(k[neuron])) for gram, neuron in zip(sums, neurons)]
        cases = zip(neurons, labels, known)
        found = [adjusted_rand_score(truth[neuron][some], own[some]) for neuron, own, some in cases]
        shares = (weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)).mean(axis=0)
        told = " ".join(f"{share:.2f}" for share in shares)
        rows.append({"method": name, "neurons": len(neurons), "ari": np.array(found), "weights": told})
    pure = np.array(rows[0]["ari"])
    for row in rows:
        own = np.array(row["ari"])
        low, high = interval(own)
        apart = interval(own - pure)
        row |= {"ari": own.mean(), "low": low, "high": high, "difference": (own - pure).mean()}
        row |= {"difference_low": apart[0], "difference_high": apart[1], "p": signed_rank(own - pure)}
    return pd.DataFrame(rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shared", type=Path, help="folder with data/ and models/")
    parser.add_argument("--count", type=int, default=60, help="planted channels in each task")
    args = start(parser)
    tables: list[pd.DataFrame] = []
    for world, task in tasks(args.shared, args.count):
        tables.append(scored(described(task), task.truth, task.k).assign(world=world))
        print(world, tables[-1].round(3).to_string(index=False), sep="\n", flush=True)
        if args.out:  # as it goes, since the last ones take hours
            columns = ["world", "method", "neurons", "ari", "low", "high"]
            columns += ["difference", "difference_low", "difference_high", "p", "weights"]
            pd.concat(tables)[columns].to_csv(args.out, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
