"""Numbers of a picture, as arrays and files have them, as a network's input takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.errors import ImageError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The normalisation of ImageNet's colours, which most networks expect, the shipped one too."""

WHITE: dict[torch.dtype, float] = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
"""The value that is white in a picture of numbers of a type; of other types it is not known."""


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
