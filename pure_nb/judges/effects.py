"""Text effects: what a channel or a part adds to a picture's vector, and the words that this is nearest to.

Naming by crops asks what a part's pictures show; a text effect asks what the part tells the network's own output. Of
CLIP that output is a vector in the space of words, so what is added to it is a direction there. Gandelsman et al. read
such directions of heads (2024, *Interpreting CLIP's Image Representation via Text-Based Decomposition*, ICLR) and of
neurons (2025, *Interpreting the Second-Order Effects of Neurons in CLIP*, ICLR). We follow them in that a unit is
described by the texts nearest to its mean effect. We differ in the effect: theirs is what flows directly, or through
later attention alone, with norms as they were; ours is the exact difference that switching the unit off makes, by all
ways at once. They find that this whole effect says little of single neurons of large CLIPs, whose later layers make
good for much of it: see how strong and how steady it is. Nor do we split one direction into several words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError
from pure_nb.judges.naming import ABSTAIN, unit


@dataclass(frozen=True)
class TextEffect:
    """What is added to the vectors of some pictures, in words.

    Attributes
    ----------
    word
        The nearest word, whether or not it can be trusted.
    score
        Cosine of the mean effect with it, less what all words of the vocabulary have in common.
    runner_up, margin
        The second word, and how much lower its score is.
    agreement
        Length of the mean effect by the mean length: 1 where all pictures' vectors are moved alike, 0 where the effects
        cancel.
    stability
        Share of bootstrap draws from the pictures with the same nearest word.
    """

    word: str
    score: float
    runner_up: str
    margin: float
    agreement: float
    stability: float

    def label(self, alpha: float = 0.05) -> str:
        """The word, or ``"unsure"`` where its stability is below ``1 - alpha``."""
        return self.word if self.stability >= 1 - alpha else ABSTAIN


def text_effect(
    change: NDArray[np.floating[Any]],
    words: Sequence[str],
    vectors: NDArray[np.floating[Any]],
    *,
    draws: int = 199,
    seed: int = 0,
) -> TextEffect:
    """The word nearest to what a unit adds to pictures' vectors.

    Parameters
    ----------
    change
        float ``[n, d]``: of each picture its vector, less that which it has with the unit switched off.
    words, vectors
        The vocabulary, at least two words, and its vectors ``[words, d]``, of any length but 0.
    draws, seed
        Bootstrap draws, and their seed.

    Returns
    -------
    TextEffect
        Of stability 0 and without a number where nothing changes at all.

    Raises
    ------
    ArgumentError
        If there are no pictures, fewer than two words, or the vectors don't fit together.

    Examples
    --------
    >>> text_effect(np.array([[2.0, 0.1], [1.0, 0.0]]), ["cat", "house"], np.eye(2)).word
    'cat'
    """
    if len(words) < 2 or len(words) != len(vectors):
        raise ArgumentError(f"expected at least two words and a vector for each, got {len(words)}, {len(vectors)}")
    if change.ndim != 2 or not len(change) or change.shape[1] != vectors.shape[1]:
        raise ArgumentError(f"expected changes [n, {vectors.shape[1]}] as the words' vectors, got {list(change.shape)}")
    each, own = np.asarray(change, dtype=np.float64), unit(vectors)
    own = unit(own - own.mean(axis=0))
    lengths = np.linalg.norm(each, axis=1)
    if not lengths.any():
        return TextEffect(ABSTAIN, np.nan, ABSTAIN, np.nan, np.nan, 0.0)
    mean = each.mean(axis=0)
    scores = own @ unit(mean[None])[0]
    second, first = np.argsort(scores, kind="stable")[-2:]
    weights = np.random.default_rng(seed).multinomial(len(each), [1 / len(each)] * len(each), draws)
    same = (weights @ each @ own.T).argmax(axis=1) == first
    return TextEffect(
        word=words[first],
        score=float(scores[first]),
        runner_up=words[second],
        margin=float(scores[first] - scores[second]),
        agreement=float(np.linalg.norm(mean) / lengths.mean()),
        stability=float(same.mean()),
    )
