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

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from torch import Tensor, nn

from pure_nb._imports import needed
from pure_nb.classes import Classes
from pure_nb.compute.store import Arrays, Store, _checksum, store_folder
from pure_nb.errors import ArgumentError, ImageError, LayerError, StudyError
from pure_nb.figures.render import Looked, square_around
from pure_nb.images._fitting import repeated
from pure_nb.images.data import Images
from pure_nb.images.reading import Unreadable
from pure_nb.images.sources import as_images
from pure_nb.methods.references import References
from pure_nb.methods.virtual import VirtualNeurons, unpacked
from pure_nb.network import models
from pure_nb.network.models import Absent
from pure_nb.network.shapes import LayerShape
from pure_nb.parameters import RUN, Run, check_name, checked
from pure_nb.study import Study

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Of the folder; raised when an older version of this package would misread it."""

HUB = "hf://"
"""Begins the address of a study on Hugging Face's hub, where it is a data set: ``hf://owner/name``."""

MANIFEST = "manifest.json"

OF_PART = 6
"""Reference images of each part that get a picture, if the strongest do: as many as a plot shows."""

ENTRIES = {
    "": "channels crops images keys layers made name network parameters pictured ranked weights",
    "images": "classes count files fingerprint labels name names objects pictures shape",
    "crops": "crop misfit note",
}
"""What ``study.json`` holds, and its tables; it is refused with anything else."""


class _Truth:
    """The names of the objects under the maxima; what is where else in the images is not known."""

    def __init__(self, classes: Sequence[str], why: str) -> None:
        self.classes, self.why = classes, why

    def object_at(self, index: int, x: float, y: float) -> int:
        """Raise, since there are no images to look at."""
        raise StudyError(self.why)


@dataclass(frozen=True, eq=False)
class Publication:
    """What is in the folder of a published study; all its files are as they were written.

    Attributes
    ----------
    folder
        Where they are.
    told
        What ``study.json`` says.
    seal
        Stands for all of them.
    """

    folder: Path
    told: dict[str, Any]
    seal: str

    @classmethod
    def read(cls, folder: Path) -> Publication:
        """Check a folder; raises a :class:`StudyError` if it is none, is newer, or is not as it was written."""
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            manifest = json.loads(text)
            version, files = manifest["format"], dict(manifest["files"])
        except FileNotFoundError as problem:
            raise StudyError(
                f"{str(folder)!r} holds no {MANIFEST}, so it is no published study, or not all of one: expected a "
                "folder that pure-nb publish has written, or a study's .toml file"
            ) from problem
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise StudyError(f"{str(folder / MANIFEST)!r} can't be read: {problem}; fetch the study again") from problem
        if version != FORMAT:
            raise StudyError(
                f"{str(folder)!r} was published in format {version!r}, and this version of pure_nb reads {FORMAT}: "
                "pip install --upgrade pure-nb"
            )
        for name, expected in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise StudyError(f"{str(folder)!r} names a file outside of it, {name!r}, and is not opened")
            if not (folder / path).is_file():
                raise StudyError(f"{str(folder)!r} lacks {name!r}, which was published: fetch the study again")
            if _checksum(folder / path) != expected:
                raise StudyError(
                    f"{str(folder / path)!r} is not as it was published, changed or cut: fetch the study again"
                )
        found = cls(folder, json.loads((folder / "study.json").read_text(encoding="utf-8")), _short(text))
        found._require_plain()
        return found

    def _require_plain(self) -> None:
        """Raise if more is told than there is to tell, such as where code is."""
        for table, known in ENTRIES.items():
            told = self.told[table] if table else self.told
            if set(told) != set(known.split()):
                wrong = sorted(set(told) ^ set(known.split()))[0]
                raise StudyError(
                    f"study.json in {str(self.folder)!r} {'has' if wrong in told else 'lacks'} the entry {wrong!r}: "
                    "a published study tells what was found and names no code, so it is not opened"
                )
        if not str(self.told["network"]).isidentifier():
            raise StudyError(f"study.json calls the network {self.told['network']!r}, expected the name of a class")

    @property
    def images(self) -> dict[str, Any]:
        """What is told of the images."""
        return self.told["images"]

    @property
    def why(self) -> str:
        """What to do where something is not here; without the folder, as an atlas of it says so, too."""
        return "give what was studied: load_study(FOLDER, model=..., images=...)"

    @cached_property
    def channels(self) -> NDArray[np.int64]:
        """The neurons that were published."""
        chosen = self.told["channels"]
        return np.arange(self.shapes[0].channels) if chosen is None else np.array(chosen, dtype=np.int64)

    @cached_property
    def shapes(self) -> tuple[LayerShape, LayerShape]:
        """How the target and the lower layer look."""
        target, lower = (LayerShape(**{**layer, "grid": tuple(layer["grid"])}) for layer in self.told["layers"])
        return target, lower

    def arrays(self, step: str) -> Arrays | None:
        """What was found in a step of the neurons that were published; None if it was not published."""
        path = self.folder / f"arrays/{step}.safetensors"
        if not path.is_file():
            return None
        return _mapped(path) if step == "circuits" else load_file(path)

    def table(self, name: str) -> pd.DataFrame | None:
        """A table; None if there is none."""
        import pandas as pd  # late, see pure_nb._imports

        path = self.folder / f"tables/{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else None

    def among_all(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rows of the published neurons among those of all, which are NaN, or -1 of whole numbers."""
        if self.told["channels"] is None:
            return values
        missing = np.nan if values.dtype.kind == "f" else -1
        every = np.full((self.shapes[0].channels, *values.shape[1:]), missing, values.dtype)
        every[self.channels] = values
        return every

    @cached_property
    def pictured(self) -> list[list[int]]:
        """The reference images of each published neuron that have a mask, and a picture, in the order of the masks."""
        references, parts = self.arrays("references"), self.arrays("virtual")
        assert references is not None
        assert parts is not None
        count = int(self.told["pictured"])
        rows = zip(references["sample"], parts["labels"])
        return [sample[pictured_ranks(labels, count)].tolist() for sample, labels in rows]

    def masks(self, channel: int) -> NDArray[np.bool_]:
        """Where a neuron looks in each of these: bool ``[pictured, H, W]``."""
        return read_masks(self.folder / f"masks/{channel}.png", self.images["shape"])

    @cached_property
    def credits(self) -> dict[int, str]:
        """Whom pictures are by, and under which licence, by the number of the image."""
        path = self.folder / "ATTRIBUTION.csv"
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            return {int(row["sample"]): credit(row) for row in csv.DictReader(file)}

    @cached_property
    def part_labels(self) -> pd.Series[str] | None:
        """What an embedder called the parts, by channel and part; None if none was asked."""
        parts = self.table("parts")
        return parts.set_index(["channel", "part"])["label"] if parts is not None and "label" in parts else None


def pictured_ranks(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Which reference images of a neuron get a picture: the strongest, and some of each part."""
    ranks = [np.flatnonzero(labels == part)[: min(count, OF_PART)] for part in range(labels.max(initial=-1) + 1)]
    return np.unique(np.concatenate([np.arange(min(count, len(labels))), *ranks]))


def read_masks(path: Path, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Masks of pictures ``[3, H, W]``, one below the other in a file: bool ``[pictured, H, W]``."""
    with Image.open(path, formats=["PNG"]) as image:
        return np.asarray(image.convert("1")).reshape(-1, *shape[1:])


def credit(row: dict[str, str]) -> str:
    """A line of a table of attributions, in words: author, licence and where the picture is from."""
    told = (row.get("author"), row.get("licence") or row.get("license"), row.get("source_url") or row.get("source"))
    return ", ".join(filter(None, told))


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
            example=torch.zeros(told["shape"]),  # of which only the shape is asked
        )

    def try_load(self, sample: int) -> Tensor | Unreadable:
        """Raise, since what the network was given was not published."""
        raise StudyError(self.why)

    def picture(self, sample: int) -> NDArray[np.uint8]:
        """An image as it was published, at the size of the network's input; see :meth:`Images.picture`."""
        path = self.found.folder / f"pictures/{int(sample)}.webp"
        if not path.is_file():
            how = {"none": "no pictures were", "crops": "only what neurons look at was"}.get(
                self.found.images["pictures"], "only reference images of the neurons were"
            )
            raise ImageError(f"there is no picture of image {sample}, as {how} published; {self.why}")
        height, width = self.found.images["shape"][1:]
        with Image.open(path, formats=["WEBP"]) as image:
            return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))

    def credit(self, sample: int) -> str:
        """As :meth:`Images.credit`: by the table of attributions beside the pictures."""
        return self.found.credits.get(int(sample), "")

    def path(self, sample: int) -> str:
        """The name of an image's file within its folder, if that was published."""
        return str(self.found.images["files"].get(str(int(sample)), f"item {sample} of {self.name}"))

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
        _, channel, sample = pair
        mask = self.found.masks(channel)[self.found.pictured[self.rows[channel]].index(sample)]
        return np.packbits(mask), square_around(mask)


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
    """A study out of a folder or a place on the hub; see :func:`pure_nb.loading.load_study`."""
    found = Publication.read(_fetched(str(source)) if str(source).startswith(HUB) else Path(source))
    told = found.told
    model = None if model is None else models.unwrapped(model)
    if model is not None and (own := models.fingerprint(model)) != told["weights"]:
        raise StudyError(
            f"the network given is not the one of the published study: a {type(model).__name__} known as {own}, "
            f"expected the {told['network']} {told['weights']}, with the same weights (and under the same Python, "
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
    try:
        name = check_name(told["name"])
        absent = type(told["network"], (Absent,), {"found": found})
        why = f"the network of the published study {name!r}, a {told['network']}, is not here: {found.why}"
        study = (Study if whole else Published)(
            name,
            absent(str(told["weights"]), why) if model is None else model,
            PublishedImages(found) if images is None else images,
            checked(told["parameters"]),
            Store(store_folder(store) / name),
            run,
        )
        _have(study, found, whole)
    except (KeyError, TypeError, ValueError, IndexError, OSError, SafetensorError) as problem:
        raise StudyError(f"{str(found.folder)!r} is not as pure_nb publishes a study: {problem!r}") from problem
    return study.replace(**changes) if changes else study


def _have(study: Study, found: Publication, whole: bool) -> None:
    """Let a study have all that was published; one with its network and images only what it would compute so."""
    if whole and found.told["channels"] is not None:
        return  # of some neurons only
    p, every, own = study.parameters, found.among_all, vars(study)

    def arrays(step: str) -> Arrays | None:
        fits = not whole or study.key(step) == found.told["keys"].get(step)
        return found.arrays(step) if fits else None

    references = arrays("references")
    if references is None:
        return
    grid = tuple(int(size) for size in references.pop("grid"))
    given: dict[str, Any] = {name: every(values) for name, values in references.items()}
    own["_found"] = References(p.target, p.ranked_by, grid=grid, **given), []
    own["ranked"] = str(found.told["ranked"])
    for step, name in (("circuits", "vectors"), ("layouts", "points"), ("objects", "label")):
        if (values := arrays(step)) is not None:
            own[step] = every(values[name])
    if (parts := arrays("virtual")) is not None:
        starts = parts.pop("start").tolist()
        missing = np.full_like(parts["labels"][0], -1), np.zeros_like(parts["centroids"][:1]), 0.0, 0.0, 1.0
        own["virtual"] = [VirtualNeurons(*missing)] * study.references.channels
        for channel, one in zip(found.channels.tolist(), unpacked(parts, starts)):
            own["virtual"][channel] = one
    if (boxes := arrays("boxes")) is not None:
        vars(study.crops)["_boxed"] = every(boxes["box"]), str(found.told["crops"]["note"])
    if whole:
        return
    if isinstance(study.model, Absent):
        own["_weights"] = study.model.known
    own["neurons"] = found.table("neurons")
    own["part_labels"] = found.part_labels
    vars(study.crops)["_without_crp"] = str(found.told["crops"]["misfit"])
    if (pairs := found.table("pairs")) is not None:
        vars(study.classes)["pairs"] = pairs


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
            f"{type(problem).__name__}: {str(problem).splitlines()[0]}. Without network, bring its folder: "
            "load_study(FOLDER)"
        ) from problem
    return Path(kept)


def _mapped(path: Path) -> Arrays:
    """The float32 arrays of a file of safetensors, read as they are looked at, which that library does not do."""
    with safe_open(path, "numpy"), path.open("rb") as file:  # which checks the header
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: np.memmap(path, np.float32, "r", 8 + size + int(own["data_offsets"][0]), tuple(own["shape"]))
        for name, own in header.items()
    }


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
