"""The results of an audit in a few plain sentences and small numbers: the part of its page that one reads first."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from faithad.evaluation import chance
from faithad.evaluation.alarms import expected_share, too_few_clips
from faithad.report import style
from faithad.report.audit_tables import AuditAlarm, AuditTables, EventRow
from faithad.report.health import health_view
from faithad.report.ledger import ledger_view
from faithad.report.states import state_words, strongest_states
from faithad.report.trust import Trust
from faithad.report.words import offset_words, percent, seconds
from faithad.vocabulary import count, duration, listed

_SHORT_S = 10.0
_LISTEN_FIRST = 5
_STATES_FIRST = 3


class ExpectedAlarms(NamedTuple):
    """False alarms to be expected of the audited clips if all were normal.

    Attributes:
        n: how many.
        range: between which numbers they lie in 95 of 100 cases; None where that is not known.
        per_hour: the same per hour of sound.
    """

    n: float
    range: tuple[int, int] | None
    per_hour: float


def expected_of(alarm: AuditAlarm, *, n_clips: int, hours: float) -> ExpectedAlarms | None:
    """How many of n normal clips alarm, and how much that number may vary, see `evaluation.alarms.expected_share`."""
    rate = alarm.expected_rate
    if rate is None or alarm.threshold is None or not hours:
        return None
    between = None
    if alarm.n_validation and alarm.counts_ranks:
        low, high = (round(share * n_clips) for share in expected_share(rate, alarm.n_validation, n_clips))
        between = low, high
    return ExpectedAlarms(n=n_clips * rate, range=between, per_hour=n_clips * rate / hours)


def audited_hours(scores: pd.DataFrame) -> float:
    """Hours of sound behind the scores; where clips overlap it counts once."""
    clips = scores.sort_values(["recording", "onset_s"])
    until_next = clips.groupby("recording")["onset_s"].diff(-1).abs()
    return float(np.fmin(clips["duration_s"], until_next).sum() / 3_600)


def n_alarms(audit: AuditTables) -> int:
    return int((audit.scores["alarm"] == True).sum())  # noqa: E712  (a column of true, false and null)


class Task(NamedTuple):
    """Something to do; `words` end where the numbers of `events`, positions in the table of events, follow."""

    words: str
    events: list[int]


def todo(audit: AuditTables) -> list[Task]:
    """What to do with the results, the most urgent first."""
    undecided = audit.undecided
    first, of = undecided[:_LISTEN_FIRST], "events that are not decided" if audit.decisions else "events"
    tasks = [Task(sentence.removesuffix("."), []) for sentence in audit.misfits]
    lasting = strongest_states(audit.states)
    tasks += [Task(f"Check a change of the sound: {state_words(state)}", []) for state in lasting[:_STATES_FIRST]]
    if len(lasting) > _STATES_FIRST:
        tasks.append(Task(f"See {count(len(lasting) - _STATES_FIRST, 'more change')} below, under “What lasts”", []))
    if first and len(first) == len(undecided):
        words = "Listen to this event:" if len(first) == 1 else f"Listen to these {len(first)} {of}, strongest first:"
        tasks.append(Task(words, first))
    elif first:
        tasks.append(Task(f"Listen to the {len(first)} strongest of {len(undecided):,} {of}:", first))
    elif audit.events:
        tasks.append(Task("Every event is decided", []))
    elif audit.alarm.threshold is not None:
        tasks.append(Task("There is no event to listen to", []))
    failed = ledger_view(audit.ledger).clips["failed"]
    if failed:
        tasks.append(Task(f"See in the ledger why {count(failed, 'clip')} failed", []))
    return tasks


def answers(audit: AuditTables, trust: list[Trust]) -> list[str]:
    """How many events and how strong; as many as chance; how far the reasons can be trusted."""
    hours = audited_hours(audit.scores)
    sentences = [_events(audit, duration(hours * 3_600)), _against_chance(audit, hours), _reasons(audit, trust)]
    return [sentence for sentence in sentences if sentence]


def remarks(audit: AuditTables) -> list[str]:
    """What else one should know: labels, normal clips, short clips, faults of the sound, what was left out."""
    sentences = [
        against_labels(audit),
        _no_states(audit),
        _too_few_normals(audit),
        _short_clips(audit),
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
    if expected is None or alarm.expected_rate is None:
        return None
    text = (
        f"At this threshold {alarm.expected_rate * 100:.3g} % of normal clips alarm as well. If all of this sound "
        f"were normal, about {count(round(expected.n), 'false alarm')} would be expected"
    )
    alarms = f"There {'is' if n == 1 else 'are'} {count(n, 'alarm')}"
    p = _chance(audit)
    if expected.range is None and p is None:
        return f"{text}. {alarms}."
    first, last = expected.range or (0, 0)
    text += f"; in 95 of 100 cases {first:,} to {last:,}. " if expected.range else ". "
    if expected.range and last > 2 * expected.n:
        text += f"The range is wide, as no more than {alarm.n_validation:,} normal clips set the threshold. "
    if p is None:
        more, weighed = n > last, ", by their number"
    else:
        more, weighed = p <= chance.LEVEL, f", by their number and strength (p {_p_value(p)})"
    if more:
        return (
            f"{text}{alarms}{weighed}: more than chance would bring. Either something happened, or machine or "
            "microphone changed since the training."
        )
    if n >= first:
        return (
            f"{text}{alarms}{weighed}: no more than chance can bring. A weak event by itself says little; begin with "
            "the strongest."
        )
    return f"{text}{alarms}: fewer than expected. The sound is quieter, or more even, than that of the training."


def _chance(audit: AuditTables) -> float | None:
    """The probability that whole clips of normal sound score as high as often; None where their tail is not known."""
    fitted = audit.alarm.fitted
    if fitted is None or fitted.tail is None:
        return None
    whole = audit.scores["duration_s"] >= _clip_s(audit)
    scores = audit.scores.loc[whole, audit.alarm.pooling.column]
    return chance.chance(scores.to_numpy(dtype=float), fitted.tail, fitted.n_validation)


def _p_value(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"


def _clip_s(audit: AuditTables) -> float:
    return float(audit.setting("features.clip_s") or audit.clips["duration_s"].max())


def _too_few_normals(audit: AuditTables) -> str | None:
    """The rate of false alarms that was asked for, if the normal clips can only promise a higher one."""
    fitted = audit.alarm.fitted
    if fitted is None or fitted.asked_per_hour is None:
        return None
    clip_s = _clip_s(audit)
    promised = fitted.expected_rate * 3_600 / clip_s
    return f"False alarms: {too_few_clips(fitted.asked_per_hour, promised, fitted.n_validation, clip_s)}."


def _no_states(audit: AuditTables) -> str | None:
    """The sentence that nothing lasts, if the model has an alarm for what lasts."""
    if audit.states or not audit.model.get("state"):
        return None
    return "No change that lasts: no minute's spectrum is far from those that it is compared with."


def _short_clips(audit: AuditTables) -> str | None:
    """How short clips were judged, if there are any."""
    clip_s = _clip_s(audit)
    short = audit.scores[audit.scores["duration_s"] < clip_s]
    n = int((short["alarm"] == True).sum())  # noqa: E712
    if audit.alarm.fitted is not None and audit.alarm.fitted.by_length:
        if not len(short):
            return None
        are = "is" if len(short) == 1 else "are"
        return (
            f"{count(len(short), 'clip')} {are} shorter than {duration(clip_s)}, such as the end of a recording, and "
            f"judged by thresholds of clips as short (column threshold of the table scores): {count(n, 'alarm')}."
        )
    if not n:
        return None
    are = "is of a clip" if n == 1 else "are of clips"
    return (
        f"{count(n, 'alarm')} {are} shorter than {duration(clip_s)}, such as the end of a recording. The model has no "
        "thresholds of short clips: the threshold of whole clips is used, although scores of short clips spread more. "
        "Such an alarm says less; train the model again for such thresholds."
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
    return f"{text}. By this test the reasons are {', '.join(verdicts)}.{_trusted(audit.events)}"


def _trusted(events: list[EventRow]) -> str:
    """Whether the method is more faithful than random frames, by the rule of `evaluation.decisions`."""
    event = next(event for event in events if event["method"])
    if event["trusted"] is None:
        return ""
    verdict, _, reason = event["trusted"].partition(": ")
    known = [row["normalized"] for row in events if row["normalized"] is not None]
    far = f"; a typical reason goes {float(np.median(known)):.2f} of the way to the best moments" if known else ""
    name = style.method(event["method"]).title
    return (
        f" Is {name} more faithful than random moments, over all explained clips? {verdict.capitalize()}"
        f"{f' ({reason})' if reason else ''}{far}."
    )


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


def level(event: EventRow, threshold: float | None) -> float:
    """The score of a whole clip that is as far above its threshold as the event; short clips have other thresholds."""
    score, own = float(event["score"]), float(event["threshold"])
    if threshold is None or own == threshold:
        return score
    return score / own * threshold if has_ratio(event) else score - own + threshold
