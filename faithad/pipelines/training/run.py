"""Features → trained models: one network for each (model, seed), as many side by side as the cluster carries.

All features are held in memory, once on each machine: for hundreds of epochs nothing is faster.
Each is one Ray task (see `training.task`) and one stage: what is finished stays finished, whatever becomes of the rest.
Until its best weights stand in `models/<model>-<seed>/model.safetensors`, beside the resolved `study.yaml` and the
table `epochs.parquet`, its last state is kept in `training/` of the study's root, for an interrupted run to go on from.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from faithad import storage
from faithad.config.study import Study
from faithad.errors import FaithadError, StudyError
from faithad.features import Normalization
from faithad.model.table import MODELS
from faithad.pipelines.cluster.machines import wait_s
from faithad.pipelines.cluster.session import ray_is_ours, ray_session
from faithad.pipelines.features import fit_normalization
from faithad.pipelines.index import require_study_visible
from faithad.pipelines.training.clips import share_clips
from faithad.pipelines.training.places import Places, find_places
from faithad.pipelines.training.task import fit_detector, reason, train_alone, train_together
from faithad.progress import Ticker, console, side_by_side
from faithad.runs import layout
from faithad.runs.stages import Stage, flatten
from faithad.settings import TrainingSettings

# Settings that say how a training is spread, not what it computes.
_SPREAD = {"trainings_at_once", "checkpoint_every", "workers", "cpus_per_worker", "gpus_per_worker", "max_failures"}
# Settings that the MAE alone has.
_MASKING = {"mask_ratio", "patch"}

_LOOK_EVERY_S = 0.5


def train_stage(study: Study, model: str, seed: int, features: Stage) -> Stage:
    if MODELS[model].classical:
        settings: dict[str, Any] = {}
    else:
        left_out = _SPREAD | (set() if MODELS[model].masked else _MASKING)
        settings = flatten("train", study.train.model_dump(mode="json", exclude=left_out))
    settings |= {
        "features.normalization": study.features.normalization,
        "features": features.fingerprint,
        "model": model,
        "seed": seed,
    }
    folder = layout.model(model, seed)
    outputs = (folder, layout.training(model, seed))
    return Stage(study.root, f"train-{model}-{seed}", settings, outputs, result=f"{folder}/model.safetensors")


def train_models(study: Study, stages: dict[tuple[str, int], Stage], *, redo: bool) -> None:
    """Train all (model, seed) pairs of the study that are not done yet.

    Raises:
        StudyError: the cluster can never give what the workers ask for, or trainings failed for good; then all others
            were brought to their end, and each failed one is named.
    """
    todo = [run for run in study.runs if stages[run].begin(redo=redo)]
    if not todo:
        return
    normalization = fit_normalization(study)
    with ray_session():
        places = find_places(study.train, len(study.runs), queue=True)
        require_study_visible(study)  # by the machines that were waited for, too
        clips = share_clips(study, normalization)
        trainings = [_Training(study, *run, stages[run], normalization, clips, places) for run in todo]
        failed = _run(trainings, places)
    if len(failed) == 1:
        raise StudyError(f"Training {failed[0]}")
    if failed:
        told = "\n".join(f"  {line}" for line in failed)
        raise StudyError(
            f"{len(failed)} of {len(todo)} trainings failed; what the others came to is kept. The failed ones:\n{told}"
        )


class _Training:
    """One training, as the driver sees it."""

    def __init__(
        self,
        study: Study,
        model: str,
        seed: int,
        stage: Stage,
        normalization: Normalization,
        clips: dict[str, ray.ObjectRef],
        places: Places,
    ) -> None:
        self.name = f"{model}-{seed}"
        self._study, self._model, self._seed, self._stage, self._places = study, model, seed, stage, places
        self._kept = storage.join(study.root, layout.training(model, seed))
        self._arguments = {
            "study": study.to_yaml(),
            "root": study.root,
            "kept": self._kept,
            "fingerprint": stage.fingerprint,
            "model": model,
            "seed": seed,
            "settings": asdict(_settings(study, model, seed)),
            "checkpoint_every": study.train.checkpoint_every,
            "mean": normalization.mean.tolist(),
            "std": normalization.std.tolist(),
            "clips": clips,
            "threads": places.threads,
        }
        self._losses = 0
        self._ticker: Ticker | None = None
        self._look_at = 0.0

    def start(self, show: Callable[[str, int], Ticker]) -> ray.ObjectRef:
        """Hand the training to Ray, for the first time or after its process was lost."""
        if self._ticker is None and not MODELS[self._model].classical:
            self._ticker = show(f"train {self.name}", self._study.train.epochs)
        each, workers = self._places.each, self._places.workers
        # Ray is not to try again by itself: it would not say so, and would not count what runs out of memory.
        options = {"max_retries": 0, "name": f"train {self.name}"}
        if MODELS[self._model].classical:
            return ray.remote(fit_detector).options(num_cpus=each["CPU"], **options).remote(self._arguments)
        if workers == 1:
            task = ray.remote(train_alone).options(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0), **options)
            return task.remote(self._arguments)
        return (
            ray.remote(train_together)
            .options(num_cpus=0, **options)
            .remote(
                self._arguments,
                workers=workers,
                each=each,
                max_failures=self._study.train.max_failures,
                ray_is_ours=ray_is_ours(),
            )
        )

    def may_go_on(self, error: BaseException) -> bool:
        """Whether a training whose process or machine was lost is to be started again; told to the user."""
        self._losses += 1
        allowed = self._study.train.max_failures
        if self._losses <= allowed:
            what = f"lost its process ({type(error).__name__}) and goes on from its last state"
            console.print(f"train {self.name}: {what}; {self._losses} of {allowed} times allowed")
        return self._losses <= allowed

    def finish(self) -> None:
        """Mark the training as done, now that its task has ended well.

        Raises:
            StudyError: the model cannot be seen from here.
        """
        self._look_at = 0.0
        self.look()
        if not storage.exists(storage.join(self._study.root, self._stage.result)):
            raise StudyError(
                f"its model cannot be found in {self._study.root}. If the cluster has several machines, the root must "
                "be a folder that all of them share, or a URI such as s3://bucket/folder."
            )
        self._stage.finish()
        storage.delete(self._kept)
        self.close()
        console.print(f"train {self.name}: {self._came_to()}")

    def close(self) -> None:
        """Take the bar away: the training has ended, well or not."""
        if self._ticker is not None:
            self._ticker.close()

    def look(self) -> None:
        """Show what the training's table says by now, for a tenth of the time at most: a store may answer slowly."""
        started = time.monotonic()
        if self._ticker is None or started < self._look_at:
            return
        if epochs := self._epochs_so_far():
            last = epochs[-1]
            note = f"loss {last['train_loss']:.4g}, validation {last['validation_loss']:.4g}{told_divergence(epochs)}"
            self._ticker.update(last["epoch"], note)
        self._look_at = time.monotonic() + 9 * (time.monotonic() - started)

    def _came_to(self) -> str:
        if self._ticker is None:
            return "fitted"
        epochs = self._epochs()
        best = [epoch for epoch in epochs if epoch["best"]][-1]
        loss = f"validation loss {best['validation_loss']:.4g}"
        return f"best epoch {best['epoch']} of {len(epochs)}, {loss}{told_divergence(epochs)}"

    def _epochs(self) -> list[dict[str, Any]]:
        location = storage.join(self._study.root, layout.epochs(self._model, self._seed))
        epochs: list[dict[str, Any]] = storage.read_table(location).to_pylist()
        return epochs

    def _epochs_so_far(self) -> list[dict[str, Any]]:
        # A bar may wait: that the table is not there, or cannot be reached for a moment, is no reason to stop.
        with contextlib.suppress(FaithadError, OSError):
            return self._epochs()
        return []


def _run(trainings: list[_Training], places: Places) -> list[str]:
    """Bring all trainings to their end, `places.at_once` at a time.

    Returns:
        The name and the reason of each that failed for good.
    """
    waiting, running, failed = deque(trainings), dict[ray.ObjectRef, _Training](), list[str]()
    hope = _Hope(places)
    with side_by_side() as show:
        try:
            while running or waiting:
                while waiting and len(running) < places.at_once:
                    training = waiting.popleft()
                    running[training.start(show)] = training
                ended, _ = ray.wait(list(running), timeout=_LOOK_EVERY_S)
                for task in ended:
                    training = running.pop(task)
                    try:
                        ray.get(task)
                        training.finish()
                    except (FaithadError, RayError, OSError) as error:
                        cause = _cause(error)
                        is_lost = isinstance(cause, RayError)
                        if is_lost and training.may_go_on(cause):
                            waiting.append(training)
                            continue
                        training.close()
                        what = "lost its process" if is_lost else "failed"
                        failed.append(f"{training.name} {what}: {_told(cause)}")
                for training in running.values():
                    training.look()
                if hope.is_lost():
                    waiting.extend(running.values())
                    break
        finally:
            for task in running:
                ray.cancel(task)
    nowhere = "has no place to run any more; the same command goes on with it where there is one"
    return [*sorted(failed), *(f"{training.name} {nowhere}" for training in waiting)]


@dataclass
class _Hope:
    """Whether a cluster that lost machines can still hold one training, or may hold one again in time."""

    places: Places
    since: float = 0.0

    def is_lost(self) -> bool:
        now = time.monotonic()
        if self.places.can_still_be_met() or not self.since:
            self.since = now
        return now - self.since > wait_s()


def _settings(study: Study, model: str, seed: int) -> TrainingSettings:
    values = study.train.model_dump(exclude=_SPREAD | {"compile"})
    if not MODELS[model].masked:
        values["mask_ratio"] = None
    return TrainingSettings(**values, seed=seed)


def told_divergence(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Where a training has diverged, if it has, and what came of it."""
    numbers = [epoch["epoch"] for epoch in epochs if epoch["diverged"]]
    if not numbers:
        return ""
    ended = f", diverged again in epoch {numbers[1]} and ended" if len(numbers) > 1 else ""
    return f"; diverged in epoch {numbers[0]} and went back to its best one{ended}"


def _cause(error: BaseException) -> BaseException:
    """What went wrong first: a task may fail because one that it waits for did."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def _told(error: BaseException) -> str:
    """What an error says; of one that no user can act on the kind and the last line, since a traceback may hang on."""
    return str(error) if isinstance(error, FaithadError) else f"{type(error).__name__}: {reason(error)}"
