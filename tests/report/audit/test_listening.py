"""The score under the spectrogram of what one listens to."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from faithad.report.audit_tables import AuditTables
from faithad.report.listening import event_sounds

Step = tuple[float, float, float]


def _steps(path: str) -> tuple[list[Step], int]:
    """(left, right, height) of each level stretch of a path, and how often the path is broken."""
    parts = re.findall(r"([ML])([\d.]+) ([\d.]+) H([\d.]+)", path)
    return [(float(left), float(right), float(height)) for _, left, height, right in parts], path.count("M") - 1


def test_the_score_of_clips_where_a_model_has_no_windows(audit: AuditTables) -> None:
    number, sound = next(iter(audit.sounds.items()))
    score = event_sounds(audit)[number]["score"]
    steps, breaks = _steps(score["path"])
    strongest = audit.scores["score"][audit.scores["clip_id"].isin(audit.events[number]["clip_ids"])].max()
    assert not score["of_windows"]
    assert breaks == 0
    assert steps[0][0] == 0 and steps[-1][1] == 1000  # noqa: PT018
    assert score["highest"] == f"{strongest - audit.alarm.threshold:.3g} above"
    assert min(height for *_, height in steps) < float(score["threshold"])
    assert sound["duration_s"] < 20


@pytest.mark.parametrize("highest", [0.75, -0.25])
def test_the_score_of_each_quarter_of_a_second(audit: AuditTables, highest: float) -> None:
    """Two clips that alarm, each against its own threshold, and the clip before, which did not and has no windows."""
    number, sound = next(iter(audit.sounds.items()))
    clips = audit.scores.sort_values(["recording", "onset_s"]).reset_index(drop=True)
    here = clips["recording"] == sound["recording"]
    places = np.flatnonzero(here & (clips["onset_s"] >= 30))[:2]
    rng = np.random.default_rng(1)
    windows, thresholds = rng.normal(-2, 0.5, (2, 40)).clip(max=highest - 0.5), [1.5, -3.0]
    windows[1, 7] = highest
    clips["windows"] = None
    for place, values, threshold in zip(places, windows, thresholds, strict=True):
        clips.at[place, "windows"] = values + threshold
        clips.loc[place, "window_threshold"] = threshold
    from_s, length_s = float(clips["onset_s"][places[0]]) - 4, 20.0
    heard = replace(audit, scores=clips, sounds={number: sound | {"onset_s": from_s, "duration_s": length_s}})

    score = event_sounds(heard)[number]["score"]

    steps, breaks = _steps(score["path"])
    assert score["of_windows"]
    assert score["highest"] == f"{abs(highest)} {'above' if highest > 0 else 'below'}"
    low, high = min(windows.min(), 0), max(highest, 0)
    room = 0.15 * (high - low)
    expected = []
    for number_of_clip in range(2):
        for window in range(40):
            onset = 4 + 10 * number_of_clip + window / 4  # seconds of the sound
            height = 100 * (high + room - windows[number_of_clip, window]) / (high - low + 2 * room)
            if onset < length_s:
                expected.append((onset / length_s * 1000, (onset + 0.25) / length_s * 1000, height))
    np.testing.assert_allclose(steps, expected, atol=0.051)
    assert breaks == 0
    assert float(score["threshold"]) == pytest.approx(100 * (high + room) / (high - low + 2 * room), abs=0.051)
