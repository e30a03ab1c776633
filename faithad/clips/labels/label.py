"""A label in every format: an interval of a recording with a text and perhaps frequency bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# The formats write six decimals.
PRECISION_S = 1e-6

_NUMBER = re.compile(r"[+-]?(?:\d{1,15}\.?\d{0,20}|\.\d{1,20})(?:[eE][+-]?\d{1,3})?")
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+")
_LINE_END = re.compile(r"\r\n|\r|\n")
# Tabs and line breaks would break the tables; some programs stop at other control characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ALARM = re.compile(r"alarm(?: [\d.]+x)?(?:, [\d,]+–[\d,]+ Hz)?")  # noqa: RUF001  (an en dash, as in any range)
_CHANGE = re.compile(r"change [+-][\d.]+ dB, [\d,]+–[\d,]+ Hz")  # noqa: RUF001


@dataclass(frozen=True)
class Label:
    """A half-open interval of a recording.

    Attributes:
        recording: its stable name, or the name that a label file gives it.
        onset_s: seconds from the start of the recording.
        offset_s: seconds from the start of the recording, after the onset.
        text: may be empty.
        low_hz: lower frequency bound, None if there is none.
        high_hz: upper frequency bound, None if there is none.
    """

    recording: str
    onset_s: float
    offset_s: float
    text: str
    low_hz: float | None = None
    high_hz: float | None = None


def checked(label: Label, *, noun: str = "label") -> Label:
    """Return the label if its times and frequency bounds are possible; `noun` names it in the message.

    Raises:
        ValueError: they are not possible.
    """
    onset_s, offset_s = label.onset_s, label.offset_s
    bounds = [hz for hz in (label.low_hz, label.high_hz) if hz is not None]
    problem = None
    if not (math.isfinite(onset_s) and math.isfinite(offset_s)):
        problem = f"{onset_s:g} to {offset_s:g} s is no interval of a recording"
    elif onset_s < 0:
        problem = f"begins at {onset_s:g} s, before the recording"
    elif abs(offset_s - onset_s) < PRECISION_S / 2:
        problem = f"is a point, at {onset_s:g} s; drag it open so that it covers the sound"
    elif offset_s < onset_s:
        problem = f"ends at {offset_s:g} s, before it begins at {onset_s:g} s"
    elif not all(math.isfinite(hz) and hz >= 0 for hz in bounds) or bounds != sorted(bounds):
        values = " to ".join(f"{hz:g}" for hz in bounds)
        problem = f"has the frequency bounds {values} Hz; the lower one comes first, and neither is below 0"
    if problem is not None:
        raise ValueError(f"the {noun} {problem}")
    return label


def by_recording(labels: Iterable[Label]) -> dict[str, list[Label]]:
    """The labels of each recording by onset, the recordings by name."""
    groups: dict[str, list[Label]] = {}
    for label in sorted(labels, key=lambda label: (label.recording, label.onset_s, label.offset_s)):
        groups.setdefault(label.recording, []).append(label)
    return groups


def alarm_text(strength: float, low_hz: float, high_hz: float) -> str:
    """The text of an event's label, such as `alarm 2.3x, 440–1,200 Hz`."""  # noqa: RUF002
    times = f" {strength:.1f}x" if math.isfinite(strength) else ""
    return f"alarm{times}, {low_hz:,.0f}–{high_hz:,.0f} Hz"  # noqa: RUF001


def change_text(change_db: float, low_hz: float, high_hz: float) -> str:
    """The text of the label of what lasts, such as `change +6.0 dB, 4,100–5,000 Hz`."""  # noqa: RUF002
    return f"change {change_db:+.1f} dB, {low_hz:,.0f}–{high_hz:,.0f} Hz"  # noqa: RUF001


def kind_of(text: str) -> str:
    """The kind of a label: `alarm` for every text that `alarm_text` writes, `change` for those of `change_text`, else
    the text itself.
    """
    text = text.strip()
    return "alarm" if _ALARM.fullmatch(text) else "change" if _CHANGE.fullmatch(text) else text


def one_line(text: str) -> str:
    """The text with spaces for control characters, so that it fits a cell of a tab-separated table."""
    return _CONTROL.sub(" ", text)


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(_LINE_END.split(text), start=1) if line.strip())


def read_number(cell: str) -> float:
    """The number in a cell.

    Raises:
        ValueError: it is no number; the message says what to do.
    """
    cell = cell.strip()
    if not _NUMBER.fullmatch(cell):
        if _COMMA_NUMBER.fullmatch(cell):
            raise ValueError(f"{cell!r} has a decimal comma; write a point")
        raise ValueError(f"{cell!r} is no number" if cell else "a number is missing")
    return float(cell)


def read_bounds(low: str, high: str) -> tuple[float | None, float | None]:
    """The frequency bounds in two cells, None for a blank cell."""
    low_hz, high_hz = (read_number(cell) if cell.strip() else None for cell in (low, high))
    return low_hz, high_hz


def written(number: float | None) -> str:
    """The cell of a number, blank for None."""
    return "" if number is None else f"{number:.6f}"
