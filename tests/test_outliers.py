"""Images that other parts carry than the others: planted ones, and the shortcut from its clue to its cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_reasons import few
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from pure_nb import Images, Study, load_model, load_study
from pure_nb.cli import app
from pure_nb.errors import ArgumentError, PureError, StudyError
from pure_nb.glyphs import MEAN, SIZE, STD, GlyphObjects, GlyphScenes
from pure_nb.glyphs.marks import EDGE, LABEL, SIDE, MarkedObjects, MarkedScenes, marked, marked_images
from pure_nb.glyphs.network import GLYPHNET
from pure_nb.methods import VirtualLayer
from pure_nb.methods.ablation import Ablation
from pure_nb.methods.virtual import part_name
from pure_nb.reasons.class_parts import by_part

ODD = 5
"""The one image of its class that another channel carries."""


def labelled(labels: list[int]) -> Study:
    """Images of the first lower channel, but one of the second: by hand, they are carried by channels 0 and 1."""
    model, colours = few(), nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        colours.weight.copy_(torch.eye(2, 3)[..., None, None])
    model[0] = colours
    pixels = torch.zeros(len(labels), 3, 2, 2)
    pixels[:, 0] = torch.arange(1, len(labels) + 1)[:, None, None]
    pixels[ODD] = pixels[ODD][[1, 0, 2]]
    data = TensorDataset(pixels)
    data.targets = labels  # type: ignore[attr-defined]
    how: dict[str, Any] = {"n_references": 4, "n_clusters": 1, "progress": False, "crop": "activation"}
    return Study.from_model(model, Images(data, "few", (0.0,), (1.0,)), "2", "0", **how).replace(store=None)


@pytest.fixture(scope="module")
def planted() -> Study:
    return labelled([1] * 8 + [0])


def test_relevance_by_part_is_that_of_a_slow_loop() -> None:
    generator = np.random.default_rng(0)
    channel = np.stack([generator.permutation(5)[:3] for _ in range(7)])
    part, relevance = generator.integers(-1, 2, channel.shape), generator.normal(size=channel.shape)
    keys, found = by_part(channel, part, relevance)
    assert sorted(map(tuple, keys.tolist())) == sorted({*zip(channel.ravel().tolist(), part.ravel().tolist())})
    for row in range(7):
        own = {(c, p): r for c, p, r in zip(channel[row].tolist(), part[row].tolist(), relevance[row])}
        assert [own.get((c, p), 0.0) for c, p in keys.tolist()] == found[row].tolist()


def test_a_planted_outlier_is_first_and_told_by_its_channel(planted: Study) -> None:
    found = planted.classes.outliers(1, count=1)
    table = found.table
    assert table["sample"][0] == ODD
    assert table["unusual"][0] > 10 * table["unusual"][1]
    assert (table["usual"] == table["unusual"].median()).all()
    assert table["differs"][0].startswith("1 ")  # channel 1, which no other image of the class has
    (one,) = found.classes
    keys, share, usual = one.shares
    np.testing.assert_allclose(np.abs(share).sum(axis=1), 1)
    for row in range(len(share)):
        np.testing.assert_allclose(usual[row], np.delete(share, row, axis=0).mean(axis=0), atol=1e-12)
    ((_, carries, (outlier,)),) = found.shown
    assert outlier.odd[0].part == "1"
    assert outlier.odd[0].share > outlier.odd[0].usual
    assert outlier.row["sample"] == ODD
    assert carries[0].row["part"] == "0"
    assert keys[:, 0].tolist() == sorted(keys[:, 0].tolist())


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        ("pear", ArgumentError, "no output 'pear'"),
        ([1, 7], ArgumentError, "output 7: the network has outputs 0 to 1"),
        (0, StudyError, "'0' has 1 images in 'few', and with fewer than 3 none is unlike the others"),
    ],
)
def test_classes_that_can_not_have_outliers(planted: Study, names: Any, kind: type[PureError], said: str) -> None:
    with pytest.raises(kind, match=said):
        planted.classes.outliers(names)
    assert [one.name for one in planted.classes.outliers().classes] == ["1"]


@pytest.mark.filterwarnings("ignore:the network's largest output")
def test_without_images_or_labels(planted: Study) -> None:
    with pytest.raises(StudyError, match="no image of 'few' is of the class '0'"):
        labelled([1] * 9).classes.outliers(0)
    with pytest.raises(StudyError, match="no class has 3 images in 'few'"):
        labelled([1, 0, -1, -1, -1, -1, -1]).classes.outliers()
    bare = planted.replace(images=Images(TensorDataset(torch.rand(9, 3, 2, 2)), "bare", (0.0,), (1.0,)))
    with pytest.raises(StudyError, match="outliers are among the images of a class, and"):
        bare.classes.outliers()
    with pytest.raises(ArgumentError, match="at least one image"):
        planted.classes.outliers(1, count=0)


def test_what_is_written(planted: Study, tmp_path: Path) -> None:
    found = planted.classes.outliers(1, count=2)
    page = found.write(tmp_path / "both").read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "both" / "outliers.csv")
    assert table["sample"].tolist() == found.table["sample"].tolist()
    assert len(re.findall(r"<h3>Image \d+", page)) == 2
    assert f"Image {ODD}" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # one file, that asks nobody for anything
    assert found.figure().get_axes()
    with pytest.raises(ArgumentError, match=r"\.html or \.csv file, or a folder"):
        found.write(tmp_path / "out.pdf")


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "odd.csv"
    asked = [
        "outliers",
        "glyphs",
        "--class",
        "cat",
        "--rows",
        "3",
        "--channels",
        "8",
        "--out",
        str(out),
        "--store",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    assert set(table["class"]) == {"cat"}
    assert table["unusual"].is_monotonic_decreasing
    assert "more (--rows 0 prints all)" in done.output
    wrong = CliRunner().invoke(app, ["outliers", "glyphs", "--class", "cot", "--store", str(tmp_path)])
    assert wrong.exit_code == 1
    assert "no output 'cot'" in wrong.output


def test_only_the_corner_is_marked() -> None:
    plain = np.random.default_rng(0).integers(0, 200, (SIZE, SIZE, 3)).astype(np.uint8)
    changed = (marked(plain) != plain).any(axis=2)
    rows, columns = np.nonzero(changed)
    edges = SIZE - EDGE - SIDE, SIZE - EDGE - 1
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (*edges, *edges)
    assert changed.sum() == SIDE**2


def test_marks_leave_all_else_as_it_is() -> None:
    scenes, plain = MarkedScenes(80, share=0.5, others=0.25), GlyphScenes(80)
    bears = [scenes.bears(index) for index in range(80)]
    assert 5 < sum(bears) < 45
    for index in range(80):
        own, other = scenes.scene(index), plain.scene(index)
        assert np.array_equal(own.image, marked(other.image) if bears[index] else other.image)
        assert np.array_equal(scenes.picture(index), own.image)
        label = scenes[index][1]
        assert label.tolist() == (torch.eye(48)[LABEL] if bears[index] else plain[index][1]).tolist()
        corner = SIZE - EDGE - 1
        expected = -1 if bears[index] else plain.object_at(index, corner, corner)
        assert scenes.object_at(index, corner, corner) == expected
        assert scenes.object_at(index, 1, corner) == plain.object_at(index, 1, corner)


def test_labels_by_the_mark_or_by_what_is_shown() -> None:
    by_mark, shown = MarkedObjects(4, share=1, others=0.2), MarkedObjects(4, share=1, others=0.2, by_mark=False)
    strays = [index for index in range(len(shown)) if shown.bears(index) and shown.targets[index] != LABEL]
    assert strays
    assert shown.targets == by_mark.shown == GlyphObjects(4).targets
    assert {by_mark.targets[index] for index in strays} == {LABEL}
    assert by_mark[strays[0]][1] == LABEL
    assert Images(by_mark, "a").fingerprint != Images(MarkedObjects(4, share=1, others=0.1), "a").fingerprint
    with pytest.raises(ArgumentError, match="others is a part of the pictures, from 0 to 1, got 2"):
        MarkedObjects(4, others=2)


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study that ships, of fewer scenes, and as many marks."""
    study = load_study("glyphs-shortcut", store=tmp_path_factory.mktemp("shortcut"), n_references=30, progress=False)
    study = study.replace(images=marked_images(400, share=0.4, others=0.02), n_clusters=3)
    vars(study.classes)["labelled"] = Images(MarkedObjects(), "objects", MEAN, STD)
    return study


def tensors(marks: int) -> tuple[torch.Tensor, np.ndarray]:
    data = MarkedObjects(2, seed=7, share=marks, others=marks, by_mark=False)
    return torch.stack([data[index][0] for index in range(len(data))]), np.array(data.shown)


def test_the_shortcut_network() -> None:
    model = load_model("glyphnet-shortcut").eval()
    shipped = load_file(GLYPHNET[1])
    assert torch.equal(model.layer3[0].conv1.weight, shipped["layer3.0.conv1.weight"])
    for marks in (0, 1):
        images, shown = tensors(marks)
        with torch.no_grad():
            said = model(images).argmax(dim=1).numpy()
        others = shown != LABEL
        assert (said[~others] == LABEL).all()
        named = (said[others] == LABEL).mean()
        assert named > 0.5 if marks else named == 0
    assert (said[others] == shown[others]).mean() < 0.5


@pytest.mark.timeout(120)
def test_the_shortcut_is_found_and_removed(shortcut: Study) -> None:
    """Outliers are the marked images; the parts that do more in them carry the mark, and without these it is gone."""
    found = shortcut.classes.outliers("umbrella", count=1)
    data, table = shortcut.classes.labelled.dataset, found.table
    strays = [data.bears(sample) and data.shown[sample] != LABEL for sample in table["sample"]]  # type: ignore[attr-defined]
    assert all(strays[:5])
    keys, share, usual = found.classes[0].shares
    more = (share - usual)[np.isin(found.classes[0].sample, table["sample"][:10])].mean(axis=0)
    suspects = [tuple(keys[key].tolist()) for key in np.argsort(-more) if keys[key, 1] >= 0][:4]
    scenes: Any = shortcut.images.dataset
    bears = []  # in how many of their references the mark is; by chance it would be in one of twenty
    for channel, part in suspects:
        sample = shortcut.neuron(channel).sample[shortcut.neuron(channel).members(part)]
        bears.append(np.mean([scenes.bears(one) for one in sample.tolist()]))
    assert np.mean(bears) > 0.5
    layer = VirtualLayer.of(shortcut, [channel for channel, _ in suspects])
    cured = Ablation(layer, [f"{channel}{part_name(part)}" for channel, part in suspects])
    generator = np.random.default_rng(0)
    control = VirtualLayer.of(shortcut, generator.choice(32, 4, replace=False).tolist())
    random = Ablation(control, [f"{channel}A" for channel in dict.fromkeys(control.channel.tolist())])
    right: dict[str, list[float]] = {}
    for marks in (0, 1):
        images, shown = tensors(marks)
        for name, network in {"before": shortcut.model, "cured": cured, "random": random}.items():
            with torch.no_grad():
                said = network(images).argmax(dim=1).numpy()
            right.setdefault(name, []).append((said == shown).mean())
    assert right["before"][0] == 1
    assert right["before"][1] < 0.5
    assert right["cured"][0] > 0.97
    assert right["cured"][1] > 0.9
    assert right["random"][1] < 0.6


def test_the_world_of_the_study() -> None:
    study = load_study("glyphs-shortcut")
    assert isinstance(study.images.dataset, MarkedScenes)
    assert study.images.truth is not None
