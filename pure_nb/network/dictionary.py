"""A dictionary as a layer: whatever has ``encode`` (and ``decode``) becomes part of a network, and its codes a target.

Sparse autoencoders and other dictionaries turn the channels of a layer, position by position, into more features of
which few are active. :func:`with_dictionary` puts one behind a layer. Its features are then the layer
``"NAME.features"``, whose references, circuits and parts are found as those of any other. Where there is ``decode``,
the network goes on through ``decode(features) + error``, with the error ``x - decode(encode(x))`` as a constant (as in
Marks et al. 2024, section 2): it computes the same as before, and what comes after reaches the layer through the
features alone, so that classes can be traced to them. Without it the features are a branch that leads nowhere.

As the name of a target it is ``"dict:FILE.py:FUNCTION@LAYER"``, where the function returns the dictionary. Directions
that are the rows of a matrix need no code: ``"basis:FILE@LAYER"``, see :mod:`pure_nb.network.basis`.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pure_nb.errors import LayerError, ModelError, PureError
from pure_nb.network.basis import FILES, read_basis
from pure_nb.network.layers import as_weights, get_layer
from pure_nb.network.models import made_by
from pure_nb.network.targets import INPUT, ChannelsLast, Target, is_last

DICTIONARY, BASIS = "dict:", "basis:"
"""Before the file, the function or the array, and the layer of a target that is a dictionary."""

FEATURES, WHOLE = "features", "whole"
"""What a layer with a dictionary is made of, as names of layers below its own."""


class Features(ChannelsLast):
    """The codes of a dictionary, ``[..., features]`` from ``[..., channels]``. Made by :func:`with_dictionary`.

    Parameters
    ----------
    dictionary
        Its ``encode`` takes ``[N, channels]`` to ``[N, features]``, ``decode`` takes these back.
    layer
        Whose channels they are, to be named in errors.
    """

    def __init__(self, dictionary: Any, layer: str) -> None:
        super().__init__()
        self.dictionary, self.layer = dictionary, layer

    def forward(self, channels: Tensor) -> Tensor:
        """The features of some channels, or what hooks make of them."""
        return self.called("encode", channels)

    def called(self, method: str, values: Tensor, width: int | None = None) -> Tensor:
        """What ``encode`` or ``decode`` makes of all positions ``[..., d]``, of a given width if there is one.

        Raises
        ------
        LayerError
            If it fails, or returns no tensor ``[N, width]``.
        """
        rows = values.flatten(0, -2)
        given = as_weights(self.dictionary, rows) if isinstance(self.dictionary, nn.Module) else rows
        what = f"{method} of the dictionary at layer {self.layer!r}"
        try:
            found = getattr(self.dictionary, method)(given)
        except (PureError, torch.OutOfMemoryError):
            raise
        except Exception as problem:
            raise LayerError(
                f"{what} fails on {list(rows.shape)}, a row for each position ({type(problem).__name__}: {problem})"
            ) from problem
        shape = list(found.shape) if isinstance(found, Tensor) else None
        wanted = [len(rows), "features" if width is None else width]
        if shape is None or len(shape) != 2 or shape[0] != len(rows) or shape[1] < 1 or shape[1] != (width or shape[1]):
            got = f"a {type(found).__name__}" if shape is None else shape
            raise LayerError(
                f"{what} returned {got} for {list(rows.shape)}; expected one tensor {wanted}, position by position"
            )
        return found.to(values.dtype).unflatten(0, values.shape[:-1])


class DictionaryLayer(nn.Module):
    """A layer, and the features that a dictionary makes of what it puts out. Made by :func:`with_dictionary`.

    Parameters
    ----------
    whole
        The layer as it was.
    features
        The dictionary's codes.
    last
        Whether the channels are last where the layer puts out four axes, or three; None by the kind of layer.
    """

    def __init__(self, whole: nn.Module, features: Features, last: bool | None) -> None:
        super().__init__()
        self.whole, self.features, self.last = whole, features, last
        self.training = features.training = whole.training

    def forward(self, *inputs: Any, **how: Any) -> Tensor:
        """What the layer puts out, through the features where they can be decoded."""
        output = self.whole(*inputs, **how)
        if not isinstance(output, Tensor) or not 2 <= output.ndim <= 4:
            got = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise LayerError(
                f"layer {self.features.layer!r} puts out {got}; a dictionary reads one tensor [B, C], [B, T, C] or "
                "[B, C, H, W]; choose a layer whose output is one of these"
            )
        last = is_last(self.whole, output.ndim) if self.last is None else self.last
        axis = -1 if output.ndim == 2 or last else 1
        channels = output.movedim(axis, -1)
        codes = self.features(channels)
        if not callable(getattr(self.features.dictionary, "decode", None)):
            return output
        with torch.no_grad():  # of the features as they are, whatever hooks make of them
            known = self.features.forward(channels)
            error = channels - self.features.called("decode", known, channels.shape[-1])
        through = self.features.called("decode", codes, channels.shape[-1]) + error
        return through.movedim(-1, axis)


def with_dictionary(model: nn.Module, layer: str, dictionary: Any) -> nn.Module:
    """A copy of a network with a dictionary behind one of its layers; it computes the same.

    Parameters
    ----------
    model
        Any network; it is left as it is.
    layer
        Name of the layer, with ``"last:"`` or ``"first:"`` before it where its channels are elsewhere than those of
        such modules usually are.
    dictionary
        Anything whose ``encode`` takes activations ``[N, channels]`` of N positions to codes ``[N, features]``, by
        operations that have gradients. With a ``decode`` back to ``[N, channels]`` the network goes on through the
        features. A ``torch.nn.Module`` follows the network from device to device.

    Returns
    -------
    Module
        Its layer ``"<layer>.features"`` are the features, ``"<layer>.whole"`` is the layer as it was, and modules
        inside that layer are now inside ``"<layer>.whole"``. Codes have their channels last, ``[B, H, W, features]``,
        and need no prefix for that.

    Raises
    ------
    LayerError
        If there is no such layer, or it is the input of one.
    ModelError
        If the dictionary has no ``encode``.

    Examples
    --------
    >>> directions = torch.linalg.qr(torch.rand(32, 32)).Q
    >>> class Halves:  # each direction to either side: 64 features of 32 channels
    ...     def encode(self, x):
    ...         return torch.cat([x @ directions, -x @ directions], dim=1).relu()
    ...     def decode(self, codes):
    ...         return (codes[:, :32] - codes[:, 32:]) @ directions.T
    >>> coded = study.replace(model=with_dictionary(model, "layer4", Halves()), target="layer4.features")
    >>> coded.circuits.shape                # features, references, channels of the lower layer
    (64, 6, 64)
    """
    target = Target.parse(layer)
    if target.part == INPUT or target.inside:
        raise LayerError(f"a dictionary reads what a layer puts out, not {layer!r}; name the module before it")
    if not callable(getattr(dictionary, "encode", None)):
        raise ModelError(f"a dictionary has a method encode, and a {type(dictionary).__name__} has none")
    changed = copy.deepcopy(model)
    whole = get_layer(changed, layer)
    if isinstance(whole, DictionaryLayer):  # one takes the place of another
        whole = whole.whole
    last = {"": None, "last:": True, "first:": False}[target.axis]
    changed.set_submodule(target.name, DictionaryLayer(whole, Features(dictionary, target.name), last))
    return changed


def resolved(model: nn.Module, target: str, lower: str) -> tuple[nn.Module, str, str]:
    """A network and its two layers, where a target that is a dictionary or a basis is made part of the network.

    Returns
    -------
    tuple
        The network as :func:`with_dictionary` changes it, the features' layer with the prefixes that the layer had, and
        the lower layer as it is called there; all as given if the target is no dictionary.

    Raises
    ------
    LayerError
        If the target can't be read so, or there is no such layer, or the file of a basis is none.
    ModelError
        If there is no such file of a dictionary, or function, it fails, or what it returns has no ``encode``.
    """
    if not target.startswith((DICTIONARY, BASIS)):
        return model, target, lower
    path, name, layer = _parsed(target)
    dictionary, files = made_by(path, name, {}) if target.startswith(DICTIONARY) else (read_basis(path, name), [])
    if not callable(getattr(dictionary, "encode", None)):
        raise ModelError(
            f"{name!r} of {str(path)!r} returned a {type(dictionary).__name__}, expected a dictionary with a method "
            "encode"
        )
    changed = with_dictionary(model, layer, dictionary)
    own, below = Target.parse(layer), Target.parse(lower)
    vars(get_layer(changed, f"{own.name}.{FEATURES}"))["_made_by"] = files
    again = isinstance(get_layer(model, own.name), DictionaryLayer)  # then names are those within it already
    if (below.name.startswith(f"{own.name}.") and not again) or below == replace(own, axis=below.axis):
        below = replace(below, name=f"{own.name}.{WHOLE}{below.name.removeprefix(own.name)}")
    return changed, str(replace(own, name=f"{own.name}.{FEATURES}", axis="")), str(below)


def anchored(target: str, folder: Path) -> str:
    """A target whose file, if it has one, is looked for from a folder."""
    if not target.startswith((DICTIONARY, BASIS)):
        return target
    path, name, layer = _parsed(target)
    return f"{target.partition(':')[0]}:{folder / path}{name and f':{name}'}@{layer}"


def _parsed(target: str) -> tuple[Path, str, str]:
    """The file, the function and the layer that a target names."""
    if target.startswith(BASIS):
        source, _, layer = target.removeprefix(BASIS).rpartition("@")
        if not source or not layer:
            raise LayerError(f"can't tell what target {target!r} is; expected '{BASIS}FILE@LAYER'")
        named = Path(source).suffix.lower() not in FILES  # a colon may also stand in a path
        path, _, name = source.rpartition(":") if named and ":" in source else (source, "", "")
        return Path(path), name, layer
    source, _, layer = target.removeprefix(DICTIONARY).rpartition("@")
    path, _, name = source.rpartition(":")
    if not path.endswith(".py") or not name or not layer:
        raise LayerError(f"can't tell what target {target!r} is; expected '{DICTIONARY}FILE.py:FUNCTION@LAYER'")
    return Path(path), name, layer
