"""The field's scores as they are submitted to an edition of the benchmark: functions of a task.

    pure-nb bench --edition 2027.1 --add benchmarks/edition_scores.py:clarity --out mine

Each asks mini-DINO how alike the pictures are; more of it means more meanings. ``pure-nb trial`` has other judges, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pure_nb import load_embedder
from pure_nb.benchmark.tasks import Task
from pure_nb.methods.measures import clarity as clarity_of
from pure_nb.methods.measures import monosemanticity as monosemanticity_of
from pure_nb.methods.measures import polysemanticity as polysemanticity_of


def _vectors(task: Task) -> NDArray[np.float32]:
    """The judge's vectors of all reference images, cropped to where the neuron is active: ``[channels, n, d]``."""
    return task.study.replace(crop="activation").crops.embeddings(load_embedder("mini-dino"))


def clarity(task: Task) -> NDArray[np.float64]:
    """How alike the pictures are, with a minus sign."""
    return -clarity_of(_vectors(task))


def monosemanticity(task: Task) -> NDArray[np.float64]:
    """The same, weighted by the activations."""
    heights = task.study.references.score
    return -np.array([monosemanticity_of(*unit) for unit in zip(heights, _vectors(task))])


def polysemanticity(task: Task) -> NDArray[np.float64]:
    """How far apart the two halves of the pictures are."""
    return np.array([polysemanticity_of(own) for own in _vectors(task)])
