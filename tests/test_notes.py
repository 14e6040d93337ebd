"""Names and notes by hand: kept in a text file, shown where they fit, and only there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pure_nb import Study, load_study
from pure_nb.cli import app
from pure_nb.errors import ArgumentError, StudyError, StudyWarning
from pure_nb.judges.embedders import Embedder
from pure_nb.notes import STRONGEST, Note
from pure_nb.show import atlas
from pure_nb.show.report import part_names
from tests.small import noise, plain
from tests.test_atlas import data, index

TOML = """[model]
source = "glyphnet"
[images]
source = "glyphs"
length = 20
[parameters]
target = "layer4"
lower = "layer3"
n_references = 8
n_clusters = 2
[run]
progress = false
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A small network on noise, whose neurons have two parts each."""
    how: dict[str, Any] = {"n_references": 12, "n_clusters": 2, "progress": False, "store": tmp_path / "store"}
    return Study.from_model(plain(), noise(30), "4", "2", **how)


def file_of(study: Study) -> Path:
    assert study.notes.path is not None
    study.notes.path.parent.mkdir(parents=True, exist_ok=True)
    return study.notes.path


def test_what_is_written_is_read_by_others(study: Study) -> None:
    nasty = 'a "quoted" \\ back, täschle ☂'
    study.notes.write("3.b", nasty)
    study.notes.write("3.B", text="mostly red")  # the name stays
    study.notes.write("0", "odd")
    members = study.neuron(3).sample[study.neuron(3).members(1)].tolist()
    other = study.replace(seed=study.parameters.seed)
    assert other.notes is not study.notes
    assert other.notes.of(3, "B") == Note(nasty, "mostly red", tuple(members[:STRONGEST]))
    assert other.notes.of(0).name == "odd"
    assert other.notes.of(3, "A") == Note()
    assert file_of(study).parent == study.store.folder  # type: ignore[union-attr]
    assert study.results.prune(days=0)  # results are found again; what a person wrote is not
    other.notes.remove("3.B")
    assert list(study.notes.fitting()) == [(0, "whole")]


def test_a_person_may_write_the_file(study: Study) -> None:
    file_of(study).write_text(
        '# mine\n["4"]\n"3.A" = "umbrella"\n0 = { text = "odd\\u007f\\n" }\n["9"]\n"77.A" = "of another layer"\n'
    )
    study.notes.write("3.B", "house")
    assert {place: note.name for place, note in study.notes.fitting().items()} == {
        (3, "A"): "umbrella",
        (3, "B"): "house",
        (0, "whole"): "",
    }
    assert study.notes.of(0).text == "odd\x7f\n"
    assert '"77.A" = { name = "of another layer" }' in file_of(study).read_text(encoding="utf-8")


def test_a_note_is_not_shown_on_other_images(study: Study) -> None:
    study.notes.write("3.A", "umbrella", "by its images")
    kept = file_of(study)
    kept.write_text(kept.read_text().replace('"3.A"', '"3.B"'))  # as if the parts had changed their letters
    with pytest.warns(StudyWarning, match=r"3\.B of '4'.*do not fit any more"):
        assert study.notes.fitting() == {}
    (row,) = study.notes.table().to_dict("records")
    assert (row["channel"], row["part"], row["name"]) == (3, "B", "umbrella")
    assert row["misfit"] == "6 of the 6 images that it is of are in 3.A now"
    study.notes.write("3.B", text="new")  # the old name was of something else
    assert study.notes.of(3, "B") == Note("", "new", study.notes.of(3, "B").images)
    kept.write_text('["4"]\n"3.A" = { name = "umbrella", images = [1000, 1001] }\n"99" = "none"\n"3.C" = "none"\n')
    assert study.notes.table()["misfit"].tolist() == [
        "none of its images is a reference of neuron 3 any more",
        "channel 99: layer '4' has channels 0 to 5",
        "neuron 3 has no part C; its parts are A, B",
    ]


def test_half_of_the_images_are_too_few(study: Study) -> None:
    mine, others = (study.neuron(3).sample[study.neuron(3).members(part)].tolist() for part in (0, 1))
    for ours, fits in ((mine[:2] + others[:2], False), (mine[:3] + others[:2], True)):
        file_of(study).write_text(f'["4"]\n"3.A" = {{ name = "umbrella", images = {ours} }}\n')
        assert (study.notes.table()["misfit"][0] == "") == fits


@pytest.mark.parametrize(
    ("place", "name", "problem"),
    [
        ("3.C", "x", "neuron 3 has no part C; its parts are A, B"),
        ("99.A", "x", "channel 99: layer '4' has channels 0 to 5"),
        ("B", "x", "can't read 'B'; expected a neuron such as 22, or a part of one such as 22.B"),
        ("3.A", " ", "a note on 3.A needs a name or a text"),
        ("3.A", "two\nlines", "a line each"),
    ],
)
def test_wrong_places_and_names(study: Study, place: str, name: str, problem: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(problem)):
        study.notes.write(place, name)
    assert not file_of(study).exists()
    with pytest.raises(ArgumentError, match=r"no note on 3\.A"):
        study.notes.remove("3.A")


@pytest.mark.parametrize(
    "text",
    [
        "no TOML",
        '"22.B" = "umbrella"',
        '["4"]\n"B" = "x"',
        '["4"]\n"3.A" = 3',
        '["4"]\n"3.A" = { nmae = "x" }',
        '["4"]\n"3.A" = { name = 3 }',
        '["4"]\n"3.A" = { images = ["x"] }',
        '["4"]\n"3.A" = { images = 3 }',
        b"\xff",
    ],
)
def test_a_broken_file_is_named_and_left(study: Study, text: str | bytes) -> None:
    before = text if isinstance(text, bytes) else text.encode()
    file_of(study).write_bytes(before)
    for act in (study.notes.fitting, study.notes.table, lambda: study.notes.write("3.A", "x")):
        with pytest.raises(StudyError, match=r"notes\.toml' can't be read as notes: .*; expected for each layer"):
            act()
    assert file_of(study).read_bytes() == before


def test_a_study_without_a_place_has_no_notes(study: Study) -> None:
    bare = study.replace(store=None)
    assert bare.notes.fitting() == {}
    with pytest.raises(StudyError, match="has no place for notes"):
        bare.notes.write("3.A", "x")


def test_neurons_left_whole_have_no_parts(study: Study) -> None:
    whole = study.replace(n_clusters=1)
    with pytest.raises(ArgumentError, match="neuron 3 has no part A; it is left whole"):
        whole.notes.write("3.A", "x")
    whole.notes.write("3", "x")
    assert whole.notes.of(3).name == "x"


def test_atlas_tells_them_as_theirs(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "atlas"
    atlas.write(study, out, channels=[0, 3])
    before = {path: path.stat().st_mtime_ns for path in out.glob("data/[0-9]*.js")}
    study.notes.write("3.B", "<b>umbrella", "mostly red")
    atlas.write(study, out, channels=[0, 3])
    rows = {row["neuron"]: row for row in index(out)}
    assert (rows[3]["named"], rows[3]["notes"]) == ([["B", "<b>umbrella", True]], [["B", "mostly red"]])
    assert (rows[0]["named"], rows[0]["notes"]) == ([], [])
    found = data(out, 3)
    assert (found["part_labels"], found["by_hand"]) == (["", "<b>umbrella"], [False, True])
    page = (out / "3.html").read_text(encoding="utf-8")
    assert "“&lt;b&gt;umbrella” (named by hand)" in page
    assert "A note by hand: mostly red" in page
    assert "by hand" not in (out / "0.html").read_text(encoding="utf-8")
    drawn = {path.stem for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert drawn == {"3"}  # and no other neuron again
    study.notes.remove("3.B")
    atlas.write(study, out, channels=[0, 3])
    assert data(out, 3)["by_hand"] == [False, False]


def test_tables_tell_them(study: Study) -> None:
    def colours(crops: list[Any]) -> Any:
        return np.stack([crop.reshape(-1, 3).mean(axis=0) for crop in crops]).astype(np.float32)

    def vectors(texts: list[str]) -> Any:
        return np.array([[len(text), 1, 2] for text in texts], dtype=np.float32)

    judge = replace(Embedder.of("colours", colours), encode_text=vectors, encode_joint=colours)
    assert "by_hand" not in part_names(study, judge, ["a", "bcd"])
    assert study.notes.beside(study.neurons) is study.neurons
    study.notes.write("3.B", "umbrella")
    study.notes.write("3", text="odd")
    named = part_names(study, judge, ["a", "bcd"])
    assert list(named.columns[:5]) == ["channel", "part", "size", "by_hand", "label"]
    named = named.set_index(["channel", "part"])["by_hand"]
    assert named[named != ""].to_dict() == {(3, "B"): "umbrella"}
    assert "by_hand" not in part_names(study, judge, ["a", "bcd"], k=3)  # other parts than the study's
    table = study.notes.beside(study.neurons).set_index("channel")["by_hand"]
    assert table[table != ""].to_dict() == {3: "B umbrella, odd"}
    from pure_nb.show.atlas import Atlas

    assert Atlas(study, embedder=judge).label(3, "B") == "umbrella"  # before the embedder's


def test_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TOML)

    def said(command: str, *more: str) -> str:
        where = [str(tmp_path / "small.toml"), "--store", str(tmp_path / "store")]
        found = CliRunner().invoke(app, [command, *where, *more])
        assert found.exit_code == 0, found.output
        return found.output

    kept = tmp_path / "small.notes.toml"
    assert "by_hand" not in said("neurons")
    assert str(kept) in said("note", "22.B", "umbrella", "--text", "mostly red")
    assert load_study(tmp_path / "small.toml", store=tmp_path / "store").notes.of(22, "B").name == "umbrella"
    assert re.search(r"22 +B +umbrella +mostly red", said("note"))
    assert "B umbrella" in said("neurons", "--rows", "0")
    said("note", "22.B", "--remove")
    assert "umbrella" not in kept.read_text()
    wrong = CliRunner().invoke(app, ["note", str(tmp_path / "small.toml"), "22.Z", "x", "--store", str(tmp_path)])
    assert wrong.exit_code == 1
    assert "no part Z" in wrong.output


def test_shipped_studies_keep_theirs_in_the_store(tmp_path: Path) -> None:
    assert load_study("glyphs", store=tmp_path).notes.path == tmp_path / "glyphs/notes.toml"
