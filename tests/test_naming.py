"""Names of parts against a slow rewrite, and the doubt in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError, EmbedderError
from pure_nb.judges.naming import ABSTAIN, Namer, nouns, vocabulary_from

WORDS = ["cat", "hammer", "moon", "cup"]


def some_crops(seed: int = 0, noise: float = 0.4) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Vectors of 200 crops of four things, of the four words, and which thing each crop shows."""
    generator = np.random.default_rng(seed)
    words = generator.normal(size=(4, 16)).astype(np.float32)
    thing = generator.integers(0, 4, 200)
    common = 3 * generator.normal(size=16)  # what all pictures share
    crops = words[thing] + common + noise * generator.normal(size=(200, 16))
    return crops.astype(np.float32), words, thing


def slow_score(crops: NDArray[np.float32], every: NDArray[np.float32], word: NDArray[np.float32]) -> float:
    def mean_cosine(some: NDArray[np.float32]) -> float:
        return float(np.mean([c @ word / np.linalg.norm(c) / np.linalg.norm(word) for c in some.astype(np.float64)]))

    return mean_cosine(crops) - mean_cosine(every)


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_scores(seed: int, count: int) -> None:
    crops, words, _ = some_crops(seed)
    names = Namer(crops, WORDS, words, draws=9)
    some, whole = crops[:count], crops[:60]
    expected = [slow_score(some, crops, word) for word in words]
    np.testing.assert_allclose(names.scores(some), expected, atol=1e-5)
    found = names.name(some, whole)
    order = np.argsort(expected)
    assert found.word == WORDS[order[-1]]
    assert found.runner_up == WORDS[order[-2]]
    assert found.score == pytest.approx(expected[order[-1]], abs=1e-5)
    assert found.margin == pytest.approx(expected[order[-1]] - expected[order[-2]], abs=1e-5)
    assert found.gain == pytest.approx(found.score - slow_score(whole, crops, words[order[-1]]), abs=1e-5)
    assert names.name(some).gain == 0


def test_a_part_that_shows_one_thing_is_named() -> None:
    crops, words, thing = some_crops()
    names = Namer(crops, WORDS, words)
    for label, word in enumerate(WORDS):
        found = names.name(crops[thing == label][:20])
        assert found.label() == word
        assert found.p == pytest.approx(1 / 200)  # no random set does as well


def test_a_part_that_shows_anything_is_unsure() -> None:
    crops, words, _ = some_crops()
    names = Namer(crops, WORDS, words)
    generator = np.random.default_rng(5)
    found = [names.name(crops[generator.choice(200, 20, replace=False)]) for _ in range(200)]
    sure = np.mean([name.label() != ABSTAIN for name in found])
    assert sure < 0.11  # 5 % by construction
    assert np.mean([name.p for name in found]) == pytest.approx(0.5, abs=0.08)


def test_a_part_that_shows_two_things_is_unsure() -> None:
    """It is nearer to both words than random crops are, but which one is best depends on the crops."""
    crops, words, thing = some_crops()
    names = Namer(crops, WORDS, words)
    both = np.concatenate([crops[thing == 0][:15], crops[thing == 1][:15]])
    found = names.name(both)
    assert found.p <= 0.05
    assert found.stability < 0.95
    assert found.label() == ABSTAIN
    one = names.name(crops[thing == 0][:15])
    assert one.stability == 1
    slow = []
    for weights in np.random.default_rng(0).multinomial(30, [1 / 30] * 30, 199):
        drawn = np.repeat(both, weights, axis=0)
        slow.append(int(np.argmax([slow_score(drawn, crops, word) for word in words])))
    assert found.stability == pytest.approx(np.mean(np.array(slow) == WORDS.index(found.word)))


def test_the_same_answer_whatever_was_asked_before() -> None:
    crops, words, _ = some_crops()
    first, second = Namer(crops, WORDS, words), Namer(crops, WORDS, words)
    first.name(crops[:7])
    assert first.name(crops[:12]) == second.name(crops[:12])


def test_errors() -> None:
    crops, words, _ = some_crops()
    with pytest.raises(ArgumentError, match="at least two words"):
        Namer(crops, ["cat"], words[:1])
    with pytest.raises(ArgumentError, match="a vector for each, got 4, 3"):
        Namer(crops, WORDS, words[:3])
    with pytest.raises(ArgumentError, match="a word is twice"):
        Namer(crops, [*WORDS[:3], "cat"], words)
    with pytest.raises(ArgumentError, match=r"expected crops \[m, 16\] .* got \[200, 15\]"):
        Namer(crops[:, :15], WORDS, words)
    with pytest.raises(ArgumentError, match="no crops to name"):
        Namer(crops, WORDS, words).name(crops[:0])


def test_vocabulary_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("cat\n\n hammer \ncat\npolar bear\n", encoding="utf-8")
    assert vocabulary_from(path) == ["cat", "hammer", "polar bear"]
    path.write_text("cat\n")
    with pytest.raises(EmbedderError, match="holds 1 words"):
        vocabulary_from(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EmbedderError, match="can't be read as a list of words"):
        vocabulary_from(path)
    with pytest.raises(EmbedderError, match="can't be read as a list of words"):
        vocabulary_from(tmp_path / "nowhere.txt")


def test_nouns() -> None:
    found = nouns()
    everyday = [
        "bicycle",
        "elephant",
        "guitar",
        "zebra",
        "laptop",
        "umbrella",
        "banana",
        "sofa",
        "parrot",
        "dog",
        "tree",
    ]
    assert set(everyday) <= set(found)
    assert len(found) == len(set(found)) > 15_000
