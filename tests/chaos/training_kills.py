"""Trainings whose worker, driver or machine is killed: each must end with the losses and weights of one left alone.

    .venv/bin/python -m pytest tests/chaos/training_kills.py

Part of `make chaos`. All kills are SIGKILL of real processes, at a moment when the training is in the midst of an epoch
(or writing one down: a fresh process cannot tell, which is the point). Comparisons are exact: one machine, one thread.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import ray
import torch
import yaml
from ray.cluster_utils import Cluster

from faithad import parquet, storage
from faithad.config.study import Study, parse_study
from faithad.demo.mill import synthesize
from faithad.errors import StudyError
from faithad.model.checkpoint import load_model
from faithad.pipelines.study import STAGES

FAITHAD = Path(sys.executable).parent / "faithad"
EPOCHS = 24
WORKER = {1: "ray::train mae-0", 2: "ray::RayTrainWorker"}
# Of one machine of a cluster.
SMALL = {"object_store_memory": 100_000_000, "include_dashboard": False}

Trigger = Callable[[], bool]


@pytest.fixture(autouse=True)
def everything_is_shared(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAITHAD_SHARED", str(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mill")
    start = datetime(2019, 12, 4, 8, 48)
    synthesize(folder, train_recordings=8, test_recordings=2, seed=3, start=start, recording_s=20.0)
    return folder


@pytest.fixture(scope="module")
def make(mill: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Study]:
    """Writes a small study with its configuration beside it."""

    def make(workers: int, models: list[str] | None = None, **changes: Any) -> Study:
        root = tmp_path_factory.mktemp("study")
        values = {
            "name": "chaos",
            "root": str(root),
            "models": models or ["mae"],
            "seeds": [0],
            "data": {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"},
            "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
            "train": {"epochs": EPOCHS, "batch_size": 4, "workers": workers, "cpus_per_worker": 1, **changes},
        }
        (root / "c.yaml").write_text(yaml.safe_dump(values))
        return parse_study(yaml.safe_dump(values), name="chaos")

    return make


@pytest.fixture(scope="module")
def undisturbed(make: Callable[..., Study]) -> dict[int, Study]:
    """The same trainings, left alone, by number of workers."""
    studies = {workers: make(workers, models=["ae", "mae"]) for workers in WORKER}
    with local_ray():
        for study in studies.values():
            run(study)
    return studies


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def run(study: Study) -> None:
    STAGES["index"](study)
    STAGES["train"](study)


def epochs(study: Study, name: str = "mae-0") -> pd.DataFrame:
    location = storage.join(study.root, "models", name, "epochs.parquet")
    return parquet.read_table(location).to_pandas() if storage.exists(location) else pd.DataFrame()


def assert_went_on(study: Study, reference: Study, before: pd.DataFrame) -> None:
    """The same curve and weights to the last bit, and the first epochs not trained again."""
    after = epochs(study)
    assert len(after) == EPOCHS
    pd.testing.assert_frame_equal(
        after.drop(columns="duration_s"), epochs(reference).drop(columns="duration_s"), check_exact=True
    )
    one, two = (load_model(storage.join(s.root, "models", "mae-0")) for s in (study, reference))
    weights = two.network.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in one.network.state_dict().items())
    # Of what the table held, the last epoch alone may have been ahead of the state that was saved.
    kept = len(before) - 1
    assert 2 <= kept < EPOCHS - 1
    pd.testing.assert_frame_equal(after[:kept], before[:kept], check_exact=True)


def in_the_midst(study: Study) -> bool:
    return len(epochs(study)) >= 4


def once(trigger: Trigger, act: Callable[[], None]) -> threading.Thread:
    """Act in another thread as soon as the trigger says so."""

    def wait() -> None:
        deadline = time.monotonic() + 240
        while not trigger():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def processes(title: str, of: psutil.Process | None = None) -> list[psutil.Process]:
    """The descendants whose title begins so."""
    found = []
    for child in (of or psutil.Process()).children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):  # gone meanwhile
            if child.cmdline()[0].startswith(title):
                found.append(child)
    return found


@pytest.mark.parametrize("workers", WORKER)
def test_a_killed_worker(undisturbed: dict[int, Study], make: Callable[..., Study], workers: int) -> None:
    study = make(workers)
    before: list[pd.DataFrame] = []

    def kill() -> None:
        victim = processes(WORKER[workers])[-1]
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
        before.append(epochs(study))

    with local_ray():
        killer = once(lambda: in_the_midst(study), kill)
        run(study)
        killer.join()
    assert_went_on(study, undisturbed[workers], before[0])


def test_a_killed_leader(
    undisturbed: dict[int, Study], make: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that leads a Ray Train run: the cores that its workers had are there for it again, and for others."""
    study = make(2, models=["mae", "ae"], trainings_at_once=1)
    before: list[pd.DataFrame] = []

    def kill() -> None:
        (leader,) = processes("ray::train mae-0")
        leader.kill()
        before.append(epochs(study))

    with local_ray():
        killer = once(lambda: in_the_midst(study), kill)
        run(study)
        killer.join()
    assert "train mae-0: lost its process" in capsys.readouterr().out
    assert_went_on(study, undisturbed[2], before[0])
    assert len(epochs(study, "ae-0")) == EPOCHS


@pytest.mark.parametrize("workers", WORKER)
def test_a_killed_driver(undisturbed: dict[int, Study], make: Callable[..., Study], workers: int) -> None:
    """With one training finished and one in its midst; the same command goes on with the second alone."""
    study = make(workers, models=["ae", "mae"], trainings_at_once=1)
    config = Path(study.root, "c.yaml")
    subprocess.run([FAITHAD, "index", "--config", config], check=True, timeout=120)
    command = [FAITHAD, "train", "--config", config]
    done = Path(study.root, "stages", "train-ae-0.json")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        killer = once(lambda: in_the_midst(study) or driver.poll() is not None, driver.kill)
        driver.wait(300)
        killer.join()
    assert driver.returncode == -signal.SIGKILL
    time.sleep(1)  # a worker may outlive its driver for a moment
    before, finished_at = epochs(study), done.stat().st_mtime_ns
    assert not Path(study.root, "stages", "train-mae-0.json").exists()

    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "train mae-0: best epoch" in again.stdout
    assert "train ae-0" not in again.stdout
    assert done.stat().st_mtime_ns == finished_at
    assert_went_on(study, undisturbed[workers], before)


@pytest.mark.parametrize("workers", WORKER)
def test_a_removed_machine(
    undisturbed: dict[int, Study], make: Callable[..., Study], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two machines beside the head, the one on which the training runs is gone at once; the other goes on."""
    study = make(workers)
    before: list[pd.DataFrame] = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    try:
        machines = [cluster.add_node(num_cpus=2, **SMALL) for _ in range(2)]
        if workers == 1:  # as on any cluster; Ray Train would wait for a dashboard there, and this one has none
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        cluster.wait_for_nodes()

        def remove() -> None:
            (machine,) = [m for m in machines if processes(WORKER[workers], of=raylet(m))][:1]
            process = raylet(machine)
            cluster.remove_node(machine, allow_graceful=False)
            process.wait(30)
            before.append(epochs(study))

        killer = once(lambda: in_the_midst(study), remove)
        run(study)
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_went_on(study, undisturbed[workers], before[0])


def test_the_last_machine_is_removed(make: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine can hold the training any more: that is said after a while, in place of waiting for ever."""
    monkeypatch.setenv("FAITHAD_WAIT_S", "10")
    study = make(1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    try:
        machine = cluster.add_node(num_cpus=2, **SMALL)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        cluster.wait_for_nodes()
        killer = once(lambda: in_the_midst(study), lambda: cluster.remove_node(machine, allow_graceful=False))
        with pytest.raises(StudyError, match="mae-0 ended: no machines that can hold it are left"):
            run(study)
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()


def raylet(machine: Any) -> psutil.Process:
    (info,) = machine.all_processes["raylet"]
    return psutil.Process(info.process.pid)
