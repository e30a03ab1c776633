"""The sections that say when a clip alarms, and how alarms become events."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from faithad.config.base import (
    Fraction,
    MethodName,
    Percentile,
    Section,
    one_of,
    refuse,
)
from faithad.config.file import KeyProblem, SectionError
from faithad.evaluation.alarms import RULES
from faithad.vocabulary import ERROR_POOLINGS


class FalseAlarms(Section):
    """How often normal sound may alarm: a share of the clips (0.05 by default), or so many times an hour."""

    false_alarm_rate: Fraction | None = 0.05
    false_alarms_per_hour: float | None = Field(None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("false_alarms_per_hour") is None:
            return values
        if values.get("false_alarm_rate") is not None:
            reason = "false_alarm_rate says the same of all clips: leave one of the two out, or set it to null"
            raise SectionError([(("false_alarms_per_hour", "false_alarm_rate"), reason)])
        return {**values, "false_alarm_rate": None}

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.false_alarm_rate is None and self.false_alarms_per_hour is None:
            return refuse(self, [(("false_alarm_rate",), "is null, and false_alarms_per_hour is not given either")])
        return self

    def problems(self, clip_s: float) -> list[KeyProblem]:
        """What is wrong with it for clips of this length."""
        per_hour = self.false_alarms_per_hour
        if per_hour is None or per_hour * clip_s < 3600:
            return []
        reason = f"{per_hour:g} is as many as an hour has clips of {clip_s:g} s"
        return [(("alarm.false_alarms_per_hour",), reason)]

    def rate(self, clip_s: float) -> float:
        """The share of normal clips that may alarm."""
        if self.false_alarm_rate is not None:
            return self.false_alarm_rate
        assert self.false_alarms_per_hour is not None
        return self.false_alarms_per_hour * clip_s / 3600.0


class Alarm(FalseAlarms):
    """When a clip raises an alarm: its score is above a threshold that is fitted to normal validation clips alone.

    `rule`: how it is fitted, a row of `evaluation.alarms.RULES`: `quantile` (empirical), `gamma` (of a gamma
    distribution fitted to the scores, as in DCASE) or `conformal` (the guarantee of split conformal prediction).
    `pooling`: which score alarms, a row of `vocabulary.ERROR_POOLINGS`: the clip's mean error or that of its worst
    second; an ensemble and any score but the paper's have one number only, and the default means that.
    `false_alarm_rate`: the share of normal clips that may alarm; or `false_alarms_per_hour`, in the user's unit, whose
    rule is `conformal` if none is given. The lowest rate that the clips can promise is taken where they are too few.
    """

    rule: Annotated[str, one_of(RULES)] = "quantile"
    pooling: Annotated[str, one_of(ERROR_POOLINGS)] = "mean"

    @model_validator(mode="before")
    @classmethod
    def _no_state_share(cls, values: Any) -> Any:
        if isinstance(values, dict) and "state_share" in values:
            reason = (
                "the alarm for what lasts compares minutes with a recorder's own past, which split and shuffled clips "
                "of a study do not have, and is stored with a model. Leave it out: `faithad calibrate --model ... "
                "--normals ... --set state_share=0.5` gives it to a model of a study, and `faithad train --normals ... "
                "--set alarm.state_share=0.5` to a new one"
            )
            raise SectionError([(("state_share",), reason)])
        return values

    @model_validator(mode="before")
    @classmethod
    def _rule_of_promises(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("false_alarms_per_hour") is not None and "rule" not in values:
            return {**values, "rule": "conformal"}
        return values

    def as_in_marks(self) -> dict[str, Any]:
        """The settings as a finished stage's mark holds them; those of older studies name no alarms per hour."""
        return self.model_dump(mode="json", exclude_none=True)


class Events(Section):
    """How alarms become events: windows above the threshold at most `merge_gap_s` apart are one. `method` and
    `percentile` name the explanation that tells the event's seconds and mel bands. `trusted`: the most faithful method
    that the rule of `evaluation.decisions` finds more faithful than random frames in this audit, the error map aside;
    the first of `attribution.methods` where it finds none.
    """

    merge_gap_s: float = Field(1.0, ge=0)
    method: MethodName | Literal["trusted"] = "saliency"
    percentile: Percentile = 95.0
