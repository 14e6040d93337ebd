"""Splitting a channel: the network computes the same, and the parts are what slow loops say."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import Items, Tokens, noise, plain, stirred
from torch import Tensor, nn

from pure_nb.errors import ArgumentError, ImageError, LayerError, ModelError, NonFiniteError, StudyWarning
from pure_nb.glyphs import GlyphScenes
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.methods.ownership import RHOS, Assignment, assign_sources
from pure_nb.methods.relevance import Criterion
from pure_nb.methods.rewiring import SplitChannel, load_split, merge_back, save_split, split_channel
from pure_nb.methods.splitting import PartActivations, Split, choose_rho, part_activations, ratio_table
from pure_nb.network.layers import activations, get_layer
from pure_nb.network.shapes import survey
from pure_nb.parameters import Run

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

GEOMETRIES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "padded": (nn.Conv2d(6, 4, 3, padding=1), (2, 6, 7, 9)),
    "no bias": (nn.Conv2d(6, 4, 3, padding=1, bias=False), (2, 6, 7, 9)),
    "1x1": (nn.Conv2d(6, 4, 1), (2, 6, 7, 9)),
    "stride and dilation": (nn.Conv2d(6, 4, (3, 2), stride=(2, 3), padding=(1, 2), dilation=2), (2, 6, 7, 9)),
    "same": (nn.Conv2d(6, 4, (3, 4), padding="same"), (2, 6, 7, 9)),
    "valid": (nn.Conv2d(6, 4, 3, padding="valid"), (2, 6, 7, 9)),
    "reflect": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (2, 6, 7, 9)),
    "circular, same": (nn.Conv2d(6, 4, 3, padding="same", padding_mode="circular"), (2, 6, 7, 9)),
    "groups": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 7, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 7, 9)),
    "one picture": (nn.Conv2d(6, 4, 3), (6, 7, 9)),
    "linear": (nn.Linear(6, 4), (5, 6)),
    "tokens": (nn.Linear(6, 4, bias=False), (2, 5, 6)),
    "channels last": (nn.Linear(6, 4), (2, 3, 5, 6)),
}


def drawn(sources: int, k: int, seed: int = 0) -> NDArray[np.int64]:
    """Random owners, shared sources among them."""
    return np.random.default_rng(seed).integers(-1, k, sources)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def assigned_slowly(arvs: NDArray[Any], rho: float, ownership: str) -> list[int]:
    found = []
    for column in (np.maximum(arvs, 0) if ownership == "symmetric" else arvs).T.tolist():
        owning = [v for v in range(len(column)) if rho * column[v] > max(column[:v] + column[v + 1 :])]
        assert len(owning) < 2 or ownership == "published"
        found.append(owning[0] if owning else -1)
    return found


# Few values, so that ties, zeros and negative entries are common.
VALUES = st.sampled_from([-2.0, -1.0, 0.0, 1e-9, 0.5, 1.0, 1.05, 2.0, 1e6])
ARVS = st.tuples(st.integers(2, 5), st.integers(1, 8)).flatmap(lambda shape: arrays(np.float64, shape, elements=VALUES))


@given(ARVS, st.sampled_from(RHOS), st.sampled_from(["symmetric", "published"]))
def test_assigned_sources_are_those_of_a_slow_loop(arvs: NDArray[np.float64], rho: float, ownership: Any) -> None:
    found = assign_sources(arvs, rho, ownership)
    assert found.dtype == np.int64
    assert found.tolist() == assigned_slowly(arvs, rho, ownership)


@given(ARVS)
def test_a_larger_rho_gives_sources_away_and_never_moves_them(arvs: NDArray[np.float64]) -> None:
    previous = assign_sources(arvs, RHOS[0])
    for rho in RHOS[1:]:
        found = assign_sources(arvs, rho)
        assert (found[previous >= 0] == previous[previous >= 0]).all()
        previous = found


def test_assigned_sources_of_two_concepts_are_the_papers() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 100))
    a, b = first.clip(0), second.clip(0)
    for rho in RHOS:
        expected = np.where(rho * first > second, 0, np.where(rho * second > first, 1, -1))
        assert (assign_sources([first, second], rho, "published") == expected).all()
        alike = np.where(rho * a > b, 0, np.where(rho * b > a, 1, -1))
        assert (assign_sources([first, second], rho) == alike).all()


def test_negative_relevance_is_no_evidence() -> None:
    """As published, two negative entries are shared at no rho below 1, and the first named gets those in doubt."""
    arvs = [[-1, -1, -3, 1, -3, 2], [-1, -1.5, -1, -1, 0, 3]]
    assert assign_sources(arvs, 0.5).tolist() == [-1, -1, -1, 0, -1, -1]
    assert assign_sources(arvs, 0.5, "published").tolist() == [0, 0, 1, 0, 1, -1]
    assert assign_sources(arvs[::-1], 0.5, "published").tolist() == [0, 0, 0, 1, 0, -1]
    assert assign_sources(arvs, 1.0, "published").tolist() == [-1, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("rho", [0.05, 0.5, 1.0])
def test_identical_and_empty_vectors_share_everything(rho: float) -> None:
    vector = np.random.default_rng(0).normal(size=9)
    assert (assign_sources([vector] * 3, rho) == -1).all()
    assert (assign_sources(np.zeros((2, 9)), rho) == -1).all()


def test_only_rho_decides_over_a_small_lead() -> None:
    assert [assign_sources([[1.0, 0], [0.6, 0.1]], rho).tolist() for rho in (0.5, 0.6, 0.7)] == [
        [-1, 1],
        [-1, 1],
        [0, 1],
    ]


@pytest.mark.parametrize(
    ("arvs", "rho", "message"),
    [
        ([[1.0, 2.0]], 0.5, "at least two concepts, got 1"),
        ([1.0, 2.0], 0.5, r"of shape \[k, sources\], got \[2\]"),
        ([[1.0, 2.0], [1.0, float("nan")]], 0.5, "vector of concept 1 is nan at source 1"),
        ([[float("inf"), 2.0], [1.0, 1.0]], 0.5, "vector of concept 0 is inf at source 0"),
        ([[1.0], [2.0]], 0, "rho must be above 0 and at most 1, got 0"),
        ([[1.0], [2.0]], 1.5, "rho must be above 0 and at most 1, got 1.5"),
        ([[1.0], [2.0]], float("nan"), "rho must be above 0 and at most 1, got nan"),
    ],
)
def test_wrong_vectors(arvs: Any, rho: float, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        assign_sources(arvs, rho)


def test_wrong_rules() -> None:
    with pytest.raises(ArgumentError, match="ownership must be one of symmetric, published, got 'paper'"):
        assign_sources([[1.0], [2.0]], 0.5, "paper")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_geometry_computes_the_same(geometry: str, k: int, dtype: torch.dtype) -> None:
    module, shape = GEOMETRIES[geometry]
    model = nn.Sequential(module, nn.Sigmoid()).to(dtype)
    sources, input = module.weight.shape[1], torch.randn(shape, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for channel in range(len(module.weight)):
        split = split_channel(model, "0", channel, drawn(sources, k, channel), k)
        close(split[0](input), module(input), tolerance)
        close(split(input), model(input), tolerance)


@pytest.mark.parametrize(
    "geometry", [name for name in GEOMETRIES if name != "one picture"]
)  # activations are of batches
def test_parts_are_the_channel_without_the_sources_of_others(geometry: str) -> None:
    module, shape = GEOMETRIES[geometry]
    model, input = nn.Sequential(copy.deepcopy(module)).double(), torch.randn(shape, dtype=torch.float64)
    axis = -1 if isinstance(module, nn.Linear) else -3
    for channel in range(len(module.weight)):
        owner = drawn(module.weight.shape[1], 3, channel)
        found = activations(split_channel(model, "0", channel, owner, 3), input, ["0.parts"])["0.parts"]
        if isinstance(module, nn.Linear) and found.ndim == 4:
            found = found.movedim(1, axis)  # handed out as [B, C, H, W]
        assert found.shape[axis] == 4
        for part, concept in enumerate([0, 1, 2, -1]):
            alone = copy.deepcopy(model)
            with torch.no_grad():
                for source, own in enumerate(owner.tolist()):
                    if own not in (concept, -1):
                        alone[0].weight[channel, source] = 0
                close(found.select(axis, part), alone(input).select(axis, channel), 1e-12)


@given(st.data(), st.integers(2, 5), st.integers(0, 5), st.booleans())
def test_any_assignment_computes_the_same(data: st.DataObject, k: int, channel: int, double: bool) -> None:
    owner = data.draw(arrays(np.int64, 7, elements=st.integers(-1, k - 1)))
    model, images = plain(), noise(2)
    if double:
        model, images = model.double(), images.double()
    with torch.no_grad():
        close(split_channel(model, "4", channel, owner, k)(images), model(images), 1e-12 if double else 1e-5)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("name", "layer"), [("glyphnet", "layer4.0.conv2"), ("resnet18", "layer4.1.conv2")])
def test_whole_networks_compute_the_same(name: str, layer: str, double: bool, glyphnet: nn.Module) -> None:
    images = torch.stack([GlyphScenes(2)[index][0] for index in range(2)])
    model = copy.deepcopy(glyphnet) if name == "glyphnet" else stirred(torchvision.models.resnet18(weights=None))
    if double:
        model, images = model.double(), images.double()
    sources = get_layer(model, layer).weight.shape[1]
    for k in (2, 3, 4, 5):
        split = split_channel(model, layer, 3, drawn(sources, k), k)
        with torch.inference_mode():
            close(split(images), model(images), 1e-12 if double else 1e-5)


@pytest.mark.parametrize("inner", ["4.whole", "4.parts"])
def test_a_second_channel_or_a_part_can_be_split_in_turn(inner: str) -> None:
    model, images = plain().double(), noise(2).double()
    split = split_channel(model, "4", 2, drawn(7, 3), 3)
    twice = split_channel(split, inner, 1, drawn(7, 2, seed=1))
    close(twice(images), model(images), 1e-12)
    assert "4.whole.parts.weight" in twice.state_dict() or "4.parts.parts.weight" in twice.state_dict()


def test_several_channels_of_a_layer() -> None:
    model, images = plain().double(), noise(2).double()
    split = model
    for channel in (2, 0, 5):
        split = split_channel(split, "4", channel, drawn(7, 3, channel), 3)
    close(split(images), model(images), 1e-12)
    whole: Any = split
    assert [int(whole.get_submodule(f"4{inner}").channel) for inner in ("", ".whole", ".whole.whole")] == [2, 0, 5]
    with pytest.raises(ArgumentError, match="channel 0 of layer '4' is split already; merge_back undoes that"):
        split_channel(split, "4", 0, drawn(7, 2))
    merged = merge_back(split, "4")
    assert all(torch.equal(merged.state_dict()[name], value) for name, value in model.state_dict().items())


def test_tokens_compute_the_same() -> None:
    model, images = Tokens().eval(), noise(2)
    split = split_channel(model, "second.mlp.2", 5, drawn(16, 3), 3)
    close(split(images), model(images), 1e-5)


def test_gradients_are_the_same() -> None:
    model, images = plain().double(), noise(2).double().requires_grad_()
    split = split_channel(model, "4", 2, drawn(7, 3), 3)
    expected, found = (torch.autograd.grad(network(images).square().sum(), images)[0] for network in (model, split))
    close(found, expected, 1e-12)


def test_the_model_passed_in_is_left_alone() -> None:
    model = plain().train()
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split = split_channel(model, "4", 2, drawn(7, 2))
    assert torch.equal(torch.get_rng_state(), state)
    part_activations(model, Images(Items(noise(3))), [0, 1], Assignment("4", 2, np.eye(2, 7)))
    with torch.no_grad():
        for parameter in split.parameters():
            parameter.zero_()
    assert type(model[4]) is nn.Conv2d
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_split_takes_after_the_layer() -> None:
    model = plain().double().requires_grad_(False)
    split: Any = split_channel(model, "4", 2, drawn(7, 2))[4]  # type: ignore[index]
    assert isinstance(split, SplitChannel)
    assert split.k == 2
    assert split.parts.weight.dtype == torch.float64
    assert not split.parts.weight.requires_grad
    assert not split.training
    assert not split.parts.training


def test_parts_can_be_studied_like_any_layer(glyphnet: nn.Module) -> None:
    layer = "layer4.0.conv2"
    split, images = split_channel(glyphnet, layer, 3, drawn(32, 2)), Images(GlyphScenes(3))
    batch = torch.stack([images.tensor(i) for i in range(3)])
    shapes = {shape.name: shape for shape in survey(split, batch)}
    assert shapes[f"{layer}.parts"].channels == 3
    assert shapes[f"{layer}.parts"].grid == (12, 12)
    found = activations(split, batch, [f"{layer}.parts", f"{layer}.whole", layer])
    parts, whole = found[f"{layer}.parts"], found[f"{layer}.whole"]
    close(parts[:, 0] + parts[:, 1] - parts[:, 2], whole[:, 3], 1e-5)
    close(found[layer], whole, 1e-5)


@pytest.mark.parametrize("rule", ["gradient", "lrp"])
def test_circuits_of_the_parts(glyphnet: nn.Module, rule: Any) -> None:
    """A part's circuit passes through the sources of that part alone, with either rule of relevance."""
    layer, owner = "layer4.0.conv2", drawn(32, 2)
    split, images = split_channel(glyphnet, layer, 3, owner), Images(GlyphScenes(2))
    how: dict[str, Any] = {"lower": "layer4.0.bn1", "rule": rule}
    part = np.array([0, 1, 2])
    found = circuits(split, images, part, np.zeros(3, int), target=f"{layer}.parts", **how)
    for v, concept in enumerate([0, 1, -1]):
        assert np.abs(found[v]).sum() > 0.9
        assert (found[v][(owner != concept) & (owner != -1)] == 0).all()
    if rule == "gradient":
        how["target"] = "layer4"
        above = [circuits(model, images, part, np.zeros(3, int), **how) for model in (glyphnet, split)]
        np.testing.assert_allclose(above[1], above[0], atol=1e-5)


def test_saved_and_rebuilt(tmp_path: Path) -> None:
    model, images = plain(), noise(2)
    owner = np.array([0, 1, 2, -1, 0, 1, -1])
    split: Any = split_channel(model, "4", 2, owner, 3)
    with torch.no_grad():
        split[4].parts.weight += 0.1
    save_file(split.state_dict(), tmp_path / "split.safetensors")
    other: Any = split_channel(plain(seed=1), "4", 0, np.full(7, -1), 3)
    assert not torch.allclose(other(images), split(images))
    other.load_state_dict(load_file(tmp_path / "split.safetensors"))
    assert torch.equal(other(images), split(images))
    assert other[4].owner.tolist() == owner.tolist()
    assert int(other[4].channel) == 2


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_merged_back_the_weights_are_the_same(geometry: str) -> None:
    whole, shape = GEOMETRIES[geometry]
    model = nn.Sequential(whole).float()
    sources = whole.weight.shape[1]  # type: ignore[index]
    split = split_channel(model, "0", 2, drawn(sources, 3), 3)
    split = split_channel(split, "0.whole", 0, drawn(sources, 2, seed=1))
    split = split_channel(split, "0.parts", 1, drawn(sources, 2, seed=2))
    merged = merge_back(split, "0")
    assert type(get_layer(merged, "0")) is type(whole)
    assert merged.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(merged.state_dict()[name], value) for name, value in model.state_dict().items())
    assert isinstance(get_layer(split, "0"), SplitChannel)
    assert merged(torch.ones(shape)).shape == model(torch.ones(shape)).shape


@given(owner=st.lists(st.integers(-1, 2), min_size=7, max_size=7), seed=st.integers(0, 99))
def test_merged_back_changed_parts_stay_changed(owner: list[int], seed: int) -> None:
    model, images = plain().double(), noise(2).double()
    split: Any = split_channel(model, "4", 2, owner, 3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in split[4].parts.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    assert not torch.allclose(split(images), model(images))
    close(merge_back(split, "4")(images), split(images), 1e-12)


def test_merging_what_is_not_split() -> None:
    split = split_channel(plain(), "4", 2, drawn(7, 2))
    with pytest.raises(LayerError, match="layer '0' is a Conv2d that is not split; split are: '4'"):
        merge_back(split, "0")
    with pytest.raises(LayerError, match="split are: none"):
        merge_back(plain(), "4")


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("geometry", ["padded", "groups", "linear"])
def test_exported_and_scripted(geometry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # TorchScript reads no decorators, such as the check of shapes in tests.
    monkeypatch.setattr(SplitChannel, "forward", inspect.unwrap(SplitChannel.forward))
    whole, shape = GEOMETRIES[geometry]
    model = nn.Sequential(whole).float().eval()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    split = split_channel(model, "0", 2, drawn(whole.weight.shape[1], 3), 3)  # type: ignore[index]
    for compiled in (torch.jit.script(split), torch.export.export(split, (images,)).module()):
        close(compiled(images), model(images), 1e-5)


@pytest.mark.parametrize(
    ("layer", "channel", "owner", "k", "error", "message"),
    [
        ("5", 0, np.zeros(7, int), 2, LayerError, r"layer '5' is a ReLU; only a Conv2d or a Linear .*'4'"),
        ("9", 0, np.zeros(7, int), 2, LayerError, "has no layer '9'"),
        ("4", 6, np.zeros(7, int), 2, ArgumentError, "channel 6: layer '4' has channels 0 to 5"),
        ("4", -1, np.zeros(7, int), 2, ArgumentError, "channel -1: layer '4' has channels 0 to 5"),
        ("4", 0, np.zeros(6, int), 2, ArgumentError, r"has 7 sources, so owner must be 7 integers, got int64 \[6\]"),
        ("4", 0, np.zeros(7), 2, ArgumentError, r"must be 7 integers, got float64 \[7\]"),
        ("4", 0, np.full(7, 2), 2, ArgumentError, r"from 0 to 1, .*got 2 to 2; pass k"),
        ("4", 0, np.full(7, -2), 2, ArgumentError, r"got -2 to -2"),
        ("4", 0, np.full(7, -1), 1, ArgumentError, "at least two concepts, got k=1"),
    ],
)
def test_wrong_splits(layer: str, channel: int, owner: Any, k: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split_channel(plain(), layer, channel, owner, k)


def test_a_class_made_from_a_convolution_is_refused() -> None:
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(Own(3, 4, 1), nn.ReLU())
    with pytest.raises(LayerError, match=r"is a Own; only .* none, this network has none"):
        split_channel(model, "0", 0, np.zeros(3, int))


def pooled(activation: Tensor, axis: int) -> NDArray[np.float64]:
    return activation.clamp(min=0).movedim(axis, 1).flatten(2).sum(dim=2).double().numpy()


@pytest.mark.parametrize(("layer", "channel", "k"), [("4", 5, 2), ("2", 1, 3), ("0", 0, 2), ("8", 3, 4)])
def test_part_activations_are_those_of_split_networks(layer: str, channel: int, k: int) -> None:
    model, images = plain(), noise(5)
    arvs = np.random.default_rng(1).normal(1.5, 1, (k, model[int(layer)].weight.shape[1]))
    samples = [4, 0, 2, 0]
    run = Run(batch_size=3)
    found = part_activations(model, Images(Items(images)), samples, Assignment(layer, channel, arvs), run=run)
    assert found.rhos.tolist() == list(RHOS)
    assert found.k == k
    assert found.sample.tolist() == samples
    assert found.parts.shape == (4, 20, k + 1)
    assert len(np.unique(found.parts[0], axis=0)) > 2
    for i, rho in enumerate(RHOS):
        split = split_channel(model, layer, channel, assign_sources(arvs, rho), k)
        with torch.no_grad():
            outputs = activations(split, images[samples], [f"{layer}.parts", f"{layer}.whole"])
        parts, whole = (value if value.ndim == 4 else value[..., None] for value in outputs.values())
        np.testing.assert_allclose(found.parts[:, i], pooled(parts, 1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.original, pooled(whole, 1)[:, channel], rtol=1e-4, atol=1e-5)
        signed, signed_whole = (value.flatten(2).sum(dim=2).numpy() for value in (parts, whole))
        np.testing.assert_allclose(found.at(rho, signed=True), signed, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.signed_original, signed_whole[:, channel], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found.at(rho + 1e-12), found.parts[:, i])


@pytest.mark.parametrize("groups", [1, 2])
def test_part_activations_of_groups_and_resnets(groups: int) -> None:
    torch.manual_seed(0)
    network = stirred(torchvision.models.resnext50_32x4d(weights=None) if groups == 2 else plain())
    layer, channel = ("layer4.1.conv2", 40) if groups == 2 else ("4", 2)
    images, sources = noise(2, 64), get_layer(network, layer).weight.shape[1]
    arvs = np.random.default_rng(1).random((2, sources))
    found = part_activations(network, Images(Items(images)), [0, 1], Assignment(layer, channel, arvs, [0.5, 0.9]))
    split = split_channel(network, layer, channel, assign_sources(arvs, 0.9))
    with torch.no_grad():
        parts = activations(split, images, [f"{layer}.parts"])[f"{layer}.parts"]
    assert found.parts.any()
    np.testing.assert_allclose(found.at(0.9), pooled(parts, 1), rtol=1e-3, atol=1e-4 * found.parts.max())


def test_part_activations_of_tokens() -> None:
    model, images = Tokens().eval(), noise(3)
    arvs = np.random.default_rng(1).random((2, 16))
    found = part_activations(model, Images(Items(images)), [1, 2], Assignment("first.mlp.2", 7, arvs, [0.8]))
    split = split_channel(model, "first.mlp.2", 7, assign_sources(arvs, 0.8))
    with torch.no_grad():
        parts = activations(split, images[1:], ["first.mlp.2.parts"])["first.mlp.2.parts"]
    np.testing.assert_allclose(found.at(0.8), pooled(parts, 2), rtol=1e-4, atol=1e-6)


def test_each_image_is_run_once_up_to_the_layer() -> None:
    model, items, runs = plain(), Items(noise(5)), []
    model[2].register_forward_hook(lambda *_: runs.append("below"))
    model[5].register_forward_hook(lambda *_: runs.append("layer"))
    part_activations(model, Images(items), [3, 1, 4], Assignment("4", 0, np.eye(2, 7)), run=Run(batch_size=2))
    assert runs == ["below", "below"]
    assert items.loaded == [0, 3, 1, 4]  # the first for its shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layer": "3"}, LayerError, "layer '3' is a ReLU"),
        ({"channel": 6}, ArgumentError, "channel 6: layer '4' has channels 0 to 5"),
        ({"samples": [2]}, ArgumentError, "image 2 .* of 2 images of 'images'"),
        ({"samples": [-1]}, ArgumentError, "lowest -1"),
        ({"samples": []}, ArgumentError, "at least one image"),
        ({"arvs": np.ones((2, 6))}, ArgumentError, "layer '4' has 7 sources, .* have 6 entries"),
        ({"arvs": np.ones((1, 7))}, ArgumentError, "at least two concepts"),
        ({"rhos": []}, ArgumentError, "for 0 thresholds"),
        ({"rhos": [0.5, 2]}, ArgumentError, "rho must be above 0 and at most 1, got 2"),
    ],
)
def test_wrong_activations(change: dict[str, Any], error: type[Exception], message: str) -> None:
    how: dict[str, Any] = {"layer": "4", "channel": 0, "arvs": np.ones((2, 7)), **change}
    samples = how.pop("samples", [0])
    with pytest.raises(error, match=message):
        part_activations(plain(), Images(Items(noise(2))), samples, Assignment(**how))


def test_an_unreadable_image() -> None:
    images = Images(Items(noise(2), {1: OSError("gone")}))
    with pytest.raises(ImageError, match=r"image 1 .*gone"):
        part_activations(plain(), images, [0, 1], Assignment("4", 0, np.ones((2, 7))))


def test_not_finite() -> None:
    images = noise(3)
    images[2, 0, 0, 0] = float("nan")
    model = plain()
    with pytest.raises(NonFiniteError, match=r"channel 1 of layer '4', .* for image 2\."):
        part_activations(model, Images(Items(images)), [0, 1, 2], Assignment("4", 1, np.ones((2, 7))))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_does_not_run() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    images = Images(Items(noise(2)))
    unused, used = (Assignment(layer, 0, np.ones((2, 3))) for layer in ("unused", "used"))
    with pytest.raises(LayerError, match=r"layer 'input:unused' did not run in the forward pass of Idle"):
        part_activations(Idle(), images, [0], unused)
    assert part_activations(Idle(), images, [0], used).parts.shape == (1, 20, 3)


def measured(seed: int, k: int, images: int = 12, rhos: int = 4) -> tuple[PartActivations, NDArray[np.int64]]:
    """Random activations with many zeros, and labels in which every concept occurs."""
    generator = np.random.default_rng(seed)
    parts = (generator.random((images, rhos, k + 1)) * generator.integers(0, 2, (images, rhos, k + 1))).astype("f4")
    original = generator.random(images).astype("f4") * generator.integers(0, 2, images).astype("f4")
    numbers = np.arange(images)
    assignment = Assignment("4", 0, generator.random((k, 6)), np.linspace(0.25, 1, rhos).tolist())
    signed = parts - 0.3, original - 0.1
    return PartActivations(assignment, numbers, parts, original, original > -1, *signed), numbers % k


def by_hand(parts: NDArray[np.float32], original: NDArray[np.float32], *rhos: float) -> PartActivations:
    numbers, relevant = np.arange(len(parts)), np.ones(len(parts), bool)
    return PartActivations(Assignment("4", 0, np.eye(2), rhos), numbers, parts, original, relevant, parts, original)


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_scores_are_those_of_a_slow_loop(seed: int, k: int) -> None:
    activations, labels = measured(seed, k)
    tables = {score: choose_rho(activations, labels, score=score) for score in ("ratio", "bounded")}  # type: ignore
    for row in range(4):
        ratio = bounded = 0.0
        for v in range(k):
            ratios, shares = [], []
            for image in np.flatnonzero(labels == v):
                d = activations.parts[image, row, :k].astype(float).tolist()
                others = sum(d[:v] + d[v + 1 :])
                ratios.append(d[v] / (others + 1e-5))
                shares.append(d[v] / sum(d) if sum(d) else 0.0)
            ratio += sum(ratios) / len(ratios)
            bounded += sum(shares) / len(shares) / k
        for table in tables.values():
            assert table.rho[row] == activations.rhos[row]
            assert table.ratio[row] == pytest.approx(ratio, rel=1e-9)
            assert table.bounded[row] == pytest.approx(bounded, rel=1e-9)
    for score, table in tables.items():
        assert table.columns.tolist() == ["rho", "ratio", "bounded", "retained", "best"]
        assert table.best.sum() == 1
        assert table[score][table.best].item() == table[score].max()
        assert 0 <= table.bounded.min() <= table.bounded.max() <= 1 + 1e-12


def test_the_first_of_equals_is_chosen() -> None:
    activations, labels = measured(0, 2)
    same = np.repeat(activations.parts[:, :1], 4, axis=1)
    table = choose_rho(replace(activations, parts=same), labels)
    assert table.best.tolist() == [True, False, False, False]


def test_the_two_scores_may_disagree() -> None:
    """One image in which the other part is 0 outweighs all others in the paper's ratio, not in the bounded one."""
    parts = np.ones((4, 2, 3), dtype=np.float32)
    parts[[0, 1], 0, 0] = parts[[2, 3], 0, 1] = 5
    parts[0, 1, 1] = 0
    activations = by_hand(parts, np.ones(4, "f4"), 0.5, 1)
    labels = [0, 0, 1, 1]
    assert choose_rho(activations, labels, score="ratio").best.tolist() == [False, True]
    assert choose_rho(activations, labels).best.tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 12, "concept 1 has no image"),
        ([0, 1], r"expected 12 integers as labels, one an image, got int64 \[2\]"),
        ([0.0, 1.0] * 6, "expected 12 integers"),
        ([0, 2] * 6, r"from 0 to 1, got 0 to 2; leave out"),
        ([0, -1] * 6, r"from 0 to 1, got -1 to 0"),
    ],
)
def test_wrong_labels(labels: list[Any], message: str) -> None:
    activations, _ = measured(0, 2)
    with pytest.raises(ArgumentError, match=message):
        choose_rho(activations, labels)


def test_wrong_choices() -> None:
    activations, labels = measured(0, 2)
    with pytest.raises(ArgumentError, match="score must be one of ratio, bounded, got 'best'"):
        choose_rho(activations, labels, score="best")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"rho=0\.3 was not measured; measured are \[0\.25, 0\.5, 0\.75, 1\.0\]"):
        activations.at(0.3)


@given(st.integers(0, 10**6), st.integers(2, 4))
def test_ratios_are_those_of_a_slow_loop(seed: int, k: int) -> None:
    activations, labels = measured(seed, k)
    parts, names = activations.at(0.5), [f"concept {v}" for v in range(k)]
    table = ratio_table(parts, activations.original, labels, names)
    assert len(table) == k * (k + 1)
    rows = iter(table.itertuples())
    for v, shown in enumerate(names):
        mine = [i for i in range(12) if labels[i] == v]
        used = [i for i in mine if activations.original[i] > 0]
        for w, part in enumerate([*names, "residual"]):
            row: Any = next(rows)
            ratios = [float(parts[i, w]) / float(activations.original[i]) for i in used]
            assert (row.images, row.part, row.n, row.left_out) == (shown, part, len(used), len(mine) - len(used))
            assert row.ratio == pytest.approx(np.mean(ratios) if used else np.nan, nan_ok=True)
            spread = np.std(ratios, ddof=1) / np.sqrt(len(used)) if len(used) > 1 else np.nan
            assert row.error == pytest.approx(spread, nan_ok=True, abs=1e-12)


def test_a_clean_split_in_numbers() -> None:
    """Sources 0 and 1 activate the channel, each in its own images; the split finds both."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])[..., None, None])
    pictures = torch.zeros(4, 3, 2, 2)
    pictures[:2, 0], pictures[2:, 1] = 1, 1
    arvs = [[4.0, 0, 0], [0, 8.0, 0]]
    found = part_activations(model, Images(Items(pictures)), range(4), Assignment("0", 0, np.array(arvs)))
    assert found.original.tolist() == [4, 4, 8, 8]
    assert found.at(0.05).tolist() == [[4, 0, 0], [4, 0, 0], [0, 8, 0], [0, 8, 0]]
    table = choose_rho(found, [0, 0, 1, 1])
    assert table.rho[table.best].item() == 0.05
    assert (table.bounded == 1).all()
    ratios = ratio_table(found.at(0.05), found.original, [0, 0, 1, 1], ["a", "b"])
    assert ratios.ratio.tolist() == [1, 0, 0, 0, 1, 0]
    assert ratios.error.tolist() == [0] * 6
    assert ratios.part.tolist() == ["a", "b", "residual"] * 2


def signs() -> nn.Sequential:
    """Channel 0 is x0 + 2 x1 - 3 x2 - 1 at each of two positions, and with channel 1, -x2, votes for class 0."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2, -3], [0, 0, -1]])[..., None, None])
        model[0].bias.copy_(torch.tensor([-1.0, 0]))
        model[2].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]]))
    return model


def test_positive_and_signed_ratios_in_numbers() -> None:
    """The residual is -4 and -1: never active, and yet far from little. Worked out by hand."""
    pictures = torch.tensor([[[6.0, 2], [0, 0], [1, 0]], [[0, 0], [4, 4], [1, 0]]])[:, :, None]  # x0, x1, x2
    assignment, twice = Assignment("0", 0, np.array([[8.0, 0, -3], [0, 16, -3]]), [0.5]), pictures[[0, 0, 1, 1]]
    found = part_activations(signs(), Images(Items(twice)), range(4), assignment)
    # Of x0's image c is 6 - 3 - 1 = 2 and 2 - 1 = 1, and so is its part; the other's part and r are -4 and -1.
    assert found.original[::2].tolist() == [3, 4 + 7]
    assert found.signed_original[::2].tolist() == [3, 4 + 7]
    assert found.at(0.5)[::2].tolist() == [[3, 0, 0], [0, 11, 0]]
    assert found.at(0.5, signed=True)[::2].tolist() == [[3, -5, -5], [-5, 11, -5]]
    table = Split.chosen(found, np.array([0, 0, 1, 1]), ("a", "b")).table()
    assert table["positive"].tolist() == [1, 0, 0, 0, 1, 0]
    assert table["signed"].tolist() == pytest.approx([1, -5 / 3, -5 / 3, -5 / 11, 1, -5 / 11])
    assert table["signed_n"].tolist() == [1] * 6
    # As published nobody shares x2, which speaks against both: the first named owns it, and r is the bias alone.
    published = part_activations(signs(), Images(Items(twice)), range(4), replace(assignment, ownership="published"))
    split = Split.chosen(published, np.array([0, 0, 1, 1]), ("a", "b"))
    assert split.owner.tolist() == [0, 1, 0]
    assert published.at(0.5, signed=True)[::2].tolist() == [[3, -2, -2], [-5, 14, -2]]
    assert split.table()["signed"].tolist() == pytest.approx([1, -2 / 3, -2 / 3, -5 / 11, 14 / 11, -2 / 11])


def test_positions_are_clamped_before_or_after_the_sum() -> None:
    """Channel 0 speaks for the class by 2 at one position and against it by 2.5 at the other."""
    picture = torch.tensor([[3.0, -1.5], [0, 0], [0, 0]])[None, :, None]  # c is 2 and -2.5; channel 1 is 0
    images = Images(Items(picture[[0, 0, 0, 0]]))
    labels, assignment = [0, 0, 1, 1], Assignment("0", 0, np.array([[1.0, 0, 0], [0, 1, 0]]))
    found = {}
    for clamp in ("channels", "positions"):
        criterion = Criterion(clamp=clamp)  # type: ignore[arg-type]
        found[clamp] = part_activations(signs(), images, range(4), assignment, labels=labels, criterion=criterion)
    assert not found["channels"].relevant.any()  # 2 - 2.5 is below 0
    assert found["positions"].relevant.all()  # and 2 all that speaks for the class
    np.testing.assert_array_equal(found["positions"].parts, found["channels"].parts)
    with pytest.warns(StudyWarning, match="channel 0 has no ratios for '[ab]': of 1 .* it is relevant in 0") as said:
        table = Split.chosen(found["channels"], np.array(labels), ("a", "b")).table()
    assert len(said) == 2
    assert table["positive"].isna().all()
    assert table["signed_n"].tolist() == [0] * 6
    assert Split.chosen(found["positions"], np.array(labels), ("a", "b")).table()["positive"][0] == 1
    with pytest.raises(ArgumentError, match="clamp must be one of channels, positions, got 'both'"):
        Criterion(clamp="both")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "original", "labels", "names", "message"),
    [
        (np.ones((3, 3)), np.ones(2), [0, 1, 0], "ab", r"got \(3, 3\) and \(2,\)"),
        (np.ones(3), np.ones(3), [0, 1, 0], "ab", r"got \(3,\) and \(3,\)"),
        (np.ones((3, 3)), np.ones(3), [0, 1, 0], "abc", r"2 concepts need 2 names, got \['a', 'b', 'c'\]"),
        (np.ones((3, 3)), np.ones(3), [0, 1], "ab", "expected 3 integers as labels"),
        (np.ones((3, 3)), np.ones(3), [0, 1, 2], "ab", "from 0 to 1, got 0 to 2"),
    ],
)
def test_wrong_tables(parts: Any, original: Any, labels: Any, names: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ratio_table(parts, original, labels, list(names))


def two_tables(found: PartActivations, rho: float, chosen: NDArray[np.int64], labels: NDArray[np.int64]) -> Any:
    sides = []
    for name, parts, whole in (
        ("positive", found.parts, found.original),
        ("signed", found.signed_parts, found.signed_original),
    ):
        at = found.rhos.tolist().index(rho)
        own = ratio_table(parts[chosen, at], whole[chosen], labels[chosen], ("cat", "urn"))
        sides.append(own.rename(columns={"ratio": name, "error": f"{name}_error", "n": f"{name}_n"}))
    table = sides[0].join(sides[1][["signed", "signed_error", "signed_n"]])
    return table.drop(columns="left_out")


def test_a_split_is_chosen_on_every_second_image() -> None:
    """Shuffled concepts: half of the images of each choose the threshold, the others are in the table."""
    found, _ = measured(3, 2, images=14)
    labels = np.array([1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 0])
    arvs = found.assignment.arvs
    split = Split.chosen(found, labels, ("cat", "urn"))
    expected, seen = [], {0: 0, 1: 0}
    for label in labels.tolist():
        expected.append(seen[label] % 2 == 0)
        seen[label] += 1
    assert split.training.tolist() == expected
    half = np.flatnonzero(split.training)
    kept = found.only(split.training)
    assert kept.sample.tolist() == half.tolist()
    scores = choose_rho(kept, labels[half])
    assert split.scores.equals(scores)
    assert split.rho == scores["rho"][scores["best"]].item()
    assert split.owner.tolist() == assign_sources(arvs, split.rho).tolist()
    other = np.flatnonzero(~split.training)
    table = two_tables(found, split.rho, other, labels)
    assert split.table().equals(table)
    assert set(table["signed_n"]) == {3, 4}
    every = Split.chosen(found, labels, ("cat", "urn"), training=np.arange(14) < 9)
    assert every.scores.equals(choose_rho(found.only(np.arange(14) < 9), labels[:9]))
    assert every.table().equals(two_tables(found, every.rho, np.arange(9, 14), labels))
    relevant = np.arange(14) != other[0]
    fewer = Split.chosen(replace(found, relevant=relevant), labels, ("cat", "urn"))
    assert fewer.scores.equals(scores)  # the threshold is chosen on all
    rest = other[1:]
    ratio = Split.chosen(found, labels, ("cat", "urn"), score="ratio")
    assert ratio.scores.equals(choose_rho(kept, labels[half], score="ratio"))
    assert fewer.table().equals(two_tables(found, split.rho, rest, labels))


def test_the_network_of_a_split() -> None:
    model, images = plain(), noise(4)
    arvs = np.abs(np.random.default_rng(1).normal(size=(2, 7)))
    found = part_activations(model, Images(Items(noise(4))), [0, 1, 2, 3], Assignment("4", 2, arvs))
    split = Split.chosen(found, np.array([0, 1, 0, 1]), ("cat", "urn"))
    changed: Any = split.model(model)
    close(changed(images), model(images), 1e-5)
    assert changed[4].owner.tolist() == split.owner.tolist()
    assert int(changed[4].channel) == 2
    with torch.no_grad():
        whole = activations(model, images, ["4"])["4"][:, 2].clamp(min=0).sum(dim=(1, 2))
    np.testing.assert_allclose(split.activations.original, whole, rtol=1e-5)


def made(model: nn.Module, channel: int = 2, k: int = 2) -> Split:
    arvs = np.abs(np.random.default_rng(1).normal(size=(k, 7)))
    samples = list(range(4 * k))
    found = part_activations(model, Images(Items(noise(4 * k))), samples, Assignment("4", channel, arvs))
    return Split.chosen(found, np.arange(4 * k) % k, tuple("abc"[:k]))


@pytest.mark.parametrize("k", [2, 3])
def test_saved_and_loaded(tmp_path: Path, k: int) -> None:
    model, path = plain(), tmp_path / "new" / "split.safetensors"
    split = made(model, 3, k)
    save_split(model, split, path)
    loaded: Any = load_split(plain(), path)
    assert torch.equal(loaded(noise(3)), split.model(model)(noise(3)))
    assert loaded[4].owner.tolist() == split.owner.tolist()
    assert (int(loaded[4].channel), loaded[4].k) == (3, k)
    with safe_open(path, "pt") as file:
        assert file.metadata()["concepts"] == str(list("abc"[:k])).replace("'", '"')


def test_files_that_are_no_split(tmp_path: Path) -> None:
    model = plain()
    with pytest.raises(FileNotFoundError):
        load_split(model, tmp_path / "nowhere.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    for name in ("text", "plain"):
        with pytest.raises(ModelError, match=f"{name}.safetensors is not a file of save_split"):
            load_split(model, tmp_path / f"{name}.safetensors")


def nudged() -> nn.Module:
    model = plain()
    with torch.no_grad():
        model[0].weight[1, 2, 0, 0] += 0.25
    return model


def shorter() -> nn.Module:
    return nn.Sequential(*plain()[:5])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (nudged, r"the weights '0\.weight' differ by up to 0\.25"),
        (
            lambda: plain(channels=8),
            r"'4.whole.weight' is torch.float32 \[6, 7, 3, 3\] in the file and .*\[8, 7, 3, 3\]",
        ),
        (lambda: plain().double(), r"'0.weight' is torch.float32 .* in the file and torch.float64 .* in the network"),
        (shorter, "'8.bias' is only in the file"),
        (lambda: nn.Sequential(*plain(), nn.Linear(4, 4)), "'9.bias' is only in the network"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), "has no layer '4'"),
        (lambda: nn.Sequential(*plain()[:4], nn.Conv2d(7, 2, 1)), "channel 2: layer '4' has channels 0 to 1"),
        (lambda: nn.Sequential(*plain()[:4], nn.Conv2d(5, 6, 1)), "channel 2 of layer '4' has 5 sources"),
    ],
)
def test_a_split_of_another_network(tmp_path: Path, other: Any, difference: str) -> None:
    """Of other weights too: the parts were made from some, and would lie beside others."""
    model, path = plain(), tmp_path / "split.safetensors"
    save_split(model, made(model), path)
    with pytest.raises(ModelError, match=f"split of another network than this Sequential: .*{difference}"):
        load_split(other(), path)


def test_a_split_beside_another_is_saved(tmp_path: Path) -> None:
    model, path = split_channel(plain(), "4", 0, drawn(7, 2)), tmp_path / "split.safetensors"
    save_split(model, made(plain()), path)
    assert torch.equal(load_split(model, path)(noise(3)), made(plain()).model(model)(noise(3)))
    with pytest.raises(ModelError, match=r"'4\.whole\.channel' is only in the file"):
        load_split(plain(), path)


def test_extra_state_is_not_saved(tmp_path: Path) -> None:
    class Scaled(nn.ReLU):
        def get_extra_state(self) -> Any:
            return {"calls": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    model, path = plain(), tmp_path / "split.safetensors"
    model[1] = Scaled()
    save_split(model, made(model), path)
    close(load_split(model, path)(noise(3)), model(noise(3)), 1e-5)


def test_what_parts_keep() -> None:
    """Half of the channel on the images of one concept, a tenth on those of the other."""
    parts = np.zeros((4, 1, 3), np.float32)
    parts[[0, 1], 0, 0], parts[[2, 3], 0, 1] = 5, [1, 2]
    original = np.array([10, 10, 10, 20], np.float32)
    found = by_hand(parts, original, 0.5)
    assert choose_rho(found, [0, 0, 1, 1])["retained"].item() == pytest.approx(0.3)
