"""Images that a study's file names: where they come from, and where nothing may be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets as hub
import numpy as np
import pytest
from PIL import Image
from small import Items, link, noise, picture_folder

from pure_nb.errors import ImageError, StudyError
from pure_nb.glyphs import glyph_images
from pure_nb.loading import PHOTOGRAPHS, STUDIES, load_study, shipped_studies

TOML = """\
[model]
source = "glyphnet"
[images]
IMAGES
[parameters]
target = "layer4"
lower = "layer3"
"""


def study_of(folder: Path, images: str, **how: Any) -> Any:
    """The images of a study with a given table."""
    folder.mkdir(exist_ok=True)
    (folder / "own.toml").write_text(TOML.replace("IMAGES", images))
    return load_study(folder / "own.toml", **how).images


class Fetched(Items):
    """A data set as torchvision's, that writes where it is told to download to."""

    def __init__(self, root: str, download: bool = False, transform: Any = None) -> None:
        if download:
            Path(root).mkdir(parents=True, exist_ok=True)
            (Path(root) / "data.bin").touch()
        elif not (Path(root) / "data.bin").exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.transform = transform
        super().__init__(noise(2))


class Unpacked(Items):
    """A data set that says nothing of downloading and writes all the same."""

    def __init__(self, root: str, transform: Any = None) -> None:
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / "index.bin").touch()
        self.transform = transform
        super().__init__(noise(2))


@pytest.fixture
def torchvision_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.Fetched", Fetched, raising=False)
    monkeypatch.setattr("torchvision.datasets.Unpacked", Unpacked, raising=False)


def of_torchvision(name: str, root: object) -> str:
    return f"source = 'torchvision:{name}'\nroot = '{root}'\nmean = [0.5, 0.5, 0.5]\nstd = [0.2, 0.2, 0.2]"


@pytest.mark.usefixtures("torchvision_sets")
@pytest.mark.parametrize("name", ["Fetched", "Unpacked"])
def test_a_data_set_is_fetched_into_the_studys_own_folder(tmp_path: Path, name: str) -> None:
    for root in ("there", ".", "a/../b", tmp_path / "study" / "absolute"):
        images = study_of(tmp_path / "study", of_torchvision(name, root))
        assert (len(images), images.name, images.normalisation) == (2, name, ((0.5,) * 3, (0.2,) * 3))
        assert list((tmp_path / "study" / root).glob("*.bin"))
    link(tmp_path / "link", tmp_path / "study")
    assert len(study_of(tmp_path / "link", of_torchvision(name, "there"))) == 2


@pytest.mark.usefixtures("torchvision_sets")
@pytest.mark.parametrize("name", ["Fetched", "Unpacked"])
def test_nothing_is_written_outside_of_the_studys_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "outside").mkdir()
    link(tmp_path / "study" / "link", tmp_path / "outside")
    for root in ("..", "../outside", tmp_path / "outside" / "new", "link", "link/deeper", "../study2"):
        with pytest.raises(ImageError, match=r"outside of the study's.*give the folder yourself \(--data PATH\)"):
            study_of(tmp_path / "study", of_torchvision(name, root))
    assert not list(tmp_path.rglob("*.bin"))
    assert not (tmp_path / "study2").exists()


@pytest.mark.usefixtures("torchvision_sets")
@pytest.mark.parametrize("name", ["Fetched", "Unpacked"])
def test_a_data_set_is_fetched_where_the_user_says(tmp_path: Path, name: str) -> None:
    assert len(study_of(tmp_path / "study", of_torchvision(name, ".."), data=tmp_path / "mine")) == 2
    assert [file.parent for file in tmp_path.rglob("*.bin")] == [tmp_path / "mine"]


@pytest.mark.usefixtures("torchvision_sets")
def test_what_lies_outside_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.bin").touch()
    assert len(study_of(tmp_path / "study", of_torchvision("Fetched", ".."))) == 2


@pytest.mark.usefixtures("torchvision_sets")
@pytest.mark.parametrize("option", ["download = true", 'transform = "x"'])
def test_a_study_can_not_ask_for_more(tmp_path: Path, option: str) -> None:
    with pytest.raises(StudyError, match="has an entry that is not known"):
        study_of(tmp_path / "study", of_torchvision("Fetched", "..") + "\n" + option)


@pytest.mark.parametrize(
    "source", ["torchvision:nowhere", "torchvision:utils", "torchvision", "huggingface", "folder:x"]
)
def test_sources_that_are_not_known(tmp_path: Path, source: str) -> None:
    with pytest.raises(
        StudyError, match=r"images from .* are not known; expected 'glyphs', 'marked-glyphs', 'folder', 'paths',"
    ):
        study_of(tmp_path, f'source = "{source}"\nroot = "."')


def test_a_real_data_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"torchvision's USPS is not in .* and is not fetched .*\(--data PATH\)"):
        study_of(tmp_path / "study", of_torchvision("USPS", ".."))


def test_a_list_of_paths(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pictures", 4)
    (tmp_path / "some.txt").write_text("pictures/class1/003.png\npictures/class0/002.png\n")
    (tmp_path / "other.txt").write_text("pictures/class0/000.png\n")
    table = 'source = "paths"\nroot = "some.txt"\nresize = 8\ncrop = 6'
    images = study_of(tmp_path, table)
    assert [Path(images.path(i)).name for i in range(2)] == ["003.png", "002.png"]
    assert (images.name, images.tensor(0).shape) == ("some", (3, 6, 6))
    assert len(study_of(tmp_path, table, data=tmp_path / "other.txt")) == 1


def test_a_folder_without_classes(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pictures", 3, classes=1)
    images = study_of(tmp_path, 'source = "folder"\nroot = "pictures/class0"')
    assert (len(images), images.label(0)) == (3, "")


def test_how_pictures_are_read(tmp_path: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 50
    exif = Image.Exif()
    exif[274] = 6  # the right side is the top
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    Image.fromarray(deep).save(tmp_path / "pictures" / "a" / "a.png", exif=exif)
    (tmp_path / "list.txt").write_text("pictures/a/a.png\n")
    rows = hub.Dataset.from_dict({"image": [str(tmp_path / "pictures/a/a.png")]}).cast_column("image", hub.Image())
    rows.save_to_disk(str(tmp_path / "saved"))
    expected = (deep / 4095 * 255).round()
    more = "mean = [0.5]\nstd = [0.5]\ngrey = true\nresize = 8\ncrop = 8\nwhite = 4095\n"
    for source, root in (
        *(("folder", "pictures"), ("paths", "list.txt"), ("torchvision:ImageFolder", "pictures")),
        ("huggingface:mine", "saved"),
    ):
        table = f'source = "{source}"\nroot = "{root}"\n{more}'
        hugging = source.startswith("hugging")  # that library turns all pictures
        images = [study_of(tmp_path, f"{table}turned = {turned}") for turned in ("false", "true")]
        assert (images[0].picture(0)[..., 0] == (np.rot90(expected, -1) if hugging else expected)).all()
        assert (images[1].picture(0)[..., 0] == np.rot90(expected, -1)).all()
        assert images[0].channels == 3  # since the network takes colours
        assert images[0].fingerprint != images[1].fingerprint


@pytest.mark.usefixtures("torchvision_sets")
def test_a_data_set_that_reads_by_itself_can_not_be_told_how(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="torchvision's Fetched reads its pictures by itself and does not take turned"):
        study_of(tmp_path / "study", of_torchvision("Fetched", ".") + "\nturned = true")


def test_synsets(tmp_path: Path) -> None:
    known = glyph_images(2).synsets
    assert study_of(tmp_path, 'source = "glyphs"\nlength = 2').synsets == known
    found = study_of(tmp_path, 'source = "glyphs"\nlength = 2\nsynsets = {king = "king.n.01", mine = "mine.n.01"}')
    assert found.synsets == {**known, "king": "king.n.01", "mine": "mine.n.01"}
    assert len(found) == 2
    for wrong in ('"king"', "{king = 3}"):
        with pytest.raises(StudyError, match=r"expected synsets as in \{king = \"king.n.10\"\}, got"):
            study_of(tmp_path, f'source = "glyphs"\nlength = 2\nsynsets = {wrong}')


def rows(count: int = 3) -> Any:
    """A small data set of Hugging Face."""
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
    kinds = [hub.ClassLabel(names=["cat", "dog", "cow"]), hub.ClassLabel(names=["a", "b", "c"])]
    features = hub.Features({"picture": hub.Image(), "fine": kinds[0], "coarse": kinds[1]})
    numbers = [i % 3 for i in range(count)]
    return hub.Dataset.from_dict({"picture": pictures, "fine": numbers, "coarse": numbers}, features=features)


SIZES = 'resize = 8\ncrop = 8\ncolumns = ["picture", "fine"]'


def test_hugging_face_on_disk(tmp_path: Path) -> None:
    rows().save_to_disk(str(tmp_path / "saved"))
    hub.DatasetDict(train=rows(), test=rows(2)).save_to_disk(str(tmp_path / "splits"))
    table = f'source = "huggingface:my/pets"\nroot = "saved"\n{SIZES}'
    images = study_of(tmp_path, table)
    assert (images.name, [images.label(i) for i in range(3)]) == ("my/pets", ["cat", "dog", "cow"])
    assert (images.picture(2) == np.asarray(rows()[2]["picture"])).all()
    split = table + '\nsplit = "test"'
    assert len(study_of(tmp_path, split, data=tmp_path / "splits")) == 2
    with pytest.raises(ImageError, match=r"splits' has the splits 'train', 'test', not None: name one"):
        study_of(tmp_path, table, data=tmp_path / "splits")
    with pytest.raises(ImageError, match=r"nowhere' is no folder that save_to_disk"):
        study_of(tmp_path, table, data=tmp_path / "nowhere")
    with pytest.raises(ImageError, match="choose with select_columns, or columns ="):
        study_of(tmp_path, table.replace('columns = ["picture", "fine"]', ""))
    with pytest.raises(ImageError, match=r"has the columns \['picture', 'fine', 'coarse'\], .* got \['x'\]"):
        study_of(tmp_path, table.replace('"picture", "fine"', '"x"'))
    with pytest.raises(StudyError, match=r"has an entry that is not known: .*streaming"):
        study_of(tmp_path, table + "\nstreaming = true")


def test_hugging_face_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        if split == "none":
            raise ConnectionError("no network")
        return rows()

    monkeypatch.setattr(hub, "load_dataset", load)
    table = f'source = "huggingface:my/pets"\nsplit = "test"\n{SIZES}'
    assert study_of(tmp_path, table).label(1) == "dog"
    assert study_of(tmp_path, table + '\nconfig = "small"').name == "my/pets"
    assert asked == [("my/pets", None, "test"), ("my/pets", "small", "test")]
    said = (
        r"my/pets \(split 'none', config None\) can't be fetched: ConnectionError: no network.* save_to_disk .*--data"
    )
    with pytest.raises(ImageError, match=said):
        study_of(tmp_path, table.replace("test", "none"))
    with pytest.raises(StudyError, match="lacks the entry 'split'"):
        study_of(tmp_path, table.replace('split = "test"', ""))


@pytest.mark.slow
def test_hugging_face_really_offline(tmp_path: Path) -> None:
    """In a process of its own: the library reads at its import whether it may ask the network."""
    (tmp_path / "own.toml").write_text(TOML.replace("IMAGES", 'source = "huggingface:my/pets"\nsplit = "test"'))
    script = f"from pure_nb import load_study; load_study({str(tmp_path / 'own.toml')!r})"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    found = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | offline, capture_output=True, text=True, check=False
    )
    assert "ImageError: Hugging Face's my/pets (split 'test', config None) can't be fetched" in found.stderr
    assert "bring a folder that its save_to_disk made" in found.stderr


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for table in ('split = "test"', 'root = "."'):
        with pytest.raises(ImageError, match=r"need more packages: pip install 'pure-nb\[huggingface\]'"):
            study_of(tmp_path, f'source = "huggingface:my/pets"\n{table}')


def test_the_nearest_is_that_of_the_target_that_is_asked_for(tmp_path: Path) -> None:
    text = (STUDIES / "glyphs.toml").read_text(encoding="utf-8")
    file = tmp_path / "near.toml"
    file.write_text(text.replace('lower = "layer3"', 'lower = "nearest"'), encoding="utf-8")
    assert load_study(file).parameters.lower == "input:layer4.0"
    assert load_study(file, target="layer3").parameters.lower == "input:layer3.0"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_users_own_photographs_go_before_the_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("pure_nb.loading.load_published", lambda source, **_: asked.append(Path(source).absolute()))
    monkeypatch.delenv("PURE_NB_PHOTOGRAPHS", raising=False)
    monkeypatch.chdir(tmp_path)
    load_study(kind("photographs"))
    (tmp_path / "photographs").mkdir()  # as that with the reader's pictures
    load_study(kind("photographs"))
    (tmp_path / "photographs" / "manifest.json").touch()
    load_study(kind("photographs"))
    assert asked == [PHOTOGRAPHS, PHOTOGRAPHS, tmp_path / "photographs"]
    assert "photographs" not in shipped_studies()
