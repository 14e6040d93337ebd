"""Which network: its layers, what they compute, and where it comes from."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.network.cut import Cut
    from pure_nb.network.layers import activations
    from pure_nb.network.lrp import default_composite
    from pure_nb.network.shapes import survey
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["Cut", "activations", "default_composite", "survey"]
