"""What the pages of the package say of a name, where Sphinx alone would misread it."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

LONGEST = 300
"""Characters of a constant's value that help a reader."""

COLON, SHIELD = re.compile(r":(?= )"), "\ue000"  # for private use: no text has it


def without_types_in_words(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Hide the colons of a constant's or property's first line: napoleon takes what is before one for a type."""
    if what in ("data", "attribute", "property") and lines:
        lines[0] = COLON.sub(SHIELD, lines[0])


def with_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put the colons back, and leave out what a named tuple says of fields that nothing is said of."""
    lines[:] = [line.replace(SHIELD, ":") for line in lines if not re.fullmatch(r"Alias for field number \d+", line)]


def without_long_values(app: Sphinx, doctree: nodes.document) -> None:
    """Leave out values that are tables, or as long as one, and folders of the machine that built the book."""
    for value in list(doctree.findall(addnodes.desc_annotation)):
        text = value.astext().lstrip()
        if text.startswith("=") and (len(text) > LONGEST or "Path('/" in text):
            value.parent.remove(value)
