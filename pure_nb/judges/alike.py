"""How near parts are to words, to pictures and to each other, by an embedder's vectors of their crops.

Some words, and some pictures, are near every crop, so all crops together are the baseline, as for
:class:`pure_nb.judges.naming.Namer`: what counts is how much nearer something is to a part than to all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import EvaluationError
from pure_nb.judges.naming import unit

AT_ONCE = 512
"""Parts that are compared with all others at once."""

FEWEST, RELIABLE, USUAL = 5, 0.8, 0.05
"""Crops of a part of which it can be said that it is redundant: of fewer, too much is chance. How much of a centre's
squared length must be no chance, as is asked of other measures (Nunnally 1978): an embedder that sees nothing in the
crops finds nothing redundant. And the share of parts whose halves may be less alike than redundant parts are."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of all neurons, by the vectors of their crops; see :meth:`of`.

    Attributes
    ----------
    channel, part, size
        int64 ``[parts]``: the neuron, which of its parts, and how many crops it has.
    centre
        float64 ``[parts, d]``: mean vector of a part's crops, each scaled to length 1, less that of all crops.
    within
        float64 ``[parts]``: how alike two crops of a part are: the mean product of two different ones, less what all
        have in common; NaN where there is one.
    least
        How alike the halves of a reliable part are, every second crop in each, as a share of ``within``: what all such
        parts but :data:`USUAL` reach, and at most 1.
    """

    channel: NDArray[np.int64]
    part: NDArray[np.int64]
    size: NDArray[np.int64]
    centre: NDArray[np.float64]
    within: NDArray[np.float64]
    least: float

    @classmethod
    def of(cls, vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> Parts:
        """Read vectors neuron by neuron.

        Parameters
        ----------
        vectors
            float ``[channels, n, d]``: of the crops, as of :meth:`pure_nb.crops.Crops.embeddings`.
        labels
            int64 ``[channels, n]``: which part of its neuron each belongs to; -1 is none, and counts nowhere.
        """
        rows: list[tuple[int, int, int]] = []
        sums, first, squares = [], [], []
        for channel, own in enumerate(labels):
            crops = unit(vectors[channel][own >= 0])
            for part in range(int(own.max()) + 1):
                members = crops[own[own >= 0] == part]
                rows.append((channel, part, len(members)))
                sums.append(members.sum(axis=0))
                first.append(members[::2].sum(axis=0))
                squares.append((members**2).sum())
        if not rows:
            raise EvaluationError("no image activates a neuron, so there are no parts to compare")
        table = np.array(rows, dtype=np.int64)
        size = table[:, 2]
        total, one = np.array(sums), np.array(first)
        middle = total.sum(axis=0) / size.sum()
        centre = total / size[:, None] - middle
        # Of each crop less the middle: the sum of squares, by those of the crops and of the part.
        own_squares = np.array(squares) - 2 * total @ middle + size * (middle @ middle)
        with np.errstate(invalid="ignore", divide="ignore"):
            within = ((size**2) * (centre**2).sum(axis=1) - own_squares) / (size * (size - 1))
            other = (total - one) / (size // 2)[:, None] - middle
            halves = ((one / ((size + 1) // 2)[:, None] - middle) * other).sum(axis=1) / within
        halves = halves[(size >= 2 * FEWEST) & _reliable(size, centre, within)]
        least = min(1.0, float(np.quantile(halves, USUAL))) if len(halves) else 1.0
        return cls(table[:, 0], table[:, 1], size, centre, within, least)

    def only(self, rows: NDArray[np.bool_]) -> Parts:
        """Some of the parts, against all crops as before."""
        own = self.channel[rows], self.part[rows], self.size[rows]
        return Parts(*own, self.centre[rows], self.within[rows], self.least)

    def scores(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean cosine of each part's crops with vectors ``[q, d]``, beyond that of all crops: ``[q, parts]``."""
        return unit(queries) @ self.centre.T

    def q_values(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of the parts with at least a part's score, the share that is expected to be there by chance: ``[q, parts]``.

        The false-discovery rate by Efron's empirical null: most parts show something else, so their median and the
        median distance from it tell how scores are spread, as nearly normal ones, where a part does not show it.
        """
        from scipy.stats import false_discovery_control, norm  # late, see pure_nb._imports

        scores = self.scores(queries)
        away = scores - np.median(scores, axis=1, keepdims=True)
        usual = np.median(np.abs(away), axis=1, keepdims=True) / norm.ppf(0.75)
        return np.asarray(false_discovery_control(norm.sf(away / np.maximum(usual, 1e-12)), axis=1))

    def nearest(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The parts of other neurons that are the most alike, the nearest first.

        Returns
        -------
        tuple
            int64 ``[parts, count]``, their numbers; and float64, the cosines of the centres. There are fewer columns
            where there are fewer such parts; a cosine of -inf stands for none.
        """
        places, cosines, wanted = [], [], unit(self.centre)
        count = min(count, len(wanted))
        for first in range(0, len(wanted), AT_ONCE):
            own = slice(first, first + AT_ONCE)
            alike = wanted[own] @ wanted.T
            alike[self.channel[own, None] == self.channel] = -np.inf
            best = np.sort(np.argpartition(-alike, count - 1, axis=1)[:, :count], axis=1)  # of two alike the first
            found = np.take_along_axis(alike, best, axis=1)
            order = np.argsort(-found, axis=1, kind="stable")
            places.append(np.take_along_axis(best, order, axis=1))
            cosines.append(np.take_along_axis(found, order, axis=1))
        return np.concatenate(places), np.concatenate(cosines)

    def redundant(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether two parts show the same: they are as alike as the two halves of one part are.

        The mean product of a crop of one and a crop of the other is compared with that of two crops of the same part,
        the mean of both parts. Of the halves of a part this is a share of about 1; two parts that are redundant reach
        :attr:`least`, as nearly all halves do.

        Parameters
        ----------
        one, other
            int64, numbers of parts. None is redundant that is not reliable.
        """
        across = (self.centre[one] * self.centre[other]).sum(axis=-1)
        within = (self.within[one] + self.within[other]) / 2
        reliable = _reliable(self.size, self.centre, self.within)
        return reliable[one] & reliable[other] & (across >= self.least * within)


def _reliable(size: NDArray[np.int64], centre: NDArray[np.float64], within: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which parts are known well enough to be compared: see :data:`RELIABLE`."""
    return (size >= FEWEST) & (within >= RELIABLE * (centre**2).sum(axis=1)) & (within > 0)
