"""Why a sound file is unusable, or what is wrong in its header: a decoder only says that it failed.

Contents
    foreign(file, uri)      what kind of file it is, if neither WAV nor FLAC
    correct(file, ...)      how the file must be read, or why it cannot be
    complaint(file, uri)    why the decoder refuses a WAV or FLAC file
    is_open(file, size)     whether the header has no length yet, as that of a recorder that still writes

All take an open binary file and return texts that follow the file's name: "is truncated: ...".
"""

from __future__ import annotations

from typing import BinaryIO

from faithad.clips import wav_chunks
from faithad.clips.audio_kinds import ffmpeg_command, kind_of
from faithad.clips.corrections import Correction
from faithad.clips.flac_frames import DECODED_BITS, correct_flac, flac_start, read_stream
from faithad.clips.wav_chunks import correct_wav, is_wav

_MPEG = (b"\x50\0", b"\x55\0")
_START_BYTES = 256


def foreign(file: BinaryIO, uri: str) -> str | None:
    """Why a file is neither WAV nor FLAC; None if it is one of them."""
    start = _start(file)
    if not start:
        return "is empty (0 bytes): the recorder or a copy wrote nothing. Copy it again."
    if start[12:16] == b"fmt " and start[20:22] in _MPEG:
        return f"holds MP3 sound in a WAV file, which is not decoded. Convert it: {ffmpeg_command(uri)}"
    if is_wav(start) or flac_start(file) is not None:
        return None
    kind, is_sound = kind_of(start)
    if is_sound:
        return (
            f"is no audio file that can be decoded, whatever its name says: it holds {kind}. "
            f"Convert it: {ffmpeg_command(uri)}"
        )
    return f"is no audio file that can be decoded, whatever its name says: it holds {kind}. WAV or FLAC is needed."


def correct(file: BinaryIO, size: int, *, until_s: float | None) -> Correction | str:
    """How a WAV or FLAC file with a wrong header must be read, or why it cannot be.

    Args:
        file: the whole file.
        size: in bytes.
        until_s: up to where it is going to be read. Then no more bytes are looked at than that needs. None: the file
            is examined as a whole, so that the correction knows what is not heard.
    """
    if is_wav(_start(file)):
        return correct_wav(file, size, behind=until_s is None)
    stream = read_stream(file)
    if stream is None or stream.bits not in DECODED_BITS or stream.rate_hz == 0:
        return Correction()
    until = None if until_s is None else until_s * stream.rate_hz
    return correct_flac(file, size, stream, until=until)


def complaint(file: BinaryIO, uri: str) -> str:
    """Why the decoder refuses a WAV or FLAC file."""
    if is_wav(_start(file)):
        return wav_chunks.complaint(file)
    stream = read_stream(file)
    if stream is not None and stream.bits not in DECODED_BITS:
        return (
            f"it holds FLAC sound of {stream.bits} bits a sample, of which only "
            f"{', '.join(map(str, DECODED_BITS))} can be decoded here. Convert it ({ffmpeg_command(uri)})"
        )
    return "its FLAC header is damaged or cut off. Copy the file again"


def is_open(file: BinaryIO, size: int) -> bool:
    """Whether the header of a WAV or FLAC file has no length yet."""
    if is_wav(_start(file)):
        return wav_chunks.is_open(file, size)
    stream = read_stream(file)
    return stream is not None and stream.n_samples == 0


def _start(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(_START_BYTES)
