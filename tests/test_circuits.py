"""Circuits against zennit-crp on the whole network, and against the formula written out slowly in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from small import Items, Tokens, crp, noise, plain, stirred
from torch import Tensor, nn
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from pure_nb.compute import blocks
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, ImageError, LayerError, NonFiniteError, StoreWarning
from pure_nb.glyphs import GlyphScenes
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits, cuts, normalised, propagate, summed
from pure_nb.network.cut import Cut, initial_relevance
from pure_nb.network.layers import activations
from pure_nb.parameters import Run, Start

RULES = ["gradient", "lrp"]


def relevance_by_crp(model: nn.Module, images: Tensor, channel: int, target: str, lower: str, rule: str) -> Tensor:
    """What zennit-crp says, element by element, with the whole network run forward and backward."""
    composite = EpsilonPlusFlat(canonizers=[ResNetCanonizer()]) if rule == "lrp" else None
    wanted = images.clone().requires_grad_()
    found = crp("attribution").CondAttribution(model)(
        wanted,
        [{target: [channel]}] * len(images),
        composite,
        record_layer=[lower],
        start_layer=target,
        init_rel=lambda a: a.clamp(min=0),
    )
    relevance, activation = found.relevances[lower].detach(), found.activations[lower].detach()
    return relevance if rule == "lrp" else relevance * activation


def pairwise(model: nn.Module, images: Images, channel: Any, sample: Any, **how: Any) -> list[Tensor]:
    """The relevance of each pair, in the order of the pairs."""
    channel, sample = np.asarray(channel), np.asarray(sample)
    found: dict[int, Tensor] = {}
    for rows, relevance, _, _ in propagate(model, images, channel, sample, **how):
        for row, own in zip(rows.tolist(), relevance):
            assert row not in found
            found[row] = own.clone()
    assert sorted(found) == list(range(len(channel)))
    return [found[row] for row in range(len(channel))]


@pytest.fixture(scope="module", params=["resnet18", "resnet50", "glyphnet"])
def network(request: pytest.FixtureRequest, glyphnet: nn.Module) -> tuple[nn.Module, Tensor]:
    if request.param == "glyphnet":
        return glyphnet, torch.stack([GlyphScenes(3)[index][0] for index in range(3)])
    torch.manual_seed(0)
    return stirred(getattr(torchvision.models, request.param)(weights=None)), noise(3, 64)


@pytest.mark.parametrize("rule", RULES)
def test_element_by_element_as_zennit_crp(network: tuple[nn.Module, Tensor], rule: str) -> None:
    model, images = network
    target, lower = "layer4", "layer3"
    with torch.inference_mode():
        strength = activations(model, images, [target])[target].amax(dim=(2, 3))
    alive = (strength.amin(dim=0) > 0).nonzero().ravel()[:2].tolist()
    assert len(alive) == 2
    pairs = [(c, s) for c in alive for s in range(3)]
    channel, sample = zip(*pairs)
    found = pairwise(
        model, Images(Items(images)), channel, sample, target=target, lower=lower, rule=rule, run=Run(batch_size=2)
    )
    theirs = {c: relevance_by_crp(model, images, c, target, lower, rule) for c in alive}
    for (c, s), own in zip(pairs, found):
        expected = theirs[c][s]
        largest = expected.abs().max()
        assert largest > 1e-6
        assert own.shape == expected.shape
        assert (own - expected).abs().max() < 1e-4 * largest


def between(model: nn.Module, lower: str, target: str) -> Any:
    """The part of a plain sequence between two layers, as a function."""
    layers = list(model)[int(lower) + 1 : int(target) + 1]  # type: ignore[call-overload]

    def function(a: Tensor) -> Tensor:
        a = a.clone()
        for layer in layers:
            a = layer(a)
        return a

    return function


def slowly(part: Any, a: Tensor, channel: int, axis: int = 0, start: Start = "activation") -> NDArray[np.float64]:
    """Item 2 of the method, position by position, in float64: the unnormalised, unpooled relevance of one image."""
    a = a.double().detach().requires_grad_()
    top = part(a[None])[0].movedim(axis, 0)[channel]
    relevance = torch.zeros_like(a)
    values = top.detach().flatten()
    for position, value in enumerate(top.flatten()):
        weight = max(float(values[position]), 0.0)
        if start == "unit":
            weight = 1.0
        elif start == "peak" and position != int(values.argmax()):
            weight = 0.0
        (gradient,) = torch.autograd.grad(value, a, retain_graph=True)
        relevance += weight * gradient * a.detach()
    return relevance.detach().numpy()


def vector(relevance: NDArray[np.float64], axis: int = 0) -> NDArray[np.float64]:
    pooled = np.moveaxis(relevance, axis, 0).reshape(relevance.shape[axis], -1).sum(axis=1)
    return pooled / (np.abs(pooled).sum() + 1e-10)


@pytest.mark.parametrize("start", ["activation", "peak", "unit"])
@pytest.mark.parametrize(("lower", "target"), [("1", "4"), ("2", "5"), ("0", "8"), ("7", "8")])
def test_equal_to_the_formula(lower: str, target: str, start: Start) -> None:
    images, channel, sample = noise(4), np.array([0, 1, 1, 3]), np.array([2, 2, 0, 3])
    how: dict[str, Any] = {"target": target, "lower": lower, "start": start}
    found = pairwise(plain(), Images(Items(images)), channel, sample, **how)
    vectors = circuits(plain(), Images(Items(images)), channel, sample, **how)
    assert vectors.dtype == np.float32
    for own, pooled, c, s in zip(found, vectors, channel, sample):
        a = images[s : s + 1]
        for layer in plain()[: int(lower) + 1]:
            a = layer(a)
        expected = slowly(between(plain().double(), lower, target), a[0], c, start=start)
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max() + 1e-12)
        np.testing.assert_allclose(pooled, vector(expected), rtol=1e-3, atol=1e-5)
    assert np.abs(vectors).sum() > 0


def test_equal_to_the_formula_for_a_resnet() -> None:
    torch.manual_seed(0)
    model, images = stirred(torchvision.models.resnet18(weights=None)), noise(2, 64)
    with torch.inference_mode():
        a = activations(model, images, ["layer3"])["layer3"].clone()
        alive = int(activations(model, images, ["layer4"])["layer4"].amax(dim=(2, 3)).amin(dim=0).argmax())
    channel, sample = np.array([alive, 5]), np.array([1, 0])
    found = circuits(model, Images(Items(images)), channel, sample, target="layer4", lower="layer3")
    upper = model.layer4.double()
    for own, c, s in zip(found, channel, sample):
        np.testing.assert_allclose(own, vector(slowly(upper, a[s], c)), rtol=1e-3, atol=1e-5)
    assert np.abs(found[0]).sum() == pytest.approx(1, abs=1e-5)


def test_tokens() -> None:
    """A layer [B, T, C] below another: channels are on the last axis."""
    model, images = Tokens().eval(), noise(3)
    channel, sample = np.array([0, 7, 3]), np.array([2, 0, 0])
    found = pairwise(model, Images(Items(images)), channel, sample, target="second", lower="first")
    vectors = circuits(model, Images(Items(images)), channel, sample, target="second", lower="first")
    assert vectors.shape == (3, 8)
    with torch.no_grad():
        tokens = model.first(model.patches(images).flatten(2).transpose(1, 2))
    upper = Tokens().eval().double().second
    for own, pooled, c, s in zip(found, vectors, channel, sample):
        expected = slowly(upper, tokens[s], c, axis=1)
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(pooled, vector(expected, axis=1), rtol=1e-3, atol=1e-5)


def test_linear_layers_are_weights_times_inputs() -> None:
    """Where the part is linear there is nothing to propagate, and the answer is known in closed form."""
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(432, 6), nn.Linear(6, 4)).eval(), noise(5)
    with torch.no_grad():
        a = model[1](model[0](images)).double().numpy()
        top = model(images).double().numpy()
    weight = model[2].weight.detach().double().numpy()
    channel, sample = np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4)
    found = circuits(model, Images(Items(images)), channel, sample, target="2", lower="1")
    expected = np.maximum(top[sample, channel], 0)[:, None] * weight[channel] * a[sample]
    np.testing.assert_allclose(found, expected / (np.abs(expected).sum(axis=1, keepdims=True) + 1e-10), atol=1e-5)
    assert (found[top[sample, channel] <= 0] == 0).all()
    assert (top < 0).any()


CLOSED: dict[str, tuple[nn.Module, str]] = {
    "convolution": (plain(), "2"),
    "linear": (plain(), "8"),
    "tokens": (Tokens(), "second.mlp.0"),
    "dilated": (nn.Sequential(nn.Conv2d(3, 4, (2, 3), 2, (1, 2), 2, padding_mode="reflect")), "0"),
    "same": (nn.Sequential(nn.Conv2d(3, 4, (1, 3), padding="same", bias=False)), "0"),
    "grouped": (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), "0"),
}


@pytest.mark.parametrize("start", ["activation", "peak", "unit"])
@pytest.mark.parametrize("name", CLOSED)
def test_a_layer_by_its_own_input_is_run_forward_only(name: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = CLOSED[name]
    pairs = np.array([[0, 1], [2, 0], [3, 3]]), np.array([[4, 4], [0, 4], [2, 2]])
    how: dict[str, Any] = {"target": target, "lower": f"input:{target}", "start": start, "run": Run(batch_size=2)}
    exact = pairwise(
        copy.deepcopy(model).double(), Images(Items(noise(5).double())), *(side.ravel() for side in pairs), **how
    )
    expected = normalised(np.concatenate([summed(own[None].double()) for own in exact])).reshape(3, 2, -1)
    if name != "grouped":
        monkeypatch.setattr(torch.autograd, "grad", None)
    found = circuits(model, Images(Items(noise(5))), *pairs, **how)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_pairs_are_independent_of_each_other(glyphnet: nn.Module, rule: str) -> None:
    """Many channels of few images, shuffled, against one pair at a time."""
    images = Images(GlyphScenes(6))
    generator = np.random.default_rng(0)
    channel, sample = generator.integers(0, 32, 14), generator.integers(0, 6, 14) ** 2 // 6
    assert len(np.unique(np.bincount(sample))) > 2  # images with few pairs and with many
    how: dict[str, Any] = {"target": "layer4", "lower": "layer3", "rule": rule}
    together = circuits(glyphnet, images, channel, sample, run=Run(batch_size=3), **how)
    alone = np.concatenate([circuits(glyphnet, images, channel[[i]], sample[[i]], **how) for i in range(14)])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert np.abs(alone).sum() > 7


def test_the_model_and_its_weights_are_left_as_they_were(glyphnet: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in glyphnet.state_dict().items()}
    how: dict[str, Any] = {"target": "layer4", "lower": "layer3", "rule": "lrp"}
    circuits(glyphnet, Images(GlyphScenes(2)), np.array([1, 2]), np.array([0, 1]), **how)
    assert all(torch.equal(tensor, before[name]) for name, tensor in glyphnet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in glyphnet.modules())
    assert all("forward" not in vars(m) for m in glyphnet.modules())
    assert all(p.requires_grad for p in plain().parameters())


def test_any_shape_of_pairs() -> None:
    images, sample = Images(Items(noise(4))), np.array([[0, 1, 2], [3, 1, 0]])
    channel = np.broadcast_to(np.arange(2)[:, None], sample.shape)
    found = circuits(plain(), images, channel, sample, target="4", lower="2")
    assert found.shape == (2, 3, 7)
    flat = circuits(plain(), images, channel.ravel(), sample.ravel(), target="4", lower="2")
    assert (found.reshape(6, 7) == flat).all()


def test_each_image_is_loaded_once() -> None:
    items = Items(noise(5))
    circuits(plain(), Images(items), np.array([0, 1, 2, 3, 4]), np.array([4, 4, 1, 4, 1]), target="4", lower="2")
    assert sorted(items.loaded) == [0, 1, 4]  # the first for its shape


def test_a_composite_of_ones_own(glyphnet: nn.Module) -> None:
    images, pair = Images(GlyphScenes(1)), (np.array([3]), np.array([0]))
    how: dict[str, Any] = {"target": "layer4", "lower": "layer3"}
    own = circuits(glyphnet, images, *pair, rule=EpsilonPlusFlat(canonizers=[ResNetCanonizer()]), **how)
    np.testing.assert_array_equal(own, circuits(glyphnet, images, *pair, rule="lrp", **how))


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 5, 2, 2)])
@pytest.mark.parametrize("start", ["activation", "peak", "unit"])
def test_seeds(shape: tuple[int, ...], start: Start) -> None:
    activation = torch.randn(shape)
    chosen = torch.tensor([4, 0, 2])
    found = initial_relevance(activation, chosen, start)
    axis = 2 if len(shape) == 3 else 1
    assert found.shape == activation.shape
    for image, channel in enumerate(chosen.tolist()):
        values = activation[image].movedim(axis - 1, 0)[channel]
        begin = found[image].movedim(axis - 1, 0).clone()
        for position in np.ndindex(*values.shape):
            value = max(float(values[position]), 0.0)
            if start == "unit":
                value = 1.0
            elif start == "peak" and float(values[position]) != float(values.max()):
                value = 0.0
            assert float(begin[channel][position]) == pytest.approx(value)
        begin[channel] = 0
        assert not begin.any()


def test_seeds_leave_the_activation_alone() -> None:
    activation = torch.randn(1, 2, 3, 3, requires_grad=True)
    before = activation.detach().clone()
    assert not initial_relevance(activation, torch.tensor([1])).requires_grad
    assert torch.equal(activation.detach(), before)


@pytest.mark.parametrize("rule", RULES)
def test_a_cut_is_asked_as_often_as_one_likes(rule: str) -> None:
    """Tensors in, tensors out: the same as for pairs of a data set, and for fewer images than were run."""
    model, images = plain(), noise(4)
    channel, sample = np.tile(np.arange(6), 3), np.repeat(np.arange(3), 6)
    expected = circuits(model, Images(Items(images)), channel, sample, target="5", lower="2", rule=rule)
    with cuts(model, images[:1], "5", "2", rule) as cut_at:
        cut = cut_at(images)
        asked = [cut.relevance(torch.full((3,), c), last=c == 5) for c in range(6)]
        if rule == "gradient":  # of rules, nothing is freed
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                cut.relevance(torch.tensor([0]))
    assert {tuple(one.shape) for one in asked} == {(3, 7, 6, 6)}
    found = np.stack([normalised(summed(one)) for one in asked], axis=1)
    np.testing.assert_allclose(found.reshape(18, 7), expected, atol=1e-6)
    assert np.abs(expected).sum() > 3


def test_a_cut_says_what_it_can_t_answer() -> None:
    model = plain()
    cut = Cut.at(model, noise(2), "2", "4")
    for channel in (6, -1):
        with pytest.raises(ArgumentError, match=f"channel .*{channel}.*layer '4' has channels 0 to 5"):
            cut.relevance(torch.tensor([0, channel]))
    model[4].weight.data[1] = float("inf")
    with pytest.raises(
        NonFiniteError, match=r"of layer '8' at 'the input' is NaN or infinite .*\[\(3, 0\), \(2, 1\)\]"
    ):
        Cut.at(model, noise(2), None, "8").relevance(torch.tensor([3, 2]))


def test_normalised() -> None:
    found = normalised(np.array([[[1, -3, 0]], [[0, 0, 0]]], dtype=np.float32))
    np.testing.assert_allclose(found, [[[0.25, -0.75, 0]], [[0, 0, 0]]])
    assert found.dtype == np.float32


@pytest.mark.parametrize("rule", RULES)
def test_a_dead_channel_has_no_circuit(rule: str) -> None:
    model = plain()
    model[4].bias.data[2] = -100
    found = circuits(
        model, Images(Items(noise(2))), np.array([2, 1]), np.array([0, 0]), target="5", lower="2", rule=rule
    )
    assert (found[0] == 0).all()
    assert np.abs(found[1]).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("stop", [0, 3, 4, 9])
def test_stopped_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 12)  # of three pairs an image
    channel, sample = np.tile(np.arange(5), 6), np.repeat(np.arange(10), 3)
    how: dict[str, Any] = {"target": "4", "lower": "2", "run": Run(batch_size=2)}
    expected = circuits(plain(), Images(Items(noise(10))), channel, sample, **how)
    store = Store(tmp_path / "blocks")
    with pytest.raises(KeyboardInterrupt):
        circuits(plain(), Images(Items(noise(10), {stop: KeyboardInterrupt()})), channel, sample, store=store, **how)
    assert len(store.manifests()) == stop // 4
    again = Items(noise(10))
    found = circuits(plain(), Images(again), channel, sample, store=store, **how)
    assert again.loaded == [0, *range(stop // 4 * 4, 10)]  # the first for its shape
    assert found.tobytes() == expected.tobytes()


def test_a_damaged_block_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    how: dict[str, Any] = {"target": "4", "lower": "2", "run": Run(batch_size=2), "store": Store(tmp_path)}
    channel, sample = np.arange(6) % 5, np.arange(6)
    expected = circuits(plain(), Images(Items(noise(6))), channel, sample, **how)
    path = Store(tmp_path).path("block", {"of": "circuits", "block": 1, "pairs": 2, "batch_size": 2})
    path.write_bytes(path.read_bytes()[:-1])
    again = Items(noise(6))
    with pytest.warns(StoreWarning):
        found = circuits(plain(), Images(again), channel, sample, **how)
    assert again.loaded == [0, 4, 5]  # the first for its shape
    assert found.tobytes() == expected.tobytes()


def test_not_finite() -> None:
    model = plain()
    model[4].weight.data[1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"relevance of layer '8' at '2' is NaN or infinite .*\[\(3, 1\)\]"):
        circuits(model, Images(Items(noise(2))), np.array([3]), np.array([1]), target="8", lower="2")


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("channel", "sample", "error", "message"),
    [
        ([6], [0], ArgumentError, r"channel 6 .*layer '4' has channels 0 to 5"),
        ([-1], [0], ArgumentError, r"lowest -1.*layer '4' has channels 0 to 5"),
        ([0], [2], ArgumentError, r"image 2 .*of 2 images of 'images'"),
        ([0], [-1], ArgumentError, r"lowest -1.* of 2 images"),
        ([0, 1], [0], ArgumentError, r"vectors of one length, got \(2,\) and \(1,\)"),
    ],
)
def test_wrong_pairs(channel: list[int], sample: list[int], error: type[Exception], message: str) -> None:
    images = Images(Items(noise(2)))
    with pytest.raises(error, match=message):
        list(propagate(plain(), images, np.array(channel), np.array(sample), target="4", lower="2"))


def test_a_wrong_channel_is_told_before_its_turn() -> None:
    pairs = np.array([0, 1, 6]), np.array([0, 0, 0])  # the third round of one image
    flows = propagate(plain(), Images(Items(noise(2))), *pairs, target="4", lower="2")
    with pytest.raises(ArgumentError, match=r"channel 6 .*layer '4' has channels 0 to 5"):
        next(flows)


def test_no_pairs() -> None:
    with pytest.raises(ArgumentError, match="no pairs of a channel and an image"):
        circuits(plain(), Images(Items(noise(2))), np.array([], int), np.array([], int), target="4", lower="2")


def test_wrong_layers() -> None:
    images, pair = Images(Items(noise(2))), (np.array([0]), np.array([0]))
    with pytest.raises(LayerError, match="has no layer 'layer4'"):
        circuits(plain(), images, *pair, target="layer4", lower="2")
    with pytest.raises(LayerError, match="layer '2' does not depend on '4'"):
        circuits(plain(), images, *pair, target="2", lower="4")


def test_an_unreadable_image() -> None:
    images = Images(Items(noise(2), {1: OSError("gone")}))
    with pytest.raises(ImageError, match=r"image 1 .*gone"):
        circuits(plain(), images, np.array([0]), np.array([1]), target="4", lower="2")
