"""What a search tries and what came of it: cells, trials, and the record that each finished trial leaves.

A cell is one mask ratio with one patch size, a trial is one cell with one seed: one training of the MAE. Below the
study's root each trial has a folder `search/trials/<name>`. While it runs this holds `state.pt`, from which it goes on
after a kill, and, where the scheduler gave it up, the note `stop`; in the end `record.json` (and the scores of the
test clips, `scores.parquet`). A trial with a record is never run again.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import NamedTuple

from faithad import storage
from faithad.config.file import validated
from faithad.config.study import Study
from faithad.errors import ConfigError
from faithad.runs import layout

MODEL = "mae"

# How each objective is compared. `validation_loss` is the error at hidden cells: how many are hidden changes how hard
# they are to tell, so losses of different mask ratios are not the same quantity, and the least ratio is favoured.
MODES = {"proxy_auc": "max", "validation_loss": "min", "test_auc": "max"}

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
        """The trial of a name, None where it is no trial's."""
        found = _NAME.fullmatch(name)
        return cls(float(found["mask_ratio"]), int(found["patch"]), int(found["seed"])) if found else None


@dataclass(frozen=True)
class Record:
    """What became of a trial.

    Attributes:
        mask_ratio: of the training.
        patch: of the training.
        seed: of the training.
        status: done, stopped (given up early) or failed (it diverged before it had learned anything).
        reason: why it failed.
        values: the objective by the best weights so far, after each epoch; None before there were any.
        proxy_auc: of the best weights.
        validation_loss: of the best weights.
        best_epoch: that the best weights come from, counted from 1.
        diverged_epochs: how many epochs diverged; after the first the trial went back to its best one.
        duration_s: of all epochs.
    """

    mask_ratio: float
    patch: int
    seed: int
    status: str
    reason: str | None
    values: tuple[float | None, ...]
    proxy_auc: float | None
    validation_loss: float | None
    best_epoch: int | None
    diverged_epochs: int
    duration_s: float

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


def cell_study(study: Study, mask_ratio: float, patch: int) -> Study:
    """The study that trains the MAE of one cell.

    Raises:
        ConfigError: the patch does not fit the spectrograms, or the ratio hides no patch.
    """
    values = json.loads(study.model_dump_json())
    values["models"] = [MODEL, *(model for model in values["models"] if model != MODEL)]
    values["train"] |= {"mask_ratio": mask_ratio, "patch": patch}
    return validated(Study, values, name=f"mask_ratio {mask_ratio}, patch {patch}", placeholders={})


def check_search(study: Study) -> None:
    """Refuse a search that cannot be run as a whole, before anything of it starts.

    Raises:
        ConfigError: cells are impossible, or settings of the search do not fit each other; all are told.
    """
    search, problems = study.search, []
    for ratio in search.mask_ratios:
        for patch in search.patches:
            try:
                cell_study(study, ratio, patch)
            except ConfigError as error:
                problems += [line.strip() for line in str(error).splitlines() if not line.startswith("  ")]
                problems += [f"  {line.strip()}" for line in str(error).splitlines() if line.startswith("  ")]
    if MODEL not in study.models:
        problems.append(f"models: the search is for the MAE, add {MODEL!r} to {list(study.models)}")
    if search.algorithm == "optuna" and len(search.mask_ratios) < 2:
        problems.append(
            f"search.mask_ratios: algorithm 'optuna' draws from the range that they span, found {search.mask_ratios}"
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


def trials_folder(root: str) -> str:
    return storage.join(root, layout.TRIALS)


def trial_folder(root: str, trial: Trial) -> str:
    return storage.join(trials_folder(root), trial.name)


def record_location(root: str, trial: Trial) -> str:
    return storage.join(trial_folder(root, trial), "record.json")


def write_record(root: str, record: Record) -> None:
    storage.write_text(record_location(root, record.trial), json.dumps(asdict(record), indent=1, allow_nan=False))


def read_record(root: str, trial: Trial) -> Record | None:
    """What became of a trial, None while that is open."""
    location = record_location(root, trial)
    if not storage.exists(location):
        return None
    values = json.loads(storage.read_text(location))
    return Record(**values | {"values": tuple(values["values"])})


def begun_trials(root: str) -> list[Trial]:
    """All trials that left anything, in the order of their values."""
    files = storage.list_files(trials_folder(root), suffixes=[".pt", ".json"])
    found = {Trial.named(relative.split("/")[0]) for relative, _ in files}
    return sorted(trial for trial in found if trial is not None)
