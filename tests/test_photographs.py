"""The published study of photographs: whole, small, each picture with its author, and made by a rule that is told."""

from __future__ import annotations

import csv
from pathlib import Path

import make_photographs
import pandas as pd
import pytest
from chapters import BOOK
from small import shared

from pure_nb import load_study
from pure_nb.errors import StudyError
from pure_nb.loading import PHOTOGRAPHS
from pure_nb.published import Published


@pytest.fixture(scope="module")
def study() -> Published:
    found = load_study("photographs", progress=False)
    assert isinstance(found, Published)
    return found


def test_the_choice_takes_several_labels_and_then_single_ones_by_turns() -> None:
    fish, tool, animal = ["fish"], ["tool"], ["animal"]
    labels = [
        6 * fish + 5 * tool + 4 * animal,
        9 * fish + 6 * tool,  # two labels
        12 * fish + 3 * tool,
        5 * fish + 5 * tool + 5 * animal,  # a part of one image
        15 * tool,
        15 * fish,
        5 * fish + 5 * tool + 5 * animal,  # less polysemantic than the first
    ]
    sizes = ["7 5 3", "7 5 3", "8 4 3", "9 5 1", "5 5 5", "5 5 5", "7 5 3"]
    channels = [3, 1, 0, 6, 2, 4, 5]
    table = pd.DataFrame({"channel": channels, "sizes": [sizes[channel] for channel in channels]})
    assert make_photographs.choose(table, labels, 1, 2) == [0, 5, 4]
    assert make_photographs.choose(table, labels, 9, 9) == [0, 6, 5, 4, 2]


def test_it_is_whole_and_small(study: Published) -> None:
    assert len(study.neurons) == make_photographs.SEVERAL + make_photographs.PLAIN
    assert study.references.n == 15
    first = study.neuron(study.most_polysemantic(1)[0])
    assert first.virtual.k == 3
    assert first.views([0])[0].picture.shape == (224, 224, 3)
    held = [path for path in BOOK.glob("photograph*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in [*held, *BOOK.glob("photograph*.*")]) <= 6e6


def test_each_picture_has_its_author(study: Published) -> None:
    with (PHOTOGRAPHS / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["picture"]: row for row in csv.DictReader(file)}
    pictures = {name for name in study.found.files if name.startswith("pictures/")}
    assert pictures == set(rows)
    assert len(pictures) > 100
    for row in rows.values():
        assert row["author"], row
        assert row["licence"] == "public domain" or row["licence_url"], row
        assert row["source"], row
        assert row["changes"], row
        assert study.images.credit(int(row["sample"])).startswith(f"{row['author']}, {row['licence']}")


def test_where_it_is_shown_authors_can_be_reached() -> None:
    shown = [path for path in BOOK.glob("*.md") if 'load_study("photographs"' in path.read_text(encoding="utf-8")]
    without = [path.name for path in shown if "(photographs.md)" not in path.read_text(encoding="utf-8")]
    assert len(shown) > 1
    assert without == ["photographs.md"]


def test_elsewhere_it_is_said_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURE_NB_PHOTOGRAPHS", str(tmp_path / "none"))
    with pytest.raises(StudyError, match="set PURE_NB_PHOTOGRAPHS to the folder book/photographs of a clone of https"):
        load_study("photographs")


def test_the_study_to_compute_is_of_the_same_network_and_pictures(study: Published, tmp_path: Path) -> None:
    weights = shared("models", "imagenet-mobilenetv2.safetensors")
    pictures = shared("data", "photographs-free", "pictures")
    own = load_study("photographs-google", data=pictures, weights=weights, store=tmp_path)
    assert own._weights == study.found.told["weights"]
    assert own.images.fingerprint == study.images.fingerprint
    assert (own.parameters.target, own.parameters.lower) == (study.parameters.target, study.parameters.lower)
