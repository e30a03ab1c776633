"""Several workers that share one training: a Ray Train run.

Ray Train starts the workers, joins them in a process group, and starts them again when one is lost; they go on from
the state that the first of them saved (see `worker`). Nothing of Ray Train's own is kept.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from faithad.errors import StudyError
from faithad.pipelines.cluster.lost_places import giving_back
from faithad.pipelines.training.meeting_point import MeetingPoint
from faithad.pipelines.training.places import Places
from faithad.pipelines.training.task import Worker

Task = TypeVar("Task")

# Ray Train reads these in the process that starts a run, and hands them on to the others.
_SETTINGS = {
    # The controller notices that workers ended only when it polls: every two seconds by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # After a machine was lost, a run may have to wait for another one to end.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
}
# A Ray of our own has no spot market that takes machines away, and nobody who reads metrics.
_SETTINGS_OF_OUR_RAY = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}


def run_on_workers(
    function: Callable[[Task, Worker], None],
    task: Task,
    *,
    places: Places,
    max_failures: int,
    ray_is_ours: bool,
    interface: str | None = None,
) -> None:
    """Call a function with a task on each of several workers, which are one process group of PyTorch's.

    Args:
        function: of the task and the worker.
        task: the same for all of them.
        places: how many workers there are, and what each asks for.
        max_failures: how often they may lose one of them, or fail, and are started again.
        ray_is_ours: whether Ray was started for us alone and goes with us.
        interface: see `meeting_point.MeetingPoint`.

    Raises:
        StudyError: it failed once more.
    """
    for name, value in {**_SETTINGS, **(_SETTINGS_OF_OUR_RAY if ray_is_ours else {})}.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as folder, giving_back():
        trainer = (_LocalTrainer if ray_is_ours else TorchTrainer)(
            _call,
            train_loop_config={"function": function, "task": task},
            torch_config=MeetingPoint(interface=interface),
            scaling_config=ScalingConfig(
                num_workers=places.workers, use_gpu=places.each.get("GPU", 0) > 0, resources_per_worker=places.each
            ),
            run_config=RunConfig(
                storage_path=folder,
                failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
                logging_config=LoggingConfig("ERROR"),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise StudyError(last_line(error)) from error


def last_line(error: BaseException) -> str:
    """The last line of an error's text that is not empty: a traceback from another process may come before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _LocalTrainer(TorchTrainer):  # type: ignore[misc]
    """Without the actor that removes the placement group of a controller that died; `giving_back` does that here.

    It asks the dashboard, which a Ray of our own does not have, and each run would end with waiting 12 s for it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def _call(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    worker = Worker(ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size())
    config["function"](config["task"], worker)
