"""An atlas of thousands of neurons: what it takes on a disk, and how quick its index is in a browser.

    python benchmarks/atlas.py --threads 1 --repeats 7 --out benchmarks/results/atlas.csv

The study is made up: a random network over pictures of the glyph world, of which each neuron of 2,048 has references
of five classes, circuits in five heaps, five parts, and words for four of them; one in fifty is dead. The atlas is
written by the package's own code, into ``--folder``, where it is found again.

Times in the browser are medians, in ms: of *opening* from the start of the navigation to the first rows; of an action
to the end of the frame that shows what it leads to; *a frame* of scrolling or brushing is processor time of script,
style and layout. All but the last vary with what else the machine does.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import arguments, report, start
from torch import nn

from pure_nb import Parameters, Run, Study
from pure_nb.compute.store import Store
from pure_nb.glyphs import CLASSES
from pure_nb.glyphs.scenes import GlyphObjects
from pure_nb.images.data import MEAN, STD, Images
from pure_nb.judges.embedders import Embedder
from pure_nb.methods.references import References
from pure_nb.methods.virtual import WHOLE, VirtualNeurons, part_name
from pure_nb.show import atlas
from pure_nb.show import report as naming
from pure_nb.show.facts import Atlas

PARTS, GRID, LOWER = 5, 12, 64
"""Parts of each neuron; positions along a side of the layer; channels of the one below."""

FRAME = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
"""Awaits the end of the next frame."""


def network(neurons: int) -> nn.Module:
    """A random network of two layers."""
    torch.manual_seed(0)
    layers: list[tuple[str, nn.Module]] = [("lower", nn.Conv2d(3, LOWER, 8, stride=8)), ("act", nn.ReLU())]
    layers += [("target", nn.Conv2d(LOWER, neurons, 1)), ("on", nn.ReLU()), ("pool", nn.AdaptiveAvgPool2d(1))]
    return nn.Sequential(OrderedDict([*layers, ("flat", nn.Flatten()), ("head", nn.Linear(neurons, len(CLASSES)))]))


def synthetic(neurons: int, images: int, n: int, store: Path) -> Study:
    """A study whose references, circuits, parts and layouts are drawn at random."""
    p = Parameters(target="target", lower="lower", n_references=n, n_clusters=PARTS, crop="activation")
    scenes = Images(GlyphObjects(images // len(CLASSES)), "glyphs", MEAN, STD)
    found = Study("synthetic", network(neurons), scenes, p, Store(store), Run(batch_size=50))
    draw = np.random.default_rng(0)
    classes = np.arange(len(scenes)) // (images // len(CLASSES))
    likes = draw.random((neurons, len(CLASSES))).argsort(axis=1)[:, :PARTS]  # the classes that each answers to
    weight = 1e-6 + (classes == likes[:, :, None]).any(axis=1)
    sample = (draw.gumbel(size=weight.shape) + np.log(weight)).argsort(axis=1)[:, : -n - 1 : -1]
    score = -np.sort(-draw.gamma(5, size=(neurons, n)).astype(np.float32), axis=1)
    score[draw.random(neurons) < 0.02] = 0
    place = draw.integers(GRID * GRID, size=sample.shape)
    references = References("target", "max", sample, score, place, (GRID, GRID), score)
    answers = (classes[sample][:, :, None] == likes[:, None]).argmax(axis=2)
    heaps = draw.dirichlet(np.full(LOWER, 0.1), (neurons, PARTS))
    circuits = 0.8 * heaps[np.arange(neurons)[:, None], answers] + 0.2 * draw.dirichlet(np.ones(LOWER), answers.shape)
    centres = 4 * draw.normal(size=(neurons, PARTS, 2))
    layouts = centres[np.arange(neurons)[:, None], answers] + draw.normal(size=(*answers.shape, 2))
    gain, p_value = draw.beta(2, 8, neurons), draw.beta(0.5, 5, neurons)
    virtual = []
    for channel in range(neurons):
        counts = np.bincount(answers[channel], minlength=PARTS)
        labels = np.where(references.active[channel], (-counts).argsort(kind="stable").argsort()[answers[channel]], -1)
        k = max(1, labels.max() + 1)  # of few references a class may have none
        belongs = labels == np.arange(k)[:, None]
        centroids = (belongs @ circuits[channel] / np.maximum(1, belongs.sum(axis=1))[:, None]).astype(np.float32)
        virtual.append(VirtualNeurons(labels, centroids, 0.3, float(gain[channel]), float(p_value[channel])))
    vars(found)["_found"] = references, []
    vars(found).update(
        {"circuits": circuits.astype(np.float32), "virtual": virtual, "layouts": layouts.astype(np.float32)}
    )
    return found


def words(study: Study, *_: Any, **__: Any) -> pd.DataFrame:
    """A word for each neuron and most of its parts, as an embedder would find."""
    draw = np.random.default_rng(1)
    rows = [
        (channel, part, CLASSES[draw.integers(len(CLASSES))].name if draw.random() < 0.8 else "unsure")
        for channel in range(study.references.channels)
        for part in (WHOLE, *map(part_name, range(PARTS)))
    ]
    return pd.DataFrame(rows, columns=["channel", "part", "label"])


def classes(_: Atlas, channel: int) -> list[tuple[str, float]]:
    """Classes that a neuron is relevant to, since those of thousands of channels take long."""
    own = np.random.default_rng([2, channel]).choice(len(CLASSES), 4, replace=False)
    return [(CLASSES[label].name, 0.5) for label in own]


@dataclass(frozen=True)
class Site:
    """An atlas, a browser that opens it from the disk, and how often each action is timed."""

    folder: Path
    neurons: int
    browser: Any
    repeats: int
    seconds: float

    @contextlib.contextmanager
    def page(self) -> Iterator[Any]:
        """The index in a fresh context; ``opened`` of its window is when its first rows were there."""
        context = self.browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.add_init_script(
            "const seen = () => document.querySelector('#neurons tbody th') ? setTimeout(() => { window.opened ="
            " performance.now(); }) : requestAnimationFrame(seen); requestAnimationFrame(seen);"
        )
        page.goto((self.folder / "index.html").as_uri())
        page.wait_for_function("window.opened")
        page.wait_for_load_state("networkidle")
        yield page
        context.close()

    def timed(self, *actions: str) -> float:
        """The median time to the end of the frame that shows what an action, of several in turn, leads to."""
        script = f"async () => {{ const t = performance.now(); %s; await {FRAME}; return performance.now() - t; }}"
        with self.page() as page:
            took = []
            for repeat in range(self.repeats * len(actions)):
                took.append(page.evaluate(script % actions[repeat % len(actions)]))
                page.wait_for_timeout(400)  # until the address is written, too
        return statistics.median(took)

    def a_frame(self, action: str, frames: int = 120) -> float:
        """Script, style and layout in ms a frame, while an action of ``frame`` is done in each."""
        script = f"async () => {{ for (let frame = 0; frame < {frames}; frame++) {{ {action}; await {FRAME}; }} }}"
        took = []
        for _ in range(self.repeats):
            with self.page() as page:
                watch = page.context.new_cdp_session(page)
                watch.send("Performance.enable", {"timeDomain": "threadTicks"})
                before = work(watch)
                page.evaluate(script)
                took.append(1000 * (work(watch) - before) / frames)
        return statistics.median(took)


def work(watch: Any) -> float:
    """Seconds of script, style and layout of a page so far."""
    found = {one["name"]: one["value"] for one in watch.send("Performance.getMetrics")["metrics"]}
    return float(found["ScriptDuration"] + found["LayoutDuration"] + found["RecalcStyleDuration"])


def opening(site: Site) -> float:
    took = []
    for _ in range(site.repeats):
        with site.page() as page:
            took.append(page.evaluate("window.opened"))
    return statistics.median(took)


def typed(field: str, value: str) -> str:
    """What types into a field of the index, or chooses in it."""
    found = f"document.querySelector('#find [name={field}]')"
    return f"{found}.value = '{value}'; {found}.dispatchEvent(new Event('input', {{bubbles: true}}))"


def head(key: str) -> str:
    return f"document.querySelector('#neurons thead .of-{key} button').click()"


def sizes(site: Site, *patterns: str) -> float:
    return sum(path.stat().st_size for pattern in patterns for path in site.folder.glob(pattern) if path.is_file())


def index_bytes(site: Site) -> float:
    files = ("index.html", "atlas.js", "atlas.css", "explorer.css", "parts.js", "parts.css", "data/index.js")
    return sum(len(gzip.compress((site.folder / file).read_bytes())) for file in files) / 1000


BRUSH = """const one = document.getElementById('scores'), box = one.getBoundingClientRect();
    const at = (kind, x) => one.dispatchEvent(new PointerEvent(kind, {pointerId: 1, clientX: box.left + x}));
    one.setPointerCapture = () => {}; if (!frame) at('pointerdown', 20); at('pointermove', 20 + 3 * frame)"""

MEASURES: dict[tuple[str, str, float], Callable[[Site], float]] = {
    ("opening", "ms", 1000): opening,
    ("search", "ms", 100): lambda site: site.timed(
        typed("search", "umbrella"), typed("search", "house cat"), typed("search", "")
    ),
    ("sort by a number", "ms", 100): lambda site: site.timed(head("strongest"), head("score")),
    ("sort by words", "ms", 100): lambda site: site.timed(head("named"), head("meanings")),
    ("filter", "ms", 100): lambda site: site.timed(
        typed("q", "0.05"), typed("named", "no"), typed("q", ""), typed("named", "")
    ),
    ("scrolling, a frame", "ms", 16): lambda site: site.a_frame("document.getElementById('box').scrollTop += 400"),
    ("brushing, a frame", "ms", 16): lambda site: site.a_frame(BRUSH),
    ("index, compressed", "kB", 1000): index_bytes,
    ("size of a neuron", "kB", 60): lambda site: sizes(site, "**/*") / 1000 / site.neurons,
    ("its pictures", "kB", 60): lambda site: sizes(site, "**/*.webp", "**/*.avif") / 1000 / site.neurons,
    ("files of a neuron", "", 3): lambda site: sum(path.is_file() for path in site.folder.rglob("*")) / site.neurons,
    ("writing a neuron", "ms", math.nan): lambda site: 1000 * site.seconds / site.neurons,
}
"""What is measured, in which unit, at most how much is hoped for, and by what: another is one more line."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--neurons", type=int, default=2048)
    parser.add_argument("--images", type=int, default=1000, help="pictures that the references are of")
    parser.add_argument("--count", type=int, default=100, help="references of a neuron")
    parser.add_argument("--folder", type=Path, help="for the atlas, which is kept and found again")
    parser.add_argument("--only", nargs="*", help="measure these only, by their first word")
    args = start(parser)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="atlas-"))
    study = synthetic(args.neurons, args.images, args.count, folder / "store")
    naming.part_names = words
    Atlas.without_classes, Atlas.classes, Atlas.pairs = "", classes, lambda *_: []
    embedder = Embedder.of("made up", lambda pictures: np.stack([one.mean(axis=(0, 1)) for one in pictures]))
    embedder = replace(embedder, encode_text=lambda texts: np.ones((len(texts), 3)), encode_joint=embedder.encode)
    again = (folder / "atlas/index.html").exists()
    began = time.process_time()
    atlas.write(study, folder / "atlas", count=args.count, embedder=embedder)
    seconds = math.nan if again else time.process_time() - began
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        site = Site(folder / "atlas", args.neurons, browser, args.repeats, seconds)
        rows, made = [], {"neurons": args.neurons, "references": args.count}
        for (what, unit, goal), measure in MEASURES.items():
            if not args.only or what.split()[0] in args.only:
                if not math.isnan(found := measure(site)):  # of an atlas that was there it is not known
                    rows.append({"what": what, "measured": found, "unit": unit, "at most": goal, **made})
                print(what, found, unit, file=sys.stderr)
        browser.close()
    report(rows, args)
    if args.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
