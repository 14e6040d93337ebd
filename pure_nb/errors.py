"""What the package raises and warns of: one base class, none of Python's own.

Whoever catches :class:`PureError` catches what the package has to say, and nothing that Python or a library raises
for reasons of its own: so a fault in a user's code, or in ours, is never taken for an answer.
"""

from __future__ import annotations

from typing import Any, get_args


class PureError(Exception):
    """All errors of this package; the message names the thing, says what was expected and what to do.

    Examples
    --------
    >>> try:
    ...     study.neuron(99)
    ... except PureError as problem:
    ...     print(problem)
    channel 99: layer 'layer4' has channels 0 to 31
    """


class ArgumentError(PureError):
    """An argument of a function that can't be used."""


class StudyError(PureError):
    """A study that can't be used as asked, or whose file can't be read."""


class LayerError(PureError):
    """A layer that is not there, or that can't be used as asked."""


class ModelError(PureError):
    """A network, or its weights, that can't be used."""


class ImageError(PureError):
    """Images that can't be read or used."""


class EmbedderError(PureError):
    """An embedder that is not available, or that gives no vectors."""


class NonFiniteError(PureError):
    """A network that puts out NaN or infinity."""


class EvaluationError(PureError):
    """Vectors or crops that can't be judged."""


class PlantingError(PureError):
    """Channels that can't be planted."""


class WordNetError(PureError):
    """WordNet, or a class's place in it, that can't be found."""


class ClusterError(PureError):
    """A cluster that can't be reached, or that has lost its workers too often."""


class StoreError(PureError):
    """A folder of results that can't be written, or read."""


class StudyWarning(UserWarning):
    """Results that are there, but not quite what was asked for."""


class StoreWarning(UserWarning):
    """Something in a folder of results that was damaged or could not be used, and is computed again."""


def sentence(problem: Exception) -> str:
    """What to tell of an error where there is no traceback: with its kind, unless it is of this package."""
    return str(problem) if isinstance(problem, PureError) else f"{type(problem).__name__}: {problem}"


def require_choice(name: str, value: object, choices: Any, kind: type[PureError] = ArgumentError) -> None:
    """Raise unless a value is one of some choices.

    Parameters
    ----------
    name, value
        The parameter or option, and what was given for it.
    choices
        A ``Literal`` of all of them.
    kind
        Of the error to raise.
    """
    if value not in get_args(choices):
        raise kind(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
