"""Long work over pairs of a channel and an image, in blocks that survive a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pure_nb.references import grouped
from pure_nb.store import Store

BLOCK = 2048
"""Pairs computed between two saves: at most these are lost when a run is stopped."""


def by_blocks(
    sample: NDArray[np.int64],
    compute: Callable[[NDArray[np.int64], Callable[[int], Any]], NDArray[Any]],
    *,
    batch_size: int,
    name: str,
    unit: str = "pair",
    store: Store | None = None,
    progress: bool = False,
) -> NDArray[Any]:
    """Compute something for each pair of a channel and an image; pairs of one image are computed together.

    Parameters
    ----------
    sample
        int64 ``[P]``: the image of each pair.
    compute
        From some of the pairs (int64 ``[b]``, places in ``sample``) and a function to call with the number of pairs
        done, to an array ``[b, ...]``.
    batch_size
        Images in a batch; blocks are made of whole batches.
    name, unit
        What to write beside the progress bar.
    store
        Where to keep finished blocks, a folder for these pairs alone. Blocks found there are not computed again.
    progress
        Show a progress bar.

    Returns
    -------
    ndarray
        ``[P, ...]``.
    """
    if not len(sample):
        raise ValueError("no pairs of a channel and an image were given")
    _, pairs_of = grouped(sample)
    pairs_of.sort(key=len, reverse=True)
    found: NDArray[Any] | None = None
    with tqdm(total=len(sample), desc=name, unit=unit, disable=not progress) as bar:
        for number, block in enumerate(_blocks(pairs_of, batch_size)):
            key = {"of": name, "block": number, "pairs": len(block), "batch_size": batch_size}
            saved = store.load_arrays("block", key) if store else None
            if saved is not None:
                values = saved[0]["values"]
                bar.update(len(block))
            else:
                values = compute(block, bar.update)
                if store:
                    store.save_arrays("block", key, {"values": values})
            if found is None:
                found = np.empty((len(sample), *values.shape[1:]), dtype=values.dtype)
            found[block] = values
    assert found is not None
    return found


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
