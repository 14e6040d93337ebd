"""How right virtual neurons are, against the object that the neuron looked at in each image.

Of glyph scenes and of pictures with boxes the object under each reference image's maximum is known. A good way of
splitting a neuron into parts puts reference images with the same object together. This module asks that of PURE and of
simpler descriptions of the same images, always with the same clustering and the same number of clusters, so that only
the description differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.compute.blocks import by_image, grouped
from pure_nb.images.data import Images, Truth
from pure_nb.images.reading import readable
from pure_nb.methods.combined import cells_under
from pure_nb.methods.descriptions import parts_by
from pure_nb.methods.references import References
from pure_nb.methods.virtual import on_one_thread
from pure_nb.network.layers import activations, flatten_positions
from pure_nb.parameters import Run

if TYPE_CHECKING:
    import pandas as pd

COMMON = 0.05
"""An object counts as a meaning of a neuron if it is under the maximum in at least this share of its references."""


DESCRIPTIONS = ("activation", "activation at maximum", "lower activation", "lower activation at maximum")


def objects_at_maxima(truth: Truth, references: References, size: tuple[int, int]) -> NDArray[np.int64]:
    """The class of the object under each maximum.

    Parameters
    ----------
    truth
        The data set that the references were taken from.
    references
        Of a layer with a grid of positions.
    size
        Height and width of the network's input.

    Returns
    -------
    ndarray
        int64 ``[channels, n]``: indices into the data set's classes; -1 where there is no object.
    """
    found = np.empty(references.sample.shape, dtype=np.int64)
    centre = references.centre(size)
    for index in grouped(references.sample)[1]:  # image by image
        for place in zip(*np.unravel_index(index, found.shape)):
            found[place] = truth.object_at(int(references.sample[place]), *centre[place])
    return found


def shares(names: Sequence[str] | NDArray[Any], common: float = COMMON) -> list[tuple[str, float]]:
    """What a list is made up of: its values and their shares, most frequent first.

    Parameters
    ----------
    names
        What each reference of a neuron shows, say the object under its maximum: names or numbers.
    common
        What has a smaller share is left out.
    """
    found, count = np.unique(np.asarray(names), return_counts=True)
    share = count / len(names)
    return [(str(found[i]), float(share[i])) for i in np.argsort(-share, kind="stable") if share[i] >= common]


def activation_vectors(
    model: nn.Module,
    images: Images,
    references: References,
    lower: str,
    *,
    layer: str | None = None,
    run: Run = Run(),
) -> dict[str, NDArray[np.float32]]:
    """Simpler descriptions of the reference images than circuits, to compare with.

    Parameters
    ----------
    model, images, references
        The network, and the references of its target layer.
    lower
        The lower layer.
    layer
        The layer that describes, if other than the references' own. It needs the same grid.
    run
        How it is run; its ``client`` computes them, or else this process.

    Returns
    -------
    dict
        float32 ``[channels, n, d]`` each. ``"activation"``: mean over positions of max(A, 0) for all channels of the
        target layer, the paper's baseline; ``"activation at maximum"``: the activations of all channels of the target
        layer at the position of the neuron's maximum; ``"lower activation"``: mean over positions of the lower layer;
        ``"lower activation at maximum"``: the same over the lower layer's cell under the maximum and its neighbours.
    """
    found: dict[str, NDArray[np.float32]] = {}
    described = references.layer if layer is None else layer
    work = partial(_described, model, images, (lower, described), references.grid, references.position.ravel(), run)
    for pairs, vectors in by_image(work, references.sample, run):
        for name, values in vectors.items():
            if name not in found:
                found[name] = np.empty((references.sample.size, values.shape[1]), dtype=np.float32)
            found[name][pairs] = values
    return {name: values.reshape(*references.sample.shape, -1) for name, values in found.items()}


def _described(
    model: nn.Module,
    images: Images,
    layers: tuple[str, str],
    grid: tuple[int, ...],
    position: NDArray[np.int64],
    run: Run,
    samples: NDArray[np.int64],
    pairs_of: list[NDArray[np.int64]],
) -> dict[str, NDArray[np.float32]]:
    """Descriptions of some images by their activations, pair by pair."""
    found: dict[str, list[Tensor]] = {name: [] for name in DESCRIPTIONS}
    wanted = iter(pairs_of)
    with run.prepared(model), torch.inference_mode():
        for batch in readable(images, samples.tolist(), run=run):
            outputs = activations(model, batch.images.to(run.local_device), list(layers))
            below, top = (outputs[layer] for layer in layers)
            under = cells_under(grid, tuple(below.shape[2:]) if below.ndim == 4 else ())
            for high, low in zip(flatten_positions(top), flatten_positions(below)):
                places = position[next(wanted)]
                near = torch.stack([low[:, under[place]].mean(dim=1) for place in places])
                means = [mean.expand(len(places), -1) for mean in (high.clamp(min=0).mean(dim=1), low.mean(dim=1))]
                for name, rows in zip(DESCRIPTIONS, (means[0], high[:, places].T, means[1], near)):
                    found[name].append(rows.float().cpu())
    return {name: torch.cat(rows).numpy() for name, rows in found.items()}


def scores(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Adjusted Rand index ``ari`` and mutual information ``ami`` of the images whose truth is known (not -1).

    Parameters
    ----------
    truth, labels
        int64 ``[n]``; label -1 is a part like any other.
    """
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score  # late, see pure_nb._imports

    pair = truth[truth >= 0], labels[truth >= 0]
    return {"ari": float(adjusted_rand_score(*pair)), "ami": float(adjusted_mutual_info_score(*pair))}


@on_one_thread
def agreement(
    descriptions: Mapping[str, NDArray[np.float32]],
    truth: NDArray[np.int64],
    channels: NDArray[np.bool_],
    *,
    common: float = COMMON,
    seed: int = 0,
) -> pd.DataFrame:
    """Cluster each neuron's references by each description, and compare with the known objects.

    The number of clusters is the neuron's true number of meanings, the same for every description. Neurons with a
    single meaning are left out, since there is nothing to split.

    Parameters
    ----------
    descriptions
        Vectors ``[channels, n, d]`` by name.
    truth
        int64 ``[channels, n]``, from :func:`objects_at_maxima`.
    channels
        bool ``[channels]``: which to look at; those that are not dead.
    common
        As for :func:`shares`.
    seed
        Of k-means and of the random labels that are added as a null.

    Returns
    -------
    DataFrame
        One row for each neuron and description: ``channel, k, method, ami, ari`` (adjusted mutual information and
        adjusted Rand index, 1: the same parts, 0: as good as chance).
    """
    import pandas as pd  # late, see pure_nb._imports

    rows: list[dict[str, Any]] = []
    # A stream of its own: labels drawn elsewhere from the same seed must not agree with these.
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    for channel in np.flatnonzero(channels).tolist():
        known = truth[channel] >= 0
        k = len(shares(truth[channel][known], common)) if known.any() else 0
        if k < 2:
            continue
        own = {name: vectors[channel] for name, vectors in descriptions.items()}
        for name, labels in parts_by(own, k, truth.shape[1], generator=generator, seed=seed).items():
            rows.append({"channel": channel, "k": k, "method": name, **scores(truth[channel], labels)})
    return pd.DataFrame(rows, columns=["channel", "k", "method", "ami", "ari"])
