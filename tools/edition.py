"""Write the source of an edition: the book on another study. `make book STUDY=path/to/study.toml` runs this.

    python tools/edition.py STUDY FOLDER

It asks the study what it lacks, computing what the chapters share, and copies the book's source to FOLDER. There every
chapter loads that study and says so at its head; where it shows what the study lacks, a note says what is missing.
Chapters tell by tags of their cells: `needs-objects` and the like, see `NEEDS`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pure_nb import _lacking, load_study, shipped_studies
from pure_nb.errors import PureError
from pure_nb.glyphs.network import GlyphNet
from pure_nb.show import atlas
from pure_nb.show.facts import METHODS, Atlas
from pure_nb.study import Study

ROOT = Path(__file__).parents[1]

NEEDS = (*_lacking.NEEDS, "judge", "glyphs")
"""What a cell can need, in the order in which notes say it is missing: what any study may lack (`Study.lacks`), and
what only the glyph world has."""

LOADS = 'load_study("glyphs"'

CELL = re.compile(
    r"^(?P<fence>```\{code-cell\}.*\n)(?P<head>---\n(?s:.*?\n)---\n|(?::[\w-]+:.*\n)*)(?P<code>(?s:.*?))^```\n", re.M
)
"""A code cell: its fence; its metadata, which is YAML between dashes, lines of options, or nothing; its code."""

GAPS = re.compile(r"^% lacks (.*)\n(?:\s*^% lacks .*\n)*", re.M)
"""Where cells were that need what the study lacks, neighbours together."""


class EditionError(Exception):
    """A chapter that can't be written again."""


@dataclass(frozen=True)
class Edition:
    """What the chapters are told of a study.

    `source` is what loads it, `facts` are for the reader, `layer` is the convolution or linear layer that channels are
    split in, and `lacks` says why it lacks what it lacks: "does not know ...".
    """

    name: str
    source: str
    facts: str
    layer: str | None
    lacks: Mapping[str, str]

    def sentence(self, missing: Iterable[str]) -> str:
        """What the study lacks: "This study has no labels; it does not know ..."."""
        whys = dict.fromkeys(self.lacks[need] for need in NEEDS if need in set(missing))
        return f"This study {'; it '.join(whys)}."

    def banner(self, missing: Iterable[str], cells: bool = True) -> str:
        """What a chapter says of itself at its head: what it lacks, and whether any of its `cells` are left."""
        text = (
            f"Computed on **{self.name}** ({self.facts}). The text was written about the glyph world of the standard "
            "book: what it says of single neurons, classes and numbers need not hold here."
        )
        if missing := set(missing):
            gone = "All that is computed here needs it: read the text."
            rest = "Notes stand in place of what needs it." if cells else gone
            text += f"\n\n{self.sentence(missing)} {rest}"
        return note(f"Edition {self.name}", "edition", text)


def note(title: str, kind: str, text: str) -> str:
    """A box in a chapter."""
    return f"```{{admonition}} {title}\n:class: {kind}\n{text}\n```\n"


def edition_of(study: Study, source: str) -> Edition:
    """Look at a study; computes its table of neurons and its class relevance, which the chapters find in the store."""
    p = study.parameters
    facts = (
        f"{type(study.model).__name__}, `{p.target}` through `{p.lower}`; {len(study.neurons):,} neurons, "
        f"{len(study.images):,} images, {study.references.n} references each"
    )
    return Edition(study.name, source, facts, _lacking.splittable(study), lacking(study))


def lacking(study: Study) -> dict[str, str]:
    """What a study lacks of what cells need, and why."""
    found = study.lacks()
    if not study.images.drawn:
        found["judge"] = "has no judge: those that ship, mini-CLIP and mini-DINO, know glyphs only"
    if not study.images.drawn or not isinstance(study.model, GlyphNet):
        found["glyphs"] = "is not of the glyph world"
    return found


def metadata(cell: re.Match[str]) -> dict[str, Any]:
    """What stands at the head of a cell, in either of MyST's notations."""
    block = cell["head"].startswith("---")
    return yaml.safe_load(cell["head"].strip("-\n") if block else re.sub("^:", "", cell["head"], flags=re.M)) or {}


@dataclass
class Chapter:
    """A chapter that is written again.

    Attributes
    ----------
    missing, lost
        What it lacks, and the names of the figures that it has lost by that.
    layered
        Whether it has chosen a layer of its own by now.
    """

    name: str
    edition: Edition
    missing: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    layered: bool = False

    def written(self, text: str) -> str:
        """Its text, with what the study has in place of what the glyph world has."""
        text = CELL.sub(lambda found: self.cell(found, text.count("\n", 0, found.start()) + 1), text)
        cells = CELL.search(text) is not None
        text = GAPS.sub(self.gap if cells else "", text)  # without any, one note at the head says it all
        missing = self.edition.lacks if self.name == "index.md" else self.missing
        banner = self.edition.banner(missing, cells)
        text, count = re.subn(r"^# .*\n", lambda title: f"{title[0]}\n{banner}", text, count=1, flags=re.M)
        if not count:
            raise EditionError(
                f"{self.name} has no title, a line that starts with '# ', under which to say what it is about"
            )
        return text

    def gap(self, found: re.Match[str]) -> str:
        """The note where cells were."""
        why = self.edition.sentence(re.sub("^% lacks", "", found[0], flags=re.M).split())
        return note(
            "Not in this edition", "edition-gap", f"{why} What stands here in the standard book can't be shown."
        )

    def cell(self, found: re.Match[str], line: int) -> str:
        """A cell on another study, or where it was."""
        meta, head = metadata(found), found["head"]
        needs = {tag.removeprefix("needs-") for tag in meta.get("tags", []) if tag.startswith("needs-")}
        if unknown := needs - set(NEEDS):
            known = ", ".join(f"needs-{need}" for need in NEEDS)
            tag = f"needs-{sorted(unknown)[0]}"
            raise EditionError(f"{self.name}, line {line}: the tag {tag!r} is not known; expected one of {known}")
        shown = meta.get("mystnb", {})
        if missing := needs & self.edition.lacks.keys():
            self.missing |= missing
            self.lost += [shown["figure"]["name"]] if "name" in shown.get("figure", {}) else []
            return f"% lacks {' '.join(missing)}\n"
        words = [(shown[kind], what) for kind in ("figure", "image") for what in ("alt", "caption") if kind in shown]
        for said, what in words:  # captions own up to being written about other pictures
            if what in said:
                said[what] = f"Drawn for {self.edition.name}. In the standard book: {said[what]}"
        if shown:
            how: dict[str, Any] = {"default_flow_style": None, "sort_keys": False, "allow_unicode": True}
            head = f"---\n{yaml.safe_dump(meta, width=1_000_000, **how)}---\n"
        return f"{found['fence']}{head}{self.code(found['code'])}```\n"

    def code(self, code: str) -> str:
        """A cell's code on another study: its neurons in place of those that show something in the glyph world."""
        edition = self.edition
        self.layered = self.layered or re.search("^layer = ", code, re.M) is not None
        pair = "study.classes.pairs" + ("" if "splits" in edition.lacks else ".dropna()") + ".iloc[0]"
        one = f'int({pair}["channel"])' if self.layered else "study.most_polysemantic(1)[0]"
        changes: list[tuple[str, Any]] = [
            (r"^channel = \d+( *#.*)?$", f"channel = {one}"),
            (
                r"^channels = \[([\d, ]+)\]$",
                lambda found: f"channels = study.most_polysemantic({found[1].count(',') + 1})",
            ),
            (r'^classes = \["[\w ]+", "[\w ]+"\]$', f'classes = {pair}[["class_1", "class_2"]].tolist()'),
        ]
        if edition.layer is not None:
            changes.append((r'^layer = "[\w.]+"$', f'layer = "{edition.layer}"'))
        for old, new in changes:
            code = re.sub(old, new, code, flags=re.M)
        return code.replace(LOADS, f"load_study({json.dumps(edition.source)}")


def rewritten(chapters: Mapping[str, str], edition: Edition) -> dict[str, str]:
    """The chapters of an edition, by the names of their files; pages that do not load the study stay as they are."""
    found, lost = dict(chapters), []
    for name, text in chapters.items():
        if name == "index.md" or any(LOADS in cell["code"] for cell in CELL.finditer(text)):
            chapter = Chapter(name, edition)
            found[name] = chapter.written(text)
            lost += chapter.lost
    return {name: without_references(text, lost) for name, text in found.items()}


def without_references(text: str, lost: Iterable[str]) -> str:
    """A chapter that does not refer to figures that are not there."""
    for figure in lost:
        role = rf"\{{(?:numref|ref)\}}`(?:[^`<]*<)?{re.escape(figure)}>?`"
        text = re.sub(role, "a figure of the standard book", text)
        text = re.sub(rf"\[([^\]]*)\]\(#{re.escape(figure)}\)", r"\1", text)
    return text


def configured(config: str, name: str) -> str:
    """The book's configuration: its title, and that a chapter that fails does not take the others with it."""
    config = re.sub(r"^title: (.*)$", rf"title: '\1: edition {name}'", config, flags=re.M)
    config = re.sub(r"^( *(?:baseurl|ogp_site_url): ).*$", r'\1""', config, flags=re.M)  # it is published nowhere
    return re.sub(r"^( *raise_on_error: )true\b", r"\1false", config, flags=re.M)


def write(edition: Edition, folder: Path, book: Path = ROOT) -> None:
    """The source of an edition, over that of an earlier one."""
    chapters = {path.name: path.read_text(encoding="utf-8") for path in sorted((book / "book").glob("*.md"))}
    found = rewritten(chapters, edition)  # may fail, so first
    for copied in ("book", "pure_nb/show/static/explorer"):
        shutil.rmtree(folder / copied, ignore_errors=True)
        shutil.copytree(book / copied, folder / copied, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in found.items():
        (folder / "book" / name).write_text(text, encoding="utf-8")
    (folder / "_toc.yml").write_text((book / "_toc.yml").read_text(encoding="utf-8"), encoding="utf-8")
    config = (book / "_config.yml").read_text(encoding="utf-8")
    (folder / "_config.yml").write_text(configured(config, edition.name), encoding="utf-8")


def draw(study: Study, edition: Edition, folder: Path) -> None:
    """What the chapters' explorers show of the neurons, and pages of these: as many as `explore` shows of any study."""
    methods = [name for name in METHODS if "LRP" not in name or "lrp" not in edition.lacks]
    chosen = sorted(study.most_polysemantic())
    atlas.write(study, folder, channels=chosen, methods=methods, home="../book/index.html")


def forget(study: Study, folder: Path) -> None:
    """Remove an earlier build if the study has changed since: the chapters' code does not tell."""
    identity = Atlas(study).identity
    if atlas.identity_of(folder) != identity:
        for made in (".jupyter_cache", ".doctrees", "html", "extra"):
            shutil.rmtree(folder / "_build" / made, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.txt").write_text(identity, encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file, or the name of a study that ships")
    parser.add_argument("folder", type=Path, help="where to write; what an earlier edition left there is replaced")
    asked = parser.parse_args()
    source = asked.study if asked.study in shipped_studies() else str(Path(asked.study).absolute())
    try:
        study = load_study(source)
        edition = edition_of(study, source)
        write(edition, asked.folder)
        forget(study, asked.folder)
        draw(study, edition, asked.folder / "_build" / "extra" / "neurons")
    except (EditionError, PureError) as problem:
        sys.exit(f"No edition of {asked.study}: {problem}")
    for why in dict.fromkeys(edition.lacks.values()):
        print(f"{edition.name} {why}.")


if __name__ == "__main__":
    main()
