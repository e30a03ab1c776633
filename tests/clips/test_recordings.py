"""Decoding: every kind of file that a recorder writes, and every way in which one can be broken."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faithad.clips.recordings import (
    AudioHeader,
    Remainder,
    Window,
    cut_windows,
    probe_recording,
    read_clip,
)
from faithad.errors import RecordingError

RATE_HZ = 20_000

# (suffix, soundfile subtype, largest error of a sample)
SUBTYPES = [
    (".wav", "PCM_U8", 1 / 128),
    (".wav", "PCM_16", 2**-15),
    (".wav", "PCM_24", 2**-23),
    (".wav", "PCM_32", 2**-23),
    (".wav", "FLOAT", 2**-23),
    (".wav", "DOUBLE", 2**-23),
    (".flac", "PCM_S8", 1 / 128),
    (".flac", "PCM_16", 2**-15),
    (".flac", "PCM_24", 2**-23),
]


def tone(rate_hz: int, seconds: float, *, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)


def write(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str | None = None) -> str:
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return str(path)


def read(uri: str, onset_s: float = 0.0, duration_s: float = 1.0, clip_s: float = 1.0) -> np.ndarray:
    return read_clip(uri, onset_s=onset_s, duration_s=duration_s, clip_s=clip_s, sample_rate_hz=RATE_HZ)


@pytest.mark.parametrize(("suffix", "subtype", "tolerance"), SUBTYPES)
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_every_encoding_gives_the_same_clip(
    tmp_path: Path, suffix: str, subtype: str, tolerance: float, channels: int
) -> None:
    wave = tone(RATE_HZ, 2.5)
    uri = write(tmp_path / f"a{suffix}", np.stack([wave] * channels, axis=1), subtype=subtype)
    assert probe_recording(uri) == AudioHeader(2.5, RATE_HZ, channels, 50_000)
    clip = read(uri, onset_s=1.0)
    assert clip.dtype == np.float32
    assert clip.shape == (RATE_HZ,)
    np.testing.assert_allclose(clip, wave[RATE_HZ : 2 * RATE_HZ], atol=tolerance)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 11_025, 17_067])
def test_every_sample_rate_is_resampled_in_place(tmp_path: Path, rate_hz: int) -> None:
    uri = write(tmp_path / "a.wav", tone(rate_hz, 3.0), rate_hz, subtype="FLOAT")
    clip = read(uri, onset_s=1.0)
    assert clip.shape == (RATE_HZ,)
    inner = slice(200, -200)  # the filter sees silence beyond the window's edges
    np.testing.assert_allclose(clip[inner], tone(RATE_HZ, 2.0)[RATE_HZ:][inner], atol=5e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(RATE_HZ, 1.0), tone(RATE_HZ, 1.0, hz=1000.0)
    uri = write(tmp_path / "a.wav", np.stack([left, right, 0 * left], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read(uri), (left + right) / 3, atol=1e-6)


def test_a_window_is_read_by_offset(tmp_path: Path) -> None:
    """Thirty minutes of 8-bit sound: only the window's bytes are touched, so the late one costs no more."""
    ramp = np.repeat(np.arange(1800) % 100 / 128, 1000)
    uri = write(tmp_path / "long.wav", ramp, 1000, subtype="PCM_U8")
    for onset_s in (0, 1799):
        clip = read_clip(uri, onset_s=onset_s, duration_s=1, clip_s=1, sample_rate_hz=1000)
        np.testing.assert_allclose(clip, onset_s % 100 / 128, atol=1e-3)


def test_a_short_window_is_read_as_it_is(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.wav", tone(44_100, 1.3), 44_100)
    clip = read(uri, onset_s=1.0, duration_s=0.3, clip_s=1.0)
    assert clip.shape == (6000,)
    inner = slice(200, -200)  # the filter sees silence beyond the window's edges
    np.testing.assert_allclose(clip[inner], tone(RATE_HZ, 1.3)[RATE_HZ:][inner], atol=5e-3)


def test_digital_silence_is_sound(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.wav", np.zeros(RATE_HZ))
    assert probe_recording(uri).n_samples == RATE_HZ
    assert not read(uri).any()


def test_real_recordings(shared_data: Path) -> None:
    for path in sorted((shared_data / "real_sounds").rglob("*.flac")):
        header = probe_recording(str(path))
        assert header.sample_rate_hz == 44_100
        assert 45 <= header.duration_s <= 75
        windows, dropped_s = cut_windows(header.duration_s, clip_s=10.0, remainder="overlap")
        assert dropped_s == 0
        for onset_s, duration_s in windows:
            clip = read(str(path), onset_s, duration_s, clip_s=10.0)
            assert clip.shape == (200_000,)
            assert np.abs(clip[-RATE_HZ:]).max() > 1e-3


# --- broken files -----------------------------------------------------------------------------------------------------


def read_last_second(uri: str) -> np.ndarray:
    return read(uri, onset_s=probe_recording(uri).duration_s - 1)


def reason_of(path: Path) -> str:
    """Why a file is refused or not heard to its end, by its header or when its last second is read."""
    try:
        reason = probe_recording(str(path)).unheard
        if reason is None:
            read_last_second(str(path))
    except RecordingError as error:
        reason = str(error)
    assert reason is not None
    assert str(path) in reason
    return reason


def test_no_such_file(tmp_path: Path) -> None:
    assert "does not exist" in reason_of(tmp_path / "none.wav")


def test_a_folder_named_wav(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    assert "cannot be read" in reason_of(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "is empty (0 bytes)" in reason_of(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"a", "it holds text"),
        (b"not sound at all\n" * 99, "it holds text"),
        (bytes(5000), "it holds zeros"),
        (b"\1\2\3" * 9, "something else"),
        (b"PK\3\4" + bytes(99), "a ZIP archive"),
        (b"\0\0\0\x20ftypM4A " + bytes(99), "MP4 or M4A sound"),
        (b"RIFF\0\0\0\0AVI LIST", "a RIFF file, but no WAV"),
        (b"RIFF\0\0\0\0WAVE", "('fmt ') is missing"),
        (b"fLaC", "its FLAC header is damaged"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_another_kind_of_file(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    reason = reason_of(tmp_path / name)
    assert "no audio file" in reason
    assert kind in reason


def test_header_without_samples(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros(0))
    assert "holds no samples" in reason_of(tmp_path / "a.wav")


def patched_wav(path: Path, sizes: int, samples: np.ndarray | None = None) -> Path:
    write(path, tone(RATE_HZ, 2.0) if samples is None else samples)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", sizes)
    path.write_bytes(content)
    return path


def test_header_that_was_never_finished(tmp_path: Path) -> None:
    assert "never finished its header" in reason_of(patched_wav(tmp_path / "a.wav", 20_000))


@pytest.mark.parametrize("sizes", [0, 0xFFFFFFFF])
def test_wav_written_into_a_pipe_is_read_to_its_end(tmp_path: Path, sizes: int) -> None:
    uri = str(patched_wav(tmp_path / "a.wav", sizes))
    assert probe_recording(uri).duration_s == 2.0
    assert read(uri, onset_s=1.0).any()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("file_format", ["WAV", "RF64", "WAVEX"])
def test_truncated_wav(tmp_path: Path, file_format: str, kept: float) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE_HZ, 2.0), RATE_HZ, format=file_format)
    assert probe_recording(str(path)).duration_s == 2.0
    content = path.read_bytes()
    start = content.index(b"data") + 8
    path.write_bytes(content[: start + round(kept * (len(content) - start))])
    reason = reason_of(path)
    assert "is truncated: its header announces 80000 bytes" in reason
    assert f"({kept:.0%})" in reason


def test_big_endian_wav(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE_HZ, 2.0), RATE_HZ, format="WAV", endian="BIG")
    assert path.read_bytes()[:4] == b"RIFX"
    assert probe_recording(str(path)).n_samples == 2 * RATE_HZ
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated" in reason_of(path)


def test_odd_chunks_before_the_sound(tmp_path: Path) -> None:
    """Recorders put notes of any length before the data; odd lengths are followed by a byte of padding."""
    write(tmp_path / "a.wav", tone(RATE_HZ, 1.0))
    content = (tmp_path / "a.wav").read_bytes()
    note = b"note" + struct.pack("<I", 5) + b"saw 2\0"
    (tmp_path / "b.wav").write_bytes(content[:36] + note + content[36:])
    assert probe_recording(str(tmp_path / "b.wav")).n_samples == RATE_HZ
    (tmp_path / "b.wav").write_bytes((content[:36] + note + content[36:])[:-2])
    assert "truncated" in reason_of(tmp_path / "b.wav")


def test_truncated_flac_spares_the_clips_before_the_break(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 10 * RATE_HZ))
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    assert read(str(path), onset_s=1.0).any()
    assert "truncated" in reason_of(path)
    with pytest.raises(RecordingError, match="truncated"):
        read(str(path), onset_s=4.5)


def test_damaged_flac_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 10 * RATE_HZ))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(RecordingError, match="damaged"):
        read(str(path), onset_s=0.0, duration_s=10.0, clip_s=10.0)
    assert read(str(path), onset_s=1.0).any()


def test_flac_of_unknown_length(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    write(path, tone(RATE_HZ, 1.0))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36-bit sample count of the first header block
    content[22:26] = bytes(4)
    path.write_bytes(content)
    header = probe_recording(str(path))
    assert header.duration_s == 1.0
    assert "does not say how long it is" in (header.remark or "")
    path.write_bytes(content[:200])  # in its first frame
    assert "does not say how long it is" in reason_of(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_samples(tmp_path: Path, bad: float) -> None:
    wave = np.stack([tone(RATE_HZ, 3.0)] * 2, axis=1)
    wave[50_000:50_003, 1] = bad
    path = tmp_path / "a.wav"
    write(path, wave, subtype="FLOAT")
    assert "NaN or infinite samples in the clip at 2 s (3 of 40000)" in reason_of(path)
    assert np.isfinite(read(str(path), onset_s=1.0)).all()


def test_a_window_beyond_the_end(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.wav", tone(RATE_HZ, 1.5))
    for onset_s in (1.0, 1.5, 9.0):
        with pytest.raises(RecordingError, match="truncated"):
            read(uri, onset_s=onset_s)


def test_impossible_sample_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write(path, tone(RATE_HZ, 1.0))
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", 7)
    path.write_bytes(content)
    assert "sample rate of 7 Hz" in reason_of(path)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_minute_gives_six_clips() -> None:
    for remainder in ("drop", "pad", "overlap"):
        windows, dropped_s = cut_windows(60.0, clip_s=10.0, remainder=remainder)
        assert windows == [Window(10.0 * k, 10.0) for k in range(6)]
        assert dropped_s == 0


def test_remainder_policies() -> None:
    full = [Window(0.0, 10.0), Window(10.0, 10.0)]
    assert cut_windows(25.5, clip_s=10.0, remainder="drop") == (full, 5.5)
    assert cut_windows(25.5, clip_s=10.0, remainder="pad") == ([*full, Window(20.0, 5.5)], 0.0)
    assert cut_windows(25.5, clip_s=10.0, remainder="overlap") == ([*full, Window(15.5, 10.0)], 0.0)


def test_recordings_shorter_than_a_clip() -> None:
    assert cut_windows(4.0, clip_s=10.0, remainder="drop") == ([], 4.0)
    assert cut_windows(4.0, clip_s=10.0, remainder="pad") == ([Window(0.0, 4.0)], 0.0)
    assert cut_windows(4.0, clip_s=10.0, remainder="overlap") == ([Window(0.0, 4.0)], 0.0)
    assert cut_windows(0.0, clip_s=10.0, remainder="pad") == ([], 0.0)


@pytest.mark.parametrize("remainder", ["pad", "overlap"])
def test_less_than_a_second_is_too_short_to_judge(remainder: Remainder) -> None:
    assert cut_windows(0.999, clip_s=10.0, remainder=remainder) == ([], 0.999)
    assert cut_windows(1.0, clip_s=10.0, remainder=remainder) == ([Window(0.0, 1.0)], 0.0)
    # Unless the model's own clips are that short.
    assert cut_windows(0.5, clip_s=0.5, remainder=remainder) == ([Window(0.0, 0.5)], 0.0)
    windows, dropped_s = cut_windows(20.25, clip_s=10.0, remainder=remainder)
    assert dropped_s == (0.25 if remainder == "pad" else 0.0)
    assert len(windows) == (2 if remainder == "pad" else 3)


@settings(deadline=None, derandomize=True)
@given(
    n_samples=st.integers(1, 2_000_000),
    rate_hz=st.sampled_from([8_000, 16_000, 20_000, 22_050, 44_100, 48_000, 96_000, 17_067]),
    clip_s=st.sampled_from([0.5, 1.0, 2.56, 10.0, 0.1]),
    remainder=st.sampled_from(["drop", "pad", "overlap"]),
)
@example(n_samples=1_323_000, rate_hz=22_050, clip_s=10.0, remainder="drop")
def test_windows_cover_the_recording(n_samples: int, rate_hz: int, clip_s: float, remainder: str) -> None:
    duration_s = n_samples / rate_hz
    windows, dropped_s = cut_windows(duration_s, clip_s=clip_s, remainder=remainder)  # type: ignore[arg-type]
    end_s = 0.0
    for place, (onset_s, window_s) in enumerate(windows):
        last = place == len(windows) - 1
        assert onset_s >= 0
        assert onset_s + window_s <= duration_s + 1e-6, "leaves the recording"
        assert window_s == clip_s or (last and remainder != "drop" and 1 <= window_s < clip_s)
        assert onset_s <= end_s + 1e-6, "leaves a gap"
        if not (last and remainder == "overlap"):
            assert onset_s >= end_s - 1e-6, "overlaps"
        # The window's samples, as the reader counts them, are there.
        assert round((onset_s + window_s) * rate_hz) <= n_samples
        end_s = onset_s + window_s
    assert end_s + dropped_s == pytest.approx(duration_s, abs=0.0021)
    assert dropped_s == 0 or remainder == "drop" or dropped_s < 1
    assert windows or dropped_s
