"""Which models add up to the best ensemble, chosen without a label: `search.members`.

The linear models that it names are fitted to the training clips, and the best trial's network joins them. Every
ensemble of these is rated by validation clips and by disturbed copies of them (`evaluation.member_selection`), and
`best_ensemble/` gets the one that is chosen.

Scores are calibrated with training clips. The alarm is fitted to validation clips, which no member has learned from;
without the network, to training clips as well: linear models hardly score these lower than others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, cast

import pyarrow as pa
import ray
import torch
from torch import Tensor

from faithad import parquet, schemas, storage
from faithad.config.study import Study
from faithad.evaluation.alarms import fit_promised_alarm
from faithad.evaluation.arrays import Reals
from faithad.evaluation.member_selection import rate_ensembles
from faithad.model.checkpoint import FILE_NAME, TrainedModel, load_model
from faithad.model.fast_network import fast_network
from faithad.model.linear import LinearModel, fit_linear
from faithad.model.precision import arithmetic
from faithad.model.table import build_network
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.features import compute_features, count_features
from faithad.pipelines.search.plan import MODEL, Trial, trial_study
from faithad.pipelines.search.scores import disturbed_validation, read_scores
from faithad.pipelines.training.normals import FittedMember, FittedSum, fit_sum, results_of, save_with_scores
from faithad.pipelines.training.scores import (
    ComparedClips,
    chosen_clips,
    compared_clips,
    inputs_of,
    offsets_of,
    recording_numbers,
    split_clips,
)
from faithad.runs import layout
from faithad.runs.stages import ResumableStage
from faithad.scoring import trained_ensemble
from faithad.scoring.calibration import choose_normals
from faithad.scoring.choices import Score, robust, score_name
from faithad.scoring.score import ClipBatch, Detector, fit_detector
from faithad.scoring.trained_ensemble import TrainedEnsemble

_STAGE = "search-members"


class _Normals(NamedTuple):
    """What a member says of N normal clips of one split.

    Attributes:
        scores: calibrated, (N,).
        windows: the value of the highest window of 0.25 s of each, (N,).
        pieces: the scores of pieces, by their duration in seconds.
        are_short: which of them are shorter than a whole clip, (N,) bool.
    """

    scores: Tensor
    windows: Tensor
    pieces: dict[float, Tensor]
    are_short: Tensor


class _Member(NamedTuple):
    """A model with its score, and what it says of clips.

    Attributes:
        trained: the model.
        detector: with its calibrated score.
        normals: of the training clips, if it is a linear model, and of the validation clips.
        whole: its scores of the validation clips, filled up, (N,).
        disturbed: its scores of the disturbed ones, (D,).
        recordings: of the disturbed ones, D names.
    """

    trained: TrainedModel
    detector: Detector
    normals: list[_Normals]
    whole: Reals
    disturbed: Reals
    recordings: Sequence[str]


def keep_ensemble(
    study: Study, manifest: pa.Table, features: ResumableStage, trials: ResumableStage, best: Trial
) -> list[dict[str, Any]]:
    """Compare the ensembles of `search.members` and the model in `best/`, if that is not done, and keep the best one.

    Returns:
        Rows of `summary/search_members`; none where nothing is to be compared.

    Raises:
        StudyError: a model or its score cannot be fitted to these clips, or a process was lost.
    """
    table, model = layout.summary("search_members"), f"{layout.BEST_ENSEMBLE}/{trained_ensemble.FILE_NAME}"
    stage = ResumableStage(study.root, _STAGE, {}, (table, layout.BEST_ENSEMBLE), result=model, needs=(table,))
    # Searches of release 0.1.0 kept no weights.
    if not study.search.members or not storage.exists(storage.join(study.root, layout.BEST_MODEL, FILE_NAME)):
        stage.reset()
        return []
    score, rate = _score(study), study.alarm.rate(study.data.clip_s)
    settings = {"trial": best.name, "trials": trials.fingerprint, "score": asdict(score), "false_alarm_rate": rate}
    settings |= {"members": list(study.search.members), "features.reference": study.features.reference}
    stage = replace(stage, settings=settings)
    if not stage.is_done():
        stage.begin(redo=True)
        with ray_session():
            compute_features(study, manifest, features, redo=False)
            _choose(study, best, score, stage.fingerprint)
        stage.finish()
    return list(parquet.read_table(storage.join(study.root, table)).to_pylist())


def _score(study: Study) -> Score:
    """The score of the network as a member: the best calibrated one that was compared, or the recommended one."""
    compared = read_scores(study) if study.search.scores else []
    return next((score for score in compared if score.calibration == "local"), robust(MODEL))


def _choose(study: Study, trial: Trial, score: Score, fingerprint: str) -> None:
    scores = {name: robust(name) for name in study.search.members} | {MODEL: score}
    fit = ray.remote(_fit_member)
    tasks = [fit.options(name=f"search member {name}").remote(study, trial, name, scores[name]) for name in scores]
    members: dict[str, _Member] = dict(zip(scores, results_of(tasks), strict=True))
    rate, clip_s = study.alarm.rate(study.data.clip_s), study.data.clip_s
    rated = rate_ensembles(
        {name: member.whole for name, member in members.items()},
        {name: member.disturbed for name, member in members.items()},
        members[MODEL].recordings,
        network=MODEL,
        fit_threshold=lambda usual: fit_promised_alarm(usual, false_alarm_rate=rate, clip_s=clip_s).threshold,
    )
    numbers = {"n_normal": len(members[MODEL].whole), "n_disturbed": len(members[MODEL].disturbed)}
    rows = [
        {"trial": trial.name, "score": score_name(score, MODEL) if MODEL in each.members else None, **numbers}
        | asdict(each)
        for each in rated
    ]
    (chosen,) = (each.members for each in rated if each.chosen)
    of_sum = _fit_sum(members, chosen, rate=rate, clip_s=clip_s)
    trained = TrainedEnsemble(
        {name: members[name].trained for name in chosen}, of_sum.ensemble, trial.seed, of_sum.alarm, fingerprint
    )
    folder = storage.join(study.root, layout.BEST_ENSEMBLE)
    storage.delete(folder)
    place = storage.join(study.root, layout.summary("search_members"))
    table = pa.Table.from_pylist(rows, schema=schemas.SEARCH_MEMBERS)
    parquet.write_table(table, place, schema=table.schema)
    save_with_scores(trained, folder, of_sum.scores, of_sum.pieces)


def _fit_sum(members: Mapping[str, _Member], chosen: Sequence[str], *, rate: float, clip_s: float) -> FittedSum:
    """The chosen members as one, with the alarm of their sum."""
    fitted, are_short = {}, torch.zeros(0, dtype=torch.bool)
    for name in chosen:
        parts = members[name].normals[-1 if MODEL in chosen else 0 :]
        pieces = {
            duration_s: torch.cat([part.pieces[duration_s] for part in parts if duration_s in part.pieces])
            for duration_s in parts[-1].pieces
        }
        scores, windows = torch.cat([part.scores for part in parts]), torch.cat([part.windows for part in parts])
        fitted[name] = FittedMember(members[name].detector, scores, pieces, windows)
        are_short = torch.cat([part.are_short for part in parts])
    return fit_sum(fitted, false_alarm_rate=rate, clip_s=clip_s, is_short=are_short)


def _fit_member(study: Study, trial: Trial, name: str, score: Score) -> _Member:
    """The Ray task that fits a linear model, or takes the network in `best/`, and fits its score and scores clips."""
    torch.set_num_threads(1)  # the last digits do not depend on the machine's cores
    study = trial_study(study, trial.cell)
    trained = _trained(study, trial, name)
    clips = split_clips(study, trained, "train")
    chosen = choose_normals(len(clips), seed=trial.seed)
    names = sorted({recording for recording, _ in (list(clips.values())[number] for number in chosen)})
    with arithmetic("float32"):
        detector, _ = fit_detector(
            fast_network(trained.network),
            score,
            lambda: chosen_clips(
                inputs_of(study, trained, "train"), clips, chosen, offsets_of(study, trained, "train")
            ),
            frames_per_s=trained.features.frames_per_s,
        )
        normals = [compared_clips(study, trained, detector, "validation", names)]
        if name != MODEL:
            normals.insert(0, compared_clips(study, trained, detector, "train", names, chosen))
        whole, disturbed = disturbed_validation(study, trained)
        return _Member(
            trained,
            replace(detector, network=trained.network),  # a fast form cannot be sent from a Ray task
            [_scored(part, trained.n_frames) for part in normals],
            _scores(detector, whole, names),
            _scores(detector, disturbed, names),
            disturbed.recordings,
        )


def _trained(study: Study, trial: Trial, name: str) -> TrainedModel:
    """The network in `best/`, or a linear model of the same features and frames."""
    best = load_model(storage.join(study.root, layout.BEST_MODEL), expect={"name": MODEL, "seed": trial.seed})
    best = replace(best, alarm=None, score=None)
    if name == MODEL:
        return best
    network = build_network(name, best.n_mels, best.n_frames, reference=study.features.own_reference).eval()
    n_clips = count_features(study.root, "train")
    fit_linear(cast(LinearModel, network), inputs_of(study, best, "train"), n_clips=n_clips, seed=trial.seed)
    return replace(best, network=network, name=name, best_epoch=0)


def _scored(clips: ComparedClips, n_frames: int) -> _Normals:
    scores, windows = clips.scores()
    pieces = {duration_s: torch.from_numpy(part) for duration_s, part in clips.piece_scores().items()}
    are_short = torch.tensor(clips.n_frames) < n_frames
    return _Normals(torch.from_numpy(scores), torch.tensor(windows).double(), pieces, are_short)


def _scores(detector: Detector, clips: ClipBatch, names: Sequence[str]) -> Reals:
    """The scores of clips; `names` are those of the recordings of the detector's normals."""
    return ComparedClips(detector, lambda: [clips], (), recording_numbers(names, clips.recordings), {}).scores()[0]
