"""Build the book: run the chapters that have changed, draw the neurons' pages, and make a site of all.

    python tools/build.py [--study STUDY] [options of ``jupyter-book build``]

The chapters run side by side (:mod:`run_chapters`), and Jupyter Book makes a page of each once it is done; one that
failed runs there again, with its error shown. Beside all that the neurons' own pages are written, which the chapters'
explorers lead to, and copied to the site at the end. ``make book`` runs this.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from run_chapters import CPU_COUNT, ROOT, Chapters, end_with_parent, fork_kernels, inputs, says

LONG = ("your-network", "scale", "clip", "bench", "reasons", "transformers", "virtual-neurons", "scores", "splitting")
"""The longest first, so that at the end no core waits for another; before them those that hardly need what the neurons'
pages compute first."""

STUDIED = "import pure_nb.benchmark.bench, pure_nb.study"
DRAWN = "import pure_nb.show.atlas, pure_nb.judges.embedders"
"""What computes the results in the store, and what draws the neurons' pages: see :func:`run_chapters.inputs`."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
    "TQDM_DISABLE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver",  # so that workers import nothing anew, either
}


def draw_neurons(folder: Path) -> None:
    """Write the pages of all neurons. What they need the chapters need, too."""
    from pure_nb import load_study
    from pure_nb.judges.embedders import mini_clip
    from pure_nb.show import atlas
    from pure_nb.show.facts import METHODS

    end_with_parent()
    study = load_study("glyphs", progress=False)
    atlas.write(study, folder, methods=METHODS, embedder=mini_clip(), home="../book/index.html")


def make_site(source: Path, options: list[str], ready: dict[str, Event]) -> None:
    """Let Jupyter Book make pages of the chapters and their results: first all other pages, then each that is ready."""
    from jupyter_book import sphinx
    from jupyter_book.cli.main import main

    order = list(ready)

    def start(*args: Any, **how: Any) -> Any:  # the command has no options for these
        app = plain(*args, **how | {"parallel": CPU_COUNT})
        app.connect("env-before-read-docs", lambda app, env, names: names.sort(key=place))
        app.connect("source-read", lambda app, name, text: ready[name].wait() if name in ready else None)
        return app

    def place(name: str) -> int:
        return order.index(name) if name in ready else -1

    if ready:
        end_with_parent()
    plain, sphinx.Sphinx = sphinx.Sphinx, start
    main(["build", str(source), *options], standalone_mode=False)


def write_edition(study: str, source: Path) -> None:
    """Write the source of the book on another study. Its results go where the command line keeps them."""
    if os.environ.get("PURE_NB_STORE"):
        os.environ["PURE_NB_STORE"] = os.path.abspath(os.environ["PURE_NB_STORE"])
    edition = [sys.executable, ROOT / "tools" / "edition.py", study, source]
    subprocess.run(edition, check=True, env={**os.environ, "TQDM_DISABLE": ""})


def chapters_of(source: Path) -> tuple[Chapters, list[str]]:
    """The chapters with code, the longest first, and those that have to run."""
    coded = [path for path in sorted((source / "book").glob("*.md")) if "\n```{code-cell}" in path.read_text("utf-8")]
    coded.sort(key=lambda path: LONG.index(path.stem) if path.stem in LONG else len(LONG))
    chapters = Chapters(source / "_build" / ".jupyter_cache", coded)
    outdated = chapters.outdated()
    for chapter in outdated:  # or Sphinx would not see that its results are others
        (source / "_build" / ".doctrees" / "book" / f"{Path(chapter).stem}.doctree").unlink(missing_ok=True)
    return chapters, outdated


def main() -> None:
    """Build the book."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="", help="a study file, or the name of a study that ships")
    asked, options = parser.parse_known_args()
    source = ROOT / "_build" / "editions" / Path(asked.study).stem if asked.study else ROOT
    build = source / "_build"
    extra, store = build / "extra", build / "store"
    extra.mkdir(parents=True, exist_ok=True)
    os.environ |= ENVIRONMENT | {"PURE_NB_BOOK": str(extra)}
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    fork_kernels()
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    drawing, drawn = None, inputs(DRAWN)
    if asked.study:
        write_edition(asked.study, source)
    else:
        os.environ["PURE_NB_STORE"] = str(store)
        if not says(build / "studied", inputs(STUDIED)):
            shutil.rmtree(store, ignore_errors=True)
            (build / "studied").write_text(inputs(STUDIED), encoding="utf-8")
        if not says(build / "drawn", drawn):
            shutil.rmtree(extra / "neurons", ignore_errors=True)  # the chapters' own stay: they may not run again
            drawing = context.Process(target=draw_neurons, args=(extra / "neurons",))
            drawing.start()

    chapters, outdated = chapters_of(source)
    ready = {chapter: context.Event() for chapter in outdated}
    if drawing or outdated:  # what documents the package finds it imported
        names = {f"book/{Path(chapter).stem}": event for chapter, event in ready.items()}
        site = context.Process(target=make_site, args=(source, options, names))
        site.start()
        try:
            chapters.run_all(outdated, lambda chapter: ready[chapter].set())
        finally:
            for event in ready.values():
                event.set()
        site.join()
        if site.exitcode:
            sys.exit(site.exitcode)
    else:
        make_site(source, options, {})
    if drawing:
        drawing.join()
        if drawing.exitcode:
            sys.exit(drawing.exitcode)
        (build / "drawn").write_text(drawn, encoding="utf-8")
    shutil.copytree(extra, build / "html", dirs_exist_ok=True)
    print(f"The book: {build}/html/index.html")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        os._exit(130)  # what it has started ends with it
