"""Trainings that start from a trained model; from features that a test has written, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from faithad import storage
from faithad.config.study import Study, load_study, parse_study
from faithad.errors import CheckpointError, ConfigError
from faithad.model.checkpoint import load_model
from faithad.pipelines.features import fit_normalization
from faithad.pipelines.training.run import require_initial_weights, train_stage
from faithad.pipelines.training.task import TrainingTask, Worker
from faithad.pipelines.training.worker import train_network
from faithad.runs import layout
from faithad.runs.stages import ResumableStage
from tests.pipelines.test_linear_training import write


def values_of(root: Path, **train: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "root": str(root),
        "models": ["ae", "mae", "cae", "frame_pca"],
        "data": {"layout": "planer", "root": "x"},
        "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
        "train": {"epochs": 1, "batch_size": 8, **train},
    }


def study_of(root: Path, **train: Any) -> Study:
    return parse_study(yaml.safe_dump(values_of(root, **train)), name="tiny")


def trained(study: Study, model: str) -> dict[str, torch.Tensor]:
    """The weights of a model, once it is trained."""
    for split, n_clips in (("train", 20), ("validation", 7)):
        write(study, split, n_clips, shard=6)
    state = storage.join(study.root, "training/state.pt")
    task = TrainingTask(study, model, 0, fit_normalization(study), 1, state, "fingerprint")
    train_network(task, Worker(torch.device("cpu")))
    return load_model(storage.join(study.root, layout.model(model, 0))).network.state_dict()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a trained MAE."""
    threads, root = torch.get_num_threads(), tmp_path_factory.mktemp("start")
    trained(study_of(root), "mae")
    yield root / layout.model("mae", 0)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model", ["mae", "ae"])
def test_a_training_starts_from_the_weights_of_a_model(tmp_path: Path, start: Path, model: str) -> None:
    standing = {"learning_rate": 1e-12, "minimum_learning_rate": 0}
    found = trained(study_of(tmp_path, init_from=str(start), **standing), model)
    weights = load_model(str(start)).network.state_dict()
    for name in found:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(found[name], weights[name], rtol=0, atol=1e-9)


def test_what_does_not_fit_is_refused_before_it_is_trained(tmp_path: Path, start: Path) -> None:
    study = study_of(tmp_path, init_from=str(start))
    require_initial_weights(study, ["ae", "mae", "frame_pca"])
    with pytest.raises(ConfigError, match=r"is a model 'mae' of 16 mel bands x 100 frames.*Leave 'cae' out of models"):
        require_initial_weights(study, ["mae", "cae"])
    with pytest.raises(CheckpointError, match="There is no trained model at"):
        require_initial_weights(study_of(tmp_path, init_from=str(tmp_path / "none")), ["mae"])
    other = values_of(tmp_path, init_from=str(start))
    other["features"]["hop_samples"] = 1000
    with pytest.raises(CheckpointError, match=r"features\.hop_samples is 2000, asked for 1000"):
        require_initial_weights(parse_study(yaml.safe_dump(other), name="other"), ["mae"])


def test_another_model_to_start_from_is_another_training(tmp_path: Path, start: Path) -> None:
    features = ResumableStage(str(tmp_path), "features", {"clips": "x"}, ("features",), result="features/train")

    def settings(study: Study, model: str) -> dict[str, Any]:
        return dict(train_stage(study, model, 0, features).settings)

    plain, from_model = study_of(tmp_path), study_of(tmp_path, init_from=str(start))
    assert "train.init_from" not in settings(plain, "mae"), "trainings of earlier releases stay done"
    added = settings(from_model, "mae").items() - settings(plain, "mae").items()
    assert [key for key, _ in added] == ["train.init_from"]
    assert settings(from_model, "frame_pca") == settings(plain, "frame_pca")


def test_its_place_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values_of(tmp_path, init_from="models/mill")))
    monkeypatch.setenv("FAITHAD_HOME", "/home/mill")
    assert load_study(str(tmp_path / "study.yaml")).train.init_from == "/home/mill/models/mill"
