"""Names of virtual neurons by CLIP: the word whose vector is nearest to those of a part's crops.

An answer should say how sure it is. Some words are near every picture, so a word counts by how much nearer it is to
this part than to all crops together. The best of many words is always near something: a part whose best word is no
better than that of crops drawn at random is called "unsure". And so is a part whose word is not the same when its
crops are drawn anew: one that shows two things, say, or a thing between two words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb._imports import needed
from pure_nb.errors import ArgumentError, EmbedderError

ABSTAIN = "unsure"


@dataclass(frozen=True)
class Name:
    """What a set of crops shows, according to an embedder with words.

    Attributes
    ----------
    word
        The nearest word, whether or not it can be trusted.
    score
        Mean cosine of the crops with it, beyond the mean over all crops of all neurons.
    runner_up, margin
        The second word, and how much lower its score is.
    gain
        How much higher the word's score is than for all crops of the neuron; 0 for the neuron itself.
    stability
        Share of bootstrap draws from these crops whose best word is the same.
    p
        Share of sets of as many crops, drawn at random from all neurons, whose best word has at least this score; this
        set counted in.
    """

    word: str
    score: float
    runner_up: str
    margin: float
    gain: float
    stability: float
    p: float

    def label(self, alpha: float = 0.05) -> str:
        """The word, or ``"unsure"`` where p is above ``alpha``, or the stability below ``1 - alpha``."""
        return self.word if self.p <= alpha and self.stability >= 1 - alpha else ABSTAIN


class Namer:
    """Names sets of crops.

    Parameters
    ----------
    crops
        float ``[m, d]``: vectors of all crops of all neurons, of :attr:`pure_nb.judges.vectors.Embedder.joint`. What
        they have in common says nothing about any part, and random sets of them are the null: with the crops of a
        single neuron alone, that neuron as a whole can't be named.
    words, vectors
        The vocabulary, and its vectors ``[words, d]`` from :meth:`pure_nb.judges.vectors.Embedder.text`.
    draws
        Random sets for each size, and bootstrap draws for each part.
    seed
        Of the draws.

    Raises
    ------
    ArgumentError
        If there are fewer than two words, or one twice, or the vectors don't fit together.

    Examples
    --------
    >>> words = ["cat", "house"]
    >>> judge = load_embedder("mini-clip")
    >>> crops = judge.joint.images(study.crops.of(3, range(6)))
    >>> namer = Namer(crops, words, judge.text(words))
    """

    def __init__(
        self,
        crops: NDArray[np.float32],
        words: Sequence[str],
        vectors: NDArray[np.float32],
        *,
        draws: int = 199,
        seed: int = 0,
    ) -> None:
        if len(words) < 2 or len(words) != len(vectors):
            raise ArgumentError(
                f"naming needs at least two words and a vector for each, got {len(words)}, {len(vectors)}"
            )
        if len(set(words)) < len(words):
            raise ArgumentError("a word is twice in the vocabulary")
        if crops.ndim != 2 or crops.shape[1] != vectors.shape[1]:
            raise ArgumentError(
                f"expected crops [m, {vectors.shape[1]}] as the words' vectors, got {list(crops.shape)}"
            )
        self.words, self._draws, self._seed = tuple(words), draws, seed
        self._crops = unit(crops)
        self._middle = self._crops.mean(axis=0)
        self._vectors = unit(vectors)
        self._null: dict[int, NDArray[np.float64]] = {}

    def scores(self, crops: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean cosine of some crops with each word, beyond that of all crops: ``[words]``."""
        return self._vectors @ (unit(crops).mean(axis=0) - self._middle)

    def name(self, crops: NDArray[np.float32], whole: NDArray[np.float32] | None = None) -> Name:
        """Name a set of crops.

        Parameters
        ----------
        crops
            float ``[n, d]``, n at least 1.
        whole
            All crops of the neuron that the set is a part of.
        """
        if not len(crops):
            raise ArgumentError("there are no crops to name")
        scores = self.scores(crops)
        second, first = np.argsort(scores, kind="stable")[-2:]
        base = scores if whole is None else self.scores(whole)
        null = self._best_of_random(len(crops))
        return Name(
            word=self.words[first],
            score=float(scores[first]),
            runner_up=self.words[second],
            margin=float(scores[first] - scores[second]),
            gain=float(scores[first] - base[first]),
            stability=self._stability(crops, int(first)),
            p=float((1 + (null >= scores[first]).sum()) / (1 + len(null))),
        )

    def _stability(self, crops: NDArray[np.float32], word: int) -> float:
        """How often a word is the best when the crops are drawn anew."""
        weights = np.random.default_rng(self._seed).multinomial(len(crops), [1 / len(crops)] * len(crops), self._draws)
        means = weights @ unit(crops) / len(crops) - self._middle
        return float(((means @ self._vectors.T).argmax(axis=1) == word).mean())

    def _best_of_random(self, size: int) -> NDArray[np.float64]:
        """The best words' scores of random sets of crops."""
        if size not in self._null:
            generator = np.random.default_rng([self._seed, size])
            size_drawn = min(size, len(self._crops))
            picks = [generator.choice(len(self._crops), size_drawn, replace=False) for _ in range(self._draws)]
            means = np.stack([self._crops[pick].mean(axis=0) for pick in picks]) - self._middle
            self._null[size] = (means @ self._vectors.T).max(axis=1)
        return self._null[size]


def vocabulary_from(path: Path) -> list[str]:
    """The words of a text file, one a line; empty lines and repeated words are left out.

    Raises
    ------
    EmbedderError
        If the file is missing, is no text, or holds fewer than two words.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise EmbedderError(f"{str(path)!r} can't be read as a list of words, one a line: {problem}") from problem
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(words) < 2:
        raise EmbedderError(f"{str(path)!r} holds {len(words)} words; a vocabulary needs at least two")
    return words


def nouns() -> list[str]:
    """What can be seen: the first word of each WordNet noun of ImageNet-22k, as timm has them; some 20,000."""
    with needed("timm", "the nouns of WordNet need", EmbedderError):
        from timm.data.imagenet_info import ImageNetInfo
    words = (description.split(",")[0] for description in ImageNetInfo("imagenet22k").label_descriptions())
    return list(dict.fromkeys(words))


def unit(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Vectors ``[n, d]``, scaled to length 1; those of length 0 stay."""
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
