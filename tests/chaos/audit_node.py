"""A machine goes away in the middle of an audit: the tables are those of an audit that nothing happened to.

Run by hand: `pytest tests/chaos/audit_node.py -s`. Two Ray nodes on this machine, one of which is taken away without
warning once some more files are written and an actor works on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from faithad.config.audit import load_audit_run
from faithad.pipelines.audit.run import run_audit
from tests.chaos.audits import CLIPS, audit_values, differences, published

NODE = {"num_cpus": 2, "object_store_memory": 300_000_000}
LONGEST_S = 300.0


@pytest.mark.timeout(1200)
def test_an_audit_that_loses_a_node(
    mill_and_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    monkeypatch.setenv("FAITHAD_SHARED", os.path.commonpath([tmp_path, mill_and_model[0]]))
    with two_nodes() as cluster:
        # So that the audit takes this for a cluster which may grow, as it is one, and not for a Ray of its own.
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        calm_s = audit(*mill_and_model, calm)
    n_files = len(published(calm))
    with two_nodes() as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        removal = Removal(cluster, wild, n_files // 4)
        removal.start()
        wild_s = audit(*mill_and_model, wild)
        removal.join()
        assert removal.happened_at is not None, "the node was never removed"
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    print(f"\nnode removed at {removal.happened_at} of {n_files} files; {wild_s:.0f} s, {calm_s:.0f} s undisturbed")
    assert not (problems := differences(wild, calm)), "\n".join(problems)


class Removal(threading.Thread):
    """Removes the second node once so many files are written and an actor lives there."""

    def __init__(self, cluster: Cluster, out: Path, target: int) -> None:
        super().__init__(daemon=True)
        self._cluster, self._out, self._target = cluster, out, target
        self.happened_at: int | None = None

    def run(self) -> None:
        node = next(iter(self._cluster.worker_nodes))
        (raylet,) = node.all_processes["raylet"]
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline:
            if len(published(self._out)) >= self._target and has_actor(raylet.process.pid):
                self.happened_at = len(published(self._out))
                self._cluster.remove_node(node, allow_graceful=False)
                return
            time.sleep(0.05)


def has_actor(raylet_pid: int) -> bool:
    for child in psutil.Process(raylet_pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if (child.cmdline() or [""])[0].startswith("ray::MapWorker(Map(Auditor)).submit"):
                return True
    return False


def audit(mill: Path, model: Path, out: Path) -> float:
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(audit_values(mill, model, out, actors=3)))
    started = time.monotonic()
    outcome = run_audit(load_audit_run(str(config)))
    assert (outcome.n_done, outcome.n_failed) == (CLIPS, 0)
    return time.monotonic() - started


@contextlib.contextmanager
def two_nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
