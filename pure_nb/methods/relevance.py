"""Class relevance and average relevance vectors, in one pass (Hesse et al. 2025, sections 3.1 and 3.2).

A channel is *relevant* to a class if in most of the class's images it carries a good part of what speaks for the
class. Its *average relevance vector* (ARV) for the class says through which sources, the channels below, it was
reached in these images, on average. A channel that is relevant to two classes and was reached through different sources
for each is *gamma-polysemantic*: the cosine of its two ARVs is below gamma.

The vectors need not be computed channel by channel. If the layer is a convolution or a linear layer and the sources are
its inputs, relevance is weights times activations: the mean over the images can be taken before the weights come in,
and a table of ``classes x inputs`` holds the ARVs of all channels. :class:`ClassRelevance` fills that table while the
images stream by. For any other part of a network it takes one vector-Jacobian product for each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.errors import ArgumentError, LayerError, NonFiniteError, require_choice
from pure_nb.methods._shapes import Bool, Float, Int
from pure_nb.methods.windows import KernelWindows, dense_weight, in_single
from pure_nb.network.layers import INPUT, OUTPUT, channel_axis, flatten_positions, get_layer

REPLICATES = 100
"""Bootstrap replicates that are kept beside each sum."""

MOST_BYTES = 16e9
"""What an accumulator may take; beyond it, two layers were chosen that nobody means to study so."""

Clamp = Literal["channels", "positions"]


@dataclass(frozen=True)
class Criterion:
    """When a channel is relevant in an image to its class.

    Attributes
    ----------
    min_share, cumulative_share
        How much of the positive attribution it must carry; see :func:`relevant_channels`.
    clamp
        What of the attribution is set to 0 where it is negative: the sums of whole ``"channels"``, or each of the
        ``"positions"``, as for the paper's table; see :func:`class_attribution`.
    """

    min_share: float = 0.03
    cumulative_share: float | None = None
    clamp: Clamp = "channels"

    def __post_init__(self) -> None:
        if not 0 <= self.min_share <= 1:
            raise ArgumentError(f"min_share must be from 0 to 1, got {self.min_share}")
        if self.cumulative_share is not None and not 0 < self.cumulative_share <= 1:
            raise ArgumentError(f"cumulative_share must be above 0 and at most 1, or None, got {self.cumulative_share}")
        require_choice("clamp", self.clamp, Clamp)


def relevant_channels(
    attribution: Float[NDArray[np.float64], "b channels"],
    min_share: float = 0.03,
    cumulative_share: float | None = None,
) -> Bool[NDArray[np.bool_], "b channels"]:
    """The channels that are relevant to an image's class.

    Parameters
    ----------
    attribution
        ``[B, C]``: attribution of each channel to the true class.
    min_share
        A channel is relevant if it carries at least this share of the positive attribution (the paper's 0.03). That is
        61 times a uniform share of 2048 channels, but less than the uniform share of 32: it means something
        else in each width.
    cumulative_share
        If given, in place of ``min_share``: relevant are the strongest channels that together carry this part of the
        positive attribution, as few as will do. That carries over between widths.

    Returns
    -------
    ndarray
        bool ``[B, C]``; all False for an image without positive attribution.
    """
    positive = attribution.clip(min=0)
    total = positive.sum(axis=1, keepdims=True)
    if cumulative_share is None:
        return (positive >= min_share * total) & (positive > 0)
    order = np.argsort(-positive, axis=1, kind="stable")
    before = np.cumsum(np.take_along_axis(positive, order, axis=1), axis=1)
    before = np.concatenate([np.zeros_like(total), before[:, :-1]], axis=1)
    found = np.empty(positive.shape, dtype=bool)
    # Just below, since the sum of the strongest may miss the very share that it makes up by a rounding error.
    np.put_along_axis(found, order, before < cumulative_share * total * (1 - 1e-9), axis=1)
    return found & (positive > 0)


def class_attribution(
    target: Float[Tensor, "b ..."],
    logits: Float[Tensor, "b classes"],
    rows: Int[NDArray[np.int64], " rows"],
    labels: Int[NDArray[np.int64], " rows"],
    *,
    clamp: Clamp = "channels",
    retain_graph: bool = False,
) -> Float[NDArray[np.float64], "rows channels"]:
    """Attribution of each channel to the true class (Hesse et al. 2025, section 3.1): float64 ``[rows, C]``.

    ``attr_c = sum_uv A_c * d logit_t / d A_c``

    Parameters
    ----------
    target, logits
        A layer's output and the network's, of one batch, with the graph between them.
    rows, labels
        int64: which images of the batch, and the class of each.
    clamp
        What is set to 0 where it is negative: nothing here, since :func:`relevant_channels` does it to ``"channels"``,
        each summed over its positions; or the single ``"positions"``, before the sum, so that one which speaks against
        the class takes nothing away from another that speaks for it.
    retain_graph
        Whether the graph is needed again.

    Raises
    ------
    LayerError
        If the logits do not depend on the layer.
    """
    chosen = torch.zeros_like(logits)
    own = torch.from_numpy(rows).to(logits.device)
    chosen[own, torch.from_numpy(labels).to(logits.device)] = 1
    flows: Any = torch.autograd.grad(logits, target, chosen, retain_graph=retain_graph, allow_unused=True)
    if flows[0] is None:
        raise LayerError(
            "no class can be traced to this layer, on which the network's output does not depend; choose another, or "
            "give a dictionary a decode, through which the network goes on"
        )
    each = flatten_positions(in_single(target.detach()) * in_single(flows[0]))[own].cpu().double()
    found: NDArray[np.float64] = (each.clamp(min=0) if clamp == "positions" else each).sum(dim=2).numpy()
    return found


class ClassRelevance:
    """Accumulator of how relevant each channel of a layer is to each class, and of all average relevance vectors.

    The chapter :doc:`Average relevance vectors </book/arv>` builds it from scratch.

    Parameters
    ----------
    layer, lower
        The layer L whose channels are studied, and the sources below it. With ``lower = "input:" + layer`` and a
        convolution or linear layer the vectors are in closed form; otherwise they take one vector-Jacobian product for
        each channel and batch.
    labels
        int64 ``[images]``: the true class of each image, an index into the network's outputs; -1 for images to leave
        out.
    classes
        Number of classes.
    module
        The layer's module, for the closed form; None for the other way.
    criterion
        When a channel is relevant in an image.
    replicates, seed
        Bootstrap replicates of each sum, for intervals. Each image gets a Poisson weight in each replicate that depends
        on its index and the seed alone, so that neither batches nor shards enter. Cheaper than keeping the images.

    Notes
    -----
    Memory: ``8 * classes * inputs`` bytes for the sums and ``4 * classes * inputs * replicates`` for the replicates;
    without the closed form ``channels`` times as much.
    """

    def __init__(
        self,
        layer: str,
        lower: str,
        labels: Int[NDArray[np.int64], " images"],
        classes: int,
        *,
        module: nn.Module | None = None,
        criterion: Criterion = Criterion(),
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> None:
        labels = np.asarray(labels, dtype=np.int64)
        if labels.ndim != 1:
            raise ArgumentError(
                f"labels must be a vector with a number for each image, got the shape {list(labels.shape)}"
            )
        if len(labels) and labels.max() >= classes:
            raise ArgumentError(f"labels must be numbers below {classes}, the number of classes, got {labels.max()}")
        self.layer, self.lower, self.labels, self.classes = layer, lower, labels, classes
        self.criterion, self.replicates, self.seed = criterion, replicates, seed
        self.windows = KernelWindows.from_module(module) if module is not None else None
        self.layers = (lower, layer, OUTPUT)
        self.leaf: str | None = layer if self.windows else lower
        self._sums: dict[str, NDArray[Any]] = {}

    def update(self, samples: Int[NDArray[np.int64], " b"], outputs: Mapping[str, Tensor]) -> None:
        """Take in a batch.

        Parameters
        ----------
        samples
            ``[B]``: indices of the images.
        outputs
            Of the layers in :attr:`layers`, with the graph from :attr:`leaf` to the network's output.

        Raises
        ------
        NonFiniteError
            If an attribution is NaN or infinite.
        LayerError
            If the network's output is not ``[B, classes]``, or the sums would not fit into memory.
        """
        target, logits = outputs[self.layer], outputs[OUTPUT]
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            raise LayerError(
                f"class relevance needs a network that puts out [images, {self.classes}], one number a class; this one "
                f"puts out {list(logits.shape)}"
            )
        labels = self.labels[samples]
        known = np.flatnonzero(labels >= 0)
        if not len(known):
            return
        labels = labels[known]
        rows = torch.from_numpy(known).to(logits.device)
        limit, own = self.criterion, samples[known]
        attribution = class_attribution(
            target, logits, known, labels, clamp=limit.clamp, retain_graph=self.windows is None
        )
        self._require_finite(attribution, own, lambda channel: f"the attribution of channel {channel} to the class")
        pooled = self._pooled(outputs[self.lower], target)[rows].cpu().double().numpy().reshape(len(known), -1)
        self._require_finite(pooled, own, lambda _: f"what {self.lower!r} brings to it")
        positive = attribution.clip(min=0)
        share = positive / np.maximum(positive.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        relevant = relevant_channels(attribution, limit.min_share, limit.cumulative_share)
        self._add(labels, own, {"relevant": relevant, "share": share, "pooled": pooled})

    def _require_finite(
        self, values: NDArray[np.float64], samples: NDArray[np.int64], name: Callable[[int], str]
    ) -> None:
        for row, column in np.argwhere(~np.isfinite(values)):
            raise NonFiniteError(
                f"layer {self.layer!r}: {name(column)} is NaN or infinite, in image {samples[row]}. Check that image, "
                "the weights, and whether half precision overflows"
            )

    def _pooled(self, lower: Tensor, target: Tensor) -> Tensor:
        """What is summed over a class's images: inputs by kernel weight, or relevance by channel and source."""
        if self.windows is not None:
            return self.windows.pooled(in_single(lower.detach()))
        vectors = []
        channels = target.shape[channel_axis(target)]
        for channel in range(channels):
            start = torch.zeros_like(target)
            start.movedim(channel_axis(target), 1)[:, channel] = 1
            (flow,) = torch.autograd.grad(target, lower, start, retain_graph=channel < channels - 1)
            vectors.append(flatten_positions(in_single(lower.detach()) * in_single(flow)).sum(dim=2))
        return torch.stack(vectors, dim=1)

    def _add(self, labels: NDArray[np.int64], samples: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        if not self._sums:
            self._sums = self._zeros(values["relevant"].shape[1], values["pooled"].shape[1])
        draws = [np.random.default_rng([self.seed, int(sample)]).poisson(1, self.replicates) for sample in samples]
        order, sums = np.argsort(labels, kind="stable"), self._sums
        weights, single = np.array(draws, dtype=np.float32)[order], values["pooled"][order].astype(np.float32)
        sorted_values = {name: value[order] for name, value in values.items()}
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1)).tolist()
        for start, end in zip(starts, [*starts[1:], len(order)]):
            label, several = labels[order[start]], end > start + 1
            sums["images"][label] += end - start
            for name, value in sorted_values.items():  # row after row, from what was there on
                rows = np.concatenate([sums[name][[label]], value[start:end]]) if several else value[start]
                sums[name][label] = rows.sum(axis=0) if several else sums[name][label] + rows
            sums["bootstrap_counts"][label] += weights[start:end].sum(axis=0)
            product = np.matmul if several else np.multiply  # which is the faster for one
            sums["bootstrap_sums"][label] += product(weights[start:end].T, single[start:end])

    def _zeros(self, channels: int, width: int) -> dict[str, NDArray[Any]]:
        """Empty tables; ``width`` numbers are summed for each class."""
        need = self.classes * (16 * channels + 8 * width + 4 * self.replicates * (width + 1))
        if need > MOST_BYTES:
            raise LayerError(
                f"the sums for {self.classes} classes of layer {self.layer!r} through {self.lower!r} would take "
                f"{need / 1e9:.0f} GB. With lower='{INPUT}{self.layer}' and a Conv2d or Linear they are in closed form "
                "and far smaller; otherwise choose layers with fewer channels"
            )
        return {
            "images": np.zeros(self.classes, np.int64),
            "relevant": np.zeros((self.classes, channels), np.int64),
            "share": np.zeros((self.classes, channels)),
            "pooled": np.zeros((self.classes, width)),
            "bootstrap_counts": np.zeros((self.classes, self.replicates), np.float32),
            "bootstrap_sums": np.zeros((self.classes, self.replicates, width), np.float32),
        }

    def merge(self, other: ClassRelevance) -> None:
        """Take in what another accumulator of the same settings has taken in."""
        if not self._sums:
            self._sums = {name: value.copy() for name, value in other._sums.items()}
            return
        for name, value in other._sums.items():
            if self._sums[name].shape != value.shape:
                raise ArgumentError(
                    f"can't merge class relevance: {name} is {self._sums[name].shape} and {value.shape}"
                )
            self._sums[name] += value

    def state(self) -> dict[str, NDArray[Any]]:
        """All that was taken in, as arrays; see :meth:`restored`. Of the classes, only those that were seen."""
        if not self._sums:
            return {}
        seen = np.flatnonzero(self._sums["images"])
        return {"seen": seen} | {name: value[seen] for name, value in self._sums.items()}

    def restored(self, state: Mapping[str, NDArray[Any]]) -> ClassRelevance:
        """A new accumulator of the same settings, holding a saved state; empty if the state is."""
        other = object.__new__(ClassRelevance)
        other.__dict__.update(self.__dict__)
        other._sums = {}
        if state:
            other._sums = other._zeros(state["relevant"].shape[1], state["pooled"].shape[1])
            for name, value in other._sums.items():
                value[state["seen"]] = state[name]
        return other

    def result(self) -> ClassStatistics:
        """What is known so far.

        Raises
        ------
        ArgumentError
            If no labelled image was seen.
        """
        if not self._sums:
            raise ArgumentError(
                f"no labelled image was seen, so nothing is known of the classes at layer {self.layer!r}"
            )
        return ClassStatistics(self.layer, self.lower, closed=self.windows is not None, **self._sums)


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """How relevant each channel of a layer is to each class, and what its ARVs are made of.

    Attributes
    ----------
    layer, lower
        Names of the layers.
    closed
        Whether ARVs are the layer's weights times ``pooled``, or are in ``pooled`` as they are.
    images
        int64 ``[classes]``: images seen of each class.
    relevant
        int64 ``[classes, channels]``: in how many of them the channel is relevant.
    share
        float64 ``[classes, channels]``: sum over the images of the channel's share of the positive attribution.
    pooled
        float64 ``[classes, K]``: sums over the images.
    bootstrap_counts, bootstrap_sums
        float32 ``[classes, replicates]`` and ``[classes, replicates, K]``: bootstrap replicates of ``images`` and
        ``pooled``.
    """

    layer: str
    lower: str
    closed: bool
    images: Int[NDArray[np.int64], " classes"]
    relevant: Int[NDArray[np.int64], "classes channels"]
    share: Float[NDArray[np.float64], "classes channels"]
    pooled: Float[NDArray[np.float64], "classes width"]
    bootstrap_counts: Float[NDArray[np.float32], "classes replicates"]
    bootstrap_sums: Float[NDArray[np.float32], "classes replicates width"]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.relevant.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that all of it takes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    @property
    def frequency(self) -> Float[NDArray[np.float64], "classes channels"]:
        """float64 ``[classes, channels]``: part of a class's images where the channel is relevant; NaN without any."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.relevant / np.where(self.images, self.images, np.nan)[:, None]

    def relevant_classes(self, channel: int, min_frequency: float = 0.75) -> Int[NDArray[np.int64], " relevant"]:
        """The classes a channel is relevant to: in at least ``min_frequency`` of their images (0.75 in the paper)."""
        return np.flatnonzero(self.frequency[:, channel] >= min_frequency)

    def strongest_classes(
        self, channel: int, min_frequency: float = 0.75
    ) -> tuple[Int[NDArray[np.int64], " relevant"], Float[NDArray[np.float64], " relevant"]]:
        """:meth:`relevant_classes`, those in whose images the channel carries most first, and its mean share there."""
        relevant = self.relevant_classes(channel, min_frequency)
        share = self.share[relevant, channel] / self.images[relevant]
        order = np.argsort(-share, kind="stable")
        return relevant[order], share[order]

    def arv(
        self, model: nn.Module, channel: int, classes: Sequence[int] | Int[NDArray[np.int64], " classes"] | None = None
    ) -> Float[NDArray[Any], "classes sources"]:
        """Average relevance vectors of a channel.

        ``ARV(c, t)_i = mean over images of t of sum_uv a_i * d(sum_u'v' A_c)/da_i`` (Hesse et al. 2025, section 3.1).

        Parameters
        ----------
        model
            The network, for the weights of the layer.
        channel
            Of the layer.
        classes
            Which classes; all by default.

        Returns
        -------
        ndarray
            float64 ``[classes, sources]``; NaN for a class without images.
        """
        chosen = np.arange(len(self.images)) if classes is None else np.asarray(classes, dtype=np.int64)
        count = np.where(self.images[chosen], self.images[chosen], np.nan)
        return self._vectors(model, channel, self.pooled[chosen]) / count[:, None]

    def bootstrap_arvs(
        self, model: nn.Module, channel: int, classes: Sequence[int] | Int[NDArray[np.int64], " classes"]
    ) -> Float[NDArray[Any], "classes replicates sources"]:
        """Bootstrap replicates of :meth:`arv`: float64 ``[classes, replicates, sources]``."""
        chosen = np.asarray(classes, dtype=np.int64)
        weights = self.bootstrap_counts[chosen]
        count = np.where(weights, weights, np.nan)
        return self._vectors(model, channel, self.bootstrap_sums[chosen]) / count[..., None]

    def _vectors(self, model: nn.Module, channel: int, sums: NDArray[Any]) -> NDArray[np.float64]:
        if not 0 <= channel < self.channels:
            raise ArgumentError(f"channel {channel}: layer {self.layer!r} has channels 0 to {self.channels - 1}")
        if not self.closed:
            return sums.reshape(*sums.shape[:-1], self.channels, -1)[..., channel, :].astype(np.float64)
        weight = dense_weight(get_layer(model, self.layer), channel)
        return np.einsum("...ik,ik->...i", sums.reshape(*sums.shape[:-1], *weight.shape), weight)
