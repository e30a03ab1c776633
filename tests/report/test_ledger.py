"""The ledger as the pages show it."""

from __future__ import annotations

from faithad.clips.ledger import ledger_row, ledger_table
from faithad.report.ledger import ledger_view


def test_a_corrected_header_is_told_last_and_counts_as_nothing_that_was_left_out() -> None:
    ledger = [
        ledger_row("a.wav", "done", None, clip_id="1", onset_s=0.0, duration_s=3600.0),
        ledger_row("a.wav", "done", "has a header without a length", onset_s=0.0, duration_s=0.0),
        ledger_row("b.wav", "skipped", "too short", onset_s=0.0, duration_s=1800.0),
        ledger_row("c.wav", "failed", "no sound"),
    ]
    view = ledger_view(ledger_table(ledger).to_pandas())
    assert [row["recording"] for row in view.rows] == ["c.wav", "b.wav", "a.wav"]
    assert view.rejected.startswith("2 pieces of recordings")
    assert view.hours == {"done": 1.0, "skipped": 0.5, "failed": 0.0}
    assert view.clips == {"done": 1, "skipped": 0, "failed": 0}
