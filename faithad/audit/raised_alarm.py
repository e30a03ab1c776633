"""Which alarm an audit raises: the one that is stored with the model, or one of its own."""

from __future__ import annotations

import math

import pyarrow as pa

from faithad import parquet, schemas, storage
from faithad.config.audit import AuditRun
from faithad.config.sections import Alarm
from faithad.errors import StudyError
from faithad.evaluation.alarms import expected_share, fit_alarm, too_few_clips, with_window_thresholds
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.model.state_alarm import StateAlarm, StateThreshold
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.piece_scores import paper_scores, read_piece_scores
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble
from faithad.settings import minute_s
from faithad.vocabulary import ENSEMBLE, FITTED, POOLINGS, count, rounded


def raised_alarm(run: AuditRun, trained: AnyModel) -> AlarmThreshold:
    """The alarm of the run's section `alarm`, fitted to the model's validation scores, or that of the model; printed.

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
        validation = parquet.read_table(location)
        scores = validation[POOLINGS[asked.pooling].column]
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
        elif asked.pooling == "mean":
            scores = paper_scores(validation)
        pieces = read_piece_scores(run.model, settings["pooling"])
        lowest = trained.lowest_rescored if isinstance(trained, TrainedEnsemble) else None
        alarm = fit_alarm(scores.to_numpy(), **settings, clip_s=trained.features.clip_s, pieces=pieces, lowest=lowest)
        alarm = with_window_thresholds(alarm, validation)
    if alarm is None:
        raise StudyError(f"The model in {run.model} has no alarm of its own. Set the section alarm.")
    say_alarm(alarm, clip_s=trained.features.clip_s)
    if trained.state is not None:
        say_state(trained.state, clip_s=trained.features.clip_s)
    return alarm


def normal_scores(model: str) -> pa.Table:
    """The scores of a model's validation clips, schemas.VALIDATION_SCORES; no row where the model lacks them."""
    location = storage.join(model, layout.VALIDATION_SCORES)
    return parquet.read_table(location) if storage.exists(location) else schemas.VALIDATION_SCORES.empty_table()


def say_alarm(alarm: AlarmThreshold, *, clip_s: float) -> None:
    """Say when a clip alarms and how often normal sound will; and if that is more than was asked for, why."""
    per_hour, rate = 3600.0 / clip_s, alarm.expected_rate
    if alarm.counts_ranks:
        low, high = expected_share(rate, alarm.n_validation, 0)
        sure = f"from {rounded(low * per_hour, 2)} to {rounded(high * per_hour, 2)} at 95 %"
    else:
        sure = "if the fit holds; the rule promises nothing"
    console.print(
        f"alarm: above {alarm.threshold:.4g} ({POOLINGS[alarm.pooling].phrase}), by rule {alarm.rule!r} on "
        f"{count(alarm.n_validation, 'normal clip')}; {rounded(rate * per_hour)} false alarms per hour are to be "
        f"expected ({rate * 100:.3g} % of normal clips), {sure}"
    )
    say_too_few(alarm, clip_s=clip_s)


def say_state(state: StateAlarm, *, clip_s: float) -> None:
    """Say when a minute alarms, and how many changes normal sound will bring."""
    an_hour = 3600.0 / minute_s(clip_s)

    def promise(threshold: StateThreshold) -> str:
        rate, n = threshold.false_alarm_rate, threshold.n_minutes
        words = f"{threshold.threshold_db:.2f} dB, at most {rate * an_hour:.2g} false alarms per hour, by"
        too_few = ""
        if rate > state.asked_rate:
            needed = math.ceil(round(1.0 / state.asked_rate, 9)) - 1
            too_few = f" ({state.asked_rate * an_hour:.2g} were asked for, which needs {needed:,})"
        return f"{words} {count(n, 'normal minute')}{too_few}"

    console.print(
        f"state: a minute alarms whose spectrum is far from the normal ones: above {promise(state.against_normals)}"
    )
    if state.against_past is not None:
        console.print(f"state: once the recorder has a past, from that: above {promise(state.against_past)}")
    else:
        console.print(
            "state: the normal recordings are too short to compare minutes with a recorder's own past; sound of other "
            "days may alarm far more often than this promises"
        )


def say_too_few(alarm: AlarmThreshold, *, clip_s: float) -> None:
    """Say what the normal clips promise, if that is more false alarms than were asked for."""
    if alarm.asked_per_hour is not None:
        promised = alarm.expected_rate * 3600.0 / clip_s
        console.print(f"alarm: {too_few_clips(alarm.asked_per_hour, promised, alarm.n_validation, clip_s)}")
