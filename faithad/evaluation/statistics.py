"""Uncertainty: the spread over seeds, and a bootstrap over recordings.

Clips of one recording share its boards, its noise and its fault, so they are not independent: whole recordings are
drawn with replacement (a cluster bootstrap, Davison and Hinkley 1997, section 3.8), and the interval is read off the
percentiles of the resampled statistic.

Shape letters: N clips, G recordings, R resamples, C columns (one statistic each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from faithad.errors import StudyError
from faithad.evaluation.arrays import Integers, Reals


def std_over_seeds(values: Sequence[float] | Reals) -> float | None:
    """Sample standard deviation (n - 1 in the denominator) over seeds; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def resample_counts(n_groups: int, *, seed: int, n_resamples: int = 2000) -> Integers:
    """How often each group is drawn in each resample, (R, G); every row sums to G."""
    if n_groups == 0:
        return np.zeros((n_resamples, 0), dtype=np.int64)
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_groups, np.full(n_groups, 1.0 / n_groups), size=n_resamples)


def percentile_interval(resampled: Reals, *, level: float = 0.95) -> tuple[Reals, Reals]:
    """The central interval of each column of (R, C) that holds the share `level` of its finite values.

    Returns:
        (low, high), each (C,); NaN for a column without finite values.
    """
    low, high = np.full((2, resampled.shape[1]), np.nan)
    known = np.isfinite(resampled).any(axis=0)
    if known.any():
        tail = (1.0 - level) / 2.0
        low[known], high[known] = np.nanquantile(resampled[:, known], [tail, 1.0 - tail], axis=0)
    return low, high


def bootstrap_intervals(
    values: Reals, groups: npt.ArrayLike, *, seed: int, n_resamples: int = 2000, level: float = 0.95
) -> tuple[Reals, Reals]:
    """Intervals for the column means of values (N, C), all columns over the same resamples.

    Args:
        values: (N, C), one row per clip; NaN where a clip has no value in that column.
        groups: the recording of each clip, (N,).
        seed: of the resampling.
        n_resamples: R.
        level: coverage.

    Returns:
        (low, high), each (C,). NaN where fewer than two recordings are known: one recording says nothing about how
        recordings differ.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    known = np.isfinite(values)
    totals, counts = np.zeros((2, len(names), values.shape[1]))
    np.add.at(totals, group, np.where(known, values, 0.0))
    np.add.at(counts, group, known)
    drawn = resample_counts(len(names), seed=seed, n_resamples=n_resamples)
    weight = drawn @ counts
    means = np.divide(drawn @ totals, weight, out=np.full_like(weight, np.nan), where=weight > 0)
    means[:, (counts > 0).sum(axis=0) < 2] = np.nan
    return percentile_interval(means, level=level)


def n_normal_needed(rate: float) -> int:
    """How many normal clips a rate of false alarms needs at least: 19 for 5 %, 99 for 1 %."""
    return math.ceil(round(1.0 / rate, 9)) - 1


def refuse_not_finite(values: Reals, what: str) -> None:
    """Raise `StudyError` where some values are NaN or infinite; `what` names them in the message."""
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise StudyError(
            f"{n_bad} of {values.size} {what} are NaN or infinite. The model that gave them has probably diverged: "
            "look at its validation loss."
        )
