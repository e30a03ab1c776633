"""Features → trained models: Ray Train fits one network for each (model, seed).

Every training reads all features into memory: for a data set that fits there and hundreds of epochs nothing is faster.
Each is one Ray Train run, kept in `training/` of the study's root until its best weights stand in
`models/<model>-<seed>/model.safetensors`, beside the resolved `study.yaml` and the table `epochs.parquet`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from faithad import schemas, storage
from faithad.config import Study
from faithad.errors import StudyError
from faithad.evaluation.alarms import fit_alarm
from faithad.evaluation.detection import worst_second
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.training import TrainingSettings
from faithad.pipelines.features import fit_normalization, load_features
from faithad.pipelines.session import ray_session
from faithad.pipelines.stages import Stage, flatten
from faithad.pipelines.training_worker import Progress, read_checkpoint, train_worker
from faithad.progress import console, progress

# Settings that say how a training is spread, not what it computes.
_SPREAD = {"trainings_at_once", "checkpoint_every", "workers", "cpus_per_worker", "gpus_per_worker", "max_failures"}
# Settings that the AE does not have.
_MASKING = {"mask_ratio", "patch"}


def train_stage(study: Study, model: str, seed: int, features: Stage) -> Stage:
    left_out = _SPREAD | (_MASKING if model == "ae" else set())
    settings = flatten("train", study.train.model_dump(mode="json", exclude=left_out))
    settings |= {
        "features.normalization": study.features.normalization,
        "features": features.fingerprint,
        "model": model,
        "seed": seed,
    }
    folder = f"models/{model}-{seed}"
    outputs = (folder, f"training/{model}-{seed}")
    return Stage(study.root, f"train-{model}-{seed}", settings, outputs, result=f"{folder}/model.safetensors")


def model_folder(root: str, model: str, seed: int) -> str:
    return storage.join(root, "models", f"{model}-{seed}")


def validation_scores_location(root: str, model: str, seed: int) -> str:
    return storage.join(model_folder(root, model, seed), "validation_scores.parquet")


def train_models(study: Study, stages: dict[tuple[str, int], Stage], *, redo: bool) -> None:
    """Train all (model, seed) pairs of the study that are not done yet.

    Raises:
        StudyError: a training failed for good, or the cluster can never give what the workers ask for.
    """
    todo = [run for run in study.runs if stages[run].begin(redo=redo)]
    if not todo:
        return
    normalization = fit_normalization(study)
    with ray_session():
        for model, seed in todo:
            stage = stages[model, seed]
            state = _fit(study, model, seed, stage.fingerprint, normalization)
            trained = _best_model(study, model, seed, stage.fingerprint, normalization, state)
            folder = model_folder(study.root, model, seed)
            storage.write_text(storage.join(folder, "study.yaml"), study.to_yaml())
            save_model(trained, folder)
            stage.finish()
            storage.delete(storage.join(study.root, "training", f"{model}-{seed}"))


def _fit(study: Study, model: str, seed: int, fingerprint: str, normalization: Normalization) -> dict[str, Any]:
    """Run one training on the cluster and return its last state."""
    per_worker = _worker_resources(study)
    tracker = ray.remote(Progress).options(num_cpus=0).remote()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "study": study.to_yaml(),
            "model": model,
            "seed": seed,
            "settings": asdict(_settings(study, model, seed)),
            "mean": normalization.mean.tolist(),
            "std": normalization.std.tolist(),
            "threads": max(1, int(per_worker["CPU"])),
            "progress": tracker,
        },
        scaling_config=ScalingConfig(
            num_workers=study.train.workers,
            use_gpu=study.train.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            # The settings are part of the name: a run that goes on after a kill never meets another's checkpoint.
            name=fingerprint,
            storage_path=_storage_path(storage.join(study.root, "training", f"{model}-{seed}")),
            failure_config=FailureConfig(max_failures=study.train.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=LoggingConfig("ERROR"),
        ),
    )
    with _shown(f"train {model}-{seed}", study.train.epochs, tracker):
        try:
            result: Result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise StudyError(f"Training {model}-{seed} failed: {_reason(error)}") from error
    if result.checkpoint is None:
        raise StudyError(f"Training {model}-{seed} ended without a checkpoint.")
    return read_checkpoint(result.checkpoint)


def _best_model(
    study: Study, model: str, seed: int, fingerprint: str, normalization: Normalization, state: dict[str, Any]
) -> TrainedModel:
    """The network of the best epoch; the scores of the validation normals, to fit alarms on, are written beside it."""
    best = [epoch for epoch in state["history"] if epoch["best"]]
    if not best:
        raise StudyError(
            f"Training {model}-{seed} diverged in its first epoch: the validation loss is no finite number. "
            "Lower train.learning_rate or set features.normalization to 'training'."
        )
    n_frames = study.n_frames(model)
    network = SkipCAETransformer(study.features.n_mels, n_frames)
    network.load_state_dict(state["best_weights"])
    network.eval()
    validation = normalization.apply(load_features(study.root, "validation", study.feature_settings)[..., :n_frames])
    with torch.inference_mode():
        errors = torch.cat([(network(x) - x).square() for x in validation.split(study.train.batch_size)])
    frames_per_s = study.feature_settings.frames_per_s
    scores = {
        "score": errors.mean(dim=(-2, -1), dtype=torch.float64).numpy(),
        "worst_second_score": np.array([worst_second(error, frames_per_s).score for error in errors]),
    }
    table = pa.table(scores, schema=schemas.VALIDATION_SCORES)
    location = validation_scores_location(study.root, model, seed)
    storage.write_table(table, location, schema=schemas.VALIDATION_SCORES)
    console.print(
        f"train {model}-{seed}: best epoch {best[-1]['epoch']} of {len(state['history'])}, "
        f"validation loss {best[-1]['validation_loss']:.4g}"
    )
    return TrainedModel(
        network=network,
        normalization=normalization,
        features=study.feature_settings,
        name=model,
        seed=seed,
        alarm=fit_study_alarm(study, table),
        best_epoch=best[-1]["epoch"],
        config_hash=fingerprint,
    )


def fit_study_alarm(study: Study, validation_scores: pa.Table) -> AlarmThreshold:
    """The alarm as the study wants it, on the validation scores of one model."""
    column = "score" if study.alarm.pooling == "mean" else "worst_second_score"
    scores = validation_scores[column].to_numpy()
    return fit_alarm(scores, **study.alarm.model_dump(), clip_s=study.data.clip_s)


def _settings(study: Study, model: str, seed: int) -> TrainingSettings:
    values = study.train.model_dump(exclude=_SPREAD | {"compile"})
    if model == "ae":
        values["mask_ratio"] = None
    return TrainingSettings(**values, seed=seed)


def _worker_resources(study: Study) -> dict[str, float]:
    """What each worker asks for. A request that this cluster can never meet would wait for ever: refuse it."""
    workers, gpus = study.train.workers, study.train.gpus_per_worker
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if study.train.cpus_per_worker:
        cpus = study.train.cpus_per_worker
    else:
        # The largest whole number of cores that all workers can have.
        largest = int(max(node.get("CPU", 0) for node in nodes))
        cpus = next((n for n in range(largest, 1, -1) if _places(nodes, {"CPU": n, "GPU": gpus}) >= workers), 1)
    each = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    if _places(nodes, each) < workers:
        asked = " and ".join(f"{amount:g} {resource}" for resource, amount in each.items())
        there = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
        raise StudyError(
            f"Training asks for {workers} workers with {asked} each, the cluster's machines have: {there}. "
            "Lower train.workers, train.cpus_per_worker or train.gpus_per_worker."
        )
    return each


def _places(nodes: list[dict[str, float]], each: dict[str, float]) -> int:
    """How many workers with these resources the nodes can hold at once."""
    needed = {resource: amount for resource, amount in each.items() if amount}
    return sum(min(int(node.get(resource, 0) / amount) for resource, amount in needed.items()) for node in nodes)


def _storage_path(location: str) -> str:
    """An absolute path or a URI: the workers' current folder is not the driver's."""
    return location if storage.is_remote(location) else storage.locate(location)[1]


def _reason(error: BaseException) -> str:
    """The last line that says something, out of a traceback that was carried across processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _shown(title: str, epochs: int, tracker: Any) -> Iterator[None]:
    """Show the epochs that rank 0 pushes to the tracker while the block waits for the training."""
    ended = threading.Event()
    with progress(title, epochs) as ticker:

        def watch() -> None:
            while not ended.wait(0.5):
                if last := ray.get(tracker.last.remote()):
                    ticker.update(last["epoch"], last["note"])

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
