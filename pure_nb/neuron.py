"""One channel, to look at: its reference images, its circuits, and the parts it is split into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pure_nb.compute.blocks import NOTHING, Kept, each_neuron
from pure_nb.compute.store import Arrays, Store
from pure_nb.errors import ArgumentError
from pure_nb.figures.render import View
from pure_nb.images._fitting import repeated
from pure_nb.images.reading import readable
from pure_nb.images.sources import as_images
from pure_nb.judges import truth
from pure_nb.methods.descriptions import Combined, by, clustered_of, describe_pairs
from pure_nb.methods.stability import Stability, stability
from pure_nb.methods.virtual import (
    Layout,
    VirtualNeurons,
    embed,
    packed,
    unpacked,
    virtual_neurons,
)
from pure_nb.network.layers import activations, flatten_positions
from pure_nb.parameters import Crop, Parameters, Run
from pure_nb.ranges import Range, activation_range

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pure_nb.study import Study


@dataclass(frozen=True, eq=False)
class Neuron:
    """One channel of a study's target layer; see :meth:`pure_nb.study.Study.neuron`."""

    study: Study
    channel: int
    clusters: VirtualNeurons | None = None
    """Its parts, if they are others than the study's; see :meth:`with_clusters`."""

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
        """int64 ``[n]``: indices of its reference images, strongest first."""
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
        """Its virtual neurons, by the study's parameters or by :meth:`with_clusters`."""
        return self.clusters or self.study.virtual_of(self.channel, self.vectors)

    def with_clusters(self, vectors: NDArray[np.float32], k: int) -> Neuron:
        """The same neuron, split into ``k`` parts by other descriptions of its reference images, ``[n, d]``."""
        seed = self.study.parameters.seed
        found = replace(self, clusters=virtual_neurons(vectors, k, draws=0, seed=seed))
        found.__dict__.update({name: value for name, value in vars(self).items() if name in ("vectors", "names")})
        return found

    @cached_property
    def objects(self) -> NDArray[np.int64] | None:
        """int64 ``[n]``: the class of the object under each maximum; None where that is not known."""
        study, known = self.study, self.study.images.truth
        if known is None or len(study.references.grid) != 2 or study._is_there("objects"):
            return None if study.objects is None else study.objects[self.channel]
        height, width = study.images.example.shape[-2:]
        return truth.objects_at_maxima(known, study.references.only(self.channel), (height, width))[0]

    def layout(self, kind: Layout = "umap") -> NDArray[np.float32]:
        """float32 ``[n, 2]``: the circuits laid out in the plane."""
        if kind == "umap":
            return self.study.layout_of(self.channel, self.vectors)
        return by(self.study, embed)(clustered_of(self.study, self.channel, self.vectors), kind)

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

    def predict(self, images: Any, samples: Sequence[int] | None = None) -> NDArray[np.int64]:
        """The virtual neurons that new images activate.

        Parameters
        ----------
        images, samples
            The new images, as for :func:`pure_nb.images.sources.as_images`, and which of them; all of them by default.

        Returns
        -------
        ndarray
            int64 ``[samples]``: labels as in :attr:`VirtualNeurons.labels`, with -1 for images that do not activate the
            channel.
        """
        model, run, target = self.study.model, self.study.run, self.study.parameters.target
        images = repeated(model, as_images(images))
        every = np.arange(len(images)) if samples is None else np.asarray(samples, dtype=np.int64)
        vectors = describe_pairs(self.study, np.full_like(every, self.channel), every, images)
        active: list[bool] = []
        with run.prepared(model), torch.inference_mode():
            for batch in readable(images, every.tolist(), run=run):
                maps = flatten_positions(activations(model, batch.images.to(run.local_device), [target])[target])
                active += (maps[:, self.channel].amax(dim=1) > 0).tolist()
        return np.where(active, self.virtual.predict(vectors), -1)

    @cached_property
    def stability(self) -> Stability:
        """How well its parts come again from halves of its images: :func:`pure_nb.methods.stability.stability`.

        Of parts by :meth:`with_clusters`, how well the study's own vectors make them again.
        """
        if self.clusters is None and self.study._is_there("stability"):
            return self.study.stability[self.channel]
        vectors = clustered_of(self.study, self.channel, self.vectors)
        return stability(self.virtual.scaled(vectors), self.virtual.labels, seed=self.study.parameters.seed)

    def range(self, *, bands: int = 4, n: int = 100) -> Range:
        """What its parts do over the range of activation: see :func:`pure_nb.ranges.activation_range`."""
        return activation_range(self.study, [self.channel], bands=bands, n=n)

    def plot_range(self, *, bands: int = 4, n: int = 100) -> Figure:
        """The same as a picture: the share of each part in each band, and how far clusters found there agree."""
        from pure_nb.figures.ranges import range_figure  # as in plot

        return range_figure(self.range(bands=bands, n=n), self.name)

    def plot(self, count: int = 6) -> Figure:
        """The neuron and its parts as a picture: its circuits in the plane, and images of each part."""
        from pure_nb.figures.plots import neuron_figure  # plotting libraries take a second to import

        return neuron_figure(self, count)


def cluster_channels(
    vectors: NDArray[np.float32] | Combined,
    active: NDArray[np.bool_],
    parameters: Parameters,
    blocks: Store | None = None,
    *,
    split: Callable[..., VirtualNeurons] = virtual_neurons,
    run: Run = Run(progress=False),
) -> list[VirtualNeurons]:
    """Split channels into parts, each by the relevance vectors of the images that activate it.

    Parameters
    ----------
    vectors
        float32 ``[channels, n, d]``, or what has those of each channel.
    active
        Bool ``[channels, n]``: which of the images activate the channel.
    parameters
        Their ``n_clusters`` and ``seed``.
    blocks
        A store for finished blocks of channels, from which it goes on after a stop; none are kept by default.
    split
        Splits one channel, as :func:`pure_nb.methods.virtual.virtual_neurons`.
    run
        Its ``progress`` and ``client``.

    Returns
    -------
    list of VirtualNeurons
        One for each channel.
    """

    def used(channel: int) -> tuple[NDArray[np.float32]]:
        # With start="unit" those that do not activate it have relevance, too.
        return (np.where(active[channel, :, None], vectors[channel], 0),)

    asked = partial(split, k=parameters.n_clusters or "auto", seed=parameters.seed)
    return each_neuron(asked, used, len(vectors), name="virtual", kept=_kept(blocks, packed, unpacked), run=run)


def lay_out(
    vectors: NDArray[np.float32] | Combined,
    embed: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    blocks: Store | None,
    run: Run,
) -> NDArray[np.float32]:
    """The circuits of channels in the plane, float32 ``[channels, n, 2]``.

    Parameters
    ----------
    vectors, blocks, run
        As for :func:`cluster_channels`.
    embed
        Lays out those of one channel.
    """

    def pack(points: list[NDArray[np.float32]]) -> tuple[Arrays, None]:
        return {"points": np.stack(points)}, None

    def unpack(arrays: Arrays, _: None) -> list[NDArray[np.float32]]:
        return list(arrays["points"])

    def given(channel: int) -> tuple[NDArray[np.float32]]:
        return (np.asarray(vectors[channel]),)

    kept = _kept(blocks, pack, unpack)
    return np.stack(each_neuron(embed, given, len(vectors), name="layouts", kept=kept, run=run))


def _kept(
    blocks: Store | None, pack: Callable[[list[Any]], tuple[Arrays, Any]], unpack: Callable[[Arrays, Any], list[Any]]
) -> Kept:
    """Where finished blocks of channels are kept."""
    if blocks is None:
        return NOTHING

    def load(first: int) -> list[Any] | None:
        saved = blocks.load_arrays("block", {"first": first})
        return None if saved is None else unpack(*saved)

    return Kept(load, lambda first, found: blocks.save_arrays("block", {"first": first}, *pack(found)))


def neuron_table(study: Study) -> pd.DataFrame:
    """One row for each channel of a study: :attr:`pure_nb.study.Study.neurons`."""
    import pandas as pd  # late, see pure_nb._imports
    from scipy.stats import false_discovery_control
    from sklearn.metrics import adjusted_mutual_info_score

    references, objects, rows = study.references, study.objects, []
    for channel, parts in enumerate(study.virtual):
        if not parts.k:
            continue  # it was not published
        row: dict[str, Any] = {
            "channel": channel,
            "k": parts.k,
            "score": parts.score if references.alive[channel] else np.nan,
            "p": parts.p,
            "q": np.nan,
            "sizes": " ".join(str(size) for size in parts.sizes),
            "strongest": float(references.score[channel, 0]),
            "meanings": study.neuron(channel).meanings(),
        }
        if objects is not None:
            known = objects[channel] >= 0
            row["ami"] = adjusted_mutual_info_score(objects[channel][known], parts.labels[known])
        rows.append(row)
    table = pd.DataFrame(rows)
    if study.combined:
        table.attrs["described_by"] = study.combined.weights
    alive = references.alive[table["channel"]]
    table.loc[alive, "q"] = false_discovery_control(table.loc[alive, "p"])
    return table.sort_values(["score", "p"], ascending=[False, True], kind="stable", ignore_index=True)


def ranked(table: pd.DataFrame, virtual: Sequence[VirtualNeurons]) -> pd.DataFrame:
    """The table of neurons with the ``silhouette_gain`` of each, in the order of :attr:`pure_nb.study.Study.neurons`.

    Tables in stores, and those that were published before, are without it. Those left whole have the score 0; their
    gain says which are nearest to being split, where ``p`` is too coarse or too careful to tell.
    """
    found, place = table.drop(columns="silhouette_gain", errors="ignore"), list(table.columns).index("score") + 1
    gains = [virtual[channel].silhouette_gain for channel in found["channel"]]
    found.insert(place, "silhouette_gain", np.where(found["strongest"] > 0, gains, np.nan))  # the dead come last
    by = ["score", "silhouette_gain", "p"]
    return found.sort_values(by, ascending=[False, False, True], kind="stable", ignore_index=True)
