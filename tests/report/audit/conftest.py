"""An audit's folder as `faithad audit` leaves it, at any length, written through the public schemas.

A mill that runs through without a pause: recordings of a minute, six clips each. Scores drift a little over the day,
some clips alarm by chance, and now and then a board gets stuck, which all tables tell alike. The events are those that
the system finds in these tables.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import yaml

from faithad import parquet, schemas, storage
from faithad.audit.events import find_events
from faithad.audit.operating_points import operating_points
from faithad.model.alarm import AlarmThreshold
from faithad.report.audit_tables import AuditTables, read_audit
from faithad.settings import FeatureSettings

Row = dict[str, Any]
WriteAudit = Callable[..., str]
EVENTS: Row = {"merge_gap_s": 10.0, "method": "saliency", "percentile": 95.0}
METHODS = ("error_map", "saliency", "integrated_gradients")
START = datetime(2019, 12, 5, 6, 0)
EVENT_S, EVENT_BAND = 4.0, 0.55  # where in its clip, and how high, a stuck board is heard


@pytest.fixture(scope="session")
def write_audit() -> WriteAudit:
    """Writes an audit: see `build_audit`."""
    return build_audit


@pytest.fixture(scope="session")
def out(write_audit: WriteAudit, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An audit as most tests read it; they leave its tables as they are."""
    return write_audit(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="session")
def audit(out: str) -> AuditTables:
    return read_audit(out)


def build_audit(
    out: Path | str,
    *,
    hours: float = 2.0,
    boards: int = 4,
    rate: float = 0.01,
    shape: tuple[int, int] = (20, 81),
    explain: str = "alarms",
    methods: Sequence[str] = METHODS,
    n_pictures: int = 3,
    clips_per_shard: int = 32,
    n_failed: int = 2,
    n_rejected: int = 1,
    timed: bool = True,
    pooling: str = "mean",
    with_alarm: bool = True,
    with_model: bool = True,
    own_alarm: Row | None = None,
    shift: float = 0.0,
    recording: str = "MPD",
    sound_s: float = 3.0,
    with_points: bool = True,
) -> str:
    """`boards` stuck boards, and a threshold that a share `rate` of the other clips exceeds by chance.

    `sound_s`: how long the sound of each event is. `with_points`: whether other thresholds were tried.
    """
    out, rng = str(out), np.random.default_rng(11)
    clips = _clips(round(hours * 60), timed=timed, name=recording)
    features = FeatureSettings(hop_samples=200_000 // (shape[1] - 1), n_fft=5_000, n_mels=shape[0])
    stuck = _stuck(clips, boards, rng)
    scored = [clip for index, clip in enumerate(clips) if not 40 <= index < 40 + n_failed]
    scores, alarm = _scores(scored, stuck, rate=rate, with_alarm=with_alarm, pooling=pooling, shift=shift, rng=rng)
    alarmed = [row["clip_id"] for row in scores if row["alarm"]]
    explained = [] if explain == "none" or not with_alarm else alarmed
    explained = [clip["clip_id"] for clip in scored] if explain == "all" else explained
    pictured = sorted(explained, key=lambda clip_id: -stuck.get(clip_id, 0.0))[:n_pictures]
    _write_folder(out, features, alarm if with_alarm else None, own_alarm, with_model=with_model, note=recording)
    _write(out, "manifest.parquet", clips, schemas.MANIFEST)
    _write(out, "health.parquet", list(_health([clip["recording"] for clip in clips])), schemas.HEALTH)
    _write_shards(out, "scores", scores, schemas.SCORES, clips_per_shard * 18)
    attributions = schemas.attributions(*shape)
    tables: list[pa.Table] = []
    for shard, first in enumerate(range(0, len(explained), clips_per_shard)):
        rows = [
            row
            for clip_id in explained[first : first + clips_per_shard]
            for row in _explanations(clip_id, clip_id in stuck, clip_id in pictured, methods, shape, rng)
        ]
        tables.append(_write(out, f"attributions/part-{shard:05d}.parquet", rows, attributions).drop_columns(["map"]))
    faithful = [row for clip_id in explained for row in _faithfulness(clip_id, clip_id in stuck, methods)]
    _write_shards(out, "faithfulness", faithful, schemas.FAITHFULNESS, 4_000)
    pictures = [_picture(clip_id, clip_id in stuck, shape, rng) for clip_id in pictured]
    _write_shards(out, "spectrograms", pictures, schemas.spectrograms(*shape), clips_per_shard)
    _write(out, "ledger.parquet", _ledger(clips, scored, n_rejected, recording), schemas.LEDGER)
    events = schemas.EVENTS.empty_table()
    if with_alarm:
        read = [parquet.read_table(storage.join(out, name)) for name in ("scores", "manifest.parquet")]
        if with_points:
            normals = pa.table({"score": read[0]["score"], "worst_second_score": read[0]["worst_second_score"]})
            points = operating_points(*read, normals, alarm=alarm, features=features, **EVENTS)
            parquet.write_table(points, storage.join(out, "operating_points.parquet"), schema=schemas.OPERATING_POINTS)
        events = find_events(
            *read,
            alarm=alarm,
            explanations=pa.concat_tables(tables) if tables else None,
            faithfulness=parquet.read_table(storage.join(out, "faithfulness")) if faithful else None,
            features=features,
            **EVENTS,
        )
        _write(out, "sounds.parquet", list(_sounds(events.to_pylist(), sound_s, shape[0])), schemas.SOUNDS)
    parquet.write_table(events, storage.join(out, "events.parquet"), schema=schemas.EVENTS)
    return out


def _health(recordings: list[str]) -> Iterator[Row]:
    """The second half of the recordings is louder than the first."""
    names = list(dict.fromkeys(recordings))
    for number, name in enumerate(names):
        level = -50.0 + number % 2 + (9 if number >= len(names) // 2 else 0)
        yield {"recording": name, "sample_rate_hz": 20_000, "channels": 1, "heard": "1", "sampled_s": 10.0,
               "level_dbfs": [level], "problems": []}  # fmt: skip


def _sounds(events: list[Row], duration_s: float, n_mels: int) -> Iterator[Row]:
    """The same noise for each event, which Opus makes larger than most sounds."""
    rng = np.random.default_rng(5)
    noise = 0.1 * rng.standard_normal(round(duration_s * 24_000))
    heard, expected = io.BytesIO(), io.BytesIO()
    for file, sound in ((heard, noise), (expected, noise[::-1])):
        soundfile.write(file, sound, 24_000, format="OGG", subtype="OPUS", compression_level=0.96)
    levels = rng.normal(-40, 8, (n_mels, min(600, round(40 * duration_s)))).astype(np.float16)
    for number, event in enumerate(events):
        yield {"event_id": event["event_id"], "recording": event["recording"], "onset_s": event["onset_s"],
               "duration_s": duration_s, "gain_db": 12.0, "opus": heard.getvalue(), "n_mels": n_mels,
               "log_mel": levels.ravel(), "expected": expected.getvalue() if number < 3 else None,
               "expected_log_mel": levels[:, ::-1].ravel() if number < 3 else None}  # fmt: skip


def _write(out: str, path: str, rows: list[Row], schema: pa.Schema) -> pa.Table:
    columns = {}
    for name in schema.names:
        kind, values = schema.field(name).type, [row.get(name) for row in rows]
        if pa.types.is_fixed_size_list(kind) and values and values[0] is not None and name != "map":
            flat = pa.array(np.concatenate(values).astype(kind.value_type.to_pandas_dtype()))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
        else:
            columns[name] = pa.array(values, kind)
    table = pa.table(columns, schema=schema)
    parquet.write_table(table, storage.join(out, path), schema=schema)
    return table


def _write_shards(out: str, table: str, rows: list[Row], schema: pa.Schema, rows_per_shard: int) -> None:
    for shard, first in enumerate(range(0, len(rows), rows_per_shard)):
        _write(out, f"{table}/part-{shard:05d}.parquet", rows[first : first + rows_per_shard], schema)


def _write_folder(
    out: str, features: FeatureSettings, alarm: AlarmThreshold | None, own: Row | None, *, with_model: bool, note: str
) -> None:
    """The resolved run, and what it wrote down of its model."""
    model = storage.join(out, "trained/mae-0")
    run = {"model": model, "recordings": [f"mill/{note}"], "out": out, "alarm": own, "audit": {"explain": "alarms"}}
    storage.write_text(storage.join(out, "audit.yaml"), yaml.safe_dump(run, sort_keys=False))
    card = {"name": "mae", "seed": 0, "features": vars(features), "alarm": None if alarm is None else vars(alarm)}
    if with_model:
        storage.write_text(storage.join(out, "model.json"), json.dumps(card))


def _clips(n_recordings: int, *, timed: bool, name: str) -> list[Row]:
    rows = []
    for number in range(n_recordings):
        start = START + timedelta(minutes=number)
        path = f"{name}_{start:%y-%m-%d_%H%M}_{number:05d}.wav"
        for window in range(6):
            rows.append(
                {"clip_id": f"{number:06d}{window:02d}", "recording": path, "uri": f"mill/{path}",
                 "recorder": name, "onset_s": 10.0 * window, "duration_s": 10.0, "split": "test", "annotated": False,
                 "recorded_at": start + timedelta(seconds=10 * window) if timed else None}
            )  # fmt: skip
    return rows


def _stuck(clips: list[Row], boards: int, rng: np.random.Generator) -> dict[str, float]:
    """How loud a stuck board is, by clip: each lasts one to four clips."""
    found: dict[str, float] = {}
    for number, first in enumerate(np.linspace(60, len(clips) - 10, boards).astype(int)):
        for clip in clips[first : first + 1 + number % 4]:
            found[clip["clip_id"]] = float(rng.uniform(6, 30))
    return found


def _scores(
    clips: list[Row],
    stuck: dict[str, float],
    *,
    rate: float,
    with_alarm: bool,
    pooling: str,
    shift: float,
    rng: np.random.Generator,
) -> tuple[list[Row], AlarmThreshold]:
    normal = 13 + 2 * rng.gamma(2.0, size=len(clips)) + np.sin(np.arange(len(clips)) / 8_640 * 2 * np.pi)
    total = shift + normal + [stuck.get(clip["clip_id"], 0.0) for clip in clips]
    values = {"score": total, "worst_second_score": total * 2.0}
    pooled = "score" if pooling == "mean" else "worst_second_score"
    others = np.array([clip["clip_id"] not in stuck for clip in clips])
    threshold = float(np.quantile(values[pooled][others], 1 - rate))
    alarm = AlarmThreshold("quantile", pooling, rate or 0.001, threshold, rate * 360, n_validation=433)
    rows = [
        {"clip_id": clip["clip_id"], "model": "mae", "seed": 0, "score": values["score"][index],
         "worst_second_score": values["worst_second_score"][index], "threshold": threshold if with_alarm else None,
         "alarm": bool(values[pooled][index] > threshold) if with_alarm else None, "worst_onset_s": EVENT_S,
         "worst_mel_band": 11}
        for index, clip in enumerate(clips)
    ]  # fmt: skip
    return rows, alarm


def _pattern(is_stuck: bool, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A map that is strong where a stuck board is heard, and anywhere in a clip that alarmed by chance."""
    band, time = np.linspace(0, 1, shape[0])[:, None], np.linspace(0, 10, shape[1])[None, :]
    onset = EVENT_S if is_stuck else rng.uniform(0, 9)
    here = np.exp(-(((band - EVENT_BAND) / 0.12) ** 2)) * ((time >= onset) & (time < onset + 1))
    return (rng.gamma(1.0, 0.2, shape) + 3 * here).astype(np.float32)


def _explanations(
    clip_id: str, is_stuck: bool, pictured: bool, methods: Sequence[str], shape: tuple[int, int],
    rng: np.random.Generator,
) -> list[Row]:  # fmt: skip
    rows = []
    grid = _pattern(is_stuck, shape, rng)
    for method in methods:
        values = grid - 0.2 if method == "integrated_gradients" else grid
        curve = values.sum(axis=0)
        row = {"clip_id": clip_id, "model": "mae", "seed": 0, "method": method, "curve": curve, "degenerate": False,
               "profile": np.abs(values[:, curve >= np.percentile(curve, 90)]).sum(axis=1)}  # fmt: skip
        if pictured:
            row |= {"map": (values / np.abs(values).max()).astype(np.float16).ravel(),
                    "map_scale": float(np.abs(values).max())}  # fmt: skip
        rows.append(row)
    return rows


def _picture(clip_id: str, is_stuck: bool, shape: tuple[int, int], rng: np.random.Generator) -> Row:
    level = -30 - 20 * np.linspace(0, 1, shape[0])[:, None] + rng.normal(0, 2, shape)
    heard = level + 8 * _pattern(is_stuck, shape, rng)
    return {"clip_id": clip_id, "model": "mae", "seed": 0, "log_mel": heard.ravel(),
            "reconstruction": level.ravel()}  # fmt: skip


def _faithfulness(clip_id: str, is_stuck: bool, methods: Sequence[str]) -> list[Row]:
    """Stuck boards are explained well; what alarmed by chance is not."""
    share = {"error_map": 0.45, "saliency": 0.38, "integrated_gradients": 0.2}
    rows = []
    for method in methods:
        for percentile in (90.0, 95.0):
            value = share[method] if is_stuck else 0.04 + 0.06 * (method == "error_map")
            rows.append(
                {"clip_id": clip_id, "model": "mae", "seed": 0, "method": method, "protocol": "paper", "mode": "frame",
                 "percentile": percentile, "replaced_fraction": 1 - percentile / 100, "error_before": 20.0,
                 "error_after": 20.0 * (1 - value), "faithfulness": value}
            )  # fmt: skip
    return rows


def _ledger(clips: list[Row], scored: list[Row], n_rejected: int, name: str) -> list[Row]:
    done = {clip["clip_id"] for clip in scored}
    rows: list[Row] = [
        {key: clip[key] for key in ("clip_id", "recording", "onset_s", "duration_s")}
        | ({"status": "done", "stage": "score"} if clip["clip_id"] in done
           else {"status": "failed", "stage": "decode", "reason": f"3 samples are not finite numbers: {name}"})
        for clip in clips
    ]  # fmt: skip
    rows += [
        {"recording": f"{name}_broken_{number:05d}.wav", "status": "skipped", "stage": "index",
         "reason": f"not a WAV file: {name}"}
        for number in range(n_rejected)
    ]  # fmt: skip
    return rows
