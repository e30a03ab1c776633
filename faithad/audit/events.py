"""From alarmed clips to events: when something happened, how strong it was, and which seconds and mel bands carry it.

An event is where alarmed clips are above the threshold, see `alarmed_clips`. Stretches that lie at most `merge_gap_s`
apart are one event, within a recording and across recordings of one recorder that continue each other by the clock. So
a clip may hold several events.

Conventions
    Times are seconds from the start of a recording, half-open; clips may overlap.
    Scores are those that the alarm pools: the clip's mean error or that of its worst second.
    An explanation with a flat curve (`degenerate`) points nowhere and counts as none.

Shape letters: N clips, T frames, S seconds, F mel bands.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faithad.audit.alarmed_clips import AlarmedClip, alarmed_clips
from faithad.evaluation.arrays import list_arrays
from faithad.evaluation.intersection import NOISE_S, Stretch, by_recording, overlap_s
from faithad.evaluation.mel_bands import carrying_bands, mel_band_edges_hz
from faithad.evaluation.peaks import peak_frames
from faithad.evaluation.temporal import flagged_segments
from faithad.model.alarm import AlarmThreshold
from faithad.schemas import EVENTS
from faithad.settings import FeatureSettings
from faithad.vocabulary import POOLINGS

EventRow = dict[str, Any]  # of schemas.EVENTS, or some columns of one


class _AlarmedStretch(NamedTuple):
    """Where an alarm is in one clip, in seconds from the start of its recording."""

    clip: AlarmedClip
    onset_s: float
    offset_s: float


@dataclass(frozen=True)
class _Explanation:
    """What one clip's explanation points at: the seconds that hold a peak, from the clip's onset, and the bands."""

    seconds: list[int]
    profile: npt.NDArray[np.float32]


def find_events(
    scores: pa.Table,
    manifest: pa.Table,
    *,
    alarm: AlarmThreshold,
    explanations: pa.Table | None,
    faithfulness: pa.Table | None,
    merge_gap_s: float,
    method: str,
    percentile: float,
    features: FeatureSettings,
    trusted: str | None = None,
) -> pa.Table:
    """Merge alarms into events and say what carries each of them.

    The mel bands of an event are the `carrying_bands` of the summed profiles of its explained clips; its seconds are
    those of its explained clips that hold a peak frame: the ones that overlap the event, and all where none does. An
    event without any explanation has the worst second and the worst band of each alarmed clip, and where the model
    gives neither, no second and all bands.

    Args:
        scores: schemas.SCORES of one model and seed; rows in any order.
        manifest: schemas.MANIFEST with all clips, also those without alarm.
        alarm: which score alarms, and above what.
        explanations: rows of schemas.attributions; rows of other methods and of clips without an alarm are ignored.
        faithfulness: rows of schemas.FAITHFULNESS; those of other methods, modes, percentiles and clips are ignored.
        merge_gap_s: alarms at most this far apart are one event, measured between windows above the threshold.
        method: whose explanation gives the seconds and bands.
        percentile: of that explanation's peaks.
        features: of the model.
        trusted: whether the method is more faithful than random frames, see `reasons`; None where that is not known.

    Returns:
        schemas.EVENTS by the clock (in UTC where the offset is known), recording and onset; those without a clock last.

    Raises:
        StudyError, ValueError: as `alarmed_clips`.
    """
    alarms = alarmed_clips(scores, manifest, alarm, features)
    if not alarms:
        return EVENTS.empty_table()
    explained = _explained(explanations, alarms, method=method, percentile=percentile, features=features)
    judged = _judged(faithfulness, method=method, percentile=percentile)
    keys: EventRow = {"model": scores["model"][0].as_py(), "seed": scores["seed"][0].as_py()}
    keys |= {"pooling": alarm.pooling}
    rows: list[EventRow] = []
    for stretches in _merged(alarms, merge_gap_s):
        members = list({stretch.clip.clip_id: stretch.clip for stretch in stretches}.values())
        parts = _parts(stretches)
        reasons = [explained[clip.clip_id] for clip in members if clip.clip_id in explained]
        values = [judged[clip.clip_id] for clip in members if clip.clip_id in judged and reasons]
        rows.append(
            {
                **keys,
                "event_id": _event_id(keys, members, stretches[0]),
                **_place(stretches),
                "parts": parts,
                "clip_ids": [clip.clip_id for clip in members],
                "n_alarms": len(members),
                **_strength(members, alarm),
                "seconds": _carrying_seconds(members, parts, explained),
                **_bands(members, reasons, features),
                "method": method if reasons else None,
                "percentile": percentile if reasons else None,
                "faithfulness": _mean(value for value, _ in values),
                "normalized": _mean(normalized for _, normalized in values if normalized is not None),
                "trusted": trusted if reasons else None,
            }
        )
    rows.sort(key=lambda row: (_in_utc(row) or datetime.max, row["recording"], row["onset_s"]))
    return pa.Table.from_pylist(rows, schema=EVENTS)


def _merged(alarms: Sequence[AlarmedClip], merge_gap_s: float) -> list[list[_AlarmedStretch]]:
    """The stretches of all alarms in order, in groups that lie further apart than the gap or on different axes."""
    groups: list[list[_AlarmedStretch]] = []
    reached_s = -math.inf
    stretches = [_AlarmedStretch(clip, *span) for clip in alarms for span in clip.spans]
    # Clips may overlap: their stretches are not in the order of the clips.
    for stretch in sorted(stretches, key=lambda stretch: (stretch.clip.axis, stretch.clip.on_axis(stretch.onset_s))):
        clip = stretch.clip
        begins_s, ends_s = clip.on_axis(stretch.onset_s), clip.on_axis(stretch.offset_s)
        if groups and groups[-1][-1].clip.axis == clip.axis and begins_s - reached_s <= merge_gap_s + NOISE_S:
            groups[-1].append(stretch)
            reached_s = max(reached_s, ends_s)
        else:
            groups.append([stretch])
            reached_s = ends_s
    return groups


def _explained(
    table: pa.Table | None, alarms: Sequence[AlarmedClip], *, method: str, percentile: float, features: FeatureSettings
) -> dict[str, _Explanation]:
    """What a method's explanations of the alarmed clips point at, by clip."""
    if table is None:
        return {}
    members = {clip.clip_id: clip.raised_by for clip in alarms}
    wanted = pc.is_in(table["clip_id"], value_set=pa.array([clip.clip_id for clip in alarms]))
    of_method = pc.and_(pc.equal(table["method"], method), pc.invert(table["degenerate"]))
    table = table.select(["clip_id", "curve", "profile"]).filter(pc.and_(wanted, of_method))
    explained: dict[str, _Explanation] = {}
    for clip_id, curve, profile in zip(
        table["clip_id"].to_pylist(), list_arrays(table["curve"]), list_arrays(table["profile"]), strict=True
    ):
        if np.isfinite(profile).all() and profile.max() > 0:
            # The errors of an ensemble's members have different units.
            profile = profile if members[clip_id] is None else profile / profile.sum()
            seconds = flagged_segments(peak_frames(curve, [percentile])[0], features.frames_per_s)
            explained[clip_id] = _Explanation(np.flatnonzero(seconds).tolist(), profile)
    return explained


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def _judged(table: pa.Table | None, *, method: str, percentile: float) -> dict[str, tuple[float, float | None]]:
    """The frame-mode faithfulness of a method at a percentile, and the same between random and best frames, by clip."""
    if table is None:
        return {}
    chosen = pc.and_(pc.equal(table["method"], method), pc.equal(table["mode"], "frame"))
    chosen = pc.and_(chosen, pc.less(pc.abs(pc.subtract(table["percentile"], percentile)), 1e-9))
    table = table.filter(chosen)
    columns = (table[name].to_pylist() for name in ("clip_id", "faithfulness", "normalized"))
    return {clip_id: (value, normalized) for clip_id, value, normalized in zip(*columns, strict=True)}


def _parts(stretches: Sequence[_AlarmedStretch]) -> list[EventRow]:
    """One part per recording, from where its first alarm begins to where its last one ends, in the order of time."""
    recordings: dict[str, list[_AlarmedStretch]] = {}
    for stretch in stretches:
        recordings.setdefault(stretch.clip.recording, []).append(stretch)
    return [
        {
            "recording": recording,
            "onset_s": min(stretch.onset_s for stretch in own),
            "offset_s": max(stretch.offset_s for stretch in own),
        }
        for recording, own in recordings.items()
    ]


def _place(stretches: Sequence[_AlarmedStretch]) -> EventRow:
    """Where an event begins, and when it begins and ends."""
    first, last = stretches[0], max(stretches, key=lambda stretch: stretch.clip.on_axis(stretch.offset_s))
    lasts_s = last.clip.on_axis(last.offset_s) - first.clip.on_axis(first.onset_s)
    return {
        "recording": first.clip.recording,
        "onset_s": first.onset_s,
        "duration_s": round(lasts_s, 6),
        "started_at": first.clip.clock(first.onset_s),
        "ended_at": last.clip.clock(last.offset_s),
        "utc_offset_s": first.clip.utc_offset_s,
    }


def _in_utc(row: EventRow) -> datetime | None:
    """When an event started; by the recorder's own clock where its offset from UTC is not known."""
    started_at: datetime | None = row["started_at"]
    return started_at and started_at - timedelta(seconds=row["utc_offset_s"] or 0)


def _strength(members: Sequence[AlarmedClip], alarm: AlarmThreshold) -> EventRow:
    # Scores that may be negative (a distance to a boundary, a sum of logarithms) have no ratio.
    has_ratio = POOLINGS[alarm.pooling].has_ratio and all(clip.threshold > 0 for clip in members)
    strongest = max(members, key=lambda clip: clip.score / clip.threshold if has_ratio else clip.score - clip.threshold)
    return {
        "score": strongest.score,
        "threshold": strongest.threshold,
        "strength": strongest.score / strongest.threshold if has_ratio else math.nan,
        "raised_by": strongest.raised_by,
    }


def _carrying_seconds(
    members: Sequence[AlarmedClip], parts: Sequence[EventRow], explained: dict[str, _Explanation]
) -> list[EventRow]:
    """The seconds that carry an event, recording by recording, neighbours as one."""
    any_explained = any(clip.clip_id in explained for clip in members)
    of_clips: list[Stretch] = []
    for clip in members:
        seconds: Sequence[float] = [] if clip.worst_onset_s is None else [clip.worst_onset_s]
        if any_explained:
            seconds = explained[clip.clip_id].seconds if clip.clip_id in explained else []
        spans = [(clip.onset_s + second, min(clip.onset_s + second + 1, clip.offset_s)) for second in seconds]
        # In results of FORMAT 1 and 2, the peak of a short clip may lie after the end of the recording.
        of_clips += [(clip.recording, span) for span in spans if span[1] - span[0] > NOISE_S]
    # A clip may hold several events: the seconds of another one are not this one's reason.
    places = {part["recording"]: (part["onset_s"], part["offset_s"]) for part in parts}
    of_event = [(recording, span) for recording, span in of_clips if overlap_s(span, places[recording]) > NOISE_S]
    return [
        {"recording": recording, "onset_s": round(onset, 6), "offset_s": round(offset, 6)}
        for recording, spans in by_recording(of_event or of_clips).items()
        for onset, offset in spans
    ]


def _bands(members: Sequence[AlarmedClip], reasons: Sequence[_Explanation], features: FeatureSettings) -> EventRow:
    worst = [clip.worst_mel_band for clip in members if clip.worst_mel_band is not None]
    profile = np.bincount(worst, minlength=features.n_mels).astype(np.float64)
    if reasons:
        profile = np.sum([reason.profile for reason in reasons], axis=0, dtype=np.float64)
    low, high = carrying_bands(profile) if profile.max() > 0 else (0, features.n_mels - 1)
    lower_hz, upper_hz = mel_band_edges_hz(features.n_mels, features.sample_rate_hz)
    return {
        "mel_band_low": low,
        "mel_band_high": high,
        "low_hz": float(lower_hz[low]),
        "high_hz": float(upper_hz[high]),
    }


def _event_id(keys: EventRow, members: Sequence[AlarmedClip], first: _AlarmedStretch) -> str:
    """16 hex digits: the same alarms of the same model are the same event, whatever else was audited."""
    # Several events of one clip begin at different places in it, all but the first one after its start.
    after_s = round(first.onset_s - first.clip.onset_s, 6)
    place = [f"{after_s:g}"] if after_s else []
    text = "\n".join([keys["model"], str(keys["seed"]), *sorted(clip.clip_id for clip in members), *place])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
