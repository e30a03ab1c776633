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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from faithad import schemas, storage
from faithad.audit.ledger import count_ledger, merge_ledgers
from faithad.audit.raised_alarm import say_alarm
from faithad.clips.inputs import find_recordings
from faithad.config.normals import NormalsRun
from faithad.errors import FaithadError, RecordingError, StudyError, shown
from faithad.evaluation.alarms import fit_promised_alarm, with_window_thresholds
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.model.linear import LinearModel, fit_linear
from faithad.model.table import build_network
from faithad.model.training_sound import TrainingSound, mean_spectra
from faithad.pipelines.cluster.machines import wait_for_machines
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.pipelines.features import CLIPS_PER_SHARD, count_features, read_features, write_features
from faithad.pipelines.index import index_recordings
from faithad.pipelines.training.scores import chosen_clips
from faithad.pipelines.training.trained import damage_of_model
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import looks
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.piece_scores import write_piece_scores
from faithad.runs.stages import FILE_KEY, Stage, flatten
from faithad.runs.tables import read_manifest
from faithad.scoring.calibration import choose_normals
from faithad.scoring.choices import robust
from faithad.scoring.ensemble import add_up, fit_ensemble
from faithad.scoring.pieces import piece_lengths, piece_scores
from faithad.scoring.score import Clips, Detector, fit_detector
from faithad.scoring.trained_ensemble import FILE_NAME, TrainedEnsemble, describe, save_ensemble
from faithad.vocabulary import count, listed

MEMBERS = ("frame_pca", "frame_ridge")
_SPLIT = "train"
# Clips of fewer recordings are so alike that a rate that is promised for clips says little.
_FEW_RECORDINGS = 10
_FEWEST_CLIPS = 20
# A single recording is cut into so many stretches, which stand for recordings.
_STRETCHES = 10


@dataclass(frozen=True)
class Normals:
    """What a member is fitted to; sent to Ray's tasks.

    Attributes:
        root: below which the features are.
        run: the settings.
        normalization: of the features.
        sound: what the clips sounded like.
        clips: of each clip with features its recording and the frames that hold sound, in the order of clip_id.
        chosen: the clips that scores are calibrated with, by their numbers in this order.
        is_one_recording: whether all clips come from one, whose stretches then stand for recordings.
    """

    root: str
    run: NormalsRun
    normalization: Normalization
    sound: TrainingSound
    clips: dict[str, tuple[str, int]]
    chosen: np.ndarray
    is_one_recording: bool

    def parts(self) -> Iterator[Tensor]:
        """All clips as the models take them in, (b, F, T), in the order of clip_id."""
        for part in read_features(self.root, _SPLIT, self.run.feature_settings):
            yield self.normalization.apply(part)

    def chosen_parts(self) -> Iterator[Clips]:
        """The chosen clips."""
        return chosen_clips(self.parts(), self.clips, self.chosen)


def train_on_normals(run: NormalsRun, *, redo: bool = False) -> str:
    """Fit the linear models to normal recordings, and say what came of it.

    Args:
        run: the recordings, and the folder of the model.
        redo: replace a model of other settings or recordings.

    Raises:
        RecordingError: there are no recordings, or none of them gave a clip.
        StudyError: a model of other settings is in the way, or the work could not be done.
    """
    recordings = find_recordings([(_SPLIT, location) for location in run.normals])
    seen = looks([(recording.path, recording.uri) for recording in recordings])
    inputs = dict(zip((recording.path for recording in recordings), seen, strict=True))
    settings: dict[str, Any] = flatten("", run.model_dump(mode="json", exclude={"normals", "to"}))
    settings |= {f"{FILE_KEY}{name}": look.fingerprint.digest for name, look in inputs.items()}
    outputs = (
        *(
            layout.MANIFEST,
            layout.INDEX_LEDGER,
            layout.HEALTH,
            layout.INPUTS,
            layout.FEATURES,
            layout.LEDGER,
            layout.MODEL,
        ),
        *(layout.HEADER_ATTEMPTS, layout.VALIDATION_SCORES, layout.PIECE_SCORES, *MEMBERS, FILE_NAME),
    )
    needs = (layout.MANIFEST, layout.LEDGER, layout.VALIDATION_SCORES)
    stage = Stage(run.to, "normals", settings, outputs, result=FILE_NAME, needs=needs)
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
            require_visible(run.normals, [run.to])
            manifest = index_recordings(
                run,
                recordings,
                inputs,
                clip_s=run.clip_s,
                sample_rate_hz=run.feature_settings.sample_rate_hz,
                clips_per_shard=CLIPS_PER_SHARD,
            )
            if not manifest.num_rows:
                reasons = storage.read_table(storage.join(run.to, layout.INDEX_LEDGER)).to_pylist()
                lines = [f"  {shown(row['recording'])}: {row['reason']}" for row in reasons]
                raise RecordingError(f"Not one recording gave a clip.\n{listed(lines, separator=chr(10))}")
            write_features(run.to, manifest, run.feature_settings, splits=(_SPLIT,))
            normals = read_normals(run, manifest)
            trained, scores, pieces = ensemble_of(normals, _fit_side_by_side(normals), fingerprint=stage.fingerprint)
        _save(run, trained, scores, pieces)
        stage.finish()
        if trained.alarm is not None:
            _say_promise(normals, trained.alarm)
    return _conclusion(run)


def read_normals(run: NormalsRun, manifest: pa.Table) -> Normals:
    """What there is to fit to, once the features are written: it is the same for all members."""
    normalization = Normalization.fit(read_features(run.to, _SPLIT, run.feature_settings))
    there = storage.read_table(storage.join(run.to, layout.features(_SPLIT)), columns=["clip_id"])["clip_id"]
    manifest = manifest.filter(pc.is_in(manifest["clip_id"], value_set=there.combine_chunks())).sort_by("clip_id")
    rows = manifest.select(["clip_id", "recording", "onset_s", "duration_s"]).to_pylist()
    if len(rows) < _FEWEST_CLIPS:
        raise StudyError(
            f"There are {count(len(rows), 'normal clip')}, and {_FEWEST_CLIPS} are needed; an hour of sound makes "
            f"{3600 / run.clip_s:.0f}. Give more recordings of normal operation."
        )
    is_one_recording = len({row["recording"] for row in rows}) == 1
    if is_one_recording:
        end_s = max(row["onset_s"] + row["duration_s"] for row in rows)
        for row in rows:
            row["recording"] += f" {int(_STRETCHES * row['onset_s'] / end_s)}"
    frames_in = run.feature_settings.frames_in
    clips = {row["clip_id"]: (row["recording"], frames_in(row["duration_s"])) for row in rows}
    chosen = choose_normals(len(clips), seed=run.seed)
    # In the order of clip_id, a hash, every second clip is a random sample.
    spectra = mean_spectra(read_features(run.to, _SPLIT, run.feature_settings), run.feature_settings)
    sound = TrainingSound.fit(spectra[::2], spectra[1::2])
    return Normals(run.to, run, normalization, sound, clips, chosen, is_one_recording)


class FittedMember(NamedTuple):
    """A linear model with its score.

    Attributes:
        detector: the model and its calibrated score.
        scores: of the chosen clips, (N,).
        pieces: of pieces of these, by their duration in seconds, see `piece_scores`.
    """

    detector: Detector
    scores: Tensor
    pieces: dict[float, Tensor]


def fit_member(name: str, normals: Normals) -> FittedMember:
    """Fit one linear model and its score.

    Raises:
        StudyError: the clips are too few, or cannot be weighted.
    """
    torch.set_num_threads(1)  # the last digits of an eigenvector depend on the number of threads
    settings = normals.run.feature_settings
    network = build_network(name, settings.n_mels, settings.n_frames, reference=normals.run.features.reference).eval()
    n_clips = count_features(normals.root, _SPLIT)
    fit_linear(cast(LinearModel, network), normals.parts(), n_clips=n_clips, seed=normals.run.seed)
    detector, scores = fit_detector(network, robust(name), normals.chosen_parts, frames_per_s=settings.frames_per_s)
    n_frames = [n for _, n in normals.clips.values()]
    chosen = [n_frames[number] for number in normals.chosen]
    lengths = {duration_s: settings.frames_in(duration_s) for duration_s in piece_lengths(settings.clip_s)}
    assert detector.normals is not None
    own = detector.normals.recordings
    return FittedMember(detector, scores, piece_scores(detector, normals.chosen_parts(), chosen, own, lengths))


def _fit_side_by_side(normals: Normals) -> dict[str, FittedMember]:
    fit = ray.remote(fit_member)
    held = ray.put(normals)
    tasks = [fit.options(name=f"train {name}").remote(name, held) for name in MEMBERS]
    try:
        return dict(zip(MEMBERS, ray.get(tasks), strict=True))
    except RayTaskError as error:
        if isinstance(error.cause, FaithadError):
            raise error.cause from error
        raise
    except RayError as error:
        raise StudyError(f"A process that fits the models was lost: {error}. The same command goes on.") from error


def ensemble_of(
    normals: Normals, fitted: dict[str, FittedMember], *, fingerprint: str
) -> tuple[TrainedEnsemble, pa.Table, dict[float, pa.Table]]:
    """The fitted members as one model with its alarm, and what the alarm rests on: the scores of the N normal clips as
    schemas.VALIDATION_SCORES, and those of their pieces by duration, in the same way.

    Linear models hardly score their training clips lower than others, so these are all clips that were chosen, each
    compared with clips of other recordings.
    """
    run, settings = normals.run, normals.run.feature_settings
    of_members = torch.stack([member.scores for member in fitted.values()])
    ensemble = fit_ensemble({name: member.detector for name, member in fitted.items()}, of_members)
    scores = add_up(ensemble.standardise(of_members))[0].numpy()
    pieces = {}
    for duration_s in next(iter(fitted.values())).pieces:
        of_length = torch.stack([member.pieces[duration_s] for member in fitted.values()])
        pieces[duration_s] = add_up(ensemble.standardise(of_length))[0].numpy()
    alarm = fit_promised_alarm(scores, false_alarm_rate=run.false_alarm_rate, clip_s=run.clip_s, pieces=pieces)
    table = _scores_table(scores, worst_windows=of_members)
    alarm = with_window_thresholds(alarm, table)
    members = {
        name: TrainedModel(
            member.detector.network,
            normals.normalization,
            settings,
            name,
            run.seed,
            None,
            0,
            fingerprint,
            sound=normals.sound,
        )
        for name, member in fitted.items()
    }
    return (
        TrainedEnsemble(members, ensemble, run.seed, alarm, fingerprint),
        table,
        {duration_s: _scores_table(of_length) for duration_s, of_length in pieces.items()},
    )


def _scores_table(scores: np.ndarray, worst_windows: Tensor | None = None) -> pa.Table:
    """schemas.VALIDATION_SCORES of N clips; `worst_windows` (M, N), a member's score being that of its worst window."""
    columns = {
        "score": scores,
        "worst_second_score": pa.nulls(len(scores), pa.float64()),
        "worst_windows": pa.nulls(len(scores)) if worst_windows is None else worst_windows.T.tolist(),
        "paper_score": pa.nulls(len(scores), pa.float64()),
    }
    return pa.table(columns, schema=schemas.VALIDATION_SCORES)


def _save(run: NormalsRun, trained: TrainedEnsemble, scores: pa.Table, pieces: Mapping[float, pa.Table]) -> None:
    """Write the model, and beside it what it was fitted to. The file that makes the folder a model is written last."""
    require_still_alone()
    storage.write_table(scores, storage.join(run.to, layout.VALIDATION_SCORES), schema=schemas.VALIDATION_SCORES)
    write_piece_scores(run.to, pieces)
    failures = storage.join(run.to, layout.FEATURES), storage.name_of(layout.FEATURES_LEDGER)
    ledger = merge_ledgers(run.to, read_manifest(run.to), [], others=[failures])
    storage.write_table(ledger, storage.join(run.to, layout.LEDGER), schema=schemas.LEDGER)
    storage.write_text(storage.join(run.to, layout.MODEL), json.dumps(describe(trained), indent=1))
    save_ensemble(trained, run.to)
    storage.delete(storage.join(run.to, layout.FEATURES))


def _say_promise(normals: Normals, alarm: AlarmThreshold) -> None:
    """Say which rate of false alarms is promised, and what it rests on."""
    say_alarm(alarm, clip_s=normals.run.clip_s)
    n_recordings = len({recording for recording, _ in normals.clips.values()})
    if normals.is_one_recording or n_recordings < _FEW_RECORDINGS:
        of = "1 recording" if normals.is_one_recording else count(n_recordings, "recording")
        console.print(f"alarm: the normal clips come from {of}: other days may well be noisier than these promise")


def _conclusion(run: NormalsRun) -> str:
    """The last line for the user."""
    counts = count_ledger(storage.join(run.to, layout.LEDGER))
    failed = f", {count(counts.clips_failed, 'clip')} failed" if counts.clips_failed else ""
    unheard = f". Not heard: {counts.unheard}" if counts.unheard else ""
    see = f" (see {storage.join(run.to, layout.LEDGER)})" if failed or unheard else ""
    audit = shlex.join(["faithad", "audit", "--model", run.to])
    fitted = f"{count(counts.clips_done, 'clip')} fitted{failed}{see}{unheard}"
    return f"{fitted}. Model: {run.to}  Next: {audit} --recordings FOLDER --out FOLDER"
