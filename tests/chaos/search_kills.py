"""A search whose driver, and whose trials, are really killed: it ends as if nothing had happened, and repeats nothing.

    python -m pytest tests/chaos/search_kills.py

Each search starts a Ray of its own, as a user's does: some eight minutes on four cores.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from faithad import parquet
from faithad.demo.mill import synthesize
from faithad.pipelines.cluster.session import usable_cores
from faithad.pipelines.search.plan import Trial, trial_location
from faithad.runs import layout

FAITHAD = Path(sys.executable).parent / "faithad"
TRIALS = [Trial(ratio, 4, seed) for seed in (0, 1) for ratio in (0.3, 0.5)]
EPOCHS = 60
# The processes of a trial of two workers, by the beginning of their titles.
OF_A_TRIAL = {"trial": "ray::ImplicitFunc", "leader": "ray::TrainController", "worker": "ray::RayTrainWorker"}


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mill")
    start = datetime(2019, 12, 4, 8, 48)
    synthesize(folder, train_recordings=4, test_recordings=4, seed=3, start=start, recording_s=20.0)
    return folder


@pytest.fixture(scope="module")
def undisturbed(mill: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of a search that nobody killed."""
    config = write_config(mill, tmp_path_factory.mktemp("undisturbed"))
    subprocess.run([FAITHAD, "search", "--config", config], check=True, timeout=600)
    return table_of(config)


@pytest.fixture(scope="module")
def undisturbed_together(mill: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The same with two workers to a trial."""
    config = write_config(mill, tmp_path_factory.mktemp("undisturbed"), workers=2)
    subprocess.run([FAITHAD, "search", "--config", config], check=True, timeout=600)
    return table_of(config)


def write_config(mill: Path, folder: Path, *, workers: int = 1) -> Path:
    values = {
        "name": "small",
        "root": str(folder / "study"),
        "seeds": [0, 1],
        "data": {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"},
        "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
        "train": {"epochs": EPOCHS, "patience": EPOCHS, "workers": workers},
        "search": {"mask_ratios": [0.3, 0.5], "patches": [4], "trials_at_once": 1},
    }
    if workers > 1:  # every core, so that what a lost trial keeps for itself is missing at once
        values["search"]["cpus_per_trial"] = usable_cores()
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    return folder / "study.yaml"


def table_of(config: Path) -> pd.DataFrame:
    table = parquet.read_table(str(config.parent / "study" / "summary" / "search.parquet")).to_pandas()
    return table.drop(columns="duration_s")


@pytest.fixture
def search(
    mill: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts the search of this test; a second time it goes on. What it says goes to a log."""
    config = write_config(mill, tmp_path, workers=getattr(request, "param", 1))
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with open(tmp_path / "log", "ab") as log:
            started.append(subprocess.Popen([FAITHAD, "search", "--config", config], stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for_state(root: Path, trial: Trial, process: subprocess.Popen[bytes]) -> None:
    state = Path(trial_location(str(root), trial, layout.STATE))
    deadline = time.monotonic() + 180
    while not state.exists():
        assert process.poll() is None, root.with_name("log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def records(root: Path) -> dict[Trial, int]:
    """When each record was written."""
    places = {trial: Path(trial_location(str(root), trial, layout.TRIAL_RECORD)) for trial in TRIALS}
    return {trial: place.stat().st_mtime_ns for trial, place in places.items() if place.exists()}


def test_a_driver_killed_again_and_again(
    search: Callable[[], subprocess.Popen[bytes]], undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    before: dict[Trial, int] = {}
    for trial in TRIALS[1:3]:
        process = search()
        wait_for_state(root, trial, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = records(root)
        assert trial not in now, "the kill came too late to show anything"
        assert before.items() <= now.items()
        before = now
    assert len(before) == 2
    process = search()
    assert process.wait(timeout=600) == 0, (tmp_path / "log").read_text()
    assert "Trials: 4 done." in (tmp_path / "log").read_text()
    assert before.items() <= records(root).items()
    pd.testing.assert_frame_equal(table_of(tmp_path / "study.yaml"), undisturbed, rtol=1e-4)


def test_a_trial_s_process_killed_in_mid_epoch(
    search: Callable[[], subprocess.Popen[bytes]], undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    process = search()
    for trial in TRIALS[:2]:
        wait_for_state(root, trial, process)
        (actor,) = processes(process, OF_A_TRIAL["trial"])
        actor.send_signal(signal.SIGKILL)
        assert trial not in records(root), "the kill came too late to show anything"
    assert process.wait(timeout=600) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "Trials: 4 done." in said
    assert "Traceback" not in said
    pd.testing.assert_frame_equal(table_of(tmp_path / "study.yaml"), undisturbed, rtol=1e-4)


@pytest.mark.parametrize("search", [2], indirect=True)
@pytest.mark.parametrize("victim", OF_A_TRIAL)
def test_a_lost_process_of_a_trial_of_two_workers(
    search: Callable[[], subprocess.Popen[bytes]], victim: str, undisturbed_together: pd.DataFrame, tmp_path: Path
) -> None:
    """The cores of what was lost come back, so that the trial goes on and the next ones find room."""
    root = tmp_path / "study"
    process = search()
    for trial in TRIALS[:2]:
        wait_for_state(root, trial, process)
        processes(process, OF_A_TRIAL[victim])[-1].send_signal(signal.SIGKILL)
        assert trial not in records(root), "the kill came too late to show anything"
    assert process.wait(timeout=600) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "Trials: 4 done." in said
    assert "Traceback" not in said
    if victim != "worker":  # whose loss Ray Train makes good by itself
        for trial in TRIALS[:2]:
            assert f"{trial.name} lost its process, or failed, and goes on from its last state; 1 of 3" in said
    pd.testing.assert_frame_equal(table_of(tmp_path / "study.yaml"), undisturbed_together, rtol=1e-4)


def processes(driver: subprocess.Popen[bytes], title: str) -> list[psutil.Process]:
    """The descendants of a driver whose title begins so."""
    found = []
    for child in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):  # gone meanwhile
            if child.cmdline()[0].startswith(title):
                found.append(child)
    return found
