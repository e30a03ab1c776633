"""What a search keeps of its trials, and what it takes over when it grows; from records that a test writes, no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from faithad import parquet, storage
from faithad.config.study import Study, load_study, parse_study
from faithad.errors import StudyError
from faithad.model.checkpoint import load_model
from faithad.pipelines.features import fit_normalization
from faithad.pipelines.search.clips import clips_stage
from faithad.pipelines.search.plan import Trial, grid_trials, is_present, trial_location, trial_study
from faithad.pipelines.search.records import Record, begun_trials, read_records, write_record, write_settings
from faithad.pipelines.search.run import (
    RankedCell,
    _best_trial,
    _keep_best,
    _keep_models,
    _trials_stage,
    _write_best,
    _write_table,
    ranked_cells,
)
from faithad.pipelines.search.task import SearchTask
from faithad.pipelines.search.trial import train_trial
from faithad.pipelines.search.tuning import TreeParzenCells
from faithad.pipelines.training.places import Places, divide
from faithad.pipelines.training.task import TrainingTask, Worker
from faithad.pipelines.training.worker import train_network
from faithad.report.search_page import render_search_report
from faithad.runs import layout
from faithad.runs.prune import prune
from faithad.runs.stages import ResumableStage
from faithad.schemas import MANIFEST
from faithad.scoring.choices import PAPER
from tests.pipelines.test_linear_training import write

FILES = ("study.yaml", "epochs.parquet", "validation_scores.parquet", "piece_scores.parquet", "model.safetensors")


def study_of(
    root: Path, *, seeds: tuple[int, ...] = (0, 1), train: dict[str, Any] | None = None, **search: Any
) -> Study:
    values = {
        "name": "small",
        "root": str(root),
        "seeds": list(seeds),
        "data": {"root": "mill", "train": ["train"], "test": ["test"]},
        "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16},
        "train": train or {"epochs": 9},
        "search": {"patches": [4], **search},
    }
    return parse_study(yaml.safe_dump(values), name="small")


def write_trial(root: Path, trial: Trial, value: float) -> None:
    """A finished trial, whose files say which one they are of."""
    for name in FILES:
        storage.write_text(trial_location(str(root), trial, name), trial.name)
    write_record(str(root), Record(*trial, status="done", values=(value,), best_epoch=1))


def keep(study: Study, records: list[Record], ranked: list[RankedCell]) -> None:
    """What the search does with the models of its trials, where no scores are to be compared."""
    stage = ResumableStage(study.root, "search", {}, (layout.TRIALS,), result=layout.TRIALS)
    _keep_best(study, MANIFEST.empty_table(), stage, stage, _best_trial(study, records, ranked[0].cell))
    _keep_models(study, records, ranked)


def best_files(root: Path) -> set[str]:
    return {storage.read_text(f"{root}/best/{name}") for name in FILES}


@pytest.mark.parametrize("objective", ["proxy_auc", "validation_loss"])
def test_the_best_trial_s_model_is_copied_and_the_best_cells_keep_their_weights(tmp_path: Path, objective: str) -> None:
    ratios = (0.15, 0.3, 0.5, 0.75, 0.9)
    study = study_of(tmp_path, mask_ratios=list(ratios), objective=objective)
    for ratio in ratios:
        for seed in (0, 1):
            write_trial(tmp_path, Trial(ratio, 4, seed), 1 - abs(ratio - 0.5) + 0.01 * seed)
    records = read_records(str(tmp_path))
    keep(study, records, ranked_cells(study, records))
    # The higher AUC, or the lower loss: of cell and seed alike.
    best, kept = ("r0.5-p4-s1", {0.5, 0.3, 0.75}) if objective == "proxy_auc" else ("r0.9-p4-s0", {0.9, 0.15, 0.75})
    assert best_files(tmp_path) == {best}
    models = {trial.mask_ratio for trial in map(Trial.named, trials_with(tmp_path, "model.safetensors")) if trial}
    assert models == kept
    assert len(trials_with(tmp_path, "epochs.parquet")) == 10, "every trial keeps its curves"


def test_a_pruned_search_keeps_the_best_trial_s_checkpoint(tmp_path: Path) -> None:
    study = study_of(tmp_path, mask_ratios=[0.3, 0.5])
    for ratio in (0.3, 0.5):
        for seed in (0, 1):
            write_trial(tmp_path, Trial(ratio, 4, seed), 0.8 + 0.1 * ratio + 0.01 * seed)
            storage.write_text(trial_location(str(tmp_path), Trial(ratio, 4, seed), layout.STATE), "state")
    begun = Trial(0.9, 4, 0)
    storage.write_text(trial_location(str(tmp_path), begun, layout.STATE), "of a trial that is not over")
    records = read_records(str(tmp_path))
    keep(study, records, ranked_cells(study, records))
    stage = ResumableStage(str(tmp_path), "search", {}, (layout.TRIALS,), result=layout.TRIALS)
    assert stage.begin(redo=False)
    stage.finish()
    assert "checkpoints of other trials than the best" in prune(str(tmp_path), dry_run=False)
    assert trials_with(tmp_path, "model.safetensors") == ["r0.5-p4-s1"]
    assert sorted(trials_with(tmp_path, "state.pt")) == ["r0.5-p4-s1", begun.name]
    assert best_files(tmp_path) == {"r0.5-p4-s1"}
    # It is extended, and its page is made, as before.
    assert read_records(str(tmp_path)) == records
    storage.delete(f"{tmp_path}/best")
    keep(study, records, ranked_cells(study, records))
    assert best_files(tmp_path) == {"r0.5-p4-s1"}


def trials_with(root: Path, name: str) -> list[str]:
    return [file.parent.name for file in root.glob(f"search/trials/*/{name}")]


def test_a_trial_of_earlier_settings_is_in_the_table_and_never_the_best(tmp_path: Path) -> None:
    write_trial(tmp_path, Trial(0.9, 4, 0), 0.99)
    write_trial(tmp_path, Trial(0.3, 4, 0), 0.8)
    write_trial(tmp_path, Trial(0.3, 4, 7), 1.0)
    study, records = study_of(tmp_path, mask_ratios=[0.15, 0.3]), read_records(str(tmp_path))
    assert [record.trial for record in records if is_present(study, record.trial)] == [Trial(0.3, 4, 0)]
    ranked = ranked_cells(study, [record for record in records if is_present(study, record.trial)])
    keep(study, records, ranked)
    assert best_files(tmp_path) == {"r0.3-p4-s0"}
    _write_table(study, records, {})
    table = parquet.read_table(f"{tmp_path}/summary/search.parquet").to_pandas().set_index("trial")
    assert table["present"].to_dict() == {"r0.3-p4-s0": True, "r0.3-p4-s7": False, "r0.9-p4-s0": False}
    page = storage.read_text(render_search_report(str(tmp_path)))
    assert "1 trial:" in page
    assert "0.990" not in page


def test_a_search_may_grow_and_nothing_else_may_change(tmp_path: Path) -> None:
    def stage(study: Study) -> ResumableStage:
        features = ResumableStage(study.root, "features", {"clips": "x"}, ("features",), result="features/train")
        return _trials_stage(study, features, clips_stage(study, MANIFEST.empty_table()), {})

    write_trial(tmp_path, Trial(0.3, 4, 0), 0.8)
    before = stage(study_of(tmp_path, mask_ratios=[0.3]))
    assert before.begin(redo=False)
    before.finish()
    assert before.is_done()
    for grown in (
        study_of(tmp_path, mask_ratios=[0.3, 0.5]),
        study_of(tmp_path, mask_ratios=[0.3], seeds=(0, 1, 2)),
        study_of(tmp_path, mask_ratios=[0.2, 0.5], algorithm="optuna", trials=3),
        study_of(tmp_path, mask_ratios=[0.3], space={"train": {"weight_decay": [0.0, 0.01]}}),
        study_of(tmp_path, mask_ratios=[0.3], train={"epochs": 10}),
    ):
        assert not stage(grown).is_done()
        assert stage(grown).begin(redo=False)
        stage(grown).finish()
        assert stage(grown).is_done()
    for other in (
        study_of(tmp_path, train={"epochs": 8}),
        study_of(tmp_path, train={"epochs": 10, "batch_size": 16}),
        study_of(tmp_path, objective="validation_loss"),
        study_of(tmp_path, scheduler="asha", grace_epochs=2),
    ):
        with pytest.raises(StudyError, match="--redo"):
            stage(other).begin(redo=False)
    assert [record.trial for record in read_records(str(tmp_path))] == [Trial(0.3, 4, 0)]


def test_more_draws_leave_those_before_as_they_were(tmp_path: Path) -> None:
    few, more = (study_of(tmp_path, algorithm="optuna", trials=n, mask_ratios=[0.2, 0.8]) for n in (20, 23))

    def drawn(study: Study, known: list[Record]) -> list[Trial]:
        cells, trials = TreeParzenCells(study, known, [record.trial for record in known]), list[Trial]()
        for number in range(cells.n_trials):
            trials.append(Trial(*cells.suggest(str(number))["trial"]))
            cells.on_trial_complete(str(number), {"value": trials[-1].mask_ratio})
        return trials

    first = drawn(few, [])
    assert len(first) == 40
    known = [Record(*trial, status="done", values=(trial.mask_ratio,)) for trial in first]
    assert [*first, *drawn(more, known)] == drawn(more, [])


def test_a_search_that_begins_to_try_a_setting_keeps_its_trials(tmp_path: Path) -> None:
    """As a search without a space left them: their names and records know of none."""
    for seed in (0, 1):
        write_trial(tmp_path, Trial(0.3, 4, seed), 0.8)
        record = Path(trial_location(str(tmp_path), Trial(0.3, 4, seed), "record.json"))
        record.write_text(record.read_text().replace('"settings": {},', ""))
    space = {"train": {"learning_rate": [1e-3, 2e-3]}, "model": {"dropout": [0.1]}}
    study = study_of(tmp_path, mask_ratios=[0.3], space=space)
    new = [Trial(0.3, 4, seed, (("train.learning_rate", 2e-3),)) for seed in (0, 1)]
    known = read_records(str(tmp_path))
    assert [trial for trial in grid_trials(study) if trial not in {record.trial for record in known}] == new
    for trial in new:
        write_settings(str(tmp_path), trial)
        write_trial(tmp_path, trial, 0.9)
    records = read_records(str(tmp_path))
    assert {record.trial for record in records} == set(grid_trials(study))
    ranked = ranked_cells(study, records)
    assert str(ranked[0]) == "mask_ratio 0.3, patch 4, train.learning_rate 0.002: 0.9000 ± 0.0000 over 2 seeds"
    _write_best(study, ranked[0], PAPER)
    best = load_study(f"{tmp_path}/best.yaml")
    assert (best.train.learning_rate, best.train.mask_ratio) == (2e-3, 0.3)
    _write_table(study, records, {})
    table = parquet.read_table(f"{tmp_path}/summary/search.parquet").to_pandas()
    settings = [json.loads(text) for text in table["settings"]]
    assert [of_trial["train.learning_rate"] for of_trial in settings] == [1e-3, 2e-3, 1e-3, 2e-3]
    assert {of_trial["model.dropout"] for of_trial in settings} == {0.1}
    page = storage.read_text(render_search_report(str(tmp_path)))
    assert "train.learning_rate 0.002" in page
    # Back to the search without a space: its own trials alone.
    before = study_of(tmp_path, mask_ratios=[0.3])
    assert [record.trial.settings for record in records if is_present(before, record.trial)] == [(), ()]


@pytest.mark.parametrize("algorithm", ["grid", "optuna"])
def test_a_search_without_a_value_has_its_table_and_page(tmp_path: Path, algorithm: str) -> None:
    study = study_of(tmp_path, mask_ratios=[0.3, 0.5], algorithm=algorithm)
    for ratio in (0.3, 0.5):
        write_record(str(tmp_path), Record(ratio, 4, 0, (), "failed", "it diverged", (None,), diverged_epochs=1))
    records = read_records(str(tmp_path))
    assert ranked_cells(study, records) == []
    _write_table(study, records, {})
    page = storage.read_text(render_search_report(str(tmp_path)))
    assert "No cell was chosen" in page
    assert "2 trials: 0 to their end, 0 stopped early, 2 failed" in page


@pytest.mark.long
def test_the_best_study_trains_the_trial_s_model_to_the_last_bit(tmp_path: Path) -> None:
    study = parse_study(
        yaml.safe_dump(
            {
                "name": "tiny",
                "root": str(tmp_path),
                "models": ["mae"],
                "data": {"layout": "planer", "root": "x"},
                "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
                "train": {"epochs": 2, "batch_size": 8},
            }
        ),
        name="tiny",
    )
    for split, n_clips in (("train", 20), ("validation", 7)):
        write(study, split, n_clips, shard=6)
    settings = (("model.width", 2), ("train.batch_size", 4), ("train.learning_rate", 0.002))
    normalization, trial, worker = fit_normalization(study), Trial(0.3, 4, 0, settings), Worker(torch.device("cpu"))
    places = Places(1, {"CPU": 1}, 1)
    search = SearchTask(study, normalization, None, is_tested=False, labels=None, places=places, ray_is_ours=True)
    threads = torch.get_num_threads()
    try:
        train_trial(search.task_of(trial), worker, lambda report: None)
        cell = trial_study(study, trial.cell)
        n_threads = divide([{"CPU": 4}], cell.train, 1).threads
        state = storage.join(study.root, "training/state.pt")
        train_network(TrainingTask(cell, "mae", 0, normalization, n_threads, state, "fingerprint"), worker)
    finally:
        torch.set_num_threads(threads)
    of_trial = load_model(trial_location(study.root, trial))
    trained = load_model(storage.join(study.root, layout.model("mae", 0)))
    assert begun_trials(study.root) == [trial]
    assert of_trial.alarm == trained.alarm
    assert of_trial.network.state_dict()["conv1.weight"].shape[0] == 4
    assert of_trial.best_epoch == trained.best_epoch
    weights = trained.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in of_trial.network.state_dict().items())
    epochs = [
        parquet.read_table(storage.join(folder, layout.EPOCHS)).drop_columns("duration_s")
        for folder in (trial_location(study.root, trial), storage.join(study.root, layout.model("mae", 0)))
    ]
    assert epochs[0].equals(epochs[1])
    assert epochs[0]["gradient_norm"].null_count == 0
