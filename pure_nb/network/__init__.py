"""Which network: its layers, what they compute, and where it comes from."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.network.layers import activations, cut, survey
    from pure_nb.network.lrp import default_composite
else:
    __getattr__, __dir__ = lazily(__name__, {"layers": "activations cut survey", "lrp": "default_composite"})

__all__ = ["activations", "cut", "default_composite", "survey"]
