"""What a search tries and what came of it: cells, trials, and the record that each finished trial leaves.

A cell is a mask ratio with a patch size. A trial is a cell with a seed: one training of the MAE. Each trial has a
folder `search/trials/<name>` below the study's root. While the trial runs, the folder holds `state.pt`, from which the
trial goes on after a kill, and the note `stop` once the scheduler stops the trial early; in the end `record.json`, the
scores of the test clips, `scores.parquet`, and all that a trained model's folder holds. A trial with a record is never
run again.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import NamedTuple

from faithad import storage
from faithad.config.file import validated
from faithad.config.sections import Train
from faithad.config.study import Study
from faithad.errors import ConfigError
from faithad.runs import layout
from faithad.runs.marks import read_mark

MODEL = "mae"

# How each objective is compared. `validation_loss` is the error at hidden cells: how many are hidden changes how hard
# they are to predict, so losses of different mask ratios are not the same quantity, and the lowest ratio is favoured.
MODES = {"proxy_auc": "max", "validation_loss": "min", "test_auc": "max"}

# Of a drawn mask ratio.
RATIO_DIGITS = 4

_NAME = re.compile(r"r(?P<mask_ratio>[0-9.e-]+)-p(?P<patch>[0-9]+)-s(?P<seed>[0-9]+)")


class Trial(NamedTuple):
    mask_ratio: float
    patch: int
    seed: int

    @property
    def name(self) -> str:
        return f"r{self.mask_ratio}-p{self.patch}-s{self.seed}"

    @classmethod
    def named(cls, name: str) -> Trial | None:
        """The trial of a name, None if it is not a trial's."""
        match = _NAME.fullmatch(name)
        return cls(float(match["mask_ratio"]), int(match["patch"]), int(match["seed"])) if match else None


@dataclass(frozen=True)
class Record:
    """What came of a trial.

    Attributes:
        mask_ratio: of the training.
        patch: of the training.
        seed: of the training.
        status: done, stopped (by the scheduler, early) or failed (it diverged in its first epoch).
        reason: why it failed.
        values: the objective of the best weights so far, after each epoch; None before there were any.
        proxy_auc: of the best weights.
        validation_loss: of the best weights.
        best_epoch: the epoch of the best weights, counted from 1.
        diverged_epochs: how many epochs diverged; after the first the trial went back to its best one.
        duration_s: of all epochs.
    """

    mask_ratio: float
    patch: int
    seed: int
    status: str
    reason: str | None = None
    values: tuple[float | None, ...] = ()
    proxy_auc: float | None = None
    validation_loss: float | None = None
    best_epoch: int | None = None
    diverged_epochs: int = 0
    duration_s: float = 0.0

    @property
    def trial(self) -> Trial:
        return Trial(self.mask_ratio, self.patch, self.seed)

    @property
    def value(self) -> float | None:
        """The objective of the best weights."""
        return self.values[-1] if self.values else None


def grid_trials(study: Study) -> list[Trial]:
    """All trials of the grid: every cell with the first seed, then with the next one."""
    cells = [(ratio, patch) for ratio in study.search.mask_ratios for patch in study.search.patches]
    return [Trial(ratio, patch, seed) for seed in study.seeds for ratio, patch in cells]


def all_trials(study: Study) -> list[Trial]:
    """As many trials as the search has; which cells they are is drawn later where `search.algorithm` is `optuna`."""
    grid, search = grid_trials(study), study.search
    if search.algorithm == "grid":
        return grid
    return [grid[0]._replace(seed=seed) for _ in range(search.trials) for seed in study.seeds]


def is_present(study: Study, trial: Trial) -> bool:
    """Whether a trial belongs to the search as it is configured now; others are those of an earlier configuration."""
    search = study.search
    if trial.seed not in study.seeds or trial.patch not in search.patches:
        return False
    if search.algorithm == "grid":
        return trial.mask_ratio in search.mask_ratios
    return min(search.mask_ratios) <= trial.mask_ratio <= max(search.mask_ratios)


def trial_train(study: Study) -> Train:
    """How the workers of trials are spread, as a study's section `train` says it of trainings."""
    search, workers = study.search, study.train.workers
    share = {
        "cpus_per_worker": search.cpus_per_trial / workers,
        "gpus_per_worker": search.gpus_per_trial / workers,
        "trainings_at_once": search.trials_at_once,
    }
    return study.train.model_copy(update=share)


def cell_study(study: Study, mask_ratio: float, patch: int) -> Study:
    """The study that trains the MAE of one cell.

    Raises:
        ConfigError: the patch does not fit the spectrograms, or the ratio hides no patch.
    """
    values = json.loads(study.model_dump_json())
    values["models"] = [MODEL, *(model for model in values["models"] if model != MODEL)]
    values["train"] |= {"mask_ratio": mask_ratio, "patch": patch}
    return validated(Study, values, name=f"mask_ratio {mask_ratio}, patch {patch}")


def trial_study(study: Study, mask_ratio: float, patch: int) -> Study:
    """The study of a cell whose trainings get what trials get: other numbers of threads round sums differently.

    Raises:
        ConfigError: see `cell_study`.
    """
    cell, spread = cell_study(study, mask_ratio, patch), trial_train(study)
    share = {"cpus_per_worker": spread.cpus_per_worker, "gpus_per_worker": spread.gpus_per_worker}
    return cell.model_copy(update={"train": cell.train.model_copy(update=share)})


def check_search(study: Study) -> None:
    """Refuse an impossible search as a whole, before any part of it starts.

    Raises:
        ConfigError: cells are impossible, or settings of the search do not fit each other; the error lists them all.
    """
    search, problems = study.search, list[str]()
    for ratio in search.mask_ratios:
        for patch in search.patches:
            try:
                cell_study(study, ratio, patch)
            except ConfigError as error:
                problems += str(error).splitlines()
    if MODEL not in study.models:
        problems.append(f"models: the search is for the MAE, add {MODEL!r} to {list(study.models)}")
    if search.algorithm == "optuna" and len(search.mask_ratios) < 2:
        problems.append(
            f"search.mask_ratios: algorithm 'optuna' draws from the range that they span, found {search.mask_ratios}"
        )
    n_cells = (round((max(search.mask_ratios) - min(search.mask_ratios)) * 10**RATIO_DIGITS) + 1) * len(search.patches)
    if search.algorithm == "optuna" and len(search.mask_ratios) > 1 and 2 * search.trials > n_cells:
        problems.append(
            f"search.trials: {search.trials} drawn from {n_cells} pairs, of ratios with {RATIO_DIGITS} digits; lower "
            f"it to {n_cells // 2}, or widen search.mask_ratios"
        )
    if search.scheduler == "asha" and search.grace_epochs > study.train.epochs:
        problems.append(
            f"search.grace_epochs: {search.grace_epochs} may not exceed train.epochs ({study.train.epochs}) with "
            "scheduler 'asha'"
        )
    gpus = search.gpus_per_trial / study.train.workers
    if gpus % 1 and (gpus > 1 or study.train.workers > 1):
        problems.append(
            f"search.gpus_per_trial: {search.gpus_per_trial:g} shared by train.workers ({study.train.workers}) is "
            f"{gpus:g} each; each of several workers needs whole GPUs, and one worker a share of one or whole ones"
        )
    if problems:
        raise ConfigError("\n".join(["The search is impossible:", *(f"  {line}" for line in problems)]))


def trial_location(root: str, trial: Trial, *parts: str) -> str:
    """The folder of a trial, or something in it."""
    return storage.join(root, layout.trial(trial.name), *parts)


def write_record(root: str, record: Record) -> None:
    text = json.dumps(asdict(record), indent=1, allow_nan=False)
    storage.write_text(trial_location(root, record.trial, layout.TRIAL_RECORD), text)


def read_record(root: str, trial: Trial) -> Record | None:
    """The record of a trial, None before it is finished, or where a power cut has damaged it."""
    values = read_mark(trial_location(root, trial, layout.TRIAL_RECORD))
    return None if values is None else Record(**values | {"values": tuple(values["values"])})


def read_records(root: str) -> list[Record]:
    """The records of all finished trials, in the order of `begun_trials`."""
    return [record for trial in begun_trials(root) if (record := read_record(root, trial)) is not None]


def begun_trials(root: str) -> list[Trial]:
    """All trials that left a file, ordered by mask ratio, patch and seed."""
    files = storage.list_files(storage.join(root, layout.TRIALS), suffixes=[".pt", ".json"])
    trials = {Trial.named(relative.split("/")[0]) for relative, _ in files}
    return sorted(trial for trial in trials if trial is not None)
