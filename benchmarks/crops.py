"""Crops of reference images (CRP heatmap, smoothing, crop): pure_nb against zennit-crp's get_max_reference.

    python benchmarks/crops.py --out benchmarks/results/crops.csv

Both sides use the same rules and images, start at the channel's maximum alone (rf=True), and smooth, crop and dim.
zennit-crp is given its list of references and called in the best of the batch sizes given, since rf=True works for one
batch a call only.

Two cases: *one by one*, the references of a few neurons, no two of which share an image, the worst case for pure_nb;
and *all*, a slice of "all channels x 100 references": batches of images with all the pairs they are in, when every
channel draws its references from --population images. zennit-crp has the same cost per pair in both, it is timed on the
first. The heatmaps of both sides must agree to 1e-4.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
import torch
from common import Noise, arguments, composite, draw_references, interleaved, network, report, start
from crp.attribution import CondAttribution
from crp.concepts import ChannelConcept
from crp.image import vis_opaque_img
from crp.visualization import FeatureVisualization
from numpy.typing import NDArray
from torch import nn

from pure_nb.figures.render import heatmaps, views
from pure_nb.images.data import Images
from pure_nb.network.layers import activations
from pure_nb.parameters import Run

TARGET = "layer4"


def prepared(model: nn.Module, dataset: Noise, neurons: NDArray[np.int64], folder: str) -> FeatureVisualization:
    """zennit-crp with its list of references filled in: neuron k has the k-th part of the images."""
    study = FeatureVisualization(
        CondAttribution(model), dataset, {TARGET: ChannelConcept()}, max_target="max", abs_norm=False, path=folder
    )
    images = dataset.images.to(next(model.parameters()).device)
    maps = activations(model, images, [TARGET])[TARGET].flatten(2).cpu()
    data = np.zeros((len(dataset) // len(neurons), maps.shape[1]), dtype=np.int64)
    data[:, neurons] = np.arange(len(dataset)).reshape(len(neurons), -1).T
    where = np.take_along_axis(maps.argmax(dim=2).numpy(), data, axis=0)
    for name, array in (("data", data), ("rel", np.ones_like(data)), ("rf", where)):
        np.save(study.ActMax.PATH / f"{TARGET}_{name}.npy", array)
    return study


def peer(study: FeatureVisualization, neurons: NDArray[np.int64], count: int, batch_size: int) -> list[Any]:
    pictures = []
    for neuron in neurons.tolist():
        for first in range(0, count, batch_size):
            found = study.get_max_reference(
                neuron,
                TARGET,
                "activation",
                r_range=(first, min(first + batch_size, count)),
                composite=composite(),
                rf=True,
                plot_fn=vis_opaque_img,
                batch_size=batch_size,
            )
            pictures += found[neuron]
    return pictures


def error(model: nn.Module, dataset: Noise, channel: NDArray[np.int64], sample: NDArray[np.int64]) -> float:
    """Largest difference of the heatmaps of both sides, as a share of the largest value."""
    with torch.inference_mode():
        maps = activations(model, dataset.images[sample], [TARGET])[TARGET].flatten(2)
    expected = CondAttribution(model)(
        dataset.images[sample].requires_grad_(),
        [{TARGET: {int(c): int(own[c].argmax())}} for c, own in zip(channel, maps)],
        composite(),
        mask_map=ChannelConcept.mask_rf,
        start_layer=TARGET,
    ).heatmap
    found = torch.zeros_like(expected)
    for rows, maps in heatmaps(model, Images(dataset), channel, sample, target=TARGET):
        found[rows] = maps
    return float((found - expected).abs().max() / expected.abs().max())


def compare(source: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    model = network(source).requires_grad_(False)
    dataset = Noise(args.neurons * args.references, args.size)
    images = Images(dataset, mean=(0.5,) * 3, std=(0.2,) * 3)
    with torch.inference_mode():
        channels = activations(model, dataset.images[:1], [TARGET])[TARGET].shape[1]
    neurons = np.random.default_rng(0).choice(channels, args.neurons, replace=False)
    alone = neurons.repeat(args.references), np.arange(len(dataset))
    channel, sample, density = draw_references(
        channels, args.n, args.population, min(args.images, len(dataset)), args.batch_size
    )

    def ours(channel: NDArray[np.int64], sample: NDArray[np.int64]) -> list[Any]:
        found = views(model, images, channel, sample, target=TARGET, run=Run(batch_size=args.batch_size))
        return [view.highlighted() for view in found]

    def bare() -> None:
        with torch.inference_mode():
            for batch in dataset.images.split(args.batch_size):
                model(batch)

    difference = error(model, dataset, alone[0][:2], alone[1][:2])
    if not difference <= 1e-4:
        raise SystemExit(f"{source}: the heatmaps differ by {difference:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        study = prepared(model, dataset, neurons, folder)
        once = argparse.Namespace(repeats=1, clock=args.clock)
        trial = interleaved(
            {
                str(size): lambda size=size: peer(study, neurons[:1], args.references, size)
                for size in args.peer_batches
            },
            once,
        )
        best = int(min(trial, key=trial.__getitem__))
        seconds = interleaved(
            {
                "bare": bare,
                "one by one": lambda: ours(*alone),
                "all": lambda: ours(channel, sample),
                "peer": lambda: peer(study, neurons, args.references, best),
            },
            args,
        )
    forward, other = (seconds[name] / len(dataset) for name in ("bare", "peer"))
    rows = []
    for case, pairs, shared in (("one by one", len(dataset), 1.0), ("all", len(channel), density)):
        mine = seconds[case] / pairs
        rows.append(
            {
                "model": source,
                "case": case,
                "pairs/image": shared,
                "ours ms/pair": 1e3 * mine,
                "zennit-crp ms/pair": 1e3 * other,
                "times faster": other / mine,
                "ours in forward passes": mine / forward,
                "zennit-crp in forward passes": other / forward,
                "peer batch": best,
                "pairs timed": f"{pairs}, {len(dataset)}",
                "error": difference,
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=["torchvision:resnet18", "torchvision:resnet50"])
    parser.add_argument("--neurons", type=int, default=4)
    parser.add_argument("--references", type=int, default=100, help="references of each neuron to crop")
    parser.add_argument("-n", type=int, default=100, help="references for each channel in the case of all of them")
    parser.add_argument("--population", type=int, default=50_000, help="images the references are drawn from")
    parser.add_argument("--images", type=int, default=32, help="images in the slice of all")
    parser.add_argument("--size", type=int, default=224, help="side of the noise in pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[1, 8, 32])
    args = start(parser)
    report([row for source in args.models for row in compare(source, args)], args)


if __name__ == "__main__":
    main()
