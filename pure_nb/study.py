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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pure_nb.compute.bars import progress_bar
from pure_nb.compute.blocks import by_blocks
from pure_nb.compute.store import Arrays, New, Store, store_folder
from pure_nb.compute.sweep import sweep
from pure_nb.errors import (
    ArgumentError,
    EmbedderError,
    ImageError,
    LayerError,
    StudyError,
    StudyWarning,
)
from pure_nb.figures.render import View, boxes, cropped, views
from pure_nb.images.data import Images, Unreadable, at_chance, batches, class_labels, readable, seen_labels
from pure_nb.images.sources import as_images
from pure_nb.judges import truth
from pure_nb.methods.circuits import circuits, propagate
from pure_nb.methods.concord import Concord, concord, similarity_matrix, with_similarities
from pure_nb.methods.references import References, TopReferences
from pure_nb.methods.relevance import (
    Clamp,
    ClassRelevance,
    ClassStatistics,
    class_pairs,
    closed_form,
    dense_weight,
    gamma_polysemantic,
    pooled_inputs,
)
from pure_nb.methods.splitting import (
    Ownership,
    PartActivations,
    Score,
    Split,
    channel_sources,
    every_second,
    part_activations,
)
from pure_nb.methods.virtual import (
    MANY,
    NEURONS,
    VirtualNeurons,
    embed,
    packed,
    part_name,
    refitted,
    unpacked,
    virtual_neurons,
)
from pure_nb.network import models
from pure_nb.network.layers import (
    INPUT,
    LayerShape,
    activations,
    as_weights,
    by_position,
    computes_plainly,
    get_layer,
    nearest_below,
    placed,
    require,
    require_output,
    resting,
    survey,
)
from pure_nb.neuron import Neuron
from pure_nb.parameters import NEAREST, PARAMETERS, Crop, Parameters, checked, whole, word

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.utils.parallel import Parallel

    from pure_nb.compute.cluster import Cluster
    from pure_nb.judges.embedders import Embedder
    from pure_nb.methods.wordnet import WordNet


T = TypeVar("T")

FORMAT = {
    "references": 4,
    "circuits": 5,
    "virtual": 8,
    "layouts": 5,
    "neurons": 8,
    "labels": 1,
    "classes": 5,
    "boxes": 3,
    "embeddings": 3,
    "activations": 3,
    "objects": 1,
    "ratios": 2,
}
"""Part of what a stored step is found by; raised when this package computes it, or one before it, differently."""


def outdated(key: Mapping[str, object]) -> bool:
    """Whether a stored result is computed differently now, so that no study finds it any more."""
    step = str(key.get("step"))
    step = {"embeddings": "boxes", "ratios": "classes"}.get(step, step)  # whose keys are theirs, with more in them
    return step in FORMAT and key.get("format") != FORMAT[step]


TAKEN_APART = ("target", "lower", "n", "by", "rule", "seed", "k", "random")
"""The parameters that virtual neurons depend on."""

SMALL = 4_000
"""Pairs of a channel and a reference, up to which a study never computes a single channel alone."""


MANY_BACKWARD = 128
"""Channels from which on class relevance without a closed form is computed only when asked for."""

CROPS = 256
"""Crops cut at once, to be embedded."""

_Concepts = tuple[tuple[str, ...], Images, NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]
"""What a channel is split between: names, images, numbers of those that show a concept, which one, those that the split
is fitted to, and ARVs."""


RUN = {"batch_size", "device", "workers", "skip_unreadable", "channels_last", "progress", "client"}
"""What a study can be told of how to run."""


def repeated(model: nn.Module, images: Images) -> Images:
    """Images for a network: grey ones with their channel three times, if it takes them so only."""
    model = models.unwrapped(model)  # one that can't be run is refused before it is
    with suppress(ImageError), resting(model), torch.no_grad():  # what can't be read is said when it is needed
        example = images.example[None].to(next((p.device for p in model.parameters()), "cpu"))
        for channels in (None, 3) if example.shape[1] == 1 else ():
            with suppress(Exception):  # whatever a network raises
                model(as_weights(model, example.expand(-1, channels or 1, -1, -1)))
                return replace(images, channels=channels) if channels else images
    return images


def _require_device(device: str) -> None:
    """Raise torch's own error if this process can't use a device, or if it computes nothing, as ``meta``."""
    torch.zeros(1, device=device).item()


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
        ``channels_last`` lays the network's weights out in memory as many GPUs like them, while it runs.
    client
        A Dask cluster to run on, from :func:`pure_nb.compute.cluster.connect`; None runs here.
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
    client: Cluster | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", models.unwrapped(self.model))
        p = self.parameters
        if p.lower == NEAREST:
            object.__setattr__(self, "parameters", replace(p, lower=nearest_below(self.model, p.target)))
        for name, least in (("batch_size", 1), ("workers", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name in ("skip_unreadable", "channels_last", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise StudyError(f"{name} must be true or false, got {getattr(self, name)!r}")
        object.__setattr__(self, "device", str(self.device))  # a torch.device, too
        try:
            if self.client is None:
                _require_device(self.device)
            else:
                self.client.run(_require_device, self.device)  # on each worker; this process need not have it
        except (RuntimeError, AssertionError) as problem:  # torch without CUDA asserts
            raise StudyError(
                f"the device {self.device!r} can't be used here: {str(problem).splitlines()[0]}"
            ) from problem

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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> Study:
        """A study of your own network and data set.

        Parameters
        ----------
        model
            Any torch network.
        images
            A data set, tensors ``[N, C, H, W]``, a list of files, a folder, or a data set of Hugging Face: all that
            :func:`pure_nb.images.sources.as_images` takes. Labels are not needed.
        target, lower
            Names of the two layers.
        name, store
            Results are kept in the folder ``store / name``; by default in the user's cache. Two studies may share both.
        mean, std
            The normalisation of the images, where they do not tell by themselves, as tensors and many transforms don't:
            it is undone to look at them, and for embedders. See :func:`pure_nb.images.sources.as_images`.
        options
            Anything else of :class:`Parameters`, and how to run: ``device="cuda"``, ``batch_size=64``.

        Raises
        ------
        LayerError, ImageError
            If a layer or the images can't be used.
        """
        wrapped = repeated(model, as_images(images, name, mean=mean, std=std))
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
        with placed(self.model, self.here):
            example = self.images.example[None].to(self.here)
            return require(self.model, example, self.parameters.target, self.parameters.lower)

    def survey(self) -> list[LayerShape]:
        """All layers that can be studied: see :func:`pure_nb.network.layers.survey`."""
        with placed(self.model, self.here):
            return survey(self.model, self.images.example[None].to(self.here))

    def _laid_out(self) -> AbstractContextManager[nn.Module]:
        """Within it, the network's weights lie in memory as asked for."""
        return placed(self.model, layout=torch.channels_last if self.channels_last else None)

    @property
    def here(self) -> str:
        """Where this process itself runs networks: the device, or the CPU where that is one of a cluster's workers."""
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
            return self._run_circuits(channel, sample, store=blocks, new=new, progress=self.progress)

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
        own = self.circuits_of(channel) if vectors is None else vectors
        return self._split(own[None], self.driven[[channel]])[0]

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
            The new images, as for :func:`pure_nb.images.sources.as_images`, and which of them; all of them by default.

        Returns
        -------
        ndarray
            int64 ``[samples]``: labels as in :attr:`VirtualNeurons.labels`, with -1 for images that do not drive the
            channel.
        """
        images = repeated(self.model, as_images(images))
        every = np.arange(len(images)) if samples is None else np.asarray(samples, dtype=np.int64)
        vectors = self._run_circuits(np.full_like(every, channel), every, images=images)
        driven, target = [], self.parameters.target
        with resting(self.model, self.here), torch.inference_mode():
            for batch in readable(images, every.tolist(), batch_size=self.batch_size, workers=self.workers):
                maps = by_position(activations(self.model, batch.images.to(self.here), [target])[target])
                driven += (maps[:, channel].amax(dim=1) > 0).tolist()
        return np.where(driven, self.neuron(channel).virtual.assign(vectors), -1)

    @cached_property
    def virtual(self) -> list[VirtualNeurons]:
        """Every channel taken apart."""

        def compute(blocks: Store | None) -> tuple[Arrays, Any]:
            from sklearn.utils.parallel import Parallel  # late, see pure_nb._imports

            vectors, found = self.circuits, []
            bar = progress_bar(desc="virtual", total=len(vectors), unit="neuron", shown=self.progress)
            with bar, Parallel(n_jobs=-1 if len(vectors) >= MANY else 1) as parallel:
                for first in range(0, len(vectors), NEURONS):
                    saved = blocks.load_arrays("block", {"first": first}) if blocks else None
                    some = slice(first, first + NEURONS)
                    part = unpacked(*saved) if saved else self._split(vectors[some], self.driven[some], parallel)
                    if blocks and not saved:
                        blocks.save_arrays("block", {"first": first}, *packed(part))
                    found += part
                    bar.update(len(part))
            return packed(found)

        return unpacked(*self._kept("virtual", self._key("virtual", *TAKEN_APART), compute))

    @cached_property
    def labelled(self) -> Images:
        """Images of one known class each: the study's own, or others that the data set has for that."""
        own: Images = getattr(self.images.dataset, "labelled", self.images)
        return own

    @cached_property
    def _labels(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """The true class of each labelled image, an index into the network's outputs; and all their names."""
        with placed(self.model, self.here):
            logits = require_output(self.model, self.labelled.example[None].to(self.here))
        if logits.grid:
            raise StudyError(
                "classes need a network that puts out one tensor [images, classes]; "
                f"{type(self.model).__name__} does not"
            )
        labels, names = class_labels(self.labelled, logits.channels)
        doubt = "" if self.images.drawn else self._doubt(labels)
        if doubt:
            warnings.warn(
                f"{doubt}, no more than by chance: what is said of classes will mean nothing. Are the classes in the "
                f"order of the network's outputs ({', '.join(names[:3])} ...)? If not, name the folders by the numbers "
                "of the outputs, from 0, or by ImageNet's WordNet ids. Are the images scaled and normalised as when "
                "the network was trained?",
                StudyWarning,
                stacklevel=3,
            )
        return labels, names

    def _doubt(self, labels: NDArray[np.int64]) -> str:
        """How badly the network's answers to some images fit their labels, if they don't; kept, as it needs them."""

        def compute(_: Store | None) -> tuple[Arrays, str]:
            seen: list[int] = []
            answers: list[NDArray[np.int64]] = []
            with resting(self.model, self.here), torch.no_grad():
                for batch in batches(self.labelled, seen_labels(labels).tolist(), batch_size=self.batch_size):
                    if len(batch.samples):
                        images = as_weights(self.model, batch.images.to(self.here))
                        answers.append(self.model(images).argmax(dim=1).cpu().numpy())
                        seen += batch.samples.tolist()
            own, said = labels[seen], np.concatenate([np.empty(0, np.int64), *answers])
            found = {"sample": np.array(seen, dtype=np.int64), "label": own, "answer": said}
            right = f"the network's largest output is the label of {(own == said).sum()} of {len(own)} images of "
            return found, f"{right}{self.labelled.name!r}" if at_chance(own, said) else ""

        key = {"step": "labels", "format": FORMAT["labels"], **self.identity, "images": self.labelled.fingerprint}
        return str(self._kept("labels", key, compute)[1])

    @cached_property
    def without_labels(self) -> str:
        """Why the images' labels can't be told as outputs of the network; "" if they can."""
        self.labelled.example  # noqa: B018  raises where no image can be read, which is another matter
        try:
            self._labels  # noqa: B018
        except (ImageError, StudyError) as problem:
            return str(problem)
        return ""

    @cached_property
    def without_lrp(self) -> str:
        """Why the rules of layer-wise relevance propagation do not fit between the two layers; "" if they do."""
        return self._misfit(self.parameters.lower)

    @cached_property
    def _without_crp(self) -> str:
        return self._misfit(None)

    def _misfit(self, lower: str | None) -> str:
        """Why these rules do not fit down to a layer, or to the images for None: tried on one reference image.

        Whatever fails later is another matter, and no reason to do without them.
        """
        how: dict[str, Any] = {"target": self.parameters.target, "lower": lower, "rule": "lrp", "device": self.here}
        sample = self.references.sample[0, :1]
        try:
            with closing(propagate(self.model, self.images, np.zeros(1, np.int64), sample, **how)) as flows:
                next(flows)
        except LayerError as problem:
            return str(problem)
        return ""

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

        See :func:`pure_nb.methods.relevance.class_pairs`; :func:`pure_nb.methods.relevance.gamma_polysemantic` picks
        from it. If there is none, a warning says what would find some.
        """
        found, p = class_pairs(self.classes, self.model, self.class_names, p=self.parameters.p), self.parameters
        if found.empty:
            limit = f"mass={p.mass:g}" if p.mass else f"share={p.share:g}"
            answer = "a larger mass" if p.mass else "mass=0.8, which means the same in every width,"
            warnings.warn(
                f"no channel of {p.target!r} is relevant to two classes by {limit} in {p.p:.0%} of their images, so "
                f"there are no pairs; {answer} or a smaller p may find some",
                StudyWarning,
                stacklevel=3,
            )
        return found

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
            Some of :data:`pure_nb.methods.wordnet.MEASURES`.
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
            One of :data:`pure_nb.methods.wordnet.MEASURES`.
        wordnet, synsets
            As in :meth:`wordnet_pairs`.
        how
            Of :func:`pure_nb.methods.concord.concord`: ``permutations``, ``replicates``, ``level``, ``seed``.

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
        from pure_nb.methods.wordnet import find_wordnet, shipped_wordnet  # late: not everyone has NLTK

        return shipped_wordnet() if self.images.drawn else find_wordnet()

    def split_of(
        self,
        channel: int,
        classes: Sequence[str] | None = None,
        score: Score = "bounded",
        *,
        ownership: Ownership = "symmetric",
        clamp: Clamp = "channels",
        held_out: bool = True,
        validation: Any = None,
    ) -> Split:
        """One channel of the target layer split between classes, or between its virtual neurons.

        The first is done by its average relevance vectors and the labelled images of the classes. The second needs no
        labels: a virtual neuron's vector is the mean of its circuits, and its images are those of its references.

        The split is fitted to every second of these images: they make the vectors, and they choose the threshold. The
        others are for validation. For virtual neurons they are also kept out of the clusters: those of the fitted half
        alone are found anew, as many as the neuron has and named after its own, and each of the other images belongs to
        the nearest.

        Parameters
        ----------
        channel
            Of the target layer, a ``Conv2d`` or ``Linear``; the lower layer must be its own input.
        classes
            Names of at least two classes; None takes the virtual neurons, named A, B ...
        score
            By which the threshold is chosen: see :func:`pure_nb.methods.splitting.choose_rho`.
        ownership
            By which rule sources are owned: see :func:`pure_nb.methods.splitting.owners`.
        clamp
            How it is found in which validation images the channel is relevant: see
            :func:`pure_nb.methods.relevance.attributed`.
        held_out
            If False, all images make the vectors, and the clusters are the neuron's own: the images for validation then
            are so for the threshold only.
        validation
            Images of one's own for validation, as for :func:`pure_nb.images.sources.as_images`, with labels if it is a
            split between classes. It then is fitted to all images of the study.

        Raises
        ------
        StudyError
            If a class is not known, a class or virtual neuron has fewer than two images, or none for validation, there
            is a single virtual neuron, or the lower layer is not the target's input.
        """
        self._check(channel)
        p = self.parameters
        module = closed_form(self.model, p.target, p.lower)
        if module is None:
            parts = get_layer(self.model, p.target).named_modules(prefix=p.target)
            inside = [repr(name) for name, part in parts if computes_plainly(part)]
            raise StudyError(
                f"a channel is split by the inputs of its own layer, and target={p.target!r} with lower={p.lower!r} is "
                f"no such pair. Choose a Conv2d or Linear as the target ({', '.join(inside[:6]) or 'none is inside'}) "
                f"and '{INPUT}' with its name as the lower layer"
            )
        halved = held_out and validation is None
        if classes is None:
            names, images, samples, concept, training, arvs = self._virtual_concepts(channel, halved)
        else:
            names, images, samples, concept, training, arvs = self._class_concepts(channel, classes, halved)
        arvs = arvs[:, channel_sources(module, channel)]

        def measured(images: Images, samples: NDArray[np.int64], concept: NDArray[np.int64]) -> PartActivations:
            outputs = None if classes is None else np.array([self.class_names.index(name) for name in classes])[concept]
            return part_activations(
                self.model,
                images,
                samples,
                layer=p.target,
                channel=channel,
                arvs=arvs,
                ownership=ownership,
                labels=outputs,
                share=p.share,
                mass=p.mass or None,
                clamp=clamp,
                batch_size=self.batch_size,
                device=self.here,
                workers=self.workers,
            )

        found = measured(images, samples, concept)
        if validation is not None:
            images = as_images(validation, "validation")
            samples, more = self._validation_concepts(channel, classes, images)
            found = found.followed_by(measured(images, samples, more))
            training = np.arange(len(concept) + len(more)) < len(concept)
            concept = np.concatenate([concept, more])
        return Split.chosen(found, concept, names, arvs, score, training)

    def _class_concepts(self, channel: int, classes: Sequence[str], halved: bool) -> _Concepts:
        labels, names = self._labels
        unknown = [name for name in classes if name not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, n=3, cutoff=0.4) or names[:8]
            raise StudyError(f"there is no class {unknown[0]!r} among {len(names)}; near it: {', '.join(near)}")
        if len(set(classes)) < max(2, len(classes)):
            raise StudyError(f"a channel is split between two or more different classes, got {list(classes)}")
        numbers = [names.index(name) for name in classes]
        samples = self._samples_of(numbers)
        concept = np.array([numbers.index(label) for label in labels[samples]], dtype=np.int64)
        training = self._fitted(channel, classes, concept)
        if not halved:
            arvs = self.classes.arv(self.model, channel, numbers)
            return tuple(classes), self.labelled, samples, concept, training, arvs
        p, chosen = self.parameters, samples[training]
        how: dict[str, Any] = {"batch_size": self.batch_size, "device": self.here, "workers": self.workers}
        inputs = pooled_inputs(self.model, self.labelled, chosen, p.target, **how)
        means = np.stack([inputs[concept[training] == number].mean(axis=0) for number in range(len(classes))])
        arvs = (means * dense_weight(get_layer(self.model, p.target), channel)).sum(axis=2)
        return tuple(classes), self.labelled, samples, concept, training, arvs

    def _fitted(self, channel: int, names: Sequence[str], concept: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Every second image of each concept, if each has two."""
        few = [name for name, count in zip(names, np.bincount(concept, minlength=len(names))) if count < 2]
        if few:
            raise StudyError(f"channel {channel} can't be split: each concept needs two images, {few[0]} has fewer")
        return every_second(concept)

    def _samples_of(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """The labelled images of some classes, without those that could not be read."""
        samples = np.flatnonzero(np.isin(self._labels[0], classes))
        return samples[~np.isin(samples, [lost.sample for lost in self._classified[1]])]

    def _virtual_concepts(self, channel: int, halved: bool) -> _Concepts:
        neuron = self.neuron(channel)
        parts = neuron.virtual
        if parts.k < 2:
            raise StudyError(
                f"channel {channel} does not fall apart, so there is nothing to split it between; name classes, or ask "
                "for parts with k=2"
            )
        used = np.flatnonzero(parts.labels >= 0)
        vectors, concept = neuron.vectors[used].astype(np.float64), parts.labels[used]
        names = tuple(part_name(part) for part in range(parts.k))
        training = self._fitted(channel, names, concept)
        if halved:
            concept = refitted(vectors, concept, training, seed=self.parameters.random)
        fitted = training if halved else np.ones_like(training)
        arvs = np.stack([vectors[fitted & (concept == part)].mean(axis=0) for part in range(parts.k)])
        return names, self.images, neuron.sample[used], concept, training, arvs

    def _validation_concepts(
        self, channel: int, classes: Sequence[str] | None, images: Images
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The images of one's own that show a concept, and which one."""
        if classes is None:
            every = np.arange(len(images))
            vectors = self._run_circuits(np.full_like(every, channel), every, images=images)
            driven = vectors.any(axis=1)
            return every[driven], self.neuron(channel).virtual.assign(vectors[driven])
        labels, names = class_labels(images, len(self.class_names))
        numbers = [names.index(name) if name in names else -2 for name in classes]
        for name, number in zip(classes, numbers):
            if not (labels == number).any():
                raise StudyError(
                    f"the images for validation show no {name!r}; their classes are {', '.join(names[:8])}"
                )
        samples = np.flatnonzero(np.isin(labels, numbers))
        return samples, np.array([numbers.index(label) for label in labels[samples]], dtype=np.int64)

    def ratios(self, gamma: float = 0.5, *, validation: Any = None, **how: Any) -> pd.DataFrame:
        """How well splits work on the whole: one for each gamma-polysemantic pair (Hesse et al., their average table).

        Parameters
        ----------
        gamma
            Pairs with a cosine below it; see :func:`pure_nb.methods.relevance.gamma_polysemantic`.
        validation, how
            Of :meth:`split_of`: ``score``, ``ownership``, ``clamp``, ``held_out``.

        Returns
        -------
        DataFrame
            A row for each pair: ``channel``, ``class_1``, ``class_2``, ``cosine``, ``rho``; and the means of
            :meth:`pure_nb.methods.splitting.Split.table` over both classes, of its positive and of its signed ratios:
            ``positive_own`` and ``signed_own`` (a class's own part to the whole channel), ``positive_other`` and
            ``signed_other`` (of the other class's part), ``positive_residual`` and ``signed_residual``. All are NaN
            where a class has fewer than two images. Pairs of one channel are not independent: average over its pairs
            first.
        """
        if validation is not None:
            how["validation"] = as_images(validation, "validation")
        asked = {name: getattr(value, "fingerprint", value) for name, value in sorted(how.items())}
        key = self._classes_key() | {"step": "ratios", "how": FORMAT["ratios"], "p": self.parameters.p, "gamma": gamma}
        return self.kept_table("ratios", key | asked, lambda _: self._ratios(gamma, how))

    def _ratios(self, gamma: float, how: dict[str, Any]) -> pd.DataFrame:
        import pandas as pd  # late, see pure_nb._imports

        rows: list[tuple[Any, ...]] = []
        chosen = gamma_polysemantic(self.pairs, gamma)
        pairs = chosen[["channel", "class_1", "class_2", "cosine"]].itertuples(index=False, name=None)
        for channel, *classes, value in progress_bar(pairs, "splits", len(chosen), unit="pair", shown=self.progress):
            if min(self.classes.images[self.class_names.index(name)] for name in classes) < 2:
                rows.append((channel, *classes, value, *[np.nan] * 7))
                continue
            split = self.split_of(channel, classes, **how)
            table = split.table()
            own, rest = table["part"] == table["images"], table["part"] == "residual"
            parts = (own, ~own & ~rest, rest)
            means = [table[sums][which].mean() for sums in ("positive", "signed") for which in parts]
            rows.append((channel, *classes, value, split.rho, *means))
        ratios = [f"{sums}_{part}" for sums in ("positive", "signed") for part in ("own", "other", "residual")]
        return pd.DataFrame(rows, columns=["channel", "class_1", "class_2", "cosine", "rho", *ratios])

    def pictures_of(self, name: str, count: int = 5) -> list[NDArray[np.uint8]]:
        """The first labelled images of a class, as pictures."""
        chosen = self._samples_of([self.class_names.index(name)])[:count]
        return [self.labelled.picture(sample) for sample in chosen.tolist()]

    def _sweep(self, accumulators: list[Any], images: Images, shards: Store | None) -> list[Unreadable]:
        with self._laid_out():
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

    def _split(
        self, vectors: NDArray[np.float32], driven: NDArray[np.bool_], parallel: Parallel | None = None
    ) -> list[VirtualNeurons]:
        """Take channels apart, each by the relevance vectors of the images that drive it, as the parameters say."""
        from sklearn.utils.parallel import Parallel, delayed  # late, see pure_nb._imports

        how = {"k": self.parameters.k or "auto", "seed": self.parameters.random}
        used = np.where(driven[..., None], vectors, 0)  # with seed="unit" the others have relevance too
        return list((parallel or Parallel(n_jobs=1))(delayed(virtual_neurons)(own, **how) for own in used))

    @cached_property
    def objects(self) -> NDArray[np.int64] | None:
        """The class of the object under each reference's maximum, ``[channels, n]``; None where that is not known."""
        known = self.images.truth
        if known is None or len(self.references.grid) != 2:  # without a grid there is no place to look at
            return None
        height, width = self.images.example.shape[-2:]

        def compute(_: Store | None) -> tuple[Arrays, None]:
            return {"label": truth.objects_at_maxima(known, self.references, (height, width))}, None

        return self._kept("objects", self._key("objects", "target", "n", "by"), compute)[0]["label"]

    @property
    def boxes(self) -> NDArray[np.int32]:
        """The squares that each channel looks at in its references, by the parameter ``crop``: ``[channels, n, 4]``.

        See :func:`pure_nb.figures.render.boxes`. Where the rules of CRP do not fit the network, a warning says so and
        the activation map is used, or the whole picture where the layer has no grid.
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
            crop, why = self._fitting(wanted)
            if crop is None:
                height, width = self.images.example.shape[-2:]
                found = np.tile(np.array([0, 0, width, height], dtype=np.int32), (*sample.shape, 1))
                return {"box": found}, f"crops are whole pictures, since {why}"
            found = boxes(
                self.model,
                self.images,
                channel,
                sample,
                target=self.parameters.target,
                crop=crop,
                batch_size=min(self.batch_size, 16),
                device=self.device,
                store=blocks,
                progress=self.progress,
                client=self.client,
            )
            return {"box": found}, f"crops follow the activation map, since {why}" if why else ""

        arrays, note = self._kept("boxes", self._boxes_key(), compute)
        if note:
            warnings.warn(note, StudyWarning, stacklevel=3)
        return arrays["box"], note

    def _fitting(self, crop: Crop) -> tuple[Crop | None, str]:
        """What pictures can be cropped to, None for nothing; and why, where that is not what was asked for."""
        why = "" if crop == "activation" else self._without_crp
        if crop != "activation" and not why:
            return crop, ""
        if len(self.references.grid) == 2:
            return "activation", why
        return None, why or f"layer {self.parameters.target!r} has no grid of positions to scale up; use crop='peak'"

    @property
    def driven(self) -> NDArray[np.bool_]:
        """Bool ``[channels, n]``: which references drive their channel at all, by a positive activation."""
        return self.references.driven

    def views(self, channel: NDArray[np.int64], sample: NDArray[np.int64], crop: Crop | None = None) -> list[View]:
        """Pictures for pairs of a channel and an image, with the part that the channel looks at.

        By the parameter ``crop``, or as told here; see :func:`pure_nb.figures.render.heatmaps`. Where the rules of CRP
        do not fit the network, a warning says so and the activation map is used, or the whole picture where the layer
        has no grid.
        """
        found, why = self._fitting(crop or self.parameters.crop)
        if found is None:
            warnings.warn(f"whole pictures are shown, since {why}", StudyWarning, stacklevel=2)
            pictures = [self.images.picture(number) for number in sample.tolist()]
            return [View(n, p, np.ones(p.shape[:2], dtype=bool)) for n, p in zip(sample.tolist(), pictures)]
        if why:
            warnings.warn(f"the activation map is shown, since {why}", StudyWarning, stacklevel=2)
        how: dict[str, Any] = {"batch_size": min(self.batch_size, 16), "device": self.here}
        return views(self.model, self.images, channel, sample, target=self.parameters.target, crop=found, **how)

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
        """Simpler descriptions of the references than circuits: see :func:`pure_nb.judges.truth.activation_vectors`."""

        def compute(_: Store | None) -> tuple[Arrays, None]:
            p = self.parameters
            how: dict[str, Any] = {"batch_size": self.batch_size, "device": self.here}
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

        Columns: ``channel``; ``k`` virtual neurons; ``score`` and ``p`` of
        :class:`~pure_nb.methods.virtual.VirtualNeurons`; ``q``, the false-discovery rate among the living neurons whose
        ``p`` is no larger (Benjamini and Hochberg), by which to count the polysemantic ones: of those with ``q <=
        0.05`` one in twenty is expected to be a single heap; ``sizes`` of the parts; ``strongest`` activation;
        ``meanings`` as :meth:`pure_nb.neuron.Neuron.meanings` gives them; and where the objects are known, the
        agreement ``ami`` of the parts with them. Dead channels come last.
        """
        return self.kept_table("neurons", self._key("neurons", *TAKEN_APART), lambda _: self._neurons())

    def _neurons(self) -> pd.DataFrame:
        import pandas as pd  # late, see pure_nb._imports
        from scipy.stats import false_discovery_control
        from sklearn.metrics import adjusted_mutual_info_score

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
        # Of those left whole, whose score is 0, the ones first that come nearest to falling apart.
        return table.sort_values(["score", "p"], ascending=[False, True], kind="stable", ignore_index=True)

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
        with self._laid_out():
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
                client=self.client,
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
            found["references"] = self.ranked
        return {"step": step, "format": FORMAT[step], **self.identity, **found}

    @cached_property
    def ranked(self) -> str:
        """Stands for the references: what is said of them is in their order, which the last digit may decide."""
        return hashlib.sha256(self._found[0].sample.tobytes()).hexdigest()[:16]
