"""The trials of a search on the cluster: Ray Tune runs them side by side and stops those that fall behind.

Ray Tune's own state is not kept, because it consists of pickles: all that a killed search needs to go on is in the
trials' records and states, from which the scheduler and the sampler learn again what they knew.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from faithad import storage
from faithad.config.search import Range, Value
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.model.random_bits import key_of
from faithad.pipelines.search.plan import (
    MODES,
    RATIO_DIGITS,
    VALUE_DIGITS,
    Cell,
    Trial,
    all_trials,
    cell_of,
    grid_trials,
    is_possible,
    is_present,
    trial_location,
    trial_train,
    tried_values,
)
from faithad.pipelines.search.records import Record, begun_trials, present_records, read_record
from faithad.pipelines.search.task import SearchTask
from faithad.pipelines.search.trial import metrics_of, run_trial, trial_of
from faithad.pipelines.training.places import Places, find_places
from faithad.pipelines.training.ray_train import last_line
from faithad.progress import Ticker, console, side_by_side
from faithad.runs import layout
from faithad.runs.lock import require_still_alone

# Random cells before the sampler begins to learn from them.
_RANDOM_CELLS = 10
# A trial that only waits for its workers must leave every core to them. Ray Tune refuses an empty request: one byte.
_NEXT_TO_NOTHING = {"memory": 1}
# No CSV, JSON and TensorBoard files that nobody reads, and neither tables nor tracebacks between our own lines.
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # An interrupt ends the search: Tune's own handler would only end the trials.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def run_trials(search: SearchTask) -> list[Record]:
    """Run all trials that have no record yet; Ray must be there.

    Returns:
        A record with the reason for each trial that failed with an error. These are not written: a trial that failed so
        is tried again by the next run.

    Raises:
        StudyError: the user interrupted the search.
    """
    study, places = search.study, search.places
    known = present_records(study)
    options: dict[str, Any] = {"max_concurrent_trials": places.at_once, "reuse_actors": True}
    if study.search.scheduler == "asha":
        options["scheduler"] = GentleASHA(study, known)
    if study.search.algorithm == "grid":
        finished = {record.trial for record in known}
        todo = [tuple(trial) for trial in grid_trials(study) if trial not in finished]
        space, n_left = {"trial": tune.grid_search(todo)}, len(todo)
    else:
        begun = [trial for trial in begun_trials(study.root) if is_present(study, trial)]
        cells = TreeParzenCells(study, known, begun)
        space, n_left = {}, cells.n_trials
        options |= {"search_alg": cells, "num_samples": n_left}
    if not n_left:
        return []
    n_trials = len(known) + n_left
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable = tune.with_parameters(run_trial, search=search)
    with tempfile.TemporaryDirectory() as folder, side_by_side() as show:
        shown = ShowProgress(show, study, n_trials, known)
        results = tune.Tuner(
            tune.with_resources(trainable, places.each if places.workers == 1 else _NEXT_TO_NOTHING),
            param_space=space,
            tune_config=tune.TuneConfig(**options),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=study.train.max_failures),
                callbacks=[shown],
            ),
        ).fit()
        shown.close()
    trials = [(trial_of(result.config), result.error) for result in results]
    failures = [Record(*trial, status="failed", reason=last_line(error)) for trial, error in trials if error]
    n_over = (
        len(known)
        + len(failures)
        + sum(not error and read_record(study.root, trial) is not None for trial, error in trials)
    )
    if n_over < n_trials:  # Ray Tune returns without an error when a user interrupts it
        raise StudyError(
            f"The search was interrupted: of {n_trials} trials, {n_over} are over. The same command goes on."
        )
    return failures


def find_trial_places(study: Study) -> Places:
    """What each worker of a trial gets, and how many trials run at once.

    Raises:
        StudyError: the cluster can never hold one trial.
    """
    search, workers = study.search, study.train.workers
    try:
        return find_places(trial_train(study), len(all_trials(study)))
    except StudyError as error:
        raise StudyError(
            f"A trial asks for search.cpus_per_trial {search.cpus_per_trial:g} and search.gpus_per_trial "
            f"{search.gpus_per_trial:g} in all, shared by train.workers ({workers}); lower these. {error}"
        ) from error


class GentleASHA(FIFOScheduler):  # type: ignore[misc]
    """Asynchronous successive halving (Li et al. 2020), which asks trials to end instead of killing them.

    Trials are compared with those of the same seed only: seeds differ by more than cells do. The records of an earlier
    run of this search count as trials that reported the same values.
    """

    def __init__(self, study: Study, known: Sequence[Record]) -> None:
        super().__init__()
        self._study = study
        self._asked_to_end = set[str]()
        self._halving = {
            seed: ASHAScheduler(
                time_attr="epoch",
                metric="value",
                mode=MODES[study.search.objective],
                max_t=study.train.epochs,
                grace_period=study.search.grace_epochs,
                reduction_factor=study.search.reduction_factor,
            )
            for seed in study.seeds
        }
        for record in known:
            halving, finished = self._halving[record.seed], SimpleNamespace(trial_id=f"before/{record.trial.name}")
            halving.on_trial_add(None, finished)
            for epoch, value in enumerate(record.values, start=1):
                halving.on_trial_result(None, finished, metrics_of(record.trial, epoch, value))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._halving[trial_of(trial.config).seed].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        ours = trial_of(trial.config)
        if trial.trial_id not in self._asked_to_end:
            decision = self._halving[ours.seed].on_trial_result(tune_controller, trial, result)
            # At the last epoch everything stops.
            if decision == self.STOP and result["epoch"] < self._study.train.epochs:
                self._asked_to_end.add(trial.trial_id)
                storage.write_text(trial_location(self._study.root, ours, layout.TRIAL_STOP), "")
        return str(self.CONTINUE)


class TreeParzenCells(Searcher):  # type: ignore[misc]
    """Cells drawn by Optuna's tree-structured Parzen estimator, the mask ratio from a range; each with all seeds.

    A draw follows from its number and from the cells that are finished by then, not from the draws before it, and an
    unfinished cell of an earlier run keeps its number. So a search that was killed goes on with the cells that it would
    have drawn.

    Args:
        study: the study.
        known: the records of finished trials.
        begun: all trials that began; unfinished ones are suggested first.
    """

    def __init__(self, study: Study, known: Sequence[Record], begun: Sequence[Trial]) -> None:
        search = study.search
        super().__init__(metric="value", mode=MODES[search.objective])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = study
        self._space: dict[str, optuna.distributions.BaseDistribution] = {
            "patch": optuna.distributions.CategoricalDistribution(search.patches)
        }
        if len(search.mask_ratios) > 1:
            low, high = min(search.mask_ratios), max(search.mask_ratios)
            self._space = {"mask_ratio": optuna.distributions.FloatDistribution(low, high), **self._space}
        self._space |= {name: _distribution(tried) for name, tried in search.space.items()}
        self._values: dict[Cell, dict[int, float | None]] = {trial.cell: {} for trial in begun}
        for record in known:
            self._values.setdefault(record.trial.cell, {})[record.seed] = record.value
        self._waiting = deque(trial for cell in self._values for trial in self._unfinished(cell))
        self._running: dict[str, Trial] = {}
        self.n_trials = len(self._waiting) + max(0, search.trials - len(self._values)) * len(study.seeds)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next trial as Ray Tune's configuration of it."""
        if not self._waiting:
            cell = self._draw()
            self._values[cell] = {}
            self._waiting.extend(self._unfinished(cell))
        self._running[trial_id] = self._waiting.popleft()
        return {"trial": tuple(self._running[trial_id])}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._running.pop(trial_id)
        value = math.nan if error or result is None else result["value"]
        self._values[trial.cell][trial.seed] = None if math.isnan(value) else value

    def save(self, checkpoint_path: str) -> None:
        """Nothing: records and states of the trials hold all that a search needs to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""

    def _unfinished(self, cell: Cell) -> list[Trial]:
        seeds = (seed for seed in self._study.seeds if seed not in self._values[cell])
        return [Trial(cell.mask_ratio, cell.patch, seed, cell.settings) for seed in seeds]

    def _draw(self) -> Cell:
        """A cell that was not drawn before, and whose settings fit each other."""
        search = self._study.search
        attempt = 0
        while True:
            sampler = optuna.samplers.TPESampler(
                seed=key_of("cell", self._study.search.seed, len(self._values), attempt) % 2**32,
                n_startup_trials=min(_RANDOM_CELLS, math.ceil(self._study.search.trials / 2)),
            )
            drawn = self._history(sampler).ask(self._space).params
            # Rounded, so that names and texts hold all digits.
            ratio = round(drawn.get("mask_ratio", search.mask_ratios[0]), RATIO_DIGITS)
            tried = {name: _rounded(drawn[name], tried) for name, tried in search.space.items()}
            cell = cell_of(self._study, ratio, drawn["patch"], tried)
            if cell not in self._values and (not tried or is_possible(self._study, cell)):
                return cell
            attempt += 1

    def _history(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """Optuna's study of all finished cells, in an order that does not depend on when they were finished."""
        history = optuna.create_study(
            sampler=sampler, direction="maximize" if MODES[self._study.search.objective] == "max" else "minimize"
        )
        # Optuna gives the first of many cells less weight; in the order of a hash, these are no particular ratios.
        for cell in sorted(
            self._values, key=lambda cell: key_of(*map(str, (cell.mask_ratio, cell.patch, *cell.settings)))
        ):
            values = [value for value in self._values[cell].values() if value is not None]
            if values and not self._unfinished(cell):
                of_cell: dict[str, Value] = {"mask_ratio": cell.mask_ratio, "patch": cell.patch}
                of_cell |= tried_values(self._study, cell.settings)
                params = {name: of_cell[name] for name in self._space}
                mean = statistics.fmean(values)
                history.add_trial(optuna.trial.create_trial(params=params, distributions=self._space, value=mean))
        return history


def _distribution(tried: Sequence[Value] | Range) -> optuna.distributions.BaseDistribution:
    if not isinstance(tried, Range):
        return optuna.distributions.CategoricalDistribution(tried)
    if isinstance(tried.low, int):
        return optuna.distributions.IntDistribution(tried.low, int(tried.high), log=tried.log)
    return optuna.distributions.FloatDistribution(tried.low, tried.high, log=tried.log)


def _rounded(value: Value, tried: Sequence[Value] | Range) -> Value:
    """A drawn value with few digits, within its range."""
    if not isinstance(value, float) or not isinstance(tried, Range):
        return value
    return min(max(float(f"{value:.{VALUE_DIGITS}g}"), tried.low), tried.high)


class ShowProgress(tune.Callback):  # type: ignore[misc]
    """Shows how many trials are over, the best value so far, each running trial, and each that was lost and goes on.

    On a terminal every running trial has a bar of its epochs; in a log, the count comes with the last report. Ends
    the search where another driver has taken over its root.

    Args:
        show: see `side_by_side`.
        study: the study.
        n_trials: of the whole search.
        known: the records of those that are over already.
    """

    def __init__(
        self, show: Callable[[str, int], Ticker], study: Study, n_trials: int, known: Sequence[Record]
    ) -> None:
        self._show, self._study, self._n_over = show, study, len(known)
        self._ticker = show("search", n_trials)
        self._running: dict[str, Ticker] = {}
        self._best: tuple[float, str] | None = None
        for record in known:
            self._compare(record.value, record.trial.title)
        self._ticker.update(self._n_over, self._best_text())

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        require_still_alone()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        name, value = result["name"], f"{self._study.search.objective} {result['value']:.4g}"
        self._compare(result["value"], name)
        if console.is_terminal:
            if name not in self._running:
                self._running[name] = self._show(f"  {name}", self._study.train.epochs)
            self._running[name].update(result["epoch"], value)
            self._ticker.update(self._n_over, self._best_text())
        else:
            self._ticker.update(self._n_over, f"{name} epoch {result['epoch']}, {value}; {self._best_text()}")

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        name, allowed = trial_of(trial.config).title, self._study.train.max_failures
        times = f"{trial.num_failures} of {allowed} times allowed"
        console.print(f"search: {name} lost its process, or failed, and goes on from its last state; {times}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if ticker := self._running.pop(trial_of(trial.config).title, None):
            ticker.close()
        self._n_over += 1
        self._ticker.update(self._n_over, self._best_text())

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)

    def close(self) -> None:
        """Take all bars away, or print a last line in a log."""
        for ticker in (*self._running.values(), self._ticker):
            ticker.close()

    def _compare(self, value: float | None, name: str) -> None:
        if value is not None and not math.isnan(value):
            better = max if MODES[self._study.search.objective] == "max" else min
            self._best = better(self._best or (value, name), (value, name))

    def _best_text(self) -> str:
        return "" if self._best is None else f"best so far {self._best[0]:.4g} ({self._best[1]})"
