r"""Audacity's label tracks: a text file per recording, one label per line.

A line is onset, offset and text, separated by tabs. A label with frequency bounds goes on in a second line: a
backslash, the lower and the upper bound, -1 where a bound is missing
(https://manual.audacityteam.org/man/importing_and_exporting_labels.html). Audacity writes decimal points in every
country. Further lines that begin with a backslash belong to formats to come and are passed over, as Audacity does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from faithad.clips.labels.label import Label, bounds_problem, one_line, read_number, span_problem
from faithad.clips.labels.names import file_name, recording_name

SUFFIX = ".txt"
_LINE_END = re.compile(r"\r\n|\r|\n")
_UNDEFINED_HZ = -1.0


def files(labels: Iterable[Label]) -> dict[str, str]:
    """One label track per recording, by file name. A tab or a line break in a label's text becomes a space."""
    found: dict[str, list[str]] = {}
    for label in sorted(labels, key=lambda one: (one.recording, one.onset_s, one.offset_s)):
        lines = found.setdefault(file_name(label.recording, SUFFIX), [])
        lines.append(f"{label.onset_s:.6f}\t{label.offset_s:.6f}\t{one_line(label.text)}\n")
        if label.low_hz is not None or label.high_hz is not None:
            low_hz, high_hz = (_UNDEFINED_HZ if hz is None else hz for hz in (label.low_hz, label.high_hz))
            lines.append(f"\\\t{low_hz:.6f}\t{high_hz:.6f}\n")
    return {name: "".join(lines) for name, lines in found.items()}


def parse(text: str, *, path: str) -> tuple[list[Label], list[str]]:
    """The labels of a track and what is wrong with it; the recording is that of the file's name, less `.txt`."""
    recording = recording_name(path[: -len(SUFFIX)] if path.lower().endswith(SUFFIX) else path)
    labels: list[Label] = []
    problems: list[str] = []
    open_for_bounds = False
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if not line.strip():
            continue
        try:
            if not line.startswith("\\"):
                open_for_bounds = False
                labels.append(_label(line, recording))
                open_for_bounds = True
            elif open_for_bounds:
                open_for_bounds = False
                labels[-1] = _with_bounds(labels[-1], line)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    return labels, problems


def _label(line: str, recording: str) -> Label:
    onset, *rest = line.split("\t")
    onset_s = read_number(onset)
    if not rest:
        raise ValueError("the label has no end; onset, offset and text must stand there, with tabs between them")
    try:
        offset_s = read_number(rest[0])
    except ValueError as error:
        raise ValueError(f"the label has no end ({error}): a point is no interval, drag it open") from None
    if problem := span_problem(onset_s, offset_s):
        raise ValueError(f"the label {problem}")
    return Label(recording, onset_s, offset_s, " ".join(rest[1:]))


def _with_bounds(label: Label, line: str) -> Label:
    cells = line.split("\t")
    if len(cells) < 3:
        raise ValueError("a line that begins with a backslash must hold a lower and an upper frequency")
    low_hz, high_hz = (None if hz == _UNDEFINED_HZ else hz for hz in map(read_number, cells[1:3]))
    if problem := bounds_problem(low_hz, high_hz):
        raise ValueError(f"the label {problem}")
    return replace(label, low_hz=low_hz, high_hz=high_hz)
