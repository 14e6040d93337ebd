"""What MyST roles refer to in a built book, as plain Markdown with links to the published one."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin

from docutils import nodes
from docutils.frontend import get_default_settings
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import new_document, sphinx_domains

from bookext.plain import MystError

MARKS = {
    nodes.literal: "`{}`",
    nodes.math: "${}$",
    nodes.subscript: "<sub>{}</sub>",
    nodes.superscript: "<sup>{}</sup>",
    nodes.emphasis: "*{}*",
    nodes.strong: "**{}**",
}


class Roles:
    """The roles of one page: read and resolved as Sphinx does for its own pages.

    Parameters
    ----------
    app
        Sphinx, after it has read and resolved all pages.
    page
        The page on which they stand.
    """

    def __init__(self, app: Sphinx, page: str) -> None:
        self.app, self.page = app, page
        self.settings: Any = get_default_settings(MystParser)
        self.settings.env = app.env

    def markdown(self, role: str, content: str) -> str:
        """The Markdown of a role."""
        document, self.app.env.temp_data["docname"] = new_document(self.page, self.settings), self.page
        with sphinx_domains(self.app.env):
            MystParser().parse(f"{{{role}}}`{content}`", document)
        for message in [*document.findall(nodes.system_message)]:
            if message["level"] > 1:  # more than that docutils asked Sphinx what the role is
                raise MystError(f"{{{role}}}`{content}` can't be read: {message.astext()}")
            message.parent.remove(message)
        self.app.env.resolve_references(document, self.page, self.app.builder)
        return self.written(document)

    def written(self, node: nodes.Node) -> str:
        """A node as Markdown."""
        if isinstance(node, nodes.Text):
            return node.astext()
        inner = "".join(map(self.written, node.children))
        if isinstance(node, nodes.reference) and ("refuri" in node or "refid" in node):  # not that of a download
            here = urljoin(self.app.config.html_baseurl, self.app.builder.get_target_uri(self.page))
            address = node["refuri"] if "refuri" in node else f"#{node['refid']}"
            return f"[{inner}]({urljoin(here, address)})"
        return MARKS.get(type(node), "{}").format(inner)

    def numbered(self, label: str) -> str | None:
        """A figure or table with its number, as the book writes it, or None where it has none."""
        std: Any = self.app.env.get_domain("std")
        page, anchor, _ = std.labels.get(label, ("", "", ""))
        for kind, numbers in self.app.env.toc_fignumbers.get(page, {}).items():
            if anchor in numbers:
                return str(self.app.config.numfig_format[kind] % ".".join(map(str, numbers[anchor])))
        return None
