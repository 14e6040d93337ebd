"""Channels of a study split between classes or virtual neurons, many of them in as few passes as memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.blocks import IMAGES, each
from pure_nb.compute.sweep import shards
from pure_nb.errors import StudyError
from pure_nb.images.data import Images
from pure_nb.images.labels import class_labels, numbered
from pure_nb.images.sources import as_images
from pure_nb.methods.descriptions import describe_pairs
from pure_nb.methods.ownership import Assignment, Ownership
from pure_nb.methods.relevance import Clamp, Criterion
from pure_nb.methods.splitting import PartActivations, Score, Split, _part_activations, every_second
from pure_nb.methods.virtual import part_name, refitted
from pure_nb.methods.windows import channel_sources, closed_form, dense_weight, pooled_inputs
from pure_nb.network.layers import INPUT, computes_plainly, get_layer
from pure_nb.parameters import Run

if TYPE_CHECKING:
    from torch import nn

    from pure_nb.classes import Classes

MOST_BYTES = 256e6
"""What the parts of channels that are measured in one pass may take, with their weights."""

Asked = tuple[int, "Sequence[str] | None"]
"""A channel, and the classes that it is to be split between; None for its virtual neurons."""


@dataclass(frozen=True, eq=False)
class _Concepts:
    """What a channel is split between.

    Attributes
    ----------
    names, images
        Of the concepts; and what shows them.
    samples, concept
        int64 ``[images]``: which images show a concept, and which one.
    training
        bool ``[images]``: those that the split is fitted to.
    arvs
        float64 ``[k, sources]``.
    """

    names: tuple[str, ...]
    images: Images
    samples: NDArray[np.int64]
    concept: NDArray[np.int64]
    training: NDArray[np.bool_]
    arvs: NDArray[np.float64]


@dataclass(eq=False)
class Splitter:
    """Splits channels of a study in one way: see :meth:`pure_nb.classes.Classes.split`."""

    classes: Classes
    score: Score = "bounded"
    ownership: Ownership = "symmetric"
    clamp: Clamp = "channels"
    held_out: bool = True
    validation: Any = None

    def __post_init__(self) -> None:
        self.study = self.classes.study
        p = self.study.parameters
        module = closed_form(self.study.model, p.target, p.lower)
        if module is None:
            modules = get_layer(self.study.model, p.target).named_modules(prefix=p.target)
            inside = [repr(name) for name, part in modules if computes_plainly(part)]
            raise StudyError(
                f"a channel is split by the inputs of its own layer, and target={p.target!r} with lower={p.lower!r} is "
                f"no such pair. Choose a Conv2d or Linear as the target ({', '.join(inside[:6]) or 'none is inside'}) "
                f"and '{INPUT}' with its name as the lower layer"
            )
        self.module: Any = module
        self.halved = self.held_out and self.validation is None
        self.own = None if self.validation is None else as_images(self.validation, "validation")

    def splits(self, asked: Sequence[Asked]) -> Iterator[Split]:
        """The splits of some channels: all of them between classes, or none."""
        named = dict.fromkeys(number for own in asked for number in self._numbers(*own))
        means = self._means([*named]) if self.halved and named else {}
        waiting: list[tuple[Assignment, Asked, _Concepts]] = []
        size, p = 0.0, self.study.parameters
        for number, (channel, classes) in enumerate(asked, 1):
            found = (
                self._virtual_concepts(channel) if classes is None else self._class_concepts(channel, classes, means)
            )
            arvs = found.arvs[:, channel_sources(self.module, channel)]
            assignment = Assignment(p.target, channel, arvs, ownership=self.ownership)
            waiting.append((assignment, (channel, classes), found))
            outputs = len(assignment.rhos) * (len(found.names) + 1) + 1
            size += 4 * outputs * (2 * len(found.samples) + self.module.weight[0].numel())
            if size > MOST_BYTES or number == len(asked):
                yield from self._chosen(waiting)
                waiting, size = [], 0.0

    def _chosen(self, waiting: Sequence[tuple[Assignment, Asked, _Concepts]]) -> Iterator[Split]:
        """The splits of which all is known but how strongly the parts are activated."""
        images = waiting[0][2].images
        measured = self._measured(images, [(one, who, own.samples, own.concept) for one, who, own in waiting])
        more: list[PartActivations] = []
        if self.own is not None:
            shown = [(one, who, *self._validation_concepts(*who, self.own)) for one, who, _ in waiting]
            more = self._measured(self.own, shown)
        for number, (parts, (_, _, own)) in enumerate(zip(measured, waiting)):
            training, concept = own.training, own.concept
            if more:
                parts, added = parts.followed_by(more[number]), shown[number][3]
                training = np.arange(len(concept) + len(added)) < len(concept)
                concept = np.concatenate([concept, added])
            yield Split.chosen(parts, concept, own.names, self.score, training)

    def _measured(
        self, images: Images, shown: Sequence[tuple[Assignment, Asked, NDArray[np.int64], NDArray[np.int64]]]
    ) -> list[PartActivations]:
        """How strongly the parts of channels are activated, each image being run once for all of them."""
        first = dict.fromkeys(np.concatenate([samples for *_, samples, _ in shown]).tolist())
        place = {sample: number for number, sample in enumerate(first)}
        outputs = np.zeros(len(place), dtype=np.int64)
        wanted = []
        for assignment, (_, classes), samples, concept in shown:
            own = np.array([place[sample] for sample in samples.tolist()], dtype=np.int64)
            wanted.append((assignment, own))
            if classes is not None:
                outputs[own] = np.array([self.classes._number[name] for name in classes])[concept]
        p, run = self.study.parameters, self.study.run
        criterion = Criterion(p.min_share, p.cumulative_share or None, self.clamp)
        by_class = shown[0][1][1] is not None
        work = partial(_of_some, self.study.model, images, criterion, run)
        every, cut = np.array([*place]), shards(len(place), run.batch_size, IMAGES if run.client else len(place))

        def here(places: NDArray[np.int64], block: range) -> NDArray[np.int64]:
            return np.flatnonzero((places >= block.start) & (places < block.stop))

        def given(number: int) -> tuple[Any, ...]:
            block = cut[number]
            some = [(one, places[here(places, block)] - block.start) for one, places in wanted]
            return every[block], some, outputs[block] if by_class else None

        parts = dict(each(work, given, range(len(cut)), run))
        found = []
        for one, (_, places) in enumerate(wanted):
            order = np.argsort(np.concatenate([here(places, block) for block in cut]))
            begin, *more = [parts[number][one] for number in range(len(cut))]
            found.append(begin.followed_by(*more).only(order))
        return found

    def _numbers(self, channel: int, classes: Sequence[str] | None) -> list[int]:
        """The numbers of the classes, if any, that a channel is to be split between; raises if it can't be."""
        if classes is None:
            return []
        numbers = self.classes._numbers(classes)
        if len(set(classes)) < max(2, len(classes)):
            raise StudyError(f"a channel is split between two or more different classes, got {list(classes)}")
        _require_two(channel, classes, [len(self.classes._by_class[number]) for number in numbers])
        return numbers

    def _class_concepts(
        self, channel: int, classes: Sequence[str], means: Mapping[int, NDArray[np.float64]]
    ) -> _Concepts:
        numbers = self.classes._numbers(classes)
        samples, concept = self.classes._samples_of(numbers)
        if self.halved:
            seen = np.stack([means[number] for number in numbers])
            arvs = (seen * dense_weight(self.module, channel)).sum(axis=2)
        else:
            arvs = self.classes.statistics.arv(self.study.model, channel, numbers)
        return _Concepts(tuple(classes), self.classes.labelled, samples, concept, every_second(concept), arvs)

    def _means(self, numbers: Sequence[int]) -> dict[int, NDArray[np.float64]]:
        """What each weight sees of the images of some classes that splits are fitted to, on average."""
        samples, concept = self.classes._samples_of(numbers)
        fitted = every_second(concept)
        how: dict[str, Any] = {"labels": concept[fitted], "run": self.study.run}
        target, images = self.study.parameters.target, self.classes.labelled
        return dict(zip(numbers, pooled_inputs(self.study.model, images, samples[fitted], target, **how)))

    def _virtual_concepts(self, channel: int) -> _Concepts:
        neuron = self.study.neuron(channel)
        parts = neuron.virtual
        if parts.k < 2:
            raise StudyError(
                f"channel {channel} has a single virtual neuron, so there is nothing to split it between; name "
                "classes, or ask for parts with n_clusters=2"
            )
        used = np.flatnonzero(parts.labels >= 0)
        vectors, concept = neuron.vectors[used].astype(np.float64), parts.labels[used]
        names = tuple(part_name(part) for part in range(parts.k))
        _require_two(channel, names, np.bincount(concept, minlength=parts.k))
        training = every_second(concept)
        if self.halved:
            concept = refitted(vectors, concept, training, seed=self.study.parameters.seed)
        fitted = training if self.halved else np.ones_like(training)
        arvs = np.stack([vectors[fitted & (concept == part)].mean(axis=0) for part in range(parts.k)])
        return _Concepts(names, self.study.images, neuron.sample[used], concept, training, arvs)

    def _validation_concepts(
        self, channel: int, classes: Sequence[str] | None, images: Images
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The images of one's own that show a concept, and which one."""
        if classes is None:
            every = np.arange(len(images))
            vectors = describe_pairs(self.study, np.full_like(every, channel), every, images)
            active = vectors.any(axis=1)
            return every[active], self.study.neuron(channel).virtual.predict(vectors[active])
        labels, known = self._own_labels
        numbers = np.array([known.get(name, -2) for name in classes])
        for name, number in zip(classes, numbers):
            if not (labels == number).any():
                shown = ", ".join([*known][:8])
                raise StudyError(f"the images for validation show no {name!r}; their classes are {shown}")
        samples = np.flatnonzero(np.isin(labels, numbers))
        return samples, (labels[samples][:, None] == numbers).argmax(axis=1)

    @cached_property
    def _own_labels(self) -> tuple[NDArray[np.int64], dict[str, int]]:
        """The classes of the images for validation, and their numbers."""
        assert self.own is not None
        labels, names = class_labels(self.own, len(self.classes.names), self.classes.called)
        return labels, numbered(names)


def _of_some(
    model: nn.Module,
    images: Images,
    criterion: Criterion,
    run: Run,
    samples: NDArray[np.int64],
    shown: Sequence[tuple[Assignment, NDArray[np.int64]]],
    labels: NDArray[np.int64] | None,
) -> list[PartActivations]:
    return _part_activations(model, images, samples, shown, labels=labels, criterion=criterion, run=run)


def _require_two(channel: int, names: Sequence[str], images: Iterable[int]) -> None:
    """Raise unless there are two images of each concept: one to fit a split to, and one for validation."""
    few = [name for name, count in zip(names, images) if count < 2]
    if few:
        raise StudyError(f"channel {channel} can't be split: each concept needs two images, {few[0]} has fewer")
