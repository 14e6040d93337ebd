"""Half the bytes: nearly the same results, kept apart from the exact ones, and in float32 wherever sums are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from small import Items, noise, plain

from pure_nb.compute.precision import autocast
from pure_nb.compute.sweep import sweep
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.methods.references import TopReferences
from pure_nb.parameters import Precision, Run, checked
from pure_nb.study import Study

HOW: dict[str, Any] = {"target": "4", "lower": "2"}


def scores(images: Images, **how: Any) -> Any:
    top = TopReferences("4", 20)
    sweep(plain(), images, [top], run=Run(progress=False), **how)
    return top.result()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_sweep_is_that_of_torchs_autocast(precision: Any) -> None:
    found = scores(Images(Items(noise(20))), precision=precision)
    with torch.no_grad(), torch.autocast("cpu", getattr(torch, precision)):
        output = plain()[:5](noise(20))
    assert output.dtype == getattr(torch, precision)
    order = np.argsort(found.sample, axis=1)
    expected = output.float().amax(dim=(2, 3)).T.numpy()
    np.testing.assert_array_equal(np.take_along_axis(found.score, order, axis=1), expected)
    assert found.score.dtype == np.float32
    exact = scores(Images(Items(noise(20))))
    assert (found.score != exact.score).any()
    np.testing.assert_allclose(found.score, exact.score, rtol=0.05, atol=0.02)


def test_circuits_stay_exact(tmp_path: Path) -> None:
    """Only the pass over the images is in half precision: circuits are those of float32 for the same references."""
    study = Study.from_model(
        plain(), Items(noise(20)), **HOW, n_references=5, store=tmp_path, precision="bfloat16", batch_size=4
    )
    study = study.replace(progress=False)
    sample = study.references.sample
    channel = np.broadcast_to(np.arange(len(sample))[:, None], sample.shape)
    expected = circuits(plain(), Images(Items(noise(20))), channel, sample, run=Run(batch_size=4), **HOW)
    np.testing.assert_array_equal(study.circuits, expected)


def test_what_there_is() -> None:
    with pytest.raises(ArgumentError, match="precision must be one of float32, bfloat16, float16, got 'double'"):
        autocast("cpu", "double")  # type: ignore[arg-type]
    assert [checked({**HOW, "precision": name}).precision for name in get_args(Precision)] == [*get_args(Precision)]
    with pytest.raises(StudyError, match="precision must be one of"):
        checked({**HOW, "precision": "double"})


def test_results_are_kept_apart(tmp_path: Path) -> None:
    exact = Study.from_model(
        plain(), Items(noise(20)), **HOW, n_references=5, n_clusters=2, store=tmp_path, batch_size=4
    )
    rough = exact.replace(precision="bfloat16", progress=False)
    assert "precision" not in exact.identity
    assert rough.references.score.tobytes() != exact.references.score.tobytes()
    assert rough.neurons is not None
    again = Study.from_model(
        plain(),
        Items(noise(20)),
        **HOW,
        n_references=5,
        n_clusters=2,
        store=tmp_path,
        precision="bfloat16",
        batch_size=4,
    )
    assert again.references.score.tobytes() == rough.references.score.tobytes()


def test_a_network_of_half_precision(tmp_path: Path) -> None:
    """Its weights are taken as they are; images follow them."""
    half = plain().bfloat16()
    study = Study.from_model(
        half, Items(noise(20)), **HOW, n_references=5, n_clusters=2, store=tmp_path, batch_size=4
    ).replace(progress=False)
    exact = Study.from_model(
        plain(), Items(noise(20)), **HOW, n_references=5, n_clusters=2, store=tmp_path, batch_size=4
    ).replace(progress=False)
    np.testing.assert_allclose(study.references.score, exact.references.score, rtol=0.1, atol=0.05)
    assert study.circuits.dtype == np.float32
    assert np.isfinite(study.circuits).all()
    assert len(study.neurons) == 6
    assert study.neuron(0).plot() is not None


def test_channels_last_changes_the_layout_and_little_else(tmp_path: Path) -> None:
    exact = Study.from_model(
        plain(), Items(noise(20)), **HOW, n_references=5, n_clusters=2, store=tmp_path / "a", batch_size=4
    )
    other = Study.from_model(
        plain(), Items(noise(20)), **HOW, n_references=5, n_clusters=2, store=tmp_path / "b", batch_size=4
    )
    other = other.replace(channels_last=True, progress=False)
    layouts: list[bool] = []
    weight = other.model[0].weight  # type: ignore[index]
    other.model.register_forward_pre_hook(
        lambda *_: layouts.append(weight.is_contiguous(memory_format=torch.channels_last))
    )
    before = weight.data_ptr(), weight.stride()
    np.testing.assert_allclose(other.references.score, exact.references.score, rtol=1e-5)
    np.testing.assert_array_equal(other.references.sample, exact.references.sample)
    np.testing.assert_allclose(other.circuits, exact.circuits, atol=1e-5)
    assert len(layouts) > 3 + 5
    assert all(layouts)  # a look at the layers, the sweep, the circuits
    assert (weight.data_ptr(), weight.stride()) == before
