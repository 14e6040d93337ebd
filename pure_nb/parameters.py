"""What a study asks of a network, how that is run, and whether it makes sense."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from pure_nb.errors import StudyError

if TYPE_CHECKING:
    from torch import nn

    from pure_nb.compute.cluster import Cluster

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
        Where it starts: ``"activation"``, ``"peak"`` or ``"unit"``; see :func:`pure_nb.network.cut.seeded`.
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
    allow_nondeterministic
        Study layers that depend on chance or on which images are in a batch, such as below a dropout that is left on.
        Results are then of one run and one batch size; a warning is kept with them.
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
    allow_nondeterministic: bool = False

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
        if not isinstance(self.allow_nondeterministic, bool):
            raise StudyError(f"allow_nondeterministic must be true or false, got {self.allow_nondeterministic!r}")
        for name in ("share", "mass", "p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise StudyError(f"{name} must be a number from 0 to 1, got {value!r}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one study


@dataclass(frozen=True, kw_only=True)
class Run:
    """How it is run: of none of this do results depend, but for the last digits of their numbers.

    Attributes
    ----------
    batch_size
        Images that go through the network at once.
    device
        Where it runs: ``"cpu"``, ``"cuda"``, ``"mps"``; on a cluster, of each worker.
    workers
        Processes that load images; 0 loads in a thread of this one.
    skip_unreadable
        Leave out images that can't be read, instead of stopping at the first.
    channels_last
        Lay the network's weights out in memory as many GPUs like them, while it runs.
    progress
        Show how far long work is.
    client
        A cluster to run on, from :func:`pure_nb.compute.cluster.connect`; None runs here. It is not pickled.

    Raises
    ------
    StudyError
        If one makes no sense, or the device can't be used.
    """

    batch_size: int = 32
    device: str = "cpu"
    workers: int = 0
    skip_unreadable: bool = False
    channels_last: bool = False
    progress: bool = True
    client: Cluster | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name in ("skip_unreadable", "channels_last", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise StudyError(f"{name} must be true or false, got {getattr(self, name)!r}")
        object.__setattr__(self, "device", str(self.device))  # a torch.device, too
        if self.client is not None and not hasattr(self.client, "swept"):
            raise StudyError(
                f"client must come from pure_nb.compute.cluster.connect, got a {type(self.client).__name__}; "
                "connect also takes the address of a scheduler that runs already"
            )
        try:
            if self.client is not None:
                self.client.run(_require_device, self.device)  # on each worker; this process need not have it
            elif self.device != "cpu":
                _require_device(self.device)
        except (RuntimeError, AssertionError) as problem:  # torch without CUDA asserts
            raise StudyError(
                f"the device {self.device!r} can't be used here: {str(problem).splitlines()[0]}"
            ) from problem

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "client": None}  # which belongs to the process that made it

    @property
    def local_device(self) -> str:
        """Where this process itself runs networks: the device, or the CPU where that is one of a cluster's workers."""
        return self.device if self.client is None else "cpu"

    def prepared(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Within it, a network is on the local device, laid out as asked for and at rest; all is put back afterwards.

        In evaluation mode and with frozen weights, that is: see :func:`pure_nb._resting.resting`.
        """
        import torch  # here, as in _require_device

        from pure_nb._resting import resting

        return resting(model, self.local_device, torch.channels_last if self.channels_last else None)


def _require_device(device: str) -> None:
    """Raise torch's own error if this process can't use a device, or if it computes nothing, as ``meta``."""
    import torch  # here, so that parameters are known at once

    torch.zeros(1, device=device).item()


OPTIONS: dict[str, tuple[str, ...]] = {
    "by": get_args(By),
    "rule": get_args(Rule),
    "seed": get_args(Seed),
    "crop": get_args(Crop),
    "precision": get_args(Precision),
}
"""What some parameters may be."""

PARAMETERS = tuple(f.name for f in fields(Parameters))
RUN = tuple(f.name for f in fields(Run))


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
