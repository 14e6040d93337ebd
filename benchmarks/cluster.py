"""What a study takes on many machines: the model of pure_nb.compute.costs, and whether it is right.

    python benchmarks/cluster.py rates --threads 1 --out benchmarks/results/cluster-rates.csv
    python benchmarks/cluster.py local --threads 1 --out benchmarks/results/cluster-local.csv
    python benchmarks/cluster.py simulated --threads 1 --out benchmarks/results/cluster-simulated.csv
    python benchmarks/cluster.py costs --threads 1 --out benchmarks/results/cluster-costs.csv

*rates*: processor seconds of one core for an image or pair, ResNet-50 at 224 pixels, layer4 through layer3, and for a
neuron; images and pairs told apart by slices with one pair an image and with eight. *local*: a sweep and circuits of
ResNet-18 on 1, 2 and 4 processes of this machine. Seconds are the processor's, of the busiest process: what the clock
would say on a machine with a core for each; predicted from what one process takes without a cluster. *simulated*: a
scheduler whose tasks sleep and whose workers are threads of this process, ten tasks for each. What a task takes it is
measured with 10 workers, and predicts 100: it is the processor's time of scheduler, client and all workers
together, more than a scheduler by itself takes. *costs*: the table of the chapter *When it does not fit*, from rates.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pandas as pd
import torch
from common import arguments, network, report, start
from distributed import LocalCluster
from sweep import Made

from pure_nb.compute import blocks, sweep
from pure_nb.compute.blocks import BLOCK, NEURONS
from pure_nb.compute.cluster import Cluster, connect
from pure_nb.compute.costs import Step, Workers, costs
from pure_nb.compute.sweep import shards
from pure_nb.figures.render import boxes
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.methods.references import TopReferences
from pure_nb.methods.virtual import virtual_neurons
from pure_nb.parameters import Run

LAYERS = {"target": "layer4", "lower": "layer3"}
RATES = Path(__file__).parent / "results" / "cluster-rates.csv"
FILE = 110e3
"""Bytes of an image of ImageNet on average."""


def processor(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def swept(model: Any, images: Images, channels: int, run: Run) -> None:
    sweep.sweep(model, images, [TopReferences(LAYERS["target"], 8)], run=run)


def rates(args: argparse.Namespace) -> list[dict[str, Any]]:
    model, count, shared = network("torchvision:resnet50"), args.images, 8
    images, run = Images(Made(count, 224)), Run(progress=False, batch_size=16)
    swept(model, Images(Made(16, 224)), 8, run)  # warms up
    found = {"image": processor(partial(swept, model, images, 8, run)) / count}
    steps = {"circuit": partial(circuits, **LAYERS), "crop": partial(boxes, target=LAYERS["target"], crop="peak")}
    for name, step in steps.items():
        seconds = [
            processor(partial(step, model, images, np.arange(count * n), np.arange(count).repeat(n), run=run))
            for n in (1, shared)
        ]
        found[name] = (seconds[1] - seconds[0]) / (count * (shared - 1))
        found[f"image of {name}s"] = seconds[0] / count - found[name]
    vectors = np.random.default_rng(0).normal(size=(2, 100, 1024)).astype(np.float32)
    virtual_neurons(vectors[0])  # warms up
    found["neuron"] = processor(lambda: [virtual_neurons(own) for own in vectors]) / 2
    found["bytes of the network"] = len(cloudpickle.dumps(model))
    return [{"what": name, "value": value} for name, value in found.items()]


def local(args: argparse.Namespace) -> list[dict[str, Any]]:
    sweep.shards, blocks.BLOCK = partial(shards, size=32), 32
    model, count = network("torchvision:resnet18"), args.images * 8
    images, pairs = Images(Made(count, 64)), (np.arange(2 * count) % 64, np.arange(2 * count) % count)
    steps = {
        "sweep": (count, 32, lambda run: swept(model, images, 8, run)),
        "circuits": (2 * count, 32, lambda run: circuits(model, images, *pairs, run=run, **LAYERS)),
    }
    here = Run(progress=False, batch_size=16)
    one = {}
    for name, (units, _, step) in steps.items():
        step(here)  # warms up
        one[name] = processor(partial(step, here)) / units
    rows = []
    for workers in (1, 2, 4):
        with connect(f"local:{workers}") as client:
            client.wait_for_workers(workers)
            there = Run(progress=False, batch_size=16, client=client)
            for name, (units, together, step) in steps.items():
                step(there)  # what is imported, and what travels
                before, begin = client.run(time.process_time), time.perf_counter()
                step(there)
                clock = time.perf_counter() - begin
                spent = [after - before[worker] for worker, after in client.run(time.process_time).items()]
                expected = costs([Step(name, units, one[name], together)], Workers(workers)).hours[name] * 3600
                row = {"step": name, "workers": workers, "predicted": expected, "busiest": max(spent)}
                rows.append(row | {"all": sum(spent), "busiest/predicted": max(spent) / expected, "wall": clock})
                print(rows[-1], flush=True)
    return rows


def slept(seconds: float, number: int) -> int:
    time.sleep(seconds)
    return number


def simulated(args: argparse.Namespace) -> list[dict[str, Any]]:
    logging.getLogger("distributed").setLevel(logging.ERROR)
    # What watches each process is not needed a thousand times in one.
    quiet = {"admin.system-monitor.interval": "1h", "admin.tick.interval": "1h", "worker.profile.enabled": False}
    rows: list[dict[str, Any]] = []
    each = 0.0
    for workers in args.workers:
        how = {"threads_per_worker": 1, "processes": False, "dashboard_address": None, "memory_limit": 0}
        settings = {f"distributed.{name}": value for name, value in quiet.items()}
        with dask.config.set(settings), LocalCluster(n_workers=workers, **how) as site, Cluster(site) as client:
            client.wait_for_workers(workers, timeout=600)
            tasks = 10 * workers
            begin, used = time.perf_counter(), time.process_time()
            done = client._handed_out(
                range(tasks), lambda number: {client.submit(slept, args.sleep, number, pure=False): number}
            )
            assert sorted(number for number, _ in done) == list(range(tasks))
            clock, used = time.perf_counter() - begin, (time.process_time() - used) / tasks
        step = Step("sleep", tasks, args.sleep, 1)
        expected = costs([step], Workers(workers, task=0.0, scheduler=each)).hours["sleep"] * 3600 if each else np.nan
        row = {"workers": workers, "tasks": tasks, "sleep": args.sleep, "processor a task": used}
        rows.append(row | {"predicted": expected, "wall": clock, "wall/predicted": clock / expected})
        each = max(each, used)
        print(rows[-1], flush=True)
    return rows


def study(value: pd.Series[float], images: int, channels: int = 2048, references: int = 100) -> list[Step]:
    """All steps of a study of ResNet-50's last stage."""
    pairs = channels * references
    touched = round(-images * np.expm1(pairs * np.log1p(-1 / images)))
    shard = len(shards(images, 32)[0])
    block = {"together": BLOCK, "moved": 4 * 1024 + 8}
    return [
        Step("references", images, value["image"], shard, FILE),
        Step("circuits: images", touched, value["image of circuits"], BLOCK, FILE),
        Step("circuits: pairs", pairs, value["circuit"], **block),
        Step("virtual neurons", channels, value["neuron"], NEURONS, moved=4 * 1024 * references),
        Step("crops: images", touched, value["image of crops"], BLOCK, FILE),
        Step("crops: pairs", pairs, value["crop"], BLOCK, moved=24),
    ]


def priced(args: argparse.Namespace) -> list[dict[str, Any]]:
    value = pd.read_csv(RATES).set_index("what")["value"]
    rows = []
    for images in (1_281_167, 100_000_000):
        for count in (1, 16, 128, 1000):
            sent = value["bytes of the network"] + 60 * images  # a path of an image has sixty letters or so
            table = costs(study(value, images), Workers(count, price=args.price, sent=sent))
            total, sweep_only = table.loc["total"], table.loc["references"]
            rows.append(
                {
                    "images": images,
                    "cores": count,
                    "hours": total["hours"],
                    "of which references": sweep_only["hours"],
                    "read, TB": total["read"] / 1e12,
                    "sent, TB": total["moved"] / 1e12,
                    "dollars": total["money"],
                }
            )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    kinds = {"rates": rates, "local": local, "simulated": simulated, "costs": priced}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100], help="simulated ones")
    parser.add_argument("--sleep", type=float, default=3.0, help="seconds of a simulated task")
    parser.add_argument("--price", type=float, default=0.04, help="dollars for a core and hour: an assumption")
    args = start(parser)
    torch.manual_seed(0)
    report(kinds[args.kind](args), args)


if __name__ == "__main__":
    main()
