"""Read and write files and tables at a location: a local path or a URI that pyarrow.fs opens (`s3://`, `gs://`).

A write is all or nothing: a local file is written under another name, flushed to the disk and then renamed; an object
store publishes an object only when it is complete. No reader sees half a file, and neither a process that is killed nor
a power cut leaves one.

Tables carry a checksum for each of their pages, which is verified when they are read. A damaged table raises
`DamagedError`.

pyarrow repeats a request that a store does not answer: with S3 for 6 s if the connection is refused, for 100 s if there
is no answer at all. Then the functions here raise `StorageError`.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import os
import re
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from faithad.errors import DamagedError, StorageError, StudyError, without_secrets
from faithad.locations import ENVIRONMENT, location_problem, store_message
from faithad.locations import is_remote as is_remote
from faithad.locations import join as join
from faithad.locations import join_path as join_path
from faithad.locations import name_of as name_of
from faithad.locations import quoted as quoted

# Defaults that a URI can override. S3: one request for a small object instead of three, and no unfinished upload that
# costs money after a kill. Google: without a limit, pyarrow repeats unanswered requests for a quarter of an hour.
_OPTIONS = {"s3": {"allow_delayed_open": "true"}, "gs": {"retry_limit_seconds": "60"}}

_FLUSHES_AT_ONCE = 16

TableOrSchema = TypeVar("TableOrSchema", pa.Table, pa.Schema)

# Replaces each byte of a file name that is not valid UTF-8.
NO_TEXT = "\N{REPLACEMENT CHARACTER}"


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


def _kind(location: str) -> pafs.FileType:
    file_system, path = locate(location)
    with _read_errors(location):
        kind: pafs.FileType = file_system.get_file_info(path).type
    return kind


def list_files(folder: str, *, suffixes: Iterable[str]) -> list[tuple[str, str]]:
    """(relative path, location) of all files in a folder and its subfolders whose name has one of the suffixes, sorted.

    Suffixes are compared without case. Hidden files and hidden folders are left out. If `folder` is a file, the list
    contains that file alone, under its name.
    """
    paths = [path for path, _ in sizes(folder, suffixes=suffixes)]
    if len(paths) == 1 and is_file(folder):
        return [(paths[0], folder)]
    return [(path, join_path(folder, path)) for path in paths]


def sizes(folder: str, *, suffixes: Iterable[str]) -> list[tuple[str, int]]:
    """(relative path, bytes) of the files that `list_files` lists."""
    endings = tuple(suffix.lower() for suffix in suffixes)
    return [
        (entry.path, entry.n_bytes)
        for entry in walk(folder)
        if entry.kind == "file" and not entry.is_hidden and entry.path.lower().endswith(endings)
    ]


class Entry(NamedTuple):
    """An entry of a folder. `kind`: "file", "folder", or "other" (a pipe, a device, a broken link)."""

    path: str
    kind: str
    n_bytes: int

    @property
    def is_hidden(self) -> bool:
        return any(part.startswith(".") for part in self.path.split("/"))


def walk(folder: str) -> list[Entry]:
    """Everything in a folder and its subfolders, sorted by relative path. A single file is listed under its name.

    Links are followed, but each local folder is listed only once, even if several links lead to it. In a name that is
    not valid UTF-8, `NO_TEXT` and two hex digits replace each invalid byte; such a name cannot be opened.
    """
    file_system, root = locate(folder)
    with _read_errors(folder):
        itself = file_system.get_file_info(root)
        if itself.type == pafs.FileType.File:
            return [Entry(itself.base_name, "file", itself.size)]
        if isinstance(file_system, pafs.LocalFileSystem):
            return sorted(_walk_local(root))
        infos = file_system.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    kinds = {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}
    return sorted(
        Entry(info.path[len(root) :].lstrip("/"), kinds.get(info.type, "other"), info.size or 0) for info in infos
    )


def _walk_local(root: str) -> Iterator[Entry]:
    visited: set[tuple[int, int]] = set()
    # Real folders first, so that a folder is listed under its own name and not under that of a link.
    folders, links = [root], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(folder)
        except FileNotFoundError:
            continue
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                try:
                    kind = "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
                    n_bytes = entry.stat().st_size if kind == "file" else 0
                except OSError:  # a link to itself, or a file that was just deleted
                    kind, n_bytes = "other", 0
                yield Entry(_as_text(os.path.relpath(entry.path, root)), kind, n_bytes)
                if kind == "folder":
                    (links if entry.is_symlink() else folders).append(entry.path)


def _as_text(name: str) -> str:
    """Python writes bytes that are not UTF-8 as lone surrogates, which neither Arrow nor a log accepts."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"{NO_TEXT}{ord(byte[0]) - 0xDC00:02X}", name)


@contextlib.contextmanager
def open_input(location: str) -> Iterator[pa.NativeFile]:
    """A seekable binary file for reading.

    Raises:
        OSError: the file is missing or unreadable, or not a regular file: opening a pipe would wait for ever.
    """
    file_system, path = locate(location)
    if isinstance(file_system, pafs.LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, no file", path)
    with _read_errors(location):
        file = file_system.open_input_file(path)
    with file:
        yield file


@contextlib.contextmanager
def open_output(location: str, *, flush: bool = True) -> Iterator[pa.NativeFile]:
    """A binary file for writing, which gets its name only when the block ends without an error.

    Args:
        location: of the file.
        flush: whether a local file is on the disk before it gets its name. Without it, a power cut in the next seconds
            may damage the file: for many small files that are flushed together later, see `flush_files`.

    Raises:
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
def _read_errors(location: str) -> Iterator[None]:
    """Turn errors of a store into `StorageError`; errors of a local disk stay as they are."""
    try:
        yield
    except FileNotFoundError:
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
        raise StudyError(
            f"Location {location!r} cannot be written: {store_message(error, location)} Choose another one, or make it "
            "writable."
        ) from error


def read_bytes(location: str) -> bytes:
    with open_input(location) as file, _read_errors(location):
        return bytes(file.read())


def write_bytes(location: str, content: bytes, *, flush: bool = True) -> None:
    with open_output(location, flush=flush) as file, _write_errors(location):  # a full disk raises here
        file.write(content)


def read_text(location: str) -> str:
    return read_bytes(location).decode("utf-8")


def write_text(location: str, text: str, *, flush: bool = True) -> None:
    write_bytes(location, text.encode("utf-8"), flush=flush)


def delete(location: str) -> None:
    """Delete a file or a folder with all its contents. A location that does not exist is no error."""
    file_system, path = locate(location)
    with _read_errors(location):
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


def write_table(table: pa.Table, location: str, *, schema: pa.Schema, flush: bool = True) -> Checksum:
    """Write one Parquet file with exactly the columns of the schema, in its order; `flush` as `open_output`."""
    columns = table.select(schema.names).cast(schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(columns, buffer, compression="zstd", write_page_checksum=True)
    content = buffer.getvalue()
    with open_output(location, flush=flush) as file, _write_errors(location):
        file.write(content)
    return Checksum.of(content)


def read_table(location: str, *, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or all Parquet files of a folder in the order of their names.

    Raises:
        StudyError: there is no table, or reading it would run code from it.
        DamagedError: a file is damaged.
    """
    if location.endswith(".parquet"):
        files = [location] if exists(location) else []
    else:
        files = [file for _, file in list_files(location, suffixes=[".parquet"])]
    if not files:
        raise StudyError(f"There is no table at {location}. Run the stage that writes it first.")
    return pa.concat_tables([read_rows(file, columns=columns) for file in files])


def read_rows(
    file: str,
    *,
    columns: list[str] | None = None,
    condition: pc.Expression | None = None,
    checksum: Checksum | None = None,
) -> pa.Table:
    """The rows of one Parquet file that meet a condition (default: all), with some columns (default: all).

    Args:
        file: its location.
        columns: which to read.
        condition: which rows to read.
        checksum: of the whole file, which is then read and compared. Without it only the pages that are read are
            verified.

    Raises:
        StudyError: reading the file would run code from it.
        DamagedError: the file is damaged.
    """
    if checksum is None:
        try:
            with open_input(file) as source:
                return _parsed(source, file, columns, condition)
        except (StudyError, FileNotFoundError):
            raise
        except (pa.ArrowException, OSError, ValueError):
            content = read_bytes(file)  # raises where the disk or the store has failed; else the content is damaged
    else:
        content = read_checked(file, checksum)
    with _damage(file):
        return _parsed(pa.BufferReader(content), file, columns, condition)


def _parsed(source: pa.NativeFile, file: str, columns: list[str] | None, condition: pc.Expression | None) -> pa.Table:
    """The rows of an opened Parquet file, as `read_rows`; a damaged one raises an error of Arrow."""
    _require_one_schema(source)
    try:
        return plain(pq.read_table(source, columns=columns, filters=condition, page_checksum_verification=True), file)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # an extension type cannot be filtered
        plain(pq.read_schema(source), file)
        raise


def _require_one_schema(source: pa.NativeFile) -> None:
    """Compare the two places of a file that hold the names and types of its columns, which no checksum covers."""
    file = pq.ParquetFile(source)
    written = (file.metadata.metadata or {}).get(b"ARROW:schema")
    if written is not None and not pa.ipc.read_schema(pa.BufferReader(base64.b64decode(written))).equals(
        file.schema_arrow
    ):
        raise pa.ArrowInvalid("the names or types of its columns contradict each other")


def read_metadata(file: str) -> dict[bytes, bytes]:
    """The metadata of the schema of one Parquet file.

    Raises:
        DamagedError: the file is damaged.
    """
    with _damage(file):
        return dict(pq.read_schema(pa.BufferReader(read_bytes(file))).metadata or {})


@contextlib.contextmanager
def _damage(file: str) -> Iterator[None]:
    """Turn what Arrow raises for content in memory that is no whole Parquet file into `DamagedError`."""
    try:
        yield
    except StudyError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        cause = str(error).partition("\n")[0].rstrip(".")
        raise DamagedError(file, f"it is no whole Parquet file ({cause})") from error


def plain(table: TableOrSchema, location: str) -> TableOrSchema:
    """Return a table, or the schema of an opened Parquet file, if its values can be read without running code.

    Arrow's extension types may unpickle values when they are read; one of Ray's types does. Our tables have none.

    Raises:
        StudyError: a column has an extension type.
    """
    schema = table if isinstance(table, pa.Schema) else table.schema
    if names := [field.name for field in schema if _has_extension_type(field)]:
        raise StudyError(
            f"{location} was not written by faithad: reading its columns {', '.join(names)} could run code, which is "
            "never done. Remove the file, and run the stage that writes it again."
        )
    return table


def _has_extension_type(field: pa.Field[Any]) -> bool:
    kind = field.type
    # The metadata tells of a type that this process has not registered.
    if isinstance(kind, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return True
    if pa.types.is_dictionary(kind):
        return _has_extension_type(pa.field(field.name, kind.value_type))
    return any(_has_extension_type(kind.field(position)) for position in range(kind.num_fields))
