"""Rows of the ledger: what became of each clip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from faithad import schemas

Row = dict[str, Any]


def ledger_row(clip: Mapping[str, Any], *, status: str, stage: str, reason: str | None = None) -> Row:
    """What the ledger says of one clip."""
    keys = ("clip_id", "recording", "onset_s", "duration_s")
    return {**{key: clip[key] for key in keys}, "status": status, "stage": stage, "reason": reason}


def failed_row(clip: Mapping[str, Any], *, stage: str, reason: str) -> Row:
    return ledger_row(clip, status="failed", stage=stage, reason=reason)


def place(row: Mapping[str, Any]) -> tuple[str, float]:
    """The order of a ledger: by recording, then by onset. A row for a whole recording comes first."""
    return row["recording"], row["onset_s"] or 0.0


def ledger_table(rows: Iterable[Row]) -> pa.Table:
    """The ledger in its order."""
    return pa.Table.from_pylist(sorted(rows, key=place), schema=schemas.LEDGER)
