"""The known objects, and how agreement with them is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control, wilcoxon
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from small import Items, Tokens, noise, plain
from torch import nn

from pure_nb.compute.sweep import sweep
from pure_nb.errors import ArgumentError, ImageError
from pure_nb.glyphs import SIZE, GlyphScenes
from pure_nb.images.data import Images
from pure_nb.judges.truth import (
    activation_vectors,
    agreement,
    objects_at_maxima,
    shares,
)
from pure_nb.methods.combined import cells_under
from pure_nb.methods.references import References, TopReferences
from pure_nb.methods.statistics import interval, summary
from pure_nb.parameters import Run


def references(sample: Any, position: Any, grid: tuple[int, ...] = (12, 12)) -> References:
    sample = np.asarray(sample, dtype=np.int64)
    score = np.ones(sample.shape, np.float32)
    return References("l", "max", sample, score, np.asarray(position, np.int64), grid, score)


def test_the_object_under_each_maximum() -> None:
    scenes = GlyphScenes(40)
    sample, position, expected = [], [], []
    for index in range(40):
        scene = scenes.scene(index)
        for o in scene.objects:
            # A cell of the grid whose middle lies on this object only.
            for row, column in np.ndindex(12, 12):
                y, x = int((row + 0.5) * SIZE / 12), int((column + 0.5) * SIZE / 12)
                boxes = [p for p in scene.objects if p.box[0] <= x <= p.box[2] and p.box[1] <= y <= p.box[3]]
                if o.mask[y, x] and boxes == [o]:
                    sample.append(index)
                    position.append(12 * row + column)
                    expected.append(o.label)
                    break
    assert len(expected) > 60
    found = objects_at_maxima(scenes, references([sample], [position]), (SIZE, SIZE))
    assert found.tolist() == [expected]


def test_objects_have_the_shape_of_the_references() -> None:
    scenes = GlyphScenes(3)
    found = objects_at_maxima(scenes, references([[0, 1], [2, 0], [1, 1]], [[0, 5], [9, 70], [143, 0]]), (SIZE, SIZE))
    assert found.shape == (3, 2)
    for (channel, rank), label in np.ndenumerate(found):
        assert label in [o.label for o in scenes.scene([[0, 1], [2, 0], [1, 1]][channel][rank]).objects]


def test_one_object_is_always_the_nearest() -> None:
    scenes = GlyphScenes(60)
    alone = [i for i in range(60) if len(scenes.scene(i).objects) == 1]
    found = objects_at_maxima(scenes, references([alone], [[0] * len(alone)], ()), (SIZE, SIZE))
    assert found[0].tolist() == [scenes.scene(i).objects[0].label for i in alone]


def test_shares() -> None:
    names = ["cat"] * 12 + ["sun"] * 7 + ["moon"]
    assert shares(names) == [("cat", 0.6), ("sun", 0.35), ("moon", 0.05)]
    assert shares(names, 0.06) == [("cat", 0.6), ("sun", 0.35)]
    assert shares(names, 0.7) == []


def around(position: int) -> list[int]:
    """The cell of a 6 x 6 grid and its neighbours."""
    row, column = divmod(position, 6)
    return [6 * y + x for y in range(6) for x in range(6) if abs(y - row) <= 1 and abs(x - column) <= 1]


def test_cells_under_a_coarser_grid() -> None:
    cells = cells_under((2, 2), (4, 4))
    assert cells[0].tolist() == [4 * y + x for y in range(3) for x in range(3)]
    assert cells[3].tolist() == [4 * y + x for y in range(1, 4) for x in range(1, 4)]
    assert cells_under((), (4, 4)) == [slice(None)]


@pytest.mark.parametrize(("target", "lower", "model"), [("4", "2", plain()), ("second", "first", Tokens().eval())])
def test_activation_vectors(target: str, lower: str, model: nn.Module) -> None:
    images = Images(Items(noise(9)))
    top = TopReferences(target, 3)
    sweep(model, images, [top], run=Run(progress=False))
    found = activation_vectors(model, images, top.result(), lower, run=Run(batch_size=4))
    assert len(found) == 4
    chosen = top.result()
    for channel, rank in np.ndindex(*chosen.sample.shape):
        image = noise(9)[chosen.sample[channel, rank]][None]
        with torch.no_grad():
            if target == "4":
                below = plain()[:3](image)
                above = plain()[3:5](below.clone())[0].flatten(1).double()
                below = below[0].flatten(1).double()
            else:
                tokens = model.first(model.patches(image).flatten(2).transpose(1, 2))
                below, above = tokens[0].T.double(), model.second(tokens)[0].T.double()
        position = int(above[channel].argmax())
        assert position == chosen.position[channel, rank]
        expected = {
            "activation": above.clamp(min=0).mean(dim=1),
            "activation at maximum": above[:, position],
            "lower activation": below.mean(dim=1),
            "lower activation at maximum": below[:, around(position) if target == "4" else slice(None)].mean(dim=1),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(found[name][channel, rank], values, rtol=1e-4, atol=1e-5)


def test_activation_vectors_of_an_unreadable_image() -> None:
    images = Images(Items(noise(2), {1: OSError("gone")}))
    with pytest.raises(ImageError, match="gone"):
        activation_vectors(plain(), images, references([[0, 1]] * 6, [[0, 0]] * 6, (6, 6)), "2")


def known(channels: int = 8, n: int = 30, seed: int = 1) -> tuple[Any, Any]:
    """Vectors that follow the truth, ones that do not, and the truth."""
    generator = np.random.default_rng(seed)
    truth = np.stack([generator.integers(0, 2 + c % 3, n) for c in range(channels)])
    truth[5:6] = 7  # a single meaning
    good = np.eye(5)[truth % 5] * 3 + 0.3 * generator.standard_normal((channels, n, 5))
    bad = generator.standard_normal((channels, n, 5))
    return {"good": good.astype(np.float32), "bad": bad.astype(np.float32)}, truth


def test_agreement() -> None:
    vectors, truth = known()
    alive = np.ones(8, dtype=bool)
    alive[3] = False
    table = agreement(vectors, truth, alive)
    assert set(table["channel"]) == {0, 1, 2, 4, 6, 7}
    assert set(table["method"]) == {"good", "bad", "random"}
    assert len(table) == 18
    for row in table.itertuples():
        assert row.k == len(np.unique(truth[row.channel]))
        if row.method == "random":
            continue
        own = vectors[row.method][row.channel]
        labels = KMeans(row.k, n_init=10, random_state=0).fit_predict(own)
        assert row.ami == pytest.approx(adjusted_mutual_info_score(truth[row.channel], labels))
        assert row.ari == pytest.approx(adjusted_rand_score(truth[row.channel], labels))
    means = table.groupby("method")["ami"].mean()
    assert means["good"] == pytest.approx(1)
    assert abs(means["random"]) < 0.1
    assert abs(means["bad"]) < 0.15


def test_rare_meanings_do_not_count() -> None:
    vectors, truth = known(1, 40)
    truth[0] = 0
    truth[0, 3] = 1
    assert agreement(vectors, truth, np.ones(1, dtype=bool)).empty
    assert set(agreement(vectors, truth, np.ones(1, dtype=bool), common=0.02)["k"]) == {2}


def test_nothing_to_agree_on_is_an_empty_table() -> None:
    table = agreement({"good": np.zeros((1, 4, 2), np.float32)}, np.zeros((1, 4), np.int64), np.ones(1, dtype=bool))
    assert list(table) == ["channel", "k", "method", "ami", "ari"]
    assert table.empty


def test_summary() -> None:
    generator = np.random.default_rng(0)
    values = {"a": generator.random(12), "b": generator.random(12) + 0.5, "c": generator.random(12) + 0.1}
    rows = [
        {"channel": channel, "k": 2, "method": name, "ami": own[channel], "ari": -own[channel]}
        for name, own in values.items()
        for channel in generator.permutation(12)
    ]
    found = summary(pd.DataFrame(rows), "a").set_index("method")
    assert list(found.index) == ["b", *sorted("ac", key=lambda name: -values[name].mean())]
    ps = {name: wilcoxon(values[name] - values["a"]).pvalue for name in "bc"}
    corrected = dict(zip("bc", false_discovery_control([ps["b"], ps["c"]])))
    for name, own in values.items():
        assert found.loc[name, "mean"] == pytest.approx(own.mean())
        assert found.loc[name, "difference"] == pytest.approx((own - values["a"]).mean())
        assert (found.loc[name, "low"], found.loc[name, "high"]) == pytest.approx(interval(own))
        assert found.loc[name, "low"] < own.mean() < found.loc[name, "high"]
    assert np.isnan(found.loc["a", "p"])
    for name in "bc":
        assert found.loc[name, "p"] == pytest.approx(corrected[name])
    assert list(summary(pd.DataFrame(rows), "a", "ari")["method"]) == list(found.index)[::-1]


def test_summary_wants_a_baseline_that_is_there() -> None:
    vectors, truth = known()
    with pytest.raises(ArgumentError, match=r"no method 'PURE' to compare with; there are \['bad', 'good', 'random'\]"):
        summary(agreement(vectors, truth, np.ones(8, dtype=bool)), "PURE")


def test_interval_covers() -> None:
    """A 95 % interval holds the true mean in about 95 of 100 draws."""
    generator = np.random.default_rng(0)
    hits = sum(
        low < 3 < high for low, high in (interval(3 + generator.standard_normal(40), draws=400) for _ in range(200))
    )
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    low, high = interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    narrow = interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_interval_of_another_statistic() -> None:
    low, high = interval(np.arange(101.0), np.median)
    assert low < 50 < high


@pytest.mark.parametrize("values", [[], [1.0]])
def test_interval_of_too_few(values: list[float]) -> None:
    assert np.isnan(interval(np.array(values))).all()


def test_images_without_an_object_do_not_count() -> None:
    """-1 is no meaning: the others alone are compared."""
    truth, vectors = np.array([[0, 0, 0, 1, 1, 1, -1, -1]]), np.zeros((1, 8, 2))
    vectors[0, 3:6] = vectors[0, 7] = 9.0
    (found,) = agreement({"own": vectors}, truth, np.array([True])).query("method == 'own'").to_dict("records")
    assert (found["k"], found["ami"], found["ari"]) == (2, 1.0, 1.0)
