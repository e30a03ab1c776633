"""Recordings → clips with labels, rows of the ledger, and the recordings' health, for studies and audits alike.

    files → headers, read by Ray tasks (see `headers`) → clips → labels

The ledger holds what cannot be used and every second that is in no clip, each with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from faithad.clips.health_table import HealthRow, channel_line, health_row, problem_line
from faithad.clips.labels.names import look_up
from faithad.clips.labels.reference import Reference, read_reference
from faithad.clips.ledger import LedgerRow, ledger_row, ledger_table, unheard
from faithad.clips.manifest import ClipRow, Recording, attach_annotations, cut_recording, not_heard
from faithad.clips.recordings import Remainder
from faithad.errors import shown
from faithad.pipelines.headers import read_headers
from faithad.progress import console, progress
from faithad.vocabulary import ChannelChoice, count, listed


class Indexed(NamedTuple):
    """What an index makes of some recordings: their clips, rows of the ledger, and rows of the table `health`."""

    clips: list[ClipRow]
    ledger: list[LedgerRow]
    health: list[HealthRow]


def cut_recordings(
    recordings: Sequence[Recording], *, clip_s: float, remainder: Remainder, channel: ChannelChoice, marks: str
) -> Iterator[Indexed]:
    """The clips of each recording in turn, a ledger row for each part that is in no clip, and its health.

    Only headers and some windows are read. A recording that cannot be opened gives a ledger row with the reason.

    Raises:
        WorkersLost: as `headers.read_headers`.
    """
    headers = read_headers(recordings, marks=marks)
    with progress("index", len(recordings)) as ticker:
        for number, (recording, header) in enumerate(zip(recordings, headers, strict=True), start=1):
            if isinstance(header, str):
                yield Indexed([], [ledger_row(recording.path, "failed", header)], [])
            else:
                cut = cut_recording(recording, header, clip_s=clip_s, remainder=remainder, channel=channel)
                yield Indexed(*cut, [health_row(recording.path, header, channel)])
            ticker.update(number)


def annotated_clips(
    rows: list[ClipRow], location: str, ledger: list[LedgerRow], *, known: Mapping[str, object] | None = None
) -> list[ClipRow]:
    """The clips with the labels of their annotations; prints which annotations could not be read or are in no clip.

    Clips of recordings that are `known` have their labels already.
    """
    reference = read_reference(location)
    if known:
        find = look_up([*known, *(row.recording for row in rows), *(row["recording"] for row in ledger)])
        reference = Reference(of for of in reference if known.keys().isdisjoint(find(of.recording)))
    annotated = attach_annotations(rows, reference, ledger=ledger)
    for note in reference.notes:
        console.print(f"annotations: {note}")
    if lost := not_heard(rows, reference):
        names = listed([shown(name) for name in sorted({annotation.recording for annotation in lost})])
        of_all = f"{len(lost):,} of {count(len(reference), 'interval')}"
        console.print(f"annotations: {of_all} cannot be heard, since their recordings gave no clip there: {names}")
    return annotated


def tell_health(health: pa.Table) -> None:
    for name, line in (("health", problem_line(health)), ("channels", channel_line(health))):
        if line is not None:
            console.print(f"{name}: {line}")


def left_over(ledger: Sequence[LedgerRow]) -> str:
    n_remarks = sum(row["status"] == "done" for row in ledger)
    n_left = len(ledger) - n_remarks
    parts = count(n_left, "recording or part of one", "recordings or parts of them")
    left = f", {parts} skipped or failed ({unheard(ledger_table(ledger))})" if n_left else ""
    return left + (f", {count(n_remarks, 'header')} corrected" if n_remarks else "")
