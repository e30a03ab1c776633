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
from collections.abc import Callable, Iterator, Sequence
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
# A network drive forgets its files for a moment.
_LOCAL_PAUSES_S = (0.2,)
# A folder that says nothing for so long is out of reach: a store's client would wait for minutes once more.
_LOOK_S = 30.0
# The published spectrograms are called by their recording's bare name. They lie two or three folders below all others.
_LEVELS_OF_SPECTROGRAMS = 3


class AccessError(RecordingError):
    """The file cannot be got at: it is missing or forbidden, or its disk or store fails. What it holds is unknown."""


def read_or_reason(recording: str, uri: str, read: Callable[[], Result]) -> Result | str:
    """What `read` gives of a recording, or the reason why it gives nothing, which is the fault of this file alone.

    Args:
        recording: its name, as in the manifest: the name of the folder of all recordings, and the path below it.
        uri: where it is.
        read: reads of it.

    Raises:
        StorageError: as `require_reach`.
    """
    pauses_s = [*(_PAUSES_S if storage.is_remote(uri) else _LOCAL_PAUSES_S)]
    patient_until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return read()
        except AccessError as error:
            reason, is_final = str(error), _is_final(error)
        except StudyError as error:  # of the store, such as that nobody says in which region it is
            reason, is_final = str(error), False
        except RecordingError as error:
            return str(error)
        except Exception as error:  # whatever a file may cause, it must not keep all others from being heard
            return f"{uri} cannot be read, unexpectedly: {type(error).__name__}: {error}"
        require_reach(recording, uri)
        if is_final or not pauses_s:
            return reason
        time.sleep(pauses_s.pop(0))
        if time.monotonic() > patient_until:
            pauses_s = []


def _is_final(error: AccessError) -> bool:
    """Whether the answer would be the same if one asked again."""
    return isinstance(error.__cause__, FileNotFoundError | PermissionError) or "ACCESS_DENIED" in str(error)


def require_reach(recording: str, uri: str) -> None:
    """Check that a file that cannot be got at is alone in that.

    From the file upwards to the folder of all recordings, the first folder that is there is looked at. It holds
    something, or its disk is no longer mounted there.

    Args:
        recording: as for `read_or_reason`.
        uri: where it is.

    Raises:
        StorageError: that folder cannot be listed or is empty, or none is there.
    """
    place, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    place = place.rstrip("/")
    is_alone = place.endswith(f"/{recording}") and "/" not in recording
    levels = 1 if is_alone else recording.count("/") or _LEVELS_OF_SPECTROGRAMS
    folders = [place.rsplit("/", level)[0] + mark + options for level in range(1, levels + 1)]
    found: list[str | None] = []
    look = threading.Thread(target=lambda: found.append(_complaint(folders, is_alone)), daemon=True)
    look.start()
    look.join(_LOOK_S)
    wrong = found[0] if found else f"Location {folders[0]!r} does not answer."
    if wrong is not None:
        raise StorageError(
            f"The recordings are out of reach. {' '.join(wrong.split())} No clip is called failed for that: once they "
            "can be read again, the same command goes on."
        )


def _complaint(folders: Sequence[str], is_alone: bool) -> str | None:
    """Why nothing can be read in any of some folders, each within the next one.

    Who names a single file, which is alone, need not be allowed to list its folder.
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
    except Exception:
        if watched.error is None:
            raise
    if watched.error is not None:
        raise watched.error
