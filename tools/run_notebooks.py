"""Run notebooks one after the other, each in an empty folder, and say which of them fail.

    python tools/run_notebooks.py _build/html/notebooks [--report report.md]

It imports nothing of the repository: copied beside the notebooks it runs with the wheel alone, as in Colab.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import nbclient
import nbformat

SECONDS = 1800
"""For one cell."""


def run(path: Path) -> str:
    """Run a notebook; what went wrong, in a line, or nothing."""
    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        try:
            nbclient.NotebookClient(book, timeout=SECONDS, kernel_name="python3", resources=where).execute()
        except nbclient.exceptions.CellExecutionError as error:
            return f"{error.ename}: {error.evalue}".partition("\n")[0]
        except nbclient.exceptions.CellTimeoutError:
            return f"a cell takes more than {SECONDS} s"
        except nbclient.exceptions.DeadKernelError:
            return "the kernel died"
    return ""


def main() -> None:
    """Run the notebooks of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--report", type=Path, help="where to write a table of what ran")
    options = parser.parse_args()
    paths = sorted(options.folder.glob("*.ipynb"))
    if not paths:
        sys.exit(f"no notebooks in {options.folder}: make book writes them to _build/html/notebooks")
    rows, failed = ["| notebook | seconds | |", "|---|--:|---|"], 0
    for path in paths:
        start = perf_counter()
        wrong = run(path)
        failed += bool(wrong)
        rows.append(f"| {path.stem} | {perf_counter() - start:.0f} | {wrong or 'ran'} |")
        print(rows[-1], flush=True)
    if options.report:
        used = ", ".join(f"{name} {version(name)}" for name in ("pure-nb", "torch", "numpy", "zennit"))
        options.report.write_text(f"{used}\n\n" + "\n".join(rows) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"{failed} of {len(paths)} notebooks fail")


if __name__ == "__main__":
    main()
