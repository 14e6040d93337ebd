"""The reference tells of all that is public and of nothing else, and the chapters and it link to each other."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import pure_nb

BOOK = Path(__file__).parents[1] / "book"
WALKED = pkgutil.walk_packages(pure_nb.__path__, "pure_nb.")
MODULES = [name for _, name, package in WALKED if not package and "._" not in name]
CHAPTERS = sorted(BOOK.glob("*.md"))
PAGES = [BOOK / "api.md", *sorted(BOOK.glob("api/*.md"))]
SOURCES = yaml.safe_load((BOOK.parent / "_config.yml").read_text("utf-8"))["repository"]["url"] + "/blob/main/"


def linked(chapter: Path) -> list[str]:
    """Names that a chapter links to in the reference."""
    return re.findall(r"\{py:\w+\}`(?:~|[^`<]*<)?([\w.]+)>?`", chapter.read_text(encoding="utf-8"))


def sourced(chapter: Path) -> list[str]:
    """Names that a chapter links to in the source, since they are private."""
    link = rf"\[`(\w+)(?:\(\))?`\]\({re.escape(SOURCES)}(pure_nb[\w/]*)\.py\)"
    return [f"{file.replace('/', '.')}.{name}" for name, file in re.findall(link, chapter.read_text(encoding="utf-8"))]


LINKED = {name for chapter in CHAPTERS for name in linked(chapter) + sourced(chapter)}


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


def shown() -> list[str]:
    """What the pages tell of: names of modules, and of what is in them."""
    found = []
    for page in PAGES:
        for module, options in re.findall(r"automodule:: (\S+)\n((?:   .*\n)*)", page.read_text(encoding="utf-8")):
            (members,) = re.findall(r":(?:no-)?members:(.*)", options)
            found += [module, *(f"{module}.{name}" for name in re.findall(r"\w+", members))]
    return found


@cache
def classes(module: str) -> dict[str, type]:
    """The package's classes by the names that annotations in a module have for them, also those for mypy alone."""
    source = ast.walk(ast.parse(Path(importlib.import_module(module).__file__ or "").read_text(encoding="utf-8")))
    froms = [node for node in source if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pure_nb")]
    known = {
        name.asname or name.name: getattr(importlib.import_module(node.module or ""), name.name)
        for node in froms
        for name in node.names
    }
    known |= vars(importlib.import_module(module))
    own = {name: thing for name, thing in known.items() if inspect.isclass(thing)}
    return {name: thing for name, thing in own.items() if thing.__module__ in MODULES}


def mentioned(thing: Any) -> set[type]:
    """The package's classes in the signature of a function, or in the fields and public methods of a class."""
    parts = [thing]
    if inspect.isclass(thing):
        parts += [_plain(own) for name, own in vars(thing).items() if not name.startswith("_") or name == "__init__"]
    words = [
        word
        for part in parts
        for name, annotation in getattr(part, "__annotations__", {}).items()
        if not name.startswith("_")
        for word in re.findall(r"\w+", str(annotation))
    ]
    known = classes(thing.__module__)
    return {known[word] for word in words if word in known}


def door() -> dict[str, Any]:
    """What is exported, under the names of the modules where it is at home."""
    found = {}
    for page in PAGES:
        package = "pure_nb" if page.stem == "api" else f"pure_nb.{page.stem}"
        for name in set(importlib.import_module(package).__all__) - {"__version__"}:
            thing = getattr(importlib.import_module(package), name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
            else:  # a constant, which does not know its home
                homes = [module for module in MODULES if re.search(rf"^{name}\b.* = ", source_of(module), re.MULTILINE)]
                homes.sort(key=lambda module: not module.startswith(package))
                found[f"{homes[0]}.{name}"] = None
    return found


def source_of(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


def test_the_pages_tell_of_what_is_public_and_of_nothing_else() -> None:
    """What is exported, the classes that it takes and gives back, and what these take; and all errors, once each."""
    exported = door()
    public = set(exported) | {f"pure_nb.errors.{name}" for name in classes("pure_nb.errors")}
    todo = [thing for thing in exported.values() if thing is not None]
    while todo:
        for kind in mentioned(todo.pop()):
            if (name := f"{kind.__module__}.{kind.__qualname__}") not in public:
                public.add(name)
                todo.append(kind)
    assert len(public) > len(exported) + 20  # or annotations are not read
    modules = {name.rpartition(".")[0] for name in public} | {"pure_nb.cli"}
    assert sorted(shown()) == sorted(public | modules)


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
    """In the reference if it is public, and if it is private where its source is."""
    told = shown()
    for name in linked(chapter):
        resolved(name)
        assert name in told or name.rpartition(".")[0] in told, f"{name} is on no page: link to its source"
    for name in sourced(chapter):
        assert resolved(name).__module__ == name.rpartition(".")[0]
        assert name not in told, f"{name} has a place in the reference"
    text = chapter.read_text(encoding="utf-8")
    assert text.count(f"{SOURCES}pure_nb/") == len(sourced(chapter)), "a link to the source names what is there"


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
