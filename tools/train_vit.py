"""Train the small vision transformer that ships, and write its weights, in half precision, and its model card.

    python tools/train_vit.py

The scenes are those of the shipped ResNet's split, and more of them, since a transformer knows less of pictures to
begin with. Loss, optimiser and batches are the ResNet's as well.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from train_glyphs import arguments, drawn, fit, recipe, write_card

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
    options = arguments(__doc__, scenes=60_000, epochs=12, rate=2e-3).parse_args()
    torch.manual_seed(options.seed)
    pictures = drawn(options)
    model = GlyphViT()
    fit(model, pictures, options, clip=1.0)

    options.out.mkdir(parents=True, exist_ok=True)
    weights = {name: one.half() if one.is_floating_point() else one for name, one in model.state_dict().items()}
    save_file(weights, options.out / "vit.safetensors")
    model.load_state_dict(weights)
    write_card(options.out / "vit.md", CARD, model, pictures[1:], neurons=NEURONS, **recipe(options))


if __name__ == "__main__":
    main()
