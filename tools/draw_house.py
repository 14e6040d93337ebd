"""Draw the house into CONTRIBUTING.md: the layers of the import contract, and what each member and file says of itself.

    python tools/draw_house.py

A member may import what stands below it, and not what stands beside or above it.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
DRAWN = re.compile(r"(?<=\n)```mermaid\n.*?```\n(\n\|.*?\|\n(?=\n))?", re.DOTALL)


def layers() -> list[list[str]]:
    """The members of each layer, from the highest down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [one for one in settings["contracts"] if one["type"] == "layers"]
    return [[name.strip() for name in layer.split(":")] for layer in contract["layers"]]


def words(name: str, end: str = r"[.:]") -> str:
    """What a module or folder says of itself: its first sentence, or to a colon."""
    path = ROOT / "pure_nb" / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(rf"(?<!et al){end}(?:\s|$)", text)[0].replace('"', "'").replace("\n", " ").replace("``", "")


def drawing() -> str:
    """The diagram, in Mermaid."""
    lines = ["flowchart TB"]
    above: list[str] = []
    for layer in layers():
        lines += [f'    {name}["<b>{name}</b><br>{words(name)}"]' for name in layer]
        lines += [f"    {upper} --> {lower}" for upper in above for lower in layer]
        above = layer
    return "```mermaid\n" + "\n".join(lines) + "\n```\n\n" + files()


def files() -> str:
    """A table of the files in folders."""
    folders = [name for layer in layers() for name in layer if (ROOT / "pure_nb" / name).is_dir()]
    rows = ["| file | |", "|---|---|"]
    for folder in folders:
        names = sorted(path.stem for path in (ROOT / "pure_nb" / folder).glob("*.py") if path.stem != "__init__")
        rows += [f"| `{folder}/{name}` | {words(f'{folder}/{name}', r'[.]')} |" for name in names]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write it."""
    PAGE.write_text(DRAWN.sub(lambda _: drawing(), PAGE.read_text(encoding="utf-8"), count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
