"""One trial of a search, in this process: it trains what `faithad train` trains, and goes on after it was cut off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faithad import parquet, storage
from faithad.config.study import Study
from faithad.evaluation.detection import auc
from faithad.evaluation.disturbances import disturbed_clips, proxy_auc
from faithad.model.checkpoint import load_model
from faithad.pipelines.features import fit_normalization, load_features, write_features
from faithad.pipelines.search.plan import Trial, trial_location
from faithad.pipelines.search.records import Record, read_record
from faithad.pipelines.search.task import SearchTask
from faithad.pipelines.search.trial import Report, reporting, train_trial
from faithad.pipelines.training.places import Places
from faithad.pipelines.training.task import Worker
from faithad.runs import layout

TRIAL = Trial(0.3, 4, 0)


class Killed(BaseException):
    """Ends a trial in the middle, as if its process had died: nothing in it can act on that."""


@pytest.fixture(scope="module")
def test_clips(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the small study's test clips, made once."""
    root = tmp_path_factory.mktemp("clips")
    manifest = parquet.read_table(storage.join(finished.root, layout.MANIFEST))
    write_features(str(root), manifest, finished.feature_settings, splits=("test",))
    return root / "features"


@pytest.fixture
def searched(finished: Study, test_clips: Path, small_study: Callable[..., Study]) -> Callable[..., Study]:
    """Makes a study with its features, and those of the test clips, ready for trials."""

    def make(**sections: Any) -> Study:
        study = small_study(models=["mae"], **sections)
        Path(study.root, "search").mkdir(parents=True)
        for name in ("features", layout.MANIFEST):
            Path(study.root, name).symlink_to(Path(finished.root, name))
        Path(study.root, "search", "features").symlink_to(test_clips)
        return study

    return make


def run(study: Study, report: Report, trial: Trial = TRIAL, labels: dict[str, int] | None = None) -> Record | None:
    places = Places(workers=1, each={"CPU": torch.get_num_threads()}, at_once=1)
    search = SearchTask(
        study,
        fit_normalization(study),
        clips=None,
        is_tested=True,
        labels=labels,
        places=places,
        ray_is_ours=True,
    )
    train_trial(search.task_of(trial), Worker(torch.device("cpu")), report)
    return read_record(study.root, trial)


def test_a_trial_is_the_training_of_the_study(finished: Study, searched: Callable[..., Study]) -> None:
    study, reports = searched(), list[dict[str, Any]]()
    record = run(study, reports.append)
    epochs = parquet.read_table(storage.join(finished.root, "models", "mae-0", "epochs.parquet")).to_pandas()
    assert record is not None
    assert record.status == "done"
    assert record.validation_loss == pytest.approx(epochs.loc[epochs["best"], "validation_loss"].iloc[-1], rel=1e-4)
    assert record.best_epoch == load_model(storage.join(finished.root, "models", "mae-0")).best_epoch
    assert [(report["epoch"], report["value"]) for report in reports] == list(enumerate(record.values, start=1))
    # The test clips' scores are those of the study's audit.
    audited = parquet.read_table(storage.join(finished.root, "audit", "mae-0", "scores")).to_pandas()
    scores = (
        parquet.read_table(trial_location(study.root, TRIAL, layout.TRIAL_SCORES))
        .to_pandas()
        .set_index("clip_id")["score"]
    )
    np.testing.assert_allclose(scores[audited["clip_id"]], audited["score"], rtol=1e-4)
    assert sorted(path.name for path in Path(trial_location(study.root, TRIAL)).iterdir()) == [
        "epochs.parquet",
        "model.safetensors",
        "piece_scores.parquet",
        "record.json",
        "scores.parquet",
        "state.pt",  # with more epochs the trial goes on from it
        "study.yaml",
        "validation_scores.parquet",
    ]
    trained = load_model(trial_location(study.root, TRIAL), expect={"name": "mae", "seed": 0})
    assert trained.alarm is not None
    assert trained.best_epoch == record.best_epoch
    of_trial = parquet.read_table(trial_location(study.root, TRIAL, "epochs.parquet")).to_pandas()
    np.testing.assert_allclose(of_trial["train_loss"], epochs["train_loss"], rtol=1e-4)


def test_the_proxy_auc_is_what_the_study_s_model_gets(finished: Study, searched: Callable[..., Study]) -> None:
    record = run(searched(), lambda report: None)
    trained = load_model(storage.join(finished.root, "models", "mae-0"))
    settings = finished.feature_settings
    normal = load_features(finished.root, "validation", settings)
    ids = parquet.read_table(storage.join(finished.root, "features", "validation"))["clip_id"].to_pylist()
    disturbed = disturbed_clips(normal.numpy(), sorted(ids), settings=settings, seed=0)

    def scores(log_mels: torch.Tensor) -> np.ndarray:
        x = trained.prepare(log_mels)
        with torch.inference_mode():
            return (trained.network(x) - x).square().mean(dim=(1, 2)).numpy()

    expected = proxy_auc(scores(normal), scores(torch.from_numpy(disturbed.log_mels)))
    assert record is not None
    assert record.value == record.proxy_auc == pytest.approx(expected)


@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_a_trial_that_was_cut_off_ends_as_if_it_had_not_been(searched: Callable[..., Study], scheduler: str) -> None:
    train, search = {"epochs": 4}, {"scheduler": scheduler, "grace_epochs": 1}
    study = searched(train=train, search=search)
    whole = run(study, lambda report: None, Trial(0.3, 4, 1))

    def cut_off(report: dict[str, Any]) -> None:
        if report["epoch"] == 2:
            raise Killed

    trial, reports = Trial(0.5, 4, 1), list[int]()
    with pytest.raises(Killed):
        run(study, cut_off, trial)
    assert read_record(study.root, trial) is None
    # From the state and not from the start: what was reported before is taken from there, here a number of our own.
    location = Path(trial_location(study.root, trial, layout.STATE))
    state = torch.load(location, weights_only=True)
    assert len(state["training"]["history"]) == len(state["values"]) == 2
    torch.save(state | {"values": [0.125, *state["values"][1:]]}, location)
    record = run(study, lambda report: reports.append(report["epoch"]), trial)
    assert record is not None
    assert record.values[0] == 0.125
    assert len(record.values) == 4
    # The scheduler of a killed driver knew of the first two; a new one is told.
    assert reports == ([1, 2, 3, 4] if scheduler == "asha" else [3, 4])
    assert whole is not None

    undisturbed = searched_again(study, trial)
    assert record.validation_loss == pytest.approx(undisturbed.validation_loss, rel=1e-5)
    assert record.values[1:] == pytest.approx(undisturbed.values[1:])


def searched_again(study: Study, trial: Trial) -> Record:
    """The record of the same trial, run in one go."""
    storage.delete(trial_location(study.root, trial))
    record = run(study, lambda report: None, trial)
    assert record is not None
    return record


def test_a_trial_that_is_given_up_ends_by_itself_and_says_so(searched: Callable[..., Study]) -> None:
    study = searched(train={"epochs": 5}, search={"scheduler": "asha", "grace_epochs": 1})

    def give_up(report: dict[str, Any]) -> None:
        if report["epoch"] == 2:
            storage.write_text(trial_location(study.root, TRIAL, layout.TRIAL_STOP), "")

    record = run(study, give_up)
    assert record is not None
    assert (record.status, len(record.values)) == ("stopped", 2)
    assert record.value is not None
    assert not storage.exists(trial_location(study.root, TRIAL, layout.TRIAL_STOP))


def test_a_trial_that_diverges_at_once_has_failed_and_says_why(searched: Callable[..., Study]) -> None:
    study = searched(train={"epochs": 3, "learning_rate": 1e30})
    record = run(study, lambda report: None)
    assert record is not None
    assert (record.status, record.value, record.best_epoch) == ("failed", None, None)
    assert record.reason is not None
    assert "Lower train.learning_rate" in record.reason
    text = Path(trial_location(study.root, TRIAL, "record.json")).read_text()
    assert "NaN" not in text
    assert json.loads(text)["values"] == [None]


@pytest.mark.parametrize("objective", ["validation_loss", "test_auc"])
def test_other_objectives_are_what_their_names_say(searched: Callable[..., Study], objective: str) -> None:
    study = searched(search={"objective": objective})
    ids = parquet.read_table(storage.join(study.root, "search", "features", "test"))["clip_id"].to_pylist()
    labels = {clip_id: number % 2 for number, clip_id in enumerate(sorted(ids)[:-1])}
    record = run(study, lambda report: None, labels=labels)
    assert record is not None
    if objective == "validation_loss":
        assert record.value == record.validation_loss
    else:
        scores = (
            parquet.read_table(trial_location(study.root, TRIAL, layout.TRIAL_SCORES))
            .to_pandas()
            .set_index("clip_id")["score"]
        )
        assert record.value == pytest.approx(auc(scores[list(labels)], list(labels.values())))


@pytest.mark.usefixtures("local_ray")
def test_all_that_workers_say_is_reported_before_a_trial_ends() -> None:
    reported = []

    def report(metrics: dict[str, Any]) -> None:
        time.sleep(0.2)  # as Tune does, which takes one at a time
        reported.append(metrics["epoch"])

    with reporting(report) as reports:
        for epoch in range(3):
            reports.put({"epoch": epoch})
    assert reported == [0, 1, 2]
