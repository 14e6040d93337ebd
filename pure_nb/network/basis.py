"""Directions as a dictionary: the rows of any matrix (PCA, NMF, a dictionary's atoms, text embeddings) from a file.

The value of a direction at a position is the inner product of its row with the channels there. Rows are taken as they
are, neither centred nor of unit length: a longer row only makes values larger, which changes neither references nor the
direction of circuits. Back to channels leads the pseudoinverse (the transpose, if rows are orthonormal), so of what the
layer puts out the part within the rows' span goes through the directions, and the rest goes around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional

from pure_nb.errors import LayerError

FILES = (".npy", ".npz", ".safetensors")
"""Kinds of files that a matrix is read from; none of them runs code."""


class Basis(nn.Module):
    """Directions, for :func:`pure_nb.network.dictionary.with_dictionary`.

    Parameters
    ----------
    directions
        ``[directions, channels]``.
    name
        Where they come from, to be named in errors.
    """

    directions: Tensor
    back: Tensor

    def __init__(self, directions: Tensor, name: str = "the basis") -> None:
        super().__init__()
        self.name = name
        self.register_buffer("directions", directions.float())
        self.register_buffer("back", torch.linalg.pinv(directions.double()).float())

    def encode(self, x: Tensor) -> Tensor:
        """The inner products ``[N, directions]`` with channels ``[N, channels]``."""
        channels = self.directions.shape[1]
        if x.shape[1] != channels:
            raise LayerError(
                f"{self.name} has rows of {channels} numbers, and the layer {x.shape[1]} channels; expected as many, "
                "[directions, channels]"
            )
        return functional.linear(x, self.directions.to(x.dtype))

    def decode(self, codes: Tensor) -> Tensor:
        """The channels within the span of the directions that have these inner products."""
        return functional.linear(codes, self.back.to(codes.dtype))


def read_basis(path: Path, name: str = "") -> Basis:
    """Read directions from a file; nothing in it is run.

    Parameters
    ----------
    path
        A file ``.npy``, ``.npz`` or ``.safetensors``.
    name
        Of the array, where the file has several.

    Raises
    ------
    LayerError
        If there is no such file or array, or it is no matrix of finite numbers without rows of zeros.
    """
    what = f"basis {str(path)!r}"
    if path.suffix not in FILES:
        raise LayerError(f"{what}: expected a file {', '.join(FILES)} with a matrix [directions, channels]")
    if not path.is_file():
        raise LayerError(f"{what}: there is no such file")
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else np.load(path, allow_pickle=False)
        arrays: Mapping[str, NDArray[Any]] = {"": found} if isinstance(found, np.ndarray) else {**found}
    except (SafetensorError, OSError, ValueError, EOFError, TypeError, KeyError) as problem:
        raise LayerError(f"{what} can't be read as numbers ({type(problem).__name__}: {problem})") from problem
    wanted = [name] if name else [key for key, one in arrays.items() if one.ndim == 2]
    if len(wanted) != 1 or wanted[0] not in arrays:
        raise LayerError(
            f"{what} has the arrays { {key: list(one.shape) for key, one in arrays.items()} }; name the matrix, "
            f"'basis:{path.name}:NAME@LAYER'"
        )
    matrix = arrays[wanted[0]]
    if matrix.ndim != 2 or not matrix.size or matrix.dtype.kind not in "fiu":
        raise LayerError(f"{what} is {list(matrix.shape)} of {matrix.dtype}, expected numbers [directions, channels]")
    rows = torch.from_numpy(matrix.astype(np.float32))
    if not rows.isfinite().all():
        raise LayerError(
            f"{what} has a number that is NaN or infinite in row {int((~rows.isfinite()).any(1).nonzero()[0])}"
        )
    if empty := (rows == 0).all(1).nonzero()[:, 0].tolist():
        raise LayerError(f"{what} has a row of zeros, {empty[0]}, which is no direction; leave it out")
    return Basis(rows, what)
