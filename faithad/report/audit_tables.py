"""What the report reads of an audit's folder; nothing is loaded that is not shown.

Scores, ledger and events are read whole. Of the explanations, which are the bulk, only the rows of the clips of shown
events are kept, shard by shard.

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from faithad import schemas, storage
from faithad.errors import StudyError
from faithad.report import shards
from faithad.report.settings import look_up, read_settings
from faithad.report.shards import Example, Row
from faithad.runs import layout
from faithad.runs.formats import require_readable

# Of the events that are shown with their explanation, how many and how much of each.
MAX_EVENTS = 50
MAX_CLIPS_OF_EVENT = 30
MAX_PICTURES = 10

POOLED_COLUMNS = {"mean": "score", "worst_second": "worst_second_score"}

_MANIFEST_COLUMNS = ["clip_id", "recording", "onset_s", "duration_s", "recorded_at"]
_SCORE_COLUMNS = ["clip_id", "model", "seed", "score", "worst_second_score", "threshold", "alarm"]
# A longer header is none that this project writes.
_LONGEST_HEADER = 1 << 24


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
        model: what the trained model's file says of itself; empty where that file is gone.
        scores: one row per scored clip, with the manifest's columns of the clip.
        ledger: schemas.LEDGER.
        events: schemas.EVENTS, by time.
        ranked: numbers of the events, strongest first.
        curves: of the clips of shown events, by clip.
        judged: frame-mode faithfulness of all events' clips: clip_id, method, replaced_fraction, faithfulness.
        pictures: spectrograms and maps, by the number of the event in `events`.
    """

    settings: dict[str, Any]
    settings_text: str
    model: dict[str, Any]
    manifest: pd.DataFrame
    scores: pd.DataFrame
    ledger: pd.DataFrame
    events: list[Row]
    ranked: list[int]
    curves: dict[str, Curve]
    judged: pd.DataFrame
    pictures: dict[int, Example]

    @property
    def shown(self) -> list[int]:
        """The events that are shown at length, strongest first."""
        return self.ranked[:MAX_EVENTS]

    @property
    def alarm(self) -> dict[str, Any]:
        """The run's own alarm where it has one, else the model's."""
        return _alarm(self.settings, self.model)

    @property
    def pooling(self) -> str:
        """Which score alarms."""
        return _pooling(self.events, self.alarm)

    @property
    def column(self) -> str:
        """The column of `scores` that alarms."""
        return POOLED_COLUMNS.get(self.pooling, "score")

    @cached_property
    def score_of(self) -> dict[str, float]:
        """The score that alarms, by clip."""
        return dict(zip(self.scores["clip_id"], self.scores[self.column], strict=True))

    @cached_property
    def clips(self) -> pd.DataFrame:
        """The manifest by clip."""
        return self.manifest.set_index("clip_id")

    @cached_property
    def started_at(self) -> dict[str, datetime]:
        """The wall clock at the start of each recording, as far as any of its clips tells it."""
        clips = self.manifest[self.manifest["recorded_at"].notna()].drop_duplicates("recording")
        started = clips["recorded_at"] - pd.to_timedelta(clips["onset_s"], unit="s")
        return dict(zip(clips["recording"], started.dt.to_pydatetime(), strict=True))

    def setting(self, key: str) -> Any:
        """The value at a dotted key of the resolved run, or else of what the model says of itself, or None."""
        found = look_up(self.settings, key)
        return look_up(self.model, key) if found is None else found


def read_audit(out: str) -> AuditTables:
    """Read everything that the report of an audit shows.

    Raises:
        StudyError: there is no finished audit at `out`, `audit.yaml` is no YAML mapping, or a newer faithad made the
            tables.
    """
    require_readable(out)
    if not storage.exists(storage.join(out, layout.AUDIT)):
        raise StudyError(f"There is no audit at {out}: no audit.yaml. Check the folder, or run `faithad audit` first.")
    text, settings = read_settings(storage.join(out, layout.AUDIT))
    manifest = _read(out, layout.MANIFEST, _MANIFEST_COLUMNS)
    events = _read(out, layout.EVENTS, schemas.EVENTS.names).to_pylist()
    files = _shards(out)
    scores = shards.columns_of(files["scores"], _SCORE_COLUMNS, schemas.SCORES).to_pandas()
    model = _read_model(out) or read_model_card(str(settings.get("model", "")))
    column = POOLED_COLUMNS.get(_pooling(events, _alarm(settings, model)), "score")
    by_clip = dict(zip(scores["clip_id"], scores[column], strict=True))
    ranked = by_strength(events)
    shown = ranked[:MAX_EVENTS]
    method, percentile = (
        next((event[key] for event in events if event[key]), None) for key in ("method", "percentile")
    )
    return AuditTables(
        settings=settings,
        settings_text=text,
        model=model,
        manifest=manifest.to_pandas(),
        scores=scores.merge(manifest.to_pandas(), on="clip_id", how="left", validate="one_to_one"),
        ledger=_read(out, layout.LEDGER, schemas.LEDGER.names).to_pandas(),
        events=events,
        ranked=ranked,
        curves=_read_curves(files["attributions"], [events[number] for number in shown], by_clip, method),
        judged=_read_judged(files["faithfulness"], events, percentile),
        pictures=_read_pictures(files, events, shown, by_clip),
    )


def by_strength(events: list[Row]) -> list[int]:
    """Numbers of the events, strongest first. All share a threshold, so the score ranks them also where no ratio is."""
    return sorted(range(len(events)), key=lambda number: (-events[number]["score"], number))


def _read_model(out: str) -> dict[str, Any]:
    """The model and the alarm as they were when the audit was made; empty where an early audit does not say."""
    location = storage.join(out, layout.MODEL)
    found = json.loads(storage.read_text(location)) if storage.exists(location) else {}
    return found if isinstance(found, dict) else {}


def read_model_card(folder: str) -> dict[str, Any]:
    """What `model.safetensors` in a folder says of itself in its header: features, alarm, name, seed.

    A report has to be possible without the model, so an absent or unreadable file says nothing.
    """
    try:
        with storage.open_input(storage.join(folder, "model.safetensors")) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _LONGEST_HEADER else {}
        card = json.loads(header["__metadata__"]["faithad"])
    except (OSError, ValueError, KeyError, TypeError, StudyError):
        return {}
    return card if isinstance(card, dict) else {}


def clips_around_the_strongest(clip_ids: list[str], scores: dict[str, float]) -> list[str]:
    """At most MAX_CLIPS_OF_EVENT neighbouring clips of an event: those around the one with the highest score."""
    peak = max(range(len(clip_ids)), key=lambda index: scores.get(clip_ids[index], -np.inf))
    first = max(0, min(peak - MAX_CLIPS_OF_EVENT // 2, len(clip_ids) - MAX_CLIPS_OF_EVENT))
    return clip_ids[first : first + MAX_CLIPS_OF_EVENT]


def _read(out: str, path: str, columns: list[str]) -> pa.Table:
    location = storage.join(out, path)
    if not storage.exists(location):
        raise StudyError(f"The audit at {out} has not finished: no {path}. Run `faithad audit` again: it goes on.")
    return storage.read_table(location, columns=columns)


def _shards(out: str) -> dict[str, list[str]]:
    """Shard locations by table."""
    found: dict[str, list[str]] = defaultdict(list)
    for table in ("scores", "attributions", "faithfulness", "spectrograms"):
        for _, location in storage.list_files(storage.join(out, table), suffixes=[".parquet"]):
            found[table].append(location)
    return found


def _alarm(settings: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The alarm that was raised, as far as it is known: that of the model, unless the audit asked for another one."""
    own, stored = (found if isinstance(found := of.get("alarm"), dict) else {} for of in (settings, model))
    return own if any(stored.get(key) != value for key, value in own.items()) else stored


def _pooling(events: list[Row], alarm: dict[str, Any]) -> str:
    return str(events[0]["pooling"] if events else alarm.get("pooling", "mean"))


def _read_curves(
    files: list[str], events: list[Row], by_clip: dict[str, float], method: str | None
) -> dict[str, Curve]:
    if method is None:
        return {}
    wanted = {clip_id for event in events for clip_id in clips_around_the_strongest(event["clip_ids"], by_clip)}
    columns = ["clip_id", "curve", "profile", "degenerate"]
    schema = schemas.attributions(1, 1)
    tables = shards.matching(files, columns, schema, clip_ids=sorted(wanted), method=method)
    if not tables.num_rows:
        return {}
    arrays = {name: _rows(tables[name]) for name in ("curve", "profile")}
    flags = tables["degenerate"].to_pylist()
    return {
        clip_id: Curve(arrays["curve"][row], arrays["profile"][row], flags[row])
        for row, clip_id in enumerate(tables["clip_id"].to_pylist())
    }


def _rows(column: pa.ChunkedArray) -> np.ndarray:
    lists = column.combine_chunks()
    return np.asarray(lists.flatten(), dtype=np.float32).reshape(len(lists), -1)


def _read_judged(files: list[str], events: list[Row], percentile: float | None) -> pd.DataFrame:
    columns = ["clip_id", "method", "replaced_fraction", "faithfulness"]
    wanted = sorted({clip_id for event in events for clip_id in event["clip_ids"]}) if percentile is not None else []
    methods = sorted({event["method"] for event in events if event["method"]} | {"error_map"})
    equal = {"mode": "frame", "percentile": percentile, "method": methods}
    return shards.matching(files, columns, schemas.FAITHFULNESS, clip_ids=wanted, **equal).to_pandas()


def _read_pictures(
    files: dict[str, list[str]], events: list[Row], shown: list[int], by_clip: dict[str, float]
) -> dict[int, Example]:
    """For the strongest events, as far as spectrograms were kept, that of the event's strongest clip among them."""
    kept = set().union(*shards.each(shards.clip_ids, files["spectrograms"]))
    chosen: dict[int, str] = {}
    for number in shown:
        held = [clip_id for clip_id in events[number]["clip_ids"] if clip_id in kept]
        if held and len(chosen) < MAX_PICTURES:
            chosen[number] = max(held, key=lambda clip_id: by_clip.get(clip_id, -np.inf))
    found = shards.examples(files["spectrograms"], files["attributions"], list(chosen.values()))
    by_id = {example.clip_id: example for example in found}
    return {number: by_id[clip_id] for number, clip_id in chosen.items()}
