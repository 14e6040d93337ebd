"""Diagrams as part of the page: what a page merely links to could not follow its colours."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

FOLDER = "book/diagrams"


def within(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put drawings in the place of the links to them; the files go along, for the notebooks."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        uri = image["uri"]
        if Path(uri).parent.as_posix() == FOLDER:
            app.builder.images[uri] = app.env.images[uri][1]
            image.replace_self(nodes.raw("", (Path(app.srcdir) / uri).read_text(encoding="utf-8"), format="html"))
