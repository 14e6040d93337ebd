"""Make the small WordNet that ships, from a whole WordNet 3.0.

    python tools/make_wordnet.py

The whole one is found as `pure_nb.methods.wordnet.find_wordnet` finds it. The result is the same, byte for byte,
wherever it comes from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from nltk.corpus.reader.wordnet import Synset

from pure_nb.glyphs import CLASSES
from pure_nb.methods.wordnet import WordNet, find_wordnet

ASSETS = Path(__file__).parent.parent / "pure_nb" / "methods" / "wordnet-3.0"

README = """\
# WordNet 3.0, the part the glyph world needs

Made by `tools/make_wordnet.py`; do not edit.

- **What**: {count} of the {whole:,} noun synsets of WordNet 3.0: those of the {classes} classes of `pure_nb.glyphs`,
  and one of the deepest, `{deepest}`, with all that these are kinds or instances of. The deepest is there because
  the Leacock-Chodorow similarity depends on the depth of the whole taxonomy.
- **Format**: WordNet's own, for NLTK's reader. Of the pointers only those to hypernyms (`@`) and instance hypernyms
  (`@i`) are kept, of the glosses nothing. The offsets are this file's own. None but the root's is that of a noun in
  WordNet 3.0, so an id from elsewhere (`n01440764`) finds nothing rather than something else.
- **Index**: the words that these synsets are named by. A synset's name counts the senses of its word (`king.n.10`),
  so each sense that is left out keeps its place, with offset 0, where there is no synset. This can't be searched by
  word: most senses of a word are missing.
- **Licence**: WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. See `LICENSE`, and the first
  lines of the files.
"""

HYPERNYMS = ("@", "@i")


def depth(synset: Synset) -> int:
    return int(synset.max_depth())


def closure(synsets: Iterable[Synset]) -> set[Synset]:
    """Synsets and all that they are kinds or instances of."""
    return {above for synset in synsets for path in synset.hypernym_paths() for above in path}


def line_of(full: WordNet, synset: Synset, offsets: dict[int, int]) -> str:
    """A synset's line without its gloss, and of its pointers only those to hypernyms, at the offsets given."""
    with full.reader.open("data.noun") as file:
        file.seek(synset.offset())
        fields = file.readline().split("|")[0].split()
    words_end = 4 + 2 * int(fields[3], 16)
    pointers = [fields[i : i + 4] for i in range(words_end + 1, len(fields), 4)]
    kept = [(kind, offsets[int(target)]) for kind, target, _, _ in pointers if kind in HYPERNYMS]
    words = " ".join(fields[1:words_end])
    links = "".join(f" {kind} {target:08d} n 0000" for kind, target in kept)
    return f"{offsets[synset.offset()]:08d} {words} {len(kept):03d}{links} |"


def data_noun(full: WordNet, header: str, synsets: list[Synset], taken: set[int]) -> tuple[str, dict[int, int]]:
    """The file of synsets, and where each synset, by its offset in the whole WordNet, is in it."""
    offsets = {synset.offset(): 0 for synset in synsets}
    lines = [line_of(full, synset, offsets) for synset in synsets]  # offsets have eight digits: only lengths count yet
    position, padding = len(header), []
    for synset, line in zip(synsets, lines):
        offsets[synset.offset()] = position
        position += len(line) + 1
        spaces = 0
        while position in taken:
            position, spaces = position + 1, spaces + 1
        padding.append(" " * spaces)
    body = [line_of(full, synset, offsets) + spaces + "\n" for synset, spaces in zip(synsets, padding)]
    return header + "".join(body), offsets


def index_noun(full: WordNet, header: str, synsets: list[Synset], offsets: dict[int, int]) -> str:
    """The file of words: those that synsets are named by, each with as many senses as it has."""
    names = {synset.name() for synset in synsets} | {c.synset for c in CLASSES}
    words = {name.rsplit(".", 2)[0] for name in names}
    lines = []
    with full.reader.open("index.noun") as file:
        for fields in map(str.split, file):
            if fields[0] in words and fields[1] == "n":
                senses = [offsets.get(int(offset), 0) for offset in fields[-int(fields[2]) :]]
                places = " ".join(f"{offset:08d}" for offset in senses)
                lines.append(f"{fields[0]} n {len(senses)} 0 {len(senses)} 0 {places}\n")
    return header + "".join(lines)


def make(full: WordNet, folder: Path) -> None:
    """Write the small WordNet to a folder."""
    reader = full.reader
    with reader.open("data.noun") as file:
        header = "".join(takewhile(lambda line: line.startswith("  "), file))
    nouns = list(reader.all_synsets("n"))
    deepest = max(nouns, key=depth)  # the first of them
    synsets = sorted(closure([*(reader.synset(c.synset) for c in CLASSES), deepest]), key=lambda s: s.offset())
    data, offsets = data_noun(full, header, synsets, {noun.offset() for noun in nouns})
    with reader.open("lexnames") as file:
        lexnames = file.read()
    readme = README.format(count=len(synsets), whole=len(nouns), classes=len(CLASSES), deepest=deepest.name())
    files = {
        "data.noun": data,
        "index.noun": index_noun(full, header, synsets, offsets),
        **{f"{kind}.{pos}": header for kind in ("data", "index") for pos in ("adj", "adv", "verb")},
        **{f"{pos}.exc": "" for pos in ("noun", "adj", "adv", "verb")},
        "lexnames": lexnames,
        "LICENSE": "".join(f"{line[2:].lstrip('0123456789').strip()}\n" for line in header.splitlines()),
        "README.md": readme,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ASSETS, help="where to write it")
    make(find_wordnet(download=True), parser.parse_args().folder)


if __name__ == "__main__":
    main()
