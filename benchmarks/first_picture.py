"""How long a newcomer waits: the README's five lines and a neuron's picture beside ``import torch, torchvision``.

    python benchmarks/first_picture.py

Each in processes of its own with an empty store, taking turns, after a first round that is not counted. Medians over
the rounds of user and system time, on one thread and on as many as there are cores.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from imports import seconds

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
(FIVE,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LOADED = 'import torch, torchvision, pure_nb; study = pure_nb.load_study("glyphs"); '
CODE = {
    "`import torch, torchvision`": "import torch, torchvision",
    "the five lines": FIVE,
    "all of them but the last": FIVE.replace("study.neuron(22)", "# "),
    "`study.neuron(22)`, shown": f"{LOADED} study.neuron(22)._repr_png_()",
}
"""What Python is given to run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; in each everything runs once")
    repeats = parser.parse_args().repeats
    base, *_ = CODE
    print(f"| | threads | s | beyond {base} | times that |\n|---|--:|--:|--:|--:|")
    for threads in dict.fromkeys((1, os.cpu_count() or 1)):
        found: dict[str, list[float]] = {name: [] for name in CODE}
        for _ in range(1 + repeats):
            for name, code in CODE.items():
                with TemporaryDirectory() as folder:
                    os.chdir(folder)  # for the picture
                    os.environ["PURE_NB_STORE"] = f"{folder}/store"
                    found[name].append(seconds([code], threads))
                    os.chdir("/")
        taken = {name: statistics.median(own[1:]) for name, own in found.items()}
        for name, own in taken.items():
            print(f"| {name} | {threads} | {own:.2f} | {own - taken[base]:.2f} | {own / taken[base]:.2f} |")


if __name__ == "__main__":
    main()
