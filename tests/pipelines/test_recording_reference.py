"""`features.reference: recording`: a training, a calibration and audits, whole but for Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

import faithad
from faithad.audit.outcome import read_scores
from faithad.clips.manifest import ClipRow, manifest_table
from faithad.config.audit import load_audit_run
from faithad.config.normals import load_calibration_run, load_normals_run
from faithad.errors import RecordingError
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.shards.log_mels import add_log_mels
from faithad.pipelines.training.calibrate import calibrate_model
from faithad.pipelines.training.normals import train_on_normals
from faithad.runs import layout
from faithad.runs.tables import read_manifest
from faithad.scoring.trained_ensemble import TrainedEnsemble, load_any
from faithad.settings import FeatureSettings
from tests.pipelines.audits_without_ray import without_ray
from tests.pipelines.test_normals import EXPLAINED, RATE_HZ, SETTINGS, hum, threads_as_before

pytestmark = pytest.mark.long

__all__ = ["threads_as_before"]  # a fixture

FEATURES = FeatureSettings(RATE_HZ, 200, 100, 16, clip_s=2.0, reference="recording")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of normal recordings with other gains, and audits: of ten clips the fourth one has a steady whistle."""
    folder = tmp_path_factory.mktemp("references")
    for name in ("normal", "new"):
        (folder / name).mkdir()
    for number in range(6):
        soundfile.write(folder / "normal" / f"{number}.wav", hum(10, number) * 2.0 ** -(number % 3), RATE_HZ)
    sound, at_s = hum(20, 100), np.arange(2 * RATE_HZ) / RATE_HZ
    sound[6 * RATE_HZ : 8 * RATE_HZ] += 0.05 * np.sin(2 * np.pi * 1200 * at_s)
    soundfile.write(folder / "new" / "whistle.wav", sound, RATE_HZ, subtype="FLOAT")
    soundfile.write(folder / "new" / "whistle_quiet.wav", sound / 4, RATE_HZ, subtype="FLOAT")
    soundfile.write(folder / "new" / "short.wav", hum(1.5, 101), RATE_HZ)
    with without_ray():
        for reference in ("clip", "recording"):
            settings = [*SETTINGS, f"features.reference={reference}"]
            train_on_normals(load_normals_run([str(folder / "normal")], str(folder / reference), overrides=settings))
            audit(folder, model=reference, out=f"{reference}_out")
    return folder


def audit(folder: Path, *recordings: str, model: str = "recording", out: str, clips_per_shard: int = 64) -> None:
    overrides = [*EXPLAINED, f"audit.clips_per_shard={clips_per_shard}"]
    places = {"model": str(folder / model), "recordings": [str(folder / "new" / name) for name in recordings or [""]]}
    run_audit(load_audit_run(None, **places, out=str(folder / out), overrides=overrides))


def alarms(folder: Path, out: str, name: str) -> list[float]:
    """The onsets of the clips of a recording that alarmed."""
    scores = read_scores(str(folder / out)).to_pandas().merge(read_manifest(str(folder / out)).to_pandas())
    return sorted(scores[scores["alarm"] & scores["recording"].str.endswith(name)]["onset_s"])


def test_a_steady_sound_of_one_clip_alarms_less_the_spectrum_of_the_recording_alone(work: Path) -> None:
    assert 6.0 in alarms(work, "recording_out", "whistle.wav")
    assert 6.0 not in alarms(work, "clip_out", "whistle.wav")
    events = faithad.events(work / "recording_out")
    parts = events.loc[events["score"].idxmax()]["parts"]
    assert any(part["onset_s"] <= 6.5 and part["offset_s"] >= 7.5 for part in parts)


def test_a_model_says_what_it_takes_clips_less(work: Path) -> None:
    for name, stored in (("recording", {"reference": "recording"}), ("clip", {})):
        card = json.loads((work / name / layout.MODEL).read_text())
        assert {key: value for key, value in card["features"].items() if key == "reference"} == stored
        assert card["members"][0]["options"] == {"reference": "clip" if name == "clip" else "none"}
        assert load_any(str(work / name)).features.reference == stored.get("reference", "none")


def test_errors_do_not_change_with_the_gain_of_a_recording(work: Path) -> None:
    model = load_any(str(work / "recording"))
    assert isinstance(model, TrainedEnsemble)
    raw = []
    for name in ("whistle.wav", "whistle_quiet.wav"):
        place = work / "new" / name
        spectrum = torch.from_numpy(faithad.recording_spectrum(place, model.features))
        x = model.prepare(torch.from_numpy(faithad.log_mel(place, model.features)), spectrum.expand(10, -1))
        raw.append(torch.stack([member.raw(x, [""] * 10) for member in model.ensemble.members.values()]))
    torch.testing.assert_close(raw[0], raw[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("reference", ["clip", "recording"])
def test_a_notebook_gives_what_the_audit_gives(work: Path, reference: str) -> None:
    model, out = faithad.load_model(work / reference), work / f"{reference}_out"
    scores = faithad.read_table(out, "scores").merge(faithad.read_table(out, "manifest"))
    maps, judged = faithad.read_table(out, "attributions"), faithad.read_table(out, "faithfulness")
    for name in ("whistle.wav", "short.wav"):
        place = work / "new" / name
        log_mels, spectrum = faithad.log_mel(place, model.features), None
        if reference == "recording":
            spectrum = faithad.recording_spectrum(place, model.features)
            with pytest.raises(
                RecordingError, match=r"less the median spectrum of their recording .*faithad\.recording_s"
            ):
                faithad.score(model, log_mels)
            with pytest.raises(RecordingError, match=r"the shape \(3,\); needed is \(16,\) or"):
                faithad.score(model, log_mels, reference=spectrum[:3])
        audited = scores[scores["recording"].str.endswith(name)].sort_values("onset_s").reset_index()
        own = faithad.score(model, log_mels, reference=spectrum)
        for column in ("score", "raised_by", "alarm", "worst_onset_s", "worst_mel_band"):
            assert own[column].tolist() == audited[column].tolist()
        for windows, of_audit in zip(own["windows"], audited["windows"], strict=True):
            assert (windows is None and of_audit is None) or windows.tolist() == pytest.approx(of_audit.tolist())
        saliency = faithad.attribute(model, log_mels, methods=["saliency"], reference=spectrum)["saliency"]
        share = faithad.faithfulness(model, log_mels, saliency, reference=spectrum)
        for number, clip_id in enumerate(audited["clip_id"]):
            of_clip = [rows[(rows["clip_id"] == clip_id) & (rows["method"] == "saliency")] for rows in (maps, judged)]
            for curve in of_clip[0]["curve"]:
                np.testing.assert_allclose(np.nansum(saliency[number], axis=0)[: len(curve)], curve, rtol=1e-4)
                assert share[number] == pytest.approx(of_clip[1]["faithfulness"].iloc[0], rel=1e-4)


def test_pictures_and_expected_sounds_are_those_of_the_recording(work: Path) -> None:
    """Less the whistle they have the level of the recording, although the model knows none."""
    model, place = faithad.load_model(work / "recording"), work / "new" / "whistle.wav"
    pictures = faithad.read_table(work / "recording_out", "spectrograms").merge(
        faithad.read_table(work / "recording_out", "manifest")
    )
    of_whistle = pictures["recording"].str.endswith("whistle.wav") & (pictures["onset_s"] == 6)
    (picture,) = pictures[of_whistle].to_dict("records")
    clip, spectrum = faithad.log_mel(place, model.features)[3], faithad.recording_spectrum(place, model.features)
    np.testing.assert_allclose(picture["log_mel"].reshape(16, -1), clip, atol=0.05)
    usual = np.median(picture["reconstruction"].reshape(16, -1), axis=1)
    other_bands = np.abs(np.median(clip, axis=1) - spectrum) < 1
    assert 8 < other_bands.sum() < 16
    np.testing.assert_allclose(usual[other_bands], spectrum[other_bands], atol=2)
    sounds = faithad.read_table(work / "recording_out", "sounds")
    expected = sounds[sounds["recording"].str.endswith("whistle.wav")]["expected_log_mel"].iloc[0].reshape(16, -1)
    np.testing.assert_allclose(np.median(expected, axis=1)[other_bands], spectrum[other_bands], atol=2)


def test_a_score_does_not_depend_on_shards_on_resuming_or_on_what_else_is_audited(work: Path) -> None:
    whole = {row["clip_id"]: row for row in read_scores(str(work / "recording_out")).to_pylist()}
    with without_ray():
        audit(work, out="small", clips_per_shard=3)
        ledgers = sorted((work / "small" / layout.SCORED).glob("*.parquet"))
        assert len(ledgers) > 6
        for ledger in ledgers[1::2]:  # as a run leaves it that was killed
            ledger.unlink()
        audit(work, out="small", clips_per_shard=3)
        audit(work, "whistle.wav", out="alone")
    small = {row["clip_id"]: row for row in read_scores(str(work / "small")).to_pylist()}
    assert small == whole
    alone = [row["score"] for row in read_scores(str(work / "alone")).to_pylist()]
    of_recording = faithad.read_table(work / "recording_out", "manifest").merge(
        faithad.read_table(work / "recording_out", "scores")
    )
    assert sorted(alone) == sorted(of_recording[of_recording["recording"].str.endswith("whistle.wav")]["score"])


def test_a_calibration_to_the_same_sound_gives_the_model_back(work: Path) -> None:
    run = load_calibration_run([str(work / "recording")], [str(work / "normal")], str(work / "calibrated"))
    with without_ray():
        calibrate_model(run)
    before, after = (load_any(str(work / name)) for name in ("recording", "calibrated"))
    assert isinstance(before, TrainedEnsemble)
    assert isinstance(after, TrainedEnsemble)
    assert after.features == before.features
    assert after.alarm == before.alarm
    for name, detector in before.ensemble.members.items():
        own, other = detector.normals, after.ensemble.members[name].normals
        assert own is not None
        assert other is not None
        torch.testing.assert_close(own.scores, other.scores)
        torch.testing.assert_close(own.places, other.places)


def test_neighbours_are_found_by_the_sound_as_it_was_recorded(work: Path) -> None:
    """So their levels tell apart the recordings, which have three gains."""
    model = load_any(str(work / "recording"))
    assert isinstance(model, TrainedEnsemble)
    for detector in model.ensemble.members.values():
        assert detector.normals is not None
        levels = detector.normals.places.mean(dim=1)
        of_recordings = torch.stack([levels[detector.normals.recordings == k].mean() for k in range(6)])
        db = of_recordings * model.normalization.std.mean()
        assert db[:3].diff().tolist() == pytest.approx([-6.02, -6.02], abs=0.5)


def test_a_file_that_cannot_be_read_for_its_spectrum_costs_its_own_clips(tmp_path: Path) -> None:
    """One is missing, and one ends the process that reads it for its spectrum: its mark says that it has done so."""
    names = ["good.wav", "gone.wav", "deadly.wav"]
    for name in names:
        soundfile.write(tmp_path / name, hum(6, 0), RATE_HZ)
    rows = [ClipRow(name, str(tmp_path / name), 2.0 * k, 2.0, "test") for k in range(3) for name in names]
    (tmp_path / "gone.wav").unlink()
    at = f"{tmp_path / 'deadly.wav'} None"
    died = {"at": at, "pid": 1, "host": "", "run": "r", "died": {at: 1.0}}
    (tmp_path / "mark-recordings.json").write_text(json.dumps(died))
    done, failed = add_log_mels(manifest_table(rows), FEATURES, mark=str(tmp_path / "mark.json"), run="r")
    assert done["recording"].to_pylist() == ["good.wav"] * 3
    assert done["reference"].type == pa.list_(pa.float32(), 16)
    expected = faithad.recording_spectrum(tmp_path / "good.wav", FEATURES)
    for reference in done["reference"].to_pylist():
        np.testing.assert_array_equal(np.float32(reference), expected)
    reasons = {row["recording"]: row["reason"] for row in failed}
    assert len(failed) == 6
    assert "does not exist" in reasons["gone.wav"]
    assert "Reading this recording for its spectrum ended its process 2 times" in reasons["deadly.wav"]
    assert not (tmp_path / "mark-recordings.json").exists()


def test_another_reference_reads_no_recording_for_its_spectrum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", hum(6, 0), RATE_HZ)
    rows = manifest_table([ClipRow("a.wav", str(tmp_path / "a.wav"), 0.0, 2.0, "test")])
    monkeypatch.setattr("faithad.pipelines.shards.log_mels.recording_spectrum", lambda *_, **__: pytest.fail("is read"))
    none = FeatureSettings(RATE_HZ, 200, 100, 16, clip_s=2.0)
    done, _ = add_log_mels(rows, none, mark=str(tmp_path / "mark.json"), run="r")
    assert done.column_names[-1] == "log_mel"
    assert "reference" not in done.column_names
