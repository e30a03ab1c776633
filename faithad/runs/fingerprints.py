"""What a file holds, told by little of it: enough to notice that a recording is not the one that was there before.

A fingerprint hashes a file's size and 64 KiB at its start, in its middle and at its end, so it costs a few small
reads, on an object store as well, whatever the file's length. It does not change when the file moves. It does when
the file is exported again with another gain, filter or recording behind the same name and size; a cut inside a long
file that leaves its size, its start, middle and end as they were is not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from faithad import storage
from faithad.clips.access import require_reach
from faithad.clips.labels.files import SUFFIXES as LABEL_SUFFIXES
from faithad.runs.lookahead import side_by_side

# In place of a digest. It says nothing of what the file holds: see `stages.Stage.settled`.
UNREADABLE = "unreadable"
_PART_BYTES = 1 << 16
_AT_ONCE = 32


class Fingerprint(NamedTuple):
    """`bytes` is None where the file cannot be read."""

    bytes: int | None
    digest: str


def fingerprint(location: str) -> Fingerprint:
    """The fingerprint of one file."""
    try:
        if not storage.is_remote(location) and not storage.is_file(location):  # a pipe would be waited for, for ever
            return Fingerprint(None, UNREADABLE)
        with storage.open_input(location) as file:
            size = int(file.size())
            digest = hashlib.sha256(str(size).encode())
            last = max(0, size - _PART_BYTES)
            for start in sorted({0, last // 2, last}):
                file.seek(start)
                digest.update(file.read(_PART_BYTES))
    except OSError:
        return Fingerprint(None, UNREADABLE)
    return Fingerprint(size, digest.hexdigest()[:16])


def fingerprints(files: Sequence[tuple[str, str]]) -> list[Fingerprint]:
    """Of many files: most of the work is waiting for a disk or an object store, so it is done side by side.

    Args:
        files: the name and the location of each; the name begins with that of the folder in which all were found.

    Raises:
        StorageError: it is not some files that cannot be read, but their folder.
    """

    def one(file: tuple[str, str]) -> Fingerprint:
        name, location = file
        found = fingerprint(location)
        if found.digest == UNREADABLE:
            require_reach(name, location)
        return found

    return list(side_by_side(one, files, at_once=_AT_ONCE))


def folder_fingerprints(folders: Iterable[str], *, suffixes: Sequence[str]) -> dict[str, str]:
    """The fingerprint of each file below some folders, by the folder's name and the path below it.

    A location that is a single file has its own name. Nothing is found where there is nothing.
    """
    files = [
        (relative if relative == storage.name_of(folder) else f"{storage.name_of(folder)}/{relative}", location)
        for folder in folders
        for relative, location in storage.list_files(folder, suffixes=suffixes)
    ]
    found = fingerprints(files)
    return {name: print_.digest for (name, _), print_ in zip(files, found, strict=True)}


def contents(location: str) -> dict[str, str]:
    """A hash of the whole of a small file, or of each label file below a folder: of tables that people edit."""

    def digest(place: str) -> str:
        try:
            return hashlib.sha256(storage.read_bytes(place)).hexdigest()[:16]
        except OSError:
            return UNREADABLE

    suffixes = [""] if storage.is_file(location) else LABEL_SUFFIXES  # recordings may lie beside their labels
    return {name: digest(place) for name, place in storage.list_files(location, suffixes=suffixes)}
