"""What an audit found, in a few plain sentences and small numbers: the part of its report that one reads first."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from faithad.report import findings, style
from faithad.report.audit_tables import AuditTables
from faithad.report.findings import count, duration
from faithad.report.trust import Trust

RULES = {
    "quantile": "the empirical quantile",
    "gamma": "a gamma distribution fitted to them",
    "conformal": "split conformal prediction",
}


class Alarm(NamedTuple):
    """When a clip alarms, and what is to be expected of it; what is not known is None."""

    threshold: float | None
    column: str
    pooling: str
    rule: str | None
    false_alarm_rate: float | None
    n_validation: int | None


class Expected(NamedTuple):
    """False alarms to be expected of the audited clips if all were normal, and how much that number may vary."""

    n: float
    margin: float | None
    per_hour: float

    @property
    def range(self) -> tuple[int, int] | None:
        """The numbers of alarms that may well be chance, the first and the last."""
        if self.margin is None:
            return None
        return math.ceil(max(0.0, self.n - self.margin)), math.floor(self.n + self.margin)


def alarm_of(audit: AuditTables) -> Alarm:
    """The run's own alarm where it has one, else that of the model; the threshold as it was used."""
    alarm, stored = audit.alarm, audit.model.get("alarm")
    used = audit.scores["threshold"].dropna()
    n_validation = alarm.get("n_validation", stored.get("n_validation") if isinstance(stored, dict) else None)
    return Alarm(
        threshold=float(used.iloc[0]) if len(used) else None,
        column=audit.column,
        pooling=findings.POOLINGS.get(audit.pooling, audit.pooling),
        rule=alarm.get("rule"),
        false_alarm_rate=alarm.get("false_alarm_rate"),
        n_validation=n_validation,
    )


def expected_of(alarm: Alarm, *, n_clips: int, hours: float) -> Expected | None:
    """How many of n normal clips alarm at a rate a: n a, give or take two standard deviations.

    These are of a binomial number, and of the threshold itself, which v validation clips place only to within a
    standard deviation of sqrt(a (1 - a) / v) in the rate. Clips are taken as independent.
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


def ledger_hours(ledger: pd.DataFrame) -> dict[str, float]:
    """Hours by status, as far as lengths are known."""
    seconds = ledger.groupby("status")["duration_s"].sum()
    return {status: float(seconds.get(status, 0.0)) / 3_600 for status in ("done", "skipped", "failed")}


def answers(audit: AuditTables, trust: list[Trust]) -> list[str]:
    """How many events and how strong; as many as chance; how far the reasons can be trusted; what was left out."""
    alarm, hours = alarm_of(audit), audited_hours(audit.scores)
    found = [
        _events(audit, alarm, hours),
        _against_chance(audit, alarm, hours),
        _reasons(audit, trust),
        _coverage(audit),
    ]
    return [sentence for sentence in found if sentence]


def _events(audit: AuditTables, alarm: Alarm, hours: float) -> str:
    if alarm.threshold is None:
        return (
            f"{count(len(audit.scores), 'clip')} ({duration(hours * 3_600)} of sound) have scores, but there is no "
            "alarm threshold, neither in this run nor in the model: nothing can be called an event."
        )
    if not audit.events:
        top = audit.scores[alarm.column].max()
        highest = f" The highest score is {top:.4g}, the threshold {alarm.threshold:.4g}." if len(audit.scores) else ""
        return f"No alarms: no event in {duration(hours * 3_600)} of audited sound.{highest}"
    top = audit.events[audit.ranked[0]]
    return (
        f"{count(len(audit.events), 'event')} ({count(n_alarms(audit), 'alarmed clip')}) in {duration(hours * 3_600)} "
        f"of audited sound. The strongest: {when(top)}, {duration(top['duration_s'])}, {strength(top)}."
    )


def _against_chance(audit: AuditTables, alarm: Alarm, hours: float) -> str | None:
    expected = expected_of(alarm, n_clips=len(audit.scores), hours=hours)
    if expected is None or alarm.false_alarm_rate is None:
        return None
    found = n_alarms(audit)
    text = (
        f"At this threshold {alarm.false_alarm_rate * 100:g} % of normal clips alarm as well. If all of this sound "
        f"were normal, about {count(round(expected.n), 'false alarm')} would be expected"
    )
    there = f"There {'is' if found == 1 else 'are'} {count(found, 'alarm')}"
    if expected.margin is None or expected.range is None:
        return f"{text}. {there}."
    first, last = expected.range
    text += f"; anything from {first:,} to {last:,} could be chance. "
    if expected.margin > expected.n / 2:
        text += f"The range is wide, as no more than {alarm.n_validation:,} validation clips set the threshold. "
    text += there
    if found > last:
        return (
            f"{text}: more than chance would bring. Either something happened, or machine or microphone changed since "
            "the training."
        )
    if found >= first:
        return f"{text}: no more than chance can bring. A weak event by itself says little; begin with the strongest."
    return f"{text}: fewer than expected. The sound is quieter, or more even, than that of the training."


def _reasons(audit: AuditTables, trust: list[Trust]) -> str | None:
    if not audit.events:
        return None
    grades = Counter(one.grade for one in trust)
    explained = len(trust) - grades["none"]
    if not explained:
        return "No event was explained: the seconds and bands given are those of the largest error, without a test."
    tested = [one for one in trust if one.vanishes is not None and one.replaced is not None]
    name = style.method(next(event["method"] for event in audit.events if event["method"])).title
    text = f"{name} says why for {explained:,} of {count(len(trust), 'event')}"
    if not tested:
        return text + "; how faithful it is was not measured."
    vanishes, replaced = (float(np.median([getattr(one, key) for one in tested])) for key in ("vanishes", "replaced"))
    text += (
        f": in a typical one, {percent(vanishes)} of the model's error vanishes when the moments it points at, "
        f"{percent(replaced)} of the time, are replaced by what the model expects"
    )
    known = [one.best for one in tested if one.best is not None]
    text += f" (at most {percent(float(np.median(known)))} could)" if known else ""
    words = [f"{title} {grades[grade]:,}" for grade, title in _GRADE_WORDS.items() if grades[grade]]
    return f"{text}. By this test the reasons are {', '.join(words)}."


_GRADE_WORDS = {
    "good": "good for",
    "partial": "partial for",
    "poor": "no better than chance for",
    "spread": "hard to place, as the error is even over time, for",
    "untested": "untested for",
}


def _coverage(audit: AuditTables) -> str:
    counts, hours = findings.ledger_counts(audit.ledger), ledger_hours(audit.ledger)
    total = sum(counts[status] for status in ("done", "skipped", "failed"))
    parts = [f"{counts['done']:,} of {count(total, 'clip')} audited, {counts['failed']:,} failed, "
             f"{counts['skipped']:,} skipped"]  # fmt: skip
    if counts["rejected"]:
        pieces = count(counts["rejected"], "piece of recordings", "pieces of recordings")
        parts.append(f"{pieces} (a whole file or its rest) never became clips")
    lost = hours["failed"] + hours["skipped"]
    text = "; ".join(parts)
    return f"{text}. Sound that was not heard: {duration(lost * 3_600)}." if lost else f"{text}."


def when(event: dict[str, Any]) -> str:
    """The wall clock of an event's start, or its place where there is none."""
    return clock(event) or f"{event['recording']} at {findings.seconds(event['onset_s'])}"


def clock(event: dict[str, Any]) -> str | None:
    return None if event["started_at"] is None else f"{event['started_at']:%Y-%m-%d %H:%M:%S}"


def strength(event: dict[str, Any]) -> str:
    """The score against the threshold; scores that may be negative have no ratio."""
    if has_ratio(event):
        return f"{event['strength']:.2f} times the threshold"
    return f"score {event['score']:.4g}, threshold {event['threshold']:.4g}"


def has_ratio(event: dict[str, Any]) -> bool:
    return event["strength"] is not None and math.isfinite(event["strength"])


def hertz(low: float, high: float) -> str:
    """A range of frequencies: 250 to 900 Hz, 49 Hz to 2.1 kHz, 1.6 to 3.1 kHz."""
    (first, unit), (last, last_unit) = (
        (f"{hz:.0f}", "Hz") if round(hz) < 1_000 else (f"{hz / 1_000:.1f}", "kHz") for hz in (low, high)
    )
    return f"{first} to {last} {unit}" if unit == last_unit else f"{first} {unit} to {last} {last_unit}"


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"
