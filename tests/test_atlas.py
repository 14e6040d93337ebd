"""The atlas: what its pages and explorers show is what the study found, and a run that was stopped goes on."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import Template
from PIL import Image, ImageDraw
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
from pure_nb.show import atlas, pictures
from pure_nb.show.facts import METHODS, Atlas
from pure_nb.show.pictures import STRIP, THUMB, alone, draw, strips
from pure_nb.show.plane import points_apart, relettered
from pure_nb.show.sheets import STEPS, UNITS
from tests.small import Here, noise, picture_folder, plain


def data(folder: Path, channel: int) -> dict[str, Any]:
    """The data of a neuron, as the browser's script gets them."""
    text = (folder / f"data/{channel}.js").read_text(encoding="utf-8")
    found = re.fullmatch(r"// [0-9a-f]{16} [0-9a-f]{16}\npureNb\.neuron\((.*)\);\n", text, re.S)
    assert found
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def index(folder: Path) -> list[dict[str, Any]]:
    """The rows of the table of all neurons, as the browser's script gets them."""
    text = (folder / "data/index.js").read_text(encoding="utf-8")
    found = re.fullmatch(r"pureNb\.index\((.*)\);\n", text, re.S)
    assert found
    table = json.loads(found[1])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return [row | {"classes": [table["classes"][number] for number in row["classes"]]} for row in rows]


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
        assert found["counts"] == ["given", *map(str, CHOICES)]
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


def shown(data: dict[str, Any], rank: int, picture: Callable[[str], Any], size: int, crop: bool) -> Any:
    """What a page makes of a reference image, slowly."""
    sheet, cell, left, top, side, outline = data["cuts"][rank]
    file, columns, rows = data["sheets"][sheet]
    image = picture(file).convert("RGB")
    fine = image.width / columns / UNITS
    assert image.height == rows * image.width / columns
    corner = np.array([cell % columns, cell // columns]) * image.width / columns
    square = (left, top, side) if crop else data["whole"]
    box = [*(corner + fine * np.array(square[:2])), *(corner + fine * (np.array(square[:2]) + square[2]))]
    looked = np.zeros((size, size), dtype=bool)
    for path in re.findall(r"M([^M]*)z", outline):
        numbers = np.array([int(number) for number in re.findall(r"-?\d+", path)]).reshape(-1, 2)
        points = (numbers.cumsum(axis=0) * side / STEPS + (left, top) - square[:2]) * size / square[2]
        drawn = Image.new("1", (size, size))
        ImageDraw.Draw(drawn).polygon([tuple(point) for point in points.tolist()], fill=1)
        looked ^= np.asarray(drawn)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box)).astype(float)
    pixels[~looked] = 0.4 * pixels[~looked] + 0.6 * 255
    return pixels, looked


def test_sheets_hold_the_reference_images(glyph_study: Study, site: Path) -> None:
    neuron = glyph_study.neuron(22)
    told, files = alone(Atlas(glyph_study), 22)
    assert set(told) == set(data(site, 22))
    own = data(site, 22), lambda file: Image.open(site / file)
    by_itself = told, lambda file: Image.open(io.BytesIO(files[file]))
    for found, picture in (own, by_itself):
        assert len(found["cuts"]) == found["tiles"] == 20
        for size, crop in ((72, True), (96, False)):
            for rank in (0, 9, 13):
                pixels, looked = shown(found, rank, picture, size, crop)
                view = neuron.views([rank])[0]
                expected = view.highlighted(size, crop=crop).astype(float)
                expected[(expected == 0).all(axis=2)] = np.nan  # the edge, which a page draws itself
                assert np.nanmean(np.abs(pixels - expected)) < 12  # the file loses some
                other = neuron.views([(rank + 1) % 20])[0].highlighted(size, crop=crop)
                assert np.nanmean(np.abs(pixels - expected)) < 0.5 * np.abs(pixels - other).mean()
                left, top, right, bottom = view.box if crop else (0, 0, 96, 96)
                mask = Image.fromarray(view.mask[top:bottom, left:right]).resize((size, size))
                assert (looked != np.asarray(mask)).mean() < 0.06


def test_each_image_is_stored_once(glyph_study: Study, site: Path) -> None:
    files = json.loads((site / "images.json").read_text(encoding="utf-8"))["files"]
    numbers = [number for every in files.values() for number in every]
    assert sorted(numbers) == np.unique(glyph_study.references.sample[[22, 3, 8], :20]).tolist()
    for channel in (22, 3, 8):
        found = data(site, channel)
        told = [files[found["sheets"][sheet][0]][cell] for sheet, cell, *_ in found["cuts"]]
        assert told == found["sample"]


def test_strips_show_the_strongest(glyph_study: Study, site: Path) -> None:
    for channel, (file, at) in strips(Atlas(glyph_study, METHODS), site).items():
        with Image.open(site / file) as image:
            sheet = np.asarray(image.convert("RGB")).astype(int)
        assert sheet.shape == (3 * THUMB, STRIP * THUMB, 3)
        top = round(at / 100 * 2 * THUMB)  # as object-position has it
        for rank, view in enumerate(glyph_study.neuron(channel).views(range(STRIP))):
            tile = sheet[top : top + THUMB, rank * THUMB : (rank + 1) * THUMB]
            assert np.abs(tile - view.highlighted(THUMB)).mean() < 12


def test_wide_images_stand_in_the_middle(tmp_path: Path) -> None:
    images = torch.rand(20, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    study = own_study(images, store=tmp_path / "store", crop="activation")
    atlas.write(study, tmp_path / "atlas", channels=[0], count=3)
    found = data(tmp_path / "atlas", 0)
    for rank, view in enumerate(study.neuron(0).views(range(3))):
        pixels, _ = shown(found, rank, lambda file: Image.open(tmp_path / "atlas" / file), 20, False)
        bare = np.abs(pixels[4:16] - view.picture)
        dimmed = np.abs(pixels[4:16] - (0.4 * view.picture + 153))
        assert np.minimum(bare, dimmed).mean() < 45  # noise, of which WebP loses much
        assert (pixels[:3] > 200).all()
        _, _, left, top, side, _ = found["cuts"][rank]
        assert min(left, top) >= 0
        assert max(left, top) + side <= UNITS


def test_pages_tell_and_link(glyph_study: Study, site: Path) -> None:
    order = [c for c in glyph_study.neurons["channel"].tolist() if c in (22, 3, 8)]
    assert [row["neuron"] for row in index(site)] == order
    without = (site / "index.html").read_text(encoding="utf-8").split("<noscript>")[1]  # what a plain browser shows
    assert [int(found) for found in re.findall(r'<a href="(\d+)\.html">\1</a>', without)] == order
    page = (site / "22.html").read_text(encoding="utf-8")
    assert 'href="../book.html"' in page
    for part in (0, 1):
        assert glyph_study.neuron(22).meanings(part) in page
    mean = glyph_study.circuits[22].mean(axis=0)
    first = int(mean.argmax())
    assert f'href="lower/{first}.html"' in page
    assert f">{100 * mean[first]:.1f}</td>" in page
    most = "AB"[int(np.abs(Atlas(glyph_study).circuits(22)[1:, first]).argmax())]
    assert f'href="../22.html#{most}"' in (site / f"lower/{first}.html").read_text(encoding="utf-8")
    for classes, share in Atlas(glyph_study).classes(22)[:2]:
        assert f"{classes} {100 * share:.1f}%" in page
    one, other, cosine = Atlas(glyph_study).pairs(22)[0]
    assert f"{one} and {other}: {cosine:.2f}" in page


def test_the_index_tells_what_the_study_found(glyph_study: Study, site: Path) -> None:
    made, table = Atlas(glyph_study), glyph_study.neurons.set_index("channel")
    for row in index(site):
        own = table.loc[row["neuron"]]
        for name in ("score", "p", "q", "strongest", "ami"):
            assert row[name] == pytest.approx(own[name], rel=1e-3)
        assert (row["k"], row["sizes"], row["meanings"]) == (own["k"], own["sizes"], own["meanings"])
        assert row["classes"] == [name for name, _ in made.classes(row["neuron"])]
        assert (row["named"], row["notes"]) == ([], [])
        assert (site / row["thumb"][0]).is_file()


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
    seen = Crops.seen

    def counted(self: Crops, blocks: Any) -> Any:
        drawn.extend(channel for channels, _ in blocks for channel in np.unique(channels).tolist())
        return seen(self, blocks)

    monkeypatch.setattr(Crops, "seen", counted)
    (again / "data/3.js").unlink()  # as if it had been stopped
    atlas.write(glyph_study, again, channels=[22, 3, 8], methods=METHODS, home="../book.html")
    assert set(drawn) == {3}
    assert (again / "data/3.js").read_bytes() == (site / "data/3.js").read_bytes()
    drawn.clear()
    lost = data(site, 22)["sheets"][0][0]
    (again / lost).unlink()
    atlas.write(glyph_study, again, channels=[22, 3, 8], methods=METHODS, home="../book.html")
    assert not drawn  # the images are read again, and no more
    assert (again / lost).read_bytes() == (site / lost).read_bytes()
    drawn.clear()
    before = (again / "data/22.js").read_bytes()
    draw(Atlas(glyph_study, METHODS), again, [10])  # which adds to the sheets
    assert set(drawn) == {10}
    assert (again / "data/22.js").read_bytes() == before
    files_of = json.loads((again / "images.json").read_text(encoding="utf-8"))["files"]
    numbers = [number for every in files_of.values() for number in every]
    assert sorted(numbers) == np.unique(glyph_study.references.sample[[22, 3, 8, 10], :20]).tolist()
    other = Atlas(glyph_study.replace(n_clusters=3), METHODS)
    drawn.clear()
    draw(other, again, [22])  # of other parts: not what is there
    assert set(drawn) == {22}


class StopError(Exception):
    """Somebody stops it."""


def test_a_stop_among_the_sheets_loses_no_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    study, made, real = own_study(store=tmp_path / "store"), [], pictures._sheet

    def sheet(images: Images, pixels: int, numbers: list[int]) -> bytes:
        made.append(numbers)
        if len(made) == 2:
            raise StopError
        return real(images, pixels, numbers)

    monkeypatch.setattr(pictures, "_sheet", sheet)
    with pytest.raises(StopError):
        atlas.write(study, tmp_path / "atlas")
    atlas.write(study, tmp_path / "atlas")
    assert len(made) == 3
    assert made[1] == made[2] != made[0]
    atlas.write(study, tmp_path / "at once")
    for path in (tmp_path / "at once").rglob("*.*"):
        again = tmp_path / "atlas" / path.relative_to(tmp_path / "at once")
        assert again.read_bytes() == path.read_bytes(), path.name


def test_two_runs_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the second begins later, and is finished before."""
    folder, real = tmp_path / "atlas", pictures.draw_strips

    def while_another(*given: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "draw_strips", real)
            atlas.write(own_study(store=tmp_path / "store"), folder, channels=[3])
        monkeypatch.setattr(pictures, "draw_strips", real)
        real(*given)

    monkeypatch.setattr(pictures, "draw_strips", while_another)
    study = own_study(store=tmp_path / "store")
    atlas.write(study, folder, channels=[0])
    assert set(strips(Atlas(study), folder)) == {0, 3}


def test_sheets_are_made_where_the_workers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = own_study(store=tmp_path / "store")
    atlas.write(study, tmp_path / "here", count=4)
    sent = Here()
    monkeypatch.setattr(pictures, "ThreadPoolExecutor", lambda *_: pytest.fail("made here"))
    atlas.write(study.replace(client=sent), tmp_path / "there", count=4)
    assert "_sheet" in sent.asked
    for path in (tmp_path / "here/images").iterdir():
        assert path.read_bytes() == (tmp_path / "there/images" / path.name).read_bytes()


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
    assert not (tmp_path / "atlas/data/1.js").exists()
    rows = {row["neuron"]: row for row in index(tmp_path / "atlas")}
    assert [channel for channel, row in rows.items() if row["thumb"] is None] == [1]
    assert (rows[1]["score"], rows[1]["q"]) == (None, None)
    assert list(rows)[-1] == 1


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
    with pytest.raises(StudyError, match="side=8"):
        atlas.write(glyph_study, tmp_path, side=8)
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


def test_what_rounds_to_zero_has_no_sign() -> None:
    pictures_html = (Path(atlas.__file__).parent / "static/atlas/pictures.html").read_text("utf-8")
    said = Template(pictures_html).module
    assert [said.number(value) for value in (-0.001, 0.0, -0.126, 0.5)] == ["0.00", "0.00", "−0.13", "0.50"]
    assert [said.percent(value) for value in (-0.0004, -0.126)] == ["0.0", "−12.6"]
