"""An object store that goes away, or that is silent for a while, in the middle of an audit.

    python -m pytest tests/chaos/store_lost.py -s

A store that is gone ends the audit with an error that names it, soon; one that only was busy costs its time. That holds
for the store of the results and for that of the recordings, none of which is called failed for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from pyarrow import compute

from faithad import parquet
from tests.chaos.audits import FAITHAD, audit_values, differences
from tests.integration.s3_server import BUCKET, S3Server, s3_server

LONGEST_S = 120.0
SILENT_S = 20.0


@contextlib.contextmanager
def audit_on(server: S3Server, mill: Path, model: Path, config: Path) -> Iterator[subprocess.Popen[str]]:
    """An audit whose results go to the store, at a moment when some of them are there."""
    values = audit_values(mill, model, Path("out"))
    config.write_text(yaml.safe_dump(values | {"out": f"s3://{BUCKET}/out"}))
    with started(server, config, lambda: len(server.objects("out/ledger/")) >= 4) as process:
        yield process


@contextlib.contextmanager
def started(server: S3Server, config: Path, is_due: Callable[[], bool]) -> Iterator[subprocess.Popen[str]]:
    """An audit, at the moment that is due, however long it takes on a busy machine; a hang ends with pytest's limit."""
    pipe, environment = subprocess.PIPE, os.environ | server.environment
    command = [FAITHAD, "audit", "--config", config]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            while not is_due():
                assert process.poll() is None, process.communicate()
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


def test_recordings_whose_store_goes_away_and_comes_back(mill_and_model: tuple[Path, Path], tmp_path: Path) -> None:
    mill, model = mill_and_model
    config, calm, wild = tmp_path / "audit.yaml", tmp_path / "calm", tmp_path / "wild"
    uri = f"s3://{BUCKET}/test"

    def configure(out: Path) -> None:
        config.write_text(yaml.safe_dump(audit_values(mill, model, out, explain="none") | {"recordings": [uri]}))

    def done() -> set[str]:
        return {path.name for path in (wild / "ledger").glob("part-*.parquet")}

    @contextlib.contextmanager
    def store(name: str) -> Iterator[S3Server]:
        with s3_server(tmp_path / name) as server:
            server.upload(mill / "test", "test")
            yield server

    with store("first log") as server:
        configure(calm)
        subprocess.run([FAITHAD, "audit", "--config", config], check=True, env=os.environ | server.environment)
        configure(wild)
        with started(server, config, lambda: len(done()) >= 4) as audit:
            server.process.kill()
            since = time.monotonic()
            _, complaint = audit.communicate(timeout=LONGEST_S)
            print(f"\nended {time.monotonic() - since:.0f} s after the store of its recordings")
    assert audit.returncode == 1
    (last,) = [line for line in complaint.splitlines() if line.startswith("StudyError: ")]
    assert f"Location '{uri}' cannot be reached" in last
    assert "it continues where it stopped" in last
    assert "Traceback" not in complaint
    before = done()
    assert 4 <= len(before) < len(list((calm / "ledger").iterdir()))
    statuses = parquet.read_table(str(wild / "ledger"), columns=["status"])["status"]
    assert compute.unique(statuses).to_pylist() == ["done"], "no clip is called failed for it"
    with store("second log") as server:
        subprocess.run([FAITHAD, "audit", "--config", config], check=True, env=os.environ | server.environment)
    assert not (problems := differences(wild, calm)), "\n".join(problems)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
