"""What a newcomer waits for: ``pure-nb run`` and an atlas of six neurons, of two checkouts of the package.

    git worktree add --detach ../before ed9b998
    python benchmarks/newcomer.py --weights WEIGHTS --photographs FOLDER --before ../before --out newcomer.csv

A network, and a folder of photographs with a subfolder for each label, of which so many are copied, evenly spread.
Each side runs the same commands with an empty store, one after the other and each in a fresh process with one thread.
*Before* and *now* are processor seconds, imports and whatever a process starts included, those of a step as ``run``
prints them, with that clock for its own. Without --before the other side is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from imports import children

STUDY = """
[model]
source = "{args.model}"
weights = "{args.weights}"

[images]
source = "folder"
root = "{images}"
resize = 256
crop = 224

[parameters]
target = "{args.target}"
lower = "{args.lower}"
"""
COMMAND = """
import os
import psutil
from pure_nb import cli

def clock():  # processor seconds of this process, and of those it started, whether they live or have ended
    ended = os.times()[:4]
    return sum(ended) + sum(sum(one.cpu_times()[:4]) for one in psutil.Process().children(recursive=True))

cli.perf_counter = clock
cli.app()
"""


def sample(photographs: Path, count: int, folder: Path) -> None:
    """Copy so many photographs, evenly spread over all, each into its label's subfolder."""
    files = sorted(path for path in photographs.glob("*/*") if path.is_file())
    for number in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int).tolist():
        place = folder / files[number].relative_to(photographs)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[number], place)


def seconds(checkout: Path, folder: Path, words: list[str]) -> tuple[float, dict[str, float]]:
    """Processor seconds of a command of a checkout's ``pure-nb``, and of the steps that it tells of."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    environment = os.environ | threads | {"PYTHONPATH": str(checkout.resolve()), "PURE_NB_STORE": str(folder / "store")}
    command, before = [sys.executable, "-c", COMMAND, *words], children()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"pure-nb {' '.join(words)} of {checkout} ended with {done.returncode}")
    steps = {name: float(value) for name, value in re.findall(r"^([\w ]+): ([\d.]+) s$", done.stdout, re.M)}
    return children() - before, steps


def side(checkout: Path, args: argparse.Namespace) -> dict[str, float]:
    """Processor seconds of all that a newcomer asks for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample(args.photographs, args.images, folder / "images")
        (folder / "newcomer.toml").write_text(STUDY.format(args=args, images=folder / "images"), encoding="utf-8")
        run, steps = seconds(checkout, folder, ["run", "newcomer.toml"])
        atlas, _ = seconds(checkout, folder, ["atlas", "newcomer.toml", "--out", "site", "--neurons", args.neurons])
    inside = {f"run: {step}": value for step, value in steps.items()}
    return {**inside, "run": run, "atlas": atlas, "together": run + atlas}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=lambda text: Path(text).absolute(), required=True)
    parser.add_argument("--photographs", type=Path, required=True, help="a subfolder for each label")
    parser.add_argument("--before", type=Path, help="the checkout to compare with")
    parser.add_argument("--now", type=Path, default=Path(__file__).parents[1], help="by default this one")
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--target", default="layer4.2.conv2")
    parser.add_argument("--lower", default="nearest")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--neurons", default="0,100,200,300,400,500", help="those of the atlas")
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    args = parser.parse_args()
    checkouts = {name: path for name in ("before", "now") if (path := getattr(args, name))}
    found: Any = pd.DataFrame({name: side(checkout, args) for name, checkout in checkouts.items()})
    if args.before:
        found["times faster"] = found["before"] / found["now"]
    print(found.to_string(float_format=lambda value: f"{value:.3g}"))
    if args.out is not None:
        found.to_csv(args.out, index_label="step", float_format="%.4g")


if __name__ == "__main__":
    main()
