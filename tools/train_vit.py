"""Train the small vision transformer that ships, and write its weights, in half precision, and its model card.

    python tools/train_vit.py

The scenes are those of the shipped ResNet's split, and more of them, since a transformer knows less of pictures to
begin with. Loss, optimiser and batches are the ResNet's as well.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from train_glyphs import SHIPPED, prepare, recall, render

from pure_nb.glyphs import CLASSES, GlyphObjects, GlyphScenes
from pure_nb.glyphs.vit import NEURONS, GlyphViT

CARD = """\
# Model card: the small vision transformer

Made by `tools/train_vit.py`; do not edit.

- **What**: `pure_nb.glyphs.vit.GlyphViT`, {parameters:,} parameters, 48 classes, four blocks of {neurons} MLP neurons.
- **Data**: glyph scenes of seed 0, split `train`: {scenes:,} scenes of one to four objects and {singles:,} pictures
  of a single object, each drawn once, by code; no photographs, no people, no third-party data.
- **Recipe**: soft-target cross-entropy over the objects present, AdamW, weight decay 0.05, one cycle up to
  {rate} over {epochs} epochs, batches of {batch}, gradients clipped at norm 1, seed {seed}.
- **Held out** (split `val`, 4,000 scenes and 4,800 single objects, half-precision weights):
  - single objects: **{accuracy:.2%}** are named correctly;
  - scenes: **{recall:.2%}** of the objects are among the top k logits, k being the scene's number of objects.
- **Use**: to learn about the neurons of transformers. It knows nothing of photographs.
- **Torch** {torch}. Licence as the package.
"""


def main() -> None:
    """Train, measure on held-out pictures, write ``vit.safetensors`` and ``vit.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60_000)
    parser.add_argument("--singles-per-class", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    parts = [
        render(GlyphScenes(options.scenes, "train")),
        render(GlyphObjects(options.singles_per_class, "train")),
    ]
    pixels, present = (torch.cat(tensors) for tensors in zip(*parts))
    del parts
    scenes, singles = render(GlyphScenes(4000, "val")), render(GlyphObjects(100, "val"))

    model = GlyphViT()
    steps = len(pixels) // options.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps * options.epochs)
    start = time.time()
    for epoch in range(options.epochs):
        model.train()
        losses = []
        for batch in torch.randperm(len(pixels)).split(options.batch)[:steps]:
            target = present[batch] / present[batch].sum(1, keepdim=True)
            loss = cross_entropy(model(prepare(pixels[batch])), target)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, scenes {recall(model, *scenes):.4f}, "
            f"single objects {recall(model, *singles):.4f}, {time.time() - start:.0f} s",
            flush=True,
        )
        weights = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
        save_file(weights, SHIPPED / "vit.safetensors")

    model.load_state_dict(weights)
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        neurons=NEURONS,
        scenes=options.scenes,
        singles=options.singles_per_class * len(CLASSES),
        **{name: getattr(options, name) for name in ("rate", "epochs", "batch", "seed")},
        accuracy=recall(model, *singles),
        recall=recall(model, *scenes),
        torch=torch.__version__.split("+")[0],
    )
    (SHIPPED / "vit.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
