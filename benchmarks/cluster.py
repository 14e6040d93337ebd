"""What a study takes on many machines: the model of pure_nb.compute.costs, and whether it is right.

    python benchmarks/cluster.py rates --threads 1 --out benchmarks/results/cluster-rates.csv
    python benchmarks/cluster.py local --threads 1 --out benchmarks/results/cluster-local.csv
    python benchmarks/cluster.py simulated --threads 1 --out benchmarks/results/cluster-simulated.csv
    python benchmarks/cluster.py costs --threads 1 --out benchmarks/results/cluster-costs.csv

All four take less than ten minutes of a machine with two cores that nobody else uses.

*rates*: processor seconds of one core for an image or pair, ResNet-50 at 224 pixels, layer4 through layer3, and for a
neuron; images and pairs told apart by slices with one pair an image and with eight. *local*: a sweep and circuits of
ResNet-18 on 1, 2 and 4 processes of this machine, predicted from the processor seconds that this process takes for them
(both take turns), from what a task takes beyond its units, measured on one worker by many small tasks beside few large
ones, and from the cores: *wall* by the clock, which holds if nobody else uses them, and *busiest*, the processor
seconds of the busiest process, as on a machine with a core for each. *simulated*: a scheduler, a process of its own,
and real workers, many in a process (``sleepers.py``), whose tasks sleep. What a task takes the scheduler, the client
(the slower of these two counts) and a worker is measured with ten workers, and predicts the others. *costs*: the table
of the chapter *When it does not fit*, from rates.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import psutil
from common import arguments, network, report, start
from sweep import Made

from pure_nb.compute import blocks, sweep
from pure_nb.compute.blocks import BLOCK, NEURONS
from pure_nb.compute.cluster import connect
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


TASK = 64
"""Images of a task of *local*, and half its pairs."""


def local(args: argparse.Namespace) -> list[dict[str, Any]]:
    model, count, cores = network("torchvision:resnet18"), 10 * TASK, psutil.cpu_count(logical=False) or 1
    images, pairs = Images(Made(count, 64)), (np.arange(2 * count) % 64, np.arange(2 * count) % count)
    few = Images(Made(2 * TASK, 64))
    steps = {
        "sweep": (count, TASK, lambda run: swept(model, images, 8, run)),
        "circuits": (2 * count, 2 * TASK, lambda run: circuits(model, images, *pairs, run=run, **LAYERS)),
    }
    here = Run(progress=False, batch_size=16)
    cut(TASK)
    rows: list[dict[str, Any]] = []
    first, task = float("nan"), float("nan")
    for workers in (1, 2, 4):
        begin = time.perf_counter()
        with connect(f"local:{workers}") as client:
            client.wait_for_workers(workers)
            client.run(swept, model, few, 8, here)  # what is imported, and what travels
            begun = time.perf_counter() - begin
            there = Run(progress=False, batch_size=16, client=client)
            if workers == 1:
                first, task = begun, beyond(client, partial(swept, model, few, 8, there), args.repeats)
                rows.append({"step": "task", "workers": 1, "busiest": task})
            site = Workers(workers, start=first, task=task)
            shared = Workers(workers, cores=cores, start=first, task=task)
            rows.append({"step": "start", "workers": workers, "wall": begun, "predicted wall": total([], shared)})
            for name, (units, together, step) in steps.items():
                taken = []
                for _ in range(args.repeats + 1):
                    taken.append((processor(partial(step, here)), *spent(client, partial(step, there))))
                alone, clock, busiest = map(median, zip(*taken[1:]))  # without what the first does once
                steps_of = [Step(name, units, alone / units, together)]
                predicted = [total(steps_of, s) - total([], s) for s in (shared, site)]
                row = {"step": name, "workers": workers, "wall": clock, "predicted wall": predicted[0]}
                rows.append(row | {"busiest": busiest, "predicted busiest": predicted[1]})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    for kind in ("wall", "busiest"):
        table[f"{kind}/predicted"] = table[kind] / table[f"predicted {kind}"]
    return table.to_dict("records")  # type: ignore[return-value]


def cut(images: int) -> None:
    """Make tasks of so many images, and twice as many pairs."""
    sweep.shards, blocks.BLOCK = partial(shards, size=images), 2 * images


def total(steps: Sequence[Step], workers: Workers) -> float:
    return float(costs(steps, workers).hours["total"]) * 3600


def spent(client: Any, run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor for the busiest worker."""
    before, begin = client.run(time.process_time), time.perf_counter()
    run()
    clock = time.perf_counter() - begin
    return clock, max(after - before[worker] for worker, after in client.run(time.process_time).items())


def beyond(client: Any, run: Callable[[], Any], repeats: int) -> float:
    """Seconds that a task takes a worker beyond its images: those of many small tasks, and of two large ones."""
    taken = []
    for _ in range(repeats + 1):
        pair = []
        for images in (16, TASK):
            cut(images)
            pair.append(spent(client, run)[1])
        taken.append((pair[0] - pair[1]) / (2 * TASK // 16 - 2))
    return median(taken[1:])


def slept(seconds: float, number: int) -> int:
    time.sleep(seconds)
    return number


SITES = ((10, 1000, 0.3), (100, 1000, 3.0), (1000, 10_000, 10.0))
"""Workers, tasks, and seconds of each: so many that two cores can be scheduler, client and all workers together."""


def simulated(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    task = scheduler = float("nan")
    for workers, tasks, sleep in SITES:
        found = simulation(workers, tasks, sleep)
        if not rows:
            task, scheduler = found["worker"], max(found["scheduler"], found["client"])
        expected = total([Step("sleep", tasks, sleep, 1)], Workers(workers, task=task, scheduler=scheduler))
        row = {"workers": workers, "tasks": tasks, "sleep": sleep, **found, "predicted": expected}
        rows.append(row | {"wall/predicted": found["wall"] / expected})
        print(rows[-1], flush=True)
    return rows


def simulation(workers: int, tasks: int, sleep: float) -> dict[str, float]:
    """Seconds of the clock until workers have begun and until all is done; of the processor for each task."""
    here = Path(__file__).parent
    with ExitStack() as ends:
        file = Path(ends.enter_context(tempfile.TemporaryDirectory())) / "scheduler.json"

        def started(*command: Any) -> psutil.Process:
            process = subprocess.Popen([sys.executable, *map(str, command)], stderr=subprocess.DEVNULL)
            ends.callback(process.wait)
            ends.callback(process.kill)
            return psutil.Process(process.pid)

        options = ("--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", file)
        scheduler = started("-m", "distributed.cli.dask_scheduler", *options)
        while not file.exists():
            time.sleep(0.1)
        begin = time.perf_counter()
        sites = [started(here / "sleepers.py", file, share) for share in shares(workers, 250)]
        client = ends.enter_context(connect(str(file)))
        client.wait_for_workers(workers, timeout=600)
        begun = time.perf_counter() - begin

        def used() -> list[float]:
            return [sum(sum(own.cpu_times()[:2]) for own in some) for some in ([scheduler], [psutil.Process()], sites)]

        before, begin = used(), time.perf_counter()
        done = client._handed_out(
            range(tasks), lambda number: {client.submit(slept, sleep, number, pure=False): number}
        )
        assert all(future.result() == number for number, future in done)
        clock = time.perf_counter() - begin
        each = [(now - then) / tasks for now, then in zip(used(), before)]
        return {"begun": begun, **dict(zip(("scheduler", "client", "worker"), each)), "wall": clock}


def shares(count: int, most: int) -> list[int]:
    return [min(most, count - first) for first in range(0, count, most)]


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
    # What each does, and what clock its seconds are of.
    kinds = {
        "rates": (rates, "cpu"),
        "local": (local, "as named"),
        "simulated": (simulated, "as named"),
        "costs": (priced, "cpu"),
    }
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--images", type=int, default=32, help="of rates")
    parser.add_argument("--price", type=float, default=0.04, help="dollars for a core and hour: an assumption")
    args = start(parser)
    run, args.clock = kinds[args.kind]
    report(run(args), args)


if __name__ == "__main__":
    main()
