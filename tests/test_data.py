"""Images: any data set, its fingerprint, its pictures, and files that can't be read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import Items, noise, picture_folder
from torch.utils.data import TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pure_nb.data import ImageError, Images, batches, class_labels, folder_images, glyph_images
from pure_nb.glyphs import MEAN, STD, GlyphObjects, GlyphScenes, draw_scene

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
    images = Images(TensorDataset(noise(3)), "tensors")
    assert torch.equal(images.tensor(1), noise(3)[1])
    assert images.label(1) == ""
    assert images.path(1) == "item 1 of tensors"
    assert images.picture(1).dtype == np.uint8
    assert images.scenes is None


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
    assert isinstance(images.scenes, GlyphScenes)
    assert (images.picture(3) == draw_scene(3, 2).image).all()
    assert images.label(3) == ""
    assert Images(GlyphObjects(1)).scenes is not None


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
    touched = now()
    assert touched != first
    file.rename(root / "class0" / "zzz.png")
    renamed = now()
    assert renamed not in (first, touched)
    (root / "class1" / "001.png").unlink()
    assert now() not in (first, touched, renamed)


def test_fingerprint_of_a_folder_moves_with_it(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "a", 4)
    first = folder_images(root).fingerprint
    root.rename(tmp_path / "b")
    assert folder_images(tmp_path / "b").fingerprint == first


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(workers: int) -> None:
    images = Images(Items(noise(9), {4: OSError("gone")}))
    found = list(batches(images, [8, 3, 4, 0, 5], batch_size=2, workers=workers))
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
    with pytest.raises(ImageError, match="got Image; give the data set a transform"):
        Images(ImageFolder(str(picture_folder(tmp_path, 1)))).tensor(0)


def test_empty() -> None:
    with pytest.raises(ImageError, match="the data set 'none' is empty; a study needs at least one image"):
        Images(Items([]), "none")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"there is no folder .*nowhere'; name one that holds a subfolder of pictures"):
        folder_images(tmp_path / "nowhere")


@pytest.mark.parametrize("inside", [None, "class0", "loose.png"])
def test_a_folder_without_pictures(tmp_path: Path, inside: str | None) -> None:
    if inside == "class0":
        (tmp_path / inside).mkdir()
    elif inside:
        Image.new("RGB", (4, 4)).save(tmp_path / inside)
    with pytest.raises(ImageError, match="holds no pictures: expected a subfolder for each class"):
        folder_images(tmp_path)
