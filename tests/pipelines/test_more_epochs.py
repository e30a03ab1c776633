"""More epochs: a finished training and a finished trial end as if they had had them from the start; without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from faithad import parquet, storage
from faithad.config.study import Study, parse_study
from faithad.errors import StudyError
from faithad.model.checkpoint import load_model
from faithad.pipelines.features import fit_normalization
from faithad.pipelines.search.clips import clips_stage
from faithad.pipelines.search.plan import Cell, Trial, trial_location
from faithad.pipelines.search.records import Record, note_epochs, present_records, read_record, write_record
from faithad.pipelines.search.run import RankedCell, _keep_models, _trials_stage
from faithad.pipelines.search.task import SearchTask
from faithad.pipelines.search.trial import train_trial
from faithad.pipelines.training.more_epochs import remove_other_states, state_location, with_more_epochs
from faithad.pipelines.training.places import Places
from faithad.pipelines.training.run import train_stage
from faithad.pipelines.training.task import TrainingTask, Worker
from faithad.pipelines.training.worker import train_network
from faithad.runs import layout
from faithad.runs.stages import ResumableStage
from faithad.schemas import MANIFEST
from tests.pipelines.test_linear_training import write

pytestmark = pytest.mark.long

TRIAL = Trial(0.3, 4, 0)


def study_of(root: Path, epochs: int, *, reference: str = "none", **train: Any) -> Study:
    values = {
        "name": "tiny",
        "root": str(root),
        "models": ["mae"],
        "seeds": [0],
        "data": {"layout": "planer", "root": "x"},
        "features": {
            "n_fft": 4000,
            "hop_samples": 2000,
            "n_mels": 16,
            "normalization": "training",
            "reference": reference,
        },
        "train": {"epochs": epochs, "batch_size": 8, **train},
        "search": {"mask_ratios": [0.3], "patches": [4]},
    }
    study = parse_study(yaml.safe_dump(values), name="tiny")
    if not storage.exists(f"{root}/features"):
        write(study, "train", 12, shard=6)
        write(study, "validation", 5, shard=6)
    return study


def stage_of(study: Study) -> ResumableStage:
    features = ResumableStage(study.root, "features", {"clips": "x"}, ("features",), result="features/train")
    return with_more_epochs(study, train_stage(study, "mae", 0, features), "mae", 0)


def train(study: Study) -> None:
    """As `train_models` does, in this process."""
    stage = stage_of(study)
    assert stage.begin(redo=False)
    state = state_location(study, "mae", 0, stage.fingerprint)
    task = TrainingTask(study, "mae", 0, fit_normalization(study), torch.get_num_threads(), state, stage.fingerprint)
    train_network(task, Worker(torch.device("cpu")))
    stage.finish()
    remove_other_states(study, "mae", 0, stage.fingerprint)


def same_training(one: str, other: str) -> bool:
    """Whether two models' folders hold the same curves and weights, to the last bit."""
    tables = [parquet.read_table(f"{folder}/{layout.EPOCHS}").drop_columns("duration_s") for folder in (one, other)]
    first, second = (load_model(folder).network.state_dict() for folder in (one, other))
    return tables[0].equals(tables[1]) and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_training_goes_on_and_ends_as_if_it_had_not_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(study_of(tmp_path / "grown", 2))
    capsys.readouterr()
    grown = study_of(tmp_path / "grown", 4)
    train(grown)
    assert capsys.readouterr().out == "train mae-0: goes on from its last state; train.epochs 2 then, 4 now\n"
    train(study_of(tmp_path / "whole", 4))
    assert same_training(f"{tmp_path}/grown/models/mae-0", f"{tmp_path}/whole/models/mae-0")
    durations = parquet.read_table(f"{tmp_path}/grown/models/mae-0/epochs.parquet")["duration_s"].to_pylist()
    assert len(durations) == 4
    assert stage_of(grown).is_done()
    assert len(list((tmp_path / "grown" / "training" / "mae-0").rglob("*.pt"))) == 1
    # Killed after it had begun to go on: what is there is taken.
    more = study_of(tmp_path / "grown", 5)
    assert stage_of(more).begin(redo=False)
    assert stage_of(more).begin(redo=False)
    train(more)
    # Fewer epochs are another training, and so are other settings.
    for other in (study_of(tmp_path / "grown", 3), study_of(tmp_path / "grown", 6, learning_rate=1e-4)):
        with pytest.raises(StudyError, match=r"train\.(epochs|learning_rate): .* then(.|\n)*--redo"):
            stage_of(other).begin(redo=False)


def test_why_a_training_cannot_go_on_is_told(tmp_path: Path) -> None:
    cosine = {"schedule": "warmup_cosine", "warmup_epochs": 0}
    train(study_of(tmp_path / "cosine", 1, **cosine))
    assert not (tmp_path / "cosine" / "training" / "mae-0").exists()
    with pytest.raises(StudyError, match=r"cannot go on from epoch 1: with train\.schedule 'warmup_cosine'"):
        stage_of(study_of(tmp_path / "cosine", 2, **cosine)).begin(redo=False)
    train(study_of(tmp_path / "gone", 1))
    storage.delete(f"{tmp_path}/gone/training")
    with pytest.raises(StudyError, match="cannot go on from epoch 1: its last state was removed"):
        stage_of(study_of(tmp_path / "gone", 2)).begin(redo=False)
    assert stage_of(study_of(tmp_path / "gone", 2)).begin(redo=True)


def run_trial(study: Study) -> Record:
    places = Places(1, {"CPU": torch.get_num_threads()}, 1)
    search = SearchTask(
        study, fit_normalization(study), None, is_tested=False, labels=None, places=places, ray_is_ours=True
    )
    train_trial(search.task_of(TRIAL), Worker(torch.device("cpu")), lambda report: None)
    record = read_record(study.root, TRIAL)
    assert record is not None
    return record


def trials_stage(study: Study) -> ResumableStage:
    features = ResumableStage(study.root, "features", {"clips": "x"}, ("features",), result="features/train")
    return _trials_stage(study, features, clips_stage(study, MANIFEST.empty_table()), {})


def test_a_trial_goes_on_and_ends_as_if_it_had_not_ended(tmp_path: Path) -> None:
    before, grown = (study_of(tmp_path / "grown", epochs) for epochs in (2, 4))
    assert trials_stage(before).begin(redo=False)
    record = run_trial(before)
    trials_stage(before).finish()
    assert [len(record.values) for record in present_records(before)] == [2]
    assert present_records(grown) == [], "it has epochs left"
    assert trials_stage(grown).begin(redo=False)
    whole = run_trial(study_of(tmp_path / "whole", 4))
    # From the state and not from the start: the first value of it is one of our own.
    location = trial_location(grown.root, TRIAL, layout.STATE)
    state = torch.load(location, weights_only=True)
    torch.save(state | {"values": [0.125, *state["values"][1:]]}, location)
    record = run_trial(grown)
    assert (record.values[0], *record.values[1:]) == (0.125, *whole.values[1:])
    assert same_training(trial_location(grown.root, TRIAL), trial_location(whole_root(tmp_path), TRIAL))
    assert present_records(grown) == [record]
    # Without its state it begins again, to the same end.
    storage.delete(location)
    more, longer = study_of(tmp_path / "grown", 5), study_of(tmp_path / "whole", 5)
    assert run_trial(more).values == run_trial(longer).values


def whole_root(tmp_path: Path) -> str:
    return str(tmp_path / "whole")


def test_a_trial_that_ended_by_itself_has_nothing_more_to_do(tmp_path: Path) -> None:
    study = study_of(tmp_path, 6)
    records = {
        name: Record(*TRIAL, status=status, values=(0.5,) * n, epochs=epochs)
        for name, status, n, epochs in (
            ("stopped", "stopped", 2, 4), ("patient", "done", 3, 4), ("short", "done", 4, 4), ("whole", "done", 6, 6),
            ("of a release", "done", 4, None),
        )
    }  # fmt: skip
    over = {}
    for name, record in records.items():
        write_record(study.root, record)
        over[name] = bool(present_records(study))
    assert over == {name: name != "short" for name in records}
    # A record of a release does not say how many epochs it was to have, the mark of the search does.
    marked = trials_stage(study_of(tmp_path, 4))
    marked.begin(redo=False)
    marked.finish()
    note_epochs(study, trials_stage(study))
    assert present_records(study) == []


def test_a_search_says_why_it_cannot_go_on_and_keeps_the_states_of_the_best(tmp_path: Path) -> None:
    cosine = {"schedule": "warmup_cosine", "warmup_epochs": 0}
    stage = trials_stage(study_of(tmp_path, 2, **cosine))
    stage.begin(redo=False)
    write_record(str(tmp_path), Record(*TRIAL, status="done", values=(0.5, 0.6), epochs=2))
    with pytest.raises(StudyError, match=r"cannot go on from epoch 2: with train\.schedule 'warmup_cosine'"):
        trials_stage(study_of(tmp_path, 3, **cosine)).begin(redo=False)
    study = study_of(tmp_path, 2)
    study = study.model_copy(update={"search": study.search.model_copy(update={"mask_ratios": (0.3, 0.4, 0.5, 0.6)})})
    ranked = [RankedCell(Cell(ratio, 4), ratio, None, 1) for ratio in (0.6, 0.5, 0.4, 0.3)]
    records = [Record(cell.mask_ratio, 4, 0, (), "done", values=(mean,), epochs=2) for cell, mean, *_ in ranked]
    for record in records:
        storage.write_bytes(trial_location(study.root, record.trial, layout.STATE), b"")
    _keep_models(study, records, ranked)
    assert [storage.exists(trial_location(study.root, record.trial, layout.STATE)) for record in records] == [
        True, True, True, False,
    ]  # fmt: skip
