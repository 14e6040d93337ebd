"""Make slides of the built book: of each chapter its question, figures with captions, five questions and five lines.

    python tools/make_slides.py [CHAPTER ...] [--out _build/slides]

The book must be built. A deck is plain HTML with its pictures beside it: arrow keys turn the slides, and it prints.
"""

from __future__ import annotations

import argparse
import html
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bs4 import BeautifulSoup, Tag

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
html {{ scroll-snap-type: y mandatory; color-scheme: light dark;
    font: clamp(16px, 2.2vw, 30px)/1.4 system-ui, sans-serif; }}
body {{ margin: 0; }}
section {{ box-sizing: border-box; min-height: 100vh; padding: 5vh 6vw; scroll-snap-align: start; break-after: page;
    display: flex; flex-direction: column; justify-content: center; gap: 2vh; }}
h1 {{ font-size: 1.8em; margin: 0; }}
h2 {{ font-size: 1.1em; margin: 0; }}
figure {{ margin: 0; }}
img {{ display: block; max-width: 100%; max-height: 68vh; margin: auto; background: white; }}
picture img {{ background: none; }}
figcaption {{ font-size: 0.7em; margin-top: 1.5vh; }}
li {{ margin-block: 0.6em; }}
small {{ opacity: 0.75; }}
</style>
{slides}
<script>
addEventListener("keydown", event => {{
    const on = ["ArrowRight", "ArrowDown", "PageDown", " "], back = ["ArrowLeft", "ArrowUp", "PageUp"];
    const step = on.includes(event.key) - back.includes(event.key);
    const slides = [...document.querySelectorAll("section")];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const here = slides.findLastIndex(slide => slide.offsetTop <= scrollY + innerHeight / 2);
    slides[Math.max(0, Math.min(slides.length - 1, here + step))].scrollIntoView();
}});
</script>
"""


def text(tag: Tag) -> str:
    """What a reader sees of a tag, escaped; formulas as they are written."""
    return html.escape(" ".join(tag.get_text().split()))


def items(section: Tag | None, folded: bool = False) -> Iterator[str]:
    """The lines of a section's lists, or of what is folded in it; a list within a line belongs to it."""
    for line in section.select("li") if section else []:
        if not line.find_parent("li") and bool(line.find_parent(class_="dropdown")) == folded:
            yield text(line)


def slide(title: str, *lines: str, ordered: bool = False) -> str:
    """A slide with a list, if it has any lines."""
    kind = "ol" if ordered else "ul"
    listed = f"<{kind}>{''.join(f'<li>{line}</li>' for line in lines)}</{kind}>" if lines else ""
    return f"<section><h2>{title}</h2>{listed}</section>"


def copied(picture: Tag, page: Path, images: Path) -> str:
    """The address of a page's picture in the folder of pictures, where it is put."""
    file = (page.parent / str(picture["src"]).partition("?")[0]).resolve()
    place = file.relative_to(page.parents[1].resolve())  # two folders may have files of one name
    (images / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, images / place)
    return f"{images.name}/{place.as_posix()}"


def slides(page: Path, images: Path) -> tuple[str, list[str]]:
    """A chapter's title and its slides; its pictures are copied."""
    article = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select_one("article")
    title = article.h1 if article else None
    if article is None or title is None:
        raise SystemExit(f"{page} is no page of the book: make book builds it")
    for link in article.select(".headerlink"):
        link.decompose()
    name = text(title)
    asked = next((one for one in article.select("p") if one.get_text().startswith("The question.")), None)
    made = [f"<section><h1>{name}</h1><p>{text(asked) if asked else ''}</p><small>pure_nb</small></section>"]
    for figure in article.select("figure:not(.explorer)"):
        picture, caption = figure.img, figure.figcaption
        if picture and caption and not str(picture["src"]).startswith("data:"):
            alt = html.escape(str(picture.get("alt", "")))
            shown = f'<img src="{copied(picture, page, images)}" alt="{alt}">'
            if dark := figure.select_one("img.on-dark"):
                source = f'<source media="(prefers-color-scheme: dark)" srcset="{copied(dark, page, images)}">'
                shown = f"<picture>{source}{shown}</picture>"
            made.append(f"<section><figure>{shown}<figcaption>{text(caption)}</figcaption></figure></section>")
    quiz = article.select_one("#questions")
    for head, lines in (("Questions", [*items(quiz)]), ("Answers", [*items(quiz, folded=True)])):
        made += [slide(head, *lines, ordered=True)] if lines else []
    made.append(slide("In five lines", *items(article.select_one("#in-five-lines"))))
    return name, made


def make(pages: Sequence[Path], folder: Path) -> Path:
    """Write a deck for each page, and one of all; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    every: list[str] = []
    for page in pages:
        name, made = slides(page, folder / "images")
        (folder / page.name).write_text(PAGE.format(title=name, slides="\n".join(made)), encoding="utf-8")
        every += made
    whole = folder / "index.html"
    whole.write_text(PAGE.format(title="Neurons that mean several things", slides="\n".join(every)), encoding="utf-8")
    return whole


def in_order(lectures: Sequence[str], order: Sequence[str]) -> list[str]:
    """Lectures in the book's order; stops if one has no place there."""
    if unlisted := sorted(set(lectures) - set(order)):
        raise SystemExit(f"the lecture {unlisted[0]!r} is not in _toc.yml: give it a place there")
    return sorted(lectures, key=order.index)


def main() -> None:
    """Make the slides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", help="names such as why; all lectures by default")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "slides")
    options = parser.parse_args()
    lectures = [
        path.stem for path in (ROOT / "book").glob("*.md") if "\n## In five lines\n" in path.read_text(encoding="utf-8")
    ]
    order = [line.rpartition("/")[2] for line in (ROOT / "_toc.yml").read_text(encoding="utf-8").split()]
    asked = options.chapters or in_order(lectures, order)
    missing = [name for name in asked if not (SITE / "book" / f"{name}.html").is_file()]
    if missing:
        sys.exit(
            f"no page {missing[0]!r} in {SITE}/book: make book builds it; chapters are {', '.join(sorted(lectures))}"
        )
    print(f"The slides: {make([SITE / 'book' / f'{name}.html' for name in asked], options.out)}")


if __name__ == "__main__":
    main()
