"""Class relevance and average relevance vectors, against their definitions: image by image, channel by channel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from small import Items, Tokens, noise, plain
from torch import Tensor, nn

from pure_nb.compute import sweep as sweep_module
from pure_nb.compute.store import Store
from pure_nb.compute.sweep import run_shard, sweep
from pure_nb.errors import ArgumentError, ImageError, LayerError, NonFiniteError
from pure_nb.images.data import Images
from pure_nb.methods.ownership import Assignment
from pure_nb.methods.pairs import class_pairs, cosine, gamma_polysemantic
from pure_nb.methods.references import TopReferences
from pure_nb.methods.relevance import ClassRelevance, ClassStatistics, Criterion, relevant_channels
from pure_nb.methods.splitting import part_activations
from pure_nb.methods.windows import KernelWindows, closed_form, dense_weight
from pure_nb.parameters import Run

NAMES = ("ant", "bee", "cat", "dog")


def run(
    model: nn.Module, images: Tensor, layer: str, lower: str, labels: NDArray[np.int64], **how: Any
) -> ClassStatistics:
    found = ClassRelevance(layer, lower, labels, 4, module=closed_form(model, layer, lower), **how)
    sweep(model, Images(Items(images)), [found], run=Run(batch_size=4, progress=False))
    return found.result()


def halves(model: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """A sequential network below a layer, and above it."""
    position = int(layer) + 1
    children = list(copy.deepcopy(model).double().children())
    for child in children:
        if isinstance(child, nn.ReLU):
            child.inplace = False
    return nn.Sequential(*children[:position]), nn.Sequential(*children[position:])


def slow_attribution(model: nn.Module, images: Tensor, layer: str, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """[images, channels]: sum over positions of A times the gradient of the true class's output, image by image."""
    below, above = halves(model, layer)
    rows = []
    for image, label in zip(images.double(), labels):
        activation = below(image[None]).detach().requires_grad_()
        above(activation)[0, label].backward()
        assert activation.grad is not None
        rows.append((activation * activation.grad)[0].detach().reshape(activation.shape[1], -1).sum(dim=1).numpy())
    return np.stack(rows)


def slow_vectors(part: nn.Module, lower: Tensor) -> NDArray[np.float64]:
    """[images, channels, sources]: a * d(sum of A_c)/da summed over positions, one channel and image at a time."""
    found = []
    for one in lower:
        rows = []
        for channel in range(part(one[None]).shape[1]):
            leaf = one[None].detach().clone().requires_grad_()
            part(leaf)[0, channel].sum().backward()
            assert leaf.grad is not None
            rows.append((leaf * leaf.grad)[0].detach().reshape(leaf.shape[1], -1).sum(dim=1).numpy())
        found.append(np.stack(rows))
    return np.stack(found)


LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 1])  # none of class 3


@pytest.mark.parametrize("lower", ["input:4", "2", "3", "1"])
def test_arvs_and_relevance_are_their_definitions(lower: str) -> None:
    model, images = plain(), noise(11)
    found = run(model, images, "4", lower, LABELS, criterion=Criterion(0.2))
    assert found.closed == (lower == "input:4")
    below, _ = halves(model, "4")
    start = {"input:4": 4, "2": 3, "3": 4, "1": 2}[lower]
    vectors = slow_vectors(below[start:], below[:start](images.double()).detach())
    attribution = slow_attribution(model, images, "4", LABELS).clip(min=0)
    share = attribution / attribution.sum(axis=1, keepdims=True)
    for label in range(3):
        own = label == LABELS
        expected = vectors[own].mean(axis=0)
        for channel in range(6):
            arv = found.arv(model, channel)[label]
            np.testing.assert_allclose(arv, expected[channel], rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(found.relevant[label], (share[own] >= 0.2).sum(axis=0))
        np.testing.assert_allclose(found.share[label], share[own].sum(axis=0), rtol=1e-4, atol=1e-6)
    assert found.images.tolist() == [5, 4, 2, 0]


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (2, 1)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": (2, 5), "padding": "same", "dilation": (3, 1)},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "groups": 3},
    {"kernel_size": 1, "stride": 2, "groups": 2, "bias": False},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_closed_form_of_every_convolution(geometry: dict[str, Any]) -> None:
    torch.manual_seed(1)
    part = nn.Conv2d(6, 12, **geometry).double()
    lower = torch.randn(3, 6, 9, 8, dtype=torch.float64)
    pooled = KernelWindows.from_module(part).pooled(lower).numpy()
    expected = slow_vectors(part, lower)
    for channel in range(12):
        found = (pooled * dense_weight(part, channel)).sum(axis=2)
        np.testing.assert_allclose(found, expected[:, channel], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5)])
def test_the_closed_form_of_linear_layers(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    part = nn.Linear(5, 4).double()
    lower = torch.randn(shape, dtype=torch.float64)
    pooled = KernelWindows.from_module(part).pooled(lower).numpy()
    gradient = part.weight.detach().numpy()  # [channels, sources], at each position
    summed = lower.numpy().reshape(3, -1, 5).sum(axis=1)
    for channel in range(4):
        found = (pooled * dense_weight(part, channel)).sum(axis=2)
        np.testing.assert_allclose(found, summed * gradient[channel], rtol=1e-9)


def test_tokens() -> None:
    """A layer that puts out tokens, with the part between not linear."""
    model, images = Tokens(), noise(6)
    labels = np.array([0, 1, 0, 1, 2, 2])
    found = run(model, images, "second", "first", labels)
    part = copy.deepcopy(model.second).double()
    with torch.no_grad():
        lower = (
            copy.deepcopy(model)
            .double()
            .first(copy.deepcopy(model).double().patches(images.double()).flatten(2).transpose(1, 2))
        )
    for label in range(3):
        expected = []
        for one in lower[torch.from_numpy(labels == label)]:
            leaf = one[None].clone().requires_grad_()
            part(leaf)[0, :, 5].sum().backward()
            assert leaf.grad is not None
            expected.append((leaf * leaf.grad)[0].sum(dim=0).detach().numpy())
        np.testing.assert_allclose(found.arv(model, 5)[label], np.mean(expected, axis=0), rtol=1e-3, atol=1e-4)


def test_in_the_same_pass_as_the_reference_images() -> None:
    model, images = plain(), Images(Items(noise(11)))
    alone_top, alone = TopReferences("4", 3), ClassRelevance("4", "2", LABELS, 4)
    sweep(model, images, [alone_top], run=Run(batch_size=4, progress=False))
    sweep(model, images, [alone], run=Run(batch_size=4, progress=False))
    items = Items(noise(11))
    top, both = TopReferences("4", 3), ClassRelevance("4", "2", LABELS, 4)
    sweep(model, Images(items), [top, both], run=Run(batch_size=4, progress=False))
    assert items.loaded == [0, *range(11)]  # once each, and the first for its shape
    np.testing.assert_array_equal(top.result().sample, alone_top.result().sample)
    np.testing.assert_array_equal(top.result().score, alone_top.result().score)
    for name, value in both.state().items():
        np.testing.assert_array_equal(value, alone.state()[name])


def test_one_pass_keeps_one_graph() -> None:
    pair = [ClassRelevance("4", lower, LABELS, 4) for lower in ("1", "2")]
    with pytest.raises(ArgumentError, match=r"one layer, not from each of \['1', '2'\]"):
        sweep(plain(), Images(Items(noise(11))), pair, run=Run(progress=False))


def test_the_model_is_left_as_it_was() -> None:
    model = plain().train()
    before = copy.deepcopy(model.state_dict())
    run(model, noise(11), "4", "2", LABELS)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@given(cuts=st.lists(st.integers(0, 11), max_size=3), seed=st.integers(0, 5))
def test_shards_in_any_cut_and_order(cuts: list[int], seed: int) -> None:
    model, images = plain(), Images(Items(noise(11)))
    edges = sorted({0, 11, *cuts})
    shards = [range(a, b) for a, b in pairwise(edges)]
    np.random.default_rng(seed).shuffle(shards)  # type: ignore[arg-type]
    merged = ClassRelevance("4", "input:4", LABELS, 4, module=model[4])
    for shard in shards:
        part = merged.restored({})
        for _ in run_shard(model, images, [part], shard, run=Run(batch_size=3)):
            pass
        merged.merge(part)
    whole = run(model, noise(11), "4", "input:4", LABELS)
    for name in ("relevant", "share", "pooled", "bootstrap_sums"):
        found = getattr(merged.result(), name)
        np.testing.assert_allclose(found, getattr(whole, name), rtol=1e-5, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(merged.result().images, whole.images)
    np.testing.assert_array_equal(merged.result().bootstrap_counts, whole.bootstrap_counts)


def test_stopped_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sweep_module, "shards", lambda count, _: [range(i, min(i + 4, count)) for i in range(0, count, 4)]
    )

    def go(images: Items, store: Store | None = None) -> dict[str, NDArray[Any]]:
        found = ClassRelevance("4", "2", LABELS, 4)
        sweep(plain(), Images(images), [found], store=store, run=Run(batch_size=2, progress=False))
        return found.state()

    expected, store = go(Items(noise(11))), Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        go(Items(noise(11), {9: KeyboardInterrupt()}), store)
    again = Items(noise(11))
    found = go(again, store)
    assert again.loaded == [0, 8, 9, 10]  # the first for its shape
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in expected.items()
    }


def test_replicas_are_poisson_weighted_sums() -> None:
    model, images = plain(), noise(11)
    found = run(model, images, "4", "2", LABELS, replicates=7, seed=3)
    below, _ = halves(model, "4")
    vectors = slow_vectors(below[3:], below[:3](images.double()).detach())
    weights = np.stack([np.random.default_rng([3, sample]).poisson(1, 7) for sample in range(11)])  # [images, 7]
    for label in (0, 1):
        own = label == LABELS
        total = weights[own].sum(axis=0)
        expected = np.einsum("nr,nci->rci", weights[own], vectors[own]) / np.where(total, total, np.nan)[:, None, None]
        for channel in range(6):
            replicas = found.bootstrap_arvs(model, channel, [label])[0]
            np.testing.assert_allclose(replicas, expected[:, channel], rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24), st.integers(2, 12), st.integers(0, 99))
def test_sums_of_a_batch_are_those_of_one_image_at_a_time(labels: list[int], width: int, seed: int) -> None:
    """To the bit, but for replicates: these are products of single precision, added in another order."""
    generator, label = np.random.default_rng(seed), np.array(labels)
    count = len(labels)
    own = ClassRelevance("4", "2", label, 4, replicates=5, seed=seed)
    expected: dict[str, Any] = {}
    for _ in range(2):
        relevant, share = generator.random((count, 3)) < 0.5, generator.random((count, 3))
        pooled = generator.normal(size=(count, width))
        own._add(label, np.arange(count), {"relevant": relevant, "share": share, "pooled": pooled})
        expected = expected or {name: np.zeros(value.shape) for name, value in own._sums.items()}
        for row in range(count):
            weights = np.random.default_rng([seed, row]).poisson(1, 5)
            added = {"images": 1, "relevant": relevant[row], "share": share[row], "pooled": pooled[row]}
            replicates = {"bootstrap_counts": weights, "bootstrap_sums": weights[:, None] * pooled[row]}
            for name, value in {**added, **replicates}.items():
                expected[name][label[row]] += value
    replicates = own._sums.pop("bootstrap_sums")
    for name, value in own._sums.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    largest = np.abs(expected["bootstrap_sums"]).max()
    np.testing.assert_allclose(replicates, expected["bootstrap_sums"], rtol=1e-6, atol=1e-6 * largest)


def test_replicates_of_a_class_are_added_once_a_batch() -> None:
    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __setitem__(self, *given: Any) -> None:
            added.append(given)
            super().__setitem__(*given)

    added: list[Any] = []
    own = ClassRelevance("4", "2", np.array([0] * 20 + [2] * 12), 4, replicates=5)
    own._sums = {name: value.view(Counted) for name, value in own._zeros(3, 6).items()}
    values = {"relevant": np.ones((32, 3), bool), "share": np.ones((32, 3)), "pooled": np.ones((32, 6))}
    own._add(own.labels, np.arange(32), values)
    assert len(added) == 2 * len(own._sums)  # of two classes


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Draw images of two classes many times: the true cosine must lie in most 90 % intervals, and not in all."""
    generator = np.random.default_rng(0)
    mean = np.array([[1.0, 0.2, 0.0], [0.3, 1.0, 0.5]])
    truth, inside = float(cosine(*mean)), 0
    for trial in range(100):
        drawn = mean[:, None] + 0.5 * generator.standard_normal((2, 40, 3))
        weights = np.stack([np.random.default_rng([trial, n]).poisson(1, 100) for n in range(80)]).reshape(2, 40, 100)
        statistics = ClassStatistics(
            layer="x",
            lower="y",
            closed=False,
            images=np.array([40, 40]),
            relevant=np.full((2, 1), 40),
            share=np.ones((2, 1)),
            pooled=drawn.sum(axis=1),
            bootstrap_counts=weights.sum(axis=1).astype(np.float32),
            bootstrap_sums=np.einsum("tnr,tnk->trk", weights, drawn).astype(np.float32),
        )
        (row,) = class_pairs(statistics, nn.Identity(), ["a", "b"], level=0.9).itertuples()
        assert row.low < row.cosine < row.high
        inside += row.low < truth < row.high
    assert 80 <= inside <= 98


def table(pooled: list[list[list[float]]], relevant: list[list[int]], images: list[int]) -> ClassStatistics:
    """Statistics by hand: vectors [classes][channels][sources], and counts."""
    vectors = np.array(pooled, dtype=float)
    flat = vectors.reshape(len(vectors), -1) * np.array(images)[:, None]
    return ClassStatistics(
        layer="x",
        lower="y",
        closed=False,
        images=np.array(images),
        relevant=np.array(relevant),
        share=np.full(np.shape(relevant), 0.5) * np.array(images)[:, None],
        pooled=flat,
        bootstrap_counts=np.tile(np.array(images, dtype=np.float32)[:, None], 5),
        bootstrap_sums=np.tile(flat.astype(np.float32)[:, None], (1, 5, 1)),
    )


def test_pairs() -> None:
    statistics = table(
        [[[1, 0], [1, 1]], [[0, 1], [1, 1]], [[-1, 0], [0, 0]], [[5, 5], [5, 5]]],
        [[4, 4], [4, 4], [3, 4], [0, 0]],
        [4, 4, 4, 0],  # no image of the dog
    )
    found = class_pairs(statistics, nn.Identity(), NAMES)
    assert found[["channel", "class_1", "class_2"]].values.tolist() == [
        [0, "ant", "cat"],
        [0, "ant", "bee"],
        [0, "bee", "cat"],
        [1, "ant", "bee"],
        [1, "ant", "cat"],
        [1, "bee", "cat"],
    ]
    # Opposite, orthogonal, identical; and a vector of zeros, which has no direction.
    np.testing.assert_allclose(found["cosine"], [-1, 0, 0, 1, np.nan, np.nan], atol=1e-12)
    np.testing.assert_allclose(found["share_1"], 0.5)
    some = gamma_polysemantic(found, 0.5)
    assert some["cosine"].tolist() == [-1, 0, 0]  # negative ones are kept, NaN is not below anything
    assert (
        len(class_pairs(statistics, nn.Identity(), NAMES, min_frequency=0.8)) == 4
    )  # 3 of 4 images are not enough any more
    assert list(class_pairs(table([[[1.0]]], [[0]], [3]), nn.Identity(), NAMES).columns) == list(found.columns)


def test_a_class_of_one_image_has_no_interval() -> None:
    statistics = table([[[1, 0]], [[1, 2]]], [[1], [4]], [1, 4])
    (row,) = class_pairs(statistics, nn.Identity(), NAMES).itertuples()
    assert row.cosine == pytest.approx(5**-0.5)
    assert np.isnan([row.low, row.high]).all()


def test_a_class_without_images_and_images_without_class() -> None:
    model, labels = plain(), np.array([0, -1, 0, -1, 2, 2])
    found = run(model, noise(6), "4", "2", labels)
    assert found.images.tolist() == [2, 0, 2, 0]
    assert np.isnan(found.arv(model, 0)[[1, 3]]).all()
    assert np.isfinite(found.arv(model, 0)[[0, 2]]).all()
    assert np.isnan(found.frequency[1]).all()
    assert 1 not in found.relevant_classes(0, min_frequency=0)
    empty = ClassRelevance("4", "2", np.full(3, -1), 4)
    sweep(model, Images(Items(noise(3))), [empty], run=Run(progress=False))
    with pytest.raises(ArgumentError, match="no labelled image was seen"):
        empty.result()


def test_channels_that_are_never_relevant() -> None:
    model = plain()
    with torch.no_grad():
        model[8].weight.zero_()  # so nothing speaks for any class
    found = run(model, noise(11), "4", "2", LABELS)
    assert found.relevant.sum() == 0
    assert not len(class_pairs(found, model, NAMES))


@pytest.mark.parametrize("cumulative_share", [None, 0.5, 1.0])
@given(values=arrays(np.float64, (3, 5), elements=st.floats(-2, 2).map(lambda x: round(x, 1))))
def test_carried(cumulative_share: float | None, values: NDArray[np.float64]) -> None:
    found = relevant_channels(values, 0.2, cumulative_share)
    for row, own in zip(values, found):
        positive = [max(value, 0) for value in row]
        if cumulative_share is None:
            assert own.tolist() == [value > 0 and value >= 0.2 * sum(positive) for value in positive]
            continue
        assert not own[row <= 0].any()
        order = sorted(range(5), key=lambda i: -positive[i])
        expected, reached = set(), 0.0
        for i in order:
            if positive[i] > 0 and reached < cumulative_share * sum(positive) - 1e-9:
                expected.add(i)
            reached += positive[i]
        assert set(np.flatnonzero(own)) == expected


def test_a_cumulative_share_carries_over_between_widths() -> None:
    """Each channel copied ten times over, with a tenth of the attribution: the same channels are relevant."""
    values = np.random.default_rng(0).exponential(size=(4, 8)) ** 2
    wide = np.repeat(values / 10, 10, axis=1)
    part = relevant_channels(values, cumulative_share=0.6)
    copies = relevant_channels(wide, cumulative_share=0.6).reshape(4, 8, 10)
    assert copies[part].mean() > 0.7
    assert not copies[~part].any()
    assert relevant_channels(values, 0.1).any()
    assert not relevant_channels(wide, 0.1).reshape(4, 8, 10).all(axis=2).any()  # the share does not


def test_cosine() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 5, 3))
    for one, two, found in zip(a, b, cosine(a, b)):
        assert found == pytest.approx(one @ two / (one @ one) ** 0.5 / (two @ two) ** 0.5)
    assert np.isnan(cosine(np.zeros(3), np.ones(3)))


def test_errors() -> None:
    model = plain()
    with pytest.raises(LayerError, match=r"puts out \[images, 9\]"):
        sweep(model, Images(Items(noise(3))), [ClassRelevance("4", "2", np.zeros(3, int), 9)], run=Run(progress=False))
    with pytest.raises(ArgumentError, match="numbers below 2"):
        ClassRelevance("4", "2", np.array([0, 2]), 2)
    with pytest.raises(ArgumentError, match="min_share must be from 0 to 1, got 3"):
        Criterion(min_share=3)
    with pytest.raises(LayerError, match="Conv2d or a Linear"):
        KernelWindows.from_module(nn.ReLU())
    with pytest.raises(ArgumentError, match="channels 0 to 5"):
        run(model, noise(11), "4", "2", LABELS).arv(model, 6)
    with torch.no_grad():
        model[8].weight[1] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"layer '4': the attribution of channel 0 to the class is NaN .* in image 0"
    ):
        run(model, noise(11), "4", "2", LABELS)


def test_memory_does_not_grow_with_the_images() -> None:
    model = plain()
    sizes = {run(model, noise(count), "4", "input:4", np.arange(count) % 4).nbytes for count in (8, 80)}
    (size,) = sizes
    inputs, replicates, classes = 7 * 9, 100, 4
    assert size == pytest.approx(8 * classes * inputs + 4 * classes * inputs * replicates, rel=0.03)


def test_every_pair_is_there_once() -> None:
    model = plain()
    found = run(model, noise(11), "4", "2", LABELS, criterion=Criterion(0.01))
    pairs = class_pairs(found, model, NAMES, min_frequency=0.1)
    expected = {
        (channel, NAMES[a], NAMES[b])
        for channel in range(6)
        for a, b in combinations(found.relevant_classes(channel, 0.1), 2)
    }
    assert {(row.channel, row.class_1, row.class_2) for row in pairs.itertuples()} == expected
    assert len(pairs) == len(expected) > 3
    assert pairs["cosine"].is_monotonic_increasing


@pytest.mark.parametrize("cumulative_share", [None, 0.6])
def test_relevant_images_add_up_to_the_counts(cumulative_share: float | None) -> None:
    """Image by image what the accumulator counts class by class, and what the slow definition says."""
    model, images, labels = plain(), noise(11), np.arange(11) % 4
    data, samples = Images(Items(images)), np.array([9, 0, 3, 4, 7, 8, 1])
    criterion = Criterion(0.2, cumulative_share)
    statistics = run(model, images[samples], "4", "input:4", labels[samples], criterion=criterion)
    slow = relevant_channels(slow_attribution(model, images[samples], "4", labels[samples]), 0.2, cumulative_share)
    for channel in range(6):
        assignment, how = Assignment("4", channel, np.eye(2, 7)), {"criterion": criterion, "run": Run(batch_size=3)}
        measured = part_activations(model, data, samples, assignment, labels=labels[samples], **how)
        found = measured.relevant
        without = part_activations(model, data, samples, assignment, **how)
        assert without.relevant.all()
        np.testing.assert_array_equal(measured.parts, without.parts)
        assert found.tolist() == slow[:, channel].tolist()
        counts = np.bincount(labels[samples][found], minlength=4)
        assert (counts == statistics.relevant[:, channel]).all()
    broken = Images(Items(images, {3: OSError("gone")}))
    with pytest.raises(ImageError, match="image 3"):
        part_activations(model, broken, samples, Assignment("4", 0, np.eye(2, 7)), labels=labels[samples])


def test_a_state_holds_the_classes_that_were_seen() -> None:
    """A shard of a thousand classes' data set has a few of them: its file must not hold all."""
    model, labels = plain(), np.array([2, 2, 0, 2])
    found = ClassRelevance("4", "input:4", labels, 4, module=model[4])
    sweep(model, Images(Items(noise(4))), [found], run=Run(progress=False))
    state = found.state()
    assert state["seen"].tolist() == [0, 2]
    assert {len(value) for value in state.values()} == {2}
    again = found.restored(state).result()
    for name, value in vars(found.result()).items():
        np.testing.assert_array_equal(getattr(again, name), value)


class Standardised(nn.Conv2d):
    """As in some networks of timm: other weights than those it holds."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(input, weight, self.bias, self.stride, self.padding)


def standardised(layer: nn.Conv2d) -> nn.Module:
    made = Standardised(7, 6, 3, padding=1)
    made.load_state_dict(layer.state_dict())
    return made.eval()


def hooked(layer: nn.Conv2d) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def branched(layer: nn.Conv2d) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 2,))
    return layer


def replaced(layer: nn.Conv2d) -> nn.Module:
    def forward(self: nn.Conv2d, input: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, input) - nn.Conv2d.forward(self, input.flip(1))

    layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize("change", [standardised, hooked, branched, replaced])
def test_a_convolution_that_does_something_else_is_differentiated(change: Callable[[nn.Conv2d], nn.Module]) -> None:
    model = plain()
    made = model[4] = change(model[4])
    assert closed_form(model, "4", "input:4") is None
    found = run(model, noise(11), "4", "input:4", LABELS)
    slow = slow_vectors(copy.deepcopy(made).double(), model[:4](noise(11)).double())
    np.testing.assert_allclose(found.arv(model, 2)[1], slow[LABELS == 1, 2].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_sums_that_would_not_fit() -> None:
    model = plain()
    found = ClassRelevance("4", "2", LABELS, 4, replicates=10**9)
    with pytest.raises(LayerError, match=r"layer '4' through '2' would take \d+ GB. With lower='input:4'"):
        sweep(model, Images(Items(noise(11))), [found], run=Run(progress=False))


def test_half_precision_is_summed_in_single() -> None:
    """A sum over positions that half precision can't hold, and an activation that it can't."""
    ones = torch.full((1, 2, 64, 64), 60.0, dtype=torch.float16)
    assert KernelWindows().pooled(ones).isinf().all()
    module = nn.Conv2d(2, 2, 1)
    found = ClassRelevance("4", "input:4", np.array([0]), 4, module=module)
    assert np.isfinite(found._pooled(ones, ones).numpy()).all()
    with torch.no_grad():
        model = plain()
        model[2].bias[0] = float("inf")
        model[4].weight[:, 0] = 0
    with pytest.raises(NonFiniteError):
        run(model, noise(11), "4", "input:4", LABELS)
