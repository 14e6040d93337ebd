"""batch_size="auto": the size that suits, on which no result depends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Items, noise, plain
from typer.testing import CliRunner

from pure_nb import _batches as batches
from pure_nb.cli import app
from pure_nb.errors import ModelError, StudyError
from pure_nb.loading import load_study
from pure_nb.network import layers
from pure_nb.parameters import Run
from pure_nb.study import Study

TOML = """\
[model]
source = "glyphnet"
[images]
source = "glyphs"
length = 20
[parameters]
target = "layer4"
lower = "layer3"
n_references = 4
[run]
batch_size = "auto"
progress = false
"""


def mine(folder: Path, **how: Any) -> Study:
    return Study.from_model(
        plain(), Items(noise(40)), "4", "2", n_references=8, n_clusters=2, store=folder, progress=False, **how
    )


def card(holds: int, error: Exception) -> Any:
    """A device with memory for so many images."""

    def tried(size: int) -> None:
        if size > holds:
            raise error

    return tried


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS out of memory")])
@pytest.mark.parametrize(("holds", "size"), [(100, 64), (64, 64), (1, 1), (0, 0), (10_000, 512)])
def test_the_largest_that_fits(holds: int, size: int, error: Exception) -> None:
    assert batches.largest(card(holds, error), 512) == size


def test_of_a_network_that_runs_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raises is told as an error of the package."""
    wrapped = ModelError("Net does not fit")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert batches.largest(card(5, wrapped), 512) == 4
    with pytest.raises(RuntimeError, match="another fault"):
        batches.largest(card(5, RuntimeError("another fault")), 512)


@pytest.mark.parametrize(
    ("each", "size"),
    [
        ({8: 4.0, 16: 3.0, 32: 2.0, 64: 1.95}, 32),  # two in a hundred are not worth twice the memory
        ({8: 4.0, 16: 4.1}, 8),
        ({8: 4.0, 16: 3.0, 32: 2.0, 64: 1.0}, 64),
    ],
)
def test_the_fastest(each: dict[int, float], size: int) -> None:
    now = [0.0]

    def tried(count: int) -> None:
        now[0] += count * each[count]

    assert batches.fastest(tried, 64, clock=lambda: now[0]) == size
    assert batches.fastest(lambda count: None, 4, clock=lambda: 0.0) == 4


def test_no_result_depends_on_it(tmp_path: Path) -> None:
    found, fixed = mine(tmp_path / "auto", batch_size="auto"), mine(tmp_path / "fixed")
    assert found.run.batch_size in (8, 16, 32, 64)
    np.testing.assert_array_equal(found.references.sample, fixed.references.sample)
    np.testing.assert_allclose(found.circuits, fixed.circuits, rtol=1e-4, atol=1e-7)
    assert found.key("neurons") == fixed.key("neurons")
    again = mine(tmp_path / "fixed", batch_size="auto")
    assert again.known()[:2] == ["references", "circuits"]


def test_what_was_begun_goes_on_in_batches_of_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "fastest", lambda tried, most: 16)
    assert mine(tmp_path, batch_size="auto").run.batch_size == 16
    monkeypatch.setattr(batches, "fastest", None)
    assert mine(tmp_path, batch_size="auto").run.batch_size == 16
    assert mine(tmp_path).on(Run(batch_size="auto")).run.batch_size == 16


def test_a_gpu_is_tried_with_the_step_that_takes_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fake device: on it whatever is larger than twenty images raises."""
    sizes: list[int] = []
    forward = layers.forward_pass

    def small(model: Any, images: Any) -> None:
        sizes.append(len(images))
        if len(images) > 20:
            raise ModelError("it does not fit") from torch.OutOfMemoryError("CUDA out of memory")
        forward(model, images)

    study = mine(tmp_path)
    monkeypatch.setattr(layers, "forward_pass", small)
    monkeypatch.setattr(batches, "fastest", batches.largest)
    assert study.on(Run(batch_size="auto")).run.batch_size == 16
    assert sizes == [1, 2, 4, 8, 16, 32]
    monkeypatch.setattr(batches, "largest", lambda tried, most: 0)
    monkeypatch.setattr(batches, "fastest", batches.largest)
    with pytest.raises(StudyError, match="Sequential does not fit into the memory of 'cpu' with a single image"):
        mine(tmp_path / "other", batch_size="auto")


def test_where_results_depend_on_it_a_number_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="batch_size must be a number with allow_nondeterministic"):
        mine(tmp_path, batch_size="auto", allow_nondeterministic=True)


def test_a_file_and_a_command_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "fastest", lambda tried, most: 4)
    path = tmp_path / "own.toml"
    path.write_text(TOML)
    assert load_study(path, store=tmp_path).run.batch_size == 4
    assert load_study(path, store=tmp_path, batch_size=7).run.batch_size == 7
    seen: list[Any] = []
    monkeypatch.setattr("pure_nb.loading.load_study", lambda *_, **how: seen.append(how["batch_size"]) or 1 / 0)
    for given in ("auto", "16", "many"):
        CliRunner().invoke(app, ["neurons", str(path), "--batch-size", given])
    assert seen == ["auto", 16, "many"]
    monkeypatch.undo()
    said = CliRunner().invoke(app, ["neurons", str(path), "--store", str(tmp_path), "--batch-size", "many"])
    assert said.exit_code == 1
    assert "at least 1, got 'many'; 'auto' looks for one" in " ".join(said.stderr.split())
