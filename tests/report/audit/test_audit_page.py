"""The page of an audit, read back as a browser would."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from faithad import parquet, schemas, storage
from faithad.errors import StudyError
from faithad.report.audit_page import render_audit_report, time_line
from faithad.report.audit_tables import MAX_CLIPS_OF_EVENT, AuditTables, read_audit
from faithad.report.trust import trust_of
from faithad.vocabulary import POOLINGS

pytestmark = pytest.mark.long

WriteAudit = Callable[..., str]
Render = Callable[..., tuple[str, Any]]

NASTY = "<script>alert(\"x\")<script> & 'board' {{ 7 * 7 }} $x_1$"


@pytest.fixture(scope="module")
def rendered(out: str, render: Render) -> tuple[str, Any]:
    return render(out, render_audit_report)


def test_is_whole_and_needs_nothing_else(rendered: tuple[str, Any]) -> None:
    html, page = rendered
    page.check_is_whole(html)


def test_same_tables_same_bytes(out: str, rendered: tuple[str, Any], render: Render) -> None:
    assert render(out, render_audit_report)[0] == rendered[0]


def test_first_screen(rendered: tuple[str, Any], audit: AuditTables) -> None:
    text = rendered[1].text[: rendered[1].text.index("An event is a stretch of sound")]
    n_alarms = sum(event["n_alarms"] for event in audit.events)
    top = max(audit.events, key=lambda event: event["score"])
    assert f"{len(audit.events)} events ({n_alarms} alarmed clips) in 119.7 min of audited sound" in text
    assert f"The strongest: {top['started_at']:%Y-%m-%d %H:%M:%S}, {top['duration_s']:g} s, " in text
    assert f"{top['strength']:.2f} times the threshold" in text
    # 718 clips, above the 429th of 433 scores: 5 of 434 are expected, by the beta-binomial distribution 1 to 19.
    assert "1.15 % of normal clips alarm as well. If all of this sound were normal, about 8 false alarms would " in text
    assert "be expected; in 95 of 100 cases 1 to 19. The range is wide, as no more than 433 " in text
    assert n_alarms == 15
    assert f"There are {n_alarms} alarms, by their number: no more than chance can bring." in text
    assert "Saliency says why for" in text
    assert re.search(r"By this test the reasons are good for \d+, no better than chance for \d+\.", text)
    assert "718 of 720 clips audited, 2 failed, 0 skipped; 1 piece of recordings" in text
    assert "Sound that was not heard: 20 s and 1 recording of unknown length." in text
    assert "2019-12-05" in text
    assert "MAE, seed 0" in text


def test_every_event_has_its_row(rendered: tuple[str, Any], audit: AuditTables) -> None:
    text = rendered[1].text
    table = text[text.index("Error that vanishes") : text.index("How far the reason can be trusted")]
    for event in audit.events:
        assert f"{event['started_at']:%Y-%m-%d %H:%M:%S}" in table
        assert event["recording"] in table
    stuck = max(audit.events, key=lambda event: event["score"])
    first = stuck["seconds"][0]
    assert f"{first['onset_s']:g} to {first['offset_s']:g} s" in table
    assert "1.6 to 3.1 kHz" in table
    assert "38 % of at most 45 % " in table
    assert "no better than chance" in table


def test_events_are_told_at_length_by_strength(rendered: tuple[str, Any], audit: AuditTables) -> None:
    html, page = rendered
    ids = [value for value in page.values("id") if value.startswith("event-") and value.count("-") == 1]
    order = sorted(range(len(audit.events)), key=lambda number: -audit.events[number]["score"])
    assert ids == [f"event-{number + 1}" for number in order]
    assert "Replace what Saliency points at by what the model expects there, and 38 % of the model's error" in page.text
    assert "the best choice of as much time would take away 45 %; so this is where the reason lies" in page.text
    assert "any other moments would have done as well: do not rely on it" in page.text
    assert "Shaded in red is each whole second that holds a peak" in page.text
    assert "An empty stretch of the curve" in page.text
    # Three pictured clips, each heard, expected, error map and explanation.
    pictured = {number for number in order if audit.pictures.get(number)}
    assert html.count("data:image/png;base64,") == 4 * len(pictured) > 0
    # Every event has its sound and its spectrogram, also those without a map; some have both as the model expects them.
    n_expected = html.count('data-sound="data:audio/ogg;base64,')
    assert html.count("data:audio/ogg;base64,") == html.count("data:image/webp;base64,") == len(order) + n_expected
    assert n_expected == 3


def test_failures_and_settings_are_told(rendered: tuple[str, Any]) -> None:
    text = rendered[1].text
    assert "3 samples are not finite numbers: MPD" in text
    assert "not a WAV file: MPD" in text
    assert "In hours of sound: 1.99 done, 0.00 skipped, 0.01 failed." in text
    assert "by the empirical quantile, so that 1.15 % of normal clips alarm" in text
    assert "433 normal clips" in text
    assert "explain: alarms" in text


def test_everything_from_files_is_escaped(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    html, page = render(write_audit(tmp_path, hours=0.5, boards=1, recording=NASTY), render_audit_report)
    page.check_is_whole(html)
    assert html.count("<script") == len(page.scripts) == 3  # the data, the library, the glue
    assert NASTY not in "".join(page.scripts)
    assert page.text.count(f"{NASTY}_19-12-05_") > 2
    assert f"not a WAV file: {NASTY}" in page.text
    assert f"Audit of {NASTY}" in page.text


def test_no_alarm_is_said_plainly(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    out = write_audit(tmp_path, hours=0.5, boards=0, rate=0.0)
    html, page = render(out, render_audit_report)
    page.check_is_whole(html)
    assert "No alarms: no event in 29.7 min of audited sound. The highest score is" in page.text
    assert "Alarm threshold" in page.text
    assert "How many clips have which score" in html
    assert not {"#events", "#reasons"} & set(page.values("href"))


def test_without_explanations(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    html, page = render(write_audit(tmp_path, hours=0.5, boards=2, explain="none"), render_audit_report)
    page.check_is_whole(html)
    assert "No event was explained: the seconds and bands given are those of the largest error" in page.text
    assert "not explained" in page.text
    assert "largest error" in page.text
    assert "Explanation of event" not in html


def test_without_the_error_map(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    out = write_audit(tmp_path, hours=0.5, boards=2, methods=("saliency",))
    html, page = render(out, render_audit_report)
    page.check_is_whole(html)
    assert "at most" not in page.text[: page.text.index("Score along")]
    assert {one.grade for one in trust_of(read_audit(out).events, read_audit(out).judged)} <= {"good", "poor"}


def test_without_a_wall_clock(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    out = write_audit(tmp_path, hours=0.5, boards=2, timed=False)
    html, page = render(out, render_audit_report)
    page.check_is_whole(html)
    assert "Score along the recordings" in page.text
    assert "The time of recording is not known for every clip" in page.text
    for event in read_audit(out).events:
        assert f"{event['recording']} at {event['onset_s']:g} s" in page.text
    assert "NaT" not in html


def test_without_the_model_and_its_alarm(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    """The report needs no model; what only its file knows is left out: rule, rate, frequencies of the pictures."""
    html, page = render(write_audit(tmp_path, hours=0.5, boards=2, with_model=False), render_audit_report)
    page.check_is_whole(html)
    assert "of normal clips alarm" not in page.text
    assert "is above" in page.text
    assert "how much, by mel band" in page.text


def test_the_alarm_of_the_run_comes_first(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    own = {"rule": "gamma", "pooling": "mean", "false_alarm_rate": 0.02}
    text = render(write_audit(tmp_path, hours=0.5, boards=2, own_alarm=own), render_audit_report)[1].text
    assert "At this threshold 2 % of normal clips alarm as well. If all of this sound were normal" in text
    assert "by chance 7.2" in text
    assert "an hour in all expected if all were normal 7.2 4 found" in text  # a rank alone promises a range
    assert "by a gamma distribution fitted to them" in text
    assert "433 normal clips" in text  # both were fitted to the same ones


def test_the_score_that_alarms_is_drawn(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    out = write_audit(tmp_path, hours=0.5, boards=2, pooling="worst_second")
    audit = read_audit(out)
    assert audit.alarm.pooling.column == "worst_second_score"
    line = time_line(audit)
    np.testing.assert_allclose(line.event_scores, [event["score"] for event in audit.events])
    assert "taken over the worst second" in render(out, render_audit_report)[1].text


def test_without_a_threshold(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    out = write_audit(tmp_path, hours=0.5, boards=2, with_alarm=False)
    html, page = render(out, render_audit_report)
    page.check_is_whole(html)
    assert "there is no alarm threshold, neither in this run nor in the model" in page.text
    assert "There is no alarm threshold." in page.text


def test_nothing_could_be_audited(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    out = write_audit(tmp_path, hours=0.5, boards=0, rate=0.0)
    for name in ("scores", "faithfulness", "attributions"):
        storage.delete(storage.join(out, name))
    ledger = parquet.read_table(storage.join(out, "ledger.parquet")).to_pylist()
    rows = [row | {"status": "failed", "reason": "no samples"} for row in ledger]
    location = storage.join(out, "ledger.parquet")
    parquet.write_table(pa.Table.from_pylist(rows, schema=schemas.LEDGER), location, schema=schemas.LEDGER)
    html, page = render(out, render_audit_report)
    page.check_is_whole(html)
    assert "0 of 180 clips audited, 180 failed" in page.text
    assert "No clip has a score." in page.text


def test_scores_that_may_be_negative(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    """As those of a one-class SVM: a threshold at or below 0 has no ratio, and no logarithm."""
    out = write_audit(tmp_path, hours=0.5, boards=2, explain="none", shift=-40.0)
    html, page = render(out, render_audit_report)
    page.check_is_whole(html)
    assert "times the threshold" not in page.text
    assert "Strength is the highest score." in page.text
    assert "nan" not in page.text.lower()


def test_one_long_event_is_shown_around_its_peak(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    """A microphone that changed: nearly everything alarms, and reading stays bounded."""
    out = write_audit(tmp_path, hours=1.0, boards=1, rate=0.97, n_failed=0)
    audit = read_audit(out)
    assert len(audit.curves) <= len(audit.events) * MAX_CLIPS_OF_EVENT < 358
    html, page = render(out, render_audit_report)
    page.check_is_whole(html)
    assert f"Shown are {MAX_CLIPS_OF_EVENT} of " in page.text


def test_many_events_are_cut(write_audit: WriteAudit, tmp_path: Path, monkeypatch: Any, render: Render) -> None:
    monkeypatch.setattr("faithad.report.audit_page.MAX_ROWS", 6)
    monkeypatch.setattr("faithad.report.audit_tables.MAX_EVENTS", 2)
    out = write_audit(tmp_path, hours=1.0, boards=8)
    n_events = len(read_audit(out).events)
    html, page = render(out, render_audit_report)
    page.check_is_whole(html)  # also the links of the first screen, to rows and to longer words
    assert f"The 6 strongest, in the order of time; {n_events - 6} more event" in page.text
    assert f"The 2 strongest of {n_events} events" in page.text


@pytest.mark.parametrize("gone", ["audit.yaml", "manifest.parquet", "ledger.parquet", "events.parquet"])
def test_an_unfinished_audit_is_refused(write_audit: WriteAudit, tmp_path: Path, gone: str) -> None:
    out = write_audit(tmp_path, hours=0.2, boards=0, n_pictures=0)
    storage.delete(storage.join(out, gone))
    with pytest.raises(StudyError, match="faithad audit"):
        render_audit_report(out)
    assert not storage.exists(storage.join(out, "report.html"))


def test_two_days_are_quick_and_small(write_audit: WriteAudit, tmp_path: Path, render: Render) -> None:
    """17,280 clips in shards, of the real shape, and more than 200 events, of which as many have their sound."""
    out = write_audit(tmp_path, hours=48.0, boards=220, shape=(80, 401), n_pictures=20, sound_s=14.0, with_points=False)
    started = time.monotonic()
    html, page = render(out, render_audit_report)
    assert time.monotonic() - started < 60  # with room for a loaded machine
    page.check_is_whole(html)
    assert len(html) < 25_000_000
    assert "This page holds the sound of 200 events" in page.text
    assert "17,278 of 17,280 clips audited" in page.text


def test_an_audit_knows_its_model_when_that_is_gone(write_audit: WriteAudit, tmp_path: Path) -> None:
    own = {"rule": "gamma", "pooling": "mean", "false_alarm_rate": 0.02}
    write_audit(tmp_path, hours=0.5, boards=1, with_model=False, own_alarm=own)
    alarm = read_audit(str(tmp_path)).alarm
    assert (alarm.rule, alarm.pooling, alarm.false_alarm_rate) == ("gamma", POOLINGS["mean"], 0.02)
    raised = own | {"threshold": 20.0, "n_validation": 77}
    (tmp_path / "model.json").write_text(json.dumps({"name": "mae", "seed": 3, "alarm": raised}))
    audit = read_audit(str(tmp_path))
    assert (audit.model["seed"], audit.alarm.n_validation) == (3, raised["n_validation"])
    assert audit.alarm == replace(alarm, n_validation=77)
