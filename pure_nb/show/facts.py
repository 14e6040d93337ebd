"""What an atlas tells of a study's neurons.

Everything on its pages and in its explorers that is not a picture, see :mod:`pure_nb.show.pictures`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pure_nb.compute.results import ASKED, as_before, outdated
from pure_nb.errors import LayerError, StudyError
from pure_nb.figures.colours import part_colour
from pure_nb.images.labels import display_names
from pure_nb.judges.truth import scores
from pure_nb.methods.combined import COMBINED
from pure_nb.methods.descriptions import LRP, OWN, Description, descriptions
from pure_nb.methods.stability import stability
from pure_nb.methods.virtual import CHOICES, WHOLE, Vectors, embed, kmeans_some, part_name
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

FORMAT = 7
"""Part of what finished pictures are known by; raised when this module draws them differently."""


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
    ``stability`` is that of :mod:`pure_nb.methods.stability`, None of the whole neuron.
    ``carriers`` are the same lower channels in all parts of a neuron, and in the same order.
    """

    name: str
    size: int
    meanings: str
    label: str
    carriers: tuple[Carrier, ...]
    by_hand: bool = False
    note: str = ""
    stability: float | None = None


@dataclass(frozen=True, eq=False)
class Atlas:
    """What an atlas is made of: :func:`write` writes it, and says what is what."""

    study: Study
    methods: tuple[str, ...] = METHODS[:1]
    count: int = 100
    embedder: Embedder | None = None
    side: int = 144
    words: tuple[str, ...] | None = None
    under: Atlas | None = None
    """That of the lower layer, in a site of several layers."""
    outputs: tuple[int, ...] = ()
    """The outputs that get a page, by number."""
    graph: bool = False
    """Whether these pages show a graph through the layers of the site."""
    pair: str = ""
    """Which of two it is, A or B, and its folder, in a site of two networks."""

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
        if self.side < 16:
            raise StudyError(f"pictures are kept with at least 16 pixels a side, got side={self.side}")
        if self.embedder is not None:
            self.embedder.joint  # noqa: B018  raises where there is no text tower

    @property
    def place(self) -> str:
        """The folder of its layer in a site of several, or of its network in one of two."""
        return self.pair or re.sub(r"[^\w.]+", "-", self.study.parameters.target)

    @cached_property
    def identity(self) -> str:
        """Stands for the study."""
        return digest([as_before(asdict(self.study.parameters)), self.study.identity])

    @cached_property
    def key(self) -> str:
        """Stands for all that the pictures and data of a neuron depend on."""
        told = {"format": FORMAT, "methods": self.methods, "count": self.count, "side": self.side}
        named: Any = self.embedder.fingerprint if self.embedder else None
        named = [named, self.words] if self.words else named
        return f"{self.identity} {digest([told, named])}"

    def key_of(self, channel: int) -> str:
        """The same, and a person's names of the neuron's parts."""
        own = {part: note.name for (noted, part), note in self.notes.items() if noted == channel and note.name}
        return f"{self.identity} {digest([self.key, own])}" if own else self.key

    @cached_property
    def described(self) -> dict[str, Description]:
        """The descriptions by which each method splits a neuron into parts."""
        given = descriptions(self.study)
        shown = SHOWN | ({METHODS[0]: COMBINED} if self.study.combined else {})
        return {name: given[shown[name]] for name in self.methods}

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

    @cached_property
    def _vectors(self) -> Callable[[str, int], Vectors]:
        """The vectors that describe a channel's references by a method; the last ones are kept."""
        return lru_cache(4)(lambda name, channel: self.described[name].of(channel))

    @cached_property
    def _own(self) -> Callable[[int], NDArray[np.int64]]:
        """The study's own parts of a channel; the last ones are kept."""
        return lru_cache(4)(lambda channel: self.study.virtual_of(channel, self._vectors(METHODS[0], channel)).labels)

    def labels(self, channel: int, name: str) -> list[NDArray[np.int64]]:
        """Which part each reference belongs to by a method, with the study's own number of parts, then each choice.

        The parts have the letters of the study's own that they share most images with.
        """
        own, vectors, seed = self._own(channel), self._vectors(name, channel), self.study.parameters.seed
        counts = (max(1, int(own.max()) + 1), *CHOICES)
        found = [kmeans_some(vectors, own >= 0, k, seed=seed) for k in counts]
        if name == METHODS[0]:
            return [own, *found[1:]]
        return [relettered(labels, like) for labels, like in zip(found, self.labels(channel, METHODS[0]))]

    def stability(self, channel: int) -> list[float | None]:
        """How well each of the study's own parts comes again from halves of the images; None where not known."""
        if self.study._is_there("stability"):
            found = self.study.stability[channel]
        else:
            found = stability(self._vectors(METHODS[0], channel), self._own(channel), seed=self.study.parameters.seed)
        return [None if np.isnan(part) else round(float(part), 2) for part in found.parts]

    def split(self, channel: int, names: Sequence[str]) -> dict[str, Any]:
        """What an explorer needs to know of a neuron's parts by some methods."""
        every = {name: self.labels(channel, name) for name in names}
        k, objects = int(self._own(channel).max()) + 1, self.study.neuron(channel).objects
        found: dict[str, Any] = {
            "parts": {name: ["".join(DIGITS[part] for part in own) for own in each] for name, each in every.items()},
            "colours": [part_colour(part) for part in range(max(k, *CHOICES))],
            "part_labels": [self.label(channel, part_name(part)) for part in range(k)],
            "by_hand": [bool(self.by_hand(channel, part_name(part))) for part in range(k)],
            "stability": self.stability(channel),
        }
        if objects is not None:
            found["agreement"] = {
                name: [round(scores(objects, own)["ami"], 4) for own in each] for name, each in every.items()
            }
        return found

    def plane(self, channel: int, name: str) -> dict[str, Any]:
        """What an explorer needs to know of a neuron's plane by a method: where each reference is."""
        vectors, own = self._vectors(name, channel), name == METHODS[0]
        layout = self.study.layout_of(channel, vectors) if own else embed(vectors, seed=self.study.parameters.seed)
        return {"points": {name: points_apart(layout).tolist()}}

    def references(self, channel: int) -> dict[str, Any]:
        """What an explorer needs to know of a neuron's references, whatever their parts."""
        neuron, images = self.study.neuron(channel), self.study.images
        names = sorted({name for name in neuron.names if name})
        found = {
            "channel": channel,
            "sample": neuron.sample.tolist(),
            "file": [os.path.basename(images.file(sample)) for sample in neuron.sample.tolist()],
            "activation": [float(f"{score:.4g}") for score in neuron.score],
            "counts": ["given" if self.study.parameters.n_clusters else "auto", *map(str, CHOICES)],
            "names": names,
            "label": [names.index(name) if name else -1 for name in neuron.names],
            "known": neuron.objects is not None,
            "tiles": min(self.count, len(neuron.sample)),
        }
        if any(credits := [images.credit(sample) for sample in neuron.sample.tolist()]):
            found["credits"] = credits
        return found

    def data(self, channel: int) -> dict[str, Any]:
        """All that an explorer needs to know of a neuron."""
        points = {name: own for each in self.methods for name, own in self.plane(channel, each)["points"].items()}
        return self.references(channel) | self.split(channel, self.methods) | {"points": points}

    def circuits(self, channel: int) -> NDArray[np.float64]:
        """The mean circuits of the whole neuron and of each of its virtual neurons, ``[1 + k, lower channels]``."""
        neuron = self.study.neuron(channel)
        k = neuron.virtual.k
        every = [None, *(range(k) if k > 1 else ())]
        return np.stack([neuron.vectors[neuron.members(part)].mean(axis=0, dtype=np.float64) for part in every])

    def parts(self, channel: int) -> list[Part]:
        """The whole neuron and its virtual neurons."""
        neuron, means = self.study.neuron(channel), self.circuits(channel)
        rows, stable = chosen(means, neuron.virtual.sizes), self.stability(channel)
        found = []
        for place, mean in enumerate(means):
            part = place - 1 if place else None
            name = "all" if part is None else part_name(part)
            ranks = neuron.members(part)
            carriers = tuple(Carrier(lower, float(mean[lower]), owner) for owner, lower in rows)
            where = channel, WHOLE if part is None else name
            own = bool(self.by_hand(*where)), self.notes.get(where, Note()).text, None if part is None else stable[part]
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
    def below_split(self) -> Study | None:
        """The study of the lower layer, if its parts are known: in a site of several layers, or from an earlier run.

        Of those in this study's store, however they were split; nothing is computed to find one.
        """
        if self.under is not None or self.below is None:
            return self.below
        lower = self.below.parameters.target
        keys = [manifest.get("key", {}) for manifest in self.study.results.manifests()]
        asked = [
            {"described_by": "circuits"} | {name: key[name] for name in ASKED["virtual"] if name in key}
            for key in keys
            if key.get("step") == "virtual" and not outdated(key)
        ]
        for one in ({}, *(own for own in asked if own["target"] == lower)):
            study = self.below.replace(**one)
            if "virtual" in study.known():
                return study
        return None

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


def digest(value: Any) -> str:
    """Stands for something that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
