"""Virtual neurons: pure_nb's batches of k-means against scikit-learn's KMeans, one after the other.

    python benchmarks/virtual.py --threads 1 --clock cpu --out benchmarks/results/virtual.csv

Both choose a number of virtual neurons from 2 to 5 and test it with the same number of draws. *scikit-learn* is what
this package did at first: KMeans with 10 restarts for each number, and for each draw, of shuffled entries, KMeans from
one start for each number, every one with scikit-learn's silhouette. *pure_nb* makes two kinds of each draw, and starts
200 times for the neuron itself; *to the end* is without its early end, so that draws are equal in number. *chosen
alike* are neurons for which both find the same number clearest. The circuits are those of the shipped study's neurons,
and made-up ones of ResNet-50's last stage: 100 references, 1,024 lower channels, one to four concepts.
"""

from __future__ import annotations

import argparse
from unittest.mock import patch

import numpy as np
from common import arguments, interleaved, report, start
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from pure_nb.loading import load_study
from pure_nb.methods.null import DRAWS, HITS
from pure_nb.methods.virtual import CHOICES, on_one_thread, virtual_neurons

Vectors = NDArray[np.float32]


@on_one_thread
def scikit_learn(vectors: Vectors, draws: int) -> tuple[int, float]:
    """The clearest number of virtual neurons, and p."""
    own = vectors[vectors.any(axis=1)].astype(np.float64)
    generator = np.random.default_rng(0)

    def silhouettes(points: NDArray[np.float64], n_init: int) -> list[float]:
        parts = [KMeans(k, n_init=n_init, random_state=0).fit_predict(points) for k in CHOICES]
        return [float(silhouette_score(points, part)) for part in parts]

    real = max(silhouettes(own, 1))
    drawn = [max(silhouettes(generator.permuted(own, axis=0), 1)) for _ in range(draws)]
    return CHOICES[int(np.argmax(silhouettes(own, 10)))], (1 + np.sum(np.array(drawn) >= real)) / (1 + draws)


def made_up(neurons: int) -> list[Vectors]:
    """Circuits of the size of ResNet-50's last stage; each sums to one, as far as signs allow."""
    found = []
    for neuron in range(neurons):
        generator = np.random.default_rng([neuron, 50])
        concept = generator.integers(0, 1 + neuron % 4, 100)
        means = np.exp(generator.standard_normal(1024) + generator.standard_normal((4, 1024)))
        vectors = means[concept] * np.exp(0.8 * generator.standard_normal((100, 1024)))
        vectors *= np.where(generator.random((100, 1024)) < 0.2, -1, 1)
        found.append((vectors / np.abs(vectors).sum(axis=1, keepdims=True)).astype(np.float32))
    return found


def compared(name: str, neurons: list[Vectors], draws: int, args: argparse.Namespace) -> dict[str, object]:
    """Milliseconds of a neuron, and which numbers are found."""
    chosen: dict[str, list[int]] = {}

    def ours(hits: int) -> None:
        with patch("pure_nb.methods.null.HITS", hits):
            chosen["pure_nb"] = [virtual_neurons(own, draws=draws, alpha=1).k for own in neurons]

    def theirs() -> None:
        chosen["scikit-learn"] = [scikit_learn(own, draws)[0] for own in neurons]

    contestants = {"to the end": lambda: ours(draws + 1), "early end": lambda: ours(HITS), "scikit-learn": theirs}
    seconds = interleaved(contestants, args)
    row: dict[str, object] = {"circuits": name, "neurons": len(neurons), "draws": draws}
    row |= {f"{contestant}, ms": 1000 * value / len(neurons) for contestant, value in seconds.items()}
    row |= {f"ratio, {way}": seconds["scikit-learn"] / seconds[way] for way in ("to the end", "early end")}
    return row | {"chosen alike": np.mean(np.array(chosen["pure_nb"]) == np.array(chosen["scikit-learn"]))}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--neurons", type=int, default=16, help="of each network, at most")
    parser.add_argument("--draws", type=int, nargs="+", default=[49, DRAWS], help="of each kind")
    args = start(parser)
    study = load_study("glyphs", progress=False)
    shipped = list(np.where(study.references.active[..., None], study.circuits, 0)[: args.neurons])
    worlds = {"shipped study": shipped, "ResNet-50": made_up(args.neurons)}
    report([compared(name, own, draws, args) for name, own in worlds.items() for draws in args.draws], args)


if __name__ == "__main__":
    main()
