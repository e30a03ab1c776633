"""What a review says about an audit: its precision, and its false alarms compared with what was promised."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from scipy import stats

from faithad.audit.review import CONFIRM, REJECT, UNSURE, clip_verdicts
from faithad.report.audit_findings import ExpectedAlarms, audited_hours, expected_of
from faithad.report.audit_tables import AuditTables
from faithad.report.words import percent
from faithad.vocabulary import count


class Reviewed(NamedTuple):
    """The decisions about an audit, counted.

    Attributes:
        n_confirmed: events.
        n_rejected: events.
        n_unsure: events.
        n_open: events without a decision.
        precision: the share of confirmed events among those that were confirmed or rejected; None without any.
        precision_range: its 95 % interval, that of Clopper and Pearson.
        n_false: alarmed clips whose events are all rejected.
        n_perhaps: alarmed clips of which none of the events is confirmed, and not all are rejected.
        hours: of sound without a confirmed event.
        promised: alarms to be expected of that sound; None where the alarm promises nothing.
    """

    n_confirmed: int
    n_rejected: int
    n_unsure: int
    n_open: int
    precision: float | None
    precision_range: tuple[float, float]
    n_false: int
    n_perhaps: int
    hours: float
    promised: ExpectedAlarms | None


def review_figures(audit: AuditTables) -> Reviewed | None:
    """The figures of a review; None where no event has a decision."""
    verdicts = Counter(audit.decisions.get(event["event_id"], {}).get("verdict") for event in audit.events)
    if not verdicts.total() - verdicts[None]:
        return None
    n_decided = verdicts[CONFIRM] + verdicts[REJECT]
    interval = stats.binomtest(verdicts[CONFIRM], n_decided).proportion_ci() if n_decided else (0.0, 1.0)
    of_clips = clip_verdicts(audit.events, audit.decisions).values()
    n_true = sum(CONFIRM in of_clip for of_clip in of_clips)
    n_false = sum(of_clip == {REJECT} for of_clip in of_clips)
    n_normal = len(audit.scores) - n_true
    hours = audited_hours(audit.scores) * n_normal / max(1, len(audit.scores))
    return Reviewed(
        n_confirmed=verdicts[CONFIRM],
        n_rejected=verdicts[REJECT],
        n_unsure=verdicts[UNSURE],
        n_open=verdicts[None],
        precision=verdicts[CONFIRM] / n_decided if n_decided else None,
        precision_range=(float(interval[0]), float(interval[1])),
        n_false=n_false,
        n_perhaps=len(of_clips) - n_true - n_false,
        hours=hours,
        promised=expected_of(audit.alarm, n_clips=n_normal, hours=hours),
    )


def review_sentences(audit: AuditTables) -> list[str]:
    """The figures in words; none where nobody has reviewed the audit."""
    figures = review_figures(audit)
    if figures is None:
        return []
    return [sentence for sentence in (_precision(figures), _false_alarms(figures)) if sentence]


def _precision(figures: Reviewed) -> str | None:
    if figures.precision is None:
        return None
    low, high = figures.precision_range
    n_decided = figures.n_confirmed + figures.n_rejected
    left_out = [f"{figures.n_unsure:,} unsure"] if figures.n_unsure else []
    left_out += [f"{count(figures.n_open, 'event')} not reviewed"] if figures.n_open else []
    omitted = f" ({' and '.join(left_out)} left out)" if left_out else ""
    are = "is" if figures.n_confirmed == 1 else "are"
    return (
        f"Review: of {count(n_decided, 'event')}, {figures.n_confirmed:,} {are} confirmed{omitted}. The precision is "
        f"{percent(figures.precision)}, its 95 % interval {percent(low)} to {percent(high)}."
    )


def _false_alarms(figures: Reviewed) -> str | None:
    if not figures.hours:
        return None
    fewest, most = figures.n_false, figures.n_false + figures.n_perhaps
    numbers, n_clips = f"{fewest / figures.hours:.3g}", count(fewest, "clip")
    if figures.n_perhaps:
        are = "is" if figures.n_perhaps == 1 else "are"
        numbers += f" to {most / figures.hours:.3g}"
        n_clips = f"{fewest:,} to {most:,} clips, of which {figures.n_perhaps:,} {are} not decided"
    text = f"False alarms by the review: {numbers} an hour ({n_clips})"
    if figures.promised is None:
        return f"{text}."
    text += f"; promised were {figures.promised.per_hour:.3g}"
    if figures.promised.range is None:
        return f"{text}."
    first, last = figures.promised.range
    if fewest > last:
        verdict = (
            "That is more than promised: fit the alarm to this sound (faithad calibrate --normals with this audit)"
        )
    elif most < first:
        verdict = "That is fewer than promised"
    elif first <= fewest and most <= last:
        verdict = "That keeps the promise"
    else:
        verdict = "Whether that keeps the promise depends on the events that are not decided"
    return f"{text} (in 95 of 100 cases {first:,} to {last:,} clips). {verdict}."
