"""Parts over the range of activation, and how many images they need: against plain loops and other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from small import noise, plain

from pure_nb import Study
from pure_nb.errors import ArgumentError
from pure_nb.figures.ranges import enough_figure, range_figure
from pure_nb.methods.quantiles import shuffled
from pure_nb.methods.stability import split_half, stability
from pure_nb.methods.virtual import kmeans
from pure_nb.ranges import enough

IMAGES = noise(80)
CHANNEL = 2


def study_of(folder: Path, images: Any = IMAGES, **options: Any) -> Study:
    how = {"target": "5", "lower": "3", "n_references": 12, "n_clusters": 2, "progress": False, "store": folder}
    return Study.from_model(plain(), images, **{**how, **options})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of(tmp_path_factory.mktemp("ranges"))


def away(vector: NDArray[Any], centroids: NDArray[Any]) -> list[float]:
    return [float(np.sqrt(((vector.astype(np.float64) - one) ** 2).sum())) for one in centroids]


def test_the_range_is_that_of_a_loop_over_a_sort_of_all(study: Study) -> None:
    bands, n = 2, 10
    found = study.neuron(CHANNEL).range(bands=bands, n=n)
    with torch.no_grad():
        peak = study.model[:6](IMAGES)[:, CHANNEL].flatten(1).amax(dim=1).double().numpy()
    order = [image for image in np.lexsort((np.arange(80), -peak)).tolist() if peak[image] > 0]
    assert len(order) > bands * n
    picked = [order[int((place + 0.5) * len(order) / (bands * n))] for place in range(bands * n)]
    parts, top = study.virtual[CHANNEL], study.references.sample[CHANNEL].tolist()
    usual = []
    for part in range(2):
        own = [vector for vector, label in zip(study.circuits[CHANNEL], parts.labels) if label == part]
        usual.append(np.quantile([away(vector, parts.centroids)[part] for vector in own], 0.95))
    assert found.bands["band"].tolist() == ["top", "0-50%", "50-100%"]
    for band in range(bands):
        chosen = np.array([image for image in picked[n * band : n * (band + 1)] if image not in top])
        vectors = study.run_circuits(np.full_like(chosen, CHANNEL), chosen)
        distances = [away(vector, parts.centroids) for vector in vectors]
        labels = [int(np.argmin(own)) for own in distances]
        row = found.bands.iloc[band + 1]
        assert row["images"] == len(chosen)
        np.testing.assert_allclose([row["strongest"], row["weakest"]], peak[chosen[[0, -1]]], rtol=1e-6)
        assert row["unlike"] == np.mean([own[label] > usual[label] for own, label in zip(distances, labels)])
        assert row["agreement"] == pytest.approx(adjusted_rand_score(kmeans(vectors, 2), labels))
        assert row["low"] <= row["agreement"] + 1e-9
        assert row["agreement"] <= row["high"] + 1e-9
        assert row["stability"] == pytest.approx(split_half(vectors, 2))
        shares = found.shares[found.shares["band"] == row["band"]].to_dict("records")
        assert [own["part"] for own in shares] == ["A", "B"]
        for part, own in enumerate(shares):
            share, z, count = labels.count(part) / len(labels), 1.959964, len(labels)
            assert (own["images"], own["share"]) == (labels.count(part), share)
            middle, half = share + z**2 / (2 * count), z * np.sqrt((share * (1 - share) + z**2 / (4 * count)) / count)
            wilson = (np.array([middle - half, middle + half]) / (1 + z**2 / count)).tolist()
            assert [own["low"], own["high"]] == pytest.approx(wilson, abs=1e-5)
    first = found.bands.iloc[0]
    assert first["stability"] == pytest.approx(split_half(study.circuits[CHANNEL], 2))
    assert np.isnan(first["agreement"])
    assert found.shares.query("band == 'top'")["images"].tolist() == parts.sizes


def test_all_split_neurons_are_those_one_by_one(study: Study) -> None:
    every = study.range(bands=2, n=10)
    split = [channel for channel, parts in enumerate(study.virtual) if parts.k > 1]
    assert every.bands["channel"].unique().tolist() == split
    one = study.range([CHANNEL], bands=2, n=10)
    for both in ((every.shares, one.shares), (every.bands, one.bands)):
        rows, own = (table.query("channel == @CHANNEL").reset_index(drop=True) for table in both)
        assert rows.round(5).equals(own.round(5))


def test_what_makes_no_range_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="at least one band of two images, got bands=0 and n=100"):
        study.range([CHANNEL], bands=0)
    whole = study_of(tmp_path, n_clusters=1)
    for ask in (whole.range, lambda: enough(whole)):
        with pytest.raises(ArgumentError, match="none of the neurons of 'mine' is split into parts"):
            ask()
    with pytest.raises(ArgumentError, match="shares of images from 0 to 1"):
        enough(study, images=(2.0,))
    with torch.no_grad():
        whole.model[4].bias[0] = -100
    with pytest.raises(ArgumentError, match="neuron 0 is dead"):
        study_of(tmp_path, IMAGES).replace(model=whole.model).range([0])


def test_stability_is_kept_and_told(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    table = study.neurons.set_index("channel")
    for channel, own in enumerate(study.stability):
        expected = stability(study.circuits[channel], study.virtual[channel].labels)
        assert own.neuron == pytest.approx(expected.neuron, nan_ok=True)
        np.testing.assert_array_equal(own.parts, expected.parts)
        assert table.loc[channel, "stability"] == pytest.approx(own.neuron, nan_ok=True)
        assert table.loc[channel, "stabilities"] == " ".join(f"{part:.2f}" for part in own.parts if part == part)
        assert study.neuron(channel).stability is own
    monkeypatch.setattr("pure_nb.ranges.stability", None)  # nothing is computed again
    again = study_of(Path(study.store.folder).parent)  # type: ignore[union-attr]
    for own, other in zip(again.stability, study.stability, strict=True):
        assert own.neuron == pytest.approx(other.neuron, nan_ok=True)


def test_enough_is_what_studies_of_fewer_images_find(study: Study, tmp_path: Path) -> None:
    found = enough(study, n=(8, 12, 20), images=(0.5, 1.0)).set_index(["references", "images"])
    assert found.index.tolist() == [(8, 1.0), (12, 0.5), (12, 1.0), (20, 1.0)]
    place = shuffled(np.arange(80), 0).argsort().argsort()
    half = np.flatnonzero(place < 40)
    others = {
        (12, 0.5): (study_of(tmp_path, IMAGES[half]), half),
        **{(n, 1.0): (study.replace(n_references=n), np.arange(80)) for n in (8, 12, 20)},
    }
    split = [channel for channel, parts in enumerate(study.virtual) if parts.k > 1]
    for key, (other, numbers) in others.items():
        stable, agreement = [], []
        for channel in split:
            if not other.references.active[channel].all():
                continue  # it has not so many
            sample = numbers[other.references.sample[channel]]
            vectors = study.run_circuits(np.full_like(sample, channel), sample)
            stable.append(split_half(vectors, 2))
            agreement.append(adjusted_rand_score(kmeans(vectors, 2), study.virtual[channel].predict(vectors)))
        row = found.loc[key]
        assert row["neurons"] == len(stable) > 2
        assert [row["stability"], row["agreement"]] == pytest.approx([np.mean(stable), np.mean(agreement)], abs=1e-6)
        assert row["agreement_low"] <= row["agreement"] <= row["agreement_high"]


def test_figures_show_the_numbers(study: Study) -> None:
    own = study.neuron(CHANNEL).range(bands=2, n=10)
    bars, lines = range_figure(own, "5 / 2").axes
    heights = np.reshape([patch.get_height() for patch in bars.patches], (2, 3))
    np.testing.assert_allclose(heights.T.ravel(), own.shares["share"])
    np.testing.assert_allclose(lines.lines[0].get_ydata(), own.bands["stability"])
    assert [label.get_text() for label in lines.get_xticklabels()] == ["top", "0-50%", "50-100%"]
    found = enough(study, n=(8, 12), images=(0.5, 1.0))
    first, second = enough_figure(found).axes
    assert [line.get_xdata().tolist() for line in first.lines[:1]] == [[8, 12]]
    assert second.lines[0].get_xdata().tolist() == [0.5, 1.0]
    assert len(study.neuron(CHANNEL).plot_range(bands=2, n=10).axes) == 2
