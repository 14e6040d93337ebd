"""What a study will take: time, memory and disk of each step, from ten images and a few pairs of a channel and one.

Each step is run as the study would run it, by a small study of the same network, on a few images and a few channels.
Its time is that of the images and that of the pairs, each times how many there will be: an image is read and run
forward once, however many channels it is a reference for. How many images that are is known when the references are;
until then they are taken to be drawn at random, which is more than those of a trained network.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from os import cpu_count
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from pure_nb._memory import give_memory_back
from pure_nb.compute.bars import Bar, progress_bar, watched
from pure_nb.compute.blocks import MANY
from pure_nb.compute.sweep import threaded
from pure_nb.errors import ArgumentError, PureError
from pure_nb.images.data import Images
from pure_nb.images.reading import Unreadable
from pure_nb.methods.references import References

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

RUN_STEPS = ("references", "circuits", "virtual", "neurons")
"""What ``pure-nb run`` takes."""

COMMANDS = {"layouts": "atlas", "boxes": "evaluate", "embeddings": "evaluate", "classes": "arv, pairs, split"}
"""Which commands take the other steps."""

STEPS = (*RUN_STEPS, *COMMANDS)

ON_WORKERS = ("references", "circuits", "virtual", "layouts", "boxes", "embeddings", "classes")
"""Steps that run on the workers of a cluster."""

ON_CORES = ("virtual", "layouts")
"""Steps that all cores of this machine take for many channels."""

IMAGES, TURNS, ENOUGH, TOLD = 10, 3, 3.0, 1.5
"""Images that a step is tried on, and pairs of each; more images as long as it takes less than so many times as long as
for two, of which most is what it takes once, and more pairs until they take so many times as long as one of each."""


class Cost(NamedTuple):
    """What something took: seconds of the clock and of the processor, and bytes of memory beyond those before."""

    seconds: float
    processor: float
    memory: float


def estimate(
    study: Study, *, cluster: str = "", embedder: Embedder | None = None, steps: Sequence[str] = STEPS
) -> pd.DataFrame:
    """What each step of a study will take, and all of them together.

    Parameters
    ----------
    study
        Any study; what is known of it takes nothing any more.
    cluster
        Run on ``local``, ``local:4`` or ``slurm:8``: the time of the steps that run on workers, divided by their
        number, as if nothing was lost between them; of one machine no more workers count than it has cores. By default
        as the study says.
    embedder
        Whose vectors of crops are meant; without one they are left out.
    steps
        Which steps.

    Returns
    -------
    DataFrame
        By step: the ``command`` that takes it, the ``count`` of its images, pairs or channels, ``seconds`` of the clock
        and of the ``processor``, ``memory_mb`` of the process at most, and ``disk_mb`` that is kept. Circuits take
        twice as much of the disk until they are finished. The row ``run`` is all that ``pure-nb run`` takes, ``total``
        is all.

    Raises
    ------
    ArgumentError
        If there is no such step, or it can't be told how many workers there are.

    Examples
    --------
    >>> study.estimate(steps=["references", "circuits"]).index.tolist()
    ['references', 'circuits', 'run', 'total']
    """
    import pandas as pd  # late, see pure_nb._imports

    if unknown := set(steps) - set(STEPS):
        raise ArgumentError(f"there is no step {sorted(unknown)[0]!r}; there are {', '.join(STEPS)}")
    workers, threads = _workers(cluster, study.run.client)
    with threaded(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ten images many a thing can be said
        tried = _Trial(study, embedder)
        found, bar = {}, progress_bar([step for step in STEPS if step in steps], unit="step", shown=study.run.progress)
        for step in bar:
            bar.set_description(f"trying {step}")
            found[step] = tried.row(step)
    rows = {step: row for step, row in found.items() if row}
    cores = 1 if cluster or study.run.client or tried.channels < MANY else cpu_count() or 1
    for step, row in rows.items():
        row["seconds"] /= (workers if step in ON_WORKERS else 1) * (cores if step in ON_CORES else 1)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.insert(0, "command", [COMMANDS.get(step, "run") for step in rows])
    for name, some in {"run": table[table["command"] == "run"], "total": table.copy()}.items():
        table.loc[name] = {"command": "", "count": "", **some[["seconds", "processor", "disk_mb"]].sum()} | {
            "memory_mb": some["memory_mb"].max() if len(some) else 0.0
        }
    return table


def _workers(cluster: str, client: Any) -> tuple[int, int]:
    """How many workers compute at once, and the threads of each."""
    if not cluster:
        return (1 if client is None else max(1, len(client.nthreads()))), torch.get_num_threads()
    cores, (kind, _, number) = cpu_count() or 1, cluster.partition(":")
    if kind not in ("local", "slurm") or not (number or "1").isdecimal() or number == "0":
        raise ArgumentError(f"it can't be told how many workers {cluster!r} has; estimate for local:4 or slurm:8")
    if kind == "slurm":
        return int(number or 1), torch.get_num_threads()
    workers = min(cores, int(number or cores))
    return workers, max(1, cores // workers)


class _Trial:
    """A study, each of whose steps is tried on a few images and channels; all of them by their names."""

    def __init__(self, study: Study, embedder: Embedder | None) -> None:
        self.study, self.embedder = study, embedder
        run = study.run
        self.run = replace(run, client=None, device=run.local_device, progress=False)
        self.target, self.lower = study.shapes
        self.channels = self.target.channels
        self.draws = np.random.default_rng(0)  # others each time, as those that were read may be at hand
        self.rows = min(2, self.channels)
        self.n = min(study.parameters.n_references, len(study.images))
        study.images.fingerprint  # noqa: B018  which is no step of its own

    @cached_property
    def base(self) -> float:
        """Bytes that the process takes now."""
        return _status("VmRSS")

    def _small(self, images: Images | None = None, **known: Any) -> Study:
        """The study without what is known, but for what is given."""
        found = replace(self.study, images=images or self.study.images, store=None, run=self.run)
        found.__dict__.update({"_weights": "", "shapes": (self.target, self.lower), **known})
        return found

    def _referring(self, sample: NDArray[np.int64], **known: Any) -> Study:
        """A study with given references, ``[channels, n]``."""
        p = self.study.parameters
        ones = np.ones(sample.shape, dtype=np.float32)
        found = References(p.target, p.ranked_by, sample, ones, np.zeros_like(sample), self.target.grid, ones)
        return self._small(_found=(found, []), shapes=(replace(self.target, channels=len(sample)), self.lower), **known)

    def _sample(self, count: int, images: Images | None = None) -> NDArray[np.int64]:
        """So many of the images, drawn at random; none that is left out since it can't be read."""
        images, draws = images or self.study.images, self.draws
        found: list[int] = []
        many = len(images) > 100 * count
        drawn = draws.integers(0, len(images), 9 * count) if many else draws.permutation(len(images))
        for number in dict.fromkeys(drawn.tolist()):
            skipped = self.run.skip_unreadable and isinstance(images.try_load(number), Unreadable)
            found += [] if skipped else [number]
            if len(found) == count:
                break
        return np.array(found or [0])

    def row(self, step: str) -> dict[str, Any] | None:
        """What a step takes, which is nothing if it is known; None if the study has no such step."""
        return self._row("known", Cost(0, 0, 0), 0, 0) if self._known(step) else getattr(self, f"_{step}")()

    def _row(self, count: str, cost: Cost, held: float, kept: float, batch: float = 1) -> dict[str, Any]:
        """What a step takes whose cost was measured; bytes that it holds beyond a batch, and that are kept of it."""
        memory = self.base + cost.memory * batch + held
        return {
            "count": count,
            "seconds": cost.seconds,
            "processor": cost.processor,
            "memory_mb": memory / 1e6,
            "disk_mb": kept / 1e6,
        }

    def _known(self, step: str) -> bool:
        """Whether a step takes nothing any more."""
        study, results = self.study, self.study.results
        if step == "classes":
            classes = study.classes
            there = "_classified" in vars(classes)
            return not classes.without_labels and (there or results.has(step, classes._key()))
        if step == "embeddings":
            if self.embedder is None or not self._known("boxes"):
                return False
            return results.has(step, study.crops.embeddings_key(self.embedder))
        return (step == "references" or study._is_there("references")) and study._is_there(step)

    def _images(self, compute: Callable[[Study], object], images: Images) -> tuple[Cost, int]:
        """What an image costs in a pass, and on how many it was tried."""

        def tried(count: int) -> Cost:
            some = replace(images, dataset=Subset(images.dataset, self._sample(count, images).tolist()))
            some.__dict__["fingerprint"] = ""
            small = self._small(some)
            return measured(lambda: compute(small))

        tried(2)
        few = tried(2)
        many, count = self._enough(tried, few, len(images))
        return _slope(few, many, 2, count), count

    def _enough(self, tried: Callable[[int], Cost], few: Cost, most: int) -> tuple[Cost, int]:
        """What so many images take that it can be told from what they take once, and how many these are."""
        most, count = min(most, max(IMAGES, 2 * self.run.batch_size)), IMAGES
        while (cost := tried(min(count, most))).seconds < ENOUGH * few.seconds and count < most:
            count *= 4
        again = tried(min(count, most))  # without what the first images take, such as the first glyphs that are drawn
        return Cost(min(cost[0], again[0]), min(cost[1], again[1]), cost.memory), min(count, most)

    def _pairs(self, compute: Callable[[Study], object]) -> tuple[Cost, int]:
        """What all pairs cost, and on how many images that was tried."""

        def tried(sample: NDArray[np.int64], turns: int) -> Cost:
            small = self._referring(np.tile(sample, (turns, 1)))
            return measured(lambda: compute(small))

        two = self._sample(2)
        tried(two, 1)
        few = tried(two, 1)
        once, count = self._enough(lambda count: tried(self._sample(count), 1), few, len(self.study.images))
        some = self._sample(count)
        pairs = self.channels * self.n
        turns, most = min(TURNS, self.channels), min(self.channels, int(np.ceil(pairs / self._unique)))
        often = tried(some, turns)
        while often.seconds < TOLD * once.seconds and turns < most:
            each = max(often.seconds - once.seconds, 0.0) / (turns - 1)
            enough = 1 + once.seconds / each if each else most
            turns = int(min(max(TURNS * turns, enough), most))
            often = tried(some, turns)
        image = _slope(few, once, len(two), len(some))  # with a pair each
        pair = _slope(once, often, len(some), turns * len(some)) if turns > 1 else image
        times = [max(0.0, one - other) * self._unique + other * pairs for one, other in zip(image[:2], pair[:2])]
        return Cost(times[0], times[1], often.memory), len(some)

    @cached_property
    def _unique(self) -> float:
        """Different images among the references."""
        if self.study._is_there("references"):
            return len(np.unique(self.study.references.sample))
        count = len(self.study.images)
        return count * (1 - (1 - self.n / count) ** self.channels)

    def _references(self) -> dict[str, Any]:
        count, own = len(self.study.images), 20.0 * self.channels * self.n
        cost, tried = self._images(lambda some: some.references, self.study.images)
        batch = min(self.run.batch_size, count) / tried
        return self._row(f"{count:,} images", _times(cost, count), 2 * own, own, batch)

    def _circuits(self) -> dict[str, Any]:
        combined = self.study.combined

        def compute(some: Study) -> object:
            self.found = some.circuits
            return some.combined.prepared() if some.combined else self.found  # what else is clustered is told with them

        return self._of_pairs(compute, 4.0 * (sum(combined.sizes.values()) if combined else self.lower.channels))

    def _boxes(self) -> dict[str, Any]:
        return self._of_pairs(lambda some: some.crops.boxes, 16.0)

    def _of_pairs(self, compute: Callable[[Study], object], each: float) -> dict[str, Any]:
        cost, tried = self._pairs(compute)
        pairs = self.channels * self.n
        batch = min(self.run.batch_size, self._unique) / tried
        return self._row(f"{pairs:,} pairs", cost, 0, each * pairs, batch)

    @cached_property
    def _two(self) -> Study:
        """Two channels with as many references as all have, and circuits between some that were found."""
        generator = np.random.default_rng(0)
        if not hasattr(self, "found"):
            self.found = self._referring(np.tile(self._sample(IMAGES), (self.rows, 1))).circuits
        # Of each channel its own: between those of two channels there would be heaps where there are none.
        one, other = generator.integers(0, self.found.shape[1], (2, self.rows, self.n, 1))
        first, second = (np.take_along_axis(self.found[: self.rows], chosen, axis=1) for chosen in (one, other))
        part = generator.random((self.rows, self.n, 1), dtype=np.float32)
        sample = generator.choice(len(self.study.images), (self.rows, self.n))
        return self._referring(sample, circuits=part * first + (1 - part) * second)

    def _channels(self, compute: Callable[[], object], each: float) -> dict[str, Any]:
        """What a step takes that is done channel by channel, by what it takes for two, and what it takes once."""
        first, cost = measured(compute), measured(compute)
        once = [max(0.0, a - b) for a, b in zip(first[:2], cost[:2])]
        times = [one + other * self.channels / self.rows for one, other in zip(once, cost[:2])]
        return self._row(f"{self.channels:,} channels", Cost(times[0], times[1], cost.memory), 0, each * self.channels)

    def _again(self, step: str) -> Callable[[], object]:
        """What computes a step of the two channels, each time anew."""

        def compute() -> object:
            self._two.__dict__.pop(step, None)
            return getattr(self._two, step)

        return compute

    def _virtual(self) -> dict[str, Any]:
        return self._channels(self._again("virtual"), 8.0 * self.n + 4 * 3 * self.lower.channels)

    def _neurons(self) -> dict[str, Any]:
        self._two.virtual  # noqa: B018  of which the table is, and no part of what it takes

        def compute() -> object:
            self._two.__dict__.pop("objects", None)
            return self._again("neurons")()

        return self._channels(compute, 100.0 + 8 * self.n)

    def _layouts(self) -> dict[str, Any]:
        return self._channels(self._again("layouts"), 8.0 * self.n)

    def _embeddings(self) -> dict[str, Any] | None:
        if self.embedder is None:
            return None
        embedder, sample = self.embedder, self._sample(min(IMAGES, len(self.study.images)))[None]
        box = np.tile(np.array([0, 0, *self.study.images.example.shape[:0:-1]], dtype=np.int32), (*sample.shape, 1))

        def compute() -> NDArray[np.float32]:
            some = self._referring(sample)
            some.crops.__dict__["_boxed"] = box, ""
            return some.crops.embeddings(embedder)

        each, pairs = 4.0 * compute().shape[-1], self.channels * self.n
        cost = _times(measured(compute), pairs / sample.size)
        return self._row(f"{pairs:,} crops", cost, 0, each * pairs)

    def _classes(self) -> dict[str, Any] | None:
        classes = self.study.classes
        if classes.without_labels:
            return None
        images, found = classes.labelled, []

        def compute(some: Study) -> None:
            some.__dict__["_found"] = None  # or the same pass would look for references
            found.append(some.classes.statistics)

        try:
            cost, tried = self._images(compute, images)
        except PureError:  # as of too many classes for the memory
            return None
        kept = float(sum(value.nbytes for value in vars(found[-1]).values() if isinstance(value, np.ndarray)))
        batch = min(self.run.batch_size, len(images)) / tried
        return self._row(f"{len(images):,} images", _times(cost, len(images)), 3 * kept, kept, batch)


def measured(compute: Callable[[], object]) -> Cost:
    """What it takes to compute something."""
    before = _reset_peak()
    clock, processor = perf_counter(), process_time()
    compute()
    return Cost(perf_counter() - clock, process_time() - processor, max(0.0, _status("VmHWM") - before))


def _slope(few: Cost, many: Cost, small: int, large: int) -> Cost:
    """What one more costs; of memory what many take. Where many took no more than few, by chance, it is their mean."""
    seconds, processor = ((b - a) / (large - small) if b > a else b / large for a, b in zip(few[:2], many[:2]))
    return Cost(seconds, processor, many.memory)


def _times(cost: Cost, count: float) -> Cost:
    return cost._replace(seconds=cost.seconds * count, processor=cost.processor * count)


def _reset_peak() -> float:
    """Forget how many bytes the process took at most, where that is possible; returns those that it takes now."""
    give_memory_back()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(name: str) -> float:
    """Bytes that this process takes now (``VmRSS``) or took at most (``VmHWM``)."""
    file = Path("/proc/self/status")
    if file.exists():
        return int(file.read_text(encoding="utf-8").split(f"{name}:")[1].split()[0]) * 1024.0
    if sys.platform == "win32":
        return 0.0  # it does not tell
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


class TimeLeft:
    """The time that is left of several steps: of the one that runs by how far it is, of the others by the estimate.

    Parameters
    ----------
    expected
        Seconds by step, in their order.
    clock
        In seconds.
    """

    def __init__(self, expected: Mapping[str, float], clock: Callable[[], float] = perf_counter) -> None:
        self.expected, self.clock = dict(expected), clock
        self.first: float | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Within it a step runs, and its bars tell what is left of the whole."""
        self.begun, self.running, self.first = self.clock(), self.expected.pop(name, 0.0), None
        with watched(self._told):
            yield

    def left(self, part: float) -> float:
        """Seconds that are left when a part of the running step is done."""
        new, took = part - (self.first or 0.0), self.clock() - self.begun
        pace = took / new if new > 0.05 else self.running  # before, a little that was quick would tell wrongly
        return pace * (1 - part) + sum(self.expected.values())

    def _told(self, bar: Bar) -> None:
        if self.first is None:  # some of it may have been there
            self.first, self.begun = bar.part, self.clock()
        bar.set_postfix_str(f"of all steps {in_words(self.left(min(1.0, bar.part)))} left", refresh=False)


def in_words(seconds: float) -> str:
    """A time as one says it: ``"45 s"``, ``"12 min"``, ``"3.5 h"``."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.0f} s"
