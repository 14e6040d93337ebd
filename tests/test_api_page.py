"""The reference is complete, and the chapters and it link to each other."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import pure_nb

BOOK = Path(__file__).parents[1] / "book"
WALKED = pkgutil.walk_packages(pure_nb.__path__, "pure_nb.")
MODULES = [name for _, name, package in WALKED if not package and "._" not in name]
CHAPTERS = sorted(BOOK.glob("*.md"))


def linked(chapter: Path) -> list[str]:
    """Names that a chapter links to in the reference."""
    return re.findall(r"\{py:\w+\}`~?([\w.]+)`", chapter.read_text(encoding="utf-8"))


LINKED = {name for chapter in CHAPTERS for name in linked(chapter)}


def public(module: str) -> list[tuple[str, Any]]:
    """Functions and classes that a module defines, and their methods."""
    found = []
    for name, thing in vars(importlib.import_module(module)).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module:
            continue
        if inspect.isclass(thing):
            methods = [(f"{name}.{own}", method) for own, method in vars(thing).items() if not own.startswith("_")]
            found += [(name, thing), *((own, _plain(method)) for own, method in methods if callable(_plain(method)))]
        elif inspect.isfunction(thing):
            found.append((name, thing))
    return found


def _plain(method: Any) -> Any:
    """The function behind a method, a class method or a property."""
    method = getattr(method, "__func__", method)
    return getattr(method, "fget", None) or getattr(method, "func", None) or method


def documented(thing: Any) -> set[str]:
    """Names that a docstring explains under Parameters or Attributes, or tells of in its text."""
    text = inspect.getdoc(thing) or ""
    headed = re.findall(r"^([\w*, ]+)$", text, re.MULTILINE)
    names = {name.strip(" *") for line in headed for name in line.split(",")}
    return names | set(re.findall(r"``\*{0,2}(\w+)", text))


def test_every_public_module_is_on_one_page() -> None:
    pages = [BOOK / "api.md", *BOOK.glob("api/*.md")]
    shown = [name for page in pages for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module: str) -> None:
    assert importlib.import_module(module).__doc__
    missing = [name for name, thing in public(module) if not inspect.getdoc(thing)]
    assert not missing, f"without a docstring in {module}: {missing}"


@pytest.mark.parametrize("module", MODULES)
def test_parameters_are_explained(module: str) -> None:
    """All, where a docstring explains some; and it must explain some of many, and wherever a chapter sends readers."""
    missing = []
    for name, thing in public(module):
        if not inspect.isfunction(thing) or module == "pure_nb.cli":  # whose options explain themselves
            continue
        wanted = [own for own in inspect.signature(thing).parameters if own not in ("self", "cls")]
        explains = "\nParameters\n---" in (inspect.getdoc(thing) or "")
        many = len(wanted) >= 4 and "." not in name
        if explains or many or (wanted and f"{module}.{name}" in LINKED):
            told = documented(thing) if explains else set()
            missing += [f"{name}({own})" for own in wanted if own not in told]
    assert not missing, f"not explained in {module}: {missing}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_what_a_chapter_links_to_exists(chapter: Path) -> None:
    for name in linked(chapter):
        resolved(name)


def resolved(name: str) -> Any:
    """The module, function, class, method or attribute of a dotted name."""
    module = name
    while module not in (*MODULES, "pure_nb"):
        module = module.rpartition(".")[0]
        assert module, f"{name} is in no module of the package"
    found: Any = importlib.import_module(module)
    for own in name.removeprefix(module).strip(".").split("."):
        # Fields of a dataclass without a default are known to its annotations alone.
        found = getattr(found, own, None) or getattr(found, "__annotations__", {}).get(own) if own else found
    assert found is not None, f"there is no {name}"
    return found


def test_links_back_lead_to_chapters_with_a_link_there() -> None:
    back = 0
    for module in MODULES:
        for name, thing in public(module):
            for title, page in re.findall(r":doc:`([^<]+) </book/([\w-]+)>`", inspect.getdoc(thing) or ""):
                text = (BOOK / f"{page}.md").read_text(encoding="utf-8")
                assert f"\n# {title}\n" in text, f"{module}.{name} calls the chapter {page} {title!r}"
                back += "from scratch" in (inspect.getdoc(thing) or "")
    assert back >= 10


@pytest.mark.parametrize("folder", ["", *(f".{page.stem}" for page in sorted((BOOK / "api").glob("*.md")))])
def test_a_page_begins_with_the_public_names(folder: str) -> None:
    page = BOOK / (f"api/{folder[1:]}.md" if folder else "api.md")
    (line,) = re.findall(rf"^\*\*From `pure_nb{folder}`\*\*: (.+)\.$", page.read_text(encoding="utf-8"), re.MULTILINE)
    told = dict(re.findall(r"`(\w+) <([\w.]+)>`", line))
    door = importlib.import_module(f"pure_nb{folder}")
    names = {name: getattr(door, name) for name in door.__all__}
    expected = {name: thing for name, thing in names.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    assert told == {name: f"{thing.__module__}.{thing.__qualname__}" for name, thing in expected.items()}
