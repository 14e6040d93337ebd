"""Splitting: how well the parts of a channel keep its concepts apart, and which threshold does it best.

:mod:`pure_nb.methods.ownership` says which sources of a channel belong to which concept, at any threshold. From that
follow a part for each concept and a residual (:mod:`pure_nb.methods.rewiring`). How strongly images activate each of
them can be measured without rewiring a network (:func:`part_activations`), and the threshold chosen by it
(:func:`choose_rho`), as Hesse et al. (2025) do for two classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from pure_nb.errors import ArgumentError, NonFiniteError, StudyWarning, require_choice
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.methods._shapes import Bool, Float, Int
from pure_nb.methods.ownership import Assignment
from pure_nb.methods.relevance import Criterion, class_attribution, relevant_channels
from pure_nb.methods.rewiring import channels_from_end, masked_copies, part_masks, split_channel, splittable
from pure_nb.methods.windows import channel_sources
from pure_nb.network.layers import INPUT, OUTPUT, activations, channel_axis, get_layer
from pure_nb.parameters import Run

if TYPE_CHECKING:
    import pandas as pd

Score = Literal["ratio", "bounded"]


@dataclass(frozen=True, eq=False)
class PartActivations:
    """How strongly a channel and its parts are activated by images, for several thresholds.

    In the units of the activation. A pooled positive part, ``x+ = sum over positions of max(x, 0)``, says how active
    something is; a signed sum over the positions how much there is of it, of either sign.

    Attributes
    ----------
    assignment
        What makes the parts.
    sample
        int64 ``[images]``: indices of the images.
    parts
        float32 ``[images, rhos, k + 1]``: ``d_1+ ... d_k+`` and ``r+``.
    original
        float32 ``[images]``: the channel as it was, ``c+``.
    relevant
        bool ``[images]``: where the channel is relevant to the image's class; everywhere if no class was named.
    signed_parts, signed_original
        As ``parts`` and ``original``, but signed sums.
    """

    assignment: Assignment
    sample: Int[NDArray[np.int64], " images"]
    parts: Float[NDArray[np.float32], "images rhos parts"]
    original: Float[NDArray[np.float32], " images"]
    relevant: Bool[NDArray[np.bool_], " images"]
    signed_parts: Float[NDArray[np.float32], "images rhos parts"]
    signed_original: Float[NDArray[np.float32], " images"]

    @property
    def rhos(self) -> Float[NDArray[np.float64], " rhos"]:
        """float64 ``[rhos]``: the thresholds of :func:`pure_nb.methods.ownership.assign_sources`."""
        return np.array(self.assignment.rhos, dtype=np.float64)

    @property
    def k(self) -> int:
        """Number of concepts."""
        return self.parts.shape[2] - 1

    def at(self, rho: float, *, signed: bool = False) -> Float[NDArray[np.float32], "images parts"]:
        """The parts at one threshold, positive or signed: float32 ``[images, k + 1]``.

        Raises
        ------
        ArgumentError
            If the threshold is not among those measured.
        """
        near = np.flatnonzero(np.isclose(self.rhos, rho))
        if not len(near):
            raise ArgumentError(f"rho={rho} was not measured; measured are {self.rhos.tolist()}")
        return (self.signed_parts if signed else self.parts)[:, near[0]]

    def only(self, chosen: Bool[NDArray[np.bool_], " images"] | Int[NDArray[np.int64], " chosen"]) -> PartActivations:
        """Those of some of the images, bool ``[images]``, or their places."""
        some: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _BY_IMAGE}
        return replace(self, **some)

    def followed_by(self, *more: PartActivations) -> PartActivations:
        """The same with other images after its own."""
        every: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in (self, *more)]) for name in _BY_IMAGE
        }
        return replace(self, **every)


_BY_IMAGE = ("sample", "parts", "original", "relevant", "signed_parts", "signed_original")


def part_activations(
    model: nn.Module,
    images: Images,
    samples: ArrayLike,
    assignment: Assignment,
    *,
    labels: ArrayLike | None = None,
    criterion: Criterion = Criterion(),
    run: Run = Run(),
) -> PartActivations:
    """Activations of a channel and of its parts at every threshold, in one pass over some images.

    No network is split for it: the network runs up to the layer's input, and the parts of all thresholds are computed
    from that as the channels of one layer. With labels it runs on to its end, and backward to the layer.

    Parameters
    ----------
    model, images
        What to run over what.
    samples
        int ``[images]``: indices of the images wanted.
    assignment
        The channel, and the sources of its parts.
    labels
        int ``[images]``: the network's output for the class of each image, to find out where the channel is relevant.
    criterion
        When it is.
    run
        How it is run.

    Raises
    ------
    LayerError, ArgumentError
        As :func:`pure_nb.methods.ownership.assign_sources` and :func:`pure_nb.methods.rewiring.split_channel`; also for
        an image that does not exist, or if the vectors do not have an entry for each source.
    ImageError
        If an image can't be read.
    NonFiniteError
        If an activation is NaN or infinite.
    """
    shown = [(assignment, np.arange(np.size(samples)))]
    return _part_activations(model, images, samples, shown, labels=labels, criterion=criterion, run=run)[0]


def _part_activations(
    model: nn.Module,
    images: Images,
    samples: ArrayLike,
    shown: Sequence[tuple[Assignment, NDArray[np.int64]]],
    *,
    labels: ArrayLike | None = None,
    criterion: Criterion = Criterion(),
    run: Run = Run(),
) -> list[PartActivations]:
    """As :func:`part_activations`, of several channels, each shown some samples by their places; each is run once."""
    samples = np.asarray(samples, dtype=np.int64)
    if samples.ndim != 1 or not len(samples):
        raise ArgumentError(f"samples must be a vector with at least one image, got the shape {list(samples.shape)}")
    images.require(samples)
    layer = shown[0][0].layer
    made = [(_parts_of(model, one), channel_sources(get_layer(model, layer), one.channel)) for one, _ in shown]
    found = [np.empty((2, len(own), parts.weight.shape[0]), np.float32) for (parts, _), (_, own) in zip(made, shown)]
    relevant = [np.ones(len(own), dtype=np.bool_) for _, own in shown]
    classes = None if labels is None else np.asarray(labels)
    entrance = INPUT + layer
    layers, leaf = ([entrance], None) if classes is None else ([entrance, layer, OUTPUT], layer)
    start = 0
    with run.prepared(model), torch.no_grad():
        for batch in readable(images, samples.tolist(), run=run):
            outputs = activations(model, batch.images.to(run.local_device), layers, leaf)
            stop = start + len(batch.samples)
            if classes is not None:
                every, own = np.arange(stop - start), classes[start:stop]
                attribution = class_attribution(outputs[layer], outputs[OUTPUT], every, own, clamp=criterion.clamp)
                many = relevant_channels(attribution, criterion.min_share, criterion.cumulative_share)
            for (assignment, places), (parts, sources), values, where in zip(shown, made, found, relevant):
                here = np.flatnonzero((places >= start) & (places < stop))
                if not len(here):
                    continue
                rows, channel = places[here] - start, assignment.channel
                values[:, here] = _pooled(parts, outputs[entrance][rows], sources)
                for sample in batch.samples[rows[~np.isfinite(values[:, here]).all(axis=(0, 2))]]:
                    raise NonFiniteError(
                        f"channel {channel} of layer {layer!r}, or a part of it, is NaN or infinite for image {sample}"
                        ". Check that image, the weights, and whether half precision overflows"
                    )
                if classes is not None:
                    where[here] = many[rows, channel]
            start = stop
    results = []
    for (assignment, places), values, where in zip(shown, found, relevant):
        parts, signed = values[..., :-1].reshape(2, len(places), len(assignment.rhos), assignment.k + 1)
        whole, signed_whole = values[..., -1].copy()
        results.append(PartActivations(assignment, samples[places], parts, whole, where, signed, signed_whole))
    return results


def _parts_of(model: nn.Module, assignment: Assignment) -> Any:
    """A layer of all parts, ``d_1 ... d_k, r`` for each threshold, and of the channel itself."""
    layer, channel = assignment.layer, assignment.channel
    module, sources = splittable(model, layer, channel), assignment.arvs.shape[-1]
    masks = [part_masks(assignment.owner(rho), assignment.k) for rho in assignment.rhos]
    if not masks or sources != module.weight.shape[1]:
        raise ArgumentError(
            f"channel {channel} of layer {layer!r} has {module.weight.shape[1]} sources, the average relevance vectors "
            f"have {sources} entries, for {len(masks)} thresholds; pass one entry a source and at least one threshold"
        )
    return masked_copies(module, channel, np.concatenate([*masks, np.ones((1, sources), dtype=np.bool_)]))


def _pooled(parts: nn.Module, entering: Tensor, sources: slice) -> NDArray[np.float32]:
    """What a layer puts out, over its positions: the sums of its positive parts, and signed: ``[2, B, outputs]``."""
    axis = channels_from_end(parts)
    entering = entering.movedim(channel_axis(entering), axis)  # [B, C, H, W] also where the layer wants them last
    signed = parts(entering.movedim(axis, 0)[sources].movedim(0, axis)).movedim(axis, 1)
    signed = signed.reshape(*signed.shape[:2], -1).float()
    return torch.stack([signed.clamp(min=0).sum(dim=2), signed.sum(dim=2)]).cpu().numpy()


def choose_rho(activations: PartActivations, labels: ArrayLike, *, score: Score = "bounded") -> pd.DataFrame:
    """How well the parts keep the concepts apart at each threshold, and which threshold does it best.

    Two scores, of which the first is the paper's. It explodes where the other parts are close to 0; the second stays
    within 0 and 1 and is ``1 / k`` if all parts are equal.

    - ratio: ``sum over concepts v of mean over v's images of d_v+ / (sum of the others' d_w+ + 1e-5)``
    - bounded: ``mean over concepts v of mean over v's images of d_v+ / sum over all w of d_w+``, 0 where all are 0

    Parameters
    ----------
    activations
        Of training images, from :func:`part_activations`.
    labels
        int ``[images]``: the concept, 0 to k - 1, that each image belongs to. Every concept needs an image.
    score
        Which of the two decides.

    Returns
    -------
    DataFrame
        One row a threshold: ``rho, ratio, bounded, retained, best``. ``best`` is True in one row: that of the highest
        score, the first among equals. So the chosen threshold is ``table.rho[table.best].item()``. ``retained``, how
        much of the whole channel a concept's own part has on average (``d_v+ / c+``), decides nothing, but says whether
        a good score is worth having: both scores compare the parts with each other, however little is left of them.

    Raises
    ------
    ArgumentError
        If the labels do not fit, or a concept has no image.
    """
    import pandas as pd  # late, see pure_nb._imports

    require_choice("score", score, Score)
    k, tiny = activations.k, np.finfo(np.float64).tiny
    label = _labels(labels, len(activations.original), k)
    for concept in range(k):
        if concept not in label:
            raise ArgumentError(
                f"concept {concept} has no image; label at least one image for each of the {k} concepts"
            )
    concepts = activations.parts[:, :, :k].astype(np.float64)
    own = np.eye(k, dtype=np.bool_)[label][:, None]
    mine, others = (np.where(mask, concepts, 0).sum(axis=2) for mask in (own, ~own))  # [images, rhos]
    whole = activations.original.astype(np.float64)[:, None]
    ratio, bounded, kept = (
        np.stack([value[label == concept].mean(axis=0) for concept in range(k)])
        for value in (mine / (others + 1e-5), mine / np.maximum(mine + others, tiny), mine / np.maximum(whole, tiny))
    )
    means = {"ratio": ratio.sum(axis=0), "bounded": bounded.mean(axis=0), "retained": kept.mean(axis=0)}
    table = pd.DataFrame({"rho": activations.rhos, **means})
    return table.assign(best=np.arange(len(table)) == table[score].to_numpy().argmax())


@dataclass(frozen=True, eq=False)
class Split:
    """A channel split between concepts: the threshold, who owns which source, and how it was measured.

    Attributes
    ----------
    concepts
        Their names: classes, or virtual neurons.
    activations
        At all thresholds, of all images of the concepts: first those of the study, then those that were passed for
        validation.
    labels
        int64 ``[images]``: the concept each image shows.
    training
        bool ``[images]``: the images that the threshold was chosen on; the others are for validation.
    scores
        Of :func:`choose_rho`.
    """

    concepts: tuple[str, ...]
    activations: PartActivations
    labels: Int[NDArray[np.int64], " images"]
    training: Bool[NDArray[np.bool_], " images"]
    scores: pd.DataFrame

    @classmethod
    def chosen(
        cls,
        activations: PartActivations,
        labels: Int[NDArray[np.int64], " images"],
        concepts: tuple[str, ...],
        score: Score = "bounded",
        training: Bool[NDArray[np.bool_], " images"] | None = None,
    ) -> Split:
        """Choose the threshold by a score of :func:`choose_rho`, by default on every second image of each concept."""
        if training is None:
            training = every_second(labels)
        scores = choose_rho(activations.only(training), labels[training], score=score)
        return cls(concepts, activations, labels, training, scores)

    @property
    def assignment(self) -> Assignment:
        """What makes the parts, at all thresholds."""
        return self.activations.assignment

    @property
    def arvs(self) -> Float[NDArray[np.float64], "k sources"]:
        """float64 ``[k, sources]``: the average relevance vectors of the concepts."""
        return self.assignment.arvs

    @property
    def rho(self) -> float:
        """The chosen threshold."""
        return float(self.scores["rho"][self.scores["best"]].item())

    @property
    def owner(self) -> Int[NDArray[np.int64], " sources"]:
        """int64 ``[sources]``: see :func:`pure_nb.methods.ownership.assign_sources`."""
        return self.assignment.owner(self.rho)

    def table(self) -> pd.DataFrame:
        """How much of the channel each part carries on the validation images where it is relevant (their table 1).

        Returns
        -------
        DataFrame
            Two tables of :func:`ratio_table` side by side. ``images, part``; ``positive, positive_error, positive_n``
            by pooled positive parts: how *active* a part is, and 0 for one that nowhere exceeds 0. ``signed,
            signed_error, signed_n`` by signed sums, as the paper: how *much* of the channel a part is, which may be
            below 0 or above 1; in each image the concepts' minus (k - 1) times the residual's make 1.

        Warns
        -----
        StudyWarning
            If a concept has no image to compute a ratio from, so that it is NaN; it says why.
        """
        import pandas as pd  # late, see pure_nb._imports

        measured, validation = self.activations, ~self.training
        chosen = validation & measured.relevant
        tables = []
        for name, signed, whole in (("positive", False, measured.original), ("signed", True, measured.signed_original)):
            parts = measured.at(self.rho, signed=signed)[chosen]
            own = ratio_table(parts, whole[chosen], self.labels[chosen], self.concepts).drop(columns="left_out")
            tables.append(own.rename(columns={"ratio": name, "error": f"{name}_error", "n": f"{name}_n"}))
        for number, concept in enumerate(self.concepts):
            mine = self.labels == number
            if not (measured.original[chosen & mine] > 0).any():
                warnings.warn(
                    f"channel {self.assignment.channel} has no ratios for {concept!r}: of "
                    f"{(validation & mine).sum()} validation images it is relevant in {(chosen & mine).sum()}, and "
                    "active in none of these",
                    StudyWarning,
                    stacklevel=2,
                )
        return pd.concat([tables[0], tables[1].drop(columns=["images", "part"])], axis=1)

    def model(self, model: nn.Module) -> nn.Module:
        """A copy of the network with the channel split; see :func:`pure_nb.methods.rewiring.split_channel`."""
        return split_channel(model, self.assignment.layer, self.assignment.channel, self.owner, len(self.concepts))


def every_second(labels: Int[NDArray[np.int64], " images"]) -> Bool[NDArray[np.bool_], " images"]:
    """Bool ``[images]``: the first, third, fifth ... image of each concept."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for concept in np.unique(labels):
        own = labels == concept
        rank[own] = np.arange(own.sum())
    return rank % 2 == 0


def ratio_table(parts: ArrayLike, original: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> pd.DataFrame:
    """How much of the channel each part carries, on the images of each concept (Hesse et al., table 1).

    A good split has a ratio near 1 for the concept's own part, and near 0 for the others and the residual.

    Parameters
    ----------
    parts
        float ``[images, k + 1]``: of validation images, from :meth:`PartActivations.at`, positive or signed.
    original
        float ``[images]``: of :class:`PartActivations`, the same. Images where it is 0 have no ratio and are left out.
    labels
        int ``[images]``: the concept, 0 to k - 1, that each image belongs to.
    names
        Of the k concepts.

    Returns
    -------
    DataFrame
        One row for the images of each concept and each part: ``images`` (name of the concept the images show), ``part``
        (name of the concept the part stands for, or ``"residual"``), ``ratio`` (mean of ``part / c``), ``error`` (its
        standard error, NaN for fewer than two images), ``n`` (images in the mean), ``left_out``.

    Raises
    ------
    ArgumentError
        If the shapes, labels or names do not fit.
    """
    import pandas as pd  # late, see pure_nb._imports

    pooled, whole = np.asarray(parts, dtype=np.float64), np.asarray(original, dtype=np.float64)
    if pooled.ndim != 2 or whole.shape != pooled.shape[:1]:
        raise ArgumentError(
            f"expected parts [images, k + 1] and original [images], got {pooled.shape} and {whole.shape}"
        )
    k = pooled.shape[1] - 1
    if len(names) != k:
        raise ArgumentError(f"{k} concepts need {k} names, got {list(names)}")
    label = _labels(labels, len(whole), k)
    rows = []
    for concept, shown in enumerate(names):
        mine = label == concept
        used = mine & (whole != 0)
        ratios = pd.DataFrame(pooled[used] / whole[used, None])
        count = {"n": int(used.sum()), "left_out": int((mine & ~used).sum())}
        for part, ratio, error in zip([*names, "residual"], ratios.mean(), ratios.sem()):
            rows.append({"images": shown, "part": part, "ratio": ratio, "error": error, **count})
    return pd.DataFrame(rows)


def _labels(labels: ArrayLike, count: int, k: int) -> NDArray[np.int64]:
    label = np.asarray(labels)
    if label.shape != (count,) or label.dtype.kind not in "iu":
        raise ArgumentError(f"expected {count} integers as labels, one an image, got {label.dtype} {list(label.shape)}")
    if count and not 0 <= label.min() <= label.max() < k:
        raise ArgumentError(
            f"labels must be concepts from 0 to {k - 1}, got {label.min()} to {label.max()}; leave out images of none"
        )
    return label.astype(np.int64)
