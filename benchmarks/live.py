"""The live explorer in a browser: how long one waits for a neuron.

    python benchmarks/live.py --repeats 7 --out benchmarks/results/live.csv

The page does what Jupyter does for a widget: it is that of ``tests/test_live_explorer.py``. Times
are medians in ms from the change of the neuron in the browser to the end of the frame in which its words and its first
picture are there; of the first sight of a network that was never run, from the end of the sweep. *Processor* is that of
the kernel meanwhile, on a machine that is shared the one to look at.

- *computed*: the neuron after the one that was seen, which was fetched ahead.
- *new*: one of the shipped study that nobody has looked at.
- *first sight*: ``explore(study)`` of a ResNet-18 with random weights, whose references are known, and nothing else. Of
  ``--photographs``, a folder of at least 100, or of noise.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import comm
from common import Noise, arguments, network, report, start

from pure_nb import Study, as_images, load_study
from pure_nb.show.widgets import explore

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from built import chromium
from test_live_explorer import Comm, Host

IMAGES, LONGEST = 100, 600_000
"""Of the network that was never run; and ms after which a page gives up."""

CHANGE = """async neuron => {
    const tile = () => document.querySelector('.tiles .tile')?.style.backgroundImage ?? '';
    const [begin, before] = [performance.now(), tile()];
    model.set('neuron', neuron);
    model.save_changes();
    const there = () => document.querySelector('.explorer-words').innerText.startsWith(`Neuron ${neuron}, split`)
        && tile() && tile() !== before;
    while (!there()) await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - begin;
}"""
"""Shows a neuron, and tells how many ms it took."""


def shown(browser: Any, study: Study, neuron: int | None = None) -> Host:
    """The explorer of a study in a page that waits for as long as it takes."""
    host = Host(browser, explore(study, neuron))
    host.page.set_default_timeout(LONGEST)
    host.page.wait_for_function("document.querySelector('.tiles .tile')?.style.backgroundImage")
    return host


def rests(host: Host) -> None:
    """Wait until nothing is computed any more."""
    while host.widget._thread is not None or Comm.said:
        host.page.wait_for_timeout(20)


def changes(host: Host, neurons: Sequence[int]) -> tuple[float, float]:
    """Medians of the ms to show neurons, and of the kernel's processor time; the first is not counted."""
    took = []
    for neuron in neurons:
        rests(host)
        begin = time.process_time()
        waited = host.page.evaluate(CHANGE, neuron)
        took.append((waited, 1000 * (time.process_time() - begin)))
    waits, worked = zip(*took[1:])
    return statistics.median(waits), statistics.median(worked)


def shipped(browser: Any, repeats: int, store: Path) -> dict[str, tuple[float, float]]:
    """Changes to neurons of the study that ships."""
    study = load_study("glyphs", store=store)
    ranked = study.most_polysemantic()
    host = shown(browser, study, ranked[0])
    found = {"new": changes(host, ranked[3 :: max(2, (len(ranked) - 3) // (repeats + 1))][: repeats + 1])}
    host.close()
    host = shown(browser, study)
    listed = host.widget._lists[study.parameters.target]  # the next in it are fetched ahead
    found["computed"] = changes(host, listed[listed.index(host.widget.neuron) + 1 :][: repeats + 1])
    host.close()
    return found


def first_sight(browser: Any, photographs: Path | None, store: Path) -> tuple[float, float]:
    """The ms from the end of the sweep to the first pictures of a network that was never run."""
    images = Noise(IMAGES) if photographs is None else as_images(sorted(photographs.rglob("*.jpg"))[:IMAGES])
    study = Study.from_model(network("torchvision:resnet18"), images, "layer4", "layer3", store=store)
    study.references  # noqa: B018
    begin, worked = time.perf_counter(), time.process_time()
    host = shown(browser, study)
    found = 1000 * (time.perf_counter() - begin), 1000 * (time.process_time() - worked)
    thread = host.widget._thread
    host.close()
    if thread:  # which is told by now to stop
        thread.join()
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--photographs", type=Path, help="a folder of pictures for the network that was never run")
    args = start(parser)
    with (
        mock.patch.object(comm, "create_comm", lambda **how: Comm(**how)),
        chromium() as browser,
        tempfile.TemporaryDirectory() as store,
    ):
        found = shipped(browser, args.repeats, Path(store))
        found["first sight"] = first_sight(browser, args.photographs, Path(store))
    goals = {"computed": 150, "new": 400, "first sight": 15_000}
    report(
        [
            {"what": what, "ms": found[what][0], "processor ms": found[what][1], "at most": most}
            for what, most in goals.items()
        ],
        args,
    )


if __name__ == "__main__":
    main()
