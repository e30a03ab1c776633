"""Clusters of three machines, clusters that get one in the midst of an audit, and clusters that bring their own.

    .venv/bin/python -m pytest tests/chaos/nodes.py -s

Part of `make chaos`. What they come to is compared with what one machine comes to, row for row and to the last bit.
Machines that are taken away: see audit_node.py, training_kills.py, and for the head head_lost.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from faithad.demo.mill import synthesize
from tests.chaos.audits import STUDY, audit_values, published
from tests.clusters import FAITHAD, Machine, machines
from tests.tables import differences

RAY = Path(sys.executable).parent / "ray"
LONGEST_S = 300.0
AUDITS = "ray::MapWorker(Map(Auditor)).submit"
# One thread each, so that sums are rounded as they are everywhere else.
TRAIN = {"epochs": 3, "cpus_per_worker": 1}


@pytest.fixture(scope="module")
def small_mill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mill")
    start = datetime(2019, 12, 4, 8, 48)
    synthesize(folder, train_recordings=6, test_recordings=12, seed=3, start=start, recording_s=20.0)
    return folder


@pytest.fixture(scope="module")
def on_one_machine(small_mill: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calm")
    finish(["study", "--config", str(write_study(small_mill, root))], dict(os.environ), root)
    return root


def test_a_study_on_three_machines(small_mill: Path, on_one_machine: Path, tmp_path: Path) -> None:
    root = tmp_path / "study"
    config = write_study(small_mill, root)
    with machines(tmp_path_of(small_mill, tmp_path)) as cluster:
        three = [cluster.add(num_cpus=1) for _ in range(3)]
        with started(["study", "--config", str(config)], cluster.environment, root) as driver:
            audited = watch(driver, three)
    assert driver.returncode == 0, told(root)
    assert audited == {0, 1, 2}, "a machine audited nothing"
    assert not (problems := differences(root, on_one_machine)), "\n".join(problems)


@pytest.mark.timeout(900)
def test_a_machine_that_comes_in_mid_audit_gets_work(mill_and_model: tuple[Path, Path], tmp_path: Path) -> None:
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    mill, model = mill_and_model
    finish(["audit", "--config", str(write_audit(mill, model, calm))], dict(os.environ), calm)
    config = write_audit(mill, model, wild)
    with machines(tmp_path_of(mill, tmp_path)) as cluster:
        first = cluster.add(num_cpus=1)
        with started(["audit", "--config", str(config)], cluster.environment, wild) as driver:
            wait_until(lambda: is_auditing(first) and len(published(wild)) > 8, driver, wild)
            n_files, came_at = len(published(wild)), time.monotonic()
            second = cluster.add(num_cpus=2)
            wait_until(lambda: is_auditing(second), driver, wild)
            took_s = time.monotonic() - came_at
            print(f"\nadded at {n_files} of {len(published(calm))} files; at work after {took_s:.0f} s")
            driver.wait(LONGEST_S)
    assert driver.returncode == 0, told(wild)
    assert not (problems := differences(wild, calm)), "\n".join(problems)


@pytest.mark.timeout(900)
def test_an_autoscaler_brings_the_machines_that_a_study_asks_for(
    small_mill: Path, on_one_machine: Path, tmp_path: Path
) -> None:
    """The head has no core, and no machine is there until the study asks for one; then each training gets its own."""
    root = tmp_path / "study"
    config = write_study(small_mill, root)
    assert run_on_autoscaler(["study", "--config", str(config)], root, shared=tmp_path_of(small_mill, tmp_path)) == 2
    assert not (problems := differences(root, on_one_machine)), "\n".join(problems)


@pytest.mark.timeout(900)
def test_an_autoscaler_brings_the_machines_that_an_audit_asks_for(
    mill_and_model: tuple[Path, Path], tmp_path: Path
) -> None:
    """Which begins on the first one that comes."""
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    finish(["audit", "--config", str(write_audit(*mill_and_model, calm))], dict(os.environ), calm)
    config = write_audit(*mill_and_model, wild)
    shared = tmp_path_of(mill_and_model[0], tmp_path)
    assert run_on_autoscaler(["audit", "--config", str(config)], wild, shared=shared) == 2
    assert not (problems := differences(wild, calm)), "\n".join(problems)


def run_on_autoscaler(arguments: list[str], out: Path, *, shared: Path) -> int:
    """Run a command on a cluster that is a head without a core; how many machines its autoscaler brought."""
    with autoscaling_head(shared, most=2) as (environment, head):
        seen: set[str] = set()
        with started(arguments, environment, out) as driver:
            deadline = time.monotonic() + LONGEST_S
            while driver.poll() is None and time.monotonic() < deadline:
                seen.update(raylets(head))
                time.sleep(0.2)
    assert driver.returncode == 0, told(out)
    assert "waiting for machines: they came after" in told(out)
    return len(seen) - 1


@contextlib.contextmanager
def autoscaling_head(shared: Path, *, most: int) -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """A head with Ray's own autoscaler, whose machines are raylets on this one; the environment that joins it."""
    # Sockets live below this folder, and their paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="head-"))
    (folder / "token").write_text(secrets.token_hex(32))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "FAITHAD_SHARED": str(shared), "FAITHAD_WAIT_S": "120"}
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    (folder / "autoscaler.json").write_text(json.dumps(autoscaler(address, most)))
    command = [RAY, "start", "--head", "--block", f"--port={address.rpartition(':')[2]}", "--num-cpus=0"]
    command += [f"--autoscaling-config={folder / 'autoscaler.json'}", f"--temp-dir={folder}"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with open(folder / "log", "w") as log:
        head = psutil.Popen(command, env=environment | fake, stdout=log, stderr=log, start_new_session=True)
    try:
        while "Ray runtime started" not in (folder / "log").read_text():
            assert head.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield environment | {"RAY_ADDRESS": address}, head
    finally:
        family = [*head.children(recursive=True), head]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def autoscaler(address: str, most: int) -> dict[str, object]:
    """What `ray up` would write, with Ray's provider of machines for tests."""
    worker = {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}, "max_workers": most}
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    commands = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return {
        "cluster_name": "fake",
        "max_workers": most,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "docker": {},
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        **{key: [] for key in (*lists, *commands)},
    }


def write_study(mill: Path, root: Path) -> Path:
    data = {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
    values = {**STUDY, "models": ["ae", "mae"], "train": TRAIN, "root": str(root), "data": data}
    values["attribution"] = {"smooth_grad_samples": 3, "integrated_gradients_steps": 4, "gradient_shap_samples": 3}
    config = root.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(values))
    return config


def write_audit(mill: Path, model: Path, out: Path) -> Path:
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(audit_values(mill, model, out)))
    return config


def tmp_path_of(*paths: Path) -> Path:
    """The folder that all of these lie in."""
    return Path(os.path.commonpath(paths))


def finish(arguments: list[str], environment: dict[str, str], out: Path) -> None:
    with started(arguments, environment, out) as driver:
        driver.wait(LONGEST_S)
    assert driver.returncode == 0, told(out)


@contextlib.contextmanager
def started(arguments: list[str], environment: dict[str, str], out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, and the end of it at the end of the block."""
    with out.with_suffix(".log").open("w") as log:
        driver = subprocess.Popen([FAITHAD, *arguments], env=environment, stdout=log, stderr=log)
        try:
            yield driver
        finally:
            with contextlib.suppress(ProcessLookupError):
                driver.kill()
            driver.wait()


def told(out: Path) -> str:
    return out.with_suffix(".log").read_text()


def watch(driver: subprocess.Popen[bytes], added: list[Machine]) -> set[int]:
    """Until the driver ends: which of the machines have audited something."""
    audited: set[int] = set()
    deadline = time.monotonic() + LONGEST_S
    while driver.poll() is None and time.monotonic() < deadline:
        for number, machine in enumerate(added):
            if is_auditing(machine):
                audited.add(number)
        time.sleep(0.02)
    return audited


def is_auditing(machine: Machine) -> bool:
    return any(title.startswith(AUDITS) for title in machine.titles())


def wait_until(is_so: Callable[[], bool], driver: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not is_so():
        assert driver.poll() is None, told(out)
        assert time.monotonic() < deadline, told(out)
        time.sleep(0.05)


def raylets(head: psutil.Process) -> Iterator[str]:
    """The machines of a cluster, by the sockets of their raylets; a worker has its raylet's title for a moment."""
    for process in head.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            yield from (text for text in process.cmdline() if text.startswith("--raylet_socket_name="))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
