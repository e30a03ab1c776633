"""What a search tries, what it refuses, how it chooses, and what its scheduler and sampler remember; without Ray."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from faithad import storage
from faithad.config.study import Study, load_study, parse_study
from faithad.errors import ConfigError
from faithad.pipelines.search.plan import (
    Record,
    Trial,
    begun_trials,
    cell_study,
    check_search,
    grid_trials,
    read_record,
    trial_location,
    write_record,
)
from faithad.pipelines.search.run import ranked_cells
from faithad.pipelines.search.tuning import GentleASHA, ShowProgress, TreeParzenCells
from faithad.pipelines.search.verdict import write_verdict
from faithad.runs import layout


def study_of(root: str = "/nowhere", **search: Any) -> Study:
    values = {
        "name": "small",
        "root": root,
        "seeds": [0, 1],
        "data": {"root": "mill", "train": ["train"], "test": ["test"]},
        "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16},
        "train": {"epochs": 9},
        "search": search,
    }
    return parse_study(yaml.safe_dump(values), name="small")


def record_of(trial: Trial, *values: float | None, status: str = "done") -> Record:
    return Record(
        *trial,
        status=status,
        reason=None,
        values=values,
        proxy_auc=None,
        validation_loss=None,
        best_epoch=1,
        diverged_epochs=0,
        duration_s=1.0,
    )


def test_the_grid_goes_through_all_cells_with_one_seed_before_the_next() -> None:
    trials = grid_trials(study_of(mask_ratios=[0.3, 0.5], patches=[4, 8]))
    cells = [(0.3, 4), (0.3, 8), (0.5, 4), (0.5, 8)]
    assert trials == [Trial(*cell, seed) for seed in (0, 1) for cell in cells]


@pytest.mark.parametrize("trial", [Trial(0.3, 4, 0), Trial(0.123456789, 16, 2**63 - 1), Trial(1e-5, 8, 7)])
def test_a_trial_is_found_again_by_its_name(trial: Trial) -> None:
    assert Trial.named(trial.name) == trial


@pytest.mark.parametrize("name", ["", "r0.3-p4", "mae-0", ".r0.3-p4-s0", "r-p4-s0"])
def test_what_is_no_trial_has_no_name_of_one(name: str) -> None:
    assert Trial.named(name) is None


def test_a_cell_is_the_study_with_its_ratio_and_patch_and_nothing_else_changed() -> None:
    study = study_of()
    cell = cell_study(study, 0.75, 8)
    assert (cell.train.mask_ratio, cell.train.patch) == (0.75, 8)
    assert cell.n_frames("mae") == 96
    back = cell.model_copy(update={"train": study.train, "models": study.models})
    assert back == study
    assert parse_study(cell.to_yaml(), name="best.yaml") == cell
    only_ae = study.model_copy(update={"models": ("ae",)})
    assert cell_study(only_ae, 0.3, 4).models == ("mae", "ae")


def test_all_impossible_cells_and_settings_are_told_at_once() -> None:
    study = study_of(mask_ratios=[0.3, 0.001], patches=[4, 5], algorithm="optuna", scheduler="asha", grace_epochs=10)
    with pytest.raises(ConfigError) as error:
        check_search(study)
    told = str(error.value)
    assert "mask_ratio 0.3, patch 5" in told
    assert "mask_ratio 0.001, patch 4" in told
    assert "5 must divide features.n_mels (16)" in told
    assert "of 100 patches that hides none" in told
    assert "search.grace_epochs: 10 may not exceed train.epochs (9)" in told
    assert "mask_ratio 0.3, patch 4" not in told
    with pytest.raises(ConfigError, match=r"search\.mask_ratios: algorithm 'optuna' draws from the range"):
        check_search(study_of(mask_ratios=[0.3], algorithm="optuna"))
    with pytest.raises(ConfigError, match=r"search\.trials: 20 drawn from 22 pairs.*lower it to 11"):
        check_search(study_of(mask_ratios=[0.3, 0.301], patches=[4, 8], algorithm="optuna"))
    check_search(study_of(mask_ratios=[0.3], patches=[2, 4, 8]))
    with pytest.raises(ConfigError, match=r"models: the search is for the MAE, add 'mae' to \['ae'\]"):
        check_search(study_of().model_copy(update={"models": ("ae",)}))


def test_the_paper_s_grid_is_the_default_and_fits_its_spectrograms() -> None:
    config = str(Path(__file__).parents[2] / "configs" / "search.yaml")
    study = load_study(config)
    assert len(grid_trials(study)) == 5 * 2 * len(study.seeds)
    check_search(study)
    check_search(load_study(config, overrides=["search.patches=[4,16]"]))


def test_records_are_read_as_they_were_written(tmp_path: Any) -> None:
    root = str(tmp_path)
    record = record_of(Trial(0.3, 4, 1), None, 0.1 + 0.2)
    write_record(root, record)
    storage.write_bytes(f"{root}/search/trials/r0.5-p8-s0/state.pt", b"")
    assert read_record(root, record.trial) == record
    assert read_record(root, Trial(0.5, 8, 0)) is None
    assert begun_trials(root) == [Trial(0.3, 4, 1), Trial(0.5, 8, 0)]


def test_the_best_cell_is_best_on_average_and_not_by_one_lucky_seed() -> None:
    found = [
        record_of(Trial(0.3, 4, 0), 0.70),
        record_of(Trial(0.3, 4, 1), 0.80),
        record_of(Trial(0.5, 4, 0), 0.95),
        record_of(Trial(0.5, 4, 1), 0.40),
    ]
    best = ranked_cells(study_of(), found)[0]
    assert best[:2] == (0.3, 4)
    assert best.mean == pytest.approx(0.75)
    assert best.std == pytest.approx(0.0707, abs=1e-4)
    assert best.n_seeds == 2
    least = ranked_cells(study_of(objective="validation_loss"), found)[0]
    assert least[:2] == (0.5, 4)


def test_of_equal_cells_the_smaller_ratio_then_the_smaller_patch() -> None:
    cells = [(0.5, 4), (0.3, 8), (0.3, 4), (0.9, 4)]
    assert ranked_cells(study_of(), [record_of(Trial(*cell, 0), 0.7) for cell in cells])[0][:2] == (0.3, 4)


def test_a_cell_that_was_given_up_or_lacks_a_seed_wins_only_over_its_like() -> None:
    whole = [record_of(Trial(0.5, 4, seed), 0.6) for seed in (0, 1)]
    lacking = record_of(Trial(0.3, 4, 0), 0.9)
    given_up = [record_of(Trial(0.15, 4, seed), 0.9, status="stopped") for seed in (0, 1)]
    failed = record_of(Trial(0.3, 8, 0), status="failed")
    assert ranked_cells(study_of(), [lacking, *given_up, *whole, failed])[0][:2] == (0.5, 4)
    assert ranked_cells(study_of(), [lacking, failed])[0][:2] == (0.3, 4)


def test_the_chosen_cell_is_compared_with_the_paper_s_by_the_rule_of_verdicts(tmp_path: Path) -> None:
    study = study_of(str(tmp_path))
    clips = [f"clip {k:02d}" for k in range(60)]
    labels = [k % 2 for k in range(60)]
    labelled = pa.table({"clip_id": clips, "label": labels, "recording": [f"recording {k // 2}" for k in range(60)]})
    generator = np.random.default_rng(0)
    records = []
    for ratio, gain in ((0.3, 0.0), (0.5, 3.0), (0.75, 3.0)):
        for seed in range(3):
            trial = Trial(ratio, 4, seed)
            records.append(record_of(trial, gain))
            scores = np.array(labels) * gain + generator.normal(size=60)
            table = pa.table({"clip_id": clips, "score": scores})
            if ratio != 0.75:  # a trial that was not tested
                location = trial_location(study.root, trial, layout.TRIAL_SCORES)
                storage.write_table(table, location, schema=table.schema)

    def rows(chosen: tuple[float, int]) -> list[dict[str, Any]]:
        write_verdict(study, records, labelled, chosen)
        found: list[dict[str, Any]] = storage.read_table(f"{tmp_path}/summary/search_comparison.parquet").to_pylist()
        return found

    (row,) = rows((0.5, 4))
    assert (row["model_a"], row["model_b"]) == ("mask_ratio 0.5, patch 4", "mask_ratio 0.3, patch 4")
    assert (row["verdict"], row["n_recordings"], row["n_seeds"]) == ("yes", 30, 3)
    assert row["estimate"] > 0.3
    assert rows((0.3, 4)) == rows((0.75, 4)) == []


def test_asha_asks_a_trial_to_end_that_falls_behind_one_of_an_earlier_run(tmp_path: Any) -> None:
    study = study_of(str(tmp_path), scheduler="asha", grace_epochs=2, reduction_factor=2)
    scheduler = GentleASHA(study, [record_of(Trial(0.3, 4, 0), 0.5, 0.9, 0.9)])

    def report(trial: Trial, epoch: int, value: float) -> bool:
        running = SimpleNamespace(trial_id=trial.name, config={"trial": tuple(trial)})
        if epoch == 1:
            scheduler.on_trial_add(None, running)
        assert scheduler.on_trial_result(None, running, {"epoch": epoch, "value": value}) == "CONTINUE"
        return storage.exists(trial_location(study.root, trial, layout.TRIAL_STOP))

    worse, better, other_seed = Trial(0.5, 4, 0), Trial(0.75, 4, 0), Trial(0.5, 4, 1)
    assert not report(worse, 1, 0.1)
    assert report(worse, 2, 0.8)
    assert report(worse, 3, 0.8)
    assert not report(better, 1, 0.1)
    assert not report(better, 2, 0.95)
    assert not report(other_seed, 1, 0.1)
    assert not report(other_seed, 2, 0.2), "seeds differ by more than cells do"


def cells_of(study: Study, known: list[Record], begun: list[Trial], n: int) -> list[Trial]:
    """The next trials of a search whose trials run one after the other."""
    searcher, trials = TreeParzenCells(study, known, begun), list[Trial]()
    for number in range(n):
        config = searcher.suggest(f"t{number}")
        assert isinstance(config, dict)
        trials.append(Trial(*config["trial"]))
        searcher.on_trial_complete(f"t{number}", {"value": value_of(trials[-1])})
    return trials


def value_of(trial: Trial) -> float:
    return 1 - abs(trial.mask_ratio - 0.3) - 0.01 * trial.seed


def test_the_sampler_finishes_what_was_begun_and_learns_from_what_is_finished() -> None:
    study = study_of(algorithm="optuna", trials=30, mask_ratios=[0.2, 0.8], patches=[4, 8])
    trials = cells_of(study, [], [], 60)
    assert [trial.seed for trial in trials] == [0, 1] * 30
    cells = [trial[:2] for trial in trials[::2]]
    assert cells == [trial[:2] for trial in trials[1::2]]
    assert len(set(cells)) == 30
    assert all(0.2 <= ratio <= 0.8 and patch in (4, 8) for ratio, patch in cells)
    assert sum(ratio < 0.4 for ratio, _ in cells[20:]) >= 8, "random cells are behind, and better ratios are drawn"


@pytest.mark.parametrize("n_done", [0, 1, 2, 3, 25, 40, 51])
def test_a_killed_search_goes_on_with_the_draws_that_it_would_have_made(n_done: int) -> None:
    study = study_of(algorithm="optuna", trials=30, mask_ratios=[0.2, 0.8], patches=[4, 8])
    trials = cells_of(study, [], [], 60)
    # Records are read in the order of their names. The trial that was running when the search was killed has none.
    known = sorted((record_of(trial, value_of(trial)) for trial in trials[:n_done]), key=lambda record: record.trial)
    searcher = TreeParzenCells(study, known, sorted(trials[: n_done + 1]))
    assert searcher.n_trials == 60 - n_done
    assert cells_of(study, known, sorted(trials[: n_done + 1]), 60 - n_done) == trials[n_done:]


@pytest.mark.parametrize("objective", ["proxy_auc", "validation_loss"])
def test_the_progress_counts_all_trials_and_names_the_best_so_far(objective: str) -> None:
    tickers: dict[str, list[tuple[int, str]]] = {}

    def show(title: str, total: int) -> Any:
        notes = tickers.setdefault(f"{title} of {total}", [])
        return SimpleNamespace(update=lambda done, note="": notes.append((done, note)), close=lambda: None)

    known = [record_of(Trial(0.3, 4, 0), 0.8), record_of(Trial(0.3, 8, 0), None, status="failed")]
    progress = ShowProgress(show, study_of(objective=objective), 6, known)
    running = SimpleNamespace(config={"trial": (0.5, 4, 0)})
    for epoch, value in ((1, math.nan), (2, 0.7), (3, 0.9)):
        progress.on_trial_result(0, [], running, {"name": "r0.5-p4-s0", "epoch": epoch, "value": value})
    progress.on_trial_complete(0, [], running)
    progress.close()
    better = ("0.8 (r0.3-p4-s0)", "0.9 (r0.5-p4-s0)")
    best = [better[0]] * 3 + [better[1]] if objective == "proxy_auc" else [better[0]] * 2 + ["0.7 (r0.5-p4-s0)"] * 2
    reports = [f"r0.5-p4-s0 epoch {n}, {objective} {value}; " for n, value in ((1, "nan"), (2, 0.7), (3, 0.9))]
    lines = [f"{report}best so far {text}" for report, text in zip(["", *reports], best, strict=True)]
    assert tickers == {"search of 6": [(2, line) for line in lines] + [(3, f"best so far {best[-1]}")]}
