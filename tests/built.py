"""The built book, as the tests find it: its pages, and visits to them in a browser."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
NOT_BUILT = "the book is not built: make book builds it into _build/html"

# What a reader's browser does; nothing that would let pages from files do more than they may.
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PHONE, DESK = {"width": 375, "height": 740}, {"width": 1440, "height": 900}


def toc_pages() -> list[str]:
    """The pages that ``_toc.yml`` lists, in reading order, without their ending."""
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


def atlas_sample() -> list[str]:
    """The index of the atlas of neurons, two neurons of it, and a lower channel."""
    atlas = SITE / "neurons"
    pages = [atlas / "index.html", *sorted(atlas.glob("[0-9]*.html"))[::20][:2], *sorted(atlas.glob("*/*.html"))[:1]]
    return [page.relative_to(SITE).as_posix() for page in pages if page.is_file()]


CHAPTERS = [f"{page}.html" for page in toc_pages()]
AROUND = [
    page for page in ("404.html", "search.html", "genindex.html", "_modules/index.html") if (SITE / page).is_file()
]
PAGES = [*CHAPTERS, *AROUND, *atlas_sample()]


def explorer_pages() -> list[str]:
    """The pages with an explorer."""
    there = [page for page in PAGES if (SITE / page).is_file()]
    return [page for page in there if '<figure class="explorer"' in (SITE / page).read_text(encoding="utf-8")]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder from this machine; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# Formulas and explorers are there. Pictures that come into view only later are asked for now, since a reader who
# scrolls on loads them too.
LOAD_ALL = """async () => {
    if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
    const bare = 'figure.explorer:not(:has(.explorer-view > *))';
    for (let wait = 0; document.querySelector(bare) && wait < 200; wait++)
        await new Promise(next => setTimeout(next, 25));
    const shown = [...document.images].filter(image => image.checkVisibility());
    const sprites = [...document.querySelectorAll('.explorer-view [style*="background-image"]')]
        .map(tile => Object.assign(new Image(), {src: getComputedStyle(tile).backgroundImage.slice(5, -2)}));
    await Promise.all([...shown, ...sprites].map(image => {
        image.loading = 'eager';
        return image.decode().catch(() => null);
    }));
    await document.fonts.ready;
}"""


class Visit:
    """A page open in a browser, and everything that was asked for or went wrong since it was opened."""

    def __init__(self, context: Any, url: str, *, settle: bool = True) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self.home = urlsplit(url)[:2]
        self.page.on("console", lambda m: self.troubles.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("requestfailed", lambda r: self.troubles.append(f"failed: {r.url} ({r.failure})"))
        self.page.on("response", lambda r: self.troubles.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        self.page.on("request", self._watch)
        self.page.goto(url, wait_until="load")
        if settle:
            self.page.evaluate(LOAD_ALL)

    def _watch(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("data", "blob"):
            return
        self.asked.append(request.url)
        if parts[:2] != self.home:
            self.troubles.append(f"request to elsewhere: {request.url}")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()


def file_sizes(urls: list[str]) -> dict[str, int]:
    """Bytes of each of the files that a page from the disk asked for, by its place in the site."""
    paths = {Path(unquote(urlsplit(url).path)) for url in urls}
    return {path.relative_to(SITE).as_posix(): path.stat().st_size for path in paths if path.is_file()}
