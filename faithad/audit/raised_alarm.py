"""Which alarm an audit raises: the one that is stored with the model, or one of its own."""

from __future__ import annotations

from faithad import storage
from faithad.config.audit import AuditRun
from faithad.errors import StudyError
from faithad.evaluation.alarms import fit_alarm, with_window_thresholds
from faithad.model.alarm import AlarmThreshold
from faithad.progress import console
from faithad.runs import layout
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble
from faithad.vocabulary import POOLINGS

_FEW_ABOVE = 5


def raised_alarm(run: AuditRun, trained: AnyModel) -> AlarmThreshold:
    """The alarm of the run's section `alarm`, fitted to the model's validation scores, or that of the model; says so.

    Raises:
        StudyError: there is neither, or the model lacks the scores that the alarm needs.
    """
    alarm = trained.alarm
    if run.alarm is not None:
        location = storage.join(run.model, layout.VALIDATION_SCORES)
        if not storage.exists(location):
            raise StudyError(
                f"The section alarm asks for another threshold than the model's own, and {location}, which it is "
                "fitted to, is missing. Copy it there from where the model was trained, or leave the section out."
            )
        validation = storage.read_table(location)
        scores = validation[POOLINGS[run.alarm.pooling].column]
        if scores.null_count:
            raise StudyError(
                f"alarm.pooling is {run.alarm.pooling!r}, but the model {trained.name!r} gives one score for a whole "
                "clip. Set alarm.pooling to mean."
            )
        settings = run.alarm.model_dump()
        if isinstance(trained, TrainedEnsemble):
            settings["pooling"] = "ensemble"
        alarm = fit_alarm(scores.to_numpy(), **settings, clip_s=trained.features.clip_s)
        alarm = with_window_thresholds(alarm, validation)
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
