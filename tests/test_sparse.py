"""Sparse autoencoders on the benchmark: what they see, and how single features are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from small import noise, plain

from pure_nb.benchmark.bench import run
from pure_nb.benchmark.contestants import contestants
from pure_nb.benchmark.sparse import (
    SparseCodes,
    at_maxima,
    f1_scores,
    layer_of,
    part_features,
    source_features,
)
from pure_nb.benchmark.tasks import Task, planted_task
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.methods.dictionaries import SparseAutoencoder
from pure_nb.network.layers import activations
from pure_nb.study import Study

GROUPS = ((0, 1), (1, 2), (4, 4), (2, 2))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    how: dict[str, Any] = {"n_references": 8, "store": tmp_path, "progress": False}
    return planted_task(Study.from_model(plain(), noise(24), "5", "3", **how), groups=GROUPS)


def test_names() -> None:
    for name in ("SAE top-k, 4x, k=8", "lower SAE BatchTopK, 16x, k=2"):
        found = SparseCodes.named(name)
        assert found is not None
        assert found.name == name
    for name in ("SAE", "SAE L1, 4x, k=8", "SAE top-k, 0x, k=8", "SAE top-k, 4x, k=0", "sae top-k, 4x, k=8", "PURE"):
        assert SparseCodes.named(name) is None


def test_no_source_stands_alone_in_what_it_sees(task: Task) -> None:
    """Merged channels, and those in no group; of those merged with themselves only what no group mixes."""
    study, images = task.study, noise(24)
    found = activations(study.model, images, ["5.merged", "5.whole"])
    merged, whole = (
        found[f"5.{name}"].detach().flatten(2).transpose(1, 2).flatten(0, 1).numpy() for name in ("merged", "whole")
    )
    score = task.base.references.score.mean(axis=1)
    alive = [channel for channel in (3, 5) if score[channel] > 0]
    expected = np.concatenate([merged[:, [0, 1, 2]], whole[:, alive] / score[alive]], axis=1)
    np.testing.assert_allclose(layer_of(task), expected, atol=1e-5)
    seen = at_maxima(task)
    places = study.references.sample, study.references.position
    rows = expected.reshape(24, -1, expected.shape[1])
    np.testing.assert_allclose(seen, rows[places], atol=1e-5)
    lower = activations(study.model, images, ["3"])["3"].detach()
    np.testing.assert_allclose(
        layer_of(task, lower=True), lower.flatten(2).transpose(1, 2).flatten(0, 1).numpy(), atol=1e-5
    )
    np.testing.assert_array_equal(at_maxima(task, lower=True), task.activations["lower activation at maximum"])


def test_contestants_by_name(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = SparseAutoencoder.fit.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        SparseAutoencoder, "fit", classmethod(lambda cls, *given, **how: fit(cls, *given, **how, steps=5))
    )
    names = ("SAE top-k, 2x, k=2", "SAE BatchTopK, 3x, k=2", "lower SAE top-k, 2x, k=3")
    found = contestants(task, only=names)
    assert {one.name for one in found} == set(names)
    assert len({one.fingerprint for one in found}) == 3
    table = run(task, found, choose=False)
    assert set(table["method"]) == set(names)
    assert (table["seconds"] > 0).all()
    codes = {one.name: one.parts(task).vectors for one in found}
    for name, width in zip(names, (2 * len(layer_of(task)[0]), 3 * len(layer_of(task)[0]), 14)):
        own = codes[name]
        assert own is not None
        assert own.shape == (4, 8, width)
        assert own.min() >= 0
        np.testing.assert_array_equal(own, SparseCodes.named(name).codes(task))  # type: ignore[union-attr]
    assert ((codes[names[0]] > 0).sum(axis=2) <= 2).all()  # type: ignore[operator]
    with pytest.raises(StudyError, match="'SAE top-k, 1x, k=99': 99 features can't be active of the"):
        SparseCodes("top-k", 1, 99).codes(task)


def told(truth: Any, contributions: Any) -> Any:
    """A task of one channel, with nothing but what is known of its sources."""

    class Known:
        name, k, planting = "told", np.array([2]), type("P", (), {"groups": ((0, 1),)})
        study = type("S", (), {"references": type("R", (), {"score": np.asarray(contributions).sum(axis=2)})})

    found: Any = Known()
    found.truth, found.contributions = truth, contributions
    return found


def test_features_of_sources() -> None:
    generator = np.random.default_rng(0)
    truth = (np.arange(60) % 3 == 0).astype(np.int64)[None]
    strong = generator.uniform(1, 2, (1, 60, 1)) * np.eye(2)[truth]
    task = told(truth, strong)
    clean = np.concatenate([strong, generator.uniform(0, 1, (1, 60, 4))], axis=2)
    found = source_features(task, clean)
    assert found["source"].tolist() == [0, 1]
    np.testing.assert_allclose(found[["f1", "correlation"]], 1)
    found = source_features(task, np.ones((1, 60, 1)))  # active everywhere
    for row, share in zip(found.itertuples(), (2 / 3, 1 / 3)):
        assert row.f1 == pytest.approx(2 * share / (1 + share), abs=0.1)
        assert row.correlation == 0
    noise_alone = source_features(task, (generator.random((1, 60, 500)) > 0.5).astype(float))
    assert noise_alone["f1"].iloc[1] < 0.7  # though one of 500 fits those that it is chosen by
    assert noise_alone["correlation"].mean() < 0.4
    parts = part_features(task, truth)
    np.testing.assert_allclose(source_features(task, parts)["f1"], 1)
    np.testing.assert_allclose(parts, strong)


def test_f1_is_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    true, active = generator.random(40) > 0.6, generator.random((40, 7)) > 0.5
    expected = [f1_score(true, one) for one in active.T]
    np.testing.assert_allclose(f1_scores(true, active), expected)
    assert f1_scores(np.zeros(4, bool), np.zeros((4, 1), bool)).tolist() == [0]


def test_what_has_no_sources() -> None:
    task = told(np.zeros((1, 6), np.int64), np.ones((1, 6, 2)))
    with pytest.raises(ArgumentError, match=r"expected codes \[1, 6, features\]"):
        source_features(task, np.ones((1, 5, 2)))
    task.contributions = None
    with pytest.raises(StudyError, match="plant some"):
        source_features(task, np.ones((1, 6, 2)))
