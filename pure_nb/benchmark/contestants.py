"""Ways of splitting neurons into parts, to be compared where the right answer is known.

A contestant is a function of a :class:`~pure_nb.benchmark.tasks.Task`. It returns descriptions of all reference
images, ``[channels, n, d]``, which are then clustered; or the parts themselves, ``[channels, n]``; or a :class:`Parts`
with all it knows. What it must not look at is ``task.truth``. It may look at ``task.k``, the number of parts wanted
of each neuron, as all of them may.

The literature: circuits (Dreyer et al. 2024), splits by average relevance vectors (Hesse et al. 2025), non-negative
factors (Lee and Seung 1999; for concepts Fel et al. 2023), sparse codes (Olshausen and Field 1996).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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

from pure_nb.benchmark.sparse import autoencoders
from pure_nb.benchmark.tasks import Task
from pure_nb.compute.blocks import each, each_neuron
from pure_nb.errors import ModelError, PureError, StudyError, StudyWarning
from pure_nb.methods.combined import COMBINED
from pure_nb.methods.descriptions import LRP, PURE, RANDOM, Description, fitting
from pure_nb.methods.ownership import RHOS, SHARED, Assignment
from pure_nb.methods.splitting import Split, part_activations
from pure_nb.methods.virtual import kmeans, on_one_thread
from pure_nb.methods.windows import channel_sources, closed_form
from pure_nb.network.digests import digest
from pure_nb.network.layers import get_layer, stage_before
from pure_nb.network.models import function_in
from pure_nb.parameters import NEAREST, Run

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

PEAK, CLOSE, LAYERS = "PURE at maximum", "PURE close", "PURE, several layers"
ORACLE, CLASSES = "oracle", "split by classes"

ATOMS = 256
"""Most atoms of a dictionary of sparse codes."""

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Clusterer = Callable[[Vectors, int, int], Labels]
"""From the vectors ``[n, d]`` of a neuron, a number of parts and a seed to labels ``[n]``, from 0, -1 for none."""


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
        :func:`pure_nb.methods.ownership.assign_sources`.
    """

    labels: Labels
    vectors: Vectors | None = None
    owner: dict[int, Labels] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A way of splitting neurons into parts.

    Attributes
    ----------
    name
        In tables and figures.
    describe
        From a task to vectors ``[channels, n, d]``, labels ``[channels, n]`` or :class:`Parts`.
    clusterer
        What clusters vectors; k-means as PURE does by default.
    fingerprint
        What stored answers are found by; "" stores none, so that a function that was changed is run again.
    oracle
        Whether it is told the truth: a mark to measure the others by, which takes no part in the comparison.

    Examples
    --------
    >>> def heights(task):
    ...     return task.study.references.score[..., None]  # [channels, n, 1]
    >>> own = Contestant("activation", heights)
    """

    name: str
    describe: Callable[[Task], Any]
    clusterer: Clusterer = field(default_factory=lambda: kmeans)
    fingerprint: str = ""
    oracle: bool = False

    def parts(self, task: Task, seed: int | None = None) -> Parts:
        """The contestant's answer for a task, clustered with the study's seed unless another is given.

        Raises
        ------
        StudyError
            If it is not of the right shape, or not finite.
        """
        found = self.describe(task)
        if isinstance(found, Parts):
            vectors = None if found.vectors is None else self._checked(found.vectors, task, (3,))
            return replace(found, labels=self._checked(found.labels, task, (2,)), vectors=vectors)
        values = self._checked(found, task, (2, 3))
        if values.ndim == 2:
            return Parts(values)
        seed = task.study.parameters.seed if seed is None else seed
        return Parts(cluster_each(values, task.k, self.clusterer, seed, task.study.run), values)

    def _checked(self, found: Any, task: Task, axes: tuple[int, ...]) -> NDArray[Any]:
        """Vectors or labels for each reference image of a task; labels as whole numbers."""
        channels, n = task.truth.shape
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


def cluster_each(vectors: Vectors, k: NDArray[np.int64], clusterer: Clusterer, seed: int, run: Run = Run()) -> Labels:
    """Every neuron's references in parts, by their vectors ``[channels, n, d]``; with ``k = 1`` it stays whole.

    Parameters
    ----------
    vectors
        Float ``[channels, n, d]``.
    k
        Number of parts of each neuron.
    clusterer
        What clusters the vectors of one neuron.
    seed
        Of the clustering.
    run
        Its ``client`` computes it, or else this process.
    """
    found = np.zeros(vectors.shape[:2], dtype=np.int64)
    several = np.flatnonzero(np.asarray(k) > 1)

    def given(number: int) -> tuple[Any, ...]:
        return vectors[several[number]], int(k[several[number]]), seed

    own = each_neuron(clusterer, given, len(several), name="parts", run=replace(run, progress=False))
    for channel, labels in zip(several, own):
        found[channel] = labels
    return found


def circuits_of(**recipe: Any) -> Callable[[Task], Vectors]:
    """PURE's description, by some recipe: ``circuits_of(rule="lrp")``; see :meth:`.Task.circuits`."""
    return lambda task: task.circuits(**recipe)


def several_layers(task: Task) -> Vectors:
    """Circuits over several lower layers side by side: the study's, the nearest, and the stage before the study's."""
    lower = task.base.parameters.lower
    names = dict.fromkeys(filter(None, (lower, task.nearest, stage_before(task.base.model, lower))))
    return np.concatenate([task.circuits(lower=name) for name in names], axis=2)


def gaussian_mixture(vectors: Vectors, k: int, seed: int) -> Labels:
    """A Gaussian mixture with one covariance for all, over the ten first principal components."""
    flat = _calm(PCA(min(10, *vectors.shape), random_state=seed).fit_transform, np.asarray(vectors, dtype=np.float64))
    flat /= flat.std() or 1.0
    mixture = GaussianMixture(k, covariance_type="tied", n_init=3, reg_covar=1e-3, random_state=seed)
    return np.asarray(_calm(mixture.fit_predict, flat), dtype=np.int64)


def spectral(vectors: Vectors, k: int, seed: int) -> Labels:
    """Spectral clustering of the graph of ten nearest neighbours."""
    near = min(10, len(vectors) - 1)
    model = SpectralClustering(k, affinity="nearest_neighbors", n_neighbors=near, random_state=seed)
    return np.asarray(_calm(model.fit_predict, vectors), dtype=np.int64)


def hdbscan(vectors: Vectors, k: int, seed: int) -> Labels:
    """HDBSCAN; it finds the number of parts itself, and calls what is between them -1."""
    return np.asarray(HDBSCAN(min_cluster_size=max(2, len(vectors) // 20), copy=True).fit_predict(vectors), np.int64)


def nmf(vectors: Vectors, k: int, seed: int) -> Labels:
    """Non-negative factors; an image belongs to the one that explains most of it."""
    model = NMF(k, init="nndsvda", max_iter=500, random_state=seed)
    codes = _calm(model.fit_transform, np.asarray(vectors, dtype=np.float64).clip(min=0))
    return np.asarray((codes * model.components_.sum(axis=1)).argmax(axis=1), dtype=np.int64)


def sparse_codes(task: Task) -> Vectors:
    """Codes of the lower activations at the maxima, over one dictionary with twice as many atoms as channels.

    The dictionary is learned from all reference images of all neurons, as a sparse autoencoder would be. It has at most
    :data:`ATOMS` atoms. A cluster can't help: each step of learning needs the one before.
    """
    vectors = task.activations["lower activation at maximum"].astype(np.float64)
    flat = vectors.reshape(-1, vectors.shape[-1])
    flat = flat / (flat.std() or 1.0)
    how = {"transform_algorithm": "lasso_lars", "transform_alpha": 0.1, "random_state": task.study.parameters.seed}
    model = MiniBatchDictionaryLearning(min(2 * flat.shape[1], ATOMS), max_iter=10, **how)
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


def random_parts(task: Task) -> Labels:
    """Labels drawn at random."""
    # A stream of its own: labels drawn elsewhere from the same seed must not agree with these.
    generator = np.random.default_rng(np.random.SeedSequence(task.study.parameters.seed).spawn(2)[1])
    return np.stack([generator.integers(0, int(k), task.truth.shape[1]) for k in task.k])


def oracle_of(describe: Callable[[Task], Vectors]) -> Callable[[Task], Parts]:
    """What can be read from a description if one is told the truth: no contestant, but a mark to measure them by.

    It is no strict bound, since it learns from few images. A ridge classifier is trained on four fifths of a neuron's
    references and names the rest, five times. Things that fewer than five of them show are left out: they can't be
    learned, and count as wrong.
    """

    def answer(task: Task) -> Parts:
        vectors, seed = describe(task), task.study.parameters.seed
        quiet = replace(task.study.run, progress=False)

        def given(channel: int) -> tuple[Any, ...]:
            return vectors[channel], task.truth[channel], seed

        return Parts(np.stack(each_neuron(_read_off, given, len(vectors), name="oracle", run=quiet)))

    return answer


@on_one_thread
def _read_off(vectors: Vectors, truth: Labels, seed: int) -> Labels:
    """What a ridge classifier says of one neuron's references; a neuron that means one thing stays whole."""
    labels = np.zeros(len(truth), dtype=np.int64)
    things, count = np.unique(truth, return_counts=True)
    known = np.isin(truth, things[(count >= 5) & (things >= 0)])
    if len(np.unique(truth[known])) < 2:
        return labels
    scaled = (vectors - vectors.mean(axis=0)) / max(float(vectors.std()), float(np.finfo(np.float32).tiny))
    labels[~known] = -1
    ridge = RidgeClassifierCV(np.logspace(-3, 4, 10))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    labels[known] = cross_val_predict(ridge, scaled[known], truth[known], cv=folds)
    return labels


def split_by(task: Task, by: str) -> Parts:
    """Split each channel inside the network, and let its strongest part say what an image shows (Hesse et al. 2025).

    Parameters
    ----------
    task
        With a ``Conv2d`` or ``Linear`` as target, and its own input below.
    by
        ``"classes"``: by the average relevance vectors of the classes that the channel is most often relevant to, as
        many as parts are wanted; ``"parts"``: by those of PURE's parts. A channel stays whole where there are fewer
        classes than parts, a class has fewer than two images, or a part none.
    """
    study, labels, owner = task.study, np.zeros(task.truth.shape, dtype=np.int64), {}
    asked: dict[int, tuple[Assignment, Labels | Split]] = {}
    for channel in np.flatnonzero(task.k > 1).tolist():
        sources = channel_sources(get_layer(study.model, study.parameters.target), channel)
        owner[channel] = np.full(sources.stop - sources.start, SHARED, dtype=np.int64)  # of a channel that stays whole
        found = (_by_classes if by == "classes" else _by_parts)(study, channel, int(task.k[channel]), sources)
        if found is not None:
            asked[channel] = found
    measure = partial(part_activations, study.model, study.images, run=study.run)
    sample = study.references.sample
    for channel, measured in each(measure, lambda one: (sample[one], asked[one][0]), list(asked), study.run):
        split = asked[channel][1]
        if not isinstance(split, Split):
            split = Split.chosen(measured, split, tuple(map(str, range(measured.k))))
        labels[channel] = measured.at(split.rho)[:, :-1].argmax(axis=1)
        owner[channel] = split.owner
    return Parts(labels, owner=owner)


def _by_classes(study: Study, channel: int, k: int, sources: slice) -> tuple[Assignment, Split] | None:
    """A channel split between the classes that it is most often relevant to, None where there are too few."""
    known = study.classes.statistics
    chosen = np.argsort(-np.nan_to_num(known.frequency[:, channel], nan=-1.0), kind="stable")[:k]
    if len(chosen) < k or known.images[chosen].min() < 2:
        return None
    # All labelled images make the vectors, since the truth is that of others.
    split = study.classes.split(channel, [study.classes.names[label] for label in chosen], held_out=False)
    return Assignment(study.parameters.target, channel, split.arvs, (split.rho,)), split


def _by_parts(study: Study, channel: int, k: int, sources: slice) -> tuple[Assignment, Labels] | None:
    """The sources of PURE's parts of a channel, and which part each reference is in; None where a part has none."""
    parts = kmeans(study.circuits[channel], k, seed=study.parameters.seed)
    if parts.max() + 1 < k:
        return None
    circuits = study.circuits[channel].astype(np.float64)
    arvs = np.stack([circuits[parts == part].mean(axis=0) for part in range(k)])[:, sources]
    return Assignment(study.parameters.target, channel, arvs, RHOS), parts


def contestants(task: Task, embedders: Sequence[Embedder] = (), only: Sequence[str] = ()) -> list[Contestant]:
    """All contestants that fit a task: those that need rules or layers which it lacks are left out with a warning.

    Parameters
    ----------
    task
        What they are to solve.
    embedders
        Each makes a contestant of its own name, by its vectors of the crops.
    only
        Names of those that are wanted; all by default but sparse autoencoders, which are there in any width and
        sparsity: ``"SAE top-k, 4x, k=8"``, see :class:`pure_nb.benchmark.sparse.SparseCodes`.
    """
    answers = {name: partial(_described, one) for name, one in task.descriptions(embedders).items()}
    pure, lower = answers[PURE], answers["lower activation at maximum"]
    close = circuits_of(rule="gradient", start="peak", lower=NEAREST)
    clusterers = {"PURE + Gaussian mixture": gaussian_mixture, "PURE + spectral": spectral, "PURE + HDBSCAN": hdbscan}
    oracles = {f"{ORACLE}: {PURE}": oracle_of(pure), f"{ORACLE}: {CLOSE}": oracle_of(close)}
    found: dict[str, Callable[[Task], Any]] = {
        PURE: pure,
        PEAK: circuits_of(rule="gradient", start="peak"),
        CLOSE: close,
        LAYERS: several_layers,
        **dict.fromkeys(clusterers, pure),
        "activation": answers["activation"],
        "lower activation": lower,
        "NMF": lower,
        "sparse codes": sparse_codes,
        RANDOM: random_parts,
        **oracles,
        **{name: answers[name] for name in ("activation at maximum", COMBINED, LRP) if name in answers},
        **autoencoders(only),
    }
    own = task.study.parameters
    if closed_form(task.study.model, own.target, own.lower) is not None:
        found |= {"split by PURE's parts": partial(split_by, by="parts"), CLASSES: partial(split_by, by="classes")}
    found = fitting({name: answer for name, answer in found.items() if not only or name in only}, task.base)
    if CLASSES in found and (why := task.study.classes.without_labels):
        warnings.warn(f"the {CLASSES} is left out: {why}", StudyWarning, stacklevel=2)
        del found[CLASSES]
    clusterers["NMF"] = nmf
    made = [
        Contestant(name, answer, clusterers.get(name, kmeans), name, name in oracles) for name, answer in found.items()
    ]
    made += [Contestant(one.name, answers[one.name], fingerprint=one.fingerprint) for one in embedders]
    return [one for one in made if not only or one.name in only]


def _described(description: Description, task: Task) -> Vectors:
    return description.vectors()


def load_contestant(specification: str) -> Contestant:
    """A user's own: ``"FILE.py:FUNCTION"``, a function from a task to vectors or labels.

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
        raise ModelError(f"{name!r} of {path!r} is a {type(answer).__name__}; expected a function from a task to parts")

    def told(task: Task) -> Any:
        try:
            return answer(task)
        except PureError:
            raise
        except Exception as problem:
            raise ModelError(f"{name!r} of {path!r} failed: {type(problem).__name__}: {problem}") from problem

    return Contestant(
        name, told, fingerprint=f"{name} {digest(answer)} {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
    )
