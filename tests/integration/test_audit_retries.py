"""What is tried again, what is not, and who may try: read errors that pass, and two audits of one folder at once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from faithad import parquet
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.pipelines.audit.run import Outcome, run_audit
from faithad.pipelines.study import STAGES, run_study
from tests.integration.audits import make_run, table

pytestmark = pytest.mark.usefixtures("local_ray")
NAMES = ("week 7/noise.flac", "week 7/short.wav")


def rows(out: Path, name: str) -> list[dict[str, object]]:
    """The rows of a table that speak of the clips of these recordings."""
    manifest = parquet.read_table(str(out / "manifest.parquet"))
    wanted = manifest.filter(pc.is_in(manifest["recording"], value_set=pa.array(NAMES)))["clip_id"].combine_chunks()
    found = parquet.read_table(str(out / name))
    return sorted(found.filter(pc.is_in(found["clip_id"], value_set=wanted)).to_pylist(), key=str)


@pytest.mark.long
def test_a_recording_that_could_not_be_opened_is_tried_again_when_asked(
    finished: Study, week: Path, audited: tuple[Path, Outcome], tmp_path: Path
) -> None:
    sounds, away, out = tmp_path / "week 7", tmp_path / "away.flac", tmp_path / "out"
    sounds.mkdir()
    shutil.copy(week / "short.wav", sounds)
    (sounds / "noise.flac").symlink_to(away)  # what it leads to is not there, as a mount may not be
    run = make_run(finished, sounds, out, "audit.explain=none", "audit.actors=1")
    first = run_audit(run)
    assert (first.n_done, first.n_failed) == (1, 1)
    assert run_audit(run, retry_failed=True) == first

    shutil.copy(week / "noise.flac", away)
    assert run_audit(run) == first, "nobody has asked for it, and it is no change either"
    outcome = run_audit(run, retry_failed=True)
    assert (outcome.n_done, outcome.n_failed) == (4, 0)
    for name in ("scores", "ledger.parquet"):
        assert rows(out, name) == rows(audited[0], name), name

    away.rename(tmp_path / "elsewhere")
    assert run_audit(run) == outcome, "what has been heard need not be there any more"
    shutil.copy(week / "short.wav", away)
    with pytest.raises(StudyError, match=r"files that changed: week 7/noise\.flac\n"):
        run_audit(run, retry_failed=True)


DRIVER = """
import sys, time
from faithad.runs import lock
lock._RENEWAL_S = 0.2
with lock.alone_in(sys.argv[1]):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in a folder `out`."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_a_second_driver_of_a_study_is_refused(driver: subprocess.Popen[str], finished: Study, tmp_path: Path) -> None:
    study = finished.model_copy(update={"root": str(tmp_path / "out")})
    for command in (run_study, STAGES["index"]):
        with pytest.raises(StudyError, match=rf"Process {driver.pid} of .* works in {study.root} since "):
            command(study)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stages"]


def test_a_second_audit_of_the_same_folder_is_refused(
    driver: subprocess.Popen[str], finished: Study, week: Path, audited: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = make_run(finished, week, out)
    with pytest.raises(StudyError) as caught:
        run_audit(run)
    since = json.loads((out / "stages" / "driver.json").read_text())["since"]
    told = str(caught.value)
    assert told.startswith(f"Process {driver.pid} of ")
    assert f" works in {out} since {since}. Wait until it is done, or end it" in told
    assert [path.name for path in out.iterdir()] == ["stages"]

    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert (out / "stages" / "driver.json").exists()
    shutil.copytree(audited[0], out, dirs_exist_ok=True)
    assert run_audit(run).line == audited[1].line.replace(str(audited[0]), str(out))
    assert not (out / "stages" / "driver.json").exists()
    assert len(table(out, "scores")) == audited[1].n_done
