"""Descriptions of reference images by vectors, by which neurons are split: circuits, activations, embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pure_nb.compute.blocks import each_neuron, grouped, map_in_blocks
from pure_nb.compute.store import Arrays, New, Store
from pure_nb.errors import StudyWarning
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.methods._shapes import Float, Int
from pure_nb.methods.combined import (
    COMBINED,
    CUTS,
    NEURONS,
    at_maximum,
    chosen_neurons,
    side_by_side,
    weighed,
    weights,
)
from pure_nb.methods.stability import split_half
from pure_nb.methods.virtual import Vectors, kmeans
from pure_nb.network.layers import activations
from pure_nb.parameters import Run

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

OWN, PURE, LRP = "circuits", "PURE", "PURE LRP"
"""Circuits: by the study's own recipe, and by either rule."""

RANDOM = "random"
"""Labels drawn at random, which anything has to beat."""

PEAK, TOP, LOW = "circuits at maximum", "activation at maximum", "lower activation at maximum"
"""What is combined with circuits, see :mod:`pure_nb.methods.combined`."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Description:
    """What describes the reference images of a study's neurons by vectors.

    Attributes
    ----------
    name
        In tables and figures.
    vectors
        Makes those of all neurons: float ``[channels, n, d]``. Studies keep what they made.
    alone
        Makes those of one channel, float ``[n, d]``, where that is quicker.
    """

    name: str
    vectors: Callable[[], Vectors]
    alone: Callable[[int], Vectors] | None = None

    def of(self, channel: int) -> Float[Vectors, "n d"]:
        """The vectors of one channel's references: float ``[n, d]``."""
        return self.alone(channel) if self.alone else self.vectors()[channel]


def descriptions(
    study: Study,
    embedders: Sequence[Embedder] = (),
    *,
    circuits: Callable[..., Vectors] | None = None,
    activations: Callable[[], Mapping[str, Vectors]] | None = None,
) -> dict[str, Description]:
    """All that describes a study's reference images, by name; nothing is computed yet.

    Parameters
    ----------
    study
        Any study.
    embedders
        Each describes by its vectors of the crops.
    circuits, activations
        What makes circuits by other parameters and all activations (see
        :func:`pure_nb.judges.truth.activation_vectors`) instead of the study: tasks of the benchmark hide their truth.
    """

    def recipe(name: str, **changes: Any) -> Description:
        if circuits is not None:
            return Description(name, lambda: circuits(**changes))
        other = study.replace(**changes) if changes else study
        return Description(name, lambda: other.circuits, other.circuits_of)

    def simple(name: str) -> Description:
        return Description(name, lambda: (activations() if activations else study.activation_vectors)[name])

    def embedded(embedder: Embedder) -> Description:
        return Description(embedder.name, lambda: study.crops.embeddings(embedder))

    def several() -> Vectors:
        if circuits is None or activations is None:
            return np.stack([one.weighed(channel) for channel in range(len(one))])
        given = circuits(rule="gradient"), circuits(rule="gradient", start="peak")
        return combine(study, (*given, activations()[TOP], activations()[LOW]))

    one = study.combined or Combined(study)
    combined = Description(COMBINED, several, one.weighed if circuits is None else None)
    found = [recipe(OWN), recipe(PURE, rule="gradient"), recipe(LRP, rule="lrp"), simple("activation")]
    found += [simple(TOP)] if study.references.grid else []  # without a grid the same
    found += [simple("lower activation"), simple(LOW), combined, *map(embedded, embedders)]
    return {one.name: one for one in found}


def fitting(found: Mapping[str, T], study: Study) -> dict[str, T]:
    """What of some things by name fits a study: without LRP, and with a warning, where its rules do not."""
    why = study.without_lrp if LRP in found else ""
    if why:
        warnings.warn(f"{LRP} is left out: {why}", StudyWarning, stacklevel=3)
    return {name: one for name, one in found.items() if name != LRP or not why}


def parts_by(
    vectors: Mapping[str, Vectors], k: int, n: int, *, generator: np.random.Generator, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """One neuron's reference images in parts, by each description with the same k-means, and at random.

    Parameters
    ----------
    vectors
        float ``[n, d]`` by name.
    k, n
        Number of parts, and of images.
    generator
        Draws the labels called :data:`RANDOM`.
    seed
        Of k-means.

    Returns
    -------
    dict
        int64 ``[n]`` by name: the part of each image, from 0.
    """
    parts = {name: kmeans(own, k, seed=seed) for name, own in vectors.items()}
    return parts | {RANDOM: generator.integers(0, k, n)}


def stabilities(vectors: Sequence[Float[Vectors, "n _"]], *, seed: int = 0) -> list[float]:
    """How stable two clusters of one neuron's references are by each description; 0 if there are too few."""
    return [split_half(own, 2, cuts=CUTS, seed=seed) if len(own) > 3 else 0.0 for own in vectors]


def weigh(
    study: Study, given: Callable[[int], Sequence[Float[Vectors, "n _"]]], seed: int
) -> Float[NDArray[np.float64], " m"]:
    """The weights of descriptions, by some of a study's living neurons.

    Parameters
    ----------
    study
        Any study.
    given
        The descriptions of a neuron's references, ``[n, d]`` each.
    seed
        Of the cuts and of k-means.
    """
    alive, active = np.flatnonzero(study.references.alive), study.references.active
    some = chosen_neurons(alive)

    def of(number: int) -> tuple[list[Vectors]]:
        channel = int(some[number])
        return ([own[active[channel]] for own in given(channel)],)

    found = each_neuron(partial(stabilities, seed=seed), of, len(some), name="stability", run=study.run)
    return weights(np.array(found)) if found else np.eye(len(given(0)))[0]


def combine(study: Study, vectors: Sequence[Float[Vectors, "channels n _"]]) -> Float[Vectors, "channels n d"]:
    """Descriptions of all neurons' references side by side, weighed as a study weighs them.

    Parameters
    ----------
    study
        Whose references they describe.
    vectors
        float ``[channels, n, d]`` each; the first are the circuits.
    """
    weight = weigh(study, lambda channel: [own[channel] for own in vectors], study.parameters.seed)
    sizes = [own.shape[2] for own in vectors]
    active = study.references.active[:, :, None]
    each = (np.concatenate([own[channel] for own in vectors], axis=1) for channel in range(len(vectors[0])))
    return np.stack([side_by_side(np.where(on, own, 0), sizes, weight.tolist()) for on, own in zip(active, each)])


@dataclass(frozen=True, eq=False)
class Combined:
    """Several descriptions of a study's references side by side, neuron by neuron: what its parts are found by.

    As a sequence it has, for each neuron, all descriptions side by side as they are, float32 ``[n, d]``; nothing is
    computed or held before it is asked for.
    """

    study: Study

    def __len__(self) -> int:
        return self.study.references.channels

    def __bool__(self) -> bool:
        return True  # without a look at how many neurons there are

    def __getitem__(self, channel: int) -> NDArray[np.float32]:
        return np.concatenate(self._several(channel), axis=1)

    def weighed(self, channel: int) -> Float[NDArray[np.float32], "n d"]:
        """What is clustered of one neuron: :func:`pure_nb.methods.combined.side_by_side`."""
        active = self.study.references.active[channel, :, None]
        return side_by_side(np.where(active, self[channel], np.float32(0)), **self.told())

    def __str__(self) -> str:
        """The descriptions and what each counts, the most first: ``"circuits 60 %, activation at maximum 30 %"``."""
        known = "weights" in vars(self) or self._told or self.study.results.has("weights", self.study.key("weights"))
        if not known:
            return ", ".join(self.sizes) + ", to be weighed by their stability"
        ordered = sorted(self.weights.items(), key=lambda own: -own[1])
        return ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in ordered)

    def told(self) -> dict[str, Any]:
        """The ``sizes`` of the descriptions, and the ``weight`` of each."""
        return {"sizes": [*self.sizes.values()], "weight": [*self.weights.values()]}

    @cached_property
    def _studies(self) -> tuple[Study, ...]:
        """Whose circuits are taken: the study's and, unless these do, those that start at the maximum."""
        own = self.study
        return (own,) if own.parameters.start == "peak" else (own, own.replace(start="peak", described_by=OWN))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The descriptions by name, and their lengths."""
        target, lower = (shape.channels for shape in self.study.shapes)
        return dict.fromkeys((OWN, PEAK)[: len(self._studies)], lower) | {TOP: target, LOW: lower}

    def _several(self, channel: int) -> list[NDArray[np.float32]]:
        """The descriptions of one neuron's references, ``[n, d]`` each."""
        if (beside := vars(self.study).get("beside")) is not None:  # of a published study
            _, *sizes = self.sizes.values()
            return [self.study.circuits_of(channel), *np.split(beside[channel], np.cumsum(sizes)[:-1], axis=1)]
        circuits = [one.circuits_of(channel) for one in self._studies]
        return [*circuits, *np.split(self._activations_of(channel), [self.sizes[TOP]], axis=1)]

    def pairs(
        self,
        channel: Int[NDArray[np.int64], " pairs"],
        sample: Int[NDArray[np.int64], " pairs"],
        images: Images | None = None,
    ) -> Float[NDArray[np.float32], "pairs d"]:
        """The same of any pairs of a channel and an image: see :func:`describe_pairs`."""
        made = [one.run_circuits(channel, sample, images) for one in self._studies]
        found = np.concatenate([*made, self._run_activations(channel, sample, images)], axis=1)
        found[~made[0].any(axis=1)] = 0  # no image that activates the neuron
        return found

    def prepared(self) -> Combined:
        """Itself, with what describes the references of all neurons, lest it be computed neuron by neuron."""
        for one in self._studies:
            one.circuits  # noqa: B018
        self._activations  # noqa: B018
        return self

    @property
    def _told(self) -> dict[str, float]:
        """The weights that a table of neurons tells, if it is at hand: all there is of a published study's."""
        table = vars(self.study).get("neurons")
        return {} if table is None else dict(table.attrs.get("described_by", {}))

    @cached_property
    def weights(self) -> dict[str, float]:
        """What each description counts, 1 in sum."""
        if self._told:
            return self._told
        study = self.study

        def compute(_: Store | None) -> tuple[Arrays, None]:
            if study.references.alive.sum() <= NEURONS:  # all are asked for, and images are many neurons' references
                self.prepared()
            return {"weight": weigh(study, self._several, study.parameters.seed)}, None

        found = study.results.arrays("weights", study.key("weights"), compute)[0]["weight"]
        return dict(zip(self.sizes, found.tolist()))

    @cached_property
    def _activations(self) -> NDArray[np.float32]:
        """Activations at the maximum of all references, ``[channels, n, target + lower channels]``; mapped."""
        sample = self.study.references.sample

        def compute(blocks: Store | None, new: New) -> NDArray[np.float32]:
            channel = np.broadcast_to(np.arange(len(sample))[:, None], sample.shape).ravel()
            return self._run_activations(channel, sample.ravel(), store=blocks, new=new, run=self.study.run)

        found = self.study.results.mapped("peaks", self.study.key("peaks"), compute)
        return found.reshape(*sample.shape, -1)

    def _activations_of(self, channel: int) -> NDArray[np.float32]:
        """The same of one neuron's references, without the others'."""
        if "_activations" in vars(self) or self.study.results.has("peaks", self.study.key("peaks")):
            return self._activations[channel]
        sample = self.study.references.sample[channel]
        return self._run_activations(np.full_like(sample, channel), sample)

    def _run_activations(
        self, channel: NDArray[np.int64], sample: NDArray[np.int64], images: Images | None = None, **how: Any
    ) -> NDArray[np.float32]:
        study, quiet = self.study, replace(self.study.run, progress=False)
        run, layers = how.pop("run", quiet), (study.parameters.target, study.parameters.lower)
        images = study.images if images is None else images
        compute = partial(_of_block, study.model, images, channel, sample, layers, run)
        return map_in_blocks(sample, compute, name="activations", run=run, **how)


def _of_block(
    model: Any,
    images: Images,
    channel: NDArray[np.int64],
    sample: NDArray[np.int64],
    layers: tuple[str, str],
    run: Run,
    block: NDArray[np.int64],
    done: Callable[[int], Any],
) -> NDArray[np.float32]:
    """The activations of both layers at the channels' maxima, ``[b, d]``; of a module, since it is sent to clusters."""
    unique, pairs_of = grouped(sample[block])
    members, found = iter(pairs_of), None
    with run.prepared(model), torch.inference_mode():
        for batch in readable(images, unique.tolist(), run=run):
            outputs = activations(model, batch.images.to(run.local_device), list(layers))
            pairs = list(islice(members, len(batch.samples)))
            each = at_maximum(outputs[layers[0]], outputs[layers[1]], [channel[block[own]] for own in pairs])
            for own, values in zip(pairs, each):
                found = np.empty((len(block), values.shape[1]), np.float32) if found is None else found
                found[own] = values.cpu().numpy()
                done(len(own))
    assert found is not None
    return found


def clustered_of(
    study: Study, channel: int, vectors: Float[NDArray[np.float32], "n _"] | None = None
) -> Float[NDArray[np.float32], "n d"]:
    """What the parts of one neuron are clusters of, ``[n, d]``; by default its circuits, ``vectors`` if at hand."""
    if study.combined:
        return study.combined[channel]
    return study.circuits_of(channel) if vectors is None else vectors


def clustered(study: Study) -> Float[NDArray[np.float32], "channels n d"] | Combined:
    """The same of all neurons."""
    return study.combined.prepared() if study.combined else study.circuits


def by(study: Study, function: Callable[..., T]) -> Callable[..., T]:
    """What clusters or lays out such vectors: the function, or it of all descriptions as they are weighed."""
    return partial(weighed, function, **study.combined.told()) if study.combined else function


def describe_pairs(
    study: Study,
    channel: Int[NDArray[np.int64], " pairs"],
    sample: Int[NDArray[np.int64], " pairs"],
    images: Any = None,
) -> Float[NDArray[np.float32], "pairs d"]:
    """What :meth:`.VirtualNeurons.predict` assigns pairs of a channel and an image by.

    Parameters
    ----------
    study
        Any study.
    channel, sample
        int64 ``[pairs]``.
    images
        What ``sample`` counts, other than the study's.

    Returns
    -------
    ndarray
        float32 ``[pairs, d]``: circuits; where the parts are by several descriptions, all of them side by side as they
        are, or zeros where no relevance flows.
    """
    if study.combined:
        return study.combined.pairs(channel, sample, images)
    return study.run_circuits(channel, sample, images)
