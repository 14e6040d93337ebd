"""The chapters run again outside of the repository, and say what the built book says; the exercises' solutions run.

Needs ``make book``: what it ran is compared with, and its store is what the chapters find.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from built import ROOT
from chapters import BOOK, NAMES, cells, exercises

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
jupyter_cache = pytest.importorskip("jupyter_cache")
reader = pytest.importorskip("myst_nb.core.read").myst_nb_reader_plugin

CODED = [name for name in NAMES if (BOOK / f"{name}.md").is_file() and cells(name)]
"""Pages with code."""
CACHE = ROOT / "_build" / ".jupyter_cache"
STORE = ROOT / "_build" / "store"
CELL_SECONDS = 900
SOLUTION_SECONDS = 120
"""The rule is 20 seconds with a warm store; a busy machine may take longer."""

ADDRESS = re.compile(r"\bat 0x[0-9a-f]+|<Figure size |<Axes")

pytestmark = pytest.mark.book


def ran(name: str) -> list[Any]:
    """A chapter's code cells as the book ran them, from the cache in which it keeps them."""
    path = BOOK / f"{name}.md"
    try:
        _, notebook = jupyter_cache.get_cache(CACHE).merge_match_into_notebook(reader(str(path)))
    except KeyError:
        pytest.fail(f"the built book did not run {path.name} as it is now: make book")
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: Any) -> list[str]:
    """The text that a cell puts out, with single spaces; no figures, no explorers, nothing that has an address."""
    printed = "".join(
        output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"
    )
    shown = [result(output.data) for output in cell.outputs if "data" in output]
    return [" ".join(text.split()) for text in (printed, *shown) if text.strip() and not ADDRESS.search(text)]


def result(data: Any) -> str:
    """A result in words: a table's cells, or its text."""
    if any(kind.startswith("image/") or "widget-view" in kind for kind in data):
        return ""
    page = data.get("text/html")
    if page is None:
        return str(data.get("text/plain", ""))
    if 'class="explorer"' in page:
        return ""
    return html.unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))


def run(client: Any, code: str, number: int) -> Any:
    """One cell, run in a chapter's kernel."""
    cell = nbformat.v4.new_code_cell(code)
    client.nb.cells.append(cell)
    return client.execute_cell(cell, number)


@pytest.mark.nightly
@pytest.mark.parametrize("name", CODED)
def test_chapter_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with live explorers: the same text from each cell; then each exercise's solutions run."""
    before = ran(name)
    monkeypatch.setenv("PURE_NB_STORE", str(STORE))
    monkeypatch.chdir(tmp_path)
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(), kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    wrong = []
    with client.setup_kernel():
        client.timeout = CELL_SECONDS
        for number, cell in enumerate(before):
            try:
                again = run(client, cell.source, number)
            except nbclient.exceptions.CellExecutionError as error:
                pytest.fail(f"{name}, cell {number + 1}: {error.ename}: {error.evalue}\n{cell.source}", pytrace=False)
            if "varies" not in cell.metadata.get("tags", []) and said(again) != said(cell):
                wrong.append(f"cell {number + 1}: {difference(said(cell), said(again))}")
        client.timeout = SOLUTION_SECONDS
        for exercise in exercises(name):
            for code in exercise.code:
                try:
                    run(client, code, len(client.nb.cells))
                except nbclient.exceptions.CellExecutionError as error:
                    wrong.append(f"{exercise.title}: {error.ename}: {error.evalue}\n{code}")
                except nbclient.exceptions.CellTimeoutError:
                    wrong.append(f"{exercise.title} takes more than {SOLUTION_SECONDS} s\n{code}")
    assert not wrong, f"{name}:\n" + "\n".join(wrong)


def difference(before: list[str], after: list[str]) -> str:
    """Where two texts part."""
    one, two = "\n".join(before), "\n".join(after)
    place = next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    start = max(0, place - 40)
    return f"the book says {one[start : place + 80]!r}, now it is {two[start : place + 80]!r}"


@pytest.mark.parametrize("name", CODED)
def test_every_figure_has_words(name: str) -> None:
    """A cell that shows a figure has alt text and a caption; one that shows an explorer needs none."""
    for number, cell in enumerate(ran(name), 1):
        figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        shown = cell.metadata.get("mystnb", {})
        if figures:
            assert len(figures) == 1, f"cell {number} shows {len(figures)} figures: a caption is for one"
            assert shown.get("image", {}).get("alt"), f"cell {number} shows a figure without alt text:\n{cell.source}"
            assert shown.get("figure", {}).get("caption"), f"cell {number} has a figure without caption:\n{cell.source}"
