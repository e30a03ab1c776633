"""Events for other tools, and sound to listen to: what lands in the folder is what the audit holds."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from faithad import listing, parquet, schemas, storage
from faithad.audit.exports import export_clips, export_events
from faithad.audit.reference import evaluate_audit
from faithad.clips.labels.files import FORMATS
from faithad.errors import ConfigError, RecordingError, StudyError, shown
from faithad.runs import lock
from tests.clips.sound_bytes import chunk, flac_length, fmt, riff
from tests.label_files import read_labels

RATE_HZ = 8_000
FIRST, SECOND, ODD = "mill/MPD_24-05-06_0700_00001.wav", "mill/MPD_24-05-06_0701_00002.wav", "mill/O'B <b>\t=1.flac"


def no_events(audit: Any) -> None:
    location = storage.join(audit.out, "events.parquet")
    parquet.write_table(schemas.EVENTS.empty_table(), location, schema=schemas.EVENTS)


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_events_as_labels(audit: Any, tmp_path: Path, format: str) -> None:
    line = export_events(audit.out, str(tmp_path / "labels"), format=format)
    kind = "a CSV table" if format == "csv" else f"labels for {format}"
    assert line.startswith(f"3 events in 3 recordings as {kind}: ")
    found = read_labels(str(tmp_path / "labels"), submitted=True)
    assert sorted((label.recording, label.onset_s, label.offset_s, label.text.split(",")[0]) for label in found) == [
        (FIRST, 0.0, 10.0, "alarm 1.5x"),
        (FIRST, 50.0, 60.0, "alarm 2.5x"),
        (SECOND, 0.0, 10.0, "alarm 2.5x"),
        (ODD, 10.0, 20.0, "alarm 1.2x"),
    ]
    events = audit.events()
    assert {(label.low_hz, label.high_hz) for label in found} == {
        (round(event["low_hz"], 6), round(event["high_hz"], 6)) if format != "label-studio" else
        (event["low_hz"], event["high_hz"]) for event in events
    }  # fmt: skip


def test_a_table_tells_all_of_an_event(audit: Any, tmp_path: Path) -> None:
    export_events(audit.out, str(tmp_path), format="csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "labels.csv").read_text(), newline="")))
    (odd,) = [row for row in rows if row["recording"] == ODD]
    expected = {
        "onset_s": "10.000000", "offset_s": "20.000000", "model": "mae", "seed": "0", "started_at": "", "score": "2.5",
        "threshold": "2", "strength": "1.25", "n_alarms": "1", "method": "saliency", "percentile": "95",
        "faithfulness": "0.5", "seconds": "11-12",
    }  # fmt: skip
    assert {name: odd[name] for name in expected} == expected
    first, second = [row for row in rows if row["n_alarms"] == "2"]
    assert (first["seconds"], second["seconds"]) == ("55-56", "0-1")
    assert first["event_id"] == second["event_id"]
    assert (first["started_at"], first["ended_at"]) == ("2024-05-06 07:00:50", "2024-05-06 07:01:10")


def test_label_studio_finds_the_sound(audit: Any, tmp_path: Path) -> None:
    export_events(audit.out, str(tmp_path), format="label-studio")
    tasks = json.loads((tmp_path / "label_studio_tasks.json").read_text())
    served = {task["data"]["recording"]: task["data"]["audio"] for task in tasks}
    assert served[FIRST] == "/data/local-files/?d=" + str(audit.places[FIRST]).lstrip("/")
    assert served[ODD].endswith("O%27B%20%3Cb%3E%09%3D1.flac")


@pytest.mark.parametrize(("format", "n_files"), [("audacity", 0), ("raven", 0), ("label-studio", 2), ("csv", 1)])
def test_an_audit_without_events_says_so(audit: Any, tmp_path: Path, format: str, n_files: int) -> None:
    no_events(audit)
    assert "There is no event" in export_events(audit.out, str(tmp_path / "labels"), format=format)
    assert len(list((tmp_path / "labels").glob("*"))) == n_files


def test_what_cannot_be_exported(audit: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'praat'; allowed: audacity, raven, label-studio, csv"):
        export_events(audit.out, str(tmp_path), format="praat")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.txt").write_text("1\t2\tstuck\n")
    with pytest.raises(StudyError, match=r"may be somebody's work: mine\.txt"):
        export_events(audit.out, str(tmp_path / "labels"), format="audacity")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"There is no folder .*/given\. Give the folder that `faithad audit --out` wrote to"),
        (["notes.txt"], r"There is no audit in .*/given\. Give the folder"),
        (["stages/index.json", "manifest.parquet"], r"/given is the root of a study, and not one audit"),
        (
            ["stages/score.begun.json"],
            r"The audit in .*/given is not finished\. Wait for its end",
        ),
        (["audit.yaml", "stages/score.json"], r"The audit in .*/given is not finished"),
        (["audit.yaml", "events.parquet", "stages/score.begun.json"], r"The audit in .*/given is not finished"),
    ],
)
def test_what_is_no_finished_audit(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        storage.write_text(str(tmp_path / "given" / name), "")
    given, to = str(tmp_path / "given"), str(tmp_path / "to")
    for use in (
        lambda: export_events(given, to, format="csv"),
        lambda: export_clips(given, to, margin_s=0),
        lambda: evaluate_audit(given, to),
    ):
        with pytest.raises(StudyError, match=message):
            use()


def test_an_audit_that_somebody_writes_is_read_by_nobody(audit: Any, tmp_path: Path) -> None:
    """A run that goes on over finished tables has not marked them as changing yet, or has them half removed."""
    mark = storage.join(audit.out, "stages", "driver.json")
    storage.write_text(mark, json.dumps(lock._introduction()))
    given, to = audit.out, str(tmp_path / "to")
    uses = (
        lambda: export_events(given, to, format="csv"),
        lambda: export_clips(given, to, margin_s=0),
        lambda: evaluate_audit(given, to),
    )
    for use in uses:
        with pytest.raises(StudyError, match=rf"^Process {os.getpid()} of .* works in {given} since .* Wait until"):
            use()
    storage.write_text(storage.join(given, "stages", "score.begun.json"), "{}")
    for use in uses:
        with pytest.raises(StudyError, match=r"is not finished\. Wait for its end where it runs, or run the same"):
            use()
    assert storage.exists(mark)
    assert not (tmp_path / "to").exists()


def test_one_of_a_kind_is_told_as_one(audit: Any, tmp_path: Path) -> None:
    location = storage.join(audit.out, "events.parquet")
    parquet.write_table(parquet.read_table(location).slice(0, 1), location, schema=schemas.EVENTS)
    to = str(tmp_path / "to")
    line = export_events(audit.out, to, format="audacity")
    assert line == f"1 event in 1 recording as labels for audacity: 1 file in {to}."
    assert export_clips(audit.out, to, margin_s=0) == f"1 WAV file of 1 event in {to}."


# --- sound ------------------------------------------------------------------------------------------------------------


def test_a_wav_around_each_event(audit: Any, tmp_path: Path) -> None:
    """Sample by sample, up to the ends of the recordings; one file per recording where an event goes on."""
    line = export_clips(audit.out, str(tmp_path / "wav"), margin_s=2.5)
    assert line == f"4 WAV files of 3 events in {tmp_path / 'wav'}."
    ids = [event["event_id"][:8] for event in audit.events()]
    expected = {
        f"0001_MPD_24-05-06_0700_00001_0s_{ids[0]}.wav": (FIRST, 0.0, 12.5),
        f"0002_MPD_24-05-06_0700_00001_50s_{ids[1]}_part1.wav": (FIRST, 47.5, 60.0),
        f"0002_MPD_24-05-06_0701_00002_0s_{ids[1]}_part2.wav": (SECOND, 0.0, 12.5),
        f"0003_O_B_b_1_10s_{ids[2]}.wav": (ODD, 7.5, 22.5),
    }
    assert sorted(path.name for path in (tmp_path / "wav").iterdir()) == sorted(expected)
    for name, (recording, onset_s, offset_s) in expected.items():
        path = tmp_path / "wav" / name
        samples, rate_hz = soundfile.read(path, dtype="int16", always_2d=True)
        assert (rate_hz, soundfile.info(path).subtype, soundfile.info(path).format) == (RATE_HZ, "PCM_16", "WAV")
        assert np.array_equal(samples, audit.sounds[recording][int(onset_s * RATE_HZ) : int(offset_s * RATE_HZ)])


@pytest.mark.parametrize(("subtype", "kept"), [("PCM_U8", "PCM_U8"), ("PCM_24", "PCM_24"), ("FLOAT", "PCM_24")])
def test_the_bits_of_a_recording_stay(audit: Any, tmp_path: Path, subtype: str, kept: str) -> None:
    place = audit.places[FIRST]
    sound = np.linspace(-1.0, 0.9, 60 * RATE_HZ)
    if subtype == "FLOAT":
        sound[[100, 200, 300]] = [np.nan, np.inf, 7.0]
    soundfile.write(place, sound, RATE_HZ, subtype=subtype)
    export_clips(audit.out, str(tmp_path / "wav"), margin_s=0)
    (path,) = (tmp_path / "wav").glob("0001*")
    assert soundfile.info(path).subtype == kept
    found, given = soundfile.read(path)[0], soundfile.read(place)[0][: 10 * RATE_HZ]
    exact = np.abs(given) <= 1  # false for what is no number
    assert np.abs(found - given)[exact].max() <= (2.0**-23 if subtype == "FLOAT" else 0.0)
    if subtype == "FLOAT":
        assert found[[100, 200, 300]] == pytest.approx([0.0, 1.0, 1.0], abs=1e-6)


def test_a_recording_with_a_wrong_header_is_copied_as_it_was_heard(audit: Any, tmp_path: Path) -> None:
    """24 bits in the lower of four bytes, and a FLAC file that announces half of its samples."""
    words = np.random.default_rng(0).integers(-(2**23), 2**23, 60 * RATE_HZ)
    header = chunk(b"fmt ", fmt(bits=24, frame_bytes=4, rate_hz=RATE_HZ))
    audit.places[FIRST].write_bytes(riff(header, chunk(b"data", words.astype("<i4").tobytes())))
    odd = audit.places[ODD].read_bytes()
    audit.places[ODD].write_bytes(odd[:21] + flac_length(15 * RATE_HZ) + odd[26:])
    export_clips(audit.out, str(tmp_path / "wav"), margin_s=0)
    (path,) = (tmp_path / "wav").glob("0001*")
    np.testing.assert_array_equal(soundfile.read(path)[0], words[: 10 * RATE_HZ] / 2**23)
    (path,) = (tmp_path / "wav").glob("0003*")
    np.testing.assert_array_equal(
        soundfile.read(path, dtype="int16", always_2d=True)[0], audit.sounds[ODD][10 * RATE_HZ : 20 * RATE_HZ]
    )


def test_long_events_are_copied_block_by_block(audit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faithad.audit.exports._BLOCK_FRAMES", 999)
    export_clips(audit.out, str(tmp_path / "wav"), margin_s=1)
    (path,) = (tmp_path / "wav").glob("0003*")
    samples, _ = soundfile.read(path, dtype="int16")
    assert np.array_equal(samples, audit.sounds[ODD][9 * RATE_HZ : 21 * RATE_HZ])


def test_of_a_long_event_the_strongest_moment_is_cut(audit: Any, tmp_path: Path) -> None:
    """The worst second of each strongest clip begins 4 s after the clip, so the middle lies 4.5 s after it."""
    line = export_clips(audit.out, str(tmp_path / "wav"), margin_s=2.5, longest_s=4.0)
    assert line == (
        f"4 WAV files of 3 events in {tmp_path / 'wav'}. 4 hold no more than the 4 s around the strongest moment of a "
        "longer event: --longest inf writes whole events."
    )
    ids = [event["event_id"][:8] for event in audit.events()]
    expected = {
        f"0001_MPD_24-05-06_0700_00001_0s_{ids[0]}_4s_of_12s.wav": (FIRST, 2.5),
        f"0002_MPD_24-05-06_0700_00001_50s_{ids[1]}_part1_4s_of_12s.wav": (FIRST, 52.5),
        f"0002_MPD_24-05-06_0701_00002_0s_{ids[1]}_part2_4s_of_12s.wav": (SECOND, 2.5),
        f"0003_O_B_b_1_10s_{ids[2]}_4s_of_15s.wav": (ODD, 12.5),
    }
    assert sorted(path.name for path in (tmp_path / "wav").iterdir()) == sorted(expected)
    for name, (recording, onset_s) in expected.items():
        samples, _ = soundfile.read(tmp_path / "wav" / name, dtype="int16", always_2d=True)
        start = int(onset_s * RATE_HZ)
        assert np.array_equal(samples, audit.sounds[recording][start : start + 4 * RATE_HZ])


def test_a_cut_stays_within_the_event_and_its_margin(audit: Any, tmp_path: Path) -> None:
    export_clips(audit.out, str(tmp_path / "wav"), margin_s=1.0, longest_s=11.5)
    (path,) = (tmp_path / "wav").glob("0003*_11.5s_of_12s.wav")
    samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
    assert np.array_equal(samples, audit.sounds[ODD][9 * RATE_HZ : int(20.5 * RATE_HZ)])
    # With the margin, this part is longer, but its recording ends with it.
    (path,) = (tmp_path / "wav").glob("0002*_part1.wav")
    samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
    assert np.array_equal(samples, audit.sounds[FIRST][49 * RATE_HZ :])
    with pytest.raises(ConfigError, match=r"--longest is 0; it must be above 0 s, or inf for whole events"):
        export_clips(audit.out, str(tmp_path / "wav"), margin_s=1.0, longest_s=0)
    whole = str(tmp_path / "whole")
    assert (
        export_clips(audit.out, whole, margin_s=1.0, longest_s=float("inf")) == f"4 WAV files of 3 events in {whole}."
    )


def test_recordings_that_are_gone_are_named_and_the_rest_is_written(audit: Any, tmp_path: Path) -> None:
    audit.places[ODD].unlink()
    audit.places[SECOND].write_bytes(b"no sound")
    line = export_clips(audit.out, str(tmp_path / "wav"), margin_s=0)
    head, *named = line.splitlines()
    assert head == f"2 WAV files of 3 events in {tmp_path / 'wav'}. 2 recordings are left out:"
    assert any(shown(ODD) in text and "does not exist" in text for text in named)
    assert any(SECOND in text and "it holds text" in text for text in named)
    assert len(list((tmp_path / "wav").iterdir())) == 2


def test_a_recording_that_has_become_shorter_is_named(audit: Any, tmp_path: Path) -> None:
    soundfile.write(audit.places[ODD], np.zeros(RATE_HZ), RATE_HZ)
    line = export_clips(audit.out, str(tmp_path / "wav"), margin_s=0)
    assert "ends before 10 s: the file has changed since the audit" in line


def test_without_any_recording_it_fails(audit: Any, tmp_path: Path) -> None:
    for place in audit.places.values():
        place.unlink()
    with pytest.raises(RecordingError, match="Not one of the recordings with events can be read"):
        export_clips(audit.out, str(tmp_path / "wav"), margin_s=0)
    no_events(audit)
    assert "nothing to cut" in export_clips(audit.out, str(tmp_path / "wav"), margin_s=0)
    with pytest.raises(ConfigError, match="--margin is -1"):
        export_clips(audit.out, str(tmp_path / "wav"), margin_s=-1)


def test_onto_an_object_store(audit: Any, object_store: str) -> None:
    export_events(audit.out, f"{object_store}/labels", format="audacity")
    assert len(read_labels(f"{object_store}/labels")) == 4
    export_clips(audit.out, f"{object_store}/wav", margin_s=0)
    files = listing.list_files(f"{object_store}/wav", suffixes=[".wav"])
    samples, _ = soundfile.read(io.BytesIO(storage.read_bytes(files[0][1])), dtype="int16", always_2d=True)
    assert len(files) == 4
    assert np.array_equal(samples, audit.sounds[FIRST][: 10 * RATE_HZ])
