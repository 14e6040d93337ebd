"""The same work on many processes: one machine's, or a cluster's, through Dask (``pip install pure-nb[cluster]``).

A client from :func:`connect` is all that a study needs to leave the process it was made in::

    from pure_nb.compute.cluster import connect

    with connect("local:4") as client:
        study = pure_nb.load_study("imagenet-resnet50", client=client)
        study.neurons

What runs is what runs here: :func:`pure_nb.compute.sweep.load_or_compute_part` for each shard and
:func:`pure_nb.compute.blocks.load_or_compute_block` for each block, pure functions both. Parts are merged on the
workers, along the tree of :mod:`pure_nb.compute.sweep`, so that the result is that of a single process to the bit.
Whatever is finished is kept in the study's store: by the workers themselves where they see its folder, else as it
reaches the client. Dask computes what a lost worker had, elsewhere.

The network and the data set are sent to the workers by pickle: use clusters that you trust, and that trust you.
"""

from __future__ import annotations

import os
import pickle
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from pure_nb._imports import needed
from pure_nb.compute.blocks import Compute, load_or_compute_block
from pure_nb.compute.store import Store, write_atomically
from pure_nb.compute.sweep import (
    Job,
    Part,
    covered,
    load_or_compute_part,
    merged,
    save_part,
    split_tree,
    stored_part,
    subtrees,
    threaded,
)
from pure_nb.errors import ClusterError, PureError, StoreError
from pure_nb.network.models import USER

with needed("cluster", "clusters need", ClusterError):
    import cloudpickle
    import dask
    from dask.system import CPU_COUNT as CPU_COUNT  # which the command line asks for
    from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, as_completed
    from distributed.client import Future
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

S = TypeVar("S")
T = TypeVar("T")

RETRIES = 2
"""How often a task is tried again whose failure may pass: on a cluster, connections and devices come and go."""

AHEAD = 4
"""Tasks handed out for each thread of the workers: enough to keep them busy, few enough for their memory."""

BRANCH = 32
"""Shards that are merged on the workers before anything else knows of them; their files are then one file."""


class Cluster(Client):  # type: ignore[misc]
    """A client of Dask that computes sweeps and blocks; one that made a cluster ends it with itself."""

    def sweep_on_cluster(
        self, job: Job, cut: Sequence[range], store: Store | None, done: Callable[[int], object]
    ) -> Part:
        """A sweep's part for all shards, computed and merged on the workers.

        Parameters
        ----------
        self, job, cut
            Where, what, and the shards.
        store
            Where finished shards are kept.
        done
            Called with the number of images of each finished shard.
        """
        known: dict[range, Part] = {}
        tree = subtrees(cut, BRANCH)
        with _failing(), _seen(self, store) as token:
            sent = _sent(self, job)

            def start(cut: Sequence[range], watched: dict[Future, tuple[Sequence[range], int]]) -> Future:
                """A part of the tree, on its way; its shards, and how many images they have, are to be watched."""
                stored = stored_part(job, cut, store)
                if stored is not None:
                    future = self.submit(lambda: stored, pure=False)
                elif len(cut) > 1:
                    halves = [start(half, watched) for half in split_tree(cut)]
                    return self.submit(_merged, sent, *halves, retries=RETRIES, pure=False)
                else:
                    future = self.submit(_part, sent, cut, store, token, retries=RETRIES, pure=False)
                watched[future] = cut, len(covered(cut))
                return future

            def begin(branch: Sequence[range]) -> dict[Future, tuple[Sequence[range], int]]:
                watched: dict[Future, tuple[Sequence[range], int]] = {}
                watched.setdefault(start(branch, watched), (branch, 0))
                return watched

            with closing(self._handed_out(tree, begin)) as finished:
                for (own, images), future in finished:
                    done(images)
                    if store is None:
                        if own in tree:
                            known[covered(own)] = _checked(future.result())
                    elif not store.path("shard", job.key(covered(own))).exists():  # the worker did not keep it there
                        save_part(job, own, store, _checked(future.result()))
        return load_or_compute_part(job, cut, store, known=known)

    def blocks(
        self,
        compute: Compute,
        tasks: Sequence[tuple[NDArray[Any], dict[str, object]]],
        store: Store | None,
        done: Callable[[int], object],
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Blocks computed by the workers, as they come: the number of each, and its values.

        Parameters
        ----------
        compute, tasks
            As for :func:`pure_nb.compute.blocks.map_in_blocks`, which calls this; the pairs of each block, and its key.
        store
            Where finished blocks are kept.
        done
            Called with the number of pairs of each finished block.
        """
        todo = []
        for number, (block, key) in enumerate(tasks):
            saved = store.load_arrays("block", key) if store else None
            if saved is None:
                todo.append(number)
            else:
                done(len(block))
                yield number, saved[0]["values"]
        with _failing(), _seen(self, store) as token:
            sent = _sent(self, (compute, torch.get_num_threads()))

            def begin(number: int) -> dict[Future, int]:
                return {self.submit(_block, sent, tasks[number], store, token, retries=RETRIES, pure=False): number}

            with closing(self._handed_out(todo, begin)) as finished:
                for number, future in finished:
                    values = _checked(future.result())
                    if store and not store.path("block", tasks[number][1]).exists():  # the worker does not see it
                        store.save_arrays("block", tasks[number][1], {"values": values})
                    done(len(values))
                    yield number, values

    def _handed_out(
        self, tasks: Iterable[S], begin: Callable[[S], dict[Future, T]]
    ) -> Generator[tuple[T, Future], None, None]:
        """Futures as they finish, with what each is of; only as many tasks are begun as keep the workers busy."""
        todo, waiting = iter(tasks), as_completed()
        running: dict[Future, T] = {}

        def more() -> None:
            # Threads of all workers that are there now; more may come, as a queue lets them.
            while (
                len(running) < AHEAD * max(1, sum(self.nthreads().values())) and (task := next(todo, None)) is not None
            ):
                begun = begin(task)
                running.update(begun)
                waiting.update(begun)

        try:
            more()
            for future in waiting:
                yield running.pop(future), future
                more()
        finally:
            self.cancel(list(running), force=True)

    def close(self, *arguments: Any, **options: Any) -> Any:
        """Leave the cluster, and end it if it was made for this client."""
        cluster = self.cluster
        closed = super().close(*arguments, **options)
        if cluster is not None:
            cluster.close()
        return closed


def connect(where: str = "local", *, device: str = "cpu") -> Cluster:
    """A client of a cluster; closing it, by ``with`` or ``close()``, also ends a cluster that was made for it.

    Parameters
    ----------
    where
        ``"local"``: processes on this machine, one for each GPU if the device is ``cuda``, else one for each core;
        ``"local:4"``: that many. ``"slurm:8"``: eight jobs of SLURM, renewed when they end, through dask-jobqueue, with
        what Dask's own configuration says of them (``~/.config/dask/jobqueue.yaml``). Anything else is the address of
        a scheduler, ``"tcp://host:8786"``, or the path of its scheduler file.
    device
        Where networks will run.

    Raises
    ------
    ClusterError
        If there is no such cluster.

    Examples
    --------
    >>> with connect("local:1") as cluster:
    ...     study.replace(client=cluster).references.sample.shape
    (32, 6)
    """
    kind, _, count = where.partition(":")
    if kind in ("local", "slurm") and count and not (count.isdecimal() and int(count)):
        raise ClusterError(f"how many workers is {where!r}? Expected for instance '{kind}:4'")
    # Processes of workers that load images are children of theirs, which daemons may not have.
    dask.config.set({"distributed.worker.daemon": False})
    try:
        if kind == "local":
            return Cluster(_local(int(count or 0), device))
        if kind == "slurm":
            return Cluster(_slurm(int(count or 1)))
        if where.endswith(".json"):
            return Cluster(scheduler_file=where)
        return Cluster(where)
    except (OSError, ValueError, TimeoutError) as problem:
        raise ClusterError(
            f"there is no cluster at {where!r}: {problem}. Expected 'local', 'local:4', 'slurm:8', or the address of a "
            "running scheduler such as 'tcp://host:8786'"
        ) from problem


def _local(count: int, device: str) -> SpecCluster:
    """Processes on this machine, each with one thread and, if they use GPUs, one of those that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    if not device.startswith("cuda") or not gpus:
        return LocalCluster(n_workers=count or CPU_COUNT, threads_per_worker=1)
    workers = {
        number: {
            "cls": Nanny,
            "options": {"nthreads": 1, "env": {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]}},
        }
        for number in range(count or len(gpus))
    }
    return SpecCluster(workers=workers, scheduler={"cls": Scheduler, "options": {"dashboard": True}})


def _slurm(count: int) -> SpecCluster:
    with needed("cluster", "SLURM needs", ClusterError):
        from dask_jobqueue import SLURMCluster
    prologue = dask.config.get("jobqueue.slurm.job-script-prologue", None) or []
    cluster = SLURMCluster(job_script_prologue=[*prologue, "export DASK_DISTRIBUTED__WORKER__DAEMON=False"])
    cluster.adapt(minimum_jobs=count, maximum_jobs=count)  # and not scale: jobs end, and others must take their place
    return cluster


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
def _seen(client: Client, store: Store | None) -> Iterator[Path | None]:
    """A file in the store's folder by which workers know it: those that don't see it keep nothing there."""
    client.wait_for_workers(1)
    if store is None:
        yield None
        return
    token = (store.folder / f".seen-{secrets.token_hex(8)}").absolute()
    write_atomically(token, lambda path: path.touch())
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


@contextmanager
def _failing() -> Iterator[None]:
    """Failures of the cluster itself in words."""
    try:
        yield
    except (KilledWorker, CancelledError, CommClosedError, TimeoutError) as problem:
        raise ClusterError(
            f"the cluster gave up ({type(problem).__name__}: {problem}). Workers that die again and again mostly lack "
            "memory: give them more, or a smaller batch_size. What is finished is kept in the store, and the same call "
            "goes on from there"
        ) from problem


_ALONE = threading.Lock()
"""Hooks belong to a network: a process whose threads share it computes one thing at a time."""


@lru_cache(maxsize=1)
def _received(sent: bytes) -> Any:
    return pickle.loads(sent)


def _visible(store: Store | None, token: Path | None) -> Store | None:
    """The store, if this process sees its folder."""
    return Store(token.parent) if store and token and token.exists() else None


def _on_a_worker(work: Callable[..., Any]) -> Callable[..., Any]:
    """Work of a task, alone in its process, on what was sent.

    What is wrong with the images or the network stays so: such errors are results, and not a reason to try again.
    """

    @wraps(work)
    def task(sent: bytes, *given: Any) -> Any:
        for one in given:
            if isinstance(one, PureError):
                return one
        with _ALONE:
            try:
                return work(_received(sent), *given)
            except StoreError:
                raise  # another worker, or another try, may write it
            except PureError as problem:
                return problem

    return task


@_on_a_worker
def _part(job: Job, cut: Sequence[range], store: Store | None, token: Path | None) -> Part:
    return load_or_compute_part(job, cut, _visible(store, token))


@_on_a_worker
def _merged(job: Job, first: Part, second: Part) -> Part:
    return merged(job, first, second)


@_on_a_worker
def _block(
    sent: tuple[Compute, int],
    task: tuple[NDArray[Any], dict[str, object]],
    store: Store | None,
    token: Path | None,
) -> NDArray[Any]:
    compute, threads = sent
    with threaded(threads):
        return load_or_compute_block(compute, task, _visible(store, token))


def _checked(found: Any) -> Any:
    """What a worker has found, unless that is an error."""
    if isinstance(found, PureError):
        raise found
    return found
