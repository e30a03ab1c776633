"""A real Ray head with its job server, shared by the tests of jobs.

Its Python has all that faithad needs, but no faithad. So a job runs on the package that travels with it, or on the one
that the fixture `baked` installs for a while.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import requests

PROJECT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
BAKED_VERSION = "0.0.9"
Answer = subprocess.CompletedProcess[str]


class Head(NamedTuple):
    """`environment`: what a command needs to reach it. `port`: where further nodes join. `installed`: a folder on the
    path of its Python.
    """

    environment: dict[str, str]
    port: int
    installed: Path
    python: Path

    @property
    def url(self) -> str:
        return self.environment["RAY_API_SERVER_ADDRESS"]

    def run(self, *command: str | Path, folder: Path = PROJECT, timeout: float = 400, **variables: str) -> Answer:
        environment = self.environment | variables
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def submit(self, *arguments: str | Path, folder: Path = PROJECT, **variables: str) -> Answer:
        """`faithad submit`."""
        return self.run(BIN / "faithad", "submit", *arguments, folder=folder, **variables)

    def ray_submit(self, *entrypoint: str, folder: Path = PROJECT, **variables: str) -> Answer:
        """`ray job submit`."""
        command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", *entrypoint]
        return self.run(*command, folder=folder, **variables)


@pytest.fixture(scope="package")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """On loopback, with a token of its own."""
    folder = tmp_path_factory.mktemp("head")
    python = make_environment(folder / "environment")
    token, installed, log = folder / "token", folder / "installed", folder / "head.log"
    token.write_text(secrets.token_hex(32))
    installed.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "FAITHAD_"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    dashboard, port = free_port(), free_port()
    # Sockets live below this folder, and their paths may not be long.
    sockets = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    arguments = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=3", f"--temp-dir={sockets}"]
    arguments += [f"--dashboard-port={dashboard}", "--object-store-memory=500000000"]
    # The job's `python` is the head's: the environment that is active where the head is started.
    active = {"PATH": f"{python.parent}:{environment['PATH']}", "PYTHONPATH": str(installed)}
    with ray_node(python, arguments, environment | active, log) as process:
        reached = Head(
            environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}, port, installed, python
        )
        try:
            # The agent that starts jobs comes up some seconds after the server that takes them.
            deadline = time.monotonic() + 120
            while not takes_jobs(reached.url, token.read_text()):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield reached
        finally:
            shutil.rmtree(sockets, ignore_errors=True)


def takes_jobs(url: str, token: str) -> bool:
    """Whether the job server starts a job that does nothing."""
    with contextlib.suppress(requests.ConnectionError):
        headers = {"Authorization": f"Bearer {token}"}
        answer = requests.post(f"{url}/api/jobs/", json={"entrypoint": "true"}, headers=headers, timeout=60)
        return answer.status_code == 200
    return False


@pytest.fixture
def baked(head: Head) -> Iterator[str]:
    """A faithad of another version installed on the head, as in a container image."""
    package = head.installed / "faithad"
    shutil.copytree(PROJECT / "faithad", package, ignore=shutil.ignore_patterns("__pycache__"))
    source = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(source.replace('__version__ = "', f'__version__ = "{BAKED_VERSION}"  # "'))
    yield BAKED_VERSION
    shutil.rmtree(package)


@contextlib.contextmanager
def ray_node(
    python: Path, arguments: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start` for as long as the block runs."""
    command = [python, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
    # Another Ray on this machine holds the agents' usual ports.
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        finally:
            family: list[psutil.Process | subprocess.Popen[bytes]] = [process]
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
                family = [*psutil.Process(process.pid).children(recursive=True), process]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(family[:-1], timeout=10)
            process.wait()


def make_environment(folder: Path) -> Path:
    """The Python of a virtual environment that finds the packages of this one, but none that is installed editable."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
