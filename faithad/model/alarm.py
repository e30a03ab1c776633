"""The alarm that is stored with a model: a threshold and its expected rate of false alarms."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tail:
    """How the highest scores of normal clips fall off: exponentially, above the score that `n_above` of n exceed.

    P(score > s) = (n_above + 1) / (n + 1) * exp(-(s - start) / scale), see `evaluation.chance`.

    Attributes:
        start: the (n_above + 1)-th highest of n scores.
        scale: the mean excess over it.
        n_above: how many scores the fit rests on.
        log_scale: the mean excess of their logarithms, of scores that are errors; None for others.
    """

    start: float
    scale: float
    n_above: int
    log_scale: float | None = None


@dataclass(frozen=True)
class AlarmThreshold:
    """Alarm where a clip's score is above `threshold`, or, for a short clip, above the threshold of its length.

    Attributes:
        rule: how it was fitted: quantile, gamma or conformal.
        pooling: which score it concerns: mean (over the clip), worst_second, or ensemble (the sum of several models).
        false_alarm_rate: the share of normal clips that was allowed to alarm.
        threshold: in the unit of the score, of whole clips.
        false_alarms_per_hour: to be expected of normal sound, by the rule.
        n_validation: how many validation normals it was fitted on.
        by_length: durations in seconds below that of a whole clip, in rising order, each with the threshold of clips
            that are as short; empty where none were fitted, and `threshold` then is that of all clips.
        asked_per_hour: how many false alarms per hour were asked for, where the clips can only promise more of them.
        tail: of the scores that it was fitted on; None where it is not known.
        window_thresholds: where an alarmed clip is above it: a window of 0.25 s is where its own value is above the
            window threshold, which as large a share of normal clips exceed anywhere as exceed `threshold`. One for
            each member of an ensemble, one of a single model, none of a model that gives one score for a whole clip
            and of a model of release 0.1.0.
    """

    rule: str
    pooling: str
    false_alarm_rate: float
    threshold: float
    false_alarms_per_hour: float
    n_validation: int
    by_length: tuple[tuple[float, float], ...] = ()
    asked_per_hour: float | None = None
    tail: Tail | None = None
    window_thresholds: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AlarmThreshold:
        """The alarm that `as_json`, or an earlier release without the last fields, wrote."""
        tail = values.get("tail")
        return cls(
            **{
                **values,
                "by_length": tuple((float(s), float(threshold)) for s, threshold in values.get("by_length", ())),
                "window_thresholds": tuple(values.get("window_thresholds", ())),
                "tail": None if tail is None else Tail(**tail),
            }
        )

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        by_length = [list(pair) for pair in self.by_length]
        return {**asdict(self), "by_length": by_length, "window_thresholds": list(self.window_thresholds)}

    def raised_by(self, score: float, worst_second_score: float) -> bool:
        """Whether a clip with these scores alarms."""
        return (worst_second_score if self.pooling == "worst_second" else score) > self.threshold

    def of_length(self, duration_s: float, *, clip_s: float) -> AlarmThreshold:
        """The alarm of clips that are shorter than `clip_s`.

        Between two lengths that it was fitted on, the threshold is linear in the logarithm of the duration; below the
        shortest one it is that of the shortest.
        """
        if not self.by_length or duration_s >= clip_s:
            return self
        lengths = [*self.by_length, (clip_s, self.threshold)]
        above = bisect_right([length_s for length_s, _ in lengths], duration_s)
        if above == 0:
            return replace(self, threshold=lengths[0][1])
        (low_s, low), (high_s, high) = lengths[above - 1], lengths[above]
        share = math.log(duration_s / low_s) / math.log(high_s / low_s)
        return replace(self, threshold=low + share * (high - low))

    @property
    def counts_ranks(self) -> bool:
        """Whether the threshold is one of the normal scores, so that its rate has a known distribution; that of the
        rule `gamma` is as good as the fit, and promises nothing.
        """
        return self.n_validation > 0 and self.rule in ("quantile", "conformal")

    @property
    def expected_rate(self) -> float:
        """The share of normal clips that alarm: of a rule that counts ranks (n + 1 - r) / (n + 1), else what it allows.

        The threshold of these rules is the r-th smallest of n scores, and a new score from the same distribution is
        equally likely to fall between any two of them.
        """
        n, allowed = self.n_validation, self.false_alarm_rate
        if not self.counts_ranks:
            return allowed
        # Rounded, because 0.95 * 20 = 19.000000000000004 would cost a whole rank.
        rank = math.ceil(round((n + (self.rule == "conformal")) * (1.0 - allowed), 9))
        return (n + 1 - min(max(rank, 1), n)) / (n + 1)
