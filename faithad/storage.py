"""Read and write files at a location: a local path or a URI that pyarrow.fs opens (`s3://`, `gs://`).

A write is all or nothing: a local file is written under another name, flushed to the disk and then renamed; an object
store publishes an object only when it is complete. No reader sees half a file, and neither a process that is killed nor
a power cut leaves one.

pyarrow repeats a request that a store does not answer: with S3 for 6 s if the connection is refused, for 100 s if there
is no answer at all. A request to read that a store refuses, or answers with too few bytes, is repeated here. Then the
functions here raise `StorageError`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import re
import shutil
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from faithad import s3_keys
from faithad.errors import DamagedError, FullError, StorageError, StudyError, without_secrets
from faithad.locations import ENVIRONMENT, have_expired, location_problem, store_message
from faithad.locations import is_remote as is_remote
from faithad.locations import join as join
from faithad.locations import join_path as join_path
from faithad.locations import name_of as name_of
from faithad.locations import quoted as quoted

# Defaults that a URI can override. S3: one request for a small object instead of three, and no unfinished upload that
# costs money after a kill. Google: without a limit, pyarrow repeats unanswered requests for a quarter of an hour.
_OPTIONS = {"s3": {"allow_delayed_open": "true"}, "gs": {"retry_limit_seconds": "60"}}

# Pauses before a store is asked again that has refused a request, or has sent too few bytes: under load some do so at
# random.
_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
_MARK_BYTES = 16
_REFUSED = re.compile("ACCESS_DENIED|PERMISSION_DENIED|HTTP status 403")

_FLUSHES_AT_ONCE = 16

# The errors of a disk that is full, or of which a user has filled his part.
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota of this user is used up"}

Result = TypeVar("Result")


def locate(location: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a location, and the path inside it.

    Raises:
        StudyError: pyarrow does not know the scheme or an option, or the location contains a secret.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    if (problem := location_problem(location)) is not None:
        raise StudyError(f"Location {without_secrets(location)!r} {problem}")
    parts = urllib.parse.urlsplit(quoted(location))
    options = _OPTIONS.get(parts.scheme, {}) | dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    settings = tuple(os.environ.get(name) for name in ENVIRONMENT.get(parts.scheme, ()))
    try:
        file_system, top = _file_system(
            f"{parts.scheme}://{parts.netloc}/", urllib.parse.urlencode(options, quote_via=urllib.parse.quote), settings
        )
    except (ValueError, pa.ArrowException, OSError) as error:
        raise StudyError(
            f"Location {location!r} cannot be opened: {store_message(error, location)} "
            "Give a local path or a URI such as s3://bucket/folder."
        ) from error
    return file_system, f"{top.rstrip('/')}{urllib.parse.unquote(parts.path).rstrip('/')}" or "/"


@functools.lru_cache(maxsize=64)
def _file_system(top: str, options: str, environment: tuple[str | None, ...]) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI without its path. It is cached because a new one connects and signs in again.

    `environment` holds the values of the variables that pyarrow reads: a new account needs a new file system.
    """
    opened: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(f"{top}?{options}" if options else top)
    return opened


def exists(location: str) -> bool:
    return bool(_kind(location) != pafs.FileType.NotFound)


def is_folder(location: str) -> bool:
    return bool(_kind(location) == pafs.FileType.Directory)


def is_file(location: str) -> bool:
    return bool(_kind(location) == pafs.FileType.File)


def is_filled(folder: str) -> bool | None:
    """Whether a folder contains anything; None if it does not exist. The folder of an unmounted disk is often empty.

    Raises:
        OSError: the folder cannot be reached or listed.
    """
    file_system, path = locate(folder)
    if not isinstance(file_system, pafs.LocalFileSystem):
        return is_folder(folder) or None  # an object store has no empty folders
    try:
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except (FileNotFoundError, NotADirectoryError):
        return None


def size_and_time(location: str) -> tuple[int, int]:
    """Bytes of a file, and when it was last modified, in nanoseconds since 1970.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is out of reach.
    """
    file_system, path = locate(location)
    if isinstance(file_system, pafs.LocalFileSystem):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    info = information(location)
    if info.type != pafs.FileType.File:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
    return info.size, info.mtime_ns


def _kind(location: str) -> pafs.FileType:
    kind: pafs.FileType = information(location).type
    return kind


def information(location: str) -> pafs.FileInfo:
    file_system, path = locate(location)

    def ask() -> pafs.FileInfo:
        with read_errors(location):
            if s3_keys.has_empty_part(location) and (odd := s3_keys.information(location)) is not None:
                return odd
            info = file_system.get_file_info(path)
            # Some tools make an empty object with the name of a folder.
            if is_remote(location) and info.type == pafs.FileType.File and info.size == 0:
                below = file_system.get_file_info(pafs.FileSelector(path, allow_not_found=True))
                return pafs.FileInfo(path, pafs.FileType.Directory) if below else info
            return info

    return asked_again(location, ask)


def asked_again(location: str, ask: Callable[[], Result]) -> Result:
    """The result of a request, repeated if a store refuses it or sends too few bytes."""
    for pause_s in _PAUSES_S if is_remote(location) else ():
        try:
            return ask()
        except StorageError as error:
            if not (isinstance(error, _TooFewBytes) or _REFUSED.search(str(error))):
                raise
        time.sleep(pause_s)
    return ask()


# Arrow's threads drop a table's file a moment after it was read. If their reference were the last one, they would need
# the interpreter, and abort the process where that is ending.
_kept: deque[pa.PythonFile] = deque(maxlen=64)


@contextlib.contextmanager
def open_input(location: str) -> Iterator[pa.NativeFile]:
    """A seekable binary file for reading.

    Raises:
        OSError: the file is missing or unreadable, or not a regular file: opening a pipe would wait for ever.
    """
    file_system, path = locate(location)
    if isinstance(file_system, pafs.LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, no file", path)

    def ask() -> pa.NativeFile | s3_keys.S3Object:
        with read_errors(location):
            return s3_keys.S3Object(location) if s3_keys.has_empty_part(location) else file_system.open_input_file(path)

    with contextlib.ExitStack() as stack:
        file = asked_again(location, ask)
        if not isinstance(file, s3_keys.S3Object):
            stack.enter_context(file)
        if is_remote(location):
            file = pa.PythonFile(_PatientFile(file, location), mode="r")
            _kept.append(file)
        yield file


class _TooFewBytes(StorageError):
    """A store sent fewer bytes than the object has, as if they were all."""


class _PatientFile(io.RawIOBase):
    """An object of a store: each read gives all bytes, and is repeated as `asked_again` says."""

    def __init__(self, file: pa.NativeFile | s3_keys.S3Object, location: str) -> None:
        self._file, self._location, self._n_bytes = file, location, int(file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        left = max(0, self._n_bytes - start)
        due = left if size is None or size < 0 else min(size, left)

        def ask() -> bytes:
            # pyarrow takes a short answer of S3 for a whole one and leaves the rest of the buffer as it was.
            content, unwritten = bytearray(due), os.urandom(min(due, _MARK_BYTES))
            content[due - len(unwritten) :] = unwritten
            with read_errors(self._location):
                self._file.seek(start)
                n_bytes = self._file.readinto(content)
            if n_bytes < due or (due and content.endswith(unwritten)):
                raise _TooFewBytes(f"Location {self._location!r}: fewer than {due:,} bytes came.")
            return bytes(content)

        return asked_again(self._location, ask)


@contextlib.contextmanager
def open_output(location: str, *, flush: bool = True) -> Iterator[pa.NativeFile]:
    """A binary file for writing, which gets its name only when the block ends without an error.

    Args:
        location: of the file.
        flush: whether a local file is on the disk before it gets its name. Without it, a power cut in the next seconds
            may damage the file: for many small files that are flushed together later, see `flush_files`.

    Raises:
        FullError: the disk is full.
        StudyError: the location cannot be written: no such bucket, no permission, a file where a folder should be.
            Errors that the block itself raises are not changed.
    """
    file_system, path = locate(location)
    if isinstance(file_system, pafs.LocalFileSystem):
        folder, name = os.path.split(path)
        aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
        try:
            with _write_errors(location):
                os.makedirs(folder, exist_ok=True)
                file = file_system.open_output_stream(aside)
            with contextlib.closing(file):
                yield file
                with _write_errors(location):
                    file.close()
                    if flush:
                        _flush(aside)
                    os.replace(aside, path)
                    if flush:
                        _flush(folder)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(aside)
    else:
        # Closing an object store's stream publishes what was written, even after an error: so write to memory first.
        buffer = pa.BufferOutputStream()
        yield buffer
        with _write_errors(location), file_system.open_output_stream(path) as file:
            file.write(buffer.getvalue())


def flush_files(folder: str) -> None:
    """Return when all files of a local folder are on the disk; an object store has them when it has answered.

    Raises:
        StudyError: the disk does not take them.
    """
    file_system, path = locate(folder)
    if not isinstance(file_system, pafs.LocalFileSystem) or not os.path.isdir(path):
        return
    with _write_errors(folder):
        with ThreadPoolExecutor(_FLUSHES_AT_ONCE) as pool:  # the disk takes many at once
            for _ in pool.map(_flush, (os.path.join(path, name) for name in os.listdir(path))):
                pass
        _flush(path)


def _flush(path: str) -> None:
    """Return when a local file, or the names in a local folder, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def read_errors(location: str) -> Iterator[None]:
    """Turn errors of a store into `StorageError`; errors of a local disk stay as they are."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except (OSError, pa.ArrowInvalid) as error:
        if not is_remote(location):
            raise
        raise StorageError(
            f"Location {location!r} cannot be reached or read: {store_message(error, location)}"
        ) from error


@contextlib.contextmanager
def _write_errors(location: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if (problem := _FULL.get(getattr(error, "errno", None) or 0)) and not is_remote(location):
            raise FullError(f"Location {location!r} cannot be written: {problem}. {_room_left(location)}") from error
        hint = "" if have_expired(error) else " Choose another one, or make it writable."
        raise StudyError(f"Location {location!r} cannot be written: {store_message(error, location)}{hint}") from error


def _room_left(location: str) -> str:
    folder = locate(location)[1]
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    left = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    if os.statvfs(folder).f_favail == 0 and os.statvfs(folder).f_files > 0:
        left += " and no more files"
    return f"{folder} has room for {left}. Make room, and run the same command again: what was finished stays."


def read_bytes(location: str) -> bytes:
    with open_input(location) as file, read_errors(location):
        return bytes(file.read())


def write_bytes(location: str, content: bytes | pa.Buffer, *, flush: bool = True) -> None:
    with open_output(location, flush=flush) as file, _write_errors(location):  # a full disk raises here
        file.write(content)


def read_text(location: str) -> str:
    return read_bytes(location).decode("utf-8")


def write_text(location: str, text: str, *, flush: bool = True) -> None:
    write_bytes(location, text.encode("utf-8"), flush=flush)


def delete(location: str) -> None:
    """Delete a file or a folder with all its contents. A location that does not exist is no error."""
    file_system, path = locate(location)
    with read_errors(location):
        kind = file_system.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            file_system.delete_dir(path)
        elif kind == pafs.FileType.File:
            file_system.delete_file(path)


class Checksum(NamedTuple):
    """What a file held when it was written: its size in bytes and its SHA-256 in hexadecimal digits."""

    n_bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes | pa.Buffer) -> Checksum:
        return cls(len(content), hashlib.sha256(content).hexdigest())


def read_checked(location: str, checksum: Checksum) -> bytes:
    """The content of a file that must be what was written.

    Raises:
        DamagedError: it is not, or the file is gone.
    """
    try:
        content = read_bytes(location)
    except FileNotFoundError:
        raise DamagedError(location, "it is gone") from None
    if len(content) != checksum.n_bytes:
        raise DamagedError(location, f"it has {len(content):,} bytes, {checksum.n_bytes:,} were written")
    if Checksum.of(content) != checksum:
        raise DamagedError(location, "its bytes are not those that were written")
    return content
