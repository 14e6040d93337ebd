"""Polysemanticity that was planted, so that the right answer is known.

Nobody can say what an ordinary neuron really means, so nobody can say whether a method that splits it into parts is
right. Here channels of a trained layer are merged: ``A_m = sum_i w_i A_i / s_i``, where ``s_i`` is the mean score of
channel i's own reference images, so that each source is as strong as the others where it is strong. The merged channels
are a layer of their own, which can be studied like any other, and of each of its reference images it is known which
source is dominant. The network computes the same as before, and it computes it *through* the merged channels: in all
that comes after, each is an ordinary channel with classes it is relevant to.

Two kinds of merging, by what the layer is. A ``Conv2d`` or ``Linear`` is linear in its input, so the merged channel is
too: its weights are the weighted sum of its sources' weights, and it can be split like any channel of a convolution.
The output of anything else, a residual block say, is merged as it comes out, after its last non-linearity.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn

from pure_nb.compute.blocks import by_image
from pure_nb.errors import PlantingError
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.methods.references import References
from pure_nb.methods.rewiring import empty_like
from pure_nb.methods.windows import Weighted, dense_weight
from pure_nb.network.layers import (
    activations,
    computes_plainly,
    flatten_positions,
    get_layer,
)
from pure_nb.network.targets import INPUT, Target, channels_last, channels_second
from pure_nb.parameters import Run

Groups = tuple[tuple[int, ...], ...]
How = Literal["random", "similar", "dissimilar", "overlapping"]

DRAWS = 8
"""Groups drawn for each one that is kept, where they are chosen by how alike their channels are."""


def within(layer: str, name: str) -> str:
    """What a layer is called where the modules inside another have moved into the ``whole`` of what took its place."""
    target = Target.parse(name)
    if not target.name.startswith(f"{layer}."):
        return name
    return str(replace(target, name=f"{layer}.whole{target.name.removeprefix(layer)}"))


@dataclass(frozen=True, eq=False)
class Planting:
    """Which channels were merged into which, and how.

    Attributes
    ----------
    layer
        The layer whose channels they are.
    groups
        For each merged channel its sources. A channel merged with itself is the null: one source, twice.
    weight
        float64 ``[merged, channels]``: ``w_i / s_i``, what each channel of the layer brings to each merged one.
    early
        Whether the merged channels read the layer's input, and not its output.
    """

    layer: str
    groups: Groups
    weight: NDArray[np.float64]
    early: bool

    @property
    def target(self) -> str:
        """Name of the merged channels' layer in the planted network."""
        return f"{self.layer}.merged"

    def renamed(self, name: str) -> str:
        """What a layer of the original network is called in the planted one.

        Modules inside the planted layer move into its ``whole``. The input of a convolution or linear layer is also
        that of its merged channels, and is named so, for :meth:`pure_nb.classes.Classes.split`.
        """
        target = Target.parse(name)
        if target == Target(self.layer, INPUT) and self.early:
            return str(replace(target, name=self.target))
        return within(self.layer, name)

    @property
    def sources(self) -> NDArray[np.int64]:
        """int64 ``[merged, most sources]``: the groups, those with fewer sources filled up with their first."""
        most = max(map(len, self.groups))
        return np.array([[*group, *[group[0]] * (most - len(group))] for group in self.groups])

    @property
    def self_merged(self) -> NDArray[np.bool_]:
        """Bool ``[merged]``: which of them have a single source."""
        return np.array([len(set(group)) == 1 for group in self.groups])


class PlantedLayer(nn.Module):
    """A layer, and the merged channels through which part of its output passes. Made by :func:`plant`.

    Parameters
    ----------
    whole
        The layer as it was.
    merged
        The merged channels, from the layer's input if ``early``, else from its output.
    mix
        float ``[merged, channels]``: what each channel brings to each merged one.
    back
        float ``[channels, merged]``: what each channel gets back.
    early
        Whether ``merged`` reads the layer's input.
    """

    mix: Tensor
    back: Tensor

    def __init__(self, whole: nn.Module, merged: nn.Module, mix: Tensor, back: Tensor, early: bool) -> None:
        super().__init__()
        self.whole = whole
        self.merged = merged
        # zennit's canonizers merge a batch norm into the convolution right before it, which must not be the merged one.
        self.join = nn.Identity()
        self.early = early
        self.register_buffer("mix", mix)
        self.register_buffer("back", back)
        self.training = self.merged.training = self.join.training = whole.training

    def forward(self, input: Tensor) -> Tensor:
        """What the layer puts out: ``(1 - back mix) A + back merged``, and ``merged = mix A``."""
        output: Tensor = self.whole(input)
        merged: Tensor = self.merged(input if self.early else output)
        axis = -1 if isinstance(self.merged, nn.Linear) else 1
        past = merged.movedim(axis, -1) - output.movedim(axis, -1) @ self.mix.T
        joint: Tensor = self.join(output + (past @ self.back.T).movedim(-1, axis))
        return joint


def plant(
    model: nn.Module,
    references: References,
    groups: Sequence[Sequence[int]],
    strengths: Sequence[Sequence[float]] | None = None,
) -> tuple[nn.Module, Planting]:
    """A copy of a network in which channels of a layer are merged; it computes the same.

    Parameters
    ----------
    model
        Any network; it is left as it is.
    references
        Reference images of the layer. The mean of a channel's scores is its scale ``s_i``.
    groups
        For each merged channel two or more channels of the layer, its sources. The same one twice is the null.
    strengths
        For each group the strengths ``w_i`` of its sources; 1 by default. With ``(1, 0.5)`` the second is half as
        strong as the first.

    Returns
    -------
    tuple
        The network, with a :class:`PlantedLayer` under the layer's name; and what was planted. The merged channels are
        the layer ``"<layer>.merged"``.

    Raises
    ------
    PlantingError
        If a group has fewer than two sources, or one that is not there or dead, or the strengths do not fit; or if the
        references are of a part of a layer, such as ``"patches:NAME"``.
    LayerError
        If the layer is missing.
    """
    layer = references.layer
    target = Target.parse(layer)
    if target.prefix:
        raise PlantingError(
            f"channels are merged in all that a module puts out: name {target.name!r} without {target.prefix!r}"
        )
    weight = _weights(references, groups, strengths)
    planted = copy.deepcopy(model)
    whole = get_layer(planted, layer)
    like = next((p for part in (whole, planted) for p in part.parameters()), torch.empty(0))  # a ReLU has none
    device, dtype = like.device, like.dtype
    early = computes_plainly(whole)
    merged = _early(whole, weight) if early else _late(weight, convolution_of(whole, len(references.grid)))
    # Of a source that is in g groups, each gives a g-th back, and of a group of k different sources each gets a k-th.
    used = (weight > 0).astype(np.float64)
    back = (used / (used.sum(axis=1, keepdims=True) * used.sum(axis=0).clip(min=1))).T
    back /= np.where(weight > 0, weight, 1).T
    buffers = [torch.from_numpy(table).to(device, dtype) for table in (weight, back)]
    merged.to(device, dtype).requires_grad_(any(p.requires_grad for p in whole.parameters()))
    planted.set_submodule(layer, PlantedLayer(whole, merged, buffers[0], buffers[1], early))
    chosen = tuple(tuple(int(channel) for channel in group) for group in groups)
    return planted, Planting(layer, chosen, weight, early)


def possible_sources(references: References) -> NDArray[np.int64]:
    """Which channels of a layer can be sources: those of a mean score above 0, by which they are scaled."""
    return np.flatnonzero(references.score.astype(np.float64).mean(axis=1) > 0)


def _weights(
    references: References, groups: Sequence[Sequence[int]], strengths: Sequence[Sequence[float]] | None
) -> NDArray[np.float64]:
    """What each channel brings to each merged one, ``[merged, channels]``."""
    scale, possible = references.score.astype(np.float64).mean(axis=1), possible_sources(references)
    if not len(groups):
        raise PlantingError(f"no channels of layer {references.layer!r} were named to be merged")
    if strengths is not None and [len(s) for s in strengths] != [len(group) for group in groups]:
        raise PlantingError("strengths must have as many groups as there are, and a number for each of their channels")
    weight = np.zeros((len(groups), references.channels))
    for number, group in enumerate(groups):
        if len(group) < 2:
            raise PlantingError(f"a merged channel needs two or more sources, got {tuple(group)}")
        for place, channel in enumerate(group):
            if not 0 <= channel < references.channels:
                raise PlantingError(
                    f"there is no channel {channel} in layer {references.layer!r}, which has {references.channels}"
                )
            if channel not in possible:
                raise PlantingError(
                    f"channel {channel} of layer {references.layer!r} is dead, its mean score is {scale[channel]:g}, "
                    "so it can't be a source"
                )
            strength = 1.0 if strengths is None else float(strengths[number][place])
            if not 0 < strength < np.inf:
                raise PlantingError(f"a strength must be above 0, got {strength} for channel {channel}")
            weight[number, channel] += strength / scale[channel]
    return weight


def _early(whole: Any, weight: NDArray[np.float64]) -> Weighted:
    """Merged channels of a layer that is linear in its input: the same layer with summed weights."""
    dense = np.stack([dense_weight(whole, channel) for channel in range(weight.shape[1])])
    weights = np.einsum("mc,c...->m...", weight, dense)
    merged: Any = empty_like(whole, dense.shape[1], len(weight))
    with torch.no_grad():
        merged.weight.copy_(torch.from_numpy(weights.reshape(merged.weight.shape)))
        if merged.bias is not None:
            merged.bias.copy_(torch.from_numpy(weight @ whole.bias.detach().cpu().double().numpy()))
    return merged


def convolution_of(whole: nn.Module, axes: int) -> type[nn.Conv1d | nn.Conv2d] | None:
    """What kind of convolution goes over the positions of a layer; None where its channels are last."""
    if axes == 1:
        return nn.Conv1d if channels_second(whole) else None
    return nn.Conv2d if axes == 2 and not channels_last(whole) else None


def _late(weight: NDArray[np.float64], convolution: type[nn.Conv1d | nn.Conv2d] | None) -> nn.Module:
    """Merged channels of any other layer, from its output: a convolution of size 1, or linear."""
    shape: Any = {"bias": False, "device": "meta", "dtype": torch.float64}
    outputs, inputs = weight.shape
    like = convolution(inputs, outputs, 1, **shape) if convolution else nn.Linear(inputs, outputs, **shape)
    merged: Any = like.to_empty(device="cpu")
    with torch.no_grad():
        merged.weight.copy_(torch.from_numpy(weight).reshape(merged.weight.shape))
    return merged


def contributions(
    model: nn.Module,
    images: Images,
    references: References,
    planting: Planting,
    *,
    run: Run = Run(),
) -> NDArray[np.float32]:
    """What each source contributed to the activation of each merged channel in each of its reference images.

    Parameters
    ----------
    model
        The planted network.
    images, references
        The reference images of the merged channels.
    planting
        What was planted.
    run
        How it is run; its ``client`` computes them, or else this process.

    Returns
    -------
    ndarray
        float32 ``[merged, n, most sources]``: ``w_i A_i / s_i`` at the position of the merged channel's maximum, or
        averaged over the positions where its references were chosen by the mean; in the order of the groups, 0 beyond a
        group's own sources.
    """
    layer = f"{planting.layer}.whole"
    sources = planting.sources
    most = sources.shape[1]
    weight = np.stack([planting.weight[m, row] for m, row in enumerate(sources)])
    for m, group in enumerate(planting.groups):
        weight[m, len(group) :] = 0
        for channel in set(group):  # a channel that is in a group twice brings half as each
            twice = np.array([*(c == channel for c in group), *[False] * (most - len(group))])
            weight[m, twice] /= twice.sum()
    found = np.empty((references.sample.size, most), dtype=np.float32)
    work = partial(_of_sources, model, images, references, layer, sources, run)
    for pairs, values in by_image(work, references.sample, run):
        found[pairs] = values * weight[pairs // references.n]
    return found.reshape(*references.sample.shape, most)


def _of_sources(
    model: nn.Module,
    images: Images,
    references: References,
    layer: str,
    sources: NDArray[np.int64],
    run: Run,
    samples: NDArray[np.int64],
    pairs_of: list[NDArray[np.int64]],
) -> NDArray[np.float32]:
    """The activations of the sources in some images, pair by pair."""
    found, wanted = [], iter(pairs_of)
    with run.prepared(model), torch.inference_mode():
        for batch in readable(images, samples.tolist(), run=run):
            whole = activations(model, batch.images.to(run.local_device), [layer])[layer]
            for output in flatten_positions(whole).float().cpu().numpy():
                pairs = next(wanted)
                own = sources[pairs // references.n]
                if references.ranked_by == "mean":
                    found.append(output.mean(axis=1)[own])
                else:
                    found.append(output[own, references.position.ravel()[pairs][:, None]])
    return np.concatenate(found)


def dominant_source(contributions: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The source that contributed most to each reference image: an index into its group, -1 where none did.

    The chapter :doc:`How would we know? </book/bench>` builds it from scratch.

    Parameters
    ----------
    contributions
        From :func:`contributions`.
    """
    return np.where(contributions.max(axis=-1) > 0, contributions.argmax(axis=-1), -1)


def shares(contributions: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The part of the activation in each reference image that each source contributed; 0 where none did.

    Parameters
    ----------
    contributions
        From :func:`contributions`. Negative contributions count as 0.
    """
    positive = np.asarray(contributions, dtype=np.float64).clip(min=0)
    return positive / np.maximum(positive.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)


def draw(
    references: References,
    count: int,
    k: int = 2,
    *,
    how: How = "random",
    likeness: ArrayLike | None = None,
    seed: int = 0,
) -> Groups:
    """Draw channels to merge.

    Parameters
    ----------
    references
        Of the layer; dead channels are not drawn.
    count, k
        Number of groups, and of sources in each.
    how
        ``"random"``; ``"similar"`` (hard) or ``"dissimilar"`` (easy): the groups whose sources are the most or least
        alike among :data:`DRAWS` times as many; ``"overlapping"``: those that share most reference images.
    likeness
        float ``[channels, channels]``: how alike channels are, for ``"similar"`` and ``"dissimilar"``; see
        :func:`likeness_of`.
    seed
        Of the draw.

    Raises
    ------
    PlantingError
        If there are too few living channels, or likeness is missing.
    """
    alive = possible_sources(references)
    if len(alive) < k or k < 2 or count < 1:
        raise PlantingError(
            f"can't draw {count} groups of {k} from {len(alive)} living channels of {references.layer!r}"
        )
    generator = np.random.default_rng(seed)
    wanted = count if how == "random" else DRAWS * count
    drawn = [tuple(sorted(generator.choice(alive, k, replace=False).tolist())) for _ in range(50 * wanted)]
    groups = list(dict.fromkeys(drawn))[:wanted]  # each once, as far as there are as many
    if how == "random":
        return tuple(groups)
    if how == "overlapping":
        alike = overlap(references)
    elif likeness is None:
        raise PlantingError(f"how={how!r} needs likeness, a table of how alike the channels are")
    else:
        alike = np.asarray(likeness, dtype=np.float64)
    sign = 1 if how == "dissimilar" else -1
    mean = [sign * np.mean([alike[i, j] for n, i in enumerate(group) for j in group[:n]]) for group in groups]
    return tuple(groups[place] for place in np.argsort(mean, kind="stable")[:count])


def overlap(references: References) -> NDArray[np.float64]:
    """How many reference images every two channels share, as a part of n: float64 ``[channels, channels]``."""
    row, column = np.repeat(np.arange(references.channels), references.n), references.sample.ravel()
    shown = csr_array((np.ones(len(row)), (row, column)))
    return np.asarray((shown @ shown.T).toarray() / references.n)


def likeness_of(vectors: ArrayLike) -> NDArray[np.float64]:
    """Cosines of one vector for each channel: float64 ``[channels, channels]``.

    Parameters
    ----------
    vectors
        float ``[channels, d]``: the channels' own weights where the layer is a ``Conv2d`` or ``Linear``, else the mean
        circuit of each, the average relevance of the lower channels on its own references.
    """
    own = np.asarray(vectors, dtype=np.float64)
    own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(own @ own.T)
