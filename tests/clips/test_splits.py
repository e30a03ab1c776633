"""The three ways to split, and the draw of the validation clips."""

from __future__ import annotations

import random
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.clips.manifest import ClipRow, Recording
from faithad.clips.splits import SplitEntry, hold_out_validation, read_split_csv, split_by_csv, split_by_time
from faithad.errors import RecordingError


def recording(path: str) -> Recording:
    return Recording(path, f"/data/{path}", None)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "split.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- by table ---------------------------------------------------------------------------------------------------------


def test_split_table(tmp_path: Path) -> None:
    uri = written(
        tmp_path,
        "\ufeffRecording,split,label,anomaly_type\n"
        "day/a.wav,train,,\n\nb.wav,test,0,\nc.wav,test,1,board_stuck\nd.wav,test,,broken\ne.wav,validation,,\n",
    )
    entries = read_split_csv(uri)
    assert entries == [
        SplitEntry(2, "day/a.wav", "train"),
        SplitEntry(4, "b.wav", "test", 0),
        SplitEntry(5, "c.wav", "test", 1, "board_stuck"),
        SplitEntry(6, "d.wav", "test", 1, "broken"),
        SplitEntry(7, "e.wav", "validation"),
    ]
    found = [recording(f"day/{name}.wav") for name in "abcdefg"]
    listed, ledger = split_by_csv(found, entries, source="split.csv")
    assert [(r.path, r.split, r.label, r.anomaly_type) for r in listed] == [
        ("day/a.wav", "train", None, None),
        ("day/b.wav", "test", 0, None),
        ("day/c.wav", "test", 1, "board_stuck"),
        ("day/d.wav", "test", 1, "broken"),
        ("day/e.wav", "validation", None, None),
    ]
    assert [(row["recording"], row["status"], row["reason"]) for row in ledger] == [
        ("day/f.wav", "skipped", "not listed in split.csv"),
        ("day/g.wav", "skipped", "not listed in split.csv"),
    ]


def test_two_columns_are_enough(tmp_path: Path) -> None:
    assert read_split_csv(written(tmp_path, "split,recording\ntest,a.wav\n")) == [SplitEntry(2, "a.wav", "test")]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("recording", "has no column 'split', found 'recording'"),
        ("recording,split,lable", "unknown column 'lable'; allowed: recording, split, label, anomaly_type"),
        ("recording,split,split", "column 'split' is there more than once; keep one"),
        ("recording,split,label,label", "column 'label' is there more than once; keep one"),
        ("", "has no column 'recording', 'split', found nothing"),
    ],
)
def test_wrong_columns(tmp_path: Path, header: str, reason: str) -> None:
    with pytest.raises(RecordingError, match=reason):
        read_split_csv(written(tmp_path, header))


def test_all_problems_of_the_table_at_once(tmp_path: Path) -> None:
    text = (
        "recording,split,label,anomaly_type\n,test,,\na.wav,training,,\nb.wav,test,2,\nc.wav,test,0,stuck\n"
        "d.wav,train,1,\ne.wav,train,,stuck\nf.wav\n"
    )
    with pytest.raises(RecordingError) as caught:
        read_split_csv(written(tmp_path, text))
    message = str(caught.value)
    assert "7 problems" in message
    for line in (
        "row 2: column 'recording' is empty",
        "row 3: column 'split', 'training': must be one of train, validation, test",
        "row 4: column 'label', '2': must be 0 (normal), 1 (anomalous) or empty (unknown)",
        "row 5: column 'anomaly_type', 'stuck': label 0 has none",
        "row 6: an anomaly in train",
        "row 7: an anomaly in train",
        "row 8: 1 cells instead of 4",
    ):
        assert line in message


def test_entries_that_fit_no_recording() -> None:
    found = [recording("a/x.wav"), recording("b/x.wav"), recording("a/y.wav")]
    entries = [
        SplitEntry(2, "x.wav", "train"),
        SplitEntry(3, "z.wav", "train"),
        SplitEntry(4, "y.wav", "train"),
        SplitEntry(5, "a/y.wav", "test"),
    ]
    with pytest.raises(RecordingError) as caught:
        split_by_csv(found, entries, source="split.csv")
    message = str(caught.value)
    assert "split.csv: 3 problems" in message
    assert "row 2, 'x.wav': could be a/x.wav or b/x.wav; write the path" in message
    assert "row 3, 'z.wav': no such recording" in message
    assert "row 5, 'a/y.wav': is in row 4 as well" in message


def test_a_path_tells_twins_apart() -> None:
    found = [recording("a/x.wav"), recording("b/x.wav")]
    listed, ledger = split_by_csv(found, [SplitEntry(2, "b/x.wav", "test")], source="split.csv")
    assert [(r.path, r.split) for r in listed] == [("b/x.wav", "test")]
    assert [row["recording"] for row in ledger] == ["a/x.wav"]


# --- by time ----------------------------------------------------------------------------------------------------------


def test_split_by_time() -> None:
    names = ["MPD_19-12-04_0848_00006.wav", "MPD_19-12-04_0900_00018.wav", "MPD_19-12-05_0949_00008.flac", "x.wav"]
    timed, ledger = split_by_time(
        [recording(f"mill/{name}") for name in names], train_until=datetime(2019, 12, 4, 9, 0)
    )
    assert [r.split for r in timed] == ["train", "test", "test"]
    (row,) = ledger
    assert (row["recording"], row["status"]) == ("mill/x.wav", "failed")
    assert "holds no time" in (row["reason"] or "")


def test_split_by_time_where_summer_time_ends() -> None:
    """The second hour from 2 to 3 comes after the first one."""
    summer, winter, plain = "20241027T023000+0200.wav", "20241027T020000+0100.wav", "20241027_010000.wav"
    recordings = [recording(f"mill/{name}") for name in (summer, winter, plain)]
    for until, splits in [("2024-10-27T02:00+01:00", ["train", "test"]), ("2024-10-27T00:30+00:00", ["test", "test"])]:
        timed, ledger = split_by_time(recordings, train_until=datetime.fromisoformat(until))
        assert [r.split for r in timed] == splits
        (row,) = ledger
        assert (row["recording"], row["status"]) == ("mill/20241027_010000.wav", "failed")
        assert "holds no offset from UTC such as" in row["reason"]
    with pytest.raises(RecordingError, match=r"2 different offsets .* write for example 2024-10-27T02:15\+01:00"):
        split_by_time(recordings, train_until=datetime(2024, 10, 27, 2, 15))
    timed, ledger = split_by_time(recordings[1:], train_until=datetime(2024, 10, 27, 1, 30))
    assert ([r.split for r in timed], ledger) == (["test", "train"], [])


# --- validation -------------------------------------------------------------------------------------------------------


def rows(n_recordings: int, n_clips: int = 6, split: str = "train") -> list[ClipRow]:
    return [
        ClipRow(f"{split}/{r}.wav", f"/{r}.wav", 10.0 * k, 10.0, split, 0)
        for r in range(n_recordings)
        for k in range(n_clips)
    ]


def moved(result: list[ClipRow]) -> set[tuple[str, float]]:
    return {(row.recording, row.onset_s) for row in result if row.split == "validation"}


def test_a_tenth_of_the_clips() -> None:
    everything = rows(20) + rows(5, split="test")
    result = hold_out_validation(everything, fraction=0.1, unit="clip", seed=0)
    assert len(moved(result)) == 12
    assert [row.clip_id for row in result] == [row.clip_id for row in everything]
    assert [row.split for row in result[120:]] == ["test"] * 30
    assert moved(result) != moved(hold_out_validation(everything, fraction=0.1, unit="clip", seed=1))


def test_whole_recordings() -> None:
    result = hold_out_validation(rows(20), fraction=0.1, unit="recording", seed=0)
    assert len(moved(result)) == 12
    assert len({name for name, _ in moved(result)}) == 2


def test_at_least_one() -> None:
    assert len(moved(hold_out_validation(rows(1, 3), fraction=0.01, unit="clip", seed=0))) == 1


@settings(deadline=None, derandomize=True)
@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 99), unit=st.sampled_from(["clip", "recording"]))
def test_the_order_of_the_rows_does_not_matter(order: random.Random, seed: int, unit: str) -> None:
    ordered = rows(8)
    shuffled = list(ordered)
    order.shuffle(shuffled)
    draws = [hold_out_validation(r, fraction=0.25, unit=unit, seed=seed) for r in (ordered, shuffled)]  # type: ignore[arg-type]
    assert moved(draws[0]) == moved(draws[1])
    assert len(moved(draws[0])) == 12


def test_a_given_validation_split_stays() -> None:
    given_rows = rows(4) + rows(1, split="validation")
    assert hold_out_validation(given_rows, fraction=0.5, unit="clip", seed=0) == given_rows


def test_something_must_be_left_to_train_with() -> None:
    with pytest.raises(RecordingError, match="1 train recording found; with 1 held out"):
        hold_out_validation(rows(1), fraction=0.1, unit="recording", seed=0)
    with pytest.raises(RecordingError, match="0 train clips found"):
        hold_out_validation(rows(3, split="test"), fraction=0.1, unit="clip", seed=0)
    with pytest.raises(RecordingError, match="6 train clips found; with 6 held out"):
        hold_out_validation(rows(1), fraction=0.99, unit="clip", seed=0)
