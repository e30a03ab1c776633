"""Numbers, times and table rows as a reader sees them. What is not known is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

UNKNOWN = "\N{EN DASH}"


def number(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(row: Mapping[str, Any], digits: int = 3) -> str:
    """The row's 95 % interval."""
    low, high = row.get("ci_low"), row.get("ci_high")
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"{low:.{digits}f} to {high:.{digits}f}" if known else UNKNOWN


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def seconds(value: float | None) -> str:
    """A time or a length, to the millisecond and never in powers of ten: long recordings have large numbers."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{round(value, 3):,.12g} s"


def offset_words(utc_offset_s: float) -> str:
    """An offset from UTC: +02:00."""
    hours, minutes = divmod(abs(round(utc_offset_s)) // 60, 60)
    return f"{'-' if utc_offset_s < 0 else '+'}{hours:02d}:{minutes:02d}"


def hertz(low: float, high: float) -> str:
    """A range of frequencies: 250 to 900 Hz, 49 Hz to 2.1 kHz, 1.6 to 3.1 kHz."""
    (first, unit), (last, last_unit) = (
        (f"{hz:.0f}", "Hz") if round(hz) < 1_000 else (f"{hz / 1_000:.1f}", "kHz") for hz in (low, high)
    )
    return f"{first} to {last} {unit}" if unit == last_unit else f"{first} {unit} to {last} {last_unit}"


def period(recorded_at: pd.Series) -> str | None:
    """First and last day of the recordings, as far as their wall clock is known."""
    times = recorded_at.dropna()
    if times.empty:
        return None
    first, last = f"{times.min():%Y-%m-%d}", f"{times.max():%Y-%m-%d}"
    return first if first == last else f"{first} to {last}"


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as mappings; a missing value is None, whatever the column's type."""
    rows = frame.astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in rows.where(rows.notna(), None).to_dict("records")
    ]
