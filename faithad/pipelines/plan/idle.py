"""Rows that readers and actors only pass on: what is left of a pass is Ray's and the driver's.

It imports nothing, so that as many of these processes as a cluster has fit on one machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def pass_on(row: Row) -> Row:
    """Read nothing; says what its process has computed by now, before it gets the next row."""
    return {**row, "reader": f"{os.getpid()}", "reader_s": time.process_time()}


class Idle:
    """An actor that does nothing; what it says is as of `pass_on`."""

    def __call__(self, row: Row) -> Row:
        return {**row, "actor": f"{os.getpid()}", "actor_s": time.process_time()}


def task_seconds(rows: Sequence[Row], role: str) -> float:
    """What the processes of a role (`reader`, `actor`) computed for a row, beside what they were asked for."""
    seconds: dict[str, list[float]] = {}
    for row in rows:
        seconds.setdefault(row[role], []).append(row[f"{role}_s"])
    spans = [max(each) - min(each) for each in seconds.values()]
    return sum(spans) / max(1, sum(len(each) - 1 for each in seconds.values()))
