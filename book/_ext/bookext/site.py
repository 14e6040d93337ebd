"""The pages around the book: the one for addresses that do not exist, and the front door."""

from __future__ import annotations

import html
import inspect
import platform
import re
from collections.abc import Collection
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import walk_packages
from string import Template
from typing import Any
from urllib.parse import quote

from docutils import nodes
from sphinx.application import Sphinx

COMMANDS = "\n% commands\n"
BUILT, BUILT_PAGE = "\n% built\n", "book/thanks"
RUN_WORDS = {"Document": "chapter", "Run Time (s)": "seconds", "Status": "end", "\u2705": "ran", "\u274c": "failed"}
TOLD = ("pure-nb", "torch", "torchvision", "numpy", "scikit-learn", "zennit")
"""Whose versions the book says."""

WIDOW = re.compile(
    r"(?<=\d) (?=±|%|(?:[kMGT]i?B|GFLOP|m?s|min|h|seconds?|minutes?|hours?|pixels)\b)"
    r"|(?<=\b[a-zA-Z]) (?=[=<>] [-\d])|(?<=[=<>±]) (?=[-\d])"
)
"""A space after which no line begins: within "5 %", "1.0 ± 0.1", "2 GB" and "p < 0.01"."""
INTERVAL = re.compile(r"\([-\u2212]?[\d.,]+ to [-\u2212]?[\d.,]+\)")
LONG_NAME, NAME_END = re.compile(r"[\w.:/-]{16,}"), re.compile(r"(?<=[_.:/])(?=\w)")
VERBATIM = (nodes.literal, nodes.literal_block, nodes.raw, nodes.math)

TEMPLATES = Path(__file__).parent / "templates"
ICON = Path(__file__).parents[2] / "favicon.svg"


def with_commands(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what ``--help`` says of each command in the place of the line ``% commands``."""
    if COMMANDS not in source[0]:
        return
    # Here, since the import takes longer than a build that finds nothing changed.
    import typer
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from pure_nb import _options, cli, parameters

    for module in (cli, _options, parameters):
        app.env.note_dependency(inspect.getfile(module))
    group = get_command(cli.app)
    docs = get_docs_for_click(obj=group, ctx=typer.Context(group), name="pure-nb")
    source[0] = source[0].replace(COMMANDS, docs[docs.index("\n## ") :])  # without the title


def with_numbers_kept(app: Sphinx, doctree: nodes.document) -> None:
    """Keep numbers and their unit, error or relation, and both ends of an interval, on one line, not in code."""
    for text in list(doctree.findall(nodes.Text)):
        kept = INTERVAL.sub(lambda found: found[0].replace(" ", "\u00a0"), WIDOW.sub("\u00a0", text))
        if kept != text and not isinstance(text.parent, VERBATIM):
            text.parent.replace(text, nodes.Text(kept))


def with_long_names_broken(app: Sphinx, doctree: nodes.document) -> None:
    """Let long names in a table break behind their dots and underscores, or it would be wider than its page."""
    for text in [text for entry in doctree.findall(nodes.entry) for text in entry.findall(nodes.Text)]:
        pieces = LONG_NAME.sub(lambda found: NAME_END.sub("\n", found[0]), text).split("\n")
        if len(pieces) > 1 and not isinstance(text.parent, VERBATIM):
            broken = [piece for part in pieces for piece in (nodes.raw("", "<wbr>", format="html"), nodes.Text(part))]
            text.parent.replace(text, broken[1:])


def with_last_run(app: Sphinx, page: str, source: list[str]) -> None:
    """Put day and versions in the place of the line ``% built``: a chapter that fails would have stopped the build."""
    if BUILT not in source[0]:
        return
    day = datetime.now(timezone.utc)
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in TOLD)])
    told = f"Built on {day.day} {day:%B %Y}, from chapters that all ran without an error, with {versions}."
    source[0] = source[0].replace(BUILT, f"\n{told}\n", 1)


def with_runs_in_words(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Say of each chapter its title, seconds and end in words: a browser may have no glyph for a tick."""
    for group in doctree.findall(nodes.tgroup):  # of a page, or of the whole book on one
        if "Run Time (s)" not in [cell.astext() for cell in group.findall(nodes.entry)][:5]:
            continue
        for line in [*group.findall(nodes.colspec)][1:3]:
            line.parent.remove(line)
        for row in group.findall(nodes.row):
            del row[1:3]  # when, and how
            for text in list(row.findall(nodes.Text)):
                title = app.env.titles.get(text.astext())
                text.parent.replace(text, nodes.Text(title.astext() if title else RUN_WORDS.get(text.astext(), text)))
        group["cols"] = 3


def with_page_of_last_run(
    app: Sphinx, env: Any, added: Collection[str], changed: Collection[str], removed: Collection[str]
) -> list[str]:
    """Read the page that says when the chapters last ran whenever any page is read."""
    return [BUILT_PAGE] if (added or changed) and BUILT_PAGE in env.found_docs else []


def with_changed_files(app: Sphinx, *_: Any) -> list[str]:
    """Read a page again if a style or script has changed: where there is no page to write, Sphinx copies none."""
    built = Path(app.outdir) / "index.html"  # written last
    folders = (Path(app.confdir) / folder for folder in app.config.html_static_path)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    stale = built.exists() and any(path.stat().st_mtime > built.stat().st_mtime for path in files)
    return [app.config.root_doc] if stale else []


def with_late_imports(app: Sphinx, env: Any, pages: list[str]) -> None:
    """Let the reference read the annotations of modules that import pandas late: it would take them for plain text."""
    if any(page.startswith("book/api") for page in pages):  # only then, since it takes seconds
        import pandas

        import pure_nb

        for module in walk_packages(pure_nb.__path__, "pure_nb."):
            vars(import_module(module.name)).setdefault("pd", pandas)


def forget_unread_modules(app: Sphinx) -> list[Any]:
    """Leave out of the index of sources what has none, such as ``builtins``: Sphinx would link to no page."""
    modules = getattr(app.env, "_viewcode_modules", {})
    for name in [name for name, entry in modules.items() if not entry]:
        del modules[name]
    return []


def write_pages(app: Sphinx, exception: Exception | None) -> None:
    """Write ``404.html`` and ``index.html`` at the root of the site.

    GitHub serves the first for addresses of any depth, so all its links are absolute and its style is within. The
    second leads to the first chapter; unlike Jupyter Book's own it can be previewed where links are shared.
    """
    if exception or app.builder.name != "html":
        return
    words = {
        "base": app.config.html_baseurl,
        "icon": "data:image/svg+xml," + quote(ICON.read_text(encoding="utf-8")),
        "first": app.builder.get_target_uri(app.config.root_doc),
        "title": app.config.html_title,
        "image": app.config.ogp_image,
        "alt": app.config.ogp_image_alt,
        "description": app.config.book_description,
    }
    escaped = {key: html.escape(str(word), quote=True) for key, word in words.items()}
    for template in sorted(TEMPLATES.glob("*.html")):
        text = Template(template.read_text(encoding="utf-8")).substitute(escaped)
        (Path(app.outdir) / template.name).write_text(text, encoding="utf-8")
