"""The bookkeeping around zennit's rules changes nothing, and timm's residual networks are treated as torchvision's."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from small import Tokens, cut, noise, plain, stirred
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune
from torch.utils.data import TensorDataset
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.core import Composite, Hook, RemovableHandleList
from zennit.rules import Epsilon, Flat, ZPlus
from zennit.torchvision import ResNetCanonizer

from pure_nb._resting import frozen_eval
from pure_nb.errors import LayerError
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.network import lrp
from pure_nb.network.coverage import Weights, require_rules
from pure_nb.network.cut import Cut
from pure_nb.network.functions import Functions
from pure_nb.network.lrp import default_composite, reusing, ruled
from pure_nb.network.models import fingerprint


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


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 7, stride=2, padding=3),
        nn.Conv2d(3, 6, 3, padding="same", padding_mode="reflect", dilation=2),
        nn.Conv2d(3, 6, 3, groups=3, bias=False),
        Conv2dSame(3, 4, 4, stride=3),
    ],
)
@pytest.mark.parametrize("make", [ZPlus, Flat, Epsilon])
def test_rules_of_one_layer_are_zennits(make: Any, layer: nn.Module) -> None:
    """In float64 and with inputs of both signs, of which the shortcuts for what is empty must not lose any."""
    layer, images = copy.deepcopy(layer).double(), noise(2, 17).double()
    for inputs in (images, images.relu(), -images.relu(), torch.zeros_like(images)):
        rule = Composite(module_map=lambda context, name, module: make() if module is layer else None)
        expected, found = (
            relevances(nn.Sequential(layer, nn.Flatten()), one, [inputs]) for one in (rule, reusing(rule))
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [ZPlus, Flat])
def test_a_stabiliser_of_ones_own_is_kept(make: Any) -> None:
    """As zennit takes one from 0.5 on."""
    model, rule = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()).double().eval(), make()
    rule.gradient_mapper = lambda out_grad, outputs: [out_grad / (sum(outputs) + 0.1)] * len(outputs)
    composite = Composite(module_map=lambda context, name, module: rule if isinstance(module, nn.Conv2d) else None)
    expected, found = (relevances(model, one, [noise(2, 9).double().relu()]) for one in (composite, reusing(composite)))
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_merged_norm_is_a_number() -> None:
    """Which zennit's relevance has, too; here it is taken up by the layer before, or by the norm after a cut."""
    model = stirred(torchvision.models.resnet18(weights=None))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.3
    composite, images = EpsilonPlusFlat(canonizers=[ResNetCanonizer()]), [noise(2, 32)]
    model, images = model.double(), [one.double() for one in images]
    expected, found = (relevances(model, one, images) for one in (composite, reusing(default_composite(model))))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12 * float(other.abs().max()))
    with frozen_eval(model), composite.context(model):
        leaf, top = cut(model, images[0], "layer4.1.conv1", "layer4")
        (expected_flow,) = torch.autograd.grad(top.sum(), leaf)
    with frozen_eval(model), reusing(default_composite(model)).context(model), frozen_eval(model):
        leaf, top = cut(model, images[0], "layer4.1.conv1", "layer4")
        (flow,) = torch.autograd.grad(top.sum(), leaf)
    assert expected_flow.abs().max() > 0
    torch.testing.assert_close(flow, expected_flow, rtol=1e-9, atol=1e-12 * float(expected_flow.abs().max()))


def test_whether_rules_fit_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And again as soon as the network is another one; nor is it kept alive by that."""
    model, asked = plain(), []
    watched = lrp.require_rules
    monkeypatch.setattr(lrp, "require_rules", lambda *args: asked.append(args[2:4]) or watched(*args))

    def run(lower: str | None, model: nn.Module = model) -> None:
        with ruled(model, noise(1), lower, "4", default_composite(model)):
            pass

    for lower in ("2", "2", None, "2", None):
        run(lower)
    assert asked == [("2", "4"), (None, "4")]
    with torch.no_grad():
        model[2].weight += 1
    run("2")
    model[3] = nn.ReLU()
    run("2")
    model[3] = nn.GELU()
    run("2")
    assert len(asked) == 5
    kept = weakref.ref(model)
    del model, run
    asked.clear()
    gc.collect()
    assert kept() is None


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


def test_reusing_does_not_ask_what_zennit_hands_to_its_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later versions hand them keyword arguments, too: here one that registers none of the hooks that it is given."""
    expected = relevances(plain(), reusing(EpsilonPlusFlat()), [noise(1)])
    monkeypatch.setattr(Hook, "register", lambda self, module: RemovableHandleList())
    for one, other in zip(relevances(plain(), reusing(EpsilonPlusFlat()), [noise(1)]), expected):
        assert torch.equal(one, other)


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
    with Composite(canonizers=[Functions()]).context(model) as modified:
        assert "forward" in vars(model)
        torch.testing.assert_close(modified(images.clone().requires_grad_()).detach(), expected)
    with torch.no_grad():
        assert "forward" not in vars(model)
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
    found = relevances(ours, reusing(default_composite(ours)), images, seeds=1)
    for one, other in zip(found, expected):
        assert other.abs().max() > 0
        assert (one - other).abs().max() < 1e-4 * other.abs().max()
    # And without the canonizer it is another: the sum matters.
    without = relevances(ours, EpsilonPlusFlat(), images, seeds=1)
    assert (without[0] - expected[0]).abs().max() > 1e-3 * expected[0].abs().max()


@pytest.mark.parametrize(("target", "lower"), [("input:norm.act", "conv"), ("norm.act", None), ("head", "norm.act")])
def test_a_layer_within_a_merged_norm_is_reached(target: str, lower: str | None) -> None:
    """As of timm's norms, which hold their activation; relevance is that of the same two modules in a row."""
    torch.manual_seed(0)
    norm = stirred(BatchNormAct2d(4, act_layer=nn.ReLU6))
    head = nn.Conv2d(4, 2, 1)
    conv = nn.Conv2d(3, 4, 3)
    whole = nn.Sequential(OrderedDict(conv=conv, norm=norm, head=head)).eval()
    plain_norm = nn.BatchNorm2d(4)
    plain_norm.load_state_dict(norm.state_dict())
    apart = nn.Sequential(OrderedDict(conv=conv, norm=plain_norm, act=nn.ReLU6(), head=head)).eval()
    images = torch.rand(2, 3, 8, 8)

    def relevance(model: nn.Module, target: str, lower: str | None) -> Tensor:
        with ruled(model, images, lower, target, default_composite(model)), frozen_eval(model):
            return Cut.at(model, images, lower, target, times_input=False).relevance(np.array([1, 1]))

    renamed = {"input:norm.act": "norm", "norm.act": "act"}
    expected = relevance(apart, renamed.get(target, target), renamed.get(str(lower), lower))
    torch.testing.assert_close(relevance(whole, target, lower), expected, rtol=1e-4, atol=1e-6)


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


def put(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = x[:, 1]
    return x


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "running sum": (Joined(lambda x: x.cumsum(2)), "the operation 'cumsum' in '' (Joined)"),
    "spectrum": (Joined(lambda x: torch.fft.fft(x).real), "the operation 'fft_fft' in '' (Joined)"),
    "exponential": (Joined(torch.exp), "the operation 'exp'"),
    "sorted": (Joined(lambda x: x.sort(dim=2).values), "the operation 'sort'"),
    "own module": (Joined(lambda x: x, nn.Softmin(1)), "the operation 'softmin' in 'modules_.0' (Softmin)"),
    "put in place": (Joined(put), "CopySlices' in '' (Joined)"),
    "norm of several": (Joined(lambda x: x, nn.LocalResponseNorm(2)), "'modules_.0' (LocalResponseNorm)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused(case: str) -> None:
    model, message = REFUSED[case]
    model.eval()
    composite, before = default_composite(model), fingerprint(model)
    target = "second"
    with ruled(model, noise(1), None, target, composite, every=False):  # it computes the same, which is not enough
        pass
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
    "sum": Joined(lambda x: x + x.flip(1)),
    "sum in place": Joined(twice),
    "with a number": Joined(lambda x: 2 * x - 1),
    "gate": Joined(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "gelu": Joined(functional.gelu),
    "product": Joined(lambda x: x @ x.transpose(2, 3)),
    "norms": Joined(lambda x: x, nn.LayerNorm(12), nn.GroupNorm(2, 4)),
    "batch norm": Joined(lambda x: x, nn.ReLU(), nn.BatchNorm2d(4)),
    "softmax": Joined(lambda x: x, nn.Softmax(1)),
    "tokens": Tokens(),
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
    with ruled(model, noise(1, 48), None, target, default_composite(model)):
        pass


def test_only_what_lies_between_the_layers_matters() -> None:
    """One block has a function that has no rule; within the others there is none."""
    model = nn.Sequential(Joined(nn.ReLU()), nn.Conv2d(5, 3, 1), Joined(running), nn.ReLU()).eval()
    images, composite = noise(2, 32), default_composite(model)
    require_rules(model, images, "0.first", "1", composite)
    require_rules(model, images, "2.second", "3", composite)
    for lower, target in (("input:2", "2"), (None, "3")):
        with pytest.raises(LayerError, match=r"the operation 'cumsum' in '2' \(Joined\)"):
            require_rules(model, images, lower, target, composite)
    which = np.array([0, 1]), np.array([0, 0])
    how: dict[str, Any] = {"lower": "input:2", "target": "2"}
    batch = Images(TensorDataset(images))
    with pytest.raises(LayerError, match="no rule for the operation 'cumsum'"):
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
    """In the order of modules DenseNet's batch norms are merged wrongly, until the first one that does not fit."""
    model = stirred(torchvision.models.densenet121(weights=None))
    before, images = fingerprint(model), noise(1, 32)
    with torch.no_grad():
        expected = model(images)
    names = [name for name, _ in model.named_parameters()]
    with (
        pytest.raises(LayerError, match=r"do not fit DenseNet .*; for circuits use rule='gradient'"),
        ruled(model, images, None, "features.denseblock1", default_composite(model), every=False),
    ):
        pass
    assert fingerprint(model) == before
    assert [name for name, _ in model.named_parameters()] == names
    with torch.no_grad():
        assert torch.equal(model(images), expected)


# ------------------------------------------------------------------------- rules that would see other weights than run


class Halved(nn.Module):
    """A parametrisation of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh() / 2


class Inner(nn.Conv2d):
    """Changes its weights in the function that torch's own forward calls."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


def patched(layer: nn.Conv2d) -> None:
    layer.forward = lambda x: functional.conv2d(x, layer.weight**3, None, padding=1)  # type: ignore[method-assign]


def hooked(layer: nn.Conv2d) -> None:
    kept = layer.weight.detach().abs()
    del layer.weight
    layer.register_forward_pre_hook(lambda module, _: setattr(module, "weight", kept - 0.05))


def standardised(weight: Tensor) -> Tensor:
    return (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.var((1, 2, 3), False, keepdim=True) + 1e-6).sqrt()


PUT: dict[str, Callable[[Any], Any]] = {
    "weight_norm, old": nn.utils.weight_norm,
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm, old": nn.utils.spectral_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
    "pruning of both": lambda layer: (prune.random_structured(layer, "weight", 1, 1), prune.identity(layer, "bias")),
    "own parametrisation": lambda layer: parametrize.register_parametrization(layer, "weight", Halved()),
    "standardised": lambda layer: object.__setattr__(layer, "__class__", Standardised),
    "standardised and padded": lambda layer: (
        setattr(layer, "padding", (0, 0)),
        object.__setattr__(layer, "__class__", Sized),
    ),
    "own _conv_forward": lambda layer: object.__setattr__(layer, "__class__", Inner),
    "own forward": patched,
    "hook": hooked,
}
"""What makes a layer run with weights that are not its parameters."""


class Sized(nn.Conv2d):
    """Standardised weights, and zeros around the input in forward, as timm's StdConv2dSame has them."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1)), standardised(self.weight), self.bias)


class Standardised(nn.Conv2d):
    """timm's StdConv2d, in place."""

    eps = 1e-6
    forward = StdConv2d.forward


RUN: dict[str, Callable[[nn.Conv2d], tuple[Tensor, Tensor | None]]] = {
    "own parametrisation": lambda layer: (layer.weight.tanh() / 2, layer.bias),
    "standardised": lambda layer: (standardised(layer.weight), layer.bias),
    "standardised and padded": lambda layer: (standardised(layer.weight), layer.bias),
    "own _conv_forward": lambda layer: (layer.weight - layer.weight.mean(), layer.bias),
    "own forward": lambda layer: (layer.weight**3, None),
    "hook": lambda layer: (layer.weight.abs() - 0.05, layer.bias),
}
"""The weights and bias that it then runs with, of those where torch has no function that says so."""


def reparametrised(case: str, norms: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """A network, and one of plain layers that computes the same."""
    torch.manual_seed(3)
    widths, parts = (3, 8, 6, 5), []
    for i in range(3):
        parts += [nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        parts[-2] = parts[-2] if norms else nn.Identity()
    model = stirred(nn.Sequential(*parts))
    if "orthogonal" in case or "spectral" in case:
        for layer in model[::3]:
            layer.weight.data *= 3
    baked = copy.deepcopy(model)
    for layer, own in zip(model[::3], baked[::3]):
        if case in RUN:
            own.weight, own.bias = (None if t is None else nn.Parameter(t.detach()) for t in RUN[case](own))
            PUT[case](layer)
            continue
        PUT[case](layer)
        layer(noise(1, 5, channels=layer.in_channels))  # power iterations
        layer.eval()
        layer(noise(1, 5, channels=layer.in_channels))
        assert "weight_norm" in case or not torch.equal(layer.weight, own.weight)
        own.weight, own.bias = nn.Parameter(layer.weight.detach().clone()), nn.Parameter(layer.bias.detach().clone())
    return model.eval(), baked.eval()


@pytest.mark.parametrize("norms", [False, True], ids=["plain", "batch norms"])
@pytest.mark.parametrize("case", PUT)
def test_rules_see_the_weights_that_run(case: str, norms: bool) -> None:
    model, baked = reparametrised(case, norms)
    images, which = Images(TensorDataset(noise(3))), (np.arange(5), np.arange(5) % 3)
    kinds = [type(module) for module in model]
    with torch.no_grad():
        torch.testing.assert_close(model(images.example[None]), baked(images.example[None]), rtol=1e-3, atol=1e-3)
    before, held = fingerprint(model), {name: list(vars(module)) for name, module in model.named_modules()}
    for rule in ("lrp", EpsilonAlpha2Beta1(canonizers=default_composite(model).canonizers)):
        how: dict[str, Any] = {"target": "8", "lower": "2", "rule": rule}
        found, expected = (circuits(one, images, *which, **how) for one in (model, baked))
        assert np.abs(expected).sum() > 2
        np.testing.assert_allclose(found, expected, atol=2e-4)
    assert fingerprint(model) == before
    assert held == {name: list(vars(module)) for name, module in model.named_modules()}
    assert kinds == [type(module) for module in model]


class Listed(nn.Linear):
    """Takes the first of several tensors, with weights that are not its parameters."""

    def forward(self, several: list[Tensor]) -> Tensor:  # type: ignore[override]
        return functional.linear(several[0], self.weight * 2, self.bias)


def test_a_layer_that_takes_a_list_is_left_out() -> None:
    model = Listed(3, 2).requires_grad_(False)
    with Weights.over(model) as weights, weights:
        model([torch.ones(1, 3)])
    assert not weights.plain


def test_relevance_is_conserved_through_weight_norm() -> None:
    model = plain()
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.bias.data.zero_()
            nn.utils.parametrizations.weight_norm(layer)
    images = noise(2).abs()
    with ruled(model, images, None, "4", EpsilonPlus()):
        leaf = images.clone().requires_grad_()
        top = model[:5](leaf)
        start = top.detach().clamp(min=0)
        (flow,) = torch.autograd.grad(top, leaf, start)
    # Of an output that is not positive the z-plus rule hands on all the same: of that none was put in.
    torch.testing.assert_close(flow.sum(dim=(1, 2, 3)), start.sum(dim=(1, 2, 3)), rtol=1e-3, atol=1e-4)


class Adapted(nn.Conv2d):
    """As LoRA does it: a second path beside the layer's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + functional.conv2d(x, self.weight.flip(0), padding=self.padding)


class Twice(nn.Conv2d):
    """Its own weights, but two times one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class Mirrored(nn.Conv2d):
    """Standardised weights, and the picture itself around it: more than a plain layer does."""

    def forward(self, x: Tensor) -> Tensor:
        around = functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(around, standardised(self.weight), self.bias)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> Tensor:
        return above[0] * 2


def with_hook(kind: str) -> nn.Module:
    """A network, a convolution of which has a hook that changes what it is given or puts out."""
    model = Joined(lambda x: x, nn.Conv2d(4, 4, 1))
    if kind == "before":
        model.modules_[0].register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    else:
        model.modules_[0].register_forward_hook(lambda *it: it[2] * 2)
    return model


def scripted(x: Tensor) -> Tensor:
    return x * 2


def running(x: Tensor) -> Tensor:
    return x.cumsum(2)


SURPRISES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "second path": (lambda: Joined(lambda x: x, Adapted(4, 4, 3, padding=1)), "'conv2d' in 'modules_.0' (Adapted)"),
    "twice": (lambda: Joined(lambda x: x, Twice(4, 4, 3, padding=1)), "'conv2d' in 'modules_.0' (Twice)"),
    "mirrored": (lambda: Joined(lambda x: x, Mirrored(4, 4, 3)), "'conv2d' in 'modules_.0' (Mirrored)"),
    "hook before": (lambda: with_hook("before"), "'mul' in 'modules_.0' (hooks of Conv2d)"),
    "hook after": (lambda: with_hook("after"), "'mul' in 'modules_.0' (hooks of Conv2d)"),
    "autograd.Function": (lambda: Joined(Doubled.apply), "'DoubledBackward' in '' (Joined)"),
    "function of TorchScript": (lambda: Joined(torch.jit.script(scripted)), "'MulBackward"),
    "compiled": (lambda: Joined(torch.compile(running, backend="eager")), "'cumsum' in '' (Joined)"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SURPRISES)
def test_what_a_rule_does_not_stand_for_is_refused(case: str) -> None:
    make, message = SURPRISES[case]
    model = make().eval()
    with (
        pytest.raises(LayerError, match="no rule for the operation") as caught,
        ruled(model, noise(1), None, "second", default_composite(model)),
    ):
        pass
    assert message in str(caught.value)


def test_padding_in_forward_needs_no_rule() -> None:
    """timm's Conv2dSame pads, and then runs with its own parameters."""
    torch.manual_seed(0)
    first = [Conv2dSame(3, 6, 3, stride=2), nn.ReLU(), Conv2dSame(6, 4, 3), nn.ReLU()]
    usual = [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU()]
    for one, other in ((first[0], usual[1]), (first[2], usual[3])):
        other.load_state_dict(one.state_dict())
    images = Images(TensorDataset(noise(2)))
    which = np.arange(4), np.arange(4) % 2
    found = circuits(nn.Sequential(*first), images, *which, target="3", lower="1", rule="lrp")
    expected = circuits(nn.Sequential(*usual), images, *which, target="4", lower="2", rule="lrp")
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Shared(nn.Module):
    """The same layers once and again; or others with the same weights."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one, self.pool = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AvgPool2d(2)
        self.two, self.pool2 = (self.one, self.pool) if again else copy.deepcopy((self.one, self.pool))
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.pool2(self.one(self.pool(self.first(x).relu())).relu())))


def test_a_layer_that_runs_twice_has_an_input_each_time() -> None:
    images, which = Images(TensorDataset(noise(3, 28))), (np.arange(4), np.arange(4) % 3)
    found, expected = (
        circuits(Shared(again).eval(), images, *which, target="last", lower="first", rule="lrp")
        for again in (True, False)
    )
    assert np.abs(expected).sum() > 0.9
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_parts_run_as_they_were(whole: bool) -> None:
    """What torch.compile made would call none of the hooks that are added later."""
    model, usual = plain(), plain()
    images, which = Images(TensorDataset(noise(3))), (np.arange(5), np.arange(5) % 3)
    lower = "2"
    if whole:
        model.compile(backend="eager")
        model(images.example[None])
    else:
        model[2], model[3] = torch.compile(model[2:4], backend="eager"), nn.Identity()
        model[2](noise(1, channels=5))
        lower = "2._orig_mod.2"
    for rule in ("gradient", "lrp"):
        found = circuits(model, images, *which, target="4", lower=lower, rule=rule)
        expected = circuits(usual, images, *which, target="4", lower="2", rule=rule)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_passes_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that works in place puts out what it was given: a rule that keeps that would keep its graph for good."""
    model, images, rules = plain(), noise(2), []

    def remembered(*args: Any) -> Any:
        rule = partial(*args)
        rules.append(weakref.ref(rule))
        return rule

    monkeypatch.setattr("pure_nb.network.rules.partial", remembered)
    with ruled(model, images[:1], None, "4", default_composite(model)), frozen_eval(model):
        leaf, top = cut(model, images, None, "4")
        torch.autograd.grad(top.sum(), leaf)
        del leaf, top
        gc.collect()
        assert len(rules) >= 5
        assert not [rule for rule in rules if rule() is not None]


def test_a_setting_that_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known to fit is looked at again, though the weights are the same."""
    looked: list[int] = []
    looks = lrp.require_fit
    monkeypatch.setattr(lrp, "require_fit", lambda *what: looked.append(1) or looks(*what))
    model, images = plain(), torch.rand(1, 3, 12, 12)
    for change in (lambda: None, lambda: None, lambda: setattr(model[2], "stride", (1, 1))):
        change()
        with lrp.ruled(model, images, "2", "4", lrp.default_composite(model)):
            pass
    assert len(looked) == 2
