"""List the files of a folder at a location, see `faithad.storage`."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow.fs as pafs

from faithad import s3_keys, storage

# Replaces each byte of a file name that is not valid UTF-8.
NO_TEXT = "\N{REPLACEMENT CHARACTER}"


def list_files(folder: str, *, suffixes: Iterable[str], leave_out_unreadable: bool = False) -> list[tuple[str, str]]:
    """(relative path, location) of all files in a folder and its subfolders whose name has one of the suffixes, sorted.

    Suffixes are compared without case. Hidden files and hidden folders are left out. If `folder` is a file, the list
    contains that file alone, under its name.

    Raises:
        PermissionError: a subfolder may not be listed; `leave_out_unreadable` leaves it out.
    """
    paths = [path for path, _ in sizes(folder, suffixes=suffixes, leave_out_unreadable=leave_out_unreadable)]
    if len(paths) == 1 and storage.is_file(folder):
        return [(paths[0], folder)]
    return [(path, storage.join_path(folder, path)) for path in paths]


def sizes(folder: str, *, suffixes: Iterable[str], leave_out_unreadable: bool = False) -> list[tuple[str, int]]:
    """(relative path, bytes) of the files that `list_files` lists."""
    endings = tuple(suffix.lower() for suffix in suffixes)
    entries = walk(folder)
    unreadable = [entry.path for entry in entries if entry.kind == "unreadable"]
    if unreadable and not leave_out_unreadable:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), storage.join_path(folder, unreadable[0]))
    return [
        (entry.path, entry.n_bytes)
        for entry in entries
        if entry.kind == "file" and not entry.is_hidden and entry.path.lower().endswith(endings)
    ]


class Entry(NamedTuple):
    """An entry of a folder. `kind`: "file", "folder", "unreadable" (a folder), or "other" (a pipe, a broken link)."""

    path: str
    kind: str
    n_bytes: int

    @property
    def is_hidden(self) -> bool:
        return any(part.startswith(".") for part in self.path.split("/"))


def can_be_opened(location: str) -> bool:
    """Whether a name can be opened: an object whose key has two slashes in a row only on S3, and with boto3."""
    return not s3_keys.has_empty_part(location) or s3_keys.can_be_read(location)


def walk(folder: str) -> list[Entry]:
    """Everything in a folder and its subfolders, sorted by relative path. A single file is listed under its name.

    Links are followed, but each local folder is listed only once, even if several links lead to it. Local hidden
    folders are named and not listed. In a name that is not valid UTF-8, `NO_TEXT` and two hex digits replace each
    invalid byte; such a name cannot be opened.

    Raises:
        PermissionError: the folder itself may not be listed.
    """
    file_system, root = storage.locate(folder)
    itself = storage.information(folder)
    if itself.type == pafs.FileType.File:
        return [Entry(itself.base_name, "file", itself.size)]
    if isinstance(file_system, pafs.LocalFileSystem):
        return sorted(_walk_local(root))

    def ask() -> list[pafs.FileInfo]:
        with storage.read_errors(folder):
            infos: list[pafs.FileInfo] = file_system.get_file_info(
                pafs.FileSelector(root, recursive=True, allow_not_found=True)
            )
            return infos

    kinds = {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}
    # An object's key may have two slashes in a row, of which one ends the name of the folder.
    paths = {info.path[len(root) + 1 :]: info for info in storage.asked_again(folder, ask)}
    return sorted(
        Entry(path, kinds.get(info.type, "other"), info.size or 0)
        for path, info in paths.items()
        if path and info.path.startswith(f"{root}/")
    )


def _walk_local(root: str) -> Iterator[Entry]:
    visited: set[tuple[int, int]] = set()
    # Real folders first, so that a folder is listed under its own name and not under that of a link.
    folders, links = [root], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            listing = os.scandir(folder)
        except FileNotFoundError:
            continue
        except PermissionError:
            if folder == root:
                raise
            yield Entry(_as_text(os.path.relpath(folder, root)), "unreadable", 0)
            continue
        with listing as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                try:
                    kind = "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
                    n_bytes = entry.stat().st_size if kind == "file" else 0
                except OSError:  # a link to itself, or a file that was just deleted
                    kind, n_bytes = "other", 0
                yield Entry(_as_text(os.path.relpath(entry.path, root)), kind, n_bytes)
                if kind == "folder" and not entry.name.startswith("."):
                    (links if entry.is_symlink() else folders).append(entry.path)


def _as_text(name: str) -> str:
    """Python writes bytes that are not UTF-8 as lone surrogates, which neither Arrow nor a log accepts."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"{NO_TEXT}{ord(byte[0]) - 0xDC00:02X}", name)
