"""Why a sound file is unusable, from its header: the decoder only says that it failed, but a person needs the reason.

A decoder also reads a WAV file that is truncated, or whose header was never finished, up to some point, and reports
nothing; this module counts the bytes. References: IBM and Microsoft, "Multimedia Programming Interface and Data
Specifications 1.0" (RIFF), EBU Tech 3306 (RF64), RFC 9639 (FLAC).

Contents
    foreign(file)      what kind of file it is, if neither WAV nor FLAC
    partial(file)      what is missing of its sound or its header
    complaint(file)    why the decoder refuses a WAV or FLAC file

All take an open binary file and return a text that follows the file's name: "is truncated: ...".
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

# The first bytes of other files that people name like a recording.
_KINDS = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a compressed file (gzip)"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"OggS", "Ogg sound (Vorbis or Opus)"),
    ((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3"), "MP3 sound"),
    (b"\xff\xf1", "AAC sound"),
    (b"FORM", "AIFF sound"),
    (b".snd", "AU sound"),
    (b"caff", "CAF sound"),
    (b"riff", "W64 sound"),
    (b"MThd", "a MIDI file"),
    (b"RIFF", "a RIFF file, but no WAV"),
    (b"\x30\x26\xb2\x75", "WMA sound"),
    (b"%PDF", "a PDF document"),
    ((b"\x89PNG", b"\xff\xd8\xff"), "a picture"),
    (b"<", "a web page or XML text"),
    (b"\0\0\0\0\0\0\0\0", "zeros, as a failing disk or a download that was cut off leaves them"),
)

_WAV_FORMS = (b"RIFF", b"RIFX", b"RF64")
_MPEG = (b"\x50\0", b"\x55\0")
_UNKNOWN_SIZE = 0xFFFFFFFF
_FMT_BYTES = 16
_LARGEST_WAV_BYTES = 1 << 32
# The smallest frame holds a block of equal samples: header, one sample, checksums.
_FLAC_LEAST_FRAME_BYTES = 10


@dataclass
class _Wav:
    """The chunks of a WAV file.

    Attributes:
        names: of all chunks.
        fmt: content of the chunk that describes the sound.
        order: of the bytes, as `struct` writes it.
        promised: bytes of sound according to the header, None if it leaves the length open.
        present: bytes from the start of the sound to the end of the file.
        behind: bytes after the last chunk.
    """

    names: list[bytes]
    fmt: bytes = b""
    order: str = "<"
    promised: int | None = None
    present: int = 0
    behind: int = 0

    @property
    def fields(self) -> tuple[int, int, int, int, int, int]:
        """Encoding, channels, rate in Hz, bytes per second, bytes per frame, bits per sample."""
        return struct.unpack(f"{self.order}HHIIHH", self.fmt[:_FMT_BYTES])


def foreign(file: BinaryIO) -> str | None:
    """Why a file is neither WAV nor FLAC; None if it is one of them."""
    start = _read(file, 0, 22)
    if not start:
        return "is empty (0 bytes): the recorder or a copy wrote nothing. Copy it again."
    if start[12:16] == b"fmt " and start[20:22] in _MPEG:
        return "holds MP3 sound in a WAV file. Export it as PCM (encoding 1)."
    if _is_wav(start) or _flac_start(file) is not None:
        return None
    kind = next((kind for magic, kind in _KINDS if start.startswith(magic)), None)
    if start[4:8] == b"ftyp":
        kind = "MP4 or M4A sound"
    if kind is None:
        shown = start[:12].decode("ascii", "replace")
        kind = f"something that begins with {shown!r}" if shown.isprintable() else "something else"
    return f"is no audio file that can be decoded, whatever its name says: it holds {kind}. WAV or FLAC is needed."


def partial(file: BinaryIO) -> str | None:
    """Why the length in the header cannot be right: a WAV file has less or more sound, or a FLAC file has too few bytes
    for its samples. None if it may be right.
    """
    size = file.seek(0, io.SEEK_END)
    if not _is_wav(_read(file, 0, 12)):
        return _impossible_flac(file, size)
    wav = _walk(file, size)
    if wav.promised is None:
        return None
    if wav.promised > wav.present:
        return (
            f"is truncated: its header announces {wav.promised} bytes of sound, {wav.present} are there "
            f"({wav.present / wav.promised:.0%}). An interrupted copy or a full disk does this: copy the file again."
        )
    # Notes follow the sound in chunks of their own. Other bytes are sound, if they last more than a tenth of a second.
    negligible = wav.fields[2] * wav.fields[4] // 10 if wav.promised and len(wav.fmt) >= _FMT_BYTES else 0
    if wav.behind <= negligible:
        return None
    defect = "holds no samples by its header" if wav.promised == 0 else "is longer than its header says"
    if size > _LARGEST_WAV_BYTES:
        defect = "has outgrown the 4 GiB that a WAV header can count"
    return (
        f"{defect}: {wav.promised} bytes of sound are announced, {wav.behind} more follow. The recorder never finished "
        "its header: open the file as raw data in an audio editor and save it again, as FLAC or RF64 if it is long."
    )


def complaint(file: BinaryIO) -> str:
    """Why the decoder refuses a WAV or FLAC file."""
    if not _is_wav(_read(file, 0, 12)):
        return "its FLAC header is damaged or cut off. Copy the file again"
    wav = _walk(file, file.seek(0, io.SEEK_END))
    n_fmt, n_data = wav.names.count(b"fmt "), wav.names.count(b"data")
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
        return "the sound stands before the chunk that says what it is ('fmt '). Export the file again"
    if len(wav.fmt) < _FMT_BYTES:
        return f"its 'fmt ' chunk has {len(wav.fmt)} bytes where {_FMT_BYTES} are needed. Export the file again"
    encoding, channels, rate_hz, _, frame_bytes, bits = wav.fields
    return (
        f"it cannot be sound of encoding {encoding}, with {channels} channels, {rate_hz} Hz, {bits} bits a sample and "
        f"{frame_bytes} bytes a frame. Export it as PCM (encoding 1)"
    )


def _walk(file: BinaryIO, size: int) -> _Wav:
    """All chunks, up to the first one that makes no sense."""
    wav = _Wav(names=[], order=">" if _read(file, 0, 4) == b"RIFX" else "<")
    position, long_size = 12, None
    while position + 8 <= size:
        name, length = struct.unpack(f"{wav.order}4sI", _read(file, position, 8))
        if not name.isascii() or not name.decode().isprintable():
            break
        position += 8
        wav.names.append(name)
        if name == b"ds64":  # RF64: the true sizes of a file above 4 GiB
            _, long_size = struct.unpack("<QQ", _read(file, position, 16).ljust(16, b"\0"))
        elif name == b"fmt " and not wav.fmt:
            wav.fmt = _read(file, position, min(length, 40))
        elif name == b"data" and wav.names.count(b"data") == 1:
            promised = long_size if length == _UNKNOWN_SIZE else length
            wav.promised, wav.present = promised, size - position
            if promised is None:
                return wav
            length = promised
        if position + length > size:
            position -= 8
            break
        position += length + length % 2
    if b"data" in wav.names and wav.present >= (wav.promised or 0):
        wav.behind = max(0, size - position)
    return wav


def _is_wav(start: bytes) -> bool:
    return start[:4] in _WAV_FORMS and start[8:12] == b"WAVE"


def _flac_start(file: BinaryIO) -> int | None:
    """Where FLAC's first block begins: after `fLaC`, before which there may be an ID3 tag. None for other files."""
    start = _read(file, 0, 10)
    place = 0
    if start[:3] == b"ID3" and len(start) == 10:
        place = 10 + (start[6] << 21 | start[7] << 14 | start[8] << 7 | start[9])
    return place + 8 if _read(file, place, 4) == b"fLaC" else None


def _impossible_flac(file: BinaryIO, size: int) -> str | None:
    """Why a FLAC file cannot hold its samples. Else one wrong bit could make hundreds of thousands of failing clips."""
    block = _read(file, _flac_start(file) or 0, 18)
    if len(block) < 18:
        return None
    most = size // _FLAC_LEAST_FRAME_BYTES * int.from_bytes(block[2:4], "big")
    n_samples = int.from_bytes(block[13:18], "big") & (1 << 36) - 1
    if n_samples <= most:
        return None
    return (
        f"is damaged: its header announces {n_samples} samples, more than a FLAC file of {size} bytes can hold. "
        "Copy it again."
    )


def _read(file: BinaryIO, position: int, n: int) -> bytes:
    file.seek(position)
    return file.read(n)
