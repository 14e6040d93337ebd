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
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn
from torch.utils.data import Dataset
from torchvision import datasets
from tqdm import tqdm

from pure_nb import models, truth
from pure_nb.circuits import Rule, Seed, circuits
from pure_nb.data import ImageError, Images, folder_images, glyph_images
from pure_nb.layers import LayerShape, require
from pure_nb.references import By, References, TopReferences
from pure_nb.store import Store
from pure_nb.sweep import sweep
from pure_nb.virtual import VirtualNeurons, virtual_neurons

if TYPE_CHECKING:
    from pure_nb.neuron import Neuron

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
            _parameters({"target": target, "lower": lower, **parameters}),
            Store(_store_folder(store) / _word(name)),
            batch_size,
            device,
        )
        study.shapes  # noqa: B018  the layers are checked here, not after hours
        return study

    def using(self, **changes: Any) -> Study:
        """The same study with other parameters, or run otherwise: ``study.using(rule="lrp", device="cuda")``."""
        own = {f.name for f in fields(Parameters)}
        parameters = _parameters({**asdict(self.parameters), **{k: v for k, v in changes.items() if k in own}})
        return replace(self, parameters=parameters, **{k: v for k, v in changes.items() if k not in own})

    @cached_property
    def shapes(self) -> tuple[LayerShape, LayerShape]:
        """How the target and the lower layer look; raises if they can't be studied together."""
        first = next(i for i in range(len(self.images)) if isinstance(self.images.tensor_or_reason(i), torch.Tensor))
        example = self.images.tensor(first)[None]
        self.model.to(self.device)
        return require(self.model, example.to(self.device), self.parameters.target, self.parameters.lower)

    @cached_property
    def references(self) -> References:
        """The reference images of every channel of the target layer; one pass over all images."""
        key, p = self._key("references", "target", "n", "by"), self.parameters
        saved = self.store.load_arrays("references", key) if self.store else None
        if saved is not None:
            arrays, note = saved
            if note["skipped"] and not self.skip_unreadable:
                raise ImageError(
                    f"{len(note['skipped'])} images could not be read and were left out of these results, the first "
                    f"{note['skipped'][0][1]}; accept that with skip_unreadable=True, or --skip-unreadable"
                )
            return TopReferences(p.target, p.n, p.by).restored(arrays).result()
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
        return top.result()

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
        """Relevance vectors of one channel's references, ``[n, lower channels]``, without computing all the others'."""
        self._check(channel)
        ready = "circuits" in self.__dict__ or (
            self.store is not None and self.store.path("circuits", self._circuits_key()).exists()
        )
        if ready or self.references.sample.size < 10_000:
            return self.circuits[channel]
        sample = self.references.sample[channel]
        return self._run_circuits(np.full_like(sample, channel), sample)

    def assign(self, channel: int, images: Images) -> NDArray[np.int64]:
        """The virtual neurons that new images drive a channel through: int64 ``[images]``."""
        every = np.arange(len(images))
        p = self.parameters
        vectors = circuits(
            self.model,
            images,
            np.full_like(every, channel),
            every,
            target=p.target,
            lower=p.lower,
            rule=p.rule,
            seed=p.seed,
            batch_size=self.batch_size,
            device=self.device,
        )
        return self.neuron(channel).virtual.assign(vectors)

    @cached_property
    def virtual(self) -> list[VirtualNeurons]:
        """Every channel taken apart."""
        key = self._key("virtual", *[f.name for f in fields(Parameters)])
        saved = self.store.load_arrays("virtual", key) if self.store else None
        if saved is not None:
            arrays, note = saved
            return [
                VirtualNeurons(
                    arrays["labels"][c], arrays["centroids"][start : start + k], *arrays["scores"][c].tolist()
                )
                for c, (start, k) in enumerate(note["parts"])
            ]
        vectors = self.circuits
        found = [
            self.split(vectors[channel])
            for channel in tqdm(range(len(vectors)), desc="virtual", unit="neuron", disable=not self.progress)
        ]
        if self.store:
            sizes = [v.k for v in found]
            starts = np.cumsum([0, *sizes[:-1]]).tolist()
            arrays = {
                "labels": np.stack([v.labels for v in found]),
                "centroids": np.concatenate([v.centroids for v in found]),
                "scores": np.array([[v.silhouette, v.null, v.p] for v in found]),
            }
            self.store.save_arrays("virtual", key, arrays, {"parts": list(zip(starts, sizes))})
        return found

    def split(self, vectors: NDArray[np.float32]) -> VirtualNeurons:
        """Take one channel apart by its relevance vectors, as the parameters say."""
        return virtual_neurons(vectors, self.parameters.k or "auto", seed=self.parameters.random)

    @cached_property
    def objects(self) -> NDArray[np.int64] | None:
        """The class of the object under each reference's maximum, ``[channels, n]``; None where that is not known."""
        scenes = self.images.scenes
        return None if scenes is None else truth.objects_at_maxima(scenes, self.references)

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """One row for each channel, the most polysemantic first.

        Columns: ``channel``; ``k`` virtual neurons; ``score`` and ``p`` of :class:`~pure_nb.virtual.VirtualNeurons`;
        ``sizes`` of the parts; ``strongest`` activation; and where the objects are known, the true ``meanings`` and the
        agreement ``ami`` of the parts with them. Dead channels come last.
        """
        key = self._key("neurons", *[f.name for f in fields(Parameters)])
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
                "sizes": " ".join(str(size) for size in np.bincount(parts.labels)),
                "strongest": float(references.score[channel, 0]),
            }
            if self.objects is not None:
                found = truth.meanings(self.objects[channel])
                row["meanings"] = ", ".join(f"{name} {share:.0%}" for name, share in found)
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

    def _run_circuits(self, channel: Any, sample: Any, **how: Any) -> NDArray[np.float32]:
        p = self.parameters
        return circuits(
            self.model,
            self.images,
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
        return {"step": step, "format": 1, "weights": self._weights, "images": self.images.fingerprint, **chosen}


def load_study(
    source: str | Path,
    *,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    store: str | Path | None = None,
    **changes: Any,
) -> Study:
    """A study from a TOML file.

    Parameters
    ----------
    source
        Name of a study that ships (:func:`shipped_studies`), or path of a file. The chapter *Real networks* shows one.
    data, weights
        Folder of the images and file of the weights, if other than the study says.
    store
        Folder of results: each study gets a folder of its own in it. By default ``$PURE_NB_STORE``, or the
        user's cache.
    changes
        As for :meth:`Study.using`: ``n=50``, ``device="cuda"``.

    Returns
    -------
    Study
        With nothing computed yet.

    Raises
    ------
    StudyError
        If there is no such study, or it is not as expected.
    ModelError, ImageError, LayerError
        If its network, images or layers can't be had.
    """
    path = _study_path(source)
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise StudyError(f"{str(path)!r} is not valid TOML: {problem}") from problem
    unknown = set(text) - {"name", "model", "images", "parameters", "run"}
    if unknown or not {"model", "images", "parameters"} <= set(text):
        raise StudyError(
            f"{str(path)!r}: expected the tables [model], [images] and [parameters], and optionally a name and [run]; "
            f"found {sorted(text)}"
        )
    folder = path.parent
    model_options, image_options = dict(text["model"]), dict(text["images"])
    try:
        if weights is not None:
            model_options["weights"] = Path(weights).absolute()
        elif "weights" in model_options:
            model_options["weights"] = _expanded(model_options["weights"], "--weights")
        model = models.load_model(model_options.pop("source"), folder=folder, **model_options)
        images = _images(image_options, data, folder)
    except KeyError as problem:
        raise StudyError(f"{str(path)!r} lacks the entry {problem}") from problem
    except TypeError as problem:
        raise StudyError(f"{str(path)!r} has an entry that is not known: {problem}") from problem
    name = _word(text.get("name", path.stem))
    run = text.get("run", {})
    study = Study(name, model, images, _parameters(text["parameters"]), Store(_store_folder(store) / name), **run)
    return study.using(**changes)


def shipped_studies() -> list[str]:
    """Names of the studies in the package."""
    return sorted(entry.name[:-5] for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def _shipped() -> Path:
    return Path(str(resources.files("pure_nb") / "studies"))


def _study_path(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix == ".toml":
        if not path.is_file():
            raise StudyError(f"there is no study file {str(path)!r}")
        return path
    shipped = _shipped() / f"{source}.toml"
    if not shipped.is_file():
        raise StudyError(
            f"there is no study {str(source)!r}; name a .toml file, or one that ships: {', '.join(shipped_studies())}"
        )
    return shipped


def _images(options: dict[str, Any], data: str | Path | None, folder: Path) -> Images:
    kind = options.pop("source")
    if kind == "glyphs":
        return glyph_images(**options)
    root = Path(data) if data is not None else folder / _expanded(options["root"], "--data")
    options.pop("root", None)
    if kind == "folder":
        return folder_images(root, **options)
    name = kind.removeprefix("torchvision:")
    if name == kind or not hasattr(datasets, name):
        raise StudyError(f"images from {kind!r} are not known; expected 'glyphs', 'folder' or 'torchvision:NAME'")
    return _torchvision_images(name, root, options)


def _torchvision_images(name: str, root: Path, options: dict[str, Any]) -> Images:
    """A data set of torchvision, downloaded where it is not there."""
    from torchvision import transforms

    steps = [transforms.ToTensor(), transforms.Normalize(options.pop("mean"), options.pop("std"))]
    try:
        dataset = getattr(datasets, name)(str(root), download=True, transform=transforms.Compose(steps), **options)
    except (OSError, RuntimeError) as problem:
        raise ImageError(f"torchvision's {name} is not in {str(root)!r} and can't be fetched: {problem}") from problem
    return Images(dataset, name)


def _expanded(text: str, flag: str) -> str:
    """A path with its environment variables filled in."""
    for variable in re.findall(r"\$\{?(\w+)\}?", text):
        if variable not in os.environ:
            raise StudyError(f"the study needs {text!r}: set the environment variable {variable}, or give {flag} PATH")
    return os.path.expandvars(text)


def _parameters(values: Mapping[str, Any]) -> Parameters:
    """Parameters, with their values checked."""
    known = {f.name for f in fields(Parameters)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise StudyError(f"there is no parameter {unknown[0]!r}; there are {', '.join(sorted(known))}")
    if not {"target", "lower"} <= set(values):
        raise StudyError("a study needs the parameters target and lower: the names of two layers")
    found = Parameters(**values)
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


def _word(name: str) -> str:
    """A study's name, fit for a folder; a name that could lead out of the store is refused."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise StudyError(f"a study's name must be letters, digits, '-', '_' and '.', got {name!r}")
    return name


def _store_folder(store: str | Path | None) -> Path:
    if store is not None:
        return Path(store)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PURE_NB_STORE") or cache / "pure_nb")
