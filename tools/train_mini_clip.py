"""Train the mini-CLIP that ships, and write its weights and model card into the package.

    python tools/train_mini_clip.py

Crops and scenes of the glyph world with their captions, open_clip's own model and loss. Takes about half an hour on
one core. The seed fixes the data, the initial weights and the order; the last digits depend on the processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from glyph_crops import captions, cut, draw, inside, windows
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from safetensors.torch import save_file
from tqdm import tqdm

from pure_nb.glyphs import CLASSES, COLOURS, GROUNDS
from pure_nb.judges.embedders import WordTokenizer

ASSETS = Path(__file__).parent.parent / "pure_nb" / "judges" / "mini-clip"
WORDS = [
    *(c.name for c in CLASSES),
    *COLOURS,
    *("white", "grey", "black"),
    *GROUNDS,
    *("and", "on", "ground", "nothing"),
]
CONTEXT = 24
SIZE = 64
CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(WORDS) + 3,
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    },
    "words": WORDS,
}

CARD = """\
# Model card: mini-CLIP

Made by `tools/train_mini_clip.py`; do not edit.

- **What**: an `open_clip` CLIP model, a modified ResNet of one block a stage and a text transformer of two layers over
  {words} words; {parameters:,} parameters, 64 dimensions, pictures of {size} x {size} pixels. `open_clip_config.json`
  beside the weights has all sizes; `pure_nb.judges.embedders.mini_clip()` loads it.
- **Data**: glyph scenes, split `train`, drawn by code: {scenes:,} of seed {seed}, and {singles:,} pictures of one
  object of the next. Crops around an object, 0.9 to 2.2 times its size and shifted, and every eighth time the whole
  scene, with captions of what is in them (object, colour, ground). No photographs, no third-party data. Neither the
  network that the book studies nor its activations were seen.
- **Recipe**: open_clip's `ClipLoss`, AdamW, weight decay 0.1, one cycle up to {rate} over {steps:,} batches of {batch},
  bfloat16 autocast. {minutes:.0f} minutes on {threads} core(s).
- **Held out** (world of seed 0, split `val`, 4,800 pictures of one object, the prompt `a NAME`, 48 names):
  - crops around the object as in training: **{crop:.2%}** are named correctly;
  - whole pictures: **{whole:.2%}**.
- **Use**: to stand for CLIP where nothing may be downloaded. It knows these 48 things and nothing else.
- **Torch** {torch}, open_clip {open_clip}, Python {python}. Licence as the package.
"""


@torch.no_grad()
def zero_shot(model: CLIP, tokenizer: WordTokenizer, images: torch.Tensor, labels: np.ndarray) -> float:
    """Share of pictures whose nearest name is the true one."""
    model.eval()
    names = model.encode_text(tokenizer([f"a {c.name}" for c in CLASSES]), normalize=True)
    found = torch.cat([model.encode_image(batch, normalize=True) @ names.T for batch in images.split(200)])
    return float((found.argmax(dim=1).numpy() == labels).mean())


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40_000)
    parser.add_argument("--singles", type=int, default=9_600)
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ASSETS)
    return parser.parse_args()


def main() -> None:
    """Train, measure on held-out pictures, write the weights, the configuration and the card."""
    options = arguments()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    generator = np.random.default_rng(options.seed)
    parts = [draw(options.scenes, options.seed), draw(options.singles, options.seed + 1, singles=True)]
    held_out = draw(4800, 0, "val", singles=True)
    every = np.arange(4800)
    whole = np.tile(np.float32([0, 0, 96, 96]), (4800, 1))
    tests = {
        "crop": cut(held_out, every, windows(held_out, every, np.random.default_rng(0)), SIZE),
        "whole": cut(held_out, every, whole, SIZE),
    }
    labels = every % len(CLASSES)

    tokenizer = WordTokenizer(WORDS, CONTEXT)
    model = CLIP(**CONFIG["model_cfg"]).to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=options.steps, pct_start=0.1)
    loss_of = ClipLoss()
    start, losses = time.time(), []
    sizes = np.array([len(part.grounds) for part in parts])
    for step in tqdm(range(1, options.steps + 1), "train", mininterval=30):
        model.train()
        images, texts = [], []
        for part, share in zip(parts, generator.multinomial(options.batch, sizes / sizes.sum())):
            chosen = generator.integers(0, len(part.grounds), share)
            window = windows(part, chosen, generator)
            images.append(cut(part, chosen, window, SIZE))
            texts += captions(part, chosen, inside(part, chosen, window), generator)
        with torch.autocast("cpu", torch.bfloat16):
            image, text, scale = model(torch.cat(images), tokenizer(texts))
        loss = loss_of(image.float(), text.float(), scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        losses.append(loss.item())
        if step % 250 == 0:
            found = {name: zero_shot(model, tokenizer, images, labels) for name, images in tests.items()}
            print(f"{step}: loss {np.mean(losses[-250:]):.3f}, {found}, {time.time() - start:.0f} s", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, options.out / "open_clip_model.safetensors")
    (options.out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    card = CARD.format(
        words=len(WORDS),
        parameters=sum(p.numel() for p in model.parameters()),
        size=SIZE,
        minutes=(time.time() - start) / 60,
        torch=torch.__version__.split("+")[0],
        open_clip=open_clip.__version__,
        python=platform.python_version(),
        **{name: zero_shot(model, tokenizer, images, labels) for name, images in tests.items()},
        **vars(options),
    )
    (options.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
