"""The clips that raised an alarm, each with its place on a time axis, and where in it the alarm is.

The alarm is in the windows of 0.25 s whose own value is above their threshold, at least in the one with the highest
value; windows side by side are one span. In a clip without values of windows (of a model that gives one score for a
whole clip, of a model of release 0.1.0, in results of FORMAT 1 and 2) it is everywhere.

Clips that may belong to one event share an axis:

1. The clips of one recording, by their place in it.
2. Recordings of one recorder (see `clips.recording_names`) that continue each other by the clock: the next one begins
   where the last clip of the one before ends, or less than one clip later (a dropped remainder leaves such a gap), or
   up to a second earlier (clocks drift). Clocks whose offset from UTC is known are compared in UTC, and never with
   those whose offset is not known. Recordings without a clock, and those of different recorders, have axes of their
   own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad.errors import StudyError
from faithad.evaluation.clip_values import refuse_unknown_clips
from faithad.evaluation.intersection import Span, merge_spans
from faithad.model.alarm import AlarmThreshold
from faithad.scoring.pooling import window_frames
from faithad.settings import FeatureSettings
from faithad.vocabulary import POOLINGS

_CLOCK_TOLERANCE_S = 1.0


@dataclass(frozen=True)
class AlarmedClip:
    """One alarmed clip. `axis` is the number of the time axis on which it begins at `at_s`; `spans` are where the alarm
    is, in seconds from the start of the recording.
    """

    axis: int
    at_s: float
    clip_id: str
    recording: str
    onset_s: float
    offset_s: float
    begins_at: datetime | None
    utc_offset_s: int | None
    score: float
    worst_onset_s: float | None
    worst_mel_band: int | None
    raised_by: str | None
    threshold: float
    spans: tuple[Span, ...]

    def on_axis(self, place_s: float) -> float:
        """Where a place in the recording lies on the axis."""
        return self.at_s + place_s - self.onset_s

    def clock(self, place_s: float) -> datetime | None:
        """The recorder's clock at a place in the recording."""
        return self.begins_at and self.begins_at + timedelta(seconds=round(place_s - self.onset_s, 6))


def alarmed_clips(
    scores: pa.Table, manifest: pa.Table, alarm: AlarmThreshold, features: FeatureSettings
) -> list[AlarmedClip]:
    """The clips whose pooled score is above their threshold, along their time axes.

    Args:
        scores: schemas.SCORES of one model and seed.
        manifest: schemas.MANIFEST with all clips; those without an alarm, too, say which recordings continue others.
        alarm: which score alarms, and above what.
        features: of the model.

    Raises:
        StudyError: the manifest does not hold an alarmed clip, a clip has several rows, or the model does not give the
            score that the alarm needs.
        ValueError: the scores are of more than one model or seed.
    """
    for key in ("model", "seed"):
        if len(values := pc.unique(scores[key])) > 1:
            raise ValueError(f"events are those of one model and seed; {key} has the values {values.to_pylist()}")
    if pc.count_distinct(scores["clip_id"]).as_py() < scores.num_rows:
        raise StudyError(
            "The table of scores holds several rows for one clip. A shard was probably written twice: delete the "
            "audit's folder and run it again."
        )
    column = POOLINGS[alarm.pooling].column
    if n_missing := scores[column].null_count:
        raise StudyError(
            f"{n_missing} of {scores.num_rows} scores have no {column}, which the alarm needs: this model gives one "
            "score for a whole clip. Set alarm.pooling to mean."
        )
    # Short clips have thresholds of their own.
    thresholds = pc.coalesce(scores["threshold"], pa.scalar(alarm.threshold))
    above = pc.greater(scores[column], thresholds)
    raised, thresholds = scores.filter(above), thresholds.filter(above)
    clip_ids = manifest["clip_id"].combine_chunks()
    refuse_unknown_clips(raised["clip_id"], clip_ids)
    if not raised.num_rows:
        return []
    place = pc.index_in(raised["clip_id"], value_set=clip_ids)
    axes, shifts_s, names = time_axes(manifest, clip_s=features.clip_s)
    columns = ["clip_id", "recording", "onset_s", "duration_s", "recorded_at", "utc_offset_s"]
    clips = manifest.select(columns).take(place).to_pylist()
    numbers = pc.index_in(pc.take(manifest["recording"], place), value_set=names).to_pylist()
    alarms = [
        AlarmedClip(
            axis=axes[number],
            at_s=shifts_s[number] + clip["onset_s"],
            clip_id=clip["clip_id"],
            recording=clip["recording"],
            onset_s=clip["onset_s"],
            offset_s=round(clip["onset_s"] + clip["duration_s"], 6),
            begins_at=clip["recorded_at"],
            utc_offset_s=clip["utc_offset_s"],
            score=score[column],
            worst_onset_s=score["worst_onset_s"],
            worst_mel_band=score["worst_mel_band"],
            raised_by=score["raised_by"],
            threshold=threshold,
            spans=_spans(clip, score["windows"], score["window_threshold"], features.frames_per_s),
        )
        for clip, number, score, threshold in zip(
            clips, numbers, raised.to_pylist(), thresholds.to_pylist(), strict=True
        )
    ]
    return sorted(alarms, key=lambda alarm: (alarm.axis, alarm.at_s, alarm.offset_s - alarm.onset_s, alarm.clip_id))


def _spans(
    clip: dict[str, Any], windows: Sequence[float] | None, threshold: float, frames_per_s: float
) -> tuple[Span, ...]:
    """Where in a clip the alarm is."""
    onset_s, offset_s = clip["onset_s"], clip["onset_s"] + clip["duration_s"]
    if not windows:
        return ((onset_s, round(offset_s, 6)),)
    highest, places = max(windows), window_places(len(windows), onset_s, offset_s, frames_per_s)
    above = (place for place, value in zip(places, windows, strict=True) if value > threshold or value == highest)
    return tuple((round(on, 6), round(off, 6)) for on, off in merge_spans(above))


def window_places(n_windows: int, onset_s: float, offset_s: float, frames_per_s: float) -> list[Span]:
    """Onset and offset in s of each window of a clip, side by side; the last window runs to the clip's end."""
    window_s = window_frames(frames_per_s) / frames_per_s
    return list(pairwise([*(onset_s + number * window_s for number in range(n_windows)), offset_s]))


def time_axes(manifest: pa.Table, *, clip_s: float) -> tuple[list[int], list[float], pa.Array]:
    """For each recording the number of its time axis, and the place of its start on it; and the recordings' names."""
    encoded = manifest["recording"].combine_chunks().dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    onset_s = manifest["onset_s"].to_numpy()
    first_s, last_s = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.minimum.at(first_s, codes, onset_s)
    np.maximum.at(last_s, codes, onset_s + manifest["duration_s"].to_numpy())
    clock = manifest["recorded_at"].combine_chunks()
    known = clock.is_valid().to_numpy(zero_copy_only=False)
    offset = manifest["utc_offset_s"].combine_chunks()
    offset_us = 1_000_000 * offset.fill_null(0).to_numpy().astype(np.int64)
    clock_us = clock.cast(pa.int64()).fill_null(0).to_numpy() - offset_us
    start_s = np.full(len(names), np.nan)
    # Counted from the first clip: seconds since 1970 would leave floats no digits for microseconds.
    begin_us = clock_us[known].min() if known.any() else 0
    start_s[codes[known]] = (clock_us[known] - begin_us) / 1e6 - onset_s[known]
    first_rows = pa.array(np.unique(codes, return_index=True)[1])
    recorders = manifest["recorder"].take(first_rows).to_pylist()
    groups = list(zip(recorders, offset.is_valid().take(first_rows).to_pylist(), strict=True))
    order = sorted(
        (number for number in np.flatnonzero(np.isfinite(start_s)).tolist() if recorders[number] is not None),
        key=lambda number: (groups[number], start_s[number], names[number]),
    )
    axes, shifts_s = list(range(len(names))), [0.0] * len(names)
    for before, after in pairwise(order):
        gap_s = start_s[after] + first_s[after] - start_s[before] - last_s[before]
        if groups[before] == groups[after] and -_CLOCK_TOLERANCE_S <= gap_s < clip_s:
            axes[after] = axes[before]
            shifts_s[after] = float(shifts_s[before] + start_s[after] - start_s[before])
    return axes, shifts_s, encoded.dictionary
