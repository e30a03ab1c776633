"""Clips that kill their process every time, among others in their shards: these alone are left out.

Run by hand: `pytest tests/chaos/audit_poison.py -s`. Such a clip costs four processes: two until it is looked for, two
until it is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from faithad import parquet
from faithad.audit.judging import TableRow
from faithad.config.audit import load_audit_run
from faithad.pipelines.audit import worker as audit_worker
from faithad.pipelines.audit.run import run_audit
from tests.chaos.audits import CLIPS, audit_values, differences
from tests.deadly_clips import AuditingKills, is_at, reading_kills

# Two lie in one shard.
DEADLY_TO_READ = [("_0820_", 10.0), ("_0820_", 30.0), ("_0841_", 0.0)]
DEADLY_TO_AUDIT = [("_0850_", 20.0)]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


class Auditing(AuditingKills):
    deadly = DEADLY_TO_AUDIT


@pytest.mark.timeout(1800)
def test_clips_that_kill_among_others(
    mill_and_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    audit(*mill_and_model, calm)
    with monkeypatch.context() as patch:
        patch.setattr(audit_worker, "read_shard", reading_kills(*DEADLY_TO_READ))
        patch.setattr(audit_worker, "Auditor", Auditing)
        outcome = audit(*mill_and_model, wild)
    assert (outcome.n_done, outcome.n_failed) == (CLIPS - 4, 4)
    ledger = parquet.read_table(str(wild / "ledger.parquet")).to_pylist()
    for row in ledger:
        expected = "Reading" if is_at(row, DEADLY_TO_READ) else "Auditing" if is_at(row, DEADLY_TO_AUDIT) else None
        assert (row["status"] == "done") is (expected is None), row
        assert expected is None or row["reason"].startswith(f"{expected} this clip ended its process 2 times")
    dead = {row["clip_id"] for row in ledger if row["status"] != "done"}
    for name in ("scores", "attributions", "faithfulness"):
        expected_rows = [row for row in rows(calm, name) if row["clip_id"] not in dead]
        assert rows(wild, name) == expected_rows, "all others to the last bit"

    assert audit(*mill_and_model, wild, retry_failed=True).n_done == CLIPS
    assert not (problems := differences(wild, calm)), "\n".join(problems)


def rows(out: Path, name: str) -> list[TableRow]:
    """Without the maps: which clips' are kept depends on which are there."""
    columns = {"attributions": ["clip_id", "method", "curve", "profile"]}.get(name)
    found: list[TableRow] = parquet.read_table(str(out / name), columns=columns).to_pylist()
    return found


def audit(mill: Path, model: Path, out: Path, *, retry_failed: bool = False) -> Any:
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(audit_values(mill, model, out, actors=3)))
    return run_audit(load_audit_run(str(config)), retry_failed=retry_failed)
