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
reaches the client. Dask computes what a lost worker had, elsewhere. What takes seconds whatever the size runs where the
client is; and so do sparse codes, of which no step can begin before the one before, and the sums that splits are fitted
to.

The network and the data set are sent to the workers by pickle: use clusters that you trust, and that trust you.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from pure_nb._imports import needed
from pure_nb.compute.blocks import Compute, load_or_compute_block
from pure_nb.compute.store import Arrays, Key, Store, write_atomically
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

with needed("cluster", "clusters need", ClusterError):
    import dask
    from dask.system import CPU_COUNT as CPU_COUNT  # which the command line asks for
    from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, as_completed
    from distributed.client import Future
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    from pure_nb.compute import _packing

S = TypeVar("S")
T = TypeVar("T")

RETRIES = 2
"""How often a task is tried again whose failure may pass: on a cluster, connections and devices come and go."""

AHEAD = 4
"""Tasks handed out for each thread of the workers: enough to keep them busy, few enough for their memory."""

ASKED = 1.0
"""Seconds between two questions for the threads of all workers, which take a thousand of them a millisecond."""

BRANCH = 32
"""Shards that are merged on the workers before anything else knows of them; their files are then one file."""


class Cluster(Client):  # type: ignore[misc]
    """A client of Dask that computes sweeps, blocks and tasks; one that made a cluster ends it with itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._pieces: dict[str, Future] = {}
        super().__init__(*arguments, **options)

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
        told: set[range] = set()
        tree = subtrees(cut, BRANCH)

        try:
            with _seen(self, store) as token:
                for attempt in self._attempts():
                    with attempt:
                        sent = self._sent(partial(_swept, job, store, token))
                        left = [branch for branch in tree if covered(branch) not in known]
                        with closing(self._handed_out(left, partial(self._branch, job, store, sent))) as finished:
                            for (own, images), future in finished:
                                if store is None:
                                    if own in tree:
                                        known[covered(own)] = _checked(future.result())
                                elif not store.path(
                                    "shard", job.key(covered(own))
                                ).exists():  # the worker kept none there
                                    save_part(job, own, store, _checked(future.result()))
                                if images and covered(own) not in told:
                                    told.add(covered(own))
                                    done(images)
                        break
        finally:
            with suppress(Exception):  # whatever is wrong was told by now
                if job.run.workers:
                    self.run(_packing.forget)
        return load_or_compute_part(job, cut, store, known=known)

    def _branch(
        self, job: Job, store: Store | None, sent: list[Future], branch: Sequence[range]
    ) -> dict[Future, tuple[Sequence[range], int]]:
        """A branch of the tree, on its way; its futures that are to be watched, and how many images are new in each."""
        watched: dict[Future, tuple[Sequence[range], int]] = {}

        def start(cut: Sequence[range]) -> Future:
            stored = stored_part(job, cut, store)
            if stored is not None:
                future = self.submit(lambda: stored, pure=False)
            elif len(cut) > 1:
                return self._begun(sent, *map(start, split_tree(cut)))
            else:
                future = self._begun(sent, cut)
            watched[future] = cut, len(covered(cut))
            return future

        watched.setdefault(start(branch), (branch, 0))
        return watched

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
        with _seen(self, store) as token:
            work = partial(_block, compute, store, token)
            for number, values in self.each(work, lambda number: (tasks[number],), todo):
                if store and not store.path("block", tasks[number][1]).exists():  # the worker does not see it
                    store.save_arrays("block", tasks[number][1], {"values": values})
                done(len(values))
                yield number, values

    def each(
        self, work: Callable[..., T], given: Callable[[int], tuple[Any, ...]], numbers: Sequence[int]
    ) -> Iterator[tuple[int, T]]:
        """What the workers make of each of some things, as it comes: its number, and the result.

        Parameters
        ----------
        work
            A pure function; whoever computes it is alone in its process.
        given
            The arguments for a number, asked for when it is its turn.
        numbers
            Of what is to be done.
        """
        left = list(numbers)
        for attempt in self._attempts():
            with attempt:
                sent = self._sent(work)

                def begin(number: int, sent: list[Future] = sent) -> dict[Future, int]:
                    return {self._begun(sent, *given(number)): number}

                with closing(self._handed_out(list(left), begin)) as finished:
                    for number, future in finished:
                        found = _checked(future.result())
                        left.remove(number)
                        yield number, found
                return

    def _begun(self, sent: list[Future], *given: Any) -> Future:
        """A task on its way: what was sent, of what is given."""
        return self._submitted(_task, sent, *given, retries=RETRIES, pure=False)

    def _submitted(self, *given: Any, **how: Any) -> Future:
        """As Dask's ``submit``, without its warning of what is large: networks and images are."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")
            return self.submit(*given, **how)

    def _sent(self, work: Callable[..., Any]) -> list[Future]:
        """Work on its way to the workers, once for all tasks; the networks and data sets in it once for all steps.

        It is kept by the scheduler, so no lost worker takes it.
        """
        packed, packs = _packing.packed((work, torch.get_num_threads()))
        futures = []
        for pack in (packed, *packs):
            # By its content: what is there already is not sent again, and a network that was changed is another.
            key = f"pure-nb-{hashlib.sha256(pack).hexdigest()}"
            future = self._pieces.pop(key, None)
            if future is None or future.cancelled():
                future = self._submitted(bytes, pack, key=key)
            futures.append(future)
            self._pieces[key] = future
        for key in list(self._pieces)[: -_packing.PIECES - len(futures)]:
            del self._pieces[key]
        return futures

    def _attempts(self) -> Iterator[AbstractContextManager[None]]:
        """Within each, something is tried; the next is for when the scheduler was lost and has come back."""
        return (self._tried(last) for last in (*[False] * RETRIES, True))

    @contextmanager
    def _tried(self, last: bool) -> Iterator[None]:
        """Failures of the cluster itself in words, but for one from which it comes back."""
        try:
            yield
        except (KilledWorker, CancelledError, CommClosedError, TimeoutError) as problem:
            if not last and not isinstance(problem, KilledWorker) and self._is_back():
                return
            said = " ".join(str(problem).split())  # Dask's words are several lines
            raise ClusterError(
                f"the cluster gave up ({type(problem).__name__}: {said}). Workers that die again and again mostly "
                "lack memory: give them more, or a smaller batch_size. What is finished is kept in the store, and the "
                "same call goes on from there"
            ) from problem

    def _is_back(self) -> bool:
        """Whether a scheduler that was lost comes back with a worker, while Dask's timeout for connections lasts."""
        last = monotonic() + self._timeout
        while monotonic() < last and self.status in {"connecting", "running"}:
            sleep(0.1)
            with suppress(TimeoutError, OSError):  # it may not have noticed yet
                if self.status == "running":
                    self.wait_for_workers(1, timeout=last - monotonic())
                    return True
        return False

    def _handed_out(
        self, tasks: Iterable[S], begin: Callable[[S], dict[Future, T]]
    ) -> Generator[tuple[T, Future], None, None]:
        """Futures as they finish, with what each is of; only as many tasks are begun as keep the workers busy."""
        todo, waiting = iter(tasks), as_completed()
        running: dict[Future, T] = {}
        most, asked = 0, -ASKED

        def more() -> None:
            nonlocal most, asked
            if monotonic() - asked > ASKED:  # more may come, as a queue lets them
                most, asked = AHEAD * max(1, sum(self.nthreads().values())), monotonic()
            while len(running) < most and (task := next(todo, None)) is not None:
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


_ALONE = threading.Lock()
"""Hooks belong to a network: a process whose threads share it computes one thing at a time."""


class _OfAWorker(Store):
    """A store where one need not keep anything: what a full disk does not take reaches the client, which keeps it."""

    def save_arrays(self, name: str, key: Key, arrays: Arrays, note: object = None) -> Path:
        with suppress(StoreError):
            return super().save_arrays(name, key, arrays, note)
        with suppress(StoreError):
            self.remove(name, key)  # or it would look as if it were there
        return self.path(name, key)


def _visible(store: Store | None, token: Path | None) -> Store | None:
    """The store, if this process sees its folder."""
    return _OfAWorker(token.parent) if store and token and token.exists() else None


def _task(sent: list[bytes], *given: Any) -> Any:
    """What a worker does: the work that was sent, alone in its process, of what is given.

    What is wrong with the images or the network stays so: such errors are results, and not a reason to try again.
    """
    for one in given:
        if isinstance(one, PureError):
            return one
    with _ALONE:
        work, threads = _packing.received(*sent)
        try:
            with threaded(threads):
                return work(*given)
        except PureError as problem:
            return problem


def _swept(job: Job, store: Store | None, token: Path | None, first: Any, second: Part | None = None) -> Part:
    """The part of a shard, or that of two neighbouring parts."""
    if second is not None:
        return merged(job, first, second)
    return load_or_compute_part(job, first, _visible(store, token))


def _block(
    compute: Compute, store: Store | None, token: Path | None, task: tuple[NDArray[Any], dict[str, object]]
) -> NDArray[Any]:
    return load_or_compute_block(compute, task, _visible(store, token))


def _checked(found: Any) -> Any:
    """What a worker has found, unless that is an error."""
    if isinstance(found, PureError):
        raise found
    return found
