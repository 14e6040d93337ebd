"""Pictures with boxes as COCO has them: what is under a place of the network's input, and under a neuron's maxima."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from pure_nb import Study
from pure_nb.benchmark.tasks import objects_task
from pure_nb.errors import ImageError
from pure_nb.images.boxes import boxed_images

SIDE = 48
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}


def squares(folder: Path, count: int = 30) -> tuple[Path, list[dict[str, tuple[int, int]]]]:
    """Dark pictures with a red and a green square each, their boxes, and the corner of each square."""
    generator, corners = np.random.default_rng(0), []
    text: dict[str, Any] = {"images": [], "annotations": []}
    text["categories"] = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}]
    for number in range(count):
        picture = np.full((SIDE, 60, 3), 20, dtype=np.uint8)
        left, right = (int(own) for own in generator.integers(8, 18, 2))
        own = {"red": (left, int(generator.integers(0, 38))), "green": (right + 22, int(generator.integers(0, 38)))}
        text["images"].append({"id": number + 100, "file_name": f"{number}.png", "width": 60, "height": SIDE})
        for category, (name, (x, y)) in zip((7, 3), own.items()):
            strength = 0.5 + 0.5 * generator.random()
            picture[y : y + 10, x : x + 10] = np.array(COLOURS[name]) * strength
            box = {"image_id": number + 100, "category_id": category, "bbox": [x, y, 10, 10]}
            text["annotations"].append(box)
        Image.fromarray(picture).save(folder / f"{number}.png")
        corners.append(own)
    (folder / "boxes.json").write_text(json.dumps(text))
    return folder / "boxes.json", corners


def red_or_green() -> nn.Sequential:
    """A channel for red and green alike, and one for green."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 4, stride=4), nn.ReLU())
    nn.init.eye_(model[0].weight[:, :, 0, 0])
    nn.init.zeros_(model[0].bias)
    for weight, colours in zip(model[2].weight.data, ((1.0, 1.0, 0.0), (0.0, 1.0, 0.0))):
        weight.copy_(weight.new_tensor(colours)[:, None, None].expand(3, 4, 4))
    nn.init.constant_(model[2].bias, -1.0)
    return model.eval()


@pytest.mark.parametrize(("resize", "crop"), [(None, None), (None, 40), (None, 51), (None, 63), (96, 80), (24, None)])
def test_the_box_around_a_place(tmp_path: Path, resize: int | None, crop: int | None) -> None:
    """By hand: of each square its middle, where it is in what the network sees."""
    boxes, corners = squares(tmp_path, 6)
    images = boxed_images(tmp_path, boxes, resize=resize, crop=crop)
    assert images.truth is not None
    assert images.truth.classes == ("red", "green")
    height, width = images.example.shape[1:]
    scale = (resize or SIDE) / SIDE
    for index, own in enumerate(corners):
        picture = images.picture(index)
        for label, name in enumerate(images.truth.classes):
            x = (own[name][0] + 5) * scale - (60 * scale - width) / 2
            y = (own[name][1] + 5) * scale - (SIDE * scale - height) / 2
            if 2 <= x < width - 2 and 2 <= y < height - 2:
                assert picture[int(y), int(x)].argmax() == label  # that is where it is
                assert images.truth.object_at(index, x, y) == label
        for y, x in np.ndindex(*picture.shape[:2]) if resize is None else ():
            expected = picture[y, x].argmax() if picture[y, x].max() > 30 else -1
            assert images.truth.object_at(index, x + 0.5, y + 0.5) == expected


def test_objects_under_the_maxima(tmp_path: Path) -> None:
    boxes, _ = squares(tmp_path)
    images = boxed_images(tmp_path, boxes, resize=None, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    study = Study.from_model(red_or_green(), images, "2", "0", n_references=12, n_clusters=2, progress=False)
    assert study.objects is not None
    for channel, own in enumerate(study.objects):
        for label, sample, position in zip(own, study.references.sample[channel], study.references.position[channel]):
            y, x = np.divmod(position, 15)
            patch = images.picture(sample)[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].sum(axis=(0, 1))
            assert label == patch.argmax()
    assert set(study.objects[0].tolist()) == {0, 1}
    assert set(study.objects[1].tolist()) == {1}
    assert study.neuron(1).meanings() == "green 100%"
    assert objects_task(study).truth.shape == (2, 12)


def test_the_smallest_box_counts(tmp_path: Path) -> None:
    boxes, corners = squares(tmp_path, 1)
    text = json.loads(boxes.read_text())
    text["categories"].append({"id": 9, "name": "scene"})
    text["annotations"].insert(0, {"image_id": 100, "category_id": 9, "bbox": [0, 0, 60, SIDE]})
    boxes.write_text(json.dumps(text))
    truth = boxed_images(tmp_path, boxes, resize=None, crop=None).truth
    assert truth is not None
    x, y = corners[0]["green"]
    assert [truth.object_at(0, *place) for place in ((x + 1, y + 1), (1, 1))] == [1, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.pop("categories"), "KeyError 'categories'"),
        (lambda text: text["annotations"][0].update(bbox=[1, 2]), "not enough values"),
        (lambda text: text["annotations"][0].update(image_id=5), "KeyError 5"),
        (lambda text: text["images"].clear() or text["annotations"].clear(), "is empty"),
    ],
)
def test_no_boxes(tmp_path: Path, change: Any, words: str) -> None:
    boxes, _ = squares(tmp_path, 1)
    text = json.loads(boxes.read_text())
    change(text)
    boxes.write_text(json.dumps(text))
    with pytest.raises(ImageError, match=words):
        boxed_images(tmp_path, boxes)
    with pytest.raises(ImageError, match="can't be read"):
        boxed_images(tmp_path, tmp_path / "none.json")


def test_other_boxes_are_other_images(tmp_path: Path) -> None:
    boxes, _ = squares(tmp_path, 2)
    before = boxed_images(tmp_path, boxes).fingerprint
    boxes.write_text(boxes.read_text().replace('"bbox": [', '"bbox": [1'))
    assert boxed_images(tmp_path, boxes).fingerprint != before
