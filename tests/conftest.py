"""Networks and studies that many tests look at, each made once."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the arrays are tiny: threads would only wait for each other

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import shapes
import torch
from built import ARGS, DESK, NOT_BUILT, SITE
from hypothesis import settings
from small import CHANNELS, JUDGE, WORDS
from torch import nn

from pure_nb import write_atlas
from pure_nb.compute.store import Store
from pure_nb.glyphs import GlyphObjects, glyph_images
from pure_nb.loading import load_model
from pure_nb.methods import circuits
from pure_nb.methods.virtual import embed
from pure_nb.parameters import Parameters, Run
from pure_nb.study import Study

settings.register_profile("daily", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("daily")

WHOLE = {
    "atlas",
    "bench",
    "cli",
    "cluster",
    "cluster_steps",
    "contestants",
    "edition",
    "faults",
    "imports",
    "networks",
    "report",
}
"""Modules about the whole package: none of their tests is a unit test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the built book are skipped where it is not built."""
    built = (SITE / "index.html").is_file()
    for item in items:
        if item.path.stem.removeprefix("test_") in WHOLE:
            item.add_marker("slow")
        if not built and item.get_closest_marker("book"):
            item.add_marker(pytest.mark.skip(reason=NOT_BUILT))


@pytest.fixture(scope="session", autouse=True)
def in_short() -> Iterator[None]:
    """Studies without what takes long and is tested elsewhere.

    UMAP compiles for ten seconds in each process (test_virtual.py has it); there are 2400 pictures of single objects.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pure_nb.glyphs.scenes.GlyphObjects", partial(GlyphObjects, 4))
        for user in ("study", "show.facts", "show.map"):
            patch.setattr(f"pure_nb.{user}.embed", lambda vectors, seed: embed(vectors, "pca", seed=seed))
        yield


@pytest.fixture(autouse=True)
def alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Every test starts from one seed, and none touches the user's own results."""
    torch.manual_seed(0)
    monkeypatch.setenv("PURE_NB_STORE", str(tmp_path_factory.mktemp("results")))
    monkeypatch.delenv("PURE_NB_BOOK", raising=False)
    with shapes.unchecked() if request.node.get_closest_marker("unchecked") else nullcontext():
        yield
    if "matplotlib.pyplot" in __import__("sys").modules:
        __import__("matplotlib.pyplot").pyplot.close("all")


@pytest.fixture(scope="session")
def glyphnet() -> nn.Module:
    """The network that ships."""
    return load_model("glyphnet")


@pytest.fixture(scope="session")
def glyph_study(glyphnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The shipped network on 200 scenes, 20 references a neuron, each in two parts."""
    parameters = Parameters(target="layer4", lower="layer3", n_references=20, n_clusters=2)
    store = Store(tmp_path_factory.mktemp("study"))
    return Study("glyphs", glyphnet, glyph_images(200), parameters, store, Run(batch_size=50, progress=False))


@pytest.fixture(scope="session")
def seen(glyph_study: Study) -> Study:
    """The same with crops that take no time."""
    return glyph_study.replace(crop="activation")


@pytest.fixture(scope="session")
def map_site(seen: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of three neurons, whose parts are found by the names of colours."""
    folder = tmp_path_factory.mktemp("map") / "atlas"
    write_atlas(seen, folder, channels=CHANNELS, count=20, embedder=JUDGE, words=WORDS)
    return folder


def pytest_collection_finish() -> None:
    """What is imported stays: looking through it again and again for garbage took a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The channels of all pairs whose circuits are computed from now on."""
    found: list[int] = []
    propagate = circuits.propagate

    def counted(model: Any, images: Any, channel: Any, *rest: Any, **how: Any) -> Any:
        found.extend(channel.tolist())
        return propagate(model, images, channel, *rest, **how)

    monkeypatch.setattr(circuits, "propagate", counted)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, the only one while it is open (Playwright takes no second); a test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    path = pytest.importorskip("print_book").executable()
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        except api.Error as error:
            pytest.skip(f"no Chromium on PATH and none of Playwright's that starts: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A reader at a desk."""
    context = browser.new_context(viewport=DESK)
    yield context
    context.close()
