"""What a study asks of a network, and whether it makes sense."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from pure_nb.circuits import Rule, Seed
from pure_nb.errors import StudyError
from pure_nb.precision import PRECISIONS, Precision
from pure_nb.references import By
from pure_nb.render import Crop

NEAREST = "nearest"
"""As the lower layer: the one right below the target, see :func:`pure_nb.layers.nearest_below`."""


@dataclass(frozen=True)
class Parameters:
    """What is asked of the network.

    Attributes
    ----------
    target, lower
        Names of the layers L, whose channels are studied, and L' below it, whose channels make up the circuits. The
        lower may be ``"nearest"``: the input of the target's last block.
    n
        Reference images of each channel.
    by
        What makes an image a reference: ``"max"`` or ``"mean"`` activation.
    rule
        How relevance is propagated: ``"gradient"`` or ``"lrp"``.
    seed
        Where it starts: ``"activation"``, ``"peak"`` or ``"unit"``; see :func:`pure_nb.circuits.seeded`.
    crop
        How reference images are cropped, for pictures and for embedders: ``"peak"``, by relevance from the maximum
        alone, as the paper; ``"crp"``, by relevance from all positions; or ``"activation"``, by the activation map,
        which is far cheaper. See :func:`pure_nb.render.heatmaps`.
    k
        Virtual neurons of each neuron; 0 chooses, neuron by neuron.
    random
        Seed of all that is random.
    share, mass
        When a channel is relevant in an image to its class: by its share of the positive attribution, or, if ``mass``
        is above 0, among the strongest that carry this part of it together; see :func:`pure_nb.relevance.carried`.
    p
        A channel is relevant to a class if it is so in at least this part of the class's images.
    precision
        What the network computes in during the passes over all images: ``"float32"``, ``"bfloat16"`` or ``"float16"``;
        see :mod:`pure_nb.precision`. Circuits and heatmaps are always in float32.
    """

    target: str
    lower: str
    n: int = 100
    by: By = "max"
    rule: Rule = "gradient"
    seed: Seed = "activation"
    crop: Crop = "peak"
    k: int = 0
    random: int = 0
    share: float = 0.03
    mass: float = 0.0
    p: float = 0.75
    precision: Precision = "float32"


PARAMETERS = tuple(f.name for f in fields(Parameters))


def checked(values: Mapping[str, Any]) -> Parameters:
    """Parameters, with their values checked."""
    unknown = sorted(set(values) - set(PARAMETERS))
    if unknown:
        raise StudyError(f"there is no parameter {unknown[0]!r}; there are {', '.join(PARAMETERS)}")
    if not {"target", "lower"} <= set(values):
        raise StudyError("a study needs the parameters target and lower: the names of two layers")
    found = Parameters(**values)
    for name in ("n", "k", "random"):
        if type(getattr(found, name)) is not int:
            raise StudyError(f"{name} must be a whole number, got {getattr(found, name)!r}")
    allowed: list[tuple[str, tuple[Any, ...]]] = [
        ("by", ("max", "mean")),
        ("rule", ("gradient", "lrp")),
        ("seed", ("activation", "peak", "unit")),
        ("crop", get_args(Crop)),
        ("precision", PRECISIONS),
    ]
    for name, options in allowed:
        if getattr(found, name) not in options:
            raise StudyError(f"{name} must be one of {options}, got {getattr(found, name)!r}")
    for name in ("share", "mass", "p"):
        value = getattr(found, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise StudyError(f"{name} must be a number from 0 to 1, got {value!r}")
    if found.n < 2 or found.k < 0:
        raise StudyError(f"n must be at least 2 and k at least 0, got n={found.n}, k={found.k}")
    return found


def word(name: str) -> str:
    """A study's name, fit for a folder; a name that could lead out of the store is refused."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise StudyError(f"a study's name must be letters, digits, '-', '_' and '.', got {name!r}")
    return name
