"""Do the peaks fall into the seconds that the expert marked?

A clip is cut in seconds. A second is positive where an annotated interval overlaps it, and flagged where it holds at
least one peak. True and false positives are counted per second, not per peak (Deschênes et al. 2026, arXiv
2601.12660, temporal evaluation).

Conventions
    1. Intervals are half-open, in seconds from the clip's onset.
    2. Frame t belongs to second floor(t / frames_per_s). With 40 frames per second every second has 40; with a rate
       that is not whole, such as 31.25, seconds of 31 and 32 frames alternate.
    3. Centred framing of a 10 s clip gives a 401st frame, on the very end of the clip. It belongs to the last second:
       an eleventh second of one frame would be a negative that no annotation can ever reach.
    4. The same frame is in no interval: an interval up to 10 s covers frames up to 399.

Shape letters: T frames, S seconds, P percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faithad.evaluation.arrays import Bools, Integers, Reals

Intervals = Sequence[tuple[float, float]]
Counts = npt.NDArray[np.int32]

# Subtracting a clip's onset from a time leaves rounding noise; it must not push an interval into the next second.
_TOLERANCE_S = 1e-6


@dataclass(frozen=True)
class Localization:
    """Counts of seconds and the rates that follow from them, one value per percentile: (..., P)."""

    tp: Counts
    fp: Counts
    fn: Counts
    precision: Reals
    recall: Reals
    f_score: Reals


def segment_starts(n_frames: int, frames_per_s: float) -> Integers:
    """The first frame of each second, (S,); the last second runs to the last frame.

    Raises:
        ValueError: there is no frame, or less than one per second.
    """
    if n_frames < 1 or frames_per_s < 1:
        raise ValueError(f"needs at least 1 frame and 1 frame per second, got {n_frames} and {frames_per_s}")
    n_segments = max(1, math.ceil((n_frames - 1) / frames_per_s - _TOLERANCE_S))
    return _first_frame(np.arange(n_segments, dtype=np.float64), frames_per_s)


def segment_truth(intervals: Intervals, n_frames: int, frames_per_s: float) -> Bools:
    """Whether each second of a clip overlaps an annotated interval, bool (S,)."""
    onset = np.arange(len(segment_starts(n_frames, frames_per_s)))
    truth = np.zeros(len(onset), dtype=np.bool_)
    for start_s, end_s in intervals:
        truth |= (onset + 1 > start_s + _TOLERANCE_S) & (onset < end_s - _TOLERANCE_S)
    return truth


def interval_frames(intervals: Intervals, n_frames: int, frames_per_s: float) -> Bools:
    """Whether each frame of a clip starts inside an annotated interval, bool (T,)."""
    frames = np.arange(n_frames)
    inside = np.zeros(n_frames, dtype=np.bool_)
    for interval in intervals:
        start, end = _first_frame(np.asarray(interval, dtype=np.float64), frames_per_s)
        inside |= (frames >= start) & (frames < end)
    return inside


def flagged_segments(peaks: Bools, frames_per_s: float) -> Bools:
    """Whether each second holds at least one peak: bool (..., T) in, bool (..., S) out."""
    starts = segment_starts(peaks.shape[-1], frames_per_s)
    flagged: Bools = np.logical_or.reduceat(peaks, starts, axis=-1)
    return flagged


def localization(peaks: Bools, intervals: Intervals, *, frames_per_s: float) -> Localization:
    """Compare the seconds that hold a peak with the seconds that are annotated.

    A flagged positive second is a true positive, a positive second without a peak a false negative, any other flagged
    second a false positive. Precision, recall and F-score are 0 where they are undefined.

    Args:
        peaks: bool (..., P, T), as `peak_frames` gives them.
        intervals: the annotated intervals of the clip, seconds from its onset.
        frames_per_s: frames in one second.
    """
    flagged = flagged_segments(peaks, frames_per_s)
    truth = segment_truth(intervals, peaks.shape[-1], frames_per_s)
    tp = (flagged & truth).sum(axis=-1, dtype=np.int32)
    fp = (flagged & ~truth).sum(axis=-1, dtype=np.int32)
    fn = (~flagged & truth).sum(axis=-1, dtype=np.int32)
    return Localization(
        tp=tp,
        fp=fp,
        fn=fn,
        precision=_ratio(tp, tp + fp),
        recall=_ratio(tp, tp + fn),
        f_score=_ratio(2 * tp, 2 * tp + fp + fn),
    )


def _first_frame(onset_s: Reals, frames_per_s: float) -> Integers:
    frames: Integers = np.ceil(onset_s * frames_per_s - _TOLERANCE_S * frames_per_s).astype(np.int64)
    return frames


def _ratio(part: Counts, whole: Counts) -> Reals:
    # The parts are 0 wherever the whole is.
    ratio: Reals = part / np.maximum(whole, 1)
    return ratio
