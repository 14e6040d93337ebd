"""The field's scores of polysemanticity for every neuron of a study and each of its parts.

The formulas are in :mod:`pure_nb.methods.measures`. All ask a judge, an embedder, how alike the crops of the reference
images are. That parts score better than the whole says little, as any few images are more alike than many by some
measures: :func:`after_splitting` holds them against parts of the same sizes drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.blocks import each_neuron
from pure_nb.compute.store import Arrays, Store
from pure_nb.errors import ArgumentError, EmbedderError
from pure_nb.images.labels import display_names
from pure_nb.judges.concepts import concept_scores
from pure_nb.judges.naming import Namer
from pure_nb.methods.measures import (
    clarity,
    class_purity,
    description_similarity,
    monosemanticity,
    polysemanticity,
    psi,
    redundancy,
)
from pure_nb.methods.statistics import corrected, interval, mean_and_error, signed_rank
from pure_nb.methods.virtual import WHOLE, part_name

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.judges.vectors import Embedder
    from pure_nb.study import Study


class Unit(NamedTuple):
    """What a score is made from: the reference images of a neuron or of one of its parts, the strongest first.

    Attributes
    ----------
    activation, vectors, labels
        Of each image the neuron's activation, float ``[n]``, the judge's vector, ``[n, d]``, and, int64 ``[n]``, the
        object under the maximum where that is known, else its class; -1 is none.
    """

    activation: NDArray[np.float32]
    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]

    def of(self, chosen: NDArray[Any]) -> Unit:
        """Some of the images."""
        return Unit(*(values[chosen] for values in self))


class Score(NamedTuple):
    """A measure of one unit; ``several`` is 1 where more of it means more meanings, and -1 where it means fewer."""

    several: int
    of: Callable[[Unit], float]


SCORES = {
    "ms": Score(-1, lambda unit: monosemanticity(unit.activation, unit.vectors)),
    "clarity": Score(-1, lambda unit: float(clarity(unit.vectors))),
    "polysemanticity": Score(1, lambda unit: polysemanticity(unit.vectors)),
    "class_purity": Score(-1, lambda unit: class_purity(unit.labels) if (unit.labels >= 0).any() else float("nan")),
}
"""By name in tables. More than one judge can be asked; ``class_purity`` asks labels instead."""

NAMED = {"psi": 1, "prism": -1}
"""Scores of whole neurons that ask what a judge calls their parts, and whether more of them means more meanings."""

CONCEPTS = {"fms": -1, "iou": -1}
"""Scores of whole neurons that ask labels and masks of all images, and whether more of them means more meanings."""

DRAWS = 20
"""Of each null of ``psi``."""


def scores(study: Study, embedder: Embedder, *, parts: bool = True) -> pd.DataFrame:
    """All scores of all neurons, before and after they are split into the study's virtual neurons.

    Parameters
    ----------
    study
        Any study.
    embedder
        The judge: a score is as good as it is.
    parts
        Whether parts are scored, too, and not the whole neurons alone.

    Returns
    -------
    DataFrame
        A row for each neuron that is alive (``part`` is ``"whole"``) and each part of those that are split: ``channel,
        part, size``; all of :data:`SCORES`, ``class_purity`` NaN where images have no labels, or no two the same;
        ``redundancy``, the likeness to the most similar neuron, or part of another neuron. Of whole neurons also
        ``score``, ours, with its ``silhouette_gain`` and ``p``, see :class:`pure_nb.methods.virtual.VirtualNeurons`;
        and, NaN where that is not known, ``psi`` and ``prism`` (:func:`pure_nb.methods.measures.psi`, and
        :func:`pure_nb.methods.measures.description_similarity` of its parts' names: a judge with words for the
        network's classes) and ``fms`` and ``iou`` (:func:`pure_nb.judges.concepts.concept_scores`).

    Examples
    --------
    >>> table = study.scores(load_embedder("pixels"))
    >>> table.columns[:4].tolist()
    ['channel', 'part', 'size', 'ms']
    """
    import pandas as pd  # late, see pure_nb._imports

    channels, units = _units(study, embedder)
    labels = [study.virtual[channel].labels if parts else np.zeros(0, dtype=np.int64) for channel in channels]
    found = each_neuron(_rows, lambda row: (units(row), labels[row]), len(channels), name="scores", run=study.run)
    rows = []
    for channel, own in zip(channels, found):
        virtual = study.virtual[channel]
        rows += [{"channel": channel, **row} for row in own]
        rows[-len(own)] |= {name: getattr(virtual, name) for name in ("score", "silhouette_gain", "p")}
    table = pd.DataFrame(rows)
    for name, values in (_named(study, embedder) | _of_concepts(study)).items():
        table[name] = np.where(table["part"] == WHOLE, values[table["channel"]], np.nan)
    middles = np.stack(list(table.pop("middle")))
    table["redundancy"], whole = np.nan, (table["part"] == WHOLE).to_numpy()
    for kind in (whole, ~whole):
        table.loc[kind, "redundancy"] = redundancy(middles[kind], table.loc[kind, "channel"].to_numpy())
    return table


def after_splitting(study: Study, embedder: Embedder, *, seed: int = 0) -> pd.DataFrame:
    """Whether splitting makes neurons more monosemantic, by each score.

    Parameters
    ----------
    study, embedder
        As for :func:`scores`.
    seed
        Of the random parts.

    Returns
    -------
    DataFrame
        A row for each of :data:`SCORES`: over the ``neurons`` that are split, the mean of the ``whole`` ones, of their
        ``parts`` (each neuron's weighed by their sizes) and of ``random`` parts of the same sizes; ``gain``, how much
        more monosemantic the study's parts are than the random ones, with its 95 % bootstrap interval ``low`` to
        ``high`` over neurons, and ``p`` of Wilcoxon's signed-rank test, corrected for the number of scores.

    Raises
    ------
    ArgumentError
        If no neuron is split.

    Examples
    --------
    >>> after_splitting(study, load_embedder("pixels"))["score"].tolist()
    ['ms', 'clarity', 'polysemanticity', 'class_purity']
    """
    import pandas as pd

    channels, units = _units(study, embedder)
    split = [row for row, channel in enumerate(channels) if study.virtual[channel].k > 1]
    if not split:
        raise ArgumentError(f"none of the {len(channels)} living neurons of {study.name!r} is split into parts")
    labels = [study.virtual[channels[row]].labels for row in split]

    def given(place: int) -> tuple[Any, ...]:
        return units(split[place]), labels[place], (seed, channels[split[place]])

    found = np.array(each_neuron(_compared, given, len(split), name="scores", run=study.run))  # [neurons, 3, scores]
    rows = []
    for place, (name, score) in enumerate(SCORES.items()):
        whole, parts, random = found[np.isfinite(found[:, :, place]).all(axis=1), :, place].T
        gain = score.several * (random - parts)
        means = {"whole": whole, "parts": parts, "random": random, "gain": gain}
        row = {"score": name, "neurons": len(gain), **{of: mean_and_error(values)[0] for of, values in means.items()}}
        row["low"], row["high"] = interval(gain, seed=seed)
        rows.append(row | {"p": signed_rank(gain)})
    table = pd.DataFrame(rows)
    return table.assign(p=corrected(table["p"]))


def _named(study: Study, embedder: Embedder) -> dict[str, NDArray[np.float64]]:
    """The scores that ask a judge's words, ``[channels]`` each; NaN where it has none."""
    found = {name: np.full(study.references.channels, np.nan) for name in NAMED}
    if embedder.encode_text is None or study.classes.without_labels:
        return found
    words = display_names(study.classes.names)
    try:
        said = study.crops.word_vectors(embedder, words)
    except EmbedderError:  # a small vocabulary has not all words
        return found
    seen, active, labels = study.crops.embeddings(embedder.joint), study.references.active, _labels(study)
    namer = Namer(seen[active], words, said)
    for channel in np.flatnonzero(study.references.alive).tolist():
        own, parts = seen[channel][active[channel]], study.virtual[channel].labels[active[channel]]
        names = [int(namer.scores(own[parts == part]).argmax()) for part in range(int(parts.max(initial=-1)) + 1)]
        found["prism"][channel] = description_similarity(said[names]) if len(names) > 1 else np.nan
        if (labels[channel][active[channel]] >= 0).any():
            found["psi"][channel] = psi(own, parts, labels[channel][active[channel]], said, draws=DRAWS)
    return found


def _of_concepts(study: Study) -> dict[str, NDArray[np.float64]]:
    """The scores that ask labels and masks of all images; kept, as all of them are looked at."""
    p = study.parameters

    def compute(_: Store | None) -> tuple[Arrays, None]:
        return concept_scores(study.model, study.images, p.target, run=study.run, seed=p.seed), None

    return study.results.arrays("concepts", study.key("concepts"), compute)[0]


def _labels(study: Study) -> NDArray[np.int64]:
    """The object under each reference's maximum where that is known, else its class, ``[channels, n]``; -1 is none.

    Where all images are of different classes, as in a sample of one for each, no two can agree: that is no label.
    """
    if study.objects is not None:
        return study.objects
    label = np.full(len(study.images), -1) if study.images.targets is None else study.images.targets
    if len(np.unique(label[label >= 0])) == (label >= 0).sum():
        label = np.full(len(study.images), -1)
    return label[study.references.sample]


def _units(study: Study, embedder: Embedder) -> tuple[list[int], Callable[[int], Unit]]:
    """The living channels, and what gives the unit of one of them by its place: its active references."""
    references, judged, objects = study.references, study.crops.embeddings(embedder), _labels(study)
    channels = np.flatnonzero(references.alive).tolist()

    def unit(place: int) -> Unit:
        channel = channels[place]
        active = references.active[channel]
        return Unit(references.score[channel], judged[channel], objects[channel]).of(active)

    return channels, unit


def _parted(labels: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    """The members of each part, if there are several."""
    k = int(labels.max(initial=-1)) + 1
    yield from (labels == part for part in range(k) if k > 1)


def _rows(unit: Unit, labels: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The scores of one neuron, and of its parts."""
    rows = []
    for name, own in [(WHOLE, unit), *((part_name(i), unit.of(part)) for i, part in enumerate(_parted(labels)))]:
        row: dict[str, Any] = {"part": name, "size": len(own.activation)}
        row |= {score: one.of(own) for score, one in SCORES.items()}
        rows.append(row | {"middle": own.vectors.mean(axis=0, dtype=np.float64)})
    return rows


def _compared(unit: Unit, labels: NDArray[np.int64], seed: tuple[int, int]) -> list[list[float]]:
    """The scores of one neuron, the means of those of its parts, and of random parts of the same sizes."""

    def mean(labels: NDArray[np.int64]) -> list[float]:
        parts = [unit.of(part) for part in _parted(labels)]
        sizes = [len(part.activation) for part in parts]
        values = np.array([[score.of(part) for score in SCORES.values()] for part in parts])
        known = np.isfinite(values) * np.array(sizes)[:, None]  # a part of one image has no pairs
        with np.errstate(invalid="ignore"):
            return list(np.nansum(values * known, axis=0) / known.sum(axis=0))

    shuffled = np.random.default_rng(seed).permutation(labels)
    return [[score.of(unit) for score in SCORES.values()], mean(labels), mean(shuffled)]
