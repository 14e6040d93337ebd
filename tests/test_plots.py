"""Figures: the right rows, the right words, and something to see in each."""

from __future__ import annotations

import ast
import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.text import Text
from torch import nn

from pure_nb.benchmark.bench_plots import leaderboard_figure
from pure_nb.errors import StoreError
from pure_nb.figures.circuit_plane import _contours
from pure_nb.figures.colours import PALETTE, part_colour, readable
from pure_nb.figures.evaluation_plots import alignment_figure, distances_figure, gaps_figure
from pure_nb.figures.plots import (
    TILE,
    agreement_figure,
    arvs_figure,
    circuits_figure,
    densities_figure,
    image_grid,
    literal,
    mantel_figure,
    neuron_figure,
    pair_figure,
    references_figure,
    save,
    tiles,
)
from pure_nb.methods.agreement import MantelResult
from pure_nb.methods.statistics import summary
from pure_nb.study import Study
from tests.small import noise


def drawn(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def not_blank(figure: Figure) -> bool:
    pixels = drawn(figure)
    return pixels.std() > 5 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.fixture(scope="module")
def channel(glyph_study: Study) -> int:
    return int(glyph_study.neurons["channel"][0])


def test_image_grid() -> None:
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = image_grid(pictures, 2, gap=2)
    assert sheet.shape == (10, 10, 3)
    assert (sheet[:4, :4] == 10).all()
    assert (sheet[:4, 6:] == 20).all()
    assert (sheet[6:, :4] == 30).all()
    assert (sheet[6:, 6:] == 255).all()
    assert (sheet[4:6] == 255).all()
    assert image_grid(pictures[:1], 3, gap=2).shape == (4, 16, 3)
    assert (image_grid([], 2) == 255).all()


def test_tiles_are_of_one_size(glyph_study: Study, channel: int) -> None:
    found = tiles(glyph_study.neuron(channel).views([0, 3]))
    assert [picture.shape for picture in found] == [(TILE, TILE, 3)] * 2
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("whole", [False, True])
def test_references_figure(glyph_study: Study, channel: int, whole: bool) -> None:
    figure = references_figure(glyph_study.neuron(channel), 5, 3, whole=whole)
    (axes,) = figure.axes
    assert axes.get_title() == f"layer4 / {channel}: the 5 top-activating images, strongest first"
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
    assert [axes._left_title.get_color() for axes in rows] == ["black", *(readable(to_hex(own)) for own in PALETTE[:2])]
    assert not_blank(figure)


def test_neuron_figure_of_one_meaning(glyph_study: Study, channel: int) -> None:
    whole = glyph_study.replace(n_clusters=1)
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


def test_contours_and_colours_are_seaborns() -> None:
    for seed in range(3):
        points = np.random.default_rng(seed).normal(size=(7 + 40 * seed, 2)).astype(np.float32)
        _, (ours, theirs) = plt.subplots(1, 2)
        _contours(ours, points.astype(np.float64).T)
        how = {"levels": 5, "bw_adjust": 0.6, "color": "0.75", "linewidths": 0.8, "zorder": 1}
        sns.kdeplot(x=points[:, 0], y=points[:, 1], ax=theirs, **how)
        (own,), (other,) = ours.collections, theirs.collections
        assert len(own.get_paths()) == len(other.get_paths()) == 5
        for path, expected in zip(own.get_paths(), other.get_paths()):
            np.testing.assert_allclose(path.vertices, expected.vertices, rtol=0, atol=1e-6)
        assert (own.get_edgecolor() == other.get_edgecolor()).all()
        assert (own.get_linewidth() == other.get_linewidth()).all()
        assert own.get_zorder() == other.get_zorder()
    assert list(PALETTE) == sns.color_palette("colorblind", 10)


LITERAL = re.compile(
    r"""["'](C\d|tab:\w+|red|blue|orange|green|#[0-9a-fA-F]{6})["']|PALETTE\[[0-9]\]|color_palette\("""
)


def drawing() -> Iterator[tuple[str, str]]:
    root = Path(__file__).parents[1]
    for path in [*root.glob("pure_nb/figures/*.py"), *root.glob("pure_nb/benchmark/*.py")]:
        if path.name != "colours.py":
            yield path.name, path.read_text(encoding="utf-8")
    for path in root.glob("book/*.md"):
        yield path.name, "".join(re.findall(r"^```\{code-cell\}.*?^```", path.read_text(encoding="utf-8"), re.M | re.S))


def test_a_colour_has_a_name() -> None:
    """One place says what stands for what in figures; two colours without a meaning are those of the grey and paper."""
    found = {name: [own[0] for own in LITERAL.finditer(text)] for name, text in drawing()}
    assert {name: own for name, own in found.items() if own} == {}


def test_who_uses_colours_of_seaborn_imports_it() -> None:
    """They are known to Matplotlib once somebody has imported seaborn, as other tests have."""
    maps, users = {"vlag", "mako", "rocket", "icefire", "flare", "crest"}, []
    for path in (Path(__file__).parents[1] / "pure_nb").rglob("*.py"):
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(one, ast.FunctionDef):
                inside = list(ast.walk(one))
                if any(isinstance(part, ast.Constant) and part.value in maps for part in inside):
                    users.append(one.name)
                    names = [name.name for part in inside if isinstance(part, ast.Import) for name in part.names]
                    assert "seaborn" in names, f"{path.name}: {one.name}"
    assert {"arvs_figure"} <= set(users)


def test_many_parts_have_colours(glyph_study: Study, channel: int) -> None:
    figure = neuron_figure(glyph_study.replace(n_clusters=5).neuron(channel), 2)
    assert len(figure.axes) == 7
    assert len({axes._left_title.get_color() for axes in figure.axes[2:]}) == 5
    assert len({part_colour(part) for part in range(40)}) == 40
    assert [part_colour(part) for part in range(10)] == [to_hex(own) for own in PALETTE]


@pytest.mark.parametrize("part", range(40))
def test_text_in_a_colour_can_be_read(part: int) -> None:
    colour = part_colour(part)
    dark = readable(colour)
    assert contrast(dark, "#ffffff") >= 4.5
    assert dark == colour or contrast(colour, "#ffffff") < 4.5
    # Darker, and of the same hue.
    assert np.argsort(to_rgb(dark)).tolist() == np.argsort(to_rgb(colour)).tolist()


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, channel by channel as WCAG 2.2 writes it down."""
    light = []
    for colour in (one, other):
        red, green, blue = (
            value / 12.92 if value <= 0.04045 else math.pow((value + 0.055) / 1.055, 2.4)
            for value in (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        )
        light.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(light) + 0.05) / (min(light) + 0.05)


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


@pytest.fixture(scope="module")
def conv_study(glyph_study: Study) -> Study:
    return glyph_study.replace(target="layer4.0.conv2", lower="input:layer4.0.conv2")


def test_arvs_figure(conv_study: Study) -> None:
    figure = arvs_figure(conv_study, 0, most=6)
    left, right = figure.axes[:2]
    names = [label.get_text() for label in left.get_yticklabels()]
    assert len(names) == 6
    assert list(right.get_yticks()) == list(left.get_yticks())  # the same rows, named once
    labels = [conv_study.classes.names.index(name) for name in names]
    assert set(labels) <= set(conv_study.classes.statistics.relevant_classes(0))
    vectors = conv_study.classes.statistics.arv(conv_study.model, 0, labels)
    np.testing.assert_allclose(left.images[0].get_array(), vectors)
    np.testing.assert_allclose(np.diag(np.asarray(right.images[0].get_array())), 1)
    assert not_blank(figure)


def test_arvs_figure_of_a_channel_without_classes(conv_study: Study) -> None:
    study = conv_study.replace(cumulative_share=0.01, min_frequency=1.0)
    none = next(c for c in range(32) if not len(study.classes.statistics.relevant_classes(c, 1.0)))
    figure = arvs_figure(study, none)
    assert "relevant to no class" in [text.get_text() for text in figure.axes[0].texts]


def test_mantel_figure(conv_study: Study) -> None:
    pairs = conv_study.classes.wordnet_pairs()
    figure = mantel_figure(pairs, "path", 0.6, MantelResult(0.1234, -0.05, 0.3, 0.021, 2), marked=3)
    (axes,) = figure.axes
    assert axes.get_title() == "rank correlation 0.12 (-0.05 to 0.30), p = 0.021"
    above, below = (np.asarray(points.get_offsets()) for points in axes.collections)
    assert len(above) + len(below) == len(pairs)
    assert below[:, 0].max() < 0.6 <= above[:, 0].min()
    assert set(below[:, 1]) <= set(pairs["path"])
    assert "path" in axes.get_ylabel()
    assert axes.lines[-1].get_xdata() == [pairs["cosine"][3]]
    assert not_blank(figure)


def test_pair_figure(conv_study: Study) -> None:
    pairs = conv_study.classes.wordnet_pairs()
    figure = pair_figure(conv_study, pairs, 2, count=3)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[1:] == [f"{pairs[f'class_{i}'][2]}, {pairs[f'synset_{i}'][2]}" for i in (1, 2)]
    first = figure.axes[1].images[0].get_array()
    assert (np.asarray(first)[:TILE, :TILE] == conv_study.classes.pictures(pairs["class_1"][2], 1)[0]).all()
    assert not_blank(figure)


@pytest.mark.parametrize("classes", [("cloud", "atom"), ("cloud", "atom", "sun")])
def test_densities_figure(conv_study: Study, classes: tuple[str, ...]) -> None:
    split = conv_study.classes.split(0, classes)
    figure = densities_figure(split)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["whole channel", *(f"part of {name}" for name in classes), "residual"]
    shown = [np.asarray(line.get_xdata()) for line in figure.axes[1].lines if line.get_marker() == "|"]
    parts = split.activations.at(split.rho)
    for concept, values in enumerate(shown):
        np.testing.assert_array_equal(values, parts[split.labels == concept, 0])
    assert not_blank(figure)
    other = densities_figure(split, rho=0.05)
    assert "rho = 0.05" in other.get_suptitle()
    assert (drawn(other) != drawn(figure)).any()


def test_figures_can_be_saved(glyph_study: Study, channel: int, tmp_path: object) -> None:
    path = tmp_path / "neuron.png"  # type: ignore[operator]
    neuron_figure(glyph_study.neuron(channel), 2).savefig(path)
    assert plt.imread(path).std() > 0.02


NASTY = ("US$ note", "CA$ _note_", "_a{b}$^%&<i>|")
"""Names that Matplotlib or TeX would take for formulas, or Matplotlib's legends for hidden."""


@pytest.fixture(scope="module")
def nasty_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose classes, layers and methods have names of all kinds."""
    torch.manual_seed(0)
    layers = {
        "a$b$_1": nn.Conv2d(3, 6, 3),
        "relu": nn.ReLU(),
        "c$d$_2": nn.Conv2d(6, 4, 3),
        "out": nn.AdaptiveAvgPool2d(1),
    }
    model = nn.Sequential(OrderedDict(**layers, flat=nn.Flatten(), fc=nn.Linear(4, 3)))

    class Labelled(torch.utils.data.Dataset[Any]):
        classes, targets = NASTY, tuple(index % 3 for index in range(36))

        def __len__(self) -> int:
            return 36

        def __getitem__(self, index: int) -> Any:
            return noise(36)[index], index % 3

    how: dict[str, Any] = {
        "n_references": 9,
        "n_clusters": 2,
        "min_frequency": 0.01,
        "min_share": 0.01,
        "progress": False,
    }
    store = tmp_path_factory.mktemp("nasty")
    return Study.from_model(model, Labelled(), "c$d$_2", "input:c$d$_2", store=store, **how)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def nasty_figures(study: Study) -> dict[str, Figure]:
    """Every figure that can show a name of a user's."""
    methods = [*NASTY, "random"]
    rows = [(c, name, 2, *np.random.default_rng(c).random(6)) for c in range(6) for name in methods]
    columns = ["channel", "method", "k", "ari", "ami", "accuracy", "gap", "intra", "inter"]
    table = pd.DataFrame(rows, columns=columns)
    board = table.groupby("method", sort=False).mean().reset_index().assign(low=0.1, high=0.9, seconds=1.0)
    judged = board.assign(k=2, overall=0.5, **{f"{name}_se": 0.1 for name in ("gap", "intra", "inter")})
    names = ("pooled", "low", "high", "naive_low", "naive_high")
    aligned = pd.DataFrame([{"method": m, "measure": "pearson", **dict.fromkeys(names, 0.5)} for m in methods])
    pairs = study.classes.pairs.assign(wup=0.5, synset_1=NASTY[0], synset_2=NASTY[1])
    neuron = study.neuron(0)
    return {
        "neuron": neuron.plot(3),
        "references": references_figure(neuron, 3),
        "circuits": circuits_figure(neuron, 3),
        "agreement": agreement_figure(summary(table, NASTY[0]), table),
        "arvs": arvs_figure(study, 0),
        "pair": pair_figure(study, pairs, 0, count=2),
        "densities": densities_figure(study.classes.split(0, NASTY)),
        "leaderboard": leaderboard_figure(board, table),
        "distances": distances_figure(judged, NASTY[2]),
        "gaps": gaps_figure(table, judged, NASTY[2]),
        "alignment": alignment_figure(pd.concat([aligned, aligned.assign(measure="spearman")]), NASTY[2]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("tex", [False, True])
def test_names_are_no_formulas(nasty_study: Study, tex: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a name was taken for a formula")

    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", refuse)
    with plt.rc_context({"text.usetex": tex}):
        figures = nasty_figures(nasty_study)
        for kind, figure in figures.items():
            assert not_blank(figure), kind
    for kind, name in {
        "neuron": "c$d$_2 / 0: 2 virtual neurons",
        "circuits": "channel of input:c$d$_2",
        "agreement": NASTY[2],
        "arvs": NASTY[0],
        "densities": NASTY[2],  # in the legend, too
        "leaderboard": NASTY[0],
        "distances": NASTY[1],
        "gaps": NASTY[2],
        "alignment": NASTY[0],
    }.items():
        assert name in texts(figures[kind]), kind
    legend = figures["densities"].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(NASTY)


def test_a_dollar_is_drawn_as_one(nasty_study: Study) -> None:
    """The pixels are those of the same words with their dollars escaped, which Matplotlib does not parse."""

    def pixels(escape: bool) -> np.ndarray:
        figure = references_figure(nasty_study.neuron(0), 3)
        if escape:
            title = figure.axes[0].title
            title.set(text=title.get_text().replace("$", r"\$"), parse_math=True)
        return drawn(figure)

    np.testing.assert_array_equal(pixels(False), pixels(True))


def test_a_saved_figure_is_closed(glyph_study: Study, channel: int, tmp_path: Path) -> None:
    before = plt.get_fignums()
    save(references_figure(glyph_study.neuron(channel), 2), tmp_path / "new" / "figure.png")
    assert plt.imread(tmp_path / "new" / "figure.png").std() > 0.02
    with pytest.raises(StoreError, match="can't be written"):
        save(references_figure(glyph_study.neuron(channel), 2), tmp_path / "new" / "figure.png" / "figure.png")
    assert plt.get_fignums() == before


def test_figures_of_a_notebook_are_shown_after_the_first_of_ours() -> None:
    """What Jupyter's backend does when the first figure loads it."""

    @literal
    def first() -> Figure:
        plt.ion()
        return plt.figure()

    try:
        plt.close(first())
        assert plt.isinteractive()
        assert plt.rcParams["text.parse_math"]
    finally:
        plt.ioff()
