"""The page of an audit: what was abnormal and when, why, and how far the reasons can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from faithad import storage
from faithad.evaluation.alarms import RULES
from faithad.report import audit_figures, audit_findings, event_views, page, style, timeline
from faithad.report.audit_tables import AuditAlarm, AuditTables, read_audit
from faithad.report.changes import changes
from faithad.report.health import health_view
from faithad.report.instrument import page_data
from faithad.report.ledger import ledger_view
from faithad.report.listening import event_sounds
from faithad.report.reviewed import review_figures, review_sentences
from faithad.report.states import state_view, strongest_states
from faithad.report.trust import GRADES, trust_of
from faithad.report.words import period
from faithad.runs import layout
from faithad.runs.prune import MAPS, SPECTROGRAMS, pruned
from faithad.vocabulary import CAUGHT_AT, duration, listed

# Rows of the table of events; the strongest, in the order of time.
MAX_ROWS = 500
_SCRIPTS = ("uplot/uPlot.iife.min.js", "instrument.js")


def render_audit_report(out: str) -> str:
    """Write `report.html` into an audit's folder: one file that needs nothing else, the same for the same tables.

    Args:
        out: the audit's folder, a local path or a URI.

    Returns:
        The location of the report.

    Raises:
        StudyError: there is no finished audit.
    """
    return write_page(out, read_audit(out))


def write_page(out: str, audit: AuditTables) -> str:
    """As `render_audit_report`, from tables that are read already."""
    values = _values(audit)
    if removed := [kind for kind in pruned(out) if kind in (MAPS, SPECTROGRAMS)]:
        values["remarks"] = [
            *values["remarks"],
            f"`faithad prune` removed the {listed(removed)}: events have no maps.",
        ]
    return page.write(storage.join(out, layout.REPORT), "audit.html.j2", values, scripts=_SCRIPTS)


def _values(audit: AuditTables) -> dict[str, Any]:
    trust = trust_of(audit.events, audit.judged)
    alarm, hours = audit.alarm, audit_findings.audited_hours(audit.scores)
    rows = [event_views.describe(audit, number, trust[number]) for number in range(len(audit.events))]
    sounds = event_sounds(audit)
    shown = [
        rows[number] | event_views.pictures(audit, number) | {"listen": sounds.get(number)} for number in audit.shown
    ]
    places = audit.settings.get("recordings")
    sections = [
        ("events", "Events"),
        ("states", "What lasts"),
        ("time", "Score over time"),
        ("labels", "Against labels"),
        ("reasons", "Listen, see why, decide"),
        ("alarm", "Alarm threshold"),
        ("health", "Health of the sound"),
        ("ledger", "Ledger"),
        ("configuration", "Configuration"),
    ]
    health = health_view(audit.health)
    line = time_line(audit) if len(audit.scores) else None
    changed = [] if line is None else changes(audit.clips.reset_index(), audit.health, line)
    empty = {
        "health": not health.sentences,
        "events": not rows,
        "states": not audit.states,
        "labels": not audit.agreement,
        "reasons": not shown,
    }
    return {
        "contents": [(anchor, title) for anchor, title in sections if not empty.get(anchor)],
        "todo": [
            item._asdict() | {"events": [rows[number] for number in item.events]} for item in audit_findings.todo(audit)
        ],
        "answers": audit_findings.answers(audit, trust),
        "remarks": [*review_sentences(audit), *audit_findings.remarks(audit)],
        "places": [storage.name_of(str(place)) for place in places] if isinstance(places, list) else [],
        "period": period(audit.scores["recorded_at"]),
        "model": _model(audit),
        "heard": duration(hours * 3_600) if hours else "nothing",
        "alarm": alarm,
        "rule": RULES[alarm.rule].phrase if alarm.rule in RULES else alarm.rule,
        "lengths": _lengths(alarm),
        "expected": audit_findings.expected_of(alarm, n_clips=len(audit.scores), hours=hours),
        "n_alarms": audit_findings.n_alarms(audit),
        "review": review_figures(audit),
        "hours": hours,
        "n_clips": len(audit.scores),
        "rows": [rows[number] for number in sorted(audit.ranked[:MAX_ROWS])],
        "more": max(0, len(rows) - MAX_ROWS),
        "states": [state_view(state) for state in strongest_states(audit.states)[:MAX_ROWS]],
        "more_states": max(0, len(audit.states) - MAX_ROWS),
        "state_alarm": audit.model.get("state"),
        "shown": shown,
        "agreement": audit.agreement,
        "areas": {row["metric"]: row["mean"] for row in audit.detection if row["mean"] is not None},
        "caught_at": {name: f"{rate * 100:g} %" for name, rate in CAUGHT_AT.items()},
        "linked": {event["id"] for event in shown},
        "n_events": len(rows),
        "has_ratio": all(audit_findings.has_ratio(event) for event in audit.events),
        "percentile": next((event["percentile"] for event in audit.events if event["percentile"]), None),
        "few": timeline.FEW,
        "in_khz": audit.setting("features.sample_rate_hz") is not None,
        "timed": bool(audit.scores["recorded_at"].notna().all()),
        "charts": None if line is None else _charts(audit, line),
        "changes": changed,
        "points": audit.points,
        "point": next((n for n, row in enumerate(audit.points) if row["threshold"] == alarm.threshold), 0),
        "grade_order": {grade: number for number, grade in enumerate(GRADES)},
        "n_expected": sum(1 for sound in sounds.values() if sound.get("expected")),
        "n_sounds": sum(1 for sound in sounds.values() if sound.get("sound")),
        "data": page_data(audit, line, sounds, changed),
        "health": health,
        "ledger": ledger_view(audit.ledger),
        "settings_text": audit.settings_text,
    }


def _lengths(alarm: AuditAlarm) -> str:
    """The thresholds of short clips in words."""
    by_length = () if alarm.fitted is None else alarm.fitted.by_length
    return ", ".join(f"{threshold:.4g} at {length_s:g} s" for length_s, threshold in by_length)


def _model(audit: AuditTables) -> str:
    name, seed = (audit.setting("name"), audit.setting("seed"))
    if len(audit.scores):
        name, seed = audit.scores["model"].iloc[0], int(audit.scores["seed"].iloc[0])
    return f"{style.model(str(name)).title}, seed {seed}" if name is not None else "unknown"


def _charts(audit: AuditTables, line: timeline.TimeLine) -> dict[str, Any]:
    svgs = {name: drawing.svg() for name, drawing in audit_figures.score_drawings(audit, line).items()}
    return {**svgs, "unheard": bool(len(line.unheard)), "states": bool(len(line.states))}


def time_line(audit: AuditTables) -> timeline.TimeLine:
    """The clips, each event's strongest clip, what lasts, and what was not heard."""
    score_of = audit.score_of
    line = timeline.time_line(
        audit.scores,
        audit.alarm.pooling.column,
        strongest=[max(event["clip_ids"], key=lambda clip: score_of.get(clip, -np.inf)) for event in audit.events],
        ranked=audit.ranked,
    )
    missing = audit.ledger[(audit.ledger["status"] != "done") & audit.ledger["onset_s"].notna()]
    parts = pd.DataFrame(
        [part for state in audit.states for part in state["parts"]], columns=["recording", "onset_s", "offset_s"]
    )
    parts["duration_s"] = parts["offset_s"] - parts["onset_s"]
    unheard, states = (_hours(audit, line.midnight, stretches) for stretches in (missing, parts))
    return line._replace(unheard=unheard, states=states)


def _hours(audit: AuditTables, midnight: pd.Timestamp | None, stretches: pd.DataFrame) -> np.ndarray:
    """Hours (U, 2) of stretches of recordings, as far as the recording's clock is known from any of its clips."""
    if midnight is None:
        return np.empty((0, 2))
    start_h = {name: (start - midnight) / pd.Timedelta(hours=1) for name, start in audit.started_on_one_clock.items()}
    onset = stretches["recording"].map(start_h).to_numpy(dtype=float) + stretches["onset_s"].to_numpy(float) / 3_600
    offset = onset + stretches["duration_s"].fillna(0).to_numpy(float) / 3_600
    hours: np.ndarray = np.stack([onset, offset], axis=1)
    return np.asarray(hours[np.isfinite(onset)])
