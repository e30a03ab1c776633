"""Two audits side by side: their numbers, the clips that both have, and their events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from faithad.clips.health_table import heard_level
from faithad.evaluation.decisions import compare
from faithad.evaluation.statistics import bootstrap_intervals
from faithad.report import audit_findings
from faithad.report.audit_tables import AuditTables, EventRow
from faithad.report.compare.runs import Row
from faithad.report.ledger import ledger_view

# Events up to this many seconds apart are the same one.
_SAME_S = 1.0


class ComparedAudit(NamedTuple):
    """An audit under the name that the comparison gives it."""

    name: str
    audit: AuditTables

    @property
    def scores(self) -> pd.Series:
        """The score that alarms, of each clip."""
        return self.audit.scores[self.audit.alarm.pooling.column]

    def levels(self) -> dict[str, float]:
        """The level of each recording in dB of full scale, as it was heard."""
        rows = self.audit.health.to_pylist()
        return {row["recording"]: level for row in rows if (level := heard_level(row)) is not None}


def have_one_score(run: ComparedAudit, reference: ComparedAudit) -> bool:
    """Whether the scores of both mean the same: they come from one model, and from one pooling."""
    cards = [{key: value for key, value in one.audit.model.items() if key != "alarm"} for one in (run, reference)]
    return bool(cards[0]) and cards[0] == cards[1] and run.audit.alarm.pooling == reference.audit.alarm.pooling


def numbers(run: ComparedAudit) -> Iterator[Row]:
    """Rows of schemas.COMPARED_NUMBERS."""
    audit, scores = run.audit, run.audit.scores
    hours, ledger = audit_findings.audited_hours(scores), ledger_view(audit.ledger)
    levels = list(run.levels().values())
    alarms = scores["alarm"].dropna().astype(float)
    low, high = bootstrap_intervals(alarms.to_numpy()[:, None], scores.loc[alarms.index, "recording"], seed=0)
    has_alarm = audit.alarm.threshold is not None
    for name, value, *ends in (
        ("recordings", scores["recording"].nunique()),
        ("clips", len(scores)),
        ("hours heard", hours),
        ("clips skipped", ledger.clips["skipped"]),
        ("clips failed", ledger.clips["failed"]),
        ("median level, dBFS", np.median(levels) if levels else None),
        ("median score", run.scores.median() if len(scores) else None),
        ("threshold", audit.alarm.threshold),
        ("alarmed clips", int(alarms.sum()) if has_alarm else None),
        ("share of clips that alarm", alarms.mean() if len(alarms) else None, low[0], high[0]),
        ("events", len(audit.events) if has_alarm else None),
        ("events an hour", len(audit.events) / hours if hours and has_alarm else None),
    ):
        ends = [float(end) if np.isfinite(end) else None for end in ends] or [None, None]
        number = None if value is None else float(value)
        yield {"run": run.name, "name": name, "value": number, "ci_low": ends[0], "ci_high": ends[1]}


def shared_clips(run: ComparedAudit, reference: ComparedAudit) -> pd.DataFrame:
    """The clips that both have scored: recording, and alarm and score of both, `_a` of the run, `_b` of the other."""
    parts = [
        one.audit.scores[["clip_id", "recording"]].assign(
            alarm=one.audit.scores["alarm"].astype(float), score=one.scores
        )
        for one in (run, reference)
    ]
    return parts[0].merge(parts[1], on=["clip_id", "recording"], suffixes=("_a", "_b"))


def paired_clips(run: ComparedAudit, reference: ComparedAudit) -> Iterator[Row]:
    """Rows of schemas.COMPARED_CLIPS: does the run alarm more often, and score higher, on the same clips?"""
    clips = shared_clips(run, reference)
    metrics = {"alarm": 0.02} | ({"score": 0.0} if have_one_score(run, reference) else {})
    for metric, equivalence in metrics.items():
        differences = (clips[f"{metric}_a"] - clips[f"{metric}_b"]).to_numpy(dtype=float)
        if not np.isfinite(differences).any():
            continue
        (answer,) = compare(differences[:, None], clips["recording"].to_numpy(), equivalence=equivalence)
        model = str(run.audit.scores["model"].iloc[0])
        keys = {"run": run.name, "reference": reference.name, "metric": metric, "mode": None, "model": model}
        yield {**keys, "method": run.audit.alarm.pooling.column, **asdict(answer)}


def events(run: ComparedAudit, reference: ComparedAudit, whole: set[str]) -> list[Row]:
    """Rows of schemas.COMPARED_EVENTS, by time: those of the run, then those that only the reference has.

    Args:
        run: one audit.
        reference: the other.
        whole: recordings that are different as a whole.
    """
    reference_places = _places(reference.audit.events)
    heard_here, heard_there = _heard(run), _heard(reference)
    rows, met = [], set()
    for event in run.audit.events:
        same = sorted(_meeting(event, reference_places))
        met |= set(same)
        status = "both" if same else "new" if _is_heard(event, heard_there) else "unheard"
        other = reference.audit.events[same[0]]["event_id"] if same else None
        rows.append(_row(event, status, event["event_id"], other, whole))
    for number, event in enumerate(reference.audit.events):
        if number not in met:
            status = "gone" if _is_heard(event, heard_here) else "unheard"
            rows.append(_row(event, status, None, event["event_id"], whole))
    return [{"run": run.name, "reference": reference.name, **row} for row in rows]


def _row(event: EventRow, status: str, own: str | None, other: str | None, whole: set[str]) -> Row:
    return {
        **{name: event[name] for name in ("recording", "onset_s", "duration_s", "started_at")},
        "status": status,
        "event_id": own,
        "reference_event_id": other,
        "whole_recording": all(part["recording"] in whole for part in event["parts"]),
    }


def _places(events: list[EventRow]) -> dict[str, list[tuple[float, float, int]]]:
    """Onset, offset and position of the events in each recording."""
    places: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for number, event in enumerate(events):
        for part in event["parts"]:
            places[part["recording"]].append((part["onset_s"], part["offset_s"], number))
    return places


def _meeting(event: EventRow, places: dict[str, list[tuple[float, float, int]]]) -> set[int]:
    return {
        number
        for part in event["parts"]
        for onset_s, offset_s, number in places.get(part["recording"], ())
        if onset_s <= part["offset_s"] + _SAME_S and offset_s >= part["onset_s"] - _SAME_S
    }


def _heard(run: ComparedAudit) -> dict[str, np.ndarray[Any, Any]]:
    """Onset and offset (N, 2) of the scored clips of each recording."""
    clips = run.audit.scores[["recording", "onset_s", "duration_s"]]
    spans = clips.assign(offset_s=clips["onset_s"] + clips["duration_s"])
    return {str(name): part[["onset_s", "offset_s"]].to_numpy() for name, part in spans.groupby("recording")}


def _is_heard(event: EventRow, heard: dict[str, np.ndarray[Any, Any]]) -> bool:
    """Whether any of the event lies in clips that were scored."""
    for part in event["parts"]:
        spans = heard.get(part["recording"])
        if spans is not None and bool(((spans[:, 0] < part["offset_s"]) & (spans[:, 1] > part["onset_s"])).any()):
            return True
    return False
