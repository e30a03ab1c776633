"""`cluster/two-nodes.sh` as it is: two real nodes, a real job, and nothing left of them afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray

PROJECT = Path(__file__).parents[2]

# Run as the job: what it can do, what a stranger cannot, and who listens where.
JOB = """
import json, os, stat, subprocess, sys, psutil, ray, requests
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

def ask(headers):
    return requests.get(server + "/api/jobs/", headers=headers).status_code

@ray.remote(num_cpus=0.5)
def where():
    return ray.util.get_node_ip_address(), os.environ["FAITHAD_SHARED"]

ray.init(log_to_driver=False, logging_level="error")
server = "http://" + ray._private.worker.global_worker.node.webui_url
path = os.environ["RAY_AUTH_TOKEN_PATH"]
token = open(path).read()
stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
stranger["RAY_AUTH_MODE"] = "disabled"
knock = [os.path.join(os.path.dirname(sys.executable), "ray"), "health-check", "--address", os.environ["RAY_ADDRESS"]]
port = int(server.rsplit(":", 1)[1])
listening = [one.laddr.ip for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port]
found = {
    "places": ray.get([where.options(scheduling_strategy=On(n["NodeID"], soft=False)).remote() for n in ray.nodes()]),
    "answers": [ask({"Authorization": f"Bearer {token}"}), ask({}), ask({"Authorization": "Bearer " + "0" * 64})],
    "knocks": [subprocess.run(knock, env=one).returncode for one in (os.environ, stranger)],
    "listening": listening,
    "modes": [stat.S_IMODE(os.stat(one).st_mode) for one in (path, os.path.dirname(path))],
    "folder": os.path.dirname(path),
}
open(sys.argv[1], "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_two_nodes_share_a_job_and_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "FAITHAD_"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "FAITHAD_HOME": str(tmp_path)}
    command = [PROJECT / "cluster" / "two-nodes.sh", tmp_path / "job.py", tmp_path / "found.json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    # Both nodes worked, and both were told which folder they share.
    assert {tuple(place) for place in found["places"]} == {("127.0.0.2", str(tmp_path)), ("127.0.0.3", str(tmp_path))}
    # Neither the job server nor Ray itself takes a stranger.
    assert found["answers"][0] == 200
    assert set(found["answers"][1:]) <= {401, 403}
    assert found["knocks"][0] == 0
    assert found["knocks"][1] != 0
    assert found["listening"] == ["127.0.0.1"]
    assert found["modes"] == [0o600, 0o700]
    assert not Path(found["folder"]).exists()
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if found["folder"] in " ".join(one.info["cmdline"] or [])
    ]
