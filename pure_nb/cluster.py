"""The same work on many processes: one machine's, or a cluster's, through Dask (``pip install pure-nb[cluster]``).

A client of Dask is all that a study needs to leave the process it was made in::

    from pure_nb.cluster import connect

    with connect("local:4") as client:
        study = pure_nb.load_study("imagenet-resnet50", client=client)
        study.neurons

What runs is what runs here: :func:`pure_nb.sweep.kept_part` for each shard and :func:`pure_nb.blocks.kept_block` for
each block, pure functions both. Parts are merged on the workers, along the tree of :mod:`pure_nb.sweep`, so that the
result is that of a single process to the bit. Whatever is finished is kept in the study's store, by the workers
themselves where they see its folder. Dask computes what a lost worker had, elsewhere.

The network and the data set are sent to the workers once, by pickle: use clusters that you trust, and that trust you.
"""

from __future__ import annotations

import os
import pickle
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, as_completed
from distributed.client import Future
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker
from numpy.typing import NDArray

from pure_nb.blocks import Compute, kept_block
from pure_nb.models import USER
from pure_nb.store import Store, write_atomically
from pure_nb.sweep import ClusterError, Job, Part, halved, kept_part, merged, span

RETRIES = 2
"""How often a failed task is tried again: on a cluster, files and devices fail that are there a moment later."""

AHEAD = 4
"""Blocks handed out for each thread of the workers: enough to keep them busy, few enough for their memory."""


def connect(where: str = "local", *, device: str = "cpu") -> Client:
    """A client of a cluster; it is closed, and with it a cluster made for it, by ``with`` or ``client.close()``.

    Parameters
    ----------
    where
        ``"local"``: processes on this machine, one for each GPU if the device is ``cuda``, else one for each core;
        ``"local:4"``: that many. ``"slurm:8"``: eight jobs of SLURM, through dask-jobqueue, with what Dask's own
        configuration says of them (``~/.config/dask/jobqueue.yaml``). Anything else is the address of a scheduler,
        ``"tcp://host:8786"``, or the path of its scheduler file.
    device
        Where networks will run.

    Raises
    ------
    ClusterError
        If there is no such cluster.
    """
    kind, _, count = where.partition(":")
    if kind in ("local", "slurm") and count and not (count.isdecimal() and int(count)):
        raise ClusterError(f"how many workers is {where!r}? Expected for instance '{kind}:4'")
    try:
        if kind == "local":
            return Client(_local(int(count or 0), device))
        if kind == "slurm":
            return Client(_slurm(int(count or 1)))
        if where.endswith(".json"):
            return Client(scheduler_file=where)
        return Client(where)
    except (OSError, ValueError, TimeoutError) as problem:
        raise ClusterError(
            f"there is no cluster at {where!r}: {problem}. Expected 'local', 'local:4', 'slurm:8', or the address of a "
            "running scheduler such as 'tcp://host:8786'"
        ) from problem


def _local(count: int, device: str) -> SpecCluster:
    """Processes on this machine, each with one thread and, if they use GPUs, one of them."""
    gpus = torch.cuda.device_count() if device.startswith("cuda") else 0
    if not gpus:
        return LocalCluster(n_workers=count or os.cpu_count(), threads_per_worker=1)
    workers = {
        number: {
            "cls": Nanny,
            "options": {"nthreads": 1, "env": {"CUDA_VISIBLE_DEVICES": str(number % gpus)}},
        }
        for number in range(count or gpus)
    }
    return SpecCluster(workers=workers, scheduler={"cls": Scheduler, "options": {"dashboard": True}})


def _slurm(count: int) -> SpecCluster:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as problem:
        raise ClusterError("SLURM needs dask-jobqueue: pip install 'pure-nb[cluster]'") from problem
    cluster = SLURMCluster()
    cluster.scale(jobs=count)
    return cluster


def swept(client: Client, job: Job, cut: Sequence[range], store: Store | None, done: Callable[[int], object]) -> Part:
    """A sweep's part for all shards, computed and merged on the workers.

    Parameters
    ----------
    client, job, cut
        Where, what, and the shards.
    store
        Where finished shards are kept, if the workers see the folder.
    done
        Called with the number of images of each finished shard.
    """
    with _failing(client), _seen(client, store) as theirs:
        sent = _sent(client, job)
        leaves: dict[Future, int] = {}

        def part_of(cut: Sequence[range]) -> Future:
            samples = span(cut)
            if len(cut) == 1 or (theirs and theirs.path("shard", job.key(samples)).exists()):
                future = client.submit(_part, sent, cut, theirs, retries=RETRIES, pure=False)
                leaves[future] = len(samples)
                return future
            return client.submit(_merged, sent, *(part_of(half) for half in halved(cut)), pure=False)

        whole = part_of(cut)
        try:
            for future in as_completed(list(leaves)):
                if future.status == "finished":
                    done(leaves.pop(future))
                else:
                    future.result()  # raises what the worker raised
            part: Part = whole.result()
        finally:
            client.cancel([whole, *leaves], force=True)
    return part


def blocks(
    client: Client,
    compute: Compute,
    tasks: Sequence[tuple[NDArray[Any], dict[str, object]]],
    store: Store | None,
    done: Callable[[int], object],
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Blocks computed by the workers, as they come: the number of each, and its values.

    Parameters
    ----------
    client
        Where.
    compute, tasks
        As for :func:`pure_nb.blocks.by_blocks`, which calls this; the pairs of each block, and its key.
    store
        Where finished blocks are kept: by the workers, if they see the folder, else as they come.
    done
        Called with the number of pairs of each finished block.
    """
    with _failing(client), _seen(client, store) as theirs:
        sent = _sent(client, (compute, torch.get_num_threads()))
        waiting = iter(range(len(tasks)))
        numbers: dict[Future, int] = {}

        def submit(number: int) -> Future:
            future = client.submit(_block, sent, tasks[number], theirs, retries=RETRIES, pure=False)
            numbers[future] = number
            return future

        window = AHEAD * max(1, sum(client.nthreads().values()))
        running = as_completed([submit(number) for number, _ in zip(waiting, range(window))])
        try:
            for future in running:
                number, values = numbers.pop(future), future.result()
                if store and not theirs:
                    store.save_arrays("block", tasks[number][1], {"values": values})
                done(len(values))
                for following in waiting:
                    running.add(submit(following))
                    break
                yield number, values
        finally:
            client.cancel(list(numbers), force=True)


def _sent(client: Client, thing: object) -> Future:
    """A thing on its way to the workers, once and for all tasks; kept by the scheduler, so no lost worker takes it."""
    for name, module in list(sys.modules.items()):
        if name.startswith(USER):  # a user's own file, which workers can't import
            cloudpickle.register_pickle_by_value(module)
    packed = cloudpickle.dumps(thing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")
        return client.submit(bytes, packed, pure=False)


@contextmanager
def _seen(client: Client, store: Store | None) -> Iterator[Store | None]:
    """The store, if all workers see its folder, so that they keep there what they finish."""
    if store is None:
        yield None
        return
    token = store.folder / f".seen-{secrets.token_hex(8)}"
    write_atomically(token, lambda path: path.touch())
    try:
        yield Store(store.folder.absolute()) if _visible(client, token.absolute()) else None
    finally:
        token.unlink(missing_ok=True)


def _visible(client: Client, path: Path) -> bool:
    """Whether all workers see a file."""
    seen = client.run(Path.exists, path)
    return bool(seen) and all(seen.values())


@contextmanager
def _failing(client: Client) -> Iterator[None]:
    """Failures of the cluster itself in words."""
    try:
        yield
    except (KilledWorker, CancelledError, CommClosedError, TimeoutError) as problem:
        raise ClusterError(
            f"the cluster gave up ({type(problem).__name__}: {problem}). Workers that die again and again mostly lack "
            "memory: give them more, or a smaller batch_size. What is finished is kept, and the same call goes on from "
            "there"
        ) from problem


_ALONE = threading.Lock()
"""Hooks belong to a network: a process whose threads share it computes one thing at a time."""


@lru_cache(maxsize=2)
def _received(sent: bytes) -> Any:
    return pickle.loads(sent)


def _part(sent: bytes, cut: Sequence[range], store: Store | None) -> Part:
    with _ALONE:
        return kept_part(_received(sent), cut, store)


def _merged(sent: bytes, first: Part, second: Part) -> Part:
    return merged(_received(sent), first, second)


def _block(sent: bytes, task: tuple[NDArray[Any], dict[str, object]], store: Store | None) -> NDArray[Any]:
    with _ALONE:
        threads = torch.get_num_threads()
        compute, wanted = _received(sent)
        torch.set_num_threads(wanted)
        try:
            return kept_block(compute, task, store)
        finally:
            torch.set_num_threads(threads)
