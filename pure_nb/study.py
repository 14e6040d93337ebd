"""A study: one network, two of its layers, a set of images, and what was found out.

Each step is a property that is computed when first asked for, and kept on disk: the reference images, the circuits,
the virtual neurons, the table of all neurons. Nothing is computed again unless something it depends on changed.

    >>> import pure_nb
    >>> study = pure_nb.load_study("glyphs")                      # doctest: +SKIP
    >>> study.neuron(17).plot()                                   # doctest: +SKIP
"""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn
from tqdm import tqdm

from pure_nb import models, truth
from pure_nb.blocks import by_blocks
from pure_nb.circuits import Seed, circuits
from pure_nb.concord import Concord, concord, similarity_matrix, with_similarities
from pure_nb.data import Images, Unreadable, class_labels
from pure_nb.errors import ArgumentError, EmbedderError, ImageError, LayerError, StudyError, StudyWarning
from pure_nb.glyphs import MEAN, STD, GlyphObjects
from pure_nb.layers import INPUT, LayerShape, as_weights, get_layer, nearest_below, require, resting
from pure_nb.parameters import NEAREST, PARAMETERS, Parameters, checked, word
from pure_nb.references import References, TopReferences
from pure_nb.relevance import ClassRelevance, ClassStatistics, class_pairs, closed_form, gamma_polysemantic
from pure_nb.render import Look, View, boxes, cropped, views
from pure_nb.sources import as_images
from pure_nb.splitting import Score, Split, channel_sources, part_activations
from pure_nb.store import Arrays, New, Store, store_folder
from pure_nb.sweep import sweep
from pure_nb.virtual import MANY, NEURONS, VirtualNeurons, embed, packed, part_name, unpacked, virtual_neurons
from pure_nb.wordnet import WordNet, find_wordnet, shipped_wordnet

if TYPE_CHECKING:
    from distributed import Client

    from pure_nb.embedders import Embedder
    from pure_nb.neuron import Neuron


T = TypeVar("T")

FORMAT = {
    "references": 3,
    "circuits": 4,
    "virtual": 6,
    "layouts": 4,
    "neurons": 7,
    "classes": 3,
    "boxes": 2,
    "embeddings": 2,
    "activations": 2,
}
"""Part of what a stored step is found by; raised when this package computes it, or one before it, differently."""

TAKEN_APART = ("target", "lower", "n", "by", "rule", "seed", "k", "random")
"""The parameters that virtual neurons depend on."""

SMALL = 4_000
"""Pairs of a channel and a reference, up to which a study never computes a single channel alone."""


MANY_BACKWARD = 128
"""Channels from which on class relevance without a closed form is computed only when asked for."""

CROPS = 256
"""Crops cut at once, to be embedded."""

_Concepts = tuple[tuple[str, ...], Images, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""What a channel is split between: names, images, numbers of those that show a concept, which one, and ARVs."""


RUN = {"batch_size", "device", "workers", "skip_unreadable", "channels_last", "progress", "client"}
"""What a study can be told of how to run."""


def _require_device(device: str) -> None:
    """Raise torch's own error if this process can't use a device."""
    torch.empty(0, device=device)


@dataclass(frozen=True, eq=False)
class Study:
    """A network, its images, what is asked, and the store of what was found.

    Use :func:`load_study` for a study on disk, and :meth:`of` for your own module and data set.

    Attributes
    ----------
    name
        A word; names the folder of results.
    model, images, parameters
        What is studied, over what, and how.
    store
        Where results are kept; None keeps them in memory only.
    batch_size, device, workers, skip_unreadable, channels_last, progress
        How to run: none of these is part of what a result depends on, but for the last digits of its numbers.
        ``channels_last`` lays the network's own weights out in memory as many GPUs like them, as ``model.to`` would.
    client
        A Dask cluster to run on, from :func:`pure_nb.cluster.connect`; None runs here.
    """

    name: str
    model: nn.Module
    images: Images
    parameters: Parameters
    store: Store | None = None
    batch_size: int = 32
    device: str = "cpu"
    workers: int = 0
    skip_unreadable: bool = False
    channels_last: bool = False
    progress: bool = True
    client: Client | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", models.unwrapped(self.model))
        p = self.parameters
        if p.lower == NEAREST:
            object.__setattr__(self, "parameters", replace(p, lower=nearest_below(self.model, p.target)))
        if self.batch_size < 1 or self.workers < 0:
            raise StudyError(
                f"batch_size must be at least 1 and workers at least 0, got {self.batch_size} and {self.workers}"
            )
        try:
            if self.client is None:
                _require_device(self.device)
            else:
                self.client.run(_require_device, self.device)  # on each worker; this process need not have it
        except (RuntimeError, AssertionError) as problem:  # torch without CUDA asserts
            raise StudyError(
                f"the device {self.device!r} can't be used here: {str(problem).splitlines()[0]}"
            ) from problem
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Any,
        target: str,
        lower: str,
        *,
        name: str = "mine",
        store: Path | str | None = None,
        **options: Any,
    ) -> Study:
        """A study of your own network and data set.

        Parameters
        ----------
        model
            Any torch network.
        images
            A data set, tensors ``[N, C, H, W]``, a list of files, a folder, or a data set of Hugging Face: all that
            :func:`pure_nb.sources.as_images` takes. Labels are not needed.
        target, lower
            Names of the two layers.
        name, store
            Results are kept in the folder ``store / name``; by default in the user's cache. Two studies may share both.
        options
            Anything else of :class:`Parameters`, and how to run: ``device="cuda"``, ``batch_size=64``.

        Raises
        ------
        LayerError, ImageError
            If a layer or the images can't be used.
        """
        wrapped = as_images(images, name)
        run = {option: options.pop(option) for option in RUN & set(options)}
        parameters = checked({"target": target, "lower": lower, **options})
        study = cls(name, model, wrapped, parameters, Store(store_folder(store) / word(name)), **run)
        study.shapes  # noqa: B018  the layers are checked here, not after hours
        return study

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "client": None}  # which belongs to the process that made it

    def using(self, **changes: Any) -> Study:
        """The same study with other parameters, or run otherwise: ``study.using(rule="lrp", device="cuda")``."""
        parameters = checked({**asdict(self.parameters), **{k: v for k, v in changes.items() if k in PARAMETERS}})
        return replace(self, parameters=parameters, **{k: v for k, v in changes.items() if k not in PARAMETERS})

    @cached_property
    def shapes(self) -> tuple[LayerShape, LayerShape]:
        """How the target and the lower layer look; raises if they can't be studied together."""
        example = self.images.example[None]
        self.model.to(self._here)
        return require(self.model, example.to(self._here), self.parameters.target, self.parameters.lower)

    @property
    def _here(self) -> str:
        """Where this process runs the network itself, for a look at it."""
        return self.device if self.client is None else "cpu"

    @cached_property
    def _found(self) -> tuple[References, list[list[Any]]]:
        """The reference images, and a note of the images that could not be read."""
        p = self.parameters

        def compute(shards: Store | None) -> tuple[Arrays, list[list[Any]]]:
            self.shapes  # noqa: B018  fail before the pass, not in it
            top = TopReferences(p.target, p.n, p.by)
            skipped = self._sweep([top], self.images, shards)
            return top.state(), [[u.sample, u.path, u.reason] for u in skipped]

        arrays, note = self._kept("references", self._references_key(), compute)
        return TopReferences(p.target, p.n, p.by).restored(arrays).result(), note

    @cached_property
    def _swept(self) -> tuple[References, list[Unreadable]]:
        """The reference images, and the images that could not be read, if that is all right with the user."""
        references, note = self._found
        return references, self._accepted(note)

    def _accepted(self, note: list[list[Any]]) -> list[Unreadable]:
        """What was left out of stored results, if that is all right with the user."""
        if note and not self.skip_unreadable:
            raise ImageError(
                f"{len(note)} images could not be read and were left out of these results, the first {note[0][1]}; "
                "accept that with skip_unreadable=True, or --skip-unreadable"
            )
        return [Unreadable(*entry) for entry in note]

    @property
    def references(self) -> References:
        """The reference images of every channel of the target layer; one pass over all images."""
        return self._swept[0]

    @property
    def skipped(self) -> list[Unreadable]:
        """The images that could not be read, and were left out."""
        return self._swept[1]

    @cached_property
    def circuits(self) -> NDArray[np.float32]:
        """Relevance vectors of all references, float32 ``[channels, n, lower channels]``; mapped from the store."""

        def compute(blocks: Store | None, new: New) -> NDArray[np.float32]:
            sample = self.references.sample
            channel = np.broadcast_to(np.arange(len(sample))[:, None], sample.shape)
            how: dict[str, Any] = {"store": blocks, "new": new, "client": self.client, "progress": self.progress}
            return self._run_circuits(channel, sample, **how)

        return self._kept_mapped("circuits", self._circuits_key(), compute).reshape(*self.references.sample.shape, -1)

    def circuits_of(self, channel: int) -> NDArray[np.float32]:
        """Relevance vectors of one channel's references, ``[n, lower channels]``, without the others'."""
        self._check(channel)
        if self._whole("circuits", self._circuits_key()):
            return self.circuits[channel]
        sample = self.references.sample[channel]
        return self._run_circuits(np.full_like(sample, channel), sample)

    def virtual_of(self, channel: int, vectors: NDArray[np.float32] | None = None) -> VirtualNeurons:
        """One channel taken apart; it alone where all would take long, by its ``vectors`` if they are at hand."""
        self._check(channel)
        if self._whole("virtual", self._key("virtual", *TAKEN_APART)):
            return self.virtual[channel]
        return self._split([self.circuits_of(channel) if vectors is None else vectors])[0]

    def _whole(self, step: str, key: Mapping[str, object]) -> bool:
        """Whether a step is there for all channels, or quickly computed for all."""
        return self._is_there(step, key) or self.references.sample.size < SMALL

    def _is_there(self, step: str, key: Mapping[str, object]) -> bool:
        """Whether a step was computed before."""
        computed = {"references": "_found"}.get(step, step) in self.__dict__
        suffix = ".npy" if step == "circuits" else ".safetensors"
        return computed or (self.store is not None and self.store.path(step, key, suffix).exists())

    def assign(self, channel: int, images: Any, samples: Sequence[int] | None = None) -> NDArray[np.int64]:
        """The virtual neurons that new images drive a channel through.

        Parameters
        ----------
        channel
            Of the target layer.
        images, samples
            The new images, as for :func:`pure_nb.sources.as_images`, and which of them; all of them by default.

        Returns
        -------
        ndarray
            int64 ``[samples]``: labels as in :attr:`VirtualNeurons.labels`.
        """
        images = as_images(images)
        every = np.arange(len(images)) if samples is None else np.asarray(samples, dtype=np.int64)
        vectors = self._run_circuits(np.full_like(every, channel), every, images=images)
        return self.neuron(channel).virtual.assign(vectors)

    @cached_property
    def virtual(self) -> list[VirtualNeurons]:
        """Every channel taken apart."""

        def compute(blocks: Store | None) -> tuple[Arrays, Any]:
            vectors, found = self.circuits, []
            bar = tqdm(total=len(vectors), desc="virtual", unit="neuron", disable=not self.progress)
            with bar, Parallel(n_jobs=-1 if len(vectors) >= MANY else 1) as parallel:
                for first in range(0, len(vectors), NEURONS):
                    saved = blocks.load_arrays("block", {"first": first}) if blocks else None
                    part = unpacked(*saved) if saved else self._split(vectors[first : first + NEURONS], parallel)
                    if blocks and not saved:
                        blocks.save_arrays("block", {"first": first}, *packed(part))
                    found += part
                    bar.update(len(part))
            return packed(found)

        return unpacked(*self._kept("virtual", self._key("virtual", *TAKEN_APART), compute))

    @cached_property
    def labelled(self) -> Images:
        """Images of one known class each: the study's own, or for glyph scenes pictures of a single object."""
        return Images(GlyphObjects(), "glyph objects", MEAN, STD) if self.images.scenes else self.images

    @cached_property
    def _labels(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """The true class of each labelled image, an index into the network's outputs; and all their names."""
        with resting(self.model), torch.no_grad():
            example = self.labelled.example[None].to(self._here)
            logits = self.model.to(self._here)(as_weights(self.model, example))
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise StudyError(
                "classes need a network that puts out one tensor [images, classes]; "
                f"{type(self.model).__name__} does not"
            )
        return class_labels(self.labelled, logits.shape[1])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the network's outputs."""
        return self._labels[1]

    @property
    def classes_take_long(self) -> bool:
        """Whether :attr:`classes` are not there and take a backward pass for each of many channels, batch by batch."""
        p = self.parameters
        many = closed_form(self.model, p.target, p.lower) is None and self.shapes[0].channels > MANY_BACKWARD
        return many and not self._is_there("classes", self._classes_key())

    @property
    def classes(self) -> ClassStatistics:
        """How relevant each channel is to each class, and all average relevance vectors; one pass over the images.

        If the reference images are of the same images and not known yet, the same pass finds them too.
        """
        return self._classified[0]

    @cached_property
    def _classified(self) -> tuple[ClassStatistics, list[Unreadable]]:
        """The class statistics, and the labelled images that could not be read."""
        p, (labels, names) = self.parameters, self._labels
        own = ClassRelevance(
            p.target,
            p.lower,
            labels,
            len(names),
            module=closed_form(self.model, p.target, p.lower),
            share=p.share,
            mass=p.mass or None,
            seed=p.random,
        )

        together = self.labelled is self.images and not self._is_there("references", self._references_key())

        def compute(shards: Store | None) -> tuple[Arrays, list[list[Any]]]:
            self.shapes  # noqa: B018  fail before the pass, not in it
            top = TopReferences(p.target, p.n, p.by)
            skipped = self._sweep([own, top] if together else [own], self.labelled, shards)
            note = [[u.sample, u.path, u.reason] for u in skipped]
            if together:
                self.__dict__["_found"] = top.result(), note
                if self.store:
                    with self.store.claimed("references", self._references_key()):
                        self.store.save_arrays("references", self._references_key(), top.state(), note)
            return own.state(), note

        # What is kept of an unfinished pass is of no use to a pass that looks for other references, or for none.
        both = {"with": self._references_key()} if together else {}
        arrays, note = self._kept("classes", self._classes_key(), compute, self._classes_key() | both)
        return own.restored(arrays).result(), self._accepted(note)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every channel that is relevant to two classes, with the cosine of its two average relevance vectors.

        See :func:`pure_nb.relevance.class_pairs`; :func:`pure_nb.relevance.gamma_polysemantic` picks from it.
        """
        return class_pairs(self.classes, self.model, self.class_names, p=self.parameters.p)

    def wordnet_pairs(
        self,
        wordnet: WordNet | None = None,
        measures: tuple[str, ...] = ("wup", "path", "lch"),
        synsets: Mapping[str, str] | None = None,
    ) -> pd.DataFrame:
        """:attr:`pairs`, with the WordNet similarities of the two classes.

        Parameters
        ----------
        wordnet
            Where to look: by default what ships for the glyph world, and the user's WordNet for all else.
        measures
            Some of :data:`pure_nb.wordnet.MEASURES`.
        synsets
            What WordNet calls some classes, where their names would be misunderstood: ``{"king": "king.n.10"}``.

        Raises
        ------
        WordNetError
            If there is no WordNet, or it lacks what a measure needs.
        """
        meant = {**self.images.synsets, **(synsets or {})}
        return with_similarities(self.pairs, wordnet or self._wordnet, meant, measures)

    def concord(
        self,
        measure: str = "wup",
        wordnet: WordNet | None = None,
        synsets: Mapping[str, str] | None = None,
        **how: Any,
    ) -> Concord:
        """Whether similar classes drive the channels through similar sources: cosines against WordNet.

        Parameters
        ----------
        measure
            One of :data:`pure_nb.wordnet.MEASURES`.
        wordnet, synsets
            As in :meth:`wordnet_pairs`.
        how
            Of :func:`pure_nb.concord.concord`: ``permutations``, ``replicates``, ``level``, ``seed``.

        Raises
        ------
        WordNetError
            If there is no WordNet, or it lacks what the measure needs.
        ArgumentError
            If there are fewer than three pairs whose classes are in WordNet.
        """
        classes = sorted({*self.pairs["class_1"], *self.pairs["class_2"]})
        meant = {**self.images.synsets, **(synsets or {})}
        likeness = similarity_matrix(wordnet or self._wordnet, classes, meant, measure)
        return concord(self.pairs, likeness, **how)

    @cached_property
    def _wordnet(self) -> WordNet:
        """What ships, if it has the classes; else the user's."""
        return shipped_wordnet() if self.images.scenes else find_wordnet()

    def split_of(self, channel: int, classes: Sequence[str] | None = None, score: Score = "bounded") -> Split:
        """One channel of the target layer split between classes, or between its virtual neurons.

        The first is done by its average relevance vectors and the labelled images of the classes. The second needs no
        labels: a virtual neuron's vector is the mean of its circuits, and its images are those of its references. The
        threshold is chosen on every second of the images; the others are for validation.

        Parameters
        ----------
        channel
            Of the target layer, a ``Conv2d`` or ``Linear``; the lower layer must be its own input.
        classes
            Names of at least two classes; None takes the virtual neurons, named A, B ...
        score
            By which the threshold is chosen: see :func:`pure_nb.splitting.choose_rho`.

        Raises
        ------
        StudyError
            If a class is not known, a class or virtual neuron has fewer than two images, there is a single virtual
            neuron, or the lower layer is not the target's input.
        """
        self._check(channel)
        p = self.parameters
        module = closed_form(self.model, p.target, p.lower)
        if module is None:
            parts = get_layer(self.model, p.target).named_modules(prefix=p.target)
            inside = [repr(name) for name, part in parts if type(part) in (nn.Conv2d, nn.Linear)]
            raise StudyError(
                f"a channel is split by the inputs of its own layer, and target={p.target!r} with lower={p.lower!r} is "
                f"no such pair. Choose a Conv2d or Linear as the target ({', '.join(inside[:6]) or 'none is inside'}) "
                f"and '{INPUT}' with its name as the lower layer"
            )
        if classes is None:
            names, images, samples, concept, arvs = self._virtual_concepts(channel)
        else:
            names, images, samples, concept, arvs = self._class_concepts(channel, classes)
        few = [name for name, count in zip(names, np.bincount(concept, minlength=len(names))) if count < 2]
        if few:
            raise StudyError(f"channel {channel} can't be split: each concept needs two images, {few[0]} has fewer")
        arvs = arvs[:, channel_sources(module, channel)]
        measured = part_activations(
            self.model,
            images,
            samples,
            layer=p.target,
            channel=channel,
            arvs=arvs,
            labels=None if classes is None else self._labels[0][samples],
            share=p.share,
            mass=p.mass or None,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
        )
        return Split.chosen(measured, concept, names, arvs, score)

    def _class_concepts(self, channel: int, classes: Sequence[str]) -> _Concepts:
        labels, names = self._labels
        unknown = [name for name in classes if name not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, n=3, cutoff=0.4) or names[:8]
            raise StudyError(f"there is no class {unknown[0]!r} among {len(names)}; near it: {', '.join(near)}")
        if len(set(classes)) < max(2, len(classes)):
            raise StudyError(f"a channel is split between two or more different classes, got {list(classes)}")
        numbers = [names.index(name) for name in classes]
        arvs = self.classes.arv(self.model, channel, numbers)
        samples = self._samples_of(numbers)
        concept = np.array([numbers.index(label) for label in labels[samples]], dtype=np.int64)
        return tuple(classes), self.labelled, samples, concept, arvs

    def _samples_of(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """The labelled images of some classes, without those that could not be read."""
        samples = np.flatnonzero(np.isin(self._labels[0], classes))
        return samples[~np.isin(samples, [lost.sample for lost in self._classified[1]])]

    def _virtual_concepts(self, channel: int) -> _Concepts:
        neuron = self.neuron(channel)
        parts, vectors = neuron.virtual, neuron.vectors.astype(np.float64)
        if parts.k < 2:
            raise StudyError(
                f"channel {channel} does not fall apart, so there is nothing to split it between; name classes, or ask "
                "for parts with k=2"
            )
        used = np.flatnonzero(parts.labels >= 0)
        arvs = np.stack([vectors[parts.labels == part].mean(axis=0) for part in range(parts.k)])
        names = tuple(part_name(part) for part in range(parts.k))
        return names, self.images, neuron.sample[used], parts.labels[used], arvs

    def ratios(self, gamma: float = 0.5) -> pd.DataFrame:
        """How well splits work on the whole: one for each gamma-polysemantic pair (Hesse et al., their average table).

        Parameters
        ----------
        gamma
            Pairs with a cosine below it; see :func:`pure_nb.relevance.gamma_polysemantic`.

        Returns
        -------
        DataFrame
            A row for each pair: ``channel``, ``class_1``, ``class_2``, ``cosine``, ``rho``; and the means of
            :meth:`pure_nb.splitting.Split.table` over both classes: ``own`` (ratio of a class's own part to the whole
            channel), ``other`` (of the other class's part), ``residual``. All four are NaN where a class has fewer
            than two images. Pairs of one channel are not independent: average over its pairs first.
        """
        key = self._classes_key() | {"step": "ratios", "p": self.parameters.p, "gamma": gamma}
        return self.kept_table("ratios", key, lambda _: self._ratios(gamma))

    def _ratios(self, gamma: float) -> pd.DataFrame:
        rows: list[tuple[Any, ...]] = []
        chosen = gamma_polysemantic(self.pairs, gamma)
        pairs = chosen[["channel", "class_1", "class_2", "cosine"]].itertuples(index=False, name=None)
        for channel, *classes, value in tqdm(pairs, "splits", len(chosen), unit="pair", disable=not self.progress):
            if min(self.classes.images[self.class_names.index(name)] for name in classes) < 2:
                rows.append((channel, *classes, value, *[np.nan] * 4))
                continue
            split = self.split_of(channel, classes)
            table = split.table()
            own, rest = table["part"] == table["images"], table["part"] == "residual"
            means = [table["ratio"][which].mean() for which in (own, ~own & ~rest, rest)]
            rows.append((channel, *classes, value, split.rho, *means))
        columns = ["channel", "class_1", "class_2", "cosine", "rho", "own", "other", "residual"]
        return pd.DataFrame(rows, columns=columns)

    def pictures_of(self, name: str, count: int = 5) -> list[NDArray[np.uint8]]:
        """The first labelled images of a class, as pictures."""
        chosen = self._samples_of([self.class_names.index(name)])[:count]
        return [self.labelled.picture(sample) for sample in chosen.tolist()]

    def _sweep(self, accumulators: list[Any], images: Images, shards: Store | None) -> list[Unreadable]:
        return sweep(
            self.model,
            images,
            accumulators,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
            skip_unreadable=self.skip_unreadable,
            precision=self.parameters.precision,
            store=shards,
            client=self.client,
            progress=self.progress,
        )

    def _split(self, vectors: Iterable[NDArray[np.float32]], parallel: Parallel | None = None) -> list[VirtualNeurons]:
        """Take channels apart, each by its relevance vectors, as the parameters say."""
        how = {"k": self.parameters.k or "auto", "seed": self.parameters.random}
        return list((parallel or Parallel(n_jobs=1))(delayed(virtual_neurons)(own, **how) for own in vectors))

    @cached_property
    def objects(self) -> NDArray[np.int64] | None:
        """The class of the object under each reference's maximum, ``[channels, n]``; None where that is not known."""
        scenes = self.images.scenes
        if scenes is None or len(self.references.grid) != 2:  # without a grid there is no place to look at
            return None

        def compute(_: Store | None) -> tuple[Arrays, None]:
            return {"label": truth.objects_at_maxima(scenes, self.references)}, None

        return self._kept("objects", self._references_key() | {"step": "objects"}, compute)[0]["label"]

    @property
    def boxes(self) -> NDArray[np.int32]:
        """The squares that each channel looks at in its references, by the parameter ``crop``: ``[channels, n, 4]``.

        See :func:`pure_nb.render.boxes`. Where the rules of CRP do not fit the network, a warning says so and the
        activation map is used, or the whole picture where the layer has no grid.
        """
        return self._boxed[0]

    @property
    def crop_note(self) -> str:
        """How the crops differ from what was asked for, and why; "" if they do not."""
        return self._boxed[1]

    @cached_property
    def _boxed(self) -> tuple[NDArray[np.int32], str]:
        wanted = self.parameters.crop

        def compute(blocks: Store | None) -> tuple[Arrays, str]:
            sample = self.references.sample
            channel = np.broadcast_to(np.arange(len(sample))[:, None], sample.shape)
            how: dict[str, Any] = {
                "look": "activation" if wanted == "activation" else "crp",
                "seed": "peak" if wanted == "peak" else "activation",
                "batch_size": min(self.batch_size, 16),
                "device": self.device,
                "store": blocks,
                "progress": self.progress,
                "client": self.client,
            }
            layer, note = self.parameters.target, ""
            try:
                found = boxes(self.model, self.images, channel, sample, target=layer, **how)
            except LayerError as problem:
                if len(self.references.grid) == 2 and wanted != "activation":
                    note = f"crops follow the activation map, since {problem}"
                    how["look"] = "activation"
                    found = boxes(self.model, self.images, channel, sample, target=layer, **how)
                else:
                    note = f"crops are whole pictures, since {problem}"
                    height, width = self.images.example.shape[-2:]
                    found = np.tile(np.array([0, 0, width, height], dtype=np.int32), (*sample.shape, 1))
            return {"box": found}, note

        arrays, note = self._kept("boxes", self._boxes_key(), compute)
        if note:
            warnings.warn(note, StudyWarning, stacklevel=3)
        return arrays["box"], note

    @property
    def driven(self) -> NDArray[np.bool_]:
        """Bool ``[channels, n]``: which references drive their channel at all, by a positive activation."""
        return self.references.score > 0

    def views(
        self, channel: NDArray[np.int64], sample: NDArray[np.int64], look: Look = "crp", seed: Seed = "peak"
    ) -> list[View]:
        """Pictures for pairs of a channel and an image, with the part that the channel looks at.

        Unlike the paper's, they show what is behind the *maximum* of the activation; ``seed="activation"`` gives the
        paper's. See :func:`pure_nb.render.heatmaps`. Where the rules of CRP do not fit the network, a warning says so
        and the activation map is used, or the whole picture where the layer has no grid.
        """
        layer = self.parameters.target
        how: dict[str, Any] = {"batch_size": min(self.batch_size, 16), "device": self.device}
        try:
            return views(self.model, self.images, channel, sample, target=layer, look=look, seed=seed, **how)
        except LayerError as problem:
            if look == "crp" and len(self.references.grid) == 2:
                warnings.warn(f"the activation map is shown, since {problem}", StudyWarning, stacklevel=2)
                return self.views(channel, sample, "activation")
            warnings.warn(f"whole pictures are shown, since {problem}", StudyWarning, stacklevel=2)
            pictures = [self.images.picture(number) for number in sample.tolist()]
            return [View(n, p, np.ones(p.shape[:2], dtype=bool)) for n, p in zip(sample.tolist(), pictures)]

    def crops_of(self, channel: int, ranks: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Crops of a channel's references of given ranks, as embedders see them: uint8 ``[side, side, 3]`` each."""
        self._check(channel)
        numbers, places = self.references.sample[channel], self.boxes[channel]
        return [cropped(self.images.picture(int(numbers[rank])), places[rank]) for rank in ranks]

    def embeddings(self, embedder: Embedder) -> NDArray[np.float32]:
        """An embedder's vectors of the crops of all references: float32 ``[channels, n, d]``.

        Each image is read once, however many channels it is a reference for.
        """

        def compute(blocks: Store | None, new: New) -> NDArray[np.float32]:
            sample, box = self.references.sample.ravel(), self.boxes.reshape(-1, 4)

            lengths: set[int] = set()

            def of(block: NDArray[np.int64], done: Callable[[int], Any]) -> NDArray[np.float32]:
                parts, last, picture = [], -1, np.empty(0, dtype=np.uint8)
                for start in range(0, len(block), CROPS):
                    crops = []
                    for row in block[start : start + CROPS].tolist():  # the pairs of one image follow each other
                        if sample[row] != last:
                            last = int(sample[row])
                            picture = self.images.picture(last)
                        crops.append(cropped(picture, box[row]))
                    parts.append(embedder.images(crops))
                    lengths.add(parts[-1].shape[1])
                    if len(lengths) > 1:
                        raise EmbedderError(f"{embedder.name} returned vectors of several lengths, {sorted(lengths)}")
                    done(len(crops))
                return np.concatenate(parts)

            name = f"crops to {embedder.name}"
            how: dict[str, Any] = {"store": blocks, "new": new, "progress": self.progress}
            return by_blocks(sample, of, batch_size=self.batch_size, name=name, unit="crop", **how)

        key = self._boxes_key() | {"step": "embeddings", "how": FORMAT["embeddings"], "embedder": embedder.fingerprint}
        return self._kept_mapped("embeddings", key, compute).reshape(*self.references.sample.shape, -1)

    def word_vectors(self, embedder: Embedder, words: Sequence[str]) -> NDArray[np.float32]:
        """An embedder's vectors of words, float32 ``[words, d]``; kept, since a large vocabulary takes long."""
        asked = {"embedder": embedder.fingerprint, "prompts": list(embedder.prompts), "words": list(words)}
        key: dict[str, object] = {"step": "words", **asked}
        return self._kept("words", key, lambda _: ({"vectors": embedder.text(words)}, None))[0]["vectors"]

    @cached_property
    def activation_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Simpler descriptions of the references than circuits: see :func:`pure_nb.truth.activation_vectors`."""

        def compute(_: Store | None) -> tuple[Arrays, None]:
            p = self.parameters
            how: dict[str, Any] = {"batch_size": self.batch_size, "device": self.device}
            return truth.activation_vectors(self.model, self.images, self.references, p.lower, **how), None

        return self._kept("activations", self._key("activations", "target", "lower", "n", "by"), compute)[0]

    @cached_property
    def layouts(self) -> NDArray[np.float32]:
        """The circuits of all channels laid out in the plane by UMAP, float32 ``[channels, n, 2]``."""

        def compute(_: Store | None) -> tuple[Arrays, None]:
            return {"points": np.stack([embed(own, seed=self.parameters.random) for own in self.circuits])}, None

        return self._kept("layouts", self._layouts_key(), compute)[0]["points"]

    def layout_of(self, channel: int, vectors: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """One channel's circuits in the plane, ``[n, 2]``; it alone where all would take long."""
        self._check(channel)
        if self._whole("layouts", self._layouts_key()):
            return self.layouts[channel]
        return embed(self.circuits_of(channel) if vectors is None else vectors, seed=self.parameters.random)

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """One row for each channel, the most polysemantic first.

        Columns: ``channel``; ``k`` virtual neurons; ``score`` and ``p`` of :class:`~pure_nb.virtual.VirtualNeurons`;
        ``q``, the false-discovery rate among the living neurons whose ``p`` is no larger (Benjamini and Hochberg), by
        which to count the polysemantic ones: of those with ``q <= 0.05`` one in twenty is expected to be a single heap;
        ``sizes`` of the parts; ``strongest`` activation; ``meanings`` as :meth:`pure_nb.neuron.Neuron.meanings` gives
        them; and where the objects are known, the agreement ``ami`` of the parts with them. Dead channels come last.
        """
        return self.kept_table("neurons", self._key("neurons", *TAKEN_APART), lambda _: self._neurons())

    def _neurons(self) -> pd.DataFrame:
        references, rows = self.references, []
        for channel, parts in enumerate(self.virtual):
            row: dict[str, Any] = {
                "channel": channel,
                "k": parts.k,
                "score": parts.score if references.alive[channel] else np.nan,
                "p": parts.p,
                "q": np.nan,
                "sizes": " ".join(str(size) for size in parts.sizes),
                "strongest": float(references.score[channel, 0]),
                "meanings": self.neuron(channel).meanings(),
            }
            if self.objects is not None:
                row["ami"] = adjusted_mutual_info_score(self.objects[channel], parts.labels)
            rows.append(row)
        table = pd.DataFrame(rows)
        table.loc[references.alive, "q"] = false_discovery_control(table.loc[references.alive, "p"])
        return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def most_polysemantic(self, count: int = 32) -> list[int]:
        """The first channels of :attr:`neurons`, without the dead: what an explorer can show of any study.

        ``sorted(study.most_polysemantic())`` are all channels of a small network, and 32 of a large one.
        """
        living = self.neurons.loc[self.references.alive[self.neurons["channel"]], "channel"]
        return [int(channel) for channel in living[:count]]

    def neuron(self, channel: int) -> Neuron:
        """One channel of the target layer, to look at.

        Raises
        ------
        ArgumentError
            If there is no such channel.
        """
        from pure_nb.neuron import Neuron  # here, since a neuron refers back to its study

        self._check(channel)
        return Neuron(self, int(channel))

    def _check(self, channel: int) -> None:
        if not 0 <= channel < self.shapes[0].channels:
            raise ArgumentError(
                f"channel {channel}: layer {self.parameters.target!r} has channels 0 to {self.shapes[0].channels - 1}"
            )

    def _run_circuits(
        self, channel: NDArray[np.int64], sample: NDArray[np.int64], images: Images | None = None, **how: Any
    ) -> NDArray[np.float32]:
        p = self.parameters
        return circuits(
            self.model,
            self.images if images is None else images,
            channel,
            sample,
            target=p.target,
            lower=p.lower,
            rule=p.rule,
            seed=p.seed,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
            **how,
        )

    def _kept(
        self,
        step: str,
        key: dict[str, object],
        compute: Callable[[Store | None], tuple[Arrays, Any]],
        parts_key: dict[str, object] | None = None,
    ) -> tuple[Arrays, Any]:
        """Arrays and a note of a step: from the store, or computed now and kept there.

        ``compute`` gets a store for the parts of its result, for whoever has to go on after a stop; it is cleared
        when the whole is safe. The parts may depend on more than the result: ``parts_key``.
        """
        if self.store is None:
            return compute(None)
        store, parts = self.store, self._parts(step, parts_key or key)

        def keep() -> tuple[Arrays, Any]:
            arrays, note = compute(parts)
            store.save_arrays(step, key, arrays, note)
            return arrays, note

        return self._once(step, key, lambda: store.load_arrays(step, key), keep, parts)

    def _kept_mapped(
        self, step: str, key: dict[str, object], compute: Callable[[Store | None, New], NDArray[Any]]
    ) -> NDArray[Any]:
        """One large array: mapped from the store, or computed now, in a file, and mapped then; see :meth:`_kept`.

        ``compute`` also gets a function that makes the array.
        """
        if self.store is None:
            return compute(None, np.empty)
        store, parts = self.store, self._parts(step, key)

        def keep() -> NDArray[Any]:
            store.save_mapped(step, key, lambda new: compute(parts, new))
            return np.load(store.path(step, key, ".npy"), mmap_mode="r", allow_pickle=False)

        return self._once(step, key, lambda: store.load_mapped(step, key), keep, parts)

    def _once(
        self, step: str, key: dict[str, object], load: Callable[[], T | None], keep: Callable[[], T], parts: Store
    ) -> T:
        """What can be loaded; or else computed and kept, by one process at a time, and its parts cleared."""
        assert self.store is not None
        saved = load()
        if saved is not None and not parts.folder.parent.exists():
            return saved
        with self.store.claimed(step, key):
            saved = load()  # another process may have been at it, or was killed before it cleared the parts
            if saved is None:
                saved = keep()
            Store(parts.folder.parent).clear()  # and with them those that were made under other settings
        return saved

    def _parts(self, step: str, key: dict[str, object]) -> Store:
        """Where the parts of a step are kept, apart for all on which their last digits may depend."""
        assert self.store is not None
        how = {"device": self.device, "threads": torch.get_num_threads(), "channels_last": self.channels_last}
        return self.store.part(step, key).part("run", how)

    def kept_table(
        self, name: str, key: dict[str, object], compute: Callable[[Store | None], pd.DataFrame]
    ) -> pd.DataFrame:
        """A table: from the store, or computed now and kept there. ``compute`` gets a store as in :meth:`_kept`."""
        if self.store is None:
            return compute(None)
        store, parts = self.store, self._parts(name, key)

        def load() -> pd.DataFrame | None:
            saved = store.load_table(name, key)
            return saved[0] if saved else None

        def keep() -> pd.DataFrame:
            table = compute(parts)
            store.save_table(name, key, table)
            return table

        return self._once(name, key, load, keep, parts)

    def _classes_key(self) -> dict[str, object]:
        limit = "mass" if self.parameters.mass else "share"
        return self._key("classes", "target", "lower", limit, "random") | {"images": self.labelled.fingerprint}

    def _references_key(self) -> dict[str, object]:
        return self._key("references", "target", "n", "by")

    def _boxes_key(self) -> dict[str, object]:
        return self._key("boxes", "target", "n", "by", "crop")

    def _layouts_key(self) -> dict[str, object]:
        return self._key("layouts", "target", "lower", "n", "by", "rule", "seed", "random")

    def _circuits_key(self) -> dict[str, object]:
        return self._key("circuits", "target", "lower", "n", "by", "rule", "seed")

    @property
    def identity(self) -> dict[str, str]:
        """What stands for the network and the images in keys of results."""
        lowered = {} if self.parameters.precision == "float32" else {"precision": self.parameters.precision}
        return {"weights": self._weights, "images": self.images.fingerprint, **lowered}

    @cached_property
    def _weights(self) -> str:
        return models.fingerprint(self.model)

    def _key(self, step: str, *parameters: str) -> dict[str, object]:
        """What a result depends on."""
        found: dict[str, object] = {name: getattr(self.parameters, name) for name in parameters}
        if "n" in parameters and step != "references":
            found["references"] = self._ranked
        return {"step": step, "format": FORMAT[step], **self.identity, **found}

    @cached_property
    def _ranked(self) -> str:
        """Stands for the references: what is said of them is in their order, which the last digit may decide."""
        return hashlib.sha256(self._found[0].sample.tobytes()).hexdigest()[:16]
