"""The study on a cluster that has no core when it begins, and gets two machines while it waits for some.

Real raylets on this machine, each with a core of its own, and the command itself as the driver.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.pipelines.cluster.machines import wait_for_machines
from tests.clusters import FAITHAD, Machine, Machines, machines
from tests.tables import differences

pytestmark = pytest.mark.long

LONGEST_S = 240.0
# What a machine did, by the titles of its processes.
WORK = {"train": "ray::train ", "audit": "ray::MapWorker(Map(Auditor))"}


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Machines]:
    with machines(tmp_path.parent, FAITHAD_WAIT_S="120") as cluster:
        yield cluster


def test_a_study_waits_for_machines_and_runs_on_all_that_come(head: Machines, finished: Study, tmp_path: Path) -> None:
    root, log = tmp_path / "study", tmp_path / "log"
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(finished.to_yaml()), "root": str(root)}))
    with log.open("w") as output:
        command = [FAITHAD, "study", "--config", config]
        with subprocess.Popen(command, env=head.environment, stdout=output, stderr=output) as driver:
            try:
                wait_for(log, "waiting for machines: ", driver)
                added = [head.add(num_cpus=1), head.add(num_cpus=1)]
                did = watch(driver, added)
            finally:
                driver.kill()
    assert driver.returncode == 0, log.read_text()
    assert "there are 0 CPU, 0 GPU" in log.read_text()
    assert did == [set(WORK), set(WORK)], "a machine got no work"
    assert not (problems := differences(root, Path(finished.root))), "\n".join(problems)
    assert (root / "report.html").stat().st_size > 10_000


def test_what_does_not_come_in_time_is_refused(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"request": "A worker asks for 1 GPU", "advice": "Ask for less."}
    alone = r"^A worker asks for 1 GPU, the cluster's machines have: 2 CPU, 0 GPU\. Ask for less\."
    with pytest.raises(StudyError, match=alone + "$"):
        wait_for_machines({"GPU": 1}, **request)
    monkeypatch.setenv("RAY_ADDRESS", "a cluster that others use too")
    monkeypatch.setenv("FAITHAD_WAIT_S", "1")
    started = time.monotonic()
    with pytest.raises(StudyError, match=alone + r" Nothing came in 1 s \(FAITHAD_WAIT_S\)\.$"):
        wait_for_machines({"GPU": 1}, **request)
    assert 1 <= time.monotonic() - started < 10
    wait_for_machines({"CPU": 1}, 2, **request)


def wait_for(log: Path, text: str, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while text not in log.read_text():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def watch(driver: subprocess.Popen[bytes], added: list[Machine]) -> list[set[str]]:
    """Until the driver ends: which kinds of work each machine has done."""
    did: list[set[str]] = [set() for _ in added]
    deadline = time.monotonic() + LONGEST_S
    while driver.poll() is None and time.monotonic() < deadline:
        for kinds, machine in zip(did, added, strict=True):
            titles = machine.titles()
            kinds.update(kind for kind, title in WORK.items() if any(found.startswith(title) for found in titles))
        time.sleep(0.1)
    return did
