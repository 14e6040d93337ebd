"""Exercises of *Split a neuron into parts*: why, reference images, circuits, virtual neurons, descriptions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pure_nb.exercises.verdicts import Exercise

Array = NDArray[Any]


def _objects_at_least(labels: Array, common: float) -> int:
    from pure_nb.judges.truth import shares

    return len(shares(labels, common))


def _cosines(weights: Array) -> Array:
    unit = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def _products(weights: Array) -> float:
    return float(np.abs(weights @ weights.T)[np.triu_indices(len(weights), 1)].max())


def _welch_bound(classes: int, channels: int) -> float:
    return float(np.sqrt(max(0, classes - channels) / (channels * (classes - 1))))


def _favourites(weights: Array, objects: Array) -> int:
    frequent = np.array([np.bincount(labels).argmax() for labels in objects])
    return int((weights.argmax(axis=0) == frequent).sum())


def _best(scores: Array, n: int) -> Array:
    return np.argsort(-scores, kind="stable")[:n]


def _merged(first: Array, second: Array, n: int) -> Array:
    every = np.concatenate([first, second])
    return every[np.lexsort([every[:, 0], -every[:, 1]])][:n]


def _lists(g: Generator) -> tuple[Any, ...]:
    """Two lists of references, [n, 2]: the number of an image and its score, with ties among the scores."""
    number, score = g.permutation(40)[:12], g.integers(1, 6, 12)
    each = np.stack([number, score], axis=1).astype(float)
    return (_merged(each[:6], each[:0], 6), _merged(each[6:], each[:0], 6), 5)


def _depth(score: Array) -> float:
    return float((score[:, 0] / score[:, -1]).mean())


def _place(map_c: Array, height: int, width: int) -> Array:
    row, column = np.unravel_index(map_c.argmax(), map_c.shape)
    return np.array([(column + 0.5) * width / map_c.shape[1], (row + 0.5) * height / map_c.shape[0]])


def _corner(map_c: Array, height: int, width: int) -> Array:
    return _place(map_c, height, width) - np.array([width / map_c.shape[1], height / map_c.shape[0]]) / 2


def _relevance_vector(relevance: Array) -> Array:
    from pure_nb.methods.circuits import normalised

    return normalised(relevance.sum(axis=(1, 2)).astype(np.float32))


def _of_sum(weights: Array, lower: Array) -> Array:
    return lower * weights * max(0.0, float(weights @ lower))


def _z_plus(weights: Array, lower: Array, relevance: Array) -> Array:
    found = np.zeros(len(lower))
    for out, row in zip(relevance, weights):
        brought = row.clip(min=0) * lower
        found += out * brought / brought.sum()
    return found


def _epsilon(weights: Array, lower: Array, relevance: Array) -> Array:
    found = np.zeros(len(lower))
    for out, row in zip(relevance, weights):
        found += out * row * lower / (row @ lower)
    return found


def _returned(relevance: Array, activation: Array) -> float:
    return float(relevance.sum() / np.square(activation.clip(min=0)).sum())


def _silhouette(vectors: Array, labels: Array) -> float:
    from sklearn.metrics import silhouette_score  # late, see pure_nb._imports

    return float(silhouette_score(vectors, labels))


def _silhouette_by_hand(vectors: Array, labels: Array, *, itself: bool = False, nearest: bool = True) -> float:
    """As readers write it: with the vector itself in its heap, or with all other heaps as one."""
    distance, values = np.linalg.norm(vectors[:, None] - vectors, axis=2), []
    for row, own in zip(distance, labels):
        a = row[labels == own].sum() / ((labels == own).sum() - (not itself))
        heaps = [row[labels == other].mean() for other in set(labels) - {own}]
        b = min(heaps) if nearest else row[labels != own].mean()
        values.append((b - a) / max(a, b))
    return float(np.mean(values))


def _heaps(g: Generator) -> tuple[Any, ...]:
    labels = g.permutation([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    return (g.normal(size=(12, 3)) + labels[:, None], labels)


def _nearest_part(vectors: Array, centres: Array) -> Array:
    return np.linalg.norm(vectors[:, None] - centres, axis=2).argmin(axis=1)


def _p_value(own: float, draws: Array) -> float:
    return float((1 + (draws >= own).sum()) / (1 + len(draws)))


def _effective_parts(labels: Array) -> float:
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(np.exp(-(share * np.log(share)).sum()))


def _weighed(vectors: Array, weight: float) -> Array:
    centred = vectors - vectors.mean(axis=0)
    return np.sqrt(weight) * centred / np.sqrt(np.square(centred).sum(axis=1).mean())


def _weights(stability: Array) -> Array:
    return np.square(stability.mean(axis=1).clip(min=0))


def _labels(g: Generator) -> tuple[Any, ...]:
    return (g.integers(0, 9, 40), float(g.choice([0.05, 0.1, 0.2])))


def _layers(g: Generator) -> tuple[Any, ...]:
    weights = g.normal(size=(3, 6))
    weights[:, 0] = abs(weights[:, 0])  # so that something is handed down by each output
    return (weights, g.random(6) + 0.1, g.random(3))


EXERCISES = {
    "objects_at_least": Exercise(
        _objects_at_least,
        _labels,
        "Divide each count by the number of labels, and keep the shares that are at least `common`.",
        {
            "You count every object, whatever its share.": lambda labels, common: len(np.unique(labels)),
            "At least: an object with just that share counts, too.": lambda labels, common: int(
                (np.bincount(labels) / len(labels) > common).sum()
            ),
        },
    ),
    "largest_cosine": Exercise(
        lambda weights: float(np.abs(_cosines(weights)).max()),
        lambda g: (g.normal(size=(6, 4)),),
        "Scale each row to length 1; then the products of rows are their cosines.",
        {
            "A row's cosine with itself is 1: leave the diagonal out.": lambda weights: 1.0,
            "A cosine of -0.9 is as far from a right angle as one of 0.9: take absolute values.": lambda weights: float(
                _cosines(weights).max()
            ),
            "These are products, not cosines: divide each row by its length.": _products,
        },
    ),
    "welch_bound": Exercise(
        _welch_bound,
        lambda g: (int(g.integers(2, 60)), int(g.integers(2, 60))),
        "It is the root of (classes - channels) / (channels (classes - 1)), and 0 where there is room for all.",
        {
            "Take the root.": lambda classes, channels: _welch_bound(classes, channels) ** 2,
            "With as many channels as classes there is room for all: take max(0, classes - channels).": (
                lambda classes, channels: _welch_bound(classes, channels) if classes >= channels else np.nan
            ),
        },
    ),
    "favourites": Exercise(
        _favourites,
        lambda g: (g.normal(size=(5, 8)), g.integers(0, 5, (8, 20))),
        "The favourite class of a channel is the largest entry of its column, the frequent one the mode of its row.",
        {"Count them; that is their share.": lambda weights, objects: _favourites(weights, objects) / len(objects)},
    ),
    "best_images": Exercise(
        _best,
        lambda g: (g.integers(0, 5, 12).astype(float), 6),
        "Sort the scores from the largest to the smallest, and give numbers of images.",
        {
            "Of equal scores the earlier image comes first: sort -scores with kind='stable'.": lambda scores, n: (
                np.argsort(scores, kind="stable")[::-1][:n]
            ),
            "These are the scores; the numbers of the images are wanted.": lambda scores, n: np.sort(scores)[::-1][:n],
            "These are the weakest images.": lambda scores, n: np.argsort(scores, kind="stable")[:n],
        },
    ),
    "merged_references": Exercise(
        _merged,
        _lists,
        "Put both lists together, sort by score, of equal scores by the image's number, and keep n.",
        {
            "Of equal scores the smaller number comes first, whichever list it was in.": lambda a, b, n: np.concatenate(
                [a, b]
            )[np.argsort(-np.concatenate([a, b])[:, 1], kind="stable")][:n]
        },
    ),
    "depth": Exercise(
        _depth,
        lambda g: (np.sort(g.uniform(1, 3, (4, 7)), axis=1)[:, ::-1].copy(),),
        "Divide the first column by the last, channel by channel, and take the mean of that.",
        {
            "That is a ratio of means; the mean of each channel's ratio is asked for.": lambda score: float(
                score[:, 0].mean() / score[:, -1].mean()
            ),
            "By which factor is the last weaker: divide the first by the last.": lambda score: _depth(score[:, ::-1]),
        },
    ),
    "place_in_picture": Exercise(
        _place,
        lambda g: (g.random((3, 5)), 60, 100),
        "x comes first, from the column; a cell is width / columns wide, and its middle is half a cell further.",
        {
            "That is the corner of the cell; its middle is half a cell further.": _corner,
            "x comes first, y second.": lambda map_c, height, width: _place(map_c, height, width)[::-1],
        },
    ),
    "relevance_vector": Exercise(
        _relevance_vector,
        lambda g: (g.normal(size=(5, 3, 3)),),
        "Sum over the positions first; then divide by the sum of absolute values.",
        {
            "Take absolute values of the sums over positions, not of each position.": lambda relevance: (
                relevance.sum(axis=(1, 2)) / np.abs(relevance).sum()
            ),
            "Divide by the sum of absolute values: a plain sum may be 0.": lambda relevance: (
                relevance.sum(axis=(1, 2)) / relevance.sum()
            ),
        },
    ),
    "relevance_of_sum": Exercise(
        _of_sum,
        lambda g: (g.normal(size=5), g.random(5)),
        "The gradient of a weighted sum is its weights; relevance starts with the activation, if that is positive.",
        {
            "Relevance starts with the activation itself: multiply by max(A, 0).": lambda weights, lower: (
                weights * lower
            ),
            "A negative activation starts nothing: take max(A, 0).": lambda weights, lower: (
                lower * weights * (weights @ lower)
            ),
        },
    ),
    "z_plus": Exercise(
        _z_plus,
        _layers,
        "Each output hands its relevance down in the proportions of w+ a, where w+ is 0 for negative weights.",
        {"Those are shares of w a; z-plus sets negative weights to 0 first.": _epsilon},
    ),
    "share_returned": Exercise(
        _returned,
        lambda g: (g.normal(size=(4, 3, 3)), g.normal(size=(3, 3)) + 1),
        "Divide the sum of all relevance by the sum of max(A, 0) squared.",
        {
            "Negative activations start nothing: clip at 0 before you square.": lambda relevance, activation: float(
                relevance.sum() / np.square(activation).sum()
            ),
            "Relevance starts with A, and is multiplied by A: square what is started.": lambda relevance, activation: (
                float(relevance.sum() / activation.clip(min=0).sum())
            ),
        },
    ),
    "silhouette": Exercise(
        _silhouette,
        _heaps,
        "For each vector: a, the mean distance to the others of its heap; b, the smallest to another heap; "
        "(b - a) / max(a, b). Then the mean.",
        {
            "A vector is not one of the *others* of its heap: divide its sum by one less than the heap has.": (
                lambda vectors, labels: _silhouette_by_hand(vectors, labels, itself=True)
            ),
            "b is the mean distance to the *nearest* other heap, not to all vectors of other heaps.": (
                lambda vectors, labels: _silhouette_by_hand(vectors, labels, itself=False, nearest=False)
            ),
        },
    ),
    "nearest_part": Exercise(
        _nearest_part,
        lambda g: (g.normal(size=(9, 4)), g.normal(size=(3, 4))),
        "Take the distances of each vector to all centres, and the number of the smallest.",
        {
            "A product is no distance: a long centre would win.": lambda vectors, centres: (vectors @ centres.T).argmax(
                axis=1
            )
        },
    ),
    "p_value": Exercise(
        _p_value,
        lambda g: (float(np.round(g.random(), 1)), np.round(g.random(19), 1)),
        "Count the draws that are at least as large, the neuron itself among them, and divide by the number of all.",
        {
            "The neuron itself is one of the draws: add 1 to both counts, so that p is never 0.": lambda own, draws: (
                float((draws >= own).mean())
            ),
            "Draws that are just as large count against the neuron, too.": lambda own, draws: float(
                (1 + (draws > own).sum()) / (1 + len(draws))
            ),
            "Count the draws that are at least as large, and add 1 to both counts, for the neuron itself.": (
                lambda own, draws: float((draws > own).mean())
            ),
            "The neuron is one of the draws in the number of all, too: add 1 below as well.": lambda own, draws: float(
                (1 + (draws >= own).sum()) / len(draws)
            ),
        },
    ),
    "effective_parts": Exercise(
        _effective_parts,
        lambda g: (g.integers(0, 4, 30),),
        "The exponential of the entropy of the parts' shares.",
        {
            "That is the number of parts, whatever their sizes.": lambda labels: len(np.unique(labels)),
            "That is the entropy; take its exponential.": lambda labels: float(np.log(_effective_parts(labels))),
            "np.exp undoes np.log, and not np.log2: take the natural logarithm.": lambda labels: float(
                np.exp(np.log2(_effective_parts(labels)))
            ),
            "That is the entropy in bits; take the natural logarithm, and the exponential of the entropy.": (
                lambda labels: float(np.log2(_effective_parts(labels)))
            ),
            "Entropy has a minus sign: yours is one over the number.": lambda labels: 1 / _effective_parts(labels),
        },
    ),
    "weighed": Exercise(
        _weighed,
        lambda g: (g.normal(2, 3, size=(8, 4)), float(g.random())),
        "Take off the mean, divide so that the mean squared length is 1, and multiply by the root of the weight.",
        {
            "Squared distances shall count as much as the weight says: multiply by its root.": lambda vectors, weight: (
                np.sqrt(weight) * _weighed(vectors, weight)
            ),
            "Take the mean off first.": lambda vectors, weight: (
                np.sqrt(weight) * vectors / np.sqrt(np.square(vectors).sum(axis=1).mean())
            ),
            "One factor for all vectors: their own lengths say how far they are from the mean.": (
                lambda vectors, weight: (
                    np.sqrt(weight)
                    * (vectors - vectors.mean(axis=0))
                    / np.linalg.norm(vectors - vectors.mean(axis=0), axis=1, keepdims=True)
                )
            ),
        },
    ),
    "weights_by_stability": Exercise(
        _weights,
        lambda g: (g.normal(0, 0.3, size=(4, 10)),),
        "The mean over the neurons comes first, then what is negative counts as 0, then the square.",
        {
            "The square of a negative mean is positive: set it to 0 before.": lambda stability: np.square(
                stability.mean(axis=1)
            ),
            "The mean comes first, then the square.": lambda stability: np.square(stability).mean(axis=1),
            "A neuron may be negative, only the mean may not: clip after it.": lambda stability: np.square(
                stability.clip(min=0).mean(axis=1)
            ),
        },
    ),
}
