"""Pairs of classes that share a channel, and which of them it is gamma-polysemantic for (Hesse et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pure_nb.methods._shapes import Float
from pure_nb.methods.relevance import ClassStatistics
from pure_nb.methods.statistics import percentiles

if TYPE_CHECKING:
    import pandas as pd


def cosine(first: Float[NDArray[np.floating], "... d"], second: Float[NDArray[np.floating], "... d"]) -> Any:
    """Cosine of vectors over the last axis; NaN where one is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
        return (first * second).sum(axis=-1) / np.where(norm > 0, norm, np.nan)


def class_pairs(
    statistics: ClassStatistics,
    model: nn.Module,
    names: Sequence[str],
    *,
    min_frequency: float = 0.75,
    level: float = 0.95,
) -> pd.DataFrame:
    """Every channel that is relevant to two classes, with the cosine of its two ARVs.

    Parameters
    ----------
    statistics, model
        What :class:`ClassRelevance` found, and the network.
    names
        Of the classes.
    min_frequency
        A channel is relevant to a class if it is so in at least this part of the class's images.
    level
        Of the bootstrap interval.

    Returns
    -------
    DataFrame
        A row for each channel and pair of classes, the most dissimilar first: ``channel``, ``class_1``, ``class_2``,
        ``cosine`` with its interval ``low`` to ``high``, and ``share_1``, ``share_2``, the mean shares of the positive
        attribution that the channel carries. Negative cosines are the strongest cases and stay. The cosine is NaN where
        an ARV is zero, and the interval where a class has fewer than two images; these come last.

    Examples
    --------
    >>> own = study.replace(target="layer4.0.conv2", lower="input:layer4.0.conv2")
    >>> pairs = class_pairs(own.classes.statistics, model, own.classes.names)
    >>> list(pairs.columns[:3])
    ['channel', 'class_1', 'class_2']
    """
    import pandas as pd  # late, see pure_nb._imports

    columns = ["channel", "class_1", "class_2", "cosine", "low", "high", "share_1", "share_2"]
    rows: list[tuple[Any, ...]] = []
    for channel in range(statistics.channels):
        classes = statistics.relevant_classes(channel, min_frequency)
        if len(classes) < 2:
            continue
        vectors = statistics.arv(model, channel, classes)
        drawn_arvs = statistics.bootstrap_arvs(model, channel, classes)
        share = statistics.share[classes, channel] / statistics.images[classes]
        for i, j in combinations(range(len(classes)), 2):
            spread = cosine(drawn_arvs[i], drawn_arvs[j])
            enough = statistics.images[classes[[i, j]]].min() > 1
            low, high = percentiles(spread, level) if enough else (np.nan, np.nan)
            pair, near = (names[classes[i]], names[classes[j]]), float(cosine(vectors[i], vectors[j]))
            rows.append((channel, *pair, near, low, high, share[i], share[j]))
    return pd.DataFrame(rows, columns=columns).sort_values("cosine", kind="stable", ignore_index=True)


def gamma_polysemantic(pairs: pd.DataFrame, gamma: float = 0.5) -> pd.DataFrame:
    """The pairs for which a channel is gamma-polysemantic (Hesse et al. 2025, definition 3.1): cosine below gamma."""
    return pairs[pairs["cosine"] < gamma].reset_index(drop=True)
