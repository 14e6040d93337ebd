"""Images as they are read: in batches, in threads or processes beside the calling one.

One image of a data set is read at a time, so that loading can overlap with computing, and an image that never arrives
ends in an error after a timeout.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import current_process
from queue import Empty, SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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
        if self.reason.startswith(IsADirectoryError.__name__):
            return ImageError(f"image {self.sample} ({self.path}) is a folder: name a picture in it")
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

    A thread beside the caller reads them, unless they are at hand. It stops with the generator, so that a caller who
    goes away leaves nothing behind that reads, and waits for whoever comes next; one that hangs is left to itself.

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

    over = _Reader.free().start_on(reading, f"reading {images.name}")
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
        over.wait(timeout=1)  # it may never end


class _Reader(Thread):
    """A thread that reads for one caller after the other, of whom most want a single image.

    It is none of a ``ThreadPoolExecutor``: one that hangs would keep the process alive.
    """

    idle: ClassVar[deque[_Reader]] = deque()
    """Those that wait; after a fork, which takes no threads along, none."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._work: SimpleQueue[tuple[Callable[[], None], str, Event]] = SimpleQueue()
        self.start()

    @classmethod
    def free(cls) -> _Reader:
        """One that waits, or a new one where all are reading, or hang."""
        try:
            return cls.idle.pop()
        except IndexError:
            return cls()

    def start_on(self, work: Callable[[], None], name: str) -> Event:
        """Have some work done, beside the caller; what is returned is set when it is over."""
        over = Event()
        self._work.put((work, name, over))
        return over

    def run(self) -> None:
        """Do what there is to do, for as long as the process lives."""
        while True:
            work, self.name, over = self._work.get()
            work()
            self.name = "waits to read"
            del work  # and with it the images
            self.idle.append(self)
            over.set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Reader.idle.clear)


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
    loaders: list[Loader] | None = None,
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
    loaders
        Where the workers are kept for the next call with the same images; they end when it is cleared. If None, they
        end with the last batch.

    Raises
    ------
    ImageError
        If no image of the data set can be read; if none arrives for ``timeout`` seconds; or if a worker dies. Where
        that happens while the caller computes, torch may raise its own ``RuntimeError`` there.
    """
    expected, batch_size = images.example.shape, run.batch_size
    parts = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    if run.workers and not current_process().daemon:
        yield from _by_workers(images, expected, parts, run, timeout, [] if loaders is None else loaders)
        return
    allowed = Semaphore(batch_size)
    with closing(arriving(images, samples, timeout, allowed)) as found:
        for part in parts:
            some = list(islice(found, len(part)))
            allowed.release(batch_size)
            with torch.inference_mode(False):
                batch = _collate(images, expected, part, some)
            yield batch


@dataclass(frozen=True, eq=False)
class _Loading(Dataset[Batch]):
    """What a worker loads: the batch of some samples."""

    images: Images
    expected: torch.Size

    def __getitem__(self, samples: Sequence[int]) -> Batch:
        return _collate(self.images, self.expected, samples, map(self.images.try_load, samples))


Loader = tuple[list[Sequence[int]], "DataLoader[Batch]"]
"""Processes that load images, and the list of the samples that they are to load next."""


def _by_workers(
    images: Images, expected: torch.Size, parts: list[Sequence[int]], run: Run, timeout: float, loaders: list[Loader]
) -> Generator[Batch, None, None]:
    """Batches that processes load, which are kept for the next call if none fails and the caller does not go away."""
    asked: list[Sequence[int]] = []
    if loaders:
        asked, loader = loaders.pop()
    else:
        own = _Loading(replace(images), expected)  # with a lock of its own: processes may be forked as one is held
        how: Any = {"batch_size": None, "num_workers": run.workers, "timeout": timeout, "persistent_workers": True}
        loader = DataLoader(own, sampler=asked, **how)
    asked[:], found = parts, None
    for part in parts:
        try:
            found = iter(loader) if found is None else found
            batch = next(found)
        except RuntimeError as problem:
            if not str(problem).startswith("DataLoader "):
                raise
            raise _late(images, part, timeout, str(problem)) from problem  # it timed out, or a worker was killed
        yield batch
    loaders.append((asked, loader))


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
