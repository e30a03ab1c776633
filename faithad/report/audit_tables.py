"""The tables of an audit's folder that the report reads; nothing is loaded that is not shown.

Scores, ledger and events are read whole. Of the explanations, which are the bulk, only the rows of the clips of shown
events are kept, shard by shard.

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, schemas, storage
from faithad.audit.finished import read_card
from faithad.audit.misfits import misfit_words, without_skipped
from faithad.audit.ranking import strongest_first
from faithad.audit.review import read_decisions
from faithad.errors import StudyError
from faithad.evaluation.arrays import list_arrays
from faithad.model.alarm import AlarmThreshold
from faithad.report.health import read_health
from faithad.report.reading import (
    Example,
    examples,
    look_up,
    pictured_clips,
    read_settings,
    required,
    with_one_clock,
)
from faithad.runs import layout
from faithad.runs.formats import require_readable
from faithad.runs.tables import read_events, read_manifest, read_shards, read_whole
from faithad.vocabulary import ENSEMBLE, FITTED, LEVEL, POOLINGS, AlarmPooling

# Of the events that are shown with their explanation, how many and how much of each.
MAX_EVENTS = 200
MAX_CURVES = 50
MAX_CLIPS_OF_EVENT = 30

_MANIFEST_COLUMNS = ["clip_id", "recording", "onset_s", "duration_s", "recorded_at", "utc_offset_s", "recorder"]
_SCORE_COLUMNS = [
    *("clip_id", "model", "seed", "score", "worst_second_score", "threshold", "alarm", "windows", "window_threshold")
]

EventRow = dict[str, Any]  # of schemas.EVENTS


@dataclass(frozen=True)
class AuditAlarm:
    """When a clip alarms; what is not known is None.

    Attributes:
        threshold: as it was used, of whole clips.
        pooling: which score alarms.
        rule: name of the rule that fitted the threshold.
        false_alarm_rate: the share of normal clips that may alarm.
        n_validation: how many validation clips the threshold was fitted to.
        fitted: all that the model's card says of the alarm.
    """

    threshold: float | None
    pooling: AlarmPooling
    rule: str | None
    false_alarm_rate: float | None
    n_validation: int | None
    fitted: AlarmThreshold | None = None

    @property
    def expected_rate(self) -> float | None:
        """The share of normal clips that alarm, see `AlarmThreshold.expected_rate`."""
        return self.false_alarm_rate if self._rule is None else self._rule.expected_rate

    @property
    def counts_ranks(self) -> bool:
        """See `AlarmThreshold.counts_ranks`."""
        return self._rule is not None and self._rule.counts_ranks

    @property
    def _rule(self) -> AlarmThreshold | None:
        if self.rule is None or self.false_alarm_rate is None or not self.n_validation:
            return None
        return AlarmThreshold(self.rule, "", self.false_alarm_rate, 0.0, 0.0, self.n_validation)


@dataclass(frozen=True)
class Curve:
    """An explanation of one clip: `values` over time (T,), and `profile` (F,), how much of it each mel band carries."""

    values: np.ndarray
    profile: np.ndarray
    degenerate: bool


@dataclass(frozen=True)
class AuditTables:
    """A finished audit.

    Attributes:
        settings: the resolved run, `audit.yaml`.
        settings_text: as it was written.
        model: the trained model and its alarm when the audit was made; empty where the audit did not write them down.
        alarm: the alarm that was raised.
        clips: the manifest by clip_id, see `with_one_clock`.
        scores: one row per scored clip of the recordings that were searched, with the manifest's columns of the clip.
        score_of: the score that alarms, by clip.
        ledger: schemas.LEDGER.
        health: schemas.HEALTH, without rows where an earlier release made the audit.
        misfits: sentences about the recordings that do not fit the model.
        events: rows of schemas.EVENTS, by time.
        ranked: positions of the events, strongest first.
        states: rows of schemas.STATES, by time.
        curves: of the clips of shown events, by clip.
        judged: frame-mode faithfulness of all events' clips: clip_id, method, replaced_fraction, faithfulness.
        pictures: spectrograms and maps, by the position of the event in `events`.
        sounds: rows of schemas.SOUNDS, by the position of the event.
        points: rows of schemas.OPERATING_POINTS, by rising threshold.
        decisions: rows of schemas.DECISIONS, by event_id.
        agreement: rows of schemas.EVENT_SUMMARY where the audit was evaluated against labels.
        detection: rows of schemas.DETECTION_SUMMARY, of the score that alarms, likewise.
    """

    settings: dict[str, Any]
    settings_text: str
    model: dict[str, Any]
    alarm: AuditAlarm
    clips: pd.DataFrame
    scores: pd.DataFrame
    score_of: dict[str, float]
    ledger: pd.DataFrame
    health: pa.Table
    misfits: list[str]
    events: list[EventRow]
    ranked: list[int]
    states: list[dict[str, Any]]
    curves: dict[str, Curve]
    judged: pd.DataFrame
    pictures: dict[int, Example]
    sounds: dict[int, dict[str, Any]]
    points: list[dict[str, Any]]
    decisions: dict[str, dict[str, Any]]
    agreement: list[dict[str, Any]]
    detection: list[dict[str, Any]]

    @property
    def undecided(self) -> list[int]:
        """Positions of the events that nobody has decided about, strongest first."""
        return [number for number in self.ranked if self.events[number]["event_id"] not in self.decisions]

    @property
    def shown(self) -> list[int]:
        """Positions of the events that are shown at length, strongest first."""
        return self.ranked[:MAX_EVENTS]

    @cached_property
    def started_at(self) -> dict[str, datetime]:
        """The recorder's own clock at the start of each recording that has one."""
        return self._starts("recorded_at")

    @cached_property
    def started_on_one_clock(self) -> dict[str, datetime]:
        """The start of each recording that has a clock, on the axis of `with_one_clock`."""
        return self._starts("on_one_clock")

    def _starts(self, column: str) -> dict[str, datetime]:
        clips = self.clips[self.clips[column].notna()].drop_duplicates("recording")
        started = clips[column] - pd.to_timedelta(clips["onset_s"], unit="s")
        return dict(zip(clips["recording"], started.dt.to_pydatetime(), strict=True))

    def setting(self, key: str) -> Any:
        """The value at a dotted key of the resolved run, else of what is known of the model, or None."""
        value = look_up(self.settings, key)
        return look_up(self.model, key) if value is None else value


def read_audit(out: str) -> AuditTables:
    """Read everything that the report of an audit shows.

    Raises:
        StudyError: there is no finished audit at `out`, `audit.yaml` is no YAML mapping, or a newer faithad made the
            tables.
    """
    require_readable(out)
    problem = f"There is no audit at {out}: no audit.yaml. Check the folder, or run `faithad audit` first."
    text, settings = read_settings(required(out, layout.AUDIT, StudyError(problem)))
    for table in (layout.MANIFEST, layout.EVENTS, layout.LEDGER):
        problem = f"The audit at {out} has not finished: no {table}. Run `faithad audit` again: it goes on."
        required(out, table, StudyError(problem))
    manifest = with_one_clock(read_manifest(out).select(_MANIFEST_COLUMNS).to_pandas())
    events = read_events(out).to_pylist()
    ledger = parquet.read_table(storage.join(out, layout.LEDGER), columns=schemas.LEDGER.names)
    all_scores = read_whole(out, layout.SCORES, schemas.SCORES, columns=_SCORE_COLUMNS)
    scores = without_skipped(all_scores, ledger).to_pandas()
    model = read_card(out)
    with_clips = scores.merge(manifest, on="clip_id", how="left", validate="one_to_one")
    alarm = _alarm(settings, model, events, with_clips)
    score_of = dict(zip(scores["clip_id"], scores[alarm.pooling.column], strict=True))
    ranked = strongest_first(events)
    with_curve = ranked[:MAX_CURVES]
    return AuditTables(
        settings=settings,
        settings_text=text,
        model=model,
        alarm=alarm,
        clips=manifest.set_index("clip_id"),
        scores=with_clips,
        score_of=score_of,
        ledger=ledger.to_pandas(),
        health=read_health(out),
        misfits=misfit_words(ledger),
        events=events,
        ranked=ranked,
        states=_read_rows(out, layout.STATES),
        curves=_read_curves(out, [events[number] for number in with_curve], score_of),
        judged=_read_judged(out, events),
        pictures=_read_pictures(out, events, with_curve, score_of),
        sounds=_read_sounds(out, events),
        points=_read_rows(out, layout.OPERATING_POINTS),
        decisions=read_decisions(out),
        agreement=_read_summary(out, "events"),
        detection=[
            row
            for row in _read_summary(out, "detection")
            if (row["pooling"], row.get("anomaly_type", "all")) == (_pooling(alarm), "all") and row["model"] != LEVEL
        ],
    )


def clips_around_the_strongest(clip_ids: list[str], scores: dict[str, float]) -> list[str]:
    """At most MAX_CLIPS_OF_EVENT neighbouring clips of an event: those around the one with the highest score."""
    peak = max(range(len(clip_ids)), key=lambda index: scores.get(clip_ids[index], -np.inf))
    first = max(0, min(peak - MAX_CLIPS_OF_EVENT // 2, len(clip_ids) - MAX_CLIPS_OF_EVENT))
    return clip_ids[first : first + MAX_CLIPS_OF_EVENT]


def _read_summary(out: str, name: str) -> list[dict[str, Any]]:
    """The rows of a summary, none where the audit was not evaluated."""
    return _read_rows(out, layout.summary(name))


def _read_sounds(out: str, events: list[EventRow]) -> dict[int, dict[str, Any]]:
    location = storage.join(out, layout.SOUNDS)
    if not storage.exists(location):
        return {}
    numbers = {event["event_id"]: number for number, event in enumerate(events)}
    table = parquet.read_table(location)
    pictures = {
        name: list_arrays(table[name]) for name in ("log_mel", "expected_log_mel") if name in table.column_names
    }
    rows = enumerate(table.drop_columns(list(pictures)).to_pylist())
    return {
        numbers[row["event_id"]]: row | {name: levels[place] for name, levels in pictures.items()}
        for place, row in rows
        if row["event_id"] in numbers
    }


def _read_rows(out: str, table: str) -> list[dict[str, Any]]:
    """The rows of a table that not every audit has."""
    location = storage.join(out, table)
    rows: list[dict[str, Any]] = parquet.read_table(location).to_pylist() if storage.exists(location) else []
    return rows


def _pooling(alarm: AuditAlarm) -> str | None:
    return next((name for name, pooling in POOLINGS.items() if pooling == alarm.pooling), None)


def _alarm(settings: dict[str, Any], model: dict[str, Any], events: list[EventRow], scores: pd.DataFrame) -> AuditAlarm:
    """The model's alarm, unless the audit asked for another one; the threshold as it was used."""
    own, stored = (alarm if isinstance(alarm := of.get("alarm"), dict) else {} for of in (settings, model))
    used = scores.loc[scores["threshold"].notna()]
    # Of the longest clip: short ones may have other thresholds.
    threshold = float(used.loc[used["duration_s"].idxmax(), "threshold"]) if len(used) else None
    # An ensemble and a fitted score have one number, whatever pooling an alarm of the audit's own names.
    has_one = stored.get("pooling") in (ENSEMBLE, FITTED)
    # Audits of release 0.1.0 wrote down the model's alarm, later ones the one that they raise.
    keys = {"rule", "false_alarm_rate"} | (set() if has_one else {"pooling"})
    given = {key: value for key, value in own.items() if key in keys and value is not None}
    raised = own if any(stored.get(key) != value for key, value in given.items()) else stored
    raised_pooling = (stored if has_one else raised).get("pooling", "mean")
    pooling = str(events[0]["pooling"] if events else raised_pooling)
    return AuditAlarm(
        threshold=threshold,
        pooling=POOLINGS.get(pooling, AlarmPooling("score", pooling, pooling)),
        rule=raised.get("rule"),
        false_alarm_rate=raised.get("false_alarm_rate"),
        n_validation=raised.get("n_validation", stored.get("n_validation")),
        fitted=AlarmThreshold.from_json(stored) if raised is stored and "false_alarms_per_hour" in stored else None,
    )


def _read_curves(out: str, events: list[EventRow], score_of: dict[str, float]) -> dict[str, Curve]:
    clips = {clip_id for event in events for clip_id in clips_around_the_strongest(event["clip_ids"], score_of)}
    methods = {event["method"] for event in events if event["method"]}
    columns = ["clip_id", "curve", "profile", "degenerate"]
    condition = _is_in("clip_id", clips) & _is_in("method", methods)
    return {
        clip_id: Curve(values, profile, degenerate)
        for shard in read_shards(out, "attributions", columns=columns, condition=condition)
        for clip_id, values, profile, degenerate in zip(
            shard["clip_id"].to_pylist(),
            list_arrays(shard["curve"]),
            list_arrays(shard["profile"]),
            shard["degenerate"].to_pylist(),
            strict=True,
        )
    }


def _read_judged(out: str, events: list[EventRow]) -> pd.DataFrame:
    clips = {clip_id for event in events for clip_id in event["clip_ids"]}
    methods = {event["method"] for event in events if event["method"]} | {"error_map"}
    percentiles = {event["percentile"] for event in events if event["percentile"] is not None}
    condition = _is_in("clip_id", clips) & _is_in("method", methods) & (pc.field("mode") == "frame")
    condition &= pc.field("percentile").isin(pa.array(percentiles, pa.float64()))
    columns = ["clip_id", "method", "replaced_fraction", "faithfulness"]
    return read_whole(out, "faithfulness", schemas.FAITHFULNESS, columns=columns, condition=condition).to_pandas()


def _is_in(column: str, names: Collection[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(sorted(names), pa.string()))


def _read_pictures(
    out: str, events: list[EventRow], shown: list[int], score_of: dict[str, float]
) -> dict[int, Example]:
    """Of the strongest events with spectrograms, each with its strongest clip that has one."""
    kept = pictured_clips(out)
    chosen: dict[int, str] = {}
    for number in shown:
        pictured = [clip_id for clip_id in events[number]["clip_ids"] if clip_id in kept]
        if pictured:
            chosen[number] = max(pictured, key=lambda clip_id: score_of.get(clip_id, -np.inf))
    by_clip = {example.clip_id: example for example in examples(out, list(chosen.values()))}
    return {number: by_clip[clip_id] for number, clip_id in chosen.items()}
