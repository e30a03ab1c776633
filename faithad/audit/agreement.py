"""The events of an audit, and the seconds that carry them, against reference intervals: `summary/events`.

They are matched by the time that they share, see `evaluation.intersection`. Reference intervals in sound that was not
scored count as not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from faithad import parquet, storage
from faithad.clips.annotations import Annotation
from faithad.clips.labels.names import look_up
from faithad.errors import shown
from faithad.evaluation import intersection
from faithad.evaluation.intersection import Span, Stretch, by_recording
from faithad.runs import layout
from faithad.runs.tables import read_events
from faithad.vocabulary import count, listed

# The part of an event that is matched with the reference; values of `detections` in `summary/events`.
EVENTS, SECONDS = "events", "seconds"
# Spans that share less than this overlap by rounding alone.
_SHORTEST_S = 0.001


@dataclass(frozen=True)
class ReferenceIntervals:
    """The reference intervals of an audit; those that overlap or touch are one.

    Attributes:
        marked: all of them as they were given, and windows in which the expert marked no interval.
        stretches: the intervals that lie, at least in part, in clips that were scored.
        not_heard: the other intervals.
        n_whole: how many scored windows without an interval count as one interval each.
    """

    marked: list[Stretch]
    stretches: list[Stretch]
    not_heard: list[Stretch]
    n_whole: int


def reference_intervals(audit: str, reference: Iterable[Annotation], scored: pa.Table) -> ReferenceIntervals:
    """The reference on the recordings of an audit; `scored` are the rows of its manifest with a score."""
    audited = by_recording(
        (clip["recording"], (clip["onset_s"], clip["onset_s"] + clip["duration_s"]))
        for clip in scored.select(["recording", "onset_s", "duration_s"]).to_pylist()
    )
    # From the ledger: a recording without a score may have the same file name as one with a score.
    names = parquet.read_table(storage.join(audit, layout.LEDGER), columns=["recording"])["recording"].to_pylist()
    recordings_of = look_up(names)
    marked: list[Stretch] = []
    whole: list[Stretch] = []
    for annotation in reference:
        window = (annotation.onset_s, annotation.offset_s)
        spans = [(annotation.onset_s + onset, annotation.onset_s + offset) for onset, offset in annotation.intervals]
        for recording in recordings_of(annotation.recording):
            marked += [(recording, span) for span in spans or [window]]
            whole += [] if spans else [(recording, window)]
    merged = [(recording, span) for recording, spans in by_recording(marked).items() for span in spans]
    return ReferenceIntervals(
        marked,
        stretches=[(recording, span) for recording, span in merged if _is_heard(span, audited.get(recording, []))],
        not_heard=[(recording, span) for recording, span in merged if not _is_heard(span, audited.get(recording, []))],
        n_whole=sum(_is_heard(span, audited.get(recording, [])) for recording, span in whole),
    )


def _is_heard(span: Span, audited: Sequence[Span]) -> bool:
    """Whether at least a part of a span lies in the scored spans of its recording."""
    return any(min(span[1], end) - max(span[0], start) > _SHORTEST_S for start, end in audited)


def event_stretches(audit: str) -> dict[str, list[list[Stretch]]]:
    """The stretches of each event; and the stretches of the seconds that carry the events, each by itself."""
    events = read_events(audit).select(["parts", "seconds"]).to_pylist()
    return {
        EVENTS: [_stretches(event["parts"]) for event in events],
        SECONDS: [[stretch] for event in events for stretch in _stretches(event["seconds"])],
    }


def _stretches(parts: Iterable[dict[str, Any]]) -> list[Stretch]:
    return [(part["recording"], (part["onset_s"], part["offset_s"])) for part in parts]


def agreement_row(
    kind: str, detections: list[list[Stretch]], intervals: ReferenceIntervals, tolerances: dict[str, float]
) -> dict[str, Any]:
    """The columns of schemas.EVENT_SUMMARY that depend on what is matched."""
    labels = [*intervals.stretches, *intervals.not_heard]
    matches = intersection.match(detections, labels, **tolerances)
    n_true, n_found = sum(matches.true), sum(matches.found)
    return {
        "detections": kind,
        "n_detections": len(detections),
        "n_true": n_true,
        "precision": n_true / len(detections) if detections else None,
        "n_reference": len(labels),
        "n_found": n_found,
        "n_not_heard": len(intervals.not_heard),
        "recall": n_found / len(labels) if labels else None,
        "detected_s": matches.detected_s,
        "labelled_s": matches.labelled_s,
        "shared_s": matches.shared_s,
        "not_heard": sorted({recording for recording, _ in intervals.not_heard}),
    }


def are_equal(intervals: ReferenceIntervals, events: Sequence[Sequence[Stretch]]) -> bool:
    """Whether the reference is the audit's own events and nothing else."""
    all_parts = [part for event in events for part in event]
    return bool(all_parts) and _hundredths(intervals.marked) == _hundredths(all_parts)


def _hundredths(stretches: Iterable[Stretch]) -> set[tuple[str, int, int]]:
    """Stretches in hundredths of a second: label files hold fewer digits than tables."""
    return {(recording, round(100 * onset), round(100 * offset)) for recording, (onset, offset) in stretches}


def agreement_words(rows: Sequence[dict[str, Any]], n_whole: int) -> Iterator[str]:
    """How events and the seconds that carry them agree with the reference, and what true and found mean."""
    titles = {EVENTS: "Events", SECONDS: "Seconds that carry them"}
    for row in rows:
        precision = "" if row["precision"] is None else f" (precision {row['precision']:.3f})"
        recall = "" if row["recall"] is None else f" (recall {row['recall']:.3f})"
        names = listed([shown(name) for name in row["not_heard"]])
        not_heard = f"; {row['n_not_heard']} not heard: {names}" if row["n_not_heard"] else ""
        yield (
            f"{titles[row['detections']]}: {row['n_true']} of {row['n_detections']} true{precision}, {row['n_found']} "
            f"of {row['n_reference']} reference intervals found{recall}{not_heard if row is rows[0] else ''}. "
            f"{row['detected_s']:,.1f} s detected, {row['labelled_s']:,.1f} s labelled, {row['shared_s']:,.1f} s both."
        )
    yield (
        f"True: at least {rows[0]['detection_tolerance'] * 100:g} % of its time is labelled. "
        f"Found: what is true covers at least {rows[0]['ground_truth_tolerance'] * 100:g} % of it."
    )
    if n_whole:
        yield f"{count(n_whole, 'window without an interval counts', 'windows without an interval count')} whole."
