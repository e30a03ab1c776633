"""What dies while an audit works, with real processes that are really killed: clips that kill, and a killed driver."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from moto.server import ThreadedMotoServer

from faithad import storage
from faithad.config import Study
from faithad.features import FeatureSettings
from faithad.pipelines import audit_worker, log_mels
from faithad.pipelines.audit_run import Outcome, run_audit
from faithad.pipelines.audit_shard import AuditModel
from faithad.pipelines.audit_worker import Auditor, Step, read_shard
from faithad.pipelines.shards import Row
from tests.integration.audits import WEEK_CLIPS, make_run, table

pytestmark = pytest.mark.usefixtures("local_ray")
FAITHAD = Path(sys.executable).parent / "faithad"
TABLES = ("manifest.parquet", "ledger.parquet", "scores")


def rows(out: Path | str, name: str) -> pa.Table:
    """All rows of a table, without the columns that say where the recordings lie."""
    found = storage.read_table(storage.join(str(out), name))
    return found.drop_columns([name for name in ("uri", "reason") if name in found.column_names])


DEADLY_TO_READ, DEADLY_TO_AUDIT = ("week 7/long.wav", 50.0), ("week 7/noise.flac", 10.0)


def reading_kills(row: Row, **options: Any) -> Row:
    """`read_shard` in a process that one clip kills, as a crash in a decoder would."""

    def read(clip: Row, settings: FeatureSettings) -> np.ndarray:
        if (clip["recording"], clip["onset_s"]) == DEADLY_TO_READ:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(clip, settings)

    original, log_mels.read_log_mel = log_mels.read_log_mel, read
    try:
        return read_shard(row, **options)
    finally:
        log_mels.read_log_mel = original


class AuditingKills(Auditor):
    """An actor that one clip kills, as the kernel does where memory is short."""

    def audit(self, held: AuditModel, clips: list[Row], log_mels: torch.Tensor, step: Step) -> dict[str, list[Row]]:
        if any((clip["recording"], clip["onset_s"]) == DEADLY_TO_AUDIT for clip in clips):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().audit(held, clips, log_mels, step)


def test_clips_that_kill_are_left_out_and_harm_no_other(
    finished: Study, week: Path, audited: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, out = audited[0], tmp_path / "out"
    run = make_run(finished, week, out, "audit.explain=none")
    with monkeypatch.context() as patch:
        patch.setattr(audit_worker, "read_shard", reading_kills)
        patch.setattr(audit_worker, "Auditor", AuditingKills)
        outcome = run_audit(run)
    assert (outcome.n_done, outcome.n_failed) == (WEEK_CLIPS - 2, 3)
    assert outcome.line.startswith(f"{WEEK_CLIPS - 2} of {WEEK_CLIPS} clips audited, 2 failed, 1 recording unreadable")
    ledger = {(row["recording"], row["onset_s"]): row for row in rows(out, "ledger.parquet").to_pylist()}
    reasons = dict(zip(ledger, table(out, "ledger.parquet")["reason"], strict=True))
    failed = {place: reasons[place] for place, row in ledger.items() if row["clip_id"] and row["status"] == "failed"}
    assert set(failed) == {DEADLY_TO_READ, DEADLY_TO_AUDIT}
    assert failed[DEADLY_TO_READ].startswith("Reading this clip ended its process 2 times")
    assert failed[DEADLY_TO_AUDIT].startswith("Auditing this clip ended its process 2 times")
    dead = {ledger[place]["clip_id"] for place in failed}
    # All others to the last bit.
    assert rows(out, "scores").to_pylist() == [
        row for row in rows(calm, "scores").to_pylist() if row["clip_id"] not in dead
    ]

    again = run_audit(run, retry_failed=True)
    assert (again.n_done, again.n_failed) == (WEEK_CLIPS, 1)
    for name in ("ledger.parquet", "scores"):
        assert rows(out, name).equals(rows(calm, name)), name


@pytest.fixture
def bucket(week: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server of our own on loopback that holds the recordings."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    host, port = server.get_host_and_port()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="mill")
    for path in week.iterdir():
        client.upload_file(str(path), "mill", f"{week.name}/{path.name}")
    yield "s3://mill"
    server.stop()


def test_a_killed_audit_goes_on_in_an_object_store(
    finished: Study, audited: tuple[Path, Outcome], bucket: str, tmp_path: Path
) -> None:
    """In processes of their own: the store's place and keys reach Ray's workers through their environment."""
    shutil.copytree(f"{finished.root}/models/mae-0", tmp_path / "model")
    values = {"model": str(tmp_path / "model"), "recordings": [f"{bucket}/week%207"], "out": f"{bucket}/out"}
    values |= {"audit": {"explain": "none"}}
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(values))
    command = [FAITHAD, "audit", "--config", tmp_path / "audit.yaml"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not shards_done(bucket) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done, n_shards = shards_done(bucket), len(list((audited[0] / "ledger").iterdir()))
    assert 0 < len(done) < n_shards

    answer = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert answer.returncode == 3, answer.stdout + answer.stderr
    calm = audited[1].line.replace(str(audited[0]), f"{bucket}/out")
    assert answer.stdout.splitlines()[-1] == calm
    after = shards_done(bucket)
    assert len(after) == n_shards
    assert {key: after[key] for key in done} == done, "what was done is not done again"
    for name in TABLES:
        assert rows(f"{bucket}/out", name).equals(rows(audited[0], name)), name

    other = subprocess.run([*command, "--set", "remainder=drop"], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "remainder: 'overlap' then, 'drop' now" in other.stderr


def shards_done(bucket: str) -> dict[str, Any]:
    """The ledgers in the store, with the time of each."""
    found = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://"), Prefix="out/ledger/")
    return {each["Key"]: each["LastModified"] for each in found.get("Contents", []) if each["Key"].endswith(".parquet")}
