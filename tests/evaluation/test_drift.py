"""Changes of recordings: found where they are, and seldom where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from faithad.evaluation.drift import ALPHA, LEAST, change, find_step, stands_out


def test_a_step_is_found_where_it_is() -> None:
    generator = np.random.default_rng(0)
    for at in (8, 17, 32):
        values = generator.normal(-31, 0.7, 40)
        values[at:] += 6
        step, changed = find_step(values)
        assert step == at
        assert changed.is_real
        assert changed.after - changed.before == pytest.approx(6, abs=1)
        assert (changed.n_before, changed.n_after) == (step, 40 - step)


def test_values_that_are_not_known_are_passed_over() -> None:
    values = np.r_[np.full(8, 1.0), np.nan, np.nan, np.full(8, 2.0)] + np.linspace(0, 0.1, 18)
    step, changed = find_step(values)
    assert step == 10
    assert (changed.n_before, changed.n_after) == (8, 8)
    assert find_step(values[:11]) is None


def test_a_step_leaves_the_least_squares() -> None:
    """Against the definition: the squares around two means for each possible step, one by one."""
    values = np.random.default_rng(4).normal(size=23)
    clipped = np.clip(values, *np.quantile(values, [0.02, 0.98]))
    steps = range(LEAST, 23 - LEAST + 1)
    squares = [clipped[:at].var() * at + clipped[at:].var() * (23 - at) for at in steps]
    assert find_step(values)[0] == steps[int(np.argmin(squares))]


def test_chance_is_no_change() -> None:
    """At 0.01, of 300 series without a change about 3 are told; more than 9 in one of 1,000 cases."""
    generator = np.random.default_rng(1)
    found = [find_step(generator.standard_t(3, size=20)) for _ in range(300)]
    assert sum(changed.p <= ALPHA for _, changed in found) <= 9
    assert sum(change(*generator.gamma(1.0, size=(2, 15))).p <= ALPHA for _ in range(300)) <= 9


def test_few_recordings_are_no_change() -> None:
    assert change([1, 2, np.nan], [np.nan]) is None
    few = change(np.zeros(LEAST - 1) + np.arange(LEAST - 1) / 10, 9 + np.arange(40))
    assert few.p <= ALPHA
    assert not few.is_real
    assert change([3.0] * 8, [3.0] * 8).p == 1


def test_one_recording_stands_out() -> None:
    values = np.r_[np.random.default_rng(2).normal(-31, 0.7, 30), -19.0, np.nan]
    assert np.flatnonzero(stands_out(values, least=3.0)).tolist() == [30]
    assert not stands_out(values, least=13.0).any()
    assert not stands_out(values[-6:], least=3.0).any()  # too few to know what is usual
