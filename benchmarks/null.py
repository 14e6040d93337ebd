"""How often is one heap called several? And are planted channels still told from channels merged with themselves?

    python benchmarks/null.py --out benchmarks/results/null.csv
    python benchmarks/null.py --detection --shared path/to/shared --out benchmarks/results/null-detection.csv

Not a timing. The first table has, for each kind of heap and each level, the share of heaps with p at or below it, by
this package's test and by one against vectors whose entries were shuffled. The second compares the two tests on planted
channels: the area under the ROC curve of silhouette less null, their difference with a paired bootstrap, and the share
of channels merged with themselves that are called polysemantic.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from common import arguments, start
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pure_nb import load_study
from pure_nb.benchmark.tasks import Task, planted_task
from pure_nb.methods.null import STARTS, _clearest, _gram, one_heap
from pure_nb.methods.virtual import CHOICES, virtual_neurons

Vectors = NDArray[np.floating]
N, D = 100, 64
LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def noise(g: np.random.Generator) -> Vectors:
    return g.standard_normal((N, D))


def loading(g: np.random.Generator) -> Vectors:
    return g.standard_normal(D)


def proportions(g: np.random.Generator) -> Vectors:
    entries = np.exp(noise(g))
    return entries / entries.sum(axis=1, keepdims=True)


HEAPS: dict[str, Callable[[np.random.Generator], Vectors]] = {
    "independent": noise,
    "one factor, weak": lambda g: noise(g) + 0.3 * np.outer(g.standard_normal(N), loading(g)),
    "one factor, strong": lambda g: noise(g) + np.outer(g.standard_normal(N), loading(g)),
    "six factors": lambda g: noise(g) + 0.7 * g.standard_normal((N, 6)) @ g.standard_normal((6, D)),
    "t4 and a factor": lambda g: g.standard_t(4, (N, D)) + np.outer(g.standard_normal(N), loading(g)),
    "exponential factor": lambda g: noise(g) + np.outer(g.exponential(size=N), abs(loading(g))),
    "log-normal factor": lambda g: noise(g) + np.outer(np.exp(g.standard_normal(N)), abs(loading(g))),
    "log-normal, L1": proportions,
}


def against_shuffled(vectors: Vectors, draws: int, seed: int) -> tuple[float, float]:
    """Mean silhouette of vectors whose entries were shuffled between the images, and the share as clear."""
    generator = np.random.default_rng(seed)
    sets = [*[vectors] * STARTS, *(generator.permuted(vectors, axis=0) for _ in range(draws))]
    centred = np.stack([one - one.mean(axis=0) for one in sets])
    values = _clearest(_gram((centred / centred.std()).astype(np.float32)), CHOICES, generator)
    own, rest = values[:STARTS].mean(), values[STARTS:]
    return float(rest.mean()), float((1 + np.sum(rest >= own)) / (1 + draws))


def levels(count: int, draws: int) -> pd.DataFrame:
    """Share of heaps with p at or below each level."""
    circuits = [own[own.any(axis=1)] for own in load_study("glyphs", progress=False).circuits]
    kinds = HEAPS | {"shuffled circuits": lambda g: g.permuted(circuits[g.integers(len(circuits))], axis=0)}
    rows = []
    for kind, make in kinds.items():
        made = [make(np.random.default_rng([number, 7])) for number in range(count)]
        found = {
            "one heap": [one_heap(one, CHOICES, draws=draws, seed=number)[1] for number, one in enumerate(made)],
            "entries shuffled": [against_shuffled(one, 49, number)[1] for number, one in enumerate(made[: count // 5])],
        }
        for test, p in found.items():
            share = {f"{level:g}": np.mean(np.array(p) <= level) for level in LEVELS}
            rows.append({"heap": kind, "test": test, "heaps": len(p), **share})
            print(*rows[-1].values(), flush=True)
    return pd.DataFrame(rows)


def compared(name: str, vectors: Vectors, several: NDArray[np.bool_]) -> dict[str, object]:
    """Both tests on the same channels: planted ones, and ones merged with themselves."""
    new = [virtual_neurons(own) for own in vectors]
    old = [against_shuffled(own[own.any(axis=1)].astype(np.float64), 49, 0) for own in vectors]
    clear = np.array([one.silhouette_gain for one in new])
    was = np.array([one.silhouette - other[0] for one, other in zip(new, old)])
    p = np.array([one.p for one in new])
    generator, differences = np.random.default_rng(0), []
    for _ in range(2000):
        pick = np.concatenate(
            [generator.choice(group, len(group)) for group in (several.nonzero()[0], (~several).nonzero()[0])]
        )
        differences.append(roc_auc_score(several[pick], clear[pick]) - roc_auc_score(several[pick], was[pick]))
    low, high = np.quantile(differences, [0.025, 0.975])
    old_p = np.array([one[1] for one in old])
    return {
        "task": name,
        "planted": int(several.sum()),
        "single": int((~several).sum()),
        "auc": roc_auc_score(several, clear),
        "auc shuffled": roc_auc_score(several, was),
        "low": low,
        "high": high,
        "planted called": (p[several] <= 0.05).mean(),
        "single called": (p[~several] <= 0.05).mean(),
        "planted called shuffled": (old_p[several] <= 0.05).mean(),
        "single called shuffled": (old_p[~several] <= 0.05).mean(),
    }


def tasks(shared: Path | None) -> dict[str, Task]:
    """Where channels are planted."""
    glyphs = load_study("glyphs", progress=False)
    found = {"glyphs": planted_task(glyphs, 24, self_merged=12)}
    if shared is None:
        return found
    where = {"data": shared / "data" / "cifar10-test", "weights": shared / "models" / "cifar10-resnet20.safetensors"}
    cifar = load_study("cifar10-resnet20", **where, progress=False)
    found["CIFAR layer3"] = planted_task(cifar, 60, self_merged=30)
    found["CIFAR layer2"] = planted_task(cifar.replace(target="layer2", lower="layer1"), 30, self_merged=15)
    data, weights = shared / "data" / "imagenet-sample", shared / "models" / "imagenet-resnet50.safetensors"
    photographs = load_study("imagenet-resnet50", data=data, weights=weights, progress=False, n_references=50)
    found["ImageNet layer4"] = planted_task(photographs, 60, self_merged=30)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--heaps", type=int, default=1000, help="of each kind; a fifth of them for the shuffled null")
    parser.add_argument("--draws", type=int, default=199, help="at most, for each heap")
    parser.add_argument("--detection", action="store_true", help="planted channels instead of heaps")
    parser.add_argument("--shared", type=Path, help="folder with data/ and models/ of CIFAR-10 and ImageNet")
    args = start(parser)
    if args.detection:
        rows = []
        for name, task in tasks(args.shared).items():
            used = (task.k > 1) | task.planting.self_merged
            rows.append(compared(name, task.circuits(rule="gradient", start="activation")[used], task.k[used] > 1))
        table = pd.DataFrame(rows)
    else:
        table = levels(args.heaps, args.draws)
    print(table.round(3).to_string(index=False))
    if args.out:
        table.to_csv(args.out, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
