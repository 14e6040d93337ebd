"""Planted polysemanticity: the network computes the same, and sources are what one works out on paper."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
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
from zennit.composites import EpsilonPlusFlat

from pure_nb.benchmark.planting import (
    PlantedLayer,
    Planting,
    contributions,
    dominant_source,
    draw,
    likeness_of,
    overlap,
    plant,
    shares,
)
from pure_nb.benchmark.tasks import DOMINANT, Task, likeness, objects_task, planted_task
from pure_nb.compute.sweep import sweep
from pure_nb.errors import ImageError, LayerError, PlantingError, StudyError, StudyWarning
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.methods.references import References, TopReferences
from pure_nb.network.layers import OUTPUT, activations
from pure_nb.parameters import Run
from pure_nb.study import Study

# Two channels a and b over two positions. Kept apart by a 1x1 convolution with the weights [[1, 0], [0, 1]], their
# scores are a: 7, 3, 2, 0, 0, 0 and b: 4, 1, 1, 0, 0, 0, so that the scales are 12 / 6 = 2 and 6 / 6 = 1.
HAND = torch.tensor(
    [
        [[[7.0, 0.0]], [[0.0, 0.0]]],
        [[[2.0, 0.0]], [[0.0, 0.0]]],
        [[[0.0, 0.0]], [[0.0, 4.0]]],
        [[[0.0, 0.0]], [[0.0, 1.0]]],
        [[[3.0, 0.0]], [[1.0, 0.0]]],
        [[[0.0, 0.0]], [[0.0, 0.0]]],
    ]
)
# So the merged channel a / 2 + b / 1 scores 3.5, 1, 4, 1, 2.5, 0; equal scores are in the order of the images.
ORDER = [2, 0, 4, 1, 3, 5]
SCORE = [4.0, 3.5, 2.5, 1.0, 1.0, 0.0]
BROUGHT = [[0.0, 4.0], [3.5, 0.0], [1.5, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def by_hand() -> nn.Sequential:
    """[B, 2, 1, 2] to the logits [B, 2], the means of ReLU(a) and ReLU(b) over the two positions."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        for module in (model[0], model[4]):
            module.weight.copy_(torch.eye(2).view_as(module.weight))
            module.bias.zero_()
    return model.eval()


def references(model: nn.Module, images: Images, layer: str, n: int = 6, by: Any = "max") -> References:
    top = TopReferences(layer, n, by)
    sweep(model, images, [top], run=Run(progress=False))
    return top.result()


def table(scores: Any, sample: Any = None, layer: str = "l") -> References:
    """References of which only the scores, and maybe the images, matter."""
    score = np.asarray(scores, dtype=np.float32)
    numbers = np.arange(score.size).reshape(score.shape) if sample is None else np.asarray(sample)
    return References(layer, "max", numbers, score, np.zeros(score.shape, np.int64), (2, 2), score)


def hand_task(tmp_path: Path, target: str = "0", **how: Any) -> Task:
    study = Study.from_model(
        by_hand(), Items(HAND), target, "input:0", n_references=6, n_clusters=2, store=tmp_path / "hand"
    )
    return planted_task(study.replace(progress=False), **{"groups": ((0, 1),), **how})


# ---------------------------------------------------------------------------------------------------------- on paper


@pytest.mark.parametrize("layer", ["0", "1"])
def test_merged_weights_on_paper(layer: str) -> None:
    model, images = by_hand(), Images(Items(HAND))
    own = references(model, images, layer)
    assert own.score.mean(axis=1).tolist() == [2, 1]
    planted, planting = plant(model, own, [(0, 1), (1, 1)], [(1, 0.5), (1, 1)])
    assert planting.layer == layer
    assert planting.target == f"{layer}.merged"
    assert planting.groups == ((0, 1), (1, 1))
    assert planting.self_merged.tolist() == [False, True]
    assert planting.early == (layer == "0")
    # 1 / 2 and 0.5 / 1; then 1 / 1 twice.
    assert planting.weight.tolist() == [[0.5, 0.5], [0, 2]]
    inside: Any = planted.get_submodule(layer)
    assert isinstance(inside, PlantedLayer)
    assert isinstance(inside.merged, nn.Conv2d)
    assert inside.merged.weight.flatten(1).tolist() == [[0.5, 0.5], [0, 2]]
    assert inside.mix.tolist() == [[0.5, 0.5], [0, 2]]
    # Channel 0 is in one group of two: 1 / 2 of merged 0, over its weight 0.5. Channel 1 is in two groups, of two
    # sources and of one: 1 / (2 * 2) / 0.5 of merged 0 and 1 / (1 * 2) / 2 of merged 1.
    assert inside.back.tolist() == [[1, 0], [0.5, 0.25]]
    # Only a layer that is linear in its input has a bias to merge.
    assert (inside.merged.bias is None) == (layer == "1")


def test_merged_bias_on_paper() -> None:
    model = by_hand()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]).view_as(model[0].weight))
        model[0].bias.copy_(torch.tensor([4.0, -8.0]))
    # The scales are those of the references, wherever they come from: 2 and 4.
    own = table([[3, 1], [5, 3]], layer="0")
    planted, _ = plant(model, own, [(0, 1)])
    merged: Any = planted.get_submodule("0.merged")
    # [1, 2] / 2 + [0, 1] / 4 and 4 / 2 - 8 / 4.
    assert merged.weight.flatten().tolist() == [0.5, 1.25]
    assert merged.bias.tolist() == [0]


@pytest.mark.parametrize("layer", ["0", "1"])
@pytest.mark.parametrize("by", ["max", "mean"])
def test_contributions_on_paper(layer: str, by: Any) -> None:
    model, images = by_hand(), Images(Items(HAND))
    planted, planting = plant(model, references(model, images, layer, by=by), [(0, 1)])
    found = references(planted, images, planting.target, by=by)
    contributed = contributions(planted, images, found, planting, run=Run(batch_size=4))
    assert found.sample.tolist() == [ORDER]
    # The means over two positions are half the maxima here, and so are the scales: nothing changes.
    assert found.score.tolist() == [SCORE]
    assert contributed.dtype == np.float32
    assert contributed.tolist() == [BROUGHT]
    assert dominant_source(contributed).tolist() == [[1, 0, 0, 0, 1, -1]]
    np.testing.assert_allclose(shares(contributed), [[[0, 1], [1, 0], [0.6, 0.4], [1, 0], [0, 1], [0, 0]]])


def test_the_weaker_source_contributes_less() -> None:
    """With b at a tenth the fourth image still has it as driver, and of the mixed one a brings 1.5 of 1.6."""
    model, images = by_hand(), Images(Items(HAND))
    planted, planting = plant(model, references(model, images, "1"), [(0, 1)], [(1, 0.1)])
    found = references(planted, images, planting.target)
    contributed = contributions(planted, images, found, planting)
    assert found.sample.tolist() == [[0, 4, 1, 2, 3, 5]]
    np.testing.assert_allclose(contributed, [[[3.5, 0], [1.5, 0.1], [1, 0], [0, 0.4], [0, 0.1], [0, 0]]], rtol=1e-6)
    assert shares(contributed)[0, 1, 0] == pytest.approx(1.5 / 1.6)


def test_a_source_twice_brings_half_as_each() -> None:
    model, images = by_hand(), Images(Items(HAND))
    planted, planting = plant(model, references(model, images, "1"), [(1, 1), (0, 1, 0)])
    found = references(planted, images, planting.target)
    contributed = contributions(planted, images, found, planting)
    assert contributed.shape == (2, 6, 3)
    # Twice b over its scale: 8 for the third image, of which either brings 4, and nobody the rest.
    assert found.sample[0, :3].tolist() == [2, 3, 4]
    assert contributed[0, :3].tolist() == [[4, 4, 0], [1, 1, 0], [1, 1, 0]]
    # Twice a over its scale, and b: 7 for the first image, 1.5 + 1 + 1.5 for the mixed one.
    assert found.sample[1, :3].tolist() == [0, 2, 4]
    assert contributed[1, :3].tolist() == [[3.5, 0, 3.5], [0, 4, 0], [1.5, 1, 1.5]]


def test_dominant_sources_and_shares_on_paper() -> None:
    contributions = np.array([[1, 3], [2, 2], [-1, 0.5], [-1, -2], [0, 0], [3, -1]], dtype=np.float32)
    # Equal ones go to the first; what pushes the other way is dominant nowhere.
    assert dominant_source(contributions).tolist() == [1, 0, 1, -1, -1, 0]
    assert shares(contributions).tolist() == [[0.25, 0.75], [0.5, 0.5], [0, 1], [0, 0], [0, 0], [1, 0]]


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 4)), elements=st.floats(-9, 9, width=16)))
def test_shares_sum_to_one_or_nothing(contributions: NDArray[np.float32]) -> None:
    found, driver = shares(contributions), dominant_source(contributions)
    assert (found >= 0).all()
    for row, part, own in zip(contributions.tolist(), found, driver.tolist()):
        if max(row) > 0:
            assert part.sum() == pytest.approx(1)
            assert row[own] == max(row)
            assert part[own] == part.max()
        else:
            assert part.sum() == 0
            assert own == -1


# --------------------------------------------------------------------------------------------- against slow loops


def outputs(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a layer puts out, in double precision: [B, C, P]."""
    kept: list[Tensor] = []
    model = copy.deepcopy(model).double()
    model.get_submodule(layer).register_forward_hook(lambda *call: kept.append(call[2].clone()))
    with torch.no_grad():
        model(images.double())
    found = kept[0]
    return found.transpose(1, 2) if found.ndim == 3 else found.reshape(*found.shape[:2], -1)


def grouped_convolution() -> nn.Sequential:
    torch.manual_seed(1)
    middle = nn.Conv2d(6, 8, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="reflect")
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


CASES: dict[str, tuple[Any, str, Any]] = {
    "convolution": (plain, "4", "max"),
    "convolution, mean": (plain, "4", "mean"),
    "relu": (plain, "5", "max"),
    "relu, mean": (plain, "5", "mean"),
    "groups": (grouped_convolution, "2", "max"),
    "vector": (plain, "7", "max"),
    "tokens": (lambda: Tokens().eval(), "second", "max"),
    "tokens, mean": (lambda: Tokens().eval(), "second", "mean"),
    "linear over tokens": (lambda: Tokens().eval(), "second.mlp.0", "max"),
    "linear without bias": (lambda: without_bias(), "8", "max"),
}


def without_bias() -> nn.Sequential:
    model = plain()
    torch.manual_seed(0)
    model[8] = nn.Linear(6, 9, bias=False)
    return model.eval()


def planted_case(name: str) -> tuple[nn.Module, Images, References, nn.Module, Planting]:
    """Four groups of living channels: a pair, another that shares one with it, a null, and three of them."""
    make, layer, by = CASES[name]
    model, images = make(), Images(Items(noise(15)))
    own = references(model, images, layer, 4, by)
    a, b, c, *_ = np.flatnonzero(own.score.mean(axis=1) > 0).tolist()
    planted, planting = plant(model, own, [(a, b), (c, a), (b, b), (c, b, a)], [(1, 0.5), (1, 1), (1, 1), (2, 1, 0.3)])
    return model, images, own, planted, planting


@pytest.mark.parametrize("name", CASES)
def test_weights_and_contributions_are_those_of_a_slow_loop(name: str) -> None:
    model, images, own, planted, planting = planted_case(name)
    layer, by = own.layer, own.ranked_by
    values = outputs(model, layer, noise(15)).numpy()
    strengths = [(1, 0.5), (1, 1), (1, 1), (2, 1, 0.3)]
    weight = np.zeros((4, values.shape[1]))
    for number, group in enumerate(planting.groups):
        for channel, strength in zip(group, strengths[number]):
            scores = sorted(values[i, channel].max() if by == "max" else values[i, channel].mean() for i in range(15))
            weight[number, channel] += strength / (sum(scores[-4:]) / 4)
    np.testing.assert_allclose(planting.weight, weight, rtol=1e-4)
    # The merged channels, as a layer of the planted network.
    merged = np.einsum("mc,bcp->bmp", weight, values)
    np.testing.assert_allclose(outputs_at(planted, planting.target, noise(15)), merged, rtol=1e-3, atol=1e-4)
    found = references(planted, images, planting.target, 7, by)
    contributed = contributions(planted, images, found, planting, run=Run(batch_size=4))
    assert contributed.shape == (4, 7, 3)
    for number, group in enumerate(planting.groups):
        scores = [own.max() if by == "max" else own.mean() for own in merged[:, number]]
        assert found.sample[number].tolist() == sorted(range(15), key=lambda i: -scores[i])[:7]
        for rank, image in enumerate(found.sample[number]):
            expected = [0.0, 0.0, 0.0]
            for place, channel in enumerate(group):
                at = int(merged[image, number].argmax())
                value = values[image, channel, at] if by == "max" else values[image, channel].mean()
                expected[place] = weight[number, channel] / list(group).count(channel) * value
            np.testing.assert_allclose(contributed[number, rank], expected, rtol=1e-3, atol=1e-4)
            assert sum(expected) == pytest.approx(scores[image])
    assert planting.early == ("relu" not in name and name not in ("vector", "tokens", "tokens, mean"))


def outputs_at(planted: nn.Module, layer: str, images: Tensor) -> NDArray[np.float32]:
    """The same in single precision: [B, C, P]."""
    with torch.no_grad():
        found = activations(planted, images, [layer])[layer]
    return (found.transpose(1, 2) if found.ndim == 3 else found.reshape(*found.shape[:2], -1)).numpy()


def test_a_broken_image_is_named() -> None:
    model, images = by_hand(), Images(Items(HAND))
    planted, planting = plant(model, references(model, images, "1"), [(0, 1)])
    found = references(planted, images, planting.target)
    with pytest.raises(ImageError, match=r"image 3 .*gone"):
        contributions(planted, Images(Items(HAND, {3: OSError("gone")})), found, planting)


# ------------------------------------------------------------------------------------- the network as it was before


@pytest.mark.parametrize("name", CASES)
def test_the_network_computes_the_same(name: str) -> None:
    model, _, own, planted, planting = planted_case(name)
    images = noise(5, seed=1)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(planted(images), expected, rtol=0, atol=1e-5)
        # It is no accident that they are equal: the merged channels are on the way.
        merged: Any = planted.get_submodule(planting.target)
        merged.weight.mul_(1.5)
        assert (planted(images) - expected).abs().max() > 1e-3
    assert isinstance(planted.get_submodule(own.layer), PlantedLayer)


@pytest.mark.parametrize("name", CASES)
def test_gradients_with_respect_to_the_images_are_the_same(name: str) -> None:
    model, _, _, planted, _ = planted_case(name)
    found = []
    for network in (model, planted):
        images = noise(3, seed=1).requires_grad_()
        start = torch.rand(3, network(images).shape[1], generator=torch.Generator().manual_seed(0))
        found.append(torch.autograd.grad(network(images), images, start)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_merged_channels_stand_for_their_sources_above(name: str) -> None:
    """The gradient at a merged channel is what its sources' gradients give, each by its share of the channel."""
    model, _, own, planted, planting = planted_case(name)
    layer, target, images = own.layer, planting.target, noise(3, seed=1)
    start = torch.ones(3, model(images).shape[1])
    start[:, 0] = -2
    top = activations(model, images, [layer, OUTPUT], leaf=layer)
    (above,) = torch.autograd.grad(top[OUTPUT], top[layer], start)
    top = activations(planted, images, [target, OUTPUT], leaf=target)
    (found,) = torch.autograd.grad(top[OUTPUT], top[target], start)
    axis = 2 if above.ndim == 3 else 1
    above, found = above.movedim(axis, -1), found.movedim(axis, -1)
    for number, group in enumerate(planting.groups):
        expected = torch.zeros(above.shape[:-1])
        for channel in set(group):
            groups = sum(channel in other for other in planting.groups)
            expected += above[..., channel] / (len(set(group)) * groups * planting.weight[number, channel])
        torch.testing.assert_close(found[..., number], expected, rtol=1e-3, atol=1e-5)
        assert found[..., number].abs().max() > 0


def test_both_sources_get_something_back_on_paper() -> None:
    """Logit a is mean(ReLU(a)): half of what a gets back of the merged channel, and half as much of logit b."""
    model, images = by_hand(), Images(Items(HAND))
    planted, planting = plant(model, references(model, images, "1"), [(0, 1)])
    top = activations(planted, HAND[4:5], [planting.target, OUTPUT], leaf=planting.target)
    gradients = [torch.autograd.grad(top[OUTPUT][0, k], top[planting.target], retain_graph=True)[0] for k in (0, 1)]
    # a gets half the merged channel over its weight 1 / 2, b over its weight 1; the mean of two positions halves it.
    assert gradients[0].flatten().tolist() == [0.5, 0.5]
    assert gradients[1].flatten().tolist() == [0.25, 0.25]


@pytest.mark.parametrize("layer", ["4", "5"])
def test_the_original_is_left_alone(layer: str) -> None:
    model = plain()
    own = references(model, Images(Items(noise(9))), layer, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    planted, _ = plant(model, own, [(0, 1)])
    assert torch.equal(torch.get_rng_state(), generator)
    assert not isinstance(model.get_submodule(layer), PlantedLayer)
    for value in planted.state_dict().values():
        value.zero_()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_modes_are_kept(training: bool, trainable: bool) -> None:
    model = plain()
    own = references(model, Images(Items(noise(9))), "4", 3)
    model.train(training).requires_grad_(trainable)
    planted, planting = plant(model, own, [(0, 1)])
    assert {module.training for module in planted.modules()} == {training}
    assert {parameter.requires_grad for parameter in planted.parameters()} == {trainable}
    assert sum(1 for _ in planted.get_submodule(planting.target).parameters()) == 2


def test_modes_inside_the_layer_are_kept() -> None:
    """A frozen batch norm inside a block that is being trained, as is usual in fine-tuning."""
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    own = references(model, Images(Items(noise(9))), "0", 3)
    block[1].eval()
    planted, _ = plant(model, own, [(0, 1)])
    assert not planted.get_submodule("0.whole.1").training


@pytest.mark.parametrize("layer", ["4", "5"])
def test_double_precision_is_kept(layer: str) -> None:
    """A ReLU has no parameters to tell what the network computes in."""
    model = plain()
    own = references(model, Images(Items(noise(9))), layer, 3)
    model = model.double()
    planted, planting = plant(model, own, [(0, 1)])
    images = noise(3).double()
    torch.testing.assert_close(planted(images), model(images), rtol=0, atol=1e-12)
    assert activations(planted, images, [planting.target])[planting.target].dtype == torch.float64


@pytest.mark.parametrize("layer", ["4", "5"])
def test_planted_networks_are_copied_and_reloaded(layer: str) -> None:
    model, images = plain(), noise(3)
    own = references(model, Images(Items(noise(9))), layer, 3)
    planted, _ = plant(model, own, [(0, 1), (2, 3)])
    twin = copy.deepcopy(planted)
    torch.testing.assert_close(twin(images), planted(images), rtol=0, atol=0)
    other, _ = plant(plain(seed=1), own, [(4, 5), (0, 3)])
    assert not torch.allclose(other(images), planted(images))
    state = {name: value.clone() for name, value in planted.state_dict().items()}
    assert {f"{layer}.mix", f"{layer}.back", f"{layer}.merged.weight"} <= set(state)
    other.load_state_dict(state)
    torch.testing.assert_close(other(images), planted(images), rtol=0, atol=0)


def test_one_layer_is_planted_beside_another() -> None:
    model, images = plain(), Images(Items(noise(9)))
    once, _ = plant(model, references(model, images, "2", 3), [(0, 1)])
    twice, planting = plant(once, references(once, images, "4", 3), [(0, 2)])
    assert planting.target == "4.merged"
    torch.testing.assert_close(twice(noise(3)), model(noise(3)), rtol=0, atol=1e-5)
    assert isinstance(twice.get_submodule("2"), PlantedLayer)


@pytest.mark.parametrize(
    ("layer", "early", "name", "expected"),
    [
        ("4", True, "2", "2"),  # elsewhere
        ("4", True, "input:2", "input:2"),
        ("4", True, "40.1", "40.1"),  # begins with the same letters only
        ("4", True, "4", "4"),  # the layer's own output is still there
        ("4", True, "input:4", "input:4.merged"),
        ("4", False, "input:4", "input:4"),
        ("layer4", False, "layer4.0.conv1", "layer4.whole.0.conv1"),
        ("layer4", False, "input:layer4.0", "input:layer4.whole.0"),
        ("layer4", False, "layer4.0", "layer4.whole.0"),
        ("layer4.0", False, "layer4.0.bn1", "layer4.0.whole.bn1"),
        ("layer4.0", False, "layer4", "layer4"),
        ("layer4", False, "layer3", "layer3"),
    ],
)
def test_names_in_the_planted_network(layer: str, early: bool, name: str, expected: str) -> None:
    assert Planting(layer, ((0, 1),), np.ones((1, 2)), early).renamed(name) == expected


def test_renamed_layers_put_out_the_same(glyphnet: nn.Module) -> None:
    own = table(np.ones((32, 2)), layer="layer4")
    planted, planting = plant(glyphnet, replace(own, grid=(12, 12)), [(0, 1)])
    for name in ("layer3", "layer4", "input:layer4", "input:layer4.0", "layer4.0", "layer4.0.conv1", "layer4.0.bn2"):
        with torch.no_grad():
            expected = activations(glyphnet, noise(2, 96), [name])[name]
            found = activations(planted, noise(2, 96), [planting.renamed(name)])[planting.renamed(name)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("groups", "strengths", "message"),
    [
        ([], None, r"no channels of layer 'l' were named"),
        ([(0, 1), (1,)], None, r"needs two or more sources, got \(1,\)"),
        ([()], None, r"needs two or more sources, got \(\)"),
        ([(0, 3)], None, r"there is no channel 3 in layer 'l', which has 3"),
        ([(-1, 0)], None, r"there is no channel -1 in layer 'l'"),
        ([(0, 2)], None, r"channel 2 of layer 'l' is dead, its mean score is 0, so"),
        ([(0, 1)], [(1, 1), (1, 1)], r"strengths must have as many groups"),
        ([(0, 1)], [(1, 1, 1)], r"a number for each of their channels"),
        ([(0, 1)], [(1, 0)], r"a strength must be above 0, got 0.0 for channel 1"),
        ([(0, 1)], [(-1, 1)], r"a strength must be above 0, got -1.0 for channel 0"),
        ([(0, 1)], [(1, float("nan"))], r"a strength must be above 0, got nan"),
        ([(0, 1)], [(1, float("inf"))], r"a strength must be above 0, got inf"),
    ],
)
def test_mistakes_in_what_to_merge(groups: Any, strengths: Any, message: str) -> None:
    own = table([[2, 1], [3, 3], [0, 0]])
    with pytest.raises(PlantingError, match=message):
        plant(by_hand(), own, groups, strengths)


def test_a_channel_that_is_negative_everywhere_is_dead() -> None:
    with pytest.raises(PlantingError, match=r"is dead, its mean score is -1.5"):
        plant(by_hand(), table([[2, 1], [-1, -2]]), [(0, 1)])


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(LayerError, match="has no layer 'l'"):
        plant(by_hand(), table([[2, 1], [3, 3]]), [(0, 1)])


# ------------------------------------------------------------------------------------------------------- the draw

SCORES = np.array([[2.0, 1.0]] * 12)
SCORES[[3, 7]] = 0
SCORES[9] = -1


@pytest.mark.parametrize("k", [2, 3])
def test_random_groups(k: int) -> None:
    groups = draw(table(SCORES), 30, k)
    assert len(groups) == len(set(groups)) == 30
    for group in groups:
        assert len(set(group)) == k
        assert list(group) == sorted(group)
        assert not {3, 7, 9} & set(group)
        assert all(type(channel) is int for channel in group)
    assert {channel for group in groups for channel in group} == set(range(12)) - {3, 7, 9}
    assert draw(table(SCORES), 30, k) == groups
    assert draw(table(SCORES), 30, k, seed=1) != groups
    assert draw(table(SCORES), 5, k) == groups[:5]  # more of them does not change those that were there


def test_no_group_comes_twice() -> None:
    """Of nine living channels there are 36 pairs, and no more."""
    assert len(set(draw(table(SCORES), 36))) == len(draw(table(SCORES), 36)) == 36
    assert len(draw(table(SCORES), 50)) == 36


@pytest.mark.parametrize("k", [2, 3])
def test_similar_groups_are_more_alike(k: int) -> None:
    alike = likeness_of(np.random.default_rng(0).standard_normal((40, 3)))
    own = table(np.ones((40, 2)))
    found = {how: draw(own, 6, k, how=how, likeness=alike) for how in ("random", "similar", "dissimilar")}

    def mean(group: tuple[int, ...]) -> float:
        pairs = [alike[i, j] for i in group for j in group if i < j]
        return sum(pairs) / len(pairs)

    means = {how: [mean(group) for group in groups] for how, groups in found.items()}
    assert all(len(set(groups)) == 6 for groups in found.values())
    assert min(means["similar"]) > max(means["dissimilar"]) + 0.5
    assert np.mean(means["similar"]) > np.mean(means["random"]) > np.mean(means["dissimilar"])
    # The most extreme come first.
    assert means["similar"] == sorted(means["similar"], reverse=True)
    assert means["dissimilar"] == sorted(means["dissimilar"])


def test_overlapping_groups_share_references() -> None:
    # Channels 0 and 1 share both images, 2 and 3 one of two, all others none.
    sample = np.arange(20).reshape(10, 2)
    sample[1] = sample[0][::-1]
    sample[3, 1] = sample[2, 0]
    own = table(np.ones((10, 2)), sample)
    found = overlap(own)
    assert found[0, 1] == found[1, 0] == 1
    assert found[2, 3] == found[3, 2] == 0.5
    assert (np.diag(found) == 1).all()
    assert found.sum() == 10 + 2 + 1
    # Eight candidates a group: six groups look at all 45 pairs there are.
    assert draw(own, 6, how="overlapping")[:2] == ((0, 1), (2, 3))


@pytest.mark.parametrize(("count", "k"), [(1, 10), (1, 1), (0, 2), (3, 0)])
def test_draws_that_can_not_be(count: int, k: int) -> None:
    with pytest.raises(PlantingError, match=rf"can't draw {count} groups of {k} from 9 living channels of 'l'"):
        draw(table(SCORES), count, k)


@pytest.mark.parametrize("how", ["similar", "dissimilar"])
def test_likeness_is_needed(how: Any) -> None:
    with pytest.raises(PlantingError, match=f"how='{how}' needs likeness"):
        draw(table(SCORES), 2, how=how)


@given(st.integers(2, 4), st.integers(1, 12), st.integers(0, 9), st.lists(st.booleans(), min_size=4, max_size=9))
def test_groups_are_of_living_channels(k: int, count: int, seed: int, living: list[bool]) -> None:
    own = table([[float(alive), 0] for alive in living])
    if sum(living) < k:
        with pytest.raises(PlantingError):
            draw(own, count, k, seed=seed)
        return
    groups = draw(own, count, k, seed=seed)
    assert 1 <= len(groups) <= count
    assert len(set(groups)) == len(groups)
    assert all(len(set(group)) == k and all(living[channel] for channel in group) for group in groups)


def test_likeness_is_the_cosine() -> None:
    found = likeness_of([[1, 0], [2, 2], [0, 0], [-3, 0]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[1, half, 0, -1], [half, 1, 0, -half], [0, 0, 0, 0], [-1, -half, 0, 1]])


# ------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("target", ["0", "1"])
def test_a_task_on_paper(tmp_path: Path, target: str) -> None:
    task = hand_task(tmp_path, target, self_merged=1, seed=4)
    assert task.planting is not None
    assert task.contributions is not None
    source = task.planting.groups[1][0]
    assert task.planting.groups == ((0, 1), (source, source))
    assert task.study.parameters.target == f"{target}.merged"
    assert task.study.parameters.lower == ("input:0.merged" if target == "0" else "input:0")
    assert task.study.references.sample[0].tolist() == ORDER
    assert task.truth[0].tolist() == [1, 0, 0, 0, 1, -1]
    np.testing.assert_allclose(task.share[0], [1, 1, 0.6, 1, 1, 0])
    assert task.dominant[0].tolist() == [True, True, False, True, True, False]
    assert task.contributions[0].tolist() == BROUGHT
    # The one merged with itself has one source, which is dominant wherever it is active at all.
    active = task.study.references.score[1] > 0
    assert task.truth[1].tolist() == np.where(active, 0, -1).tolist()
    assert task.share[1].tolist() == active.astype(float).tolist()
    assert task.k.tolist() == [2, 1]
    assert task.base.parameters.target == target


def test_a_twentieth_of_the_references_is_a_meaning(tmp_path: Path) -> None:
    task = hand_task(tmp_path)
    truth = np.zeros((5, 40), dtype=np.int64)
    truth[1, :2] = 1  # exactly a twentieth
    truth[2, 0] = 1  # less
    truth[3] = np.arange(40) % 4
    truth[3, 20:] = -1  # these have no dominant source, and that is no meaning
    truth[4] = -1
    assert replace(task, truth=truth).k.tolist() == [1, 2, 1, 4, 1]


def test_clearly_dominant_begins_at_two_thirds(tmp_path: Path) -> None:
    share = np.array([[0, 0.5, 0.66, 2 / 3, 1]])
    assert DOMINANT == 2 / 3
    assert replace(hand_task(tmp_path), share=share).dominant.tolist() == [[False, False, False, True, True]]


def mine(tmp_path: Path, model: nn.Module | None = None, **how: Any) -> Study:
    settings: dict[str, Any] = {"n_references": 6, "n_clusters": 2, "store": tmp_path / "store", **how}
    target, lower = settings.pop("target", "4"), settings.pop("lower", "2")
    return Study.from_model(model or plain(), Items(noise(15)), target, lower, progress=False, **settings)


@pytest.mark.parametrize(("target", "lower"), [("4", "input:4"), ("4", "2"), ("5", "3"), ("5", "input:4")])
def test_a_planted_task_is_a_study_like_any_other(tmp_path: Path, target: str, lower: str) -> None:
    study = mine(tmp_path, target=target, lower=lower)
    task = planted_task(study, 3, self_merged=1, seed=2)
    assert task.planting is not None
    assert task.study.parameters.lower == task.planting.renamed(lower)
    own = task.study
    assert own.circuits.shape == (4, 6, 7)
    np.testing.assert_allclose(np.abs(own.circuits).sum(axis=2), 1, rtol=1e-5)
    assert len(own.virtual) == 4
    assert set(own.neurons["channel"]) == set(range(4))
    assert set(own.activation_vectors) == {
        "activation",
        "activation at maximum",
        "lower activation",
        "lower activation at maximum",
    }
    # A channel merged with itself has the circuits of its source, and the same references.
    channel = task.planting.groups[3][0]
    np.testing.assert_array_equal(own.references.sample[3], study.references.sample[channel])
    np.testing.assert_array_equal(own.references.position[3], study.references.position[channel])
    scale = study.references.score[channel].mean()
    np.testing.assert_allclose(own.references.score[3], 2 * study.references.score[channel] / scale, rtol=1e-4)
    np.testing.assert_allclose(own.circuits[3], study.circuits[channel], rtol=1e-3, atol=1e-5)
    # The circuits of the others are mixtures of their sources': linear layers between, and the same images.
    if target == "4":
        pair = np.array(task.planting.groups[0])
        sample = np.broadcast_to(own.references.sample[0], (2, 6))
        lone = circuits(study.model, study.images, np.repeat(pair, 6).reshape(2, 6), sample, target="4", lower=lower)
        assert lone.shape == (2, 6, 7)
        assert not np.allclose(own.circuits[0], lone[0], atol=1e-3)
    # It was kept, and is found again.
    again = planted_task(mine(tmp_path, target=target, lower=lower), 3, self_merged=1, seed=2)
    assert again.study.identity == own.identity
    np.testing.assert_array_equal(again.study.circuits, own.circuits)
    np.testing.assert_array_equal(again.truth, task.truth)


def test_merged_channels_have_relevant_classes_and_are_split(tmp_path: Path) -> None:
    items = Items(noise(16))
    items.targets, items.classes = [i % 4 for i in range(16)], list("wxyz")  # type: ignore[attr-defined]
    study = Study.from_model(
        plain(),
        items,
        "4",
        "input:4",
        n_references=6,
        n_clusters=2,
        store=tmp_path / "classes",
        min_share=0.0,
        min_frequency=0.1,
    )
    task = planted_task(study.replace(progress=False), 3, seed=2)
    frequency = task.study.classes.statistics.frequency
    assert frequency.shape == (4, 3)
    assert frequency.max() > 0
    split = task.study.classes.split(0, ["w", "x"])
    joint = split.model(task.study.model)
    torch.testing.assert_close(joint(noise(3)), study.model(noise(3)), rtol=0, atol=1e-5)
    # The average relevance vectors are of the merged weights, sum over i of w_i / s_i times those of the sources.
    assert task.planting is not None
    arv = task.study.classes.statistics.arv(task.study.model, 0)
    lone = [study.classes.statistics.arv(study.model, channel) for channel in task.planting.groups[0]]
    weight = task.planting.weight[0][list(task.planting.groups[0])]
    np.testing.assert_allclose(arv, weight[0] * lone[0] + weight[1] * lone[1], rtol=1e-3, atol=1e-5)


def test_other_parameters_are_named_as_before(tmp_path: Path) -> None:
    task = planted_task(mine(tmp_path, lower="input:4"), 2)
    assert task.inside("2") == "2"
    assert task.inside("input:4") == "input:4.merged"
    assert task.replace(rule="lrp").parameters.lower == "input:4.merged"
    assert task.replace(rule="lrp").parameters.rule == "lrp"
    assert task.replace(lower="2").parameters.lower == "2"
    # The nearest layer below a convolution is its input, by its name in the planted network.
    assert task.replace(lower="nearest").parameters.lower == "input:4.merged"
    plainly = Task("w", task.base, task.truth, task.share, task.base)
    assert plainly.inside("input:4") == "input:4"
    assert plainly.replace(lower="nearest").parameters.lower == "input:4"


@pytest.mark.parametrize("target", ["4", "5"])
def test_descriptions_do_not_tell_the_sources(tmp_path: Path, target: str) -> None:
    study = mine(tmp_path, target=target, lower="3" if target == "5" else "2")
    task = planted_task(study, 3, self_merged=1, strengths=(1, 0.5))
    assert task.planting is not None
    values = outputs(study.model, target, noise(15)).numpy()
    below = outputs(study.model, study.parameters.lower, noise(15)).numpy()
    chosen, found = task.study.references, task.activations
    for channel, rank in np.ndindex(4, 6):
        image, group = chosen.sample[channel, rank], sorted(set(task.planting.groups[channel]))
        weight = task.planting.weight[channel]
        at = int((weight @ values[image]).argmax())
        for name, own in (
            ("activation", values[image].clip(min=0).mean(axis=1)),
            ("activation at maximum", values[image][:, at].copy()),
        ):
            merged = sum(weight[i] * own[i] for i in group) / (sum(weight[i] for i in group) / len(group))
            own[group] = 0
            own[group[0]] = merged
            np.testing.assert_allclose(found[name][channel, rank], own, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found["lower activation"][channel, rank], below[image].mean(axis=1), rtol=1e-3)


def test_descriptions_of_a_task_where_nothing_was_planted(tmp_path: Path) -> None:
    study = mine(tmp_path)
    task = Task("w", study, np.zeros((6, 6), np.int64), np.ones((6, 6)), study)
    assert task.activations is study.activation_vectors


def test_strengths_and_names(tmp_path: Path) -> None:
    study = mine(tmp_path, target="5", lower="3")
    equal, weaker = planted_task(study, 2, self_merged=1), planted_task(study, 2, self_merged=1, strengths=(1, 0.25))
    assert equal.name == "planted, k = 2, random"
    assert weaker.name == "planted, k = 2, random, strengths 1, 0.25"
    assert equal.planting is not None
    assert weaker.planting is not None
    assert equal.planting.groups == weaker.planting.groups
    for number, (first, second) in enumerate(equal.planting.groups):
        ratio = weaker.planting.weight[number] / equal.planting.weight[number].clip(min=1e-30)
        # Of the null both halves are the same channel, which is as strong as ever.
        assert ratio[first] == 1
        assert ratio[second] == (1 if first == second else 0.25)
    with pytest.raises(PlantingError, match=r"strengths must be one number for each of 2 sources, got \[1, 1, 1\]"):
        planted_task(study, 2, strengths=(1, 1, 1))


def test_nulls_do_not_change_the_draw(tmp_path: Path) -> None:
    study = mine(tmp_path, target="5", lower="3")
    few = planted_task(study, 3, k=3)
    with pytest.warns(StudyWarning, match="there are only 6 channels to merge with themselves"):
        many = planted_task(study, 3, k=3, self_merged=9)
    assert few.planting is not None
    assert many.planting is not None
    assert many.planting.groups[:3] == few.planting.groups
    assert many.planting.self_merged.tolist() == [False] * 3 + [True] * 6  # each channel once
    assert len(set(many.planting.groups)) == 9
    assert few.contributions is not None
    assert few.contributions.shape == (3, 6, 3)
    assert {0, 1, 2} >= set(few.truth.ravel().tolist()) - {-1}


def test_similar_sources_in_a_task(tmp_path: Path) -> None:
    """Of a convolution by the channels' own weights, of anything else by their mean circuits."""
    early, late = mine(tmp_path), mine(tmp_path, target="5", lower="3")
    weight = early.model.get_submodule("4").weight.detach().double().flatten(1).numpy()  # type: ignore[operator]
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(likeness(early), weight @ weight.T, rtol=1e-6, atol=1e-9)
    mean = late.circuits.astype(np.float64).mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(likeness(late), mean @ mean.T, rtol=1e-4, atol=1e-6)
    for study in (early, late):
        alike = likeness(study)
        found = {}
        for how in ("similar", "dissimilar"):
            planting = planted_task(study, 1, how=how).planting  # type: ignore[arg-type]
            assert planting is not None
            found[how] = alike[planting.groups[0]]
        assert found["similar"] > found["dissimilar"]


def test_images_that_are_no_scenes_have_no_objects(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"the objects in 'mine' are not known, at layer '4'; images with a truth"):
        objects_task(mine(tmp_path))


def test_a_layer_without_a_grid_has_no_objects(glyph_study: Study) -> None:
    with pytest.raises(StudyError, match="not known, at layer 'fc'"):
        objects_task(glyph_study.replace(target="fc", lower="layer4"))


def test_the_task_of_objects(glyph_study: Study) -> None:
    task = objects_task(glyph_study)
    assert task.planting is None
    assert task.contributions is None
    assert task.base is task.study is glyph_study
    assert glyph_study.objects is not None
    alive = glyph_study.references.alive
    np.testing.assert_array_equal(task.truth[alive], glyph_study.objects[alive])
    assert (task.truth[~alive] == -1).all()
    assert task.dominant.all()


def test_a_dead_neuron_has_no_objects(glyph_study: Study) -> None:
    study = glyph_study.replace()
    peak = study.references.peak.copy()
    peak[3] = 0
    study.__dict__["_swept"] = study.__dict__["_found"] = replace(study.references, peak=peak), []
    task = objects_task(study)
    assert (task.truth[3] == -1).all()
    assert (task.truth[4] >= 0).all()
    assert task.k[3] == 1


@pytest.mark.parametrize("rule", ["gradient", "lrp"])
def test_relevance_of_a_null_is_that_of_its_source(glyph_study: Study, rule: Any) -> None:
    """Batch norms are merged into the convolutions before them under LRP, and that must not be the merged one."""
    task = planted_task(glyph_study, 1, self_merged=2)
    assert task.planting is not None
    study = task.study.replace(rule=rule)
    found = study.circuits
    assert found.shape == (3, 20, 64)
    np.testing.assert_allclose(np.abs(found).sum(axis=2), 1, rtol=1e-4)
    for number in (1, 2):
        channel = task.planting.groups[number][0]
        sample = glyph_study.references.sample[channel]
        np.testing.assert_array_equal(study.references.sample[number], sample)
        numbers = np.full_like(sample, channel)
        expected = circuits(
            glyph_study.model, glyph_study.images, numbers, sample, target="layer4", lower="layer3", rule=rule
        )
        np.testing.assert_allclose(found[number], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("planted", [False, True])
def test_lrp_through_a_convolutions_own_input(tmp_path: Path, planted: bool) -> None:
    """What goes into a convolution is what the layer before puts out, whatever it is called."""
    study = mine(tmp_path, rule="lrp")
    task = planted_task(study, 2) if planted else Task("w", study, np.zeros((6, 6)), np.ones((6, 6)), study)
    named, expected = task.replace(lower="input:4"), task.replace(lower="3")
    np.testing.assert_allclose(named.circuits, expected.circuits, rtol=1e-3, atol=1e-5)


def test_relevance_of_a_null_inside_a_block(glyph_study: Study) -> None:
    """The same for a convolution with a batch norm right after it."""
    base = glyph_study.replace(target="layer4.0.conv1", lower="layer3")
    channel = int(np.flatnonzero(base.references.alive)[0])
    task = planted_task(base, groups=((channel, channel),))
    sample = base.references.sample[channel]
    found = task.study.replace(rule="lrp").circuits[0]
    numbers = np.full_like(sample, channel)
    # The original can't be merged with its batch norm and still be this layer; the rules alone are the same.
    how: dict[str, Any] = {"target": "layer4.0.conv1", "lower": "layer3", "rule": EpsilonPlusFlat()}
    expected = circuits(base.model, base.images, numbers, sample, **how)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_what_each_neuron_means_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not again for all neurons whenever one is asked for."""
    task, counted, unique = hand_task(tmp_path), [], np.unique
    monkeypatch.setattr(np, "unique", lambda *given, **how: counted.append(given) or unique(*given, **how))
    assert [task.k[channel] for channel in range(len(task.truth))] == task.k.tolist()
    assert len(counted) == len(task.truth)
    assert task.dominant is task.dominant
