"""Exercises of *Your network*: your own network, transformers, and when it does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.exercises.verdicts import Exercise

Array = NDArray[Any]


def _references_for(images: int) -> int:
    return max(20, min(100, images // 20))


def _circuit_bytes(channels: int, n: int, lower: int) -> int:
    return 4 * channels * n * lower


def _prepared(picture: Array, mean: Array, std: Array) -> Array:
    return ((picture / 255 - mean) / std).transpose(2, 0, 1)


def _pass_hours(images: int, references: int, seconds: float, pair: float, shared: float) -> float:
    return (images * seconds + references * (pair + seconds / shared)) / 3600


def _branches(count: int) -> list[int]:
    from pure_nb.compute.sweep import split_tree

    return [len(branch) for branch in split_tree([range(number, number + 1) for number in range(count)])]


def _merged_scores(first: Array, second: Array) -> Array:
    return -np.sort(-np.concatenate([first, second]))[: len(first)]


def _patch_grid(tokens: Array, height: int, width: int) -> Array:
    return tokens[-height * width :].T.reshape(-1, height, width)


def _head_lengths(written: Array, heads: int) -> Array:
    return np.asarray(np.linalg.norm(written.reshape(len(written), heads, -1), axis=2))


def _said_word(change: Array, words: Array) -> int:
    unit = words / np.linalg.norm(words, axis=1, keepdims=True)
    unit = unit - unit.mean(axis=0)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return int((unit @ change.mean(axis=0)).argmax())


def _tokens(g: np.random.Generator) -> tuple[Array, int, int]:
    height, width = (int(one) for one in g.permutation([2, 3, 4])[:2])
    return g.random((height * width + int(g.integers(1, 4)), 2)), height, width


EXERCISES = {
    "patch_grid": Exercise(
        _patch_grid,
        _tokens,
        "What is left at the end are the patches, row by row; channels come first.",
        {
            "Class token and registers come first: leave out as many as there are too many.": lambda tokens, h, w: (
                tokens[: h * w].T.reshape(-1, h, w)
            ),
            "Patches go row by row, so the height comes before the width.": lambda tokens, h, w: tokens[
                -h * w :
            ].T.reshape(-1, w, h),
        },
    ),
    "head_lengths": Exercise(
        _head_lengths,
        lambda g: (g.standard_normal((3, 12)), int(g.choice([2, 3, 4]))),
        "The channels of one head stand side by side; take the root of the sum of their squares.",
        {
            "The channels of one head are neighbours: reshape to [tokens, heads, channels of a head].": (
                lambda written, heads: np.linalg.norm(written.reshape(len(written), -1, heads), axis=1)
            )
        },
    ),
    "said_word": Exercise(
        _said_word,
        lambda g: (g.standard_normal((6, 4)), g.standard_normal((5, 4)) * g.uniform(0.2, 1.5, (5, 1)) + 3),
        "The mean change, against each word's unit vector less what all words have in common.",
        {
            "All words lie on one side: take off their mean direction first, and scale to length 1 again.": (
                lambda change, words: int(
                    (words / np.linalg.norm(words, axis=1, keepdims=True) @ change.mean(axis=0)).argmax()
                )
            )
        },
    ),
    "references_for": Exercise(
        _references_for,
        lambda g: ((int(g.integers(1, 400)), int(g.integers(400, 2000)), 40_000)[g.integers(3)],),
        "One in twenty images, but not fewer than 20, and no more than the paper's 100.",
        {
            "A reference is a whole image: round down, with //.": lambda images: max(20, min(100, images / 20)),
            "Round down: one more would be more than one in twenty.": lambda images: max(
                20, min(100, round(images / 20))
            ),
            "That is one in twenty; not fewer than 20, and no more than 100.": lambda images: images // 20,
            "Not fewer than 20: exchange min and max.": lambda images: min(20, max(100, images // 20)),
        },
    ),
    "circuit_bytes": Exercise(
        _circuit_bytes,
        lambda g: (int(g.integers(1, 3000)), int(g.integers(20, 101)), int(g.integers(1, 2000))),
        "A number of four bytes for each channel, reference and lower channel.",
        {"Each number has four bytes.": lambda channels, n, lower: channels * n * lower},
    ),
    "prepared": Exercise(
        _prepared,
        lambda g: (g.integers(0, 256, (2, 4, 3)).astype(np.uint8), g.random(3), g.uniform(0.2, 0.3, 3)),
        "Bytes become 0 to 1, then less the mean, over the deviation; the colours come first.",
        {
            "Colours come first in torch: [3, height, width].": lambda picture, mean, std: (picture / 255 - mean) / std,
            "Bytes are scaled to 0..1 before the mean is taken off.": lambda picture, mean, std: (
                (picture - mean) / std
            ).transpose(2, 0, 1),
        },
    ),
    "hours": Exercise(
        _pass_hours,
        lambda g: (int(g.integers(1000, 10**6)), int(g.integers(1000, 10**5)), 0.02, 0.012, float(g.uniform(1, 9))),
        "A forward pass for each image; for each pair a backward pass, and its share of one more forward pass.",
        {
            "Pairs of one image share its forward pass: divide that by `shared`.": lambda i, r, seconds, pair, shared: (
                (i * seconds + r * (pair + seconds)) / 3600
            ),
            "Those are seconds: divide by 3,600.": lambda *inputs: 3600 * _pass_hours(*inputs),
            "References have a forward pass, too: `shared` of them one.": lambda i, r, seconds, pair, shared: (
                (i * seconds + r * pair) / 3600
            ),
        },
    ),
    "branches": Exercise(
        _branches,
        lambda g: (int(g.choice([g.integers(2, 200), 2 ** g.integers(1, 8)])),),
        "The first branch is the largest power of two that is smaller than the number of shards, the second the rest.",
        {
            "A full tree has a power of two leaves, and halves have not.": lambda count: [
                count - count // 2,
                count // 2,
            ],
            "A power of two that is *smaller* than the count: of 8 shards each branch has four.": lambda count: [
                2 ** (count.bit_length() - 1),
                count - 2 ** (count.bit_length() - 1),
            ],
        },
    ),
    "both_best": Exercise(
        _merged_scores,
        lambda g: (-np.sort(-g.random(5)), -np.sort(-g.random(5))),
        "The best n of both lists together, the largest first.",
        {"As many as one list has are kept, or memory would grow.": lambda a, b: -np.sort(-np.concatenate([a, b]))},
    ),
}
