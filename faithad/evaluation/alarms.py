"""When a clip raises an alarm: thresholds fitted on the scores of validation normals, and on nothing else.

Three rules for a false-alarm rate a, the share of normal clips that may alarm:

    quantile    the smallest validation score that a share 1 - a of them does not exceed. A statement on those clips.
    gamma       the 1 - a quantile of a gamma distribution fitted by maximum likelihood, as the baseline systems of
                DCASE Task 2 do (Koizumi et al. 2020). It reaches beyond the highest score seen, as far as the fit can
                be trusted.
    conformal   split conformal prediction (Vovk et al. 2005): the ceil((n + 1)(1 - a))-th smallest of n scores. A new
                normal clip, exchangeable with these, exceeds it with a probability of at most a. Needs n >= 1/a - 1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from faithad.errors import ConfigError, StudyError
from faithad.evaluation.detection import refuse_not_finite
from faithad.model.alarm import AlarmThreshold

Values = npt.NDArray[np.float64]


def fit_alarm(
    scores: npt.ArrayLike, *, rule: str, pooling: str, false_alarm_rate: float, clip_s: float
) -> AlarmThreshold:
    """Fit a threshold on the scores (n,) of validation normals, which `pooling` names.

    Raises:
        StudyError: no scores, some that are not finite, or too few (or too equal) for the rule.
        ConfigError: an unknown rule, or a rate that is not between 0 and 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not 0.0 < false_alarm_rate < 1.0:
        raise ConfigError(f"alarm.false_alarm_rate is {false_alarm_rate}; it must be between 0 and 1, such as 0.05.")
    if not values.size:
        raise StudyError("No validation scores to fit an alarm threshold on. Is the validation split empty?")
    refuse_not_finite(values, "validation scores")
    fits = {"quantile": _quantile, "gamma": _gamma, "conformal": _conformal}
    if rule not in fits:
        raise ConfigError(f"alarm.rule is {rule!r}; it must be one of {', '.join(fits)}.")
    return AlarmThreshold(
        rule=rule,
        pooling=pooling,
        false_alarm_rate=false_alarm_rate,
        threshold=fits[rule](values, false_alarm_rate),
        false_alarms_per_hour=false_alarm_rate * 3600.0 / clip_s,
        n_validation=values.size,
    )


def _quantile(scores: Values, rate: float) -> float:
    return float(np.quantile(scores, 1.0 - rate, method="inverted_cdf"))


def _gamma(scores: Values, rate: float) -> float:
    if scores.min() <= 0 or np.ptp(scores) == 0:
        raise StudyError(
            f"A gamma distribution cannot be fitted to {scores.size} validation scores from {scores.min():.4g} to "
            f"{scores.max():.4g}: they must be above 0 and differ. Set alarm.rule to quantile."
        )
    from scipy import stats  # it takes a second to import, and every process imports this module

    shape, _, scale = stats.gamma.fit(scores, floc=0)
    return float(stats.gamma.ppf(1.0 - rate, shape, scale=scale))


def _conformal(scores: Values, rate: float) -> float:
    n = scores.size
    # Guarded against 0.95 * 20 = 19.000000000000004, which would cost a whole rank.
    rank = math.ceil(round((n + 1) * (1.0 - rate), 9))
    if rank > n:
        raise StudyError(
            f"The conformal rule cannot promise a false-alarm rate of {rate:g} with {n} validation clips; it needs "
            f"{math.ceil(round(1.0 / rate, 9)) - 1}. Raise alarm.false_alarm_rate to {1.0 / (n + 1):.2g} or more, "
            "or set alarm.rule to quantile or gamma."
        )
    return float(np.sort(scores)[rank - 1])
