"""The bookkeeping around zennit's rules changes nothing, and timm's residual networks are treated as torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from small import noise, plain, stirred
from torch import Tensor, nn
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.core import Composite
from zennit.torchvision import ResNetCanonizer

from pure_nb.lrp import TimmResNetCanonizer, default_composite, reusing


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
