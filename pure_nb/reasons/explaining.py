"""One picture explained: which parts of which channels made the network say so, and where they are in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pure_nb.compute.store import write_text
from pure_nb.errors import ArgumentError, LayerError
from pure_nb.figures.render import Picture as Pixels
from pure_nb.figures.render import View, heatmap_mask
from pure_nb.methods.circuits import cuts
from pure_nb.network.layers import OUTPUT, activations, as_weights
from pure_nb.reasons.curves import Curves, picture_curves
from pure_nb.reasons.looking import Picture, number_of, picture_of
from pure_nb.reasons.parts import UNLIKE, Parts
from pure_nb.reasons.tracing import Layer, Start, only, pulled, require_outputs, trace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pure_nb.study import Study

OTHER = "other parts"
NONE = "unlike any part"
REST, LOST = "other channels", "not by these channels"
"""Kinds of rows beside those of :meth:`.Parts.kind`: all weaker parts; channels whose circuit is unlike any
of their parts; channels that were not taken apart; and what of the output is not relevance of the layer: biases, and
paths that do not go through it."""


SHOWN = 4
"""Reference images that are shown of a part."""


class Shown(NamedTuple):
    """A part that is shown: its row of the table, where it is in the picture, and references of its own."""

    row: dict[str, Any]
    view: View
    references: list[Pixels]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why the network said so of one picture: :meth:`pure_nb.study.Study.explain`.

    Attributes
    ----------
    study
        By whose parts it is explained.
    picture
        What is explained.
    output, against
        Names of the output and of the one that is taken off; "" if none is.
    answer
        Name of the largest output.
    value
        What the output is; with another taken off, how much it is larger.
    channels
        A row for each channel that was taken apart, the strongest first: ``channel``; ``part``, its number, -1 if the
        circuit is unlike any part; ``relevance``; ``distance`` of the circuit from the part's mean, and its ``limit``.
    count
        How many parts are shown.
    """

    study: Study
    picture: Picture
    output: str
    against: str
    answer: str
    value: float
    channels: pd.DataFrame
    count: int
    _layer: Layer
    _parts: Parts
    _start: Start

    @cached_property
    def table(self) -> pd.DataFrame:
        """What the output is made of.

        A row for each of the strongest parts: ``kind`` (``"part"``, or ``"channel"`` where it was left whole), ``part``
        (``"22.B"``, or ``"22"``), ``name`` (by hand, or what
        its references show), ``relevance`` in units of the output, and ``share`` of its size: below 0 what speaks
        against. Then what is left, so that shares add up to 1 (or to -1, of an output below 0).
        """
        import pandas as pd  # late, see pure_nb._imports

        some = self.channels[self.channels["part"] != UNLIKE]
        named = [
            (self._parts.kind(channel), self._parts.label(channel, part), self._parts.name(channel, part), relevance)
            for channel, part, relevance in some[["channel", "part", "relevance"]][: self.count].itertuples(index=False)
        ]
        apart, total = self.channels["relevance"].sum(), float(self._layer.total[0])
        weaker = some["relevance"][self.count :]
        unlike = self.channels.loc[self.channels["part"] == UNLIKE, "relevance"]
        rest = [
            (OTHER, self._told(weaker, "part"), weaker.sum()),
            (NONE, self._told(unlike, "channel"), unlike.sum()),
            (REST, _counted(self._parts.study.shapes[0].channels - len(self.channels), "channel"), total - apart),
            (LOST, "biases, other paths", self.value - total),
        ]
        rows = named + [(kind, "", told, relevance) for kind, told, relevance in rest]
        table = pd.DataFrame(rows, columns=["kind", "part", "name", "relevance"])
        return table.assign(share=table["relevance"] / abs(self.value) if self.value else np.nan)

    def _told(self, relevance: pd.Series[float], what: str) -> str:
        """How many there are, and what speaks for and against among them: as their sum may hide it."""
        signs = relevance.clip(lower=0).sum(), relevance.clip(upper=0).sum()
        both = all(signs) and self.value
        return _counted(len(relevance), what) + (
            f", {signs[0] / abs(self.value):+.0%} {signs[1] / abs(self.value):+.0%}" * bool(both)
        )

    @property
    def outside(self) -> str:
        """A sentence on where most of the output is, if no parts have it; "" if they do."""
        rest = self.table[self.table["kind"].isin([NONE, REST, LOST])]
        if not self.value or np.sign(self.value) * rest["share"].sum() <= 0.5:
            return ""
        told = ", ".join(f"{kind} {share:+.0%}" for kind, share in zip(rest["kind"], rest["share"]))
        return f"Most of this output is not told by the parts: {told}."

    @property
    def title(self) -> str:
        """What was asked, and what came out, in a line."""
        if self.against:
            return f"{self.output} rather than {self.against} ({self.value:+.3g})"
        return f"{self.output} ({self.value:.3g})" + (f"; the answer is {self.answer}" * (self.answer != self.output))

    @cached_property
    def pixels(self) -> Pixels:
        """The picture, uint8 ``[H, W, 3]``."""
        return self.picture.images.picture(self.picture.sample)

    @cached_property
    def heatmaps(self) -> NDArray[np.float32]:
        """Where the shown parts are in the picture, float32 ``[parts, H, W]``.

        The relevance of the output in the part's channel, propagated on to the pixels by the rules of CRP from all the
        positions where it has some; so it is conditional on both. Where the rules do not fit the network, or the study
        crops by activation, the map of this relevance at the target layer, scaled up. Signs are those of the pixels'
        contribution to the part, times the part's own.
        """
        return self._maps(self.channels.loc[self.channels["part"] != UNLIKE, "channel"].head(self.count).tolist())

    def _maps(self, channels: Sequence[int]) -> NDArray[np.float32]:
        """Of any channels that were taken apart: see :attr:`heatmaps`."""
        model, run, p = self.study.model, self.study.run, self.study.parameters
        if not channels:
            return np.empty((0, *self.study.images.example.shape[-2:]), np.float32)
        starts = torch.stack([only(self._layer.flow, one[None]) for one in torch.tensor(channels)])
        image = self.picture.images.tensor(self.picture.sample)[None].to(run.local_device)
        if p.crop != "activation":
            try:
                with run.prepared(model), cuts(model, image, p.target, p.crop_lower or None, "lrp") as cut_at:
                    cut = cut_at(image)
                    return _on_picture(pulled(cut.top, cut.leaf, starts)[:, 0], image)
            except LayerError:
                pass  # of a network that the rules do not fit
        return _on_picture(starts[:, 0], image)

    def views(self, channels: Sequence[int]) -> list[View]:
        """Where some of the channels are in the picture: those that carry it, or speak against it."""
        relevance = self.channels.set_index("channel")["relevance"].reindex(list(channels), fill_value=0.0)
        return [
            View(self.picture.sample, self.pixels, heatmap_mask(torch.from_numpy(heat * np.sign(own))))
            for heat, own in zip(self._maps(channels), relevance.to_numpy(np.float32))
        ]

    @cached_property
    def shown(self) -> list[Shown]:
        """The strongest parts with where they are in the picture and four of their own reference images."""
        rows: list[Any] = self.table[self.table["part"] != ""].to_dict("records")
        some = self.channels[self.channels["part"] != UNLIKE][: self.count]
        channels, parts = some["channel"].tolist(), some["part"].tolist()
        own = self.picture.sample if self.picture.images is self.study.images else None
        references = [part_references(self.study, *both, but=own) for both in zip(channels, parts)]
        return [Shown(*all_three) for all_three in zip(rows, self.views(channels), references)]

    @cached_property
    def faithfulness(self) -> Curves:
        """How the output falls as the parts are switched off one after another, and rises as they are on alone.

        Computed when first asked for, by some hundred passes from the layer on; then :meth:`write` tells of it too.

        Raises
        ------
        StudyError
            If no part speaks for the output.
        """
        return picture_curves(self, self._start)

    def figure(self) -> Figure:
        """The picture, its parts with where they are, and their own references."""
        from pure_nb.figures.reason_plots import explanation_figure  # late, as in pure_nb.neuron

        return explanation_figure(self)

    def write(self, path: Path | str) -> Path:
        """Write it as one HTML file that needs nothing else.

        Raises
        ------
        PureError
            If Jinja is missing.
        """
        from pure_nb.reasons.page import whole_page  # late: it needs an extra

        write_text(Path(path), whole_page(self))
        return Path(path)

    def _repr_html_(self) -> str:
        from pure_nb.reasons.page import section

        return section(self)

    def __repr__(self) -> str:
        return f"<Explanation of {self.picture.name!r}: {self.title}>" + f"\n{self.outside}" * bool(self.outside)


def explain(
    study: Study,
    picture: Any,
    output: str | int | None = None,
    *,
    against: str | int | None = None,
    channels: int = 50,
    count: int = 8,
) -> Explanation:
    """Explain what the network says of a picture by the parts of the study's neurons.

    The relevance of the output is propagated to the target layer by the study's rule, and each channel's is given to
    the part to which its circuit in this picture belongs; see :mod:`pure_nb.reasons.parts`.

    Parameters
    ----------
    study
        By whose parts.
    picture
        See :func:`pure_nb.reasons.looking.picture_of`.
    output
        Name or number of the output; the largest by default.
    against
        One that it is compared with: then it is explained by how much the output is larger.
    channels
        How many are taken apart, those that carry most; the others make a row of the table.
    count
        How many parts are shown.

    Raises
    ------
    ImageError, ArgumentError
        If the picture can't be used, or there is no such output.
    StudyError
        If no image activates any channel of the layer.
    LayerError
        If the rules of relevance do not fit the network up to its output, or it does not depend on the layer.
    """
    import pandas as pd  # late, see pure_nb._imports

    if count < 1:
        raise ArgumentError(f"at least one part is shown, got count={count}")
    seen, parts = picture_of(study, picture), Parts(study)
    model, run = study.model, study.run
    image = seen.images.tensor(seen.sample)[None].to(run.local_device)
    with run.prepared(model):
        outputs = output_count(study)
        asked = [None if one is None else number_of(study, one, outputs) for one in (output, against)]
        how: dict[str, Any] = {"layers": [parts], "rule": study.parameters.rule, "most": channels}
        found = trace(model, image, Start(*asked), **how)
    (layer,), names = found.layers, study.classes.output_names(outputs)
    if asked[1] == int(found.output[0]):
        raise ArgumentError(f"an output can't be compared with itself: both are {names[found.output[0]]!r}")
    table = pd.DataFrame(
        {name: getattr(layer, name)[0] for name in ("channel", "part", "relevance", "distance", "limit")}
    )
    told = names[found.output[0]], "" if asked[1] is None else names[asked[1]], names[found.answer[0]]
    start = Start(int(found.output[0]), asked[1])
    return Explanation(study, seen, *told, float(found.value[0]), table, count, layer, parts, start)


def output_count(study: Study) -> int:
    """How many outputs the network has; raises unless it puts out one number for each."""
    if not study.classes.without_labels:
        return len(study.classes.names)
    example = study.images.example[None].to(study.run.local_device)
    with study.run.prepared(study.model), torch.no_grad():
        out = activations(study.model, as_weights(study.model, example), [OUTPUT])[OUTPUT]
    return int(require_outputs(out).shape[1])


def _on_picture(relevance: Tensor, image: Tensor) -> NDArray[np.float32]:
    """Relevance ``[m, C, h, w]`` summed over channels, at the size of the picture; all alike where there is no grid."""
    if relevance.ndim != 4:
        return np.ones((len(relevance), *image.shape[-2:]), np.float32)
    summed = relevance.float().sum(dim=1, keepdim=True)
    if summed.shape[-2:] != image.shape[-2:]:
        summed = interpolate(summed, image.shape[-2:], mode="bilinear")
    return summed[:, 0].cpu().numpy()


def part_references(study: Study, channel: int, part: int | None, *, but: int | None = None) -> list[Pixels]:
    """The strongest references of a part, cropped to what the channel looks at; as it is known, or found now.

    Parameters
    ----------
    study
        Whose part it is.
    channel, part
        The channel, and the part's number; None is the whole channel.
    but
        An image that is left out: the one that is explained.
    """
    neuron, sample = study.neuron(channel), study.references.sample[channel]
    members: list[int] = neuron.members(part, SHOWN + 1).tolist()
    ranks: Sequence[int] = [rank for rank in members if sample[rank] != but][:SHOWN]
    if "boxes" in study.known():
        return study.crops.of(channel, ranks)
    return [view.crop() for view in neuron.views(ranks)]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
