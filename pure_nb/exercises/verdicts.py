"""A reader's function is tried on fresh inputs, beside one that is right, and told what is wrong in a sentence."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError

PARTS = ("_parts", "_judging", "_labels", "_yours")
"""The modules with exercises, as the parts of the book. By name: a chapter need not run again when one has changed."""

TRIALS = 24
"""Fresh inputs; a mistake that shows in a fourth of them is missed in one of a thousand checks."""

WIDEST = 60
"""Characters of an input that is shown."""

TORCH = re.compile(
    r"'numpy\.\w+' object has no attribute|must be Tensor|invalid combination of arguments|"
    r"'(dim|keepdim|descending|unbiased)'|\bview\(|axes don't match"
)
"""What an error says if a function was written for torch."""

NUMPY = "The inputs are NumPy arrays: axis= and keepdims= (torch has dim= and keepdim=), .clip(min=0) (.clamp(min=0))."


@dataclass(frozen=True)
class Exercise:
    """A function that readers write.

    Attributes
    ----------
    answer
        One that is right.
    inputs
        Draws its arguments.
    advice
        What to look at when a result is wrong.
    mistakes
        Functions that err as readers do, by the sentence that helps then.
    """

    answer: Callable[..., Any]
    inputs: Callable[[np.random.Generator], tuple[Any, ...]]
    advice: str
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a function is right, and a sentence for the reader; shown as that sentence."""

    right: bool
    sentence: str

    def __repr__(self) -> str:
        return self.sentence


def table() -> dict[str, Exercise]:
    """All exercises by the name of the function."""
    found: dict[str, Exercise] = {}
    for part in PARTS:
        found |= importlib.import_module(f"pure_nb.exercises.{part}").EXERCISES
    return found


def check(function: Callable[..., Any], *, seed: int | None = None) -> Verdict:
    """Try a reader's function on fresh inputs, beside one that is right.

    Parameters
    ----------
    function
        Its name says which exercise it answers.
    seed
        Of the inputs; without one they are others each time.

    Returns
    -------
    Verdict
        Right or not yet, and what helps.

    Raises
    ------
    ArgumentError
        If there is no exercise of that name.

    Examples
    --------
    >>> def welch_bound(classes, channels):
    ...     return 0.0
    >>> check(welch_bound).right
    False
    """
    name, known = getattr(function, "__name__", ""), table()
    if name not in known:
        near = difflib.get_close_matches(name, known) or sorted(known)[:3]
        raise ArgumentError(f"there is no exercise {name!r}; call your function as the exercise does, say {near[0]!r}")
    exercise, generator = known[name], np.random.default_rng(seed)
    wrong, possible = "", dict(exercise.mistakes)
    for _ in range(TRIALS):
        inputs = exercise.inputs(generator)
        expected = exercise.answer(*deepcopy(inputs))
        try:
            given = function(*deepcopy(inputs))
        except Exception as error:  # whatever readers write, they are told, and the page goes on
            stops = f"{called(name, inputs)} stops with {type(error).__name__}: {str(error).rstrip('.')}."
            return Verdict(False, f"Not yet: {stops} {NUMPY if TORCH.search(str(error)) else exercise.advice}")
        if given is None:
            return Verdict(False, f"Not yet: {name} returns nothing. Write its body, with a return at the end.")
        possible = {say: err for say, err in possible.items() if not differs(err(*deepcopy(inputs)), given)}
        wrong = wrong or _told(name, inputs, expected, given)
    if not wrong:
        return Verdict(True, f"Right: {name} gives what the package gives, for {TRIALS} fresh inputs.")
    return Verdict(False, f"Not yet: {wrong} {next(iter(possible), exercise.advice)}")


def _told(name: str, inputs: tuple[Any, ...], expected: Any, given: Any) -> str:
    """What is wrong with a result, or nothing."""
    problem = differs(expected, given)
    if problem == "values":
        return f"{called(name, inputs)} {_apart(np.asarray(expected), np.asarray(given))}."
    return f"{called(name, inputs)} {problem}." if problem else ""


def _apart(right: NDArray[Any], own: NDArray[Any]) -> str:
    """What the values are; of many, how many are wrong and the first of them."""
    if in_full(right) and in_full(own) and in_full(right) != in_full(own):
        return f"is {shown(right)}, yours is {shown(own)}"
    wrong = np.argwhere(~_close(right, own))
    first = tuple(wrong[0])
    place = ", ".join(map(str, first))
    values = f"{shown(right[first])}, yours is {shown(own[first])}"
    return f"differs in {len(wrong)} of {right.size} entries, first at [{place}], which is {values}"


def _close(right: NDArray[Any], own: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isclose(own.astype(np.float64), right.astype(np.float64), rtol=1e-4, atol=1e-6, equal_nan=True)


def differs(expected: Any, given: Any) -> str:
    """In what a result differs from the right one: in its kind, its shape, or its `values`; or in nothing."""
    try:
        if np.iscomplexobj(given):
            return "should be real, yours is complex"
        right, own = np.asarray(expected, dtype=np.float64), np.asarray(given, dtype=np.float64)
    except Exception:  # whatever it is: a tensor with gradients has an error of its own
        return f"should be numbers, yours is a {type(given).__name__} of something else"
    if right.shape != own.shape:
        return f"has the shape {list(right.shape)}, yours has {list(own.shape)}"
    return "" if _close(right, own).all() else "values"


def called(name: str, inputs: tuple[Any, ...]) -> str:
    """A call, as it is shown."""
    return f"{name}({', '.join(shown(each) for each in inputs)})"


def shown(value: Any) -> str:
    """A value in one line: numbers if they are few, else the shape."""
    array = np.asarray(value)
    if array.dtype == object:
        return repr(value) if len(repr(value)) <= WIDEST else type(value).__name__
    return in_full(array) or f"<{' x '.join(map(str, array.shape))} numbers>"


def in_full(array: NDArray[Any]) -> str:
    """All values of an array in one line, or nothing if they are too many."""
    if array.ndim == 0 and array.dtype.kind in "iuf":
        return f"{array:.5g}" if array.dtype.kind == "f" else str(array)
    text = " ".join(np.array2string(array, precision=3, separator=", ").split())
    return text if len(text) <= WIDEST else ""
