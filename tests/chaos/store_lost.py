"""An object store that goes away, or that is silent for a while, in the middle of an audit.

    python -m pytest tests/chaos/store_lost.py -s

A store that is gone ends the audit with an error that names it, soon; one that only was busy costs its time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.chaos.audits import FAITHAD, audit_values, differences
from tests.integration.s3_server import BUCKET, S3Server, s3_server

LONGEST_S = 120.0
SILENT_S = 20.0


@contextlib.contextmanager
def audit_on(server: S3Server, mill: Path, model: Path, config: Path) -> Iterator[subprocess.Popen[str]]:
    """An audit whose results go to the store, at a moment when some of them are there."""
    values = audit_values(mill, model, Path("out"))
    config.write_text(yaml.safe_dump(values | {"out": f"s3://{BUCKET}/out"}))
    pipe, environment = subprocess.PIPE, os.environ | server.environment
    command = [FAITHAD, "audit", "--config", config]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            deadline = time.monotonic() + LONGEST_S
            while len(server.objects("out/ledger/")) < 4:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def test_a_store_that_goes_away(mill_and_model: tuple[Path, Path], tmp_path: Path) -> None:
    with s3_server(tmp_path / "log") as server, audit_on(server, *mill_and_model, tmp_path / "audit.yaml") as audit:
        server.process.kill()
        started = time.monotonic()
        _, complaint = audit.communicate(timeout=LONGEST_S)
        took_s = time.monotonic() - started
    print(f"\nended {took_s:.0f} s after its store")
    assert audit.returncode == 1
    (last,) = [line for line in complaint.splitlines() if line.startswith("StudyError: ")]
    assert f"s3://{BUCKET}/out/" in last
    assert "Could not connect to server" in last
    assert "Traceback" not in complaint


def test_a_store_that_is_silent_for_a_while(mill_and_model: tuple[Path, Path], tmp_path: Path) -> None:
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    config = tmp_path / "calm.yaml"
    config.write_text(yaml.safe_dump(audit_values(*mill_and_model, calm)))
    subprocess.run([FAITHAD, "audit", "--config", config], check=True, timeout=600, stdout=subprocess.DEVNULL)
    with s3_server(tmp_path / "log") as server, audit_on(server, *mill_and_model, tmp_path / "audit.yaml") as audit:
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(SILENT_S)
        server.process.send_signal(signal.SIGCONT)
        said, complaint = audit.communicate(timeout=600)
        assert audit.returncode == 0, said + complaint
        for key in server.objects("out/"):
            target = wild / key.removeprefix("out/")
            target.parent.mkdir(parents=True, exist_ok=True)
            server.client.download_file(BUCKET, key, str(target))
    assert not (problems := differences(wild, calm)), "\n".join(problems)
    shutil.rmtree(wild)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
