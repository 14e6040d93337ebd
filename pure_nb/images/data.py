"""Images to study, one by one and in batches.

:class:`Images` is what every step of the package reads from; :mod:`pure_nb.images.sources` makes it of many things. It
wraps a data set and adds what a study needs besides tensors: a fingerprint, so that stored results are found again; the
picture behind each tensor, to be looked at; and a way to get past a file that can't be read.

Data sets are read in threads beside the calling one, one image of a data set at a time, so that loading can overlap
with computing and an image that never arrives ends in an error and not in a wait without end.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from multiprocessing import current_process
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import functional

from pure_nb._imports import needed
from pure_nb.errors import ArgumentError, ImageError, PureError, StudyWarning

PATIENCE = 300.0
"""Seconds that an image, or a batch of worker processes, is waited for."""

WHITE: dict[torch.dtype, float] = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
"""The value that is white in a picture of numbers of a type; of other types it is not known."""

BEYOND = 0.01
"""Part of a picture's numbers that may lie outside of 0..1, as where a resized one overshoots."""

SEEN = 64
"""Pictures by which labels are compared with what a network says."""

WNID = re.compile(r"n\d{8}")
"""What WordNet calls a class of ImageNet's."""

T = TypeVar("T")

Labels = tuple["NDArray[np.int64] | None", tuple[str, ...]]
"""The class of each item, None where it is not known; and the names of the classes, none where they have none."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The normalisation of ImageNet's colours, which most networks expect, the shipped one too."""


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read: its number, its file where that is known, and the reason."""

    sample: int
    path: str
    reason: str

    def error(self) -> ImageError:
        """Make an error of it, one that says what to do."""
        return ImageError(
            f"image {self.sample} ({self.path}) can't be read: {self.reason}. Mend or remove it, or leave such "
            "images out (skip_unreadable=True, or --skip-unreadable)"
        )


@runtime_checkable
class Truth(Protocol):
    """A data set that knows what is where in its images: glyph scenes, or pictures with boxes.

    See :mod:`pure_nb.images.boxes`.
    """

    classes: Sequence[str]
    """Names of the kinds of objects."""

    def object_at(self, index: int, x: float, y: float) -> int:
        """The class of the object at a place of an image, in pixels of the network's input; -1 where there is none."""


@dataclass(frozen=True, eq=False)
class Images:
    """A data set, wrapped for a study. :func:`pure_nb.images.sources.as_images` makes it of other things too.

    Parameters
    ----------
    dataset
        Its items are tensors ``[3, H, W]``, all of one shape, or tuples that start with one. Arrays are taken for
        tensors, also those with the channels last, by :func:`as_tensor`. Files, labels, names of
        classes and the normalisation are found in the data sets of torchvision, in those that have its
        attributes (``targets``, ``classes``, ``samples``, ``transform``), and in the ``Subset`` or ``ConcatDataset`` of
        such.
    name
        What to call it in tables and messages.
    mean, std
        The normalisation of the tensors, one number a channel or one for all, undone to show a picture. If None they
        are found in ``dataset.transform``; a data set without a ``Normalize`` is shown as it is, with a warning if
        that can't be a picture. Whole numbers are no network's input yet: they are scaled to 0..1, and then normalised.
    synsets
        What WordNet calls some classes, where their names would be misunderstood: ``{"king": "king.n.10"}``; also those
        that are an attribute of the data set.
    white
        The value of whole numbers that is white, as for :func:`scaled`.
    channels
        How often grey images are repeated, for a network that expects colours.
    """

    dataset: Dataset[Any]
    name: str = "images"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    synsets: Mapping[str, str] = field(default_factory=dict)
    white: float | None = None
    channels: int | None = None
    # A data set may be read by a loader and by the caller at once, and few are made for that.
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise ImageError(f"the data set {self.name!r} is empty; a study needs at least one image")
        object.__setattr__(self, "name", printable(self.name))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None:
                object.__setattr__(self, name, tuple(float(value) for value in np.ravel(values)))
        if len(self.mean or ()) != len(self.std or ()) or min(self.std or (1,)) <= 0:
            raise ImageError(
                f"{self.name!r}: expected a mean and a std, as many numbers of each, std above 0; got mean={self.mean} "
                f"and std={self.std}"
            )
        known = getattr(_behind(self.dataset, 0)[0], "synsets", None)
        if isinstance(known, Mapping):
            object.__setattr__(self, "synsets", {**known, **self.synsets})

    def __reduce__(self) -> tuple[Any, ...]:
        # All but the lock, which can't be pickled.
        return Images, (self.dataset, self.name, self.mean, self.std, self.synsets, self.white, self.channels)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def tensor(self, sample: int) -> Tensor:
        """The network's input for an image, ``[3, H, W]``.

        Raises
        ------
        ImageError
            If it can't be read, does not arrive, or is no such tensor.
        """
        found = _read(self, [int(sample)])[0]
        if isinstance(found, Unreadable):
            raise found.error()
        return found

    def tensor_or_reason(self, sample: int) -> Tensor | Unreadable:
        """The network's input for an image, or why there is none. It is waited for without end."""
        try:
            with self._lock:
                source, number = _behind(self.dataset, int(sample))
                if getattr(source, "loader", None) is default_loader:
                    _require_bytes(_file(source, number))
                return self._input(self.dataset[int(sample)])
        except PureError as problem:
            return Unreadable(int(sample), printable(self.path(sample)), str(problem))
        except Exception as problem:  # whatever a user's decoder raises, the sweep must be able to go on
            return Unreadable(int(sample), printable(self.path(sample)), f"{type(problem).__name__}: {problem}")

    def _input(self, item: Any) -> Tensor:
        """The network's input of an item of the data set."""
        tensor = item[0] if isinstance(item, (tuple, list)) and len(item) else item
        if isinstance(tensor, np.ndarray):
            tensor = as_tensor(tensor)
        if not isinstance(tensor, Tensor) or tensor.ndim != 3 or tensor.is_complex():
            raise ImageError(
                "expected a tensor [channels, height, width], got "
                f"{_described(tensor if isinstance(tensor, Tensor) else item)}; give the data set a transform that "
                "makes such a tensor, first in each item"
            )
        tensor = tensor.detach()
        if not tensor.is_floating_point():
            tensor = scaled(tensor, self.white, f"a tensor of {tensor.dtype}")
            if self.mean and self.std:
                tensor = functional.normalize(tensor, self.mean, self.std)
        return tensor.expand(self.channels, -1, -1) if self.channels and len(tensor) == 1 else tensor

    def path(self, sample: int) -> str:
        """The file behind an image, or a description where there is none; :func:`printable` makes a text of it."""
        return str(_file(*_behind(self.dataset, int(sample))) or f"item {sample} of {self.name}")

    def label(self, sample: int) -> str:
        """The name of an image's class, as :func:`spoken` has it, or "" where none is known."""
        target = -1 if self.targets is None else int(self.targets[sample])
        if target < 0:
            return ""
        return self._spoken[target] if target < len(self._spoken) else str(target)

    @cached_property
    def _spoken(self) -> list[str]:
        return spoken(self.classes)

    @property
    def targets(self) -> NDArray[np.int64] | None:
        """The class of each image, int64 ``[images]``, below 0 where it is not known; None without labels."""
        return self._labels[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none where they have no names."""
        return self._labels[1]

    @cached_property
    def _labels(self) -> Labels:
        return _labels(self.dataset, ("classes", "categories"))

    def picture(self, sample: int) -> NDArray[np.uint8]:
        """An image as one looks at it, uint8 ``[H, W, 3]``: the network's input with its normalisation undone.

        A warning says so where the numbers are not those of a picture, since a normalisation is not known.
        """
        tensor = self.tensor(sample).float()
        if self.normalisation:
            mean, std = (torch.tensor(values)[:, None, None] for values in self.normalisation)
            if len({len(mean), len(tensor), 1}) > 2:
                raise ImageError(
                    f"{self.name!r}: a mean and std of {len(mean)} numbers can't be those of {len(tensor)} channels"
                )
            tensor = tensor * std + mean
        elif ((tensor < 0) | (tensor > 1)).float().mean() > BEYOND:
            warnings.warn(
                f"the pictures of {self.name!r} are shown, and judged by embedders, with wrong colours: their numbers, "
                f"here from {tensor.min():.3g} to {tensor.max():.3g}, are not from 0 to 1. Give the mean and std by "
                "which they were normalised (as_images(..., mean=..., std=...), and so Study.of); of numbers from 0 to "
                "255 these are 0 and 1/255",
                StudyWarning,
                stacklevel=2,
            )
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
            If none can be read, or one does not arrive.
        """
        for sample in range(len(self)):
            found = _read(self, [sample])[0]
            if isinstance(found, Tensor):
                return found
        return self.tensor(0)  # says why it can't be read

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the images change.

        It covers the number of images, the transform, the labels, how files are read, and sixteen items spread over
        the data set; of files also each one's name, size and time of change, of a part of a data set which items they
        are, of a ``TensorDataset`` all that is in it, and of Hugging Face's data their own fingerprint. A normalisation
        or a white that is given belongs to it.

        Raises
        ------
        ImageError
            If an image does not arrive.
        """
        digest = hashlib.sha256(f"{type(self.dataset).__name__} {len(self)} {_made(self.dataset)}".encode())
        if self.normalisation != _normalisation(self.dataset) or self.white is not None:
            digest.update(repr((self.normalisation, self.white)).encode())
        # Whole, whereas the repr of a long array is abbreviated.
        digest.update(repr(None if self.targets is None else self.targets.tolist()).encode())
        digest.update(repr(list(self.classes) or None).encode())
        before: object = self.dataset
        for sample in range(len(self)):
            source, number = _behind(self.dataset, sample)
            if source is not before:
                before = source
                digest.update(_made(source).encode())
            if source is not self.dataset:
                digest.update(f"{number} ".encode())
            file = _file(source, number)
            if file is not None:
                digest.update(_state(file, getattr(source, "root", None)))
        if isinstance(self.dataset, TensorDataset):
            for tensor in self.dataset.tensors:
                digest.update(_bytes(tensor))
        digest.update(str(getattr(self.dataset, "fingerprint", "")).encode())
        spread = np.unique(np.linspace(0, len(self) - 1, 16).astype(int)).tolist()
        for found in _read(self, spread):
            digest.update(found.reason.encode() if isinstance(found, Unreadable) else _bytes(found))
        return digest.hexdigest()[:16]

    @property
    def truth(self) -> Truth | None:
        """The data set, if it knows what is where in its images."""
        return self.dataset if isinstance(self.dataset, Truth) else None

    @property
    def drawn(self) -> bool:
        """Whether the images are drawn by the package itself, which then has judges and a WordNet for them."""
        return getattr(self.dataset, "drawn", False) is True


def printable(text: str) -> str:
    """A text that can be written anywhere, as a name of a file that is no UTF-8 can't."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor of an array, with the channels first: ``[H, W, 3]`` as pictures have them becomes ``[3, H, W]``.

    Parameters
    ----------
    array
        Of two axes, a grey picture; or of more, of which the last may be the channels if it is 1, 3 or 4 long and the
        third from the end is not. ``[H, W]`` becomes ``[1, H, W]``.

    Raises
    ------
    ImageError
        If torch has no numbers of its type.
    """
    sizes = (1, 3, 4)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim > 2 and array.shape[-1] in sizes and array.shape[-3] not in sizes:
        array = np.moveaxis(array, -1, -3)
    try:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError as problem:
        raise ImageError(f"expected an array of numbers, got one of {array.dtype}") from problem


def scaled(values: Tensor, white: float | None = None, what: str = "a picture") -> Tensor:
    """The numbers of a picture as float32 from 0, black, to 1, white.

    Parameters
    ----------
    values
        As a picture's file or a data set has them.
    white
        Which value is white. If None, it is the largest of the type for bits, bytes and 16 bits without sign, and 1 for
        float32.
    what
        What to call it in messages.

    Raises
    ------
    ImageError
        If a value is below 0 or beyond white; if the type does not tell what is white; or if 16 bits hold no value in
        the upper three quarters, as pictures of 10, 12 or 14 bits do, and dark ones.
    """
    low, high = float(values.double().min()), float(values.double().max())
    known = WHITE.get(values.dtype) if white is None else white
    span = f"{what} has values from {low:g} to {high:g}"
    if known is None or not 0 <= low <= high <= known:
        expected = "it is not known which is white" if known is None else f"expected some from 0 to {known:g}, white"
        raise ImageError(f"{span}, and {expected}: say which value is white (white=...), or scale it to 0..1")
    if white is None and values.dtype == torch.uint16 and 0 < high < 2**14:
        bits = f"{2 ** int(high).bit_length() - 1}"
        raise ImageError(
            f"{span} of 65535, so it is very dark or of fewer than 16 bits: say which value is white, white={bits} or "
            "white=65535"
        )
    return (values.double() / known).float()


def _require_bytes(file: Path | None) -> None:
    """Raise for a picture that torchvision's loader cuts off at 255."""
    if file is not None:
        with Image.open(file) as picture:
            mode = picture.mode
        if mode.startswith(("I", "F")):
            raise ImageError(
                f"a picture of mode {mode!r} has more than 8 bits, and torchvision's loader cuts them off; give the "
                "data set another loader, such as loader=pure_nb.images.sources.Reader()"
            )


def _described(item: Any) -> str:
    """What an item of a data set is, in a few words."""
    if isinstance(item, (Tensor, np.ndarray)):
        return f"{list(item.shape)}{' of complex numbers' * np.iscomplexobj(item)}"
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} with {', '.join(map(repr, item))}"
    if isinstance(item, (tuple, list)) and item:
        return f"({', '.join(_described(part) for part in item)})"
    return type(item).__name__


def _made(dataset: Any) -> str:
    """How a data set makes its images: what reads the files, and what is done to them."""
    parts = [getattr(dataset, "transform", None), *([dataset.loader] if hasattr(dataset, "loader") else [])]
    # A function's repr holds its address, which differs from run to run.
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(map(repr, parts)))


def _bytes(tensor: Tensor) -> memoryview:
    """What a tensor is made of, of whatever type and wherever it is."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _behind(dataset: Any, sample: int) -> tuple[Any, int]:
    """The data set that an item of a part of it, or of several in a row, comes from, and its number there."""
    while isinstance(dataset, (Subset, ConcatDataset)):
        if isinstance(dataset, Subset):
            dataset, sample = dataset.dataset, int(dataset.indices[sample])
        else:
            sample %= len(dataset)
            part = bisect_right(dataset.cumulative_sizes, sample)
            dataset, sample = dataset.datasets[part], sample - [0, *dataset.cumulative_sizes][part]
    return dataset, sample


def _file(dataset: object, sample: int) -> Path | None:
    """The file of an item, where the data set has a list of them as torchvision's have."""
    for name in ("samples", "files", "_samples", "_image_files", "_images"):
        files = getattr(dataset, name, None)
        if isinstance(files, (list, tuple)) and len(files) == len(dataset):  # type: ignore[arg-type]
            entry = files[sample]
            found = entry[0] if isinstance(entry, (list, tuple)) and entry else entry
            if isinstance(found, (str, os.PathLike)):
                return Path(found)
    return None


def _state(file: Path, root: object) -> bytes:
    """A file's name from its data set's folder on, its size and time of change."""
    inside = isinstance(root, (str, os.PathLike)) and file.is_relative_to(root)
    name = (file.relative_to(root) if inside else file).as_posix()  # type: ignore[arg-type]
    try:
        status = file.stat()
    except OSError:
        return os.fsencode(f"{name} can't be read\n")
    return os.fsencode(f"{name} {status.st_size} {status.st_mtime_ns}\n")


def _labels(dataset: Any, names: tuple[str, ...]) -> Labels:
    """Classes of the items and their names; ``names`` are the attributes in which these are looked for."""
    if isinstance(dataset, Subset):
        targets, classes = _labels(dataset.dataset, names)
        return None if targets is None else targets[np.asarray(dataset.indices, dtype=np.int64)], classes
    if isinstance(dataset, ConcatDataset):
        return _joined([_labels(part, names) for part in dataset.datasets])
    found = [named for name in names if (named := getattr(dataset, name, None)) is not None and len(named)]
    numbers = getattr(dataset, "class_to_idx", None)
    if not found and isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
        found = [sorted(numbers, key=numbers.__getitem__)]
    return _targets(dataset), tuple(printable(str(name)) for name in (found[0] if found else ()))


def _joined(parts: list[Labels]) -> Labels:
    """Labels of several data sets in a row: a class is the same where its name is, or its number without names."""
    merged = tuple(dict.fromkeys(name for _, names in parts for name in names))
    found = []
    for targets, names in parts:
        if targets is None or bool(names) != bool(merged) or (names and targets.max(initial=-1) >= len(names)):
            return None, merged
        place = [merged.index(name) for name in names] or range(targets.max(initial=-1) + 1)
        found.append(np.array([*place, -1])[np.maximum(targets, -1)])  # the last is for classes that are not known
    return np.concatenate(found), merged


def _targets(dataset: Any) -> NDArray[np.int64] | None:
    """The class of each item, from whatever attribute holds one whole number for each."""
    for candidate in _candidates(dataset):
        with suppress(ValueError, TypeError, RuntimeError):  # ragged lists, tensors on other devices: no labels
            found = np.asarray(candidate)
            if found.dtype.kind in "iu" and found.shape == (len(dataset),):
                return found.astype(np.int64)
    return None


def _candidates(dataset: Any) -> Iterator[Any]:
    """What may be the labels of a data set, by the names that torchvision's have for them."""
    for name in ("targets", "labels", "_labels", "y"):
        yield getattr(dataset, name, None)
    if isinstance(dataset, TensorDataset):
        yield from dataset.tensors[1:2]
    for name in ("samples", "_samples"):
        pairs = getattr(dataset, name, None)
        if isinstance(pairs, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            yield [target for _, target in pairs]


def spoken(names: Sequence[str]) -> list[str]:
    """Names of classes as one says them: of ImageNet's WordNet ids the first English word, others as they are.

    Without timm, which has the words, ids stay as they are, too.

    Parameters
    ----------
    names
        Such as ``n01440764`` or ``hop_clover``, all different.
    """
    known: dict[str, str] = {}
    if any(map(WNID.fullmatch, names)):
        with suppress(ImageError):
            known = _imagenet()
    words: list[str] = []
    for name in names:
        lemmas = known.get(name, name.replace("_", " "))
        # Two of ImageNet's classes are cranes: the second is called by what sets it apart, or by its number.
        options = [lemma.strip() for lemma in lemmas.split(",")] + [f"{lemmas.split(',')[0]} ({name})"]
        words.append(next(word for word in options if word not in words))
    return words


def _imagenet(outputs: int = 1000) -> dict[str, str]:
    """The words of the ImageNet of so many classes, by their WordNet ids, in the order of outputs; of none, if none."""
    with needed("timm", "the words and the order of ImageNet's classes need", ImageError):
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset  # late: timm takes a second to import
    subset = infer_imagenet_subset({"num_classes": outputs})
    info = ImageNetInfo(subset) if subset else None
    names = info.label_names() if info else []  # type: ignore[no-untyped-call]
    return {name: info.label_name_to_description(name) for name in names} if info else {}


def class_labels(images: Images, outputs: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The true class of each image, as an index into a network's outputs.

    Parameters
    ----------
    images
        A data set with labels, as torchvision's have in ``targets`` and ``classes``, a part of one, or several in a
        row. Its classes are some of ImageNet's, named by their WordNet ids (``n01440764``), for a network with as many
        outputs as ImageNet or one of its larger kinds has classes; or some of the outputs, named by their numbers,
        from 0; or the network's own, in the same order. Where it has ``wnids``, as torchvision's ``ImageNet``, these
        are the names. Labels without names are numbers of outputs.
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
    labels, named = _labels(images.dataset, ("wnids", "classes", "categories"))
    if labels is None:
        raise ImageError(
            f"the images {images.name!r} have no labels; a data set with classes has the attributes targets and "
            "classes, as torchvision's ImageFolder"
        )
    names = named or tuple(map(str, range(labels.max(initial=-1) + 1)))
    imagenet = [*_imagenet(outputs)] if names and all(map(WNID.fullmatch, names)) else []
    known = {name: number for number, name in enumerate(imagenet)}
    fits = labels.max(initial=-1) < len(names)
    if fits and names and set(names) <= set(known):
        place, all_names = [known[name] for name in names], imagenet
    elif fits and _are_outputs(names, outputs):
        place, all_names = [int(name) for name in names], [str(number) for number in range(outputs)]
        for number, name in zip(place, names):
            all_names[number] = name  # with the zeros before it, if that is how the folder is called
    elif len(names) == outputs:
        return labels, names
    else:
        raise ImageError(
            f"the images {images.name!r} are of {len(names)} classes ({', '.join(names[:3])} ...) and the network puts "
            f"out {outputs}: expected as many, in the same order, or folders named by ImageNet's WordNet ids, or by "
            "the numbers of the outputs, from 0"
        )
    return np.where(labels < 0, -1, np.array(place, dtype=np.int64)[labels]), tuple(all_names)


def _are_outputs(names: Sequence[str], outputs: int) -> bool:
    """Whether names are numbers of outputs."""
    numbers = {int(name) for name in names if name.isdecimal()}
    return len(numbers) == len(names) > 0 and max(numbers) < outputs


def seen_labels(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of at most :data:`SEEN` labelled images, spread over the classes."""
    order = np.argsort(labels, kind="stable")[(labels < 0).sum() :]
    return order[np.unique(np.linspace(0, len(order) - 1, min(SEEN, len(order))).astype(int))]


def at_chance(labels: NDArray[np.int64], answers: NDArray[np.int64]) -> bool:
    """Whether a network's answers agree with labels no more than by chance, though the images are enough to tell.

    By chance means: as often as if the same answers had been dealt to the images at random. Two binomial tests must
    agree: the share of right answers is not larger than by chance (p above 0.05), and it is smaller than that of a
    network a quarter of the way from chance to always right (p below 0.01). The second leaves alone what a handful of
    images can't tell, and a network that is at least so good is suspected less than once in a hundred times.

    Parameters
    ----------
    labels, answers
        The class of each image, and the network's largest output.
    """
    count = len(labels)
    classes = np.arange(max(labels.max(initial=0), answers.max(initial=0)) + 1)
    share = [(values[:, None] == classes).mean(axis=0) if count else 0 * classes for values in (labels, answers)]
    chance, right = min(1.0, float(share[0] @ share[1])), int((labels == answers).sum())
    able = chance + (1 - chance) / 4
    return bool(
        count
        and scipy.stats.binomtest(right, count, chance, alternative="greater").pvalue > 0.05
        and scipy.stats.binomtest(right, count, able, alternative="less").pvalue < 0.01
    )


def _normalisation(thing: object) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation found in a data set, its transform, or what these are made of."""
    mean, std = getattr(thing, "mean", None), getattr(thing, "std", None)
    if all(isinstance(values, (list, tuple, Tensor, np.ndarray)) for values in (mean, std)):
        return tuple(map(float, mean)), tuple(map(float, std))  # type: ignore[arg-type]
    inside = [*thing] if isinstance(thing, nn.Sequential) else []
    for name in ("transforms", "datasets", "transform", "dataset"):  # of Compose, in torchvision and in albumentations
        part = getattr(thing, name, None)
        inside += part if isinstance(part, (list, tuple)) else [part]
    for part in inside:
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


Numbered = tuple[int, "Tensor | Unreadable"]
"""The number of an image, and its tensor or why there is none."""


class _Reading(Thread, Generic[T]):
    """Images that a thread of their own is reading; it ends with them, so a caller who goes away leaves nothing behind.

    Parameters
    ----------
    images, samples
        The data set, and the numbers of the images wanted.
    collate
        What to make of them.
    """

    def __init__(self, images: Images, samples: Sequence[int], collate: Callable[[list[Numbered]], T]) -> None:
        super().__init__(name=f"reading {images.name}", daemon=True)  # one that hangs must not keep the process alive
        self.images, self.samples, self.collate = images, samples, collate
        self.read: list[Numbered] = []
        self.problem: BaseException | None = None
        self.result: T | None = None
        self.stopped = False
        self.start()

    def run(self) -> None:
        """Read the images."""
        try:
            for sample in self.samples:
                if self.stopped:
                    return
                self.read.append((int(sample), self.images.tensor_or_reason(sample)))
            self.result = self.collate(self.read)
        except BaseException as problem:  # raised where the images are waited for
            self.problem = problem

    def wait(self, patience: float) -> T:
        """What was made of the images; an error if for ``patience`` seconds none is added."""
        while self.is_alive():
            before = len(self.read)
            self.join(patience)
            if self.is_alive() and len(self.read) == before < len(self.samples):
                raise _late(self.images, self.samples[before : before + 1], patience)
        if self.problem is not None:
            raise self.problem
        return self.result  # type: ignore[return-value]

    def close(self) -> None:
        """Read no further image. One that is being read is waited for, but not for long: it may never arrive."""
        self.stopped = True
        self.join(timeout=1)


def _at_hand(images: Images) -> bool:
    """Whether images are drawn or in memory, so that reading them waits for nothing."""
    source = _behind(images.dataset, 0)[0]
    return getattr(source, "drawn", False) is True or isinstance(source, TensorDataset)


def _read(images: Images, samples: Sequence[int]) -> list[Tensor | Unreadable]:
    """Some images, or an error where one does not arrive."""
    if _at_hand(images):
        with torch.inference_mode(False):  # the caller's own need not be that of whoever gets the images
            return [images.tensor_or_reason(sample) for sample in samples]
    return [found for _, found in _Reading(images, samples, list).wait(PATIENCE)]


def _late(images: Images, samples: Sequence[int], patience: float, reason: str = "") -> ImageError:
    """An error for images that did not arrive."""
    listed = ", ".join(f"{sample} ({printable(images.path(sample))})" for sample in samples[:8])
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    return ImageError(
        f"waited for image{'s' * (len(samples) > 1)} {listed}{more}: "
        f"{reason or f'nothing arrived for {patience:g} s'}. Check the disk or network that is read and the memory "
        "that is free, try them alone (images.tensor(number)), and mend or remove what can't be read"
    )


class _Numbered(Dataset[Numbered]):
    """Items with their numbers, and reasons instead of exceptions, so that they pass through a DataLoader."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: int) -> Numbered:
        return int(sample), self.images.tensor_or_reason(sample)


def _collate(images: Images, expected: torch.Size, items: list[Numbered]) -> Batch:
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
            lost.append(Unreadable(sample, printable(images.path(sample)), reason))
        else:
            samples.append(sample)
            tensors.append(found)
    stacked = torch.stack(tensors) if tensors else torch.empty(0)
    return Batch(np.array(samples, dtype=np.int64), stacked, tuple(lost))


def batches(
    images: Images,
    samples: Sequence[int],
    *,
    batch_size: int = 32,
    workers: int = 0,
    patience: float = PATIENCE,
) -> Generator[Batch, None, None]:
    """The given images, in the given order, in batches.

    The next batch is loaded while the caller computes, unless the images are drawn, or tensors in memory. A
    caller who stops early closes the generator, or drops it: then nothing more is loaded.

    Parameters
    ----------
    images, samples
        The data set, and the numbers of the images wanted.
    batch_size
        Images in a batch; the last may have fewer.
    workers
        Processes that load ahead, two batches each; 0 loads in a thread of this process, one batch ahead, and so does a
        process that can't have children.
    patience
        Seconds to wait for the next image, or, with workers, for the next batch.

    Raises
    ------
    ImageError
        If no image of the data set can be read; if none arrives for ``patience`` seconds; or if a worker dies. Where
        that happens while the caller computes, torch may raise its own ``RuntimeError`` there.
    ArgumentError
        If ``batch_size`` or ``workers`` make no sense.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
    if workers and current_process().daemon:  # a worker of someone's cluster; there it may have no children
        workers = 0
    collate = partial(_collate, images, images.example.shape)
    parts = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    load = partial(_by_workers, workers=workers) if workers else _ahead
    yield from load(images, parts, collate, patience=patience)


def _ahead(
    images: Images, parts: list[Sequence[int]], collate: Callable[[list[Numbered]], Batch], patience: float
) -> Generator[Batch, None, None]:
    """Batches, each of which is loaded while the caller has the one before."""
    # These keep the interpreter busy and wait for nothing: beside it, the network and they would hold each other up.
    ahead = not _at_hand(images)
    reading: _Reading[Batch] | None = None
    try:
        for number in range(len(parts)):
            reading = reading or _Reading(images, parts[number], collate)
            batch = reading.wait(patience)
            reading = _Reading(images, parts[number + 1], collate) if ahead and number + 1 < len(parts) else None
            yield batch
    finally:
        if reading is not None:
            reading.close()


def _by_workers(
    images: Images,
    parts: list[Sequence[int]],
    collate: Callable[[list[Numbered]], Batch],
    workers: int,
    patience: float,
) -> Generator[Batch, None, None]:
    """Batches that processes load."""
    loader = iter(
        DataLoader(
            _Numbered(replace(images)),  # with a lock of its own: this one's may be held just as processes are forked
            batch_sampler=cast(Any, parts),  # any iterable of numbers does
            num_workers=workers,
            collate_fn=collate,
            timeout=patience,
        )
    )
    for samples in parts:
        try:
            batch = next(loader)
        except RuntimeError as problem:
            if not str(problem).startswith("DataLoader "):
                raise
            raise _late(images, samples, patience, str(problem)) from problem  # it timed out, or a worker was killed
        yield batch


def readable(
    images: Images,
    samples: Sequence[int],
    *,
    batch_size: int = 32,
    workers: int = 0,
    patience: float = PATIENCE,
) -> Generator[Batch, None, None]:
    """As :func:`batches`, of images that can all be read.

    Parameters
    ----------
    images, samples, batch_size, workers, patience
        As for :func:`batches`.

    Raises
    ------
    ImageError
        As there, and at the first batch with an image that can't be read.
    """
    found = batches(images, samples, batch_size=batch_size, workers=workers, patience=patience)
    with closing(found):
        for batch in found:
            for lost in batch.unreadable:
                raise lost.error()
            yield batch
