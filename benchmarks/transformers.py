"""What circuits of a vision transformer take by LRP, as times what they take by the gradient: at most 2.5 is the aim.

    python benchmarks/transformers.py

timm's ViT-S with random weights, 224 pixels, eight images and six channels of each; processor time of one thread, the
best of three, with the rules looked at before.
"""

from __future__ import annotations

import time

import numpy as np
import timm
import torch
from torch.utils.data import TensorDataset

from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.parameters import Rule, Run

PAIRS = (("blocks.10", "blocks.11"), ("blocks.5", "blocks.6.mlp.fc1"))
"""Lower layers and targets."""


def main() -> None:
    """Measure and print a table."""
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


if __name__ == "__main__":
    main()
