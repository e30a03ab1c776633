"""The score of the best trial's model, chosen without a label: `search.scores`.

Each score is fitted to training clips and judged by validation clips and by copies of these with all kinds of
disturbances in them (`evaluation.disturbances.KINDS`). `best/` gets the score that catches the most of them at the
alarm's rate; it is fitted as `faithad train` fits the score of a study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import ray
import torch

from faithad import parquet, schemas, storage
from faithad.config.study import Study
from faithad.evaluation.alarms import fit_alarm
from faithad.evaluation.disturbances import KINDS, disturbed_clips
from faithad.evaluation.score_selection import RatedScore, rate_scores
from faithad.model.checkpoint import FILE_NAME, TrainedModel, load_model
from faithad.model.fast_network import fast_network
from faithad.model.precision import arithmetic
from faithad.pipelines.search.clips import load_clips
from faithad.pipelines.search.plan import MODEL, Trial, scores_to_compare, trial_study, with_score
from faithad.pipelines.training.normals import results_of
from faithad.pipelines.training.scores import chosen_clips, fit_score, inputs_of, offsets_of, split_clips
from faithad.runs import layout
from faithad.runs.stages import ResumableStage, flatten, is_finished
from faithad.scoring.choices import PAPER, Score
from faithad.scoring.score import ClipBatch

# Training clips that scores are fitted to when they are compared: the first ones, in the order of a hash.
_MOST_CLIPS = 400
_CHOICES = ("residual", "weighting", "pooling", "calibration")


def scores_stage(study: Study, trial: Trial, trials: ResumableStage) -> ResumableStage:
    """It depends on the trial, on what the trials depend on, and on the alarm."""
    scores = [asdict(score) for score in scores_to_compare(study)]
    settings = {"trial": trial.name, "trials": trials.fingerprint, "scores": scores}
    settings |= flatten("alarm", study.alarm.as_in_marks())
    table, model = layout.summary("search_scores"), f"{layout.BEST_MODEL}/{FILE_NAME}"
    return ResumableStage(
        study.root, "search-scores", settings, (table, layout.BEST_MODEL), result=model, needs=(table,)
    )


def is_left_from_before(study: Study) -> bool:
    """Whether `best/` may have a score that was chosen, and none is to be chosen now."""
    return not study.search.scores and is_finished(study.root, "search-scores")


def choose_score(study: Study, trial: Trial) -> Score:
    """Compare the scores, write the table, and give the model in `best/` the best score; Ray must be there.

    Raises:
        StudyError: a score cannot be fitted to these clips, or a process was lost.
    """
    (rated,) = results_of([ray.remote(_rate).options(name="search scores").remote(study, trial)])
    rows = [
        {
            "trial": trial.name,
            **asdict(each.score),
            "caught": each.caught,
            "proxy_auc": each.proxy_auc,
            "chosen": k == 0,
        }
        for k, each in enumerate(rated)
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.SEARCH_SCORES)
    chosen: Score = rated[0].score
    if chosen != PAPER:
        folder, of_trial = storage.join(study.root, layout.BEST_MODEL), trial_study(study, trial.cell)
        fit = ray.remote(fit_score).options(name="search score")
        results_of([fit.remote(with_score(of_trial, chosen), MODEL, trial.seed, folder)])
    parquet.write_table(table, storage.join(study.root, layout.summary("search_scores")), schema=table.schema)
    return chosen


def read_scores(study: Study) -> list[Score]:
    """The scores that were compared, of a finished stage; the first one was chosen."""
    rows = parquet.read_table(storage.join(study.root, layout.summary("search_scores"))).to_pylist()
    return [Score(**{name: row[name] for name in _CHOICES}) for row in rows]


def _rate(study: Study, trial: Trial) -> list[RatedScore]:
    """The Ray task that rates the scores of the model in `best/`."""
    torch.set_num_threads(1)  # the last digits do not depend on the machine's cores
    of_trial = trial_study(study, trial.cell)
    trained = load_model(storage.join(study.root, layout.BEST_MODEL), expect={"name": MODEL, "seed": trial.seed})
    clips = split_clips(of_trial, trained, "train")
    chosen, of_train = np.arange(min(len(clips), _MOST_CLIPS)), offsets_of(of_trial, trained, "train")
    normals = _joined(list(chosen_clips(inputs_of(of_trial, trained, "train"), clips, chosen, of_train)))
    held_back, disturbed = disturbed_validation(of_trial, trained)

    def fit_threshold(scores: np.ndarray) -> float:
        settings = study.alarm.model_dump() | {"pooling": "mean"}
        return fit_alarm(scores, **settings, clip_s=study.data.clip_s).threshold

    with arithmetic("float32"):
        return rate_scores(
            fast_network(trained.network),
            scores_to_compare(study),
            normals=normals,
            held_back=held_back,
            disturbed=disturbed,
            frames_per_s=trained.features.frames_per_s,
            fit_threshold=fit_threshold,
        )


def disturbed_validation(study: Study, trained: TrainedModel) -> tuple[ClipBatch, ClipBatch]:
    """The validation clips as a model takes them in, and copies of them with all kinds of disturbances in them.

    Short clips count as filled up: a disturbance may lie anywhere in them.
    """
    clip_ids, log_mels, references = load_clips(study, "validation")
    recordings = [recording for recording, _ in split_clips(study, trained, "validation").values()]
    made = disturbed_clips(
        log_mels.numpy(), clip_ids, settings=study.feature_settings, seed=study.search.seed, kinds=KINDS
    )
    of_sources = None if references is None else references[torch.from_numpy(made.sources)]
    offsets, of_made = map(trained.normalization.offsets, (references, of_sources))
    return ClipBatch(trained.prepare(log_mels, references), clip_ids, recordings, offsets=offsets), ClipBatch(
        trained.prepare(torch.from_numpy(made.log_mels), of_sources),
        [f"{clip_ids[n]} {kind}" for n, kind in zip(made.sources, made.kinds, strict=True)],
        [recordings[n] for n in made.sources],
        offsets=of_made,
    )


def _joined(parts: Sequence[ClipBatch]) -> ClipBatch:
    lengths = [n for part in parts for n in part.n_frames or ()]
    return ClipBatch(
        torch.cat([part.x for part in parts]),
        [clip_id for part in parts for clip_id in part.clip_ids],
        [recording for part in parts for recording in part.recordings],
        lengths or None,
        None if parts[0].offsets is None else torch.cat([part.offsets for part in parts if part.offsets is not None]),
    )
