"""What a study asks of a network, how that is run, and whether it makes sense.

Each parameter is declared once, for Python, for the files of studies and for the commands: what a command says of it is
the first paragraph of what the docstring says. Its metadata are ``least``, the smallest of whole numbers; ``flag``, the
option of commands, if it is not called as the parameter, empty if there is none; and ``of``, the results that depend
on it, if not all do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_origin, get_type_hints

from pure_nb.errors import StudyError, require_choice

if TYPE_CHECKING:
    from torch import nn

    from pure_nb.compute.cluster import Cluster

Rule = Literal["gradient", "lrp"]
Start = Literal["activation", "peak", "unit"]
RankedBy = Literal["max", "mean"]
Chosen = Literal["top", "quantiles"]
DescribedBy = Literal["circuits", "combined"]
Crop = Literal["peak", "crp", "activation"]
Precision = Literal["float32", "bfloat16", "float16"]

AUTO = "auto"
"""As the size of batches: whatever suits the network and the machine, see ``pure_nb._batches``."""

if TYPE_CHECKING:
    BatchSize = Any  # a number for all that computes, since a study looks for one as soon as it is made
else:
    BatchSize = int | Literal["auto"]

NEAREST = "nearest"
"""As the lower layer: the one right below the target, see :func:`pure_nb.network.layers.nearest_below`."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is asked of the network.

    Attributes
    ----------
    target
        The layer L, whose channels are studied.
    lower
        The layer L' below, whose channels make up the circuits: a name, input:LAYER, or nearest.

        The nearest is the input of the target's last block.
    n_references
        Reference images of each neuron.
    ranked_by
        What makes an image a reference: its ``"max"`` or ``"mean"`` activation.
    references
        Which images by that: the ``"top"``, or ``"quantiles"``, evenly from the strongest to the weakest.

        See :class:`pure_nb.methods.quantiles.QuantileReferences`.
    rule
        How relevance is propagated: ``"gradient"`` or ``"lrp"``.
    start
        Where relevance starts: ``"activation"`` (everywhere), ``"peak"``, or ``"unit"``.

        See :func:`pure_nb.network.cut.initial_relevance`.
    described_by
        What parts are clusters of: ``"circuits"`` (the paper's) or, ``"combined"``, these and activations.

        Each weighed by how stable its clusters are; see :mod:`pure_nb.methods.combined`.
    crop
        What crops follow: ``"peak"`` (relevance from the maximum), ``"crp"`` (from all), ``"activation"`` (cheap).

        For pictures and for embedders. The first is the paper's; see :func:`pure_nb.figures.render.heatmaps`.
    crop_lower
        Where relevance for crops stops, to be scaled up: a layer with a grid; the pixels if empty.

        Such as the first stage of a ResNet: a fifth of the time is saved, and four fifths of a box stay the same.
    n_clusters
        Virtual neurons of each neuron; 0 chooses, neuron by neuron.
    seed
        Seed of all that is random.
    min_share
        Share of the attribution that makes a channel relevant.

        In an image to its class, of the positive attribution.
    cumulative_share
        Instead: the strongest channels that carry this part together.

        With 0, ``min_share`` holds; see :func:`pure_nb.methods.relevance.relevant_channels`.
    min_frequency
        Part of a class's images in which a relevant channel is so.
    precision
        What the network computes in: ``"float32"``, ``"bfloat16"``, ``"float16"``.

        During the passes over all images, see :mod:`pure_nb.compute.precision`; circuits and heatmaps are always in
        float32.
    allow_nondeterministic
        Go on though the layers depend on chance or on the batch.

        Such as below a dropout that is left on. Results are then of one run and one batch size; a warning is kept with
        them.

    Examples
    --------
    >>> Parameters(target="layer4", lower="layer3", n_references=50).n_references
    50
    """

    target: str
    lower: str
    n_references: int = field(default=100, metadata={"flag": "--n", "least": 2, "of": "neurons"})
    ranked_by: RankedBy = field(default="max", metadata={"of": "neurons"})
    references: Chosen = field(default="top", metadata={"of": "neurons"})
    rule: Rule = field(default="gradient", metadata={"of": "neurons"})
    start: Start = field(default="activation", metadata={"flag": "--start", "of": "neurons"})
    described_by: DescribedBy = field(default="circuits", metadata={"of": "neurons"})
    crop: Crop = field(default="peak", metadata={"of": "crops"})
    crop_lower: str = field(default="", metadata={"of": "crops"})
    n_clusters: int = field(default=0, metadata={"flag": "--k", "least": 0, "of": "neurons"})
    seed: int = field(default=0, metadata={"flag": "--seed", "least": 0, "of": "neurons"})
    min_share: float = field(default=0.03, metadata={"of": "classes"})
    cumulative_share: float = field(default=0.0, metadata={"of": "classes"})
    min_frequency: float = field(default=0.75, metadata={"of": "classes"})
    precision: Precision = "float32"
    allow_nondeterministic: bool = False

    def __post_init__(self) -> None:
        _check(self)
        if self.seed >= 2**32:  # more than NumPy takes
            raise StudyError(f"seed must be below 2**32, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How it is run: of none of this do results depend, but for the last digits of their numbers.

    Attributes
    ----------
    batch_size
        Images in a batch; auto measures what suits.

        On a GPU the largest power of two that fits, on a CPU the fastest. It is for studies, which look for it when
        they are made.
    device
        Where the network runs: cpu, cuda, mps.

        On a cluster, of each worker.
    workers
        Processes that load images.

        With 0, a thread of this one does.
    skip_unreadable
        Leave out images that can't be read.

        Instead of stopping at the first.
    channels_last
        Lay the weights out in memory as many GPUs like them.

        While it runs.
    progress
        Show how far long work is.
    client
        Run on processes: local, local:4, slurm:8, or the address of a Dask scheduler.

        Here it is a cluster from :func:`pure_nb.compute.cluster.connect`, which takes these words; None runs here. It
        is not pickled.

    Raises
    ------
    StudyError
        If one makes no sense, or the device can't be used.

    Examples
    --------
    >>> Run(batch_size=64).device
    'cpu'
    """

    batch_size: BatchSize = field(default=32, metadata={"least": 1})
    device: str = "cpu"
    workers: int = field(default=0, metadata={"least": 0})
    skip_unreadable: bool = False
    channels_last: bool = False
    progress: bool = field(default=True, metadata={"flag": ""})
    client: Cluster | None = field(default=None, metadata={"flag": "--cluster"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", str(self.device))  # a torch.device, too
        _check(self)
        if self.client is not None and not hasattr(self.client, "sweep_on_cluster"):
            raise StudyError(
                f"client must come from pure_nb.compute.cluster.connect, got a {type(self.client).__name__}; "
                "connect also takes the address of a scheduler that runs already"
            )
        try:
            if self.client is not None:
                _require_on_workers(self.client, self.device)  # this process need not have it
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

        In evaluation mode and with frozen weights, that is: see :func:`pure_nb._resting.frozen_eval`.
        """
        import torch  # here, as in _require_device

        from pure_nb._resting import frozen_eval

        return frozen_eval(model, self.local_device, torch.channels_last if self.channels_last else None)


# Once for each device: a run is made anew for every little change, such as of the size of batches.
@lru_cache(maxsize=8)
def _require_device(device: str) -> None:
    """Raise torch's own error if this process can't use a device, or if it computes nothing, as ``meta``."""
    import torch  # here, so that parameters are known at once

    torch.zeros(1, device=device).item()


@lru_cache(maxsize=8)
def _require_on_workers(client: Cluster, device: str) -> None:
    """Raise as :func:`_require_device` if a worker can't use a device."""
    client.run(_require_device, device)


RENAMED = {
    "n": "n_references",
    "k": "n_clusters",
    "by": "ranked_by",
    "share": "min_share",
    "mass": "cumulative_share",
    "p": "min_frequency",
    "seed": "start",
    "random": "seed",
}
"""What parameters were called in study files before 0.1.0; ``seed`` is now the seed of all that is random."""

PARAMETERS = tuple(f.name for f in fields(Parameters))
RUN = tuple(f.name for f in fields(Run))

KINDS = get_type_hints(Parameters) | get_type_hints(Run, localns={"Cluster": object})
"""The types of the fields of both."""


def renamed(name: str, value: Any) -> str:
    """A parameter's name of today; ``seed`` said where relevance starts, by a word."""
    return RENAMED.get(name, name) if name != "seed" or isinstance(value, str) else name


def checked(values: Mapping[str, Any]) -> Parameters:
    """Parameters from their names and values, as a file or a call has them."""
    before = [name for name, value in values.items() if renamed(name, value) != name]
    if before:
        changes = ", ".join(f"`{name}` is now `{RENAMED[name]}`" for name in before)
        raise StudyError(f"parameters of a study were renamed: {changes}; write the new names")
    unknown = sorted(set(values) - set(PARAMETERS))
    if unknown:
        raise StudyError(f"there is no parameter {unknown[0]!r}; there are {', '.join(PARAMETERS)}")
    if not {"target", "lower"} <= set(values):
        raise StudyError("a study needs the parameters target and lower: the names of two layers")
    return Parameters(**values)


def _check(asked: Parameters | Run) -> None:
    """Raise if a value is not what its field is declared to be; numbers become Python's own."""
    for one in fields(asked):
        name, kind, value = one.name, KINDS[one.name], getattr(asked, one.name)
        if get_origin(kind) is Literal:
            require_choice(name, value, kind, StudyError)
        if kind is str and not isinstance(value, str):
            raise StudyError(f"{name} must be the name of a layer, got {value!r}")
        if kind is bool and not isinstance(value, bool):
            raise StudyError(f"{name} must be true or false, got {value!r}")
        if kind is int or (kind == BatchSize and value != AUTO):
            value = _whole(name, value, one.metadata["least"], "" if kind is int else f"; {AUTO!r} looks for one")
        elif kind is float:
            value = _part(name, value)
        object.__setattr__(asked, name, value)


def _whole(name: str, value: Any, least: int, more: str) -> int:
    """A whole number, of Python or NumPy, that is large enough."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise StudyError(f"{name} must be a whole number and at least {least}, got {value!r}{more}")
    return int(value)


def _part(name: str, value: Any) -> float:
    """A number from 0 to 1; 1 and 1.0 are one study."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise StudyError(f"{name} must be a number from 0 to 1, got {value!r}")
    return float(value)


def file_word(name: object) -> str:
    """Any name as part of a file's: what a system or an address could take otherwise becomes ``_``, the end is cut."""
    return re.sub(r"[^\w.-]", "_", str(name), flags=re.ASCII)[:100]


def check_name(name: str) -> str:
    """A study's name, fit for a folder; a name that could lead out of the store is refused."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise StudyError(f"a study's name must be letters, digits, '-', '_' and '.', got {name!r}")
    return name
