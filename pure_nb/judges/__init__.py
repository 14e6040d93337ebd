"""Whoever judges parts: embedders, distances, names, the truth. Arrays in, numbers out."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder, load_embedder
    from pure_nb.judges.evaluation import alignment, distance_table
    from pure_nb.judges.naming import Namer
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["Embedder", "Namer", "alignment", "distance_table", "load_embedder"]
