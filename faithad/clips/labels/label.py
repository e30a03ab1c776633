"""What a label is in every format: a stretch of a recording, with words and perhaps with frequency bounds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# The formats write six decimals.
PRECISION_S = 1e-6

_NUMBER = re.compile(r"[+-]?(?:\d{1,15}\.?\d{0,20}|\.\d{1,20})(?:[eE][+-]?\d{1,3})?")
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+")
# Tabs and line breaks take the table formats apart; other control characters stop some readers.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ALARM = re.compile(r"alarm(?: [\d.]+x)?(?:, [\d,]+–[\d,]+ Hz)?")  # noqa: RUF001  (an en dash, as in any range)


@dataclass(frozen=True)
class Label:
    """A stretch of a recording, half-open.

    Attributes:
        recording: its stable name, or what the file of labels calls it.
        onset_s: seconds from the recording's start.
        offset_s: after the onset.
        text: what stands on the label; may be empty.
        low_hz: lower frequency bound, None where there is none.
        high_hz: upper frequency bound, None where there is none.
    """

    recording: str
    onset_s: float
    offset_s: float
    text: str
    low_hz: float | None = None
    high_hz: float | None = None


def alarm_text(strength: float, low_hz: float, high_hz: float) -> str:
    """The words on an event's label, such as `alarm 2.3x, 440–1,200 Hz`."""  # noqa: RUF002
    times = f" {strength:.1f}x" if math.isfinite(strength) else ""
    return f"alarm{times}, {low_hz:,.0f}–{high_hz:,.0f} Hz"  # noqa: RUF001


def kind_of(text: str) -> str:
    """What a label is about: its text, but `alarm` for all that `alarm_text` writes."""
    text = text.strip()
    return "alarm" if _ALARM.fullmatch(text) else text


def one_line(text: str) -> str:
    """A text that fits a line and a cell of a tab-separated table: control characters become spaces."""
    return _CONTROL.sub(" ", text)


def read_number(cell: str) -> float:
    """A number as all formats write it.

    Raises:
        ValueError: anything else; the text says what to do.
    """
    cell = cell.strip()
    if not _NUMBER.fullmatch(cell):
        if _COMMA_NUMBER.fullmatch(cell):
            raise ValueError(f"{cell!r} has a decimal comma; write a point")
        raise ValueError(f"{cell!r} is no number" if cell else "a number is missing")
    return float(cell)


def span_problem(onset_s: float, offset_s: float) -> str | None:
    """What is wrong with a label's times, or None."""
    if not (math.isfinite(onset_s) and math.isfinite(offset_s)):
        return f"{onset_s:g} to {offset_s:g} s is no stretch of a recording"
    if onset_s < 0:
        return f"begins at {onset_s:g} s, before the recording"
    if abs(offset_s - onset_s) < PRECISION_S / 2:
        return f"is a point, at {onset_s:g} s; drag it open to the seconds that it speaks of"
    if offset_s < onset_s:
        return f"ends at {offset_s:g} s, before it begins at {onset_s:g} s"
    return None


def bounds_problem(low_hz: float | None, high_hz: float | None) -> str | None:
    """What is wrong with a label's frequency bounds, or None."""
    known = [hz for hz in (low_hz, high_hz) if hz is not None]
    if all(math.isfinite(hz) and hz >= 0 for hz in known) and known == sorted(known):
        return None
    bounds = " to ".join(f"{hz:g}" for hz in known)
    return f"has the frequency bounds {bounds} Hz; the lower one comes first, none is below 0"
