"""Make an EPUB of the built book: its chapters, without the reference of the package.

    python tools/make_epub.py [--epub _build/print/book.epub]

The book must be built: its chapters do not run again. A browser opens each page, as it does for the PDF
(:mod:`print_book`), and what a script draws there becomes what an e-reader can show without one: a formula is the
MathML that MathJax made for screen readers, an explorer is a picture of itself with a link to the page where it moves.
"""

from __future__ import annotations

import argparse
import html
import mimetypes
import re
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import yaml
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from print_book import ARGS, READY, executable

from pure_nb.compute.store import write_atomically

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
BASE = CONFIG["html"]["baseurl"]

LIVE = ".explorer, .playground, iframe, canvas"
"""What moves on a page, and stands still in an e-reader."""

WORDS = """box => {
    const caption = box.querySelector("figcaption"), words = caption?.innerText || box.getAttribute("aria-label");
    caption?.remove();
    return words;
}"""
"""Takes the caption off, which is set as text."""

TIDY = """() => {
    const body = document.querySelector("article.bd-article");
    for (const formula of body.querySelectorAll("mjx-container")) {
        const math = formula.querySelector("mjx-assistive-mml > math");
        if (math) formula.replaceWith(math);
    }
    for (const folded of body.querySelectorAll(".admonition.dropdown, .tag_hide-input > .cell_input, details")) {
        folded.querySelectorAll("button").forEach(button => button.remove());
        if (folded.tagName === "DETAILS") { folded.open = false; continue; }
        const title = folded.querySelector(":scope > .admonition-title");
        const box = document.createElement("details"), summary = document.createElement("summary");
        summary.append(...(title ? title.childNodes : ["The code"]));
        if (title) title.remove();
        folded.before(box);
        box.append(summary, ...folded.childNodes);
        folded.remove();
    }
    const gone = ["script, style, link, noscript, button, input, label, summary .expanded", ".headerlink",
        ".on-dark", ".tour-bar", ".prev-next-area", ".toctree-wrapper"];
    body.querySelectorAll(gone.join()).forEach(one => one.remove());
    body.querySelectorAll("summary p").forEach(line => line.replaceWith(...line.childNodes));
    for (const one of body.querySelectorAll("image[href]")) one.setAttribute("href", `src:${one.getAttribute("href")}`);
    for (const one of body.querySelectorAll("*"))
        for (const {name} of [...one.attributes])
            if (/^(on|data|jax|tabindex|loading|align|valign|border|aria-value)/.test(name)) one.removeAttribute(name);
    const inner = [...body.childNodes].map(node => new XMLSerializer().serializeToString(node)).join("");
    return {title: document.querySelector("h1").innerText.replace(/#$/, "").trim(), inner};
}"""

PAGE = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" lang="en" xml:lang="en">
<head><title>{title}</title><link rel="stylesheet" type="text/css" href="book.css"/></head>
<body>{body}</body>
</html>
"""

STYLE = """
body { line-height: 1.45; }
img, svg { max-width: 100%; height: auto; }
pre { font-size: 0.75em; white-space: pre-wrap; overflow-wrap: anywhere; background: rgba(127, 127, 127, 0.12); }
pre, summary, .admonition, details { padding: 0.3em 0.6em; }
figure { margin: 1em 0; }
figcaption { font-size: 0.85em; }
table { border-collapse: collapse; font-size: 0.8em; }
td, th { padding: 0.15em 0.5em; border-bottom: 1px solid rgba(127, 127, 127, 0.4); vertical-align: top; }
.admonition { border-left: 0.25em solid rgba(127, 127, 127, 0.6); margin: 1em 0; }
.admonition-title, summary { font-weight: bold; }
"""

CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="content.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>
"""

PACKAGE = """<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" xml:lang="en">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:identifier id="id">{base}</dc:identifier><dc:title>{title}</dc:title><dc:language>en</dc:language>
<dc:creator>{author}</dc:creator><meta property="dcterms:modified">{now}</meta>
</metadata>
<manifest>
{manifest}
</manifest>
<spine>{spine}</spine>
</package>
"""


def chapters() -> list[tuple[str, list[str]]]:
    """The parts of the book and their pages, by name; without those of the package."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = [("", [contents["root"]])]
    parts += [(part["caption"], [one["file"] for one in part["chapters"]]) for part in contents["parts"]]
    own = [(caption, [name for name in names if not re.match("book/api\\b", name)]) for caption, names in parts]
    return [(caption, names) for caption, names in own if names]


def addressed(text: str, page: str, known: dict[str, str]) -> tuple[str, dict[str, Path]]:
    """The text of a page with links to where things are in the EPUB, or else on the web; and the pictures it needs."""
    here, pictures = (SITE / page).parent, {}

    def link(found: re.Match[str]) -> str:
        where, _, anchor = html.unescape(found["where"]).partition("#")
        drawn = where.startswith("src:")  # in a drawing a picture has an href
        where = where.removeprefix("src:")
        if re.match(r"[a-z]+:|images/", where) or not where:
            return found[0].replace('"src:', '"')
        path = (here / where).resolve()
        target = path.relative_to(SITE.resolve()).as_posix()
        if drawn or found["kind"] == "src":
            path = path.with_suffix(".png") if path.with_suffix(".png").is_file() else path
            place = path.with_suffix(".jpg" if path.suffix == ".webp" else path.suffix).relative_to(SITE.resolve())
            name = f"images/{place.as_posix().replace('/', '-')}"
            pictures[name] = path
            return f'{found["kind"]}="{name}"'
        new = known.get(target, BASE + target) + (f"#{anchor}" if anchor else "")
        return f'href="{html.escape(new)}"'

    links = re.compile(r'\b(?P<kind>href|src)="(?P<where>[^"]*)"')  # of elements, and not in a chapter's code
    return re.sub("<[^<>]+>", lambda element: links.sub(link, element[0]), text), pictures


def readable(path: Path) -> bytes:
    """A picture as all e-readers can show it, which are not bound to know WebP."""
    if path.suffix != ".webp":
        return path.read_bytes()
    buffer = BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "jpeg", quality=85)
    return buffer.getvalue()


class Archive:
    """The files of an EPUB, and how they are listed in it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.items, self.spine = ZipFile(path, "w", ZIP_DEFLATED), [], []
        self.file.writestr("mimetype", "application/epub+zip", ZIP_STORED)  # the first, and not compressed
        self.file.writestr("META-INF/container.xml", CONTAINER)

    def add(self, name: str, data: str | bytes, *, properties: str = "", read: bool = False) -> None:
        """Add a file; one that is ``read`` is a page in the order of the book."""
        kind = "application/xhtml+xml" if name.endswith(".xhtml") else mimetypes.guess_type(name)[0]
        number = f"i{len(self.items)}"
        more = f' properties="{properties}"' if properties else ""
        self.items.append(f'<item id="{number}" href="{name}" media-type="{kind}"{more}/>')
        self.spine += [f'<itemref idref="{number}"/>'] if read else []
        self.file.writestr(name, data)

    def close(self) -> None:
        """Write the list of all files."""
        about = {"title": html.escape(CONFIG["title"]), "author": html.escape(CONFIG["author"]), "base": BASE}
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        lists = {"manifest": "\n".join(self.items), "spine": "".join(self.spine)}
        self.file.writestr("content.opf", PACKAGE.format(**about, **lists, now=now))
        self.file.close()


def still(page: Page, name: str, archive: Archive) -> None:
    """Replace what moves on a page by pictures of it."""
    outermost = f":is({LIVE}):not(:is({LIVE}) *)"
    for number, box in enumerate(page.query_selector_all(outermost)):
        if not box.is_visible():  # without what is folded
            box.evaluate("box => box.remove()")
            continue
        words = box.evaluate(WORDS) or "An interactive figure, as it is when the page is opened."
        target = f"images/{Path(name).stem}-{number}.jpg"
        archive.add(target, box.screenshot(type="jpeg", quality=80))
        shown = {"src": target, "words": words, "page": f"{BASE}{name}.html"}
        box.evaluate(
            """(box, shown) => {
                const figure = document.createElement("figure"), image = document.createElement("img");
                const caption = document.createElement("figcaption"), link = document.createElement("a");
                image.setAttribute("src", shown.src);
                image.alt = ""; // the caption tells
                link.href = shown.page;
                link.textContent = "It moves on the web.";
                caption.append(shown.words + " ", link);
                figure.append(image, caption);
                box.replaceWith(figure);
            }""",
            shown,
        )


def make(path: Path, parts: list[tuple[str, list[str]]], page: Page) -> None:
    """Write the EPUB with the pages of some parts of the book."""
    archive, contents, kept = Archive(path), "", set()
    names = [name for _, own in parts for name in own]
    known = {f"{name}.html": f"{Path(name).stem}.xhtml" for name in names}
    archive.add("book.css", STYLE)
    for part, own in parts:
        lines = ""
        for name in own:
            page.goto((SITE / f"{name}.html").resolve().as_uri(), wait_until="load")
            missing = page.evaluate(READY)
            if missing:
                raise SystemExit(f"what does not load on {name}: {', '.join(missing)}")
            still(page, name, archive)
            found: dict[str, str] = page.evaluate(TIDY)
            body, pictures = addressed(found["inner"], f"{name}.html", known)
            holds = [word for word, tag in (("mathml", "<math"), ("svg", "<svg")) if tag in body]
            title, place = html.escape(found["title"]), known[f"{name}.html"]
            archive.add(place, PAGE.format(title=title, body=body), properties=" ".join(holds), read=True)
            for target in sorted(pictures.keys() - kept):
                archive.add(target, readable(pictures[target]))
            kept |= pictures.keys()
            lines += f'<li><a href="{place}">{title}</a></li>'
        contents += f"<li><span>{html.escape(part)}</span><ol>{lines}</ol></li>" if part else lines
    contents = f'<nav epub:type="toc"><h1>Contents</h1><ol>{contents}</ol></nav>'
    archive.add("nav.xhtml", PAGE.format(title="Contents", body=contents), properties="nav")
    archive.close()


def main() -> None:
    """Write the EPUB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epub", type=Path, default=ROOT / "_build" / "print" / "book.epub", help="the file to write")
    options = parser.parse_args()
    if not (SITE / "book" / "index.html").is_file():
        raise SystemExit(f"there is no book in {SITE}: make book builds it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGS)
        page = browser.new_page(color_scheme="light", viewport={"width": 1100, "height": 1200})
        page.set_default_timeout(120_000)
        write_atomically(options.epub, lambda path: make(path, chapters(), page))
        browser.close()
    print(f"The book for e-readers: {options.epub.resolve()}")


if __name__ == "__main__":
    main()
