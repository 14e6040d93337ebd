"""The network in a page: it computes what torch computes, and is played with a mouse, keys and fingers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built import PHONE, Visit, served
from numpy.typing import NDArray

from pure_nb import Study
from pure_nb.errors import StudyError
from pure_nb.glyphs.scenes import draw_scene, normalise
from pure_nb.images.sources import as_images
from pure_nb.network.layers import activations
from pure_nb.reasons.parts import Parts
from pure_nb.show.playground import playground

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A network</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width"></head>
<body><main><h1>A network</h1>{}</main></body></html>"""

RUN = """pixels => {
    const {net, told} = document.querySelector("figure.playground").playground;
    const found = net.forward(pixels);
    const circuits = Object.keys(told.neurons).map(one => net.circuit(found, Number(one)));
    const parts = Object.values(told.neurons).map((one, at) => net.part(circuits[at], one));
    return {...Object.fromEntries(["lower", "top"].map(one => [one, Array.from(found[one].x)])),
            logits: found.logits, circuits, parts, channels: Object.keys(told.neurons).map(Number)};
}"""


@pytest.fixture(scope="module")
def url(glyph_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page of a book with the playground."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PURE_NB_BOOK", str(folder))
        shown = playground(glyph_study, 22, caption="A <scene>.")
    (folder / "book").mkdir()
    (folder / "book/page.html").write_text(PAGE.format(shown.data), encoding="utf-8")
    with served(folder) as address:
        yield f"{address}/book/page.html"


def started(visit: Visit) -> Any:
    visit.page.locator(".playground-start").click()
    visit.page.locator(".playground-stage").wait_for()
    return visit.page


def with_alpha(pixels: NDArray[np.uint8]) -> list[int]:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]).ravel().tolist()


def test_it_computes_what_torch_computes(context: Any, url: str, glyph_study: Study) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    pictures = [draw_scene(7).image, draw_scene(40).image, noise]
    images = as_images([normalise(one) for one in pictures])
    with torch.no_grad():
        expected = activations(
            glyph_study.model, torch.stack([images.tensor(n) for n in range(3)]), ["layer3", "layer4", "fc"]
        )
    parts = Parts(glyph_study)
    with Visit(context, url) as visit:
        page = started(visit)
        for number, pixels in enumerate(pictures):
            found = page.evaluate(RUN, with_alpha(pixels))
            for name, layer in (("lower", "layer3"), ("top", "layer4"), ("logits", "fc")):
                assert np.abs(np.array(found[name]) - expected[layer][number].numpy().ravel()).max() < 1e-4
            channels = np.array(found["channels"])
            circuits = glyph_study.run_circuits(channels, np.full_like(channels, number), images)
            assert np.abs(np.array(found["circuits"]) - circuits).max() < 1e-4
            fits = [parts.fit(channel, circuits[[at]]) for at, channel in enumerate(channels.tolist())]
            sure = [abs(one.distance[0] - one.limit[0]) > 1e-4 for one in fits]  # or rounding decides
            assert [own for own, told in zip(found["parts"], sure) if told] == [
                int(one.part[0]) for one, told in zip(fits, sure) if told
            ]


def test_it_is_played_by_mouse_and_keys(context: Any, url: str) -> None:
    with Visit(context, url) as visit:
        assert not any("network.js" in one for one in visit.asked)  # only who starts it waits for it
        page = started(visit)
        said = page.locator(".playground-words").inner_text
        first = said()
        assert first.startswith("Neuron 22: ")
        box = page.locator(".playground-scene").bounding_box()
        at = box["x"] + box["width"] / 4, box["y"] + box["height"] / 4
        page.mouse.move(*at)
        page.mouse.down()
        page.mouse.move(at[0] + 60, at[1] + 60, steps=3)
        page.mouse.up()
        own = "() => document.querySelector('figure.playground').playground.scene.objects[0]"
        moved = page.evaluate(own)
        assert moved["x"] == pytest.approx(24 + 60 * 96 / box["width"], abs=1)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("r")
        page.keyboard.press("+")
        now = page.evaluate(own)
        assert now["x"] == pytest.approx(moved["x"] - 2)
        assert now["turn"] == 10
        assert now["size"] == pytest.approx(0.84)
        page.get_by_role("button", name="remove").click()
        page.locator("select[aria-label='kind of object']").select_option(label="anchor")
        page.get_by_role("button", name="add").click()
        page.wait_for_function("said => document.querySelector('.playground-words').textContent !== said", arg=first)
        assert page.locator(".playground-objects button").all_inner_texts()[-1] == "anchor"
        assert "without any" in page.locator(".playground-game").inner_text()
        page.locator("select[aria-label='neuron']").select_option("3")
        page.locator(".playground-words").filter(has_text="Neuron 3: ").wait_for()


def test_it_fits_a_phone(browser: Any, url: str) -> None:
    context = browser.new_context(viewport=PHONE)
    with Visit(context, url) as visit:
        page = started(visit)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
        heights = page.evaluate(
            "() => [...document.querySelectorAll('.playground :is(button, select)')].map(e => e.offsetHeight)"
        )
        assert min(heights) >= 44
    context.close()


def test_in_jupyter_all_is_in_the_output(
    glyph_study: Study, monkeypatch: pytest.MonkeyPatch, context: Any, tmp_path: Path
) -> None:
    monkeypatch.delenv("PURE_NB_BOOK", raising=False)
    (tmp_path / "page.html").write_text(PAGE.format(playground(glyph_study).data), encoding="utf-8")
    with Visit(context, (tmp_path / "page.html").as_uri()) as visit:
        assert started(visit).locator(".playground-words").inner_text().startswith("Neuron 22: ")


def test_another_network_is_refused(glyph_study: Study) -> None:
    with pytest.raises(StudyError, match="only circuits of 'layer4' through 'layer3' by gradient"):
        playground(glyph_study.replace(start="peak"))
    with pytest.raises(StudyError, match="'glyphs' studies Sequential"):
        playground(glyph_study.replace(model=torch.nn.Sequential(glyph_study.model)))
