"""The bookkeeping around zennit's rules changes nothing, and timm's residual networks are treated as torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from small import Tokens, noise, plain, stirred
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.core import Composite
from zennit.torchvision import ResNetCanonizer

from pure_nb.circuits import circuits
from pure_nb.data import Images
from pure_nb.errors import LayerError
from pure_nb.lrp import TimmResNetCanonizer, default_composite, require_fit, require_rules, reusing
from pure_nb.models import fingerprint


def relevances(model: nn.Module, composite: Composite, batches: list[Tensor], seeds: int = 3) -> list[Tensor]:
    """Relevance of the pixels: for each batch one forward pass and several backward passes."""
    found = []
    with composite.context(model) as modified:
        for number, images in enumerate(batches):
            images = images.clone().requires_grad_()
            logits = modified(images)
            generator = torch.Generator().manual_seed(number)
            for turn in range(seeds):
                seed = torch.rand(logits.shape, generator=generator) * logits.detach().clamp(min=0)
                (flow,) = torch.autograd.grad(logits, images, seed, retain_graph=turn < seeds - 1)
                found.append(flow)
    return found


@pytest.mark.parametrize(
    ("network", "make"),
    [
        ("resnet18", EpsilonPlusFlat),
        ("plain", EpsilonPlusFlat),
        ("plain", EpsilonPlus),
        ("plain", EpsilonAlpha2Beta1),
        ("plain", lambda canonizers: EpsilonGammaBox(low=-3.0, high=3.0, canonizers=canonizers)),
    ],
    ids=["resnet18-plus-flat", "plus-flat", "plus", "alpha2-beta1", "gamma-box"],
)
def test_reusing_changes_nothing(make: Any, network: str) -> None:
    torch.manual_seed(0)
    model = plain() if network == "plain" else stirred(torchvision.models.resnet18(weights=None))
    size = 12 if network == "plain" else 32
    # Several backward passes of one forward pass, and then another forward pass.
    batches = [noise(1, size, 1), noise(2, size, 2)]
    composite = make(canonizers=[ResNetCanonizer()])
    expected = relevances(model, composite, batches)
    found = relevances(model, reusing(composite), batches)
    assert len(found) == 6
    for one, other in zip(found, expected):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))
    assert not torch.equal(expected[0], expected[1])


def test_reusing_runs_each_layer_once_for_many_backward_passes() -> None:
    model = plain()
    runs: list[int] = []
    original = nn.Conv2d.forward

    def counting(self: nn.Conv2d, input: Tensor) -> Tensor:
        runs.append(1)
        return original(self, input)

    model[2].forward = counting.__get__(model[2])  # type: ignore[method-assign]
    composite = EpsilonPlusFlat()
    relevances(model, reusing(composite), [noise(1)], seeds=2)
    few = len(runs)
    runs.clear()
    relevances(model, reusing(composite), [noise(1)], seeds=6)
    assert len(runs) == few
    runs.clear()
    relevances(model, composite, [noise(1)], seeds=6)
    assert len(runs) > few


def test_the_weights_come_back(glyphnet: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in glyphnet.state_dict().items()}
    relevances(glyphnet, reusing(default_composite(glyphnet)), [noise(1, 96)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in glyphnet.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "seresnet50", "resnet26d", "resnetblur18", "ecaresnet26t"])
def test_timms_blocks_compute_the_same(name: str) -> None:
    try:
        model = stirred(timm.create_model(name, pretrained=False))
    except RuntimeError:
        pytest.skip(f"this timm has no {name}")
    images = noise(2, 64)
    with torch.no_grad():
        expected = model(images)
        with Composite(canonizers=[TimmResNetCanonizer()]).context(model) as modified:
            assert any(hasattr(module, "canonizer_sum") for module in model.modules())
            torch.testing.assert_close(modified(images), expected)
        assert not any(hasattr(module, "canonizer_sum") for module in model.modules())
        assert torch.equal(model(images), expected)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timms_relevance_is_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    theirs = stirred(getattr(torchvision.models, name)(weights=None))
    ours = timm.create_model(name, pretrained=False).eval()
    ours.load_state_dict(theirs.state_dict())
    images = [noise(1, 48)]
    expected = relevances(theirs, EpsilonPlusFlat(canonizers=[ResNetCanonizer()]), images, seeds=1)
    found = relevances(ours, default_composite(ours), images, seeds=1)
    for one, other in zip(found, expected):
        assert other.abs().max() > 0
        assert (one - other).abs().max() < 1e-4 * other.abs().max()
    # And without the canonizer it is another: the sum matters.
    without = relevances(ours, EpsilonPlusFlat(), images, seeds=1)
    assert (without[0] - expected[0]).abs().max() > 1e-3 * expected[0].abs().max()


def test_relevance_is_conserved_by_epsilon_plus() -> None:
    """Without biases, what goes in at the top comes out at the bottom."""
    model = plain()
    for module in model:
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    images = noise(2).abs().requires_grad_()
    with reusing(EpsilonPlus()).context(model) as modified:
        logits = modified[:6](images)
        seed = logits.detach()
        (flow,) = torch.autograd.grad(logits, images, seed)
    torch.testing.assert_close(flow.sum(dim=(1, 2, 3)), seed.sum(dim=(1, 2, 3)), rtol=1e-3, atol=1e-4)


class Joined(nn.Module):
    """A convolution, something of one's own, a convolution."""

    def __init__(self, function: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.modules_ = nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(*modules)
        self.function, self.second = function, nn.Conv2d(4, 5, 3, padding=1)
        for norm in self.modules_:
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_var.fill_(4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.modules_(self.first(x))))


def twice(x: Tensor) -> Tensor:
    x += functional.relu(x)
    return x


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "sum": (Joined(lambda x: x + x.flip(1)), "the operation 'add' in '' (Joined)"),
    "sum in place": (Joined(twice), "the operation 'add_' in '' (Joined)"),
    "with a number": (Joined(lambda x: 2 * x), "the operation 'mul' in '' (Joined)"),
    "gate": (Joined(lambda x: x * x.mean((2, 3), keepdim=True)), "the operation 'mul'"),
    "sigmoid": (Joined(torch.sigmoid), "the operation 'sigmoid'"),
    "GELU": (Joined(functional.gelu), "the operation 'gelu'"),
    "product": (Joined(lambda x: x @ x.transpose(2, 3)), "the operation 'matmul'"),
    "layer norm": (Joined(lambda x: x, nn.LayerNorm(12)), "the operation 'layer_norm' in 'modules_.0' (LayerNorm)"),
    "group norm": (Joined(lambda x: x, nn.GroupNorm(2, 4)), "the operation 'group_norm' in 'modules_.0' (GroupNorm)"),
    "batch norm": (
        Joined(lambda x: x, nn.ReLU(), nn.BatchNorm2d(4)),
        "the operation 'batch_norm' in 'modules_.1' (BatchNorm2d)",
    ),
    "softmax": (Joined(lambda x: x, nn.Softmax(1)), "the operation 'softmax' in 'modules_.0' (Softmax)"),
    "tokens": (Tokens(), "the operation 'layer_norm' in 'first.norm' (LayerNorm)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused(case: str) -> None:
    model, message = REFUSED[case]
    model.eval()
    composite, before = default_composite(model), fingerprint(model)
    target = "second"
    require_fit(model, noise(1), target, composite)  # it computes the same, which is not enough
    with pytest.raises(LayerError) as caught:
        require_rules(model, noise(1), None, target, composite)
    assert message in str(caught.value)
    assert "for circuits use rule='gradient', or bring a composite of zennit" in str(caught.value)
    assert fingerprint(model) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


PASSED: dict[str, nn.Module] = {
    "plain": plain(),
    "moved": Joined(lambda x: torch.cat([x[:, 2:], x.flip(2)[:, :2]], dim=1).permute(0, 1, 3, 2).contiguous()),
    "pooled": Joined(lambda x: functional.pad(functional.avg_pool2d(functional.relu(x), 2), (1, 1))),
    "merged": Joined(lambda x: x, nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.MaxPool2d(2)),
    "activations": Joined(lambda x: x, nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Identity()),
    "of constants": Joined(lambda x: x[:, (torch.arange(4) * 3 + 1) % 4]),
}


@pytest.mark.parametrize("case", PASSED)
def test_what_has_rules_passes(case: str) -> None:
    model = PASSED[case].eval()
    target = "8" if case == "plain" else "second"
    require_rules(model, noise(1), None, target, default_composite(model))


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "vgg11_bn", "squeezenet1_1", "timm resnet18", "glyphnet"])
def test_networks_with_rules(network: str, glyphnet: nn.Module) -> None:
    if network == "glyphnet":
        model = glyphnet
    elif network.startswith("timm "):
        model = timm.create_model(network.removeprefix("timm "))
    else:
        model = torchvision.models.get_model(network, weights=None)
    model = model if network == "glyphnet" else stirred(model)
    target = next(name for name in ("layer4", "features.12", "features") if name in dict(model.named_modules()))
    require_fit(model, noise(1, 48), target, default_composite(model))
    require_rules(model, noise(1, 48), None, target, default_composite(model))


def test_only_what_lies_between_the_layers_matters() -> None:
    """MobileNet's blocks end in a sum that has no rule; within one there is none."""
    model = stirred(torchvision.models.mobilenet_v2(weights=None))
    images, composite = noise(1, 32), default_composite(model)
    require_rules(model, images, "features.5.conv.0", "features.5.conv.2", composite)
    require_rules(model, images, "input:features.4", "features.4", composite)  # this block has no shortcut
    for lower, target in (("input:features.5", "features.5"), (None, "features.4")):
        with pytest.raises(LayerError, match=r"the operation 'add' in 'features\.[35]' \(InvertedResidual\)"):
            require_rules(model, images, lower, target, composite)
    which = np.array([0, 1]), np.array([0, 0])
    how: dict[str, Any] = {"lower": "input:features.5", "target": "features.5"}
    batch = Images(TensorDataset(images))
    with pytest.raises(LayerError, match="no rule for the operation 'add'"):
        circuits(model, batch, *which, rule="lrp", **how)
    # A composite of one's own is taken at its word, as long as the network computes the same.
    assert np.isfinite(circuits(model, batch, *which, rule=EpsilonPlusFlat(), **how)).all()


def test_a_sum_without_a_rule_counts_relevance_twice() -> None:
    """What the refusal is for: with zennit's sum relevance is kept, without it there is twice as much."""
    model = stirred(torchvision.models.resnet18(weights=None))
    for module in (model.layer1[1].conv1, model.layer1[1].conv2):
        module.weight.data.abs_()  # else z-plus has nothing to pass on
    for norm in (model.layer1[1].bn1, model.layer1[1].bn2):
        norm.bias.data.zero_()
        norm.running_mean.zero_()
    block, kept = model.layer1[1], []
    for composite in (default_composite(model), EpsilonPlus(canonizers=[])):
        images = noise(1, 8, channels=64).abs().requires_grad_()
        with composite.context(block) as modified:
            top = modified(images)
            (flow,) = torch.autograd.grad(top, images, top.detach())
        kept.append(float(flow.sum() / top.detach().sum()))
    assert abs(kept[0] - 1) < 0.05
    assert kept[1] > 1.5


def test_weights_come_back_where_canonizers_fail() -> None:
    """DenseNet's batch norms come before their convolutions, so some are merged before the first one does not fit."""
    model = stirred(torchvision.models.densenet121(weights=None))
    before, images = fingerprint(model), noise(1, 32)
    with torch.no_grad():
        expected = model(images)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(LayerError, match=r"do not fit DenseNet .*; for circuits use rule='gradient'"):
        require_fit(model, images, "features.denseblock1", default_composite(model))
    assert fingerprint(model) == before
    assert [name for name, _ in model.named_parameters()] == names
    with torch.no_grad():
        assert torch.equal(model(images), expected)
