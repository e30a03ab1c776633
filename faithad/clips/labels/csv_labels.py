"""Labels as a table: one row per label, all recordings in one file.

We read the columns `recording`, `onset_s` and `offset_s` and, if present, `text`, `low_hz` and `high_hz`; also under
the names of DESED's tables, `filename`, `onset`, `offset` and `event_label`. A row with nothing but a recording says
that nothing is heard in it. The file is UTF-8, separated by commas or tabs, with decimal points; we write commas.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from faithad.clips.labels.label import Label, checked, read_bounds, read_number, written
from faithad.clips.problems import ProblemList, csv_rows

FILE_NAME = "labels.csv"
NEEDED, OPTIONAL = ("recording", "onset_s", "offset_s"), ("text", "low_hz", "high_hz")
# What exports say about an event in addition to its label.
EVENT_COLUMNS = (
    *("event_id", "model", "seed", "started_at", "ended_at", "utc_offset_s", "score", "threshold", "strength"),
    *("n_alarms", "mel_band_low", "mel_band_high", "method", "percentile", "faithfulness", "seconds"),
)
# What they say about a change that lasts.
CHANGE_COLUMNS = (
    *("state_id", "model", "seed", "started_at", "ended_at", "utc_offset_s", "outcome", "n_minutes", "reference"),
    *("distance_db", "threshold_db", "strength", "changes"),
)
_ALIASES = {"filename": "recording", "onset": "onset_s", "offset": "offset_s", "event_label": "text"}

# A spreadsheet runs a cell that begins with one of these signs as a formula; where semicolons separate lists, a cell
# begins after each of them. A name must stay text, so we write an apostrophe before it. If an apostrophe is there
# already, we add another one, so that reading gives the same text back. The last four signs are full-width;
# spreadsheets in East Asian languages run them, too.
_STARTS = "[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]"
_FORMULA = re.compile(rf"(\A|;)(?='*{_STARTS})")
_NUMBER = re.compile(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?")
_DEFUSED = re.compile(rf"(\A|;)'(?='*{_STARTS})")


def files(labels: Sequence[Label], *, more: Mapping[str, Sequence[str]] | None = None) -> dict[str, str]:
    """The table by its file name, one row per label, in the same order.

    `more` adds columns: for each name, one cell per label.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    further = more or {}
    writer.writerow([*NEEDED, *OPTIONAL, *further])
    for number, label in enumerate(labels):
        times = (written(label.onset_s), written(label.offset_s))
        bounds = (written(label.low_hz), written(label.high_hz))
        extra = (_defused(cells[number]) for cells in further.values())
        writer.writerow([_defused(label.recording), *times, _defused(label.text), *bounds, *extra])
    return {FILE_NAME: text.getvalue()}


def is_table(first_line: str, *, delimiter: str) -> bool:
    """Whether the first line of a file is the header of such a table, complete or not."""
    names = {name.strip(' "').casefold() for name in first_line.split(delimiter)}
    return not names.isdisjoint((*NEEDED, *_ALIASES))


def parse(text: str, problems: ProblemList, *, delimiter: str = ",") -> list[Label]:
    """The labels of a table; the header is row 1, as a spreadsheet counts."""
    labels: list[Label] = []
    rows = csv_rows(
        text, problems, noun="table", needed=NEEDED, optional=OPTIONAL, aliases=_ALIASES, delimiter=delimiter
    )
    for number, row in rows:
        with problems.at(f"row {number}"):
            if any(row.get(column, "").strip() for column in (*NEEDED[1:], *OPTIONAL)):
                labels.append(_label(row))
    problems.unread = [column for column in problems.unread if column not in (*EVENT_COLUMNS, *CHANGE_COLUMNS)]
    return labels


def _label(row: Mapping[str, str]) -> Label:
    recording = _plain(row["recording"])
    if not recording:
        raise ValueError("the recording is empty; write its file name")
    onset_s, offset_s = read_number(row["onset_s"]), read_number(row["offset_s"])
    bounds = read_bounds(row.get("low_hz", ""), row.get("high_hz", ""))
    return checked(Label(recording, onset_s, offset_s, _plain(row.get("text", "")), *bounds))


def _defused(cell: str) -> str:
    return cell if _NUMBER.fullmatch(cell) else _FORMULA.sub(r"\1'", cell)


def _plain(cell: str) -> str:
    return _DEFUSED.sub(r"\1", cell)
