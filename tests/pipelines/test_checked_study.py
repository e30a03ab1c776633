"""A study under both protocols, from recordings to its page, with networks as they are before training; without Ray."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from faithad import parquet, read_table, schemas, storage
from faithad.config.study import Study, parse_study
from faithad.demo.mill import synthesize
from faithad.errors import StudyError
from faithad.features import Normalization
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.table import build_network
from faithad.model.training_sound import first_normals
from faithad.pipelines import features, study
from faithad.pipelines.audit import models
from faithad.pipelines.evaluate import evaluate
from faithad.report.study_page import render_report
from faithad.runs import layout
from faithad.runs.prune import prune
from tests.pipelines.audits_without_ray import without_ray

pytestmark = pytest.mark.long

SMALL = {
    "name": "checked",
    "protocol": "both",
    "models": ["ae", "mae", "frame_pca"],
    "seeds": [0, 1],
    "track": ["tensorboard"],
    "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
    "attribution": {
        "methods": ["error_map", "integrated_gradients"],
        "integrated_gradients_steps": 2,
        "baseline": "normals",
    },
    "audit": {"percentiles": [90, 95], "maps": 1},
    "evaluation": {"deep_clips": 2, "sanity_clips": 1},
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    mill = folder / "mill"
    synthesize(mill, train_recordings=2, test_recordings=3, seed=0, recording_s=20.0)
    data = {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
    made = parse_study(yaml.safe_dump({**SMALL, "root": str(folder / "root"), "data": data}), name="checked")
    with in_this_process():
        study.index(made)
        stages, manifest = study.open_study(made)
        features.compute_features(made, manifest, stages.features, redo=False)
        for run in made.runs:
            _write_model(made, *run, stages.train[run])
        study.audit(made)
        evaluate(made, manifest, stages.evaluate, redo=False)
        study.report(made)
    return made


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    with without_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "ray_session", contextlib.nullcontext)
        for name in ("wait_for_room", "require_study_visible"):
            patch.setattr(models, name, lambda *_: None)
        patch.setattr(features, "wait_for_machines", lambda *_, **__: None)
        patch.setattr(features, "require_study_visible", lambda *_: None)
        yield


def _write_model(made: Study, name: str, seed: int, stage: Any) -> None:
    torch.manual_seed(seed)
    n_frames = made.n_frames(name)
    network = build_network(name, 16, n_frames).eval()
    statistics = Normalization(torch.full((16,), -40.0), torch.full((16,), 10.0))
    trained = TrainedModel(network, statistics, made.feature_settings, name, seed, None, 1, stage.fingerprint)
    clips = features.read_features(made.root, "train", made.feature_settings)
    trained.normals = first_normals(trained.prepare(part) for part in clips)
    stage.begin(redo=False)
    save_model(trained, storage.join(made.root, layout.model(name, seed)))
    rows = [{"score": error, "worst_second_score": error, "worst_windows": [error]} for error in np.linspace(1, 2, 5)]
    scores = pa.Table.from_pylist(rows, schema=schemas.VALIDATION_SCORES)
    location = storage.join(made.root, layout.validation_scores(name, seed))
    parquet.write_table(scores, location, schema=schemas.VALIDATION_SCORES)
    epoch = {"model": name, "seed": seed, "epoch": 1, "train_loss": 1.0, "validation_loss": 1.0, "best": True,
             "learning_rate": 0.1, "duration_s": 1.0, "diverged": False}  # fmt: skip
    location = storage.join(made.root, layout.epochs(name, seed))
    parquet.write_table(pa.Table.from_pylist([epoch], schemas.EPOCHS), location, schema=schemas.EPOCHS)
    stage.finish()


def test_deep_clips_are_the_same_in_every_audit_and_sanity_is_the_first_seed_s(checked: Study) -> None:
    checks = read_table(checked.root, "checks")
    clips = checks.groupby(["model", "seed"])["clip_id"].unique().map(set)
    assert len(clips) == len(checked.runs)
    assert len(clips.iloc[0]) == 2
    assert all(each == clips.iloc[0] for each in clips)
    manifest = read_table(checked.root, "manifest").set_index("clip_id")
    n_annotated = int(manifest[manifest["split"] == "test"]["annotated"].sum())
    assert manifest.loc[list(clips.iloc[0]), "annotated"].sum() == min(2, n_annotated)
    assert set(checks[checks["check"] == "infidelity"]["seed"]) == {0}
    # Both other replacements, for the AE and the linear model as well.
    of_checks = checks.groupby("model")["check"].unique().map(set)
    assert all({"training_mean", "inpainting", "deletion", "band_mass", "seconds"} <= found for found in of_checks)


def test_every_summary_says_its_protocol_and_only_corrected_has_checks(checked: Study) -> None:
    for name in ("replacements", "bands", "sanity"):
        table = read_table(checked.root, f"summary/{name}")
        assert set(table["protocol"]) == {"corrected"}, name
    sanity = read_table(checked.root, "summary/sanity")
    assert {"completeness", "infidelity", "sensitivity", "seeds", "seconds"} <= set(sanity["check"])
    assert set(sanity[sanity["check"] == "randomisation"]["model"]) == {"ae", "mae"}  # the linear model has no layers
    comparison = read_table(checked.root, "summary/comparison")
    corrected = comparison[comparison["protocol"] == "corrected"]
    assert set(corrected["question"]) == {"masked_training", "against_chance", "against_no_model", "against_linear"}
    assert {"band_rho", "auc"} <= set(corrected["metric"])
    assert {"training_mean", "inpainting"} <= set(corrected["replacement"])
    assert "training_mean" not in set(comparison[comparison["protocol"] == "paper"]["replacement"])


def test_the_page_plays_its_clips_unless_it_must_not(checked: Study) -> None:
    page, sounds = Path(checked.root, "report.html"), Path(checked.root, "clip_sounds.parquet")
    n_clips = page.read_text().count("<article>")
    assert pq.read_metadata(sounds).num_rows == n_clips > 0
    assert page.read_text().count("data:audio/ogg;base64,") == n_clips
    quiet = checked.model_copy(update={"report": checked.report.model_copy(update={"sound": "none"})})
    study.report(quiet)
    assert pq.read_metadata(sounds).num_rows == 0
    assert "<audio" not in page.read_text()
    study.report(checked)
    assert page.read_text().count("data:audio/ogg;base64,") == n_clips


def test_the_page_has_it_all(checked: Study) -> None:
    html = Path(checked.root, "report.html").read_text()
    for text in ("Is the network worth it?", "Checks of the explanations on 2 clips", "Mel bands", "Sanity"):
        assert text in html, text


def test_a_pruned_study_has_its_results_and_says_what_is_gone(checked: Study, tmp_path: Path) -> None:
    shutil.copytree(checked.root, tmp_path / "root")
    root = str(tmp_path / "root")
    pruned = checked.model_copy(update={"root": root})
    for name, seed in pruned.runs:
        storage.write_bytes(storage.join(root, layout.training(name, seed), "0123", layout.STATE), b"state")
    before = {name: read_table(root, name) for name in ("f_score", "checks", "faithfulness")}
    told = prune(root, dry_run=False)
    for kind in ("log-mel features", "whole maps", "spectrograms", "last states of trainings"):
        assert f"  {kind} " in told
    assert not (tmp_path / "root" / "features" / "train").exists()
    assert len(list((tmp_path / "root" / "models").glob("*/model.safetensors"))) == len(pruned.runs)
    for name, table in before.items():
        pd.testing.assert_frame_equal(read_table(root, name), table)
    render_report(root)
    assert "removed the whole maps, spectrograms of this study" in Path(root, "report.html").read_text()
    # Nothing is computed again, neither features nor audits; what has to be, asks for the features.
    stages, _ = study.open_study(pruned)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "compute_features", lambda *_, **__: pytest.fail("computes features"))
        study.train(pruned)
        study.audit(pruned)
    (tmp_path / "root" / "stages" / "audit-ae-0.json").unlink()
    with pytest.raises(StudyError, match=r"`faithad prune` removed the features below .* Run `faithad train`"):
        study.audit(pruned)
    assert not stages.features.is_done()
    storage.delete(storage.join(root, layout.TENSORBOARD))
    with in_this_process():
        study.train(pruned)
    assert (tmp_path / "root" / layout.TENSORBOARD / "training" / "mae-1").exists(), "what is not tracked yet is"
    assert stages.features.is_done()
    assert study.pruned(root) == ["whole maps", "spectrograms", "last states of trainings"]


def test_trainings_are_tracked_with_the_report(checked: Study) -> None:
    folder = Path(checked.root, layout.TENSORBOARD)
    runs = {str(file.parent.relative_to(folder)) for file in folder.rglob("events.out.tfevents.*")}
    assert runs == {f"training/{model}-{seed}" for model, seed in checked.runs}


def test_audits_of_models_that_got_more_epochs_are_made_again(
    checked: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of the linear model, whose clips the MAE predicts; but not where something else differs."""
    shutil.copytree(checked.root, tmp_path / "root")
    train = checked.train.model_copy(update={"epochs": checked.train.epochs + 1})
    grown = checked.model_copy(update={"root": str(tmp_path / "root"), "train": train})
    stages, _ = study.open_study(grown)
    with pytest.raises(StudyError, match="'train-ae-0' is not done with these settings"):
        study.audit(grown)
    for run in grown.runs:
        if not stages.train[run].is_done():
            stages.train[run].reset()
            _write_model(grown, *run, stages.train[run])
    other = grown.model_copy(update={"alarm": grown.alarm.model_copy(update={"rule": "gamma"})})
    with pytest.raises(StudyError, match=r"alarm.rule: 'quantile' then, 'gamma' now(.|\n)*--redo"):
        study.audit(other)
    audits = tmp_path / "root" / "audit"
    assert len(list(audits.glob("*/scores"))) == len(grown.runs)

    def run_passes(made: Study, passes: list[Any], *, title: str) -> None:
        """In place of the audits: the first time they are killed when they begin."""
        runs.append([Path(each.audit.out).name for each in passes])
        assert not list(audits.glob("*/scores")), "what the old weights gave is gone"
        if len(runs) == 1:
            raise KeyboardInterrupt
        for each in passes:
            storage.write_text(f"{each.audit.out}/ledger/part-00000.parquet", "")

    runs: list[list[str]] = []
    capsys.readouterr()
    monkeypatch.setattr(models, "_run", run_passes)
    with in_this_process():
        with pytest.raises(KeyboardInterrupt):
            study.audit(grown)
        said = [line for line in capsys.readouterr().out.splitlines() if "made again" in line]
        assert said == [
            f"audit {model}-{seed}: is made again, because it is of {of}-{seed} with 500 epochs, which has 501 now"
            for model, seed in grown.runs
            for of in ("mae" if model == "frame_pca" else model,)
        ]
        assert not stages.evaluate.is_done()
        study.audit(grown)
    assert runs[0] == runs[1] == [f"{model}-{seed}" for model, seed in grown.runs]
    assert "made again" not in capsys.readouterr().out
    assert all(stage.is_done() for stage in stages.audit.values())
