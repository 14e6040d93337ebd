"""Write the source of an edition: the book on another study. `make book STUDY=path/to/study.toml` runs this.

    python tools/edition.py STUDY FOLDER

It finds out what the study has, computing what the chapters share, and copies the book's source to FOLDER. There every
chapter loads that study and says so at its head; where it shows what the study lacks, a note says what is missing.
Chapters tell by tags of their cells: `needs-objects` and the like, see `NEEDS`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from torch import nn

from pure_nb import load_study, shipped_studies
from pure_nb.errors import LayerError, PureError, WordNetError
from pure_nb.glyphs.network import GlyphNet
from pure_nb.network.layers import INPUT, get_layer
from pure_nb.network.models import USER
from pure_nb.network.targets import Target
from pure_nb.show import atlas
from pure_nb.study import Study

ROOT = Path(__file__).parents[1]

NEEDS = ("objects", "labels", "splits", "synsets", "judge", "glyphs", "grid", "lrp", "import")
"""What a cell can need, in the order in which notes say it is missing."""


@dataclass(frozen=True)
class Edition:
    """What the chapters are told of a study.

    `source` is what loads it, `facts` are for the reader, `layer` is the convolution or linear layer that channels are
    split in, and `lacks` says of what the study lacks why: "does not know ...".
    """

    name: str
    source: str
    facts: str
    layer: str | None
    lacks: Mapping[str, str]


LOADS = 'load_study("glyphs"'

HEAD = re.compile(r"---\n(?s:.*?\n)---\n|(?:^:[\w-]+:.*\n)*", re.M)
"""The metadata of a cell: YAML between dashes, or lines of options; perhaps none."""


class EditionError(Exception):
    """A chapter that can't be written again."""


# What the study has.


def edition_of(study: Study, source: str) -> Edition:
    """Look at a study; computes its table of neurons and its class relevance, which the chapters find in the store."""
    p, layer = study.parameters, splittable(study)
    facts = (
        f"{type(study.model).__name__}, `{p.target}` through `{p.lower}`; {len(study.neurons):,} neurons, "
        f"{len(study.images):,} images, {study.references.n} references each"
    )
    return Edition(study.name, source, facts, layer, lacking(study, layer))


def splittable(study: Study) -> str | None:
    """The last convolution or linear layer of the target, not one of a shortcut; None if there is none."""
    target = study.parameters.target
    if ":" in target:
        return None
    inside = get_layer(study.model, target).named_modules(prefix=target)
    found = [name for name, part in inside if type(part) in (nn.Conv2d, nn.Linear) and "downsample" not in name]
    return found[-1] if found else None


def lacking(study: Study, layer: str | None) -> dict[str, str]:
    """What a study lacks of what cells need, and why: each completes "This study"."""
    p, found = study.parameters, dict.fromkeys(NEEDS, "")
    if study.images.truth is None:
        found["objects"] = "does not know which object is under a neuron's maximum"
    if not study.images.drawn:
        found["judge"] = "has no judge: those that ship, mini-CLIP and mini-DINO, know glyphs only"
    if not study.images.drawn or not isinstance(study.model, GlyphNet):
        found["glyphs"] = "is not of the glyph world"
    prepared = [name for name in (p.target, p.lower) if Target.parse(name).prefix not in ("", INPUT)]
    if prepared:
        found["grid"] = f"has `{prepared[0]}`, which no module puts out as it is"
    if len(study.references.grid) != 2:
        found["grid"] = f"has no grid of positions in `{p.target}`"
        found["objects"] = found["objects"] or found["grid"]
    if study.without_lrp:
        found["lrp"] = "has a network that the rules of layer-wise relevance propagation do not fit"
    if any(type(module).__module__.startswith(USER) for module in study.model.modules()):
        found["import"] = "has a network from a file, which a plain process can't import"
    return found | class_needs(study, layer)


def class_needs(study: Study, layer: str | None) -> dict[str, str]:
    """What a study lacks to compare classes."""

    def lacks(why: str, *needs: str) -> dict[str, str]:
        return dict.fromkeys(needs or ("labels", "splits", "synsets"), why)

    if study.classes.without_labels:
        return lacks("has no labels that match the network's outputs")
    if layer is None:
        return lacks(f"has no convolution or linear layer in `{study.parameters.target}`")
    own = study.using(target=layer, lower=INPUT + layer)
    own.shapes  # noqa: B018  raises, for another reason than the one below
    try:
        own.classes.pairs  # noqa: B018
    except LayerError:
        return lacks(f"has so many classes that those of `{layer}` do not fit into memory")
    if own.classes.pairs.empty:
        return lacks(f"has no channel of `{layer}` that is relevant to two classes")
    found = {}
    if own.classes.pairs.dropna().empty:
        found |= lacks("has too few images of the classes that share a channel", "splits")
    try:
        known = own.classes.wordnet_pairs(measures=("wup",)).dropna(subset="wup")
        if len(known) < 3:
            found |= lacks("has too few classes that share a channel and are in WordNet", "synsets")
    except WordNetError:
        found |= lacks("has no WordNet where this edition was built", "synsets")
    return found


# What is written.


@dataclass(frozen=True)
class Cell:
    """A code cell: the number of its first line in the file, and its text: fence, head, code, fence."""

    line: int
    opening: str
    head: str
    code: str
    closing: str

    @property
    def meta(self) -> dict[str, Any]:
        """Its metadata, in either of MyST's notations."""
        block = self.head.startswith("---")
        return yaml.safe_load(self.head.strip("-\n") if block else re.sub("^:", "", self.head, flags=re.M)) or {}


@dataclass(frozen=True)
class Gap:
    """Where cells were that need what the study lacks."""

    needs: frozenset[str]


Part = str | Cell | Gap


@cache
def _parser() -> MarkdownIt:
    """The book's own Markdown."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    extensions = set(config["parse"]["myst_enable_extensions"])
    return create_md_parser(MdParserConfig(enable_extensions=extensions), RendererHTML)


def parts(text: str) -> Iterator[str | Cell]:
    """A chapter as prose and code cells; joined, their texts are the chapter."""
    lines, done = text.splitlines(keepends=True), 0
    for token in _parser().parse(text):
        if token.type == "fence" and token.level == 0 and token.info.startswith("{code-cell}"):
            assert token.map is not None
            start, stop = token.map
            yield "".join(lines[done:start])
            head = HEAD.match(token.content)
            assert head is not None
            yield Cell(start + 1, lines[start], head[0], token.content[head.end() :], lines[stop - 1])
            done = stop
    yield "".join(lines[done:])


def needs(cell: Cell, chapter: str) -> frozenset[str]:
    """What a cell's tags say that it needs."""
    tags = [tag for tag in cell.meta.get("tags", []) if tag.startswith("needs-")]
    for tag in tags:
        if tag.removeprefix("needs-") not in NEEDS:
            known = ", ".join(f"needs-{need}" for need in NEEDS)
            raise EditionError(f"{chapter}, line {cell.line}: the tag {tag!r} is not known; expected one of {known}")
    return frozenset(tag.removeprefix("needs-") for tag in tags)


def without(chapter: Iterable[str | Cell], name: str, lacks: Mapping[str, str]) -> tuple[list[Part], list[str]]:
    """A chapter with gaps for cells that need what is lacking, neighbours joined; and the names of lost figures."""
    kept: list[Part] = []
    lost = []
    for part in chapter:
        missing = frozenset(n for n in needs(part, name) if lacks[n]) if isinstance(part, Cell) else frozenset()
        if not missing:
            kept.append(part)
            continue
        assert isinstance(part, Cell)
        lost += [figure for figure in [_figure(part).get("name")] if figure]
        match kept[-2:]:
            case [Gap(before), str(blank)] if not blank.strip():
                kept[-2:] = [Gap(before | missing)]
            case _:
                kept.append(Gap(missing))
    return kept, lost


def _figure(cell: Cell) -> dict[str, Any]:
    return cell.meta.get("mystnb", {}).get("figure", {})


def written(part: Part, edition: Edition, layered: bool = False) -> str:
    """A part of a chapter as it stands in the edition; `layered` after the chapter has chosen a layer of its own."""
    if isinstance(part, Gap):
        why = _sentence(part.needs, edition.lacks)
        note = f"{why} What stands here in the standard book can't be shown."
        return f"```{{admonition}} Not in this edition\n:class: edition-gap\n{note}\n```\n"
    if isinstance(part, str):
        return part
    head, meta = part.head, _described(part.meta, edition.name)
    if meta != part.meta:
        how: dict[str, Any] = {"default_flow_style": None, "sort_keys": False, "allow_unicode": True}
        head = f"---\n{yaml.safe_dump(meta, width=1_000_000, **how)}---\n"
    return part.opening + head + _code(part.code, edition, layered) + part.closing


def _code(code: str, edition: Edition, layered: bool) -> str:
    """A cell's code on another study: its neurons in place of those that show something in the glyph world."""
    code = code.replace(LOADS, f"load_study({json.dumps(edition.source)}")
    if edition.layer is not None:
        code = re.sub(r'^layer = "[\w.]+"$', f'layer = "{edition.layer}"', code, flags=re.M)
    shared = "study.classes.pairs.dropna().iloc[0]" if not edition.lacks["splits"] else "study.classes.pairs.iloc[0]"
    one = f'int({shared}["channel"])' if layered else "study.most_polysemantic(1)[0]"
    code = re.sub(r"^channel = \d+( *#.*)?$", f"channel = {one}", code, flags=re.M)
    code = re.sub(
        r"^channels = \[([\d, ]+)\]$",
        lambda match: f"channels = study.most_polysemantic({match[1].count(',') + 1})",
        code,
        flags=re.M,
    )
    return re.sub(
        r'^classes = \["[\w ]+", "[\w ]+"\]$',
        f'classes = {shared}[["class_1", "class_2"]].tolist()',
        code,
        flags=re.M,
    )


def _described(meta: dict[str, Any], name: str) -> dict[str, Any]:
    """A cell's metadata, whose caption and description own up to being written about other pictures."""
    own = meta.get("mystnb", {})
    said = {
        kind: {
            field: f"Drawn for {name}. In the standard book: {text}" if field in ("alt", "caption") else text
            for field, text in own[kind].items()
        }
        for kind in ("figure", "image")
        if kind in own
    }
    return {**meta, "mystnb": {**own, **said}} if own else meta


def _sentence(missing: Iterable[str], lacks: Mapping[str, str]) -> str:
    """What the study lacks: "This study has no labels, and does not know ..."."""
    whys = list(dict.fromkeys(lacks[need] for need in NEEDS if need in missing))
    return f"This study {'; it '.join(whys)}."


def banner(edition: Edition, missing: Iterable[str], cells: bool = True) -> str:
    """What a chapter says of itself at its head: what it lacks, and whether any of its `cells` are left."""
    own = (
        f"Computed on **{edition.name}** ({edition.facts}). The text was written about the glyph world of the standard "
    )
    own += "book: what it says of single neurons, classes and numbers need not hold here."
    if missing := set(missing):
        rest = (
            "Notes stand in place of what needs it." if cells else "All that is computed here needs it: read the text."
        )
        own = f"{own}\n\n{_sentence(missing, edition.lacks)} {rest}"
    return f"```{{admonition}} Edition {edition.name}\n:class: edition\n{own}\n```\n"


def rewritten(chapters: Mapping[str, str], edition: Edition, first: str = "index.md") -> dict[str, str]:
    """The chapters of an edition, by the names of their files; pages that do not load the study stay as they are."""
    found, lost = {}, []
    for name, text in chapters.items():
        chapter = list(parts(text))
        kept, figures = without(chapter, name, edition.lacks)
        if LOADS not in "".join(part.code for part in chapter if isinstance(part, Cell)) and name != first:
            found[name] = text
            continue
        lost += figures
        cells = any(isinstance(part, Cell) for part in kept)
        missing = {need for part in kept if isinstance(part, Gap) for need in part.needs}
        if name == first:
            missing = {need for need in NEEDS if edition.lacks[need]}
        elif not cells:  # one note at the head says it all
            kept = [part for part in kept if not isinstance(part, Gap)]
        found[name] = _headed("".join(_all_written(kept, edition)), banner(edition, missing, cells), name)
    return {name: _without_references(text, lost) for name, text in found.items()}


def _all_written(kept: Iterable[Part], edition: Edition) -> Iterator[str]:
    layered = False
    for part in kept:
        layered = layered or (isinstance(part, Cell) and re.search("^layer = ", part.code, re.M) is not None)
        yield written(part, edition, layered)


def _headed(text: str, note: str, name: str) -> str:
    """A chapter with a note under its title."""
    headed, count = re.subn(r"^# .*\n", lambda title: f"{title[0]}\n{note}", text, count=1, flags=re.M)
    if not count:
        raise EditionError(f"{name} has no title, a line that starts with '# ', under which to say what it is about")
    return headed


def _without_references(text: str, lost: Iterable[str]) -> str:
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
    methods = [name for name in atlas.METHODS if "LRP" not in name or not edition.lacks["lrp"]]
    chosen = sorted(study.most_polysemantic())
    atlas.write(study, folder, channels=chosen, methods=methods, home="../book/index.html")


def forget(study: Study, folder: Path) -> None:
    """Remove an earlier build if the study has changed since: the chapters' code does not tell."""
    identity = atlas.Atlas(study).identity
    kept = folder / "study.txt"
    if not kept.is_file() or kept.read_text(encoding="utf-8") != identity:
        for made in (".jupyter_cache", ".doctrees", "html", "extra"):
            shutil.rmtree(folder / "_build" / made, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(identity, encoding="utf-8")


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
    for why in dict.fromkeys(filter(None, edition.lacks.values())):
        print(f"{edition.name} {why}.")


if __name__ == "__main__":
    main()
