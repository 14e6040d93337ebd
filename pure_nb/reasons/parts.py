"""Which part of a channel is at work in an image: the one whose mean circuit is nearest, if it is near enough."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import StudyError
from pure_nb.methods.virtual import WHOLE, VirtualNeurons, nearest, part_name

if TYPE_CHECKING:
    from pure_nb.notes import Note, Place
    from pure_nb.study import Study

LIKE = 0.95
"""A circuit is like a part if it is no farther from its centroid than this share of the part's own references are.

In the glyph world it was looked at what stands under a channel's maximum: where the circuit is like a part, that is the
part's most frequent object in 72 % of what is relevant, between this share and the farthest reference in 21 %, and
beyond that in 7 %.
"""

SLACK = 1e-6
"""What is added to that: the last digits of a circuit depend on the images that it is computed with."""

UNLIKE = -1
"""Stands for no part: the circuit is unlike any, or no image of the study activates the channel."""


class Fit(NamedTuple):
    """The parts that circuits of one channel belong to.

    Attributes
    ----------
    part
        int64 ``[m]``: number of the part, or :data:`UNLIKE`.
    distance
        float64 ``[m]``: Euclidean distance of each circuit to the nearest centroid; NaN where there is none.
    limit
        float64 ``[m]``: how far it may be, see :data:`LIKE`.
    """

    part: NDArray[np.int64]
    distance: NDArray[np.float64]
    limit: NDArray[np.float64]


def reach(vectors: NDArray[np.float32], parts: VirtualNeurons) -> NDArray[np.float64]:
    """How far a circuit may be from each centroid to be like that part: float64 ``[k]``, NaN of a part without images.

    Parameters
    ----------
    vectors
        float32 ``[n, d]``: the circuits of the channel's references.
    parts
        Its virtual neurons.
    """
    own = [vectors[parts.labels == part] - parts.centroids[part] for part in range(parts.k)]
    return np.array([np.quantile(np.linalg.norm(one, axis=1), LIKE) if len(one) else np.nan for one in own])


def fit(vectors: NDArray[np.float32], parts: VirtualNeurons, limits: NDArray[np.float64]) -> Fit:
    """The parts of a channel that circuits in new images belong to; by circuits alone, also of several descriptions.

    Parameters
    ----------
    vectors
        float32 ``[m, d]``: the circuits, normalised; zeros belong to no part.
    parts, limits
        The channel's virtual neurons, and how far each reaches by :func:`reach`.
    """
    own = np.where(vectors.any(axis=1), nearest(vectors, parts.centroids), UNLIKE)
    distance = np.linalg.norm(vectors - parts.centroids[own], axis=1).astype(np.float64)
    limit = limits[own]
    distance[own < 0], limit[own < 0] = np.nan, np.nan
    return Fit(np.where(distance <= limit + SLACK, own, UNLIKE), distance, limit)


class Parts:
    """The parts of a study's target layer, each channel's found when it is first needed."""

    def __init__(self, study: Study) -> None:
        if not study.references.alive.any():
            raise StudyError(
                f"no image activates any channel of {study.parameters.target!r}, so it has no parts to explain by; "
                "choose another layer, or other images"
            )
        self.study = study
        self._of = lru_cache(maxsize=None)(self._found)
        self._neuron = lru_cache(maxsize=None)(study.neuron)

    def _found(self, channel: int) -> tuple[VirtualNeurons, NDArray[np.float64]]:
        vectors = np.asarray(self.study.circuits_of(channel))
        parts = self.study.virtual_of(channel, vectors)
        return parts, reach(vectors, parts)

    def of(self, channel: int) -> tuple[VirtualNeurons, NDArray[np.float64]]:
        """The virtual neurons of a channel, and how far each reaches: :func:`reach`."""
        return self._of(channel)

    def fit(self, channel: int, vectors: NDArray[np.float32], *, like: bool = True) -> Fit:
        """The parts that circuits of a channel, float32 ``[m, d]``, belong to; none of a dead channel.

        Those that are ``like`` them, or just the nearest, as in :class:`pure_nb.methods.virtual_layer.VirtualLayer`.
        """
        parts, limits = self._of(channel)
        return fit(vectors, parts, limits if like else np.where(np.isfinite(limits), np.inf, np.nan))

    def count(self, channel: int) -> int:
        """How many parts a channel has; one if it is left whole."""
        return self._of(channel)[0].k

    def kind(self, channel: int) -> str:
        """What its rows are of: parts, or the channel where it is left whole."""
        return "part" if self.count(channel) > 1 else "channel"

    def label(self, channel: int, part: int) -> str:
        """A part as one writes it: ``"22.B"``, or ``"22"`` where the neuron is left whole."""
        return f"{channel}.{part_name(part)}" if self.count(channel) > 1 else f"{channel}"

    def name(self, channel: int, part: int) -> str:
        """What a part is called by hand, or else what its references show; "" if neither is known."""
        letter = part_name(part) if self.count(channel) > 1 else WHOLE
        noted = self._noted.get((channel, letter))
        return (noted.name if noted else "") or self._neuron(channel).meanings(part)

    @cached_property
    def _noted(self) -> dict[Place, Note]:
        return self.study.notes.fitting()
