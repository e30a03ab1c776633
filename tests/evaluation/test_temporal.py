from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.evaluation import temporal

repeatable = settings(max_examples=25, deadline=None, derandomize=True)

GRIDS = [(400, 40.0), (401, 40.0), (313, 31.25), (312, 31.25)]
CLIP_S = 10

interval_lists = st.lists(st.integers(0, 100), unique=True, max_size=6).map(
    lambda bounds: [
        (start / 10, end / 10) for start, end in zip(sorted(bounds)[::2], sorted(bounds)[1::2], strict=False)
    ]
)


def second_of_frame(frame: int, frames_per_s: float) -> int:
    return min(int(Fraction(frame) / Fraction(frames_per_s)), CLIP_S - 1)


def counts_from_definition(
    peaks: np.ndarray, intervals: list[tuple[float, float]], frames_per_s: float
) -> tuple[int, int, int]:
    tp = fp = fn = 0
    for second in range(CLIP_S):
        positive = any(start < second + 1 and end > second for start, end in intervals)
        frames = [t for t in range(len(peaks)) if second_of_frame(t, frames_per_s) == second]
        hit = any(peaks[t] for t in frames)
        tp += positive and hit
        fn += positive and not hit
        fp += hit and not positive
    return tp, fp, fn


@pytest.mark.parametrize(("n_frames", "frames_per_s"), GRIDS)
def test_a_clip_has_ten_seconds(n_frames: int, frames_per_s: float) -> None:
    starts = temporal.segment_starts(n_frames, frames_per_s)
    expected = [
        min(t for t in range(n_frames) if second_of_frame(t, frames_per_s) == second) for second in range(CLIP_S)
    ]
    assert starts.tolist() == expected


def test_last_lone_frame_belongs_to_the_last_second() -> None:
    peaks = np.zeros((1, 401), dtype=np.bool_)
    peaks[0, 400] = True
    assert np.flatnonzero(temporal.flagged_segments(peaks, 40.0)[0]).tolist() == [9]
    assert temporal.localization(peaks, [(9, 10)], frames_per_s=40.0).f_score.tolist() == [1.0]


@pytest.mark.parametrize(
    ("n_frames", "frames_per_s", "sizes"),
    [(1, 40.0, [1]), (40, 40.0, [40]), (41, 40.0, [41]), (42, 40.0, [40, 2]), (100, 31.25, [32, 31, 31, 6])],
)
def test_sizes_of_seconds_of_other_clips(n_frames: int, frames_per_s: float, sizes: list[int]) -> None:
    starts = temporal.segment_starts(n_frames, frames_per_s)
    assert np.diff(starts, append=n_frames).tolist() == sizes


@pytest.mark.parametrize(("n_frames", "frames_per_s"), [(0, 40.0), (10, 0.5)])
def test_grids_without_seconds_are_refused(n_frames: int, frames_per_s: float) -> None:
    with pytest.raises(ValueError, match="at least 1 frame"):
        temporal.segment_starts(n_frames, frames_per_s)


@pytest.mark.parametrize(
    ("intervals", "positive"),
    [
        ([], []),
        ([(1, 2)], [1]),
        ([(1, 3), (7, 9)], [1, 2, 7, 8]),
        ([(0, 10)], list(range(10))),
        ([(1.5, 2.1)], [1, 2]),
        ([(2.999, 3.0)], [2]),
        ([(9.999, 10.0)], [9]),
        ([(16.1 - 6.1, 17.1 - 6.1)], []),
        ([(14.1 - 6.1, 15.1 - 6.1)], [8]),
    ],
)
def test_positive_seconds(intervals: list[tuple[float, float]], positive: list[int]) -> None:
    assert np.flatnonzero(temporal.segment_truth(intervals, 401, 40.0)).tolist() == positive


@pytest.mark.parametrize(("n_frames", "frames_per_s"), GRIDS)
@repeatable
@given(intervals=interval_lists)
def test_frames_of_intervals(n_frames: int, frames_per_s: float, intervals: list[tuple[float, float]]) -> None:
    tenths = [(Fraction(round(start * 10), 10), Fraction(round(end * 10), 10)) for start, end in intervals]
    expected = [
        any(start <= Fraction(t) / Fraction(frames_per_s) < end for start, end in tenths) for t in range(n_frames)
    ]
    assert temporal.interval_frames(intervals, n_frames, frames_per_s).tolist() == expected


def test_counts_and_rates_by_hand() -> None:
    peaks = np.zeros((3, 400), dtype=np.bool_)
    peaks[0, [45, 46, 79, 200]] = True  # second 1, three times, and second 5
    peaks[1, [80, 399]] = True  # seconds 2 and 9
    found = temporal.localization(peaks, [(1, 3)], frames_per_s=40.0)
    assert (found.tp.tolist(), found.fp.tolist(), found.fn.tolist()) == ([1, 1, 0], [1, 1, 0], [1, 1, 2])
    assert found.precision.tolist() == [0.5, 0.5, 0.0]
    assert found.recall.tolist() == [0.5, 0.5, 0.0]
    assert found.f_score.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(("n_frames", "frames_per_s"), GRIDS)
@repeatable
@given(intervals=interval_lists, seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.2))
def test_localization_equals_its_definition(
    n_frames: int, frames_per_s: float, intervals: list[tuple[float, float]], seed: int, share: float
) -> None:
    peaks = np.random.default_rng(seed).random((3, n_frames)) < share
    found = temporal.localization(peaks, intervals, frames_per_s=frames_per_s)
    for row in range(3):
        tp, fp, fn = counts_from_definition(peaks[row], intervals, frames_per_s)
        assert (found.tp[row], found.fp[row], found.fn[row]) == (tp, fp, fn)
        precision = tp / (tp + fp) if tp + fp else 0.0
        recall = tp / (tp + fn) if tp + fn else 0.0
        f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert found.precision[row] == pytest.approx(precision)
        assert found.recall[row] == pytest.approx(recall)
        assert found.f_score[row] == pytest.approx(f_score)
    assert ((found.f_score >= 0) & (found.f_score <= 1)).all()


def test_leading_axes_are_kept() -> None:
    peaks = np.random.default_rng(0).random((2, 6, 10, 401)) < 0.01
    together = temporal.localization(peaks, [(2, 5)], frames_per_s=40.0)
    assert together.f_score.shape == (2, 6, 10)
    alone = temporal.localization(peaks[1, 4], [(2, 5)], frames_per_s=40.0)
    np.testing.assert_array_equal(together.f_score[1, 4], alone.f_score)
    assert together.tp.dtype == np.int32
