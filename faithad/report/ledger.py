"""A ledger as the pages show it: how many clips are done, and which sound is not, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from faithad import schemas
from faithad.clips.ledger import unheard
from faithad.report.words import records
from faithad.vocabulary import count

MAX_ROWS = 50


@dataclass(frozen=True)
class LedgerView:
    """Attributes:
    clips: by status.
    hours: of sound by status, as far as lengths are known.
    unheard: how much sound was skipped or failed, in words; empty where there is none.
    rejected: what never became a clip, in words; empty where there is nothing.
    rows: the first rows that have a reason: failures, then skips, then notes on what is done.
    more: how many further rows there are.
    """

    clips: dict[str, int]
    hours: dict[str, float]
    unheard: str
    rejected: str
    rows: list[dict[str, Any]]
    more: int

    @property
    def total(self) -> int:
        return sum(self.clips.values())


def ledger_view(ledger: pd.DataFrame) -> LedgerView:
    """The view of a table of schemas.LEDGER."""
    is_clip = ledger["clip_id"].notna()
    clips = ledger[is_clip]["status"].value_counts()
    hours = ledger.groupby("status")["duration_s"].sum() / 3_600
    n_rejected = int((~is_clip & (ledger["status"] != "done")).sum())
    pieces = count(n_rejected, "piece of recordings", "pieces of recordings")
    # A row that is done and has a reason is about a header that was corrected, or a recording that does not fit.
    with_reason = ledger[(ledger["status"] != "done") | ledger["reason"].notna()]
    # All clips of a recording that does not fit the model are skipped for one reason: one row.
    is_skipped_clip = with_reason["clip_id"].notna() & (with_reason["status"] == "skipped")
    by_reason = with_reason[is_skipped_clip].groupby(["recording", "status", "stage", "reason"], as_index=False)
    at_once = by_reason.agg(onset_s=("onset_s", "min"), duration_s=("duration_s", "sum"))
    with_reason = pd.concat([with_reason[~is_skipped_clip], at_once]) if len(at_once) else with_reason
    order = with_reason["status"].map({"failed": 0, "skipped": 1, "done": 2})
    bad = with_reason.assign(order=order).sort_values(["order", "recording", "onset_s"], kind="stable")
    return LedgerView(
        clips={status: int(clips.get(status, 0)) for status in schemas.STATUSES},
        hours={status: float(hours.get(status, 0.0)) for status in schemas.STATUSES},
        unheard=unheard(pa.Table.from_pandas(ledger, schema=schemas.LEDGER, preserve_index=False)),
        rejected=f"{pieces} (a whole file or its rest) never became clips" if n_rejected else "",
        rows=records(bad.head(MAX_ROWS)),
        more=max(0, len(bad) - MAX_ROWS),
    )
