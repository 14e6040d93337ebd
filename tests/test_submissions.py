"""Editions: a contestant of one's own through to the leaderboard, and submissions that are not what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import ROOT
from typer.testing import CliRunner

from pure_nb.benchmark import edition as editions
from pure_nb.benchmark import submissions
from pure_nb.benchmark.edition import Edition, World, Worlds, entry, submit, verify
from pure_nb.benchmark.submissions import Record, page, read_submission, sealed
from pure_nb.cli import app
from pure_nb.errors import PureError, StudyError
from pure_nb.study import Study

OWN = """\
import numpy as np


def both(task):
    circuits = task.circuits(start="peak")
    beside = task.activations["activation at maximum"]
    beside = beside / np.abs(beside).sum(axis=2, keepdims=True).clip(1e-9)
    return np.concatenate([circuits, beside], axis=2)


def spread(task):
    return task.circuits().std(axis=1).mean(axis=1)


def halves(task):
    assert (task.truth == -1).all() and task.contributions is None
    return np.arange(task.truth.size).reshape(task.truth.shape) % 2
"""
SECRET = "17 salt"
PAIRS = {"count": 4, "k": 2, "how": "random", "self_merged": 3, "seed": 3}


@pytest.fixture(scope="module")
def worlds(glyph_study: Study) -> Worlds:
    """An edition of two small worlds, one hidden and one that is missing."""
    listed = [World("more", "glyphs", planting=PAIRS | {"seed": 4}), World("pairs", "glyphs", planting=PAIRS)]
    listed = [replace(world, checksum=editions.checksum(made(world, glyph_study))) for world in listed]
    hidden = World("hidden", "glyphs", planting=PAIRS | {"seed": 1}, hidden=True)
    missing = World("far", "far", planting=PAIRS, optional=True)
    secret = hashlib.sha256(SECRET.encode()).hexdigest()

    def load(name: str) -> Study:
        if name == "far":
            raise StudyError("no such folder")
        return glyph_study

    every = Edition("small", (*listed, hidden, missing), "0" * 64, secret, editions.versions())
    return Worlds(every, load, lambda _: None)


def made(world: World, study: Study) -> Any:
    return replace(world, hidden=True).task(study)  # whose checksum nobody asks for


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def record(worlds: Worlds, own: Path) -> Record:
    return submit(worlds, entry(f"{own}:both"))


@pytest.mark.slow
def test_a_contestant_of_ten_lines_to_the_leaderboard(
    worlds: Worlds, record: Record, own: Path, tmp_path: Path
) -> None:
    (path,) = submissions.keep(record, tmp_path / "mine", board=False)
    again = read_submission(path)
    assert again == record
    (tmp_path / "secret").write_text(SECRET + "\n")
    secret = worlds.edition.opened(tmp_path / "secret")
    done = verify(again, worlds, entry(f"{own}:both"), secret)
    assert done["worlds"].keys() == {"more", "pairs", "hidden"}
    assert "answers" not in done["worlds"]["hidden"]
    for name in ("more", "pairs"):
        assert done["worlds"][name]["scores"] == record["worlds"][name]["scores"]
    submissions.keep(done, tmp_path)
    score = verify(submit(worlds, entry(f"{own}:spread")), worlds)
    assert score["kind"] == "score"
    _, board = submissions.keep(score, tmp_path)
    text = board.read_text(encoding="utf-8")
    ari = done["worlds"]["more"]["scores"]["ari"]
    assert next(line for line in text.splitlines() if line.startswith("| both |")).count(f"{ari:.2f} (") == 1
    assert "| spread |" in text
    assert "| function | own.py:both |" in text
    assert "| answers | own.py:spread |" in text


def test_scores_are_those_of_the_benchmark(worlds: Worlds, record: Record, glyph_study: Study) -> None:
    """By the other way: a contestant takes part in :func:`run_benchmark`, with nothing hidden from it."""
    from pure_nb.benchmark.contestants import Contestant
    from pure_nb.benchmark.leaderboards import run_benchmark

    task = made(worlds.edition.worlds[1], glyph_study)
    answers = np.array(record["worlds"]["pairs"]["answers"])
    board = run_benchmark(task, own=[Contestant("it", lambda _: answers)], only=["it"], choose=False).board
    row = board.set_index("method").loc["it"]
    for name, value in record["worlds"]["pairs"]["scores"].items():
        assert value == pytest.approx(row[name], abs=1e-12)


def test_a_score_needs_neurons_of_one_meaning(glyph_study: Study) -> None:
    natural = World("objects", "glyphs", hidden=True).task(glyph_study)
    assert (natural.k > 1).all()
    with pytest.raises(StudyError, match="has no neurons of one meaning, so no score can tell them"):
        editions.scored(natural, np.arange(32.0))
    with pytest.raises(StudyError, match="the score is the same for all channels"):
        editions.scored(natural, np.ones(32))
    assert editions.scored(natural, natural.truth)["ari"] == 1


def test_the_truth_is_hidden(worlds: Worlds, own: Path) -> None:
    assert submit(worlds, entry(f"{own}:halves"))["kind"] == "contestant"
    with pytest.raises(StudyError, match="not told the truth"):
        submit(worlds, entry("oracle: PURE"))


def altered(change: Callable[[Any], object]) -> Callable[[Record], Record]:
    """A submission with one world's changes, and a checksum that fits."""

    def make(record: Record) -> Record:
        other = json.loads(json.dumps(record))
        change(other["worlds"]["pairs"] if not getattr(change, "whole", False) else other)
        return sealed(other)

    return make


def whole(change: Callable[[Any], object]) -> Callable[[Record], Record]:
    change.whole = True  # type: ignore[attr-defined]
    return altered(change)


@pytest.mark.parametrize(
    ("tampered", "message"),
    [
        (altered(lambda it: it["scores"].update(ari=0.99)), "is said to have ari 0.99, and its answers have"),
        (altered(lambda it: it["scores"].update(ari=None)), "is said to have ari None"),
        (altered(lambda it: it["answers"].pop()), r"answers \[6, 20\]; expected \[7, 20\] and \[7, 20\]"),
        (altered(lambda it: it["images"].reverse()), "answers for other reference images"),
        (altered(lambda it: it["answers"][0].__setitem__(0, "x")), "no images and answers that are tables of numbers"),
        (altered(lambda it: it["answers"][0].__setitem__(0, None)), "are NaN or infinite"),
        (altered(lambda it: it["answers"].reverse()), "is said to have"),
        (whole(lambda it: it["worlds"].update(moon=it["worlds"]["pairs"])), "no world 'moon'"),
        (whole(lambda it: it["worlds"].update(hidden=it["worlds"]["pairs"])), "no world 'hidden' to submit to"),
        (whole(lambda it: it["worlds"].pop("pairs")), "no answers for the world 'pairs', which everyone has"),
        (whole(lambda it: it.update(edition_sha256="1" * 64)), "made for another edition"),
    ],
)
def test_tampered_submissions_are_found(
    worlds: Worlds, record: Record, tampered: Callable[[Record], Record], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        verify(tampered(record), worlds)


def test_answers_of_another_function_are_found(worlds: Worlds, record: Record, own: Path) -> None:
    """The halves of the images, with their own true scores, under the name of another function."""
    halves = submit(worlds, entry(f"{own}:halves"))
    fake = sealed(record | {"worlds": halves["worlds"]})
    assert verify(fake, worlds)["verified"] == "answers"  # its scores are right
    with pytest.raises(StudyError, match=r"not those that own\.py:both gives here: they agree by"):
        verify(fake, worlds, entry(f"{own}:both"))
    with pytest.raises(StudyError, match="name what was submitted"):
        verify(record, worlds, entry(f"{own}:halves"))
    with pytest.raises(StudyError, match="hidden worlds need the function"):
        verify(record, worlds, secret=17)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no submission"),
        ("[1, 2", "is no submission"),
        ('{"worlds": NaN}', "a number that is NaN; expected finite ones"),
    ],
)
def test_files_that_are_no_submissions(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "it.json").write_text(text)
    with pytest.raises(StudyError, match=message):
        read_submission(tmp_path / "it.json")


def test_a_changed_file_a_wrong_secret_and_another_world(
    worlds: Worlds, record: Record, tmp_path: Path, glyph_study: Study
) -> None:
    (path,) = submissions.keep(record, tmp_path, board=False)
    text = path.read_text()
    path.write_text(text.replace('"name":"both"', '"name":"best"'))
    with pytest.raises(StudyError, match="was changed after it was made"):
        read_submission(path)
    path.write_text(text)
    with pytest.raises(StudyError, match="name the function otherwise"):
        submissions.keep(sealed(record | {"source": "other.py:both"}), tmp_path)
    (tmp_path / "secret").write_text("18 salt")
    with pytest.raises(StudyError, match="is not that of edition small"):
        worlds.edition.opened(tmp_path / "secret")
    with pytest.raises(StudyError, match="world 'pairs' is another one here"):
        worlds.edition.worlds[1].task(glyph_study.replace(n_references=10))


def test_images_that_moved_a_place_do_no_harm(worlds: Worlds, record: Record) -> None:
    """Another processor may exchange two neighbours: their answers go along."""
    other = json.loads(json.dumps(record))
    for name in ("images", "answers"):
        for row in other["worlds"]["pairs"][name]:
            row[3], row[4] = row[4], row[3]
    done = verify(sealed(other), worlds)
    assert done["worlds"]["pairs"]["scores"] == record["worlds"]["pairs"]["scores"]


def test_other_versions_are_told(worlds: Worlds, record: Record) -> None:
    old = sealed(record | {"versions": record["versions"] | {"torch": "1.0"}})
    with pytest.warns(UserWarning, match=r"torch .* \(then 1\.0\)"):
        verify(old, worlds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a STUDY, or an edition"),
        (["--edition", "1999.1", "--only", "PURE"], "there is no edition '1999.1' of the benchmark; there are 2027.1"),
        (["--edition", "2027.1"], "submit one function"),
        (["glyphs", "--edition", "2027.1", "--only", "PURE"], "leave them out"),
        (["--edition", "2027.1", "--only", "PURE", "--count", "3"], "leave out those options"),
        (["--edition", "2027.1", "--only", "PURE", "--n", "3"], "leave them out"),
        (["--verify", "nowhere.json"], "can't be read"),
    ],
)
def test_errors_of_the_command(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_the_books_leaderboard_is_that_of_the_submissions() -> None:
    folder = ROOT / "book" / "submissions"
    records = [read_submission(path) for path in sorted(folder.glob("*.json"))]
    assert {record["kind"] for record in records} == {"contestant", "score"}
    assert (folder / "leaderboard.md").read_text(encoding="utf-8") == page(records)
    shipped = editions.load_edition("2027.1")
    assert {record["edition_sha256"] for record in records} == {shipped.sha256}
    assert issubclass(StudyError, PureError)


@pytest.mark.slow
@pytest.mark.timeout(120)  # a pass over all scenes, through the planted layer
def test_the_shipped_worlds_are_what_the_edition_says(tmp_path: Path) -> None:
    from pure_nb.loading import load_study

    shipped = editions.load_edition("2027.1")
    world = shipped.worlds[1]
    task = world.task(load_study(world.study, store=tmp_path, progress=False))
    assert len(task.k) == 45
