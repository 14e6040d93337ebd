"""Slides of a chapter: its question, its figures, its questions and its lines, in order; turned by keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from built import ROOT

slides = pytest.importorskip("make_slides")

ARTICLE = """<html><body><article class="bd-article"><section id="why">
<h1>Why &lt;it&gt;<a class="headerlink">#</a></h1>
<p><strong>The question.</strong> Why not?</p>
<figure id="fig-a"><a href="../_images/a.png"><img src="../_images/a.png" alt="A dot."></a>
<img class="on-dark" src="../_images/a-dark.png">
<figcaption><p><span>Figure 1 </span><span>Dots.</span></p></figcaption></figure>
<figure><img src="more/a.png"><figcaption>Another.</figcaption></figure>
<figure class="explorer"><figcaption>An explorer.</figcaption></figure>
<section id="questions"><h2>Questions</h2><ol><li><p>One?</p></li><li><p>Two?</p>
<ul><li>Or both?</li></ul></li>
<li><p>Three?</p></li></ol>
<div class="admonition dropdown"><p>Answers</p><ol><li><p>Yes.</p></li><li><p>No.</p></li></ol></div></section>
<section id="in-five-lines"><h2>In five lines</h2><ul><li><p>First.</p></li></ul></section>
</section></article></body></html>"""


@pytest.fixture(scope="module")
def deck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    (folder / "book").mkdir()
    (folder / "_images").mkdir()
    (folder / "_images" / "a.png").write_bytes((ROOT / "book" / "neuron.png").read_bytes())
    (folder / "_images" / "a-dark.png").write_bytes(b"dark")
    (folder / "book" / "more").mkdir()
    (folder / "book" / "more" / "a.png").write_bytes(b"another")
    (folder / "book" / "why.html").write_text(ARTICLE, encoding="utf-8")
    slides.make([folder / "book" / "why.html"], folder / "out")
    return Path(folder / "out")


def test_a_deck_has_a_chapters_figures_and_words(deck: Path) -> None:
    text = (deck / "why.html").read_text(encoding="utf-8")
    assert text.count("<section>") == 6
    assert "<h2>Questions</h2><ol><li>One?</li><li>Two? Or both?</li><li>Three?</li></ol>" in text
    assert "<h2>Answers</h2><ol><li>Yes.</li><li>No.</li></ol>" in text
    places = [text.index(own) for own in ("<h1>Why &lt;it&gt;</h1>", "Why not?", "Dots.", "One?", "Yes.", "First.")]
    assert places == sorted(places)
    assert "An explorer." not in text
    shown = [deck / source for source in re.findall(r'<img src="([^"]+)"', text)]
    assert [file.read_bytes() == b"another" for file in shown] == [False, True]
    dark = re.findall(r'<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)"><img', text)
    assert [(deck / source).read_bytes() for source in dark] == [b"dark"]
    assert (deck / "index.html").read_text(encoding="utf-8").count("<section>") == 6


def test_a_lecture_without_a_place_is_named() -> None:
    assert slides.in_order(["b", "a"], ["file:", "a", "b"]) == ["a", "b"]
    with pytest.raises(SystemExit, match=r"the lecture 'c' is not in _toc\.yml"):
        slides.in_order(["a", "c"], ["a", "b"])


@pytest.mark.slow
def test_arrows_turn_the_slides(browser: Any, deck: Path) -> None:
    page = browser.new_page(viewport={"width": 800, "height": 600})
    page.goto((deck / "why.html").as_uri())
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_timeout(300)
        seen.append(page.evaluate("Math.round(scrollY / innerHeight)"))
    assert seen == [1, 2, 1]
    assert page.evaluate("document.images[0].naturalWidth") > 0
