"""Which recordings do not fit the model, and what becomes of them; on real sound in tests/pipelines/test_misfits.py."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from faithad import schemas
from faithad.audit import misfits
from faithad.audit.misfits import Misfit, find_misfits
from faithad.clips.ledger import clip_ledger_row, ledger_row, ledger_table
from faithad.clips.manifest import ClipRow, manifest_table

LIMIT_DB = 2.0
DATED = "mill/20240506_{}0000.wav"


def tables(recordings: dict[str, list[tuple[float, float, bool]]]) -> tuple[pa.Table, pa.Table]:
    """Scores and manifest of clips, each with its difference in spectrum and in level, and whether it alarms."""
    rows, clips = list[dict[str, Any]](), list[ClipRow]()
    for recording, values in recordings.items():
        for number, (spectrum_db, level_db, alarm) in enumerate(values):
            clips.append(ClipRow(recording, recording, 10.0 * number, 10.0, "test"))
            rows.append(
                {"clip_id": clips[-1].clip_id, "model": "ae", "seed": 0, "score": 1.0 + alarm, "alarm": alarm,
                 "spectrum_difference_db": spectrum_db, "level_difference_db": level_db}
            )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schemas.SCORES), manifest_table(clips)


def found(recordings: dict[str, list[tuple[float, float, bool]]]) -> dict[str, bool]:
    """Whether each misfit is searched."""
    return {misfit.recording: misfit.is_searched for misfit in find_misfits(*tables(recordings), limit_db=LIMIT_DB)}


FITS, QUIETER, LOUDER = (1.0, 0.5, False), (5.0, -5.0, True), (5.0, 5.0, True)


def test_nine_in_ten_clips_of_at_least_six_must_be_outside() -> None:
    names = {"a/1.wav": [QUIETER] * 9 + [FITS], "a/2.wav": [QUIETER] * 8 + [FITS] * 2, "a/3.wav": [QUIETER] * 5,
             "a/4.wav": [QUIETER] * 6, "a/5.wav": [(LIMIT_DB, -2.0, True)] * 10}  # fmt: skip
    assert found(names) == {"a/1.wav": False, "a/4.wav": False}


def test_a_model_that_does_not_know_its_training_finds_none() -> None:
    assert find_misfits(*tables({"a/1.wav": [QUIETER] * 9}), limit_db=None) == []
    unknown = tables({"a/1.wav": [QUIETER] * 9})
    nothing = pa.nulls(9, pa.float64())
    scores = unknown[0].set_column(unknown[0].column_names.index("spectrum_difference_db"),
                                   "spectrum_difference_db", nothing)  # fmt: skip
    assert find_misfits(scores, unknown[1], limit_db=LIMIT_DB) == []


def test_where_few_clips_alarm_the_recording_is_searched() -> None:
    calm = (5.0, -5.0, False)
    assert found({"a/1.wav": [calm] * 5 + [QUIETER] * 5}) == {"a/1.wav": True}
    # A model that does not mind the gain: a recording full of events is not lost for it.
    assert found({"a/1.wav": [QUIETER] * 6, "a/2.wav": [calm] * 8}) == {"a/1.wav": True, "a/2.wav": True}
    # Another microphone has nothing to do with it.
    assert found({"a/1.wav": [QUIETER] * 6, "b/2.wav": [calm] * 8}) == {"a/1.wav": False, "b/2.wav": True}


@pytest.mark.parametrize(("clip", "is_searched"), [(LOUDER, True), (QUIETER, False)])
def test_sound_that_is_added_while_another_recording_of_the_recorder_fits_may_be_a_fault(
    clip: tuple[float, float, bool], is_searched: bool
) -> None:
    recordings = {DATED.format("07"): [FITS] * 6, DATED.format("08"): [clip] * 360}
    assert found(recordings) == {DATED.format("08"): is_searched}
    assert found({DATED.format("08"): [clip] * 360}) == {DATED.format("08"): False}
    assert found({"a/1.wav": [FITS] * 6, "a/2.wav": [clip] * 6}) == {"a/2.wav": False}, "several recorders, perhaps"


def test_its_clips_are_skipped_or_it_has_a_note() -> None:
    _, manifest = tables({"a/1.wav": [FITS] * 2, "a/2.wav": [FITS] * 2, "a/3.wav": [FITS]})
    rows = [clip_ledger_row(clip, "done", stage="audit") for clip in manifest.to_pylist()]
    rows[2] |= {"status": "failed", "reason": "x"}
    ledger = ledger_table([*rows, ledger_row("a/2.wav", "skipped", "the rest", onset_s=20.0, duration_s=1.0)])
    found = [Misfit("a/2.wav", False, "not searched"), Misfit("a/3.wav", True, "searched")]
    after = misfits.with_misfits(ledger, found)
    told = [(row["recording"], row["onset_s"], row["status"], row["stage"], row["reason"]) for row in after.to_pylist()]
    assert told == [
        ("a/1.wav", 0.0, "done", "audit", None),
        ("a/1.wav", 10.0, "done", "audit", None),
        ("a/2.wav", 0.0, "failed", "audit", "x"),
        ("a/2.wav", 10.0, "skipped", "fit", "not searched"),
        ("a/2.wav", 20.0, "skipped", "index", "the rest"),
        ("a/3.wav", None, "done", "fit", "searched"),
        ("a/3.wav", 0.0, "done", "audit", None),
    ]
    assert misfits.with_misfits(ledger, []) is ledger
    assert misfits.misfit_words(ledger) == []
    assert misfits.misfit_words(after) == [
        "a/2.wav does not sound like what the model was trained on: check microphone, channel and gain; not searched "
        "for events.",
        "a/3.wav does not sound like what the model was trained on: check microphone, channel and gain; searched for "
        "events, some of which may be missing or false.",
    ]


def test_scores_without_misfits() -> None:
    scores, manifest = tables({"a/1.wav": [FITS] * 2, "a/2.wav": [FITS] * 3, "a/3.wav": [FITS]})
    found = [Misfit("a/2.wav", False, ""), Misfit("a/3.wav", True, "")]
    assert misfits.without_misfits(scores, manifest, found)["clip_id"] == scores["clip_id"].slice(0, 2)
    assert misfits.without_misfits(scores, manifest, found, but_searched=True).num_rows == 3
    assert misfits.without_misfits(scores, manifest, []) == scores
