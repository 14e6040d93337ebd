"""One channel, to look at: its reference images, its circuits, and what it falls apart into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError
from pure_nb.figures.render import View
from pure_nb.judges import truth
from pure_nb.methods.virtual import Layout, VirtualNeurons, embed, virtual_neurons
from pure_nb.parameters import Crop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pure_nb.study import Study


@dataclass(frozen=True, eq=False)
class Neuron:
    """One channel of a study's target layer; see :meth:`pure_nb.study.Study.neuron`."""

    study: Study
    channel: int
    apart: VirtualNeurons | None = None
    """Taken apart otherwise than the study says, by :meth:`by`."""

    def __repr__(self) -> str:
        return f"<Neuron {self.name} of {self.study.name!r}>"

    def _repr_png_(self) -> bytes:
        from matplotlib import pyplot as plt  # as in plot

        figure, buffer = self.plot(), BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight")
        plt.close(figure)
        return buffer.getvalue()

    @property
    def sample(self) -> NDArray[np.int64]:
        """int64 ``[n]``: numbers of its reference images, strongest first."""
        return self.study.references.sample[self.channel]

    @property
    def score(self) -> NDArray[np.float32]:
        """float32 ``[n]``: their scores."""
        return self.study.references.score[self.channel]

    @property
    def name(self) -> str:
        """The channel with its layer: ``"layer4 / 17"``."""
        return f"{self.study.parameters.target} / {self.channel}"

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """float32 ``[n, lower channels]``: the circuit of each reference image."""
        return self.study.circuits_of(self.channel)

    @cached_property
    def virtual(self) -> VirtualNeurons:
        """The neuron taken apart, as the study's parameters say, or as :meth:`by` did."""
        return self.apart or self.study.virtual_of(self.channel, self.vectors)

    def by(self, vectors: NDArray[np.float32], k: int) -> Neuron:
        """The same neuron, taken apart into ``k`` by other descriptions of its reference images, ``[n, d]``."""
        random = self.study.parameters.random
        return replace(self, apart=virtual_neurons(vectors, k, draws=0, seed=random))

    @property
    def objects(self) -> NDArray[np.int64] | None:
        """int64 ``[n]``: the class of the object under each maximum; None where that is not known."""
        return None if self.study.objects is None else self.study.objects[self.channel]

    def layout(self, kind: Layout = "umap") -> NDArray[np.float32]:
        """float32 ``[n, 2]``: the circuits laid out in the plane."""
        return self.study.layout_of(self.channel, self.vectors) if kind == "umap" else embed(self.vectors, kind)

    def members(self, part: int | None = None, count: int | None = None) -> NDArray[np.int64]:
        """Ranks of the reference images of a virtual neuron, strongest first; of all of them for None."""
        if count is not None and count < 1:
            raise ArgumentError(f"at least one reference image is shown, got count={count}")
        every = np.arange(len(self.sample)) if part is None else np.flatnonzero(self.virtual.labels == part)
        return every[:count]

    def views(self, ranks: Sequence[int] | NDArray[np.int64], crop: Crop | None = None) -> list[View]:
        """Reference images of given ranks; see :meth:`pure_nb.crops.Crops.views`."""
        sample = self.sample[np.asarray(ranks, dtype=np.int64)]
        return self.study.crops.views(np.full_like(sample, self.channel), sample, crop)

    @cached_property
    def names(self) -> list[str]:
        """What each reference image shows: the object under its maximum where that is known, else its label, or ""."""
        if self.objects is not None:
            classes = ["", *self.study.images.truth.classes]  # type: ignore[union-attr]  # or there would be no objects
            return [classes[label + 1] for label in self.objects.tolist()]
        return [self.study.images.label(sample) for sample in self.sample.tolist()]

    def meanings(self, part: int | None = None) -> str:
        """What the neuron, or a part of it, answers to, with shares of its images: ``"cat 61%, urn 30%"``.

        The objects under the maxima where these are known, else the labels of the images that at least two of them
        have; "" where there are none.
        """
        names = [self.names[rank] for rank in self.members(part)]
        two = 0.0 if self.objects is not None else 2 / max(1, len(names))
        named = truth.shares(names, max(truth.COMMON, two))
        return ", ".join(f"{name} {share:.0%}" for name, share in named if name)

    def plot(self, count: int = 6) -> Figure:
        """The neuron taken apart, as a picture: its circuits in the plane, and images of each part."""
        from pure_nb.figures.plots import neuron_figure  # plotting libraries take a second to import

        return neuron_figure(self, count)
