"""When a clip raises an alarm: thresholds fitted to the scores of normal validation clips, and to nothing else.

Every rule is given a false-alarm rate a, the share of normal clips that may alarm:

    quantile    the smallest validation score that a share 1 - a of them does not exceed. A statement on those clips.
    gamma       the 1 - a quantile of a gamma distribution fitted by maximum likelihood, as the baseline systems of
                DCASE Task 2 do (Koizumi et al. 2020). It reaches beyond the highest score seen, as far as the fit can
                be trusted.
    conformal   split conformal prediction (Vovk et al. 2005): the ceil((n + 1)(1 - a))-th smallest of n scores. A new
                normal clip, exchangeable with these, exceeds it with a probability of at most a. Needs n >= 1/a - 1.

The configuration reads the table of rules, so NumPy and SciPy are imported where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from faithad.errors import ConfigError, StudyError
from faithad.model.alarm import AlarmThreshold

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import ArrayLike

    from faithad.evaluation.arrays import Reals


def _quantile(scores: Reals, rate: float) -> float:
    import numpy as np

    return float(np.quantile(scores, 1.0 - rate, method="inverted_cdf"))


def _gamma(scores: Reals, rate: float) -> float:
    if scores.min() <= 0 or scores.min() == scores.max():
        raise StudyError(
            f"A gamma distribution cannot be fitted to {scores.size} validation scores from {scores.min():.4g} to "
            f"{scores.max():.4g}: they must be above 0 and differ. Set alarm.rule to quantile."
        )
    from scipy import stats  # takes a second to import

    shape, _, scale = stats.gamma.fit(scores, floc=0)
    return float(stats.gamma.ppf(1.0 - rate, shape, scale=scale))


def _conformal(scores: Reals, rate: float) -> float:
    n = scores.size
    # Rounded, because 0.95 * 20 = 19.000000000000004 would cost a whole rank.
    rank = math.ceil(round((n + 1) * (1.0 - rate), 9))
    if rank > n:
        raise StudyError(
            f"The conformal rule cannot promise a false-alarm rate of {rate:g} with {n} validation clips; it needs "
            f"{math.ceil(round(1.0 / rate, 9)) - 1}. Raise alarm.false_alarm_rate to {1.0 / (n + 1):.2g} or more, "
            "or set alarm.rule to quantile or gamma."
        )
    return float(sorted(scores)[rank - 1])


def fit_promised_alarm(scores: ArrayLike, *, false_alarm_rate: float, clip_s: float) -> AlarmThreshold:
    """The alarm of an ensemble, above the r-th smallest score, with the rate that its normal clips can promise.

    r = ceil((n + 1)(1 - a)), or n where the clips are too few for a. The expected rate of false alarms is
    (n + 1 - r) / (n + 1), whatever the distribution of the scores is, if clips are independent; it stands in the alarm.

    Args:
        scores: of n normal clips, each compared with clips of other recordings than its own.
        false_alarm_rate: a, the most that is wanted.
        clip_s: length of a clip.

    Raises:
        StudyError: there are no scores, or some are not finite.
        ConfigError: the rate is not between 0 and 1.
    """
    import numpy as np

    n = max(1, np.size(scores))
    rate = max(false_alarm_rate, 1 / (n + 1))
    alarm = fit_alarm(scores, rule="conformal", pooling="ensemble", false_alarm_rate=rate, clip_s=clip_s)
    rank = math.ceil(round((n + 1) * (1.0 - rate), 9))
    promised = (n + 1 - rank) / (n + 1)
    return replace(alarm, false_alarm_rate=promised, false_alarms_per_hour=promised * 3600.0 / clip_s)


class Rule(NamedTuple):
    """How a threshold is fitted. A new rule is a row of `RULES`.

    Attributes:
        phrase: in the report: "the threshold was fitted to the scores by {phrase}".
        fit: (scores (n,), false-alarm rate) to the threshold.
    """

    phrase: str
    fit: Callable[[Reals, float], float]


RULES = {
    "quantile": Rule("the empirical quantile", _quantile),
    "gamma": Rule("a gamma distribution fitted to them", _gamma),
    "conformal": Rule("split conformal prediction", _conformal),
}


def fit_alarm(scores: ArrayLike, *, rule: str, pooling: str, false_alarm_rate: float, clip_s: float) -> AlarmThreshold:
    """Fit a threshold to the scores (n,) of normal validation clips; `pooling` names the kind of score.

    Raises:
        StudyError: there are no scores, some are not finite, or they are too few (or too equal) for the rule.
        ConfigError: the rule is unknown, or the rate is not between 0 and 1.
    """
    import numpy as np

    from faithad.evaluation.statistics import refuse_not_finite

    values = np.asarray(scores, dtype=np.float64)
    if not 0.0 < false_alarm_rate < 1.0:
        raise ConfigError(f"alarm.false_alarm_rate is {false_alarm_rate}; it must be between 0 and 1, such as 0.05.")
    if not values.size:
        raise StudyError("No validation scores to fit an alarm threshold on. Is the validation split empty?")
    refuse_not_finite(values, "validation scores")
    if rule not in RULES:
        raise ConfigError(f"alarm.rule is {rule!r}; it must be one of {', '.join(RULES)}.")
    return AlarmThreshold(
        rule=rule,
        pooling=pooling,
        false_alarm_rate=false_alarm_rate,
        threshold=RULES[rule].fit(values, false_alarm_rate),
        false_alarms_per_hour=false_alarm_rate * 3600.0 / clip_s,
        n_validation=values.size,
    )


def with_window_thresholds(alarm: AlarmThreshold, validation_scores: pa.Table) -> AlarmThreshold:
    """The alarm with thresholds for the windows of 0.25 s of alarmed clips.

    They are fitted by the alarm's rule and at its rate to the worst windows of normal clips. So a window counts as
    above where a clip whose worst window it is would alarm, if clips were judged by their worst windows and by this
    model alone. Each model has a threshold of its own: the mean error of 0.25 s varies more than that of a clip, and
    that of one member of an ensemble less than a sum.

    Args:
        alarm: that was fitted to the scores of the same clips.
        validation_scores: schemas.VALIDATION_SCORES. Without `worst_windows`, as of a model that gives one score for
            a whole clip and of release 0.1.0, the alarm has no such threshold.
    """
    import numpy as np

    if "worst_windows" not in validation_scores.column_names or validation_scores["worst_windows"].null_count:
        return alarm
    fit = RULES[alarm.rule].fit
    of_models = np.array(validation_scores["worst_windows"].to_pylist(), dtype=np.float64).T
    thresholds = (fit(values, alarm.false_alarm_rate) for values in of_models)
    return replace(alarm, window_thresholds=tuple(thresholds))
