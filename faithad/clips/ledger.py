"""The ledger: the status of each clip, and of each part of a recording that is in no clip.

A row is a dict with the columns of `schemas.LEDGER`, the same before it is written and after it is read. A row without
`clip_id` is about a recording, or about the part of it that `onset_s` and `duration_s` give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad.schemas import LEDGER
from faithad.vocabulary import count, duration

LedgerRow = dict[str, Any]


def ledger_row(
    recording: str,
    status: str,
    reason: str | None,
    *,
    stage: str = "index",
    clip_id: str | None = None,
    onset_s: float | None = None,
    duration_s: float | None = None,
) -> LedgerRow:
    """The row of a recording or of a part of it. `status` is one of `schemas.STATUSES`."""
    return {
        "clip_id": clip_id,
        "recording": recording,
        "onset_s": onset_s,
        "duration_s": duration_s,
        "status": status,
        "stage": stage,
        "reason": reason,
    }


def clip_ledger_row(clip: Mapping[str, Any], status: str, *, stage: str, reason: str | None = None) -> LedgerRow:
    """The row of one clip, which is a row of the manifest."""
    keys = {key: clip[key] for key in ("clip_id", "onset_s", "duration_s")}
    return ledger_row(clip["recording"], status, reason, stage=stage, **keys)


def ledger_order(row: Mapping[str, Any]) -> tuple[str, float]:
    """The sorting key of a ledger: recording, then onset. The row of a whole recording comes first."""
    return row["recording"], row["onset_s"] or 0.0


def ledger_table(rows: Iterable[LedgerRow]) -> pa.Table:
    """The rows as a table of `schemas.LEDGER`, in order."""
    return pa.Table.from_pylist(sorted(rows, key=ledger_order), schema=LEDGER)


def unheard(ledger: pa.Table) -> str:
    """How much sound a ledger has as skipped or failed: `1.2 h and 6 recordings of unknown length`; empty for none.

    Args:
        ledger: the columns `recording`, `duration_s` and `status` of schemas.LEDGER.
    """
    lost = ledger.filter(pc.not_equal(ledger["status"], "done"))
    seconds = pc.sum(lost["duration_s"]).as_py() or 0.0
    n_unknown = pc.count_distinct(lost.filter(pc.is_null(lost["duration_s"]))["recording"]).as_py()
    parts = [duration(seconds)] if seconds else []
    parts += [f"{count(n_unknown, 'recording')} of unknown length"] if n_unknown else []
    return " and ".join(parts)
