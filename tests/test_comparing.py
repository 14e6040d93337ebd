"""Two networks side by side: parts find their partners, and what has none is said to have appeared or vanished."""

from __future__ import annotations

import re
from copy import deepcopy
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small import noise, plain
from typer.testing import CliRunner

from pure_nb import Study
from pure_nb.cli import app
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.judges.vectors import Embedder
from pure_nb.show.comparing import compare


def study_of(model: Any, images: Any = None, **how: Any) -> Study:
    how = {"n_references": 8, "n_clusters": 2, "progress": False, **how}
    return Study.from_model(model, noise(40).sigmoid() if images is None else images, "4", "2", **how)


def told(parts: dict[int, list[list[int]]], images: str = "same") -> Any:
    """As much of a study as is asked: the images of each part of each channel."""
    samples = {channel: np.concatenate(every) for channel, every in parts.items()}
    longest = max(map(len, samples.values()))
    sample = np.full((max(parts) + 1, longest), -1)
    for channel, own in samples.items():
        sample[channel, : len(own)] = own
    labels = {channel: np.repeat(range(len(every)), [len(own) for own in every]) for channel, every in parts.items()}

    def neuron(channel: int) -> Any:
        virtual = SimpleNamespace(k=len(parts[channel]))
        return SimpleNamespace(virtual=virtual, members=lambda part: np.flatnonzero(labels[channel] == part))

    class Images:
        fingerprint, name = images, images

        def __len__(self) -> int:
            return 100

    references = SimpleNamespace(sample=sample, channels=len(sample))
    return SimpleNamespace(
        images=Images(), references=references, neuron=neuron, most_polysemantic=lambda _: list(parts)
    )


def test_what_appears_vanishes_splits_and_merges_is_said() -> None:
    one = told({0: [[1, 2, 3, 4, 5, 6]], 1: [[10, 11, 12], [20, 21, 22]], 4: [[30, 31]]})
    other = told({0: [[10, 11, 12, 20, 21]], 2: [[1, 2, 3, 4], [5, 6]], 3: [[40, 41]]})
    rows = [tuple(row) for row in compare(one, other, least=0.3).astype(object).itertuples(index=False)]
    plainly = [tuple(None if pd.isna(value) else value for value in row) for row in rows]
    assert [row[:4] + row[5:] for row in plainly] == [
        (0, "A", 2, "A", "matched"),
        (1, "A", 0, "A", "matched"),  # the larger part of what they merged into
        (1, "B", 0, "A", "merged"),
        (4, "A", None, None, "vanished"),
        (0, "A", 2, "B", "split"),
        (None, None, 3, "A", "appeared"),
    ]
    assert [row[4] for row in plainly] == pytest.approx([4 / 6, 3 / 5, 2 / 6, None, 2 / 6, None])
    assert set(compare(one, other, least=1.0)["what"]) == {"vanished", "appeared"}


@pytest.mark.parametrize("seed", range(5))
def test_all_pairs_together_are_as_alike_as_can_be(seed: int) -> None:
    """Against all ways to match them."""
    draw = np.random.default_rng(seed)
    sets = [[draw.choice(12, 5, replace=False).tolist() for _ in range(4)] for _ in range(2)]
    table = compare(*(told({channel: [own] for channel, own in enumerate(every)}) for every in sets), least=0.0)
    every = [[len({*a} & {*b}) / len({*a} | {*b}) for b in sets[1]] for a in sets[0]]
    best = max(sum(every[a][b] for a, b in enumerate(order)) for order in permutations(range(4)))
    assert table.loc[table["what"] == "matched", "alike"].sum() == pytest.approx(best)
    for row in table.itertuples():
        assert row.alike == pytest.approx(every[row.channel_1][row.channel_2])


@pytest.mark.parametrize("by", ["images", "circuits", "embedder"])
def test_a_network_with_its_channels_in_another_order_is_the_same(by: Any) -> None:
    order = [3, 0, 5, 1, 4, 2]
    model, other = plain(), deepcopy(plain())
    with torch.no_grad():
        last: Any = other[4]
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
    how = {"embedder": _pixels()} if by == "embedder" else {}
    table = compare(study_of(model), study_of(other, name="turned"), by, **how)
    assert set(table["what"]) == {"matched"}
    assert table["alike"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert [order[channel] for channel in table["channel_2"]] == table["channel_1"].tolist()
    assert (table["part_1"] == table["part_2"]).all()


def _pixels() -> Embedder:
    from pure_nb import load_embedder

    return load_embedder("pixels")


def test_what_can_not_be_compared_is_said() -> None:
    model, dead = study_of(plain()), plain()
    with torch.no_grad():
        dead[4].bias.fill_(-1e6)  # type: ignore[union-attr,operator]
    with pytest.raises(StudyError, match="parts share images only if the studies are of the same"):
        compare(model, study_of(plain(), noise(40, seed=1)))
    with pytest.raises(StudyError, match="'2' of 'mine' and '2' of 'other' put out different values"):
        compare(model, study_of(plain(seed=1), name="other"), "circuits")
    with pytest.raises(ArgumentError, match="an embedder goes with by='embedder', got by='embedder' and embedder=None"):
        compare(model, model, "embedder")
    with pytest.raises(StudyError, match="no image activates any channel of '4'"):
        compare(model, study_of(dead))
    with pytest.raises(ArgumentError, match="by must be one of images, embedder, circuits, got 'names'"):
        compare(model, model, "names")  # type: ignore[arg-type]


def test_the_command(tmp_path: Path) -> None:
    for target in ("layer4", "layer3"):
        (tmp_path / f"{target}.toml").write_text(
            '[model]\nsource = "glyphnet"\n[images]\nsource = "glyphs"\nlength = 16\n'
            f'[parameters]\ntarget = "{target}"\nlower = "layer2"\nn_references = 5\nn_clusters = 1\n',
            encoding="utf-8",
        )
    how = ["compare", str(tmp_path / "layer4.toml"), str(tmp_path / "layer3.toml"), "--out", str(tmp_path / "t.csv")]
    found = CliRunner().invoke(app, how)
    assert found.exit_code == 0, found.output
    assert re.search(r"^\d+ \w+(, \d+ \w+)*$", found.output, re.MULTILINE)
    lines = (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "channel_1,part_1,channel_2,part_2,alike,what"
    assert len(lines) > 64  # each part has a row
