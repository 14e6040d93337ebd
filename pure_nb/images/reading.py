"""Images as they are read: in batches, in threads or processes beside the calling one.

One image of a data set is read at a time, so that loading can overlap with computing, and an image that never arrives
ends in an error after a timeout.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import current_process
from queue import Empty, SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from pure_nb.errors import ImageError
from pure_nb.parameters import Run

if TYPE_CHECKING:
    from pure_nb.images.data import Images

TIMEOUT = 300.0
"""Seconds to wait for an image, or for a batch of worker processes."""


def printable(text: str) -> str:
    """A text that can be written anywhere, as a name of a file that is no UTF-8 can't."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read: its index, its file where that is known, and the reason."""

    sample: int
    path: str
    reason: str

    def error(self) -> ImageError:
        """Make an error of it, one that says what to do."""
        return ImageError(
            f"image {self.sample} ({self.path}) can't be read: {self.reason}. Mend or remove it, or leave such "
            "images out (skip_unreadable=True, or --skip-unreadable)"
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images: their indices, their tensors ``[B, 3, H, W]``, and those that could not be read."""

    samples: NDArray[np.int64]
    images: Tensor
    unreadable: tuple[Unreadable, ...]


def arriving(
    images: Images, samples: Sequence[int], timeout: float, allowed: Semaphore
) -> Generator[Tensor | Unreadable, None, None]:
    """Images one by one, or why there is none.

    A thread of their own reads them, unless they are at hand. It ends with the generator, so that a caller who goes
    away leaves nothing behind. It is none of a ``ThreadPoolExecutor``: one that hangs would keep the process alive.

    Parameters
    ----------
    images, samples
        The data set, and the indices of the images wanted.
    timeout
        Seconds to wait for the next one.
    allowed
        How many may be read already.

    Raises
    ------
    ImageError
        If one does not arrive.
    """
    if images.at_hand:  # beside it, they and the network would hold each other up
        for sample in samples:
            with torch.inference_mode(False):  # the caller's own need not be that of whoever gets the images
                found = images.try_load(sample)
            yield found
        return
    arrived: SimpleQueue[Tensor | Unreadable | BaseException] = SimpleQueue()
    stopped = Event()

    def reading() -> None:
        try:
            for sample in samples:
                allowed.acquire()
                if stopped.is_set():
                    return
                arrived.put(images.try_load(sample))
        except BaseException as problem:  # raised where the images are waited for
            arrived.put(problem)

    reader = Thread(target=reading, name=f"reading {images.name}", daemon=True)
    reader.start()
    try:
        for sample in samples:
            try:
                one = arrived.get(timeout=timeout)
            except Empty:
                raise _late(images, [sample], timeout) from None
            if isinstance(one, BaseException):
                raise one
            yield one
    finally:
        stopped.set()
        allowed.release()
        reader.join(timeout=1)  # it may never end


def read(images: Images, samples: Sequence[int]) -> list[Tensor | Unreadable]:
    """Some images, or an error where one does not arrive."""
    return list(arriving(images, samples, TIMEOUT, Semaphore(len(samples))))


def _late(images: Images, samples: Sequence[int], timeout: float, reason: str = "") -> ImageError:
    """An error for images that did not arrive."""
    listed = ", ".join(f"{sample} ({printable(images.path(sample))})" for sample in samples[:8])
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    return ImageError(
        f"waited for image{'s' * (len(samples) > 1)} {listed}{more}: "
        f"{reason or f'nothing arrived for {timeout:g} s'}. Check the disk or network that is read and the memory "
        "that is free, try them alone (images.tensor(number)), and mend or remove what can't be read"
    )


def _collate(
    images: Images, expected: torch.Size, samples: Sequence[int], found: Iterable[Tensor | Unreadable]
) -> Batch:
    """Stack what can be read and has the expected shape."""
    good: list[tuple[int, Tensor]] = []
    lost: list[Unreadable] = []
    for sample, one in zip(samples, found):
        if isinstance(one, Unreadable):
            lost.append(one)
        elif one.shape == expected:
            good.append((sample, one))
        else:
            reason = (
                f"its shape {list(one.shape)} differs from {list(expected)} of the first image; "
                "resize and crop to one size in the transform"
            )
            lost.append(Unreadable(int(sample), printable(images.path(sample)), reason))
    stacked = torch.stack([tensor for _, tensor in good]) if good else torch.empty(0)
    return Batch(np.array([sample for sample, _ in good], dtype=np.int64), stacked, tuple(lost))


def batches(
    images: Images,
    samples: Sequence[int],
    *,
    timeout: float = TIMEOUT,
    run: Run = Run(),
) -> Generator[Batch, None, None]:
    """The given images, in the given order, in batches.

    The next batch is loaded while the caller computes, unless the images are drawn, or tensors in memory. A
    caller who stops early closes the generator, or drops it: then nothing more is loaded.

    Parameters
    ----------
    images, samples
        The data set, and the indices of the images wanted.
    timeout
        Seconds to wait for the next image, or, with workers, for the next batch.
    run
        Its ``batch_size``, of which the last batch may fall short; and its ``workers``, processes that load ahead, two
        batches each: 0 loads in a thread of this process, one batch ahead, and so does a process that can't have
        children.

    Raises
    ------
    ImageError
        If no image of the data set can be read; if none arrives for ``timeout`` seconds; or if a worker dies. Where
        that happens while the caller computes, torch may raise its own ``RuntimeError`` there.
    """
    expected, batch_size = images.example.shape, run.batch_size
    parts = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    if run.workers and not current_process().daemon:
        yield from _by_workers(images, expected, parts, run.workers, timeout)
        return
    allowed = Semaphore(batch_size)
    with closing(arriving(images, samples, timeout, allowed)) as found:
        for part in parts:
            some = list(islice(found, len(part)))
            allowed.release(batch_size)
            with torch.inference_mode(False):
                batch = _collate(images, expected, part, some)
            yield batch


def _by_workers(
    images: Images, expected: torch.Size, parts: list[Sequence[int]], workers: int, timeout: float
) -> Generator[Batch, None, None]:
    """Batches that processes load."""
    load = partial(_load, replace(images), expected)  # with a lock of its own: processes may be forked as one is held
    some: Any = parts  # a data set of them, as each process loads a whole one
    loader = iter(DataLoader(some, batch_size=None, num_workers=workers, collate_fn=load, timeout=timeout))
    for part in parts:
        try:
            batch = next(loader)
        except RuntimeError as problem:
            if not str(problem).startswith("DataLoader "):
                raise
            raise _late(images, part, timeout, str(problem)) from problem  # it timed out, or a worker was killed
        yield batch


def _load(images: Images, expected: torch.Size, samples: Sequence[int]) -> Batch:
    return _collate(images, expected, samples, map(images.try_load, samples))


def readable(
    images: Images,
    samples: Sequence[int],
    *,
    timeout: float = TIMEOUT,
    run: Run = Run(),
) -> Generator[Batch, None, None]:
    """As :func:`batches`, of images that can all be read.

    Parameters
    ----------
    images, samples, timeout, run
        As for :func:`batches`.

    Raises
    ------
    ImageError
        As there, and at the first batch with an image that can't be read.
    """
    found = batches(images, samples, timeout=timeout, run=run)
    with closing(found):
        for batch in found:
            for lost in batch.unreadable:
                raise lost.error()
            yield batch
