"""Many processes: the bits of one, whoever computes, in whatever order, and whoever dies."""

from __future__ import annotations

import os
import pickle
import random
import signal
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from small import Items, noise, plain
from torch import Tensor
from torch.utils.data import TensorDataset

from pure_nb.compute import blocks, sweep
from pure_nb.compute.store import Store
from pure_nb.compute.sweep import Job, Part, covered, load_or_compute_part, merged, shard_part, shards, split_tree
from pure_nb.errors import ClusterError, ImageError
from pure_nb.images.data import Images
from pure_nb.loading import load_model
from pure_nb.methods.circuits import circuits
from pure_nb.methods.references import TopReferences
from pure_nb.methods.relevance import ClassRelevance
from pure_nb.parameters import Run
from pure_nb.study import Study

dask = pytest.importorskip("dask")
cluster = pytest.importorskip("pure_nb.compute.cluster")

pytestmark = pytest.mark.timeout(120)  # processes start as fast as a busy machine lets them

COUNT = 45
LABELS = np.arange(COUNT) % 4


class Late(Items):
    """Images that come after a random while, so that shards are finished in another order each time."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(random.random() / 200)
        return super().__getitem__(index)


class Deadly(Items):
    """Kills the process that reads an image, unless that was tried before."""

    def __init__(self, images: Tensor, deadly: int, marker: Path) -> None:
        super().__init__(images)
        self.deadly, self.marker, self.home = deadly, marker, os.getpid()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.deadly and os.getpid() != self.home and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with cluster.connect("local:2") as found:
        yield found


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "shards", partial(shards, size=4))
    monkeypatch.setattr(blocks, "BLOCK", 8)


def accumulators() -> list[Any]:
    own = ClassRelevance("4", "2", LABELS, 4, replicates=5)
    return [TopReferences("4", 5), own]


def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the store's folder one that workers do not see."""
    monkeypatch.setattr(cluster, "_seen", lambda client, store: nullcontext(None))


def job(images: Any = None, **how: Any) -> Job:
    return Job(plain(), Images(images or Items(noise(COUNT))), accumulators(), run=Run(batch_size=4, **how))


def bits(part: Part) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in part.arrays.items()}


def swept(images: Any = None, store: Store | None = None, **how: Any) -> tuple[dict[str, bytes], list[int]]:
    found = accumulators()
    # The graph is kept from one layer in a pass, and ARVs through another layer need it from there.
    run = Run(batch_size=4, progress=False, **how)
    lost = sweep.sweep(plain(), Images(images or Items(noise(COUNT))), found, store=store, run=run)
    return bits(Part.of(found, [])), [u.sample for u in lost]


def in_another_order(pieces: int, seed: int) -> Part:
    """The same pass by a pool of plain processes: shards dealt out at random, merged as the tree says."""
    task, cut = job(), shards(COUNT, 4, 4)
    dealt = list(range(len(cut)))
    random.Random(seed).shuffle(dealt)
    found: dict[int, Part] = {}
    with ProcessPoolExecutor(pieces, mp_context=get_context("spawn")) as pool:
        tasks = {pool.submit(shard_part, task, cut[number]): number for number in dealt}
        for future in as_completed(tasks):
            found[tasks[future]] = future.result()

    def joined(numbers: range) -> Part:
        if len(numbers) == 1:
            return found[numbers[0]]
        first, second = split_tree([range(n, n + 1) for n in numbers])
        return merged(task, joined(covered(first)), joined(covered(second)))

    return joined(range(len(cut)))


def test_a_pool_of_plain_processes() -> None:
    expected = bits(load_or_compute_part(job(), shards(COUNT, 4, 4)))
    assert bits(in_another_order(2, 0)) == expected
    assert swept()[0] == expected


def test_the_tree_is_a_tree() -> None:
    """Every shard once, in order, and as deep as the number of shards needs and no deeper."""

    def depth(cut: Any) -> int:
        if len(cut) == 1:
            return 0
        first, second = split_tree(cut)
        assert [*first, *second] == list(cut)
        assert len(first) >= len(second) > 0
        assert len(first) & (len(first) - 1) == 0
        return 1 + max(depth(first), depth(second))

    for count in range(1, 70):
        cut = shards(count, 1, 1)
        assert covered(cut) == range(count)
        assert depth(cut) == (count - 1).bit_length()


def test_shards_grow_with_the_images() -> None:
    assert len(shards(1_281_167, 32)) <= 1024
    assert len(shards(100_000_000, 256)) <= 1024
    assert covered(shards(100_000_000, 256)) == range(100_000_000)


def test_to_the_bit(client: Any) -> None:
    expected = swept()
    for _ in range(3):
        assert swept(Late(noise(COUNT)), client=client) == expected


@pytest.mark.nightly
def test_to_the_bit_by_more() -> None:
    with cluster.connect("local:3") as more:
        assert swept(Late(noise(COUNT)), client=more) == swept()


def test_unreadable_images(client: Any) -> None:
    broken = {5: OSError("gone"), 30: OSError("gone too")}
    expected = swept(Items(noise(COUNT), broken), skip_unreadable=True)
    assert expected[1] == [5, 30]
    assert swept(Items(noise(COUNT), broken), skip_unreadable=True, client=client) == expected
    with pytest.raises(ImageError, match=r"image (5|30) .*gone"):
        swept(Items(noise(COUNT), broken), client=client)


def test_the_workers_keep_what_is_finished(tmp_path: Path, client: Any) -> None:
    store, expected = Store(tmp_path / "sweep"), swept()
    with pytest.raises(ImageError, match="image 44"):
        swept(Items(noise(COUNT), {44: OSError("gone")}), store=store, client=client)
    assert store.manifests()
    again = Items(noise(COUNT))
    assert swept(again, store=store) == expected  # here, from what was computed there
    assert len(again.loaded) < COUNT
    assert not list(store.folder.glob(".seen-*"))
    assert swept(store=store, client=client) == expected  # and there, from what was computed here


@pytest.mark.parametrize("seen", [True, False])
def test_a_killed_worker(tmp_path: Path, seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, marker = swept(), tmp_path / "killed"
    if not seen:
        hidden(monkeypatch)
    with cluster.connect("local:2") as client:
        assert swept(Deadly(noise(COUNT), 33, marker), store=Store(tmp_path / "store"), client=client) == expected
    assert marker.exists()


def test_a_worker_killed_within_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another goes on where it stopped: what it had saved is not read again."""

    class Noted(Deadly):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            with (tmp_path / "read").open("a") as file:
                file.write(f"{index}\n")
            return super().__getitem__(index)

    monkeypatch.setattr(sweep, "shards", partial(shards, size=COUNT + 1))
    expected = swept()
    with cluster.connect("local:1") as client:
        for name in ("SAVE", "SPARE"):
            client.run(partial(setattr, sweep, name, 0.0))
        images = Noted(noise(COUNT), 33, tmp_path / "killed")
        assert swept(images, store=Store(tmp_path / "store"), client=client) == expected
    read = [int(line) for line in (tmp_path / "read").read_text().splitlines()]
    assert read.count(33) == 2
    assert [read.count(index) for index in range(1, 20)] == [1] * 19


def test_workers_that_always_die(tmp_path: Path) -> None:
    kept = tmp_path / "store"

    class Cursed(Items):
        """Kills whatever process reads on once a shard is kept, whichever was the first."""

        home = os.getpid()

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if os.getpid() != self.home and Store(kept).manifests():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster.connect("local:1") as client,
        pytest.raises(ClusterError, match=r"gave up .*Workers that die again and again.*What is finished is kept"),
    ):
        swept(Cursed(noise(COUNT)), client=client, store=Store(kept))
    assert Store(kept).manifests()


@pytest.mark.parametrize("seen", [True, False])
def test_circuits(tmp_path: Path, client: Any, seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not seen:
        hidden(monkeypatch)
    images = Images(Items(noise(20)))
    channel, sample = np.arange(60) % 6, np.random.default_rng(0).integers(20, size=60)
    how: dict[str, Any] = {"target": "4", "lower": "2"}
    here, there = Run(batch_size=4), Run(batch_size=4, client=client)
    expected = circuits(plain(), images, channel, sample, run=here, **how)
    store = Store(tmp_path)
    found = circuits(plain(), images, channel, sample, store=store, run=there, **how)
    assert found.tobytes() == expected.tobytes()
    silent = Images(Items(noise(20)))
    silent.example  # noqa: B018, the one that is read for its shape
    silent.dataset.loaded.clear()  # type: ignore[attr-defined]
    again = circuits(plain(), silent, channel, sample, store=store, run=here, **how)
    assert again.tobytes() == expected.tobytes()
    assert silent.dataset.loaded == []  # type: ignore[attr-defined]


def test_a_whole_study(tmp_path: Path, client: Any) -> None:
    def study(folder: str, **how: Any) -> Study:
        made = Study.from_model(
            plain(), Items(noise(COUNT)), "4", "2", n_references=6, n_clusters=2, store=tmp_path / folder, batch_size=4
        )
        return made.replace(progress=False, **how)

    here, there = study("here"), study("there", client=client)
    assert here.neurons.equals(there.neurons)
    assert here.circuits.tobytes() == there.circuits.tobytes()
    assert here.crops.boxes.tobytes() == there.crops.boxes.tobytes()
    names = sorted(path.name for path in (tmp_path / "here" / "mine").glob("*-*"))
    for name in names:
        if not name.startswith("."):
            one, other = (tmp_path / folder / "mine" / name for folder in ("here", "there"))
            assert one.read_bytes() == other.read_bytes()


def test_a_network_in_a_users_file(tmp_path: Path, client: Any) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Sequential):\n"
        "    pass\n"
        "def made():\n"
        "    return Mine(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU())\n"
    )
    torch.manual_seed(0)
    model = load_model("net.py:made", "", folder=tmp_path)
    found = []
    for where in (None, client):
        top = TopReferences("3", 5)
        sweep.sweep(model, Images(Items(noise(12))), [top], run=Run(client=where, progress=False))
        found.append(top.result().score.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("mine", [None, "3,5"])
def test_one_worker_a_gpu(monkeypatch: pytest.MonkeyPatch, mine: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mine:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mine)
    with cluster.connect("local", device="cuda") as client:
        client.wait_for_workers(2, timeout=60)
        assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == (mine or "0,1").split(",")


def test_closing_a_client_ends_its_cluster() -> None:
    client = cluster.connect("local:1")
    (worker,) = client.run(os.getpid).values()
    client.close()
    for _ in range(100):
        if not psutil.pid_exists(worker):
            break
        time.sleep(0.1)
    assert not psutil.pid_exists(worker)


def test_workers_with_children_that_load(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's workers are daemons by default, and those of another's cluster may be: they load in a thread."""
    monkeypatch.setattr(sweep, "shards", partial(shards, size=40))
    assert swept(client=client, workers=1) == swept()


def test_errors_are_not_tried_again(tmp_path: Path, client: Any) -> None:
    class Counted(Items):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 5:
                with (tmp_path / "tries").open("a") as file:
                    file.write("x")
            return super().__getitem__(index)

    with pytest.raises(ImageError, match=r"image 5 .*gone"):
        swept(Counted(noise(COUNT), {5: OSError("gone")}), client=client)
    assert (tmp_path / "tries").read_text() == "x"


def test_what_is_kept_is_used_there(tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the workers do not see the folder: what reached the client is not computed again."""
    hidden(monkeypatch)
    images = Images(Items(noise(20)))
    channel, sample = np.arange(60) % 6, np.random.default_rng(0).integers(20, size=60)
    how: dict[str, Any] = {
        "target": "4",
        "lower": "2",
        "run": Run(batch_size=4, client=client),
        "store": Store(tmp_path),
    }
    found = circuits(plain(), images, channel, sample, **how)

    def fail(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(cluster, "_block", fail)
    assert circuits(plain(), images, channel, sample, **how).tobytes() == found.tobytes()


def test_one_file_of_many_shards(tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "BRANCH", 4)
    store = Store(tmp_path)
    assert swept(client=client, store=store) == swept()
    assert [manifest["key"]["images"] for manifest in store.manifests()] == [[0, COUNT]]
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 1


def test_a_study_with_a_client_can_be_sent(tmp_path: Path, client: Any) -> None:
    study = Study.from_model(
        plain(), Items(noise(COUNT)), "4", "2", n_references=6, store=tmp_path, client=client, batch_size=4
    )
    again = pickle.loads(pickle.dumps(study))
    assert again.run.client is None
    assert again.parameters == study.parameters


def test_no_such_cluster() -> None:
    for where in ("local:many", "slurm:0"):
        with pytest.raises(ClusterError, match=f"how many workers is '{where}'"):
            cluster.connect(where)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(ClusterError, match=r"no cluster at 'tcp://127.0.0.1:9'.*Expected 'local'"),
    ):
        cluster.connect("tcp://127.0.0.1:9")
    with pytest.raises(ClusterError, match="no cluster at 'nonsense://x'"):
        cluster.connect("nonsense://x")


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for SLURM's commands that starts the job here: everything else is the real thing."""
    pytest.importorskip("dask_jobqueue")
    jobs = tmp_path / "jobs"
    for name, text in (
        (
            "sbatch",
            f'#!/bin/bash\ncp "$1" {jobs}.sh\nbash {jobs}.sh &> {jobs}.log &\necho $! >> {jobs}\necho "$!"\n',
        ),
        ("scancel", '#!/bin/bash\nfor job in "$@"; do pkill -P "$job"; kill "$job"; done 2> /dev/null\nexit 0\n'),
    ):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    asked = {"cores": 1, "memory": "2GB", "processes": 1, "interface": "lo", "walltime": "00:10:00"}
    settings = {f"jobqueue.slurm.{name}": value for name, value in asked.items()}
    with dask.config.set(settings), cluster.connect("slurm:1") as client:
        client.wait_for_workers(1, timeout=60)
        images = TensorDataset(noise(COUNT))  # jobs can import what is installed, and the tests are not
        assert swept(images, client=client) == swept(images)
    assert len(jobs.read_text().split()) == 1
