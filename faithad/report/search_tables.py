"""The results of a search over mask ratio and patch size, cell by cell.

A cell is one mask ratio with one patch size; its value is the mean over its trials, one per seed. A trial that was
stopped early counts with the value that it had, for the choice as well, and is marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from faithad import storage
from faithad.errors import StudyError
from faithad.report.reading import look_up, read_settings, required
from faithad.runs import layout
from faithad.runs.formats import require_readable

SUMMARY = layout.summary("search")


@dataclass(frozen=True)
class Search:
    """A search that has run.

    Attributes:
        trials: schemas.SEARCH_SUMMARY, of the trials that belong to the search as it was configured last.
        best: `best.yaml`, the study with the chosen cell; empty where there is none.
        best_text: as it was written.
        verdict: whether the chosen cell is better than the paper's, a row of `summary/search_comparison`; None where
            that was not asked.
    """

    trials: pd.DataFrame
    best: dict[str, Any]
    best_text: str
    verdict: dict[str, Any] | None = None

    @property
    def chosen(self) -> tuple[float, int] | None:
        """Mask ratio and patch of the chosen cell, if one was chosen."""
        ratio, patch = look_up(self.best, "train.mask_ratio"), look_up(self.best, "train.patch")
        return None if ratio is None or patch is None else (float(ratio), int(patch))

    @property
    def objective(self) -> str:
        return str(self.trials["objective"].iloc[0])

    @property
    def columns(self) -> list[str]:
        """The columns of the trials to show: the objective, and the test AUC where it is known and another one."""
        beside = self.objective != "test_auc" and self.trials["auc"].notna().any()
        return ["value", "auc"] if beside else ["value"]

    @property
    def is_grid(self) -> bool:
        """Whether a table of ratios and patches shows it; else the ratios are continuous."""
        n_cells = len(self.trials[["mask_ratio", "patch"]].drop_duplicates())
        crossed = bool(n_cells == self.trials["mask_ratio"].nunique() * self.trials["patch"].nunique())
        return crossed and look_up(self.best, "search.algorithm") != "optuna"


def read_search(root: str) -> Search:
    """Read a search's summary and its choice.

    Raises:
        StudyError: no search has run there, its table is empty, or a newer faithad made it.
    """
    require_readable(root)
    problem = StudyError(f"There is no search at {root}: no {SUMMARY}. Run `faithad search` first.")
    trials = storage.read_table(required(root, SUMMARY, problem)).to_pandas()
    if "present" in trials:  # a search of release 0.1.0 could not grow
        trials = trials[trials["present"]]
    if trials.empty:
        raise StudyError(f"The search at {root} has no trial. Run `faithad search` again.")
    trials = trials.sort_values(["mask_ratio", "patch", "seed"], kind="stable").reset_index(drop=True)
    location = storage.join(root, layout.BEST)
    text, best = read_settings(location) if storage.exists(location) else ("", {})
    location = storage.join(root, layout.summary("search_comparison"))
    answers = storage.read_table(location).to_pylist() if storage.exists(location) else []
    return Search(trials=trials, best=best, best_text=text, verdict=answers[0] if answers else None)


def cells(trials: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean, standard deviation over seeds (NaN for one seed) and number of values of each cell, by (mask_ratio, patch).

    Also how many of its trials were stopped early, failed, or diverged and went back. A cell without any value has the
    mean NaN.
    """
    flags = trials.assign(
        stopped=trials["status"] == "stopped", failed=trials["status"] == "failed", diverged=went_back(trials)
    )
    by_cell = flags.groupby(["mask_ratio", "patch"])
    return by_cell[column].agg(["mean", "std", "count"]).join(by_cell[["stopped", "failed", "diverged"]].sum())


def went_back(trials: pd.DataFrame) -> pd.Series:
    """Which trials diverged and went back to their best epoch; a failed one had none to go back to."""
    return (trials["diverged_epochs"] > 0) & (trials["status"] != "failed")
