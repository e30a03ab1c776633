"""The row that a clip has in the table `scores`.

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

import math

from torch import Tensor

from faithad.audit.judging import Clip, TableRow
from faithad.audit.model import AuditModel
from faithad.evaluation.controls import level
from faithad.evaluation.detection import worst_mel_band, worst_second
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.model.training_sound import mean_spectrum
from faithad.scoring.pooling import frame_errors, window_means
from faithad.scoring.score import places_of
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble

_NO_WINDOWS: TableRow = {"windows": None, "window_threshold": None}


def paper_row(trained: TrainedModel, clip: Clip, squared: Tensor | None, score: float) -> TableRow:
    """The row by the mean squared error, or by the score of a model that gives nothing else.

    Args:
        trained: the model.
        clip: the scored clip.
        squared: the error of each cell, (F, n_frames); None of a model that gives a score only.
        score: of the clip.
    """
    worst = None if squared is None else worst_second(squared, trained.features.frames_per_s, cut_off=clip.is_short)
    worst_score = None if worst is None else worst.score
    alarm = _alarm(trained, clip)
    if alarm is not None and alarm.pooling == "worst_second" and worst is None:
        alarm = None
    return {
        **clip.keys,
        "score": score,
        "worst_second_score": worst_score,
        "threshold": None if alarm is None else alarm.threshold,
        "alarm": None if alarm is None else alarm.raised_by(score, math.nan if worst_score is None else worst_score),
        "worst_onset_s": None if worst is None else worst.onset_s,
        "worst_mel_band": None if squared is None else worst_mel_band(squared),
        "raised_by": None,
        "paper_score": None,
        **_NO_WINDOWS,
    }


def fitted_row(trained: AnyModel, raised_by: str | None, clip: Clip, errors: Tensor, score: float) -> TableRow:
    """The row by a fitted score, which has no score of the worst second.

    Args:
        trained: the model.
        raised_by: the member that raised the clip, of an ensemble.
        clip: the scored clip.
        errors: the weighted error of each cell, (F, n_frames); of an ensemble that of this member.
        score: of the clip.
    """
    alarm = _alarm(trained, clip)
    return {
        **clip.keys,
        "score": score,
        "worst_second_score": None,
        "threshold": None if alarm is None else alarm.threshold,
        "alarm": None if alarm is None else alarm.raised_by(score, math.nan),
        "worst_onset_s": worst_second(errors, trained.features.frames_per_s, cut_off=clip.is_short).onset_s,
        "worst_mel_band": worst_mel_band(errors),
        "raised_by": raised_by,
        **_NO_WINDOWS,
    }


def _alarm(trained: AnyModel, clip: Clip) -> AlarmThreshold | None:
    """The alarm of clips of this length."""
    if trained.alarm is None or not clip.is_short:
        return trained.alarm
    return trained.alarm.of_length(clip.row["duration_s"], clip_s=trained.features.clip_s)


def windows(
    model: AuditModel, trained: AnyModel, errors: Tensor | None, x: Tensor, references: Tensor | None
) -> TableRow:
    """The value of each window of a clip that alarmed, and the threshold of windows.

    A window's value is what the score of the clip would be if this were its worst window: its mean error, calibrated as
    the score of the member that raised the clip.

    Args:
        model: whose errors they are: of an ensemble, the member that raised the clip.
        trained: the model that alarmed.
        errors: the error of each cell, (F, n_frames); None of a model that gives a score only.
        x: the clip as the model takes it in, (1, F, T).
        references: the spectrum of the clip's recording, (1, F), that was subtracted from x; None where nothing was.
    """
    thresholds = () if trained.alarm is None else trained.alarm.window_thresholds
    if errors is None or not thresholds:
        return _NO_WINDOWS
    values, number = window_means(frame_errors(errors), trained.features.frames_per_s), 0
    if model.detector is not None:
        # Of a single model, the first threshold is that of the paper's score.
        number = list(trained.members).index(model.trained.name) if isinstance(trained, TrainedEnsemble) else 1
        offsets = model.trained.normalization.offsets(references)
        values = model.detector.calibrate(values[:, None], places_of(x, [errors.shape[1]], offsets).cpu())[:, 0]
    return {"windows": values.numpy(), "window_threshold": thresholds[number]}


def differences(trained: TrainedModel, log_mel: Tensor) -> TableRow:
    """How a clip (F, n_frames) differs from those of the training."""
    sound = trained.sound
    difference = None if sound is None else sound.difference(mean_spectrum(log_mel, trained.features))
    return {
        "spectrum_difference_db": None if difference is None else difference.spectrum_db,
        "level_difference_db": None if difference is None else difference.level_db,
    }


def levels(trained: TrainedModel, log_mel: Tensor, clip: Clip) -> TableRow:
    """What a level meter says of a clip (F, n_frames); null where its power is 0 or too large for a number."""
    power = level(log_mel.numpy(), trained.features.power_of_ten)
    loudest = worst_second(power[None], trained.features.frames_per_s, cut_off=clip.is_short).score
    if not 0.0 < power.mean() < math.inf:
        return {"level_db": None, "loudest_second_db": None}
    return {"level_db": 10.0 * math.log10(power.mean()), "loudest_second_db": 10.0 * math.log10(loudest)}
