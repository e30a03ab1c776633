"""Which recordings are for training, which for testing, and which training clips validate.

The split may come from the folders (`inputs.find_recordings` has it then), from a table, or from the time of the
recordings. Both rules here work on whole recordings, before any is opened: clips of one recording sound alike, and a
split through the middle of it would let the model train on what it is tested with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import numpy as np

from faithad import storage
from faithad.clips.annotations import csv_rows
from faithad.clips.manifest import ClipRow, LedgerRow, Recording
from faithad.clips.recordings import recorded_at
from faithad.errors import RecordingError
from faithad.schemas import SPLITS
from faithad.vocabulary import count

COLUMNS = ("recording", "split")
OPTIONAL_COLUMNS = ("label", "anomaly_type")


@dataclass(frozen=True)
class SplitEntry:
    """One row of a split table. `recording` is a path as in the manifest, or a bare file name."""

    row: int
    recording: str
    split: str
    label: int | None = None
    anomaly_type: str | None = None


def read_split_csv(uri: str) -> list[SplitEntry]:
    """Read a split table: columns `recording` and `split` (train, validation, test), optional `label` (0, 1, empty)
    and `anomaly_type`; they hold for all clips of the recording.

    Raises:
        RecordingError: all that is wrong with the table, one line each with its row (the header is row 1).
    """
    header, rows = csv_rows(uri, error=RecordingError)
    names = [name.strip().casefold() for name in header]
    missing = [column for column in COLUMNS if column not in names]
    unknown = [name for name in names if name not in COLUMNS + OPTIONAL_COLUMNS]
    if missing or unknown or len(set(names)) < len(names):
        raise RecordingError(
            f"{uri}: the split table's columns are {', '.join(names) or 'missing'}; each of {', '.join(COLUMNS)} is "
            f"needed once, {', '.join(OPTIONAL_COLUMNS)} may follow, nothing else is allowed."
        )
    entries: list[SplitEntry] = []
    problems: list[str] = []
    for row, cells in rows:
        if len(cells) != len(names):
            problems.append(f"row {row}: {len(cells)} cells instead of {len(names)}")
            continue
        values = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        complaints = _complaints(values)
        problems += [f"row {row}: {complaint}" for complaint in complaints]
        if not complaints:
            anomaly_type = values.get("anomaly_type") or None
            label = int(values["label"]) if values.get("label") else (1 if anomaly_type else None)
            entries.append(SplitEntry(row, values["recording"], values["split"], label, anomaly_type))
    _refuse(uri, problems)
    return entries


def split_by_csv(
    recordings: Sequence[Recording], entries: Iterable[SplitEntry], *, source: str
) -> tuple[list[Recording], list[LedgerRow]]:
    """Give recordings the split that a table says; a recording is named by its path or its bare file name.

    Args:
        recordings: What was found.
        entries: The table, from `read_split_csv`.
        source: The table's name, for messages.

    Returns:
        The listed recordings, and a ledger row (skipped) for each that is not listed.

    Raises:
        RecordingError: rows whose recording is not there, could be several, or stands in an earlier row; all at once.
    """
    by_name: dict[str, list[str]] = {}
    for recording in recordings:
        by_name.setdefault(storage.name_of(recording.path), []).append(recording.path)
    by_path = {recording.path: [recording.path] for recording in recordings}
    chosen: dict[str, SplitEntry] = {}
    problems = []
    for entry in entries:
        paths = by_path.get(entry.recording) or by_name.get(entry.recording, [])
        if not paths:
            problems.append(f"row {entry.row}, {entry.recording!r}: no such recording; correct the name or remove it")
        elif len(paths) > 1:
            problems.append(f"row {entry.row}, {entry.recording!r}: could be {' or '.join(paths)}; write the path")
        elif (earlier := chosen.setdefault(paths[0], entry)) is not entry:
            problems.append(f"row {entry.row}, {entry.recording!r}: stands in row {earlier.row} as well; keep one")
    _refuse(source, problems)
    listed: list[Recording] = []
    ledger: list[LedgerRow] = []
    for recording in recordings:
        if recording.path not in chosen:
            ledger.append(LedgerRow(recording.path, "skipped", f"not listed in {source}"))
            continue
        said = chosen[recording.path]
        listed.append(replace(recording, split=said.split, label=said.label, anomaly_type=said.anomaly_type))
    return listed, ledger


def split_by_time(recordings: Iterable[Recording], *, train_until: datetime) -> tuple[list[Recording], list[LedgerRow]]:
    """Recordings that start before a moment are train, later ones test. Their names give their time.

    Returns:
        The recordings with their split, and a ledger row (failed) for each whose name holds no time.
    """
    timed: list[Recording] = []
    ledger: list[LedgerRow] = []
    for recording in recordings:
        start = recorded_at(recording.path)
        if start is None:
            reason = (
                "its name holds no time such as MPD_19-12-04_0848_00006.wav or 20191204_084800.wav, which the split by "
                "time needs"
            )
            ledger.append(LedgerRow(recording.path, "failed", reason))
        else:
            timed.append(replace(recording, split="train" if start < train_until else "test"))
    return timed, ledger


def hold_out_validation(
    rows: Sequence[ClipRow], *, fraction: float, unit: Literal["clip", "recording"], seed: int
) -> list[ClipRow]:
    """Move part of the train clips to validation.

    Args:
        rows: Clips of all splits. Where some are validation already, the user has chosen: nothing is moved.
        fraction: How many of the train units, in (0, 1); rounded, at least one.
        unit: What is drawn. `clip` is what the paper does; `recording` keeps clips of one recording together.
        seed: The draw depends on it and on which train clips there are, not on their order.

    Returns:
        The rows in their order.

    Raises:
        RecordingError: there is no train clip, or none would be left.
    """
    if any(row.split == "validation" for row in rows):
        return list(rows)

    def key(row: ClipRow) -> str:
        return row.recording if unit == "recording" else row.clip_id

    units = sorted({key(row) for row in rows if row.split == "train"})
    n_moved = max(1, round(fraction * len(units)))
    if n_moved >= len(units):
        raise RecordingError(
            f"{count(len(units), f'train {unit}')} found; with {n_moved} held out for validation "
            f"(fraction {fraction:g}) none would be left to train with. Add recordings to train or lower the fraction."
        )
    drawn = np.random.default_rng(seed).permutation(len(units))[:n_moved]
    moved = {units[place] for place in drawn}
    return [replace(row, split="validation") if row.split == "train" and key(row) in moved else row for row in rows]


def _complaints(values: dict[str, str]) -> list[str]:
    """What is wrong with one row of a split table."""
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


def _refuse(table: str, problems: Sequence[str]) -> None:
    if problems:
        lines = "\n  ".join(problems)
        raise RecordingError(f"{table}: {count(len(problems), 'problem')} in the split table:\n  {lines}")
