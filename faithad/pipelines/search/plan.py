"""What a search tries and what came of it: cells, trials, and the record that each finished trial leaves.

A cell is a mask ratio with a patch size, and with what `search.space` has in addition. A trial is a cell with a seed:
one training of the MAE. Each trial has a folder `search/trials/<name>` below the study's root, with `settings.json`
where its name does not say all. While the trial runs, the folder holds `state.pt`, from which the
trial goes on after a kill, and the note `stop` once the scheduler stops the trial early; in the end `record.json`, the
scores of the test clips, `scores.parquet`, and all that a trained model's folder holds. A trial with a record is never
run again.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from itertools import product
from typing import NamedTuple

from faithad import storage
from faithad.config.file import validated
from faithad.config.search import Range, Value
from faithad.config.sections import Train
from faithad.config.study import Study
from faithad.errors import ConfigError
from faithad.runs import layout
from faithad.scoring.choices import Score, all_scores, chosen_score

MODEL = "mae"

# How each objective is compared. `validation_loss` is the error at hidden cells: how many are hidden changes how hard
# they are to predict, so losses of different mask ratios are not the same quantity, and the lowest ratio is favoured.
MODES = {"proxy_auc": "max", "validation_loss": "min", "test_auc": "max"}

# The trials of this many cells, the best ones, keep their weights, and the states from which they can go on.
KEPT_CELLS = 3

# Of a drawn mask ratio.
RATIO_DIGITS = 4

# Of a drawn number of another setting: significant ones.
VALUE_DIGITS = 4

TRIAL_NAME = re.compile(r"r(?P<mask_ratio>[0-9.e-]+)-p(?P<patch>[0-9]+)-s(?P<seed>[0-9]+)(?:-(?P<digest>[0-9a-f]{8}))?")

# By name, in the order of the names.
Settings = tuple[tuple[str, Value], ...]


class Cell(NamedTuple):
    """What all trials of a cell have in common: all but the seed.

    `settings`: further settings, such as `train.learning_rate`, that are not the study's own, by name. So a trial stays
    the same when a search begins to try a setting, or another one.
    """

    mask_ratio: float
    patch: int
    settings: Settings = ()

    def __str__(self) -> str:
        return ", ".join([f"mask_ratio {self.mask_ratio:g}, patch {self.patch}", *_in_words(self.settings)])


class Trial(NamedTuple):
    mask_ratio: float
    patch: int
    seed: int
    settings: Settings = ()

    @property
    def cell(self) -> Cell:
        return Cell(self.mask_ratio, self.patch, self.settings)

    @property
    def name(self) -> str:
        """Its folder's. That of further settings ends with their digest; `settings.json` in it says which they are."""
        name = f"r{self.mask_ratio}-p{self.patch}-s{self.seed}"
        if not self.settings:
            return name
        return f"{name}-{hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()[:8]}"

    @property
    def title(self) -> str:
        """For the user: the name, and the further settings."""
        return f"{self.name} ({', '.join(_in_words(self.settings))})" if self.settings else self.name

    @classmethod
    def named(cls, name: str, settings: Settings = ()) -> Trial | None:
        """The trial of a name, None if it is not that of a trial with these settings."""
        match = TRIAL_NAME.fullmatch(name)
        if match is None:
            return None
        trial = cls(float(match["mask_ratio"]), int(match["patch"]), int(match["seed"]), settings)
        return trial if trial.name == name else None


def cell_of(study: Study, mask_ratio: float, patch: int, tried: Mapping[str, Value]) -> Cell:
    """The cell with these values of the settings in `search.space`."""
    settings = ((name, value) for name, value in sorted(tried.items()) if value != own_value(study, name))
    return Cell(mask_ratio, patch, tuple(settings))


def tried_values(study: Study, settings: Settings) -> dict[str, Value]:
    """The values of all settings in `search.space`, and of the others in `settings`, by name."""
    others = dict(settings)
    return {name: others.get(name, own_value(study, name)) for name in sorted({*study.search.space, *others})}


def own_value(study: Study, name: str) -> Value:
    """The study's own value of a setting such as `train.learning_rate`."""
    section, _, key = name.partition(".")
    value: Value = getattr(getattr(study, section), key)
    return value


def grid_trials(study: Study) -> list[Trial]:
    """All trials of the grid: every cell with the first seed, then with the next one."""
    search = study.search
    choices = [tried for tried in search.space.values() if not isinstance(tried, Range)]
    cells = [
        cell_of(study, ratio, patch, dict(zip(search.space, values, strict=True)))
        for ratio, patch in product(search.mask_ratios, search.patches)
        for values in product(*choices)
    ]
    return [Trial(cell.mask_ratio, cell.patch, seed, cell.settings) for seed in study.seeds for cell in cells]


def all_trials(study: Study) -> list[Trial]:
    """As many trials as the search has; which cells they are is drawn later where `search.algorithm` is `optuna`."""
    search = study.search
    if search.algorithm == "grid":
        return grid_trials(study)
    return [Trial(search.mask_ratios[0], search.patches[0], seed) for _ in range(search.trials) for seed in study.seeds]


def is_present(study: Study, trial: Trial) -> bool:
    """Whether a trial belongs to the search as it is configured now; others are those of an earlier configuration."""
    search = study.search
    if trial.seed not in study.seeds or trial.patch not in search.patches:
        return False
    tried = tried_values(study, trial.settings)
    if set(tried) != set(search.space) or not all(_is_among(tried[name], search.space[name]) for name in tried):
        return False
    if search.algorithm == "grid":
        return trial.mask_ratio in search.mask_ratios
    return min(search.mask_ratios) <= trial.mask_ratio <= max(search.mask_ratios)


def _is_among(value: Value, tried: Sequence[Value] | Range) -> bool:
    if isinstance(tried, Range):
        return not isinstance(value, str) and tried.low <= value <= tried.high
    return value in tried


def trial_train(study: Study) -> Train:
    """How the workers of trials are spread, as a study's section `train` says it of trainings."""
    search, workers = study.search, study.train.workers
    share = {
        "cpus_per_worker": search.cpus_per_trial / workers,
        "gpus_per_worker": search.gpus_per_trial / workers,
        "trainings_at_once": search.trials_at_once,
    }
    return study.train.model_copy(update=share)


def cell_study(study: Study, cell: Cell) -> Study:
    """The study that trains the MAE of one cell.

    Raises:
        ConfigError: the patch does not fit the spectrograms, the ratio hides no patch, or settings do not fit each
            other.
    """
    values = json.loads(study.model_dump_json())
    values["models"] = [MODEL, *(model for model in values["models"] if model != MODEL)]
    values["train"] |= {"mask_ratio": cell.mask_ratio, "patch": cell.patch}
    for setting, value in cell.settings:
        section, _, key = setting.partition(".")
        values[section][key] = value
    return validated(Study, values, name=str(cell))


def is_possible(study: Study, cell: Cell) -> bool:
    """Whether the settings of a cell fit each other."""
    try:
        cell_study(study, cell)
    except ConfigError:
        return False
    return True


def trial_study(study: Study, cell: Cell) -> Study:
    """The study of a cell whose trainings get what trials get: other numbers of threads round sums differently.

    Raises:
        ConfigError: see `cell_study`.
    """
    of_cell, spread = cell_study(study, cell), trial_train(study)
    share = {"cpus_per_worker": spread.cpus_per_worker, "gpus_per_worker": spread.gpus_per_worker}
    return of_cell.model_copy(update={"train": of_cell.train.model_copy(update=share)})


def largest_study(study: Study) -> Study:
    """The study of the trial that has the most weights."""
    sizes = {
        name: tried.high if isinstance(tried, Range) else max(tried)
        for name, tried in study.search.space.items()
        if name in ("model.width", "model.depth")
    }
    return cell_study(study, cell_of(study, study.search.mask_ratios[0], study.search.patches[0], sizes))


def scores_to_compare(study: Study) -> list[Score]:
    """What `search.scores` names, for the MAE."""
    scores = study.search.scores
    return all_scores(MODEL) if scores == "all" else [chosen_score(score, MODEL) for score in scores]


def with_score(study: Study, score: Score) -> Study:
    """The study of a cell with another score, of the MAE alone: other models may not have it.

    Raises:
        ConfigError: the score does not fit the model, or the alarm.
    """
    values = json.loads(study.model_dump_json()) | {"models": [MODEL], "score": asdict(score)}
    if values["features"]["reference"] == "clip":
        values["features"]["reference"] = "none"
    return validated(Study, values, name=f"search.scores {', '.join(astuple(score))}")


def check_search(study: Study) -> None:
    """Refuse an impossible search as a whole, before any part of it starts.

    Raises:
        ConfigError: cells are impossible, or settings of the search do not fit each other; the error lists them all.
    """
    search, problems = study.search, list[str]()
    for cell in _cells_to_check(study):
        try:
            cell_study(study, cell)
        except ConfigError as error:
            problems += str(error).splitlines()
    for score in scores_to_compare(study):
        try:
            with_score(study, score)
        except ConfigError as error:
            head, *reasons = str(error).splitlines()
            problems += [head, *reasons] if any(reason not in problems for reason in reasons) else []
    if MODEL not in study.models:
        problems.append(f"models: the search is for the MAE, add {MODEL!r} to {list(study.models)}")
    if search.algorithm == "optuna" and len(search.mask_ratios) < 2 and not search.space:
        problems.append(
            "search.mask_ratios: algorithm 'optuna' draws from the range that they span, found "
            f"{search.mask_ratios}, and search.space has nothing to draw either"
        )
    elif search.algorithm == "optuna" and 2 * search.trials > (n_cells := _count_cells(study)):
        wider = "widen search.mask_ratios or search.space"
        problems.append(
            f"search.trials: {search.trials} drawn from {n_cells} combinations, of ratios with {RATIO_DIGITS} digits; "
            + (f"lower it to {n_cells // 2}, or {wider}" if n_cells > 1 else wider)
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


def _cells_to_check(study: Study) -> list[Cell]:
    """All cells of a grid; of a space to draw from, each value and each bound, together with the first value of every
    other setting. Cells whose settings do not fit each other are not drawn.
    """
    search = study.search
    if search.algorithm == "grid":
        return list(dict.fromkeys(trial.cell for trial in grid_trials(study)))
    values = {
        name: (tried.low, tried.high) if isinstance(tried, Range) else tried for name, tried in search.space.items()
    }
    first = {name: tried[0] for name, tried in values.items()}
    others = [first | {name: value} for name, tried in values.items() for value in tried[1:]]
    pairs = list(product(search.mask_ratios, search.patches))
    return [cell_of(study, *pair, first) for pair in pairs] + [cell_of(study, *pairs[0], other) for other in others]


def _count_cells(study: Study) -> int:
    """How many cells Optuna draws from."""
    search = study.search
    n_ratios = round((max(search.mask_ratios) - min(search.mask_ratios)) * float(10**RATIO_DIGITS)) + 1
    return n_ratios * len(search.patches) * math.prod(_count_values(tried) for tried in search.space.values())


def _count_values(tried: Sequence[Value] | Range) -> int:
    if not isinstance(tried, Range):
        return len(tried)
    return int(tried.high - tried.low) + 1 if isinstance(tried.low, int) else 10**VALUE_DIGITS


def _in_words(settings: Settings) -> list[str]:
    return [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings]


def trial_location(root: str, trial: Trial, *parts: str) -> str:
    """The folder of a trial, or something in it."""
    return storage.join(root, layout.trial(trial.name), *parts)
