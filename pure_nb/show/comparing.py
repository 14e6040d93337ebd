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


class _Parts(NamedTuple):
    """The virtual neurons of all living channels: channel, letter, and the ranks of the images of each."""

    channel: list[int]
    part: list[str]
    ranks: list[NDArray[np.int64]]

    def told(self, at: int, number: int) -> dict[str, object]:
        """One of them, as the table has it."""
        return {f"channel_{number}": self.channel[at], f"part_{number}": self.part[at]}


def compare(
    one: Study, other: Study, by: By = "images", *, embedder: Embedder | None = None, least: float = 0.2
) -> pd.DataFrame:
    """Match the virtual neurons of two studies.

    Parameters
    ----------
    one, other
        The studies, the earlier one first.
    by
        What makes two parts alike: ``"images"``, the share of their reference images that they have in common (of the
        same images); ``"embedder"``, the cosine of the mean vectors of their crops; ``"circuits"``, the cosine of their
        mean circuits (of lower layers that put out the same).
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
    from scipy.optimize import linear_sum_assignment

    require_choice("by", by, By)
    if (by == "embedder") != (embedder is not None):
        raise ArgumentError(f"an embedder goes with by='embedder', got by={by!r} and embedder={embedder}")
    first, second = _parts(one), _parts(other)
    if by == "images":
        alike = _shared(one, other, first, second)
    else:
        if by == "circuits":
            _require_same_lower(one, other)
        means = [_means(study, parts, embedder) for study, parts in ((one, first), (other, second))]
        alike = means[0] @ means[1].T
    rows, columns = linear_sum_assignment(alike, maximize=True)
    partner = {row: column for row, column in zip(rows.tolist(), columns.tolist()) if alike[row, column] >= least}
    pairs = [(row, partner.get(row, int(alike[row].argmax())), "vanished") for row in range(len(alike))]
    left = sorted({*range(alike.shape[1])} - {*partner.values()})
    pairs += [(int(alike[:, column].argmax()), column, "appeared") for column in left]
    found = []
    for row, column, alone in pairs:
        left_out = alike[row, column] < least
        what = alone if left_out else "matched" if partner.get(row) == column else OTHERWISE[alone]
        found.append(
            {
                **({} if left_out and alone == "appeared" else first.told(row, 1)),
                **({} if left_out and alone == "vanished" else second.told(column, 2)),
                **({} if left_out else {"alike": alike[row, column]}),
                "what": what,
            }
        )
    columns = ["channel_1", "part_1", "channel_2", "part_2", "alike", "what"]
    return pd.DataFrame(found, columns=columns).astype({"channel_1": "Int64", "channel_2": "Int64"})


def _parts(study: Study) -> _Parts:
    """The virtual neurons of a study."""
    found = _Parts([], [], [])
    for channel in sorted(study.most_polysemantic(study.references.channels)):
        neuron = study.neuron(channel)
        for part in range(neuron.virtual.k):
            found.channel.append(channel)
            found.part.append(part_name(part))
            found.ranks.append(neuron.members(part))
    if not found.channel:
        raise StudyError(
            f"no image activates any channel of {study.parameters.target!r}: there are no parts to compare"
        )
    return found


def _shared(one: Study, other: Study, first: _Parts, second: _Parts) -> NDArray[np.float64]:
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


def _means(study: Study, parts: _Parts, embedder: Embedder | None) -> NDArray[np.float64]:
    """The mean circuit of each part, or the mean vector of its crops, at unit length."""
    vectors = None if embedder is None else study.crops.embeddings(embedder)
    own = [
        (study.circuits_of(channel) if vectors is None else vectors[channel])[ranks].mean(axis=0, dtype=np.float64)
        for channel, ranks in zip(parts.channel, parts.ranks)
    ]
    return unit(np.stack(own))


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
