"""Published studies: read from a folder or from Hugging Face's hub, without the network and without the images.

A published study is a folder that :func:`pure_nb.publishing.publish` writes:

==========================  ===========================================================================================
``README.md``               a card, for people; nothing reads it, so it may be edited
``manifest.json``           the format, and the SHA-256 of each of the files below, by which they are checked
``study.json``              what was studied and asked, and how the network's two layers and the images look
``tables/``                 neurons, parts, references and pairs of classes, as Parquet and as JSON
``arrays/``                 what was found, as safetensors: references, circuits, virtual neurons, layouts, boxes
``pictures/``, ``masks/``   reference images as the network sees them, and where each neuron looks in them, if asked for
``ATTRIBUTION.csv``         whom the pictures are by, if they ask for that
``atlas/``                  a site of it, if asked for; opened by a browser only
==========================  ===========================================================================================

Opening it runs nothing of it: no file is code or is unpickled, and what says more than it should is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from pure_nb._imports import needed
from pure_nb._lacking import described
from pure_nb._publication import BESIDE, STEPS, Publication
from pure_nb.classes import Classes
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import Arrays, Store, store_folder
from pure_nb.errors import ArgumentError, ImageError, LayerError, StudyError, sentence
from pure_nb.figures.render import LOOKED, Looked, square_around
from pure_nb.images._fitting import repeated
from pure_nb.images.data import Images
from pure_nb.images.reading import Unreadable
from pure_nb.images.sources import as_images
from pure_nb.methods.references import References
from pure_nb.methods.virtual import VirtualNeurons, packed, unpacked
from pure_nb.network import models
from pure_nb.network.models import Absent
from pure_nb.network.shapes import LayerShape
from pure_nb.neuron import ranked
from pure_nb.parameters import RUN, Parameters, Run, check_name, checked
from pure_nb.study import Study

HUB = "hf://"
"""Begins the address of a study on Hugging Face's hub, where it is a data set: ``hf://owner/name``."""


WRONG = KeyError, TypeError, ValueError, IndexError, OSError, SafetensorError, RuntimeError, OverflowError, MemoryError
"""What files raise that are not as they are published, among them numbers that no study has."""


class _Truth:
    """The names of the objects under the maxima; what is where else in the images is not known."""

    def __init__(self, classes: Sequence[str], why: str) -> None:
        self.classes, self.why = classes, why

    def object_at(self, index: int, x: float, y: float) -> int:
        """Raise, since there are no images to look at."""
        raise StudyError(self.why)


class PublishedImages(Images):
    """The images of a published study: names, labels and pictures as far as they were published, and no inputs."""

    found: Publication
    why: str

    def __init__(self, found: Publication) -> None:
        told, samples = found.images, [int(sample) for sample in found.images["labels"]]
        numbers: Any = range(told["count"])
        super().__init__(numbers, told["name"])
        labels = np.full(len(self), -1, dtype=np.int64)
        labels[samples] = list(told["labels"].values())
        vars(self).update(
            found=found,
            why=f"the images {self.name!r} are not here: {found.why}",
            _labels=(labels if samples else None, tuple(map(str, told["classes"]))),
            fingerprint=str(told["fingerprint"]),
            example=torch.zeros(1).expand(told["shape"]),  # of which only the shape is asked
        )

    def try_load(self, sample: int) -> Tensor | Unreadable:
        """Raise, since what the network was given was not published."""
        raise StudyError(self.why)

    def picture(self, sample: int) -> NDArray[np.uint8]:
        """An image as it was published, at the size of the network's input; see :meth:`Images.picture`."""
        path = self.found.file(f"pictures/{int(sample)}.webp")
        if path is None:
            how = {"none": "no pictures were", "crops": "only what neurons look at was"}.get(
                self.found.images["pictures"], "only reference images of the neurons were"
            )
            raise ImageError(f"there is no picture of image {sample}, as {how} published; {self.why}")
        height, width = self.found.images["shape"][1:]
        with Image.open(path, formats=["WEBP"]) as image:
            return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))

    @property
    def drawn(self) -> bool:
        """As :attr:`Images.drawn` of the images that were studied."""
        return bool(self.found.images["drawn"])

    def credit(self, sample: int) -> str:
        """As :meth:`Images.credit`: by the table of attributions beside the pictures."""
        return self.found.credits.get(int(sample), "")

    def file(self, sample: int) -> str:
        """The name of an image's file within its folder; "" if that was not published."""
        return str(self.found.images["files"].get(str(int(sample)), ""))

    @property
    def truth(self) -> Any:
        """The names of objects, if these were published."""
        names = self.found.images["objects"]
        return _Truth(names, self.why) if names else None


class _Looks(Looked):
    """Where neurons look, out of the masks that were published; what else is found out is kept as usual."""

    def __init__(self, found: Publication) -> None:
        super().__init__()
        self.found, self.rows = found, {int(channel): row for row, channel in enumerate(found.channels)}

    def __contains__(self, pair: Any) -> bool:
        crop, channel, sample = pair
        published = crop == self.found.told["crops"]["crop"] and channel in self.rows
        return super().__contains__(pair) or (published and sample in self.found.pictured[self.rows[channel]])

    def __missing__(self, pair: Any) -> Any:
        crop, channel, _ = pair
        while len(self) > LOOKED:
            del self[next(iter(self))]
        for sample, mask in zip(self.found.pictured[self.rows[channel]], self.found.masks(channel)):
            self[crop, channel, sample] = np.packbits(mask), square_around(mask)  # a file has all of a neuron's
        return self[pair]


class _Classes(Classes):
    """Classes without the network that has them."""

    @property
    def take_long(self) -> bool:
        """Whether they do: they can't be had."""
        return False


class Published(Study):
    """A study of which what was found is at hand, and of the network and the images what was published."""

    def __post_init__(self) -> None:
        found, p = self.found, self.parameters
        shapes = found.shapes
        if isinstance(self.model, Absent) and (p.target, p.lower) != (shapes[0].name, shapes[1].name):
            raise LayerError(
                f"of {p.target!r} through {p.lower!r} nothing was published, only of {shapes[0].name!r} through "
                f"{shapes[1].name!r}; {found.why}"
            )
        super().__post_init__()
        if (p.target, p.lower) == (shapes[0].name, shapes[1].name):
            vars(self)["shapes"] = shapes
        vars(self.crops)["_looked"] = _Looks(found)

    @property
    def found(self) -> Publication:
        """What was published."""
        holder: Any = self.model if isinstance(self.model, Absent) else self.images
        return holder.found

    @property
    def pictured(self) -> int:
        """How many reference images of each neuron have a picture at least; a :class:`StudyError` if none has."""
        if count := int(self.found.told["pictured"]):
            return count
        raise StudyError(f"no pictures of the study {self.name!r} were published; {self.found.why}")

    def key(self, step: str) -> dict[str, object]:
        """As :meth:`Study.key`: what is computed from published pictures, or of some neurons, is kept apart."""
        return super().key(step) | {"published": self.found.seal}

    def survey(self) -> list[LayerShape]:
        """The layers that can be studied here; without the network only the one that was published."""
        return [self.shapes[0]] if isinstance(self.model, Absent) else super().survey()

    def require_channel(self, channel: int) -> None:
        """Raise if there is no such channel, or it was not published."""
        super().require_channel(channel)
        if channel not in self.found.channels:
            some = ", ".join(map(str, self.found.channels[:8]))
            raise ArgumentError(
                f"channel {channel} was not published, only {len(self.found.channels)} of {self.shapes[0].channels} "
                f"channels: {some} ...; {self.found.why}"
            )

    def __repr__(self) -> str:
        lines = [line for line in described(self).splitlines() if not line.startswith("runs:")]
        absent = {"the network": isinstance(self.model, Absent), "the images": isinstance(self.images, PublishedImages)}
        missing = " and ".join(filter(absent.get, absent))
        count = f"{len(self.found.channels):,} of {self.shapes[0].channels:,} neurons"
        return "\n".join([*lines, f"published: {count}, without {missing}"])

    @cached_property
    def virtual(self) -> list[VirtualNeurons]:
        """As :attr:`Study.virtual`; neurons that were not published have no parts, and NaN for all numbers."""
        if self.found.told["channels"] is None:
            return Study.virtual.func(self)  # type: ignore[attr-defined]

        def compute(_: Store | None) -> tuple[Arrays, Any]:
            return packed(_among_all(self.found, [self.virtual_of(channel) for channel in self._watched("virtual")]))

        return unpacked(*self.results.arrays("virtual", self.key("virtual"), compute))

    @cached_property
    def layouts(self) -> NDArray[np.float32]:
        """As :attr:`Study.layouts`; NaN of neurons that were not published."""
        if self.found.told["channels"] is None:
            return Study.layouts.func(self)  # type: ignore[attr-defined]

        def compute(_: Store | None) -> tuple[Arrays, None]:
            points = np.stack([self.layout_of(channel) for channel in self._watched("layouts")])
            return {"points": self.found.among_all(points)}, None

        return self.results.arrays("layouts", self.key("layouts"), compute)[0]["points"]

    def _watched(self, step: str) -> Iterable[int]:
        """The published neurons, with a bar."""
        return progress_bar(self.found.channels.tolist(), step, unit="neuron", shown=self.run.progress)

    @cached_property
    def without_lrp(self) -> str:
        """As :attr:`Study.without_lrp`, which takes the network."""
        if isinstance(self.model, Absent):
            raise StudyError(self.model.why)
        return super().without_lrp

    @cached_property
    def classes(self) -> Classes:
        """As :attr:`Study.classes`."""
        return _Classes(self) if isinstance(self.model, Absent) else Classes(self)


def load_published(
    source: str | Path,
    *,
    store: str | Path | None = None,
    model: nn.Module | None = None,
    images: Any = None,
    **changes: Any,
) -> Study:
    """A study out of a folder or a place on the hub, for :func:`pure_nb.loading.load_study`.

    Parameters
    ----------
    source, store, changes
        As there.
    model, images
        The network and the images that were studied, if they are at hand: then nothing of what was published of some
        neurons is taken for what would be found of all.
    """
    found = Publication.read(_fetched(str(source)) if str(source).startswith(HUB) else Path(source))
    told = found.told
    model = None if model is None else models.unwrapped(model)
    if model is not None and (own := models.fingerprint(model)) != told["weights"]:
        raise StudyError(
            f"the network given is not the one of the published study: {type(model).__name__} known as {own}, "
            f"expected {told['network']} known as {told['weights']}, with the same weights (and under the same Python, "
            "if its code is your own); study another one by itself, with Study.from_model"
        )
    if images is not None:
        images = as_images(images, told["images"]["name"])
        images = images if model is None else repeated(model, images)
        if images.fingerprint != told["images"]["fingerprint"]:
            raise StudyError(
                f"the images given are not those of the published study: {len(images)} known as {images.fingerprint}, "
                f"expected {told['images']['count']} known as {told['images']['fingerprint']}, with the same files, "
                "classes and transform"
            )
    run = Run(**{option: changes.pop(option) for option in RUN if option in changes})
    whole = model is not None and images is not None
    if not whole:
        run = replace(run, client=None)  # what was published is at hand here, and workers can't have what is missing
    try:
        name = check_name(told["name"])
        kept = Store(store_folder(store) / name)
        absent = type(told["network"], (Absent,), {"found": found})
        why = f"the network of the published study {name!r} ({told['network']}) is not here: {found.why}"
        study = (Study if whole else Published)(
            name,
            absent(str(told["weights"]), why) if model is None else model,
            PublishedImages(found) if images is None else images,
            checked(told["parameters"]),
            kept,
            run,
            None if whole else kept.folder / f"notes-{_of(told)}.toml",  # an own study may be called the same
        )
        _have(study, found, whole)
    except WRONG as problem:
        raise StudyError(f"{str(found.folder)!r} is not as pure_nb publishes a study: {problem!r}") from problem
    return study.replace(**changes) if changes else study


def _of(told: dict[str, Any]) -> str:
    """Stands for the network and the images, whenever they were published."""
    return hashlib.sha256(f"{told['weights']} {told['images']['fingerprint']}".encode()).hexdigest()[:8]


def _have(study: Study, found: Publication, whole: bool) -> None:
    """Let a study have all that was published; one with its network and images only what it would compute so."""
    keys, own = found.told["keys"], vars(study)
    if whole and (found.told["channels"] is not None or study.key("references") != keys["references"]):
        return  # of some neurons only, or found differently by now
    own["ranked"] = str(found.told["ranked"])
    for step, result in _results(found, study.parameters).items():
        if whole and study.key(step) != keys[step]:
            continue
        if step == "boxes":
            vars(study.crops)["_boxed"] = result, str(found.told["crops"]["note"])
        else:
            own["_found" if step == "references" else step] = result
    if whole:
        return
    own["part_labels"] = found.part_labels
    if (table := found.table("neurons")) is not None:
        own["neurons"] = ranked(table, own["virtual"])
    if (beside := found.arrays(BESIDE)) is not None:
        own[BESIDE] = found.among_all(beside["vectors"])
    vars(study.crops)["_without_crp"] = str(found.told["crops"]["misfit"])
    if isinstance(study.model, Absent):
        own["_weights"] = study.model.known
    if (pairs := found.table("pairs")) is not None:
        vars(study.classes)["pairs"] = pairs


def _results(found: Publication, p: Parameters) -> dict[str, Any]:
    """What was found in each step, as a study has it."""
    arrays = {step: values for step in STEPS if (values := found.arrays(step)) is not None}
    references, parts, every = arrays["references"], arrays["virtual"], found.among_all
    grid = tuple(int(size) for size in references.pop("grid"))
    given: dict[str, Any] = {name: every(values) for name, values in references.items()}
    made: dict[str, Any] = {"references": (References(p.target, p.ranked_by, grid=grid, **given), [])}
    names = {"circuits": "vectors", "layouts": "points", "boxes": "box", "objects": "label"}
    made |= {step: every(arrays[step][name]) for step, name in names.items() if step in arrays}
    made["virtual"] = _among_all(found, unpacked(parts, parts["start"].tolist()))
    return made


def _among_all(found: Publication, parts: Sequence[VirtualNeurons]) -> list[VirtualNeurons]:
    """The virtual neurons of the published neurons among those of all, of which nothing is known."""
    one = parts[0]
    unknown: dict[str, Any] = dict.fromkeys(("silhouette", "silhouette_gain", "p"), float("nan"))
    means = None if one.means is None else one.means[:0]
    none = replace(one, labels=np.full_like(one.labels, -1), centroids=one.centroids[:0], means=means, **unknown)
    every = [none] * found.shapes[0].channels
    for channel, own in zip(found.channels.tolist(), parts):
        every[channel] = own
    return every


def _fetched(address: str) -> Path:
    """The folder of Hugging Face's cache that a study on its hub is in, fetched if it is not there yet."""
    with needed("huggingface", "published studies on Hugging Face's hub need", StudyError):
        from huggingface_hub import snapshot_download
    place, _, revision = address.removeprefix(HUB).removeprefix("datasets/").partition("@")
    try:
        kept = snapshot_download(place, repo_type="dataset", revision=revision or None, ignore_patterns=["atlas/*"])
    except Exception as problem:  # its libraries raise a dozen kinds
        raise StudyError(
            f"the published study {address!r} is not in Hugging Face's cache and can't be fetched: "
            f"{sentence(problem).splitlines()[0]}. Without network, bring its folder: "
            "load_study(FOLDER)"
        ) from problem
    return Path(kept)
