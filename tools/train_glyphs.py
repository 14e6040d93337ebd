"""Train the network that ships, and write its weights and model card into the package.

    python tools/train_glyphs.py

Takes about a quarter of an hour on two cores. The seed fixes the data, the initial weights and the order of
the batches; the last digits of the result still depend on the processor.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from pure_nb.glyphs import CLASSES, MEAN, STD, GlyphObjects, GlyphScenes
from pure_nb.glyphs.network import GlyphNet

SHIPPED = Path(__file__).parent.parent / "pure_nb" / "glyphs"

Pictures = tuple[Tensor, Tensor]
"""uint8 ``[N, H, W, 3]``, and which classes each holds, ``[N, classes]``."""

CARD = """\
# Model card: the glyph network

Made by `tools/train_glyphs.py`; do not edit.

- **What**: `pure_nb.glyphs.network.GlyphNet`, {parameters:,} parameters, 48 classes, last stage of 32 channels.
- **Data**: glyph scenes of seed 0, split `train`: {scenes:,} scenes of one to four objects and {singles:,} pictures
  of a single object, each drawn once, by code; no photographs, no people, no third-party data. The glyphs are those of
  DejaVu Sans.
- **Recipe**: soft-target cross-entropy over the objects present, AdamW, weight decay 0.05, one cycle up to
  {rate} over {epochs} epochs, batches of {batch}, bfloat16 autocast, seed {seed}. {minutes:.0f} minutes on
  {threads} cores.
- **Held out** (split `val`, 4,000 scenes and 4,800 single objects, float32):
  - single objects: **{accuracy:.2%}** are named correctly;
  - scenes: **{recall:.2%}** of the objects are among the top k logits, k being the scene's number of objects.
- **Use**: to learn about neurons and to test methods that split them into parts. It knows nothing of photographs.
- **Torch** {torch}, Python {python}. Licence as the package.
"""


def _item(data: GlyphScenes, index: int) -> tuple[np.ndarray, np.ndarray]:
    scene = data.scene(index)
    present = np.zeros(len(CLASSES), dtype=np.float32)
    present[[o.label for o in scene.objects]] = 1
    return scene.image, present


def render(data: GlyphScenes) -> Pictures:
    """All pictures of a data set, uint8 ``[N, H, W, 3]``, and which classes each holds, ``[N, classes]``."""
    with ProcessPoolExecutor() as pool:
        items = list(tqdm(pool.map(partial(_item, data), range(len(data)), chunksize=64), total=len(data), desc="draw"))
    pixels, present = zip(*items)
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(present))


def prepare(pixels: Tensor) -> Tensor:
    """uint8 ``[B, H, W, 3]`` to normalised floats ``[B, 3, H, W]``, channels last in memory."""
    images = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return images.permute(0, 3, 1, 2)


@torch.no_grad()
def recall(model: nn.Module, pixels: Tensor, present: Tensor) -> float:
    """Share of the objects that are among the top k logits of their picture, k being its number of objects."""
    model.eval()
    logits = torch.cat([model(prepare(batch)) for batch in pixels.split(200)])
    ranks = logits.argsort(descending=True).argsort()
    found = (ranks < present.sum(1, keepdim=True)) & present.bool()
    return float(found.sum() / present.sum())


def arguments(description: str | None, *, scenes: int, epochs: int, rate: float) -> argparse.ArgumentParser:
    """How a network is trained, with its own defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=scenes)
    parser.add_argument("--singles-per-class", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    return parser


def drawn(options: argparse.Namespace) -> tuple[Pictures, Pictures, Pictures]:
    """Pictures to train with, and held-out scenes and single objects."""
    parts = [
        render(GlyphScenes(options.scenes, "train")),
        render(GlyphObjects(options.singles_per_class, "train")),
    ]
    pixels, present = (torch.cat(tensors) for tensors in zip(*parts))
    return (pixels, present), render(GlyphScenes(4000, "val")), render(GlyphObjects(100, "val"))


def fit(
    model: nn.Module,
    pictures: tuple[Pictures, Pictures, Pictures],
    options: argparse.Namespace,
    *,
    half: bool = False,
    clip: float = math.inf,
) -> float:
    """Train a network, and say how long it took in seconds; in bfloat16 if ``half``, gradients clipped at a norm."""
    (pixels, present), scenes, singles = pictures
    steps = len(pixels) // options.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps * options.epochs)
    start = time.time()
    for epoch in range(options.epochs):
        model.train()
        order, losses = torch.randperm(len(pixels)), []
        for batch in tqdm(order.split(options.batch)[:steps], desc=f"epoch {epoch + 1}", mininterval=10):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = model(prepare(pixels[batch]))
            target = present[batch] / present[batch].sum(1, keepdim=True)
            loss = cross_entropy(logits.float(), target)
            optimizer.zero_grad()
            loss.backward()
            if clip < math.inf:
                clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, scenes {recall(model, *scenes):.4f}, "
            f"single objects {recall(model, *singles):.4f}, {time.time() - start:.0f} s",
            flush=True,
        )
    return time.time() - start


def write_card(path: Path, card: str, model: nn.Module, held_out: Sequence[Pictures], **told: object) -> None:
    """Fill in a model card what was measured, write it beside the weights, and print it."""
    scenes, singles = held_out
    text = card.format(
        parameters=sum(p.numel() for p in model.parameters()),
        accuracy=recall(model, *singles),
        recall=recall(model, *scenes),
        torch=torch.__version__.split("+")[0],
        **told,
    )
    path.write_text(text, encoding="utf-8")
    print(text)


def recipe(options: argparse.Namespace) -> dict[str, object]:
    """What a card tells of how a network was trained."""
    own = {name: getattr(options, name) for name in ("scenes", "rate", "epochs", "batch", "seed")}
    return own | {"singles": options.singles_per_class * len(CLASSES)}


def main() -> None:
    """Train, measure on held-out pictures, write ``network.safetensors`` and ``network.md``."""
    options = arguments(__doc__, scenes=36_000, epochs=22, rate=4e-3).parse_args()
    torch.manual_seed(options.seed)
    pictures = drawn(options)
    model = GlyphNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seconds = fit(model, pictures, options, half=True)

    options.out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, options.out / "network.safetensors")
    told = {"minutes": seconds / 60, "threads": torch.get_num_threads(), "python": platform.python_version()}
    write_card(options.out / "network.md", CARD, model, pictures[1:], **told, **recipe(options))


if __name__ == "__main__":
    main()
