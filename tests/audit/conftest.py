"""A finished audit, its tables made by hand: two recordings that follow on, one with a name of the worst kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from faithad import parquet, schemas, storage
from faithad.audit.events import find_events
from faithad.clips.ledger import clip_ledger_row, ledger_row, ledger_table
from faithad.clips.manifest import ClipRow, manifest_table
from faithad.config.audit import AuditRun
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.settings import FeatureSettings

RATE_HZ = 8_000
FIRST, SECOND, ODD = "mill/MPD_24-05-06_0700_00001.wav", "mill/MPD_24-05-06_0701_00002.wav", "mill/O'B <b>\t=1.flac"
FEATURES = FeatureSettings(sample_rate_hz=RATE_HZ, n_fft=400, hop_samples=200, n_mels=16)
ALARM = AlarmThreshold("quantile", "mean", 0.05, 2.0, 18.0, 20)

# Scores of the clips, 10 s each; those above 2 alarm. The last alarm of the first recording and the first of the second
# lie side by side by the clock.
SCORES = {FIRST: [3.0, 1.0, 1.2, 1.1, 1.3, 5.0], SECOND: [4.0, 1.0, 1.0, 1.4, 1.1, 1.5], ODD: [1.0, 2.5, 1.9]}


@dataclass(frozen=True)
class Audit:
    """`out` is what the pipelines take; `sounds` are the samples of each recording, (samples, channels)."""

    out: str
    sounds: dict[str, np.ndarray]
    places: dict[str, Path]

    def events(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = parquet.read_table(storage.join(self.out, "events.parquet")).to_pylist()
        return rows


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SkipCAETransformer(16, 400)
    trained = TrainedModel(
        network=network, normalization=Normalization.identity(16), features=FEATURES, name="mae", seed=0, alarm=ALARM,
        best_epoch=1, config_hash="0" * 12,
    )  # fmt: skip
    save_model(trained, folder)
    return folder


@pytest.fixture
def audit(tmp_path: Path, model: str) -> Audit:
    """The audit as it lies on disk; a clip of the second recording has failed, and its last 4 s were dropped."""
    out, mill = str(tmp_path / "out"), tmp_path / "mill"
    mill.mkdir()
    sounds, places, rows = {}, {}, []
    generator = np.random.default_rng(0)
    for recording, scores in SCORES.items():
        places[recording] = mill / recording.partition("/")[2]
        channels = 2 if recording == ODD else 1
        n_samples = (10 * len(scores) + (4 if recording == SECOND else 0)) * RATE_HZ
        sounds[recording] = generator.integers(-(2**15), 2**15, (n_samples, channels)).astype(np.int16)
        soundfile.write(places[recording], sounds[recording], RATE_HZ, subtype="PCM_16")
        rows += [ClipRow(recording, str(places[recording]), 10.0 * k, 10.0, "test") for k in range(len(scores))]
    failed = next(row for row in rows if (row.recording, row.onset_s) == (SECOND, 40.0))
    # As if the audit had been given an annotation table: another reference takes its place.
    rows = [replace(row, label=1, intervals=((0.0, 10.0),), annotated=True) for row in rows]
    manifest = manifest_table(rows)
    ledger = [
        clip_ledger_row(clip, "failed", stage="audit", reason="x")
        if clip["clip_id"] == failed.clip_id
        else clip_ledger_row(clip, "done", stage="audit")
        for clip in manifest.to_pylist()
    ]
    ledger.append(ledger_row(SECOND, "skipped", "dropped", onset_s=60.0, duration_s=4.0))
    _write_tables(out, manifest, [row for row in rows if row.clip_id != failed.clip_id])
    parquet.write_table(manifest, storage.join(out, "manifest.parquet"), schema=schemas.MANIFEST)
    parquet.write_table(ledger_table(ledger), storage.join(out, "ledger.parquet"), schema=schemas.LEDGER)
    run = AuditRun(model=model, recordings=(str(mill),), out=out)
    storage.write_text(storage.join(out, "audit.yaml"), run.to_yaml())
    return Audit(out, sounds, places)


def curve_of(clip_number: int) -> np.ndarray:
    """The highest twentieth of its frames, 20, lies in one second: that of the clip's number, from 0."""
    curve = np.linspace(0, 0.1, 400)
    curve[40 * clip_number + 10 : 40 * clip_number + 30] = 1.0
    return curve


# The second in which each clip is loudest, by its number.
_LOUDEST = {0: 2, 1: 0, 5: 4}


def _write_tables(out: str, manifest: pa.Table, clips: list[ClipRow]) -> None:
    scores, explanations, lines, faithfulness = [], [], [], []
    for clip in clips:
        keys = {"clip_id": clip.clip_id, "model": "mae", "seed": 0}
        number = round(clip.onset_s / 10)
        score = SCORES[clip.recording][number]
        scores.append({**keys, "score": score, "worst_second_score": 2 * score, "threshold": 2.0, "alarm": score > 2.0,
                       "worst_onset_s": 4.0, "worst_mel_band": 7, "level_db": score,
                       "loudest_second_db": 10.0 + score})  # fmt: skip
        if score > 2.0:
            lines.append({**keys, "line": "level", "curve": curve_of(_LOUDEST[number])})
            keys["method"] = "saliency"
            explanations.append({**keys, "curve": curve_of(number), "profile": np.arange(16), "degenerate": False})
            faithfulness.append({**keys, "protocol": "paper", "mode": "frame", "percentile": 95.0, "faithfulness": 0.5,
                                 "error_before": score, "error_after": 0.5 * score,
                                 "replaced_fraction": 0.05})  # fmt: skip
    tables = {
        "scores": pa.Table.from_pylist(scores, schema=schemas.SCORES),
        "attributions": pa.Table.from_pylist(explanations, schema=schemas.attributions(16, 400)),
        "lines": pa.Table.from_pylist(lines, schema=schemas.LINES),
        "faithfulness": pa.Table.from_pylist(faithfulness, schema=schemas.FAITHFULNESS),
    }
    for name, table in tables.items():
        parquet.write_table(table, storage.join(out, name, "part-00000.parquet"), schema=table.schema)
    events = find_events(
        tables["scores"], manifest, alarm=ALARM, explanations=tables["attributions"],
        faithfulness=tables["faithfulness"], merge_gap_s=10.0, method="saliency", percentile=95.0, features=FEATURES,
    )  # fmt: skip
    parquet.write_table(events, storage.join(out, "events.parquet"), schema=schemas.EVENTS)
