"""Ablation where the right answer is known: a part switched off against its source taken out of the planted channel.

A merged channel is a sum, ``A_m = sum_i w_i A_i / s_i``, so it can be computed without source i. A method that found
source i as a part, and tells rightly in which images it is at work, does the same by switching that part off. Parts are
found in a channel's references, and switched off in images beyond these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.ablating import widened
from pure_nb.benchmark.contestants import Contestant, circuits_of
from pure_nb.benchmark.planting import contributions, dominant_source, shares
from pure_nb.benchmark.scoring import matched
from pure_nb.benchmark.tasks import Task
from pure_nb.errors import PlantingError, StudyError
from pure_nb.images.reading import readable
from pure_nb.methods.ablation import weakened
from pure_nb.methods.descriptions import PURE, RANDOM
from pure_nb.methods.statistics import summary
from pure_nb.methods.virtual import kmeans, nearest
from pure_nb.network.layers import OUTPUT, activations, channel_axis, flatten_positions

WHOLE, ORACLE, SHARED, TRUTH = "whole channel", "oracle parts", "oracle shares", "source"
"""What else is switched off: all of the channel; it all where the source is dominant; the source's share; the source.

The last is the right answer.
"""

MEASURES = ("map_error", "output_error", "selectivity")


def beyond(task: Task) -> Task:
    """A planted task whose references are followed by as many held-out images, the next in the channels' order."""
    if task.planting is None:
        raise PlantingError(f"task {task.name!r}: nothing was planted, so no source can be switched off")
    study = widened(task.study)
    if study.references.n <= task.truth.shape[1]:
        raise StudyError(f"there are no images beyond the {task.truth.shape[1]} references; take fewer, or more images")
    contributed = contributions(study.model, study.images, study.references, task.planting, run=study.run)
    part = shares(contributed).max(axis=-1)
    return replace(task, study=study, truth=dominant_source(contributed), share=part, contributions=contributed)


def compare_ablations(task: Task, contestants: Sequence[Contestant] = ()) -> pd.DataFrame:
    """How near switching a part off comes to switching its source off, channel by channel and source by source.

    Parameters
    ----------
    task
        With planted channels.
    contestants
        Those that return vectors; PURE by default. As many parts are wanted as a channel has sources.

    Returns
    -------
    DataFrame
        ``channel, source, method``; ``map_error``, how far the channel's maps are from those without the source, over
        all held-out images and positions: the root of the sum of squares, divided by that of doing nothing, so that 0
        is right and 1 no better than nothing; ``output_error``, the same of the network's outputs; ``selectivity``, the
        relative fall of the channel's score in the images in which the source is dominant, less that in the others
        (the source itself shows what is to be reached); and how many ``images`` there are, of which in ``own`` the
        source is dominant.

    Raises
    ------
    PlantingError
        If nothing was planted.
    StudyError
        If there are no images beyond the references.

    Examples
    --------
    >>> table = compare_ablations(planted_task(study, count=1))
    >>> table["method"].unique().tolist()
    ['PURE', 'random', 'whole channel', 'oracle parts', 'oracle shares', 'source']
    """
    wide, n = beyond(task), task.truth.shape[1]
    ways = contestants or [Contestant(PURE, circuits_of(rule="gradient", start="activation"))]
    vectors = {way.name: np.asarray(way.describe(wide)) for way in ways}
    rows: list[dict[str, Any]] = []
    assert task.planting is not None
    for channel, group in enumerate(task.planting.groups):
        if task.planting.self_merged[channel]:
            continue
        taken = {}
        for way in ways:
            own = np.asarray(vectors[way.name][channel])
            taken[way.name] = _parts(way, own, wide.truth[channel], n, len(set(group)), task.study.parameters.seed)
        rows += _of_channel(wide, n, channel, taken)
    return pd.DataFrame(rows)


def board(table: pd.DataFrame, measure: str = "map_error", baseline: str = PURE) -> pd.DataFrame:
    """Means over channels by method, with intervals, see :func:`pure_nb.methods.statistics.summary`; errors upwards."""
    means = table.groupby(["channel", "method"])[measure].mean().dropna().reset_index()
    return summary(means, baseline, measure).sort_values(
        "mean", ascending=measure != "selectivity", kind="stable", ignore_index=True
    )


def _parts(
    way: Contestant, vectors: NDArray[Any], truth: NDArray[np.int64], n: int, k: int, seed: int
) -> dict[int, NDArray[np.bool_]]:
    """In which held-out images each source is said to be at work: bool ``[h]``, by its place in the group."""
    labels = way.clusterer(vectors[:n], k, seed)
    parts = np.unique(labels[labels >= 0])
    middles = np.stack([vectors[:n][labels == part].mean(axis=0) for part in parts])
    held = parts[nearest(vectors[n:], middles)]
    found = matched(truth[:n], labels)
    return {source: held == found.get(source, -2) for source in np.unique(truth[truth >= 0]).tolist()}


def _of_channel(
    wide: Task, n: int, channel: int, taken: dict[str, dict[int, NDArray[np.bool_]]]
) -> Iterator[dict[str, Any]]:
    """The rows of one channel."""
    assert wide.planting is not None
    assert wide.contributions is not None
    study, planting = wide.study, wide.planting
    active = study.references.active[channel, n:]
    held, dominant = study.references.sample[channel, n:][active], wide.truth[channel, n:][active]
    share = shares(wide.contributions[channel, n:][active])
    generator = np.random.default_rng([study.parameters.seed, channel])
    order = generator.permutation(len(held))
    first = next(iter(taken))
    for source in np.unique(dominant[dominant >= 0]).tolist():
        own = {name: parts[source][active].astype(np.float64) for name, parts in taken.items()}
        own |= {
            RANDOM: own[first][order],
            WHOLE: np.ones(len(held)),
            ORACLE: (dominant == source).astype(np.float64),
            SHARED: share[:, source],
        }
        mine = planting.groups[channel][source]
        weight = float(planting.weight[channel, mine])
        errors, fall = _measured(wide, channel, held, own, (mine, weight))
        on = dominant == source
        for name, found in errors.items():
            both = on.any() and not on.all()
            yield {
                "channel": channel,
                "source": mine,
                "method": name,
                "map_error": found[0],
                "output_error": found[1],
                "selectivity": float(fall[name][on].mean() - fall[name][~on].mean()) if both else np.nan,
                "images": len(held),
                "own": int(on.sum()),
            }


def _measured(
    wide: Task, channel: int, held: NDArray[np.int64], own: dict[str, NDArray[np.float64]], source: tuple[int, float]
) -> tuple[dict[str, tuple[float, float]], dict[str, NDArray[np.float64]]]:
    """Errors of the channel's maps and of the outputs, and the relative fall of its score, for each way."""
    assert wide.planting is not None
    study, target, whole = wide.study, wide.study.parameters.target, f"{wide.planting.layer}.whole"
    names, one, by_max = [*own, TRUTH], np.array([channel]), study.parameters.ranked_by == "max"
    squares = np.zeros((len(names) + 1, 2))  # of each way's difference from the right answer; the last is of nothing
    falls: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    begin = 0

    def without(shown: Tensor, values: Tensor) -> Tensor:
        """The merged channel without the source; ``values`` is what the layer as it was puts out."""
        return weakened(shown, one, np.ones((len(shown), 1)), _channel(shown, channel) - source[1] * values)

    def ran(images: Tensor, change: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        found = activations(study.model, images, [whole, target, OUTPUT], changes=change and {target: change})
        return _channel(found[whole], source[0]), _channel(found[target], channel), found[OUTPUT].flatten(1)

    with study.run.prepared(study.model), torch.no_grad():
        for batch in readable(study.images, held.tolist(), run=study.run):
            images, rows = batch.images.to(study.run.local_device), slice(begin, begin + len(batch.samples))
            begin = rows.stop
            values, before, plain = ran(images)
            right = ran(images, partial(without, values=values))[1:]
            every = [
                *(ran(images, partial(weakened, channel=one, share=own[name][rows, None]))[1:] for name in own),
                right,
                (before, plain),
            ]
            for place, found in enumerate(every):
                squares[place] += [float(((a - b).double() ** 2).sum()) for a, b in zip(found, right)]
                if place < len(names):
                    flat = [flatten_positions(maps).flatten(1).double() for maps in (before, found[0])]
                    high = [maps.amax(dim=1) if by_max else maps.mean(dim=1) for maps in flat]
                    falls[names[place]].append(((high[0] - high[1]) / high[0]).cpu().numpy())
    relative = np.sqrt(squares / np.maximum(squares[-1], np.finfo(np.float64).tiny))
    errors = {name: (float(relative[place, 0]), float(relative[place, 1])) for place, name in enumerate(names)}
    return errors, {name: np.concatenate(values) for name, values in falls.items()}


def _channel(activation: Tensor, channel: int) -> Tensor:
    """One channel of a layer, which keeps an axis."""
    axis = channel_axis(activation)
    return activation.narrow(axis, channel, 1).movedim(axis, 1)


def split_selectivity(task: Task) -> NDArray[np.float64]:
    """A score for :func:`pure_nb.benchmark.trial.trial`: how selective parts are of parts found in other images.

    Each channel's references are halved (every second one), each half is split in two by circuits, and images beyond
    the references are assigned by both. Switching a part of the one half off takes all of the channel in its images;
    the score is how much more that is in the images of the other half's part than in the rest, over both parts.

    Returns
    -------
    ndarray
        float64 ``[channels]``, -1..1; NaN where one of the parts has none of the images.
    """
    study = widened(task.study)
    wide = replace(task, study=study)
    vectors = wide.hidden(study.circuits, study.parameters.lower)
    n, seed, found = task.truth.shape[1], study.parameters.seed, []
    for circuits, active in zip(vectors, study.references.active):
        references, held = circuits[:n][active[:n]], circuits[n:][active[n:]]
        if len(references) < 4:
            found.append(np.nan)
            continue
        assigned = []
        for half in (references[::2], references[1::2]):
            labels = kmeans(half, 2, seed=seed)
            middles = np.stack([half[labels == part].mean(axis=0) for part in np.unique(labels)])
            assigned.append((nearest(references, middles), nearest(held, middles)))
        (first, fall), (second, told) = assigned
        part_of = matched(second, first)
        values = []
        for part in (0, 1):
            off, own = fall == part_of.get(part, -2), told == part
            values.append(off[own].mean() - off[~own].mean() if own.any() and not own.all() else np.nan)
        found.append(float(np.mean(values)))
    return np.array(found)
