"""The chapters as they are written: their cells, text and exercises."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from built import ROOT, toc_pages

BOOK = ROOT / "book"
NAMES = [page.removeprefix("book/") for page in toc_pages()]

BLOCK = re.compile(r"^( *)(`{3,})(?P<head>[^\n`]*)\n(?P<body>.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
OPTIONS = re.compile(r"---\n(?P<yaml>(?s:.*?\n))---\n|(?P<lines>(?::[\w-]+:.*\n)*)")


@dataclass(frozen=True)
class Cell:
    """A code cell: what stands in its head, and its code."""

    options: dict[str, Any]
    code: str

    @property
    def tags(self) -> set[str]:
        return set(self.options.get("tags", []))


@dataclass(frozen=True)
class Exercise:
    """An exercise: its title with dots, its text, the cell that checks a reader's function, and the solution's code."""

    title: str
    text: str
    cell: str
    code: list[str]


def source(name: str) -> str:
    """A chapter's text; skips the test where the chapter is not there."""
    path = BOOK / f"{name}.md"
    if not path.is_file():
        pytest.skip(f"{path.name} is in _toc.yml but not in book/")
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a text from the outside: what stands behind the opening fence, and what is within."""
    return [(found["head"].strip(), textwrap.dedent(found["body"])) for found in BLOCK.finditer(text)]


def cells(name: str) -> list[Cell]:
    """The code cells of a chapter."""
    found = []
    for head, body in blocks(source(name)):
        if head.startswith("{code-cell}"):
            listed = OPTIONS.match(body)
            assert listed  # it matches nothing, too
            options = yaml.safe_load(listed["yaml"] or re.sub(r"^:", "", listed["lines"], flags=re.MULTILINE)) or {}
            found.append(Cell(options, body[listed.end() :].strip("\n")))
    return found


def exercises(name: str) -> list[Exercise]:
    """The exercises of a chapter, in order."""
    section = source(name).partition("\n## Exercises\n")[2].partition("\n## ")[0]
    found = []
    for text in re.split(r"^### ", section, flags=re.MULTILINE)[1:]:
        within = blocks(text)
        (solution,) = (body for head, body in within if head == "{admonition} Solution")
        cell = [OPTIONS.sub("", body, count=1) for head, body in within if head.startswith("{code-cell}")]
        code = [code for head, code in blocks(solution) if head == "python"]
        found.append(Exercise(text.partition("\n")[0], text, "".join(cell), code))
    return found
