"""The figures of an audit, for its page and for papers."""

from __future__ import annotations

from functools import partial

from faithad.report import audit_charts, event_views, maps, timeline
from faithad.report.audit_tables import AuditTables
from faithad.report.drawing import Drawing


def score_drawings(audit: AuditTables, line: timeline.TimeLine) -> dict[str, Drawing]:
    """The scores along the time, and how they are distributed."""
    threshold, has_ratio = audit.alarm.threshold, audit.alarm.pooling.has_ratio
    score = partial(timeline.score_figure, line, threshold, has_ratio=has_ratio)
    distribution = partial(audit_charts.distribution_figure, line.score, threshold, has_ratio=has_ratio)
    return {
        "score": Drawing("score", "Anomaly score over the time", score),
        "distribution": Drawing("distribution", "How many clips have which score", distribution),
    }


def audit_drawings(audit: AuditTables, line: timeline.TimeLine | None) -> list[Drawing]:
    """Every figure of the page, in its order; the panels of an event are one figure.

    Args:
        audit: the audit.
        line: its clips and events on the axis of time; None without a clip.
    """
    drawings = [] if line is None else list(score_drawings(audit, line).values())
    for number in audit.shown:
        curve, panels = event_views.curve_drawing(audit, number), event_views.event_panels(audit, number)
        drawings += [curve] if curve else []
        if panels:
            sheet = partial(maps.panel_sheet, panels)
            drawings.append(Drawing(f"event-{number + 1}-maps", f"Maps of event {number + 1}", sheet, legend=()))
    return drawings
