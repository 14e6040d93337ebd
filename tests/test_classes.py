"""A study with labels: class relevance, pairs of classes, and splits, kept and found again."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from sklearn.metrics import adjusted_rand_score
from small import Items, noise, plain, shared
from torch import Tensor, nn
from torch.utils.data import Dataset

from pure_nb import _splits as splits_module
from pure_nb import load_study
from pure_nb import study as study_module
from pure_nb._splits import Splitter
from pure_nb.classes import Classes
from pure_nb.compute import sweep as sweep_module
from pure_nb.compute.sweep import shards, sweep
from pure_nb.errors import (
    ArgumentError,
    ImageError,
    NonFiniteError,
    StudyError,
    StudyWarning,
    WordNetError,
)
from pure_nb.images.data import Images
from pure_nb.images.sources import folder_images
from pure_nb.methods import wordnet
from pure_nb.methods.agreement import agreement, similarity_matrix
from pure_nb.methods.ownership import assign_sources
from pure_nb.methods.pairs import class_pairs, gamma_polysemantic
from pure_nb.methods.relevance import ClassRelevance
from pure_nb.methods.rewiring import SplitChannel, split_channel
from pure_nb.methods.virtual import kmeans, part_name, refitted
from pure_nb.methods.wordnet import shipped_wordnet
from pure_nb.network.layers import get_layer
from pure_nb.parameters import Run
from pure_nb.study import Study

CLASSES = ["cat", "cow", "hammer", "urn"]


class Labelled(Dataset[Any]):
    """Noise of four classes, each with its own pattern on top."""

    def __init__(self, count: int = 40, classes: list[str] | None = None) -> None:
        self.classes = CLASSES if classes is None else classes
        self.targets = [number % 4 for number in range(count)]
        self.images = noise(count) + 3 * noise(4, seed=9)[self.targets]
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded.append(index)
        return self.images[index], self.targets[index]


def mine(tmp_path: Path, images: Any = None, model: nn.Module | None = None, **how: Any) -> Study:
    settings: dict[str, Any] = {"n_references": 10, "store": tmp_path / "store", "min_frequency": 0.5, **how}
    target, lower = settings.pop("target", "4"), settings.pop("lower", "input:4")
    images = Labelled() if images is None else images
    return Study.from_model(model or plain(5, 12), images, target, lower, **settings).replace(progress=False)


@pytest.mark.parametrize("lower", ["input:4", "0"])
def test_classes_are_those_of_a_sweep(tmp_path: Path, lower: str) -> None:
    study = mine(tmp_path, lower=lower)
    module = get_layer(study.model, "4") if lower == "input:4" else None
    own = ClassRelevance("4", lower, np.array(study.images.dataset.targets), 4, module=module)  # type: ignore[attr-defined]
    sweep(study.model, study.images, [own], run=Run(batch_size=7, progress=False))
    expected = own.result()
    assert study.classes.names == tuple(CLASSES)
    assert (study.classes.statistics.relevant == expected.relevant).all()
    np.testing.assert_allclose(study.classes.statistics.pooled, expected.pooled, rtol=1e-5)
    assert study.classes.pairs.round(4).equals(class_pairs(expected, study.model, CLASSES, min_frequency=0.5).round(4))
    assert len(study.classes.pairs) > 5


def test_one_pass_finds_references_and_classes(tmp_path: Path) -> None:
    images = Labelled()
    study = mine(tmp_path, images)
    _ = study.images.fingerprint, study.classes.names  # look at some images
    images.loaded.clear()
    classes, references = study.classes.statistics, study.references
    assert images.loaded == list(range(40))
    alone = mine(tmp_path / "other")
    assert (alone.references.sample == references.sample).all()
    assert (alone.references.score == references.score).all()
    np.testing.assert_array_equal(alone.classes.statistics.pooled, classes.pooled)
    again = mine(tmp_path, images)
    _ = again.images.fingerprint, again.classes.names
    images.loaded.clear()
    assert (again.references.sample == references.sample).all()
    np.testing.assert_array_equal(again.classes.statistics.pooled, classes.pooled)
    assert not images.loaded


def test_what_classes_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another threshold is another pass, since it decides image by image; another p is not."""
    study = mine(tmp_path)
    first = study.classes.statistics
    monkeypatch.setattr(study_module, "sweep", lambda *_, **__: pytest.fail("a pass"))
    assert len(study.replace(min_frequency=0.9).classes.pairs) < len(study.classes.pairs)
    assert (study.replace(n_clusters=3, n_references=5, rule="lrp").classes.statistics.relevant == first.relevant).all()
    for change in ({"min_share": 0.3}, {"cumulative_share": 0.5}, {"seed": 1}, {"target": "2", "lower": "input:2"}):
        with pytest.raises(pytest.fail.Exception):
            _ = study.replace(**change).classes.statistics
    monkeypatch.undo()
    assert study.replace(min_share=0.3).classes.statistics.relevant.sum() < first.relevant.sum()
    assert study.replace(cumulative_share=0.5).classes.statistics.relevant.sum() < first.relevant.sum()


@pytest.mark.parametrize("change", [{"n_references": 20}, {"ranked_by": "mean"}])
@pytest.mark.parametrize("referenced", [False, True])
def test_stopped_and_resumed_with_other_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], referenced: bool
) -> None:
    """The shards of a pass that looked for other references, or for none, are not taken for this one's."""
    monkeypatch.setattr(sweep_module, "shards", partial(shards, size=8))
    images = Labelled()
    study = mine(tmp_path, images, n_references=3).replace(batch_size=4)
    if referenced:
        _ = study.references  # then the pass for the classes looks for no references
    _ = study.images.fingerprint, study.classes.names
    broken, images.images = images.images, images.images.clone()
    images.images[30] = float("nan")
    with pytest.raises(NonFiniteError):
        _ = replace(study).classes.statistics
    images.images = broken
    assert list((tmp_path / "store").rglob("shard-*.safetensors"))  # so there is something to be mistaken for its own
    resumed = mine(tmp_path, images, n_references=3).replace(batch_size=4, **change)
    whole = mine(tmp_path / "other", images, n_references=3).replace(batch_size=4, **change)
    np.testing.assert_allclose(resumed.classes.statistics.pooled, whole.classes.statistics.pooled)
    assert (resumed.references.sample == whole.references.sample).all()
    assert (mine(tmp_path, images, n_references=3).replace(**change).references.sample == whole.references.sample).all()


class Torn(Labelled):
    """Two of its images can't be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in (4, 7):
            raise OSError("gone")
        return super().__getitem__(index)


def test_unreadable_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="image 4 "):
        _ = mine(tmp_path, Torn()).classes.statistics
    study = mine(tmp_path, Torn()).replace(skip_unreadable=True)
    assert study.classes.statistics.images.tolist() == [9, 10, 10, 9]
    again = mine(tmp_path, Torn())
    with pytest.raises(ImageError, match=r"2 images could not be read and were left out .*skip_unreadable=True"):
        _ = again.classes.pairs
    split = study.classes.split(1, ["urn", "cat"])
    assert len(split.labels) == 18
    assert not set(split.activations.sample) & {4, 7}
    gamma = float(study.classes.pairs["cosine"].max()) + 1
    assert len(study.classes.ratios(gamma)) == len(study.classes.pairs)


def test_glyphs_have_pictures_of_single_objects(glyph_study: Study) -> None:
    assert len(glyph_study.classes.labelled) == 4 * 48  # 50 of each where conftest leaves them
    assert glyph_study.classes.labelled is not glyph_study.images
    assert len(glyph_study.classes.names) == 48
    pictures = glyph_study.classes.pictures("cat", 3)
    assert [picture.shape for picture in pictures] == [(96, 96, 3)] * 3


def test_without_labels(tmp_path: Path) -> None:
    study = mine(tmp_path, Items(noise(15)))
    with pytest.raises(ImageError, match="have no labels; a data set with classes has the attributes targets"):
        _ = study.classes.statistics
    _ = study.references


def test_classes_that_are_not_the_networks(tmp_path: Path) -> None:
    study = mine(tmp_path, Labelled(classes=["cat", "cow", "hammer"]))
    with pytest.raises(ImageError, match=r"are of 3 classes \(cat, cow, hammer ...\) and the network puts out 4"):
        _ = study.classes.pairs


def test_folders_named_by_imagenets_ids(tmp_path: Path) -> None:
    """Four of the thousand: their numbers are ImageNet's, whatever order the folders have."""
    wnids = ["n01440764", "n01443537", "n02979186", "n03888257"]
    model = nn.Sequential(*list(plain())[:-1], nn.Linear(6, 1000)).eval()
    study = mine(tmp_path, Labelled(classes=wnids), model)
    labels, names = study.classes._labels
    assert len(names) == 1000
    assert [names[label] for label in labels[:4]] == wnids
    assert labels[:4].tolist() == [0, 1, 482, 701]
    assert study.classes.statistics.images.sum() == 40
    assert np.isnan(study.classes.statistics.frequency[5]).all()
    assert set(study.classes.pairs["class_1"]) <= set(wnids)


def test_a_network_that_puts_out_no_classes(tmp_path: Path) -> None:
    study = mine(tmp_path, model=nn.Sequential(*list(plain())[:-3]).eval())
    with pytest.raises(StudyError, match=r"one tensor \[images, classes\]; Sequential does not"):
        _ = study.classes.names


def test_wordnet_beside_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = mine(tmp_path)
    pairs = study.classes.wordnet_pairs(shipped_wordnet(), ("wup", "lch"))
    assert pairs[study.classes.pairs.columns.tolist()].equals(study.classes.pairs)
    meant = study.classes.wordnet_pairs(shipped_wordnet(), ("wup",), {"urn": "king.n.10"})
    assert set(meant["synset_2"][meant["class_2"] == "urn"]) == {"king.n.10"}
    assert set(pairs["synset_2"][pairs["class_2"] == "urn"]) != {"king.n.10"}
    own = pairs[(pairs["class_1"] == "cat") & (pairs["class_2"] == "cow")]
    assert len(own)
    assert own["wup"].tolist() == pytest.approx([0.6875] * len(own))

    def nowhere() -> None:
        raise WordNetError("no WordNet at all")

    monkeypatch.setattr(wordnet, "find_wordnet", nowhere)
    with pytest.raises(WordNetError, match="no WordNet at all"):
        study.classes.wordnet_pairs()


def test_agreement_of_a_study(tmp_path: Path) -> None:
    study = mine(tmp_path)
    how: dict[str, Any] = {"permutations": 9, "replicates": 5, "seed": 3}
    found = study.classes.agreement("lch", shipped_wordnet(), **how)
    assert found == agreement(study.classes.pairs, similarity_matrix(shipped_wordnet(), CLASSES, None, "lch"), **how)
    assert found.n > 5
    with pytest.raises(ArgumentError, match="at least three pairs of classes with a similarity, got 0"):
        mine(tmp_path, Labelled(classes=["wug", "dax", "blick", "toma"])).classes.agreement("wup", shipped_wordnet())


def test_the_shipped_world_needs_no_wordnet(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet, "find_wordnet", lambda: pytest.fail("looked for WordNet"))
    study = glyph_study.replace(target="layer4.0.conv2", lower="input:layer4.0.conv2")
    pairs = study.classes.wordnet_pairs()
    assert pairs[["wup", "path", "lch"]].notna().all().all()
    assert gamma_polysemantic(pairs)["cosine"].max() < 0.5


def test_split_between_classes(tmp_path: Path) -> None:
    study = mine(tmp_path)
    split = study.classes.split(1, ["urn", "cat"])
    targets = np.array(study.images.dataset.targets)  # type: ignore[attr-defined]
    assert split.concepts == ("urn", "cat")
    assert split.activations.sample.tolist() == np.flatnonzero((targets == 0) | (targets == 3)).tolist()
    assert (split.labels == (targets[split.activations.sample] == 0)).all()
    assert split.table()["part"].tolist() == ["urn", "cat", "residual"] * 2
    # Every second image of each class makes the vectors, and those that do not are in the table.
    for number, label in enumerate([3, 0]):
        own = np.flatnonzero(targets == label)[::2]
        assert split.activations.sample[split.training & (split.labels == number)].tolist() == own.tolist()
        below = study.model[:4](torch.stack([study.images.tensor(i) for i in own.tolist()])).detach().double()  # type: ignore[index]
        weight = study.model[4].weight[1].detach().double()  # type: ignore[index, union-attr]
        seen_by = nn.functional.unfold(below, 3, padding=1).sum(dim=2).reshape(len(own), 7, 9)  # over the positions
        expected = (seen_by * weight.reshape(7, 9)).sum(dim=2).mean(dim=0)
        np.testing.assert_allclose(split.arvs[number], expected, rtol=1e-4)
    seen = study.classes.split(1, ["urn", "cat"], held_out=False)
    np.testing.assert_allclose(seen.arvs, study.classes.statistics.arv(study.model, 1, [3, 0]))
    assert not np.allclose(seen.arvs, split.arvs, rtol=1e-2)
    assert (seen.training == split.training).all()
    for number, label in enumerate([3, 0]):
        assert split.activations.relevant[split.labels == number].sum() == study.classes.statistics.relevant[label, 1]
    changed = split.model(study.model)
    assert isinstance(get_layer(changed, "4"), SplitChannel)
    torch.testing.assert_close(changed(noise(3)), study.model(noise(3)), rtol=1e-5, atol=1e-5)


def test_split_between_virtual_neurons(tmp_path: Path) -> None:
    """No label is looked at: the concepts are the parts of the neuron, with the means of their circuits."""
    study = mine(tmp_path, Items(noise(30)), n_references=20, n_clusters=3)
    neuron = study.neuron(2)
    split = study.classes.split(2)
    assert split.concepts == ("A", "B", "C")
    assert split.activations.sample.tolist() == neuron.sample.tolist()
    seen = study.classes.split(2, held_out=False)
    assert seen.labels.tolist() == neuron.virtual.labels.tolist()
    for part in range(3):
        mean = neuron.vectors[neuron.virtual.labels == part].mean(axis=0)
        np.testing.assert_allclose(seen.arvs[part], mean, rtol=1e-5)
    # Held out: half of each part is clustered anew, and the others are with the nearest centre of those.
    assert (split.training == seen.training).all()
    half = kmeans(neuron.vectors[split.training], 3)
    assert adjusted_rand_score(half, split.labels[split.training]) == 1
    for part in range(3):
        mean = neuron.vectors[split.training & (split.labels == part)].mean(axis=0)
        np.testing.assert_allclose(split.arvs[part], mean, rtol=1e-5)
    for vector, label in zip(neuron.vectors[~split.training], split.labels[~split.training]):
        assert label == np.argmin([np.sum((vector - centre) ** 2) for centre in split.arvs])
    changed = split.model(study.model)
    torch.testing.assert_close(changed(noise(3)), study.model(noise(3)), rtol=1e-5, atol=1e-5)


def test_clusters_of_a_half_keep_the_numbers_of_the_whole() -> None:
    """The first part is the smaller one in the half; a vector outside of it lies nearer to the other's centre."""
    vectors = np.array([[0.0], [1], [2], [3], [20], [21], [4]])
    parts, training = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([True, False, False, False, True, True, False])
    assert refitted(vectors, parts, training).tolist() == [0, 0, 0, 0, 1, 1, 0]
    with pytest.raises(ArgumentError, match="makes 1 clusters and not 2: ask for fewer parts"):
        refitted(np.ones((7, 1)), parts, training)


def lamps() -> nn.Sequential:
    """Channel 0 is x0 + 2 x1, at four positions, and all that tells a class; channel 1 is nothing."""
    model = nn.Sequential(
        nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2], [0, 0]])[..., None, None])
        model[4].weight.copy_(torch.tensor([[1.0, 0], [1, 0]]))
    return model.eval()


class Lamps(Dataset[Any]):
    """Pictures of two even colours, and their classes."""

    def __init__(self, *colours: tuple[float, float], targets: list[int], classes: str = "left right") -> None:
        self.images = torch.tensor(colours).float()[:, :, None, None].expand(-1, -1, 2, 2)
        self.targets, self.classes = targets, classes.split()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def test_what_is_held_out_in_numbers(tmp_path: Path) -> None:
    """Images 0 and 2 fit. The others show each class in the other's colour, which only a fit to all could know."""
    images = Lamps((1, 0), (0, 2), (0, 1), (4, 0), targets=[0, 0, 1, 1])
    study = mine(tmp_path, images, lamps(), target="0", lower="input:0", n_references=2)
    split = study.classes.split(0, ["left", "right"])
    assert split.training.tolist() == [True, False, True, False]
    assert split.arvs.tolist() == [[4, 0], [0, 8]]  # of one image each: colour times weight at four positions
    assert split.owner.tolist() == [0, 1]
    assert split.table()["positive"].tolist() == [0, 1, 0, 1, 0, 0]
    seen = study.classes.split(0, ["left", "right"], held_out=False)
    assert seen.arvs.tolist() == [[2, 8], [8, 4]]  # means of two: (4, 0) and (0, 16), (0, 8) and (16, 0)


def test_validation_of_ones_own_in_numbers(tmp_path: Path) -> None:
    """All images of the study fit; the table is of the others, whose classes are found by name, in another order."""
    images = Lamps((1, 0), (3, 0), (0, 1), (0, 2), targets=[0, 0, 1, 1])
    study = mine(tmp_path, images, lamps(), target="0", lower="input:0", n_references=2)
    own = Lamps((1, 1), (0, 5), (2, 3), targets=[0, 0, 1], classes="right left")
    split = study.classes.split(0, ["left", "right"], validation=own)
    assert split.training.tolist() == [True] * 4 + [False] * 3
    assert split.arvs.tolist() == [[8, 0], [0, 12]]  # of all images: means of 4 and 12, and of 8 and 16
    assert split.labels.tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert split.activations.original[4:].tolist() == [12, 40, 32]  # 1 + 2, 10 and 2 + 6, four times
    table = split.table()
    # Of left's image 2 of 8 are its own; of right's 2 of 3, and all.
    assert table["positive"].tolist() == pytest.approx([1 / 4, 3 / 4, 0, 1 / 6, 5 / 6, 0])
    assert table["signed"].tolist() == pytest.approx(table["positive"].tolist())
    assert table["positive_n"].tolist() == [1, 1, 1, 2, 2, 2]
    ratios = study.classes.ratios(2, validation=own)
    assert ratios["positive_own"].tolist() == pytest.approx([(1 / 4 + 5 / 6) / 2])
    assert study.classes.ratios(2)["positive_own"].tolist() == [1]  # not the one that was kept
    with pytest.raises(StudyError, match="the images for validation show no 'right'; their classes are left, right"):
        study.classes.split(0, ["left", "right"], validation=Lamps((1, 1), targets=[0]))


def test_validation_of_virtual_neurons_needs_no_labels(tmp_path: Path) -> None:
    study = mine(tmp_path, Items(noise(30)), n_references=20, n_clusters=2)
    own = noise(6, seed=5)
    split = study.classes.split(2, validation=own)
    assert split.training.tolist() == [True] * 20 + [False] * 6
    assert split.labels[:20].tolist() == study.neuron(2).virtual.labels.tolist()
    assert split.labels[20:].tolist() == study.neuron(2).predict(own).tolist()
    assert split.concepts == (part_name(0), part_name(1))


def test_no_pairs_say_what_finds_some(tmp_path: Path) -> None:
    """Of each class, channel 0 carries a third and channel 1 the rest."""
    model = lamps()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2], [2, 4]])[..., None, None])
        model[4].weight.fill_(1)
    study = mine(tmp_path, Lamps((1, 0), (0, 1), targets=[0, 1]), model, target="0", lower="input:0", n_references=2)
    with pytest.warns(
        StudyWarning, match=r"by min_share=0\.7 in 50% of their images, so there are no pairs; cumulative_share=0\.8"
    ):
        assert study.replace(min_share=0.7).classes.pairs.empty
    assert study.replace(min_share=0.7, cumulative_share=0.6).classes.pairs["channel"].tolist() == [1]
    assert sorted(study.replace(min_share=0.7, cumulative_share=0.8).classes.pairs["channel"]) == [0, 1]


def test_split_of_a_grouped_convolution(tmp_path: Path) -> None:
    """Sources are the channels of the group only."""
    torch.manual_seed(0)
    model = plain()
    model[4] = nn.Conv2d(7, 7, 3, padding=1, groups=7)
    model[8] = nn.Linear(7, 4)
    study = mine(tmp_path, model=model.eval())
    split = study.classes.split(3, ["cat", "cow"])
    assert split.arvs.shape == (2, 1)
    changed = split.model(model)
    torch.testing.assert_close(changed(noise(3)), model(noise(3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "channel", "classes", "error", "message"),
    [
        ({}, 12, ["cat", "cow"], ArgumentError, "channel 12: layer '4' has channels 0 to 11"),
        ({}, 1, ["cat", "ur"], StudyError, "there is no class 'ur' among 4; near it: urn"),
        ({}, 1, ["cat"], StudyError, r"between two or more different classes, got \['cat'\]"),
        ({}, 1, ["cat", "cat"], StudyError, "between two or more different classes"),
        (
            {"lower": "2"},
            1,
            ["cat", "cow"],
            StudyError,
            r"lower='2' is no such pair. .* \('4'\) and 'input:'",
        ),
        ({"target": "5", "lower": "input:5"}, 1, None, StudyError, "target='5' with .*none is inside"),
        (
            {"n_clusters": 1},
            1,
            None,
            StudyError,
            "channel 1 has a single virtual neuron, .*name classes, or ask for parts with n_clusters=2",
        ),
    ],
)
def test_wrong_splits(
    tmp_path: Path, how: dict[str, Any], channel: int, classes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mine(tmp_path, **how).classes.split(channel, classes)


def test_a_class_of_one_image_can_not_be_split(tmp_path: Path) -> None:
    images = Labelled(9)
    images.targets[3] = images.targets[7] = 0
    images.targets[3] = 3
    study = mine(tmp_path, images)
    _ = study.classes.statistics
    images.loaded.clear()
    with pytest.raises(StudyError, match="each concept needs two images, urn has fewer"):
        study.classes.split(1, ["cat", "urn"])
    assert not images.loaded  # it is said before anything is run


def test_ratios_of_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = mine(tmp_path)
    gamma = float(study.classes.pairs["cosine"].quantile(0.2))
    found = study.classes.ratios(gamma)
    below = gamma_polysemantic(study.classes.pairs, gamma)
    assert len(found) == len(below) > 1
    pd.testing.assert_frame_equal(found[["channel", "class_1", "class_2", "cosine"]], below[found.columns[:4]])
    row = found.iloc[0]
    split = study.classes.split(row["channel"], [row["class_1"], row["class_2"]])
    first, second = split.concepts
    assert row["rho"] == split.rho
    for sums in ("positive", "signed"):
        table = split.table().set_index(["images", "part"])[sums]
        assert row[f"{sums}_own"] == pytest.approx((table[first, first] + table[second, second]) / 2)
        assert row[f"{sums}_other"] == pytest.approx((table[first, second] + table[second, first]) / 2)
        assert row[f"{sums}_residual"] == pytest.approx((table[first, "residual"] + table[second, "residual"]) / 2)
    whole = found["signed_own"] + found["signed_other"] - found["signed_residual"]
    np.testing.assert_allclose(whole, 1, rtol=1e-4)
    published = study.classes.ratios(gamma, ownership="published", clamp="positions", score="ratio")
    assert not published["rho"].equals(found["rho"])
    assert study.classes.ratios(-1).empty
    again = mine(tmp_path)
    monkeypatch.setattr(Splitter, "splits", lambda *_: pytest.fail("split again"))
    pd.testing.assert_frame_equal(again.classes.ratios(gamma), found)


@pytest.mark.parametrize("most", [0, 1e9])
def test_images_are_run_once_for_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    """All, and before that the half that splits are fitted to, and not two classes for each of the pairs."""
    images = Labelled()
    study = mine(tmp_path, images)
    _ = study.classes.pairs
    images.loaded.clear()
    monkeypatch.setattr(splits_module, "MOST_BYTES", most)
    found = study.classes.ratios(2)
    pairs = len(found.drop_duplicates(["channel", "class_1", "class_2"]))
    assert len(found) == pairs > 8
    assert len(images.loaded) == (20 + 40 if most else 20 + 20 * pairs)
    for row in found.itertuples(index=False):
        split = study.classes.split(row.channel, [row.class_1, row.class_2])
        assert split.rho == row.rho
        assert split.table()["signed"].to_numpy()[[0, 4]].mean() == pytest.approx(row.signed_own, rel=1e-5)


def test_ratios_where_a_class_has_one_image(tmp_path: Path) -> None:
    images = Labelled(40)
    images.targets = [0 if label == 3 else label for label in images.targets]
    images.targets[3] = 3
    study = mine(tmp_path, images)
    found = study.classes.ratios(2)
    single = (found["class_1"] == "urn") | (found["class_2"] == "urn")
    assert 0 < single.sum() < len(found)
    assert found[single].loc[:, "rho":].isna().all().all()  # type: ignore[misc]
    assert found[~single]["rho"].notna().all()


@pytest.mark.nightly
def test_real_photographs_of_ten_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ResNet-50 and folders with ImageNet's ids: labels are found, and a split changes no answer."""
    root, weights = shared("data", "imagenette", "val"), shared("models", "imagenet-resnet50.safetensors")
    layer = "layer4.2.conv3"
    study = load_study("imagenet-resnet50", data=root, weights=weights, store=tmp_path)
    study = study.replace(target=layer, lower=f"input:{layer}", progress=False)
    labels, names = study.classes._labels
    assert (len(names), len(labels)) == (1000, 1000)
    assert {names[label] for label in labels} == {path.name for path in root.iterdir()}
    some = np.flatnonzero(np.arange(1000) % 125 < 2).tolist()
    few = Images(torch.utils.data.Subset(study.images.dataset, some), "few")
    arvs = np.abs(np.random.default_rng(0).normal(size=(2, 512)))
    split = split_channel(study.model, layer, 7, assign_sources(arvs, 0.8))
    pictures = torch.stack([few.tensor(i) for i in range(len(few))])
    with torch.inference_mode():
        before, after = study.model.eval()(pictures), split.eval()(pictures)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-4)
    assert (after.argmax(dim=1) == before.argmax(dim=1)).all()
    right = np.mean(before.argmax(dim=1).numpy() == labels[some])
    assert right > 0.4


# Do the labels fit the network?


class Answered(Labelled):
    """Images whose labels are what the network says, or the next class."""

    def __init__(self, model: nn.Module, shift: int = 0, count: int = 90) -> None:
        super().__init__(count)
        with torch.no_grad():
            found = model(self.images).argmax(dim=1).numpy()
        assert len(np.unique(found)) > 1
        self.targets = ((found + shift) % 4).tolist()


def said_of(study: Study) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StudyWarning)
        _ = study.classes.names
    return [str(warning.message) for warning in caught if issubclass(warning.category, StudyWarning)]


def answering() -> nn.Sequential:
    """A network that gives different answers to different images."""
    model = plain(5, 12)
    with torch.no_grad():
        out = model(Labelled(90).images)
        model[-1].bias -= out.mean(dim=0)  # type: ignore[operator]
    return model


def test_labels_that_do_not_fit_the_network(tmp_path: Path) -> None:
    model = answering()
    fits, shifted = Answered(model), Answered(model, shift=1)
    assert said_of(mine(tmp_path, fits, model)) == []
    (said,) = said_of(mine(tmp_path, shifted, model))
    assert "largest output is the label of 0 of 64 images of 'mine', no more than by chance" in said
    assert "order of the network's outputs (cat, cow, hammer ...)" in said
    # It is remembered, and said again.
    again = mine(tmp_path, shifted, model)
    _ = again.images.fingerprint
    shifted.loaded.clear()
    assert said_of(again) == [said]
    assert shifted.loaded == []
    assert said_of(again.replace(min_share=0.2)) == [said]
    # Nothing is said of what can't be told.
    assert said_of(mine(tmp_path / "few", Answered(model, 1, count=6), model)) == []


def test_a_part_of_the_images_can_not_be_read(tmp_path: Path) -> None:
    class Holed(Answered):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index % 3 == 1:
                raise OSError("gone")
            return super().__getitem__(index)

    model = answering()
    (said,) = said_of(mine(tmp_path, Holed(model, shift=1), model))
    assert re.search(r"the label of 0 of (3\d|4\d) images", said)
    with pytest.raises(ImageError, match="image 1 "):
        _ = mine(tmp_path, Holed(model), model).classes.statistics


def test_glyphs_are_not_asked(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classes, "_doubt", lambda *_: pytest.fail("asked"))
    assert len(replace(glyph_study).classes.names) == 48


@pytest.mark.slow
def test_folders_that_are_numbers(tmp_path: Path) -> None:
    """As ImageNetV2's are, of photographs that a network knows."""
    root = tmp_path / "v2"
    photographs = sorted(shared("data", "imagenet-sample").glob("*/*.JPEG"))
    model = torchvision.models.resnet50(weights=None)
    weights = load_file(shared("models", "imagenet-resnet50.safetensors"))
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    for number, photograph in enumerate(photographs):
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / photograph.name).symlink_to(photograph.resolve())
    study = mine(
        tmp_path, folder_images(root), model, target="layer4.2.conv3", lower="input:layer4.2.conv3", batch_size=8
    )
    assert said_of(study) == []
    labels, names = study.classes._labels
    assert labels.tolist() == [int(Path(study.images.path(i)).parent.name) for i in range(1000)]
    assert names == tuple(map(str, range(1000)))
    assert study.store is not None
    (kept,) = study.store.folder.glob("labels-*.safetensors")
    found = load_file(kept)
    # The accuracy that was measured against the folders' own order, by hand, is 0.75.
    assert (found["label"] == found["answer"]).float().mean() > 0.6
