"""Images to study: any torch data set, a folder of pictures, or glyph scenes.

:class:`Images` is what every step of the package reads from. It wraps a data set and adds what a study needs
besides tensors: a fingerprint, so that stored results are found again; the picture behind each tensor, to be
looked at; and a way to get past a file that can't be read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pure_nb.glyphs import CLASSES, MEAN, STD, GlyphScenes


class ImageError(ValueError):
    """An image, or a folder of them, that can't be used."""


class EmbedderError(ValueError):
    """An embedder that can't be had, or that does not do what it should."""


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read: its number, its file where that is known, and the reason."""

    sample: int
    path: str
    reason: str

    def error(self) -> ImageError:
        """Make an error of it, one that says what to do."""
        return ImageError(
            f"image {self.sample} ({self.path}) can't be read: {self.reason}. Mend or remove it, or leave such images "
            "out (skip_unreadable=True, or --skip-unreadable)"
        )


@dataclass(frozen=True, eq=False)
class Images:
    """A data set, wrapped for a study.

    Parameters
    ----------
    dataset
        Its items are tensors ``[3, H, W]``, all of one shape, or tuples that start with one. A second entry
        is taken for the label.
    name
        What to call it in tables and messages.
    mean, std
        The normalisation in its transform, undone to show a picture. If None they are found in
        ``dataset.transform``; a data set without a ``Normalize`` is shown as it is.
    """

    dataset: Dataset[Any]
    name: str = "images"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise ImageError(f"the data set {self.name!r} is empty; a study needs at least one image")

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def tensor(self, sample: int) -> Tensor:
        """The network's input for an image, ``[3, H, W]``.

        Raises
        ------
        ImageError
            If it can't be read, or is no such tensor.
        """
        found = self.tensor_or_reason(sample)
        if isinstance(found, Unreadable):
            raise found.error()
        return found

    def tensor_or_reason(self, sample: int) -> Tensor | Unreadable:
        """The network's input for an image, or why there is none."""
        try:
            item = self.dataset[int(sample)]
            tensor = item[0] if isinstance(item, (tuple, list)) else item
        except Exception as problem:  # whatever a user's decoder raises, the sweep must be able to go on
            return Unreadable(int(sample), self.path(sample), f"{type(problem).__name__}: {problem}")
        if not isinstance(tensor, Tensor) or tensor.ndim != 3:
            shape = list(tensor.shape) if hasattr(tensor, "shape") else type(tensor).__name__
            reason = f"expected a tensor [channels, height, width], got {shape}; give the data set a transform"
            return Unreadable(int(sample), self.path(sample), reason)
        return tensor

    def path(self, sample: int) -> str:
        """The file behind an image, or a description where there is none."""
        files = getattr(self.dataset, "samples", None)
        return str(files[sample][0]) if files else f"item {sample} of {self.name}"

    def label(self, sample: int) -> str:
        """The name of an image's class, or "" where none is known."""
        targets = getattr(self.dataset, "targets", None)
        if targets is None:
            return ""
        classes = getattr(self.dataset, "classes", None)
        target = int(targets[sample])
        return str(classes[target]) if classes else str(target)

    def picture(self, sample: int) -> NDArray[np.uint8]:
        """An image as one looks at it, uint8 ``[H, W, 3]``: the network's input with its normalisation undone."""
        tensor = self.tensor(sample)
        if self.normalisation:
            mean, std = (torch.tensor(values)[:, None, None] for values in self.normalisation)
            tensor = tensor * std + mean
        if tensor.shape[0] == 1:
            tensor = tensor.expand(3, -1, -1)
        return tensor.clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy().astype(np.uint8)

    @cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation that the data set's transform takes out, if any."""
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        return _normalisation(self.dataset)

    @cached_property
    def example(self) -> Tensor:
        """The first image that can be read; once it is known, all others must have its shape.

        Raises
        ------
        ImageError
            If none can be read.
        """
        for sample in range(len(self)):
            found = self.tensor_or_reason(sample)
            if isinstance(found, Tensor):
                return found
        return self.tensor(0)  # says why it can't be read

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the images change.

        It covers the number of images, the transform, the labels, and sixteen items spread over the data set; of a
        folder also every file's name, size and time of change.
        """
        # A function's repr holds its address, which differs from run to run.
        transform = re.sub(r" at 0x[0-9a-f]+", "", repr(getattr(self.dataset, "transform", None)))
        digest = hashlib.sha256(f"{type(self.dataset).__name__} {len(self)} {transform}".encode())
        targets, classes = (getattr(self.dataset, name, None) for name in ("targets", "classes"))
        # Whole, whereas the repr of a long array or tensor is abbreviated.
        digest.update(repr(targets if targets is None else np.asarray(targets).tolist()).encode())
        digest.update(repr(classes if classes is None else list(classes)).encode())
        if isinstance(self.dataset, ImageFolder):
            for name, _ in self.dataset.samples:
                path = Path(name)
                status = path.stat()
                entry = f"{path.relative_to(self.dataset.root)} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(entry.encode())
        for sample in np.unique(np.linspace(0, len(self) - 1, 16).astype(int)):
            found = self.tensor_or_reason(int(sample))
            digest.update(found.reason.encode() if isinstance(found, Unreadable) else found.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def synsets(self) -> dict[str, str]:
        """What WordNet calls the classes, where their own names would not do."""
        return {c.name: c.synset for c in CLASSES} if isinstance(self.dataset, GlyphScenes) else {}

    @property
    def scenes(self) -> GlyphScenes | None:
        """The glyph scenes behind the images, if that is what they are: then every object is known."""
        return self.dataset if isinstance(self.dataset, GlyphScenes) else None


def class_labels(images: Images, outputs: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The true class of each image, as an index into a network's outputs.

    Parameters
    ----------
    images
        A data set with ``targets`` and ``classes``, as torchvision's have. Its classes are the network's, in the same
        order; or they are some of the 1000 of ImageNet, named by their WordNet ids (``n01440764``). Where it has
        ``wnids``, as torchvision's ``ImageNet``, these are the names.
    outputs
        Number of the network's outputs.

    Returns
    -------
    tuple
        int64 ``[images]``, and the names of all outputs.

    Raises
    ------
    ImageError
        If there are no labels, or they can't be matched with the outputs.
    """
    targets = getattr(images.dataset, "targets", None)
    if targets is None or len(targets) != len(images):
        raise ImageError(
            f"the images {images.name!r} have no labels; a data set with classes has the attributes targets and "
            "classes, as torchvision's ImageFolder"
        )
    labels = np.asarray(targets, dtype=np.int64)
    named = getattr(images.dataset, "wnids", None) or getattr(images.dataset, "classes", None)
    names = tuple(map(str, named or range(labels.max() + 1)))
    if len(names) == outputs:
        return labels, names
    imagenet = tuple(ImageNetInfo().label_names())  # type: ignore[no-untyped-call]
    if len(imagenet) == outputs and set(names) <= set(imagenet):
        return np.where(labels < 0, -1, np.array([imagenet.index(name) for name in names])[labels]), imagenet
    raise ImageError(
        f"the images {images.name!r} are of {len(names)} classes ({', '.join(names[:3])} ...) and the network puts out "
        f"{outputs}: expected as many, in the same order, or folders named by ImageNet's WordNet ids"
    )


def _normalisation(thing: object) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation found in a data set, its transform, or what these are made of."""
    mean, std = getattr(thing, "mean", None), getattr(thing, "std", None)
    if isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)):
        return tuple(mean), tuple(std)
    inside = [*(getattr(thing, "transforms", None) or ())] if isinstance(thing, transforms.Compose) else []
    for part in (*inside, getattr(thing, "transform", None), getattr(thing, "dataset", None)):
        found = _normalisation(part) if part is not None else None
        if found:
            return found
    return None


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images: their numbers, their tensors ``[B, 3, H, W]``, and those that could not be read."""

    samples: NDArray[np.int64]
    images: Tensor
    unreadable: tuple[Unreadable, ...]


class _Numbered(Dataset[tuple[int, "Tensor | Unreadable"]]):
    """Items with their numbers, and reasons instead of exceptions, so that they pass through a DataLoader."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: int) -> tuple[int, Tensor | Unreadable]:
        return int(sample), self.images.tensor_or_reason(sample)


def _collate(images: Images, expected: torch.Size, items: list[tuple[int, Tensor | Unreadable]]) -> Batch:
    """Stack what can be read and has the expected shape."""
    samples: list[int] = []
    tensors: list[Tensor] = []
    lost: list[Unreadable] = []
    for sample, found in items:
        if isinstance(found, Unreadable):
            lost.append(found)
        elif found.shape != expected:
            reason = (
                f"its shape {list(found.shape)} differs from {list(expected)} of the first image; "
                "resize and crop to one size in the transform"
            )
            lost.append(Unreadable(sample, images.path(sample), reason))
        else:
            samples.append(sample)
            tensors.append(found)
    stacked = torch.stack(tensors) if tensors else torch.empty(0)
    return Batch(np.array(samples, dtype=np.int64), stacked, tuple(lost))


def batches(images: Images, samples: Sequence[int], *, batch_size: int = 32, workers: int = 0) -> Iterator[Batch]:
    """The given images, in the given order, in batches.

    Parameters
    ----------
    images, samples
        The data set, and the numbers of the images wanted.
    batch_size
        Images in a batch; the last may have fewer.
    workers
        Processes that load ahead; 0 loads in this one.

    Raises
    ------
    ImageError
        If no image of the data set can be read.
    """
    yield from DataLoader(
        _Numbered(images),
        batch_size=batch_size,
        sampler=samples,
        num_workers=workers,
        collate_fn=partial(_collate, images, images.example.shape),
    )


def glyph_images(length: int = 4000, seed: int = 0) -> Images:
    """Validation scenes of the glyph world."""
    return Images(GlyphScenes(length, "val", seed), "glyphs", MEAN, STD)


def folder_images(
    root: Path | str,
    *,
    resize: int | None = 256,
    crop: int | None = 224,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Images:
    """A folder of pictures, in one subfolder a class.

    Parameters
    ----------
    root
        The folder; it must hold subfolders with pictures, as for torchvision's ``ImageFolder``.
    resize
        Length in pixels that the shorter side is scaled to; None leaves it.
    crop
        Side in pixels of the square cut from the middle; None leaves all.
    mean, std
        Normalisation that the network expects; ImageNet's by default.

    Raises
    ------
    ImageError
        If the folder is missing or has no pictures.
    """
    root = Path(root)
    if not root.is_dir():
        raise ImageError(
            f"there is no folder {str(root)!r}; name one that holds a subfolder of pictures for each class"
        )
    steps = [transforms.Resize(resize)] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    steps += [transforms.ToTensor(), transforms.Normalize(list(mean), list(std))]
    try:
        dataset = ImageFolder(str(root), transforms.Compose(steps))
    except FileNotFoundError as problem:
        raise ImageError(
            f"{str(root)!r} holds no pictures: expected a subfolder for each class with .jpg, .png ... files in it "
            f"({problem})"
        ) from problem
    return Images(dataset, root.name)
