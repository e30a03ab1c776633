"""Is it this file that cannot be read, or all of them?

What is wrong with one file costs its own clips. A disk or a store that is away is no fault of its files: so
`read_or_reason`, through which all recordings are read that a ledger speaks of, looks at the folder of the recordings
before it believes that one of them cannot be got at.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa

from faithad import storage
from faithad.errors import RecordingError, StorageError, StudyError

Result = TypeVar("Result")

# Between tries to read a remote file. A store that is busy answers some requests and refuses others; pyarrow asks again
# where it opens a file, but not where it reads from one.
_PAUSES_S = (0.5, 2.0, 5.0)
# Where the tries took longer by themselves, the next one is the last.
_PATIENCE_S = 8.0
# A folder that says nothing for so long is out of reach. Left alone, pyarrow would wait for minutes once more.
_LOOK_S = 30.0


class AccessError(RecordingError):
    """The file cannot be got at: it is missing or forbidden, or its disk or store fails. What it holds is unknown."""


def read_or_reason(recording: str, uri: str, read: Callable[[], Result]) -> Result | str:
    """What `read` gives of a recording, or the reason why it gives nothing, which is the fault of this file alone.

    Args:
        recording: its name, as in the manifest: the name of the folder of all recordings, and the path below it.
        uri: where it is.
        read: reads of it.

    Raises:
        StorageError: the folder of the recordings cannot be reached, is gone or empty.
    """
    pauses_s = [*_PAUSES_S] if storage.is_remote(uri) else []
    patient_until = time.monotonic() + _PATIENCE_S
    while True:
        is_missing = False
        try:
            return read()
        except AccessError as error:
            reason, is_missing = str(error), isinstance(error.__cause__, FileNotFoundError)
        except StudyError as error:  # of the store, such as that nobody says in which region it is
            reason = str(error)
        except RecordingError as error:
            return str(error)
        except Exception as error:  # whatever a file may cause, it must not keep all others from being heard
            return f"{uri} cannot be read, unexpectedly: {type(error).__name__}: {error}"
        # The published spectrograms have a recording's bare name, and only the folder that they lie in is known.
        require_folder(uri, levels=max(1, recording.count("/")))
        if is_missing or not pauses_s:
            return reason
        time.sleep(pauses_s.pop(0))
        if time.monotonic() > patient_until:
            pauses_s = []


def require_folder(uri: str, *, levels: int = 1) -> None:
    """Check that something can be read in the folder so many levels above a file.

    Raises:
        StorageError: the folder cannot be reached, is gone or empty.
    """
    place, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    folder = place.rsplit("/", levels)[0] + mark + options
    found: list[str | None] = []
    look = threading.Thread(target=lambda: found.append(_complaint(folder)), daemon=True)
    look.start()
    look.join(_LOOK_S)
    wrong = found[0] if found else f"Location {folder!r} does not answer."
    if wrong is not None:
        raise StorageError(
            f"The recordings are out of reach. {' '.join(wrong.split())} No clip is called failed for that: once they "
            "can be read again, the same command goes on."
        )


def _complaint(folder: str) -> str | None:
    """Why nothing can be read in a folder."""
    try:
        return None if storage.is_filled(folder) else f"Location {folder!r} is gone, or holds nothing any more."
    except StudyError as error:
        return str(error)
    except (OSError, pa.ArrowException) as error:
        return f"Location {folder!r} cannot be listed: {getattr(error, 'strerror', None) or error}."


class _Watched(io.RawIOBase):
    """A file that keeps the first error of reading it: the decoder takes that for the file's end, without a word."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        if self.error is None:
            try:
                return int(self._file.readinto(buffer))
            except (OSError, pa.ArrowException) as error:
                self.error = error
        return 0


@contextlib.contextmanager
def told_errors(file: pa.NativeFile, read_ahead_bytes: int) -> Iterator[BinaryIO]:
    """The file as a decoder is to read it: an error of reading is raised at the end, whatever was made of it."""
    watched = _Watched(file)
    try:
        with io.BufferedReader(watched, read_ahead_bytes) as buffer:
            yield cast(BinaryIO, buffer)
    finally:
        if watched.error is not None:
            raise watched.error
