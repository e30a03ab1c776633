"""The table `health` as the pages show it: which recordings have faults, and which channel of them was heard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from faithad import parquet, schemas, storage
from faithad.clips.health_table import channel_line, problem_line
from faithad.report.words import UNKNOWN
from faithad.runs import layout

MAX_ROWS = 50


@dataclass(frozen=True)
class HealthView:
    """Attributes:
    sentences: what is wrong, and what was heard; empty where there is nothing to report.
    rows: the first recordings with faults, or of which one channel was heard.
    more: how many further such recordings there are.
    """

    sentences: list[str]
    rows: list[dict[str, Any]]
    more: int


def read_health(root: str) -> pa.Table:
    """The table below the root of a study or an audit, without rows where an earlier release wrote none."""
    location = storage.join(root, layout.HEALTH)
    if not storage.exists(location):
        return schemas.HEALTH.empty_table()
    return parquet.read_table(location).select(schemas.HEALTH.names).cast(schemas.HEALTH)


def health_view(health: pa.Table) -> HealthView:
    """The view of a table of schemas.HEALTH."""
    lines = [line for line in (problem_line(health), channel_line(health)) if line is not None]
    rows = [row for row in health.to_pylist() if row["problems"] or (row["channels"] > 1 and row["heard"].isdigit())]
    # Those with most faults first, so that none of them is hidden behind recordings of which only a channel was chosen.
    rows.sort(key=lambda row: -len(row["problems"]))
    shown = [
        {
            "recording": row["recording"],
            "channels": row["channels"],
            "heard": row["heard"],
            "levels": _numbers(row["level_dbfs"], "{:.0f}"),
            "correlation": _numbers(row["correlation"], "{:.2f}") if row["channels"] > 1 else UNKNOWN,
            "problems": "; ".join(row["problems"]),
        }
        for row in rows[:MAX_ROWS]
    ]
    return HealthView([f"{line}." for line in lines], shown, len(rows) - len(shown))


def _numbers(values: list[float | None] | None, form: str) -> str:
    return ", ".join(UNKNOWN if value is None else form.format(value) for value in values or []) or UNKNOWN
