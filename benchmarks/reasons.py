"""Explanations against the bare passes that they need.

    python benchmarks/reasons.py --threads 1 --clock cpu
    python benchmarks/reasons.py --threads 1 --clock cpu --resnet50
    python benchmarks/reasons.py --threads 1 --clock cpu --graph --out benchmarks/results/graph.csv

One picture explained, by 50 channels and eight parts: the numbers (one forward pass, one backward pass to the layer, a
backward pass to the lower layer for each channel), and the maps of the parts in the picture. In units of one bare
forward pass of one image, and of the bare backward passes for the circuits, one after the other. The shipped network is
its study; ResNet-50 has random weights and a study of a few images of noise.

With ``--graph`` the circuits of an output through three layers of the shipped network, in a store where there is only
what ships, the study of the uppermost: the steps of a first graph, once each, and the graph of another output. In units
of one bare forward pass of all the study's images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Noise, arguments, clock_of, interleaved, network, report, start

from pure_nb import Study, load_study
from pure_nb.images.reading import readable
from pure_nb.methods.circuits import cuts
from pure_nb.reasons.graph import layer_studies
from pure_nb.reasons.together import rank


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--resnet50", action="store_true", help="ResNet-50 with random weights, in place of the glyphs")
    parser.add_argument("--graph", action="store_true", help="a graph of three layers of the shipped network")
    args = start(parser)
    with tempfile.TemporaryDirectory() as folder:
        study = noise_study(folder) if args.resnet50 else load_study("glyphs", store=folder, progress=False)
        study.virtual  # noqa: B018
        report(graph_steps(study, args) if args.graph else [timed(study, args)], args)


def noise_study(folder: str) -> Study:
    """ResNet-50 on 24 images of noise, 4 references a channel, all left whole."""
    how: dict[str, Any] = {"n_references": 4, "n_clusters": 1, "progress": False, "batch_size": 8, "store": folder}
    normalised = {"mean": (0.0,), "std": (1.0,)}
    images = Noise(24).images
    return Study.from_model(network("torchvision:resnet50"), images, "layer4", "layer3", **normalised, **how)


def timed(study: Study, args: Any) -> dict[str, Any]:
    """Seconds of an explanation's numbers and maps, and of bare passes, in turn."""
    p, image = study.parameters, study.images.tensor(0)[None]
    found = study.explain(0)
    channels = found.channels["channel"].to_numpy()

    def forward() -> None:
        with study.run.prepared(study.model), torch.no_grad():
            study.model(image)

    def circuits() -> None:
        with study.run.prepared(study.model), cuts(study.model, image, p.target, p.lower, p.rule) as cut_at:
            cut = cut_at(image)
            for channel in channels:
                cut.relevance(np.array([channel]), p.start)

    seconds = interleaved(
        {
            "forward": forward,
            "circuits one by one": circuits,
            "numbers": lambda: study.explain(0),
            "with maps": lambda: study.explain(0).heatmaps,
        },
        args,
    )
    row: dict[str, Any] = {"network": type(study.model).__name__, "channels": len(channels), **seconds}
    row |= {f"{name} / forward": seconds[name] / seconds["forward"] for name in ("numbers", "with maps")}
    return row | {"numbers / circuits one by one": seconds["numbers"] / seconds["circuits one by one"]}


def graph_steps(study: Study, args: Any) -> list[dict[str, Any]]:
    """Seconds of each step of a first graph and of a second one; both with the names of their nodes."""
    clock, layers = clock_of(args), ["layer4", "layer3", "layer2"]
    studies = layer_studies(study, layers)
    steps: dict[str, Callable[[], Any]] = {
        "references": lambda: rank(studies),
        "circuits": lambda: [one.circuits for one in studies],
        "parts": lambda: [one.virtual for one in studies],
        "graph and names": lambda: study.graph("umbrella", layers).nodes,
        "graph of another output": lambda: study.graph("anchor", layers).nodes,
        "bare forward pass of all images": lambda: bare(study),
    }
    rows = []
    for step, run in steps.items():
        begin = clock()
        run()
        rows.append({"network": type(study.model).__name__, "layers": len(layers), "step": step, "s": clock() - begin})
    first = sum(row["s"] for row in rows[:-2])
    rows.insert(-2, {**rows[0], "step": "all of the first graph", "s": first})
    return [row | {"in bare passes": row["s"] / rows[-1]["s"]} for row in rows]


def bare(study: Study) -> None:
    """All images through the network; they were drawn before, in the references' pass."""
    with study.run.prepared(study.model), torch.no_grad():
        for batch in readable(study.images, list(range(len(study.images))), run=study.run):
            study.model(batch.images)


if __name__ == "__main__":
    main()
