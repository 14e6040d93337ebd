"""The evaluation of whole studies: kept, found again, written, and right where the objects are known."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small import Items, Tokens, noise, plain

from pure_nb.classes import Classes
from pure_nb.compute import blocks
from pure_nb.compute.store import Store
from pure_nb.errors import EmbedderError, EvaluationError, LayerError, StudyError
from pure_nb.figures import render
from pure_nb.figures.evaluation_plots import named_parts_figure
from pure_nb.figures.render import CROP_BLUR, boxes, heatmap_mask, heatmaps, views
from pure_nb.images.data import Images
from pure_nb.judges.embedders import Embedder, mini_clip, pixels
from pure_nb.judges.evaluation import distance_table, intra_inter, pair_distances
from pure_nb.methods.circuits import propagate
from pure_nb.methods.virtual import kmeans
from pure_nb.show import report
from pure_nb.show.report import LRP, PURE, WHOLE, descriptions, evaluate, namer, part_names, write
from pure_nb.study import Study

Pictures = Sequence[NDArray[np.uint8]]


def colours(items: Pictures) -> NDArray[np.float64]:
    return np.stack([item.mean(axis=(0, 1)) for item in items])


def mine(tmp_path: Path, **how: Any) -> Study:
    settings: dict[str, Any] = {"n_references": 6, "n_clusters": 2, "store": tmp_path / "store", **how}
    images = settings.pop("images", None) or Images(Items(noise(15)))
    return Study.from_model(settings.pop("model", None) or plain(), images, "4", "2", **settings)


def test_the_workers_of_a_study_measure_its_alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, alignment = [], report.evaluation.alignment

    def noted(*vectors: Any, **how: Any) -> pd.DataFrame:
        runs.append(how.get("run"))
        return alignment(*vectors, **how)

    monkeypatch.setattr(report.evaluation, "alignment", noted)
    study = mine(tmp_path, progress=False)
    evaluate(study, pixels(2), ks=[2], subsets=2)
    assert runs == [study.run]


@pytest.mark.parametrize("crop", ["peak", "crp", "activation"])
def test_boxes_are_those_of_the_views(glyph_study: Study, crop: Any) -> None:
    study = glyph_study.replace(crop=crop)
    channel, sample = np.repeat([3, 9], 4), study.references.sample[[3, 9], :4].ravel()
    how: dict[str, Any] = {"target": "layer4", "crop": crop}
    found = boxes(study.model, study.images, channel, sample, **how)
    expected = views(study.model, study.images, channel, sample, mask=partial(heatmap_mask, blur=CROP_BLUR), **how)
    assert found.tolist() == [list(view.box) for view in expected]
    assert study.crops.boxes[[3, 9], :4].reshape(-1, 4).tolist() == found.tolist()
    # Circuits and crops are asked for apart.
    assert study.replace(start="peak").crops.boxes.tolist() == study.crops.boxes.tolist()


@pytest.mark.parametrize("first", ["boxes", "views"])
def test_heatmaps_are_made_once_for_boxes_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    made: list[tuple[int, int]] = []
    original = render.propagate

    def counting(*args: Any, **how: Any) -> Any:
        made.extend(zip(args[2].tolist(), args[3].tolist()))
        return original(*args, **how)

    study, other = mine(tmp_path / "one"), mine(tmp_path / "other")
    expected = other.crops.boxes
    neuron, sample = study.neuron(2), study.references.sample
    monkeypatch.setattr(render, "propagate", counting)
    if first == "boxes":
        study.crops.boxes  # noqa: B018
    seen = [neuron.views([0, 3, 3, 1]), neuron.views([3, 4]), study.neuron(1).views([0])]
    np.testing.assert_array_equal(study.crops.boxes, expected)
    assert sorted(made) == sorted((c, int(image)) for c, own in enumerate(sample) for image in own)
    for rank, view in zip((0, 3, 3, 1, 3, 4), (*seen[0], *seen[1]), strict=True):
        pair = np.array([2]), sample[2, [rank]]
        (alone,) = views(study.model, study.images, *pair, target="4")
        assert view.sample == alone.sample
        assert (view.mask == alone.mask).all()
        assert (view.picture == alone.picture).all()


def test_what_is_kept_of_heatmaps_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strongest references of each channel stay, as they are those that are shown."""
    monkeypatch.setattr(render, "LOOKED", 14)
    study = mine(tmp_path)
    study.crops.boxes  # noqa: B018
    kept = study.crops._looked
    assert set(kept) == {
        ("peak", c, int(own[rank])) for c, own in enumerate(study.references.sample) for rank in (0, 1)
    }
    study.neuron(0).views([5, 4, 3, 2])
    assert len(kept) == 14
    assert len(study.neuron(0).views(range(6))) == 6


def test_relevance_for_crops_may_stop_at_a_layer(tmp_path: Path, glyph_study: Study) -> None:
    """Against circuits by hand, scaled up; and boxes are others, found by another key."""
    study = glyph_study.replace(crop_lower="layer1")
    channel, sample = np.repeat([3, 9], 3), study.references.sample[[3, 9], :3].ravel()
    how: dict[str, Any] = {"target": "layer4", "lower": "layer1"}
    flows = propagate(study.model, study.images, channel, sample, rule="lrp", start="peak", **how)
    found = {}
    for rows, relevance, _, _ in flows:
        small = relevance.sum(dim=1, keepdim=True)
        large = torch.nn.functional.interpolate(small, (96, 96), mode="bilinear")[:, 0]
        found |= dict(zip(rows.tolist(), heatmap_mask(large)))
    for row, view in enumerate(study.crops.views(channel, sample)):
        assert (view.mask == found[row]).all()
    boxed = boxes(study.model, study.images, channel, sample, **how)
    assert study.crops.boxes[[3, 9], :3].reshape(-1, 4).tolist() == boxed.tolist()
    assert "crop_lower" not in glyph_study.key("boxes")
    assert study.key("boxes") == glyph_study.key("boxes") | {"crop_lower": "layer1"}
    assert boxed.tolist() != glyph_study.crops.boxes[[3, 9], :3].reshape(-1, 4).tolist()


def test_where_relevance_for_crops_can_not_stop(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="no layer 'nowhere'"):
        mine(tmp_path, crop_lower="nowhere").crops.boxes  # noqa: B018
    with pytest.raises(LayerError, match="layer '7' has no grid of positions to scale up"):
        next(heatmaps(plain(), Images(Items(noise(1))), np.zeros(1, int), np.zeros(1, int), target="8", lower="7"))


def test_crops_are_cut_from_the_pictures(glyph_study: Study) -> None:
    study = glyph_study
    assert study.crops.boxes.shape == (32, 20, 4)
    crops = study.crops.of(5, [0, 7])
    for rank, crop in zip((0, 7), crops):
        left, top, right, bottom = study.crops.boxes[5, rank]
        picture = study.images.picture(int(study.references.sample[5, rank]))
        np.testing.assert_array_equal(crop, picture[top:bottom, left:right])
        assert crop.shape[0] == crop.shape[1] > 0
    np.testing.assert_allclose(study.crops.embeddings(pixels(4))[5, [0, 7]], pixels(4).images(crops), atol=1e-6)


def test_each_image_is_read_once_and_a_stop_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 12)
    items = Items(noise(15))
    study = mine(tmp_path, images=Images(items), batch_size=4)
    study.crops.boxes  # noqa: B018
    calls: list[int] = []

    def encode(pictures: Pictures) -> NDArray[np.float64]:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(pictures))
        return colours(pictures)

    embedder = Embedder("colours", "colours", colours)
    expected = mine(tmp_path / "other", batch_size=4).crops.embeddings(embedder)
    with pytest.raises(KeyboardInterrupt):
        study.crops.embeddings(replace(embedder, encode=encode))
    items.loaded.clear()
    found = study.crops.embeddings(embedder)
    assert len(items.loaded) == len(set(items.loaded)) < 15
    assert found.tobytes() == expected.tobytes()
    items.loaded.clear()
    assert mine(tmp_path, images=study.images, batch_size=4).crops.embeddings(embedder).tobytes() == expected.tobytes()
    assert not items.loaded


def test_each_image_is_read_once_for_many_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pure_nb.crops.CROPS", 4)  # the crops of an image do not fit into one go
    items = Items(noise(5))
    study = mine(tmp_path, images=Images(items), n_references=5)
    study.crops.boxes  # noqa: B018
    items.loaded.clear()
    study.crops.embeddings(Embedder("colours", "colours", colours))
    assert sorted(items.loaded) == list(range(5))


def test_lengths_that_change_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 12)
    sizes = iter(range(2, 99))
    odd = Embedder("odd", "odd", lambda items: np.ones((len(items), next(sizes))))
    with pytest.raises(EmbedderError, match="odd returned vectors of several lengths"):
        mine(tmp_path, batch_size=4).crops.embeddings(odd)


def misfit(*_: Any) -> None:
    raise LayerError("the rules do not fit")


def test_crops_where_lrp_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pure_nb.network.lrp.require_fit", misfit)
    study = Study.from_model(
        Tokens(), Items(noise(15)), "second", "first", n_references=6, n_clusters=2, store=tmp_path
    )
    with pytest.warns(UserWarning, match="crops are whole pictures, since the rules do not fit"):
        assert (study.crops.boxes == [0, 0, 12, 12]).all()
    with_grid = mine(tmp_path / "grid")
    with pytest.warns(UserWarning, match="crops follow the activation map, since the rules do not fit"):
        found = with_grid.crops.boxes
    sample = with_grid.references.sample[2]
    expected = boxes(plain(), with_grid.images, np.full(6, 2), sample, target="4", crop="activation")
    assert found[2].tolist() == expected.tolist()
    monkeypatch.undo()
    again = mine(tmp_path / "grid")
    with pytest.warns(UserWarning, match="crops follow the activation map"):  # told again when they are found again
        np.testing.assert_array_equal(again.crops.boxes, found)


def test_the_report_says_how_crops_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(mine(tmp_path), pixels(4), ks=(2,)).crops == report.CROPPED["peak"]
    assert evaluate(mine(tmp_path, crop="crp"), pixels(4), ks=(2,)).crops == report.CROPPED["crp"]
    monkeypatch.setattr("pure_nb.network.lrp.require_fit", misfit)
    for _ in range(2):  # also when the results are found again
        with pytest.warns(UserWarning, match="the rules do not fit"):
            found = evaluate(mine(tmp_path / "other"), pixels(4), ks=(2,))
        assert found.crops == "crops follow the activation map, since the rules do not fit"
        assert found.crops in write(found, tmp_path / "out")[0].read_text(encoding="utf-8")


def test_descriptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = mine(tmp_path)
    found = descriptions(study, [pixels(4)])
    assert list(found) == [PURE, LRP, "activation", "activation at maximum", "pixels"]
    np.testing.assert_array_equal(found[PURE], study.circuits)
    np.testing.assert_array_equal(found[LRP], study.replace(rule="lrp").circuits)
    assert all(vectors.shape[:2] == (6, 6) for vectors in found.values())
    monkeypatch.setattr("pure_nb.network.lrp.require_fit", misfit)
    with pytest.warns(UserWarning, match="PURE LRP is left out: the rules do not fit"):
        assert LRP not in descriptions(mine(tmp_path / "other"))


def test_evaluation_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = mine(tmp_path)
    found = evaluate(study, pixels(4), [Embedder("colours", "c", colours)], ks=(2, 3))
    vectors = descriptions(study, [pixels(4), Embedder("colours", "c", colours)])
    expected = distance_table(vectors["pixels"], vectors, used=study.references.active, ks=(2, 3))
    pd.testing.assert_frame_equal(found.distances, expected)
    assert set(found.alignment["method"]) == set(vectors) - {"pixels"}
    monkeypatch.setattr(report.evaluation, "distance_table", lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr(report.evaluation, "alignment", lambda *_, **__: pytest.fail("computed again"))
    again = evaluate(mine(tmp_path), pixels(4), [Embedder("colours", "c", colours)], ks=(2, 3))
    pd.testing.assert_frame_equal(again.distances, found.distances)
    pd.testing.assert_frame_equal(again.alignment, found.alignment)


def test_another_embedder_is_not_taken_for_this_one(tmp_path: Path) -> None:
    study = mine(tmp_path)
    first = evaluate(study, pixels(4), ks=(2,)).distances
    second = evaluate(study, pixels(5), ks=(2,)).distances
    assert not first["overall"].equals(second["overall"])
    with pytest.raises(StudyError, match=r"two methods have the same name, among .*pixels, pixels"):
        evaluate(study, pixels(4), [pixels(5)])
    with pytest.raises(StudyError, match="two methods have the same name"):
        evaluate(study, replace(pixels(4), name="activation"))
    with pytest.raises(EvaluationError, match="the metric 'nonsense' can't be used"):
        evaluate(study, pixels(4), metric="nonsense")


def test_without_a_store() -> None:
    study = replace(mine(Path("unused")), store=None)
    assert len(evaluate(study, pixels(4), ks=(2,)).distances) == 6 * 6


def test_own_metric_is_not_kept(tmp_path: Path) -> None:
    study = mine(tmp_path)
    found = evaluate(study, pixels(4), ks=(2,), metric=lambda a, b: float(np.abs(a - b).max()))
    expected = evaluate(study, pixels(4), ks=(2,), metric="chebyshev")
    np.testing.assert_allclose(found.distances["intra"], expected.distances["intra"], rtol=1e-5)
    assert "lambda" in found.metric


def test_an_embedder_that_fails(tmp_path: Path) -> None:
    study = mine(tmp_path)
    broken = Embedder("broken", "b", lambda items: np.full((len(items), 2), np.nan))
    with pytest.raises(EmbedderError, match="broken returned NaN"):
        evaluate(study, broken)
    assert study.store is not None
    assert any(manifest["file"].startswith("boxes") for manifest in study.store.manifests())  # nothing is lost


def test_identical_images(tmp_path: Path) -> None:
    study = mine(tmp_path, images=Images(Items(noise(1).expand(15, -1, -1, -1))))
    found = evaluate(study, pixels(4), ks=(2,))
    assert (found.distances["overall"] == 0).all()
    assert found.alignment["pooled"].isna().all()
    assert found.summary()["p"].isna().all()
    assert (tmp_path / "out" / "report.md") in write(found, tmp_path / "out")


def test_names_of_the_shipped_world(glyph_study: Study) -> None:
    study = glyph_study
    table = part_names(study, mini_clip(), k=3)
    parts = table[table["part"] != WHOLE]
    assert (table.groupby("channel").size() == 4).all()
    assert (parts.groupby("channel")["size"].sum() == 20).all()
    sure = parts[(parts["label"] == parts["word"]) & (parts["share"] == 1) & (parts["size"] >= 4)]
    assert len(sure) > 5
    assert (sure["word"] == sure["true"]).mean() > 0.85
    assert table.loc[table["part"] == WHOLE, "gain"].eq(0).all()
    own = part_names(study, mini_clip())
    for channel in (0, 5):
        assert (own["channel"] == channel).sum() == 1 + study.virtual[channel].k


def test_vocabularies(glyph_study: Study, tmp_path: Path) -> None:
    assert report.vocabulary(glyph_study) == list(glyph_study.classes.names)
    (tmp_path / "words.txt").write_text("cat\nmoon\n")
    assert report.vocabulary(glyph_study, str(tmp_path / "words.txt")) == ["cat", "moon"]
    table = part_names(glyph_study, mini_clip(), ["cat", "moon"], k=2)
    assert set(table["word"]) <= {"cat", "moon"}
    assert len(report.vocabulary(glyph_study, "wordnet")) > 15_000
    with pytest.raises(EmbedderError, match="does not know the word 'horse'"):
        part_names(glyph_study, mini_clip(), ["cat", "horse"])
    with pytest.raises(EmbedderError, match="pixels has no text tower"):
        part_names(glyph_study, pixels())
    unlabelled = mine(tmp_path)
    with pytest.raises(StudyError, match=r"the classes can.t be the vocabulary, since .* give a list of words"):
        report.vocabulary(unlabelled)


def test_references_that_do_not_activate_the_neuron(tmp_path: Path) -> None:
    model = plain()
    model[4].bias.data -= 0.18  # many references of most channels end below zero
    study = mine(tmp_path, model=model, n_references=15, n_clusters=2)
    active = study.references.active
    assert 0 < (~active).sum() < active.size
    found = evaluate(study, pixels(4), ks=(2,))
    assert sorted(found.distances["channel"].unique()) == np.flatnonzero(active.sum(axis=1) >= 2).tolist()
    channel = int(np.argmax((active.sum(axis=1) >= 3) & ~active.all(axis=1)))
    labels = kmeans(study.circuits[channel][active[channel]], 2)
    own = study.crops.embeddings(pixels(4))[channel][active[channel]]
    row = found.distances.query(f"channel == {channel} and method == '{PURE}'").iloc[0]
    assert row["intra"] == pytest.approx(intra_inter(pair_distances(own), labels)[0])


def test_classes_with_the_same_name(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classes, "names", ("n02012849", "n03126707", "polar_bear", "polar bear"))  # two cranes
    words = report.class_words(glyph_study)
    assert words[0] == "crane"
    assert words[2] == "polar bear"
    assert len(set(words)) == 4


def test_what_is_written(glyph_study: Study, tmp_path: Path) -> None:
    found = evaluate(glyph_study, mini_clip(), [pixels()], ks=(2, 3))
    names = part_names(glyph_study, mini_clip(), k=2)
    own = found.distances[found.distances["method"] == "mini-CLIP"]["gap"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no glyph is missing, nothing is cut off
        paths = write(found, tmp_path / "new", names=names, clear=float(own.median()), command="pure-nb evaluate this")
    assert all(path.is_file() for path in paths)
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "new").iterdir()}
    text = paths[0].read_text(encoding="utf-8")
    assert "`pure-nb evaluate this`" in text
    for heading in ("## Alignment", "## Neurons with mini-CLIP's own gap above", "## Names", "## What was published"):
        assert heading in text
    for figure in re.findall(r"\]\((.*?\.png)\)", text):
        with Image.open(tmp_path / "new" / figure) as picture:
            assert picture.width > 500
    table = pd.read_csv(tmp_path / "new" / "distances.csv")
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "new" / "distances.parquet"))
    summary = found.summary()
    row = summary[(summary["k"] == 2) & (summary["method"] == PURE)].iloc[0]
    assert f"| {row['intra']:.3f} ± {row['intra_se']:.3f} |" in text
    assert "pure-nb evaluate imagenet-timm-resnet101" in text


def test_the_figure_of_named_parts(glyph_study: Study) -> None:
    embedder = mini_clip()
    labels = kmeans(glyph_study.circuits[5], 3)
    vectors = glyph_study.crops.embeddings(embedder.joint)[5]
    figure = named_parts_figure(glyph_study, 5, labels, namer(glyph_study, embedder), vectors)
    (axes,) = figure.axes
    title, *rows = (text.get_text() for text in axes.texts)
    assert title == "layer4 / 5 in 3 parts"
    assert len(rows) == 4
    assert rows[0].startswith("all (20 images): ")
    assert rows[1].startswith(f"A ({(labels == 0).sum()} images): ")


def test_the_store_is_not_shared_between_networks(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = (replace(mine(tmp_path, model=plain(seed)), store=store) for seed in (0, 1))
    assert not np.array_equal(first.crops.embeddings(pixels(4)), second.crops.embeddings(pixels(4)))


def test_names_stay_in_their_cells_and_are_no_markup() -> None:
    """By a reader of Markdown that is not ours, where there is one."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    names = ["US$ a$", "a|b", "_x_ *y* `z`", "<i>&amp;", "[a](b)", "two\nlines", "back\\slash", "~~no~~"]
    table = pd.DataFrame({"class": names, "p": 0.5})
    tokens = [token.children for token in parser.parse(report._markdown_table(table)) if token.type == "inline"]
    assert len(tokens) == 2 * (1 + len(names))
    for children, name in zip(tokens[2::2], names):
        assert {child.type for child in children or ()} <= {"text", "text_special"}
        assert "".join(child.content for child in children or ()) == " ".join(name.split())
