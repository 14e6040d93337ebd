"""What describes reference images: all of it in one list, neuron by neuron or all at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import Items, noise, plain

from pure_nb.errors import StudyWarning
from pure_nb.judges.embedders import pixels
from pure_nb.methods.combined import COMBINED
from pure_nb.methods.descriptions import LRP, OWN, PURE, RANDOM, descriptions, fitting, parts_by
from pure_nb.methods.virtual import kmeans
from pure_nb.study import Study


def mine(folder: Path, target: str = "4", lower: str = "2", **how: str) -> Study:
    return Study.from_model(plain(), Items(noise(15)), target, lower, n_references=6, n_clusters=2, store=folder, **how)


def test_every_description_neuron_by_neuron(tmp_path: Path) -> None:
    study = mine(tmp_path, start="peak")
    found = descriptions(study, [pixels(4)])
    alone = {name: one.of(2) for name, one in found.items() if name in (OWN, PURE, LRP)}
    assert study.store is not None
    assert not [entry for entry in study.store.results() if entry.name == "circuits"]
    simple = ["activation", "activation at maximum", "lower activation", "lower activation at maximum"]
    assert list(found) == [OWN, PURE, LRP, *simple, COMBINED, "pixels"] == [one.name for one in found.values()]
    expected = {OWN: study.circuits, PURE: study.circuits, LRP: study.replace(rule="lrp").circuits}
    expected |= study.activation_vectors | {"pixels": study.crops.embeddings(pixels(4))}
    del found[COMBINED]  # of which tests/test_combined.py tells
    for name, one in found.items():
        np.testing.assert_array_equal(one.vectors(), expected[name])
        np.testing.assert_array_equal(one.of(2), expected[name][2])
    for name, vectors in alone.items():
        np.testing.assert_allclose(vectors, expected[name][2], rtol=1e-5, atol=1e-8)


def test_without_a_grid_there_is_no_maximum(tmp_path: Path) -> None:
    assert "activation at maximum" not in descriptions(mine(tmp_path, "7", "5"))


def test_what_does_not_fit_is_left_out_where_it_is_asked_for(tmp_path: Path) -> None:
    study = mine(tmp_path)
    study.__dict__["without_lrp"] = "of the weather"
    with pytest.warns(StudyWarning, match="PURE LRP is left out: of the weather"):
        assert fitting({PURE: 1, LRP: 2}, study) == {PURE: 1}
    assert fitting({PURE: 1}, study) == {PURE: 1}  # and nothing is said
    study.__dict__["without_lrp"] = ""
    assert fitting({LRP: 2}, study) == {LRP: 2}


def test_parts_by_each_description_and_at_random() -> None:
    generator = np.random.default_rng(0)
    vectors = {name: generator.standard_normal((30, 4)).astype(np.float32) for name in "ab"}
    found = parts_by(vectors, 3, 30, generator=np.random.default_rng(5), seed=2)
    assert list(found) == ["a", "b", RANDOM]
    np.testing.assert_array_equal(found["b"], kmeans(vectors["b"], 3, seed=2))
    np.testing.assert_array_equal(found[RANDOM], np.random.default_rng(5).integers(0, 3, 30))
