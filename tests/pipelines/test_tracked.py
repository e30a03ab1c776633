"""What a study and a search give to experiment trackers, from the tables that real trainings wrote; without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faithad import parquet, storage
from faithad.config.study import Study
from faithad.errors import ConfigError
from faithad.pipelines import study as stages
from faithad.pipelines.search.records import Record
from faithad.pipelines.search.run import search_study
from faithad.pipelines.tracked import track_search, track_study
from faithad.runs import layout, tracking
from faithad.runs.trackers import TrackedRoot, TrackedRun
from tests.pipelines.test_more_epochs import TRIAL, run_trial, study_of, train


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TrackedRun]:
    """What was exported last."""
    last: list[TrackedRun] = []

    def export(names: Any, root: str, title: str, runs: Callable[[], list[TrackedRun]]) -> None:
        assert (root, title) == (str(tmp_path), "tiny")
        last[:] = runs() if list(names) == ["tensorboard"] else []

    monkeypatch.setattr(tracking, "export", export)
    return last


def tracked(study: Study) -> Study:
    return study.model_copy(update={"track": ("tensorboard",)})


def test_a_training_is_one_run_and_stays_it_with_more_epochs(tmp_path: Path, exported: list[TrackedRun]) -> None:
    keys = set()
    for epochs in (2, 3):
        study = tracked(study_of(tmp_path, epochs))
        track_study(study)
        assert len(exported) == (1 if epochs == 2 else 2), "a training that is not finished is left out"
        train(study)
        track_study(study)
        parent, training = exported
        assert (parent.kind, parent.status, parent.files) == ("study", "running", ())
        table = parquet.read_table(f"{tmp_path}/models/mae-0/epochs.parquet").to_pylist()
        assert list(training.points) == [row["epoch"] for row in table] == list(range(1, epochs + 1))
        for row in table:
            for name in ("train_loss", "validation_loss", "learning_rate", "gradient_norm"):
                assert training.points[row["epoch"]][name] == row[name]
        best = [row for row in table if row["best"]][-1]
        assert training.points[epochs]["best_validation_loss"] == best["validation_loss"]
        keys.add(TrackedRoot(study.root, "mark", "tiny").key(training))
        if epochs == 3:
            continue
        assert training.settings["train.learning_rate"] == study.train.learning_rate
        assert training.settings["seed"] == 0
    assert len(keys) == 1
    other = tracked(study_of(tmp_path, 3, learning_rate=1e-4))
    track_study(other)
    assert TrackedRoot(other.root, "mark", "tiny").key(exported[1]) not in keys
    storage.write_text(f"{tmp_path}/stages/report.json", "{}")
    storage.write_text(f"{tmp_path}/{layout.REPORT}", "<html></html>")
    track_study(study)
    assert (exported[0].status, exported[0].files) == ("finished", (layout.REPORT,))


def test_a_trial_is_a_run_below_its_search(tmp_path: Path, exported: list[TrackedRun]) -> None:
    study = tracked(study_of(tmp_path, 2))
    record = run_trial(study)
    failed = Record(0.3, 4, 1, (), status="failed", reason="it diverged")
    track_search(study, [record, failed])
    parent, trial, other = exported
    assert (parent.kind, trial.parent, other.parent) == ("search", parent.name, parent.name)
    assert trial.title == TRIAL.title
    assert [trial.points[epoch]["objective"] for epoch in (1, 2)] == list(record.values)
    assert trial.points[2]["proxy_auc"] == record.proxy_auc
    assert trial.points[1]["train_loss"] > 0
    assert (trial.settings["train.mask_ratio"], trial.settings["train.patch"]) == (0.3, 4)
    assert (other.status, other.points, other.settings["seed"]) == ("failed", {}, 1)


def test_nothing_is_exported_without_the_setting(tmp_path: Path, exported: list[TrackedRun]) -> None:
    study = study_of(tmp_path, 2)
    track_study(study)
    track_search(study, [])
    assert not exported


def test_a_tracker_that_is_missing_stops_a_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", tracking.Tracker(("no_such_module",), lambda *_: None))
    study = tracked(study_of(tmp_path, 2)).model_copy(update={"root": f"{tmp_path}/root"})
    for run in (stages.run_study, search_study, *stages.STAGES.values()):
        with pytest.raises(ConfigError, match=r'track: .*pip install "faithad\[tensorboard\]"'):
            run(study)
    assert not Path(study.root).exists()
