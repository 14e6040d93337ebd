"""A study: one network, two of its layers, a set of images, and what was found out.

Each step is a property that is computed when first asked for, and kept on disk: the reference images, the circuits,
the virtual neurons, the table of all neurons. Nothing is computed again unless something it depends on changed.

    >>> import pure_nb
    >>> study = pure_nb.load_study("glyphs")                      # doctest: +SKIP
    >>> study.neuron(17).plot()                                   # doctest: +SKIP
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from pure_nb import models, truth
from pure_nb.circuits import Rule, Seed, circuits
from pure_nb.data import ImageError, Images, Unreadable
from pure_nb.layers import LayerShape, require
from pure_nb.references import By, References, TopReferences
from pure_nb.store import Store
from pure_nb.sweep import sweep
from pure_nb.virtual import VirtualNeurons, packed, unpacked, virtual_neurons

if TYPE_CHECKING:
    from pure_nb.neuron import Neuron


class StudyError(ValueError):
    """A study that is not there or does not make sense."""


@dataclass(frozen=True)
class Parameters:
    """What is asked of the network.

    Attributes
    ----------
    target, lower
        Names of the layers L, whose channels are studied, and L' below it, whose channels make up the circuits.
    n
        Reference images of each channel.
    by
        What makes an image a reference: ``"max"`` or ``"mean"`` activation.
    rule
        How relevance is propagated: ``"gradient"`` or ``"lrp"``.
    seed
        Where it starts: ``"activation"``, ``"peak"`` or ``"unit"``; see :func:`pure_nb.circuits.seeded`.
    k
        Virtual neurons of each neuron; 0 chooses, neuron by neuron.
    random
        Seed of all that is random.
    """

    target: str
    lower: str
    n: int = 100
    by: By = "max"
    rule: Rule = "gradient"
    seed: Seed = "activation"
    k: int = 0
    random: int = 0


PARAMETERS = tuple(f.name for f in fields(Parameters))

NEURONS = 64
"""Neurons taken apart between two saves: what is lost at most when a run is stopped."""

SMALL = 10_000
"""Pairs of a channel and a reference, up to which a study never computes a single channel alone."""


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
    batch_size, device, workers, skip_unreadable, progress
        How to run: none of these is part of what a result depends on, but for the last digits of its numbers.
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
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise StudyError(
                f"batch_size must be at least 1 and workers at least 0, got {self.batch_size} and {self.workers}"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as problem:  # torch without CUDA asserts
            raise StudyError(
                f"the device {self.device!r} can't be used here: {str(problem).splitlines()[0]}"
            ) from problem

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Dataset[Any] | Images,
        target: str,
        lower: str,
        *,
        name: str = "mine",
        store: Path | str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        **parameters: Any,
    ) -> Study:
        """A study of your own network and data set.

        Parameters
        ----------
        model
            Any torch network.
        images
            A data set whose items are tensors or start with one, as torchvision's ``ImageFolder`` with a transform.
        target, lower
            Names of the two layers.
        name, store
            Results are kept in the folder ``store / name``; by default in the user's cache. Two studies may share both.
        device, batch_size
            How to run.
        parameters
            Anything else of :class:`Parameters`.

        Raises
        ------
        LayerError, ImageError
            If a layer or the images can't be used.
        """
        wrapped = images if isinstance(images, Images) else Images(images, name)
        study = cls(
            name,
            model,
            wrapped,
            checked({"target": target, "lower": lower, **parameters}),
            Store(store_folder(store) / word(name)),
            batch_size,
            device,
        )
        study.shapes  # noqa: B018  the layers are checked here, not after hours
        return study

    def using(self, **changes: Any) -> Study:
        """The same study with other parameters, or run otherwise: ``study.using(rule="lrp", device="cuda")``."""
        parameters = checked({**asdict(self.parameters), **{k: v for k, v in changes.items() if k in PARAMETERS}})
        return replace(self, parameters=parameters, **{k: v for k, v in changes.items() if k not in PARAMETERS})

    @cached_property
    def shapes(self) -> tuple[LayerShape, LayerShape]:
        """How the target and the lower layer look; raises if they can't be studied together."""
        example = self.images.example[None]
        self.model.to(self.device)
        return require(self.model, example.to(self.device), self.parameters.target, self.parameters.lower)

    @cached_property
    def _swept(self) -> tuple[References, list[Unreadable]]:
        """The reference images, and the images that could not be read."""
        key, p = self._key("references", "target", "n", "by"), self.parameters
        saved = self.store.load_arrays("references", key) if self.store else None
        if saved is not None:
            arrays, note = saved
            if note["skipped"] and not self.skip_unreadable:
                raise ImageError(
                    f"{len(note['skipped'])} images could not be read and were left out of these results, the first "
                    f"{note['skipped'][0][1]}; accept that with skip_unreadable=True, or --skip-unreadable"
                )
            top = TopReferences(p.target, p.n, p.by).restored(arrays)
            return top.result(), [Unreadable(*entry) for entry in note["skipped"]]
        self.shapes  # noqa: B018  fail before the pass, not in it
        top = TopReferences(p.target, p.n, p.by)
        shards = self.store.part("sweep", key) if self.store else None
        skipped = sweep(
            self.model,
            self.images,
            [top],
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
            skip_unreadable=self.skip_unreadable,
            store=shards,
            progress=self.progress,
        )
        if self.store and shards:
            note = {"skipped": [[u.sample, u.path, u.reason] for u in skipped]}
            self.store.save_arrays("references", key, top.state(), note)
            shards.clear()
        return top.result(), skipped

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
        """Relevance vectors of all references, float32 ``[channels, n, lower channels]``."""
        key = self._circuits_key()
        saved = self.store.load_arrays("circuits", key) if self.store else None
        if saved is not None:
            return saved[0]["relevance"]
        references, blocks = self.references, self.store.part("circuits", key) if self.store else None
        every = np.broadcast_to(np.arange(references.channels)[:, None], references.sample.shape)
        found = self._run_circuits(every, references.sample, store=blocks, progress=self.progress)
        if self.store and blocks:
            self.store.save_arrays("circuits", key, {"relevance": found})
            blocks.clear()
        return found

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
        if self._whole("virtual", self._key("virtual", *PARAMETERS)):
            return self.virtual[channel]
        return self.split(self.circuits_of(channel) if vectors is None else vectors)

    def _whole(self, step: str, key: Mapping[str, object]) -> bool:
        """Whether a step is there for all channels, or quickly computed for all."""
        stored = self.store is not None and self.store.path(step, key).exists()
        return stored or step in self.__dict__ or self.references.sample.size < SMALL

    def assign(
        self, channel: int, images: Images | Dataset[Any], samples: Sequence[int] | None = None
    ) -> NDArray[np.int64]:
        """The virtual neurons that new images drive a channel through.

        Parameters
        ----------
        channel
            Of the target layer.
        images, samples
            The new images, and which of them; all of them by default.

        Returns
        -------
        ndarray
            int64 ``[samples]``: labels as in :attr:`VirtualNeurons.labels`.
        """
        images = images if isinstance(images, Images) else Images(images)
        every = np.arange(len(images)) if samples is None else np.asarray(samples, dtype=np.int64)
        vectors = self._run_circuits(np.full_like(every, channel), every, images=images)
        return self.neuron(channel).virtual.assign(vectors)

    @cached_property
    def virtual(self) -> list[VirtualNeurons]:
        """Every channel taken apart."""
        key = self._key("virtual", *PARAMETERS)
        saved = self.store.load_arrays("virtual", key) if self.store else None
        if saved is not None:
            return unpacked(*saved)
        vectors, blocks = self.circuits, self.store.part("virtual", key) if self.store else None
        found: list[VirtualNeurons] = []
        with tqdm(total=len(vectors), desc="virtual", unit="neuron", disable=not self.progress) as bar:
            for first in range(0, len(vectors), NEURONS):
                block = {"first": first}
                saved = blocks.load_arrays("block", block) if blocks else None
                part = unpacked(*saved) if saved else [self.split(own) for own in vectors[first : first + NEURONS]]
                if blocks and not saved:
                    blocks.save_arrays("block", block, *packed(part))
                found += part
                bar.update(len(part))
        if self.store and blocks:
            self.store.save_arrays("virtual", key, *packed(found))
            blocks.clear()
        return found

    def split(self, vectors: NDArray[np.float32]) -> VirtualNeurons:
        """Take one channel apart by its relevance vectors, as the parameters say."""
        return virtual_neurons(vectors, self.parameters.k or "auto", seed=self.parameters.random)

    @cached_property
    def objects(self) -> NDArray[np.int64] | None:
        """The class of the object under each reference's maximum, ``[channels, n]``; None where that is not known."""
        scenes = self.images.scenes
        known = scenes is not None and len(self.references.grid) == 2  # else there is no place to look at
        return truth.objects_at_maxima(scenes, self.references) if scenes is not None and known else None

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """One row for each channel, the most polysemantic first.

        Columns: ``channel``; ``k`` virtual neurons; ``score`` and ``p`` of :class:`~pure_nb.virtual.VirtualNeurons`;
        ``sizes`` of the parts; ``strongest`` activation; ``meanings`` as :meth:`pure_nb.neuron.Neuron.meanings` gives
        them; and where the objects are known, the agreement ``ami`` of the parts with them. Dead channels come last.
        """
        key = self._key("neurons", *PARAMETERS)
        saved = self.store.load_table("neurons", key) if self.store else None
        if saved is not None:
            return saved[0]
        references, rows = self.references, []
        for channel, parts in enumerate(self.virtual):
            row: dict[str, Any] = {
                "channel": channel,
                "k": parts.k,
                "score": parts.score if references.alive[channel] else np.nan,
                "p": parts.p,
                "sizes": " ".join(str(size) for size in parts.sizes),
                "strongest": float(references.score[channel, 0]),
                "meanings": self.neuron(channel).meanings(),
            }
            if self.objects is not None:
                row["ami"] = adjusted_mutual_info_score(self.objects[channel], parts.labels)
            rows.append(row)
        table = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable", ignore_index=True)
        if self.store:
            self.store.save_table("neurons", key, table)
        return table

    def neuron(self, channel: int) -> Neuron:
        """One channel of the target layer, to look at.

        Raises
        ------
        IndexError
            If there is no such channel.
        """
        from pure_nb.neuron import Neuron  # here, since a neuron refers back to its study

        self._check(channel)
        return Neuron(self, int(channel))

    def _check(self, channel: int) -> None:
        if not 0 <= channel < self.shapes[0].channels:
            raise IndexError(
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

    def _circuits_key(self) -> dict[str, object]:
        return self._key("circuits", "target", "lower", "n", "by", "rule", "seed")

    @cached_property
    def _weights(self) -> str:
        return models.fingerprint(self.model)

    def _key(self, step: str, *parameters: str) -> dict[str, object]:
        """What a result depends on. ``format`` changes when this package computes a step differently."""
        chosen = {name: getattr(self.parameters, name) for name in parameters}
        return {"step": step, "format": 2, "weights": self._weights, "images": self.images.fingerprint, **chosen}


def checked(values: Mapping[str, Any]) -> Parameters:
    """Parameters, with their values checked."""
    unknown = sorted(set(values) - set(PARAMETERS))
    if unknown:
        raise StudyError(f"there is no parameter {unknown[0]!r}; there are {', '.join(PARAMETERS)}")
    if not {"target", "lower"} <= set(values):
        raise StudyError("a study needs the parameters target and lower: the names of two layers")
    found = Parameters(**values)
    for name in ("n", "k", "random"):
        if type(getattr(found, name)) is not int:
            raise StudyError(f"{name} must be a whole number, got {getattr(found, name)!r}")
    allowed: list[tuple[str, tuple[Any, ...]]] = [
        ("by", ("max", "mean")),
        ("rule", ("gradient", "lrp")),
        ("seed", ("activation", "peak", "unit")),
    ]
    for name, options in allowed:
        if getattr(found, name) not in options:
            raise StudyError(f"{name} must be one of {options}, got {getattr(found, name)!r}")
    if found.n < 2 or found.k < 0:
        raise StudyError(f"n must be at least 2 and k at least 0, got n={found.n}, k={found.k}")
    return found


def word(name: str) -> str:
    """A study's name, fit for a folder; a name that could lead out of the store is refused."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise StudyError(f"a study's name must be letters, digits, '-', '_' and '.', got {name!r}")
    return name


def store_folder(store: str | Path | None) -> Path:
    """The folder of all results: the given one, ``$PURE_NB_STORE``, or the user's cache."""
    if store is not None:
        return Path(store)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PURE_NB_STORE") or cache / "pure_nb")
