"""A disk that is full, at four places of one study and in Ray's own folder, and has room again afterwards.

    sudo .venv/bin/python -m pytest tests/chaos/disk_full.py -s

Part of `make chaos`. The disks are small ones in memory, which only root may mount. Each run ends with one sentence
that names the folder and the room that is left; the tables are those of an undisturbed run in the end. The same at each
write of an audit and of a training on normals, without Ray: `tests/pipelines/test_damage.py` and `test_normals.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import yaml

from faithad.demo.mill import synthesize
from tests.chaos.audits import ATTRIBUTION, FAITHAD, STUDY, audit_values
from tests.full_disks import Disk, small_disk
from tests.tables import differences

LONGEST_S = 300.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", 1 << 26) as disk:
        yield disk


def run(config: Path, command: str, *, fill: Callable[[], None], once: Callable[[], bool]) -> tuple[int, str]:
    """Exit status and standard error of a command during which a disk is filled once it has come so far."""
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(
            [FAITHAD, command, "--config", config], stdout=subprocess.DEVNULL, stderr=said
        ) as process:
            deadline = time.monotonic() + LONGEST_S
            while not once():
                assert process.poll() is None, "it ended before the disk was full"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            fill()
            status = process.wait(LONGEST_S)
        said.seek(0)
        return status, said.read()


def test_a_study_goes_on_wherever_its_disk_was_full(disk: Disk, tmp_path: Path) -> None:
    mill, root, calm = tmp_path / "mill", disk.folder / "study", tmp_path / "calm"
    start = datetime(2019, 12, 4, 8, 0)
    synthesize(mill, train_recordings=4, test_recordings=8, seed=5, start=start, recording_s=60.0)
    data = {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
    values = {**STUDY, "data": data, "attribution": ATTRIBUTION, "audit": {"maps": 4, "clips_per_shard": 2}}
    values["train"] = {"epochs": 4}
    configs = {}
    for place in (calm, root):
        configs[place] = tmp_path / f"{place.name}.yaml"
        configs[place].write_text(yaml.safe_dump({**values, "root": str(place)}))
    subprocess.run([FAITHAD, "study", "--config", configs[calm]], check=True, stdout=subprocess.DEVNULL)
    moments: dict[str, Callable[[], bool]] = {
        "index": lambda: True,
        "before training": (root / "stages" / "features.json").exists,
        "train": lambda: any(root.glob("training/*/*")),
        "audit": lambda: any(root.glob("audit/*/ledger/part-*.parquet")),
        "evaluate or report": (root / "stages" / "audit-mae-0.json").exists,
    }
    for stage, is_due in moments.items():
        room = 24_000 if stage == "index" else 0  # enough for the marks before the manifest
        status, said = run(configs[root], "study", fill=partial(disk.leave, room), once=is_due)
        disk.empty()
        print(f"\n{stage}: {said.splitlines()[-1]}")
        assert status == 1, said
        assert "Traceback" not in said
        if stage == "before training":
            assert re.search(rf"take 0\.\d+ GiB, and the disk of {disk.folder}\S* has 0\.00 GiB free", said)
        else:
            assert re.search(
                rf"cannot be written: the disk is full\. {disk.folder}\S* has room for 0\.\d MB\. Make room", said
            )
    subprocess.run([FAITHAD, "study", "--config", configs[root]], check=True, stdout=subprocess.DEVNULL)
    assert not (problems := differences(root, calm)), "\n".join(problems)


def test_an_audit_while_rays_own_folder_is_filled(
    mill_and_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends well, or with one sentence after which the same command does."""
    configs = {}
    for name in ("calm", "full"):
        configs[name] = tmp_path / f"{name}.yaml"
        configs[name].write_text(yaml.safe_dump(audit_values(*mill_and_model, tmp_path / name)))
    subprocess.run([FAITHAD, "audit", "--config", configs["calm"]], check=True, stdout=subprocess.DEVNULL)
    # Sockets live below this folder, and their paths may not be long.
    with tempfile.TemporaryDirectory(prefix="d-", dir="/tmp") as short, small_disk(Path(short) / "r", 1 << 28) as disk:
        monkeypatch.setenv("RAY_TMPDIR", str(disk.folder))
        status, said = run(
            configs["full"],
            "audit",
            fill=lambda: disk.leave(0),
            once=lambda: any((tmp_path / "full" / "ledger").glob("part-*.parquet")),
        )
        disk.empty()
        print(f"\nstatus {status}: {said.splitlines()[-1:]}")
        assert "Traceback" not in said
        assert status in (0, 1)
        subprocess.run([FAITHAD, "audit", "--config", configs["full"]], check=True, stdout=subprocess.DEVNULL)
    assert not (problems := differences(tmp_path / "full", tmp_path / "calm")), "\n".join(problems)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
