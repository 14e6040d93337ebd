"""Chapters that run in forks of one process: what they put out is kept, what fails is not, and each is on its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from built import ROOT

jupyter_cache = pytest.importorskip("jupyter_cache")
chapters = pytest.importorskip("run_chapters", reason="Windows knows no forks", exc_type=ImportError)
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
    "fourth": ["import os\nos.kill(os.getpid(), 9)"],
}
SCRIPT = [sys.executable, ROOT / "tools" / "run_chapters.py"]
LINUX = sys.platform == "linux"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("my chapters")
    for name, cells in CHAPTERS.items():
        text = "\n\n".join(f"```{{code-cell}} ipython3\n{cell}\n```" for cell in cells)
        (folder / f"{name}.md").write_text(HEAD + text, encoding="utf-8")
    return folder, run(folder)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [*SCRIPT, folder / "cache", *(folder / f"{name}.md" for name in CHAPTERS)]
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
    assert said[0].text == f"imported: {LINUX} said\n"
    assert "image/png" in drawn[0].data
    assert where[0].text == f"None {folder}\n"
    assert outputs(folder, "second")[0][0].text == "False\n"


@pytest.mark.slow
def test_a_chapter_that_fails_is_told_and_runs_again(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, first = ran
    lines = {line.partition(":")[0]: line for line in first.stdout.splitlines()}
    assert set(lines) == set(CHAPTERS)
    assert {name for name, line in lines.items() if line.endswith(", failed")} == {"third", "fourth"}
    assert "ZeroDivisionError" in first.stderr
    assert "DeadKernelError" in first.stderr
    for name in ("third", "fourth"):
        with pytest.raises(KeyError):
            outputs(folder, name)
    again = chapters.Chapters(folder / "cache", [folder / f"{name}.md" for name in CHAPTERS]).outdated()
    assert {Path(uri).stem for uri in again} == {"third", "fourth"}


@pytest.mark.slow
@pytest.mark.parametrize(("changed", "again"), [("", ["third"]), ("two", ["second", "third"])])
def test_a_chapter_runs_again_when_what_it_is_made_from_has_changed(
    ran: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, again: list[str]
) -> None:
    """Also where its own text is as before; the third had failed, and has no result."""
    folder, _ = ran
    shutil.copytree(folder / "cache", tmp_path / "cache")
    now = chapters.inputs
    if changed:  # what the second was made from
        monkeypatch.setattr(chapters, "inputs", lambda code: changed if "kept' in" in code else now(code))
    found = chapters.Chapters(tmp_path / "cache", [folder / f"{name}.md" for name in ("first", "second", "third")])
    assert [Path(uri).stem for uri in found.outdated()] == again


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        *(("a", True), ("b", True), ("c", False), ("d", False), ("__init__", True), ("data", True)),
        *(("e/f", True), ("e/__init__", True), ("e/g", False), ("e/h", True)),
    ],
)
def test_what_a_chapter_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, matters: bool
) -> None:
    """Modules that it imports, at any remove and also within functions, or has a name of by asking a package; and data.

    Not those for types, nor others.
    """
    package = tmp_path / "pure_nb"
    (package / "studies").mkdir(parents=True)
    (package / "e").mkdir()
    texts = {"__init__": "", "a": "import b\n\ndef f():\n    from pure_nb import b", "b": "", "c": "import pure_nb.d"}
    texts |= {"e/__init__": "if TYPE_CHECKING:\n    from pure_nb.e.g import x\n    from pure_nb.e.h import z as y"}
    texts |= {"e/f": "", "e/g": "", "e/h": "", "b": "import pure_nb.e\nfrom pure_nb.e import f\npure_nb.e.y.method()"}
    texts |= {"d": "", "a": f"{texts['a']}\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pure_nb.c"}
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    data = package / "studies" / "glyphs.toml"
    data.touch()
    (tmp_path / "constraints.txt").touch()
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    code = "import pure_nb\nfrom pure_nb.a import f\nf(pure_nb.one)"
    before = chapters.inputs(code)
    with (data if changed == "data" else package / f"{changed}.py").open("a", encoding="utf-8") as file:
        file.write("\n# changed")
    chapters._reached.cache_clear()
    chapters._digest.cache_clear()
    assert (chapters.inputs(code) != before) == matters


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="kernels are forked on Linux only")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_kernels_end_with_the_script(tmp_path: Path, number: int) -> None:
    code = "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '300'])\n"
    code += (
        "open('pids.part', 'w').write(f'{os.getpid()} {child.pid}')\nos.rename('pids.part', 'pids')\ntime.sleep(300)"
    )
    (tmp_path / "long.md").write_text(f"{HEAD}```{{code-cell}} ipython3\n{code}\n```\n", encoding="utf-8")
    started = subprocess.Popen(
        [*SCRIPT, tmp_path / "cache", tmp_path / "long.md"],
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    try:
        assert within(120, (tmp_path / "pids").is_file)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text(encoding="utf-8").split()]
        started.send_signal(number)
        assert started.wait(30) != 0
        assert within(30, lambda: not any(map(runs, pids)))
    finally:
        started.kill()


def within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
