"""Compute anew what ships of a study's results: what the README's five lines, a neuron's picture and an explorer need.

    python tools/ship_results.py

Takes a minute of one core, and writes the same bytes each time on one machine with one set of packages. To be run again
when a result is computed or found differently, as `tests/test_shipped_results.py` will say.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # before torch looks: sums in another order end in other digits

from pure_nb.compute.store import Store
from pure_nb.loading import SHIPPED, load_study


def compute(folder: Path) -> None:
    """Compute what ships of the study into a folder, from nothing that is known."""
    study = load_study("glyphs", progress=False).replace(store=Store(folder))
    _ = study.circuits, study.layouts, study.neurons, study.crops.boxes  # and what these are made of
    for lock in folder.glob(".*.lock"):
        lock.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="where to write them; what is there is removed")
    shipped = parser.parse_args().folder
    with TemporaryDirectory() as folder:
        compute(Path(folder))
        shutil.rmtree(shipped, ignore_errors=True)
        shutil.copytree(folder, shipped)


if __name__ == "__main__":
    main()
