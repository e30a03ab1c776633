"""What runs on the cluster for one training, as one Ray task that ends when the model stands in `models/`.

    train_alone      one worker: the task itself trains
    train_together   several workers: the task takes no core and drives a Ray Train run, whose workers train
    fit_detector     a classical detector

One worker does without Ray Train, which would start a controller, a barrier and two watchers around it, a process each:
on two cores that took 20 s a training and 1 GB, where a task takes 5 s, or nothing in a process that is there already.

All of them go on from the last state that an interrupted run of the same settings left in `training/`.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from faithad import storage
from faithad.errors import StudyError
from faithad.model.checkpoint import read_state
from faithad.model.training import Training
from faithad.pipelines.cluster.lost_places import giving_back
from faithad.pipelines.training.trained import save_detector, save_network
from faithad.pipelines.training.worker import STATE_FILE, open_training, train_worker, write_epochs

# How Ray Train behaves around our workers; read in the process that starts a run, and handed on by it.
_RAY_TRAIN = {
    # The controller waits for one poll per report; at the default of two seconds 500 short epochs lose 1,000 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # After a machine was lost there may be room for fewer runs: one waits for another to end.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
}
# On a Ray of our own there is no spot market that takes machines away, and nobody who reads metrics.
_RAY_TRAIN_OF_OURS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}

# How Ray Train calls the folder of a checkpoint.
_CHECKPOINT = re.compile(r"checkpoint_[\w.-]+")


def train_alone(arguments: Mapping[str, Any]) -> None:
    """Train on the one core share, or GPU share, of this task.

    Args:
        arguments: as `open_training` takes them, and `fingerprint` and `checkpoint_every`.
    """
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    training = open_training(arguments, device=device)
    location = storage.join(arguments["kept"], arguments["fingerprint"], STATE_FILE)
    if storage.exists(location):
        training.restore(read_state(location))
        write_epochs(training, arguments)  # the state was written first
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        while not training.finished:
            epoch = training.run_epoch()
            if training.finished or epoch.epoch % arguments["checkpoint_every"] == 0:
                content = _state_bytes(training)
                if writing is not None:
                    writing.result()
                # The next epoch goes on meanwhile: to an object store this takes longer than an epoch on a GPU.
                writing = writer.submit(storage.write_bytes, location, content)
            write_epochs(training, arguments)
        if writing is not None:
            writing.result()
    save_network(training, arguments, device=device)


def train_together(
    arguments: Mapping[str, Any],
    *,
    workers: int,
    each: Mapping[str, float],
    max_failures: int,
    ray_is_ours: bool,
    worker: Callable[[Mapping[str, Any]], None] = train_worker,
    callbacks: Sequence[UserCallback] = (),
) -> None:
    """Train with several workers, which share each batch.

    Args:
        arguments: as for `train_alone`.
        workers: how many.
        each: what each worker asks for: `CPU`, and `GPU` where there is one.
        max_failures: how often a run may lose a worker and go on.
        ray_is_ours: whether Ray was started for us alone and goes with us.
        worker: what each of them does.
        callbacks: of the run.

    Raises:
        StudyError: the training failed for good.
    """
    for name, value in {**_RAY_TRAIN, **(_RAY_TRAIN_OF_OURS if ray_is_ours else {})}.items():
        os.environ.setdefault(name, value)
    # Ray Train does not write it in one go: killed meanwhile, no run of this name would ever start again.
    run = storage.join(arguments["kept"], arguments["fingerprint"])
    snapshot = storage.join(run, "checkpoint_manager_snapshot.json")
    if storage.exists(snapshot) and not can_go_on(storage.read_text(snapshot)):
        storage.delete(run)
    trainer = (_LocalTrainer if ray_is_ours else TorchTrainer)(
        worker,
        train_loop_config=dict(arguments),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=each.get("GPU", 0) > 0, resources_per_worker=dict(each)
        ),
        run_config=RunConfig(
            # The settings are part of the name: a run that goes on after a kill never meets another's checkpoint.
            name=arguments["fingerprint"],
            storage_path=_storage_path(arguments["kept"]),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=LoggingConfig("ERROR"),
            callbacks=list(callbacks),
        ),
    )
    try:
        with giving_back():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise StudyError(reason(error)) from error


def fit_detector(arguments: Mapping[str, Any]) -> None:
    """Fit a classical detector.

    Args:
        arguments: as for `train_alone`.
    """
    save_detector(arguments)


def reason(error: BaseException) -> str:
    """The last line that says something, out of a traceback that was carried across processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _LocalTrainer(TorchTrainer):  # type: ignore[misc]
    """Without the actor that removes the placement group of a controller that died; `giving_back` does that here.

    It asks the dashboard, which a Ray of our own does not have, and each run would end with waiting 12 s for it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def can_go_on(snapshot: str) -> bool:
    """Whether Ray Train may go on from its snapshot of a run.

    Ray Train removes the folders of checkpoints that it keeps no longer, by the names that stand there: none of them
    may lead to somebody else's folder.
    """
    try:
        state = json.loads(snapshot)
        results = [*state["checkpoint_results"], *state["pending_training_results"]]
        results += [state["latest_checkpoint_result"]] if state.get("latest_checkpoint_result") else []
        return all(_CHECKPOINT.fullmatch(result["checkpoint_dir_name"]) for result in results)
    except (ValueError, KeyError, TypeError):
        return False


def _state_bytes(training: Training) -> bytes:
    buffer = io.BytesIO()
    torch.save(training.state(), buffer)
    return buffer.getvalue()


def _storage_path(location: str) -> str:
    """An absolute path or a URI: the workers' current folder is not ours."""
    return storage.quoted(location) if storage.is_remote(location) else storage.locate(location)[1]
