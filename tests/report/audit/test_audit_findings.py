"""What the words and charts of an audit's page are made of."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from faithad.model.alarm import AlarmThreshold
from faithad.report import audit_findings, event_views, style, timeline
from faithad.report.audit_page import time_line
from faithad.report.audit_tables import MAX_CLIPS_OF_EVENT, AuditAlarm, AuditTables, clips_around_the_strongest
from faithad.report.changes import changes, level_steps
from faithad.report.reading import with_one_clock
from faithad.report.reviewed import review_figures, review_sentences
from faithad.report.trust import grade, trust_of
from faithad.report.words import hertz
from faithad.vocabulary import POOLINGS


def test_nothing_is_lost_between_pixels(audit: AuditTables) -> None:
    """Each clip lies within the drawn band, and the highest of every column is drawn."""
    line = time_line(audit)
    rng = np.random.default_rng(0)
    x, score = np.sort(rng.uniform(0, 48, 5_000)), rng.gamma(2.0, size=5_000)
    dense = timeline.TimeLine(
        line.midnight, x, score, line.events, line.event_scores, audit.ranked, np.array([[3.0, 3.2]])
    )
    axes = timeline.score_figure(dense, 2.0).axes[0]
    band = np.concatenate(
        [path.vertices for one in axes.collections if one.get_label() == "clips" for path in one.get_paths()]
    )
    assert band[:, 1].max() == score.max()
    assert band[:, 1].min() == score.min()
    svg = style.to_svg(timeline.score_figure(dense, 2.0), name="x", label="x")
    assert len(svg) < 200_000


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    values=st.lists(st.tuples(st.floats(0, 100), st.floats(-5, 5)), min_size=1, max_size=60),
    columns=st.integers(1, 40),
)
def test_columns_hold_all_values(values: list[tuple[float, float]], columns: int) -> None:
    x, y = (np.array(one) for one in zip(*sorted(values), strict=True))
    at, low, middle, high = timeline.by_column(x, y, columns)
    assert len(at) <= columns
    assert (np.diff(at) > 0).all()
    assert low.min() == y.min()
    assert high.max() == y.max()
    assert ((low <= middle) & (middle <= high)).all()


def test_pauses_are_not_drawn_over(audit: AuditTables) -> None:
    line = time_line(audit)
    x = np.r_[np.linspace(0, 2, 2_000), np.linspace(3, 5, 2_000), np.linspace(30, 31, 500)]
    apart = timeline.TimeLine(line.midnight, x, np.ones(4_500), np.empty(0), np.empty(0), [], np.empty((0, 2)))
    figure = timeline.score_figure(apart, None)
    assert len(figure.axes) == 2  # the night is cut out
    bands = [one for one in figure.axes[0].collections if one.get_label() == "clips"]
    assert len(bands) == 2  # the shorter pause is a hole


def test_what_was_not_heard_stands_on_the_clock(audit: AuditTables) -> None:
    unheard = time_line(audit).unheard
    # Clips 40 and 41 of a mill that starts at six o'clock; the rejected recording has no clock and is left out.
    np.testing.assert_allclose(unheard, [[6 + 400 / 3600, 6 + 410 / 3600], [6 + 410 / 3600, 6 + 420 / 3600]])


def test_seconds_lie_in_their_clips() -> None:
    clips = pd.DataFrame({"recording": ["a", "a", "b"], "onset_s": [50.0, 60.0, 0.0], "duration_s": [10.0] * 3})
    seconds = [
        {"recording": "a", "onset_s": 59.0, "offset_s": 61.0},
        {"recording": "b", "onset_s": 4.0, "offset_s": 5.0},
    ]
    found = event_views.seconds_on_axis(seconds, clips, [0.0, 10.0, 20.0])
    assert found == [(9.0, 10.0), (10.0, 11.0), (24.0, 25.0)]


def test_the_time_line_where_summer_time_ends() -> None:
    """Both recordings begin at 2 o'clock by their own clock, an hour apart."""
    two = pd.Timestamp("2024-10-27 02:00:00")
    clips = pd.DataFrame(
        {"clip_id": ["winter", "summer"], "recording": ["w", "s"], "onset_s": 0.0, "duration_s": 10.0,
         "recorded_at": [two, two], "utc_offset_s": [3600, 7200], "score": [2.0, 1.0]}
    )  # fmt: skip
    line = timeline.time_line(with_one_clock(clips), "score", strongest=["winter"])
    assert (line.clips.tolist(), line.score.tolist(), line.events.tolist()) == ([2.0, 3.0], [1.0, 2.0], [3.0])
    assert timeline.score_figure(line, None).axes[0].get_xlabel() == "2024-10-27 (UTC+02:00)"
    same = timeline.time_line(with_one_clock(clips.assign(utc_offset_s=3600)), "score")
    assert same.clips.tolist() == [2.0, 2.0]
    assert timeline.score_figure(same, None).axes[0].get_xlabel() == "2024-10-27"
    event = {"started_at": two, "utc_offset_s": -16200, "recording": "w", "onset_s": 0.0}
    assert audit_findings.when(event) == "2024-10-27 02:00:00 -04:30"


def test_events_over_recordings_follow_the_clock() -> None:
    start = pd.Timestamp("2019-12-05 06:00:50")
    clips = pd.DataFrame(
        {"recording": ["a", "b"], "onset_s": [50.0, 0.0], "duration_s": [10.0] * 2,
         "recorded_at": [start, start + timedelta(seconds=30)], "utc_offset_s": [None, None]}
    )  # fmt: skip
    assert event_views.clip_starts(with_one_clock(clips)) == ([0.0, 30.0], "seconds from 06:00:50")
    winter = with_one_clock(clips.assign(utc_offset_s=[7200, 3600]))
    assert event_views.clip_starts(winter) == ([0.0, 3630.0], "seconds from 06:00:50")
    assert event_views.clip_starts(with_one_clock(clips.assign(recorded_at=pd.NaT)))[0] == [0.0, 10.0]
    assert event_views.clip_starts(clips.head(1)) == ([50.0], "seconds of the recording")


@pytest.mark.parametrize(
    ("vanishes", "replaced", "best", "expected"),
    [
        (0.05, 0.05, 0.45, "poor"),
        (0.05, 0.05, 0.06, "poor"),
        (0.06, 0.05, 0.07, "spread"),
        (0.08, 0.05, 0.07, "good"),
        (0.075, 0.05, 0.08, "good"),
        (0.24, 0.05, 0.45, "partial"),
        (0.25, 0.05, 0.45, "good"),
        (0.50, 0.05, 0.45, "good"),
        (0.09, 0.05, None, "partial"),
        (0.10, 0.05, None, "good"),
        (None, 0.05, 0.45, "untested"),
        (0.30, None, None, "untested"),
        (-0.1, 0.05, 0.45, "poor"),
    ],
)
def test_grades(vanishes: float | None, replaced: float | None, best: float | None, expected: str) -> None:
    assert grade(vanishes, replaced, best) == expected


def test_overlapping_clips_count_once() -> None:
    clips = pd.DataFrame(
        {"recording": ["a", "a", "a", "b"], "onset_s": [0.0, 10.0, 15.0, 0.0], "duration_s": [10.0] * 4}
    )
    assert audit_findings.audited_hours(clips) == pytest.approx(35 / 3_600)


def test_expected_alarms_are_those_of_thresholds_that_are_fitted() -> None:
    """The mean and the range of 2,000 audits, each with a threshold fitted to 200 clips."""
    alarm = AuditAlarm(1.0, POOLINGS["mean"], "quantile", 0.05, 200)
    expected = audit_findings.expected_of(alarm, n_clips=1_000, hours=1_000 / 360)
    assert expected is not None
    assert expected.range is not None
    assert (expected.n, expected.per_hour) == (pytest.approx(1_000 * 11 / 201), pytest.approx(360 * 11 / 201))
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(2_000):
        threshold = np.quantile(rng.random(200), 0.95, method="inverted_cdf")
        counts.append((rng.random(1_000) > threshold).sum())
    assert np.mean(counts) == pytest.approx(expected.n, rel=0.02)
    assert np.quantile(counts, [0.025, 0.975]) == pytest.approx(expected.range, rel=0.1)


def test_expected_alarms_of_few_clips() -> None:
    few = AuditAlarm(1.0, POOLINGS["mean"], "quantile", 0.05, 12)
    expected = audit_findings.expected_of(few, n_clips=240, hours=240 / 360)
    assert expected is not None
    assert expected.n == pytest.approx(240 / 13)
    assert expected.range is not None
    assert expected.range[0] == 0
    assert expected.range[1] == pytest.approx(240 * (1 - 0.025 ** (1 / 12)), abs=4)  # the upper end of the true rate
    fit = audit_findings.expected_of(replace(few, rule="gamma"), n_clips=240, hours=240 / 360)
    assert fit is not None
    assert fit.range is None  # the rule promises nothing that has a distribution
    unknown = audit_findings.expected_of(replace(few, n_validation=None), n_clips=240, hours=240 / 360)
    assert unknown is not None
    assert unknown.range is None


def with_alarm(audit: AuditTables, **changes: Any) -> AuditTables:
    """The audit by a model whose card says more of its alarm."""
    card = audit.model["alarm"] | changes
    return replace(audit, alarm=replace(audit.alarm, fitted=AlarmThreshold.from_json(card)))


def sentence(audit: AuditTables, words: str) -> str:
    said = audit_findings.answers(audit, []) + audit_findings.remarks(audit)
    (found,) = [answer for answer in said if words in answer]
    return found


def test_chance_is_weighed_by_strength(audit: AuditTables) -> None:
    """The same 15 alarms: no more than chance by their number, and by their strength if normal clips reach as far."""
    scores = audit.scores[audit.alarm.pooling.column]
    threshold = audit.alarm.threshold
    assert threshold is not None
    assert "15 alarms, by their number: no more than chance can bring." in sentence(audit, "There are 15 alarms")
    highest = np.sort(scores)[-45:]
    as_here = {"start": highest[0], "scale": (highest[1:] - highest[0]).mean(), "n_above": 26}
    weak = sentence(with_alarm(audit, tail=as_here), "There are 15 alarms")
    assert "by their number and strength (p 0." in weak
    assert weak.endswith("no more than chance can bring. A weak event by itself says little; begin with the strongest.")
    strong = sentence(with_alarm(audit, tail=as_here | {"scale": as_here["scale"] / 9}), "There are 15 alarms")
    assert "by their number and strength (p below 0.0001): more than chance would bring." in strong


def test_whether_reasons_are_trusted_by_the_rule_is_said(audit: AuditTables) -> None:
    trust = trust_of(audit.events, audit.judged)
    assert not any("more faithful than random moments" in said for said in audit_findings.answers(audit, trust))
    known = [event | {"trusted": "undecided: 4 recordings, 20 are needed", "normalized": 0.4} for event in audit.events]
    (said,) = [said for said in audit_findings.answers(replace(audit, events=known), trust) if "random moments" in said]
    assert said.endswith(
        " Is Saliency more faithful than random moments, over all explained clips? Undecided (4 recordings, 20 are "
        "needed); a typical reason goes 0.40 of the way to the best moments."
    )
    row = event_views.describe(replace(audit, events=known), audit.ranked[0], trust[audit.ranked[0]])
    assert row["sentence"].endswith(" (0.40 of the way from random moments to the best).")


def test_what_few_normal_clips_promise_instead_is_said(audit: AuditTables) -> None:
    assert not any("were asked for" in answer for answer in audit_findings.remarks(audit))
    few = with_alarm(audit, rule="conformal", false_alarm_rate=1 / 13, n_validation=12, asked_per_hour=2.0)
    assert sentence(few, "were asked for") == (
        "False alarms: 2 an hour were asked for, which needs 179 normal clips; 12 clips can promise no fewer than 27.7."
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (250.2, 900.4, "250 to 900 Hz"),
        (49.1, 2_096.0, "49 Hz to 2.1 kHz"),
        (999.6, 2_096.0, "1.0 to 2.1 kHz"),
        (810.0, 999.6, "810 Hz to 1.0 kHz"),
        (1_640.0, 3_060.0, "1.6 to 3.1 kHz"),
    ],
)
def test_frequencies(low: float, high: float, words: str) -> None:
    assert hertz(low, high) == words


def test_the_strongest_clip_is_among_those_shown() -> None:
    ids = [f"c{index}" for index in range(100)]
    for peak in (0, 1, 50, 98, 99):
        near = clips_around_the_strongest(ids, {f"c{peak}": 9.0})
        assert len(near) == MAX_CLIPS_OF_EVENT
        assert f"c{peak}" in near
    assert clips_around_the_strongest(ids[:3], {}) == ids[:3]


def test_how_short_clips_are_judged_is_said(audit: AuditTables) -> None:
    """Models of earlier releases judge them by the threshold of whole clips."""
    assert not any("shorter than" in answer for answer in audit_findings.remarks(audit))
    alarmed = audit.scores.index[audit.scores["alarm"] == True]  # noqa: E712
    for n, words in [(1, "1 alarm is of a clip shorter than 10 s"), (2, "2 alarms are of clips shorter than 10 s")]:
        scores = audit.scores.copy()
        scores.loc[alarmed[:n], "duration_s"] = 3.5
        short = replace(audit, scores=scores)
        assert "the threshold of whole clips is used" in sentence(short, words)
        answer = sentence(with_alarm(short, by_length=[[1.0, 9.0]]), "shorter than 10 s")
        assert "judged by thresholds of clips as short" in answer
        assert answer.endswith(": 1 alarm." if n == 1 else ": 2 alarms.")


def decided(audit: AuditTables, *verdicts: str | None) -> AuditTables:
    """The audit with decisions about its first events."""
    ids = [event["event_id"] for event in audit.events]
    decisions = {key: {"verdict": verdict} for key, verdict in zip(ids, verdicts, strict=False) if verdict}
    return replace(audit, decisions=decisions)


def test_a_review_gives_precision_and_false_alarms(audit: AuditTables) -> None:
    assert review_figures(audit) is None
    n_events, hours = len(audit.events), audit_findings.audited_hours(audit.scores)
    assert n_events > 4
    figures = review_figures(decided(audit, "confirm", "reject", "reject", "unsure"))
    assert figures is not None
    assert figures[:4] == (1, 2, 1, n_events - 4)
    assert figures.precision == pytest.approx(1 / 3)
    # The limits of Clopper and Pearson are quantiles of two beta distributions.
    np.testing.assert_allclose(figures.precision_range, (stats.beta.ppf(0.025, 1, 3), stats.beta.ppf(0.975, 2, 2)))
    n_clips = [len(event["clip_ids"]) for event in audit.events]
    assert figures.n_false == n_clips[1] + n_clips[2]
    assert figures.n_perhaps == sum(n_clips[3:])
    assert figures.hours == pytest.approx(hours * (1 - n_clips[0] / len(audit.scores)))
    assert figures.promised == audit_findings.expected_of(
        audit.alarm, n_clips=len(audit.scores) - n_clips[0], hours=figures.hours
    )


def test_a_review_says_whether_the_promise_was_kept(audit: AuditTables) -> None:
    def promise(expected_rate: float, *verdicts: str | None) -> str:
        alarm = replace(audit.alarm, rule="quantile", false_alarm_rate=expected_rate, n_validation=10_000)
        return review_sentences(replace(decided(audit, *verdicts), alarm=alarm))[-1]

    all_false, all_true = ["reject"] * len(audit.events), ["confirm"] * len(audit.events)
    assert "That is more than promised: fit the alarm to this sound" in promise(1e-4, *all_false)
    assert "That is fewer than promised." in promise(0.2, *all_true)
    assert "That keeps the promise." in promise(len(audit.events) / len(audit.scores), *all_false)
    assert "depends on the events that are not decided" in promise(len(audit.events) / len(audit.scores), "confirm")
    assert review_sentences(audit) == []
    words = review_sentences(decided(audit, "unsure"))
    assert len(words) == 1, "no precision without a confirmed or rejected event"
    todo = audit_findings.todo(decided(audit, *all_true[:-1]))
    assert [task.events for task in todo if "Listen" in task.words] == [[len(audit.events) - 1]]
    assert audit_findings.todo(decided(audit, *all_true))[0].words == "Every event is decided"


@given(st.lists(st.floats(-80, -20), max_size=30))
def test_a_level_that_stays_is_no_step(levels: list[float]) -> None:
    assert level_steps(np.array([])) == []
    assert level_steps(np.full(len(levels), -40.0)) == []
    for place, step_db in level_steps(np.array(levels)):
        assert 3 <= place <= len(levels) - 3
        assert abs(step_db) >= 6


def test_steps_of_the_level() -> None:
    rng = np.random.default_rng(3)
    levels = np.r_[np.full(40, -50.0), np.full(30, -41.0), np.full(4, -55.0)] + rng.normal(0, 0.5, 74)
    levels[[10, 11]] += 20  # events, or voices
    (up, louder), (down, quieter) = level_steps(levels)
    assert (up, down) == (40, 70)
    assert louder == pytest.approx(9, abs=1)
    assert quieter == pytest.approx(-14, abs=1)
    assert level_steps(rng.normal(-50, 10, 8)) == [], "levels that vary as much say nothing"


def test_new_recorders_and_levels_are_marked_where_they_change(audit: AuditTables) -> None:
    line = time_line(audit)
    clips, names = audit.clips.reset_index(), list(dict.fromkeys(audit.scores["recording"]))
    (step,) = changes(clips, audit.health, line)
    start = clips[clips["recording"] == names[len(names) // 2]]["on_one_clock"].min()
    assert step.when == f"{start:%Y-%m-%d %H:%M}"
    assert line.midnight is not None
    assert step.at_h == (start - line.midnight) / pd.Timedelta(hours=1)
    assert step.words == "8 dB louder from here on: MPD"
    later = clips["on_one_clock"] >= start
    two = clips.assign(recorder=np.where(later, "b", "a"))
    assert [change.words for change in changes(two, audit.health, line)] == ["first recording of b"]
    assert changes(two, audit.health, line._replace(midnight=None)) == []
