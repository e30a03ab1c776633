"""`faithad train --normals` and the audit with its model, whole but for Ray."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import soundfile
import torch

import faithad
from faithad import parquet, storage
from faithad.audit import sounds
from faithad.audit.outcome import read_scores
from faithad.config.audit import load_audit_run
from faithad.config.normals import NormalsRun, load_normals_run
from faithad.errors import CheckpointError, ConfigError, StudyError
from faithad.evaluation.alarms import fit_promised_alarm
from faithad.pipelines.audit.run import AuditRunner, run_audit
from faithad.pipelines.evaluate import evaluate_audit_and_report
from faithad.pipelines.training.normals import train_on_normals
from faithad.runs import layout
from faithad.runs.tables import read_manifest
from faithad.scoring.trained_ensemble import load_any
from faithad.settings import FeatureSettings
from tests.full_disks import places_where_full, small_disk
from tests.pipelines.audits_without_ray import without_ray
from tests.pipelines.test_damage import KINDS

pytestmark = pytest.mark.long

RATE_HZ = 4_000
SETTINGS = ["clip_s=2", "features.sample_rate_hz=4000", "features.n_fft=200", "features.hop_samples=100",
            "features.n_mels=16"]  # fmt: skip
EXPLAINED = ["attribution.methods=[error_map, saliency]", "audit.percentiles=[95]"]


@pytest.fixture(autouse=True, scope="module")
def threads_as_before() -> Iterator[None]:
    """A training sets the threads of its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def hum(seconds: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    at_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return 0.1 * np.sin(2 * np.pi * 300 * at_s) + 0.03 * generator.normal(size=len(at_s))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six normal recordings and a broken one; two to audit, the first with a click, the second with a short end."""
    folder = tmp_path_factory.mktemp("normals")
    for name in ("normal", "new"):
        (folder / name).mkdir()
    for number in range(6):
        soundfile.write(folder / "normal" / f"{number}.wav", hum(10, number), RATE_HZ)
    (folder / "normal" / "broken.wav").write_bytes(b"RIFF no sound")
    sound = hum(8, 100)
    sound[round(4.5 * RATE_HZ) : round(4.6 * RATE_HZ)] += np.random.default_rng(0).normal(size=round(0.1 * RATE_HZ))
    soundfile.write(folder / "new" / "click.wav", sound, RATE_HZ)
    soundfile.write(folder / "new" / "short.wav", hum(1.5, 101), RATE_HZ)
    with without_ray():
        train_on_normals(training(folder))
        run_audit(load_audit_run(None, **places(folder), overrides=EXPLAINED))
    return folder


def training(folder: Path, *overrides: str, to: str = "model") -> NormalsRun:
    return load_normals_run([str(folder / "normal")], str(folder / to), overrides=[*SETTINGS, *overrides])


def places(folder: Path, *, out: str = "out") -> dict[str, str | list[str]]:  # arguments of `load_audit_run`
    return {"model": str(folder / "model"), "recordings": [str(folder / "new")], "out": str(folder / out)}


def test_a_broken_file_costs_itself_and_stands_in_the_ledger(work: Path) -> None:
    ledger = parquet.read_table(storage.join(str(work / "model"), layout.LEDGER)).to_pylist()
    assert sum(row["status"] == "done" for row in ledger) == 30
    (failed,) = (row for row in ledger if row["status"] == "failed")
    assert failed["recording"].endswith("broken.wav")
    assert not (work / "model" / "features").exists()


def test_a_training_goes_on_after_a_full_disk(work: Path, tmp_path: Path) -> None:
    """The disk is full at its first write, and then a little later at each try."""
    with small_disk(tmp_path / "disk", 1 << 23) as disk, without_ray():
        run = load_normals_run([str(work / "normal")], str(disk.folder / "model"), overrides=SETTINGS)
        places = places_where_full(disk, lambda: train_on_normals(run), step_bytes=1 << 13)
        full = {Path(place).parts[1] for place in places}
        assert {"stages", "manifest.parquet", "features"} <= full
        assert {file.name for file in disk.folder.rglob(".*")} == {".ballast"}, "no file that was cut off is left"
        made, whole = (place / "ensemble.safetensors" for place in (disk.folder / "model", work / "model"))
        assert made.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("name", ["ensemble.safetensors", "frame_ridge/model.safetensors"])
@pytest.mark.parametrize("kind", ["empty", "half", "flipped"])
def test_a_damaged_model_is_refused_by_an_audit_and_made_again_by_a_training(
    work: Path, tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(work / "model", tmp_path / "model")
    file = tmp_path / "model" / name
    KINDS[kind](file)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))} is (damaged|not the model)"):
        load_any(str(tmp_path / "model"))
    with without_ray():
        train_on_normals(load_normals_run([str(work / "normal")], str(tmp_path / "model"), overrides=SETTINGS))
        assert f"{file} is " in capsys.readouterr().out
        train_on_normals(load_normals_run([str(work / "normal")], str(tmp_path / "model"), overrides=SETTINGS))
        assert "The model is trained already." in capsys.readouterr().out
    assert file.read_bytes() == (work / "model" / name).read_bytes()


def test_the_card_says_what_is_promised(work: Path) -> None:
    card = json.loads((work / "model" / layout.MODEL).read_text())
    assert [member["name"] for member in card["members"]] == ["frame_pca", "frame_ridge"]
    # ceil(0.95 x 31) = 30: the highest of 30 scores.
    assert card["alarm"]["false_alarm_rate"] == pytest.approx(1 / 31)
    assert card["alarm"]["n_validation"] == 30
    assert card["alarm"]["pooling"] == "ensemble"


def test_the_click_alarms_and_its_event_names_a_member(work: Path) -> None:
    scores, manifest = read_scores(str(work / "out")), read_manifest(str(work / "out"))
    assert scores.num_rows == manifest.num_rows == 5
    assert set(scores["raised_by"].to_pylist()) <= {"frame_pca", "frame_ridge"}
    events = faithad.events(work / "out")
    event = events.loc[events["score"].idxmax()]
    assert event["raised_by"] in ("frame_pca", "frame_ridge")
    assert np.isnan(event["strength"])
    assert event["recording"].endswith("click.wav")
    assert any(part["onset_s"] <= 4.5 < part["offset_s"] for part in event["seconds"])
    # It begins with the click, at 4.5 s, and not with its clip, at 4 s: errors reach 0.2 s before a sound.
    (heard,) = (own for own in events["parts"] if own[0]["onset_s"] <= 4.5 < own[0]["offset_s"])
    assert heard[0]["onset_s"] == 4.25
    # How far its reason can be trusted: random and best frames were replaced, too, for the member that raised it.
    reasons = faithad.read_table(work / "out", "reasons").set_index("method")
    assert set(reasons.index) == {"error_map", "saliency"}
    assert event["trusted"] == reasons.loc["saliency", "verdict"] == "undecided: 2 recordings, 20 are needed"
    lines = faithad.read_table(work / "out", "controls")
    assert set(lines["line"]) == {"random", "oracle"}
    assert -1 < event["normalized"] <= 1
    page = (work / "out" / layout.REPORT).read_text()
    assert "raised by Frame" in page
    assert "Is Saliency more faithful than random moments, over all explained clips? Undecided (2 recordings" in page
    assert "times the threshold" not in page


def test_the_model_expects_no_click(work: Path) -> None:
    rows = parquet.read_table(storage.join(str(work / "out"), layout.SOUNDS)).to_pylist()
    (row,) = (row for row in rows if row["recording"].endswith("click.wav") and 0 < 4.5 - row["onset_s"] < 4)
    levels = {}
    for name in ("opus", "expected"):
        sound, rate_hz = soundfile.read(io.BytesIO(row[name]))
        click, before = (slice(round((at_s - row["onset_s"]) * rate_hz), None) for at_s in (4.5, 4.3))
        parts = [sound[part][: round(0.1 * rate_hz)] for part in (click, before)]
        levels[name] = [float(np.sqrt(np.mean(part**2))) for part in parts]
    assert levels["opus"][0] > 5 * levels["opus"][1]
    assert levels["expected"][0] < 2 * levels["expected"][1]
    assert 0.5 < levels["expected"][1] / levels["opus"][1] < 2, "the hum is as loud"


def test_a_second_look_cuts_new_sounds_only(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an audit does that follows a folder."""
    (tmp_path / "new").mkdir()
    shutil.copy(work / "new" / "click.wav", tmp_path / "new")
    place = {"model": str(work / "model"), "recordings": [str(tmp_path / "new")], "out": str(tmp_path / "out")}
    cut, cut_sound = [], sounds._sound

    def counted(stretch: Any, features: FeatureSettings) -> dict[str, Any]:
        cut.append(stretch.recording)
        return cut_sound(stretch, features)

    monkeypatch.setattr(sounds, "_sound", counted)
    with without_ray():
        runner = AuditRunner(load_audit_run(None, **place, overrides=["audit.explain=none"]))
        runner.look()
        before = parquet.read_table(storage.join(str(tmp_path / "out"), layout.SOUNDS)).to_pylist()
        assert set(cut) == {"new/click.wav"}
        cut.clear()
        shutil.copy(work / "new" / "click.wav", tmp_path / "new" / "other.wav")
        runner.look()
    assert set(cut) == {"new/other.wav"}
    rows = parquet.read_table(storage.join(str(tmp_path / "out"), layout.SOUNDS)).to_pylist()
    assert [row for row in rows if row["recording"] == "new/click.wav"] == before


def test_labels_give_the_area_of_the_ensembles_score(work: Path) -> None:
    labels = work / "labels.csv"
    labels.write_text("recording,onset_s,offset_s\nnew/click.wav,4.4,4.7\n")
    said = evaluate_audit_and_report(str(work / "out"), str(labels))
    assert "Clips: 1 anomalous, 4 normal; AUC" in said
    assert re.search(r"every second flagged: [\d.]+, level: [\d.]+, level change: [\d.]+\). AUROC of seconds", said)
    table = faithad.read_table(work / "out", "summary/detection")
    assert set(table["pooling"][table["model"] != "level"]) == {"ensemble"}
    assert set(table["pooling"][table["model"] == "level"]) == {"mean", "worst_second"}


def test_a_score_does_not_depend_on_what_else_is_audited(work: Path) -> None:
    twice = {**places(work, out="twice"), "recordings": [str(work / "normal"), str(work / "new")]}
    with without_ray():
        run_audit(load_audit_run(None, **twice, overrides=["audit.explain=none", "audit.clips_per_shard=7"]))
    alone = {row["clip_id"]: row for row in read_scores(str(work / "out")).to_pylist()}
    among = {row["clip_id"]: row for row in read_scores(str(work / "twice")).to_pylist()}
    assert len(among) == 35
    assert {clip_id: among[clip_id] for clip_id in alone} == alone


def test_another_alarm_is_fitted_to_the_models_own_normals(work: Path) -> None:
    settings = ["audit.explain=none", "alarm.false_alarm_rate=0.3"]
    with without_ray():
        run_audit(load_audit_run(None, **places(work, out="other"), overrides=settings))
    manifest = read_manifest(str(work / "other"))
    lengths = dict(zip(manifest["clip_id"].to_pylist(), manifest["duration_s"].to_pylist(), strict=True))
    scores = read_scores(str(work / "other")).to_pylist()
    (threshold,) = {row["threshold"] for row in scores if lengths[row["clip_id"]] == 2}
    (short,) = {row["threshold"] for row in scores if lengths[row["clip_id"]] == 1.5}
    assert short != threshold
    normals = parquet.read_table(storage.join(str(work / "model"), layout.VALIDATION_SCORES))["score"]
    assert pc.sum(pc.greater(normals, threshold)).as_py() == 9
    # Its windows have thresholds of their own, which as many normal clips exceed, by each member.
    scores = read_scores(str(work / "other"))
    assert (
        len(set(scores["window_threshold"].drop_null().to_pylist())) == len(set(scores["raised_by"].to_pylist())) == 2
    )
    windows = parquet.read_table(storage.join(str(work / "model"), layout.VALIDATION_SCORES))[
        "worst_windows"
    ].to_pylist()
    for used in set(scores["window_threshold"].drop_null().to_pylist()):
        assert 9 in [sum(value > used for value in of_member) for of_member in zip(*windows, strict=True)]
    with (
        without_ray(),
        pytest.raises(StudyError, match=r"gamma distribution cannot be fitted .* alarm.rule to quantile"),
    ):
        run_audit(load_audit_run(None, **places(work, out="gamma"), overrides=["alarm.rule=gamma"]))


def test_the_same_command_does_nothing_and_other_settings_are_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (work / "model" / "ensemble.safetensors").read_bytes()
    assert "30 clips fitted" in train_on_normals(training(work))  # without Ray: nothing is left for it
    assert "already" in capsys.readouterr().out
    with pytest.raises(StudyError, match=r"(?s)seed: 0 then, 1 now.*another folder \(--to\)"):
        train_on_normals(training(work, "seed=1"))
    with without_ray():
        train_on_normals(training(work, to="again"))
    assert (work / "again" / "ensemble.safetensors").read_bytes() == before


def test_a_rate_that_the_clips_cannot_promise_is_said(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_normals_run(
        [str(work / "normal" / "0.wav"), *(str(work / "normal" / f"{k}.wav") for k in range(1, 5))],
        str(work / "promise"),
        false_alarms_per_hour=2,
        overrides=SETTINGS,
    )
    with without_ray():
        train_on_normals(run)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 an hour were asked for, which needs 899 normal clips; 25 clips can promise no fewer than 69.2" in said
    assert "the normal clips come from 5 recordings" in said


def test_a_single_recording_is_enough(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(work / "long.wav", hum(50, 7), RATE_HZ)
    with without_ray():
        train_on_normals(load_normals_run([str(work / "long.wav")], str(work / "single"), overrides=SETTINGS))
    assert "come from 1 recording" in " ".join(capsys.readouterr().out.split())


def test_too_little_sound_is_refused(work: Path) -> None:
    few = load_normals_run([str(work / "normal" / "0.wav")], str(work / "few"), overrides=SETTINGS)
    with (
        without_ray(),
        pytest.raises(StudyError, match="5 normal clips, and 20 are needed; an hour of"),
    ):
        train_on_normals(few)


def test_what_is_missing_or_impossible_is_named() -> None:
    with pytest.raises(ConfigError, match="give --normals FOLDER"):
        load_normals_run([], "model")
    with pytest.raises(ConfigError, match="as many as an hour has clips"):
        load_normals_run(["a"], "model", false_alarms_per_hour=360)


@pytest.mark.parametrize(("n", "rate", "rank", "promised"), [(19, 0.05, 19, 0.05), (12, 0.05, 12, 1 / 13),
                                                             (178, 2 / 360, 178, 1 / 179),
                                                             (179, 2 / 360, 179, 1 / 180),
                                                             (150, 0.05, 144, 7 / 151)])  # fmt: skip
def test_the_threshold_is_the_rank_that_the_rate_needs(n: int, rate: float, rank: int, promised: float) -> None:
    scores = np.random.default_rng(n).permutation(n) - 5.0  # negative ones, too
    alarm = fit_promised_alarm(scores, false_alarm_rate=rate, clip_s=10.0)
    assert alarm.threshold == rank - 6.0
    assert alarm.false_alarm_rate == pytest.approx(promised)
    assert alarm.false_alarms_per_hour == pytest.approx(360 * promised)
