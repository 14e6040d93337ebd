"""Split neurons that mean several things at once into virtual neurons.

The shortest way in, from a study that ships or from your own network, layers and images::

    study = pure_nb.load_study("glyphs")
    study = pure_nb.Study.from_model(model, images, "layer4", "layer3")
    study.neurons.head()
    study.neuron(17).plot()
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from pure_nb._imports import lazily
from pure_nb.errors import PureError

if TYPE_CHECKING:
    from pure_nb.compute.cluster import connect
    from pure_nb.images.data import Images
    from pure_nb.images.sources import as_images
    from pure_nb.judges.embedders import Embedder, load_embedder
    from pure_nb.loading import load_model, load_study, shipped_studies
    from pure_nb.parameters import Parameters, Run
    from pure_nb.show.atlas import write as write_atlas
    from pure_nb.show.widgets import explore, explorer
    from pure_nb.study import Study
else:
    __getattr__, __dir__ = lazily(__name__)

__version__ = version("pure-nb")

__all__ = [
    "Embedder",
    "Images",
    "Parameters",
    "PureError",
    "Run",
    "Study",
    "__version__",
    "as_images",
    "connect",
    "explore",
    "explorer",
    "load_embedder",
    "load_model",
    "load_study",
    "shipped_studies",
    "write_atlas",
]
