"""The end of a training: the best network, or a fitted model, is saved to `models/<model>-<seed>/`.

Beside `model.safetensors` stand the resolved `study.yaml` and the scores of the validation normals, on which the alarm
is fitted. The model's file is written last: if it is there, all is.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import cast

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
from faithad.model.linear import LinearModel, fit_linear
from faithad.model.masking import mean_per_clip
from faithad.model.precision import arithmetic
from faithad.model.table import MODELS, build_network
from faithad.model.training import Training
from faithad.model.training_sound import TrainingSound, mean_spectra
from faithad.pipelines.features import TRAINING_SPLITS, count_features, load_n_frames, read_features
from faithad.pipelines.training.clips import read_clips, training_clips
from faithad.pipelines.training.task import TrainingTask
from faithad.runs import layout
from faithad.vocabulary import FITTED, POOLINGS

NEVER_LEARNED = (
    "it diverged in its first epoch: the validation loss is not a finite number. Lower train.learning_rate or set "
    "features.normalization to 'training'."
)
# A linear model of this many clips at a time needs 100 MB.
_CLIPS_AT_ONCE = 16


def fit_study_alarm(study: Study, model: str, validation_scores: pa.Table) -> AlarmThreshold:
    """The alarm as the study sets it, on the validation scores of one model.

    A model that scores whole clips only has no worst seconds: its pooling is `mean`, whatever the study says.
    """
    pooling = FITTED if study.score_of(model) is not None else study.alarm.pooling
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
    batches = training_clips(task, "validation").split(study.train.batch_size)
    _save(network, task, *_scores(network, task, batches, device), best_epoch=training.best.epoch)


def save_fitted(task: TrainingTask) -> None:
    """Fit a classical detector or a linear model to the training clips and save it, with its alarm."""
    if MODELS[task.model].linear:
        torch.set_num_threads(1)  # the last digits of an eigenvector depend on the number of threads
        _save_linear(task)
        return
    torch.set_num_threads(task.threads)
    detector = fit_classical(task.model, training_clips(task, "train"), seed=task.seed)
    with torch.inference_mode():
        scores = detector(training_clips(task, "validation"))
    _save(detector, task, scores, pa.nulls(len(scores), pa.float64()), best_epoch=0)


def _save_linear(task: TrainingTask) -> None:
    features = task.study.features
    model = build_network(task.model, features.n_mels, task.study.n_frames(task.model), reference=features.reference)
    n_clips = count_features(task.study.root, "train")
    fit_linear(cast(LinearModel, model), read_clips(task, "train"), n_clips=n_clips, seed=task.seed)
    batches = (batch for part in read_clips(task, "validation") for batch in part.split(_CLIPS_AT_ONCE))
    _save(model, task, *_scores(model, task, batches, torch.device("cpu")), best_epoch=0)


def _scores(
    network: nn.Module, task: TrainingTask, batches: Iterable[Tensor], device: torch.device
) -> tuple[Tensor, np.ndarray]:
    """The mean squared error of each validation clip, and that of its worst second; batches are in order of clip_id."""
    scores, seconds = list[Tensor](), list[float]()
    study = task.study
    frames_per_s, whole = study.feature_settings.frames_per_s, study.n_frames(task.model)
    lengths = iter(load_n_frames(study, "validation", task.model))
    with torch.inference_mode(), arithmetic("float32"):  # a GPU rounds by default; an audit does not
        for batch in batches:
            x = batch.to(device)
            errors, n_frames = (network(x) - x).square().cpu(), list(islice(lengths, len(x)))
            scores.append(mean_per_clip(errors, n_frames, dtype=torch.float64))
            seconds += [
                worst_second(error[:, :n], frames_per_s, cut_off=n < whole).score
                for error, n in zip(errors, n_frames, strict=True)
            ]
    return torch.cat(scores), np.array(seconds)


def _save(
    network: nn.Module, task: TrainingTask, scores: Tensor, worst_seconds: np.ndarray | pa.Array, *, best_epoch: int
) -> None:
    study, model, seed = task.study, task.model, task.seed
    columns = {"score": scores.cpu().numpy(), "worst_second_score": worst_seconds}
    columns["paper_score"] = pa.nulls(len(scores), pa.float64())
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
        # `scores` gives it the study's score afterwards, if that is another one than the paper's.
        alarm=fit_study_alarm(study.model_copy(update={"score": "paper"}), model, table),
        best_epoch=best_epoch,
        config_hash=task.fingerprint,
        sound=_training_sound(study),
    )
    save_model(trained, folder)


def _training_sound(study: Study) -> TrainingSound:
    """Shards are in the order of clip_id, which is a hash: their first clips are a random sample."""
    train, validation = (
        mean_spectra(read_features(study.root, split, study.feature_settings), study.feature_settings)
        for split in TRAINING_SPLITS
    )
    return TrainingSound.fit(train, validation)
