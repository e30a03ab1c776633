"""Files and tables at a location: a local path or any URI that pyarrow.fs opens (`s3://bucket/key`, `gs://`).

Every write is all or nothing: a local file is written aside and renamed, an object store publishes an object only
when it is whole. So a reader never meets half a file, and a stage that was killed leaves none behind.

A store that does not answer is asked again for some time, of pyarrow's choice: that of S3 for 6 s where it refuses the
connection, and for 100 s where it keeps silent. Then there is a `StorageError`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from faithad.errors import StorageError, StudyError, without_secrets
from faithad.locations import ENVIRONMENT, is_remote, join, location_problem, name_of, quoted, told

__all__ = [
    "NO_TEXT",
    "Entry",
    "delete",
    "exists",
    "is_file",
    "is_filled",
    "is_folder",
    "is_remote",
    "join",
    "list_files",
    "locate",
    "location_problem",
    "name_of",
    "open_input",
    "open_output",
    "plain",
    "quoted",
    "read_bytes",
    "read_rows",
    "read_table",
    "read_text",
    "sizes",
    "walk",
    "write_bytes",
    "write_table",
    "write_text",
]

# Options that a URI may set otherwise. S3: one request for a small object rather than three, and no half upload to be
# paid for after a kill. Google: what does not answer would be asked again for a quarter of an hour.
_OPTIONS = {"s3": {"allow_delayed_open": "true"}, "gs": {"retry_limit_seconds": "60"}}

Schematic = TypeVar("Schematic", pa.Table, pa.Schema)

# Stands for a byte of a file's name that is no text (UTF-8).
NO_TEXT = "\N{REPLACEMENT CHARACTER}"


def locate(location: str) -> tuple[pafs.FileSystem, str]:
    """The file system and the path inside it that a location names.

    Raises:
        StudyError: the scheme is not one that pyarrow knows, its options cannot be understood, or it holds secrets.
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
            f"Location {location!r} cannot be opened: {told(error, location)} "
            "Give a local path or a URI such as s3://bucket/folder."
        ) from error
    return file_system, f"{top.rstrip('/')}{urllib.parse.unquote(parts.path).rstrip('/')}" or "/"


@functools.lru_cache(maxsize=64)
def _file_system(top: str, options: str, settings: tuple[str | None, ...]) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, kept for all that follow: a new one would connect, and ask for credentials, anew.

    Args:
        top: the URI without a path.
        options: of the URI.
        settings: what the environment says at this moment.
    """
    found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(f"{top}?{options}" if options else top)
    return found


def exists(location: str) -> bool:
    return bool(_kind(location) != pafs.FileType.NotFound)


def is_folder(location: str) -> bool:
    return bool(_kind(location) == pafs.FileType.Directory)


def is_file(location: str) -> bool:
    return bool(_kind(location) == pafs.FileType.File)


def is_filled(folder: str) -> bool | None:
    """Whether a folder holds anything, None where there is none. That of a disk which was unmounted is often empty.

    Raises:
        OSError: it cannot be reached or listed.
    """
    file_system, path = locate(folder)
    if not isinstance(file_system, pafs.LocalFileSystem):
        return is_folder(folder) or None  # an object store has the folders that something lies in
    try:
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind(location: str) -> pafs.FileType:
    file_system, path = locate(location)
    with _reachable(location):
        kind: pafs.FileType = file_system.get_file_info(path).type
    return kind


def list_files(folder: str, *, suffixes: Iterable[str]) -> list[tuple[str, str]]:
    """(relative path, location) of all files below a folder whose name ends in one of the suffixes, sorted.

    Suffixes are compared without case. Hidden files and files in hidden folders are left out. A location that is a
    single file lists itself, under its name.
    """
    quote = urllib.parse.quote if "://" in folder else str
    found = sizes(folder, suffixes=suffixes)
    if len(found) == 1 and is_file(folder):
        return [(found[0][0], folder)]
    return [(relative, join(folder, quote(relative))) for relative, _ in found]


def sizes(folder: str, *, suffixes: Iterable[str]) -> list[tuple[str, int]]:
    """(relative path, bytes) of the files that `list_files` lists."""
    allowed = tuple(suffix.lower() for suffix in suffixes)
    return [
        (entry.path, entry.n_bytes)
        for entry in walk(folder)
        if entry.kind == "file" and not entry.is_hidden and entry.path.lower().endswith(allowed)
    ]


class Entry(NamedTuple):
    """Something below a folder. `kind`: "file", "folder", or "other" (a pipe, a device, a link that leads nowhere)."""

    path: str
    kind: str
    n_bytes: int

    @property
    def is_hidden(self) -> bool:
        return any(part.startswith(".") for part in self.path.split("/"))


def walk(folder: str) -> list[Entry]:
    """Everything below a folder, sorted by its relative path; a single file is itself, under its name.

    Links are followed, but each local folder is listed once, however many links lead to it. A name that is no text
    has `NO_TEXT` and two hex digits in place of each byte that is none; nothing can be opened by that name.
    """
    file_system, root = locate(folder)
    with _reachable(folder):
        itself = file_system.get_file_info(root)
        if itself.type == pafs.FileType.File:
            return [Entry(itself.base_name, "file", itself.size)]
        if isinstance(file_system, pafs.LocalFileSystem):
            return sorted(_walk_local(root))
        found = file_system.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    kinds = {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}
    return sorted(
        Entry(info.path[len(root) :].lstrip("/"), kinds.get(info.type, "other"), info.size or 0) for info in found
    )


def _walk_local(root: str) -> Iterator[Entry]:
    seen: set[tuple[int, int]] = set()
    # Real folders first: a folder is listed under its own name rather than under that of a link to it.
    folders, links = [root], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(folder)
        except FileNotFoundError:
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda one: one.name, reverse=True):
                relative = _spelled(os.path.relpath(entry.path, root))
                try:
                    kind = "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
                    n_bytes = entry.stat().st_size if kind == "file" else 0
                except OSError:  # a link to itself, or a file that has just gone
                    kind, n_bytes = "other", 0
                yield Entry(relative, kind, n_bytes)
                if kind == "folder":
                    (links if entry.is_symlink() else folders).append(entry.path)


def _spelled(name: str) -> str:
    """Python puts lone surrogates for a name's bytes that are no UTF-8, which neither Arrow nor a log can take."""
    return re.sub("[\udc80-\udcff]", lambda found: f"{NO_TEXT}{ord(found[0]) - 0xDC00:02X}", name)


@contextlib.contextmanager
def open_input(location: str) -> Iterator[pa.NativeFile]:
    """A seekable binary file for reading.

    Raises:
        OSError: it is missing or cannot be read, or it is none: a pipe would be waited for without end.
    """
    file_system, path = locate(location)
    if isinstance(file_system, pafs.LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, no file", path)
    with _reachable(location):
        file = file_system.open_input_file(path)
    with file:
        yield file


@contextlib.contextmanager
def open_output(location: str) -> Iterator[pa.NativeFile]:
    """A binary file for writing that appears under its name only when the block ends without an error.

    Raises:
        StudyError: nothing can be written there: no such bucket, no permission, a file where a folder should be. What
            the block raises passes as it is.
    """
    file_system, path = locate(location)
    if isinstance(file_system, pafs.LocalFileSystem):
        folder, name = os.path.split(path)
        aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
        try:
            with _usable(location):
                os.makedirs(folder, exist_ok=True)
                file = file_system.open_output_stream(aside)
            with contextlib.closing(file):
                yield file
                with _usable(location):
                    file.close()
                    os.replace(aside, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(aside)
    else:
        # Closing a stream publishes what it got so far, also after an error: gather first, publish whole.
        buffer = pa.BufferOutputStream()
        yield buffer
        with _usable(location), file_system.open_output_stream(path) as file:
            file.write(buffer.getvalue())


@contextlib.contextmanager
def _reachable(location: str) -> Iterator[None]:
    """A store that does not answer, or refuses us, is told so; errors of a local disk pass as they are."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowInvalid) as error:
        if not is_remote(location):
            raise
        raise StorageError(f"Location {location!r} cannot be reached or read: {told(error, location)}") from error


@contextlib.contextmanager
def _usable(location: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StudyError(
            f"Location {location!r} cannot be written: {told(error, location)} Choose another one, or make it writable."
        ) from error


def read_bytes(location: str) -> bytes:
    with open_input(location) as file, _reachable(location):
        return bytes(file.read())


def write_bytes(location: str, content: bytes) -> None:
    with open_output(location) as file, _usable(location):  # a disk that fills up shows here
        file.write(content)


def read_text(location: str) -> str:
    return read_bytes(location).decode("utf-8")


def write_text(location: str, text: str) -> None:
    write_bytes(location, text.encode("utf-8"))


def delete(location: str) -> None:
    """Remove a file or a whole folder; nothing happens where there is none."""
    file_system, path = locate(location)
    with _reachable(location):
        kind = file_system.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            file_system.delete_dir(path)
        elif kind == pafs.FileType.File:
            file_system.delete_file(path)


def write_table(table: pa.Table, location: str, *, schema: pa.Schema) -> None:
    """Write one Parquet file whose columns are exactly those of the schema, in its order."""
    columns = table.select(schema.names).cast(schema)
    with open_output(location) as file, _usable(location):
        pq.write_table(columns, file, compression="zstd")


def read_table(location: str, *, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or all the shards of a folder in the order of their names.

    Raises:
        StudyError: there is no such table, or one that could only be read by running code from it.
    """
    if location.endswith(".parquet"):
        files = [location] if exists(location) else []
    else:
        files = [file for _, file in list_files(location, suffixes=[".parquet"])]
    if not files:
        raise StudyError(f"There is no table at {location}. Run the stage that writes it first.")
    return pa.concat_tables([read_rows(file, columns=columns) for file in files])


def read_rows(file: str, *, columns: list[str] | None = None, condition: pc.Expression | None = None) -> pa.Table:
    """Some columns of those rows of one Parquet file that fulfil a condition; all by default.

    Raises:
        StudyError: it could only be read by running code from it.
    """
    with open_input(file) as source, _reachable(file):
        try:
            return plain(pq.read_table(source, columns=columns, filters=condition), file)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # no condition can be asked of such values
            plain(pq.read_schema(source), file)
            raise


def plain(table: Schematic, location: str) -> Schematic:
    """A table (or an opened Parquet file's schema) as it is, if no code is needed to read its values.

    Arrow's extension types may unpickle each value that is looked at, as one of Ray's does. Our tables have none.

    Raises:
        StudyError: it has such columns.
    """
    schema = table if isinstance(table, pa.Schema) else table.schema
    if names := [field.name for field in schema if _is_extended(field)]:
        raise StudyError(
            f"{location} was not written by faithad: reading its columns {', '.join(names)} could run code, which is "
            "never done. Remove the file, and run the stage that writes it again."
        )
    return table


def _is_extended(field: pa.Field[Any]) -> bool:
    kind = field.type
    # A type that is not registered in this process is one all the same, in another.
    if isinstance(kind, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return True
    if pa.types.is_dictionary(kind):
        return _is_extended(pa.field(field.name, kind.value_type))
    return any(_is_extended(kind.field(place)) for place in range(kind.num_fields))
