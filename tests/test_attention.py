"""Heads, queries, keys and values as layers, against what is computed by hand from the weights of each library."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer as OpenClip
from small import noise, stirred
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn import functional
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer

from pure_nb._resting import frozen_eval
from pure_nb.errors import LayerError
from pure_nb.network.cut import Cut
from pure_nb.network.layers import activations
from pure_nb.network.lrp import default_composite, ruled
from pure_nb.network.running import without_checkpoints
from pure_nb.network.shapes import require

HEADS, WIDTH = 2, 12


class Apart(nn.Module):
    """Attention with three linear layers, as Hugging Face has it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads = HEADS
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        q, k, v = (one(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        weights = (torch.matmul(q, k.transpose(-1, -2)) * 0.4).softmax(dim=-1)
        return self.out(torch.matmul(weights, v).transpose(1, 2).flatten(2)), None


class Around(nn.Module):
    """A network of nothing but attention between two linear layers, with a residual."""

    def __init__(self, attn: nn.Module, *, first: bool = False, **how: Any) -> None:
        super().__init__()
        self.embed, self.attn, self.head = nn.Conv2d(3, WIDTH, 4, 4), attn, nn.Linear(WIDTH, 5)
        self.first, self.how = first, how

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        given = x.transpose(0, 1) if self.first else x
        found = self.attn(*(given,) * (3 if isinstance(self.attn, nn.MultiheadAttention) else 1), **self.how)
        found = found[0] if isinstance(found, tuple) else found
        return self.head(x + (found.transpose(0, 1) if self.first else found))


def of_timm(*, fused: bool) -> nn.Module:
    attn = timm.layers.Attention(WIDTH, HEADS, qkv_bias=True)
    attn.fused_attn = fused
    return attn


FORMS: dict[str, Callable[[], Around]] = {
    "timm, fused": lambda: Around(of_timm(fused=True)),
    "timm, plain": lambda: Around(of_timm(fused=False)),
    "three linear layers": lambda: Around(Apart()),
    "torch": lambda: Around(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), need_weights=False),
    "torch, with weights": lambda: Around(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)),
    "torch, tokens first": lambda: Around(nn.MultiheadAttention(WIDTH, HEADS), first=True),
}


def by_hand(model: Around, x: Tensor) -> dict[str, Tensor]:
    """Queries, keys and values ``[B, T, C]``, and what heads put out, all channels of each, before the last layer."""
    attn: Any = model.attn
    x = model.embed(x).flatten(2).transpose(1, 2)
    if isinstance(attn, Apart):
        found = [attn.query(x), attn.key(x), attn.value(x)]
    else:
        weight, bias = (
            (attn.qkv.weight, attn.qkv.bias) if hasattr(attn, "qkv") else (attn.in_proj_weight, attn.in_proj_bias)
        )
        found = list(functional.linear(x, weight, bias).chunk(3, dim=-1))
    each = []
    for head in range(HEADS):
        own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        q, k, v = (one[:, :, own] for one in found)
        scale = 0.4 if isinstance(attn, Apart) else (WIDTH // HEADS) ** -0.5
        each.append((q @ k.transpose(1, 2) * scale).softmax(dim=-1) @ v)
    return dict(zip(("queries", "keys", "values", "all"), (*found, torch.cat(each, dim=-1))))


def ended(model: Around, x: Tensor, heads: Tensor) -> Tensor:
    """What the network makes of what its heads put out."""
    attn: Any = model.attn
    last = next(getattr(attn, name) for name in ("proj", "out", "out_proj") if hasattr(attn, name))
    return model.head(model.embed(x).flatten(2).transpose(1, 2) + last(heads))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_inside_attention_is_what_the_weights_make(form: str) -> None:
    torch.manual_seed(0)
    model, x = FORMS[form]().double().eval(), noise(3).double()
    with frozen_eval(model):
        known = by_hand(model, x)
        for part in ("queries", "keys", "values"):
            layer = f"{part}:attn"
            found = activations(model, x, [layer])[layer]
            scale = found.norm() / known[part].norm()  # some scale the queries, and not what they meet
            torch.testing.assert_close(found, known[part] * scale)
            assert part == "queries" or abs(scale - 1) < 1e-9
            shape = require(model, x[:1], "head", layer)[1]
            assert (shape.kind, shape.channels, shape.grid) == (part, WIDTH, (9,))
        norms = known["all"].unflatten(2, (HEADS, -1)).norm(dim=-1)
        found = activations(model, x, ["patches:heads:attn"])["patches:heads:attn"]
        torch.testing.assert_close(found, norms.transpose(1, 2).unflatten(2, (3, 3)))
        without = activations(
            model, x, ["heads:attn", "head"], changes={"heads:attn": lambda heads: heads * torch.tensor([0, 1])}
        )
        known["all"][:, :, : WIDTH // HEADS] = 0
        torch.testing.assert_close(without["head"], ended(model, x, known["all"]))


@pytest.mark.parametrize("part", ["heads", "queries", "keys", "values"])
@pytest.mark.parametrize("form", FORMS)
def test_relevance_goes_to_what_is_inside_attention(form: str, part: str) -> None:
    """To a head goes the sum of what goes to its channels."""
    torch.manual_seed(0)
    model, x = FORMS[form]().double().eval(), noise(3).double()
    with frozen_eval(model):
        cut = Cut.at(model, x, f"{part}:attn", "head")
        torch.testing.assert_close(cut.top, model(x))
        found = cut.relevance(torch.tensor([1, 4, 2]))
        above = torch.autograd.grad(cut.top, cut.leaf, torch.ones_like(cut.top), retain_graph=True)[0]
        assert above.abs().sum() > 0
        if part == "heads":
            start = by_hand(model, x)["all"].requires_grad_()
            top = ended(model, x, start)
            seed = torch.zeros_like(top)
            for row, channel in enumerate((1, 4, 2)):
                seed[row, :, channel] = top[row, :, channel].detach().clamp(min=0)
            (flow,) = torch.autograd.grad(top, start, seed)
            torch.testing.assert_close(found, (start * flow).detach().unflatten(2, (HEADS, -1)).sum(dim=3))
        step = 1e-6 * torch.randn_like(cut.leaf)
        new = activations(model, x, [f"{part}:attn", "head"], changes={f"{part}:attn": lambda values: values + step})[
            "head"
        ]
        torch.testing.assert_close((new - cut.top.detach()).sum(), (above * step).sum(), rtol=1e-3, atol=1e-9)


SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "timm": (lambda: timm.create_model("vit_tiny_patch16_224", **SMALL), "heads:blocks.1.attn", "blocks.0", "blocks.1"),
    "torchvision": (
        lambda: VisionTransformer(32, 8, 2, 2, 24, 48),
        "heads:encoder.layers.encoder_layer_1.self_attention",
        "patches:encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_1",
    ),
    "open_clip": (
        lambda: OpenClip(32, 8, 24, 2, 2, 2.0, output_dim=8),
        "heads:transformer.resblocks.1.attn",
        "patches:transformer.resblocks.0",
        "transformer.resblocks.1",
    ),
    "windows": (
        lambda: SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4]),
        "patches:heads:folded:features.1.1.attn",
        "last:features.1.0",
        "last:features.1.1",
    ),
}


@pytest.mark.parametrize("rule", ["gradient", "lrp"])
@pytest.mark.parametrize("network", NETWORKS)
def test_circuits_of_heads(network: str, rule: str) -> None:
    """Of the norms relevance goes to the heads' channels, and from all of a head's channels to its norm."""
    make, heads, lower, upper = NETWORKS[network]
    torch.manual_seed(0)
    model, x = stirred(make()).double(), noise(2, 32).double()

    def cut(lower: str, target: str) -> Cut:
        return Cut.at(model, x, lower, target, times_input=rule != "lrp")

    with ExitStack() as stack:
        for below, above in ((lower, heads), (heads, upper)):
            with ruled(model, x, below, above, default_composite(model)):  # the rules fit, and all has one
                pass
        if rule == "lrp":
            stack.enter_context(ruled(model, x, lower, upper, default_composite(model)))
        stack.enter_context(frozen_eval(model))
        found = cut(lower, heads).relevance(torch.tensor([1, 0]))
        through = cut(heads, upper).relevance(torch.tensor([1, 0]))
        assert min(found.abs().sum(), through.abs().sum()) > 0
        if network == "timm":
            mixed = cut(lower, "input:blocks.1.attn.proj")
            own = mixed.top.detach().unflatten(2, (HEADS, -1)) * torch.tensor([[0, 1], [1, 0]])[:, None, :, None]
            norm = own.norm(dim=3, keepdim=True)
            start = own.square() / norm.clamp(min=1e-9) if rule == "lrp" else own  # of the norm: own / norm, times norm
            (flow,) = torch.autograd.grad(mixed.top, mixed.leaf, start.flatten(2))
            expected = flow if rule == "lrp" else flow * mixed.leaf.detach()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)  # of what keeps rules from dividing by 0
            whole = cut("input:blocks.1.attn.proj", upper).relevance(torch.tensor([1, 0]))
            torch.testing.assert_close(through, whole.unflatten(2, (HEADS, -1)).sum(dim=3), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("heads:embed", "layer 'heads:embed': Conv2d calls torch's attention, .* never, expected once"),
        ("keys:", "has no layer ''"),
        ("heads:folded:attn", "name it 'heads:attn'"),
    ],
)  # fmt: skip
def test_where_there_is_no_attention_is_said(layer: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        require(FORMS["torch"](), noise(1), "head", layer)


class Linear(nn.Module):
    """Attention without a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.mT @ x


def test_products_without_a_softmax_are_no_attention() -> None:
    with pytest.raises(
        LayerError, match=r"layer 'heads:attn': Linear calls torch's attention, .* never, expected once"
    ):
        activations(Around(Linear()), noise(1), ["heads:attn"])


def test_two_attentions_in_one_module_are_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2)
    with pytest.raises(LayerError, match=r"layer 'heads:blocks': Sequential calls .* 2 times, expected once"):
        activations(model, noise(1, 32), ["heads:blocks"])


class Bare(nn.Module):
    """Attention with its heads, if there are several, on the first axis, or, as in HaloNet, blocks on the second."""

    def __init__(self, told: int = 0, blocks: int = 0) -> None:
        super().__init__()
        self.qkv, self.blocks, self.inner = nn.Linear(WIDTH, 3 * WIDTH), blocks, nn.Identity()
        self.num_heads = 5  # of what is around it
        if told:
            self.inner.num_heads = told
        else:
            del self.num_heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3 * HEADS, -1)).transpose(1, 2).unflatten(1, (3, HEADS)).unbind(1)
        q, k, v = (one.flatten(0, 1) for one in (q, k, v))
        if self.blocks:
            q, k, v = (one.unflatten(1, (self.blocks, -1)) for one in (q, k, v))
        found = (q @ k.mT).softmax(dim=-1) @ v
        found = found.flatten(1, 2) if self.blocks else found
        return found.unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, r"\[6, 9, 6\], and it can't be told how many heads"),
        ({"told": 4}, "can't be told how many heads"),
        ({"told": 1}, "asks for 54 positions where it has 27"),
        ({"told": 2, "blocks": 3}, r"attention is called with \[6, 3, 3, 6\], and Bare has 2 heads; expected"),
    ],
)
def test_another_number_of_heads_is_never_assumed(how: dict[str, int], message: str) -> None:
    model, x = Around(Bare(**how)), noise(3)
    for part in ("heads", "values"):
        with pytest.raises(LayerError, match=message):
            activations(model, x, [f"{part}:folded:attn"])
    model = Around(Bare(told=2))
    assert activations(model, x, ["heads:attn"])["heads:attn"].shape == (3, 9, 2)


@pytest.mark.parametrize("part", ["heads", "patches:heads", "values"])
def test_who_reads_heads_on_the_way_changes_no_relevance(part: str) -> None:
    torch.manual_seed(0)
    model, x = stirred(timm.create_model("vit_tiny_patch16_224", **SMALL)).double(), noise(2, 32).double()
    lower, upper = "blocks.0", "blocks.1"
    flows = []
    with ruled(model, x, lower, upper, default_composite(model)), frozen_eval(model):
        for between in ([], [f"{part}:blocks.1.attn"]):
            found = activations(model, x, [lower, *between, upper], leaf=lower)
            flows += torch.autograd.grad(found[upper], found[lower], torch.ones_like(found[upper]))
    assert flows[0].abs().sum() > 0
    torch.testing.assert_close(flows[1], flows[0], rtol=0, atol=0)


def test_nothing_stays_after_an_interrupt() -> None:
    def stop(values: Tensor) -> Tensor:
        raise KeyboardInterrupt

    for form in ("torch", "timm, plain"):
        with pytest.raises(KeyboardInterrupt):
            activations(FORMS[form](), noise(1), ["values:attn", "head"], changes={"values:attn": stop})
        assert _len_torch_function_stack() == 0


def test_checkpoints_are_back_once_the_last_thread_has_left() -> None:
    torchs: Any = torch.utils.checkpoint
    model = nn.Identity()
    model.grad_checkpointing = True

    def state() -> tuple[Any, ...]:
        return torchs.CheckpointFunction.apply, torchs._checkpoint_hook, model.grad_checkpointing

    before, first, second = state(), without_checkpoints(model), without_checkpoints(model)
    first.__enter__()
    within = state()
    second.__enter__()
    first.__exit__(None, None, None)
    assert state() == within != before
    second.__exit__(None, None, None)
    assert state() == before
