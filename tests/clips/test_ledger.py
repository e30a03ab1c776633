"""How much sound was not heard, in words."""

from __future__ import annotations

import pytest

from faithad.clips.ledger import LedgerRow, ledger_row, ledger_table, unheard


def lost(recording: str, duration_s: float | None, status: str = "failed") -> LedgerRow:
    return ledger_row(recording, status, "why", onset_s=None if duration_s is None else 0.0, duration_s=duration_s)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ""),
        ([lost("a", 60.0, "done")], ""),
        ([lost("a", 60.0), lost("b", 10.0, "skipped"), lost("c", 600.0, "done")], "70 s"),
        ([lost("a", 3_000.0)], "50.0 min"),
        ([lost("a", 36_000.0)], "10.0 h"),
        ([lost("a", None)], "1 recording of unknown length"),
        ([lost("a", 9_000.0), *(lost(name, None) for name in "bcdefg")], "2.5 h and 6 recordings of unknown length"),
    ],
)
def test_sound_that_was_not_heard(rows: list[LedgerRow], words: str) -> None:
    assert unheard(ledger_table(rows)) == words
