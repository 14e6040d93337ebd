"""The glyph world: the same everywhere, and true about itself."""

from __future__ import annotations

import hashlib
import os
import sys
from subprocess import run

import numpy as np
import pytest
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Contour
from matplotlib.textpath import TextPath
from small import shared
from torch.utils.data import DataLoader

from pure_nb.errors import ArgumentError
from pure_nb.glyphs import (
    CELL,
    CLASSES,
    SIZE,
    GlyphObjects,
    GlyphScenes,
    Scene,
    SceneObject,
    colour_name,
    draw_scene,
    font,
)
from pure_nb.glyphs import scenes as glyphs

PINNED = "93ea700ad6bde8c4e42baabe7be42d47829f60bf2d3c88f812a2334537a1d2ae"
"""SHA-256 of the pixels of scenes 0 to 9 of seed 0, split val: the shipped weights and the book rest on it."""


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(index) for index in range(300)]


def digest(count: int, **which: object) -> str:
    found = hashlib.sha256()
    for index in range(count):
        found.update(draw_scene(index, **which).image.tobytes())  # type: ignore[arg-type]
    return found.hexdigest()


def test_pixels_are_the_pinned_ones() -> None:
    assert digest(10) == PINNED


@pytest.mark.slow
def test_pixels_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib\nfrom pure_nb.glyphs import draw_scene\nd = hashlib.sha256()\n"
        "for i in reversed(range(10)): draw_scene(i + 5)\n"  # other scenes first: no state may leak
        "for i in range(10): d.update(draw_scene(i).image.tobytes())\nprint(d.hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == digest(10)


def test_everything_of_a_scene_is_the_same_twice() -> None:
    for index in range(5):
        first, second = draw_scene(index, 3, "train"), draw_scene(index, 3, "train")
        assert first.image.tobytes() == second.image.tobytes()
        assert first.ground == second.ground
        for a, b in zip(first.objects, second.objects, strict=True):
            assert (a.label, a.box, a.colour) == (b.label, b.box, b.colour)
            assert (a.mask == b.mask).all()


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "train"}])
def test_splits_and_seeds_differ(other: dict[str, object]) -> None:
    for index in range(20):
        assert (draw_scene(index).image != draw_scene(index, **other).image).any()  # type: ignore[arg-type]


def test_scenes_differ(scenes: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_classes_are_distinct() -> None:
    assert len(CLASSES) == 48
    for entries in zip(*[(c.name, c.character, c.synset) for c in CLASSES]):
        assert len(set(entries)) == 48


def test_glyphs_are_distinct_and_not_empty() -> None:
    drawn = [font.glyph(c.character, 32) for c in CLASSES]
    assert len({picture.tobytes() for picture in drawn}) == 48
    for picture in drawn:
        assert picture.shape == (32, 32)
        assert 0 <= picture.min() <= picture.max() <= 1
        assert 0.05 < picture.mean() < 0.95
        # The ink is centred, and its longer side spans the square.
        rows, columns = picture.any(axis=1), picture.any(axis=0)
        inked = [np.flatnonzero(line)[[0, -1]] for line in (rows, columns)]
        assert max(last - first for first, last in inked) >= 30
        assert all(abs(first + last - 31) <= 1 for first, last in inked)


@pytest.mark.parametrize("character", [c.character for c in CLASSES[::8]] + ["@", "i", "8"])
def test_a_glyph_covers_what_matplotlib_says_is_inside_its_outline(character: str) -> None:
    """To the bit, with its extent and its test of points."""
    outline = TextPath((0, 0), character, size=100, prop=FontProperties(family="DejaVu Sans"))
    box = outline.get_extents()
    steps = ((np.arange(96) + 0.5) / 96 - 0.5) * max(box.width, box.height)
    grid = np.stack(np.meshgrid((box.x0 + box.x1) / 2 + steps, (box.y0 + box.y1) / 2 - steps), axis=-1)
    winding = np.zeros((96, 96), dtype=int)
    for contour in outline.to_polygons(closed_only=True):
        (ax, ay), (bx, by) = contour.T, np.roll(contour, -1, axis=0).T
        inside = Contour(contour).contains_points(grid.reshape(-1, 2)).reshape(96, 96)
        winding += int(np.sign((ax * by - bx * ay).sum())) * inside
    expected = (winding != 0).reshape(48, 2, 48, 2).mean(axis=(1, 3), dtype=np.float32)
    np.testing.assert_array_equal(font.glyph(character, 48), expected)


def test_missing_glyph() -> None:
    with pytest.raises(ArgumentError, match=r"has no glyph for '漢' \(U\+6F22\); choose another"):
        font.glyph("漢")


@pytest.mark.slow
def test_synsets_are_wordnets() -> None:
    nltk = pytest.importorskip("nltk")
    nltk.data.path.insert(0, str(shared("nltk_data")))
    from nltk.corpus import wordnet

    for glyph in CLASSES:
        synset = wordnet.synset(glyph.synset)
        assert synset.pos() == "n"
        names = {name.lower() for name in synset.lemma_names()}
        aliases = {"shamrock": "hop_clover", "rook": "castle", "snowman": "snowman"}
        assert names & {glyph.name, aliases.get(glyph.name, glyph.name)}, (glyph, names)


def test_objects_are_one_to_four_and_distinct(scenes: list[Scene]) -> None:
    counts = [len(scene.objects) for scene in scenes]
    assert set(counts) == {1, 2, 3, 4}
    assert min(np.bincount(counts)[1:]) > 300 / 4 / 2
    for scene in scenes:
        assert len({o.label for o in scene.objects}) == len(scene.objects)
    assert {o.label for scene in scenes for o in scene.objects} == set(range(48))
    assert {scene.ground for scene in scenes} == set(glyphs.GROUNDS)


def test_boxes_bound_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8
        for o in scene.objects:
            assert o.mask.dtype == bool
            assert o.mask.any()
            left, top, right, bottom = o.box
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            assert max(right - left, bottom - top) <= CELL
            # Nothing outside of the box, and the outermost lines of the box are touched.
            assert o.mask.sum() == o.mask[top:bottom, left:right].sum()
            inside = o.mask[top:bottom, left:right]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_masks_are_disjoint_and_show_the_colour(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert np.sum([o.mask for o in scene.objects], axis=0).max() == 1
        for o in scene.objects:
            seen = np.median(scene.image[o.mask].astype(int), axis=0)
            assert np.abs(seen - o.colour).max() < 80, (scene.caption, o.colour, seen)


def test_objects_stand_out_from_the_ground(scenes: list[Scene]) -> None:
    luma = np.array([0.299, 0.587, 0.114])
    for scene in scenes[:100]:
        ground = ~np.any([o.mask for o in scene.objects], axis=0)
        level = np.median(scene.image[ground] @ luma)
        for o in scene.objects:
            assert abs(np.array(o.colour) @ luma - level) > 20, scene.caption


def test_captions_mention_every_object(scenes: list[Scene]) -> None:
    for scene in scenes:
        for o in scene.objects:
            assert f"{colour_name(o.colour)} {o.name}" in scene.caption
        assert scene.caption.endswith(f" on a {scene.ground} ground")
        assert scene.caption.count(" and ") == (len(scene.objects) > 1)
        assert scene.caption.startswith(("a ", "an "))


def test_caption_reads_like_english() -> None:
    mask = np.ones((2, 2), dtype=bool)
    objects = tuple(
        SceneObject(label, (0, 0, 1, 1), colour, mask) for label, colour in [(46, (255, 0, 0)), (30, (255, 128, 0))]
    )
    assert Scene(np.zeros((2, 2, 3), np.uint8), objects, "dots").caption == (
        "a red cat and an orange anchor on a dots ground"
    )
    assert Scene(np.zeros((2, 2, 3), np.uint8), objects[:1], "plain").caption == "a red cat on a plain ground"


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((255, 0, 0), "red"),
        ((255, 0, 20), "red"),
        ((255, 128, 0), "orange"),
        ((255, 255, 0), "yellow"),
        ((0, 255, 0), "green"),
        ((0, 255, 255), "cyan"),
        ((0, 0, 255), "blue"),
        ((130, 0, 255), "purple"),
        ((255, 0, 180), "pink"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
        ((0, 0, 0), "black"),
    ],
)
def test_colour_names(colour: tuple[int, int, int], name: str) -> None:
    assert colour_name(colour) == name


def test_object_at() -> None:
    mask = np.ones((SIZE, SIZE), dtype=bool)
    boxes = [(0, 0, 10, 10), (50, 50, 90, 60)]
    scene = Scene(np.zeros((SIZE, SIZE, 3), np.uint8), tuple(SceneObject(0, box, (0, 0, 0), mask) for box in boxes), "")
    assert scene.object_at(5, 5) == 0
    assert scene.object_at(70, 55) == 1  # inside
    assert scene.object_at(88, 90) == 1  # below: 30 away, against 110
    assert scene.object_at(30, 12) == 0  # 20 to the left edge of one, 43 to the other
    assert scene.object_at(12, 95) == 1  # 52 away, against 85


def test_object_at_finds_every_object(scenes: list[Scene]) -> None:
    for scene in scenes:
        for number, o in enumerate(scene.objects):
            others = np.any([p.mask for p in scene.objects if p is not o] or [np.zeros_like(o.mask)], axis=0)
            left, top, right, bottom = o.box
            if others[top:bottom, left:right].any() or (len(scene.objects) > 1 and _overlaps(o, scene)):
                continue
            assert scene.object_at((left + right) / 2, (top + bottom) / 2) == number


def _overlaps(o: SceneObject, scene: Scene) -> bool:
    return any(
        p is not o and p.box[0] < o.box[2] and o.box[0] < p.box[2] and p.box[1] < o.box[3] and o.box[1] < p.box[3]
        for p in scene.objects
    )


def test_scenes_as_data_set() -> None:
    dataset = GlyphScenes(7)
    assert len(dataset) == 7
    for index in range(7):
        image, present = dataset[index]
        scene = draw_scene(index)
        assert image.dtype == torch.float32
        assert tuple(image.shape) == (3, SIZE, SIZE)
        assert present.nonzero().ravel().tolist() == sorted(o.label for o in scene.objects)
        assert (dataset.picture(index) == scene.image).all()


def test_normalise() -> None:
    pixels = draw_scene(0).image
    expected = (pixels.astype(np.float64) / 255 - glyphs.MEAN) / glyphs.STD
    np.testing.assert_allclose(glyphs.normalise(pixels).numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_transform() -> None:
    dataset = GlyphScenes(2, transform=lambda pixels: torch.tensor(float(pixels.sum())))
    assert dataset[1][0] == draw_scene(1).image.sum()


def test_single_objects() -> None:
    dataset = GlyphObjects(2)
    assert len(dataset) == 96
    for index in range(96):
        scene = dataset.scene(index)
        assert [o.label for o in scene.objects] == [index // 2]
    image, label = dataset[5]
    assert label == 2
    assert torch.equal(image, glyphs.normalise(dataset.scene(5).image))
    assert (dataset.scene(0).image != dataset.scene(1).image).any()
    assert (GlyphObjects(2, "train").scene(0).image != dataset.scene(0).image).any()


def test_labels_can_be_chosen() -> None:
    scene = draw_scene(3, labels=[5, 5, 7])
    assert [o.label for o in scene.objects] == [5, 5, 7]


def test_data_loader_with_workers() -> None:
    loaded = list(DataLoader(GlyphScenes(6), batch_size=3, num_workers=2))
    assert len(loaded) == 2
    images = torch.cat([images for images, _ in loaded])
    assert torch.equal(images, torch.stack([GlyphScenes(6)[i][0] for i in range(6)]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: draw_scene(-1), ArgumentError, "counts from 0, got -1"),
        (lambda: draw_scene(0, labels=[]), ArgumentError, r"one to four numbers in 0\.\.47, got \[\]"),
        (lambda: draw_scene(0, labels=[1, 2, 3, 4, 5]), ArgumentError, "one to four"),
        (lambda: draw_scene(0, labels=[48]), ArgumentError, r"got \[48\]"),
        (lambda: draw_scene(0, labels=[-1]), ArgumentError, r"got \[-1\]"),
        (lambda: GlyphScenes(0), ArgumentError, "at least one, got length=0"),
        (lambda: GlyphScenes(3).scene(3), IndexError, "scene 3 of a data set of 3"),
        (lambda: GlyphScenes(3)[-1], IndexError, "scene -1"),
        (lambda: GlyphObjects(1).scene(48), IndexError, "picture 48 of a data set of 48"),
    ],
)
def test_errors(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]
