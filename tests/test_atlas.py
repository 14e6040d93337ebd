"""The atlas: what its pages and explorers show is what the study found, and a run that was stopped goes on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_mutual_info_score
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor
from typer.testing import CliRunner

from pure_nb import Study
from pure_nb.cli import app
from pure_nb.crops import Crops
from pure_nb.errors import ArgumentError, EmbedderError, StudyError
from pure_nb.glyphs import CLASSES
from pure_nb.images.data import Images
from pure_nb.judges.embedders import Embedder
from pure_nb.methods.virtual import CHOICES, kmeans
from pure_nb.show import atlas
from pure_nb.show.facts import COLUMNS, METHODS, Atlas
from pure_nb.show.pictures import CROP, WHOLE, draw
from pure_nb.show.plane import points_apart, relettered
from tests.small import noise, picture_folder, plain


def data(folder: Path, channel: int) -> dict[str, Any]:
    """The data of a neuron, as the browser's script gets them."""
    text = (folder / f"data/{channel}.js").read_text(encoding="utf-8")
    found = re.fullmatch(r"// [0-9a-f]{16} [0-9a-f]{16}\npureNb\.neuron\((.*)\);\n", text, re.S)
    assert found
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def as_labels(text: str) -> list[int]:
    return [-1 if own == "-" else int(own, 36) for own in text]


def own_study(images: Any = None, **how: Any) -> Study:
    """A small network on noise."""
    return Study.from_model(
        plain(), noise(30) if images is None else images, "4", "2", n_references=12, n_clusters=2, progress=False, **how
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(glyph_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of three glyph neurons, by all methods."""
    folder = tmp_path_factory.mktemp("site") / "atlas"
    assert atlas.write(glyph_study, folder, channels=[22, 3, 8], methods=METHODS, home="../book.html") == (
        folder / "index.html"
    )
    return folder


def test_data_are_what_the_study_found(glyph_study: Study, site: Path) -> None:
    vectors = {
        "circuits": glyph_study.circuits,
        "circuits (LRP)": glyph_study.replace(rule="lrp").circuits,
        "activations": glyph_study.activation_vectors["activation"],
    }
    for channel in (22, 3, 8):
        found = data(site, channel)
        assert found["channel"] == channel
        assert list(found["parts"]) == list(METHODS)
        assert found["counts"] == ["as chosen", *map(str, CHOICES)]
        objects = glyph_study.objects
        assert objects is not None
        assert [found["names"][label] for label in found["label"]] == [CLASSES[o].name for o in objects[channel]]
        own = [kmeans(vectors["circuits"][channel], k) for k in (2, *CHOICES)]
        for name, every in found["parts"].items():
            # Letters are those of the study's own parts, as far as they share images.
            expected = [relettered(kmeans(vectors[name][channel], k), like) for k, like in zip((2, *CHOICES), own)]
            assert [as_labels(own) for own in every] == [own.tolist() for own in expected]
            agreement = [adjusted_mutual_info_score(objects[channel], own) for own in expected]
            assert found["agreement"][name] == pytest.approx(agreement, abs=1e-4)
        points = np.array(found["points"]["circuits"])
        assert points.shape == (20, 2)
        assert (points.min(axis=0) == 0).all()
        assert (points.max(axis=0) == 1000).all()
        layout = glyph_study.layout_of(channel)
        for axis, sign in ((0, 1), (1, -1)):
            assert np.corrcoef(points[:, axis], sign * layout[:, axis])[0, 1] > 0.98  # some are pushed apart
        assert (points == points_apart(layout)).all()
        assert found["sample"] == glyph_study.neuron(channel).sample.tolist()
        assert found["activation"] == pytest.approx(glyph_study.neuron(channel).score, rel=1e-3)


def test_sprites_hold_the_reference_images(glyph_study: Study, site: Path) -> None:
    neuron = glyph_study.neuron(22)
    for kind, size, crop in (("crops", CROP, True), ("whole", WHOLE, False)):
        with Image.open(site / kind / "22.webp") as image:
            sheet = np.asarray(image.convert("RGB")).astype(int)
        assert sheet.shape == (2 * size, COLUMNS * size, 3)
        for rank in (0, 9, 13):
            top, left = size * (rank // COLUMNS), size * (rank % COLUMNS)
            shown = sheet[top : top + size, left : left + size]
            expected = neuron.views([rank])[0].highlighted(size, crop=crop)
            assert np.abs(shown - expected).mean() < 12  # WebP loses some
            other = neuron.views([(rank + 1) % 20])[0].highlighted(size, crop=crop)
            assert np.abs(shown - expected).mean() < 0.5 * np.abs(shown - other).mean()


def test_pages_tell_and_link(glyph_study: Study, site: Path) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    order = [int(found) for found in re.findall(r'<th scope="row" data-value="(\d+)">', index)]
    assert order == [c for c in glyph_study.neurons["channel"].tolist() if c in (22, 3, 8)]
    page = (site / "22.html").read_text(encoding="utf-8")
    assert 'href="../book.html"' in page
    for part in (0, 1):
        assert glyph_study.neuron(22).meanings(part) in page
    mean = glyph_study.circuits[22].mean(axis=0)
    first = int(mean.argmax())
    assert f'href="lower/{first}.html"' in page
    assert f"{100 * mean[first]:.1f}%" in page
    assert 'href="../22.html"' in (site / f"lower/{first}.html").read_text(encoding="utf-8")
    for classes, share in Atlas(glyph_study).classes(22)[:2]:
        assert f"{classes} {100 * share:.1f}%" in page
    one, other, cosine = Atlas(glyph_study).pairs(22)[0]
    assert f"{one} and {other}: {cosine:.2f}" in page


def test_links_resolve(site: Path) -> None:
    for path in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#:]+)"', path.read_text(encoding="utf-8")):
            if "book.html" not in link:
                assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_same_bytes_and_nothing_twice(
    glyph_study: Study, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    atlas.write(glyph_study, again, channels=[22, 3, 8], methods=METHODS, home="../book.html")
    files = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert (site / file).read_bytes() == (again / file).read_bytes(), file
    drawn: list[int] = []
    views = Crops.views

    def counted(self: Study, channel: Any, *rest: Any, **how: Any) -> Any:
        drawn.extend(np.unique(channel).tolist())
        return views(self, channel, *rest, **how)

    monkeypatch.setattr(Crops, "views", counted)
    (again / "crops/3.webp").unlink()  # as if it had been stopped
    atlas.write(glyph_study, again, channels=[22, 3, 8], methods=METHODS, home="../book.html")
    assert drawn == [3]
    assert (again / "crops/3.webp").read_bytes() == (site / "crops/3.webp").read_bytes()
    other = Atlas(glyph_study.replace(n_clusters=3), METHODS)
    drawn.clear()
    draw(other, again, [22])  # of other parts: not what is there
    assert drawn == [22]


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    atlas.write(own_study(store=tmp_path / "store"), tmp_path / "atlas")
    page = (tmp_path / "atlas/0.html").read_text(encoding="utf-8")
    assert "Not known here: " in page
    found = data(tmp_path / "atlas", 0)
    assert found["names"] == []
    assert "agreement" not in found
    assert not found["known"]


def test_circuits_are_computed_once(tmp_path: Path, pairs: list[int]) -> None:
    """Of a network that was never run: each neuron's, for all that is told of it."""
    study = own_study(store=tmp_path / "store")
    atlas.write(study, tmp_path / "atlas", channels=[1, 4], count=3)
    assert len(pairs) == study.references.sample.size == 6 * 12
    atlas.write(own_study(store=tmp_path / "store"), tmp_path / "another", channels=[2], count=3)
    assert len(pairs) == 72


def test_classes_that_take_long_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pure_nb.classes.MANY_BACKWARD", 5)
    images = ImageFolder(picture_folder(tmp_path / "pictures", 12, classes=4, size=12), ToTensor())
    study = own_study(images, store=tmp_path / "store")
    assert "pure-nb arv" in Atlas(study).without_classes
    assert not Atlas(study.replace(lower="input:4")).without_classes  # in closed form
    study.classes.statistics  # noqa: B018
    assert not Atlas(own_study(images, store=tmp_path / "store")).without_classes  # since they are there


def test_dead_neurons_have_a_page_without_pictures(tmp_path: Path) -> None:
    study = own_study(store=tmp_path / "store")
    with torch.no_grad():
        study.model.get_submodule("4").weight[1] = 0
        study.model.get_submodule("4").bias[1] = -1
    atlas.write(study, tmp_path / "atlas")
    assert "No image activates this neuron" in (tmp_path / "atlas/1.html").read_text(encoding="utf-8")
    assert not (tmp_path / "atlas/crops/1.webp").exists()
    assert "never active" in (tmp_path / "atlas/index.html").read_text(encoding="utf-8")


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    nasty = "<script>alert('x')</script>"

    class Labelled(torch.utils.data.Dataset[Any]):
        classes = (nasty, "b", "c", "d")
        targets = tuple(0 for _ in range(30))

        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> Any:
            return noise(30)[index], 0

    images = Images(Labelled(), "mine")
    atlas.write(own_study(images, store=tmp_path / "store"), tmp_path / "atlas", channels=[0])
    for path in (tmp_path / "atlas").glob("*.html"):
        assert nasty not in path.read_text(encoding="utf-8"), path.name
    assert "&lt;script&gt;" in (tmp_path / "atlas/0.html").read_text(encoding="utf-8")
    assert data(tmp_path / "atlas", 0)["names"] == [nasty]


@pytest.mark.parametrize(
    ("home", "expected"),
    [("../book.html", "../../book.html"), ("https://host/book", "https://host/book"), ("/book", "/book")],
)
def test_the_link_back(tmp_path: Path, home: str, expected: str) -> None:
    atlas.write(own_study(store=tmp_path / "store"), tmp_path / "atlas", channels=[0], home=home)
    assert f'<a href="{home}">The book' in (tmp_path / "atlas/0.html").read_text(encoding="utf-8")
    lower = next((tmp_path / "atlas/lower").glob("*.html"))
    assert f'<a href="{expected}">The book' in lower.read_text(encoding="utf-8")


def test_parts_are_named(glyph_study: Study, tmp_path: Path) -> None:
    def colours(crops: list[Any]) -> Any:
        return np.stack([crop.reshape(-1, 3).mean(axis=0) for crop in crops]).astype(np.float32)

    def words(texts: list[str]) -> Any:
        return np.stack([[len(text), 1, text.count("e") + 1] for text in texts]).astype(np.float32)

    embedder = Embedder.of("colours", colours)
    embedder = replace(embedder, encode_text=words, encode_joint=colours)
    made = Atlas(glyph_study, embedder=embedder)
    assert made.names is not None
    for (channel, part), said in made.names.items():
        assert made.label(channel, part) == ("" if said == "unsure" else said)
    assert made.key != Atlas(glyph_study).key


def test_bad_wishes(glyph_study: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="'umap'"):
        atlas.write(glyph_study, tmp_path, methods=["circuits", "umap"])
    with pytest.raises(StudyError, match="'activations'"):
        atlas.write(glyph_study, tmp_path, methods=["activations"])
    with pytest.raises(EmbedderError, match="no text tower"):
        atlas.write(glyph_study, tmp_path, embedder=Embedder.of("mean", lambda some: np.ones((len(some), 2))))
    with pytest.raises(StudyError, match="count=0"):
        atlas.write(glyph_study, tmp_path, count=0)
    with pytest.raises(ArgumentError, match="channel 99"):
        atlas.write(glyph_study, tmp_path, channels=[99])
    (tmp_path / "index.html").write_text("<p>my own page</p>")
    with pytest.raises(StudyError, match="another site"):
        atlas.write(glyph_study, tmp_path, channels=[3])
    assert (tmp_path / "index.html").read_text() == "<p>my own page</p>"
    with pytest.raises(StudyError, match="is a file"):
        atlas.write(glyph_study, tmp_path / "index.html", channels=[3])


def test_from_the_command_line(tmp_path: Path) -> None:
    toml = tmp_path / "small.toml"
    toml.write_text(
        '[model]\nsource = "glyphnet"\n[images]\nsource = "glyphs"\nlength = 20\n'
        '[parameters]\ntarget = "layer4"\nlower = "layer3"\nn_references = 8\n[run]\nprogress = false\n'
    )
    out = tmp_path / "atlas"
    command = ["atlas", str(toml), "--out", str(out), "--store", str(tmp_path / "store"), "--neurons", "0-2"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "3 neurons" in said.output
    assert {path.name for path in out.glob("[0-9]*.html")} == {"0.html", "1.html", "2.html"}
    wrong = CliRunner().invoke(app, [*command, "--crop", "sideways"])
    assert wrong.exit_code == 1
    assert "crop must be one of" in wrong.output
