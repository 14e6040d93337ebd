"""No error of the package is one of Python's own, so that nobody takes one for the other."""

import ast
import builtins
from pathlib import Path

import pytest

import pure_nb
from pure_nb import errors

SOURCES = sorted(Path(pure_nb.__file__).parent.rglob("*.py"))
PROTOCOL = {"IndexError", "AttributeError", "NotImplementedError", "FileNotFoundError", "KeyboardInterrupt"}
"""What Python itself asks for: the end of a sequence, a name that a module lacks, a file that is missing."""


def raised(source):
    """Names of the classes that a module raises, with lines."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            yield node.exc.func.id, node


def test_all_errors_have_one_base_and_are_no_value_errors():
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(own) > 10
    for kind in own:
        assert issubclass(kind, errors.PureError | UserWarning), kind
        assert not issubclass(kind, ValueError | RuntimeError | LookupError | OSError | TypeError), kind


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_module_raises_errors_of_the_package(source):
    tree = ast.parse(source.read_text())
    caught = {  # raised to be caught a few lines below, in the same try
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for statement in node.body
        for inner in ast.walk(statement)
        if isinstance(inner, ast.Raise)
    }
    lines = {node.lineno for node in caught}
    private = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.startswith("_")}
    wrong = [
        f"{source.name}:{node.lineno} {name}"
        for name, node in raised(source)
        if hasattr(builtins, name)
        if name not in PROTOCOL | private and node.lineno not in lines
    ]
    assert not wrong
