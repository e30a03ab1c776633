"""The results of a search over mask ratio, patch size and further settings, cell by cell.

A cell is one mask ratio with one patch size, and one value of each further setting that differs among the trials; its
value is the mean over its trials, one per seed. A trial that was stopped early counts with its last value, for the
choice as well, and is marked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from faithad import parquet, storage
from faithad.errors import StudyError
from faithad.report.reading import look_up, read_settings, required
from faithad.runs import layout
from faithad.runs.formats import require_readable

SUMMARY = layout.summary("search")
# Mask ratio, patch, and the values of `further_settings`.
Cell = tuple[Any, ...]


@dataclass(frozen=True)
class SearchTables:
    """A search that has run.

    Attributes:
        trials: schemas.SEARCH_SUMMARY, of the trials that belong to the search as it was configured last. Further
            settings that differ among them, such as `train.learning_rate`, have a column each.
        best: `best.yaml`, the study with the chosen cell; empty where there is none.
        best_text: as it was written.
        verdict: whether the chosen cell is better than the paper's, a row of `summary/search_comparison`; None where
            that was not asked.
        scores: the scores that were compared with the best trial's model, the best first; rows of
            `summary/search_scores`.
        ensembles: those that were compared, the best first; rows of `summary/search_members`.
    """

    trials: pd.DataFrame
    best: dict[str, Any]
    best_text: str
    verdict: dict[str, Any] | None = None
    scores: tuple[dict[str, Any], ...] = ()
    ensembles: tuple[dict[str, Any], ...] = ()

    @property
    def chosen(self) -> Cell | None:
        """The chosen cell, if one was chosen."""
        ratio, patch = look_up(self.best, "train.mask_ratio"), look_up(self.best, "train.patch")
        if ratio is None or patch is None:
            return None
        return (float(ratio), int(patch), *(look_up(self.best, name) for name in further_settings(self.trials)))

    @property
    def objective(self) -> str:
        return str(self.trials["objective"].iloc[0])

    @property
    def columns(self) -> list[str]:
        """The columns of the trials to show: the objective, and the test AUC where it is known and another one."""
        shows_auc = self.objective != "test_auc" and self.trials["auc"].notna().any()
        return ["value", "auc"] if shows_auc else ["value"]

    @property
    def is_grid(self) -> bool:
        """Whether a table of ratios and patches shows it; else the ratios are continuous."""
        n_cells = len(self.trials[["mask_ratio", "patch"]].drop_duplicates())
        crossed = bool(n_cells == self.trials["mask_ratio"].nunique() * self.trials["patch"].nunique())
        return crossed and not further_settings(self.trials) and look_up(self.best, "search.algorithm") != "optuna"


def read_search(root: str) -> SearchTables:
    """Read a search's summary and its choice.

    Raises:
        StudyError: no search has run there, its table is empty, or a newer faithad made it.
    """
    require_readable(root)
    problem = StudyError(f"There is no search at {root}: no {SUMMARY}. Run `faithad search` first.")
    trials = parquet.read_table(required(root, SUMMARY, problem)).to_pandas()
    if "present" in trials:  # a search of release 0.1.0 could not grow, and tried no further settings
        trials = trials[trials["present"]]
    trials = _with_settings(trials)
    if trials.empty:
        raise StudyError(f"The search at {root} has no trial. Run `faithad search` again.")
    trials = trials.sort_values([*_keys(trials), "seed"], kind="stable").reset_index(drop=True)
    location = storage.join(root, layout.BEST)
    text, best = read_settings(location) if storage.exists(location) else ("", {})
    answers, scores, ensembles = (
        tuple(parquet.read_table(place).to_pylist()) if storage.exists(place) else ()
        for name in ("search_comparison", "search_scores", "search_members")
        for place in [storage.join(root, layout.summary(name))]
    )
    return SearchTables(trials, best, text, verdict=answers[0] if answers else None, scores=scores, ensembles=ensembles)


def further_settings(trials: pd.DataFrame) -> list[str]:
    """The settings other than mask ratio and patch that differ among the trials; their names have a dot."""
    return [name for name in trials if "." in name]


def cell_name(trials: pd.DataFrame, cell: Cell) -> str:
    further = zip(further_settings(trials), cell[2:], strict=True)
    texts = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in further]
    return ", ".join([f"mask ratio {cell[0]:.3g}, patch {cell[1]}", *texts])


def _with_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with a column for each setting of the column `settings` that differs among them."""
    values = [json.loads(text) for text in trials.get("settings", [])]
    names = sorted({name for settings in values for name in settings})
    columns = {name: [settings.get(name) for settings in values] for name in names}
    return trials.assign(**{name: column for name, column in columns.items() if len(set(column)) > 1})


def _keys(trials: pd.DataFrame) -> list[str]:
    return ["mask_ratio", "patch", *further_settings(trials)]


def cells(trials: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean, standard deviation over seeds (NaN for one seed) and number of values of each cell, by cell.

    Also how many of its trials were stopped early, failed, or diverged and went back. A cell without any value has the
    mean NaN.
    """
    flags = trials.assign(
        stopped=trials["status"] == "stopped", failed=trials["status"] == "failed", diverged=went_back(trials)
    )
    by_cell = flags.groupby(_keys(trials))
    return by_cell[column].agg(["mean", "std", "count"]).join(by_cell[["stopped", "failed", "diverged"]].sum())


def went_back(trials: pd.DataFrame) -> pd.Series:
    """Which trials diverged and went back to their best epoch; a failed trial has no epoch to go back to."""
    return (trials["diverged_epochs"] > 0) & (trials["status"] != "failed")
