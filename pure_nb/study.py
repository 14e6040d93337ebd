"""A study: one network, two of its layers, a set of images, and what was found out.

Each step is a property that is computed when first asked for, and kept on disk: the reference images, the circuits,
the virtual neurons, the table of all neurons. Nothing is computed again unless something it depends on changed.

    >>> import pure_nb
    >>> study = pure_nb.load_study("glyphs")                      # doctest: +SKIP
    >>> study.neuron(17).plot()                                   # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pure_nb._lacking import lacks
from pure_nb.classes import Classes
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.results import FORMAT, Results
from pure_nb.compute.store import Arrays, New, Store, store_folder
from pure_nb.compute.sweep import sweep
from pure_nb.crops import Crops
from pure_nb.errors import ArgumentError, ImageError, LayerError, PureError
from pure_nb.images.data import Images, Unreadable, readable
from pure_nb.images.sources import as_images
from pure_nb.judges import truth
from pure_nb.methods.circuits import circuits, propagate
from pure_nb.methods.references import References, TopReferences
from pure_nb.methods.virtual import MANY, NEURONS, VirtualNeurons, embed, packed, unpacked, virtual_neurons
from pure_nb.network import models
from pure_nb.network.layers import (
    LayerShape,
    activations,
    as_weights,
    by_position,
    nearest_below,
    placed,
    require,
    resting,
    survey,
)
from pure_nb.neuron import Neuron
from pure_nb.parameters import NEAREST, PARAMETERS, RUN, Parameters, Run, checked, word

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.utils.parallel import Parallel

TAKEN_APART = ("target", "lower", "n", "by", "rule", "seed", "k", "random")
"""The parameters that virtual neurons depend on."""

SMALL = 4_000
"""Pairs of a channel and a reference, up to which a study never computes a single channel alone."""


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
    run
        How it is run.
    """

    name: str
    model: nn.Module
    images: Images
    parameters: Parameters
    store: Store | None = None
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", models.unwrapped(self.model))
        p = self.parameters
        if p.lower == NEAREST:
            object.__setattr__(self, "parameters", replace(p, lower=nearest_below(self.model, p.target)))

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
        run = Run(**{option: options.pop(option) for option in RUN if option in options})
        parameters = checked({"target": target, "lower": lower, **options})
        study = cls(name, model, wrapped, parameters, Store(store_folder(store) / word(name)), run)
        study.shapes  # noqa: B018  the layers are checked here, not after hours
        return study

    def __repr__(self) -> str:
        p, known = self.parameters, "?"
        if "fingerprint" in vars(self.images) and "_weights" in vars(self):  # it must take no time
            with suppress(PureError):
                known = ", ".join(self.known()) or "nothing yet"
        parts = f"k = {p.k}" if p.k else "as many parts as are clear"
        kept = f"kept in {self.store.folder}" if self.store else "kept nowhere"
        return "\n".join(
            [
                f"Study {self.name!r}: the channels of {p.target!r} in {type(self.model).__name__}",
                f"images: {len(self.images):,} of {self.images.name!r}",
                f"asked: {p.n} references by {p.by}, circuits from {p.lower!r} by {p.rule}, {parts}",
                f"known: {known}; {kept}",
                f"runs: on {self.run.device}, {self.run.batch_size} images at a time",
            ]
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def known(self) -> list[str]:
        """The steps that were computed before, here or in the store."""
        if not self._is_there("references", self._references_key()):
            return []
        keys = {"circuits": self._circuits_key(), "virtual": self._key("virtual", *TAKEN_APART)}
        found = [step for step, key in (keys | {"layouts": self._layouts_key()}).items() if self._is_there(step, key)]
        boxed = "_boxed" in vars(self.crops) or self.results.has("boxes", self.crops.key())
        return ["references", *found, *(["boxes"] if boxed else [])]

    def lacks(self, *needs: str) -> dict[str, str]:
        """What this study lacks of what it is asked for, and why; empty if nothing.

        Parameters
        ----------
        needs
            ``"objects"`` under the maxima; ``"labels"`` that match the network's outputs; ``"splits"``, several images
            of two classes that share a channel; ``"synsets"`` of such classes; a ``"grid"`` of positions; ``"lrp"``,
            rules that fit; ``"import"``, by a plain process, of the network. All of them by default.

        Returns
        -------
        dict
            For each that is lacking, what completes "The study ...": ``{"labels": "has no labels that ..."}``.
        """
        return lacks(self, *needs)

    def using(self, **changes: Any) -> Study:
        """The same study with other parameters, or run otherwise: ``study.using(rule="lrp", device="cuda")``."""
        asked = {name: changes.pop(name) for name in PARAMETERS if name in changes}
        how = {name: changes.pop(name) for name in RUN if name in changes}
        parameters = checked({**asdict(self.parameters), **asked})
        return replace(self, parameters=parameters, run=replace(self.run, **how), **changes)

    @property
    def results(self) -> Results:
        """Where what is found is kept."""
        return Results(self.store, self.run.device, self.run.channels_last)

    @cached_property
    def classes(self) -> Classes:
        """What is known of classes, where the images have labels: relevance, pairs, WordNet, splits."""
        return Classes(self)

    @cached_property
    def crops(self) -> Crops:
        """What the channels look at: boxes, pictures, embedders' vectors."""
        return Crops(self)

    # Two names from before classes and crops were objects of their own, as `relevant` of classes: what others have
    # written to show faults asks for them.
    @property
    def _labels(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        return self.classes._labels

    @property
    def boxes(self) -> NDArray[np.int32]:
        """The squares that each channel looks at in its references: see :attr:`pure_nb.crops.Crops.boxes`."""
        return self.crops.boxes

    @cached_property
    def shapes(self) -> tuple[LayerShape, LayerShape]:
        """How the target and the lower layer look; raises if they can't be studied together."""
        with placed(self.model, self.run.here):
            example = self.images.example[None].to(self.run.here)
            return require(self.model, example, self.parameters.target, self.parameters.lower)

    def survey(self) -> list[LayerShape]:
        """All layers that can be studied: see :func:`pure_nb.network.layers.survey`."""
        with placed(self.model, self.run.here):
            return survey(self.model, self.images.example[None].to(self.run.here))

    def _laid_out(self) -> AbstractContextManager[nn.Module]:
        """Within it, the network's weights lie in memory as asked for."""
        return placed(self.model, layout=torch.channels_last if self.run.channels_last else None)

    @cached_property
    def _found(self) -> tuple[References, list[list[Any]]]:
        """The reference images, and a note of the images that could not be read."""
        p = self.parameters

        def compute(shards: Store | None) -> tuple[Arrays, list[list[Any]]]:
            self.shapes  # noqa: B018  fail before the pass, not in it
            top = TopReferences(p.target, p.n, p.by)
            skipped = self._sweep([top], self.images, shards)
            return top.state(), [[u.sample, u.path, u.reason] for u in skipped]

        arrays, note = self.results.arrays("references", self._references_key(), compute)
        return TopReferences(p.target, p.n, p.by).restored(arrays).result(), note

    @cached_property
    def _swept(self) -> tuple[References, list[Unreadable]]:
        """The reference images, and the images that could not be read, if that is all right with the user."""
        references, note = self._found
        return references, self._accepted(note)

    def _accepted(self, note: list[list[Any]]) -> list[Unreadable]:
        """What was left out of stored results, if that is all right with the user."""
        if note and not self.run.skip_unreadable:
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
            return self._run_circuits(channel, sample, store=blocks, new=new, progress=self.run.progress)

        return self.results.mapped("circuits", self._circuits_key(), compute).reshape(*self.references.sample.shape, -1)

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
        return {"references": "_found"}.get(step, step) in self.__dict__ or self.results.has(step, key)

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
        with resting(self.model, self.run.here), torch.inference_mode():
            for batch in readable(images, every.tolist(), batch_size=self.run.batch_size, workers=self.run.workers):
                maps = by_position(activations(self.model, batch.images.to(self.run.here), [target])[target])
                driven += (maps[:, channel].amax(dim=1) > 0).tolist()
        return np.where(driven, self.neuron(channel).virtual.assign(vectors), -1)

    @cached_property
    def virtual(self) -> list[VirtualNeurons]:
        """Every channel taken apart."""

        def compute(blocks: Store | None) -> tuple[Arrays, Any]:
            from sklearn.utils.parallel import Parallel  # late, see pure_nb._imports

            vectors, found = self.circuits, []
            bar = progress_bar(desc="virtual", total=len(vectors), unit="neuron", shown=self.run.progress)
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

        return unpacked(*self.results.arrays("virtual", self._key("virtual", *TAKEN_APART), compute))

    @cached_property
    def without_lrp(self) -> str:
        """Why the rules of layer-wise relevance propagation do not fit between the two layers; "" if they do."""
        return self._misfit(self.parameters.lower)

    def _misfit(self, lower: str | None) -> str:
        """Why these rules do not fit down to a layer, or to the images for None: tried on one reference image.

        Whatever fails later is another matter, and no reason to do without them.
        """
        how: dict[str, Any] = {"target": self.parameters.target, "lower": lower, "rule": "lrp", "device": self.run.here}
        sample = self.references.sample[0, :1]
        try:
            with closing(propagate(self.model, self.images, np.zeros(1, np.int64), sample, **how)) as flows:
                next(flows)
        except LayerError as problem:
            return str(problem)
        return ""

    def _sweep(self, accumulators: list[Any], images: Images, shards: Store | None) -> list[Unreadable]:
        with self._laid_out():
            return sweep(
                self.model,
                images,
                accumulators,
                batch_size=self.run.batch_size,
                device=self.run.device,
                workers=self.run.workers,
                skip_unreadable=self.run.skip_unreadable,
                precision=self.parameters.precision,
                store=shards,
                client=self.run.client,
                progress=self.run.progress,
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

        return self.results.arrays("objects", self._key("objects", "target", "n", "by"), compute)[0]["label"]

    @property
    def driven(self) -> NDArray[np.bool_]:
        """Bool ``[channels, n]``: which references drive their channel at all, by a positive activation."""
        return self.references.driven

    @cached_property
    def activation_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Simpler descriptions of the references than circuits: see :func:`pure_nb.judges.truth.activation_vectors`."""

        def compute(_: Store | None) -> tuple[Arrays, None]:
            p = self.parameters
            how: dict[str, Any] = {"batch_size": self.run.batch_size, "device": self.run.here}
            return truth.activation_vectors(self.model, self.images, self.references, p.lower, **how), None

        return self.results.arrays("activations", self._key("activations", "target", "lower", "n", "by"), compute)[0]

    @cached_property
    def layouts(self) -> NDArray[np.float32]:
        """The circuits of all channels laid out in the plane by UMAP, float32 ``[channels, n, 2]``."""

        def compute(_: Store | None) -> tuple[Arrays, None]:
            return {"points": np.stack([embed(own, seed=self.parameters.random) for own in self.circuits])}, None

        return self.results.arrays("layouts", self._layouts_key(), compute)[0]["points"]

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
        return self.results.table("neurons", self._key("neurons", *TAKEN_APART), lambda _: self._neurons())

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
                known = self.objects[channel] >= 0
                row["ami"] = adjusted_mutual_info_score(self.objects[channel][known], parts.labels[known])
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
                batch_size=self.run.batch_size,
                device=self.run.device,
                workers=self.run.workers,
                client=self.run.client,
                **how,
            )

    def _references_key(self) -> dict[str, object]:
        return self._key("references", "target", "n", "by")

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
