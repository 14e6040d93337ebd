"""Contestants: each finds what is plainly there, and says what is wrong where it can't be run."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import StratifiedKFold
from small import Items, Tokens, noise, plain, shared
from torch import Tensor, nn
from torch.nn import functional

from pure_nb.benchmark import contestants as module
from pure_nb.benchmark.bench import run
from pure_nb.benchmark.contestants import (
    CLOSE,
    LAYERS,
    LRP,
    PEAK,
    PURE,
    RANDOM,
    Contestant,
    Parts,
    circuits_of,
    cluster_each,
    contestants,
    gaussian_mixture,
    hdbscan,
    load_contestant,
    nmf,
    oracle_of,
    random_parts,
    several_layers,
    sparse_codes,
    spectral,
    split_by,
)
from pure_nb.benchmark.leaderboards import run_benchmark
from pure_nb.benchmark.tasks import Task, objects_task, planted_task, straight
from pure_nb.errors import ArgumentError, ModelError, StoreError, StudyError, StudyWarning
from pure_nb.loading import load_model
from pure_nb.methods.ownership import SHARED
from pure_nb.methods.virtual import kmeans
from pure_nb.parameters import Run
from pure_nb.study import Study


def bare(truth: Any, seed: int = 0) -> Task:
    """A task of which only the truth matters."""
    study: Any = SimpleNamespace(parameters=SimpleNamespace(seed=seed), run=Run(progress=False))
    known = np.asarray(truth, dtype=np.int64)
    return Task("bare", study, known, np.ones(known.shape), study)


def blobs(k: int = 3, each: int = 20, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Not negative and well apart: each of the k along an axis of its own, in a random order."""
    generator = np.random.default_rng(seed)
    truth = generator.permutation(np.repeat(np.arange(k), each))
    vectors = np.eye(6)[truth] + 0.03 * generator.random((k * each, 6))
    return vectors.astype(np.float32), truth


def labelled(images: Tensor, labels: list[int], names: str) -> Items:
    items = Items(images)
    items.targets, items.classes = labels, list(names)  # type: ignore[attr-defined]
    return items


def two_inputs() -> Items:
    """Twenty images: even ones with something in channel 0, odd ones in channel 1, all of them in channel 2.

    The two sources have the same amplitudes, so that what is shared is shared alike.
    """
    images = torch.zeros(20, 4, 1, 2)
    for number in range(20):
        images[number, number % 2, 0, 0] = 3 + number // 2
        images[number, 2, 0, 0] = 1
    return labelled(images, [number % 2 for number in range(20)], "ab")


def two_sources() -> nn.Sequential:
    """Channel 0 reads input 0, channel 1 reads input 1, both read input 2; nobody input 3."""
    model = nn.Sequential(
        nn.Conv2d(4, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1, 0, 0.5, 0], [0, 1, 0.5, 0]]).view(2, 4, 1, 1))
        model[4].weight.copy_(torch.eye(2))
    return model.eval()


def hand_task(folder: Path, self_merged: int = 0) -> Task:
    study = Study.from_model(two_sources(), two_inputs(), "0", "input:0", n_references=20, n_clusters=2, store=folder)
    return planted_task(study.replace(progress=False), groups=((0, 1),), self_merged=self_merged)


def small_task(folder: Path, target: str = "4", lower: str = "input:4", *, self_merged: int = 1, **how: Any) -> Task:
    """Three merged channels and a null in the random network, with labels."""
    items = labelled(noise(40), [number % 4 for number in range(40)], "wxyz")
    model = how.pop("model", None) or plain()
    study = Study.from_model(model, items, target, lower, n_references=20, n_clusters=2, store=folder, **how)
    return planted_task(study.replace(progress=False), 3, self_merged=self_merged, seed=1)


# ------------------------------------------------------------------------------------------------------- clusterers


@pytest.mark.parametrize("clusterer", [kmeans, gaussian_mixture, spectral, hdbscan, nmf])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_plain_blobs_are_found(clusterer: Callable[..., Any], k: int) -> None:
    vectors, truth = blobs(k)
    before = vectors.copy()
    labels = clusterer(vectors, k, 0)
    assert labels.dtype == np.int64
    assert labels.shape == truth.shape
    assert labels.min() >= -1
    assert labels.max() < k
    assert adjusted_rand_score(truth, labels) > 0.95
    np.testing.assert_array_equal(clusterer(vectors, k, 0), labels)
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize("clusterer", [kmeans, gaussian_mixture, spectral, hdbscan, nmf])
def test_noise_is_not_what_is_wanted(clusterer: Callable[..., Any]) -> None:
    generator = np.random.default_rng(0)
    values = [
        adjusted_rand_score(generator.integers(0, 2, 60), clusterer(generator.random((60, 6)).astype(np.float32), 2, 0))
        for _ in range(6)
    ]
    assert abs(np.mean(values)) < 0.1


@pytest.mark.parametrize("clusterer", [kmeans, gaussian_mixture, spectral, hdbscan, nmf])
@pytest.mark.parametrize("vectors", [np.zeros((12, 4)), np.ones((12, 4)), -np.eye(12)[:, :4], np.eye(3)])
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")
def test_odd_vectors_are_no_error(clusterer: Callable[..., Any], vectors: NDArray[Any]) -> None:
    """Those of a dead neuron, negative ones, and very few."""
    labels = clusterer(vectors.astype(np.float32), 2, 0)
    assert labels.shape == (len(vectors),)
    assert set(labels.tolist()) <= {-1, 0, 1}


def test_means_are_the_papers() -> None:
    vectors = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    theirs = KMeans(3, n_init=10, random_state=5).fit_predict(vectors.astype(np.float64))
    assert adjusted_rand_score(kmeans(vectors, 3, 5), theirs) == 1


def test_density_leaves_strays_out_and_needs_no_number() -> None:
    vectors, truth = blobs(3)
    vectors[0] = 50
    labels = hdbscan(vectors, 2, 0)  # told two, it finds three
    assert labels[0] == -1
    assert set(labels[1:].tolist()) - {-1} == {0, 1, 2}
    assert adjusted_rand_score(truth[1:], labels[1:]) > 0.95


def test_mixture_finds_what_means_do_not() -> None:
    """Two long clouds side by side: k-means cuts them across, one covariance for both does not."""
    generator = np.random.default_rng(3)
    truth = np.repeat([0, 1], 50)
    vectors = np.stack([generator.normal(0, 1.4, 100), truth * 2 + generator.normal(0, 0.3, 100)], axis=1)
    labels = gaussian_mixture(vectors.astype(np.float32), 2, 0)
    assert adjusted_rand_score(truth, labels) > 0.95
    assert adjusted_rand_score(truth, kmeans(vectors.astype(np.float32), 2, 0)) < 0.2
    # Circuits are small numbers, activations may be large: what keeps the covariance regular must not depend on that.
    for scale in (1e-4, 1e4):
        assert adjusted_rand_score(labels, gaussian_mixture((scale * vectors).astype(np.float32), 2, 0)) == 1


def test_spectrum_follows_rings() -> None:
    """Two rings within each other: only the graph of neighbours tells them apart."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    truth = np.repeat([0, 1], 60)
    vectors = np.concatenate([r * np.stack([np.cos(angle), np.sin(angle)], axis=1) for r in (1, 4)]).astype(np.float32)
    assert adjusted_rand_score(truth, spectral(vectors, 2, 0)) == 1
    assert adjusted_rand_score(truth, kmeans(vectors, 2, 0)) < 0.2


def test_factors_see_directions_and_not_lengths() -> None:
    generator = np.random.default_rng(0)
    truth = np.repeat([0, 1], 40)
    vectors = np.eye(4)[truth] * generator.uniform(0.5, 20, (80, 1)) + 0.01 * generator.random((80, 4))
    assert adjusted_rand_score(truth, nmf(vectors.astype(np.float32), 2, 0)) == 1


def test_factors_explain_by_all_they_bring() -> None:
    """One thing is in sixteen entries, the other in one: what counts is the sum that each explains, not its code."""
    generator = np.random.default_rng(0)
    share = np.concatenate([generator.uniform(0.6, 1, 30), generator.uniform(0, 0.4, 30), [1.0] * 5, [0.0] * 5])
    wide, narrow = np.repeat([1 / 16, 0], [16, 1]), np.repeat([0, 1.0], [16, 1])
    vectors = share[:, None] * wide + (1 - share[:, None]) * narrow
    assert adjusted_rand_score(share > 0.5, nmf(vectors.astype(np.float32), 2, 0)) > 0.95


def test_neurons_of_one_meaning_stay_whole() -> None:
    asked: list[tuple[int, int]] = []

    def clusterer(vectors: NDArray[np.float32], k: int, seed: int) -> NDArray[np.int64]:
        asked.append((k, seed))
        return np.full(len(vectors), k)

    found = cluster_each(np.zeros((3, 4, 2), np.float32), np.array([3, 1, 2]), clusterer, 8)
    assert found.tolist() == [[3] * 4, [0] * 4, [2] * 4]
    assert asked == [(3, 8), (2, 8)]


# ------------------------------------------------------------------------------------------------ what they look at


def test_sparse_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [blobs(3, seed=seed) for seed in range(3)]
    task = bare(np.stack([truth for _, truth in pairs]))
    vectors = np.stack([own for own, _ in pairs])
    vectors[1, 7] = vectors[0, 5]  # one image may be a reference of two neurons
    task.__dict__["activations"] = {"lower activation at maximum": vectors}
    codes = sparse_codes(task)
    assert codes.shape == (3, 60, 12)  # twice as many atoms as channels
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes[1, 7], codes[0, 5])
    np.testing.assert_array_equal(sparse_codes(task), codes)
    assert (codes == 0).mean() > 0.5
    for channel in (0, 2):
        assert adjusted_rand_score(task.truth[channel], kmeans(codes[channel], 3, 0)) > 0.75
    monkeypatch.setattr(module, "ATOMS", 5)
    assert sparse_codes(task).shape == (3, 60, 5)
    task.__dict__["activations"] = {"lower activation at maximum": np.zeros_like(vectors)}
    assert not sparse_codes(task).any()  # nothing below activates anything


def test_random_parts_agree_with_nothing() -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 3, (40, 60))
    truth[0] = 0
    task = bare(truth)
    labels = random_parts(task)
    np.testing.assert_array_equal(random_parts(task), labels)
    assert (random_parts(bare(truth, seed=1)) != labels).any()
    assert not labels[0].any()
    assert all(set(own.tolist()) == {0, 1, 2} for own in labels[1:])
    assert abs(np.mean([adjusted_rand_score(a, b) for a, b in zip(truth[1:], labels[1:])])) < 0.02
    # Nor with the random labels that `agreement` draws from the same seed, neuron by neuron.
    generator = np.random.default_rng(np.random.SeedSequence(0).spawn(1)[0])
    own = random_parts(bare(truth[1:]))
    values = [adjusted_rand_score(labels, generator.integers(0, 3, 60)) for labels in own]
    assert abs(np.mean(values)) < 0.02


def test_the_oracle_of_what_can_be_told_and_what_can_not() -> None:
    vectors, truth = blobs(3)
    generator = np.random.default_rng(0)
    task = bare([truth, truth, np.zeros(60)])
    answer = oracle_of(lambda _: np.stack([vectors, generator.standard_normal((60, 6)), vectors]))(task)
    assert adjusted_rand_score(truth, answer.labels[0]) == 1
    np.testing.assert_array_equal(answer.labels[0], truth)
    assert abs(adjusted_rand_score(truth, answer.labels[1])) < 0.15
    assert not answer.labels[2].any()  # one thing: nothing to learn
    assert answer.vectors is None


def test_the_oracle_is_that_of_a_slow_loop() -> None:
    generator = np.random.default_rng(3)
    truth = np.repeat([0, 1, 2, 3, -1], [20, 15, 5, 4, 6])
    own = generator.standard_normal((50, 5)) + 1.2 * np.eye(5)[truth]
    own[:, 3] = 7  # a constant entry is no division by zero
    found = oracle_of(lambda _: own[None])(bare([truth], seed=4)).labels[0]
    # Fewer than five, or of no known truth: neither is learned.
    assert (found[40:] == -1).all()
    scaled = (own - own.mean(axis=0)) / own.std()
    expected = np.full(40, -9)
    for learned, asked in StratifiedKFold(5, shuffle=True, random_state=4).split(scaled[:40], truth[:40]):
        classifier = RidgeClassifierCV([10 ** (-3 + 7 * step / 9) for step in range(10)])
        expected[asked] = classifier.fit(scaled[:40][learned], truth[:40][learned]).predict(scaled[:40][asked])
    np.testing.assert_array_equal(found[:40], expected)
    assert 0.5 < (expected == truth[:40]).mean() < 1


def test_the_oracle_of_too_few() -> None:
    """Two things, one of which is in four images only: the neuron stays whole."""
    truth = np.repeat([0, 1], [20, 4])
    assert not oracle_of(lambda _: np.eye(24)[None])(bare([truth])).labels.any()


def test_descriptions_of_a_task(tmp_path: Path) -> None:
    task = small_task(tmp_path, "5", "3")
    np.testing.assert_array_equal(circuits_of(start="peak")(task), task.study.replace(start="peak").circuits)
    assert circuits_of(lower="2")(task).shape == (4, 20, 7)
    for name, vectors in task.activations.items():
        np.testing.assert_array_equal(task.descriptions()[name].vectors(), vectors)
    # The study's own lower layer, and the ReLU before it; right below a ReLU there is nothing to learn.
    joined = several_layers(task)
    parts = [task.study.replace(lower=name).circuits for name in ("3", "1")]
    np.testing.assert_array_equal(joined, np.concatenate(parts, axis=2))
    assert joined.shape == (4, 20, 7 + 5)


def test_several_layers_take_each_once(tmp_path: Path) -> None:
    """Here the study's own lower layer is the nearest one already."""
    task = small_task(tmp_path)
    parts = [task.study.replace(lower=name).circuits for name in ("input:4.merged", "2")]
    np.testing.assert_array_equal(several_layers(task), np.concatenate(parts, axis=2))


# ------------------------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("by", ["parts", "classes"])
def test_a_split_on_paper(tmp_path: Path, by: str) -> None:
    task = hand_task(tmp_path, self_merged=1)
    assert task.truth[0].tolist() == [0, 1] * 10
    answer = split_by(task, by)
    assert adjusted_rand_score(task.truth[0], answer.labels[0]) == 1
    # The first image is of source 0, and so is the first part; input 2 is shared, and input 3 nobody's.
    assert answer.labels[0].tolist() == [0, 1] * 10
    assert {channel: owner.tolist() for channel, owner in answer.owner.items()} == {0: [0, 1, -1, -1]}
    assert not answer.labels[1].any()  # the null is not split
    table = run(task, [Contestant("split", lambda it: split_by(it, by))], choose=False)
    assert table["f1"].tolist()[0] == 1
    assert table["ari"].tolist()[0] == 1
    assert np.isnan(table["f1"][1])


@pytest.mark.parametrize("by", ["parts", "classes"])
def test_a_split_is_that_of_a_slow_loop(tmp_path: Path, by: str) -> None:
    task = small_task(tmp_path)
    answer = split_by(task, by)
    several = np.flatnonzero(task.k > 1).tolist()
    assert several
    assert set(answer.owner) <= set(several)
    assert answer.owner
    merged: Any = task.study.model.get_submodule("4.merged")
    below = plain()[:4](noise(40)).double()
    for channel in range(4):
        if channel not in answer.owner:
            assert not answer.labels[channel].any()
            continue
        owner = answer.owner[channel]
        assert owner.shape == (7,)
        for rank, image in enumerate(task.study.references.sample[channel]):
            active = []
            for part in range(2):
                weight = merged.weight[channel : channel + 1].detach().double().clone()
                weight[:, (owner != part) & (owner != -1)] = 0
                bias = merged.bias[channel : channel + 1].detach().double()
                out = nn.functional.conv2d(below[image : image + 1], weight, bias, padding=1)
                active.append(float(out.clamp(min=0).sum().detach()))
            assert answer.labels[channel, rank] == active.index(max(active))


def test_what_can_not_be_split_stays_whole(tmp_path: Path) -> None:
    """Labels of a single class: there are no two to split between."""
    items = labelled(two_inputs().images, [0] * 20, "ab")  # type: ignore[arg-type]
    study = Study.from_model(two_sources(), items, "0", "input:0", n_references=20, n_clusters=2, store=tmp_path)
    answer = split_by(planted_task(study.replace(progress=False), groups=((0, 1),)), "classes")
    assert not answer.labels.any()
    assert answer.owner[0].tolist() == [SHARED] * 4  # nobody owns anything, which scores 0


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken(error: Exception) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


@pytest.mark.parametrize("by", ["parts", "classes"])
@pytest.mark.parametrize(
    ("place", "fails", "error"),
    [
        ("pure_nb.compute.store.save_file", full, StoreError),  # the disk, under circuits and classes
        ("torch.nn.Conv2d.forward", broken(RuntimeError("out of memory")), ModelError),
        ("pure_nb.benchmark.contestants.part_activations", broken(ArgumentError("a fault of ours")), ArgumentError),
        ("pure_nb.benchmark.contestants.part_activations", broken(StudyError("a fault of ours")), StudyError),
    ],
)
def test_what_breaks_is_no_answer(
    tmp_path: Path, by: str, place: str, fails: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark stops, and nothing is stored; afterwards it goes on as if nothing had been."""
    task = hand_task(tmp_path)
    entry = Contestant("split", lambda it: split_by(it, by), fingerprint="split")
    store = task.study.store
    assert store is not None
    with monkeypatch.context() as patch:
        patch.setattr(place, fails)
        with pytest.raises(error):
            run(task, [entry], choose=False)
    assert not [kept for kept in store.results() if kept.name == "bench"]
    assert run(task, [entry], choose=False)["ari"].tolist() == [1]


def test_a_channel_of_a_grouped_convolution_is_split_by_parts(tmp_path: Path) -> None:
    """Merged channels have no groups, but natural ones may."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    study = Study.from_model(
        model, Items(noise(40)), "2", "input:2", n_references=20, n_clusters=2, store=tmp_path
    ).replace(progress=False)
    truth = np.tile([0, 1], (8, 10))
    assert split_by(Task("w", study, truth, np.ones(truth.shape), study), "parts").owner


# ---------------------------------------------------------------------------------------------- a contestant's answer


def test_vectors_are_clustered_and_labels_are_taken() -> None:
    vectors, truth = blobs(2)
    task = bare([truth, np.zeros(40)])
    found = Contestant("v", lambda _: np.stack([vectors, vectors])).parts(task)
    assert adjusted_rand_score(truth, found.labels[0]) == 1
    assert not found.labels[1].any()
    assert found.vectors is not None
    assert found.vectors.shape == (2, 40, 6)
    found = Contestant("l", lambda _: [[1.0] * 40, [2.0] * 40]).parts(task)
    assert found.labels.tolist() == [[1] * 40, [2] * 40]
    assert found.labels.dtype == np.int64
    assert found.vectors is None
    own = Parts(np.zeros((2, 40), np.int64))
    np.testing.assert_array_equal(Contestant("p", lambda _: own).parts(task).labels, own.labels)
    seeds: list[int] = []
    clusterer = lambda vectors, k, seed: seeds.append(seed) or np.zeros(len(vectors), np.int64)  # noqa: E731
    Contestant("d", lambda _: np.stack([vectors] * 2), clusterer).parts(task, seed=6)
    assert seeds == [6]


@pytest.mark.parametrize("shape", [(), (40,), (2, 39), (3, 40), (40, 2), (2, 39, 5), (2, 40, 5, 1), (80, 5)])
def test_answers_of_another_shape(shape: tuple[int, ...]) -> None:
    task = bare(np.zeros((2, 40)))
    with pytest.raises(StudyError, match=r"contestant 'odd' returned an array of shape \[.*\]; expected vectors ") as e:
        Contestant("odd", lambda _: np.zeros(shape)).parts(task)
    assert str(list(shape)) in str(e.value)
    assert "[2, 40, d] or labels [2, 40]" in str(e.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(2, 40), (2, 40, 3)])
def test_answers_that_are_not_finite(bad: float, shape: tuple[int, ...]) -> None:
    values = np.zeros(shape)
    values[1, 5] = bad
    with pytest.raises(StudyError, match="contestant 'odd' returned NaN or infinity"):
        Contestant("odd", lambda _: values).parts(bare(np.zeros((2, 40))))


@pytest.mark.parametrize(
    "answer",
    [
        Parts(np.zeros((2, 39), np.int64)),
        Parts(np.zeros((2, 40), np.int64), np.zeros((2, 39, 3))),
        Parts(np.zeros((2, 40), np.int64), np.full((2, 40, 3), np.nan)),
    ],
    ids=["labels", "vectors", "NaN"],
)
def test_parts_of_another_shape(answer: Parts) -> None:
    with pytest.raises(StudyError):
        Contestant("odd", lambda _: answer).parts(bare(np.zeros((2, 40))))


@pytest.mark.parametrize("answer", [[["a"] * 40] * 2, [[0.0] * 40, [0.0] * 39]], ids=["words", "ragged"])
def test_answers_that_are_no_numbers(answer: Any) -> None:
    with pytest.raises(StudyError, match="odd"):
        Contestant("odd", lambda _: answer).parts(bare(np.zeros((2, 40))))


# ------------------------------------------------------------------------------------------------------- all of them


class Brightness:
    """An embedder that knows the mean colour of a crop."""

    name, fingerprint, prompts = "brightness", "brightness 1", ()

    def images(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.stack([crop.reshape(-1, 3).mean(axis=0) for crop in crops]).astype(np.float32)


ALWAYS = {
    PURE,
    PEAK,
    CLOSE,
    LAYERS,
    "PURE + Gaussian mixture",
    "PURE + spectral",
    "PURE + HDBSCAN",
    "activation",
    "lower activation",
    "NMF",
    "sparse codes",
    "combined",
    RANDOM,
    "oracle: PURE",
    "oracle: PURE close",
}


def test_all_contestants_of_a_convolution(tmp_path: Path) -> None:
    task = small_task(tmp_path, crop="activation")
    embedder: Any = Brightness()
    found = contestants(task, [embedder])
    names = [one.name for one in found]
    splits = {"split by PURE's parts", "split by classes"}
    assert set(names) == ALWAYS | {LRP, "activation at maximum", "brightness"} | splits
    assert len(set(names)) == len(names)
    assert len({one.fingerprint for one in found}) == len(found)
    assert all(one.fingerprint for one in found)
    assert {one.name for one in found if one.oracle} == {"oracle: PURE", "oracle: PURE close"}
    by_name = {one.name: one for one in found}
    assert by_name["PURE + HDBSCAN"].clusterer is hdbscan
    assert by_name["NMF"].clusterer is nmf
    assert by_name[PURE].clusterer is kmeans
    np.testing.assert_array_equal(by_name["brightness"].describe(task), task.study.crops.embeddings(embedder))
    described = task.descriptions([embedder])["brightness"]
    np.testing.assert_array_equal(described.vectors(), task.study.crops.embeddings(embedder))
    np.testing.assert_array_equal(described.of(2), task.study.crops.embeddings(embedder)[2])
    for one in found:
        parts = one.parts(task)
        assert parts.labels.shape == task.truth.shape
        assert parts.labels.min() >= -1


def test_the_papers_recipe_does_not_depend_on_the_studys(tmp_path: Path) -> None:
    """However the study was run, PURE is PURE."""
    task = small_task(tmp_path, "5", "3", rule="lrp", start="peak")
    by_name = {one.name: one.describe(task) for one in contestants(task) if one.name in (PURE, PEAK, CLOSE, LRP)}
    for name, recipe in {
        PURE: {"rule": "gradient", "start": "activation"},
        PEAK: {"rule": "gradient", "start": "peak"},
        CLOSE: {"rule": "gradient", "start": "peak", "lower": "3"},
        LRP: {"rule": "lrp", "start": "activation"},
    }.items():
        np.testing.assert_array_equal(by_name[name], task.study.replace(**recipe).circuits)


def test_no_splits_of_another_layer(tmp_path: Path) -> None:
    for target, lower in (("5", "3"), ("4", "2")):
        names = {one.name for one in contestants(small_task(tmp_path, target, lower))}
        assert names == ALWAYS | {LRP, "activation at maximum"}


def test_without_a_grid_there_is_no_maximum(tmp_path: Path) -> None:
    names = {one.name for one in contestants(small_task(tmp_path, "7", "5"))}
    assert names == ALWAYS | {LRP}


def test_without_labels_there_is_no_split_by_classes(tmp_path: Path) -> None:
    study = Study.from_model(
        plain(), Items(noise(15)), "4", "input:4", n_references=6, n_clusters=2, store=tmp_path
    ).replace(progress=False)
    with pytest.warns(StudyWarning, match="the split by classes is left out: the images 'mine' have no labels"):
        names = {one.name for one in contestants(planted_task(study, 2))}
    assert "split by PURE's parts" in names
    assert "split by classes" not in names


class Summing(nn.Module):
    """What no rule of relevance is made for."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(dim=1)


def test_where_the_rules_do_not_fit_they_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    task = small_task(tmp_path, "1", "0", model=nn.Sequential(nn.Conv2d(3, 4, 3), Summing(), *head).eval())
    with pytest.warns(StudyWarning, match="PURE LRP is left out: .*'cumsum'"):
        names = {one.name for one in contestants(task)}
    assert LRP not in names
    assert names >= ALWAYS
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "PURE LRP is left out")  # nothing is said of what nobody asked for
        assert [one.name for one in contestants(task, only=(PURE, RANDOM))] == [PURE, RANDOM]
        assert set(run_benchmark(task, only=(RANDOM,), choose=False).board["method"]) == {PURE, RANDOM}
    with pytest.warns(StudyWarning, match="PURE LRP is left out"):
        assert contestants(task, only=(LRP,)) == []


def test_contestants_of_tokens(tmp_path: Path) -> None:
    task = small_task(tmp_path, "second", "first", model=Tokens().eval())
    found = contestants(task)
    assert {one.name for one in found} >= ALWAYS | {LRP, "activation at maximum"}
    table = run(task, [one for one in found if one.name in (PURE, "activation at maximum", "NMF")], choose=False)
    assert table.groupby("method").size().tolist() == [4, 4, 4]


def test_contestants_of_natural_neurons(glyph_study: Study) -> None:
    task = objects_task(glyph_study)
    found = contestants(task)
    assert {one.name for one in found} == ALWAYS | {LRP, "activation at maximum"}
    simple = [one for one in found if one.name in (PURE, RANDOM)]
    table = run(task, simple, choose=False)
    means = table[table["k"] > 1].groupby("method")["ari"].mean()
    assert means[PURE] > means[RANDOM] + 0.05
    assert abs(means[RANDOM]) < 0.05


# --------------------------------------------------------------------------------------------------- a user's own file


@pytest.mark.parametrize("wrong", ["brightness", "file.txt:f", "file:f", "f", "file.py", ""])
def test_what_is_no_contestant(wrong: str) -> None:
    with pytest.raises(ModelError, match=r"can't tell what contestant .* is; expected 'FILE.py:FUNCTION'"):
        load_contestant(wrong)


def test_files_that_can_not_be_used(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    with pytest.raises(ModelError, match=r"there is no file .*mine.py.* with a function 'f'"):
        load_contestant(f"{path}:f")
    path.write_text("def g(task):\n    return 1\n")
    with pytest.raises(ModelError, match=r"mine.py' has no function 'f'"):
        load_contestant(f"{path}:f")
    path.write_text("1 / 0\n")
    with pytest.raises(ModelError, match=r"can't be run: ZeroDivisionError"):
        load_contestant(f"{path}:f")


def test_a_number_is_no_function(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("f = 3\n")
    with pytest.raises(ModelError):
        load_contestant(f"{path}:f")


def test_a_users_own_contestant(tmp_path: Path) -> None:
    task, path, calls = hand_task(tmp_path / "store"), tmp_path / "mine.py", tmp_path / "calls"
    text = (
        "from pathlib import Path\n"
        "def own(task):\n"
        "    with Path({!r}).open('a') as file:\n"
        "        file.write('x')\n"
        "    return {}\n"
    )
    path.write_text(text.format(str(calls), "task.study.circuits"))
    one = load_contestant(f"{path}:own")
    assert one.name == "own"
    assert one.clusterer is kmeans
    assert run(task, [one], choose=False)["ari"].tolist() == [1]
    assert run(task, [load_contestant(f"{path}:own")], choose=False)["ari"].tolist() == [1]
    assert calls.read_text() == "x"  # it was found again
    path.write_text(text.format(str(calls), "task.truth * 0"))
    changed = load_contestant(f"{path}:own")
    assert changed.fingerprint != one.fingerprint
    assert run(task, [changed], choose=False)["ari"].tolist() == [0]
    assert calls.read_text() == "xx"


@pytest.mark.nightly
def test_nobody_can_find_what_an_untrained_network_holds(tmp_path: Path) -> None:
    """The sources of random channels differ in nothing but their own columns: who finds them was told."""
    torch.manual_seed(0)
    block = [nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Sequential(*block), nn.AdaptiveAvgPool2d(1))
    study = Study.from_model(model.eval(), Items(noise(150)), "2", "1", n_references=60, store=tmp_path).replace(
        progress=False
    )
    table = run(planted_task(study, 12), contestants(planted_task(study, 12)), choose=False)
    means = table[(table["k"] > 1) & ~table["oracle"]].groupby("method")["ari"].mean()
    assert means.max() < 0.25


def test_sources_below_an_identity_shortcut_are_hidden(tmp_path: Path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.conv(x)).relu()

    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Sequential(Residual(), Residual()), nn.Flatten())
    study = Study.from_model(model.eval(), Items(noise(60)), "2", "1", n_references=20, store=tmp_path).replace(
        progress=False
    )
    task = planted_task(study, groups=((1, 4), (3, 3)))
    open_, hidden = task.replace(lower="nearest").circuits, task.circuits(lower="nearest")
    np.testing.assert_allclose(hidden[0][:, 1], open_[0][:, 1] + open_[0][:, 4], rtol=1e-6)
    assert not hidden[0][:, 4].any()
    np.testing.assert_array_equal(hidden[0][:, [0, 2, 3, 5]], open_[0][:, [0, 2, 3, 5]])
    np.testing.assert_array_equal(hidden[1], open_[1])


class Shortcut(nn.Module):
    """Six channels, and a block that adds something to them or stands beside them."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], width: int, stride: int = 1, **how: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, width, 3, padding=1, stride=stride, **how)
        self.project = nn.Conv2d(6, width, 1, stride=stride)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return (self.join(x, self.conv(x)) + 0 * self.project(x)[:, :1]).relu()


def padded(x: Tensor, out: Tensor) -> Tensor:
    """As in ResNets for CIFAR: every second pixel, and half of the new channels before, half after."""
    return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)) + out


def shuffled(x: Tensor, out: Tensor) -> Tensor:
    return functional.channel_shuffle(x, 2) + out


SHORTCUTS: dict[str, tuple[Callable[[], nn.Module], dict[int, int]]] = {
    "identity": (lambda: Shortcut(torch.add, 6), {c: c for c in range(6)}),
    "padded": (lambda: Shortcut(padded, 12, 2), {c + 3: c for c in range(6)}),
    "dense": (lambda: Shortcut(lambda *both: torch.cat(both, dim=1), 4), {c: c for c in range(6)}),
    "dense, new first": (lambda: Shortcut(lambda x, out: torch.cat([out, x], 1), 4), {c + 4: c for c in range(6)}),
    "shuffled": (lambda: Shortcut(shuffled, 6), {0: 0, 1: 3, 2: 1, 3: 4, 4: 2, 5: 5}),
    "permuted": (
        lambda: Shortcut(lambda x, out: x[:, [5, 3, 1, 0, 2, 4]] + out, 6),
        {0: 5, 1: 3, 2: 1, 3: 0, 4: 2, 5: 4},
    ),
    "pooled": (lambda: Shortcut(lambda x, out: functional.avg_pool2d(x, 2) + out, 6, 2), {c: c for c in range(6)}),
    "projected": (lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()), {}),
    "no shortcut": (lambda: Shortcut(lambda _, out: out, 8), {}),
    "groups": (lambda: Shortcut(lambda _, out: out, 6, groups=3), {}),
    "depthwise": (lambda: Shortcut(lambda _, out: out, 12, groups=6), {c: c // 2 for c in range(12)}),
    "gated": (
        lambda: Shortcut(lambda x, out: x * out.mean((2, 3), keepdim=True).sigmoid(), 6),
        {c: c for c in range(6)},
    ),
    "two": (
        lambda: nn.Sequential(
            Shortcut(lambda *both: torch.cat(both, dim=1), 4), ChannelsAway(), Shortcut(torch.add, 6)
        ),
        {c: c + 2 for c in range(4)},
    ),
}
"""A block over six channels, and which of them reaches which of its own straight."""


class ChannelsAway(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 2:8]


@pytest.mark.parametrize("case", SHORTCUTS)
def test_what_reaches_a_source_straight(case: str, tmp_path: Path) -> None:
    make, expected = SHORTCUTS[case]
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), make(), nn.Flatten()).eval()
    model[0].bias.data.fill_(0.5)
    study = Study.from_model(model, Items(noise(60)), "2", "1", n_references=10, store=tmp_path)
    study = study.replace(progress=False)
    references = study.references
    alive = np.flatnonzero(references.score.min(axis=1) > 0)
    assert len(alive) > 3
    found = straight(model, noise(1), alive, target="2", lower="1")
    assert found.shape == (len(alive), 6)
    for channel, row in zip(alive.tolist(), found):
        assert np.flatnonzero(row).tolist() == ([expected[channel]] if channel in expected else []), channel
    pairs = [(int(one), int(other)) for one, other in pairwise(alive)]
    task = planted_task(study, groups=(*pairs, (int(alive[0]),) * 2))
    open_, hidden = task.study.circuits, task.circuits()
    for own, (one, other) in enumerate(pairs):
        lower = sorted({expected[c] for c in (one, other) if c in expected})
        rest = [c for c in range(6) if c not in lower]
        np.testing.assert_array_equal(hidden[own][:, rest], open_[own][:, rest])
        if one in expected and other in expected:
            np.testing.assert_allclose(hidden[own][:, lower[0]], open_[own][:, lower].sum(axis=1), rtol=1e-5)
            assert not hidden[own][:, lower[1:]].any()
        else:
            assert not hidden[own][:, lower].any()
    np.testing.assert_array_equal(hidden[-1], open_[-1])


def test_lower_activations_are_hidden_as_circuits_are(tmp_path: Path) -> None:
    torch.manual_seed(1)
    block = Shortcut(padded, 12, 2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), block, nn.Flatten()).eval()
    study = Study.from_model(model, Items(noise(60)), "2", "1", n_references=20, store=tmp_path).replace(progress=False)
    for name in ("lower activation", "lower activation at maximum"):
        own = planted_task(study, groups=((4, 7), (5, 5))).activations[name]
        assert not own[0][:, 4].any()
        assert own[0][:, 1].any()
        assert own[1][:, 2].any()


def test_padded_shortcuts_of_a_real_network() -> None:
    """ResNet-20 for CIFAR-10: layer2 adds its input, every second pixel, to its middle channels."""
    folder = Path(module.__file__).parents[1] / "studies"
    weights = shared("models", "cifar10-resnet20.safetensors")
    model = load_model("cifar_resnet20.py:resnet20", weights, folder=folder)
    for target, lower, channels, width in (
        ("layer2", "layer1", 32, 16),
        ("layer3", "layer2", 64, 32),
        ("layer3", "layer1", 64, 16),
    ):
        found = straight(model, noise(1, 32), np.arange(channels), target=target, lower=lower)
        before = (channels - width) // 2
        for channel, row in enumerate(found):
            assert np.flatnonzero(row).tolist() == ([channel - before] if 0 <= channel - before < width else [])
