"""Open a sound file for the decoder, local or remote, with its header corrected, and say why that fails."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile

from faithad import listing, storage
from faithad.clips import audio_headers
from faithad.clips.access import AccessError, for_decoder
from faithad.clips.audio_kinds import ffmpeg_command
from faithad.clips.corrections import CorrectedFile, Correction
from faithad.errors import RecordingError, shown

# libsndfile reads headers in many small pieces; without read-ahead each would be a request to an object store.
_READ_AHEAD_BYTES = 1 << 18

_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 100, 1_000_000


class DamagedRecordingError(RecordingError):
    """The decoder gave up in the middle of a file."""


@contextlib.contextmanager
def reasons(uri: str) -> Iterator[None]:
    """Turn decoding errors of the block into `RecordingError`, and errors of the disk or store into `AccessError`."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        wrong = "cannot be decoded: it is damaged or truncated. Copy it again."
        raise DamagedRecordingError(f"{shown(uri)} {wrong}") from error
    except FileNotFoundError as error:
        wrong = "does not exist. Was it moved or removed since the folder was listed?"
        raise AccessError(f"{shown(uri)} {wrong}") from error
    except (OSError, pa.ArrowException) as error:
        why = str(getattr(error, "strerror", None) or error).rstrip(".")
        wrong = f"cannot be read: {why}. Check its permissions and the connection."
        raise AccessError(f"{shown(uri)} {wrong}") from error


@contextlib.contextmanager
def open_sound(uri: str, *, until_s: float | None = None) -> Iterator[tuple[soundfile.SoundFile, Correction]]:
    """The decoder, and what was corrected in the file's header, see `audio_headers.correct`."""
    _refuse_no_file(uri)
    with reasons(uri), storage.open_input(uri) as raw, for_decoder(raw, _READ_AHEAD_BYTES) as file:
        size = file.seek(0, io.SEEK_END)
        # libsndfile accepts other formats, too, but silently shortens truncated files in those formats.
        if (wrong := audio_headers.foreign(file, uri)) is not None:
            raise refusal(uri, wrong)
        correction = audio_headers.correct(file, size, until_s=until_s)
        if isinstance(correction, str):
            raise refusal(uri, correction)
        try:
            sound = soundfile.SoundFile(CorrectedFile(file, size, correction))
        except soundfile.LibsndfileError as error:
            wrong = f"is no audio file that can be decoded: {audio_headers.complaint(file, uri)}."
            raise refusal(uri, wrong) from error
        with sound:
            if not _LOWEST_RATE_HZ <= sound.samplerate <= _HIGHEST_RATE_HZ:
                raise refusal(
                    uri,
                    f"has a sample rate of {sound.samplerate} Hz by its header, which cannot be right: "
                    f"{_LOWEST_RATE_HZ} to {_HIGHEST_RATE_HZ} Hz are taken. Export the recording again.",
                )
            if not sound.seekable():
                wrong = f"holds {sound.subtype_info} sound, of which no part can be decoded by itself."
                raise refusal(uri, f"{wrong} Convert it: {ffmpeg_command(uri)}")
            if correction.n_samples not in (None, sound.frames):
                raise refusal(
                    uri,
                    f"holds {correction.n_samples} samples by its bytes, and {sound.frames} by the decoder. "
                    "Export the recording again, as PCM (encoding 1).",
                )
            yield sound, correction


def lower_24_bits(uri: str, words: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Samples that are stored in the lower three bytes of four, at the scale of 32 bits.

    Raises:
        RecordingError: the highest byte is neither the sign nor zero, so that these are other samples.
    """
    shifted = words << 8
    if np.array_equal(shifted >> 8, words) or not (words >> 24).any():
        return shifted
    raise refusal(
        uri,
        "holds samples of 24 bits in four bytes each, which are not the lower three (S24_LE of ALSA). Which they are, "
        "its header does not say: export the recording again, with 24 or 32 bits.",
    )


def _refuse_no_file(uri: str) -> None:
    """Refuse a local path that is no regular file: opening a pipe would wait for ever."""
    if storage.is_remote(uri):
        return
    path = storage.locate(uri)[1]
    why = None
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            why = "cannot be read: it is a folder, no file"
        elif not stat.S_ISREG(mode):
            why = "cannot be read: it is a pipe or a device, no file"
    except FileNotFoundError:
        if os.path.islink(path):
            why = f"is a link to {shown(os.readlink(path))}, which does not exist"
        elif listing.NO_TEXT in path:
            why = "cannot be opened: its name is not valid text (UTF-8). Rename it"
    except OSError as error:
        if error.errno == errno.ELOOP:
            why = "is a link that leads back to itself"
    if why is not None:
        raise refusal(uri, f"{why}.")


def refusal(uri: str, wrong: str) -> RecordingError:
    return RecordingError(f"{shown(uri)} {wrong}")
