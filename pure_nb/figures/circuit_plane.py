"""The plane of a neuron's circuits: its reference images as points, similar circuits near each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.mlab import GaussianKDE
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray

from pure_nb.figures.colours import part_colour
from pure_nb.figures.render import Picture

if TYPE_CHECKING:
    from pure_nb.neuron import Neuron

PLANE = np.array([125, 250])
"""Room for the points, about, in points of a figure of five parts."""


def circuit_plane(axes: Axes, neuron: Neuron, pictures: dict[int, Picture]) -> None:
    """The circuits of all references as points, some with their pictures."""
    points, labels = neuron.layout(), neuron.virtual.labels
    if len(points) > 5 and np.linalg.matrix_rank(points - points.mean(axis=0)) == 2:
        _contours(axes, points.astype(np.float64).T)
    for part in range(neuron.virtual.k):
        own, colour = points[labels == part], part_colour(part)
        axes.scatter(own[:, 0], own[:, 1], s=26, color=colour, edgecolor="white", linewidth=0.6, zorder=2)
    middle, taken = points.mean(axis=0), list[NDArray[Any]]()
    for part in range(neuron.virtual.k):
        for rank in _spread(points, neuron.members(part), [rank for rank in pictures if labels[rank] == part]):
            place = (points[rank] - middle) / (np.ptp(points, axis=0) + 1e-9) * PLANE
            away = _free(place, np.where(points[rank] < middle, -1, 1), taken)
            taken.append(place + away)
            how: dict[str, Any] = {"xybox": tuple(away), "boxcoords": "offset points", "pad": 0.1}
            how["arrowprops"] = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.6}
            how["bboxprops"] = {"edgecolor": part_colour(part), "linewidth": 1.2}
            axes.add_artist(AnnotationBbox(OffsetImage(pictures[rank], zoom=0.36), points[rank], **how))
    axes.margins(0.22)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel("circuits of the reference images", fontsize=9.5)
    axes.spines[:].set_visible(False)


def _free(place: NDArray[Any], outwards: NDArray[Any], taken: list[NDArray[Any]]) -> NDArray[Any]:
    """Where beside a point its picture covers least of the others: outwards if it can, in points of the figure."""
    ways = [outwards * way for way in ((30, 26), (30, -26), (-30, 26), (44, 0), (0, 44), (-44, 0), (0, -44))]
    return min(ways, key=lambda way: sum(max(0.0, 38 - np.abs(place + way - other).max()) for other in taken))


def _contours(axes: Axes, points: NDArray[np.float64]) -> None:
    """Lines around 100, 76, 52, 28 and 5 % of the density of points ``[2, n]``, as :func:`seaborn.kdeplot` has them."""
    kernel = GaussianKDE(points, 0.6 * points.shape[1] ** (-1 / 6))
    reach = 3 * np.sqrt(np.diag(kernel.covariance))
    grid = np.linspace(points.min(axis=1) - reach, points.max(axis=1) + reach, 200, axis=1)
    density = kernel(np.reshape(np.meshgrid(*grid), (2, -1)))
    falling = np.sort(density)[::-1]
    within = np.searchsorted(falling.cumsum() / falling.sum(), 1 - np.linspace(0.05, 1, 5))
    axes.contour(*grid, density.reshape(200, 200), falling[within], colors="0.75", linewidths=0.8, zorder=1)


def _spread(points: NDArray[np.float32], members: NDArray[np.int64], shown: list[int]) -> list[int]:
    """Up to two of the shown reference images of a part that lie far from each other: the strongest, and one more."""
    if not shown:
        return []
    first = shown[0]
    gap = np.linalg.norm(points[shown] - points[first], axis=1)
    second = shown[int(gap.argmax())]
    reach = np.ptp(points, axis=0).max()
    return [first, second] if gap.max() > 0.12 * reach and len(members) > 3 else [first]
