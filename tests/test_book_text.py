"""What every chapter must have, seen from its text alone."""

from __future__ import annotations

import ast
import re
from collections import Counter

import edition
import pytest
from built import toc_pages
from chapters import BLOCK, BOOK, NAMES, blocks, cells, exercises, source

NOT_LESSONS = {"index", "published", "submit", "recipes", "glossary", "runs", "sources", "commands", "api"}
NOT_LESSONS |= {"photographs", "what-is-known", "teach", "thanks"}
LESSONS = [name for name in NAMES if name.partition("/")[0] not in NOT_LESSONS]
LONG = {"your-network"}
"""Looked things up in, more than read."""
WIDEST = 88

NEEDS = {f"needs-{what}" for what in edition.NEEDS}
"""What another study may lack."""
MYST_NB = {f"{verb}-{what}" for verb in ("hide", "remove") for what in ("cell", "input", "output", "stderr", "stdout")}
TAGS = NEEDS | MYST_NB | {"varies", "raises-exception", "exercise"}

TERM = re.compile(r"\{term\}`(?:[^`<]*<([^>`]+)>|([^`]+))`")


def test_every_chapter_is_there() -> None:
    assert [page for page in toc_pages() if not (BOOK.parent / f"{page}.md").is_file()] == []


@pytest.mark.parametrize("name", LESSONS)
def test_sections(name: str) -> None:
    text = source(name)
    question = re.search(r"^# .+\n+(\*\*The question\.\*\*(?:.+\n)+)", text, re.M)
    assert question, "after its title a chapter says its question: **The question.** ..."
    assert "?" in question[1], "the question asks nothing"
    sections = re.findall(r"^## (.+)$", blocks_removed(text), re.M)
    assert sections[-5:] == ["What goes wrong", "Exercises", "Questions", "In five lines", "Sources"], sections


@pytest.mark.parametrize("name", LESSONS)
def test_orientation(name: str) -> None:
    """What a chapter takes, needs and gives stands below its question, and what it said in five lines at its end."""
    after = re.search(
        r"\*\*The question\.\*\*(?:.+\n)+\n:::\{admonition\} Before you read\n.*\n\n((?:.+\n)+):::", source(name)
    )
    assert after, "below the question: :::{admonition} Before you read"
    told = " ".join(after[1].split())
    minutes = re.match(r"(\d+) minutes to read, (\d+) more for the exercises\.", told)
    assert minutes, told
    words = len(blocks_removed(source(name).partition("\n## Exercises\n")[0]).split())
    assert abs(int(minutes[1]) - words / 200) <= 5, f"{words} words are read in {words / 200:.0f} minutes"
    asked = [int(found) for each in exercises(name) for found in re.findall(r"^(\d+) minutes\.", each.text, re.M)]
    assert sum(asked) == int(minutes[2])
    assert "Afterwards you can" in told
    assert "(#five-questions)" in told
    five = source(name).partition("\n## In five lines\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^- ", five, re.M)) == 5


@pytest.mark.parametrize("name", LESSONS)
def test_a_chapter_is_one_sitting(name: str) -> None:
    """At most 3,500 words beside tables, and ten cells whose code is shown; exercises are by themselves."""
    text = re.sub(r"^\|[^\n]*|^---.*?^---$", "", source(name).partition("\n## Exercises\n")[0], flags=re.M | re.S)
    assert name in LONG or len(blocks_removed(text).split()) <= 3500
    assert sum(not cell.tags & {"hide-input", "remove-input", "exercise"} for cell in cells(name)) <= 10


@pytest.mark.parametrize("name", LESSONS)
def test_exercises_have_what_readers_need(name: str) -> None:
    found = exercises(name)
    assert len(found) >= 4
    assert sum(bool(each.cell) for each in found) >= 2, "exercises that check"
    for each in found:
        assert re.search(r" (●○○|●●○|●●●)$", each.title), f"no difficulty: {each.title}"
        assert re.search(r"^\d+ minutes\. ", each.text, re.M), f"no time: {each.title}"
        heads = [head for head, _ in blocks(each.text) if head.startswith("{admonition}")]
        assert heads == ["{admonition} Hint", "{admonition} Solution"], each.title
        assert each.code, f"no code in the solution: {each.title}"


@pytest.mark.parametrize("name", LESSONS)
def test_questions_are_answered(name: str) -> None:
    section = source(name).partition("\n## Questions\n")[2].partition("\n## ")[0]
    ((head, answers),) = blocks(section)
    assert head == "{admonition} Answers"
    for text in (blocks_removed(section), answers):
        assert re.findall(r"^(\d)\. ", text, re.M) == list("12345")
        assert not re.search(r"^\d\. +\d+\.", text, re.M), "a list within the list"


@pytest.mark.parametrize("name", NAMES)
def test_tags_are_known(name: str) -> None:
    assert set().union(*(cell.tags for cell in cells(name))) - TAGS == set()


@pytest.mark.parametrize("name", NAMES)
def test_code_fits(name: str) -> None:
    text = source(name)
    code = [cell.code for cell in cells(name)]
    code += [body for head, body in inner_blocks(text) if head in ("python", "bash", "toml", "console", "yaml", "text")]
    wide = [line for block in code for line in block.splitlines() if len(line) > WIDEST]
    assert not wide, "\n".join(wide)


@pytest.mark.parametrize("name", NAMES)
def test_figures_have_words(name: str) -> None:
    """Whoever has a caption has a name and an alt text too; whether every figure has them, the built book tells."""
    for cell in cells(name):
        shown = cell.options.get("mystnb", {})
        if shown.keys() & {"figure", "image"}:
            figure, image = shown.get("figure", {}), shown.get("image", {})
            assert str(image.get("alt", "")).strip(), f"no alt text: {shown}"
            assert str(figure.get("caption", "")).strip(), f"no caption: {shown}"
            assert str(figure.get("name", "")).startswith("fig-"), f"no name that begins with fig-: {shown}"
            assert image["alt"].strip() != figure["caption"].strip(), "alt text and caption are the same"


def test_figures_have_names_of_their_own() -> None:
    names = Counter(
        cell.options["mystnb"]["figure"]["name"]
        for name in NAMES
        if (BOOK / f"{name}.md").is_file()
        for cell in cells(name)
        if cell.options.get("mystnb", {}).get("figure", {}).get("name")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_terms_are_in_the_glossary() -> None:
    glossary = BOOK / "glossary.md"
    if not glossary.is_file():
        pytest.skip("there is no glossary.md in book/")
    defined = {
        line.strip().lower()
        for head, body in blocks(glossary.read_text(encoding="utf-8"))
        if head.startswith("{glossary}")
        for line in body.splitlines()
        if line and not line.startswith((" ", ":"))
    }
    assert len(defined) > 20
    used = {
        (path.name, (found[1] or found[2]).strip().lower())
        for path in sorted(BOOK.glob("*.md"))
        for found in TERM.finditer(path.read_text(encoding="utf-8"))
    }
    assert {(file, term) for file, term in used if term not in defined} == set()


@pytest.mark.parametrize("name", NAMES)
def test_what_uses_a_tagged_cell_is_tagged(name: str) -> None:
    """A cell left out in another edition must not leave others without what it made."""
    made: dict[str, set[str]] = {}
    for number, cell in enumerate(cells(name), 1):
        nodes = list(ast.walk(ast.parse(cell.code)))
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        # The glyph study lacks nothing, so what needs it may use everything.
        own = NEEDS if "needs-glyphs" in cell.tags else cell.tags & NEEDS
        new = assigned(nodes)
        missing = {
            variable: sorted(made[variable] - own) for variable in (used - new) & made.keys() if made[variable] - own
        }
        assert not missing, f"cell {number} uses what only cells with these tags make: {missing}"
        for variable in new:
            made[variable] = cell.tags & NEEDS & made.get(variable, NEEDS)


def assigned(nodes: list[ast.AST]) -> set[str]:
    """Names that code gives a value: variables, functions, classes, imports, parameters."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
    return found


def blocks_removed(text: str) -> str:
    """A text without its fenced blocks, whose comments look like titles."""
    return BLOCK.sub("", text)


def inner_blocks(text: str) -> list[tuple[str, str]]:
    """All fenced blocks of a text, those within others too."""
    found = blocks(text)
    return [*found, *(inner for head, body in found if head.startswith("{admonition}") for inner in inner_blocks(body))]
