"""What an atlas tells of a study's neurons.

Everything on its pages and in its explorers that is not a picture, see :mod:`pure_nb.show.pictures`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pure_nb.errors import LayerError, StudyError
from pure_nb.figures.colours import part_colour
from pure_nb.images.labels import display_names
from pure_nb.judges.truth import scores
from pure_nb.methods.descriptions import LRP, OWN, Description, descriptions
from pure_nb.methods.virtual import CHOICES, WHOLE, kmeans_some, part_name
from pure_nb.notes import Note
from pure_nb.parameters import NEAREST
from pure_nb.show.matrix import chosen
from pure_nb.show.plane import points_apart, relettered

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

SHOWN = {"circuits": OWN, "circuits (LRP)": LRP, "activations": "activation"}
METHODS = tuple(SHOWN)
"""Descriptions by which an explorer can split a neuron into parts; the first is the study's own."""

FORMAT = 4
"""Part of what finished pictures are known by; raised when this module draws them differently."""

COLUMNS = 10
"""Reference images in a row of a neuron's file."""

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz-"
"""Stand for the parts in the data of an explorer, the last for the part -1."""


class Carrier(NamedTuple):
    """A lower channel, and the share of a part's relevance that it carries, on average over the part's images.

    ``owner`` is the part, from 0, that it belongs to by :func:`pure_nb.show.matrix.chosen`; -1 is none alone.
    ``through`` is that of its own virtual neurons by which it carries the part; "" where that is not known.
    """

    channel: int
    share: float
    owner: int
    through: str = ""


class Part(NamedTuple):
    """A virtual neuron, or the whole neuron (``name`` "all"), as a page shows it.

    Its ``label`` is a person's where ``by_hand`` says so, or else the embedder's; the ``note`` is a person's.
    ``carriers`` are the same lower channels in all parts of a neuron, and in the same order.
    """

    name: str
    size: int
    meanings: str
    label: str
    carriers: tuple[Carrier, ...]
    by_hand: bool = False
    note: str = ""


@dataclass(frozen=True, eq=False)
class Atlas:
    """What an atlas is made of: :func:`write` writes it, and says what is what."""

    study: Study
    methods: tuple[str, ...] = METHODS[:1]
    count: int = 100
    embedder: Embedder | None = None
    words: tuple[str, ...] | None = None
    under: Atlas | None = None
    """That of the lower layer, in a site of several layers."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or METHODS[0] not in self.methods:
            raise StudyError(
                f"methods must be {METHODS[0]!r} and any of {METHODS[1:]}, got {', '.join(map(repr, self.methods))}"
            )
        if self.count < 1:
            raise StudyError(f"at least one reference image is shown of each neuron, got count={self.count}")
        pictured = getattr(self.study, "pictured", self.count)  # of a published study, which may have fewer pictures
        object.__setattr__(self, "count", min(self.count, pictured))
        if self.embedder is not None:
            self.embedder.joint  # noqa: B018  raises where there is no text tower

    @property
    def place(self) -> str:
        """The folder of its layer in a site of several."""
        return re.sub(r"[^\w.]+", "-", self.study.parameters.target)

    @cached_property
    def identity(self) -> str:
        """Stands for the study."""
        return _digest([asdict(self.study.parameters), self.study.identity])

    @cached_property
    def key(self) -> str:
        """Stands for all that the pictures and data of a neuron depend on."""
        told = {"format": FORMAT, "methods": self.methods, "count": self.count}
        named: Any = self.embedder.fingerprint if self.embedder else None
        named = [named, self.words] if self.words else named
        return f"{self.identity} {_digest([told, named])}"

    def key_of(self, channel: int) -> str:
        """The same, and a person's names of the neuron's parts."""
        own = {part: note.name for (noted, part), note in self.notes.items() if noted == channel and note.name}
        return f"{self.identity} {_digest([self.key, own])}" if own else self.key

    @cached_property
    def described(self) -> dict[str, Description]:
        """The descriptions by which each method splits a neuron into parts."""
        given = descriptions(self.study)
        return {name: given[SHOWN[name]] for name in self.methods}

    @cached_property
    def names(self) -> pd.Series[str] | None:
        """What the parts are called, by channel and part, or were when the study was published; None if not."""
        if self.embedder is None:
            return getattr(self.study, "part_labels", None)
        from pure_nb.show.report import part_names  # open_clip takes a second to import

        return part_names(self.study, self.embedder, self.words).set_index(["channel", "part"])["label"]

    @cached_property
    def vocabulary(self) -> list[str]:
        """What parts may be called, and the words of the search."""
        from pure_nb.show.report import class_words

        return class_words(self.study) if self.words is None else list(dict.fromkeys(self.words))

    @cached_property
    def notes(self) -> dict[tuple[int, str], Note]:
        """A person's own names of parts, and notes on them, by channel and part."""
        return self.study.notes.fitting()

    def by_hand(self, channel: int, part: str) -> str:
        """What a person calls a part; "" if nothing."""
        return self.notes.get((channel, part), Note()).name

    def label(self, channel: int, part: str) -> str:
        """The word that a part is called, by a person or the embedder; "" where there is none that is sure enough."""
        if own := self.by_hand(channel, part):
            return own
        if self.names is None or (channel, part) not in self.names.index:
            return ""
        word = str(self.names.loc[(channel, part)])
        return "" if word == "unsure" else word

    def labels(self, channel: int) -> dict[str, list[NDArray[np.int64]]]:
        """Which part each reference belongs to: by method, with the study's own number of parts, then each choice."""
        own, seed = self.study.virtual_of(channel).labels, self.study.parameters.seed
        active = own >= 0
        found: dict[str, list[NDArray[np.int64]]] = {}
        for name, description in self.described.items():
            vectors = description.of(channel)
            first = own if name == METHODS[0] else kmeans_some(vectors, active, max(1, int(own.max()) + 1), seed=seed)
            every = [first, *(kmeans_some(vectors, active, k, seed=seed) for k in CHOICES)]
            reference = found.get(METHODS[0], every)  # the study's own is the first of all descriptions
            found[name] = [relettered(labels, like) for labels, like in zip(every, reference)]
        return found

    def data(self, channel: int) -> dict[str, Any]:
        """What an explorer needs to know of a neuron."""
        study, neuron, labels = self.study, self.study.neuron(channel), self.labels(channel)
        k = int(labels[METHODS[0]][0].max()) + 1
        names = sorted({name for name in neuron.names if name})
        found: dict[str, Any] = {
            "channel": channel,
            "points": points_apart(study.layout_of(channel)).tolist(),
            "sample": neuron.sample.tolist(),
            "activation": [float(f"{score:.4g}") for score in neuron.score],
            "counts": ["as chosen", *map(str, CHOICES)],
            "parts": {name: ["".join(DIGITS[part] for part in own) for own in every] for name, every in labels.items()},
            "colours": [part_colour(part) for part in range(max(k, *CHOICES))],
            "names": names,
            "label": [names.index(name) if name else -1 for name in neuron.names],
            "known": neuron.objects is not None,
            "part_labels": [self.label(channel, part_name(part)) for part in range(k)],
            "by_hand": [bool(self.by_hand(channel, part_name(part))) for part in range(k)],
            "tiles": min(self.count, len(neuron.sample)),
            "columns": COLUMNS,
            "crops": f"crops/{channel}.webp",
            "whole": f"whole/{channel}.webp",
        }
        if any(credits := [study.images.credit(sample) for sample in neuron.sample.tolist()]):
            found["credits"] = credits
        if neuron.objects is not None:
            found["agreement"] = {
                name: [round(scores(neuron.objects, own)["ami"], 4) for own in every] for name, every in labels.items()
            }
        return found

    def circuits(self, channel: int) -> NDArray[np.float64]:
        """The mean circuits of the whole neuron and of each of its virtual neurons, ``[1 + k, lower channels]``."""
        neuron = self.study.neuron(channel)
        k = neuron.virtual.k
        every = [None, *(range(k) if k > 1 else ())]
        return np.stack([neuron.vectors[neuron.members(part)].mean(axis=0, dtype=np.float64) for part in every])

    def parts(self, channel: int) -> list[Part]:
        """The whole neuron and its virtual neurons."""
        neuron, means = self.study.neuron(channel), self.circuits(channel)
        rows = chosen(means, neuron.virtual.sizes)
        found = []
        for place, mean in enumerate(means):
            part = place - 1 if place else None
            name = "all" if part is None else part_name(part)
            ranks = neuron.members(part)
            carriers = tuple(Carrier(lower, float(mean[lower]), owner) for owner, lower in rows)
            where = channel, WHOLE if part is None else name
            own = bool(self.by_hand(*where)), self.notes.get(where, Note()).text
            found.append(Part(name, len(ranks), neuron.meanings(part), self.label(*where), carriers, *own))
        return found

    @cached_property
    def below(self) -> Study | None:
        """The study of the lower layer, for its reference images; None where it can't be studied by itself."""
        if self.under is not None:
            return self.under.study
        try:
            below = self.study.replace(target=self.study.parameters.lower, lower=NEAREST)
            below.shapes  # noqa: B018  raises
        except LayerError:
            return None
        return below

    @cached_property
    def without_classes(self) -> str:
        """Why there are no classes; "" if there are."""
        if self.study.classes.take_long:
            return "they take a backward pass for each channel and batch of images, and pure-nb arv did not run yet"
        if why := self.study.classes.without_labels:
            return why
        try:
            self.study.classes.pairs  # noqa: B018  raises where they do not fit into memory
        except LayerError as problem:
            return str(problem)
        return ""

    def classes(self, channel: int) -> list[tuple[str, float]]:
        """Classes that a channel is relevant to, with the share of their images in which it is so, largest first."""
        study, statistics = self.study, self.study.classes.statistics
        classes, share = statistics.strongest_classes(channel, study.parameters.min_frequency)
        return [(self._display_names[study.classes.names[label]], float(own)) for label, own in zip(classes, share)]

    def pairs(self, channel: int) -> list[tuple[str, str, float]]:
        """Pairs of these classes and the cosine of their average relevance vectors, the least alike first."""
        table = self.study.classes.pairs
        own = table[table["channel"] == channel].sort_values("cosine", kind="stable")
        return [
            (self._display_names[one], self._display_names[other], cosine)
            for one, other, cosine in own[["class_1", "class_2", "cosine"]].itertuples(index=False, name=None)
        ]

    @cached_property
    def _display_names(self) -> dict[str, str]:
        names = self.study.classes.names
        return dict(zip(names, display_names(names)))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
