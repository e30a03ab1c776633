"""Short hashes of files and of tables, by which a stage notices that what it was made of has changed.

The fingerprint of a recording hashes its size and 64 KiB at its start, in its middle and at its end: a few small reads,
on an object store as well, whatever the file's length. It stays when the file moves. It changes when another export,
gain, filter or recording takes the place of the file under the same name and size. A change inside a long file that
leaves its size, start, middle and end as they were is not seen.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from faithad import listing, storage
from faithad.clips.access import require_reach
from faithad.clips.labels.files import SUFFIXES as LABEL_SUFFIXES
from faithad.runs.lookahead import side_by_side

# In place of a digest. It says nothing about what the file holds: see `stages.ResumableStage.with_known_files`.
UNREADABLE = "unreadable"
# The reason why a recording is skipped that a recorder has not finished.
STILL_WRITTEN = "is still being written: the next run takes it"
_WRITTEN_WITHIN_S = 60.0
_PART_BYTES = 1 << 16
_AT_ONCE = 32


class Fingerprint(NamedTuple):
    """`bytes` is None where the file cannot be read."""

    bytes: int | None
    digest: str


class Look(NamedTuple):
    """What a file was when it was looked at.

    `modified_ns`, its time stamp, only saves reading a file that nobody has touched since. It is not stored, because a
    copy of the file has another one. None where the file cannot be read.
    """

    fingerprint: Fingerprint
    modified_ns: int | None


_NO_LOOK = Look(Fingerprint(None, UNREADABLE), None)


def fingerprint(location: str) -> Fingerprint:
    """The fingerprint of one file."""
    return look(location).fingerprint


def look(location: str, *, before: Look | None = None) -> Look:
    """What one file is now; an earlier look if size and time stamp are those of `before`."""
    try:
        if not storage.is_remote(location) and not storage.is_file(location):  # opening a pipe would block for ever
            return _NO_LOOK
        n_bytes, modified_ns = storage.size_and_time(location)  # a change after this is seen by the next look
        if before is not None and (before.fingerprint.bytes, before.modified_ns) == (n_bytes, modified_ns):
            return before
        with storage.open_input(location) as file:
            size = int(file.size())
            digest = hashlib.sha256(str(size).encode())
            last = max(0, size - _PART_BYTES)
            for start in sorted({0, last // 2, last}):
                file.seek(start)
                digest.update(file.read(_PART_BYTES))
    except OSError:
        return _NO_LOOK
    return Look(Fingerprint(size, digest.hexdigest()[:16]), modified_ns)


def change(location: str, before: Look) -> str | None:
    """How a file has changed since an earlier look, for the ledger; None if it has not, or cannot be looked at."""
    was = before.fingerprint
    now = look(location, before=before)
    is_now = now.fingerprint
    if was.bytes is None or is_now.bytes is None or is_now.digest == was.digest:
        return None
    if is_now.bytes < was.bytes:
        return f"was truncated from {was.bytes:,} to {is_now.bytes:,} bytes while it was audited: the next run takes it"
    if is_recent(now, within_s=_WRITTEN_WITHIN_S):
        return STILL_WRITTEN
    return "was replaced while it was audited: the next run takes it"


def is_recent(look: Look, *, within_s: float) -> bool:
    """Whether a file was modified in the last seconds; clocks of file servers may be a little ahead."""
    return look.modified_ns is not None and abs(time.time() - look.modified_ns / 1e9) < within_s


def fingerprints(files: Sequence[tuple[str, str]]) -> list[Fingerprint]:
    """The fingerprints of many files, see `looks`."""
    return [each.fingerprint for each in looks(files)]


def looks(files: Sequence[tuple[str, str]], *, before: Mapping[str, Look] | None = None) -> list[Look]:
    """What many files are now, read by threads: most of the work is waiting for a disk or an object store.

    Args:
        files: the name and the location of each. A name begins with that of the folder in which all files lie.
        before: earlier looks, by name: a file that nobody has touched since is not read again.

    Raises:
        StorageError: the folder of the files cannot be reached, rather than some of them.
    """

    def at_file(file: tuple[str, str]) -> Look:
        name, location = file
        result = look(location, before=(before or {}).get(name))
        if result is _NO_LOOK:
            require_reach(name, location)
        return result

    return list(side_by_side(at_file, files, at_once=_AT_ONCE, named=lambda file: file[1]))


def same_bytes(files: Mapping[str, str], digests: Mapping[str, str]) -> list[list[str]]:
    """Groups of files that hold the same bytes, by name. Only files of one fingerprint are read, as a whole.

    Args:
        files: the location of each, by its name.
        digests: of their fingerprints, by name; files without one are left out.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(files):
        if digests.get(name, UNREADABLE) != UNREADABLE:
            groups.setdefault(digests[name], []).append(name)
    suspects = [name for group in groups.values() if len(group) > 1 for name in group]
    alike: dict[str | None, list[str]] = {}
    for name, digest in zip(suspects, side_by_side(lambda name: _whole(files[name]), suspects, at_once=4), strict=True):
        alike.setdefault(digest, []).append(name)
    return [group for digest, group in alike.items() if digest is not None and len(group) > 1]


def _whole(location: str) -> str | None:
    """A hash of all bytes of a file; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with storage.open_input(location) as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError:
        return None
    return digest.hexdigest()


def folder_fingerprints(folders: Iterable[str], *, suffixes: Sequence[str]) -> dict[str, str]:
    """The digest of each file below some folders, by the folder's name and the path below it.

    A location that is a single file is called by its own name. A folder that does not exist has no files.
    """
    files = [
        (relative if relative == storage.name_of(folder) else f"{storage.name_of(folder)}/{relative}", location)
        for folder in folders
        for relative, location in listing.list_files(folder, suffixes=suffixes, leave_out_unreadable=True)
    ]
    digests = [result.digest for result in fingerprints(files)]
    return dict(zip((name for name, _ in files), digests, strict=True))


def contents(location: str) -> dict[str, str]:
    """A hash of the whole of a small file that people edit, or of each label file below a folder, by its name."""

    def digest(place: str) -> str:
        try:
            return hashlib.sha256(storage.read_bytes(place)).hexdigest()[:16]
        except OSError:
            return UNREADABLE

    suffixes = [""] if storage.is_file(location) else LABEL_SUFFIXES  # recordings may lie beside their labels
    return {name: digest(place) for name, place in listing.list_files(location, suffixes=suffixes)}


def table_digest(table: pa.Table) -> str:
    """Twelve hex digits that change with any value of a table."""
    return hashlib.sha256(json.dumps(table.to_pylist(), default=str).encode()).hexdigest()[:12]


def clips_digest(manifest: pa.Table, splits: Sequence[str], columns: Sequence[str]) -> str:
    """Twelve hex digits that change with what some columns say about the clips of some splits, and with the channels
    that are heard. Where all channels are averaged, the digits are those of releases that knew nothing else.
    """
    clips = manifest.filter(pc.is_in(manifest["split"], pa.array(splits)))
    heard = ["channel"] if clips["channel"].null_count < clips.num_rows else []
    return table_digest(clips.select([*columns, *heard]))
