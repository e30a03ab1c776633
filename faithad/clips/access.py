"""Tell a recording that cannot be read from a disk or a store that cannot be reached.

A bad file costs its own clips. If a disk or a store is away, its files are not to blame. So every recording that gets a
ledger row is read through `read_or_reason`, which looks at the folder of the recordings before it blames a file.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa

from faithad import storage
from faithad.errors import RecordingError, StorageError, StudyError

Result = TypeVar("Result")

# Pauses between tries to read a remote file. A busy store refuses some requests; pyarrow repeats a request that opens a
# file, but not one that reads from it. `storage` repeats what is refused at random, within 4 s.
_PAUSES_S = (0.5, 2.0, 5.0)
# After this time only one more try follows.
_PATIENCE_S = 8.0
# A network drive may lose a file for a moment.
_LOCAL_PAUSES_S = (0.2,)
# A folder that does not answer for this long is out of reach; the client of a store would wait for minutes.
_LOOK_S = 30.0
# The recording of a published spectrogram is a file name without folders; the file lies two or three folders deep.
_LEVELS_OF_SPECTROGRAMS = 3


class AccessError(RecordingError):
    """The file cannot be opened or read: it is missing or forbidden, or its disk or store fails."""


def read_or_reason(recording: str, uri: str, read: Callable[[], Result]) -> Result | str:
    """The result of `read`, or the reason why this one recording cannot be read.

    Args:
        recording: its name, as in the manifest: the name of the folder of all recordings and the path inside it.
        uri: its location.
        read: reads it.

    Raises:
        StorageError: as `require_reach`.
    """
    pauses_s = list(_PAUSES_S if storage.is_remote(uri) else _LOCAL_PAUSES_S)
    patient_until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return read()
        except AccessError as error:
            reason, is_final = str(error), _is_final(error)
        except StudyError as error:  # of the store, for example an unknown region
            reason, is_final = str(error), False
        except RecordingError as error:
            return str(error)
        except Exception as error:  # no error of one file may stop the others
            return f"{uri} cannot be read, unexpectedly: {type(error).__name__}: {error}"
        require_reach(recording, uri)
        if is_final or not pauses_s:
            return reason
        time.sleep(pauses_s.pop(0))
        if time.monotonic() > patient_until:
            pauses_s = []


def _is_final(error: AccessError) -> bool:
    """Whether another try would give the same error."""
    return isinstance(error.__cause__, FileNotFoundError | PermissionError)


def require_reach(recording: str, uri: str) -> None:
    """Check that the folder of a file that cannot be read can still be reached.

    The check goes up from the file to the folder of all recordings and takes the first folder that exists. If that is
    empty, its disk is no longer mounted.

    Args:
        recording: as for `read_or_reason`.
        uri: its location.

    Raises:
        StorageError: this folder cannot be listed or is empty, or no folder exists.
    """
    place, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    place = place.rstrip("/")
    is_alone = place.endswith(f"/{recording}") and "/" not in recording
    levels = 1 if is_alone else recording.count("/") or _LEVELS_OF_SPECTROGRAMS
    folders = [place.rsplit("/", level)[0] + mark + options for level in range(1, levels + 1)]
    answers: list[str | None] = []
    look = threading.Thread(target=lambda: answers.append(_problem_of_folders(folders, is_alone)), daemon=True)
    look.start()
    look.join(_LOOK_S)
    problem = answers[0] if answers else f"Location {folders[0]!r} does not answer."
    if problem is not None:
        raise StorageError(
            f"The recordings are out of reach. {' '.join(problem.split())} No clip counts as failed for this reason. "
            "Repeat the command when they can be read again: it continues where it stopped."
        )


def _problem_of_folders(folders: Sequence[str], is_alone: bool) -> str | None:
    """Why nothing can be read in a chain of folders, each inside the next; None if the first that exists is filled.

    A user who names a single file (`is_alone`) may lack the permission to list its folder.
    """
    for folder in folders:
        try:
            is_filled = storage.is_filled(folder)
        except StudyError as error:
            return None if is_alone and "ACCESS_DENIED" in str(error) else str(error)
        except PermissionError:
            if is_alone:
                return None
            is_filled = None
        except (OSError, pa.ArrowException) as error:
            return f"Location {folder!r} cannot be listed: {getattr(error, 'strerror', None) or error}."
        if is_filled is not None:
            return None if is_filled else f"Location {folder!r} is gone, or holds nothing any more."
    return f"Location {folders[-1]!r} is gone, or holds nothing any more."


class _RecordsError(io.RawIOBase):
    """A file that keeps the first read error, which the decoder would silently take for the end of the file."""

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
def for_decoder(file: pa.NativeFile, read_ahead_bytes: int) -> Iterator[BinaryIO]:
    """The file for a decoder. If a read fails, that error is raised at the end, whatever the decoder made of it."""
    recorded = _RecordsError(file)
    try:
        with io.BufferedReader(recorded, read_ahead_bytes) as buffer:
            yield cast(BinaryIO, buffer)
    except Exception:
        if recorded.error is None:
            raise
    if recorded.error is not None:
        raise recorded.error
