"""Arrays in, pictures out."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.figures.plots import neuron_figure, save, show, strip
    from pure_nb.figures.render import heatmaps
else:
    __getattr__, __dir__ = lazily(__name__, {"plots": "neuron_figure save show strip", "render": "heatmaps"})

__all__ = ["heatmaps", "neuron_figure", "save", "show", "strip"]
