"""Files and tables at a location: a local path or any URI that pyarrow.fs opens (`s3://bucket/key`, `gs://`).

Every write is all or nothing: a local file is written aside and renamed, an object store publishes an object only
when it is whole. So a reader never meets half a file, and a stage that was killed leaves none behind.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from faithad.errors import StudyError


def locate(location: str) -> tuple[pafs.FileSystem, str]:
    """The file system and the path inside it that a location names.

    Raises:
        StudyError: the scheme is not one that pyarrow knows, or its options cannot be understood.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    try:
        file_system, path = pafs.FileSystem.from_uri(location)
    except (ValueError, pa.ArrowException, OSError) as error:
        raise StudyError(
            f"Location {location!r} cannot be opened: {error}. Give a local path or a URI such as s3://bucket/folder."
        ) from error
    return file_system, path


def is_remote(location: str) -> bool:
    return "://" in location and not location.startswith("file://")


def join(location: str, *parts: str) -> str:
    """Append path parts to a location, whatever its scheme; a URI's options (`?region=...`) stay at its end.

    Parts that come from file names must be quoted for a URI, as `list_files` does.
    """
    path, question_mark, options = location.partition("?") if "://" in location else (location, "", "")
    return "/".join([path.rstrip("/") or "/", *parts]) + question_mark + options


def name_of(location: str) -> str:
    """The last part of a location, as a person would write it."""
    if "://" in location:
        location = urllib.parse.unquote(location.partition("?")[0])
    return location.rstrip("/").rsplit("/", 1)[-1]


def exists(location: str) -> bool:
    file_system, path = locate(location)
    return bool(file_system.get_file_info(path).type != pafs.FileType.NotFound)


def is_folder(location: str) -> bool:
    file_system, path = locate(location)
    return bool(file_system.get_file_info(path).type == pafs.FileType.Directory)


def is_file(location: str) -> bool:
    file_system, path = locate(location)
    return bool(file_system.get_file_info(path).type == pafs.FileType.File)


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
    file_system, root = locate(folder)
    allowed = tuple(suffix.lower() for suffix in suffixes)
    itself = file_system.get_file_info(root)
    if itself.type == pafs.FileType.File:
        return [(itself.base_name, itself.size)] if itself.base_name.lower().endswith(allowed) else []
    found = []
    for info in file_system.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)):
        relative = info.path[len(root) :].lstrip("/")
        hidden = any(part.startswith(".") for part in relative.split("/"))
        if info.type == pafs.FileType.File and not hidden and relative.lower().endswith(allowed):
            found.append((relative, info.size))
    return sorted(found)


@contextlib.contextmanager
def open_input(location: str) -> Iterator[pa.NativeFile]:
    """A seekable binary file for reading."""
    file_system, path = locate(location)
    with file_system.open_input_file(path) as file:
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
def _usable(location: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StudyError(
            f"Location {location!r} cannot be written: {error}. Choose another one, or make it writable."
        ) from error


def read_bytes(location: str) -> bytes:
    with open_input(location) as file:
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
        StudyError: there is no such table.
    """
    if location.endswith(".parquet"):
        files = [location] if exists(location) else []
    else:
        files = [file for _, file in list_files(location, suffixes=[".parquet"])]
    if not files:
        raise StudyError(f"There is no table at {location}. Run the stage that writes it first.")
    tables = []
    for file in files:
        with open_input(file) as source:
            tables.append(pq.read_table(source, columns=columns))
    return pa.concat_tables(tables)
