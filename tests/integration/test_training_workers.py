"""Trainings on a real Ray: several workers, several trainings side by side, a killed worker, failures, requests that
no cluster of this size can meet. More of what can die is in tests/chaos/training_kills.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml

from faithad import parquet, schemas, storage
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.model.checkpoint import load_model
from faithad.pipelines.study import STAGES

pytestmark = pytest.mark.usefixtures("local_ray")


def indexed(finished: Study, study: Study) -> Study:
    """The study with the index and the features of the finished one, ready to train."""
    for name in ("manifest.parquet", "index_ledger.parquet", "features", "stages/index.json", "stages/features.json"):
        source, target = Path(finished.root, name), Path(study.root, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return study


def epochs(study: Study, name: str) -> pd.DataFrame:
    return parquet.read_table(storage.join(study.root, "models", name, "epochs.parquet")).to_pandas()


def assert_same_training(study: Study, other: Study, name: str) -> None:
    """To the last bit: all losses, the best epoch and its weights."""
    pd.testing.assert_frame_equal(
        epochs(study, name).drop(columns="duration_s"), epochs(other, name).drop(columns="duration_s"), check_exact=True
    )
    one, two = (load_model(storage.join(s.root, "models", name)) for s in (study, other))
    assert one.best_epoch == two.best_epoch
    weights = two.network.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in one.network.state_dict().items())


def test_two_workers_train_what_one_trains(finished: Study, small_study: Callable[..., Study]) -> None:
    study = indexed(finished, small_study(models=["mae"], train={"epochs": 2, "workers": 2, "cpus_per_worker": 1}))
    STAGES["train"](study)
    one, two = epochs(finished, "mae-0"), epochs(study, "mae-0")
    np.testing.assert_allclose(two["train_loss"], one["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(two["validation_loss"], one["validation_loss"], rtol=1e-4)
    assert two["best"].any()
    trained = load_model(storage.join(study.root, "models", "mae-0"), expect={"n_mels": 16, "n_frames": 100})
    assert trained.best_epoch in (1, 2)
    scores = parquet.read_table(storage.join(study.root, "models", "mae-0", "validation_scores.parquet"))
    assert scores.num_rows == 1
    kept = [path.name for path in Path(study.root, "training", "mae-0").rglob("*") if path.is_file()]
    assert kept == ["state.pt"], "what Ray Train kept is gone once the model stands, but for our own last state"


def test_a_worker_killed_in_mid_epoch_ends_where_it_would_have_ended(
    finished: Study, small_study: Callable[..., Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"models": ["mae"], "train": {"epochs": 10, "batch_size": 1, "cpus_per_worker": 1}}
    undisturbed, disturbed = (
        indexed(finished, small_study(**changes, root=str(tmp_path / name))) for name in ("undisturbed", "disturbed")
    )
    STAGES["train"](undisturbed)
    told = capsys.readouterr().out
    assert told.count("train mae-0: best epoch") == 1
    assert "lost its process" not in told

    before: list[pd.DataFrame] = []
    killer = threading.Thread(target=kill_in_training, args=(disturbed, "mae-0", before))
    killer.start()
    STAGES["train"](disturbed)
    killer.join()
    assert "lost its process (WorkerCrashedError) and goes on from its last state; 1 of 3" in capsys.readouterr().out
    assert_same_training(undisturbed, disturbed, "mae-0")
    # It went on: the first epochs are those of the killed process, down to the time that they took.
    kept = len(before[0]) - 1
    assert kept >= 2
    pd.testing.assert_frame_equal(epochs(disturbed, "mae-0")[:kept], before[0][:kept], check_exact=True)


def kill_in_training(study: Study, name: str, before: list[pd.DataFrame]) -> None:
    """Kill the process that trains once three epochs are done, and say what its table held then."""
    table = Path(study.root, "models", name, "epochs.parquet")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if table.exists() and len(epochs(study, name)) >= 3:
            (process,) = processes(f"ray::train {name}")
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            before.append(epochs(study, name))
            return
        time.sleep(0.005)


def processes(title: str) -> list[psutil.Process]:
    """Our own descendants of this title; another test session on this machine may have such processes too."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # gone meanwhile
            if child.cmdline()[:1] == [title]:
                found.append(child)
    return found


@pytest.mark.long
def test_trainings_that_fail_do_not_lose_the_others(
    finished: Study, small_study: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    study = indexed(finished, small_study(seeds=[0, 1], train={"epochs": 1}))
    blocked = [Path(study.root, "models", name) for name in ("ae-0", "mae-1")]
    for path in blocked:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a file where a folder should be")
    message = r"2 of 4 trainings failed(.|\n)*  ae-0 failed: Location .* cannot be written(.|\n)*  mae-1 failed: Loc"
    with pytest.raises(StudyError, match=message):
        STAGES["train"](study)
    told = capsys.readouterr().out
    assert [line[:12] for line in sorted(told.splitlines()) if "best epoch" in line] == ["train ae-1: ", "train mae-0:"]

    for path in blocked:
        path.unlink()
    STAGES["train"](study)
    told = capsys.readouterr().out
    assert [line[:12] for line in sorted(told.splitlines()) if "best epoch" in line] == ["train ae-0: ", "train mae-1:"]


def test_the_baselines_stand_beside_the_others(finished: Study, small_study: Callable[..., Study]) -> None:
    study = indexed(
        finished,
        small_study(
            models=["cae", "one_class_svm", "isolation_forest", "frame_pca", "frame_ridge"],
            seeds=[0],
            train={"epochs": 1},
        ),
    )
    STAGES["train"](study)
    for name in study.models:
        folder = storage.join(study.root, "models", f"{name}-0")
        trained = load_model(folder, expect={"name": name, "seed": 0, "n_mels": 16, "n_frames": 101})
        scores = parquet.read_table(storage.join(folder, "validation_scores.parquet"))
        assert scores.schema.equals(schemas.VALIDATION_SCORES)
        assert trained.alarm is not None
        assert trained.alarm.pooling == "mean"
        assert trained.alarm.threshold == pytest.approx(scores["score"][0].as_py())
        fitted = name != "cae"
        assert trained.best_epoch == (0 if fitted else 1)
        assert (scores["worst_second_score"].null_count == 0) == trained.reconstructs
        assert storage.exists(storage.join(folder, "epochs.parquet")) != fitted


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"workers": 2, "cpus_per_worker": 50}, r"2 workers with 50 CPU each.*2 CPU, 0 GPU.*Lower train\.workers"),
        ({"gpus_per_worker": 1}, r"1 worker with 1 CPU and 1 GPU each.*train\.gpus_per_worker"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused(
    finished: Study, small_study: Callable[..., Study], train: dict[str, object], message: str
) -> None:
    study = indexed(finished, small_study(models=["mae"], train={"epochs": 2, **train}))
    with pytest.raises(StudyError, match=message):
        STAGES["train"](study)


def test_the_job_trains_what_its_configuration_says(finished: Study, tmp_path: Path) -> None:
    """As `ray job submit` starts it, from another folder; there is nothing left to train, so it needs no Ray."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "study").symlink_to(finished.root)
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(finished.to_yaml()) | {"root": "study"}))
    job = Path(__file__).parents[2] / "jobs" / "train.py"
    answer = subprocess.run(
        [sys.executable, job, "--config", config],
        cwd=tmp_path,
        env=os.environ | {"FAITHAD_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1].startswith(f"2 models: {home}/study/models. Next: ")
