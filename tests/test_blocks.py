"""Blocks: every pair once, whatever the order, and what was saved is not computed again."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pure_nb.compute import bars, blocks
from pure_nb.compute.blocks import load_or_compute_block, map_in_blocks
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError
from pure_nb.parameters import Run


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 20))
def test_every_pair_once_and_images_together(sample: list[int], batch_size: int, size: int) -> None:
    numbers, asked, done = np.array(sample), [], []

    def compute(block: NDArray[np.int64], ready: object) -> NDArray[np.float32]:
        asked.append(block)
        done.append(len(block))
        return np.stack([block, 2 * numbers[block]], axis=1).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", size)
        found = map_in_blocks(numbers, compute, run=Run(batch_size=batch_size), name="test")
    np.testing.assert_array_equal(found[:, 0], np.arange(len(numbers)))
    np.testing.assert_array_equal(found[:, 1], 2 * numbers)
    assert sorted(np.concatenate(asked).tolist()) == list(range(len(numbers)))
    images = [set(numbers[block].tolist()) for block in asked]
    assert sum(map(len, images)) == len(set(sample))  # no image is in two blocks
    assert all(count >= size for count in done[:-1])


def test_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    store, sample = Store(tmp_path), np.repeat(np.arange(6), 2)
    calls = []

    def compute(block: NDArray[np.int64], _: object, *, limit: int = 99) -> NDArray[np.float32]:
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append(block)
        return sample[block].astype(np.float32)

    how = {"run": Run(batch_size=2), "name": "test", "store": store}
    with pytest.raises(KeyboardInterrupt):
        map_in_blocks(sample, lambda block, done: compute(block, done, limit=2), **how)
    found = map_in_blocks(sample, compute, **how)
    assert len(calls) == 3  # two before the stop, one after
    np.testing.assert_array_equal(found, sample)


@pytest.mark.parametrize("kept", [True, False])
def test_memory_is_that_of_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """However many pairs: the result is in a file."""
    monkeypatch.setattr(blocks, "BLOCK", 64)
    store, width = Store(tmp_path), 1024
    block = 64 * width * 8

    def compute(pairs: NDArray[np.int64], _: object) -> NDArray[np.float64]:
        return np.repeat(pairs[:, None].astype(np.float64), width, axis=1)

    def peak(count: int) -> int:
        how = {
            "run": Run(batch_size=64),
            "name": "test",
            "store": store.part("parts", {"pairs": count}) if kept else None,
        }
        tracemalloc.start()
        store.save_mapped(
            "test", {"pairs": count}, lambda new: map_in_blocks(np.arange(count), compute, new=new, **how)
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        whole = store.load_mapped("test", {"pairs": count})
        assert whole is not None
        np.testing.assert_array_equal(whole[:, 7], np.arange(count))
        return found

    small, large = peak(640), peak(64 * 60)
    assert large < small + 2 * block  # what is known of each pair, its image and its place, is some bytes
    assert large < 8 * block < 60 * block


def test_nothing_to_do() -> None:
    with pytest.raises(ArgumentError, match="no pairs"):
        map_in_blocks(np.array([], dtype=int), lambda block, done: block, run=Run(batch_size=2), name="test")


def test_bars_are_shown_unless_the_environment_forbids_them(capsys: pytest.CaptureFixture[str]) -> None:
    def run(**how: bool) -> str:
        map_in_blocks(np.arange(3), lambda block, _: block, name="test", run=Run(batch_size=2, **how))
        return capsys.readouterr().err

    assert os.environ["TQDM_DISABLE"] == "1"  # by conftest, before tqdm is imported
    assert run(progress=True) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bars.tqdm, "__init__", vars(bars.tqdm)["__init__"].func)  # as it is without the variable
        assert "test: " in run(progress=True)
        assert run(progress=False) == ""
    for source in Path(bars.__file__).parents[1].rglob("*.py"):
        assert ("tqdm" in source.read_text()) == (source.name == "bars.py"), "all bars are made in bars.py"


def test_what_is_kept_is_counted(tmp_path: Path) -> None:
    task, counts = (np.arange(3), {"block": 0}), []
    for _ in range(2):
        load_or_compute_block(lambda block, done: block.astype(np.float32), task, Store(tmp_path), counts.append)
    assert counts == [3]  # by whoever computes it, and not the first time
