"""The training of a linear model, from features that a test has written: no Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from faithad import parquet, storage
from faithad.config.study import Study, parse_study
from faithad.evaluation.detection import worst_second
from faithad.features import Normalization
from faithad.model.checkpoint import load_model
from faithad.pipelines import features
from faithad.pipelines.features import fit_normalization
from faithad.pipelines.training import clips, trained
from faithad.pipelines.training.run import train_stage
from faithad.pipelines.training.task import TrainingTask
from faithad.runs import layout
from faithad.runs.stages import ResumableStage
from faithad.schemas import MANIFEST
from faithad.scoring.pooling import window_means

F, T = 16, 101


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A training sets the threads of its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    settings = {
        "models": "[frame_pca, frame_ridge, ae]",
        "seeds": "[0]",
        "features": "{n_fft: 4000, hop_samples: 2000, n_mels: 16, normalization: training, reference: clip}",
        "data": "{layout: planer, root: x}",
    }
    text = "\n".join([f"name: tiny\nroot: {tmp_path}", *(f"{key}: {value}" for key, value in settings.items())])
    return parse_study(text, name="study.yaml")


def write(study: Study, split: str, n_clips: int, *, shard: int) -> Tensor:
    """Features as the stage before leaves them."""
    log_mels = np.random.default_rng(n_clips).normal(-60, 5, size=(n_clips, F, T)).astype(np.float32)
    ids = [f"{split}-{number:04d}" for number in range(n_clips)]
    clips = [
        {"clip_id": name, "recording": name, "uri": name, "onset_s": 0.0, "duration_s": 10.0, "split": split,
         "annotated": False}
        for name in ids
    ]  # fmt: skip
    place = storage.join(study.root, layout.MANIFEST)
    clips += parquet.read_table(place).to_pylist() if storage.exists(place) else []
    parquet.write_table(pa.Table.from_pylist(clips, schema=MANIFEST), place, schema=MANIFEST)
    for k in range(0, n_clips, shard):
        flat = pa.FixedSizeListArray.from_arrays(pa.array(log_mels[k : k + shard].reshape(-1)), F * T)
        table = pa.table({"clip_id": ids[k : k + shard], "log_mel": flat})
        if study.features.reference == "recording":
            values = pa.array(spectra(n_clips)[k : k + shard].numpy().reshape(-1))
            table = table.append_column("reference", pa.FixedSizeListArray.from_arrays(values, F))
        place = storage.join(study.root, layout.features(split), layout.shard(k // shard))
        parquet.write_table(table, place, schema=table.schema)
    return torch.from_numpy(log_mels)


def spectra(n_clips: int) -> Tensor:
    """Of the recordings of these clips, (n, F)."""
    return torch.from_numpy(np.random.default_rng(n_clips + 1).normal(-60, 5, size=(n_clips, F)).astype(np.float32))


@pytest.mark.parametrize("model", ["frame_pca", "frame_ridge"])
def test_a_linear_model_is_trained_shard_by_shard(study: Study, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    normals = torch.cat([write(study, "train", 20, shard=6)])
    held_back = write(study, "validation", 7, shard=3)
    for module in (features, clips):
        monkeypatch.setattr(module, "load_features", lambda *_: pytest.fail("loads all clips of a split"))
    normalization = fit_normalization(study)
    whole = Normalization.fit([normals])
    torch.testing.assert_close(normalization.mean, whole.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(normalization.std, whole.std, rtol=1e-6, atol=0)

    trained.save_fitted(TrainingTask(study, model, 0, normalization, threads=1, state="", fingerprint="f"))
    folder = storage.join(study.root, layout.model(model, 0))
    found = load_model(folder, expect={"name": model, "options": {"reference": "clip"}, "n_frames": T, "best_epoch": 0})
    x = normalization.apply(held_back)
    with torch.inference_mode():
        errors = (found.network(x) - x).square()
    scores = parquet.read_table(storage.join(study.root, layout.validation_scores(model, 0)))
    assert scores["score"].to_pylist() == pytest.approx(errors.mean(dim=(1, 2)).tolist(), rel=1e-5)
    seconds = [worst_second(error, 10.0).score for error in errors]
    assert scores["worst_second_score"].to_pylist() == pytest.approx(seconds, rel=1e-5)
    windows = [[float(window_means(error.mean(dim=0), 10.0).max())] for error in errors]
    np.testing.assert_allclose(scores["worst_windows"].to_pylist(), windows, rtol=1e-5)
    assert found.alarm is not None
    assert found.alarm.n_validation == 7
    assert len(found.alarm.window_thresholds) == 1
    assert found.normals is not None
    assert torch.equal(found.normals, normalization.apply(normals)[:16])
    x = normalization.apply(normals)
    with torch.inference_mode():
        assert (found.network(x) - x).square().mean() < x.var()


def test_the_reference_belongs_to_the_linear_models_alone(study: Study) -> None:
    """Another reference trains them anew, and nothing else."""
    other = study.model_copy(update={"features": study.features.model_copy(update={"reference": "none"})})
    before = ResumableStage(study.root, "features", {}, (layout.FEATURES,), result=layout.FEATURES)
    assert features.features_stage(study, "d").fingerprint == features.features_stage(other, "d").fingerprint
    for model, is_same in (("ae", True), ("frame_pca", False), ("frame_ridge", False)):
        stages = [train_stage(each, model, 0, replace(before)) for each in (study, other)]
        assert (stages[0].fingerprint == stages[1].fingerprint) == is_same


def with_reference(study: Study, reference: str) -> Study:
    return study.model_copy(update={"features": study.features.model_copy(update={"reference": reference})})


def test_all_models_learn_from_clips_less_the_spectrum_of_their_recording(study: Study) -> None:
    study = with_reference(study, "recording")
    normals, held_back = write(study, "train", 20, shard=6), write(study, "validation", 7, shard=3)
    normalization = fit_normalization(study)
    torch.testing.assert_close(normalization.mean, Normalization.fit([normals]).mean, rtol=1e-6, atol=0)
    x = (normals - spectra(20)[..., None]) / normalization.std[:, None]
    tasks = [TrainingTask(study, model, 0, normalization, 1, state="", fingerprint="f") for model in study.models]
    for task in tasks:
        torch.testing.assert_close(clips.training_clips(task, "train"), x)
        torch.testing.assert_close(torch.cat(list(clips.read_clips(task, "train"))), x)

    trained.save_fitted(tasks[0])
    found = load_model(
        storage.join(study.root, layout.model("frame_pca", 0)), expect={"options": {"reference": "none"}}
    )
    assert found.features.reference == "recording"
    x = found.prepare(held_back, spectra(7))
    scores = parquet.read_table(storage.join(study.root, layout.validation_scores("frame_pca", 0)))
    with torch.inference_mode():
        errors = (found.network(x) - x).square().mean(dim=(1, 2))
    assert scores["score"].to_pylist() == pytest.approx(errors.tolist(), rel=1e-5)


def test_another_spectrum_of_the_recording_makes_features_anew(study: Study) -> None:
    stages = [features.features_stage(with_reference(study, name), "d") for name in ("none", "clip", "recording")]
    assert stages[0].fingerprint == stages[1].fingerprint != stages[2].fingerprint
