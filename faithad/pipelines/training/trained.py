"""The end of a training: the best network, or a fitted model, is saved to `models/<model>-<seed>/`, or to its trial's
folder.

The folder also holds the resolved `study.yaml` and the scores of the validation normals and of their pieces, to which
the alarm is fitted. The model's file is written last: if it is there, all is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from faithad import listing, parquet, schemas, storage
from faithad.config.study import Study
from faithad.errors import CheckpointError, DamagedError, StudyError
from faithad.evaluation.alarms import fit_alarm, with_window_thresholds
from faithad.evaluation.detection import worst_second
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.classical import ClassicalDetector, fit_classical
from faithad.model.linear import LinearModel, fit_linear
from faithad.model.masking import mean_per_clip
from faithad.model.precision import arithmetic
from faithad.model.table import MODELS, build_network
from faithad.model.training import Training
from faithad.model.training_sound import TrainingSound, first_normals, mean_spectra
from faithad.pipelines.features import TRAINING_SPLITS, count_features, load_n_frames, read_features
from faithad.pipelines.training.clips import read_clips, training_clips
from faithad.pipelines.training.task import TrainingTask, network_of
from faithad.runs import layout
from faithad.runs.piece_scores import read_piece_scores, write_piece_scores
from faithad.scoring.pieces import cut_pieces, piece_lengths
from faithad.scoring.pooling import frame_errors, window_means
from faithad.scoring.trained_ensemble import load_any
from faithad.settings import FeatureSettings
from faithad.vocabulary import FITTED, POOLINGS

# A linear model of this many clips at a time needs 100 MB.
_CLIPS_AT_ONCE = 16


def damage(study: Study, model: str, seed: int) -> str | None:
    """What is wrong with the files of a finished training; None if they are whole.

    Raises:
        OSError: they cannot be reached.
    """
    folder = storage.join(study.root, layout.model(model, seed))
    tables = [layout.validation_scores(model, seed)]
    if not MODELS[model].fitted:
        tables.append(layout.epochs(model, seed))
    try:
        for table in tables:
            parquet.read_rows(storage.join(study.root, table))
    except FileNotFoundError:
        return f"A table of {folder} is gone."
    except DamagedError as error:
        return error.problem
    return damage_of_model(folder)


def damage_of_model(folder: str) -> str | None:
    """What is wrong with a saved model; None if it can be loaded.

    Raises:
        OSError: it cannot be reached.
    """
    for _, file in listing.list_files(folder, suffixes=[".safetensors"]):
        storage.read_bytes(file)  # a disk or a store that is away damages nothing
    try:
        load_any(folder)
    except CheckpointError as error:
        return str(error).removesuffix(" Train again.")
    return None


def fit_study_alarm(study: Study, model: str, validation_scores: pa.Table, folder: str) -> AlarmThreshold:
    """The alarm as the study sets it, on the validation scores of one model, whose folder may hold those of pieces.

    A model that scores whole clips only has no worst seconds: its pooling is `mean`, whatever the study says.
    """
    pooling = FITTED if study.score_of(model) is not None else study.alarm.pooling
    if validation_scores[POOLINGS[pooling].column].null_count:
        pooling = "mean"
    scores = validation_scores[POOLINGS[pooling].column].to_numpy()
    settings = study.alarm.model_dump() | {"pooling": pooling}
    pieces = read_piece_scores(folder, pooling)
    alarm = fit_alarm(scores, **settings, clip_s=study.data.clip_s, pieces=pieces)
    return with_window_thresholds(alarm, validation_scores)


def never_learned(study: Study) -> str:
    """Why a training has no weights to keep, and what may help."""
    normalize = "" if study.features.normalization == "training" else " or set features.normalization to 'training'"
    return (
        f"it diverged in its first epoch: the validation loss is not a finite number. Lower train.learning_rate "
        f"({study.train.learning_rate:g}){normalize}."
    )


def save_network(training: Training, task: TrainingTask, *, device: torch.device) -> None:
    """Save the network of a finished training's best epoch, with its alarm; the device scores the validation clips.

    Raises:
        StudyError: no epoch had a finite validation loss.
    """
    if training.best is None:
        raise StudyError(never_learned(task.study))
    study = task.study
    network = network_of(study, task.model)
    network.load_state_dict(training.best_weights())
    network.to(device).eval()
    batches = training_clips(task, "validation").split(study.train.batch_size)
    _save(network, task, *_scores(network, task, lambda: batches, device), best_epoch=training.best.epoch)


def save_fitted(task: TrainingTask) -> None:
    """Fit a classical detector or a linear model to the training clips and save it, with its alarm."""
    if MODELS[task.model].linear:
        torch.set_num_threads(1)  # the last digits of an eigenvector depend on the number of threads
        _save_linear(task)
        return
    torch.set_num_threads(task.threads)
    detector = fit_classical(task.model, training_clips(task, "train"), seed=task.seed)
    clips = training_clips(task, "validation")
    _save(detector, task, *_scores(detector, task, lambda: [clips], torch.device("cpu")), best_epoch=0)


def _save_linear(task: TrainingTask) -> None:
    features = task.study.features
    model = build_network(
        task.model, features.n_mels, task.study.n_frames(task.model), reference=features.own_reference
    )
    n_clips = count_features(task.study.root, "train")
    fit_linear(cast(LinearModel, model), read_clips(task, "train"), n_clips=n_clips, seed=task.seed)

    def batches() -> Iterator[Tensor]:
        return (batch for part in read_clips(task, "validation") for batch in part.split(_CLIPS_AT_ONCE))

    _save(model, task, *_scores(model, task, batches, torch.device("cpu")), best_epoch=0)


def _scores(
    network: nn.Module, task: TrainingTask, clips: Callable[[], Iterable[Tensor]], device: torch.device
) -> tuple[pa.Table, dict[float, pa.Table]]:
    """The scores of the validation clips, which are in order of clip_id, and those of their pieces by duration."""
    n_frames = load_n_frames(task.study, "validation", task.model)
    return score_normals(network, task.study.feature_settings, clips, n_frames, device)


def score_normals(
    network: nn.Module,
    features: FeatureSettings,
    clips: Callable[[], Iterable[Tensor]],
    n_frames: Sequence[int],
    device: torch.device,
) -> tuple[pa.Table, dict[float, pa.Table]]:
    """The paper's scores of normal clips, and of their pieces by duration in seconds, as schemas.VALIDATION_SCORES.

    Args:
        network: maps (B, F, T) to reconstructions, or is a `ClassicalDetector`.
        features: their settings.
        clips: gives the clips as the network takes them in, (b, F, T) in parts, always in the same order.
        n_frames: how many frames of each clip hold sound.
        device: of the network.
    """
    whole = int(cast(int, network.n_frames))

    def scores(parts: Iterable[Tensor], n_heard: Iterable[int]) -> pa.Table:
        if isinstance(network, ClassicalDetector):
            # It has no frames to leave out: it scores a short clip as it is filled up, and such a piece as well.
            return _of_detector(network, parts)
        return _of_network(network, features, parts, n_heard, device)

    pieces = {}
    for duration_s in piece_lengths(features.clip_s):
        n = min(whole, features.frames_in(duration_s))
        if n <= max(n_frames):
            pieces[duration_s] = scores(cut_pieces(clips(), n_frames, n), repeat(n))
    return scores(clips(), n_frames), pieces


def _of_detector(detector: ClassicalDetector, clips: Iterable[Tensor]) -> pa.Table:
    with torch.inference_mode():
        scores = torch.cat([detector(part) for part in clips])
    return pa.Table.from_pylist([{"score": score} for score in scores.tolist()], schema=schemas.VALIDATION_SCORES)


def _of_network(
    network: nn.Module, features: FeatureSettings, clips: Iterable[Tensor], n_heard: Iterable[int], device: torch.device
) -> pa.Table:
    """The mean squared error of each clip, its worst second and its worst window; `n_frames` of each hold sound."""
    scores, seconds, windows = list[Tensor](), list[float](), list[list[float]]()
    frames_per_s, lengths = features.frames_per_s, iter(n_heard)
    with torch.inference_mode(), arithmetic("float32"):  # a GPU rounds by default; an audit does not
        for batch in clips:
            x = batch.to(device)
            errors, n_frames = (network(x) - x).square().cpu(), list(islice(lengths, len(x)))
            scores.append(mean_per_clip(errors, n_frames, dtype=torch.float64))
            for error, n in zip(errors, n_frames, strict=True):
                seconds.append(worst_second(error[:, :n], frames_per_s, cut_off=n < x.shape[-1]).score)
                windows.append([float(window_means(frame_errors(error[:, :n]), frames_per_s).max())])
    columns = {"score": torch.cat(scores).numpy(), "worst_second_score": seconds, "worst_windows": windows}
    columns["paper_score"] = pa.nulls(len(seconds), pa.float64())
    return pa.table(columns, schema=schemas.VALIDATION_SCORES)


def _save(
    network: nn.Module, task: TrainingTask, scores: pa.Table, pieces: Mapping[float, pa.Table], *, best_epoch: int
) -> None:
    study = task.study
    location = storage.join(task.folder, layout.VALIDATION_SCORES)
    parquet.write_table(scores, location, schema=schemas.VALIDATION_SCORES)
    write_piece_scores(task.folder, pieces)
    storage.write_text(storage.join(task.folder, layout.STUDY), study.to_yaml())
    trained = TrainedModel(
        network=network.cpu(),
        normalization=task.normalization,
        features=study.feature_settings,
        name=task.model,
        seed=task.seed,
        # `scores` gives it the study's score afterwards, if that is another one than the paper's.
        alarm=fit_study_alarm(study.model_copy(update={"score": "paper"}), task.model, scores, task.folder),
        best_epoch=best_epoch,
        config_hash=task.fingerprint,
        sound=_training_sound(study),
        # The same clips for all models of the study.
        normals=first_normals(read_clips(task, "train")) if MODELS[task.model].explained else None,
    )
    save_model(trained, task.folder)


def _training_sound(study: Study) -> TrainingSound:
    """Shards are in the order of clip_id, which is a hash: their first clips are a random sample."""
    train, validation = (
        mean_spectra(read_features(study.root, split, study.feature_settings), study.feature_settings)
        for split in TRAINING_SPLITS
    )
    return TrainingSound.fit(train, validation)
