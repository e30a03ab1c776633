"""What a reviewer decided about the events: a file that the report saves → a table and labels in the audit's folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from faithad import parquet, storage
from faithad.audit.finished import is_audit, require_finished
from faithad.clips.labels import csv_labels
from faithad.clips.labels.label import Label
from faithad.clips.labels.reference import Reference, read_reference
from faithad.errors import AnnotationError
from faithad.runs import layout
from faithad.runs.formats import mark_format
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.tables import read_events
from faithad.schemas import DECISIONS
from faithad.vocabulary import count, listed

CONFIRM, REJECT, UNSURE = VERDICTS = ("confirm", "reject", "unsure")


class _Decision(BaseModel):
    event_id: str
    verdict: str
    kind: str = ""
    note: str = ""


class _Decisions(BaseModel):
    format: int
    decisions: list[_Decision]


def review_audit(audit: str, decisions: str) -> str:
    """Write the decisions into the audit's folder: as a table, and as labels of confirmed and of rejected events.

    An earlier review is replaced. Decisions about events that the audit does not have are left out and counted.

    Args:
        audit: folder or URI that `faithad audit --out` wrote to.
        decisions: the file that its report saved.

    Returns:
        Lines for the user.

    Raises:
        AnnotationError: the file is none that a report saved, or none of its decisions is about this audit.
        StudyError: there is no finished audit, or a command is working in its folder.
    """
    require_finished(audit)
    with alone_in(audit):
        events = {event["event_id"]: event for event in read_events(audit).to_pylist()}
        read = _read(decisions)
        own = {row.event_id: row for row in read if row.event_id in events}
        if not own:
            raise AnnotationError(f"{decisions} has no decision about an event of {audit}: it is of another audit.")
        rows = [row.model_dump() for row in own.values()]
        labels = {
            place: [_label(part, row) for row in own.values() if row.verdict == verdict
                    for part in events[row.event_id]["parts"]]
            for place, verdict in ((layout.CONFIRMED, CONFIRM), (layout.REJECTED, REJECT))
        }  # fmt: skip
        require_still_alone()
        mark_format(audit)
        parquet.write_table(
            pa.Table.from_pylist(rows, schema=DECISIONS), storage.join(audit, layout.DECISIONS), schema=DECISIONS
        )
        for place, of_verdict in labels.items():
            (text,) = csv_labels.files(of_verdict).values()
            storage.write_text(storage.join(audit, place), text)
    counts = Counter(row.verdict for row in own.values())
    line = f"{len(own):,} of {count(len(events), 'event')} reviewed: {counts[CONFIRM]:,} confirmed, "
    line += f"{counts[REJECT]:,} rejected, {counts[UNSURE]:,} unsure."
    if others := len({row.event_id for row in read}) - len(own):
        line += f" {count(others, 'decision is', 'decisions are')} about events that this audit does not have."
    return (
        f"{line}\nLabels: {storage.join(audit, layout.CONFIRMED)} and {storage.join(audit, layout.REJECTED)}. `faithad "
        f"evaluate --annotations {audit}` takes the confirmed ones; `faithad train --add-normals {audit}` and `faithad "
        f"calibrate --normals {audit}` take the rejected ones for normal sound, and `faithad export` leaves them out."
    )


def clip_verdicts(
    events: Iterable[Mapping[str, Any]], decisions: Mapping[str, Mapping[str, Any]]
) -> dict[str, set[str | None]]:
    """What was decided about the events of each clip that has any; None stands for an event without a decision.

    Args:
        events: rows of schemas.EVENTS with `event_id` and `clip_ids`.
        decisions: see `read_decisions`.
    """
    verdicts: dict[str, set[str | None]] = {}
    for event in events:
        for clip_id in event["clip_ids"]:
            verdicts.setdefault(clip_id, set()).add(decisions.get(event["event_id"], {}).get("verdict"))
    return verdicts


def reviewed_reference(location: str) -> Reference:
    """The confirmed events of an audit that was reviewed, as reference intervals.

    Args:
        location: of labels, see `read_reference`, or of the audit.

    Raises:
        AnnotationError: nobody has reviewed the audit, or as `read_reference`.
    """
    if not is_audit(location):
        return read_reference(location)
    confirmed = storage.join(location, layout.CONFIRMED)
    if not storage.exists(confirmed):
        raise AnnotationError(
            f"{location} is an audit that nobody has reviewed: give labels, or run `faithad review {location} "
            "--decisions FILE` first, whose confirmed events are then the reference."
        )
    decisions = read_decisions(location)
    n_open = sum(
        decisions.get(event_id, {}).get("verdict") not in (CONFIRM, REJECT)
        for event_id in read_events(location)["event_id"].to_pylist()
    )
    left_open = f", and so do {count(n_open, 'event')} that a reviewer left open" if n_open else ""
    return Reference(
        read_reference(confirmed),
        [f"The reference is what a review of {location} confirmed; all other sound counts as normal{left_open}."],
    )


def read_decisions(audit: str) -> dict[str, dict[str, Any]]:
    """The rows of schemas.DECISIONS by event; none where nobody has reviewed the audit."""
    location = storage.join(audit, layout.DECISIONS)
    rows = parquet.read_table(location).to_pylist() if storage.exists(location) else []
    return {row["event_id"]: row for row in rows}


def _read(location: str) -> list[_Decision]:
    if not storage.exists(location):
        raise AnnotationError(f"{location} does not exist. Save the decisions in the audit's report.html first.")
    try:
        read = _Decisions.model_validate(json.loads(storage.read_text(location)))
    except (ValueError, ValidationError) as error:
        raise AnnotationError(
            f"{location} holds no decisions: give the file that `Save decisions` in the audit's report.html writes."
        ) from error
    if unknown := sorted({row.verdict for row in read.decisions} - set(VERDICTS)):
        raise AnnotationError(
            f"{location} has the verdict {listed([repr(verdict) for verdict in unknown], most=3)}; allowed: "
            f"{', '.join(VERDICTS)}."
        )
    return read.decisions


def _label(part: dict[str, Any], decision: _Decision) -> Label:
    return Label(part["recording"], part["onset_s"], part["offset_s"], decision.kind or decision.verdict)
