"""The study as a job of a real Ray head, through its job server: logs stream, tables are there, failure is told."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import yaml

from faithad.config import Study

PROJECT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
Answer = subprocess.CompletedProcess[str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head with a job server, on loopback, with a token of its own; the environment that reaches it."""
    token = tmp_path_factory.mktemp("token") / "token"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    # The job's `python` is the head's: the environment that is active where the head is started.
    environment["PATH"] = f"{RAY.parent}:{environment['PATH']}"
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    token.write_text(secrets.token_hex(32))
    dashboard, port = free_port(), free_port()
    # Sockets live below this folder, and their paths may not be long.
    folder = f"/tmp/ray-{os.getpid()}"
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=3"]
    command += [f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--object-store-memory=500000000"]
    # Another Ray on this machine holds the agents' usual ports.
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
    log = open(token.parent / "head.log", "w")  # noqa: SIM115
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        # The agent that starts jobs comes up some seconds after the server that takes them.
        deadline = time.monotonic() + 120
        while submit(environment, "-c", "print()").returncode != 0:
            assert process.poll() is None, (token.parent / "head.log").read_text()
            assert time.monotonic() < deadline, (token.parent / "head.log").read_text()
            time.sleep(0.5)
        yield environment
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def submit(environment: dict[str, str], *entrypoint: str, folder: Path = PROJECT / "jobs") -> Answer:
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", *entrypoint]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def submit_study(environment: dict[str, str], *arguments: str) -> Answer:
    return submit(environment, "jobs/full_study.py", *arguments, folder=PROJECT)


def test_a_submitted_study_streams_its_log_and_writes_its_tables(
    head: dict[str, str], finished: Study, tmp_path: Path
) -> None:
    changes = {
        "root": str(tmp_path / "study"),
        "data": finished.data.model_dump(mode="json", exclude_none=True),
        "features": finished.features.model_dump(),
        "models": ["mae"],
        "train": {"epochs": 1},
        "attribution": {"methods": ["saliency", "grad_cam"]},
    }
    overrides = [text for key, value in changes.items() for text in ("--set", f"{key}={_inline(value)}")]
    answer = submit_study(head, "--config", "configs/demo.yaml", *overrides)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "train mae-0: best epoch 1 of 1" in answer.stdout
    assert f"16 clips done. Tables: {tmp_path / 'study'}" in answer.stdout
    rows = duckdb.sql(f"select method, count(*) from '{tmp_path}/study/audit/mae-0/attributions/*.parquet' group by 1")
    assert sorted(rows.fetchall()) == [("grad_cam", 8), ("saliency", 8)]
    assert (tmp_path / "study" / "report.html").stat().st_size > 10_000


def test_a_failed_study_exits_non_zero_with_the_reason_last(head: dict[str, str], tmp_path: Path) -> None:
    data = {"root": str(tmp_path), "train": ["nowhere"], "test": ["nowhere"]}
    answer = submit_study(
        head, "--config", "configs/demo.yaml", "--set", f"data={_inline(data)}", "--set", f"root={tmp_path / 's'}"
    )
    assert answer.returncode == 1
    told = [line for line in answer.stdout.splitlines() if line.strip()]
    position = next(number for number, line in enumerate(told) if line.startswith("RecordingError: "))
    assert "nowhere does not exist" in told[position + 1]
    assert not any(line.startswith("Traceback") for line in told)


def test_no_token_no_job(head: dict[str, str]) -> None:
    stranger = {key: value for key, value in head.items() if not key.startswith("RAY_AUTH")}
    answer = submit_study(stranger | {"RAY_AUTH_MODE": "disabled"}, "--config", "configs/demo.yaml")
    assert answer.returncode != 0
    assert "Unauthorized" in answer.stdout + answer.stderr or "401" in answer.stdout + answer.stderr


def _inline(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
