"""The alarm that is stored with a model: a threshold and its expected rate of false alarms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AlarmThreshold:
    """Alarm where a clip's score is above `threshold`.

    Attributes:
        rule: how it was fitted: quantile, gamma or conformal.
        pooling: which score it speaks of: mean (over the clip), worst_second, or ensemble (the sum of several models).
        false_alarm_rate: the share of normal clips that was allowed to alarm.
        threshold: in the unit of the score.
        false_alarms_per_hour: to be expected of normal sound, by the rule.
        n_validation: how many validation normals it was fitted on.
    """

    rule: str
    pooling: str
    false_alarm_rate: float
    threshold: float
    false_alarms_per_hour: float
    n_validation: int

    def raised_by(self, score: float, worst_second_score: float) -> bool:
        """Whether a clip with these scores alarms."""
        return (worst_second_score if self.pooling == "worst_second" else score) > self.threshold
