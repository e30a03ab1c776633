"""A search of many trials: its driver does not grow, its trials do not come slower; and trials share small machines.

    .venv/bin/python -m pytest tests/chaos/search_scale.py -s

Part of `make chaos`. FAITHAD_SCALE_TRIALS says how many trials there are in place of 200.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml

from faithad import parquet
from faithad.demo.mill import synthesize
from faithad.runs import layout
from tests.clusters import FAITHAD, machines

TRIALS = int(os.environ.get("FAITHAD_SCALE_TRIALS", "200"))
LONGEST_S = 3_000.0
# Of the last quarter of the trials to the first. A driver of 858 MiB was 7 MiB larger 144 trials later, which is 0.8 %.
# Whatever reads all earlier trials at each new one takes several times as long for 176 of them as for 32.
MOST_MEMORY, MOST_TIME = 1.05, 1.5
# The title of a trial's process.
OF_A_TRIAL = "ray::ImplicitFunc"
# The first trials start Ray's processes and import torch.
WARM_UP = 8


class Look(NamedTuple):
    """What there was at one moment."""

    at_s: float
    n_over: int
    driver_bytes: int
    driver_cpu_s: float


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mill")
    start = datetime(2019, 12, 4, 8, 48)
    synthesize(folder, train_recordings=2, test_recordings=2, seed=3, start=start, recording_s=20.0)
    return folder


def write_config(mill: Path, root: Path, search: dict[str, Any], **changes: Any) -> Path:
    values = {
        "name": "scale",
        "root": str(root),
        "seeds": [0],
        "data": {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"},
        "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
        "train": {"epochs": 1},
        "search": {"patches": [4], **search},
        **changes,
    }
    root.with_suffix(".yaml").write_text(yaml.safe_dump(values))
    return root.with_suffix(".yaml")


@pytest.mark.timeout(LONGEST_S + 100)
def test_memory_and_time_between_trials_do_not_grow(mill: Path, tmp_path: Path) -> None:
    root = tmp_path / "study"
    ratios = [round(float(ratio), 4) for ratio in np.linspace(0.15, 0.9, TRIALS)]
    config = write_config(mill, root, {"mask_ratios": ratios, "trials_at_once": 1})
    looks: list[Look] = []
    with open(tmp_path / "log", "w") as log:
        driver = psutil.Popen([FAITHAD, "search", "--config", config], stdout=log, stderr=log)
        try:
            while driver.poll() is None:
                look_at(driver, root, looks)
                time.sleep(0.2)
        finally:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
    assert driver.returncode == 0, (tmp_path / "log").read_text()
    assert f"Trials: {TRIALS} done." in (tmp_path / "log").read_text()
    records = sorted(record.stat().st_mtime for record in root.glob(f"{layout.TRIALS}/*/{layout.TRIAL_RECORD}"))
    assert len(records) == TRIALS
    gaps = np.diff(records)[WARM_UP:]
    of_trials = [look for look in looks if WARM_UP <= look.n_over < TRIALS]
    quarter = (TRIALS - WARM_UP) // 4
    first = [look for look in of_trials if look.n_over < WARM_UP + quarter]
    last = [look for look in of_trials if look.n_over >= TRIALS - quarter]
    memory = [statistics.median(look.driver_bytes for look in part) / 2**20 for part in (first, last)]
    cpu_s = [(part[-1].driver_cpu_s - part[0].driver_cpu_s) / quarter for part in (first, last)]
    median_s, quick_s = (
        [float(np.quantile(part, share)) for part in (gaps[:quarter], gaps[-quarter:])] for share in (0.5, 0.1)
    )
    print(
        f"\n{TRIALS} trials, first and last quarter: driver {memory[0]:.0f} and {memory[1]:.0f} MiB, median of "
        f"{median_s[0]:.2f} and {median_s[1]:.2f} s between trials, of the quickest tenth {quick_s[0]:.2f} and "
        f"{quick_s[1]:.2f} s, {cpu_s[0]:.3f} and {cpu_s[1]:.3f} CPU s of the driver for each"
    )
    assert memory[1] < MOST_MEMORY * memory[0]
    assert cpu_s[1] < MOST_TIME * cpu_s[0]
    # Of the quickest tenth: other programs on the machine only make gaps longer.
    assert quick_s[1] < MOST_TIME * quick_s[0]


def look_at(driver: psutil.Process, root: Path, looks: list[Look]) -> None:
    n_over = sum(1 for _ in root.glob(f"{layout.TRIALS}/*/{layout.TRIAL_RECORD}"))
    with driver.oneshot():
        times = driver.cpu_times()
        looks.append(Look(time.monotonic(), n_over, driver.memory_info().rss, times.user + times.system))


@pytest.mark.timeout(LONGEST_S + 100)
def test_four_trials_at_once_on_two_machines_of_one_core(mill: Path, tmp_path: Path) -> None:
    """And their results are those of trials that run one after the other on one machine."""
    search = {"mask_ratios": [0.2, 0.3, 0.4, 0.5], "cpus_per_trial": 0.5}
    tables: list[pd.DataFrame] = []
    for name, n_machines, at_once in (("apart", 1, 1), ("together", 2, None)):
        root, most = tmp_path / name, [0] * n_machines
        config = write_config(mill, root, {**search, "trials_at_once": at_once}, train={"epochs": 10})
        with machines(mill.parent, FAITHAD_WAIT_S="120") as cluster, open(tmp_path / "log", "w") as log:
            nodes = [cluster.add(num_cpus=1) for _ in range(n_machines)]
            command = [FAITHAD, "search", "--config", config]
            driver = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
            deadline = time.monotonic() + LONGEST_S / 2
            while driver.poll() is None and time.monotonic() < deadline:
                n_trials = [sum(title.startswith(OF_A_TRIAL) for title in node.all_titles()) for node in nodes]
                most = max(most, n_trials, key=sum)
                time.sleep(0.05)
            driver.kill()
            assert driver.wait() == 0, (tmp_path / "log").read_text()
        assert most == ([1] if at_once else [2, 2]), "trials at the same moment on each machine"
        tables.append(parquet.read_table(f"{root}/{layout.summary('search')}").to_pandas().drop(columns="duration_s"))
    pd.testing.assert_frame_equal(*tables)
