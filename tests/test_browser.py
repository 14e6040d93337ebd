"""The built book in a browser: every page loads clean and offline, and the sliders move the pictures.

Needs ``make book`` and Chromium (from PATH, or Playwright's own).
"""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

playwright_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--allow-file-access-from-files"]


def toc_pages() -> list[str]:
    """The pages that ``_toc.yml`` lists, in reading order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found = [toc["root"]]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "file" in node:
                found.append(node["file"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(toc.get("parts", []))
    walk(toc.get("chapters", []))
    return [page.removesuffix(".md") for page in found]


PAGES = toc_pages()


def has_explorer(page: str) -> bool:
    """Whether the built page holds a widget with a slider."""
    path = SITE / f"{page}.html"
    return path.is_file() and "SliderModel" in path.read_text(encoding="utf-8")


EXPLORERS = [page for page in PAGES if has_explorer(page)]

pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").is_file(), reason="the book is not built: make book builds it into _build/html"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, names) if found), None)
    with playwright_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        except playwright_api.Error as error:
            pytest.skip(f"no Chromium on PATH and none of Playwright's that starts: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a local web server over the built book."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


class Visit:
    """A page opened in its own context, and everything that went wrong while it was open."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(20_000)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.page.on("console", lambda m: self.troubles.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("requestfailed", lambda r: self.troubles.append(f"failed: {r.url} ({r.failure})"))
        self.page.on("response", lambda r: self.troubles.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        self.page.on("request", self._watch)
        home = urlsplit(url)
        self.home = (home.scheme, home.netloc)
        self.page.goto(url, wait_until="load")
        if self.page.locator(".math").count():
            self.page.wait_for_selector("mjx-container", state="attached")
        if self.page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count():
            self.page.wait_for_selector(".jupyter-widgets")
        self.page.wait_for_load_state("networkidle")

    def _watch(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and (parts.scheme, parts.netloc) != self.home:
            self.troubles.append(f"foreign: {request.url}")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def local(page: str) -> str:
    return (SITE / f"{page}.html").as_uri()


# The picture that is seen now in the stack linked to the slider: the visible images of the widget around the handle.
SEEN = """handle => {
    const box = handle.closest('.cell_output') || document.body;
    return [...box.querySelectorAll('.jupyter-widgets img')]
        .filter(i => i.offsetParent !== null)
        .map(i => i.currentSrc || i.src);
}"""
LOADED = """handle => {
    const box = handle.closest('.cell_output') || document.body;
    const seen = [...box.querySelectorAll('.jupyter-widgets img')].filter(i => i.offsetParent !== null);
    return seen.every(i => i.complete && i.naturalWidth > 0);
}"""


def move_every_slider(visit: Visit) -> None:
    """Move each slider by the keyboard; the picture must change, load, and come back."""
    handles = visit.page.locator(".noUi-handle")
    handles.first.wait_for()
    for index in range(handles.count()):
        handle = handles.nth(index)
        handle.scroll_into_view_if_needed()
        if not handle.evaluate(SEEN):
            continue  # a slider that moves something else than pictures
        lowest, highest = (float(handle.get_attribute(f"aria-value{end}") or 0) for end in ("min", "max"))
        start = float(handle.get_attribute("aria-valuenow") or 0)
        if lowest == highest:
            continue
        there, back = ("ArrowRight", "ArrowLeft") if start < highest else ("ArrowLeft", "ArrowRight")
        before = handle.evaluate(SEEN)
        handle.focus()
        visit.page.keyboard.press(there)
        after = handle.evaluate(SEEN)
        assert after, f"slider {index} shows no picture after {there}"
        assert after != before, f"slider {index} did not change the picture"
        visit.page.wait_for_function(f"handle => ({LOADED})(handle)", arg=handle.element_handle())
        visit.page.keyboard.press(back)
        assert handle.evaluate(SEEN) == before


@pytest.mark.parametrize("page", PAGES)
def test_loads_clean_and_offline(browser: Any, page: str) -> None:
    assert (SITE / f"{page}.html").is_file(), "in _toc.yml but not in the built book"
    with Visit(browser, local(page)) as visit:
        assert visit.page.locator("h1").first.inner_text().strip()
        assert visit.page.locator("mjx-merror, [data-mjx-error]").count() == 0
        assert visit.page.locator("main img").evaluate_all(
            "images => images.filter(i => i.offsetParent !== null && i.complete && !i.naturalWidth).map(i => i.src)"
        ) == []  # fmt: skip
        assert visit.page.locator("main img:not([alt])").count() == 0
        assert not visit.troubles, "\n".join(visit.troubles)


def test_front_door(browser: Any) -> None:
    with Visit(browser, (SITE / "index.html").as_uri()) as visit:
        visit.page.wait_for_url("**/book/index.html")
        assert not visit.troubles, "\n".join(visit.troubles)


def test_one_search_box(browser: Any) -> None:
    with Visit(browser, local(PAGES[0])) as visit:
        boxes = visit.page.locator("button.search-button, .search-button__button, .search-button-field")
        assert sum(boxes.nth(i).is_visible() for i in range(boxes.count())) == 1


@pytest.mark.parametrize("page", EXPLORERS)
def test_slider_moves_picture(browser: Any, page: str) -> None:
    with Visit(browser, local(page)) as visit:
        move_every_slider(visit)
        assert not visit.troubles, "\n".join(visit.troubles)


@pytest.mark.parametrize("page", EXPLORERS)
def test_slider_has_a_name(browser: Any, page: str) -> None:
    with Visit(browser, local(page)) as visit:
        handles = visit.page.locator(".noUi-handle")
        handles.first.wait_for()
        names = handles.evaluate_all("all => all.map(h => h.getAttribute('aria-label'))")
        assert all(name and name.strip() for name in names), names
        assert visit.page.get_by_role("slider", name=names[0]).count() >= 1


def test_from_a_server(browser: Any, server: str) -> None:
    page = (EXPLORERS or PAGES)[0]
    with Visit(browser, f"{server}/{page}.html") as visit:
        if page in EXPLORERS:
            move_every_slider(visit)
        assert not visit.troubles, "\n".join(visit.troubles)


# The contrast of an element's text with what is painted behind it (WCAG's ratio, 1 to 21).
CONTRAST = """element => {
    const light = parts => parts.slice(0, 3)
        .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    let behind = element, ground = [255, 255, 255];
    for (; behind; behind = behind.parentElement) {
        const parts = numbers(getComputedStyle(behind).backgroundColor);
        if (parts.length < 4 || parts[3] > 0.5) { ground = parts; break; }
    }
    const [low, high] = [light(numbers(getComputedStyle(element).color)), light(ground)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_legible_in_both_themes(browser: Any, scheme: str) -> None:
    """The page follows the reader's system, and text and the labels of sliders stand out from their ground."""
    page = (EXPLORERS or PAGES)[0]
    with Visit(browser, local(page), color_scheme=scheme) as visit:
        assert visit.page.locator("html").get_attribute("data-theme") == scheme
        for selector in ("main h1", "main p", ".widget-label", ".widget-readout", ".cell_output td"):
            shown = visit.page.locator(f"{selector}:visible")
            if shown.count():
                assert shown.first.evaluate(CONTRAST) > 4.5, selector
        assert not visit.troubles, "\n".join(visit.troubles)


@pytest.mark.parametrize("page", PAGES)
def test_fits_a_phone(browser: Any, page: str) -> None:
    with Visit(browser, local(page), viewport={"width": 375, "height": 740}) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
        assert visit.page.evaluate("document.body.scrollWidth") <= 375
