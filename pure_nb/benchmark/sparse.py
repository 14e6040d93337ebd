"""Sparse autoencoders on the benchmark: contestants by name, and what single features have to do with single sources.

What does an autoencoder see of a planted channel? One that is trained on the layer *before* the merge sees each source
alone, and one on the merged channels alone sees a layer that no user has. So :func:`layer_of` puts together the layer
as it would be if the merged channels stood in the place of their sources: the merged channels, and the others that are
in no group. A channel merged with itself is the null of detection; it is left out where it would show a source of
another group alone. Where a source is in several groups, as in a random draw of many, it is in several merged channels,
and the layer as a whole may tell the sources apart though none of its channels does; disjoint groups close this way.

The second kind reads the lower layer, of which nothing is merged, as the benchmark describes references by it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pure_nb.benchmark.scoring import pearson
from pure_nb.benchmark.tasks import Task
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.judges.truth import activation_vectors
from pure_nb.methods.dictionaries import Kind, SparseAutoencoder, sample_positions

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class SparseCodes:
    """A sparse autoencoder as a contestant: the codes of references at the neuron's maximum, to be clustered.

    Attributes
    ----------
    kind
        Of :class:`~pure_nb.methods.dictionaries.SparseAutoencoder`.
    factor, k
        Features for each channel of the layer, and how many of all are active at a position.
    lower
        Whether it reads the lower layer, and not the target layer.

    Examples
    --------
    >>> SparseCodes.named("SAE top-k, 4x, k=8")
    SparseCodes(kind='top-k', factor=4, k=8, lower=False)
    """

    kind: Kind
    factor: int
    k: int
    lower: bool = False

    @classmethod
    def named(cls, name: str) -> SparseCodes | None:
        """The one of a name such as ``"SAE BatchTopK, 8x, k=4"`` or ``"lower SAE top-k, 4x, k=8"``; None of others."""
        found = re.fullmatch(r"(lower )?SAE (top-k|BatchTopK), ([1-9]\d*)x, k=([1-9]\d*)", name)
        if found is None:
            return None
        lower, kind, factor, k = found.groups()
        return cls("top-k" if kind == "top-k" else "BatchTopK", int(factor), int(k), lower is not None)

    @property
    def name(self) -> str:
        """As :meth:`named` reads it."""
        return f"{'lower ' if self.lower else ''}SAE {self.kind}, {self.factor}x, k={self.k}"

    def train(self, task: Task) -> SparseAutoencoder:
        """Train on the layer's activations over the images of the task's study, at positions drawn by its seed."""
        study = task.study
        rows = layer_of(task, lower=self.lower)
        width = self.factor * rows.shape[1]
        if self.k > width:
            raise StudyError(
                f"contestant {self.name!r}: {self.k} features can't be active of the {width} that there are"
            )
        return SparseAutoencoder.fit(rows, width, self.k, self.kind, seed=study.parameters.seed)

    def codes(self, task: Task) -> Vectors:
        """The features of all references, float32 ``[channels, n, features]``."""
        vectors, made = at_maxima(task, lower=self.lower), self.train(task)
        found = [made.encode(torch.from_numpy(own)).numpy() for own in vectors]
        return np.stack(found)


def autoencoders(names: Sequence[str]) -> dict[str, Any]:
    """The contestants among some names that are sparse autoencoders: what describes references, by name."""
    found = {name: SparseCodes.named(name) for name in names}
    return {name: one.codes for name, one in found.items() if one is not None}


def layer_of(task: Task, *, lower: bool = False) -> Vectors:
    """What a sparse autoencoder is trained on: activations at positions of the study's images, float32 ``[N, d]``.

    Of the target layer as it would be with merged channels in the place of their sources, or of the lower layer.
    """
    study, p = task.study, task.study.parameters
    rows = partial(sample_positions, study.model, study.images, seed=p.seed, run=study.run)
    if lower or task.planting is None:
        return rows(p.lower if lower else p.target)
    merged, others, scale = _seen(task)
    whole = rows(f"{task.planting.layer}.whole")[:, others] / scale
    return np.concatenate([rows(p.target)[:, merged], whole], axis=1)


def at_maxima(task: Task, *, lower: bool = False) -> Vectors:
    """The same activations where each reference has the neuron's maximum, float32 ``[channels, n, d]``."""
    study, p = task.study, task.study.parameters
    if lower:
        return task.activations["lower activation at maximum"]
    own = study.activation_vectors["activation at maximum"]
    if task.planting is None:
        return own
    merged, others, scale = _seen(task)
    layer = f"{task.planting.layer}.whole"
    given = study.model, study.images, study.references, p.lower
    whole = activation_vectors(*given, layer=layer, run=study.run)["activation at maximum"]
    return np.concatenate([own[..., merged], whole[..., others] / scale], axis=2)


def _seen(task: Task) -> tuple[NDArray[np.int64], NDArray[np.int64], Vectors]:
    """The merged channels that stand in a layer, the channels beside them, and what divides the latter.

    That is their mean score, as it is of the sources of merged channels.
    """
    assert task.planting is not None
    groups = [set(group) for group in task.planting.groups]
    mixed = set[int]().union(*(group for group in groups if len(group) > 1))
    merged = [number for number, group in enumerate(groups) if len(group) > 1 or not group & mixed]
    score = task.base.references.score.mean(axis=1)
    alive = set(np.flatnonzero(score > 0).tolist())
    others = np.array(sorted(alive - set[int]().union(*groups)), dtype=np.int64)
    return np.array(merged, dtype=np.int64), others, score[others].astype(np.float32)


def source_features(task: Task, codes: NDArray[np.floating[Any]], seed: int = 0) -> pd.DataFrame:
    """How well one feature stands for each source of the planted channels of a task.

    For each source the feature is chosen that does best in one half of the references, and scored in the other, and the
    other way round. Parts are features, too: :func:`part_features`. A feature that is active everywhere has an F1 of
    ``2 p / (1 + p)`` where the source is dominant in a part p of the references; that is what to beat.

    Parameters
    ----------
    task
        With planted channels.
    codes
        float ``[channels, n, features]``: not below 0, of all references.
    seed
        Of the halves.

    Returns
    -------
    DataFrame
        A row for each channel that means several things, and each source that is dominant in references of both
        halves: ``channel``, ``source``; ``f1`` of the feature's being active for the source's being dominant;
        ``correlation`` of the feature with what the source contributed.

    Raises
    ------
    StudyError
        If nothing was planted.
    ArgumentError
        If there are not codes of all references.
    """
    if task.contributions is None:
        raise StudyError(f"the task {task.name!r} has no sources; plant some: pure_nb.benchmark.tasks.planted_task")
    if codes.ndim != 3 or codes.shape[:2] != task.truth.shape:
        channels, n = task.truth.shape
        raise ArgumentError(f"expected codes [{channels}, {n}, features], for each reference, got {list(codes.shape)}")
    rows, generator = [], np.random.default_rng(seed)
    for channel in np.flatnonzero(task.k > 1).tolist():
        known = task.truth[channel]
        halves = np.array_split(generator.permutation(len(known)), 2)
        for source in range(len(set(task.planting.groups[channel])) if task.planting else 0):
            true = known == source
            if not all(true[half].any() for half in halves):
                continue
            own, contributed = codes[channel], task.contributions[channel, :, source].astype(np.float64)
            both = [_held_out(own, true, contributed, *order) for order in (halves, halves[::-1])]
            f1, correlation = np.mean(both, axis=0)
            rows.append((channel, source, float(f1), float(correlation)))
    return pd.DataFrame(rows, columns=["channel", "source", "f1", "correlation"])


def _held_out(
    codes: NDArray[Any], true: NDArray[np.bool_], contributed: NDArray[np.float64], seen: Any, new: Any
) -> tuple[float, float]:
    """F1 and correlation on new references of the features that are best on those seen."""
    active = codes > 0
    best = int(f1_scores(true[seen], active[seen]).argmax())
    values = [pearson(codes[seen, one].astype(np.float64), contributed[seen]) for one in range(codes.shape[1])]
    like = int(np.argmax(values))
    return (
        float(f1_scores(true[new], active[new][:, [best]])[0]),
        pearson(codes[new, like].astype(np.float64), contributed[new]),
    )


def f1_scores(true: NDArray[np.bool_], active: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F1 of each column of ``active``, bool ``[n, features]``, for ``true``, bool ``[n]``; 0 where both are empty."""
    both = 2.0 * (active & true[:, None]).sum(axis=0)
    return both / np.maximum(active.sum(axis=0) + true.sum(), 1)


def part_features(task: Task, labels: NDArray[np.int64]) -> Vectors:
    """Parts ``[channels, n]`` as features: each as active as the channel in its references, and silent in others.

    Returns
    -------
    ndarray
        float32 ``[channels, n, most parts]``.
    """
    own = task.study.references.score
    return (labels[..., None] == np.arange(max(1, labels.max() + 1))) * own[..., None]
