"""Which recordings train and which test, and which training clips become validation clips.

The folders decide (then `inputs.find_recordings` knows the split), or a table, or the time of the recordings. The table
and the time apply to whole recordings, before any is opened: clips of one recording sound alike, so if a recording were
divided, the model would train on what it is tested with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Literal

import numpy as np

from faithad.clips.channels import split_name
from faithad.clips.labels.names import look_up
from faithad.clips.ledger import LedgerRow, ledger_row
from faithad.clips.manifest import ClipRow, Recording
from faithad.clips.problems import ProblemList, csv_rows, read_text
from faithad.clips.recording_names import RecordingName, read_name
from faithad.errors import RecordingError
from faithad.schemas import SPLITS
from faithad.vocabulary import count

COLUMNS = ("recording", "split")
OPTIONAL_COLUMNS = ("label", "anomaly_type")


@dataclass(frozen=True)
class SplitEntry:
    """One row of a split table. `recording` is a path as in the manifest, or a file name alone."""

    row: int
    recording: str
    split: str
    label: int | None = None
    anomaly_type: str | None = None


def read_split_csv(uri: str) -> list[SplitEntry]:
    """Read a split table: columns `recording` and `split` (train, validation, test), optional `label` (0, 1, empty)
    and `anomaly_type`, which apply to all clips of the recording.

    Raises:
        RecordingError: the table has problems; the message gives one line for each, with its row (1 is the header).
    """
    entries: list[SplitEntry] = []
    problems = ProblemList()
    text = read_text(uri, error=RecordingError)
    for row, cells in csv_rows(
        text, problems, noun="split table", needed=COLUMNS, optional=OPTIONAL_COLUMNS, others_allowed=False
    ):
        values = {column: cell.strip() for column, cell in cells.items()}
        complaints = _complaints(values)
        problems += [f"row {row}: {complaint}" for complaint in complaints]
        if not complaints:
            anomaly_type = values.get("anomaly_type") or None
            label = int(values["label"]) if values.get("label") else (1 if anomaly_type else None)
            entries.append(SplitEntry(row, values["recording"], values["split"], label, anomaly_type))
    problems.refuse(uri, "split table", error=RecordingError)
    return entries


def split_by_csv(
    recordings: Sequence[Recording], entries: Iterable[SplitEntry], *, source: str
) -> tuple[list[Recording], list[LedgerRow]]:
    """Give each recording the split of its row in a table, which names it as `labels.names.look_up` describes.

    Args:
        recordings: all that there are.
        entries: the table, from `read_split_csv`.
        source: the table's name, for messages.

    Returns:
        The recordings in the table, and a ledger row (skipped) for each of the others.

    Raises:
        RecordingError: some rows name no recording, several, or one that another row names; the message lists all.
    """
    find = look_up(recording.path for recording in recordings)
    chosen: dict[str, SplitEntry] = {}
    problems = ProblemList()
    for entry in entries:
        place, paths = f"row {entry.row}, {entry.recording!r}", find(entry.recording)
        if not paths:
            problems.append(f"{place}: no such recording; correct the name or remove it")
        elif len(paths) > 1:
            problems.append(f"{place}: could be {' or '.join(paths)}; write the path")
        elif (earlier := chosen.setdefault(paths[0], entry)) is not entry:
            problems.append(f"{place}: is in row {earlier.row} as well; keep one")
    problems.refuse(source, "split table", error=RecordingError)
    listed: list[Recording] = []
    ledger: list[LedgerRow] = []
    for recording in recordings:
        if recording.path in chosen:
            row = chosen[recording.path]
            listed.append(replace(recording, split=row.split, label=row.label, anomaly_type=row.anomaly_type))
        else:
            ledger.append(ledger_row(recording.path, "skipped", f"not listed in {source}"))
    return listed, ledger


def split_by_time(recordings: Iterable[Recording], *, train_until: datetime) -> tuple[list[Recording], list[LedgerRow]]:
    """Recordings that start before `train_until` train, later ones test. Their names give the time.

    Args:
        recordings: all that there are.
        train_until: with an offset from UTC, or without one by the recorders' own clock.

    Returns:
        The recordings with their split, and a ledger row (failed) for each whose name does not give the time.

    Raises:
        RecordingError: `train_until` has no offset from UTC, and the recordings have several.
    """
    names = {recording: read_name(recording.path) for recording in recordings}
    offsets_s = {name.utc_offset_s for name in names.values() if name.utc_offset_s is not None}
    if train_until.tzinfo is None and len(offsets_s) > 1:
        example = train_until.replace(tzinfo=timezone(timedelta(seconds=min(offsets_s)))).isoformat(timespec="minutes")
        raise RecordingError(
            f"The recordings' names have {len(offsets_s)} different offsets from UTC, so train_until needs one, too: "
            f"write for example {example}."
        )
    timed: list[Recording] = []
    ledger: list[LedgerRow] = []
    for recording, name in names.items():
        start = _start(name, with_offset=train_until.tzinfo is not None)
        if start is not None:
            timed.append(replace(recording, split="train" if start < train_until else "test"))
        elif name.recorded_at is None:
            reason = (
                "its name holds no time such as MPD_19-12-04_0848_00006.wav or 20191204_084800.wav, which the split by "
                "time needs"
            )
            ledger.append(ledger_row(recording.path, "failed", reason))
        else:
            reason = (
                "its name holds no offset from UTC such as 20191204_084800+0100.wav, which the split by time needs, "
                "because train_until has one"
            )
            ledger.append(ledger_row(recording.path, "failed", reason))
    return timed, ledger


def _start(name: RecordingName, *, with_offset: bool) -> datetime | None:
    if name.recorded_at is None or not with_offset:
        return name.recorded_at
    if name.utc_offset_s is None:
        return None
    return name.recorded_at.replace(tzinfo=timezone(timedelta(seconds=name.utc_offset_s)))


def hold_out_validation(
    rows: Sequence[ClipRow], *, fraction: float, unit: Literal["clip", "recording"], seed: int
) -> list[ClipRow]:
    """Move part of the train clips to validation.

    Args:
        rows: clips of all splits. If some are validation clips already, nothing is moved.
        fraction: share of the train units to move, in (0, 1); at least one unit moves.
        unit: what is drawn: `clip` as in the paper, or `recording`, which keeps the clips of a recording together, also
            where its channels are heard one by one.
        seed: of the draw, which does not depend on the order of the rows.

    Returns:
        The rows in the same order.

    Raises:
        RecordingError: no train clip would be left.
    """
    if any(row.split == "validation" for row in rows):
        return list(rows)

    def key(row: ClipRow) -> str:
        return split_name(row.recording)[0] if unit == "recording" else row.clip_id

    units = sorted({key(row) for row in rows if row.split == "train"})
    n_moved = max(1, round(fraction * len(units)))
    if n_moved >= len(units):
        raise RecordingError(
            f"{count(len(units), f'train {unit}')} found; with {n_moved} held out for validation "
            f"(fraction {fraction:g}) none would be left to train with. Add recordings to train or lower the fraction."
        )
    moved = {units[index] for index in np.random.default_rng(seed).permutation(len(units))[:n_moved]}
    return [replace(row, split="validation") if row.split == "train" and key(row) in moved else row for row in rows]


def _complaints(values: dict[str, str]) -> list[str]:
    """The problems of one row of a split table."""
    complaints = []
    split, label, anomaly_type = values["split"], values.get("label", ""), values.get("anomaly_type", "")
    if not values["recording"]:
        complaints.append("column 'recording' is empty; write a file name or a path")
    if split not in SPLITS:
        complaints.append(f"column 'split', {split!r}: must be one of {', '.join(SPLITS)}")
    if label not in ("", "0", "1"):
        complaints.append(f"column 'label', {label!r}: must be 0 (normal), 1 (anomalous) or empty (unknown)")
    if label == "0" and anomaly_type:
        complaints.append(f"column 'anomaly_type', {anomaly_type!r}: label 0 has none; empty it or write label 1")
    if split in ("train", "validation") and (label == "1" or anomaly_type):
        complaints.append(f"an anomaly in {split}, whose clips must be normal; move the recording to test")
    return complaints
