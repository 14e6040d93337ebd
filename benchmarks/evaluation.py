"""Distances within and across parts: pure_nb against scikit-learn's matrix and the array of all differences.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation.csv

2048 neurons with 100 crops each and 768 dimensions, the size of ResNet-50's last stage under CLIP, six labelings each.
The vectors lie in a file and are mapped, not loaded. Every contestant goes neuron by neuron, and all give the same
means (checked to 1e-4). The memory is what Python and NumPy allocate at most beyond the mapped file.
"""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, interleaved, report, start
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances

from pure_nb.judges.evaluation import intra_inter, pair_distances

Means = NDArray[np.float64]


def ours(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> Means:
    found = []
    for own, ways in zip(vectors, labels):
        distances = pair_distances(own)
        found.append([intra_inter(distances, way)[:2] for way in ways])
    return np.array(found)


def by_matrix(distances_of: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Callable[..., Means]:
    """The means from a full matrix of distances, with masks."""

    def run(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> Means:
        found = []
        for own, ways in zip(vectors, labels):
            distances = distances_of(own)
            pairs = ~np.eye(len(own), dtype=bool)
            same = [way[:, None] == way for way in ways]
            found.append([(distances[one & pairs].mean(), distances[~one].mean()) for one in same])
        return np.array(found)

    return run


def differences(own: NDArray[np.float32]) -> NDArray[Any]:
    return np.sqrt(((own[:, None] - own[None]) ** 2).sum(axis=2))


def peak(run: Callable[[], Any]) -> float:
    tracemalloc.start()
    run()
    _, found = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found / 1e6


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--neurons", type=int, default=2048)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--peer-neurons", type=int, default=64, help="neurons that the peers are timed on")
    args = start(parser)
    shape = (args.neurons, args.images, args.dimensions)
    contestants = {
        "ours": ours,
        "scikit-learn": by_matrix(pairwise_distances),
        "all differences": by_matrix(differences),
    }
    with tempfile.TemporaryDirectory() as folder:
        vectors = np.memmap(Path(folder) / "vectors", np.float32, "w+", shape=shape)
        generator = np.random.default_rng(0)
        for neuron in range(args.neurons):
            vectors[neuron] = generator.normal(size=shape[1:])
        labels = generator.integers(0, 3, (args.neurons, 6, args.images))
        some = slice(0, args.peer_neurons)
        expected = ours(vectors[some], labels[some])
        for name, run in contestants.items():
            np.testing.assert_allclose(run(vectors[some], labels[some]), expected, rtol=1e-4, err_msg=name)
        seconds = interleaved(
            {name: lambda run=run: run(vectors[some], labels[some]) for name, run in contestants.items()}, args
        )
        memory = {name: peak(lambda run=run: run(vectors[:8], labels[:8])) for name, run in contestants.items()}
        whole = peak(lambda: ours(vectors, labels))
    rows = [
        {
            "contestant": name,
            "ms per neuron": 1000 * seconds[name] / args.peer_neurons,
            "times ours": seconds[name] / seconds["ours"],
            "peak MB, 8 neurons": memory[name],
            f"peak MB, {args.neurons} neurons": whole if name == "ours" else np.nan,
        }
        for name in contestants
    ]
    report(rows, args)


if __name__ == "__main__":
    main()
