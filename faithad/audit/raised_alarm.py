"""Which alarm an audit raises: the one that is stored with the model, or one of its own."""

from __future__ import annotations

from faithad import storage
from faithad.config.audit import AuditRun
from faithad.config.sections import Alarm
from faithad.errors import StudyError
from faithad.evaluation.alarms import fit_alarm
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.progress import console
from faithad.runs import layout
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble
from faithad.vocabulary import ENSEMBLE, FITTED, POOLINGS

_FEW_ABOVE = 5


def raised_alarm(run: AuditRun, trained: AnyModel) -> AlarmThreshold:
    """The alarm of the run's section `alarm`, fitted to the model's validation scores, or that of the model; says so.

    Raises:
        StudyError: there is neither, or the model lacks the scores that the alarm needs.
    """
    alarm, asked = trained.alarm, run.alarm
    is_fitted = isinstance(trained, TrainedModel) and trained.score is not None
    if asked is None and alarm is not None and alarm.pooling == FITTED and not is_fitted:
        asked = Alarm(rule=alarm.rule, false_alarm_rate=alarm.false_alarm_rate)  # of the paper's score
    if asked is not None:
        location = storage.join(run.model, layout.VALIDATION_SCORES)
        if not storage.exists(location):
            raise StudyError(
                f"The section alarm asks for another threshold than the model's own, and {location}, which it is "
                "fitted to, is missing. Copy it there from where the model was trained, or leave the section out."
            )
        table = storage.read_table(location)
        scores = table[POOLINGS[asked.pooling].column]
        if scores.null_count or (is_fitted and asked.pooling != "mean"):
            raise StudyError(
                f"alarm.pooling is {asked.pooling!r}, but the model {trained.name!r} gives one score for a whole "
                "clip. Set alarm.pooling to mean."
            )
        settings = asked.model_dump()
        if isinstance(trained, TrainedEnsemble):
            settings["pooling"] = ENSEMBLE
        elif is_fitted:
            settings["pooling"] = FITTED
        elif asked.pooling == "mean" and "paper_score" in table.column_names and not table["paper_score"].null_count:
            scores = table["paper_score"]
        alarm = fit_alarm(scores.to_numpy(), **settings, clip_s=trained.features.clip_s)
    if alarm is None:
        raise StudyError(f"The model in {run.model} has no alarm of its own. Set the section alarm.")
    # With so few clips above the threshold, one more or less makes another rate.
    roughly = ", very roughly" if alarm.n_validation * alarm.false_alarm_rate < _FEW_ABOVE else ""
    console.print(f"{alarm_line(alarm)}{roughly}")
    return alarm


def alarm_line(alarm: AlarmThreshold) -> str:
    """When a clip alarms, and how often normal sound will."""
    return (
        f"alarm: above {alarm.threshold:.4g} ({POOLINGS[alarm.pooling].phrase}), by rule {alarm.rule!r} on "
        f"{alarm.n_validation} normal clips; {alarm.false_alarms_per_hour:.3g} false alarms per hour are to be expected"
    )
