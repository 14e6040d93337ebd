"""The papers' methods: tensors and arrays in, arrays out."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.methods.pairs import class_pairs
    from pure_nb.methods.references import TopReferences
    from pure_nb.methods.virtual import VirtualNeurons, virtual_neurons
    from pure_nb.methods.virtual_layer import VirtualLayer
    from pure_nb.methods.visualise import feature_visualisation
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "TopReferences",
    "VirtualLayer",
    "VirtualNeurons",
    "class_pairs",
    "feature_visualisation",
    "virtual_neurons",
]
