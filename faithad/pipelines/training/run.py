"""Features → trained models: one network for each (model, seed), as many side by side as the cluster carries.

Each training is one Ray task. With one worker the task itself trains; with several it takes no core and starts a Ray
Train run, whose workers train. Ray Train would start a controller, a barrier and two watchers around a single worker, a
process each: on two cores that took 20 s a training and 1 GB, where a task takes 5 s, or nothing in a running process.

Each training is a stage of its own: it stays finished, whatever happens to the others. The best weights are in
`models/<model>-<seed>/model.safetensors`, next to the resolved `study.yaml` and the table `epochs.parquet`. The last
state is in `training/` of the study's root: a training that was cut off goes on from it, and one that gets more epochs
(see `more_epochs`).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from faithad import parquet, storage
from faithad.attribution.methods import choose_methods
from faithad.attribution.point_stream import grad_cam_layer
from faithad.config.study import Study
from faithad.errors import FaithadError, StudyError
from faithad.model.checkpoint import FILE_NAME, read_digest
from faithad.model.table import MODELS
from faithad.pipelines.cluster.machines import alive_nodes, held, wait_s
from faithad.pipelines.cluster.session import ray_is_ours, ray_session
from faithad.pipelines.features import fit_normalization
from faithad.pipelines.index import require_study_visible
from faithad.pipelines.tracked import track_study
from faithad.pipelines.training.clips import share_clips
from faithad.pipelines.training.disk import require_disk, weights_bytes
from faithad.pipelines.training.more_epochs import remove_other_states, state_location, with_more_epochs
from faithad.pipelines.training.places import Places, find_places
from faithad.pipelines.training.ray_train import last_line, run_on_workers
from faithad.pipelines.training.scores import fit_scores
from faithad.pipelines.training.task import SPREAD, TrainingTask, Worker, network_of
from faithad.pipelines.training.trained import damage, save_fitted
from faithad.pipelines.training.worker import load_initial_weights, train_network
from faithad.progress import Ticker, console, side_by_side
from faithad.runs import layout
from faithad.runs.lock import require_still_alone
from faithad.runs.stages import ResumableStage, flatten

# Settings of the MAE alone.
_MASKING = {"mask_ratio", "patch"}

_LOOK_EVERY_S = 0.5


def train_stage(study: Study, model: str, seed: int, features: ResumableStage) -> ResumableStage:
    if MODELS[model].fitted:
        settings: dict[str, Any] = {}
    else:
        left_out = {*SPREAD, "init_from"} | (set() if MODELS[model].masked else _MASKING)
        settings = flatten("train", study.train.model_dump(mode="json", exclude=left_out))
        settings |= flatten("model", study.network_options(model))
        if study.train.init_from is not None:
            settings["train.init_from"] = read_digest(study.train.init_from)
    settings |= {
        "features.normalization": study.features.normalization,
        "features": features.fingerprint,
        "model": model,
        "seed": seed,
    }
    if MODELS[model].takes_reference:
        settings["features.reference"] = study.features.own_reference
    folder = layout.model(model, seed)
    outputs = (folder, layout.training(model, seed))
    return ResumableStage(study.root, f"train-{model}-{seed}", settings, outputs, result=f"{folder}/{FILE_NAME}")


def train_models(study: Study, stages: dict[tuple[str, int], ResumableStage], *, redo: bool) -> None:
    """Train all (model, seed) pairs of the study that are not done yet, or whose files are damaged, and fit the study's
    score to each.

    Raises:
        ConfigError: a network lacks what one of the study's methods needs to explain it.
        StudyError: the cluster can never give what the workers ask for, or trainings failed for good. The others are
            finished first, and the error names each one that failed.
    """
    damaged = {run: text for run in study.runs if stages[run].is_done() and (text := damage(study, *run)) is not None}
    for (model, seed), text in damaged.items():
        console.print(f"train {model}-{seed}: {text} This model is trained again.")
    undone = [run for run in study.runs if not stages[run].is_done()]
    stages = stages | {run: with_more_epochs(study, stages[run], *run) for run in undone}
    if todo := [run for run in study.runs if stages[run].begin(redo=redo, again=run in damaged)]:
        _train_models(study, stages, todo)
    fit_scores(study)


def _train_models(study: Study, stages: dict[tuple[str, int], ResumableStage], todo: list[tuple[str, int]]) -> None:
    require_explainable(study, {model for model, _ in todo})
    require_initial_weights(study, {model for model, _ in todo})
    normalization = fit_normalization(study)
    with ray_session():
        places = find_places(study.train, len(study.runs), queue=True)
        require_study_visible(study)  # also by the machines that came in the meantime
        weights = [weights_bytes(study, model) for model, _ in todo]
        require_disk(study.root, weights, at_once=places.at_once, keeps_states=study.train.ends_anywhere)
        # Linear models read the clips shard by shard.
        clips = None if all(MODELS[model].linear for model, _ in todo) else share_clips(study, normalization)
        trainings = []
        for model, seed in todo:
            fingerprint = stages[model, seed].fingerprint
            state = state_location(study, model, seed, fingerprint)
            task = TrainingTask(study, model, seed, normalization, places.threads, state, fingerprint, clips)
            trainings.append(_Training(task, stages[model, seed], places))
        failures = _run(trainings, places)
    if len(failures) == 1:
        raise StudyError(f"Training {failures[0]}")
    if failures:
        listing = "\n".join(f"  {failure}" for failure in failures)
        raise StudyError(
            f"{len(failures)} of {len(todo)} trainings failed; the models of the others are kept. The failed ones:\n"
            f"{listing}"
        )


def require_explainable(study: Study, models: Iterable[str]) -> None:
    """Notice before a training what would stop the audit after it.

    Raises:
        ConfigError: a network lacks what one of the study's methods needs to explain it.
    """
    methods = choose_methods(study.attribution.methods)
    for model in models if study.audit.explain != "none" else ():
        if MODELS[model].explained:
            grad_cam_layer(network_of(study, model), methods)


def require_initial_weights(study: Study, models: Iterable[str]) -> None:
    """Refuse a `train.init_from` that does not fit, before anything is trained.

    Raises:
        CheckpointError, ConfigError: see `load_initial_weights`.
    """
    for model in models if study.train.init_from is not None else ():
        if not MODELS[model].fitted:
            load_initial_weights(network_of(study, model), study, model)


def _train(task: TrainingTask, places: Places, *, ray_is_ours: bool) -> None:
    """The Ray task of one training."""
    if MODELS[task.model].fitted:
        save_fitted(task)
    elif places.workers == 1:
        train_network(task, Worker(torch.device("cuda" if ray.get_gpu_ids() else "cpu")))
    else:
        train = task.study.train
        run_on_workers(
            train_network,
            task,
            places=places,
            max_failures=train.max_failures,
            ray_is_ours=ray_is_ours,
            interface=train.interface,
        )


class _Training:
    """A training as the driver follows it."""

    def __init__(self, task: TrainingTask, stage: ResumableStage, places: Places) -> None:
        self.name = f"{task.model}-{task.seed}"
        self._task, self._stage, self._places = task, stage, places
        self._losses = 0
        self._ticker: Ticker | None = None
        self._look_at = 0.0

    def start(self, show: Callable[[str, int], Ticker]) -> ray.ObjectRef:
        """Hand the training to Ray, for the first time or after its process was lost."""
        task, places, is_fitted = self._task, self._places, MODELS[self._task.model].fitted
        if self._ticker is None and not is_fitted:
            self._ticker = show(f"train {self.name}", task.study.train.epochs)
        n_cpus = places.each["CPU"] if is_fitted or places.workers == 1 else 0
        n_gpus = 0 if is_fitted or places.workers > 1 else places.each.get("GPU", 0)
        # Ray must not retry by itself: it would not say so, and would not count processes that ran out of memory.
        options = {"num_cpus": n_cpus, "num_gpus": n_gpus, "max_retries": 0, "name": f"train {self.name}"}
        return ray.remote(_train).options(**options).remote(task, places, ray_is_ours=ray_is_ours())

    def may_start_again(self, error: BaseException) -> bool:
        """Count the loss of the training's process or machine, and tell the user if the training is started again."""
        self._losses += 1
        allowed = self._task.study.train.max_failures
        if self._losses <= allowed:
            loss = f"lost its process ({type(error).__name__}) and goes on from its last state"
            console.print(f"train {self.name}: {loss}; {self._losses} of {allowed} times allowed")
        return self._losses <= allowed

    def finish(self) -> None:
        """Mark the training as done, after its Ray task ended well.

        Raises:
            StudyError: the model cannot be seen from here.
        """
        root = self._task.study.root
        self._look_at = 0.0
        self.look()
        if not storage.exists(storage.join(root, self._stage.result)):
            raise StudyError(
                f"its model cannot be found in {root}. If the cluster has several machines, the root must "
                "be a folder that all of them share, or a URI such as s3://bucket/folder."
            )
        self._stage.finish()
        remove_other_states(self._task.study, self._task.model, self._task.seed, self._task.fingerprint)
        self.close()
        console.print(f"train {self.name}: {self._result()}")
        track_study(self._task.study)

    def close(self) -> None:
        """Take the bar away: the training has ended, well or not."""
        if self._ticker is not None:
            self._ticker.close()

    def look(self) -> None:
        """Show the last row of the training's table. A slow store may take a tenth of the time at most."""
        started = time.monotonic()
        if self._ticker is None or started < self._look_at:
            return
        # The bar can wait: a table that is not there yet, or cannot be read for a moment, stops nothing.
        with contextlib.suppress(FaithadError, OSError):
            epochs = self._epochs()
            last = epochs[-1]
            note = f"loss {last['train_loss']:.4g}, validation {last['validation_loss']:.4g}{divergence_note(epochs)}"
            self._ticker.update(last["epoch"], note)
        self._look_at = time.monotonic() + 9 * (time.monotonic() - started)

    def _result(self) -> str:
        if self._ticker is None:
            return "fitted"
        epochs = self._epochs()
        best = [epoch for epoch in epochs if epoch["best"]][-1]
        loss = f"validation loss {best['validation_loss']:.4g}"
        wanted = self._task.study.train.epochs
        # A training that diverged twice says so itself.
        is_early = len(epochs) < wanted and sum(epoch["diverged"] for epoch in epochs) < 2
        early = f" (no better one came, so {wanted} were not needed)" if is_early else ""
        return f"best epoch {best['epoch']} of {len(epochs)}{early}, {loss}{divergence_note(epochs)}"

    def _epochs(self) -> list[dict[str, Any]]:
        location = storage.join(self._task.study.root, layout.epochs(self._task.model, self._task.seed))
        epochs: list[dict[str, Any]] = parquet.read_table(location).to_pylist()
        return epochs


def _run(trainings: list[_Training], places: Places) -> list[str]:
    """Run all trainings to their end, `places.at_once` at a time.

    Returns:
        The name and the reason of each that failed for good.
    """
    waiting, running, failures = deque(trainings), dict[ray.ObjectRef, _Training](), list[str]()
    had_room_at = time.monotonic()
    with side_by_side() as show:
        try:
            while running or waiting:
                require_still_alone()
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
                        if is_lost and training.may_start_again(cause):
                            waiting.append(training)
                            continue
                        training.close()
                        failures.append(
                            f"{training.name} {'lost its process' if is_lost else 'failed'}: {_text(cause)}"
                        )
                for training in running.values():
                    training.look()
                if held(alive_nodes(), places.each) >= places.workers:
                    had_room_at = time.monotonic()
                elif time.monotonic() - had_room_at > wait_s():
                    waiting.extend(running.values())
                    break
        finally:
            for task in running:
                ray.cancel(task)
    no_room = "ended: no machines that can hold it are left. The same command goes on with it when there are"
    return [*sorted(failures), *(f"{training.name} {no_room}" for training in waiting)]


def divergence_note(epochs: Sequence[Mapping[str, Any]]) -> str:
    """In which epochs a training diverged and what followed, to go after a comma or a number; empty if it did not."""
    numbers = [epoch["epoch"] for epoch in epochs if epoch["diverged"]]
    if not numbers:
        return ""
    end = f", diverged again in epoch {numbers[1]} and ended" if len(numbers) > 1 else ""
    return f"; diverged in epoch {numbers[0]} and went back to its best one{end}"


def _cause(error: BaseException) -> BaseException:
    """The first error: a task may fail because a task that it waits for did."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def _text(error: BaseException) -> str:
    """What an error says. Of an error that no user can act on, its kind and last line, without a traceback."""
    return str(error) if isinstance(error, FaithadError) else f"{type(error).__name__}: {last_line(error)}"
