"""How near the meanings of two classes are, by WordNet.

NLTK reads WordNet and computes every similarity; this module finds a WordNet, finds the classes in it, and
keeps what was computed. A class is a WordNet 3.0 id as ImageNet's (``"n01440764"``), a synset
(``"king.n.10"``), or a word (``"great white shark"``), which stands for its first sense as a noun.

WordNet is looked for in NLTK's data, then where Debian installs it, then, if asked, NLTK downloads it. For
the 48 classes of the glyph world a small one ships with the package, see :func:`shipped_wordnet`.

References
----------
G. A. Miller, "WordNet: a lexical database for English", Communications of the ACM 38(11), 1995.
"""

from __future__ import annotations

import io
import math
import os
import re
import socket
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import IO, Any

import pandas as pd

from pure_nb._imports import needed
from pure_nb.errors import WordNetError

with needed("wordnet", "WordNet needs", WordNetError):
    import nltk
    from nltk.corpus.reader.wordnet import Synset, WordNetCorpusReader, WordNetICCorpusReader
    from nltk.corpus.reader.wordnet import WordNetError as NoSuchSynset
    from nltk.data import PathPointer, SeekableUnicodeStreamReader

MEASURES = ("wup", "path", "lch", "res", "lin", "jcn")
"""The similarities: Wu-Palmer, path, Leacock-Chodorow, Resnik, Lin and Jiang-Conrath; the last three need an
information-content file."""

VERSION = "3.0"
"""The version of WordNet that ImageNet's ids, the information-content files and the glyph world belong to."""

SYSTEM = Path("/usr/share/wordnet")
"""Where Debian's package ``wordnet-base`` and those made from it put WordNet."""

_SHIPPED = Path(str(resources.files(__package__) / "wordnet-3.0"))
_WITH_CONTENT = ("res", "lin", "jcn")
_INFINITE = 1e300  # what NLTK says for infinity
_PATIENCE = 10.0  # seconds without an answer after which a download is given up
_WNID = re.compile(r"([nvasr])(\d{8})")
_SYNSET = re.compile(r".+\.[nvasr]\.0*[1-9]\d*")  # NLTK takes sense 0 for the last one


class _Folder(PathPointer):  # type: ignore[misc]
    """A folder outside NLTK's data, or a file in it, for NLTK to read.

    NLTK's own pointers open only what lies in NLTK's data folders, and since 3.10 no file that has a second
    link, as uv and conda install them, or that a group may write, as many check them out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def join(self, fileid: str) -> _Folder:
        path = self._path / fileid
        # Debian leaves this file out, which is the same in every WordNet, and which NLTK can't do without.
        return _Folder(_SHIPPED / fileid if fileid == "lexnames" and not path.exists() else path)

    def open(self, encoding: str | None = None) -> IO[Any]:
        stream = self._path.open("rb")
        return stream if encoding is None else SeekableUnicodeStreamReader(stream, encoding)

    def file_size(self) -> int:
        return self._path.stat().st_size

    def __str__(self) -> str:
        return str(self._path)


class _Reader(WordNetCorpusReader):  # type: ignore[misc]
    """NLTK's reader, without what it does for other languages, and with the version looked up only once."""

    def open(self, file: str) -> IO[Any]:
        return self.root.join(file).open(self.encoding(file))  # the pointer knows what may be opened

    def map_wn(self, version: str = "wordnet") -> None:
        """Map no offsets to other languages' WordNets: it takes seconds, and files that Debian leaves out."""

    def get_version(self) -> str | None:
        return self._version

    @cached_property
    def _version(self) -> str | None:  # NLTK reads it from a file for every single similarity
        return super().get_version()


@dataclass(frozen=True, eq=False)
class WordNet:
    """A WordNet that was found.

    Attributes
    ----------
    reader
        NLTK's reader of it.
    source
        Where it was found, in words.
    content
        Information content, as ``WordNetICCorpusReader.ic`` returns it; None if there is no such file.
    """

    reader: WordNetCorpusReader
    source: str
    content: dict[str, Any] | None = None
    _known: dict[tuple[str, str, str], float] = field(default_factory=dict, init=False, repr=False)

    @property
    def measures(self) -> tuple[str, ...]:
        """Those of :data:`MEASURES` that can be had here."""
        return tuple(m for m in MEASURES if self.content is not None or m not in _WITH_CONTENT)


def find_wordnet(*, download: bool = False, content: str = "ic-brown.dat") -> WordNet:
    """The WordNet 3.0 of this machine: NLTK's, as folder or zip, or else the system's.

    NLTK's data are looked for in the folders that ``NLTK_DATA`` names now, and in ``nltk.data.path``. Reading
    takes about a second: keep the result.

    Parameters
    ----------
    download
        Whether NLTK may download WordNet and its information content, if there is no WordNet.
    content
        The information-content file to read from NLTK's package ``wordnet_ic``, if that is there. In the
        default, the Brown corpus's, rare synsets don't occur, so that their content is infinite; those whose
        names end in ``-add1.dat`` count every synset once more.

    Raises
    ------
    WordNetError
        If there is none. It says where this looked, what it found there, and what to do.
    """
    looked = []
    for look in (_in_nltk_data, _in_system, *([_in_download] if download else [])):
        try:
            return look(content)
        except WordNetError as problem:
            looked.append(str(problem))
    if not download:
        looked.append("a download by NLTK was not asked for")
    raise WordNetError(
        f"there is no WordNet to be had: {'; '.join(looked)}. Run `python -m nltk.downloader wordnet wordnet_ic`, or "
        "install your system's package (on Debian `apt install wordnet-base`), or let NLTK_DATA name a folder that "
        "holds corpora/wordnet"
    )


@cache
def shipped_wordnet() -> WordNet:
    """The small WordNet of the glyph world, which ships with the package.

    It holds the synsets of the 48 classes and all that they are kinds of, so ``wup``, ``path`` and ``lch``
    are those of the whole WordNet 3.0. It knows synsets and no ids of ImageNet's, and few words: a word whose
    first sense it lacks has no synset. ``tools/make_wordnet.py`` makes it.
    """
    return _read(_Folder(_SHIPPED), "the glyph world's, shipped with the package", None)


def _in_nltk_data(content: str) -> WordNet:
    folders = _nltk_folders()
    try:
        root = nltk.data.find("corpora/wordnet/", folders)
    except LookupError as problem:
        more = f" or {len(folders) - 1} other folders of NLTK's" if len(folders) > 1 else ""
        raise WordNetError(f"no corpora/wordnet is in {folders[0] if folders else 'a folder'}{more}") from problem
    return _read(root, f"NLTK's data, {root}", _content(content))


def _in_system(content: str) -> WordNet:
    if not (SYSTEM / "data.noun").is_file():
        raise WordNetError(f"no system's WordNet is in {SYSTEM}")
    return _read(_Folder(SYSTEM), f"the system's, {SYSTEM}", _content(content))


def _in_download(content: str) -> WordNet:
    _download("wordnet")
    with suppress(WordNetError):  # three measures need it, the others don't
        _download("wordnet_ic")
    return _in_nltk_data(content)


def _download(package: str) -> None:
    """Let NLTK download one of its packages, but not wait for ever."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        nltk.download(package, quiet=True, raise_on_error=True, print_error_to=io.StringIO())
    except (OSError, ValueError) as problem:
        raise WordNetError(f"NLTK's download failed ({problem})") from problem
    finally:
        socket.setdefaulttimeout(timeout)


def _nltk_folders() -> list[str]:
    """Where NLTK's data may be: NLTK itself looks at the environment only when it is imported."""
    named = [os.path.expanduser(name) for name in os.environ.get("NLTK_DATA", "").split(os.pathsep) if name]
    return list(dict.fromkeys(named + nltk.data.path))


def _read(root: PathPointer, source: str, content: dict[str, Any] | None) -> WordNet:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The multilingual functions")
            reader = _Reader(root, omw_reader=None)
        version = reader.get_version()
    except Exception as problem:  # NLTK does not check what it reads
        raise WordNetError(f"{source}, can't be read ({type(problem).__name__}: {problem})") from problem
    if version != VERSION:
        raise WordNetError(f"{source}, is version {version}, expected {VERSION}")
    return WordNet(reader, source, content)


def _content(file: str) -> dict[str, Any] | None:
    """The information content in one of the files of NLTK's package; None if there is none that can be read."""
    try:
        root = nltk.data.find("corpora/wordnet_ic/", _nltk_folders())
        content: dict[str, Any] = WordNetICCorpusReader(root, [file]).ic(file)
    except (LookupError, OSError, ValueError):
        return None
    return content


def synset_of(wordnet: WordNet, name: str) -> Synset | None:
    """NLTK's synset of a class.

    Parameters
    ----------
    wordnet
        Where to look.
    name
        A WordNet 3.0 id (``"n01440764"``), a synset (``"king.n.10"``), or a word, with spaces or underscores.

    Returns
    -------
    Synset or None
        None where this WordNet has none.
    """
    return _resolve(wordnet, name)[0]


def synsets(wordnet: WordNet, classes: Sequence[str]) -> pd.DataFrame:
    """The synsets of classes, and how each was chosen.

    Returns
    -------
    DataFrame
        A row for each class: ``class``; ``synset``, its name or None; ``how`` it was found: ``"wnid"`` or
        ``"synset"`` if the class is one, ``"name"`` if it is a word, of which this is the first sense as a
        noun and perhaps not the one meant, and ``"none"``.
    """
    found = [(name, *_resolve(wordnet, name)) for name in classes]
    rows = [(name, synset and synset.name(), how) for name, synset, how in found]
    return pd.DataFrame(rows, columns=["class", "synset", "how"], dtype=object)


def readable(wordnet: WordNet, name: str) -> str:
    """A name to show for a class: ``"ambulance"`` for ``"n02701002"``, ``"king"`` for ``"king.n.10"``.

    A word is returned as it is, and so is anything that this WordNet doesn't know.
    """
    synset, how = _resolve(wordnet, name)
    if synset is None or how == "name":
        return name
    return str(synset.lemma_names()[0]).replace("_", " ")


def _resolve(wordnet: WordNet, name: str) -> tuple[Synset | None, str]:
    """The synset of a class, and how it was found."""
    reader = wordnet.reader
    # For a sense that the shipped WordNet leaves out, NLTK warns and then stumbles over the None it gets.
    with warnings.catch_warnings(), suppress(NoSuchSynset, AttributeError):
        warnings.filterwarnings("ignore", message="No WordNet synset found")
        if match := _WNID.fullmatch(name):
            synset, how = reader.synset_from_pos_and_offset(match[1], int(match[2])), "wnid"
        elif _SYNSET.fullmatch(name):
            synset, how = reader.synset(name), "synset"
        else:
            synset, how = next(iter(reader.synsets(name.replace(" ", "_"), pos="n")), None), "name"
        if synset is not None:
            return synset, how
    return None, "none"


def similarities(
    wordnet: WordNet,
    first: Sequence[str | None],
    second: Sequence[str | None],
    measures: Sequence[str] = ("wup",),
) -> pd.DataFrame:
    """How near the meanings of pairs of classes are, as NLTK computes it.

    The chapter :doc:`Does WordNet agree? </book/wordnet>` builds it from scratch.

    Each pair of synsets is computed once and kept with ``wordnet``; that takes some 0.2 ms, so a minute or two
    for all pairs of ImageNet's 1000 classes. The first ``lch`` takes several seconds more, in which NLTK measures
    the depth of the whole WordNet.

    Parameters
    ----------
    wordnet
        Where to look.
    first, second
        The classes of each pair, in any of the forms of :func:`synset_of`; None for a class without synset.
    measures
        Some of :data:`MEASURES`; ``wordnet.measures`` are all that can be had.

    Returns
    -------
    DataFrame
        A row for each pair: ``first``, ``second``, and a column for each measure. A similarity is NaN where a
        class has no synset, or where NLTK has none (for a noun and a verb: all but ``wup`` and ``path``, which
        give them a common root), and infinite where NLTK says 1e300:
        ``jcn`` of a synset and itself, ``res`` where all that the two are kinds of in common includes a synset
        that doesn't occur in the text whose information content was measured.

    Raises
    ------
    WordNetError
        If a measure is unknown, or needs information content and there is none, or if the two sequences
        differ in length.

    Notes
    -----
    NLTK's Wu-Palmer similarity of a synset and one that it is a kind of can depend on their order, so a pair
    is always computed in the order of the synsets' names. ``lin`` of the root and itself, where NLTK divides
    by zero, is 1.
    """
    _check(wordnet, measures)
    if len(first) != len(second):
        raise WordNetError(f"first holds {len(first)} classes and second {len(second)}; expected one of each per pair")
    found = {name: None if name is None else synset_of(wordnet, name) for name in {*first, *second}}
    table = pd.DataFrame({"first": list(first), "second": list(second)}, dtype=object)
    for measure in measures:
        values = [_similarity(wordnet, measure, found[a], found[b]) for a, b in zip(first, second)]
        table[measure] = pd.Series(values, dtype=float)
    return table


def _check(wordnet: WordNet, measures: Sequence[str]) -> None:
    for measure in measures:
        if measure not in MEASURES:
            raise WordNetError(f"there is no measure {measure!r}; choose from {', '.join(MEASURES)}")
        if measure not in wordnet.measures:
            raise WordNetError(
                f"the measure {measure!r} needs information content, and this WordNet ({wordnet.source}) has none; "
                f"choose from {', '.join(wordnet.measures)}, or run `python -m nltk.downloader wordnet wordnet_ic` and "
                "use find_wordnet()"
            )


def _similarity(wordnet: WordNet, measure: str, first: Synset | None, second: Synset | None) -> float:
    if first is None or second is None:
        return math.nan
    low, high = (first, second) if first.name() <= second.name() else (second, first)
    key = (measure, low.name(), high.name())
    if key not in wordnet._known:
        wordnet._known[key] = _computed(wordnet, measure, low, high)
    return wordnet._known[key]


def _computed(wordnet: WordNet, measure: str, first: Synset, second: Synset) -> float:
    compute = getattr(first, f"{measure}_similarity")
    try:
        value = compute(second, wordnet.content) if measure in _WITH_CONTENT else compute(second)
    except NoSuchSynset:  # NLTK's one error, here for two parts of speech
        return math.nan
    except ZeroDivisionError:  # lin of the root, which carries no information, and itself
        return 1.0
    if value is None:
        return math.nan
    return math.inf if value >= _INFINITE else float(value)
