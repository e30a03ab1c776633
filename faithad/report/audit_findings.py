"""The results of an audit in a few plain sentences and small numbers: the part of its page that one reads first."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from faithad.report import style
from faithad.report.audit_tables import Alarm, AuditTables, EventRow
from faithad.report.health import health_view
from faithad.report.ledger import ledger_view
from faithad.report.trust import Trust
from faithad.report.words import offset_words, percent, seconds
from faithad.vocabulary import count, duration, listed

_SHORT_S = 10.0


class Expected(NamedTuple):
    """False alarms to be expected of the audited clips if all were normal, and how much that number may vary."""

    n: float
    margin: float | None
    per_hour: float

    @property
    def range(self) -> tuple[int, int] | None:
        """The lowest and the highest number of alarms that may well be chance."""
        if self.margin is None:
            return None
        return math.ceil(max(0.0, self.n - self.margin)), math.floor(self.n + self.margin)


def expected_of(alarm: Alarm, *, n_clips: int, hours: float) -> Expected | None:
    """How many of n normal clips alarm at a rate a: n a, plus or minus two standard deviations.

    The deviation has two parts: that of a binomial number, and that of the threshold, which v validation clips place
    only to within a standard deviation of sqrt(a (1 - a) / v) in the rate. Clips are taken as independent.
    """
    rate = alarm.false_alarm_rate
    if rate is None or alarm.threshold is None or not hours:
        return None
    spread = None
    if alarm.n_validation:
        spread = 2 * math.sqrt(n_clips * rate * (1 - rate) * (1 + n_clips / alarm.n_validation))
    return Expected(n=n_clips * rate, margin=spread, per_hour=n_clips * rate / hours)


def audited_hours(scores: pd.DataFrame) -> float:
    """Hours of sound behind the scores; where clips overlap it counts once."""
    clips = scores.sort_values(["recording", "onset_s"])
    until_next = clips.groupby("recording")["onset_s"].diff(-1).abs()
    return float(np.fmin(clips["duration_s"], until_next).sum() / 3_600)


def n_alarms(audit: AuditTables) -> int:
    return int((audit.scores["alarm"] == True).sum())  # noqa: E712  (a column of true, false and null)


def answers(audit: AuditTables, trust: list[Trust]) -> list[str]:
    """How many events and how strong; as many as chance; how far the reasons can be trusted; what was left out."""
    hours = audited_hours(audit.scores)
    sentences = [
        _events(audit, duration(hours * 3_600)),
        *audit.misfits,
        _against_chance(audit, hours),
        _short_clips(audit),
        against_labels(audit),
        _reasons(audit, trust),
        *health_view(audit.health).sentences[:1],
        _coverage(audit),
    ]
    return [sentence for sentence in sentences if sentence]


def _events(audit: AuditTables, sound: str) -> str:
    threshold = audit.alarm.threshold
    if threshold is None:
        return (
            f"{count(len(audit.scores), 'clip')} ({sound} of sound) have scores, but there is no alarm threshold, "
            "neither in this run nor in the model: nothing can be called an event."
        )
    if not audit.events:
        top = audit.scores[audit.alarm.pooling.column].max()
        highest = f" The highest score is {top:.4g}, the threshold {threshold:.4g}." if len(audit.scores) else ""
        return f"No alarms: no event in {sound} of audited sound.{highest}"
    strongest = audit.events[audit.ranked[0]]
    return (
        f"{count(len(audit.events), 'event')} ({count(n_alarms(audit), 'alarmed clip')}) in {sound} of audited sound. "
        f"The strongest: {when(strongest)}, {length(strongest)}, {strength(strongest)}."
    )


def _against_chance(audit: AuditTables, hours: float) -> str | None:
    alarm, n = audit.alarm, n_alarms(audit)
    expected = expected_of(alarm, n_clips=len(audit.scores), hours=hours)
    if expected is None or alarm.false_alarm_rate is None:
        return None
    text = (
        f"At this threshold {alarm.false_alarm_rate * 100:.3g} % of normal clips alarm as well. If all of this sound "
        f"were normal, about {count(round(expected.n), 'false alarm')} would be expected"
    )
    there = f"There {'is' if n == 1 else 'are'} {count(n, 'alarm')}"
    if expected.margin is None or expected.range is None:
        return f"{text}. {there}."
    first, last = expected.range
    text += f"; anything from {first:,} to {last:,} could be chance. "
    if expected.margin > expected.n / 2:
        text += f"The range is wide, as no more than {alarm.n_validation:,} normal clips set the threshold. "
    text += there
    if n > last:
        return (
            f"{text}: more than chance would bring. Either something happened, or machine or microphone changed since "
            "the training."
        )
    if n >= first:
        return f"{text}: no more than chance can bring. A weak event by itself says little; begin with the strongest."
    return f"{text}: fewer than expected. The sound is quieter, or more even, than that of the training."


def _short_clips(audit: AuditTables) -> str | None:
    clip_s = audit.setting("features.clip_s") or audit.clips["duration_s"].max()
    n = int(((audit.scores["alarm"] == True) & (audit.scores["duration_s"] < clip_s)).sum())  # noqa: E712
    if not n:
        return None
    are = "is of a clip" if n == 1 else "are of clips"
    return (
        f"{count(n, 'alarm')} {are} shorter than {duration(clip_s)}, such as the end of a recording. The threshold is "
        "that of whole clips, and the scores of shorter ones spread more: such an alarm says less."
    )


def _reasons(audit: AuditTables, trust: list[Trust]) -> str | None:
    if not audit.events:
        return None
    grades = Counter(event.grade for event in trust)
    explained = len(trust) - grades["none"]
    if not explained:
        return "No event was explained: the seconds and bands given are those of the largest error, without a test."
    name = style.method(next(event["method"] for event in audit.events if event["method"])).title
    text = f"{name} says why for {explained:,} of {count(len(trust), 'event')}"
    tested = [event for event in trust if event.vanishes is not None and event.replaced is not None]
    if not tested:
        return text + "; how faithful it is was not measured."
    vanishes, replaced = (
        float(np.median([getattr(event, key) for event in tested])) for key in ("vanishes", "replaced")
    )
    text += (
        f": in a typical one, {percent(vanishes)} of the model's error vanishes when the moments it points at, "
        f"{percent(replaced)} of the time, are replaced by what the model expects"
    )
    best = [event.best for event in tested if event.best is not None]
    text += f" (at most {percent(float(np.median(best)))} could)" if best else ""
    verdicts = [f"{words} {grades[grade]:,}" for grade, words in _GRADE_WORDS.items() if grades[grade]]
    return f"{text}. By this test the reasons are {', '.join(verdicts)}."


_GRADE_WORDS = {
    "good": "good for",
    "partial": "partial for",
    "poor": "no better than chance for",
    "spread": "hard to place, as the error is even over time, for",
    "untested": "untested for",
}


def _coverage(audit: AuditTables) -> str:
    ledger = ledger_view(audit.ledger)
    done, skipped, failed = (f"{ledger.clips[status]:,}" for status in ("done", "skipped", "failed"))
    text = f"{done} of {count(ledger.total, 'clip')} audited, {failed} failed, {skipped} skipped"
    text += f"; {ledger.rejected}." if ledger.rejected else "."
    return f"{text} Sound that was not heard: {ledger.unheard}." if ledger.unheard else text


def against_labels(audit: AuditTables) -> str | None:
    """How the events agree with the labels that the audit was evaluated against."""
    row = next((row for row in audit.agreement if row["detections"] == "events"), None)
    if row is None:
        return None
    text = (
        f"Against the labels, {row['n_true']:,} of {count(row['n_detections'], 'event')} "
        f"{'is' if row['n_detections'] == 1 else 'are'} true, and {row['n_found']:,} of "
        f"{count(row['n_reference'], 'labelled interval')} {'is' if row['n_reference'] == 1 else 'are'} found"
    )
    if row["n_not_heard"]:
        lie = count(row["n_not_heard"], "lies", "lie")
        text += f"; {lie} in sound that was not heard: {listed(row['not_heard'])}"
    return (
        f"{text}. Alarms last {duration(row['detected_s'])}, labels {duration(row['labelled_s'])}, both at once "
        f"{duration(row['shared_s'])}."
    )


def when(event: EventRow) -> str:
    """The recorder's own clock at an event's start, or its place where there is none."""
    return clock(event) or f"{event['recording']} at {seconds(event['onset_s'])}"


def clock(event: EventRow) -> str | None:
    if event["started_at"] is None:
        return None
    offset = "" if event["utc_offset_s"] is None else f" {offset_words(event['utc_offset_s'])}"
    return f"{event['started_at']:%Y-%m-%d %H:%M:%S}{offset}"


def length(event: EventRow) -> str:
    """How long an event lasts: a short one by its windows, which are 0.25 s long."""
    lasts_s = event["duration_s"]
    return seconds(lasts_s) if lasts_s < _SHORT_S else duration(lasts_s)


def strength(event: EventRow) -> str:
    """The score against the threshold; scores that may be negative have no ratio."""
    if has_ratio(event):
        return f"{event['strength']:.2f} times the threshold"
    return f"score {event['score']:.4g}, threshold {event['threshold']:.4g}"


def has_ratio(event: EventRow) -> bool:
    return event["strength"] is not None and math.isfinite(event["strength"])
