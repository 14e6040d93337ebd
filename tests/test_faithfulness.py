"""Explanations checked by switching their units off and on alone: by hand, and against plain hooks."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from scipy.stats import false_discovery_control, wilcoxon
from small import Tokens, noise
from test_reasons import PICTURE, few, problem
from torch import Tensor, nn
from typer.testing import CliRunner

from pure_nb import Study
from pure_nb.cli import app
from pure_nb.compute.results import Results
from pure_nb.figures.faithfulness_plots import faithfulness_figure
from pure_nb.methods.statistics import interval
from pure_nb.network.layers import OUTPUT, activations
from pure_nb.reasons.faithfulness import KINDS, WAYS, Faithfulness
from pure_nb.reasons.parts import UNLIKE, Parts
from pure_nb.reasons.switching import ABLATIONS, area, outputs_without

HOW: dict[str, Any] = {"progress": False, "crop": "activation", "mean": (0.0,), "std": (1.0,)}


@pytest.fixture(scope="module")
def small() -> Study:
    images = torch.rand(12, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    return Study.from_model(few(), images, "2", "0", n_references=6, n_clusters=1, **HOW)


def switched(study: Study, image: Tensor, off: list[int], fill: Tensor) -> Tensor:
    """What the network puts out with channels of the target replaced, by a plain hook."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, off] = fill.expand_as(output)[:, off]
        return output

    handle = study.model.get_submodule(study.parameters.target).register_forward_hook(hook)
    with torch.no_grad():
        out: Tensor = study.model.eval()(image[None])[0].double()
    handle.remove()
    return out


def test_a_picture_by_hand(small: Study) -> None:
    """The output 8.5 is 6 of channel 1, 3 of channel 0, and -0.5 of the bias."""
    found = small.explain(PICTURE, channels=2).faithfulness
    rows = found.table[found.table["order"] == "parts"].set_index("ablation")
    assert rows.loc["zero", "units"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(rows.loc["zero", "off"] * 8.5, [8.5, 2.5, -0.5], atol=1e-5)
    np.testing.assert_allclose(rows.loc["zero", "alone"] * 8.5, [-0.5, 5.5, 8.5], atol=1e-5)
    areas = found.areas.set_index(["ablation", "order"]).loc[("zero", "parts")]
    assert areas["off"] == pytest.approx((8.5 / 2 + 2.5 - 0.5 / 2) / 2 / 8.5)
    assert areas["alone"] == pytest.approx((-0.5 / 2 + 5.5 + 8.5 / 2) / 2 / 8.5)
    assert areas["between"] == pytest.approx(areas["alone"] - areas["off"])
    tops = small.model[:3](torch.stack([small.images.tensor(one) for one in range(12)])).detach()
    mean = tops.mean(dim=(0, 2, 3))[None, :, None, None]
    expected = [switched(small, PICTURE, off, mean)[1] for off in ([], [1], [0, 1])]
    np.testing.assert_allclose(rows.loc["mean", "off"] * 8.5, expected, atol=1e-5)
    others = [tops[one : one + 1] for one in np.linspace(0, 11, 8).astype(int)]
    expected = [np.mean([switched(small, PICTURE, on, own)[1] for own in others]) for on in ([0, 1, 2], [0, 2], [2])]
    np.testing.assert_allclose(rows.loc["resample", "alone"] * 8.5, expected, atol=1e-5)


def test_orders_of_a_picture(small: Study) -> None:
    """Random orders are drawn by the seed; by activation comes first what is largest; against another, the rest."""
    found = small.explain(PICTURE, 1, against=0, channels=3).faithfulness.table
    zero = found[found["ablation"] == "zero"].set_index("order")
    random, value = np.random.default_rng(small.parameters.seed), {0: 1.5, 1: 24.0, 2: 0.0}
    first = [random.permutation(3)[0] for _ in range(8)]
    expected = [1, 1 - np.mean([value[one] for one in first]) / 24.75]
    np.testing.assert_allclose(zero.loc["random channels", "off"][:2], expected, atol=1e-6)
    np.testing.assert_allclose(zero.loc["channels by activation", "off"][:2], [1, 0.75 / 24.75], atol=1e-6)


def carried() -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """A channel of two parts, each of which alone carries a class; the others are read by no output."""
    upper, head = nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        upper.weight.copy_(torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 1]])[..., None, None])
        head.weight.copy_(torch.tensor([[1.0, 0, 0, 0]] * 2))
    labels = torch.arange(24) % 2
    images = 0.1 + torch.rand(24, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    images[labels == 0, 1], images[labels == 1, 0] = 0, 0
    identity = nn.Conv2d(3, 3, 1, bias=False)
    identity.weight.data = torch.eye(3)[..., None, None]
    return nn.Sequential(identity, upper, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), (images, labels)


def test_a_part_that_alone_carries_a_class() -> None:
    """Its class falls to nothing at once and the other stays, of which the whole channel takes all."""
    model, images = carried()
    study = Study.from_model(model, images, "2", "0", n_references=24, n_clusters=2, **HOW)
    found = study.classes.faithfulness(units=(1, 2), each=24)
    assert found.images.drop(columns="output").to_numpy().tolist() == [[1, 6, 6, 6]] * 2  # with one part
    rows = found.curves[found.curves["units"] > 0].groupby(["ablation", "way", "unit"])[["own", "others"]]
    low, high = rows.min(), rows.max()
    for way in WAYS:
        for unit, others in (("parts", 0), ("nearest parts", 0), ("channels", 1), ("random channels", 1)):
            for limit in (low, high):
                np.testing.assert_allclose(limit.loc[("zero", way, unit)], [1, others], atol=1e-6)
    table = found.table(1).set_index(["ablation", "way", "unit"])
    assert table.loc[("zero", "off", "parts"), "selectivity"] == pytest.approx(1)
    assert table.loc[("zero", "off", "channels"), "gain"] == pytest.approx(1)
    assert table.loc[("zero", "off", "parts"), "ratio"] == pytest.approx(0)
    assert table.loc[("zero", "off", "channels"), "ratio"] == pytest.approx(1)
    # Shuffled among the class's own images, in all of which it is at work, and among the others, in none: the same.
    shuffled = found.curves.set_index(["ablation", "way", "unit", "units"]).loc[("zero", "off", "shuffled parts", 1)]
    np.testing.assert_allclose(shuffled[["own", "others"]], [[1, 0]] * 2, atol=1e-6)
    one = study.explain(0).faithfulness
    zero = one.table[one.table["ablation"] == "zero"].set_index("order")
    np.testing.assert_allclose(zero.loc["parts", "off"], [1, 0], atol=1e-6)
    np.testing.assert_allclose(zero.loc["parts", "alone"], [0, 1], atol=1e-6)
    drawn = np.random.default_rng(study.parameters.seed)
    idle = np.mean([drawn.permutation(4)[0] > 0 for _ in range(8)])
    np.testing.assert_allclose(zero.loc["random channels", "off"], [1, idle], atol=1e-6)


OUTPUTS, EACH, OTHERS, UNITS = [3, 17, 40], 6, 4, (1, 3)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rule", ["gradient", "lrp"])
def test_classes_against_plain_hooks(glyph_study: Study, rule: str) -> None:
    study = glyph_study.replace(rule=rule)
    found = study.classes.faithfulness(OUTPUTS, units=UNITS, each=EACH, others=OTHERS)
    images, labels = study.classes.labelled, study.classes._labels[0]
    samples = {one: np.flatnonzero(labels == one) for one in OUTPUTS}
    samples = {one: own[np.unique(np.linspace(0, len(own) - 1, EACH).astype(int))] for one, own in samples.items()}
    chose = np.concatenate([own[::2] for own in samples.values()])
    tops = [
        activations(study.model.eval(), images.tensor(int(one))[None], ["layer4"])["layer4"].detach() for one in chose
    ]
    mean = torch.cat(tops).mean(dim=(0, 2, 3))[None, :, None, None]
    parts, out = Parts(study), OUTPUTS[1]
    carry: dict[tuple[int, int], float] = {}
    whole: dict[int, float] = {}
    for one in samples[out][::2]:
        own = study.explain(images.tensor(int(one)), out)
        for channel, part, relevance in own.channels[["channel", "part", "relevance"]].itertuples(index=False):
            whole[channel] = whole.get(channel, 0) + relevance
            if part != UNLIKE:
                carry[channel, part] = carry.get((channel, part), 0) + relevance
    units = [key for key in sorted(carry, key=lambda key: -carry[key]) if carry[key] > 0][: UNITS[-1]]
    channels = sorted(whole, key=lambda key: -whole[key])[: UNITS[-1]]
    rest = np.concatenate([own[1::2] for one, own in samples.items() if one != out])
    rest = rest[np.unique(np.linspace(0, len(rest) - 1, OTHERS).astype(int))]
    curves = found.curves.set_index(["output", "ablation", "way", "unit", "units"]).loc[study.classes.names[out]]
    for name, sample in (("own", samples[out][1::2]), ("others", rest)):
        before, after, right = 0.0, dict.fromkeys(curves.index, 0.0), dict.fromkeys(curves.index, 0.0)
        for one in sample.tolist():
            image, label = images.tensor(one), labels[one]
            before += float(switched(study, image, [], mean)[label])
            vectors = study.run_circuits(np.array([channel for channel, _ in units]), np.full(len(units), one), images)
            like = [parts.fit(unit[0], own[None]).part[0] == unit[1] for unit, own in zip(units, vectors)]
            near = [parts.fit(unit[0], own[None], like=False).part[0] == unit[1] for unit, own in zip(units, vectors)]
            for count in UNITS:
                sets = {
                    "parts": [unit[0] for unit, on in zip(units[:count], like) if on],
                    "nearest parts": [unit[0] for unit, on in zip(units[:count], near) if on],
                    "channels": channels[:count],
                }
                for kind, off in sets.items():
                    for ablation, fill in (("zero", torch.zeros(())), ("mean", mean)):
                        others = [channel for channel in range(32) if channel not in off]
                        for way, gone in (("off", off), ("alone", others)):
                            answers = switched(study, image, gone, fill)
                            after[ablation, way, kind, count] += float(answers[label])
                            right[ablation, way, kind, count] += float(answers.argmax() == label)
        for key, value in after.items():
            if key[0] != "resample" and key[2] in KINDS[:3] and key[3]:
                expected = 1 - value / before if key[1] == "off" else value / before
                assert curves.loc[key, name] == pytest.approx(float(expected), abs=1e-4), (key, name)
                assert curves.loc[key, f"{name}_right"] == pytest.approx(right[key] / len(sample))


def test_what_is_resampled_is_the_same_in_all_sets(glyph_study: Study) -> None:
    """Of all channels but some and of these, the falls of a linear head add up, whatever stands in their place."""
    found = glyph_study.classes.faithfulness(OUTPUTS, units=UNITS, each=EACH, others=OTHERS)
    wide = found.curves.pivot(index=["output", "ablation", "unit", "units"], columns="way", values="own")
    none = wide["alone"].groupby(["output", "ablation", "unit"]).transform("first")  # of no units
    np.testing.assert_allclose(wide["off"] + none, wide["alone"], atol=1e-4)
    assert wide["off"].xs("resample", level="ablation").abs().max() > 0.01
    assert list(found.curves["ablation"].unique()) == list(ABLATIONS)


def test_the_table_over_classes(glyph_study: Study) -> None:
    found = glyph_study.classes.faithfulness(OUTPUTS, units=UNITS, each=EACH, others=OTHERS)
    own = found.curves.set_index(["ablation", "way", "unit", "units", "output"]).sort_index()
    each = own["own"] - own["others"]
    parts, channels = (each.xs(("mean", "off", unit, 3)) for unit in ("parts", "channels"))
    row = found.table(3).set_index(["ablation", "way", "unit"]).loc[("mean", "off", "channels")]
    assert row["gain"] == pytest.approx((parts - channels).mean())
    low, high = interval(parts - channels)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((low, high), abs=0.1 * (high - low))
    gains = {
        tuple(key): (each.xs((*key[:2], "parts", 3)) - each.xs((*key, 3))).to_numpy()
        for key in found.table(3)[["ablation", "way", "unit"]].to_numpy().tolist()
    }
    raw = {key: wilcoxon(gain).pvalue for key, gain in gains.items() if gain.any()}
    fair = dict(zip(raw, false_discovery_control([*raw.values()])))
    assert row["p"] == pytest.approx(fair["mean", "off", "channels"])
    heights = own["own"].xs(("mean", "off", "parts")).unstack("output")
    whole = found.table().set_index(["ablation", "way", "unit"]).loc[("mean", "off", "parts"), "own"]
    assert whole == pytest.approx(
        ((heights.loc[0] + heights.loc[1]) / 2 + (heights.loc[1] + heights.loc[3])).mean() / 3
    )
    assert "measured were 0, 1, 3" in problem(lambda: found.table(2))
    assert len(found.figure().axes) == 6


def test_classes_are_found_again(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"units": UNITS, "each": EACH, "others": OTHERS}
    expected = glyph_study.classes.faithfulness(OUTPUTS, **how)
    monkeypatch.setattr("pure_nb.reasons.faithfulness.outputs_without", None)
    monkeypatch.setattr("pure_nb.reasons.faithfulness.parts_at_work", None)
    again = glyph_study.classes.faithfulness(OUTPUTS, **how)
    assert again.curves.equals(expected.curves)
    assert again.images.equals(expected.images)


def test_images_of_ones_own(glyph_study: Study) -> None:
    own = torch.stack([glyph_study.classes.labelled.tensor(one) for one in (0, 1, 2, 3, 50, 51, 52, 53)])
    labels = torch.tensor([0] * 4 + [1] * 4)
    found = glyph_study.classes.faithfulness(images=(own, labels), units=[2])
    assert found.images[["chose", "own", "others"]].to_numpy().tolist() == [[2, 2, 2]] * 2


@pytest.mark.parametrize("target", ["first", "patches:first"])
def test_sets_at_once_and_where_they_can_not_be(target: str) -> None:
    """Tokens that the target does not show are as many as there are images: then each set is a run of its own."""
    model, image = Tokens().eval(), noise(1)
    off = np.random.default_rng(0).random((7, 8)) < 0.5
    off[3] = off[1]
    top = activations(model, image, [target])[target].detach()
    fill = torch.rand(top.shape, generator=torch.Generator().manual_seed(0))
    found = outputs_without(model, image, target, off, fill)
    for gone, own in zip(off, found):
        mask = torch.from_numpy(gone).reshape((1, -1, 1, 1) if top.ndim == 4 else (1, 1, -1))
        changes = {target: lambda values, mask=mask: torch.where(mask, fill, values)}
        expected = activations(model, image, [target, OUTPUT], changes=changes)[OUTPUT]
        np.testing.assert_allclose(own, expected[0].detach(), atol=1e-5)


def test_the_mean_height_of_curves() -> None:
    assert area([0, 1, 4], np.array([[0.0, 1, 1], [2, 2, 2]])).tolist() == [(0.5 + 3) / 4, 2]


def test_each_kind_of_unit_has_a_colour_of_its_own() -> None:
    names, every = ("ablation", "way", "unit", "units"), (ABLATIONS, WAYS, KINDS, range(3))
    curves = pd.DataFrame(product(*every), columns=names).assign(own=0.5, others=0.1)
    figure = faithfulness_figure(Faithfulness(curves, pd.DataFrame({"output": ["one"]})))
    for axes in figure.axes:
        assert len({to_hex(line.get_color()) for line in axes.lines if line.get_label() in KINDS}) == len(KINDS)
    plt.close(figure)


def test_page_and_figure_and_command(seen: Study, tmp_path: Path) -> None:
    found = seen.explain(7, count=2)
    assert "Is it so?" not in found.write(tmp_path / "why.html").read_text("utf-8")
    row = found.faithfulness.areas.to_dict("records")[0]
    text = found.write(tmp_path / "why.html").read_text("utf-8")
    assert f"{100 * row['between']:+.1f} %".replace("-", "−") in text
    assert "area between" in found.figure().get_suptitle()
    assert len(found.faithfulness.figure().axes) == 6
    page = tmp_path / "told.html"
    made = CliRunner().invoke(app, ["explain", "glyphs", "7", "--count", "2", "--faithfulness", "--out", str(page)])
    assert made.exit_code == 0, made.output
    assert "random channels" in made.output
    assert "Is it so?" in page.read_text("utf-8")


def test_what_can_not_be_checked_is_told_in_a_sentence(small: Study, seen: Study) -> None:
    check = seen.classes.faithfulness
    assert "two or more are needed, got 1" in problem(lambda: check([3]))
    assert "two or more are needed, got 1" in problem(lambda: check([3, 3]))
    assert "units are numbers of parts from 1 on, got [0, 2]" in problem(lambda: check([3, 4], units=(0, 2)))
    assert "there is no output 'clowd'" in problem(lambda: check(["clowd", "sun"]))
    assert "checked over their images, and the images" in problem(lambda: small.classes.faithfulness())
    single = seen.images.tensor(0)[None], torch.tensor([3])
    assert "has 1 images: one chooses" in problem(lambda: check([3, 4], images=single))
    against = small.explain(torch.full((2, 2, 2), -2.0), 0, against=1)
    assert "no part speaks for '0' in a tensor" in problem(lambda: against.faithfulness)


def test_a_picture_is_no_reference_of_its_own_parts(seen: Study) -> None:
    picture = int(seen.references.sample[3, 0])
    found = seen.explain(picture, count=20)
    some, amiss = found.channels[found.channels["part"] != UNLIKE], 0
    for one, channel, part in zip(found.shown, some["channel"].tolist(), some["part"].tolist()):
        members = seen.references.sample[channel][seen.neuron(channel).members(part)]
        amiss += picture in members[:4]
        assert len(one.references) == min(4, (members != picture).sum())
    assert amiss


def test_of_outputs_below_zero_nothing_is_lost_with_all_on() -> None:
    model, images = carried()
    shift = nn.Linear(2, 2)
    shift.weight.data, shift.bias.data = torch.eye(2), torch.full((2,), -50.0)
    below = nn.Sequential(model, shift)
    study = Study.from_model(below, images, "0.2", "0.0", n_references=24, n_clusters=2, **HOW)
    curves = study.classes.faithfulness(units=(1,), each=24).curves.set_index(["way", "units"])
    np.testing.assert_allclose(curves.loc[("off", 0), ["own", "others"]], 0, atol=1e-6)


def test_classes_are_measured_on_different_others(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[Any] = []
    usual = Results.arrays

    def noted(results: Results, step: str, key: Any, *given: Any) -> Any:
        if step == "faithfulness":
            samples.append(key)
            raise StopIteration
        return usual(results, step, key, *given)

    monkeypatch.setattr(Results, "arrays", noted)
    with pytest.raises(StopIteration):
        glyph_study.classes.faithfulness(each=6, others=4)
    count = len(glyph_study.classes.names)
    held, rest = samples[-1]["samples"][count : 2 * count], samples[-1]["samples"][2 * count :]
    uses = np.bincount(np.concatenate(rest))
    assert {*np.flatnonzero(uses)} == {*np.concatenate(held)}
    assert uses.max() <= 6


@pytest.mark.parametrize("how", [{"each": 1}, {"each": 0}, {"others": 0}])
def test_too_few_images(glyph_study: Study, how: dict[str, int]) -> None:
    assert "one is measured, and one of others: got" in problem(lambda: glyph_study.classes.faithfulness(**how))
