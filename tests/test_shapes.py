"""Shapes in annotations: all of them can be read, and a wrong one is found where the tests' checker is installed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest
import shapes

import pure_nb.methods
from pure_nb.methods.null import one_heap
from pure_nb.methods.ownership import Assignment
from pure_nb.methods.pairs import cosine
from pure_nb.methods.splitting import PartActivations, every_second

MODULES = [name for _, name, _ in iter_modules(pure_nb.methods.__path__, "pure_nb.methods.")]
SHAPED = re.compile(r'(?:Bool|Float|Int)\[(?:NDArray\[[\w.]+\]|Tensor|Vectors), (["\'])[^"\']+\1\]')
NESTED = re.compile(r"(?:dict|Mapping)\[str, (?:NDArray\[[\w.]+\]|Tensor|Vectors)\]|\[\[Tensor\], |(?<=[\].], )Vectors")
"""Arrays in tables, and those that functions take and give: what they are is not looked at."""
SCRIPTED = {"SplitChannel.__init__", "SplitChannel.forward"}
"""TorchScript reads their annotations, and knows none of these."""


def members(name: str) -> Iterator[tuple[str, Any]]:
    """The public functions, methods and classes that a module defines."""
    for owner, value in vars(import_module(name)).items():
        if owner.startswith("_") or getattr(value, "__module__", "") != name:
            continue
        yield owner, value
        for own, one in vars(value).items() if inspect.isclass(value) else ():
            if own == "__init__" or not own.startswith("_"):
                yield f"{owner}.{own}", getattr(one, "__func__", getattr(one, "fget", one))


def annotations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Whose, what it says, and where its names are to be looked up."""
    for name in MODULES:
        for owner, member in members(name):
            if inspect.isclass(member) or inspect.isfunction(member):
                for hint in inspect.get_annotations(inspect.unwrap(member)).values():
                    yield owner, str(hint), vars(import_module(name))


def test_every_public_array_has_a_shape() -> None:
    found = list(annotations())
    assert sum(bool(SHAPED.search(hint)) for _, hint, _ in found) > 60
    for owner, hint, _ in found:
        rest = NESTED.sub("", SHAPED.sub("", hint))
        assert owner in SCRIPTED or not re.search(r"\b(NDArray|Tensor|Vectors)\b", rest), (owner, hint)


@pytest.mark.skipif(not shapes.INSTALLED, reason="jaxtyping and beartype are not installed")
def test_every_shape_can_be_read() -> None:
    """What can't be looked up is not checked, in silence."""
    for owner, hint, names in annotations():
        for match in SHAPED.finditer(hint):
            assert shapes.shaped(eval(match.group(), dict(names))), (owner, hint)


@pytest.mark.skipif(not shapes.INSTALLED, reason="jaxtyping and beartype are not installed")
def test_wrong_shapes_are_found() -> None:
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError, match="labels"):
        every_second(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(TypeCheckError, match="labels"):
        every_second(np.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError, match="vectors"):
        one_heap(np.zeros(3), (2,))
    with pytest.raises(TypeCheckError, match="second"):  # of one length each
        cosine(np.ones((2, 3)), np.ones((2, 4)))
    parts, whole, relevant = np.ones((4, 1, 3), "f4"), np.ones(4, "f4"), np.ones(4, dtype=bool)
    assignment = Assignment("4", 0, np.eye(2), (0.5,))
    with pytest.raises(TypeCheckError, match="relevant"):  # of as many images
        PartActivations(assignment, np.arange(4), parts, whole, relevant[:3], parts, whole)
    found = PartActivations(assignment, np.arange(4), parts, whole, relevant, parts, whole)
    assert found.at(0.5).shape == (4, 3)
    object.__setattr__(found, "parts", parts[..., None])
    with pytest.raises(TypeCheckError, match="return value"):
        found.at(0.5)
    with shapes.unchecked():
        assert found.at(0.5).shape == (4, 3, 1)
