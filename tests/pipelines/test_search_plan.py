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

from faithad import parquet, storage
from faithad.config.study import Study, load_study, parse_study
from faithad.errors import ConfigError
from faithad.pipelines.search.plan import (
    Cell,
    Trial,
    cell_study,
    check_search,
    grid_trials,
    is_present,
    largest_study,
    scores_to_compare,
    trial_location,
    tried_values,
    with_score,
)
from faithad.pipelines.search.records import Record, begun_trials, read_record, write_record, write_settings
from faithad.pipelines.search.run import ranked_cells
from faithad.pipelines.search.tuning import GentleASHA, ShowProgress, TreeParzenCells
from faithad.pipelines.search.verdict import write_verdict
from faithad.runs import layout
from faithad.scoring.choices import PAPER, robust


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


@pytest.mark.parametrize("name", ["", "r0.3-p4", "mae-0", ".r0.3-p4-s0", "r-p4-s0", "r0.3-p4-s0-0123abcd"])
def test_what_is_no_trial_has_no_name_of_one(name: str) -> None:
    assert Trial.named(name) is None


def test_a_cell_is_the_study_with_its_ratio_and_patch_and_nothing_else_changed() -> None:
    study = study_of()
    cell = cell_study(study, Cell(0.75, 8))
    assert (cell.train.mask_ratio, cell.train.patch) == (0.75, 8)
    assert cell.n_frames("mae") == 96
    back = cell.model_copy(update={"train": study.train, "models": study.models})
    assert back == study
    assert parse_study(cell.to_yaml(), name="best.yaml") == cell
    only_ae = study.model_copy(update={"models": ("ae",)})
    assert cell_study(only_ae, Cell(0.3, 4)).models == ("mae", "ae")


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
    with pytest.raises(ConfigError, match=r"search\.trials: 20 drawn from 22 combinations.*lower it to 11"):
        check_search(study_of(mask_ratios=[0.3, 0.301], patches=[4, 8], algorithm="optuna"))
    check_search(study_of(mask_ratios=[0.3], patches=[2, 4, 8]))
    with pytest.raises(ConfigError, match=r"models: the search is for the MAE, add 'mae' to \['ae'\]"):
        check_search(study_of().model_copy(update={"models": ("ae",)}))


SPACE: dict[str, Any] = {
    "train": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}, "batch_size": [8, 16], "patience": {"uniform": [3, 9]}},
    "model": {"dropout": {"uniform": [0.0, 0.3]}, "width": [1, 2]},
}


def test_a_grid_has_every_combination_of_the_choices() -> None:
    space = {"train": {"learning_rate": [1e-3, 3e-3]}, "model": {"width": [2, 1]}}
    trials = grid_trials(study_of(mask_ratios=[0.3], patches=[4, 8], space=space))
    rate, width = ("train.learning_rate", 3e-3), ("model.width", 2)
    settings: list[Any] = [(width,), (width, rate), (), (rate,)]
    # What is the study's own value is no further setting.
    assert trials == [Trial(0.3, patch, seed, some) for seed in (0, 1) for patch in (4, 8) for some in settings]
    assert len({trial.name for trial in trials}) == len(trials)
    assert trials[2].name == "r0.3-p4-s0"
    cell = cell_study(study_of(space=space), Cell(0.3, 8, (width, rate)))
    assert (cell.train.learning_rate, cell.model.width, cell.model.depth) == (3e-3, 2, 1)
    assert parse_study(cell.to_yaml(), name="best.yaml") == cell
    assert largest_study(study_of(space=space)).model.width == 2


@pytest.mark.parametrize(
    ("space", "messages"),
    [
        ({"train": {"lerning_rate": [1]}}, ["train.lerning_rate: unknown; did you mean 'learning_rate'?"]),
        ({"audit": {"maps": [1]}}, ["audit: allowed: train, model, each with the settings to try"]),
        ({"train": {"mask_ratio": [0.1]}}, ["train.mask_ratio: is no setting to try: search.mask_ratios says"]),
        (
            {"train": {"epochs": [2], "learning_rate": [0, 0.1]}, "model": {"width": [1.5], "dropout": []}},
            [
                "train.epochs: is no setting to try: trials are compared after equally many epochs",
                "train.learning_rate: must be above 0, found 0",
                "model.width: must be a whole number, found 1.5",
                "model.dropout: must be a list of choices, {uniform: [low, high]} or {log_uniform: [low, high]}",
            ],
        ),
        (
            {"train": {"batch_size": {"uniform": [8, 8]}, "weight_decay": {"log_uniform": [0, 1]}}},
            ["train.batch_size: uniform needs two bounds that rise", "train.weight_decay: log_uniform needs two"],
        ),
        ({"train": {"schedule": {"uniform": ["warm_restarts", "warmup_cosine"]}}}, ["its values are names"]),
        ({"train": {"patience": [3, 3]}}, ["train.patience: its choices must be different, found [3, 3]"]),
        ({"train": {"patience": {"uniform": [3, 9]}}}, ["train.patience: is a range, from which algorithm 'optuna'"]),
    ],
)
def test_wrong_settings_of_a_space_are_told_with_their_keys(space: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        study_of(space=space)
    for message in messages:
        assert f"search.space.{message}" in str(error.value) or message in str(error.value)
    assert f"has {len(messages)} problem" in str(error.value)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("best", "search.scores: must be all, or a list of scores such as [paper, robust], found 'best'"),
        (["nice"], "search.scores: allowed: paper, robust, or a choice of residual"),
        (["paper", {"pooling": "mean"}, "paper"], "search.scores: must be different scores"),
        ([{"residual": "context"}], "search.scores context, none, mean, none"),
    ],
)
def test_wrong_scores_are_told(scores: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_search(study_of(scores=scores))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            ["frame_pca", "mae"],
            "search.members.1: allowed: frame_pca, frame_ridge, which are compared with and without",
        ),
        (["frame_pca", "frame_pca"], "search.members: must be one or more different values"),
        ("frame_pca", "search.members: must be a list"),
    ],
)
def test_wrong_members_are_told(members: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        study_of(members=members)
    assert message in str(error.value)


def test_linear_members_take_the_reference_of_the_features() -> None:
    study = study_of(members=["frame_pca"])
    values = yaml.safe_load(study.to_yaml())
    values["features"]["reference"] = "clip"
    assert parse_study(yaml.safe_dump(values), name="again").search.members == ("frame_pca",)
    values["search"]["members"] = []
    with pytest.raises(ConfigError, match="models lists none of them"):
        parse_study(yaml.safe_dump(values), name="again")


def test_scores_are_of_the_mae_alone() -> None:
    study = study_of(scores="all")
    assert parse_study(study.to_yaml(), name="again") == study
    scores = scores_to_compare(study)
    assert len(scores) == 2 * 2 * 4 * 2
    assert {score.residual for score in scores} == {"reconstruction", "inpainting"}
    assert scores_to_compare(study_of(scores=["robust", "paper"])) == [robust("mae"), PAPER]
    of_score = with_score(study, robust("mae"))
    assert (of_score.models, of_score.score_of("mae")) == (("mae",), robust("mae"))
    assert parse_study(of_score.to_yaml(), name="best.yaml") == of_score
    with pytest.raises(ConfigError, match=r"search\.scores (.|\n)* alarm\.rule: 'gamma' is for scores") as error:
        check_search(study.model_copy(update={"alarm": study.alarm.model_copy(update={"rule": "gamma"})}))
    assert str(error.value).count("gamma") == 1, "of 16 scores, told once"


def test_settings_that_do_not_fit_each_other_are_told_before_a_grid_starts_and_never_drawn() -> None:
    rates = {"learning_rate": [1e-3, 1e-5], "minimum_learning_rate": [1e-4, 0.0]}
    with pytest.raises(ConfigError, match=r"train\.learning_rate 1e-05, train\.minimum_learning_rate 0\.0001") as error:
        check_search(study_of(mask_ratios=[0.3], patches=[4], space={"train": rates}))
    assert str(error.value).count("may not exceed") == 1
    study = study_of(
        mask_ratios=[0.3, 0.5], patches=[4], algorithm="optuna", trials=30,
        space={"train": {"learning_rate": [1e-3, 1e-5], "minimum_learning_rate": {"log_uniform": [1e-6, 1e-4]}}},
    )  # fmt: skip
    check_search(study)
    for trial in cells_of(study, [], [], 60):
        cell_study(study, trial.cell)


@pytest.mark.parametrize("n_done", [0, 3, 12])
def test_optuna_draws_settings_from_their_ranges_and_goes_on_after_a_kill(n_done: int) -> None:
    study = study_of(mask_ratios=[0.3], patches=[4], space=SPACE, algorithm="optuna", trials=12)
    check_search(study)
    trials = cells_of(study, [], [], 24)
    assert all(is_present(study, trial) for trial in trials)
    assert not is_present(study_of(mask_ratios=[0.3], patches=[4]), trials[0])
    values = [tried_values(study, trial.settings) for trial in trials[::2]]
    rates = [value["train.learning_rate"] for value in values]
    assert all(isinstance(rate, float) and 1e-4 <= rate <= 1e-2 for rate in rates)
    assert all(f"{rate:.4g}" == f"{rate:.12g}" for rate in rates), "texts hold all digits"
    assert {value["model.width"] for value in values} == {1, 2}
    assert all(isinstance(value["train.patience"], int) for value in values)
    known = sorted((record_of(trial, value_of(trial)) for trial in trials[:n_done]), key=lambda record: record.trial)
    assert cells_of(study, known, [record.trial for record in known], 24 - n_done) == trials[n_done:]


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
    further = record_of(Trial(0.3, 4, 1, (("model.width", 2), ("train.learning_rate", 1e-5))), 0.5)
    write_settings(root, further.trial)
    write_record(root, further)
    assert read_record(root, further.trial) == further
    # A trial that was killed before it said what it is, and one whose settings were changed.
    storage.write_bytes(f"{root}/search/trials/r0.3-p4-s1-0123abcd/state.pt", b"")
    storage.write_bytes(f"{root}/search/trials/r0.5-p8-s0/state.pt", b"")
    assert read_record(root, record.trial) == record
    assert read_record(root, Trial(0.5, 8, 0)) is None
    assert begun_trials(root) == [record.trial, further.trial, Trial(0.5, 8, 0)]


def test_the_best_cell_is_best_on_average_and_not_by_one_lucky_seed() -> None:
    found = [
        record_of(Trial(0.3, 4, 0), 0.70),
        record_of(Trial(0.3, 4, 1), 0.80),
        record_of(Trial(0.5, 4, 0), 0.95),
        record_of(Trial(0.5, 4, 1), 0.40),
    ]
    best = ranked_cells(study_of(), found)[0]
    assert best.cell == Cell(0.3, 4)
    assert best.mean == pytest.approx(0.75)
    assert best.std == pytest.approx(0.0707, abs=1e-4)
    assert best.n_seeds == 2
    least = ranked_cells(study_of(objective="validation_loss"), found)[0]
    assert least.cell == Cell(0.5, 4)


def test_of_equal_cells_the_smaller_ratio_then_the_smaller_patch() -> None:
    cells = [(0.5, 4), (0.3, 8), (0.3, 4), (0.9, 4)]
    assert ranked_cells(study_of(), [record_of(Trial(*cell, 0), 0.7) for cell in cells])[0].cell == Cell(0.3, 4)


def test_a_cell_that_was_given_up_or_lacks_a_seed_wins_only_over_its_like() -> None:
    whole = [record_of(Trial(0.5, 4, seed), 0.6) for seed in (0, 1)]
    lacking = record_of(Trial(0.3, 4, 0), 0.9)
    given_up = [record_of(Trial(0.15, 4, seed), 0.9, status="stopped") for seed in (0, 1)]
    failed = record_of(Trial(0.3, 8, 0), status="failed")
    assert ranked_cells(study_of(), [lacking, *given_up, *whole, failed])[0].cell == Cell(0.5, 4)
    assert ranked_cells(study_of(), [lacking, failed])[0].cell == Cell(0.3, 4)


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
                parquet.write_table(table, location, schema=table.schema)

    def rows(chosen: Cell) -> list[dict[str, Any]]:
        write_verdict(study, records, labelled, chosen)
        found: list[dict[str, Any]] = parquet.read_table(f"{tmp_path}/summary/search_comparison.parquet").to_pylist()
        return found

    (row,) = rows(Cell(0.5, 4))
    assert (row["model_a"], row["model_b"]) == ("mask_ratio 0.5, patch 4", "mask_ratio 0.3, patch 4")
    assert (row["verdict"], row["n_recordings"], row["n_seeds"]) == ("yes", 30, 3)
    assert row["estimate"] > 0.3
    assert rows(Cell(0.3, 4)) == rows(Cell(0.75, 4)) == []


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
