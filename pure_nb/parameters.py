"""What a study asks of a network, and whether it makes sense."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

from pure_nb.errors import StudyError

Rule = Literal["gradient", "lrp"]
Seed = Literal["activation", "peak", "unit"]
By = Literal["max", "mean"]
Crop = Literal["peak", "crp", "activation"]
Precision = Literal["float32", "bfloat16", "float16"]

NEAREST = "nearest"
"""As the lower layer: the one right below the target, see :func:`pure_nb.network.layers.nearest_below`."""


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
        Where it starts: ``"activation"``, ``"peak"`` or ``"unit"``; see :func:`pure_nb.methods.circuits.seeded`.
    crop
        How reference images are cropped, for pictures and for embedders: ``"peak"``, by relevance from the maximum
        alone, as the paper; ``"crp"``, by relevance from all positions; or ``"activation"``, by the activation map,
        which is far cheaper. See :func:`pure_nb.figures.render.heatmaps`.
    k
        Virtual neurons of each neuron; 0 chooses, neuron by neuron.
    random
        Seed of all that is random.
    share, mass
        When a channel is relevant in an image to its class: by its share of the positive attribution, or, if ``mass``
        is above 0, among the strongest that carry this part of it together; see
        :func:`pure_nb.methods.relevance.carried`.
    p
        A channel is relevant to a class if it is so in at least this part of the class's images.
    precision
        What the network computes in during the passes over all images: ``"float32"``, ``"bfloat16"`` or ``"float16"``;
        see :mod:`pure_nb.compute.precision`. Circuits and heatmaps are always in float32.
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

    def __post_init__(self) -> None:
        for name in ("target", "lower"):
            if not isinstance(getattr(self, name), str):
                raise StudyError(f"{name} must be the name of a layer, got {getattr(self, name)!r}")
        for name, least in (("n", 2), ("k", 0), ("random", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        if self.random >= 2**32:  # more than NumPy takes
            raise StudyError(f"random must be below 2**32, got {self.random}")
        for name, options in OPTIONS.items():
            if getattr(self, name) not in options:
                raise StudyError(f"{name} must be one of {', '.join(options)}, got {getattr(self, name)!r}")
        for name in ("share", "mass", "p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise StudyError(f"{name} must be a number from 0 to 1, got {value!r}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one study


OPTIONS: dict[str, tuple[str, ...]] = {
    "by": get_args(By),
    "rule": get_args(Rule),
    "seed": get_args(Seed),
    "crop": get_args(Crop),
    "precision": get_args(Precision),
}
"""What some parameters may be."""

PARAMETERS = tuple(f.name for f in fields(Parameters))


def checked(values: Mapping[str, Any]) -> Parameters:
    """Parameters from their names and values, as a file or a call has them."""
    unknown = sorted(set(values) - set(PARAMETERS))
    if unknown:
        raise StudyError(f"there is no parameter {unknown[0]!r}; there are {', '.join(PARAMETERS)}")
    if not {"target", "lower"} <= set(values):
        raise StudyError("a study needs the parameters target and lower: the names of two layers")
    return Parameters(**values)


def whole(name: str, value: Any, least: int) -> int:
    """A whole number, of Python or NumPy, that is large enough."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise StudyError(f"{name} must be a whole number and at least {least}, got {value!r}")
    return int(value)


def file_word(name: object) -> str:
    """Any name as part of a file's: what a system or an address could take otherwise becomes ``_``, the end is cut."""
    return re.sub(r"[^\w.-]", "_", str(name), flags=re.ASCII)[:100]


def word(name: str) -> str:
    """A study's name, fit for a folder; a name that could lead out of the store is refused."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise StudyError(f"a study's name must be letters, digits, '-', '_' and '.', got {name!r}")
    return name
