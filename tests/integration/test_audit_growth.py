"""Recordings come after an audit, or while it follows its folder: nothing is done twice, whoever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import yaml

from faithad import parquet, storage
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
        ours, theirs = (parquet.read_table(storage.join(str(place), name)).to_pylist() for place in (out, audited[0]))
        for row in [*ours, *theirs] if name == "ledger.parquet" else []:
            row["reason"] = (row["reason"] or "").replace(str(sounds), "").replace(str(week), "")
        assert sorted(map(repr, ours)) == sorted(map(repr, theirs)), name
    manifest = table(out, "manifest.parquet")
    assert set(manifest[manifest["take"] == 2]["recording"]) == {"week 7/long.wav"}


@pytest.mark.long
def test_follow_takes_up_what_comes_until_ctrl_c(finished: Study, mill: Path, local_ray: None, tmp_path: Path) -> None:
    """A process of its own, which joins the Ray of this session and is told to end while it waits."""
    sounds, out, log = tmp_path / "week", tmp_path / "out", tmp_path / "log"
    first, second = sorted((mill / "test").glob("*.wav"))[:2]
    sounds.mkdir()
    put(first, sounds)
    config = tmp_path / "audit.yaml"
    config.write_text(make_run(finished, sounds, out, "follow.every_s=1", "audit.explain=none").to_yaml())
    command = [Path(sys.executable).parent / "faithad", "audit", "--config", config, "--follow"]
    joins = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as said, subprocess.Popen(command, env=os.environ | joins, stdout=said, stderr=said) as process:
        try:
            wait_for("2 of 2 clips audited.", log, process)
            before = {file: file.stat().st_mtime_ns for file in out.rglob("part-*.parquet")}
            put(second, sounds)
            wait_for("4 of 4 clips audited.", log, process)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("4 of 4 clips audited."), "what it came to is said last"
    assert "Traceback" not in log.read_text()
    assert before.items() <= {file: file.stat().st_mtime_ns for file in out.rglob("part-*.parquet")}.items()
    takes = table(out, "manifest.parquet").groupby("recording")["take"].unique().to_dict()
    assert {name: list(numbers) for name, numbers in takes.items()} == {
        f"week/{first.name}": [1],
        f"week/{second.name}": [2],
    }


def put(recording: Path, folder: Path) -> None:
    """Lay a recording into a folder that nobody has written into for long."""
    aside = folder / ".aside"
    shutil.copy(recording, aside)
    os.utime(aside, (1_000_000_000, 1_000_000_000))
    aside.rename(folder / recording.name)


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
