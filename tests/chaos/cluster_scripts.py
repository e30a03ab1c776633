"""The scripts of cluster/ are interrupted in the middle of a study and started again: it goes on, and nothing is left.

Run by hand: `pytest tests/chaos/cluster_scripts.py -s`. Two real Ray nodes on this machine each time. Where no Slurm
is, `srun` and `scontrol` are stand-ins that run what they are given here: nodes, token, job and clean-up are real.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from faithad import parquet

PROJECT = Path(__file__).parents[2]
LONGEST_S = 400.0
NODES = {"127.0.0.2", "127.0.0.3"}

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[[ $* == "show hostnames two" ]] && printf '127.0.0.2\\n127.0.0.3\\n'
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("script", ["two-nodes.sh", "slurm.sh"])
def test_a_study_that_is_interrupted_goes_on(script: str, tmp_path: Path) -> None:
    before = ray_processes(), temporary()
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(study_values(tmp_path)))
    epochs = tmp_path / "study" / "models" / "mae-0" / "epochs.parquet"
    run = Run(script, config, tmp_path, number=1)
    run.watch_until(lambda: epochs.exists() and pq.read_metadata(epochs).num_rows >= 4)
    assert run.end() == 128 + signal.SIGTERM, run.log.read_text()
    assert (ray_processes() - before[0], temporary() - before[1]) == (set(), set())
    kept = durations(epochs)
    assert 4 <= len(kept) < 48

    again = Run(script, config, tmp_path, number=2)
    again.watch_until(lambda: again.process.poll() is not None)
    assert again.end() == 0, again.log.read_text()
    assert "72 clips done" in again.log.read_text()
    assert (tmp_path / "study" / "report.html").exists()
    # Epochs of the first run took as long as they did: they were not trained again. The last may not have been kept.
    assert durations(epochs)[: len(kept) - 1] == kept[:-1]
    assert again.busy == NODES, "a node had nothing to do"
    assert (ray_processes() - before[0], temporary() - before[1]) == (set(), set())
    print(f"\n{script}: interrupted after epoch {len(kept)} of 48, finished by the second run; busy on {again.busy}")


class Run:
    """A script at work, and the nodes whose workers were seen to do something."""

    def __init__(self, script: str, config: Path, folder: Path, *, number: int) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FAITHAD_"))}
        stands_in = stand_ins(folder / f"bin-{number}") if script == "slurm.sh" else folder
        path = f"{stands_in}:{Path(sys.executable).parent}:{inherited['PATH']}"
        slurm = {
            "SLURM_JOB_ID": str(os.getpid() + number),
            "SLURM_SUBMIT_DIR": str(PROJECT),
            "SLURM_CPUS_PER_TASK": "2",
        }
        environment = inherited | slurm | {"SLURM_JOB_NODELIST": "two", "PATH": path}
        environment |= {"HOME": str(folder), "FAITHAD_HOME": str(folder)}
        self.log = folder / f"log-{number}.txt"
        self.busy: set[str] = set()
        command = [PROJECT / "cluster" / script, "jobs/full_study.py", "--config", config]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def watch_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST_S
        while not happened():
            if time.monotonic() > deadline or not (self.process.poll() is None or happened()):
                self.end()
                raise AssertionError(self.log.read_text())
            self.busy |= busy_nodes()
            time.sleep(0.2)

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def busy_nodes() -> set[str]:
    """The addresses of nodes with a worker that runs a task or an actor of the study."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "raylet":
                words = process.info["cmdline"] or []
                address = next((node for node in NODES if f"--node_ip_address={node}" in words), None)
                workers = [(child.cmdline() or [""])[0] for child in process.children(recursive=True)]
                if address and any(name.startswith(("ray::Map", "ray::train")) for name in workers):
                    found.add(address)
    return found


def study_values(folder: Path) -> dict[str, object]:
    return {
        "name": "scripts",
        "root": str(folder / "study"),
        "models": ["ae", "mae"],
        "seeds": [0],
        "data": {
            "root": str(folder / "mill"),
            "synthetic": {"train_recordings": 8, "test_recordings": 4, "seed": 0},
            "train": ["train"],
            "test": ["test"],
            "annotations": "annotations.csv",
            "split": {"validation_unit": "recording"},
        },
        "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
        "train": {"epochs": 48, "batch_size": 8},
        "attribution": {"smooth_grad_samples": 3, "integrated_gradients_steps": 4, "gradient_shap_samples": 3},
        "audit": {"clips_per_shard": 2},
    }


def stand_ins(folder: Path) -> Path:
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def durations(epochs: Path) -> list[float]:
    return parquet.read_table(str(epochs))["duration_s"].to_pylist()


def ray_processes() -> set[int]:
    """Processes of Ray nodes at the addresses of these tests."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(node in word for word in process.info["cmdline"] or [] for node in NODES)
    }


def temporary() -> set[Path]:
    """What the scripts make outside of the test's folder; the token of slurm.sh is inside, as HOME is."""
    return {*Path("/tmp").glob("two-*"), *Path("/tmp").glob("slurm-??????")}
