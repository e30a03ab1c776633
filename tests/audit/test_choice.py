"""Which clips are explained and keep their maps."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad import schemas
from faithad.audit.choice import choose_clips, keep_examples, keep_highest
from faithad.model.alarm import AlarmThreshold
from faithad.pipelines.shards.stream import shard_size, shards

MEAN, WORST = (AlarmThreshold("quantile", pooling, 0.05, 3.0, 18.0, 100) for pooling in ("mean", "worst_second"))


def clips_of(scores: list[float]) -> pa.Table:
    rows = [{"clip_id": f"{k:03}", "annotated": False, "label": None, "anomaly_type": None} for k in range(len(scores))]
    return pa.Table.from_pylist(rows, schema=pa.schema([schemas.MANIFEST.field(name) for name in rows[0]]))


def table_of(scores: list[float]) -> pa.Table:
    rows = [
        {"clip_id": f"{k:03}", "model": "mae", "seed": 0, "score": score, "worst_second_score": 10 - score,
         "threshold": 3.0, "alarm": score > 3.0, "worst_onset_s": 0.0, "worst_mel_band": 0}
        for k, score in enumerate(scores)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schemas.SCORES)


def ids(table: pa.Table) -> list[str]:
    return table["clip_id"].to_pylist()


@pytest.mark.parametrize(
    ("explain", "alarm", "expected"),
    [
        ("all", MEAN, ["000", "001", "002", "003"]),
        ("none", MEAN, []),
        ("alarms", MEAN, ["001", "003"]),
        ("top:1", MEAN, ["003"]),
        ("top:3", MEAN, ["001", "002", "003"]),
        ("top:1", WORST, ["000"]),
        ("top:99", MEAN, ["000", "001", "002", "003"]),
    ],
)
def test_choices(explain: str, alarm: AlarmThreshold, expected: list[str]) -> None:
    scores = [1.0, 4.0, 2.0, 5.0]
    assert ids(choose_clips(clips_of(scores), table_of(scores), explain=explain, alarm=alarm)) == expected


def test_annotated_clips() -> None:
    scores = [1.0, 4.0, 2.0, 5.0]
    annotated = pa.array([True, False, True, True])
    clips = clips_of(scores)
    clips = clips.set_column(clips.schema.get_field_index("annotated"), "annotated", annotated)
    assert ids(choose_clips(clips, table_of(scores).slice(1), explain="annotated", alarm=MEAN)) == ["002", "003"]


def test_clips_without_a_score_are_not_explained() -> None:
    scores = [1.0, 4.0, 2.0]
    chosen = choose_clips(clips_of(scores), table_of(scores).slice(1), explain="all", alarm=MEAN)
    assert ids(chosen) == ["001", "002"]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(scores=st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=30), n=st.integers(1, 40))
def test_the_highest_scores_are_as_many_as_asked_and_none_left_is_higher(scores: list[float], n: int) -> None:
    clips, table = clips_of(scores), table_of(scores)
    chosen = set(ids(choose_clips(clips, table, explain=f"top:{n}", alarm=MEAN)))
    assert len(chosen) == min(n, len(scores))
    kept = [score for k, score in enumerate(scores) if f"{k:03}" in chosen]
    left = [score for k, score in enumerate(scores) if f"{k:03}" not in chosen]
    assert not left or min(kept) >= max(left)
    # The order in which shards were written changes nothing.
    assert set(ids(choose_clips(clips, table.take(list(reversed(range(len(scores))))), explain=f"top:{n}",
                                alarm=MEAN))) == chosen  # fmt: skip


def test_maps_of_the_highest_scores_among_the_chosen() -> None:
    scores = [1.0, 4.0, 2.0, 5.0]
    chosen = clips_of(scores).slice(0, 3)
    assert keep_highest(chosen, table_of(scores), 1, MEAN)["keep_maps"].to_pylist() == [False, True, False]
    assert keep_highest(chosen, table_of(scores), -1, MEAN)["keep_maps"].to_pylist() == [True] * 3
    assert keep_highest(chosen, table_of(scores), 0, MEAN)["keep_maps"].to_pylist() == [False] * 3


@pytest.mark.parametrize(
    ("n", "kept"),
    [(1, {"002"}), (2, {"002", "005"}), (3, {"002", "005", "001"}), (5, {"002", "005", "001", "004", "000"})],
)
def test_each_event_has_a_map_before_any_has_two(n: int, kept: set[str]) -> None:
    """One bad recording is an event with the four highest scores; a weak one comes before its second clip.

    A clip without an event comes with the second clips, before any third one.
    """
    scores = [7.0, 8.0, 9.0, 6.0, 1.0, 4.0]
    event_of = {"000": 0, "001": 0, "002": 0, "003": 0, "005": 1}
    clips = keep_highest(clips_of(scores), table_of(scores), n, MEAN, event_of)
    assert {clip["clip_id"] for clip in clips.to_pylist() if clip["keep_maps"]} == kept


def test_examples_take_each_anomaly_type_in_turn() -> None:
    kinds = ["x", "x", "y", None, None, "x"]
    rows = [
        {"clip_id": str(k), "annotated": kind is not None, "label": int(kind is not None), "anomaly_type": kind}
        for k, kind in enumerate(kinds)
    ]
    clips = pa.Table.from_pylist(rows)
    kept = [k for k, keep in enumerate(keep_examples(clips, 4)["keep_maps"].to_pylist()) if keep]
    assert kept == [1, 2, 4, 5]
    assert keep_examples(clips, -1)["keep_maps"].to_pylist() == [True] * 6


@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(1, 5000), largest=st.integers(1, 64))
def test_shards_hold_every_clip_once_and_feed_many_workers(n: int, largest: int) -> None:
    clips = pa.table({"clip": list(range(n))})
    cut = shards(clips, size=shard_size(n, largest=largest))
    assert pa.concat_tables(cut) == clips
    assert max(shard.num_rows for shard in cut) <= largest
    assert len(cut) >= min(n, 33)
