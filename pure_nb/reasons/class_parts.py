"""A class explained: the parts that carry it over its images, those it shares, and images that others carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.blocks import map_in_blocks
from pure_nb.compute.results import FORMAT
from pure_nb.compute.store import Arrays, Store
from pure_nb.errors import StudyError
from pure_nb.figures.render import Picture
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.methods.statistics import percentiles, resampled
from pure_nb.reasons.explaining import LOST, NONE, REST, part_references
from pure_nb.reasons.looking import number_of
from pure_nb.reasons.parts import UNLIKE, Parts
from pure_nb.reasons.tracing import Start, Trace, trace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pure_nb.study import Study

DRAWS = 1000
"""Bootstrap samples of the images of a class."""


@dataclass(frozen=True, eq=False)
class ClassParts:
    """What carries a class over its images: :meth:`pure_nb.classes.Classes.parts`.

    Attributes
    ----------
    study, name, number
        The study, and the output's name and number.
    sample
        int64 ``[images]``: the images of the class.
    value, total
        float64 ``[images]``: the output, and the relevance of all channels of the layer.
    answer
        int64 ``[images]``: the largest output.
    channel, part, relevance
        ``[images, K]``: the channels that carry most of each, the part that each stands for (-1 is none), and its
        relevance.
    """

    study: Study
    name: str
    number: int
    sample: NDArray[np.int64]
    value: NDArray[np.float64]
    total: NDArray[np.float64]
    answer: NDArray[np.int64]
    channel: NDArray[np.int64]
    part: NDArray[np.int64]
    relevance: NDArray[np.float64]
    _parts: Parts

    @cached_property
    def _by_part(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return by_part(self.channel, self.part, self.relevance)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The parts that carry the class, the strongest first, and what is left.

        ``kind``, ``part`` and ``name`` as in :attr:`pure_nb.reasons.explaining.Explanation.table`; ``images``, in how
        many the part is at work; ``share``, what it brings over all the images, of what the output is over all of them
        (so that an image whose output is next to nothing does not weigh more than others), with a 95 % bootstrap
        interval over images, ``low`` and ``high``. Shares add up to 1, or to -1.
        """
        import pandas as pd  # late, see pure_nb._imports

        which, relevance = self._by_part
        none = which[:, 1] == UNLIKE
        columns = [*relevance[:, ~none].T, relevance[:, none].sum(axis=1)]
        columns += [self.total - self.relevance.sum(axis=1), self.value - self.total]
        each = np.stack(columns, axis=1)
        picks = resampled(np.arange(len(each)), draws=DRAWS, seed=self.study.parameters.seed)
        draws = (
            np.stack([each[pick].sum(axis=0) / abs(self.value[pick].sum()) for pick in picks])
            if len(picks)
            else each[:0]
        )
        keys = which[~none].tolist()
        table = pd.DataFrame(
            {
                "kind": [self._parts.kind(channel) for channel, _ in keys] + [NONE, REST, LOST],
                "part": [self._parts.label(*key) for key in keys] + [""] * 3,
                "name": [self._parts.name(*key) for key in keys] + [""] * 3,
                "images": (each != 0).sum(axis=0),
                "share": each.sum(axis=0) / abs(self.value.sum()),
            }
        )
        table[["low", "high"]] = [percentiles(draws[:, number]) for number in range(each.shape[1])]
        order = table["share"].abs().where(table["part"] != "", -1)
        return table.loc[order.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)

    @cached_property
    def images(self) -> pd.DataFrame:
        """The images of the class, those with the most unusual parts first.

        ``sample``, ``output``, ``answer`` (its name), ``unlike`` (the part of all relevance, by size, whose circuits
        are unlike any part), and ``unusual`` of :func:`unusual`, by the relevance of each channel and part.
        """
        import pandas as pd  # late, see pure_nb._imports

        size = np.abs(self.relevance)
        none = np.where(self.part == UNLIKE, size, 0).sum(axis=1)
        names = self.study.classes.output_names(len(self.study.classes.names))
        table = pd.DataFrame(
            {
                "sample": self.sample,
                "output": self.value,
                "answer": [names[number] for number in self.answer],
                "unlike": none / np.maximum(size.sum(axis=1), np.finfo(float).tiny),
                "unusual": unusual(self._by_part[1]),
            }
        )
        return table.sort_values("unusual", ascending=False, kind="stable", ignore_index=True)

    @cached_property
    def shares(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Each channel and part that there is, and its shares of the relevance of each image, by size.

        Returns
        -------
        tuple
            int64 ``[keys, 2]``, part -1 for none; float64 ``[images, keys]``, a row of absolute sum 1; and the same
            shape: the mean share in all the other images.
        """
        keys, relevance = self._by_part
        size = np.abs(relevance).sum(axis=1, keepdims=True)
        share = np.divide(relevance, size, out=np.zeros_like(relevance), where=size > 0)
        return keys, share, (share.sum(axis=0) - share) / max(1, len(share) - 1)

    def label(self, channel: int, part: int) -> str:
        """A part as one writes it, ``"22.B"``; and ``"22.?"`` where the circuit is unlike any."""
        return f"{channel}.?" if part == UNLIKE else self._parts.label(channel, part)

    def part_name(self, channel: int, part: int) -> str:
        """What a part is called; see :attr:`table`."""
        return NONE if part == UNLIKE else self._parts.name(channel, part)

    def shared(self, other: ClassParts) -> pd.DataFrame:
        """The parts that speak for both of two classes, those that carry most of the one they carry less of first.

        Returns
        -------
        DataFrame
            ``part``, ``name``, ``share_1`` of this class and ``share_2`` of the other.
        """
        own, others = (one.table[one.table["part"] != ""].set_index("part") for one in (self, other))
        both = own[["name", "share"]].rename(columns={"share": "share_1"})
        both = both.join(others["share"].rename("share_2"), how="inner")
        both = both[(both["share_1"] > 0) & (both["share_2"] > 0)]
        order = both[["share_1", "share_2"]].min(axis=1).sort_values(ascending=False, kind="stable").index
        return both.loc[order].reset_index()

    def strongest(self, count: int) -> list[dict[str, Any]]:
        """Rows of the table of the strongest parts, with ``channel`` and ``number`` of each."""
        label = {self._parts.label(*key): key for key in self._by_part[0].tolist() if key[1] != UNLIKE}
        rows: list[Any] = self.table[self.table["part"] != ""].head(count).to_dict("records")
        return [row | dict(zip(("channel", "number"), label[row["part"]])) for row in rows]

    def references(self, count: int) -> list[list[Picture]]:
        """Four reference images of each of the strongest parts."""
        return [part_references(self.study, row["channel"], row["number"]) for row in self.strongest(count)]

    def figure(self, count: int = 12) -> Figure:
        """The strongest parts with their intervals, and images of each."""
        from pure_nb.figures.reason_plots import class_figure  # late, as in pure_nb.neuron

        return class_figure(self, count)

    def __repr__(self) -> str:
        return f"<ClassParts of {self.name!r}: {len(self.sample)} images>"


def by_part(
    channel: NDArray[np.int64], part: NDArray[np.int64], relevance: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each channel and part that there is, int64 ``[keys, 2]``, and its relevance in each image, ``[images, keys]``.

    Parameters
    ----------
    channel, part, relevance
        ``[images, K]``: as :class:`ClassParts` has them.
    """
    keys, place = np.unique(np.stack([channel.ravel(), part.ravel()], axis=1), axis=0, return_inverse=True)
    found = np.zeros((len(channel), len(keys)))
    found[np.arange(len(channel)).repeat(channel.shape[1]), place.ravel()] = relevance.ravel()
    return keys, found


def unusual(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """How unlike the others each vector is: 1 minus its cosine with the mean direction of all the others.

    Parameters
    ----------
    vectors
        float64 ``[n, d]``.

    Returns
    -------
    ndarray
        float64 ``[n]`` from 0 to 2, by :func:`scipy.spatial.distance.cosine`'s definition; NaN of a vector of zeros,
        or where there are no others.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    rest = unit.sum(axis=0) - unit
    size = np.linalg.norm(rest, axis=1) * (length[:, 0] > 0)
    return np.where(size > 1e-12, 1 - (unit * rest).sum(axis=1) / np.maximum(size, 1e-12), np.nan)


def class_parts(study: Study, output: str | int, channels: int = 50) -> ClassParts:
    """Explain a class by the parts of a study's neurons, over its labelled images; kept in the study's store.

    Parameters
    ----------
    study
        Whose images have labels.
    output
        Name or number of the class.
    channels
        How many are taken apart in each image, those that carry most.

    Raises
    ------
    StudyError
        If the images have no labels, or none of the class.
    """
    number, name, sample = class_images(study, output)
    parts = Parts(study)
    found = traced_images(parts, study.classes.labelled, sample, Start(number), channels)
    return ClassParts(study, name, number, sample, **found, _parts=parts)


def class_images(study: Study, output: str | int) -> tuple[int, str, NDArray[np.int64]]:
    """Number and name of an output, and the labelled images of its class; raises if there are none."""
    if study.classes.without_labels:
        raise StudyError(f"an output is explained over the images of its class, and {study.classes.without_labels}")
    labels, names = study.classes._labels
    number = number_of(study, output, len(names))
    sample = np.flatnonzero(labels == number)
    if study.classes.labelled is study.images:
        sample = np.setdiff1d(sample, [one.sample for one in study.skipped])
    if not len(sample):
        raise StudyError(f"no image of {study.classes.labelled.name!r} is of the class {names[number]!r}")
    return number, study.classes.output_names(len(names))[number], sample


def traced_images(
    parts: Parts, images: Images, sample: NDArray[np.int64], start: Start, channels: int
) -> dict[str, Any]:
    """What some images' outputs are made of, image by image: out of the study's store, or kept there.

    Parameters
    ----------
    parts
        Of the layer.
    images, sample
        Where the images are, and their numbers.
    start
        What is explained.
    channels
        How many are taken apart in each image.

    Returns
    -------
    dict
        As :class:`ClassParts` has it: ``value, total, answer, channel, part, relevance``.
    """
    study = parts.study
    most = min(channels, study.shapes[0].channels)
    key = traced_key("reasons", [parts], images, sample, start) | {"channels": most}

    def pack(trace: Trace) -> NDArray[np.float64]:
        (layer,) = trace.layers
        heads = np.stack([trace.value, layer.total, trace.answer], axis=1)[:, None]
        return np.concatenate([heads, np.stack([layer.channel, layer.part, layer.relevance], axis=2)], axis=1)

    def compute(blocks: Store | None) -> tuple[Arrays, None]:
        return {"rows": in_blocks(study, images, sample, [parts], start, most, pack, blocks)}, None

    rows = study.results.arrays("reasons", key, compute)[0]["rows"]
    value, total, answer = rows[:, 0].T
    channel, part, relevance = rows[:, 1:].transpose(2, 0, 1)
    whole = {"answer": answer, "channel": channel, "part": part}
    return {"value": value, "total": total, "relevance": relevance} | {
        name: own.astype(np.int64) for name, own in whole.items()
    }


def traced_key(
    step: str, layers: Sequence[Parts], images: Images, sample: NDArray[np.int64], start: Start
) -> dict[str, object]:
    """What traces depend on.

    Parameters
    ----------
    step
        Under which name they are kept.
    layers, images, sample, start
        As for :func:`in_blocks`.
    """
    parts = [one.study.key("virtual") for one in layers]
    key: dict[str, object] = {"step": step, "format": FORMAT["reasons"], "layers": parts, "outputs": list(start)}
    return key | {"explained": images.fingerprint, "sample": sample.tolist()}


# What is traced in which images, and how; what is kept of it, and where.
def in_blocks(
    study: Study,
    images: Images,
    sample: NDArray[np.int64],
    layers: list[Parts],
    start: Start,
    most: int,
    pack: Callable[[Trace], NDArray[np.float64]],
    blocks: Store | None,
) -> NDArray[np.float64]:
    """Trace images in batches, as arrays ``[images, ...]``; a cluster is not used.

    Parameters
    ----------
    study
        Whose network is traced, by its rule.
    images, sample
        Where the images are, and their numbers.
    layers, start, most
        As for :func:`pure_nb.reasons.tracing.trace`.
    pack
        From the trace of b images to an array ``[b, ...]``.
    blocks
        Where finished blocks are kept; None keeps none.
    """
    run = replace(study.run, client=None)
    how: dict[str, Any] = {"layers": layers, "rule": study.parameters.rule, "most": most}

    def compute(block: NDArray[np.int64], done: Callable[[int], Any]) -> NDArray[np.float64]:
        made = []
        for batch in _batches(images, sample[block].tolist(), study):
            made.append(pack(trace(study.model, batch, start, **how)))
            done(len(batch))
        return np.concatenate(made)

    with run.prepared(study.model):
        return map_in_blocks(sample, compute, name="reasons", unit="image", store=blocks, run=run)


def _batches(images: Images, sample: list[int], study: Study) -> Iterator[Any]:
    """Few images at a time, since each is in memory once for each of its channels."""
    run = replace(study.run, client=None, batch_size=min(study.run.batch_size, 16))
    for batch in readable(images, sample, run=run):
        yield batch.images.to(run.local_device)
