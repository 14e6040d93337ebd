"""One streaming pass over all images feeds every accumulator.

Whatever needs all the images is an *accumulator*: it takes in batches, it can be merged with another of its kind, and
in the end it has a result. A pass is cut into shards (:func:`shards`), each of which is computed by a pure function
(:func:`shard_part`), and the parts are merged along one fixed binary tree. Batches, shards and tree depend on the
number of images and the size of a batch alone, whoever computes. Time decides only how often what is known of an
unfinished shard is saved, to go on from there batch by batch. So a pass may be stopped and resumed, and run in one
process or by any number of them (:mod:`pure_nb.compute.cluster`) in any order, and the result is the same to the bit,
as long as the arithmetic is: the same kind of processor, and as many threads of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.compute.bars import progress_bar
from pure_nb.compute.precision import autocast
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, ImageError
from pure_nb.images.data import Images
from pure_nb.images.reading import Loader, Unreadable, batches
from pure_nb.network.layers import activations
from pure_nb.parameters import Precision, Run

Self = TypeVar("Self", bound="Accumulator")

SHARD = 1024
"""Images in a shard, rounded to whole batches."""

SAVE = 20.0
"""Seconds between two saves of a shard that is not finished: about what is lost at most when a sweep is stopped."""

SPARE = 20.0
"""Saves are apart at least so many times as long as one takes: of a large state they must not take all the time."""

BEGUN = ("begun", "begun_too")
"""Saved by turns: one of them is whole, whenever the process is killed."""

MOST_SHARDS = 1024
"""Beyond that many, shards grow instead: a million images are a thousand shards of a thousand."""


class Accumulator(Protocol):
    """Something that is known after all images have been seen once."""

    layers: tuple[str, ...]
    """The layers whose outputs are wanted; see :func:`pure_nb.network.layers.activations`."""

    leaf: str | None
    """The one of them from which the graph is to be kept, for an accumulator that needs gradients."""

    def update(self, samples: NDArray[np.int64], outputs: Mapping[str, Tensor]) -> None:
        """Take in the layers' outputs for a batch; ``samples`` are the indices of its images."""

    def merge(self: Self, other: Self) -> None:
        """Take in all that another accumulator has taken in."""

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that was taken in, as arrays."""

    def restored(self: Self, state: Mapping[str, NDArray[np.generic]]) -> Self:
        """A new accumulator of the same settings with a given state."""


@dataclass(frozen=True, eq=False)
class Job:
    """All that a shard needs besides the indices of its images: see :func:`sweep`.

    Attributes
    ----------
    threads
        Of torch, in whichever process. Some networks compute other last digits with other numbers of threads.
    loaders
        The processes that load images, from one shard to the next.
    """

    model: nn.Module
    images: Images
    accumulators: Sequence[Accumulator]
    run: Run = Run()
    precision: Precision = "float32"
    threads: int = field(default_factory=torch.get_num_threads)
    loaders: list[Loader] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loaders": []}  # which belong to the process that started them

    def key(self, samples: range) -> dict[str, object]:
        """What the part for some images is found by in the store of a sweep."""
        return {"images": [samples.start, samples.stop], "batch_size": self.run.batch_size}


@dataclass(frozen=True, eq=False)
class Part:
    """What is known of some of the images: the states of all accumulators, and what was unreadable."""

    arrays: dict[str, NDArray[Any]]
    lost: list[Unreadable]

    @classmethod
    def of(cls, accumulators: Sequence[Accumulator], lost: list[Unreadable]) -> Part:
        """The part that some accumulators have taken in."""
        return cls(
            {f"{i}.{name}": array for i, a in enumerate(accumulators) for name, array in a.state().items()}, lost
        )

    def accumulators(self, like: Sequence[Accumulator]) -> list[Accumulator]:
        """Accumulators of the same settings as those given, which have taken in this part."""

        def own(number: int) -> dict[str, NDArray[Any]]:
            prefix = f"{number}."
            return {name[len(prefix) :]: value for name, value in self.arrays.items() if name.startswith(prefix)}

        return [accumulator.restored(own(number)) for number, accumulator in enumerate(like)]


def shards(count: int, batch_size: int, size: int = SHARD) -> list[range]:
    """Cut ``count`` images into ranges of whole batches.

    Examples
    --------
    >>> shards(40, batch_size=16, size=20)
    [range(0, 16), range(16, 32), range(32, 40)]
    """
    step = max(1, size // batch_size, -(-count // (MOST_SHARDS * batch_size))) * batch_size
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def split_tree(cut: Sequence[range]) -> tuple[Sequence[range], Sequence[range]]:
    """The two branches of the tree in which shards are merged: the first is as large a full one as there is."""
    half = 1 << (len(cut) - 1).bit_length() - 1
    return cut[:half], cut[half:]


def subtrees(cut: Sequence[range], most: int) -> list[Sequence[range]]:
    """The branches of the tree that have no more than ``most`` shards each, but are as large as that allows."""
    return [cut] if len(cut) <= most else [branch for half in split_tree(cut) for branch in subtrees(half, most)]


def covered(cut: Sequence[range]) -> range:
    """All images of some neighbouring shards."""
    return range(cut[0].start, cut[-1].stop)


@contextmanager
def threaded(count: int) -> Iterator[None]:
    """Within it, torch computes in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_shard(
    model: nn.Module,
    images: Images,
    accumulators: Sequence[Accumulator],
    samples: range,
    *,
    precision: Precision = "float32",
    run: Run = Run(),
    loaders: list[Loader] | None = None,
) -> Generator[int | Unreadable, None, None]:
    """Feed one shard to the accumulators; yields the number of images of each batch, and what was unreadable.

    Parameters
    ----------
    model, images, accumulators, precision, run
        As for :func:`sweep`.
    samples
        Indices of the shard's images.
    loaders
        As for :func:`pure_nb.images.reading.batches`.
    """
    layers = list(dict.fromkeys(layer for accumulator in accumulators for layer in accumulator.layers))
    leaves = {accumulator.leaf for accumulator in accumulators} - {None}
    if len(leaves) > 1:
        raise ArgumentError(f"one pass can keep the graph from one layer, not from each of {sorted(map(str, leaves))}")
    leaf = next(iter(leaves), None)
    with run.prepared(model):
        for batch in batches(images, samples, run=run, loaders=loaders):
            yield from batch.unreadable
            if not len(batch.samples):
                continue
            with torch.no_grad() if leaf else torch.inference_mode():
                with autocast(run.local_device, precision):
                    outputs = activations(model, batch.images.to(run.local_device), layers, leaf)
                for accumulator in accumulators:
                    accumulator.update(batch.samples, outputs)
            yield len(batch.samples)


def shard_part(
    job: Job, samples: range, done: Callable[[int], object] = lambda images: None, store: Store | None = None
) -> Part:
    """Compute one shard; a pure function of its job and images, so that any process may do it.

    Parameters
    ----------
    job
        What to compute.
    samples
        The images: a whole shard.
    done
        Called with the number of images of each batch.
    store
        Where what is known is saved every :data:`SAVE` seconds, and found by whoever goes on; None saves nothing.

    Raises
    ------
    ImageError
        At the first unreadable image, unless they are to be skipped.
    """
    begun = [_loaded(name, job, samples, store) or Part({}, []) for name in BEGUN]
    known = [int(part.arrays.get("images", 0)) for part in begun]  # whole batches
    seen, turn = max(known), known.index(min(known))
    saved = begun[known.index(seen)]
    running, lost = saved.accumulators(job.accumulators), saved.lost
    del begun, saved  # which may be large
    done(seen)
    saving, last = 0.0, perf_counter()
    how: Any = {"precision": job.precision, "run": job.run, "loaders": job.loaders}
    events = run_shard(job.model, job.images, running, samples[seen:], **how)
    with threaded(job.threads), closing(events):  # whatever happens here, the model gets its state back at once
        for event in events:
            if isinstance(event, Unreadable):
                if not job.run.skip_unreadable:
                    raise event.error()
                lost.append(event)
            count = 1 if isinstance(event, Unreadable) else event
            seen += count
            done(count)
            whole = not isinstance(event, Unreadable)  # after which more of the same batch may come
            if store and whole and (start := perf_counter()) - last > max(SAVE, SPARE * saving):
                part = Part.of(running, lost)
                _save(BEGUN[turn], job, samples, store, Part({**part.arrays, "images": np.array(seen)}, lost))
                last, turn = perf_counter(), 1 - turn
                saving = last - start
    return Part.of(running, lost)


def merged(job: Job, first: Part, second: Part) -> Part:
    """Two neighbouring parts as one, the earlier images first.

    The chapter :doc:`When it does not fit </book/scale>` builds the tree of such merges from scratch.
    """
    own, other = first.accumulators(job.accumulators), second.accumulators(job.accumulators)
    for accumulator, more in zip(own, other):
        accumulator.merge(more)
    return Part.of(own, first.lost + second.lost)


def stored_part(job: Job, cut: Sequence[range], store: Store | None) -> Part | None:
    """The part for some shards out of a store; None where it is not."""
    return _loaded("shard", job, covered(cut), store)


def _loaded(name: str, job: Job, samples: range, store: Store | None) -> Part | None:
    saved = store.load_arrays(name, job.key(samples)) if store else None
    if saved is None:
        return None
    lost = [Unreadable(*entry) for entry in saved[1]]
    if lost and not job.run.skip_unreadable:
        raise lost[0].error()
    return Part(saved[0], lost)


def accepted(lost: list[Unreadable], run: Run) -> list[Unreadable]:
    """What was left out of results, if that is all right with the user."""
    if lost and not run.skip_unreadable:
        raise ImageError(
            f"{len(lost)} images could not be read and were left out of these results, the first {lost[0].path}; "
            "accept that with skip_unreadable=True, or --skip-unreadable"
        )
    return lost


def noted(lost: Sequence[Unreadable]) -> list[tuple[Any, ...]]:
    """What could not be read, as a note beside a result: the arguments of each :class:`Unreadable`."""
    return [astuple(one) for one in lost]


def _save(name: str, job: Job, samples: range, store: Store, part: Part) -> None:
    store.save_arrays(name, job.key(samples), part.arrays, noted(part.lost))


def save_part(job: Job, cut: Sequence[range], store: Store, part: Part) -> None:
    """Keep the part for some shards, in place of all that it was merged from.

    Parameters
    ----------
    job
        What was computed.
    cut
        The shards.
    store
        Where to keep the part.
    part
        What was found.
    """
    _save("shard", job, covered(cut), store, part)
    _forget(job, cut, store)


def _forget(job: Job, cut: Sequence[range], store: Store) -> None:
    for name in BEGUN:
        store.remove(name, job.key(covered(cut)))
    for half in split_tree(cut) if len(cut) > 1 else ():
        store.remove("shard", job.key(covered(half)))
        _forget(job, half, store)


def load_or_compute_part(
    job: Job,
    cut: Sequence[range],
    store: Store | None = None,
    done: Callable[[int], object] = lambda images: None,
    *,
    known: Mapping[range, Part] | None = None,
) -> Part:
    """The part for some shards: known, or out of the store, or computed and kept there.

    With a store there are never more than two parts in memory, however many shards; without one, one more for each
    level of the tree.

    Parameters
    ----------
    job
        What is computed.
    cut
        The shards.
    store
        Where finished parts are kept, and what is known of unfinished shards; None keeps them in memory.
    done
        Is told how many images are finished.
    known
        Parts that are at hand, by the images they are of.
    """
    part = (known or {}).get(covered(cut)) or stored_part(job, cut, store)
    if part is not None:
        done(len(covered(cut)))
        return part
    if len(cut) == 1:
        part = shard_part(job, covered(cut), done, store)
    else:
        first, second = split_tree(cut)
        earlier: Part | None = load_or_compute_part(job, first, store, done, known=known)
        if store:
            earlier = None  # it is on the disk, and would only wait in memory
        later = load_or_compute_part(job, second, store, done, known=known)
        part = merged(job, earlier or load_or_compute_part(job, first, store), later)
    if store:
        save_part(job, cut, store, part)
    return part


def sweep(
    model: nn.Module,
    images: Images,
    accumulators: Sequence[Accumulator],
    *,
    precision: Precision = "float32",
    store: Store | None = None,
    run: Run = Run(),
) -> list[Unreadable]:
    """Run the network once over all images, no further than the last layer asked for.

    Parameters
    ----------
    model, images
        What to run over what.
    accumulators
        What to feed; they hold the result afterwards.
    precision
        What the network computes in; see :mod:`pure_nb.compute.precision`.
    store
        Where to keep what is known so far, a folder for this sweep alone. A sweep that finds something there goes on
        from it; clear it when the result is safe.
    run
        How: its ``client`` computes the shards, or else this process, one by one.

    Returns
    -------
    list of Unreadable
        The images that were left out.

    Raises
    ------
    ImageError
        At the first unreadable image, unless they are to be skipped. What is finished stays in the store.
    LayerError, NonFiniteError
        From the layers and the accumulators.
    """
    job = Job(model, images, accumulators, run, precision)
    cut = shards(len(images), run.batch_size)
    bar = progress_bar(desc="sweep", total=len(images), unit="img", shown=run.progress)
    try:
        with bar, run.prepared(model):
            part = (run.client.sweep_on_cluster if run.client else load_or_compute_part)(job, cut, store, bar.update)
    finally:
        job.loaders.clear()
    if len(part.lost) == len(images):
        raise part.lost[0].error()
    for accumulator, found in zip(accumulators, part.accumulators(accumulators)):
        accumulator.merge(found)
    return part.lost
