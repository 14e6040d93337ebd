"""Make the published study of photographs that the book shows: `load_study("photographs")`, in `book/photographs`;
and beside it a picture of its most polysemantic neuron.

    python tools/make_photographs.py imagenet-mobilenetv2.safetensors path/to/photographs

The network is Google's MobileNetV2 for ImageNet, with the names of timm's ``mobilenetv2_100``. The photographs lie in
one folder a label, and the ``ATTRIBUTION.csv`` above them says whom each is by: only such as may be published.
Takes some minutes of one core.

Its neurons are the 1,280 channels of the last layer before the pooling, reached through ``blocks.6``. They are taken
where they enter their ReLU6 (``input:bn2.act``): that cuts all above 6, where most neurons would have their fifteen
references in common with the order of the files, and no gradient.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # before torch looks: sums in another order end in other digits

import pandas as pd

from pure_nb import Study
from pure_nb.figures.plots import save
from pure_nb.images.sources import folder_images
from pure_nb.network.models import load_model
from pure_nb.publishing import Shown, publish

FOLDER = Path(__file__).parents[1] / "book" / "photographs"

SEVERAL, PLAIN = 48, 12
"""How many neurons are shown of each kind."""

LEAST = 2
"""References that a part, or a label, must have to count."""

PLAINLY = 11
"""References of one label that a plain neuron must have, of fifteen."""

CITE = "The book of pure_nb, and the authors of the pictures by `ATTRIBUTION.csv`."

MEANT = {
    'load_study("hf://OWNER/NAME")  # or the folder': 'load_study("photographs")  # in a clone',
    "**Network**: EfficientNet, whose": "**Network**: MobileNetV2 (timm's class is `EfficientNet`), whose",
}
"""What the card says of a study that may be anywhere, and what it means here."""

CARD = """
## How it was made

By `tools/make_photographs.py` of pure_nb, from Google's MobileNetV2 for ImageNet (Apache 2.0) and {count} photographs.
{several} of its {neurons} neurons are those of the largest score with three parts of at least {least} images each, and
at least three labels of as many; {plain} have one label in at least {plainly} of their 15 references, by turns of the
labels, for contrast. So what they show is what there is, and not how often. The pictures were resized and cropped to
what the network sees. Each is under its author's licence, which `ATTRIBUTION.csv` tells: those under CC BY-SA stay
under it.

What the chapters of the book say of them, and takes the network, is in `measured/`, by `tools/measure_photographs.py`.
"""


def choose(neurons: pd.DataFrame, labels: Sequence[Sequence[str]], several: int, plain: int) -> list[int]:
    """The neurons to show: the most polysemantic, and for contrast some of one label.

    Parameters
    ----------
    neurons
        The study's table, the most polysemantic first.
    labels
        The labels of each channel's references.
    several, plain
        How many of each.

    Returns
    -------
    list of int
        The former in the order of the table, then the latter, by turns of their labels.
    """
    counts = [pd.Series(own).value_counts() for own in labels]
    ordered = neurons["channel"].tolist()
    parts = dict(zip(ordered, neurons["sizes"].str.split()))
    mixed = [
        channel
        for channel in ordered
        if min(map(int, parts[channel])) >= LEAST and (counts[channel] >= LEAST).sum() >= 3
    ][:several]
    alike: dict[str, list[int]] = {}
    for channel in reversed(ordered):  # the least polysemantic first
        label, count = counts[channel].index[0], counts[channel].iloc[0]
        if count >= PLAINLY and channel not in mixed:
            alike.setdefault(str(label), []).append(channel)
    turns = [(turn, label, own) for label, some in sorted(alike.items()) for turn, own in enumerate(some)]
    return mixed + [own for _, _, own in sorted(turns)][:plain]


def study_of(weights: Path, photographs: Path, store: Path | None = None) -> Study:
    """The study of which some neurons are published."""
    model = load_model("timm:mobilenetv2_100", weights, pad_type="same")
    half = [0.5] * 3
    images = folder_images(photographs, resize=256, crop=224, mean=half, std=half)
    how = {"n_references": 15, "n_clusters": 3, "name": "photographs", "store": store}
    return Study.from_model(model, images, target="input:bn2.act", lower="blocks.6", **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a file of safetensors")
    parser.add_argument("photographs", type=Path, help="the folder with ATTRIBUTION.csv and pictures/")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write it; a study there is replaced")
    asked = parser.parse_args()
    study = study_of(asked.weights, asked.photographs / "pictures")
    labels = [study.neuron(channel).names for channel in range(study.references.channels)]
    chosen = choose(study.neurons, labels, SEVERAL, PLAIN)
    shown = Shown(pictures="whole", names="files", side=224)
    with TemporaryDirectory(dir=asked.folder.parent) as aside:  # a study is published to a folder of its own
        measured = [path.rename(Path(aside) / path.name) for path in asked.folder.glob("measured")]
        try:
            folder = publish(study, asked.folder, channels=chosen, shown=shown, licence="other", cite=CITE)
        finally:
            for path in measured:  # of the study before, until tools/measure_photographs.py runs again
                path.rename(asked.folder / path.name)
    told = CARD.format(
        count=len(study.images), several=SEVERAL, neurons=len(chosen), least=LEAST, plain=PLAIN, plainly=PLAINLY
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said, meant in MEANT.items():
        card = card.replace(said, meant)
    (folder / "README.md").write_text(card + told, encoding="utf-8")
    save(study.neuron(chosen[0]).plot(), folder.with_name("photograph.png"))


if __name__ == "__main__":
    main()
