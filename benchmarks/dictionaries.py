"""Do sparse autoencoders tell apart what PURE tells apart, and do their features still have several parts?

    python benchmarks/dictionaries.py --out benchmarks/results/dictionaries.csv

Not a timing but a comparison, in one table: first, for planted channels of the shipped network, the mean adjusted Rand
index of the parts that each contestant finds, and how well one feature (or one part) stands for each source, on
references that it was not chosen by; pairs drawn at random, and disjoint pairs, in which no source shows in two merged
channels. Second, of the shipped network as it is, the share of neurons that the test calls polysemantic at p <= 0.05,
of channels and of an autoencoder's features. ``--shared`` adds planted channels of the CIFAR-10 ResNet-20.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from common import arguments, start

from pure_nb import Study, load_study
from pure_nb.benchmark.bench import agreements
from pure_nb.benchmark.contestants import PURE, contestants
from pure_nb.benchmark.planting import possible_sources
from pure_nb.benchmark.sparse import SparseCodes, layer_of, part_features, source_features
from pure_nb.benchmark.tasks import Task, planted_task
from pure_nb.glyphs import glyph_images
from pure_nb.methods.dictionaries import SparseAutoencoder, sample_positions
from pure_nb.methods.statistics import interval
from pure_nb.network.dictionary import with_dictionary
from pure_nb.neuron import cluster_channels

SIMPLE = (PURE, "PURE close", "activation at maximum", "lower activation at maximum", "random")
SPARSE = ("SAE top-k, 4x, k=8", "SAE top-k, 4x, k=4", "SAE BatchTopK, 4x, k=8", "lower SAE top-k, 4x, k=8")


def disjoint(study: Study) -> tuple[tuple[int, int], ...]:
    """All living channels in pairs, each once, by the study's seed."""
    drawn = np.random.default_rng(study.parameters.seed).permutation(possible_sources(study.references)).tolist()
    return tuple(zip(drawn[::2], drawn[1::2]))


def planted(world: str, task: Task) -> Iterator[dict[str, Any]]:
    """A row for each contestant."""
    several = np.flatnonzero(task.k > 1)
    for one in contestants(task, only=(*SIMPLE, *SPARSE)):
        begin = perf_counter()
        parts, seconds = one.parts(task), perf_counter() - begin
        found = [agreements(task.truth[c], parts.labels[c], task.dominant[c])["ari"] for c in several]
        row = {"world": world, "who": one.name, "neurons": len(several), "ari": np.mean(found), "seconds": seconds}
        row["low"], row["high"] = interval(found)
        for kind, codes in (("part", part_features(task, parts.labels)), ("feature", parts.vectors)):
            if codes is not None and (kind == "part" or "SAE" in one.name):
                own = source_features(task, codes)
                row |= {f"{kind}_f1": own["f1"].mean(), f"{kind}_correlation": own["correlation"].mean()}
        if sparse := SparseCodes.named(one.name):
            rows = layer_of(task, lower=sparse.lower)
            made = sparse.train(task)
            fit = made.report(rows)
            row |= {"channels": rows.shape[1], "explained": fit.explained, "l0": fit.l0, "dead": fit.dead}
        yield row
    always = source_features(task, np.ones((*task.truth.shape, 1)))
    yield {"world": world, "who": "active everywhere", "neurons": len(several), "feature_f1": always["f1"].mean()}


def natural(study: Study, factor: int, k: int, count: int) -> Iterator[dict[str, Any]]:
    """How many of some channels, and of some features of an autoencoder, the test calls polysemantic."""
    rows = sample_positions(study.model, study.images, study.parameters.target, run=study.run)
    made = SparseAutoencoder.fit(rows, factor * rows.shape[1], k)
    fit, target = made.report(rows), study.parameters.target
    coded = study.replace(model=with_dictionary(study.model, target, made), target=f"{target}.features")
    dictionary = {"explained": fit.explained, "l0": fit.l0, "dead": fit.dead}
    names = {"channels": (study, {}), f"features of SAE top-k, {factor}x, k={k}": (coded, dictionary)}
    for who, (one, more) in names.items():
        living = np.flatnonzero(one.references.active.all(axis=1))
        chosen = np.sort(np.random.default_rng(0).permutation(living)[:count])
        begin = perf_counter()
        sample = one.references.sample[chosen]
        vectors = one.run_circuits(np.broadcast_to(chosen[:, None], sample.shape), sample)
        found = cluster_channels(vectors, one.references.active[chosen], one.parameters)
        p, parts = np.array([own.p for own in found]), np.array([own.k for own in found])
        row = {"world": "glyphs", "who": who, "neurons": len(chosen), "living": len(living), **more}
        row |= {"polysemantic": (p <= 0.05).mean(), "parts": parts.mean(), "seconds": perf_counter() - begin}
        if one.objects is not None:
            kinds = [np.unique(own[own >= 0], return_counts=True)[1] for own in one.objects[chosen]]
            row["objects"] = np.mean([(counts >= 0.05 * sample.shape[1]).sum() for counts in kinds])
        yield row


def worlds(args: Any) -> Iterator[dict[str, Any]]:
    """All rows."""
    how = {"progress": False, "n_references": args.n}
    glyphs = load_study("glyphs", **how, **({"images": glyph_images(args.images)} if args.images else {}))
    yield from natural(glyphs, 4, 8, args.count)
    yield from planted("glyphs, disjoint pairs", planted_task(glyphs, groups=disjoint(glyphs)))
    yield from planted("glyphs, 24 random pairs", planted_task(glyphs, 24, self_merged=8))
    if args.shared:
        data, weights = args.shared / "data" / "cifar10-test", args.shared / "models" / "cifar10-resnet20.safetensors"
        cifar = load_study("cifar10-resnet20", data=data, weights=weights, **how)
        yield from planted("CIFAR layer3, disjoint pairs", planted_task(cifar, groups=disjoint(cifar)))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shared", type=Path, help="folder with data/cifar10-test and models/")
    parser.add_argument("--images", type=int, default=0, help="scenes; all of the study's by default")
    parser.add_argument("--n", type=int, default=100, help="references of each neuron")
    parser.add_argument("--count", type=int, default=128, help="channels and features to test, at most")
    args = start(parser)
    rows: list[dict[str, Any]] = []
    for row in worlds(args):
        rows.append(row | {"n": args.n, "images": args.images or "all"})
        print(row, flush=True)
        if args.out:  # a long run may be stopped
            pd.DataFrame(rows).to_csv(args.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
