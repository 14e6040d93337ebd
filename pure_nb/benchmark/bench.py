"""The benchmark: contestants split neurons into parts, and are scored against the known truth.

:func:`run` gives a tidy table with a row for each neuron and contestant, :func:`leaderboard` its means with their
intervals and tests. The chapter *How would we know?* explains the scores.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pure_nb.benchmark.contestants import Contestant
from pure_nb.benchmark.scoring import FEW, SCORES, agreements, matched, part_correlation, pearson, source_f1
from pure_nb.benchmark.tasks import Task
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.blocks import each_neuron
from pure_nb.compute.results import as_before
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, StudyError, StudyWarning
from pure_nb.images.reading import readable
from pure_nb.methods.descriptions import PURE
from pure_nb.methods.ownership import assign_sources
from pure_nb.methods.statistics import percentiles, resampled, summary
from pure_nb.methods.virtual import kmeans, virtual_neurons
from pure_nb.methods.virtual_layer import Assign, VirtualLayer
from pure_nb.methods.windows import dense_weight, pooled_inputs
from pure_nb.network.layers import activations, flatten_positions, get_layer
from pure_nb.study import Study

FORMAT = 4
"""Part of what stored answers are found by; raised when this package computes them differently."""

DRAWS = 199
"""Draws at most by which a number of parts is chosen: enough for a neuron that is left whole unless p <= 0.05."""

OWNED = 0.5
"""A source truly belongs to one concept if no other has more than this part of its average relevance."""


def true_sources(task: Task) -> dict[int, NDArray[np.int64]]:
    """Who really owns the inputs of each merged channel of a convolution or linear layer: its sources' own weights.

    A source's average relevance vector is computed as in Hesse et al. (2025), from its own weights and the references
    in which it is dominant. An input belongs to the source that gets clearly more from it; see :data:`OWNED`.

    Returns
    -------
    dict
        From channels to int64 ``[inputs]``, as :func:`pure_nb.methods.ownership.assign_sources`; empty for a task where
        the merged channels do not read the layer's input.
    """
    planting, study = task.planting, task.study
    if planting is None or not planting.early:
        return {}
    layer = f"{planting.layer}.whole"
    module, sample = get_layer(study.model, layer), study.references.sample
    unique, place = np.unique(sample, return_inverse=True)
    inputs = pooled_inputs(study.model, study.images, unique, layer, run=study.run)
    place, found = place.reshape(sample.shape), {}
    for channel in np.flatnonzero(task.k > 1).tolist():
        arvs = []
        for source, number in enumerate(planting.groups[channel]):
            mine = inputs[place[channel, task.truth[channel] == source]]
            weight = dense_weight(module, number) * planting.weight[channel, number]
            arvs.append((mine.mean(axis=0) * weight).sum(axis=1) if len(mine) else np.zeros(len(weight)))
        found[channel] = assign_sources(np.stack(arvs), OWNED)
    return found


def run(
    task: Task,
    contestants: Sequence[Contestant],
    *,
    choose: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    """Let all contestants split all neurons of a task into parts. Finished ones are kept in the study's store.

    Parameters
    ----------
    task
        From :func:`pure_nb.benchmark.tasks.planted_task` or :func:`pure_nb.benchmark.tasks.objects_task`.
    contestants
        From :func:`pure_nb.benchmark.contestants.contestants`, and your own.
    choose
        Also let k-means choose the number of parts from each description, for the detection of planted channels and the
        calibration. It takes longer than all the rest.
    seed
        Of the clustering; by default the study's.

    Returns
    -------
    DataFrame
        A row for each neuron and contestant. ``channel``, ``method``, ``oracle`` (whether that is told the truth),
        ``k`` (how many things the neuron means) and ``self_merged`` (whether it was merged with itself); the
        :data:`SCORES`, NaN where a neuron means one thing; ``silhouette_gain`` (how much clearer the best parts are
        than those of draws from one heap) and ``chosen`` (number of parts, if it is not told), NaN for contestants that
        do not cluster by k-means; ``labels`` (a list, int); ``seconds`` that the contestant took for all neurons,
        without what was in the store before.

    Raises
    ------
    StudyError
        If two contestants have one name, or an answer is not of the right shape.

    Warns
    -----
    StudyWarning
        If no neuron has enough references with a clearly dominant source for ``ari_dominant``.
    """
    seed = task.study.parameters.seed if seed is None else seed
    names = [contestant.name for contestant in contestants]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise StudyError(f"two contestants are called {double[0]!r}; name one of them otherwise")
    if not names:
        raise StudyError("nobody takes part: name at least one contestant")
    owner, tables = true_sources(task), []
    shown = progress_bar(contestants, task.name, unit="method", shown=task.study.run.progress)
    with shown as bar:
        for contestant in bar:
            bar.set_postfix_str(contestant.name)
            answers = _load_or_compute(task, contestant, choose, seed)
            tables.append(_scored(task, contestant, answers, owner))
    found = pd.concat(tables, ignore_index=True)
    if found["ari_dominant"].isna().all() and (task.k > 1).any():
        warnings.warn(
            f"ari_dominant is not known: it takes {FEW} references with a clearly dominant source, not all of one, and "
            f"no neuron has them among its {task.truth.shape[1]} references. Ask for more (n_references=..., --n)",
            StudyWarning,
            stacklevel=2,
        )
    return found


def _load_or_compute(task: Task, contestant: Contestant, choose: bool, seed: int) -> pd.DataFrame:
    """A contestant's answers, a row for each neuron: from the store, or now."""

    def compute(_: Store | None) -> pd.DataFrame:
        start = perf_counter()
        parts = contestant.parts(task, seed)
        table = pd.DataFrame({"labels": list(parts.labels), "seconds": perf_counter() - start})
        table["owner"] = pd.Series([parts.owner.get(channel) for channel in table.index], dtype=object)
        table[["silhouette_gain", "chosen"]] = np.nan
        if choose and parts.vectors is not None and contestant.clusterer is kmeans:
            vectors: Any = parts.vectors
            quiet = replace(task.study.run, progress=False)
            alone = partial(virtual_neurons, draws=DRAWS, seed=seed)  # k-means is not told how many parts there are
            found = each_neuron(
                alone, lambda channel: (vectors[channel],), len(vectors), name="parts", many=1, run=quiet
            )
            table["silhouette_gain"] = [one.silhouette_gain for one in found]
            table["chosen"] = [float(one.k) for one in found]
        return table

    if not contestant.fingerprint:
        return compute(None)
    clusterer: Any = contestant.clusterer
    study = task.study
    key: dict[str, object] = {"step": "bench", "format": FORMAT, "choose": choose, "seed": seed}
    key |= {"study": study.identity, "parameters": as_before(asdict(study.parameters)), "references": study.ranked}
    key["truth"] = hashlib.sha256(task.truth.tobytes()).hexdigest()
    where = clusterer.__module__.rpartition(".")[2], clusterer.__qualname__
    key["contestant"] = [contestant.name, contestant.fingerprint, *where]
    return study.results.table("bench", key, compute)


def _scored(
    task: Task, contestant: Contestant, answers: pd.DataFrame, owner: dict[int, NDArray[np.int64]]
) -> pd.DataFrame:
    rows = []
    self_merged = task.planting.self_merged if task.planting else (task.k == 1) & (task.truth >= 0).any(axis=1)
    for channel, answer in enumerate(answers.itertuples()):
        labels = np.asarray(answer.labels, dtype=np.int64)
        known, k = task.truth[channel], int(task.k[channel])
        row: dict[str, Any] = {"channel": channel, "method": contestant.name, "oracle": contestant.oracle}
        row |= {"k": k, "self_merged": bool(self_merged[channel])}
        row |= dict.fromkeys(SCORES, np.nan)
        if k > 1:
            row |= agreements(known, labels, task.dominant[channel])
            if task.planting is not None and task.contributions is not None:
                sources = np.unique(known[known >= 0]).tolist()  # one that is never dominant has no part to be found
                row["correlation"] = part_correlation(task.contributions[channel], labels, sources)
            if answer.owner is not None and channel in owner:
                found = np.asarray(answer.owner, dtype=np.int64)
                row["f1"] = source_f1(owner[channel], found, matched(known, labels))
        rows.append(
            row | {"silhouette_gain": answer.silhouette_gain, "chosen": answer.chosen, "labels": labels.tolist()}
        )
    return pd.DataFrame(rows).assign(seconds=answers["seconds"].to_numpy())


def downstream(
    task: Task, study: Study, channels: Sequence[int], samples: Sequence[int], assign: Assign = "nearest"
) -> pd.DataFrame:
    """How well virtual neurons in the network follow their sources, on images that they were not made from.

    Parameters
    ----------
    task
        With planted channels.
    study
        The recipe that splits them into parts: ``task.replace(...)``, with a number of parts ``n_clusters``.
    channels
        Which of them.
    samples
        Indices of images. Leave out the references, and it is a test on new images.
    assign
        See :class:`pure_nb.methods.virtual_layer.VirtualLayer`.

    Returns
    -------
    DataFrame
        A row for each channel and source: ``channel``, ``source`` (a channel of the layer as it was), ``virtual``, the
        correlation over the images of the activation of the source's virtual neuron with that of the source, both where
        the merged channel is largest (0 if no part stands for the source); and ``whole``, that of the merged channel
        with the source, to compare with.

    Raises
    ------
    StudyError
        If nothing was planted.
    """
    planting = task.planting
    if planting is None:
        raise StudyError(f"the task {task.name!r} has no sources; plant some: pure_nb.benchmark.tasks.planted_task")
    if study.parameters.n_references != task.truth.shape[1]:
        raise StudyError(
            f"the recipe has {study.parameters.n_references} references a channel and the task {task.truth.shape[1]}; "
            "use the same number"
        )
    layer = VirtualLayer.of(study, channels, assign)
    names = [planting.target, f"{planting.layer}.whole"]
    groups = planting.sources[list(channels)]
    owner = layer.channel.cpu().numpy()
    found: list[tuple[NDArray[np.float64], ...]] = []
    for batch in readable(study.images, [int(sample) for sample in samples], run=study.run):
        images = batch.images.to(study.run.local_device)
        with study.run.prepared(study.model), torch.no_grad():
            outputs = activations(study.model, images, names)
        maps = [
            flatten_positions(tensor).cpu().double().numpy() for tensor in (*map(outputs.get, names), layer(images))
        ]
        merged, sources, parts = maps  # [images, channels, positions] each
        place = merged.argmax(axis=2)
        row = np.arange(len(place))[:, None]
        own = [row, np.arange(len(planting.groups)), place]
        contributions = np.stack([sources[row, group, place[:, [c]]] for c, group in zip(channels, groups)], axis=1)
        found.append((merged[tuple(own)], contributions, parts[row, np.arange(len(owner)), place[:, owner]]))
    whole, contributions, parts = (np.concatenate(values) for values in zip(*found))
    rows = []
    for order, channel in enumerate(channels):
        part_of = matched(task.truth[channel], study.virtual_of(channel).labels)
        members = np.flatnonzero(owner == channel)  # in the order of the parts
        for place, source in enumerate(planting.groups[channel]):
            contributed = contributions[:, order, place]
            value = pearson(parts[:, members[part_of[place]]], contributed) if place in part_of else 0.0
            rows.append((channel, source, value, pearson(whole[:, channel], contributed)))
    return pd.DataFrame(rows, columns=["channel", "source", "virtual", "whole"])


def detection(table: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """How well each method's silhouette gain tells neurons that mean several things from those that mean one.

    Parameters
    ----------
    table
        From :func:`run`.

    Returns
    -------
    dict
        For each method the area under the ROC curve (0.5: chance), and its 95 % bootstrap interval over the neurons.
        NaN without neurons of both kinds, or without silhouette gain. Neurons that were merged from several channels,
        of which one is dominant in nearly all references, are neither and left out.
    """
    found = {}
    for method, own in table.groupby("method", sort=False):
        used = own[((own["k"] > 1) | own["self_merged"]) & own["silhouette_gain"].notna()]
        several, silhouette_gain = (used["k"] > 1).to_numpy(), used["silhouette_gain"].to_numpy(dtype=float)
        if not 0 < several.sum() < len(several):
            found[str(method)] = (float("nan"),) * 3
            continue
        picks = resampled(np.flatnonzero(several), np.flatnonzero(~several), draws=200)  # as many of each as there are
        limits = percentiles([roc_auc_score(several[pick], silhouette_gain[pick]) for pick in picks])
        found[str(method)] = (float(roc_auc_score(several, silhouette_gain)), *limits)
    return found


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """How often each method chose which number of parts, for neurons that mean so many things.

    Parameters
    ----------
    table
        From :func:`run`.

    Returns
    -------
    DataFrame
        A row for each method and true number ``k``, a column for each chosen number: shares of the neurons.
    """
    used = table[((table["k"] > 1) | table["self_merged"]) & table["chosen"].notna()]
    counts = pd.crosstab([used["method"], used["k"]], used["chosen"].astype(int), normalize="index")
    return counts.rename_axis(columns="chosen")


def leaderboard(table: pd.DataFrame, baseline: str = PURE) -> pd.DataFrame:
    """All methods, the best first.

    Parameters
    ----------
    table
        From :func:`run`.
    baseline
        The method that the others are compared with.

    Returns
    -------
    DataFrame
        ``method``; ``ari`` with its 95 % bootstrap interval over neurons ``low`` to ``high``; its ``difference`` from
        the baseline, with its 95 % paired bootstrap interval ``difference_low`` to ``difference_high``, and ``p`` of
        Wilcoxon's signed-rank test, neuron by neuron, corrected for the number of methods; means of the other
        :data:`SCORES`, of ``ari_dominant`` over the ``dominant_neurons`` that have it; ``auc`` with ``auc_low`` and
        ``auc_high`` from :func:`detection`; ``k_right``, the share of neurons with several meanings for which the
        true number was chosen, and ``k_bias``, the mean of chosen minus true; ``seconds``.
    """
    scored = table[table["k"] > 1]
    if scored.empty:
        raise ArgumentError("no neuron means more than one thing, so there is nothing to compare")
    bound = scored["oracle"]
    found = summary(scored[~bound], baseline, "ari")
    if bound.any():  # what was told the truth takes no part in the correction for many tests
        told = summary(scored[bound | (scored["method"] == baseline)], baseline, "ari")
        told = told[told["method"] != baseline].assign(p=np.nan)
        found = pd.concat([found, told]).sort_values("mean", ascending=False, kind="stable", ignore_index=True)
    found = found.rename(columns={"mean": "ari"})
    wrong = scored["chosen"] - scored["k"]
    by_method = scored.assign(k_right=(wrong == 0).astype(float).where(wrong.notna()), k_bias=wrong).groupby("method")
    means = by_method[list(SCORES[1:])].mean()
    means["dominant_neurons"] = by_method["ari_dominant"].count()
    means[["k_right", "k_bias"]] = by_method[["k_right", "k_bias"]].mean()
    means[["auc", "auc_low", "auc_high"]] = pd.DataFrame(detection(table)).T
    means["seconds"] = by_method["seconds"].first()
    return found.join(means, on="method")
