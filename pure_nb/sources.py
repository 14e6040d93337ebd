"""Where images come from: a folder or list of pictures, tensors, Hugging Face data, any torch data set, glyph scenes.

:func:`as_images` makes :class:`~pure_nb.data.Images` of all of these. Labels are optional: what needs them says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader, is_image_file

from pure_nb.data import Images
from pure_nb.errors import ImageError
from pure_nb.glyphs import MEAN, STD, GlyphScenes


def glyph_images(length: int = 4000, seed: int = 0) -> Images:
    """Validation scenes of the glyph world."""
    return Images(GlyphScenes(length, "val", seed), "glyphs", MEAN, STD)


def preprocessing(
    *,
    resize: int | None = 256,
    crop: int | None = 224,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
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

    Returns
    -------
    Compose
        From a PIL image to a float tensor ``[3, H, W]``, or ``[1, H, W]`` for a grey one.
    """
    steps = [transforms.Resize(resize)] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(list(mean), list(std))])


def as_images(source: Any, name: str = "images", *, transform: Callable[[Any], Tensor] | None = None) -> Images:
    """Images of whatever holds some.

    Parameters
    ----------
    source
        One of

        - :class:`Images`, returned as they are;
        - a torch data set, or whatever has a length and items by number that are tensors ``[3, H, W]``, or tuples that
          start with one;
        - a float tensor ``[N, C, H, W]``, or a tuple of one and whole-number labels ``[N]``;
        - a folder of pictures, as for :func:`folder_images`;
        - paths of pictures, or of a file that lists them, as for :func:`path_images`;
        - a ``datasets.Dataset`` of Hugging Face: its column of type ``Image``, and the labels of its column of type
          ``ClassLabel`` if there is one. Of several such columns, choose with ``select_columns``. Formats and
          transforms that were set on it are not used.
    name
        What to call them in tables and messages.
    transform
        From a PIL image (RGB) to a tensor ``[3, H, W]``, for folders, paths and Hugging Face data;
        :func:`preprocessing` with its defaults if None. All else comes with tensors.

    Raises
    ------
    ImageError
        If it is none of these, can't be read item by item, or has no images.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return _listed(_paths_in(path), name, transform) if path.is_file() else _folder(path, name, transform)
    if _is_hub(source):
        return _hub(source, name, transform)
    if isinstance(source, (list, tuple)) and source and all(isinstance(one, (str, os.PathLike)) for one in source):
        return _listed([Path(one) for one in source], name, transform)
    if transform is not None:
        raise ImageError(
            f"a transform makes tensors of pictures, and {name!r} is a {type(source).__name__}, which should hold "
            "tensors: give the data set the transform, and none here"
        )
    if isinstance(source, Images):
        return source
    if isinstance(source, Tensor) or (isinstance(source, tuple) and source and isinstance(source[0], Tensor)):
        return Images(_tensors(*source) if isinstance(source, tuple) else _tensors(source), name)
    if isinstance(source, IterableDataset) or (hasattr(source, "__iter__") and not hasattr(source, "__getitem__")):
        raise ImageError(
            f"{name!r} is a stream ({type(source).__name__}), and a study looks up images by their number: give a data "
            "set with __len__ and __getitem__, or a list of the items"
        )
    if isinstance(source, Mapping) or not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise ImageError(
            f"{name!r}: expected Images, a torch data set with a length, a tensor [N, C, H, W], a folder, paths, or a "
            f"Hugging Face data set, got a {type(source).__name__}"
            + (f"; give one of its parts: {', '.join(map(repr, source))}" if isinstance(source, Mapping) else "")
        )
    return Images(source, name)


def _tensors(tensor: Tensor, labels: Any = None, *more: object) -> TensorDataset:
    """A data set of tensors in memory."""
    if tensor.ndim != 4 or not tensor.is_floating_point() or more:
        raise ImageError(
            f"expected a float tensor [N, C, H, W], alone or with labels, got {tensor.dtype} {list(tensor.shape)}"
            f"{' and more' * bool(more)}; bytes become what a network expects by x.float() / 255 and its normalisation"
        )
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
    """Files of pictures without labels; their names count from ``root`` on."""

    def __init__(self, files: Sequence[Path], transform: Callable[[Any], Tensor]) -> None:
        self.files, self.transform = [str(file.absolute()) for file in files], transform
        self.root = os.path.commonpath([os.path.dirname(file) for file in self.files]) if files else ""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, sample: int) -> Tensor:
        return self.transform(default_loader(self.files[sample]))


class _Rows(Dataset[Tensor]):
    """The pictures of a Hugging Face data set, and its labels if it has some."""

    def __init__(self, rows: Any, picture: str, label: str | None, transform: Callable[[Any], Tensor]) -> None:
        self.rows, self.picture, self.transform = rows.select_columns([picture]), picture, transform
        self.targets = None if label is None else [-1 if t is None else t for t in rows[label][:]]
        self.classes = None if label is None else list(rows.features[label].names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: int) -> Tensor:
        return self.transform(self.rows[sample][self.picture].convert("RGB"))


def _is_hub(source: object) -> bool:
    """Whether it is a data set of Hugging Face, told without that library."""
    return not isinstance(source, Mapping) and hasattr(source, "features") and hasattr(source, "column_names")


def _hub(source: Any, name: str, transform: Callable[[Any], Tensor] | None) -> Images:
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
    return Images(_Rows(rows, picture, next(iter(columns["ClassLabel"]), None), transform or preprocessing()), name)


def _paths_in(file: Path) -> list[Path]:
    """The paths in a text file, one a line; they start from its folder."""
    if file.suffix not in (".txt", ".list"):
        raise ImageError(f"expected a folder of pictures, or a .txt or .list file with a path in each line, got {file}")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ImageError(
            f"{str(file)!r} can't be read as a list of pictures, a text file with a path in each line: {problem}"
        ) from problem
    return [file.parent / line.strip() for line in lines if line.strip()]


def _listed(files: list[Path], name: str, transform: Callable[[Any], Tensor] | None) -> Images:
    return Images(_Pictures(files, transform or preprocessing()), name)


def _folder(root: Path, name: str, transform: Callable[[Any], Tensor] | None) -> Images:
    if not root.is_dir():
        raise ImageError(
            f"there is no folder {str(root)!r}; name one that holds a subfolder of pictures for each class, or pictures"
        )
    shown = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    loose = [path for path in shown if path.is_file() and is_image_file(path.name)]
    inside = (path for path in shown if path.is_dir() and _any_picture(path))
    if loose and (first := next(inside, None)):
        raise ImageError(
            f"{str(root)!r} holds pictures ({loose[0].name} ...) beside subfolders with pictures ({first.name} ...): "
            "it is not clear whether the subfolders are classes. Move the loose ones into a subfolder or away, or list "
            "the pictures wanted in a .txt file (path_images)"
        )
    if loose:
        return _listed(loose, name, transform)
    try:
        return Images(ImageFolder(str(root), transform or preprocessing()), name)
    except FileNotFoundError as problem:
        raise ImageError(
            f"{str(root)!r} holds no pictures: expected a subfolder for each class with .jpg, .png ... files in it, or "
            f"such files without classes ({problem})"
        ) from problem


def _any_picture(folder: Path) -> bool:
    return any(is_image_file(name) for _, _, names in os.walk(folder, followlinks=True) for name in names)


def folder_images(
    root: Path | str,
    *,
    resize: int | None = 256,
    crop: int | None = 224,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Images:
    """A folder of pictures, in one subfolder a class, or all in the folder itself.

    Parameters
    ----------
    root
        The folder. If it holds subfolders with pictures, as for torchvision's ``ImageFolder``, these are the classes;
        what is deeper down belongs to the class above. If it holds pictures alone, these have no labels.
    resize, crop, mean, std
        As for :func:`preprocessing`.

    Raises
    ------
    ImageError
        If the folder is missing, has no pictures, has both subfolders of pictures and loose ones, or has a subfolder
        without pictures beside others with some.
    """
    return _folder(Path(root), Path(root).name, preprocessing(resize=resize, crop=crop, mean=mean, std=std))


def path_images(
    paths: Path | str | Sequence[Path | str],
    *,
    resize: int | None = 256,
    crop: int | None = 224,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Images:
    """Pictures by their paths, without labels. One that is missing counts as one that can't be read.

    Parameters
    ----------
    paths
        The paths; or a ``.txt`` or ``.list`` file with one a line, which start from the folder of that file.
    resize, crop, mean, std
        As for :func:`preprocessing`.

    Raises
    ------
    ImageError
        If the file is missing or is no such list, or if there are no paths.
    """
    transform = preprocessing(resize=resize, crop=crop, mean=mean, std=std)
    if isinstance(paths, (str, os.PathLike)):
        return _listed(_paths_in(Path(paths)), Path(paths).stem, transform)
    return _listed([Path(path) for path in paths], "pictures", transform)
