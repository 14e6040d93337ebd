"""Make the book one page (``jupyter-book build --builder singlehtml``), and print that as PDF.

    python tools/print_book.py [--pdf _build/print/book.pdf]

The book must be built: its chapters do not run again. Needs Chromium or Chrome on PATH, or Playwright's own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "_build"
BOOK = Path(sys.executable).with_name("jupyter-book")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--allow-file-access-from-files"]

# Pictures load when they are scrolled to, formulas when MathJax comes to them, and neurons by a script; a printer waits
# for none of them.
READY = """async () => {
    document.querySelectorAll("img[loading]").forEach(image => image.loading = "eager");
    document.querySelectorAll(".admonition.toggle-hidden").forEach(box => box.classList.remove("toggle-hidden"));
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    const neurons = [...document.querySelectorAll("figure.explorer[data-kind=neuron]")];
    const empty = () => neurons.filter(figure => !figure.querySelector(".tile")).map(figure => figure.innerText);
    const waits = () => empty().some(text => !text.includes("can't be loaded"));
    for (let tries = 0; waits() && tries < 600; tries++) await new Promise(done => setTimeout(done, 100));
    const behind = [...document.querySelectorAll(".tile")].map(tile => tile.style.backgroundImage.slice(5, -2));
    const images = [...document.images, ...[...new Set(behind)].map(url => Object.assign(new Image(), {src: url}))];
    await Promise.all(images.map(image => image.decode().catch(() => {})));
    return images.filter(image => !image.naturalWidth).map(image => image.src).concat(empty());
}"""


def executable() -> str | None:
    """The browser on PATH; None for Playwright's own."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def at_the_root(site: Path) -> Path:
    """The page that holds the book, copied to the root of its site.

    Sphinx writes it into the folder of the first chapter but with addresses that start at the root, while what the
    chapters themselves wrote, the explorers and links to the neurons' pages, starts at their folder.
    """
    pages = [path for path in site.glob("*/index.html") if "bd-article" in path.read_text(encoding="utf-8")]
    if len(pages) != 1:
        raise SystemExit(
            f"{site} should hold one page with the book, but holds {len(pages)}. "
            "Make it by: jupyter-book build . --builder singlehtml"
        )
    text = re.sub(r'"\.\./(explorers|neurons|tour)', r'"\1', pages[0].read_text(encoding="utf-8"))
    target = site / "book.html"
    target.write_text(text, encoding="utf-8")
    return target


def print_page(page: Page, source: Path, target: Path) -> None:
    """Print a page when all its pictures and formulas are there."""
    page.goto(source.resolve().as_uri(), wait_until="load")
    missing = page.evaluate(READY)
    if missing:
        raise SystemExit(f"what does not load: {', '.join(missing)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    margins = {"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
    number = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'
    page.pdf(
        path=target,
        format="A4",
        margin=margins,
        outline=True,
        tagged=True,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=number,
    )


def main() -> None:
    """Print the book."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pdf", type=Path, default=BUILD / "print" / "book.pdf", help="the file to write")
    options = parser.parse_args()
    site = BUILD / "singlehtml"
    subprocess.run([BOOK, "build", ROOT, "--builder", "singlehtml"], check=True)
    shutil.copytree(BUILD / "extra", site, dirs_exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGS)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(120_000)
        print_page(page, at_the_root(site), options.pdf)
        browser.close()
    print(f"The book for print: {options.pdf.resolve()}")


if __name__ == "__main__":
    main()
