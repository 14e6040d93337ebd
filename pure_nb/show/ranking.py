"""Which neurons are the most polysemantic, found out in the background while somebody looks at others."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pure_nb._keeping import hand_over

if TYPE_CHECKING:
    from pure_nb.study import Study

STEPS = ("circuits", "virtual", "neurons")
"""What the ranking takes beyond the references."""


def is_known(study: Study) -> bool:
    """Whether the ranking is there, or takes no time."""
    return study._is_there("virtual")


def living(study: Study) -> list[int]:
    """The neurons that some image activates."""
    return [int(channel) for channel in np.flatnonzero(study.references.alive)]


def ordered(study: Study, *, wait: bool = False) -> list[int]:
    """The living neurons, the most polysemantic first; the strongest first if that is not known yet.

    Strong is a neuron that its references activate much, on average.

    Parameters
    ----------
    study
        Any study.
    wait
        Find out if it is not known.
    """
    if wait or is_known(study):
        return study.most_polysemantic(study.references.channels)
    strength = study.references.score.mean(axis=1)
    return [int(channel) for channel in np.argsort(-strength, kind="stable") if study.references.alive[channel]]


def ranking(study: Study, own: Study) -> Iterator[str]:
    """Find out what the ranking takes, step by step; what is finished is kept where somebody stops it.

    Parameters
    ----------
    study
        Its references are known; it has at hand what was found as soon as that is finished.
    own
        The same with a network of its own, which runs: see :func:`apart`.

    Yields
    ------
    str
        Each step, before it is taken.
    """
    for step in STEPS:
        yield step
        # Not by its name: up to Python 3.11 a cached property has one lock for all studies, and whoever else wants
        # one would wait.
        found = getattr(type(own), step).func(own)
        own.__dict__[step] = study.__dict__[step] = found


def apart(study: Study) -> Study:
    """The same study with a copy of its network, since whoever runs one puts hooks into it.

    It has at hand what the study has, and shows no bars.
    """
    own = replace(study, model=deepcopy(study.model), run=replace(study.run, progress=False))
    vars(own).update({name: vars(study)[name] for name in ("_weights", "_nearest") if name in vars(study)})
    hand_over(study, own)
    return own
