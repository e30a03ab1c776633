r"""Audacity's label tracks: a text file per recording, one label per line.

A line holds onset, offset and text, separated by tabs. If a label has frequency bounds, a second line follows: a
backslash, the lower and the upper bound, -1 for a bound that is missing
(https://manual.audacityteam.org/man/importing_and_exporting_labels.html). Audacity writes decimal points in every
country. Like Audacity, we ignore further lines that begin with a backslash: they belong to future formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from faithad.clips.labels.label import Label, by_recording, checked, numbered_lines, one_line, read_number, written
from faithad.clips.labels.names import file_name, recording_name
from faithad.clips.problems import ProblemList

SUFFIX = ".txt"
_NO_BOUND_HZ = -1.0


def files(labels: Iterable[Label]) -> dict[str, str]:
    """One label track per recording, by file name. A tab or a line break in a label's text becomes a space."""
    return {
        file_name(recording, SUFFIX): "".join(line for label in group for line in _lines(label))
        for recording, group in by_recording(labels).items()
    }


def parse(text: str, path: str, problems: ProblemList) -> list[Label]:
    """The labels of a track. The recording is the file's name without `.txt`."""
    recording = recording_name(path[: -len(SUFFIX)] if path.lower().endswith(SUFFIX) else path)
    labels: list[Label] = []
    bounds_may_follow = False
    for number, line in numbered_lines(text):
        with problems.at(f"line {number}"):
            has_bounds, bounds_may_follow = line.startswith("\\") and bounds_may_follow, False
            if has_bounds:
                labels[-1] = _with_bounds(labels[-1], line)
            elif not line.startswith("\\"):
                labels.append(_label(line, recording))
                bounds_may_follow = True
    return labels


def _lines(label: Label) -> Iterator[str]:
    yield f"{written(label.onset_s)}\t{written(label.offset_s)}\t{one_line(label.text)}\n"
    if label.low_hz is not None or label.high_hz is not None:
        low, high = (written(_NO_BOUND_HZ if hz is None else hz) for hz in (label.low_hz, label.high_hz))
        yield f"\\\t{low}\t{high}\n"


def _label(line: str, recording: str) -> Label:
    onset, *rest = line.split("\t")
    onset_s = read_number(onset)
    if not rest:
        raise ValueError("the label has no end; write onset, offset and text with tabs between them")
    try:
        offset_s = read_number(rest[0])
    except ValueError as error:
        raise ValueError(f"the label has no end ({error}): a point is no interval, drag it open") from None
    return checked(Label(recording, onset_s, offset_s, " ".join(rest[1:])))


def _with_bounds(label: Label, line: str) -> Label:
    cells = line.split("\t")
    if len(cells) < 3:
        raise ValueError("a line that begins with a backslash must hold a lower and an upper frequency")
    low_hz, high_hz = (None if hz == _NO_BOUND_HZ else hz for hz in map(read_number, cells[1:3]))
    return checked(replace(label, low_hz=low_hz, high_hz=high_hz))
