"""The grammar of targets: the name of a layer, and before it which view of its activation is meant.

A bare name out of ``model.named_modules()`` is what that module puts out, and :data:`OUTPUT` what the network does.
Before a name may stand

- ``"input:NAME"``, the (first) input of a module;
- ``"patches:NAME"``, tokens as the grid of patches that they stand for: from ``[B, T, C]`` to ``[B, C, h, w]``, without
  the class token and registers before them, in rows from the top;
- ``"class:NAME"``, the first of the tokens alone, ``[B, C]``;
- ``"tokens:NAME"``, tokens before images: from ``[T, B, C]`` to ``[B, T, C]``;
- ``"folded:NAME"``, windows, tiles or frames of an image that are folded into the first axis: from ``[B * w, ...]`` to
  ``[B, T, C]`` with the positions of all w for tokens;
- ``"last:NAME"``, an output with the channels last as any other: from ``[B, H, W, C]`` to ``[B, C, H, W]``. Linear
  layers and layer norms need no prefix for that, as they tell by themselves where their channels are;
- ``"first:NAME"``, channels before positions: from ``[B, C, L]`` to ``[B, L, C]``. One-dimensional convolutions, batch
  norms and pooling need none.

Prefixes may follow each other: one of the first three, one of the next two, one of the last two, such as
``"patches:tokens:NAME"``. :func:`pure_nb.network.shapes.survey` finds out which a layer needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from pure_nb.errors import LayerError

OUTPUT = ""
"""Name of the network's own output among the layers: the one that ``named_modules`` gives to the network."""

INPUT, PATCHES, CLASS = "input:", "patches:", "class:"
TOKENS, FOLDED = "tokens:", "folded:"
FIRST, LAST = "first:", "last:"

KINDS = {"part": (INPUT, PATCHES, CLASS), "batch": (TOKENS, FOLDED), "axis": (FIRST, LAST)}
"""All that may stand before a name, by the attribute of :class:`Target` that holds it: one of each, in this order."""


@dataclass(frozen=True)
class Target:
    """A layer by name, and which view of its activation is meant.

    Attributes
    ----------
    name
        Of the module; :data:`OUTPUT` for the network itself.
    part
        What of it: a prefix, or "" for all that the module puts out.
    batch
        Where the images are: a prefix, or "" for the first axis.
    axis
        Where the channels are: a prefix, or "" for where such a module has them.

    Examples
    --------
    >>> Target.parse("patches:tokens:encoder.1")
    Target(name='encoder.1', part='patches:', batch='tokens:', axis='')
    >>> str(Target("layer4", INPUT))
    'input:layer4'
    """

    name: str
    part: str = ""
    batch: str = ""
    axis: str = ""

    @classmethod
    def parse(cls, layer: str) -> Target:
        """Read a name with its prefixes.

        Raises
        ------
        LayerError
            If two prefixes of a kind stand there, or in another order.
        """
        found, name = dict[str, str](), layer
        for kind, prefixes in KINDS.items():
            found[kind] = next(filter(name.startswith, prefixes), "")
            name = name.removeprefix(found[kind])
        if name.startswith(sum(KINDS.values(), ())):
            raise misspelt(layer)
        return cls(name, **found)

    @property
    def prefix(self) -> str:
        """All that stands before the name."""
        return self.part + self.batch + self.axis

    def __str__(self) -> str:
        return self.prefix + self.name


def misspelt(layer: str) -> LayerError:
    """The error that says what may stand before the name of a layer."""
    told = ", then ".join(f"one of {', '.join(map(repr, prefixes))}" for prefixes in KINDS.values())
    return LayerError(f"layer {layer!r}: before a name may stand {told}, and no others")
