"""What MyST roles refer to in a built book, as plain Markdown with links to the published one."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin

from sphinx.application import Sphinx

from bookext.plain import MystError

TITLED = re.compile(r"^(?P<title>.*?)\s*<(?P<target>[^<>]+)>$", re.DOTALL)
PLAIN = {"sub": "<sub>{}</sub>", "sup": "<sup>{}</sup>", "kbd": "<kbd>{}</kbd>", "math": "${}$", "abbr": "{}"}


class Roles:
    """The roles of one page.

    Parameters
    ----------
    app
        Sphinx, after it has read and resolved all pages.
    page
        The page on which they stand.
    """

    def __init__(self, app: Sphinx, page: str) -> None:
        self.app = app
        self.page = page
        self.std: Any = app.env.get_domain("std")

    def markdown(self, role: str, content: str) -> str:
        """The Markdown of a role."""
        found = TITLED.match(content)
        title, target = (found["title"], found["target"]) if found else (None, content)
        if role in PLAIN:
            return PLAIN[role].format(content)
        if role.startswith("cite"):
            return self.citation(role, target)
        if role.startswith("py:"):
            return self.python(role, title, target)
        if role == "term":
            return self.term(title or target, target)
        if role == "doc":
            page = self.app.env.relfn2path(target, self.page)[0]
            return self.link(title or self.app.env.titles[page].astext(), page)
        if role == "numref":
            return self.reference(target, title or self.numbered(target))
        if role in ("ref", "std:ref"):
            return self.reference(target, title)
        if role == "eq":
            return self.equation(target)
        if role == "download":
            return f"`{title or target}`"
        raise MystError(f"no plain Markdown is known for the role {{{role}}}")

    def link(self, text: str, page: str, anchor: str = "") -> str:
        """A link into the published book."""
        address = urljoin(self.app.config.html_baseurl, self.app.builder.get_target_uri(page))
        return f"[{text}]({address}{'#' if anchor else ''}{anchor})"

    def python(self, role: str, title: str | None, target: str) -> str:
        """A name of the package, linked to its documentation where it has one."""
        name = target.lstrip("~!")
        shown = title or (name.rpartition(".")[2] if target.startswith("~") else name)
        if role in ("py:func", "py:meth") and not title:
            shown += "()"
        known = self.app.env.get_domain("py").objects.get(name)  # type: ignore[attr-defined]
        return self.link(f"`{shown}`", known.docname, known.node_id) if known else f"`{shown}`"

    def term(self, shown: str, target: str) -> str:
        """A term of the glossary."""
        lowered = {name.lower(): place for (kind, name), place in self.std.objects.items() if kind == "term"}
        if target.lower() not in lowered:
            raise MystError(f"the term {target} is not in the glossary")
        return self.link(shown, *lowered[target.lower()])

    def numbered(self, label: str) -> str | None:
        """A figure or table with its number, as the book writes it, or None where it has none."""
        page, anchor, _ = self.labelled(label)
        for kind, numbers in self.app.env.toc_fignumbers.get(page, {}).items():
            if anchor in numbers:
                return self.app.config.numfig_format[kind] % ".".join(map(str, numbers[anchor]))
        return None

    def reference(self, label: str, shown: str | None) -> str:
        """A place with a label."""
        page, anchor, title = self.labelled(label)
        if not page:
            raise MystError(f"nothing has the label {label}")
        return self.link(shown or title or label, page, anchor)

    def labelled(self, label: str) -> tuple[str, str, str]:
        """Page, anchor and title of a place with a label; empty where there is none."""
        if label in self.std.labels:
            page, anchor, title = self.std.labels[label]
        else:
            (page, anchor), title = self.std.anonlabels.get(label, ("", "")), ""
        return page, anchor, title

    def equation(self, label: str) -> str:
        """The number of an equation."""
        known = self.app.env.get_domain("math").equations.get(label)  # type: ignore[attr-defined]
        if known is None:
            raise MystError(f"no equation has the label {label}")
        return self.link(f"({known[1]})", known[0], f"equation-{label}")

    def citation(self, role: str, keys: str) -> str:
        """Authors and year, linked to the list of sources."""
        known = {citation.key: citation for citation in self.app.env.get_domain("cite").citations}  # type: ignore[attr-defined]
        missing = [key for key in map(str.strip, keys.split(",")) if key not in known]
        if missing:
            raise MystError(f"{', '.join(missing)} is not among the sources")
        within = role in ("cite:t", "cite:ts", "cite:ct")
        cited = [self.cited(known[key.strip()], within) for key in keys.split(",")]
        return ", ".join(cited) if within else f"({'; '.join(cited)})"

    def cited(self, citation: Any, within: bool) -> str:
        """One source: "Dreyer et al. (2024)" within a sentence, "Dreyer et al., 2024" in brackets."""
        persons = [" ".join(person.last_names) for person in citation.entry.persons.get("author", [])]
        names = f"{persons[0]} et al." if len(persons) > 2 else " and ".join(persons)
        year = citation.entry.fields.get("year", "n.d.")
        text = f"{names} ({year})" if within else f"{names}, {year}"
        return self.link(text, citation.bibliography_key.docname, citation.citation_id)
