from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from faithad.evaluation.chance import LEVEL, chance, fit_tail
from faithad.model.alarm import Tail


def p_of(normals: np.ndarray, audited: np.ndarray) -> float:
    tail = fit_tail(normals, are_errors=bool(normals.min() > 0))
    assert tail is not None
    return chance(audited, tail, len(normals))


def test_the_tail_from_the_definition() -> None:
    scores = np.array([3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 5.0])
    assert fit_tail(scores, are_errors=False) == Tail(2.0, (1 + 3 + 5 + 6 + 7) / 5, 5)
    of_errors = fit_tail(scores, are_errors=True)
    assert of_errors is not None
    assert of_errors.log_scale == pytest.approx(np.log(scores[scores > 2] / 2).mean())
    for n, n_above in [(60, 6), (300, 30), (2_000, 50)]:
        of_many = fit_tail(np.arange(1.0, n + 1), are_errors=False)
        assert of_many is not None
        assert (of_many.n_above, of_many.start) == (n_above, n - n_above)
    assert fit_tail(scores[:6], are_errors=True) is None
    assert fit_tail(np.ones(20), are_errors=True) is None


def test_the_probability_agrees_with_simulation() -> None:
    """Of the product of the p-values of the clips above the start, and of the strongest, with estimated tails."""
    rng = np.random.default_rng(0)
    n, m, k = 40, 25, 5
    normals = np.sort(rng.exponential(size=(200_000, n)), axis=1)
    start, scale = normals[:, -k - 1], (normals[:, -k:] - normals[:, -k - 1 :][:, :1]).mean(axis=1)
    excess = np.maximum(rng.exponential(size=(200_000, m)) - start[:, None], 0.0) / scale[:, None]
    each = -math.log((k + 1) / (n + 1))
    tail = Tail(4.0, 1.0, k)
    several = np.array([5.0, 6.0, 6.5, 4.0, 7.0, 5.5, 5.5, 6.0])
    products = excess.sum(axis=1) + each * (excess > 0).sum(axis=1)
    own = np.maximum(several - 4, 0).sum() + each * (several > 4).sum()
    audited = np.r_[np.full(m - len(several), 0.5), several]
    assert chance(audited, tail, n) == pytest.approx(2 * (products >= own).mean(), rel=0.1)
    strongest = np.r_[np.full(m - 1, 0.5), 16.0, np.nan]
    exact = 2 * (excess.max(axis=1) >= 12).mean()
    assert exact <= chance(strongest, tail, n) <= 1.2 * exact  # Bonferroni's bound
    assert chance(np.array([0.5, 4.0, np.nan]), tail, n) == 1.0


DRAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "lognormal": lambda rng, n: np.exp(0.3 * rng.normal(size=n)),
    "gamma": lambda rng, n: rng.gamma(4.0, size=n),
    "calibrated": lambda rng, n: rng.gumbel(size=n) + rng.gumbel(size=n) - 3.0,
    "heavy": lambda rng, n: np.exp(0.5 * rng.normal(size=n)),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("n", "m"), [(12, 52), (180, 360)])
def test_normal_sound_is_more_than_chance_at_most_as_often_as_said(name: str, n: int, m: int) -> None:
    """200 audits: at 1 %, seven would be 3 standard deviations above the two that are expected."""
    rng = np.random.default_rng(1)
    draw = DRAWS[name]
    assert sum(p_of(draw(rng, n), draw(rng, m)) <= LEVEL for _ in range(200)) <= 6


@pytest.mark.parametrize(("n", "m"), [(30, 52), (180, 360)])
def test_few_strong_events_are_not_chance(n: int, m: int) -> None:
    """Eight events at two to seven times the highest normal score, and a single one where normal clips are many."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        normals, audited = DRAWS["lognormal"](rng, n), DRAWS["lognormal"](rng, m)
        assert p_of(normals, np.r_[audited, normals.max() * np.linspace(2, 7, 8)]) <= LEVEL
        if n > 30:
            assert p_of(normals, np.r_[audited, normals.max() * 7]) <= LEVEL
