"""Expert annotations: which clips contain a disturbance, and in which seconds it can be heard.

The layout is that of the published planer table (Deschênes et al., arXiv 2501.04819): one row per anomalous window of a
recording, seven columns, intervals as lists of tuples, `-` if the anomaly cannot be heard. The table gives an interval
twice, in seconds of the recording and in frames of the clip; `Annotation` holds it once.

Conventions
    Intervals are half-open, in seconds from the clip's onset, ordered, without overlap, to the microsecond.
    Window k starts at (k - 1) times the window length. A second has 40 frames. In the table, an interval that ends with
    its clip has the last frame's own number as its end (399, not 400).

We keep the spelling of anomaly types. The published folders have the same names (`broken_board`, `board_stuck`,
`Uneven_thick_wood`).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

from faithad import storage
from faithad.clips.problems import ProblemList, csv_rows, read_text, shorten
from faithad.errors import AnnotationError

RECORDING, CLIP, NUMBER, TIME_RANGE, ANOMALY_TYPE, TIMES, FRAMES = HEADER = (
    "Recording wav File",
    "Spectrogram File Name",
    "Spectrogram Number",
    "Spectrogram Time Range",
    "Board (Anomaly) Type",
    "Time Anomaly Labels\n[(t1,t2), ...,etc]",
    "Labels in Spectrogram",
)

PUBLISHED_WINDOW_S = 10.0
FRAMES_PER_S = 40

_NUMBER = r"-?\d{1,9}(?:\.\d{1,9})?"
_PAIR = rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
_PAIRS = re.compile(rf"\[\s*{_PAIR}(?:\s*,\s*{_PAIR})*\s*\]")
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:seconds|s)?")
_NOTHING = ("-", "–", "[]")  # noqa: RUF001  (spreadsheets turn a hyphen into a dash)

Interval = tuple[float, float]


@dataclass(frozen=True)
class Annotation:
    """One anomalous window of a recording.

    Attributes:
        recording: its file name.
        window: from 1.
        anomaly_type: as the table spells it.
        onset_s: of the window, in the recording.
        offset_s: of the window, in the recording.
        intervals: (onset_s, offset_s) of each disturbance, from the window's onset; empty if nothing can be heard.
    """

    recording: str
    window: int
    anomaly_type: str
    onset_s: float
    offset_s: float
    intervals: tuple[Interval, ...] = ()


def read_annotations(uri: str) -> list[Annotation]:
    """Read an annotation table in the published layout. The columns may have any order; other columns are ignored.

    Returns:
        One annotation per row, in the order of the table.

    Raises:
        AnnotationError: the table has problems; the message gives one line for each, with row and column.
    """
    problems = ProblemList()
    annotations = parse_annotations(read_text(uri, error=AnnotationError), problems)
    problems.refuse(uri, "annotation table (row 1 is the header)", error=AnnotationError)
    return annotations


def parse_annotations(text: str, problems: ProblemList) -> list[Annotation]:
    """As `read_annotations`, from the text of the table; problems are added to the list."""
    read: list[tuple[int, Annotation]] = []
    for row, cells in csv_rows(text, problems, noun="annotation table", needed=HEADER):
        annotation, complaints = _parse({column: cells[column].strip() for column in HEADER})
        problems += [f"row {row}, {complaint}" for complaint in complaints]
        if annotation is not None:
            read.append((row, annotation))
    problems += _table_problems(read)
    return [annotation for _, annotation in read]


def write_annotations(annotations: Iterable[Annotation], uri: str) -> None:
    """Write a table in the published layout; `read_annotations` returns equal annotations."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(HEADER)
    for annotation in annotations:
        last = round(FRAMES_PER_S * (annotation.offset_s - annotation.onset_s)) - 1
        frames = [[min(edge, last) for edge in interval] for interval in _frames(annotation.intervals)]
        times = [[annotation.onset_s + edge for edge in interval] for interval in annotation.intervals]
        writer.writerow(
            [
                annotation.recording,
                _clip_name(annotation.recording, annotation.window),
                annotation.window,
                f"{_number(annotation.onset_s)}-{_number(annotation.offset_s)} seconds",
                annotation.anomaly_type,
                _pairs(times),
                _pairs(frames),
            ]
        )
    storage.write_text(uri, text.getvalue())


def _parse(cells: dict[str, str]) -> tuple[Annotation | None, list[str]]:
    """One row as an annotation, or None and its problems."""
    problems: list[str] = []

    def complain(column: str, complaint: str) -> None:
        problems.append(f"column {shorten(column)!r}, {cells[column]!r}: {complaint}")

    recording, anomaly_type = cells[RECORDING], cells[ANOMALY_TYPE]
    window = int(cells[NUMBER]) if re.fullmatch(r"0*[1-9]\d{0,5}", cells[NUMBER]) else None
    time_range = _RANGE.fullmatch(cells[TIME_RANGE])
    onset_s, offset_s = (float(time_range[1]), float(time_range[2])) if time_range else (0.0, math.inf)
    times, frames = _parse_pairs(cells[TIMES]), _parse_pairs(cells[FRAMES])
    if not recording:
        complain(RECORDING, "empty; write the recording's file name")
    if not anomaly_type:
        complain(ANOMALY_TYPE, "empty; write what kind of anomaly it is")
    if window is None:
        complain(NUMBER, "no window number; write 1 for the first window of the recording")
    elif recording and cells[CLIP] != _clip_name(recording, window):
        complain(CLIP, f"not this recording and window; {_clip_name(recording, window)!r} expected")
    if time_range is None or not 0 <= onset_s < offset_s:
        complain(TIME_RANGE, "no time range; write seconds of the recording such as '10-20 seconds'")
        onset_s, offset_s = 0.0, math.inf
    if times is None:
        complain(TIMES, "malformed; write [(t1, t2), ...] in seconds of the recording, or - for nothing audible")
    if frames is None:
        complain(FRAMES, f"malformed; write [(f1, f2), ...] in frames of the clip, {FRAMES_PER_S} a second, or -")
    for complaint in _interval_problems(times or [], onset_s, offset_s):
        complain(TIMES, complaint)
    if problems or window is None or times is None or frames is None:
        return None, problems
    intervals = [(round(t1 - onset_s, 6), round(t2 - onset_s, 6)) for t1, t2 in times]
    if not _same_intervals(intervals, frames, offset_s - onset_s):
        complain(FRAMES, f"disagrees with the times {cells[TIMES]}, which are {_pairs(_frames(intervals))} in frames")
        return None, problems
    return Annotation(recording, window, anomaly_type, onset_s, offset_s, tuple(sorted(intervals))), []


def _parse_pairs(cell: str) -> list[Interval] | None:
    if cell in _NOTHING:
        return []
    if not _PAIRS.fullmatch(cell):
        return None
    return [(float(first), float(second)) for first, second in re.findall(_PAIR, cell)]


def _interval_problems(times: Sequence[Interval], onset_s: float, offset_s: float) -> list[str]:
    problems = []
    for t1, t2 in times:
        if t2 <= t1:
            problems.append(f"({t1:g}, {t2:g}) does not end after it begins; write the earlier time first")
        elif t1 < onset_s or t2 > offset_s:
            problems.append(
                f"({t1:g}, {t2:g}) lies outside the clip, which spans {onset_s:g} to {offset_s:g} s of the recording"
            )
    for (a1, a2), (b1, b2) in pairwise(sorted(times)):
        if b1 < a2:
            problems.append(f"({a1:g}, {a2:g}) and ({b1:g}, {b2:g}) overlap; write one interval for both")
    return problems


def _same_intervals(intervals: Sequence[Interval], frames: Sequence[Interval], duration_s: float) -> bool:
    """Whether the frames agree with the times: less than one frame apart, since either may be rounded."""
    if len(intervals) != len(frames):
        return False
    last = round(FRAMES_PER_S * duration_s) - 1
    for (t1, t2), (f1, f2) in zip(intervals, frames, strict=True):
        at_the_end = math.isclose(t2, duration_s) and f2 == last
        if abs(FRAMES_PER_S * t1 - f1) >= 1 or (abs(FRAMES_PER_S * t2 - f2) >= 1 and not at_the_end):
            return False
    return True


def _table_problems(read: Sequence[tuple[int, Annotation]]) -> list[str]:
    """Windows that have two rows, and window numbers that do not fit their time range."""
    problems = []
    first_rows: dict[tuple[str, int], int] = {}
    lengths = {PUBLISHED_WINDOW_S, max((a.offset_s - a.onset_s for _, a in read), default=PUBLISHED_WINDOW_S)}
    for row, annotation in read:
        earlier = first_rows.setdefault((annotation.recording, annotation.window), row)
        if earlier != row:
            problems.append(
                f"row {row}, {_clip_name(annotation.recording, annotation.window)!r}: is in row {earlier} as well; "
                "keep one row per window"
            )
        if not any(math.isclose((annotation.window - 1) * length, annotation.onset_s) for length in lengths):
            problems.append(
                f"row {row}, column {NUMBER!r}, {annotation.window}: window {annotation.window} cannot start at "
                f"{annotation.onset_s:g} s; windows lie side by side, the first one at 0 s"
            )
    return problems


def _frames(intervals: Iterable[Interval]) -> list[list[int]]:
    return [[round(FRAMES_PER_S * edge) for edge in interval] for interval in intervals]


def _pairs(values: Sequence[Sequence[float]]) -> str:
    return "[" + ", ".join(f"({_number(first)},{_number(second)})" for first, second in values) + "]" if values else "-"


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _clip_name(recording: str, window: int) -> str:
    return f"{PurePosixPath(recording).stem}_{window}.pt"
