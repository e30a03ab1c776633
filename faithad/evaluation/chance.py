"""Whether the highest scores of an audit could be those of normal clips: their number and their strength in one test.

The tail of the scores of n normal clips is modelled by one number: above the (k + 1)-th highest of them, the excess of
a score is taken as exponentially distributed, with the mean excess of the k highest as its scale; k is a tenth of n, 5
to 50. With t = (k + 1) / (n + 1), a clip of excess e has the p-value t exp(-e / scale). The clips of an audit that
exceed the same score are judged by twice the smaller one of two p-values:

    all     Fisher's method restricted to them, the truncated product of p-values (Zaykin et al. 2002, Genetic
            Epidemiology 22, 170-185): W = -sum ln p grows with their number and with their strength. Fisher's method
            over all clips would mostly weigh how well the middle of the scores fits.
    one     that of the strongest clip, times the number of clips (Bonferroni), as the sum over many weak ones dilutes
            a single strong one. So far out the exponential tail would be too light for errors: of these, the excess of
            the logarithm is taken, whose exponential tail is Pareto's of the error.

Both know that start and scale were estimated from few clips. Under normal sound the number of clips above the start is
beta-binomial, and the ratio of their mean excess to the scale has the F distribution with 2 K and 2 k degrees of
freedom (Rényi 1953: the spacings of exponential order statistics are independent); of one clip, P(excess > e) =
(1 + e / (k scale))^-k. Clips are taken as independent. Where the tail is much heavier than exponential (log-normal with
a deviation of 0.8 and more, Pareto) and the normal clips are a dozen, the level of 1 % is up to 4 %.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from faithad.evaluation.arrays import Reals
from faithad.model.alarm import Tail

# Above this p-value, the scores of an audit are called no more than chance can bring.
LEVEL = 0.01
_FEWEST_ABOVE, _MOST_ABOVE, _SHARE_ABOVE = 5, 50, 0.1


def fit_tail(scores: Reals, *, are_errors: bool, lowest: float | None = None) -> Tail | None:
    """The tail of the scores (n,) of normal clips, or of those from `lowest` on; None where they are fewer than 7 or
    the highest are all alike.
    """
    n_above = min(max(_FEWEST_ABOVE, math.ceil(_SHARE_ABOVE * len(scores))), _MOST_ABOVE)
    if lowest is not None:
        n_above = min(n_above, int((scores > lowest).sum()))
    if not 1 <= n_above <= len(scores) - 2:
        return None
    highest = np.sort(scores)[-n_above - 1 :]
    scale = float((highest[1:] - highest[0]).mean())
    if scale == 0:
        return None
    log_scale = float(np.log(highest[1:] / highest[0]).mean()) if are_errors and highest[0] > 0 else None
    return Tail(float(highest[0]), scale, n_above, log_scale)


def chance(scores: ArrayLike, tail: Tail, n_validation: int) -> float:
    """The probability that normal clips give scores (m,) that are as many and as strong, see above.

    Args:
        scores: of the audited clips; those that are not finite are left out.
        tail: of the scores of the normal clips.
        n_validation: n, how many these were.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = values[np.isfinite(values)]
    above = values[values > tail.start]
    if not len(above):
        return 1.0
    k, n, m = tail.n_above, n_validation, len(values)
    excess, strongest = (above - tail.start) / tail.scale, float(above.max())
    furthest = excess.max() if tail.log_scale is None else math.log(strongest / tail.start) / tail.log_scale
    of_one = m * (k + 1) / (n + 1) * float(1 + furthest / k) ** -k
    return min(1.0, 2 * min(of_one, _of_all(excess, k, n, m)))


def _of_all(excess: Reals, k: int, n: int, m: int) -> float:
    """P(W is as large) of m normal clips, from the excesses of those above the start, in units of the scale."""
    from scipy import stats  # takes a second to import

    each = -math.log((k + 1) / (n + 1))
    w = excess.sum() + len(excess) * each
    numbers = np.arange(1, m + 1)
    # The mean excess that this many clips need for W; below 0, their number is enough.
    reached = stats.f.sf(np.maximum(w / numbers - each, 0.0), 2 * numbers, 2 * k)
    return float((stats.betabinom.pmf(numbers, m, k + 1, n - k) * reached).sum())
