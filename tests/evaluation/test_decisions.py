"""The decision rule, against a slow implementation that copies and removes clips one by one, and its error rates."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from faithad.evaluation.arrays import Integers, Reals
from faithad.evaluation.decisions import Comparison, compare, holm
from tests.simulated_differences import SHAPES, null_differences

REFERENCE = Path(__file__).parents[3] / "shared/reference/decision_reference.py"
NUMBERS = ("estimate", "ci_low", "ci_high", "se", "p_t", "p_boot", "p_flip", "p_holm", "smallest_effect")

Seeds = tuple[Reals, Reals] | None


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    if not REFERENCE.exists():
        pytest.skip(f"the reference implementation is not at {REFERENCE}")
    spec = importlib.util.spec_from_file_location("decision_reference", REFERENCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seed_means(n_seeds: int, n_methods: int, seed: int = 8) -> tuple[Reals, Reals]:
    generator = np.random.default_rng(seed)
    return generator.normal(scale=0.2, size=(n_seeds, n_methods)), generator.normal(
        scale=0.1, size=(n_seeds, n_methods)
    )


def numbers(comparison: Comparison) -> list[float]:
    """Its numbers in the order of `NUMBERS`, NaN where one is undefined."""
    values = dataclasses.asdict(comparison)
    return [math.nan if values[name] is None else values[name] for name in NUMBERS]


@pytest.mark.parametrize("with_seeds", [False, True])
@pytest.mark.parametrize(
    ("n_recordings", "shape", "effect"),
    [
        (8, "gaussian", 0.1),
        (12, "lognormal", 0.5),
        (20, "gaussian", -1.0),
        (40, "lognormal", 0.3),
        (130, "gaussian", 0),
    ],
)
def test_numbers_are_those_of_the_reference(
    reference: ModuleType, n_recordings: int, shape: str, effect: float, with_seeds: bool
) -> None:
    """With 130 recordings the resamples are drawn in two parts."""
    values, recordings = null_differences(np.random.default_rng(n_recordings), n_recordings, shape)
    seeds = seed_means(4, values.shape[1]) if with_seeds else None
    expected = reference.decide(values + effect, recordings, seeds, rng=np.random.default_rng(3))
    found = compare(values + effect, recordings, seeds, seed=3)
    for method, comparison in enumerate(found):
        of_method = [expected[name][method] for name in NUMBERS]
        np.testing.assert_allclose(numbers(comparison), of_method, rtol=1e-9, atol=1e-9)
        assert comparison.verdict.split()[0].rstrip(":") == expected["verdict"][method]
        assert comparison.n_recordings == expected["n_recordings"]


def mean_and_error(clips: list[tuple[int, float]]) -> tuple[float, float]:
    """Of clips (recording, value): the mean, and its error from leaving out one recording after another."""
    names = sorted({name for name, _ in clips})
    mean = sum(value for _, value in clips) / len(clips)
    squares = 0.0
    for left_out in names:
        rest = [value for name, value in clips if name != left_out]
        squares += (sum(rest) / len(rest) - mean) ** 2
    return mean, math.sqrt((len(names) - 1) / len(names) * squares)


def slowly(values: list[float], recordings: list[int], seeds: Seeds, method: int, resamples: int, seed: int) -> Any:
    """The numbers of one method, but for p_holm: every resample as a list of clips."""
    clips = [(name, value) for name, value in zip(recordings, values, strict=True) if not math.isnan(value)]
    names = sorted({name for name, _ in clips})
    of_recording = [[value for other, value in clips if other == name] for name in names]
    mean, error = mean_and_error(clips)
    generator = np.random.default_rng(seed)
    t_star = []
    for drawn in generator.integers(0, len(names), (resamples, len(names))):
        # Each copy of a recording is a recording of its own.
        resampled = [(copy, value) for copy, name in enumerate(drawn) for value in of_recording[name]]
        its_mean, its_error = mean_and_error(resampled)
        t_star.append((its_mean - mean) / its_error)
    flips: Any = itertools.product((-1, 1), repeat=len(names))
    if 2 ** len(names) > resamples:
        flips = generator.choice((-1, 1), (resamples, len(names)))
    t_flip = []
    for signs in flips:
        flipped = [(name, sign * value) for name, sign in enumerate(signs) for value in of_recording[name]]
        its_mean, its_error = mean_and_error(flipped)
        t_flip.append(its_mean / its_error)
    t, total, df = mean / error, error, len(names) - 1.0
    low, high = mean - np.quantile(t_star, 0.975) * error, mean - np.quantile(t_star, 0.025) * error
    if seeds is not None and len(seeds[0]) >= 3:
        n_seeds = len(seeds[0])
        of_seeds = sum(float(np.var(means[:, method], ddof=1)) for means in seeds) / n_seeds
        total = math.hypot(error, math.sqrt(of_seeds))
        df = total**4 / (error**4 / (len(names) - 1) + of_seeds**2 / (2 * (n_seeds - 1)))
        half = stats.t.ppf(0.975, df) * total
        low, high = min(low, mean - half), max(high, mean + half)
    return {
        "estimate": mean,
        "ci_low": low,
        "ci_high": high,
        "se": total,
        "p_t": 2 * stats.t.sf(abs(mean / total), df),
        "p_boot": (1 + sum(abs(other) >= abs(t) for other in t_star)) / (resamples + 1),
        "p_flip": (1 + sum(abs(other) >= abs(t) - 1e-9 for other in t_flip)) / (len(t_flip) + 1),
        "smallest_effect": (stats.t.ppf(0.995, df) + stats.t.ppf(0.8, df)) * total,
    }


@pytest.mark.parametrize("n_seeds", [None, 2, 3])
@pytest.mark.parametrize("n_recordings", [7, 12])
def test_numbers_are_those_of_resampling_clip_by_clip(n_recordings: int, n_seeds: int | None) -> None:
    """Some differences are not defined, and one method lacks a whole recording. 2^7 sign flips are all taken."""
    values, recordings = null_differences(np.random.default_rng(4), n_recordings, "lognormal", n_methods=3)
    values[::5, 1] = np.nan
    values[recordings == 2, 2] = np.nan
    seeds = None if n_seeds is None else seed_means(n_seeds, 3)
    found = compare(values, recordings, seeds, resamples=199, seed=5)
    for method, comparison in enumerate(found):
        expected = slowly(values[:, method].tolist(), recordings.tolist(), seeds, method, 199, seed=5)
        for name, value in expected.items():
            assert getattr(comparison, name) == pytest.approx(value, rel=1e-9), name
        assert comparison.n_left_out == np.isnan(values[:, method]).sum()
        assert comparison.n_clips + comparison.n_left_out == len(values)
        assert comparison.n_recordings == n_recordings - (method == 2)
        assert comparison.n_seeds == n_seeds
    adjusted = [holm([getattr(comparison, name) for comparison in found]) for name in ("p_t", "p_boot", "p_flip")]
    assert [comparison.p_holm for comparison in found] == pytest.approx(np.max(adjusted, axis=0).tolist())


def test_holm_by_hand() -> None:
    """The smallest of four p counts four times, the next three times, and none is below one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.012, 0.9]).tolist() == pytest.approx([0.04, 0.036, 0.9])
    assert holm([[0.6, 0.7], [0.001, 0.5]]).ravel().tolist() == pytest.approx([1.0, 1.0, 0.002, 0.5])


@pytest.mark.parametrize("n_seeds", [None, 3])
def test_an_effect_of_two_deviations_is_found_and_its_mirror_image_is_not_an_improvement(n_seeds: int | None) -> None:
    values, recordings = null_differences(np.random.default_rng(1), 40, "gaussian")
    seeds = None if n_seeds is None else seed_means(n_seeds, values.shape[1])
    assert {found.verdict for found in compare(values + 2, recordings, seeds)} == {"yes"}
    assert {found.verdict for found in compare(-values - 2, recordings, seeds)} == {"no"}
    fewer = recordings < 19
    few = {found.verdict for found in compare(values[fewer] + 2, recordings[fewer], seeds)}
    assert few == {"undecided: 19 recordings, 20 are needed"}


def test_seeds_that_differ_more_than_the_models_leave_the_question_open() -> None:
    values, recordings = null_differences(np.random.default_rng(1), 40, "gaussian", n_methods=1)
    seeds = np.array([[2.0], [-2.0], [3.0]]), np.array([[0.0], [1.0], [-1.0]])
    (with_seeds,) = compare(values + 2, recordings, seeds)
    (without,) = compare(values + 2, recordings)
    assert (without.verdict, with_seeds.verdict) == ("yes", "undecided")
    assert with_seeds.ci_low < 0 < without.ci_low  # type: ignore[operator]


def test_models_are_equivalent_where_the_interval_lies_within_the_limit() -> None:
    values, recordings = null_differences(np.random.default_rng(1), 40, "gaussian", n_methods=1)
    values = 0.01 * (values - values.mean())
    assert compare(values, recordings)[0].verdict == "no (equivalent)"
    assert compare(values, recordings, equivalence=0.001)[0].verdict == "undecided"
    few = recordings < 19
    assert compare(values[few], recordings[few])[0].verdict == "undecided: 19 recordings, 20 are needed"


def test_equal_differences_have_no_error() -> None:
    recordings = np.repeat(np.arange(20), 2)
    same, nothing = compare(np.tile([0.03, 0.0], (40, 1)), recordings, resamples=99)
    assert (same.estimate, same.se) == (pytest.approx(0.03), 0.0)
    assert (same.ci_low, same.ci_high, same.verdict) == (pytest.approx(0.03), pytest.approx(0.03), "undecided")
    # Fewer than 99 resamples cannot give an adjusted p of 0.01; all of these are as small as they can be.
    assert (same.p_t, same.p_boot, same.p_flip) == (pytest.approx(0, abs=1e-9), 0.01, 0.01)
    assert compare(np.full((40, 1), 0.03), recordings)[0].verdict == "yes"
    assert compare(np.full((40, 1), -0.03), recordings)[0].verdict == "no"
    assert (nothing.estimate, nothing.ci_low, nothing.ci_high) == (0.0, 0.0, 0.0)
    assert (nothing.p_t, nothing.p_boot, nothing.p_flip, nothing.p_holm) == (1.0, 1.0, 1.0, 1.0)
    assert nothing.verdict == "no (equivalent)"


def test_two_recordings_give_numbers_and_an_open_interval() -> None:
    """Half of the resamples are one recording twice, which has no spread."""
    (found,) = compare([[0.1], [0.2], [0.4]], ["a", "b", "b"])
    assert found.p_flip == pytest.approx(3 / 5)  # of four flips, two are as extreme
    assert 0 < found.p_t < 1
    assert 0 < found.p_boot < 1
    assert found.ci_low is found.ci_high is None
    assert found.verdict == "undecided: 2 recordings, 20 are needed"


@pytest.mark.parametrize(
    ("differences", "recordings", "estimate"),
    [([[0.1], [0.3]], ["a", "a"], 0.2), ([[math.nan], [0.3]], ["a", "b"], 0.3), ([[math.nan]], ["a"], None)],
)
def test_one_recording_gives_an_estimate_alone(differences: Any, recordings: list[str], estimate: float | None) -> None:
    (found,) = compare(differences, recordings)
    assert found.estimate == (None if estimate is None else pytest.approx(estimate))
    assert {getattr(found, name) for name in NUMBERS[1:]} == {None}
    n = 0 if estimate is None else 1
    assert found.verdict == f"undecided: {n} recording{'s' * (not n)}, 20 are needed"


def test_a_method_without_a_p_counts_among_the_methods_of_its_question() -> None:
    values, recordings = null_differences(np.random.default_rng(3), 20, "gaussian", n_methods=2)
    values[:, 1] = np.nan
    first, second = compare(values + 0.4, recordings)
    assert first.p_holm == pytest.approx(2 * max(first.p_t, first.p_boot, first.p_flip))  # type: ignore[type-var]
    assert second.p_holm is None
    assert second.n_left_out == len(values)


def test_other_methods_and_the_order_of_clips_change_no_number_but_the_adjusted_p() -> None:
    values, recordings = null_differences(np.random.default_rng(3), 25, "lognormal")
    values[::7, :2] = np.nan
    order = np.random.default_rng(0).permutation(len(values))
    for method, together in enumerate(compare(values[order], recordings[order])):
        (alone,) = compare(values[:, [method]], recordings)
        np.testing.assert_allclose(np.delete(numbers(alone), 7), np.delete(numbers(together), 7), rtol=1e-9)


@pytest.mark.parametrize(
    ("differences", "recordings", "seeds"),
    [
        (np.zeros(3), np.zeros(3), None),
        (np.zeros((3, 1)), np.zeros(2), None),
        (np.full((3, 1), np.inf), np.zeros(3), None),
        (np.zeros((3, 1)), np.zeros(3), (np.zeros((3, 1)), np.zeros((4, 1)))),
        (np.zeros((3, 1)), np.zeros(3), (np.zeros((3, 2)), np.zeros((3, 2)))),
    ],
)
def test_arrays_that_do_not_fit_are_refused(differences: Reals, recordings: Integers, seeds: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        compare(differences, recordings, seeds)


@pytest.mark.long
@pytest.mark.parametrize("n_recordings", [20, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_cover_and_where_nothing_is_little_is_found(shape: str, n_recordings: int) -> None:
    """Six correlated methods without any difference, 400 studies: `make bench` has the full table."""
    generator = np.random.default_rng(0)
    covered, any_yes = [], 0
    for draw in range(400):
        found = compare(*null_differences(generator, n_recordings, shape), resamples=999, seed=draw)
        covered += [comparison.ci_low <= 0 <= comparison.ci_high for comparison in found]  # type: ignore[operator]
        any_yes += any(comparison.verdict == "yes" for comparison in found)
    assert 0.88 <= np.mean(covered) <= 0.97
    assert any_yes <= 0.05 * 400
