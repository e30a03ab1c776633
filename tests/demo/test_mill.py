"""The demo mill: its files, its annotation table, and what each disturbance does to the sound."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from faithad.clips.annotations import read_annotations
from faithad.clips.recording_names import read_name
from faithad.demo.machine import machine_of
from faithad.demo.mill import SyntheticMill, plan_recordings, recordings_in, synthesize, write_recording
from faithad.demo.motion import motion
from faithad.demo.sounds import add_squeal, planer_sound
from faithad.demo.timeline import (
    ANOMALY_TYPES,
    BROKEN,
    STUCK,
    UNEVEN,
    Disturbance,
    Timeline,
    disturb,
    timeline,
)
from faithad.errors import ConfigError, StudyError

START = datetime(2019, 12, 4, 23, 57)
RATE_HZ = 20_000


def _make(out: Path, **changes: object) -> SyntheticMill:
    settings = {"train_recordings": 2, "test_recordings": 4, "seed": 3, "start": START, "recording_s": 20.0}
    return synthesize(out, **{**settings, **changes})  # type: ignore[arg-type]


def _bytes(mill: SyntheticMill) -> dict[str, bytes]:
    folder = mill.annotations.parent
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> SyntheticMill:
    return _make(tmp_path_factory.mktemp("mill"))


# Files ---------------------------------------------------------------------------------------------------------------


def test_recordings_are_mono_16_bit_20_khz_of_the_asked_length(mill: SyntheticMill) -> None:
    recordings = [*mill.train.glob("*"), *mill.test.glob("*")]
    assert len(recordings) == 6
    for path in recordings:
        header = soundfile.info(path)
        assert (header.format, header.subtype) == ("WAV", "PCM_16")
        assert (header.samplerate, header.channels, header.frames) == (RATE_HZ, 1, 20 * RATE_HZ)


def test_a_full_recording_is_six_clips_long_and_its_level_sane() -> None:
    sound = planer_sound(timeline(0, 0, duration_s=60.0, hours=0.0))
    assert sound.shape == (60 * RATE_HZ,)
    assert sound.dtype == np.float32
    assert 0.01 < sound.std() < 0.1
    assert abs(sound.mean()) < 0.001


def test_names_hold_consecutive_numbers_and_the_wall_clock(mill: SyntheticMill) -> None:
    names = [path.name for folder in (mill.train, mill.test) for path in sorted(folder.glob("*.wav"))]
    assert names[0] == "MPD_19-12-04_2357_00001.wav"
    assert names[-1] == "MPD_19-12-04_2358_00006.wav"
    minutes = plan_recordings(Path(), train_recordings=5, test_recordings=0, seed=0, start=START)
    times = [read_name(planned.path.name).recorded_at for planned in minutes]
    assert times[0] == START
    assert all(
        late is not None and early is not None and late - early == timedelta(minutes=1)
        for early, late in pairwise(times)
    )
    assert times[-1] == datetime(2019, 12, 5, 0, 1)


def test_no_recording_clips_even_where_all_is_at_its_worst() -> None:
    worst = tuple(Disturbance(BROKEN, 1.1 + 3 * k, 3.9 + 3 * k, 1.0) for k in range(3))
    loud = replace(timeline(1, 0, duration_s=10.0, hours=7.9, disturbances=worst), thumps=((2.0, 5.0), (5.0, 9.0)))
    assert np.abs(planer_sound(loud)).max() < 0.98


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(mill: SyntheticMill, tmp_path: Path) -> None:
    again = _make(tmp_path, workers=2)
    assert _bytes(again) == _bytes(mill)
    assert again.n_events == mill.n_events > 0


def test_another_seed_is_another_mill(mill: SyntheticMill, tmp_path: Path) -> None:
    other = _make(tmp_path, seed=4, train_recordings=1, test_recordings=0)
    assert (other.train / "MPD_19-12-04_2357_00001.wav").read_bytes() != _bytes(mill)[
        "train/MPD_19-12-04_2357_00001.wav"
    ]


def test_a_recording_does_not_depend_on_those_beside_it(mill: SyntheticMill, tmp_path: Path) -> None:
    planned = plan_recordings(tmp_path, train_recordings=2, test_recordings=4, seed=3, start=START, recording_s=20.0)
    write_recording(planned[4])
    assert planned[4].path.read_bytes() == (mill.test / planned[4].path.name).read_bytes()


def test_what_is_there_stays_and_what_is_damaged_or_missing_is_made_again(mill: SyntheticMill, tmp_path: Path) -> None:
    first = _make(tmp_path)
    whole = _bytes(first)
    kept, cut, gone, foreign = sorted(path for path in whole if path.endswith(".wav"))[:4]
    (tmp_path / cut).write_bytes(whole[cut][: len(whole[cut]) // 2])
    (tmp_path / gone).unlink()
    (tmp_path / foreign).write_bytes(b"not a recording")
    os.utime(tmp_path / kept, (1, 1))
    calls: list[tuple[int, int]] = []
    _make(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert _bytes(first) == whole == _bytes(mill)
    assert (tmp_path / kept).stat().st_mtime == 1
    assert calls == [(done, 6) for done in range(1, 7)]


def test_other_settings_replace_the_recording(tmp_path: Path) -> None:
    one = _make(tmp_path, test_recordings=0, train_recordings=1)
    before = _bytes(one)
    _make(tmp_path, test_recordings=0, train_recordings=1, seed=9)
    assert _bytes(one)["train/MPD_19-12-04_2357_00001.wav"] != before["train/MPD_19-12-04_2357_00001.wav"]


@pytest.mark.parametrize(
    "stranger", ["annotations.csv", "train/mine.wav", "sound.flac", "a/b.txt", ".git/config", "mill.json", "study.yaml"]
)
def test_a_folder_that_holds_anything_else_is_refused_before_anything_is_written(tmp_path: Path, stranger: str) -> None:
    (tmp_path / stranger).parent.mkdir(exist_ok=True)
    (tmp_path / stranger).write_bytes(b'{"somebody": "else"}')
    with pytest.raises(StudyError, match=re.escape(stranger.split("/")[0])):
        _make(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / stranger]
    assert (tmp_path / stranger).read_bytes() == b'{"somebody": "else"}'


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mill").write_text("a file")
    with pytest.raises(StudyError, match="no folder"):
        _make(tmp_path / "mill")


@pytest.mark.parametrize("stranger", ["train/mine.wav", "test/deep/mine.FLAC"])
def test_recordings_that_somebody_put_into_a_mill_are_refused(tmp_path: Path, stranger: str) -> None:
    _make(tmp_path, train_recordings=1, test_recordings=0)
    (tmp_path / stranger).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stranger).write_bytes(b"somebody's work")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(StudyError, match=r"mine\."):
        _make(tmp_path, train_recordings=1, test_recordings=0, seed=8)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_the_mark_is_written_first_and_says_what_the_mill_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(planned: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("faithad.demo.mill.write_recording", stop)
    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path / "mill")
    assert [path.name for path in (tmp_path / "mill").iterdir()] == ["mill.json"]
    mark = json.loads((tmp_path / "mill" / "mill.json").read_text())
    assert (mark["seed"], mark["train_recordings"], mark["start"]) == (3, 2, "2019-12-04T23:57:00")
    # A process that was killed while it wrote the mark leaves such a file: the mill can still be made.
    (tmp_path / "mill" / "mill.json").rename(tmp_path / "mill" / ".mill.json.0123")
    monkeypatch.undo()
    assert _make(tmp_path / "mill").annotations.exists()


def test_other_files_in_a_mill_stay(tmp_path: Path) -> None:
    _make(tmp_path, train_recordings=1, test_recordings=0)
    (tmp_path / "study.yaml").write_text("name: mine")
    _make(tmp_path, train_recordings=2, test_recordings=0)
    assert (tmp_path / "study.yaml").read_text() == "name: mine"


def test_all_impossible_settings_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"test_recordings is -1.*seed is -2.*recording_s is 5.*disturbed_fraction is 0\.1"
    ):
        _make(tmp_path, test_recordings=-1, seed=-2, recording_s=5.0, disturbed_fraction=0.1)
    with pytest.raises(ConfigError, match="workers is 0"):
        _make(tmp_path, workers=0)


def test_two_days_are_2880_recordings() -> None:
    assert recordings_in(48) == (1920, 960)
    assert recordings_in(0.1) == (4, 2)


@pytest.mark.parametrize("hours", [0.0, 0.02, 0.05])
def test_even_a_moment_has_two_recordings_to_train_and_two_to_test(hours: float) -> None:
    assert recordings_in(hours) == (2, 2)


@pytest.mark.parametrize("hours", [math.nan, math.inf, -1.0])
def test_hours_that_are_none_are_refused(hours: float) -> None:
    with pytest.raises(ConfigError, match="hours is "):
        recordings_in(hours)


# Annotations ---------------------------------------------------------------------------------------------------------


def test_the_table_reads_back_and_names_only_test_recordings(mill: SyntheticMill) -> None:
    rows = read_annotations(str(mill.annotations))
    assert {row.recording for row in rows} <= {path.name for path in mill.test.iterdir()}
    assert {row.anomaly_type for row in rows} == set(ANOMALY_TYPES)
    for row in rows:
        assert row.offset_s - row.onset_s == 10.0
        assert row.offset_s <= 20.0
        for onset_s, offset_s in row.intervals:
            assert 0 <= onset_s < offset_s <= 10
            assert onset_s == int(onset_s)
            assert offset_s == int(offset_s)


@pytest.mark.parametrize("seed", range(6))
def test_a_small_demo_has_every_type_audible_and_inaudible_clips_and_mostly_normal_ones(seed: int) -> None:
    planned = plan_recordings(Path(), train_recordings=24, test_recordings=12, seed=seed, start=START)
    assert not any(recording.timeline.disturbances for recording in planned[:24])
    disturbed = [recording.timeline.disturbances for recording in planned[24:] if recording.timeline.disturbances]
    assert len(disturbed) == 5
    everything = [disturbance for disturbances in disturbed for disturbance in disturbances]
    assert {disturbance.anomaly_type for disturbance in everything if disturbance.audible} == set(ANOMALY_TYPES)
    assert any(not disturbance.audible for disturbance in everything)


def test_more_recordings_leave_the_earlier_ones_as_they_are() -> None:
    short, long = (
        plan_recordings(Path(), train_recordings=2, test_recordings=n, seed=1, start=START) for n in (30, 60)
    )
    assert long[: len(short)] == short


@pytest.mark.parametrize(("asked", "fraction"), [({}, 0.4), ({"disturbed_fraction": 0.75}, 0.75)])
def test_two_in_five_test_recordings_are_disturbed_or_as_many_as_asked_for(
    asked: dict[str, float], fraction: float
) -> None:
    planned = plan_recordings(
        Path(), train_recordings=0, test_recordings=600, seed=2, start=START, recording_s=10.0, **asked
    )
    n_disturbed = sum(bool(recording.timeline.disturbances) for recording in planned)
    assert n_disturbed == pytest.approx(600 * fraction, rel=0.05)


@pytest.mark.parametrize("anomaly_type", ANOMALY_TYPES)
def test_disturbances_are_disjoint_in_whole_seconds_and_meet_a_board(anomaly_type: str) -> None:
    for index in range(40):
        disturbances = disturb(5, index, anomaly_type, duration_s=60.0)
        assert any(disturbance.audible for disturbance in disturbances)
        marks = [disturbance.marked_s for disturbance in disturbances]
        assert marks[0][0] >= 0
        assert marks[-1][1] <= 60
        assert all(early[1] < late[0] for early, late in pairwise(marks))
        boards = timeline(5, index, duration_s=60.0, hours=0.0, disturbances=disturbances).boards
        assert all(early.offset_s < late.onset_s for early, late in pairwise(boards))
        for disturbance in disturbances:
            assert any(b.onset_s < disturbance.onset_s and disturbance.offset_s < b.offset_s for b in boards)


# Sound ---------------------------------------------------------------------------------------------------------------

ONSET_S, OFFSET_S = 4.1, 7.9


@cache
def _beside_its_twin(anomaly_type: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A recording of 12 s with one strong disturbance, and the same one with a disturbance of no strength."""
    disturbed = timeline(
        seed, 1, duration_s=12.0, hours=0.1, disturbances=(Disturbance(anomaly_type, ONSET_S, OFFSET_S, 0.9),)
    )
    harmless = replace(disturbed, disturbances=(replace(disturbed.disturbances[0], strength=0.0),))
    return planer_sound(disturbed), planer_sound(harmless)


def _second(sound: np.ndarray, at_s: float, length_s: float = 1.0) -> np.ndarray:
    return sound[round(at_s * RATE_HZ) : round((at_s + length_s) * RATE_HZ)]


def _power(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and power, at a resolution of 1 Hz, of two seconds well inside the disturbance."""
    piece = _second(sound, 5.5, 2.0)
    power = np.abs(np.fft.rfft(piece * np.hanning(piece.size))) ** 2
    return np.fft.rfftfreq(piece.size, 1 / RATE_HZ), power


def _band_db(sound: np.ndarray, low_hz: float, high_hz: float) -> float:
    hz, power = _power(sound)
    return float(10 * np.log10(power[(hz >= low_hz) & (hz < high_hz)].sum()))


def _peak_hz(sound: np.ndarray, low_hz: float, high_hz: float) -> float:
    hz, power = _power(sound)
    inside = (hz >= low_hz) & (hz < high_hz)
    return float(hz[inside][np.argmax(power[inside])])


@pytest.mark.parametrize("anomaly_type", ANOMALY_TYPES)
def test_a_disturbance_changes_its_own_seconds_and_nothing_before(anomaly_type: str) -> None:
    disturbed, harmless = _beside_its_twin(anomaly_type)
    change = np.abs(disturbed - harmless)
    np.testing.assert_allclose(_second(disturbed, 0.0, ONSET_S - 0.1), _second(harmless, 0.0, ONSET_S - 0.1), atol=1e-6)
    assert change[round(ONSET_S * RATE_HZ) : round(OFFSET_S * RATE_HZ)].mean() > 0.01


def test_a_stuck_board_makes_the_pitch_sag_and_squeals() -> None:
    disturbed, harmless = _beside_its_twin(STUCK)
    blade_pass_hz = 8 * machine_of(0).head_hz[0]
    before_hz, after_hz = (_peak_hz(s, 0.93 * blade_pass_hz, 1.01 * blade_pass_hz) for s in (harmless, disturbed))
    assert 0.02 < 1 - after_hz / before_hz < 0.07


def test_a_stuck_board_squeals_at_a_gliding_pitch_with_overtones() -> None:
    silence = np.zeros(8 * RATE_HZ, dtype=np.float32)
    add_squeal(silence, Disturbance(STUCK, 3.0, 7.0, 1.0), np.random.default_rng(0))
    assert not silence[: 3 * RATE_HZ].any()
    assert not silence[7 * RATE_HZ :].any()
    pieces = silence[3 * RATE_HZ : 7 * RATE_HZ].reshape(40, -1)
    pitch_hz = np.abs(np.fft.rfft(pieces * np.hanning(2000), axis=1)).argmax(axis=1) * 10.0
    assert 1400 < np.median(pitch_hz) < 3600
    assert np.ptp(np.percentile(pitch_hz, [10, 90])) > 40
    power = np.abs(np.fft.rfft(silence)) ** 2
    hz = np.fft.rfftfreq(silence.size, 1 / RATE_HZ)
    overtone = power[(hz > 1.8 * np.median(pitch_hz)) & (hz < 2.2 * np.median(pitch_hz))].sum()
    assert 0.05 < overtone / power.sum() < 0.4


def test_a_stuck_board_stops_the_feed() -> None:
    held = timeline(0, 1, duration_s=12.0, hours=0.1, disturbances=(Disturbance(STUCK, ONSET_S, OFFSET_S, 0.9),))
    moved = motion(held)
    inside = (moved.time_s > 5.5) & (moved.time_s < 7)
    assert moved.feed[inside].max() < 0.1
    assert moved.feed[moved.time_s < 4].min() > 0.8


def test_an_uneven_board_raises_the_level_and_the_side_bands() -> None:
    disturbed, harmless = _beside_its_twin(UNEVEN)
    assert _band_db(disturbed, 1000, 8000) - _band_db(harmless, 1000, 8000) > 3
    turn_hz = machine_of(0).head_hz[0]
    for order in (9, 15, 17):
        # More load slows the head by 1 or 2 %, so the line is looked for a little below its ordinary place.
        low_hz, high_hz = 0.96 * order * turn_hz, 1.005 * order * turn_hz
        assert _band_db(disturbed, low_hz, high_hz) - _band_db(harmless, low_hz, high_hz) > 6


def test_a_broken_board_cracks_then_chatters_and_bends_the_lines() -> None:
    disturbed, harmless = _beside_its_twin(BROKEN)
    crack, twin = (np.abs(_second(sound, ONSET_S - 0.02, 0.15)).max() for sound in (disturbed, harmless))
    assert crack > 1.5 * twin

    def burstiness(sound: np.ndarray) -> float:
        levels = np.diff(_second(sound, 4.6, 3.0), prepend=0.0).reshape(-1, 200)[1:].std(axis=1)
        return float(np.percentile(levels, 95) / np.median(levels))

    assert burstiness(disturbed) > 1.3 * burstiness(harmless)
    held = timeline(0, 1, duration_s=12.0, hours=0.1, disturbances=(Disturbance(BROKEN, ONSET_S, OFFSET_S, 0.9),))
    moved = motion(held)
    inside, outside = (moved.time_s > 4.5) & (moved.time_s < 7), moved.time_s < 4
    assert moved.spindle[0, inside].std() > 5 * moved.spindle[0, outside].std()


@pytest.mark.parametrize("anomaly_type", ANOMALY_TYPES)
def test_faint_disturbances_change_less_than_audible_ones(anomaly_type: str) -> None:
    disturbed, harmless = _beside_its_twin(anomaly_type)
    held = timeline(0, 1, duration_s=12.0, hours=0.1, disturbances=(Disturbance(anomaly_type, ONSET_S, OFFSET_S, 0.1),))
    faint = planer_sound(held)
    assert not held.disturbances[0].audible
    hz, twin = _power(harmless)
    band = (hz > 200) & (hz < 8000)

    def change_db(sound: np.ndarray) -> float:
        smooth = np.ones(100) / 100
        ratio = np.convolve(_power(sound)[1][band], smooth, "valid") / np.convolve(twin[band], smooth, "valid")
        return float(np.abs(10 * np.log10(ratio)).mean())

    assert change_db(faint) < 0.5 * change_db(disturbed)


def test_boards_are_louder_than_the_gaps_between_them() -> None:
    quiet: Timeline = timeline(0, 0, duration_s=30.0, hours=0.0)
    moved = motion(quiet)
    sound = planer_sound(quiet)
    level = np.diff(sound, append=sound[-1]).reshape(-1, 250).std(axis=1)
    cutting, idling = moved.load.min(axis=0)[:-1] > 0.5, moved.load.max(axis=0)[:-1] < 0.01
    assert idling.sum() > 20
    assert level[cutting].mean() > 1.5 * level[idling].mean()


def test_normal_operation_varies_and_knives_wear() -> None:
    planned = plan_recordings(Path(), train_recordings=120, test_recordings=0, seed=0, start=START)
    kinds = {(len(p.timeline.spindle) > 1, len(p.timeline.feed) > 1, bool(p.timeline.boards)) for p in planned}
    assert {(False, False, True), (False, True, True), (False, False, False), (True, True, True)} <= kinds
    assert {p.timeline.size for p in planned} == {"2x3", "2x4", "2x6"}
    fresh, worn = (planer_sound(timeline(0, 0, duration_s=12.0, hours=hours)) for hours in (0.0, 7.9))
    assert _band_db(worn, 4000, 9000) > _band_db(fresh, 4000, 9000) + 0.5
