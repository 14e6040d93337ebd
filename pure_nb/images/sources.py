"""Where images come from: folders, lists of pictures, tensors, arrays, Hugging Face data, any torch data set.

:func:`as_images` makes :class:`~pure_nb.images.data.Images` of all of these. Labels are optional: what needs them says
so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision import transforms
from torchvision.datasets.folder import is_image_file

from pure_nb.errors import ImageError
from pure_nb.images.data import MEAN, STD, Images, as_tensor, scaled

LEFTOVERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
"""Folders that programs leave behind and that are nobody's pictures, as is whatever begins with a dot."""

BITS, PHOTOMETRIC = 258, 262
"""Tags of a TIFF: bits of a number, and whether 0 is white."""


@dataclass(frozen=True)
class Reader:
    """Reads pictures of all kinds as RGB with 8 bits, those with more bits scaled and not cut off.

    Parameters
    ----------
    turned
        Whether to turn photographs upright as their EXIF data ask for. torchvision does not, so networks trained with
        it saw them as they lie.
    white
        The value that is white in grey pictures with more than 8 bits, as for :func:`~pure_nb.images.data.scaled`.
        If None, 16 bits end at 65535, floats at 1, and a TIFF of 12 bits or a PGM at what they say; other whole numbers
        are refused.

    Examples
    --------
    >>> Reader(turned=True)("street/0.png").size
    (64, 64)
    """

    turned: bool = False
    white: float | None = None

    def __call__(self, source: Any) -> Image.Image:
        """The picture in a file, or a picture of PIL's.

        Raises
        ------
        ImageError
            If it holds numbers of which it is not known what is white.
        """
        if not isinstance(source, Image.Image):
            with open(source, "rb") as file:  # by name Pillow maps grey TIFFs that are turned, and scrambles them
                return self(Image.open(file))
        picture = self._eight_bits(source)
        return (ImageOps.exif_transpose(picture) if self.turned else picture).convert("RGB")

    def _eight_bits(self, picture: Image.Image) -> Image.Image:
        """A picture with 8 bits a colour, and with its EXIF data."""
        if not picture.mode.startswith(("I", "F")):
            return picture
        tags = getattr(picture, "tag_v2", {})
        values, white = np.asarray(picture), self.white
        if picture.mode != "F" and (picture.mode != "I" or picture.format in ("PNG", "PPM")):
            values = values.astype(np.uint16)
            if white is None and picture.format == "PPM":  # which Pillow scales by what the file calls white
                white = 65535
            elif white is None and tags.get(BITS, (16,))[0] < 16:
                white = 2 ** tags[BITS][0] - 1
        unit = scaled(as_tensor(values)[0], white, f"a picture of mode {picture.mode!r}")
        if tags.get(PHOTOMETRIC) == 0:
            unit = 1 - unit
        made = Image.fromarray((unit * 255).round().byte().numpy())
        made.info["exif"] = picture.getexif().tobytes()
        return made


def preprocessing(
    *,
    resize: int | None = 256,
    crop: int | None = 224,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    grey: bool = False,
) -> transforms.Compose:
    """What makes a network's input of a picture.

    Parameters
    ----------
    resize
        Length in pixels that the shorter side is scaled to; None leaves it.
    crop
        Side in pixels of the square cut from the middle; None leaves all.
    mean, std
        Normalisation that the network expects; ImageNet's by default.
    grey
        Whether the network expects grey pictures, of one channel.

    Returns
    -------
    Compose
        From a PIL image to a float tensor ``[3, H, W]``, or ``[1, H, W]`` of a grey one.

    Raises
    ------
    ImageError
        If a length is no whole number above 0, or mean and std are not a number above 0 for each channel.

    Examples
    --------
    >>> transform = preprocessing(resize=64, crop=56)
    >>> transform(Image.new("RGB", (80, 100))).shape
    torch.Size([3, 56, 56])
    """
    for name, side in {"resize": resize, "crop": crop}.items():
        if side is not None and not (type(side) is int and side > 0):
            raise ImageError(f"{name}: expected a whole number of pixels, 1 or more, or to be left out, got {side!r}")
    steps: list[Any] = [transforms.Resize(resize)] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    if grey:
        steps.append(transforms.Grayscale())
    for name, values in {"mean": mean, "std": std}.items():
        if np.shape(values) not in ((1,), (1 if grey else 3,)) or not all(isinstance(value, Real) for value in values):
            wanted = "one number, since the pictures are grey" if grey else "a number for all colours or one for each"
            raise ImageError(f"{name}: expected {wanted}, got {values!r}")
    if min(std) <= 0:
        raise ImageError(f"std: pictures are divided by it, so it must be above 0, got {std!r}")
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(list(mean), list(std))])


def as_images(
    source: Any,
    name: str = "images",
    *,
    transform: Callable[[Any], Tensor] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    turned: bool = False,
    white: float | None = None,
) -> Images:
    """Images of whatever holds some.

    Parameters
    ----------
    source
        One of

        - :class:`Images`, returned as they are;
        - a torch data set, or whatever has a length and items by number that are tensors ``[3, H, W]``, or tuples that
          start with one;
        - a tensor ``[N, C, H, W]`` or an array, also ``[N, H, W, C]``, alone or in a tuple with whole-number labels
          ``[N]``. Bytes, and whole numbers with ``white``, are scaled to 0..1 and then normalised by ``mean`` and
          ``std``; floats are taken as what the network expects;
        - a folder of pictures, as for :func:`folder_images`;
        - paths of pictures, or of a file that lists them, as for :func:`path_images`; or pictures of PIL's;
        - a ``datasets.Dataset`` of Hugging Face: its column of type ``Image``, and the labels of its column of type
          ``ClassLabel`` if there is one. Of several such columns, choose with ``select_columns``. Formats and
          transforms that were set on it are not used, and photographs are turned upright, as that library does.
    name
        What to call them in tables and messages.
    transform
        From a PIL image (RGB) to a tensor ``[3, H, W]``, for folders, paths, pictures and Hugging Face data;
        :func:`preprocessing` with its defaults if None. All else comes with tensors.
    mean, std
        The normalisation: that of the tensors, undone to look at them, or that which pictures get if there is no
        transform.
    turned, white
        How pictures are read: see :class:`Reader`.

    Raises
    ------
    ImageError
        If it is none of these, can't be read item by item, or has no images.

    Examples
    --------
    >>> images = as_images(torch.rand(10, 3, 32, 32), mean=(0.5,), std=(0.25,))
    >>> len(images)
    10
    """
    if (mean is None) != (std is None):
        raise ImageError(f"{name!r}: a mean and a std come together, got mean={mean} and std={std}")
    normalised: dict[str, Any] = {} if mean is None else {"mean": mean, "std": std}
    files = isinstance(source, (str, os.PathLike)) or (
        isinstance(source, (list, tuple))
        and len(source) > 0
        and all(isinstance(one, (str, os.PathLike, Image.Image)) for one in source)
    )
    if files or _is_hub(source):
        loader = Reader(turned, white)
        made = preprocessing(**normalised) if transform is None else transform
        return replace(_pictures(source, name, loader, made), **({} if transform is None else normalised))
    if transform is not None or turned:
        raise ImageError(
            f"a transform makes tensors of pictures, and {name!r} is a {type(source).__name__}, which should hold "
            "tensors: give the data set the transform, and none here (nor turned=True)"
        )
    if isinstance(source, Images):
        return replace(source, white=white, **normalised) if normalised or white is not None else source
    alone = not isinstance(source, tuple)
    first = source if alone else next(iter(source), None)
    if isinstance(first, (Tensor, np.ndarray)):
        return Images(_tensors(source) if alone else _tensors(*source), name, white=white, **normalised)
    if isinstance(source, IterableDataset) or (hasattr(source, "__iter__") and not hasattr(source, "__getitem__")):
        raise ImageError(
            f"{name!r} is a stream ({type(source).__name__}), and a study looks up images by their number: give a data "
            "set with __len__ and __getitem__ (a loader's is loader.dataset), or a list of the items"
        )
    if isinstance(source, Mapping) or not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise ImageError(
            f"{name!r}: expected Images, a torch data set with a length, a tensor [N, C, H, W], a folder, paths, "
            f"pictures, or a Hugging Face data set, got a {type(source).__name__}"
            + (f"; give one of its parts: {', '.join(map(repr, source))}" if isinstance(source, Mapping) else "")
        )
    return Images(source, name, white=white, **normalised)


def _tensors(values: Tensor | NDArray[Any], labels: Any = None, *more: object) -> TensorDataset:
    """A data set of tensors in memory."""
    if values.ndim != 4 or more:
        raise ImageError(
            f"expected a tensor [N, C, H, W], alone or with labels, got {values.dtype} {list(values.shape)}"
            f"{' and more' * bool(more)}"
        )
    tensor = as_tensor(values) if isinstance(values, np.ndarray) else values
    if labels is None:
        return TensorDataset(tensor)
    numbers = torch.as_tensor(labels)
    if numbers.shape != tensor.shape[:1] or numbers.is_floating_point() or numbers.is_complex():
        raise ImageError(
            f"expected one whole number for each of the {len(tensor)} images as labels, got {numbers.dtype} "
            f"{list(numbers.shape)}"
        )
    return TensorDataset(tensor, numbers)


class _Pictures(Dataset[Tensor]):
    """Files of pictures, or pictures of PIL's, and labels if there are any."""

    def __init__(
        self,
        files: Sequence[Any],
        loader: Reader,
        transform: Callable[[Any], Tensor],
        targets: Sequence[int] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.files = [file if isinstance(file, Image.Image) else os.path.abspath(file) for file in files]
        self.loader, self.transform, self.targets, self.classes = loader, transform, targets, classes

    @property
    def fingerprint(self) -> str:
        """Stands for the pictures that are in no file."""
        digest = hashlib.sha256()
        for picture in self.files:
            if isinstance(picture, Image.Image):
                digest.update(f"{picture.mode} {picture.size} {dict(picture.getexif())}".encode() + picture.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, sample: int) -> Tensor:
        return self.transform(self.loader(self.files[sample]))


class _Rows(Dataset[Tensor]):
    """The pictures of a Hugging Face data set, and its labels if it has some."""

    def __init__(
        self, rows: Any, picture: str, label: str | None, loader: Reader, transform: Callable[[Any], Tensor]
    ) -> None:
        self.rows, self.picture = rows.select_columns([picture]), picture
        self.loader, self.transform, self.fingerprint = loader, transform, self.rows._fingerprint
        self.targets = None if label is None else [-1 if t is None else t for t in rows[label][:]]
        self.classes = None if label is None else list(rows.features[label].names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: int) -> Tensor:
        return self.transform(self.loader(self.rows[sample][self.picture]))


def _is_hub(source: object) -> bool:
    """Whether it is a data set of Hugging Face, told without that library."""
    return not isinstance(source, Mapping) and hasattr(source, "features") and hasattr(source, "column_names")


def _pictures(source: Any, name: str, loader: Reader, transform: Callable[[Any], Tensor]) -> Images:
    """Images of what holds pictures, and not tensors yet."""
    if _is_hub(source):
        return Images(_hub(source, name, loader, transform), name)
    if isinstance(source, (str, os.PathLike)) and not os.path.isfile(source):
        return Images(_folder(Path(source), loader, transform), name)
    return Images(_Pictures(_listed(source), loader, transform), name)


def _hub(source: Any, name: str, loader: Reader, transform: Callable[[Any], Tensor]) -> _Rows:
    if not hasattr(source, "__len__") or isinstance(source, IterableDataset):
        raise ImageError(
            f"{name!r} is a stream ({type(source).__name__}), and a study looks up images by their number: load it "
            "without streaming, or keep some: datasets.Dataset.from_list(list(stream.take(1000)), stream.features)"
        )
    rows = source.with_format(None)
    columns = {
        kind: [column for column, feature in rows.features.items() if type(feature).__name__ == kind]
        for kind in ("Image", "ClassLabel")
    }
    if len(columns["Image"]) != 1 or len(columns["ClassLabel"]) > 1:
        raise ImageError(
            f"{name!r}: expected one column of type Image and at most one of type ClassLabel, found {columns}; choose "
            "with select_columns, or columns = [...] in a study's file"
        )
    (picture,) = columns["Image"]
    if getattr(rows.features[picture], "decode", True) is False:
        raise ImageError(f"{name!r}: the column {picture!r} is not decoded; use cast_column({picture!r}, Image())")
    return _Rows(rows, picture, next(iter(columns["ClassLabel"]), None), loader, transform)


def _listed(source: Any) -> Sequence[Any]:
    """Paths, or those in a text file, one a line; they start from its folder."""
    if not isinstance(source, (str, os.PathLike)):
        return source
    file = Path(source)
    if file.suffix not in (".txt", ".list"):
        raise ImageError(f"expected a folder of pictures, or a .txt or .list file with a path in each line, got {file}")
    wrong = f"{str(file)!r} can't be read as a list of pictures, a text file with a path in each line: "
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # as file names come that are no UTF-8
    except OSError as problem:
        raise ImageError(f"{wrong}{problem}") from problem
    if "\0" in text:
        raise ImageError(f"{wrong}it holds bytes that are no text")
    return [file.parent / line.strip() for line in text.splitlines() if line.strip()]


def _folder(root: Path, loader: Reader, transform: Callable[[Any], Tensor]) -> _Pictures:
    if not root.is_dir():
        raise ImageError(
            f"there is no folder {str(root)!r}; name one that holds a subfolder of pictures for each class, or pictures"
        )
    # A link to the folder itself, or to one that it lies in, is no class.
    outer = {os.path.realpath(root), *map(str, Path(os.path.realpath(root)).parents)}
    shown = sorted(filter(_is_shown, os.listdir(root)))
    loose = [name for name in shown if is_image_file(name) and (root / name).is_file()]
    classes = [name for name in shown if (root / name).is_dir() and os.path.realpath(root / name) not in outer]
    inside = {name: _pictures_in(root / name, outer) for name in classes}
    filled = [name for name in classes if inside[name]]
    if loose and filled:
        raise ImageError(
            f"{str(root)!r} holds pictures ({loose[0]} ...) beside subfolders with pictures ({filled[0]} ...): "
            "it is not clear whether the subfolders are classes. Move the loose ones into a subfolder or away, or list "
            "the pictures wanted in a .txt file (path_images)"
        )
    if loose:
        return _Pictures([root / name for name in loose], loader, transform)
    if not filled or filled != classes:
        empty = f" (none is in {', '.join(name for name in classes if not inside[name])})" if classes else ""
        raise ImageError(
            f"{str(root)!r} holds no pictures: expected a subfolder for each class with .jpg, .png ... files in it, or "
            f"such files without classes{empty}"
        )
    files = [file for name in classes for file in inside[name]]
    targets = [number for number, name in enumerate(classes) for _ in inside[name]]
    return _Pictures(files, loader, transform, targets, classes)


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in LEFTOVERS


def _pictures_in(folder: Path, outer: set[str]) -> list[str]:
    """The pictures in a folder and below it. Each folder counts once, so links that lead back are not followed."""
    seen, found = set(outer), []
    for at, inside, names in os.walk(folder, followlinks=True):
        if os.path.realpath(at) in seen:
            inside.clear()
            continue
        seen.add(os.path.realpath(at))
        inside[:] = sorted(filter(_is_shown, inside))
        found.append((at, sorted(name for name in names if _is_shown(name) and is_image_file(name))))
    return [os.path.join(at, name) for at, names in sorted(found) for name in names]  # in the order of ImageFolder


def folder_images(root: Path | str, *, turned: bool = False, white: float | None = None, **how: Any) -> Images:
    """A folder of pictures, in one subfolder a class, or all in the folder itself.

    Names that begin with a dot are left out, and the folders :data:`LEFTOVERS`.

    Parameters
    ----------
    root
        The folder. If it holds subfolders with pictures, as for torchvision's ``ImageFolder``, these are the classes;
        what is deeper down belongs to the class above. If it holds pictures alone, these have no labels.
    turned, white
        How pictures are read: see :class:`Reader`.
    how
        Of :func:`preprocessing`: ``resize``, ``crop``, ``mean``, ``std``, ``grey``.

    Raises
    ------
    ImageError
        If the folder is missing, has no pictures, has both subfolders of pictures and loose ones, or has a subfolder
        without pictures beside others with some.
    """
    return Images(_folder(Path(root), Reader(turned, white), preprocessing(**how)), Path(root).name)


def path_images(
    paths: Path | str | Sequence[Path | str], *, turned: bool = False, white: float | None = None, **how: Any
) -> Images:
    """Pictures by their paths, without labels. One that is missing counts as one that can't be read.

    Parameters
    ----------
    paths
        The paths; or a ``.txt`` or ``.list`` file with one a line, which start from the folder of that file.
    turned, white, how
        As for :func:`folder_images`.

    Raises
    ------
    ImageError
        If the file is missing or is no such list, or if there are no paths.
    """
    name = Path(paths).stem if isinstance(paths, (str, os.PathLike)) else "pictures"
    return Images(_Pictures(_listed(paths), Reader(turned, white), preprocessing(**how)), name)
