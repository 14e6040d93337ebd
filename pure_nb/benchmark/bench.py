"""The benchmark: contestants take neurons apart, and are scored against the known truth.

:func:`run` gives a tidy table with a row for each neuron and contestant, :func:`leaderboard` its means with their
intervals and tests. The chapter *How would we know?* explains the scores.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, roc_auc_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.utils.parallel import Parallel, delayed

from pure_nb.benchmark.contestants import CEILING, PAPER, Contestant, Parts, by_means
from pure_nb.benchmark.worlds import World
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, StudyError, StudyWarning
from pure_nb.images.data import readable
from pure_nb.judges import truth
from pure_nb.methods.ownership import SHARED, owners
from pure_nb.methods.virtual import VirtualNeurons, virtual_neurons
from pure_nb.methods.virtual_layer import Assign, VirtualLayer
from pure_nb.methods.windows import dense_weight, pooled_inputs
from pure_nb.network.layers import activations, by_position, get_layer
from pure_nb.study import Study

FORMAT = 3
"""Part of what stored answers are found by; raised when this package computes them differently."""

SCORES = ("ari", "ami", "accuracy", "ari_clear", "correlation", "f1")
"""Columns that say how well a contestant did, neuron by neuron; the more the better."""

DRAWS = 199
"""Draws at most by which a number of parts is chosen: enough for a neuron that is left whole unless p <= 0.05."""

OWNED = 0.5
"""A source truly belongs to one concept if no other has more than this part of its average relevance."""

FEW = 20
"""Clear references that a neuron must have, to be scored by them alone."""


def matched(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[int, int]:
    """The part that stands for each true thing, so that as many references as possible are right.

    Parameters
    ----------
    truth, labels
        int64 ``[n]`` each; -1 belongs to nothing.

    Returns
    -------
    dict
        From true things to parts; those without a part are left out. Ties go to the lowest numbers.
    """
    known = (truth >= 0) & (labels >= 0)
    if not known.any():
        return {}
    things, parts = np.unique(truth[known]), np.unique(labels[known])
    table = contingency_matrix(truth[known], labels[known])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return {int(things[row]): int(parts[column]) for row, column in zip(rows, columns)}


def accuracy(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Share of the references with a known truth that are in the part that stands for it; see :func:`matched`."""
    known = truth >= 0
    right = sum(int(((truth == thing) & (labels == part)).sum()) for thing, part in matched(truth, labels).items())
    return right / int(known.sum()) if known.any() else float("nan")


def agreements(truth: NDArray[np.int64], labels: NDArray[np.int64], clear: NDArray[np.bool_]) -> dict[str, float]:
    """How well the parts of one neuron agree with the truth.

    Parameters
    ----------
    truth, labels
        int64 ``[n]``. References without a truth (-1) are left out; label -1 is a part like any other.
    clear
        bool ``[n]``: the references that are driven by one thing for the most part.

    Returns
    -------
    dict
        ``ari``, ``ami``, ``accuracy``; and ``ari_clear``, the first of the clear references alone, NaN if there are
        fewer than :data:`FEW` of them or they are all of one thing.
    """
    known = truth >= 0
    plain = known & clear
    enough = plain.sum() >= FEW and len(np.unique(truth[plain])) > 1
    return {
        "ari": float(adjusted_rand_score(truth[known], labels[known])),
        "ami": float(adjusted_mutual_info_score(truth[known], labels[known])),
        "accuracy": accuracy(truth, labels),
        "ari_clear": float(adjusted_rand_score(truth[plain], labels[plain])) if enough else float("nan"),
    }


def part_correlation(brought: NDArray[np.floating[Any]], labels: NDArray[np.int64], sources: Sequence[int]) -> float:
    """Correlation of each virtual neuron's activation with that of its source, averaged over the sources.

    A virtual neuron is as active as the channel where an image belongs to its part, and silent elsewhere.

    Parameters
    ----------
    brought
        float ``[n, sources]``: what each source brought to each image; see
        :func:`pure_nb.benchmark.planting.contributions`.
    labels
        int64 ``[n]``: the parts.
    sources
        Those that count, columns of ``brought``.

    Returns
    -------
    float
        A source without a part counts as 0, as does one whose part is constant.
    """
    whole = np.asarray(brought, dtype=np.float64).sum(axis=1)
    driver = np.where(brought.max(axis=1) > 0, brought.argmax(axis=1), -1)
    part_of = matched(np.where(np.isin(driver, sources), driver, -1), labels)
    values = []
    for source in sources:
        own = np.where(labels == part_of[source], whole, 0) if source in part_of else np.zeros(len(whole))
        values.append(pearson(own, np.asarray(brought[:, source], dtype=np.float64)))
    return float(np.mean(values))


def pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def source_f1(true: NDArray[np.int64], found: NDArray[np.int64], part_of: dict[int, int]) -> float:
    """F1 of the recovered owners of a split's sources, averaged over the concepts.

    Parameters
    ----------
    true, found
        int64 ``[inputs]``: who owns each input, -1 for shared ones; see :func:`pure_nb.methods.ownership.owners`.
    part_of
        The part that stands for each concept.

    Returns
    -------
    float
        NaN if no concept truly owns an input.
    """
    values = []
    for concept in np.unique(true[true != SHARED]).tolist():
        own = true == concept
        claimed = found == part_of[concept] if concept in part_of else np.zeros(len(found), dtype=np.bool_)
        values.append(2 * (own & claimed).sum() / (own.sum() + claimed.sum()))
    return float(np.mean(values)) if values else float("nan")


def true_owners(world: World) -> dict[int, NDArray[np.int64]]:
    """Who really owns the inputs of each merged channel of a convolution or linear layer: its sources' own weights.

    A source's average relevance vector is computed as in Hesse et al. (2025), from its own weights and the references
    that it drove. An input belongs to the source that gets clearly more from it; see :data:`OWNED`.

    Returns
    -------
    dict
        From channels to int64 ``[inputs]``, as :func:`pure_nb.methods.ownership.owners`; empty for a world where the
        merged channels do not read the layer's input.
    """
    planting, study = world.planting, world.study
    if planting is None or not planting.early:
        return {}
    layer = f"{planting.layer}.whole"
    module, sample = get_layer(study.model, layer), study.references.sample
    unique, place = np.unique(sample, return_inverse=True)
    inputs = pooled_inputs(study.model, study.images, unique, layer, run=study.run)
    place, found = place.reshape(sample.shape), {}
    for channel in np.flatnonzero(world.k > 1).tolist():
        arvs = []
        for source, number in enumerate(planting.groups[channel]):
            mine = inputs[place[channel, world.truth[channel] == source]]
            weight = dense_weight(module, number) * planting.weight[channel, number]
            arvs.append((mine.mean(axis=0) * weight).sum(axis=1) if len(mine) else np.zeros(len(weight)))
        found[channel] = owners(np.stack(arvs), OWNED)
    return found


def run(
    world: World,
    contestants: Sequence[Contestant],
    *,
    choose: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    """Let all contestants take all neurons of a world apart. Finished ones are kept in the study's store.

    Parameters
    ----------
    world
        From :func:`pure_nb.benchmark.worlds.planted_world` or :func:`pure_nb.benchmark.worlds.objects_world`.
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
        A row for each neuron and contestant. ``channel``, ``method``, ``k`` (how many things the neuron means) and
        ``null`` (whether it was merged with itself); the :data:`SCORES`, NaN where a neuron means one thing;
        ``clarity`` (how much clearer the best parts are than those of draws from one heap) and ``chosen`` (number of
        parts, if it is not told), NaN for contestants that do not cluster by k-means; ``labels`` (a list, int);
        ``seconds`` that the contestant took for all neurons, without what was in the store before.

    Raises
    ------
    StudyError
        If two contestants have one name, or an answer is not of the right shape.

    Warns
    -----
    StudyWarning
        If no neuron has enough clear references for ``ari_clear``.
    """
    seed = world.study.parameters.random if seed is None else seed
    names = [contestant.name for contestant in contestants]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise StudyError(f"two contestants are called {double[0]!r}; name one of them otherwise")
    if not names:
        raise StudyError("nobody takes part: name at least one contestant")
    owner, tables = true_owners(world), []
    shown = progress_bar(contestants, world.name, unit="method", shown=world.study.run.progress)
    with Parallel(n_jobs=-1) as parallel, shown as bar:
        for contestant in bar:
            bar.set_postfix_str(contestant.name)
            answers = _kept(world, contestant, choose, seed, parallel)
            tables.append(_scored(world, contestant.name, answers, owner))
    found = pd.concat(tables, ignore_index=True)
    if found["ari_clear"].isna().all() and (world.k > 1).any():
        warnings.warn(
            f"ari_clear is not known: it takes {FEW} clear references of several things, and no neuron has them among "
            f"its {world.truth.shape[1]} references. Ask for more (n=..., --n)",
            StudyWarning,
            stacklevel=2,
        )
    return found


def _kept(world: World, contestant: Contestant, choose: bool, seed: int, parallel: Parallel) -> pd.DataFrame:
    """A contestant's answers, a row for each neuron: from the store, or now."""

    def compute(_: Store | None) -> pd.DataFrame:
        start = perf_counter()
        parts = contestant.parts(world, seed)
        seconds = perf_counter() - start
        owned = pd.Series([parts.owner.get(channel) for channel in range(len(parts.labels))], dtype=object)
        table = pd.DataFrame({"labels": list(parts.labels), "seconds": seconds, "owner": owned})
        return table.assign(**_chosen(parts if choose else None, contestant, parallel, len(table), seed))

    if not contestant.fingerprint:
        return compute(None)
    divide: Any = contestant.divide
    study, digest = world.study, hashlib.sha256(world.truth.tobytes()).hexdigest()
    key: dict[str, object] = {
        "step": "bench",
        "format": FORMAT,
        "study": study.identity,
        "parameters": asdict(study.parameters),
        "truth": digest,
        "references": study.ranked,
        "contestant": [
            contestant.name,
            contestant.fingerprint,
            divide.__module__.rpartition(".")[2],
            divide.__qualname__,
        ],
        "choose": choose,
        "seed": seed,
    }
    return study.results.table("bench", key, compute)


def _chosen(parts: Parts | None, contestant: Contestant, parallel: Parallel, count: int, seed: int) -> dict[str, Any]:
    """What k-means finds in a contestant's vectors if it is not told how many parts there are."""
    if parts is None or parts.vectors is None or contestant.divide is not by_means:
        return {"clarity": np.full(count, np.nan), "chosen": np.full(count, np.nan)}
    how: dict[str, Any] = {"draws": DRAWS, "seed": seed}
    found: list[VirtualNeurons] = parallel(delayed(virtual_neurons)(vectors, **how) for vectors in parts.vectors)
    return {"clarity": [one.silhouette_gain for one in found], "chosen": [float(one.k) for one in found]}


def _scored(world: World, name: str, answers: pd.DataFrame, owner: dict[int, NDArray[np.int64]]) -> pd.DataFrame:
    rows = []
    null = world.planting.null if world.planting else (world.k == 1) & (world.truth >= 0).any(axis=1)
    for channel, answer in enumerate(answers.itertuples()):
        labels = np.asarray(answer.labels, dtype=np.int64)
        known, k = world.truth[channel], int(world.k[channel])
        row: dict[str, Any] = {"channel": channel, "method": name, "k": k, "null": bool(null[channel])}
        row |= dict.fromkeys(SCORES, np.nan)
        if k > 1:
            row |= agreements(known, labels, world.clear[channel])
            if world.planting is not None and world.brought is not None:
                sources = np.unique(known[known >= 0]).tolist()  # one that never drives it has no part to be found
                row["correlation"] = part_correlation(world.brought[channel], labels, sources)
            if answer.owner is not None and channel in owner:
                found = np.asarray(answer.owner, dtype=np.int64)
                row["f1"] = source_f1(owner[channel], found, matched(known, labels))
        rows.append(row | {"clarity": answer.clarity, "chosen": answer.chosen, "labels": labels.tolist()})
    return pd.DataFrame(rows).assign(seconds=answers["seconds"].to_numpy())


def downstream(
    world: World, study: Study, channels: Sequence[int], samples: Sequence[int], assign: Assign = "nearest"
) -> pd.DataFrame:
    """How well virtual neurons in the network follow their sources, on images that they were not made from.

    Parameters
    ----------
    world
        With planted channels.
    study
        The recipe that takes them apart: ``world.using(...)``, with a number of parts ``k``.
    channels
        Which of them.
    samples
        Numbers of images. Leave out the references, and it is a test on new images.
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
    planting = world.planting
    if planting is None:
        raise StudyError(f"the world {world.name!r} has no sources; plant some: pure_nb.benchmark.worlds.planted_world")
    if study.parameters.n != world.truth.shape[1]:
        raise StudyError(
            f"the recipe has {study.parameters.n} references a channel and the world {world.truth.shape[1]}; use the "
            "same number"
        )
    layer = VirtualLayer.of(study, channels, assign)
    names = [planting.target, f"{planting.layer}.whole"]
    most = max(map(len, planting.groups))
    groups = [[*group, *[group[0]] * (most - len(group))] for group in (planting.groups[c] for c in channels)]
    owner = layer.channel.cpu().numpy()
    found: list[tuple[NDArray[np.float64], ...]] = []
    for batch in readable(study.images, [int(sample) for sample in samples], run=study.run):
        images = batch.images.to(study.run.local_device)
        with study.run.prepared(study.model), torch.no_grad():
            outputs = activations(study.model, images, names)
        maps = [by_position(tensor).double().cpu().numpy() for tensor in (*map(outputs.get, names), layer(images))]
        merged, sources, parts = maps  # [images, channels, positions] each
        place = merged.argmax(axis=2)
        row = np.arange(len(place))[:, None]
        own = [row, np.arange(len(planting.groups)), place]
        brought = np.stack([sources[row, group, place[:, [c]]] for c, group in zip(channels, groups)], axis=1)
        found.append((merged[tuple(own)], brought, parts[row, np.arange(len(owner)), place[:, owner]]))
    whole, brought, parts = (np.concatenate(values) for values in zip(*found))
    rows = []
    for order, channel in enumerate(channels):
        part_of = matched(world.truth[channel], study.virtual_of(channel).labels)
        members = np.flatnonzero(owner == channel)  # in the order of the parts
        for place, source in enumerate(planting.groups[channel]):
            driven = brought[:, order, place]
            value = pearson(parts[:, members[part_of[place]]], driven) if place in part_of else 0.0
            rows.append(
                {"channel": channel, "source": source, "virtual": value, "whole": pearson(whole[:, channel], driven)}
            )
    return pd.DataFrame(rows)


def detection(table: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """How well each method's clarity tells neurons that mean several things from those that mean one.

    Parameters
    ----------
    table
        From :func:`run`.

    Returns
    -------
    dict
        For each method the area under the ROC curve (0.5: chance), and its 95 % bootstrap interval over the neurons.
        NaN without neurons of both kinds, or without clarity. Neurons that were merged from several channels, but all
        driven by one of them, are neither and left out.
    """
    found = {}
    for method, own in table.groupby("method", sort=False):
        used = own[((own["k"] > 1) | own["null"]) & own["clarity"].notna()]
        several, clarity = (used["k"] > 1).to_numpy(), used["clarity"].to_numpy(dtype=float)
        if not 0 < several.sum() < len(several):
            found[str(method)] = (float("nan"),) * 3
            continue
        generator, drawn = np.random.default_rng(0), []
        groups = [np.flatnonzero(several), np.flatnonzero(~several)]
        for _ in range(200):  # of each kind as many as there are
            pick = np.concatenate([generator.choice(group, len(group)) for group in groups])
            drawn.append(roc_auc_score(several[pick], clarity[pick]))
        low, high = np.quantile(drawn, [0.025, 0.975])
        found[str(method)] = (float(roc_auc_score(several, clarity)), float(low), float(high))
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
    used = table[((table["k"] > 1) | table["null"]) & table["chosen"].notna()]
    counts = pd.crosstab([used["method"], used["k"]], used["chosen"].astype(int), normalize="index")
    return counts.rename_axis(columns="chosen")


def leaderboard(table: pd.DataFrame, baseline: str = PAPER) -> pd.DataFrame:
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
        :data:`SCORES`, of ``ari_clear`` over the ``clear_neurons`` that have it; ``auc`` with ``auc_low`` and
        ``auc_high`` from :func:`detection`; ``k_right``, the share of neurons with several meanings for which the
        true number was chosen,
        and ``k_bias``, the mean of chosen minus true; ``seconds``.
    """
    scored = table[table["k"] > 1]
    if scored.empty:
        raise ArgumentError("no neuron means more than one thing, so there is nothing to compare")
    bound = scored["method"].str.startswith(CEILING)
    found = truth.summary(scored[~bound], baseline, "ari")
    if bound.any():  # what was told the truth takes no part in the correction for many tests
        told = truth.summary(scored[bound | (scored["method"] == baseline)], baseline, "ari")
        told = told[told["method"] != baseline].assign(p=np.nan)
        found = pd.concat([found, told]).sort_values("mean", ascending=False, kind="stable", ignore_index=True)
    found = found.rename(columns={"mean": "ari"})
    by_method = scored.groupby("method")
    means = by_method[list(SCORES[1:])].mean()
    means["clear_neurons"] = by_method["ari_clear"].count()
    wrong = (scored["chosen"] - scored["k"]).where(scored["chosen"].notna())
    known = wrong.notna().groupby(scored["method"]).any()
    means["k_right"] = (wrong == 0).groupby(scored["method"]).mean().where(known)
    means["k_bias"] = wrong.groupby(scored["method"]).mean()
    areas = detection(table)
    for place, name in enumerate(("auc", "auc_low", "auc_high")):
        means[name] = [areas[method][place] for method in means.index]
    means["seconds"] = by_method["seconds"].first()
    return found.join(means, on="method")
