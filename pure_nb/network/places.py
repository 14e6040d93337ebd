"""Which token stands for which patch of the picture: found out by gradients, once for each layer.

Before tokens look at each other, what a token is depends on its own patch alone. So the gradient of all tokens, each
with its number as a factor, is at each patch the number of its token times the gradient without that: two backward
passes tell the places of all (a few more, with the numbers' digits one by one, for the sake of rounding). It needs
no knowledge of the library, and serves

- tokens of a whole picture, in whichever order, with class token, distilled tokens and registers anywhere among them:
  from the first tensor with as many tokens back to the convolution that made the patches, or to the pixels;
- windows, also shifted ones: back to what goes into the module that cuts them, or from what it puts out back to them.

From there on a token keeps its place, as long as there are as many of them. Where tokens are mixed too early for that
(a convolution over patches that overlap), those that are the same for two different pictures stand for no patch, and
the others are taken row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pure_nb._resting import frozen_eval
from pure_nb.errors import LayerError
from pure_nb.network.attention import Reached
from pure_nb.network.digests import INTERNAL
from pure_nb.network.running import Hook, as_weights, forward_pass, without_checkpoints
from pure_nb.network.targets import CLASS, FOLDED, PATCHES, Layout, Pass, Target, main_tensor

MOST_OTHERS = 16
"""Tokens that may stand for no patch: a class token, a distillation token, registers."""

BASE = 16
"""Of the digits by which tokens are numbered: so few that half precision tells them apart."""

DRAWS = 3
"""Of random factors, before it is said that a token is made of several patches."""

REORDERING = {"Unroll": ("timm.models.hiera", "hiera."), "HieraEncoder": ("transformers.models.hiera",)}
"""Modules that put tokens into another order once they are made, and where: Hiera in timm, Hugging Face, its own."""

MIXED = -2
"""Stands for the number of a token where there are several."""

TRIES = 4
"""Tensors, the first of a pass, that are asked where their tokens come from."""

_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, tuple[list[Any], Layout]]] = WeakKeyDictionary()
"""The settings of networks, and how their tokens lie then, by layer and size of the pictures."""

TOLD = 4096
"""Numbers of a table, such as an order of tokens, up to which these are a setting; beyond that, the table itself is."""

Rows = Callable[[Tensor], Tensor]
"""Takes a tensor to its positions ``[n, c]``, those of the first image."""


def layouts(model: nn.Module, images: Tensor, targets: Iterable[Target]) -> dict[Target, Layout]:
    """How the tokens lie of those layers of which patches or the class token are asked for.

    Parameters
    ----------
    model
        Any network.
    images
        A batch of its inputs, of which only form and place count.
    targets
        The layers; those of which something else is asked for are left out.

    Raises
    ------
    LayerError
        If it can't be told, or there is no class token where it is asked for.
    """
    found = {}
    for target in targets:
        if target.part == CLASS and target.batch == FOLDED:
            raise LayerError(f"layer {str(target)!r}: windows have no class token; name it without {CLASS!r}")
        if target.part in (PATCHES, CLASS):
            kinds = {type(module) for module in model.modules()}
            if any(kind.__module__.startswith(REORDERING.get(kind.__name__, ())) for kind in kinds):
                raise LayerError(
                    f"layer {str(target)!r}: {type(model).__name__} keeps its tokens in another order than that of the "
                    f"patches, so they can't be laid out; name the layer without {target.part!r}"
                )
            known = _KNOWN.setdefault(model, {})
            key, settings = (target, images.shape[1:], images.device), [*_settings(model)]
            if key not in known or known[key][0] != settings:
                known[key] = settings, _Search(model, images, target).layout
            found[target] = known[key][1]
            if target.part == CLASS and not found[target].others:
                raise LayerError(
                    f"layer {str(target)!r}: each of its {found[target].tokens} tokens stands for a patch, so there is "
                    f"no class token; name it with {PATCHES!r}"
                )
    return found


def _settings(model: nn.Module) -> Iterator[Any]:
    """Whatever its modules are set to: sizes of windows, by how much they are shifted, tables of indices."""
    for module in model.modules():
        yield type(module)
        own = {name: value for name, value in vars(module).items() if name not in INTERNAL}
        for name, value in (own | module._buffers).items():
            if isinstance(value, Tensor) and not value.is_floating_point():
                small = value.numel() <= TOLD and not value.is_meta
                yield name, value.shape, value.tolist() if small else id(value)
            elif _plain(value):
                yield name, repr(value)


def _plain(value: Any) -> bool:
    """Whether a value is words and numbers, or made of these."""
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return value is None or isinstance(value, (bool, int, float, str))


class _Search:
    """Runs a network on two pictures up to a layer, and finds out where its tokens come from.

    Attributes
    ----------
    layout
        What was found.
    """

    def __init__(self, model: nn.Module, images: Tensor, target: Target) -> None:
        self.model, self.target, self.count = model, target, len(images)
        self.found: Layout | None = None
        self.tokens: Tensor | None = None  # of the layer, [1 or 2, T, C]
        self.around: list[tuple[str, Tensor]] = []  # what goes into the modules around it
        self.seen: list[tuple[nn.Module | None, Tensor]] = []
        devices = [images.device] if images.is_cuda else []
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
            noise = torch.rand((2, *images.shape[1:]), generator=torch.Generator().manual_seed(0))
            self.images = as_weights(model, noise.to(images)).requires_grad_(images.is_floating_point())
            self.run()
            self.layout = self.found or self.of_tokens()

    def run(self) -> None:
        """The forward pass."""
        model, target = self.model, replace(self.target, part="")
        with ExitStack() as stack:
            stack.enter_context(frozen_eval(model))
            stack.enter_context(without_checkpoints(model))
            for name, module in model.named_modules():
                stack.enter_context(module.register_forward_pre_hook(partial(self.enter, name)))
            stack.enter_context(Hook(target, self.reached, Pass(self.images), False, True).register(model))
            for name, module in model.named_modules():
                stack.enter_context(module.register_forward_hook(partial(self.leave, name)))
            with suppress(Reached):
                forward_pass(model, self.images.clone())  # a network may change its input

    def enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        """A module starts."""
        if not inputs or not isinstance(inputs[0], Tensor) or self.tokens is not None:
            return
        if self.target.batch != FOLDED:
            self.seen.append((None, inputs[0]))
        elif self.is_around(name):
            self.around.insert(0, (name, inputs[0]))

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module ends."""
        given = main_tensor(output)
        if given is None:
            return
        if self.tokens is None:
            if self.target.batch != FOLDED:
                self.seen.append((module, given[0]))
        elif self.is_around(name):
            self.of_windows(given[0], entering=False)

    def is_around(self, name: str) -> bool:
        """Whether a module is around the layer, or is it."""
        return name == self.target.name or not name or self.target.name.startswith(f"{name}.")

    def reached(self, tokens: Tensor) -> Tensor:
        """The layer has been computed."""
        if tokens.ndim != 3:
            raise LayerError(
                f"layer {str(self.target)!r}: {[self.count, *tokens.shape[1:]]} are no tokens [B, T, C]; name it "
                f"without {self.target.part!r}, or choose another"
            )
        self.tokens = tokens
        if self.target.batch != FOLDED:
            raise Reached
        for _, given in self.around:
            self.of_windows(given, entering=True)
        return tokens.clone()  # another tensor, so that the network goes on with these

    def of_windows(self, around: Tensor, *, entering: bool) -> None:
        """Follow windows back to what goes into a module around them, or what it puts out back to them."""
        assert self.tokens is not None
        if around.ndim != 4 or len(around) != 2:
            return
        for positions, (height, width) in ((_last, around.shape[1:3]), (_second, around.shape[2:])):
            count = height * width
            if entering:
                found = fed(self.tokens[0], around, positions)
            elif (places := fed(positions(around), self.tokens, lambda x: x[0])) is not None:
                found = torch.full((count,), -1)
                found[places[places >= 0]] = (places >= 0).nonzero()[:, 0]
            else:
                found = None
            if complete(found):
                way = "back to what goes in around them" if entering else "up to what comes out around them"
                how = f"windows followed {way}, {height} x {width}"
                self.found = Layout(self.tokens.shape[1], (height, width), found, how)
                raise Reached

    def of_tokens(self) -> Layout:
        """Follow the tokens of a whole picture back to the convolution that made the patches, or to the pixels."""
        if self.tokens is None:
            raise LayerError(
                f"layer {str(self.target)!r} did not run in the forward pass of {type(self.model).__name__}"
            )
        if self.target.batch == FOLDED:
            raise LayerError(
                f"layer {str(self.target)!r}: it can't be told where in the picture its windows are, from what goes "
                f"into the modules around them or comes out; name it without {self.target.part!r}"
            )
        count = self.tokens.shape[1]
        grids: dict[tuple[int, int], Tensor] = {}
        for place, tokens in self.first(count):
            maps = self.maps(count, place)
            found = {grid: fed(tokens[0], source, _second) for grid, source in maps.items()}
            proven = {grid: places for grid, places in found.items() if complete(places)}
            if len(proven) == 1:
                ((grid, places),) = proven.items()
                how = f"tokens followed back to a convolution's {grid[0]} x {grid[1]} patches"
                return Layout(count, grid, places, how)
            if not proven and (pixels := self.of_pixels(tokens[0])):
                return pixels
            grids |= proven or maps
        return self.in_rows(count, [*(grids or self.maps(count, len(self.seen)))])

    def maps(self, count: int, place: int) -> dict[tuple[int, int], Tensor]:
        """What convolutions put out before a place in the pass, of sizes that may be the grid of the patches."""
        found = {}
        for module, one in self.seen[:place]:
            if isinstance(module, nn.Conv2d) and one.ndim == 4 and min(one.shape[2:]) > 1:
                height, width = one.shape[2:]
                if 0 <= count - height * width <= MOST_OTHERS:
                    found[height, width] = one
        return found

    def first(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """The first tensors of the pass that have as many tokens, ``[2, T, C]``, and their places in the pass."""
        tried: list[Tensor] = []
        for place, (_, one) in enumerate(self.seen):
            axes = [axis for axis in range(min(one.ndim, 3)) if one.shape[axis] == count] if one.ndim == 3 else []
            axes = [axis for axis in axes if one.shape[axis == 0] == 2]  # where the pictures are
            if axes and not any(one is before for before in tried):
                tried.append(one)
                yield from ((place, one.movedim(axis, 1) if axis else one.transpose(0, 1)) for axis in axes)
            if len(tried) == TRIES:
                return

    def of_pixels(self, tokens: Tensor) -> Layout | None:
        """The layout if each token is made of the pixels of a patch."""
        found = fed(tokens, self.images, _second) if self.images.ndim == 4 else None
        if found is None or (found < 0).any():
            return None
        whole = found.reshape(self.images.shape[2:])
        rows = 1 + int((whole[1:] != whole[:-1]).any(1).sum())
        columns = 1 + int((whole[:, 1:] != whole[:, :-1]).any(0).sum())
        high, wide = len(whole) // rows, whole.shape[1] // columns
        places = whole[::high, ::wide]
        if not torch.equal(places.repeat_interleave(high, 0).repeat_interleave(wide, 1), whole):
            return None
        how = f"tokens followed back to the pixels of {rows} x {columns} patches"
        return Layout(len(tokens), (rows, columns), places.flatten(), how) if complete(places.flatten()) else None

    def in_rows(self, count: int, grids: list[tuple[int, int]]) -> Layout:
        """The layout of tokens whose places were not told: those that differ between pictures, row by row."""
        tokens = next((one for _, one in self.first(count)), None)
        differ = torch.ones(count, dtype=torch.bool) if tokens is None else (tokens[0] != tokens[1]).any(1).cpu()
        places, size = differ.nonzero()[:, 0], self.images.shape[2:]
        if not grids and len(size) == 2:  # cut without a convolution: squares that fill the picture
            sides = (side for side in range(1, min(size) + 1) if not any(length % side for length in size))
            grids = [(size[0] // side, size[1] // side) for side in sides]
        elif not grids:
            grids = [(math.isqrt(len(places)),) * 2]
        found = [grid for grid in grids if min(grid) > 1 and math.prod(grid) == len(places)]
        if len(found) == 1:
            how = f"the {len(places)} tokens that differ between two pictures, row by row"
            return Layout(count, found[0], places, how)
        told = f"no grid of patches with at most {MOST_OTHERS} tokens besides, or it can't be told which these are"
        if found:
            told = f"a grid of {' or '.join(f'{h} x {w}' for h, w in found)} patches, which can't be told"
        raise LayerError(
            f"layer {str(self.target)!r}: {count} tokens are {told}; name the layer without {self.target.part!r}"
        )


def _last(activation: Tensor) -> Tensor:
    return activation[0].flatten(0, 1)


def _second(activation: Tensor) -> Tensor:
    return activation[0].flatten(1).T


def complete(places: Tensor | None) -> TypeGuard[Tensor]:
    """Whether each patch has a token of its own."""
    return places is not None and bool((places >= 0).all()) and len(set(places.tolist())) == len(places)


def fed(top: Tensor, leaf: Tensor, rows: Rows) -> Tensor | None:
    """Which row of a tensor each row of another, further below, goes into; besides such as all go into, as a mean.

    Parameters
    ----------
    top
        ``[n, c]``, of the first picture.
    leaf
        What it may have been computed from.
    rows
        Takes the leaf to its rows ``[m, d]``, those of the first picture.

    Returns
    -------
    Tensor or None
        int64 ``[m]``, -1 for a row that goes into none; None if one goes into several.
    """
    if not (top.requires_grad and leaf.requires_grad):
        return None
    found = _followed(top, leaf, rows, torch.ones(len(top), dtype=torch.bool))
    if found is None and 0 < (shared := _shared(top, leaf, rows)).sum() <= MOST_OTHERS:
        return _followed(top, leaf, rows, ~shared)
    return found


def _shared(top: Tensor, leaf: Tensor, rows: Rows) -> Tensor:
    """Which rows both the first and the last row of a leaf go into, as into the mean of all: bool ``[n]``."""
    above = torch.ones_like(top).requires_grad_()
    try:  # the gradient's own gradient tells where a change of one row goes
        (below,) = torch.autograd.grad(top, leaf, above, create_graph=True, allow_unused=True)
        ends = None if below is None else rows(below)[[0, -1]]
        if ends is None or not ends.requires_grad:
            return torch.zeros(len(top), dtype=torch.bool)
        factors = torch.randn(ends.shape[1], generator=torch.Generator().manual_seed(0)).to(ends)
        gone = [torch.autograd.grad((one * factors).sum(), above, retain_graph=True)[0] for one in ends]
    except RuntimeError:
        return torch.zeros(len(top), dtype=torch.bool)
    return torch.stack([(one != 0).any(1) for one in gone]).all(0).cpu()


def _followed(top: Tensor, leaf: Tensor, rows: Rows, asked: Tensor) -> Tensor | None:
    """The same of some rows alone, bool ``[n]``."""
    places: Tensor | None = None
    for seed in range(DRAWS):
        factors = torch.randn(top.shape[1], generator=torch.Generator().manual_seed(seed)).to(top)
        found = _numbers(top, leaf, rows, factors, asked)
        if found is None:
            return None
        places = found if places is None else torch.where(places == MIXED, found, places)
        mixed = (places == MIXED).double().mean()
        if not 0 < mixed < 0.5:  # of a few rows the gradient may be next to nothing by chance
            return places if mixed == 0 else None
    return None


def _numbers(top: Tensor, leaf: Tensor, rows: Rows, factors: Tensor, asked: Tensor) -> Tensor | None:
    """The same by gradients of channels with some factors, -2 where it can't be told; None if there are none."""
    numbers = torch.arange(len(top))

    def flow(code: Tensor) -> Tensor | None:
        above = (code * asked).to(top)[:, None] * factors
        try:
            (found,) = torch.autograd.grad(top, leaf, above, retain_graph=True, allow_unused=True)
        except RuntimeError:  # what the gradient needs was changed in place, as a network may that is never trained
            return None
        return None if found is None else rows(found).detach().double().cpu()

    plain = flow(torch.ones(len(top)))
    if plain is None or not plain.isfinite().all():
        return None
    size, largest = plain.square().sum(1), plain.abs().amax(1)
    precision = max(1e-3, 16 * torch.finfo(top.dtype).eps)
    places, value = torch.zeros(len(plain), dtype=torch.long), 1
    mixed = torch.zeros(len(plain), dtype=torch.bool)
    while value < len(top):
        coded = flow(numbers // value % BASE)
        assert coded is not None
        digit = (coded * plain).sum(1) / size.clamp(min=torch.finfo(size.dtype).tiny)
        mixed |= (coded - digit.round()[:, None] * plain).abs().amax(1) > precision * largest
        places += digit.round().long() * value
        value *= BASE
    return places.masked_fill(size == 0, -1).masked_fill(mixed, MIXED)
