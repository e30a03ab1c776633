"""One trial of a search: the training of one cell with one seed, judged after each epoch.

It is the training of `faithad train`. With one worker it runs in the trial's own process; with several, the trial
starts a Ray Train run. After each epoch the objective of the best weights so far is reported to Ray Tune, and the state
is saved, so that a trial whose process died goes on from there.

The scheduler stops a trial by a note in its folder, and the trial then ends by itself. A Train run that is stopped from
outside can keep its resources for ever (ray-project/ray: the cleaner of placement groups), and a trial that was killed
would leave no record.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from ray import tune
from ray.util.queue import Queue

from faithad import storage
from faithad.pipelines.search.judge import Judge
from faithad.pipelines.search.plan import Trial
from faithad.pipelines.search.records import is_over, read_record, write_record, write_settings
from faithad.pipelines.search.task import SearchTask, TrialTask
from faithad.pipelines.training.ray_train import run_on_workers
from faithad.pipelines.training.task import Worker
from faithad.pipelines.training.trained import save_network
from faithad.pipelines.training.worker import open_training, saved_state, state_writer, write_epochs

Report = Callable[[dict[str, Any]], None]


def trial_of(config: Mapping[str, Any]) -> Trial:
    """The trial of a configuration of Tune's."""
    return Trial(*config["trial"])


def metrics_of(trial: Trial, epoch: int, value: float | None) -> dict[str, Any]:
    """What a trial reports to Ray Tune after an epoch, for the scheduler and for the progress."""
    return {"name": trial.title, "epoch": epoch, "value": math.nan if value is None else value}


def run_trial(config: Mapping[str, Any], *, search: SearchTask) -> None:
    """Ray Tune's trainable: run one trial to its record, from where an earlier run of it was killed.

    Args:
        config: see `trial_of`.
        search: the search.
    """
    task, places = search.task_of(trial_of(config)), search.places
    record = read_record(search.study.root, task.trial)
    if places.workers == 1 or (record is not None and is_over(search.study, record)):
        train_trial(task, Worker(torch.device("cuda" if places.each.get("GPU") else "cpu")), tune.report)
        return
    with reporting(tune.report) as reports:
        run_on_workers(
            functools.partial(train_trial, report=reports.put),
            task,
            places=places,
            max_failures=search.study.train.max_failures,
            ray_is_ours=search.ray_is_ours,
            interface=search.study.train.interface,
        )


def train_trial(task: TrialTask, worker: Worker, report: Report) -> None:
    """Train and judge epoch by epoch; the first worker saves the state, reports, and writes the record.

    Args:
        task: the trial.
        worker: this process.
        report: called after each epoch with its number, the objective and the trial's name.
    """
    study = task.training.study
    record = read_record(study.root, task.trial)
    if record is not None and is_over(study, record):  # e.g. a worker was lost after the trial's end
        if worker.rank == 0:
            report(metrics_of(task.trial, len(record.values), record.value))
        return
    state = saved_state(task.training.state)
    if worker.rank == 0:
        write_settings(study.root, task.trial)
    training = open_training(task.training, worker, state and state["training"])
    values: list[float | None] = [] if state is None else list(state["values"])
    judge = Judge(task, worker.device) if worker.rank == 0 else None
    if judge is not None and study.search.scheduler == "asha":
        for number, value in enumerate(values, start=1):  # the scheduler of a killed driver knew them
            report(metrics_of(task.trial, number, value))
    # A trial that was killed before its first state has nothing to record yet, even if there is a note.
    is_stopped = bool(training.history) and _is_stopped(task, worker)
    with state_writer(task.training.state) as write_state:
        while not (training.finished or is_stopped):
            epoch = training.run_epoch()
            if judge is not None:
                # The objective changes only with the best weights.
                values.append(judge.objective(training) if epoch.best or not values else values[-1])
                if training.finished or epoch.epoch % study.train.checkpoint_every == 0:
                    write_state({"training": training.state(), "values": values})
                report(metrics_of(task.trial, epoch.epoch, values[-1]))
            is_stopped = _is_stopped(task, worker)
    if judge is not None:
        write_epochs(training, task.training)
        if training.best is not None:
            save_network(training, task.training, device=worker.device)
        write_record(study.root, judge.record(training, values))
        storage.delete(task.stop_note)
        if not (study.train.ends_anywhere and len(values) == study.train.epochs):
            storage.delete(task.training.state)  # with more epochs it would not go on from there


@contextlib.contextmanager
def reporting(report: Report) -> Iterator[Queue]:
    """A queue whose entries are reported as they come, all of them before the block ends.

    With Ray's own `TuneReportCallback` (2.60), a thread of Tune's takes reports from such a queue and puts them into
    another one, of one entry, which the same thread empties: at the end of a trial it could wait for itself for ever.
    """
    reports = Queue(actor_options={"num_cpus": 0})

    def pass_on() -> None:
        while (metrics := reports.get()) is not None:
            report(metrics)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield reports
    finally:
        reports.put(None)
        thread.join()
        reports.shutdown()


def _is_stopped(task: TrialTask, worker: Worker) -> bool:
    """Whether the scheduler stops the trial; all workers get the same answer."""
    noted = torch.tensor(int(worker.rank == 0 and storage.exists(task.stop_note)), device=worker.device)
    if worker.n_workers > 1:
        dist.broadcast(noted, src=0)
    return bool(noted)
