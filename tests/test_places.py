"""Which token stands for which patch: tokens in every order, windows of each library, and what can't be told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from small import noise, stirred
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from pure_nb._resting import frozen_eval
from pure_nb.errors import LayerError
from pure_nb.network.cut import Cut
from pure_nb.network.layers import activations
from pure_nb.network.shapes import require, survey

ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "class token first": lambda grid, own: torch.cat([own[:, :1], grid.flatten(2).mT], dim=1),
    "class token last": lambda grid, own: torch.cat([grid.flatten(2).mT, own[:, :1]], dim=1),
    "registers last": lambda grid, own: torch.cat([own[:, :1], grid.flatten(2).mT, own[:, 1:]], dim=1),
    "in the middle": lambda grid, own: torch.cat([(f := grid.flatten(2).mT)[:, :9], own, f[:, 9:]], dim=1),
    "down the columns": lambda grid, own: torch.cat([own, grid.mT.flatten(2).mT], dim=1),
    "upside down": lambda grid, own: torch.cat([own[:, :1], grid.flip(2).flatten(2).mT], dim=1),
    "a mean of all first": lambda grid, own: torch.cat([(f := grid.flatten(2).mT).mean(1, keepdim=True), f], dim=1),
    "nothing but patches": lambda grid, own: grid.flatten(2).mT,
}  # fmt: skip
"""How tokens are made of a grid ``[B, C, h, w]`` and of some that stand for no patch."""


class Tokens(nn.Module):
    """Patches of 4 x 4 pixels, tokens in some order, and two layers that tokens look at each other in."""

    def __init__(self, order: str, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.order, self.how = ORDERS[order], how
        self.cut = nn.Unfold(4, stride=4) if how == "pixels" else nn.Conv2d(3, 6, 4, 4)
        self.smooth = nn.Conv2d(6, 6, 3, padding=1)
        self.widen, self.own = nn.Linear(48 if how == "pixels" else 6, 6), nn.Parameter(torch.randn(1, 3, 6))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True) for _ in range(2)))
        self.head = nn.Linear(6, 4)

    def grid(self, x: Tensor) -> Tensor:
        cut = self.cut(x).unflatten(2, (x.shape[2] // 4, x.shape[3] // 4)) if self.how == "pixels" else self.cut(x)
        return self.widen(cut.movedim(1, -1)).movedim(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.order(self.grid(x), self.own.expand(len(x), -1, -1))
        return self.head(self.blocks(tokens))


@pytest.mark.parametrize("how", ["convolution", "pixels"])
@pytest.mark.parametrize("order", ORDERS)
def test_patches_and_the_class_token_are_found_in_every_order(order: str, how: str) -> None:
    model, x = Tokens(order, how).eval(), noise(3, 32)[:, :, :24]
    with frozen_eval(model):
        found = activations(model, x, ["input:blocks", "blocks.1"])
        grid = model.grid(x)
        numbers = torch.arange(48.0).reshape(1, 1, 6, 8)
        truth = ORDERS[order](numbers, torch.full((1, 3, 1), -1.0))[0, :, 0]
        truth[truth == 23.5] = -1  # the mean of all
        places = [(truth == number).nonzero().item() for number in range(48)]
        seen = activations(model, x, ["patches:blocks.1"])["patches:blocks.1"]
        torch.testing.assert_close(seen, found["blocks.1"][:, places].mT.unflatten(2, (6, 8)))
        torch.testing.assert_close(found["input:blocks"][:, places].mT.unflatten(2, (6, 8)), grid)
        told = require(model, x[:1], "patches:blocks.1", "patches:blocks.0")[0]
        assert told.grid == (6, 8)
        assert told.how.startswith(f"tokens followed back to {'the pixels of' if how == 'pixels' else 'a convolution'}")
        if order == "nothing but patches":
            with pytest.raises(
                LayerError, match="each of its 48 tokens stands for a patch, so there is no class token"
            ):
                activations(model, x, ["class:blocks.1"])
            return
        first = int((truth < 0).nonzero()[0])
        alone = activations(model, x, ["class:blocks.1"])["class:blocks.1"]
        torch.testing.assert_close(alone, found["blocks.1"][:, first])
        for part, chosen in (("class:", [first]), ("patches:", places)):  # put back among the others
            zero = {f"{part}blocks.0": torch.zeros_like}
            changed = activations(model, x, [f"{part}blocks.0", "input:blocks.1"], changes=zero)["input:blocks.1"]
            whole = activations(model, x, ["blocks.0"])["blocks.0"].clone()
            whole[:, chosen] = 0
            torch.testing.assert_close(changed, whole)


def test_tokens_of_patches_that_overlap_are_those_that_differ_between_pictures() -> None:
    model, x = Tokens("class token last", "convolution"), noise(2, 24)
    model.cut = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.Flatten(2), nn.Linear(144, 36), nn.Unflatten(2, (6, 6)))
    found = activations(model, x, ["patches:blocks.0", "class:blocks.0", "blocks.0"])
    torch.testing.assert_close(found["patches:blocks.0"].flatten(2).mT, found["blocks.0"][:, :-1])
    torch.testing.assert_close(found["class:blocks.0"], found["blocks.0"][:, -1])
    assert "that differ between two pictures, row by row" in require(model, x[:1], "patches:blocks.1", "cut.0")[0].how


class Turned(Tokens):
    """Its tokens are upside down if it is told so, in either of two ways."""

    def __init__(self) -> None:
        super().__init__("nothing but patches", "convolution")
        self.flip: float | None = None
        self.blocks = nn.Sequential(nn.Identity(), *self.blocks)
        self.register_buffer("rows", torch.arange(6))

    def grid(self, x: Tensor) -> Tensor:
        return super().grid(x)[:, :, self.rows.flip(0) if self.flip else self.rows]


def test_where_tokens_lie_is_found_again_when_the_network_is_set_otherwise() -> None:
    model, x = Turned().eval(), noise(1, 24)
    truth = Tokens.grid(model, x)
    for change in (lambda: None, lambda: setattr(model, "flip", 1.0), lambda: model.rows.copy_(model.rows.flip(0))):
        change()
        torch.testing.assert_close(activations(model, x, ["patches:blocks.0"])["patches:blocks.0"], truth)


class Unroll(nn.Identity):
    """Of the name of a module that puts tokens into another order, and that does not."""


def test_only_the_libraries_own_modules_are_known_by_name() -> None:
    model = Tokens("class token first", "convolution")
    model.head = nn.Sequential(model.head, Unroll())
    assert activations(model, noise(1, 24), ["patches:blocks.0"])["patches:blocks.0"].shape == (1, 6, 6, 6)
    Unroll.__module__ = "timm.models.hiera"
    with pytest.raises(LayerError, match="keeps its tokens in another order"):
        activations(model, noise(1, 24), ["patches:blocks.0"])


def swin(size: tuple[int, int]) -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=size, window_size=4, embed_dim=12, depths=(2,), num_heads=(2,)
    )


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["whole windows", "padded"])
@pytest.mark.parametrize("block", [0, 1], ids=["at rest", "shifted"])
def test_windows_lie_where_the_library_puts_them(block: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, x, name = stirred(swin(size)), noise(2, 40)[:, :, : size[0], : size[1]], f"layers.0.blocks.{block}"
    inside, outside = f"patches:folded:{name}.attn", f"last:{name}.drop_path1"
    with frozen_eval(model):
        found = activations(model, x, [inside, outside])
        assert found[inside].shape == (2, 12, size[0] // 4, size[1] // 4)
        torch.testing.assert_close(found[inside], found[outside])
        below = activations(model, x, [f"patches:folded:{name}.attn.qkv", f"{name}.norm1"])
        qkv = model.get_submodule(f"{name}.attn.qkv")(below[f"{name}.norm1"].movedim(1, -1)).movedim(-1, 1)
        torch.testing.assert_close(below[f"patches:folded:{name}.attn.qkv"], qkv)
        flows = []
        for lower in (inside, outside):
            cut = Cut.at(model, x, lower, "head")
            flows.append(cut.relevance(torch.tensor([0, 3])))
            torch.testing.assert_close(cut.top, model(x))
        torch.testing.assert_close(*flows)


def test_what_is_inside_the_attention_of_windows_lies_there_too() -> None:
    torch.manual_seed(0)
    model, x, name = stirred(SwinTransformer([4, 4], 12, [2], [2], [4, 4])), noise(2, 40)[:, :, :24], "features.1.1"
    with frozen_eval(model):
        layers = [f"patches:values:folded:{name}.attn", f"patches:heads:folded:{name}.attn", f"{name}.norm1"]
        values, heads, normed = (activations(model, x, layers)[layer] for layer in layers)
        qkv, last = (model.get_submodule(f"{name}.attn.{part}") for part in ("qkv", "proj"))
        expected = torch.einsum("bchw,kc->bkhw", normed, qkv.weight[24:]) + qkv.bias[24:, None, None]
        torch.testing.assert_close(values, expected)
        without = activations(model, x, [layers[1], f"{name}.attn"], changes={layers[1]: torch.zeros_like})
    assert heads.shape == (2, 2, 6, 10)
    torch.testing.assert_close(without[f"{name}.attn"], last.bias.expand(2, 6, 10, 12))


def test_the_survey_says_how_it_knows() -> None:
    told = {shape.name: shape.how for shape in survey(swin((24, 40)), noise(1, 40)[:, :, :24])}
    assert told["patch_embed.proj"] == "channels second (a Conv2d)"
    assert told["last:layers.0.blocks.0"] == "channels last (the picture's proportions)"
    windows = "windows first (an image beside another), channels last (a Linear)"
    assert told["folded:layers.0.blocks.1.attn.qkv"] == windows
    assert told["head"] == "channels alone (no other axis)"
