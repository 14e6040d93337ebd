"""Who owns a source: which inputs of a channel belong to which concept.

A channel of a convolution or linear layer is a sum over *sources*, the input channels of the layer. Each concept, be it
a class (Hesse et al. 2025, arXiv 2504.12939) or a virtual neuron of PURE, has an average relevance vector (ARV) that
says how much each source contributes to the channel on the concept's images. A source that clearly belongs to one
concept is owned by it, the others are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pure_nb.errors import ArgumentError, require_choice
from pure_nb.methods._shapes import Float, Int

RHOS = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Thresholds that the paper tries: 0.05, 0.10 ... 1.00."""

SHARED = -1
"""The owner of a source that belongs to no concept alone."""

Ownership = Literal["symmetric", "published"]


def assign_sources(
    arvs: ArrayLike, rho: float, ownership: Ownership = "symmetric"
) -> Int[NDArray[np.int64], " sources"]:
    """Which concept each source belongs to (Hesse et al., their rule for rho where k = 2).

    Source i belongs to concept v if ``rho * ARV_v,i > max over the other concepts w of ARV_w,i``.

    Parameters
    ----------
    arvs
        float ``[k, sources]``: the average relevance vector of each concept, any unit.
    rho
        Threshold in (0, 1]. The smaller, the more sources are shared by the symmetric rule.
    ownership
        With ``"symmetric"`` negative entries count as 0: relevance is taken as evidence *for* a concept, and the order
        of the concepts does not matter. ``"published"`` compares as the paper writes it, which turns the comparison
        around where all entries are negative: with rho below 1 such a source is never shared, and of several concepts
        that pass, the first gets it.

    Returns
    -------
    ndarray
        int64 ``[sources]``: a concept, 0 to k - 1, or -1 for a shared source. Ties are shared, but for negative ones by
        the published rule.

    Raises
    ------
    ArgumentError
        If there are fewer than two concepts, an entry is NaN or infinite, rho is out of range, or there is no such
        rule.
    """
    evidence = np.asarray(arvs, dtype=np.float64)
    if evidence.ndim != 2:
        raise ArgumentError(f"expected average relevance vectors of shape [k, sources], got {list(evidence.shape)}")
    if len(evidence) < 2:
        raise ArgumentError(
            f"a channel is split between at least two concepts, got {len(evidence)} average relevance vector"
        )
    if not np.isfinite(evidence).all():
        concept, source = np.argwhere(~np.isfinite(evidence))[0]
        raise ArgumentError(
            f"the average relevance vector of concept {concept} is {evidence[concept, source]} at source {source}; "
            "leave out the images that cause it"
        )
    if not 0 < rho <= 1:
        raise ArgumentError(f"rho must be above 0 and at most 1, got {rho}")
    require_choice("ownership", ownership, Ownership)
    if ownership == "symmetric":
        evidence = evidence.clip(min=0)
    best, largest = np.sort(evidence, axis=0)[:-3:-1].copy(), evidence.argmax(axis=0)
    rest = np.where(np.arange(len(evidence))[:, None] == largest, best[1], best[0])  # the largest of the others
    passes = rho * evidence > rest
    return np.where(passes.any(axis=0), passes.argmax(axis=0), SHARED).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Assignment:
    """The sources of a channel, assigned to concepts at several thresholds.

    Attributes
    ----------
    layer, channel
        A channel of a ``Conv2d`` or ``Linear``.
    arvs
        float64 ``[k, sources]``: the average relevance vector of each concept.
    rhos, ownership
        Thresholds, and the rule; see :func:`assign_sources`.
    """

    layer: str
    channel: int
    arvs: Float[NDArray[np.float64], "k sources"]
    rhos: Sequence[float] = RHOS
    ownership: Ownership = "symmetric"

    def __post_init__(self) -> None:
        object.__setattr__(self, "arvs", np.asarray(self.arvs, dtype=np.float64))  # lists, too

    @property
    def k(self) -> int:
        """Number of concepts."""
        return len(self.arvs)

    def owner(self, rho: float) -> Int[NDArray[np.int64], " sources"]:
        """int64 ``[sources]``: see :func:`assign_sources`."""
        return assign_sources(self.arvs, rho, self.ownership)
