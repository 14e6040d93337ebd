"""Where the time of each step goes, by torch.profiler: convolutions, other operators, and all that is not in torch.

    python benchmarks/profiles.py --threads 1 --out benchmarks/results/profiles.csv

A few images of noise, each with as many pairs, all in one batch and in memory, so reading them is not in it. *Other
operators* are the element-wise steps of ReLUs, batch norms and zennit's rules, pooling and sums. *Outside* is Python,
NumPy, SciPy and Pillow: our own code, the autograd engine and, for crops, smoothing, masks and pictures.
The profiler's clock is the wall's; shares hardly mind a machine that is shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Noise, arguments, network, report, start
from crops import TARGET
from sweep import ours as swept
from torch.profiler import ProfilerActivity, profile

from pure_nb.figures.render import views
from pure_nb.images.data import Images
from pure_nb.methods.circuits import circuits
from pure_nb.parameters import Run

CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::cudnn_convolution")


def shares(run: Callable[[], Any]) -> dict[str, float]:
    """Shares of the time of a run: convolutions, other operators, and outside of them."""
    run()  # warms up
    with profile(activities=[ProfilerActivity.CPU]) as found:
        begin = time.perf_counter()
        run()
        whole = 1e6 * (time.perf_counter() - begin)
    own = {event.key: event.self_cpu_time_total / whole for event in found.key_averages()}
    convolutions = sum(own.get(name, 0.0) for name in CONVOLUTIONS)
    operators = sum(share for name, share in own.items() if name.startswith("aten::"))
    return {"convolutions": convolutions, "other operators": operators - convolutions, "outside": 1 - operators}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=["torchvision:resnet34"])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 10], help="of each image")
    parser.add_argument("--size", type=int, default=224, help="side of the noise in pixels")
    args = start(parser)
    dataset = Noise(args.images, args.size)
    images = Images(dataset, mean=(0.5,) * 3, std=(0.2,) * 3)
    rows: list[dict[str, Any]] = []
    for source in args.models:
        model = network(source).requires_grad_(False)
        rows.append({"model": source, "step": "references", **shares(lambda: swept(model, images, 100, args.images))})  # noqa: B023
        for pairs in args.pairs:
            sample = np.arange(args.images).repeat(pairs)
            channel = np.random.default_rng(0).integers(0, 512, len(sample))
            what = (model, images, channel, sample)
            how: dict[str, Any] = {"target": TARGET, "run": Run(batch_size=args.images, progress=False)}
            steps: dict[str, Callable[[], Any]] = {
                "circuits, gradient": lambda: circuits(*what, lower="layer3", **how),  # noqa: B023
                "circuits, LRP": lambda: circuits(*what, lower="layer3", rule="lrp", **how),  # noqa: B023
                "crops": lambda: [view.highlighted() for view in views(*what, **how)],  # noqa: B023
            }
            rows += [
                {"model": source, "step": name, "pairs/image": pairs, **shares(run)} for name, run in steps.items()
            ]
    report(rows, args)


if __name__ == "__main__":
    main()
