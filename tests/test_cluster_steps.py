"""Every long step on a cluster: the bits of one process, also where a worker, its disk or the scheduler is lost."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.parallel import Parallel
from small import Items, noise, plain
from torch import nn
from torchvision.transforms import ToTensor

from pure_nb.benchmark import bench
from pure_nb.benchmark.contestants import Contestant, circuits_of
from pure_nb.benchmark.tasks import planted_task
from pure_nb.compute import blocks, store, sweep
from pure_nb.compute.sweep import shards
from pure_nb.errors import ArgumentError, ClusterError, EmbedderError, StoreError
from pure_nb.judges.embedders import load_embedder
from pure_nb.judges.evaluation import distance_table
from pure_nb.judges.vectors import Embedder, encoder, from_network, pixels
from pure_nb.parameters import Run
from pure_nb.show import atlas, pictures
from pure_nb.study import Study

distributed = pytest.importorskip("distributed")
cluster = pytest.importorskip("pure_nb.compute.cluster")

pytestmark = pytest.mark.timeout(120)  # as in test_cluster.py

LOCAL = {"threads_per_worker": 1, "processes": False, "protocol": "tcp://", "dashboard_address": None}
"""Workers that are threads of this process, since it takes long to start others: all else is the real thing."""


class Labelled(Items):
    """Four classes, as many as the network has outputs."""

    classes = ("a", "b", "c", "d")

    @property
    def targets(self) -> list[int]:
        return [number % 4 for number in range(len(self))]


def judge(run: Run) -> Embedder:
    return from_network(plain(1), size=12, run=run)


def distances(study: Study) -> bytes:
    vectors = {"PURE": study.circuits, "pixels": study.crops.embeddings(pixels(4))}
    table = distance_table(study.crops.embeddings(judge(study.run)), vectors, ks=(2, 3), run=study.run)
    return table.to_csv().encode()


def contest(study: Study) -> bytes:
    planted = planted_task(study, 3, self_merged=1, seed=1)
    table = bench.run(planted, [Contestant("PURE", circuits_of(rule="gradient"))])
    return table.drop(columns="seconds").to_csv().encode()


def pages(study: Study) -> bytes:
    """The atlas; its folder goes with the study's results, and two channels are drawn at once."""
    folder = study.store.folder / "atlas"  # type: ignore[union-attr]
    atlas.write(study, folder, count=4)
    return b"".join(f"{path.name}".encode() + path.read_bytes() for path in sorted(folder.rglob("*.*")))


STEPS: dict[str, Callable[[Study], bytes]] = {
    "references": lambda study: study.references.sample.tobytes() + study.references.score.tobytes(),
    "classes": lambda study: study.classes.statistics.relevant.tobytes(),
    "circuits": lambda study: study.circuits.tobytes(),
    "boxes": lambda study: study.crops.boxes.tobytes(),
    "embeddings": lambda study: study.crops.embeddings(judge(study.run)).tobytes(),
    "virtual": lambda study: b"".join(part.labels.tobytes() + part.centroids.tobytes() for part in study.virtual),
    "distances": distances,
    "bench": contest,
    "atlas": pages,
}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "shards", partial(shards, size=4))
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr(blocks, "NEURONS", 2)
    monkeypatch.setattr(bench, "DRAWS", 9)
    monkeypatch.setattr(pictures, "SENT", 8)
    monkeypatch.setattr("sklearn.utils.parallel.Parallel", lambda n_jobs: Parallel(n_jobs=1))  # starts no processes


def study(folder: Path, **how: Any) -> Study:
    images = Labelled(noise(24).sigmoid())
    options: dict[str, Any] = {"n_references": 6, "n_clusters": 2, "batch_size": 4, "progress": False}
    return Study.from_model(plain(), images, "4", "2", store=folder, **options | how)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    known: dict[str, bytes] = {}

    def of(step: str) -> bytes:
        if step not in known:
            known[step] = STEPS[step](study(tmp_path_factory.mktemp("here")))
        return known[step]

    return of


@pytest.fixture
def client() -> Iterator[Any]:
    with distributed.LocalCluster(n_workers=2, **LOCAL) as local, cluster.Cluster(local) as found:
        yield found


def first_time(monkeypatch: pytest.MonkeyPatch, work: Callable[[Any], object]) -> list[str]:
    """The worker that gets the second task does something else before; returns which did."""
    real, begun, did = cluster._packing.received, [], []

    def received(*given: Any) -> Any:
        worker = distributed.get_worker()
        begun.append(worker.address)
        if len(begun) == 2:
            did.append(worker.address)
            work(worker)
        return real(*given)

    monkeypatch.setattr(cluster._packing, "received", received)
    return did


@pytest.mark.parametrize("step", STEPS)
def test_to_the_bit_though_a_worker_is_lost(
    tmp_path: Path, step: str, client: Any, expected: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(worker: Any) -> None:
        worker.loop.add_callback(partial(worker.close, executor_wait=False))
        time.sleep(0.5)  # it takes what it has found so far with it

    did = first_time(monkeypatch, leave)
    assert STEPS[step](study(tmp_path, client=client)) == expected(step)
    assert did
    assert did[0] not in client.scheduler_info()["workers"]


@pytest.mark.parametrize("step", STEPS)
def test_to_the_bit_though_the_disk_of_a_worker_is_full(
    tmp_path: Path, step: str, client: Any, expected: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the run stop: what it can't keep reaches the client, which keeps it."""
    real, full = store.write_atomically, []

    def write(path: Path, *rest: Any) -> Any:
        try:
            unlucky = distributed.get_worker().name == 0
        except ValueError:  # this is the client
            unlucky = False
        if unlucky:
            full.append(path.name)
            raise StoreError(f"{path} can't be written: no space left on device")
        return real(path, *rest)

    monkeypatch.setattr(store, "write_atomically", write)
    assert STEPS[step](study(tmp_path, client=client)) == expected(step)
    assert full


class Site:
    """A scheduler, a process of its own that can be killed, and a worker for it."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.process = self.started()

    def started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", str(self.port)]
        options = ["--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)

    def work(self, client: Any) -> None:
        async def start() -> Any:
            return await distributed.Worker(self.address, nthreads=1, dashboard=False)

        client.loop.add_callback(start)

    def restart(self, client: Any) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self.started()
        self.work(client)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.process.kill()
    found.process.wait()


DAILY = ("references", "circuits", "virtual")
"""One of each kind: shards, blocks of pairs, blocks of neurons."""


@pytest.mark.parametrize("step", [s if s in DAILY else pytest.param(s, marks=pytest.mark.nightly) for s in STEPS])
def test_to_the_bit_though_the_scheduler_is_lost_and_comes_back(
    tmp_path: Path, step: str, site: Site, expected: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.connect(site.address) as client:
        site.work(client)

        def lost(worker: Any) -> None:
            threading.Thread(target=site.restart, args=(client,)).start()
            time.sleep(0.5)

        did = first_time(monkeypatch, lost)
        assert STEPS[step](study(tmp_path, client=client)) == expected(step)
        assert did


def test_the_network_and_the_images_travel_once(tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, real = [], cluster._packing.packed

    def packed(thing: object) -> Any:
        found = real(thing)
        sent.append(found[1])
        return found

    monkeypatch.setattr(cluster._packing, "packed", packed)
    submitted: list[Any] = []
    submit = client.submit

    def noted(work: Any, *given: Any, **how: Any) -> Any:
        submitted.append(how.get("key"))
        return submit(work, *given, **how)

    monkeypatch.setattr(client, "submit", noted)
    of = study(tmp_path, client=client)
    of.crops.boxes, of.virtual, of.crops.embeddings(judge(of.run))
    pieces = {f"pure-nb-{cluster.hashlib.sha256(pack).hexdigest()}" for packs in sent for pack in packs}
    assert len(sent) == 5  # references, circuits, boxes, virtual neurons, vectors of crops
    assert len(pieces) == 3  # the network, the images, the judge's network
    assert [submitted.count(piece) for piece in pieces] == [1, 1, 1]


def test_what_travels_apart_is_one_thing_again() -> None:
    model = plain()
    model.train()
    packed, packs = cluster._packing.packed({"layer": model[2], "model": model, "inner": nn.Sequential(model[0])})
    assert len(packs) == 2
    found = cluster._packing.received(packed, *packs)
    assert found["layer"] is found["model"][2]
    assert cluster._packing.packed(model[0])[1] == cluster._packing.packed(model[0].requires_grad_(False))[1]
    with torch.no_grad():
        model[0].bias += 1
    assert cluster._packing.packed(model)[1] != [packs[0]]


def test_an_embedder_runs_where_the_workers_do() -> None:
    """Here it is on the CPU; a worker, to which a run comes without its client, takes it to its own device."""

    class Moved(nn.Identity):
        def to(self, device: str) -> Any:  # type: ignore[override]
            raise LookupError(device)

    run = Run()
    object.__setattr__(run, "device", "cuda")
    picture = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(LookupError, match="cuda"):
        encoder(lambda images: images, ToTensor(), run, Moved())([picture])


def test_words(tmp_path: Path, client: Any) -> None:
    words, judge = ["sun", "cloud", "moon"] * 100, load_embedder("mini-clip")
    found = study(tmp_path, client=client).crops.word_vectors(judge, words)
    assert found.tobytes() == judge.text(words).tobytes()


@pytest.mark.parametrize("name", ["mini-clip", "mini-dino", "pixels"])
def test_embedders_that_ship_can_be_sent(name: str) -> None:
    pictures = [np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (24, 40)]
    embedder = load_embedder(name)
    packed, packs = cluster._packing.packed(embedder)
    assert len(packs) == (name != "pixels")
    again = cluster._packing.received(packed, *packs)
    assert again.images(pictures).tobytes() == embedder.images(pictures).tobytes()


def test_embedders_of_several_lengths(tmp_path: Path, client: Any) -> None:
    """Also where each block is another worker's."""

    def odd(pictures: Any) -> Any:
        return np.ones((len(pictures), 3 + (threading.get_ident() % 97)))

    with pytest.raises((ArgumentError, EmbedderError), match=r"one shape|several lengths"):
        study(tmp_path, client=client).crops.embeddings(Embedder("odd", "odd", odd))


def test_a_scheduler_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = Site()
    client = cluster.connect(site.address)
    monkeypatch.setattr(client, "_timeout", 2)
    site.work(client)
    did = first_time(monkeypatch, lambda worker: (site.process.kill(), site.process.wait()))
    with pytest.raises(ClusterError, match=r"gave up .*the same call goes on from there"):
        study(tmp_path, client=client).references  # noqa: B018
    assert did
