"""A mill of a few short recordings, a study small enough for tests, and one Ray for all tests of the session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import soundfile
import yaml

from faithad.config.study import Study, parse_study
from faithad.demo.mill import synthesize
from faithad.pipelines.audit.run import Outcome, run_audit
from faithad.pipelines.study import n_failed, run_study
from tests.integration.audits import RATE, make_run

# 16 mel bands by some 100 frames: the same code on a fiftieth of the cells.
SMALL: dict[str, Any] = {
    "name": "small",
    "models": ["ae", "mae"],
    "seeds": [0],
    "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
    "train": {"epochs": 2},
    "attribution": {"smooth_grad_samples": 3, "integrated_gradients_steps": 4, "gradient_shap_samples": 3},
    "audit": {"maps": 2, "clips_per_shard": 4},
}


@pytest.fixture(scope="session")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 20 s: four to train, four to test; three of the eight test clips are annotated."""
    folder = tmp_path_factory.mktemp("mill")
    synthesize(
        folder,
        train_recordings=4,
        test_recordings=4,
        seed=3,
        start=datetime(2019, 12, 4, 8, 48),
        recording_s=20.0,
    )
    return folder


@pytest.fixture
def small_study(mill: Path, tmp_path: Path) -> Callable[..., Study]:
    """Makes the small study on the mill; keyword arguments replace whole sections."""

    def make(**changes: Any) -> Study:
        return parse_study(yaml.safe_dump(small_values(mill, tmp_path / "study") | changes), name="small")

    return make


def small_values(mill: Path, root: Path) -> dict[str, Any]:
    data = {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
    return {**SMALL, "root": str(root), "data": data}


@pytest.fixture(scope="session")
def finished(mill: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The small study, run to its end once; for tests that only read."""
    root = tmp_path_factory.mktemp("finished")
    study = parse_study(yaml.safe_dump(small_values(mill, root)), name="small")
    line = run_study(study)
    assert line == f"16 clips done. Tables: {root}  Report: {root}/report.html"
    assert n_failed(study) == 0
    return study


@pytest.fixture(scope="session")
def week(mill: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings to audit: the mill's test part, loud noise in ten minutes, a short one, and two useless ones."""
    folder = tmp_path_factory.mktemp("mill") / "week 7"
    shutil.copytree(mill / "test", folder)
    generator = np.random.default_rng(0)
    normal = np.concatenate([soundfile.read(file)[0] for file in sorted((mill / "train").glob("*.wav"))])
    with soundfile.SoundFile(folder / "long.wav", "w", RATE, 1, "PCM_16") as long:
        for _ in range(8):
            long.write(normal + generator.normal(0, 0.001, len(normal)))
        long.seek(417 * RATE)
        long.write(generator.uniform(-1, 1, RATE))
    soundfile.write(folder / "noise.flac", generator.normal(0, 0.2, 25 * RATE), RATE)
    soundfile.write(folder / "short.wav", generator.normal(0, 0.2, 3 * RATE), RATE)
    (folder / "broken.wav").write_text("Dear mill, the recorder is broken. " * 100)
    (folder / "talk.mp3").write_bytes(b"ID3")
    return folder


@pytest.fixture(scope="session")
def audited(finished: Study, week: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The audit of these recordings, in which the alarms are explained; for tests that only read."""
    out = tmp_path_factory.mktemp("audit") / "out"
    return out, run_audit(make_run(finished, week, out))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this test session alone, which the pipelines join."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
