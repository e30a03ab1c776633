"""Headers that are wrong: every sample that is there is heard at its place, and nothing is missing without a word."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from faithad import storage
from faithad.clips.audio_kinds import ffmpeg_command
from faithad.clips.inputs import find_left_out
from faithad.clips.ledger import LedgerRow
from faithad.clips.manifest import ClipRow, Recording, cut_recording
from faithad.clips.recordings import Remainder, probe_recording, read_clip
from faithad.errors import RecordingError
from tests.clips.sound_bytes import (
    RATE_HZ,
    chunk,
    encoded,
    flac_length,
    fmt,
    pcm,
    riff,
    s24_in_32,
    sound,
    verbatim_flac,
    wav,
)

CLIP_S = 0.5


def cut(path: Path, remainder: Remainder = "drop", *, clip_s: float = CLIP_S) -> tuple[list[ClipRow], list[LedgerRow]]:
    recording = Recording(path.name, str(path), "test")
    return cut_recording(recording, probe_recording(str(path)), clip_s=clip_s, remainder=remainder)


def heard(rows: list[ClipRow]) -> np.ndarray:
    """The sound of all clips, one behind the other."""
    parts = [
        read_clip(
            row.uri, onset_s=row.onset_s, duration_s=row.duration_s, clip_s=row.duration_s, sample_rate_hz=RATE_HZ
        )
        for row in rows
    ]
    return np.concatenate(parts)


def noise(seconds: float, level: float = 0.5) -> np.ndarray:
    """Whole steps of 16 bits: (samples,) float64."""
    steps = np.random.default_rng(0).uniform(-level, level, round(seconds * RATE_HZ)) * 2**15
    return np.rint(steps) / 2**15


def with_length(flac: bytes, n_samples: int, bits: int = 16) -> bytes:
    length = int.from_bytes(flac_length(n_samples), "big") & (1 << 36) - 1 | (bits - 1 & 15) << 36
    return flac[:21] + length.to_bytes(5, "big") + flac[26:]


# --- WAV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.77, 0.99999])
@pytest.mark.parametrize("remainder", ["drop", "pad", "overlap"])
def test_a_wav_without_its_end_is_heard_up_to_there(tmp_path: Path, kept: float, remainder: Remainder) -> None:
    steps, path = sound(3.0), tmp_path / "a.wav"
    content = wav(steps)
    path.write_bytes(content[: 44 + round(kept * 2 * len(steps))])
    n_present = round(kept * 2 * len(steps)) // 2
    rows, ledger = cut(path, remainder, clip_s=2.0)
    (missing,) = [row for row in ledger if row["status"] == "failed"]
    assert missing["onset_s"] == n_present / RATE_HZ
    assert missing["duration_s"] == pytest.approx(3.0 - n_present / RATE_HZ, abs=1 / RATE_HZ)
    assert "is truncated: its header announces 120000 bytes" in missing["reason"]
    rest = n_present % (2 * RATE_HZ)
    # A clip of less than a second is too short to judge.
    is_short_clip = rest >= RATE_HZ and (remainder == "pad" or (remainder == "overlap" and rest == n_present))
    n_heard = n_present if is_short_clip else n_present - rest
    if remainder == "overlap" and n_heard and rest and not is_short_clip:
        last = heard(rows[-1:])
        np.testing.assert_array_equal(last, steps[n_present - len(last) : n_present] / np.float32(128))
        rows = rows[:-1]
    if rows:
        np.testing.assert_array_equal(heard(rows), steps[:n_heard] / np.float32(128))
    assert bool(rows) == (n_heard > 0)


@pytest.mark.parametrize("subtype", ["ULAW", "MS_ADPCM", "IMA_ADPCM"])
def test_compressed_wav_without_its_end_is_heard_up_to_there(tmp_path: Path, subtype: str) -> None:
    whole, path = tmp_path / "whole.wav", tmp_path / "a.wav"
    whole.write_bytes(encoded(sound(3.0) / 128, format="WAV", subtype=subtype))
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    rows, ledger = cut(path)
    assert len(rows) >= 2
    np.testing.assert_array_equal(heard(rows), heard(cut(whole)[0][: len(rows)]))
    (missing,) = [row for row in ledger if row["status"] == "failed"]
    assert missing["onset_s"] + missing["duration_s"] == pytest.approx(3.0, abs=0.06)


@pytest.mark.parametrize("announced", [0, 1 << 31, (1 << 31) - 44, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFDB])
def test_open_sizes_are_taken_to_the_end_with_a_remark(tmp_path: Path, announced: int) -> None:
    steps, path = sound(1.5), tmp_path / "a.wav"
    path.write_bytes(riff(chunk(b"fmt ", fmt()), chunk(b"data", pcm(steps), size=announced)))
    rows, ledger = cut(path)
    np.testing.assert_array_equal(heard(rows), steps / np.float32(128))
    (remark,) = ledger
    assert (remark["status"], remark["clip_id"], remark["onset_s"], remark["duration_s"]) == ("done", None, 0.0, 0.0)
    assert "without a length" in remark["reason"]
    assert f"({announced} bytes of sound)" in remark["reason"]
    assert "60000 bytes" in remark["reason"]


def test_a_header_without_any_sound_behind_it_is_refused(tmp_path: Path) -> None:
    for size in (0, 1 << 31, 0xFFFFFFFF):
        (tmp_path / "a.wav").write_bytes(riff(chunk(b"fmt ", fmt()), chunk(b"data", b"", size=size)))
        with pytest.raises(RecordingError, match="holds no samples"):
            probe_recording(str(tmp_path / "a.wav"))


def test_of_joined_wavs_the_first_is_heard_and_the_others_are_told(tmp_path: Path) -> None:
    steps, path = sound(1.0), tmp_path / "a.wav"
    path.write_bytes(wav(steps) + wav(-steps) + wav(steps // 2))
    rows, ledger = cut(path)
    np.testing.assert_array_equal(heard(rows), steps / np.float32(128))
    (others,) = ledger
    assert (others["status"], others["onset_s"], others["duration_s"]) == ("failed", 1.0, 2.0)


def test_sound_behind_the_announced_end_is_told(tmp_path: Path) -> None:
    steps, path = sound(2.0), tmp_path / "a.wav"
    path.write_bytes(riff(chunk(b"fmt ", fmt()), chunk(b"data", pcm(steps), size=2 * RATE_HZ)))
    rows, ledger = cut(path)
    np.testing.assert_array_equal(heard(rows), steps[:RATE_HZ] / np.float32(128))
    (rest,) = ledger
    assert (rest["status"], rest["onset_s"], rest["duration_s"]) == ("failed", 1.0, 1.0)


@pytest.mark.parametrize("level", [1, 2**8, 2**15])
@pytest.mark.parametrize("sign_byte", ["sign", "zero"])
def test_24_bits_in_the_lower_of_four_bytes_are_at_their_level(tmp_path: Path, level: int, sign_byte: str) -> None:
    """As loud and as quiet as they are, whatever a decoder would guess from them."""
    samples = np.random.default_rng(0).integers(-127 * level, 128 * level, RATE_HZ).astype("<i4")
    words = samples if sign_byte == "sign" else samples & 0xFFFFFF
    path = tmp_path / "a.wav"
    path.write_bytes(riff(chunk(b"fmt ", fmt(bits=24, frame_bytes=4)), chunk(b"data", words.tobytes())))
    rows, _ = cut(path)
    np.testing.assert_array_equal(heard(rows), samples / np.float32(2**23))


def test_s24_in_32_that_was_cut_off_in_a_pipe(tmp_path: Path) -> None:
    """Two faults of one file are both corrected."""
    steps, path = sound(1.0), tmp_path / "a.wav"
    content = s24_in_32(steps)
    place = content.index(b"data") + 4
    path.write_bytes(content[:place] + b"\0\0\0\x80" + content[place + 4 :])
    rows, ledger = cut(path)
    np.testing.assert_array_equal(heard(rows), steps / np.float32(128))
    assert "lower three" in ledger[0]["reason"]
    assert "without a length" in ledger[0]["reason"]


# --- FLAC -------------------------------------------------------------------------------------------------------------

FLACS = {
    "16 bits": lambda wave: encoded(wave, format="FLAC"),
    "24 bits": lambda wave: encoded(wave, format="FLAC", subtype="PCM_24"),
    "stereo": lambda wave: encoded(np.stack([wave, wave], 1), format="FLAC"),
    "not compressed": lambda wave: verbatim_flac(np.rint(wave * 2**15).astype(int)),
    "blocks of 64": lambda wave: verbatim_flac(np.rint(wave * 2**15).astype(int), block=64),
}


@pytest.mark.parametrize("announced", [0.0, 0.1, 0.5, 0.99, 1.0, 1.01, 1.7, 2.0, 9.0, 1e4])
@pytest.mark.parametrize("kind", FLACS)
def test_a_flac_is_heard_to_its_last_frame_whatever_it_announces(tmp_path: Path, kind: str, announced: float) -> None:
    wave, path = noise(3.3), tmp_path / "a.flac"
    content = FLACS[kind](wave)
    path.write_bytes(with_length(content, round(announced * len(wave)), bits=24 if "24" in kind else 16))
    rows, ledger = cut(path, "pad", clip_s=2.0)
    np.testing.assert_array_equal(heard(rows), wave.astype(np.float32))
    if announced == 1.0:
        assert not ledger
        return
    (row,) = ledger
    assert row["status"] == ("failed" if announced > 1 else "done")
    if 1 < announced < 2:
        assert row["onset_s"] + row["duration_s"] == pytest.approx(3.3 * announced)


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", FLACS)
def test_a_flac_that_was_cut_off_is_heard_to_its_last_whole_frame(tmp_path: Path, kind: str, kept: float) -> None:
    wave, path = noise(4.0), tmp_path / "a.flac"
    content = FLACS[kind](wave)
    path.write_bytes(content[: round(kept * len(content))])
    rows, ledger = cut(path, "pad", clip_s=2.0)
    (missing,) = ledger
    n_heard = round(missing["onset_s"] * RATE_HZ)
    assert kept * 4 - 0.25 < missing["onset_s"] <= kept * 4 + 0.05
    assert missing["onset_s"] + missing["duration_s"] == pytest.approx(4.0)
    np.testing.assert_array_equal(heard(rows), wave[:n_heard].astype(np.float32))


def pieces() -> Iterator[tuple[str, list[np.ndarray]]]:
    loud, quiet, silent = noise(30.0), noise(30.0, level=0.001), np.zeros(30 * RATE_HZ)
    for (first, a), (second, b) in itertools.product(
        {"loud": loud, "quiet": quiet, "silent": silent}.items(), repeat=2
    ):
        yield f"{first} and {second}", [a, b]
    for seconds in (0.5, 3.0, 10.0):
        yield f"30 and {seconds:g} s", [loud, noise(seconds)]
        yield f"{seconds:g} and 30 s", [noise(seconds), loud]
    yield "three", [loud, loud, loud]
    yield "five", [quiet, loud, silent, quiet, loud]


@pytest.mark.parametrize("parts", [pytest.param(parts, id=name) for name, parts in pieces()])
def test_joined_flacs_are_refused(tmp_path: Path, parts: list[np.ndarray]) -> None:
    """A decoder would find some samples in one of them and some in another, by their numbers."""
    (tmp_path / "a.flac").write_bytes(b"".join(encoded(part, format="FLAC") for part in parts))
    with pytest.raises(RecordingError, match=r"a\.flac holds two or more FLAC files"):
        probe_recording(str(tmp_path / "a.flac"))


@pytest.mark.parametrize("parts", [pytest.param(parts, id=name) for name, parts in pieces()])
def test_a_flac_of_any_loudness_is_taken_as_it_is(tmp_path: Path, parts: list[np.ndarray]) -> None:
    wave = np.concatenate(parts)
    (tmp_path / "a.flac").write_bytes(encoded(wave, format="FLAC"))
    header = probe_recording(str(tmp_path / "a.flac"))
    assert (header.n_samples, header.remark, header.unheard) == (len(wave), None, None)


def test_a_tag_behind_a_flac_is_no_sound(tmp_path: Path) -> None:
    wave, path = noise(2.0), tmp_path / "a.flac"
    for announced in (len(wave), 0):
        path.write_bytes(with_length(encoded(wave, format="FLAC"), announced) + b"TAG" + bytes(125))
        assert probe_recording(str(path)).n_samples == len(wave)


# --- what is fetched --------------------------------------------------------------------------------------------------


class Counting(io.FileIO):
    """A local file that counts the bytes that are read of it."""

    fetched = 0

    def readinto(self, buffer: memoryview) -> int:
        n = super().readinto(buffer)
        Counting.fetched += n or 0
        return n or 0


@pytest.mark.parametrize(("suffix", "by_index"), [(".wav", 700_000), (".flac", 900_000)])
def test_no_more_is_fetched_than_a_header_or_a_clip_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, by_index: int
) -> None:
    """An object store sends every byte that is read: of twenty minutes (48 MB) an index needs less than 2 %."""
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, np.tile(noise(30.0), 40), RATE_HZ)
    monkeypatch.setattr(storage, "open_input", lambda uri: Counting(uri))
    Counting.fetched = 0
    assert probe_recording(str(path)).duration_s == 1200
    assert Counting.fetched < by_index
    Counting.fetched = 0
    read_clip(str(path), onset_s=600.0, duration_s=10.0, clip_s=10.0, sample_rate_hz=RATE_HZ)
    assert Counting.fetched < (1_200_000 if suffix == ".wav" else 4_000_000)


# --- other formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("/day/a.mp3", "ffmpeg -i a.mp3 a.flac"),
        ("s3://mill/day/two words.ogg?region=x", "ffmpeg -i 'two words.ogg' 'two words.flac'"),
        ("/day/it's; rm -rf ~.m4a", """ffmpeg -i 'it'"'"'s; rm -rf ~.m4a' 'it'"'"'s; rm -rf ~.flac'"""),
        ("/day/-y.opus", "ffmpeg -i ./-y.opus ./-y.flac"),
        ("/day/a.FLAC", "ffmpeg -i a.FLAC -c:a pcm_s24le -rf64 auto a.wav"),
    ],
)
def test_the_command_that_converts(uri: str, command: str) -> None:
    assert ffmpeg_command(uri) == command


@pytest.mark.parametrize("ending", ["ogg", "opus", "mp3", "m4a", "aac", "wma", "wave"])
def test_other_sounds_are_named_with_the_command(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_bytes(b"x")
    (row,) = find_left_out([str(tmp_path)])
    assert row["status"] == "skipped"
    assert f"ffmpeg -i a.{ending} a.flac" in row["reason"]


@pytest.mark.parametrize(
    "content", [b"PASSWORD=hunter2\n", b"\x7fELF secret", b"<secret>", b"RIFFsecretsecret", "é secret".encode()]
)
def test_no_content_of_a_file_that_is_no_sound_is_quoted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "private").write_bytes(content)
    (tmp_path / "a.wav").symlink_to("private")
    with pytest.raises(RecordingError) as caught:
        probe_recording(str(tmp_path / "a.wav"))
    assert "secret" not in str(caught.value)
    assert "PASS" not in str(caught.value)
    assert "it holds" in str(caught.value)
