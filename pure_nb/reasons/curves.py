"""Whether an explanation of a picture is right: its parts are switched off one after another, and on alone.

In one picture each channel works as one part or as none, so to switch a part off there is to switch off its channel;
what differs from an explanation by whole channels is the order, and that channels unlike any part are left out. What
parts have beyond channels is seen over many images: :mod:`pure_nb.reasons.faithfulness`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.errors import StudyError
from pure_nb.network.layers import activations, flatten_positions
from pure_nb.reasons.looking import spread
from pure_nb.reasons.parts import UNLIKE
from pure_nb.reasons.switching import (
    ABLATIONS,
    area,
    layer_activations,
    mean_activation,
    outputs_without,
    prefixes,
)
from pure_nb.reasons.tracing import Start

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pure_nb.reasons.explaining import Explanation
    from pure_nb.study import Study

PARTS, CHANNELS, ACTIVATION, RANDOM = "parts", "channels", "channels by activation", "random channels"
ORDERS = (PARTS, CHANNELS, ACTIVATION, RANDOM)
"""What is switched: the channels that work as a part, from that which speaks most for the output on; the same of all
channels that were taken apart; all channels by their mean activation in the picture; and all channels in random order.
"""

DRAWS = 8
"""Random orders, and other images of the study that channels are resampled from: means are taken over each."""

OTHERS = 32
"""Images of the study, evenly spread, whose mean activation stands in for channels that are off."""

POINTS = 12
"""Points of a curve, at the most."""


@dataclass(frozen=True, eq=False)
class Curves:
    """How a picture's output follows its explanation: :attr:`pure_nb.reasons.explaining.Explanation.faithfulness`.

    Attributes
    ----------
    title
        Of the explanation.
    table
        The curves, a row for each point: ``ablation``, what stands in place of a channel that is off
        (:data:`pure_nb.reasons.switching.ABLATIONS`); ``order`` (:data:`ORDERS`); ``units``, how many; ``off``, the
        output with these switched off, and ``alone``, with all others of the layer switched off, both in shares of
        the size of the full output. Means over :data:`DRAWS` random orders, and over as many images to resample from.
    """

    title: str
    table: pd.DataFrame

    @cached_property
    def areas(self) -> pd.DataFrame:
        """A row for each ablation and order: how much is left on the way, and one number for all.

        ``units``, how many were switched; ``off`` and ``alone``, the mean heights of the deletion curve, better low,
        and of the insertion curve, better high; ``between``, the second less the first, the area between the curves;
        ``gain``, by how much that is more than of random channels.
        """
        import pandas as pd  # late, see pure_nb._imports

        rows = []
        for (ablation, order), own in self.table.groupby(["ablation", "order"], sort=False):
            counts = own["units"].tolist()
            off, alone = (float(area(counts, own[way].to_numpy())) for way in ("off", "alone"))
            rows.append((ablation, order, counts[-1], off, alone, alone - off))
        table = pd.DataFrame(rows, columns=["ablation", "order", "units", "off", "alone", "between"])
        random = table[table["order"] == RANDOM].set_index("ablation")["between"]
        return table.assign(gain=table["between"] - table["ablation"].map(random))

    def figure(self) -> Figure:
        """The curves: what is left of the output."""
        from pure_nb.figures.faithfulness_plots import curves_figure  # late, as in pure_nb.neuron

        return curves_figure(self)

    def __repr__(self) -> str:
        return f"<Curves of {self.title}>"


def picture_curves(found: Explanation, start: Start) -> Curves:
    """Switch the units of an explanation off one after another, and on alone.

    Parameters
    ----------
    found
        From :meth:`pure_nb.study.Study.explain`.
    start
        The numbers of its outputs.

    Raises
    ------
    StudyError
        If no part speaks for the output.
    """
    import pandas as pd  # late, see pure_nb._imports

    study, (output, against) = found.study, start
    for_it = found.channels[found.channels["relevance"] > 0].sort_values("relevance", ascending=False, kind="stable")
    parts = for_it.loc[for_it["part"] != UNLIKE, "channel"].tolist()
    if not parts:
        raise StudyError(f"no part speaks for {found.output!r} in {found.picture.name}, so there is none to switch off")
    image = found.picture.images.tensor(found.picture.sample)[None].to(study.run.local_device)
    model, target = study.model, study.parameters.target

    def read(out: NDArray[np.float64]) -> NDArray[np.float64]:
        return (out[:, output] - (0 if against is None else out[:, against])) / abs(found.value)

    with study.run.prepared(model):
        top = activations(model, image, [target])[target].detach()
        width = flatten_positions(top).shape[1]
        active = flatten_positions(top).mean(dim=2)[0].argsort(descending=True, stable=True).tolist()
        counts = [0, *np.unique(np.geomspace(1, len(parts), POINTS).astype(int)).tolist()]
        random = np.random.default_rng(study.parameters.seed)
        orders = {PARTS: [parts], CHANNELS: [for_it["channel"].tolist()], ACTIVATION: [active]}
        orders[RANDOM] = [random.permutation(width).tolist() for _ in range(DRAWS)]
        first = np.stack([prefixes(one, counts, width) for every in orders.values() for one in every])
        sets = np.stack([first, ~first]).reshape(-1, width)
        rows = []
        for ablation, fills in _fills(found, top):
            every = [read(outputs_without(model, image, target, sets, fill)) for fill in fills]
            values = np.mean(every, axis=0).reshape(2, -1, len(counts))
            ends = np.cumsum([len(own) for own in orders.values()])[:-1]
            for order, own in zip(orders, np.split(values, ends, axis=1)):
                rows += [(ablation, order, *point) for point in zip(counts, *own.mean(axis=1))]
    return Curves(found.title, pd.DataFrame(rows, columns=["ablation", "order", "units", "off", "alone"]))


def _fills(found: Explanation, top: Tensor) -> Iterator[tuple[str, list[Tensor]]]:
    """What stands in for channels that are off, by each ablation: one thing, or several to take the mean over."""
    mean, donors = _others(found.study)
    own = found.picture.sample if found.picture.images is found.study.images else None
    spread = [donor for sample, donor in donors.items() if sample != own]
    yield from zip(ABLATIONS, ([torch.zeros_like(top)], [mean], spread or [*donors.values()]))


def _others(study: Study) -> tuple[Tensor, dict[int, Tensor]]:
    """The mean activation in :data:`OTHERS` images of a study, and that in :data:`DRAWS` of them; held."""
    if "_others" not in vars(study):
        count = len(study.images)
        sample = spread(np.arange(count), OTHERS)
        some = spread(sample, DRAWS).tolist()
        donors = dict(zip(some, layer_activations(study, study.images, some)))
        vars(study)["_others"] = mean_activation(layer_activations(study, study.images, sample.tolist())), donors
    found: tuple[Tensor, dict[int, Tensor]] = vars(study)["_others"]
    return found
