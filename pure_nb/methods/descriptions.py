"""Descriptions of reference images by vectors, by which neurons are split: circuits, activations, embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import StudyWarning
from pure_nb.methods._shapes import Float
from pure_nb.methods.virtual import Vectors, kmeans

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

OWN, PURE, LRP = "circuits", "PURE", "PURE LRP"
"""Circuits: by the study's own recipe, and by either rule."""

RANDOM = "random"
"""Labels drawn at random, which anything has to beat."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Description:
    """What describes the reference images of a study's neurons by vectors.

    Attributes
    ----------
    name
        In tables and figures.
    vectors
        Makes those of all neurons: float ``[channels, n, d]``. Studies keep what they made.
    alone
        Makes those of one channel, float ``[n, d]``, where that is quicker.
    """

    name: str
    vectors: Callable[[], Vectors]
    alone: Callable[[int], Vectors] | None = None

    def of(self, channel: int) -> Float[Vectors, "n d"]:
        """The vectors of one channel's references: float ``[n, d]``."""
        return self.alone(channel) if self.alone else self.vectors()[channel]


def descriptions(
    study: Study,
    embedders: Sequence[Embedder] = (),
    *,
    circuits: Callable[..., Vectors] | None = None,
    activations: Callable[[], Mapping[str, Vectors]] | None = None,
) -> dict[str, Description]:
    """All that describes a study's reference images, by name; nothing is computed yet.

    Parameters
    ----------
    study
        Any study.
    embedders
        Each describes by its vectors of the crops.
    circuits, activations
        What makes circuits by other parameters and all activations (see
        :func:`pure_nb.judges.truth.activation_vectors`) instead of the study: tasks of the benchmark hide their truth.
    """

    def recipe(name: str, **changes: Any) -> Description:
        if circuits is not None:
            return Description(name, lambda: circuits(**changes))
        other = study.replace(**changes) if changes else study
        return Description(name, lambda: other.circuits, other.circuits_of)

    def simple(name: str) -> Description:
        return Description(name, lambda: (activations() if activations else study.activation_vectors)[name])

    def embedded(embedder: Embedder) -> Description:
        return Description(embedder.name, lambda: study.crops.embeddings(embedder))

    found = [recipe(OWN), recipe(PURE, rule="gradient"), recipe(LRP, rule="lrp"), simple("activation")]
    found += [simple("activation at maximum")] if study.references.grid else []  # without a grid the same
    found += [simple("lower activation"), simple("lower activation at maximum"), *map(embedded, embedders)]
    return {one.name: one for one in found}


def fitting(found: Mapping[str, T], study: Study) -> dict[str, T]:
    """What of some things by name fits a study: without LRP, and with a warning, where its rules do not."""
    why = study.without_lrp if LRP in found else ""
    if why:
        warnings.warn(f"{LRP} is left out: {why}", StudyWarning, stacklevel=3)
    return {name: one for name, one in found.items() if name != LRP or not why}


def parts_by(
    vectors: Mapping[str, Vectors], k: int, n: int, *, generator: np.random.Generator, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """One neuron's reference images in parts, by each description with the same k-means, and at random.

    Parameters
    ----------
    vectors
        float ``[n, d]`` by name.
    k, n
        Number of parts, and of images.
    generator
        Draws the labels called :data:`RANDOM`.
    seed
        Of k-means.

    Returns
    -------
    dict
        int64 ``[n]`` by name: the part of each image, from 0.
    """
    parts = {name: kmeans(own, k, seed=seed) for name, own in vectors.items()}
    return parts | {RANDOM: generator.integers(0, k, n)}
