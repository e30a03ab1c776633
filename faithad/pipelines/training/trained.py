"""The end of a training: the best network, or a fitted detector, is saved to `models/<model>-<seed>/`.

Beside `model.safetensors` stand the resolved `study.yaml` and the scores of the validation normals, on which the alarm
is fitted. The model's file is written last: if it is there, all is.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from faithad import schemas, storage
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.evaluation.alarms import fit_alarm
from faithad.evaluation.detection import worst_second
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.classical import fit_classical
from faithad.model.masking import mean_per_clip
from faithad.model.precision import arithmetic
from faithad.model.table import build_network
from faithad.model.training import Training
from faithad.pipelines.features import load_n_frames
from faithad.pipelines.training.clips import training_clips
from faithad.pipelines.training.task import TrainingTask
from faithad.runs import layout
from faithad.vocabulary import POOLINGS

NEVER_LEARNED = (
    "it diverged in its first epoch: the validation loss is not a finite number. Lower train.learning_rate or set "
    "features.normalization to 'training'."
)


def fit_study_alarm(study: Study, validation_scores: pa.Table) -> AlarmThreshold:
    """The alarm as the study sets it, on the validation scores of one model.

    A model that scores whole clips only has no worst seconds: its pooling is `mean`, whatever the study says.
    """
    pooling = study.alarm.pooling
    if validation_scores[POOLINGS[pooling].column].null_count:
        pooling = "mean"
    scores = validation_scores[POOLINGS[pooling].column].to_numpy()
    return fit_alarm(scores, **study.alarm.model_dump() | {"pooling": pooling}, clip_s=study.data.clip_s)


def save_network(training: Training, task: TrainingTask, *, device: torch.device) -> None:
    """Save the network of a finished training's best epoch, with its alarm; the device scores the validation clips.

    Raises:
        StudyError: no epoch had a finite validation loss.
    """
    if training.best is None:
        raise StudyError(NEVER_LEARNED)
    study = task.study
    network = build_network(task.model, study.features.n_mels, study.n_frames(task.model))
    network.load_state_dict(training.best_weights())
    network.to(device).eval()
    with torch.inference_mode(), arithmetic("float32"):  # a GPU rounds by default; an audit does not
        errors = [
            (network(x.to(device)) - x.to(device)).square().cpu()
            for x in training_clips(task, "validation").split(study.train.batch_size)
        ]
    frames_per_s, whole = study.feature_settings.frames_per_s, study.n_frames(task.model)
    scores, seconds = [], []
    lengths = iter(load_n_frames(study, "validation", task.model))
    for batch in errors:
        n_frames = list(islice(lengths, len(batch)))
        scores.append(mean_per_clip(batch, n_frames, dtype=torch.float64))
        seconds += [
            worst_second(error[:, :n], frames_per_s, cut_off=n < whole).score
            for error, n in zip(batch, n_frames, strict=True)
        ]
    _save(network, task, torch.cat(scores), worst_seconds=np.array(seconds), best_epoch=training.best.epoch)


def save_detector(task: TrainingTask) -> None:
    """Fit a classical detector on the training clips and save it, with its alarm."""
    torch.set_num_threads(task.threads)
    detector = fit_classical(task.model, training_clips(task, "train"), seed=task.seed)
    with torch.inference_mode():
        scores = detector(training_clips(task, "validation"))
    _save(detector, task, scores, worst_seconds=pa.nulls(len(scores), pa.float64()), best_epoch=0)


def _save(
    network: nn.Module, task: TrainingTask, scores: Tensor, *, worst_seconds: np.ndarray | pa.Array, best_epoch: int
) -> None:
    study, model, seed = task.study, task.model, task.seed
    columns = {"score": scores.cpu().numpy(), "worst_second_score": worst_seconds}
    table = pa.table(columns, schema=schemas.VALIDATION_SCORES)
    location = storage.join(study.root, layout.validation_scores(model, seed))
    storage.write_table(table, location, schema=schemas.VALIDATION_SCORES)
    folder = storage.join(study.root, layout.model(model, seed))
    storage.write_text(storage.join(folder, layout.STUDY), study.to_yaml())
    trained = TrainedModel(
        network=network.cpu(),
        normalization=task.normalization,
        features=study.feature_settings,
        name=model,
        seed=seed,
        alarm=fit_study_alarm(study, table),
        best_epoch=best_epoch,
        config_hash=task.fingerprint,
    )
    save_model(trained, folder)
