"""Every step of a study in units of one bare forward pass: pure_nb, the straightforward way, and the limit.

    python benchmarks/table.py --threads 1 --clock cpu --repeats 2 --out benchmarks/results/table.csv

The unit is the bare forward loop of ``sweep.py`` over the same images, per image. Before a step is timed, both sides
must agree on its result to 1e-4 (references: 1e-3). The peer is zennit-crp where it has the step, otherwise the
reference procedure:

- *references*: the best n images of each channel of ``layer4``. Peer: zennit-crp's FeatureVisualization, which collects
  by relevance at once and can't do without.
- *circuits* of ``layer4`` at ``layer3`` by gradient, and *crops*, as in ``circuits.py`` and ``crops.py``: "all channels
  x n references", drawn from each --population of images in turn. Peer: zennit-crp's CondAttribution and
  get_max_reference, whose cost per pair does not depend on the population; crops are timed without sharing too.
- *references and class relevance*: of ``layer4`` and the last convolution, in one pass, with the sums behind all ARVs
  and 100 bootstrap replicates of them. Peer: CondAttribution from each image's class, without the ARVs.
- *ARVs*: what they take beyond that pass. Peer: the reference procedure of ``arvs.py``.
- *split, 20 rho*: a channel of the last convolution for two concepts, with its relevance to the class. Peer: the inputs
  of the layer kept for all images, and the layer with the split channel run over them for each threshold.

*Limit*: bare passes, timed here in full batches. References: one forward pass; with class relevance, and splits: also
backward from the output to the layer. Circuits: forward to ``layer4`` for each image, backward to ``layer3`` for each
pair. Crops: forward for each image twice, since the rules need the outputs of the modified weights, and backward to the
pixels for each pair. ARVs: none. *Peak*: of a fresh process that does the step over the images and nothing else.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import arvs
import crops
import numpy as np
import sweep as references
import torch
from circuits import LOWER as BELOW
from circuits import TARGET, difference, gigaflops, work
from circuits import peer as circuits_peer
from common import Noise, alone, arguments, draw_references, interleaved, network, report, start
from crp.attribution import CondAttribution
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from pure_nb._resting import frozen_eval
from pure_nb.compute.sweep import SHARD, run_shard, sweep
from pure_nb.figures.render import views
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.methods.ownership import RHOS, Assignment, assign_sources
from pure_nb.methods.references import References, TopReferences
from pure_nb.methods.relevance import ClassRelevance, ClassStatistics, relevant_channels
from pure_nb.methods.rewiring import split_channel
from pure_nb.methods.splitting import PartActivations, Split, part_activations
from pure_nb.methods.windows import closed_form
from pure_nb.network.layers import INPUT, OUTPUT, activations, get_layer
from pure_nb.parameters import Run

CONVOLUTIONS = {
    "torchvision:resnet18": "layer4.1.conv2",
    "torchvision:resnet34": "layer4.2.conv2",
    "torchvision:resnet50": "layer4.2.conv3",
}
CLASSES = 4

Parts = Sequence[tuple[Callable[[], Any], float]]
"""What is run, and how often for one image, pair or vector."""


@dataclass(frozen=True)
class World:
    """A network, its images, and how much of everything is done."""

    source: str
    args: argparse.Namespace

    @cached_property
    def model(self) -> nn.Module:
        return network(self.source).requires_grad_(False)

    @cached_property
    def dataset(self) -> arvs.Classes:
        return arvs.Classes(CLASSES, self.args.images // CLASSES, self.args.size)

    @property
    def images(self) -> Images:
        return Images(self.dataset, mean=(0.5,) * 3, std=(0.2,) * 3)

    @property
    def few(self) -> Subset[Any]:
        return Subset(self.dataset, range(min(self.args.peer_images, len(self.dataset))))

    @property
    def layer(self) -> str:
        return CONVOLUTIONS[self.source]

    @property
    def channels(self) -> int:
        return len(get_layer(self.model, self.layer).weight)  # type: ignore[arg-type]

    @property
    def batch(self) -> Tensor:
        return self.dataset.images[: self.args.batch_size]

    def limit(self, forward: float, backward: float) -> Parts:
        """Bare passes of the whole network, and of the part from its output back to the layer."""
        with frozen_eval(self.model):
            found = activations(self.model, self.batch, [self.layer, OUTPUT], self.layer)
        ones = torch.ones_like(found[OUTPUT])

        def back() -> None:
            torch.autograd.grad(found[OUTPUT], found[self.layer], ones, retain_graph=True)

        return ((self.bare, forward / len(self.batch)), (back, backward / len(self.batch)))

    def bare(self) -> None:
        with torch.inference_mode():
            self.model(self.batch)


@dataclass(frozen=True)
class Step:
    """One row of the table; ``check`` returns by how much the results of both sides differ, as a share."""

    name: str
    unit: str
    peer: str
    goal: float
    ours: Parts
    theirs: Parts
    limit: Parts
    check: Callable[[], float]
    shared: float = math.nan
    tolerance: float = 1e-4


def off(found: Any, expected: Any) -> float:
    """Largest difference as a share of the largest value."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def reference_step(world: World) -> Step:
    args = world.args

    def ours(images: Any) -> References:
        return references.ours(world.model, Images(images), args.n, args.batch_size)

    def theirs() -> tuple[NDArray[Any], NDArray[Any]]:
        return references.peer(world.model, world.few, args.batch_size, args.n)

    def check() -> float:
        found, (sample, score) = ours(world.few), theirs()
        # But for scores that are equal, as those of 0, or equal up to rounding.
        alike = ((found.sample == sample.T) | (found.score == 0)).mean()
        return off(found.score, score.T) if alike > 0.99 else math.inf

    each = 1 / len(world.dataset)
    return Step(
        "references",
        "image",
        "zennit-crp",
        1.05,
        ((lambda: ours(world.dataset), each),),
        ((theirs, 1 / len(world.few)),),
        world.limit(1, 0)[:1],
        check,
        tolerance=1e-3,  # zennit leaves eps in each batch norm that it merges
    )


def circuit_step(world: World, population: int) -> Step:
    args, model = world.args, world.model
    channel, sample, shared = draw_references(world.channels, args.n, population, args.pair_images, args.pair_batch)
    images = Noise(args.pair_images, args.size).images
    few = np.random.default_rng(0).choice(len(channel), min(args.peer_pairs, len(channel)), replace=False)
    how: dict[str, Any] = {"target": TARGET, "lower": BELOW, "run": Run(batch_size=args.pair_batch, progress=False)}
    limit = work(model, images[: args.pair_batch])
    return Step(
        f"circuits, {population:,} images",
        "pair",
        "zennit-crp",
        0.25,
        ((lambda: circuits(model, Images(TensorDataset(images)), channel, sample, **how), 1 / len(channel)),),
        ((lambda: circuits_peer(model, images, channel[few], sample[few], "gradient", 8), 1 / len(few)),),
        ((limit["forward"], 1 / shared / args.pair_batch), (limit["part"], 1 / args.pair_batch)),
        lambda: difference(model, images, channel[few[:4]], sample[few[:4]], "gradient"),
        shared,
    )


def crop_step(world: World, population: int | None) -> Step:
    args, model = world.args, world.model
    dataset = Noise(args.pair_images, args.size)
    images = Images(dataset, mean=(0.5,) * 3, std=(0.2,) * 3)
    neurons = np.array([0])
    few = Noise(args.peer_pairs, args.size)
    unshared = neurons.repeat(len(dataset)), np.arange(len(dataset))
    drawn = (world.channels, args.n, population or 1, len(dataset), args.pair_batch)
    channel, sample, shared = draw_references(*drawn) if population else (*unshared, 1.0)
    limit = work(model, dataset.images[: args.pair_batch], None)

    def ours() -> list[Any]:
        found = views(model, images, channel, sample, target=TARGET, run=Run(batch_size=args.pair_batch))
        return [view.highlighted() for view in found]

    def theirs() -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            study = crops.prepared(model, few, neurons, folder)
            return crops.peer(study, neurons, len(few), 8)

    def preparing() -> None:
        with tempfile.TemporaryDirectory() as folder:
            crops.prepared(model, few, neurons, folder)

    return Step(
        f"crops, {population:,} images" if population else "crops, none shared",
        "pair",
        "zennit-crp",
        1.0,
        ((ours, 1 / len(channel)),),
        ((theirs, 1 / len(few)), (preparing, -1 / len(few))),
        ((limit["forward"], 2 / shared / args.pair_batch), (limit["part"], 1 / args.pair_batch)),
        lambda: crops.error(model, dataset, *(side[:2] for side in unshared)),
        shared,
    )


def class_accumulators(world: World) -> tuple[TopReferences, ClassRelevance]:
    lower, labels = INPUT + world.layer, np.array(world.dataset.targets)
    module = closed_form(world.model, world.layer, lower)
    return TopReferences(TARGET, world.args.n), ClassRelevance(world.layer, lower, labels, 1000, module=module)


def class_pass(world: World) -> tuple[References, ClassStatistics]:
    top, relevance = class_accumulators(world)
    sweep(world.model, world.images, [top, relevance], run=Run(batch_size=world.args.batch_size, progress=False))
    return top.result(), relevance.result()


def class_peer(world: World) -> tuple[NDArray[np.float64], Tensor]:
    """How often each channel is relevant to each class, and the scores of the references."""
    attribution = CondAttribution(world.model)
    relevant, scores = np.zeros((CLASSES, world.channels)), []
    for batch, labels in DataLoader(world.dataset, world.args.batch_size):
        result = attribution(
            batch.requires_grad_(),
            [{"y": [label]} for label in labels.tolist()],
            record_layer=[world.layer, TARGET],
            init_rel=torch.ones_like,
        )
        share = (result.activations[world.layer] * result.relevances[world.layer]).sum(dim=(2, 3))
        np.add.at(relevant, labels.numpy(), relevant_channels(share.detach().double().numpy()))
        scores.append(result.activations[TARGET].detach().amax(dim=(2, 3)))
    return relevant, torch.cat(scores).sort(dim=0, descending=True).values[: world.args.n]


def class_step(world: World) -> Step:
    def check() -> float:
        (top, statistics), (relevant, scores) = class_pass(world), class_peer(world)
        return max(off(statistics.relevant[:CLASSES], relevant), off(top.score, scores.T.numpy()))

    filled = class_accumulators(world)

    def take_in() -> None:
        run = Run(batch_size=world.args.batch_size)
        for _ in run_shard(world.model, world.images, filled, range(len(world.dataset)), run=run):
            pass

    def merge() -> None:
        for accumulator in filled:
            accumulator.restored({}).merge(accumulator)  # type: ignore[arg-type]

    each = 1 / len(world.dataset)
    return Step(
        "references and class relevance",
        "image",
        "zennit-crp",
        1.1,
        # Tables are merged once a shard, which has more images than there are here.
        ((take_in, each), (merge, 1 / SHARD)),
        ((lambda: class_peer(world), each),),
        world.limit(1, 1),
        check,
    )


def arv_step(world: World) -> Step:
    statistics = class_pass(world)[1]
    few, every = 1, 32

    def ours(channels: int) -> list[Any]:
        return [statistics.arv(world.model, channel, range(CLASSES)) for channel in range(channels)]

    def theirs() -> NDArray[np.float64]:
        with tempfile.TemporaryDirectory() as folder:
            how = (few, CLASSES, world.args.batch_size, Path(folder))
            return arvs.peer(world.model, world.dataset, world.layer, *how)

    return Step(
        "ARVs, beyond that pass",
        "vector and image",
        "reference procedure",
        0.0,
        ((lambda: ours(every), 1 / (every * len(world.dataset))),),
        ((theirs, 1 / (few * len(world.dataset))),),
        (),
        lambda: off(ours(few), theirs()),
    )


def split_step(world: World) -> Step:
    model, layer, channel = world.model, world.layer, 0
    labels = np.array(world.dataset.targets)
    concept = labels % 2
    sources = get_layer(model, layer).weight.shape[1]  # type: ignore[union-attr, index]
    vectors = np.random.default_rng(0).normal(size=(2, sources))

    def ours() -> PartActivations:
        how: dict[str, Any] = {"labels": labels, "run": Run(batch_size=world.args.batch_size)}
        found = part_activations(model, world.images, range(len(labels)), Assignment(layer, channel, vectors), **how)
        Split.chosen(found, concept, ("even", "odd"))
        return found

    def theirs() -> tuple[NDArray[Any], NDArray[Any]]:
        return split_peer(world, channel, vectors)

    def check() -> float:
        found, (parts, relevant) = ours(), theirs()
        return off(found.parts, parts) if (found.relevant == relevant).all() else math.inf

    each = 1 / len(labels)
    return Step(
        "split, 20 rho",
        "image",
        "layer anew for each rho",
        1.1,
        ((ours, each),),
        ((theirs, each),),
        world.limit(1, 1),
        check,
    )


def split_peer(world: World, channel: int, vectors: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positive parts ``[images, rhos, 3]``, and where the channel is relevant to the class."""
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept["lower"], kept["target"] = inputs[0], output

    handle = get_layer(world.model, world.layer).register_forward_hook(keep)
    entering, relevant = [], []
    for batch, labels in DataLoader(world.dataset, world.args.batch_size):
        logits = world.model(batch.requires_grad_())
        (flow,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), kept["target"])
        share = (flow * kept["target"].detach()).sum(dim=(2, 3))
        relevant.append(relevant_channels(share.double().numpy())[:, channel])
        entering.append(kept["lower"].detach())
    handle.remove()
    parts: list[Tensor] = []
    for rho in RHOS:
        split = get_layer(split_channel(world.model, world.layer, channel, assign_sources(vectors, rho)), world.layer)
        found: list[Tensor] = []
        inside = split.get_submodule("parts").register_forward_hook(
            lambda _, __, output, found=found: found.append(output)
        )
        with torch.no_grad():
            for batch in torch.cat(entering).split(world.args.batch_size):
                split(batch)
        inside.remove()
        parts.append(torch.cat(found).clamp(min=0).sum(dim=(2, 3)))
    return torch.stack(parts, dim=1).numpy(), np.concatenate(relevant)


def run_once(step: Callable[[World], Step], source: str, args: argparse.Namespace, side: str) -> None:
    for run, _ in getattr(step(World(source, args)), side):
        run()


def row(world: World, step: Step) -> dict[str, Any]:
    error = step.check()
    if not error <= step.tolerance:
        raise SystemExit(f"{world.source}, {step.name}: the results differ by {error:.1e}")
    sides = {"ours": step.ours, "theirs": step.theirs, "limit": step.limit}
    runs = {(side, i): run for side, parts in sides.items() for i, (run, _) in enumerate(parts)}
    seconds = interleaved({"bare": bare_loop(world)} | runs, world.args)
    forward = seconds["bare"] / len(world.dataset)
    ours, theirs, limit = (
        sum(seconds[side, i] * often for i, (_, often) in enumerate(parts)) / forward for side, parts in sides.items()
    )
    return {
        "model": world.source,
        "step": step.name,
        "per": step.unit,
        "pairs/image": step.shared,
        "goal": step.goal,
        "ours": ours,
        "limit": limit,
        "peer": theirs,
        "who": step.peer,
        "ours/limit": ours / limit if limit else math.nan,
        "peer/ours": theirs / ours,
        "met": round(ours, 2) <= step.goal,
        "limit GFLOP": sum(gigaflops(run) * often for run, often in step.limit),
        "forward ms": 1e3 * forward,
        "error": error,
    }


def bare_loop(world: World) -> Callable[[], None]:
    return lambda: references.bare(world.model, world.dataset, world.args.batch_size)


def rows(source: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    world = World(source, args)
    peaks = {
        step(world).name: {
            f"{who} MiB": round(alone(run_once, step, source, args, side, threads=args.threads))
            for who, side in (("ours", "ours"), ("peer", "theirs"))
        }
        for step in (reference_step, split_step)
    }
    bare_loop(world)()  # warms up
    builders: list[Callable[[], Step]] = [lambda: reference_step(world)]
    builders += [partial(circuit_step, world, population) for population in args.population]
    builders += [partial(crop_step, world, population) for population in (None, *args.population)]
    builders += [partial(build, world) for build in (class_step, arv_step, split_step)]
    found = []
    for build in builders:
        step = build()
        found.append(row(world, step) | peaks.get(step.name, {}))
        print(f"{source}, {step.name}: {found[-1]['ours']:.3g} forward passes", flush=True)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=["torchvision:resnet34"], choices=list(CONVOLUTIONS))
    parser.add_argument("--images", type=int, default=32, help="for the steps that go image by image")
    parser.add_argument("--peer-images", type=int, default=16, help="for zennit-crp's references")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("-n", type=int, default=100, help="references for each channel")
    parser.add_argument(
        "--population", type=int, nargs="+", default=[50_000, 5_000], help="images the references are drawn from"
    )
    parser.add_argument("--pair-images", type=int, default=16, help="images whose pairs are timed")
    parser.add_argument("--pair-batch", type=int, default=8)
    parser.add_argument("--peer-pairs", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the noise in pixels")
    args = start(parser)
    report([entry for source in args.models for entry in rows(source, args)], args)


if __name__ == "__main__":
    main()
