"""Class relevance and average relevance vectors, in one pass (Hesse et al. 2025, sections 3.1 and 3.2).

A channel is *relevant* to a class if in most of the class's images it carries a good part of what speaks for the
class. Its *average relevance vector* (ARV) for the class says through which sources, the channels below, it was driven
in these images, on average. A channel that is relevant to two classes and was driven by different sources for each
is *gamma-polysemantic*: the cosine of its two ARVs is below gamma.

The vectors need not be computed channel by channel. If the layer is a convolution or a linear layer and the sources are
its inputs, relevance is weights times activations: the mean over the images can be taken before the weights come in,
and a table of ``classes x inputs`` holds the ARVs of all channels. :class:`ClassRelevance` fills that table while the
images stream by. For any other part of a network it takes one vector-Jacobian product for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pure_nb.errors import ArgumentError, LayerError, NonFiniteError
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.network.layers import (
    FOLDED,
    INPUT,
    OUTPUT,
    activations,
    by_position,
    channel_axis,
    computes_plainly,
    get_layer,
    resting,
)

if TYPE_CHECKING:
    import pandas as pd

REPLICATES = 100
"""Bootstrap replicates that are kept beside each sum."""

MOST_BYTES = 16e9
"""What an accumulator may take; beyond it, two layers were chosen that nobody means to study so."""

Clamp = Literal["channels", "positions"]


@dataclass(frozen=True)
class Taps:
    """Which positions of its input each weight of a convolution sees.

    For a linear layer, as for a 1x1 convolution of stride 1, each weight sees all of them.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    mode: str = "constant"

    @classmethod
    def of(cls, module: nn.Module) -> Taps:
        """The taps of a ``Conv2d`` or ``Linear``.

        Raises
        ------
        LayerError
            For any other module.
        """
        if isinstance(module, nn.Linear):
            return cls()
        if not isinstance(module, nn.Conv2d):
            raise LayerError(f"expected a Conv2d or a Linear layer, got a {type(module).__name__}")
        kernel, dilation = _two(module.kernel_size), _two(module.dilation)
        if module.padding == "same":
            total = [step * (size - 1) for size, step in zip(kernel, dilation)]
            top, left = total[0] // 2, total[1] // 2
            padding = (left, total[1] - left, top, total[0] - top)
        else:
            height, width = (0, 0) if module.padding == "valid" else _two(module.padding)
            padding = (width, width, height, height)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return cls(kernel, _two(module.stride), dilation, padding, mode)

    def pooled(self, activation: Tensor) -> Tensor:
        """Sum of what each weight sees over the positions of the output: ``[B, inputs, weights of the kernel]``."""
        if activation.ndim != 4:
            return by_position(activation).sum(dim=2, keepdim=True)
        padded = functional.pad(activation, self.padding, self.mode) if any(self.padding) else activation
        reach = [step * (size - 1) for size, step in zip(self.kernel, self.dilation)]
        seen = []
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                top, left = row * self.dilation[0], column * self.dilation[1]
                bottom = padded.shape[2] - reach[0] + top
                right = padded.shape[3] - reach[1] + left
                seen.append(padded[:, :, top : bottom : self.stride[0], left : right : self.stride[1]].sum(dim=(2, 3)))
        return torch.stack(seen, dim=2)


def _two(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def dense_weight(module: nn.Module, channel: int) -> NDArray[np.float64]:
    """The weights of one channel of a ``Conv2d`` or ``Linear`` over *all* inputs: float64 ``[inputs, kernel weights]``.

    Zero for the inputs that belong to other groups.
    """
    weight = module.weight.detach().double().cpu()[channel]  # type: ignore[operator]
    if isinstance(module, nn.Linear):
        return np.asarray(weight[:, None])
    assert isinstance(module, nn.Conv2d)
    own = len(weight)
    found = np.zeros((module.in_channels, weight[0].numel()))
    first = channel // (module.out_channels // module.groups) * own
    found[first : first + own] = weight.flatten(1)
    return found


def pooled_inputs(
    model: nn.Module,
    images: Images,
    samples: Sequence[int] | NDArray[np.int64],
    layer: str,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
) -> NDArray[np.float64]:
    """What each weight of a convolution or linear layer sees of each image, summed over the output's positions.

    Times the weights of a channel (:func:`dense_weight`) and summed over the kernel, it is the channel's relevance
    vector in that image.

    Parameters
    ----------
    model, images
        What to run over what, up to the layer.
    samples
        int ``[images]``: numbers of the images wanted.
    layer
        Name of a ``Conv2d`` or ``Linear``.
    batch_size, device, workers
        As for :func:`pure_nb.compute.sweep.sweep`.

    Returns
    -------
    ndarray
        float64 ``[images, inputs, kernel weights]``.
    """
    taps, entrance = Taps.of(get_layer(model, layer)), INPUT + layer
    chosen, found = np.asarray(samples, dtype=np.int64).tolist(), []
    with resting(model, device), torch.inference_mode():
        for batch in readable(images, chosen, batch_size=batch_size, workers=workers):
            entering = activations(model, batch.images.to(device), [entrance])[entrance]
            found.append(taps.pooled(_full(entering)).double().cpu().numpy())
    return np.concatenate(found)


def carried(attribution: NDArray[np.float64], share: float = 0.03, mass: float | None = None) -> NDArray[np.bool_]:
    """Which channels an image's class stands on.

    Parameters
    ----------
    attribution
        ``[B, C]``: attribution of each channel to the true class.
    share
        A channel is relevant if it carries at least this share of the positive attribution (the paper's 0.03). That is
        61 times a uniform share of 2048 channels, but less than the uniform share of 32: it means something
        else in each width.
    mass
        If given, in place of ``share``: relevant are the strongest channels that together carry this part of the
        positive attribution, as few as will do. That carries over between widths.

    Returns
    -------
    ndarray
        bool ``[B, C]``; all False for an image without positive attribution.
    """
    positive = attribution.clip(min=0)
    total = positive.sum(axis=1, keepdims=True)
    if mass is None:
        return (positive >= share * total) & (positive > 0)
    order = np.argsort(-positive, axis=1, kind="stable")
    before = np.cumsum(np.take_along_axis(positive, order, axis=1), axis=1)
    before = np.concatenate([np.zeros_like(total), before[:, :-1]], axis=1)
    found = np.empty(positive.shape, dtype=bool)
    # Just below, since the sum of the strongest may miss the very share that it makes up by a rounding error.
    np.put_along_axis(found, order, before < mass * total * (1 - 1e-9), axis=1)
    return found & (positive > 0)


def _full(values: Tensor) -> Tensor:
    """Values in float32 at least, to be multiplied and summed."""
    return values.float() if values.dtype.itemsize < 4 else values


def attributed(
    target: Tensor,
    logits: Tensor,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    clamp: Clamp = "channels",
    retain_graph: bool = False,
) -> NDArray[np.float64]:
    """Attribution of each channel to the true class (Hesse et al. 2025, section 3.1): float64 ``[rows, C]``.

    ``attr_c = sum_uv A_c * d logit_t / d A_c``

    Parameters
    ----------
    target, logits
        A layer's output and the network's, of one batch, with the graph between them.
    rows, labels
        int64: which images of the batch, and the class of each.
    clamp
        What is set to 0 where it is negative: nothing here, since :func:`carried` does it to ``"channels"``, each
        summed over its positions; or the single ``"positions"``, before the sum, so that one which speaks against
        the class takes nothing away from another that speaks for it.
    retain_graph
        Whether the graph is needed again.
    """
    chosen = torch.zeros_like(logits)
    own = torch.from_numpy(rows).to(logits.device)
    chosen[own, torch.from_numpy(labels).to(logits.device)] = 1
    (flow,) = torch.autograd.grad(logits, target, chosen, retain_graph=retain_graph)
    each = by_position(_full(target.detach()) * _full(flow))[own].double()
    found: NDArray[np.float64] = (each.clamp(min=0) if clamp == "positions" else each).sum(dim=2).cpu().numpy()
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
    share, mass
        When a channel is relevant in an image; see :func:`carried`.
    replicates, seed
        Bootstrap replicates of each sum, for intervals. Each image gets a Poisson weight in each replicate that depends
        on its number and the seed alone, so that neither batches nor shards enter. Cheaper than keeping the
        images.

    Notes
    -----
    Memory: ``8 * classes * inputs`` bytes for the sums and ``4 * classes * inputs * replicates`` for the replicates;
    without the closed form ``channels`` times as much.
    """

    def __init__(
        self,
        layer: str,
        lower: str,
        labels: NDArray[np.int64],
        classes: int,
        *,
        module: nn.Module | None = None,
        share: float = 0.03,
        mass: float | None = None,
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
        if not 0 <= share <= 1:
            raise ArgumentError(f"share must be from 0 to 1, got {share}")
        if mass is not None and not 0 < mass <= 1:
            raise ArgumentError(f"mass must be above 0 and at most 1, or None, got {mass}")
        self.layer, self.lower, self.labels, self.classes = layer, lower, labels, classes
        self.share, self.mass, self.replicates, self.seed = share, mass, replicates, seed
        self.taps = Taps.of(module) if module is not None else None
        self.layers = (lower, layer, OUTPUT)
        self.leaf: str | None = layer if self.taps else lower
        self._sums: dict[str, NDArray[Any]] = {}

    def update(self, samples: NDArray[np.int64], outputs: Mapping[str, Tensor]) -> None:
        """Take in a batch.

        Parameters
        ----------
        samples
            ``[B]``: numbers of the images.
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
        attribution = attributed(target, logits, known, labels, retain_graph=self.taps is None)
        if not np.isfinite(attribution).all():
            image, channel = np.argwhere(~np.isfinite(attribution))[0]
            raise self._not_finite(f"the attribution of channel {channel} to the class", samples[known[image]])
        pooled = self._pooled(outputs[self.lower], target)[rows].double().cpu().numpy().reshape(len(known), -1)
        if not np.isfinite(pooled).all():
            image = np.argwhere(~np.isfinite(pooled))[0, 0]
            raise self._not_finite(f"what {self.lower!r} brings to it", samples[known[image]])
        positive = attribution.clip(min=0)
        share = positive / np.maximum(positive.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        self._add(labels, samples[known], carried(attribution, self.share, self.mass), share, pooled)

    def _not_finite(self, what: str, image: int) -> NonFiniteError:
        return NonFiniteError(
            f"layer {self.layer!r}: {what} is NaN or infinite, in image {image}. Check that image, the weights, and "
            "whether half precision overflows"
        )

    def _pooled(self, lower: Tensor, target: Tensor) -> Tensor:
        """What is summed over a class's images: inputs by kernel weight, or relevance by channel and source."""
        if self.taps is not None:
            return self.taps.pooled(_full(lower.detach()))
        vectors = []
        channels = target.shape[channel_axis(target)]
        for channel in range(channels):
            start = torch.zeros_like(target)
            start.movedim(channel_axis(target), 1)[:, channel] = 1
            (flow,) = torch.autograd.grad(target, lower, start, retain_graph=channel < channels - 1)
            vectors.append(by_position(_full(lower.detach()) * _full(flow)).sum(dim=2))
        return torch.stack(vectors, dim=1)

    def _add(
        self,
        labels: NDArray[np.int64],
        samples: NDArray[np.int64],
        relevant: NDArray[np.bool_],
        share: NDArray[np.float64],
        pooled: NDArray[np.float64],
    ) -> None:
        if not self._sums:
            self._sums = self._zeros(relevant.shape[1], pooled.shape[1])
        sums = self._sums
        for label, sample, *values in zip(labels, samples, relevant, share, pooled):
            weights = np.random.default_rng([self.seed, int(sample)]).poisson(1, self.replicates).astype(np.float32)
            sums["images"][label] += 1
            for name, value in zip(("relevant", "share", "pooled"), values):
                sums[name][label] += value
            sums["weights"][label] += weights
            sums["replicas"][label] += weights[:, None] * values[2].astype(np.float32)

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
            "weights": np.zeros((self.classes, self.replicates), np.float32),
            "replicas": np.zeros((self.classes, self.replicates, width), np.float32),
        }

    def merge(self, other: ClassRelevance) -> None:
        """Take in what another accumulator of the same settings has taken in."""
        if not other._sums:
            return
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
        return ClassStatistics(self.layer, self.lower, closed=self.taps is not None, **self._sums)


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
    weights, replicas
        float32 ``[classes, replicates]`` and ``[classes, replicates, K]``: bootstrap replicates of ``images`` and
        ``pooled``.
    """

    layer: str
    lower: str
    closed: bool
    images: NDArray[np.int64]
    relevant: NDArray[np.int64]
    share: NDArray[np.float64]
    pooled: NDArray[np.float64]
    weights: NDArray[np.float32]
    replicas: NDArray[np.float32]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.relevant.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that all of it takes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    @property
    def frequency(self) -> NDArray[np.float64]:
        """float64 ``[classes, channels]``: part of a class's images where the channel is relevant; NaN without any."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.relevant / np.where(self.images, self.images, np.nan)[:, None]

    def relevant_classes(self, channel: int, p: float = 0.75) -> NDArray[np.int64]:
        """The classes a channel is relevant to: in at least a part ``p`` of their images (the paper's 0.75)."""
        return np.flatnonzero(self.frequency[:, channel] >= p)

    def strongest_classes(self, channel: int, p: float = 0.75) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """:meth:`relevant_classes`, those in whose images the channel carries most first, and its mean share there."""
        relevant = self.relevant_classes(channel, p)
        share = self.share[relevant, channel] / self.images[relevant]
        order = np.argsort(-share, kind="stable")
        return relevant[order], share[order]

    def arv(self, model: nn.Module, channel: int, classes: Sequence[int] | NDArray[np.int64] | None = None) -> Any:
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

    def arv_replicas(self, model: nn.Module, channel: int, classes: Sequence[int] | NDArray[np.int64]) -> Any:
        """Bootstrap replicates of :meth:`arv`: float64 ``[classes, replicates, sources]``."""
        chosen = np.asarray(classes, dtype=np.int64)
        weights = self.weights[chosen]
        count = np.where(weights, weights, np.nan)
        return self._vectors(model, channel, self.replicas[chosen]) / count[..., None]

    def _vectors(self, model: nn.Module, channel: int, sums: NDArray[Any]) -> NDArray[np.float64]:
        if not 0 <= channel < self.channels:
            raise ArgumentError(f"channel {channel}: layer {self.layer!r} has channels 0 to {self.channels - 1}")
        if not self.closed:
            return sums.reshape(*sums.shape[:-1], self.channels, -1)[..., channel, :].astype(np.float64)
        weight = dense_weight(get_layer(model, self.layer), channel)
        return np.einsum("...ik,ik->...i", sums.reshape(*sums.shape[:-1], *weight.shape), weight)


def closed_form(model: nn.Module, layer: str, lower: str) -> nn.Module | None:
    """The layer's module if its ARVs are in closed form: a convolution or linear layer, and its own input below.

    Others may compute something else with their weights, so they are left to vector-Jacobian products.
    """
    module = get_layer(model, layer)
    whole = FOLDED not in layer  # what each weight sees in a window can't be told from the tokens of all
    return module if whole and lower == INPUT + layer and computes_plainly(module) else None


def cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> Any:
    """Cosine of vectors over the last axis; NaN where one is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
        return (first * second).sum(axis=-1) / np.where(norm > 0, norm, np.nan)


def class_pairs(
    statistics: ClassStatistics, model: nn.Module, names: Sequence[str], *, p: float = 0.75, level: float = 0.95
) -> pd.DataFrame:
    """Every channel that is relevant to two classes, with the cosine of its two ARVs.

    Parameters
    ----------
    statistics, model
        What :class:`ClassRelevance` found, and the network.
    names
        Of the classes.
    p
        A channel is relevant to a class if it is so in at least this part of the class's images.
    level
        Of the bootstrap interval.

    Returns
    -------
    DataFrame
        A row for each channel and pair of classes, the most dissimilar first: ``channel``, ``class_1``, ``class_2``,
        ``cosine`` with its interval ``low`` to ``high``, and ``share_1``, ``share_2``, the mean shares of the positive
        attribution that the channel carries. Negative cosines are the strongest cases and stay. The cosine is NaN where
        an ARV is zero, and the interval where a class has fewer than two images; these come last.
    """
    import pandas as pd  # late, see pure_nb._imports

    rows: list[dict[str, Any]] = []
    for channel in range(statistics.channels):
        classes = statistics.relevant_classes(channel, p)
        if len(classes) < 2:
            continue
        vectors = statistics.arv(model, channel, classes)
        replicas = statistics.arv_replicas(model, channel, classes)
        share = statistics.share[classes, channel] / statistics.images[classes]
        for i, j in combinations(range(len(classes)), 2):
            spread = cosine(replicas[i], replicas[j])
            enough = statistics.images[classes[[i, j]]].min() > 1 and np.isfinite(spread).any()
            low, high = np.nanquantile(spread, [(1 - level) / 2, (1 + level) / 2]) if enough else (np.nan, np.nan)
            rows.append(
                {
                    "channel": channel,
                    "class_1": names[classes[i]],
                    "class_2": names[classes[j]],
                    "cosine": float(cosine(vectors[i], vectors[j])),
                    "low": low,
                    "high": high,
                    "share_1": share[i],
                    "share_2": share[j],
                }
            )
    columns = ["channel", "class_1", "class_2", "cosine", "low", "high", "share_1", "share_2"]
    return pd.DataFrame(rows, columns=columns).sort_values("cosine", kind="stable", ignore_index=True)


def gamma_polysemantic(pairs: pd.DataFrame, gamma: float = 0.5) -> pd.DataFrame:
    """The pairs for which a channel is gamma-polysemantic (Hesse et al. 2025, definition 3.1): cosine below gamma."""
    return pairs[pairs["cosine"] < gamma].reset_index(drop=True)
