"""The field's measures of how many meanings a unit has, each a small function on arrays.

All but the last three ask a judge: vectors of pictures by an embedder, whose cosine says how alike two pictures are. A
*unit* is whatever activates: a channel, one of its parts, a feature of a dictionary. The chapter *Scores on trial*
tells what it takes to trust such a number.

Not to be mixed up with :mod:`pure_nb.judges.evaluation`, which measures by distances as PURE's paper does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.errors import ArgumentError, EvaluationError
from pure_nb.methods._shapes import Bool, Float, Int
from pure_nb.methods.virtual import on_one_thread
from pure_nb.network.layers import flatten_positions

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeClassifier

AT_ONCE = 512
"""Units that are compared with all others at once."""

FEW = 10
"""Samples that stand in for a cluster of one, see :func:`polysemanticity`."""


def _unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Vectors of length 1."""
    vectors = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or not length.all():
        raise EvaluationError(
            "a judge's vectors must be finite and not all zeros, or they have no direction to compare"
        )
    return vectors / length


def monosemanticity(activation: Float[NDArray[Any], " m"], vectors: Float[NDArray[Any], "n d"]) -> float:
    """The monosemanticity score of a unit (MS; Pach et al. 2025, NeurIPS): how alike the images are that activate it.

    The mean cosine of all pairs of images, weighted by the product of their activations, scaled from 0 to 1.

    Parameters
    ----------
    activation
        ``[n]``: the unit's, one for each image.
    vectors
        ``[n, d]``: the judge's, of the same images.

    Returns
    -------
    float
        At most 1, which is one meaning. NaN where no two images activate the unit more than its least one.
    """
    activation, unit = np.asarray(activation, dtype=np.float64), _unit(vectors)
    if activation.shape != unit.shape[:1]:
        raise EvaluationError(f"{len(unit)} vectors need as many activations, got {list(activation.shape)}")
    if not len(unit) or (width := np.ptp(activation)) == 0:
        return float("nan")
    weight = (activation - activation.min()) / width
    return float(_of_sums(weight @ unit, weight.sum(), weight @ weight))


def _of_sums(vector: NDArray[np.float64], total: Any, squares: Any) -> NDArray[np.float64]:
    """The score by ``sum a u``, ``sum a`` and ``sum a²``: pairs are all products less those of an image with itself."""
    pairs = np.asarray(total**2 - squares)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = ((vector**2).sum(axis=-1) - squares) / pairs
    return np.where(pairs > 1e-12 * total**2, found, np.nan)  # one image alone has no pair


class Monosemanticity:
    """Accumulator of :func:`monosemanticity` of every channel of a layer, over all images and in one pass.

    That one pass over the images will do is told by MonoLoss (arXiv 2602.12403). What it keeps does not grow with them.

    Parameters
    ----------
    layer
        Name of the layer; an image's activation is the largest over the positions.
    vectors
        float ``[images, d]``: the judge's vectors of all images; may be mapped from a file.
    """

    SUMS = ("weighted", "total", "squares")

    def __init__(self, layer: str, vectors: Float[NDArray[np.float32], "images d"]) -> None:
        self.layer, self.vectors = layer, vectors
        self.layers: tuple[str, ...] = (layer,)
        self.leaf: str | None = None
        self._state: dict[str, NDArray[Any]] = {}

    def update(self, samples: Int[NDArray[np.int64], " b"], outputs: Mapping[str, Tensor]) -> None:
        """Take in the layer's outputs, ``[B, C]``, ``[B, T, C]`` or ``[B, C, H, W]``, for a batch of images."""
        values = flatten_positions(outputs[self.layer].detach()).amax(dim=2).double().cpu().numpy()
        unit = _unit(self.vectors[samples])
        self._take(
            {
                "weighted": values.T @ unit,
                "total": values.sum(axis=0),
                "squares": (values**2).sum(axis=0),
                "vectors": unit.sum(axis=0),
                "images": np.array(len(values)),
                "least": values.min(axis=0),
                "most": values.max(axis=0),
            }
        )

    def merge(self, other: Monosemanticity) -> None:
        """Take in what another accumulator of the same layer has taken in."""
        if other._state:
            self._take(other._state)

    def _take(self, new: Mapping[str, NDArray[Any]]) -> None:
        how = {"least": np.minimum, "most": np.maximum}
        own = self._state
        self._state = {name: how.get(name, np.add)(own[name], value) if own else value for name, value in new.items()}

    def result(self) -> Float[NDArray[np.float64], " channels"]:
        """The score of each channel; NaN for those that are the same for all images."""
        s = self._state
        if not s:
            raise ArgumentError(f"no image was seen, so layer {self.layer!r} has no monosemanticity score")
        n, least = s["images"], s["least"]
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = 1 / (s["most"] - least)
            vector = (s["weighted"] - least[:, None] * s["vectors"]) * scale[:, None]
            total = (s["total"] - n * least) * scale
            squares = (s["squares"] - 2 * least * s["total"] + n * least**2) * scale**2
            return _of_sums(vector, total, squares)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that was taken in, as arrays; see :meth:`restored`."""
        return dict(self._state)

    def restored(self, state: Mapping[str, NDArray[Any]]) -> Monosemanticity:
        """A new accumulator of the same settings, holding a saved state; empty if the state is."""
        other = Monosemanticity(self.layer, self.vectors)
        other._state = {name: np.array(value) for name, value in state.items()}
        return other


def clarity(vectors: Float[NDArray[Any], "*units n d"]) -> Float[NDArray[np.float64], "*units"]:
    """How alike a unit's images are: their mean cosine (SemanticLens, Dreyer et al. 2025).

    It is :func:`monosemanticity` with equal weights.

    Parameters
    ----------
    vectors
        ``[..., n, d]``: the judge's, of the unit's images.

    Returns
    -------
    ndarray
        ``[...]``: from -1 / (n - 1) to 1, which is one meaning; NaN for a single image.
    """
    unit = _unit(vectors)
    n = unit.shape[-2]
    if n < 2:
        return np.full(unit.shape[:-2], np.nan)
    return np.asarray((n * (unit.mean(axis=-2) ** 2).sum(axis=-1) - 1) / (n - 1))


def polysemanticity(vectors: Float[NDArray[Any], "n d"], *, seed: int = 123) -> float:
    """How far apart the two halves of a unit's images are (SemanticLens, Dreyer et al. 2025).

    One less the cosine of the two centres of k-means. Where one of the two is a single image, the centre of all is
    compared with each of the first :data:`FEW` images instead, as in the paper's package (0.2.1).

    Parameters
    ----------
    vectors
        ``[n, d]``: the judge's, of the unit's images, the strongest first. They are clustered as they are, as there.
    seed
        Of the clustering.

    Returns
    -------
    float
        From 0, which is one meaning, to 2; NaN for fewer than two images.
    """
    from sklearn.cluster import KMeans  # late, see pure_nb._imports

    vectors = np.asarray(vectors)
    _unit(vectors)  # raises
    if len(vectors) < 2:
        return float("nan")
    found = on_one_thread(KMeans(2, n_init=10, random_state=seed).fit)(vectors)
    if np.bincount(found.labels_, minlength=2).min() >= 2:
        return float(1 - clarity(found.cluster_centers_))
    middle = vectors.mean(axis=0)
    return float(1 - np.mean([clarity(np.stack([middle, one])) for one in vectors[:FEW]]))


def redundancy(
    means: Float[NDArray[Any], "units d"], owner: Int[NDArray[np.int64], " units"] | None = None
) -> Float[NDArray[np.float64], " units"]:
    """How alike each unit is to that which is most alike (SemanticLens, Dreyer et al. 2025; there their mean).

    Parameters
    ----------
    means
        ``[units, d]``: the mean of the judge's vectors of each unit's images.
    owner
        int ``[units]``: units of one owner, such as the parts of a neuron, are not compared; by default each has its
        own.

    Returns
    -------
    ndarray
        ``[units]``: the largest cosine to another one's mean; 1 says the same twice. NaN where there is none.
    """
    unit = _unit(means)
    owner = np.arange(len(unit)) if owner is None else owner
    found = np.full(len(unit), -np.inf)
    for first in range(0, len(unit), AT_ONCE):  # all pairs may be many
        own = slice(first, first + AT_ONCE)
        cosines = unit[own] @ unit.T
        cosines[owner[own, None] == owner] = -np.inf
        found[own] = cosines.max(axis=1)
    return np.where(np.isfinite(found), found, np.nan)


def class_purity(labels: Int[NDArray[np.int64], " n"], activation: Float[NDArray[Any], " m"] | None = None) -> float:
    """The share of a unit's images that is of the commonest class among them (MonoLoss, arXiv 2602.12403).

    Parameters
    ----------
    labels
        int ``[n]``: of the images that activate it; a negative one is of no class, and is in no one's share.
    activation
        ``[n]``, not negative: weighs the images; all alike by default.

    Returns
    -------
    float
        From 0 to 1, which is one class; NaN without images.
    """
    labels = np.asarray(labels)
    weight = np.ones(len(labels)) if activation is None else np.asarray(activation, dtype=np.float64)
    if weight.shape != labels.shape or (weight < 0).any():
        raise EvaluationError(f"{len(labels)} labels need as many activations of at least 0")
    if not weight.sum():
        return float("nan")
    known = labels >= 0
    share = np.bincount(labels[known], weight[known], minlength=1).max()
    return float(share / weight.sum())


def description_similarity(descriptions: Float[NDArray[Any], "m d"]) -> float:
    """How alike several descriptions of a unit are: their mean cosine (PRISM, there of language models).

    To be held against that of descriptions drawn from many units.

    Parameters
    ----------
    descriptions
        ``[m, d]``: vectors of the words or sentences.

    Returns
    -------
    float
        From -1 / (m - 1) to 1; low is polysemantic; NaN for a single one.
    """
    return float(clarity(descriptions))


def psi(
    vectors: Float[NDArray[Any], "n d"],
    parts: Int[NDArray[np.int64], " n"],
    labels: Int[NDArray[np.int64], " n"],
    words: Float[NDArray[Any], "words d"],
    *,
    draws: int = 100,
    seed: int = 0,
) -> float:
    """The polysemanticity index, as far as it is public (PSI; Gupta and Kumar 2025, arXiv 2508.16950, abstract).

    A product of three, each calibrated by its own null: how good the clusters are, how far they agree with labels, and
    how distinct the words are that CLIP has for them. *Filled in here*, since the calibration was not to be read: the
    silhouette by cosine; the adjusted mutual information; one less the mean cosine of the clusters' nearest words. The
    null of each shuffles the parts; of a value v whose draws have the mean m, (v - m) / (1 - m) is taken, at least 0.

    Parameters
    ----------
    vectors
        ``[n, d]``: CLIP's vectors of the unit's images.
    parts
        int ``[n]``: the cluster of each image; those of negative ones are left out.
    labels
        int ``[n]``: the class of each image; below 0 is not known.
    words
        ``[words, d]``: CLIP's vectors of a vocabulary.
    draws, seed
        Of each null.

    Returns
    -------
    float
        From 0 to 1, high is polysemantic; 0 for one part.
    """
    from sklearn.metrics import adjusted_mutual_info_score, silhouette_score

    used = np.asarray(parts) >= 0
    unit, own, labels, words = _unit(vectors)[used], np.asarray(parts)[used], np.asarray(labels)[used], _unit(words)
    every = np.unique(own)
    if len(every) < 2 or len(every) == len(own):
        return 0.0

    def distinct(parts: NDArray[np.int64]) -> float:
        nearest = words[[int(np.argmax(words @ unit[parts == part].mean(axis=0))) for part in every]]
        return 1 - float(clarity(nearest))

    measures = (
        lambda parts: float(silhouette_score(unit, parts, metric="cosine")),
        lambda parts: float(adjusted_mutual_info_score(labels[labels >= 0], parts[labels >= 0])),
        distinct,
    )
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(own) for _ in range(draws)]
    found = 1.0
    for measure in measures:
        mean = float(np.mean([measure(one) for one in shuffled]))
        found *= max(0.0, (measure(own) - mean) / (1 - mean)) if mean < 1 else 0.0
    return found


def fms(
    features: Float[NDArray[Any], "n features"], concept: Bool[NDArray[np.bool_], " n"], *, most: int = 5, seed: int = 0
) -> float:
    """The feature monosemanticity score of a concept: whether it is in one feature, and in that one alone.

    ``acc0 (local + global) / 2``: acc0 is how well the best single feature tells the concept, local how much is lost
    without it, global how little is gained by more (Härle et al. 2025). *Filled in here*: balanced accuracies on the
    half of the images that a decision tree has not seen, of a tree of depth 1, of such a one without that feature, and
    of trees of depth 2 to ``most``.

    Parameters
    ----------
    features
        ``[n, features]``: activations of a layer's units in images.
    concept
        bool ``[n]``: in which images the concept is.
    most, seed
        The deepest tree, and what draws the halves.

    Returns
    -------
    float
        From 0 to 1, which is one feature for it and nothing else needed; chance alone is below a quarter.
    """
    return fms_of_best(features, concept, most=most, seed=seed)[0]


def fms_of_best(
    features: Float[NDArray[Any], "n features"], concept: Bool[NDArray[np.bool_], " n"], *, most: int = 5, seed: int = 0
) -> tuple[float, int]:
    """:func:`fms` of a concept, and which feature it is that tells it best.

    Parameters
    ----------
    features, concept, most, seed
        As for :func:`fms`.
    """
    from sklearn.tree import DecisionTreeClassifier

    features, concept = np.asarray(features), np.asarray(concept, dtype=bool)
    if min(concept.sum(), (~concept).sum()) < 4:
        raise EvaluationError("a concept must be in at least four of the images, and missing in as many")
    rng = np.random.default_rng(seed)
    first = np.zeros(len(concept), dtype=bool)
    for kind in (concept, ~concept):  # as many of each kind in either half
        own = rng.permutation(np.flatnonzero(kind))
        first[own[: len(own) // 2]] = True

    def tree(values: NDArray[Any], depth: int) -> tuple[float, DecisionTreeClassifier]:
        made = DecisionTreeClassifier(max_depth=depth, class_weight="balanced", random_state=seed)
        right = made.fit(values[first], concept[first]).predict(values[~first]) == concept[~first]
        return float(np.mean([right[concept[~first] == kind].mean() for kind in (True, False)])), made

    best, stump = tree(features, 1)
    feature = max(0, int(stump.tree_.feature[0]))
    without, _ = tree(np.delete(features, feature, axis=1), 1)
    local = np.clip(2 * (best - without), 0, 1)
    more = 1 - np.mean([tree(features, depth)[0] - best for depth in range(2, most + 1)])
    return float(best * (local + np.clip(more, 0, 1)) / 2), feature


def iou(
    maps: Float[NDArray[Any], "n h w"], masks: Bool[NDArray[np.bool_], "m mh mw"], *, share: float = 0.005
) -> float:
    """How far a unit's activation maps cover a concept (network dissection, Bau et al. 2017).

    Parameters
    ----------
    maps
        ``[n, h, w]``: the unit's, scaled up to the masks.
    masks
        bool ``[n, h, w]``: where the concept is.
    share
        Of all positions in all images, that which counts as active: those of the largest activation.

    Returns
    -------
    float
        From 0 to 1: positions that are active and of the concept, of those that are either. The paper calls a unit a
        detector above 0.04. NaN where there is neither.
    """
    maps, masks = np.asarray(maps), np.asarray(masks, dtype=bool)
    if maps.shape != masks.shape:
        raise EvaluationError(f"maps {list(maps.shape)} and masks {list(masks.shape)} must have the same shape")
    if not 0 < share < 1:
        raise ArgumentError(f"share must be above 0 and below 1, got {share}")
    active = maps > np.quantile(maps, 1 - share)
    either = (active | masks).sum()
    return float((active & masks).sum() / either) if either else float("nan")
