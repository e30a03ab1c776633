"""`faithad train --normals`: recordings of normal operation → a model that needs neither configuration nor GPU.

    recordings → manifest → features → both linear models, side by side → the alarm of the sum of their scores

The folder of the model then holds `ensemble.safetensors` and its members (see `scoring.trained_ensemble`), the scores
of the normal clips that the alarm is fitted to, a card in JSON, and the manifest and the ledger of the normal
recordings. It is one stage: a finished training is not run again, and one that was interrupted goes on with the
features that it has.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor, nn

from faithad import parquet, schemas, storage
from faithad.audit.rejected_clips import Named, read_rejected_clips
from faithad.clips.inputs import find_recordings
from faithad.clips.manifest import Recording, manifest_table
from faithad.config.normals import NormalsRun
from faithad.errors import FaithadError, StudyError
from faithad.evaluation.alarms import fit_promised_alarm, with_window_thresholds
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.model.fast_network import fast_network
from faithad.model.linear import LinearModel, fit_linear
from faithad.model.table import build_network
from faithad.model.training_sound import first_normals
from faithad.pipelines.cluster.machines import wait_for_machines
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.pipelines.features import write_features
from faithad.pipelines.training.normal_clips import (
    NEEDED_TABLES,
    SPLIT,
    TABLES,
    Normals,
    add_clips,
    clips_fitted,
    index_normals,
    read_normals,
    say_promise,
    write_ledger,
)
from faithad.pipelines.training.scores import ComparedClips
from faithad.pipelines.training.trained import damage_of_model
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import looks, table_digest
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.piece_scores import write_piece_scores
from faithad.runs.stages import FILE_KEY, ResumableStage, flatten
from faithad.scoring.choices import Score, robust
from faithad.scoring.ensemble import Ensemble, add_up, fit_ensemble, with_rescoring
from faithad.scoring.score import Detector, fit_detector
from faithad.scoring.trained_ensemble import FILE_NAME, AnyModel, TrainedEnsemble, describe, save_any
from faithad.vocabulary import count

MEMBERS = ("frame_pca", "frame_ridge")


def train_on_normals(run: NormalsRun, *, redo: bool = False) -> str:
    """Fit the linear models to normal recordings, and say what came of it.

    Args:
        run: the recordings, and the folder of the model.
        redo: replace a model of other settings or recordings.

    Raises:
        RecordingError: there are no recordings, or none of them gave a clip.
        StudyError: a model of other settings is in the way, or the work could not be done.
    """
    recordings = find_recordings([(SPLIT, location) for location in run.normals])
    seen = looks([(recording.path, recording.uri) for recording in recordings])
    inputs = dict(zip((recording.path for recording in recordings), seen, strict=True))
    settings: dict[str, Any] = flatten("", run.model_dump(mode="json", exclude={"normals", "to", "add_normals"}))
    settings |= {f"{FILE_KEY}{name}": look.fingerprint.digest for name, look in inputs.items()}
    rejected = _rejected(run, recordings)
    if run.add_normals:
        settings["rejected clips"] = table_digest(rejected)
    outputs = (*TABLES, *MEMBERS, FILE_NAME)
    stage = ResumableStage(run.to, "normals", settings, outputs, result=FILE_NAME, needs=NEEDED_TABLES)
    with alone_in(run.to):
        stage = stage.with_known_files(afresh=redo)
        damage = damage_of_model(run.to) if stage.is_done() else None
        if damage is not None:
            console.print(f"{damage} The model is made again.")
        if not stage.begin(redo=redo, again=damage is not None):
            console.print("The model is trained already.")
            return _conclusion(run)
        with ray_session():
            wait_for_machines({"CPU": 1}, request="A reader asks for 1 CPU", advice="Add a machine with cores.")
            require_visible([*run.normals, *run.add_normals], [run.to])
            manifest = add_clips(run.to, index_normals(run, recordings, inputs, run.feature_settings), rejected)
            write_features(run.to, manifest, run.feature_settings, splits=(SPLIT,))
            normals = read_normals(run.to, manifest, run.feature_settings, seed=run.seed)
            fitted = _fit_side_by_side(run, normals)
            trained, scores, pieces = ensemble_of(run, normals, fitted, fingerprint=stage.fingerprint)
        save_fitted(trained, run.to, scores, pieces)
        stage.finish()
        if trained.alarm is not None:
            say_promise(normals, trained.alarm, trained.state, share=run.alarm.state_share)
    return _conclusion(run)


def _rejected(run: NormalsRun, recordings: Sequence[Recording]) -> pa.Table:
    """The clips of the rejected events of `add_normals`, as schemas.MANIFEST. Says how many there are.

    Raises:
        ConfigError, RecordingError, StudyError: as `read_rejected_clips`.
    """
    besides = [Named(recording.path, recording.uri, SPLIT) for recording in recordings]
    clips = manifest_table(read_rejected_clips(run.add_normals, clip_s=run.clip_s, besides=besides))
    if run.add_normals:
        text = f"normals: {count(clips.num_rows, 'clip')} of rejected events"
        console.print(
            f"{text} added; they had high scores, so that fewer false alarms are to be expected than the alarm promises"
            if clips.num_rows
            else f"{text} added: none was rejected, or their recordings are among the normal ones"
        )
    return clips


class FittedMember(NamedTuple):
    """A linear model with its score.

    Attributes:
        detector: the model and its calibrated score.
        scores: of the chosen clips, (N,).
        pieces: of pieces of these, by their duration in seconds, see `piece_scores`.
        windows: the value of the highest window of 0.25 s of each clip, (N,); None where that is its score.
    """

    detector: Detector
    scores: Tensor
    pieces: dict[float, Tensor]
    windows: Tensor | None = None


def fit_member(name: str, run: NormalsRun, normals: Normals) -> FittedMember:
    """Fit one linear model and its score.

    Raises:
        StudyError: the clips are too few, or cannot be weighted.
    """
    torch.set_num_threads(1)  # the last digits of an eigenvector depend on the number of threads
    n_mels, reference = normals.features.n_mels, run.features.own_reference
    network = build_network(name, n_mels, normals.n_frames, reference=reference).eval()
    fit_linear(cast(LinearModel, network), normals.parts(), n_clips=normals.n_clips, seed=run.seed)
    return fit_member_score(network, robust(name), normals)


def fit_member_score(network: nn.Module, score: Score, normals: Normals) -> FittedMember:
    """Fit a score of a model to normal clips.

    Raises:
        StudyError: as `fit_detector`.
    """
    frames_per_s = normals.features.frames_per_s
    detector, scores = fit_detector(fast_network(network), score, normals.chosen_parts, frames_per_s=frames_per_s)
    compared = compared_normals(detector, normals)
    pieces = {duration_s: torch.from_numpy(of_length) for duration_s, of_length in compared.piece_scores().items()}
    windows = None if score.pooling == "worst_window" else torch.tensor(compared.scores()[1], dtype=torch.float64)
    # A fast form cannot be sent from a Ray task.
    return FittedMember(replace(detector, network=network), scores, pieces, windows)


def compared_normals(detector: Detector, normals: Normals) -> ComparedClips:
    """The chosen clips, to which the detector's normals belong."""
    n_frames = normals.chosen_n_frames
    recordings = torch.full((len(n_frames),), -1) if detector.normals is None else detector.normals.recordings
    return ComparedClips(detector, normals.chosen_parts, n_frames, recordings, normals.piece_lengths)


def _fit_side_by_side(run: NormalsRun, normals: Normals) -> dict[str, FittedMember]:
    fit = ray.remote(fit_member)
    held = ray.put(normals)
    tasks = [fit.options(name=f"train {name}").remote(name, run, held) for name in MEMBERS]
    return dict(zip(MEMBERS, results_of(tasks), strict=True))


def results_of(tasks: Sequence[Any]) -> list[Any]:
    """What Ray's tasks that fit something return.

    Raises:
        StudyError: a process was lost.
        FaithadError: that a task raised.
    """
    try:
        return list(ray.get(tasks))
    except RayTaskError as error:
        if isinstance(error.cause, FaithadError):
            raise error.cause from error
        raise
    except RayError as error:
        raise StudyError(f"A process that fits the models was lost: {error}. The same command goes on.") from error


def ensemble_of(
    run: NormalsRun, normals: Normals, fitted: Mapping[str, FittedMember], *, fingerprint: str
) -> tuple[TrainedEnsemble, pa.Table, dict[float, pa.Table]]:
    """The fitted members as one model with its alarm, and what the alarm rests on, see `fit_sum`.

    Linear models hardly score their training clips lower than others, so these are all clips that were chosen, each
    compared with clips of other recordings.
    """
    state = normals.fit_state(false_alarm_rate=run.minute_rate, share=run.alarm.state_share)
    rate = run.false_alarm_rate * (1.0 - (state.share if state is not None else 0.0))
    ensemble, alarm, table, pieces = fit_sum(
        fitted, false_alarm_rate=rate, clip_s=run.clip_s, is_short=normals.chosen_are_short
    )
    kept = first_normals(normals.parts())
    members = {
        name: TrainedModel(
            member.detector.network,
            normals.normalization,
            normals.features,
            name,
            run.seed,
            None,
            0,
            fingerprint,
            sound=normals.sound,
            normals=kept,
        )
        for name, member in fitted.items()
    }
    return TrainedEnsemble(members, ensemble, run.seed, alarm, fingerprint, state=state), table, pieces


class FittedSum(NamedTuple):
    """The sum of the members' scores with its alarm, and what the alarm rests on.

    Attributes:
        ensemble: the members' detectors.
        alarm: of the sum.
        scores: of the N normal clips, as schemas.VALIDATION_SCORES.
        pieces: the same of their pieces, by duration in seconds.
    """

    ensemble: Ensemble
    alarm: AlarmThreshold
    scores: pa.Table
    pieces: dict[float, pa.Table]


def fit_sum(
    fitted: Mapping[str, FittedMember],
    *,
    false_alarm_rate: float,
    clip_s: float,
    is_short: Tensor,
    rescore_share: float = 1.0,
) -> FittedSum:
    """Add up the scores of members that were fitted to the same clips.

    Args:
        fitted: the members, by name.
        false_alarm_rate: the share of normal clips that may alarm.
        clip_s: length of a clip.
        is_short: which clips are short, (N,) bool.
        rescore_share: of whole normal clips that all members score, and not the linear ones alone.

    Raises:
        StudyError: there are no scores, some are not finite, or they are too few for `rescore_share`.
        ConfigError: all members are linear, or none is, and only some clips are to be scored by all.
    """
    of_members = torch.stack([member.scores for member in fitted.values()])
    ensemble = fit_ensemble({name: member.detector for name, member in fitted.items()}, of_members)
    standardised = ensemble.standardise(of_members)
    if rescore_share < 1.0:
        ensemble = with_rescoring(ensemble, standardised, is_short, rescore_share)
    scores = ensemble.add_up(standardised, ensemble.rescored(standardised, is_short))[0].numpy()
    pieces = {}
    for duration_s in next(iter(fitted.values())).pieces:
        of_length = torch.stack([member.pieces[duration_s] for member in fitted.values()])
        pieces[duration_s] = add_up(ensemble.standardise(of_length))[0].numpy()
    lowest = None if ensemble.rescoring is None else ensemble.rescoring.lowest
    alarm = fit_promised_alarm(scores, false_alarm_rate=false_alarm_rate, clip_s=clip_s, pieces=pieces, lowest=lowest)
    windows = [member.scores if member.windows is None else member.windows for member in fitted.values()]
    table = scores_table(scores, worst_windows=torch.stack(windows))
    alarm = with_window_thresholds(alarm, table)
    return FittedSum(ensemble, alarm, table, {length_s: scores_table(part) for length_s, part in pieces.items()})


def scores_table(scores: np.ndarray, worst_windows: Tensor | None = None) -> pa.Table:
    """schemas.VALIDATION_SCORES of N clips; `worst_windows` (M, N), those of each member."""
    columns = {
        "score": scores,
        "worst_second_score": pa.nulls(len(scores), pa.float64()),
        "worst_windows": pa.nulls(len(scores)) if worst_windows is None else worst_windows.T.tolist(),
        "paper_score": pa.nulls(len(scores), pa.float64()),
    }
    return pa.table(columns, schema=schemas.VALIDATION_SCORES)


def save_fitted(trained: AnyModel, folder: str, scores: pa.Table, pieces: Mapping[float, pa.Table]) -> None:
    """Write the model and the scores that it was fitted to. The file that makes the folder a model is written last."""
    write_ledger(folder)
    save_with_scores(trained, folder, scores, pieces)
    storage.delete(storage.join(folder, layout.FEATURES))


def save_with_scores(trained: AnyModel, folder: str, scores: pa.Table, pieces: Mapping[float, pa.Table]) -> None:
    """Write the model, its card, and the scores of normal clips and their pieces."""
    require_still_alone()
    parquet.write_table(scores, storage.join(folder, layout.VALIDATION_SCORES), schema=schemas.VALIDATION_SCORES)
    write_piece_scores(folder, pieces)
    storage.write_text(storage.join(folder, layout.MODEL), json.dumps(describe(trained), indent=1))
    save_any(trained, folder)


def _conclusion(run: NormalsRun) -> str:
    """The last line for the user."""
    return f"{clips_fitted(run.to)}. Model: {run.to}  Next: {audit_command(run.to)}"


def audit_command(model: str) -> str:
    return f"{shlex.join(['faithad', 'audit', '--model', model])} --recordings FOLDER --out FOLDER"
