"""A study from end to end: found again when nothing changed, computed again when something did."""

from __future__ import annotations

import warnings
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small import Items, noise, picture_folder, plain, shared
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

import pure_nb
from pure_nb import crops as crops_module
from pure_nb import study as study_module
from pure_nb._keeping import OF_PARTS, OF_STUDY
from pure_nb.benchmark.contestants import contestants
from pure_nb.benchmark.tasks import planted_task
from pure_nb.compute import blocks
from pure_nb.compute import sweep as sweep_module
from pure_nb.errors import (
    ArgumentError,
    ImageError,
    LayerError,
    ModelError,
    NonFiniteError,
    StoreWarning,
    StudyError,
    StudyWarning,
)
from pure_nb.figures.render import boxes, cropped, heatmaps, views
from pure_nb.glyphs import CLASSES, MEAN, STD, GlyphScenes
from pure_nb.glyphs.network import GlyphNet
from pure_nb.images.data import Images
from pure_nb.images.sources import as_images
from pure_nb.judges.truth import shares
from pure_nb.loading import load_study, shipped_studies
from pure_nb.methods.virtual import embed, virtual_neurons
from pure_nb.neuron import ranked
from pure_nb.parameters import RUN, Crop, Parameters, Run
from pure_nb.study import Study

TOML = """\
name = "small"
[model]
source = "glyphnet"
[images]
source = "glyphs"
length = 60
[parameters]
target = "layer4"
lower = "layer3"
n_references = 8
n_clusters = 2
[run]
batch_size = 30
progress = false
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TOML)
    return path


def mine(tmp_path: Path, model: nn.Module | None = None, images: Any = None, **how: Any) -> Study:
    """A study so small that it takes no time: six channels, 15 images."""
    settings: dict[str, Any] = {"n_references": 6, "n_clusters": 2, "store": tmp_path / "store", **how}
    target, lower = settings.pop("target", "4"), settings.pop("lower", "2")
    return Study.from_model(model or plain(), Items(noise(15)) if images is None else images, target, lower, **settings)


def without_network(study: Study) -> Study:
    """The same study, where no part of the network may run."""

    def fail(*_: Any) -> Any:
        raise AssertionError("the network ran")

    study._weights  # noqa: B018, the fingerprint of the true class, which is kept
    kind = type(study.model)
    study.model.__class__ = type(kind.__name__, (kind,), {"__call__": fail})
    return study


def found_again(tmp_path: Path, **how: Any) -> Study:
    return without_network(mine(tmp_path, **how))


def contents(study: Study) -> tuple[Any, ...]:
    r = study.references
    parts = [(v.labels.tobytes(), v.centroids.tobytes(), v.k) for v in study.virtual]
    arrays = tuple(array.tobytes() for array in (r.sample, r.score, r.position, study.circuits))
    return (*arrays, parts, study.neurons.to_csv())


def test_the_package() -> None:
    assert set(pure_nb.__all__) <= set(dir(pure_nb))
    assert pure_nb.__version__.count(".") == 2


def test_a_study_of_glyphs(toml: Path, tmp_path: Path) -> None:
    study = load_study(toml, store=tmp_path / "store")
    assert (study.name, len(study.images), study.run.batch_size) == ("small", 60, 30)
    assert study.shapes[0].channels == 32
    assert study.references.sample.shape == (32, 8)
    assert study.circuits.shape == (32, 8, 64)
    table = study.neurons
    assert sorted(table["channel"]) == list(range(32))
    scores = table["score"].dropna().to_numpy()
    assert np.isnan(table["score"][len(scores) :]).all() or not len(scores)
    for row in table.itertuples():
        neuron = study.neuron(row.channel)
        assert row.k == neuron.virtual.k
        assert row.sizes == " ".join(str(size) for size in np.bincount(neuron.virtual.labels))
        assert row.strongest == neuron.score[0]
        assert row.meanings == neuron.meanings()
    assert study.store is not None
    assert study.store.folder == tmp_path / "store" / "small"
    assert {m["file"].split("-")[0] for m in study.store.manifests()} == {
        "references",
        "circuits",
        "virtual",
        "neurons",
        "objects",
        "stability",
    }
    assert not [path for path in study.store.folder.iterdir() if path.is_dir()]  # the shards are cleared away


def test_layouts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = mine(tmp_path)
    found = study.layouts
    np.testing.assert_array_equal(found[2], embed(study.circuits[2], seed=0))
    again = mine(tmp_path)
    monkeypatch.setattr(study_module, "embed", None)
    np.testing.assert_array_equal(again.neuron(2).layout(), found[2])
    monkeypatch.undo()
    alone = mine(tmp_path / "other")
    np.testing.assert_array_equal(alone.neuron(2).layout(), found[2])
    assert alone.store is not None
    assert "layouts" not in {m["file"].split("-")[0] for m in alone.store.manifests()}


def test_layouts_go_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = mine(tmp_path)
    expected = np.stack([embed(own, seed=0) for own in study.circuits])
    monkeypatch.setattr("pure_nb.compute.blocks.NEURONS", 3)
    made: list[int] = []

    def stops(vectors: Any, seed: int) -> Any:
        made.append(seed)
        if len(made) == 5:
            raise KeyboardInterrupt
        return embed(vectors, seed=seed)

    monkeypatch.setattr(study_module, "embed", stops)
    with pytest.raises(KeyboardInterrupt):
        study.layouts  # noqa: B018
    np.testing.assert_array_equal(mine(tmp_path).layouts, expected)
    assert len(made) == 5 + len(expected) - 3  # the first block is not laid out again


def test_one_neuron_needs_its_own_pairs_alone(tmp_path: Path, pairs: list[int]) -> None:
    """Of a network that was never run: the sweep, and once the circuits of the one neuron."""
    study = mine(tmp_path)
    neuron = study.neuron(2)
    neuron.plot()
    assert pairs == [2] * study.references.n
    parts = neuron.with_clusters(neuron.vectors, 3)
    parts.plot()  # whose layout is that of the same circuits
    assert pairs == [2] * study.references.n
    found, labels = study.virtual_of(2, neuron.vectors), study.virtual[2].labels  # all of them, now
    np.testing.assert_array_equal(found.labels, labels)
    del pairs[:]
    study.neuron(3).plot()
    assert pairs == []


def test_the_table_is_sorted_by_score(tmp_path: Path) -> None:
    study = mine(tmp_path, n_clusters=0)
    scores = study.neurons["score"].dropna().to_numpy()
    assert len(scores) > 3
    assert (np.diff(scores) <= 0).all()


def test_neurons_that_are_left_whole_are_sorted_by_their_gain(tmp_path: Path) -> None:
    study = mine(tmp_path, n_clusters=1)
    table = study.neurons
    assert (table["score"] == 0).all()
    gain = [study.virtual[channel].silhouette_gain for channel in table["channel"]]
    assert table["silhouette_gain"].tolist() == gain == sorted(gain, reverse=True)
    values = np.random.default_rng(0).permutation(len(table)) / 10.0
    own = [replace(parts, silhouette_gain=value, p=1.0) for parts, value in zip(study.virtual, values)]
    found = ranked(table, own)
    assert found["channel"].tolist() == np.argsort(-values).tolist()
    assert found["silhouette_gain"].tolist() == sorted(values, reverse=True)


def test_the_false_discovery_rate_is_over_the_living(tmp_path: Path) -> None:
    model = plain()
    model[4].bias.data[3] = -100
    study = mine(tmp_path, model, n_clusters=0)
    table = study.neurons
    alive = study.references.alive[table["channel"]]
    p = table["p"][alive].sort_values()
    rates = [p.iloc[rank] * len(p) / (rank + 1) for rank in range(len(p))]
    expected = pd.Series([min([1.0, *rates[rank:]]) for rank in range(len(p))], index=p.index)
    assert table["q"][alive].to_dict() == pytest.approx(expected.to_dict())
    assert table["q"][~alive].isna().tolist() == [True]


def test_the_most_polysemantic_come_first_and_the_dead_not_at_all(tmp_path: Path) -> None:
    model = plain()
    model[4].bias.data[3] = -100
    study = mine(tmp_path, model, n_clusters=0)
    table = study.neurons
    assert table["channel"].iloc[-1] == 3
    assert study.most_polysemantic() == table["channel"].tolist()[:-1]
    assert study.most_polysemantic(2) == table["channel"].tolist()[:2]


def test_found_again_without_running_the_network(tmp_path: Path) -> None:
    expected = contents(mine(tmp_path))
    # In any order; the last step alone must not need the first ones.
    assert found_again(tmp_path).neurons.to_csv() == expected[-1]
    assert contents(found_again(tmp_path)) == expected


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    files = []
    for folder in ("one", "two"):
        mine(tmp_path / folder).neurons  # noqa: B018
        files.append({path.name: path.read_bytes() for path in (tmp_path / folder / "store" / "mine").glob("[!.]*")})
    assert files[0] == files[1]
    assert len(files[0]) == 10


@pytest.mark.parametrize("step", ["references", "circuits", "virtual", "neurons"])
def test_a_corrupt_file_is_computed_again(tmp_path: Path, step: str) -> None:
    expected = contents(mine(tmp_path))
    (path,) = (p for p in (tmp_path / "store" / "mine").iterdir() if p.name.startswith(step) and p.suffix != ".json")
    before = path.read_bytes()
    path.write_bytes(before[:-3] + b"abc")
    with pytest.warns(StoreWarning, match=f"{path.name} is not used and will be computed again"):
        assert contents(mine(tmp_path)) == expected
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change", [{"n_references": 5}, {"ranked_by": "mean"}, {"references": "quantiles"}, {"target": "5"}]
)
def test_another_pass_for_other_references(tmp_path: Path, change: dict[str, Any]) -> None:
    mine(tmp_path).neurons  # noqa: B018
    with pytest.raises(ModelError, match="the network ran"):
        found_again(tmp_path, **change).references  # noqa: B018


@pytest.mark.parametrize("change", [{"rule": "lrp"}, {"start": "unit"}, {"start": "peak"}, {"lower": "0"}])
def test_references_serve_other_circuits(tmp_path: Path, change: dict[str, Any]) -> None:
    first = mine(tmp_path)
    first.neurons  # noqa: B018
    study = found_again(tmp_path, **change)
    assert (study.references.sample == first.references.sample).all()
    with pytest.raises(ModelError, match="the network ran"):
        study.circuits  # noqa: B018
    found = mine(tmp_path, **change).circuits
    assert found.shape != first.circuits.shape or (found != first.circuits).any()


@pytest.mark.parametrize("change", [{"n_clusters": 3}, {"seed": 1}])
def test_circuits_serve_other_clusters(tmp_path: Path, change: dict[str, Any]) -> None:
    mine(tmp_path).neurons  # noqa: B018
    study = found_again(tmp_path, **change)
    assert [v.k for v in study.virtual] == [change.get("n_clusters", 2)] * 6
    assert len(study.neurons) == 6


def test_other_weights_or_images_are_another_study(tmp_path: Path) -> None:
    first = contents(mine(tmp_path))
    assert contents(mine(tmp_path, plain(1)))[0] != first[0]
    assert contents(mine(tmp_path, images=Items(noise(15, seed=1))))[0] != first[0]
    assert contents(mine(tmp_path)) == first


def test_how_it_runs_does_not_matter(tmp_path: Path) -> None:
    expected = contents(mine(tmp_path))
    # Found again, whatever the batch size; and to be sure, the references are the same when computed so.
    assert contents(found_again(tmp_path, batch_size=4)) == expected
    other = mine(tmp_path / "other", batch_size=4)
    assert (other.references.sample == mine(tmp_path).references.sample).all()
    np.testing.assert_allclose(other.circuits, mine(tmp_path).circuits, atol=1e-4)


def test_without_a_store(tmp_path: Path) -> None:
    study = mine(tmp_path).replace(store=None, progress=False)
    assert contents(study) == contents(mine(tmp_path / "other"))
    assert not list((tmp_path / "store").rglob("*.safetensors"))
    assert list((tmp_path / "other").rglob("*.safetensors"))


def test_replace(tmp_path: Path) -> None:
    study = mine(tmp_path)
    other = study.replace(n_references=3, batch_size=7, rule="lrp")
    assert (other.parameters.n_references, other.run.batch_size, other.parameters.rule) == (3, 7, "lrp")
    assert (study.parameters.n_references, study.run.batch_size, study.parameters.rule) == (6, 32, "gradient")
    assert other.references.n == 3
    with pytest.raises(StudyError, match="rule must be one of"):
        study.replace(rule="magic")
    with pytest.raises(StudyError, match="`mass` is now `cumulative_share`"):
        study.replace(mass=0.5)
    with pytest.raises(StudyError, match="there is no parameter 'colour'; there are target,"):
        study.replace(colour=1)
    assert study.on(Run(batch_size=7)).run.batch_size == 7


@pytest.mark.parametrize(
    ("change", "dropped"),
    [
        ({}, ""),
        ({"batch_size": 7, "channels_last": True}, ""),
        ({"skip_unreadable": True}, ""),
        ({"n_clusters": 3}, "virtual stability neurons"),
        ({"seed": 1}, "virtual stability neurons layouts _classified pairs"),
        ({"crop": "activation"}, "_boxed"),
        ({"crop_lower": "2"}, "_boxed _without_crp"),
        ({"rule": "lrp"}, "circuits virtual stability neurons layouts"),
        ({"min_frequency": 0.5}, "pairs"),
        ({"min_share": 0.1}, "_classified pairs"),
        (
            {"lower": "0"},
            "shapes circuits virtual stability neurons layouts activation_vectors without_lrp _classified pairs",
        ),
    ],
)
def test_what_still_holds_is_kept(tmp_path: Path, change: dict[str, Any], dropped: str) -> None:
    images = Items(noise(15))
    images.targets, images.classes = [i % 4 for i in range(15)], list("abcd")  # type: ignore[attr-defined]
    study = mine(tmp_path, images=images, lower="input:4").replace(progress=False)
    for one in (study.neurons, study.layouts, study.activation_vectors, study.objects, study.without_lrp):
        assert one is None or len(one) >= 0
    assert study.crops.boxes.shape == (6, 6, 4)
    assert len(study.classes.pairs) > 0
    other, kept = study.replace(**change), {**OF_STUDY, **OF_PARTS["classes"], **OF_PARTS["crops"]}
    for before, after in ((study, other), (study.classes, other.classes), (study.crops, other.crops)):
        had = set(kept) & set(vars(before))
        assert {name for name in had if vars(after).get(name) is not vars(before)[name]} == had & set(dropped.split())
        assert len(had) > 1
    assert other._weights is study._weights
    asked = {"lower": "input:4"} | {name: value for name, value in change.items() if name not in RUN}
    assert contents(other) == contents(mine(tmp_path / "other", images=images, **asked))


def test_a_network_that_was_trained_on_is_another(tmp_path: Path) -> None:
    study = mine(tmp_path)
    before = study.references.score.copy()
    with torch.no_grad():
        study.model[0].weight.mul_(-1)
    other = study.replace(batch_size=4)
    assert other._weights != study._weights
    assert (other.references.score != before).any()


@pytest.mark.parametrize("change", [{"target": "5"}, {"n_references": 5}, {"precision": "bfloat16"}, {"store": None}])
def test_what_depends_on_a_change_is_not_kept(tmp_path: Path, change: dict[str, Any]) -> None:
    study = mine(tmp_path)
    study.neurons  # noqa: B018
    other = study.replace(**change)
    assert not {"_found", "ranked", "circuits", "virtual", "neurons"} & set(vars(other))
    assert "_weights" not in vars(study.replace(model=plain(1)))
    assert not set(OF_STUDY) & set(vars(study.replace(images=as_images(noise(15)))))


def test_images_that_were_left_out_are_not_kept(tmp_path: Path) -> None:
    study = mine(tmp_path, images=Items(noise(15), {3: OSError("gone")}), skip_unreadable=True)
    assert study.circuits.shape == (6, 6, 7)
    with pytest.raises(ImageError, match="1 images could not be read"):
        study.replace(skip_unreadable=False).circuits  # noqa: B018


def test_the_nearest_lower_layer_is_that_of_the_new_target(tmp_path: Path) -> None:
    study = mine(tmp_path, target="4", lower="nearest")
    assert study.parameters.lower == "input:4"
    for same in (study, study.on(Run(batch_size=7)), study.replace(rule="lrp")):
        assert same.replace(target="2").parameters.lower == "input:2"
    assert study.replace(target="2", lower="0").replace(target="4").parameters.lower == "0"
    assert mine(tmp_path, lower="input:4").replace(target="6").parameters.lower == "input:4"


@pytest.mark.parametrize("where", ["sweep", "circuits"])
def test_stopped_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(
        sweep_module, "shards", lambda count, _: [range(i, min(i + 4, count)) for i in range(0, count, 4)]
    )
    monkeypatch.setattr(blocks, "BLOCK", 4)
    expected = contents(mine(tmp_path / "whole", batch_size=4))
    items = Items(noise(15))
    images = Images(items)
    images.fingerprint  # noqa: B018  looks at items too
    study = mine(tmp_path, images=images, batch_size=4)
    if where == "circuits":
        study.references  # noqa: B018
        items.loaded.clear()
        study.circuits  # noqa: B018
        last = items.loaded[-1]
        study = mine(tmp_path / "again", images=images, batch_size=4)
        study.references  # noqa: B018
    else:
        last = 13
    items.broken[last] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        study.neurons  # noqa: B018
    items.broken.clear()
    again = replace(study)
    again.shapes  # noqa: B018
    items.loaded.clear()
    step = again.references if where == "sweep" else again.circuits
    assert step is not None
    assert 1 <= len(items.loaded) <= 5  # the last shard, and the first image to look at its shape; or the last block
    assert contents(again) == expected


def test_ones_own_network_and_folder_in_five_lines(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pictures", 12)
    model = plain()

    images = ImageFolder(str(tmp_path / "pictures"), transforms.ToTensor())
    study = Study.from_model(model, images, "4", "2", n_clusters=2, store=tmp_path)
    figure = study.neuron(3).plot()

    figure.savefig(tmp_path / "neuron.png")
    assert len(figure.axes) >= 2
    assert study.objects is None
    assert study.neuron(3).meanings() == "class0 50%, class1 50%"  # the labels of the images


def test_results_go_to_the_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURE_NB_STORE", str(tmp_path / "elsewhere"))
    study = Study.from_model(plain(), Items(noise(15)), "4", "2", name="own")
    assert study.store is not None
    assert study.store.folder == tmp_path / "elsewhere" / "own"
    monkeypatch.delenv("PURE_NB_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Study.from_model(plain(), Items(noise(15)), "4", "2").store.folder == tmp_path / "cache" / "pure_nb" / "mine"  # type: ignore[union-attr]


def test_assign(tmp_path: Path) -> None:
    study = mine(tmp_path)
    new = Images(Items(noise(15)))
    found = study.neuron(2).predict(new)
    neuron = study.neuron(2)
    assert found.shape == (15,)
    # Its own references are where they were, unless k-means left one nearer to another's centre.
    same = found[neuron.sample] == neuron.virtual.labels
    assert same.mean() > 0.8


def test_circuits_of_one_channel(tmp_path: Path) -> None:
    study = mine(tmp_path)
    alone = study.circuits_of(3)
    assert "circuits" not in study.__dict__
    assert not study.results.has("circuits", study.key("circuits"))
    np.testing.assert_allclose(alone, study.circuits[3], atol=1e-5)
    assert (study.circuits_of(3) == study.circuits[3]).all()  # from now on


@pytest.mark.parametrize("channel", [-1, 6, 100])
def test_a_channel_that_is_not_there(tmp_path: Path, channel: int) -> None:
    study = mine(tmp_path)
    for call in (study.neuron, study.circuits_of):
        with pytest.raises(ArgumentError, match=rf"channel {channel}: layer '4' has channels 0 to 5"):
            call(channel)


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="Sequential has no layer 'layer4'"):
        mine(tmp_path, target="layer4")
    with pytest.raises(LayerError, match="both are '4'"):
        mine(tmp_path, lower="4")
    with pytest.raises(LayerError, match="layer '2' does not depend on '4'"):
        mine(tmp_path, target="2", lower="4")


def test_a_network_that_returns_nan(tmp_path: Path) -> None:
    model = plain()
    model[2].bias.data[3] = float("nan")
    with pytest.raises(NonFiniteError, match="layer '4' puts out NaN or infinity: channel 0, image 0"):
        mine(tmp_path, model).neurons  # noqa: B018
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_references_behind_a_ceiling_are_warned_of(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Hardtanh(0, 1e-9)).eval()
    study = mine(tmp_path, model, target="3", lower="1", n_references=4)
    with pytest.warns(StudyWarning, match=r"live channels of layer '3' all 4 references have the same score.*input:"):
        study.references  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine(tmp_path, model, target="2", lower="1", n_references=4).references  # noqa: B018


def test_an_image_that_can_not_be_read(tmp_path: Path) -> None:
    items = Items(noise(15), {3: OSError("gone")})
    with pytest.raises(ImageError, match=r"image 3 .*gone.*skip_unreadable=True, or --skip-unreadable"):
        mine(tmp_path, images=items).references  # noqa: B018
    study = mine(tmp_path, images=items).replace(skip_unreadable=True)
    assert not (study.references.sample == 3).any()
    assert len(study.neurons) == 6
    with pytest.raises(
        ImageError, match="1 images could not be read and were left out of these results, the first item 3"
    ):
        mine(tmp_path, images=items).references  # noqa: B018


def test_no_image_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"image 0 .*gone"):
        mine(tmp_path, images=Items(noise(4), {i: OSError("gone") for i in range(4)}))


def test_the_first_image_can_not_be_read(tmp_path: Path) -> None:
    study = mine(tmp_path, images=Items(noise(15), {0: OSError("gone")})).replace(skip_unreadable=True)
    assert study.shapes[0].channels == 6


def test_a_neuron(glyph_study: Study) -> None:
    neuron = glyph_study.neuron(4)
    r = glyph_study.references
    assert neuron.name == "layer4 / 4"
    assert (neuron.sample == r.sample[4]).all()
    assert (neuron.score == r.score[4]).all()
    assert (neuron.vectors == glyph_study.circuits[4]).all()
    assert neuron.layout("pca").shape == (20, 2)
    assert (neuron.members() == np.arange(20)).all()
    parts = [neuron.members(part) for part in range(2)]
    assert sorted(np.concatenate(parts)) == list(range(20))
    assert all((np.diff(part) > 0).all() for part in parts if len(part) > 1)
    assert (neuron.members(0, 2) == parts[0][:2]).all()
    assert neuron.objects is not None
    expected = ", ".join(
        f"{name} {share:.0%}" for name, share in shares([CLASSES[label].name for label in neuron.objects[parts[1]]])
    )
    assert neuron.meanings(1) == expected
    assert (neuron.virtual.labels == virtual_neurons(neuron.vectors, 2).labels).all()
    shown = neuron.views([5, 0], "activation")
    assert [view.sample for view in shown] == neuron.sample[[5, 0]].tolist()


def test_crops_have_one_default_and_views_follow_it(glyph_study: Study) -> None:
    defaults = [signature(function).parameters["crop"].default for function in (heatmaps, views, boxes, Parameters)]
    assert defaults == ["peak"] * 4  # the paper's
    channel, sample = np.full(3, 4), glyph_study.references.sample[4, :3]
    for crop in get_args(Crop):
        expected = views(glyph_study.model, glyph_study.images, channel, sample, target="layer4", crop=crop)
        for study, how in ((glyph_study.replace(crop=crop), ()), (glyph_study, (crop,))):
            for own, other in zip(study.neuron(4).views(range(3), *how), expected, strict=True):
                np.testing.assert_array_equal(own.mask, other.mask)


def test_virtual_from_the_store_is_the_same(glyph_study: Study) -> None:
    computed = glyph_study.virtual
    stored = replace(glyph_study).virtual
    for a, b in zip(computed, stored, strict=True):
        assert (a.labels == b.labels).all()
        assert (a.centroids == b.centroids).all()
        assert a.silhouette == b.silhouette
        assert (a.silhouette_gain, a.p) == (b.silhouette_gain, b.p)


@pytest.mark.parametrize("source", ["glyfs", "no such thing"])
def test_unknown_study(source: str) -> None:
    with pytest.raises(
        StudyError, match=f"there is no study '{source}'; name a .toml file, or one .*: cifar10-resnet20, glyphs"
    ):
        load_study(source)


def test_missing_study_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"there is no study file .*nowhere.toml"):
        load_study(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "small"', "name = ", "is not valid TOML"),
        ("[run]", "[runs]", r"expected the tables \[model\], \[images\] and \[parameters\].*found .*'runs'"),
        ("[images]", "[pictures]", "expected the tables"),
        ('target = "layer4"', "", "needs the parameters target and lower"),
        (
            "n_references = 8",
            "m = 8",
            "there is no parameter 'm'; there are target, lower, n_references, ranked_by, references, rule, start, "
            "described_by, crop, crop_lower, n_clusters, seed",
        ),
        ("n_references = 8", "n_references = 1", "n_references must be a whole number and at least 2, got 1"),
        ("n_clusters = 2", "n_clusters = -1", "n_clusters must be a whole number and at least 0, got -1"),
        ("n_references = 8", 'n_references = "many"', "n_references must be a whole number and at least 2, got 'many'"),
        ("n_references = 8", "n_references = 2.5", r"n_references must be a whole number and at least 2, got 2\.5"),
        ("n_clusters = 2", 'rule = "lpr"', "rule must be one of gradient, lrp, got 'lpr'"),
        ("n_clusters = 2", "min_share = -0.1", r"min_share must be a number from 0 to 1, got -0\.1"),
        ("n_clusters = 2", "cumulative_share = true", "cumulative_share must be a number from 0 to 1, got True"),
        ("n_clusters = 2", 'min_frequency = "most"', "min_frequency must be a number from 0 to 1, got 'most'"),
        ("n_clusters = 2", 'start = "max"', "start must be one of .*peak.*, got 'max'"),
        ("n_clusters = 2", 'ranked_by = "sum"', "ranked_by must be one of .*, got 'sum'"),
        ('name = "small"', 'name = "../x"', r"a study's name must be letters, digits, .*, got '\.\./x'"),
        ('name = "small"', 'name = ".."', "name must be letters"),
        ('name = "small"', 'name = ""', "name must be letters"),
        ('name = "small"', 'name = "a/b"', "name must be letters"),
        ('source = "glyphnet"', "", "lacks the entry 'source'"),
        ('source = "glyphs"', "", "lacks the entry 'source'"),
        ('source = "glyphs"', 'source = "folder"', "lacks the entry 'root'"),
        ("length = 60", "length = 0", r"\[images\]: a data set of scenes needs at least one"),
        ("length = 60", "lenght = 60", "has an entry that is not known: .*lenght"),
        ('source = "glyphs"\nlength = 60', 'source = "flickr"\nroot = "."', "images from 'flickr' are not known"),
        ("batch_size = 30", "batchsize = 30", r"has an entry in \[run\] that is not known: .*batchsize"),
    ],
)
def test_wrong_studies(toml: Path, old: str, new: str, message: str) -> None:
    assert TOML.count(old) == 1
    toml.write_text(TOML.replace(old, new), encoding="utf-8")
    with pytest.raises(StudyError, match=message):
        load_study(toml)


def test_a_file_that_is_no_text(toml: Path) -> None:
    toml.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="is not valid TOML"):
        load_study(toml)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_names_that_lead_out_of_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="name must be letters"):
        mine(tmp_path, name=name)


def test_unknown_parameter_of_ones_own_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no parameter 'reference'"):
        mine(tmp_path, reference=5)


def test_the_file_name_is_the_name(toml: Path) -> None:
    toml.write_text(TOML.replace('name = "small"', ""), encoding="utf-8")
    assert load_study(toml).name == "small"


FOLDER = """\
[model]
source = "mine.py:make"
weights = "w.safetensors"
[images]
source = "folder"
root = "pictures"
resize = 12
crop = 12
[parameters]
target = "4"
lower = "2"
n_references = 4
n_clusters = 2
"""


@pytest.fixture
def folder_study(tmp_path: Path) -> Path:
    """A study of one's own on disk: a Python file, weights, pictures, all named from where the study is."""
    picture_folder(tmp_path / "pictures", 8)
    save_file(plain(3).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom small import plain as make\n"
    )
    path = tmp_path / "own.toml"
    path.write_text(FOLDER)
    return path


def test_paths_start_from_the_study(folder_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    study = load_study(folder_study)
    assert len(study.images) == 8
    assert torch.equal(study.model[0].weight, plain(3)[0].weight)
    assert len(study.neurons) == 6


def test_data_and_weights_can_be_given(folder_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture_folder(tmp_path / "elsewhere" / "more", 5)
    save_file(plain(4).state_dict(), tmp_path / "elsewhere" / "other.safetensors")
    monkeypatch.chdir(tmp_path / "elsewhere")
    study = load_study(folder_study, data="more", weights="other.safetensors")  # from where one is
    assert len(study.images) == 5
    assert torch.equal(study.model[0].weight, plain(4)[0].weight)


def test_environment_variables(folder_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_study.write_text(
        FOLDER.replace('"pictures"', '"${MY_PICTURES}"').replace('"w.safetensors"', '"$MY_WEIGHTS/w.safetensors"'),
        encoding="utf-8",
    )
    with pytest.raises(StudyError, match=r"set the environment variable MY_WEIGHTS, or give --weights PATH"):
        load_study(folder_study)
    monkeypatch.setenv("MY_WEIGHTS", str(tmp_path))
    with pytest.raises(
        StudyError, match=r"needs '\$\{MY_PICTURES\}': set the environment variable MY_PICTURES, or give --data"
    ):
        load_study(folder_study)
    assert len(load_study(folder_study, data=tmp_path / "pictures").images) == 8
    monkeypatch.setenv("MY_PICTURES", str(tmp_path / "pictures"))
    assert len(load_study(folder_study).images) == 8


def test_a_folder_that_is_empty_or_missing(folder_study: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no pictures"):
        load_study(folder_study, data=tmp_path / "empty")
    with pytest.raises(ImageError, match="there is no folder"):
        load_study(folder_study, data=tmp_path / "nowhere")


def test_weights_that_are_missing(folder_study: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file of weights"):
        load_study(folder_study, weights=tmp_path / "nowhere.safetensors")


def test_a_data_set_of_torchvision(folder_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Small(Items):
        def __init__(self, root: str, *, download: bool, transform: Any, train: bool) -> None:
            if train:
                raise RuntimeError("no network")
            asked.update(root=root, download=download)
            self.transform = transform
            super().__init__(noise(5))

    monkeypatch.setattr("torchvision.datasets.Small", Small, raising=False)
    own = 'source = "torchvision:Small"\nroot = "there"\nmean = [0.5, 0.5, 0.5]\nstd = [0.2, 0.2, 0.2]\ntrain = false\n'
    head, tail = FOLDER.split('source = "folder"')
    text = head + own + tail.split("crop = 12\n")[1]
    folder_study.write_text(text, encoding="utf-8")
    study = load_study(folder_study)
    assert study.images.normalisation == ((0.5,) * 3, (0.2,) * 3)
    assert asked == {"root": str(tmp_path / "there"), "download": True}
    folder_study.write_text(text.replace("train = false", "train = true"), encoding="utf-8")
    with pytest.raises(ImageError, match=r"torchvision's Small is not in .*there' and can't be fetched: no network"):
        load_study(folder_study)


def test_shipped_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"glyphs", "cifar10-resnet20", "imagenet-resnet50"} <= set(shipped_studies())
    study = load_study("glyphs", n_references=50)
    assert isinstance(study.model, GlyphNet)
    assert isinstance(study.images.dataset, GlyphScenes)
    assert (study.parameters.n_references, len(study.images)) == (50, 4000)
    monkeypatch.delenv("PURE_NB_IMAGENET", raising=False)
    monkeypatch.setattr("pure_nb.study.models.load_model", lambda *_, **__: plain())  # no hub is asked
    with pytest.raises(StudyError, match="PURE_NB_IMAGENET"):
        load_study("imagenet-resnet50")


@pytest.mark.slow
def test_real_cifar10(tmp_path: Path) -> None:
    source, weights = shared("data", "cifar10-test"), shared("models", "cifar10-resnet20.safetensors")
    for folder in sorted(source.iterdir()):
        (tmp_path / "cifar" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:10]:
            (tmp_path / "cifar" / folder.name / file.name).symlink_to(file)
    study = load_study(
        "cifar10-resnet20", data=tmp_path / "cifar", weights=weights, store=tmp_path, n_references=5, progress=False
    )
    assert len(study.images) == 100
    with torch.inference_mode():
        logits = study.model(torch.stack([study.images.tensor(i) for i in range(100)]))
    right = [study.images.dataset.targets[i] == int(row.argmax()) for i, row in enumerate(logits)]  # type: ignore[attr-defined]
    assert np.mean(right) > 0.8
    assert study.shapes[0].channels == 64
    table = study.replace(n_clusters=2).neurons
    assert len(table) == 64
    sums = np.abs(study.circuits).sum(axis=2)
    assert (np.isclose(sums, 1, atol=1e-3) | (sums == 0)).all()
    assert len(study.replace(n_clusters=2).neuron(int(table["channel"][0])).plot(3).axes) == 4


@pytest.mark.nightly
def test_real_imagenet(tmp_path: Path) -> None:
    source, weights = shared("data", "imagenet-sample"), shared("models", "imagenet-resnet50.safetensors")
    for folder in sorted(source.iterdir())[:12]:
        (tmp_path / "imagenet" / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            (tmp_path / "imagenet" / folder.name / file.name).symlink_to(file)
    study = load_study(
        "imagenet-resnet50", data=tmp_path / "imagenet", weights=weights, store=tmp_path, n_references=5, progress=False
    )
    assert len(study.images) == 12
    with torch.inference_mode():
        top = study.model(torch.stack([study.images.tensor(i) for i in range(12)])).argmax(dim=1)
    assert (top == torch.arange(12)).float().mean() > 0.5  # the first folders are the first classes
    references = study.references
    assert references.sample.shape == (2048, 5)
    channel = int(references.score[:, 0].argmax())
    found = study.circuits_of(channel)
    assert "circuits" not in study.__dict__
    assert found.shape == (5, 1024)
    np.testing.assert_allclose(np.abs(found).sum(axis=1), 1, atol=1e-3)


def test_study_of_tensors_only(tmp_path: Path) -> None:
    class Bare(Items):
        def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
            return super().__getitem__(index)[0]

    assert isinstance(mine(tmp_path, images=Bare(noise(15))).neurons, pd.DataFrame)


def reordered(study: Study) -> Study:
    """The same study, whose references the last digit put into another order."""
    references, note = study._found
    other = replace(study)
    turned = {name: getattr(references, name)[:, ::-1].copy() for name in ("sample", "score", "position", "peak")}
    other.__dict__["_found"] = replace(references, **turned), note
    return other


def test_objects_belong_to_an_order_of_references(toml: Path, tmp_path: Path) -> None:
    study = load_study(toml, store=tmp_path)
    other = reordered(study)
    assert study.objects is not None
    assert other.objects is not None
    assert (study.objects != study.objects[:, ::-1]).any()
    np.testing.assert_array_equal(other.objects, study.objects[:, ::-1])


@pytest.mark.parametrize("start", ["activation", "peak", "unit"])
def test_images_that_do_not_activate_a_channel_belong_to_no_part(tmp_path: Path, start: str) -> None:
    images = noise(60, seed=5)
    model = plain()
    with torch.no_grad():
        model[4].bias.sub_(model[:5](images).amax(dim=(2, 3)).median(dim=0).values)  # so that half of them do not
    study = mine(tmp_path, model=model, images=Items(noise(60)), start=start, n_references=60)
    active = (model[:6](images).amax(dim=(2, 3)) > 0).numpy()
    known = (model[:6](noise(60)).amax(dim=(2, 3)) > 0).numpy()
    channel = int(np.argmin(abs(active.mean(axis=0) - 0.5)))
    assert 0 < active[:, channel].sum() < 60
    labels = study.neuron(channel).predict(images)
    np.testing.assert_array_equal(labels >= 0, active[:, channel])
    own = study.neuron(channel)
    np.testing.assert_array_equal(own.virtual.labels >= 0, known[own.sample, channel])


def test_one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def noted(*arguments: Any, seed: int = 0, **how: Any) -> Any:
        seeds.append(seed)
        return virtual_neurons(*arguments, seed=seed, **how)

    study = mine(tmp_path, seed=5)
    monkeypatch.setattr("pure_nb.neuron.virtual_neurons", noted)
    study.neuron(1).with_clusters(study.circuits[1], 3)
    assert seeds == [5]


class Elsewhere:
    """A cluster whose workers have a device that this process has not."""

    def run(self, function: Any, *arguments: Any) -> None:
        assert arguments == ("meta",)

    sweep_on_cluster = blocks = None  # nothing is left to compute


@pytest.mark.slow
def test_a_device_that_only_the_workers_have(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs in this process does not touch it; here all that a cluster computes is there already."""
    study = load_study(toml, store=tmp_path)
    contents(study)
    study.crops.boxes  # noqa: B018
    study.classes.statistics  # noqa: B018
    study.activation_vectors  # noqa: B018
    there = study.replace(device="meta", client=Elsewhere())
    moved = nn.Module.to

    def to(self: nn.Module, *arguments: Any, **how: Any) -> nn.Module:
        assert "meta" not in arguments
        return moved(self, *arguments, **how)

    monkeypatch.setattr(nn.Module, "to", to)
    assert there.shapes == study.shapes
    channel = there.most_polysemantic(1)[0]
    assert there.classes.names == study.classes.names
    assert len(there.neuron(channel).views([0, 1])) == 2
    assert there.activation_vectors.keys() == study.activation_vectors.keys()
    assert there.without_lrp == study.without_lrp
    conv = {"target": "layer4.0.conv2", "lower": "input:layer4.0.conv2"}
    study.replace(**conv).classes.statistics  # noqa: B018
    assert there.replace(**conv).classes.pairs.equals(study.replace(**conv).classes.pairs)
    task = planted_task(there.replace(client=None, device="cpu"), 2)
    away = replace(task, base=there, study=task.study.replace(device="meta", client=Elsewhere()))  # type: ignore[arg-type]
    assert away.nearest == task.nearest
    assert {one.name for one in contestants(away)} == {one.name for one in contestants(task)}
    monkeypatch.setattr(study_module, "circuits", lambda *_, **how: how)
    assert there.run_circuits(np.zeros(1), np.zeros(1))["run"].client is there.run.client


def test_a_layer_that_fails_later_is_no_reason_for_other_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rules that do not fit are; and what fails is not stored."""

    def fails(*_: Any, **__: Any) -> Any:
        raise LayerError("the layer changed its shape")

    study = mine(tmp_path)
    monkeypatch.setattr(crops_module, "boxes", fails)
    with pytest.raises(LayerError, match="changed its shape"):
        study.crops.boxes  # noqa: B018
    monkeypatch.undo()
    assert study.crops.note == ""


# Images that need a word to fit the network.


def test_grey_images_for_a_network_of_colours(tmp_path: Path) -> None:
    """Their channel is repeated, as if they had come so; a network of grey images gets them as they are."""
    grey = noise(30, channels=1)
    found = Study.from_model(
        plain(), grey, "2", "0", n_references=4, store=tmp_path / "a", progress=False, mean=[0.5], std=[0.25]
    )
    colours = grey.expand(-1, 3, -1, -1).contiguous()
    expected = Study.from_model(plain(), colours, "2", "0", n_references=4, store=tmp_path / "b", progress=False)
    assert (found.references.sample == expected.references.sample).all()
    np.testing.assert_array_equal(found.circuits, expected.circuits)
    assert (found.neuron(0).predict(grey) == expected.neuron(0).predict(colours)).all()
    assert found.images.picture(0).shape == (12, 12, 3)
    one = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    assert Study.from_model(one, grey, "2", "0", n_references=4, store=tmp_path / "c").images.tensor(0).shape == (
        1,
        12,
        12,
    )
    with pytest.raises(ModelError, match=r"images \[1, 3, 12, 12\] .* grey=True"):
        Study.from_model(one, colours, "2", "0", n_references=4, store=tmp_path / "d")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (noise(3).permute(0, 2, 3, 1), r"images \[1, 12, 12, 3\]"),
        (noise(3, channels=4), r"images \[1, 4, 12, 12\]"),
        (noise(3, size=1), r"images \[1, 3, 1, 1\]"),
    ],
)
def test_images_that_the_network_can_not_take(tmp_path: Path, wrong: torch.Tensor, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Study.from_model(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)), wrong, "2", "0", store=tmp_path
        )


def test_the_normalisation_of_tensors_is_given(tmp_path: Path) -> None:
    """Embedders and eyes see the pictures, not the numbers."""
    pictures = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    tensors = torch.from_numpy((pictures / 255 - MEAN) / STD).permute(0, 3, 1, 2).float()
    how: dict[str, Any] = {"n_references": 4, "progress": False, "crop": "activation"}
    study = Study.from_model(plain(), (tensors, [0] * 20), "2", "0", store=tmp_path / "a", mean=MEAN, std=STD, **how)
    for channel in range(2):
        for crop, sample, box in zip(
            study.crops.of(channel, range(4)), study.references.sample[channel], study.crops.boxes[channel]
        ):
            assert (crop == cropped(pictures[sample], box)).all()
    plainly = Study.from_model(plain(), (tensors, [0] * 20), "2", "0", store=tmp_path / "a", **how)
    assert (plainly.references.sample == study.references.sample).all()
    with pytest.warns(StudyWarning, match="wrong colours.*Give the mean and std") as told:
        plainly.crops.of(0, range(4))
    assert len(told) == 1  # of a study, not of each image


def test_a_study_says_what_it_is(tmp_path: Path) -> None:
    study = mine(tmp_path)
    lines = repr(study).splitlines()
    assert lines == [
        "Study 'mine': the channels of '4' in Sequential",
        "images: 15 of 'mine'",
        "asked: 6 references by max, circuits from '2' by gradient, k = 2",
        f"known: ?; kept in {tmp_path / 'store' / 'mine'}",  # to look would take time
        "runs: on cpu, 32 images at a time",
    ]
    assert study.known() == []
    assert "known: nothing yet; kept in" in repr(study)
    study.neurons  # noqa: B018
    study.crops.boxes  # noqa: B018
    for one in (study, mine(tmp_path)):
        assert one.known() == ["references", "circuits", "virtual", "boxes"]
    assert "known: references, circuits, virtual, boxes; kept in" in repr(study)
    assert "&#x27;mine&#x27;" in study._repr_html_()
    alone = mine(tmp_path).replace(store=None)
    alone.crops.boxes  # noqa: B018
    assert alone.known() == ["references", "boxes"]


def test_a_neuron_says_what_it_is(glyph_study: Study) -> None:
    neuron = glyph_study.neuron(17)
    assert repr(neuron) == "<Neuron layer4 / 17 of 'glyphs'>"
    assert neuron._repr_png_().startswith(b"\x89PNG")


def test_a_network_that_depends_on_the_batch_only_if_that_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unsteady = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), unsteady, nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
    images = torch.rand(12, 3, 8, 8) * torch.linspace(0.2, 1, 12)[:, None, None, None]
    how: dict[str, Any] = {"target": "4", "lower": "0", "n_references": 4, "progress": False, "store": tmp_path}
    with pytest.raises(LayerError, match=r"'1' \(BatchNorm2d\) .*; or go on all the same with allow_nondeterministic"):
        Study.from_model(model, images, **how)

    def asked(batch_size: int) -> Study:
        with pytest.warns(StudyWarning, match=f"of one run, in batches of {batch_size}: of '4', it depends on which"):
            return Study.from_model(model, images, **how, batch_size=batch_size, allow_nondeterministic=True)

    small, large = asked(3), asked(12)
    assert not np.array_equal(small.references.sample, large.references.sample)  # none is handed the other's results
    assert small.store is not None
    assert "depends on which images" in repr(small)
    assert all("depends on which images" in entry["key"]["unsteady"] for entry in small.store.manifests())
    again = asked(3)  # and is told again
    assert again.known() == ["references"]
    np.testing.assert_array_equal(again.references.sample, small.references.sample)
    # Right values, batch by batch.
    with torch.no_grad():
        maxima = torch.cat([model.eval()(images[first : first + 3]).amax(dim=(2, 3)) for first in range(0, 12, 3)])
    np.testing.assert_allclose(small.references.score, maxima.T.sort(descending=True).values[:, :4], rtol=1e-5)
    np.testing.assert_array_equal(small.circuits, again.circuits)


def test_what_is_steady_is_found_again_though_more_is_allowed(tmp_path: Path) -> None:
    known = mine(tmp_path)
    known.references  # noqa: B018
    assert known.replace(allow_nondeterministic=True).known() == ["references"]
