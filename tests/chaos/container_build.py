"""The container file's steps in a virtual environment that has nothing yet: every wheel comes from the registry.

Run by hand: `pytest tests/chaos/container_build.py -s`. Takes minutes and 6 GB; tests/cluster/test_container.py does
the same every time on the packages that are here already.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.containerfile import PROJECT, build

# A study's first stage, by what is baked in, on Ray: recordings are made, cut and listed.
OVERRIDES = ["--set", "data.synthetic={train_recordings: 8, test_recordings: 4, seed: 0}"]


@pytest.mark.timeout(1800)
def test_the_image_is_built_from_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    build(tmp_path / "work", environment)
    took_s = time.monotonic() - started
    frozen = subprocess.run(
        [environment / "bin" / "python", "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    pins = set((PROJECT / "constraints.txt").read_text().split())
    installed = set(re.findall(r"^\S+==\S+$", frozen, re.M))
    assert installed - pins == set(), "not pinned"
    command = [environment / "bin" / "faithad", "index", "--config", "configs/demo.yaml", *OVERRIDES]
    subprocess.run(command, cwd=tmp_path / "work", check=True, timeout=300)
    assert (tmp_path / "work" / "runs" / "demo" / "manifest.parquet").exists()
    n_bytes = sum(path.lstat().st_size for path in environment.rglob("*"))
    print(f"\nbuilt in {took_s:.0f} s, {n_bytes / 1e9:.1f} GB, {len(installed)} packages")
