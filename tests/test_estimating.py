"""What a study will take: of what was tried, times how much there is; and what is left of it while it runs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from small import Items, noise, picture_folder, plain
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor
from typer.testing import CliRunner

import pure_nb.study
from pure_nb import estimating
from pure_nb.cli import app
from pure_nb.compute import bars
from pure_nb.errors import ArgumentError
from pure_nb.estimating import RUN_STEPS, STEPS, Cost, TimeLeft, estimate, in_words
from pure_nb.images import reading
from pure_nb.judges.embedders import pixels
from pure_nb.methods import circuits
from pure_nb.network.shapes import require
from pure_nb.study import Study

IMAGE, PAIR = 0.5, 0.2
"""Seconds that the clock of the tests goes on for an image that is run forward, and for a pair."""


def mine(folder: Path | None = None, images: Any = None, **how: Any) -> Study:
    data = Items(noise(200)) if images is None else images
    options: dict[str, Any] = {"n_references": 8, "batch_size": 16, "progress": False, "store": folder, **how}
    study = Study.from_model(plain(), data, "4", "2", **options)
    return study.replace(store=None) if folder is None else study


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that goes on for images that are read in batches and for pairs that are propagated, and for no more."""
    now = [0.0]
    collate, propagate = reading._collate, circuits.propagate

    def counted(images: Any, expected: Any, samples: Any, found: Any) -> Any:
        now[0] += IMAGE * len(samples)
        return collate(images, expected, samples, found)

    def slow(model: Any, images: Any, channel: Any, *rest: Any, **how: Any) -> Any:
        now[0] += PAIR * len(channel)
        return propagate(model, images, channel, *rest, **how)

    monkeypatch.setattr(reading, "_collate", counted)
    monkeypatch.setattr(circuits, "propagate", slow)
    monkeypatch.setattr(estimating, "perf_counter", lambda: now[0])
    monkeypatch.setattr(estimating, "process_time", lambda: 2 * now[0])
    return now


def test_time_is_that_of_the_images_and_of_the_pairs(clock: list[float]) -> None:
    study = mine()
    found = study.estimate(steps=["references", "circuits"])
    assert found["seconds"]["references"] == pytest.approx(200 * IMAGE)
    unique = 200 * (1 - (1 - 8 / 200) ** 6)  # of references that are drawn at random
    assert found["seconds"]["circuits"] == pytest.approx(unique * IMAGE + 48 * PAIR)
    assert found["processor"]["circuits"] == pytest.approx(2 * found["seconds"]["circuits"])
    assert found["seconds"]["run"] == pytest.approx(found["seconds"][["references", "circuits"]].sum())
    assert found["count"].tolist() == ["200 images", "48 pairs", "", ""]


def test_pairs_are_tried_until_they_can_be_told_from_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair may take a thousandth of what an image takes."""
    tried = estimating._Trial(mine(images=Items(noise(10))), None)
    turns: list[int] = []

    def measured(compute: Callable[[], object]) -> Cost:
        compute()
        return Cost(1.0 + 0.02 * turns[-1], 1.0, 0.0)

    referring = tried._referring
    monkeypatch.setattr(tried, "_referring", lambda sample: turns.append(len(sample)) or referring(sample))
    monkeypatch.setattr(estimating, "measured", measured)
    tried._pairs(lambda study: None)
    assert turns[-2:] == [3, 5]  # six channels of eight references are five pairs of each of ten images


def test_pairs_that_take_nothing_are_all_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or an estimate of a study of many channels would run the same images forward for each few more pairs."""
    tried = estimating._Trial(mine(images=Items(noise(10)), n_references=10), None)
    tried.channels, turns = 320, []
    monkeypatch.setattr(tried, "_referring", lambda sample: turns.append(len(sample)))
    monkeypatch.setattr(estimating, "measured", lambda compute: compute() or Cost(1.0, 1.0, 0.0))
    tried._pairs(lambda study: None)
    assert turns[-2:] == [3, 320]
    monkeypatch.setattr(estimating, "measured", lambda compute: compute() or Cost(1 + 0.01 * turns[-1], 1.0, 0.0))
    tried._pairs(lambda study: None)
    assert turns[-2] == 3
    assert 50 <= turns[-1] <= 110  # by how much longer three took than one


def test_layers_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study, looked = mine(), []
    monkeypatch.setattr(pure_nb.study, "require", lambda *asked: looked.append(asked) or require(*asked))
    study.estimate(steps=["references", "circuits"])
    assert len(looked) == 1


def test_a_layer_of_one_channel(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 3))
    study = Study.from_model(model, noise(30), "2", "1", n_references=8, store=tmp_path, progress=False)
    assert (study.estimate(steps=RUN_STEPS)["seconds"] > 0).all()


def test_it_is_what_then_happens(clock: list[float]) -> None:
    """To the last digit, once the references are known: one image at a time, of which none is run twice."""
    study = mine(batch_size=1)
    before = clock[0]
    study.references  # noqa: B018
    took = clock[0] - before
    told = mine(batch_size=1).estimate(steps=["references"])
    assert took == pytest.approx(told["seconds"]["references"])
    told = study.estimate(steps=RUN_STEPS[:2])
    assert told["seconds"]["references"] == 0  # it is known
    assert told["count"]["references"] == "known"
    before = clock[0]
    study.circuits  # noqa: B018
    assert clock[0] - before == pytest.approx(told["seconds"]["circuits"])


def test_what_is_known_is_not_tried(clock: list[float]) -> None:
    study = mine()
    study.neurons  # noqa: B018
    before = clock[0]
    assert study.estimate(steps=RUN_STEPS)["count"].tolist() == ["known"] * 4 + ["", ""]
    assert clock[0] == before


def test_what_is_tried_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(bars.Bar, "set_description", lambda self, text: told.append(text))
    mine().estimate(steps=["circuits", "references"])
    assert told == ["trying references", "trying circuits"]


def test_few_images_and_few_pairs_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is kept, nor is the study other than before."""
    monkeypatch.setattr(estimating, "ENOUGH", -1.0)  # as if ten images took long enough
    study, read = mine(), []
    load = type(study.images).try_load
    study.images.fingerprint, study.shapes  # noqa: B018
    monkeypatch.setattr(type(study.images), "try_load", lambda self, sample: read.append(sample) or load(self, sample))
    before = dict(vars(study))
    study.estimate(steps=["references", "circuits"])
    assert 10 < len(read) < 100
    assert set(vars(study)) - set(before) == {"_weights"}  # which is no result


def test_every_step_is_told(tmp_path: Path) -> None:
    images = ImageFolder(picture_folder(tmp_path / "pictures", 24, classes=4, size=12), ToTensor())
    study = mine(tmp_path / "store", images)
    found = study.estimate(embedder=pixels(4))
    assert found.index.tolist() == [*STEPS, "run", "total"]
    assert (found["seconds"] > 0).all()
    assert (found["memory_mb"] > 10).all()
    assert found["command"].tolist()[:4] == 4 * ["run"]
    assert found["seconds"]["total"] == pytest.approx(found["seconds"].iloc[:-2].sum())
    assert study.store is not None
    assert {one.name for one in study.store.results()} <= {"labels"}  # whether they fit the network
    for step in ("references", "circuits", "virtual", "neurons"):
        getattr(study, step)
    study.layouts, study.crops.boxes, study.crops.embeddings(pixels(4)), study.classes.statistics
    sizes = {one.name: one.size / 1e6 for one in study.store.results()}
    for step in ("circuits", "embeddings", "boxes"):  # most of the others are headers, of so small a study
        assert found["disk_mb"][step] < sizes[step] < found["disk_mb"][step] + 0.002
    again = study.estimate()
    assert (again["count"].iloc[:-2] == "known").all()
    assert again["seconds"]["total"] == 0


def test_disk_is_what_is_kept(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 100, 3), torch.nn.ReLU(), torch.nn.Conv2d(100, 60, 3))
    study = Study.from_model(model, noise(60), "2", "1", n_references=40, n_clusters=3, store=tmp_path, progress=False)
    found = study.estimate(steps=["references", "circuits", "virtual"])["disk_mb"]
    study.virtual  # noqa: B018
    sizes = {one.name: one.size / 1e6 for one in study.results.stored()}
    for step in ("references", "circuits", "virtual"):
        assert sizes[step] / 1.5 < found[step] < sizes[step] * 1.5, step


def test_without_labels_there_are_no_classes() -> None:
    assert "classes" not in mine(images=noise(20)).estimate(steps=["references", "classes"]).index


def test_images_that_cannot_be_read_are_not_tried(tmp_path: Path) -> None:
    data = Items(noise(30), {0: OSError("gone"), 29: OSError("gone")})
    found = mine(images=data, skip_unreadable=True).estimate(steps=RUN_STEPS)
    assert found.index.tolist() == [*RUN_STEPS, "run", "total"]


@pytest.mark.parametrize(
    ("cluster", "cores", "workers", "threads"),
    [("local:4", 8, 4, 2), ("local:4", 2, 2, 1), ("local", 8, 8, 1), ("slurm:16", 2, 16, None)],
)
def test_workers_share_the_work(
    cluster: str, cores: int, workers: int, threads: int | None, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "cpu_count", lambda: cores)
    used: list[int] = []
    monkeypatch.setattr(estimating, "measured", _noting(estimating.measured, used))
    study = mine()
    alone, here = estimate(study, steps=["references"]), torch.get_num_threads()
    del used[:]
    shared = estimate(study, cluster=cluster, steps=["references"])
    assert shared["seconds"]["references"] == pytest.approx(alone["seconds"]["references"] / workers)
    assert shared["processor"]["references"] == alone["processor"]["references"]
    assert set(used) == {threads or here}
    assert torch.get_num_threads() == here


def _noting(measured: Callable[..., Cost], used: list[int]) -> Callable[..., Cost]:
    def noted(compute: Callable[[], object]) -> Cost:
        used.append(torch.get_num_threads())
        return measured(compute)

    return noted


def test_what_runs_on_a_cluster_is_shared_by_its_workers(clock: list[float]) -> None:
    study = mine()
    alone = study.estimate(steps=["circuits"])["seconds"]["circuits"]
    client = MagicMock()
    client.nthreads.return_value = {"a": 1, "b": 1, "c": 1}
    shared = study.replace(client=client).estimate(steps=["circuits"])["seconds"]["circuits"]
    assert shared == pytest.approx(alone / 3)


@pytest.mark.parametrize("cluster", ["tcp://10.0.0.1:8786", "local:0", "slurm:many"])
def test_how_many_workers_is_to_be_told(cluster: str) -> None:
    with pytest.raises(ArgumentError, match="it can't be told how many workers"):
        mine().estimate(cluster=cluster)


def test_there_is_no_such_step() -> None:
    with pytest.raises(ArgumentError, match="there is no step 'sweep'; there are references, circuits"):
        mine().estimate(steps=["sweep"])


def test_memory_is_that_of_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten images it is a tenth of what a batch of a hundred takes."""
    row = estimating._Trial(mine(), None)
    row.base = 1e6
    assert row._row("", Cost(1, 1, 2e6), 3e6, 0, batch=10)["memory_mb"] == 24


def test_a_peak_is_seen() -> None:
    before = estimating.measured(lambda: None)
    found = estimating.measured(lambda: np.ones(30_000_000).sum())
    assert found.memory - before.memory > 150e6 or not Path("/proc/self/clear_refs").exists()


def test_time_left_of_the_whole() -> None:
    now = [0.0]
    left = TimeLeft({"references": 100.0, "circuits": 50.0, "virtual": 20.0}, clock=lambda: now[0])
    with left.step("references"):
        assert left.left(0.0) == 170  # as expected
        now[0] = 60.0
        assert left.left(0.3) == pytest.approx(140 + 70)  # it takes twice as long
    with left.step("circuits"):
        assert left.left(0.0) == 70
        now[0] = 85.0
        assert left.left(0.5) == pytest.approx(25 + 20)
    with left.step("neurons"):  # of which nothing was expected
        assert left.left(0.0) == 20


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.4, "3 s"), (89, "89 s"), (90, "1.5 min"), (3000, "50 min"), (7200, "2.0 h"), (2e5, "2.3 days")],
)
def test_times_in_words(seconds: float, said: str) -> None:
    assert in_words(seconds) == said


def test_bars_tell_the_time_that_is_left_of_the_whole() -> None:
    shown = io.StringIO()
    left = TimeLeft({"references": 600.0, "circuits": 600.0})
    with left.step("references"), bars.Bar(desc="sweep", total=100, file=shown, disable=False, mininterval=0) as bar:
        bar.update(3)
    assert "of all steps 20 min left" in shown.getvalue()


def test_whoever_watches_sees_bars_that_are_not_shown() -> None:
    seen: list[tuple[float, float | None]] = []
    bar = bars.progress_bar(desc="sweep", total=5, shown=False)
    with bars.watched(lambda bar: seen.append((bar.done, bar.total))):
        bar.update(2)
        bar.update()
    bar.update()
    assert seen == [(2, 5), (3, 5)]


TOML = """\
[model]
source = "glyphnet"
[images]
source = "glyphs"
length = 30
[parameters]
target = "layer4"
lower = "layer3"
n_references = 4
"""


def test_dry_run(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TOML)
    command = ["run", str(tmp_path / "small.toml"), "--store", str(tmp_path / "store"), "--dry-run"]
    said = CliRunner().invoke(app, [*command, "--cluster", "local:2"])
    assert said.exit_code == 0, said.output
    for step in (*RUN_STEPS, "layouts", "boxes", "classes", "run", "total"):
        assert re.search(rf"^ *{step} ", said.stdout, re.MULTILINE), step
    assert re.search(r"pure-nb run takes about [\d.]+ (s|min) by local:2\.$", said.stdout.strip())
    assert not (tmp_path / "store").exists()
    wrong = CliRunner().invoke(app, [*command, "--cluster", "tcp://10.0.0.1:8786"])
    assert wrong.exit_code == 1
    assert "can't be told how many workers" in " ".join(wrong.stderr.split())


def test_run_tells_what_is_left_where_bars_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.toml").write_text(TOML)
    told: list[dict[str, float]] = []
    monkeypatch.setattr(estimating, "TimeLeft", lambda expected: told.append(expected) or TimeLeft(expected))
    command = ["run", str(tmp_path / "small.toml"), "--store", str(tmp_path / "store")]
    assert CliRunner().invoke(app, command).exit_code == 0  # conftest forbids bars
    assert told == [{}]
    monkeypatch.delenv("TQDM_DISABLE")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "all steps: about 0 s" in again.stdout  # which are known
    assert told[1] == dict.fromkeys(RUN_STEPS, 0.0)
