"""Images to study, one by one and in batches.

:class:`Images` is what every step of the package reads from; :mod:`pure_nb.images.sources` makes it of many things. It
wraps a data set and adds what a study needs besides tensors: a fingerprint, so that stored results are found again; the
picture behind each tensor, to be looked at; and a way to get past a file that can't be read.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import functional

from pure_nb.errors import ArgumentError, ImageError, PureError, StudyWarning
from pure_nb.images.contents import told
from pure_nb.images.labels import Labels, display_names, labels_of
from pure_nb.images.reading import Unreadable, printable, read

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The normalisation of ImageNet's colours, which most networks expect, the shipped one too."""

WHITE: dict[torch.dtype, float] = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
"""The value that is white in a picture of numbers of a type; of other types it is not known."""

BEYOND = 0.01
"""Part of a picture's numbers that may lie outside of 0..1, as where a resized one overshoots."""


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
        tensors, see :func:`as_tensor`. Files, labels, names of classes and the normalisation
        are found in the data sets of torchvision, in those that have its attributes (``targets``, ``classes``,
        ``samples``, ``transform``), and in the ``Subset`` or ``ConcatDataset`` of such.
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

    Examples
    --------
    >>> len(study.images), tuple(study.images.example.shape)
    (40, (3, 96, 96))
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
        found = read(self, [int(sample)])[0]
        if isinstance(found, Unreadable):
            raise found.error()
        return found

    def try_load(self, sample: int) -> Tensor | Unreadable:
        """The network's input for an image, or why there is none; without a timeout."""
        try:
            with self._lock:
                source, number = _behind(self.dataset, int(sample))
                if getattr(source, "loader", None) is default_loader:
                    _require_bytes(_file(source, number))
                return self._input(self.dataset[int(sample)])
        except Exception as problem:  # whatever a user's decoder raises, the sweep must be able to go on
            reason = str(problem) if isinstance(problem, PureError) else f"{type(problem).__name__}: {problem}"
            return Unreadable(int(sample), printable(self.path(sample)), reason)

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
        """The file behind an image, or a description where there is none, which may be hard to print."""
        return self.file(sample) or f"item {sample} of {self.name}"

    def file(self, sample: int) -> str:
        """The file behind an image; "" where there is none."""
        return _file(*_behind(self.dataset, int(sample))) or ""

    def credit(self, sample: int) -> str:
        """Whom an image is by, and under which licence, where that must be shown; "" where nobody asks for it."""
        return ""

    def require(self, samples: NDArray[np.int64]) -> None:
        """Raise if there are no images of these indices."""
        count = len(self)
        if len(samples) and not 0 <= samples.min() <= samples.max() < count:
            raise ArgumentError(f"image {samples.max()} (lowest {samples.min()}) of {count} images of {self.name!r}")

    def label(self, sample: int) -> str:
        """The name of an image's class, see :func:`~pure_nb.images.labels.display_names`; "" where none is known."""
        target = -1 if self.targets is None else int(self.targets[sample])
        if target < 0:
            return ""
        return self._display_names[target] if target < len(self._display_names) else str(target)

    @cached_property
    def _display_names(self) -> list[str]:
        return display_names(self.classes)

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
        return labels_of(self.dataset)

    def picture(self, sample: int) -> NDArray[np.uint8]:
        """An image as one looks at it, uint8 ``[H, W, 3]``: the network's input with its normalisation undone.

        A warning says so, once, where the numbers are not those of a picture, since a normalisation is not known.
        """
        tensor = self.tensor(sample).float()
        if self.normalisation:
            mean, std = (torch.tensor(values)[:, None, None] for values in self.normalisation)
            if len({len(mean), len(tensor), 1}) > 2:
                raise ImageError(
                    f"{self.name!r}: a mean and std of {len(mean)} numbers can't be those of {len(tensor)} channels"
                )
            tensor = tensor * std + mean
        elif "_warned" not in vars(self) and ((tensor < 0) | (tensor > 1)).float().mean() > BEYOND:
            vars(self)["_warned"] = True
            warnings.warn(
                f"the pictures of {self.name!r} are shown, and judged by embedders, with wrong colours: their numbers, "
                f"here from {tensor.min():.3g} to {tensor.max():.3g}, are not from 0 to 1. Give the mean and std by "
                "which they were normalised (as_images(..., mean=..., std=...), and so Study.from_model); of numbers "
                "from 0 to 255 these are 0 and 1/255",
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
            found = read(self, [sample])[0]
            if isinstance(found, Tensor):
                return found
        return self.tensor(0)  # says why it can't be read

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the images change.

        It covers the number of images, the transform, the labels, how files are read, and sixteen items spread over
        the data set; of files also each one's name and what is in it, of a ``Subset`` its indices, of a
        ``TensorDataset`` all that is in it, and of Hugging Face's data their own fingerprint. A normalisation or a
        white that is given belongs to it. Where the files are does not, nor when they were written.

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
        files: dict[int, list[str]] = {}  # of each data set that is a part of this one
        for sample in range(len(self)):
            source, number = _behind(self.dataset, sample)
            if source is not before:
                before = source
                digest.update(_made(source).encode())
            if source is not self.dataset:
                digest.update(f"{number} ".encode())
            file = _file(source, number)
            if file is not None:
                files.setdefault(id(source), []).append(file)
        for some in files.values():
            digest.update(told(some))
        if isinstance(self.dataset, TensorDataset):
            for tensor in self.dataset.tensors:
                digest.update(_bytes(tensor))
        digest.update(str(getattr(self.dataset, "fingerprint", "")).encode())
        spread = np.unique(np.linspace(0, len(self) - 1, 16).astype(int)).tolist()
        for found in read(self, spread):
            digest.update(found.reason.encode() if isinstance(found, Unreadable) else _bytes(found))
        return digest.hexdigest()[:16]

    @property
    def truth(self) -> Truth | None:
        """The data set, if it knows what is where in its images."""
        return self.dataset if isinstance(self.dataset, Truth) else None

    @cached_property
    def at_hand(self) -> bool:
        """Whether images are drawn or in memory, so that reading them waits for nothing."""
        source = _behind(self.dataset, 0)[0]
        return getattr(source, "drawn", False) is True or isinstance(source, TensorDataset)

    @property
    def drawn(self) -> bool:
        """Whether the images are drawn by the package itself, which then has judges and a WordNet for them."""
        return getattr(self.dataset, "drawn", False) is True


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


def _require_bytes(file: str | None) -> None:
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


def _file(dataset: object, sample: int) -> str | None:
    """The file of an item, where the data set has a list of them as torchvision's have."""
    for name in ("samples", "files", "_samples", "_image_files", "_images"):
        files = getattr(dataset, name, None)
        if isinstance(files, (list, tuple)) and len(files) == len(dataset):  # type: ignore[arg-type]
            entry = files[sample]
            found = entry[0] if isinstance(entry, (list, tuple)) and entry else entry
            if isinstance(found, (str, os.PathLike)):
                return os.fsdecode(found)
    return None


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
        if part is not None and (found := _normalisation(part)):
            return found
    return None
