"""Detections against labels by the time that they share: the intersection criteria of PSDS.

Bilen et al. 2020, "A framework for the robust evaluation of sound event detection" (arXiv 1910.08440), section 3.1, for
one class: detections and labels may be of very different lengths, so that neither intersection over union nor any
overlap at all would say whether one is the other.

    detection tolerance criterion    a detection is true if at least `detection_tolerance` of its time is labelled
    ground truth intersection criterion    a label is found if true detections cover at least `ground_truth_tolerance`
                                           of its time

Spans are half-open, in seconds from the start of a recording. A detection may lie in several recordings.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Span = tuple[float, float]
Stretch = tuple[str, Span]  # of a recording

DETECTION_TOLERANCE, GROUND_TRUTH_TOLERANCE = 0.05, 0.5

# Places are sums of decimal seconds; their rounding noise must not decide what touches.
NOISE_S = 1e-6
_NOISE = 1e-9  # of a share


@dataclass(frozen=True)
class Matches:
    """Which detections are true and which labels are found, in the order given; and for how long, in seconds."""

    true: tuple[bool, ...]
    found: tuple[bool, ...]
    detected_s: float
    labelled_s: float
    shared_s: float


def match(
    detections: Sequence[Sequence[Stretch]],
    labels: Sequence[Stretch],
    *,
    detection_tolerance: float = DETECTION_TOLERANCE,
    ground_truth_tolerance: float = GROUND_TRUTH_TOLERANCE,
) -> Matches:
    """Match detections with labels; see the module.

    Args:
        detections: the stretches of each, which do not overlap each other.
        labels: do not overlap each other.
        detection_tolerance: share of a detection's time, above 0.
        ground_truth_tolerance: share of a label's time, above 0.
    """
    labelled = by_recording(labels)
    lengths_s = [sum(offset - onset for _, (onset, offset) in stretches) for stretches in detections]
    labelled_s = [sum(_shared_s(stretch, labelled) for stretch in stretches) for stretches in detections]
    true = tuple(
        shared_s > 0 and shared_s >= (detection_tolerance - _NOISE) * length_s
        for shared_s, length_s in zip(labelled_s, lengths_s, strict=True)
    )
    confirmed = by_recording(
        stretch for stretches, is_true in zip(detections, true, strict=True) if is_true for stretch in stretches
    )
    found = tuple(
        _shared_s((recording, (onset, offset)), confirmed) >= (ground_truth_tolerance - _NOISE) * (offset - onset)
        for recording, (onset, offset) in labels
    )
    return Matches(
        true,
        found,
        detected_s=sum(lengths_s),
        labelled_s=sum(offset - onset for _, (onset, offset) in labels),
        shared_s=sum(labelled_s),
    )


def by_recording(stretches: Iterable[Stretch]) -> dict[str, list[Span]]:
    """Spans by recording, in order, those that overlap or touch as one."""
    spans: dict[str, list[Span]] = {}
    for recording, span in stretches:
        spans.setdefault(recording, []).append(span)
    return {recording: merge_spans(of_recording) for recording, of_recording in spans.items()}


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Spans (onset, offset) in order, those that overlap or touch as one."""
    merged: list[Span] = []
    for onset, offset in sorted(spans):
        if merged and onset <= merged[-1][1] + NOISE_S:
            merged[-1] = (merged[-1][0], max(merged[-1][1], offset))
        else:
            merged.append((onset, offset))
    return merged


def overlap_s(one: Span, other: Span) -> float:
    """How long two spans are at the same time, in seconds; below 0, how far they are apart."""
    return min(one[1], other[1]) - max(one[0], other[0])


def _shared_s(stretch: Stretch, others: Mapping[str, Sequence[Span]]) -> float:
    """How long a stretch lies in spans, which are in order and do not overlap."""
    recording, (onset, offset) = stretch
    spans = others.get(recording, ())
    shared_s = 0.0
    for place in range(bisect.bisect_right(spans, onset, key=lambda span: span[1]), len(spans)):
        if spans[place][0] >= offset:
            break
        shared_s += overlap_s((onset, offset), spans[place])
    return shared_s
