"""The score of a search's best model: rated, written, fitted and taken back; without Ray."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from faithad import parquet, storage
from faithad.config.study import Study, load_study
from faithad.model.checkpoint import load_model
from faithad.pipelines.features import load_features
from faithad.pipelines.search import run, scores
from faithad.pipelines.search.plan import scores_to_compare
from faithad.pipelines.search.run import RankedCell, _keep_best, _write_best
from faithad.pipelines.training.scores import has_score
from faithad.runs import layout
from faithad.runs.stages import ResumableStage
from faithad.schemas import MANIFEST, SEARCH_SCORES
from faithad.scoring.choices import PAPER, Score
from faithad.scoring.score import ClipBatch
from tests.pipelines.audits_without_ray import _Remote
from tests.pipelines.test_linear_training import spectra
from tests.pipelines.test_more_epochs import TRIAL, run_trial, study_of

pytestmark = pytest.mark.long


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Study:
    """A search of one trial, whose training is finished."""
    monkeypatch.setattr(scores, "ray", SimpleNamespace(remote=_Remote))
    monkeypatch.setattr(scores, "results_of", list)
    monkeypatch.setattr(run, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(run, "compute_features", lambda *_, **__: None)
    study = study_of(tmp_path, 2, reference=getattr(request, "param", "none"))
    run_trial(study)
    return study


def with_scores(study: Study, choice: Any) -> Study:
    return study.model_copy(update={"search": study.search.model_copy(update={"scores": choice})})


def keep(study: Study) -> Score:
    stage = ResumableStage(study.root, "search", {}, (layout.TRIALS,), result=layout.TRIALS)
    return _keep_best(study, MANIFEST.empty_table(), stage, stage, TRIAL)


def test_the_best_model_gets_the_score_that_catches_most_and_gives_it_back(searched: Study) -> None:
    best = f"{searched.root}/best"
    assert keep(searched) == PAPER
    before = load_model(best)
    wanted = with_scores(searched, (Score("inpainting", "band", "worst_window", "none"), Score(pooling="top_share")))
    chosen = keep(wanted)
    table = parquet.read_table(f"{searched.root}/summary/search_scores.parquet")
    assert table.schema.equals(SEARCH_SCORES)
    rows = table.to_pylist()
    assert {Score(*(row[name] for name in ("residual", "weighting", "pooling", "calibration"))) for row in rows} == set(
        scores_to_compare(wanted)
    )
    assert [row["chosen"] for row in rows] == [True, False]
    assert rows[0]["caught"] >= rows[1]["caught"]
    assert {row["trial"] for row in rows} == {TRIAL.name}
    model = load_model(best)
    assert model.score is not None
    assert Score(**model.score.choices) == chosen == Score(*list(rows[0].values())[1:5])
    assert model.alarm != before.alarm
    _write_best(wanted, RankedCell(TRIAL.cell, 0.9, None, 1), chosen)
    for location in (f"{searched.root}/best.yaml", f"{best}/study.yaml"):
        assert load_study(location).score_of("mae") == chosen
    # A study that is trained from `best.yaml` would come to the same; here its model is the one in `best/`.
    for name in ("model.safetensors", "validation_scores.parquet"):
        storage.write_bytes(f"{searched.root}/models/mae-0/{name}", storage.read_bytes(f"{best}/{name}"))
    assert has_score(load_study(f"{searched.root}/best.yaml"), "mae", 0)
    # The same search compares nothing again, and one without scores has the trial's own model.
    written = Path(best, "model.safetensors").stat().st_mtime_ns
    assert keep(wanted) == chosen
    assert Path(best, "model.safetensors").stat().st_mtime_ns == written
    # A trial that failed is tried again: then `best/` has gone, and is made again although the best trial is the same.
    content = storage.read_bytes(f"{best}/model.safetensors")
    storage.delete(best)
    assert keep(wanted) == chosen
    assert storage.read_bytes(f"{best}/model.safetensors") == content
    assert keep(searched) == PAPER
    assert load_model(best).score is None
    assert load_model(best).alarm == before.alarm
    assert not storage.exists(f"{searched.root}/summary/search_scores.parquet")


def test_the_paper_s_score_is_left_as_it_is(searched: Study) -> None:
    assert keep(with_scores(searched, ("paper",))) == PAPER
    assert load_model(f"{searched.root}/best").score is None


@pytest.mark.parametrize("searched", ["recording"], indirect=True)
def test_scores_are_compared_on_clips_less_the_spectrum_of_their_recording(
    searched: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    rated: dict[str, ClipBatch] = {}
    rate = scores.rate_scores
    monkeypatch.setattr(scores, "rate_scores", lambda *args, **sets: rated.update(sets) or rate(*args, **sets))
    wanted = with_scores(searched, (Score("inpainting", "band", "worst_window", "local"), Score(pooling="top_share")))
    keep(wanted)
    trained = load_model(f"{searched.root}/best")
    assert trained.features.reference == "recording"
    assert load_study(f"{searched.root}/best/study.yaml").features.reference == "recording"
    for name, split in (("normals", "train"), ("held_back", "validation")):
        log_mels = load_features(searched.root, split, searched.feature_settings)
        clips, references = rated[name], spectra(len(log_mels))
        torch.testing.assert_close(clips.x, trained.prepare(log_mels, references))
        torch.testing.assert_close(clips.offsets, trained.normalization.offsets(references))
    disturbed = rated["disturbed"]
    assert disturbed.offsets is not None
    assert len(disturbed.offsets) == len(disturbed.x) > 0
