"""Exercises of *Judge the parts*: what CLIP says, how we would know, scores on trial."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pure_nb.exercises.verdicts import Exercise

Array = NDArray[Any]


def _distances(g: Generator) -> tuple[Any, ...]:
    """Distances [n, n] of some crops, and their parts."""
    points = g.normal(size=(9, 3))
    return (np.linalg.norm(points[:, None] - points, axis=2), g.permutation([0, 0, 0, 1, 1, 1, 1, 2, 2]))


def _gap(distances: Array, labels: Array) -> float:
    upper = np.triu_indices(len(labels), 1)
    same = (labels[:, None] == labels)[upper]
    return float(distances[upper][~same].mean() - distances[upper][same].mean())


def _gap_with_itself(distances: Array, labels: Array) -> float:
    same = labels[:, None] == labels
    return float(distances[~same].mean() - distances[same].mean())


def _standard_error(values: Array) -> float:
    from pure_nb.methods.statistics import mean_and_error

    return mean_and_error(values)[1]


def _alignment(first: Array, second: Array) -> float:
    upper = np.triu_indices(len(first), 1)
    return float(np.corrcoef(first[upper], second[upper])[0, 1])


def _two_distances(g: Generator) -> tuple[Any, ...]:
    return (_distances(g)[0], _distances(g)[0])


def _said(scores: Array, stability: float) -> int:
    return int(scores.argmax()) if stability >= 0.95 else -1


def _dominant(contributions: Array) -> Array:
    share = contributions.max(axis=1) / contributions.sum(axis=1)
    return np.where(share >= 2 / 3, contributions.argmax(axis=1), -1)


def _adjusted_rand(truth: Array, labels: Array) -> float:
    from sklearn.metrics import adjusted_rand_score  # late, see pure_nb._imports

    return float(adjusted_rand_score(truth, labels))


def _rand(truth: Array, labels: Array) -> float:
    from sklearn.metrics import rand_score  # late, see pure_nb._imports

    return float(rand_score(truth, labels))


def _partitions(g: Generator) -> tuple[Any, ...]:
    truth = g.integers(0, 2, 14)
    return (truth, np.where(g.random(14) < 0.7, truth, g.integers(0, 3, 14)))


def _two_parts(g: Generator) -> tuple[Any, ...]:
    fewer = int(g.choice([1, 13]))
    return (g.permutation([0] * 5 + [1] * 9), g.permutation([0] * fewer + [1] * (14 - fewer)))


def _merged_map(first: Array, second: Array, scores: tuple[float, float]) -> Array:
    return first / scores[0] + second / scores[1]


def _in_one_pass(activation: Array, vectors: Array) -> float:
    from pure_nb.methods.measures import monosemanticity

    return monosemanticity(activation, vectors)


def _with_itself(activation: Array, vectors: Array) -> float:
    scaled = (activation - activation.min()) / (activation.max() - activation.min())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(np.square(scaled @ unit).sum() / scaled.sum() ** 2)


def _clarity(vectors: Array) -> float:
    from pure_nb.methods.measures import clarity

    return float(clarity(vectors))


def _auc(several: Array, single: Array) -> float:
    difference = np.asarray(several)[:, None] - single
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


EXERCISES = {
    "gap": Exercise(
        _gap,
        _distances,
        "Mean distance over pairs of different parts, less that over pairs of the same part.",
        {
            "A crop is no pair with itself: leave the diagonal out.": _gap_with_itself,
            "Inter less intra: yours has the other sign.": lambda distances, labels: -_gap(distances, labels),
        },
    ),
    "standard_error": Exercise(
        _standard_error,
        lambda g: (g.normal(size=12),),
        "The standard deviation, with n - 1, over the root of n.",
        {
            "Divide by the root of n, not by n: that is the mistake of the paper's script.": lambda values: float(
                values.std(ddof=1) / len(values)
            ),
            "The mean is of the same values: divide the sum of squared deviations by n - 1, as std(ddof=1) does.": (
                lambda values: float(values.std() / np.sqrt(len(values)))
            ),
            "Two slips: take std(ddof=1), as the mean is of the same values, and divide it by the root of n.": (
                lambda values: float(values.std() / len(values))
            ),
            "That is the standard deviation of the values; their mean varies less: divide by the root of n.": (
                lambda values: float(values.std(ddof=1))
            ),
        },
    ),
    "alignment_of": Exercise(
        _alignment,
        _two_distances,
        "Pearson's correlation over all pairs of two different crops.",
        {
            "The zeros on the diagonal are no pairs: leave them out.": lambda first, second: float(
                np.corrcoef(first.ravel(), second.ravel())[0, 1]
            )
        },
    ),
    "word_or_unsure": Exercise(
        _said,
        lambda g: (g.random(5), float(g.choice([0.5, 0.9, 0.94, 0.95, 0.99]))),
        "The number of the largest score, or -1 where the stability is below 0.95.",
        {
            "An answer should say how sure it is: give -1 if it is not stable.": lambda scores, stability: (
                scores.argmax()
            ),
            "A stability of just 0.95 is enough.": lambda scores, stability: (
                scores.argmax() if stability > 0.95 else -1
            ),
        },
    ),
    "clearly_dominant": Exercise(
        _dominant,
        lambda g: (g.random((12, 2)) + 0.05,),
        "Divide the larger contribution by the sum of both; where that is below two thirds the answer is -1.",
        {"In a mixed image no source is clearly dominant: give -1 there.": lambda given: given.argmax(axis=1)},
    ),
    "adjusted_rand": Exercise(
        _adjusted_rand,
        _partitions,
        "Count pairs: together in both (s), in the truth (a), in the parts (b), all (n). It is "
        "(s - ab/n) / ((a + b)/2 - ab/n).",
        {"That is the share of pairs agreed on; subtract what chance would agree on, and scale.": _rand},
    ),
    "accuracy_of_two": Exercise(
        lambda truth, labels: max(float((truth == labels).mean()), float((truth != labels).mean())),
        _two_parts,
        "Count the images whose part has the source's number.",
        {
            "Parts have no order: if most are wrong, exchange the two.": lambda truth, labels: float(
                (truth == labels).mean()
            )
        },
    ),
    "merged_map": Exercise(
        _merged_map,
        lambda g: (g.random((2, 3)), g.random((2, 3)), (float(g.uniform(1, 3)), float(g.uniform(1, 3)))),
        "Divide each map by its own channel's mean score, and add.",
        {"A channel of larger activations would win: divide each by its own mean score.": lambda a, b, scores: a + b},
    ),
    "ms_in_one_pass": Exercise(
        _in_one_pass,
        lambda g: (g.random(9), g.normal(size=(9, 4))),
        "Scale the activations from 0 to 1 and the vectors to length 1; the square of a sum is the sum over all pairs.",
        {"The pairs of an image with itself are in it: take the sum of squares off, above and below.": _with_itself},
    ),
    "clarity_of": Exercise(
        _clarity,
        lambda g: (g.normal(size=(8, 4)),),
        "The mean cosine of all pairs of two different images.",
        {
            "The cosine of an image with itself is 1, and says nothing: leave it out.": lambda vectors: float(
                np.square((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)).sum()
            )
        },
    ),
    "auc": Exercise(
        _auc,
        lambda g: (g.integers(0, 6, 9).astype(float), g.integers(0, 5, 7).astype(float)),
        "Over all pairs, one of each kind: how often is the first score larger?",
        {
            "Equal scores count one half.": lambda several, single: float((several[:, None] > single).mean()),
            "The other way round: a score should be larger for several meanings.": lambda several, single: (
                1 - _auc(several, single)
            ),
        },
    ),
    "scaled_activations": Exercise(
        lambda activation: (activation - activation.min()) / (activation.max() - activation.min()),
        lambda g: (g.uniform(1, 5, 6),),
        "The smallest becomes 0, the largest 1.",
        {"Take the smallest off first.": lambda activation: activation / activation.max()},
    ),
}
