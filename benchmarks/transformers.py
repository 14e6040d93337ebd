"""What vision transformers take: circuits by LRP in units of those by the gradient, and the commands on large ones.

    python benchmarks/transformers.py
    python benchmarks/transformers.py --commands --data ../shared/data/photographs-free/pictures

The first: timm's ViT-S with random weights, 224 pixels, eight images and six channels of each; processor time of one
thread, the best of three, with the rules looked at before. At most 2.5 is the aim.

The second: the survey, and one neuron's picture, by the commands as a user types them, of that ViT-S and of open_clip's
ViT-B/32, with random weights on a folder of photographs. Processor seconds and the peak of each process; what a command
says on its standard error is printed, so that nothing odd goes unseen; the pictures are in ``figures``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from torch.utils.data import TensorDataset

from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.parameters import Rule, Run

PAIRS = (("blocks.10", "blocks.11"), ("blocks.5", "blocks.6.mlp.fc1"))
"""Lower layers and targets."""

MODELS = """\
import open_clip
import timm
import torch


def vit_s():
    torch.manual_seed(0)
    return timm.create_model("vit_small_patch16_224").eval()


def clip_b():
    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-32").visual.eval()
"""
LARGE = {
    "vit_s": ("patches:blocks.10", "patches:blocks.9"),
    "clip_b": ("patches:transformer.resblocks.10", "patches:transformer.resblocks.9"),
}
"""By the function above target and lower layer."""

STUDY = """\
[model]
source = "models.py:{model}"
[images]
source = "folder"
root = "{data}"
[parameters]
target = "{target}"
lower = "{lower}"
n_references = 12
"""


def ratios() -> None:
    """Measure circuits by LRP and by the gradient, and print a table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224").eval()
    images = Images(TensorDataset(torch.randn(8, 3, 224, 224)))
    channel, sample = (grid.ravel() for grid in np.meshgrid(np.arange(6), np.arange(8)))
    rules: tuple[Rule, ...] = ("gradient", "lrp")
    print("| lower | target | gradient ms/pair | LRP ms/pair | times |\n|---|---|--:|--:|--:|")
    for lower, target in PAIRS:
        best = dict.fromkeys(rules, np.inf)
        for _ in range(3):
            for rule in rules:
                begin = time.process_time()
                circuits(model, images, channel, sample, target=target, lower=lower, rule=rule, run=Run(progress=False))
                best[rule] = min(best[rule], (time.process_time() - begin) / len(sample) * 1000)
        gradient, lrp = best.values()
        print(f"| {lower} | {target} | {gradient:.1f} | {lrp:.1f} | {lrp / gradient:.2f} |")


def commands(data: Path) -> None:
    """Run the commands on both networks, print what they take and what they say."""
    print("| network | command | processor s | peak MiB |\n|---|---|--:|--:|")
    said = []
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "models.py").write_text(MODELS, encoding="utf-8")
        for model, (target, lower) in LARGE.items():
            study = STUDY.format(model=model, data=data.resolve(), target=target, lower=lower)
            (folder / f"{model}.toml").write_text(study, encoding="utf-8")
            for name, *rest in (["info"], ["plot", "--neurons", "3", "--out", str(Path.cwd() / "figures")]):
                seconds, most, errors = taken([name, f"{model}.toml", *rest], folder)
                print(f"| {model} | {name} | {seconds:.0f} | {most:.0f} |")
                said.append(f"--- {model}, {name}\n{errors}")
    print("\n".join(said))


def taken(command: Sequence[str], folder: Path) -> tuple[float, float, str]:
    """Processor seconds of a command of pure-nb, its peak in MiB, and what it said on its standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PURE_NB_STORE": str(folder / "store")}
    code = (
        "import resource, sys, pure_nb.cli as c\n"
        "try: c.app(sys.argv[1:], standalone_mode=False)\n"
        "finally:\n"
        "    u = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print('took', u.ru_utime + u.ru_stime, u.ru_maxrss / 1024, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    found = re.search(r"took ([\d.]+) ([\d.]+)", run.stderr)
    assert found is not None, run.stderr
    return float(found[1]), float(found[2]), run.stderr.replace(found[0], "").strip()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="the commands on large networks")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/photographs-free/pictures"), help="a folder")
    args = parser.parse_args()
    if args.commands:
        commands(args.data)
    else:
        ratios()


if __name__ == "__main__":
    main()
