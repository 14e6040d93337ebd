"""Published studies: all that was found is read again without network and images, and nothing private is in them."""

from __future__ import annotations

import base64
import csv
import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from small import JUDGE, Here, picture_folder, plain
from test_widgets import Reader
from typer.testing import CliRunner

from pure_nb import Study, explore, load_study
from pure_nb.cli import app
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, ImageError, LayerError, PureError, StudyError, StudyWarning
from pure_nb.figures.render import boxes, square_around
from pure_nb.images.data import Images
from pure_nb.images.sources import folder_images
from pure_nb.network import models
from pure_nb.publishing import Shown, publish, push
from pure_nb.show import atlas
from pure_nb.show.facts import Atlas
from pure_nb.show.ranking import apart

CHOSEN = [3, 8, 22]
SECRET = "Sankt-Nimmerlein"
"""Part of a path that must not come out."""


@pytest.fixture(scope="module")
def whole(glyph_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All neurons of the glyphs, without pictures."""
    return publish(glyph_study, tmp_path_factory.mktemp("whole") / "glyphs", shown=Shown(pictures="none"))


@pytest.fixture(scope="module")
def some(glyph_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of them with pictures and an atlas."""
    folder = tmp_path_factory.mktemp("some") / "glyphs"
    return publish(glyph_study, folder, channels=CHOSEN, shown=Shown(count=8), licence="cc0-1.0", atlas=True)


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a network or reads an image fails."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("asked for what is not there")

    monkeypatch.setattr(models, "load_model", fail)
    monkeypatch.setattr(Images, "tensor", fail)


@cache
def boxes_of(study: Study, channel: int) -> Any:
    """The boxes of one neuron, without those of all."""
    sample = study.references.sample[channel]
    return boxes(study.model, study.images, np.full_like(sample, channel), sample, target="layer4", run=study.run)


def own_study(root: Path, label: str = "class{}", **how: Any) -> Study:
    """A study of photographs in a folder whose name is nobody's business, with what a camera writes into files."""
    generator = np.random.default_rng(0)
    for number in range(8):
        folder = root / SECRET / label.format(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x010F], exif[0x013B] = "Kamera von Nimmerlein", SECRET  # maker and artist
        pixels = generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{SECRET}-{number}.jpg", exif=exif, comment=SECRET.encode())
    images = folder_images(root / SECRET, resize=12, crop=12)
    how = {"n_references": 4, "n_clusters": 2, "progress": False, "store": root / "store", **how}
    return Study.from_model(plain(), images, "4", "2", **how)


def test_all_is_read_again(glyph_study: Study, whole: Path, nothing: None) -> None:
    study = load_study(whole)
    assert repr(study).splitlines()[:3] == repr(glyph_study).splitlines()[:3]
    known = ["references", "circuits", "virtual", "layouts"]
    assert study.known() in (known, [*known, "boxes"])  # which another test may have asked for
    for name in ("sample", "score", "position", "peak"):
        np.testing.assert_array_equal(getattr(study.references, name), getattr(glyph_study.references, name))
    assert study.references.grid == glyph_study.references.grid
    assert isinstance(study.circuits, np.memmap)  # so that they need not fit into memory
    np.testing.assert_array_equal(study.circuits, glyph_study.circuits)
    np.testing.assert_array_equal(study.layouts, glyph_study.layouts)
    np.testing.assert_array_equal(study.objects, glyph_study.objects)
    for own, other in zip(study.virtual, glyph_study.virtual):
        np.testing.assert_array_equal(own.labels, other.labels)
        np.testing.assert_array_equal(own.centroids, other.centroids)
        assert (own.silhouette, own.silhouette_gain, own.p) == (other.silhouette, other.silhouette_gain, other.p)
    pd.testing.assert_frame_equal(study.neurons, glyph_study.neurons)
    assert study.shapes == glyph_study.shapes
    assert study.identity == glyph_study.identity
    assert [study.neuron(22).meanings(part) for part in (None, 0, 1)] == [
        glyph_study.neuron(22).meanings(part) for part in (None, 0, 1)
    ]
    assert study.most_polysemantic() == glyph_study.most_polysemantic()
    # What follows from what was published is computed here.
    assert study.replace(n_clusters=3).neuron(22).virtual.k == 3
    with pytest.raises(StudyError, match="no pictures of the study 'glyphs' were published; give what was studied"):
        Atlas(study)


def test_tables_are_those_of_the_study(glyph_study: Study, some: Path) -> None:
    for name in ("neurons", "parts", "references"):
        table = pd.read_parquet(some / f"tables/{name}.parquet")
        again = pd.DataFrame(json.loads((some / f"tables/{name}.json").read_text(encoding="utf-8")))
        pd.testing.assert_frame_equal(table, again[table.columns], check_dtype=False, rtol=1e-5)
        assert set(table["channel"]) == set(CHOSEN)
    own = table[(table["channel"] == 8) & (table["rank"] == 5)].iloc[0]
    neuron = glyph_study.neuron(8)
    assert (own["sample"], own["label"]) == (neuron.sample[5], neuron.names[5])
    assert own["part"] == "AB"[neuron.virtual.labels[5]]
    assert own[["left", "top", "right", "bottom"]].tolist() == boxes_of(glyph_study, 8)[5].tolist()
    parts = pd.read_parquet(some / "tables/parts.parquet").set_index(["channel", "part"])
    assert parts.loc[(22, "A"), "meanings"] == glyph_study.neuron(22).meanings(0)
    assert parts.loc[(22, "A"), "size"] == glyph_study.neuron(22).virtual.sizes[0]
    lower, share = parts.loc[(22, "A"), "carried_by"].split()[0].split(":")
    mean = glyph_study.circuits[22][glyph_study.neuron(22).members(0)].mean(axis=0)
    assert int(lower) == mean.argmax()
    assert float(share) == pytest.approx(mean.max(), rel=1e-3)
    arrays = load_file(some / "arrays/circuits.safetensors")
    np.testing.assert_array_equal(arrays["vectors"], glyph_study.circuits[CHOSEN])


def test_only_glyphs_are_taken_for_glyphs(whole: Path, tmp_path: Path) -> None:
    assert load_study(whole).images.drawn
    own = own_study(tmp_path)
    vars(own.images)["name"] = "glyphs"
    assert not load_study(publish(own, tmp_path / "published", shown=Shown(names="labels"))).images.drawn


def test_some_neurons_with_their_pictures(glyph_study: Study, some: Path) -> None:
    study = load_study(some)
    assert study.neurons["channel"].tolist() == [c for c in glyph_study.neurons["channel"] if c in CHOSEN]
    for channel in CHOSEN:
        own, other = study.neuron(channel), glyph_study.neuron(channel)
        np.testing.assert_array_equal(own.vectors, other.vectors)
        np.testing.assert_array_equal(study.crops.boxes[channel], boxes_of(glyph_study, channel))
        ranks = [0, 7, int(other.members(1)[3])]  # also of a part whose images are not among the strongest
        for one, like in zip(own.views(ranks), other.views(ranks)):
            assert one.sample == like.sample
            np.testing.assert_array_equal(one.mask, like.mask)
            assert np.abs(one.picture.astype(int) - like.picture).mean() < 12  # WebP loses some
            assert one.box == like.box
        assert own.plot() is not None
    other = study.replace(seed=1)  # other layouts, of those that there are
    one = other.layout_of(22)
    np.testing.assert_array_equal(other.layouts[22], one)
    assert np.flatnonzero(~np.isnan(other.layouts).any(axis=(1, 2))).tolist() == CHOSEN
    assert repr(study).endswith("\npublished: 3 of 32 neurons, without the network and the images")
    assert "runs:" not in repr(study)
    with pytest.raises(
        ArgumentError, match=r"channel 5 was not published, only 3 of 32 channels: 3, 8, 22 \.\.\.; give"
    ):
        study.neuron(5)
    assert np.isnan(study.circuits[5]).all()  # and no number that looks like one
    assert not study.references.alive[5]
    other = study.replace(n_clusters=3)
    for virtual in (study.virtual, other.virtual):
        assert [channel for channel, parts in enumerate(virtual) if parts.k] == CHOSEN
        assert np.isnan([virtual[5].p, virtual[5].score, virtual[5].silhouette]).all()
    assert sorted(other.neurons["channel"]) == CHOSEN
    assert set(other.neurons["k"]) == {3}
    assert other.neurons["stability"].notna().all()


def test_explorers_and_atlas_need_nothing_else(
    some: Path, tmp_path: Path, nothing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(some, store=tmp_path, progress=False)
    reader = Reader(explore(study, 8))
    seen = reader.look(8)
    assert not reader.problem
    assert seen["parts"]["circuits"][0] == Atlas(study).data(8)["parts"]["circuits"][0]
    assert len(seen["pictures"]) == 1
    site = {path.name for path in (some / "atlas").iterdir()}
    assert {"index.html", "3.html", "8.html", "22.html"} <= site
    assert "5.html" not in site
    monkeypatch.setenv("PURE_NB_BOOK", str(tmp_path / "book"))
    assert 'data-neurons="3 8 22" data-of="32"' in explore(study).data  # type: ignore[union-attr]
    assert Atlas(study).data(8)["tiles"] == 8


@pytest.mark.parametrize(
    ("ask", "kind", "said"),
    [
        (
            lambda study: study.replace(n_references=9).references,
            StudyError,
            "the network .* .GlyphNet. is not here: give",
        ),
        (lambda study: study.replace(rule="lrp").circuits_of(22), StudyError, "the network of the published study"),
        (
            lambda study: study.replace(target="layer3", lower="layer2"),
            LayerError,
            "'layer3' through 'layer2' nothing was",
        ),
        (
            lambda study: study.replace(target="layer3", lower="nearest"),
            LayerError,
            "nothing was published, only of 'lay",
        ),
        (lambda study: study.classes.statistics, StudyError, "is not here: give what was studied: load_study"),
        (lambda study: study.without_lrp, StudyError, ".GlyphNet. is not here"),
        (lambda study: study.neuron(22).predict(torch.rand(2, 3, 96, 96)), StudyError, ".GlyphNet. is not here"),
        (lambda study: study.images.tensor(3), StudyError, "the images 'glyphs' are not here: give what was studied"),
        (lambda study: study.images.truth.object_at(0, 1, 1), StudyError, "the images 'glyphs' are not here"),
        (lambda study: study.images.picture(1999), ImageError, "image 1999, as only reference images of the neurons"),
        (lambda study: study.replace(crop="activation").neuron(22).views([0]), StudyError, ".GlyphNet. is not here"),
    ],
)
def test_what_is_missing_is_said(some: Path, ask: Any, kind: type[PureError], said: str) -> None:
    study = load_study(some, progress=False)
    with pytest.raises(kind, match=said) as problem:
        ask(study)
    assert "model=..., images=..." in str(problem.value)


def test_with_its_network_and_images_it_is_whole(glyph_study: Study, whole: Path, some: Path, tmp_path: Path) -> None:
    given = {"model": glyph_study.model, "images": glyph_study.images, "progress": False, "store": tmp_path}
    study = load_study(whole, **given)
    assert type(study) is Study
    known = ["references", "circuits", "virtual", "layouts"]
    assert study.known() in (known, [*known, "boxes"])  # which another test may have asked for
    assert {step: study.key(step) for step in ("circuits", "virtual")} == {
        step: glyph_study.key(step) for step in ("circuits", "virtual")
    }
    assert study.neuron(22).views([0])[0].picture.shape == (96, 96, 3)  # computed now
    # Of some neurons nothing is taken for what would be found of all.
    assert load_study(some, **given).known() == []
    # With one of both, the other is still missing.
    half = load_study(some, model=glyph_study.model, progress=False, store=tmp_path)
    assert half.neuron(22).views([0])[0].sample == glyph_study.references.sample[22, 0]
    with pytest.raises(StudyError, match="the images 'glyphs' are not here"):
        _ = half.replace(n_references=9).references
    half = load_study(some, images=glyph_study.images, progress=False, store=tmp_path)
    one = half.neuron(22).views([0])[0]
    np.testing.assert_array_equal(one.picture, glyph_study.images.picture(one.sample))
    with pytest.raises(StudyError, match=r".GlyphNet. is not here"):
        _ = half.replace(n_references=9).references


def test_another_network_and_other_images_are_refused(glyph_study: Study, whole: Path) -> None:
    with pytest.raises(
        StudyError, match=r"the network given is not the one of .*: Sequential known as \w+, expected Gl"
    ):
        load_study(whole, model=plain())
    with pytest.raises(
        StudyError, match=r"the images given are not those of .*: 5 known as \w+, expected 200 known as"
    ):
        load_study(whole, images=torch.rand(5, 3, 96, 96))
    with pytest.raises(StudyError, match=r"is a published study, which takes model=\.\.\. and images=\.\.\. instead"):
        load_study(whole, data="here")


def test_workers_are_not_asked_for_what_is_not_there(
    glyph_study: Study, whole: Path, some: Path, tmp_path: Path
) -> None:
    given, client = {"images": glyph_study.images, "progress": False, "store": tmp_path}, Here()
    atlas.write(load_study(some, **given, client=client), tmp_path / "atlas", count=4)
    assert not client.asked
    assert load_study(whole, **given, model=glyph_study.model, client=client).run.client is client


def test_some_neurons_are_searched(seen: Study, tmp_path: Path) -> None:
    shown = Shown("crops", count=seen.parameters.n_references)
    study = load_study(publish(seen, tmp_path / "out", channels=CHOSEN, shown=shown))
    found = study.search("red", JUDGE)
    assert sorted({*found["channel"]}) == CHOSEN
    assert np.isfinite(found["score"]).all()
    assert found["size"].sum() == seen.references.active[CHOSEN].sum()
    assert {*study.alike(JUDGE, count=1)["channel_2"]} <= {*CHOSEN}


def test_a_study_of_the_same_name_has_other_notes(glyph_study: Study, whole: Path, tmp_path: Path) -> None:
    own = glyph_study.replace(store=Store(tmp_path / "glyphs"))
    own.notes.write("22", "mine")
    study = load_study(whole, store=tmp_path)
    assert study.store is not None
    assert study.store.folder == own.store.folder  # type: ignore[union-attr]
    assert study.notes.of(22).name == ""
    study.notes.write("22", "theirs")
    assert (own.notes.of(22).name, load_study(whole, store=tmp_path).notes.of(22).name) == ("mine", "theirs")


def test_results_of_a_published_study_are_kept_apart(glyph_study: Study, some: Path) -> None:
    """What is computed of pictures that lost some, or of some neurons, is nobody else's."""
    study = load_study(some)
    for step in ("circuits", "virtual", "boxes"):
        assert study.key(step) != glyph_study.key(step)
    store = Store(Path("anywhere"))
    assert store.path("boxes", study.key("boxes")) != store.path("boxes", glyph_study.key("boxes"))


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_own_images_stay_at_home(tmp_path: Path) -> None:
    study = own_study(tmp_path)
    folder = publish(study, tmp_path / "out")
    assert not {"pictures", "masks", "atlas"} & {path.name for path in folder.iterdir()}
    for place, content in all_bytes(folder).items():
        for private in (SECRET, "Nimmerlein", "class0", str(tmp_path), ".jpg", "Exif"):
            assert private.encode() not in content, (place, private)
    again = load_study(folder)
    assert again.images.name == "images"
    assert again.images.label(0) == ""
    assert again.neuron(1).meanings() == ""
    assert again.images.path(0) == "item 0 of images"


@pytest.mark.parametrize(("names", "told"), [("labels", ["class0"]), ("files", ["class0", f"{SECRET}-0.jpg"])])
def test_names_and_pictures_are_published_if_asked_for(tmp_path: Path, names: str, told: list[str]) -> None:
    study = own_study(tmp_path)
    folder = publish(study, tmp_path / "out", shown=Shown("whole", names), atlas=True)
    every = all_bytes(folder)
    for word in told:
        assert word.encode() in every["tables/references.json"]
    for place, content in every.items():
        for private in (str(tmp_path), "Kamera", "EXIF", "Exif", *([f"{SECRET}-0"] if names == "labels" else [])):
            assert private.encode() not in content, (place, private)
    pictures = [place for place in every if place.startswith("pictures/")]
    assert {int(Path(place).stem) for place in pictures} == set(np.unique(study.references.sample).tolist())
    for place in pictures:
        with Image.open(folder / place) as picture:
            assert not {"exif", "xmp", "icc_profile"} & set(picture.info)
            assert picture.size == (12, 12)
    again = load_study(folder)
    for sample in range(8):  # of reference images, and of no others
        known = study.images.label(sample) if sample in study.references.sample else ""
        assert again.images.label(sample) == known
    assert (again.images.path(0) == f"class0/{SECRET}-0.jpg") is (names == "files")


def test_crops_show_what_neurons_look_at_and_no_more(glyph_study: Study, tmp_path: Path) -> None:
    folder = publish(glyph_study, tmp_path / "out", channels=[22], shown=Shown("crops", count=3, side=48))
    study = load_study(folder)
    ranks = [0, 1, 2]
    seen: dict[int, Any] = {}
    for one, box in zip(glyph_study.neuron(22).views(ranks), boxes_of(glyph_study, 22)):
        seen[one.sample] = np.zeros(one.mask.shape, dtype=bool)
        for left, top, right, bottom in (square_around(one.mask), box):
            seen[one.sample][top:bottom, left:right] = True
    for sample, shown in seen.items():
        with Image.open(folder / f"pictures/{sample}.webp") as picture:
            assert picture.size == (48, 48)
        own, pixels = study.images.picture(sample).astype(int), glyph_study.images.picture(sample).astype(int)
        near = Image.fromarray(255 * shown.astype(np.uint8)).resize((12, 12), Image.Resampling.BOX)  # side was halved
        far = ~np.asarray(near.resize((96, 96))).astype(bool)
        assert (own[far] > 240).all()
        assert np.abs(own - pixels)[shown].mean() < 30
        assert not shown.all()
    assert study.neuron(22).views(ranks)[0].crop(32).shape == (32, 32, 3)


def attributed(root: Path, study: Study, lines: int = 8) -> Path:
    rows = [
        {"file": f"class{number % 2}/{SECRET}-{number}.jpg", "author": f"Anna {number}", "licence": "CC-BY-4.0",
         "source_url": "https://example.org/a", "changes": "resized"}
        for number in range(lines)
    ]  # fmt: skip
    path = root / SECRET / "ATTRIBUTION.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_whom_pictures_are_by_is_said_wherever_they_are(tmp_path: Path) -> None:
    study = own_study(tmp_path)
    attributed(tmp_path, study)  # is found above the pictures
    chosen = [int(np.flatnonzero(study.references.alive)[0])]
    folder = publish(study, tmp_path / "out", channels=chosen, shown=Shown("whole"), atlas=True)
    with (folder / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    samples = np.unique(study.references.sample[chosen]).tolist()
    assert [int(row["sample"]) for row in rows] == samples  # of those that are published, and no others
    number = samples[0]
    name = Path(study.images.path(number)).stem.rpartition("-")[2]
    assert rows[0]["author"] == f"Anna {name}"
    assert rows[0]["changes"] == "resized; resized or cropped to 12 x 12 pixels, as a network sees it, WebP"
    assert "file" not in rows[0]
    again, credit = load_study(folder), f"Anna {name}, CC-BY-4.0, https://example.org/a"
    assert again.images.credit(number) == credit
    rank = again.neuron(chosen[0]).sample.tolist().index(number)
    assert Atlas(again).data(chosen[0])["credits"][rank] == credit
    page = (folder / f"atlas/{chosen[0]}.html").read_text(encoding="utf-8")
    assert 'href="credits.html"' in page
    assert f'Anna {name}, CC-BY-4.0, <a href="https://example.org/a"' in (folder / "atlas/credits.html").read_text(
        encoding="utf-8"
    )
    assert credit in (folder / f"atlas/data/{chosen[0]}.js").read_text(encoding="utf-8")
    assert "in `ATTRIBUTION.csv`" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_licence_is_not_said_of_pictures_that_have_another(tmp_path: Path) -> None:
    study = own_study(tmp_path)
    attributed(tmp_path, study)  # all under CC-BY-4.0
    how: dict[str, Any] = {"channels": [int(np.flatnonzero(study.references.alive)[0])], "shown": Shown("whole")}
    with warnings.catch_warnings():
        warnings.simplefilter("error", StudyWarning)
        publish(study, tmp_path / "out", licence="cc-by-4.0", **how)
    with pytest.warns(StudyWarning, match=r"cc0-1.0 is of .* only: (\d) of \1 pictures are under .*: CC-BY-4.0$"):
        folder = publish(study, tmp_path / "out", licence="cc0-1.0", **how)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "**Licence**: of tables and arrays: cc0-1.0; each picture is under its own, see" in card
    assert "are not published, unless `ATTRIBUTION.csv` says them" in card


def test_attributions_tell_of_no_path_and_of_every_picture(tmp_path: Path) -> None:
    study = own_study(tmp_path, "a/{}")
    lines = [
        {"file": str(tmp_path / SECRET / f"a/1/{SECRET}-{number}.jpg"), "sample": "77", "author": f"Anna {number}"}
        for number in range(1, 8, 2)
    ]
    with (tmp_path / SECRET / "a/1/ATTRIBUTION.csv").open("w", encoding="utf-8", newline="") as file:
        (writer := csv.DictWriter(file, list(lines[0]))).writeheader()
        writer.writerows(lines)
        file.write("a,b,c,more,than,that\nshort\n")
    assert 0 in study.references.sample  # whose picture has no table above it
    folder = publish(study, tmp_path / "out", shown=Shown("whole", "files"))
    assert not [place for place, content in all_bytes(folder).items() if str(tmp_path).encode() in content]
    with (folder / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as read:
        rows = {int(row["sample"]): row for row in csv.DictReader(read)}
    files = {sample: study.images.path(sample) for sample in np.unique(study.references.sample).tolist()}
    assert set(rows) == {sample for sample, file in files.items() if "/a/1/" in file}
    for sample, row in rows.items():
        assert row["author"] == f"Anna {Path(files[sample]).stem.rpartition('-')[2]}"
        assert row["file"] == f"1/{Path(files[sample]).name}"
    again = load_study(folder)
    channel = int(again.neurons["channel"][0])
    names = [Path(files[sample]).name for sample in study.references.sample[channel].tolist()]
    assert Atlas(again).references(channel)["file"] == names  # as explorers show them
    for wrong in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(StudyError, match="can't be read as a table of attributions"):
            publish(study, tmp_path / "other", shown=Shown("whole", attribution=wrong))


def test_a_picture_without_its_attribution_is_not_published(tmp_path: Path) -> None:
    study = own_study(tmp_path)
    path = attributed(tmp_path, study, lines=2)
    with pytest.raises(
        StudyError, match=r"ATTRIBUTION\.tsv' has no line for class\d/.*\.jpg, and its picture would be"
    ):
        publish(study, tmp_path / "out", shown=Shown("whole"))
    assert not (tmp_path / "out").exists()
    publish(study, tmp_path / "out")  # no pictures, nothing to attribute
    path.write_text("author\tlicence\nAnna\tCC0\n", encoding="utf-8")
    with pytest.raises(StudyError, match="expected a table of attributions, with a column called file"):
        publish(study, tmp_path / "out", shown=Shown("whole", attribution=path))


def copied(folder: Path, place: Path) -> Path:
    return shutil.copytree(folder, place / "copy")


def sealed(folder: Path, told: Any = None, **manifest: Any) -> Path:
    """A published study with another ``study.json``, and a manifest that fits."""
    from pure_nb.compute.store import _checksum

    path = folder / "manifest.json"
    if told is not None:
        (folder / "study.json").write_text(json.dumps(told), encoding="utf-8")
    now = json.loads(path.read_text(encoding="utf-8")) | manifest
    now["files"]["study.json"] = _checksum(folder / "study.json")
    path.write_text(json.dumps(now), encoding="utf-8")
    return folder


def test_several_descriptions_are_published(tmp_path: Path) -> None:
    images = [torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(number)) for number in range(30)]
    how: Any = {"described_by": "combined", "n_references": 12, "n_clusters": 2, "progress": False}
    study = Study.from_model(plain(), images, "4", "2", store=tmp_path / "own", **how)
    assert study.combined
    folder = publish(study, tmp_path / "out", channels=[1, 3], shown=Shown(pictures="crops", count=4), atlas=True)
    seen = load_study(folder, store=tmp_path / "other")
    assert seen.combined
    assert str(seen.combined) == str(study.combined)
    assert np.array_equal(seen.combined.weighed(3), study.combined.weighed(3))
    own, there = Atlas(study), Atlas(seen)
    assert [labels.tolist() for labels in there.labels(1, "circuits")] == [
        labels.tolist() for labels in own.labels(1, "circuits")
    ]
    assert there.plane(3, "circuits") == own.plane(3, "circuits")


def test_what_was_changed_or_cut_is_named(some: Path, tmp_path: Path) -> None:
    for number, (name, harm) in enumerate(
        {
            "arrays/circuits.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "tables/neurons.parquet": lambda path: path.write_bytes(path.read_bytes() + b" "),
            "study.json": lambda path: path.write_text(path.read_text().replace("layer4", "layer3")),
        }.items()
    ):
        folder = copied(some, tmp_path / str(number))
        harm(folder / name)
        with pytest.raises(StudyError, match=f"{name}' is not as it was published, changed or cut: fetch"):
            load_study(folder)
        (folder / name).unlink()
        with pytest.raises(StudyError, match=f"lacks '{name}', which was published: fetch"):
            load_study(folder)
    folder = copied(some, tmp_path / "card")
    (folder / "README.md").write_text("edited", encoding="utf-8")
    shutil.rmtree(folder / "atlas")  # as it is fetched
    assert load_study(folder).known()


def test_what_is_no_published_study_is_refused(some: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"holds no manifest\.json, so it is no published study, or not all of one"):
        load_study(tmp_path)
    newer = sealed(copied(some, tmp_path / "newer"), format=2)
    with pytest.raises(StudyError, match="was published in format 2, and this version of pure_nb reads 1: pip install"):
        load_study(newer)
    outside = sealed(copied(some, tmp_path / "outside"), files={"../../etc/passwd": "0"})
    with pytest.raises(StudyError, match=r"names a file outside of it, '\.\./\.\./etc/passwd'"):
        load_study(outside)
    for name in ("/etc/passwd", "..\\secret", "C:/secret", "\\\\host\\secret"):  # also where these are of no folder
        with pytest.raises(StudyError, match="names a file outside of it"):
            load_study(sealed(outside, files={name: "0"}))
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(StudyError, match=r"manifest\.json' can't be read"):
        load_study(tmp_path)


def test_what_is_not_listed_is_not_read(some: Path, tmp_path: Path) -> None:
    folder = copied(some, tmp_path)
    sample = next(n for n in range(200) if not (folder / f"pictures/{n}.webp").exists())
    (folder / f"pictures/{sample}.webp").symlink_to(next(folder.glob("pictures/*.webp")))
    pd.DataFrame({"channel": [3]}).to_parquet(folder / "tables/pairs.parquet")
    (folder / "ATTRIBUTION.csv").write_text("sample,author\n3,Anna\n", encoding="utf-8")
    told = json.loads((some / "study.json").read_text(encoding="utf-8"))
    shutil.copy(some / "arrays/boxes.safetensors", tmp_path / "outside.safetensors")
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    listed.pop("tables/pairs.parquet", None)  # which is known if another test has asked for it
    study = load_study(sealed(folder, told | {"keys": {"../../outside": {}}}, files=listed), progress=False)
    assert study.known()
    with pytest.raises(ImageError, match=f"no picture of image {sample}"):
        study.images.picture(sample)
    assert study.images.credit(3) == ""
    with pytest.raises(StudyError, match="is not here: give what was studied"):
        _ = study.classes.pairs
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"]["masks/3.png"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(StudyError, match="does not tell where neuron 3 looks; give what was studied"):
        load_study(folder, progress=False).neuron(3).views([0])


def test_numbers_that_no_study_has_are_refused(some: Path, tmp_path: Path) -> None:
    folder, told = copied(some, tmp_path), json.loads((some / "study.json").read_text(encoding="utf-8"))
    images = told["images"]
    for shape in ([3, 10**7, 10**7], [3, -1, 96], [3, 96], [3, 96.5, 96]):
        with pytest.raises(StudyError, match=r"gives images the shape .*, expected three sizes of at most 16383"):
            load_study(sealed(folder, told | {"images": images | {"shape": shape}}))
    layers = [told["layers"][0] | {"channels": 10**15}, told["layers"][1]]
    for wrong in ({"images": images | {"count": 10**30}}, {"images": images | {"count": 10**15}}, {"layers": layers}):
        with pytest.raises(StudyError, match="is not as pure_nb publishes a study"):
            load_study(sealed(folder, told | wrong))
    (folder / "manifest.json").write_text("[" * 10**5, encoding="utf-8")
    with pytest.raises(StudyError, match=r"manifest\.json' can't be read"):
        load_study(folder)


def test_a_folder_is_not_taken_for_a_study_that_ships(
    some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(some, tmp_path / "glyphs")
    monkeypatch.chdir(tmp_path)
    assert type(load_study("glyphs")) is Study
    for place in ("./glyphs", Path("glyphs"), tmp_path / "glyphs"):
        assert load_study(place).neurons["channel"].nunique() == len(CHOSEN)


def test_many_masks_are_no_attack_and_others_are_refused(
    some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # as of many images of a network for large ones
    found = load_study(some, progress=False).found  # type: ignore[attr-defined]
    assert found.masks(3).shape == (len(found.pictured[0]), 96, 96)
    folder = copied(some, tmp_path)
    Image.new("1", (96, 960000)).save(folder / "masks/3.png")
    with pytest.raises(StudyError, match=r"masks/3\.png' is 96 x 960000 pixels, expected \d+ masks of 96 x 96"):
        type(found)(folder, found.told, found.seal, found.files).masks(3)


def test_it_is_not_published_again(some: Path, tmp_path: Path) -> None:
    """Whom its pictures are by would be lost."""
    with pytest.raises(StudyError, match="'glyphs' is a published study: copy its folder"):
        publish(load_study(some), tmp_path / "again")


def test_nothing_of_it_is_run(some: Path, tmp_path: Path) -> None:
    told = json.loads((some / "study.json").read_text(encoding="utf-8"))
    mark = tmp_path / "was-run"
    code = f"open({str(mark)!r}, 'w')"
    (folder := copied(some, tmp_path / "code")).joinpath("net.py").write_text(code, encoding="utf-8")
    for more in ({"model": {"source": "net.py:make"}}, {"source": "net.py:make"}):
        with pytest.raises(
            StudyError, match=r"has the entry '\w+': a published study .* names no code, so it is not opened"
        ):
            load_study(sealed(folder, told | more))
    with pytest.raises(StudyError, match="expected the name of a class"):
        load_study(sealed(folder, told | {"network": "A); import os"}))
    with pytest.raises(StudyError, match="a study's name must be"):
        load_study(sealed(folder, told | {"name": "../../elsewhere"}))
    with pytest.raises(StudyError, match="is not as pure_nb publishes a study"):
        load_study(sealed(folder, told | {"layers": [{"name": "layer4"}]}))
    for wrong in ([1], {**told, "images": 3}):
        with pytest.raises(StudyError, match=r"study\.json in .* can't be read|has the entry 1"):
            load_study(sealed(folder, wrong))
    with pytest.raises(StudyError, match="lacks the entry 'layers'"):
        load_study(sealed(folder, {name: value for name, value in told.items() if name != "layers"}))
    (folder / "study.toml").write_text('[model]\nsource = "net.py:make"', encoding="utf-8")
    assert load_study(sealed(folder, told)).known()  # nobody reads it
    assert not mark.exists()
    pickled = folder / "arrays/circuits.safetensors"
    torch.save({"vectors": torch.rand(2)}, pickled)
    now = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    from pure_nb.compute.store import _checksum

    now["files"]["arrays/circuits.safetensors"] = _checksum(pickled)
    (folder / "manifest.json").write_text(json.dumps(now), encoding="utf-8")
    with pytest.raises(StudyError, match="is not as pure_nb publishes a study"):
        load_study(folder)


def test_a_folder_of_something_else_is_left_alone(glyph_study: Study, some: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(
            StudyError, match="holds something else; a study is published to a new folder, or to its own"
        ):
            publish(glyph_study, place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]
    (tmp_path / "page").mkdir()  # others call files like this, too
    (tmp_path / "page/manifest.json").write_text('{"format": 1, "files": {"index.html": "0"}}', encoding="utf-8")
    (tmp_path / "page/index.html").write_text("mine", encoding="utf-8")
    (kept := copied(some, tmp_path / "kept")).joinpath("pictures/mine.txt").write_text("mine", encoding="utf-8")
    for place, name in ((tmp_path / "page", "index.html"), (kept, "pictures/mine.txt")):
        with pytest.raises(StudyError, match=f"holds something else; .*: '{name}'"):
            publish(glyph_study, place, channels=[3], shown=Shown("none"))
        assert (place / name).read_text(encoding="utf-8") == "mine"
    folder = copied(some, tmp_path / "again")
    publish(glyph_study, folder, channels=[3], shown=Shown("none"))
    assert not (folder / "pictures").exists()  # nothing of the earlier one is left
    assert load_study(folder).neurons["channel"].tolist() == [3]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["copy"]
    with pytest.raises(StudyError, match="an atlas shows pictures, and none are published"):
        publish(glyph_study, tmp_path / "new", shown=Shown("none"), atlas=True)
    for wrong, said in (([99], "channel 99"), ([], "at least one neuron is published")):
        with pytest.raises(ArgumentError, match=said):
            publish(glyph_study, tmp_path / "new", channels=wrong)
    with pytest.raises(StudyError, match="an embedder calls parts as classes are called, and no names are published"):
        publish(glyph_study, tmp_path / "new", shown=Shown("none", "none"), embedder=fake_judge())
    for how in ({"pictures": "all"}, {"names": "some"}, {"count": 0}, {"side": 0}):
        with pytest.raises(ArgumentError, match=next(iter(how))):
            Shown(**how)


def test_it_is_there_when_it_is_whole_and_goes_on_after_a_stop(
    glyph_study: Study, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    picture = Images.picture

    def counted(self: Images, sample: int) -> Any:
        read.append(sample)
        if len(read) == stop:
            raise KeyboardInterrupt
        return picture(self, sample)

    monkeypatch.setattr(Images, "picture", counted)
    asked: Any = {"channels": CHOSEN, "shown": Shown(count=8), "licence": "cc0-1.0"}
    stop = 10
    with pytest.raises(KeyboardInterrupt):
        publish(glyph_study, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    masks = {path.name: path.stat().st_mtime_ns for path in left.glob("masks/*")}
    assert len(masks) == len(CHOSEN)
    finished = {int(path.stem) for path in left.glob("pictures/*.webp")}
    assert finished
    (left / "pictures/.7-0123.webp").write_bytes(b"half")  # as a kill leaves
    (stale := left.with_name(f"{left.name}-before")).mkdir()
    (stale / "old").write_bytes(b"")
    read.clear()
    stop = 0
    folder = publish(glyph_study, tmp_path / "out", **asked)
    assert not finished & set(read)  # what was finished is not drawn again
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("masks/*")} == masks
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    stale.mkdir()
    (stale / "old").write_bytes(b"")
    publish(glyph_study, tmp_path / "out", **asked | {"channels": np.array(CHOSEN)})  # once more, as somebody has it
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    own, other = all_bytes(folder), all_bytes(some)
    assert own == {place: content for place, content in other.items() if not place.startswith("atlas/")} | {
        "README.md": own["README.md"]
    }


def fake_judge() -> Any:
    return type("Judge", (), {"joint": None, "fingerprint": "judge", "name": "judge"})()


def test_names_of_parts_are_published(glyph_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = pd.DataFrame(
        {"channel": [22, 22, 22], "part": ["whole", "A", "B"], "label": ["thing", "parasol", "unsure"]}
    )
    monkeypatch.setattr("pure_nb.show.report.part_names", lambda *_: named)
    mine = glyph_study.replace(store=Store(tmp_path / "store"))
    mine.notes.write("22.A", "Anna's umbrella", "only for me")  # which nobody asked to publish
    folder = publish(mine, tmp_path / "out", channels=[22], embedder=fake_judge(), shown=Shown("none"))
    assert not [place for place, content in all_bytes(folder).items() if b"Anna" in content or b"only for" in content]
    assert pd.read_parquet(folder / "tables/parts.parquet")["label"].tolist() == ["thing", "parasol", ""]
    study = load_study(folder)
    made = Atlas.__new__(Atlas)
    vars(made).update(study=study, embedder=None)
    assert [made.label(22, part) for part in ("whole", "A", "B")] == ["thing", "parasol", ""]
    for other in (apart(study), study.replace(batch_size=2)):
        assert other.part_labels is study.part_labels  # type: ignore[attr-defined]
    assert "part_labels" not in vars(study.replace(n_clusters=3))


def test_notes_by_hand_stay_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURE_NB_STORE", str(tmp_path / "usual"))
    study = own_study(tmp_path, store=tmp_path / "usual")
    channel = study.most_polysemantic()[0]
    study.notes.write(str(channel), "Anna's umbrella", "only for me")
    folder = publish(study, tmp_path / "out", shown=Shown("whole"), atlas=True)
    for place, content in all_bytes(folder).items():
        assert b"Anna" not in content, place
        assert b"only for me" not in content, place


def test_classes_are_published_where_they_are_known(tmp_path: Path) -> None:
    study = own_study(tmp_path, "{}", min_share=0.0, min_frequency=0.0)  # called as the network's outputs
    how: Any = {"shown": Shown(names="labels")}
    assert not (publish(study, tmp_path / "before", **how) / "tables/pairs.parquet").exists()
    pairs = study.classes.pairs
    assert len(pairs)
    folder = publish(study, tmp_path / "out", **how)
    again = load_study(folder)
    pd.testing.assert_frame_equal(again.classes.pairs, pairs)
    assert not again.classes.take_long
    assert "is not here" in again.classes.without_labels
    assert '"pairs"' in (folder / "README.md").read_text(encoding="utf-8")
    assert not (publish(study, tmp_path / "out") / "tables/pairs.parquet").exists()  # of names, which nobody asked for


def test_the_card_has_what_the_hub_sorts_by(some: Path, whole: Path) -> None:
    import yaml

    text = (some / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "cc0-1.0"
    assert head["library_name"] == "pure-nb"
    assert {one["config_name"]: one["data_files"] for one in head["configs"]}["neurons"] == "tables/neurons.parquet"
    for config in head["configs"]:
        assert (some / config["data_files"]).is_file()
    for said in ("GlyphNet", "200 images", "3 of 32 channels", "torch ", "How to cite"):
        assert said in text
    assert "license" not in yaml.safe_load((whole / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert sum(path.stat().st_size for path in some.rglob("*") if path.is_file()) < 1e6


def in_cache(folder: Path, hub: Path) -> Path:
    """A published study as Hugging Face's hub keeps what it has fetched."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = hub / "datasets--anna--glyphs"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit, encoding="utf-8")
    return place / "snapshots" / commit


def test_it_is_read_from_the_hub_without_network(some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = in_cache(some, tmp_path / "hub")
    for address in ("hf://anna/glyphs", "hf://datasets/anna/glyphs", "hf://anna/glyphs@main"):
        assert load_study(address).found.folder == kept  # type: ignore[attr-defined]
    with pytest.raises(
        StudyError, match=r"'hf://anna/other' is not in Hugging Face's cache and can't be fetched: .*bring its"
    ):
        load_study("hf://anna/other")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=TimeoutError()))  # which says nothing
        with pytest.raises(StudyError, match="can't be fetched: TimeoutError"):
            load_study("hf://anna/other")


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as takes what is pushed."""

    taken: dict[str, bytes]
    made: list[Any]
    there: tuple[str, ...] | list[str] = ()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            answer: Any = {"url": f"http://{self.headers['Host']}/datasets/anna/glyphs"}
        elif "preupload" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            answer = {"files": files}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.taken[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/datasets/anna/glyphs/commit/1",
                "commitOid": "1",
                "success": True,
            }
        else:
            answer = {"message": "validated"}
        self.answer(answer)

    def do_GET(self) -> None:
        info = {
            "id": "anna/glyphs",
            "sha": "1",
            "siblings": [],
            "tags": [],
            "private": False,
            "downloads": 0,
            "likes": 0,
        }
        there = [{"type": "file", "path": path, "size": 1, "oid": "1"} for path in self.there]
        self.answer(there if "/tree/" in self.path else info)

    def answer(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    """A hub on this machine."""
    constants = pytest.importorskip("huggingface_hub.constants")
    handler = type("Handler", (_Hub,), {"taken": {}, "made": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        yield handler
        server.shutdown()
        thread.join()


def test_a_study_is_pushed(some: Path, tmp_path: Path, hub: type[_Hub]) -> None:
    assert push(some, "anna/glyphs") == "hf://anna/glyphs"
    assert hub.made[0]["name"] == "glyphs"
    assert hub.made[0]["type"] == "dataset"
    assert hub.taken == all_bytes(some)
    hub.taken.clear()
    (added := copied(some, tmp_path / "added")).joinpath("private.txt").write_text("mine", encoding="utf-8")
    (added / "pictures/private.webp").write_bytes(b"mine")
    push(added, "anna/glyphs")
    assert hub.taken == all_bytes(some)
    hub.there = ["data/train.csv"]
    with pytest.raises(StudyError, match=r"'anna/glyphs' on .* holds something else, such as 'data/train\.csv'"):
        push(some, "anna/glyphs")
    broken = copied(some, tmp_path)
    (broken / "study.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StudyError, match="is not as it was published"):
        push(broken, "anna/glyphs")


def test_a_push_that_fails_says_so(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StudyError, match=r"hub does not take 'anna/glyphs': .*Log in .* is whole"):
        push(some, "anna/glyphs")


def test_the_command(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pictures", count=12, size=96)
    (tmp_path / "own.toml").write_text(
        '[model]\nsource = "glyphnet"\n[images]\nsource = "folder"\nroot = "pictures"\n'
        '[parameters]\ntarget = "layer4"\nlower = "layer3"\nn_references = 4\nn_clusters = 2\n',
        encoding="utf-8",
    )
    how = ["publish", str(tmp_path / "own.toml"), str(tmp_path / "out"), "--neurons", "3,5-6", "--n", "3"]
    found = CliRunner().invoke(app, [*how, "--pictures", "crops", "--names", "labels", "--count", "2"])
    assert found.exit_code == 0, found.output
    assert "load_study(" in found.output
    study = load_study(tmp_path / "out")
    assert sorted(study.neurons["channel"]) == [3, 5, 6]
    assert study.references.n == 3
    assert study.images.label(int(study.references.sample[3, 0])) in ("class0", "class1")
    found = CliRunner().invoke(app, ["neurons", str(tmp_path / "out")])  # as any study
    assert found.exit_code == 0, found.output
    found = CliRunner().invoke(app, [*how, "--pictures", "all"])
    assert found.exit_code == 1
    assert "pictures must be one of none, crops, whole" in found.output
