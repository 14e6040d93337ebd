"""What holds beyond the strongest images: parts over the whole range of activation, and how many images are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.blocks import each_neuron
from pure_nb.errors import ArgumentError
from pure_nb.methods.descriptions import clustered, clustered_of
from pure_nb.methods.quantiles import shuffled
from pure_nb.methods.stability import Stability, curve, rand_index, split_half, stability
from pure_nb.methods.statistics import interval, mean_and_error, percentiles
from pure_nb.methods.virtual import VirtualNeurons, kmeans, on_one_thread, part_name

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.compute.store import Arrays, Store
    from pure_nb.study import Study

TOP = "top"
"""What the reference images are called among the bands of activation."""

USUAL = 0.95
"""An image is unlike its part if it is farther from the part's mean circuit than this share of the part's own."""

DRAWS = 1000
"""Bootstrap samples of the images of a band."""


@dataclass(frozen=True, eq=False)
class Range:
    """What the parts of some neurons do over the range of activation.

    Attributes
    ----------
    shares
        A row for each ``channel``, ``band`` and ``part``: how many ``images`` of the band
        :meth:`.VirtualNeurons.predict` puts into the part, their ``share``, and its 95 % interval ``low`` to ``high``
        (Wilson).
    bands
        A row for each ``channel`` and ``band``, the references (``"top"``) first: the ``strongest`` and the ``weakest``
        activation; how many ``images``; the share that is ``unlike`` any part, that is farther from the nearest mean
        circuit than 95 % of that part's references are; ``stability`` of clusters found in the band itself, see
        :func:`pure_nb.methods.stability.split_half`; and their ``agreement`` with the parts, an adjusted Rand index
        with its 95 % interval ``low`` to ``high`` by a bootstrap over the images, NaN at the top, which the parts are
        from. Of no use is the agreement with clusters that are not stable.
    """

    shares: pd.DataFrame
    bands: pd.DataFrame


def activation_range(study: Study, channels: Sequence[int] | None = None, *, bands: int = 4, n: int = 100) -> Range:
    """Whether the parts found among the strongest images are those of the whole range.

    The images that activate a neuron are cut into bands, the strongest quarter first and so on; of each some are taken
    evenly, see :class:`pure_nb.methods.quantiles.QuantileReferences`. Reference images are left out of the bands, so
    that no part was made from what it is asked about.

    Parameters
    ----------
    study
        Any study; its network is run over all images once more, and over the images of the bands.
    channels
        Which neurons; None takes all that are split.
    bands
        Number of bands below the top.
    n
        Images of each band.

    Raises
    ------
    ArgumentError
        If there are no bands, no neuron is split, or one that is asked for is dead.

    Examples
    --------
    >>> found = study.range([3], bands=2, n=4)
    >>> found.bands[["band", "images"]].values.tolist()
    [['top', 6], ['0-50%', 3], ['50-100%', 4]]
    """
    import pandas as pd  # late, see pure_nb._imports

    if bands < 1 or n < 2:
        raise ArgumentError(f"a range needs at least one band of two images, got bands={bands} and n={n}")
    if study.parameters.references != "top":
        raise ArgumentError("a range is told beside the strongest images; ask for a study with references='top'")
    spread = study.replace(references="quantiles", n_references=bands * n)
    every = channels is None
    if channels is None:
        channels = [channel for channel, parts in enumerate(study.virtual) if parts.k > 1]
    if not len(channels):
        raise ArgumentError(f"none of the neurons of {study.name!r} is split into parts")
    if dead := [channel for channel in channels if not study.references.alive[channel]]:
        raise ArgumentError(f"neuron {dead[0]} is dead: no image activates it, so that it has no range")
    vectors: Any = clustered(spread) if every else {channel: clustered_of(spread, channel) for channel in channels}
    references = spread.references

    def given(place: int) -> tuple[Any, ...]:
        channel = channels[place]
        below = vectors[channel], references.score[channel], in_bands(study, spread, channel, bands)
        active = study.references.active[channel]
        own = clustered_of(study, channel), study.references.score[channel], np.where(active, 0, -1)
        return study.virtual_of(channel), own, below

    one = partial(_banded, bands=bands, seed=study.parameters.seed)
    found = each_neuron(one, given, len(channels), name="range", run=study.run)
    tables = [
        pd.DataFrame([{"channel": channel, **row} for channel, both in zip(channels, found) for row in both[place]])
        for place in range(2)
    ]
    return Range(*tables)


def in_bands(study: Study, spread: Study, channel: int, bands: int) -> NDArray[np.int64]:
    """The band of each reference of a study of the whole range.

    Parameters
    ----------
    study, spread
        A study, and the same with references by quantile.
    channel, bands
        Which neuron, and how many bands there are.

    Returns
    -------
    ndarray
        int64 ``[n]``, from the strongest band, 0; -1 for the study's own references, and those that do not count.
    """
    some = spread.references.active[channel]
    new = some & ~np.isin(spread.references.sample[channel], study.references.sample[channel])
    # Bands are of all that activate the neuron, before those are left out.
    band = (np.cumsum(some) - 1) * bands // max(1, int(some.sum()))
    return np.where(new, band, -1)


def band_name(band: int, bands: int) -> str:
    """What a band is called in tables; that of the references is -1."""
    return TOP if band < 0 else f"{100 * band / bands:.0f}-{100 * (band + 1) / bands:.0f}%"


def means(table: pd.DataFrame, by: list[str], names: list[str]) -> pd.DataFrame:
    """Means of columns over neurons, with their 95 % intervals."""
    import pandas as pd  # late, see pure_nb._imports

    rows = []
    for key, group in table.groupby(by, sort=False):
        row: dict[str, Any] = {**dict(zip(by, key)), "neurons": len(group)}
        for name in names:
            known = group[name].dropna()
            row[name] = mean_and_error(known)[0]
            row[f"{name}_low"], row[f"{name}_high"] = interval(known)
        rows.append(row)
    return pd.DataFrame(rows)


Circuits = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
"""Of some images of a neuron: their vectors ``[n, d]``, scores and bands, -1 for none."""


@on_one_thread
def _banded(parts: VirtualNeurons, top: Circuits, below: Circuits, bands: int, seed: int) -> list[list[dict[str, Any]]]:
    """Rows of both tables of :class:`Range`, of one neuron."""
    from scipy.stats import binomtest  # late, see pure_nb._imports

    own_top = parts.scaled(top[0])
    usual = [np.quantile(_away(own_top[parts.labels == part], parts.centres[[part]]), USUAL) for part in range(parts.k)]
    shares, rows = [], []
    for band in range(-1, bands):
        vectors, score, own = below if band >= 0 else top
        chosen = own == max(band, 0)
        vectors, score = np.asarray(vectors)[chosen], score[chosen]
        if not len(score):
            continue
        labels = parts.predict(vectors) if band >= 0 else parts.labels[chosen]
        some = labels >= 0  # no relevance flows through the others, and they are no part's
        vectors, score, labels = parts.scaled(vectors)[some], score[some], labels[some]
        if not len(labels):
            continue
        name = {"band": band_name(band, bands)}
        for part in range(parts.k):
            count = int((labels == part).sum())
            between = binomtest(count, len(labels)).proportion_ci(method="wilson")
            limits = {"low": between.low, "high": between.high}
            shares.append({**name, "part": part_name(part), "images": count, "share": count / len(labels), **limits})
        unlike = float((_away(vectors, parts.centres[labels]) > np.array(usual)[labels]).mean())
        row = {**name, "strongest": float(score[0]), "weakest": float(score[-1]), "images": len(score)}
        rows.append({**row, "unlike": unlike, **_agreement(vectors, labels, parts.k, seed, band < 0)})
    return [shares, rows]


def _away(vectors: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float64]:
    """Distances of vectors to a centroid each."""
    return np.linalg.norm(vectors.astype(np.float64) - centroids, axis=1)


def _agreement(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], k: int, seed: int, top: bool
) -> dict[str, float]:
    """How stable the clusters of some images are, and how far they agree with labels."""
    found = dict.fromkeys(("stability", "agreement", "low", "high"), float("nan"))
    if k == 1 or len(labels) < 2 * k:
        return found
    found["stability"] = split_half(vectors, k, seed=seed)
    if not top:
        table = np.zeros((k, k))
        np.add.at(table, (kmeans(vectors, k, seed=seed), labels), 1)
        draws = np.random.default_rng(seed).multinomial(len(labels), table.ravel() / len(labels), DRAWS)
        found["agreement"] = float(rand_index(table))
        found["low"], found["high"] = percentiles(rand_index(draws.reshape(DRAWS, k, k).astype(np.float64)))
    return found


def stabilities(study: Study) -> list[Stability]:
    """How well the parts of every channel come again from halves of its images; see :mod:`pure_nb.methods.stability`.

    Parameters
    ----------
    study
        Any study.

    Examples
    --------
    >>> len(study.stability)
    32
    """

    def compute(_: Store | None) -> tuple[Arrays, None]:
        vectors = clustered(study)

        def given(channel: int) -> tuple[Any, ...]:
            parts = study.virtual[channel]
            return parts.scaled(np.asarray(vectors[channel])), parts.labels

        one = partial(stability, seed=study.parameters.seed)
        known = [channel for channel, parts in enumerate(study.virtual) if parts.k]  # the others were not published
        found = each_neuron(one, lambda row: given(known[row]), len(known), name="stability", run=study.run)
        neuron = np.full(len(study.virtual), np.nan)
        parts = np.full((len(neuron), max(len(own.parts) for own in found)), np.nan)
        for channel, own in zip(known, found):
            neuron[channel], parts[channel, : len(own.parts)] = own.neuron, own.parts
        return {"neuron": neuron, "parts": parts}, None

    arrays, _ = study.results.arrays("stability", study.key("stability"), compute)
    each = zip(arrays["neuron"].tolist(), arrays["parts"], study.virtual)
    return [Stability(neuron, parts[: own.k]) for neuron, parts, own in each]


def enough(
    study: Study, n: Sequence[int] = (25, 50, 100, 200), images: Sequence[float] = (0.25, 0.5, 1.0)
) -> pd.DataFrame:
    """How many reference images, and how many images to find them in, parts need.

    Of every neuron that is split into k parts, others of its images are clustered into k: the strongest ones of all
    images, more and fewer, and as many as the study has of a random share of the images.

    Parameters
    ----------
    study
        Any study; its network is run over all images once more, and for some more references.
    n
        Numbers of reference images.
    images
        Shares of the images.

    Returns
    -------
    DataFrame
        A row for each number of ``references`` and share of the ``images``, means over the ``neurons`` that are split
        and have so many: ``stability``, by :func:`pure_nb.methods.stability.split_half`, and the ``agreement`` of the
        clusters with what the study's parts predict for the same images, an adjusted Rand index; each with its 95 %
        interval over neurons, ``stability_low`` and so on.

    Raises
    ------
    ArgumentError
        If no neuron is split, or a share is not from 0 to 1.

    Examples
    --------
    >>> enough(study, n=(4, 6), images=(1.0,))[["references", "images"]].values.tolist()
    [[4.0, 1.0], [6.0, 1.0]]
    """
    import pandas as pd

    if not all(0 < share <= 1 for share in images) or not n:
        raise ArgumentError(f"expected numbers of references, and shares of images from 0 to 1, got {n} and {images}")
    channels = [channel for channel, parts in enumerate(study.virtual) if parts.k > 1]
    if not channels:
        raise ArgumentError(f"none of the neurons of {study.name!r} is split into parts")
    own = study.parameters.n_references
    # Of a share of the images, the strongest are the same in the same order, less those that are not among them.
    # Four standard errors more than those that are expected, so that hardly any neuron is left with too few.
    most = max(*n, own, *(int((own + 4 * own**0.5) / share) for share in images if share < 1))
    more = study.replace(n_references=min(most, len(study.images)), references="top")
    place = shuffled(np.arange(len(study.images)), study.parameters.seed).argsort().argsort() / len(study.images)

    vectors = clustered(more)

    def given(row: int) -> tuple[Any, ...]:
        channel, sample = channels[row], more.references.sample[channels[row]]
        active = more.references.active[channel]
        return study.virtual[channel], np.asarray(vectors[channel])[active], place[sample[active]]

    one = partial(_steps, n=tuple(n), images=tuple(images), own=own, seed=study.parameters.seed)
    found = each_neuron(one, given, len(channels), name="stability", run=study.run)
    by = ["references", "images"]
    return means(pd.DataFrame([row for rows in found for row in rows]).sort_values(by), by, ["stability", "agreement"])


@on_one_thread
def _steps(
    parts: VirtualNeurons,
    vectors: NDArray[np.float32],
    place: NDArray[np.float64],
    n: Sequence[int],
    images: Sequence[float],
    own: int,
    seed: int,
) -> list[dict[str, float]]:
    """Rows for one neuron, by its strongest images and the place of each in a random order of all, 0..1."""
    labels, rows = parts.predict(vectors), []
    vectors, place, labels = vectors[labels >= 0], place[labels >= 0], labels[labels >= 0]
    for share in sorted({*images, 1.0}):
        within = place < share
        sizes = sorted({*n, own}) if share == 1 else [own]
        for step in curve(parts.scaled(vectors)[within], labels[within], parts.k, sizes, seed=seed):
            rows.append({**asdict(step), "images": share})
    return rows
