"""Train the mini-DINO that ships, and write its weights and model card into the package.

    pip install -e ".[train]"
    python tools/train_mini_dino.py

A small vision transformer of timm learns from crops of the glyph world without their labels. Takes about three
quarters of an hour on one core. The loss is lightly's NT-Xent (SimCLR): on a model and a budget this small DINO's own
stays at the uniform answer.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import lightly
import numpy as np
import timm
import torch
from glyph_crops import cut, draw, windows
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from tqdm import tqdm

from pure_nb.glyphs import CLASSES

ASSETS = Path(__file__).parent.parent / "pure_nb" / "judges" / "mini-dino"
SIZE = 48
ARCHITECTURE = "vit_tiny_patch16_224"
SHAPE = {
    "img_size": SIZE,
    "patch_size": 8,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "dynamic_img_size": True,
    "class_token": False,
    "global_pool": "avg",
    "num_classes": 0,
}
CONFIG = {
    "architecture": ARCHITECTURE,
    "num_classes": 0,
    "num_features": SHAPE["embed_dim"],
    "model_args": SHAPE,
    "pretrained_cfg": {
        "input_size": [3, SIZE, SIZE],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}

CARD = """\
# Model card: mini-DINO

Made by `tools/train_mini_dino.py`; do not edit.

- **What**: a vision transformer of timm ({architecture} with 8 x 8 patches, {depth} blocks, {width} dimensions),
  {parameters:,} parameters, pictures of {size} x {size} pixels. `pure_nb.judges.embedders.mini_dino()` loads it.
- **Data**: crops of glyph scenes of seed {seed}, split `train`, drawn by code: {scenes:,} scenes. Windows lie around
  objects; what they show was never told. No photographs, no third-party data. Neither the network that the book
  studies nor its activations were seen.
- **Recipe**: no labels; two views of a crop, each another part of it in other colours, are to be near each other and
  far from those of other crops: lightly's `NTXentLoss` (SimCLR) at temperature {temperature}, AdamW, one cycle up to
  {rate} over {steps:,} batches of {batch}. (DINO's own loss stayed at the uniform answer on this budget.)
  {minutes:.0f} minutes on {threads} core(s).
- **Held out** (world of seed 0, split `val`, crops of 4,800 pictures of one object, mean of all tokens):
  - {neighbours} nearest neighbours among 4,800 other crops: **{knn:.2%}** named correctly (chance 2.08 %);
  - logistic regression on those: **{linear:.2%}**;
  - the same ViT with random weights: {random_knn:.2%} and {random_linear:.2%}.
- **Use**: to stand for DINOv2 where nothing may be downloaded.
- **Torch** {torch}, timm {timm}, lightly {lightly}, Python {python}. Licence as the package.
"""


def parts_of(window: np.ndarray, low: float, high: float, generator: np.random.Generator) -> np.ndarray:
    """A random square within each window, with a share of its area between two bounds."""
    side = (window[:, 2] - window[:, 0])[:, None]
    own = side * np.sqrt(generator.uniform(low, high, (len(window), 1)))
    corner = window[:, :2] + generator.random((len(window), 2)) * (side - own)
    return np.concatenate([corner, corner + own], axis=1).astype(np.float32)


def recoloured(images: Tensor) -> Tensor:
    """Other colours for each picture: mixed channels, other contrast and brightness, sometimes grey or inverted."""
    count = len(images)
    mix = torch.eye(3) + 0.35 * torch.randn(count, 3, 3)
    mix /= mix.sum(dim=2, keepdim=True).clamp(min=0.4)
    grey = torch.rand(count) < 0.2
    mix[grey] = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    contrast = (0.6 + 0.8 * torch.rand(count, 1, 1, 1)) * torch.where(torch.rand(count, 1, 1, 1) < 0.2, -1.0, 1.0)
    found = torch.einsum("bij,bjhw->bihw", mix, images) * contrast + 0.25 * torch.randn(count, 1, 1, 1)
    return (found + 0.03 * torch.randn_like(found)).clamp(-1, 1)


@torch.no_grad()
def features(backbone: nn.Module, images: Tensor) -> np.ndarray:
    backbone.eval()
    return torch.cat([backbone.forward_features(batch).mean(dim=1) for batch in images.split(200)]).numpy()


def probes(backbone: nn.Module, images: list[Tensor], labels: np.ndarray, *, linear: bool = False) -> list[float]:
    """Share of named crops of the second kind by their neighbours among the first; and by a linear classifier."""
    known, asked = (features(backbone, part) for part in images)
    scores = [KNeighborsClassifier(10, metric="cosine").fit(known, labels).score(asked, labels)]
    if linear:
        scale = known.std(axis=0) + 1e-6
        scores.append(LogisticRegression(max_iter=2000).fit(known / scale, labels).score(asked / scale, labels))
    return scores


def single_crops(seed: int) -> Tensor:
    """Crops of 4,800 held-out pictures of one object, the classes in turn."""
    scenes, every = draw(4800, seed, "val", singles=True), np.arange(4800)
    return cut(scenes, every, windows(scenes, every, np.random.default_rng(seed)), SIZE)


def main() -> None:
    """Train, probe on held-out crops, write the weights, the configuration and the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=2_400)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ASSETS)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    generator = np.random.default_rng(options.seed)
    scenes = draw(options.scenes, options.seed)
    tests = [single_crops(1), single_crops(0)]
    labels = np.arange(4800) % len(CLASSES)

    backbone = timm.create_model(ARCHITECTURE, **SHAPE)
    head = SimCLRProjectionHead(SHAPE["embed_dim"], 256, 64)
    random = probes(backbone, tests, labels, linear=True)
    print("random weights:", random, flush=True)
    loss_of = NTXentLoss(options.temperature)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=options.rate, weight_decay=0.04)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=options.steps, pct_start=0.1)
    start, losses = time.time(), []
    for step in tqdm(range(1, options.steps + 1), "train", mininterval=30):
        backbone.train()
        chosen = generator.integers(0, options.scenes, options.batch)
        window = windows(scenes, chosen, generator)
        views = [recoloured(cut(scenes, chosen, parts_of(window, 0.4, 1, generator), SIZE)) for _ in range(2)]
        loss = loss_of(*(head(backbone(view)) for view in views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 200 == 0:
            found = probes(backbone, tests, labels)
            print(f"{step}: loss {np.mean(losses[-200:]):.3f}, knn {found}, {time.time() - start:.0f} s", flush=True)

    minutes = (time.time() - start) / 60
    knn, linear = probes(backbone, tests, labels, linear=True)
    options.out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    save_file(weights, options.out / "model.safetensors")
    (options.out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    card = CARD.format(
        architecture=ARCHITECTURE,
        depth=SHAPE["depth"],
        width=SHAPE["embed_dim"],
        parameters=sum(p.numel() for p in backbone.parameters()),
        size=SIZE,
        minutes=minutes,
        neighbours=10,
        knn=knn,
        linear=linear,
        random_knn=random[0],
        random_linear=random[1],
        torch=torch.__version__.split("+")[0],
        timm=timm.__version__,
        lightly=lightly.__version__,
        python=platform.python_version(),
        **vars(options),
    )
    (options.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
