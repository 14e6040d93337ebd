"""What a channel adds to a picture's vector, in words: where the right word is known, and against plain hooks."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_zero_shot import WORDS, scenes  # noqa: F401  a fixture
from torch import Tensor, nn

from pure_nb import Study, load_model, texts
from pure_nb.errors import ArgumentError, NonFiniteError, PureError, StudyError
from pure_nb.images.data import Images
from pure_nb.judges.effects import text_effect
from pure_nb.judges.naming import ABSTAIN
from pure_nb.judges.zero_shot import ZeroShot
from pure_nb.texts import added


@pytest.fixture
def linear(tmp_path: Path) -> Study:
    """The vector is a sum over the target's channels, each times the vector of its own word."""
    torch.manual_seed(0)
    last = nn.Linear(5, 12, bias=False)
    visual = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5), nn.ReLU(), last)
    visual[3].bias.data += 0.5
    model = ZeroShot(visual, last.weight.T, [f"word {number}" for number in range(5)])
    how = {"n_references": 8, "n_clusters": 2, "store": tmp_path, "progress": False}
    return Study.from_model(model, torch.rand(30, 3, 12, 12), "visual.4", "visual.1", **how)


def test_the_right_word_is_found(linear: Study) -> None:
    channels = np.flatnonzero(linear.references.alive).tolist()
    found = linear.text_effects(channels)
    assert len(channels) > 2
    assert found["word"].tolist() == [f"word {channel}" for channel in found["channel"]]
    np.testing.assert_allclose(found["agreement"], 1)
    assert (found["stability"] == 1).all()
    assert (found["margin"] > 0.1).all()
    per_channel = found[found["part"] != "whole"].groupby("channel")["size"].sum()
    assert per_channel.tolist() == found[found["part"] == "whole"]["size"].tolist()


def test_effects_of_a_linear_layer_add_up(linear: Study) -> None:
    whole, first = added(linear, 0, np.array([4, 1, 7]))
    rest = sum(added(linear, channel, np.array([4, 1, 7]))[1] for channel in range(1, 5))
    np.testing.assert_allclose(first + rest, whole, rtol=1e-5, atol=1e-6)


def test_of_mini_clip_it_is_what_plain_hooks_give(scenes: Images, tmp_path: Path) -> None:  # noqa: F811
    model = load_model("open_clip:mini-clip", outputs=WORDS)
    study = Study.from_model(
        model, scenes, "visual.layer4", "visual.layer3", n_references=6, n_clusters=2, store=tmp_path, progress=False
    )
    channel = int(study.references.score[:, -1].argmax())
    found, sample = study.text_effects([channel]), study.references.sample[channel]

    def run(off: Callable[[nn.Module, object, Tensor], Tensor | None], number: int) -> np.ndarray:
        handle = model.visual.layer4.register_forward_hook(off)
        with torch.no_grad():
            vector = model.visual(scenes.tensor(number)[None])[0].double().numpy()
        handle.remove()
        return np.asarray(vector)

    def without(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, channel] = 0
        return output

    change = np.stack([run(lambda *_: None, n) - run(without, n) for n in sample.tolist()])
    labels = study.virtual_of(channel).labels
    words = model.head.weight.detach().double().numpy()
    words = words / np.linalg.norm(words, axis=1, keepdims=True)
    words = words - words.mean(axis=0)
    for row, own in zip(found.itertuples(), (labels >= 0, labels == 0, labels == 1)):
        mean = change[own].mean(axis=0)
        cosines = [word @ mean / np.linalg.norm(word) / np.linalg.norm(mean) for word in words]
        assert row.word == WORDS[int(np.argmax(cosines))]
        assert row.score == pytest.approx(max(cosines), abs=1e-3)
        assert row.agreement <= 1 + 1e-9
        assert row.size == own.sum()


def test_words_that_come_and_go_are_not_stable() -> None:
    change = np.vstack([np.tile([1.0, 0, 0], (3, 1)), np.tile([0, 1.0, 0], (3, 1))])
    found = text_effect(change, ["a", "b", "c"], np.eye(3))
    assert found.label() == ABSTAIN
    assert found.agreement == pytest.approx(2**-0.5)
    assert 0.2 < found.stability < 0.8
    assert text_effect(change[:3], ["a", "b", "c"], np.eye(3)).label() == "a"


@pytest.mark.parametrize("change", [np.zeros((3, 3)), np.array([[0.1, 0.2, 0.3]] * 3 + [[-0.1, -0.2, -0.3]] * 3)])
def test_nothing_has_no_word(change: np.ndarray) -> None:
    found = text_effect(change, ["a", "b", "c"], np.eye(3))
    assert (found.word, found.label(), found.stability) == (ABSTAIN, ABSTAIN, 0)
    assert np.isnan(found.score)


@pytest.mark.parametrize(
    ("count", "vectors", "sure"),
    [(1, np.eye(3), False), (2, np.eye(3), False), (3, np.eye(3), True), (9, np.eye(3)[[0, 0, 1]], False)],
)
def test_few_pictures_and_words_as_near_are_unsure(count: int, vectors: np.ndarray, sure: bool) -> None:
    found = text_effect(np.tile([1.0, 0.2, 0], (count, 1)), ["a", "b", "c"], vectors)
    assert (found.word, found.label()) == ("a", "a" if sure else ABSTAIN)


@pytest.mark.parametrize(
    ("change", "words", "vectors", "said"),
    [
        (np.ones((2, 3)), ["a"], np.eye(3), "at least two words"),
        (np.ones((2, 3)), ["a", "b"], np.eye(3), "a vector for each, got 2, 3"),
        (np.ones((0, 3)), ["a", "b", "c"], np.eye(3), r"changes \[n, 3\]"),
        (np.ones((2, 4)), ["a", "b", "c"], np.eye(3), r"got \[2, 4\]"),
        (np.ones((2, 3)), ["a", "b", "a"], np.eye(3), "a word is twice"),
        (np.ones((2, 3)), ["a", "b", "c"], np.diag([1.0, 1, 0]), "not all of them 0"),
        (np.ones((2, 3)), ["a", "b", "c"], np.diag([1.0, 1, np.nan]), "finite numbers"),
        (np.array([[1.0, 1, 1], [1, np.inf, 1]]), ["a", "b", "c"], np.eye(3), "picture 1 of 2 is NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_refused(change: np.ndarray, words: list[str], vectors: np.ndarray, said: str) -> None:
    with pytest.raises(PureError, match=said) as raised:
        text_effect(change, words, vectors)
    assert isinstance(raised.value, NonFiniteError if "picture" in said else ArgumentError)


def test_dead_channels_have_a_row_and_shared_images_run_once(linear: Study) -> None:
    linear.model.visual[3].bias.data[1] = -100
    linear.model.visual[5].weight.data[:, 2] = 0  # alive, and says nothing
    passes: list[int] = []
    linear.model.visual.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    linear.references  # noqa: B018  computed
    passes.clear()
    asked = [channel for channel in range(5) if linear.references.alive[channel] or channel == 1]
    found = linear.text_effects(asked)
    whole = found[found["part"] == "whole"].set_index("channel")
    assert whole.index.tolist() == asked
    assert (whole["size"][1], whole["word"][1], whole["stability"][1]) == (0, ABSTAIN, 0)
    assert whole[["score", "strength"]].loc[1].isna().all()
    assert (whole["word"][2], whole["strength"][2]) == (ABSTAIN, 0)
    samples = [linear.references.sample[channel][linear.references.active[channel]] for channel in asked]
    assert sum(passes) == sum(map(len, samples)) + len(np.unique(np.concatenate(samples)))
    nothing = linear.text_effects([])
    assert nothing.empty
    assert nothing.columns.tolist() == found.columns.tolist()


def test_it_is_asked_of_clip_alone(linear: Study) -> None:
    with pytest.raises(ArgumentError, match="words and their vectors go together"):
        linear.text_effects([0], words=["a", "b"])
    other = Study.from_model(linear.model.visual, torch.rand(9, 3, 12, 12), "4", "1", n_references=3)
    with pytest.raises(StudyError, match="load CLIP with"):
        other.text_effects([0])


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURE_NB_STORE", str(tmp_path))
    found = doctest.testmod(texts)
    assert (found.failed, found.attempted > 0) == (0, True)
