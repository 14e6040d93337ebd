"""Circuit vectors of "all channels x 100 references": pure_nb against the straightforward loop over zennit-crp.

    python benchmarks/circuits.py --out benchmarks/results/circuits.csv

The loop runs ``CondAttribution`` on the whole network for every pair of a channel and an image anew, in the best of the
batch sizes given. All pairs would take it days, so it is timed on a random sample of them (--peer-pairs).
pure_nb is timed on a slice: whole batches of images (--images in all) with all the pairs they are in.
Which images a channel draws is random for random weights (--population images in all); for the shipped network it is
what a sweep over that many glyph scenes finds. Both sides read tensors from memory; decoding, which the loop would
repeat for each pair, is not counted. The vectors of a few pairs must agree to 1e-4; they are compared in float64, since
in float32 rounding opens and closes ReLUs, and the gradient with them, even between two batch sizes of one program.

*Limit* is one bare forward pass for each image and one bare backward pass of the part between the layers for each pair,
both timed here in full batches; *of limit* is the share of it that is reached. For LRP, which has to run the part with
modified weights as well, it is a limit that cannot be reached.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Noise, arguments, composite, draw_references, interleaved, network, report, start, take_slice
from crp.attribution import CondAttribution
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from pure_nb._resting import frozen_eval
from pure_nb.compute.sweep import sweep
from pure_nb.glyphs import glyph_images
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits, normalised
from pure_nb.methods.references import TopReferences
from pure_nb.network.cut import Cut
from pure_nb.network.layers import activations
from pure_nb.parameters import Run

TARGET, LOWER = "layer4", "layer3"


def peer(
    model: nn.Module, images: Tensor, channel: NDArray[np.int64], sample: NDArray[np.int64], rule: str, batch_size: int
) -> NDArray[np.float32]:
    """The circuit vectors as a user of zennit-crp computes them."""
    attribution = CondAttribution(model)
    vectors = []
    for first in range(0, len(channel), batch_size):
        here = slice(first, first + batch_size)
        result = attribution(
            images[sample[here]].requires_grad_(),
            [{TARGET: [int(c)]} for c in channel[here]],
            composite() if rule == "lrp" else None,
            record_layer=[LOWER],
            start_layer=TARGET,
            init_rel=lambda activation: activation.clamp(min=0),
        )
        relevance = result.relevances[LOWER]
        if rule == "gradient":
            relevance = relevance * result.activations[LOWER]
        vectors.append(relevance.detach().flatten(2).sum(dim=2).cpu().numpy())
    return normalised(np.concatenate(vectors))


def difference(
    model: nn.Module, images: Tensor, channel: NDArray[np.int64], sample: NDArray[np.int64], rule: Any
) -> float:
    """Largest difference of both sides' vectors in float64, as a share of the largest value."""
    model, images = copy.deepcopy(model).double(), images.double()
    expected = peer(model, images, channel, sample, rule, len(channel))
    found = circuits(model, Images(TensorDataset(images)), channel, sample, target=TARGET, lower=LOWER, rule=rule)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def work(model: nn.Module, images: Tensor, lower: str | None = LOWER) -> dict[str, Callable[[], Any]]:
    """What the limit is made of: the forward pass to the target, and the backward pass of the part between."""
    with frozen_eval(model):
        cut = Cut.at(model, images, lower, TARGET)

    def forward() -> None:
        with torch.inference_mode():
            activations(model, images, [TARGET])

    ones = torch.ones_like(cut.top)
    return {"forward": forward, "part": lambda: torch.autograd.grad(cut.top, cut.leaf, ones, retain_graph=True)}


def gigaflops(run: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def pairs_of(source: str, model: nn.Module, args: argparse.Namespace) -> tuple[Tensor, Any, Any, float]:
    """The images of the slice, channel and image of each of its pairs, and pairs per image of the slice."""
    if source == "glyphnet":
        scenes = glyph_images(args.population_glyphs)
        top = TopReferences(TARGET, args.n)
        sweep(model, scenes, [top], run=Run(progress=False))
        channel, sample, density, chosen = take_slice(top.result().sample, args.images, args.batch_size)
        return torch.stack([scenes.tensor(i) for i in chosen]), channel, sample, density
    images = Noise(args.images, args.size).images
    channels = activations(model, images[:1], [TARGET])[TARGET].shape[1]
    return images, *draw_references(channels, args.n, args.population, args.images, args.batch_size)


def compare(source: str, rule: Any, args: argparse.Namespace) -> dict[str, Any]:
    model = network(source).requires_grad_(False)
    images, channel, sample, density = pairs_of(source, model, args)
    wrapped = Images(TensorDataset(images))

    def ours() -> NDArray[np.float32]:
        run = Run(batch_size=args.batch_size, progress=False)
        return circuits(model, wrapped, channel, sample, target=TARGET, lower=LOWER, rule=rule, run=run)

    few = np.random.default_rng(0).choice(len(channel), min(args.peer_pairs, len(channel)), replace=False)

    def theirs(size: int) -> NDArray[np.float32]:
        return peer(model, images, channel[few], sample[few], rule, size)

    error = difference(model, images, channel[few[:4]], sample[few[:4]], rule)
    if not error <= 1e-4:
        raise SystemExit(f"{source}, {rule}: the results differ by {error:.1e}")
    # A first round warms up and picks the peer's best batch size.
    once = argparse.Namespace(repeats=1, clock=args.clock)
    trial = interleaved({str(size): lambda size=size: theirs(size) for size in args.peer_batches}, once)
    best = int(min(trial, key=trial.__getitem__))
    batch = images[: args.batch_size]
    limits = work(model, batch)
    seconds = interleaved({"ours": ours, "peer": lambda: theirs(best), **limits}, args)
    flop = {name: gigaflops(run) / len(batch) for name, run in limits.items()}
    share = len(images) / len(channel)
    limit = (share * seconds["forward"] + seconds["part"]) / len(batch)
    mine, other = seconds["ours"] / len(channel), seconds["peer"] / len(few)
    return {
        "model": source,
        "rule": rule,
        "pairs/image": density,
        "ours ms/pair": 1e3 * mine,
        "zennit-crp ms/pair": 1e3 * other,
        "times faster": other / mine,
        "limit ms/pair": 1e3 * limit,
        "of limit": limit / mine,
        "limit GFLOP/pair": share * flop["forward"] + flop["part"],
        "peer batch": best,
        "pairs timed": f"{len(channel)}, {len(few)}",
        "error": error,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=["torchvision:resnet50", "torchvision:resnet18", "glyphnet"])
    parser.add_argument("--rules", nargs="+", default=["gradient", "lrp"])
    parser.add_argument("-n", type=int, default=100, help="references for each channel")
    parser.add_argument("--population", type=int, default=50_000, help="images the references are drawn from")
    parser.add_argument("--population-glyphs", type=int, default=4000, help="the same for the shipped network")
    parser.add_argument("--images", type=int, default=32, help="images in the slice")
    parser.add_argument("--size", type=int, default=224, help="side of the noise in pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--peer-pairs", type=int, default=32)
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[1, 8, 32])
    args = start(parser)
    report([compare(source, rule, args) for source in args.models for rule in args.rules], args)


if __name__ == "__main__":
    main()
