"""The end of a training: the best network, or a fitted detector, into `models/<model>-<seed>/`.

Beside `model.safetensors` stand the resolved `study.yaml` and the scores of the validation normals, on which alarms are
fitted. The model's file is written last: where it is, all is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from faithad import schemas, storage
from faithad.config.study import Study, parse_study
from faithad.errors import StudyError
from faithad.evaluation.alarms import fit_alarm
from faithad.evaluation.detection import worst_second
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.classical import fit_classical
from faithad.model.fast_network import arithmetic
from faithad.model.networks import build_network
from faithad.model.training import Training
from faithad.pipelines.training.clips import training_clips
from faithad.runs import layout
from faithad.vocabulary import POOLINGS


def fit_study_alarm(study: Study, validation_scores: pa.Table) -> AlarmThreshold:
    """The alarm as the study wants it, on the validation scores of one model.

    A model that scores clips only has no worst seconds: its alarm speaks of the clip's score, whatever the study says.
    """
    pooling = study.alarm.pooling
    if validation_scores[POOLINGS[pooling].column].null_count:
        pooling = "mean"
    scores = validation_scores[POOLINGS[pooling].column].to_numpy()
    values = study.alarm.model_dump() | {"pooling": pooling}
    return fit_alarm(scores, **values, clip_s=study.data.clip_s)


def save_network(training: Training, arguments: Mapping[str, Any], *, device: torch.device) -> None:
    """Save the network of the best epoch, with its alarm.

    Args:
        training: one that is finished.
        arguments: as `open_training` takes them, and `mean` and `std` of the normalisation, and `fingerprint`.
        device: where the validation clips are scored.

    Raises:
        StudyError: no epoch came to a finite validation loss.
    """
    study = parse_study(arguments["study"], name="study.yaml")
    if training.best is None:
        raise StudyError(
            "it diverged in its first epoch: the validation loss is no finite number. "
            "Lower train.learning_rate or set features.normalization to 'training'."
        )
    network = build_network(arguments["model"], study.features.n_mels, study.n_frames(arguments["model"]))
    network.load_state_dict(training.best_weights())
    network.to(device).eval()
    frames_per_s = study.feature_settings.frames_per_s
    with torch.inference_mode(), arithmetic("float32"):  # a GPU rounds by default; an audit does not
        errors = [
            (network(x.to(device)) - x.to(device)).square().cpu()
            for x in training_clips(arguments, study, "validation").split(study.train.batch_size)
        ]
    scores = torch.cat([error.mean(dim=(-2, -1), dtype=torch.float64) for error in errors])
    seconds = [worst_second(error, frames_per_s).score for batch in errors for error in batch]
    _save(network, arguments, study, scores, worst_seconds=seconds, best_epoch=training.best.epoch)


def save_detector(arguments: Mapping[str, Any]) -> None:
    """Fit a classical detector on the training clips and save it, with its alarm."""
    study = parse_study(arguments["study"], name="study.yaml")
    torch.set_num_threads(arguments["threads"])
    detector = fit_classical(arguments["model"], training_clips(arguments, study, "train"), seed=arguments["seed"])
    with torch.inference_mode():
        scores = detector(training_clips(arguments, study, "validation"))
    _save(detector, arguments, study, scores, worst_seconds=None, best_epoch=0)


def _save(
    network: nn.Module,
    arguments: Mapping[str, Any],
    study: Study,
    scores: Tensor,
    *,
    worst_seconds: list[float] | None,
    best_epoch: int,
) -> None:
    model, seed = arguments["model"], arguments["seed"]
    columns = {
        "score": scores.cpu().numpy(),
        "worst_second_score": pa.nulls(len(scores), pa.float64()) if worst_seconds is None else np.array(worst_seconds),
    }
    table = pa.table(columns, schema=schemas.VALIDATION_SCORES)
    scores_at = storage.join(study.root, layout.validation_scores(model, seed))
    storage.write_table(table, scores_at, schema=schemas.VALIDATION_SCORES)
    folder = storage.join(study.root, layout.model(model, seed))
    storage.write_text(storage.join(folder, layout.STUDY), study.to_yaml())
    trained = TrainedModel(
        network=network.cpu(),
        normalization=Normalization(torch.tensor(arguments["mean"]), torch.tensor(arguments["std"])),
        features=study.feature_settings,
        name=model,
        seed=seed,
        alarm=fit_study_alarm(study, table),
        best_epoch=best_epoch,
        config_hash=arguments["fingerprint"],
    )
    save_model(trained, folder)
