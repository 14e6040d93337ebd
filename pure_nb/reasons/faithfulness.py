"""Whether explanations of classes are right: the parts that carry a class are switched off, and on alone, over images.

A part that is off takes its channel from those images in which the channel works as this part, and leaves it to all
others; a channel that is off is off in all. So the parts of a class should hit its own images and spare those of other
classes, at the same number of units. Images that chose the units are not those that are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.compute.blocks import grouped, map_in_blocks
from pure_nb.compute.results import FORMAT
from pure_nb.compute.store import Arrays, Store
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.images.data import Images
from pure_nb.images.labels import class_labels, display_names
from pure_nb.images.reading import readable
from pure_nb.images.sources import as_images
from pure_nb.methods.statistics import corrected, percentiles, resampled, signed_rank
from pure_nb.reasons.class_parts import traced_images
from pure_nb.reasons.curves import RANDOM
from pure_nb.reasons.explaining import output_count
from pure_nb.reasons.looking import number_of, spread
from pure_nb.reasons.parts import UNLIKE, Parts
from pure_nb.reasons.switching import (
    ABLATIONS,
    area,
    layer_activations,
    mean_activation,
    outputs_without,
)
from pure_nb.reasons.tracing import Start, parts_at_work

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pure_nb.study import Study

KINDS = ("parts", "nearest parts", "channels", "shuffled parts", "random parts", RANDOM)
"""Units: the parts that speak most for the class, each off where its channel's circuit is like it; the same, each off
where it is the nearest, however far; whole channels that speak most for the class; the first, each off in as many of
the class's measured images and in as many of the others, drawn at random; and parts and channels drawn from all that
carry any of the classes."""

WAYS = ("off", "alone")
"""Those units are switched off, or all others of the layer are."""

MEASURES = ("own", "others", "selectivity")

DRAWS = 2000
"""Bootstrap samples of the outputs."""

FEW = 64
"""Images whose mean activation stands in for channels that are off, at the most."""


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How outputs follow the units that carry them: :meth:`pure_nb.classes.Classes.faithfulness`.

    Attributes
    ----------
    curves
        A row for each point: ``output``, its name; ``ablation`` (:data:`pure_nb.reasons.switching.ABLATIONS`), ``way``
        (:data:`WAYS`), ``unit`` (:data:`KINDS`) and ``units``, how many, or all that speak for the class if these are
        fewer; ``own``, the share of their outputs that the images of the class lose (of units off) or have (of units
        alone), and ``others``, the same of images of other classes and their own outputs; ``own_right`` and
        ``others_right``, the share of images whose largest output then is their class.
    images
        A row for each output: ``output``; how many ``parts`` speak for it, up to the most that are switched; and how
        many images ``chose`` its units, and were measured, ``own`` and ``others``.
    """

    curves: pd.DataFrame
    images: pd.DataFrame

    def table(self, units: int | None = None, *, seed: int = 0) -> pd.DataFrame:
        """What the units do on average over outputs, with 95 % intervals over these.

        ``own``, ``others`` and ``selectivity``, the first less the second, each with ``_low`` and ``_high``; ``ratio``
        of the means of units off, the second to the first, with its interval: what others lose as the class loses 1,
        NaN where it may lose nothing; ``gain``, how much more selective parts are than this, paired by output, with its
        interval; ``p`` of that by Wilcoxon's signed-rank test, corrected for the number of rows; ``own_right`` and
        ``others_right``.

        Parameters
        ----------
        units
            So many; None for the mean height of the curves, from none to the most.
        seed
            Of the bootstrap.

        Raises
        ------
        ArgumentError
            If it was not measured for so many.
        """
        import pandas as pd  # late, see pure_nb._imports

        known = sorted(set(self.curves["units"]))
        if units is not None and units not in known:
            raise ArgumentError(f"units={units}: measured were {', '.join(map(str, known))}")
        values = ["own", "others", "own_right", "others_right"]
        wide = self.curves.pivot(index=["ablation", "way", "unit", "output"], columns="units", values=values)
        heights = {name: area(known, wide[name].to_numpy()) if units is None else wide[name][units] for name in values}
        picks = resampled(np.arange(len(self.images)), draws=DRAWS, seed=seed)  # once, for all rows
        each = pd.DataFrame(heights, index=wide.index).assign(selectivity=lambda own: own["own"] - own["others"])
        rows = []
        for ablation in ABLATIONS:
            for way in WAYS:
                own_of = {unit: each.xs((ablation, way, unit)) for unit in KINDS}
                for unit, own in own_of.items():
                    row: dict[str, Any] = {"ablation": ablation, "way": way, "unit": unit}
                    for name in MEASURES:
                        row |= _with_interval(name, own[name].to_numpy(), picks)
                    if way == "off":
                        row |= _ratio(own["others"].to_numpy(), own["own"].to_numpy(), picks)
                    gain = (own_of[KINDS[0]]["selectivity"] - own["selectivity"]).to_numpy()
                    gain = gain if unit != KINDS[0] else np.full(len(gain), np.nan)
                    row |= _with_interval("gain", gain, picks) | {"p": signed_rank(gain[np.isfinite(gain)])}
                    rows.append(row | {name: float(own[name].mean()) for name in values[2:]})
        table = pd.DataFrame(rows)
        return table.assign(p=corrected(table["p"]))

    def figure(self) -> Figure:
        """The curves, the mean over outputs: the class's own images, and those of others."""
        from pure_nb.figures.faithfulness_plots import faithfulness_figure  # late, as in pure_nb.neuron

        return faithfulness_figure(self)

    def __repr__(self) -> str:
        return f"<Faithfulness of {len(self.images)} outputs: {self.images['own'].sum()} images>"


def _with_interval(name: str, values: NDArray[np.float64], picks: NDArray[np.int64]) -> dict[str, float]:
    low, high = percentiles(values[picks].mean(axis=1))
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def _ratio(others: NDArray[np.float64], own: NDArray[np.float64], picks: NDArray[np.int64]) -> dict[str, float]:
    with np.errstate(divide="ignore", invalid="ignore"):  # of units that do nothing
        ratio, draws = others.mean() / own.mean(), others[picks].mean(axis=1) / own[picks].mean(axis=1)
    low, high = percentiles(draws)
    if not percentiles(own[picks].mean(axis=1))[0] > 0:
        ratio = low = high = np.nan
    return {"ratio": float(ratio), "ratio_low": low, "ratio_high": high}


class Units(NamedTuple):
    """What is switched of a class, ``[m, 2]`` channels and parts and ``[m]`` channels, and as many drawn at random."""

    parts: NDArray[np.int64]
    random_parts: NDArray[np.int64]
    channels: NDArray[np.int64]
    random_channels: NDArray[np.int64]

    @property
    def every(self) -> NDArray[np.int64]:
        """All the parts."""
        return np.concatenate([self.parts, self.random_parts])


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which units are switched in which images: pairs ``[P]`` of a class's place among those asked for and an image."""

    parts: Parts
    images: Images
    labels: NDArray[np.int64]
    chose: NDArray[np.int64]
    units: list[Units]
    counts: list[int]
    place: NDArray[np.int64]
    sample: NDArray[np.int64]
    mine: NDArray[np.bool_]

    def at_work(self, blocks: Store | None) -> NDArray[np.int64]:
        """Parts at work, ``[P, 2, 2 m]`` as of :func:`parts_at_work`: of the class's parts, and of its random ones."""

        def of(image: Tensor, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
            wanted = [self.units[one].every[:, 0] for one in self.place[pairs]]
            channels = np.unique(np.concatenate(wanted))
            found = np.full((len(pairs), 2, 2 * self.counts[-1]), UNLIKE)
            if not len(channels):
                return found
            part = parts_at_work(self.parts, image, channels[None])[:, 0]
            for row, own in zip(found, wanted):
                row[:, : len(own)] = part[:, np.searchsorted(channels, own)]
            return found

        return self._mapped("parts at work", of, blocks)

    def switched(self, at_work: NDArray[np.int64], blocks: Store | None) -> NDArray[np.float64]:
        """Each image's own output, and whether it is the largest: ``[P, ablations, ways, kinds, counts, 2]``."""
        study, seed = self.parts.study, self.parts.study.parameters.seed
        some = spread(self.chose, FEW)
        with study.run.prepared(study.model):
            mean = mean_activation(layer_activations(study, self.images, some.tolist()))
        channel, mask, width = *self._first(at_work, seed), study.shapes[0].channels

        def of(image: Tensor, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
            sample = int(self.sample[pairs[0]])
            other = int(np.random.default_rng([seed, sample]).choice(self.chose))
            (donor,) = layer_activations(study, self.images, [other])
            first = np.zeros((len(pairs), len(KINDS), len(self.counts), width), dtype=np.bool_)
            for at, pair in enumerate(pairs):
                for kind, (own, where) in enumerate(zip(channel[self.place[pair]], mask[pair])):
                    for row, most in enumerate(self.counts):
                        first[at, kind, row, own[:most][where[:most]]] = True
            sets = np.stack([first, ~first], axis=1)
            made = []
            for fill in (torch.zeros_like(mean), mean, donor):
                out = outputs_without(
                    study.model, image, study.parameters.target, sets.reshape(-1, sets.shape[-1]), fill
                )
                right = out.argmax(axis=1) == self.labels[sample]
                made.append(np.stack([out[:, self.labels[sample]], right], axis=1).reshape(*sets.shape[:-1], 2))
            return np.stack(made, axis=1)

        return self._mapped("switched", of, blocks)

    def _first(self, at_work: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The channels of each class's units, ``[classes, kinds, m]``, and where they are off, ``[P, kinds, m]``."""
        channel = np.zeros((len(self.units), len(KINDS), self.counts[-1]), dtype=np.int64)
        mask = np.zeros((len(self.place), *channel.shape[1:]), dtype=np.bool_)
        random = np.random.default_rng(seed)
        for one, units in enumerate(self.units):
            pairs, count = np.flatnonzero(self.place == one), len(units.parts)
            on = at_work[pairs][:, :, : len(units.every)] == units.every[:, 1]
            own, drawn = on[:, 0, :count], on[:, 0, count:]
            always = np.ones((len(pairs), len(units.channels)), dtype=np.bool_)
            shuffled = own.copy()
            for some in (self.mine[pairs], ~self.mine[pairs]):
                shuffled[some] = random.permuted(own[some], axis=0)
            kinds = (
                (units.parts[:, 0], own),
                (units.parts[:, 0], on[:, 1, :count]),
                (units.channels, always),
                (units.parts[:, 0], shuffled),
                (units.random_parts[:, 0], drawn),
                (units.random_channels, always),
            )
            for kind, (channels, where) in enumerate(kinds):
                channel[one, kind, : len(channels)] = channels
                mask[pairs, kind, : len(channels)] = where
        return channel, mask

    def _mapped(
        self, name: str, of: Callable[[Tensor, NDArray[np.int64]], NDArray[Any]], blocks: Store | None
    ) -> NDArray[Any]:
        """What is made of each image with all its pairs, ``[P, ...]``; a cluster is not used."""
        run = replace(self.parts.study.run, client=None)

        def compute(block: NDArray[np.int64], done: Callable[[int], Any]) -> NDArray[Any]:
            images, pairs_of = grouped(self.sample[block])
            found: dict[int, Any] = {}
            batches = readable(self.images, images.tolist(), run=run)
            every = (batch.images[row][None] for batch in batches for row in range(len(batch.images)))
            for image, pairs in zip(every, pairs_of):
                found |= zip(pairs.tolist(), of(image.to(run.local_device), block[pairs]))
                done(len(pairs))
            return np.stack([found[pair] for pair in range(len(block))])

        with run.prepared(self.parts.study.model):
            return map_in_blocks(self.sample, compute, name=name, store=blocks, run=run)


def faithfulness(
    study: Study,
    outputs: Sequence[str | int] | None = None,
    *,
    images: Any = None,
    units: Sequence[int] = (1, 2, 4, 8, 16),
    each: int = 16,
    others: int = 48,
    channels: int = 50,
) -> Faithfulness:
    """Switch the units that carry classes off and on alone, over images of the class and of others; kept in the store.

    Of each class every second of its images chooses its units, by the relevance of its output over all of them, and
    the others are measured. What stands in place of a channel that is off, by
    :data:`pure_nb.reasons.switching.ABLATIONS`: nothing; its mean over (at most 64 of) the images that chose and all
    positions; or all that it does in one of these, drawn at random for each image that is measured.

    Parameters
    ----------
    study
        Whose parts are checked.
    outputs
        Names or numbers of two classes or more; None for all that have two images.
    images
        Labelled images, as for :func:`pure_nb.images.sources.as_images`; None for those of the study. Where these are
        the ones that references were found in, parts were found in some of those that are measured: give others.
    units
        How many units are switched at once; each is a run of the network above the layer.
    each
        Images of each class, evenly spread, half of which choose.
    others
        Images of other classes that are measured for each class, evenly spread over these; no more than there are.
    channels
        How many are taken apart in each image that chooses, those that carry most.

    Raises
    ------
    ArgumentError
        If there are fewer than two classes, no such output, or too few images are asked for.
    StudyError
        If the images have no labels, a class has fewer than two, or no part speaks for any.
    """
    counts = sorted(set(units))
    if each < 2 or others < 1:
        raise ArgumentError(
            f"of each class an image chooses and one is measured, and one of others: got each={each}, others={others}"
        )
    if not counts or counts[0] < 1:
        raise ArgumentError(f"units are numbers of parts from 1 on, got {list(units)}")
    if images is None and study.classes.without_labels:
        raise StudyError(f"classes are checked over their images, and {study.classes.without_labels}")
    labelled = study.classes.labelled if images is None else as_images(images, "images")
    outputs_there = output_count(study)
    labels, names = class_labels(labelled, outputs_there, study.classes.called)
    if labelled is study.images:
        labels = labels.copy()
        labels[[one.sample for one in study.skipped]] = -1
    shown = display_names(names)
    many = np.bincount(labels[labels >= 0], minlength=outputs_there)
    asked = (
        np.flatnonzero(many > 1).tolist()
        if outputs is None
        else [shown.index(str(one)) if one in shown else number_of(study, one, outputs_there) for one in outputs]
    )
    asked = [*dict.fromkeys(asked)]
    if len(asked) < 2:
        raise ArgumentError(f"classes are checked against others, so two or more are needed, got {len(asked)}")
    for one in asked:
        if many[one] < 2:
            raise StudyError(f"the class {names[one]!r} has {many[one]} images: one chooses its parts, one is measured")
    some = [spread(np.flatnonzero(labels == one), each) for one in asked]
    chose, held = [own[::2] for own in some], [own[1::2] for own in some]
    # Each from another image on, or all classes would be measured on the same few others.
    every = [np.roll(np.concatenate([*held[:place], *held[place + 1 :]]), -place) for place in range(len(asked))]
    rest = [spread(own, others) for own in every]
    how = [FORMAT["faithfulness"], FORMAT["reasons"]]
    key: dict[str, object] = study.key("virtual") | {"step": "faithfulness", "how": how, "outputs": asked}
    key |= {"explained": labelled.fingerprint, "units": counts, "channels": channels}
    key |= {"samples": [own.tolist() for own in chose + held + rest]}

    def compute(blocks: Store | None) -> tuple[Arrays, None]:
        parts = Parts(study)
        chosen = _chosen(parts, labelled, chose, asked, counts[-1], channels)
        place = np.repeat(np.arange(len(asked)), [len(one) + len(other) for one, other in zip(held, rest)])
        sample = np.concatenate([own for both in zip(held, rest) for own in both])
        mine = labels[sample] == np.array(asked)[place]
        plan = _Plan(parts, labelled, labels, np.concatenate(chose), chosen, [0, *counts], place, sample, mine)
        rows = plan.switched(plan.at_work(blocks), blocks)
        curves = [[_told(rows[(place == one) & own]) for own in (mine, ~mine)] for one in range(len(asked))]
        return {"curves": np.stack(curves), "parts": np.array([len(one.parts) for one in chosen])}, None

    found = study.results.arrays("faithfulness", key, compute)[0]
    sizes = [
        *zip([shown[one] for one in asked], found["parts"].tolist(), *(map(len, own) for own in (chose, held, rest)))
    ]
    return _as_tables(found["curves"], [0, *counts], sizes)


def _chosen(
    parts: Parts, images: Images, chose: list[NDArray[np.int64]], asked: list[int], most: int, channels: int
) -> list[Units]:
    """The units that speak most for each class over the images that choose, and as many out of all that carry any."""
    ranked = []
    for number, sample in zip(asked, chose):
        found = traced_images(parts, images, sample, Start(number), channels)
        like = found["part"] != UNLIKE
        pairs = np.stack([found["channel"], found["part"]], axis=2)
        ranked.append(
            (
                _ranked(pairs[like], found["relevance"][like]),
                _ranked(found["channel"][..., None].reshape(-1, 1), found["relevance"].ravel()),
            )
        )
    if not any(len(own) for own, _ in ranked):
        raise StudyError("no part speaks for any of the classes in their images, so there is none to switch off")
    random = np.random.default_rng(parts.study.parameters.seed)
    pool = [np.unique(np.concatenate([one[kind] for one in ranked]), axis=0) for kind in (0, 1)]
    units = []
    for both in ranked:
        own, whole = (kind[:most] for kind in both)
        drawn = [every[random.choice(len(every), len(kind), replace=False)] for every, kind in zip(pool, (own, whole))]
        units.append(Units(own, drawn[0], whole[:, 0], drawn[1][:, 0]))
    return units


def _ranked(units: NDArray[np.int64], relevance: NDArray[np.float64]) -> NDArray[np.int64]:
    """The different units ``[m, d]`` whose relevance is above 0 in sum, the largest first."""
    every, back = np.unique(units, axis=0, return_inverse=True)
    total = np.bincount(back.ravel(), weights=relevance, minlength=len(every))
    order = np.argsort(-total, kind="stable")
    ranked: NDArray[np.int64] = every[order[total[order] > 0]]
    return ranked


def _told(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of some images what is there of their outputs, and the share of right answers: ``[..., 2]``."""
    whole = np.abs(rows[:, :1, :1, :1, :1, 0].sum(axis=0))
    return np.stack([rows[..., 0].sum(axis=0) / whole, rows[..., 1].mean(axis=0)], axis=-1)


def _as_tables(found: NDArray[np.float64], counts: list[int], sizes: list[tuple[Any, ...]]) -> Faithfulness:
    """Of what is there ``[outputs, own and others, ablations, ways, kinds, counts, 2]`` the tables."""
    import pandas as pd  # late, see pure_nb._imports

    images = pd.DataFrame(sizes, columns=["output", "parts", "chose", "own", "others"])
    names = ["output", "ablation", "way", "unit", "units"]
    index = pd.MultiIndex.from_product([images["output"].tolist(), ABLATIONS, WAYS, KINDS, counts], names=names)
    values = found.copy()
    off = values[:, :, :, 0, ..., 0]
    off[...] = off[..., :1] - off  # what is lost of what is there with all on: that is -1 of outputs below 0
    values = values.reshape(len(images), 2, -1, 2).transpose(0, 2, 1, 3).reshape(len(index), 4)
    curves = pd.DataFrame(values, index=index, columns=["own", "own_right", "others", "others_right"])
    return Faithfulness(curves.reset_index(), images)
