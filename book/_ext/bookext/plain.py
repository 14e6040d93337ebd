"""The book's Markdown as plain Markdown, which Jupyter and Colab show.

The chapters are written in MyST: Markdown with roles (``{cite:p}`key```), directives (fences whose first word is
``{name}``) and definition lists. What the roles and links refer to is the caller's to say; here is only the syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from textwrap import indent

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,}|:{3,})(?P<info>[^`]*)$")
DIRECTIVE = re.compile(r"^\{(?P<name>[\w:-]+)\}\s*(?P<argument>.*)$")
OPTION = re.compile(r"^:(?P<key>[\w-]+):\s*(?P<value>.*)$")
DEFINITION = re.compile(r"^(?P<term>\S.*)\n: +", re.MULTILINE)
HIDDEN = re.compile(r"^(\([\w:.-]+\)=\s*|%.*)\n", re.MULTILINE)
"""Targets of references and comments."""

INLINE = re.compile(
    r"""\{(?P<role>[a-zA-Z][\w:-]*)\}(?P<ticks>`+)(?P<content>.+?)(?P=ticks)(?!`)
      | (?P<verbatim>(?P<marks>`+)(?!`).+?(?<!`)(?P=marks)(?!`) | \$\$.+?\$\$ | \$[^$\n]+\$ | <https?://[^>]+>)
      | (?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)(?P<title>\s+"[^"]*")?\)(?:\{[^}`]*\})?
    """,
    re.VERBOSE | re.DOTALL,
)

NOTES = {"attention", "caution", "danger", "error", "hint", "important", "note", "seealso", "tip", "warning"}
BOXES = {"card", "container", "div", "grid", "grid-item", "grid-item-card", "margin", "sidebar", "tab-item", "tab-set"}
"""Layout: what is in them counts."""
DROPPED = {"bibliography", "contents", "index", "tableofcontents"}


class MystError(ValueError):
    """Something that plain Markdown has no counterpart of."""


@dataclass(frozen=True)
class References:
    """What a chapter refers to, in plain Markdown.

    Parameters
    ----------
    role
        The Markdown of a role, from its name and its content.
    link
        The address of a link's target.
    file
        The text of a file that the chapter includes.
    """

    role: Callable[[str, str], str]
    link: Callable[[str], str]
    file: Callable[[str], str]


def plain(text: str, references: References) -> str:
    """MyST Markdown without what only MyST knows."""
    text = DEFINITION.sub(r"- **\g<term>**\n\n  ", text)
    return "\n".join(_blocks(text.splitlines(), references))


def _blocks(lines: list[str], references: References) -> Iterator[str]:
    prose: list[str] = []
    rest = iter(lines)
    for line in rest:
        opened = FENCE.match(line)
        if not opened:
            prose.append(line)
            continue
        yield from _prose(prose, references)
        prose = []
        yield from _fence(opened, list(_until(rest, opened["marks"])), references)
    yield from _prose(prose, references)


def _until(lines: Iterator[str], marks: str) -> Iterator[str]:
    """The lines before the fence closes, or all."""
    for line in lines:
        found = line.strip()
        if len(found) >= len(marks) and not found.strip(marks[0]):
            return
        yield line


def _prose(lines: list[str], references: References) -> Iterator[str]:
    if lines:
        text = HIDDEN.sub("", "\n".join(lines) + "\n")
        yield INLINE.sub(lambda found: _inline(found, references), text).removesuffix("\n")


def _inline(found: re.Match[str], references: References) -> str:
    if found["role"]:
        return references.role(found["role"], " ".join(found["content"].split()))
    if found["verbatim"]:
        return found["verbatim"]
    text = found["text"] if found["picture"] else INLINE.sub(lambda inner: _inline(inner, references), found["text"])
    return f"{found['picture']}[{text}]({references.link(found['target'])}{found['title'] or ''})"


def _fence(opened: re.Match[str], body: list[str], references: References) -> Iterator[str]:
    margin = opened["indent"]
    body = [line.removeprefix(margin) for line in body]
    directive = DIRECTIVE.match(opened["info"].strip())
    if directive:
        text = _directive(directive["name"], directive["argument"], body, references)
    elif opened["marks"].startswith(":"):
        text = "\n".join(_blocks(body, references))  # a box of a class, ::::{.name}
    else:
        text = "\n".join([opened["marks"] + opened["info"], *body, opened["marks"]])
    yield indent(text, margin)


def _directive(name: str, argument: str, body: list[str], references: References) -> str:
    options, body = _options(body)
    content = "\n".join(body).strip("\n")
    title = plain(argument, references)
    if name in DROPPED:
        return ""
    if name in ("math", "code", "code-block", "literalinclude", "figure", "image"):
        return _leaf(name, argument, options, content, references)
    inner = plain(content, references)
    if name == "dropdown" or "dropdown" in options.get("class", "").split():
        return f"<details>\n<summary>{title}</summary>\n\n{inner}\n\n</details>"
    if name == "admonition":
        return indent(f"**{title}.** {inner}", "> ", lambda _: True)
    if name in NOTES:
        words = "See also" if name == "seealso" else name.capitalize()
        return indent(f"**{words}.** {title} {inner}".replace("  ", " ").rstrip(), "> ", lambda _: True)
    if name in BOXES or name == "table":
        return f"**{title}**\n\n{inner}" if title and not title.isdigit() else inner
    raise MystError(f"no plain Markdown is known for the directive {{{name}}}")


def _leaf(name: str, argument: str, options: dict[str, str], content: str, references: References) -> str:
    """A directive whose content is no Markdown, or a picture's."""
    if name == "math":
        return f"$$\n{argument or content}\n$$"
    if name == "literalinclude":
        return f"```{options.get('language', '')}\n{references.file(argument).rstrip()}\n```"
    if name in ("code", "code-block"):
        return f"```{argument}\n{content}\n```"
    picture = f"![{options.get('alt', '')}]({references.link(argument)})"
    return f"{picture}\n\n*{plain(content, references)}*" if content else picture


def _options(body: list[str]) -> tuple[dict[str, str], list[str]]:
    options: dict[str, str] = {}
    for number, line in enumerate(body):
        found = OPTION.match(line)
        if not found:
            return options, body[number:]
        options[found["key"]] = found["value"]
    return options, []
