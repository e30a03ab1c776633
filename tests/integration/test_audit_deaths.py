"""What dies while an audit works: files and clips that kill, with real processes that are really killed.

Killed drivers are in test_storage_s3.py and in tests/chaos.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from faithad import parquet, storage
from faithad.audit.judging import TableRow
from faithad.config.study import Study
from faithad.pipelines import headers
from faithad.pipelines.audit import worker as audit_worker
from faithad.pipelines.audit.run import Outcome, run_audit
from tests.deadly_clips import DEADLY_TO_OPEN, AuditingKills, opening_kills, reading_kills
from tests.integration.audits import make_run, table

pytestmark = pytest.mark.usefixtures("local_ray")

# Twelve clips, each a shard of its own. For deadly clips among others see tests/chaos/audit_poison.py.
SOME = ("MPD*.wav", "noise.flac", "short.wav", "broken.wav")
DEADLY_TO_READ, DEADLY_TO_AUDIT = ("short.wav", 0.0), ("noise.flac", 10.0)


class Auditing(AuditingKills):
    deadly = (DEADLY_TO_AUDIT,)


@pytest.mark.slow
def test_what_kills_is_left_out_and_harms_no_other(
    finished: Study, week: Path, audited: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sounds = tmp_path / "out", tmp_path / week.name
    sounds.mkdir()
    for file in (file for pattern in SOME for file in week.glob(pattern)):
        shutil.copy(file, sounds)
    shutil.copy(week / "short.wav", sounds / DEADLY_TO_OPEN)
    run = make_run(finished, sounds, out, "audit.explain=none", "audit.actors=1")
    with monkeypatch.context() as patch:
        patch.setattr(headers, "_read_some", opening_kills)
        patch.setattr(audit_worker, "read_shard", reading_kills(DEADLY_TO_READ))
        patch.setattr(audit_worker, "Auditor", Auditing)
        outcome = run_audit(run)
    assert (outcome.n_done, outcome.n_failed) == (10, 4)
    assert outcome.line.startswith("10 of 12 clips audited, 2 failed, 2 recordings unreadable (see ")
    failed = {(storage.name_of(row["recording"]), row["onset_s"]): row["reason"]
              for row in table(out, "ledger.parquet").to_dict("records") if row["status"] == "failed"}  # fmt: skip
    told = {storage.name_of(name): reason for (name, _), reason in failed.items()}
    assert set(told) == {DEADLY_TO_OPEN, "short.wav", "noise.flac", "broken.wav"}
    for name, doing in ((DEADLY_TO_OPEN, "Opening this recording"), ("short.wav", "Reading this clip"),
                        ("noise.flac", "Auditing this clip")):  # fmt: skip
        assert told[name].startswith(f"{doing} ended its process 2 times"), name
    assert {DEADLY_TO_READ, DEADLY_TO_AUDIT} < set(failed)
    calm = {row["clip_id"]: row for row in scores_in(audited[0])}
    found = scores_in(out)
    assert [calm[row["clip_id"]] for row in found] == found, "all others to the last bit"
    assert not (out / "attempts").exists()

    again = run_audit(run, retry_failed=True)
    assert (again.n_done, again.n_failed) == (13, 1)
    found = scores_in(out)
    assert [calm.get(row["clip_id"], row) for row in found] == found


def scores_in(out: Path) -> list[TableRow]:
    found: list[TableRow] = parquet.read_table(str(out / "scores")).to_pylist()
    return found
