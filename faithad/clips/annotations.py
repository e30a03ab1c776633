"""Expert annotations: in which clips a disturbance was found, and in which seconds it can be heard.

The layout is that of the published planer table (Deschênes et al., arXiv 2501.04819): one row per anomalous window of
a recording, seven columns, intervals as lists of tuples, `-` where the anomaly cannot be heard. The table says every
interval twice, in seconds of the recording and in frames of the clip; here it is held once.

Conventions
    Intervals are half-open, in seconds from the clip's onset, ordered, without overlap, to the microsecond.
    Window k starts at (k - 1) windows' lengths; 40 frames make a second; a frame label that ends with its clip is
    written one too low (399 for 400).
    The rows are counted as a spreadsheet counts them: the header is row 1.

Anomaly types are kept as the table spells them. The published folders bear the same names (`broken_board`,
`board_stuck`, `Uneven_thick_wood`), so no translation is needed between the two.
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

import pyarrow as pa

from faithad import storage
from faithad.errors import AnnotationError, FaithadError
from faithad.vocabulary import count

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
    """One anomalous window of one recording.

    `window` counts from 1; `onset_s` and `offset_s` are the window's place in the recording; `intervals` count from
    the window's onset, (onset_s, offset_s) each, and are empty where the expert heard nothing.
    """

    recording: str
    window: int
    anomaly_type: str
    onset_s: float
    offset_s: float
    intervals: tuple[Interval, ...] = ()

    @property
    def annotated(self) -> bool:
        return bool(self.intervals)


def read_annotations(uri: str) -> list[Annotation]:
    """Read an annotation table in the published layout; columns may stand in any order, more of them are ignored.

    Returns:
        One annotation per row, in the table's order.

    Raises:
        AnnotationError: all that is wrong with the table, one line each with its row and column.
    """
    header, rows = csv_rows(uri, error=AnnotationError)
    names = [_normal(name) for name in header]
    missing = [_short(column) for column in HEADER if _normal(column) not in names]
    if missing:
        separator = " Its columns seem separated by semicolons: use commas." if ";" in "".join(header) else ""
        raise AnnotationError(
            f"{uri}: the annotation table has no column {', '.join(map(repr, missing))}. Found: "
            f"{', '.join(repr(' '.join(name.split())) for name in header) or 'nothing'}.{separator}"
        )
    places = {column: names.index(_normal(column)) for column in HEADER}
    read: list[tuple[int, Annotation]] = []
    problems: list[str] = []
    for row, cells in rows:
        if len(cells) != len(header):
            problems.append(f"row {row}: {len(cells)} cells instead of {len(header)}; put cells with commas in quotes")
            continue
        annotation, complaints = _parse({column: cells[place].strip() for column, place in places.items()})
        problems += [f"row {row}, {complaint}" for complaint in complaints]
        if annotation is not None:
            read.append((row, annotation))
    problems += _table_problems(read)
    if problems:
        what = f"{count(len(problems), 'problem')} in the annotation table (row 1 is the header)"
        raise AnnotationError(f"{uri}: {what}:\n  " + "\n  ".join(problems))
    return [annotation for _, annotation in read]


def write_annotations(annotations: Iterable[Annotation], uri: str) -> None:
    """Write the published layout, its header and line ends included; `read_annotations` gives the same back."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(HEADER)
    for annotation in annotations:
        last = round(FRAMES_PER_S * (annotation.offset_s - annotation.onset_s)) - 1
        frames = [[min(round(FRAMES_PER_S * edge), last) for edge in interval] for interval in annotation.intervals]
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


def csv_rows(uri: str, *, error: type[FaithadError]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a UTF-8 CSV file and its rows that are not blank, each with its number; the header is row 1.

    Raises:
        FaithadError: of the given kind, where the file cannot be read as such.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError as cause:
        raise error(f"{uri} does not exist. Check the path.") from cause
    except (OSError, pa.ArrowException) as cause:
        raise error(f"{uri} cannot be read: {cause}. Check its permissions and the connection.") from cause
    except (UnicodeDecodeError, csv.Error) as cause:
        raise error(f"{uri} is no CSV file in UTF-8: {cause}. Save it as 'CSV UTF-8' in the spreadsheet.") from cause
    rows = [(number, cells) for number, cells in enumerate(lines, start=1) if any(cell.strip() for cell in cells)]
    return (rows[0][1], rows[1:]) if rows else ([], [])


def _parse(cells: dict[str, str]) -> tuple[Annotation | None, list[str]]:
    """One row as an annotation, or None and what is wrong with it."""
    problems: list[str] = []

    def complain(column: str, complaint: str) -> None:
        problems.append(f"column {_short(column)!r}, {cells[column]!r}: {complaint}")

    recording, anomaly_type = cells[RECORDING], cells[ANOMALY_TYPE]
    window = int(cells[NUMBER]) if re.fullmatch(r"0*[1-9]\d{0,5}", cells[NUMBER]) else None
    span = _RANGE.fullmatch(cells[TIME_RANGE])
    onset_s, offset_s = (float(span[1]), float(span[2])) if span else (0.0, math.inf)
    times, frames = _parse_pairs(cells[TIMES]), _parse_pairs(cells[FRAMES])
    if not recording:
        complain(RECORDING, "empty; write the recording's file name")
    if not anomaly_type:
        complain(ANOMALY_TYPE, "empty; write what kind of anomaly it is")
    if window is None:
        complain(NUMBER, "no window number; write 1 for the first window of the recording")
    elif recording and cells[CLIP] != _clip_name(recording, window):
        complain(CLIP, f"not this recording and window; {_clip_name(recording, window)!r} expected")
    if span is None or not 0 <= onset_s < offset_s:
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
    """Whether frame labels say the same as the times: less than one frame apart, so that either may be rounded."""
    if len(intervals) != len(frames):
        return False
    last = round(FRAMES_PER_S * duration_s) - 1
    for (t1, t2), (f1, f2) in zip(intervals, frames, strict=True):
        at_the_end = math.isclose(t2, duration_s) and f2 == last
        if abs(FRAMES_PER_S * t1 - f1) >= 1 or (abs(FRAMES_PER_S * t2 - f2) >= 1 and not at_the_end):
            return False
    return True


def _table_problems(read: Sequence[tuple[int, Annotation]]) -> list[str]:
    """Windows that stand in two rows, and window numbers that do not belong to their time range."""
    problems = []
    first_row: dict[tuple[str, int], int] = {}
    lengths = {PUBLISHED_WINDOW_S, max((a.offset_s - a.onset_s for _, a in read), default=PUBLISHED_WINDOW_S)}
    for row, annotation in read:
        earlier = first_row.setdefault((annotation.recording, annotation.window), row)
        if earlier != row:
            problems.append(
                f"row {row}, {_clip_name(annotation.recording, annotation.window)!r}: stands in row {earlier} as well; "
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


def _normal(name: str) -> str:
    return " ".join(_short(name).split()).casefold()


def _short(name: str) -> str:
    """A column's name without the hint on how to write its cells."""
    return name.split("[")[0].strip()
