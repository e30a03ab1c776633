"""What the chunks of a WAV file say, and whether its bytes agree.

A decoder also reads a WAV file that is truncated, or whose header was never finished, up to some point, and reports
nothing; it guesses where the size of a sample contradicts that of a frame. This module counts the bytes. References:
IBM and Microsoft, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF), EBU Tech 3306 (RF64).

Contents
    correct_wav(file)   how a WAV file must be read, or why it cannot be
    complaint(file)     why the decoder refuses a WAV file
    is_open(file, size) whether the header has no length yet
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from faithad.clips.corrections import Correction
from faithad.clips.wav_clocks import BEXT, GUANO, LONGEST_BYTES, clock_of
from faithad.vocabulary import count

_FORMS = (b"RIFF", b"RIFX", b"RF64")
_FMT_BYTES = 16
_PCM, _EXTENSIBLE = 1, 0xFFFE
# Encodings whose samples have a fixed size: integers, floats, A-law, mu-law.
_BY_SAMPLE = (_PCM, 3, 6, 7)
_UNKNOWN_SIZE = 0xFFFFFFFF
_LARGEST_WAV_BYTES = 1 << 32
# A program that writes into a pipe, or that is killed, leaves a size near one of these powers of two: arecord
# 0x80000000, SoX 0x7FFFF000, ffmpeg 0xFFFFFFFF, others the same less their headers. In RF64 the size has 64 bits.
_OPEN_SIZES = (1 << 31, 1 << 32, 1 << 63, 1 << 64)
_NEAR_BYTES = 1 << 13
# The decoder takes no more.
_MOST_CHANNELS = 1024
# Recorders write fewer than ten.
_MOST_CHUNKS = 1000


@dataclass
class _Wav:
    """The chunks of a WAV file.

    Attributes:
        order: of the bytes, as `struct` writes it.
        names: of the chunks that were read.
        fmt: content of the chunk that describes the sound, which begins at `fmt_at`.
        size_at: position of the size of the sound.
        size_format: of that number, as `struct` writes it.
        data_at: where the sound begins.
        promised: bytes of sound according to the header.
        present: bytes from the start of the sound to the end of the file.
        behind: bytes after the last chunk.
        joined_bytes: of sound in further WAV files that follow; None if none follows.
        clocks: contents of the chunks that say when the recording began.
    """

    order: str
    names: list[bytes] = field(default_factory=list)
    fmt: bytes = b""
    fmt_at: int = 0
    size_at: int = 0
    size_format: str = ""
    data_at: int = 0
    promised: int = 0
    present: int = 0
    behind: int = 0
    joined_bytes: int | None = None
    clocks: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def fields(self) -> tuple[int, int, int, int, int, int]:
        """Encoding, channels, rate in Hz, bytes per second, bytes per frame, bits per sample."""
        return struct.unpack(f"{self.order}HHIIHH", self.fmt[:_FMT_BYTES])

    @property
    def encoding(self) -> int:
        """As in `fields`; of an extensible header, the encoding that its extension names."""
        if self.fields[0] == _EXTENSIBLE and len(self.fmt) >= 26:
            return int(struct.unpack(f"{self.order}H", self.fmt[24:26])[0])
        return self.fields[0]

    @property
    def is_open(self) -> bool:
        """Whether the header never got the size of the sound."""
        if self.promised == 0:
            return 0 < self.present == self.behind
        if self.promised == _UNKNOWN_SIZE:
            return True
        return self.promised > self.present and any(abs(self.promised - size) <= _NEAR_BYTES for size in _OPEN_SIZES)


def is_wav(start: bytes) -> bool:
    """Whether a file that begins with these bytes, 12 or more, is a WAV file."""
    return start[:4] in _FORMS and start[8:12] == b"WAVE"


def correct_wav(file: BinaryIO, size: int, *, behind: bool) -> Correction | str:
    """How a WAV file must be read, or why it cannot be.

    Args:
        file: the whole file.
        size: in bytes.
        behind: whether to examine what follows the sound. Else nothing behind the header is read.
    """
    wav = _read_chunks(file, size, behind=behind)
    is_without_ds64 = _read(file, 0, 4) == b"RF64" and b"ds64" not in wav.names
    if b"data" not in wav.names or len(wav.fmt) < _FMT_BYTES or is_without_ds64:
        return Correction()  # the decoder refuses it
    if wav.names.count(b"data") > 1:
        return f"is no audio file that can be decoded: {complaint(file)}."
    _, channels, rate_hz, bytes_per_s, frame_bytes, bits = wav.fields
    patches: dict[int, bytes] = {}
    remarks: list[str] = []
    is_s24_in_32 = False
    if is_by_sample := wav.encoding in _BY_SAMPLE and 0 < channels <= _MOST_CHANNELS and bits > 0:
        packed = channels * -(-bits // 8)
        is_contradicted = frame_bytes not in (0, packed) and bytes_per_s != rate_hz * packed
        is_s24_in_32 = is_contradicted and (wav.encoding, bits, frame_bytes) == (_PCM, 24, 4 * channels)
        if is_s24_in_32:
            patches[wav.fmt_at + 14] = struct.pack(f"{wav.order}H", 32)
            remarks.append("holds samples of 24 bits in four bytes each: the lower three were taken (S24_LE of ALSA)")
        elif is_contradicted:
            return (
                f"contradicts itself: {count(channels, 'channel')} of {bits} bits need {packed} bytes a frame, its "
                f"header says {frame_bytes}. Nobody can tell which is right: export the recording again."
            )
        elif frame_bytes != packed:
            patches[wav.fmt_at + 12] = struct.pack(f"{wav.order}H", packed)
        frame_bytes = frame_bytes if is_s24_in_32 else packed
        bytes_per_s = rate_hz * frame_bytes
    end = wav.data_at + wav.promised
    unheard, unheard_s = None, None

    def seconds(n_bytes: int) -> float | None:
        return n_bytes / bytes_per_s if bytes_per_s else None

    # Notes follow the sound in chunks of their own. Other bytes are sound, if they last more than a tenth of a second.
    negligible = 0 if wav.promised == 0 else bytes_per_s // 10
    if wav.is_open or wav.promised > wav.present:
        # A decoder makes noise of a block that is cut in two.
        end = size if is_by_sample else size - wav.present % max(1, frame_bytes)
    if wav.is_open:
        remarks.append(
            f"has a header without a length, as a recorder that was killed or a pipe leaves it ({wav.promised} bytes "
            f"of sound): it was read to the end of the file, {wav.present} bytes"
        )
    elif wav.promised > wav.present:
        unheard = (
            f"is truncated: its header announces {wav.promised} bytes of sound, {wav.present} are there "
            f"({wav.present / wav.promised:.0%}). An interrupted copy, a full disk or a recorder's fault does this: "
            "copy the file again."
        )
        if wav.present < max(1, frame_bytes):
            return unheard
        unheard_s = seconds(wav.promised - wav.present)
    elif wav.joined_bytes is not None:
        unheard = (
            "holds two or more WAV files, one behind the other: only the first is heard. Split them, or join their "
            "sound in an audio editor."
        )
        unheard_s = seconds(wav.joined_bytes)
    elif wav.behind > negligible and size > _LARGEST_WAV_BYTES:
        return (
            f"has outgrown the 4 GiB that a WAV header can count: {wav.promised} bytes of sound are announced, "
            f"{wav.behind} more follow. Open it as raw data in an audio editor and save it again, as FLAC or RF64."
        )
    elif wav.behind > negligible:
        unheard = (
            f"is longer than its header says: {wav.promised} bytes of sound are announced and heard, {wav.behind} more "
            "follow. The recorder never finished its header: open the file as raw data in an audio editor and save it "
            "again."
        )
        unheard_s = seconds(wav.behind)
    n_bytes = min(end, size) - wav.data_at
    recorded_at, utc_offset_s = clock_of(wav.clocks)
    if n_bytes != wav.promised and not (wav.order == "<" and wav.size_format == "<I" and n_bytes > _UNKNOWN_SIZE):
        patches[wav.size_at] = struct.pack(wav.size_format, n_bytes)
    return Correction(
        patches,
        end=end if end < size else None,
        n_samples=n_bytes // frame_bytes if is_by_sample else None,
        is_s24_in_32=is_s24_in_32,
        remark="; it ".join(remarks) + "." if remarks else None,
        unheard=unheard,
        unheard_s=unheard_s,
        recorded_at=recorded_at,
        utc_offset_s=utc_offset_s,
    )


def is_open(file: BinaryIO, size: int) -> bool:
    """Whether the header of a WAV file never got the size of the sound, or says that there is none."""
    wav = _read_chunks(file, size, behind=False)
    return b"data" in wav.names and (wav.is_open or wav.promised == 0)


def complaint(file: BinaryIO) -> str:
    """Why the decoder refuses a WAV file."""
    wav = _read_chunks(file, file.seek(0, 2), behind=True)
    n_fmt, n_data = wav.names.count(b"fmt "), wav.names.count(b"data")
    if len(wav.names) > _MOST_CHUNKS:
        return f"it has more than {_MOST_CHUNKS} chunks, where recorders write fewer than ten. Export the file again"
    if not n_fmt:
        return "the chunk that says what the sound is ('fmt ') is missing or cut off. Copy or export the file again"
    if not n_data:
        return "the chunk that holds the sound ('data') is missing. Copy or export the file again"
    if n_fmt > 1 or n_data > 1:
        name = "fmt " if n_fmt > 1 else "data"
        return f"there are {max(n_fmt, n_data)} {name!r} chunks where one is allowed. Export the file again"
    if _read(file, 0, 4) == b"RF64" and b"ds64" not in wav.names:
        return "the chunk that says how long the sound is ('ds64') is missing. Export the file again"
    if wav.names.index(b"data") < wav.names.index(b"fmt "):
        return "the sound comes before the chunk that says what it is ('fmt '). Export the file again"
    if len(wav.fmt) < _FMT_BYTES:
        return f"its 'fmt ' chunk has {len(wav.fmt)} bytes where {_FMT_BYTES} are needed. Export the file again"
    _, channels, rate_hz, _, frame_bytes, bits = wav.fields
    return (
        f"its header says encoding {wav.encoding}, {channels} channels, {rate_hz} Hz, {bits} bits a sample and "
        f"{frame_bytes} bytes a frame, and such sound is unknown. Export it as PCM (encoding 1)"
    )


def _read_chunks(file: BinaryIO, size: int, *, behind: bool) -> _Wav:
    """The chunks, up to the first one that makes no sense, or up to the sound if nothing `behind` it is wanted."""
    wav = _Wav(order=">" if _read(file, 0, 4) == b"RIFX" else "<")
    position, long_size_at = 12, None
    while position + 8 <= size and len(wav.names) <= _MOST_CHUNKS:
        start = _read(file, position, 12)
        if b"data" in wav.names and is_wav(start):
            wav.joined_bytes = _joined_bytes(file, position, size)
            return wav
        name, length = struct.unpack(f"{wav.order}4sI", start[:8])
        if not name.isascii() or not name.decode().isprintable():
            break
        position += 8
        wav.names.append(name)
        if name == b"ds64":  # RF64: the true sizes of a file above 4 GiB
            long_size_at = position + 8
        elif name == b"fmt " and not wav.fmt:
            wav.fmt, wav.fmt_at = _read(file, position, min(length, 40)), position
        elif name in (BEXT, GUANO):
            wav.clocks.setdefault(name, _read(file, position, min(length, LONGEST_BYTES)))
        elif name == b"data" and wav.names.count(b"data") == 1:
            wav.data_at, wav.present = position, size - position
            wav.size_at, wav.size_format, wav.promised = position - 4, f"{wav.order}I", length
            if length == _UNKNOWN_SIZE and long_size_at is not None:
                content = _read(file, long_size_at, 8).ljust(8, b"\0")
                wav.size_at, wav.size_format, wav.promised = long_size_at, "<Q", struct.unpack("<Q", content)[0]
            length = wav.promised
            if length and not behind:
                return wav
        if position + length > size:
            position -= 8
            break
        position += length + length % 2
    if b"data" in wav.names and wav.present >= wav.promised and len(wav.names) <= _MOST_CHUNKS:
        wav.behind = max(0, size - position)
    return wav


def _joined_bytes(file: BinaryIO, position: int, size: int) -> int:
    """Bytes of sound in the WAV files that begin at a position, one behind the other."""
    n_bytes = 0
    while position + 8 <= size:
        start = _read(file, position, 12)
        if is_wav(start):
            position += 12
            continue
        name, length = struct.unpack("<4sI", start[:8])
        if name == b"data":
            n_bytes += min(length, size - position - 8)
        position += 8 + length + length % 2
    return n_bytes


def _read(file: BinaryIO, position: int, n: int) -> bytes:
    file.seek(position)
    return file.read(n)
