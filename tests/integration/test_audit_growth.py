"""Recordings come after an audit: the driver of the second one is killed in the middle, and nothing is done twice."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from faithad import storage
from faithad.config.study import Study
from faithad.pipelines.audit.run import Outcome, run_audit
from tests.integration.audits import make_run, table


@pytest.mark.slow  # takes killed at every third write: tests/pipelines/test_growth.py
def test_a_killed_second_take_goes_on(
    finished: Study, week: Path, audited: tuple[Path, Outcome], tmp_path: Path
) -> None:
    sounds, out = tmp_path / week.name, tmp_path / "out"
    sounds.mkdir()
    for file in week.iterdir():
        if file.name != "long.wav":
            shutil.copy(file, sounds)
    run = make_run(finished, sounds, out, "audit.maps=-1")
    run_audit(run)
    first = {file: file.stat().st_mtime_ns for file in out.rglob("part-*.parquet")}
    shutil.copy(week / "long.wav", sounds)

    config = tmp_path / "audit.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(run.to_yaml())}))
    command = [Path(sys.executable).parent / "faithad", "audit", "--config", config]
    n_before, deadline = len(list((out / "ledger").iterdir())), time.monotonic() + 120
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(list((out / "ledger").glob("part-*.parquet"))) < n_before + 2:
            assert process.poll() is None, "the kill came too late to show anything"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert (out / "stages" / "score.begun.json").exists()
    done = {file: file.stat().st_mtime_ns for file in (out / "ledger").glob("part-*.parquet")}

    assert run_audit(run).n_done == audited[1].n_done
    after = {file: file.stat().st_mtime_ns for file in out.rglob("part-*.parquet")}
    assert first.items() <= after.items(), "no shard of the first take was written again"
    assert done.items() <= after.items(), "nor one that the killed run had finished"
    for name in ("scores", "ledger.parquet", "faithfulness", "events.parquet"):
        ours, theirs = (storage.read_table(storage.join(str(place), name)).to_pylist() for place in (out, audited[0]))
        for row in [*ours, *theirs] if name == "ledger.parquet" else []:
            row["reason"] = (row["reason"] or "").replace(str(sounds), "").replace(str(week), "")
        assert sorted(map(repr, ours)) == sorted(map(repr, theirs)), name
    manifest = table(out, "manifest.parquet")
    assert set(manifest[manifest["take"] == 2]["recording"]) == {"week 7/long.wav"}
