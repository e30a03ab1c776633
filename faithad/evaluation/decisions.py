"""Does A differ from B? Paired differences in, and out comes yes, no or undecided, at error rates that are known.

Clips of one recording share its machine, its noise and its fault, so the unit of chance is the recording. The mean
difference gets a jackknife standard error over recordings (CR3, MacKinnon and White 1985; Cameron and Miller 2015), and
three two-sided tests must all reject a mean of 0: Student's t, the bootstrap-t (Efron and Tibshirani 1993, section
12.5) and studentised sign flips of whole recordings (Canay, Romano and Shaikh 2017). Each is adjusted for the methods
of one question by Holm (1979).

Why 0.01, and why three tests: with differences whose distribution has a long tail to one side, t and Holm at 0.05 find
something where nothing is in 8 to 15 of 100 studies; the three together at 0.01 in 1 to 4 (simulated with 20 to 80
recordings and six methods; `tests/benchmarks/decisions.py` repeats it). Percentile and BCa intervals are too narrow
with few recordings, and are not used.

Shape letters: N clips, M methods, G recordings, S seeds, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faithad.evaluation.arrays import Bools, Integers, Reals
from faithad.vocabulary import count

# The largest adjusted p of a decision, and the fewest recordings and seeds that can give one.
ALPHA = 0.01
RECORDINGS_NEEDED = 20
SEEDS_NEEDED = 3

# Numbers that one part of the resamples may hold: 8 MB.
_AT_ONCE = 1_000_000
# A standard error below this share of the largest difference is rounding noise.
_ROUNDING = 1e-12
# A studentised mean that no sample with spread reaches: the interval is open at that end.
_NO_SPREAD = 1e6
# What `_test` returns of each method.
_TESTED = ("se", "ci_low", "ci_high", "p_t", "p_boot", "p_flip", "smallest_effect")


@dataclass(frozen=True)
class Comparison:
    """What one method's differences say. Numbers are None where too few recordings leave them undefined.

    Attributes:
        estimate: m, the mean over clips of the difference A - B.
        ci_low: lower end of the 95 % interval by bootstrap-t; None also where it is open.
        ci_high: its upper end.
        se: standard error of m, over recordings and, with three seeds or more, over seeds.
        p_t: of Student's t, not adjusted.
        p_boot: of the bootstrap-t, not adjusted.
        p_flip: of the sign flips, not adjusted.
        p_holm: the largest of the three after Holm's adjustment.
        n_clips: clips whose difference is defined.
        n_recordings: G, the recordings that they come from.
        n_seeds: S, of each model; None where the seeds were not given.
        n_left_out: clips whose difference is not defined.
        smallest_effect: what this comparison alone would find with a power of 80 %.
        verdict: `yes` (A is larger), `no` (B is larger), `no (equivalent)`, or `undecided`, with its reason where
            there are too few recordings.
    """

    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    se: float | None
    p_t: float | None
    p_boot: float | None
    p_flip: float | None
    p_holm: float | None
    n_clips: int
    n_recordings: int
    n_seeds: int | None
    n_left_out: int
    smallest_effect: float | None
    verdict: str


def compare(
    differences: npt.ArrayLike,
    recordings: npt.ArrayLike,
    seed_means: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    *,
    resamples: int = 9_999,
    equivalence: float = 0.02,
    seed: int = 0,
) -> list[Comparison]:
    """Decide for each method whether the mean of its paired differences A - B is above 0.

    The verdict follows from p_holm <= 0.01, the sign of the mean, and at least 20 recordings. It is `no (equivalent)`
    where the interval, which is not adjusted, lies within ± `equivalence`.

    With three seeds or more of each model, the standard error includes the spread over seeds, t has Satterthwaite's
    degrees of freedom, and the verdict speaks of two ways of training. Otherwise it speaks of these networks only.

    Args:
        differences: (N, M), A - B of each clip and method, seeds averaged; NaN where a clip has none.
        recordings: (N,), the recording of each clip, as numbers or names.
        seed_means: the mean value of A for each seed, (S, M), and that of B.
        resamples: R, of the bootstrap and of the sign flips. With 2^G <= R, all sign flips are taken.
        equivalence: the largest difference that does not matter, in the unit of the differences.
        seed: of the resampling. A method's numbers do not depend on the other methods, but for p_holm.

    Returns:
        M comparisons.

    Raises:
        ValueError: shapes do not fit together, or a difference is infinite.
    """
    values, of_clip = np.asarray(differences, dtype=np.float64), np.asarray(recordings)
    if values.ndim != 2 or of_clip.shape != values.shape[:1] or np.isinf(values).any():
        raise ValueError(
            f"differences must be (clips, methods), finite or NaN, with one recording for each clip; got "
            f"{values.shape} and {of_clip.shape}, {np.isinf(values).sum()} of them infinite"
        )
    over_seeds, n_seeds = _spread_over_seeds(seed_means, values.shape[1])
    sums, sizes = _by_recording(values, of_clip)
    n_recordings = (sizes > 0).sum(axis=1)
    n_clips = sizes.sum(axis=1).astype(np.int64)
    tests = np.full((len(_TESTED), values.shape[1]), np.nan)
    for n_groups in np.unique(n_recordings[n_recordings >= 2]):
        same = np.flatnonzero(n_recordings == n_groups)
        present = sizes[same] > 0
        of_present, n_of_present = (part[same][present].reshape(len(same), n_groups) for part in (sums, sizes))
        floor = np.maximum(_ROUNDING * np.nanmax(np.abs(values[:, same]), axis=0), np.finfo(np.float64).tiny)
        spread = None if over_seeds is None else over_seeds[same]
        tests[:, same] = _test(of_present, n_of_present, floor, spread, n_seeds, resamples, seed)
    # A method without a p still counts as one of the methods of the question.
    p_values = tests[_TESTED.index("p_t") : _TESTED.index("p_flip") + 1]
    p_holm = np.where(np.isnan(p_values[0]), np.nan, holm(np.nan_to_num(p_values, nan=1.0)).max(axis=0))
    with np.errstate(invalid="ignore"):
        estimates = sums.sum(axis=1) / n_clips
    comparisons = []
    for method, estimate in enumerate(estimates):
        numbers = dict(zip(_TESTED, tests[:, method], strict=True)) | {"p_holm": p_holm[method], "estimate": estimate}
        comparisons.append(
            Comparison(
                **{name: float(number) if math.isfinite(number) else None for name, number in numbers.items()},
                n_clips=int(n_clips[method]),
                n_recordings=int(n_recordings[method]),
                n_seeds=n_seeds,
                n_left_out=len(values) - int(n_clips[method]),
                verdict=_verdict(estimate, p_holm[method], numbers, int(n_recordings[method]), equivalence),
            )
        )
    return comparisons


def standard_error(values: Reals, recordings: npt.ArrayLike) -> float | None:
    """The jackknife standard error (CR3) over recordings of the mean of clips' values (N,); None for one recording."""
    sums, sizes = _by_recording(values[:, None], np.asarray(recordings))
    return float(_studentised(sums[0], sizes[0])[1]) if sums.shape[1] > 1 else None


def placements(scores: Reals, labels: Reals) -> Reals:
    """One value for each clip whose mean is the AUC, and whose spread over clips is that of the AUC (DeLong et al.
    1988): how much of the other class the clip is ranked on the right side of, weighted by the size of its class.

    Args:
        scores: (N,), NaN where a clip has none.
        labels: 0 or 1, (N,).

    Returns:
        (N,), NaN where a clip has no score, and everywhere if a class has none.
    """
    values = np.full(len(scores), np.nan)
    known = np.isfinite(scores)
    normal, anomalous = (known & (labels == label) for label in (0, 1))
    if not normal.any() or not anomalous.any():
        return values
    above = scores[anomalous][:, None] - scores[normal][None, :]
    wins = (above > 0) + 0.5 * (above == 0)
    auc, n = wins.mean(), known.sum()
    values[anomalous] = auc + n / anomalous.sum() * (wins.mean(axis=1) - auc)
    values[normal] = auc + n / normal.sum() * (wins.mean(axis=0) - auc)
    return values


def holm(p: npt.ArrayLike) -> Reals:
    """Adjust p values (..., M) for M tests (Holm 1979): the k-th smallest times M + 1 - k, never falling, at most 1."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, axis=-1, kind="stable")
    factors = np.arange(values.shape[-1], 0, -1)
    adjusted = np.maximum.accumulate(np.take_along_axis(values, order, axis=-1) * factors, axis=-1)
    back: Reals = np.minimum(1.0, np.take_along_axis(adjusted, np.argsort(order, axis=-1, kind="stable"), axis=-1))
    return back


def _test(
    sums: Reals,
    sizes: Reals,
    floor: Reals,
    over_seeds: Reals | None,
    n_seeds: int | None,
    resamples: int,
    seed: int,
) -> Reals:
    """`_TESTED` of M methods that have equally many recordings.

    Args:
        sums: of the differences of each recording, (M, G), G at least 2.
        sizes: clips of each recording, (M, G).
        floor: of a standard error, (M,).
        over_seeds: the squared standard error over seeds, (M,); None where there are too few seeds.
        n_seeds: S.
        resamples: R.
        seed: of the resampling.
    """
    from scipy import stats  # takes a second to import

    n_groups = sums.shape[-1]
    if (sizes == sizes[0]).all():
        sizes = sizes[:1]  # the usual case, and fewer numbers
    mean, error = _studentised(sums, sizes)
    error = np.where(error < floor, 0.0, error)
    error_of_t, df = error, np.full(len(mean), n_groups - 1.0)
    if over_seeds is not None and n_seeds is not None:
        error_of_t = np.sqrt(error**2 + over_seeds)
        satterthwaite = error**4 / (n_groups - 1) + over_seeds**2 / (2 * (n_seeds - 1))
        df = np.divide(error_of_t**4, satterthwaite, out=df, where=satterthwaite > 0)
    p_t = 2 * stats.t.sf(np.abs(mean) / np.maximum(error_of_t, floor), df)

    generator = np.random.default_rng(seed)
    # Resamples of equal values tie with the sample; rounding must not decide which of the two is larger.
    observed = np.abs(mean) / np.maximum(error, floor) * (1 - 1e-9)
    t_star = np.concatenate(
        [
            (resampled - mean[:, None]) / np.maximum(its_error, floor[:, None])
            for drawn in _draws(generator, n_groups, resamples)
            for resampled, its_error in [_studentised(sums[:, drawn], sizes[:, drawn])]
        ],
        axis=1,
    )
    p_boot = (1 + (np.abs(t_star) >= observed[:, None]).sum(axis=1)) / (resamples + 1)
    n_flips, n_extreme = 0, np.zeros(len(mean))
    for signs in _sign_flips(generator, n_groups, resamples):
        flipped, its_error = _studentised(signs * sums[:, None], sizes[:, None])
        n_extreme += (np.abs(flipped) / np.maximum(its_error, floor[:, None]) >= observed[:, None]).sum(axis=1)
        n_flips += len(signs)
    p_flip = (1 + n_extreme) / (n_flips + 1)

    upper, lower = np.quantile(t_star, [0.975, 0.025], axis=1)
    low = np.where(np.abs(upper) < _NO_SPREAD, mean - upper * error, -np.inf)
    high = np.where(np.abs(lower) < _NO_SPREAD, mean - lower * error, np.inf)
    if over_seeds is not None:
        half = stats.t.ppf(0.975, df) * error_of_t
        low, high = np.minimum(low, mean - half), np.maximum(high, mean + half)
    smallest_effect = (stats.t.ppf(0.995, df) + stats.t.ppf(0.8, df)) * error_of_t
    return np.stack([error_of_t, low, high, p_t, p_boot, p_flip, smallest_effect])


def _studentised(sums: Reals, sizes: Reals) -> tuple[Reals, Reals]:
    """Mean over clips and its jackknife error over recordings, of sums and sizes (..., G): each (...)."""
    n_groups = sums.shape[-1]
    total, n = sums.sum(axis=-1, keepdims=True), sizes.sum(axis=-1, keepdims=True)
    mean = total / n
    without = (total - sums) / (n - sizes)
    without -= mean
    squares = np.einsum("...g,...g->...", without, without)
    return mean[..., 0], np.sqrt((n_groups - 1) / n_groups * squares)


def _draws(generator: np.random.Generator, n_groups: int, resamples: int) -> Iterator[Integers]:
    """Recordings with replacement: positions (part of R, G)."""
    for size in _parts(resamples, n_groups):
        yield generator.integers(0, n_groups, (size, n_groups))


def _sign_flips(generator: np.random.Generator, n_groups: int, resamples: int) -> Iterator[Integers]:
    """-1 or 1 for each recording, (part of R, G); all combinations where they are no more than R."""
    if n_groups < 63 and 2**n_groups <= resamples:
        bits = np.arange(2**n_groups)[:, None] >> np.arange(n_groups)
        yield 2 * (bits & 1) - 1
        return
    for size in _parts(resamples, n_groups):
        yield 2 * generator.integers(0, 2, (size, n_groups)) - 1


def _parts(resamples: int, n_groups: int) -> Iterator[int]:
    largest = max(1, _AT_ONCE // n_groups)
    for start in range(0, resamples, largest):
        yield min(largest, resamples - start)


def _by_recording(values: Reals, recordings: npt.NDArray[np.generic]) -> tuple[Reals, Reals]:
    """Sums of the known values of each method and recording, and how many they are: both (M, recordings)."""
    names, group = np.unique(recordings, return_inverse=True)
    known: Bools = np.isfinite(values)
    sums, sizes = np.zeros((2, len(names), values.shape[1]))
    np.add.at(sums, group, np.where(known, values, 0.0))
    np.add.at(sizes, group, known)
    return np.ascontiguousarray(sums.T), np.ascontiguousarray(sizes.T)


def _spread_over_seeds(
    seed_means: tuple[npt.ArrayLike, npt.ArrayLike] | None, n_methods: int
) -> tuple[Reals | None, int | None]:
    """(s_A^2 + s_B^2) / S of each method, None with fewer than three seeds, which say too little; and S."""
    if seed_means is None:
        return None, None
    a, b = (np.asarray(means, dtype=np.float64) for means in seed_means)
    if a.shape != b.shape or a.shape[1:] != (n_methods,):
        raise ValueError(f"seed_means must be two arrays (seeds, {n_methods}) of equal shape, got {a.shape}, {b.shape}")
    if len(a) < SEEDS_NEEDED:
        return None, len(a)
    return (a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / len(a), len(a)


def _verdict(estimate: float, p_holm: float, numbers: dict[str, float], n_recordings: int, equivalence: float) -> str:
    if n_recordings < RECORDINGS_NEEDED:
        return f"undecided: {count(n_recordings, 'recording')}, {RECORDINGS_NEEDED} are needed"
    if p_holm <= ALPHA and estimate != 0:
        return "yes" if estimate > 0 else "no"
    if -equivalence < numbers["ci_low"] and numbers["ci_high"] < equivalence:
        return "no (equivalent)"
    return "undecided"
