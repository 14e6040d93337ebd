"""DeLong's comparison of areas under correlated ROC curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from sklearn.metrics import roc_auc_score

from pure_nb.benchmark.bench_plots import scores_figure
from pure_nb.benchmark.paired import compared
from pure_nb.benchmark.trial import board
from pure_nb.errors import ArgumentError


def table(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """Scores of channels, half of which mean two things; ``near`` is ``good`` and a little noise."""
    rng = np.random.default_rng(seed)
    k = np.repeat([1, 2], n // 2)
    good = rng.normal(size=n) + 1.5 * (k > 1)
    values = {"good": good, "near": good + 0.3 * rng.normal(size=n), "bad": rng.normal(size=n).round()}
    rows = [
        pd.DataFrame({"channel": range(n), "judge": "own", "score": name, "value": own, "k": k})
        for name, own in values.items()
    ]
    return pd.concat(rows, ignore_index=True)


def test_areas_and_errors_beside_scikit_learn_and_a_bootstrap() -> None:
    made = table()
    found = compared(made, ("good", "own")).set_index("score")
    wide = made.pivot(index="channel", columns="score", values="value")
    k = made.groupby("channel")["k"].first().to_numpy()
    for name in ("good", "near", "bad"):  # with ties
        assert found.loc[name, "auc"] == pytest.approx(roc_auc_score(k > 1, wide[name]))
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(300):
        pick = np.concatenate([rng.choice(np.flatnonzero(k == one), 30) for one in (1, 2)])
        areas = [roc_auc_score(k[pick] > 1, wide[name].to_numpy()[pick]) for name in ("near", "bad", "good")]
        draws.append([areas[0] - areas[2], areas[1] - areas[2], areas[1]])
    spread = np.std(draws, axis=0)
    own = (found["difference_high"] - found["difference_low"]) / 2 / 1.96
    assert own["near"] == pytest.approx(spread[0], rel=0.2)
    assert own["bad"] == pytest.approx(spread[1], rel=0.2)
    assert found.loc["bad", "error"] == pytest.approx(spread[2], rel=0.2)
    apart = np.hypot(found.loc["near", "error"], found.loc["good", "error"])
    assert own["near"] < apart / 2  # paired: what both share does not count
    assert found.loc["bad", "p_difference"] < 0.01
    assert np.isnan(found.loc["good", "p_difference"])


def test_only_channels_that_have_both_are_compared() -> None:
    made = table()
    lost = (made["score"] == "near") & (made["channel"] % 3 == 0)
    less = compared(made.assign(value=made["value"].where(~lost)), ("good", "own")).set_index("score")
    whole = compared(made[made["channel"] % 3 != 0], ("good", "own")).set_index("score")
    assert less.loc["near", "difference"] == pytest.approx(whole.loc["near", "difference"])
    with pytest.raises(ArgumentError, match="there is no score"):
        compared(made, ("good", "mini-CLIP"))


def test_level() -> None:
    """Of two scores that are as good, one is called better as rarely as the level says."""
    p = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        k = np.repeat([1, 2], 20)
        both = pd.DataFrame({"channel": np.tile(range(40), 2), "judge": "own", "k": np.tile(k, 2)})
        both["score"] = np.repeat(["a", "b"], 40)
        both["value"] = rng.normal(size=80) + (both["k"] > 1)
        p.append(compared(both, ("a", "own")).set_index("score").loc["b", "p_difference"])
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.11


def test_board_with_a_baseline_and_its_figure() -> None:
    found = board(table(), baseline=("good", "own"), draws=20)
    assert found["score"].tolist()[-1] == "bad"
    by_score = found.set_index("score")
    assert by_score.loc["bad", "difference"] == pytest.approx(by_score.loc["bad", "auc"] - by_score.loc["good", "auc"])
    (axes,) = scores_figure(found.assign(auc=found["auc"].where(found["score"] != "near"))).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["good, own", "bad, own"]  # the best first
    judges = ["mini-CLIP", "CLIP", "one", "another"]
    (axes,) = scores_figure(found.iloc[[0] * 4].assign(judge=judges)).axes
    assert len({to_hex(line.get_color()) for line in axes.lines if line.get_marker() == "o"}) == 4
