"""Raven's selection tables: tab-separated text with a header, one selection per row.

Written is one table per recording, which Raven opens over that recording. Read are also tables over several
recordings, which name each by `Begin File` or `Begin Path`; where there is `File Offset (s)` it says where in that file
the selection begins, because `Begin Time (s)` then counts through all files. A selection that the table lists once per
view (waveform, spectrogram) is one label. Words are those of the column `Annotation`.

The column `Recording` is ours: the recording's whole name, which Raven keeps as a column of notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from faithad import storage
from faithad.clips.labels.label import Label, bounds_problem, one_line, read_number, span_problem
from faithad.clips.labels.names import escape_controls, file_name, recording_name, unescape_controls

SUFFIX = ".Table.1.selections.txt"
SELECTION, VIEW, CHANNEL, BEGIN, END, LOW, HIGH, FILE, ANNOTATION, RECORDING = HEADER = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin File",
    "Annotation",
    "Recording",
)
# Not written: Raven may leave a number there as it was when somebody moves the selection.
PATH, FILE_OFFSET, END_FILE = "Begin Path", "File Offset (s)", "End File"

_LINE_END = re.compile(r"\r\n|\r|\n")
# Raven's own names, and those that detectors for it write.
_SUFFIXES = re.compile(r"(\.BirdNET)?(\.Table\.\d+)?(\.selections?)?(\.table)?\.txt\Z", re.IGNORECASE)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def files(labels: Iterable[Label]) -> dict[str, str]:
    """One selection table per recording, by file name. Control characters in a label's text become spaces."""
    found: dict[str, list[str]] = {}
    for label in sorted(labels, key=lambda one: (one.recording, one.onset_s, one.offset_s)):
        rows = found.setdefault(file_name(label.recording, SUFFIX), ["\t".join(HEADER) + "\n"])
        bounded = label.low_hz is not None and label.high_hz is not None
        cells = [
            str(len(rows)),
            "Spectrogram 1" if bounded else "Waveform 1",
            "1",
            f"{label.onset_s:.6f}",
            f"{label.offset_s:.6f}",
            *("" if hz is None else f"{hz:.6f}" for hz in (label.low_hz, label.high_hz)),
            one_line(storage.name_of(label.recording)),
            one_line(label.text),
            escape_controls(label.recording),
        ]
        rows.append("\t".join(cells) + "\n")
    return {name: "".join(rows) for name, rows in found.items()}


def is_table(first_line: str) -> bool:
    """Whether a file that begins with this line is meant as a selection table."""
    return any(name in {SELECTION.casefold(), BEGIN.casefold()} for name in _names(first_line))


def parse(text: str, *, path: str) -> tuple[list[Label], list[str]]:
    """The labels of a table and what is wrong with it; without a column that says it, the file's name is the
    recording's.
    """
    lines = [(number, line) for number, line in enumerate(_LINE_END.split(text), start=1) if line.strip()]
    top, header = lines[0] if lines else (1, "")
    names = _names(header)
    missing = [column for column in (BEGIN, END) if column.casefold() not in names]
    if missing:
        return [], [f"line {top}: the selection table has no column {' and none '.join(map(repr, missing))}"]
    cut = _SUFFIXES.search(path)
    recording = recording_name(path[: cut.start()] if cut else path)
    labels: dict[tuple[str, ...], Label] = {}
    problems: list[str] = []
    named: set[str] = set()
    for number, line in lines[1:]:
        cells = line.split("\t")
        if len(cells) > len(names):
            problems.append(f"line {number}: {len(cells)} cells under {len(names)} columns; a tab too many")
            continue
        row = dict(zip(names, cells + [""] * (len(names) - len(cells)), strict=True))
        try:
            label = _label(row, recording)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        named.add(label.recording)
        # A selection has the same number, times and file in each of its views.
        key = (label.recording, *(_cell(row, column).strip() for column in (SELECTION, BEGIN, END)))
        if key[1] == "":
            key = (str(number),)
        known = labels.get(key, label)
        labels[key] = known if known.low_hz is not None else label
    if len(named) > 1 and FILE_OFFSET.casefold() not in names and RECORDING.casefold() not in names:
        problems.append(
            f"line {top}: the table speaks of {len(named)} recordings, so times count through all of them; add the "
            f"measurement {FILE_OFFSET!r} in Raven and save it again"
        )
    return list(labels.values()), problems


def _label(row: Mapping[str, str], recording: str) -> Label:
    begin_s, end_s = read_number(_cell(row, BEGIN)), read_number(_cell(row, END))
    onset_s = begin_s
    if _cell(row, FILE_OFFSET).strip():
        onset_s = read_number(_cell(row, FILE_OFFSET))
    if _cell(row, END_FILE).strip() not in ("", _cell(row, FILE).strip()):
        raise ValueError("the selection runs on into another recording; cut it in two")
    if problem := span_problem(onset_s, round(onset_s + end_s - begin_s, 6)):
        raise ValueError(f"the selection {problem}")
    low_hz, high_hz = (read_number(cell) if cell.strip() else None for cell in (_cell(row, LOW), _cell(row, HIGH)))
    if problem := bounds_problem(low_hz, high_hz):
        raise ValueError(f"the selection {problem}")
    label = Label(recording, onset_s, round(onset_s + end_s - begin_s, 6), _cell(row, ANNOTATION), low_hz, high_hz)
    if name := _cell(row, RECORDING):
        return replace(label, recording=unescape_controls(name))
    if name := _cell(row, PATH).strip() or _cell(row, FILE).strip():
        return replace(label, recording=name.replace("\\", "/") if _WINDOWS_PATH.match(name) else name)
    return label


def _cell(row: Mapping[str, str], column: str) -> str:
    return row.get(column.casefold(), "")


def _names(header: str) -> list[str]:
    return [" ".join(name.split()).casefold() for name in header.split("\t")]
