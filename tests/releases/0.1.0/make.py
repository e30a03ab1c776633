"""Made this folder's study and audit, run by release 0.1.0: `python make.py FOLDER`. Kept as a record."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import ray
import soundfile
import torch
import yaml
from faithad.clips.synthetic import synthesize
from faithad.config import load_study
from faithad.config_audit import load_audit_run
from faithad.model.checkpoint import load_model
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.study import run_study

ATTRIBUTION = {"smooth_grad_samples": 3, "integrated_gradients_steps": 4, "gradient_shap_samples": 3}
STUDY = {
    "name": "release",
    "root": "study",
    "models": ["ae", "mae", "isolation_forest"],
    "seeds": [0],
    "data": {"root": "mill", "train": ["train"], "test": ["test"], "annotations": "annotations.csv", "clip_s": 4.0},
    "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
    "train": {"epochs": 2},
    "attribution": ATTRIBUTION,
    "audit": {"maps": 1, "clips_per_shard": 8},
}
AUDIT = {
    "model": "study/models/mae-0",
    "recordings": ["week"],
    "out": "audit",
    "alarm": {"false_alarm_rate": 0.3},
    "attribution": ATTRIBUTION,
    "audit": {"maps": 2},
}


def make_week() -> None:
    """The mill's test recordings, one of them once more with a second of loud noise, and a file that is no sound."""
    week = Path("week")
    week.mkdir()
    shutil.copytree("mill/test", week / "test")
    samples, rate = soundfile.read(min((week / "test").glob("*.wav")))
    samples[6 * rate : 7 * rate] += np.random.default_rng(0).normal(0, 0.2, rate)
    soundfile.write(week / "loud.wav", samples, rate)
    (week / "broken.wav").write_text("no sound")


def expected(name: str) -> dict[str, float]:
    """What a model says of a clip that a formula makes."""
    model = load_model(f"study/models/{name}")
    band, frame = torch.meshgrid(torch.arange(model.n_mels), torch.arange(model.n_frames), indexing="ij")
    clip = (-40 + 10 * torch.sin(band / 3.0) + 5 * torch.cos(frame / 7.0)).float()[None]
    x = model.prepare(clip)
    y = model.network.eval()(x)
    score = float((y - x).square().mean(dtype=torch.float64)) if model.reconstructs else float(y[0])
    return {"score": score, "threshold": model.alarm.threshold, "n_frames": model.n_frames}


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    synthesize(
        Path("mill"),
        train_recordings=4,
        test_recordings=4,
        seed=3,
        start=datetime(2019, 12, 4, 8, 48),
        recording_s=20.0,
    )
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    Path("audit.yaml").write_text(yaml.safe_dump(AUDIT))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    print(run_study(load_study("study.yaml")))
    make_week()
    print(run_audit(load_audit_run("audit.yaml")).line)
    ray.shutdown()
    names = ("ae-0", "mae-0", "isolation_forest-0")
    Path("expected.json").write_text(json.dumps({name: expected(name) for name in names}, indent=1))
