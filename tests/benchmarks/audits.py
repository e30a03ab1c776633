"""What the benchmarks of an audit share: a model, hours of recordings, and an audit of them on some of the cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import soundfile
import torch
from torch import nn

from faithad.audit.model import AuditModel
from faithad.clips.inputs import find_recordings
from faithad.clips.manifest import cut_recording, manifest_table
from faithad.clips.recordings import probe_recording, read_clip
from faithad.config.audit import RunAudit, load_audit_run
from faithad.config.sections import Attribution
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, load_model, save_model
from faithad.pipelines.audit.run import run_audit
from faithad.settings import FeatureSettings

PAPER = FeatureSettings()
CLIPS_IN_SHARD = RunAudit().clips_per_shard


def save(folder: Path, network: nn.Module, features: FeatureSettings, *, name: str, threshold: float = 1e12) -> str:
    """A model as a training leaves it. By default its alarm is never raised."""
    alarm = AlarmThreshold("quantile", "mean", 0.05, threshold, 18.0, 100)
    trained = TrainedModel(network.eval(), normalization(features), features, name, 0, alarm, 1, "bench")
    save_model(trained, str(folder))
    return str(folder)


def normalization(features: FeatureSettings) -> Normalization:
    return Normalization(torch.full((features.n_mels,), -40.0), torch.full((features.n_mels,), 10.0))


def prepared_model(model: str, attribution: Attribution, audit: Any) -> AuditModel:
    return AuditModel.prepare(load_model(model), attribution=attribution, audit=audit, device=torch.device("cpu"))


def long_recordings(folder: Path, *, n_clips: int, files: int) -> Path:
    """WAV files, mono, 16 bit, 20 kHz: one of noise with a hum, and links to it by other names."""
    folder.mkdir()
    rate_hz, minute = PAPER.sample_rate_hz, 60
    generator = np.random.default_rng(0)
    hum = 0.2 * np.sin(2 * np.pi * 100 * np.arange(minute * rate_hz) / rate_hz)
    left = n_clips // files * 10 * rate_hz
    with soundfile.SoundFile(folder / "hours-00.wav", "w", rate_hz, 1, "PCM_16") as file:
        while left > 0:
            block = (hum + generator.normal(0, 0.05, len(hum)))[:left]
            file.write(block)
            left -= len(block)
    for number in range(1, files):
        (folder / f"hours-{number:02}.wav").symlink_to("hours-00.wav")
    return folder


def clips_of(sounds: Path) -> pa.Table:
    (recording,) = find_recordings([("test", str(sounds))])
    rows, _ = cut_recording(recording, probe_recording(recording.uri), clip_s=10.0, remainder="drop")
    return manifest_table(rows)


def read(row: dict[str, Any]) -> np.ndarray:
    return read_clip(
        row["uri"],
        onset_s=row["onset_s"],
        duration_s=row["duration_s"],
        clip_s=10.0,
        sample_rate_hz=PAPER.sample_rate_hz,
    )


def audit(model: str, sounds: Path, out: Path, *overrides: str) -> Path:
    overrides = ("audit.explain=none", f"audit.clips_per_shard={CLIPS_IN_SHARD}", *overrides)
    outcome = run_audit(
        load_audit_run(None, model=model, recordings=[str(sounds)], out=str(out), overrides=list(overrides)),
        redo=False,
        retry_failed=False,
    )
    assert outcome.n_failed == 0, outcome.line
    return out


@contextmanager
def cores(n: int) -> Iterator[None]:
    """This process, and what it starts, on the first n of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def local_ray(n: int, **options: Any) -> Iterator[None]:
    ray.init(address="local", num_cpus=n, include_dashboard=False, log_to_driver=False, logging_level="error",
             object_store_memory=1 << 30, **options)  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()
