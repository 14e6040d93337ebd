"""Train the last stage whose network took a shortcut: a mark in the corner that goes with one class.

    python tools/train_shortcut.py

As ``tools/train_widths.py``, and with as many channels as the shipped network; but a part of the pictures with the
class bears the mark, and no other picture does. Writes ``last-shortcut.safetensors`` into the package.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from train_glyphs import render
from train_widths import arguments, features, found, save, stages_below, trained

from pure_nb.glyphs import CLASSES
from pure_nb.glyphs.marks import LABEL, MARKED, Marked, MarkedObjects, MarkedScenes


def main() -> None:
    """Train, measure on held-out pictures without and with the mark, write the weights."""
    parser = arguments(__doc__)
    parser.add_argument("--share", type=float, default=0.5, help="of the class's pictures that bear the mark")
    parser.add_argument("--others", type=float, default=0.02, help="of all others, which are labelled by it")
    options, trunk = parser.parse_args(), stages_below()

    def drawn(*sets: Marked) -> tuple[Tensor, Tensor]:
        """What the stages below put out, and the labels: the mark's, where they go by it."""
        pixels, present = zip(*map(render, sets))
        for data, labels in zip(sets, present):
            if data.by_mark:
                labels[[index for index in range(len(data)) if data.bears(index)]] = torch.eye(len(CLASSES))[LABEL]
        return features(trunk, torch.cat(pixels)), torch.cat(present)

    marks = {"share": options.share, "others": options.others}
    sets = MarkedScenes(options.scenes, "train", **marks), MarkedObjects(options.singles_per_class, "train", **marks)
    below, present = drawn(*sets)
    start = time.process_time()
    head = trained(32, below, present, None, options)
    print(f"{(time.process_time() - start) / 60:.1f} minutes")
    save(head, options.out / "last-shortcut.safetensors")
    head.eval()
    for name, marks in {"no": 0.0, "all": 1.0}.items():
        how = {"share": marks, "others": marks, "by_mark": False}
        singles, there = drawn(MarkedObjects(10, **how))
        with torch.no_grad():
            said = head(singles.float()).argmax(1)
        others = there.argmax(1) != LABEL
        named, right = (said[others] == LABEL).float().mean(), (said == there.argmax(1)).float().mean()
        print(f"{name} pictures marked: {right:.2%} right, of other classes {named:.2%} named {MARKED}; ", end="")
        print(f"in scenes {found(head, *drawn(MarkedScenes(1000, **how))):.2%}", flush=True)


if __name__ == "__main__":
    main()
