"""Tasks whose right answer is known: a study, and for each reference image what it is that the neuron answers to.

Two kinds. Where objects are known it is the one under the maximum (:func:`objects_task`): natural neurons, but a truth
of their inputs, not of their insides. In any network channels can be merged (:func:`planted_task`), and it is the
dominant source: a truth of the insides, but of neurons that were made. A method that is right should do well in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pure_nb._resting import frozen_eval
from pure_nb.benchmark.planting import (
    Groups,
    How,
    Planting,
    contributions,
    dominant_source,
    draw,
    likeness_of,
    plant,
    possible_sources,
    shares,
)
from pure_nb.errors import LayerError, PlantingError, StudyError, StudyWarning
from pure_nb.judges.truth import COMMON, activation_vectors
from pure_nb.methods.descriptions import Description, descriptions
from pure_nb.methods.windows import closed_form, dense_weight
from pure_nb.network.coverage import LINEAR
from pure_nb.network.cut import initial_relevance
from pure_nb.network.layers import INPUT, activations, flatten_positions, nearest_below
from pure_nb.network.targets import Target
from pure_nb.parameters import NEAREST
from pure_nb.study import Study

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder

PRODUCTS = frozenset((
    "__matmul__", "addmm", "baddbmm", "bilinear", "bmm", "einsum", "matmul", "mm", "multi_head_attention_forward",
    "scaled_dot_product_attention", "tensordot",
))  # fmt: skip
"""Functions that mix channels, besides those of :data:`pure_nb.network.coverage.LINEAR`."""

RECTIFIERS = frozenset((
    "celu", "clamp", "elu", "elu_", "gelu", "hardswish", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "mish",
    "prelu", "relu", "relu6", "relu_", "selu", "silu", "softplus", "threshold",
))  # fmt: skip
"""Functions of each number alone, that let large ones through."""

DOMINANT = 2 / 3
"""A source is clearly dominant in a reference image if it contributed at least this part of the activation."""


@dataclass(frozen=True, eq=False)
class Task:
    """A study whose right answer is known.

    Attributes
    ----------
    name
        What it is, in words.
    study
        The study whose neurons are to be split into parts.
    truth
        int64 ``[channels, n]``: the dominant source of each reference image, or the object under its maximum; -1 where
        there is none.
    share
        float64 ``[channels, n]``: the part of the activation that the dominant source contributed; 1 where it is not
        known.
    base
        The study of the network as it was before anything was planted.
    planting
        What was planted; None if nothing.
    contributions
        float32 ``[channels, n, most sources]``: see :func:`pure_nb.benchmark.planting.contributions`.
    """

    name: str
    study: Study
    truth: NDArray[np.int64]
    share: NDArray[np.float64]
    base: Study
    planting: Planting | None = None
    contributions: NDArray[np.float32] | None = None

    @cached_property
    def k(self) -> NDArray[np.int64]:
        """How many things a neuron means: those of at least a twentieth of its references each; int64 ``[channels]``.

        A merged channel with one dominant source in all of its references means one thing, whatever was planted.
        """
        least = COMMON * self.truth.shape[1]
        counts = [np.unique(own[own >= 0], return_counts=True)[1] for own in self.truth]
        return np.array([max(1, int((count >= least).sum())) for count in counts])

    @cached_property
    def dominant(self) -> NDArray[np.bool_]:
        """Which references have a clearly dominant source, see :data:`DOMINANT`: bool ``[channels, n]``."""
        return self.share >= DOMINANT

    def inside(self, layer: str) -> str:
        """What a layer of the network as it was is called in the network that is studied."""
        return self.planting.renamed(layer) if self.planting else layer

    @cached_property
    def nearest(self) -> str:
        """The layer right below the target as it was.

        The study's own lower layer, if that is the same under another name, or if the target mixes no channels.
        """
        base, lower = self.base, self.base.parameters.lower
        try:
            nearest = nearest_below(base.model, base.parameters.target)
        except LayerError:
            return lower
        if nearest == lower:
            return lower
        with base.run.prepared(base.model), torch.inference_mode():
            found = activations(base.model, base.images.example[None].to(base.run.local_device), [lower, nearest])
        return lower if torch.equal(found[lower], found[nearest]) else nearest

    def replace(self, **changes: Any) -> Study:
        """The study with other parameters; layers are named as in the network as it was."""
        if "lower" in changes:
            changes["lower"] = self.inside(self.nearest if changes["lower"] == NEAREST else changes["lower"])
        return self.study.replace(**changes)

    def descriptions(self, embedders: Sequence[Embedder] = ()) -> dict[str, Description]:
        """All that describes the reference images, without telling the answer; circuits start as the paper's do."""
        how: dict[str, Any] = {"circuits": partial(self.circuits, start="activation")}
        return descriptions(self.study, embedders, activations=lambda: self.activations, **how)

    def circuits(self, **changes: Any) -> NDArray[np.float32]:
        """Circuits by some recipe, without telling the answer: see :meth:`replace` and :meth:`hidden`."""
        study = self.replace(**changes)
        return self.hidden(study.circuits, study.parameters.lower)

    def hidden(self, vectors: NDArray[np.float32], lower: str) -> NDArray[np.float32]:
        """Circuits in which the sources are not told apart by channels of their own, ``[channels, n, lower channels]``.

        A residual block adds to its input. So right below it each source of a merged channel still has a channel of its
        own, whose relevance *is* the answer; a natural neuron has one such channel and not two. Such channels, which
        the network itself tells (:func:`straight`), are added up into one. A source may lack one, as the channels do
        that are new in a stage with padded shortcuts. Then that of the other would tell the two apart, and natural
        neurons of that kind have none: they are set to 0.

        Parameters
        ----------
        vectors
            Circuits of this task's study, ``[channels, n, lower channels]``.
        lower
            The lower layer, as the network that is studied calls it.
        """
        if self.planting is None:
            return vectors
        found, straight = vectors.copy(), self._straight(lower)
        for channel, group in enumerate(self.planting.groups):
            sources = sorted(set(group))
            if len(sources) == 1:
                continue
            own = np.flatnonzero(straight[sources].any(axis=0))
            if straight[sources].any(axis=1).all():
                found[channel][:, own[0]] = vectors[channel][:, own].sum(axis=1)
                own = own[1:]
            found[channel][:, own] = 0
        return found

    def _straight(self, lower: str) -> NDArray[np.bool_]:
        """:func:`straight` for the sources: bool ``[channels, lower channels]``, False for what is no source."""
        assert self.planting is not None
        if lower in self._known:
            return self._known[lower]
        base, whole, name = self.base, f"{self.planting.layer}.whole", lower
        if Target.parse(lower) == Target(self.planting.target, INPUT):  # both read the same
            lower = str(Target(whole, INPUT))
        sources = np.unique(np.concatenate(self.planting.groups))
        example = base.images.example[None].to(base.run.local_device)
        rows = straight(self.study.model, example, sources, target=whole, lower=lower)
        self._known[name] = np.zeros((base.references.channels, rows.shape[1]), dtype=np.bool_)
        self._known[name][sources] = rows
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, NDArray[np.bool_]]:
        """What :meth:`_straight` has found, by the lower layer."""
        return {}

    @cached_property
    def activations(self) -> dict[str, NDArray[np.float32]]:
        """Descriptions of the references by activations; see :func:`pure_nb.judges.truth.activation_vectors`.

        Of a planted layer, its channels as they were, but for the sources of the neuron in question: in their place
        stands the merged channel. So nobody is told what is asked for.
        """
        if self.planting is None:
            return self.study.activation_vectors
        study, planting = self.study, self.planting
        found = activation_vectors(
            study.model,
            study.images,
            study.references,
            study.parameters.lower,
            layer=f"{planting.layer}.whole",
            run=study.run,
        )
        for name in ("lower activation", "lower activation at maximum"):
            found[name] = self.hidden(found[name], study.parameters.lower)
        for name in ("activation", "activation at maximum"):
            for channel, group in enumerate(planting.groups):
                own, sources = found[name][channel], sorted(set(group))
                weight = planting.weight[channel]
                merged = own @ weight.astype(np.float32) / weight[sources].mean()  # about as strong as a source
                own[:, sources] = 0
                own[:, sources[0]] = merged
        return found


class _Unmixed(TorchFunctionMode):
    """Lets gradients through all but what mixes channels: convolutions but depthwise ones, and products of matrices.

    Through rectifiers and their like they pass whole, whatever the image.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and cut the graph behind it if it mixes."""
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        before = args[0].clone() if name in RECTIFIERS else None  # some work in place
        found = function(*args, **kwargs)
        if before is not None:
            return before + (found - before).detach()
        if name in ("conv1d", "conv2d", "conv3d"):
            weight, groups = kwargs.get("weight", args[1:2]), kwargs.get("groups", args[6:7] or 1)
            weight, groups = (it[0] if isinstance(it, tuple) else it for it in (weight, groups))
            if groups > 1 and weight.shape[1] == 1:
                return found
        if name in LINEAR | PRODUCTS:
            if isinstance(found, Tensor):
                return found.detach()
            return tuple(None if one is None else one.detach() for one in found)
        return found


def straight(
    model: nn.Module, image: Tensor, channel: NDArray[np.int64], *, target: str, lower: str
) -> NDArray[np.bool_]:
    """Which lower channels reach a channel straight, mixed with no other: through shortcuts, and what does not mix.

    These are where the channel's gradient does not vanish if it may not pass through convolutions and products of
    matrices. Shortcuts may pad, subsample, permute and concatenate. Norms over the channels mix a little, so that a
    lower channel counts from half the strongest gradient.

    Parameters
    ----------
    model
        The network.
    image
        Any one of its inputs, ``[1, ...]``.
    channel
        int64 ``[P]``: channels of the target layer.
    target, lower
        The layers.

    Returns
    -------
    ndarray
        bool ``[P, lower channels]``.
    """
    rows = []
    with frozen_eval(model, image.device):
        for chosen in torch.split(torch.from_numpy(channel).to(image.device), 32):
            with _Unmixed():
                found = activations(model, image.expand(len(chosen), *image.shape[1:]), [lower, target], leaf=lower)
            leaf, top = found[lower], found[target]
            flow = torch.zeros_like(leaf)
            if top.requires_grad:
                (flow,) = torch.autograd.grad(top, leaf, initial_relevance(top, chosen, "unit"))
            strength = flatten_positions(flow).abs().sum(dim=2).cpu().numpy()
            rows.append((strength > 0) & (strength >= strength.max(axis=1, keepdims=True) / 2))
    return np.concatenate(rows)


def objects_task(study: Study) -> Task:
    """The natural neurons of a study, and the objects under their maxima.

    Parameters
    ----------
    study
        Of images whose objects are known, see :class:`pure_nb.images.data.Truth`.

    Raises
    ------
    StudyError
        If they are not, or the target layer has no grid.

    Examples
    --------
    >>> objects_task(study).truth.shape   # the object under each reference's maximum
    (32, 6)
    """
    if study.objects is None:
        raise StudyError(
            f"the objects in {study.images.name!r} are not known, at layer {study.parameters.target!r}; images "
            "with a truth, such as glyph scenes, and a layer with a grid have it. "
            "Plant one: pure_nb.benchmark.tasks.planted_task"
        )
    alive = np.where(study.references.alive[:, None], study.objects, -1)
    return Task("objects", study, alive, np.ones(alive.shape), study)


def planted_task(
    study: Study,
    count: int = 60,
    k: int = 2,
    *,
    how: How = "random",
    self_merged: int = 0,
    strengths: Sequence[float] | Sequence[Sequence[float]] | None = None,
    groups: Groups | None = None,
    seed: int | None = None,
) -> Task:
    """A study's network with merged channels, and the dominant source of each of their reference images.

    The chapter :doc:`How would we know? </book/bench>` builds it from scratch.

    Parameters
    ----------
    study
        Any study. Its target layer is where channels are merged.
    count, k, how, seed
        See :func:`pure_nb.benchmark.planting.draw`; the seed is the study's by default.
    self_merged
        Number of channels merged with themselves, to be told from the others. They are drawn at random.
    strengths
        ``k`` numbers, the strengths of the sources of every group; all equal by default. Or a list for each of
        ``groups``.
    groups
        The sources of each merged channel, instead of a draw.

    Raises
    ------
    PlantingError
        See :func:`pure_nb.benchmark.planting.plant` and :func:`pure_nb.benchmark.planting.draw`.

    Examples
    --------
    >>> task = planted_task(study, count=2)
    >>> task.k, task.truth.shape          # sources of each merged channel; channels, references
    (array([2, 2]), (2, 6))
    """
    drawn, seed = groups is None, study.parameters.seed if seed is None else seed
    if groups is None:
        alike = likeness(study) if how in ("similar", "dissimilar") else None
        groups = draw(study.references, count, k, how=how, likeness=alike, seed=seed)
        if len(groups) < count:
            message = f"there are only {len(groups)} groups of {k} channels to plant, not {count}"
            warnings.warn(message, StudyWarning, stacklevel=2)
    flat: Any = strengths if strengths is not None and all(np.ndim(own) == 0 for own in strengths) else None
    given: Any = strengths if flat is None else [flat] * len(groups)
    strong = [[1.0] * len(group) for group in groups] if given is None else [[*own] for own in given]
    if len(strong) != len(groups):
        raise PlantingError(f"strengths must be a list for each of {len(groups)} groups, got {len(strong)} lists")
    for group, own in zip(groups, strong):
        if len(group) != len(own):
            raise PlantingError(f"strengths must be one number for each of {len(group)} sources, got {own}")
    if self_merged < 0:
        raise PlantingError(f"the number of channels merged with themselves must be at least 0, got {self_merged}")
    if self_merged:
        alive = possible_sources(study.references)
        if self_merged > len(alive):
            warnings.warn(f"there are only {len(alive)} channels to merge with themselves", StudyWarning, stacklevel=2)
            self_merged = len(alive)
        # A stream of its own, so that the groups stay the same however many are added.
        picks = np.random.default_rng([seed, 1]).choice(alive, self_merged, replace=False)
        groups, strong = (*groups, *((int(channel),) * 2 for channel in picks)), strong + [[1.0, 1.0]] * self_merged
    model, planting = plant(study.model, study.references, groups, strong)
    planted = study.replace(model=model, target=planting.target, lower=planting.renamed(study.parameters.lower))
    contributed = contributions(model, planted.images, planted.references, planting, run=study.run)
    truth = dominant_source(contributed)
    part = shares(contributed)
    part[planting.self_merged, :, 0] = part[planting.self_merged].sum(axis=-1)
    name = f"planted, k = {k}, {how}" if drawn else "planted, given groups"
    name += "" if flat is None else f", strengths {', '.join(f'{value:g}' for value in flat)}"
    return Task(name, planted, truth, part.max(axis=-1), study, planting, contributed)


def likeness(study: Study) -> NDArray[np.float64]:
    """How alike the channels of a study's target layer are, as sources: cosines, ``[channels, channels]``.

    Of their own weights where the layer is a ``Conv2d`` or ``Linear``; of their mean circuits otherwise.
    """
    p = study.parameters
    module = closed_form(study.model, p.target, INPUT + p.target)
    if module is None:
        return likeness_of(study.circuits.mean(axis=1))
    return likeness_of([dense_weight(module, channel).ravel() for channel in range(study.references.channels)])
