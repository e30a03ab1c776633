"""One event as the page shows it: a row of words, and where it is shown at length its curve and pictures."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from faithad.report import audit_charts, audit_findings, maps, style
from faithad.report.audit_tables import AuditTables, Curve, EventRow, clips_around_the_strongest
from faithad.report.drawing import Drawing
from faithad.report.trust import Trust
from faithad.report.words import UNKNOWN, hertz, percent, seconds

# Of the stretches that an event's explanation points at, and of the recordings it spans, how many are named.
_MAX_SPANS, _MAX_PARTS = 4, 3
# From this share of the error on, the moments pointed at may be called the reason.
_MUCH = 0.25
_SPREAD = "so these are the right moments to look at, but most of the error is spread over the rest"


def describe(audit: AuditTables, number: int, trust: Trust) -> dict[str, Any]:
    """What the table says of an event; `number` counts from 0, the page's `id` from 1."""
    event = audit.events[number]
    stretches = event["seconds"][:_MAX_SPANS]
    spans = [_span(part) for part in stretches]
    if len(event["parts"]) > 1:  # seconds of a recording would need its name, each of them
        spans = [_clock_span(part, audit.started_at) for part in stretches]
    ratio = f"{event['strength']:.2f} \N{MULTIPLICATION SIGN}" if audit_findings.has_ratio(event) else None
    return {
        "id": number + 1,
        "title": audit_findings.when(event),
        "when": audit_findings.clock(event),
        "duration": audit_findings.length(event),
        "places": [{"recording": part["recording"], "span": _span(part)} for part in event["parts"][:_MAX_PARTS]],
        "more_places": max(0, len(event["parts"]) - _MAX_PARTS),
        "n_alarms": event["n_alarms"],
        "level": audit_findings.level(event, audit.alarm.threshold),
        "strength": audit_findings.strength(event),
        "times": ratio or f"{event['score']:.4g}",
        "seconds": spans or [UNKNOWN],
        "more_seconds": max(0, len(event["seconds"]) - _MAX_SPANS),
        "raised_by": style.model(event["raised_by"]).title if event["raised_by"] else None,
        "bands": hertz(event["low_hz"], event["high_hz"]),
        "method": style.method(event["method"]).title if event["method"] else None,
        "trust": trust,
        "sentence": _sentence(event, trust),
    }


def _span(part: dict[str, Any]) -> str:
    return f"{seconds(part['onset_s']).removesuffix(' s')} to {seconds(part['offset_s'])}"


def _clock_span(part: dict[str, Any], started_at: dict[str, datetime]) -> str:
    """When a part of an event was, by the wall clock, or by the recording where it has no clock."""
    start = started_at.get(part["recording"])
    if start is None:
        return f"{part['recording']}, {_span(part)}"
    return " to ".join(f"{start + timedelta(seconds=part[end]):%H:%M:%S}" for end in ("onset_s", "offset_s"))


def _sentence(event: EventRow, trust: Trust) -> str:
    """How far the explanation can be trusted, for someone who knows machines and not this method."""
    if trust.grade == "none":
        return "Not explained: the seconds and bands are those of the model's largest error, which nobody has tested."
    name = style.method(event["method"]).title
    if trust.vanishes is None:
        return f"{name} points at these seconds; whether they made the score high was not measured."
    text = f"Replace what {name} points at by what the model expects there, and "
    text += f"{percent(trust.vanishes)} of the model's error vanishes"
    if trust.replaced is None:
        return text + "."
    text += f". That is {percent(trust.replaced)} of the time"
    if trust.best is not None:
        text += f", and the best choice of as much time would take away {percent(trust.best)}"
    verdict = {
        "good": "so this is where the reason lies" if trust.vanishes >= _MUCH else _SPREAD,
        "partial": "so this is part of the reason",
        "spread": "so the error is even, and no single moments are the reason: listen to the whole event",
        "poor": "so any other moments would have done as well: do not rely on it",
    }
    text = f"{text}; {verdict[trust.grade]}"
    if event["normalized"] is not None:
        text += f" ({event['normalized']:.2f} of the way from random moments to the best)"
    return text + "."


def pictures(audit: AuditTables, number: int) -> dict[str, Any]:
    """The event's curve as SVG, which of its clips the curve shows where these are not all, and its pictures.

    `curve_span` and `panel_span` are where curve and pictures begin and end, in seconds of the recording; None where
    the curve runs over several.
    """
    event, curves, drawing = audit.events[number], _curves(audit, number), curve_drawing(audit, number)
    panels = maps.panel_views(event_panels(audit, number), name=f"event-{number}", subject=f"event {number + 1}")
    view: dict[str, Any] = {"curve": None, "shown_from": None, "curve_span": None}
    view |= {"panels": panels, "panel_span": _panel_span(audit, number)}
    if drawing is None:
        return view
    view["curve"] = drawing.svg()
    clips = audit.clips.loc[list(curves)]
    if clips["recording"].nunique() == 1:
        view["curve_span"] = (clips["onset_s"].min(), (clips["onset_s"] + clips["duration_s"]).max())
    n_near = len(clips_around_the_strongest(event["clip_ids"], audit.score_of))
    if n_near < len(event["clip_ids"]):
        first = audit.clips.loc[next(iter(curves))]
        clock = None if pd.isna(first["recorded_at"]) else f"{first['recorded_at']:%Y-%m-%d %H:%M:%S}"
        view["shown_from"] = clock or f"{first['recording']}, {seconds(first['onset_s'])}"
        view |= {"n_shown": n_near, "n_clips": len(event["clip_ids"])}
    return view


def _curves(audit: AuditTables, number: int) -> dict[str, Curve]:
    """The curves that are not flat, of the clips around the strongest one."""
    near = clips_around_the_strongest(audit.events[number]["clip_ids"], audit.score_of)
    return {id_: audit.curves[id_] for id_ in near if id_ in audit.curves and not audit.curves[id_].degenerate}


def curve_drawing(audit: AuditTables, number: int) -> Drawing | None:
    """The explanation of the event, its clips side by side in the order of their time; None where there is none."""
    event, curves = audit.events[number], _curves(audit, number)
    if not curves or not event["method"]:
        return None
    clips = audit.clips.loc[list(curves)]
    lengths_s = clips["duration_s"].tolist()
    starts, axis = clip_starts(clips)
    draw = partial(
        audit_charts.event_figure,
        [
            (start, length_s, curve.values)
            for start, length_s, curve in zip(starts, lengths_s, curves.values(), strict=True)
        ],
        axis=axis,
        seconds=seconds_on_axis(event["seconds"], clips, starts),
        profile=np.sum([curve.profile for curve in curves.values()], axis=0),
        bands=(event["mel_band_low"], event["mel_band_high"]),
        look=style.method(event["method"]),
        scale=maps.clip_scale(audit.setting, len(next(iter(curves.values())).values), lengths_s[0]),
    )
    return Drawing(f"event-{number + 1}-explanation", f"Explanation of event {number + 1} over time", draw)


def clip_starts(clips: pd.DataFrame) -> tuple[list[float], str]:
    """Onsets of the clips on the axis of time, and what that axis is called."""
    if clips["recording"].nunique() == 1:
        return [float(s) for s in clips["onset_s"]], "seconds of the recording"
    if clips["on_one_clock"].notna().all():
        onsets = (clips["on_one_clock"] - clips["on_one_clock"].iloc[0]).dt.total_seconds()
        return [float(s) for s in onsets], f"seconds from {clips['recorded_at'].iloc[0]:%H:%M:%S}"
    return [float(s) for s in clips["duration_s"].cumsum() - clips["duration_s"]], "seconds of the clips shown"


def seconds_on_axis(
    stretches: list[dict[str, Any]], clips: pd.DataFrame, starts: list[float]
) -> list[tuple[float, float]]:
    """Where stretches of recordings lie on the axis of clips; a stretch over two clips comes in two parts."""
    parts = []
    for start, (_, clip) in zip(starts, clips.iterrows(), strict=True):
        for stretch in stretches:
            onset = max(stretch["onset_s"], clip["onset_s"]) - clip["onset_s"]
            offset = min(stretch["offset_s"], clip["onset_s"] + clip["duration_s"]) - clip["onset_s"]
            if stretch["recording"] == clip["recording"] and offset > onset:
                parts.append((start + onset, start + offset))
    return parts


def _panel_span(audit: AuditTables, number: int) -> tuple[float, float] | None:
    example = audit.pictures.get(number)
    if example is None:
        return None
    onset_s, duration_s = audit.clips.loc[example.clip_id, ["onset_s", "duration_s"]]
    return float(onset_s), float(onset_s + duration_s)


def event_panels(audit: AuditTables, number: int) -> list[maps.Panel]:
    """What the model heard, what it expected, where both differ, and the explanation."""
    example = audit.pictures.get(number)
    if example is None:
        return []
    event, clip = audit.events[number], audit.clips.loc[[example.clip_id]]
    panels = maps.clip_panels(
        example,
        maps.clip_scale(audit.setting, example.log_mel.shape[1], float(clip["duration_s"].iloc[0])),
        methods=[method for method in dict.fromkeys(["error_map", event["method"]]) if method in example.maps],
        intervals=seconds_on_axis(event["seconds"], clip, [0.0]),
        percentiles={},
        words=("Heard", "Expected"),
    )
    difference = style.method("error_map").title
    titles = {difference: f"Difference ({difference.lower()})"}
    panels = [panel._replace(title=titles.get(panel.title, panel.title), note="") for panel in panels]
    return [panels[0]._replace(note=f"clip at {seconds(clip['onset_s'].iloc[0])}"), *panels[1:]]
