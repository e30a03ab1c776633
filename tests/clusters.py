"""A Ray cluster of several machines on this one, for tests that add machines to it and take them away.

`ray.cluster_utils.Cluster` keeps some of its state in Ray's own modules, where a Ray that the tests' process has joined
keeps it as well. So the cluster lives in a process of its own, which is this file run as a script: it does what it
reads from its standard input, a line of JSON each, and answers with another.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

FAITHAD = Path(sys.executable).parent / "faithad"
STORE_BYTES = 100_000_000


class Machine:
    """A machine of the cluster: its raylet, whose descendants are the processes that work there."""

    def __init__(self, node_id: str, raylet_pid: int) -> None:
        self.node_id = node_id
        self._raylet = psutil.Process(raylet_pid)

    def titles(self) -> set[str]:
        """What the processes there are doing, as Ray names them: `ray::train mae-0`."""
        return set(self.all_titles())

    def all_titles(self) -> list[str]:
        """The same, of each process."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self._raylet.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                    found.append((child.cmdline() or [""])[0])
        return found


class Machines:
    """The cluster. `environment` is that of a command which is to join it."""

    def __init__(self, keeper: subprocess.Popen[str], environment: dict[str, str]) -> None:
        self._keeper = keeper
        self.environment = environment | {"RAY_ADDRESS": self._answer()["address"]}

    def add(self, **resources: float) -> Machine:
        """Start a machine with `num_cpus` cores; returns once the cluster knows of it."""
        self._tell({"add": resources})
        answer = self._answer()
        return Machine(answer["node_id"], answer["raylet"])

    def remove(self, machine: Machine) -> None:
        """Kill all of a machine's processes, without a warning."""
        self._tell({"remove": machine.node_id})
        self._answer()

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(order) + "\n")
        self._keeper.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        assert line, "the process that holds the cluster has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def machines(shared: Path, *, head_cpus: int = 0, **environment: str) -> Iterator[Machines]:
    """A cluster with a head, as long as the block runs; nothing of it is left afterwards.

    Args:
        shared: the folder that its machines are said to share.
        head_cpus: cores of the head; none by default, as is usual.
        environment: of the machines and of the commands that join them, beside this process's own.
    """
    # Sockets live below this folder, and their paths may not be long.
    folder = tempfile.mkdtemp(prefix="nodes-")
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))
    everywhere = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    everywhere |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    everywhere |= {"FAITHAD_SHARED": str(shared), "OMP_NUM_THREADS": "1", **environment}
    with open(Path(folder, "cluster.log"), "w") as log:
        keeper = subprocess.Popen(
            [sys.executable, __file__, folder, str(head_cpus)],
            env=everywhere, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
        family: list[psutil.Process] = []
        try:
            yield Machines(keeper, everywhere)
        finally:
            family = psutil.Process(keeper.pid).children(recursive=True) if keeper.poll() is None else []
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.communicate(timeout=30)  # which closes its input, and so it ends
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()
            shutil.rmtree(folder, ignore_errors=True)


def keep_cluster(folder: str, head_cpus: int) -> None:
    """Hold a cluster until the standard input ends."""
    from ray.cluster_utils import Cluster

    # Ray prints on its own; only answers may go to the one who asks.
    answers, sys.stdout = sys.stdout, sys.stderr
    here: dict[str, Any] = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, "temp_dir": folder, **here})
    print(json.dumps({"address": cluster.address}), file=answers, flush=True)
    nodes = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "add" in order:
            node = cluster.add_node(**here, **order["add"])
            nodes[node.node_id] = node
            (raylet,) = node.all_processes["raylet"]
            answer = {"node_id": node.node_id, "raylet": raylet.process.pid}
        else:
            cluster.remove_node(nodes.pop(order["remove"]), allow_graceful=False)
            answer = {}
        print(json.dumps(answer), file=answers, flush=True)
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)  # also where the one who asked was killed and does not do it


if __name__ == "__main__":
    keep_cluster(sys.argv[1], int(sys.argv[2]))
