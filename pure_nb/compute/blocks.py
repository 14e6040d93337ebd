"""Long work over pairs of a channel and an image, or over neurons, in blocks that survive a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import New, Store
from pure_nb.errors import ArgumentError
from pure_nb.parameters import Run

T = TypeVar("T")
Compute = Callable[[NDArray[np.int64], Callable[[int], Any]], NDArray[Any]]
BLOCK = 2048
"""Pairs computed between two saves: at most these are lost when a run is stopped."""

IMAGES = 256
"""Images that a worker takes at once, where each is run once for all that is asked of it."""

NEURONS, MANY = 64, 128
"""The same of neurons; and neurons from which on all cores are used, since for fewer it takes longer to start them."""


def grouped(sample: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Pairs of a channel and an image, gathered by image, so that each image is loaded and run once.

    Parameters
    ----------
    sample
        int64 of any shape: the image of each pair.

    Returns
    -------
    tuple
        The different images, ascending; and for each the pairs it is in, as indices into the flattened ``sample``.
    """
    unique, inverse, counts = np.unique(sample, return_inverse=True, return_counts=True)
    return unique, np.split(np.argsort(inverse.ravel(), kind="stable"), np.cumsum(counts)[:-1])


def map_in_blocks(
    sample: NDArray[np.int64],
    compute: Compute,
    *,
    name: str,
    unit: str = "pair",
    store: Store | None = None,
    new: New = np.empty,
    run: Run = Run(),
) -> NDArray[Any]:
    """Compute something for each pair of a channel and an image; pairs of one image are computed together.

    Parameters
    ----------
    sample
        int64 ``[P]``: the image of each pair.
    compute
        From some of the pairs (int64 ``[b]``, places in ``sample``) and a function to call with the number of pairs
        done, to an array ``[b, ...]``.
    name, unit
        What to write beside the progress bar.
    store
        Where to keep finished blocks, a folder for these pairs alone. Blocks found there are not computed again.
    new
        Makes the array that is returned, say in a file. No more than one block at a time is in memory besides.
    run
        Blocks are made of whole batches; its ``client`` computes them, or else this process, one by one.

    Returns
    -------
    ndarray
        ``[P, ...]``.
    """
    if not len(sample):
        raise ArgumentError("no pairs of a channel and an image were given")
    _, pairs_of = grouped(sample)
    pairs_of.sort(key=len, reverse=True)
    blocks = list(_blocks(pairs_of, run.batch_size))
    keys = [
        {"of": name, "block": number, "pairs": len(block), "batch_size": run.batch_size}
        for number, block in enumerate(blocks)
    ]
    found: NDArray[Any] | None = None
    with progress_bar(desc=name, total=len(sample), unit=unit, shown=run.progress) as bar:
        tasks = list(zip(blocks, keys))
        if run.client is not None:
            results = run.client.blocks(compute, tasks, store, bar.update)
        else:
            results = (
                (number, load_or_compute_block(compute, task, store, bar.update)) for number, task in enumerate(tasks)
            )
        for number, values in results:
            if found is None:
                found = new((len(sample), *values.shape[1:]), values.dtype)
            if values.shape[1:] != found.shape[1:]:
                lengths = sorted({values.shape[1:], found.shape[1:]})
                raise ArgumentError(f"{name}: expected values of one shape for each {unit}, got {lengths}")
            found[blocks[number]] = values
    assert found is not None
    return found


def load_or_compute_block(
    compute: Compute,
    task: tuple[NDArray[np.int64], dict[str, object]],
    store: Store | None = None,
    done: Callable[[int], Any] = lambda pairs: None,
) -> NDArray[Any]:
    """The values of a block, a pair of its pairs and its key: out of the store, or computed and kept there.

    Parameters
    ----------
    compute
        What computes a block.
    task
        A pair of the block's own pairs and the key it is kept by.
    store
        Where finished blocks are kept; None keeps none.
    done
        Is told how many pairs are finished.
    """
    block, key = task
    saved = store.load_arrays("block", key) if store else None
    if saved is not None:
        done(len(block))
        found: NDArray[Any] = saved[0]["values"]
        return found
    values = compute(block, done)
    if store:
        store.save_arrays("block", key, {"values": values})
    return values


class Kept(NamedTuple):
    """Where finished blocks of neurons are kept: by the number of the first, what was found for each."""

    load: Callable[[int], list[Any] | None]
    save: Callable[[int, list[Any]], object]


NOTHING = Kept(lambda first: None, lambda first, found: None)


def each(
    work: Callable[..., T], given: Callable[[int], tuple[Any, ...]], numbers: Sequence[int], run: Run
) -> Iterator[tuple[int, T]]:
    """What is made of each of some things: its number, and the result; in any order.

    Parameters
    ----------
    work
        A pure function.
    given
        Its arguments for a number, asked for when it is that one's turn.
    numbers
        Of what is to be done.
    run
        Its ``client`` computes them, or else this process, one by one.
    """
    if run.client is not None:
        return run.client.each(work, given, numbers)
    return ((number, work(*given(number))) for number in numbers)


def by_image(
    work: Callable[[NDArray[np.int64], list[NDArray[np.int64]]], T], sample: NDArray[np.int64], run: Run
) -> Iterator[tuple[NDArray[np.int64], T]]:
    """What is made of the images of some pairs, in blocks of whole batches: the pairs of each, and the result.

    Parameters
    ----------
    work
        A pure function of some images, and of the pairs of each, as :func:`grouped` has them.
    sample
        int64 of any shape: the image of each pair.
    run
        As for :func:`each`.
    """
    unique, pairs_of = grouped(sample)
    step = max(1, IMAGES // run.batch_size) * run.batch_size
    firsts = range(0, len(unique), step)
    for first, found in each(work, lambda at: (unique[at : at + step], pairs_of[at : at + step]), firsts, run):
        yield np.concatenate(pairs_of[first : first + step]), found


def each_neuron(
    one: Callable[..., T],
    given: Callable[[int], tuple[Any, ...]],
    count: int,
    *,
    name: str,
    kept: Kept = NOTHING,
    many: int = MANY,
    run: Run = Run(progress=False),
) -> list[T]:
    """Do something for each of some neurons, many at once: by all cores, or by the workers of a cluster.

    Parameters
    ----------
    one
        A pure function, for a single neuron.
    given
        Its arguments for a number from 0 to ``count - 1``, asked for when it is that one's turn.
    count
        How many there are.
    name
        What to write beside the progress bar.
    kept
        Where finished blocks are kept, and found by a run that goes on.
    many
        From how many on all cores are used.
    run
        Its ``client`` computes them, or else this process.
    """
    from sklearn.utils.parallel import Parallel, delayed  # late, see pure_nb._imports

    found = {first: kept.load(first) for first in range(0, count, NEURONS)}
    todo = [first for first, known in found.items() if known is None]

    def block(first: int) -> list[tuple[Any, ...]]:
        return [given(number) for number in range(first, min(first + NEURONS, count))]

    jobs = 1 if run.client or count < many else -1
    bar = progress_bar(desc=name, total=count, unit="neuron", shown=run.progress)
    with bar, Parallel(n_jobs=jobs) as parallel:
        bar.update(sum(len(known) for known in found.values() if known is not None))
        if run.client:
            results = run.client.each(partial(_in_turn, one), lambda first: (block(first),), todo)
        else:
            results = ((first, parallel(delayed(one)(*own) for own in block(first))) for first in todo)
        for first, values in results:
            kept.save(first, values)
            found[first] = values
            bar.update(len(values))
    return [value for known in found.values() for value in known or ()]


def _in_turn(one: Callable[..., T], block: list[tuple[Any, ...]]) -> list[T]:
    return [one(*own) for own in block]


def _blocks(pairs_of: list[NDArray[np.int64]], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Pairs gathered by image, in blocks of whole batches with at least ``BLOCK`` pairs each, but for the last."""
    block: list[NDArray[np.int64]] = []
    for start in range(0, len(pairs_of), batch_size):
        block += pairs_of[start : start + batch_size]
        if sum(map(len, block)) >= BLOCK:
            yield np.concatenate(block)
            block = []
    if block:
        yield np.concatenate(block)
