"""The sound of an event, its spectrogram and its score, on one axis of time."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from faithad.audit.alarmed_clips import window_places
from faithad.report import maps
from faithad.report.audit_tables import AuditTables
from faithad.report.words import seconds

# Of the page's 25 MB; what is left has room for two days of scores and 50 events with all pictures.
MOST_SOUND_BYTES = 11_000_000
_WEBP_QUALITY = 60


def event_sounds(audit: AuditTables) -> dict[int, dict[str, Any]]:
    """What the page plays and draws, by the position of the event, for as many events as the page has room for."""
    views: dict[int, dict[str, Any]] = {}
    n_bytes = 0
    for number in audit.shown:
        sound = audit.sounds.get(number)
        if sound is None:
            continue
        n_bytes += len(sound["opus"] or b"") + len(sound.get("expected") or b"")
        if n_bytes > MOST_SOUND_BYTES:
            break
        views[number] = {"reason": sound["reason"]} if sound["opus"] is None else _view(audit, number, sound)
    return views


def _view(audit: AuditTables, number: int, sound: dict[str, Any]) -> dict[str, Any]:
    event, onset_s, duration_s = audit.events[number], sound["onset_s"], sound["duration_s"]
    levels = sound["log_mel"].reshape(sound["n_mels"], -1)
    limits = maps.color_limits(levels, "level")
    scale = maps.clip_scale(audit.setting, levels.shape[1], duration_s)
    ticks = scale.frequency_ticks(len(levels))
    places = zip(*ticks, strict=True) if ticks else ()
    spans = [
        (max(0.0, (part["onset_s"] - onset_s) / duration_s), min(1.0, (part["offset_s"] - onset_s) / duration_s))
        for part in event["seconds"]
        if part["recording"] == sound["recording"]
    ]
    return {
        "reason": None,
        "sound": _audio(sound["opus"]),
        "expected": _audio(sound["expected"]) if sound.get("expected") else None,
        "picture": _picture(levels, limits),
        "expected_picture": _picture(sound["expected_log_mel"].reshape(len(levels), -1), limits)
        if sound.get("expected")
        else None,
        "from_s": onset_s,
        "to_s": onset_s + duration_s,
        "words": f"{sound['recording']}, {seconds(onset_s).removesuffix(' s')} to {seconds(onset_s + duration_s)}",
        "gain_db": round(sound["gain_db"]),
        "spans": [(left, right - left) for left, right in spans if right > left],
        "bands": (
            event["mel_band_low"] / len(levels),
            (event["mel_band_high"] - event["mel_band_low"] + 1) / len(levels),
        ),
        "ticks": [((place + 0.5) / len(levels), f"{name} kHz") for place, name in places],
        "score": _score_steps(audit, sound, scale.frames_per_s),
    }


def _audio(opus: bytes) -> str:
    return f"data:audio/ogg;base64,{base64.b64encode(opus).decode('ascii')}"


def _picture(levels: np.ndarray, limits: tuple[float, float]) -> str:
    low, high = limits
    colors = mpl.colormaps[maps.COLOR_MAPS["level"]]((levels[::-1] - low) / (high - low), bytes=True)
    out = io.BytesIO()
    Image.fromarray(colors[..., :3]).save(out, format="webp", quality=_WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def _score_steps(audit: AuditTables, sound: dict[str, Any], frames_per_s: float) -> dict[str, Any] | None:
    """The score along the sound, as the path of an SVG of 1000 x 100, and the height of the threshold.

    The values are those of windows less their threshold, since each member of an ensemble has its own; only clips that
    alarmed have them. Without any (of a model that gives one score for a clip) they are the scores of clips.
    """
    scores, threshold = audit.scores, audit.alarm.threshold
    first_s, last_s = sound["onset_s"], sound["onset_s"] + sound["duration_s"]
    is_in_sound = (scores["recording"] == sound["recording"]) & (scores["onset_s"] < last_s)
    clips = scores[is_in_sound & (scores["onset_s"] + scores["duration_s"] > first_s)].sort_values("onset_s")
    windows = clips[clips["windows"].notna()]
    steps = [
        (*place, value - clip["window_threshold"])
        for clip in windows.to_dict("records")
        for place, value in zip(
            window_places(len(clip["windows"]), clip["onset_s"], clip["onset_s"] + clip["duration_s"], frames_per_s),
            clip["windows"],
            strict=True,
        )
        if place[1] > first_s and place[0] < last_s
    ]
    of_windows = bool(steps)
    if not steps and threshold is not None:
        values = clips[audit.alarm.pooling.column]
        steps = list(zip(clips["onset_s"], clips["onset_s"] + clips["duration_s"], values - threshold, strict=True))
    if not steps:
        return None
    heights = [value for _, _, value in steps]
    low, high = min(*heights, 0.0), max(*heights, 0.0)
    room = 0.15 * (high - low) or 1.0

    def height(value: float) -> str:
        return f"{100 * (high + room - value) / (high - low + 2 * room):.1f}"

    path, end_s = "", None
    for onset_s, offset_s, value in steps:
        left, right = (1000 * min(max((at - first_s) / (last_s - first_s), 0), 1) for at in (onset_s, offset_s))
        continues = end_s is not None and onset_s - end_s < 1e-3
        path += f"{'L' if continues else 'M'}{left:.1f} {height(value)} H{right:.1f}"
        end_s = offset_s
    return {
        "path": path,
        "threshold": height(0.0),
        "highest": f"{abs(max(heights)):.3g} {'above' if max(heights) >= 0 else 'below'}",
        "of_windows": of_windows,
    }
