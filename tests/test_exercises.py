"""The exercises of the book: what is right is called right, what is wrong gets a sentence that helps."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from chapters import BOOK, NAMES, Exercise, exercises

from pure_nb.errors import ArgumentError
from pure_nb.exercises.verdicts import Verdict, check, table

TABLE = table()
ASKED = [
    pytest.param(each, id=f"{name}-{number}")
    for name in NAMES
    if (BOOK / f"{name}.md").is_file() and "\n## Questions\n" in (BOOK / f"{name}.md").read_text("utf-8")
    for number, each in enumerate(exercises(name), 1)
    if each.cell
]


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function under the name of an exercise."""

    def reader(*inputs: Any) -> Any:
        return function(*inputs)

    reader.__name__ = name
    return reader


def executed(code: str) -> dict[str, Any]:
    """What code defines, where a chapter has NumPy."""
    found: dict[str, Any] = {"np": np}
    exec(code, found)
    return found


def function_of(code: str) -> str:
    """The first function of a solution, alone: the rest uses the chapter's variables."""
    first = next(node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))
    return ast.unparse(first)


@pytest.mark.parametrize("exercise", ASKED)
def test_the_stub_is_told_so_and_the_solution_is_right(exercise: Exercise) -> None:
    lines = exercise.cell.rstrip().splitlines()
    asked = re.fullmatch(r"check\((\w+)\)", lines[-1])
    assert asked, "the cell ends with check(FUNCTION)"
    names = executed("\n".join(lines[:-1]))
    verdict = check(names[asked[1]])
    assert (verdict.right, verdict.sentence) == (
        False,
        f"Not yet: {asked[1]} returns nothing. Write its body, with a return at the end.",
    )
    solved = check(executed(function_of(exercise.code[0]))[asked[1]], seed=0)
    assert solved.right, solved


def test_each_exercise_is_asked_once() -> None:
    asked = [re.findall(r"^check\((\w+)\)$", param.values[0].cell, re.M)[0] for param in ASKED]  # type: ignore[union-attr]
    assert sorted(asked) == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_mistakes_get_their_sentence(name: str) -> None:
    for sentence, mistake in TABLE[name].mistakes.items():
        verdict = check(named(name, mistake), seed=1)
        assert not verdict.right
        assert verdict.sentence.endswith(sentence)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda *_: 1 / 0, "stops with ZeroDivisionError: division by zero"),
        (lambda *_: np.zeros((2, 2)), "has the shape [], yours has [2, 2]"),
        (lambda *_: "five", "should be numbers, yours is a str"),
        (lambda *_: torch.ones(2, requires_grad=True), "should be numbers, yours is a Tensor"),
        (lambda *_: 7.0, "is 0.1387, yours is 7."),
    ],
)
def test_what_is_wrong_is_said(function: Callable[..., Any], sentence: str) -> None:
    verdict = check(named("welch_bound", function), seed=0)
    assert not verdict.right
    assert sentence in repr(verdict)


def test_inputs_are_fresh_and_not_the_readers_to_change() -> None:
    seen = []

    def best_images(scores: Any, n: int) -> Any:
        seen.append(scores.tobytes())
        right = np.argsort(-scores, kind="stable")[:n]
        scores[:] = 0
        return right

    assert check(best_images) == Verdict(True, "Right: best_images gives what the package gives, for 8 fresh inputs.")
    check(best_images)
    assert len(set(seen)) > 8


def test_a_name_that_is_no_exercise_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"no exercise 'welch_bond'; .* say 'welch_bound'"):
        check(named("welch_bond", abs))
