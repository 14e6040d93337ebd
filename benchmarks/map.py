"""The map of an atlas: what it takes on a disk, and how much script a frame takes while one pans and zooms.

    python benchmarks/map.py --folder ATLAS           # of an atlas that is there
    python benchmarks/map.py --parts 10240 --words 2000   # made up, of pictures of the glyph world

The script of a frame is that of its ``requestAnimationFrame`` and of the events since the last one, by the page's own
clock. Drawing is the GPU's, or where there is none SwiftShader's, in a process of its own. What comes once the map
stands still is told apart: the longest of it.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from pure_nb import Run
from pure_nb.compute.store import write_atomically
from pure_nb.glyphs import CLASSES
from pure_nb.glyphs.scenes import GlyphObjects
from pure_nb.images.data import MEAN, STD, Images
from pure_nb.judges.alike import Parts
from pure_nb.show import map as maps
from pure_nb.show.pages import STATIC
from pure_nb.show.sheets import KIND, as_file, bordered, columns, whole

COUNT = """window.spent = {frames: [], events: 0, rest: 0};
const timed = (act, take) => function (...given) {
    const start = performance.now();
    try { return act.apply(this, given); } finally { take(performance.now() - start); }
};
const [frame, later, listen] = [requestAnimationFrame, setTimeout, EventTarget.prototype.addEventListener];
window.requestAnimationFrame = (draw) => frame(timed(draw, (ms) => {
    spent.frames.push(ms + spent.events);
    spent.events = 0;
}));
window.setTimeout = (act, ...rest) => later(timed(act, (ms) => { spent.rest = Math.max(spent.rest, ms); }), ...rest);
EventTarget.prototype.addEventListener = function (kind, act, ...rest) {
    const moves = ['pointermove', 'wheel'].includes(kind);
    return listen.call(this, kind, moves ? timed(act, (ms) => { spent.events += ms; }) : act, ...rest);
};"""
"""Takes the time of each frame's script, the events before it with it, and of the longest timer."""

WITHOUT = """const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
    return kind.startsWith('webgl') ? null : get.call(this, kind, ...rest);
};"""


def made_up(folder: Path, count: int, words: int) -> None:
    """Write the map of a layer whose parts, five a neuron, are those of as many heaps as there are glyphs."""
    draw = np.random.default_rng(0)
    channel, part = np.divmod(np.arange(count), 5)
    glyph = draw.integers(len(CLASSES), size=count)
    vectors = draw.normal(size=(len(CLASSES), 1, 64)) + 0.5 * draw.normal(size=(len(CLASSES), 40, 64))
    crops = vectors[glyph.reshape(-1, 5)].reshape(-1, 200, 64) + 0.3 * draw.normal(size=(count // 5, 200, 64))
    seen = Parts.of(crops.astype(np.float32), np.tile(np.repeat(np.arange(5), 40), (count // 5, 1)))
    scenes = Images(GlyphObjects(4), "glyphs", MEAN, STD)
    pool = [bordered(scenes.picture(number)) for number in range(len(scenes))]
    wide, file = columns(len(pool)), f"images/all.{KIND}"
    write_atomically(folder / file, lambda temporary: temporary.write_bytes(as_file(pool, wide)))
    square = whole(scenes.picture(0).shape[0])

    def told_of(_: Path, own: int) -> dict[str, Any]:
        places = 4 * glyph[5 * own : 5 * own + 5] + own % 4
        return {"sheets": [(file, wide, -(-len(pool) // wide))], "cuts": [(0, int(at), *square) for at in places]}

    maps.told_of = told_of
    names = [f"word {number}" for number in range(words)]
    asked = SimpleNamespace(word_vectors=lambda _, own: draw.normal(size=(len(own), 64)).astype(np.float32))
    neurons = pd.DataFrame({"channel": np.unique(channel), "score": draw.random(count // 5)})
    study = SimpleNamespace(neurons=neurons, run=Run(progress=False), crops=asked, name="made up", unsteady="")
    made: Any = SimpleNamespace(
        study=study,
        count=100,
        embedder=SimpleNamespace(name="a judge"),
        vocabulary=names,
        label=lambda own, letter: CLASSES[glyph[5 * own + ord(letter) - 65]].name,
        classes=lambda own: [(CLASSES[glyph[5 * own]].name, 0.5)],
    )
    found = object.__new__(maps.Map)
    vars(found).update(made=made, channel=channel, part=part, size=np.full(count, 40), rank=part, seen=seen)
    heaps = 12 * draw.normal(size=(len(CLASSES), 2))[glyph]
    layouts = {name: (heaps + draw.normal(size=(count, 2))).astype(np.float32) for name in ("pictures", "circuits")}
    maps._write_data(found, folder, "// made up", layouts, sorted(one.name for one in CLASSES))
    from jinja2 import Environment, FileSystemLoader

    pages = Environment(loader=FileSystemLoader(STATIC / "atlas"), trim_blocks=True, lstrip_blocks=True)
    told = {"study": "made up", "p": SimpleNamespace(target="layer", lower="lower", n_references=100, rule="gradient")}
    told |= {"root": "", "said": "a judge", "layouts": list(layouts), "classes": [1], "parts": count, "home": ""}
    text = pages.get_template("map.html").render(**told, network="none", images=0, source="glyphs")
    (folder / "map.html").write_text(text, encoding="utf-8")
    for name in ("map.js", "parts.js", "parts.css", "atlas.css"):
        shutil.copy(STATIC / "atlas" / name, folder / name)
    shutil.copy(STATIC / "explorer/explorer.css", folder)
    print(len(seen.channel), "parts")


def measured(folder: Path, *, webgl: bool = True) -> list[dict[str, Any]]:
    """Script and frames while a mouse pans and a wheel zooms, far away and near."""
    rows = []
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=args)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.add_init_script(COUNT + ("" if webgl else WITHOUT))
        page.goto((folder / "map.html").resolve().as_uri())
        page.wait_for_function("location.hash.includes('at=')", timeout=60_000)
        opened = page.evaluate("performance.now()")
        rows.append({"what": "opened, to the first state in the address", "median ms": round(opened)})
        box = page.locator("#map canvas").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def pan() -> None:
            page.mouse.move(x, y)
            page.mouse.down()
            for step in range(120):
                page.mouse.move(x + 150 * np.sin(step / 9), y + 100 * np.cos(step / 7))
            page.mouse.up()

        def zoom(way: int) -> None:
            for _ in range(60):
                page.mouse.wheel(0, way * 20)

        for name, act in (
            ("pan, far away", pan),
            ("zoom in", lambda: zoom(-1)),
            ("pan, near", pan),
            ("zoom out", lambda: zoom(1)),
        ):
            page.evaluate("spent.frames = [], spent.rest = 0")
            act()
            page.wait_for_timeout(600)
            spent = page.evaluate("spent")
            ms = np.quantile(spent["frames"], [0.5, 0.95]).round(2)
            told = {"frames": len(spent["frames"]), "median ms": ms[0], "95 % ms": ms[1]}
            rows.append({"what": name, **told, "longest rest ms": round(spent["rest"], 1)})
        browser.close()
    return rows


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--folder", type=Path, help="An atlas that is there.")
    asked.add_argument("--parts", type=int, default=10240)
    asked.add_argument("--words", type=int, default=2000)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        if given.folder is None:
            made_up(folder, given.parts, given.words)
        for name in ("parts.webp", "data/parts.js", "data/words.js", "data/map.js", "map.js", "parts.js"):
            if (folder / name).is_file():
                raw = (folder / name).read_bytes()
                print(f"{name}: {len(raw):,} bytes, {len(gzip.compress(raw)):,} zipped")
        for webgl in (True, False):
            print("with WebGL" if webgl else "without WebGL")
            print(pd.DataFrame(measured(folder, webgl=webgl)).to_string(index=False))


if __name__ == "__main__":
    main()
