"""The alarm that is stored with a model: a threshold and its expected rate of false alarms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


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
    window_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "window_thresholds", tuple(self.window_thresholds))  # a list in files

    def as_json(self) -> dict[str, Any]:
        """Its values as JSON has them."""
        return dataclasses.asdict(self) | {"window_thresholds": list(self.window_thresholds)}

    def raised_by(self, score: float, worst_second_score: float) -> bool:
        """Whether a clip with these scores alarms."""
        return (worst_second_score if self.pooling == "worst_second" else score) > self.threshold
