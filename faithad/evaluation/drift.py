"""Did a quantity of recordings change: from one set to another, or at some moment of a series?

The unit is the recording, because its clips share a machine and a place. The medians of the recordings are compared, by
ranks, so that a few odd recordings decide nothing. A p says only that a change is no chance; whether it matters follows
from its size.

Shape letters: G recordings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from faithad.evaluation.arrays import Bools, Reals

# The largest p of a change, and the fewest recordings on each side of it.
ALPHA = 0.01
LEAST = 5
_PERMUTATIONS = 999
# A recording stands out beyond this many median absolute deviations from the others.
_FAR = 6.0


class MedianChange(NamedTuple):
    """A change of a quantity: its medians before and after, and how certain the change is.

    Attributes:
        before: median of the recordings before.
        after: median of those after.
        p: the p-value of no change.
        n_before: number of recordings before.
        n_after: number of recordings after.
    """

    before: float
    after: float
    p: float
    n_before: int
    n_after: int

    @property
    def is_real(self) -> bool:
        """Whether chance alone is unlikely to cause the change, and there are enough recordings."""
        return self.p <= ALPHA and min(self.n_before, self.n_after) >= LEAST


def change(before: npt.ArrayLike, after: npt.ArrayLike) -> MedianChange | None:
    """Whether recordings of two sets differ, by the test of Mann and Whitney (1947).

    Args:
        before: (G1,); NaN where it is not known.
        after: (G2,).

    Returns:
        The change; None where a set has no known value.
    """
    from scipy import stats  # takes a second to import

    first, second = (values[np.isfinite(values)] for values in (np.asarray(before, float), np.asarray(after, float)))
    if not len(first) or not len(second):
        return None
    p = float(stats.mannwhitneyu(first, second, method="asymptotic").pvalue)
    medians = float(np.median(first)), float(np.median(second))
    return MedianChange(*medians, 1.0 if np.isnan(p) else p, len(first), len(second))


def find_step(values: npt.ArrayLike, *, seed: int = 0) -> tuple[int, MedianChange] | None:
    """Where a series of recordings changed most, and how.

    A test by ranks decides whether it changed (Pettitt 1979, with a p from permutations). The least squares of the
    values, without their extreme 2 %, say where, because ranks draw the place towards the middle.

    Args:
        values: (G,), in the order of time; NaN where it is not known.
        seed: of the permutations.

    Returns:
        The position of the first recording after the change, and the change; None for fewer than 2 * LEAST values.
    """
    from scipy import stats

    given = np.asarray(values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(given))
    n = len(known)
    if n < 2 * LEAST:
        return None
    ranks = stats.rankdata(given[known])
    observed = _standardised(ranks[None])[0]
    clipped = np.clip(given[known], *np.quantile(given[known], [0.02, 0.98]))
    step = LEAST + int(np.argmax(_standardised(clipped[None])[0]))
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.broadcast_to(ranks, (_PERMUTATIONS, n)), axis=1)
    largest = _standardised(shuffled).max(axis=1)
    p = (1 + int((largest >= observed.max()).sum())) / (_PERMUTATIONS + 1)
    before, after = (float(np.median(given[part])) for part in (known[:step], known[step:]))
    return int(known[step]), MedianChange(before, after, p, step, n - step)


def _standardised(values: Reals) -> Reals:
    """How far the sum of the values before each possible step is from what it would be without a step, over the square
    root of its variance up to a factor that all steps share. The largest leaves the least squares around two means.

    Args:
        values: (R, G).

    Returns:
        (R, G - 2 * LEAST + 1), for steps that leave LEAST recordings on each side.
    """
    n = values.shape[1]
    sizes = np.arange(LEAST, n - LEAST + 1)
    sums = np.cumsum(values, axis=1)[:, LEAST - 1 : n - LEAST]
    far: Reals = np.abs(sums - sizes * values.mean(axis=1, keepdims=True)) / np.sqrt(sizes * (n - sizes))
    return far


def stands_out(values: npt.ArrayLike, *, least: float) -> Bools:
    """Which recordings are unlike the others: beyond 6 median absolute deviations, and by at least `least`.

    Args:
        values: (G,); NaN where it is not known, which does not stand out.
        least: the smallest difference that matters, in the unit of the values.

    Returns:
        (G,); all False with fewer than 2 * LEAST known values.
    """
    given = np.asarray(values, dtype=np.float64)
    known = np.isfinite(given)
    if known.sum() < 2 * LEAST:
        return np.zeros(given.shape, dtype=np.bool_)
    away = np.abs(given - np.median(given[known]))
    spread = 1.4826 * float(np.median(away[known]))
    far: Bools = known & (away > max(least, _FAR * spread))
    return far
