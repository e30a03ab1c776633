"""What `import faithad` offers: that it costs nothing until it is used, and that it says what an audit says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import faithad
from faithad.attribution.methods import PAPER_METHODS
from faithad.demo.mill import plan_recordings, write_recording
from faithad.errors import CheckpointError, ConfigError, RecordingError, StudyError
from faithad.evaluation.faithfulness import segment_masks
from faithad.evaluation.peaks import peak_frames
from faithad.model.checkpoint import TrainedModel
from faithad.model.linear import fit_linear
from faithad.model.table import build_network
from faithad.settings import AttributionSettings

PROJECT = Path(__file__).parents[1]
# As the released audit was told.
SETTINGS = AttributionSettings(smooth_grad_samples=3, integrated_gradients_steps=4, gradient_shap_samples=3)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first recording that release 0.1.0 audited, made anew: 20 s, five clips of 4 s."""
    start = datetime(2019, 12, 4, 8, 48)
    folder = tmp_path_factory.mktemp("mill")
    planned = plan_recordings(folder, train_recordings=4, test_recordings=4, seed=3, start=start, recording_s=20.0)[4]
    write_recording(planned)
    return planned.path


@pytest.fixture(scope="module")
def model(released_study: Path) -> TrainedModel:
    return faithad.load_model(released_study / "models" / "mae-0")


@pytest.fixture(scope="module")
def log_mels(model: TrainedModel, recording: Path) -> np.ndarray:
    return faithad.log_mel(recording, model.features)


def of_recording(audit: Path, table: str, name: str) -> pd.DataFrame:
    """The rows of a table of the released audit that are about this recording, in the order of its clips."""
    clips = faithad.read_table(audit, "manifest", columns=["clip_id", "recording", "onset_s"])
    clips = clips[clips["recording"].str.endswith(name)].sort_values("onset_s")
    assert len(clips) == 5
    return clips.merge(faithad.read_table(audit, table), on="clip_id", how="left", sort=False)


def test_the_import_is_quick_and_loads_nothing() -> None:
    code = """
import sys, time
started = time.process_time()
import faithad
took = time.process_time() - started
heavy = {"torch", "numpy", "pyarrow", "pandas", "ray", "pydantic"} & set(sys.modules)
assert took < 0.1 and not heavy, (took, heavy)
assert set(faithad.__all__) <= set(dir(faithad)) and len(faithad.__all__) == 11
assert not hasattr(faithad, "no_such_name")
from faithad import load_model, events
assert callable(load_model) and "torch" in sys.modules and "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_scores_are_those_of_an_audit(
    model: TrainedModel, log_mels: np.ndarray, recording: Path, released_audit: Path
) -> None:
    found = faithad.score(model, log_mels)
    for column in ("raised_by", "windows", "window_threshold"):
        assert found.pop(column).isna().all()  # of a single model of release 0.1.0, which had no such column
    assert (found.pop("loudest_second_db") >= found.pop("level_db")).all()  # nor these, which need no model
    expected = of_recording(released_audit, "scores", recording.name)
    assert log_mels.shape == (5, 16, 41)
    assert log_mels.dtype == np.float32
    pd.testing.assert_frame_equal(found, expected[found.columns], rtol=1e-6, check_dtype=False)
    one = faithad.score(model, torch.from_numpy(log_mels[2]))
    assert one["score"].item() == pytest.approx(found["score"][2], rel=1e-6)


def test_maps_peaks_and_faithfulness_are_those_of_an_audit(
    model: TrainedModel, log_mels: np.ndarray, recording: Path, released_audit: Path
) -> None:
    curves = of_recording(released_audit, "attributions", recording.name)
    judged = of_recording(released_audit, "faithfulness", recording.name)
    clip_ids = list(dict.fromkeys(curves["clip_id"]))
    maps = faithad.attribute(model, log_mels, methods=PAPER_METHODS, settings=SETTINGS, clip_ids=clip_ids)
    assert tuple(maps) == PAPER_METHODS
    percentiles = [90.0, 95.0, 99.0]

    def peaks(curve: np.ndarray) -> np.ndarray:
        return peak_frames(curve, percentiles)

    for method, of_method in maps.items():
        assert of_method.shape == (5, 16, 40)
        expected = np.stack(curves[curves["method"] == method]["curve"].to_list())
        np.testing.assert_allclose(of_method.sum(axis=1), expected, rtol=0, atol=1e-3 * np.abs(expected).max())
        same = []
        for curve, released in zip(of_method.sum(axis=1), expected, strict=True):
            differ = peaks(curve) != peaks(released)
            same.append(~differ.any(axis=1))
            # Only of frames that are as high, to rounding, may another processor take another one.
            assert all(np.ptp(released[frames]) < 1e-3 * np.abs(expected).max() for frames in differ if frames.any())
        assert np.mean(same) > 0.8
        found = faithad.faithfulness(model, log_mels, of_method, percentile=percentiles)
        rows = judged[(judged["method"] == method) & (judged["mode"] == "frame")]
        for column, percentile in enumerate(percentiles):
            values = rows[rows["percentile"] == percentile]["faithfulness"].to_numpy()
            chosen = np.array(same)[:, column]
            np.testing.assert_allclose(found[chosen, column], values[chosen], atol=1e-5)
        as_array = faithad.faithfulness(model, log_mels[:1], of_method[:1], percentile=np.array(percentiles))
        np.testing.assert_allclose(as_array, found[:1], atol=1e-6)
        single = faithad.faithfulness(model, log_mels[0], of_method[0], percentile=95.0)
        np.testing.assert_allclose(single, found[0, 1], atol=1e-6)


def test_annotated_frames_alone_are_replaced_where_they_are_given(model: TrainedModel, log_mels: np.ndarray) -> None:
    maps = faithad.attribute(model, log_mels, methods=["saliency"])["saliency"]
    intervals = [[(0.0, 4.0)], [(1.0, 2.0)], [], [(3.5, 4.0)], [(0.0, 0.5), (2.0, 3.0)]]
    found = faithad.faithfulness(model, log_mels, maps, intervals=intervals)
    x = model.prepare(torch.from_numpy(log_mels))
    with torch.inference_mode():
        y = model.network(x)
        for number, spans in enumerate(intervals):
            peaks = faithad.peaks(maps[number], [95.0])
            mask = torch.from_numpy(segment_masks(peaks, spans, model.features.frames_per_s)[0])
            replaced = torch.where(mask, y[number], x[number])
            before, after = ((model.network(clip[None])[0] - clip).square().mean() for clip in (x[number], replaced))
            assert found[number] == pytest.approx(max(0.0, float(1 - after / before)), abs=1e-5)
    assert found[2] == 0


def test_a_linear_model_is_scored_explained_and_judged(model: TrainedModel, log_mels: np.ndarray) -> None:
    """It has buffers and no parameters."""
    network: Any = build_network("frame_pca", model.n_mels, model.n_frames)
    fit_linear(network, [model.prepare(torch.from_numpy(log_mels))], n_clips=5, seed=0)
    linear = replace(model, network=network, name="frame_pca")
    maps = faithad.attribute(linear, log_mels, methods=["error_map"])["error_map"]
    assert maps.mean(axis=(1, 2)) == pytest.approx(faithad.score(linear, log_mels)["score"].to_numpy(), rel=1e-5)
    assert (faithad.faithfulness(linear, log_mels, maps) > 0).any()


def test_peaks_and_where_they_should_be(model: TrainedModel) -> None:
    maps = np.zeros((2, 3, 40), dtype=np.float32)
    maps[0, 1, 12:14], maps[1, 0, 34:36] = 1.0, 2.0
    peaks = faithad.peaks(maps, 95)
    assert [np.flatnonzero(of_clip).tolist() for of_clip in faithad.peaks(maps, 97)] == [[12, 13], [34, 35]]
    assert peaks.shape == (2, 40)
    assert faithad.peaks(maps, [90, 95]).shape == (2, 2, 40)
    np.testing.assert_array_equal(faithad.peaks(maps, np.array([90, 95])), faithad.peaks(maps, [90, 95]))
    assert model.features.frames_per_s == 10
    both = faithad.localization(model, faithad.peaks(maps[0], [97, 97]), [(1.2, 1.5), (3.0, 4.0)])
    assert (both.tp.tolist(), both.fp.tolist(), both.fn.tolist()) == ([1, 1], [0, 0], [1, 1])
    assert both.f_score.tolist() == pytest.approx([2 / 3, 2 / 3])
    with pytest.raises(ValueError, match="between 0 and 100"):
        faithad.peaks(maps, 101)


def test_waveforms_give_what_their_file_gives(model: TrainedModel, tmp_path: Path) -> None:
    rate, clip = model.features.sample_rate_hz, model.features.clip_samples
    sound = np.random.default_rng(0).normal(0, 0.1, 2 * clip + clip // 2).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", sound, rate, subtype="FLOAT")
    last = sound[-clip:]
    by_hand = faithad.log_mel(np.stack([sound[:clip], sound[clip : 2 * clip], last]), model.features)
    np.testing.assert_array_equal(faithad.log_mel(str(tmp_path / "sound.wav"), model.features), by_hand)
    np.testing.assert_allclose(faithad.log_mel(torch.from_numpy(last), model.features)[0], by_hand[2], atol=1e-4)
    assert len(faithad.log_mel(tmp_path / "sound.wav", model.features, remainder="drop")) == 2


def test_a_sound_that_is_not_whole_is_refused_and_a_corrected_header_is_told(
    model: TrainedModel, tmp_path: Path
) -> None:
    """A notebook has no ledger."""
    rate, clip = model.features.sample_rate_hz, model.features.clip_samples
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 2 * clip), rate, subtype="PCM_16")
    whole, content = faithad.log_mel(path, model.features), path.read_bytes()
    path.write_bytes(content[:40] + b"\xff\xff\xff\xff" + content[44:])
    with pytest.warns(UserWarning, match="without a length"):
        np.testing.assert_array_equal(faithad.log_mel(path, model.features), whole)
    path.write_bytes(content[:-100])
    with pytest.raises(RecordingError, match="is truncated"):
        faithad.log_mel(path, model.features)


def test_a_detector_is_scored_only(released_study: Path, recording: Path) -> None:
    forest = faithad.load_model(str(released_study / "models" / "isolation_forest-0"))
    log_mels = faithad.log_mel(recording, forest.features)
    found = faithad.score(forest, log_mels)
    assert found["score"].between(0, 1).all()
    assert found["worst_second_score"].isna().all()
    with pytest.raises(ConfigError, match="scored only"):
        faithad.attribute(forest, log_mels)
    with pytest.raises(ConfigError, match="reconstructs nothing"):
        faithad.faithfulness(forest, log_mels, np.zeros((5, 16, 41), dtype=np.float32))


def test_what_cannot_be_used_is_named(model: TrainedModel, log_mels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no trained model"):
        faithad.load_model(tmp_path)
    with pytest.raises(RecordingError, match="does not exist"):
        faithad.log_mel(tmp_path / "gone.wav", model.features)
    with pytest.raises(RecordingError, match="NaN"):
        faithad.log_mel(np.full(80_000, np.nan), model.features)
    with pytest.raises(RecordingError, match="mel bands"):
        faithad.score(model, log_mels[:, :8])
    with pytest.raises(RecordingError, match=r"clip 1: .*not a finite number"):
        faithad.score(model, np.stack([log_mels[0], np.full_like(log_mels[0], np.inf)]))
    with pytest.raises(ConfigError, match="Unknown attribution methods: guess"):
        faithad.attribute(model, log_mels, methods=["guess"])
    with pytest.raises(ValueError, match="need as many maps"):
        faithad.faithfulness(model, log_mels, np.zeros((4, 16, 40), dtype=np.float32))


def test_a_study_is_opened(released_study: Path) -> None:
    study = faithad.open_study(released_study)
    assert sorted(study.models) == ["ae-0", "isolation_forest-0", "mae-0"]
    assert study.settings["features"]["n_mels"] == 16
    assert len(study.manifest) == 40
    assert set(study.table("scores")["model"]) == {"ae", "mae", "isolation_forest"}
    assert len(study.table("scores")) == 3 * (study.manifest["split"] == "test").sum()
    assert len(study.table("epochs", columns=["epoch"]).columns) == 1
    assert {"manifest", "ledger", "scores", "attributions", "summary/f_score"} <= set(study.tables)
    assert "events" not in study.tables


def test_tables_of_an_audit(released_audit: Path, tmp_path: Path) -> None:
    events = faithad.events(released_audit)
    assert len(events) == 5
    assert events["strength"].gt(1).all()
    assert len(faithad.read_table(str(released_audit), "ledger")) == 26
    with pytest.raises(StudyError, match=r"no table 'epochs' in .*, but manifest, ledger, inputs, scores"):
        faithad.read_table(released_audit, "epochs")
    with pytest.raises(StudyError, match="no folder"):
        faithad.events(tmp_path / "elsewhere")
    with pytest.raises(StudyError, match=r"no study in .*: no study\.yaml"):
        faithad.open_study(released_audit)


def test_readme_shows_it(released_study: Path, released_audit: Path, recording: Path, tmp_path: Path) -> None:
    section = (PROJECT / "README.md").read_text().partition("## From a notebook")[2]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    assert len(code.splitlines()) == 13
    for name, target in [("demo", released_study), ("week-47", released_audit)]:
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / name).symlink_to(target)
    (tmp_path / "clip.wav").symlink_to(recording)
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True
    ).stdout
    for name in set(faithad.__all__):
        assert f"faithad.{name}(" in code, name
    assert re.search(r"integrated_gradients +[01]\.\d", shown)
    assert "2019-12-04 08:49:00" in shown


def test_a_short_clip_is_judged_by_the_frames_that_hold_sound(
    model: TrainedModel, recording: Path, tmp_path: Path
) -> None:
    """In a file of its own, beside whole clips, as samples: its numbers are the same, and of its own frames."""
    rate = model.features.sample_rate_hz
    sound = soundfile.read(recording, dtype="float32")[0][: round(6.5 * rate)]
    soundfile.write(tmp_path / "all.wav", sound, rate, subtype="FLOAT")
    soundfile.write(tmp_path / "end.wav", sound[4 * rate :], rate, subtype="FLOAT")
    both = faithad.log_mel(tmp_path / "all.wav", model.features, remainder="pad")
    end = faithad.log_mel(tmp_path / "end.wav", model.features)
    assert (both.shape, end.shape) == ((2, 16, 41), (1, 16, 26))
    assert not np.isnan(both[0]).any()
    np.testing.assert_array_equal(both[1, :, :26], end[0])
    assert np.isnan(both[1, :, 26:]).all()
    np.testing.assert_array_equal(faithad.log_mel(sound[4 * rate :], model.features), end)

    scores, of_end = faithad.score(model, both), faithad.score(model, end)
    pd.testing.assert_frame_equal(scores[1:].reset_index(drop=True), of_end)
    piece = model.normalization.apply(torch.from_numpy(end))
    places = [*range(26), *range(24, 10, -1)]
    with torch.inference_mode():
        rebuilt = model.network(piece[..., places])[..., :26]
    assert of_end["score"].item() == pytest.approx((rebuilt - piece).square().mean().item(), rel=1e-5)

    maps = faithad.attribute(model, both, methods=PAPER_METHODS, settings=SETTINGS, clip_ids=["a", "b"])
    alone = faithad.attribute(model, end, methods=PAPER_METHODS, settings=SETTINGS, clip_ids=["b"])
    for method in PAPER_METHODS:
        assert maps[method].shape == (2, 16, 40)
        assert np.isnan(maps[method][1, :, 26:]).all()
        np.testing.assert_array_equal(maps[method][1, :, :26], alone[method][0])
        peaks = faithad.peaks(maps[method], [90, 95])
        np.testing.assert_array_equal(peaks[1, :, :26], faithad.peaks(alone[method][0], [90, 95]))
        assert not peaks[1, :, 26:].any()
        found = faithad.faithfulness(model, both, maps[method], percentile=[90, 95])
        np.testing.assert_allclose(found[1], faithad.faithfulness(model, end, alone[method], percentile=[90, 95])[0])
    np.testing.assert_allclose(maps["error_map"][1, :, :26], (rebuilt - piece).square()[0], rtol=1e-4, atol=1e-6)


def test_sound_of_less_than_a_second_is_not_judged(model: TrainedModel, tmp_path: Path) -> None:
    rate = model.features.sample_rate_hz
    sound = np.random.default_rng(0).normal(0, 0.1, round(0.9 * rate)).astype(np.float32)
    soundfile.write(tmp_path / "blip.wav", sound, rate)
    with pytest.raises(RecordingError, match=r"blip\.wav is too short to judge: 0\.9 s, where 1 s"):
        faithad.log_mel(tmp_path / "blip.wav", model.features)
    with pytest.raises(RecordingError, match="clip 0 is too short to judge: 10 of at least 11 frames"):
        faithad.score(model, faithad.log_mel(sound, model.features))
