"""Average relevance vectors: pure_nb's one pass against a pass of the whole network for each channel and class.

    python benchmarks/arvs.py --out benchmarks/results/arvs.csv

The *reference procedure* is that of the paper: for each channel and class it runs the network over the images of the
class, takes the gradient of the channel's sum with respect to the layer's input by autograd, and stores gradient times
activation, summed over positions, image by image; the vectors are averaged later. *Ours* is the sweep that fills the
table of all channels and classes, with the class relevance of all channels and 100 bootstrap replicates. Both
compute the same (checked to 1e-4) before anything is timed.

glyphnet is small enough to run the reference procedure whole. For the ResNets it is run for --peer-channels channels
and scaled by their number; the bytes are those of the files it writes, scaled alike. Ours is timed whole.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Noise, arguments, interleaved, network, report, start
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from pure_nb.compute.sweep import sweep
from pure_nb.images.data import Images
from pure_nb.methods.relevance import ClassRelevance, ClassStatistics
from pure_nb.methods.windows import closed_form
from pure_nb.network.layers import INPUT, get_layer
from pure_nb.parameters import Run

LAYERS = {
    "glyphnet": "layer4.0.conv2",
    "torchvision:resnet18": "layer4.1.conv2",
    "torchvision:resnet50": "layer4.2.conv3",
}
SIDES = {"glyphnet": 96}


class Classes(Noise):
    """Noise with as many images of each class."""

    def __init__(self, classes: int, each: int, size: int) -> None:
        super().__init__(classes * each, size)
        self.targets = [sample % classes for sample in range(len(self.images))]


def ours(model: nn.Module, images: Images, layer: str, outputs: int, batch_size: int) -> ClassStatistics:
    lower, labels = INPUT + layer, np.array(images.dataset.targets)  # type: ignore[attr-defined]
    module = closed_form(model, layer, lower)
    found = ClassRelevance(layer, lower, labels, outputs, module=module)
    sweep(model, images, [found], run=Run(batch_size=batch_size, progress=False))
    return found.result()


def peer(
    model: nn.Module, images: Classes, layer: str, channels: int, classes: int, batch_size: int, folder: Path
) -> NDArray[np.float64]:
    """The reference procedure; returns the means, ``[channels, classes, sources]``."""
    module, kept = get_layer(model, layer), {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept["lower"], kept["target"] = inputs[0], output

    handle = module.register_forward_hook(keep)
    means = []
    for channel in range(channels):
        for label in range(classes):
            own = Subset(images, [i for i, target in enumerate(images.targets) if target == label])
            vectors = []
            for batch, _ in DataLoader(own, batch_size=batch_size):
                model(batch.requires_grad_())
                (flow,) = torch.autograd.grad(kept["target"][:, channel].sum(), kept["lower"])
                vectors.append((kept["lower"].detach() * flow).sum(dim=(2, 3)))
            joint = torch.cat(vectors)
            save_file({"vectors": joint}, folder / f"{channel}-{label}.safetensors")
            means.append(joint.double().mean(dim=0).numpy())
    handle.remove()
    return np.stack(means).reshape(channels, classes, -1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=4, help="of each class")
    parser.add_argument("--peer-channels", type=int, default=2, help="of the ResNets; glyphnet has all its 32")
    parser.add_argument("--batch-size", type=int, default=32)
    args = start(parser)
    rows: list[dict[str, Any]] = []
    for source in args.models:
        model, layer = network(source).eval(), LAYERS[source]
        every, sources = get_layer(model, layer).weight.shape[:2]  # type: ignore[union-attr]
        channels = every if source == "glyphnet" else args.peer_channels
        dataset = Classes(args.classes, args.images, SIDES.get(source, 224))
        images, outputs = Images(dataset), 48 if source == "glyphnet" else 1000
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            how = (channels, args.classes, args.batch_size, folder)
            expected = peer(model, dataset, layer, *how)
            statistics = ours(model, images, layer, outputs, args.batch_size)
            for channel in range(channels):
                found = statistics.arv(model, channel, range(args.classes))
                np.testing.assert_allclose(found, expected[channel], rtol=1e-4, atol=1e-4 * np.abs(expected).max())
            seconds = interleaved(
                {
                    "ours": lambda: ours(model, images, layer, outputs, args.batch_size),  # noqa: B023
                    "peer": lambda: peer(model, dataset, layer, *how),  # noqa: B023
                },
                args,
            )
            written = sum(path.stat().st_size for path in folder.iterdir())
        # Kept for the classes that occur; a table of all the network's outputs would be fair to neither.
        kept = statistics.nbytes * args.classes / outputs
        peers, stored = seconds["peer"] * every / channels, written * every / channels
        rows.append(
            {
                "model": source,
                "layer": layer,
                "channels": every,
                "sources": sources,
                "classes": args.classes,
                "images": len(dataset),
                "ours s": seconds["ours"],
                "reference s": peers,
                "times faster": peers / seconds["ours"],
                "ours MB": kept / 1e6,
                "reference MB": stored / 1e6,
                "times smaller": stored / kept,
            }
        )
    report(rows, args)


if __name__ == "__main__":
    main()
