"""`faithad calibrate`: trained models and other normal sound → one model with an alarm that fits this sound.

    recordings → manifest → features → scores of the normal clips → thresholds, calibration

Nothing is trained: networks and normalisation stay as they are. What is fitted to normal clips is fitted again: the
threshold with those of short clips and of windows and the tail of the scores, the weights and neighbours of a
calibrated score, and what the normal clips sound like. The new model names the old one as its parent.

Several models become the members of one, whose scores are added (see `scoring.joined`).

The normal clips are those of recordings, or those of a finished audit that did not alarm or were rejected in a review.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import ray
import torch
from torch import Tensor

from faithad import parquet, schemas, storage
from faithad.audit.finished import is_audit
from faithad.audit.normal_clips import AuditedClips, read_normal_clips
from faithad.clips.inputs import find_recordings
from faithad.clips.ledger import clip_ledger_row, ledger_table
from faithad.clips.manifest import Recording
from faithad.config.normals import CalibrationRun
from faithad.errors import ConfigError, StudyError
from faithad.evaluation.alarms import fit_alarm, with_window_thresholds
from faithad.model import checkpoint
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import Parent, TrainedModel
from faithad.model.fast_network import fast_network
from faithad.model.precision import arithmetic
from faithad.pipelines.cluster.machines import wait_for_machines
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.pipelines.features import write_features
from faithad.pipelines.training.normal_clips import (
    NEEDED_TABLES,
    SPLIT,
    TABLES,
    Normals,
    clips_fitted,
    index_normals,
    read_normals,
    say_promise,
)
from faithad.pipelines.training.normals import (
    audit_command,
    compared_normals,
    fit_member_score,
    fit_sum,
    results_of,
    save_fitted,
)
from faithad.pipelines.training.scores import beside_paper
from faithad.pipelines.training.trained import damage_of_model, score_normals
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import Look, looks, table_digest
from faithad.runs.lock import alone_in
from faithad.runs.marks import read_mark
from faithad.runs.stages import FILE_KEY, ResumableStage, flatten
from faithad.scoring import trained_ensemble
from faithad.scoring.choices import Score
from faithad.scoring.joined import load_together
from faithad.scoring.score import fit_detector
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble, digest_of_files
from faithad.settings import FeatureSettings, minute_s
from faithad.vocabulary import POOLINGS, count, listed

_STAGE = "calibrate"


class Calibrated(NamedTuple):
    """A model with its new alarm, and what this rests on.

    Attributes:
        trained: the model.
        scores: of the normal clips, as schemas.VALIDATION_SCORES.
        pieces: the same of their pieces, by duration in seconds.
    """

    trained: AnyModel
    scores: pa.Table
    pieces: dict[float, pa.Table]


class _Recordings(NamedTuple):
    """Normal recordings, and what each file was when it was looked at."""

    recordings: list[Recording]
    looks: dict[str, Look]


def calibrate_model(run: CalibrationRun, *, redo: bool = False) -> str:
    """Fit a model's alarm to other normal sound, and say what came of it.

    Args:
        run: the models, the normal sound, and the folder of the new model.
        redo: replace a model that was calibrated with other settings or sound.

    Raises:
        ConfigError: the new model would replace another one, an audit is given together with other folders, or the
            models cannot be joined.
        CheckpointError: the model is missing or damaged.
        RecordingError: there are no recordings, or none of them gave a clip.
        StudyError: the clips are too few or were not judged by a model of the same features, a model of other settings
            is in the way, or the work could not be done.
    """
    _refuse_other_results(run)
    trained = load_together(run.models)
    if trained.alarm is None:
        raise StudyError(f"The model in {run.models[0]} has no alarm that could be fitted again. Train it again.")
    digests = [digest_of_files(folder) for folder in run.models]
    # The members of a model of several name their own parents.
    parent = Parent(run.models[0], digests[0]) if len(digests) == 1 else None
    source = _source(run, trained.features)
    settings = flatten("", run.model_dump(mode="json", exclude={"models", "normals", "to"}))
    settings["model"] = " ".join(digests)
    members = tuple(trained.members) if isinstance(trained, TrainedEnsemble) else ()
    own_file = trained_ensemble.FILE_NAME if members else checkpoint.FILE_NAME
    if isinstance(source, _Recordings):
        settings |= {f"{FILE_KEY}{name}": look.fingerprint.digest for name, look in source.looks.items()}
    else:
        settings["clips"] = table_digest(source.normal)
    stage = ResumableStage(
        run.to, _STAGE, settings, (*TABLES, *members, own_file), result=own_file, needs=NEEDED_TABLES
    )
    with alone_in(run.to):
        stage = stage.with_known_files(afresh=redo)
        damage = damage_of_model(run.to) if stage.is_done() else None
        if damage is not None:
            console.print(f"{damage} The model is made again.")
        if not stage.begin(redo=redo, again=damage is not None):
            console.print("The model is calibrated already.")
            return _conclusion(run)
        with ray_session():
            wait_for_machines({"CPU": 1}, request="A reader asks for 1 CPU", advice="Add a machine with cores.")
            require_visible([*run.models, *run.normals], [run.to])
            if isinstance(source, _Recordings):
                manifest = index_normals(run, source.recordings, source.looks, trained.features)
            else:
                manifest = _write_index(run, source)
            write_features(run.to, manifest, trained.features, splits=(SPLIT,))
            normals = read_normals(
                run.to,
                manifest,
                trained.features,
                seed=trained.seed,
                n_frames=trained.n_frames,
                normalization=trained.normalization,
            )
            fit = ray.remote(calibrated).options(name="calibrate")
            shares = {"state_share": run.state_share, "rescore_share": run.rescore_share}
            (result,) = results_of([fit.remote(run.models, normals, run.false_alarms_per_hour, **shares)])
        new = replace(result.trained, parent=parent)
        save_fitted(new, run.to, result.scores, result.pieces)
        stage.finish()
        assert new.alarm is not None
        _say_rescoring(new)
        say_promise(normals, new.alarm, new.state, share=_state_share(trained, run.state_share))
    return _conclusion(run)


def _say_rescoring(trained: AnyModel) -> None:
    rescoring = trained.ensemble.rescoring if isinstance(trained, TrainedEnsemble) else None
    if rescoring is not None:
        console.print(
            f"rescore: {listed(rescoring.members)} scores only the clips that the linear models score higher than "
            f"{1 - rescoring.share:.0%} of the normal ones, and short clips; no other clip can alarm"
        )


def calibrated(
    folders: Sequence[str],
    normals: Normals,
    per_hour: float | None,
    *,
    state_share: float | None = None,
    rescore_share: float | None = None,
) -> Calibrated:
    """A model, or one of several, with everything that is fitted to normal clips fitted to these.

    Args:
        folders: of the models.
        normals: the clips.
        per_hour: how often normal sound may alarm; None for as often as with the model's own alarm.
        state_share: how much of that the alarm for what lasts may raise; None for the model's own share.
        rescore_share: see `fit_sum`; None for that of the model.

    Raises:
        StudyError: the clips cannot be scored, or the rule of the alarm cannot be fitted to their scores.
        ConfigError: the model has no members that score in turn, and `rescore_share` is below 1.
    """
    torch.set_num_threads(1)  # the last digits do not depend on the machine's cores
    trained = load_together(folders)
    assert trained.alarm is not None
    per_minute = _minute_rate(trained, per_hour)
    state = normals.fit_state(false_alarm_rate=per_minute, share=_state_share(trained, state_share))
    before, left = (1.0 - (0.0 if own is None else own.share) for own in (trained.state, state))
    trained = replace(trained, state=state, alarm=_of_share(trained.alarm, left / before))
    per_hour = None if per_hour is None else per_hour * left
    if isinstance(trained, TrainedEnsemble):
        return _ensemble(trained, normals, per_hour, rescore_share)
    if rescore_share not in (None, 1.0):
        raise ConfigError(
            f"rescore_share is {rescore_share:g}, and {trained.name!r} is one model. It is for a sum of several: give "
            "more of them (--model)."
        )
    return _single(trained, normals, per_hour)


def _state_share(trained: AnyModel, asked: float | None) -> float:
    if asked is not None:
        return asked
    return 0.0 if trained.state is None else trained.state.share


def _minute_rate(trained: AnyModel, per_hour: float | None) -> float:
    """The share of normal minutes that would begin a change if all false alarms were changes."""
    if per_hour is not None:
        return per_hour * minute_s(trained.features.clip_s) / 3600.0
    if trained.state is not None:
        return trained.state.asked_rate / trained.state.share
    assert trained.alarm is not None
    return trained.alarm.false_alarm_rate


def _of_share(alarm: AlarmThreshold, share: float) -> AlarmThreshold:
    """An alarm, not fitted yet, with a share of another one's false alarms."""
    return replace(
        alarm,
        false_alarm_rate=alarm.false_alarm_rate * share,
        false_alarms_per_hour=alarm.false_alarms_per_hour * share,
        asked_per_hour=None if alarm.asked_per_hour is None else alarm.asked_per_hour * share,
    )


def _ensemble(
    trained: TrainedEnsemble, normals: Normals, per_hour: float | None, rescore_share: float | None
) -> Calibrated:
    assert trained.alarm is not None
    with arithmetic("float32"):
        fitted = {
            name: fit_member_score(detector.network, detector.score, normals)
            for name, detector in trained.ensemble.members.items()
        }
    clip_s = trained.features.clip_s
    if rescore_share is None:
        rescore_share = 1.0 if trained.ensemble.rescoring is None else trained.ensemble.rescoring.share
    ensemble, alarm, scores, pieces = fit_sum(
        fitted,
        false_alarm_rate=_per_hour(trained.alarm, per_hour) * clip_s / 3600.0,
        clip_s=clip_s,
        is_short=normals.chosen_are_short,
        rescore_share=rescore_share,
    )
    members = {name: replace(member, sound=normals.sound) for name, member in trained.members.items()}
    return Calibrated(replace(trained, members=members, ensemble=ensemble, alarm=alarm), scores, pieces)


def _single(trained: TrainedModel, normals: Normals, per_hour: float | None) -> Calibrated:
    before, features = trained.alarm, trained.features
    assert before is not None

    def clips() -> Iterator[Tensor]:
        return (part.x for part in normals.chosen_parts())

    scores, pieces = score_normals(trained.network, features, clips, normals.chosen_n_frames, torch.device("cpu"))
    if trained.score is not None:
        network = fast_network(trained.network) if trained.explained else trained.network
        with arithmetic("float32"):
            detector, _ = fit_detector(
                network, Score(**trained.score.choices), normals.chosen_parts, frames_per_s=features.frames_per_s
            )
            compared = compared_normals(detector, normals)
            of_clips, of_pieces = compared.scores(), compared.piece_scores()
        scores = beside_paper(scores, *of_clips)
        pieces = {duration_s: beside_paper(part, of_pieces[duration_s]) for duration_s, part in pieces.items()}
        trained = replace(trained, score=detector.stored())
    column = POOLINGS[before.pooling].column
    asked: dict[str, float] = {"false_alarms_per_hour": _per_hour(before, per_hour)}
    if per_hour is None and before.rule != "conformal":
        asked = {"false_alarm_rate": before.false_alarm_rate}
    alarm = fit_alarm(
        scores[column].to_numpy(),
        rule=before.rule,
        pooling=before.pooling,
        clip_s=features.clip_s,
        pieces={duration_s: of_length[column].to_numpy() for duration_s, of_length in pieces.items()},
        **asked,
    )
    alarm = with_window_thresholds(alarm, scores)
    scores = scores.select(schemas.VALIDATION_SCORES.names).cast(schemas.VALIDATION_SCORES)
    return Calibrated(replace(trained, alarm=alarm, sound=normals.sound), scores, pieces)


def _per_hour(before: AlarmThreshold, asked: float | None) -> float:
    """How often normal sound may alarm: as often as is asked for, or else as often as before."""
    return asked or before.asked_per_hour or before.false_alarms_per_hour


def _refuse_other_results(run: CalibrationRun) -> None:
    """Return if the folder of the new model is empty, or holds what an earlier calibration has left."""
    marks = (storage.join(run.to, layout.STAGES, f"{_STAGE}{end}.json") for end in ("", ".begun"))
    names = (trained_ensemble.FILE_NAME, checkpoint.FILE_NAME, layout.MANIFEST)
    is_taken = any(storage.exists(storage.join(run.to, name)) for name in names)
    if run.to in run.models or (is_taken and all(read_mark(mark) is None for mark in marks)):
        raise ConfigError(f"{run.to} holds a model or other results already, which stay. Give a new folder (--to).")


def _source(run: CalibrationRun, features: FeatureSettings) -> _Recordings | AuditedClips:
    audits = [place for place in run.normals if is_audit(place)]
    if audits and len(run.normals) > 1:
        raise ConfigError(
            f"{audits[0]} holds the results of an audit. Give the results of one audit alone (--normals), or folders "
            "of recordings."
        )
    if audits:
        return read_normal_clips(audits[0], features)
    recordings = find_recordings([(SPLIT, location) for location in run.normals])
    seen = looks([(recording.path, recording.uri) for recording in recordings])
    return _Recordings(recordings, {r.path: look for r, look in zip(recordings, seen, strict=True)})


def _write_index(run: CalibrationRun, source: AuditedClips) -> pa.Table:
    """Write the manifest of the clips that did not alarm, and a ledger of the others."""
    n_normal, n_all = source.normal.num_rows, source.normal.num_rows + source.left_out.num_rows
    if source.n_rejected:
        alarmed = count(source.n_rejected, "clip that alarmed is", "clips that alarmed are")
        console.print(f"calibrate: {alarmed} among the normal ones, as a reviewer rejected them")
    if source.left_out.num_rows:
        console.print(
            f"calibrate: {count(source.left_out.num_rows, 'clip')} of {n_all} alarmed, lie in a change that lasts or "
            "are labelled, and are left out; if some were normal, more false alarms are to be expected than the new "
            "alarm says"
        )
    if not n_normal:
        raise StudyError(
            f"Every clip of the audit in {run.normals[0]} alarmed, lies in a change that lasts or is labelled. Give "
            "recordings of normal operation (--normals FOLDER)."
        )
    reason = f"alarmed, lies in a change that lasts or is labelled in {run.normals[0]}"
    rows = [clip_ledger_row(clip, "skipped", stage=_STAGE, reason=reason) for clip in source.left_out.to_pylist()]
    parquet.write_table(ledger_table(rows), storage.join(run.to, layout.INDEX_LEDGER), schema=schemas.LEDGER)
    column = source.normal.column_names.index("split")
    manifest = source.normal.set_column(
        column, schemas.MANIFEST.field("split"), pa.array([SPLIT] * n_normal, pa.string())
    ).cast(schemas.MANIFEST)
    parquet.write_table(manifest, storage.join(run.to, layout.MANIFEST), schema=schemas.MANIFEST)
    return manifest


def _conclusion(run: CalibrationRun) -> str:
    """The last line for the user."""
    return f"{clips_fitted(run.to)}. Model: {run.to}  Next: {audit_command(run.to)}"
