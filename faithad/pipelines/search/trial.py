"""One trial of a search: the training of one cell with one seed, judged after each epoch.

It is the very training of `faithad train`. With one worker it runs in the trial's own process; with several, the
trial starts a Ray Train run of its own. After each epoch the objective of the best weights so far is reported to Ray
Tune, and the whole state is saved, so that a trial whose process died goes on from there.

The scheduler gives a trial up by a note in its folder, and the trial then ends by itself. A Train run that is stopped
from outside can keep its resources for ever (ray-project/ray: the cleaner of placement groups), and a trial that was
killed could not say what it had come to.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray import tune
from ray.train import UserCallback
from ray.tune.search.repeater import TRIAL_INDEX
from ray.util.queue import Queue

from faithad import storage
from faithad.config.study import Study, parse_study
from faithad.model.checkpoint import read_state
from faithad.pipelines.search.judge import Judge, Values
from faithad.pipelines.search.plan import MODEL, Trial, cell_study, read_record, trial_folder
from faithad.pipelines.training.task import train_together
from faithad.pipelines.training.worker import open_training
from faithad.settings import TrainingSettings


def trial_of(config: Mapping[str, Any], study: Study) -> Trial:
    """The trial that Tune's configuration stands for: one of the grid, or a drawn cell with the seed's number."""
    if "trial" in config:
        return Trial(*config["trial"])
    # Rounded, so that its name says all of it.
    return Trial(round(config["mask_ratio"], 4), config["patch"], study.seeds[config[TRIAL_INDEX]])


def run_trial(config: Mapping[str, Any], *, search: Mapping[str, Any]) -> None:
    """Ray Tune's trainable: run one trial to its record, from wherever an earlier run of it was killed.

    Args:
        config: what `trial_of` reads.
        search: `study` (YAML), `mean` and `std` of the normalisation, `clips` (see `training_clips`), `is_tested`
            (whether there are labelled test clips to score), `resources` and `threads` of one worker, `ray_is_ours`
            (see `train_together`), and `labels` of the test clips by clip_id, for the one objective that sees them.
    """
    study = parse_study(search["study"], name="study.yaml")
    trial = trial_of(config, study)
    if (record := read_record(study.root, trial)) is not None:
        tune.report(_metrics(trial, len(record.values), record.value))
        return
    arguments = {**search, "study": cell_study(study, trial.mask_ratio, trial.patch).to_yaml(), "trial": tuple(trial)}
    if study.train.workers == 1:
        device = torch.device("cuda" if search["resources"].get("GPU") else "cpu")
        train_trial(arguments, device=device, report=tune.report)
    else:
        _train_together(arguments, study, trial)


def train_trial(
    arguments: Mapping[str, Any],
    *,
    device: torch.device,
    report: Callable[[dict[str, Any]], None],
    rank: int = 0,
    workers: int = 1,
) -> None:
    """Train and judge epoch by epoch; rank 0 saves the state and writes the record.

    Args:
        arguments: as `run_trial` takes them, with the study of the trial's cell, and `trial`.
        device: where to compute.
        report: called after each epoch with its number, the objective's value and the trial's name.
        rank: this worker, from 0.
        workers: how many share the training.
    """
    study = parse_study(arguments["study"], name="study.yaml")
    trial = Trial(*arguments["trial"])
    folder = trial_folder(study.root, trial)
    if (record := read_record(study.root, trial)) is not None:  # a worker was lost after the trial's end
        report(_metrics(trial, len(record.values), record.value))
        return
    training = open_training(_training_arguments(arguments, study, trial), device=device, rank=rank, workers=workers)
    judge = Judge(arguments, device) if rank == 0 else None
    values: Values = []
    if (state := _read_state(folder)) is not None:
        training.restore(state["training"])
        values = list(state["values"])
        if study.search.scheduler == "asha":  # what the scheduler of a killed driver knew, this one is told again
            for epoch, value in enumerate(values, start=1):
                report(_metrics(trial, epoch, value))
    # A note without a state: the trial was killed before its first one, and has nothing yet to conclude with.
    given_up = bool(training.history) and _given_up(folder, rank, workers, device)
    with StateWriter(folder) as writer:
        while not (training.finished or given_up):
            training.run_epoch()
            epoch = len(training.history)
            if judge is not None:
                values[epoch - 1 :] = [judge.value(training, values)]
                if epoch % study.train.checkpoint_every == 0:
                    writer.write({"training": training.state(), "values": values})
            report(_metrics(trial, epoch, values[-1] if values else None))
            given_up = _given_up(folder, rank, workers, device)
    if judge is not None:
        judge.conclude(training, trial, values)
        for leftover in ("state.pt", "stop"):
            storage.delete(storage.join(folder, leftover))


def stop_location(root: str, trial: Trial) -> str:
    """The note by which the scheduler gives a trial up."""
    return storage.join(trial_folder(root, trial), "stop")


def _training_arguments(arguments: Mapping[str, Any], study: Study, trial: Trial) -> dict[str, Any]:
    """As `open_training` takes them: those of `faithad train` with the trial's study."""
    given = study.train.model_dump()
    values = {field.name: given[field.name] for field in fields(TrainingSettings) if field.name in given}
    settings = asdict(TrainingSettings(**values, seed=trial.seed))
    return {**arguments, "root": study.root, "model": MODEL, "seed": trial.seed, "settings": settings}


def _metrics(trial: Trial, epoch: int, value: float | None) -> dict[str, Any]:
    return {"name": trial.name, "epoch": epoch, "value": math.nan if value is None else value}


def _train_together(arguments: Mapping[str, Any], study: Study, trial: Trial) -> None:
    """Share one trial among several workers: a Ray Train run inside the trial."""
    # The trial saves its own state: nothing of Ray Train's is kept.
    with tempfile.TemporaryDirectory() as folder, reporting(tune.report) as reports:
        train_together(
            {**arguments, "fingerprint": trial.name, "kept": folder},
            workers=study.train.workers,
            each=arguments["resources"],
            max_failures=study.train.max_failures,
            ray_is_ours=arguments["ray_is_ours"],
            worker=_trial_worker,
            callbacks=[_Told(reports)],
        )


class _Told(UserCallback):  # type: ignore[misc]
    """Puts what the first worker reports into a queue."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._reports.put(metrics[0])


@contextlib.contextmanager
def reporting(report: Callable[[dict[str, Any]], None]) -> Iterator[Queue]:
    """A queue whose entries are reported as they come, all of them before the block is left.

    With Ray's own `TuneReportCallback` (2.60) it is Tune's thread that takes them from a queue and puts them into its
    own, of one place, which nobody but itself empties: where the trial ended meanwhile, it waited for ever.
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


def _trial_worker(arguments: Mapping[str, Any]) -> None:
    context = ray.train.get_context()
    train_trial(
        arguments,
        device=ray.train.torch.get_device(),
        report=ray.train.report,
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
    )


def _given_up(folder: str, rank: int, workers: int, device: torch.device) -> bool:
    """Whether the scheduler gave the trial up; all workers get the same answer."""
    noted = torch.tensor(rank == 0 and storage.exists(storage.join(folder, "stop")), device=device)
    if workers > 1:
        noted = noted.int()
        dist.broadcast(noted, src=0)
    return bool(noted)


class StateWriter:
    """Writes states to a trial's folder beside the next epoch: an object store takes longer than an epoch on a GPU."""

    def __init__(self, folder: str) -> None:
        self._location = storage.join(folder, "state.pt")
        self._pool, self._writing = ThreadPoolExecutor(1), Future[None]()
        self._writing.set_result(None)

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._writing.result()

    def write(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._writing.result()
        self._writing = self._pool.submit(storage.write_bytes, self._location, buffer.getvalue())


def _read_state(folder: str) -> dict[str, Any] | None:
    location = storage.join(folder, "state.pt")
    return read_state(location) if storage.exists(location) else None
