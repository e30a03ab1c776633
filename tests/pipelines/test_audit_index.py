"""The recordings of an audit in clips, and its alarm, without Ray: what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from faithad import parquet, schemas
from faithad.audit.raised_alarm import raised_alarm
from faithad.clips.inputs import find_recordings
from faithad.clips.ledger import ledger_row, ledger_table
from faithad.clips.manifest import Recording
from faithad.clips.recordings import AudioHeader
from faithad.config.audit import AuditRun
from faithad.config.data import Data
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.pipelines import audit_index, cutting, index
from faithad.runs import layout
from faithad.settings import FeatureSettings


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([20.0, 10.0], "index: 3 clips of 2 recordings"),
        (
            [10.0, None],
            "index: 1 clip of 1 recording, 1 recording or part of one skipped or failed (1 recording of unknown "
            "length)",
        ),
        (
            [25.0, None, 3.0],
            "index: 2 clips of 1 recording, 3 recordings or parts of them skipped or failed (8 s and 1 recording of "
            "unknown length)",
        ),
        ([-20.0, 10.0], "index: 3 clips of 2 recordings, 1 header corrected"),
        (
            [-20.0, -10.0, None],
            "index: 3 clips of 2 recordings, 1 recording or part of one skipped or failed (1 recording of unknown "
            "length), 2 headers corrected",
        ),
    ],
)
def test_what_is_said_of_the_clips(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: list[float | None],
    said: str,
) -> None:
    """A negative length: the header was corrected."""
    headers = [
        AudioHeader(abs(s), 8_000, 1, int(8_000 * abs(s)), remark="goes on" if s < 0 else None)
        if s
        else "cannot be decoded"
        for s in seconds
    ]
    monkeypatch.setattr(cutting, "read_headers", lambda *_, **__: iter(headers))
    (tmp_path / "mill").mkdir()
    run = AuditRun(model="m", recordings=(str(tmp_path / "mill"),), out=str(tmp_path / "out"), remainder="drop")
    recordings = [Recording(f"mill/{k}.wav", f"{tmp_path}/mill/{k}.wav", "test") for k in range(len(seconds))]
    audit_index.index_recordings(run, recordings, {}, clip_s=10.0, sample_rate_hz=8_000, clips_per_shard=64)
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_a_recording_whose_end_is_missing_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened: only what has no clip at all may be readable now."""
    ledger = [
        ledger_row("mill/a.wav", "failed", "is truncated", onset_s=20.0, duration_s=5.0),
        ledger_row("mill/b.wav", "failed", "cannot be read"),
    ]
    parquet.write_table(ledger_table(ledger), str(tmp_path / layout.INDEX_LEDGER), schema=schemas.LEDGER)
    opened = AudioHeader(1.0, 8_000, 1, 8_000)
    monkeypatch.setattr(audit_index, "read_headers", lambda some, **_: iter(opened for _ in some))
    run = AuditRun(model="m", recordings=("mill",), out=str(tmp_path))
    recordings = [Recording(f"mill/{name}.wav", f"/mill/{name}.wav", "test") for name in "abc"]
    assert audit_index.opened_since(run, recordings) == ["mill/b.wav"]


def labelled_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording that can be opened and one that cannot, with labels of both; and one to train on."""
    for name in ("train/20240505_070000.wav", "test/20240506_070000.wav", "test/20240506_080000.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()

    def read_headers(recordings: list[Recording], **_: object) -> Iterator[AudioHeader | str]:
        return iter(["is truncated" if "08" in r.path else AudioHeader(20.0, 8_000, 1, 160_000) for r in recordings])

    monkeypatch.setattr(cutting, "read_headers", read_headers)
    labels = folder / "labels"
    labels.mkdir()
    head = "Selection\tBegin Time (s)\tEnd Time (s)\tSpecies\tConfidence\n"
    (labels / "20240506_070000.txt").write_text(f"{head}1\t1\t3\tknock\t0.9\n2\t5\t8\tnocall\t1.0\n")
    (labels / "20240506_080000.txt").write_text("".join(f"{k}.0\t{k}.5\tknock\n" for k in range(10)))
    return labels


SAID_OF_LABELS = [
    "annotations: 1 label 'nocall' left out: nothing is heard there.",
    "annotations: Columns that are not read: 'Confidence'.",
    "annotations: 10 of 11 intervals cannot be heard, since their recordings gave no clip there: 20240506_080000",
]


def test_annotations_that_nobody_can_hear_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = labelled_folders(tmp_path, monkeypatch)
    run = AuditRun(model="m", recordings=(str(tmp_path / "test"),), out=str(tmp_path / "out"), annotations=str(labels))
    recordings = find_recordings([("test", str(tmp_path / "test"))])
    manifest = audit_index.index_recordings(run, recordings, {}, clip_s=10.0, sample_rate_hz=8_000, clips_per_shard=64)
    *said, index_line = capsys.readouterr().out.splitlines()
    assert said == SAID_OF_LABELS
    assert (
        index_line
        == "index: 2 clips of 1 recording, 1 recording or part of one skipped or failed (1 recording of unknown length)"
    )
    assert manifest["anomaly_type"].to_pylist() == ["knock", None]


def test_annotations_of_a_study_that_nobody_can_hear_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = labelled_folders(tmp_path, monkeypatch)
    data = Data(root=str(tmp_path), train=("train",), test=("test",), annotations=str(labels))
    rows = index.find_clips(data, marks=str(tmp_path / "marks")).clips
    assert capsys.readouterr().out.splitlines() == SAID_OF_LABELS
    assert [row.label for row in rows if row.split == "test"] == [1, 0]


@pytest.mark.parametrize(
    ("n_validation", "said"),
    [
        (12, "27.7 false alarms per hour are to be expected (7.69 % of normal clips), from 0.76 to 95 at 95 %\n"),
        (200, "19.7 false alarms per hour are to be expected (5.47 % of normal clips), from 10 to 32 at 95 %\n"),
    ],
)
def test_how_sure_a_false_alarm_rate_is_depends_on_the_number_of_clips(
    capsys: pytest.CaptureFixture[str], n_validation: int, said: str
) -> None:
    alarm = AlarmThreshold("quantile", "mean", 0.05, 1.0, 18.0, n_validation)
    run = AuditRun(model="model", recordings=("week",), out="out")
    trained = TrainedModel(nn.Identity(), Normalization.identity(4), FeatureSettings(), "ae", 0, alarm, 1, "hash")
    assert raised_alarm(run, trained) is alarm
    assert capsys.readouterr().out.endswith(said)
    assert raised_alarm(run, trained) is alarm
    alarm = replace(alarm, rule="conformal", false_alarm_rate=1 / (n_validation + 1), asked_per_hour=0.5)
    trained.alarm = alarm
    assert raised_alarm(run, trained) is alarm
    assert "alarm: 0.5 an hour were asked for, which needs 719 normal clips; " in capsys.readouterr().out
