"""The ensemble of a search: compared, fitted, written, audited and taken back; without Ray."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import faithad
from faithad import parquet, storage
from faithad.audit.outcome import read_scores
from faithad.config.audit import load_audit_run
from faithad.config.study import Study
from faithad.evaluation.disturbances import KINDS, disturbed_clips
from faithad.evaluation.member_selection import rate_ensembles
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.search import members, run, scores
from faithad.pipelines.search.clips import load_clips
from faithad.pipelines.search.members import keep_ensemble
from faithad.pipelines.search.run import _keep_best
from faithad.report.search_page import on_members
from faithad.runs import layout
from faithad.runs.stages import ResumableStage
from faithad.schemas import MANIFEST, SEARCH_MEMBERS
from faithad.scoring.choices import Score, robust
from faithad.scoring.trained_ensemble import TrainedEnsemble, load_any
from tests.pipelines.audits_without_ray import _Remote, without_ray
from tests.pipelines.test_more_epochs import TRIAL, run_trial, study_of

pytestmark = pytest.mark.long

LINEAR = ("frame_pca", "frame_ridge")
NETWORK = Score("reconstruction", "band", "top_share", "local")
N_TRAIN, N_VALIDATION = 12, 5


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a search of one trial, whose training is finished."""
    folder = tmp_path_factory.mktemp("finished")
    run_trial(study_of(folder, 1))
    return folder


@pytest.fixture
def searched(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A search as the other, which compares ensembles; without Ray."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for module in (scores, members):
        monkeypatch.setattr(module, "ray", SimpleNamespace(remote=_Remote))
        monkeypatch.setattr(module, "results_of", list)
    for module in (run, members):
        monkeypatch.setattr(module, "ray_session", contextlib.nullcontext)
        monkeypatch.setattr(module, "compute_features", lambda *_, **__: None)
    study = study_of(tmp_path, 1)
    features = study.features.model_copy(update={"reference": "clip"})
    return searching(study.model_copy(update={"features": features}), members=LINEAR, scores=(NETWORK, "paper"))


def searching(study: Study, **changes: Any) -> Study:
    return study.model_copy(update={"search": study.search.model_copy(update=changes)})


def keep(study: Study) -> list[dict[str, Any]]:
    stage = ResumableStage(study.root, "search", {}, (layout.TRIALS,), result=layout.TRIALS)
    _keep_best(study, MANIFEST.empty_table(), stage, stage, TRIAL)
    return keep_ensemble(study, MANIFEST.empty_table(), stage, stage, TRIAL)


def choosing(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """Have the rule choose this ensemble."""

    def rated(*arguments: Any, **options: Any) -> Any:
        return [replace(each, chosen=each.members == names) for each in rate_ensembles(*arguments, **options)]

    monkeypatch.setattr(members, "rate_ensembles", rated)


def ensemble_of(study: Study) -> TrainedEnsemble:
    trained = load_any(f"{study.root}/best_ensemble")
    assert isinstance(trained, TrainedEnsemble)
    return trained


def test_an_ensemble_with_the_network_judges_as_its_row_says(searched: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    choosing(monkeypatch, ("frame_pca", "mae"))
    rows = keep(searched)
    assert parquet.read_table(f"{searched.root}/summary/search_members.parquet").schema.equals(SEARCH_MEMBERS)
    assert {tuple(row["members"]) for row in rows} == {
        *(("frame_pca",), ("frame_ridge",), ("mae",), LINEAR),
        *(("frame_pca", "mae"), ("frame_ridge", "mae"), (*LINEAR, "mae")),
    }
    assert {(row["trial"], row["n_normal"]) for row in rows} == {(TRIAL.name, N_VALIDATION)}
    (row,) = (row for row in rows if row["chosen"])
    assert row["members"] == ["frame_pca", "mae"]
    # The calibrated score that was compared, although `best/` has the paper's where that catches more.
    assert {row["score"] for row in rows} == {None, "reconstruction, band, top_share, local"}
    trained = ensemble_of(searched)
    assert {name: detector.score for name, detector in trained.ensemble.members.items()} == {
        "frame_pca": robust("frame_pca"),
        "mae": NETWORK,
    }
    assert trained.members["frame_pca"].network.options == {"reference": "clip"}
    # The alarm rests on the validation clips, which are of other recordings than the neighbours, and catches so many.
    clip_ids, log_mels, _ = load_clips(searched, "validation")
    settings, seed = searched.feature_settings, searched.search.seed
    made = disturbed_clips(log_mels.numpy(), clip_ids, settings=settings, seed=seed, kinds=KINDS)
    normal, disturbed = (faithad.score(trained, part)["score"] for part in (log_mels.numpy(), made.log_mels))
    known = parquet.read_table(f"{searched.root}/best_ensemble/validation_scores.parquet")
    np.testing.assert_allclose(known["score"], normal, atol=1e-5)
    assert trained.alarm is not None
    assert trained.alarm.n_validation == N_VALIDATION
    assert trained.alarm.threshold == pytest.approx(normal.max(), abs=1e-5)
    assert row["caught"] == pytest.approx((disturbed > trained.alarm.threshold).mean(), abs=0.03)
    assert row["n_disturbed"] == len(disturbed)
    # A window is worse than the highest twentieth of a clip.
    of_network = [windows[1] for windows in known["worst_windows"].to_pylist()]
    assert max(of_network) == pytest.approx(trained.alarm.window_thresholds[1])
    assert on_members(rows).startswith("best_ensemble/ has frame_pca + mae, of 7 ensembles")


def test_linear_models_alone_rest_on_all_normals_and_are_audited_and_taken_back(
    searched: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choosing(monkeypatch, LINEAR)
    rows = keep(searched)
    folder = Path(searched.root, "best_ensemble")
    trained = ensemble_of(searched)
    assert tuple(trained.members) == LINEAR
    assert trained.alarm is not None
    assert trained.alarm.n_validation == N_TRAIN + N_VALIDATION
    pieces = parquet.read_table(str(folder / "piece_scores.parquet")).to_pandas()
    assert (pieces.groupby("duration_s").size() >= N_TRAIN + N_VALIDATION).all()
    (tmp_path / "new").mkdir()
    sound = np.random.default_rng(0).normal(0, 0.01, 12 * 20_000)
    soundfile.write(tmp_path / "new" / "hiss.wav", sound, 20_000)
    with without_ray():
        places: Any = {"model": str(folder), "recordings": [str(tmp_path / "new")], "out": str(tmp_path / "out")}
        run_audit(load_audit_run(None, **places, overrides=["attribution.methods=[error_map]", "audit.explain=none"]))
    assert read_scores(str(tmp_path / "out")).num_rows == 2
    # The same search compares nothing again, and makes the same again where it has gone, whatever the threads are.
    files = ("ensemble.safetensors", "frame_pca/model.safetensors", "frame_ridge/model.safetensors")
    content, written = [(folder / file).read_bytes() for file in files], (folder / files[0]).stat().st_mtime_ns
    assert keep(searched) == rows
    assert (folder / files[0]).stat().st_mtime_ns == written
    storage.delete(str(folder))
    torch.set_num_threads(2)
    assert keep(searched) == rows
    assert [(folder / file).read_bytes() for file in files] == content
    # Other members are compared anew; without any, nothing is left.
    monkeypatch.setattr(members, "rate_ensembles", rate_ensembles)
    fewer = keep(searching(searched, members=("frame_ridge",), scores=()))
    assert {tuple(row["members"]) for row in fewer} == {("frame_ridge",), ("mae",), ("frame_ridge", "mae")}
    assert {row["score"] for row in fewer} == {None, "robust"}
    assert list(ensemble_of(searched).members) == next(row["members"] for row in fewer if row["chosen"])
    assert not (folder / "frame_pca").exists()
    assert keep(searching(searched, members=(), scores=())) == []
    assert not folder.exists()
    assert not storage.exists(f"{searched.root}/summary/search_members.parquet")
