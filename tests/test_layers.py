"""Layers by name, their outputs, and the network cut at them."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from small import Attention, Tokens, cut, noise, plain, stirred
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pure_nb._resting import frozen_eval, placed
from pure_nb.errors import LayerError, ModelError, StudyWarning
from pure_nb.network.layers import (
    OUTPUT,
    activations,
    channel_axis,
    flatten_positions,
    get_layer,
    nearest_below,
    stage_before,
)
from pure_nb.network.shapes import require, require_output, survey


class Two(nn.Module):
    """Two branches of one stem; a ReLU that runs twice; a tuple; an output of five axes; a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.unused = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.relu, self.pair, self.deep = nn.ReLU(), Pair(), nn.Unflatten(1, (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        first, second = self.pair(x)
        left = self.relu(self.left(first))
        return self.deep(left)[:, :, 0] + self.right(second)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


@pytest.fixture
def two() -> nn.Module:
    torch.manual_seed(0)
    return Two().eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return stirred(torchvision.models.resnet18(weights=None))


def counted(model: nn.Module) -> dict[str, int]:
    """How often each module ran, from now on."""
    counts: dict[str, int] = {name: 0 for name, _ in model.named_modules() if name}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(count(name))
    return counts


def test_get_layer(resnet: nn.Module) -> None:
    assert get_layer(resnet, "layer4.1.conv2") is resnet.layer4[1].conv2


@pytest.mark.parametrize(
    ("name", "near"), [("layer5", "'layer4'"), ("layer4.1.conv3", "'layer4.1.conv2'"), ("fcc", "'fc'")]
)
def test_missing_layer_suggests_near_names(resnet: nn.Module, name: str, near: str) -> None:
    with pytest.raises(LayerError, match=f"ResNet has no layer '{name}'. Near it: .*{near}") as caught:
        get_layer(resnet, name)
    assert f"All {len(list(resnet.named_modules())) - 1} names" in str(caught.value)


@pytest.mark.parametrize("name", ["", "zzzzzz"])
def test_missing_layer_lists_names_where_none_is_near(resnet: nn.Module, name: str) -> None:
    with pytest.raises(LayerError, match="'conv1', 'bn1', 'relu'"):
        get_layer(resnet, name)


@pytest.mark.parametrize(("shape", "axis"), [((2, 5), 1), ((2, 4, 5), 2), ((2, 5, 3, 4), 1)])
def test_channel_axis_and_positions(shape: tuple[int, ...], axis: int) -> None:
    activation = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert channel_axis(activation) == axis
    found = flatten_positions(activation)
    assert tuple(found.shape) == (2, 5, activation.numel() // 10)
    flat = activation.movedim(axis, 1).reshape(2, 5, -1)
    assert torch.equal(found, flat)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4, 5)])
def test_unsupported_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayerError, match=r"expected an output of shape \[B, C\], \[B, T, C\] or \[B, C, H, W\], got"):
        flatten_positions(torch.zeros(shape))


def test_activations_equal_slices_of_the_network() -> None:
    model, images = plain(), noise(3)
    found = activations(model, images, ["2", "4", "8"])
    # Slices of fresh copies: the in-place ReLU after each layer must not show in what was kept.
    for name in ("2", "4", "8"):
        expected = images
        for layer in plain()[: int(name) + 1]:
            expected = layer(expected)
        assert torch.equal(found[name], expected)
    assert (found["2"] < 0).any()


def test_activations_equal_hooks(resnet: nn.Module) -> None:
    images, names, expected = noise(2, 64), ["bn1", "layer2.0.conv1", "layer3", "layer1.1.bn2", "fc"], {}
    handles = [
        get_layer(resnet, name).register_forward_hook(lambda m, i, o, name=name: expected.update({name: o.clone()}))
        for name in names
    ]
    with torch.no_grad():
        resnet(images)
        for handle in handles:
            handle.remove()
        found = activations(resnet, images, names)
    assert set(found) == set(names)
    for name in names:
        assert torch.equal(found[name], expected[name])


def test_inputs_of_layers_and_the_networks_output() -> None:
    model, images = plain(), noise(2)
    found = activations(model, images, ["input:4", "3", "input:0", OUTPUT])
    assert torch.equal(found["input:4"], found["3"])
    assert torch.equal(found["input:0"], images)
    assert torch.equal(found[OUTPUT], model(images))


def test_from_a_leaf_there_is_a_graph_and_below_it_none() -> None:
    model, images = plain(), noise(2)
    with frozen_eval(model):
        found = activations(model, images, ["0", "input:4", "4", OUTPUT], leaf="input:4")
        (flow,) = torch.autograd.grad(found[OUTPUT].sum(), found["input:4"], retain_graph=True)
        leaf = found["input:4"].detach().clone().requires_grad_()
        (expected,) = torch.autograd.grad(model[4:](leaf * 1).sum(), leaf)  # times one: in-place ReLUs follow
    torch.testing.assert_close(flow, expected)
    assert found["input:4"].is_leaf
    assert not found["0"].requires_grad
    assert torch.autograd.grad(found[OUTPUT].sum(), found["4"])[0].shape == found["4"].shape


def test_a_layer_called_by_keyword_has_no_input_to_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.only(input=x)
            return found

    with pytest.raises(LayerError, match="'input:only': Conv2d is not called with a tensor as its first argument"):
        activations(Odd(), noise(1), ["input:only"])


class Last(nn.Module):
    """Channels last between two permutations: linear, GELU, layer norm, linear; then [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mix, self.act = nn.Conv2d(3, 5, 3, stride=3), nn.Linear(5, 7), nn.GELU()
        self.norm, self.out = nn.LayerNorm(7), nn.Linear(7, 6)
        self.top, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = self.out(self.norm(self.act(self.mix(x)))).permute(0, 3, 1, 2)
        return self.head(self.top(x).mean(dim=(2, 3)))


def test_channels_last_are_handed_out_as_any_other() -> None:
    model, images = Last(), noise(2)
    names = ["input:mix", "mix", "last:act", "norm", "input:norm", "out", "top"]
    with torch.no_grad():
        found = activations(model, images, [*names, OUTPUT])
        stem = model.stem(images)
        mixed = functional.conv2d(stem, model.mix.weight[:, :, None, None], model.mix.bias)
        acted = functional.gelu(mixed)
        normed = functional.layer_norm(acted.permute(0, 2, 3, 1), (7,), model.norm.weight, model.norm.bias)
        out = functional.conv2d(normed.permute(0, 3, 1, 2), model.out.weight[:, :, None, None], model.out.bias)
        expected = [stem, mixed, acted, normed.permute(0, 3, 1, 2), acted, out, model.top(out)]
        for name, tensor in zip(names, expected):
            torch.testing.assert_close(found[name], tensor)
        assert torch.equal(found[OUTPUT], model(images))


@pytest.mark.parametrize(
    ("lower", "target"), [("mix", "out"), ("input:mix", "last:act"), ("last:act", "top"), ("stem", "input:norm")]
)
def test_cut_through_channels_last(lower: str, target: str) -> None:
    """Against the network's own graph, in which the lower layer's output is asked for its gradient."""
    model, images = Last().double(), noise(2).double().requires_grad_()
    leaf, top = cut(model, images, lower, target)
    seed = torch.randn(top.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(top, leaf, seed)
    kept: dict[str, Tensor] = {}
    for name in (lower, target):
        module = get_layer(model, name)
        if name.startswith("input:"):
            module.register_forward_pre_hook(lambda m, i, name=name: kept.update({name: i[0]}))
        else:
            module.register_forward_hook(lambda m, i, o, name=name: kept.update({name: o}))
    model(images)

    def first(name: str, tensor: Tensor) -> Tensor:
        return tensor if name in ("stem", "top") else tensor.permute(0, 3, 1, 2)

    (expected,) = torch.autograd.grad(first(target, kept[target]), kept[lower], seed)
    torch.testing.assert_close(leaf, first(lower, kept[lower]))
    torch.testing.assert_close(found, first(lower, expected))
    assert expected.abs().sum() > 0


def test_what_replaces_a_channels_last_output_is_put_back() -> None:
    model, images = Last(), noise(2)
    with frozen_eval(model):
        found = activations(model, images, ["mix", OUTPUT], leaf="mix")
        (flow,) = torch.autograd.grad(found[OUTPUT].sum(), found["mix"])
    torch.testing.assert_close(found[OUTPUT], model(images))
    assert flow.shape == found["mix"].shape == (2, 7, 4, 4)
    assert flow.abs().sum() > 0


def test_require_with_channels_last() -> None:
    target, lower = require(Last(), noise(1), "out", "mix")
    assert (target.channels, target.grid, lower.channels, lower.grid) == (6, (4, 4), 7, (4, 4))
    target, lower = require(Last(), noise(1), "last:act", "input:mix")
    assert (target.name, target.channels, target.grid) == ("last:act", 7, (4, 4))
    assert (lower.kind, lower.channels, lower.grid) == ("input", 5, (4, 4))
    names = {shape.name: shape for shape in survey(Last(), noise(1))}
    assert list(names) == ["stem", "mix", "last:act", "norm", "out", "top", "head"]
    assert (names["last:act"].channels, names["last:act"].grid) == (7, (4, 4))


@pytest.mark.parametrize(
    ("target", "lower", "message"),
    [
        ("act", "stem", r"layer 'act' puts out \[B, H, W, C\], .* misread as \[B, C, H, W\]; name it 'last:act'"),
        ("top", "act", "name it 'last:act'"),
        ("out", "input:act", r"layer 'input:act' is \[B, H, W, C\], .* as \[B, C, H, W\]; name it 'input:last:act'"),
        ("last:head", "stem", r"layer 'last:head': \[1, 4\] is not \[B, H, W, C\]; name it without 'last:'"),
        ("out", "input:patches:mix", "layer 'input:patches:mix': before a name may stand one of 'input:', .* others"),
        ("out", "last:input:act", "layer 'last:input:act': before a name may stand .*, then one of 'first:', 'last:'"),
        ("out", "last:stem", r"layer 'last:stem' puts out the channels elsewhere; name it 'stem'"),
        ("patches:stem", "input:stem", r"layer 'patches:stem': \[1, 5, 4, 4\] are no tokens \[B, T, C\]"),
        ("class:stem", "input:stem", r"layer 'class:stem': \[1, 5, 4, 4\] are no tokens"),
    ],
)
def test_channels_last_that_are_misread(target: str, lower: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        require(Last(), noise(1), target, lower)


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((1, 16, 24, 9), True),
        ((1, 9, 16, 24), False),
        ((1, 15, 24, 96), True),  # rounded
        ((1, 20, 24, 96), False),
        ((1, 16, 16, 24), False),  # both would do
        ((1, 1, 1, 96), True),
        ((1, 96, 1, 1), False),
    ],
)
def test_the_pictures_proportions_tell_where_channels_are(shape: tuple[int, ...], last: bool) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), *shape[1:])

    (found,) = survey(nn.Sequential(Fixed()), torch.zeros(1, 3, 32, 48))
    assert found.name == ("last:0" if last else "0")
    assert found.channels == (shape[3] if last else shape[1])


class Prefixed(nn.Module):
    """Tokens with a class token and two registers before those of the patches; in place after the first."""

    def __init__(self, before: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.before = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, before, 8))
        self.first, self.relu, self.second, self.head = (
            Attention(8),
            nn.ReLU(inplace=True),
            Attention(8),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.before.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.second(self.relu(self.first(x)))[:, 0])


def test_tokens_as_a_grid_and_the_class_token() -> None:
    model, images = Prefixed(), noise(2)
    with torch.no_grad():
        found = activations(
            model, images, ["first", "patches:first", "class:first", "patches:second", "second", OUTPUT]
        )
        assert torch.equal(found[OUTPUT], model(images))
        tokens = model.patches(images)
        whole = model.first(torch.cat([model.before.expand(2, -1, -1), tokens.flatten(2).transpose(1, 2)], dim=1))
    torch.testing.assert_close(found["first"], whole)
    for row in range(3):
        for column in range(3):
            assert torch.equal(found["patches:first"][:, :, row, column], found["first"][:, 3 + 3 * row + column])
    assert found["patches:second"].shape == (2, 8, 3, 3)
    assert torch.equal(found["class:first"], found["first"][:, 0])
    assert torch.equal(flatten_positions(found["patches:second"]), flatten_positions(found["second"])[:, :, 3:])


@pytest.mark.parametrize("lower", ["patches:first", "class:first", "first"])
@pytest.mark.parametrize("target", ["patches:second", "class:second", "second", "head", "patches:second.mlp.1"])
def test_cut_of_tokens_is_a_part_of_the_whole_cut(lower: str, target: str) -> None:
    """The gradient of some tokens is that of all, at these tokens."""
    model, images = Prefixed().double(), noise(2).double().requires_grad_()
    shown = {"patches": slice(3, None), "class": slice(0, 1)}

    def part(name: str) -> slice:
        return shown.get(name.partition(":")[0], slice(None))

    leaf, top = cut(model, images, lower, target)
    seed = torch.randn(top.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(top, leaf, seed)
    every, above = cut(model, images, lower.partition(":")[2] or lower, target.partition(":")[2] or target)
    whole = torch.zeros_like(above)
    if above.ndim == 3:
        whole[:, part(target)] = flatten_positions(seed).transpose(1, 2)
    else:
        whole = seed
    (flow,) = torch.autograd.grad(above, every, whole)
    torch.testing.assert_close(flatten_positions(found), flatten_positions(flow)[:, :, part(lower)])
    torch.testing.assert_close(flatten_positions(leaf), flatten_positions(every)[:, :, part(lower)])
    assert flow.abs().sum() > 0
    assert images.grad is None


def test_no_graph_goes_past_the_tokens_that_are_not_shown() -> None:
    images = noise(2).requires_grad_()
    for lower in ("patches:first", "class:first"):
        _, top = cut(Prefixed(), images, lower, "second")
        top.sum().backward()
        assert images.grad is None
    found = activations(Prefixed(), images, ["patches:first", OUTPUT], leaf="patches:first")
    found[OUTPUT].sum().backward()
    assert images.grad is None
    found = activations(Prefixed(), images, ["patches:first", OUTPUT])  # but without a leaf it does
    found[OUTPUT].sum().backward()
    assert images.grad is not None


def test_require_with_tokens() -> None:
    target, lower = require(Prefixed(), noise(1), "patches:second", "patches:first")
    assert (target.name, target.kind, target.channels, target.grid) == ("patches:second", "patches", 8, (3, 3))
    assert (lower.channels, lower.grid) == (8, (3, 3))
    target, lower = require(Prefixed(), noise(1), "class:second", "first")
    assert (target.kind, target.channels, target.grid, lower.grid) == ("class", 8, (), (12,))
    target, lower = require(Prefixed(), noise(1), "patches:second.mlp.1", "input:second")
    assert (target.channels, target.grid, lower.grid) == (16, (3, 3), (12,))


@pytest.mark.parametrize(
    ("before", "target", "message"),
    [
        (0, "patches:head", r"layer 'patches:head': \[1, 4\] are no tokens"),
        (3, "class:head", r"layer 'class:head': \[1, 4\] are no tokens"),
        (3, "patches:third", "Prefixed has no layer 'third'"),
        (3, "patches:input:second", "layer 'patches:input:second': before a name may stand"),
    ],
)
def test_require_refuses_what_are_no_tokens(before: int, target: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        require(Prefixed(before), noise(1), target, "first")


@pytest.mark.parametrize(("tokens", "side"), [(4, 2), (9, 3), (81, 9), (196, 14)])
def test_square_grids_of_tokens(tokens: int, side: int) -> None:
    found = activations(nn.Sequential(nn.Identity()), torch.randn(2, tokens, 3), ["patches:0"])["patches:0"]
    assert found.shape == (2, 3, side, side)


@pytest.mark.parametrize("tokens", [1, 3, 99, 197])  # without a picture it can't be told which token is no patch
def test_tokens_that_are_no_square_grid(tokens: int) -> None:
    with pytest.raises(LayerError, match=f"{tokens} tokens are no grid of patches with at most 16 tokens besides"):
        activations(nn.Sequential(nn.Identity()), torch.randn(2, tokens, 3), ["patches:0"])


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_images_are_brought_to_the_precision_of_the_weights(dtype: torch.dtype) -> None:
    model, images = plain().to(dtype), noise(2)
    found = activations(model, images, ["4"])["4"]
    assert torch.equal(found, model[:5](images.to(dtype)))
    assert [shape.name for shape in survey(model, images)] == [str(i) for i in range(9)]
    target, _ = require(model, images[:1], "4", "2")
    assert target.channels == 6
    for lower in ("2", None):
        leaf, top = cut(model, images, lower, "4")
        assert leaf.dtype == top.dtype == dtype
        (flow,) = torch.autograd.grad(top.sum(), leaf)
        exact, above = cut(plain(), images, lower, "4")
        (expected,) = torch.autograd.grad(above.sum(), exact)
        torch.testing.assert_close(flow.float(), expected, rtol=0.1, atol=0.05 * float(expected.abs().max()))


def test_activations_stop_at_the_last_layer() -> None:
    model = plain()
    counts = counted(model)
    activations(model, noise(1), ["4", "1"])
    assert [counts[str(i)] for i in range(9)] == [1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_activations_leave_no_hooks_behind(resnet: nn.Module) -> None:
    with pytest.raises(LayerError):
        activations(resnet, noise(1, 64), ["layer1", "nonsense"])
    activations(resnet, noise(1, 64), ["layer1"])
    assert not any(module._forward_hooks for module in resnet.modules())


def test_activations_name_layers_that_do_not_run(two: nn.Module) -> None:
    with pytest.raises(LayerError, match=r"layer 'unused' did not run in the forward pass of Two"):
        activations(two, noise(1), ["stem", "unused"])


def test_activations_refuse_a_tuple(two: nn.Module) -> None:
    with pytest.raises(
        LayerError,
        match=r"layer 'pair' \(Pair\) puts out a tuple of tensors \[1, .*\] and \[1, .*\], not one tensor; choose a",
    ):
        activations(two, noise(1), ["pair"])


@pytest.mark.parametrize(("lower", "target"), [("0", "2"), ("0", "4"), ("1", "5"), ("2", "8"), (None, "4")])
def test_cut_of_a_sequence_equals_its_composition(lower: str | None, target: str) -> None:
    model, images = plain().double(), noise(3).double()
    with frozen_eval(model):
        leaf, top = cut(model, images, lower, target)
    seed = torch.randn(top.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(top, leaf, seed)

    below = 0 if lower is None else int(lower) + 1
    start = images
    for layer in plain().double()[:below]:
        start = layer(start)
    start = start.detach().requires_grad_()
    end = start.clone()
    for layer in plain().double()[below : int(target) + 1]:
        end = layer(end)
    (expected,) = torch.autograd.grad(end, start, seed)
    assert torch.equal(leaf, start)
    assert torch.equal(top, end)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert expected.abs().sum() > 0


@pytest.mark.parametrize(("lower", "target"), [("layer3", "layer4"), ("layer2.0", "layer3.1")])
def test_cut_of_a_resnet_equals_its_composition(resnet: nn.Module, lower: str, target: str) -> None:
    images = noise(2, 64)
    with frozen_eval(resnet):
        leaf, top = cut(resnet, images, lower, target)
        start = leaf.detach().clone().requires_grad_()
        end = resnet.layer4(start) if lower == "layer3" else resnet.layer3(resnet.layer2[1](start))
        seed = torch.randn_like(top)
        (found,) = torch.autograd.grad(top, leaf, seed)
        (expected,) = torch.autograd.grad(end, start, seed)
    torch.testing.assert_close(top, end)
    torch.testing.assert_close(found, expected)
    assert torch.equal(leaf, activations(resnet, images, [lower])[lower])


def test_cut_runs_nothing_above_the_target() -> None:
    model = plain()
    counts = counted(model)
    cut(model, noise(1), "2", "4")
    assert [counts[str(i)] for i in range(9)] == [1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_cut_keeps_no_graph_below_the_lower_layer() -> None:
    images = noise(1).requires_grad_()
    leaf, top = cut(plain(), images, "2", "4")
    assert leaf.is_leaf
    top.sum().backward()
    assert images.grad is None
    assert leaf.grad is not None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_cut_works_without_gradients_around_it(mode: Any) -> None:
    with mode():
        _, top = cut(plain(), noise(1), "0", "2")
    assert top.requires_grad


def test_cut_wants_two_different_layers() -> None:
    with pytest.raises(LayerError, match="the lower layer must be below the target layer; both are '2'"):
        cut(plain(), noise(1), "2", "2")


def test_cut_wants_the_right_order() -> None:
    with pytest.raises(LayerError, match="layer '2' does not depend on '4': the lower layer must run before it"):
        cut(plain(), noise(1), "4", "2")


def test_cut_wants_the_lower_layer_to_feed_the_target(two: nn.Module) -> None:
    with frozen_eval(two), pytest.raises(LayerError, match="layer 'right' does not depend on 'left'"):
        cut(two, noise(1), "left", "right")


def test_cut_wants_a_lower_layer_that_runs_once(two: nn.Module) -> None:
    with pytest.raises(LayerError, match="layer 'relu' runs more than once below 'deep'; choose one that runs once"):
        cut(two, noise(1), "relu", "deep")


def test_cut_refuses_a_tuple(two: nn.Module) -> None:
    with pytest.raises(LayerError, match=r"layer 'pair' .* puts out a tuple"):
        cut(two, noise(1), "pair", "right")


@pytest.mark.parametrize(("lower", "target", "name"), [("stem", "nowhere", "nowhere"), ("nowhere", "left", "nowhere")])
def test_cut_wants_layers_that_exist(two: nn.Module, lower: str, target: str, name: str) -> None:
    with pytest.raises(LayerError, match=f"Two has no layer '{name}'"):
        cut(two, noise(1), lower, target)


def test_cut_wants_a_target_that_runs(two: nn.Module) -> None:
    with pytest.raises(LayerError, match=r"layer 'unused' did not run in the forward pass of Two"):
        cut(two, noise(1), "stem", "unused")


def test_frozen_eval_puts_everything_back() -> None:
    model = plain().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    assert len(set(modes)) == len(set(wants)) == 2

    def now() -> tuple[list[bool], list[bool]]:
        return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]

    with frozen_eval(model) as inside:
        assert inside is model
        assert not any(now()[0])
        assert not any(now()[1])
    assert now() == (modes, wants)
    with pytest.raises(KeyboardInterrupt), frozen_eval(model):
        raise KeyboardInterrupt
    assert now() == (modes, wants)


def test_survey(two: nn.Module) -> None:
    found = survey(two, noise(1))
    # The shared ReLU, the tuple, and the output of five axes can't be studied; the unused layer did not run.
    assert [shape.name for shape in found] == ["stem", "left", "right"]
    assert [(shape.kind, shape.channels, shape.grid) for shape in found] == [("Conv2d", 3, (12, 12))] * 3


def test_survey_of_tokens() -> None:
    found = {shape.name: shape for shape in survey(Tokens(), noise(1))}
    assert (found["patches"].channels, found["patches"].grid) == (8, (3, 3))
    assert (found["first"].channels, found["first"].grid) == (8, (9,))
    assert (found["head"].channels, found["head"].grid) == (4, ())


def test_survey_is_in_the_order_of_running(resnet: nn.Module) -> None:
    names = [shape.name for shape in survey(resnet, noise(1, 64))]
    assert names.index("layer1.0.conv1") < names.index("layer1.0.bn2") < names.index("layer1") < names.index("fc")
    assert "layer1.0.relu" not in names


def test_require() -> None:
    target, lower = require(plain().train(), noise(1), "4", "2")
    assert (target.name, target.kind, target.channels, target.grid) == ("4", "Conv2d", 6, (6, 6))
    assert (lower.name, lower.channels) == ("2", 7)


@pytest.mark.parametrize(
    ("target", "lower", "message"),
    [
        ("left", "nowhere", "Two has no layer 'nowhere'"),
        ("nowhere", "stem", "Two has no layer 'nowhere'"),
        ("relu", "stem", r"'relu' can't be studied: it does not run exactly once .* take the block .* near it: '"),
        ("deep", "stem", "'deep' can't be studied"),
        ("left", "pair", "'pair' can't be studied"),
        ("unused", "stem", "'unused' can't be studied"),
        ("stem", "left", "'stem' does not depend on 'left'"),
        ("right", "left", "'right' does not depend on 'left'"),
        ("left", "left", "both are 'left'"),
    ],
)
def test_require_errors(two: nn.Module, target: str, lower: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        require(two, noise(1), target, lower)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("layer4", "input:layer4.1"),
        ("layer4.0", "input:layer4.0"),
        ("layer4.1.conv2", "input:layer4.1.conv2"),
        ("layer2.0.downsample", "input:layer2.0.downsample.0"),
        ("last:layer4", "input:last:layer4.1"),
        ("patches:tokens:layer4", "input:tokens:layer4.1"),
    ],
)
def test_nearest_below(resnet: nn.Module, target: str, expected: str) -> None:
    assert nearest_below(resnet, target) == expected
    if "tokens" not in target:
        with frozen_eval(resnet):
            cut(resnet, noise(1, 64), expected, target)


def test_nearest_below_is_what_the_last_block_adds_to(resnet: nn.Module) -> None:
    images = noise(2, 64)
    with torch.no_grad():
        found = activations(resnet.eval(), images, [nearest_below(resnet, "layer4")])
        expected = activations(resnet, images, ["layer4.0"])
    torch.testing.assert_close(found["input:layer4.1"], expected["layer4.0"])
    with pytest.raises(LayerError, match="has no layer 'layer5'"):
        nearest_below(resnet, "layer5")
    with pytest.raises(LayerError, match="layer 'relu' is a ReLU that mixes no channels"):
        nearest_below(resnet, "relu")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("layer3", "layer2"),
        ("layer1", None),
        ("layer4.1", "layer4.0"),
        ("input:layer3", "layer2"),
        ("patches:layer3", "layer2"),
        ("conv1", None),
    ],
)
def test_stage_before(resnet: nn.Module, layer: str, expected: str | None) -> None:
    assert stage_before(resnet, layer) == expected


class Odd(nn.Module):
    """Tokens first, windows in the first axis (images outside, or inside), outputs without an axis for the images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.tokens, self.windows, self.inside = nn.Conv2d(3, 8, 4, 4), *(nn.Linear(8, 8) for _ in "abc")
        self.table, self.all, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # [B, 9, 8]
        x = self.tokens(x.transpose(0, 1)).transpose(0, 1) + self.table(torch.arange(9))
        x = self.windows(x.reshape(-1, 3, 8)).reshape(-1, 9, 8)
        x = self.inside(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (9, -1)).transpose(0, 1)
        return self.head(x.mean(dim=1) + self.all(x[:, 0].relu()))


def test_the_images_axis_is_found_out() -> None:
    found = {shape.name: shape for shape in survey(Odd(), noise(1))}
    assert list(found) == ["patches", "tokens:tokens", "folded:windows", "all", "head"]
    assert [(found[name].channels, found[name].grid) for name in found] == [
        (8, (3, 3)),
        (8, (9,)),
        (8, (9,)),
        (8, ()),
        (4, ()),
    ]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tokens", r"layer 'tokens' puts out \[T, B, C\], with the images on the second axis; name it 'tokens:tokens'"),
        (
            "windows",
            r"'windows' puts out \[B \* w, ...\], with w windows, tiles or frames .*; name it 'folded:windows'",
        ),
        ("tokens:head", r"layer 'tokens:head' puts out \[B, ...\], with the images first; name it 'head'"),
        ("inside", r"'inside' can't be studied: it is \[9, 8\] for one image, and neither the first of these axes"),
        ("table", r"'table' can't be studied: it is \[9, 8\] for one image, and neither"),
        ("patches:folded:windows", "it can't be told where in the picture its windows are, .* without 'patches:'"),
    ],
)
def test_layers_whose_first_axis_is_not_the_images(target: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        require(Odd(), noise(1), target, "patches")


@pytest.mark.parametrize("layer", ["tokens", "windows", "table"])
def test_activations_without_the_images_first_are_refused(layer: str) -> None:
    with pytest.raises(LayerError, match=r"the first axis of .* is not that of the 4 images"):
        activations(Odd(), noise(4), [layer])


@pytest.mark.parametrize("lower", ["tokens:tokens", "folded:windows", "input:folded:windows"])
def test_tokens_first_and_windows_are_cut_and_put_back(lower: str) -> None:
    """Against the gradient of the whole network, image by image."""
    model, images = Odd().double(), noise(5).double().requires_grad_()
    with frozen_eval(model):
        leaf, top = cut(model, images, lower, "head")
        seed = torch.randn_like(top)
        (found,) = torch.autograd.grad(top, leaf, seed)
        whole: dict[str, Tensor] = {}
        model.get_submodule(lower.rpartition(":")[2]).register_forward_hook(
            lambda _, given, output: whole.update(kept=given[0] if "input" in lower else output)
        )
        torch.testing.assert_close(model(images), top)
        (flow,) = torch.autograd.grad(model(images), whole["kept"], seed)
    turned = (lambda x: x.transpose(0, 1)) if "tokens" in lower else (lambda x: x.reshape(5, 9, 8))
    torch.testing.assert_close(leaf, turned(whole["kept"]))
    torch.testing.assert_close(found, turned(flow))
    assert flow.abs().sum() > 0


class Unsteady(nn.Module):
    """Something that depends on chance or on the batch, between two convolutions."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.between, self.high = nn.Conv2d(3, 6, 3), between, nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.between(self.low(x)))


class Own(nn.Module):
    """A module with a given forward."""

    def __init__(self, forward: Any, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.own, self.inner = forward, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


UNSTEADY = {
    "no running statistics": (
        nn.BatchNorm2d(6, track_running_stats=False),
        "it depends on which images are in a batch",
    ),
    "functional": (
        Own(lambda _, x: functional.batch_norm(x, None, None, training=True)),
        "in a batch, .*, as 'between'",
    ),
    "a train() inside": (
        Own(lambda own, x: own.inner.train()(x), nn.BatchNorm2d(6)),
        r"as 'between.inner' \(BatchNorm2d, in training mode\) makes other numbers",
    ),
    "dropout": (Own(lambda _, x: functional.dropout(x, 0.5)), r"it depends on chance, as 'between' \(Own\) draws"),
    "rarely": (Own(lambda _, x: x * (torch.rand(()) > 1e-6)), r"it depends on chance, as 'between' \(Own\) draws"),
    "mean": (Own(lambda _, x: x - x.mean(dim=0)), "in a batch, .*, as 'between'"),
}


@pytest.mark.parametrize("kind", UNSTEADY)
@pytest.mark.parametrize("size", [12, 64])
def test_what_depends_on_chance_or_on_the_batch_is_refused(kind: str, size: int) -> None:
    between, message = UNSTEADY[kind]
    model, state = Unsteady(between), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(LayerError, match=f"'high' can't be studied: .*{message}"):
        require(model, noise(1, size), "high", "low")
    with pytest.warns(StudyWarning, match="layers are left out: from it depends"):
        assert [shape.name for shape in survey(model, noise(1, size))] == ["low"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(LayerError, match="what Unsteady puts out can't be used: it depends"):
        require_output(model, noise(1, size))


def test_what_is_unsteady_above_the_target_does_not_matter() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), Own(lambda _, x: functional.dropout(x, 0.5)))
    assert require(model, noise(1), "1", "0")[0].channels == 4


def test_last_digits_that_the_batch_decides_are_harmless() -> None:
    model = Unsteady(Own(lambda _, x: x * (1 + 1e-5 * len(x))))
    assert require(model, noise(1), "high", "low")[0].channels == 4
    for value in (0.0, 1.0):  # a picture of one colour
        assert require(Unsteady(nn.InstanceNorm2d(6)), torch.full((1, 3, 12, 12), value), "high", "low")


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("lower", "target"), [("0", "2"), ("1.0", "2.0"), ("2.0", "2.2"), ("0", "3")])
def test_checkpointed_blocks_are_cut_as_any_other(reentrant: bool, lower: str, target: str) -> None:
    class Block(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=reentrant) if self.again else super().forward(x)

    class Outer(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in self:
                x = checkpoint(module, x, use_reentrant=reentrant) if Block.again else module(x)
            return x

    found = []
    for again in (False, True):
        Block.again = again
        torch.manual_seed(0)
        blocks = [Block(nn.Conv2d(width, 6, 3), nn.GELU(), nn.Conv2d(6, 6, 1)) for width in (3, 6, 6)]
        model = Outer(*blocks, nn.Flatten())
        with frozen_eval(model):
            leaf, top = cut(model, noise(2), lower, target)
            found.append(torch.autograd.grad(top, leaf, torch.ones_like(top))[0])
    assert torch.equal(*found)
    assert found[0].abs().sum() > 0


class Frozen(nn.Module):
    """A backbone under no_grad or inference_mode, as linear probes have it."""

    def __init__(self, mode: Any = torch.no_grad) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mode, self.backbone, self.head = mode, nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            x = self.backbone(x)
        return self.head(x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("target", ["backbone.1", "head"])
def test_gradients_that_are_switched_off_are_named(mode: Any, target: str) -> None:
    with frozen_eval(model := Frozen(mode)), pytest.raises(LayerError, match=r"no_grad|inference_mode"):
        cut(model, noise(1), "backbone.0", target)


def test_the_end_of_a_frozen_backbone_can_be_the_lower_layer() -> None:
    model, images = Frozen().double(), noise(2).double()
    with frozen_eval(model):
        leaf, top = cut(model, images, "backbone", "head")
        (found,) = torch.autograd.grad(top, leaf, torch.ones_like(top))
    torch.testing.assert_close(found, model.head.weight.sum(dim=0)[None].expand_as(found))


def _interrupted(weight: Tensor) -> None:
    assert weight.is_meta or weight.is_contiguous(memory_format=torch.channels_last)
    raise KeyboardInterrupt


def test_placed_puts_back_where_weights_lie() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model(noise(2)).sum().backward()
    before = {name: (id(t), t.data_ptr(), t.stride()) for name, t in model.state_dict(keep_vars=True).items()}
    gradient = model[0].weight.grad
    for layout, device in ((torch.channels_last, None), (None, "meta")):
        with pytest.raises(KeyboardInterrupt), placed(model, device, layout):
            _interrupted(model[0].weight)
        now = {name: (id(t), t.data_ptr(), t.stride()) for name, t in model.state_dict(keep_vars=True).items()}
        assert now == before
        assert model[0].weight.grad is gradient
        assert gradient is not None
        assert not gradient.is_meta


@pytest.mark.parametrize(
    ("module", "prefix"),
    [
        (nn.Conv1d(8, 8, 1), ""),
        (nn.ConvTranspose1d(8, 8, 2), ""),
        (nn.BatchNorm1d(8), ""),
        (nn.InstanceNorm1d(8), ""),
        (nn.GroupNorm(2, 8), ""),
        (nn.AvgPool1d(2), ""),
        (nn.AdaptiveMaxPool1d(3), ""),
        (nn.Upsample(scale_factor=2), ""),
        (nn.ReLU(), "first:"),
        (nn.Sequential(nn.Conv1d(8, 8, 1), nn.Dropout()), "first:"),
        (nn.Identity(), "first:"),
    ],
)
def test_channels_before_positions(module: nn.Module, prefix: str) -> None:
    """[B, C, L], against plain slices."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(2), module).eval()
    found = {shape.name: shape for shape in survey(model, noise(1))}
    whole = model(noise(1))
    assert (found[f"{prefix}2"].channels, found[f"{prefix}2"].grid) == (8, (whole.shape[2],))
    assert (found["first:1"].channels, found["first:1"].grid) == (8, (25,))
    torch.testing.assert_close(
        flatten_positions(activations(model, noise(3), [f"{prefix}2"])[f"{prefix}2"]), model(noise(3))
    )
    if prefix:
        with pytest.raises(LayerError, match=r"'2' puts out \[B, C, L\], .* misread as \[B, T, C\]; name it 'first:2'"):
            require(model, noise(1), "2", "0")


def test_axes_that_nothing_tells_are_asked_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 9, 4, stride=4), nn.Flatten(2))  # nine channels, nine positions
    assert [shape.name for shape in survey(model, noise(1))] == ["0"]
    with pytest.raises(LayerError, match=r"\[1, 9, 9\] for one image, .* name it 'first:1' or 'last:1'"):
        require(model, noise(1), "1", "0")
    first, last = (require(model, noise(1), f"{prefix}:1", "0") for prefix in ("first", "last"))
    assert first[0].channels == last[0].channels == 9


@pytest.mark.parametrize("norm", [nn.LayerNorm([8, 5, 5]), nn.LayerNorm([5, 5])])
def test_norms_over_several_axes_do_not_tell_that_channels_are_last(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), norm, nn.Conv2d(8, 8, 1))
    found = {shape.name: shape for shape in survey(model, noise(1))}
    assert (found["1"].channels, found["1"].grid) == (8, (5, 5))


@pytest.mark.parametrize(("height", "width", "before"), [(24, 32, 0), (32, 24, 1), (8, 48, 2), (20, 32, 1)])
@pytest.mark.parametrize("cut_by", ["convolution", "unfold"])
def test_grids_of_patches_that_are_not_square(height: int, width: int, before: int, cut_by: str) -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 5, 4, 4) if cut_by == "convolution" else nn.Unfold(4, stride=4)
            self.tokens = nn.Linear(5 if cut_by == "convolution" else 48, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            return self.tokens(torch.cat([torch.zeros(len(x), before, x.shape[2]), x], dim=1))

    model, images = Patches(), torch.randn(2, 3, height, width)
    found = activations(model, images, ["patches:tokens", "tokens"])
    rows, columns = height // 4, width // 4
    assert found["patches:tokens"].shape == (2, 5, rows, columns)
    for row in range(rows):
        for column in range(columns):
            own = found["tokens"][:, before + row * columns + column]
            assert torch.equal(found["patches:tokens"][:, :, row, column], own)
    assert require(model, images, "patches:tokens", "input:tokens")[0].grid == (rows, columns)


def test_two_grids_that_both_fit_are_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.high = nn.Conv2d(3, 5, (4, 2), (4, 2)), nn.Conv2d(3, 5, (2, 4), (2, 4))
            self.tokens = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            both = self.wide(x).flatten(2) + self.high(x).flatten(2)
            return self.tokens(both.transpose(1, 2))

    with pytest.raises(LayerError, match="18 tokens are a grid of 3 x 6 or 6 x 3 patches, which can't be told"):
        activations(Both(), noise(1), ["patches:tokens"])


def test_a_network_that_fails_on_a_batch_is_named() -> None:
    model = Unsteady(Own(lambda _, x: x.reshape(1, 6, 10, 10)))
    with pytest.raises(
        ModelError, match=r"Unsteady can't be run on a batch of 2 images .*RuntimeError: .*of any number"
    ):
        require(model, noise(1), "high", "low")


@pytest.mark.parametrize("kind", UNSTEADY)
def test_what_depends_on_chance_or_on_the_batch_can_be_asked_for(kind: str) -> None:
    between, message = UNSTEADY[kind]
    model, images = Unsteady(between), noise(1)
    target, lower = require(model, images, "high", "low", allow_nondeterministic=True)
    assert re.search(message, target.unsteady)
    assert lower.unsteady == ""
    assert require_output(model, images, allow_nondeterministic=True).unsteady == target.unsteady
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {shape.name for shape in survey(model, images, allow_nondeterministic=True)} >= {"low", "high"}


class Wrapped(nn.Module):
    """Puts its tensor out in one of the forms that libraries have."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form, self.inner = form, nn.Conv2d(5, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.form(self.inner(x).relu())


class Named(NamedTuple):
    size: tuple[int, int]
    hidden: Tensor


FORMS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda x: (x, None), lambda out: out[0]),
    "with its size": (lambda x: (x, x.shape[2:]), lambda out: out[0]),
    "list": (lambda x: ["name", x], lambda out: out[1]),
    "named tuple": (lambda x: Named((1, 1), x), lambda out: out.hidden),
    "dictionary": (lambda x: OrderedDict(loss=None, last=x, pooled=x.mean((2, 3))), lambda out: out["last"]),
}


class Around(nn.Module):
    """A network with such a layer inside."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.wrapped, self.take = nn.Conv2d(3, 5, 3), Wrapped(FORMS[form][0]), FORMS[form][1]
        self.head = nn.Conv2d(5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.take(self.wrapped(self.stem(x))))


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_with_other_things_around_it_is_a_layer(form: str) -> None:
    """As a target, as a lower layer, and as what is changed on the way; the survey lists it."""
    model, images = Around(form).eval(), noise(2)
    with torch.no_grad():
        hidden = model.wrapped.inner(model.stem(images)).relu()
        torch.testing.assert_close(activations(model, images, ["wrapped"])["wrapped"], hidden)
        doubled = activations(model, images, ["wrapped", "head"], changes={"wrapped": lambda x: 2 * x})
        torch.testing.assert_close(doubled["head"], model.head(2 * hidden))
    assert "wrapped" in [shape.name for shape in survey(model, images)]
    with frozen_eval(model):
        leaf, top = cut(model, images, "wrapped", "head")
        (flow,) = torch.autograd.grad(top[:, 1].sum(), leaf)
        start = leaf.detach().clone().requires_grad_()
        (expected,) = torch.autograd.grad(model.head(start)[:, 1].sum(), start)
    torch.testing.assert_close(flow, expected)
