"""Pictures with boxes around the objects in them, as COCO has them: then it is known what a neuron looks at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pure_nb.errors import ImageError
from pure_nb.images.data import Images
from pure_nb.images.sources import Reader, _Pictures, preprocessing


class BoxedPictures(_Pictures):
    """Pictures whose objects are known by their boxes, see :func:`boxed_images`.

    Parameters
    ----------
    files, reader, transform
        The pictures, and how they are read.
    boxes
        Of each picture float ``[objects, 4]``: left, top, right and bottom in pixels of the picture.
    labels
        Of each picture int ``[objects]``: indices into ``classes``.
    classes
        Names of the objects.
    resize, crop
        Of :func:`~pure_nb.images.sources.preprocessing`: they say where in the picture the network's input lies.
    """

    def __init__(
        self,
        files: list[Path],
        reader: Reader,
        transform: Callable[[Any], Tensor],
        *,
        boxes: list[np.ndarray[Any, Any]],
        labels: list[np.ndarray[Any, Any]],
        classes: tuple[str, ...],
        resize: int | None,
        crop: int | None,
    ) -> None:
        super().__init__(files, reader, transform, classes=classes)
        self.boxes, self.labels, self.resize, self.crop = boxes, labels, resize, crop

    @property
    def fingerprint(self) -> str:
        """Stands for the pictures and their boxes."""
        return f"{super().fingerprint} {[own.tolist() for own in (*self.boxes, *self.labels)]} {self.classes}"

    def object_at(self, index: int, x: float, y: float) -> int:
        """The class of the smallest box around a place of the network's input; -1 where there is none."""
        with Image.open(str(self.files[index])) as picture:
            size = np.array(picture.size, dtype=float)
        scaled = np.floor(size * self.resize / size.min()) if self.resize else size
        room = scaled - (self.crop or scaled)  # below 0 where the picture is padded
        corner = np.where(room < 0, -(-room // 2), np.round(room / 2))  # as torchvision's CenterCrop
        x, y = (np.array([x, y]) + corner) / scaled * size
        left, top, right, bottom = self.boxes[index].T
        around = np.flatnonzero((left <= x) & (x < right) & (top <= y) & (y < bottom))
        if not len(around):
            return -1
        area = (right - left)[around] * (bottom - top)[around]
        return int(self.labels[index][around[area.argmin()]])


def boxed_images(
    folder: Path | str, boxes: Path | str, *, resize: int | None = 256, crop: int | None = 224, **how: Any
) -> Images:
    """Pictures with boxes, as in COCO: what is under a neuron's maxima is then known, as in the glyph scenes.

    Parameters
    ----------
    folder
        Of the pictures.
    boxes
        A JSON file with ``images`` (``id``, ``file_name``), ``annotations`` (``image_id``, ``category_id`` and
        ``bbox``: left, top, width and height in pixels) and ``categories`` (``id``, ``name``).
    resize, crop, how
        Of :func:`~pure_nb.images.sources.preprocessing`.

    Raises
    ------
    ImageError
        If the file is missing or not of that form, or names no picture.

    Examples
    --------
    >>> images = boxed_images("street", "street/boxes.json")
    >>> len(images)
    2
    """
    path = Path(boxes)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = {kind["id"]: str(kind["name"]) for kind in found["categories"]}
        places = {one["id"]: str(one["file_name"]) for one in found["images"]}
        seen: dict[Any, list[tuple[list[float], int]]] = {key: [] for key in places}
        order = {key: number for number, key in enumerate(names)}
        for one in found["annotations"]:
            left, top, width, height = map(float, one["bbox"])
            seen[one["image_id"]].append(([left, top, left + width, top + height], order[one["category_id"]]))
    except OSError as problem:
        raise ImageError(f"the boxes in {str(path)!r} can't be read: {problem}") from problem
    except (KeyError, TypeError, ValueError) as problem:
        raise ImageError(
            f"{str(path)!r} is no file of boxes as COCO's, with images (id, file_name), annotations (image_id, "
            f"category_id, bbox of four numbers) and categories (id, name): {type(problem).__name__} {problem}"
        ) from problem
    return Images(
        BoxedPictures(
            [Path(folder) / name for name in places.values()],
            Reader(),
            preprocessing(resize=resize, crop=crop, **how),
            boxes=[np.array([box for box, _ in every], dtype=float).reshape(-1, 4) for every in seen.values()],
            labels=[np.array([label for _, label in every], dtype=np.int64) for every in seen.values()],
            classes=tuple(names.values()),
            resize=resize,
            crop=crop,
        ),
        path.stem,
    )
