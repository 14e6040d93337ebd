"""What is shipped of a study's results: all that today's keys ask for and nothing else, small, and computed rightly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.manifold import trustworthiness
from small import ROOT

from pure_nb.compute.store import Store
from pure_nb.loading import SHIPPED, load_study

AGAIN = "make what ships anew: python tools/ship_results.py"


def test_all_is_found_and_nothing_else_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    found = Store.found

    def noted(*asked: Any) -> Path | None:
        path = found(*asked)
        read.update([path.name, f"{path.name}.json"] if path else [])
        return path

    def computed(_: Store, step: str, __: object) -> None:
        pytest.fail(f"{step} of the shipped study are not among what ships; {AGAIN}")

    monkeypatch.setattr(Store, "found", noted)
    monkeypatch.setattr(Store, "claimed", computed)
    study = load_study("glyphs", store=tmp_path / "none", progress=False)
    assert study.known() == ["references", "circuits", "virtual", "layouts", "boxes"]
    for channel in study.most_polysemantic():
        assert study.neuron(channel).layout().shape == study.crops.boxes[channel, :, :2].shape
        assert study.neuron(channel).virtual.k == study.neurons.set_index("channel")["k"][channel]
        assert study.neuron(channel).meanings()
    assert not study.results.stored()
    assert not (tmp_path / "none").exists()
    assert {path.name for path in SHIPPED.iterdir()} == read, f"some are asked for by no study; {AGAIN}"


def test_other_parameters_are_not_shipped(tmp_path: Path) -> None:
    study = load_study("glyphs", store=tmp_path, n_clusters=3, progress=False)
    assert study.known() == ["references", "circuits", "layouts", "boxes"]
    study = load_study("glyphs", store=tmp_path, n_references=50, progress=False)
    assert study.known() == []


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 3e6


def arrays(folder: Path, step: str) -> dict[str, NDArray[Any]]:
    (path,) = folder.glob(f"{step}-*[!n]")  # and not its manifest
    if path.suffix == ".npy":
        return {"vectors": np.load(path)}
    found = load_file(path)
    return {name: values.T for name, values in found.items()} if step == "references" else found


@pytest.mark.slow
@pytest.mark.timeout(300)  # a minute on one core, of all that ships
def test_they_are_what_is_computed_here(tmp_path: Path) -> None:
    """Up to what another processor's sums change: last digits, so the order of equally strong references, the edges
    of a few boxes; and of UMAP, where a last digit moves every point, only how good it is. Parts are the same."""
    command = [sys.executable, str(ROOT / "tools" / "ship_results.py"), "--folder", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {
        path.name.partition("-")[0] for path in SHIPPED.iterdir()
    }
    shipped, here = (arrays(folder, "references") for folder in (SHIPPED, tmp_path))
    np.testing.assert_allclose(here["score"], shipped["score"], rtol=1e-4)
    order, other = (np.argsort(found["sample"], axis=1) for found in (shipped, here))

    def both(step: str, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """What is said of the references of each channel, these in the order of their numbers."""
        pairs = []
        for folder, by in ((SHIPPED, order), (tmp_path, other)):
            values = arrays(folder, step)[name].reshape(*by.shape, -1)
            pairs.append(np.take_along_axis(values, by[..., None], axis=1))
        return pairs[0], pairs[1]

    for step, name in (("references", "sample"), ("virtual", "labels"), ("objects", "label")):
        np.testing.assert_array_equal(*both(step, name), err_msg=AGAIN)
    vectors, again = both("circuits", "vectors")
    np.testing.assert_allclose(again, vectors, rtol=1e-3, atol=1e-5 * np.abs(vectors).max())
    old, new = both("boxes", "box")
    assert (old == new).all(axis=2).mean() > 0.99
    old, new = both("layouts", "points")
    better = [trustworthiness(own, a) - trustworthiness(own, b) for own, a, b in zip(vectors, new, old)]
    assert abs(np.mean(better)) < 0.01
    tables = [pd.read_parquet(next(folder.glob("neurons-*.parquet"))) for folder in (SHIPPED, tmp_path)]
    was, now = (table.sort_values("channel", ignore_index=True) for table in tables)
    pd.testing.assert_frame_equal(now, was, rtol=1e-3, atol=0.02)  # p counts draws


def test_a_class_of_a_library_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the results that ship were found under one Python only, each of which compiles other code."""
    study = load_study("glyphs")
    before = study._weights
    kind = type(study.model)

    def other(self: Any, input: Any) -> Any:
        return input

    monkeypatch.setattr(kind, "forward", other)
    assert load_study("glyphs")._weights != before  # a user's own
    monkeypatch.setattr(other, "__module__", kind.__module__)
    assert load_study("glyphs")._weights == before  # compiled otherwise
    study = load_study("glyphs")
    study.model.layer1[0].stride = 2  # an attribute decides, and is told
    assert study._weights != before
