"""Find the recordings in some folders, and the other sounds there that faithad does not read."""

from __future__ import annotations

import os
import posixpath
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from faithad import listing, storage
from faithad.clips.audio_kinds import ffmpeg_command
from faithad.clips.ledger import LedgerRow, ledger_row
from faithad.clips.manifest import Recording
from faithad.errors import RecordingError
from faithad.vocabulary import AUDIO_SUFFIXES, listed

# Sound files of these formats get a ledger row, so that nobody believes that they were audited.
_OTHER_SOUNDS = (
    *(".aac", ".aif", ".aifc", ".aiff", ".ape", ".au", ".bwf", ".caf", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus"),
    *(".rf64", ".w64", ".wave", ".wma", ".wv"),
)

# The command of each kind of store that gives an object another key.
_MOVES = {"s3": "aws s3 mv", "gs": "gcloud storage mv"}

# The reason why a folder failed.
UNREADABLE = "may not be listed: make the folder readable, or move it elsewhere"


def find_recordings(
    folders: Sequence[tuple[str | None, str]], *, suffixes: Sequence[str] = AUDIO_SUFFIXES
) -> list[Recording]:
    """All recordings in some folders and their subfolders, local or remote.

    Args:
        folders: (split, location) of each; the split may be None, the location may be a single file.
        suffixes: of recordings, compared without case.

    Returns:
        Recordings sorted by path, local ones with absolute URIs (a worker may run in another folder). Pipes, broken
        links and the like are included if they have the name of a recording; `probe_recording` explains them.

    Raises:
        RecordingError: a location does not exist, has no recordings or is given twice, or two files have the same path
            or are the same file. The message lists all such problems.
    """
    recordings: list[Recording] = []
    problems: list[str] = []
    given: set[str] = set()
    for split, location in folders:
        place = absolute(location).rstrip("/")
        if place in given:
            problems.append(f"{location} is given twice: give it once.")
            continue
        given.add(place)
        try:
            files = _files_at(absolute(location), suffixes)
        except OSError as error:
            wrong = str(error).rstrip(".")
            problems.append(f"{location} cannot be listed: {wrong}. Check its permissions and the connection.")
            continue
        if files is None:
            problems.append(f"{location} does not exist. Check the path.")
        elif not files:
            endings = " or ".join(suffixes)
            problems.append(f"{location} holds no recordings: no file whose name ends in {endings} is there or below.")
        recordings += [Recording(path, uri, split) for path, uri in files or []]
    by_uri: dict[str, Recording] = {}
    by_path: dict[str, Recording] = {}
    same: list[str] = []
    alike: list[str] = []
    for recording in recordings:
        if by_uri.setdefault(recording.uri, recording) is not recording:
            same.append(f"{recording.uri} is named twice: each recording may be in one of the folders only")
        elif (other := by_path.setdefault(recording.path, recording)) is not recording:
            alike.append(
                f"{other.uri} and {recording.uri} would both be called {recording.path!r}: rename one of the folders"
            )
    # Two folders may have thousands of recordings in common.
    problems += [listed(clashes, most=3, separator="\n  ") for clashes in (same, alike) if clashes]
    if not folders:
        problems.append("No folder is given. Name at least one.")
    if problems:
        raise RecordingError("The recordings cannot be listed:\n  " + "\n  ".join(problems))
    return sorted(recordings, key=lambda recording: recording.path)


def find_left_out(locations: Sequence[str], *, suffixes: Sequence[str] = AUDIO_SUFFIXES) -> list[LedgerRow]:
    """Ledger rows of what `find_recordings` leaves out of some folders.

    These are hidden files and folders, sounds of other formats, folders that may not be listed, and objects of a store
    that cannot be opened.
    """
    rows: list[LedgerRow] = []
    for location in map(absolute, locations):
        name = storage.name_of(location)
        for entry in listing.walk(location) if storage.is_folder(location) else []:
            if (left_out := _left_out(entry, suffixes, location)) is not None:
                rows.append(ledger_row(f"{name}/{entry.path}", *left_out))
    return rows


def _left_out(entry: listing.Entry, suffixes: Sequence[str], location: str) -> tuple[str, str] | None:
    """The status of an entry of a folder that is left out, and why."""
    ending = posixpath.splitext(entry.path)[1].lower()
    if entry.kind == "unreadable":
        return "failed", UNREADABLE
    if entry.kind == "folder":
        # In an object store, where the folders of a key may be `..`, hidden ones are listed, with what is in them.
        is_searched = storage.is_remote(location) or not posixpath.basename(entry.path).startswith(".")
        return None if is_searched else ("skipped", "is a hidden folder, which is not searched")
    if ending in suffixes and entry.is_hidden:
        return "skipped", "is hidden: its name, or that of a folder above it, begins with a dot"
    if ending in suffixes and not listing.can_be_opened(storage.join_path(location, entry.path)):
        needs = 'needs boto3 (pip install "faithad[s3]")' if location.startswith("s3://") else "cannot be opened"
        wrong = f"has a key with an empty part (two slashes in a row), which {needs}"
        return "failed", f"{wrong}. {_rename(location, entry.path)}"
    if ending in _OTHER_SOUNDS and not entry.is_hidden:
        converts = ffmpeg_command(entry.path)
        return "skipped", f"is no {' or '.join(suffixes)} file. Convert it to have it audited: {converts}"
    return None


def _rename(folder: str, path: str) -> str:
    """Advice to call the empty parts of an object's key `_`, which takes no other object's key."""
    scheme = folder.partition("://")[0]
    key = f"{storage.locate(folder)[1]}/{path}"
    renamed = "/".join(part or "_" for part in key.split("/"))
    old, new = (shlex.quote(f"{scheme}://{name}") for name in (key, renamed))
    return f"Rename it: {_MOVES[scheme]} {old} {new}" if scheme in _MOVES else f"Rename it to {new}."


def absolute(location: str) -> str:
    """A local location as an absolute path, because a worker may run in another folder; a URI is not changed."""
    return location if "://" in location else os.path.normpath(storage.locate(location)[1])


def _files_at(location: str, suffixes: Sequence[str]) -> list[tuple[str, str]] | None:
    """(stable name, URI) of the recordings at a location, or None if the location does not exist."""
    parent, name = posixpath.split(storage.locate(location)[1].rstrip("/"))
    endings = tuple(suffix.lower() for suffix in suffixes)
    if storage.is_folder(location):
        paths = _recordings_among(location, listing.walk(location), endings)
        return [(f"{name}/{path}", storage.join_path(location, path)) for path in paths]
    if not storage.exists(location):
        return None
    return [(f"{storage.name_of(parent)}/{name}", location)] if name.lower().endswith(endings) else []


def _recordings_among(folder: str, entries: Sequence[listing.Entry], suffixes: tuple[str, ...]) -> list[str]:
    """The paths with the name of a recording. A folder with such a name counts only if no recording lies in it."""
    named = [
        entry
        for entry in entries
        if entry.path.lower().endswith(suffixes)
        and not entry.is_hidden
        and entry.kind != "unreadable"
        and listing.can_be_opened(storage.join_path(folder, entry.path))
    ]
    used = {
        above.as_posix() for entry in named if entry.kind != "folder" for above in PurePosixPath(entry.path).parents
    }
    return [entry.path for entry in named if entry.path not in used]
