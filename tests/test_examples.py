"""The examples in the docstrings of public names: each has one, and it runs as it stands."""

from __future__ import annotations

import doctest
import importlib
import json
import warnings
from types import FunctionType, ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import pure_nb
from pure_nb.benchmark import planted_task
from pure_nb.compute.sweep import sweep
from pure_nb.glyphs import draw_scene, glyph_images
from pure_nb.methods import TopReferences

FOLDERS = ("benchmark", "compute", "figures", "glyphs", "images", "judges", "methods", "network", "show")
DOORS: tuple[ModuleType, ...] = (pure_nb, *(importlib.import_module(f"pure_nb.{name}") for name in FOLDERS))
PUBLIC = {
    f"{door.__name__}.{name}": getattr(door, name)
    for door in DOORS
    for name in door.__all__
    if isinstance(getattr(door, name), (type, FunctionType))  # a constant is explained where it stands
}


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples find: a small study, a folder, and what other examples explain."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "street").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64)).save(folder / "street" / f"{number}.png")
    boxes = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(2)],
        "annotations": [{"image_id": number, "category_id": 1, "bbox": [0, 0, 32, 64]} for number in range(2)],
        "categories": [{"id": 1, "name": "car"}],
    }
    (folder / "street" / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    model, images = pure_nb.load_model("glyphnet"), glyph_images(40)
    how: dict[str, Any] = {"n_references": 6, "n_clusters": 2, "progress": False, "store": folder / "store"}
    study = pure_nb.Study.from_model(model, images, "layer4", "layer3", **how)
    known = {"np": np, "torch": torch, "plt": plt, "Image": Image, "nn": torch.nn, "Run": pure_nb.Run}
    known |= {"load_embedder": pure_nb.load_embedder, "planted_task": planted_task, "draw_scene": draw_scene}
    known |= {"sweep": sweep, "TopReferences": TopReferences}
    return {**known, "folder": folder, "model": model, "images": images, "study": study}


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name: str, around: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    thing: Any = PUBLIC[name]
    monkeypatch.chdir(around["folder"])
    monkeypatch.setenv("PURE_NB_STORE", str(around["folder"]))
    text = thing.__doc__ or ""
    assert ">>>" in text, "a public name has an example"
    assert "SKIP" not in text, "which runs"
    globs = {**around, name.rpartition(".")[2]: thing}
    found = doctest.DocTestParser().get_doctest(text, globs, name, None, None)
    said: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a study that is as small as this one
        doctest.DocTestRunner(optionflags=flags).run(found, out=said.append)
    plt.close("all")
    assert not said, "".join(said)


def test_a_wrong_example_is_found(around: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """It is not so.

        >>> 1 + 1
        3
        """

    monkeypatch.setitem(PUBLIC, "wrong", Wrong)
    with pytest.raises(AssertionError, match=r"Expected:\n +3\n +Got:\n +2"):
        test_example("wrong", around, monkeypatch)
