"""A corpus of files that people and recorders really leave behind, made by code: `write_corpus(folder, seconds=...)`.

Each `Entry` says what must become of its file.

    audited   its clip is scored; where it is `plain`, exactly as the same sound in an ordinary file. What was wrong
              with its header, or is not heard, stands in the ledger beside: it matches `reason`
    failed    it stands in the ledger, and somebody should look at it: the reason matches `reason`
    skipped   it stands in the ledger, left out by rule: the reason matches `reason`
    absent    it is nowhere, because what it leads to is listed already
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from tests.clips.sound_bytes import (
    RATE_HZ,
    at_rate,
    chunk,
    encoded,
    extensible,
    flac,
    flac_length,
    floats,
    fmt,
    in_channels,
    patched_flac,
    pcm,
    rf64,
    riff,
    s24_in_32,
    sound,
    verbatim_flac,
    wav,
    with_bad,
)


@dataclass(frozen=True)
class Entry:
    """One file: its content, from the sound in 8-bit steps (int64 (samples,)), or how it is put in its place."""

    name: str
    content: Callable[[np.ndarray], bytes] | None = None
    place: Callable[[Path, np.ndarray], object] | None = None
    outcome: Literal["audited", "failed", "skipped", "absent"] = "audited"
    reason: str = ""
    plain: bool = False

    @property
    def listed(self) -> str:
        """The name as the tables have it."""
        return re.sub("[\udc80-\udcff]", lambda found: f"\ufffd{ord(found[0]) - 0xDC00:02X}", self.name)


def write_corpus(folder: Path, *, seconds: float) -> list[Entry]:
    """Write the entries below a new folder, for clips of `seconds`; returns those that can be tried here."""
    steps = sound(seconds)
    folder.mkdir()
    # An administrator may read everything.
    entries = [entry for entry in ENTRIES if entry.name != UNREADABLE or os.geteuid() != 0]
    for entry in entries:
        if entry.content is not None:
            (folder / entry.name).write_bytes(entry.content(steps))
        elif entry.place is not None:
            entry.place(folder / entry.name, steps)
    return entries


plain = partial(Entry, plain=True)
failed = partial(Entry, outcome="failed")
skipped = partial(Entry, outcome="skipped")

FMT = chunk(b"fmt ", fmt())
EMPTY = chunk(b"note", b"") * 200_000
UNREADABLE = "unreadable.wav"
NO_AUDIO = "is no audio file that can be decoded"
TRUNCATED = "(is truncated|damaged or truncated).*[Cc]opy"
UNFINISHED = "never finished its header"
OPEN = "without a length"
CONVERT = "Convert it: ffmpeg -i "
SHORT = "shorter than a clip"
FAULT = "The program that wrote this file is at fault"


def data(steps: np.ndarray, **header: int) -> bytes:
    return chunk(b"data", pcm(steps), **header)


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(50) + content[middle + 50 :]


def archive(steps: np.ndarray) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("recording.wav", wav(steps))
    return out.getvalue()


def outgrow(path: Path, steps: np.ndarray) -> None:
    """Six gigabytes of holes, by a recorder whose count began again at 4 GiB."""
    path.write_bytes(riff(FMT, data(steps, size=(6 << 30) % 2**32)))
    os.truncate(path, 44 + (6 << 30))


def put_inside(path: Path, steps: np.ndarray) -> None:
    path.parent.mkdir()
    path.write_bytes(wav(steps))


HEADERS = [
    plain("ordinary.wav", wav),
    plain("8 bit.wav", lambda s: wav(s, bits=8)),
    plain("24 bit.wav", lambda s: wav(s, bits=24)),
    plain("32 bit.wav", lambda s: wav(s, bits=32)),
    plain("32 bit float.wav", lambda s: floats(s / 128)),
    plain("64 bit float.wav", lambda s: encoded(s / 128, format="WAV", subtype="DOUBLE")),
    plain("extensible.wav", lambda s: wav(s, tag=0xFFFE, extra=extensible(1, 16))),
    plain("12 of 16 bits.wav", lambda s: wav(s, tag=0xFFFE, extra=extensible(1, 12))),
    plain("RF64.wav", rf64),
    plain("big-endian RIFX.wav", lambda s: encoded(s / 128, format="WAV", endian="BIG")),
    plain("fmt of 18 bytes.wav", lambda s: wav(s, extra=bytes(2))),
    plain("fmt of 40 bytes.wav", lambda s: wav(s, extra=bytes(24))),
    plain("bytes per second wrong.wav", lambda s: wav(s, bytes_per_s=1)),
    plain("frame of no bytes.wav", lambda s: wav(s, frame_bytes=0)),
    failed("frame of 3 bytes.wav", lambda s: wav(s, frame_bytes=3), reason="contradicts itself.*2 bytes.*says 3"),
    failed("frame of 4 bytes.wav", lambda s: wav(s, frame_bytes=4), reason="contradicts itself.*2 bytes.*says 4"),
    plain("frame of 3 bytes, but not by the second.wav", lambda s: wav(s, frame_bytes=3, bytes_per_s=2 * RATE_HZ)),
    plain("20 bits in 3 bytes.wav", lambda s: wav(s, bits=24, tag=0xFFFE, extra=extensible(1, 20))),
    plain("S24_LE.wav", s24_in_32, reason="lower three"),
    plain("S24_LE, quiet.wav", lambda s: s24_in_32(s), reason="lower three"),
    plain("S24_LE of 2 channels.wav", lambda s: s24_in_32(s, channels=2), reason="lower three"),
    failed(
        "24 bits in the upper three bytes.wav",
        lambda s: riff(chunk(b"fmt ", fmt(bits=24, frame_bytes=4)), chunk(b"data", pcm(s, 32))),
        reason="not the lower three",
    ),
    plain("RIFF size zero.wav", lambda s: riff(FMT, data(s), size=0)),
    plain("RIFF size too small.wav", lambda s: riff(FMT, data(s), size=1000)),
    plain("RIFF size too large.wav", lambda s: riff(FMT, data(s), size=2**31)),
    plain("sizes open.wav", lambda s: riff(FMT, data(s, size=2**32 - 1), size=2**32 - 1), reason=OPEN),
    plain("sizes of arecord.wav", lambda s: riff(FMT, data(s, size=2**31), size=2**31 + 36), reason=OPEN),
    plain("sizes of SoX.wav", lambda s: riff(FMT, data(s, size=0x7FFFF000), size=0x7FFFF024), reason=OPEN),
    plain("data size zero.wav", lambda s: riff(FMT, data(s, size=0)), reason=OPEN),
    plain("RF64 of negative size.wav", lambda s: rf64(s, n_bytes=2**64 - 1), reason=OPEN),
    plain("RF64 of no size.wav", lambda s: rf64(s, n_bytes=0), reason=OPEN),
    plain("44 bytes too many.wav", lambda s: riff(FMT, data(s, size=2 * len(s) + 44)), reason=TRUNCATED),
    plain("two joined.wav", lambda s: wav(s) + wav(s), reason="two or more WAV files"),
    plain(
        "two joined, with notes.wav", lambda s: riff(FMT, data(s), chunk(b"LIST", b"a")) + rf64(s), reason="two or m"
    ),
    plain("200,000 chunks behind.wav", lambda s: riff(FMT, data(s), EMPTY)),
    failed("200,000 chunks before.wav", lambda s: riff(FMT, EMPTY, data(s)), reason="more than 1000 chunks"),
    plain("odd number of bytes.wav", lambda s: riff(FMT, chunk(b"data", pcm(s) + b"\1"))),
    plain("notes before.wav", lambda s: riff(chunk(b"note", b"saw 2"), FMT, chunk(b"LIST", b"abc"), data(s))),
    plain("notes behind.wav", lambda s: riff(FMT, data(s), chunk(b"LIST", b"INFO"), chunk(b"junk", b"x" * 9999))),
    plain("rubbish behind.wav", lambda s: wav(s) + b"\xa5" * 777),
    Entry("mu-law.wav", lambda s: encoded(s / 128, format="WAV", subtype="ULAW")),
    Entry("A-law.wav", lambda s: encoded(s / 128, format="WAV", subtype="ALAW")),
    Entry("IMA ADPCM.wav", lambda s: encoded(s / 128, format="WAV", subtype="IMA_ADPCM")),
    Entry("Microsoft ADPCM.wav", lambda s: encoded(s / 128, format="WAV", subtype="MS_ADPCM")),
    failed("data size too small.wav", lambda s: riff(FMT, data(s, size=len(s))), reason=UNFINISHED),
    failed("data size too large.wav", lambda s: riff(FMT, data(s[:-1], size=2**30)), reason=TRUNCATED),
    failed("beyond 4 GiB.wav", place=outgrow, reason="outgrown the 4 GiB"),
    failed("fmt missing.wav", lambda s: riff(data(s)), reason=r"'fmt '.*missing"),
    failed("fmt behind the sound.wav", lambda s: riff(data(s), FMT), reason="comes before"),
    failed("fmt twice, alike.wav", lambda s: riff(FMT, FMT, data(s)), reason="2 'fmt ' chunks"),
    failed(
        "fmt twice, different.wav",
        lambda s: riff(chunk(b"fmt ", fmt(rate_hz=48_000)), FMT, data(s)),
        reason="2 'fmt ' chunks",
    ),
    failed("fmt of 8 bytes.wav", lambda s: riff(chunk(b"fmt ", fmt()[:8]), data(s)), reason="8 bytes where 16"),
    failed("fmt size huge.wav", lambda s: riff(chunk(b"fmt ", fmt(), size=2**31), data(s)), reason=NO_AUDIO),
    failed("no data chunk.wav", lambda s: riff(FMT, chunk(b"junk", pcm(s))), reason="'data'.*missing"),
    failed("data twice.wav", lambda s: riff(FMT, data(s), data(s)), reason="2 'data' chunks"),
    failed(
        "RF64 without sizes.wav", lambda s: riff(FMT, data(s, size=2**32 - 1), form=b"RF64"), reason="'ds64'.*missing"
    ),
    failed("no channels.wav", lambda s: wav(s, channels=0), reason="0 channels"),
    failed("65,535 channels.wav", lambda s: wav(s, channels=65_535, frame_bytes=2), reason="65535 channels"),
    failed("rate zero.wav", lambda s: wav(s, rate_hz=0), reason=r"\b0 Hz"),
    failed("rate of 3 Hz.wav", lambda s: wav(s, rate_hz=3), reason="sample rate of 3 Hz"),
    failed("rate of 4 GHz.wav", lambda s: wav(s, rate_hz=4_000_000_000), reason="4000000000 Hz"),
    failed("no bits.wav", lambda s: riff(chunk(b"fmt ", fmt(bits=0)), data(s)), reason=r"\b0 bits"),
    failed("unknown encoding.wav", lambda s: wav(s, tag=0x1234), reason="encoding 4660"),
    failed("MP3 in WAV.wav", lambda s: wav(s, tag=0x55, extra=bytes(14)), reason=f"MP3.*{CONVERT}"),
    failed("AIFF.wav", lambda s: encoded(s / 128, format="AIFF"), reason=f"AIFF.*{CONVERT}AIFF.wav AIFF.flac"),
    failed("AU.wav", lambda s: encoded(s / 128, format="AU"), reason=f"AU.*{CONVERT}"),
    failed("MP3.wav", lambda s: encoded(s / 128, 16_000, format="MP3"), reason=f"MP3.*{CONVERT}"),
    failed("Vorbis.wav", lambda s: encoded(s / 128, format="OGG"), reason=f"Ogg.*{CONVERT}"),
    failed("Opus.wav", lambda s: encoded(s / 128, 16_000, format="OGG", subtype="OPUS"), reason=f"Ogg.*{CONVERT}"),
    failed("M4A.wav", lambda s: b"\0\0\0\x20ftypM4A " + bytes(99), reason=f"M4A.*{CONVERT}"),
    failed("W64.wav", lambda s: encoded(s / 128, format="W64"), reason=f"W64.*{CONVERT}"),
    *(
        failed(
            f"{subtype}.wav",
            lambda s, subtype=subtype: encoded(s / 128, 8_000, format="WAV", subtype=subtype),
            reason=f"{title}.*no part.*{CONVERT}",
        )
        for subtype, title in (("GSM610", "GSM 6.10"), ("G721_32", "G721"), ("NMS_ADPCM_32", "NMS ADPCM"))
    ),
    failed("ZIP.wav", archive, reason="ZIP"),
    failed("letter.wav", lambda s: b"Dear mill, the recorder is broken.\n" * 99, reason="it holds text"),
    failed("web page.flac", lambda s: b"<!DOCTYPE html><p>404", reason="web page"),
    failed("zeros.wav", lambda s: bytes(5000), reason="zeros"),
    plain("FLAC.wav", flac),
    plain("WAV.flac", wav),
    plain("16 bit.flac", flac),
    plain("24 bit.flac", lambda s: flac(s, "PCM_24")),
    plain("ID3 before.flac", lambda s: b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + flac(s)),
    # Each block has a checksum of its own; the sum over the whole file cannot be checked where windows are read.
    plain("wrong MD5.flac", lambda s: patched_flac(s, 18, b"\x5a" * 16)),
    failed("cut in the middle.flac", lambda s: flac(s)[: len(flac(s)) // 2], reason=TRUNCATED),
    failed("cut in the header.flac", lambda s: flac(s)[:30], reason="FLAC header is damaged"),
    failed("damaged in the middle.flac", lambda s: damaged(flac(s)), reason=TRUNCATED),
    plain("no length.flac", lambda s: patched_flac(s, 13, flac_length(0)), reason="does not say how long"),
    plain("too long by its header.flac", lambda s: patched_flac(s, 13, flac_length(2 * len(s))), reason=TRUNCATED),
    plain("too long by far.flac", lambda s: patched_flac(s, 13, flac_length(2**36 - 1)), reason="can hold"),
    plain("too short by its header.flac", lambda s: patched_flac(s, 13, flac_length(len(s) // 3)), reason="goes on"),
    failed("two joined.flac", lambda s: flac(s) + flac(s), reason="two or more FLAC files"),
    *(
        failed(
            f"{bits} bits.flac",
            lambda s, bits=bits: verbatim_flac(s << bits - 8, bits=bits),
            reason=f"of {bits} bits a sample.*ffmpeg -i '{bits} bits.flac' .* '{bits} bits.wav'",
        )
        for bits in (12, 20, 32)
    ),
    plain("not compressed.flac", lambda s: verbatim_flac(s << 8)),
]

LENGTHS = [
    failed("0 bytes.wav", lambda s: b"", reason="0 bytes"),
    failed("0 bytes.flac", lambda s: b"", reason="0 bytes"),
    failed("1 byte.wav", lambda s: b"R", reason=NO_AUDIO),
    failed("12 bytes.wav", lambda s: wav(s)[:12], reason=NO_AUDIO),
    failed("cut in the header.wav", lambda s: wav(s)[:40], reason=NO_AUDIO),
    failed("header only.wav", lambda s: wav(s[:0]), reason="no samples"),
    failed("header without its sound.wav", lambda s: wav(s)[:44], reason=TRUNCATED),
    failed("cut in the middle.wav", lambda s: wav(s)[: len(s)], reason=TRUNCATED),
    failed("last byte missing.wav", lambda s: wav(s)[:-1], reason=TRUNCATED),
    skipped("1 sample.wav", lambda s: wav(s[:1]), reason=SHORT),
    skipped("1 sample.flac", lambda s: flac(s[:1]), reason=SHORT),
    skipped("one sample short.wav", lambda s: wav(s[:-1]), reason=SHORT),
]

RATES_AND_CHANNELS = [
    *(
        Entry(f"{rate_hz} Hz.wav", partial(at_rate, rate_hz=rate_hz))
        for rate_hz in (100, 8_000, 11_025, 17_067, 44_100, 96_000, 384_000)
    ),
    *(plain(f"{n} channels.wav", partial(in_channels, channels=n, format="WAV")) for n in range(2, 9)),
    plain("8 channels.flac", partial(in_channels, channels=8, format="FLAC")),
]

VALUES = [
    failed("NaN.wav", lambda s: with_bad(s, np.nan), reason=f"NaN.*{FAULT}"),
    failed("infinite.wav", lambda s: with_bad(s, np.inf), reason=f"infinite.*{FAULT}"),
    failed("minus infinite.wav", lambda s: with_bad(s, -np.inf), reason=f"infinite.*{FAULT}"),
    failed("near the largest float.wav", lambda s: with_bad(s, -3e38), reason=f"3e\\+38.*{FAULT}"),
    Entry("denormal.wav", lambda s: floats(s * 1e-42)),
    Entry("full scale.wav", lambda s: floats(np.sign(s))),
    Entry("integers as floats.wav", lambda s: floats(s * 256.0)),
    Entry("constant.wav", lambda s: floats(np.full(len(s), 0.5))),
    Entry("silence.wav", lambda s: wav(s * 0)),
]

NAMES = [
    plain(name, wav)
    for name in (
        'it\'s "quoted" `twice`.wav',
        " spaces  in front and behind .wav",
        "two\nlines.wav",
        "tab\tand return\r.wav",
        "escape \x1b[31mred\x1b[0m \x07.wav",
        "back\\slash.wav",
        "planeuse à bois, Hobelmaschine-Öl.wav",
        "cafe\u0301 decomposed.wav",
        "café composed.wav",
        "строгальный станок.wav",
        "刨床 録音.wav",
        "منشار.wav",
        "right to left \u202egnp.wav",
        "🪵🪚.wav",
        "<script>alert(1)<\u2215script>.wav",
        "<img src=x onerror=alert(1)>.wav",
        "100% %s %20 %00.wav",
        "-rf.wav",
        "--help.wav",
        "~.wav",
        "*?[a-z].wav",
        "question?region=x.wav",
        "hash#1.wav",
        "a:b;c|d&e$(f).wav",
        "=1+2.wav",
        "two,columns.wav",
        "null.wav",
        "UPPER CASE.WAV",
        f"{'long' * 62}xyz.wav",
    )
]

PLACES = [
    failed("<b>bold.wav", lambda s: b"", reason="0 bytes"),
    failed("not text \udce9\udcff.wav", wav, reason="not valid text.*Rename"),
    skipped(".hidden.wav", wav, reason="hidden"),
    skipped(
        "other format.mp3",
        lambda s: encoded(s / 128, 16_000, format="MP3"),
        reason="ffmpeg -i 'other format.mp3' 'other format.flac'",
    ),
    failed("folder.wav", place=lambda path, s: path.mkdir(), reason="is a folder"),
    plain("folder with sound.wav/inside.wav", place=put_inside),
    failed("pipe.wav", place=lambda path, s: os.mkfifo(path), reason="is a pipe"),
    failed("device.wav", place=lambda path, s: path.symlink_to("/dev/zero"), reason="or a device"),
    failed(
        "link to nothing.wav", place=lambda path, s: path.symlink_to("gone.wav"), reason=r"gone\.wav, which does not"
    ),
    failed("link to itself.wav", place=lambda path, s: path.symlink_to(path.name), reason="leads back to itself"),
    plain("link to an ordinary one.wav", place=lambda path, s: path.symlink_to("ordinary.wav")),
    Entry("link to the folder itself", place=lambda path, s: path.symlink_to("."), outcome="absent"),
    failed(UNREADABLE, place=lambda path, s: (path.write_bytes(wav(s)), path.chmod(0)), reason="Permission denied"),
]

ENTRIES: list[Entry] = [*HEADERS, *LENGTHS, *RATES_AND_CHANNELS, *VALUES, *NAMES, *PLACES]
