"""Rules for functions are AttnLRP's: each against a slow twin in float64, finite differences, and the authors' code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from families import of_transformers
from numpy.typing import NDArray
from small import noise, stirred
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from torchvision.models import SwinTransformer, VisionTransformer
from zennit.core import Composite, Hook
from zennit.rules import Epsilon

from pure_nb._resting import frozen_eval
from pure_nb.errors import LayerError
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.network import functions
from pure_nb.network.cut import Cut
from pure_nb.network.functions import Functions, is_activation
from pure_nb.network.lrp import default_composite, reusing, ruled


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is added to what is divided by, so that the rules are what they say."""
    monkeypatch.setattr(functions, "EPSILON", 1e-30)


class Called(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def relevance(function: Callable[..., Tensor], above: Tensor, *inputs: Tensor) -> list[NDArray[np.float64]]:
    """Relevance of a function's inputs, given its output's; asked twice, as a graph may be."""
    with Composite(canonizers=[Functions()]).context(Called(function)) as model:
        entries = [one.clone().requires_grad_() for one in inputs]
        found = model(*entries)
        torch.testing.assert_close(found.detach(), function(*(one.clone() for one in inputs)))
        once, again = (torch.autograd.grad(found, entries, above, retain_graph=True) for _ in range(2))
    for one, other in zip(once, again):
        assert torch.equal(one, other)
    return [one.numpy() for one in once]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(a: NDArray[Any], b: NDArray[Any], above: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The uniform rule of a matrix product: of each term half goes to either factor."""
    out, left, right = a @ b, np.zeros_like(a), np.zeros_like(b)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                part = a[i, k] * b[k, j] / out[i, j] * above[i, j] / 2
                left[i, k] += part
                right[k, j] += part
    return left, right


def softmax(x: NDArray[Any], above: NDArray[Any]) -> NDArray[Any]:
    """Taylor's rule of a softmax over rows: x_i (R_i - s_i sum_j R_j)."""
    s = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    found: NDArray[Any] = x * (above - s * above.sum(axis=-1, keepdims=True))
    return found


def test_softmax() -> None:
    x, above = numbers(3, 5), numbers(3, 5, seed=1)
    expected = softmax(x.numpy(), above.numpy())
    for function in (lambda x: x.softmax(-1), lambda x: functional.softmax(x, dim=1), nn.Softmax(1)):
        np.testing.assert_allclose(relevance(function, above, x)[0], expected, atol=1e-12)


def test_softmax_of_what_is_masked() -> None:
    mask = torch.tensor([True, False, False, True, False])
    x, above = numbers(3, 5), numbers(3, 5, seed=1) * ~mask
    (found,) = relevance(lambda x: x.masked_fill(mask, -torch.inf).softmax(-1), above, x)
    assert not found[:, mask].any()
    np.testing.assert_allclose(found[:, ~mask], softmax(x[:, ~mask].numpy(), above[:, ~mask].numpy()), atol=1e-12)


def test_gates_are_softmaxes_of_two() -> None:
    x, above = numbers(3, 5), numbers(3, 5, seed=1)
    both = np.stack([x, np.zeros_like(x)], axis=-1)
    expected = softmax(both, np.stack([above, np.zeros_like(x)], axis=-1))[..., 0]
    for function in (torch.sigmoid, lambda x: x.sigmoid_(), nn.Sigmoid()):
        np.testing.assert_allclose(relevance(function, above, x)[0], expected, atol=1e-12)
    (found,) = relevance(functional.hardsigmoid, above, x)
    inside = np.abs(x.numpy()) < 3
    np.testing.assert_allclose(found, np.where(inside, x / (x + 3), 0) * above.numpy(), atol=1e-12)


def test_products() -> None:
    a, b, above = numbers(3, 4), numbers(4, 5, seed=1), numbers(3, 5, seed=2)
    expected = product(a.numpy(), b.numpy(), above.numpy())
    for function in (
        torch.matmul,
        lambda a, b: torch.einsum("ik,kj->ij", a, b),
        lambda a, b: torch.bmm(a[None], b[None])[0],
        lambda a, b: functional.linear(a, b.T),
    ):
        for found, wanted in zip(relevance(function, above, a, b), expected):
            np.testing.assert_allclose(found, wanted, atol=1e-12)
    (alone,) = relevance(lambda a: a @ b, above, a)
    np.testing.assert_allclose(alone, 2 * expected[0], atol=1e-12)


def test_products_number_by_number() -> None:
    """Also where one side stands for many, as a gate does for a whole channel."""
    x, gate, above = numbers(2, 3, 4, 4), numbers(2, 3, 1, 1, seed=1), numbers(2, 3, 4, 4, seed=2)
    for function in (lambda x, gate: x * gate, lambda x, gate: gate * x, lambda x, gate: x.mul_(gate)):
        found = relevance(function, above, x, gate)
        np.testing.assert_allclose(found[0], above / 2, atol=1e-12)
        np.testing.assert_allclose(found[1], above.sum((2, 3), keepdim=True) / 2, atol=1e-12)
    for function in (
        lambda x: x * 0.3,
        lambda x: 2 * x / 7,
        lambda x: x * numbers(3, 1, 1),
        lambda x: -x,
        lambda x: x**2,
    ):
        np.testing.assert_allclose(relevance(function, above, x)[0], above, atol=1e-12)
    (found,) = relevance(lambda gate: gate * x, above, gate)
    np.testing.assert_allclose(found, above.sum((2, 3), keepdim=True), atol=1e-12)
    (found,) = relevance(lambda x: functional.glu(torch.cat([x, x * 3], dim=1), dim=1), above, x)
    taylor = 3 * x * (1 - (3 * x).sigmoid()) * above / 2
    np.testing.assert_allclose(found, above / 2 + taylor, atol=1e-12)


def test_sums() -> None:
    x, y, above = numbers(2, 3, 4), numbers(3, 1, seed=1), numbers(2, 3, 4, seed=2)
    total = x + y
    for function in (
        lambda x, y: x + y,
        lambda x, y: x.add_(y),
        lambda x, y: x - -y,
        lambda x, y: y.__rsub__(x) + 2 * y,
    ):
        found = relevance(function, above, x, y)
        np.testing.assert_allclose(found[0], above * x / total, atol=1e-10)
        np.testing.assert_allclose(found[1], (above * y / total).sum((0, 2))[:, None], atol=1e-10)
    (found,) = relevance(lambda x: x.mean(dim=2), above[..., 0], x)
    np.testing.assert_allclose(found, above[..., :1] * x / x.sum(2, keepdim=True), atol=1e-12)


def test_what_is_divided_by_has_no_relevance() -> None:
    x, above = numbers(4, 6), numbers(4, 6, seed=1)
    for function in (
        lambda x: x / x.abs().sum(dim=1, keepdim=True),
        lambda x: x * x.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt(),
        lambda x: functional.rms_norm(x, (6,), numbers(6)),
        lambda x: functional.normalize(x, dim=1),
        lambda x: x * (1 / x.norm(dim=1, keepdim=True)),
    ):
        np.testing.assert_allclose(relevance(function, above, x)[0], above, atol=1e-12)


def test_layer_norm() -> None:
    """A linear map, as its deviation is a constant: x_j times the sum over i of its weight times R_i / y_i."""
    x, weight, bias, above = numbers(4, 6), numbers(6, seed=1), numbers(6, seed=2), numbers(4, 6, seed=3)
    (found,) = relevance(lambda x: functional.layer_norm(x, (6,), weight, bias, 1e-6), above, x)
    for row in range(4):
        v = x[row].numpy()
        deviation = np.sqrt(((v - v.mean()) ** 2).mean() + 1e-6)
        matrix = (np.eye(6) - 1 / 6) * weight.numpy()[:, None] / deviation
        expected = v * (matrix.T @ (above[row].numpy() / (matrix @ v + bias.numpy())))
        np.testing.assert_allclose(found[row], expected, atol=1e-10)


def test_group_norm() -> None:
    """Layer norm of the numbers of each group."""
    x, weight, bias, above = numbers(2, 6, 3, 3), numbers(6, seed=1), numbers(6, seed=2), numbers(2, 6, 3, 3, seed=3)
    (found,) = relevance(lambda x: functional.group_norm(x, 2, weight, bias), above, x)

    def each(part: slice, row: int) -> Callable[[Tensor], Tensor]:
        wide = weight[part].repeat_interleave(9), bias[part].repeat_interleave(9)
        return lambda v: functional.layer_norm(v, (27,), *wide)

    for row in range(2):
        for part in (slice(0, 3), slice(3, 6)):
            (own,) = relevance(each(part, row), above[row, part].flatten(), x[row, part].flatten())
            np.testing.assert_allclose(found[row, part].ravel(), own, atol=1e-12)


@pytest.mark.parametrize(
    "function",
    [functional.gelu, functional.silu, torch.relu, torch.tanh, lambda x: functional.hardswish(x, True)],
)
def test_activations_pass_relevance_on(function: Callable[[Tensor], Tensor]) -> None:
    x, above = numbers(4, 6), numbers(4, 6, seed=1)
    np.testing.assert_array_equal(relevance(function, above, x)[0], above)


class QuickGELU(nn.Module):
    """As in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Halves(nn.Module):
    """As many numbers out as in, but each of two."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() + x.mean()


def test_activations_of_any_library_are_known() -> None:
    for module in (QuickGELU(), nn.GELU(), nn.ReLU(inplace=True), timm.layers.activations.HardMish(), nn.Hardtanh()):
        assert is_activation(module), module
    for module in (nn.Softmax(1), nn.Sigmoid(), Halves(), nn.Identity(), nn.Dropout().eval(), nn.Flatten(), nn.PReLU()):
        assert not is_activation(module), module


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool) -> None:
    """The rules of its parts, one after the other: product, softmax, product."""
    q, k, v, above = (numbers(1, 1, 5, 4, seed=seed) for seed in range(4))
    mask = numbers(5, 5, seed=4) if masked else torch.zeros(5, 5, dtype=torch.float64)
    given = {"attn_mask": mask} if masked else {}
    found = relevance(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, **given), above, q, k, v)
    one, two, three, start = (x[0, 0].numpy() for x in (q, k, v, above))
    bare = one @ two.T / 2
    scores = bare + mask.numpy()
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    of_weights, of_values = product(weights, three, start)
    of_scores = softmax(scores, of_weights)
    of_queries, of_keys = product(one, two.T, of_scores * bare / scores)  # the rest is the mask's
    for part, expected in zip(found, (of_queries, of_keys.T, of_values)):
        np.testing.assert_allclose(part[0, 0], expected, atol=1e-10)
    # What conserves does so: the values have half, and queries as much as keys.
    np.testing.assert_allclose(found[2].sum(), start.sum() / 2, rtol=1e-10)
    np.testing.assert_allclose(found[0].sum(), found[1].sum(), rtol=1e-10)

    def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / 2 + mask).softmax(dim=-1) @ v

    for part, other in zip(found, relevance(by_hand, above, q, k, v)):
        np.testing.assert_allclose(part, other, atol=1e-10)


def test_attention_by_finite_differences() -> None:
    """Half, a quarter and a quarter of input times slope, of each output by what it has of relevance."""
    inputs, above = [numbers(1, 1, 4, 3, seed=seed) for seed in range(3)], numbers(1, 1, 4, 3, seed=3)
    run = functional.scaled_dot_product_attention
    weight, step = above / run(*inputs), 1e-5
    for place, (found, parts) in enumerate(zip(relevance(run, above, *inputs), (4, 4, 2))):
        for index in np.ndindex(4, 3):
            moved = []
            for sign in (1, -1):
                own = [one.clone() for one in inputs]
                own[place][(0, 0, *index)] += sign * step
                moved.append(run(*own))
            slope = float(((moved[0] - moved[1]) / (2 * step) * weight).sum())
            assert abs(found[(0, 0, *index)] - float(inputs[place][(0, 0, *index)]) * slope / parts) < 1e-7


@pytest.mark.parametrize("weights", [False, True])
def test_multihead_attention(weights: bool) -> None:
    """torch's own module is projections, attention and a projection; those by what each input brought."""
    torch.manual_seed(0)
    module, x, above = nn.MultiheadAttention(6, 2, batch_first=True).double().eval(), numbers(2, 5, 6), numbers(2, 5, 6)
    with torch.no_grad():
        module.in_proj_bias.normal_()
        module.out_proj.bias.normal_()
    module.requires_grad_(False)

    def by_hand(x: Tensor) -> Tensor:
        parts = functional.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in parts)
        heads = (q @ k.transpose(-2, -1) / 3**0.5).softmax(dim=-1) @ v
        return functional.linear(heads.transpose(1, 2).flatten(2), module.out_proj.weight, module.out_proj.bias)

    (found,) = relevance(lambda x: module(x, x, x, need_weights=weights)[0], above, x)
    np.testing.assert_allclose(found, relevance(by_hand, above, x)[0], atol=1e-9)


# --------------------------------------------------------------------------------------------------- whole networks


def without_biases(model: nn.Module) -> nn.Module:
    """Which take relevance up."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name.rpartition(".")[2] or "pos" in name:
                parameter.zero_()
            elif name.endswith(("layer_scale", "gamma")):
                parameter.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
    return model.double().eval()


def tight(model: nn.Module) -> Composite:
    """The rules as they are, but that zennit's epsilon is next to nothing."""
    composite = default_composite(model)
    usual = composite.module_map

    def module_map(context: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        rule = usual(context, name, module)
        return Epsilon(epsilon=1e-30) if isinstance(rule, Epsilon) else rule

    composite.module_map = module_map
    return composite


CONSERVING: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "MlpMixer": (lambda: MlpMixer(img_size=32, patch_size=8, num_blocks=3, embed_dim=24), "blocks.0", "blocks.2"),
    "convnext_atto": (lambda: timm.create_model("convnext_atto"), "stages.0", "stages.1"),
    "convnextv2_atto": (lambda: timm.create_model("convnextv2_atto"), "stages.0", "stages.1"),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny(), "features.0", "features.1"),
}


@pytest.mark.parametrize("case", CONSERVING)
def test_relevance_is_conserved(case: str) -> None:
    """In sum, image by image, where no softmax and no bias takes any of it up."""
    torch.manual_seed(0)
    make, lower, target = CONSERVING[case]
    model, images = without_biases(stirred(make())), noise(2, 32).double()
    with frozen_eval(model), reusing(tight(model)).context(model), frozen_eval(model):
        cut = Cut.at(model, images, lower, target, times_input=False)
        found = cut.relevance(torch.tensor([1, 2]))
        start = cut.top.detach()
    channels = start.movedim(-1, 1) if found.ndim == 3 else start
    wanted = torch.stack([channels[i, c].clamp(min=0).sum() for i, c in enumerate((1, 2))])
    assert wanted.min() > 0.01
    torch.testing.assert_close(found.flatten(1).sum(dim=1), wanted, rtol=1e-4, atol=0)


def test_relevance_of_attention_is_what_its_softmax_leaves() -> None:
    """With queries of nothing, the weights are all alike, whatever the keys: half the relevance stays there."""
    torch.manual_seed(0)
    model = without_biases(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2))
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[:192] = 0
    with frozen_eval(model), reusing(tight(model)).context(model), frozen_eval(model):
        cut = Cut.at(model, noise(2, 32).double(), "blocks.1.norm1", "blocks.1.attn", times_input=False)
        found = cut.relevance(torch.tensor([1, 2]))
    wanted = torch.stack([cut.top.detach()[i, :, c].clamp(min=0).sum() for i, c in enumerate((1, 2))])
    torch.testing.assert_close(found.sum(dim=(1, 2)), wanted / 2, rtol=1e-4, atol=0)


GATED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(), "features.3", "features.5"),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(), "features.1", "features.3"),
    "timm seresnet18": (lambda: timm.create_model("legacy_seresnet18"), "layer1", "layer2"),
    "timm ecaresnet26t": (lambda: timm.create_model("ecaresnet26t"), "layer1", "layer2"),
    "timm mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050"), "blocks.0", "blocks.2"),
}


@pytest.mark.parametrize("case", GATED)
def test_gated_networks_have_relevance(case: str) -> None:
    """None of it is made: gates and biases take some up."""
    torch.manual_seed(0)
    make, lower, target = GATED[case]
    model, images = without_biases(stirred(make())), noise(2, 64).double()
    with frozen_eval(model), ruled(model, images, lower, target, default_composite(model)), frozen_eval(model):
        cut = Cut.at(model, images, lower, target, times_input=False)
        best = cut.top.detach().sum(dim=(2, 3)).argmax(dim=1)
        found = cut.relevance(best).flatten(1).sum(dim=1)
    wanted = torch.stack([cut.top.detach()[i, c].clamp(min=0).sum() for i, c in enumerate(best)])
    assert wanted.min() > 0
    assert (found > 0.05 * wanted).all()
    assert (found < 1.001 * wanted).all()


def _clip_tower() -> nn.Module:
    return open_clip.transformer.VisionTransformer(32, 8, 16, 3, 2, 2.0, output_dim=8)


def _of_transformers(kind: str) -> Callable[[], nn.Module]:
    return of_transformers(
        kind,
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )


AUTHORS: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "torchvision": (
        lambda: VisionTransformer(32, 8, 3, 2, 16, 32),
        "encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_2",
        "",
    ),
    "open_clip": (_clip_tower, "transformer.resblocks.0", "transformer.resblocks.2", ""),
    "DINOv2": (_of_transformers("Dinov2"), "model.encoder.layer.0", "model.encoder.layer.2", "dinov2.modeling_dinov2"),
    "SigLIP": (
        _of_transformers("SiglipVision"),
        "model.vision_model.encoder.layers.0",
        "model.vision_model.encoder.layers.2",
        "siglip.modeling_siglip",
    ),
}
"""How it is made, lower layer, target, and the module of transformers whose attention is patched."""


def by_the_authors(patches: Any, model: nn.Module, code: str, patch: pytest.MonkeyPatch) -> None:
    """Replace what ``lxt.efficient`` replaces in networks that it knows, for what these are made of."""
    for kind in {type(module) for module in model.modules()}:
        if issubclass(kind, nn.LayerNorm):
            patch.setattr(kind, "forward", patches.layer_norm_forward)
        elif kind is nn.GELU or "GELU" in kind.__name__:
            patch.setattr(kind, "original_forward", kind.forward, raising=False)
            patch.setattr(kind, "forward", patches.non_linear_forward)
    if not code:
        ruled_attention = patches.wrap_attention_forward(nn.MultiheadAttention.forward)
        patch.setattr(nn.MultiheadAttention, "forward", ruled_attention)
        return
    module: Any = importlib.import_module(f"transformers.models.{code}")
    every = {name: patches.wrap_attention_forward(one) for name, one in module.ALL_ATTENTION_FUNCTIONS.items()}
    patch.setattr(module, "ALL_ATTENTION_FUNCTIONS", every)
    patch.setattr(module, "eager_attention_forward", patches.wrap_attention_forward(module.eager_attention_forward))


@pytest.mark.nightly
@pytest.mark.parametrize("case", AUTHORS)
def test_relevance_is_that_of_the_authors(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of AttnLRP as ``lxt.efficient`` has it, through two blocks. Measured with lxt 2.1: to 1e-8 of the largest."""
    patches = pytest.importorskip("lxt.efficient.patches", reason="needs lxt, best in an environment of its own")
    torch.manual_seed(0)
    make, lower, target, code = AUTHORS[case]
    model, images = make().double().eval(), noise(3, 32).double()
    channel = torch.tensor([3, 5, 0])
    with frozen_eval(model), reusing(tight(model)).context(model), frozen_eval(model):
        mine = Cut.at(model, images, lower, target, times_input=False).relevance(channel)
    by_the_authors(patches, model, code, monkeypatch)
    with frozen_eval(model):
        cut = Cut.at(model, images, lower, target)
        above = torch.zeros_like(cut.top)
        for row, c in enumerate(channel):
            above[row, :, c] = (cut.top[row, :, c] > 0).double()
        (flow,) = torch.autograd.grad(cut.top, cut.leaf, above)
    theirs = cut.leaf.detach() * flow
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


TOKENS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "torchvision": (lambda: VisionTransformer(32, 8, 2, 2, 16, 32), "conv_proj", "encoder.layers.encoder_layer_1"),
    "torchvision swin": (
        lambda: SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4]),
        "features.0",
        "last:features.3",
    ),
    "timm": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, reg_tokens=2),
        "patch_embed",
        "blocks.1",
    ),
}


@pytest.mark.parametrize("case", TOKENS)
def test_circuits_of_transformers_in_float32_are_those_in_float64(case: str) -> None:
    torch.manual_seed(0)
    make, lower, target = TOKENS[case]
    model, images = stirred(make()), noise(3, 32)
    which: Any = (np.arange(6), np.arange(6) % 3)
    found = []
    for dtype in (torch.float32, torch.float64):
        data = Images(TensorDataset(images.to(dtype)))
        found.append(circuits(model.to(dtype), data, *which, target=target, lower=lower, rule="lrp"))
    assert np.abs(found[1]).sum() > 4
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


def test_attention_of_a_learned_query() -> None:
    """What does not depend on the lower layer has no share: as if the attention were written out."""
    query, above = numbers(1, 2, 4), numbers(1, 2, 4, seed=1)
    x = numbers(1, 3, 4, seed=2)
    weight = numbers(4, 4, seed=3)

    def fused(x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, x @ weight, x)

    def written(x: Tensor) -> Tensor:
        return (query @ (x @ weight).transpose(-1, -2) / 2).softmax(-1) @ x

    np.testing.assert_allclose(relevance(fused, above, x)[0], relevance(written, above, x)[0], atol=1e-10)


@pytest.mark.parametrize(
    "inverse", [lambda n: torch.ones(3, 1, dtype=torch.float64) / n.sqrt(), lambda n: n.pow(-0.5), lambda n: n**-0.5]
)
def test_however_it_is_divided_the_divisor_has_nothing(inverse: Callable[[Tensor], Tensor]) -> None:
    x, above = numbers(3, 5), numbers(3, 5, seed=1)

    def norm(x: Tensor) -> Tensor:
        return x * inverse(x.square().mean(1, keepdim=True))

    np.testing.assert_allclose(relevance(norm, above, x)[0], above.numpy(), atol=1e-12)


def test_windows_that_overlap_are_summed() -> None:
    x = numbers(1, 2, 6, 6).abs()

    def folded(x: Tensor) -> Tensor:
        return functional.fold(functional.unfold(x, 3, padding=1), (6, 6), 3, padding=1)

    above = torch.ones(1, 2, 6, 6, dtype=torch.float64)
    assert relevance(folded, above, x)[0].sum() == pytest.approx(above.sum().item())


def test_norms_of_half_precision_stay_finite() -> None:
    x = (400 * numbers(2, 8)).half()
    with Composite(canonizers=[Functions()]).context(Called(lambda x: functional.layer_norm(x, (8,)))) as model:
        found = model(x.clone().requires_grad_())
    torch.testing.assert_close(found, functional.layer_norm(x, (8,)), atol=2e-3, rtol=2e-3)


class Dropped(nn.Module):
    """Works in place and does not use what that returns; on a batch's own statistics if it is asked to."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.first, self.last, self.own = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), own

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.own:
            return self.last(functional.batch_norm(y, None, None, training=True))  # type: ignore[no-any-return]
        y.mul_(torch.tensor(2.0))
        functional.relu(y, inplace=True)
        return self.last(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("own", "said"), [(False, "computes something else"), (True, "batch_norm")])
def test_what_rules_do_not_see_is_refused(own: bool, said: str) -> None:
    torch.manual_seed(0)
    model = Dropped(own).eval()
    with (
        pytest.raises(LayerError, match=said),
        ruled(model, torch.rand(1, 3, 6, 6), "first", "last", default_composite(model)),
    ):
        pass
