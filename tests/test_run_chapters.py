"""Chapters that run in forks of one process: what they put out is kept, what fails is not, and each is on its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from built import ROOT

jupyter_cache = pytest.importorskip("jupyter_cache")
reader = pytest.importorskip("myst_nb.core.read").myst_nb_reader_plugin

HEAD = "---\nkernelspec:\n  display_name: Python 3\n  language: python\n  name: python3\n---\n\n"
CHAPTERS = {
    "first": [
        "import os, sys\nprint('imported:', 'pure_nb' in sys.modules, os.environ['SAID'])\nkept = 1",
        "import matplotlib.pyplot as plt\nplt.plot([0, 1]);",
        "import multiprocessing\nprint(multiprocessing.get_start_method(allow_none=True), os.getcwd())",
    ],
    "second": ["print('kept' in globals())"],
    "third": ["print('before')", "1 / 0"],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("chapters")
    for name, cells in CHAPTERS.items():
        text = "\n\n".join(f"```{{code-cell}} ipython3\n{cell}\n```" for cell in cells)
        (folder / f"{name}.md").write_text(HEAD + text, encoding="utf-8")
    return folder, run(folder)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "run_chapters.py", folder / "cache"]
    command += [folder / f"{name}.md" for name in CHAPTERS]
    environment = os.environ | {"SAID": "said"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)


def outputs(folder: Path, name: str) -> list[list[Any]]:
    cache = jupyter_cache.get_cache(folder / "cache")
    _, notebook = cache.merge_match_into_notebook(reader(str(folder / f"{name}.md")))
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_what_chapters_put_out_is_kept(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    said, drawn, where = outputs(folder, "first")
    assert said[0].text == "imported: True said\n"
    assert "image/png" in drawn[0].data
    assert where[0].text == f"None {folder}\n"
    assert outputs(folder, "second")[0][0].text == "False\n"


@pytest.mark.slow
def test_a_chapter_that_fails_is_told_and_runs_again(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, first = ran
    assert "third: " in first.stdout
    assert [line for line in first.stdout.splitlines() if line.endswith("failed")] != []
    assert "ZeroDivisionError" in first.stderr
    with pytest.raises(KeyError):
        outputs(folder, "third")
    again = run(folder)
    assert [line.partition(":")[0] for line in again.stdout.splitlines()] == ["third"]
