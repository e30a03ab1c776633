"""An audit of a folder that grows: each recording is audited once, whatever comes, changes, goes or is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import soundfile
import torch

from faithad import parquet, schemas, storage
from faithad.audit.inputs import read_inputs
from faithad.audit.outcome import audit_outcome
from faithad.config.audit import AuditRun, RunAudit, load_audit_run
from faithad.errors import RecordingError, StudyError
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.pipelines.audit import run as audit_run
from faithad.pipelines.audit import worker
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.audit.takes import choose_by_take
from faithad.report import audit_page
from faithad.runs.fingerprints import STILL_WRITTEN
from faithad.settings import FeatureSettings
from tests.pipelines.audits_without_ray import without_ray
from tests.tables import differences, tables

pytestmark = pytest.mark.long

RATE_HZ = 8_000
FEATURES = FeatureSettings(sample_rate_hz=RATE_HZ, n_fft=1000, hop_samples=1000, n_mels=16)
SETTINGS = ("audit.explain=alarms", "audit.maps=-1", "audit.percentiles=[95]", "attribution.methods=[error_map]",
            "events.method=error_map", "report.sound=none")  # fmt: skip
# Two hours of one recorder, one of another: events go on from file to file.
NAMES = ("20240506_070000.wav", "20240506_070020.wav", "20240506_070040.wav", "b_20240506_070000.wav")
LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True, scope="module")
def light() -> Iterator[None]:
    """Audits without Ray and with an empty report, which takes most of the time otherwise."""
    with without_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_page, "render_audit_report", empty_report)
        yield


def empty_report(out: str) -> None:
    storage.write_text(storage.join(out, "report.html"), "<html></html>")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It alarms at half of the clips, roughly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SkipCAETransformer(16, 80)
    trained = TrainedModel(
        network=network, normalization=Normalization.identity(16), features=FEATURES, name="mae", seed=0,
        alarm=AlarmThreshold("quantile", "mean", 0.05, 2.0, 18.0, 20), best_epoch=1, config_hash="0" * 12,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    save_model(trained, str(folder))
    return folder


def record(folder: Path, name: str, seconds: float = 20.0, seed: int | None = None) -> Path:
    """A recording whose loudness changes from clip to clip, and which nobody has written into for long."""
    generator = np.random.default_rng(NAMES.index(name) if seed is None else seed)
    folder.mkdir(exist_ok=True)
    levels = np.repeat(10.0 ** generator.uniform(-4, 0, 10), 10 * RATE_HZ)[: int(seconds * RATE_HZ)]
    soundfile.write(folder / name, levels * generator.uniform(-1, 1, len(levels)), RATE_HZ)
    os.utime(folder / name, (LONG_AGO, LONG_AGO))
    return folder / name


def make_run(model: Path, mill: Path, out: Path, *changes: str) -> AuditRun:
    return load_audit_run(
        None, model=str(model), recordings=[str(mill)], out=str(out), overrides=[*SETTINGS, *changes]
    )  # fmt: skip


@pytest.fixture
def run(model: Path, tmp_path: Path) -> AuditRun:
    return make_run(model, tmp_path / "mill", tmp_path / "out")


@pytest.fixture(scope="module")
def at_once(model: Path, light: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audit of all recordings in one take."""
    folder = tmp_path_factory.mktemp("at once")
    for name in NAMES:
        record(folder / "mill", name)
    run_audit(make_run(model, folder / "mill", folder / "out"))
    return folder / "out"


def mill_of(run: AuditRun) -> Path:
    return Path(run.recordings[0])


def ledger(run: AuditRun) -> dict[tuple[str, float | None], tuple[str, str | None]]:
    rows = parquet.read_table(f"{run.out}/ledger.parquet").to_pylist()
    return {(storage.name_of(row["recording"]), row["onset_s"]): (row["status"], row["reason"]) for row in rows}


def of_one_take(out: str) -> None:
    """Take from the manifest what the takes were: all else must be as if there had been one."""
    manifest = parquet.read_table(f"{out}/manifest.parquet").drop_columns(["take", "shard", "uri"])
    parquet.write_table(manifest, f"{out}/manifest.parquet", schema=manifest.schema)


def require_equal(run: AuditRun, at_once: Path, tmp_path: Path) -> None:
    for name, out in (("ours", run.out), ("theirs", at_once)):
        shutil.copytree(out, tmp_path / name)
        of_one_take(str(tmp_path / name))
    assert not differences(tmp_path / "ours", tmp_path / "theirs")
    shutil.rmtree(tmp_path / "ours")
    shutil.rmtree(tmp_path / "theirs")


def shards(run: AuditRun) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in Path(run.out).rglob("part-*.parquet")}


def test_recordings_that_come_are_audited_and_no_other_again(
    run: AuditRun, at_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = worker.add_log_mels
    monkeypatch.setattr(
        worker,
        "add_log_mels",
        lambda clips, *a, **o: (read.extend(clips["recording"].to_pylist()), original(clips, *a, **o))[1],
    )
    for names in (NAMES[:2], NAMES[2:3], NAMES[3:]):
        before, read[:] = shards(run), []
        for name in names:
            record(mill_of(run), name)
        run_audit(run)
        assert {storage.name_of(name) for name in read} == set(names)
        assert before.items() <= shards(run).items(), "no shard of an earlier take was written again"
    takes = parquet.read_table(f"{run.out}/manifest.parquet").group_by("recording").aggregate([("take", "max")])
    assert dict(zip(takes["recording"].to_pylist(), takes["take_max"].to_pylist(), strict=True)) == {
        f"mill/{name}": take for name, take in zip(NAMES, (1, 1, 2, 3), strict=True)
    }
    require_equal(run, at_once, tmp_path)
    events = parquet.read_table(f"{run.out}/events.parquet").to_pylist()
    assert any(len(event["parts"]) > 1 for event in events), "an event goes on in a recording of the next take"
    done = shards(run)
    run_audit(run)
    assert shards(run) == done


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """Kill at the `number`-th file that is written or deleted from now on. Says whether it came to that."""
    left = [number]

    def dies(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            if left[0] < 0:
                raise Killed  # whatever unwinds, a killed process writes nothing more
            return original(*arguments, **options)

        return call

    for module, name in ((parquet, "write_table"), (storage, "write_text"), (storage, "delete")):
        monkeypatch.setattr(module, name, dies(getattr(module, name)))
    return lambda: left[0] <= 0


@pytest.mark.parametrize("stride", [19, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_kill_at_any_write_of_a_take_costs_nothing(
    stride: int, run: AuditRun, at_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES[:2]:
        record(mill_of(run), name)
    run_audit(run)
    for name in NAMES[2:]:
        record(mill_of(run), name)
    before, number = tmp_path / "before", 1 - stride
    shutil.copytree(run.out, before)
    was_killed = True
    while was_killed:  # at the first write, and then at a later one each time
        shutil.rmtree(run.out)
        shutil.copytree(before, run.out)
        number += stride
        with monkeypatch.context() as patch:
            has_died = kill_at(patch, number)
            with contextlib.suppress(Killed):
                run_audit(run)
            was_killed = has_died()
        (Path(run.out) / "stages" / "driver.json").unlink(missing_ok=True)  # its process is gone
        run_audit(run)
        require_equal(run, at_once, tmp_path)
    assert number > 30


def test_what_a_killed_run_had_indexed_may_go_or_change(
    run: AuditRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clips are in the manifest, but it does not belong to the audit yet."""
    record(mill_of(run), NAMES[0])
    run_audit(run)
    came = [record(mill_of(run), name) for name in NAMES[1:3]]
    written = parquet.write_table

    def dies(table: Any, location: str, **options: Any) -> Any:
        if location.endswith("inputs.parquet"):
            raise Killed
        return written(table, location, **options)

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write_table", dies)
        with pytest.raises(Killed):
            run_audit(run)
    assert parquet.read_table(f"{run.out}/manifest.parquet").num_rows == 6
    came[0].unlink()
    record(mill_of(run), NAMES[2], seconds=30.0)
    assert run_audit(run).n_done == 5


def test_what_changed_after_it_was_audited_is_refused(run: AuditRun) -> None:
    for name in NAMES[:3]:
        record(mill_of(run), name)
    run_audit(run)
    record(mill_of(run), NAMES[0], seed=9)
    (mill_of(run) / NAMES[1]).unlink()
    record(mill_of(run), NAMES[3])
    with pytest.raises(StudyError) as caught:
        run_audit(run)
    told = str(caught.value)
    assert f"files that came: mill/{NAMES[3]}\n" in told
    assert f"files that went: mill/{NAMES[1]}\n" in told
    assert f"files that changed: mill/{NAMES[0]}\n" in told
    outcome = run_audit(run, redo=True)
    assert (outcome.n_done, outcome.n_failed) == (6, 0)
    assert NAMES[1] not in {name for name, _ in ledger(run)}


def test_what_is_gone_for_good_can_be_accepted(run: AuditRun, at_once: Path, tmp_path: Path) -> None:
    files = [record(mill_of(run), name) for name in NAMES[:2]]
    run_audit(run)
    scores = parquet.read_table(f"{run.out}/scores")
    files[0].rename(tmp_path / "away.wav")
    with pytest.raises(StudyError, match=r"files that went: .*\n.*accept that it is lost \(--accept-missing\)"):
        run_audit(run)
    done = shards(run)
    assert run_audit(run, accept_missing=True).n_done == 4
    assert shards(run) == done
    assert parquet.read_table(f"{run.out}/scores").equals(scores)
    rows = parquet.read_table(f"{run.out}/ledger.parquet").to_pylist()
    assert [(row["status"], row["reason"]) for row in rows if row["reason"]] == [
        ("done", "was audited, and is gone since")
    ]
    for name in NAMES[2:]:  # later runs go on without it
        record(mill_of(run), name)
    assert run_audit(run).n_done == 8
    assert read_inputs(run.out).gone == {f"mill/{NAMES[0]}"}
    (tmp_path / "away.wav").rename(files[0])
    run_audit(run)
    require_equal(run, at_once, tmp_path)


def test_a_recording_without_clips_may_change(run: AuditRun) -> None:
    """A copy that has just begun, for example: nothing of it was audited."""
    record(mill_of(run), NAMES[0])
    (mill_of(run) / NAMES[1]).write_bytes(b"RIFF")
    assert (run_audit(run).n_done, run_audit(run).n_failed) == (2, 1)
    record(mill_of(run), NAMES[1])
    assert (run_audit(run).n_done, run_audit(run).n_failed) == (4, 0)


def open_header(file: Path, *, size: int) -> None:
    content = bytearray(file.read_bytes())
    content[40:44] = struct.pack("<I", size)
    file.write_bytes(content)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_recording_whose_header_is_open_is_left_to_the_next_run(
    run: AuditRun, at_once: Path, tmp_path: Path, size: int
) -> None:
    for name in NAMES:
        record(mill_of(run), name)
    written = mill_of(run) / NAMES[2]
    open_header(written, size=size)
    outcome = run_audit(run)
    assert (outcome.n_done, outcome.n_failed, outcome.n_skipped) == (6, 0, 1)
    assert ledger(run)[NAMES[2], None] == ("skipped", STILL_WRITTEN)
    assert run_audit(run) == outcome, "and to the one after that"
    record(mill_of(run), NAMES[2])
    assert run_audit(run).n_done == 8
    require_equal(run, at_once, tmp_path)


def test_a_header_that_was_open_a_minute_ago_is_read_to_the_end(run: AuditRun) -> None:
    file = record(mill_of(run), NAMES[0])
    open_header(file, size=0xFFFFFFFF)
    os.utime(file, (LONG_AGO, LONG_AGO))
    assert run_audit(run).n_done == 2
    assert "without a length" in str(ledger(run)[NAMES[0], 0.0]) or len(ledger(run)) == 3


def test_nothing_but_what_is_being_written(run: AuditRun) -> None:
    open_header(record(mill_of(run), NAMES[0]), size=0)
    with pytest.raises(RecordingError, match=rf"{NAMES[0]}: {STILL_WRITTEN}"):
        run_audit(run)
    record(mill_of(run), NAMES[0])
    assert run_audit(run).n_done == 2


def grow(file: Path) -> None:
    """A recorder writes ten more seconds."""
    samples, _ = soundfile.read(file)
    soundfile.write(file, np.concatenate([samples, samples[: 10 * RATE_HZ]]), RATE_HZ)


def truncate(file: Path) -> None:
    os.truncate(file, 44 + 2 * 15 * RATE_HZ)


def replace(file: Path) -> None:
    record(file.parent, file.name, seed=9)
    os.utime(file, (LONG_AGO + 1, LONG_AGO + 1))


CHANGES = {"grown": (grow, STILL_WRITTEN, 3), "truncated": (truncate, "was truncated from 320,044 to 240,044", 2),
           "replaced": (replace, "was replaced while it was audited", 2)}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("when", ["index", "score", "explain"])
def test_a_recording_that_changes_while_it_is_read(
    run: AuditRun, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    """It costs its own clips, and the next run takes it as it is then."""
    for name in NAMES:
        record(mill_of(run), name)
    change, reason, n_clips = CHANGES[kind]
    file = mill_of(run) / NAMES[1]
    module, name = {
        "index": (audit_run, "index_recordings"),
        "score": (audit_run, "_run_pass"),
        "explain": (audit_run, "explain_stage"),
    }[when]
    original, n_calls = getattr(module, name), [0]

    def changes_first(*arguments: Any, **options: Any) -> Any:
        n_calls[0] += 1
        if n_calls[0] == 1:
            change(file)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, changes_first)
        outcome = run_audit(run)
    assert (outcome.n_done, outcome.n_failed, outcome.n_skipped) == (6, 0, 1)
    status, why = ledger(run)[NAMES[1], None]
    assert status == "skipped"
    assert str(why).startswith(STILL_WRITTEN if when == "index" else reason)
    outcome = run_audit(run)
    assert outcome.n_done == 6 + n_clips
    assert len(read_inputs(run.out).files) == 4
    assert len(parquet.read_table(f"{run.out}/scores")) == 6 + n_clips


def test_a_change_that_a_killed_run_had_noticed(run: AuditRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        record(mill_of(run), name)

    def killed(*_: object) -> None:
        raise Killed

    original = audit_run._run_pass

    def grows(*arguments: Any, **options: Any) -> None:
        grow(mill_of(run) / NAMES[1])
        original(*arguments, **options)
        patch.setattr(audit_run, "withdraw_changed", killed)

    with monkeypatch.context() as patch:
        patch.setattr(audit_run, "_run_pass", grows)
        with pytest.raises(Killed):
            run_audit(run)
    assert run_audit(run).n_done == 9


def test_a_recording_that_is_deleted_while_it_is_read_costs_its_clips(
    run: AuditRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        record(mill_of(run), name)
    original = audit_run._run_pass

    def deletes(*arguments: Any, **options: Any) -> None:
        (mill_of(run) / NAMES[1]).unlink(missing_ok=True)
        original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(audit_run, "_run_pass", deletes)
        outcome = run_audit(run)
    assert (outcome.n_done, outcome.n_failed) == (6, 2)
    assert "does not exist" in str(ledger(run)[NAMES[1], 0.0])
    assert run_audit(run, accept_missing=True).n_done == 6
    assert ledger(run)[NAMES[1], 10.0][0] == "failed"


def test_failures_are_tried_again_with_takes(run: AuditRun, at_once: Path, tmp_path: Path) -> None:
    record(mill_of(run), NAMES[0])
    run_audit(run)
    record(mill_of(run), NAMES[1])
    (mill_of(run) / NAMES[2]).symlink_to(tmp_path / "away.wav")  # as a mount that is not there
    assert run_audit(run).n_failed == 1
    record(mill_of(run), NAMES[3])
    assert run_audit(run).n_failed == 1
    done = shards(run)
    shutil.copy(record(tmp_path / "elsewhere", NAMES[2]), tmp_path / "away.wav")
    assert run_audit(run).n_failed == 1, "nobody has asked for it"
    assert run_audit(run, retry_failed=True) == audit_outcome(run.out)
    assert done.items() <= shards(run).items()
    require_equal(run, at_once, tmp_path)


def test_top_n_and_maps_hold_for_each_take(model: Path, tmp_path: Path) -> None:
    run = make_run(model, tmp_path / "mill", tmp_path / "out", "audit.explain=top:1", "audit.maps=1")
    for n_takes, name in enumerate(NAMES, start=1):
        record(mill_of(run), name)
        run_audit(run)
        for table in ("attributions", "spectrograms"):
            assert parquet.read_table(f"{run.out}/{table}").num_rows == n_takes
    assert len(tables(run.out)["explained"]) == 4


def test_other_settings_are_refused_although_recordings_came(model: Path, run: AuditRun) -> None:
    record(mill_of(run), NAMES[0])
    run_audit(run)
    record(mill_of(run), NAMES[1])
    for change, key in (("remainder=drop", "remainder"), ("audit.explain=all", "audit.explain")):
        with pytest.raises(StudyError, match=rf"  {key}: "):
            run_audit(make_run(model, mill_of(run), Path(run.out), change))


def test_the_ledger_says_what_else_lies_there_today(run: AuditRun) -> None:
    record(mill_of(run), NAMES[0])
    run_audit(run)
    done = shards(run)
    (mill_of(run) / "talk.mp3").write_bytes(b"ID3")
    assert run_audit(run).n_skipped == 1
    (mill_of(run) / "talk.mp3").unlink()
    assert run_audit(run).n_skipped == 0
    assert shards(run) == done


def test_annotations_of_recordings_that_come(model: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "20240506_070000.txt").write_text("1.0\t3.0\tknock\n")
    run = make_run(model, tmp_path / "mill", tmp_path / "out", f"annotations={tmp_path / 'labels'}")
    for name in NAMES[:2]:
        record(mill_of(run), name)
        run_audit(run)
    manifest = parquet.read_table(f"{run.out}/manifest.parquet")
    assert manifest["label"].to_pylist() == [1, 0, 0, 0]
    assert pc.sum(manifest["annotated"]).as_py() == 1


FOLLOW = """
import sys
from faithad.cli.endings import ending
from faithad.report import audit_page
from faithad.pipelines.audit.follow import follow_audit
from pathlib import Path
from tests.pipelines.audits_without_ray import without_ray
from tests.pipelines.test_growth import empty_report, make_run
model, mill, out = map(Path, sys.argv[1:])
run = make_run(model, mill, out, "follow.every_s=0.2", "follow.settle_s=1.5")
audit_page.render_audit_report = empty_report
with ending("audit"), without_ray():
    how = {"redo": False, "retry_failed": False, "accept_missing": False}
    outcome = follow_audit(run, **how, say=lambda text: print(text, flush=True))
    print("last:", outcome.line)
"""


def test_a_recorder_is_followed_until_ctrl_c(model: Path, run: AuditRun, at_once: Path, tmp_path: Path) -> None:
    """It writes bit by bit, with the right length in its header all the time."""
    mill_of(run).mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, model, *run.recordings, run.out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        try:
            for number, name in enumerate(NAMES, start=1):
                sound, rate = soundfile.read(record(tmp_path / "recorder", name))
                with soundfile.SoundFile(mill_of(run) / name, "w", rate, 1, "PCM_16") as recording:
                    for start in range(0, len(sound), len(sound) // 5):
                        recording.write(sound[start : start + len(sound) // 5])
                        recording.flush()
                        time.sleep(0.3)
                while not (line := process.stdout.readline()).startswith(
                    f"{2 * number} of {2 * number} clips audited."
                ):
                    assert line, process.communicate()
            process.send_signal(signal.SIGINT)
            said, problems = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, problems
    assert said.splitlines()[-1].startswith("last: 8 of 8 clips audited."), said
    assert not problems
    require_equal(run, at_once, tmp_path)


def test_of_no_clips_none_are_chosen() -> None:
    clips = schemas.MANIFEST.empty_table()
    chosen = choose_by_take(clips, schemas.SCORES.empty_table(), RunAudit(), alarm=None)
    assert chosen.num_rows == 0
    assert "keep_maps" in chosen.column_names
