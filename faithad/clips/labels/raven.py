"""Raven's selection tables: tab-separated text with a header, one selection per row.

We write one table per recording, which Raven opens over that recording. We also read tables over several recordings:
`Begin File` or `Begin Path` names the recording of each selection. `Begin Time (s)` then counts through all files, and
`File Offset (s)` says where in its file the selection begins. A table may list a selection once per view (waveform,
spectrogram); we make one label of it. A label's text is
the column `Annotation`, or `Common Name` or `Species` of other programs, such as BirdNET.

The column `Recording` is ours: the full name of the recording, which Raven keeps as a column of notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from faithad import storage
from faithad.clips.labels.label import (
    Label,
    by_recording,
    checked,
    numbered_lines,
    one_line,
    read_bounds,
    read_number,
    written,
)
from faithad.clips.labels.names import escape_controls, file_name, recording_name, unescape_controls
from faithad.clips.problems import ProblemList

SUFFIX = ".Table.1.selections.txt"
SELECTION, BEGIN, END = "Selection", "Begin Time (s)", "End Time (s)"
LOW, HIGH, FILE, ANNOTATION, RECORDING = "Low Freq (Hz)", "High Freq (Hz)", "Begin File", "Annotation", "Recording"
HEADER = (SELECTION, "View", "Channel", BEGIN, END, LOW, HIGH, FILE, ANNOTATION, RECORDING)
# Read but not written: Raven may keep the old values when somebody moves a selection.
PATH, FILE_OFFSET, END_FILE = "Begin Path", "File Offset (s)", "End File"
_KINDS = (ANNOTATION, "Common Name", "Species")

# Raven's own suffixes, and those of detectors that write its tables.
_SUFFIXES = re.compile(r"(\.BirdNET)?(\.Table\.\d+)?(\.selections?)?(\.table)?\.txt\Z", re.IGNORECASE)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def files(labels: Iterable[Label]) -> dict[str, str]:
    """One selection table per recording, by file name. Control characters in a label's text become spaces."""
    tables = {}
    for recording, group in by_recording(labels).items():
        rows = ["\t".join(_cells(number, label)) for number, label in enumerate(group, start=1)]
        tables[file_name(recording, SUFFIX)] = "".join(f"{line}\n" for line in ("\t".join(HEADER), *rows))
    return tables


def is_table(first_line: str) -> bool:
    """Whether the first line of a file is the header of a selection table, complete or not."""
    return any(name in {SELECTION.casefold(), BEGIN.casefold()} for name in _names(first_line))


def parse(text: str, path: str, problems: ProblemList) -> list[Label]:
    """The labels of a table. If no column names the recording, the file's name does."""
    lines = list(numbered_lines(text))
    top, header = lines[0] if lines else (1, "")
    names = _names(header)
    if missing := [column for column in (BEGIN, END) if column.casefold() not in names]:
        problems.append(f"line {top}: the selection table has no column {' and none '.join(map(repr, missing))}")
        return []
    read = {column.casefold() for column in (*HEADER, PATH, FILE_OFFSET, END_FILE, *_KINDS)}
    problems.unread += [column.strip() for column in header.split("\t") if _names(column)[0] not in read]
    suffix = _SUFFIXES.search(path)
    recording = recording_name(path[: suffix.start()] if suffix else path)
    labels: dict[tuple[str, ...], Label] = {}
    recordings: set[str] = set()
    for number, line in lines[1:]:
        cells = line.split("\t")
        with problems.at(f"line {number}"):
            if len(cells) > len(names):
                raise ValueError(f"{len(cells)} cells under {len(names)} columns; a tab too many")
            row = dict(zip(names, cells + [""] * (len(names) - len(cells)), strict=True))
            label = _label(row, recording)
            recordings.add(label.recording)
            # A selection has the same number, times and file in each of its views.
            key = (label.recording, *(_cell(row, column).strip() for column in (SELECTION, BEGIN, END)))
            if not key[1]:
                key = (str(number),)
            earlier = labels.get(key, label)
            labels[key] = earlier if earlier.low_hz is not None else label
    if len(recordings) > 1 and FILE_OFFSET.casefold() not in names and RECORDING.casefold() not in names:
        problems.append(
            f"line {top}: the table covers {len(recordings)} recordings, so its times count through all of them; add "
            f"the measurement {FILE_OFFSET!r} in Raven and save the table again"
        )
    return list(labels.values())


def _cells(number: int, label: Label) -> list[str]:
    has_bounds = label.low_hz is not None and label.high_hz is not None
    return [
        str(number),
        "Spectrogram 1" if has_bounds else "Waveform 1",
        "1",
        *map(written, (label.onset_s, label.offset_s, label.low_hz, label.high_hz)),
        one_line(storage.name_of(label.recording)),
        one_line(label.text),
        escape_controls(label.recording),
    ]


def _label(row: Mapping[str, str], recording: str) -> Label:
    begin_s, end_s = read_number(_cell(row, BEGIN)), read_number(_cell(row, END))
    onset_s = read_number(_cell(row, FILE_OFFSET)) if _cell(row, FILE_OFFSET).strip() else begin_s
    if _cell(row, END_FILE).strip() not in ("", _cell(row, FILE).strip()):
        raise ValueError("the selection runs on into another recording; cut it in two")
    if name := _cell(row, RECORDING):
        recording = unescape_controls(name)
    elif name := _cell(row, PATH).strip() or _cell(row, FILE).strip():
        recording = name.replace("\\", "/") if _WINDOWS_PATH.match(name) else name
    offset_s = round(onset_s + end_s - begin_s, 6)
    bounds = read_bounds(_cell(row, LOW), _cell(row, HIGH))
    text = next((cell for column in _KINDS if (cell := _cell(row, column)).strip()), "")
    return checked(Label(recording, onset_s, offset_s, text, *bounds), noun="selection")


def _cell(row: Mapping[str, str], column: str) -> str:
    return row.get(column.casefold(), "")


def _names(header: str) -> list[str]:
    return [" ".join(name.split()).casefold() for name in header.split("\t")]
