"""Arrays in, pictures out."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.figures.plots import image_grid, neuron_figure, show
    from pure_nb.figures.render import heatmaps
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["heatmaps", "image_grid", "neuron_figure", "show"]
