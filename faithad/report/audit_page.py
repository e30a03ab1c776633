"""The page of an audit: what was abnormal and when, why, and how far the why can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from faithad import storage
from faithad.report import audit_charts, audit_findings, event_views, findings, page, style
from faithad.report.audit_charts import TimeLine
from faithad.report.audit_tables import AuditTables, read_audit
from faithad.report.trust import trust_of
from faithad.runs import layout

# Rows of the table of events; the strongest, in the order of time.
MAX_ROWS = 500
_FIRST_SCREEN = 5


def render_audit_report(out: str) -> str:
    """Write `report.html` into an audit's folder: one file that needs nothing else, the same for the same tables.

    Args:
        out: the audit's folder, a local path or a URI.

    Returns:
        The location of the report.

    Raises:
        StudyError: there is no finished audit.
    """
    location = storage.join(out, layout.REPORT)
    storage.write_text(location, audit_html(read_audit(out)))
    return location


def audit_html(audit: AuditTables) -> str:
    """The whole page."""
    return page.fill("audit.html.j2", _values(audit))


def _values(audit: AuditTables) -> dict[str, Any]:
    trust = trust_of(audit.events, audit.judged)
    alarm, hours = audit_findings.alarm_of(audit), audit_findings.audited_hours(audit.scores)
    rows = [event_views.describe(audit, number, trust[number]) for number in range(len(audit.events))]
    listed = sorted(audit.ranked[:MAX_ROWS])
    views = [(number, event_views.pictures(audit, number)) for number in audit.shown]
    shown = [rows[number] | view for number, view in views if view["curve"] or view["panels"]]
    places = audit.settings.get("recordings")
    return {
        "contents": _contents(bool(rows), bool(shown)),
        "answers": audit_findings.answers(audit, trust),
        "places": [storage.name_of(str(place)) for place in places] if isinstance(places, list) else [],
        "period": findings.recording_period(audit.scores),
        "model": _model(audit),
        "heard": findings.duration(hours * 3_600) if hours else "nothing",
        "alarm": alarm,
        "rule": audit_findings.RULES.get(str(alarm.rule), alarm.rule),
        "expected": audit_findings.expected_of(alarm, n_clips=len(audit.scores), hours=hours),
        "n_alarms": audit_findings.n_alarms(audit),
        "hours": hours,
        "n_clips": len(audit.scores),
        "first": [rows[number] for number in audit.ranked[:_FIRST_SCREEN]],
        "rows": [rows[number] for number in listed],
        "more": len(rows) - len(listed),
        "shown": shown,
        "linked": {event["id"] for event in shown},
        "n_events": len(rows),
        "has_ratio": all(audit_findings.has_ratio(event) for event in audit.events),
        "percentile": next((event["percentile"] for event in audit.events if event["percentile"]), None),
        "few": audit_charts.FEW,
        "in_khz": audit.setting("features.sample_rate_hz") is not None,
        "timed": bool(audit.scores["recorded_at"].notna().all()),
        "charts": _charts(audit, alarm) if len(audit.scores) else None,
        "ledger": page.ledger_values(audit.ledger),
        "ledger_hours": audit_findings.ledger_hours(audit.ledger),
        "settings_text": audit.settings_text,
    }


def _contents(any_event: bool, any_shown: bool) -> list[tuple[str, str]]:
    sections = [("time", "Score over time")]
    sections += [("events", "Events")] if any_event else []
    sections += [("reasons", "Why, event by event")] if any_shown else []
    return [*sections, ("alarm", "Alarm threshold"), ("ledger", "Ledger"), ("configuration", "Configuration")]


def _model(audit: AuditTables) -> str:
    name, seed = (audit.setting("name"), audit.setting("seed"))
    if len(audit.scores):
        name, seed = audit.scores["model"].iloc[0], int(audit.scores["seed"].iloc[0])
    return f"{style.model(str(name)).title}, seed {seed}" if name is not None else "unknown"


def _charts(audit: AuditTables, alarm: audit_findings.Alarm) -> dict[str, Any]:
    line = time_line(audit, alarm.column)
    score = style.to_svg(
        audit_charts.score_figure(line, alarm.threshold), name="score", label="Anomaly score over the time"
    )
    spread = audit_charts.distribution_figure(line.score, alarm.threshold)
    distribution = style.to_svg(spread, name="distribution", label="How many clips have which score")
    return {"score": score, "distribution": distribution, "unheard": bool(len(line.unheard))}


def time_line(audit: AuditTables, column: str) -> TimeLine:
    """Hours of the clips, of each event's strongest clip, and of what was not heard."""
    scores = audit.scores.sort_values(["recording", "onset_s"], kind="stable")
    scores = scores[scores[column].notna()]
    timed = bool(scores["recorded_at"].notna().all())
    midnight = scores["recorded_at"].min().normalize() if timed else None
    if midnight is not None:
        hours = (scores["recorded_at"] - midnight) / pd.Timedelta(hours=1)
    else:
        hours = (scores["duration_s"].cumsum() - scores["duration_s"]) / 3_600
    score = scores[column].to_numpy()
    place = pd.Series(range(len(scores)), index=scores["clip_id"])
    strongest = []
    for event in audit.events:
        here = place.reindex(event["clip_ids"]).dropna().astype(int).to_numpy()
        strongest.append(int(here[score[here].argmax()]))
    return TimeLine(
        midnight=midnight,
        clips=hours.to_numpy(),
        score=score,
        events=hours.to_numpy()[strongest],
        event_scores=score[strongest],
        ranked=audit.ranked,
        unheard=_unheard(audit, midnight),
    )


def _unheard(audit: AuditTables, midnight: pd.Timestamp | None) -> np.ndarray:
    """Hours (U, 2) of what failed or was skipped, as far as its recording's clock is known from any of its clips."""
    if midnight is None:
        return np.empty((0, 2))
    start_h = {name: (start - midnight) / pd.Timedelta(hours=1) for name, start in audit.started_at.items()}
    missing = audit.ledger[(audit.ledger["status"] != "done") & audit.ledger["onset_s"].notna()]
    onset = missing["recording"].map(start_h).to_numpy(dtype=float) + missing["onset_s"].to_numpy() / 3_600
    offset = onset + missing["duration_s"].fillna(0).to_numpy() / 3_600
    stretches: np.ndarray = np.stack([onset, offset], axis=1)
    return np.asarray(stretches[np.isfinite(onset)])
