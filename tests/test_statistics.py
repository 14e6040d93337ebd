"""Bootstrap samples and their limits; means, tests and tables are in the tests of the truth and of the evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from pure_nb.methods.statistics import correlation, percentiles, resampled


def test_samples_are_drawn_within_their_groups() -> None:
    groups = np.array([3, 5, 8]), np.array([1, 2])
    picks = resampled(*groups, draws=300)
    assert picks.shape == (300, 5)
    for place, group in ((slice(0, 3), groups[0]), (slice(3, 5), groups[1])):
        values, counts = np.unique(picks[:, place], return_counts=True)
        assert values.tolist() == sorted(group.tolist())
        assert counts.min() > 0.8 * counts.mean()
    np.testing.assert_array_equal(resampled(*groups, draws=300, seed=0), picks)
    assert (resampled(*groups, draws=300, seed=1) != picks).any()


@pytest.mark.parametrize("units", [0, 1])
def test_too_few_units_are_not_drawn(units: int) -> None:
    assert resampled(np.arange(units), draws=9).shape == (0, units)


def test_percentiles() -> None:
    assert percentiles(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    assert percentiles([*np.arange(101.0), np.nan], 0.9) == pytest.approx((5, 95))
    assert np.isnan(percentiles([np.nan])).all()
    assert np.isnan(percentiles([])).all()


def test_correlation() -> None:
    first, second = np.random.default_rng(0).random((2, 20))
    assert correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert correlation(first, second, "pearson") == pytest.approx(pearsonr(first, second).statistic)
    for flat in (correlation(first, np.ones(20)), correlation(np.ones(20), first, "pearson"), correlation([1], [2])):
        assert np.isnan(flat)
