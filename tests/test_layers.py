"""Layers by name, their outputs, and the network cut at them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from small import Tokens, noise, plain, stirred
from torch import Tensor, nn

from pure_nb.layers import (
    OUTPUT,
    LayerError,
    activations,
    by_position,
    channel_axis,
    cut,
    get_layer,
    nearest_below,
    require,
    resting,
    stage_before,
    survey,
)


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
    found = by_position(activation)
    assert tuple(found.shape) == (2, 5, activation.numel() // 10)
    flat = activation.movedim(axis, 1).reshape(2, 5, -1)
    assert torch.equal(found, flat)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4, 5)])
def test_unsupported_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayerError, match=r"expected an output of shape \[B, C\], \[B, T, C\] or \[B, C, H, W\], got"):
        by_position(torch.zeros(shape))


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
    with resting(model):
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


def test_a_linear_layer_over_a_grid_is_refused() -> None:
    """With the channels last it would be read as [B, C, H, W]; here nothing else would notice."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(3, 12, 1), nn.Linear(12, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.mix(self.stem(x).permute(0, 2, 3, 1)).mean(dim=(1, 2)))
            return found

    for target, lower in (("mix", "stem"), ("mix", "input:mix"), ("head", "mix")):
        with pytest.raises(LayerError, match=r"layer 'mix' is a Linear over \[B, H, W, C\], with the channels last"):
            require(Last(), noise(1), target, lower)


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
    with pytest.raises(LayerError, match=r"layers \['unused'\] did not run in the forward pass of Two"):
        activations(two, noise(1), ["stem", "unused"])


def test_activations_refuse_a_tuple(two: nn.Module) -> None:
    with pytest.raises(
        LayerError, match=r"layer 'pair' \(Pair\) puts out a tuple, not one tensor; choose a layer inside"
    ):
        activations(two, noise(1), ["pair"])


@pytest.mark.parametrize(("lower", "target"), [("0", "2"), ("0", "4"), ("1", "5"), ("2", "8"), (None, "4")])
def test_cut_of_a_sequence_equals_its_composition(lower: str | None, target: str) -> None:
    model, images = plain().double(), noise(3).double()
    with resting(model):
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
    with resting(resnet):
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
    with resting(two), pytest.raises(LayerError, match="layer 'right' does not depend on 'left'"):
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
    with pytest.raises(LayerError, match="layer 'unused' did not run in the forward pass of Two"):
        cut(two, noise(1), "stem", "unused")


def test_resting_puts_everything_back() -> None:
    model = plain().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    assert len(set(modes)) == len(set(wants)) == 2

    def now() -> tuple[list[bool], list[bool]]:
        return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]

    with resting(model) as inside:
        assert inside is model
        assert not any(now()[0])
        assert not any(now()[1])
    assert now() == (modes, wants)
    with pytest.raises(KeyboardInterrupt), resting(model):
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
        ("relu", "stem", r"'relu' can't be studied: it does not run exactly once .* Layers that do: 'stem', 'left'"),
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
    ],
)
def test_nearest_below(resnet: nn.Module, target: str, expected: str) -> None:
    assert nearest_below(resnet, target) == expected
    with resting(resnet):
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
    [("layer3", "layer2"), ("layer1", None), ("layer4.1", "layer4.0"), ("input:layer3", "layer2"), ("conv1", None)],
)
def test_stage_before(resnet: nn.Module, layer: str, expected: str | None) -> None:
    assert stage_before(resnet, layer) == expected
