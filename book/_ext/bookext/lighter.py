"""Pages that load fast: pictures as WebP when they are scrolled to, and of the icons only those that the book shows.

The theme loads all two thousand icons of Font Awesome, twice: as fonts, and as a script that draws the same. The script
goes, and the fonts keep what the pages use. The rest of the page is untouched.
"""

from __future__ import annotations

import logging
import re
from io import BytesIO
from pathlib import Path
from typing import Any

from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image
from sphinx.application import Sphinx

SCRIPT = re.compile(r'\s*<script src="[^"]*/vendor/fontawesome/[^"]*"></script>')
FONT_PRELOAD = re.compile(r'\s*<link rel="preload" as="font"[^>]*/vendor/fontawesome/[^>]*>')
NOTEBOOK = re.compile(r'href="(?:\.\./)+notebooks/[^"]+\.ipynb"(?! download)')
ICON = re.compile(r"\bfa-[a-z0-9-]+")
RULE = re.compile(r"(?<=\})(?P<selectors>(?:\.fa-[a-z0-9-]+:before,?)+)\{content:\"(?P<content>[^\"]+)\"\}")
PRIVATE = re.compile("[\ue000-\uf8ff]")
"""Where Font Awesome has its icons in Unicode."""
ESCAPED = re.compile(r"\\(f[0-9a-f]{3})\b")
FIGURE = re.compile(
    r'(?<=<img )(?!class="on-)(?P<rest>[^>]*?src="[^"]*_images/(?P<name>[0-9a-f]{64})\.png"[^>]*?)\s*/?>'
)
"""What a cell put out."""
STYLE = re.compile(r'\s*style="[^"]*"|\s*\b(?:width|height|loading)="[^"]*"')
PICTURE = re.compile(r"_images/([^\"'?#/\s]+)\.png")


def lighten(app: Sphinx, exception: Exception | None) -> None:
    """Make the pages of a finished site lighter."""
    if exception or app.builder.name != "html":
        return
    site = Path(app.outdir)
    dark = with_dark(site / "_images", site.with_name("dark"))
    smaller = pictures(site / "_images")
    pages = list(site.rglob("*.html"))
    for page in pages:
        before = page.read_text(encoding="utf-8")
        text = FONT_PRELOAD.sub("", SCRIPT.sub("", before))
        text = FIGURE.sub(lambda found: figure(found, site / "_images", dark), text)
        text = PICTURE.sub(lambda found: f"_images/{found[1]}.webp" if found[1] in smaller else found[0], text)
        text = NOTEBOOK.sub(r"\g<0> download", text)  # the theme's buttons can't say so
        if text != before:
            page.write_text(text, encoding="utf-8")
    for folder in (site / "_static" / "vendor" / "fontawesome").glob("*"):
        icons(folder, site, pages)


def without_mathjax(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave MathJax out of a page without formulas; Sphinx adds it where the chapters below a page have some."""
    own = app.env.get_domain("math").data["has_equations"].get(page, False)
    if app.builder.name == "html" and not own:
        context["script_files"] = [script for script in context["script_files"] if not _mathjax(app, script)]


def _mathjax(app: Sphinx, script: Any) -> bool:
    return app.config.mathjax_path in str(script.filename) or "window.MathJax" in script.attributes.get("body", "")


def with_dark(folder: Path, dark: Path) -> set[str]:
    """Put beside the pictures of a folder what ``tools/two_themes.py`` drew of them, and tell which have it."""
    found = {path.stem for path in dark.glob("*.png") if (folder / path.name).exists()}
    for name in found:
        drawn, target = (dark / f"{name}.png").read_bytes(), folder / f"{name}-dark.png"
        if not target.exists() or target.read_bytes() != drawn:  # or its WebP would be made again
            target.write_bytes(drawn)
    return found


def figure(found: re.Match[str], folder: Path, dark: set[str]) -> str:
    """A figure that loads when it is scrolled to, in a box of its size; of each of two variants, if it has them."""
    name, rest = found["name"], found["rest"]
    with Image.open(folder / f"{name}.png") as image:
        width, height = image.size
    said = re.search(r'(?:width="|style="[^"]*width:\s*)(\d+)', rest)
    if said:  # a picture for dense screens has twice as many pixels
        width, height = int(said[1]), round(height * int(said[1]) / width)
    sized = f'{STYLE.sub("", rest)} width="{width}" height="{height}" loading="lazy"'
    if name not in dark:
        return f"{sized}>"
    return f'class="on-light" {sized}>\n<img class="on-dark" {sized.replace(name, f"{name}-dark")}>'


def pictures(folder: Path) -> set[str]:
    """Write the PNG files of a folder as WebP where that is smaller, and tell which have one.

    Photographs become smaller with some loss that no one sees at two pixels for one, plots without any; the smaller of
    the two is taken. The PNG stays, for those who copy a figure.
    """
    for path in folder.glob("*.png"):
        target = path.with_suffix(".webp")
        if target.exists() and target.stat().st_mtime >= path.stat().st_mtime:
            continue
        with Image.open(path) as image:
            smallest = min((_webp(image, lossless=True), _webp(image, quality=70, alpha_quality=60)), key=len)
        if len(smallest) < path.stat().st_size:
            target.write_bytes(smallest)
    return {path.stem for path in folder.glob("*.webp") if path.with_suffix(".png").exists()}


def _webp(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "webp", method=4, **options)
    return buffer.getvalue()


def icons(folder: Path, site: Path, pages: list[Path]) -> None:
    """Keep of Font Awesome the icons that pages, scripts and styles of a site name."""
    styles = folder / "css" / "all.min.css"
    own = [
        path for path in (site / "_static").rglob("*") if path.suffix in (".css", ".js") and folder not in path.parents
    ]
    texts = [path.read_text(encoding="utf-8") for path in [*pages, *own]]
    named = {name for text in texts for name in ICON.findall(text)}
    css = styles.read_text(encoding="utf-8")
    shown = {character for text in texts for character in PRIVATE.findall(text)}
    shown |= {chr(int(code, 16)) for text in texts for code in ESCAPED.findall(text)}

    def kept(rule: re.Match[str]) -> str:
        names = {selector.removeprefix(".").removesuffix(":before") for selector in rule["selectors"].split(",")}
        if not names & named:
            return ""
        shown.update(content(rule["content"]))
        return rule[0]

    css = RULE.sub(kept, css)
    for font in sorted((folder / "webfonts").glob("*.ttf")):
        _keep(font, shown)
        css = css.replace(f"{font.stem}.woff2", f"{font.stem}.woff").replace(f"{font.stem}.ttf", f"{font.stem}.woff")
        css = css.replace(f'{font.stem}.woff) format("woff2")', f'{font.stem}.woff) format("woff")')
    styles.write_text(css, encoding="utf-8")


def content(written: str) -> str:
    """The characters that a ``content`` of a style sheet stands for."""
    return re.sub(r"\\([0-9a-f]+)", lambda found: chr(int(found[1], 16)), written)


def _keep(font: Path, characters: set[str]) -> None:
    """Replace a font by one that holds no more than these characters."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # which tells each table that it prunes
    options = subset.Options(flavor="woff", layout_features=[], notdef_outline=True)
    with TTFont(font) as full:
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=[ord(character) for character in characters])
        subsetter.subset(full)
        full.flavor = "woff"
        full.save(font.with_suffix(".woff"))
    font.with_suffix(".woff2").unlink(missing_ok=True)
    font.unlink()
