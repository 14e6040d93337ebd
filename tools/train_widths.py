"""Train last stages of other widths for the network that ships, and one whose channels are shared by given classes.

    python tools/train_widths.py

The stages below are those of the shipped network, and are not trained: only the width of the last one differs, and
only the last one and the head are written, in half precision. Loss, optimiser, rate, batches and seed are those of
``tools/train_glyphs.py``; there are fewer scenes and epochs, for all of them alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_glyphs import SHIPPED, prepare, render

from pure_nb.glyphs import CLASSES, GlyphObjects, GlyphScenes
from pure_nb.glyphs.network import LAST, SIBLINGS, GlyphNet
from pure_nb.loading import load_model


def shared_duties(seed: int) -> NDArray[np.bool_]:
    """Which channels feed which classes, bool ``[classes, channels]``: half of the channels feed two, the others one.

    The classes that share stand in a ring, in random order, and each two neighbours share a channel.
    """
    order = np.random.default_rng(seed).permutation(len(CLASSES))
    alone, ring = np.split(order, 2)
    feeds = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.bool_)
    feeds[alone, np.arange(len(alone))] = True
    for first in (ring, np.roll(ring, -1)):
        feeds[first, len(alone) + np.arange(len(ring))] = True
    return feeds


@torch.no_grad()
def features(trunk: nn.Sequential, pixels: Tensor) -> Tensor:
    """What the stages below put out, in half precision."""
    return torch.cat([trunk(prepare(batch)).half() for batch in pixels.split(64)])


@torch.no_grad()
def found(head: nn.Sequential, below: Tensor, present: Tensor) -> float:
    """Share of the objects that are among the top k logits of their picture, k being its number of objects."""
    head.eval()
    logits = torch.cat([head(batch.float()) for batch in below.split(200)])
    ranks = logits.argsort(descending=True).argsort()
    return float(((ranks < present.sum(1, keepdim=True)) & present.bool()).sum() / present.sum())


def trained(
    width: int, below: Tensor, present: Tensor, feeds: Tensor | None, options: argparse.Namespace
) -> nn.Sequential:
    """A last stage and its head; where ``feeds`` is False, a channel has no say, and elsewhere none against a class."""
    torch.manual_seed(options.seed)
    model = GlyphNet(width)
    head = nn.Sequential(*[getattr(model, name) for name in LAST]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = model.fc.weight

    def hold() -> None:
        if feeds is not None:
            with torch.no_grad():
                weight.clamp_(min=0).mul_(feeds)

    if feeds is not None:
        nn.init.ones_(weight)
    hold()
    steps = len(below) // options.batch
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps * options.epochs)
    for epoch in range(options.epochs):
        head.train()
        losses = []
        for batch in torch.randperm(len(below)).split(options.batch)[:steps]:
            target = present[batch] / present[batch].sum(1, keepdim=True)
            loss = cross_entropy(head(below[batch].float()), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            hold()
            losses.append(loss.item())
        print(f"width {width}, epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    return head


def arguments(description: str | None) -> argparse.ArgumentParser:
    """How last stages are trained."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--singles-per-class", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    return parser


def stages_below() -> nn.Sequential:
    """Those of the shipped network, which are not trained."""
    return nn.Sequential(*[part for name, part in load_model("glyphnet").named_children() if name not in LAST])


def save(head: nn.Sequential, path: Path) -> None:
    """Write a last stage and its head in half precision."""
    state = {
        f"{layer}.{entry}": tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for layer, part in zip(LAST, head)
        for entry, tensor in part.state_dict().items()
    }
    path.parent.mkdir(exist_ok=True)
    save_file(state, path)


def main() -> None:
    """Train, measure on held-out pictures, and write ``last-NAME.safetensors`` into the package."""
    options, trunk = arguments(__doc__).parse_args(), stages_below()

    def drawn(*sets: GlyphScenes) -> tuple[Tensor, Tensor]:
        pixels, present = zip(*map(render, sets))
        return features(trunk, torch.cat(pixels)), torch.cat(present)

    below, present = drawn(GlyphScenes(options.scenes, "train"), GlyphObjects(options.singles_per_class, "train"))
    scenes, singles = drawn(GlyphScenes(1000, "val")), drawn(GlyphObjects(10, "val"))
    for name, width in SIBLINGS.items():
        if name == "shortcut":  # which tools/train_shortcut.py trains
            continue
        start = time.process_time()
        feeds = torch.from_numpy(shared_duties(options.seed)) if name == "shared" else None
        head = trained(width, below, present, feeds, options)
        save(head, options.out / f"last-{name}.safetensors")
        accuracy, recall = found(head, *singles), found(head, *scenes)
        took = (time.process_time() - start) / 60
        print(f"| {name} | {width} | {accuracy:.2%} | {recall:.2%} | {took:.1f} |", flush=True)


if __name__ == "__main__":
    main()
