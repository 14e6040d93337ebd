"""One pass over all images: equal to a plain one, and stopped and resumed without a trace."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from contextlib import nullcontext
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Items, noise, picture_folder, plain

from pure_nb.compute import sweep as module
from pure_nb.compute.store import Store
from pure_nb.compute.sweep import shards, sweep
from pure_nb.errors import ImageError, LayerError, NonFiniteError, StoreWarning
from pure_nb.images.data import Images
from pure_nb.images.reading import Unreadable
from pure_nb.images.sources import folder_images
from pure_nb.methods.references import TopReferences
from pure_nb.methods.relevance import ClassRelevance
from pure_nb.parameters import Run


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shards", partial(shards, size=8))


def bytes_of(accumulators: list[TopReferences]) -> list[bytes]:
    return [
        array.tobytes() for a in accumulators for array in (a.result().sample, a.result().score, a.result().position)
    ]


def run(
    images: Images, n: int = 5, store: Store | None = None, **how: Any
) -> tuple[list[TopReferences], list[Unreadable]]:
    accumulators = [TopReferences("4", n), TopReferences("2", n, "mean")]
    lost = sweep(plain(), images, accumulators, store=store, run=Run(batch_size=4, progress=False, **how))
    return accumulators, lost


def test_shards_are_whole_batches() -> None:
    assert shards(10, 4, 8) == [range(0, 8), range(8, 10)]
    assert shards(8, 4, 8) == [range(0, 8)]
    assert shards(5, 4, 2) == [range(0, 4), range(4, 5)]  # a batch is larger than a shard
    assert shards(10, 3, 8) == [range(0, 6), range(6, 10)]
    assert shards(2100, 32) == [range(0, 1024), range(1024, 2048), range(2048, 2100)]


def test_equal_to_one_pass_by_hand() -> None:
    found, lost = run(Images(Items(noise(21))))
    assert lost == []
    with torch.no_grad():
        lower = plain()[:3](noise(21))
        upper = plain()[:5](noise(21))
    for accumulator, values, score in (
        (found[0], upper, upper.double().amax(dim=(2, 3))),
        (found[1], lower, lower.double().mean(dim=(2, 3))),
    ):
        assert accumulator.result().channels == values.shape[1]
        expected = score.numpy().T
        for channel, own in enumerate(expected):
            assert (accumulator.result().sample[channel] == np.argsort(-own, kind="stable")[:5]).all()
        np.testing.assert_allclose(accumulator.result().score, -np.sort(-expected, axis=1)[:, :5], rtol=1e-4, atol=1e-5)


def test_workers_change_nothing() -> None:
    images = Images(Items(noise(21)))
    assert bytes_of(run(images)[0]) == bytes_of(run(images, workers=2)[0])


@pytest.mark.parametrize("fails", [False, True])
def test_workers_are_started_once_for_all_shards(fails: bool) -> None:
    class Numbered(Items):
        """Images that say which process has read them."""

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.full((3, 8, 8), float(os.getpid())), 0

    class Readers:
        """Of all accumulators, that which needs the least."""

        layers, leaf = ("input:0",), None

        def update(self, samples: Any, outputs: Any) -> None:
            seen.append(int(outputs["input:0"][0, 0, 0, 0]))
            assert not fails or len(seen) < 8

        def merge(self, other: Any) -> None:
            pass

        def state(self) -> dict[str, Any]:
            return {}

        def restored(self, state: Any) -> Any:
            return self

    seen: list[int] = []
    others = set(multiprocessing.active_children())  # a pool of an earlier test
    with pytest.raises(AssertionError) if fails else nullcontext():
        sweep(plain(), Images(Numbered(noise(24))), [Readers()], run=Run(batch_size=2, workers=2, progress=False))
    assert len(seen) == (8 if fails else 12)
    assert len(set(seen)) == 2
    gc.collect()
    assert set(multiprocessing.active_children()) <= others


def test_the_size_of_a_shard_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(Items(noise(21)))
    expected = bytes_of(run(images)[0])
    monkeypatch.setattr(module, "shards", partial(shards, size=4))
    assert bytes_of(run(images)[0]) == expected


def test_the_model_is_left_as_it_was() -> None:
    model = plain().train()
    sweep(model, Images(Items(noise(5))), [TopReferences("4")], run=Run(progress=False))
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("stop", [0, 7, 8, 13, 20])
def test_stopped_and_resumed(tmp_path: Path, stop: int) -> None:
    expected = bytes_of(run(Images(Items(noise(21))))[0])
    store = Store(tmp_path / "sweep")
    dying = Items(noise(21), {stop: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(Images(dying), store=store)
    kept = sorted(manifest["key"]["images"] for manifest in store.manifests())
    assert [number for first, end in kept for number in range(first, end)] == list(range(stop // 8 * 8))
    again = Items(noise(21))
    found, _ = run(Images(again), store=store)
    assert again.loaded == [0, *range(stop // 8 * 8, 21)]  # what is not in finished shards, and the first for its shape
    assert bytes_of(found) == expected
    # A third run loads nothing at all.
    third = Items(noise(21))
    assert bytes_of(run(Images(third), store=store)[0]) == expected
    assert third.loaded == []


def within_a_shard(folder: Path, deadly: int | None = None) -> tuple[list[bytes], int]:
    """500 images, which are less than a shard, saved after each batch: what is found, and how many images were read.

    The process is killed when it computes the batch of an image. (For while it saves there is the test below.)
    """
    update = TopReferences.update

    def killed(top: TopReferences, samples: Any, outputs: Any) -> None:
        if deadly in samples:
            os.kill(os.getpid(), signal.SIGKILL)
        update(top, samples, outputs)

    torch.manual_seed(0)
    items, model, labels = Items(noise(500)), plain(), np.arange(500) % 4
    both = [TopReferences("4", 5), ClassRelevance("4", "input:4", labels, 4, module=model[4])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "shards", shards)
        patch.setattr(module, "SAVE", 0.0)
        patch.setattr(module, "SPARE", 0.0)
        patch.setattr(TopReferences, "update", killed)
        sweep(model, Images(items), both, store=Store(folder), run=Run(batch_size=8, progress=False))
    return [value.tobytes() for one in both for value in one.state().values()], len(items.loaded)


@pytest.mark.slow
def test_killed_within_a_shard(tmp_path: Path) -> None:
    """Killed twice, the third run computes only what is left, and to the bit."""
    for deadly in (203, 398):
        child = get_context("spawn").Process(target=within_a_shard, args=(tmp_path / "killed", deadly))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    found, read = within_a_shard(tmp_path / "killed")
    assert found == within_a_shard(tmp_path / "whole")[0]
    assert read <= 500 - 398 + 2 * 8 + 1  # the batch it died in, one read ahead, and one for the shape
    assert {file.name.partition("-")[0] for file in (tmp_path / "killed").iterdir()} == {"shard"}


@pytest.mark.parametrize("save", [1, 2, 4, 9])
def test_killed_while_it_saves(tmp_path: Path, save: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the numbers and their seal: what was saved before is found."""
    monkeypatch.setattr(module, "SAVE", 0.0)
    monkeypatch.setattr(module, "SPARE", 0.0)
    monkeypatch.setattr(module, "shards", partial(shards, size=64))
    expected = bytes_of(run(Images(Items(noise(60))))[0])
    sign, saves = Store._sign, count(1)

    def interrupted(store: Store, *what: Any) -> None:
        if next(saves) == save:
            raise KeyboardInterrupt
        sign(store, *what)

    monkeypatch.setattr(Store, "_sign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(Images(Items(noise(60))), store=Store(tmp_path))
    again = Items(noise(60))
    with pytest.warns(StoreWarning, match="its bytes do not match") if save > 2 else nullcontext():
        found, _ = run(Images(again), store=Store(tmp_path))
    assert bytes_of(found) == expected
    assert again.loaded == [0, *range(4 * (save - 1), 60)]  # the first for its shape


@pytest.mark.parametrize("stop", [5, 10, 13])
def test_unreadable_images_of_an_unfinished_shard_are_known(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE", 0.0)
    monkeypatch.setattr(module, "SPARE", 0.0)
    monkeypatch.setattr(module, "shards", partial(shards, size=16))
    lost: dict[int, BaseException] = {number: OSError("gone") for number in (1, 4, 5, 6, 7, 9)}
    expected, _ = run(Images(Items(noise(15), lost)), skip_unreadable=True)
    dying = Items(noise(15), lost | {stop: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(Images(dying), store=Store(tmp_path), skip_unreadable=True)
    with pytest.raises(ImageError, match="image 1 "):  # known, and still an error where nobody agreed to that
        run(Images(Items(noise(15))), store=Store(tmp_path))
    found, left_out = run(Images(Items(noise(15), lost)), store=Store(tmp_path), skip_unreadable=True)
    assert [one.sample for one in left_out] == sorted(lost)
    assert bytes_of(found) == bytes_of(expected)


def test_an_accumulator_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bytes_of(run(Images(Items(noise(21))))[0])
    update = TopReferences.update

    def dies(self: TopReferences, samples: Any, activation: Any) -> None:
        if 12 in samples:
            raise KeyboardInterrupt
        update(self, samples, activation)

    monkeypatch.setattr(TopReferences, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        run(Images(Items(noise(21))), store=Store(tmp_path))
    monkeypatch.setattr(TopReferences, "update", update)
    assert bytes_of(run(Images(Items(noise(21))), store=Store(tmp_path))[0]) == expected


def test_a_damaged_shard_is_computed_again(tmp_path: Path) -> None:
    expected = bytes_of(run(Images(Items(noise(21))))[0])
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(Images(Items(noise(21), {17: KeyboardInterrupt()})), store=store)
    path = store.path("shard", {"images": [0, 16], "batch_size": 4})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = Items(noise(21))
    with pytest.warns(StoreWarning, match="checksum"):
        found, _ = run(Images(again), store=store)
    assert again.loaded == [0, *range(21)]  # the first for its shape
    assert bytes_of(found) == expected


def broken_folder(root: Path, broken: int = 11) -> tuple[Images, Path]:
    picture_folder(root, 21, classes=1)
    file = root / "class0" / f"{broken:03d}.png"
    file.write_bytes(file.read_bytes()[:40])
    return folder_images(root, resize=12, crop=12), file


def test_an_unreadable_file_stops_the_sweep_and_is_named(tmp_path: Path) -> None:
    images, file = broken_folder(tmp_path / "pictures")
    store = Store(tmp_path / "sweep")
    with pytest.raises(ImageError, match="can't be read") as caught:
        run(images, store=store)
    for part in ("image 11 ", str(file), "skip_unreadable=True", "--skip-unreadable"):
        assert part in str(caught.value)
    assert len(store.manifests()) == 1  # the shard before it survives

    found, lost = run(images, store=store, skip_unreadable=True)
    assert [(u.sample, u.path) for u in lost] == [(11, str(file))]
    assert lost[0].reason
    assert not any((a.result().sample == 11).any() for a in found)
    assert (found[0].result().sample == 12).any()
    # From the store alone, it is still known what is missing, and still an error where nobody agreed to that.
    _, lost = run(images, store=store, skip_unreadable=True)
    assert [u.sample for u in lost] == [11]
    with pytest.raises(ImageError, match="image 11"):
        run(images, store=store)


def test_what_is_left_out_is_in_order() -> None:
    lost = {number: OSError("gone") for number in (1, 2, 9, 17)}  # of three shards
    _, left_out = run(Images(Items(noise(21), lost)), skip_unreadable=True)
    assert [one.sample for one in left_out] == [1, 2, 9, 17]


def test_images_that_can_no_longer_be_read() -> None:
    """They could, when the study was made."""
    items = Items(noise(9))
    images = Images(items)
    images.example  # noqa: B018
    items.broken.update({number: OSError("the disk is gone") for number in range(9)})
    with pytest.raises(ImageError, match=r"image 0 .*the disk is gone"):
        run(images, skip_unreadable=True)


def test_left_out_is_as_if_it_had_never_been() -> None:
    tensors = noise(21)
    found, _ = run(Images(Items(tensors, {4: OSError("gone")})), skip_unreadable=True, n=30)
    expected, _ = run(Images(Items(tensors)), n=30)
    for one, other in zip(found, expected):
        for channel in range(one.result().channels):
            ranks = other.result().sample[channel] != 4
            assert (one.result().sample[channel] == other.result().sample[channel][ranks]).all()


def test_all_unreadable() -> None:
    images = Images(Items(noise(5), {i: OSError(f"gone {i}") for i in range(5)}))
    with pytest.raises(ImageError, match=r"image 0 .*gone 0"):
        run(images, skip_unreadable=True)


def test_a_whole_batch_unreadable() -> None:
    images = Images(Items(noise(12), {i: OSError() for i in range(4, 8)}))
    found, lost = run(images, skip_unreadable=True, n=12)
    assert [u.sample for u in lost] == [4, 5, 6, 7]
    assert found[0].result().n == 8


def test_images_of_different_shapes() -> None:
    tensors = [*noise(5), *noise(1, 16), *noise(2)]
    with pytest.raises(
        ImageError, match=r"image 5 .*its shape \[3, 16, 16\] differs from \[3, 12, 12\].*resize and crop"
    ):
        run(Images(Items(tensors)))


def test_batches_of_different_shapes() -> None:
    with pytest.raises(ImageError, match="resize and crop"):
        run(Images(Items([*noise(4), *noise(4, 16)])))


def test_missing_layer() -> None:
    with pytest.raises(LayerError, match="has no layer 'layer4'"):
        sweep(plain(), Images(Items(noise(2))), [TopReferences("layer4")], run=Run(progress=False))


def test_not_finite() -> None:
    tensors = noise(6)
    tensors[5, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="layer '4' puts out NaN or infinity: channel 0, image 5"):
        run(Images(Items(tensors)))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_are_put_back(count: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with module.threaded(count):
            assert torch.get_num_threads() == count
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
