"""Each chapter with code as a notebook that runs anywhere, and the buttons that lead to it.

A notebook is the chapter's source in plain Markdown, without outputs; its first cell installs the package where it is
missing. Colab opens notebooks from the branch that holds the published site, Binder the chapters of the main branch
(``binder/``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from sphinx.application import Sphinx
from sphinx.util import logging

from bookext.plain import MystError, References, plain
from bookext.roles import Roles

log = logging.getLogger(__name__)

FOLDER = "notebooks"
SITE_BRANCH = "gh-pages"
CODE = re.compile(r"^```\{code-cell\}", re.MULTILINE)

LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "nbconvert_exporter": "python"}
"""By which ``jupyter nbconvert --to script`` knows what to write."""

INSTALL = """\
# Only where it is missing, as in Colab. What is not released yet:
# %pip install -q "pure-nb[chapters] @ git+{repository}"
from importlib.util import find_spec

if find_spec("pure_nb") is None:
    %pip install -q "pure-nb[chapters]\""""

PHOTOGRAPHS = """

# The study of photographs lies beside the book, and not in the package.
from pure_nb.loading import PHOTOGRAPHS

if not PHOTOGRAPHS.is_dir():
    !git clone -q --depth 1 {repository} pure-nb-book
    %env PURE_NB_PHOTOGRAPHS=pure-nb-book/book/photographs"""


def has_code(app: Sphinx, page: str) -> bool:
    """Whether a page is a chapter with code cells."""
    source = Path(app.env.doc2path(page))
    return "kernelspec" in app.env.metadata[page] and CODE.search(source.read_text(encoding="utf-8")) is not None


def notebook_name(page: str) -> str:
    """Where the notebook of a page lies in the site."""
    return f"{FOLDER}/{page.rsplit('/', 1)[-1]}.ipynb"


def notebook(app: Sphinx, page: str) -> nbformat.NotebookNode:
    """The notebook of a chapter."""
    source = Path(app.env.doc2path(page))
    syntax = app.env.myst_config  # type: ignore[attr-defined]
    chapter = read_myst_markdown_notebook(source.read_text(encoding="utf-8"), syntax, path=source)
    roles = Roles(app, page)
    references = References(roles.markdown, partial(link, app, page), partial(included, source.parent))
    code = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "code")
    first = INSTALL + PHOTOGRAPHS if 'load_study("photographs"' in code else INSTALL
    cells = [code_cell(first.format(repository=app.config.html_theme_options["repository_url"]), {})]
    for cell in chapter.cells:
        if cell.cell_type == "code":
            cells += [code_cell(cell.source, cell.metadata), *caption(cell.metadata, roles, references)]
        else:
            cells.append(nbformat.v4.new_markdown_cell(plain(cell.source, references)))
    cells.append(nbformat.v4.new_markdown_cell(f"*A chapter of [{app.config.html_title}]({published(app, page)}).*"))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # the same in every build
    metadata = {"kernelspec": chapter.metadata["kernelspec"], "language_info": LANGUAGE}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def published(app: Sphinx, page: str) -> str:
    """The address of a page of the published book."""
    return urljoin(app.config.html_baseurl, app.builder.get_target_uri(page))


def link(app: Sphinx, page: str, target: str) -> str:
    """A link's target as it is in the published book; those to the web stay."""
    path, anchor = urldefrag(target)
    if "://" in path or path.startswith("mailto:"):
        return target
    linked = app.env.relfn2path(path, page)[0] if path else app.env.doc2path(page, False)
    known = app.env.path2doc(str(Path(app.srcdir) / linked))
    if known in app.env.found_docs:
        address = published(app, known)
    elif linked in app.env.images:
        address = urljoin(app.config.html_baseurl, f"_images/{app.env.images[linked][1]}")
    else:
        address = f"{app.config.html_theme_options['repository_url']}/blob/main/{linked}"
    return f"{address}#{anchor}" if anchor else address


def included(folder: Path, name: str) -> str:
    """The text of a file beside the chapter."""
    return (folder / name).read_text(encoding="utf-8")


def code_cell(source: str, metadata: dict[str, Any]) -> nbformat.NotebookNode:
    """A code cell without outputs, folded where the book folds it, with the book's tags and nothing else of it."""
    tags = list(metadata.get("tags", []))
    kept: dict[str, Any] = {"tags": tags} if tags else {}
    if {"hide-input", "remove-input", "hide-cell"} & set(tags):
        kept["jupyter"] = {"source_hidden": True}
    return nbformat.v4.new_code_cell(source, metadata=kept)


def caption(metadata: dict[str, Any], roles: Roles, references: References) -> Iterator[nbformat.NotebookNode]:
    """The caption of a cell's figure, with its number in the book, as a cell below it."""
    figure = metadata.get("mystnb", {}).get("figure", {})
    if figure.get("caption"):
        number = roles.numbered(figure["name"]) if figure.get("name") else None
        words = plain(figure["caption"], references)
        yield nbformat.v4.new_markdown_cell(f"**{number}.** {words}" if number else words)


def write_notebooks(app: Sphinx, exception: Exception | None) -> None:
    """Write the notebooks of all chapters into the site."""
    if exception or app.builder.name != "html":
        return
    for page in sorted(app.env.found_docs):
        if not has_code(app, page):
            continue
        try:
            made = notebook(app, page)
        except MystError as problem:
            log.warning("the notebook of this chapter: %s", problem, location=page)
            continue
        path = Path(app.outdir) / notebook_name(page)
        path.parent.mkdir(exist_ok=True)
        nbformat.write(made, path)


def add_buttons(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Offer the notebook for download, and in Binder and Colab where the book is published: editions are not."""
    if doctree is None or app.builder.name != "html" or not has_code(app, page):
        return
    download = button(
        ".ipynb", context["pathto"](notebook_name(page), 1), "Download a notebook that runs anywhere", "fas fa-code"
    )
    buttons = context["header_buttons"]
    for group in buttons:
        if group.get("label") == "download-buttons":
            group["buttons"].insert(0, download | {"label": "download-notebook-button"})
    if not app.config.html_baseurl:
        return
    owner = app.config.html_theme_options["repository_url"].removeprefix("https://github.com/")
    source = Path(app.env.doc2path(page)).relative_to(app.srcdir).as_posix()
    binder = f"https://mybinder.org/v2/gh/{owner}/main?urlpath=lab/tree/{source}"
    colab = f"https://colab.research.google.com/github/{owner}/blob/{SITE_BRANCH}/{notebook_name(page)}"
    launch = [
        button("Binder", binder, "Run this chapter on Binder, in JupyterLab", "_static/images/logo_binder.svg"),
        button("Colab", colab, "Run this chapter in Google Colab", "_static/images/logo_colab.png"),
    ]
    group = {"type": "group", "tooltip": "Run this chapter", "icon": "fas fa-rocket", "label": "launch-buttons"}
    buttons.insert(0, group | {"buttons": launch})


def button(text: str, url: str, tooltip: str, icon: str) -> dict[str, Any]:
    """A button of the theme's header."""
    return {"type": "link", "text": text, "url": url, "tooltip": tooltip, "icon": icon}
