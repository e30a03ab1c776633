"""From recordings to rows: every second accounted for, every annotation where it belongs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.clips.annotations import Annotation
from faithad.clips.ledger import ledger_row, ledger_table
from faithad.clips.manifest import (
    ClipRow,
    Recording,
    attach_annotations,
    clip_id,
    cut_recording,
    manifest_table,
)
from faithad.clips.recordings import AudioHeader, Remainder
from faithad.errors import AnnotationError, RecordingError
from faithad.schemas import LEDGER, MANIFEST

NAME = "MPD_19-12-04_0848_00006.wav"


def header(duration_s: float, rate_hz: int = 20_000) -> AudioHeader:
    return AudioHeader(duration_s, rate_hz, 1, round(duration_s * rate_hz))


def clips(
    duration_s: float = 60.0,
    *,
    path: str = f"test/{NAME}",
    split: str | None = "test",
    clip_s: float = 10.0,
    remainder: str = "drop",
) -> list[ClipRow]:
    recording = Recording(path, f"/data/{path}", split)
    return cut_recording(recording, header(duration_s), clip_s=clip_s, remainder=remainder)[0]  # type: ignore[arg-type]


def annotation(
    onset_s: float, *intervals: tuple[float, float], kind: str = "board_stuck", name: str = NAME
) -> Annotation:
    """A 10 s window of the table; intervals in seconds of the recording, as the expert writes them."""
    relative = tuple((first - onset_s, second - onset_s) for first, second in intervals)
    return Annotation(name, int(onset_s // 10) + 1, kind, onset_s, onset_s + 10, relative)


# --- ids and cutting --------------------------------------------------------------------------------------------------


def test_clip_ids_are_stable() -> None:
    """Written out: another value would orphan every table that was ever written."""
    assert clip_id("train/a.wav", 0.0) == "c42ee75c71d1dbdb"
    assert clip_id("train/a.wav", 10.0) == clip_id("train/a.wav", 10.0001)
    ids = {clip_id(path, onset) for path in ("a/b.wav", "a/c.wav") for onset in (0.0, 0.001, 10.0)}
    assert len(ids) == 6
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in ids)


def test_a_minute_becomes_six_clips() -> None:
    rows, ledger = cut_recording(
        Recording("train/a.wav", "/x/a.wav", "train"), header(60.0), clip_s=10.0, remainder="drop"
    )
    assert [row.onset_s for row in rows] == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    assert {(row.recording, row.uri, row.split, row.label, row.duration_s) for row in rows} == {
        ("train/a.wav", "/x/a.wav", "train", 0, 10.0)
    }
    assert ledger == []


def test_a_dropped_remainder_is_in_the_ledger() -> None:
    recording = Recording("test/a.wav", "/x/a.wav", "test")
    rows, ledger = cut_recording(recording, header(25.3), clip_s=10.0, remainder="drop")
    assert [row.label for row in rows] == [None, None]
    (row,) = ledger
    assert (row["recording"], row["status"], row["stage"], row["clip_id"]) == ("test/a.wav", "skipped", "index", None)
    assert row["reason"] == "the last 5.3 s are shorter than a clip of 10 s (remainder: drop)"
    assert (row["onset_s"], row["duration_s"]) == pytest.approx((20.0, 5.3))
    rows, ledger = cut_recording(recording, header(4.0), clip_s=10.0, remainder="drop")
    assert rows == []
    assert ledger[0]["reason"] == "the recording, 4 s, is shorter than a clip of 10 s (remainder: drop)"


def test_what_was_wrong_with_a_header_is_in_the_ledger() -> None:
    """A remark is about no second of the recording; what is not heard begins where the clips end."""
    recording = Recording("test/a.wav", "/x/a.wav", "test")
    corrected = replace(header(20.0), remark="/x/a.wav goes on.")
    rows, (remark,) = cut_recording(recording, corrected, clip_s=10.0, remainder="drop")
    assert len(rows) == 2
    assert (remark["status"], remark["reason"], remark["clip_id"]) == ("done", "/x/a.wav goes on.", None)
    assert (remark["onset_s"], remark["duration_s"]) == (0.0, 0.0)
    truncated = replace(header(25.0), unheard="/x/a.wav is truncated.", unheard_s=7.0)
    rows, ledger = cut_recording(recording, truncated, clip_s=10.0, remainder="drop")
    assert [(row["status"], row["onset_s"], row["duration_s"]) for row in ledger] == [
        ("skipped", 20.0, 5.0),
        ("failed", 25.0, 7.0),
    ]


@pytest.mark.parametrize("remainder", ["pad", "overlap"])
def test_what_is_too_short_to_judge_is_in_the_ledger(remainder: Remainder) -> None:
    recording = Recording("test/a.wav", "/x/a.wav", "test")
    assert [row.duration_s for row in clips(13.5, remainder="pad")] == [10.0, 3.5]
    rows, (skipped,) = cut_recording(recording, header(0.7), clip_s=10.0, remainder=remainder)
    assert rows == []
    assert skipped["status"] == "skipped"
    assert skipped["reason"] == "the recording, 0.7 s, is too short to judge: below 1 s"
    assert (skipped["onset_s"], skipped["duration_s"]) == pytest.approx((0.0, 0.7))
    if remainder == "pad":
        rows, (skipped,) = cut_recording(recording, header(20.5), clip_s=10.0, remainder=remainder)
        assert [row.duration_s for row in rows] == [10.0, 10.0]
        assert skipped["reason"] == "the last 0.5 s are too short to judge: below 1 s"


def test_a_label_of_the_split_table_reaches_the_clips() -> None:
    recording = Recording("a.wav", "/a.wav", "test", label=1, anomaly_type="stuck")
    rows, _ = cut_recording(recording, header(20.0), clip_s=10.0, remainder="drop")
    assert [(row.label, row.anomaly_type) for row in rows] == [(1, "stuck")] * 2


@settings(deadline=None, derandomize=True)
@given(
    n_samples=st.integers(1, 1_500_000),
    clip_s=st.sampled_from([1.0, 2.5, 10.0]),
    remainder=st.sampled_from(["drop", "pad", "overlap"]),
)
def test_every_second_is_accounted_for(n_samples: int, clip_s: float, remainder: str) -> None:
    duration_s = n_samples / 20_000
    rows, ledger = cut_recording(
        Recording("a/b.wav", "/a/b.wav", "test"),
        header(duration_s),
        clip_s=clip_s,
        remainder=remainder,  # type: ignore[arg-type]
    )
    spans = [(row.onset_s, row.offset_s) for row in rows]
    spans += [(row["onset_s"] or 0.0, (row["onset_s"] or 0.0) + (row["duration_s"] or 0.0)) for row in ledger]
    covered_until = 0.0
    for onset_s, offset_s in sorted(spans):
        assert onset_s <= covered_until + 1e-6
        covered_until = max(covered_until, offset_s)
    assert covered_until == pytest.approx(duration_s, abs=0.0021)
    manifest_table(rows)  # no two clips of a recording share an id


# --- annotations ------------------------------------------------------------------------------------------------------


def test_annotations_on_the_grid_of_the_table() -> None:
    annotations = [annotation(10.0, (11, 12), (18, 20)), annotation(50.0, kind="broken_board")]
    rows = attach_annotations(clips(), annotations)
    assert [row.label for row in rows] == [0, 1, 0, 0, 0, 1]
    assert (rows[1].anomaly_type, rows[1].intervals, rows[1].annotated) == (
        "board_stuck",
        ((1.0, 2.0), (8.0, 10.0)),
        True,
    )
    assert (rows[5].anomaly_type, rows[5].intervals, rows[5].annotated) == ("broken_board", (), False)
    assert rows[0].anomaly_type is None


def test_train_clips_are_normal_with_or_without_a_table() -> None:
    train = clips(path="train/x.wav", split="train")
    assert {row.label for row in train} == {0}
    assert {row.label for row in attach_annotations(train, [])} == {0}
    assert {row.label for row in clips()} == {None}
    assert {row.label for row in attach_annotations(clips(), [])} == {0}


def test_an_overlapping_last_clip_takes_its_part_of_two_windows() -> None:
    """45 s with `overlap`: clips at 0, 10, 20, 30 and 35 s; the last one sees half of the fourth window."""
    rows = clips(45.0, remainder="overlap")
    assert [row.onset_s for row in rows] == [0, 10, 20, 30, 35]
    rows = attach_annotations(rows, [annotation(30.0, (31, 33), (34, 37)), annotation(40.0, (40, 41), kind="broken")])
    assert rows[3].intervals == ((1.0, 3.0), (4.0, 7.0))
    assert rows[4].intervals == ((0.0, 2.0), (5.0, 6.0))
    assert (rows[4].label, rows[4].annotated) == (1, True)


def test_a_clip_beside_the_interval_is_normal() -> None:
    rows = attach_annotations(clips(45.0, remainder="overlap"), [annotation(30.0, (31, 35))])
    assert [row.label for row in rows] == [0, 0, 0, 1, 0]
    assert rows[4].intervals == ()


def test_shorter_clips_cut_the_intervals() -> None:
    rows = attach_annotations(clips(30.0, clip_s=2.5), [annotation(10.0, (11, 13), (19, 20))])
    assert {row.onset_s: row.intervals for row in rows if row.label} == {
        10.0: ((1.0, 2.5),),
        12.5: ((0.0, 0.5),),
        17.5: ((1.5, 2.5),),
    }


def test_a_window_without_intervals_needs_half() -> None:
    """Clips of 6 s at 6, 12 and 18 s share 2, 6 and 2 s of the window from 10 to 20 s: unknown, anomalous, unknown."""
    rows = attach_annotations(clips(30.0, clip_s=6.0), [annotation(10.0)])
    assert [(row.onset_s, row.label) for row in rows] == [(0, 0), (6, None), (12, 1), (18, None), (24, 0)]
    rows = attach_annotations(clips(30.0, clip_s=5.0), [annotation(10.0)])
    assert [row.label for row in rows] == [0, 0, 1, 1, 0, 0]
    rows = attach_annotations(clips(60.0, clip_s=30.0), [annotation(10.0), annotation(20.0, kind="other")])
    assert [(row.label, row.anomaly_type) for row in rows] == [(1, "board_stuck"), (0, None)]


def test_the_type_with_most_seconds_wins() -> None:
    annotations = [
        annotation(0.0, (1, 2), kind="rare"),
        annotation(10.0, (11, 12), kind="common"),
        annotation(20.0, (21, 22), kind="common"),
    ]
    rows = attach_annotations(clips(60.0, clip_s=30.0), annotations)
    assert rows[0].anomaly_type == "common"
    assert rows[0].intervals == ((1.0, 2.0), (11.0, 12.0), (21.0, 22.0))


def test_labels_from_folders_stay() -> None:
    anomalous = [replace(row, label=1, anomaly_type="board_stuck") for row in clips()]
    rows = attach_annotations(anomalous, [annotation(10.0, (11, 12))])
    assert [row.label for row in rows] == [1] * 6
    assert [row.annotated for row in rows] == [False, True, False, False, False, False]


def test_annotations_of_what_did_not_become_clips() -> None:
    """A recording that cannot be read, and a remainder that was dropped, are known: their annotations do no harm."""
    rows, ledger = cut_recording(Recording(f"test/{NAME}", "/x", "test"), header(45.0), clip_s=10.0, remainder="drop")
    ledger.append(ledger_row("test/broken.wav", "failed", "is empty"))
    annotations = [annotation(40.0, (41, 42)), annotation(10.0, name="broken.wav")]
    assert {row.label for row in attach_annotations(rows, annotations, ledger=ledger)} == {0}
    with pytest.raises(AnnotationError, match="Not among the clips"):
        attach_annotations(rows, annotations)
    with pytest.raises(AnnotationError, match=f"{NAME} 50-60 s"):
        attach_annotations(rows, [annotation(50.0)], ledger=ledger)


def test_all_misplaced_annotations_at_once() -> None:
    rows = [
        *clips(),
        *clips(path="train/good.wav", split="train"),
        *clips(path="held/out.wav", split="validation"),
        *clips(path="a/twin.wav"),
        *clips(path="b/twin.wav"),
        *[replace(row, label=0) for row in clips(path="normal/fine.wav")],
    ]
    annotations = [
        annotation(60.0),
        annotation(0.0, name="nowhere.wav"),
        annotation(10.0, name="good.wav"),
        annotation(20.0, name="out.wav"),
        annotation(0.0, name="twin.wav"),
        annotation(30.0, (31, 32), name="fine.wav"),
    ]
    with pytest.raises(AnnotationError) as caught:
        attach_annotations(rows, annotations)
    text = str(caught.value)
    assert "Not among the clips (correct the recording's name or the time range, or remove the row):" in text
    assert f"\n    {NAME} 60-70 s; nowhere.wav 0-10 s\n" in text
    assert "must be normal (move the recording to test):\n    good.wav 10-20 s; out.wav 20-30 s" in text
    assert "more than one recording has (rename all but one):\n    twin.wav: a/twin.wav, b/twin.wav" in text
    assert "labelled as normal (move the clip or remove the row):\n    fine.wav 30-40 s" in text


def test_twins_without_annotations_are_fine() -> None:
    rows = [*clips(path="a/twin.wav"), *clips(path="b/twin.wav"), *clips()]
    assert sum(row.label or 0 for row in attach_annotations(rows, [annotation(0.0)])) == 1


def test_a_long_list_is_counted() -> None:
    with pytest.raises(AnnotationError, match=r"n9\.wav 0-10 s and 13 more"):
        attach_annotations(clips(), [annotation(0.0, name=f"n{place}.wav") for place in range(23)])


# --- tables -----------------------------------------------------------------------------------------------------------


def test_manifest_table() -> None:
    rows = attach_annotations([*clips(), *clips(path="train/x.flac", split="train")], [annotation(10.0, (11, 12.5))])
    table = manifest_table(reversed(rows))
    assert table.schema.equals(MANIFEST)
    assert table.num_rows == 12
    assert table["recording"].to_pylist() == sorted(table["recording"].to_pylist())
    second = table.slice(1, 1).to_pylist()[0]
    assert second == {
        "clip_id": clip_id(f"test/{NAME}", 10.0),
        "recording": f"test/{NAME}",
        "uri": f"/data/test/{NAME}",
        "onset_s": 10.0,
        "duration_s": 10.0,
        "recorded_at": datetime(2019, 12, 4, 8, 48, 10),
        "utc_offset_s": None,
        "recorder": "test/MPD_*",
        "channel": None,
        "split": "test",
        "label": 1,
        "anomaly_type": "board_stuck",
        "intervals": [{"onset_s": 1.0, "offset_s": 2.5}],
        "annotated": True,
        "machine": None,
        "section": None,
        "domain": None,
        "take": None,
        "shard": None,
    }
    assert table["recorded_at"].to_pylist()[-1] is None
    assert table["intervals"].to_pylist()[0] == []


def test_an_unknown_label_is_null() -> None:
    assert manifest_table(clips())["label"].null_count == 6


def test_manifest_refuses_a_clip_in_two_splits() -> None:
    with pytest.raises(RecordingError, match=r"more than once.*at 0 s \(test: .*, train: .*\)"):
        manifest_table([*clips(), *clips(split="train")])
    with pytest.raises(RecordingError, match="and 2 more"):
        manifest_table(clips(120.0) * 2)


def test_manifest_refuses_a_clip_without_a_split() -> None:
    with pytest.raises(RecordingError, match=f"in none of the splits train, validation, test: test/{NAME}"):
        manifest_table(clips(split=None))


def test_ledger_table() -> None:
    rows = [
        ledger_row("b.wav", "skipped", "too short", onset_s=40.0, duration_s=5.0),
        ledger_row("b.wav", "done", None, clip_id="0" * 16, onset_s=0.0, duration_s=10.0),
        ledger_row("a.wav", "failed", "is empty"),
    ]
    table = ledger_table(rows)
    assert table.schema.equals(LEDGER)
    assert table["recording"].to_pylist() == ["a.wav", "b.wav", "b.wav"]
    assert table["status"].to_pylist() == ["failed", "done", "skipped"]
    assert table["stage"].to_pylist() == ["index"] * 3


def test_empty_tables_keep_their_columns() -> None:
    assert manifest_table([]).schema.equals(MANIFEST)
    assert ledger_table([]).schema.equals(LEDGER)
    assert isinstance(ledger_table([]), pa.Table)
