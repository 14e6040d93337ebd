"""Figures: the right rows, the right words, and something to see in each."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox

from pure_nb.plots import (
    PALETTE,
    TILE,
    agreement_figure,
    circuits_figure,
    neuron_figure,
    references_figure,
    strip,
    tiles,
)
from pure_nb.study import Study
from pure_nb.truth import summary


def drawn(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def not_blank(figure: Figure) -> bool:
    pixels = drawn(figure)
    return pixels.std() > 5 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.fixture(scope="module")
def channel(glyph_study: Study) -> int:
    return int(glyph_study.neurons["channel"][0])


def test_strip() -> None:
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = strip(pictures, 2, gap=2)
    assert sheet.shape == (10, 10, 3)
    assert (sheet[:4, :4] == 10).all()
    assert (sheet[:4, 6:] == 20).all()
    assert (sheet[6:, :4] == 30).all()
    assert (sheet[6:, 6:] == 255).all()
    assert (sheet[4:6] == 255).all()
    assert strip(pictures[:1], 3, gap=2).shape == (4, 16, 3)
    assert (strip([], 2) == 255).all()


def test_tiles_are_of_one_size(glyph_study: Study, channel: int) -> None:
    found = tiles(glyph_study.neuron(channel).views([0, 3]))
    assert [picture.shape for picture in found] == [(TILE, TILE, 3)] * 2
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("whole", [False, True])
def test_references_figure(glyph_study: Study, channel: int, whole: bool) -> None:
    figure = references_figure(glyph_study.neuron(channel), 5, 3, whole=whole)
    (axes,) = figure.axes
    assert axes.get_title() == f"layer4 / {channel}: the 5 images that drive it most, strongest first"
    assert np.asarray(axes.images[0].get_array()).shape == (2 * TILE + 6, 3 * TILE + 12, 3)
    assert not_blank(figure)


def test_neuron_figure(glyph_study: Study, channel: int) -> None:
    neuron = glyph_study.neuron(channel)
    figure = neuron.plot(4)
    plane, *rows = figure.axes
    titles = [axes.get_title(loc="left") for axes in rows]
    sizes = np.bincount(neuron.virtual.labels)
    assert [title.split(" ")[0] for title in titles] == ["all", "A", "B"]
    for part, size, title in zip((None, 0, 1), (20, *sizes), titles):
        assert f" ({size} images) " in title
        assert title.endswith((neuron.meanings(part), " ..."))
        assert neuron.meanings(part)
    assert sum(len(dots.get_offsets()) for dots in plane.collections if len(dots.get_offsets()) in sizes) >= 20
    assert len([box for box in plane.get_children() if isinstance(box, AnnotationBbox)]) >= 2
    assert figure.get_suptitle() == f"layer4 / {channel}: 2 virtual neurons"
    assert [axes._left_title.get_color() for axes in rows] == ["black", PALETTE[0], PALETTE[1]]
    assert not_blank(figure)


def test_neuron_figure_of_one_meaning(glyph_study: Study, channel: int) -> None:
    whole = glyph_study.using(k=1)
    figure = neuron_figure(whole.neuron(channel), 3)
    assert len(figure.axes) == 2
    assert figure.get_suptitle().endswith("one meaning")
    assert not_blank(figure)


def test_neuron_figure_of_a_dead_neuron(glyph_study: Study, channel: int) -> None:
    """All circuits are zero: nothing to lay out, but no error either."""
    study = replace(glyph_study, store=None)
    references = glyph_study.references
    study.__dict__["references"] = references
    study.__dict__["circuits"] = np.zeros_like(glyph_study.circuits)
    assert not_blank(neuron_figure(study.neuron(channel), 3))


def test_many_parts_have_colours(glyph_study: Study, channel: int) -> None:
    figure = neuron_figure(glyph_study.using(k=5).neuron(channel), 2)
    assert len(figure.axes) == 7
    assert len({axes._left_title.get_color() for axes in figure.axes[2:]}) == 5
    assert len(set(PALETTE)) == 10


def test_circuits_figure(glyph_study: Study, channel: int) -> None:
    neuron = glyph_study.neuron(channel)
    figure = circuits_figure(neuron, 6)
    axes = figure.axes[0]
    strongest = np.sort(np.argsort(-np.abs(neuron.vectors).mean(axis=0), kind="stable")[:6])
    assert [int(text.get_text()) for text in axes.get_yticklabels()] == strongest.tolist()
    shown = np.asarray(axes.collections[0].get_array()).reshape(6, 20)
    order = np.argsort(neuron.virtual.labels, kind="stable")
    np.testing.assert_allclose(shown, neuron.vectors[order][:, strongest].T)
    assert [text.get_text() for text in axes.texts] == ["A", "B"]
    assert not_blank(figure)


def test_agreement_figure() -> None:
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        [
            {"channel": c, "k": 2, "method": name, "ami": generator.random(), "ari": generator.random()}
            for c in range(12)
            for name in ("PURE", "activation", "random")
        ]
    )
    found = summary(table, "PURE")
    figure = agreement_figure(found, table)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == found["method"].tolist()
    assert [text.get_text() for text in axes.texts] == [f"{mean:.2f}" for mean in found["mean"]]
    assert "adjusted mutual information" in axes.get_xlabel()
    assert not_blank(figure)
    assert "Rand" in agreement_figure(summary(table, "PURE", "ari"), table, "ari").axes[0].get_xlabel()


def test_figures_can_be_saved(glyph_study: Study, channel: int, tmp_path: object) -> None:
    path = tmp_path / "neuron.png"  # type: ignore[operator]
    neuron_figure(glyph_study.neuron(channel), 2).savefig(path)
    assert plt.imread(path).std() > 0.02
