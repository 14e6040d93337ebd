"""A study: one network, two of its layers, a set of images, and what was found out.

Each step is a property that is computed when first asked for, and kept on disk: the reference images, the circuits,
the virtual neurons, the table of all neurons. Nothing is computed again unless something it depends on changed.
"""

from __future__ import annotations

import hashlib
import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pure_nb import _batches
from pure_nb._keeping import replaced
from pure_nb._lacking import described, lacks
from pure_nb.ablating import ablate
from pure_nb.classes import Classes
from pure_nb.compute.results import ASKED, FORMAT, RULES, Results, as_before
from pure_nb.compute.store import Arrays, New, Store, store_folder
from pure_nb.compute.sweep import accepted, noted, sweep
from pure_nb.crops import Crops, misfit
from pure_nb.errors import ArgumentError, StudyError, StudyWarning
from pure_nb.estimating import estimate
from pure_nb.images._fitting import repeated
from pure_nb.images.data import Images
from pure_nb.images.reading import Unreadable
from pure_nb.images.sources import as_images
from pure_nb.judges import truth
from pure_nb.methods.circuits import circuits
from pure_nb.methods.combined import COMBINED
from pure_nb.methods.descriptions import Combined, by, clustered, clustered_of
from pure_nb.methods.quantiles import accumulator
from pure_nb.methods.references import References, TopReferences, warned_of_ties
from pure_nb.methods.virtual import VirtualNeurons, embed, packed, unpacked, virtual_neurons
from pure_nb.network import models
from pure_nb.network.dictionary import resolved
from pure_nb.network.layers import nearest_below
from pure_nb.network.shapes import LayerShape, require, survey
from pure_nb.neuron import Neuron, cluster_channels, lay_out, neuron_table, ranked
from pure_nb.notes import Notes
from pure_nb.parameters import AUTO, NEAREST, RUN, Parameters, Run, check_name, checked, renamed
from pure_nb.ranges import activation_range, stabilities
from pure_nb.reasons.explaining import explain
from pure_nb.reasons.graph import graph
from pure_nb.scores import scores
from pure_nb.searching import alike, search
from pure_nb.texts import text_effects

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.reasons.explaining import Explanation  # noqa: F401, which the methods below return
    from pure_nb.reasons.graph import Graph  # noqa: F401


def _boxes(study: Study) -> NDArray[np.int32]:
    """As :attr:`pure_nb.crops.Crops.boxes`."""
    return study.crops.boxes


@dataclass(frozen=True, eq=False)
class Study:
    """A network, its images, what is asked, and the store of what was found.

    Use :func:`load_study` for a study on disk, and :meth:`from_model` for your own module and data set.

    Attributes
    ----------
    name
        A word; names the folder of results.
    model, images, parameters
        What is studied, over what, and how.
    store, notes_file
        Where results are kept, None keeps them in memory only; and names by hand, None keeps them in the store.
    run
        How it is run.

    Examples
    --------
    >>> study = Study.from_model(model, images, target="layer4", lower="layer3", n_references=6)
    >>> study.circuits.shape                # channels, references, channels of the lower layer
    (32, 6, 64)
    """

    name: str
    model: nn.Module
    images: Images
    parameters: Parameters
    store: Store | None = None
    run: Run = field(default_factory=Run)
    notes_file: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.run, Run):
            raise StudyError(f"how a study runs must be a Run, as Run(device='cuda'), got {self.run!r}")
        p = self.parameters
        model, target, lower = resolved(models.unwrapped(self.model), p.target, p.lower)
        object.__setattr__(self, "model", model)
        if target != p.target:
            object.__setattr__(self, "parameters", p := replace(p, target=target, lower=lower))
        vars(self)["_nearest"] = p.lower == NEAREST
        if p.lower == NEAREST:
            object.__setattr__(self, "parameters", replace(p, lower=nearest_below(self.model, p.target)))
        if self.run.batch_size == AUTO:
            object.__setattr__(self, "run", _batches.measured(self))

    @classmethod
    def from_model(
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
            The normalisation of the images where they do not tell: see :func:`pure_nb.images.sources.as_images`.
        options
            Anything else of :class:`Parameters`, and how to run: ``device="cuda"``, ``batch_size=64``.

        Raises
        ------
        LayerError, ImageError
            If a layer or the images can't be used.
        """
        wrapped = repeated(model, as_images(images, name, mean=mean, std=std))
        run = Run(**{option: options.pop(option) for option in RUN if option in options})
        parameters = checked({"target": target, "lower": lower, **options})
        study = cls(name, model, wrapped, parameters, Store(store_folder(store) / check_name(name)), run)
        study.shapes  # noqa: B018  the layers are checked here, not after hours
        return study

    __repr__ = described
    lacks = lacks
    replace = replaced
    estimate = estimate
    scores = scores
    range = activation_range
    stability = cached_property(stabilities)
    ablate = ablate
    text_effects = text_effects
    notes = cached_property(Notes)
    search = search
    alike = alike
    explain = explain
    graph = graph

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def known(self) -> list[str]:
        """The steps that were computed before, here or in the store."""
        if not self._is_there("references"):
            return []
        return ["references", *(step for step in ("circuits", "virtual", "layouts", "boxes") if self._is_there(step))]

    def on(self, run: Run) -> Study:
        """The same study run otherwise: ``study.on(Run(device="cuda"))``."""
        return self.replace(run=run)

    # What scripts elsewhere, written to show faults before 0.1.0, ask for; as `relevant` of classes.
    _labels = property(lambda self: self.classes._labels)
    boxes = property(_boxes)
    using = replaced

    @classmethod
    def of(cls, *given: Any, **options: Any) -> Study:
        """:meth:`from_model`, by the names that parameters had before 0.1.0."""
        return cls.from_model(*given, **{renamed(name, value): value for name, value in options.items()})

    @property
    def results(self) -> Results:
        """Where what is found is kept."""
        return Results(self.store, self.run)

    @cached_property
    def classes(self) -> Classes:
        """What is known of classes, where the images have labels: relevance, pairs, WordNet, splits."""
        return Classes(self)

    @cached_property
    def crops(self) -> Crops:
        """What the channels look at: boxes, pictures, embedders' vectors."""
        return Crops(self)

    @cached_property
    def shapes(self) -> tuple[LayerShape, LayerShape]:
        """How the target and the lower layer look; raises if they can't be studied together."""
        with self.run.prepared(self.model):
            example, p = self.images.example[None].to(self.run.local_device), self.parameters
            found = require(self.model, example, p.target, p.lower, p.allow_nondeterministic)
        if found[0].unsteady:
            where = f"in batches of {self.run.batch_size}: of {p.target!r}"
            warnings.warn(f"results are of one run, {where}, {found[0].unsteady}", StudyWarning, stacklevel=3)
        return found

    def survey(self) -> list[LayerShape]:
        """All layers that can be studied: see :func:`pure_nb.network.shapes.survey`."""
        with self.run.prepared(self.model):
            example = self.images.example[None].to(self.run.local_device)
            return survey(self.model, example, self.parameters.allow_nondeterministic)

    def sweep(self, step: str, key: dict[str, object], own: Any, images: Images) -> tuple[Any, list[Unreadable]]:
        """What an accumulator has taken in from all of some images, and those that could not be read and were left out.

        Found, or computed in one pass; if the study's references are of the same images and not known yet, the same
        pass finds them too.
        """
        ranked, top = self.key("references"), self._top()
        together = step != "references" and images is self.images and not self._is_there("references")

        def compute(shards: Store | None) -> tuple[Arrays, Any]:
            self.shapes  # noqa: B018  fail before the pass, not in it
            wanted: list[Any] = [own, top] if together else [own]
            lost = sweep(self.model, images, wanted, precision=self.parameters.precision, store=shards, run=self.run)
            if together:
                self.results.arrays("references", ranked, lambda _: (top.state(), noted(lost)))
                self.__dict__["_found"] = warned_of_ties(top.result()), lost
            return own.state(), noted(lost)

        # What is kept of an unfinished pass is of no use to a pass that looks for other references, or for none.
        arrays, note = self.results.arrays(step, key, compute, key | ({"with": ranked} if together else {}))
        return own.restored(arrays), [Unreadable(*entry) for entry in note]

    @cached_property
    def _found(self) -> tuple[References, list[Unreadable]]:
        """The reference images, and the images that could not be read."""
        top, lost = self.sweep("references", self.key("references"), self._top(), self.images)
        return warned_of_ties(top.result()), lost

    def _top(self) -> TopReferences:
        return accumulator(self.parameters)

    @property
    def references(self) -> References:
        """The reference images of every channel of the target layer; one pass over all images."""
        accepted(self._found[1], self.run)
        return self._found[0]

    @property
    def skipped(self) -> list[Unreadable]:
        """The images that could not be read, and were left out."""
        return accepted(self._found[1], self.run)

    @property
    def combined(self) -> Combined | None:
        """What parts are clusters of, if not of circuits alone; its ``weights`` say what each description counts."""
        return self._combined if self.parameters.described_by == COMBINED else None

    @cached_property
    def _combined(self) -> Combined:
        return Combined(self)

    @cached_property
    def circuits(self) -> NDArray[np.float32]:
        """Relevance vectors of all references, float32 ``[channels, n, lower channels]``; mapped from the store."""

        def compute(blocks: Store | None, new: New) -> NDArray[np.float32]:
            sample = self.references.sample
            channel = np.broadcast_to(np.arange(len(sample))[:, None], sample.shape)
            return self.run_circuits(channel, sample, store=blocks, new=new, run=self.run)

        return self.results.mapped("circuits", self.key("circuits"), compute).reshape(*self.references.sample.shape, -1)

    def circuits_of(self, channel: int) -> NDArray[np.float32]:
        """Relevance vectors of one channel's references, ``[n, lower channels]``, without the others'."""
        self.require_channel(channel)
        if self._is_there("circuits"):
            return self.circuits[channel]
        sample = self.references.sample[channel]
        return self.run_circuits(np.full_like(sample, channel), sample)

    def virtual_of(self, channel: int, vectors: NDArray[np.float32] | None = None) -> VirtualNeurons:
        """The virtual neurons of one channel, without the others', by its ``vectors`` if at hand."""
        self.require_channel(channel)
        if self._is_there("virtual"):
            return self.virtual[channel]
        own, active = clustered_of(self, channel, vectors), self.references.active[[channel]]
        return cluster_channels(own[None], active, self.parameters, split=by(self, virtual_neurons))[0]

    def _is_there(self, step: str) -> bool:
        """Whether a step was computed before."""
        if step == "boxes" and "_boxed" in vars(self.crops):
            return True
        return {"references": "_found"}.get(step, step) in vars(self) or self.results.has(step, self.key(step))

    @cached_property
    def virtual(self) -> list[VirtualNeurons]:
        """The virtual neurons of every channel."""

        def compute(blocks: Store | None) -> tuple[Arrays, Any]:
            how: dict[str, Any] = {"split": by(self, virtual_neurons), "blocks": blocks, "run": self.run}
            return packed(cluster_channels(clustered(self), self.references.active, self.parameters, **how))

        return unpacked(*self.results.arrays("virtual", self.key("virtual"), compute))

    @cached_property
    def without_lrp(self) -> str:
        """Why the rules of layer-wise relevance propagation do not fit between the two layers; "" if they do."""
        return misfit(self, self.parameters.lower)

    @cached_property
    def objects(self) -> NDArray[np.int64] | None:
        """The class of the object under each reference's maximum, ``[channels, n]``; None where that is not known."""
        known = self.images.truth
        if known is None or len(self.references.grid) != 2:  # without a grid there is no place to look at
            return None
        height, width = self.images.example.shape[-2:]

        def compute(_: Store | None) -> tuple[Arrays, None]:
            return {"label": truth.objects_at_maxima(known, self.references, (height, width))}, None

        return self.results.arrays("objects", self.key("objects"), compute)[0]["label"]

    @cached_property
    def activation_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Simpler descriptions of the references than circuits: see :func:`pure_nb.judges.truth.activation_vectors`."""

        def compute(_: Store | None) -> tuple[Arrays, None]:
            own = self.model, self.images, self.references, self.parameters.lower
            return truth.activation_vectors(*own, run=self.run), None

        return self.results.arrays("activations", self.key("activations"), compute)[0]

    @cached_property
    def layouts(self) -> NDArray[np.float32]:
        """The circuits of all channels laid out in the plane by UMAP, float32 ``[channels, n, 2]``."""

        def compute(blocks: Store | None) -> tuple[Arrays, None]:
            seeded = partial(by(self, embed), seed=self.parameters.seed)
            return {"points": lay_out(clustered(self), seeded, blocks, self.run)}, None

        return self.results.arrays("layouts", self.key("layouts"), compute)[0]["points"]

    def layout_of(self, channel: int, vectors: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """One channel's circuits in the plane, ``[n, 2]``, without the others'."""
        self.require_channel(channel)
        if self._is_there("layouts"):
            return self.layouts[channel]
        return by(self, embed)(clustered_of(self, channel, vectors), seed=self.parameters.seed)

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """One row for each channel, the most polysemantic first.

        Columns: ``channel``; ``k`` virtual neurons; ``score``, ``silhouette_gain`` and ``p`` of
        :class:`.VirtualNeurons`, by which they are sorted in this order; ``q``, the false-discovery rate among the
        living neurons whose ``p`` is no larger (Benjamini and Hochberg): of those with ``q <= 0.05`` one in twenty is
        expected to be a single heap; ``sizes`` of the parts; ``strongest`` activation; ``meanings`` as
        :meth:`pure_nb.neuron.Neuron.meanings` gives them; and where the objects are known, the agreement ``ami`` of
        the parts with them; ``stability`` of the neuron and of its parts, in ``stabilities``, see
        :mod:`pure_nb.methods.stability`. Dead channels come last. Where parts are clusters of several descriptions,
        ``attrs["described_by"]`` has their weights.
        """
        found = ranked(self.results.table("neurons", self.key("neurons"), lambda _: neuron_table(self)), self.virtual)
        own = [self.stability[channel] for channel in found["channel"]]
        each = [" ".join(f"{part:.2f}" for part in one.parts if part == part) for one in own]
        return found.assign(stability=[one.neuron for one in own], stabilities=each)

    def most_polysemantic(self, count: int = 32) -> list[int]:
        """The first of :attr:`neurons`, without the dead: all of a small network, and what explorers show of any."""
        living = self.neurons.loc[self.references.alive[self.neurons["channel"]], "channel"]
        return [int(channel) for channel in living[:count]]

    def neuron(self, channel: int) -> Neuron:
        """One channel of the target layer, to look at; an :class:`ArgumentError` if there is none."""
        self.require_channel(channel)
        return Neuron(self, int(channel))

    def predict(self, channel: int, images: Any, samples: Sequence[int] | None = None) -> NDArray[np.int64]:
        """The virtual neurons of a channel that new images activate: see :meth:`pure_nb.neuron.Neuron.predict`."""
        return self.neuron(channel).predict(images, samples)

    def require_channel(self, channel: int) -> None:
        """Raise if there is no such channel."""
        if channel not in range(count := self.shapes[0].channels):
            raise ArgumentError(f"channel {channel}: layer {self.parameters.target!r} has channels 0 to {count - 1}")

    def run_circuits(
        self, channel: NDArray[np.int64], sample: NDArray[np.int64], images: Images | None = None, **how: Any
    ) -> NDArray[np.float32]:
        """Relevance vectors of pairs, as the study asks for them: see :func:`pure_nb.methods.circuits.circuits`."""
        p, quiet = self.parameters, replace(self.run, progress=False)
        how = {"target": p.target, "lower": p.lower, "rule": p.rule, "start": p.start, "run": quiet, **how}
        return circuits(self.model, self.images if images is None else images, channel, sample, **how)

    @property
    def identity(self) -> dict[str, str]:
        """What stands for the network and the images in keys of results."""
        found = {"weights": self._weights, "images": self.images.fingerprint}
        if self.parameters.precision != "float32":
            found["precision"] = self.parameters.precision
        if self.unsteady:
            found |= {"unsteady": self.unsteady, "batch_size": str(self.run.batch_size)}
        return found

    @property
    def unsteady(self) -> str:
        """Why results depend on chance or on the batch, where this is allowed; "" if they do not."""
        return self.shapes[0].unsteady if self.parameters.allow_nondeterministic else ""

    @cached_property
    def _weights(self) -> str:
        return models.fingerprint(self.model)

    def key(self, step: str) -> dict[str, object]:
        """What a step's result depends on, by which it is found."""
        found: dict[str, object] = {name: getattr(self.parameters, name) for name in ASKED[step]}
        if not found.get("crop_lower", True):  # there was none once
            del found["crop_lower"]
        if found.get("rule") == "lrp":
            found["rules"] = RULES
        if step == "references" and self.parameters.references != "top":
            found |= {"references": self.parameters.references, "seed": self.parameters.seed}
        if "n_references" in found and step != "references":
            found["references"] = self.ranked
        return {"step": step, "format": FORMAT[step], **self.identity, **as_before(found)}

    @cached_property
    def ranked(self) -> str:
        """Stands for the references: what is said of them is in their order, which the last digit may decide."""
        return hashlib.sha256(self._found[0].sample.tobytes()).hexdigest()[:16]
