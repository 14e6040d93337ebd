"""Which measure finds images of a class that are not as the others: mislabelled ones, and ones with a planted mark?

    python benchmarks/outliers.py --shared path/to/shared --out benchmarks/results/outliers.csv

Not a timing but a choice: the area under the ROC curve of each measure, within each class, with 95 % bootstrap
intervals over images. The truth is planted: one label in twenty is another class's, drawn at random (the network was
trained on the right ones); or one picture in twenty of one class bears the mark that the network was trained to go by.
Without --shared only the worlds that ship take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import arguments, start
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pure_nb import Images, Study, load_study
from pure_nb.glyphs import CLASSES, MEAN, STD, GlyphObjects
from pure_nb.glyphs.marks import MARKED, MarkedObjects
from pure_nb.images.reading import readable
from pure_nb.methods.statistics import percentiles, resampled
from pure_nb.network.layers import OUTPUT, activations, flatten_positions
from pure_nb.reasons.class_parts import by_part, traced_images, unusual
from pure_nb.reasons.parts import Parts
from pure_nb.reasons.tracing import Start

Values = NDArray[np.float64]
SHARE, EACH = 0.05, 100
"""How much is planted, and the images of a class."""


def outputs_of(study: Study, images: Images, sample: NDArray[np.int64]) -> tuple[Values, Values]:
    """What the network puts out for some images, and its target layer's activations, mean over positions."""
    p, outputs, layer = study.parameters, [], []
    with study.run.prepared(study.model), torch.no_grad():
        for batch in readable(images, sample.tolist(), run=study.run):
            found = activations(study.model, batch.images, [p.target, OUTPUT])
            outputs.append(found[OUTPUT].double().numpy())
            layer.append(flatten_positions(found[p.target]).double().mean(dim=2).numpy())
    return np.concatenate(outputs), np.concatenate(layer)


def measures(study: Study, parts: Parts, images: Images, sample: NDArray[np.int64], label: int) -> dict[str, Values]:
    """How odd each image of a class is, by each measure: the larger, the odder."""
    found = traced_images(parts, images, sample, Start(label), 50)
    channel, part, relevance = (found[name] for name in ("channel", "part", "relevance"))
    outputs, layer = outputs_of(study, images, sample)
    chances = outputs - np.log(np.exp(outputs - outputs.max(1, keepdims=True)).sum(1, keepdims=True))
    # What is marked has the largest outputs, and not the smallest: so both ends are asked.
    return {
        "parts": unusual(by_part(channel, part, relevance)[1]),
        "whole channels": unusual(by_part(channel, np.zeros_like(part), relevance)[1]),
        "the layer's activations": unusual(layer),
        "loss": outputs.max(1) - chances[:, label],
        "output, smallest": -outputs[:, label],
        "output, largest": outputs[:, label],
    }


def area(odd: NDArray[np.bool_], value: Values, group: NDArray[np.int64], pick: NDArray[np.int64]) -> float:
    """Mean area over the classes of which some images are odd and some are not."""
    odd, value, group = odd[pick], value[pick], group[pick]
    some = [group == one for one in np.unique(group)]
    some = [own for own in some if 0 < odd[own].sum() < own.sum()]
    return float(np.mean([roc_auc_score(odd[own], value[own]) for own in some]))


def judged(rows: list[tuple[NDArray[np.bool_], NDArray[np.int64], dict[str, Values]]]) -> Iterator[dict[str, object]]:
    """Each measure's area, over all draws together: classes of different draws are different groups."""
    odd = np.concatenate([own for own, _, _ in rows])
    group = np.concatenate([number * 1000 + own for number, (_, own, _) in enumerate(rows)])
    for name in rows[0][2]:
        value = np.concatenate([own[name] for _, _, own in rows])
        picks = resampled(np.arange(len(odd)), draws=300)
        low, high = percentiles([area(odd, value, group, pick) for pick in picks])
        own = area(odd, value, group, np.arange(len(odd)))
        yield {"measure": name, "odd": int(odd.sum()), "images": len(odd), "auc": own, "low": low, "high": high}


def mislabelled(study: Study, images: Images, true: NDArray[np.int64], seed: int) -> tuple:  # type: ignore[type-arg]
    """One draw: which labels are wrong, all labels, and the measures."""
    generator, given = np.random.default_rng(seed), true.copy()
    wrong = generator.choice(len(true), round(SHARE * len(true)), replace=False)
    classes = true.max() + 1
    given[wrong] = (true[wrong] + generator.integers(1, classes, len(wrong))) % classes
    parts, found = Parts(study), {}
    for label in range(classes):
        sample = np.flatnonzero(given == label)
        for name, values in measures(study, parts, images, sample, label).items():
            found.setdefault(name, np.full(len(true), np.nan))[sample] = values
    return given != true, given, found


def marked(study: Study, seed: int) -> tuple:  # type: ignore[type-arg]
    """One draw: which pictures of the class bear the mark, the class, and the measures."""
    label = [one.name for one in CLASSES].index(MARKED)
    data = MarkedObjects(EACH, seed=seed + 1, share=SHARE)
    sample = np.arange(label * EACH, (label + 1) * EACH)
    bears = np.array([data.bears(number) for number in sample.tolist()])
    return bears, np.full(EACH, label), measures(study, Parts(study), Images(data, "m", MEAN, STD), sample, label)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shared", type=Path, help="folder with models and data")
    parser.add_argument("--seeds", type=int, default=2, help="draws of what is planted")
    options = start(parser)
    rows = []

    def told(truth: str, draws: list[tuple]) -> None:  # type: ignore[type-arg]
        for row in judged(draws):
            rows.append({"truth": truth} | row)
            print(rows[-1], flush=True)

    seeds = range(options.seeds)
    shortcut = load_study("glyphs-shortcut", progress=False)
    told("marked glyphs", [marked(shortcut, seed) for seed in seeds])
    if options.shared is not None:
        shared = Path(options.shared)
        cifar = load_study(
            "cifar10-resnet20",
            data=shared / "data" / "cifar10-test",
            weights=shared / "models" / "cifar10-resnet20.safetensors",
            progress=False,
        )
        assert cifar.images.targets is not None
        mean, std = cifar.images.normalisation or ((0.0,), (1.0,))
        chosen = np.sort(np.concatenate([np.flatnonzero(cifar.images.targets == label)[:EACH] for label in range(10)]))
        some = Images(torch.utils.data.Subset(cifar.images.dataset, chosen.tolist()), "some", mean, std)
        own = partial(mislabelled, cifar, some, cifar.images.targets[chosen])
        told("mislabelled CIFAR-10", [own(seed) for seed in seeds])
    glyphs = load_study("glyphs", progress=False)
    every = Images(GlyphObjects(10), "glyph objects", MEAN, STD)
    own = partial(mislabelled, glyphs, every, np.repeat(np.arange(len(CLASSES)), 10))
    told("mislabelled glyphs", [own(seed) for seed in seeds])
    table = pd.DataFrame(rows)
    if options.out:
        table.round(4).to_csv(options.out, index=False)
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
