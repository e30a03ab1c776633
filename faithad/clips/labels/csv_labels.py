"""Labels as a CSV table: one row per label, all recordings in one file.

The columns that are read are `recording`, `onset_s` and `offset_s`, and where they are there `text`, `low_hz` and
`high_hz`; all others are passed over. UTF-8, separated by commas, decimal points.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from faithad.clips.labels.label import Label, bounds_problem, read_number, span_problem

FILE_NAME = "labels.csv"
NEEDED = ("recording", "onset_s", "offset_s")
HEADER = (*NEEDED, "text", "low_hz", "high_hz")

# A spreadsheet runs a cell that begins with one of these as a formula, and names are data: an apostrophe before it
# makes it text. One that stands there already gets another, so that it comes back. The last four are full-width signs,
# which count as well where such letters are written.
_STARTS = "[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]"
_FORMULA = re.compile(f"'*{_STARTS}")
_NUMBER = re.compile(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?")
_DEFUSED = re.compile(f"''*{_STARTS}")


def files(labels: Sequence[Label], *, more: Mapping[str, Sequence[str]] | None = None) -> dict[str, str]:
    """The table by its file name, in the order of the labels.

    Args:
        labels: one row each.
        more: further columns, by name, one cell per label.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    further = more or {}
    writer.writerow([*HEADER, *further])
    for number, label in enumerate(labels):
        bounds = ("" if hz is None else f"{hz:.6f}" for hz in (label.low_hz, label.high_hz))
        row = [f"{label.onset_s:.6f}", f"{label.offset_s:.6f}", _defused(label.text), *bounds]
        writer.writerow([_defused(label.recording), *row, *(_defused(cells[number]) for cells in further.values())])
    return {FILE_NAME: text.getvalue()}


def parse(text: str) -> tuple[list[Label], list[str]]:
    """The labels of a table and what is wrong with it; the header is row 1, as a spreadsheet counts."""
    try:
        rows = [
            (number, cells)
            for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), start=1)
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        return [], [f"no CSV table: {error}"]
    top, header = rows[0] if rows else (1, [])
    names = [name.strip().casefold() for name in header]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        hint = "; its columns seem separated by semicolons: use commas" if ";" in "".join(header) else ""
        return [], [f"row {top}: the table has no column {', '.join(map(repr, missing))}{hint}"]
    labels: list[Label] = []
    problems: list[str] = []
    for number, cells in rows[1:]:
        if len(cells) != len(names):
            problems.append(
                f"row {number}: {len(cells)} cells instead of {len(names)}; put cells with commas in quotes"
            )
            continue
        try:
            labels.append(_label(dict(zip(names, cells, strict=True))))
        except ValueError as error:
            problems.append(f"row {number}: {error}")
    return labels, problems


def _label(row: Mapping[str, str]) -> Label:
    recording = _plain(row["recording"])
    if not recording:
        raise ValueError("the recording is empty; write its file name")
    onset_s, offset_s = read_number(row["onset_s"]), read_number(row["offset_s"])
    if problem := span_problem(onset_s, offset_s):
        raise ValueError(f"the label {problem}")
    low_hz, high_hz = (read_number(cell) if (cell := row.get(key, "")) else None for key in ("low_hz", "high_hz"))
    if problem := bounds_problem(low_hz, high_hz):
        raise ValueError(f"the label {problem}")
    return Label(recording, onset_s, offset_s, _plain(row.get("text", "")), low_hz, high_hz)


def _defused(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _plain(cell: str) -> str:
    return cell[1:] if _DEFUSED.match(cell) else cell
