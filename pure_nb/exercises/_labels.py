"""Exercises of *With labels*: average relevance vectors, WordNet, splits, reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pure_nb.exercises.verdicts import Exercise

Array = NDArray[Any]


def _arv(weight: Array, activations: Array, labels: Array, label: int) -> Array:
    return weight * activations[labels == label].sum(axis=(2, 3)).mean(axis=0)


def _stack(g: Generator) -> tuple[Any, ...]:
    """Weights of a 1x1 convolution's channel, maps of its sources [n, sources, h, w], labels and one of them."""
    return (g.normal(size=4), g.random((8, 4, 2, 2)), g.permutation([0, 0, 0, 1, 1, 1, 1, 2]), int(g.integers(0, 3)))


def _relevant_share(attribution: Array, channel: int) -> float:
    from pure_nb.methods.relevance import relevant_channels

    return float(relevant_channels(attribution)[:, channel].mean())


def _plain_share(attribution: Array, channel: int) -> float:
    return float((attribution[:, channel] >= 0.03 * attribution.sum(axis=1)).mean())


def _strongest(attribution: Array, part: float) -> int:
    from pure_nb.methods.relevance import relevant_channels

    return int(relevant_channels(attribution[None], cumulative_share=part).sum())


def _cosine(first: Array, second: Array) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def _wu_palmer(first: list[str], second: list[str]) -> float:
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    return 2 * common / (len(first) + len(second))


def _ways(g: Generator) -> tuple[Any, ...]:
    """Two ways down from the root of a tree of meanings that part somewhere, and may pass the same word later."""
    shared = int(g.integers(1, 4))
    ways = [[*range(shared), *g.integers(20, 22, int(g.integers(3, 6)))] for _ in range(2)]
    return ([f"m{n}" for n in ways[0]], [f"m{n}" for n in ways[1]])


def _mantel_p(real: float, swapped: Array) -> float:
    return float((1 + (swapped >= real).sum()) / (1 + len(swapped)))


def _swapped(likeness: Array, order: Array) -> Array:
    return likeness[np.ix_(order, order)]


def _owner(first: Array, second: Array, rho: float) -> Array:
    from pure_nb.methods.ownership import assign_sources

    return assign_sources(np.stack([first, second]), rho)


def _published(first: Array, second: Array, rho: float) -> Array:
    from pure_nb.methods.ownership import assign_sources

    return assign_sources(np.stack([first, second]), rho, "published")


def _three_parts(weight: Array, owner: Array) -> Array:
    return np.stack([np.where(owner == 1, 0, weight), np.where(owner == 0, 0, weight), np.where(owner < 0, weight, 0)])


def _bounded(own: Array, other: Array) -> float:
    own, other = own.clip(min=0).sum(), other.clip(min=0).sum()
    return float(own / (own + other))


def _lost(before: Array, after: Array) -> float:
    return float((before - after).mean() / before.mean())


def _by_part(relevance: Array, part: Array, parts: int) -> Array:
    return np.array([relevance[part == number].sum() for number in [*range(parts), -1]]) / relevance.sum()


def _unusual(vectors: Array) -> Array:
    from pure_nb.reasons.class_parts import unusual

    return unusual(vectors)


def _own_mean_too(vectors: Array) -> Array:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.array([1 - _cosine(one, unit.mean(axis=0)) for one in unit])


def _like_it(vectors: Array, members: Array, share: float = 0.95) -> Array:
    centre = members.mean(axis=0)
    limit = np.quantile(np.linalg.norm(members - centre, axis=1), share)
    return np.linalg.norm(vectors - centre, axis=1) <= limit


EXERCISES = {
    "mean_relevance_vector": Exercise(
        _arv,
        _stack,
        "Sum each map over its positions, take the mean over the images of the class, multiply by the weights.",
        {
            "Sum over the positions; the mean is over images alone.": lambda weight, maps, labels, label: (
                weight * maps[labels == label].mean(axis=(0, 2, 3))
            ),
            "Only the images of the class count.": lambda weight, maps, labels, label: (
                weight * maps.sum(axis=(2, 3)).mean(axis=0)
            ),
        },
    ),
    "share_of_images": Exercise(
        _relevant_share,
        lambda g: (g.normal(0.1, 1, size=(10, 24)), int(g.integers(0, 24))),
        "In each image: is the channel's attribution positive, and at least 0.03 of the sum of the positive ones?",
        {"Only positive attribution is shared out: clip at 0 before you sum.": _plain_share},
    ),
    "strongest_together": Exercise(
        _strongest,
        lambda g: (g.normal(0.5, 1, size=12), float(g.choice([0.5, 0.8, 0.9]))),
        "Sort the positive attributions from the largest, add them up, and count until the part is reached.",
        {"The channel with which the part is reached counts, too.": lambda given, part: _strongest(given, part) - 1},
    ),
    "cosine_of": Exercise(
        _cosine,
        lambda g: (g.normal(size=6), g.normal(size=6)),
        "The product of the vectors over the product of their lengths.",
        {"Negative cosines are the strongest cases: keep the sign.": lambda a, b: abs(_cosine(a, b))},
    ),
    "wu_palmer_of": Exercise(
        _wu_palmer,
        _ways,
        "Twice the number of steps both ways share from the root, over the sum of their lengths.",
        {
            "The ways part once and for all: stop counting at the first step that differs.": lambda first, second: (
                2 * sum(a == b for a, b in zip(first, second)) / (len(first) + len(second))
            )
        },
    ),
    "mantel_p": Exercise(
        _mantel_p,
        lambda g: (float(np.round(g.normal(0, 0.1), 1)), np.round(g.normal(0, 0.1, 19), 1)),
        "Count the swapped names that do at least as well.",
        {
            "The real names are one of the orders: add 1 to both counts.": lambda real, swapped: float(
                (swapped >= real).mean()
            ),
            "Names that do just as well count against the real ones, too.": lambda real, swapped: float(
                (1 + (swapped > real).sum()) / (1 + len(swapped))
            ),
            "Count those that do at least as well, and add 1 to both counts, for the real names.": (
                lambda real, swapped: float((swapped > real).mean())
            ),
            "The real names are one of the orders in the number of all, too: add 1 below as well.": (
                lambda real, swapped: float((1 + (swapped >= real).sum()) / len(swapped))
            ),
        },
    ),
    "swapped_names": Exercise(
        _swapped,
        lambda g: (np.round(g.random((5, 5)), 2), g.permutation(5)),
        "Rows and columns get the same new order: np.ix_(order, order).",
        {"Rows and columns are the same classes: swap both.": lambda likeness, order: likeness[order]},
    ),
    "owner_of": Exercise(
        _owner,
        lambda g: (g.normal(size=8), g.normal(size=8), float(g.choice([0.3, 0.6, 0.9]))),
        "0 where rho times the first is larger than the second, 1 the other way round, and -1 elsewhere.",
        {"Negative relevance is no evidence for a class: set it to 0 first.": _published},
    ),
    "three_parts": Exercise(
        _three_parts,
        lambda g: (g.normal(size=9), g.integers(-1, 2, 9)),
        "The first part lacks the sources of owner 1, the second those of owner 0; the residual has those of -1 alone.",
        {
            "A part keeps the shared sources, too: take away only those of the other class.": lambda weight, owner: (
                np.stack([np.where(owner == number, weight, 0) for number in (0, 1, -1)])
            )
        },
    ),
    "whole_of_parts": Exercise(
        lambda parts, residual: parts.sum(axis=0) - (len(parts) - 1) * residual,
        lambda g: (g.normal(size=(int(g.integers(2, 5)), 4)), g.normal(size=4)),
        "The shared sources are in every part, and may count once only.",
        {"That is right for two parts: with k of them take k - 1 residuals off.": lambda p, r: p.sum(axis=0) - r},
    ),
    "bounded_score": Exercise(
        _bounded,
        lambda g: (g.normal(0.3, 1, 12), g.normal(0, 1, 12)),
        "Clip both at 0, sum, and divide the first by the sum of both.",
        {
            "Only what is positive is active: clip both at 0 before you sum.": lambda own, other: float(
                own.sum() / (own.sum() + other.sum())
            ),
            "That can be any number; divide by the sum of both.": lambda own, other: float(
                own.clip(min=0).sum() / other.clip(min=0).sum()
            ),
        },
    ),
    "output_lost": Exercise(
        _lost,
        lambda g: (g.uniform(1, 9, 10), g.uniform(0, 4, 10)),
        "The mean loss over the mean output before.",
        {
            "Divide the means, not each image: small outputs would count too much.": lambda before, after: float(
                ((before - after) / before).mean()
            )
        },
    ),
    "by_parts": Exercise(
        _by_part,
        lambda g: (g.normal(1, 1, 12), g.integers(-1, 3, 12), 3),
        "Sum the relevance of each part, last that of -1, and divide by the sum of all.",
        {
            "What is unlike any part (-1) belongs to the output, too: give its share last.": lambda r, part, parts: (
                _by_part(r, part, parts)[:-1]
            ),
            "Those are sums; divide them by the whole relevance.": lambda r, part, parts: (
                _by_part(r, part, parts) * r.sum()
            ),
        },
    ),
    "how_unusual": Exercise(
        _unusual,
        lambda g: (g.random((6, 4)),),
        "Scale to length 1; 1 less the cosine with the mean of the others.",
        {"An image is not to be compared with itself: leave it out of the mean.": _own_mean_too},
    ),
    "like_the_part": Exercise(
        _like_it,
        lambda g: (g.normal(size=(10, 3)) * 1.5, g.normal(size=(20, 3))),
        "Distance to the part's mean, at most the 95 % quantile of the members' own distances.",
        {
            "The farthest member is no measure: take the 95 % quantile of the members' distances.": (
                lambda vectors, members: _like_it(vectors, members, 1.0)
            ),
            "That is the other way round: a circuit is like the part if it is near.": lambda vectors, members: (
                ~_like_it(vectors, members)
            ),
        },
    ),
}
