"""The picture that is explained, as the study's network takes it, and the output that is asked for."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pure_nb.errors import ArgumentError, ImageError
from pure_nb.images.data import Images, _behind
from pure_nb.images.sources import Reader, as_images, preprocessing

if TYPE_CHECKING:
    from pure_nb.study import Study


class Picture(NamedTuple):
    """One image: where it is, its number there, and what to call it."""

    images: Images
    sample: int
    name: str


def picture_of(study: Study, picture: Any) -> Picture:
    """A picture, prepared as the study's images are.

    Parameters
    ----------
    study
        Whose network is to see it.
    picture
        A number of one of the study's images, or one of others; a path or a picture of PIL's, which pass the transform
        of the study's images, or where these have none are normalised as these are; or a tensor ``[3, H, W]``, the
        network's input.

    Raises
    ------
    ImageError
        If it can't be read, or is not of the size of the study's images.
    ArgumentError
        If there is no such image.
    """
    if isinstance(picture, Picture):
        return picture
    if isinstance(picture, Integral):
        if picture not in range(len(study.images)):
            raise ArgumentError(f"image {picture}: the study has images 0 to {len(study.images) - 1}")
        return Picture(study.images, int(picture), f"image {picture} of {study.images.name}")
    if isinstance(picture, Tensor):
        rows = picture if picture.ndim == 4 else picture[None]
        mean, std = study.images.normalisation or (None, None)
        made, name = as_images(rows, "a tensor", mean=mean, std=std), "a tensor"
    elif isinstance(picture, (str, os.PathLike, Image.Image)):
        made = _prepared(study.images, picture)
        name = "a picture" if isinstance(picture, Image.Image) else os.path.basename(picture)
    else:
        raise ImageError(
            f"a picture is a number of one of the study's images, a path, a picture of PIL's, or a tensor [3, H, W], "
            f"got a {type(picture).__name__}"
        )
    made = replace(made, channels=study.images.channels)
    expected, shape = list(study.images.example.shape), list(made.tensor(0).shape)
    if len(made) > 1 or shape != expected:
        got = shape if len(made) == 1 else [len(made), *shape]
        raise ImageError(f"the study's images are {expected}, and {name!r} is {got}: scale or cut it to that size")
    return Picture(made, 0, name)


def _prepared(images: Images, picture: Any) -> Images:
    """A picture that passes the transform of some images."""
    behind = _behind(images.dataset, 0)[0]
    loader, transform = getattr(behind, "loader", None), getattr(behind, "transform", None)
    reader = loader if isinstance(loader, Reader) else Reader()
    mean, std = images.normalisation or ((0.0,), (1.0,))
    if transform is None:
        transform = preprocessing(resize=None, crop=None, mean=mean, std=std, grey=images.example.shape[0] == 1)
    how: dict[str, Any] = {"turned": reader.turned, "white": reader.white}
    return as_images([picture], "pictures", transform=transform, mean=mean, std=std, **how)


def spread(sample: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most so many of some images, evenly spread."""
    return sample[np.unique(np.linspace(0, len(sample) - 1, min(count, len(sample))).astype(int))]


def number_of(study: Study, output: str | int, outputs: int) -> int:
    """The number of an output, by itself or by the name of its class.

    Raises
    ------
    ArgumentError
        If there is none.
    """
    if isinstance(output, str) and not output.isdecimal():
        shown = study.classes.output_names(outputs)
        known = dict(zip(shown, range(outputs)))
        if not study.classes.without_labels:
            known |= {name: number for number, name in enumerate(study.classes.names)}
        if output not in known:
            near = difflib.get_close_matches(output, known, n=3, cutoff=0.4) or shown[:8]
            raise ArgumentError(f"there is no output {output!r} among {outputs}; near it: {', '.join(near)}")
        return known[output]
    if int(output) not in range(outputs):
        raise ArgumentError(f"output {output}: the network has outputs 0 to {outputs - 1}")
    return int(output)
