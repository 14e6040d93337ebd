"""Reference images against a full sort, and the same to the bit however the images are cut up and merged."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.compute.blocks import grouped
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, LayerError, NonFiniteError
from pure_nb.methods.references import References, TopReferences, warned_of_ties
from pure_nb.parameters import RankedBy

SHAPES = {"conv": (5, 3, 4), "tokens": (6, 5), "flat": (5,)}
GRIDS = {"conv": (3, 4), "tokens": (6,), "flat": ()}


def activation(kind: str, count: int = 30, seed: int = 0, largest: int = 3) -> Tensor:
    """Small whole numbers, so that ties are everywhere."""
    values = np.random.default_rng(seed).integers(-1, largest, (count, *SHAPES[kind]))
    return torch.from_numpy(values.astype(np.float32))


def slowly(values: Tensor, n: int, ranked_by: RankedBy) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """All scores of all images in float64, sorted: samples, scores, and positions of the maxima."""
    array = values.double().numpy()
    if array.ndim == 3:
        array = array.transpose(0, 2, 1)
    array = array.reshape(*array.shape[:2], -1)
    found = []
    for channel in range(array.shape[1]):
        score = array[:, channel].max(axis=1) if ranked_by == "max" else array[:, channel].mean(axis=1)
        order = np.lexsort((np.arange(len(score)), -score))[:n]
        found.append((order, score[order], array[order, channel].argmax(axis=1)))
    samples, scores, positions = zip(*found)
    return np.array(samples), np.array(scores), np.array(positions)


def top(values: Tensor, n: int, ranked_by: RankedBy = "max", batch: int = 7) -> TopReferences:
    accumulator = TopReferences("layer", n, ranked_by)
    for start in range(0, len(values), batch):
        accumulator.update(
            np.arange(start, min(start + batch, len(values))), {accumulator.layer: values[start : start + batch]}
        )
    return accumulator


def everything(references: References) -> tuple[Any, ...]:
    arrays = (references.sample, references.score, references.position, references.peak)
    return (*tuple((array.dtype, array.shape, array.tobytes()) for array in arrays), references.grid)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("ranked_by", ["max", "mean"])
@pytest.mark.parametrize("n", [1, 4, 29])
def test_equal_to_a_full_sort(kind: str, ranked_by: RankedBy, n: int) -> None:
    values = activation(kind)
    found = top(values, n, ranked_by).result()
    sample, score, position = slowly(values, n, ranked_by)
    assert (found.sample == sample).all()
    np.testing.assert_allclose(found.score, score, atol=1e-6)
    assert (np.diff(found.score, axis=1) <= 0).all()
    assert (found.layer, found.ranked_by, found.grid) == ("layer", ranked_by, GRIDS[kind])
    assert (found.channels, found.n) == (5, n)
    # Where a maximum is tied, any of its positions is right.
    flat = values.numpy() if values.ndim != 3 else values.numpy().transpose(0, 2, 1)
    flat = flat.reshape(*flat.shape[:2], -1)
    for (channel, rank), place in np.ndenumerate(found.position):
        one = flat[found.sample[channel, rank], channel]
        assert one[place] == one.max()
    if kind == "flat":
        assert (found.position == position).all()


def test_positions_without_ties() -> None:
    values = torch.randn(40, 5, 3, 4)
    found = top(values, 6).result()
    assert (found.position == slowly(values, 6, "max")[2]).all()


def test_fewer_images_than_references() -> None:
    found = top(activation("conv", 3), 10).result()
    assert found.sample.shape == (5, 3)
    assert (np.sort(found.sample, axis=1) == [0, 1, 2]).all()


def test_types() -> None:
    found = top(activation("conv"), 4).result()
    assert (found.sample.dtype, found.score.dtype, found.position.dtype) == (np.int64, np.float32, np.int64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    values = activation("conv")  # small whole numbers are exact in all of them
    assert everything(top(values.to(dtype), 5).result()) == everything(top(values, 5).result())


@given(
    data=st.data(), kind=st.sampled_from(list(SHAPES)), ranked_by=st.sampled_from(["max", "mean"]), n=st.integers(1, 12)
)
def test_any_batches_and_any_merges_give_the_same_bytes(data: Any, kind: str, ranked_by: RankedBy, n: int) -> None:
    count = data.draw(st.integers(1, 24))
    values = activation(kind, count, data.draw(st.integers(0, 5)), data.draw(st.integers(1, 4)))
    expected = everything(top(values, n, ranked_by, batch=count).result())
    images = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=6)) | {0, count})
    parts = []
    for start, stop in itertools.pairwise(cuts):  # each a batch of its own, of images in any order
        part = TopReferences("layer", n, ranked_by)
        chosen = np.array(images[start:stop])
        part.update(chosen, {"layer": values[chosen]})
        parts.append(part)
    parts.append(TopReferences("layer", n, ranked_by))  # an empty one changes nothing
    while len(parts) > 1:  # any two at a time: every order and every bracketing can come up
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        first.merge(second)
        parts.append(first)
    assert everything(parts[0].result()) == expected


@given(data=st.data(), n=st.integers(1, 6))
def test_batches_into_one_accumulator_in_any_order(data: Any, n: int) -> None:
    """Covers the shortcut for batches in which nothing enters."""
    values = activation("flat", 20, data.draw(st.integers(0, 9)), 2)
    accumulator = TopReferences("layer", n)
    starts = data.draw(st.permutations(range(0, 20, 4)))
    for start in starts:
        accumulator.update(np.arange(start, start + 4), {"layer": values[start : start + 4]})
    assert everything(accumulator.result()) == everything(top(values, n).result())


def test_state_round_trip(tmp_path: Any) -> None:
    whole, half = top(activation("conv"), 6), top(activation("conv"), 6, batch=30)
    store = Store(tmp_path)
    store.save_arrays("top", {}, half.state())
    loaded = store.load_arrays("top", {})
    assert loaded is not None
    again = TopReferences("layer", 6).restored(loaded[0])
    assert everything(again.result()) == everything(whole.result())
    again.merge(half)  # restored ones go on: the same images twice fill the ranks twice
    assert again.result().sample[0, 0] == again.result().sample[0, 1]


def test_restored_from_nothing_is_empty() -> None:
    fresh = top(activation("conv"), 6).restored({})
    assert fresh.state() == {}
    with pytest.raises(ArgumentError, match="no image was seen, so layer 'layer' has no reference images"):
        fresh.result()


def test_the_state_is_not_shared() -> None:
    first = top(activation("conv"), 6)
    before = everything(first.result())
    second = first.restored(first.state())
    second.update(np.array([99]), {"layer": 100 + activation("conv", 1)})
    assert everything(first.result()) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", SHAPES)
def test_not_finite(bad: float, kind: str) -> None:
    values = activation(kind, 4)
    axis_last = kind == "tokens"
    (values.movedim(-1, 1) if axis_last else values)[2, 3] = bad
    with pytest.raises(NonFiniteError, match=r"layer 'layer' puts out NaN or infinity: channel 3, image 12\b"):
        TopReferences("layer").update(np.arange(10, 14), {"layer": values})


def test_not_finite_where_it_is_not_the_largest() -> None:
    values = activation("conv", 4)
    values[2, 3, 0, 0] = -float("inf")
    with pytest.raises(NonFiniteError, match="channel 3, image 12"):
        TopReferences("layer").update(np.arange(10, 14), {"layer": values})


def test_settings_are_checked() -> None:
    with pytest.raises(ArgumentError, match="at least one reference image, got n=0"):
        TopReferences("layer", 0)
    with pytest.raises(ArgumentError, match="ranked_by must be one of max, mean, got 'median'"):
        TopReferences("layer", 1, "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [("other", 4, "max"), ("layer", 5, "max"), ("layer", 4, "mean")])
def test_only_like_merges_with_like(other: tuple[Any, ...]) -> None:
    with pytest.raises(ArgumentError, match="can't merge references of"):
        TopReferences("layer", 4).merge(TopReferences(*other))


@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 3, 4), r"had 5 channels on the grid \(3, 4\) and now has 4 on \(3, 4\)"),
        ((5, 6, 8), r"now has 5 on \(6, 8\)"),
    ],
)
def test_the_shape_stays(shape: tuple[int, ...], message: str, n: int) -> None:
    accumulator, other = top(activation("conv"), n), TopReferences("layer", n)
    with pytest.raises(LayerError, match=message):
        accumulator.update(np.array([50]), {"layer": 9 + torch.zeros(1, *shape)})
    other.update(np.array([50]), {"layer": torch.zeros(1, *shape)})
    with pytest.raises(LayerError, match=message):
        accumulator.merge(other)


def test_dead_channels() -> None:
    values = activation("conv")
    values[:, 2] = 0
    values[:, 3] = -1
    assert top(values, 3).result().alive.tolist() == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("ceiling", "ranked_by", "tied"), [(6, "max", True), (99, "max", False), (6, "mean", False), (0.01, "mean", True)]
)
def test_references_at_a_ceiling_are_told_of(ceiling: float, ranked_by: RankedBy, tied: bool) -> None:
    values = torch.arange(60.0).reshape(10, 2, 3, 1)
    values[:, 0, 0, 0] = torch.linspace(0, 1, 10)
    values[:, 1] = 0  # a dead channel, which counts nowhere
    found = top(values.clamp(max=ceiling), 4, ranked_by).result()
    assert found.tied.tolist() == [tied, False]
    with warnings.catch_warnings(record=True) as said:
        assert warned_of_ties(found) is found
    expected = ["in 1 of 1 live channels of layer 'layer' all 4 references have the same score"] if tied else []
    assert [str(one.message).split(",")[0] for one in said] == expected
    assert not (ranked_by == "mean" and "rank by the mean" in str([one.message for one in said]))


@pytest.mark.parametrize("kind", ["conv", "tokens"])
def test_dead_by_the_mean_is_dead_by_the_largest(kind: str) -> None:
    """What is above 0 somewhere is not dead, though its mean is below 0 in all images; parts say the same."""
    values = activation(kind) - 5
    channels = values.movedim(2, 1) if kind == "tokens" else values
    channels[:, 2].flatten(1)[:, 3] = 1.0  # a view: one position of each image
    channels[7, 4].flatten()[0] = 2.0
    by_max, by_mean = (top(values, 5, by).result() for by in ("max", "mean"))
    peaks = channels.double().numpy().reshape(len(values), channels.shape[1], -1).max(axis=2)
    expected = np.take_along_axis(peaks.T, by_mean.sample, axis=1)
    np.testing.assert_array_equal(by_mean.peak, expected)
    np.testing.assert_array_equal(by_mean.active, expected > 0)
    assert (by_mean.score[2] < 0).all()
    assert by_max.alive.tolist() == [number in (2, 4) for number in range(channels.shape[1])]
    assert by_mean.alive[2]
    assert not by_mean.alive[[0, 1, 3]].any()
    np.testing.assert_array_equal(by_max.peak, by_max.score)
    half, rest = top(values[:13], 5, "mean"), TopReferences("layer", 5, "mean")
    rest.update(np.arange(13, 30), {"layer": values[13:]})
    half.merge(rest.restored(rest.state()))
    assert everything(half.result()) == everything(by_mean)


def test_centres() -> None:
    def at(position: int, grid: tuple[int, ...], size: tuple[int, int]) -> list[float]:
        score = np.ones((1, 1), np.float32)
        one = References("l", "max", np.zeros((1, 1), np.int64), score, np.full((1, 1), position), grid, score)
        return one.centre(size)[0, 0].tolist()

    assert at(0, (2, 3), (20, 60)) == [10, 5]
    assert at(5, (2, 3), (20, 60)) == [50, 15]
    assert at(3, (2, 3), (20, 60)) == [10, 15]
    assert at(4, (6,), (20, 60)) == [30, 10]
    assert at(0, (), (20, 60)) == [30, 10]


def test_centre_is_in_the_cell_of_the_maximum() -> None:
    values = torch.zeros(1, 5, 3, 4)
    values[0, 1, 2, 1] = 1
    x, y = top(values, 1).result().centre((30, 40))[1, 0]
    assert (x, y) == (15, 25)  # column 1 of 4, ten pixels wide; row 2 of 3, ten pixels high


def test_table() -> None:
    references = top(activation("conv"), 4).result()
    table = references.table()
    assert list(table) == ["channel", "rank", "sample", "score", "position"]
    assert len(table) == 20
    for row in table.itertuples():
        assert row.sample == references.sample[row.channel, row.rank]
        assert row.score == references.score[row.channel, row.rank]
        assert row.position == references.position[row.channel, row.rank]


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=8))
def test_grouped(rows: list[list[int]]) -> None:
    sample = np.array(rows)
    unique, pairs = grouped(sample)
    assert unique.tolist() == sorted({number for row in rows for number in row})
    for number, own in zip(unique, pairs, strict=True):
        assert own.tolist() == [i for i, other in enumerate(sample.ravel()) if other == number]
