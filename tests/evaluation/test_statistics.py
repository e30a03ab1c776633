from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.evaluation import statistics

repeatable = settings(max_examples=25, deadline=None, derandomize=True)


def clips(seed: int = 0, n_clips: int = 46, n_groups: int = 20) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    groups = np.array([f"recording {number:02d}" for number in generator.integers(0, n_groups, n_clips)])
    return generator.random(n_clips), groups


def interval(values: np.ndarray, groups: Any, **options: Any) -> tuple[float, float]:
    """The interval of one statistic."""
    (low,), (high,) = statistics.bootstrap_intervals(values[:, None], groups, **options)
    return float(low), float(high)


def test_interval_from_the_definition() -> None:
    """Draw recordings one by one, put their clips together, take the mean, and read off the percentiles."""
    values, groups = clips()
    names = sorted(set(groups))
    drawn = statistics.resample_counts(len(names), seed=5, n_resamples=300)
    means = []
    for counts in drawn:
        sample: list[float] = []
        for name, count in zip(names, counts, strict=True):
            sample += values[groups == name].tolist() * count
        means.append(sum(sample) / len(sample))
    expected = np.percentile(means, [2.5, 97.5])
    found = interval(values, groups, seed=5, n_resamples=300)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_resamples_draw_as_many_recordings_as_there_are() -> None:
    drawn = statistics.resample_counts(20, seed=0, n_resamples=4000)
    assert (drawn.sum(axis=1) == 20).all()
    # Drawing with replacement leaves a recording out with probability (1 - 1/20)^20.
    np.testing.assert_allclose((drawn == 0).mean(axis=0), 0.95**20, atol=0.03)


def test_interval_of_clips_on_their_own_agrees_with_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = interval(values, np.arange(400), seed=0)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_clips_of_one_recording_count_as_one() -> None:
    values = np.repeat(np.random.default_rng(0).random(20), 6)
    together = interval(values, np.repeat(np.arange(20), 6), seed=0)
    once = interval(values[::6], np.arange(20), seed=0)
    assert together == pytest.approx(once)
    apart = interval(values, np.arange(120), seed=0)
    assert apart[1] - apart[0] < 0.6 * (together[1] - together[0])


@repeatable
@given(st.integers(0, 1000))
def test_order_of_clips_changes_nothing(seed: int) -> None:
    values, groups = clips(seed)
    order = np.random.default_rng(seed).permutation(len(values))
    found = interval(values, groups, seed=1, n_resamples=50)
    assert found == pytest.approx(interval(values[order], groups[order], seed=1, n_resamples=50))
    assert 0.0 <= found[0] <= found[1] <= 1.0


def test_columns_equal_one_at_a_time_and_missing_values_are_left_out() -> None:
    values, groups = clips()
    missing = values.copy()
    missing[::3] = np.nan
    low, high = statistics.bootstrap_intervals(np.stack([values, missing], axis=1), groups, seed=2, n_resamples=200)
    alone = interval(values, groups, seed=2, n_resamples=200)
    assert (low[0], high[0]) == pytest.approx(alone)
    names = sorted(set(groups))
    means = []
    for counts in statistics.resample_counts(len(names), seed=2, n_resamples=200):
        weight = np.array([counts[names.index(group)] for group in groups])
        kept = np.isfinite(missing)
        if weight[kept].sum():
            means.append((weight[kept] * missing[kept]).sum() / weight[kept].sum())
    np.testing.assert_allclose((low[1], high[1]), np.percentile(means, [2.5, 97.5]))


def test_level_widens_the_interval() -> None:
    values, groups = clips()
    narrow = interval(values, groups, seed=0, level=0.5)
    wide = interval(values, groups, seed=0, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("n_clips", [0, 1, 5])
def test_one_recording_has_no_interval(n_clips: int) -> None:
    low, high = interval(np.ones(n_clips), ["a"] * n_clips, seed=0)
    assert np.isnan(low)
    assert np.isnan(high)


def test_std_over_seeds() -> None:
    assert statistics.std_over_seeds([0.5]) is None
    assert statistics.std_over_seeds([]) is None
    assert statistics.std_over_seeds([1.0, 2.0, 4.0]) == pytest.approx((7 / 3) ** 0.5)
