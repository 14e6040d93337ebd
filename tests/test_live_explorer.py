"""The explorer of a kernel in a browser: in a small page that does what Jupyter does, and in JupyterLab itself."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import comm
import ipywidgets
import pytest
from built import DESK
from comm.base_comm import BaseComm
from PIL import Image
from small import noise, plain
from test_browser import AXE, VIOLATIONS

from pure_nb import Study
from pure_nb.compute.bars import progress_bar
from pure_nb.show.facts import METHODS, Atlas
from pure_nb.show.widgets import explore

pytest.importorskip("anywidget", reason="live explorers need anywidget: pip install 'pure-nb[show]'")

# What Jupyter does for a widget: its traits, and messages both ways.
HOST = """async () => {
    const [state, code] = await start();
    const style = document.createElement('style');
    style.textContent = state._css;
    document.head.append(style);
    const module = await import(URL.createObjectURL(new Blob([code], {type: 'text/javascript'})));
    const heard = {};
    let changed = {};
    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
    const tell = (name, ...what) => (heard[name] ?? []).forEach(hear => hear(...what));
    const put = (name, value) => {
        if (same(state[name], value)) return false;
        state[name] = value;
        tell(`change:${name}`);
        return true;
    };
    window.asked = [];
    window.model = {
        get: name => state[name],
        set: (name, value) => { if (put(name, value)) changed[name] = value; },
        save_changes: () => {
            if (Object.keys(changed).length) toKernel({method: 'update', state: changed, buffer_paths: []});
            changed = {};
        },
        send: content => {
            asked.push(content);
            toKernel({method: 'custom', content});
        },
        on: (name, hear) => (heard[name] ??= []).push(hear),
    };
    module.default.render({model, el: document.querySelector('main')});
    const hear = async () => {
        for (const [data, buffers] of await fromKernel()) {
            const views = buffers.map(text => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer));
            if (data.method === 'update') Object.entries(data.state).forEach(([name, value]) => put(name, value));
            if (data.method === 'custom') tell('msg:custom', data.content, views);
        }
        setTimeout(hear, 10);
    };
    hear();
}"""


class Comm(BaseComm):
    """Keeps what the kernel says until the page asks for it."""

    said: ClassVar[deque[tuple[dict[str, Any], list[Any]]]] = deque()

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **_: Any) -> None:
        self.said.append((data, [base64.b64encode(buffer).decode() for buffer in buffers or []]))


class Host:
    """A widget in a page."""

    def __init__(self, browser: Any, widget: Any, **how: Any) -> None:
        self.widget, self.troubles = widget, []
        Comm.said.clear()
        self.context = browser.new_context(**{"viewport": DESK, **how})
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda m: self.troubles.append(m.text) if m.type == "error" else None)
        self.page.set_content("<!doctype html><html lang=en><title>A notebook</title><body><main></main>")
        self.page.expose_function("start", lambda: (widget.get_state(), widget._esm))
        self.page.expose_function("fromKernel", self.heard)
        self.page.expose_function(
            "toKernel", lambda data: widget._handle_msg({"content": {"data": data}, "buffers": []})
        )
        self.page.evaluate(HOST)

    def heard(self) -> list[Any]:
        return [Comm.said.popleft() for _ in range(len(Comm.said))]

    def reads(self, text: str) -> str:
        """Wait until the explorer says something; all that it says."""
        words = self.page.locator(".explorer-words").filter(has_text=text)
        words.wait_for()
        return str(words.inner_text())

    def rests(self) -> None:
        """Wait until nothing is computed any more."""
        self.until(lambda: self.widget._thread is None and not Comm.said)

    def until(self, true: Callable[[], Any]) -> None:
        for _ in range(2000):
            if true():
                break
            self.page.wait_for_timeout(10)
        assert true()

    def asked(self) -> int:
        """How often pictures were asked for."""
        return int(self.page.evaluate("asked.filter(one => one.pictures === false).length"))

    def close(self) -> None:
        self.widget.close()
        self.context.close()

    def choose(self, label: str, value: str) -> None:
        self.page.get_by_label(label, exact=True).select_option(label=value)


@pytest.fixture
def show(browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Host]]:
    """Shows the explorer of a study."""
    monkeypatch.setattr(comm, "create_comm", lambda **how: Comm(**how))
    hosts: list[Host] = []

    def shown(*which: Any, **how: Any) -> Host:
        hosts.append(Host(browser, explore(*which, **how)))
        return hosts[-1]

    yield shown
    for host in hosts:
        host.close()
        assert not host.troubles


def test_what_is_chosen_is_in_the_traits_and_back(glyph_study: Study, show: Callable[..., Host]) -> None:
    host = show(glyph_study, 22, caption="look")
    widget, page = host.widget, host.page
    host.reads("Neuron 22, split into 2 parts by circuits")
    assert page.locator("figcaption").inner_text() == "look"
    assert page.locator(".explorer-tools").get_by_text("copy link").count() == 0
    seen: list[int] = []
    widget.observe(lambda change: seen.append(change.new), "neuron")
    page.get_by_label("next neuron").click()
    host.reads("Neuron 23")
    assert seen == [23]
    widget.neuron = 3
    host.reads("Neuron 3,")
    page.locator("fieldset input[value='3']").click()
    host.reads("Neuron 3, split into 3 parts by circuits")
    assert widget.parts == 3
    host.choose("method", "activations")
    host.reads("split into 3 parts by activations")
    assert widget.method == "activations"
    widget.parts, widget.method, widget.whole = 0, "circuits", True
    host.reads("split into 2 parts by circuits")
    assert page.locator("fieldset input[value='auto']").is_checked()
    page.wait_for_function("() => document.querySelector('.tiles .tile').style.backgroundImage")
    host.rests()
    assert page.get_by_label("show", exact=True).evaluate("one => one.selectedIndex") == 1


def test_sliders_are_linked(glyph_study: Study, show: Callable[..., Host]) -> None:
    host = show(glyph_study, 22)
    slider, told = ipywidgets.IntSlider(5, 0, 31), []
    ipywidgets.link((slider, "value"), (host.widget, "neuron"))
    host.reads("Neuron 5")
    ipywidgets.interactive_output(lambda number: told.append(number), {"number": slider})
    host.page.get_by_label("previous neuron").click()
    host.reads("Neuron 4")
    assert slider.value == 4
    slider.value = 8
    host.reads("Neuron 8")
    assert told == [5, 4, 8]


def test_what_was_seen_comes_from_memory(glyph_study: Study, show: Callable[..., Host]) -> None:
    host = show(glyph_study, 22)
    host.reads("Neuron 22")
    host.rests()
    before = host.asked()
    for turn, neuron in (("next", 23), ("previous", 22), ("previous", 21), ("previous", 20)):
        host.page.get_by_label(f"{turn} neuron").click()
        host.reads(f"Neuron {neuron}")
        host.rests()  # those beside it are fetched ahead
        assert host.asked() == before


def test_another_layer(glyph_study: Study, show: Callable[..., Host]) -> None:
    host = show(glyph_study, 22)
    host.reads("Neuron 22")
    host.choose("layer", "layer2")
    host.reads("Neuron 22")
    host.until(lambda: host.widget._listed["layer"] == "layer2")
    alive = glyph_study.replace(target="layer2", lower="nearest").references.alive
    typed = host.page.get_by_label("number of the neuron")
    typed.fill(str(alive.nonzero()[0][-1]))
    typed.press("Enter")
    host.reads(f"Neuron {alive.nonzero()[0][-1]}")
    assert host.page.locator("input[type=range]").get_attribute("max") == str(alive.sum() - 1)
    host.widget.layer = "layer4"
    host.until(lambda: host.widget._listed["layer"] == "layer4")
    assert host.widget.neuron < 32


def test_what_goes_wrong_is_said_where_one_looks(glyph_study: Study, show: Callable[..., Host]) -> None:
    host = show(glyph_study, 22)
    host.reads("Neuron 22")
    host.widget.neuron = 99
    host.reads("channel 99: layer 'layer4' has channels 0 to 31")
    assert host.page.locator(".tile").count() == 0
    host.widget.neuron = 3
    host.reads("Neuron 3,")
    assert host.page.locator(".tile").count()


DROP = """([name, content]) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), data = new DataTransfer();
    data.items.add(new File([bytes], name));
    document.querySelector('.explorer-drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}));
}"""


@pytest.mark.timeout(120)  # all channels are taken apart
def test_a_picture_that_is_dropped_in_is_explained(
    glyph_study: Study, show: Callable[..., Host], tmp_path: Path
) -> None:
    Image.fromarray(glyph_study.images.picture(3)).save(tmp_path / "mine.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    glyph_study.virtual  # noqa: B018  or each explanation would take all channels apart
    expected = glyph_study.explain(3)
    host = show(glyph_study, 22)
    host.reads("Neuron 22")
    host.rests()
    host.page.get_by_text("Why did it say so?").click()
    output = host.page.get_by_label("output", exact=True)
    host.until(lambda: output.locator("option").count() == 1 + len(glyph_study.classes.names))
    told, status = host.page.locator(".why"), host.page.locator(".explorer-dropped [role=status]")
    content = base64.b64encode((tmp_path / "mine.png").read_bytes()).decode()
    host.page.evaluate(DROP, ["mine.png", content])
    told.locator("h1", has_text=f"Why “{expected.output}”?").wait_for()
    assert "Mine.png. " in told.inner_text()
    assert told.locator("li strong").all_inner_texts() == [one.row["part"] for one in expected.shown]
    assert status.inner_text() == ""
    host.page.add_script_tag(path=AXE)
    assert host.page.evaluate(VIOLATIONS, True) == []
    host.choose("output", "umbrella")
    told.locator("h1", has_text="Why “umbrella”?").wait_for()
    host.choose("against", "anchor")
    told.locator("h1", has_text="Why “umbrella” rather than “anchor”?").wait_for()
    host.choose("against", "umbrella")
    status.filter(has_text="an output can't be compared with itself").wait_for()
    assert told.count() == 0
    host.page.locator("input[type=file]").set_input_files(tmp_path / "text.png")
    status.filter(has_text="'text.png' can't be read as a picture").wait_for()
    host.page.locator("input[type=file]").set_input_files(tmp_path / "small.png")
    status.filter(has_text="scale or cut it to that size").wait_for()
    host.widget.neuron = 3  # and the explorer goes on
    host.reads("Neuron 3,")


def test_two_methods_are_compared(glyph_study: Study, show: Callable[..., Host]) -> None:
    host = show(glyph_study, 22)
    host.page.locator("fieldset input[value='3']").click()
    host.choose("beside", "activations")
    host.choose("plane", "activations")
    words = host.reads("marked ≠")
    parts, points = (Atlas(glyph_study, METHODS).data(22)[name] for name in ("parts", "points"))
    one, other = parts["circuits"][2], parts["activations"][2]
    changed = [rank for rank in range(20) if one[rank] != other[rank]]
    assert changed
    assert f"; {len(changed)} of 20 images, marked ≠, are in another part by activations" in words
    ranks = "all => all.map(one => Number(one.dataset.rank))"
    host.until(lambda: host.page.locator("circle").count() == 20)
    assert host.page.locator("circle.changed").evaluate_all(ranks) == changed
    marked = host.page.locator(".rows").nth(0).locator(".tile.changed")
    assert {*marked.evaluate_all(ranks)} <= {*changed}
    first = marked.first
    rank = int(first.get_attribute("data-rank"))
    assert first.inner_text() == f"≠ {'ABCDE'[int(other[rank])]}"
    assert (
        f"part {'ABC'[int(one[rank])]} by circuits, part {'ABCDE'[int(other[rank])]} by activations"
        in first.get_attribute("aria-label")
    )
    left = f"{500 + 0.84 * (points['activations'][0][0] - 500):g}"
    host.until(lambda: host.page.locator("circle").first.get_attribute("cx") == left)
    host.page.add_script_tag(path=AXE)
    assert host.page.evaluate(VIOLATIONS, True) == []


def test_what_takes_long_can_be_stopped(show: Callable[..., Host], monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.from_model(plain(), noise(40), "4", "2", n_references=12, progress=False)
    study.references  # noqa: B018
    split, gone = Atlas.split, threading.Event()

    def slow(self: Atlas, channel: int, names: Any) -> Any:
        with progress_bar(total=1000, shown=False) as bar:
            while not gone.wait(0.01):
                bar.update()
        return split(self, channel, names)

    with monkeypatch.context() as patch:
        patch.setattr(Atlas, "split", slow)
        host = show(study, 3)
        host.reads("Neuron 3: its top-activating images; its parts are not known yet")
        assert host.page.locator(".tile").count()
        doing = host.page.locator(".explorer-doing")
        doing.filter(has_text="neuron 3: parts by circuits, ").wait_for()
        assert "% " in doing.inner_text().replace(",", " ")
        assert "left" in doing.inner_text()
        host.page.get_by_role("button", name="Stop").click()
        host.reads("stopped")
        host.rests()
        doing.wait_for(state="hidden")
    host.page.get_by_label("next neuron").click()
    host.reads("Neuron 4, ")
    gone.set()


CELLS = [
    "from pure_nb import explore, load_study\nwidget = explore(load_study('glyphs'), 22)\nwidget",
    "from ipywidgets import IntSlider, link\nslider = IntSlider(0, 0, 31)\n"
    "link((widget, 'neuron'), (slider, 'value'))\nslider",
    "print('the kernel has', widget.neuron, slider.value, widget.parts)",
]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """JupyterLab with a notebook; its address."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install 'pure-nb[lab]'")
    kernel, runtime = tmp_path / "share/kernels/python3", tmp_path / "runtime"
    kernel.mkdir(parents=True)
    runtime.mkdir()
    started = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": started, "display_name": "test", "language": "python"}))
    code: dict[str, Any] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [code | {"source": text, "id": f"cell-{place}"} for place, text in enumerate(CELLS)]
    book = {"cells": cells, "nbformat": 4}
    about = {"kernelspec": {"name": "python3", "display_name": "test"}}
    (tmp_path / "try.ipynb").write_text(json.dumps(book | {"nbformat_minor": 5, "metadata": about}))
    path = os.pathsep.join(filter(None, [str(tmp_path / "share"), os.environ.get("JUPYTER_PATH")]))
    home = {"JUPYTER_PATH": path, "JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    how = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=", "--LabApp.news_url="]
    how += [f"--ServerApp.root_dir={tmp_path}", f"--LabApp.workspaces_dir={tmp_path / 'work'}"]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *how],
        env=os.environ | home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if told := list(runtime.glob("jpserver-*.json")):
                break
            time.sleep(0.1)
        yield json.loads(told[0].read_text())["url"] + "lab/tree/try.ipynb"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_jupyterlab_moved_by_a_mouse(browser: Any, lab: str) -> None:
    page = browser.new_page(viewport=DESK)
    page.set_default_timeout(60_000)
    page.goto(lab)
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    cells.nth(0).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    words = page.locator(".explorer-words")
    words.filter(has_text="Neuron 22, split into").wait_for()
    page.keyboard.press("Shift+Enter")
    cells.nth(1).locator(".widget-slider").wait_for()
    slider = page.locator(".explorer-picker input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 22 / 31, middle)
    page.mouse.down()
    for step in range(20, 0, -1):
        page.mouse.move(box["x"] + box["width"] * step / 31, middle)
    page.mouse.up()
    words.filter(has_text="Neuron 1, split into").wait_for()
    page.locator(".explorer-keys input[value='3']").click()
    words.filter(has_text="Neuron 1, split into 3 parts").wait_for()
    assert page.locator(".tile").first.evaluate("one => one.style.backgroundImage").startswith('url("blob:')
    cells.nth(2).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    page.get_by_text("the kernel has 1 1 3").wait_for()
    page.close()
