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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError, NonFiniteError
from pure_nb.judges.naming import ABSTAIN, unit

FEWEST = 3
"""Pictures of which a bootstrap can tell something: of one each draw is the same, of two half of them are one alone."""

ROUNDING = 1e-9
"""What of the effects' lengths is no difference."""


@dataclass(frozen=True)
class TextEffect:
    """What is added to the vectors of some pictures, in words.

    Attributes
    ----------
    word
        The nearest word, whether or not it can be trusted; of several that are as near, the first of the vocabulary.
    score
        Cosine of the mean effect with it, less what all words of the vocabulary have in common.
    runner_up, margin
        The second word, and how much lower its score is.
    agreement
        Length of the mean effect by the mean length: 1 where all pictures' vectors are moved alike, 0 where the effects
        cancel.
    stability
        Share of bootstrap draws from the pictures in which this word is nearer than each other; 0 of fewer than three
        pictures.
    """

    word: str
    score: float
    runner_up: str
    margin: float
    agreement: float
    stability: float

    def label(self, alpha: float = 0.05) -> str:
        """The word, or ``"unsure"`` where its stability is below ``1 - alpha``.

        It says whether other pictures of the same kind would give the same word, and not whether the effect is more
        than chance or the word a good one: some word is always the nearest.
        """
        return self.word if self.stability >= 1 - alpha else ABSTAIN


NOTHING = TextEffect(ABSTAIN, np.nan, ABSTAIN, np.nan, np.nan, 0.0)
"""Where there is no effect."""


def require_vocabulary(words: Sequence[str], vectors: NDArray[np.floating[Any]]) -> None:
    """Raise unless there are two words or more, all of them different, and a direction for each."""
    if len(words) < 2 or len(words) != len(vectors):
        raise ArgumentError(f"expected at least two words and a vector for each, got {len(words)}, {len(vectors)}")
    if len(set(words)) < len(words):
        raise ArgumentError("a word is twice in the vocabulary")
    if vectors.ndim != 2 or not (np.isfinite(vectors).all() and vectors.any(axis=1).all()):
        raise ArgumentError("expected words' vectors [words, d] of finite numbers, not all of them 0")


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
        The vocabulary, at least two words and none twice, and its vectors ``[words, d]``, of any length but 0.
    draws, seed
        Bootstrap draws, and their seed.

    Returns
    -------
    TextEffect
        Of stability 0 and without a score where nothing changes at all, or all changes cancel.

    Raises
    ------
    ArgumentError
        If there are no pictures, fewer than two words, one of them twice or without a direction, or the vectors don't
        fit together.
    NonFiniteError
        If a change is NaN or infinite.

    Examples
    --------
    >>> text_effect(np.array([[2.0, 0.1], [1.0, 0.0]]), ["cat", "house"], np.eye(2)).word
    'cat'
    """
    require_vocabulary(words, vectors)
    if change.ndim != 2 or not len(change) or change.shape[1] != vectors.shape[1]:
        raise ArgumentError(f"expected changes [n, {vectors.shape[1]}] as the words' vectors, got {list(change.shape)}")
    each, own = np.asarray(change, dtype=np.float64), unit(vectors)
    if not (finite := np.isfinite(each).all(axis=1)).all():
        raise NonFiniteError(f"the change of picture {int(finite.argmin())} of {len(each)} is NaN or infinite")
    own = unit(own - own.mean(axis=0))
    mean, lengths = each.mean(axis=0), np.linalg.norm(each, axis=1)
    if not lengths.any():
        return NOTHING
    agreement = float(np.linalg.norm(mean) / lengths.mean())
    if agreement <= ROUNDING:
        return replace(NOTHING, agreement=0.0)
    scores = own @ unit(mean[None])[0]
    first, second = np.argsort(-scores, kind="stable")[:2]
    weights = np.random.default_rng(seed).multinomial(len(each), [1 / len(each)] * len(each), draws)
    drawn = weights @ each @ own.T
    ahead = drawn[:, first] - np.delete(drawn, first, axis=1).max(axis=1) > ROUNDING * lengths.sum()
    return TextEffect(
        word=words[first],
        score=float(scores[first]),
        runner_up=words[second],
        margin=float(scores[first] - scores[second]),
        agreement=agreement,
        stability=float(ahead.mean()) if len(each) >= FEWEST else 0.0,
    )
