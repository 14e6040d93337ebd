"""What UMAP spends seconds on at each start, done once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.methods._shapes import Float, Int


@cache
def compiled_umap() -> Any:
    """UMAP, of which what takes longest to compile is compiled once for all processes, as the rest of it is."""
    from umap import UMAP, umap_  # compiles for seconds when imported, so only where it is used

    for slow in (umap_.smooth_knn_dist, umap_.compute_membership_strengths):
        slow.enable_caching()
    return UMAP


def neighbours(
    vectors: Float[NDArray[np.floating], "n d"], count: int
) -> tuple[Int[NDArray[np.int64], "n count"], Float[NDArray[np.float32], "n count"]]:
    """The nearest vectors of each, itself first, and their distances, as UMAP finds them.

    UMAP would compile its own search first, for seven seconds. The tree takes differences, so that each vector is at
    distance 0 of itself, by which UMAP knows it; a matrix product would round.
    """
    from sklearn.neighbors import NearestNeighbors  # late, see pure_nb._imports

    tree = NearestNeighbors(n_neighbors=count, algorithm="ball_tree").fit(vectors)
    distance, neighbour = tree.kneighbors(vectors)
    return neighbour, distance.astype(np.float32)
