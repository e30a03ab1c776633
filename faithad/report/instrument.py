"""What the page's script draws: clips, events, what lasts and what was not heard on the time line; operating points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from faithad.report import audit_findings
from faithad.report.audit_tables import AuditTables
from faithad.report.changes import ChangeMark
from faithad.report.timeline import TimeLine

_DIGITS = 5  # of a score
_PAUSE_S = 1.0


def page_data(
    audit: AuditTables, line: TimeLine | None, sounds: dict[int, dict[str, Any]], changed: Sequence[ChangeMark]
) -> dict[str, Any]:
    """Everything as plain numbers and text, ready for JSON. Times are seconds of the axis.

    Args:
        audit: the audit.
        line: its clips and events on the axis of time; None without a clip.
        sounds: see `listening.event_sounds`.
        changed: see `changes`.
    """
    places = [] if line is None else _event_places(audit, line)
    return {
        "clock": None if line is None or line.midnight is None else int(line.midnight.timestamp()),
        "clips": None if line is None else _clips(audit, line),
        "unheard": [] if line is None else np.round(line.unheard * 3_600, 3).tolist(),
        "states": [] if line is None else np.round(line.states * 3_600, 3).tolist(),
        "changes": [round(change.at_h * 3_600, 3) for change in changed],
        "threshold": audit.alarm.threshold,
        "points": audit.points,
        "events": [
            {
                "id": number + 1,
                "key": audit.events[number]["event_id"],
                "score": audit_findings.level(audit.events[number], audit.alarm.threshold),
                "from": round(onset, 3),
                "to": round(offset, 3),
                "sound": sounds[number]["from_s"] - audit.events[number]["onset_s"] + onset
                if sounds.get(number, {}).get("sound")
                else None,
            }
            for number, (onset, offset) in enumerate(places)
        ],
        "decisions": {
            event_id: {name: row[name] for name in ("verdict", "kind", "note")}
            for event_id, row in audit.decisions.items()
        },
        "model": [str(audit.setting("name")), audit.setting("seed")],
    }


def _clips(audit: AuditTables, line: TimeLine) -> list[list[float | None]]:
    """Times and scores; a score of null ends a stretch of clips that follow each other."""
    duration_s = audit.scores["duration_s"].median()
    times: list[float | None] = []
    scores: list[float | None] = []
    at_s = np.round(line.clips * 3_600, 3).tolist()
    for start_s, next_s, score in zip(at_s, [*at_s[1:], np.inf], line.score.tolist(), strict=True):
        times.append(start_s)
        scores.append(float(f"{score:.{_DIGITS}g}"))
        if next_s - start_s > duration_s + _PAUSE_S:
            times += [start_s + duration_s, start_s + duration_s + 0.001]
            scores += [scores[-1], None]
    return [times, scores]


def _event_places(audit: AuditTables, line: TimeLine) -> list[tuple[float, float]]:
    """Onset and offset of each event in seconds of the axis."""
    places = []
    for event, strongest_h in zip(audit.events, line.events.tolist(), strict=True):
        onset_s = strongest_h * 3_600
        start = audit.started_on_one_clock.get(event["recording"])
        if line.midnight is not None and start is not None:
            onset_s = (pd.Timestamp(start) - line.midnight).total_seconds() + event["onset_s"]
        places.append((onset_s, onset_s + event["duration_s"]))
    return places
