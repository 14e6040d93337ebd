"""Shapes that annotations in pure_nb.methods name, checked at every call by jaxtyping and beartype while tests run.

Where these are not installed nothing is checked. Tests of what the package itself says to a wrong shape carry the mark
`unchecked`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, get_args, get_origin

import numpy as np

from pure_nb.methods import _shapes

INSTALLED = find_spec("jaxtyping") is not None and find_spec("beartype") is not None
KINDS = ("Bool", "Float", "Int")
EXACT = {np.float32: "Float32", np.float64: "Float64", np.int64: "Int64", np.uint8: "UInt8", np.bool_: "Bool"}


class Kind:
    """jaxtyping's type, of an array type as NumPy writes it: of `NDArray[np.float32]` only that is right."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, item: tuple[Any, str]) -> Any:
        import jaxtyping

        array, shape = item
        if get_origin(array) is np.ndarray:
            (dtype,) = get_args(get_args(array)[1])
            return getattr(jaxtyping, EXACT.get(dtype, self.name))[np.ndarray, shape]
        return getattr(jaxtyping, self.name)[array, shape]


def install() -> None:
    """Only what of pure_nb.methods is imported from now on is checked."""
    import jaxtyping

    for name in KINDS:
        setattr(_shapes, name, Kind(name))
    jaxtyping.install_import_hook("pure_nb.methods", "shapes.checked")


@contextmanager
def unchecked() -> Iterator[None]:
    """Nothing is checked within."""
    if not INSTALLED:
        yield
        return
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's shapes, and no other annotation: mypy does that, and some can't be looked up at runtime."""
    import beartype

    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if shaped(hint)}
    return beartype.beartype(function) if function.__annotations__ else function


def shaped(hint: Any) -> bool:
    """Whether a type is an array of a shape, or holds one."""
    import jaxtyping

    return (isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)) or any(map(shaped, get_args(hint)))


if INSTALLED:
    install()
