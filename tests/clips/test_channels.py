"""Channels and clocks of real files: what the header says, what is sampled, what every reader of sound hears."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from faithad import library, storage
from faithad.clips.annotations import Annotation
from faithad.clips.manifest import Recording, attach_annotations, cut_recording, manifest_table
from faithad.clips.recordings import examine_recording, probe_recording, read_clip
from faithad.clips.splits import hold_out_validation
from faithad.errors import RecordingError
from faithad.pipelines.headers import read_header
from faithad.settings import FeatureSettings
from faithad.vocabulary import ChannelChoice
from tests.clips.sound_bytes import RATE_HZ, chunk, fmt, pcm, riff, sound, wav

SOUND = np.random.default_rng(0).normal(0, 0.1, 20 * RATE_HZ).clip(-0.9, 0.9)
OTHER = np.random.default_rng(1).normal(0, 0.1, 20 * RATE_HZ).clip(-0.9, 0.9)


def write(path: Path, *channels: np.ndarray) -> str:
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, np.stack(channels, axis=1), RATE_HZ, subtype="PCM_16")
    return str(path)


def heard(uri: str, channel: int | None = None) -> np.ndarray:
    return read_clip(uri, onset_s=10.0, duration_s=10.0, clip_s=10.0, sample_rate_hz=RATE_HZ, channel=channel)


def rows_of(uri: str, choice: ChannelChoice = "auto", name: str = "week/20240506_070000.wav") -> list:
    recording = Recording(name, uri, "test")
    return cut_recording(recording, examine_recording(uri), clip_s=10.0, remainder="drop", channel=choice)[0]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_dead_or_inverted_channel_does_no_harm(tmp_path: Path, suffix: str) -> None:
    alone = heard(write(tmp_path / f"mono{suffix}", SOUND))
    for number, channels in enumerate(([SOUND, 0 * SOUND], [0 * SOUND, SOUND], [SOUND, -SOUND], [SOUND, SOUND])):
        uri = write(tmp_path / f"{number}{suffix}", *channels)
        (channel,) = {row.channel for row in rows_of(uri)}
        np.testing.assert_array_equal(heard(uri, channel), alone)
        settings = FeatureSettings(n_mels=16)
        expected = library.log_mel(str(tmp_path / f"mono{suffix}"), settings)
        np.testing.assert_array_equal(library.log_mel(uri, settings), expected)


def test_two_microphones_are_not_averaged(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.wav", SOUND, np.roll(SOUND, 5))
    assert {row.channel for row in rows_of(uri)} == {1}
    assert {row.channel for row in rows_of(uri, "mean")} == {None}
    health = examine_recording(uri).health
    assert health is not None
    assert health.lag_ms == (0.0, pytest.approx(1000 * 5 / RATE_HZ))


@pytest.mark.parametrize(("choice", "expected"), [("first", SOUND), (2, OTHER), ("mean", (SOUND + OTHER) / 2)])
def test_the_channel_that_is_asked_for_is_read(tmp_path: Path, choice: ChannelChoice, expected: np.ndarray) -> None:
    uri = write(tmp_path / "a.flac", SOUND, OTHER)
    (channel,) = {row.channel for row in rows_of(uri, choice)}
    np.testing.assert_allclose(heard(uri, channel), expected[10 * RATE_HZ :], atol=2**-15)


def test_a_recording_without_that_channel_fails_with_the_reason(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.wav", SOUND)
    recording = Recording("week/a.wav", uri, "test")
    rows, (row,) = cut_recording(recording, examine_recording(uri), clip_s=10.0, remainder="drop", channel=2)
    assert rows == []
    assert (row["status"], row["duration_s"]) == ("failed", 20.0)
    assert row["reason"] == (
        "week/a.wav has 1 channel, and channel 2 is to be heard: set another channel, or leave it out."
    )
    with pytest.raises(RecordingError, match="has no channel 2 any more"):
        heard(uri, 2)
    for choice in (2, "each"):
        stereo = write(tmp_path / "b.wav", SOUND, OTHER) if choice == "each" else uri
        with pytest.raises(RecordingError, match="give the number of one, first, loudest, mean or auto"):
            library.log_mel(stereo, FeatureSettings(n_mels=16), channel=choice)


def test_each_channel_is_a_recorder_of_its_own(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.wav", SOUND, OTHER, 0.5 * SOUND)
    mono = rows_of(write(tmp_path / "mono.wav", SOUND), "each", "week/20240506_070020.wav")
    table = manifest_table([*rows_of(uri, "each"), *mono]).to_pydict()
    assert len(set(table["clip_id"])) == 8
    names = [f"week/20240506_070000.wav (channel {k})" for k in (1, 1, 2, 2, 3, 3)]
    assert table["recording"] == [*names, *2 * ["week/20240506_070020.wav"]]
    assert table["channel"] == [1, 1, 2, 2, 3, 3, None, None]
    assert set(table["recorder"]) == {"week/*", *(f"week/* (channel {k})" for k in (1, 2, 3))}
    assert table["recorded_at"][:2] == [datetime(2024, 5, 6, 7), datetime(2024, 5, 6, 7, 0, 10)]


def test_an_annotation_of_a_file_is_about_all_its_channels(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / "a.wav", SOUND, OTHER), "each")
    whole = Annotation("20240506_070000", 1, "knock", 0.0, 20.0, ((1.0, 3.0),))
    own = Annotation("20240506_070000.wav (channel 2)", 2, "hiss", 0.0, 20.0, ((11.0, 13.0),))
    kinds = [row.anomaly_type for row in attach_annotations(rows, [whole, own])]
    assert kinds == ["knock", None, "knock", "hiss"]


def test_channels_of_a_recording_are_held_out_together(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.wav", SOUND, OTHER)
    rows = []
    for k in range(6):
        recording = Recording(f"week/{k}.wav", uri, "train")
        rows += cut_recording(recording, examine_recording(uri), clip_s=10.0, remainder="drop", channel="each")[0]
    held_out = hold_out_validation(rows, fraction=0.3, unit="recording", seed=0)
    splits = {k: {row.split for row in held_out if row.recording.startswith(f"week/{k}.wav")} for k in range(6)}
    assert all(len(of_file) == 1 for of_file in splits.values())
    assert sum(of_file == {"validation"} for of_file in splits.values()) == 2


def test_windows_that_cannot_be_decoded_are_left_out(tmp_path: Path) -> None:
    """The clips around them fail with their reason; the others are heard."""
    samples = np.stack([SOUND, OTHER], axis=1)
    samples[9 * RATE_HZ : 11 * RATE_HZ] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT")
    health = examine_recording(str(tmp_path / "a.wav")).health
    assert health is not None
    assert health.n_windows == 4
    soundfile.write(tmp_path / "b.wav", np.full((RATE_HZ, 2), np.nan), RATE_HZ, subtype="FLOAT")
    assert examine_recording(str(tmp_path / "b.wav")).health is None
    assert {row.channel for row in rows_of(str(tmp_path / "b.wav"))} == set()


def reading(uri: str, monkeypatch: pytest.MonkeyPatch, *, broken_at: int | None = None) -> list[tuple[int, int]]:
    """Note the place and the length of each read of a file from now on; one that holds a broken byte fails."""
    reads: list[tuple[int, int]] = []
    opened = storage.open_input

    class Disk:
        def __init__(self, file: pa.NativeFile) -> None:
            self._file = file

        def seek(self, offset: int, whence: int = 0) -> int:
            return int(self._file.seek(offset, whence))

        def tell(self) -> int:
            return int(self._file.tell())

        def readinto(self, buffer: memoryview) -> int:
            start = self.tell()
            n = int(self._file.readinto(buffer))
            if broken_at is not None and start <= broken_at < start + n:
                raise OSError(5, "Input/output error")
            reads.append((start, n))
            return n

    @contextlib.contextmanager
    def open_input(location: str) -> Iterator[Disk]:
        with opened(location) as file:
            yield Disk(file)

    monkeypatch.setattr(storage, "open_input", open_input)
    return reads


def test_a_window_is_one_request_to_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write(tmp_path / "a.wav", np.tile(SOUND, 6), np.tile(OTHER, 6))
    reads = reading(uri, monkeypatch)
    examine_recording(uri)
    assert len(reads) <= 1 + 5 + 1, "the start, five windows, one that lies across two reads"


def test_a_bad_block_of_a_disk_costs_its_own_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write(tmp_path / "week" / "a.wav", np.tile(SOUND, 6), np.tile(OTHER, 6))
    reading(uri, monkeypatch, broken_at=44 + 4 * 60 * RATE_HZ)  # in the window in the middle
    header = read_header(Recording("week/a.wav", uri, "test"))
    assert not isinstance(header, str), header
    assert (header.duration_s, header.health) == (120, None)


BEXT = b"\0" * 320 + b"2024-05-06" + b"07:00:05" + b"\0" * 264
GUANO = b"GUANO|Version: 1.0\nMake: x\nTimestamp: %s\nSamplerate: 20000\n"


def with_chunks(before: bytes = b"", behind: bytes = b"") -> bytes:
    return riff(before, chunk(b"fmt ", fmt()), chunk(b"data", pcm(sound(12))), behind)


@pytest.mark.parametrize(
    ("content", "clock", "offset_s"),
    [
        (with_chunks(chunk(b"bext", BEXT)), datetime(2024, 5, 6, 7, 0, 5), None),
        (with_chunks(behind=chunk(b"bext", BEXT)), datetime(2024, 5, 6, 7, 0, 5), None),
        (with_chunks(chunk(b"bext", BEXT.translate(bytes.maketrans(b"-:", b"_.")))),
         datetime(2024, 5, 6, 7, 0, 5), None),
        (with_chunks(behind=chunk(b"guan", GUANO % b"2024-05-06T07:00:05.250+02:00")),
         datetime(2024, 5, 6, 7, 0, 5, 250_000), 7200),
        (with_chunks(chunk(b"guan", GUANO % b"2024-05-06 07:00:05")), datetime(2024, 5, 6, 7, 0, 5), None),
        (with_chunks(chunk(b"guan", GUANO % b"2024-05-06T07:00:05Z")), datetime(2024, 5, 6, 7, 0, 5), 0),
        (with_chunks(chunk(b"bext", BEXT), chunk(b"guan", GUANO % b"2025-01-01T00:00:00-05:00")),
         datetime(2025, 1, 1), -18_000),
        (with_chunks(chunk(b"bext", BEXT), chunk(b"guan", GUANO % b"soon")), datetime(2024, 5, 6, 7, 0, 5), None),
        (with_chunks(chunk(b"bext", BEXT.replace(b"2024-05-06", b"0000-00-00"))), None, None),
        (with_chunks(chunk(b"bext", BEXT[:330])), None, None),
        (wav(sound(12)), None, None),
    ],
)  # fmt: skip
def test_the_clock_is_read_from_the_chunks_of_a_wav(
    tmp_path: Path, content: bytes, clock: datetime | None, offset_s: int | None
) -> None:
    path = tmp_path / "ZOOM0001.WAV"
    path.write_bytes(content)
    header = probe_recording(str(path))
    assert (header.recorded_at, header.utc_offset_s) == (clock, offset_s)
    assert header.duration_s == 12


def test_a_clock_of_a_chunk_counts_where_the_name_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(with_chunks(chunk(b"bext", BEXT)))
    rows = [*rows_of(str(tmp_path / "a.wav"), name="week/2024-05-06/ZOOM0001.wav"),
            *rows_of(str(tmp_path / "a.wav"), name="week/20250101_000000.wav")]  # fmt: skip
    by_chunk, by_name = manifest_table(rows).to_pylist()
    assert (by_chunk["recorded_at"], by_chunk["recorder"]) == (datetime(2024, 5, 6, 7, 0, 5), "week")
    assert (by_name["recorded_at"], by_name["recorder"]) == (datetime(2025, 1, 1), "week/*")
