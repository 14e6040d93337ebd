"""Ways of taking neurons apart, to be compared where the right answer is known.

A contestant is a function of a :class:`~pure_nb.benchmark.worlds.World`. It returns descriptions of all reference
images, ``[channels, n, d]``, which are then clustered; or the parts themselves, ``[channels, n]``; or a :class:`Parts`
with all it knows. What it must not look at is ``world.truth``. It may look at ``world.k``, the number of parts wanted
of each neuron, as all of them may.

    >>> from pure_nb.benchmark.contestants import Contestant
    >>> by_brightness = Contestant("brightness", lambda world: ...)               # doctest: +SKIP

The literature: circuits (Dreyer et al. 2024), splits by average relevance vectors (Hesse et al. 2025), non-negative
factors (Lee and Seung 1999; for concepts Fel et al. 2023), sparse codes (Olshausen and Field 1996).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, SpectralClustering
from sklearn.decomposition import NMF, PCA, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeClassifierCV
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from pure_nb.benchmark.worlds import World
from pure_nb.errors import ModelError, PureError, StudyError, StudyWarning
from pure_nb.methods.ownership import RHOS, SHARED, Assignment
from pure_nb.methods.splitting import PartActivations, Split, part_activations
from pure_nb.methods.virtual import cluster
from pure_nb.methods.windows import channel_sources, closed_form
from pure_nb.network.digests import digest
from pure_nb.network.layers import get_layer, stage_before
from pure_nb.network.models import function_in
from pure_nb.parameters import NEAREST

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

PAPER, LRP, PEAK, CLOSE, LAYERS = "PURE", "PURE LRP", "PURE at maximum", "PURE close", "PURE, several layers"
RANDOM, CEILING, CLASSES = "random", "ceiling", "split by classes"

ATOMS = 256
"""Most atoms of a dictionary of sparse codes."""

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Divide = Callable[[Vectors, int, int], Labels]
"""From the vectors ``[n, d]`` of a neuron, a number of parts and a seed to labels ``[n]``, from 0, -1 for none."""


def by_means(vectors: Vectors, k: int, seed: int) -> Labels:
    """k-means with the paper's settings; see :func:`pure_nb.methods.virtual.cluster`."""
    return cluster(vectors, k, seed=seed)


@dataclass(frozen=True, eq=False)
class Parts:
    """A contestant's answer.

    Attributes
    ----------
    labels
        int64 ``[channels, n]``: the part that each reference image belongs to; -1 for none.
    vectors
        float ``[channels, n, d]``: the descriptions that were clustered; None where nothing was.
    owner
        For a split, who owns which source of each channel it split: int64 ``[sources]``, as
        :func:`pure_nb.methods.ownership.owners`.
    """

    labels: Labels
    vectors: Vectors | None = None
    owner: dict[int, Labels] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A way of taking neurons apart.

    Attributes
    ----------
    name
        In tables and figures.
    answer
        From a world to vectors ``[channels, n, d]``, labels ``[channels, n]`` or :class:`Parts`.
    divide
        What clusters vectors; k-means as PURE does by default.
    fingerprint
        What stored answers are found by; "" stores none, so that a function that was changed is run again.
    """

    name: str
    answer: Callable[[World], Any]
    divide: Divide = field(default_factory=lambda: by_means)
    fingerprint: str = ""

    def parts(self, world: World, seed: int | None = None) -> Parts:
        """The contestant's answer for a world, clustered with the study's seed unless another is given.

        Raises
        ------
        StudyError
            If it is not of the right shape, or not finite.
        """
        found = self.answer(world)
        if isinstance(found, Parts):
            vectors = None if found.vectors is None else self._checked(found.vectors, world, (3,))
            return replace(found, labels=self._checked(found.labels, world, (2,)), vectors=vectors)
        values = self._checked(found, world, (2, 3))
        if values.ndim == 2:
            return Parts(values)
        seed = world.study.parameters.random if seed is None else seed
        return Parts(divided(values, world.k, self.divide, seed), values)

    def _checked(self, found: Any, world: World, axes: tuple[int, ...]) -> NDArray[Any]:
        """Vectors or labels for each reference image of a world; labels as whole numbers."""
        channels, n = world.truth.shape
        expected = f"expected vectors [{channels}, {n}, d] or labels [{channels}, {n}], for each reference image"
        try:
            values = np.asarray(found)
            finite = bool(np.isfinite(values).all())
        except (TypeError, ValueError) as problem:
            raise StudyError(
                f"contestant {self.name!r} returned no array of numbers ({problem}); {expected}"
            ) from problem
        if values.ndim not in axes or values.shape[:2] != (channels, n):
            raise StudyError(f"contestant {self.name!r} returned an array of shape {list(values.shape)}; {expected}")
        if not finite:
            raise StudyError(f"contestant {self.name!r} returned NaN or infinity; {expected}")
        if values.ndim == 3:
            return values
        if (values != values.astype(np.int64)).any():
            raise StudyError(f"contestant {self.name!r} returned labels that are no whole numbers; {expected}")
        return values.astype(np.int64)


def divided(vectors: Vectors, k: NDArray[np.int64], divide: Divide, seed: int) -> Labels:
    """Every neuron's references in parts, by their vectors ``[channels, n, d]``; with ``k = 1`` it stays whole.

    Parameters
    ----------
    vectors
        Float ``[channels, n, d]``.
    k
        Number of parts of each neuron.
    divide
        What clusters the vectors of one neuron.
    seed
        Of the clustering.
    """
    whole = np.zeros(vectors.shape[1], dtype=np.int64)
    return np.stack([divide(own, int(parts), seed) if parts > 1 else whole for own, parts in zip(vectors, k)])


def circuits_of(**recipe: Any) -> Callable[[World], Vectors]:
    """PURE's description, by some recipe: ``circuits_of(rule="lrp")``; see :meth:`.World.circuits`."""
    return lambda world: world.circuits(**recipe)


def several_layers(world: World) -> Vectors:
    """Circuits over several lower layers side by side: the study's, the nearest, and the stage before the study's."""
    lower = world.base.parameters.lower
    names = dict.fromkeys([lower, world.nearest])
    before = stage_before(world.base.model, lower)
    names |= dict.fromkeys([before] if before else [])
    return np.concatenate([world.circuits(lower=name) for name in names], axis=2)


def activations_of(name: str) -> Callable[[World], Vectors]:
    """One of the descriptions of :meth:`pure_nb.benchmark.worlds.World.activations`."""
    return lambda world: world.activations[name]


def by_mixture(vectors: Vectors, k: int, seed: int) -> Labels:
    """A Gaussian mixture with one covariance for all, over the ten first principal components."""
    flat = _calm(PCA(min(10, *vectors.shape), random_state=seed).fit_transform, np.asarray(vectors, dtype=np.float64))
    flat /= flat.std() or 1.0
    mixture = GaussianMixture(k, covariance_type="tied", n_init=3, reg_covar=1e-3, random_state=seed)
    return np.asarray(_calm(mixture.fit_predict, flat), dtype=np.int64)


def by_spectrum(vectors: Vectors, k: int, seed: int) -> Labels:
    """Spectral clustering of the graph of ten nearest neighbours."""
    near = min(10, len(vectors) - 1)
    model = SpectralClustering(k, affinity="nearest_neighbors", n_neighbors=near, random_state=seed)
    return np.asarray(_calm(model.fit_predict, vectors), dtype=np.int64)


def by_density(vectors: Vectors, k: int, seed: int) -> Labels:
    """HDBSCAN; it finds the number of parts itself, and calls what is between them -1."""
    return np.asarray(HDBSCAN(min_cluster_size=max(2, len(vectors) // 20), copy=True).fit_predict(vectors), np.int64)


def by_factors(vectors: Vectors, k: int, seed: int) -> Labels:
    """Non-negative factors; an image belongs to the one that explains most of it."""
    model = NMF(k, init="nndsvda", max_iter=500, random_state=seed)
    codes = _calm(model.fit_transform, np.asarray(vectors, dtype=np.float64).clip(min=0))
    return np.asarray((codes * model.components_.sum(axis=1)).argmax(axis=1), dtype=np.int64)


def sparse_codes(world: World) -> Vectors:
    """Codes of the lower activations at the maxima, over one dictionary with twice as many atoms as channels.

    The dictionary is learned from all reference images of all neurons, as a sparse autoencoder would be. It has at most
    :data:`ATOMS` atoms.
    """
    vectors = world.activations["lower activation at maximum"].astype(np.float64)
    flat = vectors.reshape(-1, vectors.shape[-1])
    flat = flat / (flat.std() or 1.0)
    model = MiniBatchDictionaryLearning(
        min(2 * flat.shape[1], ATOMS),
        transform_algorithm="lasso_lars",
        transform_alpha=0.1,
        max_iter=10,
        random_state=world.study.parameters.random,
    )
    distinct, place = np.unique(flat, axis=0, return_inverse=True)
    codes = _calm(model.fit(distinct).transform, distinct)[place.ravel()]
    return np.asarray(codes, dtype=np.float32).reshape(*vectors.shape[:2], -1)


def _calm(run: Callable[..., Any], *arguments: Any) -> Any:
    """Run something of scikit-learn that warns where a few more steps would have changed a last digit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # a graph that is not connected
        warnings.simplefilter("ignore", RuntimeWarning)
        return run(*arguments)


def random_parts(world: World) -> Labels:
    """Labels drawn at random."""
    # A stream of its own: labels drawn elsewhere from the same seed must not agree with these.
    generator = np.random.default_rng(np.random.SeedSequence(world.study.parameters.random).spawn(2)[1])
    return np.stack([generator.integers(0, int(k), world.truth.shape[1]) for k in world.k])


def ceiling_of(describe: Callable[[World], Vectors]) -> Callable[[World], Parts]:
    """What can be read from a description if one is told the truth: no contestant, but a mark to measure them by.

    It is no strict bound, since it learns from few images. A ridge classifier is trained on four fifths of a neuron's
    references and names the rest, five times. Things that drove fewer than five are left out: they can't be learned,
    and count as wrong.
    """

    def answer(world: World) -> Parts:
        labels = np.zeros(world.truth.shape, dtype=np.int64)
        for channel, own in enumerate(describe(world)):
            truth = world.truth[channel]
            things, count = np.unique(truth, return_counts=True)
            known = np.isin(truth, things[(count >= 5) & (things >= 0)])
            if len(np.unique(truth[known])) < 2:
                continue
            scaled = (own - own.mean(axis=0)) / max(float(own.std()), float(np.finfo(np.float32).tiny))
            labels[channel, ~known] = -1
            labels[channel, known] = cross_val_predict(
                RidgeClassifierCV(np.logspace(-3, 4, 10)),
                scaled[known],
                truth[known],
                cv=StratifiedKFold(5, shuffle=True, random_state=world.study.parameters.random),
            )
        return Parts(labels)

    return answer


def split_by(world: World, by: str) -> Parts:
    """Split each channel inside the network, and let its strongest part say what an image shows (Hesse et al. 2025).

    Parameters
    ----------
    world
        With a ``Conv2d`` or ``Linear`` as target, and its own input below.
    by
        ``"classes"``: by the average relevance vectors of the classes that the channel is most often relevant to, as
        many as parts are wanted; ``"parts"``: by those of PURE's parts. A channel stays whole where there are fewer
        classes than parts, a class has fewer than two images, or a part none.
    """
    study = world.study
    module = get_layer(study.model, study.parameters.target)
    labels = np.zeros(world.truth.shape, dtype=np.int64)
    owner = {}
    for channel in np.flatnonzero(world.k > 1).tolist():
        k, sources = int(world.k[channel]), channel_sources(module, channel)
        owner[channel] = np.full(sources.stop - sources.start, SHARED, dtype=np.int64)  # of a channel that stays whole
        if by == "classes":
            often = np.nan_to_num(study.classes.statistics.frequency[:, channel], nan=-1.0)
            chosen = np.argsort(-often, kind="stable")[:k]
            if len(chosen) < k or study.classes.statistics.images[chosen].min() < 2:
                continue
            # All labelled images make the vectors, since the truth is that of others.
            split = study.classes.split(channel, [study.classes.names[label] for label in chosen], held_out=False)
            measured = _measured(study, channel, split.arvs, (split.rho,))
        else:
            parts = cluster(study.circuits[channel], k, seed=study.parameters.random)
            if parts.max() + 1 < k:
                continue
            circuits = study.circuits[channel].astype(np.float64)
            arvs = np.stack([circuits[parts == part].mean(axis=0) for part in range(k)])[:, sources]
            measured = _measured(study, channel, arvs, RHOS)
            split = Split.chosen(measured, parts, tuple(map(str, range(k))))
        labels[channel] = measured.at(split.rho)[:, :-1].argmax(axis=1)
        owner[channel] = split.owner
    return Parts(labels, owner=owner)


def _measured(study: Study, channel: int, arvs: NDArray[np.float64], rhos: Sequence[float]) -> PartActivations:
    return part_activations(
        study.model,
        study.images,
        study.references.sample[channel],
        Assignment(study.parameters.target, channel, arvs, rhos),
        run=study.run,
    )


def contestants(world: World, embedders: Sequence[Embedder] = (), only: Sequence[str] = ()) -> list[Contestant]:
    """All contestants that fit a world: those that need rules or layers which it lacks are left out with a warning.

    Parameters
    ----------
    world
        Where they are to compete.
    embedders
        Each makes a contestant of its own name, by its vectors of the crops.
    only
        Names of those that are wanted; all by default.
    """
    base = world.base
    paper = {"rule": "gradient", "seed": "activation"}
    close = circuits_of(rule="gradient", seed="peak", lower=NEAREST)
    lower = activations_of("lower activation at maximum")
    found: list[tuple[Any, ...]] = [
        (PAPER, circuits_of(**paper)),
        (PEAK, circuits_of(rule="gradient", seed="peak")),
        (CLOSE, close),
        (LAYERS, several_layers),
        ("PURE + Gaussian mixture", circuits_of(**paper), by_mixture),
        ("PURE + spectral", circuits_of(**paper), by_spectrum),
        ("PURE + HDBSCAN", circuits_of(**paper), by_density),
        ("activation", activations_of("activation")),
        ("lower activation", lower),
        ("NMF", lower, by_factors),
        ("sparse codes", sparse_codes),
        (RANDOM, random_parts),
        (f"{CEILING}: {PAPER}", ceiling_of(circuits_of(**paper))),
        (f"{CEILING}: {CLOSE}", ceiling_of(close)),
    ]
    if base.references.grid:
        found.append(("activation at maximum", activations_of("activation at maximum")))
    if not only or LRP in only:
        if why := base.without_lrp:
            warnings.warn(f"{LRP} is left out: {why}", StudyWarning, stacklevel=2)
        else:
            found.append((LRP, circuits_of(rule="lrp", seed="activation")))
    own = world.study.parameters
    if closed_form(world.study.model, own.target, own.lower) is not None:
        found.append(("split by PURE's parts", lambda it: split_by(it, "parts")))
        if not only or CLASSES in only:
            if why := world.study.classes.without_labels:
                warnings.warn(f"the {CLASSES} is left out: {why}", StudyWarning, stacklevel=2)
            else:
                found.append((CLASSES, lambda it: split_by(it, "classes")))
    made = [replace(Contestant(*entry), fingerprint=entry[0]) for entry in found]
    for one in embedders:
        made.append(Contestant(one.name, embedded_by(one), fingerprint=one.fingerprint))
    return [one for one in made if not only or one.name in only]


def embedded_by(embedder: Embedder) -> Callable[[World], Vectors]:
    """An embedder's vectors of the crops."""
    return lambda world: world.study.crops.embeddings(embedder)


def load_contestant(specification: str) -> Contestant:
    """A user's own: ``"FILE.py:FUNCTION"``, a function from a world to vectors or labels.

    Raises
    ------
    ModelError
        If there is no such file or function, or the file can't be run.
    """
    path, _, name = specification.rpartition(":")
    if not path.endswith(".py"):
        raise ModelError(f"can't tell what contestant {specification!r} is; expected 'FILE.py:FUNCTION'")
    answer = function_in(Path(path), name)
    if not callable(answer):
        raise ModelError(
            f"{name!r} of {path!r} is a {type(answer).__name__}; expected a function from a world to parts"
        )

    def told(world: World) -> Any:
        try:
            return answer(world)
        except PureError:
            raise
        except Exception as problem:
            raise ModelError(f"{name!r} of {path!r} failed: {type(problem).__name__}: {problem}") from problem

    return Contestant(
        name, told, fingerprint=f"{name} {digest(answer)} {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
    )
