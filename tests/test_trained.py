"""Tasks of units that were trained to have given meanings, and scores of known concepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import Items, noise, plain
from torch import nn

from pure_nb.benchmark.trained import duties, either_task, wired_task
from pure_nb.errors import StudyError
from pure_nb.glyphs import GlyphObjects, glyph_images
from pure_nb.images.data import Images
from pure_nb.judges.concepts import SHARE, concept_scores
from pure_nb.methods.measures import fms, iou
from pure_nb.network.layers import activations
from pure_nb.parameters import Run
from pure_nb.study import Study


def wired(tmp_path: Path, feeds: NDArray[np.int64]) -> Study:
    """A small network whose head has zeros where ``feeds [classes, channels]`` has."""
    model = plain()
    with torch.no_grad():
        model[-1].weight.mul_(torch.from_numpy(feeds))
    items = Items(noise(30))
    items.targets, items.classes = [i % 3 for i in range(30)], ["a", "b", "c", "d"]  # type: ignore[attr-defined]
    return Study.from_model(model, items, "5", "3", n_references=8, n_clusters=2, store=tmp_path, progress=False)


FEEDS = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])


def test_a_channel_means_the_classes_that_it_feeds(tmp_path: Path) -> None:
    study = wired(tmp_path, FEEDS)
    task = wired_task(study)
    assert duties(study).tolist() == (FEEDS.T > 0).tolist()
    for channel, own in enumerate(task.truth):
        label = study.references.sample[channel] % 3
        fed = FEEDS[label, channel] > 0
        assert own.tolist() == np.where(fed & study.references.alive[channel], label, -1).tolist()
    assert (task.truth[3] == -1).all()  # class d is in no image
    with pytest.raises(StudyError, match="or none; the task needs a head with zeros"):
        wired_task(wired(tmp_path, np.ones((4, 6), dtype=int) * [[1, 0, 0, 0, 0, 0]]))
    with pytest.raises(StudyError, match="are not what the network's last linear layer reads"):
        wired_task(study.replace(target="3", lower="1"))


def test_units_answer_to_either_class(glyphnet: nn.Module, tmp_path: Path) -> None:
    images = Images(GlyphObjects(6), "objects")
    how: dict[str, Any] = {"n_references": 10, "crop": "activation", "store": tmp_path, "progress": False}
    study = Study.from_model(glyphnet, images, "layer4", "layer3", **how)
    task = either_task(study, 3, 2)
    assert task.k.tolist() == [2, 2, 2, 1, 1]
    assert (task.truth[:3] >= 0).mean() > 0.9  # of 288 images 12 are of one of its two classes
    assert task.study.shapes[1].channels == 64
    example = images.example[None]
    with torch.no_grad():
        assert torch.equal(task.study.model(example), glyphnet(example))
        found = activations(task.study.model, example, ["layer4.either", "layer4"])
    unit = task.study.model.get_submodule("layer4").either
    assert torch.allclose(unit(found["layer4"]), found["layer4.either"])
    assert np.isfinite(task.study.circuits).all()
    bare = Study.from_model(plain(), noise(12), "5", "3", n_references=6, store=tmp_path, progress=False)
    with pytest.raises(StudyError, match="labels of three or more classes"):
        either_task(bare)


def test_concepts_beside_slow_twins(glyphnet: nn.Module) -> None:
    images = glyph_images(60)
    found = concept_scores(glyphnet, images, "layer4", run=Run(progress=False))
    scenes: Any = images.dataset
    with torch.no_grad():
        maps = torch.cat([activations(glyphnet, images.tensor(i)[None], ["layer4"])["layer4"] for i in range(60)])
    masks = [scenes.masks(i) for i in range(60)]
    present = np.array([[label in own for label in range(48)] for own in masks])
    peaks = maps.amax(dim=(2, 3)).numpy()
    scored = {label: fms(peaks, present[:, label]) for label in np.flatnonzero(present.sum(axis=0) >= 4)[:2]}
    assert all(np.nanmax(found["fms"]) >= value for value in scored.values())
    assert any(np.isclose(found["fms"], value).any() for value in scored.values())
    for channel in (0, 9):
        up = nn.functional.interpolate(maps[:, [channel]], size=(96, 96), mode="bilinear")[:, 0].numpy()
        level = np.quantile(maps[:, channel].numpy(), 1 - SHARE)
        best = 0.0
        for label in np.flatnonzero(present.any(axis=0)):
            mask = np.array([own.get(label, np.zeros((96, 96), dtype=bool)) for own in masks])
            best = max(best, ((up > level) & mask).sum() / ((up > level) | mask).sum())
        assert found["iou"][channel] == pytest.approx(best, rel=1e-3)
    assert (
        iou((up > level).astype(np.float64), up > level, share=0.5) == 1
    )  # the formula of the measure is of the same kind
    nothing = concept_scores(plain(), Images(Items(noise(12))), "5", run=Run(progress=False))  # type: ignore[arg-type]
    assert np.isnan([*nothing.values()]).all()


def test_words_are_asked_only_where_they_are_known(seen: Study) -> None:
    from pure_nb.judges.embedders import load_embedder

    table = seen.replace(n_references=20).scores(load_embedder("mini-clip"))
    whole = table[table["part"] == "whole"].set_index("channel")
    assert np.isfinite(whole[["psi", "prism", "iou"]]).all(axis=None)
    assert table.loc[table["part"] != "whole", ["psi", "prism", "fms", "iou"]].isna().all(axis=None)
    assert whole["psi"].between(0, 1).all()
    one = whole.index[0]
    odd = replace(load_embedder("mini-clip"), prompts=("a picture of a {}",), fingerprint="odd")  # unknown words
    assert np.isnan(seen.scores(odd, parts=False).set_index("channel").loc[one, "psi"])
