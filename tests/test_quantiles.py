"""References over the whole range against a sort of all activations, and the same however images are cut up."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_references import SHAPES, activation, everything
from torch import Tensor

from pure_nb.errors import ArgumentError
from pure_nb.methods import TopReferences
from pure_nb.methods.quantiles import QuantileReferences, shuffled


def fed(values: Tensor, n: int, batch: int = 7, size: int = 1000, **how: Any) -> QuantileReferences:
    accumulator = QuantileReferences("layer", n, **how)
    accumulator.size = size
    for start in range(0, len(values), batch):
        own = values[start : start + batch]
        accumulator.update(np.arange(start, start + len(own)), {"layer": own})
    return accumulator


def scores(values: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest and mean activation of all images in float64, ``[images, channels]`` each."""
    array = values.double().numpy()
    array = array.transpose(0, 2, 1) if array.ndim == 3 else array
    array = array.reshape(*array.shape[:2], -1)
    return array.max(axis=2), array.mean(axis=2)


def slowly(peak: NDArray[np.float64], score: NDArray[np.float64], n: int) -> list[int]:
    """The middle image of each n-th of those that activate a channel, by a sort of all."""
    order = sorted((image for image in range(len(peak)) if peak[image] > 0), key=lambda image: (-score[image], image))
    return [order[int((place + 0.5) * len(order) / n)] for place in range(n)] if len(order) > n else order


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("ranked_by", ["max", "mean"])
@pytest.mark.parametrize("n", [1, 4, 9])
def test_equal_to_a_sort_of_all(kind: str, ranked_by: Any, n: int) -> None:
    values = activation(kind, 60)
    found = fed(values, n, ranked_by=ranked_by).result()
    peaks, means = scores(values)
    for channel in range(found.channels):
        score = (peaks if ranked_by == "max" else means)[:, channel]
        assert found.sample[channel].tolist() == slowly(peaks[:, channel], score, n)
        np.testing.assert_allclose(found.score[channel], score[found.sample[channel]], atol=1e-6)
        np.testing.assert_array_equal(found.peak[channel], peaks[found.sample[channel], channel])
    assert (found.grid, found.ranked_by) == (fed(values, n).grid, ranked_by)


def test_a_channel_that_few_images_activate() -> None:
    values = activation("flat", 40) - 10
    values[[3, 30, 8], 2] = torch.tensor([1.0, 3.0, 2.0])
    found = fed(values, 6).result()
    assert found.sample[2, :3].tolist() == [30, 8, 3]
    assert found.active[2].tolist() == [True] * 3 + [False] * 3
    assert found.alive.tolist() == [False, False, True, False, False]
    assert fed(values[:4], 6).result().sample.shape == (5, 4)


def test_of_many_images_a_random_sample_counts() -> None:
    """The sample is the first active images in the random order, and its places are near those of all."""
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(6000, 2)))
    values[:, 1] -= 2.5  # which few activate
    found = fed(values, 10, batch=500).result()
    order = np.argsort(shuffled(np.arange(6000), 0))
    peaks = scores(values)[0]
    for channel in range(2):
        active = [image for image in order if peaks[image, channel] > 0][:1000]
        own = np.full(6000, -1.0)
        own[active] = peaks[active, channel]
        assert found.sample[channel].tolist() == slowly(own, own, 10)
    every = np.sort(peaks[peaks[:, 0] > 0, 0])[::-1]
    place = np.searchsorted(-every, -found.score[0].astype(np.float64)) / len(every)
    np.testing.assert_allclose(place, (np.arange(10) + 0.5) / 10, atol=5 * 0.016)
    assert (fed(values, 10, batch=500, seed=1).result().sample[0] != found.sample[0]).any()


@given(data=st.data(), n=st.integers(1, 4), size=st.sampled_from([8, 1000]))
def test_any_batches_and_any_merges_give_the_same_bytes(data: Any, n: int, size: int) -> None:
    count = data.draw(st.integers(1, 40))
    values = activation("conv", count, data.draw(st.integers(0, 5)))
    images = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=5)) | {0, count})
    whole = QuantileReferences("layer", n)
    whole.size = size
    for start, stop in itertools.pairwise(cuts):
        part, chosen = fed(values[:0], n, size=size), np.array(images[start:stop])
        part.update(chosen, {"layer": values[chosen]})
        if data.draw(st.booleans()):
            held = part.state()
            part = QuantileReferences("layer", n).restored(held)
            part.size = size
        whole.merge(part)
    assert everything(whole.result()) == everything(fed(values, n, count, size).result())


def test_the_random_order() -> None:
    place = shuffled(np.arange(100_000), 3)
    assert len(np.unique(place)) == 100_000
    assert place.min() >= 0
    rank = np.argsort(np.argsort(place))
    assert abs(np.corrcoef(rank, np.arange(100_000))[0, 1]) < 0.01
    assert abs(np.corrcoef(rank[1:], rank[:-1])[0, 1]) < 0.01
    assert abs(np.corrcoef(rank, np.argsort(np.argsort(shuffled(np.arange(100_000), 4))))[0, 1]) < 0.01
    counts = np.bincount(place >> 56, minlength=128)  # even
    assert abs(counts - 100_000 / 128).max() < 5 * np.sqrt(100_000 / 128)


def test_only_like_merges_with_like() -> None:
    for other in (QuantileReferences("layer", 4, seed=1), TopReferences("layer", 4)):
        with pytest.raises(ArgumentError, match="can't merge references by quantiles"):
            QuantileReferences("layer", 4).merge(other)
    with pytest.raises(ArgumentError, match="can't merge references of"):
        QuantileReferences("layer", 4).merge(QuantileReferences("layer", 5))
    with pytest.raises(ArgumentError, match="no image was seen"):
        QuantileReferences("layer", 4).result()
