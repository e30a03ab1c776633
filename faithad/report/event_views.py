"""One event as the page shows it: a row of words, and where it is shown at length its curve and pictures."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from faithad.report import audit_charts, audit_findings, findings, maps, style
from faithad.report.audit_tables import AuditTables, clips_around_the_strongest
from faithad.report.shards import Example, Row
from faithad.report.trust import Trust

# Of the stretches that an event's explanation points at, and of the recordings it spans, how many are named.
_MAX_SPANS, _MAX_PARTS = 4, 3
# From this share of the error on, the moments pointed at may be called the reason.
_MUCH = 0.25
_SPREAD = "so these are the right moments to look at, but most of the error is spread over the rest"


def describe(audit: AuditTables, number: int, trust: Trust) -> Row:
    """What the table says of an event; `number` counts from 0, `id` as a reader does."""
    event = audit.events[number]
    seconds = event["seconds"]
    spans = [_span(part) for part in seconds[:_MAX_SPANS]]
    if len(event["parts"]) > 1:  # seconds of a recording would have to name it, each of them
        spans = [_clock_span(part, audit.started_at) for part in seconds[:_MAX_SPANS]]
    return {
        "id": number + 1,
        "title": audit_findings.when(event),
        "when": audit_findings.clock(event),
        "duration": findings.duration(event["duration_s"]),
        "places": [{"recording": part["recording"], "span": _span(part)} for part in event["parts"][:_MAX_PARTS]],
        "more_places": max(0, len(event["parts"]) - _MAX_PARTS),
        "n_alarms": event["n_alarms"],
        "strength": audit_findings.strength(event),
        "times": f"{event['strength']:.2f} \N{MULTIPLICATION SIGN}"
        if audit_findings.has_ratio(event)
        else f"{event['score']:.4g}",
        "seconds": spans or [findings.UNKNOWN],
        "more_seconds": max(0, len(seconds) - _MAX_SPANS),
        "bands": audit_findings.hertz(event["low_hz"], event["high_hz"]),
        "method": style.method(event["method"]).title if event["method"] else None,
        "trust": trust,
        "sentence": _sentence(event, trust),
    }


def _span(part: Row) -> str:
    return f"{_plain(part['onset_s'])} to {_plain(part['offset_s'])} s"


def _clock_span(part: Row, started_at: dict[str, datetime]) -> str:
    """By the wall clock, or by the recording where that has none."""
    start = started_at.get(part["recording"])
    if start is None:
        return f"{part['recording']}, {_span(part)}"
    return " to ".join(f"{start + timedelta(seconds=part[end]):%H:%M:%S}" for end in ("onset_s", "offset_s"))


def _plain(seconds: float) -> str:
    return findings.seconds(seconds).removesuffix(" s")


def _sentence(event: Row, trust: Trust) -> str:
    """How far the explanation can be trusted, for someone who knows machines and not this method."""
    if trust.grade == "none":
        return "Not explained: the seconds and bands are those of the model's largest error, which nobody has tested."
    name = style.method(event["method"]).title
    if trust.vanishes is None:
        return f"{name} points at these seconds; whether they made the score high was not measured."
    text = f"Replace what {name} points at by what the model expects there, and "
    text += f"{audit_findings.percent(trust.vanishes)} of the model's error vanishes"
    if trust.replaced is None:
        return text + "."
    text += f". That is {audit_findings.percent(trust.replaced)} of the time"
    if trust.best is not None:
        text += f", and the best choice of as much time would take away {audit_findings.percent(trust.best)}"
    verdict = {
        "good": "so this is where the reason lies" if trust.vanishes >= _MUCH else _SPREAD,
        "partial": "so this is part of the reason",
        "spread": "so the error is even, and no single moments are the reason: listen to the whole event",
        "poor": "so any other moments would have done as well: do not rely on it",
    }
    return f"{text}; {verdict[trust.grade]}."


def pictures(audit: AuditTables, number: int) -> Row:
    """The event's curve as SVG, from where it is shown if not from its start, and its pictures."""
    event = audit.events[number]
    near = clips_around_the_strongest(event["clip_ids"], audit.score_of)
    explained = [clip_id for clip_id in near if clip_id in audit.curves and not audit.curves[clip_id].degenerate]
    found: Row = {"curve": None, "shown_from": None, "panels": _panels(audit, number)}
    if explained and event["method"]:
        clips = audit.clips.loc[explained]
        found["curve"] = _curve(audit, number, clips)
        if len(near) < len(event["clip_ids"]):
            first = clips.iloc[0]
            clock = None if pd.isna(first["recorded_at"]) else f"{first['recorded_at']:%Y-%m-%d %H:%M:%S}"
            found["shown_from"] = clock or f"{first['recording']}, {findings.seconds(first['onset_s'])}"
            found["n_shown"], found["n_clips"] = len(near), len(event["clip_ids"])
    return found


def _curve(audit: AuditTables, number: int, clips: pd.DataFrame) -> Any:
    """Clips side by side as they followed on, by the clock if it is known, else by their place in the recording."""
    event = audit.events[number]
    look = style.method(event["method"])
    starts, axis = clip_starts(clips)
    curves = [audit.curves[clip_id] for clip_id in clips.index]
    picture = audit_charts.EventPicture(
        clips=[(start, curve.values) for start, curve in zip(starts, curves, strict=True)],
        axis=axis,
        clip_s=float(clips["duration_s"].iloc[0]),
        seconds=seconds_on_axis(event["seconds"], clips, starts),
        profile=np.sum([curve.profile for curve in curves], axis=0),
        bands=(event["mel_band_low"], event["mel_band_high"]),
        color=look.color,
        signed=look.signed,
    )
    figure = audit_charts.event_figure(picture, clip_scale(audit, len(curves[0].values)))
    return style.to_svg(figure, name=f"event-{number}", label=f"Explanation of event {number + 1} over time")


def clip_starts(clips: pd.DataFrame) -> tuple[list[float], str]:
    """Onsets of the clips on the axis of time, and what that axis is called."""
    if clips["recording"].nunique() == 1:
        return [float(s) for s in clips["onset_s"]], "seconds of the recording"
    if clips["recorded_at"].notna().all():
        first = clips["recorded_at"].iloc[0]
        return [float(s) for s in (clips["recorded_at"] - first).dt.total_seconds()], f"seconds from {first:%H:%M:%S}"
    return [float(s) for s in clips["duration_s"].cumsum() - clips["duration_s"]], "seconds of the clips shown"


def seconds_on_axis(seconds: list[Row], clips: pd.DataFrame, starts: list[float]) -> list[tuple[float, float]]:
    """Where the seconds that the event names lie in what is drawn; a stretch over two clips comes in two parts."""
    found = []
    for start, (_, clip) in zip(starts, clips.iterrows(), strict=True):
        for part in seconds:
            onset = max(part["onset_s"], clip["onset_s"]) - clip["onset_s"]
            offset = min(part["offset_s"], clip["onset_s"] + clip["duration_s"]) - clip["onset_s"]
            if part["recording"] == clip["recording"] and offset > onset:
                found.append((start + onset, start + offset))
    return found


def clip_scale(audit: AuditTables, n_frames: int) -> maps.ClipScale:
    """The scale of the model's features; where they are not known, that of the clips' length, and bands by number."""
    rate, hop = audit.setting("features.sample_rate_hz"), audit.setting("features.hop_samples")
    if isinstance(rate, int | float) and isinstance(hop, int | float):
        return maps.ClipScale(rate / hop, in_seconds=True, sample_rate_hz=float(rate))
    return maps.ClipScale(n_frames / float(audit.manifest["duration_s"].median()), in_seconds=True, sample_rate_hz=None)


def _panels(audit: AuditTables, number: int) -> list[Row]:
    """What the model heard, what it expected, where both differ, and the explanation."""
    example = audit.pictures.get(number)
    if example is None:
        return []
    event, clip = audit.events[number], audit.clips.loc[example.clip_id]
    scale = clip_scale(audit, example.log_mel.shape[1])
    inside = seconds_on_axis(event["seconds"], audit.clips.loc[[example.clip_id]], [0.0])
    limits = maps.color_limits(example.log_mel, "level")
    panels: list[tuple[str, np.ndarray, np.ndarray, maps.Kind, tuple[float, float] | None, str]] = [
        ("Heard", example.log_mel, example.log_mel.mean(axis=0), "level", limits, style.INK),
        ("Expected", example.reconstruction, example.reconstruction.mean(axis=0), "level", limits, style.INK),
    ]
    for name in dict.fromkeys(["error_map", event["method"] or "error_map"]):
        if name in example.maps:
            look = style.method(name)
            kind: maps.Kind = "diverging" if look.signed else "sequential"
            title = "Difference (error map)" if name == "error_map" else look.title
            panels.append((title, example.maps[name], example.curves[name], kind, None, look.color))
    return [
        {
            "title": title,
            "note": _clip_note(example, clip) if index == 0 else "",
            "svg": style.to_svg(
                maps.clip_figure(grid, curve, scale=scale, kind=colors, limits=ends, intervals=inside, color=color),
                name=f"event-{number}-{index}",
                label=f"{title}, event {number + 1}",
            ),
        }
        for index, (title, grid, curve, colors, ends, color) in enumerate(panels)
    ]


def _clip_note(example: Example, clip: pd.Series) -> str:
    return f"clip at {findings.seconds(clip['onset_s'])}"
