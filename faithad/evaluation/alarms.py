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

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from faithad.errors import ConfigError, StudyError
from faithad.model.alarm import AlarmThreshold
from faithad.vocabulary import POOLINGS, count, rounded

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


def fit_alarm(
    scores: ArrayLike,
    *,
    rule: str,
    pooling: str,
    clip_s: float,
    false_alarm_rate: float | None = None,
    false_alarms_per_hour: float | None = None,
    pieces: Mapping[float, ArrayLike] | None = None,
    lowest: float | None = None,
) -> AlarmThreshold:
    """Fit a threshold to the scores (n,) of normal validation clips.

    Args:
        scores: of normal clips that the model was not fitted to.
        rule: a row of `RULES`.
        pooling: names the kind of score.
        clip_s: length of a clip.
        false_alarm_rate: the share of normal clips that may alarm.
        false_alarms_per_hour: how often normal sound may alarm, in place of the rate. Where the clips are too few for
            it, the rule `conformal` takes the lowest rate that they can promise, and the alarm says what was asked for.
        pieces: scores of pieces of the normal clips, by their duration in seconds; see `scoring.pieces`.
        lowest: of an ensemble whose members score clips in turn, see `Rescoring` in `scoring.ensemble`; a threshold
            below it would judge clips by scores to which some members did not contribute.

    Raises:
        StudyError: there are no scores, some are not finite, or they are too few (or too equal) for the rule; or the
            threshold would be below `lowest`, or not be one of the scores.
        ConfigError: the rule is unknown, or the rate is not between 0 and 1.
    """
    import numpy as np

    from faithad.evaluation.chance import fit_tail
    from faithad.evaluation.statistics import refuse_not_finite

    values = np.asarray(scores, dtype=np.float64)
    rate = _rate(false_alarm_rate, false_alarms_per_hour, clip_s)
    if not values.size:
        raise StudyError("No validation scores to fit an alarm threshold on. Is the validation split empty?")
    refuse_not_finite(values, "validation scores")
    if rule not in RULES:
        raise ConfigError(f"alarm.rule is {rule!r}; it must be one of {', '.join(RULES)}.")
    asked = None
    if false_alarms_per_hour is not None and rule == "conformal" and rate < 1 / (values.size + 1):
        rate, asked = 1 / (values.size + 1), false_alarms_per_hour
    threshold = RULES[rule].fit(values, rate) if lowest is None else _above(lowest, values, rule, rate)
    alarm = AlarmThreshold(
        rule=rule,
        pooling=pooling,
        false_alarm_rate=rate,
        threshold=threshold,
        false_alarms_per_hour=rate * 3600.0 / clip_s,
        n_validation=values.size,
        asked_per_hour=asked,
        tail=fit_tail(values, are_errors=POOLINGS[pooling].has_ratio, lowest=lowest),
    )
    return replace(alarm, by_length=tuple(_by_length(alarm, pieces or {})))


def _above(lowest: float, scores: Reals, rule: str, rate: float) -> float:
    """The threshold of an ensemble whose members score clips in turn."""
    if rule == "gamma":
        raise StudyError(
            "alarm.rule is 'gamma', which is fitted to all scores, and with rescore_share some members score only the "
            "highest. Set alarm.rule to quantile or conformal, or calibrate the model with rescore_share=1."
        )
    threshold = RULES[rule].fit(scores, rate)
    if threshold < lowest:
        raise StudyError(
            f"A false-alarm rate of {rate:g} is above the model's rescore_share: some members do not score that many "
            "clips. Lower the rate, or calibrate the model with a larger rescore_share (1: all members score all)."
        )
    return threshold


def fit_promised_alarm(
    scores: ArrayLike,
    *,
    false_alarm_rate: float,
    clip_s: float,
    pieces: Mapping[float, ArrayLike] | None = None,
    lowest: float | None = None,
) -> AlarmThreshold:
    """The alarm of an ensemble, above the r-th smallest score, with the rate that its normal clips can promise.

    r = ceil((n + 1)(1 - a)), or n where the clips are too few for a. The expected rate of false alarms is
    (n + 1 - r) / (n + 1), whatever the distribution of the scores is, if clips are independent; the alarm holds that
    rate.

    Args:
        scores: of n normal clips, each compared with clips of other recordings than its own.
        false_alarm_rate: a, the most that is wanted.
        clip_s: length of a clip.
        pieces: see `fit_alarm`.
        lowest: see `fit_alarm`.

    Raises:
        StudyError: there are no scores, some are not finite, or the threshold would be below `lowest`.
        ConfigError: the rate is not between 0 and 1.
    """
    alarm = fit_alarm(
        scores,
        rule="conformal",
        pooling="ensemble",
        clip_s=clip_s,
        false_alarms_per_hour=false_alarm_rate * 3600.0 / clip_s,
        pieces=pieces,
        lowest=lowest,
    )
    promised = alarm.expected_rate
    return replace(alarm, false_alarm_rate=promised, false_alarms_per_hour=promised * 3600.0 / clip_s)


def too_few_clips(asked: float, promised: float, n_clips: int, clip_s: float) -> str:
    """What so few normal clips can promise instead of `asked` false alarms per hour, and how many it takes: n with
    1 / (n + 1) at most that rate.
    """
    needed = math.ceil(round(3600.0 / clip_s / asked, 9)) - 1
    return (
        f"{rounded(asked)} an hour were asked for, which needs {count(needed, 'normal clip')}; "
        f"{count(n_clips, 'clip')} can promise no fewer than {rounded(promised)}"
    )


def expected_share(alarm_rate: float, n_validation: int, n_clips: int) -> tuple[float, float]:
    """Between which shares of n normal clips alarm, in 95 of 100 cases.

    The true rate of a threshold at the r-th smallest of v scores has the distribution Beta(v + 1 - r, r), so the number
    of alarms has the beta-binomial one. Clips are taken as independent.

    Args:
        alarm_rate: the expected one, (v + 1 - r) / (v + 1), see `AlarmThreshold.expected_rate`.
        n_validation: v.
        n_clips: n; 0 for the true rate itself, the limit for many clips.
    """
    from scipy import stats

    above, below = (n_validation + 1) * alarm_rate, (n_validation + 1) * (1.0 - alarm_rate)
    if not n_clips:
        low, high = stats.beta.ppf([0.025, 0.975], above, below)
    else:
        low, high = stats.betabinom.ppf([0.025, 0.975], n_clips, above, below) / n_clips
    return float(low), float(high)


def _rate(rate: float | None, per_hour: float | None, clip_s: float) -> float:
    if (rate is None) == (per_hour is None):
        raise ConfigError("An alarm needs either alarm.false_alarm_rate or alarm.false_alarms_per_hour.")
    if rate is not None:
        if not 0.0 < rate < 1.0:
            raise ConfigError(f"alarm.false_alarm_rate is {rate}; it must be between 0 and 1, such as 0.05.")
        return rate
    assert per_hour is not None
    if not 0.0 < per_hour * clip_s / 3600.0 < 1.0:
        raise ConfigError(
            f"alarm.false_alarms_per_hour is {per_hour:g}; it must be above 0, and below {3600.0 / clip_s:g}, as an "
            f"hour has no more clips of {clip_s:g} s."
        )
    return per_hour * clip_s / 3600.0


def _by_length(alarm: AlarmThreshold, pieces: Mapping[float, ArrayLike]) -> Iterator[tuple[float, float]]:
    """The thresholds of short clips: by the same rule and at the same rate, fitted to pieces of each length."""
    import numpy as np

    for duration_s, scores in sorted(pieces.items()):
        values = np.asarray(scores, dtype=np.float64)
        # Few of the clips may be as long as this piece, and their neighbours in length say more than they do.
        if 2 * values.size < alarm.n_validation or not np.isfinite(values).all():
            continue
        rate = alarm.false_alarm_rate
        if alarm.rule == "conformal":
            rate = max(rate, 1 / (values.size + 1))
        with contextlib.suppress(StudyError):  # a rule that cannot be fitted to these
            yield duration_s, RULES[alarm.rule].fit(values, rate)


def with_window_thresholds(alarm: AlarmThreshold, validation_scores: pa.Table) -> AlarmThreshold:
    """The alarm with thresholds for the windows of 0.25 s of alarmed clips.

    They are fitted by the alarm's rule and at its rate to the worst windows of normal clips. So a window is above its
    threshold if a clip with this as its worst window would alarm, were clips judged by their worst windows and by this
    model alone. Each model has a threshold of its own: the mean error of 0.25 s varies more than that of a clip, and
    that of one member of an ensemble less than a sum.

    Args:
        alarm: the alarm that was fitted to the scores of the same clips.
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
