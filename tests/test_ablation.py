"""Parts switched off: by hand in a network of a few weights, by slow sums, and where the right answer is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Items, Tokens, noise, plain
from torch import nn
from typer.testing import CliRunner

from pure_nb.ablating import ASSIGNED, HALF, RANDOM, ablate, held_out
from pure_nb.benchmark.causal import beyond, board, compare_ablations, split_selectivity
from pure_nb.benchmark.contestants import Contestant
from pure_nb.benchmark.planting import plant
from pure_nb.benchmark.tasks import Task, planted_task
from pure_nb.cli import app
from pure_nb.errors import ArgumentError, PlantingError, StudyError
from pure_nb.methods.ablation import Ablation, selectivity, weakened
from pure_nb.methods.virtual import VirtualNeurons
from pure_nb.methods.virtual_layer import VirtualLayer
from pure_nb.network.layers import OUTPUT, activations
from pure_nb.study import Study
from pure_nb.swapping import PATCHES, _pasted, swap_patches

IMAGES = torch.tensor([[3.0, 1.0], [1.0, 4.0], [2.0, 0.0]])[..., None, None]


def parts_of(centroids: list[list[float]]) -> VirtualNeurons:
    return VirtualNeurons(np.zeros(1, np.int64), np.array(centroids, np.float32), 0.0, 0.0, 1.0)


def by_hand(assign: str = "nearest") -> VirtualLayer:
    """Channel 0 adds up both inputs, channel 1 takes their difference; the outputs are 2 * c0 + c1 and c1 + 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        model[3].weight.copy_(torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
        model[3].bias.copy_(torch.tensor([0.0, 1.0]))
    parts = {0: parts_of([[1, 0], [0, 1]]), 1: parts_of([[0.5, -0.5]])}
    return VirtualLayer(model, "2", "0", parts, assign=assign)  # type: ignore[arg-type]


def test_by_hand() -> None:
    layer = by_hand()
    assert layer.shares(IMAGES).tolist() == [[1, 0, 1], [0, 1, 1], [1, 0, 1]]
    assert Ablation(layer, [])(IMAGES).tolist() == [[10, 3], [10, 1], [6, 3]]
    assert Ablation(layer, ["0A"])(IMAGES).tolist() == [[2, 3], [10, 1], [2, 3]]
    assert Ablation(layer, ["0B", "1A"])(IMAGES).tolist() == [[8, 1], [0, 1], [4, 1]]
    assert Ablation.but(layer, ["0A"])(IMAGES).tolist() == [[8, 1], [0, 1], [4, 1]]
    outputs, maps = Ablation(by_hand("mixture"), ["0A"]).both(IMAGES)
    np.testing.assert_allclose(maps, [[1, 2], [4, 0], [0, 2]], atol=1e-5)
    np.testing.assert_allclose(outputs, [[4, 3], [8, 1], [2, 3]], atol=1e-4)
    mean = torch.tensor([[11 / 3, 4 / 3]])  # of both channels over the images
    np.testing.assert_allclose(Ablation(layer, ["0A"], mean)(IMAGES)[:, 0], [22 / 3 + 2, 10, 22 / 3 + 2], rtol=1e-6)
    others = torch.tensor([[5.0, 0.0], [2.0, 2.0], [4.0, 2.0]])  # each image has the next one's
    assert Ablation(layer, ["0A", "1A"], others)(IMAGES).tolist() == [[10, 1], [12, 3], [10, 3]]
    with pytest.raises(ArgumentError, match="no virtual neuron '0C' to switch off; there are 0A, 0B, 1A"):
        Ablation.but(layer, ["0C"])


@pytest.mark.parametrize(
    ("model", "target", "lower"), [(plain(), "5", "3"), (plain(), "4", "2"), (Tokens(), "second", "first")]
)
@pytest.mark.parametrize("assign", ["nearest", "mixture"])
def test_off_and_on_add_up(model: nn.Module, target: str, lower: str, assign: str) -> None:
    images, generator = noise(4, seed=3), np.random.default_rng(0)
    with torch.no_grad():
        found = activations(model, images, [lower, target])
        plainly = model(images)
    width = found[lower].shape[2 if found[lower].ndim == 3 else 1]
    parts = {channel: parts_of(generator.normal(size=(2, width)).tolist()) for channel in (1, 3)}
    layer = VirtualLayer(model, target, lower, parts, assign=assign)  # type: ignore[arg-type]
    whole, axis = found[target], 2 if found[target].ndim == 3 else 1
    assert torch.equal(Ablation(layer, []).both(images)[0], plainly)
    assert torch.equal(Ablation(layer, []).both(images)[1], whole)
    off, on = (made(layer, ["1A", "3B"]).both(images)[1] for made in (Ablation, Ablation.but))
    rest = [channel for channel in range(whole.shape[axis]) if channel not in parts]
    torch.testing.assert_close(
        (off + on).index_select(axis, torch.tensor([1, 3])), whole.index_select(axis, torch.tensor([1, 3]))
    )
    assert torch.equal(off.index_select(axis, torch.tensor(rest)), whole.index_select(axis, torch.tensor(rest)))
    zeroed = whole.index_fill(axis, torch.tensor([1, 3]), 0)
    outputs, maps = Ablation(layer, layer.names).both(images)
    torch.testing.assert_close(maps, zeroed, rtol=0, atol=0)
    with torch.no_grad():
        slow = activations(model, images, [target, OUTPUT], changes={target: lambda _: zeroed})[OUTPUT]
    assert torch.equal(outputs, slow)
    assert not torch.equal(outputs, plainly)


def test_selectivity_is_what_it_says() -> None:
    fall, own = np.array([0.9, 0.7, 0.1, -0.2, 0.4]), np.array([True, True, False, False, False])
    found = selectivity(fall, own)
    assert (found.own, found.others) == pytest.approx((0.8, 0.1))
    assert found.selectivity == pytest.approx(0.7)
    every = [fall[list(two)].mean() - np.delete(fall, two).mean() for two in combinations(range(5), 2)]
    assert found.p == pytest.approx(np.mean(np.array(every) >= found.selectivity - 1e-9))
    assert found.low < found.selectivity < found.high
    shuffled = np.random.default_rng(0)
    p = [selectivity(shuffled.normal(size=30), np.arange(30) < 12, draws=99, seed=n).p for n in range(100)]
    assert 0.35 < np.mean(p) < 0.65  # nothing there: uniform
    alone = selectivity(fall, np.ones(5, dtype=np.bool_))
    assert np.isnan([alone.others, alone.selectivity, alone.low, alone.p]).all()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = {"n_references": 20, "n_clusters": 2, "progress": False, "store": tmp_path_factory.mktemp("store")}
    return Study.from_model(plain(), Items(noise(60)), "5", "3", **made)  # type: ignore[arg-type]


def test_what_a_study_says_of_a_part(study: Study) -> None:
    channel = int(study.references.score[:, -1].argmax())
    found = study.ablate(channel, "B")
    held = held_out(study, channel)
    assert not set(held) & set(study.references.sample[channel])
    assert found.sample.tolist() == held[: len(found.sample)].tolist()
    assigned = study.predict(channel, study.images, found.sample.tolist())
    assert (assigned == 1).tolist() == found.own[ASSIGNED].tolist()
    table = found.table().set_index(["off", "told_by"])
    assert table.loc[("part B", ASSIGNED), "selectivity"] == 1
    assert not table.loc["whole channel", "selectivity"].any()
    assert table.loc[("part B of one half", HALF), "own_images"] == found.own[HALF].sum()
    # A lower channel switched off, image by image and in double precision.
    lower = next(off for off in found.fall if off.startswith("lower channel"))
    model = plain().double()
    for row, sample in enumerate(found.sample[:4].tolist()):
        image = study.images.tensor(sample).double()[None]
        with torch.no_grad():
            below = model[:4](image)
            before, logits = model[4:6](below)[0, channel].max(), model(image)
            below[:, int(lower.split()[-1])] = 0
            after, moved = model[4:6](below)[0, channel].max(), model[4:](below)
        assert found.fall[lower][row] == pytest.approx(float((before - after) / before), abs=1e-4)
        np.testing.assert_allclose(found.change[lower][row], (moved - logits)[0], atol=1e-4)
    outputs = found.outputs()
    strongest = outputs["part B, own"].abs()
    assert strongest.is_monotonic_decreasing
    assert not outputs["part B, others"].any()
    assert len(found.plot().axes) == 2


@pytest.mark.slow
def test_by_objects(glyph_study: Study) -> None:
    found = ablate(glyph_study, 22)
    table = found.table()
    part = table[(table["off"] == "part A") & (table["told_by"] == "objects")].iloc[0]
    random = table[(table["off"] == RANDOM) & (table["told_by"] == "objects")].iloc[0]
    assert part["selectivity"] > 0.6 > random["selectivity"]
    assert part["p"] < 0.05


def test_what_can_t_be_switched_off(study: Study) -> None:
    with pytest.raises(ArgumentError, match="has no part 'C'; it has A, B"):
        study.ablate(0, "C")
    with pytest.raises(StudyError, match="left whole"):
        study.replace(n_clusters=1).ablate(0)
    with pytest.raises(StudyError, match="no image beyond the 60 references"):
        study.replace(n_references=60).ablate(0)
    with pytest.raises(ArgumentError, match="channels 0 to 5"):
        study.ablate(9)


@pytest.fixture(scope="module")
def task(glyph_study: Study) -> Task:
    return planted_task(glyph_study, count=2, self_merged=1)


@pytest.mark.slow
def test_the_source_switched_off_is_the_right_answer(task: Task) -> None:
    """What is called right is the channel planted without its source, in another network."""
    wide, n = beyond(task), task.truth.shape[1]
    np.testing.assert_array_equal(wide.study.references.sample[:, :n], task.study.references.sample)
    np.testing.assert_array_equal(wide.truth[:, :n], task.truth)
    table = compare_ablations(task)
    assert table["channel"].unique().tolist() == [0, 1]  # not the one merged with itself
    right = table[table["method"] == "source"]
    assert not right[["map_error", "output_error"]].any(axis=None)
    first = table[table["channel"] == 0]
    source, group = int(first["source"].iloc[0]), task.planting.groups[0]  # type: ignore[union-attr]
    held = wide.study.references.sample[0, n:]
    images = torch.stack([task.study.images.tensor(int(sample)) for sample in held])
    (rest,) = set(group) - {source}
    alone, _ = plant(task.base.model, task.base.references, [(rest, rest)], [(0.5, 0.5)])
    double = [model.double() for model in (task.study.model, alone)]
    with torch.no_grad():
        whole, other = (
            activations(model, images.double(), ["layer4.merged"])["layer4.merged"][:, 0] for model in double
        )
    task.study.model.float()
    nothing = ((whole - other) ** 2).sum()
    expected = float((((0 - other) ** 2).sum() / nothing).sqrt())  # all of it switched off
    found = first[(first["method"] == "whole channel") & (first["source"] == source)]["map_error"].item()
    assert found == pytest.approx(expected, rel=1e-4)
    mean = board(table).set_index("method")["mean"]
    assert mean["oracle parts"] < mean["random"]
    values = split_selectivity(task)
    assert values.shape == (3,)
    assert (np.abs(values) <= 1).all()


@pytest.mark.slow
def test_a_contestant_that_knows_is_the_oracle(task: Task) -> None:
    knowing = Contestant("knows", lambda wide: np.stack([wide.contributions[:, :, 0], wide.contributions[:, :, 1]], 2))
    knows = replace(knowing, clusterer=lambda vectors, k, seed: (vectors[:, 1] > vectors[:, 0]).astype(np.int64))
    table = compare_ablations(task, [knows]).set_index(["channel", "source", "method"])["map_error"].unstack()
    assert (table["knows"] < table["random"]).all()
    with pytest.raises(PlantingError, match="nothing was planted"):
        compare_ablations(replace(task, planting=None))


def test_a_patch_is_where_it_should_be() -> None:
    image, donor = torch.zeros(1, 6, 6), torch.arange(36.0).reshape(1, 6, 6)
    found = _pasted(image, (1, 2, 4, 5), donor, (3, 0, 6, 3))
    assert torch.equal(found[0, 2:5, 1:4], donor[0, 0:3, 3:6])
    assert found.count_nonzero() == 9
    assert not image.any()


@pytest.mark.slow
def test_parts_follow_what_is_seen(glyph_study: Study) -> None:
    study = glyph_study.replace(crop="activation")
    table = swap_patches(study, 22, swaps=12).set_index("patch")
    assert table.index.tolist() == list(PATCHES)
    assert table.loc["other part", "follows"] > table.loc["same part", "follows"]
    assert (table["low"] <= table["follows"]).all()
    assert (table["follows"] <= table["high"]).all()


def test_command(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "ablation.png"
    ran = CliRunner().invoke(app, ["ablate", "glyphs", "--channel", "999", "--out", str(out)])
    assert ran.exit_code == 1
    assert "channel 999" in ran.output
    assert weakened(torch.ones(1, 2, 3), np.array([1]), np.array([[1.0]])).tolist() == [[[1, 0, 1], [1, 0, 1]]]
