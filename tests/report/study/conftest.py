"""A small but believable study on disk, written through the public schemas."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import yaml

from faithad import parquet, schemas, storage
from faithad.report.study_tables import StudyTables, example_clips, read_study

METHODS = ("error_map", "saliency", "smooth_grad", "integrated_gradients", "gradient_shap", "grad_cam")
SIGNED = ("integrated_gradients", "gradient_shap", "grad_cam")
PERCENTILES = tuple(float(p) for p in range(90, 100))
FRAMES_PER_S = 40
# F-score at percentiles 90, 95 and 99 by model and method; roughly the shapes that published studies show.
F_SCORES = {
    "ae": (
        (0.50, 0.54, 0.52),
        (0.45, 0.40, 0.28),
        (0.45, 0.39, 0.29),
        (0.47, 0.46, 0.36),
        (0.49, 0.46, 0.35),
        (0.29, 0.26, 0.16),
    ),
    "mae": (
        (0.55, 0.58, 0.51),
        (0.59, 0.62, 0.55),
        (0.59, 0.61, 0.51),
        (0.50, 0.49, 0.41),
        (0.49, 0.47, 0.38),
        (0.50, 0.47, 0.33),
    ),
}
FAITHFUL = {"ae": (0.141, 0.093, 0.094, 0.096, 0.098, 0.083), "mae": (0.175, 0.137, 0.138, 0.129, 0.122, 0.112)}
EXPLAINED, CLASSICAL = ("ae", "mae"), ("one_class_svm", "isolation_forest")
TYPES = ("stuck board", "broken board", "uneven or thick board")

Row = dict[str, Any]
WriteStudy = Callable[..., str]


@pytest.fixture(scope="session")
def write_study() -> WriteStudy:
    """Writes a study: see `build_study`."""
    return build_study


@pytest.fixture(scope="session")
def root(write_study: WriteStudy, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study as most tests read it; they leave it as it is."""
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def study(root: str) -> StudyTables:
    return read_study(root)


def build_study(
    root: Path | str,
    *,
    models: Sequence[str] = ("ae", "mae"),
    seeds: Sequence[int] = (0, 1, 2),
    n_recordings: int = 12,
    shape: tuple[int, int] = (20, 80),
    labelled: bool = True,
    annotated: bool = True,
    timed: bool = True,
    n_examples: int = 2,
    n_rejected: int = 3,
    features: bool = True,
    recording: str = "MPD",
) -> str:
    """A whole study below `root`: `n_recordings` test recordings of six clips, a quarter as many for training.

    The AE has one frame more than the MAE, as in the paper's protocol. The baselines are scored and not explained; the
    classical ones have no training history either, and one score for a whole clip.
    """
    root, rng = str(root), np.random.default_rng(7)
    clips = _manifest(n_recordings, labelled=labelled, annotated=annotated, timed=timed, name=recording)
    test = [clip for clip in clips if clip["split"] == "test"]
    write(root, "manifest.parquet", clips, schemas.MANIFEST)
    settings: Row = {
        "name": "demo-mill",
        "root": root,
        "protocol": "paper",
        "models": list(models),
        "seeds": list(seeds),
    }
    if features:
        settings["features"] = {"sample_rate_hz": 20_000, "n_fft": 1_000, "hop_samples": 500, "n_mels": shape[0]}
    settings["data"] = {"layout": "audio", "recordings": ["recordings"], "note": recording}
    storage.write_text(storage.join(root, "study.yaml"), yaml.safe_dump(settings, sort_keys=False))
    examples = sorted(test, key=lambda clip: (not clip["annotated"], clip["label"] != 1))[:n_examples]
    for model in models:
        n_frames = shape[1] + (model == "ae")
        for seed in seeds:
            if model not in CLASSICAL:
                write(root, f"models/{model}-{seed}/epochs.parquet", _epochs(model, seed, rng), schemas.EPOCHS)
            folder = f"audit/{model}-{seed}"
            write(root, f"{folder}/scores/part-0.parquet", _scores(test, model, seed, rng), schemas.SCORES)
            if model not in EXPLAINED:
                continue
            explained, pictures = _explain(test, examples, model, seed, (shape[0], n_frames), rng)
            write(root, f"{folder}/attributions/part-0.parquet", explained, schemas.attributions(shape[0], n_frames))
            write(root, f"{folder}/spectrograms/part-0.parquet", pictures, schemas.spectrograms(shape[0], n_frames))
    _write_summaries(root, models, len(seeds), test, labelled=labelled, annotated=annotated)
    write(root, "summary/ledger.parquet", _ledger(clips, n_rejected, name=recording), schemas.LEDGER)
    return root


def write(root: str, path: str, rows: Iterable[Row], schema: pa.Schema) -> None:
    """Rows whose absent columns are null."""
    columns = {name: pa.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names}
    parquet.write_table(pa.table(columns, schema=schema), storage.join(root, path), schema=schema)


def write_sounds(root: str) -> None:
    """The sound of the first example clip, and why the second one cannot be heard."""
    file, noise = io.BytesIO(), 0.1 * np.random.default_rng(5).standard_normal(240_000)
    soundfile.write(file, noise, 24_000, format="OGG", subtype="OPUS", compression_level=0.96)
    heard, gone = example_clips(root)
    rows = [
        {"clip_id": heard, "gain_db": 12.0, "opus": file.getvalue()},
        {"clip_id": gone, "reason": "gone <b>"},
    ]
    write(root, "clip_sounds.parquet", rows, schemas.CLIP_SOUNDS)


def _manifest(n_recordings: int, *, labelled: bool, annotated: bool, timed: bool, name: str) -> list[Row]:
    """Two mornings of test recordings, after three hours in which the training recordings were made."""
    rows = []
    for number in range(n_recordings + max(1, n_recordings // 4)):
        training = number >= n_recordings
        day = 3 if training else 5 + (number >= n_recordings // 2)
        start = datetime(2019, 12, day, 6, 40) + timedelta(minutes=4 * (number % max(1, n_recordings // 2)))
        path = f"{'train' if training else 'test'}/{name}_{start:%y-%m-%d_%H%M}_{number:05d}.wav"
        for window in range(6):
            event = not training and number % 3 == 1 and window in (2, 5)
            known = event and annotated and labelled
            onset = 2.0 + (number + window) % 5
            rows.append(
                {
                    "clip_id": f"{number:06d}{window:02d}",
                    "recording": path,
                    "uri": f"recordings/{path}",
                    "onset_s": 10.0 * window,
                    "duration_s": 10.0,
                    "recorded_at": start + timedelta(seconds=10 * window) if timed else None,
                    "split": ("validation" if window == 5 else "train") if training else "test",
                    "label": int(event) if labelled else None,
                    "anomaly_type": TYPES[number // 3 % 3] if event and labelled else None,
                    "intervals": [{"onset_s": onset, "offset_s": onset + 2}] if known else None,
                    "annotated": known,
                }
            )
    return rows


def _epochs(model: str, seed: int, rng: np.random.Generator) -> list[Row]:
    n_epochs, start = 40 - 3 * seed, 120.0 if model == "ae" else 90.0
    epochs = np.arange(n_epochs)
    train = 13 + start * np.exp(-epochs / 5) + rng.normal(0, 0.4, n_epochs)
    validation = 15 + start * np.exp(-epochs / 5) + 0.004 * epochs**2 + rng.normal(0, 0.6, n_epochs)
    best = int(validation.argmin())
    return [
        {"model": model, "seed": seed, "epoch": epoch, "train_loss": train[epoch], "validation_loss": validation[epoch],
         "learning_rate": 1e-3, "duration_s": 31.0, "best": epoch == best, "diverged": False,
         "gradient_norm": 5.0 / (1 + epoch)}
        for epoch in range(n_epochs)
    ]  # fmt: skip


def _scores(clips: list[Row], model: str, seed: int, rng: np.random.Generator) -> list[Row]:
    rows = []
    for number, clip in enumerate(clips):
        event = clip["label"] == 1
        score = (
            13 + 2 * rng.gamma(2.0) + 1.5 * number / len(clips) + event * rng.gamma(3.0) * (2.2 if model == "ae" else 2)
        )
        rows.append(
            {"clip_id": clip["clip_id"], "model": model, "seed": seed, "score": score,
             "worst_second_score": score * 1.4 + event * 3, "threshold": 22.0, "alarm": score > 22.0,
             "worst_onset_s": 3.0, "worst_mel_band": 5}
            | (dict.fromkeys(("worst_second_score", "worst_onset_s", "worst_mel_band")) if model in CLASSICAL else {})
        )  # fmt: skip
    return rows


def _explain(
    clips: list[Row], examples: list[Row], model: str, seed: int, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[list[Row], list[Row]]:
    """Attributions of all clips, with maps for the examples, and the examples' spectrograms."""
    explained, pictures = [], []
    for clip in clips:
        keys = {"clip_id": clip["clip_id"], "model": model, "seed": seed}
        chosen = clip in examples
        if chosen:
            log_mel, event = _sound(clip, shape, rng)
            smooth = 0.5 * log_mel + 0.5 * log_mel.mean(axis=1, keepdims=True)
            pictures.append(keys | {"log_mel": log_mel.ravel(), "reconstruction": smooth.ravel()})
        for method in METHODS:
            row: Row = keys | {"method": method, "degenerate": False, "curve": np.zeros(shape[1], np.float32)}
            row["profile"] = np.zeros(shape[0], np.float32)
            if chosen:
                noise = rng.normal(0, 1, shape) if method in SIGNED else rng.gamma(1.0, 1.0, shape)
                grid = noise * (0.25 + event * (3 if model == "mae" else 1.6))
                grid = grid + (event if method in SIGNED else 0.0)
                row |= {"curve": grid.sum(axis=0), "map_scale": float(np.abs(grid).max())}
                row["map"] = (grid / np.abs(grid).max()).astype(np.float16).ravel()
            elif clip is clips[0] and method == "grad_cam":
                row["degenerate"] = True
            explained.append(row)
    return explained, pictures


def _sound(clip: Row, shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel of a planer with passing boards, in dB, and where its anomaly is (0 to 1), both (F, T)."""
    band, time = np.linspace(0, 1, shape[0])[:, None], np.arange(shape[1])[None, :] / FRAMES_PER_S
    boards = 1 / (1 + np.exp(-8 * np.sin(2 * math.pi * time / 3.1 + 0.4)))
    tones = sum(np.exp(-(((band - place) / 0.012) ** 2)) for place in (0.18, 0.31, 0.42, 0.52, 0.6, 0.67))
    event = np.zeros(shape)
    for interval in clip["intervals"] or []:
        inside = (time >= interval["onset_s"]) & (time < interval["offset_s"])
        event += inside * np.exp(-(((band - 0.55 - 0.05 * np.sin(9 * time)) / 0.16) ** 2))
    level = -22 - 26 * band + boards * 12 * np.exp(-band) + tones * (7 + 6 * boards) + 14 * event
    return (level + rng.normal(0, 2.2, shape)).astype(np.float32), event


def _through(values: tuple[float, float, float], percentile: float) -> float:
    return float(np.polyval(np.polyfit((90, 95, 99), values, 2), percentile))


def _estimate(mean: float, n_seeds: int, **others: Any) -> Row:
    spread = 0.013 if n_seeds > 1 else None
    return {"protocol": "paper", "mean": mean, "std": spread, "ci_low": mean - 0.06, "ci_high": mean + 0.05,
            "n_seeds": n_seeds, **others}  # fmt: skip


def _write_summaries(
    root: str, models: Sequence[str], n_seeds: int, test: list[Row], *, labelled: bool, annotated: bool
) -> None:
    n_anomalous, n_annotated = sum(clip["label"] == 1 for clip in test), sum(clip["annotated"] for clip in test)
    sizes = {"n_normal": len(test) - n_anomalous, "n_anomalous": n_anomalous}
    areas = []
    for model in models if labelled else ():
        for pooling in ("mean",) if model in CLASSICAL else ("mean", "worst_second"):
            keys = {"model": model, "score": "paper", "pooling": pooling, "anomaly_type": "all"}
            for metric in ("auc", "pauc"):
                area = 0.83 + 0.02 * (model == "ae") + 0.02 * (pooling != "mean") - 0.1 * (metric == "pauc")
                areas.append(keys | {"metric": metric} | _estimate(area, n_seeds, **sizes))
            areas.append(keys | {"metric": "caught_5"} | _estimate(0.43, n_seeds, **sizes))
    write(root, "summary/detection.parquet", areas, schemas.DETECTION_SUMMARY)
    found: list[Row] = []
    faithful: list[Row] = []
    for model in (name for name in models if name in EXPLAINED):
        for index, method in enumerate(METHODS):
            for percentile in PERCENTILES:
                keys = {"model": model, "method": method, "percentile": percentile, "metric": "faithfulness"}
                if annotated and labelled:
                    found += _f_scores(keys, _through(F_SCORES[model][index], percentile), n_seeds, n_annotated)
                share = FAITHFUL[model][index] * (100 - percentile) / 10
                segment = 2.2 * FAITHFUL[model][index] * math.sqrt((100 - percentile) / 10)
                rows = [keys | {"mode": "frame", "scope": "all"} | _estimate(share * 0.9, n_seeds, n_clips=len(test))]
                if annotated and labelled:
                    rows += [
                        keys | {"mode": mode, "scope": "annotated"} | _estimate(value, n_seeds, n_clips=n_annotated)
                        for mode, value in (("frame", share), ("segment", segment))
                    ]
                faithful += rows
    write(root, "summary/f_score.parquet", found, schemas.F_SCORE_SUMMARY)
    write(root, "summary/faithfulness.parquet", faithful, schemas.FAITHFULNESS_SUMMARY)


def _f_scores(keys: Row, mean: float, n_seeds: int, n_annotated: int) -> list[Row]:
    beside = {"control_random": 0.48 - 0.01 * (keys["percentile"] - 90), "control_every_second": 0.481}
    rows = [keys | {"anomaly_type": "all"} | _estimate(mean, n_seeds, n_clips=n_annotated) | beside]
    for number, kind in enumerate(TYPES):
        estimate = _estimate(mean + 0.08 * (number - 1), n_seeds, n_clips=max(1, n_annotated // 3))
        rows.append(keys | {"anomaly_type": kind} | estimate | beside)
    return rows


def _ledger(clips: list[Row], n_rejected: int, *, name: str) -> list[Row]:
    rows: list[Row] = [
        {key: clip[key] for key in ("clip_id", "recording", "onset_s", "duration_s")}
        | {"status": "done", "stage": "audit" if clip["split"] == "test" else "features", "reason": None}
        for clip in clips
    ]
    rows[0] |= {"status": "failed", "stage": "features", "reason": "3 samples are not finite numbers (NaN)"}
    for number in range(n_rejected):
        piece = {"recording": f"test/{name}_rejected_{number:05d}.wav", "onset_s": 0.0, "duration_s": 7.25}
        rows.append(piece | {"status": "skipped", "stage": "index", "reason": f"shorter than one clip: {name}"})
    return rows
