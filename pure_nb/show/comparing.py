"""Two networks side by side: which virtual neurons of one are which of the other, and what appeared, vanished or split.

Such as two checkpoints, or two layers. Parts are alike by the reference images that they share, by what an embedder
sees in them, or by their circuits, where these come from the same lower channels; each gets at most one partner, so
that all pairs together are as alike as possible (Hungarian).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.errors import ArgumentError, StudyError, require_choice
from pure_nb.judges.naming import unit
from pure_nb.methods.virtual import part_name
from pure_nb.network.layers import activations

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

By = Literal["images", "embedder", "circuits"]


OTHERWISE = {"vanished": "merged", "appeared": "split"}
"""What a part without a partner is where one of the other study is like it, but has another partner."""


class Match(NamedTuple):
    """Two parts that have to do with each other, by their numbers; None where a part has nobody, as ``what`` says."""

    one: int | None
    other: int | None
    what: str

    @property
    def parts(self) -> tuple[int | None, int | None]:
        """Both."""
        return self.one, self.other


LEAST = 0.2
"""How alike two parts are at least that have to do with each other."""


class PartList(NamedTuple):
    """The virtual neurons of all living channels: channel, which of its parts, and the ranks of the images of each."""

    channel: list[int]
    part: list[int]
    ranks: list[NDArray[np.int64]]

    def told(self, at: int | None, number: int) -> dict[str, object]:
        """One of them, as the table has it."""
        return {} if at is None else {f"channel_{number}": self.channel[at], f"part_{number}": part_name(self.part[at])}


def compare(
    one: Study, other: Study, by: By = "images", *, embedder: Embedder | None = None, least: float = LEAST
) -> pd.DataFrame:
    """Match the virtual neurons of two studies.

    Parameters
    ----------
    one, other
        The studies, the earlier one first.
    by
        What makes two parts alike: ``"images"``, the share of their reference images that they have in common (of the
        same images); ``"embedder"``, the cosine of the mean vectors of their crops, less that of all crops of both;
        ``"circuits"``, the cosine of their mean circuits (of lower layers that put out the same).
    embedder
        Whose vectors.
    least
        How alike two parts are at least that have to do with each other, 0..1.

    Returns
    -------
    DataFrame
        A row for each part, those of ``one`` first: ``channel_1, part_1, channel_2, part_2, alike`` and ``what``:
        ``matched``; ``vanished`` and ``appeared``, with no part of the other that is like it; ``split`` of the other
        study and ``merged`` of the first, with the part that they are most like, whose partner is another one.

    Raises
    ------
    StudyError
        If the studies are not of the same images, their lower layers differ, or one has no parts.
    """
    import pandas as pd  # late, see pure_nb._imports

    require_choice("by", by, By)
    if (by == "embedder") != (embedder is not None):
        raise ArgumentError(f"an embedder goes with by='embedder', got by={by!r} and embedder={embedder}")
    first, second = parts_of(one), parts_of(other)
    alike = similarities(one, other, first, second, by, embedder)
    found = [
        {
            **first.told(match.one, 1),
            **second.told(match.other, 2),
            **({} if match.one is None or match.other is None else {"alike": alike[match.one, match.other]}),
            "what": match.what,
        }
        for match in matches(alike, least)
    ]
    columns = ["channel_1", "part_1", "channel_2", "part_2", "alike", "what"]
    return pd.DataFrame(found, columns=columns).astype({"channel_1": "Int64", "channel_2": "Int64"})


def matches(alike: NDArray[np.float64], least: float) -> list[Match]:
    """Find the partner of each part: those of the first study, then those of the other that were left.

    Parameters
    ----------
    alike
        float64 ``[parts, other parts]``.
    least
        As for :func:`compare`, which says what is what.
    """
    from scipy.optimize import linear_sum_assignment  # late, see pure_nb._imports

    # What is less alike is no pair, and must not keep others from being one.
    rows, columns = linear_sum_assignment(np.where(alike >= least, alike, 0), maximize=True)
    partner = {row: column for row, column in zip(rows.tolist(), columns.tolist()) if alike[row, column] >= least}
    found = []
    for row, own in enumerate(alike):
        column = partner.get(row, int(own.argmax()))
        if own[column] < least:
            found.append(Match(row, None, "vanished"))
        else:
            found.append(Match(row, column, "matched" if row in partner else OTHERWISE["vanished"]))
    for column in sorted({*range(alike.shape[1])} - {*partner.values()}):
        row = int(alike[:, column].argmax())
        near = alike[row, column] >= least
        found.append(Match(row if near else None, column, OTHERWISE["appeared"] if near else "appeared"))
    return found


def similarities(
    one: Study, other: Study, first: PartList, second: PartList, by: By, embedder: Embedder | None = None
) -> NDArray[np.float64]:
    """How alike each part of a study is to each of another's, ``[parts, other parts]``.

    Parameters
    ----------
    one, other, by, embedder
        As for :func:`compare`.
    first, second
        Their parts.
    """
    if by == "images":
        return _shared(one, other, first, second)
    if by == "circuits":
        _require_same_lower(one, other)
    vectors = [None if embedder is None else study.crops.embeddings(embedder) for study in (one, other)]
    means, others = _means(one, first, vectors[0]), _means(other, second, vectors[1])
    if embedder is not None:  # what all crops have in common tells nothing
        sizes = [len(ranks) for ranks in (*first.ranks, *second.ranks)]
        middle = np.average(np.concatenate([means, others]), axis=0, weights=sizes)
        means, others = means - middle, others - middle
    return np.asarray(unit(means) @ unit(others).T)


def parts_of(study: Study) -> PartList:
    """The virtual neurons of a study."""
    found = PartList([], [], [])
    for channel in sorted(study.most_polysemantic(study.references.channels)):
        neuron = study.neuron(channel)
        for part in range(neuron.virtual.k):
            found.channel.append(channel)
            found.part.append(part)
            found.ranks.append(neuron.members(part))
    if not found.channel:
        raise StudyError(
            f"no image activates any channel of {study.parameters.target!r}: there are no parts to compare"
        )
    return found


def _shared(one: Study, other: Study, first: PartList, second: PartList) -> NDArray[np.float64]:
    """The part of two parts' reference images that is of both, for each pair."""
    from scipy import sparse

    if one.images.fingerprint != other.images.fingerprint:
        raise StudyError(
            f"parts share images only if the studies are of the same: {one.images.name!r} and {other.images.name!r} "
            "differ, in their files or in how they are prepared; compare them by embedder"
        )
    tables = []
    for study, parts in ((one, first), (other, second)):
        samples = [study.references.sample[channel][ranks] for channel, ranks in zip(parts.channel, parts.ranks)]
        places = np.repeat(np.arange(len(samples)), [len(own) for own in samples])
        flat = np.concatenate(samples)
        tables.append(sparse.csr_array((np.ones(len(flat)), (places, flat)), shape=(len(samples), len(one.images))))
    both = (tables[0] @ tables[1].T).toarray()
    sizes = [table.sum(axis=1) for table in tables]
    return both / (sizes[0][:, None] + sizes[1][None] - both)


def _means(study: Study, parts: PartList, vectors: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """The mean circuit of each part, or of an embedder's vectors of its crops, each at unit length."""
    own = [
        study.circuits_of(channel)[ranks] if vectors is None else unit(vectors[channel][ranks])
        for channel, ranks in zip(parts.channel, parts.ranks)
    ]
    return np.stack([one.mean(axis=0, dtype=np.float64) for one in own])


def _require_same_lower(one: Study, other: Study) -> None:
    """Raise unless the lower layers of two studies put out the same for an image."""

    def output(study: Study) -> Tensor:
        lower = study.parameters.lower
        with study.run.prepared(study.model) as model, torch.no_grad():
            example = one.images.example[None].to(study.run.local_device)
            return activations(model, example, [lower])[lower].float().cpu()

    first, second = output(one), output(other)
    if first.shape != second.shape or not torch.allclose(first, second, rtol=1e-4, atol=1e-6):
        raise StudyError(
            f"circuits are compared where they come from the same lower channels, and {one.parameters.lower!r} of "
            f"{one.name!r} and {other.parameters.lower!r} of {other.name!r} put out different values; compare by images"
        )
