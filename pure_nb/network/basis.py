"""Directions as a dictionary: the rows of any matrix (PCA, NMF, a dictionary's atoms, text embeddings) from a file.

The value of a direction at a position is the inner product of its row with the channels there. Rows are taken as they
are, neither centred nor of unit length: a longer row only makes values larger, which changes neither references nor the
direction of circuits. Back to channels leads the pseudoinverse (the transpose, if rows are orthonormal), so of what the
layer puts out the part within the rows' span goes through the directions, and the rest goes around them.
"""

from __future__ import annotations

import zipfile
import zlib
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


UNREADABLE = (SafetensorError, OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error)
"""What reading damaged files raises."""


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
    _untold = frozenset(("name", "back"))  # see digests: of one matrix from two paths, on two machines

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
    if path.suffix.lower() not in FILES:
        raise LayerError(f"{what}: expected a file {', '.join(FILES)} with a matrix [directions, channels]")
    if not path.is_file():
        raise LayerError(f"{what}: there is no such file")
    try:
        with path.open("rb") as file:
            found: Any = load_file(path) if path.suffix.lower() == ".safetensors" else np.load(file, allow_pickle=False)
            arrays: Mapping[str, NDArray[Any]] = {"": found} if isinstance(found, np.ndarray) else {**found}
    except UNREADABLE as problem:
        raise LayerError(f"{what} can't be read as numbers ({type(problem).__name__}: {problem})") from problem
    if name and "" in arrays:
        raise LayerError(f"{what} holds one array, without a name; leave out {name!r}, 'basis:{path.name}@LAYER'")
    wanted = [name] if name else [key for key, one in arrays.items() if one.ndim == 2]
    if len(wanted) != 1 or wanted[0] not in arrays:
        raise LayerError(
            f"{what} has the arrays { {key: list(one.shape) for key, one in arrays.items()} }; name the matrix, "
            f"'basis:{path.name}:NAME@LAYER'"
        )
    matrix = arrays[wanted[0]]
    if matrix.ndim != 2 or not matrix.size or matrix.dtype.kind not in "fiu":
        raise LayerError(f"{what} is {list(matrix.shape)} of {matrix.dtype}, expected numbers [directions, channels]")
    if (wrong := (~np.isfinite(matrix)).any(1)).any():
        raise LayerError(f"{what} has a number that is NaN or infinite in row {wrong.argmax()}")
    if (empty := (matrix == 0).all(1)).any():
        raise LayerError(f"{what} has a row of zeros, {empty.argmax()}, which is no direction; leave it out")
    with np.errstate(over="ignore"):
        rows = matrix.astype(np.float32)
    if (lost := ~np.isfinite(rows).all(1) | (rows == 0).all(1)).any():
        raise LayerError(f"{what} has numbers that float32 can't hold in row {lost.argmax()}; scale the matrix")
    return Basis(torch.from_numpy(rows), what)
