"""Every step on a GPU, in float32, TF32 and half precision: time, memory, how busy it is, and zennit-crp beside it.

    python benchmarks/gpu.py --out benchmarks/results/gpu.csv
    python benchmarks/gpu.py --device cpu --small    # whether the script itself works

A network with random weights and images of noise, which wait in the CPU's memory, as decoded ones do. Steps are those
of ``table.py``: the sweep for references; circuits by gradient and by LRP, and boxes of crops, of the first channels in
all images; class relevance and average relevance vectors of the last convolution, in closed form; and the splitting of
channels into virtual neurons. A study uses half precision for the sweep alone; here every step runs in it.

*ms* are for one image, pair or channel, medians of rounds in which both sides take turns. *MiB* is
the peak of the card's memory beyond the network. *Busy* is the share of the time in which a kernel runs, and *waits*
how often the CPU waits for the card in the step, both by torch's own means. *Error* is the largest difference to the
CPU's float32, as a share of the largest value, for 8 images and 2 channels. A side that fails leaves its place empty,
and says why.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import circuits as pairwise
import crops as cropping
import numpy as np
import sweep as sweeping
import torch
from common import Noise, arguments, clock_of, network, report, start
from crp.attribution import CondAttribution
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Subset

from pure_nb.compute.precision import autocast
from pure_nb.compute.sweep import sweep
from pure_nb.figures.render import boxes
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.methods.references import TopReferences
from pure_nb.methods.relevance import ClassRelevance
from pure_nb.methods.windows import closed_form
from pure_nb.neuron import cluster_channels
from pure_nb.parameters import Parameters, Run

TARGET, LOWER = "layer4", "layer3"
CLASSES = 1000
PRECISIONS: dict[str, Any] = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
SMALL = {"model": "torchvision:resnet18", "images": 8, "size": 32, "batch_size": 4, "channels": 2, "peer_images": 4}

Found = NDArray[Any]


@dataclass(frozen=True)
class World:
    """A network and images, on a device."""

    model: nn.Module
    data: Noise
    args: argparse.Namespace

    @property
    def images(self) -> Images:
        return Images(self.data, mean=(0.5,) * 3, std=(0.2,) * 3)

    @cached_property
    def layer(self) -> str:
        """The last convolution."""
        return [name for name, module in self.model.named_modules() if isinstance(module, nn.Conv2d)][-1]

    @property
    def few(self) -> Subset[Any]:
        return Subset(self.data, range(min(self.args.peer_images, len(self.data))))

    def run(self, device: str) -> Run:
        return Run(batch_size=self.args.batch_size, device=device, progress=False)

    def pairs(self, images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first channels in the first images."""
        channel, sample = np.indices((self.args.channels, images))
        return channel.ravel(), sample.ravel()

    def bare(self, run: Run, precision: Any) -> Found:
        """A forward pass of all images, and nothing else."""
        with run.prepared(self.model), torch.inference_mode():
            found = [self.model(batch.to(run.device)) for batch in self.data.images.split(run.batch_size)]
        return torch.cat(found).float().cpu().numpy()

    def references(self, run: Run, precision: Any) -> Found:
        top = TopReferences(TARGET, 100)
        sweep(self.model, self.images, [top], precision=precision, run=run)
        return top.result().score

    def circuits(self, rule: Any) -> Callable[[Run, Any], Found]:
        channel, sample = self.pairs(len(self.data))
        how: dict[str, Any] = {"target": TARGET, "lower": LOWER, "rule": rule}
        return lambda run, _: circuits(self.model, self.images, channel, sample, run=run, **how)

    def crops(self, run: Run, precision: Any) -> Found:
        return boxes(self.model, self.images, *self.pairs(len(self.data)), target=TARGET, run=run)

    def relevance(self, run: Run, precision: Any) -> Found:
        lower, labels = f"input:{self.layer}", np.array(self.data.targets)
        module = closed_form(self.model, self.layer, lower)
        found = ClassRelevance(self.layer, lower, labels, CLASSES, module=module, replicates=0)
        sweep(self.model, self.images, [found], precision=precision, run=run)
        return found.result().share

    def virtual(self, run: Run, precision: Any) -> Found:
        vectors = np.random.default_rng(0).normal(size=(self.args.channels, 100, 512)).astype(np.float32)
        parameters = Parameters(target=TARGET, lower=LOWER)
        parts = cluster_channels(vectors, np.ones(vectors.shape[:2], dtype=bool), parameters, run=run)
        return np.array([part.silhouette for part in parts])

    def reference_peer(self) -> int:
        sweeping.peer(self.model, self.few, self.args.batch_size)
        return len(self.few)

    def circuit_peer(self, rule: str) -> Callable[[], int]:
        channel, sample = self.pairs(len(self.few))
        images = self.data.images[: len(self.few)].to(self.args.device)

        def run() -> int:
            pairwise.peer(self.model, images, channel, sample, rule, self.args.batch_size)
            return len(channel)

        return run

    def crop_peer(self) -> int:
        data = Noise(len(self.few), self.args.size)
        with tempfile.TemporaryDirectory() as folder:
            study = cropping.prepared(self.model, data, np.array([0]), folder)
            return len(cropping.peer(study, np.array([0]), len(data), self.args.batch_size))

    def relevance_peer(self) -> int:
        attribution = CondAttribution(self.model)
        shares: list[Tensor] = []
        for begin in range(0, len(self.few), self.args.batch_size):
            here = slice(begin, min(begin + self.args.batch_size, len(self.few)))
            result = attribution(
                self.data.images[here].to(self.args.device).requires_grad_(),
                [{"y": [label]} for label in self.data.targets[here]],
                record_layer=[self.layer],
                init_rel=torch.ones_like,
            )
            shares.append((result.activations[self.layer] * result.relevances[self.layer]).sum(dim=(2, 3)).cpu())
        return len(self.few)


def waiting(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def looked_at(run: Callable[[], Any], device: str) -> dict[str, float]:
    """Peak of the card's memory, the share of the time in which it computes, and how often it is waited for."""
    if not device.startswith("cuda"):
        return {}
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        begin = time.perf_counter()
        run()
        waiting(device)
        whole = 1e6 * (time.perf_counter() - begin)
    busy = sum(event.self_device_time_total for event in found.key_averages()) / whole
    return {"MiB": peak, "busy": busy, "waits": sum("synchroniz" in str(one.message) for one in told)}


def steps(world: World) -> dict[str, Any]:
    """By name: of what the time is told, how many of them there are, our side, and zennit-crp's."""
    images = len(world.data)
    pairs = world.args.channels * images
    return {
        "bare forward": ("image", images, world.bare, None),
        "references": ("image", images, world.references, world.reference_peer),
        "circuits, gradient": ("pair", pairs, world.circuits("gradient"), world.circuit_peer("gradient")),
        "circuits, LRP": ("pair", pairs, world.circuits("lrp"), world.circuit_peer("lrp")),
        "crops": ("pair", pairs, world.crops, world.crop_peer),
        "class relevance": ("image", images, world.relevance, world.relevance_peer),
        "virtual neurons": ("channel", world.args.channels, world.virtual, None),
    }


def row(args: argparse.Namespace, name: str, step: Any, check: World, precision: str) -> dict[str, Any]:
    unit, count, ours, peer = step
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    how = PRECISIONS[precision]
    entry: dict[str, Any] = {"step": name, "precision": precision, "unit": unit}

    def mine(ours: Any = ours) -> Found:
        with autocast(args.device, how):
            return ours(check.run(args.device), how)  # type: ignore[no-any-return]

    def theirs() -> int:
        with autocast(args.device, how):
            return peer()  # type: ignore[no-any-return]

    try:
        small = steps(check)[name][2]
        exact = small(check.run("cpu"), "float32")
        entry["error"] = np.abs(mine(small) - exact).max() / max(np.abs(exact).max(), 1e-9)
        mine()  # warms up
        entry |= looked_at(mine, args.device)
    except Exception as problem:  # the other rows are wanted
        print(f"{name}, {precision}: {type(problem).__name__}: {problem}", flush=True)
        return entry
    if peer is not None:
        try:
            each = theirs()
        except Exception as problem:
            print(f"zennit-crp, {name}, {precision}: {type(problem).__name__}: {problem}", flush=True)
            peer = None
    clock = clock_of(args)
    seconds: dict[str, list[float]] = {"ms": [], "zennit-crp ms": []}
    for _ in range(args.repeats):
        for side, run, units in (("ms", mine, count), ("zennit-crp ms", theirs, each if peer else 0)):
            if units:
                waiting(args.device)
                begin = clock()
                run()
                waiting(args.device)
                seconds[side].append((clock() - begin) / units)
    entry |= {side: 1e3 * statistics.median(values) for side, values in seconds.items() if values}
    if peer:
        entry["times faster"] = entry["zennit-crp ms"] / entry["ms"]
    print({key: value if isinstance(value, str) else float(f"{value:.3g}") for key, value in entry.items()}, flush=True)
    return entry


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a few small images: whether the script works")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=224, help="side of the noise in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=10, help="of each of which all images make pairs")
    parser.add_argument("--peer-images", type=int, default=64)
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS))
    args = start(parser)
    if args.small:
        vars(args).update(SMALL)
    precisions = args.precisions or (["float32", "bfloat16"] if args.device == "cpu" else list(PRECISIONS))
    model = network(args.model).requires_grad_(False).eval().to(args.device)
    world = World(model, Noise(args.images, args.size), args)
    card = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "CPU"
    check = World(model, Noise(min(8, args.images), args.size), argparse.Namespace(**vars(args) | {"channels": 2}))
    rows = [row(args, *step, check, precision) for step in steps(world).items() for precision in precisions]
    report([{"model": args.model, "card": card, **entry} for entry in rows], args)


if __name__ == "__main__":
    main()
