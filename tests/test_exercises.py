"""The exercises of the book: what is right is called right, what is wrong gets a sentence that helps."""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from chapters import BOOK, NAMES, Exercise, cells, exercises

from pure_nb.errors import ArgumentError
from pure_nb.exercises.verdicts import NUMPY, Verdict, check, table

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
    """Whatever the inputs: they have to tell each mistake from what is right, and from the others."""
    for sentence, mistake in TABLE[name].mistakes.items():
        for seed in range(4):
            verdict = check(named(name, mistake), seed=seed)
            assert not verdict.right, sentence
            assert verdict.sentence.endswith(sentence)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda *_: 1 / 0, "stops with ZeroDivisionError: division by zero"),
        (lambda *_: np.zeros((2, 2)), "has the shape [], yours has [2, 2]"),
        (lambda *_: "five", "should be numbers, yours is a str"),
        (lambda *_: torch.ones(2, requires_grad=True), "should be numbers, yours is a Tensor"),
        (lambda *_: 7.0, "is 0.082717, yours is 7."),
        (lambda n, d: np.emath.sqrt((n - d) / d / (n - 1)), "should be real, yours is complex"),  # where it is below 0
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

    assert check(best_images) == Verdict(True, "Right: best_images gives what the package gives, for 24 fresh inputs.")
    check(best_images)
    assert len(set(seen)) > 24


def test_a_name_that_is_no_exercise_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"no exercise 'welch_bond'; .* say 'welch_bound'"):
        check(named("welch_bond", abs))


def one_entry_off(vectors: Any, weight: float) -> Any:
    right = TABLE["weighed"].answer(vectors, weight)
    right[1, 2] += 1
    return right


def one_answer_off(vectors: Any, members: Any) -> Any:
    right = TABLE["like_the_part"].answer(vectors, members)
    right[3] = ~right[3]
    return right


@pytest.mark.parametrize(
    ("name", "function", "sentence"),
    [
        ("weighed", one_entry_off, r"differs in 1 of 32 entries, first at \[1, 2\], which is (\S+), yours is (\S+)\."),
        ("like_the_part", one_answer_off, r"in 1 of 10 entries, first at \[3\], which is (\w+), yours is (\w+)\."),
        ("depth", lambda score: TABLE["depth"].answer(score) * 1.0002, r"is ([\d.]+), yours is ([\d.]+)\. "),
    ],
)
def test_what_is_shown_as_wrong_differs(name: str, function: Callable[..., Any], sentence: str) -> None:
    """Two values that look the same say nothing."""
    for seed in range(4):
        verdict = check(named(name, function), seed=seed)
        found = re.search(sentence, verdict.sentence)
        assert found, verdict
        assert found[1] != found[2]


@pytest.mark.parametrize("name", TABLE)
def test_a_function_that_stops_gets_advice(name: str) -> None:
    verdict = check(named(name, lambda *_: 1 / 0), seed=0)
    assert verdict.sentence.endswith(f"stops with ZeroDivisionError: division by zero. {TABLE[name].advice}")


@pytest.mark.parametrize(
    "habit",
    [
        lambda x: x.sum(dim=(1, 2)),
        lambda x: x.sum((1, 2), keepdim=True),
        lambda x: x.max(dim=1),
        lambda x: x.argmax(dim=1),
        lambda x: np.sum(x, dim=1),
        lambda x: x.std(0, unbiased=False),
        lambda x: x.clamp(min=0),
        lambda x: x.sum((1, 2)).abs(),
        lambda x: x.max(1).values,
        lambda x: x.sum().clamp(min=0),
        lambda x: x.permute(2, 0, 1),
        lambda x: x.view(5, -1, 1, 3),
        lambda x: x.transpose(0, 2),
        lambda x: torch.sum(x, dim=1),
        lambda x: torch.abs(x),
        lambda x: torch.linalg.norm(x, dim=1),
    ],
)
def test_habits_of_torch_are_met(habit: Callable[..., Any]) -> None:
    verdict = check(named("relevance_vector", habit), seed=0)
    assert verdict.sentence.endswith(NUMPY), verdict


def test_inputs_tell_a_fraction_from_a_whole_number() -> None:
    for wrong in (lambda n: max(20, min(100, n / 20)), lambda n: max(20, min(100, -(-n // 20)))):
        assert not any(check(named("references_for", wrong), seed=seed).right for seed in range(20))


def bound(code: str) -> Iterator[tuple[str, bool]]:
    """The names that code binds at its top level, and whether from what they were before."""

    def within(node: ast.AST, refined: set[str]) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Assign):
            refined = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, False
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.id in refined
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            for child in ast.iter_child_nodes(node):
                yield from within(child, refined)

    return within(ast.parse(code), set())


def borrowed(code: str) -> set[str]:
    """The names that code takes from outside."""

    def free(scope: symtable.SymbolTable) -> Iterator[str]:
        top = scope.get_type() == "module"
        for symbol in scope.get_symbols():
            if symbol.is_referenced() and (top or symbol.is_global()):
                yield symbol.get_name()
        for child in scope.get_children():
            yield from free(child)

    return set(free(symtable.symtable(code, "solution", "exec"))) - {name for name, _ in bound(code)}


def ambiguous(page: list[str], solutions: list[str]) -> list[str]:
    """What a solution takes from the page that has two values there, or another one after another solution."""
    given = [name for code in page for name, refined in bound(code) if not refined]
    wrong = []
    for number, code in enumerate(solutions):
        before = {name for other in solutions[:number] for name, _ in bound(other)}
        wrong += sorted(name for name in borrowed(code) if given.count(name) > 1 or (name in before and name in given))
    return wrong


def test_what_a_later_loop_overwrites_is_ambiguous() -> None:
    loops = ["for stage in range(4):\n    likeness = stage", "study = 1", "study = study + 1"]
    assert ambiguous(loops, ["print(likeness, study)"]) == []
    assert ambiguous([*loops, "for seed in range(4):\n    likeness = seed"], ["print(likeness, study)"]) == ["likeness"]
    assert ambiguous(loops, ["study = 3", "def f():\n    return study"]) == ["study"]


@pytest.mark.parametrize("name", sorted({param.id.rpartition("-")[0] for param in ASKED} | {"published"}))  # type: ignore[union-attr]
def test_solutions_take_what_has_one_value_on_the_page(name: str) -> None:
    """They are run after all of the page's cells, and after each other."""
    page = [cell.code for cell in cells(name) if "exercise" not in cell.tags]
    assert ambiguous(page, [code for each in exercises(name) for code in each.code]) == []
