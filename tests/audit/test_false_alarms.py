"""How often clips of normal sound alarm, whole and short ones: as often as the alarm promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from faithad.audit.judging import TableRow
from faithad.audit.model import prepare_audit
from faithad.audit.shard import audit_clips
from faithad.config.sections import Attribution, Audit
from faithad.demo.mill import plan_recordings
from faithad.demo.motion import SAMPLE_RATE_HZ
from faithad.demo.sounds import planer_sound
from faithad.features import fill_up, log_mel
from faithad.model.alarm import AlarmThreshold
from faithad.scoring.trained_ensemble import TrainedEnsemble
from faithad.settings import FeatureSettings
from tests.scoring.ensembles import fitted_ensemble

# Coarse, as the scores of 2,400 clips and pieces take their time.
SETTINGS = FeatureSettings(n_fft=2_000, hop_samples=2_000, n_mels=20)
LENGTHS_S = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
# A mill of so many minutes, of which every sixth one is trained on: its sound drifts over the hours.
MINUTES, EVERY = 60, 6

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def sounds() -> list[Tensor]:
    """Of each minute its clips, (6, samples)."""
    planned = plan_recordings(Path("mill"), train_recordings=MINUTES, test_recordings=0, seed=11)
    return [torch.from_numpy(planer_sound(recording.timeline)).view(6, -1) for recording in planned]


@pytest.fixture(scope="module")
def trained(sounds: list[Tensor]) -> TrainedEnsemble:
    chosen = sounds[2::EVERY]
    recordings = [str(k) for k in range(len(chosen)) for _ in range(6)]
    normals = torch.cat([log_mel(clips, SETTINGS) for clips in chosen])
    return fitted_ensemble(normals, recordings, SETTINGS, rate=0.05)


def alarms(trained: TrainedEnsemble, sounds: list[Tensor], length_s: float) -> list[TableRow]:
    """The scores of the first seconds of each clip that was not trained on, as recordings of their own."""
    audit = prepare_audit(
        trained, attribution=Attribution(), audit=Audit(percentiles=(95.0,)), device=torch.device("cpu")
    )
    held_back = torch.cat([clips for k, clips in enumerate(sounds) if k % EVERY != 2])
    log_mels = log_mel(held_back[:, : round(length_s * SAMPLE_RATE_HZ)], SETTINGS)
    rows = [
        {"clip_id": str(k), "recording": str(k), "onset_s": 0.0, "duration_s": length_s, "intervals": None,
         "annotated": False}
        for k in range(len(log_mels))
    ]  # fmt: skip
    return audit_clips(audit, rows, fill_up(log_mels, SETTINGS.n_frames), explain=False)["scores"]


def promised_alarms(alarm: AlarmThreshold, n_clips: int) -> tuple[float, float]:
    """How many alarms 95 of 100 thresholds bring that are the r-th smallest of n scores."""
    n, promised = alarm.n_validation, alarm.false_alarm_rate
    low, high = stats.betabinom.ppf([0.025, 0.975], n_clips, (n + 1) * promised, (n + 1) * (1 - promised))
    return float(low), float(high)


@pytest.mark.parametrize("length_s", LENGTHS_S)
def test_clips_of_any_length_alarm_as_often_as_promised(
    trained: TrainedEnsemble, sounds: list[Tensor], length_s: float
) -> None:
    scores = alarms(trained, sounds, length_s)
    assert len(scores) >= 300
    alarm = trained.alarm
    assert alarm is not None
    low, high = promised_alarms(alarm, len(scores))
    assert low <= sum(row["alarm"] for row in scores) <= high
    assert {row["threshold"] for row in scores} == {alarm.of_length(length_s, clip_s=10.0).threshold}
    assert all(row["alarm"] == (row["score"] > row["threshold"]) for row in scores)
