"""What runs on another device finds what the CPU finds, and waits for it as often for large batches as for small."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from away import DEVICE, away
from numpy.typing import NDArray
from small import ROOT, Items, crp, noise, plain

from pure_nb.compute.sweep import sweep
from pure_nb.figures.render import boxes
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.methods.references import TopReferences
from pure_nb.methods.relevance import ClassRelevance
from pure_nb.methods.visualise import feature_visualisation
from pure_nb.methods.windows import pooled_inputs
from pure_nb.network.layers import get_layer
from pure_nb.parameters import Run

Step = Callable[[Images, Run], list[NDArray[Any]]]
CHANNELS = 6


def references(images: Images, run: Run) -> list[NDArray[Any]]:
    top, mean = TopReferences("4", 16), TopReferences("2", 16, "mean")  # so that every batch brings some
    sweep(plain(), images, [top, mean], run=run)
    return [getattr(one.result(), name) for one in (top, mean) for name in ("sample", "score", "position", "peak")]


def class_relevance(closed: bool) -> Step:
    def step(images: Images, run: Run) -> list[NDArray[Any]]:
        model = plain()
        module = get_layer(model, "4") if closed else None
        labels = np.arange(len(images)) % 4
        found = ClassRelevance("4", "input:4" if closed else "2", labels, 4, module=module)
        sweep(model, images, [found], run=run)
        result = found.result()
        return [result.relevant, result.share, result.pooled, result.bootstrap_sums]

    return step


def pairs(images: Images) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All channels in all images."""
    channel, sample = np.indices((CHANNELS, len(images)))
    return channel.ravel(), sample.ravel()


def of_pairs(rule: Any) -> Step:
    return lambda images, run: [circuits(plain(), images, *pairs(images), target="4", lower="2", rule=rule, run=run)]


def cropped(crop: Any) -> Step:
    return lambda images, run: [boxes(plain(), images, *pairs(images), target="4", crop=crop, run=run)]


def windows(images: Images, run: Run) -> list[NDArray[Any]]:
    return [pooled_inputs(plain(), images, np.arange(len(images)), "4", run=run)]


# By step, how often a batch may wait for the device at most: for the result, and in circuits and crops, in each of
# whose rounds each image has one pair, for the word that it is finite. LRP asks layers whether their inputs are zero.
STEPS: dict[str, tuple[Step, int]] = {
    "references": (references, 5),  # of two layers: the peaks twice, the means once, and where the peaks are
    "class relevance": (class_relevance(closed=True), 2),
    "class relevance, a pass for each channel": (class_relevance(closed=False), 2),
    "windows": (windows, 1),
    "circuits": (of_pairs("gradient"), 2 * CHANNELS),
    "circuits by LRP": (of_pairs("lrp"), 2 * CHANNELS + 2),
    "crops": (cropped("peak"), 2 * CHANNELS + 5),
    "crops of all that activates": (cropped("crp"), 2 * CHANNELS + 5),
    "crops by activation": (cropped("activation"), 1),
}


@pytest.mark.parametrize("name", STEPS)
def test_it_is_what_the_cpu_finds_and_large_batches_wait_no_longer(name: str) -> None:
    step, most = STEPS[name]
    expected = step(Images(Items(noise(16))), Run(batch_size=4, progress=False))
    waits = {}
    with away():
        Run(device=DEVICE)  # whether a device can be used is asked once
    for size in (2, 4, 8):
        with away() as device:
            found = step(Images(Items(noise(16))), Run(batch_size=size, device=DEVICE, progress=False))
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-6)
        waits[size] = device.waits.total()
        assert device.sent
    # Twice as many batches of half the size: the difference is what four, and two, more batches cost.
    assert 0 < waits[2] - waits[4] == 2 * (waits[4] - waits[8]) <= 4 * most, waits


def test_a_picture_of_a_channel_is_made_there() -> None:
    how: dict[str, Any] = {"size": 12, "steps": 3}
    with away() as device:
        run = Run(device=DEVICE)
        device.waits.clear()  # whether it can be used is asked once
        found = feature_visualisation(plain(), "4", [0, 3], run=run, **how)
    assert np.abs(found.astype(int) - feature_visualisation(plain(), "4", [0, 3], **how)).max() <= 1
    assert device.waits.total() == 4 * how["steps"] + 1, device.waits


def test_what_would_fail_on_a_gpu_fails_here() -> None:
    with away() as device:
        there = torch.ones(3).to(DEVICE)
        with pytest.raises(RuntimeError, match="on the same device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert not device.waits
        assert device.sent == 1
        assert there.sum().item() == 3
        assert bool((there == 1).all())
        assert there[there > 2].shape == (0,)
        assert torch.equal(there, there)
        assert (there.cpu() + torch.ones(3)).tolist() == [2, 2, 2]
    assert device.waits.total() == 5


@pytest.mark.slow
@pytest.mark.timeout(240)  # a process of its own, with the peer's passes
def test_the_table_of_a_gpu_can_be_made(tmp_path: Path) -> None:
    crp("attribution")
    script, table = ROOT / "benchmarks" / "gpu.py", tmp_path / "gpu.csv"
    asked = ["--device", "cpu", "--small", "--repeats", "1", "--precisions", "float32", "--out", str(table)]
    done = subprocess.run([sys.executable, str(script), *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(table).set_index("step")
    assert len(found) == 7
    assert (found["ms"] > 0).all()
    peers = found["zennit-crp ms"].drop(["bare forward", "virtual neurons"])
    assert (peers > 0).all()
