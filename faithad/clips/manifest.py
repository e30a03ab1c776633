"""One row per clip: cut recordings into clips, say which are anomalous and where, and write it all down.

The way from files to the table; what is in brackets is optional:

    a data layout's find (see `layouts`) -> [splits.split_by_csv or split_by_time] -> cut_recording, one at a time
        -> [attach_annotations] -> splits.hold_out_validation -> manifest_table, ledger.ledger_table

Conventions
    `recording` is a stable name, not a place: the folder's name and the path below it, with slashes. The data may move
    to another disk or bucket; `clip_id`, which derives from it, stays.
    label: 0 normal, 1 anomalous, None unknown. Train and validation clips are normal by definition.
    Nothing is lost in silence: each second of each recording is in a clip, or in a ledger row with a reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

import pyarrow as pa

from faithad import storage
from faithad.clips.annotations import Annotation, Interval
from faithad.clips.labels.names import look_up
from faithad.clips.ledger import LedgerRow, ledger_row
from faithad.clips.recordings import AudioHeader, Remainder, cut_windows, recorded_at
from faithad.errors import AnnotationError, RecordingError
from faithad.schemas import MANIFEST, SPLITS
from faithad.vocabulary import listed


@dataclass(frozen=True)
class Recording:
    """One audio file. `path` is its stable name; what its folders, its name or a split table do not say is None."""

    path: str
    uri: str
    split: str | None
    label: int | None = None
    anomaly_type: str | None = None
    machine: str | None = None
    section: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class ClipRow:
    """One row of the manifest to be. Intervals are half-open seconds from the clip's onset."""

    recording: str
    uri: str
    onset_s: float
    duration_s: float
    split: str | None
    label: int | None = None
    anomaly_type: str | None = None
    intervals: tuple[Interval, ...] = ()
    annotated: bool = False
    machine: str | None = None
    section: str | None = None
    domain: str | None = None

    @property
    def clip_id(self) -> str:
        return clip_id(self.recording, self.onset_s)

    @property
    def offset_s(self) -> float:
        return self.onset_s + self.duration_s


def clip_id(recording: str, onset_s: float) -> str:
    """16 hex digits that name a clip for good: a hash of its recording's path and its onset in milliseconds."""
    onset_ms = math.floor(onset_s * 1000 + 0.5)
    return hashlib.sha256(f"{recording}\n{onset_ms}".encode()).hexdigest()[:16]


def cut_recording(
    recording: Recording, header: AudioHeader, *, clip_s: float, remainder: Remainder
) -> tuple[list[ClipRow], list[LedgerRow]]:
    """The clips of one recording, and a ledger row for the end that is in none of them, if any.

    `recordings.cut_windows` says what each remainder policy does.
    """
    windows, dropped_s = cut_windows(header.duration_s, clip_s=clip_s, remainder=remainder)
    label = 0 if recording.split in ("train", "validation") else recording.label
    rows = [
        ClipRow(
            recording.path,
            recording.uri,
            onset_s,
            duration_s,
            recording.split,
            label,
            recording.anomaly_type,
            machine=recording.machine,
            section=recording.section,
            domain=recording.domain,
        )
        for onset_s, duration_s in windows
    ]
    if dropped_s == 0:
        return rows, []
    part = f"the last {dropped_s:g} s are" if rows else f"the recording, {dropped_s:g} s, is"
    reason = f"{part} shorter than a clip of {clip_s:g} s (remainder: drop)"
    onset_s = header.duration_s - dropped_s
    return rows, [ledger_row(recording.path, "skipped", reason, onset_s=onset_s, duration_s=dropped_s)]


def attach_annotations(
    rows: Iterable[ClipRow], annotations: Iterable[Annotation], *, ledger: Iterable[LedgerRow] = ()
) -> list[ClipRow]:
    """Label the test clips with an annotation table; every test clip that it does not speak of is normal (label 0).

    A recording is found by its file name (`look_up`). Clips need not lie on the table's grid of windows, both are taken
    to the time of the recording:

    - A window with intervals makes each clip anomalous that holds some of an interval, which is cut to the clip.
    - A window without intervals ("somewhere in here, not audible") makes each clip anomalous that shares at least half
      of the shorter of the two with it. A clip that shares less may hold the anomaly or not: its label is None.
    - A clip with several annotations takes the type of the one that it shares most seconds with.

    A label that a row already bears (from its folder or a split table) stays.

    Args:
        rows: The clips of all splits.
        annotations: The whole table.
        ledger: What is known not to have become clips; annotations of those seconds are set aside in silence.

    Returns:
        The rows in their order; train and validation rows get label 0.

    Raises:
        AnnotationError: recordings or windows that are not there, file names that two recordings share, anomalies in
            train or validation clips, or in clips labelled as normal; all such problems at once.
    """
    rows, ledger = list(rows), list(ledger)
    find = look_up([row.recording for row in rows] + [row["recording"] for row in ledger])
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.recording, []).append(place)
    problems: dict[str, list[str]] = {}
    touching: dict[int, list[Annotation]] = {}
    for annotation in annotations:
        name = storage.name_of(annotation.recording)
        candidates = find(annotation.recording)
        where = f"{name} {annotation.onset_s:g}-{annotation.offset_s:g} s"
        hits = [place for path in candidates for place in places.get(path, ()) if _shared_s(rows[place], annotation)]
        if len(candidates) > 1:
            problems.setdefault(_AMBIGUOUS, []).append(f"{name}: {', '.join(candidates)}")
        elif not hits and not any(_accounts_for(row, candidates, annotation) for row in ledger):
            problems.setdefault(_UNKNOWN, []).append(where)
        elif any(rows[place].split != "test" for place in hits):
            problems.setdefault(_NOT_TEST, []).append(where)
        elif any(rows[place].label == 0 and _labelled(rows[place], [annotation]).label == 1 for place in hits):
            problems.setdefault(_CALLED_NORMAL, []).append(where)
        for place in hits:
            touching.setdefault(place, []).append(annotation)
    if problems:
        texts = [f"{kind}\n    {listed([*dict.fromkeys(items)], separator='; ')}" for kind, items in problems.items()]
        raise AnnotationError("The annotation table does not fit the recordings.\n  " + "\n  ".join(texts))
    return [_labelled(row, touching.get(place, [])) for place, row in enumerate(rows)]


def manifest_table(rows: Iterable[ClipRow]) -> pa.Table:
    """The manifest, sorted by recording and onset.

    Raises:
        RecordingError: a clip is there twice, or in no split.
    """
    rows = sorted(rows, key=lambda row: (row.recording, row.onset_s))
    splits: dict[str, list[ClipRow]] = {}
    for row in rows:
        splits.setdefault(row.clip_id, []).append(row)
    twice = [
        f"{same[0].recording} at {same[0].onset_s:g} s ({', '.join(f'{row.split}: {row.uri}' for row in same)})"
        for same in splits.values()
        if len(same) > 1
    ]
    if twice:
        raise RecordingError(f"Clips that are there more than once, keep one of each: {listed(twice, separator='; ')}")
    unknown = sorted({row.recording for row in rows if row.split not in SPLITS})
    if unknown:
        raise RecordingError(
            f"Recordings that are in none of the splits {', '.join(SPLITS)}: {listed(unknown, separator='; ')}"
        )
    return pa.Table.from_pylist([_manifest_columns(row) for row in rows], schema=MANIFEST)


_UNKNOWN = "Not among the clips (correct the recording's name or the time range, or remove the row):"
_AMBIGUOUS = "File names that more than one recording has (rename all but one):"
_NOT_TEST = "Anomalies in train or validation clips, which must be normal (move the recording to test):"
_CALLED_NORMAL = "Anomalies in clips that are labelled as normal (move the clip or remove the row):"


def _shared_s(row: ClipRow, annotation: Annotation) -> float:
    """How many seconds of a recording are both in a clip and in an annotated window; below a millisecond none."""
    shared_s = min(row.offset_s, annotation.offset_s) - max(row.onset_s, annotation.onset_s)
    return shared_s if shared_s > 0.001 else 0.0


def _accounts_for(row: LedgerRow, candidates: Sequence[str], annotation: Annotation) -> bool:
    if row["recording"] not in candidates:
        return False
    onset_s = row["onset_s"] or 0.0
    offset_s = math.inf if row["duration_s"] is None else onset_s + row["duration_s"]
    return onset_s < annotation.offset_s and annotation.onset_s < offset_s


def _labelled(row: ClipRow, annotations: Sequence[Annotation]) -> ClipRow:
    """The row with what its annotations say; see `attach_annotations` for the rule."""
    intervals: list[Interval] = []
    weights: dict[str, float] = {}
    unsure = False
    for annotation in annotations:
        cut = _cut_to_clip(annotation, row)
        shared_s = _shared_s(row, annotation)
        shorter_s = min(row.duration_s, annotation.offset_s - annotation.onset_s)
        if cut or (not annotation.intervals and shared_s >= shorter_s / 2):
            weights[annotation.anomaly_type] = weights.get(annotation.anomaly_type, 0.0) + shared_s
        elif not annotation.intervals:
            unsure = True
        intervals += cut
    if weights:
        kind = max(weights, key=lambda name: weights[name])
        joined = tuple(_joined(intervals))
        return replace(row, label=1, anomaly_type=kind, intervals=joined, annotated=bool(intervals))
    if row.label is not None or (unsure and row.split == "test"):
        return row
    return replace(row, label=0)


def _joined(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals in order; those of several annotations that overlap are one."""
    joined: list[Interval] = []
    for onset_s, offset_s in sorted(intervals):
        if joined and onset_s < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], offset_s))
        else:
            joined.append((onset_s, offset_s))
    return joined


def _cut_to_clip(annotation: Annotation, row: ClipRow) -> list[Interval]:
    """The annotation's intervals that the clip holds some of, in seconds from the clip's onset."""
    shift_s = annotation.onset_s - row.onset_s
    edges = [(max(a + shift_s, 0.0), min(b + shift_s, row.duration_s)) for a, b in annotation.intervals]
    return [(round(a, 6), round(b, 6)) for a, b in edges if b - a > 1e-6]


def _manifest_columns(row: ClipRow) -> dict[str, object]:
    start = recorded_at(row.recording)
    return {
        **asdict(row),
        "clip_id": row.clip_id,
        "recorded_at": None if start is None else start + timedelta(seconds=row.onset_s),
        "intervals": [{"onset_s": onset_s, "offset_s": offset_s} for onset_s, offset_s in row.intervals],
    }
