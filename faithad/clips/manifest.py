"""The manifest, one row per clip: cut recordings into clips, and label the clips from annotations.

The steps from files to the table (optional ones in brackets):

    a data layout's find (see `layouts`) -> [splits.split_by_csv or split_by_time] -> cut_recording, one at a time
        -> [attach_annotations] -> splits.hold_out_validation -> manifest_table, ledger.ledger_table

Conventions
    `recording` is a stable name: the name of the folder and the path inside it, with slashes. If the data move to
    another disk or bucket, it stays the same, and so does `clip_id`, which is derived from it.
    label: 0 normal, 1 anomalous, None unknown. Train and validation clips are normal by definition.
    Every second of every recording is in a clip or in a ledger row with a reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

import pyarrow as pa

from faithad import storage
from faithad.clips.annotations import Annotation, Interval
from faithad.clips.channels import channel_name, heard_channels, split_name
from faithad.clips.labels.names import look_up
from faithad.clips.ledger import LedgerRow, ledger_row
from faithad.clips.recording_names import RecordingName, folder_of, read_name
from faithad.clips.recordings import SHORTEST_CLIP_S, AudioHeader, Remainder, cut_windows
from faithad.errors import AnnotationError, RecordingError
from faithad.schemas import MANIFEST, SPLITS
from faithad.vocabulary import ChannelChoice, count, listed


@dataclass(frozen=True)
class Recording:
    """One audio file. `path` is its stable name. None: neither folders, file name nor a split table give the value."""

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
    """One row of the manifest. Intervals are half-open, in seconds from the clip's onset.

    `channel` is the one that is heard, None for the mean of all. `recorded_at` and `utc_offset_s` are those of the
    recording's header, and count where its name says no time.
    """

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
    channel: int | None = None
    recorded_at: datetime | None = None
    utc_offset_s: int | None = None

    @property
    def clip_id(self) -> str:
        return clip_id(self.recording, self.onset_s)

    @property
    def offset_s(self) -> float:
        return self.onset_s + self.duration_s


def clip_id(recording: str, onset_s: float) -> str:
    """The permanent name of a clip, 16 hex digits: a hash of its recording's path and its onset in milliseconds."""
    onset_ms = math.floor(onset_s * 1000 + 0.5)
    return hashlib.sha256(f"{recording}\n{onset_ms}".encode()).hexdigest()[:16]


def cut_recording(
    recording: Recording,
    header: AudioHeader,
    *,
    clip_s: float,
    remainder: Remainder,
    channel: ChannelChoice = "auto",
) -> tuple[list[ClipRow], list[LedgerRow]]:
    """The clips of one recording, and ledger rows for what no clip covers, and for what was wrong with its header.

    `recordings.cut_windows` describes the remainder policies, `channels.heard_channels` the choices of a channel. If
    channels are heard one by one, each is a recording of its own, with the file's name and its number.
    """
    channels = heard_channels(channel, header.channels, header.health)
    if not channels:
        has = f"{recording.path} has {count(header.channels, 'channel')}"
        reason = f"{has}, and channel {channel} is to be heard: set another channel, or leave it out."
        return [], [ledger_row(recording.path, "failed", reason, onset_s=0.0, duration_s=header.duration_s)]
    rows: list[ClipRow] = []
    ledger: list[LedgerRow] = []
    for number in channels:
        part = recording
        if channel == "each" and number is not None:
            part = replace(recording, path=channel_name(recording.path, number))
        clips, unused = _cut_channel(part, header, number, clip_s=clip_s, remainder=remainder)
        rows += clips
        ledger += unused
    return rows, ledger


def _cut_channel(
    recording: Recording, header: AudioHeader, channel: int | None, *, clip_s: float, remainder: Remainder
) -> tuple[list[ClipRow], list[LedgerRow]]:
    ledger = []
    if header.remark is not None:  # All is heard: the row is about no second of it.
        ledger.append(ledger_row(recording.path, "done", header.remark, onset_s=0.0, duration_s=0.0))
    if header.unheard is not None:
        end_s, unheard_s = header.duration_s, header.unheard_s
        ledger.append(ledger_row(recording.path, "failed", header.unheard, onset_s=end_s, duration_s=unheard_s))
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
            channel=channel,
            recorded_at=header.recorded_at,
            utc_offset_s=header.utc_offset_s,
        )
        for onset_s, duration_s in windows
    ]
    if dropped_s == 0:
        return rows, ledger
    part = f"the last {dropped_s:g} s are" if rows else f"the recording, {dropped_s:g} s, is"
    reason = f"{part} shorter than a clip of {clip_s:g} s (remainder: drop)"
    if dropped_s < SHORTEST_CLIP_S and remainder != "drop":
        reason = f"{part} too short to judge: below {SHORTEST_CLIP_S:g} s"
    onset_s = header.duration_s - dropped_s
    dropped = ledger_row(recording.path, "skipped", reason, onset_s=onset_s, duration_s=dropped_s)
    return rows, [dropped, *ledger]


def attach_annotations(
    rows: Iterable[ClipRow], annotations: Iterable[Annotation], *, ledger: Iterable[LedgerRow] = ()
) -> list[ClipRow]:
    """Label the test clips from an annotation table; a test clip without an annotation is normal (label 0).

    `look_up` finds a recording by its file name. The clips need not have the windows of the table; both are compared in
    seconds of the recording:

    - If a window has intervals, each clip that overlaps an interval is anomalous and gets that part of it.
    - If a window has no intervals (the anomaly is somewhere in it, but not audible), each clip is anomalous that shares
      with it at least half of the shorter of the two. A clip that shares less may be anomalous or not: label None.
    - A clip with several annotations gets the anomaly type with which it shares the most seconds.

    A label that a row already has (from its folder or a split table) is kept.

    Args:
        rows: the clips of all splits.
        annotations: the whole table.
        ledger: rows of seconds that became no clips; annotations of these seconds are ignored.

    Returns:
        The rows in the same order; train and validation rows get label 0.

    Raises:
        AnnotationError: a recording or window does not exist, a file name means two recordings, or an anomaly is in a
            train or validation clip or in a clip labelled as normal. The message lists all such problems.
    """
    rows, ledger = list(rows), list(ledger)
    find = look_up([row.recording for row in rows] + [row["recording"] for row in ledger])
    indices: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        indices.setdefault(row.recording, []).append(index)
    problems: dict[str, list[str]] = {}
    touching: dict[int, list[Annotation]] = {}
    for annotation in annotations:
        name = storage.name_of(annotation.recording)
        candidates = find(annotation.recording)
        where = f"{name} {annotation.onset_s:g}-{annotation.offset_s:g} s"
        hits = [index for path in candidates for index in indices.get(path, ()) if _shared_s(rows[index], annotation)]
        if len({split_name(path)[0] for path in candidates}) > 1:
            problems.setdefault(_AMBIGUOUS, []).append(f"{name}: {', '.join(candidates)}")
        elif not hits and not any(_accounts_for(row, candidates, annotation) for row in ledger):
            problems.setdefault(_UNKNOWN, []).append(where)
        elif any(rows[index].split != "test" for index in hits):
            problems.setdefault(_NOT_TEST, []).append(where)
        elif any(rows[index].label == 0 and _labelled(rows[index], [annotation]).label == 1 for index in hits):
            problems.setdefault(_CALLED_NORMAL, []).append(where)
        for index in hits:
            touching.setdefault(index, []).append(annotation)
    if problems:
        texts = [f"{kind}\n    {listed([*dict.fromkeys(items)], separator='; ')}" for kind, items in problems.items()]
        raise AnnotationError("The annotation table does not fit the recordings.\n  " + "\n  ".join(texts))
    return [_labelled(row, touching.get(index, [])) for index, row in enumerate(rows)]


def not_heard(rows: Iterable[ClipRow], annotations: Iterable[Annotation]) -> list[Annotation]:
    """The annotations that share no time with any clip: of recordings, or parts of recordings, that became none.

    Args:
        rows: all clips.
        annotations: a table that fits the recordings, see `attach_annotations`.
    """
    clips: dict[str, list[ClipRow]] = {}
    for row in rows:
        clips.setdefault(row.recording, []).append(row)
    find = look_up(clips)
    return [
        annotation
        for annotation in annotations
        if not any(_shared_s(row, annotation) for path in find(annotation.recording) for row in clips[path])
    ]


def manifest_table(rows: Iterable[ClipRow]) -> pa.Table:
    """The manifest, sorted by recording and onset.

    Raises:
        RecordingError: there are two clips with the same id, or a clip is in no split.
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
    """The seconds that a clip and an annotated window share; less than a millisecond counts as 0."""
    shared_s = min(row.offset_s, annotation.offset_s) - max(row.onset_s, annotation.onset_s)
    return shared_s if shared_s > 0.001 else 0.0


def _accounts_for(row: LedgerRow, candidates: Sequence[str], annotation: Annotation) -> bool:
    if row["recording"] not in candidates:
        return False
    onset_s = row["onset_s"] or 0.0
    offset_s = math.inf if row["duration_s"] is None else onset_s + row["duration_s"]
    return onset_s < annotation.offset_s and annotation.onset_s < offset_s


def _labelled(row: ClipRow, annotations: Sequence[Annotation]) -> ClipRow:
    """The row with the label of its annotations; `attach_annotations` describes the rule."""
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
    """The intervals in order; overlapping ones are merged."""
    joined: list[Interval] = []
    for onset_s, offset_s in sorted(intervals):
        if joined and onset_s < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], offset_s))
        else:
            joined.append((onset_s, offset_s))
    return joined


def _cut_to_clip(annotation: Annotation, row: ClipRow) -> list[Interval]:
    """The parts of the annotation's intervals that lie in the clip, in seconds from the clip's onset."""
    shift_s = annotation.onset_s - row.onset_s
    edges = [(max(a + shift_s, 0.0), min(b + shift_s, row.duration_s)) for a, b in annotation.intervals]
    return [(round(a, 6), round(b, 6)) for a, b in edges if b - a > 1e-6]


def _manifest_columns(row: ClipRow) -> dict[str, object]:
    name = read_name(row.recording)
    if name.recorded_at is None and row.recorded_at is not None:
        name = RecordingName(row.recorded_at, row.utc_offset_s, folder_of(row.recording))
    return {
        **asdict(row),
        "clip_id": row.clip_id,
        "recorded_at": name.recorded_at and name.recorded_at + timedelta(seconds=row.onset_s),
        "utc_offset_s": name.utc_offset_s,
        "recorder": name.recorder,
        "intervals": [{"onset_s": onset_s, "offset_s": offset_s} for onset_s, offset_s in row.intervals],
    }
