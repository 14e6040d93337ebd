"""WordNet: found wherever it may be, read as NLTK reads it, and the shipped part as good as the whole."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import shutil
import socket
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import nltk
import numpy as np
import pandas as pd
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from small import ROOT, shared

from pure_nb.errors import WordNetError
from pure_nb.glyphs import CLASSES
from pure_nb.methods import wordnet as module
from pure_nb.methods.wordnet import (
    MEASURES,
    WordNet,
    find_wordnet,
    readable,
    shipped_wordnet,
    similarities,
    synset_of,
    synsets,
)

SHIPPED = ROOT / "pure_nb" / "methods" / "wordnet-3.0"
NAMES = [c.synset for c in CLASSES]
FREE = ("wup", "path", "lch")
CLASS_PAIRS = list(itertools.combinations(NAMES, 2))


@pytest.fixture(scope="module")
def full() -> Iterator[WordNet]:
    """A whole WordNet 3.0 with information content, where there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(shared("nltk_data")))
        yield find_wordnet()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without WordNet and without a network; returns an empty folder."""

    def offline(package: str, **_: object) -> bool:
        raise ValueError(f"Error loading {package}: no network in this test")

    monkeypatch.delenv("NLTK_DATA", raising=False)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    monkeypatch.setattr(module, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(nltk, "download", offline)
    return tmp_path


def copied(folder: Path, *, without: str = "") -> Path:
    """The shipped WordNet as someone's own, but for one file."""
    old = os.umask(0o022)  # NLTK reads nothing that others may write
    try:
        folder.mkdir(parents=True)
        for path in SHIPPED.iterdir():
            if path.name != without:
                (folder / path.name).write_bytes(path.read_bytes())
    finally:
        os.umask(old)
    return folder


def content_beside(folder: Path, text: str) -> None:
    """An information-content file in NLTK's data."""
    old = os.umask(0o022)
    try:
        (folder / "wordnet_ic").mkdir()
        (folder / "wordnet_ic" / "ic-brown.dat").write_text(text)
    finally:
        os.umask(old)


def works(wordnet: WordNet) -> None:
    """It finds the glyph world's synsets, and says the same as the shipped one."""
    pairs = ["king.n.10", "cat.n.01"], ["queen.n.08", "hammer.n.02"]
    pd.testing.assert_frame_equal(
        similarities(wordnet, *pairs, measures=FREE), similarities(shipped_wordnet(), *pairs, measures=FREE)
    )


# The shipped WordNet.


def test_the_shipped_one_has_every_class() -> None:
    table = synsets(shipped_wordnet(), NAMES)
    assert table["class"].tolist() == NAMES
    assert table["synset"].tolist() == NAMES
    assert set(table["how"]) == {"synset"}
    assert shipped_wordnet() is shipped_wordnet()
    assert shipped_wordnet().measures == FREE


@pytest.mark.slow
def test_the_shipped_one_is_as_good_as_the_whole(full: WordNet) -> None:
    tiny = shipped_wordnet()
    assert [full.reader.synset(name).name() for name in NAMES] == NAMES
    assert len(CLASS_PAIRS) == 1128
    for pair in CLASS_PAIRS:
        b, a = sorted(pair)  # by NLTK itself, in the order that similarities() does not take
        for measure in FREE:
            mine, theirs = (
                getattr(wordnet.reader.synset(a), f"{measure}_similarity")(wordnet.reader.synset(b))
                for wordnet in (tiny, full)
            )
            assert mine == theirs
    first, second = zip(*CLASS_PAIRS)
    table = similarities(tiny, first, second, FREE)
    pd.testing.assert_frame_equal(table, similarities(full, first, second, FREE), check_exact=True)
    assert not table.isna().to_numpy().any()


def test_the_shipped_one_names_all_its_synsets_as_the_whole_does(full: WordNet) -> None:
    for mine in shipped_wordnet().reader.all_synsets("n"):
        theirs = full.reader.synset(mine.name())
        assert mine.lemma_names() == theirs.lemma_names()
        assert set(mine.hypernyms()) == set(theirs.hypernyms())
        assert set(mine.instance_hypernyms()) == set(theirs.instance_hypernyms())
        assert (mine.min_depth(), mine.max_depth()) == (theirs.min_depth(), theirs.max_depth())
        assert mine.lexname() == theirs.lexname()


@pytest.mark.slow
def test_no_id_is_mistaken_in_the_shipped_one(full: WordNet) -> None:
    tiny = shipped_wordnet()
    ids = {f"n{synset.offset():08d}" for synset in full.reader.all_synsets("n")}
    mine = {f"n{synset.offset():08d}" for synset in tiny.reader.all_synsets("n")}
    assert ids & mine == {"n00001740"}
    assert readable(tiny, "n00001740") == readable(full, "n00001740") == "entity"


def test_the_shipped_one_says_none_for_what_it_leaves_out(recwarn: pytest.WarningsRecorder) -> None:
    for name in ("king.n.01", "n02084071", "v00001740", "king", "dog.n.01", "walk.v.01"):
        assert synset_of(shipped_wordnet(), name) is None
    assert not recwarn.list


def test_the_shipped_files_carry_the_licence() -> None:
    for pos in ("noun", "verb", "adj", "adv"):
        for kind in ("data", "index"):
            header = (SHIPPED / f"{kind}.{pos}").read_text().splitlines()[:29]
            assert all(line.startswith("  ") for line in header)
            assert "WordNet 3.0 Copyright 2006 by Princeton University" in "".join(header)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 60_000


@pytest.mark.slow
def test_the_tool_makes_the_shipped_files(full: WordNet, tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("make_wordnet", ROOT / "tools" / "make_wordnet.py")
    assert specification is not None
    assert specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    tool.make(full, tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in SHIPPED.iterdir()}


# Where a WordNet may be.


@pytest.mark.parametrize("name", ["NLTK_DATA", "path"])
@pytest.mark.parametrize("packed", [False, True])
def test_in_nltks_data(nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, packed: bool) -> None:
    folder = copied(nowhere / "mine" / "corpora" / "wordnet")
    if packed:
        file = folder.with_suffix(".zip")
        with zipfile.ZipFile(file, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"wordnet/{path.name}")
        file.chmod(0o644)
        shutil.rmtree(folder)
    if name == "path":
        monkeypatch.setattr(nltk.data, "path", [str(nowhere / "mine")])
    else:
        monkeypatch.setenv("NLTK_DATA", os.pathsep.join(["", str(nowhere / "mine")]))
    found = find_wordnet()
    assert found.source.startswith("NLTK's data")
    assert str(nowhere / "mine") in found.source
    assert found.content is None
    works(found)


def test_in_the_system_without_lexnames(nowhere: Path) -> None:
    copied(nowhere / "system", without="lexnames")
    found = find_wordnet()
    assert found.source.startswith("the system's")
    works(found)


def test_a_whole_one_as_debian_has_it(full: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in shared("nltk_data", "corpora", "wordnet").iterdir():
        if path.name not in ("lexnames", "index.sense"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(module, "SYSTEM", tmp_path)
    found = module._in_system("ic-brown.dat")
    assert synsets(found, NAMES)["synset"].tolist() == NAMES
    assert found.reader.synset("cat.n.01").lexname() == "noun.animal"
    first, second = zip(*CLASS_PAIRS[:50])
    pd.testing.assert_frame_equal(
        similarities(found, first, second, ("wup", "res")), similarities(full, first, second, ("wup", "res"))
    )


def test_nltks_data_come_before_the_systems(nowhere: Path) -> None:
    copied(nowhere / "system")
    assert find_wordnet().source.startswith("the system's")
    copied(nowhere / "nltk" / "corpora" / "wordnet")
    assert find_wordnet(download=True).source.startswith("NLTK's data")


def test_files_with_a_second_link_are_read(tmp_path: Path) -> None:
    """As uv and conda install a package's files; NLTK by itself refuses them."""
    copied(tmp_path / "first")
    (tmp_path / "second").mkdir()
    for path in (tmp_path / "first").iterdir():
        os.link(path, tmp_path / "second" / path.name)
        path.chmod(0o664)
    works(module._read(module._Folder(tmp_path / "second"), "here", None))


def test_nowhere_and_no_download_wanted(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("must not download unasked"))
    monkeypatch.setattr(nltk.data, "path", [str(nowhere / "nltk"), "/a/second", "/a/third"])
    with pytest.raises(WordNetError) as caught:
        find_wordnet()
    assert "nltk or 2 other folders of NLTK's; no system's" in str(caught.value)  # and not a list of all
    for expected in (str(nowhere / "nltk"), str(nowhere / "system"), "was not asked for", "nltk.downloader wordnet"):
        assert expected in str(caught.value)


def test_nowhere_and_offline(nowhere: Path) -> None:
    with pytest.raises(WordNetError) as caught:
        find_wordnet(download=True)
    for expected in (str(nowhere / "nltk"), str(nowhere / "system"), "no network in this test", "NLTK_DATA"):
        assert expected in str(caught.value)


@pytest.mark.parametrize("with_content", [True, False])
def test_a_download(nowhere: Path, monkeypatch: pytest.MonkeyPatch, with_content: bool) -> None:
    folder = nowhere / "nltk" / "corpora"

    def download(package: str, **_: object) -> bool:
        assert socket.getdefaulttimeout() is not None, "it must not wait for ever"
        if package == "wordnet":
            copied(folder / package)
        elif with_content:
            content_beside(folder, "wnver::test\n1740n 8 ROOT\n")
        else:
            raise ValueError("the network broke down")
        return True

    monkeypatch.setattr(nltk, "download", download)
    found = find_wordnet(download=True)
    assert (found.content is not None) == with_content
    assert socket.getdefaulttimeout() is None
    works(found)


def test_a_damaged_one_is_named_and_the_next_is_taken(nowhere: Path) -> None:
    folder = copied(nowhere / "nltk" / "corpora" / "wordnet")
    (folder / "index.noun").write_bytes(b"cat n\n")
    with pytest.raises(WordNetError, match=r"NLTK's data, .*wordnet.*, can't be read"):
        find_wordnet()
    copied(nowhere / "system")
    works(find_wordnet())


def test_another_version_is_not_taken(nowhere: Path) -> None:
    """Ids and information content would mean something else in it."""
    folder = copied(nowhere / "system")
    for path in folder.glob("data.*"):
        path.write_text(path.read_text().replace("WordNet 3.0", "WordNet 3.1"))
    with pytest.raises(WordNetError, match=r"version 3\.1, expected 3\.0"):
        find_wordnet()


@pytest.mark.parametrize("text", ["wnver::test\n1740n\n", "wnver::test\n1740n many\n", "wnver::test\n1740x 3\n"])
def test_damaged_information_content(nowhere: Path, text: str) -> None:
    content_beside(copied(nowhere / "nltk" / "corpora" / "wordnet").parent, text)
    assert find_wordnet().content is None


# Classes and their synsets.


def test_ids_of_imagenet(full: WordNet) -> None:
    info = resources.files("timm") / "data" / "_info"
    wnids = (info / "imagenet_synsets.txt").read_text().split()
    table = synsets(full, wnids)
    assert len(table) == 1000
    assert set(table["how"]) == {"wnid"}
    assert table["synset"].is_unique
    lemmas = dict(line.split("\t") for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    assert [readable(full, wnid) for wnid in wnids] == [lemmas[wnid].split(", ")[0] for wnid in wnids]


@pytest.mark.parametrize(
    ("name", "synset", "how", "shown"),
    [
        ("n01440764", "tench.n.01", "wnid", "tench"),
        ("n02701002", "ambulance.n.01", "wnid", "ambulance"),
        ("v00001740", "breathe.v.01", "wnid", "breathe"),
        ("king.n.10", "king.n.10", "synset", "king"),
        ("hop_clover.n.02", "hop_clover.n.02", "synset", "hop clover"),
        ("rook.n.01", "castle.n.03", "synset", "castle"),
        ("great white shark", "great_white_shark.n.01", "name", "great white shark"),
        ("great_white_shark", "great_white_shark.n.01", "name", "great_white_shark"),
        ("Crane", "crane.n.01", "name", "Crane"),
        ("cats", "cat.n.01", "name", "cats"),
        ("n99999999", None, "none", "n99999999"),
        ("n00001741", None, "none", "n00001741"),
        ("n1440764", None, "none", "n1440764"),
        ("x01440764", None, "none", "x01440764"),
        ("king.n.11", None, "none", "king.n.11"),
        ("king.n.00", None, "none", "king.n.00"),
        ("king.n.-1", None, "none", "king.n.-1"),
        ("king.x.01", None, "none", "king.x.01"),
        ("king.n", None, "none", "king.n"),
        (".n.01", None, "none", ".n.01"),
        ("glorp", None, "none", "glorp"),
        ("", None, "none", ""),
        ("..", None, "none", ".."),
    ],
)
def test_a_class_and_its_synset(full: WordNet, name: str, synset: str | None, how: str, shown: str) -> None:
    found = synset_of(full, name)
    assert (found and found.name()) == synset
    (row,) = synsets(full, [name]).to_dict("records")
    assert row == {"class": name, "synset": synset, "how": how}
    assert readable(full, name) == shown


def test_a_name_is_the_first_sense_and_says_so() -> None:
    table = synsets(shipped_wordnet(), ["cat", "cat.n.01", "glorp"])
    assert table["how"].tolist() == ["name", "synset", "none"]
    assert table["synset"].tolist() == ["cat.n.01", "cat.n.01", None]


def test_no_classes() -> None:
    assert synsets(shipped_wordnet(), []).shape == (0, 3)
    assert similarities(shipped_wordnet(), [], []).columns.tolist() == ["first", "second", "wup"]


# Similarities.


def sampled(full: WordNet) -> list[tuple[str, str]]:
    """Pairs of synsets from everywhere: classes of ImageNet, any nouns, verbs, and each with itself."""
    wnids = (resources.files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    names = [synset_of(full, wnid).name() for wnid in wnids[::30]]
    names += ["entity.n.01", "king.n.10", "friday.n.01", "paris.n.01", "walk.v.01", "run.v.01"]
    nouns_or_verbs = itertools.combinations_with_replacement(sorted(names), 2)
    return [(a, b) for a, b in nouns_or_verbs if a.split(".")[1] == b.split(".")[1]]


@pytest.mark.nightly
def test_the_same_as_nltk_by_itself(full: WordNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(shared("nltk_data"))])
    with pytest.warns(UserWarning, match="multilingual"):
        plain = WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None)
    first, second = zip(*sampled(full))
    table = similarities(full, first, second, MEASURES)
    assert table.columns.tolist() == ["first", "second", *MEASURES]
    for row in table.to_dict("records"):
        a, b = plain.synset(str(row["first"])), plain.synset(str(row["second"]))
        for measure in MEASURES:
            arguments: list[Any] = [full.content] if measure in ("res", "lin", "jcn") else []
            if (measure, a.name(), b.name()) == ("lin", "entity.n.01", "entity.n.01"):
                assert row[measure] == 1  # NLTK divides by zero
                continue
            expected = getattr(a, f"{measure}_similarity")(b, *arguments)
            assert row[measure] == (math.inf if expected == 1e300 else expected), (measure, row)


def test_the_default_is_wu_palmer() -> None:
    table = similarities(shipped_wordnet(), ["king.n.10"], ["queen.n.08"])
    expected = shipped_wordnet().reader.synset("king.n.10").wup_similarity(synset_of(shipped_wordnet(), "queen.n.08"))
    assert table.to_dict("list") == {"first": ["king.n.10"], "second": ["queen.n.08"], "wup": [expected]}


def test_either_order_gives_the_same(full: WordNet) -> None:
    """Also where NLTK's own Wu-Palmer similarity depends on the order."""
    a, b = "shimmy.n.03", "social_dancing.n.01"
    one, other = full.reader.synset(a), full.reader.synset(b)
    assert one.wup_similarity(other) != other.wup_similarity(one)
    table = similarities(full, [a, b], [b, a])
    assert table["wup"].tolist() == [one.wup_similarity(other)] * 2


def test_classes_without_synset() -> None:
    table = similarities(
        shipped_wordnet(), [None, "glorp", "cat.n.01", "cat.n.01"], ["cat.n.01", None, "n1", "cow.n.01"]
    )
    assert table["wup"].isna().tolist() == [True, True, True, False]
    assert table["first"].tolist() == [None, "glorp", "cat.n.01", "cat.n.01"]


def test_a_noun_and_a_verb(full: WordNet) -> None:
    (row,) = similarities(full, ["cat.n.01"], ["walk.v.01"], MEASURES).to_dict("records")
    cat, walk = full.reader.synset("cat.n.01"), full.reader.synset("walk.v.01")
    assert row["wup"] == cat.wup_similarity(walk)
    assert row["path"] == cat.path_similarity(walk)
    assert all(math.isnan(row[measure]) for measure in ("lch", "res", "lin", "jcn"))


@pytest.mark.slow
def test_information_content(full: WordNet) -> None:
    assert full.content is not None
    assert full.measures == MEASURES
    table = similarities(full, NAMES * len(NAMES), list(np.repeat(NAMES, len(NAMES))), MEASURES)
    assert not table.isna().to_numpy().any()
    assert np.isinf(table.loc[table["first"] == table["second"], "jcn"]).all()
    assert table["lin"].between(0, 1).all()


def test_without_information_content() -> None:
    for measure in ("res", "lin", "jcn"):
        with pytest.raises(WordNetError, match=rf"'{measure}' needs information content.*choose from wup, path, lch"):
            similarities(shipped_wordnet(), ["cat.n.01"], ["cow.n.01"], ["wup", measure])


@pytest.mark.slow
def test_a_file_of_information_content_that_is_not_there(full: WordNet) -> None:
    assert find_wordnet(content="ic-glorp.dat").content is None
    assert find_wordnet(content="ic-semcor.dat").content not in (None, full.content)


def test_mistakes() -> None:
    with pytest.raises(WordNetError, match="no measure 'wupp'; choose from wup, path"):
        similarities(shipped_wordnet(), ["cat.n.01"], ["cow.n.01"], ["wupp"])
    with pytest.raises(WordNetError, match="first holds 1 classes and second 2"):
        similarities(shipped_wordnet(), ["cat.n.01"], ["cow.n.01", "cat.n.01"])


def test_each_pair_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wordnet = WordNet(shipped_wordnet().reader, "again")
    computed = []
    compute = module._computed

    def counted(*arguments: Any) -> float:
        computed.append(arguments)
        return compute(*arguments)

    monkeypatch.setattr(module, "_computed", counted)
    first, second = zip(*itertools.product(NAMES, NAMES))
    once = similarities(wordnet, first, second)
    assert len(computed) == 1128 + 48
    pd.testing.assert_frame_equal(once, similarities(wordnet, first, second))
    assert len(computed) == 1128 + 48
