"""Take neurons apart that mean several things at once.

The shortest way in, from a study that ships or from your own network, layers and images:

    >>> import pure_nb
    >>> study = pure_nb.load_study("glyphs")                                    # doctest: +SKIP
    >>> study = pure_nb.Study.of(model, images, "layer4", "layer3")             # doctest: +SKIP
    >>> study.neurons.head()                                                    # doctest: +SKIP
    >>> study.neuron(17).plot()                                                 # doctest: +SKIP
"""

from importlib.metadata import version

from pure_nb.loading import load_study, shipped_studies
from pure_nb.parameters import Parameters
from pure_nb.study import Study

__version__ = version("pure-nb")

__all__ = ["Parameters", "Study", "__version__", "load_study", "shipped_studies"]
