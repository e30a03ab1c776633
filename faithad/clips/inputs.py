"""Which files there are to work on: recordings in folders, or the published spectrograms of the wood planer."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from faithad import storage
from faithad.clips.annotations import PUBLISHED_WINDOW_S
from faithad.clips.manifest import ClipRow, LedgerRow, Recording
from faithad.clips.recordings import AUDIO_SUFFIXES
from faithad.clips.spectrograms import SPECTROGRAM_SUFFIX
from faithad.errors import RecordingError

# The published layout: where its clips lie, and what they are called. A window number has no leading zeros; the
# recording's own number, at the end of a recording's name, has.
TRAINING, NORMAL, ANOMALIES = "training/", "evaluation/normal/", "evaluation/anomalies/"
_CLIP_NAME = re.compile(r"(?P<stem>.+)_(?P<window>[1-9]\d{0,3})\.pt", re.IGNORECASE)

# Formats in which sound may lie among the recordings, and which nobody should believe to have been audited.
_OTHER_SOUNDS = (
    *(".aac", ".aif", ".aifc", ".aiff", ".ape", ".au", ".bwf", ".caf", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus"),
    *(".rf64", ".w64", ".wave", ".wma", ".wv"),
)

# How many of the recordings that clash are named; two folders may hold thousands of the same.
_EXAMPLES = 3


def find_recordings(
    folders: Sequence[tuple[str | None, str]], *, suffixes: Sequence[str] = AUDIO_SUFFIXES
) -> list[Recording]:
    """All recordings in some folders and below, local or remote.

    Args:
        folders: (split, location) each; the split is None where it comes from elsewhere. A location may also name one
            single file.
        suffixes: Which files are recordings, compared without case.

    Returns:
        Recordings sorted by path, local ones with absolute uris (a worker may run in another folder). Pipes, links that
        lead nowhere and the like are among them if they have a recording's name: `probe_recording` says what they are.

    Raises:
        RecordingError: a location does not exist, holds no recordings or is given twice, or two files have the same
            path or are the same file; all such problems at once.
    """
    found: list[Recording] = []
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
            wanted = " or ".join(suffixes)
            problems.append(f"{location} holds no recordings: no file whose name ends in {wanted} is there or below.")
        found += [Recording(path, uri, split) for path, uri in files or []]
    by_uri: dict[str, Recording] = {}
    by_path: dict[str, Recording] = {}
    same: list[str] = []
    alike: list[str] = []
    for recording in found:
        if by_uri.setdefault(recording.uri, recording) is not recording:
            same.append(f"{recording.uri} is named twice: each recording may be in one of the folders only.")
        elif (other := by_path.setdefault(recording.path, recording)) is not recording:
            alike.append(
                f"{other.uri} and {recording.uri} would both be called {recording.path!r}: rename one of the folders."
            )
    problems += [*_examples(same), *_examples(alike)]
    if not folders:
        problems.append("No folder is given. Name at least one.")
    if problems:
        raise RecordingError("The recordings cannot be listed:\n  " + "\n  ".join(problems))
    return sorted(found, key=lambda recording: recording.path)


def find_left_out(locations: Sequence[str], *, suffixes: Sequence[str] = AUDIO_SUFFIXES) -> list[LedgerRow]:
    """Ledger rows of the sounds in some folders that `find_recordings` passes over: hidden ones, and other formats."""
    rows: list[LedgerRow] = []
    for location in map(absolute, locations):
        name = storage.name_of(location)
        for entry in storage.walk(location) if storage.is_folder(location) else []:
            ending = posixpath.splitext(entry.path)[1].lower()
            if entry.kind == "folder":
                continue
            if ending in _OTHER_SOUNDS and not entry.is_hidden:
                reason = f"is no {' or '.join(suffixes)} file: convert it to have it audited"
                rows.append(LedgerRow(f"{name}/{entry.path}", "skipped", reason))
            elif ending in suffixes and entry.is_hidden:
                reason = "is hidden: its name, or that of a folder above it, begins with a dot"
                rows.append(LedgerRow(f"{name}/{entry.path}", "skipped", reason))
    return rows


def find_spectrograms(
    root: str, *, training_folders: Collection[str] | None = None
) -> tuple[list[ClipRow], list[LedgerRow]]:
    """The clips of a data set in the published planer layout (Deschênes et al., arXiv 2501.04819).

    Each `.pt` file is one 10 s clip of a recording: `training/<board>/` is train, `evaluation/normal/` normal test,
    `evaluation/anomalies/<type>/` anomalous test. A file's name gives its recording and its window. The recording is
    called by its bare name (`MPD_..._00006.wav`), because its clips may lie in several folders.

    Args:
        root: The folder that holds `training` and `evaluation`, local or remote.
        training_folders: Which folders of `training` to take, all by default; files in others are skipped.

    Returns:
        The clips, and a ledger row for each file that is none: its name cannot be understood, or it lies elsewhere.

    Raises:
        RecordingError: one of the three folders is missing or empty.
    """
    try:
        files = storage.list_files(absolute(root), suffixes=[SPECTROGRAM_SUFFIX])
    except OSError as error:
        wrong = str(error).rstrip(".")
        raise RecordingError(f"{root} cannot be listed: {wrong}. Give the data set's top folder.") from error
    wanted = (TRAINING, NORMAL, ANOMALIES)
    missing = [folder for folder in wanted if not any(path.startswith(folder) for path, _ in files)]
    if missing:
        raise RecordingError(
            f"{root} has no {SPECTROGRAM_SUFFIX} files in {', '.join(missing)}: the published layout has all of "
            f"{', '.join(wanted)}. Is this the data set's top folder, and was all of it downloaded?"
        )
    rows: list[ClipRow] = []
    ledger: list[LedgerRow] = []
    for path, uri in files:
        name = _CLIP_NAME.fullmatch(storage.name_of(path))
        below = path.split("/")[1:-1]  # ["2x6"], ["normal"] or ["anomalies", "board_stuck"], as published
        split = "train" if path.startswith(TRAINING) else "test"
        anomaly_type = below[1] if path.startswith(ANOMALIES) and len(below) > 1 else None
        if not path.startswith(wanted):
            ledger.append(LedgerRow(path, "skipped", f"lies in none of {', '.join(wanted)}"))
        elif split == "train" and training_folders is not None and not set(below[:1]) & set(training_folders):
            allowed = ", ".join(sorted(training_folders))
            ledger.append(LedgerRow(path, "skipped", f"lies in none of the chosen training folders {allowed}"))
        elif path.startswith(ANOMALIES) and anomaly_type is None:
            ledger.append(LedgerRow(path, "failed", f"lies in {ANOMALIES} itself: its folder must name the anomaly"))
        elif name is None:
            reason = "its name does not end in the number of its window, such as _1.pt for the recording's first 10 s"
            ledger.append(LedgerRow(path, "failed", reason))
        else:
            recording, onset_s = f"{name['stem']}.wav", (int(name["window"]) - 1) * PUBLISHED_WINDOW_S
            label = int(anomaly_type is not None)
            rows.append(ClipRow(recording, uri, onset_s, PUBLISHED_WINDOW_S, split, label, anomaly_type))
    return rows, ledger


def absolute(location: str) -> str:
    """A local location with its full path, because a worker may run in another folder; a URI as it is."""
    return location if "://" in location else os.path.normpath(storage.locate(location)[1])


def _examples(problems: list[str]) -> list[str]:
    """The first few, and how many more of the same kind there are."""
    more = len(problems) - _EXAMPLES
    return problems if more <= 0 else [*problems[:_EXAMPLES], f"and {more:,} more of this kind."]


def _files_at(location: str, suffixes: Sequence[str]) -> list[tuple[str, str]] | None:
    """(stable name, uri) of the recordings at a location, or None where there is nothing of that name."""
    parent, name = posixpath.split(storage.locate(location)[1].rstrip("/"))
    wanted = tuple(suffix.lower() for suffix in suffixes)
    if storage.is_folder(location):
        paths = _recordings_among(storage.walk(location), wanted)
        return [(f"{name}/{path}", storage.join_path(location, path)) for path in paths]
    if not storage.exists(location):
        return None
    return [(f"{storage.name_of(parent)}/{name}", location)] if name.lower().endswith(wanted) else []


def _recordings_among(entries: Sequence[storage.Entry], suffixes: tuple[str, ...]) -> list[str]:
    """The paths that are called like recordings. A folder of such a name is one if it holds no other."""
    named = [entry for entry in entries if entry.path.lower().endswith(suffixes) and not entry.is_hidden]
    used = {
        above.as_posix() for entry in named if entry.kind != "folder" for above in PurePosixPath(entry.path).parents
    }
    return [entry.path for entry in named if entry.path not in used]
