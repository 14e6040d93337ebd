"""Images: any data set, its fingerprint, its pictures, and files that can't be read."""

from __future__ import annotations

import gc
import hashlib
import math
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import struct
import sys
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets as hub
import numpy as np
import pytest
import torch
from PIL import Image
from small import Items, link, noise, picture_folder, posix
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pure_nb.errors import ImageError, StudyError, StudyWarning
from pure_nb.glyphs import MEAN, STD, GlyphObjects, GlyphScenes, draw_scene, glyph_images
from pure_nb.glyphs.font import glyph
from pure_nb.images import contents, reading
from pure_nb.images.data import Images
from pure_nb.images.labels import at_chance, class_labels, display_names, seen_labels
from pure_nb.images.reading import batches, readable
from pure_nb.images.sources import Reader, as_images, folder_images, path_images, preprocessing
from pure_nb.parameters import Run

PLAIN = transforms.ToTensor()


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "zoo", 6)
    images = folder_images(root, resize=None, crop=None)
    assert len(images) == 6
    assert images.name == "zoo"
    for sample in range(6):
        path = Path(images.path(sample))
        pixels = np.asarray(Image.open(path))
        assert (images.picture(sample) == pixels).all()
        expected = (pixels / 255 - MEAN) / STD
        np.testing.assert_allclose(images.tensor(sample).numpy(), expected.transpose(2, 0, 1), atol=1e-5)
        assert images.label(sample) == path.parent.name
    assert images.normalisation == (MEAN, STD)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_the_fingerprint_covers_every_label_and_name(kind: Any) -> None:
    def images(targets: list[int], classes: list[str]) -> Images:
        dataset: Any = Items(noise(1500))
        dataset.targets, dataset.classes = kind(targets), classes
        return Images(dataset)

    targets = [0, 1] * 750
    first = images(targets, ["cat", "dog"]).fingerprint
    assert images(targets, ["cat", "dog"]).fingerprint == first
    assert images(targets, ["dog", "cat"]).fingerprint != first
    targets[700] = 1
    assert images(targets, ["cat", "dog"]).fingerprint != first


def test_labels_of_imagenet() -> None:
    """torchvision's ImageNet names its classes by tuples, and has their ids beside; -1 stays unknown."""
    dataset: Any = Items(noise(4))
    dataset.targets, dataset.classes = [1, 0, -1, 1], [("tench", "Tinca tinca"), ("goldfish",)]
    dataset.wnids = ["n01440764", "n01443537"]
    labels, names = class_labels(Images(dataset), 1000)
    assert labels.tolist() == [1, 0, -1, 1]
    assert names[:2] == ("n01440764", "n01443537")
    labels, names = class_labels(Images(dataset), 2)
    assert (labels.tolist(), names) == ([1, 0, -1, 1], ("n01440764", "n01443537"))


def test_resize_and_crop(tmp_path: Path) -> None:
    picture_folder(tmp_path, 2, size=40)
    assert tuple(folder_images(tmp_path, resize=20, crop=12).tensor(0).shape) == (3, 12, 12)
    assert tuple(folder_images(tmp_path, resize=20, crop=None).tensor(0).shape) == (3, 20, 20)
    image = folder_images(tmp_path, resize=None, crop=10)
    assert (image.picture(0) == np.asarray(Image.open(image.path(0)))[15:25, 15:25]).all()


def test_ones_own_normalisation(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, 2)
    images = folder_images(root, resize=None, crop=None, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert images.normalisation == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert (images.picture(1) == np.asarray(Image.open(images.path(1)))).all()


def test_an_image_folder_of_ones_own(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, 4)
    dataset = ImageFolder(str(root), transforms.Compose([PLAIN, transforms.Normalize(MEAN, STD)]))
    images = Images(dataset)
    assert (images.picture(2) == np.asarray(Image.open(images.path(2)))).all()
    bare = Images(ImageFolder(str(root), PLAIN))
    assert bare.normalisation is None
    assert (bare.picture(2) == images.picture(2)).all()
    alone = Images(ImageFolder(str(root), transforms.Normalize(MEAN, STD)))
    assert alone.normalisation == (MEAN, STD)


def test_a_normalisation_that_is_given_wins() -> None:
    images = Images(Items(torch.zeros(1, 3, 2, 2)), mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    assert (images.picture(0) == 128).all()


def test_tensors_without_labels() -> None:
    images = Images(TensorDataset(noise(3)), "tensors", (0.5,), (0.25,))
    assert torch.equal(images.tensor(1), noise(3)[1])
    assert images.label(1) == ""
    assert images.path(1) == "item 1 of tensors"
    assert images.picture(1).dtype == np.uint8
    assert images.truth is None


def test_bare_tensors() -> None:
    class Bare(Items):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0]

    assert torch.equal(Images(Bare(noise(2))).tensor(1), noise(2)[1])


def test_labels_by_number_and_by_name() -> None:
    dataset = Items(noise(3))
    dataset.targets = torch.tensor([2, 0, 1])  # type: ignore[attr-defined]
    assert [Images(dataset).label(i) for i in range(3)] == ["2", "0", "1"]
    dataset.classes = ["cat", "dog", "cow"]  # type: ignore[attr-defined]
    assert [Images(dataset).label(i) for i in range(3)] == ["cow", "cat", "dog"]


def test_pictures_are_clamped_and_rounded() -> None:
    images = Images(Items(torch.tensor([-1.0, 0.0, 0.499, 0.502, 1.0, 9.0]).expand(1, 3, 2, 6)))
    with pytest.warns(StudyWarning, match="not from 0 to 1"):
        assert images.picture(0)[0, :, 0].tolist() == [0, 0, 127, 128, 255, 255]


def test_grey_pictures_have_three_colours() -> None:
    images = Images(Items(torch.rand(1, 1, 4, 5)))
    found = images.picture(0)
    assert found.shape == (4, 5, 3)
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == (images.tensor(0)[0] * 255).round().numpy()).all()


def test_grey_pictures_with_a_normalisation() -> None:
    images = Images(Items(torch.zeros(1, 1, 4, 5)), mean=(0.5,), std=(0.25,))
    assert (images.picture(0) == 128).all()


def test_glyph_images() -> None:
    images = glyph_images(5, seed=2)
    assert isinstance(images.truth, GlyphScenes)
    assert (images.picture(3) == draw_scene(3, 2).image).all()
    assert images.label(3) == ""
    assert Images(GlyphObjects(1)).drawn


def test_fingerprints_are_stable_and_tell_apart(tmp_path: Path) -> None:
    found = [
        glyph_images(50).fingerprint,
        glyph_images(51).fingerprint,
        glyph_images(50, seed=1).fingerprint,
        Images(GlyphObjects(2)).fingerprint,
        Images(Items(noise(4))).fingerprint,
        Images(Items(noise(4, seed=1))).fingerprint,
        Images(Items(noise(4), {0: OSError("gone")})).fingerprint,
    ]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in found)
    assert glyph_images(50).fingerprint == found[0]
    assert Images(Items(noise(4))).fingerprint == found[4]


def test_fingerprint_of_a_folder_follows_its_files(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "a", 4)

    def now(**how: Any) -> str:
        return folder_images(root, **how).fingerprint

    first = now()
    assert now() == first
    assert now(crop=100) != first
    assert now(mean=(0.5, 0.5, 0.5)) != first
    file = root / "class0" / "000.png"
    os.utime(file, ns=(1, 1))
    assert now() == first
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)  # as many bytes as before, at another time
    changed = now()
    assert changed != first
    file.rename(root / "class0" / "zzz.png")
    renamed = now()
    assert renamed not in (first, changed)
    (root / "class1" / "001.png").unlink()
    assert now() not in (first, changed, renamed)


def test_fingerprint_of_a_folder_moves_with_it(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "a", 4)
    first = folder_images(root).fingerprint
    root.rename(tmp_path / "b")
    assert folder_images(tmp_path / "b").fingerprint == first


def test_a_copy_of_a_folder_is_the_same_data_set(tmp_path: Path) -> None:
    """Also one that was written at another time, for a data set without a root, and for a part and a row of such."""
    copies = [picture_folder(tmp_path / "a", 6), tmp_path / "elsewhere" / "b"]
    shutil.copytree(copies[0], copies[1], copy_function=shutil.copyfile)
    for file in copies[1].rglob("*.png"):
        os.utime(file, ns=(1, 1))
    for make in (
        lambda root: folder_images(root),
        lambda root: path_images(sorted(root.rglob("*.png"))),
        lambda root: Images(ImageFolder(root, transforms.ToTensor())),
        lambda root: Images(Subset(folder_images(root).dataset, [5, 4, 3, 2, 1, 0])),
        lambda root: Images(
            ConcatDataset([folder_images(root).dataset, ImageFolder(copies[0], transforms.ToTensor())])
        ),
    ):
        found = [make(root).fingerprint for root in copies]
        assert found[0] == found[1]
        last = next(copies[1].rglob("001.png"))
        before = last.read_bytes()
        last.write_bytes(before + b"0")
        assert make(copies[1]).fingerprint != found[0]
        last.write_bytes(before)


def test_files_are_read_once_for_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{number}.png" for number in range(600)]
    for file in files:
        file.write_bytes(file.name.encode())
        os.utime(file, ns=(10**9, 10**9))
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read.append(file) or read_bytes(file))
    expected = [f"{len(file.name)} {hashlib.sha256(file.name.encode()).hexdigest()[:32]}" for file in files]
    assert contents.digests([*map(str, files)]) == expected
    assert read == files
    read.clear()
    assert contents.digests([*map(str, files)]) == expected
    assert read == []
    files[3].write_bytes(b"3.pnG")  # as long as before, and just now: its time may still be that of a further change
    for _ in range(2):
        assert contents.digests([*map(str, files)])[3] == f"5 {hashlib.sha256(b'3.pnG').hexdigest()[:32]}"
    assert read == [files[3]] * 2
    files[3].unlink()
    assert contents.digests([*map(str, files)])[3] == "can't be read"


def test_who_is_stopped_does_not_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{number}.png" for number in range(600)]
    for file in files:
        file.touch()
        os.utime(file, ns=(10**9, 10**9))
    read: list[Path] = []

    def stopped(file: Path) -> bytes:
        read.append(file)
        if len(read) == 550:
            raise KeyboardInterrupt
        return b""

    monkeypatch.setattr(Path, "read_bytes", stopped)
    with pytest.raises(KeyboardInterrupt):
        contents.digests([*map(str, files)])
    contents.digests([*map(str, files)])
    assert len(read) == 550 + 600 - 2 * contents.EVERY


@pytest.mark.parametrize("kind", ["a damaged file", "no folder"])
def test_a_cache_that_can_not_be_used_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    images = folder_images(picture_folder(tmp_path / "a", 4))
    expected = images.fingerprint
    if kind == "no folder":
        (tmp_path / "taken").touch()
        monkeypatch.setenv("PURE_NB_STORE", str(tmp_path / "taken"))
    else:
        (contents.cache_folder() / "digests.sqlite").write_bytes(b"no database" * 999)
    assert folder_images(tmp_path / "a").fingerprint == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(workers: int) -> None:
    images = Images(Items(noise(9), {4: OSError("gone")}))
    found = list(batches(images, [8, 3, 4, 0, 5], run=Run(batch_size=2, workers=workers)))
    assert [batch.samples.tolist() for batch in found] == [[8, 3], [0], [5]]
    assert [[u.sample for u in batch.unreadable] for batch in found] == [[], [4], []]
    assert "OSError: gone" in found[1].unreadable[0].reason
    assert torch.equal(found[0].images, noise(9)[[8, 3]])
    assert found[0].samples.dtype == np.int64


def test_a_batch_of_nothing_readable() -> None:
    (batch,) = batches(Images(Items(noise(3), {0: OSError(), 1: ValueError()})), [0, 1])
    assert len(batch.samples) == 0
    assert len(batch.unreadable) == 2


def test_images_of_which_none_can_be_read() -> None:
    with pytest.raises(ImageError, match=r"image 0 .*OSError: gone"):
        next(batches(Images(Items(noise(2), {0: OSError("gone"), 1: ValueError()})), [1]))


def test_a_shape_that_differs_names_the_file(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, 2, classes=1)
    picture_folder(tmp_path / "more", 1, classes=1, size=20)
    odd = root / "class0" / "zzz.png"
    (tmp_path / "more" / "class0" / "000.png").rename(odd)
    (tmp_path / "more" / "class0").rmdir()
    (tmp_path / "more").rmdir()
    (batch,) = batches(folder_images(root, resize=None, crop=None), [0, 1, 2])
    assert batch.samples.tolist() == [0, 1]
    error = str(batch.unreadable[0].error())
    assert str(odd) in error
    assert "[3, 20, 20] differs from [3, 16, 16] of the first image; resize and crop" in error


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, 3, classes=1)
    file = root / "class0" / "001.png"
    file.write_bytes(b"no picture")
    images = folder_images(root)
    with pytest.raises(
        ImageError, match=r"image 1 .*001.png\) can't be read: .*skip_unreadable=True, or --skip-unreadable"
    ):
        images.tensor(1)
    assert images.tensor(2).ndim == 3


@pytest.mark.parametrize(
    ("item", "said"),
    [(torch.zeros(3), r"got \[3\]"), (torch.zeros(1, 3, 4, 4), r"got \[1, 3, 4, 4\]"), ("x", "got str")],
)
def test_items_that_are_no_images(item: Any, said: str) -> None:
    with pytest.raises(
        ImageError, match=rf"expected a tensor \[channels, height, width\], {said}; give the data set a"
    ):
        Images([item]).tensor(0)  # type: ignore[arg-type]


def test_a_folder_without_a_transform(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"got \(Image, int\); give the data set a transform"):
        Images(ImageFolder(str(picture_folder(tmp_path, 1)))).tensor(0)


def test_empty() -> None:
    with pytest.raises(ImageError, match="the data set 'none' is empty; a study needs at least one image"):
        Images(Items([]), "none")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"there is no folder .*nowhere'; name one that holds a subfolder of pictures"):
        folder_images(tmp_path / "nowhere")


@pytest.mark.parametrize("inside", [None, "class0", "notes.txt"])
def test_a_folder_without_pictures(tmp_path: Path, inside: str | None) -> None:
    if inside == "class0":
        (tmp_path / inside).mkdir()
    elif inside:
        (tmp_path / inside).touch()
    with pytest.raises(ImageError, match="holds no pictures: expected a subfolder for each class"):
        folder_images(tmp_path)


def loose_pictures(root: Path, count: int = 3) -> list[Path]:
    """Random pictures in one folder."""
    files = sorted((picture_folder(root, count, classes=1) / "class0").iterdir())
    moved = [file.rename(root / file.name) for file in files]
    (root / "class0").rmdir()
    return moved


def pixels_of(file: Path) -> Any:
    return np.asarray(Image.open(file).convert("RGB"))


def test_a_folder_of_pictures_without_classes(tmp_path: Path) -> None:
    files = loose_pictures(tmp_path / "zoo")
    (tmp_path / "zoo" / "notes.txt").touch()
    (tmp_path / "zoo" / ".thumbs").mkdir()
    (tmp_path / "zoo" / ".000.png").touch()
    (tmp_path / "zoo" / "empty").mkdir()
    images = folder_images(tmp_path / "zoo", resize=None, crop=None)
    assert [images.path(i) for i in range(len(images))] == list(map(str, files))
    assert (images.name, images.label(0), images.targets, images.classes) == ("zoo", "", None, ())
    assert (images.picture(1) == pixels_of(files[1])).all()
    with pytest.raises(ImageError, match="have no labels"):
        class_labels(images, 2)
    first = images.fingerprint
    (tmp_path / "zoo").rename(tmp_path / "park")
    assert folder_images(tmp_path / "park", resize=None, crop=None).fingerprint == first
    shutil.copyfile(tmp_path / "park" / "002.png", tmp_path / "park" / "001.png")
    assert folder_images(tmp_path / "park", resize=None, crop=None).fingerprint != first


def test_a_folder_of_loose_pictures_beside_classes(tmp_path: Path) -> None:
    loose_pictures(tmp_path)
    (tmp_path / "cats" / "wild").mkdir(parents=True)
    loose_pictures(tmp_path / "cats" / "wild")
    with pytest.raises(ImageError, match=r"\(000.png ...\) beside subfolders with pictures \(cats ...\).*path_images"):
        folder_images(tmp_path)


def test_a_nested_folder(tmp_path: Path) -> None:
    """What is deeper down belongs to the class above."""
    loose_pictures(tmp_path / "cats" / "wild", 2)
    loose_pictures(tmp_path / "dogs", 1)
    images = folder_images(tmp_path)
    assert [images.label(i) for i in range(3)] == ["cats", "cats", "dogs"]


def test_paths(tmp_path: Path) -> None:
    files = loose_pictures(tmp_path / "a b")
    (tmp_path / "some.list").write_text(f"a b/002.png\n\n  {files[0]}\na b/none.png\n", encoding="utf-8-sig")
    listed = path_images(str(tmp_path / "some.list"), resize=None, crop=None)
    given = path_images([str(files[2]), files[0], tmp_path / "a b" / "none.png"], resize=None, crop=None)
    for images in (listed, given):
        assert [images.path(i) for i in range(3)] == [str(files[2]), str(files[0]), str(tmp_path / "a b" / "none.png")]
        assert (images.picture(0) == pixels_of(files[2])).all()
        (batch,) = batches(images, [2, 1])
        assert (batch.samples.tolist(), [lost.path for lost in batch.unreadable]) == ([1], [images.path(2)])
        assert "FileNotFoundError" in batch.unreadable[0].reason
    assert (listed.name, given.name) == ("some", "pictures")
    assert listed.fingerprint == given.fingerprint
    loose_pictures(tmp_path / "other", 1)[0].rename(tmp_path / "a b" / "none.png")
    assert path_images(tmp_path / "some.list", resize=None, crop=None).fingerprint != listed.fingerprint


def test_paths_on_several_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' paths may have nothing in common, not even a root."""
    files = loose_pictures(tmp_path / "a", 2)

    def on_windows(paths: Any) -> str:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", on_windows)
    images = path_images(files, resize=None, crop=None)
    assert [images.path(i) for i in range(2)] == [str(file) for file in files]
    assert images.fingerprint != path_images(files[:1], resize=None, crop=None).fingerprint


def test_lists_of_paths_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a \.txt or \.list file with a path in each line, got .*table.csv"):
        path_images(tmp_path / "table.csv")
    with pytest.raises(ImageError, match=r"nowhere.txt' can't be read as a list of pictures"):
        path_images(tmp_path / "nowhere.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImageError, match=r"bytes.txt' can't be read as a list of pictures"):
        path_images(tmp_path / "bytes.txt")
    (tmp_path / "empty.txt").write_text("\n")
    for nothing in (tmp_path / "empty.txt", []):
        with pytest.raises(ImageError, match="is empty"):
            path_images(nothing)


# Whatever holds images.


def test_images_stay_as_they_are() -> None:
    images = Images(Items(noise(2)), "mine")
    assert as_images(images, "other") is images
    dataset = Items(noise(2))
    found = as_images(dataset, "items")
    assert (found.dataset, found.name) == (dataset, "items")
    assert as_images([*noise(2)]).tensor(1).equal(noise(2)[1])  # type: ignore[arg-type]


def test_tensors() -> None:
    images = as_images(noise(4), "noise")
    assert torch.equal(images.tensor(3), noise(4)[3])
    assert (images.name, images.targets, images.label(1)) == ("noise", None, "")
    for labels in ([3, 0, -1, 1], np.array([3, 0, -1, 1], dtype=np.int32), torch.tensor([3, 0, -1, 1])):
        images = as_images((noise(4), labels))
        assert images.targets is not None
        assert images.targets.tolist() == [3, 0, -1, 1]
        assert [images.label(i) for i in range(4)] == ["3", "0", "", "1"]
        assert class_labels(images, 4)[1] == ("0", "1", "2", "3")
    changed = noise(40)
    first = as_images(changed.clone()).fingerprint
    changed[1, 0, 0, 0] += 1  # an item that is not among the sixteen
    assert as_images(changed).fingerprint != first


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (noise(2)[0], r"expected a tensor \[N, C, H, W\], .* got torch.float32 \[3, 12, 12\]"),
        (noise(2)[0].numpy(), r"expected a tensor \[N, C, H, W\], .* got float32 \[3, 12, 12\]"),
        (np.zeros((2, 3, 4, 4), dtype=object), "expected an array of numbers, got one of object"),
        ((noise(2), [1]), r"one whole number for each of the 2 images as labels, got torch.int64 \[1\]"),
        ((noise(2), torch.zeros(2)), r"one whole number for each of the 2 images as labels, got torch.float32 \[2\]"),
        ((noise(2), [0, 1], [0, 1]), r"\[2, 3, 12, 12\] and more"),
        ({"train": [1], "test": [2]}, "got a dict; give one of its parts: 'train', 'test'"),
        ((tensor for tensor in noise(2)), r"'x' is a stream \(generator\)"),
        (7, "'x': expected Images, a torch data set with a length, .* got a int"),
        (Path("nowhere"), "there is no folder 'nowhere'"),
        ([], "'x' is empty"),
    ],
)
def test_what_holds_no_images(wrong: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        as_images(wrong, "x")


def test_streams() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(noise(2))

    class Endless(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return noise(1)[0]

    with pytest.raises(ImageError, match=r"'x' is a stream \(Stream\), .* __len__ and __getitem__"):
        as_images(Stream(), "x")
    with pytest.raises(ImageError, match=r"a torch data set with a length, .* got a Endless"):
        as_images(Endless(), "x")


def test_a_transform_of_ones_own(tmp_path: Path) -> None:
    files = loose_pictures(tmp_path)
    (tmp_path / "list.txt").write_text("002.png\n")
    half = preprocessing(resize=8, crop=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    expected = half(Image.open(files[2]))
    rows = hub.Dataset.from_dict({"image": [str(files[2])]}).cast_column("image", hub.Image())
    for source in ([files[2]], tmp_path / "list.txt", str(tmp_path / "list.txt"), rows):
        images = as_images(source, transform=half)
        assert torch.equal(images.tensor(0), expected)
        assert images.normalisation == ((0.5,) * 3, (0.25,) * 3)
    assert torch.equal(as_images(tmp_path, transform=half).tensor(2), expected)
    assert as_images(tmp_path).tensor(0).shape == (3, 224, 224)
    for source in (noise(2), Items(noise(2)), Images(Items(noise(2)))):
        with pytest.raises(ImageError, match="give the data set the transform, and none here"):
            as_images(source, transform=half)


def test_grey_and_transparent_pictures(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    grey.save(tmp_path / "a.png")
    grey.convert("RGBA").save(tmp_path / "b.png")
    images = folder_images(tmp_path, resize=None, crop=None)
    assert all((images.picture(i) == np.asarray(grey)[..., None]).all() for i in range(2))


# Hugging Face.


def rows_of(count: int = 4, **columns: Any) -> Any:
    """A small data set of Hugging Face: random pictures, every second of them grey, and labels."""
    generator = np.random.default_rng(0)
    pictures = [
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert("RGB" if i % 2 == 0 else "L")
        for i in range(count)
    ]
    features = hub.Features(
        {"id": hub.Value("string"), "image": hub.Image(), "label": hub.ClassLabel(names=["cat", "dog", "cow"])}
    )
    rows = {"id": [f"row{i}" for i in range(count)], "image": pictures, "label": [i % 3 for i in range(count)]}
    return hub.Dataset.from_dict(rows | columns, features=features)


def test_hugging_face() -> None:
    rows = rows_of()
    images = as_images(rows, "hub", transform=preprocessing(resize=None, crop=None))
    assert [images.label(i) for i in range(4)] == ["cat", "dog", "cow", "cat"]
    assert images.path(2) == "item 2 of hub"
    for i in range(4):
        assert (images.picture(i) == np.asarray(rows[i]["image"].convert("RGB"))).all()
    labels, names = class_labels(images, 3)
    assert (labels.tolist(), names) == ([0, 1, 2, 0], ("cat", "dog", "cow"))
    # What was set on it for training changes nothing.
    again = as_images(rows.with_format("numpy"), transform=preprocessing(resize=None, crop=None))
    assert torch.equal(again.tensor(1), images.tensor(1))
    assert as_images(rows.select([1, 0]), transform=PLAIN).label(0) == "dog"
    assert as_images(rows_of(label=[0, None, 1, 2]), transform=PLAIN).label(1) == ""
    bare = as_images(rows.remove_columns(["label"]), transform=PLAIN)
    assert (bare.targets, bare.label(0)) == (None, "")
    (batch,) = batches(images, [3, 0])
    assert batch.samples.tolist() == [3, 0]


def test_hugging_face_that_is_not_clear() -> None:
    rows = rows_of()
    two = rows.add_column("fine", rows["label"][:]).cast_column("fine", hub.ClassLabel(names=["a", "b", "c"]))
    with pytest.raises(
        ImageError, match=r"one column of type Image .* 'ClassLabel': \['label', 'fine'\].*select_columns"
    ):
        as_images(two)
    assert as_images(two.select_columns(["image", "fine"]), transform=PLAIN).label(2) == "c"
    with pytest.raises(ImageError, match=r"one column of type Image .*'Image': \[\]"):
        as_images(rows.remove_columns(["image"]))
    with pytest.raises(ImageError, match=r"'image' is not decoded; use cast_column\('image', Image\(\)\)"):
        as_images(rows.cast_column("image", hub.Image(decode=False)))
    with pytest.raises(ImageError, match=r"is a stream \(IterableDataset\).*without streaming"):
        as_images(rows.to_iterable_dataset())
    with pytest.raises(ImageError, match="give one of its parts: 'train'"):
        as_images(hub.DatasetDict(train=rows))


# Parts of data sets, several in a row, and labels by other names.


class Tagged(Items):
    """Items with a file and a label each."""

    def __init__(self, name: str, labels: list[int], classes: list[str]) -> None:
        super().__init__(noise(len(labels), size=2, seed=len(name)))
        self.samples = [(f"/{name}/{i}.png", label) for i, label in enumerate(labels)]
        self.targets, self.classes = labels, classes
        self.transform = transforms.Normalize(MEAN, STD)


@pytest.mark.parametrize("seed", range(8))
def test_parts_and_rows_of_data_sets(seed: int) -> None:
    """Against lists of what each item is, which are cut and put in a row in the same way."""
    generator = np.random.default_rng(seed)

    def grow(depth: int) -> tuple[Any, list[tuple[str, str, torch.Tensor]]]:
        if depth == 0:
            name, classes = f"set{generator.integers(100)}", generator.permutation(["cat", "dog", "cow"]).tolist()
            labels = generator.integers(-1, 3, 5).tolist()
            found = Tagged(name, labels, classes)
            return found, [
                (f"/{name}/{i}.png", classes[label] if label >= 0 else "", found.images[i])
                for i, label in enumerate(labels)
            ]
        if generator.random() < 0.5:
            dataset, items = grow(depth - 1)
            chosen = generator.integers(0, len(items), 6)
            return Subset(dataset, chosen if generator.random() < 0.5 else chosen.tolist()), [items[i] for i in chosen]
        (first, own), (second, more) = grow(depth - 1), grow(depth - 1)
        return ConcatDataset([first, second]), own + more

    dataset, items = grow(3)
    images = Images(dataset)
    assert [images.path(i) for i in range(len(images))] == [path for path, _, _ in items]
    assert [images.label(i) for i in range(len(images))] == [label for _, label, _ in items]
    assert all(torch.equal(images.tensor(i), tensor) for i, (_, _, tensor) in enumerate(items))
    assert images.normalisation == (MEAN, STD)
    if len(images.classes) == 3:
        labels, names = class_labels(images, 3)
        assert [names[label] if label >= 0 else "" for label in labels] == [label for _, label, _ in items]


def test_rows_of_which_some_have_no_labels() -> None:
    tagged, bare = Tagged("a", [0, 1], ["cat", "dog"]), Items(noise(2, size=2))
    images = Images(ConcatDataset([tagged, bare]))
    assert (images.targets, images.label(0)) == (None, "")
    numbered: Any = Items(noise(2, size=2))
    numbered.targets = [0, 4]
    assert Images(ConcatDataset([tagged, numbered])).targets is None  # names and numbers can't be matched
    assert [Images(ConcatDataset([numbered, numbered])).label(i) for i in range(4)] == ["0", "4", "0", "4"]
    few = Tagged("b", [0, 1], ["cat"])
    assert Images(ConcatDataset([tagged, few])).targets is None
    numbered.targets = [-1, -1]
    assert [Images(ConcatDataset([numbered, numbered])).label(i) for i in range(4)] == [""] * 4


def test_a_part_of_a_folder(tmp_path: Path) -> None:
    whole = folder_images(picture_folder(tmp_path / "a", 6))
    some = Images(Subset(whole.dataset, [4, 1]))
    assert [some.path(i) for i in range(2)] == [whole.path(4), whole.path(1)]
    assert (some.picture(0) == whole.picture(4)).all()
    first = some.fingerprint
    assert Images(Subset(whole.dataset, [4, 1])).fingerprint == first
    assert Images(Subset(whole.dataset, [1, 4])).fingerprint != first
    shutil.copyfile(whole.path(2), whole.path(0))
    assert Images(Subset(whole.dataset, [4, 1])).fingerprint == first
    shutil.copyfile(whole.path(2), whole.path(1))
    assert Images(Subset(whole.dataset, [4, 1])).fingerprint != first


def test_the_fingerprint_tells_parts_apart() -> None:
    """Also where the sixteen items that are looked at are the same."""
    items = Items(noise(1, size=2).expand(99, -1, -1, -1))
    one, other = ([*range(50)], [0, 60, *range(2, 50)])
    assert Images(Subset(items, one)).fingerprint != Images(Subset(items, other)).fingerprint


@pytest.mark.parametrize(
    ("attributes", "labels"),
    [
        ({"labels": np.array([2, 0, 1])}, ["2", "0", "1"]),  # SVHN
        ({"labels": np.array([2, 0, -1]), "classes": ("a", "b", "c")}, ["c", "a", ""]),  # STL10
        ({"_labels": [1, 0, 1], "classes": ["a", "b"]}, ["b", "a", "b"]),  # Food101
        ({"y": [1, 0, 1], "categories": ["a", "b"]}, ["b", "a", "b"]),  # Caltech101
        ({"_samples": [("a", 1), ("b", 0), ("c", 1)]}, ["1", "0", "1"]),  # GTSRB
        ({"targets": [1, 0, 1], "class_to_idx": {"b": 1, "a": 0}}, ["b", "a", "b"]),  # LFWPeople
        ({"targets": torch.tensor([1, 0, 1])}, ["1", "0", "1"]),
        ({"targets": [0, 1, 2], "classes": ["a", "b"]}, ["a", "b", "2"]),  # the last has no name
        ({"targets": ["a.png", "b.png", "c.png"]}, [""] * 3),  # Kitti
        ({"targets": [0, 1]}, [""] * 3),
        ({"targets": np.zeros((3, 2), dtype=int)}, [""] * 3),
        ({"targets": [[0], [1, 2], [3]]}, [""] * 3),
        ({"y": [0.5, 1.5, 2.5]}, [""] * 3),
    ],
)
def test_labels_by_other_names(attributes: dict[str, Any], labels: list[str]) -> None:
    items = Items(noise(3, size=2))
    for name, value in attributes.items():
        setattr(items, name, value)
    images = Images(items)
    assert [images.label(i) for i in range(3)] == labels
    if any(labels):
        assert class_labels(images, len(images.classes) or int(max(labels)) + 1)[0].tolist() == (
            images.targets.tolist()  # type: ignore[union-attr]
        )
    else:
        with pytest.raises(ImageError, match="have no labels"):
            class_labels(images, 3)


@pytest.mark.parametrize("name", ["_image_files", "_images", "files"])
def test_files_by_other_names(name: str, tmp_path: Path) -> None:
    items = Items(noise(2))
    setattr(items, name, [tmp_path / "a.png", tmp_path / "b.png"])
    assert Images(items).path(1) == str(tmp_path / "b.png")
    setattr(items, name, [noise(1), noise(1)])
    assert Images(items).path(1) == "item 1 of images"


def test_the_normalisation_of_new_transforms() -> None:
    items: Any = Items(noise(2))
    items.transform = v2.Compose([v2.ToImage(), v2.Compose([v2.Normalize([0.5] * 3, [0.25] * 3)])])
    assert Images(items).normalisation == ((0.5,) * 3, (0.25,) * 3)


def test_synsets() -> None:
    """Those of glyphs are known, and one's own are added."""
    assert Images(Items(noise(2))).synsets == {}
    assert Images(Items(noise(2)), synsets={"king": "king.n.01"}).synsets == {"king": "king.n.01"}
    known = glyph_images(2).synsets
    assert known["king"] == "king.n.10"
    assert Images(Subset(GlyphObjects(1), [0])).synsets == known
    assert Images(GlyphScenes(2), synsets={"king": "king.n.01"}).synsets == {**known, "king": "king.n.01"}


# Loading ahead.


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reading ")]


def soon(condition: Callable[[], bool]) -> bool:
    """Whether something becomes true within five seconds."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


class Blocked(Items):
    """Items of which one is not there until it is allowed."""

    def __init__(self, count: int, late: int) -> None:
        super().__init__(noise(count))
        self.late, self.allowed = late, threading.Event()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        found = super().__getitem__(index)
        if index == self.late:
            self.allowed.wait(30)
        return found


class Endless(Items):
    """Items of which one never arrives; fit for worker processes."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 3:
            time.sleep(60)
        return super().__getitem__(index)


class Deadly(Items):
    """Items of which one kills the process that reads it, unless it is the main one."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__(images)
        self.main = os.getpid()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 3 and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_batches_are_those_of_a_plain_loop(batch_size: int, workers: int) -> None:
    tensors = [*noise(8), *noise(1, size=5), *noise(4, seed=1)]
    images = Images(Items(tensors, {6: OSError("gone")}))
    order = np.random.default_rng(batch_size).permutation(13).tolist()
    found = list(batches(images, order, run=Run(batch_size=batch_size, workers=workers)))
    parts = [order[start : start + batch_size] for start in range(0, 13, batch_size)]
    assert len(found) == len(parts)
    for batch, part in zip(found, parts):
        good = [i for i in part if i not in (6, 8)]
        assert batch.samples.tolist() == good
        assert all(torch.equal(image, tensors[i]) for image, i in zip(batch.images, good))
        assert [lost.sample for lost in batch.unreadable] == [i for i in part if i in (6, 8)]
    assert not readers()


def test_no_samples_and_no_batch_size() -> None:
    images = Images(Items(noise(2)))
    assert list(batches(images, [])) == []
    with pytest.raises(StudyError, match="batch_size must be a whole number and at least 1, got 0"):
        next(batches(images, [0], run=Run(batch_size=0)))


def test_one_batch_is_loaded_ahead_and_no_more() -> None:
    items = Items(noise(12))
    found = batches(Images(items), range(12), run=Run(batch_size=3))
    next(found)
    assert soon(lambda: items.loaded == [0, *range(6)])  # the first twice: for its shape
    time.sleep(0.05)
    assert items.loaded == [0, *range(6)]
    next(found)
    assert soon(lambda: items.loaded == [0, *range(9)])
    found.close()


def test_what_is_drawn_or_in_memory_is_not_loaded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that would gain nothing."""
    drawn = []
    draw = GlyphScenes._seen
    monkeypatch.setattr(GlyphScenes, "_seen", lambda self, index: drawn.append(index) or draw(self, index))
    found = batches(glyph_images(6), range(6), run=Run(batch_size=2))
    assert next(found).samples.tolist() == [0, 1]
    assert not readers()
    assert drawn == [0, 0, 1]
    assert [batch.samples.tolist() for batch in found] == [[2, 3], [4, 5]]
    for images in (as_images(noise(4)), Images(Subset(GlyphScenes(6), range(4)))):
        found = batches(images, range(4), run=Run(batch_size=2))
        assert torch.equal(next(found).images, torch.stack([images.tensor(0), images.tensor(1)]))
        assert not readers()
        assert next(found).samples.tolist() == [2, 3]


@pytest.mark.parametrize("drop", [False, True])
def test_who_stops_early_leaves_no_thread_behind(drop: bool) -> None:
    items = Blocked(12, late=5)
    found = batches(Images(items), range(12), run=Run(batch_size=4))
    next(found)
    assert soon(lambda: items.loaded[-1] == 5)
    threading.Timer(0.05, items.allowed.set).start()
    if drop:
        del found
        gc.collect()
    else:
        found.close()
    assert not readers()
    assert items.loaded == [0, *range(6)]  # of the batch that was being loaded, nothing after the fifth


def test_an_error_in_the_loop_leaves_no_thread_behind() -> None:
    def fails() -> None:
        for batch in batches(Images(Items(noise(12))), range(12), run=Run(batch_size=4)):
            raise ValueError(len(batch.samples))

    with pytest.raises(ValueError, match="4"):
        fails()
    gc.collect()
    assert soon(lambda: not readers())


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), SystemExit(3)])
def test_what_stops_the_reader_stops_the_caller(problem: BaseException) -> None:
    found = batches(Images(Items(noise(12), {5: problem})), range(12), run=Run(batch_size=4))
    assert next(found).samples.tolist() == [0, 1, 2, 3]
    with pytest.raises(type(problem)):
        next(found)
    assert not readers()


@posix("signals are different here")
def test_an_interrupt_while_waiting() -> None:
    """It ends the wait at once, whatever is being read."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background does not have
    items = Blocked(8, late=5)
    found = batches(Images(items), range(8), run=Run(batch_size=4))
    next(found)
    main = threading.main_thread().ident
    threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(found)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 5
    items.allowed.set()
    assert soon(lambda: not readers())
    assert items.loaded[-1] == 5


def test_an_image_that_never_arrives() -> None:
    items = Blocked(8, late=5)
    found = batches(Images(items, "slow"), range(8), run=Run(batch_size=4), timeout=0.1)
    next(found)
    with pytest.raises(ImageError, match=r"image 5 \(item 5 of slow\): nothing arrived for 0.1 s. Check the disk"):
        next(found)
    items.allowed.set()
    assert soon(lambda: not readers())


def test_an_image_that_never_arrives_outside_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TIMEOUT", 0.1)
    items = Blocked(4, late=0)
    images = Images(items)
    for look in (
        lambda: images.tensor(0),
        lambda: images.picture(0),
        lambda: images.example,
        lambda: images.fingerprint,
        lambda: next(batches(images, [1])),
    ):
        with pytest.raises(ImageError, match=r"image 0 \(item 0 of images\): nothing arrived for 0.1 s"):
            look()
    with pytest.raises(ImageError, match="image 1 "):  # what is read behind it is not waited for either
        images.tensor(1)
    items.allowed.set()
    assert soon(lambda: not readers())
    assert images.tensor(0).equal(noise(4)[0])


def test_pictures_are_read_by_threads_that_wait_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread is started only where all others are reading, or hang."""
    started, start = [], threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread) or start(thread))
    monkeypatch.setattr(reading._Reader, "idle", deque())
    images = Images(Items(noise(30)))
    for sample in range(30):
        assert images.tensor(sample).equal(noise(30)[sample])
    assert len(started) == 1
    ahead = batches(images, range(30), run=Run(batch_size=4))
    assert next(ahead).samples.tolist() == [0, 1, 2, 3]
    assert images.tensor(7).equal(noise(30)[7])
    assert len(started) == 2
    ahead.close()
    monkeypatch.setattr(reading, "TIMEOUT", 0.1)
    items = Blocked(4, late=0)
    for _ in range(2):
        with pytest.raises(ImageError, match=r"nothing arrived for 0\.1 s"):
            Images(items).tensor(0)
    assert images.tensor(3).equal(noise(30)[3])
    assert len(started) == 3  # for those that hang, and the one that goes on
    items.allowed.set()
    assert soon(lambda: len(reading._Reader.idle) == 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that begin with what this one has")
def test_threads_that_wait_are_not_those_of_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(Items(noise(2)))
    assert images.tensor(0).equal(noise(2)[0])
    assert reading._Reader.idle
    monkeypatch.setattr(reading, "TIMEOUT", 5.0)
    process = multiprocessing.get_context("fork").Process(target=lambda: images.tensor(1))
    process.start()
    process.join(30)
    ended = process.exitcode
    process.kill()
    assert ended == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that begin with what this one has")
def test_an_image_that_never_arrives_does_not_keep_a_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TIMEOUT", 0.1)

    def look() -> None:
        with pytest.raises(ImageError, match="nothing arrived"):
            Images(Blocked(1, late=0)).tensor(0)

    process = multiprocessing.get_context("fork").Process(target=look)
    process.start()
    process.join(15)
    ended = process.exitcode
    process.kill()
    assert ended == 0


def test_slow_images_are_not_late() -> None:
    """What counts is the time that one takes, not that of a batch."""

    class Slow(Items):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            time.sleep(0.06)
            return super().__getitem__(index)

    (batch,) = batches(Images(Slow(noise(8))), range(8), timeout=0.3)
    assert len(batch.samples) == 8


@pytest.mark.slow
def test_a_worker_that_never_delivers() -> None:
    found = batches(Images(Endless(noise(6)), "slow"), range(6), run=Run(batch_size=2, workers=1), timeout=2.0)
    with pytest.raises(
        ImageError, match=r"images \d \(item \d of slow\), .* DataLoader timed out after 2.0 s.* memory"
    ):
        list(found)


@posix("no signal kills a process here")
def test_a_worker_that_is_killed() -> None:
    found = batches(Images(Deadly(noise(6)), "deadly"), range(6), run=Run(batch_size=2, workers=1))
    with pytest.raises(ImageError, match=r"waited for images \d \(item .* DataLoader worker \(pid.*memory"):
        list(found)


@pytest.mark.skipif(sys.platform != "linux", reason="a worker that is no fork does not know the patch")
def test_what_a_worker_raises_is_not_taken_for_late(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(Items([*noise(1), *noise(1).double()]))
    monkeypatch.setattr(reading.torch, "stack", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(batches(images, [0, 1]))
    with pytest.raises(ZeroDivisionError, match="DataLoader worker process"):
        list(batches(images, [0, 1], run=Run(workers=1)))


def test_readable() -> None:
    images = Images(Items(noise(9), {5: OSError("gone")}))
    found = list(readable(images, [8, 0, 4], run=Run(batch_size=2)))
    assert [batch.samples.tolist() for batch in found] == [[8, 0], [4]]
    found_ahead = readable(images, range(9), run=Run(batch_size=2))
    assert [next(found_ahead).samples.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ImageError, match=r"image 5 \(item 5 of images\) can't be read: OSError: gone"):
        next(found_ahead)
    assert not readers()


def test_a_data_set_is_read_by_one_at_a_time() -> None:
    """Few are made for two: a file that is sought in, an archive, a cursor."""

    class Cursor(Items):
        place = 0

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            self.place = index
            time.sleep(0.001)
            return self.images[self.place], 0

    images = Images(Cursor(noise(40)))
    for batch in batches(images, range(40), run=Run(batch_size=8)):
        for sample, tensor in zip(batch.samples.tolist(), batch.images):
            assert torch.equal(images.tensor(sample), tensor)  # while the next batch is loading
            assert torch.equal(tensor, noise(40)[sample])


@pytest.mark.slow
def test_scenes_drawn_at_once_are_those_drawn_alone() -> None:
    scenes = GlyphScenes(24)
    alone = [scenes[i][0].numpy().tobytes() for i in range(24)]
    glyph.cache_clear()  # the glyphs too are drawn at once, from one font
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert list(pool.map(lambda i: scenes[i][0].numpy().tobytes(), range(24))) == alone


def test_images_can_be_sent_to_a_process() -> None:
    images = Images(Items(noise(3)), "sent", (0.5,) * 3, (0.25,) * 3, {"king": "king.n.10"}, 255, 3)
    again = pickle.loads(pickle.dumps(images))
    assert (again.name, again.normalisation, again.synsets) == ("sent", images.normalisation, images.synsets)
    assert (again.white, again.channels) == (255, 3)
    assert torch.equal(again.tensor(2), images.tensor(2))


def test_names_of_classes_as_one_says_them() -> None:
    names = ["n01440764", "n02012849", "n03126707", "hop_clover", "n00000000"]
    assert display_names(names) == ["tench", "crane", "crane (n03126707)", "hop clover", "n00000000"]
    assert display_names([]) == []


# Classes and the network's outputs.


def classes_of(names: list[str], targets: list[int] | None = None) -> Images:
    dataset: Any = Items(noise(len(names), size=2))
    dataset.targets, dataset.classes = list(range(len(names))) if targets is None else targets, names
    return Images(dataset)


def test_names_that_are_numbers_are_outputs(tmp_path: Path) -> None:
    """ImageNetV2's folders are called 0 to 999, and sorted as words."""
    for number in range(12):
        picture_folder(tmp_path / "a", 1, classes=1)
        (tmp_path / "a" / "class0").rename(tmp_path / "a" / str(number))
    images = folder_images(tmp_path / "a", resize=None, crop=None)
    true = [int(Path(images.path(i)).parent.name) for i in range(12)]
    assert true != sorted(true)
    for outputs in (12, 1000):
        labels, names = class_labels(images, outputs)
        assert labels.tolist() == true
        assert names == tuple(map(str, range(outputs)))
    labels, names = class_labels(classes_of(["00", "02", "10"], [2, 0, -1]), 11)
    assert (labels.tolist(), len(names), names[1], names[2], names[10]) == ([10, 0, -1], 11, "1", "02", "10")
    # Without names labels are outputs too, some or all.
    assert class_labels(as_images((noise(3), [4, 0, -1])), 9)[0].tolist() == [4, 0, -1]


@pytest.mark.parametrize("names", [["1", "10", "2"], ["1", "x", "2"], ["1", "01", "2"]])
def test_names_that_are_no_numbers_of_outputs(names: list[str]) -> None:
    """As many as outputs are these in their order; of fewer or more it is not known which they are."""
    assert class_labels(classes_of(names), 3) == (pytest.approx([0, 1, 2]), tuple(names))
    with pytest.raises(ImageError, match="by the numbers of the outputs, from 0"):
        class_labels(classes_of(names), 2)


IMAGENETTE = {
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}


def test_wordnet_ids_are_imagenets() -> None:
    """Whatever their order; those of larger ImageNets too."""
    names = sorted(IMAGENETTE, reverse=True)
    labels, all_names = class_labels(classes_of(names, [*range(10)]), 1000)
    assert labels.tolist() == [IMAGENETTE[name] for name in names]
    assert [all_names[number] for number in IMAGENETTE.values()] == list(IMAGENETTE)
    assert class_labels(classes_of(names), 10)[1] == tuple(names)
    backwards = classes_of(list(all_names[::-1]))
    assert class_labels(backwards, 1000)[0].tolist() == list(range(1000))[::-1]
    labels, larger = class_labels(classes_of(names), 21841)
    assert [larger[label] for label in labels] == names
    with pytest.raises(ImageError, match="are of 10 classes"):
        class_labels(classes_of(names), 1001)


def at_least(right: int, count: int, chance: float) -> float:
    """Probability of so many successes or more."""
    return sum(math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(right, count + 1))


@pytest.mark.parametrize("seed", range(60))
def test_at_chance_is_two_binomial_tests(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count, classes = int(generator.integers(1, 65)), int(generator.integers(2, 12))
    labels = generator.integers(0, classes, count)
    answers = np.where(generator.random(count) < generator.random() / 2, labels, generator.integers(0, classes, count))
    chance = sum((labels == c).sum() * (answers == c).sum() for c in range(classes)) / count**2
    right, able = int((labels == answers).sum()), chance + (1 - chance) / 4
    expected = at_least(right, count, chance) > 0.05 and 1 - at_least(right + 1, count, able) < 0.01
    assert at_chance(labels, answers) == expected


@pytest.mark.parametrize("classes", [2, 4, 10, 100, 1000])
def test_who_is_suspected(classes: int) -> None:
    """Good networks with labels in another order always; those that can do something, and few images, hardly ever."""
    generator = np.random.default_rng(classes)

    def share(accuracy: float, count: int, shift: int = 0) -> float:
        found = []
        for _ in range(300):
            labels = np.linspace(0, classes - 1, count).astype(int)
            answers = np.where(generator.random(count) < accuracy, labels, generator.integers(0, classes, count))
            found.append(at_chance((labels + shift) % classes, answers))
        return float(np.mean(found))

    assert share(0.8, 64, shift=1) > 0.95
    for count in (4, 16, 64):
        assert share(0.35, count) < 0.02
    assert share(0.0, 4) == 0
    assert not at_chance(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert not at_chance(np.zeros(64, np.int64), np.zeros(64, np.int64))


def test_images_to_look_at_are_spread_over_the_classes() -> None:
    labels = np.array([3] * 500 + [-1] * 20 + [0] * 500 + [1] * 500 + [2] * 500)
    chosen = seen_labels(labels)
    assert len(chosen) == 64
    assert np.bincount(labels[chosen]).min() > 14
    assert seen_labels(np.array([-1, 1, -1, 0])).tolist() == [3, 1]
    assert seen_labels(np.array([-1])).tolist() == []


# Pictures with more than 8 bits, and other modes.

DEEP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def png(path: Path, values: np.ndarray[Any, Any], colour: int) -> None:
    """A PNG of 16 bits, by hand: Pillow writes grey ones only."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def tiff(path: Path, data: bytes, size: tuple[int, int], bits: int, photometric: int = 1) -> None:
    """A grey TIFF of unusual depth, by hand."""
    tags = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, size[1]), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def write(path: Path, kind: str) -> np.ndarray[Any, Any]:
    """A file of a kind, and its numbers from 0 to 1, ``[8, 8]`` or ``[8, 8, 3]``."""
    unit = DEEP / 65535
    eight = (unit * 255).round().astype(np.uint8)
    if kind == "PNG":
        Image.fromarray(DEEP).save(path, "PNG")
    elif kind == "TIFF":
        Image.fromarray(DEEP).save(path, "TIFF")
    elif kind == "TIFF, big-endian":
        Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()).save(path, "TIFF")
    elif kind == "TIFF, 0 is white":
        tiff(path, DEEP.astype("<u2").tobytes(), (8, 8), 16, photometric=0)
        return 1 - unit
    elif kind == "TIFF of 12 bits":
        values = DEEP // 16
        first, second = values.ravel()[::2].astype(int), values.ravel()[1::2].astype(int)
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
        tiff(path, packed.astype(np.uint8).tobytes(), (8, 8), 12)
        return values / 4095
    elif kind == "TIFF of floats":
        Image.fromarray(unit.astype(np.float32)).save(path, "TIFF")
    elif kind == "PGM of 12 bits":
        path.write_bytes(b"P5 8 8 4095\n" + (DEEP // 16).astype(">u2").tobytes())
        return (DEEP // 16) / 4095
    elif kind == "JPEG 2000":
        Image.fromarray(DEEP).save(path, "JPEG2000", irreversible=False)
    elif kind == "PNG, colours of 16 bits":
        colours = np.stack([DEEP, DEEP[::-1], DEEP.T], axis=-1)
        png(path, colours, 2)
        return colours / 65535
    elif kind == "PNG, grey of 16 bits and transparent":
        png(path, np.stack([DEEP, DEEP[::-1]], axis=-1), 4)
    elif kind == "1 bit":
        Image.fromarray(unit > 0.5).save(path, "PNG")
        return (unit > 0.5).astype(float)
    elif kind == "LA":
        Image.fromarray(np.stack([eight, 255 - eight], axis=-1)).save(path, "PNG")
    elif kind == "P, transparent":
        palette = Image.fromarray(eight).convert("P")
        palette.save(path, "PNG", transparency=bytes(range(256)))
    elif kind == "CMYK":
        Image.fromarray(np.stack([255 - eight] * 3 + [0 * eight], axis=-1), "CMYK").save(path, "TIFF")
    return unit


KINDS = [
    *("PNG", "TIFF", "TIFF, big-endian", "TIFF, 0 is white", "TIFF of 12 bits", "TIFF of floats", "PGM of 12 bits"),
    *("JPEG 2000", "PNG, colours of 16 bits", "PNG, grey of 16 bits and transparent", "1 bit", "LA", "P, transparent"),
    "CMYK",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_is_scaled(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"  # Pillow goes by what is in it
    expected = write(path, kind)
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=-1)
    assert np.abs(np.asarray(Reader()(path)) / 255 - expected).max() <= 1 / 255  # Pillow cuts colours of 16 bits to 8
    with Image.open(path) as opened:
        assert (np.asarray(Reader()(opened)) == np.asarray(Reader()(path))).all()


def test_all_readers_scale(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "a" / str(number)).mkdir(parents=True)
        Image.fromarray(np.roll(DEEP, number, axis=0)).save(tmp_path / "a" / str(number) / "x.png")
    files = sorted((tmp_path / "a").glob("*/*.png"))
    plain = preprocessing(resize=None, crop=None)
    rows = hub.Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", hub.Image())
    own = ImageFolder(str(tmp_path / "a"), plain, loader=Reader())
    arrays = np.stack([DEEP, np.roll(DEEP, 1, axis=0)])[:, None]
    sources = [tmp_path / "a", files, rows, [Image.open(file) for file in files]]
    found = [as_images(source, transform=plain) for source in sources]
    found += [folder_images(tmp_path / "a", resize=None, crop=None), path_images(files, resize=None, crop=None)]
    found += [Images(own), as_images(arrays), as_images(torch.from_numpy(arrays)), as_images(arrays.astype(">u2"))]
    found += [as_images(arrays.astype(np.int32), white=65535)]
    for images in found:
        for number in range(2):
            expected = np.roll(DEEP, number, axis=0) / 65535 * 255
            assert (images.picture(number) == expected.round()[..., None]).all()
    cut = Images(Subset(ImageFolder(str(tmp_path / "a"), plain), [1]))
    with pytest.raises(ImageError, match=r"mode 'I;16' has more than 8 bits.*loader=pure_nb.images.sources.Reader\(\)"):
        cut.tensor(0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (DEEP // 16, r"mode 'I;16' has values from 0 to 4095 of 65535, .* white=4095 or white=65535"),
        (DEEP.astype(np.int32), r"mode 'I' has values from 0 to 65535, and it is not known which is white"),
        (DEEP.astype(np.float32) / 256, r"mode 'F' has values from 0 to 255.996, and expected some from 0 to 1, white"),
        (DEEP.astype(np.float32) * -1, r"mode 'F' has values from -65535 to -?0, and expected"),
        (np.full((8, 8), np.nan, dtype=np.float32), "mode 'F' has values from nan to nan"),
    ],
)
def test_numbers_of_which_white_is_not_known(tmp_path: Path, values: Any, said: str) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(values).save(tmp_path / "a" / "a.tif")
    with pytest.raises(ImageError, match=said):
        folder_images(tmp_path / "a", resize=None, crop=None).tensor(0)
    high = float(values.max())
    if values.min() >= 0:
        for images in (
            folder_images(tmp_path / "a", resize=None, crop=None, white=2 * high),
            as_images([Image.fromarray(values)], white=2 * high, transform=preprocessing(resize=None, crop=None)),
        ):
            assert (images.picture(0) == (values / high * 127.5).round()[..., None]).all()
        with pytest.raises(ImageError, match="expected some from 0 to"):
            folder_images(tmp_path / "a", white=high / 2).tensor(0)


def test_a_black_picture_is_black() -> None:
    assert not np.asarray(Reader()(Image.fromarray(np.zeros((4, 4), np.uint16)))).any()


def test_arrays_and_whole_numbers() -> None:
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    expected = torch.from_numpy(colours.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    first = expected.numpy()
    sources: list[Any] = [
        *(colours, colours.transpose(0, 3, 1, 2), torch.from_numpy(colours).permute(0, 3, 1, 2), first),
        *((colours, [1, 2, 3, 4, 5]), list(colours), [*map(torch.from_numpy, first)], first[:, ::-1][:, ::-1]),
        [Image.fromarray(picture) for picture in colours],
        [(tensor.requires_grad_(), 1) for tensor in expected.clone()],
    ]
    for source in sources:
        pil = isinstance(source, list) and isinstance(source[0], Image.Image)
        images = as_images(source, transform=PLAIN) if pil else as_images(source)
        assert torch.allclose(torch.stack([images.tensor(i) for i in range(5)]), expected, atol=1e-7)
        assert not images.tensor(0).requires_grad
        assert (images.picture(3) == colours[3]).all()
        assert images.fingerprint
        normalised = as_images(colours, mean=MEAN, std=STD)
        wanted = (expected[2].numpy().transpose(1, 2, 0) - MEAN) / STD
        np.testing.assert_allclose(normalised.tensor(2).numpy().transpose(1, 2, 0), wanted, atol=1e-6)
        assert (normalised.picture(2) == colours[2]).all()
    bits = as_images(colours[..., :1] > 100)
    assert (bits.picture(0)[..., 0] == 255 * (colours[0, ..., 0] > 100)).all()
    grey = as_images([colours[0, ..., 0]])
    assert grey.tensor(0).shape == (1, 6, 7)
    with pytest.raises(
        ImageError, match=r"a tensor of torch.int64 has values from 0 to 255, and it is not known which"
    ):
        as_images(torch.arange(256).reshape(1, 1, 16, 16)).tensor(0)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"pixel_values": noise(1)[0], "labels": 1}, "got a dict with 'pixel_values', 'labels'; give the data set a"),
        ((3, noise(1)[0]), r"got \(int, \[3, 12, 12\]\)"),
        (((noise(1)[0], noise(1)[0]), 0), r"got \(\(\[3, 12, 12\], \[3, 12, 12\]\), int\)"),
        (noise(1)[0].to(torch.complex64), r"got \[3, 12, 12\] of complex numbers"),
        (noise(1)[0].numpy() * 1j, r"got \[3, 12, 12\] of complex numbers"),
        ((), r"got tuple"),
    ],
)
def test_items_that_are_something_else(item: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        Images([item]).tensor(0)  # type: ignore[arg-type]


# Folders as people have them.


def test_what_programs_leave_behind_is_no_picture(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "zoo", 6)
    expected = [folder_images(root).path(i) for i in range(6)]
    some = Path(expected[0]).read_bytes()
    for folder in (".ipynb_checkpoints", "__MACOSX", ".git", "class0/.ipynb_checkpoints", "class1/@eaDir", ".empty"):
        (root / folder).mkdir()
        if folder != ".empty":
            (root / folder / "000.png").write_bytes(some)
    (root / "class0" / "._000.png").write_bytes(b"\0\5\x16\7" + bytes(60))
    (root / "._class0").write_bytes(b"\0\5\x16\7")
    images = folder_images(root)
    assert [images.path(i) for i in range(len(images))] == expected
    assert images.classes == ("class0", "class1")
    files = loose_pictures(tmp_path / "loose", 2)
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "loose" / name).mkdir()
        (tmp_path / "loose" / name / "a.png").write_bytes(some)
    assert [folder_images(tmp_path / "loose").path(i) for i in range(2)] == list(map(str, files))


def test_folders_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    for name in ("b/x", "b/x y", "b", "a/z", "a/x/y", "10", "9"):
        loose_pictures(root / name, 2)
    dataset = ImageFolder(str(root))
    images = folder_images(root)
    assert [images.path(i) for i in range(len(images))] == [path for path, _ in dataset.samples]
    assert (images.targets.tolist(), list(images.classes)) == (dataset.targets, dataset.classes)  # type: ignore[union-attr]
    (root / "c").mkdir()
    with pytest.raises(ImageError, match=r"such files without classes \(none is in c\)"):
        folder_images(root)


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "top" / "zoo", 6, classes=3)
    expected = [folder_images(root).path(i) for i in range(6)]
    link(root / "class0" / "again", root / "class0")
    link(root / "class0" / "up", root)
    link(root / "class1" / "higher", tmp_path / "top")
    link(root / "all", root)
    link(root / "above", tmp_path)
    images = folder_images(root)
    assert [images.path(i) for i in range(len(images))] == expected
    assert images.classes == ("class0", "class1", "class2")
    # Elsewhere they may lead, and each folder counts once within a class.
    loose_pictures(tmp_path / "elsewhere", 2)
    link(root / "class2" / "more", tmp_path / "elsewhere")
    link(root / "class2" / "more too", tmp_path / "elsewhere")
    link(tmp_path / "elsewhere" / "back", root / "class2")
    link(root / "class3", tmp_path / "elsewhere")
    assert np.bincount(folder_images(root).targets).tolist() == [2, 2, 4, 4]  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode here")
def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "zoo", 4)
    odd = os.fsdecode(os.fsencode(root) + b"/caf\xe9")
    os.rename(root / "class0", odd)
    os.rename(os.path.join(odd, "000.png"), os.fsdecode(os.fsencode(odd) + b"/\xff.png"))
    images = folder_images(root, resize=None, crop=None)
    first = images.fingerprint
    places = [images.path(i) for i in range(4)]
    assert all(os.path.exists(place) for place in places)
    assert len({images.picture(i).tobytes() for i in range(4)}) == 4
    for text in (*images.classes, images.label(0), *class_labels(images, 2)[1], folder_images(odd).name):
        text.encode()
    assert "caf" in images.label(0)
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\n".join(os.fsencode(place) for place in places))
    listed = path_images(listing, resize=None, crop=None)
    assert [listed.path(i) for i in range(4)] == places
    assert torch.equal(listed.tensor(3), images.tensor(3))
    os.utime(places[1], ns=(1, 1))
    assert folder_images(root, resize=None, crop=None).fingerprint != first
    Path(places[1]).write_bytes(b"no picture")
    with pytest.raises(ImageError, match="caf") as caught:
        images.tensor(1)
    str(caught.value).encode()


# Normalised tensors, and how they are shown.


def test_the_normalisation_of_tensors_is_undone_where_it_is_known() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)
    tensors = torch.from_numpy((pictures / 255 - MEAN) / STD).permute(0, 3, 1, 2).float()
    for source in (tensors, (tensors, [0, 1, 2, 3]), tensors.numpy(), Items(tensors), Images(Items(tensors))):
        images = as_images(source, mean=MEAN, std=np.array(STD))
        assert torch.equal(images.tensor(1), tensors[1])
        assert all((images.picture(i) == pictures[i]).all() for i in range(4))
        with pytest.warns(
            StudyWarning, match=r"numbers, here from -\d.* to \d.*Give the mean and std .*Study.from_model"
        ):
            as_images(source).picture(0)
        assert as_images(source).fingerprint != images.fingerprint
        assert as_images(source, mean=MEAN, std=(0.5,) * 3).fingerprint != images.fingerprint
    bytes_as_floats = as_images(tensors * 0 + torch.from_numpy(pictures).permute(0, 3, 1, 2), mean=0, std=1 / 255)
    assert (bytes_as_floats.picture(2) == pictures[2]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_images(torch.from_numpy(pictures / 255).permute(0, 3, 1, 2)).picture(0)


@pytest.mark.parametrize(
    "how", [{"mean": MEAN}, {"std": STD}, {"mean": MEAN, "std": (0.1,)}, {"mean": MEAN, "std": (0, 1, 1)}]
)
def test_normalisations_that_are_none(tmp_path: Path, how: dict[str, Any]) -> None:
    for source in (noise(2), Items(noise(2)), Images(Items(noise(2)))):
        with pytest.raises(ImageError, match="mean and a std"):
            as_images(source, **how)
    with pytest.raises(ImageError, match="a mean and std of 2 numbers can't be those of 3 channels"):
        as_images(noise(2), mean=(0, 0), std=(1, 1)).picture(0)


def test_pictures_are_normalised_as_asked(tmp_path: Path) -> None:
    (file, *_) = loose_pictures(tmp_path)
    for images in (as_images([file], mean=(0.5,) * 3, std=(0.25,) * 3), as_images(tmp_path, mean=(0.5,), std=(0.25,))):
        assert torch.equal(images.tensor(0), preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)(Image.open(file)))
    shown = as_images([file], transform=lambda picture: PLAIN(picture) * 4 - 2, mean=(0.5,), std=(0.25,))
    assert (shown.picture(0) == pixels_of(file)).all()
    with pytest.raises(ImageError, match="a mean and a std come together"):
        as_images(tmp_path, mean=(0.5,))


def test_where_a_normalisation_is_found() -> None:
    class Other:
        """As albumentations has it."""

        def __init__(self, *steps: Any) -> None:
            self.transforms = list(steps)

    step = transforms.Normalize(torch.tensor([0.5, 0.25]), np.array([2.0, 1.0]))
    for transform in (step, Other(step), torch.nn.Sequential(torch.nn.Identity(), step), Other(Other(), Other(step))):
        items: Any = Items(noise(2))
        items.transform = transform
        assert Images(items).normalisation == ((0.5, 0.25), (2.0, 1.0))


# Grey pictures, and photographs that lie on their side.


def test_grey_networks(tmp_path: Path) -> None:
    files = loose_pictures(tmp_path)
    images = folder_images(tmp_path, resize=None, crop=None, grey=True, mean=[0.5], std=[0.25])
    grey = np.asarray(Image.open(files[0]).convert("L"))
    assert images.tensor(0).shape == (1, 16, 16)
    np.testing.assert_allclose(images.tensor(0)[0].numpy(), (grey / 255 - 0.5) / 0.25, atol=1e-6)
    assert (images.picture(0) == grey[..., None]).all()
    with pytest.raises(ImageError, match=r"mean: expected one number, since the pictures are grey, got \(0.485"):
        folder_images(tmp_path, grey=True)


def test_photographs_are_turned_when_asked(tmp_path: Path) -> None:
    """EXIF's eight ways, against the turns that its standard describes."""
    upright = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    deep = np.random.default_rng(0).integers(0, 65536, (4, 6)).astype(np.uint16)
    turns: list[Callable[[Any], Any]] = [
        *(lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1, ::-1], lambda x: x[::-1]),
        *(lambda x: np.swapaxes(x, 0, 1), lambda x: np.rot90(x, -1)),
        *(lambda x: np.swapaxes(x[::-1, ::-1], 0, 1), lambda x: np.rot90(x, 1)),
    ]
    plain = preprocessing(resize=None, crop=None)
    for number, turn in enumerate(turns, start=1):
        exif = Image.Exif()
        exif[274] = number
        for values, name in ((upright, "a.png"), (deep, "b.png")):
            Image.fromarray(values).save(tmp_path / name, exif=exif)
            lies = as_images([tmp_path / name], transform=plain)
            stands = as_images([tmp_path / name], transform=plain, turned=True)
            assert (stands.picture(0) == turn(lies.picture(0))).all()
            assert lies.fingerprint != stands.fingerprint
        assert (as_images([tmp_path / "a.png"], transform=plain).picture(0) == upright).all()
        Image.fromarray(deep).save(tmp_path / "c.tif", exif=exif)  # which Pillow turns by itself
        for turned in (False, True):
            found = as_images([tmp_path / "c.tif"], transform=plain, turned=turned).picture(0)
            assert (found[..., 0] == turn((deep / 65535 * 255).round())).all()
    with pytest.raises(ImageError, match="turned=True"):
        as_images(noise(2), turned=True)


def test_the_fingerprint_covers_how_pictures_are_read(tmp_path: Path) -> None:
    """Also where none of the sixteen that are looked at is read otherwise."""
    root = picture_folder(tmp_path / "zoo", 4)
    some: list[Images] = [folder_images(root, **how) for how in ({}, {"turned": True}, {"white": 4095.0})]
    some += [Images(Subset(images.dataset, [0, 1])) for images in some]
    some += [folder_images(root, grey=True, mean=[0.5], std=[0.5]), as_images(noise(2)), as_images(noise(2), white=3)]
    pictures = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(40)]
    some.append(as_images(pictures))
    pictures[1] = pictures[2]  # none of the sixteen
    some.append(as_images(pictures))
    assert len({images.fingerprint for images in some}) == len(some)
    assert folder_images(root, turned=True).fingerprint == some[1].fingerprint


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"resize": 0}, "resize: expected a whole number of pixels, 1 or more, or to be left out, got 0"),
        ({"crop": "x"}, "crop: expected .* got 'x'"),
        ({"crop": 2.5}, "crop: expected .* got 2.5"),
        ({"mean": [0.5, 0.5]}, r"mean: expected a number for all colours or one for each, got \[0.5, 0.5\]"),
        ({"grey": True}, "mean: expected one number, since the pictures are grey"),
        ({"std": [0.2, 0.2, 0]}, "std: pictures are divided by it, so it must be above 0"),
        ({"std": "x"}, "std: expected a number for all colours"),
    ],
)
def test_wrong_preprocessing_is_refused_at_once(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ImageError, match=said):
        preprocessing(**how)
