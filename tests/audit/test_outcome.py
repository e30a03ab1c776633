"""The last line of an audit."""

from __future__ import annotations

from pathlib import Path

from faithad import parquet, schemas
from faithad.audit.outcome import audit_outcome
from faithad.clips.ledger import ledger_row, ledger_table
from faithad.runs import layout


def test_recordings_that_are_not_whole_are_told_beside_those_that_cannot_be_read(tmp_path: Path) -> None:
    ledger = [
        ledger_row("a.wav", "done", None, clip_id="1", onset_s=0.0, duration_s=10.0),
        ledger_row("a.wav", "done", "has a header without a length", onset_s=0.0, duration_s=0.0),
        ledger_row("b.wav", "failed", "is truncated", onset_s=10.0, duration_s=5.0),
        ledger_row("c.wav", "failed", "no sound"),
        ledger_row("d.wav", "failed", "no sound"),
    ]
    parquet.write_table(ledger_table(ledger), str(tmp_path / layout.LEDGER), schema=schemas.LEDGER)
    parquet.write_table(schemas.EVENTS.empty_table(), str(tmp_path / layout.EVENTS), schema=schemas.EVENTS)
    outcome = audit_outcome(str(tmp_path))
    assert outcome.line.startswith("1 of 1 clip audited, 2 recordings unreadable, 1 recording incomplete (see ")
    assert (outcome.n_done, outcome.n_failed, outcome.n_skipped) == (1, 3, 0)
