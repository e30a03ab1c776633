"""The alarm for what lasts, from recordings to the report: training, audit and calibration, whole but for Ray."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import faithad
from faithad import parquet
from faithad.audit.exports import export_changes
from faithad.audit.normal_clips import read_normal_clips
from faithad.clips.labels.files import FORMATS
from faithad.clips.labels.label import kind_of
from faithad.config.audit import load_audit_run
from faithad.config.normals import load_calibration_run, load_normals_run
from faithad.errors import ConfigError
from faithad.evaluation.alarms import fit_promised_alarm
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.training.calibrate import calibrate_model
from faithad.pipelines.training.normal_clips import Normals
from faithad.pipelines.training.normals import train_on_normals
from faithad.runs import layout
from faithad.scoring.trained_ensemble import load_any
from tests.label_files import read_labels
from tests.pipelines.audits_without_ray import without_ray

pytestmark = pytest.mark.long

RATE_HZ = 2_000
SETTINGS = [
    "alarm.state_share=0.5",
    "features.sample_rate_hz=2000",
    "features.n_fft=200",
    "features.hop_samples=200",
    "features.n_mels=16",
]
START = datetime(2026, 5, 4, 14, 0)


@pytest.fixture(autouse=True, scope="module")
def quick_trainings() -> Iterator[None]:
    """Without thresholds of short clips, which take most of a training. A training also sets its process's threads."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Normals, "piece_lengths", {})
        yield
    torch.set_num_threads(threads)


def write(folder: Path, *, minutes: int, seed: int, at: datetime, whine: tuple[float, float] = (0, 0)) -> None:
    """A recording of hum and noise, in which a bearing whines at 700 Hz for some minutes."""
    folder.mkdir(exist_ok=True)
    at_s = np.arange(minutes * 60 * RATE_HZ) / RATE_HZ
    sound = 0.1 * np.sin(2 * np.pi * 150 * at_s) + 0.03 * np.random.default_rng(seed).normal(size=len(at_s))
    sound += 0.02 * np.sin(2 * np.pi * 700 * at_s) * (at_s >= 60 * whine[0]) * (at_s < 60 * whine[1])
    soundfile.write(folder / f"mic_{at:%Y%m%d_%H%M%S}.wav", sound, RATE_HZ)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 24 minutes of normal sound; and an audit of 30, in which a whine begins at 14:07 and ends at 14:15."""
    folder = tmp_path_factory.mktemp("states")
    for number in range(4):
        write(folder / "normal", minutes=6, seed=number, at=START - timedelta(days=1, minutes=-6 * number))
    write(folder / "new", minutes=10, seed=10, at=START, whine=(7, 10))
    write(folder / "new", minutes=10, seed=11, at=START + timedelta(minutes=10), whine=(0, 5))
    write(folder / "new", minutes=10, seed=12, at=START + timedelta(minutes=20))
    run = load_normals_run([str(folder / "normal")], str(folder / "model"), overrides=SETTINGS)
    with without_ray():
        train_on_normals(run)
        audit(folder, "out")
    return folder


def audit(folder: Path, out: str, *overrides: str) -> str:
    places = {"model": str(folder / "model"), "recordings": [str(folder / "new")], "out": str(folder / out)}
    return run_audit(load_audit_run(None, **places, overrides=["audit.explain=none", *overrides])).line  # type: ignore[arg-type]


def test_clips_and_minutes_share_the_promised_false_alarms(work: Path) -> None:
    card = json.loads((work / "model" / layout.MODEL).read_text())
    state = card["state"]
    assert (state["share"], state["asked_rate"]) == (0.5, 0.025)
    assert state["against_normals"]["n_minutes"] == 24
    assert state["against_normals"]["false_alarm_rate"] == pytest.approx(1 / 25)
    assert state["against_past"] is None
    scores = parquet.read_table(str(work / "model" / layout.VALIDATION_SCORES))["score"].to_numpy()
    alarm = fit_promised_alarm(scores, false_alarm_rate=0.025, clip_s=10.0)
    assert card["alarm"]["threshold"] == alarm.threshold
    assert card["alarm"]["false_alarm_rate"] == pytest.approx(3 / 145)


def test_a_whine_is_one_change_from_its_first_minute_to_its_last(work: Path) -> None:
    (state,) = faithad.read_table(work / "out", "states").to_dict("records")
    assert state["started_at"] == START + timedelta(minutes=7)
    assert state["ended_at"] == START + timedelta(minutes=15)
    assert [(part["onset_s"], part["offset_s"]) for part in state["parts"]] == [(420.0, 600.0), (0.0, 300.0)]
    assert (state["outcome"], state["reference"], state["n_minutes"]) == ("over", "normals", 8)
    assert state["strength"] > 2
    (bands,) = state["changes"]
    assert bands["low_hz"] < 700 < bands["high_hz"]
    assert bands["high_hz"] - bands["low_hz"] < 400
    assert bands["change_db"] > 3


def test_console_and_page_say_it(work: Path) -> None:
    with without_ray():
        assert f"1 change that lasts: {work / 'out' / layout.STATES}" in audit(work, "out")
    page = (work / "out" / layout.REPORT).read_text()
    assert "dB louder from 2026-05-04 14:07 to 14:15" in page
    assert "What lasts" in page


def test_changes_are_exported_as_labels(work: Path, tmp_path: Path) -> None:
    (state,) = faithad.read_table(work / "out", "states").to_dict("records")
    for format in FORMATS:
        line = export_changes(str(work / "out"), str(tmp_path / format), format=format)
        assert line.startswith("1 change in 2 recordings as ")
        labels = read_labels(str(tmp_path / format), submitted=True)
        assert sorted((label.onset_s, label.offset_s) for label in labels) == [(0.0, 300.0), (420.0, 600.0)]
        assert all(label.low_hz < 700 < label.high_hz for label in labels)  # type: ignore[operator]
        assert {kind_of(label.text) for label in labels} == {"change"}
    (row, _) = csv.DictReader(io.StringIO((tmp_path / "csv" / "labels.csv").read_text(), newline=""))
    assert (row["state_id"], row["outcome"], row["n_minutes"]) == (state["state_id"], "over", "8")
    assert re.fullmatch(r"\d+-\d+ Hz \+\d+\.\d dB", row["changes"])
    with pytest.raises(ConfigError, match="'praat'; allowed: audacity"):
        export_changes(str(work / "out"), str(tmp_path / "praat"), format="praat")


def test_neither_shards_nor_other_recorders_change_it(work: Path, tmp_path: Path) -> None:
    for recording in (work / "new").iterdir():
        (tmp_path / recording.name).symlink_to(recording)
    write(tmp_path, minutes=3, seed=20, at=START + timedelta(minutes=7), whine=(0, 3))
    (tmp_path / "mic_20260504_140700.wav").rename(tmp_path / "other_20260504_140700.wav")
    run = load_audit_run(
        None,
        model=str(work / "model"),
        recordings=[str(tmp_path)],
        out=str(work / "among"),
        overrides=["audit.explain=none", "audit.clips_per_shard=7"],
    )
    with without_ray():
        run_audit(run)
    (alone,) = faithad.read_table(work / "out", "states").to_dict("records")
    among = faithad.read_table(work / "among", "states")
    (same,) = among[among["recorder"].str.contains("mic_")].to_dict("records")
    for column in ("started_at", "ended_at", "duration_s", "distance_db", "strength", "n_minutes"):
        assert same[column] == alone[column], column
    assert len(among) == 2


def test_minutes_that_changed_are_not_taken_for_normal(work: Path) -> None:
    clips = read_normal_clips(str(work / "out"), load_any(str(work / "model")).features)
    assert clips.left_out.num_rows >= 48
    left = clips.normal.select(["recording", "onset_s"]).to_pylist()
    assert not any(row["recording"].endswith("140000.wav") and row["onset_s"] >= 420 for row in left)


@pytest.mark.parametrize(("share", "per_hour", "clips_an_hour", "minutes_an_hour"),
                         [(0.25, 12, 9, 3), (0.0, 12, 12, None), (None, None, 9, 1.5)])  # fmt: skip
def test_a_calibration_divides_the_false_alarms_anew(
    work: Path,
    tmp_path: Path,
    share: float | None,
    per_hour: float | None,
    clips_an_hour: float,
    minutes_an_hour: float | None,
) -> None:
    overrides = [] if share is None else [f"state_share={share}"]
    places = [str(work / "model")], [str(work / "normal")], str(tmp_path / "calibrated")
    with without_ray():
        calibrate_model(load_calibration_run(*places, false_alarms_per_hour=per_hour, overrides=overrides))
    before, after = (load_any(str(folder)) for folder in (work / "model", tmp_path / "calibrated"))
    assert after.alarm is not None
    assert after.alarm.false_alarms_per_hour == pytest.approx(clips_an_hour, abs=360 / 145)
    assert after.alarm.false_alarms_per_hour <= clips_an_hour
    if minutes_an_hour is None:
        assert after.state is None
        return
    assert after.state is not None
    assert before.state is not None
    assert after.state.asked_rate == pytest.approx(minutes_an_hour / 60)
    assert torch.equal(after.state.spectra, before.state.spectra)
    if per_hour is None:
        assert before.alarm is not None
        assert after.alarm.threshold == before.alarm.threshold


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ("0", ""),
        ("null", "state: no alarm for what lasts: it needs 50 minutes or more of one recorder, by the clock; the "
                 "normal recordings make 24 whole minutes"),
    ],
)  # fmt: skip
def test_a_model_without_a_share_or_a_past_has_no_such_alarm(
    work: Path, tmp_path: Path, share: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to, overrides = str(tmp_path / "without"), [*SETTINGS, f"alarm.state_share={share}"]
    with without_ray():
        train_on_normals(load_normals_run([str(work / "normal")], to, overrides=overrides))
    out = capsys.readouterr().out
    assert said in " ".join(out.split())
    assert ("state:" in out) == bool(said)
    model = load_any(to)
    assert model.state is None
    assert model.alarm is not None
    assert model.alarm.false_alarm_rate == pytest.approx(7 / 145)
