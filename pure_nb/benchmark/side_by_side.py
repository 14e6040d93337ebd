"""One neuron by the book's seven methods: the same reference images sorted into parts, to be looked at side by side.

Beside PURE there are the activations where the neuron is largest, non-negative factors of the lower activations (NMF),
the features of a sparse autoencoder, the clusters of a judge's vectors of the crops (CLIP's, or those of what stands in
for it), those clusters in the number for which the polysemanticity index is largest (PSI, whose abstract does not say
what is clustered), and a split of the channel's own convolution, whose strongest part takes the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pure_nb.benchmark.contestants import nmf
from pure_nb.errors import ArgumentError
from pure_nb.figures.colours import NOBODY, part_colour, readable
from pure_nb.figures.plots import TILE, image_grid, literal, show
from pure_nb.figures.render import Picture, resized
from pure_nb.judges.embedders import Embedder
from pure_nb.judges.truth import activation_vectors, scores
from pure_nb.methods.dictionaries import SparseAutoencoder, sample_positions
from pure_nb.methods.measures import psi
from pure_nb.methods.ownership import RHOS, Assignment
from pure_nb.methods.splitting import Split, part_activations
from pure_nb.methods.virtual import kmeans, part_name
from pure_nb.network.layers import INPUT

if TYPE_CHECKING:
    from pure_nb.study import Study

SEVEN = ("PURE", "activations at the maximum", "NMF", "SAE features", "CLIP clusters", "PSI's clusters", "a split")
"""The methods, in the order of the book's table."""

MOST = 6
"""Parts at most that PSI chooses among, from two on."""

LONGEST = 14
"""Letters of a name that are shown above pictures."""

Labels = NDArray[np.int64]


# What a method needs is asked of whoever calls: a judge, labels, words, a convolution.
def seven_ways(  # noqa: PLR0913
    study: Study,
    channel: int,
    k: int,
    *,
    crops: Sequence[Picture],
    judge: Embedder,
    words: NDArray[Any],
    labels: Labels,
    convolution: str,
    autoencoder: dict[str, int] | None = None,
) -> dict[str, Labels]:
    """Sort a neuron's reference images into parts by each of the seven methods.

    Parameters
    ----------
    study
        With its network and images.
    channel
        Of its target layer.
    k
        How many parts all but PSI are told to find.
    crops
        What the neuron looks at in each reference: :meth:`pure_nb.crops.Crops.of`.
    judge, words
        Whose vectors of the crops are clustered; and vectors of a vocabulary, ``[words, d]``, which PSI asks.
    labels
        int64 ``[n]``: of the references, which PSI asks; -1 is not known.
    convolution
        Name of a ``Conv2d`` whose channel of the same number is the target's, alone or beside a shortcut: it is split.
    autoencoder
        ``width, k, steps, batch_size`` of :meth:`~pure_nb.methods.dictionaries.SparseAutoencoder.fit`; by default
        four features for each channel, of which eight are active at a position.

    Returns
    -------
    dict
        int64 ``[n]`` for each of :data:`SEVEN`.

    Examples
    --------
    >>> crops, pixels = study.crops.of(3, range(6)), load_embedder("pixels")
    >>> how = {"crops": crops, "judge": pixels, "words": np.eye(4, 768), "labels": study.objects[3]}
    >>> asked = {"convolution": "layer4.0.conv2", "autoencoder": {"width": 64, "k": 4, "steps": 20}}
    >>> found = seven_ways(study, 3, 2, **how, **asked)
    >>> [len(own) for own in found.values()]
    [6, 6, 6, 6, 6, 6, 6]
    """
    study.require_channel(channel)
    if not study.references.active[channel].all():
        raise ArgumentError(f"some references do not activate channel {channel}; take fewer (n_references=...)")
    seed, seen = study.parameters.seed, judge.images([*crops])
    vectors = activations_of(study, [channel])
    at_maximum, below = (vectors[name][0] for name in ("activation at maximum", "lower activation at maximum"))
    pure = kmeans(study.circuits_of(channel), k, seed=seed)
    answers = (
        pure,
        kmeans(at_maximum, k, seed=seed),
        nmf(below, k, seed),
        kmeans(_codes(study, at_maximum, autoencoder), k, seed=seed),
        kmeans(seen, k, seed=seed),
        clusters_of_psi(seen, labels, words, seed=seed),
        split_of(study, channel, pure, convolution),
    )
    return dict(zip(SEVEN, answers))


def activations_of(study: Study, channels: Sequence[int]) -> dict[str, NDArray[np.float32]]:
    """As :attr:`pure_nb.study.Study.activation_vectors`, of the references of some channels: ``[channels, n, d]``.

    Parameters
    ----------
    study, channels
        With its network and images; of its target layer.

    Examples
    --------
    >>> activations_of(study, [3, 4])["activation at maximum"].shape
    (2, 6, 32)
    """
    for channel in channels:
        study.require_channel(channel)
    every, rows = study.references, np.asarray(channels, dtype=np.int64)
    some = {name: getattr(every, name)[rows] for name in ("sample", "score", "position", "peak")}
    return activation_vectors(study.model, study.images, replace(every, **some), study.parameters.lower, run=study.run)


def _codes(study: Study, at_maximum: NDArray[np.float32], asked: dict[str, int] | None) -> NDArray[np.float32]:
    """The features of a sparse autoencoder of the target layer, at the neuron's maxima: ``[n, width]``."""
    target, seed = study.parameters.target, study.parameters.seed
    rows = sample_positions(study.model, study.images, target, seed=seed, run=study.run)
    how = {"width": 4 * rows.shape[1], "k": 8} | (asked or {})
    made = SparseAutoencoder.fit(rows, seed=seed, **how)
    codes: NDArray[np.float32] = made.encode(torch.from_numpy(at_maximum)).numpy()
    return codes


def clusters_of_psi(
    vectors: NDArray[np.floating[Any]], labels: Labels, words: NDArray[np.floating[Any]], *, seed: int = 0
) -> Labels:
    """Clusters of a judge's vectors, as many as make the polysemanticity index largest.

    Parameters
    ----------
    vectors, labels, words, seed
        As for :func:`pure_nb.methods.measures.psi`.

    Returns
    -------
    ndarray
        int64 ``[n]``: all 0 where no number of parts has an index above 0.

    Examples
    --------
    >>> two = np.repeat(np.eye(2), 5, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(10, 2))
    >>> clusters_of_psi(two, np.repeat([3, 7], 5), np.eye(2)).tolist()
    [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    """
    best, found = 0.0, np.zeros(len(vectors), dtype=np.int64)
    for k in range(2, min(MOST, len(vectors) - 1) + 1):
        parts = kmeans(np.asarray(vectors, dtype=np.float32), k, seed=seed)
        if (index := psi(vectors, parts, labels, words, seed=seed)) > best:
            best, found = index, parts
    return found


def split_of(study: Study, channel: int, parts: Labels, convolution: str) -> Labels:
    """The strongest part of a split, in each reference: the inputs of a convolution are dealt out among PURE's parts.

    Parameters
    ----------
    study, channel, convolution
        As for :func:`seven_ways`.
    parts
        int64 ``[n]``: PURE's, by whose mean relevance at the convolution's input each input gets its owner.

    Raises
    ------
    ArgumentError
        If there is a single part.
    """
    k = int(parts.max(initial=-1)) + 1
    if k < 2:
        raise ArgumentError(f"channel {channel} has a single part, so there is nothing to split it between")
    sample, model = study.references.sample[channel], study.model
    inside = study.replace(lower=INPUT + convolution)
    entering = inside.run_circuits(np.full_like(sample, channel), sample).astype(np.float64)
    arvs = np.stack([entering[parts == part].mean(axis=0) for part in range(k)])
    owned = part_activations(model, study.images, sample, Assignment(convolution, channel, arvs, RHOS), run=study.run)
    split = Split.chosen(owned, parts, tuple(map(part_name, range(k))))
    found: Labels = owned.at(split.rho)[:, :-1].argmax(axis=1).astype(np.int64)
    return found


def told(truth: Labels, labels: Labels) -> str:
    """How well parts agree with what is known of the images, in words.

    Parameters
    ----------
    truth, labels
        As for :func:`pure_nb.judges.truth.scores`.

    Examples
    --------
    >>> told(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    'AMI 1.00, ARI 1.00'
    """
    found = scores(truth, labels)
    ami, ari = (round(found[name], 2) + 0.0 for name in ("ami", "ari"))  # no -0.00
    return f"AMI {ami:.2f}, ARI {ari:.2f}"


@literal
def seven_figure(
    crops: Sequence[Picture], names: Sequence[str], found: dict[str, Labels], *, title: str, count: int = 15
) -> Figure:
    """A neuron's references in the order of what they show, and below them a row of letters for each method.

    Parameters
    ----------
    crops, names
        What the neuron looks at in each reference, and what is known to be there.
    found
        Labels by the words above the row; of any methods; -1 is in no part.
    title
        Above the pictures.
    count
        How many references are shown; evenly from all of them.
    """
    order = np.array(sorted(range(len(names)), key=lambda rank: (*_commonest(names, names[rank]), rank)))
    order = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    shown = [names[rank] for rank in order]
    figure, axes = plt.subplots(figsize=(5.4, 1.9 + 0.46 * len(found)), layout="constrained")
    for place, rank in enumerate(order.tolist()):
        axes.imshow(resized(crops[rank], TILE), extent=(place + 0.03, place + 0.97, 0, -0.85), aspect="auto")
    for name in dict.fromkeys(shown):
        start, stop = shown.index(name), shown.index(name) + shown.count(name)
        axes.plot([start + 0.06, stop - 0.06], [-0.95] * 2, color="0.3", linewidth=1.5)
        short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        slanted: dict[str, Any] = {"rotation": 40, "rotation_mode": "anchor"}
        axes.text((start + stop) / 2, -1.05, short, fontsize=9, ha="left", va="bottom", **slanted)
    for row, (method, labels) in enumerate(found.items()):
        axes.text(0, row + 0.5, method, fontsize=10, ha="left", va="bottom")
        for place, part in enumerate(labels[order].tolist()):
            colour, letter = (readable(part_colour(part)), part_name(part)) if part >= 0 else (NOBODY, "")
            axes.add_patch(Rectangle((place, row + 0.55), 1, 0.42, facecolor=colour, edgecolor="white", linewidth=0.5))
            axes.text(place + 0.5, row + 0.76, letter, fontsize=9, ha="center", va="center", color="white")
    axes.set(xlim=(0, len(order)), ylim=(len(found), -2.2))
    axes.axis("off")
    figure.suptitle(title, fontsize=11)
    return figure


def _commonest(names: Sequence[str], name: str) -> tuple[int, str]:
    """What is most frequent comes first."""
    return -list(names).count(name), name


@literal
def sorted_figure(
    crops: Sequence[Picture], names: Sequence[str], labels: Labels, *, title: str, columns: int = 6
) -> Figure:
    """A neuron's references in parts: a row of pictures for each, its size, and what most of it is known to show.

    Parameters
    ----------
    crops, names
        As for :func:`seven_figure`.
    labels
        int64 ``[n]``: the part of each; -1 is in none, and not shown.
    title
        Above the pictures.
    columns
        Pictures of a part that are shown at most, the strongest.
    """
    parts = np.unique(labels[labels >= 0]).tolist()
    figure, rows = plt.subplots(len(parts), 1, figsize=(5.4, 0.9 + 1.15 * len(parts)), layout="constrained")
    for axes, part in zip(np.atleast_1d(rows), parts):
        own = np.flatnonzero(labels == part).tolist()
        tiles = [resized(crops[rank], TILE) for rank in own[:columns]]
        blank = np.full((TILE, TILE, 3), 255, dtype=np.uint8)
        show(axes, image_grid([*tiles, *[blank] * (columns - len(tiles))], columns))
        of = [names[rank] for rank in own]
        most = sorted(set(of), key=lambda name: _commonest(of, name))[:3]
        shares = ", ".join(f"{name} {of.count(name) / len(of):.0%}" for name in most)
        axes.set_title(f"{part_name(part)} ({len(own)}): {shares}", fontsize=10, loc="left")
    figure.suptitle(title, fontsize=10)
    return figure
