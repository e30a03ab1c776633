"""What the page of an audit says of changes that last."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from faithad import parquet, schemas, storage
from faithad.report.audit_findings import todo
from faithad.report.audit_page import render_audit_report, time_line
from faithad.report.audit_tables import read_audit
from faithad.report.states import state_view, state_words
from tests.report.audit.conftest import START, WriteAudit

BANDS = {"mel_band_low": 40, "mel_band_high": 44, "low_hz": 4_050.0, "high_hz": 4_980.0, "change_db": 6.04}


def state(**changes: Any) -> dict[str, Any]:
    """A change from the fifth minute of the audit to its sixteenth."""
    at = START + timedelta(minutes=5)
    parts = [
        {"recording": f"MPD_{START + timedelta(minutes=k):%y-%m-%d_%H%M}_{k:05d}.wav", "onset_s": 0.0, "offset_s": 60.0}
        for k in range(5, 16)
    ]
    return {
        "state_id": "0" * 16, "model": "robust", "seed": 0, "recorder": "MPD", "recording": parts[0]["recording"],
        "onset_s": 0.0, "duration_s": 660.0, "started_at": at, "ended_at": at + timedelta(minutes=11),
        "utc_offset_s": None, "outcome": "over", "parts": parts, "n_minutes": 11, "reference": "past",
        "distance_db": 1.5, "threshold_db": 0.75, "strength": 2.0, "changes": [BANDS],
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "4.0 to 5.0 kHz was 6.0 dB louder from 2019-12-05 06:05 to 06:16"),
        ({"ended_at": datetime(2019, 12, 6, 0, 5)},
         "4.0 to 5.0 kHz was 6.0 dB louder from 2019-12-05 06:05 to 2019-12-06 00:05"),
        ({"outcome": "lasting", "ended_at": None}, "4.0 to 5.0 kHz is 6.0 dB louder since 2019-12-05 06:05"),
        ({"outcome": "usual", "ended_at": None, "utc_offset_s": 3_600},
         "4.0 to 5.0 kHz is 6.0 dB louder since 2019-12-05 06:05 +01:00"),
        ({"started_at": None, "ended_at": None, "recording": "a.wav", "onset_s": 60.0},
         "4.0 to 5.0 kHz was 6.0 dB louder from 60 s of a.wav on, for 11.0 min"),
        ({"changes": [BANDS, BANDS | {"low_hz": 100.0, "high_hz": 200.0, "change_db": -3.0}]},
         "4.0 to 5.0 kHz was 6.0 dB louder, 100 to 200 Hz was 3.0 dB quieter from 2019-12-05 06:05 to 06:16"),
    ],
)  # fmt: skip
def test_a_change_in_one_sentence(changes: dict[str, Any], words: str) -> None:
    assert state_words(state(**changes)) == words


def test_a_row_of_the_table_says_what_became_of_it() -> None:
    assert state_view(state())["lasts"] == "11.0 min, went back"
    assert state_view(state(outcome="lasting"))["lasts"] == "11.0 min, lasts to the end of the recordings"
    assert state_view(state(reference="normals"))["reference"] == "the normal recordings"


def test_the_page_has_the_strongest_first_a_table_and_bars_on_the_time_line(
    write_audit: WriteAudit, tmp_path: Path
) -> None:
    out = write_audit(tmp_path, hours=0.5, boards=1)
    rows = [state(state_id=f"{k:016d}", strength=1.0 + k, threshold_db=float(k)) for k in range(1, 6)]
    table = pa.Table.from_pylist(rows, schema=schemas.STATES)
    parquet.write_table(table, storage.join(out, "states.parquet"), schema=schemas.STATES)
    audit = read_audit(out)
    tasks = [task.words for task in todo(audit)]
    assert tasks[0] == f"Check a change of the sound: {state_words(state())}"
    assert tasks[3] == "See 2 more changes below, under “What lasts”"
    line = time_line(audit)
    np.testing.assert_allclose(line.states[:2], [[6 + 5 / 60, 6 + 6 / 60], [6 + 6 / 60, 6 + 7 / 60]])
    page = Path(render_audit_report(out)).read_text()
    assert page.count("4.0 to 5.0 kHz: 6.0 dB louder") == 5
    assert "Violet bars at the top are changes that last" in page
